//! Background work, one bounded step a call: growth, commits, checkpoints, reclaim, freeing what heads hide, merges.
//!
//! Invariant: whatever is left undone by a crash is found again from the catalog (doomed layers) or does not matter.
//! Does not: own a thread; the daemon and the tools call [`Container::maintain`].

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use super::Container;
use super::hidden_steps::Hiding;
use super::merge::MergeJob;
use super::state::State;
use crate::alloc::DESCRIPTOR_SLAB;
use crate::error::Result;
use crate::layout::descriptor::{self, Descriptor};
use crate::sync::Instant;
use crate::units::{LayerId, MIN_IO_LEN, SLAB_LEN, SLABS_PER_GROUP, SlabNo};

/// Slabs looked at per hold of the engine lock while reclaiming.
const SCAN_PER_HOLD: usize = 16 * 1024;
/// Slabs freed per step (JNL-12).
const FREED_PER_STEP: u64 = 4096;
/// Resident pages looked at per step, to evict some if there are too many.
const LOOKS_PER_STEP: usize = 256;
/// Changes are committed after this long even if nobody flushes (JNL-8).
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);
/// A failed growth is tried again after this long.
const GROW_RETRY: Duration = Duration::from_secs(1);
/// Slabs that the file grows by: at least, at most.
const GROW_SLABS: (u64, u64) = ((64 << 20) / SLAB_LEN, (1 << 30) / SLAB_LEN);
/// Smallest growth tried when the file system is nearly full, in slabs.
const GROW_SLABS_LAST: u64 = 8;

/// What a call of [`Container::maintain`] found to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maintained {
    /// Nothing; call again after a while.
    Idle,
    /// A step of something; there may be more.
    Worked,
}

/// Progress of background work between steps.
#[derive(Debug, Default)]
pub(super) struct Background {
    reclaim: Option<Reclaim>,
    pub(super) merge: Option<MergeJob>,
    /// Layers whose merges into their children lacked a slab: not tried again until one is free, so that they hold up no other.
    pub(super) starved_merges: HashSet<LayerId>,
    /// Looks for what heads hide; those that wait for requests of before are the last.
    pub(super) hidings: VecDeque<Hiding>,
    /// The last step was one of these: merges have their turn.
    has_hidden: bool,
    /// Layers that could not be merged, or looked through, because something in them is damaged; not tried again.
    pub(super) unmergeable: HashSet<LayerId>,
    last_commit: Option<Instant>,
    grow_failed: Option<Instant>,
}

/// Work that goes before what frees slabs.
#[derive(Debug)]
struct Due {
    growth: bool,
    checkpoint: bool,
    commit: bool,
    /// [`super::state::Space::chances`] before anything was looked for.
    chances: u64,
}

/// What a look for something to free came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A step of it was done.
    Work,
    /// Requests under way have to end first.
    Wait,
    /// There is nothing.
    Nothing,
}

/// One pass over the descriptors that frees the slabs of doomed layers.
#[derive(Debug)]
struct Reclaim {
    layers: HashSet<LayerId>,
    next: usize,
    /// Slabs to look at, as far as is known.
    slab_count: usize,
}

impl Background {
    /// Slabs that the pass under way has looked at, and slabs to look at.
    pub(super) fn reclaim_progress(&self) -> Option<(u64, u64)> {
        self.reclaim.as_ref().map(|pass| (pass.next as u64, pass.slab_count as u64))
    }
}

impl Container {
    /// Does one bounded step of background work; blocks for its I/O.
    ///
    /// Errors: [`crate::Error::Failed`] once the container has failed.
    pub fn maintain(&self) -> Result<Maintained> {
        self.shared.check_open()?;
        if self.tend_backups()? {
            return Ok(Maintained::Worked);
        }
        let mut background = super::lock(&self.shared.homes);
        let due = self.due(&mut background);
        if due.growth {
            self.grow(&mut background);
            return Ok(Maintained::Worked);
        }
        if due.checkpoint {
            self.checkpoint_locked()?;
            background.last_commit = Some(Instant::now());
            return Ok(Maintained::Worked);
        }
        if due.commit {
            self.commit_reserved()?;
            background.last_commit = Some(Instant::now());
            return Ok(Maintained::Worked);
        }
        let found = self.free_some(&mut background);
        self.show(&background);
        self.shared.set_waits(!background.hidings.is_empty());
        Ok(match found? {
            Found::Work => Maintained::Worked,
            Found::Nothing if self.is_there_a_chance_since(due.chances) => Maintained::Worked,
            Found::Nothing | Found::Wait => Maintained::Idle,
        })
    }

    /// Does a step of what frees slabs.
    fn free_some(&self, background: &mut Background) -> Result<Found> {
        if self.release() || self.reclaim(background) {
            return Ok(Found::Work);
        }
        if std::mem::take(&mut background.has_hidden) && self.merge(background)? {
            return Ok(Found::Work);
        }
        let hidden = self.free_hidden(background)?;
        background.has_hidden = hidden == Found::Work;
        Ok(if hidden != Found::Work && self.merge(background)? { Found::Work } else { hidden })
    }

    /// Nothing was found to free. Tells those who lack a slab that the file cannot give, unless there may be something by
    /// now: true then.
    fn is_there_a_chance_since(&self, chances: u64) -> bool {
        let mut state = self.shared.lock();
        if state.space.failure.is_none() || state.space.is_exhausted() {
            return false;
        }
        if state.space.chances == chances {
            state.space.exhausted_at = Some(chances);
            state.wake_all();
        }
        !state.space.is_exhausted()
    }

    /// Does background work until there is none left or `steps` steps are done.
    pub fn settle(&self, steps: usize) -> Result<()> {
        for _ in 0..steps {
            if self.maintain()? == Maintained::Idle {
                break;
            }
        }
        Ok(())
    }

    /// What is to be done before anything else.
    fn due(&self, background: &mut Background) -> Due {
        let mut state = self.shared.lock();
        self.shared.reap(&mut state);
        state.evict(LOOKS_PER_STEP);
        let wanted = std::mem::take(&mut state.space.wanted);
        let dirty = !state.dirty.is_empty();
        let (free, limbo) = (state.alloc.free_count(), state.alloc.limbo_count());
        let low = free < (growth_slabs(&state) / 4).clamp(64, 1024);
        // Freed slabs need a commit before they can be used again, and are preferred to fresh ones.
        let short = low && (limbo == 0 || (wanted && !dirty));
        let growth_failed = background.grow_failed.is_some_and(|at| at.elapsed() < GROW_RETRY);
        let last = background.last_commit.get_or_insert_with(Instant::now);
        let is_last = growth_failed && free + limbo == 0 && state.space.is_exhausted();
        if wanted && is_last && !state.space.giving_up && state.relations.may_have_donor {
            state.space.giving_up = state.give_up_donor();
        }
        if wanted && short && growth_failed && !state.holdings.is_asked() {
            // Those who wait are told what stands in the way.
            state.wake_all();
        }
        Due {
            growth: short && !growth_failed,
            checkpoint: state.checkpoint_wanted
                || state.ring.used() > state.checkpoint_threshold()
                || state.homes.len() > state.home_pages_threshold(),
            chances: state.space.chances,
            commit: dirty
                && (last.elapsed() >= COMMIT_INTERVAL
                    || ((wanted || low) && limbo > 0)
                    || state.dirty.journal_bytes() > state.ring.batch_limit()),
        }
    }

    /// Makes the file longer.
    fn grow(&self, background: &mut Background) {
        let (count, mut step) = {
            let state = self.shared.lock();
            (state.alloc.slab_count(), growth_slabs(&state))
        };
        let failure = loop {
            let mut target = count + step;
            if target % SLABS_PER_GROUP != 0 && target % SLABS_PER_GROUP <= DESCRIPTOR_SLAB + 1 {
                target += GROW_SLABS_LAST;
            }
            match self.shared.disk.grow(target * SLAB_LEN).and_then(|()| self.clear_descriptors(count, target)) {
                Ok(()) => {
                    let mut state = self.shared.lock();
                    adopt(&mut state, target);
                    background.grow_failed = None;
                    return;
                }
                Err(_) if step > GROW_SLABS_LAST => step /= 2,
                Err(error) => break error,
            }
        };
        background.grow_failed = Some(Instant::now());
        let mut state = self.shared.lock();
        let detail = format!("the container cannot grow beyond {} MiB: {failure}", (count * SLAB_LEN) >> 20);
        if state.space.failure.is_none() {
            log::warn!("{detail}");
        }
        state.space.failure = Some(detail);
        state.wake_all();
    }

    /// Zeroes what the homes of the descriptors of slabs `count..target` hold: new slabs are free because theirs are
    /// zeros, but whoever made the file may have put something else there (CON-19). Home pages are ours: the caller
    /// holds `homes`.
    fn clear_descriptors(&self, count: u64, target: u64) -> std::io::Result<()> {
        let mut changed = false;
        let mut first = count;
        while first < target {
            let group = first / SLABS_PER_GROUP * SLABS_PER_GROUP;
            let end = target.min(group + SLABS_PER_GROUP);
            let home = SlabNo(group + DESCRIPTOR_SLAB).offset();
            // Whole sectors (CON-3): those before `first` in its sector are written back as they are.
            let start = (first - group) * descriptor::LEN as u64;
            let from = start / MIN_IO_LEN * MIN_IO_LEN;
            let len = ((end - group) * descriptor::LEN as u64).next_multiple_of(MIN_IO_LEN) - from;
            let mut bytes = vec![0; len as usize];
            self.shared.disk.read_at(&mut bytes, home + from)?;
            let new = &mut bytes[(start - from) as usize..];
            if new.iter().any(|&byte| byte != 0) {
                new.fill(0);
                self.shared.disk.write_at(&bytes, home + from)?;
                changed = true;
            }
            first = end;
        }
        if changed {
            self.shared
                .disk
                .sync()
                .inspect_err(|error| self.shared.fail(format!("sync of home writes failed: {error}")))?;
        }
        Ok(())
    }

    /// Lets go of what relations keep that have ended; true if there was something to do.
    fn release(&self) -> bool {
        let mut state = self.shared.lock();
        // Each layer's slot is a change of 520 bytes: not more of them at once than a batch should hold.
        let most = (state.ring.batch_limit() / 520) as usize;
        state.release_relations(most)
    }

    /// Frees slabs of doomed layers; true if there was something to do.
    fn reclaim(&self, background: &mut Background) -> bool {
        let mut state = self.shared.lock();
        if background.reclaim.is_none() {
            let drained = |id: &LayerId| {
                state.layers.get(id).is_some_and(|layer| layer.is_drained()) && !state.is_being_filled(*id)
            };
            let layers: HashSet<LayerId> = state.doomed.iter().copied().filter(drained).collect();
            if layers.is_empty() {
                if std::mem::take(&mut state.space.giving_up) {
                    state.wake_all();
                }
                return false;
            }
            background.reclaim = Some(Reclaim { layers, next: 0, slab_count: 0 });
        }
        let Some(pass) = &mut background.reclaim else {
            return false;
        };
        let limit = FREED_PER_STEP.min(state.ring.batch_limit() / 64).max(1);
        pass.slab_count = state.alloc.slab_count() as usize;
        let end = (pass.next + SCAN_PER_HOLD).min(pass.slab_count);
        let mut freed = 0;
        while pass.next < end && freed < limit {
            let slab = SlabNo(pass.next as u64);
            pass.next += 1;
            if let Some(Descriptor::Data { layer, .. } | Descriptor::Table { layer, .. }) = state.alloc.descriptor(slab)
                && pass.layers.contains(&layer)
            {
                state.free_slab(slab);
                freed += 1;
            }
        }
        if pass.next == pass.slab_count {
            // Each layer's slot is a change of 520 bytes: not more of them at once than a batch should hold.
            let most = (state.ring.batch_limit() / 520).max(1) as usize;
            let now: Vec<LayerId> = pass.layers.iter().copied().take(most).collect();
            for layer in now {
                pass.layers.remove(&layer);
                state.remove_layer(layer);
            }
            freed += 1;
            if pass.layers.is_empty() {
                background.reclaim = None;
            }
        }
        // Freed slabs help others only once their record is durable.
        state.space.wanted |= freed > 0;
        true
    }
}

/// Slabs that the file grows by next.
fn growth_slabs(state: &State) -> u64 {
    (state.alloc.slab_count() / 4).clamp(GROW_SLABS.0, GROW_SLABS.1)
}

/// Takes the file's new slabs into the allocator.
fn adopt(state: &mut State, count: u64) {
    for slab in state.alloc.grow(count) {
        state.describe(slab, Descriptor::Reserved);
    }
    let mut counters = state.counters();
    counters.slab_count = count;
    state.set_counters(counters);
    state.space.failure = None;
    state.wake_all();
}
