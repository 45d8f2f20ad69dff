//! Keeps the log readable when requests, or connections, fail by the thousand.
//!
//! The first failure is told at once, then at most one in [`PERIOD`] with the number of those kept back; but what is damaged is
//! told of whenever it fails for the first time, of a bounded number of places (TAG-14). Does not: write the log.

use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Shortest time between two lines.
const PERIOD: Duration = Duration::from_secs(5);

/// Damaged places that are told of at once.
const PLACES: usize = 256;

/// Decides which failures are told.
#[derive(Debug, Default)]
pub(crate) struct FailureLog {
    told: Option<Instant>,
    kept_back: u64,
    /// Damaged places that were told of.
    places: HashSet<String>,
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

    /// As [`FailureLog::failed`], of something damaged at `place`.
    pub(crate) fn failed_at(&mut self, place: String, now: Instant) -> Option<u64> {
        if self.places.len() < PLACES && self.places.insert(place) {
            return Some(self.take_kept_back());
        }
        self.failed(now)
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

    // rule: TAG-14 — whoever repeats a failure does not keep others from the log.
    #[test]
    fn each_damaged_place_is_told_of_once_at_least() {
        let now = Instant::now();
        let mut log = FailureLog::default();
        assert_eq!(log.failed(now), Some(0));
        for place in 0..PLACES {
            assert_eq!(log.failed_at(place.to_string(), now), Some(0));
            assert_eq!(log.failed_at(place.to_string(), now), None);
            assert_eq!(log.take_kept_back(), 1);
        }
        assert_eq!(log.failed_at(PLACES.to_string(), now), None);
        assert_eq!(log.failed_at(0.to_string(), now + PERIOD), Some(1));
        assert_eq!(log.places.len(), PLACES);
    }
}
