//! Opening: reads the metadata, replays the journal in memory, checks that everything agrees, and takes the container.
//!
//! Invariant (JNL-10): replay builds the final state in memory and writes home only what is still owned; what a record
//! says of a layer that no longer exists is dropped. Nothing is written before all checks have passed.
//! Does not: trust any byte. Every allocation is bounded by the file's length.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::ring::{Position, Ring};
use super::state::{Opened, State};
use super::{Container, OpenMode, Shared, Signal};
use crate::alloc::{Allocator, DESCRIPTOR_SLAB};
use crate::container::create::JOURNAL_SLAB;
use crate::disk::Disk;
use crate::error::{Corruption, Error, Place, Result};
use crate::layer::{Layer, Link, Page, PageLoad, Table};
use crate::layout::descriptor::{self, Descriptor};
use crate::layout::entry::{self, RawEntry};
use crate::layout::record::{self, Item};
use crate::layout::slot::{self, ContainerRecord, LayerKind, LayerRecord, PER_PAGE, PER_SLAB, Slot};
use crate::layout::superblock::{self, Superblock, Unusable};
use crate::layout::{Bad, superblock::OFFSETS};
use crate::units::{
    ChunkNo, ENTRIES_PER_PAGE, ENTRIES_PER_TABLE, LayerId, PAGE_LEN, SLAB_LEN, SLABS_PER_GROUP, SlabNo, SlotNo,
};
use crate::volume::VolumeCore;

/// Metadata as it is after replay, decoded but not yet checked against itself.
#[derive(Debug)]
struct Recovered {
    superblock: Superblock,
    pub(crate) descriptors: Vec<Descriptor>,
    pub(crate) bad_descriptors: Vec<(SlabNo, Bad)>,
    pub(crate) catalog_slabs: Vec<SlabNo>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) bad_slots: Vec<(SlotNo, Bad)>,
    pub(crate) replay: Replay,
}

/// What the journal says, newest value of each thing.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) descriptors: BTreeMap<SlabNo, [u8; descriptor::LEN]>,
    pub(crate) slots: BTreeMap<SlotNo, Box<[u8; slot::LEN]>>,
    pub(crate) entries: BTreeMap<(LayerId, ChunkNo), RawEntry>,
    /// New pages, and whether their entries began as zero entries.
    pub(crate) fresh: HashMap<(LayerId, u32, u8), bool>,
    pub(crate) end: Position,
    pub(crate) batches: u64,
}

/// More ids than any container can use up.
const MAX_NEXT_ID: u64 = 1 << 63;

fn read(disk: &dyn Disk, len: usize, offset: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    disk.read_at(&mut bytes, offset).map_err(Error::io("cannot read the container's metadata"))?;
    Ok(bytes)
}

/// The newer usable superblock.
fn read_superblock(disk: &dyn Disk, file_len: u64) -> Result<Superblock> {
    let mut usable: Option<Superblock> = None;
    let mut unusable = Vec::new();
    for (copy, offset) in OFFSETS.into_iter().enumerate() {
        if file_len < offset + superblock::LEN as u64 {
            unusable.push(Unusable::NoMagic);
            continue;
        }
        match Superblock::decode(&read(disk, superblock::LEN, offset)?, copy) {
            Ok(found) if usable.as_ref().is_none_or(|best| found.sequence > best.sequence) => usable = Some(found),
            Ok(_) => {}
            Err(why) => unusable.push(why),
        }
    }
    let Some(superblock) = usable else {
        let rank = |why: &Unusable| match why {
            Unusable::Bad(_) => 0,
            Unusable::Version(_) => 1,
            Unusable::NoMagic => 2,
        };
        unusable.sort_by_key(rank);
        return Err(match unusable.into_iter().next() {
            Some(Unusable::Bad(bad)) => Error::Corrupt(bad.at("superblock", Place::Offset(0))),
            Some(Unusable::Version(found)) => Error::UnsupportedVersion { found },
            Some(Unusable::NoMagic) | None => Error::NotAContainer,
        });
    };
    if superblock.incompat != 0 {
        return Err(Error::UnsupportedFeatures { bits: superblock.incompat });
    }
    let metadata_end = superblock.journal_offset.saturating_add(superblock.journal_len);
    if superblock.journal_offset != SlabNo(JOURNAL_SLAB).offset() || metadata_end > SLABS_PER_GROUP * SLAB_LEN {
        let bad = Bad::new("JNL-1", superblock.journal_offset, SlabNo(JOURNAL_SLAB).offset());
        return Err(bad.at("superblock", Place::Offset(0)).into());
    }
    if file_len < metadata_end + SLAB_LEN {
        return Err(Error::Truncated { found: file_len, expected: metadata_end + SLAB_LEN });
    }
    if let Some(why) = unusable.first() {
        log::warn!("one superblock copy cannot be used ({why:?}); the other one is");
    }
    Ok(superblock)
}

/// Follows the ring from the tail; only complete batches count (JNL-4).
fn replay(disk: &dyn Disk, superblock: &Superblock) -> Result<Replay> {
    let mut replay = Replay {
        descriptors: BTreeMap::new(),
        slots: BTreeMap::new(),
        entries: BTreeMap::new(),
        fresh: HashMap::new(),
        end: Position {
            at: superblock.tail_offset,
            sequence: superblock.tail_sequence,
            prev_crc: superblock.tail_prev_crc,
        },
        batches: 0,
    };
    let ring = (superblock.journal_offset, superblock.journal_len);
    let mut position = replay.end;
    let mut batch = Vec::new();
    while let Some((found, next)) = read_record(disk, superblock, ring, position, superblock.tail_offset)? {
        position = next;
        batch.extend(found.items);
        if found.last {
            for item in batch.drain(..) {
                replay.apply(item);
            }
            replay.end = position;
            replay.batches += 1;
        }
    }
    Ok(replay)
}

impl Replay {
    fn apply(&mut self, item: Item) {
        match item {
            Item::FreshPage { layer, table, page, zero } => {
                self.fresh.insert((layer, table, page), zero);
            }
            Item::Entry { layer, chunk, slab, d, z } => {
                self.entries.insert((layer, chunk), RawEntry { slab, d, z });
            }
            Item::Descriptor { slab, image } => {
                self.descriptors.insert(slab, image);
            }
            Item::Slot { slot, image } => {
                self.slots.insert(slot, image);
            }
        }
    }
}

/// The record expected at `position`, there or, where it did not fit, at the ring's beginning.
fn read_record(
    disk: &dyn Disk,
    superblock: &Superblock,
    (ring_offset, ring_len): (u64, u64),
    position: Position,
    start: u64,
) -> Result<Option<(record::Decoded, Position)>> {
    let link = record::Link {
        uuid: superblock.uuid,
        generation: superblock.generation,
        sequence: position.sequence,
        prev_crc: position.prev_crc,
    };
    let wrapped = position.at.next_multiple_of(ring_len);
    for at in [position.at, wrapped] {
        if at - start >= ring_len {
            continue;
        }
        let in_ring = at % ring_len;
        let page = read(disk, PAGE_LEN, ring_offset + in_ring)?;
        let Some(len) = record::peek_len(&page, link) else {
            continue;
        };
        if in_ring + len as u64 > ring_len || at - start + len as u64 > ring_len {
            continue;
        }
        let bytes = read(disk, len, ring_offset + in_ring)?;
        if let Some(found) = record::decode(&bytes) {
            let next = Position { at: at + len as u64, sequence: position.sequence + 1, prev_crc: found.crc };
            return Ok(Some((found, next)));
        }
    }
    Ok(None)
}

/// Reads a container's metadata as it is after replay, writing nothing.
fn read_container(disk: &dyn Disk) -> Result<Recovered> {
    let file_len = disk.len().map_err(Error::io("cannot read the container's length"))?;
    let superblock = read_superblock(disk, file_len)?;
    let replay = replay(disk, &superblock)?;
    let mut recovered = Recovered {
        superblock,
        descriptors: Vec::new(),
        bad_descriptors: Vec::new(),
        catalog_slabs: Vec::new(),
        slots: Vec::new(),
        bad_slots: Vec::new(),
        replay,
    };
    recovered.read_descriptors(disk, file_len)?;
    recovered.read_catalog(disk)?;
    recovered.cut_to_size(file_len)?;
    Ok(recovered)
}

impl Recovered {
    fn read_descriptors(&mut self, disk: &dyn Disk, file_len: u64) -> Result<()> {
        let uuid = self.superblock.uuid;
        let slabs = file_len / SLAB_LEN;
        if let Some(last) = self.replay.descriptors.keys().next_back().filter(|slab| slab.0 >= slabs) {
            return Err(Error::Truncated {
                found: file_len,
                expected: last.0.saturating_add(1).saturating_mul(SLAB_LEN),
            });
        }
        for group in 0..slabs.div_ceil(SLABS_PER_GROUP) {
            let first = group * SLABS_PER_GROUP;
            let count = (slabs - first).min(SLABS_PER_GROUP);
            if count <= DESCRIPTOR_SLAB {
                break;
            }
            let len = (count as usize * descriptor::LEN).next_multiple_of(PAGE_LEN);
            let bytes = read(disk, len, SlabNo(first + DESCRIPTOR_SLAB).offset())?;
            for (raw, index) in bytes.chunks_exact(descriptor::LEN).zip(first..first + count) {
                let slab = SlabNo(index);
                let raw = self.replay.descriptors.get(&slab).map_or(raw, |image| image.as_slice());
                match Descriptor::decode(raw, uuid, slab) {
                    Ok(found) => self.descriptors.push(found),
                    Err(bad) => {
                        self.descriptors.push(Descriptor::Reserved);
                        self.bad_descriptors.push((slab, bad));
                    }
                }
            }
        }
        Ok(())
    }

    fn read_catalog(&mut self, disk: &dyn Disk) -> Result<()> {
        let mut slabs: BTreeMap<u32, (SlabNo, u64)> = BTreeMap::new();
        for (found, index) in self.descriptors.iter().zip(0u64..) {
            if let Descriptor::Catalog { index: catalog, pages } = *found
                && let Some((other, _)) = slabs.insert(catalog, (SlabNo(index), pages))
            {
                let bad = Bad::new("CAT-3", format!("catalog {catalog} also in slab {other}"), "one slab");
                return Err(bad.at("slab descriptor", Place::Slab(SlabNo(index))).into());
            }
        }
        for (&index, &(slab, pages)) in &slabs {
            let place = Place::Slab(slab);
            let whole = pages.trailing_ones();
            if index as usize != self.catalog_slabs.len()
                || (pages != !0 && pages != (1u64 << whole) - 1)
                || (whole < 64 && index as usize + 1 < slabs.len())
            {
                let bad = Bad::new("CAT-3", format!("index {index}, pages {pages:#x}"), "an unbroken sequence");
                return Err(bad.at("catalog", place).into());
            }
            self.catalog_slabs.push(slab);
            let bytes = read(disk, whole as usize * PAGE_LEN, slab.offset())?;
            for (raw, number) in bytes.chunks_exact(slot::LEN).zip(index * PER_SLAB..) {
                let number = SlotNo(number);
                let raw = self.replay.slots.get(&number).map_or(raw, |image| image.as_slice());
                match Slot::decode(raw, self.superblock.uuid, number) {
                    Ok(found) => self.slots.push(found),
                    Err(bad) => {
                        self.slots.push(Slot::Free);
                        self.bad_slots.push((number, bad));
                    }
                }
            }
        }
        debug_assert!(self.slots.len().is_multiple_of(PER_PAGE as usize));
        Ok(())
    }

    /// The container's counters, from slot 0.
    pub(crate) fn counters(&self) -> Result<ContainerRecord> {
        match self.slots.first() {
            Some(Slot::Container(record)) => Ok(*record),
            other => {
                let bad = Bad::new("CAT-6", format!("{other:?}"), "the container record");
                Err(bad.at("catalog", Place::Slot(0)).into())
            }
        }
    }

    /// The file may have grown just before a crash; it must not have shrunk.
    fn cut_to_size(&mut self, file_len: u64) -> Result<()> {
        let slab_count = self.counters().map(|counters| counters.slab_count).or_else(|error| {
            if self.bad_slots.is_empty() && self.bad_descriptors.is_empty() { Err(error) } else { Ok(0) }
        })?;
        if slab_count > self.descriptors.len() as u64 {
            return Err(Error::Truncated { found: file_len, expected: slab_count.saturating_mul(SLAB_LEN) });
        }
        if slab_count > 0 {
            // What the file has beyond has never counted (CON-14).
            self.descriptors.truncate(slab_count as usize);
            self.bad_descriptors.retain(|(slab, _)| slab.0 < slab_count);
        }
        Ok(())
    }

    /// The container's own slabs must be described as such, else the allocator or an entry could name them (CON-13).
    fn check_reserved(&self) -> Result<()> {
        let metadata_end = (self.superblock.journal_offset + self.superblock.journal_len) / SLAB_LEN;
        let slabs = self.descriptors.len() as u64;
        let groups = (0..slabs).step_by(SLABS_PER_GROUP as usize).map(|first| first + DESCRIPTOR_SLAB);
        for slab in (0..metadata_end).chain(groups) {
            let found = self.descriptors.get(slab as usize);
            if found != Some(&Descriptor::Reserved) {
                let bad = Bad::new("CON-13", format!("{found:?}"), "a reserved slab");
                return Err(bad.at("slab descriptor", Place::Slab(SlabNo(slab))).into());
            }
        }
        // Homes are written for all that the journal names.
        let beyond = self.replay.slots.keys().next_back().filter(|slot| slot.0 as usize >= self.slots.len());
        if let Some(slot) = beyond {
            let bad = Bad::new("JNL-10", format!("slot {slot} of {}", self.slots.len()), "a slot of the catalog");
            return Err(bad.at("journal item", Place::Slot(slot.0)).into());
        }
        if let Some(slab) = self.replay.descriptors.keys().next_back().filter(|slab| slab.0 >= slabs) {
            let bad = Bad::new("JNL-10", format!("slab {slab} of {slabs}"), "a slab of the container");
            return Err(bad.at("journal item", Place::Slab(*slab)).into());
        }
        match self.catalog_slabs.iter().find(|slab| slab.0 >= slabs) {
            Some(&slab) => {
                let bad =
                    Bad::new("CON-14", format!("a catalog slab beyond {slabs} slabs"), "one within the container");
                Err(bad.at("catalog", Place::Slab(slab)).into())
            }
            None => Ok(()),
        }
    }

    /// Ids that are, or could soon be, given twice (LAY-1), and counters that stand elsewhere (CAT-6).
    fn check_ids(&self, next_id: u64) -> Result<()> {
        let mut ids = HashSet::new();
        for (slot, number) in self.slots.iter().zip(0u32..) {
            let id = match slot {
                Slot::Free => continue,
                Slot::Container(_) if number == 0 => continue,
                Slot::Container(_) => {
                    let bad = Bad::new("CAT-6", "a second container record", "one, in slot 0");
                    return Err(bad.at("catalog slot", Place::Slot(number)).into());
                }
                Slot::Volume(record) => record.id.0,
                Slot::Layer(record) => record.id.0,
            };
            if id == 0 || id >= next_id || next_id > MAX_NEXT_ID || !ids.insert(id) {
                let bad = Bad::new("LAY-1", format!("id {id}, next {next_id}"), "unique ids below the next");
                return Err(bad.at("catalog slot", Place::Slot(number)).into());
            }
        }
        if next_id == 0 || next_id > MAX_NEXT_ID {
            let bad = Bad::new("LAY-1", next_id, "a next id from 1 to 2^63");
            return Err(bad.at("catalog slot", Place::Slot(0)).into());
        }
        Ok(())
    }

    /// The first damaged structure, for callers that accept none.
    fn first_bad(&self) -> Option<Corruption> {
        let descriptor = self.bad_descriptors.first();
        let slot = self.bad_slots.first();
        descriptor
            .map(|(slab, bad)| bad.clone().at("slab descriptor", Place::Slab(*slab)))
            .or_else(|| slot.map(|(slot, bad)| bad.clone().at("catalog slot", Place::Slot(slot.0))))
    }
}

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

/// Checks the catalog against itself and builds the layers, parents first.
fn build_layers(slots: &[Slot]) -> Result<HashMap<LayerId, Arc<Layer>>> {
    let records: BTreeMap<LayerId, (&LayerRecord, u32)> = slots
        .iter()
        .zip(0u32..)
        .filter_map(|(slot, number)| match slot {
            Slot::Layer(record) => Some((record.id, (record, number))),
            Slot::Free | Slot::Container(_) | Slot::Volume(_) => None,
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
                && above.kind != LayerKind::Frozen
            {
                return Err(bad(*number, "LAY-2", format!("{:?} as a parent", above.kind), "a frozen layer"));
            }
            let link =
                Link { parent: parent.and_then(|parent| layers.get(&parent).cloned()), limit: record.parent_limit };
            layers.insert(record.id, Arc::new(Layer::new(record.id, record.size, link, true)));
        }
    }
    Ok(layers)
}

/// Checks the volumes and builds their runtime halves.
fn build_volumes(
    slots: &[Slot],
    layers: &HashMap<LayerId, Arc<Layer>>,
    signal: &Arc<Signal>,
) -> Result<HashMap<crate::units::VolumeId, Arc<VolumeCore>>> {
    let heads: HashMap<LayerId, &LayerRecord> = slots
        .iter()
        .filter_map(|slot| match slot {
            Slot::Layer(record) if record.kind == LayerKind::Head => Some((record.id, record)),
            _ => None,
        })
        .collect();
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
        if !names.insert(&record.name) {
            return Err(bad("CAT-4", format!("name '{}' twice", record.name), "unique names"));
        }
        let core = Arc::new(VolumeCore::new(record, layers[&record.head].clone(), signal.clone()));
        if volumes.insert(record.id, core).is_some() {
            return Err(bad("LAY-1", format!("volume id {} twice", record.id), "unique ids"));
        }
    }
    if let Some(orphan) = heads.keys().find(|id| !used.contains(id)) {
        let bad = Bad::new("LAY-3", format!("head {orphan} without a volume"), "a volume");
        return Err(bad.at("layer", Place::Slot(0)).into());
    }
    Ok(volumes)
}

/// Hangs the tables found in the descriptors into their layers.
fn attach_tables(descriptors: &[Descriptor], layers: &HashMap<LayerId, Arc<Layer>>) -> Result<()> {
    for (found, slab) in descriptors.iter().zip(0u64..) {
        let Descriptor::Table { layer, index, pages, zero } = *found else {
            continue;
        };
        let Some(owner) = layers.get(&layer) else {
            log::warn!("slab {slab} belongs to layer {layer}, which does not exist; `pitstop check` tells more");
            continue;
        };
        if index >= owner.table_limit() || !owner.add_table(index, Table::new(SlabNo(slab), pages, zero)) {
            let bad =
                Bad::new("MAP-2", format!("table {index} of layer {layer}"), "one table an index, within the size");
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
        let load = PageLoad { layer, table, page, slab: found.slab };
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
        let resident = found.install(usize::from(page), Page::from_raw(&raw));
        resident.home_dirty.store(true, std::sync::atomic::Ordering::Release);
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
        let signal = Arc::new(Signal::default());
        let Recovered { superblock, descriptors, catalog_slabs, slots, replay, .. } = recovered;
        let layers = build_layers(&slots)?;
        let volumes = build_volumes(&slots, &layers, &signal)?;
        attach_tables(&descriptors, &layers)?;
        let doomed = slots
            .iter()
            .filter_map(|slot| match slot {
                Slot::Layer(record) if record.kind == LayerKind::Doomed => Some(record.id),
                _ => None,
            })
            .collect();
        let alloc = Allocator::new(descriptors);
        let pages = replay_pages(&*disk, &replay, &alloc, &layers, &doomed)?;
        let ring =
            Ring { offset: superblock.journal_offset, len: superblock.journal_len, tail: replay.end, head: replay.end };
        let mut state = State::new(Opened { superblock, slots, catalog_slabs, alloc, layers, volumes, ring });
        state.homes.pages = pages;
        state.homes.descriptors = replay.descriptors.keys().map(|slab| slab.0 / 128).collect();
        state.homes.slots = replay.slots.keys().map(|slot| slot.0 / PER_PAGE).collect();
        let container = Container { shared: Arc::new(Shared::new(disk, mode, state, signal)) };
        if mode == OpenMode::ReadWrite {
            container.take_over()?;
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
