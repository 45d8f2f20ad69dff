//! `pitstop restore`: puts a volume back to what one of its own copies holds.
//!
//! A refresh that cannot be mistaken: the volume gets nobody else's contents (SNP-27).

use std::path::Path;

use crate::error::{Error, Result};
use crate::render::{self, Output};
use crate::session::{self, Access, Connected, Session};

/// Makes `name` what its copy `copy` is now, in the container `path`.
pub(crate) fn run(path: &Path, name: &str, copy: &str, connected: Connected, output: Output) -> Result<()> {
    let volume = session::with(path, Access::Change, |session| {
        check(session, name, copy)?;
        session.refresh(name, copy, connected)
    })?;
    render::show(output, &volume, render::volume_line)
}

fn check(session: &mut dyn Session, name: &str, copy: &str) -> Result<()> {
    let volume = session.volume(name)?.id;
    match session.volume(copy)?.origin {
        Some(origin) if origin.volume == volume => Ok(()),
        origin => {
            let source = origin.map(|origin| origin.name);
            Err(Error::NotItsCopy { volume: name.to_owned(), copy: copy.to_owned(), source_name: source })
        }
    }
}
