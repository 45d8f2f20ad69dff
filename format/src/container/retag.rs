//! Tags of what a hydration copies.
//!
//! Invariant (TAG-5, TAG-6): what does not fit its tag is not copied, and a copy's tags are those of its sources with their own
//! addresses, so that damage between reading and writing is found later. Does not: read or write data.

use super::Container;
use super::pieces::Piece;
use crate::error::Result;
use crate::layout::tags::SlabTags;
use crate::units::{LayerId, SlabNo};

impl Container {
    /// The tags of the pieces' sources, which the caller is about to read; nothing if one of them holds no data any more.
    pub(super) fn tags_of_sources(&self, pieces: &[Piece]) -> Option<Vec<Option<SlabTags>>> {
        let slabs: Vec<SlabNo> = pieces.iter().flat_map(|piece| piece.sources()).map(|(_, slab)| *slab).collect();
        self.shared.tags_before_reading(&slabs)
    }

    /// Refuses what was read of the pieces if it is not what their sources were sealed as (TAG-5).
    pub(super) fn verify_pieces(&self, pieces: &[Piece], buffer: &[u8], tags: &[Option<SlabTags>]) -> Result<()> {
        let (mut start, mut of_sources) = (0, tags.iter());
        for piece in pieces {
            let end = start + piece.len_bytes() as usize;
            for ((_, slab), tags) in piece.sources().iter().zip(&mut of_sources) {
                // Of blocks that are in others of the sources it is not asked.
                let bad = tags.as_ref().and_then(|tags| piece.first_bad(*slab, tags, &buffer[start..end]));
                if let Some(bad) = bad {
                    let holder = self.shared.lock().data_in(*slab).map_or(LayerId(0), |(layer, ..)| layer);
                    return Err(bad.error(holder, *slab));
                }
            }
            start = end;
        }
        Ok(())
    }

    /// Gives the copies that have been published the tags of their sources, with their own places (TAG-6). Where there is no
    /// space for them, they are only not sealed yet.
    pub(super) fn seal_copied(
        &self,
        layer: LayerId,
        pieces: &[Piece],
        slabs: &[SlabNo],
        sources: &[Option<SlabTags>],
    ) -> Result<()> {
        if sources.iter().all(Option::is_none) || !self.shared.lock().may_be_tagged(layer) {
            return Ok(());
        }
        let (mut new, mut sources) = (Vec::new(), sources.iter());
        for (piece, &slab) in pieces.iter().zip(slabs) {
            let place = self.shared.lock().data_in(slab).filter(|(owner, ..)| *owner == layer);
            let mut tags = SlabTags::new(place.map_or(layer, |(_, birth, _)| birth), piece.chunk);
            for ((mask, _), source) in piece.sources().iter().zip(&mut sources) {
                if let Some(source) = source {
                    tags.take_over(source, *mask);
                }
            }
            if place.is_some() && tags.mask != 0 {
                new.push((slab, tags));
            }
        }
        self.shared.write_tags(new).map(drop)
    }
}
