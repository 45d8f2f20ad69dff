//! A container that a daemon holds, through the daemon's control socket.
//!
//! Invariant: every answer is turned into the same shapes that an open container gives; a refusal is shown in the
//! daemon's own words. Does not: speak the protocol itself (see [`crate::qmp`]).

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use pitstop_format::addendum::Piece;
use pitstop_format::{CacheOptions, Durability, Holder, NewCopy, Verify, ViewEnd, VolumeChange};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::remote::{PIECE_LEN, RemoteSource, ZEROS_LEN};
use super::{Backup, Connected, Depth, STEP_RANGES, Session, Want, name_of};
use crate::copy::Source;
use crate::error::{Error, HolderName, Result};
use crate::jobs::{JobOrder, JobView};
use crate::maps::{DiffStepView, MapStepView};
use crate::qmp::{Qmp, QmpError};
use crate::view::{self, CacheView, CheckView, ContainerView, LayerView, VolumeView};

/// Longest time for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for a command: the daemon may be committing for busy guests.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a job that is waited for is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(200);
/// Longest time for a check, which reads all metadata while guests go on.
const CHECK_TIMEOUT: Duration = Duration::from_secs(6 * 3600);

/// A connection to the daemon that holds a container.
#[derive(Debug)]
pub(crate) struct Daemon {
    container: PathBuf,
    holder: Holder,
    socket: PathBuf,
    qmp: Qmp,
}

impl Daemon {
    /// Connects to `holder` of `container` at `socket`.
    pub(super) fn connect(container: &Path, holder: Holder, socket: &Path) -> Result<Self> {
        match Qmp::connect(socket, CONNECT_TIMEOUT) {
            Ok(mut qmp) => {
                qmp.set_timeout(COMMAND_TIMEOUT);
                Ok(Self { container: container.to_owned(), holder, socket: socket.to_owned(), qmp })
            }
            Err(error) => Err(Error::NoAnswer {
                container: container.to_owned(),
                holder: name_of(&holder),
                socket: socket.to_owned(),
                reason: error.to_string(),
            }),
        }
    }

    /// Who this is, for messages: with the version that it greeted with.
    pub(super) fn holder_name(&self) -> HolderName {
        let HolderName { program, pid } = name_of(&self.holder);
        // `pitstop 0.1.0`; the version is what is worth knowing.
        let package = self.qmp.greeting().pointer("/version/package").and_then(Value::as_str).unwrap_or_default();
        match package.rsplit(' ').next() {
            Some(version) if !version.is_empty() => HolderName { program: format!("{program} {version}"), pid },
            _ => HolderName { program, pid },
        }
    }

    /// Has the daemon check the container's structure.
    pub(super) fn check(&mut self, depth: Depth) -> Result<CheckView> {
        self.qmp.set_timeout(CHECK_TIMEOUT);
        let arguments = match depth {
            // As daemons before this know it.
            Depth::Structure => Value::Null,
            Depth::Data => json!({ "data": true }),
        };
        let report = self.ask("x-pitstop-check", arguments);
        self.qmp.set_timeout(COMMAND_TIMEOUT);
        report
    }

    /// Fills `buf` with what volume `name` holds from byte `start` on.
    pub(super) fn read(&mut self, name: &str, start: u64, buf: &mut [u8]) -> Result<()> {
        let command = "x-pitstop-read";
        let answer = self.tell(command, json!({ "name": name, "start": start, "length": buf.len() }))?;
        let data = answer.get("data").and_then(Value::as_str);
        let bytes = data.and_then(|data| BASE64_STANDARD.decode(data).ok()).filter(|bytes| bytes.len() == buf.len());
        let bytes = bytes.ok_or_else(|| Error::BadAnswer {
            holder: self.holder_name(),
            command,
            reason: format!("no data of {} bytes in base64", buf.len()),
        })?;
        buf.copy_from_slice(&bytes);
        Ok(())
    }

    fn ask<T: DeserializeOwned>(&mut self, command: &'static str, arguments: Value) -> Result<T> {
        let answer = self.tell(command, arguments)?;
        self.understand(command, answer)
    }

    /// For the commands that answer with the volume that they made or changed.
    fn ask_volume(&mut self, command: &'static str, arguments: Value) -> Result<VolumeView> {
        let mut answer = self.tell(command, arguments)?;
        self.understand(command, answer.get_mut("volume").map(Value::take).unwrap_or_default())
    }

    fn ask_cache(&mut self, command: &'static str, name: &str, options: CacheOptions) -> Result<CacheView> {
        let all = json!({
            "name": name,
            "limit": options.limit_bytes,
            "high-water-percent": options.high_water_percent,
            "growth": options.growth_bytes,
            "most": options.most_bytes,
        });
        let mut answer = self.tell(command, without_nulls(all))?;
        self.understand(command, answer.get_mut("cache").map(Value::take).unwrap_or_default())
    }

    /// Begins a backup into `target`, an absolute path, which the daemon opens. The job stays until it is dismissed.
    pub(crate) fn backup(&mut self, name: &str, target: &Path, how: &Backup) -> Result<JobView> {
        let command = "x-pitstop-backup";
        let path = |path: &Path| {
            let text = path.to_str().map(str::to_owned);
            text.ok_or_else(|| Error::PathIsNotText { path: path.to_owned() })
        };
        let addendum = how.addendum.as_deref().map(path).transpose()?;
        let all = json!({
            "name": name,
            "target": path(target)?,
            "addendum": addendum,
            "in-place": how.in_place.then_some(true),
            "since": how.since,
            "cache": how.cache,
            "overwrite": how.overwrite.then_some(true),
            "speed": how.speed,
            "auto-dismiss": false,
        });
        let mut answer = self.tell(command, without_nulls(all))?;
        self.understand(command, answer.get_mut("job").map(Value::take).unwrap_or_default())
    }

    fn understand<T: DeserializeOwned>(&self, command: &'static str, answer: Value) -> Result<T> {
        view::view(answer).map_err(|error| Error::BadAnswer {
            holder: self.holder_name(),
            command,
            reason: error.to_string(),
        })
    }

    fn tell(&mut self, command: &'static str, arguments: Value) -> Result<Value> {
        let mut answer = self.qmp.execute(command, arguments.clone());
        // The daemon drops a client that has taken no events for long, such as one that moved data (CTL-25).
        if may_come_twice(command) && matches!(answer, Err(QmpError::Io(_) | QmpError::Closed { .. })) {
            self.qmp = Self::connect(&self.container, self.holder.clone(), &self.socket)?.qmp;
            answer = self.qmp.execute(command, arguments);
        }
        answer.map_err(|error| match error {
            error if error.is_command_not_found() => Error::Unknown { holder: self.holder_name(), command },
            QmpError::Command { desc, .. } => Error::Refused { message: desc },
            error => Error::NoAnswer {
                container: self.container.clone(),
                holder: self.holder_name(),
                socket: self.socket.clone(),
                reason: error.to_string(),
            },
        })
    }
}

/// Whether a command may be sent again when nobody knows whether it was carried out: it changes nothing, or the same.
fn may_come_twice(command: &str) -> bool {
    // Not a write: what was written before it may be gone if another daemon has the container by now.
    let others = ["x-pitstop-map", "x-pitstop-diff", "x-pitstop-read"];
    command.starts_with("x-pitstop-query-") || others.contains(&command)
}

impl Session for Daemon {
    fn container(&mut self) -> Result<ContainerView> {
        self.ask("x-pitstop-query-container", Value::Null)
    }

    fn volumes(&mut self) -> Result<Vec<VolumeView>> {
        let mut volumes: Vec<VolumeView> = self.ask("x-pitstop-query-volumes", Value::Null)?;
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    fn layers(&mut self) -> Result<Vec<LayerView>> {
        self.ask("x-pitstop-query-layers", Value::Null)
    }

    fn create_volume(&mut self, name: &str, size_bytes: u64, durability: Durability) -> Result<VolumeView> {
        let arguments = json!({ "name": name, "size": size_bytes, "durability": durability });
        self.ask_volume("x-pitstop-volume-create", arguments)
    }

    fn set_volume(&mut self, name: &str, change: VolumeChange) -> Result<VolumeView> {
        let mut arguments = json!({ "name": name, "defined": change.defined });
        if let Some(durability) = change.durability {
            arguments["durability"] = json!(durability);
        }
        self.ask_volume("x-pitstop-volume-set", arguments)
    }

    fn delete_volume(&mut self, name: &str) -> Result<()> {
        self.tell("x-pitstop-volume-delete", json!({ "name": name })).map(drop)
    }

    fn rename_volume(&mut self, name: &str, new_name: &str) -> Result<()> {
        self.tell("x-pitstop-volume-rename", json!({ "name": name, "new-name": new_name })).map(drop)
    }

    fn snapshot(&mut self, source: &str, new_name: &str) -> Result<VolumeView> {
        self.ask_volume("x-pitstop-snapshot", json!({ "source": source, "name": new_name }))
    }

    fn snapshot_group(&mut self, copies: &[NewCopy]) -> Result<Vec<VolumeView>> {
        let action = |NewCopy { source, name }: &NewCopy| json!({ "type": "x-pitstop-snapshot", "data": { "source": source, "name": name } });
        let actions: Vec<_> = copies.iter().map(action).collect();
        let mut answer = self.tell("transaction", json!({ "actions": actions }))?;
        let volumes = answer.get_mut("x-pitstop-volumes").map(Value::take).unwrap_or_default();
        self.understand("transaction", volumes)
    }

    fn refresh(&mut self, name: &str, source: &str, connected: Connected) -> Result<VolumeView> {
        let force = connected == Connected::Force;
        self.ask_volume("x-pitstop-refresh", json!({ "name": name, "source": source, "force": force }))
    }

    fn split(&mut self, name: &str) -> Result<VolumeView> {
        self.ask_volume("x-pitstop-split", json!({ "name": name }))
    }

    fn create_view(&mut self, source: &str, name: &str) -> Result<VolumeView> {
        self.ask_volume("x-pitstop-view-create", json!({ "source": source, "name": name }))
    }

    fn end_view(&mut self, name: &str, end: ViewEnd, connected: Connected) -> Result<VolumeView> {
        match end {
            ViewEnd::Drop => {
                let force = connected == Connected::Force;
                self.ask_volume("x-pitstop-view-drop", json!({ "name": name, "force": force }))
            }
            ViewEnd::Keep => self.ask_volume("x-pitstop-view-keep", json!({ "name": name })),
        }
    }

    fn map(&mut self, name: &str, start: u64, want: Want) -> Result<MapStepView> {
        let only = want == Want::Counts;
        self.ask("x-pitstop-map", json!({ "name": name, "start": start, "limit": STEP_RANGES, "counts-only": only }))
    }

    fn diff(&mut self, a: &str, b: &str, start: u64, want: Want) -> Result<DiffStepView> {
        let only = want == Want::Counts;
        self.ask("x-pitstop-diff", json!({ "a": a, "b": b, "start": start, "limit": STEP_RANGES, "counts-only": only }))
    }

    fn source(&mut self, name: &str) -> Result<Box<dyn Source>> {
        let own = Self::connect(&self.container, self.holder.clone(), &self.socket)?;
        Ok(Box::new(RemoteSource::new(own, name)?))
    }

    fn write(&mut self, name: &str, start: u64, piece: Piece<'_>) -> Result<()> {
        let mut write = |start: u64, what: &str, value: Value| {
            self.tell("x-pitstop-write", json!({ "name": name, "start": start, what: value, "flush": false })).map(drop)
        };
        match piece {
            Piece::Zeros(len) => {
                let end = start + len;
                (start..end)
                    .step_by(ZEROS_LEN)
                    .try_for_each(|at| write(at, "zeros", (end - at).min(ZEROS_LEN as u64).into()))
            }
            Piece::Data(data) => {
                let mut at = start;
                for piece in data.chunks(PIECE_LEN) {
                    write(at, "data", BASE64_STANDARD.encode(piece).into())?;
                    at += piece.len() as u64;
                }
                Ok(())
            }
        }
    }

    fn flush(&mut self, name: &str) -> Result<()> {
        self.tell("x-pitstop-write", json!({ "name": name, "start": 0, "zeros": 0 })).map(drop)
    }

    fn is_connected(&mut self, name: &str) -> Result<bool> {
        let exports = self.tell("query-block-exports", Value::Null)?;
        let is_its_guest = |export: &Value| export["node-name"] == name && export["x-pitstop-connected"] == true;
        Ok(exports.as_array().is_some_and(|exports| exports.iter().any(is_its_guest)))
    }

    fn jobs(&mut self) -> Result<Vec<JobView>> {
        self.ask("query-jobs", Value::Null)
    }

    fn order_job(&mut self, id: &str, order: JobOrder) -> Result<()> {
        let (command, arguments) = match order {
            JobOrder::Pause => ("job-pause", json!({ "id": id })),
            JobOrder::Resume => ("job-resume", json!({ "id": id })),
            JobOrder::Cancel => ("job-cancel", json!({ "id": id })),
            JobOrder::Dismiss => ("job-dismiss", json!({ "id": id })),
            JobOrder::SetSpeed(speed) => ("x-pitstop-job-set-speed", json!({ "id": id, "speed": speed })),
        };
        self.tell(command, arguments).map(drop)
    }

    fn hydrate(&mut self, name: &str, speed: u64) -> Result<Option<JobView>> {
        let command = "x-pitstop-volume-hydrate";
        let mut answer = self.tell(command, json!({ "name": name, "speed": speed }))?;
        self.understand(command, answer.get_mut("job").map(Value::take).unwrap_or_default())
    }

    fn set_verify(&mut self, name: &str, verify: Verify) -> Result<VolumeView> {
        self.ask_volume("x-pitstop-volume-set", json!({ "name": name, "verify": verify }))
    }

    fn seal(&mut self, name: &str, speed: u64) -> Result<Option<JobView>> {
        let command = "x-pitstop-volume-seal";
        let mut answer = self.tell(command, json!({ "name": name, "speed": speed }))?;
        self.understand(command, answer.get_mut("job").map(Value::take).unwrap_or_default())
    }

    fn caches(&mut self) -> Result<Vec<CacheView>> {
        self.ask("x-pitstop-query-caches", Value::Null)
    }

    fn create_cache(&mut self, name: &str, options: CacheOptions) -> Result<CacheView> {
        self.ask_cache("x-pitstop-cache-create", name, options)
    }

    fn resize_cache(&mut self, name: &str, options: CacheOptions) -> Result<CacheView> {
        self.ask_cache("x-pitstop-cache-resize", name, options)
    }

    fn delete_cache(&mut self, name: &str) -> Result<()> {
        self.tell("x-pitstop-cache-delete", json!({ "name": name })).map(drop)
    }

    fn advance(&mut self, _id: &str) -> Result<()> {
        thread::sleep(LOOK_PERIOD);
        Ok(())
    }

    fn holder(&self) -> Option<&Holder> {
        Some(&self.holder)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// Arguments without those that are not given.
fn without_nulls(mut arguments: Value) -> Value {
    if let Some(members) = arguments.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
    arguments
}
