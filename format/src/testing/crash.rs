//! The disks that a crash could leave, as the record of a [`SimDisk`] is walked.

use std::collections::HashMap;
use std::sync::Arc;

use super::pages::Pages;
use super::{Event, SimDisk};

/// Bytes that a crash never tears (CON-3).
pub(super) const SECTOR: usize = 512;

/// What happens to one sector that was written and not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It reached the disk.
    Kept,
    /// It did not.
    Lost,
}

/// A write that no sync has covered yet.
#[derive(Debug, Clone)]
struct Pending {
    id: u64,
    offset: u64,
    bytes: Arc<Vec<u8>>,
    /// Hash of each sector's place and bytes.
    hashes: Arc<[u64]>,
    completed: bool,
}

impl Pending {
    fn new(id: u64, offset: u64, bytes: Arc<Vec<u8>>, completed: bool) -> Self {
        let hashes = bytes.chunks(SECTOR).zip((offset..).step_by(SECTOR)).map(|(s, at)| hash(at, s)).collect();
        Self { id, offset, bytes, hashes, completed }
    }

    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    fn sectors(&self) -> impl Iterator<Item = (u64, &[u8], u64)> {
        self.bytes
            .chunks(SECTOR)
            .zip((self.offset..).step_by(SECTOR))
            .zip(self.hashes.iter())
            .map(|((bytes, at), hash)| (at, bytes, *hash))
    }
}

/// A sync under way: what it will have made durable when it ends.
#[derive(Debug, Clone)]
struct Covered {
    writes: Vec<u64>,
    len: u64,
}

/// The disks that a crash could leave, as the record is walked.
#[derive(Debug, Clone)]
pub struct Crash {
    durable: Pages,
    /// Sum of the hashes of all durable sectors.
    hash: u64,
    durable_len: u64,
    len: u64,
    pending: Vec<Pending>,
    syncs: HashMap<u64, Covered>,
}

/// A disk that a crash has left.
#[derive(Debug)]
pub struct CrashDisk {
    /// The disk.
    pub disk: Arc<SimDisk>,
    /// Stands for the disk's bytes and length: equal disks have equal numbers, over all records that began with a disk
    /// that one crash, or a crash after it, has left.
    pub identity: u64,
}

/// Hash of a sector's place and bytes; zeros, which a sector never written holds too, are 0.
fn hash(offset: u64, bytes: &[u8]) -> u64 {
    let mut any = 0;
    let mut hash = offset ^ 0x9E37_79B9_7F4A_7C15;
    for word in bytes.chunks_exact(8) {
        let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
        any |= word;
        hash = (hash ^ word).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        hash ^= hash >> 32;
    }
    if any == 0 { 0 } else { hash }
}

impl Crash {
    /// `hash` is relative to whatever came first: only differences count.
    pub(super) fn new(durable: Pages, len: u64, hash: u64) -> Self {
        Self { durable, hash, durable_len: len, len, pending: Vec::new(), syncs: HashMap::new() }
    }

    /// Goes on by one event.
    pub fn step(&mut self, event: &Event) {
        match event {
            Event::Write { id, offset, bytes } => {
                self.pending.push(Pending::new(*id, *offset, bytes.clone(), false));
            }
            Event::Completed(id) => {
                self.pending.iter_mut().filter(|write| write.id == *id).for_each(|write| write.completed = true);
            }
            Event::Durable(id) => self.settle_durable(*id),
            Event::SyncBegun(id) => {
                let writes = self.pending.iter().filter(|write| write.completed).map(|write| write.id).collect();
                self.syncs.insert(*id, Covered { writes, len: self.len });
            }
            Event::SyncEnded(id) => {
                let covered = self.syncs.remove(id).expect("a sync that has begun");
                self.durable_len = self.durable_len.max(covered.len);
                self.settle(|write| covered.writes.contains(&write.id));
            }
            Event::Grow(len) => self.len = *len,
            Event::Mark(_) => {}
        }
    }

    /// Makes some of the pending writes durable.
    fn settle(&mut self, covered: impl Fn(&Pending) -> bool) {
        let (durable, hash) = (&mut self.durable, &mut self.hash);
        self.pending.retain(|write| {
            let now = covered(write);
            if now {
                write.sectors().for_each(|sector| put(durable, hash, sector));
            }
            !now
        });
    }

    /// Makes one write durable. Older bytes of the same place must not land on top of it.
    fn settle_durable(&mut self, id: u64) {
        let Some(index) = self.pending.iter().position(|write| write.id == id) else {
            return;
        };
        let (from, to) = (self.pending[index].offset, self.pending[index].end());
        let below = |write: &Pending| write.completed && write.id < id && write.offset < to && from < write.end();
        if self.pending.iter().any(below) {
            for write in std::mem::take(&mut self.pending) {
                if !below(&write) {
                    self.pending.push(write);
                    continue;
                }
                let left = write.sectors().filter(|(at, ..)| *at < from || *at >= to);
                let left = left.map(|(at, bytes, _)| Pending::new(write.id, at, Arc::new(bytes.to_vec()), true));
                self.pending.extend(left);
            }
        }
        self.settle(|write| write.id == id);
    }

    /// Sectors that a crash now could lose.
    pub fn pending(&self) -> usize {
        self.pending.iter().map(|write| write.hashes.len()).sum()
    }

    /// Sectors of the newest write that a crash now could lose.
    pub fn last_write(&self) -> usize {
        self.pending.last().map_or(0, |write| write.hashes.len())
    }

    /// For each write that a crash now could lose, oldest first, its sectors.
    pub fn writes(&self) -> Vec<usize> {
        self.pending.iter().map(|write| write.hashes.len()).collect()
    }

    /// Whether a crash now could lose growth.
    pub fn may_shrink(&self) -> bool {
        self.len > self.durable_len
    }

    /// The disk after a crash now, where `fate` decides about each unsynced sector (numbered from the oldest).
    pub fn disk(&self, fate: impl FnMut(usize) -> Fate) -> Arc<SimDisk> {
        self.leave(Fate::Kept, fate).disk
    }

    /// As [`Crash::disk`]; `growth` decides about growth that was not synced, and with it about what lies beyond.
    pub fn leave(&self, growth: Fate, mut fate: impl FnMut(usize) -> Fate) -> CrashDisk {
        let len = if growth == Fate::Kept { self.len } else { self.durable_len };
        let (mut pages, mut hash) = (self.durable.clone(), self.hash);
        let mut number = 0;
        for write in &self.pending {
            for sector in write.sectors() {
                if fate(number) == Fate::Kept && sector.0 < len {
                    put(&mut pages, &mut hash, sector);
                }
                number += 1;
            }
        }
        let identity = hash.wrapping_add(len.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        CrashDisk { disk: SimDisk::with(pages, len, hash), identity }
    }
}

fn put(pages: &mut Pages, sum: &mut u64, (at, bytes, new): (u64, &[u8], u64)) {
    let old = pages.sector(at).map_or(0, |old| hash(at, old));
    if old != new {
        *sum = sum.wrapping_sub(old).wrapping_add(new);
        pages.write(bytes, at);
    }
}
