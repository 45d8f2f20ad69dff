//! The socket file of the control server.
//!
//! Invariant: the file that appears at the path already listens and has mode 0600 (CTL-1); a file that is not a dead
//! socket is never replaced (CTL-2), and at the end only our own file is removed.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::socket::{MAX_PATH_LEN, is_listened_on};

/// Why the control socket could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// Another program listens there.
    #[error("control socket {path} is in use by another program; stop it or choose another path", path = .path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// There is something else.
    #[error("{path} exists and is not a socket; remove it or choose another path for the control socket", path = .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The path is too long for a socket address.
    #[error("control socket path '{path}' is longer than {MAX_PATH_LEN} bytes; choose a shorter one", path = .path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The path names no file.
    #[error("'{path}' does not name a file; give the control socket's full path", path = .path.display())]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot make control socket {path}: {source}; does its folder exist, and may it be written?", path = .path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start the control server: {0}")]
    Thread(#[source] io::Error),
}

/// A listening socket's file; removed when dropped, if it is still ours.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove control socket {}: {error}", self.path.display());
        }
    }
}

/// Listens at `path`.
pub(super) fn listen(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    if path.as_os_str().len() > MAX_PATH_LEN {
        return Err(ListenError::PathTooLong { path: path.to_owned() });
    }
    check_free(path)?;
    let bind_error = |source| ListenError::Bind { path: path.to_owned(), source };
    if path.file_name().is_none() {
        return Err(ListenError::NoName { path: path.to_owned() });
    }
    // Bound in a folder that nobody else may enter and moved when its mode is right: at no instant can another user
    // connect, whatever the umask.
    let folder = path.with_file_name(format!(".{}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&folder).map_err(bind_error)?;
    let bound = bind_and_move(&folder, path);
    if let Err(error) = fs::remove_dir(&folder) {
        log::warn!("cannot remove folder {}: {error}", folder.display());
    }
    bound.map_err(bind_error)
}

fn bind_and_move(folder: &Path, path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    // By its descriptor: the folder's own path may be longer than a socket address, though `path` is not.
    let opened = fs::File::open(folder)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/s", opened.as_raw_fd()))?;
    let private = &folder.join("s");
    let moved = fs::set_permissions(private, Permissions::from_mode(0o600))
        .and_then(|()| fs::symlink_metadata(private))
        .and_then(|found| fs::rename(private, path).map(|()| found));
    match moved {
        Ok(found) => Ok((listener, SocketFile { path: path.to_owned(), device: found.dev(), inode: found.ino() })),
        Err(error) => {
            fs::remove_file(private)?;
            Err(error)
        }
    }
}

/// Fails unless there is nothing at `path`, or a socket at which nobody listens.
fn check_free(path: &Path) -> Result<(), ListenError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ListenError::Bind { path: path.to_owned(), source }),
    };
    if !found.file_type().is_socket() {
        return Err(ListenError::NotASocket { path: path.to_owned() });
    }
    match is_listened_on(path) {
        Ok(false) => Ok(()),
        Ok(true) => Err(ListenError::InUse { path: path.to_owned() }),
        Err(source) => Err(ListenError::Bind { path: path.to_owned(), source }),
    }
}
