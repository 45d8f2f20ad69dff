//! `pitstop delete`: removes a volume; copies made from it keep their contents.

use std::path::Path;

use crate::error::Result;
use crate::session::{self, Access};

/// Deletes volume `name` of the container `path`.
pub(crate) fn run(path: &Path, name: &str) -> Result<()> {
    session::with(path, Access::Change, |session| session.delete_volume(name))
}
