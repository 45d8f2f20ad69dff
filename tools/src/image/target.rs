//! The file that an export makes: under a temporary name until it is complete.
//!
//! Invariant: at no instant does the target's name show an incomplete image; what is not finished is removed. Does not:
//! know formats.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pitstop_format::holder_of;
use tempfile::{NamedTempFile, TempPath};

use crate::error::{Error, Result};

/// Whether an existing file may be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overwrite {
    /// It is an error.
    Refuse,
    /// It is replaced once the new file is complete.
    Replace,
}

/// A file in the making.
#[derive(Debug)]
pub(crate) struct Target {
    path: PathBuf,
    overwrite: Overwrite,
    temporary: NamedTempFile,
}

impl Target {
    /// Starts a file that will become `path`.
    pub(crate) fn create(path: &Path, overwrite: Overwrite) -> Result<Self> {
        Self::check(path, overwrite)?;
        let folder = folder_of(path);
        let temporary = tempfile::Builder::new()
            .prefix(".pitstop-export-")
            // As any new file: the process's umask decides.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(Error::file("make a file in", folder))?;
        Ok(Self { path: path.to_owned(), overwrite, temporary })
    }

    /// Takes over the file `made`, which lies in the same folder and is complete, to become `path`.
    pub(crate) fn take_over(made: TempPath, path: &Path, overwrite: Overwrite) -> Result<Self> {
        let file = File::open(&made).map_err(Error::file("open", &made))?;
        Ok(Self { path: path.to_owned(), overwrite, temporary: NamedTempFile::from_parts(file, made) })
    }

    /// Refuses a name that cannot be given to a new file.
    pub(crate) fn check(path: &Path, overwrite: Overwrite) -> Result<()> {
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.is_file() && holder_of(path).is_some() => {
                return Err(Error::TargetInUse { path: path.to_owned() });
            }
            Ok(meta) if meta.is_file() && overwrite == Overwrite::Replace => {}
            Ok(meta) if meta.is_file() => return Err(Error::TargetExists { path: path.to_owned() }),
            Ok(_) => return Err(Error::TargetIsNoFile { path: path.to_owned() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("look at", path)(error)),
        }
        Ok(())
    }

    /// The final path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the file is until it gets its name.
    pub(crate) fn temporary_path(&self) -> &Path {
        self.temporary.path()
    }

    /// A second handle to the file being written.
    pub(crate) fn file(&self) -> Result<File> {
        self.temporary.as_file().try_clone().map_err(Error::file("open", &self.path))
    }

    /// Writes bytes at the end of the file.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<()> {
        self.temporary.as_file().write_all(bytes).map_err(Error::file("write", &self.path))
    }

    /// Makes the files of a backup durable and gives them their names, the addendum first. No crash and no error leaves an
    /// image beside an addendum of another: what is replaced goes before either (BAK-10).
    pub(crate) fn finish_with(self, addendum: Option<Self>) -> Result<()> {
        let Some(addendum) = addendum else { return self.finish() };
        for file in [&self, &addendum] {
            file.temporary.as_file().sync_all().map_err(Error::file("sync", &file.path))?;
            Self::check(&file.path, file.overwrite)?;
        }
        // Both go out of the way before either comes, and come back if that fails.
        let old_image = self.put_aside()?;
        let (image, named) = (self.path.clone(), addendum.path.clone());
        let old_addendum = match addendum.put_aside() {
            Ok(old) => old,
            Err(error) => {
                put_back(old_image, &image);
                return Err(error);
            }
        };
        let finished = addendum.finish().and_then(|()| {
            // An addendum without its image helps nobody.
            self.finish().inspect_err(|_| drop(std::fs::remove_file(&named)))
        });
        if finished.is_err() {
            put_back(old_addendum, &named);
            put_back(old_image, &image);
        }
        finished
    }

    /// Moves the file that this one replaces out of the way; it is removed when the result is dropped.
    fn put_aside(&self) -> Result<Option<TempPath>> {
        if self.overwrite == Overwrite::Refuse || std::fs::symlink_metadata(&self.path).is_err() {
            return Ok(None);
        }
        let prefix = tempfile::Builder::new().prefix(".pitstop-backup-old-").tempfile_in(folder_of(&self.path));
        let moved = prefix.map_err(Error::file("replace", &self.path))?.into_temp_path();
        std::fs::rename(&self.path, &moved).map_err(Error::file("replace", &self.path))?;
        if let Err(error) = sync_folder(&self.path) {
            put_back(Some(moved), &self.path);
            return Err(error);
        }
        Ok(Some(moved))
    }

    /// Makes the file durable and gives it its name.
    pub(crate) fn finish(self) -> Result<()> {
        let Self { path, overwrite, temporary } = self;
        temporary.as_file().sync_all().map_err(Error::file("sync", &path))?;
        // It may have come to be there, or into use, meanwhile.
        Self::check(&path, overwrite)?;
        let persisted = match overwrite {
            Overwrite::Replace => temporary.persist(&path),
            Overwrite::Refuse => temporary.persist_noclobber(&path),
        };
        persisted.map_err(|error| match error.error.kind() {
            std::io::ErrorKind::AlreadyExists => Error::TargetExists { path: path.clone() },
            _ => Error::file("name", &path)(error.error),
        })?;
        sync_folder(&path)
    }
}

/// Gives a file that was put aside its name again.
fn put_back(moved: Option<TempPath>, path: &Path) {
    let Some(Err(error)) = moved.map(|moved| moved.persist(path)) else { return };
    let shown = path.display();
    match error.path.keep() {
        Ok(moved) => crate::tell(format_args!("'{shown}' is now '{}': {}", moved.display(), error.error)),
        Err(lost) => crate::tell(format_args!("'{shown}' is lost: {lost}")),
    }
}

/// Makes the name of a new file durable.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(Error::file("sync", folder))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_target_appears_only_when_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let target = Target::create(&path, Overwrite::Refuse).unwrap();
        target.file().unwrap().write_all(b"x").unwrap();
        assert!(!path.exists());
        drop(target);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

        let target = Target::create(&path, Overwrite::Refuse).unwrap();
        target.finish().unwrap();
        assert!(path.exists());
        assert!(matches!(Target::create(&path, Overwrite::Refuse), Err(Error::TargetExists { .. })));
        Target::create(&path, Overwrite::Replace).unwrap().finish().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let target = Target::create(&path, Overwrite::Refuse).unwrap();
        std::fs::write(&path, b"mine").unwrap();
        assert!(matches!(target.finish(), Err(Error::TargetExists { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn a_target_that_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Target::create(folder.path(), Overwrite::Replace), Err(Error::TargetIsNoFile { .. })));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert!(matches!(Target::create(&link, Overwrite::Replace), Err(Error::TargetIsNoFile { .. })));
    }
}
