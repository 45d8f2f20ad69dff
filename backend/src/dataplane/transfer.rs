//! One operation on the container's file.
//!
//! A transfer moves bytes between memory pieces and the file, completes short operations, repeats interrupted ones, and
//! goes through a bounce buffer where direct I/O cannot use the pieces as they are, or where what was read is verified before
//! anybody sees it. Does not: enter the ring (`transfers`).

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{opcode, squeue};
use libc::iovec;
use pitstop_format::Check;

use super::DataDisk;
use super::buffers::{AlignedBuf, advance, gather};
use crate::virtio::request::RequestError;

/// How often an operation that the kernel refuses for now is tried again.
const MAX_RETRIES: u32 = 10_000;
pub(super) const BLOCK_LEN: usize = pitstop_format::BLOCK_LEN as usize;

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

/// A transfer under way.
pub(super) struct Transfer {
    pub(super) task: usize,
    pub(super) kind: Kind,
    /// Memory side; what remains of it unless bounced.
    pub(super) pieces: Vec<iovec>,
    /// File side: where the next byte goes.
    pub(super) offset: u64,
    /// Bytes that remain.
    pub(super) len: u64,
    pub(super) bounce: Option<AlignedBuf>,
    pub(super) needs_bounce: bool,
    /// An [`Kind::Edge`] that has its block and now writes it.
    pub(super) writing_edge: bool,
    /// May go as one operation with its neighbours: direct I/O can use its pieces, and no such operation has failed it.
    pub(super) mergeable: bool,
    pub(super) retries: u32,
    /// What is read is refused unless it fits this: the whole blocks around it are in the bounce buffer then (TAG-15).
    pub(super) check: Option<Check>,
    /// Bytes of the bounce buffer before those that were asked for.
    pub(super) skip: usize,
}

/// What a transfer needs after a completion.
pub(super) enum Progress {
    GoesOn,
    Ended(Result<(), RequestError>),
}

impl Transfer {
    pub(super) fn new(task: usize, kind: Kind, pieces: Vec<iovec>, offset: u64, len: u64) -> Self {
        Transfer {
            task,
            kind,
            pieces,
            offset,
            len,
            bounce: None,
            needs_bounce: matches!(kind, Kind::ReadPage | Kind::Edge { .. }),
            writing_edge: matches!(kind, Kind::Edge { source: None, .. }),
            mergeable: false,
            retries: 0,
            check: None,
            skip: 0,
        }
    }

    pub(super) fn fill_bounce(&mut self) {
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

    pub(super) fn entry(&mut self, disk: &DataDisk) -> squeue::Entry {
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
    pub(super) fn take_result(&mut self, result: i32) -> Progress {
        if result < 0 {
            let error = io::Error::from_raw_os_error(-result);
            let again = matches!(-result, libc::EAGAIN | libc::EINTR) && self.retries < MAX_RETRIES;
            self.retries += 1;
            return if again { Progress::GoesOn } else { Progress::Ended(Err(error.into())) };
        }
        if self.kind == Kind::Sync {
            return Progress::Ended(Ok(()));
        }
        let moved = result as u64;
        if moved == 0 {
            let kind = if self.is_read() { io::ErrorKind::UnexpectedEof } else { io::ErrorKind::WriteZero };
            return Progress::Ended(Err(io::Error::from(kind).into()));
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
        if let (true, Some(check), Some(bytes)) = (self.is_read(), &self.check, &self.bounce)
            && let Err(unfit) = check.verify(bytes)
        {
            return Progress::Ended(Err(unfit.into()));
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
