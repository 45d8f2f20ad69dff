//! Adoption: slabs of a donor move into a copy layer that lacks just what they hold, so that it need not be copied.
//!
//! Invariant (REL-7, REL-8): a slab moves, masked to blocks that are found where the relation says that both are the same,
//! with both entries and its descriptor in one batch, when every request that may read through the donor has ended; nothing
//! is written into such a slab before that is durable. Does not: read or write data.

use std::cell::Cell;
use std::sync::Arc;

use super::Container;
use super::fill::{Hindrance, HydrateEnd, HydrateStep, HydrateWait, bytes_below};
use super::ops::Slots;
use super::relations::Donor;
use super::state::State;
use crate::error::{Error, Result};
use crate::layer::{Found, InLayer, Layer, PageLoad, resolve_in};
use crate::layout::tags::SlabTags;
use crate::units::{BLOCK_LEN, BlockMask, ChunkNo, LayerId, SLAB_LEN, SlabNo};

/// Layers that one step looks at, chunk by chunk.
const LOOKS_PER_STEP: u64 = 64 << 10;
/// What reading a table page, or moving a slab, counts for.
const LOOKS_PER_PAGE: u64 = 256;
const LOOKS_PER_MOVE: u64 = 16;

/// How far the adoption is that a hydration begins with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Adoption {
    /// Not begun since the container was opened.
    #[default]
    Ahead,
    /// Requests of this grace period and before may read through the donor.
    Waiting { period: u64 },
    /// Chunks before this one have been passed.
    Moving { next: u64 },
    /// What was moved is durable, or there was no donor.
    Over,
}

/// What became of a chunk.
enum Chunk {
    Adopted(BlockMask, Option<(SlabNo, SlabTags)>),
    Nothing,
    Hindered(Hindrance),
    /// The donor is none any more, or nobody fills the layer.
    Gone,
}

impl State {
    fn donor_of(&self, copy: LayerId) -> Option<Donor> {
        if self.is_copy(copy) { self.layer_record(copy).owner.and_then(|owner| self.donor_for(owner)) } else { None }
    }
}

impl Container {
    /// Goes on taking over what a donor has; nothing once that is over, and copying may begin.
    pub(super) fn adopt_slabs(&self, layer: &Arc<Layer>) -> Result<Option<HydrateStep>> {
        let (donor, from, first) = {
            let mut state = self.shared.lock();
            let state = &mut *state;
            let donor = state.donor_of(layer.id);
            let Some(fill) = state.fills.get_mut(&layer.id) else {
                return Ok(Some(HydrateStep::Ended(HydrateEnd::Cancelled)));
            };
            let first = match fill.adoption {
                Adoption::Over => return Ok(None),
                Adoption::Ahead if donor.is_none() => {
                    fill.adoption = Adoption::Over;
                    return Ok(None);
                }
                Adoption::Ahead => {
                    let period = self.shared.end_period(&mut state.alloc);
                    fill.adoption = Adoption::Waiting { period };
                    return Ok(Some(HydrateStep::Copied(0)));
                }
                Adoption::Waiting { period } if !state.alloc.is_over(period) => {
                    return Ok(Some(HydrateStep::Blocked(HydrateWait::Others)));
                }
                Adoption::Waiting { .. } => 0,
                Adoption::Moving { next } => next,
            };
            let from = donor.and_then(|donor| state.layers.get(&donor.layer).cloned());
            (donor, from, first)
        };
        let Some((donor, from)) = donor.zip(from) else {
            return self.end_adoption(layer, None).map(Some);
        };
        let end = bytes_below(layer).min(from.size).div_ceil(SLAB_LEN);
        let (mut next, mut looks, mut adopted, mut tags) = (first, 0, 0, Vec::new());
        let mut hindrance = Ok(None);
        while next < end && looks < LOOKS_PER_STEP && matches!(hindrance, Ok(None)) {
            self.shared.check_open()?;
            let chunk = ChunkNo(next as u32);
            looks += 1;
            match self.adopt_chunk(layer, &from, donor, chunk, &mut looks) {
                Chunk::Adopted(mask, tagged) => {
                    adopted += u64::from(mask.count_ones()) * BLOCK_LEN;
                    tags.extend(tagged);
                    looks += LOOKS_PER_MOVE;
                    next += 1;
                }
                Chunk::Nothing => next = from.no_page_until(chunk),
                Chunk::Hindered(Hindrance::Page(load)) => {
                    looks += LOOKS_PER_PAGE;
                    let of_donor = load.layer == from.id;
                    match self.load_page(load) {
                        Ok(()) => {}
                        // Nobody reads through the donor: what cannot be taken from it is copied.
                        Err(error @ (Error::Io { .. } | Error::Corrupt(_))) if of_donor => {
                            log::warn!("layer {}: no more is taken over from it: {error}", from.id);
                            next = end;
                        }
                        Err(error) => hindrance = Err(error),
                    }
                    // A layer doomed meanwhile takes no page: asking again would never end.
                    if self.shared.lock().donor_of(layer.id) != Some(donor) {
                        next = end;
                    }
                }
                Chunk::Hindered(Hindrance::Space(wait)) => hindrance = Ok(Some(wait)),
                Chunk::Gone => next = end,
            }
        }
        if let Some(fill) = self.shared.lock().fills.get_mut(&layer.id) {
            fill.adoption = Adoption::Moving { next };
            fill.moved.adopted_bytes += adopted;
        }
        if next >= end && hindrance.is_ok() {
            let end = self.end_adoption(layer, Some(donor))?;
            self.shared.write_tags(tags)?;
            return Ok(Some(end));
        }
        // As long as the step is under way, nobody else writes into what it has moved.
        if adopted > 0 {
            self.commit()?;
            self.shared.write_tags(tags)?;
        }
        Ok(Some(match hindrance? {
            Some(wait) if adopted == 0 => {
                self.shared.call_for_work();
                HydrateStep::Blocked(wait)
            }
            Some(_) | None => HydrateStep::Copied(0),
        }))
    }

    /// Nothing is left to take over: what was moved becomes durable before anything is written into it (REL-8).
    fn end_adoption(&self, layer: &Arc<Layer>, donor: Option<Donor>) -> Result<HydrateStep> {
        {
            let mut state = self.lock_for(|_| Ok(Slots { new: 0, changed: 1 }))?;
            if let Some(donor) = donor
                && state.donor_of(layer.id) == Some(donor)
            {
                state.end_donor(donor);
            }
        }
        self.commit()?;
        if let Some(fill) = self.shared.lock().fills.get_mut(&layer.id) {
            fill.adoption = Adoption::Over;
        }
        self.shared.call_for_work();
        Ok(HydrateStep::Copied(0))
    }

    /// Moves one chunk's slab from a donor, as far as the copy layer would show what is in it.
    fn adopt_chunk(
        &self,
        layer: &Arc<Layer>,
        from: &Arc<Layer>,
        donor: Donor,
        chunk: ChunkNo,
        looks: &mut u64,
    ) -> Chunk {
        // What is found stays true: both layers show the same as long as they are there.
        let mask = match same_blocks(layer, from, donor.same, chunk, looks) {
            Ok(0) => return Chunk::Nothing,
            Ok(mask) => mask,
            Err(load) => return Chunk::Hindered(Hindrance::Page(load)),
        };
        let tags = match from.lookup(chunk) {
            InLayer::Entry(entry) => self.shared.tags_of(&[entry.slab()]).swap_remove(0),
            _ => None,
        };
        let mut state = self.shared.lock();
        if state.donor_of(layer.id) != Some(donor) {
            return Chunk::Gone;
        }
        if state.is_behind() {
            return Chunk::Hindered(Hindrance::Space(HydrateWait::Others));
        }
        let entry = match from.lookup(chunk) {
            InLayer::Entry(entry) => entry,
            InLayer::NeedPage(load) => return Chunk::Hindered(Hindrance::Page(load)),
            InLayer::Absent | InLayer::AllZero => return Chunk::Nothing,
        };
        let mask = mask & entry.view().d;
        let to = match state.entry_for_change(layer, chunk) {
            Ok(Some(to)) => to,
            Ok(None) => return Chunk::Hindered(Hindrance::of_space(&state)),
            Err(load) => return Chunk::Hindered(Hindrance::Page(load)),
        };
        if mask == 0 || to.slab().0 != 0 {
            return Chunk::Nothing;
        }
        let slab = entry.slab();
        state.hand_over((from, &entry), (layer, &to), chunk, mask);
        // They are of the slab's new birth, and are written when the move is durable (TAG-4).
        let tags = tags.map(|old| {
            let mut new = SlabTags::new(layer.id, chunk);
            new.take_over(&old, mask);
            (slab, new)
        });
        Chunk::Adopted(mask, tags.filter(|(_, tags)| tags.mask != 0))
    }
}

/// Blocks of a chunk that the copy layer lacks and the donor has: found as data in layer `same` or below it.
fn same_blocks(
    layer: &Arc<Layer>,
    donor: &Layer,
    same: LayerId,
    chunk: ChunkNo,
    looks: &mut u64,
) -> std::result::Result<BlockMask, PageLoad> {
    let has = match donor.lookup(chunk) {
        InLayer::Entry(entry) => entry.view().d,
        InLayer::NeedPage(load) => return Err(load),
        InLayer::Absent | InLayer::AllZero => 0,
    };
    if has == 0 {
        return Ok(0);
    }
    let shown = layer.show(chunk, has)?;
    let Some(parent) = &shown.parent else { return Ok(0) };
    let (is_there, mut mask) = (Cell::new(false), 0);
    resolve_in(
        parent,
        chunk,
        shown.left,
        |layer| {
            *looks += 1;
            is_there.set(is_there.get() || layer.id == same);
        },
        |blocks, found, _| {
            if is_there.get() && matches!(found, Found::Data(_)) {
                mask |= blocks;
            }
        },
    )?;
    Ok(mask)
}
