//! Tables and chunk entries against descriptors, both ways.
//!
//! Invariant: only initialised pages of live layers are read, journal values over homes (MAP-6, JNL-10, LAY-10).
//! Does not: read guest data.

use std::collections::{BTreeMap, HashSet};

use bitvec::vec::BitVec;

use super::catalog::Catalog;
use super::finding::{
    BEYOND_SIZE, CheckReport, ENTRY, ENTRY_SLAB, JOURNAL, ORPHAN, SHARED_SLAB, TABLE, UNREACHED_DATA,
};
use super::metadata::{Metadata, describe};
use super::read;
use crate::disk::Disk;
use crate::error::{Place, Result};
use crate::layout::descriptor::Descriptor;
use crate::layout::entry::{self, RawEntry};
use crate::units::{
    BLOCK_LEN, BlockMask, ChunkNo, ENTRIES_PER_PAGE, ENTRIES_PER_TABLE, LayerId, PAGE_LEN, PAGES_PER_SLAB, SLAB_LEN,
    SlabNo, mask_of,
};

/// A table of a live layer.
#[derive(Debug, Clone, Copy)]
struct Table {
    layer: LayerId,
    /// Bytes of the layer.
    size: u64,
    index: u32,
    slab: SlabNo,
    pages: u64,
}

#[derive(Debug)]
struct Walk<'a> {
    metadata: &'a Metadata,
    catalog: &'a Catalog<'a>,
    report: &'a mut CheckReport,
    tables: BTreeMap<(LayerId, u32), Table>,
    /// Slabs that some entry names.
    named: BitVec,
    /// Slabs that the entry of their own chunk names.
    reached: BitVec,
    /// Entries that cannot be read, so that what they name is not known.
    unreadable: HashSet<(LayerId, ChunkNo)>,
    blind: bool,
}

/// Checks every table and entry, then looks for slabs that no entry reaches.
pub(super) fn check(
    disk: &dyn Disk,
    metadata: &Metadata,
    catalog: &Catalog<'_>,
    report: &mut CheckReport,
) -> Result<()> {
    let slabs = metadata.descriptors.len();
    let mut walk = Walk {
        metadata,
        catalog,
        report,
        tables: BTreeMap::new(),
        named: BitVec::repeat(false, slabs),
        reached: BitVec::repeat(false, slabs),
        unreadable: HashSet::new(),
        blind: metadata.blind,
    };
    walk.collect_tables();
    walk.check_journal();
    let tables = std::mem::take(&mut walk.tables);
    for table in tables.values() {
        walk.check_table(disk, table)?;
    }
    if !walk.blind {
        walk.check_reached();
    }
    Ok(())
}

impl Walk<'_> {
    fn collect_tables(&mut self) {
        for (found, slab) in self.metadata.descriptors.iter().zip(0..) {
            let Some(Descriptor::Table { layer, index, pages, .. }) = *found else {
                continue;
            };
            let Some(record) = self.catalog.live(layer) else {
                continue;
            };
            let slab = SlabNo(slab);
            let limit = record.size.div_ceil(ENTRIES_PER_TABLE * SLAB_LEN);
            let complaint = if u64::from(index) >= limit {
                Some(format!("table {index} of layer {layer}, whose size needs {limit}"))
            } else {
                self.tables
                    .get(&(layer, index))
                    .map(|other| format!("table {index} of layer {layer} is also in slab {}", other.slab))
            };
            if let Some(message) = complaint {
                self.blind = true;
                self.report.add(TABLE, Place::Slab(slab).to_string(), message, "MAP-2");
            } else {
                self.tables.insert((layer, index), Table { layer, size: record.size, index, slab, pages });
            }
        }
        self.report.tables_checked = self.tables.len() as u64;
    }

    /// Items for pages that their live layer does not have.
    fn check_journal(&mut self) {
        let journal = &self.metadata.journal;
        let fresh = journal.fresh.keys().map(|&(layer, table, page)| (layer, table, u32::from(page)));
        let entries = journal.entries.keys().map(|&(layer, chunk)| (layer, chunk.table(), chunk.page() as u32));
        let mut missing: Vec<(LayerId, u32, u32)> = fresh
            .chain(entries)
            .filter(|&(layer, table, page)| {
                let pages = self.tables.get(&(layer, table)).map_or(0, |table| table.pages);
                let present = u64::from(page) < PAGES_PER_SLAB && pages >> page & 1 == 1;
                self.catalog.live(layer).is_some() && !present
            })
            .collect();
        missing.sort_unstable();
        missing.dedup();
        for (layer, table, page) in missing {
            let message = "the journal has values for a page that the layer does not have".to_owned();
            self.report.add(JOURNAL, format!("layer {layer} table {table} page {page}"), message, "JNL-10");
        }
    }

    fn check_table(&mut self, disk: &dyn Disk, table: &Table) -> Result<()> {
        let mut page = 0u64;
        while page < PAGES_PER_SLAB {
            let run = u64::from((table.pages >> page).trailing_ones()).min(PAGES_PER_SLAB - page);
            if run == 0 {
                page += 1;
                continue;
            }
            let offset = table.slab.offset() + page * PAGE_LEN as u64;
            let bytes = read(disk, run as usize * PAGE_LEN, offset)?;
            for (home, page) in bytes.chunks_exact(PAGE_LEN).zip(page..) {
                self.check_page(table, page, home);
            }
            page += run;
        }
        Ok(())
    }

    fn check_page(&mut self, table: &Table, page: u64, home: &[u8]) {
        let first = u64::from(table.index) * ENTRIES_PER_TABLE + page * ENTRIES_PER_PAGE;
        let fresh = self.metadata.journal.fresh.get(&(table.layer, table.index, page as u8));
        for (raw, chunk) in home.chunks_exact(entry::LEN).zip(first..) {
            let chunk = ChunkNo(chunk as u32);
            self.report.entries_checked += 1;
            let found = match self.metadata.journal.entries.get(&(table.layer, chunk)) {
                Some(newer) => Ok(*newer),
                None if let Some(&zero) = fresh => Ok(RawEntry { z: if zero { !0 } else { 0 }, ..RawEntry::default() }),
                None => RawEntry::decode(raw, table.layer, chunk),
            };
            match found {
                Ok(found) => self.check_entry(table, chunk, found),
                Err(bad) => {
                    self.unreadable.insert((table.layer, chunk));
                    let place = Place::Chunk(table.layer, chunk).to_string();
                    self.report.add(ENTRY, place, describe("chunk entry", &bad), bad.rule);
                }
            }
        }
    }

    fn check_entry(&mut self, table: &Table, chunk: ChunkNo, found: RawEntry) {
        let place = || Place::Chunk(table.layer, chunk).to_string();
        if (found.d == 0) != (found.slab.0 == 0) {
            self.unreadable.insert((table.layer, chunk));
            let message = format!("slab {} with D {:#x}", found.slab, found.d);
            self.report.add(ENTRY, place(), message, "MAP-3");
            return;
        }
        if found.d == 0 {
            return;
        }
        let beyond = found.d & !inside(table.size, chunk);
        if beyond != 0 {
            let message = format!("blocks {beyond:#x} have data beyond the layer's {} bytes", table.size);
            self.report.add(BEYOND_SIZE, place(), message, "MAP-14");
        }
        let index = found.slab.0 as usize;
        let Some(described) = self.metadata.descriptors.get(index) else {
            let message = format!("slab {} lies outside the container", found.slab);
            self.report.add(ENTRY_SLAB, place(), message, "MAP-5");
            return;
        };
        match described {
            Some(Descriptor::Data { layer, index: owner, .. }) if *layer == table.layer && *owner == chunk.0 => {
                self.reached.set(index, true);
            }
            Some(other) => {
                let message = format!("slab {} is described as {other:?}", found.slab);
                self.report.add(ENTRY_SLAB, place(), message, "MAP-5");
            }
            // The damaged descriptor has been reported.
            None => {}
        }
        if self.named.replace(index, true) {
            let message = format!("slab {} is named by another entry too", found.slab);
            self.report.add(SHARED_SLAB, place(), message, "MAP-12");
        }
    }

    /// Slabs of layers that nothing leads to.
    fn check_reached(&mut self) {
        for (found, slab) in self.metadata.descriptors.iter().zip(0u64..) {
            let Some(layer) = found.and_then(Descriptor::layer) else {
                continue;
            };
            let place = Place::Slab(SlabNo(slab)).to_string();
            let Some((_, _)) = self.catalog.layers.get(&layer) else {
                self.report.leaked_slabs += 1;
                let message = format!("belongs to layer {layer}, which does not exist");
                self.report.add(ORPHAN, place, message, "LAY-10");
                continue;
            };
            if self.catalog.unreached.contains(&layer) {
                self.report.leaked_slabs += 1;
                continue;
            }
            if let Some(Descriptor::Data { index, .. }) = *found
                && self.catalog.live(layer).is_some()
                && !self.reached[slab as usize]
                && !self.unreadable.contains(&(layer, ChunkNo(index)))
            {
                self.report.leaked_slabs += 1;
                let message = format!("described as chunk {index} of layer {layer}, whose entry does not name it");
                self.report.add(UNREACHED_DATA, place, message, "MAP-9");
            }
        }
    }
}

/// Blocks of the chunk that lie, at least in part, within `size` bytes.
fn inside(size: u64, chunk: ChunkNo) -> BlockMask {
    mask_of(0, size.saturating_sub(chunk.start()).div_ceil(BLOCK_LEN).min(64))
}
