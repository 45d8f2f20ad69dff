//! Snapshot and refresh: sources frozen at one instant become the parents of new heads.
//!
//! Invariant: the instant is when the heads are switched, of a group all at once (SNP-21); targets change when the frozen
//! layers are sealed, and durably so only when those are durable (SNP-2). Nobody's requests are waited for but by the
//! command itself (SNP-11). Does not: copy data.

use std::collections::HashSet;
use std::sync::Arc;

use uuid::Uuid;

use super::ops::{Slots, add_head, check_volume_name};
use super::state::State;
use super::{Container, Signal, VolumeInfo, now_ns};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::layout::slot::{Durability, InstantRecord, LayerKind, OriginRecord, Verify, VolumeRecord};
use crate::units::{LayerId, VolumeId};
use crate::volume::{Volume, VolumeCore, Writers};

/// A copy to be made of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCopy {
    /// The volume to copy.
    pub source: String,
    /// Name of the copy.
    pub name: String,
}

/// Sources frozen at one instant, on their way to become other volumes' parents.
#[derive(Debug)]
#[must_use = "nothing is copied until the operation is finished"]
pub struct PendingCopy {
    container: Container,
    copies: Vec<Frozen>,
}

/// A source as it is at the instant, and who is to get it.
#[derive(Debug)]
struct Frozen {
    layer: Option<Arc<Layer>>,
    origin: OriginRecord,
    size: u64,
    target: CopyTarget,
}

#[derive(Debug, Clone)]
enum CopyTarget {
    New(String),
    Existing(String),
    /// A backup's instant, which has no name.
    Instant(InstantRecord),
}

impl PendingCopy {
    /// Whether the writes that were under way at the instant have ended; [`PendingCopy::finish`] waits for that.
    pub fn is_sealed(&self) -> bool {
        self.layers().all(|layer| layer.is_drained())
    }

    /// Finishes a copy of one volume, as [`PendingCopy::finish_all`].
    pub fn finish(self) -> Result<VolumeInfo> {
        Ok(self.finish_all()?.swap_remove(0))
    }

    /// Waits for the writes of before the instant, makes them durable, then switches the targets, all in one batch
    /// (SNP-2, SNP-22).
    pub fn finish_all(self) -> Result<Vec<VolumeInfo>> {
        for layer in self.layers() {
            self.container.shared.signal.wait_drained(layer);
        }
        // The frozen layers' entries before anything that lets the targets show them.
        self.container.commit()?;
        let ids = self.publish()?;
        self.container.commit()?;
        ids.into_iter().map(|id| self.container.volume_info(id)).collect()
    }

    pub(super) fn container(&self) -> &Container {
        &self.container
    }

    fn layers(&self) -> impl Iterator<Item = &Arc<Layer>> {
        layers(&self.copies)
    }

    /// Gives every target its head: in one batch, because the lock is held throughout (SNP-22).
    fn publish(&self) -> Result<Vec<VolumeId>> {
        let signal = &self.container.shared.signal;
        let mut state = self.container.lock_for(|state| {
            let mut slots = Slots { new: 0, changed: 0 };
            for copy in &self.copies {
                copy.check(state)?;
                slots.new += copy.target.slots();
                slots.changed += copy.target.check(state)?;
            }
            Ok(slots)
        })?;
        let publish = |copy: &Frozen| match &copy.target {
            CopyTarget::New(name) => copy.publish_new(&mut state, name, None, signal),
            CopyTarget::Instant(instant) => copy.publish_new(&mut state, "", Some(*instant), signal),
            CopyTarget::Existing(name) => copy.publish_over(&mut state, name, signal),
        };
        Ok(self.copies.iter().map(publish).collect())
    }
}

impl Drop for PendingCopy {
    /// Nobody waits for the layers any more: they have their heads, or never get them.
    fn drop(&mut self) {
        let mut state = self.container.shared.lock();
        for layer in self.layers() {
            state.hidden.copy_is_over(layer.id);
        }
        state.tree_has_changed();
    }
}

fn layers(copies: &[Frozen]) -> impl Iterator<Item = &Arc<Layer>> {
    copies.iter().filter_map(|copy| copy.layer.as_ref())
}

impl CopyTarget {
    /// Catalog slots that it takes: a head's, and a new volume's.
    fn slots(&self) -> usize {
        match self {
            Self::New(_) | Self::Instant(_) => 2,
            Self::Existing(_) => 1,
        }
    }

    /// Refuses a target that cannot get its head; otherwise says how many slots in use change with it.
    fn check(&self, state: &State) -> Result<usize> {
        match self {
            Self::New(name) => state.check_new_name(name).map(|()| 0),
            Self::Instant(_) => Ok(0),
            Self::Existing(name) => {
                let id = state.volume_id(name)?;
                state.check_no_view(id)?;
                Ok(2 + state.check_let_go(id)?)
            }
        }
    }
}

impl Frozen {
    /// Refuses what cannot be published, before any target has changed.
    fn check(&self, state: &State) -> Result<()> {
        // A merge may have joined other layers into it, never removed it: it is not the parent side of any merge
        // while the source's head or a pending copy stands on it.
        if self.layer.as_ref().is_some_and(|layer| !state.layers.contains_key(&layer.id)) {
            return Err(Error::NoSuchVolume { name: self.origin.name.clone() });
        }
        Ok(())
    }

    fn publish_new(
        &self,
        state: &mut State,
        name: &str,
        instant: Option<InstantRecord>,
        signal: &Arc<Signal>,
    ) -> VolumeId {
        let head = add_head(state, self.layer.clone(), self.size);
        let id = VolumeId(state.next_id());
        let record = VolumeRecord {
            id,
            uuid: Uuid::new_v4(),
            name: name.to_owned(),
            size: self.size,
            head: head.id,
            created_ns: now_ns(),
            origin: Some(self.origin.clone()),
            durability: Durability::Flush,
            undefined: false,
            verify: Verify::Off,
            sealing: None,
            split: false,
            instant,
            is_view: false,
        };
        let core = Arc::new(VolumeCore::new(&record, Writers::new(head, signal.clone())));
        state.add_volume(record, core);
        id
    }

    fn publish_over(&self, state: &mut State, name: &str, signal: &Arc<Signal>) -> VolumeId {
        let id = state.names[name];
        let head = add_head(state, self.layer.clone(), self.size);
        let old = state.volume_record(id).head;
        // What it shows from now on is to be sealed, if it is not known to be (TAG-7).
        let is_sealed = self.layer.as_ref().is_none_or(|layer| state.is_sealed(layer.id));
        state.update_volume(id, |record| {
            if record.verify == Verify::Always && !is_sealed {
                record.seal_more();
            }
            record.head = head.id;
            record.size = self.size;
            record.origin = Some(self.origin.clone());
            record.undefined = false;
            record.split = false;
        });
        let core = state.volumes[&id].clone();
        core.switch(Writers::new(head, signal.clone()));
        core.note_refresh();
        core.touch(state);
        state.let_go(old, id);
        state.has_been_refreshed(id);
        id
    }
}

/// Copies in one group: the engine lock is held while all heads are switched.
const MAX_COPIES: usize = 1024;

impl State {
    /// Refuses a group of copies that is too large for one batch, before anything has changed (SNP-23).
    fn check_group(&self, copies: usize) -> Result<()> {
        // The batch that freezes changes the slots of the source, of its frozen layer and of its new head, and may make
        // the two that the copy takes in the next batch.
        let most = (self.most_slots() / 5).min(MAX_COPIES);
        if copies > most { Err(Error::TooManyCopies { copies, most }) } else { Ok(()) }
    }

    /// Freezes a volume's head, or takes its parent if the head was never written (SNP-4). A copy layer gets no second
    /// child: what the only one has is not copied into it (LAY-32).
    fn freeze(&mut self, id: VolumeId, instant_ns: i64, signal: &Arc<Signal>) -> Option<Arc<Layer>> {
        let core = self.volumes[&id].clone();
        let head = core.head();
        let is_on_copy = |head: &Layer| head.parent().is_some_and(|parent| self.layer_record(parent.id).kind.is_copy());
        if head.is_untouched() && !is_on_copy(&head) {
            return head.parent();
        }
        self.freeze_layer(head.id, id, instant_ns);
        let new_head = add_head(self, Some(head.clone()), head.size);
        self.update_volume(id, |record| {
            record.head = new_head.id;
            record.seal_more();
        });
        core.switch(Writers::new(new_head, signal.clone()));
        core.touch(self);
        Some(head)
    }

    /// Makes a volume's head, which stands on no other head, a frozen layer.
    pub(super) fn freeze_layer(&mut self, head: LayerId, owner: VolumeId, instant_ns: i64) {
        let layer = &self.layers[&head];
        let (uuid, frozen_ns) = match layer.parent() {
            // It shows what the layer below shows, and is known by the same UUID (LAY-14).
            Some(below) if layer.is_untouched() => self.contents_of_layer(below.id),
            None if layer.is_untouched() => (Uuid::nil(), instant_ns),
            // The contents are new, and a copy of the container's file may have the same head with others.
            _ => (Uuid::new_v4(), instant_ns),
        };
        self.update_layer(head, |record| {
            record.kind = LayerKind::Frozen;
            record.owner = Some(owner);
            (record.uuid, record.frozen_ns) = (uuid, frozen_ns);
        });
    }

    /// The UUID and the instant of what a layer that is not a head shows.
    pub(super) fn contents_of_layer(&self, id: LayerId) -> (Uuid, i64) {
        let record = self.layer_record(id);
        (record.uuid, record.frozen_ns)
    }
}

impl Container {
    /// Makes `new_name`, of durability flush, a point-in-time copy of `source`, as it is at this instant.
    ///
    /// Errors: [`Error::NoSuchVolume`], [`Error::Undefined`], [`Error::VolumeExists`], [`Error::BadName`],
    /// [`Error::NoSpace`].
    pub fn snapshot(&self, source: &str, new_name: &str) -> Result<VolumeInfo> {
        let _control = super::lock(&self.shared.control);
        self.begin_snapshot(source, new_name)?.finish()
    }

    /// Makes `target` a point-in-time copy of `source`, as it is at this instant; the target's old contents are given up.
    ///
    /// Copies made of the target before keep its old contents. The target takes the source's size, keeps its durability,
    /// and is defined again if it was not (VOL-46).
    pub fn refresh(&self, target: &str, source: &str) -> Result<VolumeInfo> {
        let _control = super::lock(&self.shared.control);
        let info = self.begin_refresh(target, source)?.finish()?;
        self.shared.call_for_work();
        Ok(info)
    }

    /// As [`Container::refresh`], of the volume behind a handle, whatever its name is by then.
    ///
    /// Errors: as there, and [`Error::VolumeGone`].
    pub fn refresh_volume(&self, target: &Volume, source: &str) -> Result<VolumeInfo> {
        let control = super::lock(&self.shared.control); // from here on it keeps its name
        let name = target.name();
        if self.shared.lock().names.get(&name) != Some(&target.id()) {
            return Err(Error::VolumeGone { name });
        }
        let info = self.begin_refresh(&name, source)?.finish()?;
        drop(control);
        self.shared.call_for_work();
        Ok(info)
    }

    /// Makes a copy of each source, all as they are at one instant (SNP-20); after a crash all are there or none.
    ///
    /// Errors: as [`Container::snapshot`], [`Error::SameName`], [`Error::TooManyCopies`]; nothing has changed then.
    pub fn snapshot_group(&self, copies: &[NewCopy]) -> Result<Vec<VolumeInfo>> {
        let _control = super::lock(&self.shared.control);
        self.begin_snapshot_group(copies)?.finish_all()
    }

    /// The first half of [`Container::snapshot`]: fixes the instant. For tests that hold writes under way; the caller
    /// runs no other control operation before it is finished.
    #[doc(hidden)]
    pub fn begin_snapshot(&self, source: &str, new_name: &str) -> Result<PendingCopy> {
        self.begin_snapshot_group(&[NewCopy { source: source.to_owned(), name: new_name.to_owned() }])
    }

    /// The first half of [`Container::snapshot_group`], as [`Container::begin_snapshot`].
    #[doc(hidden)]
    pub fn begin_snapshot_group(&self, copies: &[NewCopy]) -> Result<PendingCopy> {
        let mut names = HashSet::new();
        for NewCopy { name, .. } in copies {
            check_volume_name(name)?;
            if !names.insert(name) {
                return Err(Error::SameName { name: name.clone() });
            }
        }
        let sources: Vec<_> = copies.iter().map(|copy| copy.source.as_str()).collect();
        self.begin_copies(&sources, copies.iter().map(|copy| CopyTarget::New(copy.name.clone())).collect())
    }

    /// The first half of [`Container::refresh`], as [`Container::begin_snapshot`].
    #[doc(hidden)]
    pub fn begin_refresh(&self, target: &str, source: &str) -> Result<PendingCopy> {
        if target == source {
            self.shared.lock().volume_id(target)?;
            return Err(Error::SameVolume { name: source.to_owned() });
        }
        self.begin_copies(&[source], vec![CopyTarget::Existing(target.to_owned())])
    }

    /// Begins to make an instant of volume `source` (BAK-1): a copy that no command can name. The caller holds `control`.
    pub(super) fn begin_instant(&self, source: &str, instant: InstantRecord) -> Result<PendingCopy> {
        self.begin_copies(&[source], vec![CopyTarget::Instant(instant)])
    }

    /// Freezes the sources at one instant: the engine lock is held until all heads are switched, and nobody plans a
    /// write to a new head, which has no block yet, without it (SNP-21).
    ///
    /// What the targets need is looked at before that, so that no refusal leaves a frozen layer (SNP-28).
    fn begin_copies(&self, sources: &[&str], targets: Vec<CopyTarget>) -> Result<PendingCopy> {
        self.shared.check_open()?;
        let mut ids = Vec::new();
        let mut state = self.lock_for(|state| {
            state.check_group(sources.len())?;
            ids = sources.iter().map(|source| state.defined_volume_id(source)).collect::<Result<Vec<_>>>()?;
            ids.iter().try_for_each(|&id| state.check_no_view(id))?;
            let mut slots = Slots { new: ids.len(), changed: 2 * ids.len() };
            for target in &targets {
                target.check(state)?;
                slots.new += target.slots();
            }
            Ok(slots)
        })?;
        let instant_ns = now_ns();
        let freeze = |(&id, target): (&VolumeId, _)| {
            let layer = state.freeze(id, instant_ns, &self.shared.signal);
            let record = state.volume_record(id);
            let origin = OriginRecord { volume: id, uuid: record.uuid, instant_ns, name: record.name.clone() };
            Frozen { layer, origin, size: record.size, target }
        };
        let copies: Vec<Frozen> = ids.iter().zip(targets).map(freeze).collect();
        // What only the sources' heads stand on as yet stays as it is for the targets, too (LAY-72).
        layers(&copies).for_each(|layer| state.hidden.keep_for_copy(layer.id));
        Ok(PendingCopy { container: self.clone(), copies })
    }
}
