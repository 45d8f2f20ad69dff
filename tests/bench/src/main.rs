//! The benchmark: `pitstopd` beside its peers on the same work, and the vhost-user-blk client that does the work.
//!
//! `load` is the client, a process of its own; `run` starts each backend in turn and lets a client at it; `report` makes
//! tables and charts of what was measured. Does not judge: a missed target is a row of the table, no error.

mod beside;
mod chart;
mod copies;
mod crowd;
mod device;
mod files;
mod fio;
mod handover;
mod load;
mod machine;
mod numbers;
mod operations;
mod peers;
mod place;
mod qmp;
mod report;
mod rows;
mod run;
mod scale;
mod serve;
mod sparse;
mod tags;
mod trace;
mod wear;
mod works;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What can go wrong in a measuring tool ends it, with a sentence.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Parser)]
#[command(about = "Measures pitstopd beside its peers")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Put load on one vhost-user-blk socket and print what was measured as JSON
    Load(load::Options),
    /// Measure everything, and keep the measurements as lines of JSON
    Run(run::Options),
    /// Make tables and charts of measurements
    Report(report::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Load(options) => load::run(&options),
        Command::Run(options) => run::run(&options),
        Command::Report(options) => report::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pitstop-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
