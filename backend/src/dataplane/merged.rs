//! Several transfers as one operation: reads or writes that wait one behind the other and lie next to each other.
//!
//! A guest that reads or writes small pieces in order costs the kernel, and the storage, one request for a few of them.
//! Invariant: what the operation did not move entirely is done again, transfer by transfer, so that an error is that of
//! its transfer alone (VOL-20). Does not: bounce, or merge what must be durable when it ends.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use libc::iovec;

use super::transfer::{Kind, Transfer};
use crate::virtio::chain::MAX_SEGMENTS;

/// Most bytes of one operation: beyond that a request of its own costs little.
pub(super) const MAX_MERGED_LEN: u64 = 64 << 10;

/// How many of the first of `waiting` go as one operation: at least one, if any waits.
pub(super) fn count_adjacent(waiting: &VecDeque<usize>, slots: &[Option<Transfer>]) -> usize {
    let mut waiting = waiting.iter().map_while(|&id| slots.get(id)?.as_ref());
    let Some(first) = waiting.next() else { return 0 };
    let mut run = Run::of(first);
    if !first.mergeable {
        return run.count;
    }
    while let Some(longer) = waiting.next().and_then(|next| run.with(next)) {
        run = longer;
    }
    run.count
}

/// Transfers that can go as one operation.
struct Run {
    count: usize,
    kind: Kind,
    end: u64,
    len: u64,
    pieces: usize,
}

impl Run {
    fn of(first: &Transfer) -> Self {
        Run { count: 1, kind: first.kind, end: first.offset + first.len, len: first.len, pieces: first.pieces.len() }
    }

    /// The run and `next`, if that lies behind it and there is room.
    fn with(&self, next: &Transfer) -> Option<Self> {
        let (len, pieces) = (self.len + next.len, self.pieces + next.pieces.len());
        let fits = next.mergeable
            && next.kind == self.kind
            && next.offset == self.end
            && len <= MAX_MERGED_LEN
            && pieces <= MAX_SEGMENTS;
        fits.then(|| Run { count: self.count + 1, kind: self.kind, end: next.offset + next.len, len, pieces })
    }
}

/// Operations under way that carry several transfers, by number.
#[derive(Default)]
pub(super) struct Merges {
    slots: Vec<Merged>,
    free: Vec<usize>,
}

/// One of them. Keeps its room when it is given back.
#[derive(Default)]
struct Merged {
    ids: Vec<usize>,
    pieces: Vec<iovec>,
}

impl Merges {
    /// Makes one operation of transfers `ids`, which [`count_adjacent`] has counted; returns its number and its entry,
    /// which names memory that lasts until [`Merges::take`].
    pub(super) fn insert(
        &mut self,
        ids: impl Iterator<Item = usize>,
        slots: &[Option<Transfer>],
        fd: RawFd,
    ) -> (usize, squeue::Entry) {
        let number = self.free.pop().unwrap_or(self.slots.len());
        if number == self.slots.len() {
            self.slots.push(Merged::default());
        }
        let merged = &mut self.slots[number];
        let mut first = None;
        for id in ids {
            let Some(transfer) = &slots[id] else { panic!("transfer {id} waits but does not exist") };
            first = first.or(Some((transfer.kind, transfer.offset)));
            merged.ids.push(id);
            merged.pieces.extend_from_slice(&transfer.pieces);
        }
        let Some((kind, offset)) = first else { panic!("an operation for no transfer") };
        let (pieces, count) = (merged.pieces.as_ptr(), merged.pieces.len() as u32);
        let entry = match kind {
            Kind::Read => opcode::Readv::new(Fd(fd), pieces, count).offset(offset).build(),
            Kind::Write => opcode::Writev::new(Fd(fd), pieces, count).offset(offset).build(),
            Kind::WriteDurable | Kind::Sync | Kind::ReadPage | Kind::Edge { .. } => panic!("{kind:?} is never merged"),
        };
        (number, entry)
    }

    /// Gives operation `number` back, which the kernel has ended or never got; its transfers go into `ids`.
    pub(super) fn take(&mut self, number: usize, ids: &mut Vec<usize>) {
        let merged = &mut self.slots[number];
        merged.pieces.clear();
        ids.append(&mut merged.ids);
        self.free.push(number);
    }
}
