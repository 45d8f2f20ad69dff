//! Control operations: create, delete, rename, snapshot, refresh.
//!
//! Invariant: each is atomic and durable when it returns (SNP-2); none waits for, or stops, a guest's requests (SNP-1).
//! Cost does not depend on the size of any volume. Does not: copy or free data (freeing is background work).

use std::sync::Arc;

use uuid::Uuid;

use super::state::State;
use super::{Container, Maintained, VolumeInfo, now_ns};
use crate::error::{Error, Result};
use crate::layer::{Layer, Link};
use crate::layout::slot::{LayerKind, LayerRecord, OriginRecord, VolumeRecord, check_name};
use crate::sync::{MutexGuard, thread};
use crate::units::{LayerId, MAX_VOLUME_LEN, MIN_IO_LEN, VolumeId};
use crate::volume::VolumeCore;

/// A source frozen at one instant, on its way to become another volume's parent.
#[derive(Debug)]
#[must_use = "nothing is copied until the operation is finished"]
pub struct PendingCopy {
    container: Container,
    source: VolumeId,
    frozen: Option<Arc<Layer>>,
    origin: OriginRecord,
    size: u64,
    target: CopyTarget,
}

#[derive(Debug, Clone)]
enum CopyTarget {
    New(String),
    Existing(String),
}

impl PendingCopy {
    /// Whether the writes that were under way at the instant have ended; [`PendingCopy::finish`] waits for that.
    pub fn is_sealed(&self) -> bool {
        self.frozen.as_ref().is_none_or(|layer| layer.is_drained())
    }

    /// Waits for the writes of before the instant, makes them durable, then switches the target (SNP-2).
    pub fn finish(self) -> Result<VolumeInfo> {
        if let Some(layer) = &self.frozen {
            self.container.shared.signal.wait_drained(layer);
        }
        // The frozen layer's entries before anything that lets the target show them.
        self.container.commit()?;
        let id = match &self.target {
            CopyTarget::New(name) => self.publish_new(name)?,
            CopyTarget::Existing(name) => self.publish_over(name)?,
        };
        self.container.commit()?;
        self.container.volume_info(id)
    }

    fn parent(&self, state: &State) -> Result<Option<Arc<Layer>>> {
        match &self.frozen {
            // A merge may have joined other layers into it, never removed it: it is not the parent side of any merge
            // while the source's head or a pending copy stands on it.
            Some(layer) if state.layers.contains_key(&layer.id) => Ok(Some(layer.clone())),
            Some(_) => Err(Error::NoSuchVolume { name: self.origin.name.clone() }),
            None => Ok(None),
        }
    }

    fn publish_new(&self, name: &str) -> Result<VolumeId> {
        let shared = &self.container.shared;
        let mut state = self.container.lock_with_slots(2)?;
        if state.names.contains_key(name) {
            return Err(Error::VolumeExists { name: name.to_owned() });
        }
        let parent = self.parent(&state)?;
        let head = add_head(&mut state, parent, self.size);
        let id = VolumeId(state.next_id());
        let record = VolumeRecord {
            id,
            uuid: Uuid::new_v4(),
            name: name.to_owned(),
            size: self.size,
            head: head.id,
            created_ns: now_ns(),
            origin: Some(self.origin.clone()),
        };
        let core = Arc::new(VolumeCore::new(&record, head, shared.signal.clone()));
        state.add_volume(record, core);
        Ok(id)
    }

    fn publish_over(&self, name: &str) -> Result<VolumeId> {
        let shared = &self.container.shared;
        let mut state = self.container.lock_with_slots(1)?;
        let id = state.volume_id(name)?;
        state.check_let_go(id)?;
        let parent = self.parent(&state)?;
        let head = add_head(&mut state, parent, self.size);
        let old = state.volume_record(id).head;
        state.update_volume(id, |record| {
            record.head = head.id;
            record.size = self.size;
            record.origin = Some(self.origin.clone());
        });
        let core = state.volumes[&id].clone();
        core.switch(head, shared.signal.clone());
        core.touch(&state);
        state.let_go(old, id);
        Ok(id)
    }
}

/// Adds an empty head of `size` bytes over `parent`.
fn add_head(state: &mut State, parent: Option<Arc<Layer>>, size: u64) -> Arc<Layer> {
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

    /// Refuses to let go of a volume's layers if they are too many for one batch, before anything has changed.
    fn check_let_go(&self, id: VolumeId) -> Result<()> {
        let most = (self.ring.reserve() / 2 / 520) as usize;
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
        Ok(())
    }

    /// Dooms a head that its volume no longer uses, and every frozen layer that nobody else uses then (LAY-5).
    fn let_go(&mut self, head: LayerId, volume: VolumeId) {
        let mut next = Some(head);
        while let Some(id) = next.filter(|&id| self.child_count(id) == 0) {
            next = self.layer_record(id).parent;
            self.update_layer(id, |record| {
                record.kind = LayerKind::Doomed;
                record.owner = None;
                record.parent = None;
            });
        }
        // Layers that others still use lose this owner.
        while let Some(id) = next {
            let record = self.layer_record(id);
            next = record.parent;
            if record.owner == Some(volume) {
                self.update_layer(id, |record| record.owner = None);
            }
        }
    }
}

impl Container {
    /// Locks the state with `count` catalog slots free, so that what follows cannot fail half-way.
    fn lock_with_slots(&self, count: usize) -> Result<MutexGuard<'_, State>> {
        loop {
            let mut state = self.shared.lock();
            let Err(error) = state.reserve_slots(count) else {
                return Ok(state);
            };
            if state.space.failure.is_some() && state.alloc.limbo_count() == 0 {
                return Err(error);
            }
            // The file may only have to grow, or freed slabs to be committed.
            drop(state);
            if self.maintain()? == Maintained::Idle {
                thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }

    /// Creates a volume of `size` bytes that reads as zeros.
    ///
    /// Errors: [`Error::BadName`], [`Error::BadSize`], [`Error::VolumeExists`], [`Error::NoSpace`].
    pub fn create_volume(&self, name: &str, size: u64) -> Result<VolumeInfo> {
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
            let mut state = self.lock_with_slots(2)?;
            if state.names.contains_key(name) {
                return Err(Error::VolumeExists { name: name.to_owned() });
            }
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
            };
            let core = Arc::new(VolumeCore::new(&record, head, self.shared.signal.clone()));
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
        {
            let mut state = self.shared.lock();
            let id = state.volume_id(name)?;
            state.check_let_go(id)?;
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
            let mut state = self.shared.lock();
            let id = state.volume_id(name)?;
            if name != new_name && state.names.contains_key(new_name) {
                return Err(Error::VolumeExists { name: new_name.to_owned() });
            }
            state.update_volume(id, |record| new_name.clone_into(&mut record.name));
            state.volumes[&id].set_name(new_name);
        }
        self.commit()
    }

    /// Makes `new_name` a point-in-time copy of `source`, as it is at this instant.
    pub fn snapshot(&self, source: &str, new_name: &str) -> Result<VolumeInfo> {
        let _control = super::lock(&self.shared.control);
        self.begin_snapshot(source, new_name)?.finish()
    }

    /// Makes `target` a point-in-time copy of `source`, as it is at this instant; the target's old contents are given up.
    ///
    /// Copies made of the target before keep its old contents. The target takes the source's size.
    pub fn refresh(&self, target: &str, source: &str) -> Result<VolumeInfo> {
        let _control = super::lock(&self.shared.control);
        let info = self.begin_refresh(target, source)?.finish()?;
        self.shared.call_for_work();
        Ok(info)
    }

    /// The first half of [`Container::snapshot`]: fixes the instant. For tests that hold writes under way; the caller
    /// runs no other control operation before it is finished.
    #[doc(hidden)]
    pub fn begin_snapshot(&self, source: &str, new_name: &str) -> Result<PendingCopy> {
        check_volume_name(new_name)?;
        if self.shared.lock().names.contains_key(new_name) {
            return Err(Error::VolumeExists { name: new_name.to_owned() });
        }
        self.begin_copy(source, CopyTarget::New(new_name.to_owned()))
    }

    /// The first half of [`Container::refresh`], as [`Container::begin_snapshot`].
    #[doc(hidden)]
    pub fn begin_refresh(&self, target: &str, source: &str) -> Result<PendingCopy> {
        self.shared.lock().volume_id(target)?;
        if target == source {
            return Err(Error::SameVolume { name: source.to_owned() });
        }
        self.begin_copy(source, CopyTarget::Existing(target.to_owned()))
    }

    /// Freezes the source's head, or takes its parent if the head was never written (SNP-4).
    fn begin_copy(&self, source: &str, target: CopyTarget) -> Result<PendingCopy> {
        self.shared.check_open()?;
        let mut state = self.lock_with_slots(1)?;
        let id = state.volume_id(source)?;
        let core = state.volumes[&id].clone();
        let head = core.head();
        let instant_ns = now_ns();
        let frozen = if head.is_untouched() {
            head.parent()
        } else {
            state.update_layer(head.id, |record| {
                record.kind = LayerKind::Frozen;
                record.owner = Some(id);
                record.frozen_ns = instant_ns;
            });
            let new_head = add_head(&mut state, Some(head.clone()), head.size);
            state.update_volume(id, |record| record.head = new_head.id);
            core.switch(new_head, self.shared.signal.clone());
            core.touch(&state);
            Some(head)
        };
        let record = state.volume_record(id);
        let origin = OriginRecord { volume: id, uuid: record.uuid, instant_ns, name: record.name.clone() };
        let size = record.size;
        Ok(PendingCopy { container: self.clone(), source: id, frozen, origin, size, target })
    }
}

impl PendingCopy {
    /// The volume that is being copied.
    pub fn source(&self) -> VolumeId {
        self.source
    }
}

fn check_volume_name(name: &str) -> Result<()> {
    check_name(name).map_err(|why| Error::BadName { name: name.to_owned(), why })
}
