//! Maps: which blocks of a volume are its own, were written, are to be copied, and in which two volumes may differ.
//!
//! Role: looks at chunk entries, step by step, loading table pages as it goes. Invariant: a step is of one chain of each
//! volume (MAP-33), and covers every byte that it passes (MAP-30, MAP-34). Does not: read data, hold the engine lock while
//! it looks, or keep anything between two steps.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use smallvec::SmallVec;

use super::Container;
use super::chain::ChainWalk;
use super::relations::Common;
use super::state::State;
use crate::error::{Error, Result};
use crate::layer::{Layer, PageLoad};
use crate::units::{BLOCK_LEN, BlockMask, ChunkNo, LayerId, SLAB_LEN, SlabNo, VolumeId};
use crate::volume::{VolumeCore, runs};

/// Entries of layers that one step looks at.
const LOOKS_PER_STEP: usize = 256 << 10;
/// What reading one table page counts for: a step on a slow disk shall not take longer than one in memory by orders.
const LOOKS_PER_PAGE: usize = 1 << 10;
/// How often the layers of chains are looked up anew because a merge has taken one out meanwhile.
const CHAIN_TRIES: u32 = 4;

/// What a step may still look at.
#[derive(Debug)]
pub(super) struct Looks<'a> {
    left: usize,
    given_up: &'a AtomicBool,
}

impl<'a> Looks<'a> {
    pub(super) fn new(given_up: &'a AtomicBool) -> Self {
        Self { left: LOOKS_PER_STEP, given_up }
    }

    pub(super) fn are_left(&self) -> bool {
        self.left > 0
    }

    fn spend(&mut self, looks: usize) {
        self.left = self.left.saturating_sub(looks);
    }

    /// Refuses to go on once nobody waits for the step any more.
    fn check(&self) -> Result<()> {
        if self.given_up.load(Ordering::SeqCst) { Err(Error::ListingGivenUp) } else { Ok(()) }
    }
}

/// What a step lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// At most so many ranges, but one at least.
    Ranges(usize),
    /// Nothing: only the counts are of interest.
    Counts,
}

/// What is found in a place without looking at data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    /// Data; it may be zeros.
    Data,
    /// Zeros, or nothing that any layer has.
    Zero,
    /// The volume ends before it.
    None,
}

/// Bytes of a volume of which its maps say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MapRange {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// V: found in a layer of the volume's own, or in none.
    pub valid: bool,
    /// M: written or zeroed since the volume's last point-in-time event.
    pub modified: bool,
    /// R: data that hydrating has still to copy; never of a volume that is not being hydrated.
    pub to_copy: bool,
    /// What is there; never [`Content::None`].
    pub content: Content,
}

/// Bytes that a step has passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MapCounts {
    /// V is set.
    pub valid_bytes: u64,
    /// V is not set: found in layers of others.
    pub others_bytes: u64,
    /// M is set.
    pub modified_bytes: u64,
    /// R is set.
    pub to_copy_bytes: u64,
    /// Found as data, whoever's it is.
    pub data_bytes: u64,
    /// Bytes of data in layers of its own.
    pub own_data_bytes: u64,
    /// Bytes of data that have tags, whoever's they are.
    pub sealed_bytes: u64,
}

/// A part of a volume's maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MapStep {
    /// The volume's size in bytes.
    pub size_bytes: u64,
    /// The volume's head at the step: another one than at the step before says that a command came between them.
    pub head: LayerId,
    /// Ascending, without gaps.
    pub ranges: Vec<MapRange>,
    /// All bytes from the step's beginning to `next`.
    pub counts: MapCounts,
    /// Where the next step begins, if this was not the last.
    pub next: Option<u64>,
}

/// A volume as it is at the beginning of a step.
pub(super) struct Side {
    id: VolumeId,
    core: Arc<VolumeCore>,
    pub(super) head: Arc<Layer>,
    /// The layers of its chain, and whether each is its own (LAY-7).
    chain: HashMap<LayerId, bool>,
    /// It is being hydrated.
    hydrating: bool,
}

/// What is found of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) content: Content,
    /// Where; `None`: in no layer.
    pub(super) layer: Option<LayerId>,
    /// The slab, if it is data.
    slab: SlabNo,
}

impl Spot {
    /// A place that no layer has.
    pub(super) fn nowhere(content: Content) -> Self {
        Self { content, layer: None, slab: SlabNo(0) }
    }
}

/// What is found of the blocks of a chunk: each block is in one of the masks.
pub(super) type Spots = SmallVec<[(BlockMask, Spot); 8]>;

impl Side {
    /// A volume with an empty chain: [`Container::find_chains`] is next.
    fn new(state: &State, name: &str) -> Result<Self> {
        Ok(Self::of(state, state.volume_id(name)?))
    }

    /// As [`Side::new`], of a volume that is there.
    pub(super) fn of(state: &State, id: VolumeId) -> Self {
        let core = state.volumes[&id].clone();
        let head = core.head();
        Self { id, core, head, chain: HashMap::new(), hydrating: false }
    }

    /// Whether the volume still has the head of the step's beginning.
    fn is_current(&self) -> bool {
        self.core.head().id == self.head.id
    }

    fn is_own(&self, layer: LayerId) -> bool {
        self.chain.get(&layer).copied().unwrap_or(false)
    }

    /// The layers of its chain from `first` down; none if that is not one of them.
    pub(super) fn chain_below(&self, first: LayerId) -> HashSet<LayerId> {
        let chain = std::iter::successors(Some(self.head.clone()), |layer| layer.parent());
        chain.map(|layer| layer.id).skip_while(|id| *id != first).collect()
    }

    /// Whether the layer is in the volume's chain.
    pub(super) fn has(&self, layer: LayerId) -> bool {
        self.chain.contains_key(&layer)
    }
}

impl Container {
    /// The V, M and R maps of volume `name` from byte `start` on (MAP-30, MAP-32); blocks for table pages that are not in
    /// memory.
    ///
    /// Errors: [`crate::Error::NoSuchVolume`], [`crate::Error::Io`], [`crate::Error::Corrupt`].
    pub fn map(&self, name: &str, start: u64, listing: Listing) -> Result<MapStep> {
        self.map_until(name, start, listing, &AtomicBool::new(false))
    }

    /// Like [`Container::map`]; setting `given_up` ends it with [`Error::ListingGivenUp`] before its next chunk or page.
    pub fn map_until(&self, name: &str, start: u64, listing: Listing, given_up: &AtomicBool) -> Result<MapStep> {
        loop {
            let mut side = [Side::new(&self.shared.lock(), name)?];
            self.find_chains(&mut side);
            let [side] = side;
            if let Some(step) = self.map_step(&side, start, listing, Looks::new(given_up))? {
                return Ok(step);
            }
        }
    }

    /// One step, or nothing if the volume's chain changed before anything was found.
    fn map_step(&self, side: &Side, start: u64, listing: Listing, mut looks: Looks<'_>) -> Result<Option<MapStep>> {
        let size = side.head.size;
        let mut list = List::new(listing);
        let mut counts = MapCounts::default();
        let mut at = start.min(size);
        'step: while at < size && looks.are_left() {
            let chunk = ChunkNo::containing(at);
            let _grace = self.shared.passing();
            let Some(spots) = self.found(side, chunk, &mut looks)? else {
                break;
            };
            let end = same_until(&side.head, chunk).0.min(size);
            let tagged = self.tagged_blocks(&spots);
            for (from, to, Spot { content, layer, slab }) in placed(&spots, chunk, at, end) {
                let valid = layer.is_none_or(|layer| side.is_own(layer));
                let modified = layer == Some(side.head.id);
                let to_copy = side.hydrating && !valid && content == Content::Data;
                if !list.push(from, to, (valid, modified, to_copy, content)) {
                    break 'step;
                }
                *(if valid { &mut counts.valid_bytes } else { &mut counts.others_bytes }) += to - from;
                counts.modified_bytes += if modified { to - from } else { 0 };
                counts.to_copy_bytes += if to_copy { to - from } else { 0 };
                counts.data_bytes += if content == Content::Data { to - from } else { 0 };
                let mask = tagged.iter().find(|(found, _)| *found == slab).map_or(0, |(_, mask)| *mask);
                counts.sealed_bytes += bytes_of(mask, chunk, from, to);
                counts.own_data_bytes += if valid && content == Content::Data { to - from } else { 0 };
                at = to;
            }
        }
        if at == start && at < size {
            return Ok(None);
        }
        let range = |(start, end, (valid, modified, to_copy, content))| {
            let length: u64 = end - start;
            MapRange { start, length, valid, modified, to_copy, content }
        };
        let ranges = list.ranges.into_iter().map(range).collect();
        let next = (at < size).then_some(at);
        Ok(Some(MapStep { size_bytes: size, head: side.head.id, ranges, counts, next }))
    }

    /// Which blocks have tags, of each slab that is found.
    fn tagged_blocks(&self, spots: &Spots) -> SmallVec<[(SlabNo, BlockMask); 8]> {
        let slabs: SmallVec<[SlabNo; 8]> = spots.iter().map(|(_, spot)| spot.slab).filter(|slab| slab.0 != 0).collect();
        let tags = self.shared.tags_of(&slabs);
        slabs.into_iter().zip(tags).map(|(slab, tags)| (slab, tags.map_or(0, |tags| tags.mask))).collect()
    }

    /// Two volumes, with their heads and what they have in common, of one instant.
    pub(super) fn sides(&self, find: impl Fn(&State) -> Result<[VolumeId; 2]>) -> Result<([Side; 2], Option<Common>)> {
        let (mut sides, common) = {
            let state = self.shared.lock();
            let ids = find(&state)?;
            (ids.map(|id| Side::of(&state, id)), state.common(ids))
        };
        self.find_chains(&mut sides);
        Ok((sides, common))
    }

    /// Finds the layers of chains, a few at a time: a long chain holds nobody up. A merge that takes one out meanwhile makes
    /// no layer shared that is not, as merges only take layers out; so where they never pause, what is found by then counts.
    /// A copy layer that comes in is met by [`Container::found`].
    fn find_chains(&self, sides: &mut [Side]) {
        for _ in 0..CHAIN_TRIES {
            let merges = self.shared.resolved.merges.load(Ordering::Acquire);
            for side in &mut *sides {
                (side.chain, side.hydrating) = (HashMap::new(), false);
                let mut walk = ChainWalk::new(side.id, side.head.clone());
                while walk.is_left() {
                    let state = self.shared.lock();
                    walk.go_on(&state, |layer, is_own| {
                        side.chain.insert(layer.id, is_own);
                        side.hydrating |= state.is_copy_for(layer.id, side.id);
                        true
                    });
                }
            }
            if self.shared.resolved.merges.load(Ordering::Acquire) == merges {
                break;
            }
        }
    }

    /// Where the blocks of a chunk are found; `None` if the volume got another head, or a layer has come into its chain,
    /// meanwhile.
    pub(super) fn found(&self, side: &Side, chunk: ChunkNo, looks: &mut Looks<'_>) -> Result<Option<Spots>> {
        loop {
            looks.check()?;
            if !side.is_current() {
                return Ok(None);
            }
            match look(&side.head, chunk, looks) {
                Ok(spots) => {
                    let is_known = |(_, spot): &(_, Spot)| spot.layer.is_none_or(|layer| side.has(layer));
                    return Ok(spots.iter().all(is_known).then_some(spots));
                }
                Err(load) => {
                    let mut next = Some(load);
                    while let Some(load) = next {
                        looks.check()?;
                        looks.spend(LOOKS_PER_PAGE);
                        next = self.load_one_page(load)?;
                    }
                }
            }
        }
    }
}

/// Bytes from `start` to `end` that lie in the blocks `mask` of a chunk.
fn bytes_of(mask: BlockMask, chunk: ChunkNo, start: u64, end: u64) -> u64 {
    let run = |(first, last): (u64, u64)| {
        let (from, to) = (chunk.start() + first * BLOCK_LEN, chunk.start() + last * BLOCK_LEN);
        to.min(end).saturating_sub(from.max(start))
    };
    runs(mask).map(run).sum()
}

/// Finds each block of a chunk in the nearest layer that has it (MAP-1).
fn look(head: &Arc<Layer>, chunk: ChunkNo, looks: &mut Looks<'_>) -> std::result::Result<Spots, PageLoad> {
    let mut spots = Spots::new();
    let mut want: BlockMask = !0;
    let mut next = Some(head.clone());
    while let Some(layer) = next {
        looks.spend(1);
        let shown = layer.show(chunk, want)?;
        let here = Some(layer.id);
        for (mask, content, layer) in
            [(shown.data, Content::Data, here), (shown.zero, Content::Zero, here), (shown.hidden, Content::Zero, None)]
        {
            if mask != 0 {
                let slab = if content == Content::Data { shown.slab } else { SlabNo(0) };
                spots.push((mask, Spot { content, layer, slab }));
            }
        }
        (want, next) = (shown.left, shown.parent);
    }
    Ok(spots)
}

/// The byte up to which all chunks say what `chunk` says, as far as that shows without looking at each: where no layer has
/// a page for them; and how many layers were asked. Asked after a look at `chunk`: pages come, and never go.
pub(super) fn same_until(head: &Arc<Layer>, chunk: ChunkNo) -> (u64, usize) {
    let number = u64::from(chunk.0);
    let mut end = u64::MAX;
    let mut asked = 0;
    let mut next = Some(head.clone());
    while let Some(layer) = next {
        asked += 1;
        let link = layer.link();
        end = end.min(layer.no_page_until(chunk));
        if end == number + 1 || link.limit <= chunk.start() {
            break;
        }
        // The chunk in which the parent ceases to show is not like those before it.
        end = end.min((link.limit / SLAB_LEN).max(number + 1));
        next = link.parent.clone();
    }
    (end * SLAB_LEN, asked)
}

/// What is found of a chunk's blocks in ascending order, from byte `start` to `end` or the chunk's end. Where all blocks
/// are alike, so are those of the chunks up to `end`.
pub(super) fn placed<T: Copy>(
    parts: &[(BlockMask, T)],
    chunk: ChunkNo,
    start: u64,
    end: u64,
) -> SmallVec<[(u64, u64, T); 8]> {
    let mut placed: SmallVec<[_; 8]> = SmallVec::new();
    if let [(_, part)] = parts {
        placed.push((start, end, *part));
        return placed;
    }
    for (mask, part) in parts {
        placed.extend(runs(*mask).filter_map(|(first, last)| {
            let from = start.max(chunk.start() + first * BLOCK_LEN);
            let to = end.min(chunk.start() + last * BLOCK_LEN);
            (from < to).then_some((from, to, *part))
        }));
    }
    placed.sort_unstable_by_key(|(from, ..)| *from);
    placed
}

/// Ranges that are joined as they come.
pub(super) struct List<K> {
    listing: Listing,
    pub(super) ranges: Vec<(u64, u64, K)>,
}

impl<K: Copy + PartialEq> List<K> {
    pub(super) fn new(listing: Listing) -> Self {
        Self { listing, ranges: Vec::new() }
    }

    /// Adds a range behind the others; false if there is no room for it.
    pub(super) fn push(&mut self, start: u64, end: u64, kind: K) -> bool {
        let Listing::Ranges(limit) = self.listing else {
            return true;
        };
        if let Some((_, last, before)) = self.ranges.last_mut()
            && (*last, *before) == (start, kind)
        {
            *last = end;
            return true;
        }
        let has_room = self.ranges.len() < limit.max(1);
        if has_room {
            self.ranges.push((start, end, kind));
        }
        has_room
    }
}
