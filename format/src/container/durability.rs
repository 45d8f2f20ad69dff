//! What flushes of a volume promise, and what becomes of a volume whose flushes promise nothing.
//!
//! Invariant: a volume is marked as undefined, durably, before anybody can plan a request on it after an unclean stop
//! (VOL-44); its flushes promise nothing only while the catalog says so durably (VOL-43). Does not: weaken any rule of how
//! data and metadata become durable, for this volume or another (VOL-41).

use super::ops::Slots;
use super::state::State;
use super::{Container, OpenMode, VolumeInfo};
use crate::error::{Error, Result};
use crate::layout::slot::{Durability, Slot};
use crate::units::VolumeId;

/// What is to be changed of a volume; what is left out stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeChange {
    /// What its flushes promise.
    pub durability: Option<Durability>,
    /// Its contents are taken as they are: it is not undefined any more (VOL-46).
    pub defined: bool,
}

impl State {
    /// As [`State::volume_id`], for who reads what the volume shows: refuses one that is undefined (VOL-45).
    pub(super) fn defined_volume_id(&self, name: &str) -> Result<VolumeId> {
        let id = self.volume_id(name)?;
        if self.volume_record(id).undefined { Err(Error::Undefined { name: name.to_owned() }) } else { Ok(id) }
    }
}

impl Container {
    /// Changes what flushes of a volume promise, or takes an undefined volume as it is.
    ///
    /// With durability flush, all that had completed before is durable when this returns.
    ///
    /// Errors: [`Error::NoSuchVolume`], [`Error::InView`].
    pub fn set_volume(&self, name: &str, change: VolumeChange) -> Result<VolumeInfo> {
        let _control = super::lock(&self.shared.control);
        self.shared.check_open()?;
        let (id, core) = {
            let mut state = self.lock_for(|state| {
                let id = state.volume_id(name)?;
                if change.durability == Some(Durability::None) {
                    state.check_no_view(id)?;
                }
                Ok(Slots { new: 0, changed: 1 })
            })?;
            let id = state.volume_id(name)?;
            let core = state.volumes[&id].clone();
            if change.durability == Some(Durability::Flush) {
                // Before the batch that says so is imaged: a flush that promised nothing began before its data sync.
                core.set_durability(Durability::Flush);
            }
            state.update_volume(id, |record| {
                record.durability = change.durability.unwrap_or(record.durability);
                record.undefined &= !change.defined;
            });
            (id, core)
        };
        self.commit()?;
        if change.durability == Some(Durability::None) {
            // Only now: after a crash before, the volume would have passed for one that keeps what was flushed.
            core.set_durability(Durability::None);
        }
        self.volume_info(id)
    }

    /// After an unclean stop: every volume whose flushes promised nothing is undefined from now on, durably unless the
    /// container is open for reading only (VOL-44).
    pub(super) fn mark_undefined(&self) -> Result<()> {
        let (marked, most) = {
            let state = self.shared.lock();
            let disposable = |slot: &Slot| match slot {
                Slot::Volume(record) if record.durability == Durability::None && !record.undefined => Some(record.id),
                _ => None,
            };
            (state.slots().iter().filter_map(disposable).collect::<Vec<_>>(), state.most_slots())
        };
        for some in marked.chunks(most.max(1)) {
            let mut state = match self.shared.mode {
                OpenMode::ReadWrite => self.lock_for(|_| Ok(Slots { new: 0, changed: some.len() }))?,
                OpenMode::ReadOnly => self.shared.lock(),
            };
            some.iter().for_each(|&id| state.update_volume(id, |record| record.undefined = true));
            drop(state);
            if self.shared.mode == OpenMode::ReadWrite {
                // The superblock says until then that the container was not closed: a crash here leaves the rest to mark.
                self.commit()?;
            }
        }
        if !marked.is_empty() {
            log::warn!("the container was not closed: {} volumes of durability none are undefined", marked.len());
        }
        Ok(())
    }
}
