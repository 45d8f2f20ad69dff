//! Jobs as every verb works with them: background work of a container, whoever does it.
//!
//! Invariant: the shapes are those of QMP (`spec/control.md`, CTL-80), also where the container is opened here: then its
//! unfinished hydrations and sealings are its jobs, and this program is who may work at them. Does not: work.

use serde::{Deserialize, Serialize};

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct JobView {
    pub(crate) id: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: String,
    /// Bytes done.
    pub(crate) current_progress: u64,
    /// Bytes to do, those done included.
    pub(crate) total_progress: u64,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// The volume that it is about.
    #[serde(rename = "x-pitstop-volume")]
    pub(crate) volume: Option<String>,
    /// Bytes a second at most; 0 for no limit.
    #[serde(rename = "x-pitstop-speed")]
    pub(crate) speed: u64,
    /// Bytes a second, lately.
    #[serde(rename = "x-pitstop-rate")]
    pub(crate) rate: u64,
    #[serde(rename = "x-pitstop-waits-for-space", default)]
    pub(crate) waits_for_space: bool,
    /// Bytes that were copied for it since the container was opened.
    #[serde(rename = "x-pitstop-copied", default)]
    pub(crate) copied: u64,
    /// Bytes that were taken over where they lay.
    #[serde(rename = "x-pitstop-adopted", default)]
    pub(crate) adopted: u64,
}

impl JobView {
    /// Whether it does nothing until somebody resumes it.
    pub(crate) fn is_paused(&self) -> bool {
        self.status == "paused"
    }

    /// Whether it is over, and only waits for somebody to take note.
    pub(crate) fn is_over(&self) -> bool {
        self.status == "concluded"
    }

    /// Whether it is the container's own work, which takes no orders.
    pub(crate) fn is_upkeep(&self) -> bool {
        matches!(self.kind.as_str(), "merge" | "reclaim")
    }
}

/// What a job can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobOrder {
    /// To do nothing until it is resumed.
    Pause,
    /// To go on.
    Resume,
    /// To give up.
    Cancel,
    /// To move so many bytes a second at most; 0 for no limit.
    SetSpeed(u64),
    /// To be forgotten, when it is over.
    Dismiss,
}

/// How much of something is done, in whole percent; only what is complete is 100.
pub(crate) fn percent(done: u64, total: u64) -> u64 {
    if done >= total { 100 } else { (u128::from(done) * 100 / u128::from(total)) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_complete_is_a_hundred_percent() {
        let cases = [((0, 0), 100), ((0, 5), 0), ((999, 1000), 99), ((5, 5), 100), ((1 << 62, 1 << 63), 50)];
        for ((done, total), expected) in cases {
            assert_eq!(percent(done, total), expected);
        }
    }

    #[test]
    fn a_job_has_the_members_that_the_daemon_gives() {
        let text = r#"{"id":"hydrate-7","type":"hydrate","status":"paused","current-progress":1,"total-progress":2,"error":"bad","x-pitstop-volume":"v","x-pitstop-speed":3,"x-pitstop-rate":0,"x-pitstop-waits-for-space":true,"x-pitstop-copied":4,"x-pitstop-adopted":5}"#;
        let job: JobView = crate::view::view(serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(serde_json::to_string(&job).unwrap(), text);
        assert!(job.is_paused() && !job.is_over() && !job.is_upkeep());
    }
}
