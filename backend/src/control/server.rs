//! The control server: accepts clients, passes the daemon's events on, ends in good order.
//!
//! Invariant: nothing a client does or leaves undone blocks accepting, other clients, or the end of the daemon.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::json;

use super::commands::Context;
use super::hub::{CLIENT_LIMIT, Full, Hub};
use super::listen::{self, ListenError};
use super::protocol::Failure;
use super::session::{self, Link};
use super::target::Target;
use crate::daemon::Event;
use crate::socket::SocketFile;
use crate::trouble::{Action, Operation};

/// How long clients have to take their last messages when the server ends.
const LAST_WORDS_PATIENCE: Duration = Duration::from_secs(1);
/// How often the forwarder of events looks whether the server ends while nothing happens; the daemon's event of its
/// end comes before, except when it was asked to end before the server started.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often it looks once the daemon is shutting down.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// Pause after a failed accept, for instance without free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A running control server. Dropping it ends it.
pub(crate) struct ControlServer {
    context: Arc<Context>,
    target: Arc<dyn Target>,
    hub: Arc<Hub>,
    stopping: Arc<AtomicBool>,
    /// The listening socket again, to wake the accepting thread.
    waker: UnixStream,
    acceptor: Option<JoinHandle<()>>,
    forwarder: Option<JoinHandle<()>>,
    /// Removes the socket's file.
    file: Option<SocketFile>,
}

impl std::fmt::Debug for ControlServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlServer").field("file", &self.file).finish_non_exhaustive()
    }
}

impl ControlServer {
    /// Listens at `path` and serves `target`. When this returns, clients can connect.
    pub(crate) fn start(path: &Path, target: Arc<dyn Target>) -> Result<Self, ListenError> {
        let events = target.subscribe();
        let (listener, file) = listen::listen(path)?;
        let waker: OwnedFd = listener.try_clone().map_err(ListenError::Thread)?.into();
        let hub = Arc::new(Hub::default());
        let context = Arc::new(Context::new(Arc::clone(&target), Arc::clone(&hub)));
        let stopping = Arc::new(AtomicBool::new(false));
        let mut server = ControlServer {
            context: Arc::clone(&context),
            target,
            hub: Arc::clone(&hub),
            stopping: Arc::clone(&stopping),
            waker: UnixStream::from(waker),
            acceptor: None,
            forwarder: None,
            file: Some(file),
        };
        let accepting =
            Acceptor { context: Arc::clone(&context), hub: Arc::clone(&hub), stopping: Arc::clone(&stopping) };
        let acceptor = thread::Builder::new().name("qmp-accept".to_owned()).spawn(move || accepting.run(&listener));
        server.acceptor = Some(acceptor.map_err(ListenError::Thread)?);
        let forwarding = Forwarder { context, hub, stopping };
        let forwarder = thread::Builder::new().name("qmp-events".to_owned()).spawn(move || forwarding.run(&events));
        server.forwarder = Some(forwarder.map_err(ListenError::Thread)?);
        Ok(server)
    }

    /// Waits for the commands under way and refuses later ones. Events still flow. Call this before the exports are
    /// stopped and the container is closed.
    pub(crate) fn refuse_commands(&self) {
        self.context.close_gate();
    }

    /// Sends what waits, the daemon's last events included, ends every session and removes the socket.
    pub(crate) fn stop(self) {
        drop(self);
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.context.close_gate();
        self.target.request_shutdown(); // wakes the forwarder, if nobody has yet
        self.stopping.store(true, Ordering::Release);
        if let Err(error) = self.waker.shutdown(Shutdown::Both) {
            log::warn!("cannot shut down the control socket: {error}");
        }
        for thread in [self.acceptor.take(), self.forwarder.take()].into_iter().flatten() {
            if thread.join().is_err() {
                log::error!("a thread of the control server panicked");
            }
        }
        self.hub.close(LAST_WORDS_PATIENCE);
        self.file = None;
    }
}

/// The thread that accepts clients.
struct Acceptor {
    context: Arc<Context>,
    hub: Arc<Hub>,
    stopping: Arc<AtomicBool>,
}

impl Acceptor {
    fn run(self, listener: &UnixListener) {
        let mut number = 0;
        loop {
            let accepted = listener.accept();
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            match accepted {
                Ok((stream, _)) => {
                    number += 1;
                    self.admit(number, stream);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::warn!("accepting a control client failed: {error}");
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    fn admit(&self, number: u64, stream: UnixStream) {
        let link = Arc::new(Link::new(number, stream));
        match self.hub.add(&link) {
            Ok(()) => {}
            Err(Full::Ending) => return,
            Err(Full::TooManyClients) => {
                log::warn!("refusing control client {number}: {CLIENT_LIMIT} are connected");
                link.refuse(Failure::generic(format!(
                    "{CLIENT_LIMIT} control clients are connected, which is the limit; close one and connect again"
                )));
                return;
            }
        }
        if let Err(error) = session::spawn(link, Arc::clone(&self.context), Arc::clone(&self.hub)) {
            log::warn!("cannot serve control client {number}: {error}");
        }
    }
}

/// The thread that passes the daemon's events on.
struct Forwarder {
    context: Arc<Context>,
    hub: Arc<Hub>,
    stopping: Arc<AtomicBool>,
}

impl Forwarder {
    fn run(self, events: &Receiver<Event>) {
        let mut interval = IDLE_CHECK_INTERVAL;
        loop {
            // Read before the wait: the daemon's last events are sent before `stopping` is set, so none is missed.
            let stopping = self.stopping.load(Ordering::Acquire);
            match events.recv_timeout(interval) {
                Ok(event) => {
                    if event == Event::Shutdown {
                        interval = STOP_CHECK_INTERVAL;
                    }
                    self.forward(event);
                }
                Err(RecvTimeoutError::Timeout) if !stopping => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn forward(&self, event: Event) {
        match event {
            Event::ExportAdded { id } => self.hub.broadcast("X_PITSTOP_BLOCK_EXPORT_ADDED", json!({"id": id})),
            Event::ExportDeleted { id } => self.hub.broadcast("BLOCK_EXPORT_DELETED", json!({"id": id})),
            Event::IoError { id, volume, operation, action, no_space, reason } => {
                let data = json!({
                    "device": id,
                    "node-name": volume,
                    "operation": match operation {
                        Operation::Read => "read",
                        Operation::Write => "write",
                    },
                    "action": match action {
                        Action::Report => "report",
                        Action::Stop => "stop",
                    },
                    "nospace": no_space,
                    "reason": reason,
                });
                self.hub.broadcast("BLOCK_IO_ERROR", data);
            }
            Event::ExportResumed { id } => self.hub.broadcast("X_PITSTOP_BLOCK_EXPORT_RESUMED", json!({"id": id})),
            Event::VolumeRefreshed { volume, source } => {
                self.hub.broadcast("X_PITSTOP_VOLUME_REFRESHED", json!({"name": volume, "source": source}));
            }
            Event::RefreshFailed { id, volume, source, reason, refusals } => {
                let data = json!({"id": id, "node-name": volume, "source": source, "reason": reason,
                    "refusals": refusals});
                self.hub.broadcast("X_PITSTOP_REFRESH_FAILED", data);
            }
            Event::ContainerFailed { reason } => {
                self.hub.broadcast("X_PITSTOP_CONTAINER_FAILED", json!({"reason": reason}));
            }
            Event::CacheWarning { name, used_bytes, limit_bytes } => {
                let data = json!({"name": name, "used-bytes": used_bytes, "limit-bytes": limit_bytes});
                self.hub.broadcast("X_PITSTOP_CACHE_WARNING", data);
            }
            Event::SpaceWarning { mark, space } => {
                let (percent, bytes) = (space.used_percent, space.available_bytes);
                let data = json!({"mark": mark, "used-percent": percent, "available-bytes": bytes});
                self.hub.broadcast("X_PITSTOP_SPACE_WARNING", data);
            }
            Event::SpaceOk { space } => {
                let data = json!({"used-percent": space.used_percent, "available-bytes": space.available_bytes});
                self.hub.broadcast("X_PITSTOP_SPACE_OK", data);
            }
            Event::JobStatusChanged { id, state } => {
                self.hub.broadcast("JOB_STATUS_CHANGE", json!({"id": id, "status": state.word()}));
            }
            Event::Shutdown => {
                let reason = self.context.shutdown_reason();
                self.hub.broadcast("SHUTDOWN", json!({"guest": false, "reason": reason}));
            }
        }
    }
}

#[cfg(test)]
#[path = "tests/server.rs"]
mod tests;
