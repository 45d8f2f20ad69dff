//! How long a queue polls before it sleeps: as long as that has paid off lately, and never long.

use std::time::{Duration, Instant};

/// Longest time of polling without work.
const MAX_WINDOW: Duration = Duration::from_micros(48);
/// First time tried after work came soon after falling asleep.
const FIRST_WINDOW: Duration = Duration::from_micros(4);

/// Adapts the polling window to the work that comes.
#[derive(Debug)]
pub(crate) struct Polling {
    window: Duration,
    idle_since: Instant,
}

impl Polling {
    pub(crate) fn new() -> Self {
        Polling { window: FIRST_WINDOW, idle_since: Instant::now() }
    }

    /// Work was done: the window begins anew.
    pub(crate) fn worked(&mut self) {
        self.idle_since = Instant::now();
    }

    /// Whether to look once more before sleeping.
    pub(crate) fn goes_on(&self) -> bool {
        !self.window.is_zero() && self.idle_since.elapsed() < self.window
    }

    /// The queue slept and was woken. `idle_since` is still the time of the last work.
    pub(crate) fn slept(&mut self) {
        if self.idle_since.elapsed() <= MAX_WINDOW {
            self.window = (self.window * 2).clamp(FIRST_WINDOW, MAX_WINDOW); // polling longer would have met this work
        } else {
            self.window /= 2; // polling was in vain
            if self.window < Duration::from_micros(1) {
                self.window = Duration::ZERO;
            }
        }
        self.idle_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_shrinks_to_nothing_when_polling_is_in_vain() {
        let mut polling = Polling::new();
        for _ in 0..8 {
            polling.idle_since = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
            polling.slept();
        }
        assert!(!polling.goes_on());
    }

    #[test]
    fn window_grows_to_its_bound_when_work_comes_soon() {
        let mut polling = Polling::new();
        for _ in 0..20 {
            polling.worked();
            polling.idle_since = Instant::now();
            polling.slept();
        }
        assert!(polling.window <= MAX_WINDOW && polling.window >= FIRST_WINDOW);
    }
}
