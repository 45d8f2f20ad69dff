//! `pitstop diff`: where two volumes may differ, as their layers tell, without reading data.

use std::path::Path;

use crate::error::Result;
use crate::maps::DiffTotals;
use crate::render::{Output, diff_totals};
use crate::session::{self, Access, Want};
use crate::verbs::ranges::Printer;
use crate::verbs::steps::Steps;

/// Lists where volumes `a` and `b` of the container `path` may differ.
pub(crate) fn run(path: &Path, a: &str, b: &str, output: Output) -> Result<()> {
    session::with(path, Access::Read, |session| {
        let mut printer = Printer::new(output);
        let mut totals = DiffTotals::default();
        for step in Steps::of_difference(session, a, b, Want::Ranges) {
            let step = step?;
            printer.add(&step.ranges)?;
            totals.add(&step);
        }
        printer.end(&totals, &diff_totals(&totals, a, b))
    })
}
