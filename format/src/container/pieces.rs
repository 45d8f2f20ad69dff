//! What of a chunk has to be copied into a copy layer, and the reads and writes that do it.
//!
//! Invariant: what is left out is shown by the layer itself, by its child, or as zeros (LAY-32). Does not: perform I/O, or
//! take a lock.

use std::sync::Arc;

use smallvec::SmallVec;

use super::tags::{BadBlock, bad_blocks};
use crate::layer::{Found, Layer, PageLoad, resolve_in};
use crate::layout::tags::SlabTags;
use crate::units::{BLOCK_LEN, BlockMask, ChunkNo, SlabNo};
use crate::volume::runs;

/// Blocks of one chunk that are to be copied, and where they are.
pub(super) struct Piece {
    pub(super) chunk: ChunkNo,
    pub(super) mask: BlockMask,
    from: SmallVec<[(BlockMask, SlabNo); 2]>,
}

impl Piece {
    pub(super) fn len_bytes(&self) -> u64 {
        u64::from(self.mask.count_ones()) * BLOCK_LEN
    }

    /// Blocks that are all in one slab.
    pub(super) fn of_slab(chunk: ChunkNo, mask: BlockMask, slab: SlabNo) -> Self {
        Self { chunk, mask, from: SmallVec::from_slice(&[(mask, slab)]) }
    }

    /// The first block of those in `slab` that is not what it was sealed as; `bytes` are all the piece's blocks.
    pub(super) fn first_bad(&self, slab: SlabNo, tags: &SlabTags, bytes: &[u8]) -> Option<BadBlock> {
        let here = self.from.iter().filter(|(_, source)| *source == slab).fold(0, |mask, (part, _)| mask | part);
        bad_blocks(tags, self.mask, bytes).find(|bad| here >> bad.block & 1 == 1)
    }

    /// The slabs that the blocks are in, and which are in each.
    pub(super) fn sources(&self) -> &[(BlockMask, SlabNo)] {
        &self.from
    }
}

/// Bytes of the container, and their place in a buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Move {
    pub(super) offset: u64,
    pub(super) start: usize,
    pub(super) len: usize,
}

/// The blocks of a chunk that must be copied: data that the layer would show from below and that its child shows through.
/// Counts the layers that are looked at.
pub(super) fn look(
    layer: &Arc<Layer>,
    child: Option<&Layer>,
    chunk: ChunkNo,
    looks: &mut usize,
) -> std::result::Result<Option<Piece>, PageLoad> {
    *looks += 1;
    let shown = layer.show(chunk, !0)?;
    let Some(parent) = &shown.parent else { return Ok(None) };
    let mut want = shown.left;
    if let Some(child) = child {
        *looks += 1;
        let above = child.show(chunk, want)?;
        want &= !(above.data | above.zero);
    }
    let mut from: SmallVec<[(BlockMask, SlabNo); 2]> = SmallVec::new();
    if want != 0 {
        let piece = |mask, found, _: &Arc<Layer>| match found {
            Found::Data(slab) => from.push((mask, slab)),
            Found::Zero => {}
        };
        resolve_in(parent, chunk, want, |_| *looks += 1, piece)?;
    }
    let mask = from.iter().fold(0, |mask, (part, _)| mask | part);
    Ok((mask != 0).then_some(Piece { chunk, mask, from }))
}

/// Where the pieces' blocks are: packed into a buffer one after the other.
pub(super) fn reads(pieces: &[Piece]) -> Vec<Move> {
    let mut moves = Vec::new();
    for piece in pieces {
        let mut parts: SmallVec<[(u64, u64, SlabNo); 8]> = SmallVec::new();
        for &(mask, slab) in &piece.from {
            parts.extend(runs(mask).map(|(first, end)| (first, end, slab)));
        }
        parts.sort_unstable_by_key(|(first, ..)| *first);
        parts.into_iter().for_each(|part| push(&mut moves, part));
    }
    moves
}

/// Where they go to, from the same buffer.
pub(super) fn writes(pieces: &[Piece], slabs: &[SlabNo]) -> Vec<Move> {
    let mut moves = Vec::new();
    for (piece, &slab) in pieces.iter().zip(slabs) {
        runs(piece.mask).for_each(|(first, end)| push(&mut moves, (first, end, slab)));
    }
    moves
}

/// Adds blocks `first..end` of a slab behind the others.
fn push(moves: &mut Vec<Move>, (first, end, slab): (u64, u64, SlabNo)) {
    let (offset, len) = (slab.offset() + first * BLOCK_LEN, ((end - first) * BLOCK_LEN) as usize);
    match moves.last_mut() {
        Some(last) if last.offset + last.len as u64 == offset => last.len += len,
        last => {
            let start = last.map_or(0, |last| last.start + last.len);
            moves.push(Move { offset, start, len });
        }
    }
}
