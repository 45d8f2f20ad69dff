//! The container as it is and as it shall be: metadata in memory, with the changes made to it so far.
//!
//! Invariant: every change goes through a method here, which keeps it for the batch that makes it durable.
//! Does not: decide what is right (`catalog`, `entries`), or write (`steps`).

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::check::finding::CheckReport;
use crate::check::journal::Journal;
use crate::check::metadata::{DESCRIPTOR_SLAB, JOURNAL_SLAB, read_superblock};
use crate::check::read;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::layout::descriptor::{self, Descriptor};
use crate::layout::entry::RawEntry;
use crate::layout::record::Item;
use crate::layout::slot::{self, ContainerRecord, LayerRecord, PER_PAGE, PER_SLAB, Slot, VolumeRecord};
use crate::layout::superblock::Superblock;
use crate::units::{ChunkNo, LayerId, PAGE_LEN, PAGES_PER_SLAB, SLAB_LEN, SLABS_PER_GROUP, SlabNo, SlotNo};

/// Counters from here on are not opened for writing (CON-18).
pub(super) const MAX_COUNT: u64 = 1 << 62;

/// Groups of the container without descriptors that a repair puts up with: each costs memory.
const UNDESCRIBED_GROUPS: u32 = 4;

/// Bytes of a layer that cannot be known any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LostInLayer {
    pub(super) layer: LayerId,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// Metadata, journal over homes, changes over both.
pub(super) struct Draft<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) superblock: Superblock,
    pub(super) journal: Journal,
    /// One for each slab of the container; `None` where it is damaged.
    pub(super) descriptors: Vec<Option<Descriptor>>,
    /// `None` where it is damaged.
    pub(super) slots: BTreeMap<SlotNo, Option<Slot>>,
    pub(super) catalog: Vec<SlabNo>,
    pub(super) new_descriptors: BTreeMap<SlabNo, Descriptor>,
    pub(super) new_slots: BTreeMap<SlotNo, Slot>,
    pub(super) new_entries: BTreeMap<(LayerId, ChunkNo), RawEntry>,
    /// Pages of tables that are made new.
    pub(super) new_fresh: BTreeSet<(LayerId, u32, u8)>,
    /// Damaged tag records, by byte offset: they become zeros.
    pub(super) dropped_tags: BTreeSet<u64>,
    /// Pages of tags that cannot be read as a whole.
    pub(super) unread_tags: BTreeSet<u64>,
    /// Layers that were frozen, or may have been, and are heads now: tags of theirs count for nothing any more (TAG-4).
    pub(super) thawed: BTreeSet<LayerId>,
    /// Items of the journal were left out.
    pub(super) journal_pruned: bool,
    pub(super) lost: BTreeSet<LostInLayer>,
    /// Slabs whose contents may be the only copy of something that was lost.
    pub(super) kept: BTreeSet<SlabNo>,
    /// Which layer belongs to which volume, or below which layer, is not known everywhere any more.
    pub(super) links_lost: bool,
    /// How many entries of unknown slabs were held against tables that they may be of.
    pub(super) tries: u64,
}

/// Why a container cannot be repaired, if it is not an error of the disk.
pub(super) fn impossible(why: impl Into<String>) -> Error {
    Error::CannotRepair { why: why.into() }
}

impl<'a> Draft<'a> {
    /// Reads what can be read; what is damaged stays unknown.
    pub(super) fn read(disk: &'a dyn Disk) -> Result<Self> {
        let file_len = disk.len().map_err(Error::io("cannot read the container's length"))?;
        let superblock = read_superblock(disk, file_len, &mut CheckReport::default())?;
        if superblock.ro_compat != 0 {
            return Err(Error::ReadOnlyFeatures { bits: superblock.ro_compat });
        }
        let journal = Journal::read(disk, &superblock, None)?;
        if [superblock.sequence, superblock.generation, journal.end.link.sequence]
            .iter()
            .any(|count| *count >= MAX_COUNT - 16)
        {
            return Err(impossible("its counters are used up (CON-18)"));
        }
        let mut draft = Self {
            disk,
            superblock,
            journal,
            descriptors: Vec::new(),
            slots: BTreeMap::new(),
            catalog: Vec::new(),
            new_descriptors: BTreeMap::new(),
            new_slots: BTreeMap::new(),
            new_entries: BTreeMap::new(),
            new_fresh: BTreeSet::new(),
            dropped_tags: BTreeSet::new(),
            unread_tags: BTreeSet::new(),
            thawed: BTreeSet::new(),
            journal_pruned: false,
            lost: BTreeSet::new(),
            kept: BTreeSet::new(),
            links_lost: false,
            tries: 0,
        };
        draft.read_descriptors(file_len / SLAB_LEN)?;
        Ok(draft)
    }

    fn read_descriptors(&mut self, slabs: u64) -> Result<()> {
        let mut undescribed = 0;
        for first in (0..slabs).step_by(SLABS_PER_GROUP as usize) {
            let count = (slabs - first).min(SLABS_PER_GROUP);
            if count <= DESCRIPTOR_SLAB {
                break;
            }
            let len = (count as usize * descriptor::LEN).next_multiple_of(PAGE_LEN);
            let own = SlabNo(first + DESCRIPTOR_SLAB);
            let bytes = read(self.disk, len, own.offset())?;
            let described =
                bytes[DESCRIPTOR_SLAB as usize * descriptor::LEN..][..descriptor::LEN].iter().any(|&b| b != 0);
            if first > 0 && !described && !self.journal.descriptors.contains_key(&own) {
                // A file may be made of holes and as long as can be: its surplus is not looked at (CON-19).
                if first >= self.counted_slabs()? {
                    break;
                }
                undescribed += 1;
                if undescribed > UNDESCRIBED_GROUPS {
                    return Err(impossible("the descriptors of many groups are gone (CHK-3)"));
                }
            }
            for (raw, slab) in bytes.chunks_exact(descriptor::LEN).zip(first..first + count) {
                let slab = SlabNo(slab);
                let raw = self.journal.descriptors.get(&slab).map_or(raw, |image| image.as_slice());
                self.descriptors.push(Descriptor::decode(raw, self.superblock.uuid, slab).ok());
            }
        }
        Ok(())
    }

    /// Slabs that the container record counts; none if it cannot be read yet.
    fn counted_slabs(&self) -> Result<u64> {
        let first = |found: &Option<Descriptor>| matches!(found, Some(Descriptor::Catalog { index: 0, .. }));
        let Some(slab) = self.descriptors.iter().position(first) else {
            return Ok(0);
        };
        let home = read(self.disk, slot::LEN, SlabNo(slab as u64).offset())?;
        let raw = self.journal.slots.get(&SlotNo(0)).map_or(home.as_slice(), |image| image.as_slice());
        Ok(match Slot::decode(raw, self.superblock.uuid, SlotNo(0)) {
            Ok(Slot::Container(record)) => record.slab_count,
            Ok(_) | Err(_) => 0,
        })
    }

    /// The catalog's slots, as the descriptors describe it.
    pub(super) fn read_catalog(&mut self) -> Result<()> {
        let mut slabs = BTreeMap::new();
        for (found, slab) in self.descriptors.iter().zip(0..) {
            if let Some(Descriptor::Catalog { index, pages }) = *found
                && slabs.insert(index, (SlabNo(slab), pages)).is_some()
            {
                return Err(impossible(format!("two slabs are described as catalog slab {index} (CHK-5)")));
            }
        }
        let count = slabs.len();
        for ((index, (slab, pages)), expected) in slabs.into_iter().zip(0u32..) {
            let whole = u64::from(pages.trailing_ones());
            let unbroken = whole == PAGES_PER_SLAB || pages == (1 << whole) - 1;
            let last = expected as usize + 1 == count;
            if index != expected || !unbroken || whole == 0 || (whole < PAGES_PER_SLAB && !last) {
                return Err(impossible(format!("the catalog is not in one piece at its slab {expected} (CHK-5)")));
            }
            self.catalog.push(slab);
            let bytes = read(self.disk, whole as usize * PAGE_LEN, slab.offset())?;
            for (raw, number) in bytes.chunks_exact(slot::LEN).zip(index * PER_SLAB..) {
                let number = SlotNo(number);
                let raw = self.journal.slots.get(&number).map_or(raw, |image| image.as_slice());
                let found = Slot::decode(raw, self.superblock.uuid, number).ok();
                self.slots.insert(number, found);
            }
        }
        if self.catalog.is_empty() {
            return Err(impossible("no slab is described as catalog (CHK-5)"));
        }
        Ok(())
    }

    pub(super) fn uuid(&self) -> Uuid {
        self.superblock.uuid
    }

    /// Byte offset of a slab's descriptor.
    pub(super) fn descriptor_offset(slab: SlabNo) -> u64 {
        let group = slab.0 / SLABS_PER_GROUP * SLABS_PER_GROUP;
        SlabNo(group + DESCRIPTOR_SLAB).offset() + slab.0 % SLABS_PER_GROUP * descriptor::LEN as u64
    }

    pub(super) fn slot_offset(&self, number: SlotNo) -> Option<u64> {
        let slab = self.catalog.get((number.0 / PER_SLAB) as usize)?;
        Some(slab.offset() + u64::from(number.0 % PER_SLAB) * slot::LEN as u64)
    }

    pub(super) fn raw_descriptor(&self, slab: SlabNo) -> Result<Vec<u8>> {
        if let Some(image) = self.journal.descriptors.get(&slab) {
            return Ok(image.to_vec());
        }
        let offset = Self::descriptor_offset(slab);
        let within = (offset % PAGE_LEN as u64) as usize;
        let page = read(self.disk, PAGE_LEN, offset - within as u64)?;
        Ok(page[within..within + descriptor::LEN].to_vec())
    }

    pub(super) fn raw_slot(&self, number: SlotNo) -> Result<Vec<u8>> {
        match (self.journal.slots.get(&number), self.slot_offset(number)) {
            (Some(image), _) => Ok(image.to_vec()),
            (None, Some(offset)) => read(self.disk, slot::LEN, offset),
            (None, None) => Ok(vec![0; slot::LEN]),
        }
    }

    /// Whether the slab is the container's own (CON-13).
    pub(super) fn must_be_reserved(&self, slab: SlabNo) -> bool {
        let journal_end = JOURNAL_SLAB + self.superblock.journal_len / SLAB_LEN;
        slab.0 < journal_end || slab.0 % SLABS_PER_GROUP == DESCRIPTOR_SLAB
    }

    pub(super) fn describe(&mut self, slab: SlabNo, content: Descriptor) {
        if let Some(found) = self.descriptors.get_mut(slab.0 as usize) {
            *found = Some(content);
            self.new_descriptors.insert(slab, content);
        }
    }

    pub(super) fn set_slot(&mut self, number: SlotNo, content: Slot) {
        self.new_slots.insert(number, content.clone());
        self.slots.insert(number, Some(content));
    }

    pub(super) fn set_entry(&mut self, layer: LayerId, chunk: ChunkNo, content: RawEntry) {
        self.new_entries.insert((layer, chunk), content);
    }

    /// Notes that these bytes of a layer read as zeros from now on, whatever they were.
    pub(super) fn lose(&mut self, layer: LayerId, start: u64, end: u64) {
        self.lost.insert(LostInLayer { layer, start, end });
    }

    pub(super) fn counters(&self) -> Option<ContainerRecord> {
        match self.slots.get(&SlotNo(0)) {
            Some(Some(Slot::Container(record))) => Some(*record),
            _ => None,
        }
    }

    pub(super) fn new_id(&mut self) -> Result<u64> {
        let mut counters = self.counters().ok_or_else(|| impossible("the container record is lost"))?;
        let id = counters.next_id;
        counters.next_id += 1;
        self.set_slot(SlotNo(0), Slot::Container(counters));
        Ok(id)
    }

    /// A free slot, in a new page of the catalog if there is room in its last slab.
    pub(super) fn free_slot(&mut self) -> Result<SlotNo> {
        let free = |(number, slot): (&SlotNo, &Option<Slot>)| (*slot == Some(Slot::Free)).then_some(*number);
        if let Some(number) = self.slots.iter().find_map(free) {
            return Ok(number);
        }
        let first = self.slots.len() as u32;
        let index = first / PER_SLAB;
        let slab = self.catalog.get(index as usize).copied();
        let slab = slab.ok_or_else(|| impossible("the catalog has no free slot for what is to be rebuilt"))?;
        let page = first % PER_SLAB / PER_PAGE;
        let pages = if page == 63 { !0 } else { (1u64 << (page + 1)) - 1 };
        self.describe(slab, Descriptor::Catalog { index, pages });
        // All eight, so that the page's older bytes count for nothing (CAT-7).
        for number in first..first + PER_PAGE {
            self.set_slot(SlotNo(number), Slot::Free);
        }
        Ok(SlotNo(first))
    }

    pub(super) fn volumes(&self) -> Vec<(SlotNo, VolumeRecord)> {
        let volume = |(number, slot): (&SlotNo, &Option<Slot>)| match slot {
            Some(Slot::Volume(record)) => Some((*number, record.clone())),
            _ => None,
        };
        self.slots.iter().filter_map(volume).collect()
    }

    pub(super) fn layers(&self) -> BTreeMap<LayerId, (SlotNo, LayerRecord)> {
        let layer = |(number, slot): (&SlotNo, &Option<Slot>)| match slot {
            Some(Slot::Layer(record)) => Some((record.id, (*number, record.clone()))),
            _ => None,
        };
        self.slots.iter().filter_map(layer).collect()
    }

    /// Reads superblock and journal anew, after the journal has gone home.
    pub(super) fn start_over(&mut self) -> Result<()> {
        let file_len = self.disk.len().map_err(Error::io("cannot read the container's length"))?;
        self.superblock = read_superblock(self.disk, file_len, &mut CheckReport::default())?;
        self.journal = Journal::read(self.disk, &self.superblock, None)?;
        self.journal.fresh.extend(self.new_fresh.iter().map(|&page| (page, false)));
        Ok(())
    }

    /// The changes as a batch of absolute values.
    pub(super) fn items(&self) -> Vec<Item> {
        let id = self.uuid();
        let fresh = self.new_fresh.iter();
        let fresh = fresh.map(|&(layer, table, page)| Item::FreshPage { layer, table, page, zero: false });
        let entries = self.new_entries.iter().map(|(&(layer, chunk), entry)| Item::Entry {
            layer,
            chunk,
            slab: entry.slab,
            d: entry.d,
            z: entry.z,
        });
        let descriptors = self
            .new_descriptors
            .iter()
            .map(|(&slab, content)| Item::Descriptor { slab, image: content.encode(id, slab) });
        let slots = self.new_slots.iter().map(|(&slot, content)| Item::Slot { slot, image: content.encode(id, slot) });
        fresh.chain(entries).chain(descriptors).chain(slots).collect()
    }
}

/// What the bytes were before a single bit of them was turned over, if just one such reading is valid: a checksum of 32
/// bits tells any two bits apart in structures as short as these.
pub(super) fn turn_back<T>(raw: &[u8], decode: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    let mut bytes = raw.to_vec();
    let mut found = None;
    for bit in 0..raw.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Some(value) = decode(&bytes)
            && found.replace(value).is_some()
        {
            return None;
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    found
}
