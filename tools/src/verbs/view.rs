//! `pitstop view`: a second volume over a volume's data, and its end.

use std::path::Path;

use pitstop_format::ViewEnd;

use crate::error::Result;
use crate::render::{self, Output};
use crate::session::{self, Access, Connected};

/// Makes `name` a write-through view of `source`, in the container `path`.
pub(crate) fn create(path: &Path, source: &str, name: &str, output: Output) -> Result<()> {
    let volume = session::with(path, Access::Change, |session| session.create_view(source, name))?;
    render::show(output, &volume, render::volume_line)
}

/// Ends the write-through view `name`, in the container `path`.
pub(crate) fn end(path: &Path, name: &str, end: ViewEnd, connected: Connected, output: Output) -> Result<()> {
    let volume = session::with(path, Access::Change, |session| session.end_view(name, end, connected))?;
    render::show(output, &volume, render::volume_line)
}
