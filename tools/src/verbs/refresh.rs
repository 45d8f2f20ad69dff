//! `pitstop refresh`: gives an existing volume the contents of another.

use std::path::Path;

use crate::error::Result;
use crate::render::{self, Output};
use crate::session::{self, Access, Connected};

/// Makes `name` a copy of `source` as it is now, in the container `path`.
pub(crate) fn run(path: &Path, name: &str, source: &str, connected: Connected, output: Output) -> Result<()> {
    let volume = session::with(path, Access::Change, |session| session.refresh(name, source, connected))?;
    render::show(output, &volume, render::volume_line)
}
