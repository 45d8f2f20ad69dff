//! `pitstop set`: what flushes of a volume promise, and whether an undefined one is taken as it is.

use std::path::Path;

use pitstop_format::VolumeChange;

use crate::error::Result;
use crate::render::{self, Output};
use crate::session::{self, Access};

/// Changes volume `name` of the container `path`.
pub(crate) fn run(path: &Path, name: &str, change: VolumeChange, output: Output) -> Result<()> {
    let volume = session::with(path, Access::Change, |session| session.set_volume(name, change))?;
    render::show(output, &volume, render::volume_line)
}
