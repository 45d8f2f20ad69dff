//! A volume that a daemon reads for this program, over a connection of its own.
//!
//! Invariant: the volume is a copy that nobody writes. What its map calls zeros is not asked for.

use super::daemon::Daemon;
use super::{Session, Want};
use crate::copy::{Run, Source};
use crate::error::Result;
use crate::maps::ContentView;

/// Most bytes that a daemon sends, or takes, at once.
pub(super) const PIECE_LEN: usize = 512 << 10;

/// Most zeros that a daemon writes at once.
pub(super) const ZEROS_LEN: usize = 1 << 30;

/// The volume.
#[derive(Debug)]
pub(super) struct RemoteSource {
    daemon: Daemon,
    name: String,
    len_bytes: u64,
    /// What the newest step of the map says: where a range ends, and what it holds.
    ranges: Vec<(u64, Run)>,
    /// Where that step begins.
    from: u64,
}

impl RemoteSource {
    /// Volume `name`, through `daemon`.
    pub(super) fn new(mut daemon: Daemon, name: &str) -> Result<Self> {
        let len_bytes = daemon.volume(name)?.size_bytes;
        Ok(Self { daemon, name: name.to_owned(), len_bytes, ranges: Vec::new(), from: 0 })
    }

    fn look(&mut self, offset: u64) -> Result<()> {
        let step = self.daemon.map(&self.name, offset, Want::Ranges)?;
        let run = |content| match content {
            ContentView::Data => Run::Data,
            ContentView::Zero | ContentView::None => Run::Zero,
        };
        self.ranges = step.ranges.iter().map(|range| (range.start + range.length, run(range.content))).collect();
        self.from = offset;
        Ok(())
    }
}

impl Source for RemoteSource {
    fn len(&self) -> u64 {
        self.len_bytes
    }

    fn run_at(&mut self, offset: u64) -> Result<(Run, u64)> {
        let is_known = offset >= self.from && self.ranges.last().is_some_and(|(end, _)| offset < *end);
        if !is_known {
            self.look(offset)?;
        }
        let found = self.ranges.partition_point(|(end, _)| *end <= offset);
        // A daemon that tells nothing of it: then it is read.
        let (end, run) = self.ranges.get(found).copied().unwrap_or((self.len_bytes, Run::Data));
        Ok((run, end.min(self.len_bytes) - offset))
    }

    fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut at = offset;
        for piece in buf.chunks_mut(PIECE_LEN) {
            self.daemon.read(&self.name, at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}
