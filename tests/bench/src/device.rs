//! A vhost-user-blk device as the client sees it: queues and memory for data.
//!
//! Does not: know what load is put on it.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

use crate::Result;

/// Memory shared with the backend, at an address that stays.
struct SharedMemory {
    address: *mut u8,
    len: usize,
}

impl SharedMemory {
    fn new(len: usize) -> Result<(Self, std::fs::File)> {
        let file = tempfile::tempfile_in("/dev/shm")?;
        file.set_len(len as u64)?;
        let (read_write, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), len, read_write, shared, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok((SharedMemory { address: address.cast(), len }, file))
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and its owner ends.
        unsafe { libc::munmap(self.address.cast(), self.len) };
    }
}

/// What the client remembers of a request under way: its slot.
pub(crate) type Slot = u32;

/// One queue and what it signals with.
pub(crate) struct Queue {
    pub(crate) ring: VirtioBlkQueue<'static, Slot>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    /// How often the backend was kicked.
    pub(crate) kicks: u64,
}

impl Queue {
    /// Tells the backend of new requests, if it wants to be told.
    pub(crate) fn kick_if_wanted(&mut self) -> Result<()> {
        if self.ring.avail_notif_needed() {
            self.kicks += 1;
            self.kick.notify()?;
        }
        Ok(())
    }
}

/// A connected device.
pub(crate) struct Device {
    // Dropped first: the queues lie in the transport's memory.
    pub(crate) queues: Vec<Queue>,
    _transport: Box<VirtioBlkTransport>,
    memory: SharedMemory,
    slot_len: usize,
    /// Bytes of the disk.
    pub(crate) size: u64,
}

impl Device {
    /// Connects to the backend at `socket` with `queues` queues, and `slots` slots of `slot_len` bytes for data.
    pub(crate) fn connect(socket: &Path, queues: usize, queue_len: u16, slots: usize, slot_len: usize) -> Result<Self> {
        let features = (VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX).bits()
            | (VirtioBlkFeatureFlags::MQ | VirtioBlkFeatureFlags::FLUSH | VirtioBlkFeatureFlags::CONFIG_WCE).bits();
        let path = socket.to_str().ok_or("the socket's path is not UTF-8")?;
        let transport = VhostUser::new(path, features).map_err(|error| format!("cannot connect to {path}: {error}"))?;
        let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
        let size = u64::from(transport.get_config()?.capacity) * 512;
        let rings = VirtioBlkQueue::<Slot>::setup_queues(&mut *transport, queues, queue_len)?;
        let page = 4096;
        let (memory, file) = SharedMemory::new((slots * slot_len).next_multiple_of(page))?;
        transport.map_mem_region(memory.address as usize, memory.len, file.as_raw_fd(), 0)?;
        let queue = |(ring, index)| Queue {
            ring,
            kick: transport.get_submission_notifier(index),
            call: transport.get_completion_fd(index),
            kicks: 0,
        };
        let queues = rings.into_iter().zip(0..).map(queue).collect();
        Ok(Device { queues, _transport: transport, memory, slot_len, size })
    }

    /// The address of a slot's data. Slots are whole and do not overlap.
    pub(crate) fn slot(&self, slot: Slot) -> *mut u8 {
        let at = slot as usize * self.slot_len;
        assert!(at + self.slot_len <= self.memory.len);
        // SAFETY: within the mapping, as just asserted.
        unsafe { self.memory.address.add(at) }
    }

    /// The bytes of a slot of which no request is under way.
    pub(crate) fn slot_bytes(&mut self, slot: Slot) -> &mut [u8] {
        // SAFETY: `slot` is within the mapping, which lives as long as `self` and is borrowed with it; the caller says
        // that the backend does not use it now.
        unsafe { std::slice::from_raw_parts_mut(self.slot(slot), self.slot_len) }
    }

    /// Sleeps until the backend has signalled some queue.
    pub(crate) fn wait(&self) -> Result<()> {
        let fd = |queue: &Queue| libc::pollfd { fd: queue.call.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut fds: Vec<_> = self.queues.iter().map(fd).collect();
        // SAFETY: `fds` is a live array of that length.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, PATIENCE_MS) };
        match ready {
            0 => return Err(format!("the backend has not answered for {PATIENCE_MS} ms").into()),
            ready if ready < 0 => return Err(std::io::Error::last_os_error().into()),
            _ => {}
        }
        for (queue, fd) in self.queues.iter().zip(&fds) {
            if fd.revents != 0 {
                queue.call.read()?;
            }
        }
        Ok(())
    }
}

/// Longest time without any completion.
const PATIENCE_MS: i32 = 60_000;
