//! An export: a listening socket, its thread, and the sessions of one front end after another.
//!
//! One front end is served at a time; another that connects meanwhile waits in the socket's queue until the first has
//! gone (a restarted VMM may connect before the old connection's end is seen, so refusing would be wrong). Invariant:
//! the socket file exists only while connections are accepted (CTL-55), and is only removed if it is still ours. A front end that
//! misbehaves ends its session; the listener stays. Does not: handle messages (`session`).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use pitstop_format::{Container, FileDisk, Volume};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::config::{ExportConfig, SocketSource};
use crate::daemon::lock;
use crate::dataplane::DataDisk;
use crate::events::Events;
use crate::jobs::{Activity, Jobs};
use crate::on_connect::{NotRefreshed, RefreshOnConnect, Sizes};
use crate::session::{Served, Session};
use crate::socket::{MAX_PATH_LEN, SocketFile, has_bytes, is_listened_on, listen_at};
use crate::trouble::Trouble;

/// Why an export cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    /// The folder for the socket is missing.
    #[error("folder '{}' for the socket does not exist; create it first", folder.display())]
    NoFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// Somebody listens on the socket.
    #[error("socket '{}' is in use by another program; choose another path or end that program", path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path is taken by something that is not a socket.
    #[error("'{}' exists and is not a socket; choose another path or remove it", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The path is too long for a socket address.
    #[error("socket path '{}' is longer than 107 bytes; choose a shorter one", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The socket could not be made.
    #[error("cannot listen on '{}': {source}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The inherited descriptor is not a stream socket.
    #[error("descriptor {fd} is not a vhost-user socket: {source}; pass a connected or listening unix stream socket")]
    BadFd {
        /// The descriptor.
        fd: RawFd,
        /// Why not.
        source: io::Error,
    },
    /// A thread or descriptor could not be made.
    #[error("cannot start the export: {0}")]
    Start(#[from] io::Error),
}

/// What all exports of a daemon share.
#[derive(Debug)]
pub(crate) struct Resources {
    container: Container,
    disk: Arc<DataDisk>,
    events: Arc<Events>,
    jobs: Arc<Jobs>,
    sizes: Sizes,
}

impl Resources {
    /// `disk` must be the disk under `container`.
    pub(crate) fn new(container: Container, disk: Arc<FileDisk>) -> Result<Self, ExportError> {
        let events = Arc::<Events>::default();
        Ok(Resources {
            jobs: Jobs::new(container.clone(), Arc::clone(&events)),
            container,
            disk: Arc::new(DataDisk::new(disk)?),
            events,
            sizes: Sizes::default(),
        })
    }

    pub(crate) fn container(&self) -> &Container {
        &self.container
    }

    pub(crate) fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// What works in the background.
    pub(crate) fn jobs(&self) -> &Arc<Jobs> {
        &self.jobs
    }

    /// Whether guests are active.
    pub(crate) fn activity(&self) -> &Arc<Activity> {
        self.disk.activity()
    }

    /// The sizes that exports of one volume have in common.
    pub(crate) fn sizes(&self) -> &Sizes {
        &self.sizes
    }
}

/// A running export. Must be ended with [`Export::stop`].
#[derive(Debug)]
pub(crate) struct Export {
    shared: Arc<Shared>,
    /// Taken by who waits for the thread's end.
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

/// What the export's thread and its owner share.
#[derive(Debug)]
struct Shared {
    volume: Volume,
    trouble: Arc<Trouble>,
    refresh: Option<RefreshOnConnect>,
    connected: AtomicBool,
    stopping: AtomicBool,
    wake: EventFd,
    /// The connection under way, to be shut down when the export must stop.
    stream: Mutex<Option<UnixStream>>,
    /// Held while a connection turns from waiting to connected, and by those who must know that none does.
    gate: Mutex<()>,
}

/// No front end becomes connected while this lives.
#[derive(Debug)]
pub(crate) struct Gate<'a>(#[expect(dead_code, reason = "holds the lock")] MutexGuard<'a, ()>);

impl Export {
    /// Starts to serve at `door`.
    pub(crate) fn start(
        config: &ExportConfig,
        door: Door,
        volume: Volume,
        resources: &Resources,
    ) -> Result<Self, ExportError> {
        let trouble = Trouble::new(&config.id, volume.clone(), config.on_enospc, Arc::clone(&resources.events));
        let shared = Arc::new(Shared {
            volume: volume.clone(),
            trouble: Arc::clone(&trouble),
            refresh: config.refresh_on_connect.clone().map(|source| RefreshOnConnect {
                export: config.id.clone(),
                source,
                volume: volume.clone(),
                container: resources.container.clone(),
                sizes: Arc::clone(&resources.sizes),
                events: Arc::clone(&resources.events),
                jobs: Arc::clone(&resources.jobs),
                refusals: Mutex::default(),
            }),
            connected: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            wake: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            stream: Mutex::default(),
            gate: Mutex::default(),
        });
        let served = Served {
            name: format!("export {}", config.id),
            container: resources.container.clone(),
            disk: Arc::clone(&resources.disk),
            volume,
            access: config.access,
            num_queues: config.num_queues,
            write_through: Arc::default(),
            trouble,
        };
        let its_shared = Arc::clone(&shared);
        let body = move || serve(&door, &served, &its_shared);
        let thread = thread::Builder::new().name("pit-export".to_owned()).spawn(body)?;
        Ok(Export { shared, thread: Mutex::new(Some(thread)) })
    }

    pub(crate) fn volume(&self) -> &Volume {
        &self.shared.volume
    }

    /// What the storage does to its requests.
    pub(crate) fn trouble(&self) -> &Trouble {
        &self.shared.trouble
    }

    /// Whether a front end is connected.
    pub(crate) fn is_connected(&self) -> bool {
        self.shared.connected.load(Ordering::Acquire)
    }

    /// Whether the export has ended by itself: its inherited connection is gone.
    pub(crate) fn is_over(&self) -> bool {
        lock(&self.thread).as_ref().is_some_and(thread::JoinHandle::is_finished)
    }

    /// Until the gate is dropped, front ends wait before they count as connected.
    pub(crate) fn hold_new_connections(&self) -> Gate<'_> {
        Gate(lock(&self.shared.gate))
    }

    /// Begins to stop, without waiting.
    pub(crate) fn ask_to_stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        if let Err(error) = self.shared.wake.write(1) {
            log::warn!("cannot wake an export: {error}");
        }
        if let Some(stream) = &*lock(&self.shared.stream)
            && let Err(error) = stream.shutdown(std::net::Shutdown::Both)
        {
            log::debug!("cannot shut a connection down: {error}");
        }
    }

    /// Stops: a connected guest is disconnected after its requests in flight, and the socket file is removed.
    /// An error is the panic of the export's thread.
    pub(crate) fn stop(&self) -> thread::Result<()> {
        self.ask_to_stop();
        let thread = lock(&self.thread).take();
        thread.map_or(Ok(()), thread::JoinHandle::join)
    }
}

/// Where front ends come in.
#[derive(Debug)]
pub(crate) enum Door {
    /// One front end after another; the socket file goes with the listener.
    Listener {
        listener: UnixListener,
        /// `None` for an inherited listener.
        _file: Option<SocketFile>,
    },
    /// One connection and no more.
    Connection(UnixStream),
}

impl Door {
    /// Opens the socket. When this returns, front ends can connect; they are served once the export is started.
    pub(crate) fn open(source: &SocketSource) -> Result<Self, ExportError> {
        match source {
            SocketSource::Path(path) => listen(path),
            SocketSource::Fd(fd) => inherit(*fd).map_err(|source| ExportError::BadFd { fd: *fd, source }),
        }
    }
}

fn listen(path: &Path) -> Result<Door, ExportError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(ExportError::NoFolder { folder: folder.to_owned() });
    }
    if path.as_os_str().len() > MAX_PATH_LEN {
        return Err(ExportError::PathTooLong { path: path.to_owned() });
    }
    clear_stale_socket(path)?;
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => ExportError::SocketInUse { path: path.to_owned() },
        _ => ExportError::Listen { path: path.to_owned(), source },
    };
    let (listener, file) = listen_at(path, None).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(Door::Listener { listener, _file: Some(file) })
}

/// Removes a socket that nobody listens on; refuses anything else that is in the way.
fn clear_stale_socket(path: &Path) -> Result<(), ExportError> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(ExportError::NotASocket { path: path.to_owned() });
    }
    let failed = |source| ExportError::Listen { path: path.to_owned(), source };
    if is_listened_on(path).map_err(failed)? {
        return Err(ExportError::SocketInUse { path: path.to_owned() });
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Fails unless `fd` is a descriptor that an export can take over.
pub(crate) fn check_inherited(fd: RawFd) -> Result<(), ExportError> {
    inherited_listens(fd).map(drop).map_err(|source| ExportError::BadFd { fd, source })
}

/// Whether the inherited socket listens, or else is a connection.
fn inherited_listens(fd: RawFd) -> io::Result<bool> {
    let option = |name| -> io::Result<libc::c_int> {
        let mut value: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: `value` and `len` live until the call returns, and `len` is the size of `value`.
        let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len) };
        if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
    };
    if option(libc::SO_DOMAIN)? != libc::AF_UNIX || option(libc::SO_TYPE)? != libc::SOCK_STREAM {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a unix stream socket"));
    }
    Ok(option(libc::SO_ACCEPTCONN)? != 0)
}

/// Takes over a descriptor that another program opened.
fn inherit(fd: RawFd) -> io::Result<Door> {
    let listens = inherited_listens(fd)?;
    // SAFETY: the descriptor is open, as the call above has shown, and was passed to this program to own.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    set_close_on_exec(&owned)?;
    if listens {
        let listener = UnixListener::from(owned);
        listener.set_nonblocking(true)?;
        return Ok(Door::Listener { listener, _file: None });
    }
    let stream = UnixStream::from(owned);
    stream.set_nonblocking(false)?;
    Ok(Door::Connection(stream))
}

fn set_close_on_exec(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: F_SETFD touches no memory.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The export's thread: one front end after another.
fn serve(door: &Door, served: &Served, shared: &Shared) {
    match door {
        Door::Connection(stream) => match stream.try_clone() {
            Ok(stream) => connected(stream, None, served, shared),
            Err(error) => log::error!("{}: {error}", served.name),
        },
        Door::Listener { listener, .. } => {
            while let Some(stream) = next_connection(listener, served, shared) {
                connected(stream, Some(listener), served, shared);
                let pause = shared.refresh.as_ref().map_or(Duration::ZERO, RefreshOnConnect::pause);
                if !pause.is_zero() {
                    wait_readable([Some(shared.wake.as_raw_fd())], pause.as_millis() as libc::c_int);
                }
            }
        }
    }
}

/// Waits for a front end; `None` when the export must stop.
fn next_connection(listener: &UnixListener, served: &Served, shared: &Shared) -> Option<UnixStream> {
    loop {
        if shared.stopping.load(Ordering::Acquire) {
            return None;
        }
        match listener.accept() {
            Ok((stream, _)) => return Some(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_readable([Some(listener.as_raw_fd()), Some(shared.wake.as_raw_fd()), None], -1);
            }
            Err(error) => {
                // Out of descriptors, or the front end has gone already: try again, but do not spin.
                log::warn!("{}: cannot accept a connection: {error}", served.name);
                wait_readable([Some(shared.wake.as_raw_fd()), None, None], 500);
            }
        }
    }
}

/// Serves one connection from its beginning to its end.
fn connected(stream: UnixStream, listener: Option<&UnixListener>, served: &Served, shared: &Shared) {
    let gate = lock(&shared.gate);
    shared.connected.store(true, Ordering::Release);
    drop(gate);
    log::info!("{}: front end connected", served.name);
    let (level, how) = match serve_messages(stream, listener, served, shared) {
        Ok(()) => (log::Level::Info, "disconnected".to_owned()),
        Err(SessionError::NotRefreshed(error)) => (error.level(), error.to_string()),
        Err(error) => (log::Level::Info, format!("disconnected: {error}")),
    };
    *lock(&shared.stream) = None;
    shared.connected.store(false, Ordering::Release);
    log::log!(level, "{}: front end {how}", served.name);
}

/// Why a session ended, unless the front end simply went.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("{0}")]
    Message(VhostError),
    #[error("a queue has failed")]
    QueueFailed,
    #[error(transparent)]
    NotRefreshed(#[from] NotRefreshed),
    #[error(transparent)]
    Queue(#[from] crate::session::QueueError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn serve_messages(
    stream: UnixStream,
    listener: Option<&UnixListener>,
    served: &Served,
    shared: &Shared,
) -> Result<(), SessionError> {
    stream.set_nonblocking(false)?;
    *lock(&shared.stream) = Some(stream.try_clone()?);
    let fd = stream.try_clone()?;
    let failure = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
    let session = Arc::new(Mutex::new(Session::new(served.clone(), Arc::clone(&failure))?));
    let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&session));
    let mut waiting = listener.map(AsRawFd::as_raw_fd);
    let mut refresh = shared.refresh.as_ref();
    let result = loop {
        if shared.stopping.load(Ordering::Acquire) {
            break Ok(());
        }
        if failure.read().is_ok() {
            break Err(SessionError::QueueFailed);
        }
        let ready = wait_any(fd.as_raw_fd(), &failure, shared, waiting);
        if ready.second_front_end {
            log::warn!("{}: another front end waits until this one disconnects", served.name);
            waiting = None; // said once
        }
        if !ready.message {
            continue;
        }
        if refresh.is_some() && !has_bytes(&fd)? {
            break Ok(()); // it has gone without a word
        }
        // Before the first message is carried out, whatever it is: what it is answered may depend on the volume.
        if let Some(refresh) = refresh.take()
            && let Err(error) = refresh.run()
        {
            break Err(error.into());
        }
        match handler.handle_request() {
            Ok(()) => {}
            Err(VhostError::Disconnected) => break Ok(()),
            Err(VhostError::SocketBroken(error)) if error.kind() == io::ErrorKind::ConnectionReset => break Ok(()),
            Err(error) => break Err(SessionError::Message(error)),
        }
    };
    lock(&session).end();
    result
}

struct Ready {
    message: bool,
    second_front_end: bool,
}

fn wait_any(message: RawFd, failure: &EventFd, shared: &Shared, second: Option<RawFd>) -> Ready {
    let all = [Some(message), Some(failure.as_raw_fd()), Some(shared.wake.as_raw_fd()), second];
    let [message, _, _, second_front_end] = wait_readable(all, -1);
    Ready { message, second_front_end }
}

/// Waits until one of the descriptors can be read or has ended; says which.
fn wait_readable<const N: usize>(fds: [Option<RawFd>; N], timeout_ms: libc::c_int) -> [bool; N] {
    let mut polled = fds.map(|fd| libc::pollfd { fd: fd.unwrap_or(-1), events: libc::POLLIN, revents: 0 });
    // SAFETY: the array lives until the call returns and has N elements.
    unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, timeout_ms) };
    polled.map(|fd| fd.revents != 0)
}
