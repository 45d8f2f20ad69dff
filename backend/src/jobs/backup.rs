//! Backups as jobs: a volume's contents at one instant, copied to files while guests go on.
//!
//! Invariant: files appear only when all of them are complete (BAK-10); however a backup ends, what it held in the
//! container is released and its unfinished files are removed (BAK-3); where it cannot go on without harm to guests it ends
//! (BAK-21, BAK-24). Does not: decide when steps are made, or know what an instant is (`pitstop_format`).

mod copying;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pitstop_format::addendum::{AddendumHeader, AddendumWriter, Purpose};
use pitstop_format::{BLOCK_LEN, Backup, Container, Error as FormatError, Moved, VolumeId};

use self::copying::{Phase, State, Trouble};
use super::target::Target;
use super::work::{JobKind, Progress, Settings, Step, Work};
use super::{Dismissal, JobStatus, Jobs};
use crate::daemon::{Event, lock};
use crate::events::Events;

/// How often it is looked at whether a backup must end (BAK-21).
const LOOK_PERIOD: Duration = Duration::from_millis(250);

/// How the volume is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reading {
    /// As it was at the instant.
    Instant,
    /// As it is, straight through; the original images go to this file afterwards.
    LiveWithAddendum(PathBuf),
    /// As it is, straight through; the original images are written over it in the target afterwards.
    LiveInPlace,
    /// Only where it may differ from this copy: the target is an addendum.
    Since(String),
}

/// What is to be backed up, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackupOrder {
    /// The volume.
    pub(crate) volume: String,
    /// The file to make.
    pub(crate) target: PathBuf,
    /// How to read.
    pub(crate) reading: Reading,
    /// The cache region to draw on.
    pub(crate) cache: Option<String>,
    /// Whether existing files are replaced.
    pub(crate) overwrite: bool,
    /// Bytes a second at most; 0: no limit.
    pub(crate) speed: u64,
}

/// Why a backup could not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    /// The container refused.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A file cannot be made.
    #[error("{0}")]
    Target(String),
}

/// A backup under way.
struct BackupJob {
    container: Container,
    events: Arc<Events>,
    backup: Backup,
    reading: Reading,
    state: Mutex<State>,
    passed_bytes: AtomicU64,
    over: AtomicBool,
    /// The high-water mark has been told of.
    warned: AtomicBool,
    /// When it was last looked whether it must end, since the last step, and what came of it.
    looked: Mutex<Option<(Instant, bool)>>,
}

fn id_of(instant: VolumeId) -> String {
    format!("{}-{instant}", JobKind::Backup.word())
}

impl Jobs {
    /// Begins a backup. When this returns, its instant is fixed.
    pub(crate) fn backup(&self, order: &BackupOrder, dismissal: Dismissal) -> Result<Option<JobStatus>, BackupError> {
        let create = |path| Target::create(path, order.overwrite).map_err(BackupError::Target);
        let target = create(&order.target)?;
        let addendum = match &order.reading {
            Reading::LiveWithAddendum(path) if *path == order.target => {
                return Err(BackupError::Target("target and addendum are the same file".to_owned()));
            }
            Reading::LiveWithAddendum(path) => Some(create(path)?),
            _ => None,
        };
        let backup = self.container.begin_backup(&order.volume, order.cache.as_deref())?;
        let id = id_of(backup.id());
        let state = match self.prepare(&backup, &order.reading, target, addendum) {
            Ok(state) => state,
            Err(error) => {
                backup.release()?;
                return Err(error);
            }
        };
        let job = BackupJob {
            container: self.container.clone(),
            events: Arc::clone(&self.events),
            backup,
            reading: order.reading.clone(),
            state: Mutex::new(state),
            passed_bytes: AtomicU64::new(0),
            over: AtomicBool::new(false),
            warned: AtomicBool::new(false),
            looked: Mutex::default(),
        };
        self.add(id.clone(), Arc::new(job), Settings { paused: false, speed: order.speed }, dismissal);
        Ok(self.get(&id))
    }

    /// What the first step finds.
    fn prepare(
        &self,
        backup: &Backup,
        reading: &Reading,
        target: Target,
        addendum: Option<Target>,
    ) -> Result<State, BackupError> {
        let purpose = match reading {
            Reading::Since(copy) => Purpose::ChangesSince(backup.set_base(copy)?),
            _ => Purpose::OriginalImages,
        };
        let size_bytes = backup.instant().size();
        let header = AddendumHeader {
            container: self.container.info().uuid,
            volume: backup.source().uuid(),
            size_bytes,
            instant: backup.contents(),
            purpose,
        };
        if let Reading::Since(_) = reading {
            let addendum = Some((target, AddendumWriter::new(header)));
            return Ok(State { target: None, addendum, phase: Phase::Ranges(0), ranges: Vec::new() });
        }
        target.file().set_len(size_bytes).map_err(|error| {
            let shown = target.path().display();
            BackupError::Target(format!("cannot make '{shown}' as long as the volume: {error}"))
        })?;
        let addendum = addendum.map(|file| (file, AddendumWriter::new(header)));
        Ok(State { target: Some(target), addendum, phase: Phase::Bulk(0), ranges: Vec::new() })
    }
}

impl BackupJob {
    fn is_live(&self) -> bool {
        matches!(self.reading, Reading::LiveWithAddendum(_) | Reading::LiveInPlace)
    }

    fn total_bytes(&self) -> u64 {
        self.backup.instant().size() * if self.is_live() { 2 } else { 1 }
    }

    /// Why the backup has to end, if it has to, for the guests' sake or because it can no longer be right.
    fn reason_to_end(&self) -> Option<String> {
        let cost = self.backup.cost()?;
        if let Some(cache) = &cost.cache {
            if cache.is_high() && !self.warned.swap(true, Ordering::AcqRel) {
                let (name, used_bytes, limit_bytes) = (cache.name.clone(), cache.used_bytes, cache.limit_bytes);
                log::warn!("cache region '{name}': {used_bytes} of {limit_bytes} bytes are used");
                self.events.emit(&Event::CacheWarning { name, used_bytes, limit_bytes });
            }
            if cache.is_full() {
                let (name, used, limit) = (cache.name.clone(), cache.used_bytes, cache.limit_bytes);
                return Some(FormatError::CacheFull { name, used, limit }.to_string());
            }
        }
        if cost.starves_guests {
            return Some(format!(
                "the container is full and cannot grow, and the backup keeps {} bytes that guests need; make space, and \
                 begin the backup again",
                cost.kept_bytes
            ));
        }
        let is_reading_live =
            self.is_live() && self.passed_bytes.load(Ordering::Acquire) <= self.backup.instant().size();
        self.backup.check_source().err().filter(|_| is_reading_live).map(|error| error.to_string())
    }

    /// Removes the files and lets go of the instant.
    fn give_up(&self) -> Result<(), FormatError> {
        self.over.store(true, Ordering::Release);
        let mut state = lock(&self.state);
        (state.target, state.addendum) = (None, None);
        drop(state);
        self.backup.release()
    }
}

impl Work for BackupJob {
    fn kind(&self) -> JobKind {
        JobKind::Backup
    }

    fn look(&self) -> Option<Progress> {
        let volume = Some(self.backup.source().name());
        let current_bytes = self.passed_bytes.load(Ordering::Acquire);
        let is_over = self.over.load(Ordering::Acquire);
        let moved = Moved::default();
        (!is_over).then(|| Progress { volume, current_bytes, total_bytes: self.total_bytes(), moved })
    }

    fn step(&self, budget_bytes: u64) -> Step {
        if self.over.load(Ordering::Acquire) {
            return Step::Void;
        }
        *lock(&self.looked) = None;
        // A full region may grow first.
        if let Err(error) = self.backup.grow_cache() {
            return Step::Failed(error.to_string());
        }
        let outcome = match self.reason_to_end() {
            Some(reason) => Err(Trouble::Hopeless(reason)),
            None if budget_bytes == 0 => Ok(Step::Moved(0)),
            // Whole blocks, whatever a limit comes to.
            None => self.try_step((budget_bytes / BLOCK_LEN * BLOCK_LEN).max(BLOCK_LEN)),
        };
        match outcome {
            Ok(step) => step,
            Err(Trouble::Failed(reason)) if self.reason_to_end().is_none() => Step::Failed(reason),
            Err(Trouble::Failed(reason) | Trouble::Hopeless(reason)) => {
                self.end();
                Step::GivenUp(reason)
            }
        }
    }

    /// Nothing of it outlives the daemon (BAK-3).
    fn keep(&self, _settings: Settings) -> Result<(), String> {
        Ok(())
    }

    fn cancel(&self) -> Result<(), String> {
        self.give_up().map_err(|error| error.to_string())
    }

    fn must_end(&self) -> bool {
        if self.over.load(Ordering::Acquire) {
            return false;
        }
        let mut looked = lock(&self.looked);
        match *looked {
            Some((at, must_end)) if at.elapsed() < LOOK_PERIOD => must_end,
            _ => looked.insert((Instant::now(), self.reason_to_end().is_some())).1,
        }
    }

    fn end(&self) -> bool {
        if let Err(error) = self.give_up() {
            log::error!("what a backup held in the container is not released: {error}");
        }
        true
    }
}
