//! Files that a backup makes: under a temporary name until they are complete.
//!
//! Invariant: at no instant does the name show an incomplete file (BAK-10); what is not finished is removed. Does not: know
//! what is written.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pitstop_format::holder_of;
use tempfile::NamedTempFile;

/// Unit of zero detection in bytes.
const GRANULE_LEN: usize = 4096;

/// A file in the making.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    overwrite: bool,
    temporary: NamedTempFile,
}

impl Target {
    /// Starts a file that will become `path`, which is absolute. Error: the text for who gave the order.
    pub(super) fn create(path: &Path, overwrite: bool) -> Result<Self, String> {
        let shown = path.display();
        let folder = match path.parent() {
            Some(folder) if path.is_absolute() => folder,
            _ => return Err(format!("'{shown}' is not an absolute path of a file")),
        };
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.is_file() && holder_of(path).is_some() => {
                return Err(format!("'{shown}' is a container in use; name another file"));
            }
            Ok(meta) if meta.is_file() && overwrite => {}
            Ok(meta) if meta.is_file() => {
                return Err(format!("'{shown}' exists already; name another file, or replace it with --force"));
            }
            Ok(_) => return Err(format!("'{shown}' is not a regular file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("cannot look at '{shown}': {error}")),
        }
        let temporary = tempfile::Builder::new()
            .prefix(".pitstop-backup-")
            // As any new file: the process's umask decides.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(|error| format!("cannot make a file in '{}': {error}", folder.display()))?;
        Ok(Self { path: path.to_owned(), overwrite, temporary })
    }

    /// Where it will be.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file being written.
    pub(super) fn file(&self) -> &File {
        self.temporary.as_file()
    }

    /// Writes `data` at `offset`, but for whole blocks of zeros, which a new file has by itself.
    pub(super) fn write_sparsely(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut begun = None; // where a run of blocks with data begins
        for (index, block) in data.chunks(GRANULE_LEN).enumerate() {
            let at = index * GRANULE_LEN;
            let is_zero = block.iter().all(|&byte| byte == 0);
            match begun {
                None if !is_zero => begun = Some(at),
                Some(from) if is_zero => {
                    self.file().write_all_at(&data[from..at], offset + from as u64)?;
                    begun = None;
                }
                _ => {}
            }
        }
        if let Some(from) = begun {
            self.file().write_all_at(&data[from..], offset + from as u64)?;
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file().sync_all()
    }

    /// Gives the file its name, durably. Error: the text for people.
    pub(super) fn finish(self) -> Result<(), String> {
        let Self { path, overwrite, temporary } = self;
        let named = if overwrite { temporary.persist(&path) } else { temporary.persist_noclobber(&path) };
        named.map_err(|error| format!("cannot name '{}': {}", path.display(), error.error))?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| format!("cannot sync '{}': {error}", folder.display()))
    }
}
