//! Tables, chunk entries and the descriptors of what they name.
//!
//! Invariant: a chunk whose entry cannot be told reads as zeros and is noted as lost; it never shows another chunk's data,
//! a freed slab's, or an older copy's (CHK-31). Does not: guess which blocks of a slab hold data.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bitvec::vec::BitVec;

use super::draft::{Draft, impossible, turn_back};
use crate::check::read;
use crate::disk::Disk;
use crate::error::Result;
use crate::layout::descriptor::Descriptor;
use crate::layout::entry::{self, RawEntry};
use crate::layout::slot::{LayerKind, LayerRecord, Slot};
use crate::units::{
    BLOCK_LEN, ChunkNo, ENTRIES_PER_PAGE, ENTRIES_PER_TABLE, LayerId, PAGE_LEN, PAGES_PER_SLAB, SLAB_LEN, SlabNo,
    TABLE_SPAN, mask_of,
};

/// Entries that must fit a layer and table before a slab is taken for that table.
const PROOF: usize = 8;

/// A table of a live layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pub(super) slab: SlabNo,
    pub(super) pages: u64,
    pub(super) size: u64,
}

/// What a pass over all entries has seen.
struct Seen {
    named: BitVec,
    twice: BitVec,
    reached: BitVec,
    lost: HashSet<(LayerId, ChunkNo)>,
}

/// Entries of unknown slabs that are held against the tables that they may be of, in all: half a minute of work.
const MAX_TRIES: u64 = 1 << 30;

impl Draft<'_> {
    fn live(&self) -> BTreeMap<LayerId, LayerRecord> {
        let live =
            |(id, (_, layer)): (LayerId, (_, LayerRecord))| (layer.kind != LayerKind::Doomed).then_some((id, layer));
        self.layers().into_iter().filter_map(live).collect()
    }

    /// Tables of live layers, by layer and number.
    pub(super) fn tables(&self) -> BTreeMap<(LayerId, u32), Table> {
        let live = self.live();
        let mut tables = BTreeMap::new();
        for (found, slab) in self.descriptors.iter().zip(0..) {
            if let Some(Descriptor::Table { layer, index, pages, .. }) = *found
                && let Some(record) = live.get(&layer)
                && u64::from(index) < record.size.div_ceil(TABLE_SPAN)
            {
                tables.entry((layer, index)).or_insert(Table { slab: SlabNo(slab), pages, size: record.size });
            }
        }
        tables
    }

    /// Mends all that hangs below the catalog.
    pub(super) fn mend_entries(&mut self) -> Result<()> {
        self.mend_tables()?;
        let lost = self.rebuild_tables()?;
        self.prune_journal();
        let tables = self.tables();
        let slabs = self.descriptors.len();
        let empty = || BitVec::repeat(false, slabs);
        let mut seen = Seen { named: empty(), twice: empty(), reached: empty(), lost };
        self.each_entry(&tables, |_, _, _, found, _| {
            if let Ok(found) = found
                && found.d != 0
                && (found.slab.0 as usize) < slabs
                && seen.named.replace(found.slab.0 as usize, true)
            {
                seen.twice.set(found.slab.0 as usize, true);
            }
            Ok(())
        })?;
        let mut all = Vec::new();
        self.each_entry(&tables, |layer, chunk, table, found, raw| {
            let sound = found.as_ref().is_ok_and(|found| (found.d == 0) == (found.slab.0 == 0));
            let plain = sound && found.as_ref().is_ok_and(|found| found.d == 0);
            if !plain {
                // The bytes are needed only to turn a bit back: there may be millions of sound entries.
                let raw = if found.is_err() { raw.to_vec() } else { Vec::new() };
                all.push((layer, chunk, table.size, found, raw));
            }
            Ok(())
        })?;
        let zeroed = self.zeroed_descriptor_pages(&all)?;
        for (layer, chunk, size, found, raw) in all {
            self.mend_entry((layer, chunk), size, found, &raw, &zeroed, &mut seen);
        }
        let unexplained = self.mend_rest(&seen)?;
        if unexplained || !zeroed.is_empty() {
            self.doubt_missing_tables();
        }
        Ok(())
    }

    /// Calls `visit` for each entry of initialised pages, with its home's bytes.
    fn each_entry(
        &self,
        tables: &BTreeMap<(LayerId, u32), Table>,
        mut visit: impl FnMut(LayerId, ChunkNo, &Table, std::result::Result<RawEntry, ()>, &[u8]) -> Result<()>,
    ) -> Result<()> {
        for (&(layer, index), table) in tables {
            for page in (0..PAGES_PER_SLAB).filter(|page| table.pages >> page & 1 == 1) {
                let bytes = read(self.disk, PAGE_LEN, table.slab.offset() + page * PAGE_LEN as u64)?;
                let first = u64::from(index) * ENTRIES_PER_TABLE + page * ENTRIES_PER_PAGE;
                let fresh = self.journal.fresh.get(&(layer, index, page as u8));
                for (raw, chunk) in bytes.chunks_exact(entry::LEN).zip(first as u32..) {
                    let chunk = ChunkNo(chunk);
                    let found = match (self.journal.entries.get(&(layer, chunk)), fresh) {
                        (Some(newer), _) => Ok(*newer),
                        (None, Some(&zero)) => Ok(RawEntry { z: if zero { !0 } else { 0 }, ..RawEntry::default() }),
                        (None, None) => RawEntry::decode(raw, layer, chunk).map_err(drop),
                    };
                    visit(layer, chunk, table, found, raw)?;
                }
            }
        }
        Ok(())
    }

    /// One slab for each table: the one with entries that fit, where two or none are described.
    fn mend_tables(&mut self) -> Result<()> {
        let live = self.live();
        let mut owners: BTreeMap<(LayerId, u32), SlabNo> = BTreeMap::new();
        for slab in (0..self.descriptors.len() as u64).map(SlabNo) {
            let Some(Descriptor::Table { layer, index, .. }) = self.descriptors[slab.0 as usize] else {
                continue;
            };
            let Some(record) = live.get(&layer) else {
                continue;
            };
            let loser = if u64::from(index) >= record.size.div_ceil(TABLE_SPAN) {
                Some(slab)
            } else if let Some(&other) = owners.get(&(layer, index)) {
                let better = self.fitting(slab, layer, index)?.1 > self.fitting(other, layer, index)?.1;
                if better {
                    owners.insert((layer, index), slab);
                }
                Some(if better { other } else { slab })
            } else {
                owners.insert((layer, index), slab);
                None
            };
            if let Some(loser) = loser {
                self.kept.insert(loser);
                self.describe(loser, Descriptor::Free);
            }
        }
        // Data without a table: the table's own descriptor may have become zeros, which describe a free slab.
        let missing = self.descriptors.iter().flatten().any(|found| match *found {
            Descriptor::Data { layer, index, .. } => {
                live.contains_key(&layer) && !owners.contains_key(&(layer, ChunkNo(index).table()))
            }
            _ => false,
        });
        let wanted = |found: &Option<Descriptor>| found.is_none() || (missing && *found == Some(Descriptor::Free));
        if !self.descriptors.iter().any(wanted) {
            return Ok(());
        }
        let mut named = self.named_slabs(&self.tables())?;
        for slab in (0..self.descriptors.len() as u64).map(SlabNo) {
            let at = slab.0 as usize;
            // What an entry names is data: a guest may keep bytes there that look like a table.
            if wanted(&self.descriptors[at])
                && !named[at]
                && let Some(found) = self.find_table(slab, &live, &mut owners)?
            {
                named |= self.named_slabs(&BTreeMap::from([found]))?;
            }
        }
        Ok(())
    }

    /// Slabs that an entry of one of the tables names.
    fn named_slabs(&self, tables: &BTreeMap<(LayerId, u32), Table>) -> Result<BitVec> {
        let mut named: BitVec = BitVec::repeat(false, self.descriptors.len());
        self.each_entry(tables, |_, _, _, found, _| {
            if let Ok(found) = found
                && found.d != 0
                && (found.slab.0 as usize) < named.len()
            {
                named.set(found.slab.0 as usize, true);
            }
            Ok(())
        })?;
        Ok(named)
    }

    /// A new table where one is gone that must have been there, because data or values of the journal are of its chunks:
    /// the data's chunks read as zeros, the journal's values stay, and what the other chunks held nobody knows.
    fn rebuild_tables(&mut self) -> Result<HashSet<(LayerId, ChunkNo)>> {
        let (live, tables) = (self.live(), self.tables());
        let mut gone: BTreeMap<(LayerId, u32), (Option<SlabNo>, BTreeSet<ChunkNo>)> = BTreeMap::new();
        let is_gone = |layer: LayerId, chunk: ChunkNo| {
            live.get(&layer).is_some_and(|record| chunk.start() < record.size)
                && !tables.contains_key(&(layer, chunk.table()))
        };
        for (found, slab) in self.descriptors.iter().zip(0..) {
            if let Some(Descriptor::Data { layer, index, .. }) = *found
                && is_gone(layer, ChunkNo(index))
            {
                let table = gone.entry((layer, ChunkNo(index).table())).or_default();
                table.0.get_or_insert(SlabNo(slab));
                table.1.insert(ChunkNo(index));
            }
        }
        for &(layer, chunk) in self.journal.entries.keys().filter(|(layer, chunk)| is_gone(*layer, *chunk)) {
            gone.entry((layer, chunk.table())).or_default().1.insert(chunk);
        }
        let mut free = self.named_slabs(&tables)?;
        for (found, slab) in self.descriptors.iter().zip(0..) {
            let is_free = *found == Some(Descriptor::Free) && !free[slab];
            free.set(slab, is_free);
        }
        let mut lost = HashSet::new();
        for ((layer, index), (slab, chunks)) in gone {
            // Its data is lost with the table, and its bytes are in the log; without any, a free slab does.
            let slab = slab.or_else(|| free.first_one().map(|slab| SlabNo(slab as u64)));
            let slab = slab.ok_or_else(|| impossible("no slab is free for a table that is gone"))?;
            free.set(slab.0 as usize, false);
            self.kept.insert(slab);
            let mut pages = 0;
            for chunk in chunks {
                pages |= 1 << chunk.page();
                let known = self.journal.entries.get(&(layer, chunk)).copied();
                if known.is_none() {
                    lost.insert((layer, chunk));
                    self.lose(layer, chunk.start(), chunk.start() + SLAB_LEN);
                }
                let content = known.unwrap_or(RawEntry { z: !0, ..RawEntry::default() });
                self.set_entry(layer, chunk, content);
            }
            for page in (0..PAGES_PER_SLAB as u8).filter(|page| pages >> page & 1 == 1) {
                self.new_fresh.insert((layer, index, page));
                self.journal.fresh.insert((layer, index, page), false);
            }
            let start = u64::from(index) * TABLE_SPAN;
            if let Some(record) = live.get(&layer) {
                self.doubt(record, start, start + TABLE_SPAN);
            }
            self.describe(slab, Descriptor::Table { layer, index, pages, zero: false });
        }
        Ok(lost)
    }

    fn doubt(&mut self, record: &LayerRecord, start: u64, end: u64) {
        let end = end.min(record.size);
        if start < end {
            self.lose(record.id, start, end);
        }
    }

    /// A slab of which nobody knows what it was may have been any table that a layer does not have, and others its data:
    /// what shows through for want of it may be older than what was there, and zeros may have been data.
    fn doubt_missing_tables(&mut self) {
        let tables = self.tables();
        for (id, record) in self.live() {
            let mut at = 0;
            for &(_, index) in tables.range((id, 0)..=(id, u32::MAX)).map(|(key, _)| key) {
                let start = u64::from(index) * TABLE_SPAN;
                self.doubt(&record, at, start);
                at = start + TABLE_SPAN;
            }
            self.doubt(&record, at, record.size);
        }
    }

    /// Pages of the slab that hold entries of this table, and how many entries fit.
    fn fitting(&self, slab: SlabNo, layer: LayerId, index: u32) -> Result<(u64, usize)> {
        let bytes = read(self.disk, SLAB_LEN as usize, slab.offset())?;
        Ok(fit(&bytes, layer, index))
    }

    /// Takes a slab with a damaged descriptor for the table whose entries it holds.
    fn find_table(
        &mut self,
        slab: SlabNo,
        live: &BTreeMap<LayerId, LayerRecord>,
        owners: &mut BTreeMap<(LayerId, u32), SlabNo>,
    ) -> Result<Option<((LayerId, u32), Table)>> {
        let bytes = read(self.disk, SLAB_LEN as usize, slab.offset())?;
        let samples = samples(&bytes);
        // A made-up container could ask for any number of tries.
        let tables: u64 = live.values().map(|record| record.size.div_ceil(TABLE_SPAN)).sum();
        self.tries = self.tries.saturating_add(tables.saturating_mul(samples.len() as u64));
        if self.tries > MAX_TRIES {
            return Err(impossible("too many slabs and tables are to be told apart (CHK-3)"));
        }
        for (&layer, record) in live {
            for index in 0..record.size.div_ceil(TABLE_SPAN) as u32 {
                if owners.contains_key(&(layer, index)) || !may_fit(&samples, layer, index) {
                    continue;
                }
                let (mut pages, count) = fit(&bytes, layer, index);
                if count < PROOF {
                    continue;
                }
                let fresh =
                    self.journal.fresh.iter().filter(|((l, t, page), _)| (*l, *t) == (layer, index) && *page < 64);
                let mut zero = false;
                for ((_, _, page), began_zero) in fresh {
                    pages |= 1 << page;
                    zero |= began_zero;
                }
                // Pages that were never made read as the table's flag says, which nothing else knows: as absent, as
                // almost all tables do, because nothing was ever written there.
                if record.parent.is_some() && !zero {
                    let start = u64::from(index) * TABLE_SPAN;
                    for page in (0..PAGES_PER_SLAB).filter(|page| pages >> page & 1 == 0) {
                        let at = start + page * ENTRIES_PER_PAGE * SLAB_LEN;
                        if at < record.parent_limit {
                            self.lose(layer, at, (at + ENTRIES_PER_PAGE * SLAB_LEN).min(record.parent_limit));
                        }
                    }
                }
                owners.insert((layer, index), slab);
                self.describe(slab, Descriptor::Table { layer, index, pages, zero });
                return Ok(Some(((layer, index), Table { slab, pages, size: record.size })));
            }
        }
        Ok(None)
    }

    /// Leaves out values of pages that do not exist; what they said is lost.
    fn prune_journal(&mut self) {
        let (tables, live) = (self.tables(), self.live());
        let present = |layer: LayerId, index: u32, page: u64| {
            page < PAGES_PER_SLAB && tables.get(&(layer, index)).is_some_and(|table| table.pages >> page & 1 == 1)
        };
        let mut lost = Vec::new();
        let mut pruned = false;
        self.journal.entries.retain(|&(layer, chunk), _| {
            let keep = !live.contains_key(&layer) || present(layer, chunk.table(), chunk.page() as u64);
            if !keep {
                lost.push((layer, chunk));
            }
            keep
        });
        self.journal.fresh.retain(|&(layer, index, page), _| {
            let keep = !live.contains_key(&layer) || present(layer, index, u64::from(page));
            pruned |= !keep;
            keep
        });
        self.journal_pruned |= pruned || !lost.is_empty();
        for (layer, chunk) in lost {
            self.lose(layer, chunk.start(), chunk.start() + SLAB_LEN);
        }
    }

    /// Pages of descriptors that are all zeros although several entries name their slabs: a write there was lost.
    fn zeroed_descriptor_pages(&self, entries: &[Visited]) -> Result<HashSet<u64>> {
        let mut named: BTreeMap<u64, u32> = BTreeMap::new();
        for (_, _, _, found, _) in entries {
            if let Ok(found) = found
                && self.descriptors.get(found.slab.0 as usize) == Some(&Some(Descriptor::Free))
            {
                *named.entry(found.slab.0 / 128).or_default() += 1;
            }
        }
        let mut zeroed = HashSet::new();
        for (page, count) in named {
            let all_free = (page * 128..(page + 1) * 128)
                .all(|slab| self.descriptors.get(slab as usize).is_none_or(|found| *found == Some(Descriptor::Free)));
            if count > 1 && all_free {
                zeroed.insert(page);
            }
        }
        Ok(zeroed)
    }

    fn mend_entry(
        &mut self,
        (layer, chunk): (LayerId, ChunkNo),
        size: u64,
        found: std::result::Result<RawEntry, ()>,
        raw: &[u8],
        zeroed: &HashSet<u64>,
        seen: &mut Seen,
    ) {
        let own = |found: Option<&Option<Descriptor>>| matches!(found, Some(Some(Descriptor::Data { layer: l, index, .. })) if (*l, *index) == (layer, chunk.0));
        let turned = || {
            let found = turn_back(raw, |raw| RawEntry::decode(raw, layer, chunk).ok())?;
            (found.d == 0 || own(self.descriptors.get(found.slab.0 as usize))).then_some(found)
        };
        let mended = match found {
            Ok(found) if (found.d == 0) == (found.slab.0 == 0) => Some(found),
            Ok(_) => None,
            Err(()) => turned(),
        };
        let Some(before) = mended else {
            return self.lose_chunk(layer, chunk, seen);
        };
        let mut now = before;
        now.d &= mask_of(0, size.saturating_sub(chunk.start()).div_ceil(BLOCK_LEN).min(64));
        if now.d == 0 {
            now.slab = SlabNo(0);
        } else {
            let at = now.slab.0 as usize;
            let described = self.descriptors.get(at);
            let trusted = !seen.twice.get(at).is_none_or(|twice| *twice);
            let unknown = described == Some(&None);
            let zeroed = described == Some(&Some(Descriptor::Free)) && zeroed.contains(&(now.slab.0 / 128));
            if !own(described) && !(trusted && (unknown || zeroed)) {
                if matches!(described, Some(None | Some(Descriptor::Free))) {
                    self.kept.insert(now.slab);
                }
                return self.lose_chunk(layer, chunk, seen);
            }
            if !own(described) {
                self.describe(now.slab, Descriptor::Data { layer, index: chunk.0, birth: layer });
            }
            seen.reached.set(at, true);
        }
        if found != Ok(now) {
            self.set_entry(layer, chunk, now);
        }
    }

    fn lose_chunk(&mut self, layer: LayerId, chunk: ChunkNo, seen: &mut Seen) {
        seen.lost.insert((layer, chunk));
        self.lose(layer, chunk.start(), chunk.start() + SLAB_LEN);
        self.set_entry(layer, chunk, RawEntry { z: !0, ..RawEntry::default() });
    }

    /// Descriptors that nothing explains, and slabs that nothing uses; true if there are any of the former.
    fn mend_rest(&mut self, seen: &Seen) -> Result<bool> {
        let mut unexplained = false;
        let layers = self.layers();
        let live = self.live();
        let mut orphans: BTreeMap<LayerId, Vec<SlabNo>> = BTreeMap::new();
        for slab in (0..self.descriptors.len() as u64).map(SlabNo) {
            let at = slab.0 as usize;
            match self.descriptors[at] {
                None => {
                    unexplained = true;
                    if !seen.lost.is_empty() {
                        self.kept.insert(slab);
                    }
                    self.describe(slab, Descriptor::Free);
                }
                Some(Descriptor::Data { layer, index, .. }) if live.contains_key(&layer) => {
                    if !seen.reached[at] {
                        let chunk = ChunkNo(index);
                        if seen.lost.contains(&(layer, chunk)) {
                            self.kept.insert(slab);
                        }
                        self.describe(slab, Descriptor::Free);
                    }
                }
                Some(found) => {
                    if let Some(layer) = found.layer().filter(|layer| !layers.contains_key(layer)) {
                        orphans.entry(layer).or_default().push(slab);
                    }
                }
            }
        }
        let next_id = self.counters().map_or(0, |counters| counters.next_id);
        let volumes: HashSet<u64> = self.volumes().iter().map(|(_, volume)| volume.id.0).collect();
        for (layer, slabs) in orphans {
            let possible = layer.0 != 0 && layer.0 < next_id && !volumes.contains(&layer.0);
            if possible && let Ok(number) = self.free_slot() {
                self.doom(number, layer);
            } else {
                slabs.into_iter().for_each(|slab| self.describe(slab, Descriptor::Free));
            }
        }
        self.doom_unreached();
        Ok(unexplained)
    }

    /// The next opening for writing frees the slabs of a doomed layer, in steps.
    fn doom(&mut self, number: crate::units::SlotNo, id: LayerId) {
        let record = LayerRecord {
            id,
            uuid: uuid::Uuid::new_v4(),
            kind: LayerKind::Doomed,
            parent: None,
            owner: None,
            size: SLAB_LEN,
            parent_limit: 0,
            birth: id,
            created_ns: 0,
            frozen_ns: 0,
        };
        self.set_slot(number, Slot::Layer(record));
    }

    fn doom_unreached(&mut self) {
        let layers = self.layers();
        let mut reached = HashSet::new();
        let pinned = self.slots.values().flatten().flat_map(|slot| match slot {
            Slot::Relation(record) => record.pinned().collect(),
            _ => Vec::new(),
        });
        for first in self.volumes().into_iter().map(|(_, volume)| volume.head).chain(pinned) {
            let mut next = Some(first);
            while let Some(id) = next.filter(|id| reached.insert(*id)) {
                next = layers.get(&id).and_then(|(_, layer)| layer.parent);
            }
        }
        for (id, (number, layer)) in layers {
            if layer.kind.may_be_parent() && !reached.contains(&id) {
                let doomed = LayerRecord { kind: LayerKind::Doomed, parent: None, owner: None, ..layer };
                self.set_slot(number, Slot::Layer(doomed));
            }
        }
    }
}

type Visited = (LayerId, ChunkNo, u64, std::result::Result<RawEntry, ()>, Vec<u8>);

/// Four places of each page, because there are many tables to try, that may hold an entry.
fn samples(bytes: &[u8]) -> Vec<(u32, &[u8])> {
    let all = (0u32..).zip(bytes.chunks_exact(entry::LEN)).step_by(ENTRIES_PER_PAGE as usize / 4);
    all.filter(|(_, raw)| !is_zero(raw) && RawEntry::decode_unchecked(raw).is_ok()).collect()
}

/// Whether the slab with these samples may hold this table.
fn may_fit(samples: &[(u32, &[u8])], layer: LayerId, index: u32) -> bool {
    let first = (u64::from(index) * ENTRIES_PER_TABLE) as u32;
    samples.iter().any(|&(at, raw)| RawEntry::decode(raw, layer, ChunkNo(first + at)).is_ok())
}

fn is_zero(raw: &[u8]) -> bool {
    raw.iter().all(|&byte| byte == 0)
}

/// Pages of a slab with entries of this table, and their number.
fn fit(bytes: &[u8], layer: LayerId, index: u32) -> (u64, usize) {
    let (mut pages, mut count) = (0, 0);
    for (page, number) in bytes.chunks_exact(PAGE_LEN).zip(0u64..) {
        let first = (u64::from(index) * ENTRIES_PER_TABLE + number * ENTRIES_PER_PAGE) as u32;
        for (raw, chunk) in page.chunks_exact(entry::LEN).zip(first..).filter(|(raw, _)| !is_zero(raw)) {
            if RawEntry::decode(raw, layer, ChunkNo(chunk)).is_ok() {
                pages |= 1 << number;
                count += 1;
            }
        }
    }
    (pages, count)
}

/// What a page of the draft's journal and changes holds.
pub(super) fn table_page(draft: &Draft<'_>, layer: LayerId, index: u32, page: u8, slab: SlabNo) -> Result<Vec<u8>> {
    let disk: &dyn Disk = draft.disk;
    let mut bytes = read(disk, PAGE_LEN, slab.offset() + u64::from(page) * PAGE_LEN as u64)?;
    let first = (u64::from(index) * ENTRIES_PER_TABLE + u64::from(page) * ENTRIES_PER_PAGE) as u32;
    let fresh = draft.journal.fresh.get(&(layer, index, page));
    for (raw, chunk) in bytes.chunks_exact_mut(entry::LEN).zip(first..) {
        let chunk = ChunkNo(chunk);
        let newest =
            draft.new_entries.get(&(layer, chunk)).or_else(|| draft.journal.entries.get(&(layer, chunk))).copied();
        let content = match (newest, fresh) {
            (Some(newest), _) => newest,
            (None, Some(&zero)) => RawEntry { z: if zero { !0 } else { 0 }, ..RawEntry::default() },
            (None, None) => continue,
        };
        raw.copy_from_slice(&content.encode(layer, chunk));
    }
    Ok(bytes)
}
