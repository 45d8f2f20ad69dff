//! Relations: what a volume that was hydrated has in common with the one that it was copied from.
//!
//! Role: keeps the two layers that hold it, says which of them is a donor (REL-5), and ends relations. Invariant (REL-3): a
//! layer that a relation names is frozen, is not merged into another and does not go; a relation that has ended lets go of
//! its layers a bounded number at a time. Does not: move slabs (see [`super::adopt`]).

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;

use super::ops::Slots;
use super::state::State;
use super::{Container, Relation, RelationState, VolumeInfo, VolumeState};
use crate::error::{Error, Result};
use crate::layout::slot::{Moved, Pair, RelationRecord, Slot, VolumeRecord};
use crate::units::{LayerId, SLAB_LEN, SlotNo, VolumeId};

/// The relations of a container, found by what they name.
#[derive(Debug, Default)]
pub(crate) struct Relations {
    slots: BTreeSet<SlotNo>,
    by_secondary: HashMap<VolumeId, SlotNo>,
    /// How many relations name each layer.
    pins: HashMap<LayerId, u32>,
    /// Some relation may have ended since that was last looked for in vain.
    pub(super) may_have_ended: bool,
    /// Some layer may be kept for a relation alone since such were last looked for in vain.
    pub(super) may_have_donor: bool,
}

impl Relations {
    /// Some layer has another parent, or is another's.
    pub(super) fn may_have_changed(&mut self) {
        self.may_have_ended = true;
        self.may_have_donor = !self.slots.is_empty();
    }

    /// Counts a relation of the catalog.
    pub(crate) fn add(&mut self, slot: SlotNo, record: &RelationRecord) {
        (self.may_have_ended, self.may_have_donor) = (true, true);
        self.slots.insert(slot);
        if let Some(pair) = record.volumes {
            self.by_secondary.insert(pair.secondary, slot);
        }
        record.pinned().for_each(|layer| *self.pins.entry(layer).or_default() += 1);
    }

    fn remove(&mut self, slot: SlotNo, record: &RelationRecord) {
        self.slots.remove(&slot);
        if let Some(pair) = record.volumes
            && self.by_secondary.get(&pair.secondary) == Some(&slot)
        {
            self.by_secondary.remove(&pair.secondary);
        }
        for layer in record.pinned() {
            if let Some(count) = self.pins.get_mut(&layer) {
                *count -= 1;
                if *count == 0 {
                    self.pins.remove(&layer);
                }
            }
        }
    }
}

/// A layer whose slabs can be taken over by a copy layer, because they hold what that lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Donor {
    relation: SlotNo,
    pub(super) layer: LayerId,
    /// Data that is found in this layer, or below it, is what the donor has.
    pub(super) same: LayerId,
}

/// What two volumes have in common by a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Common {
    /// Which of the two is the secondary: 0 or 1.
    pub(super) secondary: usize,
    pub(super) copy: LayerId,
    pub(super) base: LayerId,
}

impl State {
    /// Whether a relation names the layer.
    pub(super) fn is_pinned(&self, layer: LayerId) -> bool {
        self.relations.pins.contains_key(&layer)
    }

    /// Whether nobody reads through the layer, and nobody will.
    pub(super) fn is_unused(&self, layer: LayerId) -> bool {
        self.child_count(layer) == 0 && !self.is_pinned(layer)
    }

    fn relation_record(&self, slot: SlotNo) -> &RelationRecord {
        match &self.slots()[slot.0 as usize] {
            Slot::Relation(record) => record,
            other => unreachable!("slot {slot} of a relation holds {other:?}"),
        }
    }

    /// What is tracked for `secondary`.
    fn tracked(&self, secondary: VolumeId) -> Option<(SlotNo, Pair, &RelationRecord)> {
        let slot = *self.relations.by_secondary.get(&secondary)?;
        let record = self.relation_record(slot);
        Some((slot, record.volumes?, record))
    }

    /// The volume that `volume` is a secondary of, if both are there and the relation was not ended.
    pub(super) fn primary_of(&self, volume: VolumeId) -> Option<VolumeId> {
        let record = self.volumes.contains_key(&volume).then(|| self.volume_record(volume))?;
        related(record).filter(|primary| *primary != volume && self.volumes.contains_key(primary))
    }

    /// The layers in which two volumes are known to hold the same, if they are secondary and primary in some order: whose
    /// data is the same as what is found in, or below, the other's.
    pub(super) fn common(&self, volumes: [VolumeId; 2]) -> Option<Common> {
        [(0, 1), (1, 0)].into_iter().find_map(|(secondary, primary)| {
            let (_, pair, record) = self.tracked(volumes[secondary])?;
            let (copy, base) = (record.copy?, record.base?);
            (pair.primary == volumes[primary]).then_some(Common { secondary, copy, base })
        })
    }

    /// Notes that `copy` was filled for `secondary` with all that `base` shows (REL-2), if a slot is free.
    pub(super) fn track(&mut self, secondary: VolumeId, copy: LayerId, base: LayerId, moved: Moved) {
        let Some(primary) = self.primary_of(secondary) else { return };
        self.end_tracking(secondary);
        let volumes = Some(Pair { secondary, primary });
        let record = RelationRecord { volumes, copy: Some(copy), base: Some(base), moved };
        let Some(slot) = self.any_free_slot() else { return };
        self.relations.add(slot, &record);
        self.set_slot(slot, Slot::Relation(record));
    }

    fn end(&mut self, slot: SlotNo) {
        let before = self.relation_record(slot).clone();
        self.relations.remove(slot, &before);
        let record = RelationRecord { volumes: None, ..before };
        self.relations.add(slot, &record);
        self.set_slot(slot, Slot::Relation(record));
    }

    /// Ends what is tracked for `secondary`, if anything is.
    pub(super) fn end_tracking(&mut self, secondary: VolumeId) {
        if let Some((slot, ..)) = self.tracked(secondary) {
            self.end(slot);
        }
    }

    /// A volume has been refreshed: what was tracked for it stays only if its layer can be a donor (REL-5).
    pub(super) fn has_been_refreshed(&mut self, volume: VolumeId) {
        self.relations.may_have_ended = true;
        let tracked = self.tracked(volume);
        let of_use = |pair: Pair, copy| self.primary_of(volume) == Some(pair.primary) && self.child_count(copy) == 0;
        if let Some((slot, pair, record)) = tracked
            && !record.copy.is_some_and(|copy| of_use(pair, copy))
        {
            self.end(slot);
        }
    }

    /// The donor for the copy layer that is filled for `volume`: what it had before it was refreshed from its primary, or,
    /// if it was the primary, from its secondary (REL-5).
    pub(super) fn donor_for(&self, volume: VolumeId) -> Option<Donor> {
        let primary = self.primary_of(volume)?;
        let forward = self.tracked(volume).filter(|(_, pair, _)| pair.primary == primary);
        let back = self.tracked(primary).filter(|(_, pair, _)| pair.primary == volume);
        let forward =
            forward.and_then(|(relation, _, record)| Some(Donor { relation, layer: record.copy?, same: record.base? }));
        let back =
            back.and_then(|(relation, _, record)| Some(Donor { relation, layer: record.base?, same: record.copy? }));
        // What an ended merge has moved out of a layer is not its to give (LAY-71).
        let has_all = |layer| self.layers.get(&layer).is_some_and(|layer| !layer.has_moved.load(Ordering::Relaxed));
        [forward, back].into_iter().flatten().find(|donor| self.child_count(donor.layer) == 0 && has_all(donor.layer))
    }

    /// Nothing is left to take from a donor.
    pub(super) fn end_donor(&mut self, donor: Donor) {
        self.end(donor.relation);
    }

    /// Ends a relation that keeps a layer through which nobody reads, so that there is space: one that no hydration under
    /// way could use, if there is such a one. False if there is none (REL-11).
    pub(super) fn give_up_donor(&mut self) -> bool {
        let keeps = |&&slot: &&SlotNo| {
            let record = self.relation_record(slot);
            record.volumes.is_some() && record.pinned().any(|layer| self.child_count(layer) == 0)
        };
        let is_in_use = |&&slot: &&SlotNo| {
            let pair = self.relation_record(slot).volumes;
            pair.is_some_and(|pair| {
                [pair.secondary, pair.primary].iter().any(|volume| self.copies.contains_key(volume))
            })
        };
        let slots = &self.relations.slots;
        let found = slots.iter().filter(keeps).find(|slot| !is_in_use(slot)).or_else(|| slots.iter().find(keeps));
        let found = found.copied();
        self.relations.may_have_donor = found.is_some();
        if let Some(slot) = found {
            log::info!("what is kept for copying again is given up, because space is short");
            self.end(slot);
        }
        found.is_some()
    }

    /// Whether nothing more can come of a relation (REL-6).
    fn is_void(&self, record: &RelationRecord) -> bool {
        let (Some(Pair { secondary, primary }), Some(base)) = (record.volumes, record.base) else { return true };
        let is_back = || self.primary_of(primary) == Some(secondary);
        self.primary_of(secondary) != Some(primary) || (self.child_count(base) == 0 && !is_back())
    }

    /// Ends relations of which nothing more can come, and lets go of what ended ones keep: about `most` slots change at
    /// most. False if there was nothing to do.
    pub(super) fn release_relations(&mut self, most: usize) -> bool {
        if !self.relations.may_have_ended {
            return false;
        }
        let void = self.relations.slots.iter().copied().filter(|slot| self.is_void(self.relation_record(*slot)));
        let void: Vec<SlotNo> = void.take(most.max(1)).collect();
        // What one lets go of may be the last that another was good for: they are looked at again.
        self.relations.may_have_ended = !void.is_empty();
        let mut left = most.max(2);
        for &slot in &void {
            if left == 0 {
                break;
            }
            left -= 1;
            self.release(slot, &mut left);
        }
        !void.is_empty()
    }

    /// Lets go of what a relation keeps, as far as `left` layers may be doomed for it.
    fn release(&mut self, slot: SlotNo, left: &mut usize) {
        let before = self.relation_record(slot).clone();
        self.relations.remove(slot, &before);
        // What was kept apart may be merged.
        self.tree_has_changed();
        let copy = before.copy.and_then(|layer| self.unpinned(layer, left));
        let base = before.base.and_then(|layer| self.unpinned(layer, left));
        let record = RelationRecord { volumes: None, copy, base, moved: before.moved };
        if record.pinned().next().is_none() {
            self.set_slot(slot, Slot::Free);
        } else {
            self.relations.add(slot, &record);
            self.set_slot(slot, Slot::Relation(record));
        }
    }

    /// Dooms a layer that is not pinned any more, and those below it, as far as nobody uses them; returns the first for
    /// which nothing was left, to be pinned instead.
    fn unpinned(&mut self, layer: LayerId, left: &mut usize) -> Option<LayerId> {
        if !self.is_unused(layer) {
            return None;
        }
        let before = self.doomed.len();
        let rest = self.doom_unused(Some(layer), *left);
        *left = left.saturating_sub(self.doomed.len() - before);
        rest.filter(|&rest| self.is_unused(rest))
    }

    /// The relation of a volume to its origin, for people and programs.
    pub(super) fn relation_info(&self, volume: VolumeId, state: VolumeState) -> Option<Relation> {
        let record = self.volume_record(volume);
        record.origin.as_ref()?;
        let tracked = self.tracked(volume).filter(|(_, pair, _)| self.primary_of(volume) == Some(pair.primary));
        let record = tracked.map(|(_, _, record)| record);
        Some(Relation {
            state: match state {
                _ if self.primary_of(volume).is_none() => RelationState::Split,
                VolumeState::Virtual => RelationState::Virtual,
                VolumeState::Hydrating => RelationState::Hydrating,
                VolumeState::Real => RelationState::Real,
            },
            tracked: record.is_some(),
            kept_bytes: record.map_or(0, |record| self.kept(record) * SLAB_LEN),
            moved: record.map(|record| record.moved),
        })
    }

    /// Slabs of layers that are there for a relation alone.
    fn kept(&self, record: &RelationRecord) -> u64 {
        let is_only = |layer: LayerId, above: usize| {
            self.child_count(layer) == above
                && self.relations.pins.get(&layer).copied().unwrap_or(0) <= 1 - above as u32
        };
        let mut slabs = 0;
        for first in record.pinned().filter(|first| is_only(*first, 0)) {
            let mut next = Some(first);
            let mut above = 0;
            while let Some(layer) = next.filter(|layer| is_only(*layer, above)) {
                slabs += self.slabs_of(layer);
                (next, above) = (self.layer_record(layer).parent, 1);
            }
        }
        slabs
    }
}

/// The volume that another was copied from, unless their relation was ended.
fn related(record: &VolumeRecord) -> Option<VolumeId> {
    record.origin.as_ref().filter(|_| !record.split).map(|origin| origin.volume)
}

impl Container {
    /// Ends the relation of volume `name` to the one that it is a copy of: nothing is tracked for it any more. Both keep
    /// their contents.
    ///
    /// Errors: [`Error::NoSuchVolume`], [`Error::NoRelation`].
    pub fn split(&self, name: &str) -> Result<VolumeInfo> {
        let _control = super::lock(&self.shared.control);
        self.shared.check_open()?;
        let id = {
            let mut state = self.lock_for(|state| {
                let record = state.volume_record(state.volume_id(name)?);
                if related(record).is_none() {
                    return Err(Error::NoRelation { name: name.to_owned() });
                }
                Ok(Slots { new: 0, changed: 2 })
            })?;
            let id = state.volume_id(name)?;
            state.update_volume(id, |record| record.split = true);
            state.end_tracking(id);
            // The relation back, of which this volume is the primary, may be void now.
            state.relations.may_have_ended = true;
            id
        };
        self.commit()?;
        self.shared.call_for_work();
        self.volume_info(id)
    }
}
