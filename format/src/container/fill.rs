//! Filling a copy layer: what its parent shows is copied into slabs of its own.
//!
//! Invariant (LAY-31, LAY-32): blocks are published when they have been written, and only in a layer that is still a copy
//! layer; what the only child has is left out, and what is below is unlinked only when every reader of before is gone. The
//! slabs read are kept by a grace token, those written by claims. One thread at a time fills a layer. Steps must have
//! returned before the container is closed, as tickets must be gone.
//! Does not: hold the engine lock while it looks, reads or writes, or heed pause and speed (the caller does).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::adopt::Adoption;
use super::maps::same_until;
use super::pieces::{Move, Piece, look, reads, writes};
use super::state::{HOME_PAGES_MAX, State};
use super::{Container, Shared};
use crate::alloc::{Allocator, Grace};
use crate::error::{Error, Result};
use crate::layer::{InLayer, Layer, PageLoad};
use crate::layout::slot::Moved;
use crate::units::{ChunkNo, LayerId, SLAB_LEN, SlabNo};

/// Bytes that are read, then written, at once.
const BYTES_AT_ONCE: u64 = 1 << 20;
/// Layers that one step looks at, for all chunks together (LAY-42): some milliseconds.
const LOOKS_PER_STEP: usize = 64 << 10;
/// What reading a table page counts for.
const LOOKS_PER_PAGE: usize = 256;

/// What a step of a hydration has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HydrateStep {
    /// So many bytes were copied, perhaps none where nothing had to be; there is more to do.
    Copied(u64),
    /// Nothing can be done for the moment; try again after a while.
    Blocked(HydrateWait),
    /// There is no more to do.
    Ended(HydrateEnd),
}

/// What a hydration waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HydrateWait {
    /// No slab is free and the file cannot grow.
    NoSpace,
    /// Background work has to commit changes or make room, requests of before have to end, or another thread is at it.
    Others,
}

/// How a hydration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HydrateEnd {
    /// The volume has all of its data; that is durable.
    Done,
    /// It was given up, or the volume was deleted, refreshed or restored.
    Cancelled,
}

/// How far a copy layer has been filled since the container was opened.
#[derive(Debug, Default)]
pub(crate) struct Fill {
    /// Chunks before this one have been passed.
    pub(super) next: u64,
    /// A step is under way.
    pub(super) is_under_way: bool,
    /// Requests of this grace period and before may not know yet what the child has.
    period: Option<u64>,
    /// What a donor has comes first.
    pub(super) adoption: Adoption,
    pub(super) moved: Moved,
    /// The layer that was below and that others use, too, while what is below is unlinked in several batches.
    pub(super) base: Option<LayerId>,
}

/// A step under way on a copy layer; nobody else fills it, and reclaim and merges leave it alone.
struct Filling<'a> {
    shared: &'a Shared,
    layer: Arc<Layer>,
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.is_copy(self.layer.id) {
            if let Some(fill) = state.fills.get_mut(&self.layer.id) {
                fill.is_under_way = false;
            }
        } else {
            state.fills.remove(&self.layer.id);
            // What was left alone until now may be merged.
            state.tree_has_changed();
        }
    }
}

/// What a step may do, and what it has done.
struct Effort {
    budget_bytes: u64,
    copied_bytes: u64,
    /// Layers looked at, table pages read included.
    looks: usize,
}

impl Effort {
    fn is_left(&self) -> bool {
        self.copied_bytes < self.budget_bytes && self.looks < LOOKS_PER_STEP
    }

    /// Bytes that may be copied at once.
    fn most(&self) -> u64 {
        (self.budget_bytes - self.copied_bytes).min(BYTES_AT_ONCE)
    }

    /// Whether a piece may come behind `gathered_bytes` of others: a step's first always.
    fn takes(&self, piece: &Piece, gathered_bytes: u64) -> bool {
        gathered_bytes + self.copied_bytes == 0 || gathered_bytes + piece.len_bytes() <= self.most()
    }
}

/// What became of an attempt to go on.
enum Progress {
    Copied(u64),
    /// What comes next is more than may still be copied.
    NoRoom,
    Blocked(HydrateWait),
    /// There is no chunk left to look at.
    AllPassed,
    Ended(HydrateEnd),
}

impl State {
    pub(super) fn is_copy(&self, layer: LayerId) -> bool {
        self.layer_slots.contains_key(&layer) && self.layer_record(layer).kind.is_copy()
    }

    /// Notes that all chunks of a copy layer before `next` have been passed.
    fn note_passed(&mut self, layer: LayerId, next: u64) {
        if let Some(fill) = self.fills.get_mut(&layer) {
            fill.next = fill.next.max(next);
        }
    }

    /// Whether a fill must let commits and checkpoints go first: guests' writes wait only for twice as much (JNL-8).
    pub(super) fn is_behind(&self) -> bool {
        self.gathered() > self.ring.batch_limit() || self.homes.len() > 2 * HOME_PAGES_MAX
    }
}

impl Container {
    /// Copies at most `budget_bytes` of what a copy layer lacks, but a chunk at least; blocks for its I/O. Looks at a bounded
    /// number of layers and table pages, so that it may copy less (LAY-42). Threads may step different layers at once. An
    /// error leaves the volume whole, and the step may be tried again.
    ///
    /// Errors: [`Error::Io`], [`Error::Corrupt`], [`Error::Failed`], [`Error::Closed`], [`Error::ReadOnly`].
    pub fn hydrate_step(&self, layer: LayerId, budget_bytes: u64) -> Result<HydrateStep> {
        self.shared.check_open()?;
        let filling = {
            let mut state = self.shared.lock();
            if !state.is_copy(layer) {
                return Ok(HydrateStep::Ended(HydrateEnd::Cancelled));
            }
            let fill = state.fills.entry(layer).or_default();
            if std::mem::replace(&mut fill.is_under_way, true) {
                return Ok(HydrateStep::Blocked(HydrateWait::Others));
            }
            Filling { shared: &self.shared, layer: state.layers[&layer].clone() }
        };
        if let Some(step) = self.end_if_own(layer)? {
            return Ok(step);
        }
        if let Some(step) = self.adopt_slabs(&filling.layer)? {
            return Ok(step);
        }
        let mut effort = Effort { budget_bytes: budget_bytes.max(1), copied_bytes: 0, looks: 0 };
        while effort.is_left() {
            match self.fill(&filling.layer, &mut effort)? {
                Progress::Copied(bytes) => effort.copied_bytes += bytes,
                // What was copied is told first.
                Progress::AllPassed if effort.copied_bytes == 0 => return self.finish_copy(&filling.layer),
                Progress::Ended(end) => return Ok(HydrateStep::Ended(end)),
                Progress::Blocked(wait) if effort.copied_bytes == 0 => return Ok(HydrateStep::Blocked(wait)),
                Progress::Blocked(_) | Progress::AllPassed | Progress::NoRoom => break,
            }
        }
        Ok(HydrateStep::Copied(effort.copied_bytes))
    }

    /// Goes on until as much has been copied as is done at once, or enough has been looked at.
    fn fill(&self, layer: &Arc<Layer>, effort: &mut Effort) -> Result<Progress> {
        self.shared.check_open()?;
        let (first, child) = {
            let state = self.shared.lock();
            if !state.is_copy(layer.id) {
                return Ok(Progress::Ended(HydrateEnd::Cancelled));
            }
            if state.is_behind() {
                drop(state);
                self.shared.call_for_work();
                return Ok(Progress::Blocked(HydrateWait::Others));
            }
            let child = state.only_child(layer.id).and_then(|child| state.layers.get(&child).cloned());
            (state.fills.get(&layer.id).map_or(0, |fill| fill.next), child)
        };
        let end = bytes_below(layer).div_ceil(SLAB_LEN);
        if first >= end {
            return Ok(Progress::AllPassed);
        }
        // Before the maps are looked at: none of the slabs found is reused while it is held (JNL-6).
        let grace = self.shared.grace.load_full();
        let (mut pieces, mut next, mut bytes) = (Vec::new(), first, 0);
        while next < end && bytes < effort.most() && effort.looks < LOOKS_PER_STEP {
            let chunk = ChunkNo(next as u32);
            match look(layer, child.as_deref(), chunk, &mut effort.looks) {
                Ok(Some(piece)) if !effort.takes(&piece, bytes) => {
                    if pieces.is_empty() {
                        self.shared.lock().note_passed(layer.id, next);
                        return Ok(Progress::NoRoom);
                    }
                    break;
                }
                Ok(Some(piece)) => {
                    bytes += piece.len_bytes();
                    pieces.push(piece);
                    next += 1;
                }
                Ok(None) => {
                    let (until, asked) = same_until(layer, chunk);
                    effort.looks += asked;
                    next = (until / SLAB_LEN).min(end);
                }
                // The pages of the pieces found could leave memory for it: they come first.
                Err(_) if !pieces.is_empty() => break,
                Err(load) => {
                    let mut next_page = Some(load);
                    while let Some(load) = next_page {
                        effort.looks += LOOKS_PER_PAGE;
                        next_page = self.load_one_page(load)?;
                    }
                    // A layer doomed meanwhile takes no page: asking again would never end.
                    if !self.shared.lock().is_copy(layer.id) {
                        return Ok(Progress::Ended(HydrateEnd::Cancelled));
                    }
                }
            }
        }
        self.copy_pieces(layer, pieces, next, grace)
    }

    /// Copies the pieces and notes that all chunks before `next` have been passed, as far as there is space.
    fn copy_pieces(
        &self,
        layer: &Arc<Layer>,
        mut pieces: Vec<Piece>,
        mut next: u64,
        grace: Arc<Grace>,
    ) -> Result<Progress> {
        let Some(tags) = self.tags_of_sources(&pieces) else {
            // The data is elsewhere by now: looked for again.
            return Ok(Progress::Copied(0));
        };
        let mut buffer = Vec::new();
        let reads = reads(&pieces);
        buffer.resize(reads.last().map_or(0, |last| last.start + last.len), 0);
        for Move { offset, start, len } in reads {
            let part = &mut buffer[start..start + len];
            self.shared.disk.read_at(part, offset).map_err(Error::io("cannot read a block to copy"))?;
        }
        self.verify_pieces(&pieces, &buffer, &tags)?;
        drop(grace);
        let (slabs, hindrance) = match self.claim_pieces(layer, &pieces) {
            Some(claimed) => claimed,
            None => return Ok(Progress::Ended(HydrateEnd::Cancelled)),
        };
        if let Some(first) = pieces.get(slabs.len()) {
            next = u64::from(first.chunk.0);
            pieces.truncate(slabs.len());
        }
        let written = writes(&pieces, &slabs)
            .into_iter()
            .try_for_each(|Move { offset, start, len }| self.shared.disk.write_at(&buffer[start..start + len], offset));
        let is_copy = self.publish_pieces(layer, &pieces, written.is_ok(), next);
        written.map_err(Error::io("cannot write a copied block"))?;
        if !is_copy {
            return Ok(Progress::Ended(HydrateEnd::Cancelled));
        }
        self.seal_copied(layer.id, &pieces, &slabs, &tags)?;
        let copied = pieces.iter().map(Piece::len_bytes).sum();
        match hindrance {
            Some(Hindrance::Page(load)) => {
                self.load_page(load)?;
                Ok(Progress::Copied(copied))
            }
            Some(Hindrance::Space(wait)) if pieces.is_empty() => {
                self.shared.call_for_work();
                Ok(Progress::Blocked(wait))
            }
            Some(Hindrance::Space(_)) | None => Ok(Progress::Copied(copied)),
        }
    }

    /// Claims slabs and blocks for as many of the pieces as there is space for, in the file and in a batch; nothing if it is no copy layer any more.
    fn claim_pieces(&self, layer: &Arc<Layer>, pieces: &[Piece]) -> Option<(Vec<SlabNo>, Option<Hindrance>)> {
        let mut state = self.shared.lock();
        if !state.is_copy(layer.id) {
            return None;
        }
        let mut slabs = Vec::with_capacity(pieces.len());
        for piece in pieces {
            // Others may have gathered changes while the pieces were read.
            if state.is_behind() {
                return Some((slabs, Some(Hindrance::Space(HydrateWait::Others))));
            }
            let entry = match state.entry_for_change(layer, piece.chunk) {
                Ok(Some(entry)) => entry,
                Ok(None) => return Some((slabs, Some(Hindrance::of_space(&state)))),
                Err(load) => return Some((slabs, Some(Hindrance::Page(load)))),
            };
            let Some(slab) = state.slab_for(&entry) else {
                return Some((slabs, Some(Hindrance::of_space(&state))));
            };
            state.claim(&entry, piece.mask);
            slabs.push(slab);
        }
        Some((slabs, None))
    }

    /// Makes the claimed pieces visible if they were written and the layer is still being filled, otherwise gives them up.
    /// True if it is.
    fn publish_pieces(&self, layer: &Arc<Layer>, pieces: &[Piece], written: bool, next: u64) -> bool {
        let mut state = self.shared.lock();
        let is_copy = state.is_copy(layer.id);
        for piece in pieces {
            // A page with a claim stays in memory.
            let InLayer::Entry(entry) = layer.lookup(piece.chunk) else { continue };
            if written && is_copy {
                state.publish(layer, piece.chunk, &entry, piece.mask);
            } else {
                state.abandon(layer, piece.chunk, &entry, piece.mask);
            }
        }
        // Who was throttled by these claims, or lacked their slabs, may go on (VOL-23).
        state.wake_all();
        if written {
            state.note_passed(layer.id, next);
            if let Some(fill) = state.fills.get_mut(&layer.id).filter(|_| is_copy) {
                fill.moved.copied_bytes += pieces.iter().map(Piece::len_bytes).sum::<u64>();
            }
        }
        let behind = state.is_behind();
        drop(state);
        if behind {
            self.shared.call_for_work();
        }
        is_copy
    }

    /// Everything has been passed: unlinks what is below, once nobody can still be on the way there, or what one batch takes of it.
    fn finish_copy(&self, layer: &Arc<Layer>) -> Result<HydrateStep> {
        {
            let mut state = self.shared.lock();
            let state = &mut *state;
            let Some(fill) = state.fills.get_mut(&layer.id).filter(|_| state.layer_slots.contains_key(&layer.id))
            else {
                return Ok(HydrateStep::Ended(HydrateEnd::Cancelled));
            };
            // A reader that looked at the child before a guest wrote a block there would find zeros below it (LAY-33).
            let period = *fill.period.get_or_insert_with(|| self.shared.end_period(&mut state.alloc));
            if !state.alloc.is_over(period) {
                return Ok(HydrateStep::Blocked(HydrateWait::Others));
            }
        }
        let step = {
            let mut state = match self.lock_for(|state| Ok(state.slots_of_unlinking(1))) {
                // What is tracked for later is worth a slot, not a failure.
                Err(Error::NoSpace { .. }) => self.lock_for(|state| Ok(state.slots_of_unlinking(0)))?,
                state => state?,
            };
            if !state.is_copy(layer.id) {
                return Ok(HydrateStep::Ended(HydrateEnd::Cancelled));
            }
            let ended = state.unlink_below(layer.id);
            self.shared.resolved.merges.fetch_add(1, Ordering::AcqRel);
            if ended { HydrateStep::Ended(HydrateEnd::Done) } else { HydrateStep::Copied(0) }
        };
        self.commit()?;
        self.shared.call_for_work();
        Ok(step)
    }
}

impl Shared {
    /// Ends the current grace period; returns its number.
    pub(super) fn end_period(&self, alloc: &mut Allocator) -> u64 {
        let ended = self.grace.swap(Arc::new(Grace));
        let period = alloc.period();
        alloc.end_period(&ended);
        period
    }
}

/// Bytes of which a copy layer shows its parent.
pub(super) fn bytes_below(layer: &Layer) -> u64 {
    let link = layer.link();
    if link.parent.is_some() { link.limit.min(layer.size) } else { 0 }
}

/// Why fewer pieces were claimed than there are.
pub(super) enum Hindrance {
    Page(PageLoad),
    Space(HydrateWait),
}

impl Hindrance {
    /// No slab is free: now, or for good.
    pub(super) fn of_space(state: &State) -> Self {
        Self::Space(if state.is_full() { HydrateWait::NoSpace } else { HydrateWait::Others })
    }
}

#[cfg(test)]
mod tests;
