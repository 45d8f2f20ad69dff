//! What guests, clients and the log see when the storage fails or is full (promises 1 to 4, VOL-8, VOL-20 to VOL-22,
//! JNL-14): an unmodified `pitstopd` on a file system whose requests fail on demand (`common/faulty.rs`).

#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests")]

mod backups;
#[path = "../common/mod.rs"]
mod common;
mod errors;
mod hung;
mod others;
mod scene;
mod shelf;
mod space;
mod views;
