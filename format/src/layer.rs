//! Layers in memory: tables, pages and chunk entries that readers walk without a lock.
//!
//! Invariant: an entry's words change only under the engine lock and in the orders of MAP-7, so that a reader that
//! follows [`Entry::view`] sees either the old or the new state of each block, never a third. A page leaves memory only
//! while its home holds all of it (MAP-16). A parent pointer changes only to an ancestor that shows the same bytes (LAY-8).
//! Does not: perform I/O (a page that is not resident is reported as a [`PageLoad`]), allocate slabs, or journal.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::Guard;

use crate::layout::entry::RawEntry;
use crate::sync::{ArcSwap, ArcSwapOption, AtomicBool, AtomicU8, AtomicU64, OnceLock};
use crate::units::{
    BLOCK_LEN, BlockMask, ChunkNo, ENTRIES_PER_PAGE, ENTRIES_PER_TABLE, LayerId, PAGE_LEN, PAGES_PER_SLAB, SLAB_LEN,
    SlabNo, mask_of,
};

/// In memory only: a merge has handed the slab to the child; on disk the entry is absent (LAY-8).
const MOVED: u64 = 1 << 63;
/// In memory only: the entry stands in the list of changes to journal.
const DIRTY: u64 = 1 << 62;
const SLAB_BITS: u64 = !(MOVED | DIRTY);

/// A chunk's presence words. Bit `n` of a mask is block `n` of the chunk.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    slab: AtomicU64,
    d: AtomicU64,
    z: AtomicU64,
    /// Blocks that a planned first write will fill; only under the engine lock.
    pending: AtomicU64,
}

impl Entry {
    fn new(raw: RawEntry) -> Self {
        Self {
            slab: AtomicU64::new(raw.slab.0),
            d: AtomicU64::new(raw.d),
            z: AtomicU64::new(raw.z),
            pending: AtomicU64::new(0),
        }
    }

    /// The entry as one consistent state (MAP-7): D before Z, and the slab the same before and after.
    pub(crate) fn view(&self) -> RawEntry {
        loop {
            let slab = self.slab.load(Ordering::Acquire) & SLAB_BITS;
            let d = self.d.load(Ordering::Acquire);
            let z = self.z.load(Ordering::Acquire);
            if self.slab.load(Ordering::Acquire) & SLAB_BITS == slab {
                return RawEntry { slab: SlabNo(slab), d, z };
            }
        }
    }

    pub(crate) fn slab(&self) -> SlabNo {
        SlabNo(self.slab.load(Ordering::Acquire) & SLAB_BITS)
    }

    pub(crate) fn pending(&self) -> BlockMask {
        self.pending.load(Ordering::Relaxed)
    }

    /// Changes the pending blocks; under the engine lock.
    pub(crate) fn set_pending(&self, pending: BlockMask) {
        self.pending.store(pending, Ordering::Relaxed);
    }

    /// Gives the entry its slab, or takes it away; D is clear then (MAP-8).
    pub(crate) fn set_slab(&self, slab: SlabNo) {
        debug_assert_eq!(self.d.load(Ordering::Relaxed), 0);
        let flags = self.slab.load(Ordering::Relaxed) & !SLAB_BITS;
        self.slab.store(slab.0 | flags, Ordering::Release);
    }

    /// Zero or absent to data: sets D and leaves Z (MAP-7).
    pub(crate) fn set_data(&self, mask: BlockMask) {
        self.d.fetch_or(mask, Ordering::Release);
    }

    /// Data or absent to zero: sets Z, then clears D (MAP-7).
    pub(crate) fn set_zero(&self, mask: BlockMask) {
        self.z.fetch_or(mask, Ordering::Release);
        self.d.fetch_and(!mask, Ordering::Release);
    }

    /// Adds zero blocks that the parent showed as zeros; only merges call this.
    pub(crate) fn add_zero(&self, mask: BlockMask) {
        self.z.fetch_or(mask, Ordering::Release);
    }

    pub(crate) fn mark_moved(&self) {
        self.slab.fetch_or(MOVED, Ordering::Release);
    }

    /// What the entry is on disk: nothing once moved.
    pub(crate) fn stored(&self) -> RawEntry {
        if self.slab.load(Ordering::Acquire) & MOVED != 0 {
            return RawEntry::default();
        }
        let view = self.view();
        if view.d == 0 { RawEntry { slab: SlabNo(0), ..view } } else { view }
    }

    /// Notes that the entry is listed for the journal; false if it was already.
    pub(crate) fn mark_dirty(&self) -> bool {
        self.slab.fetch_or(DIRTY, Ordering::AcqRel) & DIRTY == 0
    }

    pub(crate) fn clear_dirty(&self) {
        self.slab.fetch_and(!DIRTY, Ordering::AcqRel);
    }
}

/// How a resident page compares with its home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Home {
    /// The home holds this page, durably.
    Same,
    /// Changed since it was last copied for its home.
    Dirty,
    /// A copy is on its way home.
    Writing,
}

/// A resident table page.
#[derive(Debug)]
pub(crate) struct Page {
    /// A [`Home`]; changed only under the engine lock.
    home: AtomicU8,
    /// Looked at since eviction last came by.
    used: AtomicBool,
    entries: [Entry; ENTRIES_PER_PAGE as usize],
}

impl Page {
    /// A page of absent entries, or of entries that read as zeros; it differs from its home.
    pub(crate) fn fresh(zero: bool) -> Self {
        let raw = RawEntry { z: if zero { !0 } else { 0 }, ..RawEntry::default() };
        let page = Self::from_raw(&[raw; ENTRIES_PER_PAGE as usize]);
        page.mark_dirty();
        page
    }

    /// A page as its home holds it.
    pub(crate) fn from_raw(raw: &[RawEntry; ENTRIES_PER_PAGE as usize]) -> Self {
        Self { home: AtomicU8::new(Home::Same as u8), used: AtomicBool::new(true), entries: raw.map(Entry::new) }
    }

    /// Notes that the page differs from its home; false if that was known.
    pub(crate) fn mark_dirty(&self) -> bool {
        self.home.swap(Home::Dirty as u8, Ordering::AcqRel) != Home::Dirty as u8
    }

    /// Notes that a copy is about to be made for the home: a later change marks the page again.
    pub(crate) fn begin_home_write(&self) {
        self.home.store(Home::Writing as u8, Ordering::Release);
    }

    /// Notes that the copy is durable in the home.
    pub(crate) fn end_home_write(&self) {
        // A page changed meanwhile stays dirty.
        if self.home.load(Ordering::Acquire) == Home::Writing as u8 {
            self.home.store(Home::Same as u8, Ordering::Release);
        }
    }

    fn is_home(&self) -> bool {
        self.home.load(Ordering::Acquire) == Home::Same as u8
    }

    /// Whether a change, a claim or a merge depends on what only the page in memory says.
    fn is_needed(&self) -> bool {
        let is_needed =
            |entry: &Entry| entry.slab.load(Ordering::Acquire) & (MOVED | DIRTY) != 0 || entry.pending() != 0;
        self.entries.iter().any(is_needed)
    }

    /// The page as its home holds it.
    pub(crate) fn encode(&self, layer: LayerId, first: ChunkNo) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PAGE_LEN);
        for (chunk, entry) in (first.0..).zip(&self.entries) {
            bytes.extend(entry.stored().encode(layer, ChunkNo(chunk)));
        }
        bytes
    }
}

/// An entry of a resident page; the page's memory stays while it is held.
#[derive(Debug)]
pub(crate) struct EntryRef {
    page: Guard<Option<Arc<Page>>>,
    index: usize,
}

impl Deref for EntryRef {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        match &*self.page {
            Some(page) => &page.entries[self.index],
            None => unreachable!("made from a resident page"),
        }
    }
}

/// What became of an attempt to evict a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evicted {
    /// It is not resident any more.
    Gone,
    /// It was used lately, or a claim or a merge needs it.
    Used,
    /// It must go home first.
    Dirty,
}

/// A table slab: 8192 chunk entries in 64 pages, each resident or not.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) slab: SlabNo,
    /// Pages that exist; the others hold absent entries, or zero entries if `zero` (MAP-6).
    pub(crate) initialised: AtomicU64,
    pub(crate) zero: AtomicBool,
    /// Pages evicted so far: a page read before an eviction is not installed after it (MAP-16).
    evictions: AtomicU64,
    pages: [ArcSwapOption<Page>; PAGES_PER_SLAB as usize],
}

impl Table {
    pub(crate) fn new(slab: SlabNo, initialised: u64, zero: bool) -> Self {
        Self {
            slab,
            initialised: AtomicU64::new(initialised),
            zero: AtomicBool::new(zero),
            evictions: AtomicU64::new(0),
            pages: [const { ArcSwapOption::const_empty() }; PAGES_PER_SLAB as usize],
        }
    }

    pub(crate) fn page(&self, page: usize) -> Guard<Option<Arc<Page>>> {
        self.pages[page].load()
    }

    fn entry(&self, chunk: ChunkNo) -> Option<EntryRef> {
        let guard = self.page(chunk.page());
        let page = guard.as_ref()?;
        // Most often it is set: a store would take the line from other cores.
        if !page.used.load(Ordering::Relaxed) {
            page.used.store(true, Ordering::Relaxed);
        }
        Some(EntryRef { page: guard, index: chunk.entry() })
    }

    pub(crate) fn is_initialised(&self, page: usize) -> bool {
        self.initialised.load(Ordering::Acquire) >> page & 1 == 1
    }

    /// Makes `content` the resident page; there must be none. Under the engine lock, or before the layer is shared.
    pub(crate) fn install(&self, page: usize, content: Page) -> Arc<Page> {
        let content = Arc::new(content);
        let before = self.pages[page].swap(Some(content.clone()));
        debug_assert!(before.is_none());
        content
    }

    /// Whether a page that was asked for when there had been `evictions` may be installed: none has been evicted since,
    /// so that its home has not changed since.
    pub(crate) fn is_current(&self, evictions: u64) -> bool {
        self.evictions.load(Ordering::Acquire) == evictions
    }

    /// Takes the page out of memory unless it was used lately or is needed; under the engine lock.
    pub(crate) fn evict(&self, page: usize) -> Evicted {
        let guard = self.page(page);
        let Some(resident) = guard.as_ref() else {
            return Evicted::Gone;
        };
        if !resident.is_home() {
            return Evicted::Dirty;
        }
        if resident.used.swap(false, Ordering::AcqRel) || resident.is_needed() {
            return Evicted::Used;
        }
        self.pages[page].store(None);
        self.evictions.fetch_add(1, Ordering::AcqRel);
        Evicted::Gone
    }
}

/// A table page to read from the container: its bytes go to `Container::install_page`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLoad {
    pub(crate) layer: LayerId,
    pub(crate) table: u32,
    pub(crate) page: u8,
    pub(crate) slab: SlabNo,
    /// Evictions from the table when the page was asked for.
    pub(crate) evictions: u64,
    /// The chunk and blocks that were looked for.
    pub(crate) chunk: ChunkNo,
    pub(crate) want: BlockMask,
    /// Pages that may be asked for after this one before the request is planned again.
    pub(crate) left: u8,
}

/// Pages of one chain that are loaded before the request is planned again.
const PAGES_PER_PLAN: u8 = 64;

impl PageLoad {
    /// A page that no request asks for.
    pub(crate) fn home(layer: LayerId, table: u32, page: u8, slab: SlabNo) -> Self {
        Self { layer, table, page, slab, evictions: 0, chunk: first_chunk(table, page), want: 0, left: 0 }
    }

    /// Byte offset of the page in the container.
    pub fn offset(&self) -> u64 {
        self.slab.offset() + u64::from(self.page) * PAGE_LEN as u64
    }

    /// Bytes to read.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        PAGE_LEN
    }

    /// Whether a plan has asked for it, not the load of another page.
    pub(crate) fn is_first(&self) -> bool {
        self.left == PAGES_PER_PLAN
    }

    pub(crate) fn first_chunk(&self) -> ChunkNo {
        first_chunk(self.table, self.page)
    }
}

/// The first chunk that a page describes.
pub(crate) fn first_chunk(table: u32, page: u8) -> ChunkNo {
    ChunkNo(table * ENTRIES_PER_TABLE as u32 + u32::from(page) * ENTRIES_PER_PAGE as u32)
}

/// What one layer says of a chunk.
#[derive(Debug)]
pub(crate) enum InLayer {
    /// All blocks absent.
    Absent,
    /// All blocks read as zeros.
    AllZero,
    Entry(EntryRef),
    NeedPage(PageLoad),
}

/// What shows through a layer: one value, so that no reader pairs one parent with another's limit.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) parent: Option<Arc<Layer>>,
    /// Bytes from which on the parent does not show through (LAY-6).
    pub(crate) limit: u64,
}

/// A layer in memory.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) id: LayerId,
    pub(crate) size: u64,
    link: ArcSwap<Link>,
    tables: Directory,
    /// No write is under way any more, and none will be planned: a frozen layer is then sealed.
    pub(crate) drained: AtomicBool,
}

impl Layer {
    pub(crate) fn new(id: LayerId, size: u64, link: Link, drained: bool) -> Self {
        Self {
            id,
            size,
            link: ArcSwap::from_pointee(link),
            tables: Directory(OnceLock::new()),
            drained: AtomicBool::new(drained),
        }
    }

    pub(crate) fn link(&self) -> Arc<Link> {
        self.link.load_full()
    }

    pub(crate) fn parent(&self) -> Option<Arc<Layer>> {
        self.link.load().parent.clone()
    }

    /// Replaces the link by one that, with this layer's entries, shows the same bytes.
    pub(crate) fn set_link(&self, link: Link) {
        self.link.store(Arc::new(link));
    }

    /// Takes from `want` what this layer shows of the chunk: data goes to `piece`, zeros into `zero`. Returns the parent if
    /// blocks are left.
    fn show(
        &self,
        chunk: ChunkNo,
        want: &mut BlockMask,
        zero: &mut BlockMask,
        mut piece: impl FnMut(BlockMask, Found),
    ) -> Result<Option<Arc<Layer>>, PageLoad> {
        // The link before the entry: a merge publishes in the child first and unlinks the parent last (LAY-8).
        let link = self.link.load();
        match self.lookup(chunk) {
            InLayer::Absent => {}
            InLayer::AllZero => {
                *zero |= *want;
                *want = 0;
            }
            InLayer::Entry(entry) => {
                let view = entry.view();
                let data = *want & view.d;
                if data != 0 {
                    piece(data, Found::Data(view.slab));
                }
                *want &= !view.d;
                *zero |= *want & view.z;
                *want &= !view.z;
            }
            InLayer::NeedPage(load) => return Err(PageLoad { want: *want, ..load }),
        }
        let through = if link.parent.is_some() { link.mask(chunk) } else { 0 };
        *zero |= *want & !through;
        *want &= through;
        Ok(if *want == 0 { None } else { link.parent.clone() })
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Acquire)
    }

    /// Whether no first write was ever planned here.
    pub(crate) fn is_untouched(&self) -> bool {
        self.tables.0.get().is_none()
    }

    /// Tables that the layer's size allows.
    pub(crate) fn table_limit(&self) -> u32 {
        (self.size.div_ceil(SLAB_LEN)).div_ceil(ENTRIES_PER_TABLE) as u32
    }

    pub(crate) fn table(&self, index: u32) -> Option<&Table> {
        self.tables.get(index)
    }

    /// Adds a table; false if the index is taken or beyond the layer's size.
    pub(crate) fn add_table(&self, index: u32, table: Table) -> bool {
        index < self.table_limit() && self.tables.add(index, self.table_limit(), table)
    }

    pub(crate) fn lookup(&self, chunk: ChunkNo) -> InLayer {
        let Some(table) = self.table(chunk.table()) else {
            return InLayer::Absent;
        };
        if let Some(entry) = table.entry(chunk) {
            return InLayer::Entry(entry);
        }
        if table.is_initialised(chunk.page()) {
            // Before the second look: what is evicted after it makes the page that was asked for out of date.
            let evictions = table.evictions.load(Ordering::Acquire);
            // A page made since the first look is resident by now: it is installed before it is marked initialised.
            return match table.entry(chunk) {
                Some(entry) => InLayer::Entry(entry),
                None => InLayer::NeedPage(PageLoad {
                    layer: self.id,
                    table: chunk.table(),
                    page: chunk.page() as u8,
                    slab: table.slab,
                    evictions,
                    chunk,
                    want: 0,
                    left: PAGES_PER_PLAN,
                }),
            };
        }
        if table.zero.load(Ordering::Acquire) { InLayer::AllZero } else { InLayer::Absent }
    }
}

/// Tables per leaf of a directory.
const LEAF: usize = 256;

type Leaf = Box<[OnceLock<Box<Table>>]>;

/// A layer's tables by index, in leaves that exist only where there is a table: a large layer that holds little costs
/// little memory.
#[derive(Debug)]
struct Directory(OnceLock<Box<[OnceLock<Leaf>]>>);

impl Directory {
    fn get(&self, index: u32) -> Option<&Table> {
        let index = index as usize;
        self.0.get()?.get(index / LEAF)?.get()?.get(index % LEAF)?.get().map(Box::as_ref)
    }

    /// Adds a table to a directory for `limit` of them; false if the index is taken.
    fn add(&self, index: u32, limit: u32, table: Table) -> bool {
        let count = (limit as usize).div_ceil(LEAF);
        let leaves = self.0.get_or_init(|| (0..count).map(|_| OnceLock::new()).collect());
        let leaf = leaves[index as usize / LEAF].get_or_init(|| (0..LEAF).map(|_| OnceLock::new()).collect());
        leaf[index as usize % LEAF].set(Box::new(table)).is_ok()
    }
}

impl Link {
    /// The chunk's blocks that the parent may show (LAY-6).
    pub(crate) fn mask(&self, chunk: ChunkNo) -> BlockMask {
        let blocks = self.limit.saturating_sub(chunk.start()).div_ceil(BLOCK_LEN);
        mask_of(0, blocks.min(64))
    }
}

impl Drop for Layer {
    /// Unlinks a long chain without recursion.
    fn drop(&mut self) {
        let unlinked = || Arc::new(Link { parent: None, limit: 0 });
        let take = |layer: &Layer| Arc::try_unwrap(layer.link.swap(unlinked())).ok().and_then(|link| link.parent);
        let mut next = take(self);
        while let Some(layer) = next {
            next = Arc::try_unwrap(layer).ok().and_then(|last| take(&last));
        }
    }
}

/// Where a piece of a chunk's blocks is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Data(SlabNo),
    Zero,
}

/// Resolves the blocks `want` of `chunk` as seen through `top`: calls `piece` with disjoint masks that cover `want`.
/// Returns how many layers were looked at.
///
/// A layer whose table page is not resident ends the walk with the page to load.
pub(crate) fn resolve(
    top: &Arc<Layer>,
    chunk: ChunkNo,
    want: BlockMask,
    mut piece: impl FnMut(BlockMask, Found),
) -> Result<usize, PageLoad> {
    resolve_in(top, chunk, want, |_| {}, |mask, place, _| piece(mask, place))
}

/// Like [`resolve`]; `before` is told of each layer that is about to be looked at, `piece` also in which layer the blocks
/// are (zeros: the last that was looked at). If a page is missing, the zeros found by then are not told of.
pub(crate) fn resolve_in(
    top: &Arc<Layer>,
    chunk: ChunkNo,
    mut want: BlockMask,
    mut before: impl FnMut(&Layer),
    mut piece: impl FnMut(BlockMask, Found, &Arc<Layer>),
) -> Result<usize, PageLoad> {
    let (mut zero, mut levels) = (0, 0);
    let mut above: Option<Arc<Layer>> = None;
    loop {
        let layer = above.as_ref().unwrap_or(top);
        levels += 1;
        before(layer);
        let parent = layer.show(chunk, &mut want, &mut zero, |mask, place| piece(mask, place, layer))?;
        match parent {
            Some(parent) => above = Some(parent),
            None => {
                if zero != 0 {
                    piece(zero, Found::Zero, layer);
                }
                return Ok(levels);
            }
        }
    }
}

/// Resolves only what `layer` itself says, and returns the parent with the blocks that are left to it, if there are any.
pub(crate) fn resolve_here(
    layer: &Arc<Layer>,
    chunk: ChunkNo,
    mut want: BlockMask,
    mut piece: impl FnMut(BlockMask, Found),
) -> Result<Option<(Arc<Layer>, BlockMask)>, PageLoad> {
    let mut zero = 0;
    let parent = layer.show(chunk, &mut want, &mut zero, &mut piece)?;
    if zero != 0 {
        piece(zero, Found::Zero);
    }
    Ok(parent.map(|parent| (parent, want)))
}

/// The page that a walk which stopped for `load` at `layer` stops for next, so that a request that meets many pages not
/// resident need not be planned again for each of them.
pub(crate) fn next_load(layer: &Arc<Layer>, load: PageLoad) -> Option<PageLoad> {
    let left = load.left.checked_sub(1)?;
    resolve(layer, load.chunk, load.want, |_, _| {}).err().map(|next| PageLoad { left, ..next })
}

#[cfg(all(test, pitstop_interleavings))]
mod loom;

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(id: u64, link: Link, entries: &[(u32, RawEntry)]) -> Arc<Layer> {
        let layer = Layer::new(LayerId(id), 1 << 20, link, true);
        let mut raw = [RawEntry::default(); ENTRIES_PER_PAGE as usize];
        entries.iter().for_each(|&(chunk, entry)| raw[chunk as usize] = entry);
        let table = Table::new(SlabNo(id), 1, false);
        table.install(0, Page::from_raw(&raw));
        assert!(layer.add_table(0, table));
        Arc::new(layer)
    }

    fn resolved(top: &Arc<Layer>, chunk: u32) -> Vec<(BlockMask, Found)> {
        let mut found = Vec::new();
        resolve(top, ChunkNo(chunk), !0, |mask, place| found.push((mask, place))).unwrap();
        found
    }

    fn data(slab: u64, d: BlockMask, z: BlockMask) -> RawEntry {
        RawEntry { slab: SlabNo(slab), d, z }
    }

    // rules: MAP-1, MAP-12 — the nearest layer that has a block shows it; D counts before Z.
    #[test]
    fn each_block_comes_from_the_nearest_layer_that_has_it() {
        let bottom = layer(1, Link { parent: None, limit: 0 }, &[(0, data(50, 0b1111, 0))]);
        let top = layer(2, Link { parent: Some(bottom), limit: 1 << 20 }, &[(0, data(60, 0b0001, 0b0011))]);
        let found = resolved(&top, 0);
        assert_eq!(found[0], (0b0001, Found::Data(SlabNo(60))));
        assert_eq!(found[1], (0b1100, Found::Data(SlabNo(50))));
        assert_eq!(found[2], (!0b1101, Found::Zero));
    }

    // rule: MAP-16 — a page leaves memory only if it is home, unused, unclaimed, and no merge has moved an entry of it.
    #[test]
    fn a_page_stays_while_something_depends_on_it() {
        let page = Page::from_raw(&[RawEntry::default(); ENTRIES_PER_PAGE as usize]);
        let table = Table::new(SlabNo(9), 1, false);
        assert_eq!(table.evict(0), Evicted::Gone);
        let page = table.install(0, page);
        assert_eq!(table.evict(0), Evicted::Used);
        assert!(table.entry(ChunkNo(5)).is_some());
        assert_eq!(table.evict(0), Evicted::Used);
        assert!(page.mark_dirty());
        assert!(!page.mark_dirty());
        assert_eq!(table.evict(0), Evicted::Dirty);
        page.begin_home_write();
        assert_eq!(table.evict(0), Evicted::Dirty);
        assert!(page.mark_dirty());
        page.end_home_write();
        assert_eq!(table.evict(0), Evicted::Dirty);
        page.begin_home_write();
        page.end_home_write();
        page.entries[3].set_pending(1);
        assert_eq!(table.evict(0), Evicted::Used);
        page.entries[3].set_pending(0);
        page.entries[4].mark_dirty();
        assert_eq!(table.evict(0), Evicted::Used);
        page.entries[4].clear_dirty();
        assert!(table.is_current(0));
        assert_eq!(table.evict(0), Evicted::Gone);
        assert!(!table.is_current(0));
        let page = table.install(0, Page::from_raw(&[RawEntry::default(); ENTRIES_PER_PAGE as usize]));
        page.entries[5].mark_moved();
        for _ in 0..3 {
            assert_eq!(table.evict(0), Evicted::Used);
        }
    }

    // rule: MAP-2 — a directory takes each index of its size once, and costs little where it is empty.
    #[test]
    fn tables_are_found_by_index_in_a_large_layer() {
        let layer = Layer::new(LayerId(1), 1 << 50, Link { parent: None, limit: 0 }, true);
        let indexes = [0, 255, 256, 300_000, layer.table_limit() - 1];
        for index in indexes {
            assert!(layer.table(index).is_none());
            assert!(layer.add_table(index, Table::new(SlabNo(u64::from(index)), 0, false)));
            assert!(!layer.add_table(index, Table::new(SlabNo(1), 0, false)));
        }
        assert!(indexes.iter().all(|&index| layer.table(index).is_some_and(|table| table.slab.0 == u64::from(index))));
        assert!(layer.table(254).is_none());
        assert!(!layer.add_table(layer.table_limit(), Table::new(SlabNo(1), 0, false)));
        assert!(layer.table(u32::MAX).is_none());
    }

    // rule: LAY-6 — nothing of the parent shows beyond the limit.
    #[test]
    fn beyond_the_parent_limit_is_zero() {
        let bottom = layer(1, Link { parent: None, limit: 0 }, &[(0, data(50, !0, 0)), (1, data(51, !0, 0))]);
        let top = layer(2, Link { parent: Some(bottom), limit: 2 * BLOCK_LEN + 512 }, &[]);
        assert_eq!(resolved(&top, 0), [(0b111, Found::Data(SlabNo(50))), (!0b111, Found::Zero)]);
        assert_eq!(resolved(&top, 1), [(!0, Found::Zero)]);
    }

    #[test]
    fn a_very_long_chain_is_dropped_without_recursion() {
        let mut top = layer(1, Link { parent: None, limit: 0 }, &[]);
        for id in 2..200_000 {
            top = Arc::new(Layer::new(LayerId(id), 1 << 20, Link { parent: Some(top), limit: 1 << 20 }, true));
        }
        drop(top);
    }
}
