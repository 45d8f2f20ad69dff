//! The container: one open file, its catalog, and the operations on it.
//!
//! Role: ties layout, layers, allocator and journal together; the only place that performs metadata I/O, always through
//! [`Disk`] and never on a queue's behalf. Invariant: what `spec/journal.md` promises after a crash.
//! Does not: perform data I/O (plans are carried out by the caller), nor know sockets or threads.

mod adopt;
mod background;
mod backup;
mod cache;
mod chain;
mod checkpoint;
mod copies;
mod create;
mod diff;
mod durability;
pub(crate) mod fill;
pub(crate) mod flush;
pub(crate) mod hidden;
mod hidden_steps;
mod hold;
mod holdings;
mod hydrate;
mod info;
mod maintain;
mod maps;
mod merge;
mod open;
mod ops;
mod pieces;
mod recover;
pub(crate) mod relations;
mod retag;
pub(crate) mod ring;
pub(crate) mod seal;
mod seal_steps;
pub(crate) mod state;
mod tagged;
mod tags;
mod verify;
mod view;

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, TryLockError};
use std::task::Waker;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use background::{BackgroundKind, BackgroundWork};
pub use backup::{Backup, BackupUse, PendingBackup};
pub use cache::{CacheInfo, CacheOptions};
pub use copies::{NewCopy, PendingCopy};
pub use create::CreateOptions;
pub use diff::{ChangedIn, DiffCounts, DiffRange, DiffStep};
pub use durability::VolumeChange;
pub use fill::{HydrateEnd, HydrateStep, HydrateWait};
pub(crate) use flush::thread_waker as flush_waker;
pub use flush::{Flush, FlushStep, JournalAppend};
pub use hydrate::Hydration;
pub use info::{
    ContainerInfo, Hydrated, LayerInfo, Origin, Relation, RelationState, Sealed, SpaceInfo, VolumeInfo, VolumeState,
};
pub use maintain::Maintained;
pub use maps::{Content, Listing, MapCounts, MapRange, MapStep};
pub use seal::{SealEnd, SealStep, Sealing};
pub use tagged::{Check, TagLoad, TagStep, TaggedPart, TaggedRead};
pub use view::{EndingView, PendingView, ViewEnd};

use crate::alloc::Grace;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::layer::{Layer, Page, PageLoad, next_load};
use crate::layout::entry::RawEntry;
pub use crate::layout::slot::{Durability, Moved};
use crate::sync::{ArcSwap, AtomicBool, Condvar, Mutex, MutexGuard, OnceLock};
use crate::units::ENTRIES_PER_PAGE;
use crate::volume::{Resolved, Volume};
use state::State;
use uuid::Uuid;

/// How a container is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// For changes, by one holder at a time.
    ReadWrite,
    /// For reading; a container that was not closed is recovered in memory only.
    ReadOnly,
}

/// An open container. Clones share it.
#[derive(Debug, Clone)]
pub struct Container {
    pub(crate) shared: Arc<Shared>,
}

/// What all handles of one open container share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) mode: OpenMode,
    /// Token of the current grace period; requests take it before they look at any map.
    pub(crate) grace: ArcSwap<Grace>,
    /// What is below heads (MAP-17).
    pub(crate) resolved: Resolved,
    uuid: Uuid,
    tags: tags::Tags,
    state: Mutex<State>,
    /// Serialises create, delete, snapshot, refresh, rename, and the beginning and giving up of hydrations.
    control: Mutex<()>,
    /// Serialises checkpoints, reclaim, freeing of what heads hide, and merges: a freed slab is never reused under a home write (JNL-6).
    homes: Mutex<maintain::Background>,
    /// What background work is at; locked last, for a moment.
    background: Mutex<Vec<BackgroundWork>>,
    failed: OnceLock<String>,
    closed: AtomicBool,
    pub(crate) signal: Arc<Signal>,
    work: Work,
}

/// Tells when layers have drained.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    wakers: Mutex<Vec<Waker>>,
    changed: Condvar,
}

impl Signal {
    pub(crate) fn register(&self, waker: &Waker) {
        let mut wakers = lock(&self.wakers);
        if !wakers.iter().any(|known| known.will_wake(waker)) {
            wakers.push(waker.clone());
        }
    }

    pub(crate) fn drained(&self, layer: &Layer) {
        let mut wakers = lock(&self.wakers);
        layer.drained.store(true, Ordering::Release);
        for waker in wakers.drain(..) {
            waker.wake();
        }
        self.changed.notify_all();
    }

    /// Blocks until no write to `layer` is under way.
    fn wait_drained(&self, layer: &Layer) {
        let mut guard = lock(&self.wakers);
        while !layer.is_drained() {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Calls the maintenance thread.
#[derive(Debug, Default)]
struct Work {
    urgent: Mutex<bool>,
    called: Condvar,
    /// What was found to free waits for requests under way, whose end calls nobody.
    waits: AtomicBool,
}

/// Longest sleep while that is so.
const SHORT_SLEEP: Duration = Duration::from_millis(10);

/// Locks a mutex whose holder never leaves it half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`], unless somebody holds it.
fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Nanoseconds since 1970, for timestamps only.
pub(crate) fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

impl Shared {
    pub(crate) fn new(disk: Arc<dyn Disk>, mode: OpenMode, state: State, signal: Arc<Signal>) -> Self {
        Self {
            disk,
            mode,
            grace: ArcSwap::from_pointee(Grace),
            resolved: Resolved::new(),
            uuid: state.uuid,
            tags: tags::Tags::default(),
            state: Mutex::new(state),
            control: Mutex::new(()),
            homes: Mutex::new(maintain::Background::default()),
            background: Mutex::new(Vec::new()),
            failed: OnceLock::new(),
            closed: AtomicBool::new(false),
            signal,
            work: Work::default(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Refuses if the container has failed or may not be changed.
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.mode == OpenMode::ReadOnly {
            return Err(Error::ReadOnly);
        }
        self.check_alive()
    }

    /// Like [`Shared::check_writable`]; refuses also once closing has begun.
    pub(crate) fn check_open(&self) -> Result<()> {
        self.check_writable()?;
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    pub(crate) fn check_alive(&self) -> Result<()> {
        match self.failed.get() {
            Some(reason) => Err(Error::Failed { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Fails the container for good: from now on no flush succeeds (JNL-14).
    pub(crate) fn fail(&self, reason: String) {
        if self.failed.set(reason.clone()).is_ok() {
            log::error!("container failed: {reason}");
        }
        self.lock().wake_all();
        self.call_for_work();
    }

    /// Notes whether what was found to free waits for requests under way.
    fn set_waits(&self, waits: bool) {
        self.work.waits.store(waits, Ordering::Release);
    }

    /// Wakes the maintenance thread.
    pub(crate) fn call_for_work(&self) {
        *lock(&self.work.urgent) = true;
        self.work.called.notify_all();
    }

    /// For who looks at a chain without planning a request: what a reader may still meet stays linked (LAY-33).
    pub(crate) fn passing(&self) -> Arc<Grace> {
        self.grace.load_full()
    }

    /// Starts a new grace period if slabs wait for one, and frees those that have waited long enough.
    pub(crate) fn reap(&self, state: &mut State) {
        if state.alloc.wants_new_period() {
            let ended = self.grace.swap(Arc::new(Grace));
            state.alloc.end_period(&ended);
        }
        if state.alloc.reap(state.batches.durable) > 0 {
            state.wake_all();
        }
    }
}

impl Container {
    /// The disk under the container.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.shared.disk
    }

    /// The volume named `name`.
    pub fn volume(&self, name: &str) -> Result<Volume> {
        let state = self.shared.lock();
        let id = state.names.get(name).ok_or_else(|| Error::NoSuchVolume { name: name.to_owned() })?;
        Ok(Volume::new(self.shared.clone(), state.volumes[id].clone()))
    }

    /// As [`Container::volume`], for who serves or reads what it shows: refuses one that is undefined (VOL-45).
    ///
    /// Errors: [`Error::NoSuchVolume`], [`Error::Undefined`].
    pub fn defined_volume(&self, name: &str) -> Result<Volume> {
        let state = self.shared.lock();
        let id = state.defined_volume_id(name)?;
        Ok(Volume::new(self.shared.clone(), state.volumes[&id].clone()))
    }

    /// Why the container accepts no more changes, if it has failed.
    pub fn failure(&self) -> Option<String> {
        self.shared.failed.get().cloned()
    }

    /// Makes a table page resident from the 4096 bytes read at `load.offset()`. Returns the next page that the same
    /// request will ask for, as far as that can be told, to be read at once.
    ///
    /// Errors: [`Error::Corrupt`] if an entry is damaged, misplaced, or names a slab that belongs to another (MAP-5).
    pub fn install_page(&self, load: PageLoad, bytes: &[u8]) -> Result<Option<PageLoad>> {
        let layer = {
            let mut state = self.shared.lock();
            // Nobody reads through a layer that is doomed, and its slabs may be others' by now: plan again.
            let found = state.layers.get(&load.layer).filter(|_| !state.doomed.contains(&load.layer));
            let Some(layer) = found.cloned() else {
                return Ok(None);
            };
            let Some(table) = layer.table(load.table).filter(|table| table.slab == load.slab) else {
                return Ok(None);
            };
            // Evicted since it was asked for, it may have changed in between: plan again.
            if !table.is_current(load.evictions) {
                return Ok(None);
            }
            if table.page(usize::from(load.page)).is_none() {
                let mut raw = [RawEntry::default(); ENTRIES_PER_PAGE as usize];
                open::decode_page(load, bytes, &state.alloc, |_| false, &mut raw)?;
                table.install(usize::from(load.page), Page::from_raw(&raw));
                state.note_loaded(load);
            }
            layer
        };
        Ok(next_load(&layer, load))
    }

    /// Reads and installs the pages that a request asks for, blocking.
    pub fn load_page(&self, load: PageLoad) -> Result<()> {
        let mut next = Some(load);
        while let Some(load) = next {
            next = self.load_one_page(load)?;
        }
        Ok(())
    }

    /// Reads and installs one page, blocking; returns what [`Container::install_page`] does.
    fn load_one_page(&self, load: PageLoad) -> Result<Option<PageLoad>> {
        let mut bytes = vec![0; load.len()];
        self.shared.disk.read_at(&mut bytes, load.offset()).map_err(Error::io("cannot read a table page"))?;
        self.install_page(load, &bytes)
    }

    /// Keeps at most about `pages` table pages of 4 KiB in memory, each for 32 MiB of a layer; those used longest ago go
    /// first. More stay only while they are changed and not yet home, or in use by requests under way (MAP-16).
    pub fn limit_resident_pages(&self, pages: usize) {
        self.shared.lock().resident_limit = pages;
    }

    /// Table pages in memory.
    pub fn resident_pages(&self) -> usize {
        self.shared.lock().resident_pages()
    }

    /// Sleeps until background work is urgent, but at most `timeout`; not long while something waits for requests to end.
    pub fn wait_for_work(&self, timeout: Duration) {
        let waits = self.shared.work.waits.load(Ordering::Acquire);
        let timeout = if waits { timeout.min(SHORT_SLEEP) } else { timeout };
        let urgent = lock(&self.shared.work.urgent);
        let (mut urgent, _) = self
            .shared
            .work
            .called
            .wait_timeout_while(urgent, timeout, |urgent| !*urgent)
            .unwrap_or_else(PoisonError::into_inner);
        *urgent = false;
    }
}
