//! The thread that makes the jobs' steps, one after the other.
//!
//! Jobs take turns, the one that waited longest first. Invariant: after [`Turns::stop`] no step is under way and none
//! begins; stopping waits for one step at most. Does not: know what the jobs do.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::pace::{Activity, Share};
use super::work::{Step, Wait};
use super::{Job, JobState, Jobs, List, VOID, Work};

/// How often jobs are looked at that make no step, and whether one must end.
const LOOK_PERIOD: Duration = Duration::from_millis(500);
/// How long the thread sleeps if there is no job; the first wakes it, but a sealing that a freeze has begun is looked for.
const IDLE_PERIOD: Duration = Duration::from_secs(1);
/// How soon a job that was blocked tries again.
const BLOCKED_PAUSE: Duration = Duration::from_millis(20);
/// How soon one that found no space does.
const SPACE_PAUSE: Duration = Duration::from_millis(500);

/// The running thread.
#[derive(Debug)]
pub(crate) struct Turns {
    jobs: Arc<Jobs>,
    thread: thread::JoinHandle<()>,
}

/// A step to be made.
struct Turn {
    number: u64,
    work: Arc<dyn Work>,
    budget_bytes: u64,
}

impl Turn {
    /// Makes the step. One that panics fails like any other: nobody waits for it, or for other jobs, for ever (JOB-15).
    fn step(&self) -> Step {
        // What it may have left half done is behind locks that whoever comes next takes as they are.
        let step = || self.work.step(self.budget_bytes);
        catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|panic| {
            let text =
                panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            Step::Failed(format!("a defect of this program: {}", text.unwrap_or("it gives no reason")))
        })
    }
}

impl Turns {
    /// Starts the thread.
    pub(crate) fn start(jobs: &Arc<Jobs>, activity: Arc<Activity>) -> io::Result<Self> {
        let its_jobs = Arc::clone(jobs);
        let body = move || its_jobs.take_turns(&activity);
        let thread = thread::Builder::new().name("pit-jobs".to_owned()).spawn(body)?;
        Ok(Self { jobs: Arc::clone(jobs), thread })
    }

    /// Stops after the step under way.
    pub(crate) fn stop(self) {
        self.jobs.lock().stopping = true;
        self.jobs.changed.notify_all();
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Jobs {
    fn take_turns(&self, activity: &Activity) {
        let mut share = Share::default();
        let mut rest_until = Instant::now();
        let mut list = self.lock();
        while !list.stopping {
            let now = Instant::now();
            if now < rest_until && !list.jobs.iter().any(Job::must_end) {
                list = self.sleep(list, (rest_until - now).min(LOOK_PERIOD));
                continue;
            }
            // Also while other jobs leave no pause.
            if self.misses_seals() {
                drop(list);
                self.take_up_seals();
                list = self.lock();
                continue;
            }
            let turn = match list.next_turn(now, || share.budget(activity, now)) {
                Ok(turn) => turn,
                Err(wait) => {
                    self.reap(&mut list);
                    list = self.sleep(list, wait);
                    continue;
                }
            };
            drop(list);
            let step = turn.step();
            // Between steps nobody waits for a look.
            let progress = turn.work.look();
            let ended = Instant::now();
            rest_until = ended + share.rest(activity, ended - now, ended);
            list = self.lock();
            if let Some(job) = list.by_number(turn.number) {
                job.stepping = false;
                job.turn_at = ended;
                if let Some(progress) = progress {
                    job.progress = progress;
                }
                self.end_step(job, step, now, ended);
            }
            self.forget(&mut list);
            self.changed.notify_all();
        }
    }

    fn end_step(&self, job: &mut Job, step: Step, started: Instant, ended: Instant) {
        match step {
            Step::Moved(bytes) => {
                job.waits_for_space = false;
                job.limit.spend(bytes, started);
                job.rate.add(bytes, ended);
            }
            Step::Blocked(wait) => {
                job.waits_for_space = wait == Wait::Space;
                job.blocked_until = Some(ended + if job.waits_for_space { SPACE_PAUSE } else { BLOCKED_PAUSE });
            }
            Step::Complete => {
                job.progress.current_bytes = job.progress.total_bytes;
                self.conclude(job, Ok(()));
            }
            Step::Void => self.conclude(job, Err(VOID.to_owned())),
            Step::GivenUp(reason) => {
                log::error!("job {} is given up: {reason}", job.id);
                self.conclude(job, Err(reason));
            }
            // It was only to see whether it must end.
            Step::Failed(_) if job.state == JobState::Paused => {}
            Step::Failed(reason) => {
                log::error!("job {} pauses: {reason}; resume it when that is mended", job.id);
                job.error = Some(reason);
                self.turn(job, JobState::Paused);
            }
        }
    }

    fn sleep<'a>(&'a self, list: MutexGuard<'a, List>, wait: Duration) -> MutexGuard<'a, List> {
        if list.stopping {
            return list;
        }
        self.changed.wait_timeout(list, wait).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl List {
    /// The step to make at `now`, or how long to wait for one.
    fn next_turn(&mut self, now: Instant, budget: impl FnOnce() -> u64) -> Result<Turn, Duration> {
        let mut first: Option<Instant> = None;
        let mut next: Option<&mut Job> = None;
        let mut must_end = false;
        for job in self.jobs.iter_mut().filter(|job| !job.is_over() && !job.held) {
            if job.must_end() {
                (next, must_end) = (Some(job), true);
                break;
            }
            if job.state != JobState::Running {
                continue;
            }
            let ready_at = job.blocked_until.map_or(job.limit.ready_at(), |until| until.max(job.limit.ready_at()));
            if ready_at > now {
                first = Some(first.map_or(ready_at, |first| first.min(ready_at)));
            } else if next.as_ref().is_none_or(|next| job.turn_at < next.turn_at) {
                next = Some(job);
            }
        }
        let Some(job) = next else {
            let most = if self.jobs.is_empty() { IDLE_PERIOD } else { LOOK_PERIOD };
            return Err(first.map_or(most, |first| (first - now).min(most)));
        };
        job.stepping = true;
        job.blocked_until = None;
        // A step that moves nothing: the job may be paused.
        let budget_bytes = if must_end { 0 } else { job.limit.budget(budget()) };
        Ok(Turn { number: job.number, work: Arc::clone(&job.work), budget_bytes })
    }
}
