//! The commands of the control socket: name, arguments, order to the daemon, result.
//!
//! Role: one table of all commands, which `query-commands` prints, so that only what works is advertised (CTL-30).
//! Invariant: a command runs only while the gate is open, and its reply and events are made after the daemon has
//! done the order. It does not know sessions or sockets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use pitstop_format::{Durability, Error as FormatError, Listing, NewCopy, Verify, VolumeChange, VolumeInfo};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::Args;
use super::caches;
use super::data;
use super::hub::Hub;
use super::jobs;
use super::protocol::{ErrorClass, Failure, Request, version};
use super::target::{Refusal, RefusalKind, Target};
use super::views;
use crate::config::{Access, ExportConfig, MAX_QUEUES, OnNoSpace, SocketSource};
use crate::daemon::{DaemonError, WhenConnected};
use crate::space::SpaceUse;

/// Longest id of an export in bytes.
const EXPORT_ID_LIMIT_BYTES: usize = 127;
/// Ranges in a reply, if the client does not say, and at most: about 400 KiB of text.
const RANGES: u16 = 1024;
const MOST_RANGES: u16 = 4096;

/// Words for what flushes of a volume promise.
const DURABILITIES: [(&str, Durability); 2] = [("flush", Durability::Flush), ("none", Durability::None)];

/// What every command may use.
pub(super) struct Context {
    target: Arc<dyn Target>,
    hub: Arc<Hub>,
    /// Held for reading while a command runs.
    gate: RwLock<()>,
    /// The daemon is ending: no command begins any more.
    closed: AtomicBool,
    /// Whether a client, not a signal, asked for the end.
    quit_by_client: AtomicBool,
}

/// What a command leads to.
#[derive(Debug, PartialEq)]
pub(super) enum Done {
    /// Send this result.
    Return(Value),
    /// Send an empty result, then ask the daemon to end.
    Quit,
}

type Handler = fn(&Context, Args) -> Result<Done, Failure>;

/// Every command, in alphabetical order.
const COMMANDS: [(&str, Handler); 39] = [
    ("block-export-add", block_export_add),
    ("block-export-del", block_export_del),
    ("job-cancel", jobs::cancel),
    ("job-dismiss", jobs::dismiss),
    ("job-pause", jobs::pause),
    ("job-resume", jobs::resume),
    ("qmp_capabilities", already_negotiated),
    ("query-block-exports", query_block_exports),
    ("query-commands", query_commands),
    ("query-jobs", jobs::query),
    ("query-version", query_version),
    ("quit", quit),
    ("transaction", transaction),
    ("x-pitstop-backup", jobs::backup),
    ("x-pitstop-cache-create", caches::create),
    ("x-pitstop-cache-delete", caches::delete),
    ("x-pitstop-cache-resize", caches::resize),
    ("x-pitstop-check", check),
    ("x-pitstop-diff", diff),
    ("x-pitstop-job-set-speed", jobs::set_speed),
    ("x-pitstop-map", map),
    ("x-pitstop-query-caches", caches::query),
    ("x-pitstop-query-container", query_container),
    ("x-pitstop-query-layers", query_layers),
    ("x-pitstop-query-volumes", query_volumes),
    ("x-pitstop-read", data::read),
    ("x-pitstop-refresh", refresh),
    ("x-pitstop-snapshot", snapshot),
    ("x-pitstop-split", split),
    ("x-pitstop-view-create", views::create),
    ("x-pitstop-view-drop", views::drop_source),
    ("x-pitstop-view-keep", views::keep),
    ("x-pitstop-volume-create", volume_create),
    ("x-pitstop-volume-delete", volume_delete),
    ("x-pitstop-volume-hydrate", jobs::hydrate),
    ("x-pitstop-volume-rename", volume_rename),
    ("x-pitstop-volume-seal", jobs::seal),
    ("x-pitstop-volume-set", volume_set),
    ("x-pitstop-write", data::write),
];

impl Context {
    /// Commands for `target`, whose events go to `hub`.
    pub(super) fn new(target: Arc<dyn Target>, hub: Arc<Hub>) -> Self {
        Self {
            target,
            hub,
            gate: RwLock::new(()),
            closed: AtomicBool::new(false),
            quit_by_client: AtomicBool::new(false),
        }
    }

    /// What the commands are carried out on.
    pub(super) fn target(&self) -> &dyn Target {
        self.target.as_ref()
    }

    /// Whom events go to.
    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Runs a command of a session that has negotiated.
    pub(super) fn run(&self, request: Request) -> Result<Done, Failure> {
        let Some((_, handler)) = COMMANDS.iter().find(|(name, _)| *name == request.command) else {
            return Err(Failure::command_not_found(format!("The command {} has not been found", request.command)));
        };
        let _running = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::Acquire) {
            return Err(Failure::generic("the daemon is shutting down"));
        }
        handler(self, Args::new(request.arguments))
    }

    /// Refuses later commands and waits for those under way. The order matters: a command that found the gate open
    /// holds it before the waiting begins.
    pub(super) fn close_gate(&self) {
        self.closed.store(true, Ordering::Release);
        drop(self.gate.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Asks the daemon to end, for a client whose `quit` has been answered.
    pub(super) fn quit(&self) {
        self.quit_by_client.store(true, Ordering::Release);
        self.target.request_shutdown();
    }

    /// The member `reason` of event SHUTDOWN.
    pub(super) fn shutdown_reason(&self) -> &'static str {
        if self.quit_by_client.load(Ordering::Acquire) { "host-qmp-quit" } else { "host-signal" }
    }
}

/// Checks the arguments of the `qmp_capabilities` that ends the negotiation (CTL-5).
pub(super) fn negotiate(request: Request) -> Result<(), Failure> {
    if request.command != "qmp_capabilities" {
        let desc = "Expecting capabilities negotiation with 'qmp_capabilities'";
        return Err(Failure::command_not_found(desc));
    }
    let mut args = Args::new(request.arguments);
    let wanted = args.optional_array("enable")?.unwrap_or_default();
    args.finish()?;
    match wanted.first() {
        None => Ok(()),
        Some(Value::String(name)) => Err(Failure::generic(format!("Capability '{name}' is not available"))),
        Some(_) => Err(Failure::generic("Invalid parameter type for 'enable[0]', expected: string")),
    }
}

fn already_negotiated(_: &Context, _: Args) -> Result<Done, Failure> {
    Err(Failure::command_not_found("Capabilities negotiation is already complete, command ignored"))
}

fn query_version(_: &Context, args: Args) -> Result<Done, Failure> {
    args.finish()?;
    Ok(Done::Return(version()))
}

fn query_commands(_: &Context, args: Args) -> Result<Done, Failure> {
    args.finish()?;
    Ok(Done::Return(COMMANDS.iter().map(|(name, _)| json!({"name": name})).collect()))
}

fn quit(_: &Context, args: Args) -> Result<Done, Failure> {
    args.finish()?;
    Ok(Done::Quit)
}

fn query_block_exports(context: &Context, args: Args) -> Result<Done, Failure> {
    args.finish()?;
    let exports = context.target.exports().into_iter().map(|export| {
        json!({
            "id": export.id,
            "type": "vhost-user-blk",
            "node-name": export.volume,
            "shutting-down": export.ending,
            "x-pitstop-connected": export.connected,
            "x-pitstop-writable": export.writable,
            "x-pitstop-num-queues": export.num_queues,
            "x-pitstop-on-enospc": export.on_enospc.word(),
            "x-pitstop-starved": export.starved,
            "x-pitstop-refresh-on-connect": export.refresh_on_connect,
            "x-pitstop-socket": export.socket.map(|path| path.to_string_lossy().into_owned()),
        })
    });
    Ok(Done::Return(exports.collect()))
}

fn block_export_add(context: &Context, mut args: Args) -> Result<Done, Failure> {
    args.choice("type", &[("vhost-user-blk", ())])?;
    let id = args.string("id")?;
    let volume = args.string("node-name")?;
    let writable = args.optional_bool("writable")?.unwrap_or(false);
    let mut addr = args.object("addr")?;
    addr.choice("type", &[("unix", ())])?;
    let path = addr.string("path")?;
    addr.finish()?;
    let num_queues = args.optional_u16("num-queues")?.unwrap_or(MAX_QUEUES);
    let on_enospc = args.optional_choice("x-pitstop-on-enospc", &OnNoSpace::WORDS)?.unwrap_or_default();
    let refresh_on_connect = args.optional_string("x-pitstop-refresh-on-connect")?;
    args.finish()?;
    if id.is_empty() || id.len() > EXPORT_ID_LIMIT_BYTES || id.chars().any(char::is_control) {
        return Err(Failure::generic("Invalid block export id"));
    }
    if path.is_empty() {
        return Err(Failure::generic("Parameter 'addr.path' is empty; name the socket to create"));
    }
    if num_queues == 0 {
        return Err(Failure::generic("num-queues must be greater than 0"));
    }
    let access = if writable { Access::ReadWrite } else { Access::ReadOnly };
    let socket = SocketSource::Path(path.into());
    let config = ExportConfig { id, volume, socket, access, num_queues, on_enospc, refresh_on_connect };
    context.target.add_export(config).map_err(as_generic)?;
    Ok(nothing())
}

fn block_export_del(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let id = args.string("id")?;
    let mode = args.optional_choice("mode", &[("safe", WhenConnected::Refuse), ("hard", WhenConnected::Force)])?;
    args.finish()?;
    context.target.remove_export(&id, mode.unwrap_or(WhenConnected::Refuse)).map_err(as_generic)?;
    Ok(nothing())
}

fn query_container(context: &Context, args: Args) -> Result<Done, Failure> {
    args.finish()?;
    let container = context.target.container();
    let mut info = to_value(&container.info())?;
    if let Some(members) = info.as_object_mut() {
        members.insert("space".to_owned(), space(context)?);
        if let Some(why) = container.failure() {
            members.insert("failure".to_owned(), why.into());
        }
    }
    Ok(Done::Return(info))
}

/// The room that the container has (CTL-52).
fn space(context: &Context) -> Result<Value, Failure> {
    let space = context.target.container().space().map_err(|error| Failure::generic(error.to_string()))?;
    let space = SpaceUse::from(space);
    Ok(json!({
        "available-bytes": space.available_bytes,
        "used-percent": space.used_percent,
        "warning": context.target.space_mark(),
    }))
}

/// Runs in the client's own thread: others, and guests, do not wait for it (CTL-26). Closing the gate ends it.
fn check(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let data = args.optional_bool("data")?.unwrap_or(false);
    args.finish()?;
    let container = context.target.container();
    let mut report = container.check(&context.closed).map_err(of_container)?;
    if data {
        container.check_data(&mut report, &context.closed).map_err(of_container)?;
    }
    Ok(Done::Return(to_value(&report)?))
}

/// One step of a map (CTL-70), in the client's own thread and until the gate closes, as a check.
fn map(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.string("name")?;
    let (start, listing) = step(&mut args)?;
    args.finish()?;
    let step = context.target.container().map_until(&name, start, listing, &context.closed).map_err(of_container)?;
    Ok(Done::Return(to_value(&step)?))
}

/// One step of a difference (CTL-71).
fn diff(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let (a, b) = (args.string("a")?, args.string("b")?);
    let (start, listing) = step(&mut args)?;
    args.finish()?;
    let step = context.target.container().diff_until(&a, &b, start, listing, &context.closed).map_err(of_container)?;
    Ok(Done::Return(to_value(&step)?))
}

/// Where a step begins, and what it lists (CTL-72).
fn step(args: &mut Args) -> Result<(u64, Listing), Failure> {
    let start = args.optional_u64("start")?.unwrap_or(0);
    let limit = args.optional_u16("limit")?.unwrap_or(RANGES);
    let only_counts = args.optional_bool("counts-only")?.unwrap_or(false);
    if !(1..=MOST_RANGES).contains(&limit) {
        return Err(Failure::generic(format!("limit must be from 1 to {MOST_RANGES}")));
    }
    Ok((start, if only_counts { Listing::Counts } else { Listing::Ranges(limit.into()) }))
}

fn query_layers(context: &Context, args: Args) -> Result<Done, Failure> {
    args.finish()?;
    Ok(Done::Return(to_value(&context.target.container().layers())?))
}

fn query_volumes(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.optional_string("name")?;
    args.finish()?;
    let container = context.target.container();
    let mut volumes = container.volumes();
    if let Some(name) = name {
        volumes.retain(|volume| volume.name == name);
        if volumes.is_empty() {
            return Err(as_typed(Refusal::no_such_volume(name)));
        }
    }
    Ok(Done::Return(to_value(&volumes)?))
}

fn volume_create(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.string("name")?;
    let size = args.u64("size")?;
    let durability = args.optional_choice("durability", &DURABILITIES)?.unwrap_or_default();
    args.finish()?;
    let volume = context.target.create_volume(&name, size, durability).map_err(as_typed)?;
    context.hub.broadcast("X_PITSTOP_VOLUME_CREATED", json!({"name": volume.name}));
    Ok(Done::Return(json!({"volume": to_value(&volume)?})))
}

fn volume_delete(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.string("name")?;
    args.finish()?;
    context.target.delete_volume(&name).map_err(as_typed)?;
    context.hub.broadcast("X_PITSTOP_VOLUME_DELETED", json!({"name": name}));
    Ok(nothing())
}

fn volume_rename(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.string("name")?;
    let new_name = args.string("new-name")?;
    args.finish()?;
    context.target.rename_volume(&name, &new_name).map_err(as_typed)?;
    context.hub.broadcast("X_PITSTOP_VOLUME_RENAMED", json!({"name": name, "new-name": new_name}));
    Ok(nothing())
}

/// What flushes of a volume promise, that it is taken as it is (CTL-130), or whether what is frozen of it is sealed by itself
/// (CTL-140).
fn volume_set(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.string("name")?;
    let durability = args.optional_choice("durability", &DURABILITIES)?;
    let defined = args.optional_bool("defined")?.unwrap_or(false);
    let verify = args.optional_choice("verify", &Verify::WORDS)?;
    args.finish()?;
    let change = VolumeChange { durability, defined };
    let mut volume = context.target.set_volume(&name, change).map_err(as_typed)?;
    if let Some(verify) = verify {
        volume = context.target.jobs().set_verify(&name, verify).map_err(of_container)?;
    }
    Ok(Done::Return(json!({"volume": to_value(&volume)?})))
}

fn snapshot(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let source = args.string("source")?;
    let name = args.string("name")?;
    args.finish()?;
    let started = Instant::now();
    let volume = context.target.snapshot(&source, &name).map_err(as_typed)?;
    let result = timed(&volume, started)?;
    context.hub.broadcast("X_PITSTOP_VOLUME_CREATED", json!({"name": volume.name, "source": source}));
    Ok(Done::Return(result))
}

/// The only actions that can be carried out together are snapshots: all at one instant (CTL-56).
fn transaction(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let mut copies = Vec::new();
    for mut action in args.objects("actions")? {
        action.choice("type", &[("x-pitstop-snapshot", ())])?;
        let mut data = action.object("data")?;
        copies.push(NewCopy { source: data.string("source")?, name: data.string("name")? });
        data.finish()?;
        action.finish()?;
    }
    if let Some(mut properties) = args.optional_object("properties")? {
        // No action starts a job, so both words mean the same.
        properties.optional_choice("completion-mode", &[("individual", ()), ("grouped", ())])?;
        properties.finish()?;
    }
    args.finish()?;
    let started = Instant::now();
    let volumes = context.target.snapshot_group(&copies).map_err(as_typed)?;
    let elapsed_us = elapsed_us(started);
    for (volume, copy) in volumes.iter().zip(&copies) {
        context.hub.broadcast("X_PITSTOP_VOLUME_CREATED", json!({"name": volume.name, "source": copy.source}));
    }
    Ok(Done::Return(json!({"x-pitstop-volumes": to_value(&volumes)?, "x-pitstop-elapsed-us": elapsed_us})))
}

fn refresh(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.string("name")?;
    let source = args.string("source")?;
    let force = args.optional_bool("force")?.unwrap_or(false);
    args.finish()?;
    let when_connected = if force { WhenConnected::Force } else { WhenConnected::Refuse };
    let started = Instant::now();
    let volume = context.target.refresh(&name, &source, when_connected).map_err(as_typed)?;
    let result = timed(&volume, started)?;
    context.hub.broadcast("X_PITSTOP_VOLUME_REFRESHED", json!({"name": volume.name, "source": source}));
    Ok(Done::Return(result))
}

/// Ends a volume's relation to its origin (CTL-100).
fn split(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.string("name")?;
    args.finish()?;
    let volume = context.target.split(&name).map_err(as_typed)?;
    context.hub.broadcast("X_PITSTOP_VOLUME_SPLIT", json!({"name": volume.name}));
    Ok(Done::Return(json!({"volume": to_value(&volume)?})))
}

/// The result of a point-in-time command: the volume as it is now, and how long the daemon took.
pub(super) fn timed(volume: &VolumeInfo, started: Instant) -> Result<Value, Failure> {
    Ok(json!({"volume": to_value(volume)?, "elapsed-us": elapsed_us(started)}))
}

fn elapsed_us(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// An empty result.
pub(super) fn nothing() -> Done {
    Done::Return(json!({}))
}

pub(super) fn to_value<T: Serialize>(value: &T) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(|error| Failure::generic(format!("cannot print the result: {error}")))
}

/// Commands that QEMU has too fail with the class that QEMU uses.
fn as_generic(refusal: Refusal) -> Failure {
    Failure::generic(refusal.text)
}

/// An error of the container.
pub(super) fn of_container(error: FormatError) -> Failure {
    if matches!(error, FormatError::CheckGivenUp | FormatError::ListingGivenUp) {
        return Failure::generic("the daemon is shutting down");
    }
    as_typed(DaemonError::from(error).into())
}

/// Commands of ours tell programs whether the thing named is missing (CTL-20).
pub(super) fn as_typed(refusal: Refusal) -> Failure {
    let class = match refusal.kind {
        RefusalKind::NotFound => ErrorClass::DeviceNotFound,
        RefusalKind::Other => ErrorClass::Generic,
    };
    Failure { class, desc: refusal.text }
}

#[cfg(test)]
#[path = "tests/commands.rs"]
mod tests;
