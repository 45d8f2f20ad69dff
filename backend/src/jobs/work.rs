//! What a job does, as the registry sees it.
//!
//! Invariant: a piece of work may be looked at and given orders from any thread while a step of it is under way in
//! another. Does not: decide when steps happen (`turns`), or how fast (`pace`).

use std::time::Duration;

use pitstop_format::Moved;

/// A kind of job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobKind {
    /// A virtual volume is filled until it is real.
    Hydrate,
    /// What is frozen of a volume gets tags.
    Seal,
    /// A frozen layer is folded into its only child.
    Merge,
    /// Slabs that nobody uses any more are freed.
    Reclaim,
    /// What a volume holds at one instant is copied to a file.
    Backup,
}

impl JobKind {
    /// The word that stands for it in messages, and begins ids.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Hydrate => "hydrate",
            Self::Seal => "seal",
            Self::Merge => "merge",
            Self::Reclaim => "reclaim",
            Self::Backup => "backup",
        }
    }
}

/// How far a piece of work is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    /// Present name of the volume that it is about.
    pub(crate) volume: Option<String>,
    /// Bytes done.
    pub(crate) current_bytes: u64,
    /// Bytes to do, those done included; may change as guests write.
    pub(crate) total_bytes: u64,
    /// What it has moved since the container was opened.
    pub(crate) moved: Moved,
}

/// What a step came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// So many bytes were moved; there may be more.
    Moved(u64),
    /// Something must happen elsewhere first.
    Blocked(Wait),
    /// All is done.
    Complete,
    /// The work has become void: its volume was deleted, refreshed or restored.
    Void,
    /// It failed, for this reason, and can be tried again.
    Failed(String),
    /// It was given up, for this reason: nothing of it is left.
    GivenUp(String),
}

/// What a step waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Space in the container.
    Space,
    /// Others' work, which takes a moment.
    Others,
}

/// What must outlive the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Settings {
    /// Whether the job was told to pause.
    pub(crate) paused: bool,
    /// Most bytes a second; 0 for no limit.
    pub(crate) speed: u64,
}

/// Work in steps.
pub(crate) trait Work: Send + Sync {
    /// What kind it is.
    fn kind(&self) -> JobKind;
    /// How far it is; `None` if it has become void or was completed.
    fn look(&self) -> Option<Progress>;
    /// Moves about `budget_bytes` at most; blocks for its I/O.
    fn step(&self, budget_bytes: u64) -> Step;
    /// Makes the settings durable. Error: the text for who gave the order.
    fn keep(&self, settings: Settings) -> Result<(), String>;
    /// Gives the work up, durably; what it has moved may be given up too. Error: the text for who gave the order.
    fn cancel(&self) -> Result<(), String>;
    /// Whether a step should be made even if the job is paused, or its speed does not allow one yet: it will give the
    /// work up. Cheap.
    fn must_end(&self) -> bool {
        false
    }
    /// The daemon ends. What cannot go on with the next one is given up, as by [`Work::cancel`]; true if it was.
    fn end(&self) -> bool {
        false
    }
    /// It was given up: waits until nothing of it is left, for `most` at most.
    fn wait_gone(&self, _most: Duration) {}
}
