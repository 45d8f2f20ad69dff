//! All transfers of one queue, from their start to their end on the ring.
//!
//! They wait for room on the ring and for bounce buffers, go one by one or several as one operation, and are brought there
//! again until they have ended. Invariant: what the kernel may still touch is owned by the slot of its transfer or of the
//! operation that carries it, or is guest memory that the worker keeps. Does not: know requests and plans; it only carries
//! the number of the task that a transfer works for.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use libc::iovec;
use pitstop_format::Check;

use super::DataDisk;
use super::buffers::{AlignedBuf, advance, scatter, total_len};
use super::merged::{Merges, count_adjacent};
use super::ring::Ring;
use super::transfer::{BLOCK_LEN, Kind, Progress, Transfer};
use crate::virtio::chain::MAX_SEGMENTS;
use crate::virtio::request::RequestError;

/// Longest bounced transfer.
const MAX_BOUNCE_LEN: u64 = 256 << 10;
/// Most bytes in bounce buffers, but of blocks to be completed and of pages; more transfers wait.
pub(super) const MAX_BOUNCED_LEN: usize = if cfg!(test) { 1 << 20 } else { 8 << 20 };
/// Longest transfer: what one read or write of the kernel moves, rounded down to chunks.
const MAX_LEN: u64 = 1 << 30;
/// In user data: the number of an operation that carries several transfers, not of one transfer.
const MERGED: u64 = 1 << 62;

/// The end of a transfer.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The task it worked for.
    pub(crate) task: usize,
    /// How it ended; the block, if it was a [`Kind::ReadPage`].
    pub(crate) result: Result<Option<AlignedBuf>, RequestError>,
}

/// All transfers of one queue.
pub(crate) struct Transfers {
    ring: Ring,
    disk: Arc<DataDisk>,
    slots: Vec<Option<Transfer>>,
    free: Vec<usize>,
    /// Started, but not on the ring.
    backlog: VecDeque<usize>,
    on_ring: usize,
    /// Bytes in bounce buffers.
    bounced_len: usize,
    spare_pieces: Vec<Vec<iovec>>,
    merges: Merges,
    /// Those of a merged operation that has ended.
    ended_together: Vec<usize>,
}

impl Transfers {
    pub(crate) fn new(disk: Arc<DataDisk>) -> io::Result<Self> {
        Ok(Transfers {
            ring: Ring::new()?,
            disk,
            slots: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            on_ring: 0,
            bounced_len: 0,
            spare_pieces: Vec::new(),
            merges: Merges::default(),
            ended_together: Vec::new(),
        })
    }

    /// The ring, for entries that are not transfers.
    pub(crate) fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// An empty vector to be filled with pieces.
    pub(crate) fn pieces(&mut self) -> Vec<iovec> {
        self.spare_pieces.pop().unwrap_or_default()
    }

    /// Starts a transfer between `pieces` and the file at `offset`; returns as how many transfers it goes.
    pub(crate) fn start(&mut self, task: usize, kind: Kind, mut pieces: Vec<iovec>, offset: u64) -> usize {
        let len = match kind {
            Kind::Sync => 0,
            Kind::ReadPage | Kind::Edge { .. } => BLOCK_LEN as u64,
            Kind::Read | Kind::Write | Kind::WriteDurable => total_len(&pieces),
        };
        if matches!(kind, Kind::Sync | Kind::ReadPage | Kind::Edge { .. }) {
            self.insert(Transfer::new(task, kind, pieces, offset, len));
            return 1;
        }
        let needs_bounce = self.fits_offset(offset, len) && !self.fits_memory(&pieces);
        let step = if needs_bounce { MAX_BOUNCE_LEN } else { MAX_LEN };
        let (mut count, mut done) = (1, 0);
        while len - done > step || pieces.len() > MAX_SEGMENTS {
            let (first, first_len) = self.split_front(&mut pieces, step);
            self.insert(Transfer { needs_bounce, ..Transfer::new(task, kind, first, offset + done, first_len) });
            done += first_len;
            count += 1;
        }
        self.insert(Transfer { needs_bounce, ..Transfer::new(task, kind, pieces, offset + done, len - done) });
        count
    }

    /// Starts a read of at most a slab, or the completion of a block, that `check` verifies before anybody sees what was read
    /// (TAG-15); `offset` as in [`Transfers::start`]. Returns as how many transfers it goes.
    ///
    /// A read is of the whole blocks around what was asked for, and never into guest memory, where its guest could change
    /// bytes between a look at them and the next.
    pub(crate) fn start_checked(
        &mut self,
        task: usize,
        kind: Kind,
        pieces: Vec<iovec>,
        offset: u64,
        check: Check,
    ) -> usize {
        let (first, len, skip) = match kind {
            Kind::Read => (check.disk_offset(), check.len_bytes(), (offset - check.disk_offset()) as usize),
            Kind::Edge { .. } => (offset, BLOCK_LEN as u64, 0),
            Kind::Write | Kind::WriteDurable | Kind::Sync | Kind::ReadPage => panic!("{kind:?} is never verified"),
        };
        let transfer = Transfer::new(task, kind, pieces, first, len);
        self.insert(Transfer { needs_bounce: true, check: Some(check), skip, ..transfer });
        1
    }

    /// Cuts the first `len` bytes, or the first [`MAX_SEGMENTS`] pieces if that is less, off `pieces`.
    fn split_front(&mut self, pieces: &mut Vec<iovec>, len: u64) -> (Vec<iovec>, u64) {
        let mut first = self.pieces();
        let mut rest = len as usize;
        for piece in pieces.iter().take(MAX_SEGMENTS) {
            let count = piece.iov_len.min(rest);
            if count == 0 {
                break;
            }
            first.push(iovec { iov_base: piece.iov_base, iov_len: count });
            rest -= count;
        }
        let first_len = total_len(&first);
        advance(pieces, first_len as usize);
        (first, first_len)
    }

    fn insert(&mut self, mut transfer: Transfer) {
        transfer.mergeable = matches!(transfer.kind, Kind::Read | Kind::Write)
            && !transfer.needs_bounce
            && self.fits_offset(transfer.offset, transfer.len);
        let id = self.free.pop().unwrap_or(self.slots.len());
        if id == self.slots.len() {
            self.slots.push(Some(transfer));
        } else {
            self.slots[id] = Some(transfer);
        }
        self.backlog.push_back(id);
    }

    /// Brings what waits onto the ring, as far as there is room, and submits.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        while let Some(&id) = self.backlog.front() {
            let count = count_adjacent(&self.backlog, &self.slots);
            let is_brought = if count > 1 { self.bring_merged(count)? } else { self.bring_to_ring(id)? };
            if !is_brought {
                break;
            }
            self.backlog.drain(..count);
        }
        self.ring.submit()
    }

    /// Transfers that have not ended.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether something waits for room though nothing is under way whose end would give it.
    pub(crate) fn is_held_up(&self) -> bool {
        !self.backlog.is_empty() && self.on_ring == 0
    }

    /// Bytes in bounce buffers.
    #[cfg(test)]
    pub(super) fn bounced_len(&self) -> usize {
        self.bounced_len
    }

    fn bring_to_ring(&mut self, id: usize) -> io::Result<bool> {
        let Some(transfer) = self.slots.get_mut(id).and_then(Option::as_mut) else {
            panic!("transfer {id} waits but does not exist");
        };
        if transfer.needs_bounce && transfer.bounce.is_none() {
            let is_edge = matches!(transfer.kind, Kind::Edge { .. } | Kind::ReadPage);
            let len = transfer.len as usize;
            if !is_edge && self.bounced_len > 0 && self.bounced_len + len > MAX_BOUNCED_LEN {
                return Ok(false);
            }
            self.bounced_len += len;
            transfer.fill_bounce();
        }
        let entry = transfer.entry(&self.disk).user_data(id as u64);
        // SAFETY: the pieces, the bounce buffer and the vectors that name them are in the slot until the completion is
        // taken; guest memory outlives the worker; the descriptor is open as long as `self.disk`.
        let pushed = unsafe { self.ring.push(&entry) }?;
        self.on_ring += usize::from(pushed);
        Ok(pushed)
    }

    /// Brings the first `count` of those that wait onto the ring as one operation.
    fn bring_merged(&mut self, count: usize) -> io::Result<bool> {
        let ids = self.backlog.iter().copied().take(count);
        let (number, entry) = self.merges.insert(ids, &self.slots, self.disk.disk.file().as_raw_fd());
        // SAFETY: the pieces, and the vector that names them, are kept until the completion is taken; for the rest as
        // above.
        let pushed = unsafe { self.ring.push(&entry.user_data(MERGED | number as u64)) }?;
        if pushed {
            self.on_ring += 1;
        } else {
            self.merges.take(number, &mut self.ended_together);
            self.ended_together.clear();
        }
        Ok(pushed)
    }

    /// Takes the completion of an operation; transfers that have ended with it go into `ended`.
    pub(crate) fn completed(&mut self, user_data: u64, result: i32, ended: &mut Vec<Finished>) {
        self.on_ring -= 1;
        if user_data & MERGED == 0 {
            ended.extend(self.continued(user_data as usize, result));
            return;
        }
        let mut ids = std::mem::take(&mut self.ended_together);
        self.merges.take((user_data & !MERGED) as usize, &mut ids);
        // Nothing if it failed: whose error it is shows when they are done one by one.
        let mut moved = u64::try_from(result).unwrap_or(0);
        let mut whole = 0;
        for &id in &ids {
            let len = self.slots[id].as_ref().map_or(0, |transfer| transfer.len);
            if len > moved {
                break;
            }
            moved -= len;
            whole += 1;
        }
        for id in ids.drain(whole..).rev() {
            if let Some(transfer) = &mut self.slots[id] {
                transfer.mergeable = false;
            }
            self.backlog.push_front(id);
        }
        for id in ids.drain(..) {
            let len = self.slots[id].as_ref().map_or(0, |transfer| transfer.len);
            ended.extend(self.continued(id, len as i32));
        }
        self.ended_together = ids;
    }

    /// Takes what was done of transfer `id`; `None` if it goes on.
    fn continued(&mut self, id: usize, result: i32) -> Option<Finished> {
        let Some(transfer) = self.slots.get_mut(id).and_then(Option::as_mut) else {
            panic!("completion of transfer {id}, which does not exist");
        };
        let result = match transfer.take_result(result) {
            Progress::GoesOn => {
                // In front of those that wait for a bounce buffer, which only this one's end may free.
                self.backlog.push_front(id);
                return None;
            }
            Progress::Ended(result) => result,
        };
        let mut transfer = self.slots[id].take()?;
        self.free.push(id);
        let bounce = transfer.bounce.take();
        self.bounced_len -= bounce.as_ref().map_or(0, |bytes| bytes.len());
        if transfer.kind == Kind::Read
            && result.is_ok()
            && let Some(bytes) = &bounce
        {
            scatter(&bytes[transfer.skip..], &transfer.pieces);
        }
        transfer.pieces.clear();
        self.spare_pieces.push(transfer.pieces);
        let page = bounce.filter(|_| transfer.kind == Kind::ReadPage);
        Some(Finished { task: transfer.task, result: result.map(|()| page) })
    }

    fn fits_offset(&self, offset: u64, len: u64) -> bool {
        (offset | len).is_multiple_of(u64::from(self.disk.alignment.offset))
    }

    fn fits_memory(&self, pieces: &[iovec]) -> bool {
        let (memory, offset) = (self.disk.alignment.memory as usize, self.disk.alignment.offset as usize);
        pieces.iter().all(|p| p.iov_base.addr().is_multiple_of(memory) && p.iov_len.is_multiple_of(offset))
    }
}

impl Drop for Transfers {
    fn drop(&mut self) {
        if self.on_ring > 0 {
            // Only a panic comes here. The kernel may still write into memory that is about to be freed.
            log::error!("a queue ended with {} operations under way", self.on_ring);
            std::process::abort();
        }
    }
}

#[cfg(test)]
#[path = "transfers_tests.rs"]
mod tests;
