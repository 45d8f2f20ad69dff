//! `pitstop create`: a new, empty container.
//!
//! Invariant: an existing file is never touched; a container that could not be completed is removed.

use std::fs;
use std::path::Path;

use pitstop_format::{Container, CreateOptions, FileDisk};

use crate::error::{Error, Result};
use crate::image::sync_folder;
use crate::render;

/// Makes the container `path`.
pub(crate) fn run(path: &Path, label: &str) -> Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(Error::ContainerExists { container: path.to_owned() });
    }
    let disk = FileDisk::create(path).map_err(Error::container(path))?;
    let options = CreateOptions { label: label.to_owned(), ..CreateOptions::default() };
    if let Err(error) = Container::create(disk, &options) {
        // It is this program's own file, and useless.
        fs::remove_file(path).map_err(Error::file("remove the incomplete", path))?;
        return Err(Error::container(path)(error));
    }
    sync_folder(path)?;
    render::print(&format!("{}: empty container\n", render::printable(&path.to_string_lossy())))
}
