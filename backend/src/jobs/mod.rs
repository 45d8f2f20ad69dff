//! Background work: the container's own (`maintenance`), and jobs that somebody asked for.
//!
//! [`Jobs`] is the list of jobs. `work` says what a job does, `hydrate` and `seal` do it; `state` has QEMU's states, `pace` says how
//! fast, `turns` is the thread that makes the steps. Invariant: at most one step of all jobs is under way at a time; an
//! order to a job waits for its step under way, so nothing is moved after the reply to `job-pause` (JOB-3); what must
//! outlive the daemon is durable before the order is carried out (JOB-2). Does not: decide what a volume is.

mod backup;
mod hydrate;
mod maintenance;
mod pace;
mod seal;
mod state;
mod status;
mod target;
mod turns;
mod work;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pitstop_format::Container;

use crate::daemon::Event;
use crate::events::Events;
use pace::{Limit, Rate};
use status::upkeep;
use work::JobKind;

pub(crate) use backup::{BackupError, BackupOrder, Reading};
pub(crate) use maintenance::Maintenance;
pub(crate) use pace::{Activity, QueueActivity};
pub(crate) use state::{JobState, Verb};
pub(crate) use status::{Dismissal, JobError, JobStatus};
pub(crate) use turns::Turns;
pub(crate) use work::{Progress, Settings, Work};

/// Most jobs that are over and wait to be dismissed; of more, the oldest are dismissed.
const MOST_CONCLUDED: usize = 64;

/// No number of changes.
const NEVER: u64 = u64::MAX;

/// How long the end of the daemon, and an answer to `job-cancel`, waits for storage that does not answer (JOB-9, JOB-27).
const WAIT_GONE: Duration = Duration::from_secs(2);

/// Why a job ends that has become void.
const VOID: &str = "the volume was deleted, refreshed or restored";

/// Result of an order.
pub(crate) type Result<T> = std::result::Result<T, JobError>;

/// A job whose steps wait for the end of an order, whatever that comes to.
struct Held<'a> {
    jobs: &'a Jobs,
    number: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(job) = self.jobs.lock().by_number(self.number) {
            job.held = false;
        }
        self.jobs.changed.notify_all();
    }
}

/// The jobs of a daemon.
pub(crate) struct Jobs {
    container: Container,
    events: Arc<Events>,
    /// Held while an order to a job is carried out: they come one after the other.
    orders: Mutex<()>,
    list: Mutex<List>,
    /// Something changed that [`Turns`] or an order waits for.
    changed: Condvar,
    /// Held while sealings become jobs.
    taking_up: Mutex<()>,
    /// `Container::seal_changes` when that was done last; [`NEVER`] if a sealing's job has changed since.
    seals_seen: AtomicU64,
}

#[derive(Default)]
struct List {
    jobs: Vec<Job>,
    /// The number that the next job gets.
    next_number: u64,
    stopping: bool,
}

struct Job {
    id: String,
    /// Never used again, unlike the id.
    number: u64,
    work: Arc<dyn Work>,
    state: JobState,
    dismissal: Dismissal,
    limit: Limit,
    rate: Rate,
    /// As of the last look.
    progress: Progress,
    error: Option<String>,
    /// It was told to pause, so it stays paused over a restart.
    told_to_pause: bool,
    /// A step is under way.
    stepping: bool,
    /// An order is being carried out: no step begins.
    held: bool,
    waits_for_space: bool,
    /// No step before this.
    blocked_until: Option<Instant>,
    /// When its last step ended.
    turn_at: Instant,
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs").finish_non_exhaustive()
    }
}

impl Jobs {
    /// No jobs yet. `events` is told what becomes of them.
    pub(crate) fn new(container: Container, events: Arc<Events>) -> Arc<Self> {
        let (orders, list, changed) = (Mutex::default(), Mutex::default(), Condvar::new());
        let (taking_up, seals_seen) = (Mutex::default(), AtomicU64::new(NEVER));
        Arc::new(Self { container, events, orders, list, changed, taking_up, seals_seen })
    }

    /// Adds a job, that is paused or not as `settings` say. Nothing happens if there is one with the id that is not over.
    pub(crate) fn add(&self, id: String, work: Arc<dyn Work>, settings: Settings, dismissal: Dismissal) {
        let Some(progress) = work.look() else {
            return;
        };
        let mut list = self.lock();
        if list.has(&id) {
            return;
        }
        let now = Instant::now();
        let number = list.next_number;
        list.next_number += 1;
        let limit = Limit::new(settings.speed, now);
        let mut job = Job {
            id,
            number,
            work,
            state: JobState::Created,
            dismissal,
            limit,
            rate: Rate::new(now),
            progress,
            error: None,
            told_to_pause: settings.paused,
            stepping: false,
            held: false,
            waits_for_space: false,
            blocked_until: None,
            turn_at: now,
        };
        self.tell(&job);
        self.turn(&mut job, JobState::Running);
        if settings.paused {
            self.turn(&mut job, JobState::Paused);
        }
        list.jobs.push(job);
        drop(list);
        self.changed.notify_all();
    }

    /// All jobs, the oldest first, then the container's own work.
    pub(crate) fn list(&self) -> Vec<JobStatus> {
        self.take_up_seals();
        let mut list = self.lock_as_it_is();
        let now = Instant::now();
        let jobs: Vec<JobStatus> = list.jobs.iter_mut().map(|job| job.status(now)).collect();
        drop(list);
        jobs.into_iter().chain(self.container.background().iter().map(upkeep)).collect()
    }

    /// The job `id`, if there is one.
    pub(crate) fn get(&self, id: &str) -> Option<JobStatus> {
        self.list().into_iter().find(|job| job.id == id)
    }

    /// Lets a job do nothing until it is resumed; when this returns, it moves nothing any more.
    pub(crate) fn pause(&self, id: &str) -> Result<()> {
        let keep = |work: &dyn Work, settings| work.keep(Settings { paused: true, ..settings });
        self.order(id, Verb::Pause, keep, |jobs, job| {
            job.told_to_pause = true;
            // An error may have paused it before.
            if job.state == JobState::Running {
                jobs.turn(job, JobState::Paused);
            }
        })
    }

    /// Lets a paused job go on.
    pub(crate) fn resume(&self, id: &str) -> Result<()> {
        let keep = |work: &dyn Work, settings| work.keep(Settings { paused: false, ..settings });
        self.order(id, Verb::Resume, keep, |jobs, job| {
            job.told_to_pause = false;
            job.error = None;
            job.blocked_until = None;
            job.waits_for_space = false;
            if job.state == JobState::Paused {
                jobs.turn(job, JobState::Running);
            }
        })
    }

    /// Gives a job up.
    pub(crate) fn cancel(&self, id: &str) -> Result<()> {
        let mut given_up = None;
        self.order(
            id,
            Verb::Cancel,
            |work, _| work.cancel(),
            |jobs, job| {
                given_up = Some(Arc::clone(&job.work));
                jobs.conclude(job, Err("Operation canceled".to_owned()));
            },
        )?;
        // Other orders go on meanwhile.
        given_up.into_iter().for_each(|work| work.wait_gone(WAIT_GONE));
        Ok(())
    }

    /// Sets a job's limit, in bytes a second; 0 for none.
    pub(crate) fn set_speed(&self, id: &str, speed: u64) -> Result<()> {
        let keep = |work: &dyn Work, settings| work.keep(Settings { speed, ..settings });
        self.order(id, Verb::SetSpeed, keep, |_, job| {
            job.limit.set(speed, Instant::now());
        })
    }

    /// Forgets a job that is over.
    pub(crate) fn dismiss(&self, id: &str) -> Result<()> {
        let mut list = self.lock();
        let job = self.find(&mut list, id, Verb::Dismiss)?;
        self.turn(job, JobState::Null);
        self.forget(&mut list);
        Ok(())
    }

    /// Looks whether jobs have become void, because their volumes were deleted or refreshed.
    pub(crate) fn look(&self) {
        drop(self.lock_as_it_is());
    }

    /// Gives up what cannot go on with the next daemon. No step is under way any more.
    pub(crate) fn end(&self) {
        let mut ended = Vec::new();
        let mut list = self.lock();
        for job in list.jobs.iter_mut().filter(|job| !job.is_over()) {
            ended.push(Arc::clone(&job.work));
            if job.work.end() {
                log::error!("job {} is given up: the daemon ends", job.id);
                self.conclude(job, Err("the daemon has ended".to_owned()));
            }
        }
        self.forget(&mut list);
        drop(list);
        let until = Instant::now() + WAIT_GONE;
        for work in ended {
            work.wait_gone(until.saturating_duration_since(Instant::now()));
        }
    }

    /// Carries out an order: waits for the step under way, makes it durable by `keep`, and lets it count by `apply`.
    fn order(
        &self,
        id: &str,
        verb: Verb,
        keep: impl FnOnce(&dyn Work, Settings) -> std::result::Result<(), String>,
        apply: impl FnOnce(&Self, &mut Job),
    ) -> Result<()> {
        let _one = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.hold(id, verb)?;
        let (work, settings) = {
            let mut list = self.wait_for_step(self.lock(), held.number);
            let job = match list.by_number(held.number) {
                // The step has ended it.
                Some(Job { state: state @ JobState::Concluded, .. }) => {
                    return Err(JobError::BadVerb { id: id.to_owned(), state: *state, verb });
                }
                Some(job) if !job.is_over() => job,
                _ => return Err(JobError::NotFound),
            };
            (Arc::clone(&job.work), Settings { paused: job.told_to_pause, speed: job.limit.speed() })
        };
        let kept = keep(work.as_ref(), settings);
        let mut list = self.lock();
        let result = match (list.by_number(held.number), kept) {
            (Some(job), Ok(())) => {
                apply(self, job);
                Ok(())
            }
            (Some(_), Err(text)) => Err(JobError::NotKept(text)),
            (None, _) => Err(JobError::NotFound),
        };
        self.forget(&mut list);
        result
    }

    /// Holds the job `id`, if it takes the order: no step of it begins.
    fn hold(&self, id: &str, verb: Verb) -> Result<Held<'_>> {
        let mut list = self.lock_as_it_is();
        let job = self.find(&mut list, id, verb)?;
        match verb {
            Verb::Pause if job.told_to_pause => return Err(JobError::AlreadyPaused),
            Verb::Resume if job.state != JobState::Paused => return Err(JobError::NotPaused),
            _ => {}
        }
        job.held = true;
        Ok(Held { jobs: self, number: job.number })
    }

    fn wait_for_step<'a>(&'a self, mut list: MutexGuard<'a, List>, number: u64) -> MutexGuard<'a, List> {
        while list.by_number(number).is_some_and(|job| job.stepping) {
            list = self.changed.wait(list).unwrap_or_else(PoisonError::into_inner);
        }
        list
    }

    /// The job `id`, if its state takes the order.
    fn find<'a>(&self, list: &'a mut List, id: &str, verb: Verb) -> Result<&'a mut Job> {
        let Some(job) = list.jobs.iter_mut().rev().find(|job| job.id == id) else {
            let is_upkeep = self.container.background().iter().any(|work| upkeep(work).id == id);
            return Err(if is_upkeep { JobError::Upkeep { id: id.to_owned(), verb } } else { JobError::NotFound });
        };
        match (job.state.takes(verb), verb) {
            (true, _) => Ok(job),
            (false, Verb::Resume) => Err(JobError::NotPaused), // as QEMU
            (false, _) => Err(JobError::BadVerb { id: id.to_owned(), state: job.state, verb }),
        }
    }

    /// The list, without jobs that have become void or were completed by now.
    fn lock_as_it_is(&self) -> MutexGuard<'_, List> {
        let mut list = self.lock();
        // Only the end of the step or order says which of both it is, and that is near.
        let is_ending = |job: &Job| !job.is_over() && (job.stepping || job.held) && job.work.look().is_none();
        while list.jobs.iter().any(is_ending) {
            list = self.changed.wait(list).unwrap_or_else(PoisonError::into_inner);
        }
        self.reap(&mut list);
        list
    }

    /// Looks at every job that nobody works at.
    fn reap(&self, list: &mut List) {
        for job in list.jobs.iter_mut().filter(|job| !job.is_over() && !job.stepping && !job.held) {
            match job.work.look() {
                Some(progress) => job.progress = progress,
                None => self.conclude(job, Err(VOID.to_owned())),
            }
        }
        self.forget(list);
    }

    /// Drops what is gone, and dismisses the oldest of those that wait for it if there are too many.
    fn forget(&self, list: &mut List) {
        let waiting = list.jobs.iter().filter(|job| job.state == JobState::Concluded).count();
        let too_many = waiting.saturating_sub(MOST_CONCLUDED);
        for job in list.jobs.iter_mut().filter(|job| job.state == JobState::Concluded).take(too_many) {
            self.turn(job, JobState::Null);
        }
        list.jobs.retain(|job| job.state != JobState::Null);
    }

    /// Ends a job, through all states on the way.
    fn conclude(&self, job: &mut Job, result: std::result::Result<(), String>) {
        if job.state == JobState::Paused {
            self.turn(job, JobState::Running);
        }
        match result {
            Ok(()) => {
                job.error = None;
                self.turn(job, JobState::Waiting);
                self.turn(job, JobState::Pending);
            }
            Err(reason) => {
                job.error = Some(reason);
                self.turn(job, JobState::Aborting);
            }
        }
        self.turn(job, JobState::Concluded);
        let volume = job.progress.volume.as_deref().unwrap_or_default();
        match &job.error {
            None => log::info!("job {} (volume '{volume}') is complete", job.id),
            Some(reason) => log::info!("job {} (volume '{volume}') has ended: {reason}", job.id),
        }
        if job.dismissal == Dismissal::Auto {
            self.turn(job, JobState::Null);
        }
    }

    fn turn(&self, job: &mut Job, state: JobState) {
        debug_assert!(state.follows(job.state), "{} cannot turn from {:?} to {state:?}", job.id, job.state);
        job.state = state;
        if job.work.kind() == JobKind::Seal {
            self.seals_seen.store(NEVER, Ordering::SeqCst);
        }
        self.tell(job);
    }

    fn tell(&self, job: &Job) {
        self.events.emit(&Event::JobStatusChanged { id: job.id.clone(), state: job.state });
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    /// Whether there is a job with this id that is not over.
    fn has(&self, id: &str) -> bool {
        self.jobs.iter().any(|job| job.id == id && !job.is_over())
    }

    fn by_number(&mut self, number: u64) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|job| job.number == number)
    }
}

impl Job {
    /// Whether a step has to be made that gives it up (JOB-26).
    fn must_end(&self) -> bool {
        !self.is_over() && !self.held && self.work.must_end()
    }

    fn is_over(&self) -> bool {
        matches!(self.state, JobState::Concluded | JobState::Null)
    }

    fn status(&mut self, now: Instant) -> JobStatus {
        let works = self.state == JobState::Running;
        JobStatus {
            id: self.id.clone(),
            kind: self.work.kind(),
            state: self.state,
            progress: self.progress.clone(),
            speed: self.limit.speed(),
            rate: if works { self.rate.per_second(now) } else { 0 },
            waits_for_space: works && self.waits_for_space,
            error: self.error.clone(),
        }
    }
}

#[cfg(test)]
#[path = "tests/jobs.rs"]
mod tests;
