//! What the layers below a head show, remembered chunk by chunk, so that a read through a deep chain looks at three
//! layers instead of all of them.
//!
//! Invariant (MAP-17): only what cannot change is remembered. Layers below a head take no writes once they have drained,
//! so a block stays where it was found until a merge takes a layer out of some chain, which makes all that was
//! remembered before count for nothing; the slab is asked of the layer at each use.
//! Does not: hold layers, wait for anybody, or remember the head, which guests change.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use smallvec::SmallVec;

use crate::layer::{Found, InLayer, Layer, PageLoad, resolve, resolve_here, resolve_in};
use crate::sync::{AtomicU64, Mutex, OnceLock};
use crate::units::{BlockMask, ChunkNo, SLAB_LEN};

/// Chains of at most so many layers are walked: that costs no more than remembering.
const SHALLOW: usize = 3;
/// Chunks remembered for one head at most: 4 GiB of a volume, in 1.5 MiB of memory.
const MAX_SLOTS: u64 = 16 << 10;
/// Layers remembered for one chunk: those that show most of it.
const SOURCES: usize = 3;

/// Where blocks of one chunk are found below the head.
#[derive(Debug, Default)]
struct Slot {
    /// What is remembered, and when that was true; `None`: nothing.
    of: Option<(ChunkNo, u64)>,
    sources: SmallVec<[(Weak<Layer>, BlockMask); SOURCES]>,
    zero: BlockMask,
    /// A page was missing when this was learnt: there is more to learn.
    partial: bool,
}

/// What is remembered for one head.
#[derive(Debug)]
pub(crate) struct Resolved {
    slots: OnceLock<Box<[Mutex<Slot>]>>,
}

impl Resolved {
    pub(crate) const fn new() -> Self {
        Self { slots: OnceLock::new() }
    }

    /// Like [`resolve`] through the head `top`. `merges` counts the layers that have been taken out of chains.
    pub(crate) fn resolve(
        &self,
        top: &Arc<Layer>,
        merges: &AtomicU64,
        chunk: ChunkNo,
        want: BlockMask,
        mut piece: impl FnMut(BlockMask, Found),
    ) -> Result<(), PageLoad> {
        let Some(slots) = self.slots.get() else {
            let levels = resolve(top, chunk, want, piece)?;
            if levels > SHALLOW {
                let count = top.size.div_ceil(SLAB_LEN).clamp(1, MAX_SLOTS).next_power_of_two();
                self.slots.get_or_init(|| (0..count).map(|_| Mutex::new(Slot::default())).collect());
            }
            return Ok(());
        };
        let Some((parent, mut want)) = resolve_here(top, chunk, want, &mut piece)? else { return Ok(()) };
        // Before anything below is looked at: what a later merge changes does not count as learnt now.
        let now = (chunk, merges.load(Ordering::Acquire));
        let slot = &slots[chunk.0 as usize & (slots.len() - 1)];
        let mut learns = false;
        // Never waits: whoever finds the slot taken walks.
        if let Ok(slot) = slot.try_lock() {
            if slot.of == Some(now) {
                want &= !slot.recall(chunk, want, &mut piece);
            }
            learns = slot.of != Some(now) || slot.partial;
        }
        if want != 0 && learns && all_drained(&parent) {
            let mut learnt = Slot { of: Some(now), ..Slot::default() };
            let mut sources: SmallVec<[_; 8]> = SmallVec::new();
            let outcome = resolve_in(&parent, chunk, !0, |mask, place, layer| {
                match place {
                    Found::Zero => learnt.zero = mask,
                    Found::Data(_) => sources.push((Arc::downgrade(layer), mask)),
                }
                if want & mask != 0 {
                    piece(want & mask, place);
                }
                want &= !mask;
            });
            learnt.partial = outcome.is_err();
            sources.sort_by_key(|(_, mask)| std::cmp::Reverse(mask.count_ones()));
            learnt.sources.extend(sources.into_iter().take(SOURCES));
            if let Ok(mut slot) = slot.try_lock() {
                *slot = learnt;
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
    fn recall(&self, chunk: ChunkNo, want: BlockMask, mut piece: impl FnMut(BlockMask, Found)) -> BlockMask {
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
            let InLayer::Entry(entry) = layer.lookup(chunk) else { continue };
            let view = entry.view();
            if data & !view.d == 0 {
                piece(data, Found::Data(view.slab));
                known |= data;
            }
        }
        known
    }
}

/// Whether no write is under way in any layer of the chain.
fn all_drained(top: &Arc<Layer>) -> bool {
    let mut next = Some(top.clone());
    while let Some(layer) = next {
        if !layer.is_drained() {
            return false;
        }
        next = layer.parent();
    }
    true
}

#[cfg(all(test, not(pitstop_interleavings)))]
mod tests {
    use super::*;
    use crate::layer::{Link, Page, Table};
    use crate::layout::entry::RawEntry;
    use crate::units::{ENTRIES_PER_PAGE, LayerId, SlabNo};

    fn layer(id: u64, parent: Option<Arc<Layer>>, d: BlockMask, z: BlockMask) -> Arc<Layer> {
        let layer = Layer::new(LayerId(id), SLAB_LEN, Link { parent, limit: SLAB_LEN }, true);
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
        let (layers, resolved, merges) = (chain(), Resolved::new(), AtomicU64::new(0));
        let top = layers.last().unwrap();
        for want in [!0, 1, 0b11, 1 << 8, 0b11000, 1 << 60, 0xf0, !0] {
            let walked = found(|piece| resolve(top, ChunkNo(0), want, piece).map(drop));
            assert_eq!(found(|piece| resolved.resolve(top, &merges, ChunkNo(0), want, piece)), walked, "{want:#x}");
        }
        let slot = resolved.slots.get().unwrap()[0].lock().unwrap();
        assert_eq!(slot.of, Some((ChunkNo(0), 0)));
        assert_eq!((slot.sources.len(), slot.sources[0].1), (SOURCES, 0x00ff_ffff_ffff_ff00));
        assert!(slot.zero >> 56 == 0xff && !slot.partial);
    }

    // rule: MAP-17 — what was learnt before a layer left a chain is not used after it.
    #[test]
    fn a_merge_makes_all_count_for_nothing() {
        let (layers, resolved, merges) = (chain(), Resolved::new(), AtomicU64::new(0));
        let top = layers.last().unwrap();
        let read = || found(|piece| resolved.resolve(top, &merges, ChunkNo(0), 1 << 20, piece));
        for _ in 0..3 {
            assert_eq!(read(), [(1 << 20, Found::Data(SlabNo(10)))]);
        }
        // Another layer takes the place of the lowest, as after a merge that copied into a slab of its own.
        let other = layer(9, None, !0, 0);
        layers[1].set_link(Link { parent: Some(other), limit: SLAB_LEN });
        merges.fetch_add(1, Ordering::Release);
        assert_eq!(read(), [(1 << 20, Found::Data(SlabNo(90)))]);
    }

    // rule: MAP-17 — a write that was planned before a snapshot ends in a layer below the head.
    #[test]
    fn nothing_is_learnt_while_writes_are_under_way_below() {
        let (layers, resolved, merges) = (chain(), Resolved::new(), AtomicU64::new(0));
        let top = layers.last().unwrap();
        layers[4].drained.store(false, Ordering::Release);
        let read = || found(|piece| resolved.resolve(top, &merges, ChunkNo(0), 1 << 20, piece));
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

    // rules: MAP-15, MAP-17 — pages that are not in memory are asked for only if the read needs them.
    #[test]
    fn missing_pages_end_learning_not_the_read() {
        let (layers, resolved, merges) = (chain(), Resolved::new(), AtomicU64::new(0));
        let top = layers.last().unwrap();
        found(|piece| resolved.resolve(top, &merges, ChunkNo(0), !0, piece));
        let lowest = layers[0].table(0).unwrap();
        while lowest.evict(0) != crate::layer::Evicted::Gone {}
        let read = |want| {
            let mut blocks = 0;
            resolved.resolve(top, &merges, ChunkNo(0), want, |mask, _| blocks |= mask).map(|()| blocks)
        };
        for _ in 0..2 {
            assert_eq!(read(0b11111), Ok(0b11111));
            assert!(read(1 << 20).is_err());
        }
    }
}
