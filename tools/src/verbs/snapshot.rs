//! `pitstop snapshot`: a new volume that is a point-in-time copy of another.

use std::path::Path;

use crate::error::Result;
use crate::render::{self, Output};
use crate::session::{self, Access};

/// Makes `new_name` a copy of `source` as it is now, in the container `path`.
pub(crate) fn run(path: &Path, source: &str, new_name: &str, output: Output) -> Result<()> {
    let volume = session::with(path, Access::Change, |session| session.snapshot(source, new_name))?;
    render::show(output, &volume, render::volume_line)
}
