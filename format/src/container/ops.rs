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
use crate::layout::slot::{LayerKind, LayerRecord, VolumeRecord, check_name};
use crate::sync::{MutexGuard, thread};
use crate::units::{LayerId, MAX_VOLUME_LEN, MIN_IO_LEN, VolumeId};
use crate::volume::VolumeCore;

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

    /// Catalog slots that one batch may change besides what has gathered.
    pub(super) fn most_slots(&self) -> usize {
        (self.ring.reserve() / 2 / 520) as usize
    }

    /// Refuses to let go of a volume's layers if they are too many for one batch, before anything has changed.
    pub(super) fn check_let_go(&self, id: VolumeId) -> Result<()> {
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
        Ok(())
    }

    /// Dooms a head that its volume no longer uses, and every frozen layer that nobody else uses then (LAY-5).
    pub(super) fn let_go(&mut self, head: LayerId, volume: VolumeId) {
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
    pub(super) fn lock_with_slots(&self, count: usize) -> Result<MutexGuard<'_, State>> {
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
}

pub(super) fn check_volume_name(name: &str) -> Result<()> {
    check_name(name).map_err(|why| Error::BadName { name: name.to_owned(), why })
}
