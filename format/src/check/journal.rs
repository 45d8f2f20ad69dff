//! The checker's own reading of the journal.
//!
//! Invariant: only complete batches count, and only records that continue the chain (JNL-4, JNL-16).
//! Does not: judge what the records say.

use std::collections::BTreeMap;

use super::read;
use crate::disk::Disk;
use crate::error::Result;
use crate::layout::entry::RawEntry;
use crate::layout::record::{self, Decoded, Item, Link};
use crate::layout::superblock::Superblock;
use crate::layout::{descriptor, slot};
use crate::units::{ChunkNo, LayerId, PAGE_LEN, SlabNo, SlotNo};

/// The newest value of each thing that the journal names.
#[derive(Debug)]
pub(super) struct Journal {
    pub(super) descriptors: BTreeMap<SlabNo, [u8; descriptor::LEN]>,
    pub(super) slots: BTreeMap<SlotNo, Box<[u8; slot::LEN]>>,
    pub(super) entries: BTreeMap<(LayerId, ChunkNo), RawEntry>,
    /// New pages, and whether their entries began as zero entries.
    pub(super) fresh: BTreeMap<(LayerId, u32, u8), bool>,
    pub(super) batches: u64,
    /// Where the next record would be, and its link.
    pub(super) end: Cursor,
}

/// A place in the ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor {
    /// Bytes from the ring's beginning.
    pub(super) at: u64,
    /// Bytes walked since the tail.
    pub(super) walked: u64,
    pub(super) link: Link,
}

impl Journal {
    /// Reads up to the record numbered `end`, or as far as there are records.
    pub(super) fn read(disk: &dyn Disk, superblock: &Superblock, end: Option<u64>) -> Result<Self> {
        let link = Link {
            uuid: superblock.uuid,
            generation: superblock.generation,
            sequence: superblock.tail_sequence,
            prev_crc: superblock.tail_prev_crc,
        };
        let mut cursor = Cursor { at: superblock.tail_offset, walked: 0, link };
        let mut journal = Self {
            descriptors: BTreeMap::new(),
            slots: BTreeMap::new(),
            entries: BTreeMap::new(),
            fresh: BTreeMap::new(),
            batches: 0,
            end: cursor,
        };
        let mut batch = Vec::new();
        while end.is_none_or(|end| cursor.link.sequence < end)
            && let Some((found, next)) = next_record(disk, superblock, cursor)?
        {
            cursor = next;
            batch.extend(found.items);
            if found.last {
                batch.drain(..).for_each(|item| journal.apply(item));
                journal.batches += 1;
                journal.end = cursor;
            }
        }
        Ok(journal)
    }

    pub(super) fn apply(&mut self, item: Item) {
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

/// The record at the cursor, or at the ring's beginning where it did not fit before the end (JNL-15).
fn next_record(disk: &dyn Disk, superblock: &Superblock, cursor: Cursor) -> Result<Option<(Decoded, Cursor)>> {
    let ring_len = superblock.journal_len;
    let to_end = ring_len - cursor.at;
    let here = (cursor.at < ring_len).then_some((cursor.at, 0));
    for (at, skipped) in here.into_iter().chain([(0, to_end)]) {
        let walked = cursor.walked + skipped;
        let room = ring_len.saturating_sub(walked).min(ring_len - at);
        if room < PAGE_LEN as u64 {
            continue;
        }
        let page = read(disk, PAGE_LEN, superblock.journal_offset + at)?;
        let Some(len) = record::peek_len(&page, cursor.link).filter(|&len| len as u64 <= room) else {
            continue;
        };
        if let Some(found) = record::decode(&read(disk, len, superblock.journal_offset + at)?) {
            let link = Link { sequence: cursor.link.sequence.wrapping_add(1), prev_crc: found.crc, ..cursor.link };
            let next = Cursor { at: at + len as u64, walked: walked + len as u64, link };
            return Ok(Some((found, next)));
        }
    }
    Ok(None)
}
