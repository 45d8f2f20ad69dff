//! `pitstop seal`: makes tags of what is frozen of a volume, so that damage is found later.
//!
//! A daemon does it as a job, beside its guests; of a closed container it is done here. Does not: make tags (the container does).

use std::path::Path;

use serde::Serialize;

use super::hydrate::{How, Wait};
use super::info::count;
use super::job;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::jobs::{JobOrder, JobView};
use crate::maps::MapTotals;
use crate::render::{self, Output, printable};
use crate::session::{self, Access, Session};

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Sealed {
    volume: String,
    /// Bytes of its data that have tags, and of all.
    sealed_bytes: u64,
    data_bytes: u64,
    /// The job, unless it has ended.
    job: Option<JobView>,
}

/// Seals volume `name` of the container `path`.
pub(crate) fn run(path: &Path, name: &str, how: How, output: Output) -> Result<()> {
    let stop = interrupt::stop_flag().map_err(Error::Signals)?;
    let sealed = session::with(path, Access::Change, |session| {
        let mut job = begin(session, name, how.speed)?;
        if let Some(begun) = job.take_if(|_| how.wait == Wait::Yes || session.holder().is_none()) {
            job::until_end(session, &begun, &stop)?;
        }
        let MapTotals { counts, .. } = count(session, name)?;
        let (sealed_bytes, data_bytes) = (counts.sealed_bytes, counts.data_bytes);
        Ok(Sealed { volume: name.to_owned(), sealed_bytes, data_bytes, job })
    })?;
    render::show(output, &sealed, text)
}

/// Begins, or goes on with what was begun before.
fn begin(session: &mut dyn Session, name: &str, speed: Option<u64>) -> Result<Option<JobView>> {
    let is_its = |job: &JobView| job.kind == "seal" && job.volume.as_deref() == Some(name) && !job.is_over();
    let Some(job) = session.jobs()?.into_iter().find(is_its) else {
        return session.seal(name, speed.unwrap_or(0));
    };
    if let Some(speed) = speed {
        session.order_job(&job.id, JobOrder::SetSpeed(speed))?;
    }
    if job.is_paused() {
        session.order_job(&job.id, JobOrder::Resume)?;
    }
    Ok(session.jobs()?.into_iter().find(is_its))
}

fn text(sealed: &Sealed) -> String {
    let name = printable(&sealed.volume);
    let share = render::sealed(sealed.sealed_bytes, sealed.data_bytes);
    match &sealed.job {
        Some(job) => format!("{name}: sealed {share}, job {}\n", printable(&job.id)),
        None => format!("{name}: sealed {share}\n"),
    }
}
