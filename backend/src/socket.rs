//! Unix sockets: making them so that they accept from the instant they appear, and questions that the standard library
//! cannot ask without blocking.
//!
//! Invariant: a socket's file that [`listen_at`] has made appears at its path when it already listens and has its mode, never
//! in the place of another file, and is removed only if it is still ours.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Longest path of a unix socket: an address holds 108 bytes, the last of which is zero.
pub(crate) const MAX_PATH_LEN: usize = 107;

/// Most names tried for the folder in which a socket is bound.
const FOLDER_NAMES: u32 = 1000;

/// A listening socket's file; removed when dropped, if it is still ours.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove socket '{}': {error}", self.path.display());
        }
    }
}

/// Listens at `path`, with `mode` or as the umask says. Fails with `AlreadyExists` if anything is there.
pub(crate) fn listen_at(path: &Path, mode: Option<u32>) -> io::Result<(UnixListener, SocketFile)> {
    // Bound in a folder that nobody else may enter and linked when all is right: at no instant can anybody find it and be
    // refused, nor another user connect to it, whatever the umask. A link, not a move, since it replaces nothing.
    let folder = private_folder_beside(path)?;
    let listening = bind_and_link(&folder, path, mode);
    if let Err(error) = fs::remove_dir(&folder) {
        log::warn!("cannot remove folder '{}': {error}", folder.display());
    }
    listening
}

/// A new folder. Its name may be taken: by another program in another namespace of processes, or by one that was killed.
fn private_folder_beside(path: &Path) -> io::Result<PathBuf> {
    let mut taken = io::Error::from(io::ErrorKind::AlreadyExists);
    for number in 0..FOLDER_NAMES {
        let folder = path.with_file_name(format!(".{}.{number}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => taken = error,
            Err(error) => return Err(error),
        }
    }
    Err(taken)
}

fn bind_and_link(folder: &Path, path: &Path, mode: Option<u32>) -> io::Result<(UnixListener, SocketFile)> {
    let bound = folder.join(path.file_name().unwrap_or_default());
    let listener = if bound.as_os_str().len() <= MAX_PATH_LEN {
        UnixListener::bind(&bound)?
    } else {
        bind_by_descriptor(folder, &bound)?
    };
    let linked = mode
        .map_or(Ok(()), |mode| fs::set_permissions(&bound, Permissions::from_mode(mode)))
        .and_then(|()| fs::symlink_metadata(&bound))
        .and_then(|found| fs::hard_link(&bound, path).map(|()| found));
    fs::remove_file(&bound)?;
    let found = linked?;
    Ok((listener, SocketFile { path: path.to_owned(), device: found.dev(), inode: found.ino() }))
}

/// The folder's own path makes the address too long, though `path` is not.
fn bind_by_descriptor(folder: &Path, bound: &Path) -> io::Result<UnixListener> {
    let opened = File::open(folder)?;
    let short = folder.join("s");
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/s", opened.as_raw_fd()))?;
    if short != bound {
        fs::rename(&short, bound)?;
    }
    Ok(listener)
}

/// Whether the peer has sent something that was not read yet; false if it has gone. Waits until either is so.
pub(crate) fn has_bytes(stream: &UnixStream) -> io::Result<bool> {
    let mut byte = 0u8;
    loop {
        // SAFETY: the buffer has one byte and lives until the call returns. Descriptors that come with the message are not
        // taken: looking leaves it, and them, where they are.
        let len = unsafe { libc::recv(stream.as_raw_fd(), (&raw mut byte).cast(), 1, libc::MSG_PEEK) };
        if len >= 0 {
            return Ok(len > 0);
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::ConnectionReset => return Ok(false),
            _ => return Err(error),
        }
    }
}

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
    use std::io::{Read, Write};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    // rule: CTL-1, CTL-55
    #[test]
    fn a_socket_accepts_from_the_instant_its_file_appears() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let refused = scope.spawn(|| {
                let mut refused = 0;
                while !over.load(Ordering::Relaxed) {
                    match UnixStream::connect(&path) {
                        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => refused += 1,
                        _ => {}
                    }
                }
                refused
            });
            for _ in 0..2000 {
                let (listener, file) = listen_at(&path, None).unwrap();
                // The file goes first: a listener that has ended is rightly refused.
                drop(file);
                std::thread::sleep(std::time::Duration::from_micros(20));
                drop(listener);
            }
            over.store(true, Ordering::Relaxed);
            assert_eq!(refused.join().unwrap(), 0);
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }

    // rule: CTL-2, CTL-55
    #[test]
    fn nothing_is_replaced_by_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (_listener, file) = listen_at(&path, Some(0o600)).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(listen_at(&path, None).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(is_listened_on(&path).unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        assert_eq!(listen_at(&path, None).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "another's");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }

    /// In a container of its own a daemon has the same number every time, also after one that was killed.
    #[test]
    fn a_folder_left_behind_and_a_long_path_are_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(format!(".{}.0", std::process::id()))).unwrap();
        let mut path = folder.path().join("s");
        drop(listen_at(&path, None).unwrap());
        let len = path.as_os_str().len();
        path.set_file_name("x".repeat(MAX_PATH_LEN - len + 1));
        assert_eq!(path.as_os_str().len(), MAX_PATH_LEN);
        let (_listener, _file) = listen_at(&path, None).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    // rule: SNP-40
    #[test]
    fn looking_for_bytes_leaves_them() {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        one.write_all(b"ab").unwrap();
        assert!(has_bytes(&other).unwrap() && has_bytes(&other).unwrap());
        drop(one);
        let mut bytes = [0; 2];
        other.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ab");
        assert!(!has_bytes(&other).unwrap());
    }

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
