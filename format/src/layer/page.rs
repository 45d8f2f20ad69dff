//! Tables of a layer: pages, resident or not, and their entries.
//!
//! Invariant: an entry's words change only under the engine lock and in the orders of MAP-7, so that a reader that
//! follows [`Entry::view`] sees either the old or the new state of each block, never a third. A page leaves memory only
//! while its home holds all of it (MAP-16). Does not: know parents.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::Guard;

use crate::layout::entry::RawEntry;
use crate::sync::{ArcSwapOption, AtomicBool, AtomicU8, AtomicU64, OnceLock};
use crate::units::{
    BlockMask, ChunkNo, ENTRIES_PER_PAGE, ENTRIES_PER_TABLE, LayerId, PAGE_LEN, PAGES_PER_SLAB, SlabNo,
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
    pub(super) fn new(raw: RawEntry) -> Self {
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

    /// Takes data and slab away; nobody may read the entry any more.
    pub(crate) fn clear(&self) {
        self.d.store(0, Ordering::Release);
        self.set_slab(SlabNo(0));
    }

    /// Data or zero to absent: clears Z, then D (MAP-7). Writes through a view do this to the head above (VIEW-3), background
    /// work where all that stands on the layer hides it (LAY-72).
    pub(crate) fn set_absent(&self, mask: BlockMask) {
        self.z.fetch_and(!mask, Ordering::Release);
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
    pub(super) entries: [Entry; ENTRIES_PER_PAGE as usize],
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
    pub(super) evictions: AtomicU64,
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

    pub(super) fn entry(&self, chunk: ChunkNo) -> Option<EntryRef> {
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
pub(super) const PAGES_PER_PLAN: u8 = 64;

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

/// Tables per leaf of a directory.
const LEAF: usize = 256;

type Leaf = Box<[OnceLock<Box<Table>>]>;

/// A layer's tables by index, in leaves that exist only where there is a table: a large layer that holds little costs
/// little memory.
#[derive(Debug)]
pub(super) struct Directory {
    leaves: OnceLock<Box<[OnceLock<Leaf>]>>,
    count: AtomicU64,
}

impl Directory {
    pub(super) fn new() -> Self {
        Self { leaves: OnceLock::new(), count: AtomicU64::new(0) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.leaves.get().is_none()
    }

    /// Tables in it.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(super) fn get(&self, index: u32) -> Option<&Table> {
        let index = index as usize;
        self.leaves.get()?.get(index / LEAF)?.get()?.get(index % LEAF)?.get().map(Box::as_ref)
    }

    /// Adds a table to a directory for `limit` of them; false if the index is taken.
    pub(super) fn add(&self, index: u32, limit: u32, table: Table) -> bool {
        let count = (limit as usize).div_ceil(LEAF);
        let leaves = self.leaves.get_or_init(|| (0..count).map(|_| OnceLock::new()).collect());
        let leaf = leaves[index as usize / LEAF].get_or_init(|| (0..LEAF).map(|_| OnceLock::new()).collect());
        let added = leaf[index as usize % LEAF].set(Box::new(table)).is_ok();
        self.count.fetch_add(u64::from(added), Ordering::Relaxed);
        added
    }
}
