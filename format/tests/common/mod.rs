//! What the tests of the engine share: a generator, the model that the engine is compared with, the comparison.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(unreachable_pub, dead_code, reason = "every test file uses its part of this")]

pub mod compare;
pub mod promises;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pitstop_format::testing::SimDisk;
use pitstop_format::{Container, CreateOptions, OpenMode, VolumeInfo, VolumeIo};

/// An empty container on a simulated disk, open for writing.
pub fn new_container(journal_len_bytes: u64) -> (Arc<SimDisk>, Container) {
    let disk = SimDisk::new();
    Container::create(disk.clone(), &CreateOptions { journal_len_bytes, ..CreateOptions::default() }).unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    (disk, container)
}

pub fn io(container: &Container, name: &str) -> VolumeIo {
    VolumeIo::new(container, container.volume(name).unwrap())
}

pub fn find(container: &Container, name: &str) -> VolumeInfo {
    container.volumes().into_iter().find(|volume| volume.name == name).unwrap()
}

pub fn contents(container: &Container, name: &str) -> Vec<u8> {
    let mut bytes = vec![0; container.volume(name).unwrap().size() as usize];
    io(container, name).read_at(&mut bytes, 0).unwrap();
    bytes
}

pub fn open(disk: &Arc<SimDisk>) -> Container {
    Container::open(disk.clone(), OpenMode::ReadWrite).unwrap()
}

/// Ends what goes on until told to stop, however the test's part that it belongs to ends.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The same, but only where that part fails.
pub struct StopOnPanic<'a>(pub &'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Bytes in a sector, the unit in which the model keeps values.
pub const SECTOR: u64 = 512;

/// A small deterministic generator; the same seed gives the same run everywhere.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// The value of one sector of write number `write`: no other write and no other place has it, and it is not zero.
pub fn stamp(write: u64, sector: u64) -> u64 {
    assert!(write < 1 << 32 && sector < 1 << 31);
    write << 32 | sector << 1 | 1
}

/// The bytes of a write: each sector repeats its stamp.
pub fn stamped(sectors: std::ops::Range<u64>, write: u64) -> Vec<u8> {
    sectors.flat_map(|sector| stamp(write, sector).to_le_bytes().repeat(SECTOR as usize / 8)).collect()
}
