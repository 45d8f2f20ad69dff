//! Data files of the benchmark.
//!
//! Does not: know what is in them.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::Result;

/// Removes a file or socket; says whether it was there.
///
/// Random writes leave very many extents. Where the file system discards each one when a file goes, that takes minutes and
/// disturbs what is measured next; zeroed, they are few.
///
/// # Errors
/// It is there and stays.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    let result = std::fs::symlink_metadata(path).and_then(|metadata| {
        // Not what is mostly holes: zeros would take space that may not be there.
        let is_dense = metadata.blocks() * 512 > metadata.len() / 2;
        if metadata.is_file() && metadata.len() > 0 && is_dense {
            let file = std::fs::OpenOptions::new().write(true).open(path)?;
            match rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 0, metadata.len()) {
                // Not every file system can; of one without room, holes cannot be filled.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSPC) => {}
                Err(error) => return Err(error.into()),
            }
        }
        std::fs::remove_file(path)
    });
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("cannot remove {}: {error}", path.display()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::remove;

    #[test]
    fn a_hole_takes_no_space_when_it_goes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        // More than the file system has: zeroing it would fill the file system first.
        std::fs::File::create(&file).unwrap().set_len(1 << 40).unwrap();
        assert!(remove(&file).unwrap());
    }

    #[test]
    fn a_file_is_removed_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "contents").unwrap();
        assert!(remove(&file).unwrap());
        assert!(!file.exists());
        assert!(!remove(&file).unwrap());
    }
}
