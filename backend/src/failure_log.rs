//! Keeps the log readable when requests, or connections, fail by the thousand.
//!
//! The first failure is told at once, then at most one in [`PERIOD`] with the number of those kept back. Does not: write
//! the log.

use std::time::{Duration, Instant};

/// Shortest time between two lines.
const PERIOD: Duration = Duration::from_secs(5);

/// Decides which failures are told.
#[derive(Debug, Default)]
pub(crate) struct FailureLog {
    told: Option<Instant>,
    kept_back: u64,
}

impl FailureLog {
    /// Takes a failure at `now`; the number kept back before it if it is to be told.
    pub(crate) fn failed(&mut self, now: Instant) -> Option<u64> {
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < PERIOD) {
            self.kept_back += 1;
            return None;
        }
        self.told = Some(now);
        Some(self.take_kept_back())
    }

    /// Failures that nobody was told of.
    pub(crate) fn take_kept_back(&mut self) -> u64 {
        std::mem::take(&mut self.kept_back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_told_and_then_one_in_a_period() {
        let start = Instant::now();
        let mut log = FailureLog::default();
        assert_eq!(log.failed(start), Some(0));
        for milliseconds in 0..100 {
            assert_eq!(log.failed(start + Duration::from_millis(milliseconds)), None);
        }
        assert_eq!(log.failed(start + PERIOD), Some(100));
        assert_eq!(log.failed(start + PERIOD), None);
        assert_eq!((log.take_kept_back(), log.take_kept_back()), (1, 0));
    }
}
