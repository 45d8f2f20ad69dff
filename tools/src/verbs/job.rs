//! `pitstop job`: background work: list it, wait for it, order it about.
//!
//! Invariant: an order goes to the job that was named, or to the only one that takes orders. Waiting ends when the job does;
//! on a closed container, this program does the job's work meanwhile. Does not: begin jobs (see [`super::hydrate`]).

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::interrupt;
use crate::jobs::{JobOrder, JobView};
use crate::progress::Progress;
use crate::render::{self, Output, printable};
use crate::session::{self, Access, Session};
use crate::view::{MovedView, StateView};

/// Lists the jobs of the container `path`, or only `id`.
pub(crate) fn list(path: &Path, id: Option<&str>, output: Output) -> Result<()> {
    let (jobs, is_served) = session::with(path, Access::Read, |session| {
        let mut jobs = session.jobs()?;
        if let Some(id) = id {
            jobs.retain(|job| job.id == id);
            if jobs.is_empty() {
                return Err(Error::NoSuchJob { id: id.to_owned() });
            }
        }
        Ok((jobs, session.holder().is_some()))
    })?;
    render::show(output, &jobs, |jobs| {
        let mut text = render::job_table(jobs);
        if !jobs.is_empty() && !is_served {
            text.push_str("nobody works at them: a daemon on the container does, or `pitstop job wait`\n");
        }
        text
    })
}

/// Gives an order to the job `id` of the container `path`, or to the only one.
pub(crate) fn order(path: &Path, id: Option<&str>, order: JobOrder) -> Result<()> {
    session::with(path, Access::Change, |session| {
        let job = chosen(session, id)?;
        session.order_job(&job.id, order)
    })
}

/// Waits for the end of job `id` of the container `path`, or of all jobs that take orders and are not paused, one after the
/// other; then says which were given up or are paused.
pub(crate) fn wait(path: &Path, id: Option<&str>) -> Result<()> {
    let stop = interrupt::stop_flag().map_err(Error::Signals)?;
    let (done, error) = session::with(path, Access::Change, |session| match id {
        Some(_) => {
            let job = chosen(session, id)?;
            Ok((until_end(session, &job, &stop)?.line, None))
        }
        None => until_all_end(session, &stop),
    })?;
    render::print(&done)?;
    error.map_or(Ok(()), Err)
}

/// What came of the jobs that have ended, and what is to be said of the others.
fn until_all_end(session: &mut dyn Session, stop: &AtomicBool) -> Result<(String, Option<Error>)> {
    let mut left: Vec<JobView> = session.jobs()?.into_iter().filter(|job| !job.is_upkeep()).collect();
    let (mut done, mut error) = (String::new(), None);
    loop {
        let mut paused = Vec::new();
        for job in left {
            match until_end(session, &job, stop) {
                Ok(ended) => done.push_str(&ended.line),
                Err(Error::JobPaused { reason, .. }) => paused.push((job, reason)),
                Err(given_up @ (Error::JobGivenUp { .. } | Error::JobEnded { .. })) => error = error.or(Some(given_up)),
                Err(error) => return Err(error),
            }
        }
        // Some may have been resumed while others were waited for.
        let now = session.jobs()?;
        if paused.iter().all(|(job, _)| now.iter().any(|now| now.id == job.id && now.is_paused())) {
            return Ok((done, error.or_else(|| all_paused(paused))));
        }
        left = paused.into_iter().map(|(job, _)| job).collect();
    }
}

fn all_paused(mut jobs: Vec<(JobView, Option<String>)>) -> Option<Error> {
    match jobs.pop()? {
        (JobView { id, .. }, reason) if jobs.is_empty() => Some(Error::JobPaused { id, reason }),
        last => Some(Error::JobsPaused { ids: jobs.into_iter().chain([last]).map(|(job, _)| job.id).collect() }),
    }
}

/// The job `id`, or the only one that takes orders.
fn chosen(session: &mut dyn Session, id: Option<&str>) -> Result<JobView> {
    let mut jobs = session.jobs()?;
    match id {
        Some(id) => jobs.into_iter().find(|job| job.id == id).ok_or_else(|| Error::NoSuchJob { id: id.to_owned() }),
        None => {
            jobs.retain(|job| !job.is_upkeep());
            match (jobs.pop(), jobs.len()) {
                (None, _) => Err(Error::NoJob),
                (Some(only), 0) => Ok(only),
                (Some(last), _) => {
                    let ids = jobs.into_iter().map(|job| job.id).chain([last.id]).collect();
                    Err(Error::WhichJob { ids })
                }
            }
        }
    }
}

/// What came of a job.
#[derive(Debug)]
pub(super) struct Ended {
    line: String,
    /// What it has moved, as far as its volume still tells.
    pub(super) moved: Option<MovedView>,
}

/// What is said of a volume whose job has ended.
pub(super) fn ended_line(name: &str, state: &str, moved: Option<MovedView>) -> String {
    let moved = moved.map_or_else(String::new, |moved| format!(", {}", render::moved(moved)));
    format!("{name}: {state}{moved}\n")
}

/// Shows a job's progress until it has ended, and says what came of it.
///
/// # Errors
/// [`Error::JobPaused`] if it is or becomes paused, [`Error::JobGivenUp`] if it ended before its work was done,
/// [`Error::Interrupted`].
pub(super) fn until_end(session: &mut dyn Session, job: &JobView, stop: &AtomicBool) -> Result<Ended> {
    let about = job
        .volume
        .as_deref()
        .map_or_else(|| printable(&job.id), |volume| format!("{} {}", job.kind, printable(volume)));
    let progress = Progress::start(about, job.total_progress);
    let mut last = job.clone();
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted {
                undone: match session.holder() {
                    Some(_) => "the job goes on in the daemon",
                    None => "what has been copied stays: `pitstop job wait`, or a daemon, goes on from there",
                },
            });
        }
        let Some(now) = session.jobs()?.into_iter().find(|other| other.id == job.id) else {
            if last.kind == "backup" {
                let reason =
                    "another dismissed it before it was seen here how; its file is there if it has done its work";
                return Err(Error::JobEnded { id: last.id, reason: reason.to_owned() });
            }
            return ended(session, &last);
        };
        if now.is_over() && now.kind == "backup" {
            // Whoever waited knows now; another may have waited, too.
            drop(session.order_job(&now.id, JobOrder::Dismiss));
        }
        if now.is_over() {
            return match &now.error {
                None => ended(session, &now),
                Some(_) => Err(given_up(&now)),
            };
        }
        if now.is_paused() {
            return Err(Error::JobPaused { id: now.id, reason: now.error });
        }
        progress.is_at(now.current_progress, now.total_progress);
        last = now;
        session.advance(&job.id)?;
    }
}

/// What came of a job that is not there any more.
fn ended(session: &mut dyn Session, job: &JobView) -> Result<Ended> {
    match (&job.volume, job.kind.as_str()) {
        (Some(volume), "hydrate") => match session.volume(volume) {
            Ok(found) if found.state == StateView::Real => {
                let moved = found.relation.and_then(|relation| relation.moved);
                Ok(Ended { line: ended_line(&printable(volume), "real", moved), moved })
            }
            Ok(_) | Err(Error::NoSuchVolume { .. }) => Err(given_up(job)),
            Err(error) => Err(error),
        },
        _ => Ok(Ended { line: format!("{}: done\n", printable(&job.id)), moved: None }),
    }
}

fn given_up(job: &JobView) -> Error {
    if job.kind == "backup" {
        let reason = job.error.clone().unwrap_or_else(|| "it was given up".to_owned());
        return Error::JobEnded { id: job.id.clone(), reason };
    }
    Error::JobGivenUp { id: job.id.clone(), volume: job.volume.clone().unwrap_or_default() }
}
