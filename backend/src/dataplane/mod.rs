//! The way of the data: one thread and one io_uring per queue, straight between guest memory and the container.
//!
//! `worker` runs a queue; `task` is one guest request on its way through plan, transfers and completion; `start` makes transfers
//! of a plan; `transfer` is
//! one operation on the file, `transfers` are all of a queue, `merged` those that carry several; `buffers` are guest and
//! bounce memory; `ring` is io_uring; `wake` lets other threads reach a worker. Invariant: when a worker has ended, no
//! operation of its queue is under way. Does not: speak vhost-user.

mod buffers;
mod merged;
mod polling;
mod ring;
mod start;
mod task;
mod transfer;
mod transfers;
mod wake;
mod worker;

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Wake;
use std::{io, thread};

use pitstop_format::{Container, FileDisk, IoAlignment, Volume};
use vmm_sys_util::eventfd::EventFd;

use crate::config::Access;
use crate::jobs::Activity;
use crate::session::memory::GuestMap;
use crate::trouble::Trouble;
use crate::virtio::ring::SplitRing;
use wake::Signal;
use worker::Worker;

/// The container's file as the queues use it.
#[derive(Debug)]
pub(crate) struct DataDisk {
    disk: Arc<FileDisk>,
    /// The same file through the page cache: for requests finer than `alignment.offset`, which direct I/O cannot do.
    /// The kernel keeps both views coherent, and a sync of either covers both.
    buffered: Option<File>,
    alignment: IoAlignment,
    /// Where queues tell that their guests are active.
    activity: Arc<Activity>,
}

impl DataDisk {
    /// Prepares `disk` for the queues.
    pub(crate) fn new(disk: Arc<FileDisk>) -> io::Result<Self> {
        let alignment = disk.io_alignment();
        let buffered = if u64::from(alignment.offset) > pitstop_format::MIN_IO_LEN {
            let path = format!("/proc/self/fd/{}", disk.file().as_raw_fd());
            Some(File::options().read(true).write(true).open(&path).or_else(|_| File::open(&path))?)
        } else {
            None
        };
        Ok(DataDisk { disk, buffered, alignment, activity: Arc::default() })
    }

    /// Whether guests are active.
    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }
}

/// When a write may complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Once it is written; the guest flushes.
    OnFlush,
    /// Once it is durable.
    EveryWrite,
}

/// The descriptor by which the guest is notified; the front end may replace it while the queue runs.
#[derive(Debug, Default)]
pub(crate) struct CallSlot {
    file: Mutex<Option<Arc<File>>>,
    replaced: AtomicBool,
}

impl CallSlot {
    /// Replaces the descriptor.
    pub(crate) fn set(&self, file: Option<File>) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file.map(Arc::new);
        self.replaced.store(true, Ordering::Release);
    }

    fn get(&self) -> Option<Arc<File>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the descriptor was replaced since the last call.
    fn take_replaced(&self) -> bool {
        self.replaced.swap(false, Ordering::AcqRel)
    }
}

/// Everything that a queue's thread needs.
pub(crate) struct QueueSetup {
    /// Name for the thread.
    pub(crate) name: String,
    /// The ring, at the place where it continues.
    pub(crate) ring: SplitRing,
    /// The guest's memory.
    pub(crate) map: Arc<GuestMap>,
    /// Signalled by the guest; must be an eventfd.
    pub(crate) kick: OwnedFd,
    /// Signals the guest.
    pub(crate) call: Arc<CallSlot>,
    /// The container.
    pub(crate) container: Container,
    /// Its file.
    pub(crate) disk: Arc<DataDisk>,
    /// The volume that is served.
    pub(crate) volume: Volume,
    /// Whether the guest may write.
    pub(crate) access: Access,
    /// When a write may complete.
    pub(crate) durability: Durability,
    /// What the storage does to the export's requests.
    pub(crate) trouble: Arc<Trouble>,
    /// Told when the queue fails and the session must end.
    pub(crate) failure: Arc<EventFd>,
}

/// A running queue.
#[derive(Debug)]
pub(crate) struct QueueHandle {
    signal: Arc<Signal>,
    thread: thread::JoinHandle<u16>,
}

impl QueueHandle {
    /// Starts a queue's thread. Fails if the thread or its ring cannot be made.
    pub(crate) fn start(setup: QueueSetup) -> io::Result<Self> {
        let signal = Signal::new()?;
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let its_signal = Arc::clone(&signal);
        let body = move || match Worker::new(setup, its_signal) {
            Ok(mut worker) => {
                drop(ready.send(Ok(())));
                worker.run()
            }
            Err(error) => {
                drop(ready.send(Err(error)));
                0
            }
        };
        let thread = thread::Builder::new().name("pit-queue".to_owned()).spawn(body)?;
        match started.recv() {
            Ok(Ok(())) => Ok(QueueHandle { signal, thread }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("queue thread ended at its start")),
        }
    }

    /// Asks the queue to stop; it first completes the requests that it has taken.
    pub(crate) fn ask_to_stop(&self) {
        self.signal.stop();
    }

    /// Makes the queue look at what changed: here, the descriptor by which it notifies.
    pub(crate) fn wake(&self) {
        self.signal.wake_by_ref();
    }

    /// Waits until the queue has stopped; returns the index of the next available head.
    pub(crate) fn join(self) -> u16 {
        self.signal.stop();
        match self.thread.join() {
            Ok(next_avail) => next_avail,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Makes a descriptor non-blocking if it is an eventfd; fails if it is anything else, which could block or spin a queue.
pub(crate) fn prepare_eventfd(file: &File) -> io::Result<()> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    if link.as_os_str() != "anon_inode:[eventfd]" {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "descriptor is not an eventfd"));
    }
    // SAFETY: F_GETFL and F_SETFL on an open descriptor touch no memory.
    let result = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        if flags < 0 { flags } else { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A second descriptor of the same file, closed when its owner is dropped.
pub(crate) fn duplicate(fd: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC touches no memory, and its result is a new descriptor that nobody else owns.
    unsafe {
        let new = libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0);
        if new < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(new)) }
    }
}

#[cfg(test)]
mod verify_tests;
