//! `pitstop list`: the volumes, one a line.

use std::path::Path;

use crate::error::Result;
use crate::render::{self, Output};
use crate::session::{self, Access};

/// Lists the volumes of the container `path`, or only `name`.
pub(crate) fn run(path: &Path, name: Option<&str>, output: Output) -> Result<()> {
    let volumes = session::with(path, Access::Read, |session| match name {
        Some(name) => Ok(vec![session.volume(name)?]),
        None => session.volumes(),
    })?;
    render::show(output, &volumes, |volumes| render::volume_table(volumes))
}
