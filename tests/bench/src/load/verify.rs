//! Compares what is read with what was written last.

use std::collections::{HashMap, HashSet};

use super::pattern::Random;
use crate::Result;

/// Knows the last write of each block that this process has written.
pub(crate) struct Verifier {
    seed: u64,
    versions: HashMap<u64, u64>,
    busy: HashSet<u64>,
}

impl Verifier {
    /// A verifier whose data follows from `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Verifier { seed, versions: HashMap::new(), busy: HashSet::new() }
    }

    /// Whether a request for the block at `offset` is under way.
    pub(crate) fn is_busy(&self, offset: u64) -> bool {
        self.busy.contains(&offset)
    }

    /// Fills `bytes` with what only this write of this block has.
    pub(crate) fn begin_write(&mut self, offset: u64, bytes: &mut [u8]) {
        self.busy.insert(offset);
        let version = self.versions.entry(offset).or_default();
        *version += 1;
        stamp(self.seed, offset, *version).fill(bytes);
    }

    /// The write of the block has ended.
    pub(crate) fn end_write(&mut self, offset: u64) {
        self.busy.remove(&offset);
    }

    /// A read of the block begins.
    pub(crate) fn begin_read(&mut self, offset: u64) {
        self.busy.insert(offset);
    }

    /// The read has ended; fails if it does not hold what was written last.
    pub(crate) fn end_read(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.busy.remove(&offset);
        let Some(&version) = self.versions.get(&offset) else { return Ok(()) };
        let mut expected = vec![0; bytes.len()];
        stamp(self.seed, offset, version).fill(&mut expected);
        if expected != bytes {
            return Err(format!("the block at {offset} does not hold what was written last").into());
        }
        Ok(())
    }
}

fn stamp(seed: u64, offset: u64, version: u64) -> Random {
    Random::new(seed ^ offset.rotate_left(20) ^ version.rotate_left(48))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_data_than_the_last_written_is_noticed() {
        let mut verifier = Verifier::new(3);
        let (mut first, mut second) = ([0; 512], [0; 512]);
        verifier.begin_write(4096, &mut first);
        verifier.end_write(4096);
        verifier.begin_write(4096, &mut second);
        assert!(verifier.is_busy(4096));
        verifier.end_write(4096);
        assert!(!verifier.is_busy(4096));
        verifier.end_read(4096, &second).unwrap();
        verifier.end_read(8192, &first).unwrap();
        assert!(verifier.end_read(4096, &first).is_err());
    }
}
