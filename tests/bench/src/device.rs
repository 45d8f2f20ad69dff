//! A vhost-user-blk device as the client sees it: queues and memory for data; and what a load asks of any disk.
//!
//! Does not: know what load is put on it.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

use crate::Result;

/// What the client remembers of a request under way: its slot.
pub(crate) type Slot = u32;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
}

/// A disk that a load can be put on. Each request has a slot of its own for its data until it has ended.
pub(crate) trait Target {
    /// Bytes of the disk.
    fn size(&self) -> u64;
    /// The bytes of a slot of which no request is under way.
    fn slot_bytes(&mut self, slot: Slot) -> &mut [u8];
    /// Puts a request for the `len` bytes from `offset` on into a queue; for no more than a slot has.
    fn send(&mut self, queue: usize, slot: Slot, kind: Kind, offset: u64, len: usize) -> Result<()>;
    /// Tells the other side of new requests in a queue, if it wants to be told.
    fn kick_if_wanted(&mut self, queue: usize) -> Result<()>;
    /// A request that has ended, and 0 or the negative number of its error.
    fn take(&mut self, queue: usize) -> Option<(Slot, i32)>;
    /// Sleeps until some request has ended; false if one had ended before.
    fn sleep(&mut self) -> Result<bool>;
    /// How often the other side was told.
    fn kicks(&self) -> u64;
}

/// Memory shared with the backend, at an address that stays.
pub(crate) struct SharedMemory {
    address: *mut u8,
    len: usize,
}

impl SharedMemory {
    /// `len` bytes of zeros, and the file behind them.
    pub(crate) fn new(len: usize) -> Result<(Self, std::fs::File)> {
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

    /// The address of a slot's data. Slots are whole and do not overlap.
    pub(crate) fn slot(&self, slot: Slot, slot_len: usize) -> *mut u8 {
        let at = slot as usize * slot_len;
        assert!(at + slot_len <= self.len);
        // SAFETY: within the mapping, as just asserted.
        unsafe { self.address.add(at) }
    }

    /// The bytes of a slot.
    ///
    /// # Safety
    /// Nobody else uses them for as long.
    pub(crate) unsafe fn slot_bytes(&mut self, slot: Slot, slot_len: usize) -> &mut [u8] {
        // SAFETY: `slot` is within the mapping, which lives as long as `self`; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.slot(slot, slot_len), slot_len) }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and its owner ends.
        unsafe { libc::munmap(self.address.cast(), self.len) };
    }
}

/// One queue and what it signals with.
struct Queue {
    ring: VirtioBlkQueue<'static, Slot>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    /// How often the backend was kicked.
    kicks: u64,
}

/// A connected device.
pub(crate) struct Device {
    // Dropped first: the queues lie in the transport's memory.
    queues: Vec<Queue>,
    _transport: Box<VirtioBlkTransport>,
    memory: SharedMemory,
    slot_len: usize,
    size: u64,
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
}

impl Target for Device {
    fn size(&self) -> u64 {
        self.size
    }

    fn slot_bytes(&mut self, slot: Slot) -> &mut [u8] {
        // SAFETY: the backend does not use the slot's bytes now.
        unsafe { self.memory.slot_bytes(slot, self.slot_len) }
    }

    fn send(&mut self, queue: usize, slot: Slot, kind: Kind, offset: u64, len: usize) -> Result<()> {
        assert!(len <= self.slot_len);
        let data = self.memory.slot(slot, self.slot_len);
        let ring = &mut self.queues[queue].ring;
        match kind {
            // SAFETY: the slot's bytes are in the shared mapping, and no other request uses them until this one has
            // ended.
            Kind::Read => unsafe { ring.read_raw(offset, data, len, slot) },
            // SAFETY: as for a read.
            Kind::Write => unsafe { ring.write_raw(offset, data.cast_const(), len, slot) },
            Kind::Flush => ring.flush(slot),
        }?;
        Ok(())
    }

    fn kick_if_wanted(&mut self, queue: usize) -> Result<()> {
        let queue = &mut self.queues[queue];
        if queue.ring.avail_notif_needed() {
            queue.kicks += 1;
            queue.kick.notify()?;
        }
        Ok(())
    }

    fn take(&mut self, queue: usize) -> Option<(Slot, i32)> {
        let completion = self.queues[queue].ring.completions().next()?;
        Some((completion.context, completion.ret))
    }

    fn sleep(&mut self) -> Result<bool> {
        let mut completed = false;
        for queue in &mut self.queues {
            queue.ring.set_used_notif_enabled(true);
            completed |= queue.ring.completions().has_next();
        }
        if !completed {
            let calls: Vec<&EventFd> = self.queues.iter().map(|queue| &*queue.call).collect();
            wait_for(&calls)?;
        }
        for queue in &mut self.queues {
            queue.ring.set_used_notif_enabled(false);
        }
        Ok(!completed)
    }

    fn kicks(&self) -> u64 {
        self.queues.iter().map(|queue| queue.kicks).sum()
    }
}

/// Sleeps until one of `events` is signalled, and takes the signals.
pub(crate) fn wait_for<T: AsRawFd>(events: &[&T]) -> Result<()> {
    let fd = |event: &&T| libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut fds: Vec<_> = events.iter().map(fd).collect();
    // SAFETY: `fds` is a live array of that length.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, PATIENCE_MS) };
    match ready {
        0 => return Err(format!("the backend has not answered for {PATIENCE_MS} ms").into()),
        ready if ready < 0 => return Err(std::io::Error::last_os_error().into()),
        _ => {}
    }
    for fd in fds.iter().filter(|fd| fd.revents != 0) {
        // SAFETY: the descriptor is that of an event in `events`, which is open.
        rustix::io::read(unsafe { BorrowedFd::borrow_raw(fd.fd) }, &mut [0; 8])?;
    }
    Ok(())
}

/// Longest time without any completion.
const PATIENCE_MS: i32 = 60_000;
