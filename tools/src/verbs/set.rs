//! `pitstop set`: what flushes of a volume promise, whether an undefined one is taken as it is, and whether it is sealed.

use std::path::Path;

use pitstop_format::VolumeChange;

use super::verify::VerifyArg;
use crate::error::Result;
use crate::render::{self, Output};
use crate::session::{self, Access};

/// Changes volume `name` of the container `path`.
pub(crate) fn run(
    path: &Path,
    name: &str,
    change: VolumeChange,
    verify: Option<VerifyArg>,
    output: Output,
) -> Result<()> {
    let volume = session::with(path, Access::Change, |session| match verify {
        Some(verify) => session.set_verify(name, verify.into()),
        None => session.set_volume(name, change),
    })?;
    render::show(output, &volume, if verify.is_some() { render::verify_line } else { render::volume_line })
}
