//! The commands about jobs: QEMU's, and those that QEMU has not.
//!
//! Role: arguments, order to [`crate::jobs::Jobs`], result. It does not know what jobs do.

use serde_json::{Value, json};

use super::args::Args;
use super::commands::{Context, Done, as_typed, nothing, of_container};
use super::protocol::Failure;
use crate::jobs::{BackupOrder, Dismissal, JobError, JobStatus, Jobs, Reading};

/// The job object (CTL-80).
fn object(job: JobStatus) -> Value {
    let mut object = json!({
        "id": job.id,
        "type": job.kind.word(),
        "status": job.state.word(),
        "current-progress": job.progress.current_bytes,
        "total-progress": job.progress.total_bytes,
        "x-pitstop-volume": job.progress.volume,
        "x-pitstop-speed": job.speed,
        "x-pitstop-rate": job.rate,
        "x-pitstop-waits-for-space": job.waits_for_space,
        "x-pitstop-copied": job.progress.moved.copied_bytes,
        "x-pitstop-adopted": job.progress.moved.adopted_bytes,
    });
    if let (Some(error), Some(members)) = (job.error, object.as_object_mut()) {
        members.insert("error".to_owned(), error.into());
    }
    object
}

pub(super) fn query(context: &Context, args: Args) -> Result<Done, Failure> {
    args.finish()?;
    Ok(Done::Return(context.target().jobs().list().into_iter().map(object).collect()))
}

pub(super) fn pause(context: &Context, args: Args) -> Result<Done, Failure> {
    order(context, args, Jobs::pause)
}

pub(super) fn resume(context: &Context, args: Args) -> Result<Done, Failure> {
    order(context, args, Jobs::resume)
}

pub(super) fn cancel(context: &Context, args: Args) -> Result<Done, Failure> {
    order(context, args, Jobs::cancel)
}

pub(super) fn dismiss(context: &Context, args: Args) -> Result<Done, Failure> {
    order(context, args, Jobs::dismiss)
}

/// An order that says no more than to which job it goes.
fn order(
    context: &Context,
    mut args: Args,
    order: impl FnOnce(&Jobs, &str) -> Result<(), JobError>,
) -> Result<Done, Failure> {
    let id = args.string("id")?;
    args.finish()?;
    done(order(context.target().jobs(), &id))
}

pub(super) fn set_speed(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let id = args.string("id")?;
    let speed = args.u64("speed")?;
    args.finish()?;
    done(context.target().jobs().set_speed(&id, speed))
}

/// Begins to make a volume real (CTL-84).
pub(super) fn hydrate(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.string("name")?;
    let speed = args.optional_u64("speed")?.unwrap_or(0);
    let dismissal = dismissal(&mut args)?;
    args.finish()?;
    let job = context.target().jobs().hydrate(&name, speed, dismissal).map_err(of_container)?;
    Ok(Done::Return(json!({"job": job.map(object)})))
}

/// Begins to seal what is frozen of a volume (CTL-141).
pub(super) fn seal(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.string("name")?;
    let speed = args.optional_u64("speed")?.unwrap_or(0);
    let dismissal = dismissal(&mut args)?;
    args.finish()?;
    let job = context.target().jobs().seal(&name, speed, dismissal).map_err(of_container)?;
    Ok(Done::Return(json!({"job": job.map(object)})))
}

/// Begins a backup (CTL-110).
pub(super) fn backup(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let volume = args.string("name")?;
    let target = args.string("target")?.into();
    let addendum = args.optional_string("addendum")?;
    let in_place = args.optional_bool("in-place")?.unwrap_or(false);
    let since = args.optional_string("since")?;
    let cache = args.optional_string("cache")?;
    let overwrite = args.optional_bool("overwrite")?.unwrap_or(false);
    let speed = args.optional_u64("speed")?.unwrap_or(0);
    let dismissal = dismissal(&mut args)?;
    args.finish()?;
    let reading = match (addendum, in_place, since) {
        (None, false, None) => Reading::Instant,
        (Some(file), false, None) => Reading::LiveWithAddendum(file.into()),
        (None, true, None) => Reading::LiveInPlace,
        (None, false, Some(copy)) => Reading::Since(copy),
        _ => return Err(Failure::generic("Of 'addendum', 'in-place' and 'since' only one can be given")),
    };
    let order = BackupOrder { volume, target, reading, cache, overwrite, speed };
    let job = context.target().backup(&order, dismissal).map_err(as_typed)?;
    Ok(Done::Return(json!({"job": job.map(object)})))
}

fn dismissal(args: &mut Args) -> Result<Dismissal, Failure> {
    let auto_dismiss = args.optional_bool("auto-dismiss")?.unwrap_or(true);
    Ok(if auto_dismiss { Dismissal::Auto } else { Dismissal::ByOrder })
}

fn done(result: Result<(), JobError>) -> Result<Done, Failure> {
    // Of class GenericError, as in QEMU.
    result.map(|()| nothing()).map_err(|error| Failure::generic(error.to_string()))
}

#[cfg(test)]
#[path = "tests/jobs.rs"]
mod tests;
