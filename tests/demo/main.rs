//! The demo: CI virtual machines refreshed from a golden Debian, told step by step.
//!
//! Real guests boot Debian from the volumes and verify what they read; every promise that is told
//! is also checked, and the first that does not hold ends the demo with exit code 1. It works in
//! `target/demo/` and leaves the container there to be looked at.

mod story;

use std::panic;
use std::process::ExitCode;

fn main() -> ExitCode {
    panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("unknown reason");
        eprintln!("\nthe demo failed: {message}");
    }));
    match panic::catch_unwind(story::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
