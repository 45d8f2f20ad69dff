//! How other threads reach a queue's thread: an eventfd that its ring polls, and flags that say why.
//!
//! The signal is also the waker that planning registers, so it may be used from any thread, also after the queue has
//! ended. Does not: carry data.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Reaches one queue's thread.
#[derive(Debug)]
pub(crate) struct Signal {
    event: EventFd,
    retry: AtomicBool,
    stop: AtomicBool,
}

impl Signal {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        Ok(Arc::new(Signal { event, retry: AtomicBool::new(false), stop: AtomicBool::new(false) }))
    }

    /// Asks the queue to complete what it has taken and to end.
    pub(crate) fn stop(&self) {
        if !self.stop.swap(true, Ordering::AcqRel) {
            self.ring_bell();
        }
    }

    /// Whether the queue is asked to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Whether something that was waited for has happened since the last call.
    pub(crate) fn take_retry(&self) -> bool {
        self.retry.load(Ordering::Relaxed) && self.retry.swap(false, Ordering::AcqRel)
    }

    /// A waker that makes the queue try again what had to wait.
    pub(crate) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }

    /// Resets the bell after it was heard.
    pub(crate) fn silence(&self) {
        // Fails only if the bell has not rung, and then there is nothing to reset.
        if let Err(error) = self.event.read() {
            log::debug!("cannot reset a queue's bell: {error}");
        }
    }

    fn ring_bell(&self) {
        // Fails only if the counter is full, and then the bell rings already.
        if let Err(error) = self.event.write(1) {
            log::debug!("cannot wake a queue: {error}");
        }
    }
}

impl AsRawFd for Signal {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.retry.swap(true, Ordering::AcqRel) {
            self.ring_bell();
        }
    }
}
