//! `pitstop hydrate`: makes a virtual volume real, by copying what it reads from layers of others.
//!
//! A daemon does it as a job, beside its guests; a closed container is worked at here, until the volume is real. A
//! hydration that was begun before goes on from where it is. Does not: copy (the container does).

use std::path::Path;

use serde::Serialize;

use super::job;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::jobs::{JobOrder, JobView};
use crate::render::{self, Output, printable};
use crate::session::{self, Access, Connected, Session};
use crate::view::{MovedView, VolumeView};

/// How to hydrate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    /// Bytes a second at most; 0 for no limit; `None` to leave a hydration that was begun before as it is.
    pub(crate) speed: Option<u64>,
    /// Whether to wait for a daemon's job.
    pub(crate) wait: Wait,
}

/// Whether to wait for a daemon's job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Leave it to the daemon.
    No,
    /// Until it has ended.
    Yes,
}

#[derive(Debug, Serialize)]
struct Hydrated {
    volume: VolumeView,
    /// The job, unless it has ended.
    job: Option<JobView>,
    /// What it has moved, if it has ended and that is known.
    moved: Option<MovedView>,
}

/// Hydrates volume `name` of the container `path`.
pub(crate) fn run(path: &Path, name: &str, how: How, output: Output) -> Result<()> {
    let stop = interrupt::stop_flag().map_err(Error::Signals)?;
    let hydrated = session::with(path, Access::Change, |session| hydrate(session, name, how, &stop))?;
    render::show(output, &hydrated, text)
}

/// Makes `name` a copy of `source` as it is now, and hydrates it.
pub(crate) fn refresh(
    path: &Path,
    name: &str,
    source: &str,
    connected: Connected,
    how: How,
    output: Output,
) -> Result<()> {
    let stop = interrupt::stop_flag().map_err(Error::Signals)?;
    let hydrated = session::with(path, Access::Change, |session| {
        session.refresh(name, source, connected)?;
        hydrate(session, name, how, &stop).map_err(|error| match error {
            // Says itself what became of it.
            error @ (Error::Interrupted { .. } | Error::JobPaused { .. } | Error::JobGivenUp { .. }) => error,
            error => Error::NotHydrated { volume: name.to_owned(), source: Box::new(error) },
        })
    })?;
    render::show(output, &hydrated, text)
}

fn hydrate(session: &mut dyn Session, name: &str, how: How, stop: &std::sync::atomic::AtomicBool) -> Result<Hydrated> {
    let mut job = begin(session, name, how.speed)?;
    let mut moved = None;
    if let Some(begun) = job.take_if(|_| how.wait == Wait::Yes || session.holder().is_none()) {
        moved = job::until_end(session, &begun, stop)?.moved;
    }
    Ok(Hydrated { volume: session.volume(name)?, job, moved })
}

/// Begins, or goes on with what was begun before.
fn begin(session: &mut dyn Session, name: &str, speed: Option<u64>) -> Result<Option<JobView>> {
    let is_its = |job: &JobView| job.kind == "hydrate" && job.volume.as_deref() == Some(name) && !job.is_over();
    let Some(job) = session.jobs()?.into_iter().find(is_its) else {
        return session.hydrate(name, speed.unwrap_or(0));
    };
    if let Some(speed) = speed {
        session.order_job(&job.id, JobOrder::SetSpeed(speed))?;
    }
    if job.is_paused() {
        session.order_job(&job.id, JobOrder::Resume)?;
    }
    Ok(session.jobs()?.into_iter().find(is_its))
}

fn text(hydrated: &Hydrated) -> String {
    let name = printable(&hydrated.volume.name);
    match &hydrated.job {
        Some(job) => format!("{name}: {}, job {}\n", render::state(&hydrated.volume), printable(&job.id)),
        None => job::ended_line(&name, &render::state(&hydrated.volume), hydrated.moved),
    }
}
