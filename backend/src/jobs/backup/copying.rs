//! The steps of a backup: reads of the container, for the thread that writes the files.
//!
//! Invariant: a step that fails has changed nothing that the same step, made again, does not change to the same; none waits
//! for a target (BAK-12). Does not: decide when a backup has to end.

use std::sync::atomic::Ordering;

use pitstop_format::addendum::ADDENDUM_DATA_LEN;
use pitstop_format::{Content, DiffRange, DiffStep, Error as FormatError, Extent, Listing, VolumeIo};

use super::super::work::{Step, Wait};
use super::writer::{Order, Ready};
use super::{BackupJob, Reading};
use crate::daemon::lock;

/// Ranges that one step of a difference lists.
const RANGES: usize = 1024;
/// Longest stretch that is looked at before some of it is read.
const MAX_LOOK_LEN: u64 = 256 << 20;

/// What steps change.
pub(super) struct State {
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
    /// All has been read: the instant is let go.
    Finish,
    /// The files become durable and get their names.
    Finishing,
}

/// Why a step could not be made.
#[derive(Debug)]
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

impl BackupJob {
    pub(super) fn try_step(&self, budget_bytes: u64) -> Outcome {
        let mut state = lock(&self.state);
        match self.writer.ready()? {
            Ready::Room => {}
            Ready::Behind => return Ok(Step::Blocked(Wait::Others)),
            // The next step finds it.
            Ready::Done => return Ok(Step::Moved(0)),
        }
        match state.phase {
            Phase::Bulk(at) => self.read_bulk(&mut state, at, budget_bytes),
            Phase::EndBulk => {
                match self.backup.end_bulk() {
                    Err(FormatError::NoSpace { .. }) => return Ok(Step::Blocked(Wait::Space)),
                    ended => ended?,
                }
                self.has_read_live.store(true, Ordering::Release);
                state.phase = Phase::Ranges(0);
                Ok(Step::Moved(0))
            }
            Phase::Ranges(at) => self.copy_ranges(&mut state, at, budget_bytes),
            Phase::Finish => {
                // Nothing of it is needed any more, however long the target takes.
                self.has_read_all.store(true, Ordering::Release);
                self.release();
                self.writer.put(Order::Finish);
                state.phase = Phase::Finishing;
                Ok(Step::Moved(0))
            }
            Phase::Finishing => Ok(Step::Blocked(Wait::Others)),
        }
    }

    /// Reads some of the volume straight through (BAK-5).
    fn read_bulk(&self, state: &mut State, at: u64, budget_bytes: u64) -> Outcome {
        let size = self.backup.instant().size();
        let volume = if self.is_live() { self.backup.source() } else { self.backup.instant() };
        let io = VolumeIo::new(&self.container, volume.clone());
        let (extent, len) = io.block_status(at..size.min(at + MAX_LOOK_LEN))?;
        let moved = match extent {
            Extent::Zero => 0,
            Extent::Data => {
                let mut data = vec![0; len.min(budget_bytes) as usize];
                io.read_at(&mut data, at)?;
                let moved = data.len() as u64;
                self.writer.put(Order::Live(at, data));
                moved
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
            self.writer.put(Order::Data(range.start, data));
            (len, len)
        } else {
            // Zeros in an addendum cost nothing, in a target they are written.
            let len = if self.reading == Reading::LiveInPlace { range.length.min(budget_bytes) } else { range.length };
            self.writer.put(Order::Zeros(range.start, len));
            (len, if self.reading == Reading::LiveInPlace { len } else { 0 })
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
}
