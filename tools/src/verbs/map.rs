//! `pitstop map`: which bytes of a volume are its own, and which were written since its last point-in-time event.

use std::path::Path;

use crate::error::Result;
use crate::maps::MapTotals;
use crate::render::{Output, map_totals};
use crate::session::{self, Access, Want};
use crate::verbs::ranges::Printer;
use crate::verbs::steps::Steps;

/// Lists the map of volume `name` of the container `path`.
pub(crate) fn run(path: &Path, name: &str, output: Output) -> Result<()> {
    session::with(path, Access::Read, |session| {
        let mut printer = Printer::new(output);
        let mut totals = MapTotals::default();
        for step in Steps::of_map(session, name, Want::Ranges) {
            let step = step?;
            printer.add(&step.ranges)?;
            totals.add(&step);
        }
        printer.end(&totals, &map_totals(&totals))
    })
}
