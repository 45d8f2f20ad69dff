//! One queue of a session as the front end configures it, and its thread while it runs.
//!
//! Invariant: size, base and addresses change only while no thread runs; the place where a stopped queue continues is
//! always in its vring state. Ring addresses are kept as the front end gave them and translated at each start, so a new
//! memory table needs nothing else.

use std::fs::File;
use std::sync::Arc;

use vhost_user_backend::{VringRwLock, VringT};
use virtio_queue::Error as VirtQueueError;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::Served;
use super::memory::GuestMap;
use crate::dataplane::{CallSlot, Durability, QueueHandle, QueueSetup, duplicate};
use crate::virtio::ring::{RingError, SplitRing};

/// Most descriptors in a queue.
const MAX_QUEUE_LEN: u16 = 1024;

/// Why a queue cannot be configured or started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueueError {
    /// A size that is not a power of two up to [`MAX_QUEUE_LEN`].
    #[error("a queue of {size} descriptors is not possible; use a power of two up to {MAX_QUEUE_LEN}")]
    BadSize {
        /// The size asked for.
        size: u32,
    },
    /// A base that does not fit into 16 bits.
    #[error("vring base {base} is not an index of a split ring")]
    BadBase {
        /// The base asked for.
        base: u32,
    },
    /// A ring address in no memory region.
    #[error("ring address {user_addr:#x} is in no memory region")]
    NoMemory {
        /// Address in the front end.
        user_addr: u64,
    },
    /// The vring types refuse.
    #[error("vring: {0}")]
    Vring(#[from] VirtQueueError),
    /// The ring is impossible.
    #[error("vring: {0}")]
    Ring(#[from] RingError),
    /// Thread, ring or descriptor could not be made.
    #[error("cannot start a queue: {0}")]
    Start(#[from] std::io::Error),
}

/// Where the parts of a ring are, in the front end's own address space.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RingAddresses {
    pub(crate) descriptor: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// What the session gives a queue to run with.
pub(crate) struct Run<'a> {
    pub(crate) served: &'a Served,
    pub(crate) map: &'a Arc<GuestMap>,
    pub(crate) durability: Durability,
    pub(crate) event_idx: bool,
    pub(crate) failure: &'a Arc<EventFd>,
}

/// A queue, running or not.
pub(crate) struct Queue {
    /// Size, base, kick and enabled state.
    vring: VringRwLock,
    sized: bool,
    addresses: Option<RingAddresses>,
    call: Arc<CallSlot>,
    running: Option<QueueHandle>,
}

impl Queue {
    pub(crate) fn new() -> Result<Self, QueueError> {
        // The vring's own view of guest memory is not used: the queue's thread holds the session's map.
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::default());
        Ok(Queue {
            vring: VringRwLock::new(memory, MAX_QUEUE_LEN)?,
            sized: false,
            addresses: None,
            call: Arc::default(),
            running: None,
        })
    }

    /// Replaces the descriptor by which the guest is notified; the queue goes on. The new one is signalled once: an
    /// answer given while there was none would stay unannounced.
    pub(crate) fn set_call(&self, file: Option<File>) {
        self.call.set(file);
        if let Some(running) = &self.running {
            running.wake();
        }
    }

    pub(crate) fn next_avail(&self) -> u16 {
        self.vring.queue_next_avail()
    }

    pub(crate) fn ask_to_stop(&self) {
        if let Some(running) = &self.running {
            running.ask_to_stop();
        }
    }

    /// Stops the thread, if it runs, after the requests it has taken.
    pub(crate) fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            self.vring.set_queue_next_avail(running.join());
        }
    }

    /// Back to the state of a fresh session. The queue must be stopped.
    pub(crate) fn reset(&mut self) {
        self.forget_kick();
        self.call.set(None);
        self.set_enabled(false);
        self.vring.set_queue_next_avail(0);
        self.addresses = None;
        self.sized = false;
    }

    pub(crate) fn set_size(&mut self, size: u32) -> Result<(), QueueError> {
        let bad = QueueError::BadSize { size };
        let Ok(len) = u16::try_from(size) else { return Err(bad) };
        if !len.is_power_of_two() || len > MAX_QUEUE_LEN {
            return Err(bad);
        }
        self.vring.set_queue_size(len);
        self.sized = true;
        Ok(())
    }

    pub(crate) fn set_base(&mut self, base: u32) -> Result<(), QueueError> {
        let base = u16::try_from(base).map_err(|_| QueueError::BadBase { base })?;
        self.vring.set_queue_next_avail(base);
        Ok(())
    }

    pub(crate) fn set_addresses(&mut self, addresses: RingAddresses) {
        self.addresses = Some(addresses);
    }

    /// From now on the ring is started: it runs when it is also enabled.
    pub(crate) fn set_kick(&mut self, kick: File) {
        self.vring.set_kick(Some(kick));
        self.vring.set_queue_ready(true);
    }

    /// The ring is stopped until the next kick descriptor comes.
    pub(crate) fn forget_kick(&mut self) {
        self.vring.set_queue_ready(false);
        self.vring.set_kick(None);
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.vring.set_enabled(enabled);
    }

    /// Starts the thread if everything that it needs is there.
    pub(crate) fn start_if_ready(&mut self, index: usize, run: &Run<'_>) -> Result<(), QueueError> {
        let Some(addresses) = self.addresses else { return Ok(()) };
        let no_memory = run.map.is_empty();
        if self.running.is_some() || !self.sized || no_memory || !self.vring.get_ref().is_enabled() {
            return Ok(());
        }
        let kick = match self.vring.get_ref().get_kick() {
            Some(kick) => duplicate(kick)?,
            None => return Ok(()),
        };
        let translate = |user_addr| run.map.guest_addr_of(user_addr).ok_or(QueueError::NoMemory { user_addr });
        let (descriptor, available, used) =
            (translate(addresses.descriptor)?, translate(addresses.available)?, translate(addresses.used)?);
        self.vring.set_queue_info(descriptor, available, used)?;
        self.vring.set_queue_event_idx(run.event_idx);
        let state = self.vring.get_ref().get_queue().state();
        let ring = SplitRing::new(&state, run.map.memory())?;
        let setup = QueueSetup {
            name: format!("{} queue {index}", run.served.name),
            ring,
            map: Arc::clone(run.map),
            kick,
            call: Arc::clone(&self.call),
            container: run.served.container.clone(),
            disk: Arc::clone(&run.served.disk),
            volume: run.served.volume.clone(),
            access: run.served.access,
            durability: run.durability,
            trouble: Arc::clone(&run.served.trouble),
            failure: Arc::clone(run.failure),
        };
        self.running = Some(QueueHandle::start(setup)?);
        Ok(())
    }
}
