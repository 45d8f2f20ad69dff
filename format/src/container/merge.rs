//! Merge: folds a frozen layer into its only child.
//!
//! Invariant (LAY-8): what the child shows never changes. The child publishes first; the parent's entries stay in memory
//! until it is unlinked. A slab changes owner in one batch with both entries. Only frozen, sealed layers are merged.
//! Does not: merge into heads (what they hide is freed: see [`super::hidden_steps`]), or copy a block that the child hides.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::maintain::Background;
use super::state::State;
use super::tags::first_bad;
use super::{Container, Shared};
use crate::error::{Error, Result};
use crate::layer::{InLayer, Layer, Link, PageLoad};
use crate::layout::descriptor::Descriptor;
use crate::layout::slot::{LayerKind, Slot};
use crate::layout::tags::SlabTags;
use crate::units::{
    BLOCK_LEN, BlockMask, ChunkNo, ENTRIES_PER_PAGE, LayerId, PAGES_PER_SLAB, SLAB_LEN, SlabNo, mask_of,
};

/// Chunks looked at per step.
const CHUNKS_PER_STEP: usize = 1024;

/// A merge under way.
#[derive(Debug)]
pub(super) struct MergeJob {
    parent: Arc<Layer>,
    child: Arc<Layer>,
    /// Index among the parent's pages: table * 64 + page.
    next_page: u32,
}

impl MergeJob {
    /// The layer that is folded into its child.
    pub(super) fn parent(&self) -> LayerId {
        self.parent.id
    }

    /// The layer that it is folded into.
    pub(super) fn child(&self) -> LayerId {
        self.child.id
    }

    /// Chunks of the parent that are done, and chunks that it has.
    pub(super) fn chunks(&self) -> (u64, u64) {
        (u64::from(self.next_page) * ENTRIES_PER_PAGE, self.parent.size.div_ceil(SLAB_LEN))
    }
}

/// Blocks to copy within the container before they are published.
#[derive(Debug)]
struct Copy {
    chunk: ChunkNo,
    mask: BlockMask,
    from: SlabNo,
    to: SlabNo,
}

enum Step {
    Done,
    NeedPage(PageLoad),
    NoSpace,
    Copy(Copy),
}

impl From<PageLoad> for Step {
    fn from(load: PageLoad) -> Self {
        Step::NeedPage(load)
    }
}

impl Container {
    /// Does one step of a merge; true if there was something to do.
    pub(super) fn merge(&self, background: &mut Background) -> Result<bool> {
        if background.merge.is_none() {
            let mut state = self.shared.lock();
            if state.alloc.free_count() > 0 && !background.starved_merges.is_empty() {
                background.starved_merges.clear();
                state.merge_possible = true;
            }
            let may_be_tried =
                |parent| ![&background.unmergeable, &background.starved_merges].iter().any(|set| set.contains(&parent));
            background.merge = find_candidate(&mut state, may_be_tried);
        }
        let Some(job) = &mut background.merge else {
            return Ok(false);
        };
        match self.merge_step(job) {
            Ok(Outcome::More) => {}
            Ok(Outcome::Ended) => {
                // A head above the child may hide what has come into it.
                self.shared.lock().look_again_over(job.child.id);
                background.merge = None;
            }
            Ok(Outcome::Blocked) => {
                // It begins anew when a slab is free: meanwhile others may bring blocks into either layer (LAY-74).
                background.starved_merges.insert(job.parent.id);
                self.shared.lock().look_again_over(job.child.id);
                background.merge = None;
            }
            Err(failed @ Error::Failed { .. }) => return Err(failed),
            Err(error) => {
                // One bad page must stop neither other merges nor whoever does background work.
                log::warn!("layer {} is not merged into layer {}: {error}", job.parent.id, job.child.id);
                background.unmergeable.insert(job.parent.id);
                self.shared.lock().look_again_over(job.child.id);
                background.merge = None;
            }
        }
        Ok(true)
    }

    fn merge_step(&self, job: &mut MergeJob) -> Result<Outcome> {
        let pages_end = job.parent.table_limit() * PAGES_PER_SLAB as u32;
        for _ in 0..(CHUNKS_PER_STEP / ENTRIES_PER_PAGE as usize) {
            {
                let state = self.shared.lock();
                if !still_valid(&state, job) {
                    return Ok(Outcome::Ended);
                }
                if state.dirty.journal_bytes() > state.ring.batch_limit() {
                    return Ok(Outcome::More);
                }
            }
            while job.next_page < pages_end && job.parent.table(job.next_page / 64).is_none() {
                job.next_page = (job.next_page / 64 + 1) * 64;
            }
            if job.next_page >= pages_end {
                self.finish(job);
                return Ok(Outcome::Ended);
            }
            if !self.merge_page(job)? {
                return Ok(Outcome::Blocked);
            }
            job.next_page += 1;
        }
        Ok(Outcome::More)
    }

    /// Merges one page's chunks; false if space is lacking for the moment.
    fn merge_page(&self, job: &MergeJob) -> Result<bool> {
        let first = job.next_page * ENTRIES_PER_PAGE as u32;
        let end = job.parent.size.min(job.child.size).div_ceil(SLAB_LEN) as u32;
        for chunk in first..(first + ENTRIES_PER_PAGE as u32).min(end) {
            loop {
                // Whoever takes a slab from the child waits for blocks on their way into it (REL-7).
                let _grace = self.shared.grace.load_full();
                let step = {
                    let mut state = self.shared.lock();
                    // The child may have become a donor, which gets nothing any more.
                    if !still_valid(&state, job) {
                        return Ok(true);
                    }
                    merge_chunk(&mut state, job, ChunkNo(chunk)).unwrap_or_else(|step| step)
                };
                match step {
                    Step::Done => break,
                    Step::NeedPage(load) => {
                        self.load_page(load)?;
                        // A layer doomed meanwhile takes no page: asking again would never end.
                        if !still_valid(&self.shared.lock(), job) {
                            return Ok(true);
                        }
                    }
                    Step::NoSpace => return Ok(false),
                    Step::Copy(copy) => self.copy_blocks(job, &copy)?,
                }
            }
        }
        Ok(true)
    }

    fn copy_blocks(&self, job: &MergeJob, copy: &Copy) -> Result<()> {
        let mut bytes = vec![0; SLAB_LEN as usize];
        // The slab is the parent's until it is unlinked, and nobody else unlinks it meanwhile (`homes` is held).
        let tags = self.shared.tags_of(&[copy.from]).swap_remove(0);
        let mut rest = copy.mask;
        while rest != 0 {
            let start = u64::from(rest.trailing_zeros());
            let len = u64::from((!(rest >> start)).trailing_zeros());
            rest &= !mask_of(start, start + len);
            let buffer = &mut bytes[..(len * BLOCK_LEN) as usize];
            let offset = start * BLOCK_LEN;
            let disk = &self.shared.disk;
            disk.read_at(buffer, copy.from.offset() + offset).map_err(Error::io("cannot read a block to merge"))?;
            if let Some(bad) = tags.as_ref().and_then(|tags| first_bad(tags, mask_of(start, start + len), buffer)) {
                return Err(bad.error(job.parent.id, copy.from));
            }
            disk.write_at(buffer, copy.to.offset() + offset).map_err(Error::io("cannot write a merged block"))?;
        }
        let child = {
            let mut state = self.shared.lock();
            if !still_valid(&state, job) {
                return Ok(());
            }
            if let InLayer::Entry(entry) = job.child.lookup(copy.chunk) {
                entry.set_data(copy.mask);
                state.note_entry(&job.child, copy.chunk, &entry);
            }
            state.data_in(copy.to).filter(|(layer, ..)| state.may_be_tagged(*layer))
        };
        let tagged = match (&tags, child) {
            (Some(tags), Some((_, birth, chunk))) => {
                let mut copied = SlabTags::new(birth, chunk);
                copied.take_over(tags, copy.mask);
                let all = copied.mask == copy.mask;
                self.shared.write_tags(vec![(copy.to, copied)])? && all
            }
            _ => false,
        };
        self.shared.lock().merges_into(job.child.id, tagged);
        Ok(())
    }

    /// Unlinks the parent: the child shows all of it by now.
    fn finish(&self, job: &MergeJob) {
        let mut state = self.shared.lock();
        let state = &mut *state;
        // A command may have come between the last look and now.
        if !still_valid(state, job) {
            return;
        }
        self.shared.unlink_parent(state, &job.parent, &job.child);
    }
}

impl Shared {
    /// Takes a layer out of the chain between its only child, which has all that it shows, and its own parent.
    pub(super) fn unlink_parent(&self, state: &mut State, parent: &Layer, child: &Layer) {
        let above = parent.link();
        let limit = above.limit.min(child.link().limit);
        child.set_link(Link { parent: above.parent.clone(), limit });
        self.resolved.merges.fetch_add(1, Ordering::AcqRel);
        let grandparent = above.parent.as_ref().map(|layer| layer.id);
        state.update_layer(child.id, |record| {
            record.parent = grandparent;
            record.parent_limit = limit;
        });
        state.note_zeroed(child.id, state.zeroed_in(parent.id));
        state.update_layer(parent.id, |record| {
            record.kind = LayerKind::Doomed;
            record.parent = None;
            record.owner = None;
        });
    }
}

enum Outcome {
    More,
    Ended,
    Blocked,
}

/// Whether the layer may be folded into its child: a relation needs it as it is (REL-3).
fn may_go(state: &State, layer: &Layer) -> bool {
    is_frozen(state, layer) && !state.is_pinned(layer.id)
}

/// Whether the layer may take what its parent has: a donor loses what it has (REL-5).
fn may_take(state: &State, layer: &Layer) -> bool {
    is_frozen(state, layer) && state.child_count(layer.id) > 0
}

/// Whether blocks may be merged into a layer. What an ended merge has moved out of it is still in its entries in memory, with
/// slabs that are the child's by now, and absent on disk: nothing that came to them would be stored (LAY-71).
fn takes_blocks(layer: &Layer) -> bool {
    !layer.has_moved.load(Ordering::Relaxed)
}

pub(super) fn is_frozen(state: &State, layer: &Layer) -> bool {
    layer.is_drained() && !state.is_being_filled(layer.id) && state.is_frozen_kind(layer.id)
}

/// A frozen layer whose only user is one frozen child, among those that may be tried.
fn find_candidate(state: &mut State, may_be_tried: impl Fn(LayerId) -> bool) -> Option<MergeJob> {
    if !state.merge_possible {
        return None;
    }
    let frozen = state.slots().iter().filter_map(|slot| match slot {
        Slot::Layer(record) if record.kind == LayerKind::Frozen => Some((record.id, record.parent?)),
        _ => None,
    });
    let pairs: Vec<(LayerId, LayerId)> = frozen.collect();
    let found = pairs.into_iter().find_map(|(child, parent)| {
        let child = state.layers.get(&child)?;
        let parent = state.layers.get(&parent)?;
        (may_be_tried(parent.id)
            && state.child_count(parent.id) == 1
            && takes_blocks(child)
            && may_take(state, child)
            && may_go(state, parent))
        .then(|| MergeJob { parent: parent.clone(), child: child.clone(), next_page: 0 })
    });
    state.merge_possible = found.is_some();
    found
}

fn still_valid(state: &State, job: &MergeJob) -> bool {
    may_take(state, &job.child)
        && may_go(state, &job.parent)
        && state.layer_record(job.child.id).parent == Some(job.parent.id)
        && state.child_count(job.parent.id) == 1
}

/// Moves what the parent shows of one chunk to the child, or says what must happen first.
fn merge_chunk(state: &mut State, job: &MergeJob, chunk: ChunkNo) -> std::result::Result<Step, Step> {
    let (parent, child) = (&job.parent, &job.child);
    let through = child.link().mask(chunk);
    let (p_entry, p_d, p_z, p_slab) = match parent.lookup(chunk) {
        InLayer::Absent => return Ok(Step::Done),
        InLayer::AllZero => (None, 0, !0, SlabNo(0)),
        InLayer::NeedPage(load) => return Err(Step::NeedPage(load)),
        InLayer::Entry(entry) => {
            if entry.stored() == Default::default() {
                return Ok(Step::Done); // moved already, or nothing there
            }
            let view = entry.view();
            (Some(entry), view.d, view.z & !view.d, view.slab)
        }
    };
    let covered = match child.lookup(chunk) {
        InLayer::Absent => 0,
        InLayer::AllZero => !0,
        InLayer::NeedPage(load) => return Err(Step::NeedPage(load)),
        InLayer::Entry(entry) => entry.view().d | entry.view().z,
    };
    let take_d = p_d & through & !covered;
    let take_z = p_z & through & !covered;
    if take_d | take_z == 0 {
        return Ok(Step::Done);
    }
    let Some(entry) = state.entry_for_change(child, chunk)? else {
        return Err(Step::NoSpace);
    };
    if take_d != 0 {
        let own = entry.slab();
        if own.0 != 0 {
            entry.add_zero(take_z);
            state.note_entry(child, chunk, &entry);
            return Ok(Step::Copy(Copy { chunk, mask: take_d, from: p_slab, to: own }));
        }
        let birth = match state.alloc.descriptor(p_slab) {
            Some(Descriptor::Data { birth, .. }) => birth,
            _ => parent.id,
        };
        entry.set_slab(p_slab);
        entry.set_data(take_d);
        state.describe(p_slab, Descriptor::Data { layer: child.id, index: chunk.0, birth });
        // Its tags name the birth, and count as before.
        state.merges_into(child.id, state.is_sealed(parent.id));
        if let Some(p_entry) = p_entry {
            p_entry.mark_moved();
            parent.has_moved.store(true, Ordering::Relaxed);
            state.note_entry(parent, chunk, &p_entry);
        }
    }
    entry.add_zero(take_z);
    state.note_entry(child, chunk, &entry);
    Ok(Step::Done)
}
