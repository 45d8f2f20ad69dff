//! `pitstop check`: a structural check; its exit codes are those of `qemu-img check`.

use std::path::Path;

use pitstop_format::Error as FormatError;

use crate::error::{Error, Result};
use crate::render::{self, Output};
use crate::session;
use crate::view::Verdict;

/// Checks the container `path` and shows what was found.
///
/// # Errors
/// Only what kept the check from running; what it found is in the verdict.
pub(crate) fn run(path: &Path, output: Output) -> Result<Verdict> {
    let report = session::check_structure(path)?;
    render::show(output, &report, render::check_text)?;
    Ok(report.verdict())
}

/// The verdict for a check that did not run.
pub(crate) fn verdict_of(error: &Error) -> Verdict {
    match error {
        Error::Container {
            source:
                FormatError::UnsupportedVersion { .. }
                | FormatError::UnsupportedFeatures { .. }
                | FormatError::ReadOnlyFeatures { .. },
            ..
        } => Verdict::Unsupported,
        _ => Verdict::CouldNotCheck,
    }
}
