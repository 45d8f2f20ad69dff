//! The states of a job, and which orders each of them takes: QEMU's.
//!
//! Invariant: a job goes only along the edges of [`JobState::follows`], and every edge is told of as an event.

/// The state of a job, by QEMU's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobState {
    /// It is there and has not begun.
    Created,
    /// It works, or waits for its turn.
    Running,
    /// It was told to pause, or it failed and can be resumed.
    Paused,
    /// All its work is done.
    Waiting,
    /// Its result is about to count.
    Pending,
    /// It was given up.
    Aborting,
    /// It is over and waits to be dismissed.
    Concluded,
    /// It is gone.
    Null,
}

/// An order to a job, by QEMU's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Stop until resumed.
    Pause,
    /// Go on.
    Resume,
    /// Give up.
    Cancel,
    /// Forget a job that is over.
    Dismiss,
    /// Change the limit.
    SetSpeed,
}

impl JobState {
    /// The word in QMP.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Aborting => "aborting",
            Self::Concluded => "concluded",
            Self::Null => "null",
        }
    }

    /// Whether a job may come from `before` to this state.
    pub(super) fn follows(self, before: JobState) -> bool {
        use JobState::{Aborting, Concluded, Created, Null, Paused, Pending, Running, Waiting};
        matches!(
            (before, self),
            (Created | Paused, Running)
                | (Running, Paused | Waiting | Aborting)
                | (Waiting, Pending)
                | (Pending | Aborting, Concluded)
                | (Concluded, Null)
        )
    }

    /// Whether a job in this state takes the order.
    pub(super) fn takes(self, verb: Verb) -> bool {
        match verb {
            Verb::Pause | Verb::Resume | Verb::Cancel | Verb::SetSpeed => {
                matches!(self, Self::Created | Self::Running | Self::Paused)
            }
            Verb::Dismiss => self == Self::Concluded,
        }
    }
}

impl Verb {
    /// The word in QEMU's messages.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
            Self::Dismiss => "dismiss",
            Self::SetSpeed => "set-speed",
        }
    }
}
