//! Planning discards and writes of zeros.
//!
//! Whole blocks change metadata only, at once, when planned; parts of blocks at either end of a write of zeros become data
//! writes of zeros. Long ranges go in steps, so that the engine lock is never held for long (VOL-5).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;

use super::write::{NotReady, out_of_space};
use super::{Edge, Piece, Planned, Volume, WriteSegment, WriteTicket, Writers, pieces};
use crate::container::state::State;
use crate::error::Result;
use crate::layer::{Found, Layer, resolve};
use crate::units::{BLOCK_LEN, BlockMask, ChunkNo, ENTRIES_PER_TABLE, TABLE_SPAN};

/// What the range becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroKind {
    /// The guest no longer needs the range: whole blocks in it read as zeros, blocks it covers in part stay.
    Discard,
    /// Every byte of the range reads as zeros.
    WriteZeroes,
}

/// A planned discard or write of zeros. Carry out its segments and edges with zeros for a buffer, call
/// [`ZeroTicket::complete`], then plan what [`ZeroTicket::remaining`] names.
#[derive(Debug)]
#[must_use = "a ticket that is dropped gives its write up"]
pub struct ZeroTicket {
    data: Option<WriteTicket>,
    remaining: Option<Range<u64>>,
}

impl ZeroTicket {
    /// Zeros to write; usually none.
    pub fn segments(&self) -> &[WriteSegment] {
        self.data.as_ref().map_or(&[], WriteTicket::segments)
    }

    /// Blocks to complete first; at most two, through a write-through view four.
    pub fn edges(&self) -> &[Edge] {
        self.data.as_ref().map_or(&[], WriteTicket::edges)
    }

    /// The part of the range that is still to be planned.
    pub fn remaining(&self) -> Option<Range<u64>> {
        self.remaining.clone()
    }

    /// Publishes: all segments and edges have been written.
    pub fn complete(self) {
        if let Some(data) = self.data {
            data.complete();
        }
    }
}

/// The parts of blocks at the ends of a range, and the whole blocks between them.
fn split_edges(range: &Range<u64>) -> (Vec<Range<u64>>, Range<u64>) {
    let first = range.start.next_multiple_of(BLOCK_LEN);
    let last = range.end / BLOCK_LEN * BLOCK_LEN;
    if first > last {
        return (vec![range.clone()], first..first);
    }
    let edges = [range.start..first, last..range.end].into_iter().filter(|edge| !edge.is_empty()).collect();
    (edges, first..last)
}

impl Volume {
    /// Plans making `range` (bytes, multiples of 512, within the volume) read as zeros.
    ///
    /// What reads as zeros already costs nothing (VOL-5).
    ///
    /// Errors: as [`Volume::plan_write`].
    pub fn plan_zero(&self, range: Range<u64>, kind: ZeroKind, waker: &Waker) -> Result<Planned<ZeroTicket>> {
        self.check_change(&range)?;
        let (edges, whole) = split_edges(&range);
        let mut state = self.shared.lock();
        // Again: a refresh may have changed the size meanwhile, and a failure has woken its waiters already.
        self.check_change(&range)?;
        if state.is_throttled() {
            state.register(waker);
            drop(state);
            self.shared.call_for_work();
            return Ok(Planned::Busy);
        }
        let writers = self.core.writers();
        let mut data = None;
        let outcome = self.zero_locked(&mut state, &writers, kind, &edges, whole, waker, &mut data);
        if let (Err(_), Some(ticket)) = (&outcome, &mut data) {
            ticket.roll_back(&mut state);
        }
        writers.touch(&self.core, &mut state);
        let urgent = state.space.wanted || state.dirty.journal_bytes() > state.ring.batch_limit();
        drop(state);
        if urgent {
            self.shared.call_for_work();
        }
        // A ticket is dropped without the lock: it takes it itself.
        match outcome {
            Ok(remaining) => Ok(Planned::Ready(ZeroTicket { data, remaining })),
            Err(why) => {
                drop(data);
                why.into_planned()
            }
        }
    }

    /// Plans the ends as data writes into `data`, zeroes whole blocks, and returns what remains of them.
    #[expect(clippy::too_many_arguments, reason = "one call; the lock's guard and the ticket must outlive it")]
    fn zero_locked(
        &self,
        state: &mut State,
        writers: &Writers,
        kind: ZeroKind,
        edges: &[Range<u64>],
        whole: Range<u64>,
        waker: &Waker,
        data: &mut Option<WriteTicket>,
    ) -> std::result::Result<Option<Range<u64>>, NotReady> {
        if kind == ZeroKind::WriteZeroes {
            for edge in edges {
                for piece in pieces(edge.clone()) {
                    let (chunk, blocks) = (piece.chunk, piece.blocks());
                    if reads_zero(&writers.layer, chunk, blocks)? != blocks
                        || (writers.pending(chunk) | writers.upper_data(chunk)?) & blocks != 0
                    {
                        data.get_or_insert_with(|| self.ticket()).plan_piece(state, piece, waker)?;
                    }
                }
            }
        }
        zero_blocks(state, writers, whole, waker)
    }
}

/// Zeroes whole blocks until the step is long enough; returns what remains.
fn zero_blocks(
    state: &mut State,
    writers: &Writers,
    whole: Range<u64>,
    waker: &Waker,
) -> std::result::Result<Option<Range<u64>>, NotReady> {
    let head = &writers.layer;
    let mut changes_left = (state.ring.batch_limit() / 128).clamp(1, 1024);
    let mut looks_left = 2 * ENTRIES_PER_TABLE;
    let mut at = whole.start;
    while at < whole.end {
        if changes_left == 0 || looks_left == 0 {
            return Ok(Some(at..whole.end));
        }
        let table_end = (at / TABLE_SPAN + 1) * TABLE_SPAN;
        let covers_table = at.is_multiple_of(TABLE_SPAN)
            && (whole.end >= table_end || whole.end / BLOCK_LEN == head.size.div_ceil(BLOCK_LEN));
        // What the head above a view's has there as data, or claims, must go chunk by chunk.
        let table = ChunkNo::containing(at).table();
        let hides =
            |upper: &Layer| upper.table(table).is_some_and(|table| table.initialised.load(Ordering::Acquire) != 0);
        if covers_table && !writers.upper().is_some_and(hides) {
            if !zero_untouched_table(state, head, at) {
                return Err(out_of_space(state, waker));
            }
            if head.table(ChunkNo::containing(at).table()).is_none() {
                looks_left -= 1;
                at = table_end.min(whole.end);
                continue;
            }
        }
        let piece = pieces(at..whole.end.min(table_end)).next();
        let Some(piece) = piece else { break };
        if zero_piece(state, writers, piece, waker)? {
            changes_left -= 1;
        }
        looks_left -= 1;
        at += piece.end - piece.start;
    }
    Ok(None)
}

/// Makes a table's whole span read as zeros where it has no page yet; false if no slab is free for a table.
fn zero_untouched_table(state: &mut State, head: &Arc<Layer>, at: u64) -> bool {
    let index = ChunkNo::containing(at).table();
    let mut below = head.parent();
    let mut shows = false;
    while let Some(layer) = below {
        shows |= layer.table(index).is_some();
        below = layer.parent();
    }
    // Nothing below: what the head does not have reads as zeros anyway.
    if !shows {
        return true;
    }
    state.table_for_change(head, index, true).is_some()
}

/// Zeroes one chunk's blocks; true if that changed anything.
fn zero_piece(
    state: &mut State,
    writers: &Writers,
    piece: Piece,
    waker: &Waker,
) -> std::result::Result<bool, NotReady> {
    let (head, mask) = (&writers.layer, piece.whole_blocks());
    if writers.pending(piece.chunk) & mask != 0 {
        state.register(waker);
        return Err(NotReady::Busy);
    }
    let above = writers.upper_data(piece.chunk)? & mask;
    let is_zero = reads_zero(head, piece.chunk, mask)? == mask;
    if !is_zero {
        let Some(entry) = state.entry_for_change(head, piece.chunk)? else {
            return Err(out_of_space(state, waker));
        };
        state.zero(head, piece.chunk, &entry, mask);
    }
    // Zeroing again would change nothing more if the page of the head above had to be loaded first.
    if let Some(upper) = writers.upper().filter(|_| above != 0) {
        let Some(entry) = state.entry_for_change(upper, piece.chunk)? else {
            return Err(out_of_space(state, waker));
        };
        state.give_way(upper, piece.chunk, &entry, above);
    }
    Ok(!is_zero || above != 0)
}

/// The blocks of `mask` that read as zeros without their data being looked at.
fn reads_zero(head: &Arc<Layer>, chunk: ChunkNo, mask: BlockMask) -> std::result::Result<BlockMask, NotReady> {
    let mut zero = 0;
    resolve(head, chunk, mask, |blocks, found| {
        if found == Found::Zero {
            zero |= blocks;
        }
    })?;
    Ok(zero)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
    fn edges_are_the_parts_of_blocks() {
        assert_eq!(split_edges(&(0..8192)), (vec![], 0..8192));
        assert_eq!(split_edges(&(512..1024)).0, [512..1024]);
        assert!(split_edges(&(512..1024)).1.is_empty());
        assert_eq!(split_edges(&(512..8704)), (vec![512..4096, 8192..8704], 4096..8192));
        assert_eq!(split_edges(&(512..4096)), (vec![512..4096], 4096..4096));
    }
}
