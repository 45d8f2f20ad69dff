//! Planning reads.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use super::{Piece, Planned, Volume, pieces, runs};
use crate::alloc::Grace;
use crate::error::Result;
use crate::layer::Found;
use crate::units::{BLOCK_LEN, ChunkNo, TABLE_SPAN};

/// A piece of a read, in the order of the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadSegment {
    /// Bytes to read from the container.
    Data {
        /// Byte offset in the container; a multiple of 512.
        disk_offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Bytes that read as zeros.
    Zero {
        /// Bytes.
        len: u64,
    },
}

/// Where a range's bytes are. Reusable; while it is kept, none of the slabs it names is reused.
#[derive(Debug, Default)]
pub struct ReadPlan {
    segments: SmallVec<[ReadSegment; 8]>,
    grace: Option<Arc<Grace>>,
}

impl ReadPlan {
    /// The segments; together they are as long as the range.
    pub fn segments(&self) -> &[ReadSegment] {
        &self.segments
    }

    /// Forgets the plan and lets its slabs go.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.grace = None;
    }

    fn push(&mut self, segment: ReadSegment) {
        match (self.segments.last_mut(), segment) {
            (Some(ReadSegment::Zero { len }), ReadSegment::Zero { len: more }) => *len += more,
            (Some(ReadSegment::Data { disk_offset, len }), ReadSegment::Data { disk_offset: next, len: more })
                if *disk_offset + *len == next =>
            {
                *len += more;
            }
            _ => self.segments.push(segment),
        }
    }

    fn push_piece(&mut self, piece: Piece, found: &[(u64, u64, Found)]) {
        for &(first, end, place) in found {
            let start = piece.start.max(first * BLOCK_LEN);
            let len = piece.end.min(end * BLOCK_LEN) - start;
            self.push(match place {
                Found::Data(slab) => ReadSegment::Data { disk_offset: slab.offset() + start, len },
                Found::Zero => ReadSegment::Zero { len },
            });
        }
    }
}

impl Volume {
    /// The end of the run from `offset` in which no layer has a table at all, so that it reads as zeros.
    pub(crate) fn untouched_until(&self, offset: u64) -> Option<u64> {
        let index = ChunkNo::containing(offset).table();
        let _grace = self.shared.passing();
        let mut next = Some(self.core.head());
        while let Some(layer) = next {
            if layer.table(index).is_some() {
                return None;
            }
            next = layer.parent();
        }
        Some((u64::from(index) + 1) * TABLE_SPAN)
    }

    /// Plans a read of `range` (bytes, multiples of 512, within the volume) into `plan`, which is cleared first.
    ///
    /// Each block comes from the nearest layer that has it (MAP-1). Takes no lock.
    ///
    /// Errors: [`crate::Error::BadRange`], [`crate::Error::VolumeGone`].
    pub fn plan_read(&self, range: Range<u64>, plan: &mut ReadPlan) -> Result<Planned<()>> {
        plan.clear();
        // The token before the maps: a slab unlinked later is not reused while the plan lives (JNL-6).
        plan.grace = Some(self.shared.grace.load_full());
        let writers = self.core.current.load();
        // After the head was taken: a deletion first says that the volume is gone, then takes the head away.
        self.check(&range)?;
        for piece in pieces(range) {
            let mut found: SmallVec<[(u64, u64, Found); 8]> = SmallVec::new();
            let show = |mask, place| found.extend(runs(mask).map(|(first, end)| (first, end, place)));
            let resolved = &self.shared.resolved;
            if let Err(load) = resolved.resolve(&writers.layer, &writers.deep, piece.chunk, piece.blocks(), show) {
                plan.clear();
                return Ok(Planned::NeedPage(load));
            }
            if found.len() > 1 {
                found.sort_unstable_by_key(|(first, ..)| *first);
            }
            plan.push_piece(piece, &found);
        }
        Ok(Planned::Ready(()))
    }
}
