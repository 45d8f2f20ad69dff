//! `pitstop diff`: where two volumes may differ, as their layers tell, without reading data.

use std::path::Path;

use crate::error::Result;
use crate::maps::DiffTotals;
use crate::render::{Output, diff_totals};
use crate::session::{self, Access, Want};
use crate::verbs::ranges::Printer;

/// Lists where volumes `a` and `b` of the container `path` may differ.
pub(crate) fn run(path: &Path, a: &str, b: &str, output: Output) -> Result<()> {
    session::with(path, Access::Read, |session| {
        let mut printer = Printer::new(output);
        let mut totals = DiffTotals::default();
        let mut next = Some(0);
        while let Some(start) = next {
            let step = session.diff(a, b, start, Want::Ranges)?;
            printer.add(&step.ranges)?;
            totals.add(&step);
            next = step.next;
        }
        printer.end(&totals, &diff_totals(&totals, a, b))
    })
}
