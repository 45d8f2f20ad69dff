//! Differences: where two volumes may hold different bytes.
//!
//! Role: compares where the two find each block, step by step. Invariant: every byte that differs lies in a range (MAP-34).
//! Does not: read data, so that blocks which were written with what they held are listed too.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use super::Container;
use super::maps::{Content, List, Listing, Looks, Side, Spot, Spots, placed, same_until};
use super::relations::Common;
use super::state::State;
use crate::error::{Error, Result};
use crate::units::{BlockMask, ChunkNo, LayerId, VolumeId};

/// Which of two volumes has a block that the other does not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangedIn {
    /// The first.
    A,
    /// The second.
    B,
    /// Each has one of its own.
    Both,
}

/// Bytes in which two volumes may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiffRange {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Who has what the other does not share (MAP-35).
    pub changed_in: ChangedIn,
    /// What the first volume has there.
    pub a: Content,
    /// What the second volume has there.
    pub b: Content,
}

/// Bytes that a step has listed, or would have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiffCounts {
    /// In all ranges.
    pub bytes: u64,
    /// Changed in the first volume, or in both.
    pub changed_in_a_bytes: u64,
    /// Changed in the second volume, or in both.
    pub changed_in_b_bytes: u64,
    /// Data of the first volume: what copying it to the second would move.
    pub a_data_bytes: u64,
    /// Data of the second volume.
    pub b_data_bytes: u64,
}

/// A part of the difference of two volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiffStep {
    /// Size of the first volume in bytes.
    pub a_size_bytes: u64,
    /// Size of the second.
    pub b_size_bytes: u64,
    /// The first volume's head at the step: another one than at the step before says that a command came between them.
    pub a_head: LayerId,
    /// The second's.
    pub b_head: LayerId,
    /// Ascending; what lies between them is the same in both.
    pub ranges: Vec<DiffRange>,
    /// From the step's beginning to `next`.
    pub counts: DiffCounts,
    /// Where the next step begins, if this was not the last.
    pub next: Option<u64>,
}

/// What both volumes have in some bytes, if they may differ there.
type Difference = (ChangedIn, Content, Content);

impl Container {
    /// Where volumes `a` and `b` may differ, from byte `start` on (MAP-34, MAP-32); blocks for table pages that are not in
    /// memory.
    ///
    /// Errors: as [`Container::map`], and [`Error::Undefined`](crate::Error::Undefined).
    pub fn diff(&self, a: &str, b: &str, start: u64, listing: Listing) -> Result<DiffStep> {
        self.diff_until(a, b, start, listing, &AtomicBool::new(false))
    }

    /// Like [`Container::diff`]; `given_up` as in [`Container::map_until`].
    pub fn diff_until(
        &self,
        a: &str,
        b: &str,
        start: u64,
        listing: Listing,
        given_up: &AtomicBool,
    ) -> Result<DiffStep> {
        self.diff_found(
            |state| Ok([state.defined_volume_id(a)?, state.defined_volume_id(b)?]),
            start,
            listing,
            Zeros::Alike,
            given_up,
        )
    }

    /// Where volume `name` may differ from what `copy` is, or was since it was made, from byte `start` on; nobody may write
    /// either meanwhile (BAK-8).
    ///
    /// Errors: as [`Container::diff`], and [`Error::SinceItself`](crate::Error::SinceItself).
    pub fn changed_since(&self, name: &str, copy: &str, start: u64, listing: Listing) -> Result<DiffStep> {
        if name == copy {
            return Err(Error::SinceItself { name: name.to_owned() });
        }
        let find = |state: &State| Ok([state.defined_volume_id(name)?, state.defined_volume_id(copy)?]);
        self.diff_found(find, start, listing, Zeros::ByLayer, &AtomicBool::new(false))
    }

    /// The difference of the two volumes that `find` finds.
    pub(super) fn diff_found(
        &self,
        find: impl Fn(&State) -> Result<[VolumeId; 2]>,
        start: u64,
        listing: Listing,
        zeros: Zeros,
        given_up: &AtomicBool,
    ) -> Result<DiffStep> {
        loop {
            let (sides, common) = self.sides(&find)?;
            let same = Same::new(&sides, common, zeros);
            if let Some(step) = self.diff_step(&sides, &same, start, listing, Looks::new(given_up))? {
                return Ok(step);
            }
        }
    }

    /// One step, or nothing if a chain changed before anything was found.
    fn diff_step(
        &self,
        sides: &[Side; 2],
        same: &Same,
        start: u64,
        listing: Listing,
        mut looks: Looks<'_>,
    ) -> Result<Option<DiffStep>> {
        let sizes = [sides[0].head.size, sides[1].head.size];
        let (common, size) = (sizes[0].min(sizes[1]), sizes[0].max(sizes[1]));
        let mut list = List::new(listing);
        let mut counts = DiffCounts::default();
        let mut at = start.min(size);
        'step: while at < size && looks.are_left() {
            let chunk = ChunkNo::containing(at);
            let _grace = self.shared.passing();
            let mut end = if at < common { common } else { size };
            let mut found: [Spots; 2] = Default::default();
            for ((side, size), spots) in sides.iter().zip(sizes).zip(&mut found) {
                if at < size {
                    let Some(here) = self.found(side, chunk, &mut looks)? else {
                        break 'step;
                    };
                    *spots = here;
                    end = end.min(same_until(&side.head, chunk).0);
                } else {
                    spots.push((!0, Spot::nowhere(Content::None)));
                }
            }
            for (from, to, difference) in placed(&joined(sides, same, &found), chunk, at, end) {
                if let Some(difference) = difference {
                    if !list.push(from, to, difference) {
                        break 'step;
                    }
                    let len = to - from;
                    counts.bytes += len;
                    counts.changed_in_a_bytes += if difference.0 == ChangedIn::B { 0 } else { len };
                    counts.changed_in_b_bytes += if difference.0 == ChangedIn::A { 0 } else { len };
                    counts.a_data_bytes += if difference.1 == Content::Data { len } else { 0 };
                    counts.b_data_bytes += if difference.2 == Content::Data { len } else { 0 };
                }
                at = to;
            }
        }
        if at == start && at < size {
            return Ok(None);
        }
        let range = |(start, end, (changed_in, a, b))| {
            let length: u64 = end - start;
            DiffRange { start, length, changed_in, a, b }
        };
        let ranges = list.ranges.into_iter().map(range).collect();
        let next = (at < size).then_some(at);
        let ([a_size_bytes, b_size_bytes], [a_head, b_head]) = (sizes, sides.each_ref().map(|side| side.head.id));
        Ok(Some(DiffStep { a_size_bytes, b_size_bytes, a_head, b_head, ranges, counts, next }))
    }
}

/// Whether zeros are the same wherever they are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Zeros {
    /// They are: what is compared is what the volumes show.
    #[default]
    Alike,
    /// Not if one of the layers is not the other's, too: something may have been there in between (BAK-6).
    ByLayer,
}

/// Where both volumes show the same: where data is, because a hydration has copied it (REL-2), and where zeros are.
#[derive(Default)]
struct Same {
    secondary: usize,
    copy: Option<LayerId>,
    /// The layer that was copied from, and those below it.
    bases: HashSet<LayerId>,
    zeros: Zeros,
}

impl Same {
    fn new(sides: &[Side; 2], common: Option<Common>, zeros: Zeros) -> Self {
        let none = Self { zeros, ..Self::default() };
        common.map_or(none, |Common { secondary, copy, base }| {
            let bases = sides[1 - secondary].chain_below(base);
            Self { secondary, copy: Some(copy), bases, zeros }
        })
    }

    fn is_it(&self, spots: [&Spot; 2]) -> bool {
        let (copy, base) = (spots[self.secondary], spots[1 - self.secondary]);
        copy.layer.is_some()
            && copy.layer == self.copy
            && [copy.content, base.content] == [Content::Data; 2]
            && base.layer.is_some_and(|layer| self.bases.contains(&layer))
    }
}

/// In what the blocks of a chunk may differ.
fn joined(sides: &[Side; 2], same: &Same, [a, b]: &[Spots; 2]) -> Vec<(BlockMask, Option<Difference>)> {
    let mut joined = Vec::with_capacity(a.len() + b.len());
    for (mask_a, of_a) in a {
        let both = b.iter().map(|(mask_b, of_b)| (mask_a & mask_b, of_b)).filter(|(mask, _)| *mask != 0);
        joined.extend(both.map(|(mask, of_b)| (mask, difference(sides, same, of_a, of_b))));
    }
    joined
}

/// What may differ between two blocks (MAP-34, MAP-35).
fn difference([a, b]: &[Side; 2], same: &Same, of_a: &Spot, of_b: &Spot) -> Option<Difference> {
    if same.is_it([of_a, of_b]) {
        return None;
    }
    let is_shared = |layer| a.has(layer) && b.has(layer);
    let (shared_a, shared_b) = (of_a.layer.is_some_and(is_shared), of_b.layer.is_some_and(is_shared));
    // Two layers that both have are one in the middle of a merge.
    if shared_a && shared_b {
        return None;
    }
    let is_one_apart = (of_a.layer.is_some() && !shared_a) || (of_b.layer.is_some() && !shared_b);
    let are_zeros = of_a.content == of_b.content && of_a.content != Content::Data;
    if are_zeros && !(same.zeros == Zeros::ByLayer && is_one_apart) {
        return None;
    }
    let changed_in = match (of_a.layer.is_some() && !shared_a, of_b.layer.is_some() && !shared_b) {
        _ if of_a.content == Content::None => ChangedIn::B,
        _ if of_b.content == Content::None => ChangedIn::A,
        (true, true) => ChangedIn::Both,
        (true, false) => ChangedIn::A,
        (false, true) => ChangedIn::B,
        // One does not show what both have: its parent does not show through there.
        (false, false) if shared_b => ChangedIn::A,
        (false, false) => ChangedIn::B,
    };
    Some((changed_in, of_a.content, of_b.content))
}
