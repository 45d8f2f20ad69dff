//! The commands about write-through views (CTL-150 to CTL-152).
//!
//! Role: as [`super::commands`], for these. It does not know what a view is.

use std::time::Instant;

use pitstop_format::ViewEnd;
use serde_json::json;

use super::args::Args;
use super::commands::{Context, Done, as_typed, timed};
use super::protocol::Failure;
use crate::daemon::WhenConnected;

/// `x-pitstop-view-create`.
pub(super) fn create(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let source = args.string("source")?;
    let name = args.string("name")?;
    args.finish()?;
    let started = Instant::now();
    let volume = context.target().create_view(&source, &name).map_err(as_typed)?;
    let result = timed(&volume, started)?;
    context.hub().broadcast("X_PITSTOP_VOLUME_CREATED", json!({"name": volume.name, "source": source}));
    Ok(Done::Return(result))
}

/// `x-pitstop-view-drop`: the source shows what the view shows.
pub(super) fn drop_source(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.string("name")?;
    let force = args.optional_bool("force")?.unwrap_or(false);
    args.finish()?;
    end(context, &name, ViewEnd::Drop, if force { WhenConnected::Force } else { WhenConnected::Refuse })
}

/// `x-pitstop-view-keep`: both keep what they show.
pub(super) fn keep(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.string("name")?;
    args.finish()?;
    end(context, &name, ViewEnd::Keep, WhenConnected::Refuse)
}

fn end(context: &Context, name: &str, end: ViewEnd, when_connected: WhenConnected) -> Result<Done, Failure> {
    let started = Instant::now();
    let volume = context.target().end_view(name, end, when_connected).map_err(as_typed)?;
    let result = timed(&volume, started)?;
    let event = match end {
        ViewEnd::Drop => "X_PITSTOP_VIEW_DROPPED",
        ViewEnd::Keep => "X_PITSTOP_VIEW_KEPT",
    };
    context.hub().broadcast(event, json!({"name": volume.name}));
    Ok(Done::Return(result))
}
