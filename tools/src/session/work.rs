//! The jobs of a container that is opened here: its unfinished hydrations and sealings, which this program works at while it
//! waits.
//!
//! Invariant: a job's limit is heeded as a daemon does (JOB-6), and a call returns after a moment, so that a signal is seen.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use pitstop_format::{
    Container, Error as FormatError, HydrateEnd, HydrateStep, HydrateWait, Hydration, LayerId, Maintained, Moved,
    SealEnd, SealStep, Sealing, VolumeId,
};

use crate::jobs::{JobOrder, JobView};

/// About how long a call works.
const MOMENT: Duration = Duration::from_millis(200);
/// Bytes of a step.
const STEP_LEN: u64 = 4 << 20;
/// Bytes of a step where the speed is limited: a chunk.
const LIMITED_STEP_LEN: u64 = 256 << 10;
/// Pause where nothing can be done at once.
const BLOCKED_PAUSE: Duration = Duration::from_millis(20);
/// How long a lack of space is put up with.
const SPACE_PATIENCE: Duration = Duration::from_secs(3);

/// What a job is about.
#[derive(Debug, Clone, Copy)]
enum Task {
    Hydrate(LayerId),
    Seal(VolumeId),
}

/// A job, and what it may do.
struct Job {
    task: Task,
    paused: bool,
    speed: u64,
    view: JobView,
}

/// What a step came to.
enum Step {
    Moved(u64),
    Blocked(HydrateWait),
    Ended,
}

/// Its id is the one that a daemon gives it (CTL-83, CTL-142).
fn job(task: Task, volume: String, (done, total): (u64, u64), (paused, speed): (bool, u64), moved: Moved) -> Job {
    let (kind, number) = match task {
        Task::Hydrate(layer) => ("hydrate", layer.0),
        Task::Seal(volume) => ("seal", volume.0),
    };
    let view = JobView {
        id: format!("{kind}-{number}"),
        kind: kind.to_owned(),
        status: if paused { "paused" } else { "created" }.to_owned(),
        current_progress: done,
        total_progress: total,
        error: None,
        volume: Some(volume),
        speed,
        rate: 0,
        waits_for_space: false,
        copied: moved.copied_bytes,
        adopted: moved.adopted_bytes,
    };
    Job { task, paused, speed, view }
}

fn all(container: &Container) -> impl Iterator<Item = Job> {
    let hydrate = |found: Hydration| {
        let Hydration { volume, layer, total_bytes, copied_bytes, paused, speed, moved, .. } = found;
        job(Task::Hydrate(layer), volume, (copied_bytes, total_bytes), (paused, speed), moved)
    };
    let seal = |found: Sealing| {
        let Sealing { volume, volume_id, total_bytes, passed_bytes, paused, speed } = found;
        job(Task::Seal(volume_id), volume, (passed_bytes, total_bytes), (paused, speed), Moved::default())
    };
    container.hydrations().into_iter().map(hydrate).chain(container.seals().into_iter().map(seal))
}

/// The jobs of `container`.
pub(super) fn jobs(container: &Container) -> Vec<JobView> {
    all(container).map(|job| job.view).collect()
}

fn find(container: &Container, id: &str) -> Option<Job> {
    all(container).find(|job| job.view.id == id)
}

/// Carries an order out; `None` if there is no such job.
pub(super) fn order(container: &Container, id: &str, order: JobOrder) -> Option<Result<(), FormatError>> {
    let Job { task, paused, speed, .. } = find(container, id)?;
    let set = |paused, speed| match task {
        Task::Hydrate(layer) => container.set_hydration(layer, paused, speed),
        Task::Seal(volume) => container.set_seal(volume, paused, speed),
    };
    Some(match (order, task) {
        (JobOrder::Pause, _) => set(true, speed),
        (JobOrder::Resume, _) => set(false, speed),
        (JobOrder::SetSpeed(speed), _) => set(paused, speed),
        (JobOrder::Cancel, Task::Hydrate(layer)) => container.cancel_hydration(layer),
        (JobOrder::Cancel, Task::Seal(volume)) => container.cancel_seal(volume),
        // None is ever over here: it is not there any more.
        (JobOrder::Dismiss, _) => return None,
    })
}

/// Who works at jobs here.
#[derive(Debug, Default)]
pub(super) struct Worker {
    /// Before this, the job's limit allows no step.
    even_at: Option<Instant>,
    /// Since when there has been no space.
    starved_since: Option<Instant>,
}

impl Worker {
    /// Works at job `id` for a moment, and does what the container needs meanwhile.
    pub(super) fn advance(&mut self, container: &Container, id: &str) -> Result<(), FormatError> {
        let Some(Job { task, speed, .. }) = find(container, id) else {
            return Ok(());
        };
        let until = Instant::now() + MOMENT;
        while Instant::now() < until {
            let started = Instant::now();
            if let Some(wait) = self.even_at.and_then(|at| at.checked_duration_since(started)).filter(|w| !w.is_zero())
            {
                thread::sleep(wait.min(MOMENT));
                continue;
            }
            let budget_bytes = if speed == 0 { STEP_LEN } else { LIMITED_STEP_LEN };
            match step(container, task, budget_bytes)? {
                Step::Moved(bytes) => {
                    self.starved_since = None;
                    self.spend(bytes, speed, started);
                    container.maintain()?;
                }
                Step::Blocked(wait) => self.blocked(container, task, wait)?,
                Step::Ended => break,
            }
        }
        Ok(())
    }

    fn spend(&mut self, bytes: u64, speed: u64, started: Instant) {
        self.even_at = (speed > 0).then(|| {
            let cost = Duration::from_secs_f64((bytes as f64 / speed as f64).min(1e6));
            self.even_at.map_or(started, |at| at.max(started)) + cost
        });
    }

    fn blocked(&mut self, container: &Container, task: Task, wait: HydrateWait) -> Result<(), FormatError> {
        let worked = container.maintain()?;
        match wait {
            HydrateWait::NoSpace => {
                let since = *self.starved_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= SPACE_PATIENCE {
                    let what = match task {
                        Task::Hydrate(_) => "the hydration",
                        Task::Seal(_) => "the sealing",
                    };
                    return Err(FormatError::NoSpace { detail: format!("{what} stops here and can go on later") });
                }
            }
            HydrateWait::Others => self.starved_since = None,
        }
        if worked == Maintained::Idle {
            thread::sleep(BLOCKED_PAUSE);
        }
        Ok(())
    }
}

/// A step; storage that is full is a lack of space like any other.
fn step(container: &Container, task: Task, budget_bytes: u64) -> Result<Step, FormatError> {
    let step = match task {
        Task::Hydrate(layer) => container.hydrate_step(layer, budget_bytes).map(|step| match step {
            HydrateStep::Copied(bytes) => Step::Moved(bytes),
            HydrateStep::Blocked(wait) => Step::Blocked(wait),
            HydrateStep::Ended(HydrateEnd::Done | HydrateEnd::Cancelled) => Step::Ended,
        }),
        Task::Seal(volume) => container.seal_step(volume, budget_bytes).map(|step| match step {
            SealStep::Sealed(bytes) => Step::Moved(bytes),
            SealStep::Blocked(wait) => Step::Blocked(wait),
            SealStep::Ended(SealEnd::Done | SealEnd::Cancelled) => Step::Ended,
        }),
    };
    match step {
        Err(FormatError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
            Ok(Step::Blocked(HydrateWait::NoSpace))
        }
        result => result,
    }
}
