//! Steps of sealing: blocks without tags are read, and their tags made and written.
//!
//! Invariant (TAG-4): before the first tag of a layer is written, its freeze, and all that was written to it, is durable. The
//! slabs read are kept by a grace token. One thread at a time seals a volume. Does not: hold the engine lock while it looks,
//! reads or writes, or heed pause and speed (the caller does).

use std::sync::Arc;

use super::chain::LAYERS_PER_HOLD;
use super::ops::Slots;
use super::pieces::{Move, Piece, reads};
use super::seal::{At, SealEnd, SealStep};
use super::{Container, HydrateWait, Shared};
use crate::error::{Error, Result};
use crate::layer::{InLayer, Layer};
use crate::layout::tags::SlabTags;
use crate::units::{BLOCK_LEN, BlockMask, ChunkNo, LayerId, SLAB_LEN, SlabNo, VolumeId};

/// Bytes that are read at once.
const BYTES_AT_ONCE: u64 = 1 << 20;
/// Chunks that one step looks at.
const LOOKS_PER_STEP: usize = 16 << 10;
/// What reading a table page counts for.
const LOOKS_PER_PAGE: usize = 256;

/// What a step goes on with.
enum Next {
    Layer(Arc<Layer>, At),
    Blocked(HydrateWait),
    AllPassed,
    Cancelled,
}

/// A step under way for a volume; nobody else makes one.
struct UnderWay<'a> {
    shared: &'a Shared,
    volume: VolumeId,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(seal) = self.shared.lock().seals.get_mut(&self.volume) {
            seal.is_under_way = false;
        }
    }
}

impl Container {
    /// Reads about `budget_bytes` of what is frozen of a volume and has no tags, a chunk at least, and makes its tags; blocks
    /// for its I/O. Threads may step different volumes at once. After an error the step may be tried again.
    ///
    /// Errors: [`Error::Io`], [`Error::Corrupt`], [`Error::Failed`], [`Error::Closed`], [`Error::ReadOnly`].
    pub fn seal_step(&self, volume: VolumeId, budget_bytes: u64) -> Result<SealStep> {
        self.shared.check_open()?;
        {
            let mut state = self.shared.lock();
            let Some(seal) = state.seals.get_mut(&volume) else {
                return Ok(SealStep::Ended(SealEnd::Cancelled));
            };
            if std::mem::replace(&mut seal.is_under_way, true) {
                return Ok(SealStep::Blocked(HydrateWait::Others));
            }
        }
        let _under_way = UnderWay { shared: &self.shared, volume };
        let (mut sealed, mut looks) = (0, 0);
        while sealed < budget_bytes.max(1) && looks < LOOKS_PER_STEP {
            self.shared.check_open()?;
            let step = match self.next_to_seal(volume)? {
                Next::Layer(layer, at) => {
                    let most = (budget_bytes.max(1) - sealed).min(BYTES_AT_ONCE);
                    match self.seal_some(volume, &layer, at, most, &mut looks)? {
                        Some(bytes) => {
                            sealed += bytes;
                            continue;
                        }
                        None => SealStep::Blocked(self.hindrance()),
                    }
                }
                Next::Blocked(wait) => SealStep::Blocked(wait),
                Next::Cancelled => SealStep::Ended(SealEnd::Cancelled),
                // What was sealed is told first.
                Next::AllPassed if sealed > 0 => break,
                Next::AllPassed if self.end_seal(volume)? => SealStep::Ended(SealEnd::Done),
                Next::AllPassed => break,
            };
            return Ok(if sealed > 0 { SealStep::Sealed(sealed) } else { step });
        }
        Ok(SealStep::Sealed(sealed))
    }

    /// No slab is free for tags: now, or for good.
    fn hindrance(&self) -> HydrateWait {
        self.shared.call_for_work();
        let state = self.shared.lock();
        let for_good = state.space.failure.is_some() && state.alloc.limbo_count() == 0;
        if for_good { HydrateWait::NoSpace } else { HydrateWait::Others }
    }

    /// The layer to go on with. Before the first tag of a layer is written, its freeze is made durable (TAG-4).
    fn next_to_seal(&self, volume: VolumeId) -> Result<Next> {
        loop {
            let found = {
                let mut state = self.shared.lock();
                let state = &mut *state;
                let Some(seal) = state.seals.get_mut(&volume) else { return Ok(Next::Cancelled) };
                let at = match seal.at {
                    Some(at) => Some(at),
                    None => seal.todo.pop().map(|layer| At { layer, next: 0, slabs: 0, merges: 0 }),
                };
                seal.at = at;
                at
            };
            let Some(at) = found else {
                if self.list_to_seal(volume) {
                    continue;
                }
                return Ok(Next::AllPassed);
            };
            let mut state = self.shared.lock();
            if !state.is_frozen_kind(at.layer) || state.is_sealed(at.layer) {
                if let Some(seal) = state.seals.get_mut(&volume) {
                    seal.at = None;
                }
                continue;
            }
            let layer = state.layers[&at.layer].clone();
            if !layer.is_drained() {
                return Ok(Next::Blocked(HydrateWait::Others));
            }
            if state.is_behind() {
                drop(state);
                self.shared.call_for_work();
                return Ok(Next::Blocked(HydrateWait::Others));
            }
            let tagging = state.tagged.get(&at.layer).copied().unwrap_or_default();
            if !tagging.lasts {
                drop(state);
                self.commit()?;
                let mut state = self.shared.lock();
                if state.is_frozen_kind(at.layer) {
                    state.tagged.entry(at.layer).or_default().lasts = true;
                }
                continue;
            }
            let mut at = at;
            if at.next == 0 {
                at.merges = tagging.merges;
            }
            return Ok(Next::Layer(layer, at));
        }
    }

    /// Lists the frozen layers of a volume that are not sealed; false if there is none.
    fn list_to_seal(&self, volume: VolumeId) -> bool {
        let Some(head) = self.shared.lock().volumes.get(&volume).map(|core| core.head()) else { return false };
        let (mut todo, mut next) = (Vec::new(), head.parent());
        while next.is_some() {
            let state = self.shared.lock();
            for _ in 0..LAYERS_PER_HOLD {
                let Some(layer) = next.take() else { break };
                if state.is_frozen_kind(layer.id) && !state.is_sealed(layer.id) {
                    todo.push(layer.id);
                }
                next = layer.parent();
            }
        }
        let mut state = self.shared.lock();
        let is_there = !todo.is_empty();
        if let Some(seal) = state.seals.get_mut(&volume) {
            seal.todo = todo;
        }
        is_there
    }

    /// Seals some chunks of a layer, `most` bytes about; how many bytes got tags. Nothing if there was no space for them.
    fn seal_some(
        &self,
        volume: VolumeId,
        layer: &Arc<Layer>,
        mut at: At,
        most: u64,
        looks: &mut usize,
    ) -> Result<Option<u64>> {
        let end = layer.size.div_ceil(SLAB_LEN);
        // Before the entries are looked at: none of the slabs found is reused while it is held (JNL-6).
        let grace = self.shared.passing();
        let (mut found, mut bytes): (Vec<(ChunkNo, SlabNo, BlockMask)>, u64) = (Vec::new(), 0);
        while at.next < end && bytes < most && *looks < LOOKS_PER_STEP {
            let chunk = ChunkNo(at.next as u32);
            *looks += 1;
            match layer.lookup(chunk) {
                InLayer::Absent | InLayer::AllZero => at.next = layer.no_page_until(chunk).min(end),
                InLayer::NeedPage(_) if !found.is_empty() => break,
                InLayer::NeedPage(load) => {
                    *looks += LOOKS_PER_PAGE;
                    self.load_page(load)?;
                    // A layer doomed meanwhile takes no page: asking again would never end.
                    if !self.shared.lock().is_frozen_kind(layer.id) {
                        return Ok(Some(0));
                    }
                }
                InLayer::Entry(entry) => {
                    let view = entry.view();
                    if view.d != 0 {
                        found.push((chunk, view.slab, view.d));
                        bytes += u64::from(view.d.count_ones()) * BLOCK_LEN;
                        at.slabs += 1;
                    }
                    at.next += 1;
                }
            }
        }
        let Some(sealed) = self.make_tags(at.layer, &found)? else { return Ok(None) };
        drop(grace);
        let mut state = self.shared.lock();
        let state = &mut *state;
        let is_over = at.next >= end;
        if let Some(tagging) = state.tagged.get_mut(&layer.id).filter(|tagging| is_over && tagging.merges == at.merges)
        {
            tagging.sealed = true;
        }
        if let Some(seal) = state.seals.get_mut(&volume) {
            // Where a merge has brought something into it meanwhile, it is passed again.
            seal.at = (!is_over).then_some(at);
        }
        Ok(Some(sealed))
    }

    /// Reads those blocks that have no tag, and makes and writes their tags; how many bytes these are, or nothing without
    /// space.
    fn make_tags(&self, layer: LayerId, found: &[(ChunkNo, SlabNo, BlockMask)]) -> Result<Option<u64>> {
        let slabs: Vec<SlabNo> = found.iter().map(|(_, slab, _)| *slab).collect();
        let known = self.shared.tags_of(&slabs)?;
        let (mut pieces, mut new) = (Vec::new(), Vec::new());
        for (&(chunk, slab, mask), known) in found.iter().zip(known) {
            let want = mask & !known.map_or(0, |tags| tags.mask);
            if want == 0 {
                continue;
            }
            // A slab that a merge, an adoption or reclaim has taken away meanwhile is passed with its new layer, if at all.
            if let Some((owner, birth, described)) = self.shared.lock().data_in(slab)
                && (owner, described) == (layer, chunk)
            {
                pieces.push(Piece::of_slab(chunk, want, slab));
                new.push((slab, SlabTags::new(birth, chunk)));
            }
        }
        let moves = reads(&pieces);
        let mut buffer = vec![0; moves.last().map_or(0, |last| last.start + last.len)];
        for Move { offset, start, len } in moves {
            let part = &mut buffer[start..start + len];
            self.shared.disk.read_at(part, offset).map_err(Error::io("cannot read a block to seal"))?;
        }
        let mut blocks = buffer.chunks_exact(BLOCK_LEN as usize);
        for (piece, (_, tags)) in pieces.iter().zip(&mut new) {
            let of_piece = (0..64).filter(|block| piece.mask >> block & 1 == 1);
            for (block, bytes) in of_piece.zip(&mut blocks) {
                tags.make(block, bytes);
            }
        }
        if !new.is_empty() && !self.shared.write_tags(new)? {
            return Ok(None);
        }
        Ok(Some(buffer.len() as u64))
    }

    /// All has been passed: says so durably, and with it makes the tags durable. False if there is more to seal by now.
    fn end_seal(&self, volume: VolumeId) -> Result<bool> {
        {
            let mut state = self.lock_for(|_| Ok(Slots { new: 0, changed: 1 }))?;
            if !state.seals.contains_key(&volume) {
                return Ok(true);
            }
            let newest = state.layer_record(state.volume_record(volume).head).parent;
            if newest.is_some_and(|layer| state.is_frozen_kind(layer) && !state.is_sealed(layer)) {
                return Ok(false);
            }
            state.update_volume(volume, |record| record.sealing = None);
        }
        self.commit()?;
        Ok(true)
    }
}
