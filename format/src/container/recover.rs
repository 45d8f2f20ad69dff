//! Reading the metadata of a container as it is after replay.
//!
//! Invariant (JNL-10): replay builds the final state in memory; only complete batches of the expected chain count
//! (JNL-4). Does not: write, build the runtime structures (`open`), or trust any byte.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::create::JOURNAL_SLAB;
use super::ring::Position;
use crate::alloc::DESCRIPTOR_SLAB;
use crate::disk::Disk;
use crate::error::{Corruption, Error, Place, Result};
use crate::layout::descriptor::{self, Descriptor};
use crate::layout::entry::RawEntry;
use crate::layout::record::{self, Item};
use crate::layout::slot::{self, ContainerRecord, PER_PAGE, PER_SLAB, Slot};
use crate::layout::superblock::{self, Superblock, Unusable};
use crate::layout::{Bad, superblock::OFFSETS};
use crate::units::{ChunkNo, LayerId, MAX_NEXT_ID, PAGE_LEN, SLAB_LEN, SLABS_PER_GROUP, SlabNo, SlotNo};

/// Metadata as it is after replay, decoded but not yet checked against itself.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) superblock: Superblock,
    pub(super) descriptors: Vec<Descriptor>,
    pub(super) bad_descriptors: Vec<(SlabNo, Bad)>,
    pub(super) catalog_slabs: Vec<SlabNo>,
    pub(super) slots: Vec<Slot>,
    pub(super) bad_slots: Vec<(SlotNo, Bad)>,
    pub(super) replay: Replay,
}

/// What the journal says, newest value of each thing.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) descriptors: BTreeMap<SlabNo, [u8; descriptor::LEN]>,
    pub(super) slots: BTreeMap<SlotNo, Box<[u8; slot::LEN]>>,
    pub(super) entries: BTreeMap<(LayerId, ChunkNo), RawEntry>,
    /// New pages, and whether their entries began as zero entries.
    pub(super) fresh: HashMap<(LayerId, u32, u8), bool>,
    pub(super) end: Position,
}

pub(super) fn read(disk: &dyn Disk, len: usize, offset: u64) -> Result<Vec<u8>> {
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
pub(super) fn read_container(disk: &dyn Disk) -> Result<Recovered> {
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
        let mut slabs = file_len / SLAB_LEN;
        if let Some(last) = self.replay.descriptors.keys().next_back().filter(|slab| slab.0 >= slabs) {
            return Err(Error::Truncated {
                found: file_len,
                expected: last.0.saturating_add(1).saturating_mul(SLAB_LEN),
            });
        }
        let mut first = 0;
        while slabs - first > DESCRIPTOR_SLAB {
            let count = (slabs - first).min(SLABS_PER_GROUP);
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
            if first == 0 {
                // A file may be made of holes and as long as can be: what the container does not use is not looked at.
                slabs = slabs.min(self.slabs_in_use(disk)?.unwrap_or(SLABS_PER_GROUP));
            }
            // Nor is what follows a group that was never one: each slab looked at takes memory.
            self.check_own_descriptor(SlabNo(first + DESCRIPTOR_SLAB))?;
            first = (first + SLABS_PER_GROUP).min(slabs);
        }
        Ok(())
    }

    /// The number of slabs that the container record tells; `None` if it is damaged, which is told of later.
    fn slabs_in_use(&self, disk: &dyn Disk) -> Result<Option<u64>> {
        let first = |found: &Descriptor| matches!(found, Descriptor::Catalog { index: 0, .. });
        // Creation puts the first catalog slab into the first group, and nothing moves it.
        let Some(slab) = self.descriptors.iter().position(first) else {
            return Ok(None);
        };
        let home = read(disk, PAGE_LEN, SlabNo(slab as u64).offset())?;
        let raw = self.replay.slots.get(&SlotNo(0)).map_or(&home[..slot::LEN], |image| image.as_slice());
        match Slot::decode(raw, self.superblock.uuid, SlotNo(0)) {
            Ok(Slot::Container(record)) => Ok(Some(record.slab_count)),
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// The slab with a group's descriptors must be described as the container's own (CON-13).
    fn check_own_descriptor(&self, slab: SlabNo) -> Result<()> {
        let place = Place::Slab(slab);
        if let Some((_, bad)) = self.bad_descriptors.iter().rev().find(|(damaged, _)| *damaged == slab) {
            return Err(bad.clone().at("slab descriptor", place).into());
        }
        match self.descriptors.get(slab.0 as usize) {
            Some(Descriptor::Reserved) => Ok(()),
            found => {
                Err(Bad::new("CON-13", format!("{found:?}"), "a reserved slab").at("slab descriptor", place).into())
            }
        }
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
                || whole == 0
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

    /// Whether whoever had the container open last has not closed it (VOL-44).
    pub(super) fn is_unclean(&self) -> bool {
        !self.superblock.clean || self.replay.end.sequence != self.superblock.tail_sequence
    }

    /// The container's counters, from slot 0.
    pub(super) fn counters(&self) -> Result<ContainerRecord> {
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
        let slab_count = match self.counters() {
            Ok(counters) => counters.slab_count,
            // Damage is told as such, by who asked.
            Err(_) if !self.bad_slots.is_empty() || !self.bad_descriptors.is_empty() => return Ok(()),
            Err(error) => return Err(error),
        };
        if slab_count > self.descriptors.len() as u64 {
            return Err(Error::Truncated { found: file_len, expected: slab_count.saturating_mul(SLAB_LEN) });
        }
        // What the file has beyond has never counted (CON-14).
        self.descriptors.truncate(slab_count as usize);
        self.bad_descriptors.retain(|(slab, _)| slab.0 < slab_count);
        Ok(())
    }

    /// The container's own slabs must be described as such, else the allocator or an entry could name them (CON-13).
    pub(super) fn check_reserved(&self) -> Result<()> {
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
    pub(super) fn check_ids(&self, next_id: u64) -> Result<()> {
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
                Slot::Region(record) => record.id.0,
                Slot::Relation(record) => {
                    // It names what others are, and volumes that are gone, but none that is to come.
                    let ids = record.volumes.into_iter().flat_map(|pair| [pair.secondary, pair.primary]);
                    match ids.into_iter().find(|id| id.0 >= next_id) {
                        None => continue,
                        Some(id) => {
                            let bad = Bad::new("LAY-1", format!("volume {id}, next {next_id}"), "an id below the next");
                            return Err(bad.at("relation", Place::Slot(number)).into());
                        }
                    }
                }
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
        // A slab of a layer that is yet to come would be taken for the layer's own.
        let owners = self.descriptors.iter().zip(0u64..).filter_map(|(found, slab)| Some((found.layer()?, slab)));
        match owners.into_iter().find(|(layer, _)| layer.0 == 0 || layer.0 >= next_id) {
            Some((layer, slab)) => {
                let bad =
                    Bad::new("LAY-1", format!("a slab of layer {layer}, next id {next_id}"), "an id below the next");
                Err(bad.at("slab descriptor", Place::Slab(SlabNo(slab))).into())
            }
            None => Ok(()),
        }
    }

    /// Counters that only grow must have room to, or what is written could not be opened again.
    pub(super) fn check_room_to_count(&self) -> Result<()> {
        let counters = [self.superblock.sequence, self.superblock.generation, self.replay.end.sequence];
        let used_up =
            counters.into_iter().chain([self.counters()?.next_id]).find(|counter| *counter >= MAX_NEXT_ID / 2);
        match used_up {
            Some(counter) => {
                let bad = Bad::new("CON-18", counter, "a counter below 2^62");
                Err(bad.at("superblock or container record", Place::Offset(0)).into())
            }
            None => Ok(()),
        }
    }

    /// The first damaged structure, for callers that accept none.
    pub(super) fn first_bad(&self) -> Option<Corruption> {
        let descriptor = self.bad_descriptors.first();
        let slot = self.bad_slots.first();
        descriptor
            .map(|(slab, bad)| bad.clone().at("slab descriptor", Place::Slab(*slab)))
            .or_else(|| slot.map(|(slot, bad)| bad.clone().at("catalog slot", Place::Slot(slot.0))))
    }
}
