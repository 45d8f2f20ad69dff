//! A disk whose requests are handed to another thread, which does them on a file: what every backend has to do, and no more.
//!
//! Two queues of slots stand for the ring, two eventfds for kicks and calls, and each side is signalled only while it
//! sleeps. There are no descriptors, no other process's memory and no format: this is what the storage gives to whoever
//! hands requests over as vhost-user does. Does not: serve anybody but this process, or more than one queue.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use vmm_sys_util::eventfd::EventFd;

use crate::Result;
use crate::device::{Kind, SharedMemory, Slot, Target, wait_for};

/// Most requests taken between two submissions, and how long a thread without any polls before it sleeps: as pitstopd.
const TURN: usize = 4;
const POLL_TIME: Duration = Duration::from_micros(48);
/// User data of the poll for kicks.
const KICK: u64 = u64::MAX;

/// A request on its way to the thread.
struct Order {
    slot: Slot,
    kind: Kind,
    offset: u64,
    address: *mut u8,
    len: u32,
}

// SAFETY: whoever holds the order has the slot's bytes for itself until it says that the request has ended.
unsafe impl Send for Order {}

/// One direction of the way.
struct Lane<T> {
    queue: ArrayQueue<T>,
    /// The receiver looks at the queue without being signalled.
    awake: AtomicBool,
    event: EventFd,
}

impl<T> Lane<T> {
    fn new(len: usize) -> Result<Self> {
        Ok(Lane { queue: ArrayQueue::new(len), awake: AtomicBool::new(true), event: EventFd::new(0)? })
    }

    /// After a push: signals a receiver that sleeps; says whether it did.
    fn signal(&self) -> io::Result<bool> {
        fence(Ordering::SeqCst);
        let asleep = !self.awake.swap(true, Ordering::SeqCst);
        if asleep {
            self.event.write(1)?;
        }
        Ok(asleep)
    }

    /// The receiver will sleep until the event; false if there is something to receive, and no signal for it.
    fn falls_asleep(&self) -> bool {
        self.awake.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.queue.is_empty() || self.awake.swap(true, Ordering::SeqCst)
    }

    fn wakes_up(&self) {
        self.awake.store(true, Ordering::SeqCst);
    }
}

/// What both threads know.
struct Shared {
    orders: Lane<Order>,
    ended: Lane<(Slot, i32)>,
    closing: AtomicBool,
}

/// The disk.
pub(crate) struct HandOver {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
    memory: SharedMemory,
    slot_len: usize,
    size: u64,
    kicks: u64,
}

impl HandOver {
    /// Opens `file` for direct I/O, with `slots` slots of `slot_len` bytes for data.
    pub(crate) fn open(file: &Path, slots: usize, slot_len: usize) -> Result<Self> {
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(file);
        let file = opened.map_err(|error| format!("cannot open {}: {error}", file.display()))?;
        let size = file.metadata()?.len();
        let shared =
            Arc::new(Shared { orders: Lane::new(slots)?, ended: Lane::new(slots)?, closing: AtomicBool::new(false) });
        let its_shared = Arc::clone(&shared);
        let body = move || Storage::new(file, its_shared)?.run();
        let thread = std::thread::Builder::new().name("storage".to_owned()).spawn(body)?;
        let (memory, _) = SharedMemory::new(slots * slot_len)?;
        Ok(HandOver { shared, thread: Some(thread), memory, slot_len, size, kicks: 0 })
    }
}

impl Target for HandOver {
    fn size(&self) -> u64 {
        self.size
    }

    fn slot_bytes(&mut self, slot: Slot) -> &mut [u8] {
        // SAFETY: no request uses the slot's bytes now.
        unsafe { self.memory.slot_bytes(slot, self.slot_len) }
    }

    fn send(&mut self, _queue: usize, slot: Slot, kind: Kind, offset: u64, len: usize) -> Result<()> {
        assert!(len <= self.slot_len);
        let order = Order { slot, kind, offset, address: self.memory.slot(slot, self.slot_len), len: len as u32 };
        self.shared.orders.queue.push(order).map_err(|_| "more requests than slots".into())
    }

    fn kick_if_wanted(&mut self, _queue: usize) -> Result<()> {
        if !self.shared.orders.queue.is_empty() && self.shared.orders.signal()? {
            self.kicks += 1;
        }
        Ok(())
    }

    fn take(&mut self, _queue: usize) -> Option<(Slot, i32)> {
        self.shared.ended.queue.pop()
    }

    fn sleep(&mut self) -> Result<bool> {
        let sleeps = self.shared.ended.falls_asleep();
        if sleeps {
            wait_for(&[&self.shared.ended.event])?;
        }
        self.shared.ended.wakes_up();
        Ok(sleeps)
    }

    fn kicks(&self) -> u64 {
        self.kicks
    }
}

impl Drop for HandOver {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        // Also if it is awake: it may be about to sleep.
        let rung = self.shared.orders.event.write(1);
        let ended = self.thread.take().map(JoinHandle::join);
        if rung.is_err() || !matches!(ended, Some(Ok(Ok(())))) {
            eprintln!("the storage's thread failed: {rung:?}, {ended:?}");
        }
    }
}

/// The thread that does the requests.
struct Storage {
    file: File,
    shared: Arc<Shared>,
    uring: IoUring,
    under_way: usize,
    kick_armed: bool,
}

impl Storage {
    fn new(file: File, shared: Arc<Shared>) -> io::Result<Self> {
        let uring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().build(1024)?;
        Ok(Storage { file, shared, uring, under_way: 0, kick_armed: false })
    }

    fn run(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut idle_since = Instant::now();
        loop {
            let ended = self.take_completions()?;
            let taken = self.take_orders()?;
            if ended > 0 {
                shared.ended.signal()?;
            }
            self.submit()?;
            if ended + taken > 0 {
                idle_since = Instant::now();
            } else if self.under_way == 0 && idle_since.elapsed() < POLL_TIME {
                std::hint::spin_loop();
            } else if self.under_way == 0 && shared.closing.load(Ordering::SeqCst) {
                return Ok(());
            } else if shared.orders.falls_asleep() {
                if !self.kick_armed {
                    let kicks = Fd(shared.orders.event.as_raw_fd());
                    self.push(&opcode::PollAdd::new(kicks, libc::POLLIN as u32).build().user_data(KICK))?;
                    self.kick_armed = true;
                }
                self.uring.submit_and_wait(1)?;
                shared.orders.wakes_up();
            }
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        let queue = self.uring.submission();
        let is_due = !queue.is_empty() || queue.taskrun();
        drop(queue);
        if is_due {
            self.uring.submit()?;
        }
        Ok(())
    }

    fn take_completions(&mut self) -> io::Result<usize> {
        let mut ended = 0;
        for entry in self.uring.completion() {
            if entry.user_data() == KICK {
                self.kick_armed = false;
                self.shared.orders.event.read()?;
            } else {
                self.under_way -= 1;
                ended += 1;
                self.shared.ended.queue.push((entry.user_data() as Slot, entry.result().min(0))).map_err(|_| full())?;
            }
        }
        Ok(ended)
    }

    fn take_orders(&mut self) -> io::Result<usize> {
        let file = Fd(self.file.as_raw_fd());
        let mut taken = 0;
        while taken < TURN
            && let Some(order) = self.shared.orders.queue.pop()
        {
            let entry = match order.kind {
                Kind::Read => opcode::Read::new(file, order.address, order.len).offset(order.offset).build(),
                Kind::Write => opcode::Write::new(file, order.address, order.len).offset(order.offset).build(),
                Kind::Flush => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
            };
            self.push(&entry.user_data(u64::from(order.slot)))?;
            self.under_way += 1;
            taken += 1;
        }
        Ok(taken)
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: a slot's bytes live until this thread has ended, and are nobody else's until the request has ended;
        // the descriptors are open for as long.
        unsafe { self.uring.submission().push(entry) }.map_err(|_| full())
    }
}

fn full() -> io::Error {
    io::Error::other("a queue with room for all slots is full")
}
