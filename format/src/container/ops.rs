//! Control operations on one volume: create, delete, rename; what all that change heads share.
//!
//! Invariant: each is atomic and durable when it returns; none waits for, or stops, a guest's requests. Cost does not
//! depend on the size of any volume. Does not: copy data (see [`super::copies`]), or free it (that is background work).

use std::sync::Arc;

use uuid::Uuid;

use super::state::State;
use super::{Container, Maintained, VolumeInfo, now_ns};
use crate::error::{Error, Result};
use crate::layer::{Layer, Link};
use crate::layout::slot::{Durability, LayerKind, LayerRecord, PER_PAGE, Verify, VolumeRecord, check_name};
use crate::sync::{MutexGuard, thread};
use crate::units::{LayerId, MAX_VOLUME_LEN, MIN_IO_LEN, VolumeId};
use crate::volume::{VolumeCore, Writers};

/// Bytes of a catalog slot in the journal.
const SLOT_BYTES: u64 = 520;

/// Catalog slots that a command changes in one batch, besides the container's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slots {
    /// Of those that are free.
    pub(super) new: usize,
    /// Of those in use.
    pub(super) changed: usize,
}

impl Slots {
    /// Bytes that they take in the journal at most: with the container's slot, what fills a page of new ones, and the
    /// descriptors of new catalog slabs.
    fn journal_bytes(self) -> u64 {
        (self.new + self.changed + PER_PAGE as usize + 1) as u64 * SLOT_BYTES
    }
}

/// Adds an empty head of `size` bytes over `parent`.
pub(super) fn add_head(state: &mut State, parent: Option<Arc<Layer>>, size: u64) -> Arc<Layer> {
    let id = LayerId(state.next_id());
    let parent_limit = parent.as_ref().map_or(0, |parent| parent.size.min(size));
    let record = LayerRecord {
        id,
        uuid: Uuid::new_v4(),
        kind: LayerKind::Head,
        parent: parent.as_ref().map(|parent| parent.id),
        owner: None,
        size,
        parent_limit,
        birth: id,
        created_ns: now_ns(),
        frozen_ns: 0,
    };
    let layer = Arc::new(Layer::new(id, size, Link { parent, limit: parent_limit }, true));
    state.add_layer(record, layer.clone());
    layer
}

impl State {
    pub(crate) fn volume_id(&self, name: &str) -> Result<VolumeId> {
        self.names.get(name).copied().ok_or_else(|| Error::NoSuchVolume { name: name.to_owned() })
    }

    /// Refuses the name of a volume that is there.
    pub(super) fn check_new_name(&self, name: &str) -> Result<()> {
        if self.names.contains_key(name) { Err(Error::VolumeExists { name: name.to_owned() }) } else { Ok(()) }
    }

    /// Catalog slots that one batch may change besides what has gathered (JNL-31).
    pub(super) fn most_slots(&self) -> usize {
        (self.ring.len / 8 / SLOT_BYTES) as usize
    }

    /// Whether the journal takes what has gathered and a change of `slots`, and keeps its reserve.
    fn has_room(&self, slots: Slots) -> bool {
        self.ring.fits(self.gathered() + slots.journal_bytes(), self.batches.on_way + self.ring.reserve())
    }

    /// Layers that change when a volume is let go; refuses if they are too many for one batch, before anything has changed.
    pub(super) fn check_let_go(&self, id: VolumeId) -> Result<usize> {
        let most = self.most_slots();
        let record = self.volume_record(id);
        let (mut layers, mut alone) = (0, true);
        let mut next = Some(record.head);
        while let Some(layer) = next {
            let found = self.layer_record(layer);
            // Doomed with the volume, or losing it as their owner; others do not change.
            alone &= self.child_count(layer) <= 1;
            layers += usize::from(alone || found.owner == Some(id));
            next = found.parent;
        }
        if layers > most {
            return Err(Error::TooManyLayers { name: record.name.clone(), layers, most });
        }
        Ok(layers)
    }

    /// Dooms a head that its volume no longer uses, and every layer that nobody else uses then (LAY-5).
    pub(super) fn let_go(&mut self, head: LayerId, volume: VolumeId) {
        let left = self.doom_unused(Some(head), usize::MAX);
        self.disown(left, volume);
    }

    /// Dooms `first` and the layers below it, parent by parent, as long as nobody uses them and they are `most` at most;
    /// returns the first that is left.
    pub(super) fn doom_unused(&mut self, first: Option<LayerId>, most: usize) -> Option<LayerId> {
        let (mut next, mut left) = (first, most);
        while let Some(id) = next.filter(|&id| left > 0 && self.is_unused(id)) {
            next = self.layer_record(id).parent;
            left -= 1;
            self.update_layer(id, |record| {
                record.kind = LayerKind::Doomed;
                record.owner = None;
                record.parent = None;
            });
        }
        next
    }

    /// Layers from `first` down that others still use lose this owner; nobody fills a copy layer for them (LAY-35).
    pub(super) fn disown(&mut self, first: Option<LayerId>, volume: VolumeId) {
        let mut next = first;
        while let Some(id) = next {
            let record = self.layer_record(id);
            next = record.parent;
            if record.owner == Some(volume) {
                self.disown_layer(id);
            }
        }
    }

    /// Takes its owner from a layer; nobody fills it for that one any more.
    pub(super) fn disown_layer(&mut self, id: LayerId) {
        self.update_layer(id, |record| {
            record.owner = None;
            record.end_copy();
        });
    }
}

impl Container {
    /// Locks the state with the slots that `asked` says are needed, and with room for them in the journal (JNL-31), so
    /// that what follows cannot fail half-way. `asked` may be called several times, and refuse.
    pub(super) fn lock_for(&self, mut asked: impl FnMut(&State) -> Result<Slots>) -> Result<MutexGuard<'_, State>> {
        loop {
            let mut state = self.shared.lock();
            state.set_aside = 0;
            let slots = asked(&state)?;
            if !state.has_room(slots) {
                // Others commit meanwhile: what they leave is enough once the checkpoint has emptied the ring.
                state.set_aside = state.ring.need(2 * state.ring.batch_limit() + slots.journal_bytes());
                debug_assert!(state.set_aside + state.ring.reserve() <= state.ring.len);
                drop(state);
                self.checkpoint()?;
                continue;
            }
            let Err(error) = state.reserve_slots(slots.new) else {
                return Ok(state);
            };
            if state.is_full() {
                return Err(error);
            }
            // The file may only have to grow, or freed slabs to be committed.
            drop(state);
            if self.maintain()? == Maintained::Idle {
                thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }

    /// Creates a volume of `size` bytes that reads as zeros, of durability flush.
    ///
    /// Errors: [`Error::BadName`], [`Error::BadSize`], [`Error::VolumeExists`], [`Error::NoSpace`].
    pub fn create_volume(&self, name: &str, size: u64) -> Result<VolumeInfo> {
        self.create_volume_with(name, size, Durability::Flush)
    }

    /// As [`Container::create_volume`], of this durability.
    pub fn create_volume_with(&self, name: &str, size: u64, durability: Durability) -> Result<VolumeInfo> {
        let _control = super::lock(&self.shared.control);
        self.shared.check_open()?;
        check_volume_name(name)?;
        if size == 0 || size > MAX_VOLUME_LEN {
            return Err(Error::BadSize { size, why: "it must be from 512 bytes to 64T" });
        }
        if !size.is_multiple_of(MIN_IO_LEN) {
            return Err(Error::BadSize { size, why: "it must be a multiple of 512" });
        }
        let id = {
            let mut state = self.lock_for(|state| {
                state.check_new_name(name)?;
                Ok(Slots { new: 2, changed: 0 })
            })?;
            let head = add_head(&mut state, None, size);
            let id = VolumeId(state.next_id());
            let record = VolumeRecord {
                id,
                uuid: Uuid::new_v4(),
                name: name.to_owned(),
                size,
                head: head.id,
                created_ns: now_ns(),
                origin: None,
                durability,
                undefined: false,
                verify: Verify::Off,
                sealing: None,
                split: false,
                instant: None,
                is_view: false,
            };
            let core = Arc::new(VolumeCore::new(&record, Writers::new(head, self.shared.signal.clone())));
            state.add_volume(record, core);
            id
        };
        self.commit()?;
        self.volume_info(id)
    }

    /// Deletes a volume. Point-in-time copies made of it keep their contents; freeing space is background work.
    ///
    /// The caller makes sure that nobody uses it: requests planned later fail with [`Error::VolumeGone`].
    pub fn delete_volume(&self, name: &str) -> Result<()> {
        let _control = super::lock(&self.shared.control);
        self.shared.check_open()?;
        self.delete_found(|state| state.volume_id(name))
    }

    /// Deletes the volume that `find` finds. The caller holds `control`.
    pub(super) fn delete_found(&self, find: impl Fn(&State) -> Result<VolumeId>) -> Result<()> {
        {
            let mut state = self.lock_for(|state| {
                let id = find(state)?;
                state.check_no_view(id)?;
                Ok(Slots { new: 0, changed: 1 + state.check_let_go(id)? })
            })?;
            let id = find(&state)?;
            let head = state.volume_record(id).head;
            let core = state.volumes[&id].clone();
            core.retire(self.shared.signal.clone());
            state.remove_volume(id);
            state.let_go(head, id);
        }
        self.commit()?;
        self.shared.call_for_work();
        Ok(())
    }

    /// Gives a volume another name.
    pub fn rename_volume(&self, name: &str, new_name: &str) -> Result<()> {
        let _control = super::lock(&self.shared.control);
        self.shared.check_open()?;
        check_volume_name(new_name)?;
        {
            let mut state = self.lock_for(|state| {
                if name != new_name {
                    state.check_new_name(new_name)?;
                }
                Ok(Slots { new: 0, changed: 1 })
            })?;
            let id = state.volume_id(name)?;
            state.update_volume(id, |record| new_name.clone_into(&mut record.name));
            state.volumes[&id].set_name(new_name);
        }
        self.commit()
    }
}

pub(super) fn check_volume_name(name: &str) -> Result<()> {
    check_name(name).map_err(|why| Error::BadName { name: name.to_owned(), why })
}
