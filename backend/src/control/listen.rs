//! The socket file of the control server.
//!
//! Invariant: the file that appears at the path already listens and has mode 0600 (CTL-1); a file that is not a dead
//! socket is never replaced (CTL-2), and at the end only our own file is removed.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::socket::{MAX_PATH_LEN, SocketFile, is_listened_on, listen_at};

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

/// Listens at `path`.
pub(super) fn listen(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    if path.as_os_str().len() > MAX_PATH_LEN {
        return Err(ListenError::PathTooLong { path: path.to_owned() });
    }
    make_free(path)?;
    let bind_error = |source| ListenError::Bind { path: path.to_owned(), source };
    if path.file_name().is_none() {
        return Err(ListenError::NoName { path: path.to_owned() });
    }
    listen_at(path, Some(0o600)).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => ListenError::InUse { path: path.to_owned() },
        _ => bind_error(source),
    })
}

/// Fails unless there is nothing at `path`, or a socket at which nobody listens, which is removed.
fn make_free(path: &Path) -> Result<(), ListenError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ListenError::Bind { path: path.to_owned(), source }),
    };
    if !found.file_type().is_socket() {
        return Err(ListenError::NotASocket { path: path.to_owned() });
    }
    match is_listened_on(path) {
        Ok(false) => match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ListenError::Bind { path: path.to_owned(), source })
            }
            _ => Ok(()),
        },
        Ok(true) => Err(ListenError::InUse { path: path.to_owned() }),
        Err(source) => Err(ListenError::Bind { path: path.to_owned(), source }),
    }
}
