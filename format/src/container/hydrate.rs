//! Hydrations: a copy layer comes under the layers that are a volume's own, and is filled until nothing else is needed.
//!
//! Role: begins them, gives them up, lists them, and unlinks what is below when all has been copied. Invariant (LAY-30): a
//! copy layer shows what its parent shows, so that its coming and going changes no volume's contents; it is in the catalog
//! until it covers all, so that whatever ends a process ends no hydration. Does not: move data (see [`super::fill`]), or
//! decide when it is moved: the caller does, and heeds pause and speed.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use uuid::Uuid;

use super::fill::{HydrateEnd, HydrateStep, bytes_below};
use super::ops::Slots;
use super::state::State;
use super::{Container, now_ns};
use crate::error::{Error, Result};
use crate::layer::{Layer, Link};
use crate::layout::slot::{LayerKind, LayerRecord, Moved, Pace};
use crate::sync::thread;
use crate::units::{LayerId, SLAB_LEN, VolumeId};

/// Batches of layers that a volume becomes the owner of before other commands, or another step, have their turn.
const BATCHES_PER_STEP: usize = 8;
/// Layers that one batch of a hydration's end looks at, besides those that it dooms.
const LOOKS_PER_BATCH: usize = 1024;

/// A hydration under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hydration {
    /// The volume's present name.
    pub volume: String,
    /// The volume's id.
    pub volume_id: VolumeId,
    /// The copy layer: what [`Container::hydrate_step`] asks for.
    pub layer: LayerId,
    /// Bytes of the volume that have to be looked at.
    pub total_bytes: u64,
    /// How many of them have been, whether they had to be copied or not; only grows, until it is `total_bytes` at the end.
    /// After the container has been opened it begins with what has been copied; that is passed without reading data.
    pub copied_bytes: u64,
    /// The caller should not go on with it for now.
    pub paused: bool,
    /// Bytes a second that the caller should copy at most; 0: as fast as can be.
    pub speed: u64,
    /// What has been moved since the container was opened.
    pub moved: Moved,
}

impl State {
    /// Whether a layer is a copy layer that is filled for this volume.
    pub(super) fn is_copy_for(&self, layer: LayerId, volume: VolumeId) -> bool {
        self.is_copy(layer) && self.layer_record(layer).owner == Some(volume)
    }

    /// The copy layer that is being filled for a volume.
    pub(super) fn copy_layer(&self, volume: VolumeId) -> Option<LayerId> {
        self.copies.get(&volume).copied()
    }

    fn check_is_copy(&self, copy: LayerId) -> Result<()> {
        if self.is_copy(copy) { Ok(()) } else { Err(Error::NotHydrating { layer: copy }) }
    }

    /// The hydration that a layer is filled for.
    pub(super) fn hydration(&self, layer: LayerId) -> Option<Hydration> {
        let record = self.layer_slots.contains_key(&layer).then(|| self.layer_record(layer))?;
        let LayerKind::Copy(pace) = record.kind else { return None };
        let volume_id = record.owner.filter(|owner| self.volumes.contains_key(owner))?;
        let layer = self.layers.get(&record.id)?;
        let total_bytes = bytes_below(layer);
        let passed = self.fills.get(&record.id).map_or(0, |fill| fill.next * SLAB_LEN);
        // What an earlier opening has copied is passed anew, but it is there.
        let present = self.slabs_of(record.id).saturating_sub(layer.table_count()) * SLAB_LEN;
        Some(Hydration {
            volume: self.volume_record(volume_id).name.clone(),
            volume_id,
            layer: record.id,
            total_bytes,
            copied_bytes: passed.max(present).min(total_bytes),
            paused: pace.paused,
            speed: pace.speed,
            moved: self.fills.get(&record.id).map_or_else(Moved::default, |fill| fill.moved),
        })
    }

    /// Puts an empty copy layer for `volume` between `above` and its parent.
    fn insert_copy(&mut self, above: LayerId, volume: VolumeId) -> LayerId {
        let above = self.layers[&above].clone();
        let link = above.link();
        let id = LayerId(self.next_id());
        // It shows what its parent shows (LAY-14).
        let (uuid, frozen_ns) =
            link.parent.as_ref().map_or_else(|| (Uuid::new_v4(), 0), |parent| self.contents_of_layer(parent.id));
        let record = LayerRecord {
            id,
            uuid,
            kind: LayerKind::Copy(Pace::default()),
            parent: link.parent.as_ref().map(|parent| parent.id),
            owner: Some(volume),
            size: above.size,
            parent_limit: link.limit,
            birth: id,
            created_ns: now_ns(),
            frozen_ns,
        };
        let layer = Layer::new(id, above.size, Link { parent: link.parent.clone(), limit: link.limit }, true);
        let layer = Arc::new(layer);
        self.add_layer(record, layer.clone());
        above.set_link(Link { parent: Some(layer), limit: link.limit });
        self.update_layer(above.id, |record| record.parent = Some(id));
        id
    }

    /// Makes a copy layer a frozen one, which keeps its parent; an empty one is taken out of the chain (LAY-35).
    pub(super) fn give_up_copy(&mut self, copy: LayerId) {
        match self.only_child(copy).filter(|_| self.slabs_of(copy) == 0) {
            Some(above) => self.remove_copy(copy, above),
            None => self.update_layer(copy, LayerRecord::end_copy),
        }
    }

    /// The volume that a copy layer is filled for, unless it shows at once that not all that the volume reads is its own:
    /// most often just what is below is others', too.
    fn owner_perhaps_of_all(&self, copy: LayerId) -> Option<VolumeId> {
        let record = self.is_copy(copy).then(|| self.layer_record(copy))?;
        let is_others = record.parent.is_some_and(|below| self.child_count(below) > 1 && self.slabs_of(below) > 0);
        record.owner.filter(|_| !is_others)
    }

    /// Whether a copy layer may be put below this layer, the lowest of a volume's own.
    fn takes_copy(&self, above: LayerId) -> bool {
        self.layer_slots.contains_key(&above) && {
            let record = self.layer_record(above);
            record.kind != LayerKind::Doomed && record.parent.is_some()
        }
    }

    /// Takes an empty copy layer out again.
    fn remove_copy(&mut self, copy: LayerId, above: LayerId) {
        let (layer, above) = (self.layers[&copy].clone(), self.layers[&above].clone());
        let link = layer.link();
        let limit = link.limit.min(above.link().limit);
        above.set_link(Link { parent: link.parent.clone(), limit });
        let parent = link.parent.as_ref().map(|parent| parent.id);
        self.update_layer(above.id, |record| (record.parent, record.parent_limit) = (parent, limit));
        self.doom_unused(Some(copy), 1);
    }

    /// Layers that go with one batch of a hydration's end.
    pub(super) fn most_doomed(&self) -> usize {
        self.most_slots() / 2
    }

    /// Unlinks what is below a copy layer, as far as one batch can take what goes with it: true if that was all, and the
    /// layer is a frozen one now (LAY-34, LAY-41).
    pub(super) fn unlink_below(&mut self, copy: LayerId) -> bool {
        let layer = self.layers[&copy].clone();
        let LayerRecord { owner, parent: below, parent_limit, .. } = *self.layer_record(copy);
        // What others use, too, shows for ever what the copy layer has now. The batches that follow the first remember it.
        let base = below.filter(|&below| parent_limit > 0 && self.child_count(below) > 1);
        if let (Some(base), Some(fill)) = (base, self.fills.get_mut(&copy)) {
            fill.base = Some(base);
        }
        // Nothing of the parent shows from here on, whatever the parent is.
        self.update_layer(copy, |record| (record.parent, record.parent_limit) = (None, 0));
        let rest = match self.doom_unused(below, self.most_doomed()) {
            Some(rest) if self.is_unused(rest) => Some(rest),
            used => self.disown_some(used, copy),
        };
        let parent = rest.and_then(|rest| self.layers.get(&rest).cloned());
        layer.set_link(Link { parent, limit: 0 });
        self.update_layer(copy, |record| match rest {
            Some(_) => record.parent = rest,
            None => record.end_copy(),
        });
        if rest.is_none()
            && let Some(owner) = owner
            && let Some((base, moved)) = self.fills.get(&copy).and_then(|fill| Some((fill.base?, fill.moved)))
            && self.is_frozen_kind(base)
        {
            self.track(owner, copy, base, moved);
        }
        rest.is_none()
    }

    /// Layers from `first` down that others still use lose owners that no longer read through them, as they read through the
    /// copy layer `copy`, as far as one batch can take the changes and a moment the looks; returns the layer to go on with,
    /// which may get a child more.
    fn disown_some(&mut self, first: Option<LayerId>, copy: LayerId) -> Option<LayerId> {
        let (mut next, mut looks, mut changes) = (first, LOOKS_PER_BATCH, self.most_doomed());
        let mut owners: HashMap<VolumeId, bool> = HashMap::new();
        while let Some(id) = next {
            let record = self.layer_record(id);
            // The copy layer of another volume gets no second child (LAY-32).
            if looks.min(changes) == 0 && !record.kind.is_copy() {
                return Some(id);
            }
            next = record.parent;
            looks = looks.saturating_sub(1);
            let Some(owner) = record.owner else { continue };
            let is_cut_off = *owners.entry(owner).or_insert_with(|| self.stands_on(owner, copy, &mut looks));
            if is_cut_off {
                changes = changes.saturating_sub(1);
                self.disown_layer(id);
            }
        }
        None
    }

    /// Whether the volume reads through the layer; takes a look for each layer that is passed.
    fn stands_on(&self, volume: VolumeId, layer: LayerId, looks: &mut usize) -> bool {
        let mut next = self.volumes.contains_key(&volume).then(|| self.volume_record(volume).head);
        while let Some(id) = next.filter(|&id| id != layer) {
            *looks = looks.saturating_sub(1);
            next = self.layer_record(id).parent;
        }
        next.is_some()
    }

    /// Catalog slots that one batch of a hydration's end changes at most, with `new` for a relation.
    pub(super) fn slots_of_unlinking(&self, new: usize) -> Slots {
        Slots { new, changed: 2 + 2 * self.most_doomed() }
    }
}

impl Container {
    /// Begins to make volume `name` real: from now on [`Container::hydrate_step`] copies into it what it reads from layers
    /// of others. Costs the same whatever the sizes. Returns the copy layer, or nothing if the volume is real already.
    ///
    /// Errors: [`Error::NoSuchVolume`], [`Error::Hydrating`], [`Error::InView`], [`Error::NoSpace`].
    pub fn hydrate(&self, name: &str) -> Result<Option<LayerId>> {
        self.shared.check_open()?;
        let id = self.shared.lock().volume_id(name)?;
        loop {
            match self.begin_hydration(id, name)? {
                ControlFlow::Break(copy) => return Ok(copy),
                // Whoever waits for the lock of commands gets it.
                ControlFlow::Continue(()) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// A bounded part of [`Container::hydrate`], beside which no other command runs; others may run between two of them.
    fn begin_hydration(&self, id: VolumeId, name: &str) -> Result<ControlFlow<Option<LayerId>>> {
        let _control = super::lock(&self.shared.control);
        self.shared.check_open()?;
        let hydrating = || Error::Hydrating { name: name.to_owned() };
        {
            let state = self.shared.lock();
            if !state.volumes.contains_key(&id) {
                return Err(Error::NoSuchVolume { name: name.to_owned() });
            }
            state.check_no_view(id)?;
            if state.copy_layer(id).is_some() {
                return Err(hydrating());
            }
        }
        let Some(own) = self.own_layers(id).filter(|own| !own.all) else { return Ok(ControlFlow::Break(None)) };
        // What is the volume's own stays where it is, and stays its own.
        if !self.adopt(id, &own.orphans, BATCHES_PER_STEP)? {
            return Ok(ControlFlow::Continue(()));
        }
        let copy = {
            let mut state = self.lock_for(|_| Ok(Slots { new: 1, changed: 1 }))?;
            if !state.takes_copy(own.lowest) {
                return Ok(ControlFlow::Continue(())); // a merge has taken the layer out meanwhile
            }
            if state.layer_record(own.lowest).parent.is_some_and(|below| state.is_copy(below)) {
                // Only damage leads here: a copy layer's child is its owner's own (LAY-32).
                return Err(hydrating());
            }
            state.insert_copy(own.lowest, id)
        };
        self.commit()?;
        {
            let mut state = self.shared.lock();
            if state.is_copy(copy) {
                state.tagged.entry(copy).or_default().lasts = true;
            }
        }
        self.shared.call_for_work();
        Ok(ControlFlow::Break(Some(copy)))
    }

    /// Makes the volume the owner of those of these layers that have none, in as many batches as that takes, `most_batches`
    /// at most; false if it takes more. The caller holds `control`.
    fn adopt(&self, volume: VolumeId, orphans: &[LayerId], most_batches: usize) -> Result<bool> {
        let in_batch = self.shared.lock().most_doomed();
        for layers in orphans.chunks(in_batch).take(most_batches) {
            self.lock_for(|_| Ok(Slots { new: 0, changed: layers.len() }))?.adopt(volume, layers);
            self.commit()?;
        }
        Ok(orphans.len().div_ceil(in_batch) <= most_batches)
    }

    /// Ends the hydration if nothing of what is below is another's any more: merges bring the rest without copying it
    /// (LAY-39). What a step comes to if that is so.
    pub(super) fn end_if_own(&self, copy: LayerId) -> Result<Option<HydrateStep>> {
        let Some(owner) = self.shared.lock().owner_perhaps_of_all(copy) else { return Ok(None) };
        let own_layers = || self.own_layers(owner).filter(|own| own.all);
        if own_layers().is_none() {
            return Ok(None);
        }
        // So that nobody comes to share it meanwhile. A command under way is not waited for: the next step tries again.
        let Some(_control) = super::try_lock(&self.shared.control) else { return Ok(None) };
        let Some(own) = own_layers() else { return Ok(None) };
        if !self.adopt(owner, &own.orphans, BATCHES_PER_STEP)? {
            return Ok(Some(HydrateStep::Copied(0)));
        }
        {
            let mut state = self.lock_for(|_| Ok(Slots { new: 0, changed: 3 }))?;
            if !state.is_copy_for(copy, owner) {
                return Ok(None);
            }
            state.end_tracking(owner);
            state.give_up_copy(copy);
            self.shared.resolved.merges.fetch_add(1, Ordering::AcqRel);
        }
        self.commit()?;
        self.shared.call_for_work();
        Ok(Some(HydrateStep::Ended(HydrateEnd::Done)))
    }

    /// Gives up the hydration that fills copy layer `copy`: its volume stays virtual. What has been copied stays in it, and is
    /// not copied again by a later [`Container::hydrate`].
    ///
    /// Errors: [`Error::NotHydrating`] if it has ended, even if the volume is being hydrated anew.
    pub fn cancel_hydration(&self, copy: LayerId) -> Result<()> {
        let _control = super::lock(&self.shared.control);
        self.shared.check_open()?;
        {
            let mut state = self.lock_for(|state| state.check_is_copy(copy).map(|()| Slots { new: 0, changed: 2 }))?;
            state.give_up_copy(copy);
            self.shared.resolved.merges.fetch_add(1, Ordering::AcqRel);
        }
        self.commit()?;
        self.shared.call_for_work();
        Ok(())
    }

    /// Sets whether the hydration that fills copy layer `copy` is paused, and how many bytes a second it may copy (0: no
    /// limit). Both are kept in the container; the caller of [`Container::hydrate_step`] heeds them.
    ///
    /// Errors: as [`Container::cancel_hydration`].
    pub fn set_hydration(&self, copy: LayerId, paused: bool, speed: u64) -> Result<()> {
        let _control = super::lock(&self.shared.control);
        self.shared.check_open()?;
        {
            let mut state = self.lock_for(|state| state.check_is_copy(copy).map(|()| Slots { new: 0, changed: 1 }))?;
            state.update_layer(copy, |record| record.kind = LayerKind::Copy(Pace { paused, speed }));
        }
        self.commit()
    }

    /// The hydration that this copy layer is filled for; nothing if it has ended.
    pub fn hydration(&self, layer: LayerId) -> Option<Hydration> {
        self.shared.lock().hydration(layer)
    }

    /// All hydrations, by layer id: each is to be carried on with by [`Container::hydrate_step`], also after a crash.
    pub fn hydrations(&self) -> Vec<Hydration> {
        let state = self.shared.lock();
        let mut found: Vec<Hydration> = state.copies.values().filter_map(|&layer| state.hydration(layer)).collect();
        found.sort_by_key(|hydration| hydration.layer);
        found
    }
}

#[cfg(test)]
mod tests;
