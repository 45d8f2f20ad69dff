//! Writing a draft's changes, such that a crash at any write leaves the container as it was or as it shall be.
//!
//! Order (CHK-30): one batch behind the journal's last, which a crash leaves whole or without effect; then the homes of all
//! that the journal says; then the superblocks, with a new generation and an empty journal. Each step ends with a sync.

use std::collections::BTreeMap;

use super::draft::{Draft, impossible};
use super::entries::table_page;
use crate::check::journal::Cursor;
use crate::check::read;
use crate::disk::read_what_can_be;
use crate::error::Result;
use crate::layout::descriptor;
use crate::layout::record::{self, Item};
use crate::layout::slot::{self, PER_PAGE};
use crate::layout::superblock::{OFFSETS, Superblock};
use crate::layout::tags;
use crate::units::PAGE_LEN;

/// Writes of whole pages, to be followed by a sync.
pub(super) type Step = Vec<(u64, Vec<u8>)>;

/// Which superblock copy counts now.
fn current_copy(draft: &Draft<'_>) -> Result<usize> {
    for (copy, offset) in OFFSETS.into_iter().enumerate() {
        let found = Superblock::decode(&read(draft.disk, PAGE_LEN, offset)?, copy);
        if found.is_ok_and(|found| found == draft.superblock) {
            return Ok(copy);
        }
    }
    Ok(0)
}

/// The batch of all changes, behind the journal's last.
pub(super) fn append(draft: &Draft<'_>) -> Result<(Step, Cursor)> {
    let items = draft.items();
    let (ring, ring_len) = (draft.superblock.journal_offset, draft.superblock.journal_len);
    let most = (record::MAX_LEN as u64).min(ring_len / 4) as usize;
    let mut step = Step::new();
    let mut cursor = draft.journal.end;
    let mut rest: &[Item] = &items;
    while !rest.is_empty() {
        let mut bytes = record::LEN;
        let fits = |item: &&Item| {
            bytes += item.encoded_len();
            bytes <= most
        };
        let (now, later) = rest.split_at(rest.iter().take_while(fits).count());
        rest = later;
        let (encoded, crc) = record::encode(cursor.link, now, rest.is_empty());
        let len = encoded.len() as u64;
        if cursor.at + len > ring_len {
            cursor.walked += ring_len - cursor.at;
            cursor.at = 0;
        }
        if cursor.walked + len > ring_len {
            return Err(impossible("its journal has no room for so many changes"));
        }
        step.push((ring + cursor.at, encoded));
        cursor.at += len;
        cursor.walked += len;
        cursor.link.sequence += 1;
        cursor.link.prev_crc = crc;
    }
    Ok((step, cursor))
}

/// Homes of all that the journal, with the changes over it, has a value for.
pub(super) fn homes(draft: &Draft<'_>) -> Result<Step> {
    let mut pages: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut put = |offset: u64, bytes: &[u8]| -> Result<()> {
        let within = (offset % PAGE_LEN as u64) as usize;
        let at = offset - within as u64;
        let page = match pages.entry(at) {
            std::collections::btree_map::Entry::Occupied(page) => page.into_mut(),
            std::collections::btree_map::Entry::Vacant(page) => {
                let bytes = if draft.unread_tags.contains(&at) {
                    let mut bytes = vec![0; PAGE_LEN];
                    read_what_can_be(draft.disk, &mut bytes, at);
                    bytes
                } else {
                    read(draft.disk, PAGE_LEN, at)?
                };
                page.insert(bytes)
            }
        };
        page[within..within + bytes.len()].copy_from_slice(bytes);
        Ok(())
    };
    for (&slab, image) in &draft.journal.descriptors {
        put(Draft::descriptor_offset(slab), image)?;
    }
    for (&slab, content) in &draft.new_descriptors {
        put(Draft::descriptor_offset(slab), &content.encode(draft.uuid(), slab))?;
    }
    for (&number, image) in &draft.journal.slots {
        if let Some(offset) = draft.slot_offset(number) {
            put(offset, &image[..])?;
        }
    }
    for (&number, content) in &draft.new_slots {
        if let Some(offset) = draft.slot_offset(number) {
            put(offset, &content.encode(draft.uuid(), number)[..])?;
        }
    }
    for &offset in &draft.dropped_tags {
        put(offset, &[0; tags::LEN])?;
    }
    let tables = draft.tables();
    let fresh = draft.journal.fresh.keys().map(|&(layer, index, page)| (layer, index, page));
    let entries = draft.journal.entries.keys().chain(draft.new_entries.keys());
    let touched = entries.map(|&(layer, chunk)| (layer, chunk.table(), chunk.page() as u8));
    for (layer, index, page) in fresh.chain(touched).collect::<std::collections::BTreeSet<_>>() {
        if let Some(table) = tables.get(&(layer, index)).filter(|table| page < 64 && table.pages >> page & 1 == 1) {
            let at = table.slab.offset() + u64::from(page) * PAGE_LEN as u64;
            pages.insert(at, table_page(draft, layer, index, page, table.slab)?);
        }
    }
    Ok(pages.into_iter().collect())
}

/// Both superblock copies, the one that does not count now first, with an empty journal from `end` on.
pub(super) fn superblocks(draft: &Draft<'_>, end: Cursor) -> Result<[Step; 2]> {
    let current = current_copy(draft)?;
    let mut superblock = draft.superblock.clone();
    superblock.generation += 1;
    // A repair is no ordered end: who had the container open last may have lost what disposable volumes flushed (VOL-44).
    superblock.clean &= draft.journal.batches == 0;
    superblock.tail_offset = end.at % superblock.journal_len;
    superblock.tail_sequence = end.link.sequence;
    superblock.tail_prev_crc = 0;
    // Copy `sequence mod 2` is written (CON-5): the other one than counts now.
    if superblock.sequence % 2 != current as u64 {
        superblock.sequence += 1;
    }
    Ok([(); 2].map(|()| {
        superblock.sequence += 1;
        let copy = (superblock.sequence % 2) as usize;
        vec![(OFFSETS[copy], superblock.encode(copy))]
    }))
}

const _: () = assert!(descriptor::LEN * 128 == PAGE_LEN && slot::LEN * PER_PAGE as usize == PAGE_LEN);
