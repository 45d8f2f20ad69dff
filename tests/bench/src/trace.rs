//! Given series of writes and flushes, and a guest that issues them.
//!
//! One is that of a package installation, made up and always the same: each package writes some small files side by side
//! into free space, then the file system's journal, then flushes, then the few metadata blocks that the journal was for,
//! which are much the same ones again and again. Does not: measure time, which [`crate::load`] does.

use std::path::Path;

use crate::Result;
use crate::device::{Device, Kind, Slot, Target};
use crate::load::Random;

const PACKAGES: u64 = 400;
const FILES: u64 = 20;
const BLOCK_LEN: u64 = 4 << 10;
const JOURNAL_LEN: u64 = 64 << 20;
/// Packages begin at most this far apart.
const GAP_LEN: u64 = 1 << 20;

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Bytes at an offset; both multiples of 4096.
    Write { offset: u64, len: u64 },
    /// After all that was before.
    Flush,
}

/// Where a file system keeps what, in bytes of the disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Regions {
    /// Its journal of 64 MiB.
    pub(crate) journal: u64,
    /// Inodes, bitmaps and directories.
    pub(crate) metadata: u64,
    /// Space in which new files are made: 600 MiB at most.
    pub(crate) free: u64,
}

/// All requests of the installation.
pub(crate) fn package_install(regions: Regions) -> Vec<Step> {
    let mut random = Random::new(7);
    let (mut steps, mut file, mut logged) = (Vec::new(), regions.free, 0);
    for _ in 0..PACKAGES {
        for _ in 0..FILES {
            let len = BLOCK_LEN * (1 + random.below(4) * random.below(6));
            steps.push(Step::Write { offset: file, len });
            file += len;
        }
        file += random.below(GAP_LEN / BLOCK_LEN) * BLOCK_LEN;
        for len in [BLOCK_LEN * (2 + random.below(7)), BLOCK_LEN] {
            if logged + len > JOURNAL_LEN {
                logged = 0;
            }
            steps.push(Step::Write { offset: regions.journal + logged, len });
            logged += len;
        }
        steps.push(Step::Flush);
        // Group descriptors and the package database's inode; a bitmap; inodes and a directory of the package.
        let group = (file - regions.free) / (128 << 20);
        let near = regions.metadata + (1 + group) * (2 << 20);
        let places = [regions.metadata, regions.metadata + BLOCK_LEN, near, near + (1 + random.below(64)) * BLOCK_LEN];
        let further = (0..3).map(|_| near + (128 + random.below(256)) * BLOCK_LEN);
        steps.extend(places.into_iter().chain(further).map(|offset| Step::Write { offset, len: BLOCK_LEN }));
    }
    steps.push(Step::Flush);
    steps
}

/// So many writes of `len` bytes each, at random in the first `range` bytes of the disk.
pub(crate) fn scattered(count: u64, len: u64, range: u64) -> Vec<Step> {
    let mut random = Random::new(5);
    (0..count).map(|_| Step::Write { offset: random.below(range / len) * len, len }).collect()
}

/// Writes that fill so many places of `place` bytes, chosen at random in the first `range` bytes of the disk, with pieces
/// of `len` bytes; all pieces in random order.
pub(crate) fn places(count: u64, place: u64, len: u64, range: u64) -> Vec<Step> {
    let mut random = Random::new(11);
    let mut chosen: Vec<u64> = (0..range / place).collect();
    random.shuffle(&mut chosen);
    chosen.truncate(count as usize);
    let pieces = |number| (0..place / len).map(move |n| Step::Write { offset: number * place + n * len, len });
    let mut steps: Vec<Step> = chosen.into_iter().flat_map(pieces).collect();
    random.shuffle(&mut steps);
    steps
}

/// So many writes of `len` bytes each, one behind the other.
pub(crate) fn sequential(count: u64, len: u64) -> Vec<Step> {
    (0..count).map(|n| Step::Write { offset: n * len, len }).collect()
}

/// Bytes that `steps` write.
pub(crate) fn written_bytes(steps: &[Step]) -> u64 {
    let len = |step: &Step| if let Step::Write { len, .. } = step { *len } else { 0 };
    steps.iter().map(len).sum()
}

/// Carries out `steps` on the volume at `socket`: `depth` writes at a time, a flush when all before it have ended.
pub(crate) fn play(socket: &Path, steps: &[Step], depth: usize) -> Result<()> {
    let longest = steps.iter().map(|step| written_bytes(std::slice::from_ref(step))).max().unwrap_or_default();
    let mut guest = Guest {
        device: Device::connect(socket, 1, 128, depth, longest as usize)?,
        free: (0..depth as Slot).collect(),
        depth,
    };
    let mut random = Random::new(1);
    (0..depth as Slot).for_each(|slot| random.fill(guest.device.slot_bytes(slot)));
    for step in steps {
        match *step {
            Step::Write { offset, len } => {
                let slot = guest.slot()?;
                guest.device.send(0, slot, Kind::Write, offset, len as usize)?;
            }
            Step::Flush => {
                guest.drain()?;
                let slot = guest.slot()?;
                guest.device.send(0, slot, Kind::Flush, 0, 0)?;
            }
        }
        guest.device.kick_if_wanted(0)?;
        if *step == Step::Flush {
            guest.drain()?;
        }
    }
    guest.drain()
}

struct Guest {
    device: Device,
    /// Slots without a request.
    free: Vec<Slot>,
    depth: usize,
}

impl Guest {
    /// A slot that no request uses; waits for one.
    fn slot(&mut self) -> Result<Slot> {
        loop {
            if let Some(slot) = self.free.pop() {
                return Ok(slot);
            }
            self.take_completions()?;
        }
    }

    fn drain(&mut self) -> Result<()> {
        while self.free.len() < self.depth {
            self.take_completions()?;
        }
        Ok(())
    }

    /// Takes what has completed; sleeps until something has.
    fn take_completions(&mut self) -> Result<()> {
        self.device.sleep()?;
        while let Some((slot, result)) = self.device.take(0) {
            if result != 0 {
                return Err(format!("a request failed with errno {}", -result).into());
            }
            self.free.push(slot);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_filled_and_no_others() {
        let steps = places(10, 8192, 4096, 1 << 20);
        let mut offsets: Vec<u64> = steps
            .iter()
            .map(|step| match step {
                Step::Write { offset, len: 4096 } => *offset,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(!offsets.is_sorted());
        offsets.sort_unstable();
        assert_eq!(offsets.len(), 20);
        for place in offsets.chunks(2) {
            assert!(place[0] % 8192 == 0 && place[1] == place[0] + 4096 && place[1] < 1 << 20);
        }
        assert!(offsets.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn an_installation_writes_small_files_and_flushes_now_and_then() {
        let regions = Regions { journal: 1 << 30, metadata: 0, free: 10 << 30 };
        let steps = package_install(regions);
        let flushes = steps.iter().filter(|step| **step == Step::Flush).count();
        assert!((25..35).contains(&(steps.len() / flushes)), "{} requests a flush", steps.len() / flushes);
        assert!((100 << 20..400 << 20).contains(&written_bytes(&steps)), "{} bytes", written_bytes(&steps));
        for step in steps {
            let Step::Write { offset, len } = step else { continue };
            assert!((BLOCK_LEN..=64 << 10).contains(&len) && (offset | len) % BLOCK_LEN == 0);
            assert!(offset + len <= regions.free + (600 << 20), "the end is at {}", offset + len);
        }
    }
}
