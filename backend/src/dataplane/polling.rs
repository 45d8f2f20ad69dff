//! How long a queue polls before it sleeps: as long as that has paid off lately, never long, and only while most
//! processors are left to those who work.

use std::num::NonZero;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest time of polling without work.
const MAX_WINDOW: Duration = Duration::from_micros(48);
/// First time tried after work came soon after falling asleep.
const FIRST_WINDOW: Duration = Duration::from_micros(4);

/// Queues of this process that may poll at a time: half as many as there are processors, at least one.
static MAX_POLLERS: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, NonZero::get).div_ceil(2));
/// Queues that poll now.
static POLLERS: AtomicUsize = AtomicUsize::new(0);

/// Adapts the polling window to the work that comes.
#[derive(Debug)]
pub(crate) struct Polling {
    window: Duration,
    idle_since: Instant,
    /// Counted among the [`POLLERS`].
    polls: bool,
}

impl Polling {
    pub(crate) fn new() -> Self {
        Polling { window: FIRST_WINDOW, idle_since: Instant::now(), polls: false }
    }

    /// Work was done: the window begins anew.
    pub(crate) fn worked(&mut self) {
        self.leave();
        self.idle_since = Instant::now();
    }

    /// Whether to look once more before sleeping.
    pub(crate) fn goes_on(&mut self) -> bool {
        let goes_on = !self.window.is_zero() && self.idle_since.elapsed() < self.window && self.enter();
        if !goes_on {
            self.leave();
        }
        goes_on
    }

    /// Counts this queue among those that poll, if there is a place.
    fn enter(&mut self) -> bool {
        let more = |count: usize| (count < *MAX_POLLERS).then_some(count + 1);
        self.polls = self.polls || POLLERS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        self.polls
    }

    fn leave(&mut self) {
        if std::mem::take(&mut self.polls) {
            POLLERS.fetch_sub(1, Ordering::Relaxed);
        }
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

impl Drop for Polling {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_poll_at_a_time() {
        let mut all: Vec<Polling> = (0..=*MAX_POLLERS).map(|_| Polling::new()).collect();
        for polling in &mut all {
            polling.window = Duration::from_secs(3600);
        }
        let (last, others) = all.split_last_mut().unwrap();
        assert!(others.iter_mut().all(Polling::goes_on) && !last.goes_on());
        others[0].worked();
        assert!(last.goes_on() && !others[0].goes_on());
        last.window = Duration::ZERO;
        assert!(!last.goes_on() && others[0].goes_on());
        all.clear();
        assert_eq!(POLLERS.load(Ordering::Relaxed), 0);
    }

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
