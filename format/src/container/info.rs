//! What a container holds, for people and programs.

use std::collections::HashMap;

use serde::Serialize;
use uuid::Uuid;

use super::state::State;
use super::{Container, Hydration, Sealing};
use crate::error::{Error, Result};
use crate::layout::slot::{Durability, LayerKind, Moved, Slot, Verify};
use crate::units::{BLOCK_LEN, LayerId, SLAB_LEN, VolumeId};

/// A container at a glance.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ContainerInfo {
    /// The container's UUID.
    pub uuid: Uuid,
    /// The note given at creation.
    pub label: String,
    /// Version of the format.
    pub version: u32,
    /// Bytes in a block.
    pub block_len_bytes: u64,
    /// Bytes in a chunk.
    pub chunk_len_bytes: u64,
    /// Bytes of the file that the container uses or may use without growing.
    pub file_len_bytes: u64,
    /// Bytes in slabs that hold something.
    pub allocated_bytes: u64,
    /// Bytes in slabs that hold nothing.
    pub free_bytes: u64,
    /// Bytes of the journal ring.
    pub journal_len_bytes: u64,
    /// Volumes.
    pub volume_count: u64,
    /// Layers, those being freed included.
    pub layer_count: u64,
    /// Number of times the container was opened for writing.
    pub generation: u64,
    /// Nanoseconds since 1970.
    pub created_unix_ns: i64,
}

/// The room that a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceInfo {
    /// Bytes in slabs that hold something, metadata included.
    pub used_bytes: u64,
    /// Bytes in slabs that hold nothing, those on their way to being free included.
    pub free_bytes: u64,
    /// Bytes by which the file can still grow, if that is known.
    pub room_bytes: Option<u64>,
}

/// Whether all data of a volume is in layers of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Some of its data lives in layers that other volumes use too.
    Virtual,
    /// Virtual, and being made real.
    Hydrating,
    /// All of its data is its own.
    Real,
}

/// Where a volume's contents came from.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Origin {
    /// Id of the source.
    pub volume: VolumeId,
    /// The source's name: today's, or that of the instant if the source is gone.
    pub name: String,
    /// The instant, in nanoseconds since 1970.
    pub instant_unix_ns: i64,
}

/// How a secondary volume stands to its primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelationState {
    /// It reads data of others' layers.
    Virtual,
    /// It is being made real.
    Hydrating,
    /// All of its data is its own.
    Real,
    /// The relation was ended, or the primary is gone.
    Split,
}

/// The relation of a volume, the secondary, to its origin, the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Relation {
    /// Where it stands.
    pub state: RelationState,
    /// It is known what both had in common when the volume was hydrated: a refresh, in either direction, moves only what
    /// differs.
    pub tracked: bool,
    /// Bytes in slabs that are kept for it alone.
    pub kept_bytes: u64,
    /// What the last hydration moved, if it is tracked.
    pub moved: Option<Moved>,
}

/// How far a volume has been hydrated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Hydrated {
    /// The copy layer.
    pub layer: LayerId,
    /// Bytes that have been looked at; see [`Hydration::copied_bytes`].
    pub copied_bytes: u64,
    /// Bytes to look at.
    pub total_bytes: u64,
}

/// How far what is frozen of a volume has been sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sealed {
    /// Bytes that have been passed; see [`Sealing::passed_bytes`].
    pub passed_bytes: u64,
    /// Bytes to pass.
    pub total_bytes: u64,
}

/// A volume at a glance.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VolumeInfo {
    /// Id within the container.
    pub id: VolumeId,
    /// Name.
    pub name: String,
    /// The volume's UUID.
    pub uuid: Uuid,
    /// Size in bytes.
    pub size_bytes: u64,
    /// When it was created, in nanoseconds since 1970.
    pub created_unix_ns: i64,
    /// Where its contents came from, unless it was created empty.
    pub origin: Option<Origin>,
    /// What became of its relation to the origin, if it has one.
    pub relation: Option<Relation>,
    /// The volume that it is a write-through view of.
    pub view_of: Option<String>,
    /// The write-through view of it.
    pub viewed_by: Option<String>,
    /// Virtual, on its way to being real, or real.
    pub state: VolumeState,
    /// How far it has been hydrated, while it is.
    pub hydration: Option<Hydrated>,
    /// What its flushes promise.
    pub durability: Durability,
    /// An unclean stop may have cost it what was flushed: it is no source, and not served (VOL-45).
    pub undefined: bool,
    /// What is done so that damaged data of it is found.
    pub verify: Verify,
    /// How far what is frozen of it has been sealed, while it is.
    pub sealing: Option<Sealed>,
    /// Bytes in slabs of layers that only this volume uses or that were frozen from it.
    pub allocated_bytes: u64,
    /// The layer that takes its writes.
    pub head: LayerId,
    /// Layers below the head.
    pub depth: u32,
}

/// A layer at a glance.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LayerInfo {
    /// Id within the container.
    pub id: LayerId,
    /// `head`, `frozen`, `copy` or `doomed`.
    pub kind: &'static str,
    /// The layer that shows through.
    pub parent: Option<LayerId>,
    /// The volume whose own it is (LAY-7), if it is any volume's.
    pub owner: Option<VolumeId>,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bytes in slabs of the layer, tables included.
    pub allocated_bytes: u64,
    /// Layers whose parent this is.
    pub children: u32,
}

impl State {
    /// The volumes that alone stand on layers, by layer: each layer is passed once at most.
    fn sole_users(&self) -> HashMap<LayerId, VolumeId> {
        let mut users = HashMap::new();
        for (&head, &volume) in self.heads.iter().filter(|(_, volume)| !self.instants.contains(*volume)) {
            let mut next = Some(head);
            while let Some(layer) = next {
                users.insert(layer, volume);
                // On the head of a view stands another volume's.
                let below = self.layer_record(layer).parent.filter(|_| self.use_count(layer) <= 1);
                next = below.filter(|&below| self.use_count(below) <= 1);
            }
        }
        users
    }

    fn volume_info(&self, id: VolumeId) -> VolumeInfo {
        let record = self.volume_record(id);
        let chain = self.chain(id);
        let foreign = chain.iter().any(|&(layer, own)| !own && self.slabs_of(layer) > 0);
        let allocated: u64 = chain.iter().filter(|(_, own)| *own).map(|(layer, _)| self.slabs_of(*layer)).sum();
        let hydration = self.copy_layer(id).and_then(|layer| self.hydration(layer));
        let state = match &hydration {
            Some(_) => VolumeState::Hydrating,
            None if foreign => VolumeState::Virtual,
            None => VolumeState::Real,
        };
        let view = self.view(id);
        let other = |id: VolumeId| self.volume_record(id).name.clone();
        VolumeInfo {
            id,
            name: record.name.clone(),
            uuid: record.uuid,
            size_bytes: record.size,
            created_unix_ns: record.created_ns,
            origin: record.origin.as_ref().map(|origin| Origin {
                volume: origin.volume,
                name: if self.volume_slots.contains_key(&origin.volume) {
                    self.volume_record(origin.volume).name.clone()
                } else {
                    origin.name.clone()
                },
                instant_unix_ns: origin.instant_ns,
            }),
            relation: self.relation_info(id, state),
            view_of: view.filter(|view| view.view == id).map(|view| other(view.source)),
            viewed_by: view.filter(|view| view.source == id).map(|view| other(view.view)),
            state,
            hydration: hydration.map(|Hydration { layer, copied_bytes, total_bytes, .. }| Hydrated {
                layer,
                copied_bytes,
                total_bytes,
            }),
            durability: record.durability,
            undefined: record.undefined,
            verify: record.verify,
            // Looked up when the engine lock is free again.
            sealing: None,
            allocated_bytes: allocated * SLAB_LEN,
            head: record.head,
            depth: chain.len() as u32 - 1,
        }
    }
}

impl Container {
    /// The container at a glance.
    pub fn info(&self) -> ContainerInfo {
        let state = self.shared.lock();
        let slabs = state.alloc.slab_count();
        let free = state.alloc.free_count() + state.alloc.limbo_count();
        ContainerInfo {
            uuid: state.uuid,
            label: state.superblock.label.clone(),
            version: crate::layout::superblock::VERSION_VALUE,
            block_len_bytes: BLOCK_LEN,
            chunk_len_bytes: SLAB_LEN,
            file_len_bytes: slabs * SLAB_LEN,
            allocated_bytes: (slabs - free) * SLAB_LEN,
            free_bytes: free * SLAB_LEN,
            journal_len_bytes: state.ring.len,
            volume_count: state.names.len() as u64,
            layer_count: state.layers.len() as u64,
            generation: state.superblock.generation,
            created_unix_ns: state.superblock.created_ns,
        }
    }

    /// The room that the container has, and that the disk under it can still give.
    ///
    /// Errors: the disk cannot tell.
    pub fn space(&self) -> Result<SpaceInfo> {
        let room_bytes = self.shared.disk.room().map_err(Error::io("cannot see how much space is left"))?;
        let state = self.shared.lock();
        let free = state.alloc.free_count() + state.alloc.limbo_count();
        let used = state.alloc.slab_count() - free;
        Ok(SpaceInfo { used_bytes: used * SLAB_LEN, free_bytes: free * SLAB_LEN, room_bytes })
    }

    /// All volumes, by name.
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let mut infos: Vec<VolumeInfo> = {
            let state = self.shared.lock();
            state.names.values().map(|&id| state.volume_info(id)).collect()
        };
        infos.iter_mut().for_each(|info| self.add_sealing(info));
        infos
    }

    fn add_sealing(&self, info: &mut VolumeInfo) {
        info.sealing =
            self.sealing(info.id).map(|Sealing { passed_bytes, total_bytes, .. }| Sealed { passed_bytes, total_bytes });
    }

    pub(super) fn volume_info(&self, id: VolumeId) -> Result<VolumeInfo> {
        let mut info = {
            let state = self.shared.lock();
            if !state.volumes.contains_key(&id) {
                return Err(Error::NoSuchVolume { name: format!("id {id}") });
            }
            state.volume_info(id)
        };
        self.add_sealing(&mut info);
        Ok(info)
    }

    /// All layers, by id.
    pub fn layers(&self) -> Vec<LayerInfo> {
        let state = self.shared.lock();
        let users = state.sole_users();
        let mut layers: Vec<LayerInfo> = state
            .slots()
            .iter()
            .filter_map(|slot| match slot {
                Slot::Layer(record) => Some(LayerInfo {
                    id: record.id,
                    kind: match record.kind {
                        LayerKind::Head => "head",
                        LayerKind::Frozen => "frozen",
                        LayerKind::Copy(_) => "copy",
                        LayerKind::Doomed => "doomed",
                    },
                    parent: record.parent,
                    owner: record.owner.or_else(|| users.get(&record.id).copied()),
                    size_bytes: record.size,
                    allocated_bytes: state.slabs_of(record.id) * SLAB_LEN,
                    children: state.child_count(record.id) as u32,
                }),
                Slot::Free | Slot::Container(_) | Slot::Volume(_) | Slot::Relation(_) | Slot::Region(_) => None,
            })
            .collect();
        layers.sort_by_key(|layer| layer.id);
        layers
    }
}
