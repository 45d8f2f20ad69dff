//! A simulated disk that loses, tears and reorders whatever was not synced.
//!
//! Role: crash and fault tests. It records the beginning and the end of every write and sync; [`Crash`] then walks the
//! record and builds the disks that a crash at each point could have left. Invariant: a sync covers the writes that had
//! completed when it began and no others; a durable write may be torn until it has ended; growth may be lost until a sync
//! has covered it. Does not: model a disk that breaks its promises after a sync.

mod crash;
mod pages;

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use crash::SECTOR;
pub use crash::{Crash, CrashDisk, Fate};
use pages::Pages;

use crate::disk::Disk;
use crate::sync::{Mutex, MutexGuard};

/// Something that happened to the disk. Writes and syncs are numbered together.
#[derive(Debug, Clone)]
pub enum Event {
    /// A write was issued: from now on any of its sectors may have reached the disk.
    Write {
        /// The write's number.
        id: u64,
        /// Byte offset.
        offset: u64,
        /// The bytes.
        bytes: Arc<Vec<u8>>,
    },
    /// The write has completed: syncs that begin later cover it.
    Completed(u64),
    /// The write was a durable one and has completed: its bytes cannot be lost any more.
    Durable(u64),
    /// A sync was issued.
    SyncBegun(u64),
    /// The sync has ended: what had completed when it began is durable.
    SyncEnded(u64),
    /// The disk grew to this many bytes.
    Grow(u64),
    /// A remark of the test's.
    Mark(u64),
}

/// Which request a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Reads.
    Read,
    /// Writes that are not durable ones.
    Write,
    /// Durable writes.
    Durable,
    /// Syncs.
    Sync,
    /// Growth.
    Grow,
}

/// A failure to come. A write that fails has written every other one of its sectors.
#[derive(Debug, Clone, Copy)]
pub struct Injection {
    /// What fails.
    pub fault: Fault,
    /// Requests of this kind that still succeed.
    pub after: u64,
    /// Only the next one fails, or all from then on.
    pub once: bool,
    /// The error's number, as the operating system gives it.
    pub errno: i32,
}

/// A blocking request that is in the middle: issued, not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Middle {
    /// A write.
    Write,
    /// A durable write.
    Durable,
    /// A sync.
    Sync,
}

/// What runs in the middle of blocking requests.
type Hook = Box<dyn FnMut(Middle) + Send>;

#[derive(Debug, Default)]
struct Inner {
    pages: Pages,
    len: u64,
    /// Stands for the bytes as they were before the first write.
    hash: u64,
    record: Option<Vec<Event>>,
    limit: Option<u64>,
    injection: Option<Injection>,
    /// Where reads fail.
    unreadable: Vec<Range<u64>>,
    /// Failures that were injected.
    injected: u64,
    reads: u64,
    writes: u64,
    requests: HashMap<Fault, u64>,
    next_id: u64,
    /// Writes issued and not completed: what reads do not show yet.
    issued: HashMap<u64, (u64, Arc<Vec<u8>>)>,
}

/// A disk in memory.
#[derive(Default)]
pub struct SimDisk {
    inner: Mutex<Inner>,
    hook: Mutex<Option<Hook>>,
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimDisk").field("len", &self.lock().len).finish_non_exhaustive()
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn with(pages: Pages, len: u64, hash: u64) -> Arc<Self> {
        let inner = Inner { pages, len, hash, ..Inner::default() };
        Arc::new(Self { inner: Mutex::new(inner), hook: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A disk with the same bytes, recording nothing.
    pub fn copy(&self) -> Arc<Self> {
        let inner = self.lock();
        Self::with(inner.pages.clone(), inner.len, inner.hash)
    }

    /// Begins to record; returns the state from which [`Crash`] starts, in which everything counts as durable.
    pub fn record(&self) -> Crash {
        let mut inner = self.lock();
        inner.record = Some(Vec::new());
        Crash::new(inner.pages.clone(), inner.len, inner.hash)
    }

    /// Takes the events recorded so far.
    pub fn take_events(&self) -> Vec<Event> {
        match &mut self.lock().record {
            Some(record) => std::mem::take(record),
            None => Vec::new(),
        }
    }

    /// Calls `hook` in the middle of every blocking write and sync, but not in the middle of what the hook itself does.
    pub fn set_hook(&self, hook: Option<Hook>) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = hook;
    }

    fn call_hook(&self, middle: Middle) {
        let taken = self.hook.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut hook) = taken {
            hook(middle);
            self.set_hook(Some(hook));
        }
    }

    /// Refuses to grow beyond `len` bytes, as a full file system does; `None` lifts that.
    pub fn limit(&self, len: Option<u64>) {
        self.lock().limit = len;
    }

    /// Notes a remark in the record.
    pub fn mark(&self, mark: u64) {
        self.lock().note(Event::Mark(mark));
    }

    /// Fails requests of this kind after `after` more of them with EIO, until told otherwise.
    pub fn fail(&self, fault: Option<(Fault, u64)>) {
        self.inject(fault.map(|(fault, after)| Injection { fault, after, once: false, errno: 5 }));
    }

    /// Fails requests as the injection says, until told otherwise.
    pub fn inject(&self, injection: Option<Injection>) {
        self.lock().injection = injection;
    }

    /// Fails reads that touch one of these ranges of bytes with EIO, until they are written, or told otherwise.
    pub fn make_unreadable(&self, ranges: impl IntoIterator<Item = Range<u64>>) {
        self.lock().unreadable = ranges.into_iter().collect();
    }

    /// Failures injected so far.
    pub fn failures(&self) -> u64 {
        self.lock().injected
    }

    /// Numbers of reads and writes so far.
    pub fn counts(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.reads, inner.writes)
    }

    /// Requests of one kind so far, failed ones included.
    pub fn requests(&self, kind: Fault) -> u64 {
        self.lock().requests.get(&kind).copied().unwrap_or(0)
    }

    /// Flips the bits of `mask` in the byte at `offset`.
    pub fn flip(&self, offset: u64, mask: u8) {
        let mut inner = self.lock();
        let mut byte = [0];
        inner.pages.read(&mut byte, offset);
        inner.pages.write(&[byte[0] ^ mask], offset);
    }

    /// Cuts the disk to `len` bytes.
    pub fn truncate(&self, len: u64) {
        let mut inner = self.lock();
        inner.len = len;
        inner.pages.truncate(len);
    }

    /// Whether both disks have the same length and bytes.
    pub fn is_same(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.lock().pages.clone(), other.lock().pages.clone());
        self.lock().len == other.lock().len && ours.is_same(&theirs)
    }

    /// All bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let inner = self.lock();
        let mut bytes = vec![0; inner.len as usize];
        inner.pages.read(&mut bytes, 0);
        bytes
    }

    /// Issues a write; it ends with [`SimDisk::end_write`] or [`SimDisk::end_durable_write`]. Reads show it from then on.
    pub fn begin_write(&self, buf: &[u8], offset: u64) -> io::Result<u64> {
        self.lock().begin_write(buf, offset)
    }

    /// The write has completed.
    pub fn end_write(&self, id: u64) {
        self.lock().end_write(id, Event::Completed(id));
    }

    /// The write was a durable one, and has completed.
    pub fn end_durable_write(&self, id: u64) {
        self.lock().end_write(id, Event::Durable(id));
    }

    /// Issues a sync; it ends with [`SimDisk::end_sync`].
    pub fn begin_sync(&self) -> u64 {
        let mut inner = self.lock();
        let id = inner.new_id();
        inner.note(Event::SyncBegun(id));
        id
    }

    /// The sync has ended.
    pub fn end_sync(&self, id: u64) {
        self.lock().note(Event::SyncEnded(id));
    }
}

impl Inner {
    fn note(&mut self, event: Event) {
        if let Some(record) = &mut self.record {
            record.push(event);
        }
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn check(&mut self, kind: Fault) -> io::Result<()> {
        *self.requests.entry(kind).or_default() += 1;
        let Some(injection) = self.injection.as_mut().filter(|injection| injection.fault == kind) else {
            return Ok(());
        };
        if injection.after > 0 {
            injection.after -= 1;
            return Ok(());
        }
        let error = io::Error::from_raw_os_error(injection.errno);
        if injection.once {
            self.injection = None;
        }
        self.injected += 1;
        Err(error)
    }

    /// Refuses a write if it is to fail: every other sector of it has been written then.
    fn check_write(&mut self, kind: Fault, buf: &[u8], offset: u64) -> io::Result<()> {
        let outcome = self.check(kind);
        if outcome.is_err() {
            for (sector, at) in buf.chunks(SECTOR).zip((offset..).step_by(SECTOR)).step_by(2) {
                let id = self.begin_write(sector, at)?;
                self.end_write(id, Event::Completed(id));
            }
        }
        outcome
    }

    fn begin_write(&mut self, buf: &[u8], offset: u64) -> io::Result<u64> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "write beyond the end of the disk"));
        }
        self.writes += 1;
        let id = self.new_id();
        let bytes = Arc::new(buf.to_vec());
        self.note(Event::Write { id, offset, bytes: bytes.clone() });
        self.issued.insert(id, (offset, bytes));
        Ok(id)
    }

    fn end_write(&mut self, id: u64, event: Event) {
        let (offset, bytes) = self.issued.remove(&id).expect("a write ends once");
        self.pages.write(&bytes, offset);
        let end = offset + bytes.len() as u64;
        let bad = std::mem::take(&mut self.unreadable);
        let rest = bad.into_iter().flat_map(|bad| [bad.start..bad.end.min(offset), bad.start.max(end)..bad.end]);
        self.unreadable = rest.filter(|bad| !bad.is_empty()).collect();
        self.note(event);
    }
}

impl Disk for SimDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.check(Fault::Read)?;
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= inner.len);
        let Some(end) = end else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        if inner.unreadable.iter().any(|bad| bad.start < end && offset < bad.end) {
            return Err(io::Error::from_raw_os_error(5));
        }
        inner.reads += 1;
        inner.pages.read(buf, offset);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.lock().check_write(Fault::Write, buf, offset)?;
        let id = self.begin_write(buf, offset)?;
        self.call_hook(Middle::Write);
        self.end_write(id);
        Ok(())
    }

    fn write_at_durable(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.lock().check_write(Fault::Durable, buf, offset)?;
        let id = self.begin_write(buf, offset)?;
        self.call_hook(Middle::Durable);
        self.end_durable_write(id);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.lock().check(Fault::Sync)?;
        let id = self.begin_sync();
        self.call_hook(Middle::Sync);
        self.end_sync(id);
        Ok(())
    }

    fn room(&self) -> io::Result<Option<u64>> {
        let inner = self.lock();
        Ok(inner.limit.map(|limit| limit.saturating_sub(inner.len)))
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.check(Fault::Grow)?;
        if inner.limit.is_some_and(|limit| len > limit) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if len > inner.len {
            inner.len = len;
            inner.note(Event::Grow(len));
        }
        Ok(())
    }
}
