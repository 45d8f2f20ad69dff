//! Questions about unix sockets that the standard library cannot ask without blocking.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Longest path of a unix socket: an address holds 108 bytes, the last of which is zero.
pub(crate) const MAX_PATH_LEN: usize = 107;

/// Whether somebody listens on the socket at `path`. Never waits, not even for a listener that accepts nobody.
pub(crate) fn is_listened_on(path: &Path) -> io::Result<bool> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > MAX_PATH_LEN {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "path is too long for a socket"));
    }
    // SAFETY: the address is plain data, for which zeros are valid.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: touches no memory.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the address lives until the call returns, and `len` is its size.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // Its queue of connections is full.
        Some(libc::EAGAIN) => Ok(true),
        Some(libc::ECONNREFUSED | libc::ENOENT) => Ok(false),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_listener_whose_queue_is_full_listens_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        assert!(!is_listened_on(&path).unwrap());
        let listener = UnixListener::bind(&path).unwrap();
        // SAFETY: touches no memory. A second call only changes the length of the queue.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let _fills_the_queue = UnixStream::connect(&path).unwrap();
        for _ in 0..4 {
            assert!(is_listened_on(&path).unwrap());
        }
        drop(listener);
        assert!(!is_listened_on(&path).unwrap());
        assert!(is_listened_on(&folder.path().join("x".repeat(120))).is_err());
    }
}
