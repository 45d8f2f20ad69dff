//! `pitstop rename`: another name for a volume.

use std::path::Path;

use crate::error::Result;
use crate::session::{self, Access};

/// Renames volume `name` of the container `path` to `new_name`.
pub(crate) fn run(path: &Path, name: &str, new_name: &str) -> Result<()> {
    session::with(path, Access::Change, |session| session.rename_volume(name, new_name))
}
