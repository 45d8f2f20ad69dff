//! How fast jobs go: a limit of each job's own, and a share of the storage that all together leave to guests.
//!
//! Invariant: over any span a job moves at most its limit's bytes and one step's more (JOB-6); while guests are active,
//! jobs work at most a quarter of the time (JOB-5). Does not: sleep; it tells until when.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Bytes of a step while guests are active: what a guest's request may have to wait for on storage that takes turns.
const STEP_BESIDE_GUESTS: u64 = 1 << 20;
/// Bytes of a step otherwise.
const STEP: u64 = 4 << 20;
/// Smallest step: a chunk, which is moved as a whole.
const STEP_LEAST: u64 = 256 << 10;
/// A limited job makes this many steps a second, if its limit is what holds it up.
const STEPS_PER_SECOND: u64 = 8;
/// After a step beside active guests, jobs rest this many times as long as it took.
const REST_FACTOR: u32 = 3;
/// Longest rest, so that a step that met a hiccup of the storage does not stop jobs for minutes.
const LONGEST_REST: Duration = Duration::from_secs(10);
/// A guest that did nothing for so long, and waits for nothing, is not active.
const QUIET: Duration = Duration::from_millis(50);

/// Whether guests are active, as their queues tell.
#[derive(Debug, Default)]
pub(crate) struct Activity(Mutex<Vec<Weak<QueueActivity>>>);

/// What one queue tells. Its thread alone writes to it for the most part, so that queues do not hold up one another.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct QueueActivity {
    took: AtomicBool,
    under_way: AtomicBool,
}

impl Activity {
    /// Where a new queue tells; it counts for as long as that is kept.
    pub(crate) fn queue(&self) -> Arc<QueueActivity> {
        let queue = Arc::default();
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|queue| queue.strong_count() > 0);
        queues.push(Arc::downgrade(&queue));
        queue
    }

    /// Whether a guest has requests under way, or had any since the last call.
    fn take(&self) -> bool {
        let mut any = false;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|queue| {
            let queue = queue.upgrade();
            any |= queue.as_ref().is_some_and(|queue| queue.take());
            queue.is_some()
        });
        any
    }
}

impl QueueActivity {
    /// The guest has offered requests.
    pub(crate) fn took_requests(&self) {
        set(&self.took, true);
    }

    /// The queue goes to sleep, with requests under way or without.
    pub(crate) fn sleeps(&self, under_way: bool) {
        set(&self.under_way, under_way);
    }

    fn take(&self) -> bool {
        self.took.swap(false, Ordering::Relaxed) | self.under_way.load(Ordering::Relaxed)
    }
}

/// A write only where it changes something: most often it does not.
fn set(flag: &AtomicBool, value: bool) {
    if flag.load(Ordering::Relaxed) != value {
        flag.store(value, Ordering::Relaxed);
    }
}

/// The share of all jobs together.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// When a guest was last seen active.
    active_at: Option<Instant>,
}

impl Share {
    /// Bytes that the next step may move.
    pub(super) fn budget(&mut self, activity: &Activity, now: Instant) -> u64 {
        if self.guests_are_active(activity, now) { STEP_BESIDE_GUESTS } else { STEP }
    }

    /// How long jobs rest after a step that took `took` and ended at `now`.
    pub(super) fn rest(&mut self, activity: &Activity, took: Duration, now: Instant) -> Duration {
        if self.guests_are_active(activity, now) { (took * REST_FACTOR).min(LONGEST_REST) } else { Duration::ZERO }
    }

    fn guests_are_active(&mut self, activity: &Activity, now: Instant) -> bool {
        if activity.take() {
            self.active_at = Some(now);
        }
        self.active_at.is_some_and(|at| now.saturating_duration_since(at) < QUIET)
    }
}

/// The limit of one job: a bucket that a step may overdraw, and that must be even again before the next.
#[derive(Debug)]
pub(super) struct Limit {
    /// Bytes a second; 0 for none.
    speed: u64,
    /// When the bucket is even.
    even_at: Instant,
}

impl Limit {
    pub(super) fn new(speed: u64, now: Instant) -> Self {
        Self { speed, even_at: now }
    }

    /// Bytes a second; 0 for none.
    pub(super) fn speed(&self) -> u64 {
        self.speed
    }

    /// Sets another limit, that counts from now on; what the last step moved beyond the old one has still to be evened out.
    pub(super) fn set(&mut self, speed: u64, now: Instant) {
        let owed_bytes = self.even_at.saturating_duration_since(now).as_secs_f64() * self.speed as f64;
        *self = Self::new(speed, now);
        self.owe(owed_bytes);
    }

    /// `budget`, or less if the limit would take long to even it out.
    pub(super) fn budget(&self, budget: u64) -> u64 {
        match self.speed {
            0 => budget,
            speed => (speed / STEPS_PER_SECOND).clamp(STEP_LEAST.min(budget), budget),
        }
    }

    /// A step that began at `started` has moved `bytes`.
    pub(super) fn spend(&mut self, bytes: u64, started: Instant) {
        // What was not used is not saved up: no bursts.
        self.even_at = self.even_at.max(started);
        self.owe(bytes as f64);
    }

    fn owe(&mut self, bytes: f64) {
        if self.speed > 0 {
            self.even_at += Duration::from_secs_f64((bytes / self.speed as f64).min(1e6));
        }
    }

    /// When the next step may be made.
    pub(super) fn ready_at(&self) -> Instant {
        self.even_at
    }
}

/// How fast a job has been going lately.
#[derive(Debug)]
pub(super) struct Rate {
    since: Instant,
    bytes: u64,
    per_second: u64,
}

/// Spans that a rate is an average of, at least.
const RATE_SPAN: Duration = Duration::from_secs(1);

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0, per_second: 0 }
    }

    /// `bytes` have been moved.
    pub(super) fn add(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        self.per_second(now);
    }

    /// Bytes a second, over the last second or the time since the last look.
    pub(super) fn per_second(&mut self, now: Instant) -> u64 {
        let span = now.saturating_duration_since(self.since);
        if span >= RATE_SPAN {
            self.per_second = (self.bytes as f64 / span.as_secs_f64()) as u64;
            (self.since, self.bytes) = (now, 0);
        } else if self.per_second == 0 && !span.is_zero() {
            // Nothing better is known yet.
            return (self.bytes as f64 / span.as_secs_f64().max(0.05)) as u64;
        }
        self.per_second
    }
}

#[cfg(test)]
#[path = "tests/pace.rs"]
mod tests;
