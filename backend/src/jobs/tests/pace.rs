//! Tests of limits, shares and rates: JOB-5, JOB-6.

use super::*;

const MS: Duration = Duration::from_millis(1);

/// rule: JOB-6
#[test]
fn a_limit_holds_over_any_span_whatever_steps_move() {
    let start = Instant::now();
    for (speed, step_takes) in [(1 << 20, MS), (10 << 20, 200 * MS), (1000, MS)] {
        let mut limit = Limit::new(speed, start);
        let (mut now, mut moved) = (start, 0);
        for round in 0..50u64 {
            now = now.max(limit.ready_at());
            let at_most =
                |since: Duration| (since.as_secs_f64() * speed as f64) as u64 + limit.budget(STEP) + STEP_LEAST;
            assert!(moved <= at_most(now - start), "{moved} bytes at {speed} a second in {:?}", now - start);
            // A step may move more than its budget.
            let bytes = limit.budget(STEP) + round % 2 * STEP_LEAST / 2;
            limit.spend(bytes, now);
            moved += bytes;
            now += step_takes;
        }
        let most = (limit.ready_at() - start).as_secs_f64() * speed as f64;
        assert!((moved as f64) < most + 1.0 && moved as f64 > most * 0.5, "{moved} of {most}");
    }
}

/// rule: JOB-6
#[test]
fn what_a_limit_left_unused_is_not_saved_up() {
    let start = Instant::now();
    let mut limit = Limit::new(1 << 20, start);
    let later = start + Duration::from_secs(100);
    limit.spend(1 << 20, later);
    assert_eq!(limit.ready_at(), later + Duration::from_secs(1));
}

/// rule: JOB-13
#[test]
fn a_new_limit_forgives_nothing() {
    let start = Instant::now();
    let second = Duration::from_secs(1);
    let mut limit = Limit::new(1 << 20, start);
    limit.spend(4 << 20, start);
    limit.set(1 << 20, start + second);
    assert_eq!(limit.ready_at(), start + 4 * second);
    limit.set(3 << 20, start + second);
    assert_eq!(limit.ready_at(), start + 2 * second);
    limit.set(1 << 20, start + 3 * second);
    assert_eq!(limit.ready_at(), start + 3 * second, "nothing is owed any more");
}

#[test]
fn a_new_limit_counts_at_once() {
    let start = Instant::now();
    let mut limit = Limit::new(1, start);
    limit.spend(1 << 20, start);
    assert!(limit.ready_at() > start + Duration::from_secs(1 << 19));
    limit.set(0, start + MS);
    assert_eq!((limit.speed(), limit.ready_at(), limit.budget(STEP)), (0, start + MS, STEP));
    limit.spend(1 << 30, start + MS);
    assert_eq!(limit.ready_at(), start + MS);
}

/// rule: JOB-5
#[test]
fn jobs_rest_only_beside_active_guests() {
    let start = Instant::now();
    let (activity, mut share) = (Activity::default(), Share::default());
    let (queue, other) = (activity.queue(), activity.queue());
    assert_eq!(share.budget(&activity, start), STEP);
    assert_eq!(share.rest(&activity, 10 * MS, start), Duration::ZERO);
    queue.took_requests();
    assert_eq!(share.rest(&activity, 10 * MS, start), 30 * MS);
    assert_eq!(share.budget(&activity, start + 40 * MS), STEP_BESIDE_GUESTS);
    assert_eq!(share.rest(&activity, 10 * MS, start + QUIET), Duration::ZERO);
    other.took_requests();
    assert_eq!(share.rest(&activity, Duration::from_secs(100), start + QUIET), LONGEST_REST);
    // One that waits for slow storage is active, however long; one that has gone is not.
    let later = start + Duration::from_secs(9);
    other.sleeps(true);
    assert_eq!(share.budget(&activity, later), STEP_BESIDE_GUESTS);
    assert_eq!(share.rest(&activity, 10 * MS, later + 10 * QUIET), 30 * MS);
    other.sleeps(false);
    assert_eq!(share.rest(&activity, 10 * MS, later + 20 * QUIET), Duration::ZERO);
    other.sleeps(true);
    drop(other);
    assert_eq!(share.rest(&activity, 10 * MS, later + 30 * QUIET), Duration::ZERO);
}

#[test]
fn a_rate_is_that_of_the_last_second() {
    let start = Instant::now();
    let mut rate = Rate::new(start);
    rate.add(100, start + 500 * MS);
    assert_eq!(rate.per_second(start + 500 * MS), 200);
    rate.add(100, start + 1000 * MS);
    assert_eq!(rate.per_second(start + 1500 * MS), 200);
    assert_eq!(rate.per_second(start + 3000 * MS), 0);
}
