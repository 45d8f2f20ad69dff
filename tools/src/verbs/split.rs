//! `pitstop split`: ends the relation of a volume to the one that it is a copy of.
//!
//! Both keep their contents. Does not: copy: what the volume still shares with others stays shared.

use std::path::Path;

use crate::error::Result;
use crate::render::{self, Output};
use crate::session::{self, Access};

/// Ends the relation of volume `name` of the container `path`.
pub(crate) fn run(path: &Path, name: &str, output: Output) -> Result<()> {
    let volume = session::with(path, Access::Change, |session| session.split(name))?;
    render::show(output, &volume, render::volume_line)
}
