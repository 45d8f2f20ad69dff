//! What the whole-system tests and the demo share: guests in QEMU, the daemon, the command.
//!
//! Everything here is driven from outside, as a user would: programs are started, sockets and
//! serial ports are spoken to, files are hashed. Nothing is known of the container's format.
//!
//! A failure is a panic whose message holds the tail of the log that explains it. A program that
//! is missing fails the test with the way to install it; no test is ever skipped. Every wait is
//! bounded, and every process that was started here ends with its handle.

mod agent;
mod find;
mod image;
mod mutants;
mod peer;
mod pitstop;
mod process;
mod qemu;
mod qmp;
mod scratch;

pub use agent::Reply;
pub use find::{guest_file, pitstop_program, repository, system_program};
pub use image::{GoldenImage, allocated_bytes, assert_file_system_clean, file_in_image, sha256_of, write_pattern_file};
pub use mutants::{Mutant, has_test, mutants};
pub use peer::StorageDaemon;
pub use pitstop::{Export, Failure, Pitstop, Pitstopd};
pub use process::{Background, run};
pub use qemu::{Disk, GuestKind, OnReboot, Qemu, QemuOptions, Queues};
pub use scratch::Scratch;
