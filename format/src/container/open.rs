//! Opening: checks that the recovered metadata agrees with itself, builds the layers and volumes, takes the container.
//!
//! Invariant (JNL-10): replay builds the final state in memory and writes home only what is still owned; what a record
//! says of a layer that no longer exists is dropped. Nothing is written before all checks have passed.
//! Does not: trust any byte. Every allocation is bounded by the file's length.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::recover::{Recovered, Replay, read, read_container};
use super::ring::{Position, Ring};
use super::state::{Opened, State};
use super::{Container, OpenMode, Shared, Signal};
use crate::alloc::Allocator;
use crate::disk::Disk;
use crate::error::{Error, Place, Result};
use crate::layer::{Layer, Link, Page, PageLoad, Table};
use crate::layout::Bad;
use crate::layout::descriptor::Descriptor;
use crate::layout::entry::{self, RawEntry};
use crate::layout::slot::{Durability, LayerKind, LayerRecord, PER_PAGE, Slot, VolumeRecord};
use crate::layout::tags;
use crate::units::{ChunkNo, ENTRIES_PER_PAGE, ENTRIES_PER_TABLE, LayerId, PAGE_LEN, SlabNo, VolumeId};
use crate::volume::{Role, VolumeCore, Writers};

/// Decodes a table page and checks each entry's slab against its descriptor (MAP-5).
///
/// Entries for which `replaced` holds are not looked at: newer values take their place.
pub(super) fn decode_page(
    load: PageLoad,
    bytes: &[u8],
    alloc: &Allocator,
    replaced: impl Fn(ChunkNo) -> bool,
    out: &mut [RawEntry; ENTRIES_PER_PAGE as usize],
) -> Result<()> {
    let first = load.first_chunk();
    for ((raw, chunk), out) in bytes.chunks_exact(entry::LEN).zip(first.0..).zip(out.iter_mut()) {
        let chunk = ChunkNo(chunk);
        if replaced(chunk) {
            continue;
        }
        let place = Place::Chunk(load.layer, chunk);
        *out = RawEntry::decode(raw, load.layer, chunk).map_err(|bad| bad.at("chunk entry", place))?;
        check_owner(load.layer, chunk, *out, alloc)?;
    }
    Ok(())
}

/// An entry's slab must be described as data of just this chunk (MAP-5).
fn check_owner(layer: LayerId, chunk: ChunkNo, found: RawEntry, alloc: &Allocator) -> Result<()> {
    if found.d == 0 {
        return Ok(());
    }
    match alloc.descriptor(found.slab) {
        Some(Descriptor::Data { layer: owner, index, .. }) if owner == layer && index == chunk.0 => Ok(()),
        other => {
            let bad = Bad::new("MAP-5", format!("slab {} described as {other:?}", found.slab), "data of this chunk");
            Err(bad.at("chunk entry", Place::Chunk(layer, chunk)).into())
        }
    }
}

/// Checks the catalog against itself and builds the layers, parents first. `views` are the heads that may be parents.
fn build_layers(slots: &[Slot], views: &HashMap<LayerId, LayerId>) -> Result<HashMap<LayerId, Arc<Layer>>> {
    let records: BTreeMap<LayerId, (&LayerRecord, u32)> = slots
        .iter()
        .zip(0u32..)
        .filter_map(|(slot, number)| match slot {
            Slot::Layer(record) => Some((record.id, (record, number))),
            Slot::Free | Slot::Container(_) | Slot::Volume(_) | Slot::Relation(_) | Slot::Region(_) => None,
        })
        .collect();
    let bad = |number: u32, rule, found: String, expected: &str| -> Error {
        Bad::new(rule, found, expected).at("layer", Place::Slot(number)).into()
    };
    let mut layers: HashMap<LayerId, Arc<Layer>> = HashMap::new();
    for &id in records.keys() {
        // Walk up to the nearest built ancestor, then build downwards.
        let mut pending = Vec::new();
        let mut next = Some(id);
        while let Some(current) = next.filter(|current| !layers.contains_key(current)) {
            let Some(&(record, number)) = records.get(&current) else {
                return Err(bad(0, "LAY-2", format!("layer {current} is missing"), "a parent that exists"));
            };
            if pending.len() > records.len() {
                return Err(bad(number, "LAY-2", "a cycle of parents".to_owned(), "a tree"));
            }
            pending.push(record);
            // A doomed layer shows nothing any more; its parent may be gone already.
            next = if record.kind == LayerKind::Doomed { None } else { record.parent };
        }
        for record in pending.into_iter().rev() {
            let parent = if record.kind == LayerKind::Doomed { None } else { record.parent };
            if let Some((above, number)) = parent.and_then(|parent| records.get(&parent))
                && !above.kind.may_be_parent()
                && views.get(&above.id) != Some(&record.id)
            {
                return Err(bad(*number, "LAY-2", format!("{:?} as a parent", above.kind), "a frozen or copy layer"));
            }
            // A merge would move chunks beyond the layer's own end.
            let most =
                parent.and_then(|parent| layers.get(&parent)).map_or(u64::MAX, |above| above.size.min(record.size));
            if record.parent_limit > most {
                let number = records.get(&record.id).map_or(0, |(_, number)| *number);
                return Err(bad(number, "LAY-6", record.parent_limit.to_string(), "a limit within both layers"));
            }
            let link =
                Link { parent: parent.and_then(|parent| layers.get(&parent).cloned()), limit: record.parent_limit };
            layers.insert(record.id, Arc::new(Layer::new(record.id, record.size, link, true)));
        }
    }
    Ok(layers)
}

/// Each copy layer is a job: no volume has more than one (LAY-40).
fn check_copies(slots: &[Slot]) -> Result<()> {
    let mut filled = HashSet::new();
    for (slot, number) in slots.iter().zip(0u32..) {
        if let Slot::Layer(record) = slot
            && let Some(volume) = record.filled_for().filter(|&volume| !filled.insert(volume))
        {
            let bad = Bad::new("LAY-40", format!("a second copy layer of volume {volume}"), "one for a volume");
            return Err(bad.at("layer", Place::Slot(number)).into());
        }
    }
    Ok(())
}

/// The heads of views, each with the head that stands on it: one of the same size, of a volume that is no view itself, both
/// volumes keeping what is flushed and none being hydrated.
fn find_views(slots: &[Slot]) -> Result<HashMap<LayerId, LayerId>> {
    let volumes = slots.iter().filter_map(|slot| match slot {
        Slot::Volume(record) => Some((record.head, record)),
        _ => None,
    });
    let volumes: HashMap<LayerId, &VolumeRecord> = volumes.collect();
    let hydrated: HashSet<VolumeId> = slots
        .iter()
        .filter_map(|slot| match slot {
            Slot::Layer(layer) => layer.filled_for(),
            _ => None,
        })
        .collect();
    let is_view = |head: &LayerId| volumes.get(head).is_some_and(|volume| volume.is_view);
    let bad = |number, found| -> Error {
        Bad::new("LAY-70", found, "one head of the same size over the head of a view")
            .at("view", Place::Slot(number))
            .into()
    };
    let mut views = HashMap::new();
    for (slot, number) in slots.iter().zip(0u32..) {
        let Slot::Layer(LayerRecord { id, parent: Some(parent), kind, size, parent_limit, .. }) = slot else {
            continue;
        };
        if *kind == LayerKind::Doomed || !is_view(parent) {
            continue;
        }
        let is_head = *kind == LayerKind::Head && !is_view(id);
        let pair = || [parent, id].into_iter().filter_map(|head| volumes.get(head));
        if pair().any(|volume| volume.durability == Durability::None || hydrated.contains(&volume.id)) {
            return Err(bad(number, format!("a volume of durability none, or being hydrated, over head {parent}")));
        }
        if !is_head || *size != volumes[parent].size || parent_limit != size || views.insert(*parent, *id).is_some() {
            return Err(bad(number, format!("layer {id} of {size} bytes over head {parent}")));
        }
    }
    for (slot, number) in slots.iter().zip(0u32..) {
        if let Slot::Volume(record) = slot
            && record.is_view
            && !views.contains_key(&record.head)
        {
            return Err(bad(number, format!("nothing over the head of view '{}'", record.name)));
        }
    }
    Ok(views)
}

/// Checks the volumes and builds their runtime halves.
fn build_volumes(
    slots: &[Slot],
    layers: &HashMap<LayerId, Arc<Layer>>,
    views: &HashMap<LayerId, LayerId>,
    signal: &Arc<Signal>,
) -> Result<HashMap<VolumeId, Arc<VolumeCore>>> {
    let heads: HashMap<LayerId, &LayerRecord> = slots
        .iter()
        .filter_map(|slot| match slot {
            Slot::Layer(record) if record.kind == LayerKind::Head => Some((record.id, record)),
            _ => None,
        })
        .collect();
    let mut in_views: HashMap<LayerId, Arc<Writers>> = HashMap::new();
    for (lower, upper) in views {
        let pair = Role::pair(layers[upper].clone(), layers[lower].clone(), signal);
        in_views.extend([*upper, *lower].into_iter().zip(pair));
    }
    let mut volumes = HashMap::new();
    let mut names = HashSet::new();
    let mut used = HashSet::new();
    for (slot, number) in slots.iter().zip(0u32..) {
        let Slot::Volume(record) = slot else {
            continue;
        };
        let bad = |rule, found: String, expected: &str| -> Error {
            Bad::new(rule, found, expected).at("volume", Place::Slot(number)).into()
        };
        let Some(head) = heads.get(&record.head) else {
            return Err(bad("LAY-3", format!("head {}", record.head), "a head layer"));
        };
        if !used.insert(record.head) {
            return Err(bad("LAY-3", format!("head {} of another volume", record.head), "a head of its own"));
        }
        if head.size != record.size {
            return Err(bad("LAY-3", format!("head of {} bytes", head.size), "the volume's size"));
        }
        if record.instant.is_none() && !names.insert(&record.name) {
            return Err(bad("CAT-4", format!("name '{}' twice", record.name), "unique names"));
        }
        let writers = match in_views.remove(&record.head) {
            Some(writers) => writers,
            None => Writers::new(layers[&record.head].clone(), signal.clone()),
        };
        let core = Arc::new(VolumeCore::new(record, writers));
        if volumes.insert(record.id, core).is_some() {
            return Err(bad("LAY-1", format!("volume id {} twice", record.id), "unique ids"));
        }
    }
    let mut regions = HashSet::new();
    for (slot, number) in slots.iter().zip(0u32..) {
        if let Slot::Region(record) = slot
            && !regions.insert(&record.name)
        {
            let bad = Bad::new("CAT-16", format!("name '{}' twice", record.name), "unique names");
            return Err(bad.at("cache region", Place::Slot(number)).into());
        }
    }
    if let Some(orphan) = heads.keys().find(|id| !used.contains(id)) {
        let bad = Bad::new("LAY-3", format!("head {orphan} without a volume"), "a volume");
        return Err(bad.at("layer", Place::Slot(0)).into());
    }
    Ok(volumes)
}

/// Refuses relations that name what they must not (REL-3, REL-4).
fn check_relations(slots: &[Slot]) -> Result<()> {
    let layers: HashMap<LayerId, &LayerRecord> = slots
        .iter()
        .filter_map(|slot| match slot {
            Slot::Layer(record) => Some((record.id, record)),
            _ => None,
        })
        .collect();
    let (mut secondaries, mut copies) = (HashSet::new(), HashSet::new());
    for (slot, number) in slots.iter().zip(0u32..) {
        let Slot::Relation(record) = slot else { continue };
        let bad = |rule, found: String, expected: &str| -> Error {
            Bad::new(rule, found, expected).at("relation", Place::Slot(number)).into()
        };
        for id in record.pinned() {
            let found = layers.get(&id);
            let stands = record.copy == Some(id) && found.is_some_and(|layer| layer.parent.is_some());
            if stands || found.is_none_or(|layer| layer.kind != LayerKind::Frozen) {
                return Err(bad("REL-3", format!("layer {id}"), "frozen layers, the filled one without a parent"));
            }
        }
        let is_second = record.volumes.is_some_and(|pair| !secondaries.insert(pair.secondary));
        if is_second || record.copy.is_some_and(|copy| !copies.insert(copy)) {
            return Err(bad("REL-4", "a second relation".to_owned(), "one of each secondary and filled layer"));
        }
    }
    Ok(())
}

/// Hangs the tables found in the descriptors into their layers. Those of doomed layers are only freed (LAY-10).
fn attach_tables(
    descriptors: &[Descriptor],
    layers: &HashMap<LayerId, Arc<Layer>>,
    doomed: &HashSet<LayerId>,
) -> Result<()> {
    for (found, slab) in descriptors.iter().zip(0u64..) {
        let Descriptor::Table { layer, index, pages, zero } = *found else {
            continue;
        };
        let Some(owner) = layers.get(&layer) else {
            log::warn!("slab {slab} belongs to layer {layer}, which does not exist; `pitstop check` tells more");
            continue;
        };
        if doomed.contains(&layer) {
            continue;
        }
        if index >= owner.table_limit() || !owner.add_table(index, Table::new(SlabNo(slab), pages, zero)) {
            let bad =
                Bad::new("MAP-2", format!("table {index} of layer {layer}"), "one table an index, within the size");
            return Err(bad.at("slab descriptor", Place::Slab(SlabNo(slab))).into());
        }
    }
    Ok(())
}

/// Refuses tag slabs that no slab needs, or that are there twice (TAG-2).
fn check_tag_slabs(descriptors: &[Descriptor]) -> Result<()> {
    let most = (descriptors.len() as u64).div_ceil(tags::PER_SLAB);
    let mut seen = HashSet::new();
    for (found, slab) in descriptors.iter().zip(0u64..) {
        if let Descriptor::Tags { index } = *found
            && (u64::from(index) >= most || !seen.insert(index))
        {
            let bad = Bad::new("TAG-2", format!("tag slab {index}"), "one an index, within the container");
            return Err(bad.at("slab descriptor", Place::Slab(SlabNo(slab))).into());
        }
    }
    Ok(())
}

/// Makes the pages resident that the journal touches, with its values over those of their homes.
fn replay_pages(
    disk: &dyn Disk,
    replay: &Replay,
    alloc: &Allocator,
    layers: &HashMap<LayerId, Arc<Layer>>,
    doomed: &HashSet<LayerId>,
) -> Result<Vec<(LayerId, u32, u8)>> {
    let mut touched: BTreeMap<(LayerId, u32, u8), Vec<(ChunkNo, RawEntry)>> = BTreeMap::new();
    for &key in replay.fresh.keys() {
        touched.entry(key).or_default();
    }
    for (&(layer, chunk), &entry) in &replay.entries {
        touched.entry((layer, chunk.table(), chunk.page() as u8)).or_default().push((chunk, entry));
    }
    let mut pages = Vec::new();
    for ((layer, table, page), entries) in touched {
        let Some(owner) = layers.get(&layer).filter(|_| !doomed.contains(&layer)) else {
            continue;
        };
        let place = Place::Chunk(layer, entries.first().map_or(ChunkNo(0), |(chunk, _)| *chunk));
        let Some(found) = owner.table(table).filter(|found| page < 64 && found.is_initialised(usize::from(page)))
        else {
            let bad = Bad::new("JNL-10", format!("page {page} of table {table}"), "an initialised page of the layer");
            return Err(bad.at("journal item", place).into());
        };
        let load = PageLoad::home(layer, table, page, found.slab);
        // What the page began with is in its own item: the table's flag may have changed since.
        let fresh = replay.fresh.get(&(layer, table, page));
        let first = RawEntry { z: if fresh == Some(&true) { !0 } else { 0 }, ..RawEntry::default() };
        let mut raw = [first; ENTRIES_PER_PAGE as usize];
        if fresh.is_none() {
            let bytes = read(disk, PAGE_LEN, load.offset())?;
            let replaced = |chunk| replay.entries.contains_key(&(layer, chunk));
            decode_page(load, &bytes, alloc, replaced, &mut raw)?;
        }
        for (chunk, entry) in entries {
            if (entry.d == 0) != (entry.slab.0 == 0) {
                let bad = Bad::new("MAP-3", format!("slab {} with D {:#x}", entry.slab, entry.d), "both or neither");
                return Err(bad.at("journal item", place).into());
            }
            check_owner(layer, chunk, entry, alloc)?;
            raw[chunk.entry()] = entry;
        }
        found.install(usize::from(page), Page::from_raw(&raw)).mark_dirty();
        pages.push((layer, table, page));
    }
    Ok(pages)
}

impl Container {
    /// Opens the container on `disk`, recovering it if it was not closed.
    ///
    /// With [`OpenMode::ReadOnly`] nothing is written: recovery happens in memory.
    ///
    /// Errors: [`Error::NotAContainer`], [`Error::Truncated`], [`Error::Corrupt`], unknown versions and features, and
    /// the disk's own.
    pub fn open(disk: Arc<dyn Disk>, mode: OpenMode) -> Result<Container> {
        let recovered = read_container(&*disk)?;
        if mode == OpenMode::ReadWrite && recovered.superblock.ro_compat != 0 {
            return Err(Error::ReadOnlyFeatures { bits: recovered.superblock.ro_compat });
        }
        if let Some(bad) = recovered.first_bad() {
            return Err(bad.into());
        }
        let counters = recovered.counters()?;
        recovered.check_reserved()?;
        recovered.check_ids(counters.next_id)?;
        if mode == OpenMode::ReadWrite {
            recovered.check_room_to_count()?;
        }
        let unclean = recovered.is_unclean();
        let signal = Arc::new(Signal::default());
        let Recovered { superblock, descriptors, catalog_slabs, slots, replay, .. } = recovered;
        let views = find_views(&slots)?;
        let layers = build_layers(&slots, &views)?;
        check_copies(&slots)?;
        let volumes = build_volumes(&slots, &layers, &views, &signal)?;
        check_relations(&slots)?;
        let doomed = slots
            .iter()
            .filter_map(|slot| match slot {
                Slot::Layer(record) if record.kind == LayerKind::Doomed => Some(record.id),
                _ => None,
            })
            .collect();
        attach_tables(&descriptors, &layers, &doomed)?;
        check_tag_slabs(&descriptors)?;
        let alloc = Allocator::new(descriptors);
        let pages = replay_pages(&*disk, &replay, &alloc, &layers, &doomed)?;
        let ring =
            Ring { offset: superblock.journal_offset, len: superblock.journal_len, tail: replay.end, head: replay.end };
        let mut state = State::new(Opened { superblock, slots, catalog_slabs, alloc, layers, volumes, ring });
        for &(layer, table, page) in &pages {
            state.note_resident(layer, table, page);
        }
        state.homes.pages = pages;
        state.homes.descriptors = replay.descriptors.keys().map(|slab| slab.0 / 128).collect();
        state.homes.slots = replay.slots.keys().map(|slot| slot.0 / PER_PAGE).collect();
        let container = Container { shared: Arc::new(Shared::new(disk, mode, state, signal)) };
        if mode == OpenMode::ReadWrite {
            container.take_over()?;
            container.release_instants()?;
        }
        if unclean {
            container.mark_undefined()?;
        }
        Ok(container)
    }

    /// Writes what replay changed home, then begins a new generation (JNL-4).
    fn take_over(&self) -> Result<()> {
        {
            let mut state = self.shared.lock();
            // Everything in memory is durable; the new generation's records begin a chain of their own.
            state.superblock.generation += 1;
            state.superblock.clean = false;
            let at = state.ring.head.at % state.ring.len;
            let position = Position { at, sequence: state.ring.head.sequence, prev_crc: 0 };
            state.ring.head = position;
            state.ring.tail = position;
        }
        self.checkpoint()
    }

    /// Commits, checkpoints and marks the container clean.
    ///
    /// Every ticket and plan of its volumes must be gone; handles that are left behind get errors.
    pub fn close(self) -> Result<()> {
        if self.shared.mode == OpenMode::ReadOnly {
            return Ok(());
        }
        self.shared.closed.store(true, std::sync::atomic::Ordering::Release);
        self.commit()?;
        self.shared.lock().superblock.clean = true;
        self.checkpoint()?;
        self.shared.lock().superblock.clean = false;
        Ok(())
    }
}

const _: () = assert!(ENTRIES_PER_TABLE == 64 * ENTRIES_PER_PAGE);
