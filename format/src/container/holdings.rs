//! What backups under way keep, and their end where guests need that (BAK-20 to BAK-24).
//!
//! Invariant: what is counted is never less than what would be free without the backups; a write that finds no space fails
//! only if no backup keeps anything (BAK-24). Whoever does background work looks, so that no backup's own thread, target or
//! pause is in the way. Does not: move data, or tell people.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::state::State;
use super::{CacheInfo, Container};
use crate::error::{Error, Result};
use crate::sync::{AtomicBool, Instant, Mutex, OnceLock};
use crate::units::{LayerId, RegionId, SLAB_LEN, VolumeId};

/// How often regions are looked at (BAK-21).
const LOOK_PERIOD: Duration = Duration::from_millis(200);

/// What the engine knows of a backup under way.
#[derive(Debug)]
pub(super) struct Holding {
    /// Its instant.
    instant: VolumeId,
    /// Its second one, when the live volume had been read through.
    end: Mutex<Option<VolumeId>>,
    region: Option<RegionId>,
    /// Why it was ended for the guests' sake.
    ended: OnceLock<Error>,
    /// Its region when that first reached its high-water mark.
    high: OnceLock<CacheInfo>,
    /// It has been released: what is left of it is let go as soon as possible.
    over: AtomicBool,
}

impl Holding {
    pub(super) fn new(instant: VolumeId, region: Option<RegionId>) -> Self {
        let (end, ended, high, over) = (Mutex::new(None), OnceLock::new(), OnceLock::new(), AtomicBool::new(false));
        Self { instant, end, region, ended, high, over }
    }

    pub(super) fn end(&self) -> Option<VolumeId> {
        *super::lock(&self.end)
    }

    pub(super) fn set_end(&self, end: VolumeId) {
        let before = super::lock(&self.end).replace(end);
        debug_assert_eq!(before, None, "the live volume is read through once");
    }

    pub(super) fn ended(&self) -> Option<&Error> {
        self.ended.get()
    }

    pub(super) fn high_water(&self) -> Option<&CacheInfo> {
        self.high.get()
    }

    pub(super) fn set_over(&self) {
        self.over.store(true, Ordering::Release);
    }

    fn is_under_way(&self) -> bool {
        !self.over.load(Ordering::Acquire) && self.ended.get().is_none()
    }

    /// Its instants, the later one first.
    pub(super) fn instants(&self) -> Vec<VolumeId> {
        self.end().into_iter().chain([self.instant]).collect()
    }
}

/// The backups under way, and those that could not be released yet.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    all: Vec<Arc<Holding>>,
    /// Backups that begin: their instants are not known yet, but something may be kept for them.
    beginning: u32,
    looked: Option<Instant>,
    /// A guest's write has found no space.
    asked: bool,
    /// Counts what may let a backup keep more.
    changes: u64,
    /// That count when no backup kept anything.
    kept_nothing_at: Option<u64>,
}

impl Holdings {
    pub(super) fn add(&mut self, holding: Arc<Holding>) {
        self.all.push(holding);
        self.changed();
    }

    fn remove(&mut self, holding: &Arc<Holding>) {
        self.all.retain(|found| !Arc::ptr_eq(found, holding));
    }

    /// Something has changed that may let a backup keep more.
    pub(super) fn changed(&mut self) {
        self.changes += 1;
    }

    /// Whether a write that finds no space has to wait until it was looked what backups keep; asks for that.
    pub(crate) fn are_in_the_way(&mut self) -> bool {
        let looked_in_vain = self.all.is_empty() || self.kept_nothing_at == Some(self.changes);
        let may_keep = self.beginning > 0 || !looked_in_vain;
        self.asked |= may_keep;
        may_keep
    }

    /// Whether a write waits for a look.
    pub(super) fn is_asked(&self) -> bool {
        self.asked && (self.beginning > 0 || !self.all.is_empty())
    }
}

/// A backup that begins, until it is known.
#[derive(Debug)]
pub(super) struct Beginning(Container);

impl Beginning {
    pub(super) fn new(container: &Container) -> Self {
        container.shared.lock().holdings.beginning += 1;
        Self(container.clone())
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        let mut state = self.0.shared.lock();
        state.holdings.beginning -= 1;
        // Who waits asks again.
        state.wake_all();
    }
}

impl State {
    /// Children of a layer that have other users than backups; two at most.
    fn users(&self, layer: LayerId, only: &HashSet<LayerId>) -> [Option<LayerId>; 2] {
        let mut users = self.children.get(&layer).into_iter().flatten().filter(|child| !only.contains(child));
        [users.next().copied(), users.next().copied()]
    }
}

impl Container {
    /// Looks at the backups under way, if it is time or a guest lacks space: lets full regions grow (BAK-23), and ends what
    /// guests cannot afford (BAK-21, BAK-24). True if something was done. Blocks for its commits; takes `control`, but does
    /// not wait for it.
    ///
    /// Errors: [`Error::Failed`] once the container has failed.
    pub(super) fn tend_backups(&self) -> Result<bool> {
        {
            let state = self.shared.lock();
            let holdings = &state.holdings;
            let is_due = holdings.looked.is_none_or(|at| at.elapsed() >= LOOK_PERIOD);
            if holdings.all.is_empty() || !(is_due || holdings.asked) {
                return Ok(false);
            }
        }
        let Some(_control) = super::try_lock(&self.shared.control) else { return Ok(false) };
        let (all, changes, asked, is_full) = {
            let mut state = self.shared.lock();
            state.holdings.looked = Some(Instant::now());
            let asked = std::mem::take(&mut state.holdings.asked);
            (state.holdings.all.clone(), state.holdings.changes, asked, state.is_full())
        };
        let mut worked = false;
        for holding in all.iter().filter(|holding| !holding.is_under_way()) {
            worked |= self.try_release(holding)?;
        }
        let regions: BTreeSet<RegionId> = all.iter().filter_map(|holding| holding.region).collect();
        for region in regions {
            let drawing: Vec<_> = all.iter().filter(|holding| holding.region == Some(region)).collect();
            worked |= self.tend_region(region, &drawing)?;
        }
        // Space may have come meanwhile.
        if asked && is_full {
            for holding in all.iter().filter(|holding| holding.is_under_way()) {
                let kept_bytes = self.kept_slabs(&holding.instants()) * SLAB_LEN;
                if kept_bytes > 0 {
                    self.end_backup(holding, Error::BackupEnded { kept_bytes })?;
                    worked = true;
                }
            }
            self.shared.lock().holdings.kept_nothing_at = Some(changes);
        }
        if asked {
            self.shared.lock().wake_all();
        }
        Ok(worked)
    }

    /// Looks at a region that these backups draw on.
    fn tend_region(&self, region: RegionId, drawing: &[&Arc<Holding>]) -> Result<bool> {
        let Some(cache) = self.cache_of(region) else { return Ok(false) };
        for holding in drawing.iter().filter(|_| cache.is_high()) {
            // Told once.
            holding.high.get_or_init(|| cache.clone());
        }
        if !cache.is_full() {
            return Ok(false);
        }
        let cache = match self.grow_cache(cache) {
            Ok(grown) if !grown.is_full() => return Ok(true),
            Ok(cache) => cache,
            Err(error @ Error::Failed { .. }) => return Err(error),
            Err(error) => {
                log::warn!("a cache region is full and does not grow: {error}");
                return Ok(false);
            }
        };
        let mut worked = false;
        for holding in drawing.iter().filter(|holding| holding.is_under_way()) {
            let (name, used, limit) = (cache.name.clone(), cache.used_bytes, cache.limit_bytes);
            self.end_backup(holding, Error::CacheFull { name, limit, used })?;
            worked = true;
        }
        Ok(worked)
    }

    /// Ends a backup for the guests' sake. The caller holds `control`.
    fn end_backup(&self, holding: &Arc<Holding>, why: Error) -> Result<()> {
        // Whoever reads the instant must find the reason when it is gone.
        holding.ended.get_or_init(|| why);
        self.try_release(holding).map(drop)
    }

    /// Lets go of a backup's instants; false if that must be tried again. The caller holds `control`.
    fn try_release(&self, holding: &Arc<Holding>) -> Result<bool> {
        match self.release_holding(holding) {
            Ok(()) => Ok(true),
            Err(error @ (Error::Failed { .. } | Error::Closed)) => Err(error),
            Err(error) => {
                log::debug!("what a backup held is not released yet: {error}");
                Ok(false)
            }
        }
    }

    /// Lets go of a backup's instants, as far as they are still there. The caller holds `control`.
    pub(super) fn release_holding(&self, holding: &Arc<Holding>) -> Result<()> {
        for id in holding.instants() {
            if self.shared.lock().instants.contains(&id) {
                self.delete_found(|_| Ok(id))?;
            }
        }
        let mut state = self.shared.lock();
        state.holdings.remove(holding);
        // Who waits for a look asks again.
        state.wake_all();
        Ok(())
    }

    /// Slabs that are kept only for these instants, at most (BAK-20). The engine lock is held for a layer at a time.
    pub(super) fn kept_slabs(&self, instants: &[VolumeId]) -> u64 {
        let only = self.only_kept();
        let mut kept: HashMap<LayerId, u64> = HashMap::new();
        for instant in instants {
            let mut next = self.shared.lock().volumes.get(instant).and_then(|core| core.head().parent());
            let (mut hidden, mut from) = (0, None);
            while let Some(layer) = next {
                let (own, users) = {
                    let state = self.shared.lock();
                    (state.slabs_of(layer.id), state.users(layer.id, &only))
                };
                let slabs = match users {
                    // Nobody else reads through it.
                    [None, _] => own,
                    [Some(user), None] => {
                        if from != Some(user) {
                            hidden = self.slabs_above(user, &only);
                        }
                        own.min(hidden)
                    }
                    // What one of them hides, the other shows.
                    [Some(_), Some(_)] => break,
                };
                let most = kept.entry(layer.id).or_default();
                *most = slabs.max(*most);
                (from, next) = (Some(layer.id), layer.parent());
            }
        }
        kept.values().sum()
    }

    /// Slabs that hide something below `first`, whoever reads through that: its own, and those of layers above as long as
    /// there is one way; each of its zeros counts as a slab.
    fn slabs_above(&self, first: LayerId, only: &HashSet<LayerId>) -> u64 {
        let (mut sum, mut next) = (0_u64, Some(first));
        while let Some(layer) = next {
            let state = self.shared.lock();
            sum = sum.saturating_add(state.slabs_of(layer)).saturating_add(state.zeroed_in(layer));
            next = match state.users(layer, only) {
                [Some(user), None] if !state.heads.contains_key(&layer) => Some(user),
                _ => None,
            };
        }
        sum
    }

    /// Layers through which only backups' instants are read.
    fn only_kept(&self) -> HashSet<LayerId> {
        let mut only: HashSet<LayerId> = {
            let state = self.shared.lock();
            state.instants.iter().map(|id| state.volume_record(*id).head).collect()
        };
        let mut next: Vec<LayerId> = only.iter().copied().collect();
        let mut users: HashMap<LayerId, usize> = HashMap::new();
        while let Some(layer) = next.pop() {
            let state = self.shared.lock();
            let Some(parent) = state.layers.get(&layer).and_then(|layer| layer.parent()) else { continue };
            let left = users.entry(parent.id).or_insert_with(|| state.child_count(parent.id));
            *left = left.saturating_sub(1);
            if *left == 0 && only.insert(parent.id) {
                next.push(parent.id);
            }
        }
        only
    }
}
