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

use pitstop_format::addendum::{AddendumHeader, AddendumWriter, Purpose};
use pitstop_format::{BLOCK_LEN, Backup, Container, Error as FormatError, Moved, VolumeId};

use self::copying::{Phase, State, Trouble};
use self::writer::{Files, Writer};
use super::target::{Target, is_same_place};
use super::work::{JobKind, Progress, Settings, Step, Work};
use super::{Dismissal, JobStatus, Jobs};
use crate::daemon::Event;
use crate::events::Events;

/// How long a step that gives a backup up waits for its files to go, at most.
const FILES_GO: Duration = Duration::from_millis(100);

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
        let create = |path| Target::create(path, order.overwrite).map_err(BackupError::Target);
        let target = create(&order.target)?;
        let addendum = match &order.reading {
            Reading::LiveWithAddendum(path) if is_same_place(path, &order.target) => {
                return Err(BackupError::Target("target and addendum are the same file".to_owned()));
            }
            Reading::LiveWithAddendum(path) => Some(create(path)?),
            _ => None,
        };
        let backup = self.container.begin_backup(&order.volume, order.cache.as_deref())?;
        let id = id_of(backup.id());
        let (state, writer) = match self.prepare(&backup, &order.reading, target, addendum) {
            Ok(prepared) => prepared,
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
            writer,
            passed_bytes: AtomicU64::new(0),
            has_read_live: AtomicBool::new(matches!(order.reading, Reading::Instant | Reading::Since(_))),
            over: AtomicBool::new(false),
            warned: AtomicBool::new(false),
        };
        self.add(id.clone(), Arc::new(job), Settings { paused: false, speed: order.speed }, dismissal);
        Ok(self.get(&id))
    }

    /// What the first step finds, and who writes.
    fn prepare(
        &self,
        backup: &Backup,
        reading: &Reading,
        target: Target,
        addendum: Option<Target>,
    ) -> Result<(State, Writer), BackupError> {
        let purpose = match reading {
            Reading::Since(copy) => Purpose::ChangesSince { base_unix_ns: backup.set_base(copy)? },
            _ => Purpose::OriginalImages,
        };
        let size_bytes = backup.instant().size();
        let header = AddendumHeader {
            container: self.container.info().uuid,
            volume: backup.source().uuid(),
            size_bytes,
            instant_unix_ns: backup.instant_unix_ns(),
            purpose,
        };
        let (files, phase) = if let Reading::Since(_) = reading {
            let addendum = Some((target, AddendumWriter::new(header)));
            (Files { target: None, addendum }, Phase::Ranges(0))
        } else {
            target.file().set_len(size_bytes).map_err(|error| {
                let shown = target.path().display();
                BackupError::Target(format!("cannot make '{shown}' as long as the volume: {error}"))
            })?;
            let addendum = addendum.map(|file| (file, AddendumWriter::new(header)));
            (Files { target: Some(target), addendum }, Phase::Bulk(0))
        };
        let writer = Writer::start(files)
            .map_err(|error| BackupError::Target(format!("cannot start a thread for the files: {error}")))?;
        Ok((State { phase, ranges: Vec::new() }, writer))
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

    /// Lets go of the instant, and has unfinished files removed; false if they are complete.
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
        self.warn();
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
                // It may have been ended in the middle of the step.
                let reason = self.backup.ended().map_or(reason, ToString::to_string);
                if !self.give_up() {
                    self.over.store(true, Ordering::Release);
                    return Step::Complete;
                }
                self.wait_gone(FILES_GO);
                Step::GivenUp(reason)
            }
        }
    }

    /// Nothing of it outlives the daemon (BAK-3).
    fn keep(&self, _settings: Settings) -> Result<(), String> {
        Ok(())
    }

    fn cancel(&self) -> Result<(), String> {
        if self.give_up() { Ok(()) } else { Err("the backup has just become complete".to_owned()) }
    }

    fn must_end(&self) -> bool {
        self.warn();
        !self.over.load(Ordering::Acquire) && self.reason_to_end().is_some()
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
