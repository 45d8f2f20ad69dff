//! Runs the parts of the benchmark that are not steady load, and prints what they say.

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};

use crate::Result;
use crate::place::{Place, Results};
use crate::serve::Effort;
use crate::{operations, scale, wear};

/// A part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Operations,
    Wear,
    Scale,
}

/// What to measure.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Which part
    #[arg(value_enum)]
    part: Part,
    /// For data
    #[arg(long, default_value = "target/bench")]
    folder: PathBuf,
    /// Small volumes, one repetition
    #[arg(long)]
    quick: bool,
}

/// Measures.
pub(crate) fn run(options: &Options) -> Result<()> {
    let begin = Instant::now();
    let sockets = tempfile::Builder::new().prefix("pitstop-bench-").tempdir()?;
    let place = Place::new(std::path::absolute(&options.folder)?, sockets.path().to_owned())?;
    let mut results = Results::append_to(&place.file("results.jsonl"))?;
    let effort = if options.quick { Effort::Quick } else { Effort::Full };
    let rows = match options.part {
        Part::Operations => {
            operations::run(&place, effort, &mut results)?;
            operations::rows(&results.records)
        }
        Part::Wear => {
            wear::run(&place, effort, &mut results)?;
            wear::rows(&results.records)
        }
        Part::Scale => {
            scale::run(&place, effort, &mut results)?;
            scale::rows(&results.records)
        }
    };
    for row in rows {
        println!("{row:?}");
    }
    println!("{} s", begin.elapsed().as_secs());
    Ok(())
}
