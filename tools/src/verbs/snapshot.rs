//! `pitstop snapshot`: a new volume that is a point-in-time copy of another, or several of one instant.

use std::path::Path;

use pitstop_format::NewCopy;

use crate::error::Result;
use crate::render::{self, Output};
use crate::session::{self, Access};

/// Makes all `copies` at one instant, in the container `path`.
pub(crate) fn run_group(path: &Path, copies: &[NewCopy], output: Output) -> Result<()> {
    let volumes = session::with(path, Access::Change, |session| session.snapshot_group(copies))?;
    render::show(output, &volumes, |volumes| volumes.iter().map(render::volume_line).collect())
}

/// A copy as the command line names it: `SOURCE=NAME`.
pub(crate) fn parse_copy(text: &str) -> std::result::Result<NewCopy, &'static str> {
    let (source, name) = text.split_once('=').ok_or("name a volume and its copy, as in golden=golden-1")?;
    Ok(NewCopy { source: source.to_owned(), name: name.to_owned() })
}

/// Makes `new_name` a copy of `source` as it is now, in the container `path`.
pub(crate) fn run(path: &Path, source: &str, new_name: &str, output: Output) -> Result<()> {
    let volume = session::with(path, Access::Change, |session| session.snapshot(source, new_name))?;
    render::show(output, &volume, render::volume_line)
}
