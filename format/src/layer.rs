//! Layers in memory, and the chains that readers walk without a lock.
//!
//! Invariant: a parent pointer changes only to an ancestor that shows the same bytes (LAY-8); of tables see `page`. Does not: perform I/O (a page that is not resident is reported as a [`PageLoad`]), allocate slabs, or journal.

mod page;

use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use self::page::PageLoad;
use self::page::{Directory, PAGES_PER_PLAN};
pub(crate) use self::page::{Entry, EntryRef, Evicted, Page, Table, first_chunk};
use crate::sync::{ArcSwap, AtomicBool};
use crate::units::{
    BLOCK_LEN, BlockMask, ChunkNo, ENTRIES_PER_PAGE, ENTRIES_PER_TABLE, LayerId, SLAB_LEN, SlabNo, mask_of,
};

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

/// What a layer shows of the blocks of a chunk that are asked of it: each is in one of the masks.
#[derive(Debug)]
pub(crate) struct Shown {
    /// Data, in `slab`.
    pub(crate) data: BlockMask,
    pub(crate) slab: SlabNo,
    /// Zeros that the layer has.
    pub(crate) zero: BlockMask,
    /// Zeros because the layer has nothing there, and nothing shows through it.
    pub(crate) hidden: BlockMask,
    /// Left to `parent`, which is none if this is empty.
    pub(crate) left: BlockMask,
    pub(crate) parent: Option<Arc<Layer>>,
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
    /// A merge has handed slabs of its to its child, which entries in memory still name (LAY-71).
    pub(crate) has_moved: AtomicBool,
}

impl Layer {
    pub(crate) fn new(id: LayerId, size: u64, link: Link, drained: bool) -> Self {
        Self {
            id,
            size,
            link: ArcSwap::from_pointee(link),
            tables: Directory::new(),
            drained: AtomicBool::new(drained),
            has_moved: AtomicBool::new(false),
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

    /// What this layer shows of the blocks `want` of a chunk: the one place that knows how a reader looks at a layer while
    /// a merge changes it.
    pub(crate) fn show(&self, chunk: ChunkNo, want: BlockMask) -> Result<Shown, PageLoad> {
        // The link before the entry: a merge publishes in the child first and unlinks the parent last (LAY-8).
        let link = self.link.load();
        let (slab, d, z) = match self.lookup(chunk) {
            InLayer::Absent => (SlabNo(0), 0, 0),
            InLayer::AllZero => (SlabNo(0), 0, !0),
            InLayer::Entry(entry) => {
                let view = entry.view();
                (view.slab, view.d, view.z)
            }
            InLayer::NeedPage(load) => return Err(PageLoad { want, ..load }),
        };
        let data = want & d;
        let zero = want & z & !d;
        let absent = want & !(d | z);
        let through = if link.parent.is_some() { link.mask(chunk) } else { 0 };
        let left = absent & through;
        let parent = if left == 0 { None } else { link.parent.clone() };
        Ok(Shown { data, slab, zero, hidden: absent & !through, left, parent })
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Acquire)
    }

    /// Whether no first write was ever planned here.
    pub(crate) fn is_untouched(&self) -> bool {
        self.tables.is_empty()
    }

    /// Tables that the layer's size allows.
    pub(crate) fn table_limit(&self) -> u32 {
        (self.size.div_ceil(SLAB_LEN)).div_ceil(ENTRIES_PER_TABLE) as u32
    }

    /// Tables that the layer has.
    pub(crate) fn table_count(&self) -> u64 {
        self.tables.count()
    }

    pub(crate) fn table(&self, index: u32) -> Option<&Table> {
        self.tables.get(index)
    }

    /// The first chunk after `chunk` for which the layer may have a page that it has not for `chunk`; the next chunk if it has
    /// one there.
    pub(crate) fn no_page_until(&self, chunk: ChunkNo) -> u64 {
        let after = |entries: u64| (u64::from(chunk.0) / entries + 1) * entries;
        match self.table(chunk.table()) {
            None => after(ENTRIES_PER_TABLE),
            Some(table) if table.is_initialised(chunk.page()) => after(1),
            Some(_) => after(ENTRIES_PER_PAGE),
        }
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
        let shown = layer.show(chunk, want)?;
        if shown.data != 0 {
            piece(shown.data, Found::Data(shown.slab), layer);
        }
        zero |= shown.zero | shown.hidden;
        want = shown.left;
        match shown.parent {
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
    want: BlockMask,
    mut piece: impl FnMut(BlockMask, Found),
) -> Result<Option<(Arc<Layer>, BlockMask)>, PageLoad> {
    let shown = layer.show(chunk, want)?;
    if shown.data != 0 {
        piece(shown.data, Found::Data(shown.slab));
    }
    let zero = shown.zero | shown.hidden;
    if zero != 0 {
        piece(zero, Found::Zero);
    }
    Ok(shown.parent.map(|parent| (parent, shown.left)))
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
mod tests;
