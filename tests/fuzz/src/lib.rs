//! What the fuzz targets share: inputs, what they describe, and what is done with it.
//!
//! `pitstopd` is a program and exports nothing, so its modules are compiled in here, as they are. Does not: mutate
//! (libFuzzer does) or keep a corpus (`corpus/`, one folder a target).

pub mod base;
pub mod engine;
pub mod input;
pub mod patch;

pub mod chains;
#[allow(dead_code, unused_imports, reason = "the targets use a part of the program")]
pub mod control;
pub mod messages;

#[allow(dead_code, reason = "the targets use a part of the program")]
#[path = "../../../backend/src/config.rs"]
mod config;
#[allow(dead_code, reason = "the targets use a part of the program")]
#[path = "../../../backend/src/daemon.rs"]
mod daemon;
#[allow(dead_code, reason = "the targets use a part of the program")]
#[path = "../../../backend/src/dataplane/mod.rs"]
mod dataplane;
#[allow(dead_code, reason = "the targets use a part of the program")]
#[path = "../../../backend/src/export.rs"]
mod export;
#[allow(dead_code, unused_imports, reason = "the targets use a part of the program")]
#[path = "../../../backend/src/jobs/mod.rs"]
mod jobs;
#[allow(dead_code, reason = "the targets use a part of the program")]
#[path = "../../../backend/src/session/mod.rs"]
mod session;
#[allow(dead_code, reason = "the targets use a part of the program")]
#[path = "../../../backend/src/socket.rs"]
mod socket;
#[allow(dead_code, reason = "the targets use a part of the program")]
#[path = "../../../backend/src/virtio/mod.rs"]
mod virtio;
#[allow(dead_code, reason = "the targets use a part of the program")]
#[path = "../../../backend/src/events.rs"]
mod events;
#[allow(dead_code, reason = "the targets use a part of the program")]
#[path = "../../../backend/src/failure_log.rs"]
mod failure_log;
#[allow(dead_code, reason = "the targets use a part of the program")]
#[path = "../../../backend/src/on_connect.rs"]
mod on_connect;
#[allow(dead_code, reason = "the targets use a part of the program")]
#[path = "../../../backend/src/space.rs"]
mod space;
#[allow(dead_code, reason = "the targets use a part of the program")]
#[path = "../../../backend/src/trouble.rs"]
mod trouble;
