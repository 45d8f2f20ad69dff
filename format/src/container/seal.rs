//! Sealing: the frozen layers of a volume get tags, each block being read once.
//!
//! Role: says what is to be sealed, takes orders, and tells how far it is. Invariant (TAG-8): that a volume is being sealed is in
//! the catalog, so that whatever ends a process ends no sealing. Does not: make tags (see [`super::seal_steps`]), or decide when
//! that is done: the caller does.

use std::collections::HashSet;
use std::sync::Arc;

use super::ops::Slots;
use super::state::State;
use super::{Container, HydrateWait, OpenMode};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::layout::slot::{LayerKind, Pace, Verify, VolumeRecord};
use crate::units::{LayerId, SLAB_LEN, VolumeId};

/// A volume that is being sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealing {
    /// The volume's present name.
    pub volume: String,
    /// Its id: what [`Container::seal_step`] asks for.
    pub volume_id: VolumeId,
    /// Bytes that its frozen layers take.
    pub total_bytes: u64,
    /// How many of them have been passed, whether they had tags or not. After the container has been opened it begins anew;
    /// what has tags is passed without being read.
    pub passed_bytes: u64,
    /// The caller should not go on with it for now.
    pub paused: bool,
    /// Bytes a second that the caller should read at most; 0: as fast as can be.
    pub speed: u64,
}

/// What a step of sealing has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealStep {
    /// So many bytes got tags, perhaps none where all had them; there is more to do.
    Sealed(u64),
    /// Nothing can be done for the moment; try again after a while.
    Blocked(HydrateWait),
    /// There is no more to do.
    Ended(SealEnd),
}

/// How the sealing of a volume ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealEnd {
    /// All that is frozen of it has tags; that is durable.
    Done,
    /// It was given up, or the volume was deleted.
    Cancelled,
}

/// How far a volume has been sealed since the container was opened.
#[derive(Debug, Default)]
pub(crate) struct Seal {
    pub(super) is_under_way: bool,
    /// Layers still to be passed, the next one last.
    pub(super) todo: Vec<LayerId>,
    /// The layer that is being passed.
    pub(super) at: Option<At>,
    pub(super) left_out: LeftOut,
    /// [`State::to_seal`] when all else had been passed, as was told by [`Error::NotAllSealed`].
    pub(super) stopped_at: Option<u64>,
}

impl Seal {
    /// Told to go on: what was left out is tried again by the next step, if that is what it stopped at.
    fn tries_again(&mut self) {
        if self.stopped_at.is_some() {
            self.left_out = LeftOut::default();
        }
    }
}

/// What could not be read since the sealing began or was told to go on (TAG-13).
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    /// Where that was: these layers are not listed again.
    pub(super) layers: HashSet<LayerId>,
    pub(super) places: u64,
    pub(super) first: Option<Arc<Error>>,
}

impl LeftOut {
    /// Adds `places`, of which the first gave `error`.
    pub(super) fn add(&mut self, places: u64, error: Error) {
        self.places += places;
        self.first.get_or_insert_with(|| Arc::new(error));
    }

    /// The error that tells of it.
    pub(super) fn error(&self) -> Option<Error> {
        let first = self.first.clone()?;
        Some(Error::NotAllSealed { places: self.places, first })
    }
}

/// How far a layer has been passed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct At {
    pub(super) layer: LayerId,
    /// Chunks before this one have been passed.
    pub(super) next: u64,
    /// Slabs of the layer that have been.
    pub(super) slabs: u64,
    /// [`Tagging::merges`] when its passing began.
    pub(super) merges: u64,
    /// Something of it was left out.
    pub(super) has_left_out: bool,
}

/// What is known of a layer that may have tags.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tagging {
    /// That it is frozen, or a copy layer, is durable, and so is what was written to it before (TAG-4).
    pub(crate) lasts: bool,
    /// All of its data has tags, as far as none was added without since.
    pub(crate) sealed: bool,
    /// How often a merge has brought data into it.
    pub(crate) merges: u64,
}

impl State {
    /// Whether tags of this layer's data may be written.
    pub(super) fn may_be_tagged(&self, layer: LayerId) -> bool {
        self.tagged.get(&layer).is_some_and(|tagging| tagging.lasts)
    }

    pub(super) fn is_sealed(&self, layer: LayerId) -> bool {
        self.tagged.get(&layer).is_some_and(|tagging| tagging.sealed)
    }

    pub(super) fn is_frozen_kind(&self, layer: LayerId) -> bool {
        self.layer_slots.contains_key(&layer) && self.layer_record(layer).kind == LayerKind::Frozen
    }

    /// A merge brings data into a layer; if `sealed`, all of it with its tags.
    pub(super) fn merges_into(&mut self, layer: LayerId, sealed: bool) {
        let tagging = self.tagged.entry(layer).or_default();
        tagging.merges += 1;
        tagging.sealed &= sealed;
        if !sealed {
            self.to_seal += 1;
        }
    }

    /// Slabs with data of a layer.
    fn data_slabs_of(&self, layer: &Layer) -> u64 {
        self.slabs_of(layer.id).saturating_sub(layer.table_count())
    }

    fn check_is_sealing(&self, id: VolumeId) -> Result<()> {
        if self.seals.contains_key(&id) { Ok(()) } else { Err(Error::NotSealing { volume: id }) }
    }
}

impl Container {
    /// Sets what is done so that damaged data of volume `name` is found; what is frozen of it is sealed from now on, unless that
    /// is off.
    ///
    /// Errors: [`Error::NoSuchVolume`].
    pub fn set_verify(&self, name: &str, verify: Verify) -> Result<super::VolumeInfo> {
        let _control = super::lock(&self.shared.control);
        let id = self.change_sealed(name, |record| {
            let before = std::mem::replace(&mut record.verify, verify);
            match verify {
                Verify::Off => record.sealing = None,
                _ if before == Verify::Off => record.seal_more(),
                // More is to be sealed for it than what was frozen of it.
                Verify::Always if before != Verify::Always => record.seal_more(),
                Verify::Copy | Verify::Always => {}
            }
        })?;
        if let Some(core) = self.shared.lock().volumes.get(&id) {
            core.set_verify(verify);
        }
        self.volume_info(id)
    }

    /// Begins to seal what is frozen of volume `name`, or goes on with it, also with what was left out:
    /// [`Container::seal_step`] does it.
    ///
    /// Errors: [`Error::NoSuchVolume`].
    pub fn seal(&self, name: &str) -> Result<VolumeId> {
        let _control = super::lock(&self.shared.control);
        let id = self.change_sealed(name, |record| {
            record.sealing.get_or_insert_default();
        })?;
        self.try_again(id);
        Ok(id)
    }

    fn try_again(&self, id: VolumeId) {
        if let Some(seal) = self.shared.lock().seals.get_mut(&id) {
            seal.tries_again();
        }
    }

    /// Whether something was frozen of a volume since its sealing stopped at what could not be read
    /// ([`Error::NotAllSealed`]): another step seals that, and then tells again what was left out.
    pub fn has_more_to_seal(&self, id: VolumeId) -> bool {
        let stopped_at = |state: &State| state.seals.get(&id).and_then(|seal| seal.stopped_at);
        {
            let state = self.shared.lock();
            if stopped_at(&state).is_none_or(|to_seal| to_seal == state.to_seal) {
                return false;
            }
        }
        let Some(looked_at) = self.list_to_seal(id) else { return true };
        if let Some(seal) = self.shared.lock().seals.get_mut(&id).filter(|seal| seal.stopped_at.is_some()) {
            seal.stopped_at = Some(looked_at);
        }
        false
    }

    /// Differs from what it was when a sealing has begun meanwhile, or there may be more to seal.
    pub fn seal_changes(&self) -> u64 {
        self.shared.lock().to_seal
    }

    /// Changes, durably, what volume `name` says of its sealing. The caller holds `control`.
    fn change_sealed(&self, name: &str, change: impl FnOnce(&mut VolumeRecord)) -> Result<VolumeId> {
        self.shared.check_open()?;
        let id = {
            let mut state = self.lock_for(|state| state.volume_id(name).map(|_| Slots { new: 0, changed: 1 }))?;
            let id = state.volume_id(name)?;
            state.update_volume(id, change);
            id
        };
        self.commit()?;
        Ok(id)
    }

    /// Gives the sealing of a volume up. Tags that were made stay.
    ///
    /// Errors: [`Error::NotSealing`] if it has ended.
    pub fn cancel_seal(&self, id: VolumeId) -> Result<()> {
        self.change_seal(id, None)
    }

    /// Sets whether the sealing of a volume is paused, and how many bytes a second it may read (0: no limit). Both are kept in
    /// the container; the caller of [`Container::seal_step`] heeds them. Not paused, it tries what it left out again.
    ///
    /// Errors: [`Error::NotSealing`] if it has ended.
    pub fn set_seal(&self, id: VolumeId, paused: bool, speed: u64) -> Result<()> {
        self.change_seal(id, Some(Pace { paused, speed }))?;
        if !paused {
            self.try_again(id);
        }
        Ok(())
    }

    fn change_seal(&self, id: VolumeId, pace: Option<Pace>) -> Result<()> {
        let _control = super::lock(&self.shared.control);
        self.shared.check_open()?;
        {
            let mut state = self.lock_for(|state| state.check_is_sealing(id).map(|()| Slots { new: 0, changed: 1 }))?;
            state.update_volume(id, |record| record.sealing = pace);
        }
        self.commit()
    }

    /// The sealing of a volume; nothing if it has ended.
    pub fn sealing(&self, id: VolumeId) -> Option<Sealing> {
        let (head, at) = {
            let state = self.shared.lock();
            (state.volumes.get(&id)?.head(), state.seals.get(&id)?.at)
        };
        let (mut total, mut passed) = (0, 0);
        self.shared.visit_layers(head.parent(), |state, layer| {
            if !state.is_frozen_kind(layer.id) {
                return;
            }
            let slabs = state.data_slabs_of(layer);
            let here = at.filter(|at| at.layer == layer.id).map_or(0, |at| at.slabs);
            total += slabs;
            passed += if state.is_sealed(layer.id) { slabs } else { here.min(slabs) };
        });
        let state = self.shared.lock();
        let record = state.seals.contains_key(&id).then(|| state.volume_record(id))?;
        let Pace { paused, speed } = record.sealing?;
        Some(Sealing {
            volume: record.name.clone(),
            volume_id: id,
            total_bytes: total * SLAB_LEN,
            passed_bytes: passed * SLAB_LEN,
            paused,
            speed,
        })
    }

    /// All volumes that are being sealed, by id: each is to be carried on with by [`Container::seal_step`], also after a crash.
    pub fn seals(&self) -> Vec<Sealing> {
        let ids: Vec<VolumeId> = self.shared.lock().seals.keys().copied().collect();
        ids.into_iter().filter_map(|id| self.sealing(id)).collect()
    }

    /// Their ids, which costs next to nothing; none if the container is open for reading only.
    pub fn sealing_volumes(&self) -> Vec<VolumeId> {
        if self.shared.mode == OpenMode::ReadOnly {
            return Vec::new();
        }
        self.shared.lock().seals.keys().copied().collect()
    }
}
