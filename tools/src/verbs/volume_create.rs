//! `pitstop volume create`: a new volume that reads as zeros.

use std::path::Path;

use pitstop_format::Durability;

use super::verify::VerifyArg;
use crate::error::Result;
use crate::render::{self, Output};
use crate::session::{self, Access};

/// Makes volume `name` of `size_bytes` in the container `path`.
pub(crate) fn run(
    path: &Path,
    name: &str,
    size_bytes: u64,
    durability: Durability,
    verify: VerifyArg,
    output: Output,
) -> Result<()> {
    let volume = session::with(path, Access::Change, |session| {
        let volume = session.create_volume(name, size_bytes, durability)?;
        if verify == VerifyArg::Off { Ok(volume) } else { session.set_verify(name, verify.into()) }
    })?;
    render::show(output, &volume, render::volume_line)
}
