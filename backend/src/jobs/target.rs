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
/// Zeros that are written at once, in bytes.
const ZEROS_LEN: u64 = 256 << 10;

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
        check_place(path, overwrite)?;
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

    /// Writes `len` zeros at `offset`.
    pub(super) fn write_zeros(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeros = vec![0; len.min(ZEROS_LEN) as usize];
        let mut done = 0;
        while done < len {
            let piece = &zeros[..(len - done).min(ZEROS_LEN) as usize];
            self.file().write_all_at(piece, offset + done)?;
            done += piece.len() as u64;
        }
        Ok(())
    }

    /// Gives the file its name, durably. Error: the text for people; it is not there then, unless it has replaced another.
    fn name(self) -> Result<PathBuf, String> {
        let Self { path, overwrite, temporary } = self;
        let replaces = overwrite && path.exists();
        let named = if overwrite { temporary.persist(&path) } else { temporary.persist_noclobber(&path) };
        named.map_err(|error| format!("cannot name '{}': {}", path.display(), error.error))?;
        sync_folder_of(&path).inspect_err(|_| {
            if !replaces {
                drop(std::fs::remove_file(&path));
            }
        })?;
        Ok(path)
    }
}

/// A file of before, out of the way under another name until it is known whether it comes back.
struct Aside {
    path: PathBuf,
    moved: tempfile::TempPath,
}

impl Aside {
    /// Moves what a file replaces out of the way. Error: the text for people.
    fn put(new: &Target) -> Result<Option<Self>, String> {
        let path = &new.path;
        let failed = |error: io::Error| format!("cannot put '{}' aside: {error}", path.display());
        if !new.overwrite || !path.exists() {
            return Ok(None);
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        let moved = tempfile::Builder::new().prefix(".pitstop-backup-old-").tempfile_in(folder).map_err(failed)?;
        let moved = moved.into_temp_path();
        std::fs::rename(path, &moved).map_err(failed)?;
        let aside = Self { path: path.to_owned(), moved };
        match sync_folder_of(path) {
            Ok(()) => Ok(Some(aside)),
            Err(text) => {
                aside.put_back();
                Err(text)
            }
        }
    }

    fn put_back(self) {
        if let Err(error) = self.moved.persist(&self.path) {
            let moved = error.path.keep().map_or_else(|error| error.to_string(), |path| path.display().to_string());
            log::error!("'{}' cannot be put back from '{moved}': {}", self.path.display(), error.error);
        }
    }
}

/// Gives a backup's durable files their names, the target last. A pair of before goes out of the way first, so that none of
/// its files ever stands beside one of now (BAK-10), and comes back if that fails. Error: the text for people.
pub(super) fn name_files(addendum: Option<Target>, target: Target) -> Result<(), String> {
    for file in addendum.iter().chain([&target]) {
        // A container may have been opened there, or a file made, in the meantime.
        check_place(&file.path, file.overwrite)?;
    }
    let Some(addendum) = addendum else {
        return target.name().map(drop);
    };
    let old_target = Aside::put(&target)?;
    let old_addendum = match Aside::put(&addendum) {
        Ok(old) => old,
        Err(text) => {
            old_target.into_iter().for_each(Aside::put_back);
            return Err(text);
        }
    };
    let named = addendum.name().and_then(|addendum| {
        // An addendum without its target helps nobody.
        target.name().inspect_err(|_| drop(std::fs::remove_file(&addendum)))
    });
    if named.is_err() {
        old_addendum.into_iter().chain(old_target).for_each(Aside::put_back);
    }
    named.map(drop)
}

/// Whether two paths lead to one file, or would if it were there.
pub(super) fn is_same_place(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| Some(std::fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?));
    a == b || place(a).is_some_and(|place_of_a| Some(place_of_a) == place(b))
}

fn sync_folder_of(path: &Path) -> Result<(), String> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| format!("cannot sync '{}': {error}", folder.display()))
}

/// Refuses what may not be replaced. Error: the text for who gave the order.
fn check_place(path: &Path, overwrite: bool) -> Result<(), String> {
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() && holder_of(path).is_some() => {
            Err(format!("'{shown}' is a container in use; name another file"))
        }
        Ok(meta) if meta.is_file() && overwrite => Ok(()),
        Ok(meta) if meta.is_file() => {
            Err(format!("'{shown}' exists already; name another file, or replace it with --force"))
        }
        Ok(_) => Err(format!("'{shown}' is not a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("cannot look at '{shown}': {error}")),
    }
}

#[cfg(test)]
#[path = "tests/target.rs"]
mod tests;
