//! What is shown of jobs, and why orders to them are refused.
//!
//! Texts are QEMU's as far as QEMU has them (CTL-81). Does not: know the jobs.

use pitstop_format::{BackgroundKind, BackgroundWork, Moved};

use super::state::{JobState, Verb};
use super::work::{JobKind, Progress};

/// What becomes of a job that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Dismissal {
    /// It vanishes.
    #[default]
    Auto,
    /// It stays until it is dismissed.
    ByOrder,
}

/// A job as shown to people and programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JobStatus {
    /// Its id.
    pub(crate) id: String,
    /// Its kind.
    pub(crate) kind: JobKind,
    /// Its state.
    pub(crate) state: JobState,
    /// How far it is.
    pub(crate) progress: Progress,
    /// Most bytes a second; 0 for no limit.
    pub(crate) speed: u64,
    /// Bytes a second, lately.
    pub(crate) rate: u64,
    /// Whether it waits for space in the container.
    pub(crate) waits_for_space: bool,
    /// What went wrong: why it paused by itself, or why it was given up.
    pub(crate) error: Option<String>,
}

/// Why an order to a job was refused; the texts are QEMU's as far as QEMU has them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JobError {
    /// No such job.
    #[error("Job not found")]
    NotFound,
    /// The state takes no such order.
    #[error("Job '{id}' in state '{}' cannot accept command verb '{}'", state.word(), verb.word())]
    BadVerb {
        /// The job.
        id: String,
        /// Its state.
        state: JobState,
        /// The order.
        verb: Verb,
    },
    /// The container's own work takes no orders.
    #[error(
        "Job '{id}' in state 'running' cannot accept command verb '{}': it is upkeep of the container, which yields to \
         guests and ends by itself",
        verb.word()
    )]
    Upkeep {
        /// The job.
        id: String,
        /// The order.
        verb: Verb,
    },
    /// Paused twice.
    #[error("Job is already paused")]
    AlreadyPaused,
    /// Resumed, but not paused.
    #[error("Can't resume a job that was not paused")]
    NotPaused,
    /// The order could not be made durable.
    #[error("{0}")]
    NotKept(String),
}

/// The container's own work as a job.
pub(super) fn upkeep(work: &BackgroundWork) -> JobStatus {
    let (id, kind) = match work.kind {
        BackgroundKind::Merge(layer) => (format!("merge-{layer}"), JobKind::Merge),
        BackgroundKind::Reclaim => (JobKind::Reclaim.word().to_owned(), JobKind::Reclaim),
    };
    let progress = Progress {
        volume: None,
        current_bytes: work.passed_bytes,
        total_bytes: work.total_bytes,
        moved: Moved::default(),
    };
    let (state, waits_for_space, error) = (JobState::Running, false, None);
    JobStatus { id, kind, state, progress, speed: 0, rate: 0, waits_for_space, error }
}
