//! Backups as jobs: a volume's contents at one instant, copied to files while guests go on.
//!
//! Invariant: files appear only when all of them are complete (BAK-10); however a backup ends, what it held in the
//! container is released and its unfinished files are removed (BAK-3). Does not: decide when steps are made, when guests
//! cannot afford a backup, or what an instant is (`pitstop_format`).

mod copying;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pitstop_format::addendum::{AddendumHeader, Purpose};
use pitstop_format::{BLOCK_LEN, Backup, Container, Error as FormatError, Moved, VolumeId};

use self::copying::{Phase, State, Trouble};
use self::writer::{Order, Places, Writer};
use super::work::{JobKind, Progress, Settings, Step, Wait, Work};
use super::{Dismissal, JobStatus, Jobs};
use crate::daemon::Event;
use crate::events::Events;

/// How long an order waits for the storage of the files to make them, at most.
const FILES_COME: Duration = Duration::from_secs(5);

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
    writer: Writer,
    passed_bytes: AtomicU64,
    /// The live volume has been read through, or is not read.
    has_read_live: AtomicBool,
    /// Nothing of the container is needed any more.
    has_read_all: AtomicBool,
    over: AtomicBool,
    /// The high-water mark has been told of.
    warned: AtomicBool,
}

fn id_of(instant: VolumeId) -> String {
    format!("{}-{instant}", JobKind::Backup.word())
}

impl Jobs {
    /// Begins a backup. When this returns, its instant is fixed.
    pub(crate) fn backup(&self, order: &BackupOrder, dismissal: Dismissal) -> Result<Option<JobStatus>, BackupError> {
        let addendum = match &order.reading {
            Reading::LiveWithAddendum(path) => Some(path.clone()),
            _ => None,
        };
        let places = Places { target: order.target.clone(), addendum, overwrite: order.overwrite };
        // Before the instant: nothing is held while storage does not answer.
        let writer = Writer::start(places, FILES_COME).map_err(BackupError::Target)?;
        let (backup, header) = self.begin(order).inspect_err(|_| {
            writer.abandon();
            writer.wait_gone(FILES_COME);
        })?;
        let (first, phase) = match order.reading {
            Reading::Since(_) => (Order::Addendum(header), Phase::Ranges(0)),
            _ => (Order::Bulk(header), Phase::Bulk(0)),
        };
        writer.put(first);
        let id = id_of(backup.id());
        let job = BackupJob {
            container: self.container.clone(),
            events: Arc::clone(&self.events),
            backup,
            reading: order.reading.clone(),
            state: Mutex::new(State { phase, ranges: Vec::new() }),
            writer,
            passed_bytes: AtomicU64::new(0),
            has_read_live: AtomicBool::new(matches!(order.reading, Reading::Instant | Reading::Since(_))),
            has_read_all: AtomicBool::new(false),
            over: AtomicBool::new(false),
            warned: AtomicBool::new(false),
        };
        self.add(id.clone(), Arc::new(job), Settings { paused: false, speed: order.speed }, dismissal);
        Ok(self.get(&id))
    }

    /// Fixes the instant; returns what an addendum of it begins with.
    fn begin(&self, order: &BackupOrder) -> Result<(Backup, AddendumHeader), BackupError> {
        let backup = self.container.begin_backup(&order.volume, order.cache.as_deref())?;
        match self.header(&backup, &order.reading) {
            Ok(header) => Ok((backup, header)),
            Err(error) => {
                backup.release()?;
                Err(error)
            }
        }
    }

    fn header(&self, backup: &Backup, reading: &Reading) -> Result<AddendumHeader, BackupError> {
        let purpose = match reading {
            Reading::Since(copy) => Purpose::ChangesSince(backup.set_base(copy)?),
            _ => Purpose::OriginalImages,
        };
        Ok(AddendumHeader {
            container: self.container.info().uuid,
            volume: backup.source().uuid(),
            size_bytes: backup.instant().size(),
            instant: backup.contents(),
            purpose,
        })
    }
}

impl BackupJob {
    fn is_live(&self) -> bool {
        matches!(self.reading, Reading::LiveWithAddendum(_) | Reading::LiveInPlace)
    }

    fn total_bytes(&self) -> u64 {
        self.backup.instant().size() * if self.is_live() { 2 } else { 1 }
    }

    /// Why the backup has to end, if it has to: for the guests' sake, or because it can no longer be right (BAK-7).
    fn reason_to_end(&self) -> Option<String> {
        if self.has_read_all.load(Ordering::Acquire) {
            return None;
        }
        let changed = || {
            let is_reading_live = !self.has_read_live.load(Ordering::Acquire);
            self.backup.check_source().err().filter(|_| is_reading_live)
        };
        self.backup.ended().map(ToString::to_string).or_else(|| changed().map(|error| error.to_string()))
    }

    /// Tells of the high-water mark, once (BAK-22).
    fn warn(&self) {
        let Some(cache) = self.backup.high_water() else { return };
        if !self.warned.swap(true, Ordering::AcqRel) {
            let (name, used_bytes, limit_bytes) = (cache.name.clone(), cache.used_bytes, cache.limit_bytes);
            log::warn!("cache region '{name}': {used_bytes} of {limit_bytes} bytes are used");
            self.events.emit(&Event::CacheWarning { name, used_bytes, limit_bytes });
        }
    }

    /// Lets go of the instant.
    fn release(&self) {
        if let Err(error) = self.backup.release() {
            log::warn!("what a backup held in the container is not released yet: {error}");
        }
    }

    /// Lets go of the instant, and has unfinished files removed; false, and nothing changes, if they are complete.
    fn give_up(&self) -> bool {
        if !self.writer.abandon() {
            return false;
        }
        self.over.store(true, Ordering::Release);
        self.release();
        true
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
        if self.writer.is_done() {
            self.over.store(true, Ordering::Release);
            return Step::Complete;
        }
        let outcome = match self.reason_to_end() {
            Some(reason) => Err(Trouble::Hopeless(reason)),
            None if budget_bytes == 0 => Ok(Step::Moved(0)),
            // Whole blocks, whatever a limit comes to.
            None => self.try_step((budget_bytes / BLOCK_LEN * BLOCK_LEN).max(BLOCK_LEN)),
        };
        // Of the region that has ended it, too.
        self.warn();
        match outcome {
            Ok(step) => step,
            Err(Trouble::Failed(reason)) if self.reason_to_end().is_none() => Step::Failed(reason),
            Err(Trouble::Failed(reason) | Trouble::Hopeless(reason)) => {
                // It may have been ended in the middle of the step.
                let reason = self.backup.ended().map_or(reason, ToString::to_string);
                // Where the files get their names all has been read, and nothing can end it any more.
                if self.give_up() { Step::GivenUp(reason) } else { Step::Blocked(Wait::Others) }
            }
        }
    }

    /// Nothing of it outlives the daemon (BAK-3).
    fn keep(&self, _settings: Settings) -> Result<(), String> {
        Ok(())
    }

    fn cancel(&self) -> Result<(), String> {
        if self.give_up() { Ok(()) } else { Err("the backup is complete, and its files get their names".to_owned()) }
    }

    fn must_end(&self) -> bool {
        self.warn();
        !self.over.load(Ordering::Acquire) && (self.writer.is_done() || self.reason_to_end().is_some())
    }

    fn end(&self) -> bool {
        self.give_up()
    }

    fn wait_gone(&self, most: Duration) {
        if !self.writer.wait_gone(most) {
            let volume = self.backup.source().name();
            log::warn!(
                "the storage of a backup of volume '{volume}' does not answer: a file named .pitstop-backup-* stays \
                 there until it does"
            );
        }
    }
}
