//! Operations on the container's file, from their start to their end on the ring.
//!
//! A transfer moves bytes between memory pieces and the file, completes short ones, repeats interrupted ones, waits for
//! room on the ring, and goes through a bounce buffer where direct I/O cannot use the pieces as they are. Invariant:
//! what the kernel may still touch is owned by the slot of its transfer, or is guest memory that the worker keeps.
//! Does not: know requests and plans; it only carries the number of the task it works for.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{opcode, squeue};
use libc::iovec;

use super::DataDisk;
use super::buffers::{AlignedBuf, advance, gather, scatter, total_len};
use super::ring::Ring;
use crate::virtio::chain::MAX_SEGMENTS;

/// Longest bounced transfer.
const MAX_BOUNCE_LEN: u64 = 256 << 10;
/// Most bounce buffers at a time; more transfers wait.
const MAX_BOUNCES: usize = 32;
/// Longest transfer: what one read or write of the kernel moves, rounded down to chunks.
const MAX_LEN: u64 = 1 << 30;
/// How often an operation that the kernel refuses for now is tried again.
const MAX_RETRIES: u32 = 10_000;
const BLOCK_LEN: usize = pitstop_format::BLOCK_LEN as usize;

/// What a transfer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// From the file into the pieces.
    Read,
    /// From the pieces to the file.
    Write,
    /// From the pieces to the file, durable when it ends.
    WriteDurable,
    /// Makes the file's data durable.
    Sync,
    /// Reads a block, which comes back with the end of the transfer.
    ReadPage,
    /// Completes a block: reads it from `source` (zeros if `None`), lays the pieces over it, writes it.
    Edge {
        /// File offset of the block to start from.
        source: Option<u64>,
        /// Where the pieces go in the block.
        offset_in_block: usize,
    },
}

/// The end of a transfer.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The task it worked for.
    pub(crate) task: usize,
    /// How it ended; the block, if it was a [`Kind::ReadPage`].
    pub(crate) result: io::Result<Option<AlignedBuf>>,
}

struct Transfer {
    task: usize,
    kind: Kind,
    /// Memory side; what remains of it unless bounced.
    pieces: Vec<iovec>,
    /// File side: where the next byte goes.
    offset: u64,
    /// Bytes that remain.
    len: u64,
    bounce: Option<AlignedBuf>,
    needs_bounce: bool,
    /// An [`Kind::Edge`] that has its block and now writes it.
    writing_edge: bool,
    retries: u32,
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
    bounces: usize,
    spare_pieces: Vec<Vec<iovec>>,
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
            bounces: 0,
            spare_pieces: Vec::new(),
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
            self.insert(task, kind, pieces, offset, len, kind != Kind::Sync);
            return 1;
        }
        let needs_bounce = self.fits_offset(offset, len) && !self.fits_memory(&pieces);
        let step = if needs_bounce { MAX_BOUNCE_LEN } else { MAX_LEN };
        let (mut count, mut done) = (1, 0);
        while len - done > step || pieces.len() > MAX_SEGMENTS {
            let (first, first_len) = self.split_front(&mut pieces, step);
            self.insert(task, kind, first, offset + done, first_len, needs_bounce);
            done += first_len;
            count += 1;
        }
        self.insert(task, kind, pieces, offset + done, len - done, needs_bounce);
        count
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

    fn insert(&mut self, task: usize, kind: Kind, pieces: Vec<iovec>, offset: u64, len: u64, needs_bounce: bool) {
        let transfer = Transfer {
            task,
            kind,
            pieces,
            offset,
            len,
            bounce: None,
            needs_bounce,
            writing_edge: matches!(kind, Kind::Edge { source: None, .. }),
            retries: 0,
        };
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
        for _ in 0..self.backlog.len() {
            let Some(id) = self.backlog.pop_front() else { break };
            if !self.bring_to_ring(id)? {
                self.backlog.push_front(id);
                break;
            }
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

    fn bring_to_ring(&mut self, id: usize) -> io::Result<bool> {
        let Some(transfer) = self.slots.get_mut(id).and_then(Option::as_mut) else {
            panic!("transfer {id} waits but does not exist");
        };
        if transfer.needs_bounce && transfer.bounce.is_none() {
            let is_edge = matches!(transfer.kind, Kind::Edge { .. } | Kind::ReadPage);
            if !is_edge && self.bounces >= MAX_BOUNCES {
                return Ok(false);
            }
            self.bounces += 1;
            transfer.fill_bounce();
        }
        let entry = transfer.entry(&self.disk).user_data(id as u64);
        // SAFETY: the pieces, the bounce buffer and the vectors that name them are in the slot until the completion is
        // taken; guest memory outlives the worker; the descriptor is open as long as `self.disk`.
        let pushed = unsafe { self.ring.push(&entry) }?;
        self.on_ring += usize::from(pushed);
        Ok(pushed)
    }

    /// Takes the completion of transfer `id`; `None` if it goes on.
    pub(crate) fn completed(&mut self, id: usize, result: i32) -> Option<Finished> {
        let Some(transfer) = self.slots.get_mut(id).and_then(Option::as_mut) else {
            panic!("completion of transfer {id}, which does not exist");
        };
        self.on_ring -= 1;
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
        self.bounces -= usize::from(bounce.is_some());
        if transfer.kind == Kind::Read
            && result.is_ok()
            && let Some(bytes) = &bounce
        {
            scatter(bytes, &transfer.pieces);
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

enum Progress {
    GoesOn,
    Ended(io::Result<()>),
}

impl Transfer {
    fn fill_bounce(&mut self) {
        let mut bounce = AlignedBuf::zeroed(self.len as usize);
        match self.kind {
            Kind::Write | Kind::WriteDurable => gather(&self.pieces, &mut bounce),
            Kind::Edge { source: None, offset_in_block } => gather(&self.pieces, &mut bounce[offset_in_block..]),
            Kind::Edge { source: Some(_), .. } | Kind::Read | Kind::ReadPage | Kind::Sync => {}
        }
        self.bounce = Some(bounce);
    }

    fn is_read(&self) -> bool {
        match self.kind {
            Kind::Read | Kind::ReadPage => true,
            Kind::Edge { .. } => !self.writing_edge,
            Kind::Write | Kind::WriteDurable | Kind::Sync => false,
        }
    }

    /// The file offset of the next byte.
    fn file_offset(&self) -> u64 {
        match self.kind {
            // `offset` is that of the block to write; what is done of it is what its length lacks.
            Kind::Edge { source: Some(source), .. } if !self.writing_edge => source + (BLOCK_LEN as u64 - self.len),
            _ => self.offset,
        }
    }

    fn entry(&mut self, disk: &DataDisk) -> squeue::Entry {
        let direct: RawFd = disk.disk.file().as_raw_fd();
        if self.kind == Kind::Sync {
            return opcode::Fsync::new(Fd(direct)).flags(FsyncFlags::DATASYNC).build();
        }
        let offset = self.file_offset();
        let fits = (offset | self.len).is_multiple_of(u64::from(disk.alignment.offset));
        let fd = Fd(match &disk.buffered {
            Some(file) if !fits => file.as_raw_fd(),
            _ => direct,
        });
        let flags = if self.kind == Kind::WriteDurable { libc::RWF_DSYNC } else { 0 };
        let is_read = self.is_read();
        let remaining = self.len as usize;
        let single = match (&mut self.bounce, self.pieces.as_slice()) {
            (Some(bounce), _) => Some(bounce.iovec_from(bounce.len() - remaining)),
            (None, [piece]) => Some(*piece),
            (None, _) => None,
        };
        if let Some(iovec { iov_base, iov_len }) = single {
            return if is_read {
                opcode::Read::new(fd, iov_base.cast(), iov_len as u32).offset(offset).build()
            } else {
                opcode::Write::new(fd, iov_base.cast_const().cast(), iov_len as u32)
                    .offset(offset)
                    .rw_flags(flags)
                    .build()
            };
        }
        let (pieces, count) = (self.pieces.as_ptr(), self.pieces.len() as u32);
        if is_read {
            opcode::Readv::new(fd, pieces, count).offset(offset).build()
        } else {
            opcode::Writev::new(fd, pieces, count).offset(offset).rw_flags(flags).build()
        }
    }

    /// Accounts for what the kernel did.
    fn take_result(&mut self, result: i32) -> Progress {
        if result < 0 {
            let error = io::Error::from_raw_os_error(-result);
            let again = matches!(-result, libc::EAGAIN | libc::EINTR) && self.retries < MAX_RETRIES;
            self.retries += 1;
            return if again { Progress::GoesOn } else { Progress::Ended(Err(error)) };
        }
        if self.kind == Kind::Sync {
            return Progress::Ended(Ok(()));
        }
        let moved = result as u64;
        if moved == 0 {
            let kind = if self.is_read() { io::ErrorKind::UnexpectedEof } else { io::ErrorKind::WriteZero };
            return Progress::Ended(Err(kind.into()));
        }
        assert!(moved <= self.len, "the kernel moved more than it was asked to");
        self.len -= moved;
        let reading_edge = matches!(self.kind, Kind::Edge { .. }) && !self.writing_edge;
        if !reading_edge {
            self.offset += moved;
        }
        if self.bounce.is_none() {
            advance(&mut self.pieces, moved as usize);
        }
        if self.len > 0 {
            return Progress::GoesOn;
        }
        if reading_edge {
            self.turn_edge_to_writing();
            return Progress::GoesOn;
        }
        Progress::Ended(Ok(()))
    }

    fn turn_edge_to_writing(&mut self) {
        let Kind::Edge { offset_in_block, .. } = self.kind else { return };
        if let Some(bounce) = &mut self.bounce {
            gather(&self.pieces, &mut bounce[offset_in_block..]);
        }
        self.writing_edge = true;
        self.len = BLOCK_LEN as u64;
    }
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
