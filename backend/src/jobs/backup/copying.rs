//! The steps of a backup: reads, writes, and the end of its files.
//!
//! Invariant: a step that fails has changed nothing that the same step, made again, does not change to the same. Does not:
//! decide when a backup has to end.

use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use pitstop_format::addendum::{ADDENDUM_DATA_LEN, AddendumWriter, Piece};
use pitstop_format::{Content, DiffRange, DiffStep, Error as FormatError, Extent, Listing, VolumeIo};

use super::super::target::Target;
use super::super::work::Step;
use super::{BackupJob, Reading};
use crate::daemon::lock;

/// Ranges that one step of a difference lists.
const RANGES: usize = 1024;
/// Longest stretch that is looked at before some of it is read.
const MAX_LOOK_LEN: u64 = 256 << 20;

/// What steps change.
pub(super) struct State {
    pub(super) target: Option<Target>,
    pub(super) addendum: Option<(Target, AddendumWriter)>,
    pub(super) phase: Phase,
    /// What a list of ranges has given and is not copied yet, the first one last.
    pub(super) ranges: Vec<DiffRange>,
}

/// What the next step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Reads the volume from this byte on.
    Bulk(u64),
    /// Fixes what was written meanwhile.
    EndBulk,
    /// Lists ranges from this byte on, and copies them.
    Ranges(u64),
    /// Makes the files durable and gives them their names.
    Finish,
}

/// Why a step could not be made.
pub(super) enum Trouble {
    /// It can be tried again.
    Failed(String),
    /// It is in vain.
    Hopeless(String),
}

pub(super) type Outcome = Result<Step, Trouble>;

impl From<FormatError> for Trouble {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::SourceChanged { .. } | FormatError::VolumeGone { .. } => Self::Hopeless(error.to_string()),
            error => Self::Failed(error.to_string()),
        }
    }
}

/// An error of a file of ours.
fn cannot_write(target: &Target) -> impl FnOnce(std::io::Error) -> Trouble + use<'_> {
    move |error| Trouble::Failed(format!("cannot write '{}': {error}", target.path().display()))
}

/// What was not made durable may be gone though a second sync succeeds (design rule 14): it must be written anew.
fn cannot_sync(target: &Target) -> impl FnOnce(std::io::Error) -> Trouble + use<'_> {
    move |error| Trouble::Hopeless(format!("cannot make '{}' durable: {error}; back up again", target.path().display()))
}

impl BackupJob {
    pub(super) fn try_step(&self, budget_bytes: u64) -> Outcome {
        let mut state = lock(&self.state);
        match state.phase {
            Phase::Bulk(at) => self.read_bulk(&mut state, at, budget_bytes),
            Phase::EndBulk => {
                self.backup.end_bulk()?;
                state.phase = Phase::Ranges(0);
                Ok(Step::Moved(0))
            }
            Phase::Ranges(at) => self.copy_ranges(&mut state, at, budget_bytes),
            Phase::Finish => self.finish(&mut state),
        }
    }

    /// Reads some of the volume straight through (BAK-5).
    fn read_bulk(&self, state: &mut State, at: u64, budget_bytes: u64) -> Outcome {
        let size = self.backup.instant().size();
        let volume = if self.is_live() { self.backup.source() } else { self.backup.instant() };
        let io = VolumeIo::new(&self.container, volume.clone());
        let Some(target) = &state.target else {
            return Err(Trouble::Hopeless("the target is gone".to_owned()));
        };
        let (extent, len) = io.block_status(at..size.min(at + MAX_LOOK_LEN))?;
        let moved = match extent {
            Extent::Zero => 0,
            Extent::Data => {
                let mut data = vec![0; len.min(budget_bytes) as usize];
                io.read_at(&mut data, at)?;
                target.write_sparsely(&data, at).map_err(cannot_write(target))?;
                data.len() as u64
            }
        };
        let next = at + if extent == Extent::Zero { len } else { moved };
        self.passed_bytes.store(next, Ordering::Release);
        state.phase = match (next < size, self.is_live()) {
            (true, _) => Phase::Bulk(next),
            (false, true) => Phase::EndBulk,
            (false, false) => Phase::Finish,
        };
        Ok(Step::Moved(moved))
    }

    fn list(&self, at: u64) -> Result<DiffStep, FormatError> {
        match self.reading {
            Reading::Since(_) => self.backup.changed_since(at, Listing::Ranges(RANGES)),
            _ => self.backup.written(at, Listing::Ranges(RANGES)),
        }
    }

    /// Copies some of the listed ranges, with what they were at the instant (BAK-6, BAK-8); lists more if there are none.
    fn copy_ranges(&self, state: &mut State, at: u64, budget_bytes: u64) -> Outcome {
        let size = self.backup.instant().size();
        let Some(range) = state.ranges.last().copied() else {
            if at >= size {
                state.phase = Phase::Finish;
                return Ok(Step::Moved(0));
            }
            let DiffStep { mut ranges, next, .. } = self.list(at)?;
            ranges.reverse();
            state.ranges = ranges;
            let next = next.unwrap_or(size);
            state.phase = Phase::Ranges(next);
            if state.ranges.is_empty() {
                self.pass_ranges(next);
            }
            return Ok(Step::Moved(0));
        };
        let content = if matches!(self.reading, Reading::Since(_)) { range.a } else { range.b };
        let (len, moved) = if content == Content::Data {
            let len = range.length.min(budget_bytes).min(ADDENDUM_DATA_LEN as u64);
            let mut data = vec![0; len as usize];
            VolumeIo::new(&self.container, self.backup.instant().clone()).read_at(&mut data, range.start)?;
            self.write_range(state, range.start, Piece::Data(&data))?;
            (len, len)
        } else {
            // Zeros in an addendum cost nothing, in a target they are written.
            let most = if state.addendum.is_some() { u64::MAX } else { budget_bytes };
            let len = range.length.min(most);
            self.write_range(state, range.start, Piece::Zeros(len))?;
            (len, 0)
        };
        self.pass_ranges(range.start + len);
        if let Some(last) = state.ranges.last_mut().filter(|last| last.length > len) {
            (last.start, last.length) = (range.start + len, range.length - len);
        } else {
            state.ranges.pop();
        }
        Ok(Step::Moved(moved))
    }

    fn pass_ranges(&self, at: u64) {
        let before = if self.is_live() { self.backup.instant().size() } else { 0 };
        self.passed_bytes.store(before + at, Ordering::Release);
    }

    /// To the addendum, or over what was read of the live volume.
    fn write_range(&self, state: &mut State, start: u64, piece: Piece<'_>) -> Result<(), Trouble> {
        match (&mut state.addendum, &state.target) {
            (Some((file, writer)), _) => writer.put(file.file(), start, piece).map_err(cannot_write(file)),
            (None, Some(target)) => {
                let written = match piece {
                    Piece::Data(data) => target.file().write_all_at(data, start),
                    Piece::Zeros(len) => target.file().write_all_at(&vec![0; len as usize], start),
                };
                written.map_err(cannot_write(target))
            }
            (None, None) => Err(Trouble::Hopeless("the target is gone".to_owned())),
        }
    }

    /// Makes the files whole, durable and visible, the target last.
    fn finish(&self, state: &mut State) -> Outcome {
        if let Some((file, writer)) = &mut state.addendum {
            writer.finish(file.file()).map_err(cannot_write(file))?;
            file.sync().map_err(cannot_sync(file))?;
        }
        if let Some(target) = &state.target {
            target.sync().map_err(cannot_sync(target))?;
        }
        let addendum = state.addendum.take().map(|(file, _)| file);
        let mut named = None;
        for file in addendum.into_iter().chain(state.target.take()) {
            let path = file.path().to_owned();
            if let Err(text) = file.finish() {
                // An addendum without its target helps nobody.
                drop(named.map(std::fs::remove_file));
                return Err(Trouble::Hopeless(text));
            }
            named = Some(path);
        }
        self.over.store(true, Ordering::Release);
        if let Err(error) = self.backup.release() {
            log::error!("the backup is complete, but what it held in the container is not released: {error}");
        }
        Ok(Step::Complete)
    }
}
