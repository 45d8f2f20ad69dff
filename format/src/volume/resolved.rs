//! What the layers below heads show, remembered chunk by chunk, so that a read through a deep chain looks at three
//! layers instead of all of them.
//!
//! Invariant (MAP-17): only what cannot change is remembered. Layers below a head take no writes once they have drained,
//! so a block stays where it was found until a merge takes a layer out of some chain, which makes all that was
//! remembered before count for nothing; the slab is asked of the layer at each use. All heads share the places, so that
//! neither their number nor the depth of their chains takes memory beyond a bound.
//! Does not: hold layers, wait for anybody, or remember the head, which guests change.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use smallvec::SmallVec;

use crate::layer::{Found, InLayer, Layer, PageLoad, resolve, resolve_here, resolve_in};
use crate::sync::{AtomicBool, AtomicU64, Mutex, OnceLock};
use crate::units::{BlockMask, ChunkNo, LayerId};

/// Chains of at most so many layers are walked: that costs no more than remembering.
const SHALLOW: usize = 3;
/// Chunks remembered at most: 64 GiB of volumes, in 30 MiB of memory. Few where threads' interleavings are explored, so
/// that they meet.
const SLOTS: usize = if cfg!(pitstop_interleavings) { 8 } else { 256 << 10 };
/// Slots that come into being together.
const LEAF: usize = if cfg!(pitstop_interleavings) { 4 } else { 128 };
/// Layers remembered for one chunk: those that show most of it.
const SOURCES: usize = 3;
/// Reads of other chunks that a slot outlasts without being used itself: to learn costs more than to walk, and would be
/// all for nothing if chunks took each other's place at each read.
const OUTLASTS: u8 = 4;

/// What is remembered: for reads through which head, of which chunk, and when that was true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subject {
    head: LayerId,
    chunk: ChunkNo,
    merges: u64,
}

/// Where blocks of one chunk are found below a head.
#[derive(Debug, Default)]
struct Slot {
    /// `None`: nothing is remembered.
    of: Option<Subject>,
    sources: SmallVec<[(Weak<Layer>, BlockMask); SOURCES]>,
    zero: BlockMask,
    /// A page was missing when this was learnt: there is more to learn.
    partial: bool,
    /// Reads of other chunks since this was used.
    passed_over: u8,
}

type Leaf = Box<[Mutex<Slot>]>;

/// What is remembered for all heads of a container.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// Layers that merges have taken out of chains since the container was opened.
    pub(crate) merges: AtomicU64,
    leaves: Box<[OnceLock<Leaf>]>,
}

impl Resolved {
    pub(crate) fn new() -> Self {
        Self { merges: AtomicU64::new(0), leaves: (0..SLOTS / LEAF).map(|_| OnceLock::new()).collect() }
    }

    fn slot(&self, subject: Subject) -> &Mutex<Slot> {
        // Neighbours of one volume never meet; volumes lie anywhere among each other.
        let place = (subject.head.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) + u64::from(subject.chunk.0);
        let place = place as usize % SLOTS;
        let leaf = self.leaves[place / LEAF].get_or_init(|| (0..LEAF).map(|_| Mutex::new(Slot::default())).collect());
        &leaf[place % LEAF]
    }

    /// Like [`resolve`] through the head `top`. `deep`, false at first, is the head's own note that its chain is worth it.
    pub(crate) fn resolve(
        &self,
        top: &Arc<Layer>,
        deep: &AtomicBool,
        chunk: ChunkNo,
        want: BlockMask,
        mut piece: impl FnMut(BlockMask, Found),
    ) -> Result<(), PageLoad> {
        if !deep.load(Ordering::Relaxed) {
            if resolve(top, chunk, want, piece)? > SHALLOW {
                deep.store(true, Ordering::Relaxed);
            }
            return Ok(());
        }
        // Before anything is looked at: what a layer's leaving changes later, the head's own parent's too, does not count as
        // learnt now.
        let now = Subject { head: top.id, chunk, merges: self.merges.load(Ordering::Acquire) };
        let Some((parent, mut want)) = resolve_here(top, chunk, want, &mut piece)? else { return Ok(()) };
        let slot = self.slot(now);
        let mut learns = false;
        // Never waits: whoever finds the slot taken walks.
        if let Ok(mut slot) = slot.try_lock() {
            want &= !slot.recall(now, want, &mut piece);
            // What stands on a head that takes writes, a view's, would never be remembered.
            learns = want != 0 && parent.is_drained() && slot.gives_way(now);
        }
        if learns {
            let mut learnt = Slot { of: Some(now), ..Slot::default() };
            let mut sources: SmallVec<[_; 8]> = SmallVec::new();
            let mut settled = true;
            // A layer is asked whether writes are under way in it before it is looked at.
            let outcome = resolve_in(
                &parent,
                chunk,
                !0,
                |layer| settled &= layer.is_drained(),
                |mask, place, layer| {
                    match place {
                        Found::Zero => learnt.zero = mask,
                        Found::Data(_) => sources.push((Arc::downgrade(layer), mask)),
                    }
                    if want & mask != 0 {
                        piece(want & mask, place);
                    }
                    want &= !mask;
                },
            );
            if settled {
                learnt.partial = outcome.is_err();
                sources.sort_by_key(|(_, mask)| std::cmp::Reverse(mask.count_ones()));
                learnt.sources.extend(sources.into_iter().take(SOURCES));
                if let Ok(mut slot) = slot.try_lock() {
                    *slot = learnt;
                }
            }
        }
        if want != 0 {
            resolve(&parent, chunk, want, piece)?;
        }
        Ok(())
    }
}

impl Slot {
    /// Calls `piece` for the wanted blocks that are remembered; returns them.
    fn recall(&mut self, now: Subject, want: BlockMask, mut piece: impl FnMut(BlockMask, Found)) -> BlockMask {
        if self.of != Some(now) {
            return 0;
        }
        self.passed_over = 0;
        let mut known = want & self.zero;
        if known != 0 {
            piece(known, Found::Zero);
        }
        for (layer, mask) in &self.sources {
            let data = want & mask;
            if data == 0 {
                continue;
            }
            let Some(layer) = layer.upgrade() else { continue };
            let InLayer::Entry(entry) = layer.lookup(now.chunk) else { continue };
            let view = entry.view();
            if data & !view.d == 0 {
                piece(data, Found::Data(view.slab));
                known |= data;
            }
        }
        known
    }

    /// Whether what a walk finds now is to be remembered here; called when what is remembered is not enough for a read.
    fn gives_way(&mut self, now: Subject) -> bool {
        match self.of {
            Some(of) if of == now => self.partial,
            Some(of) if of.merges == now.merges => {
                self.passed_over = self.passed_over.saturating_add(1);
                self.passed_over >= OUTLASTS
            }
            Some(_) | None => true,
        }
    }
}

#[cfg(test)]
#[cfg(not(pitstop_interleavings))]
mod tests {
    use super::*;
    use crate::layer::{Link, Page, Table};
    use crate::layout::entry::RawEntry;
    use crate::units::{ENTRIES_PER_PAGE, SLAB_LEN, SlabNo};

    /// Of layers: one chunk more than there are slots.
    const LEN: u64 = (SLOTS as u64 + 1) * SLAB_LEN;

    fn layer(id: u64, parent: Option<Arc<Layer>>, d: BlockMask, z: BlockMask) -> Arc<Layer> {
        let layer = Layer::new(LayerId(id), LEN, Link { parent, limit: LEN }, true);
        let mut raw = [RawEntry::default(); ENTRIES_PER_PAGE as usize];
        raw[0] = RawEntry { slab: SlabNo(if d == 0 { 0 } else { id * 10 }), d, z };
        let table = Table::new(SlabNo(id), 1, false);
        table.install(0, Page::from_raw(&raw));
        assert!(layer.add_table(0, table));
        Arc::new(layer)
    }

    /// Six layers; the head has block 0, the others one more each, the lowest all from block 8 on but zeros at the end.
    fn chain() -> Vec<Arc<Layer>> {
        let mut layers = vec![layer(1, None, 0x00ff_ffff_ffff_ff00, 0)];
        for id in 2..=6 {
            layers.push(layer(id, layers.last().cloned(), 1 << (6 - id), 0));
        }
        layers
    }

    fn found(
        through: impl FnOnce(&mut dyn FnMut(BlockMask, Found)) -> Result<(), PageLoad>,
    ) -> Vec<(BlockMask, Found)> {
        let mut found: Vec<(BlockMask, Found)> = Vec::new();
        through(&mut |mask, place| match found.iter_mut().find(|(_, before)| *before == place) {
            Some((before, _)) => *before |= mask,
            None => found.push((mask, place)),
        })
        .unwrap();
        found.sort_by_key(|(mask, _)| mask.trailing_zeros());
        found
    }

    // rule: MAP-17
    #[test]
    fn what_is_remembered_is_what_a_walk_finds() {
        let (layers, resolved, deep) = (chain(), Resolved::new(), AtomicBool::new(false));
        let top = layers.last().unwrap();
        for want in [!0, 1, 0b11, 1 << 8, 0b11000, 1 << 60, 0xf0, !0] {
            let walked = found(|piece| resolve(top, ChunkNo(0), want, piece).map(drop));
            assert_eq!(found(|piece| resolved.resolve(top, &deep, ChunkNo(0), want, piece)), walked, "{want:#x}");
        }
        let now = Subject { head: top.id, chunk: ChunkNo(0), merges: 0 };
        let slot = resolved.slot(now).lock().unwrap();
        assert_eq!(slot.of, Some(now));
        assert_eq!((slot.sources.len(), slot.sources[0].1), (SOURCES, 0x00ff_ffff_ffff_ff00));
        assert!(slot.zero >> 56 == 0xff && !slot.partial);
    }

    // rule: MAP-17 — what was learnt before a layer left a chain is not used after it.
    #[test]
    fn a_merge_makes_all_count_for_nothing() {
        let (layers, resolved, deep) = (chain(), Resolved::new(), AtomicBool::new(false));
        let top = layers.last().unwrap();
        let read = || found(|piece| resolved.resolve(top, &deep, ChunkNo(0), 1 << 20, piece));
        for _ in 0..3 {
            assert_eq!(read(), [(1 << 20, Found::Data(SlabNo(10)))]);
        }
        // Another layer takes the place of the lowest, as after a merge that copied into a slab of its own.
        let other = layer(9, None, !0, 0);
        layers[1].set_link(Link { parent: Some(other), limit: LEN });
        resolved.merges.fetch_add(1, Ordering::Release);
        assert_eq!(read(), [(1 << 20, Found::Data(SlabNo(90)))]);
    }

    // rule: MAP-17 — two heads, and two chunks of one, that have the same place never show each other's blocks.
    #[test]
    fn chunks_of_one_place_are_told_apart_and_outlast_each_other() {
        let (layers, resolved, deep) = (chain(), Resolved::new(), AtomicBool::new(false));
        let top = layers.last().unwrap();
        let far = ChunkNo(SLOTS as u32);
        let read = |chunk| found(|piece| resolved.resolve(top, &deep, chunk, 1 << 20, piece));
        let of = || resolved.slot(Subject { head: top.id, chunk: far, merges: 0 }).lock().unwrap().of.unwrap().chunk;
        for _ in 0..3 {
            assert_eq!(read(ChunkNo(0)), [(1 << 20, Found::Data(SlabNo(10)))]);
        }
        for _ in 0..3 * OUTLASTS {
            assert_eq!(read(far), [(1 << 20, Found::Zero)]);
            assert_eq!(read(ChunkNo(0)), [(1 << 20, Found::Data(SlabNo(10)))]);
            assert_eq!(of(), ChunkNo(0));
        }
        for _ in 0..OUTLASTS {
            assert_eq!(read(far), [(1 << 20, Found::Zero)]);
        }
        assert_eq!(of(), far);
        assert_eq!(read(ChunkNo(0)), [(1 << 20, Found::Data(SlabNo(10)))]);
    }

    // rule: MAP-17 — a write that was planned before a snapshot ends in a layer below the head.
    #[test]
    fn nothing_is_learnt_while_writes_are_under_way_below() {
        let (layers, resolved, deep) = (chain(), Resolved::new(), AtomicBool::new(false));
        let top = layers.last().unwrap();
        layers[4].drained.store(false, Ordering::Release);
        let read = || found(|piece| resolved.resolve(top, &deep, ChunkNo(0), 1 << 20, piece));
        for _ in 0..3 {
            assert_eq!(read(), [(1 << 20, Found::Data(SlabNo(10)))]);
        }
        let InLayer::Entry(entry) = layers[4].lookup(ChunkNo(0)) else { panic!("the layer has an entry") };
        entry.set_data(1 << 20);
        layers[4].drained.store(true, Ordering::Release);
        for _ in 0..3 {
            assert_eq!(read(), [(1 << 20, Found::Data(SlabNo(50)))]);
        }
    }

    // rule: MAP-17 — over a head that takes writes: nothing is looked for in order to be remembered, and nobody's place is
    // taken.
    #[test]
    fn a_source_of_a_view_learns_nothing() {
        let (layers, resolved, deep) = (chain(), Resolved::new(), AtomicBool::new(false));
        let top = layers.last().unwrap();
        let read = |chunk| found(|piece| resolved.resolve(top, &deep, chunk, 1 << 20, piece));
        let far = ChunkNo(SLOTS as u32);
        let of = || resolved.slot(Subject { head: top.id, chunk: far, merges: 0 }).lock().unwrap().of.unwrap().chunk;
        for _ in 0..2 {
            assert_eq!(read(ChunkNo(0)), [(1 << 20, Found::Data(SlabNo(10)))]);
        }
        let parent = &layers[layers.len() - 2];
        parent.drained.store(false, Ordering::Release);
        for _ in 0..2 * OUTLASTS {
            assert_eq!(read(far), [(1 << 20, Found::Zero)]);
        }
        parent.drained.store(true, Ordering::Release);
        assert_eq!(read(far), [(1 << 20, Found::Zero)]);
        assert_eq!(of(), ChunkNo(0));
    }

    // rules: MAP-15, MAP-17 — pages that are not in memory are asked for only if the read needs them.
    #[test]
    fn missing_pages_end_learning_not_the_read() {
        let (layers, resolved, deep) = (chain(), Resolved::new(), AtomicBool::new(false));
        let top = layers.last().unwrap();
        found(|piece| resolved.resolve(top, &deep, ChunkNo(0), !0, piece));
        let lowest = layers[0].table(0).unwrap();
        while lowest.evict(0) != crate::layer::Evicted::Gone {}
        let read = |want| {
            let mut blocks = 0;
            resolved.resolve(top, &deep, ChunkNo(0), want, |mask, _| blocks |= mask).map(|()| blocks)
        };
        for _ in 0..2 {
            assert_eq!(read(0b11111), Ok(0b11111));
            assert!(read(1 << 20).is_err());
        }
    }
}
