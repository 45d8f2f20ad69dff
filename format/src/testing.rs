//! A simulated disk that loses, tears and reorders whatever was not synced.
//!
//! Role: crash tests. It records every write and sync; [`Crash`] then walks the record and builds the disks that a crash
//! at each point could have left. Does not: model a disk that breaks its promises after a sync.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError};

use crate::disk::Disk;
use crate::sync::{Mutex, MutexGuard};

const PAGE: u64 = 4096;
/// Bytes that a crash never tears (CON-3).
const SECTOR: usize = 512;

type Pages = BTreeMap<u64, Arc<[u8; PAGE as usize]>>;

/// Something that happened to the disk.
#[derive(Debug, Clone)]
pub enum Event {
    /// Bytes were written; with `durable`, they cannot be lost any more.
    Write {
        /// Byte offset.
        offset: u64,
        /// The bytes.
        bytes: Arc<Vec<u8>>,
        /// Written with a durable write.
        durable: bool,
    },
    /// All earlier writes became durable.
    Sync,
    /// The disk grew to this many bytes.
    Grow(u64),
    /// A remark of the test's.
    Mark(u64),
}

/// Which request a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Writes.
    Write,
    /// Reads.
    Read,
    /// Syncs and durable writes.
    Sync,
    /// Growth.
    Grow,
}

#[derive(Debug, Default)]
struct Inner {
    pages: Pages,
    len: u64,
    record: Option<Vec<Event>>,
    limit: Option<u64>,
    fault: Option<(Fault, u64)>,
    reads: u64,
    writes: u64,
}

/// A disk in memory.
#[derive(Debug, Default)]
pub struct SimDisk {
    inner: Mutex<Inner>,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A disk with the same bytes, recording nothing.
    pub fn copy(&self) -> Arc<Self> {
        let inner = self.lock();
        let copy = Inner { pages: inner.pages.clone(), len: inner.len, ..Inner::default() };
        Arc::new(Self { inner: Mutex::new(copy) })
    }

    /// Begins to record; returns the state from which [`Crash`] starts, in which everything counts as durable.
    pub fn record(&self) -> Crash {
        let mut inner = self.lock();
        inner.record = Some(Vec::new());
        Crash { durable: inner.pages.clone(), len: inner.len, pending: Vec::new() }
    }

    /// Takes the events recorded so far.
    pub fn take_events(&self) -> Vec<Event> {
        self.lock().record.replace(Vec::new()).unwrap_or_default()
    }

    /// Notes a remark in the record.
    pub fn mark(&self, mark: u64) {
        if let Some(record) = &mut self.lock().record {
            record.push(Event::Mark(mark));
        }
    }

    /// Refuses to grow beyond `len` bytes, as a full file system does; `None` lifts that.
    pub fn limit(&self, len: Option<u64>) {
        self.lock().limit = len;
    }

    /// Fails requests of this kind after `after` more of them, until told otherwise.
    pub fn fail(&self, fault: Option<(Fault, u64)>) {
        self.lock().fault = fault;
    }

    /// Numbers of reads and writes so far.
    pub fn counts(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.reads, inner.writes)
    }

    /// Flips the bits of `mask` in the byte at `offset`.
    pub fn flip(&self, offset: u64, mask: u8) {
        let mut inner = self.lock();
        let page = inner.pages.entry(offset / PAGE).or_insert_with(|| Arc::new([0; PAGE as usize]));
        Arc::make_mut(page)[(offset % PAGE) as usize] ^= mask;
    }

    /// Cuts the disk to `len` bytes.
    pub fn truncate(&self, len: u64) {
        let mut inner = self.lock();
        inner.len = len;
        inner.pages.retain(|page, _| page * PAGE < len);
    }

    /// All bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let inner = self.lock();
        let mut bytes = vec![0; inner.len as usize];
        read_pages(&inner.pages, &mut bytes, 0);
        bytes
    }
}

impl Inner {
    fn check(&mut self, kind: Fault) -> io::Result<()> {
        match &mut self.fault {
            Some((fault, 0)) if *fault == kind => Err(io::Error::other("injected fault")),
            Some((fault, left)) if *fault == kind => {
                *left -= 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, buf: &[u8], offset: u64, durable: bool) -> io::Result<()> {
        self.check(if durable { Fault::Sync } else { Fault::Write })?;
        if offset + buf.len() as u64 > self.len {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "write beyond the end of the disk"));
        }
        self.writes += 1;
        write_pages(&mut self.pages, buf, offset);
        if let Some(record) = &mut self.record {
            record.push(Event::Write { offset, bytes: Arc::new(buf.to_vec()), durable });
        }
        Ok(())
    }
}

fn read_pages(pages: &Pages, buf: &mut [u8], offset: u64) {
    let mut done = 0;
    while done < buf.len() {
        let at = offset + done as u64;
        let within = (at % PAGE) as usize;
        let len = (PAGE as usize - within).min(buf.len() - done);
        match pages.get(&(at / PAGE)) {
            Some(page) => buf[done..done + len].copy_from_slice(&page[within..within + len]),
            None => buf[done..done + len].fill(0),
        }
        done += len;
    }
}

fn write_pages(pages: &mut Pages, buf: &[u8], offset: u64) {
    let mut done = 0;
    while done < buf.len() {
        let at = offset + done as u64;
        let within = (at % PAGE) as usize;
        let len = (PAGE as usize - within).min(buf.len() - done);
        let page = pages.entry(at / PAGE).or_insert_with(|| Arc::new([0; PAGE as usize]));
        Arc::make_mut(page)[within..within + len].copy_from_slice(&buf[done..done + len]);
        done += len;
    }
}

impl Disk for SimDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.check(Fault::Read)?;
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > inner.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        inner.reads += 1;
        read_pages(&inner.pages, buf, offset);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.lock().write(buf, offset, false)
    }

    fn write_at_durable(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.lock().write(buf, offset, true)
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.check(Fault::Sync)?;
        if let Some(record) = &mut inner.record {
            record.push(Event::Sync);
        }
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
            if let Some(record) = &mut inner.record {
                record.push(Event::Grow(len));
            }
        }
        Ok(())
    }
}

/// The disks that a crash could leave, as the record is walked.
#[derive(Debug, Clone)]
pub struct Crash {
    durable: Pages,
    len: u64,
    pending: Vec<(u64, Arc<Vec<u8>>)>,
}

/// What happens to one sector that was written and not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It reached the disk.
    Kept,
    /// It did not.
    Lost,
}

impl Crash {
    /// Goes on by one event.
    pub fn step(&mut self, event: &Event) {
        match event {
            Event::Write { offset, bytes, durable: true } => {
                // Older pending bytes of the same place must not land on top of it.
                self.pending.push((*offset, bytes.clone()));
                self.settle(*offset, bytes.len() as u64);
            }
            Event::Write { offset, bytes, durable: false } => self.pending.push((*offset, bytes.clone())),
            Event::Sync => {
                for (offset, bytes) in self.pending.drain(..) {
                    write_pages(&mut self.durable, &bytes, offset);
                }
            }
            Event::Grow(len) => self.len = *len,
            Event::Mark(_) => {}
        }
    }

    /// Makes the bytes of one range durable and keeps the rest pending.
    fn settle(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        for (start, bytes) in std::mem::take(&mut self.pending) {
            for (sector, at) in bytes.chunks(SECTOR).zip((start..).step_by(SECTOR)) {
                if at >= offset && at < end {
                    write_pages(&mut self.durable, sector, at);
                } else {
                    self.pending.push((at, Arc::new(sector.to_vec())));
                }
            }
        }
    }

    /// Writes that a crash now could lose.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The disk after a crash now, where `fate` decides about each unsynced sector (numbered from the oldest).
    pub fn disk(&self, mut fate: impl FnMut(usize) -> Fate) -> Arc<SimDisk> {
        let mut pages = self.durable.clone();
        let mut number = 0;
        for (offset, bytes) in &self.pending {
            for (sector, at) in bytes.chunks(SECTOR).zip((*offset..).step_by(SECTOR)) {
                if fate(number) == Fate::Kept {
                    write_pages(&mut pages, sector, at);
                }
                number += 1;
            }
        }
        Arc::new(SimDisk { inner: Mutex::new(Inner { pages, len: self.len, ..Inner::default() }) })
    }
}
