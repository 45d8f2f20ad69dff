//! The jobs of a container that is opened here: its unfinished hydrations, which this program works at while it waits.
//!
//! Invariant: a job's limit is heeded as a daemon does (JOB-6), and a call returns after a moment, so that a signal is seen.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use pitstop_format::{Container, Error as FormatError, HydrateEnd, HydrateStep, HydrateWait, Hydration, Maintained};

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

/// What jobs begin with.
const PREFIX: &str = "hydrate-";

/// The id of the job that is this hydration (CTL-83).
fn id_of(hydration: &Hydration) -> String {
    format!("{PREFIX}{}", hydration.layer)
}

/// The jobs of `container`.
pub(super) fn jobs(container: &Container) -> Vec<JobView> {
    let job = |hydration: &Hydration| JobView {
        id: id_of(hydration),
        kind: "hydrate".to_owned(),
        status: if hydration.paused { "paused" } else { "created" }.to_owned(),
        current_progress: hydration.copied_bytes,
        total_progress: hydration.total_bytes,
        error: None,
        volume: Some(hydration.volume.clone()),
        speed: hydration.speed,
        rate: 0,
        waits_for_space: false,
    };
    container.hydrations().iter().map(job).collect()
}

fn find(container: &Container, id: &str) -> Option<Hydration> {
    container.hydrations().into_iter().find(|hydration| id_of(hydration) == id)
}

/// Carries an order out; `None` if there is no such job.
pub(super) fn order(container: &Container, id: &str, order: JobOrder) -> Option<Result<(), FormatError>> {
    let Hydration { layer, paused, speed, .. } = find(container, id)?;
    Some(match order {
        JobOrder::Pause => container.set_hydration(layer, true, speed),
        JobOrder::Resume => container.set_hydration(layer, false, speed),
        JobOrder::SetSpeed(speed) => container.set_hydration(layer, paused, speed),
        JobOrder::Cancel => container.cancel_hydration(layer),
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
        let Some(hydration) = find(container, id) else {
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
            let budget_bytes = if hydration.speed == 0 { STEP_LEN } else { LIMITED_STEP_LEN };
            match step(container, &hydration, budget_bytes)? {
                HydrateStep::Copied(bytes) => {
                    self.starved_since = None;
                    self.spend(bytes, hydration.speed, started);
                    container.maintain()?;
                }
                HydrateStep::Blocked(wait) => self.blocked(container, wait)?,
                HydrateStep::Ended(HydrateEnd::Done | HydrateEnd::Cancelled) => break,
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

    fn blocked(&mut self, container: &Container, wait: HydrateWait) -> Result<(), FormatError> {
        let worked = container.maintain()?;
        match wait {
            HydrateWait::NoSpace => {
                let since = *self.starved_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= SPACE_PATIENCE {
                    let detail = "the hydration stops here and can go on later".to_owned();
                    return Err(FormatError::NoSpace { detail });
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
fn step(container: &Container, hydration: &Hydration, budget_bytes: u64) -> Result<HydrateStep, FormatError> {
    match container.hydrate_step(hydration.layer, budget_bytes) {
        Err(FormatError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
            Ok(HydrateStep::Blocked(HydrateWait::NoSpace))
        }
        result => result,
    }
}
