//! Blocking I/O on a volume: carries out plans on the container's own disk.
//!
//! Role: what the tools and the tests use; the daemon carries plans out with its own rings. Does not: run concurrently
//! with itself faster than one request at a time a caller.

use std::ops::Range;

use crate::addendum::Piece;
use crate::container::flush_waker;
use crate::container::{Check, Container, TaggedPart, TaggedRead};
use crate::error::{Error, Result};
use crate::sync::thread;
use crate::units::{BLOCK_LEN, MIN_IO_LEN};
use crate::volume::{Edge, EdgeSource, Planned, ReadPlan, ReadSegment, Volume, WriteSegment, ZeroKind};

/// Largest piece that one plan covers.
const STEP: u64 = 4 << 20;

/// Whether a run of blocks holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Some layer has data for it; the data may be zeros.
    Data,
    /// Reads as zeros without any data being read.
    Zero,
}

/// Blocking reads and writes of one volume.
#[derive(Debug, Clone)]
pub struct VolumeIo {
    container: Container,
    volume: Volume,
}

impl VolumeIo {
    /// I/O on `volume` of `container`.
    pub fn new(container: &Container, volume: Volume) -> Self {
        Self { container: container.clone(), volume }
    }

    /// Repeats `plan` until it is ready, loading pages and doing background work where it asks for that.
    fn planned<T>(&self, mut plan: impl FnMut(&std::task::Waker) -> Result<Planned<T>>) -> Result<T> {
        let waker = flush_waker();
        loop {
            match plan(&waker)? {
                Planned::Ready(ready) => return Ok(ready),
                Planned::NeedPage(load) => self.container.load_page(load)?,
                Planned::Busy => match self.container.maintain()? {
                    crate::Maintained::Worked => {}
                    // Another thread's request is in the way, and wakes this one when it ends.
                    crate::Maintained::Idle => thread::park_timeout(std::time::Duration::from_millis(10)),
                },
            }
        }
    }

    /// Reads `buf.len()` bytes at `offset`; both multiples of 512. What has tags is verified.
    ///
    /// Errors: those of planning, [`Error::Io`], [`Error::Corrupt`] for data that is not what was sealed.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut plan = ReadPlan::default();
        let mut at = offset;
        for piece in buf.chunks_mut(STEP as usize) {
            let range = at..at + piece.len() as u64;
            let mut parts = loop {
                self.planned(|_| self.volume.plan_read(range.clone(), &mut plan))?;
                let mut read = TaggedRead::of_plan(&plan);
                if self.container.load_tags(&mut read) {
                    break read.into_parts();
                }
            };
            let mut rest = &mut *piece;
            for segment in plan.segments() {
                match *segment {
                    ReadSegment::Data { disk_offset, len } => {
                        let (now, later) = rest.split_at_mut(len as usize);
                        self.container.disk().read_at(now, disk_offset).map_err(Error::io("cannot read data"))?;
                        self.verify(now, &mut parts)?;
                        rest = later;
                    }
                    ReadSegment::Zero { len } => {
                        let (now, later) = rest.split_at_mut(len as usize);
                        now.fill(0);
                        rest = later;
                    }
                }
            }
            at = range.end;
        }
        Ok(())
    }

    /// Refuses bytes that were read from the container if they are not what was sealed (TAG-5); `parts` go on with theirs. A
    /// block that was read in part is read again as a whole.
    fn verify(&self, bytes: &mut [u8], parts: &mut impl Iterator<Item = TaggedPart>) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some(TaggedPart { disk_offset, len, check }) = parts.next() else {
                unreachable!("the parts are those of the plan that was read")
            };
            let (now, later) = rest.split_at_mut(len as usize);
            rest = later;
            let Some(check) = check else { continue };
            if (check.disk_offset(), check.len_bytes()) == (disk_offset, len) {
                check.verify(now)?;
            } else {
                let whole = self.read_whole(&check)?;
                now.copy_from_slice(&whole[(disk_offset - check.disk_offset()) as usize..][..now.len()]);
            }
        }
        Ok(())
    }

    /// The blocks of a check, verified.
    fn read_whole(&self, check: &Check) -> Result<Vec<u8>> {
        let mut whole = vec![0; check.len_bytes() as usize];
        self.container.disk().read_at(&mut whole, check.disk_offset()).map_err(Error::io("cannot read data"))?;
        check.verify(&whole)?;
        Ok(whole)
    }

    /// Writes `buf` at `offset`; length and offset are multiples of 512. Durable after [`VolumeIo::flush`].
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let mut at = offset;
        for piece in buf.chunks(STEP as usize) {
            let range = at..at + piece.len() as u64;
            let (ticket, sources) = loop {
                let ticket = self.planned(|waker| self.volume.plan_write(range.clone(), waker))?;
                if let Some(sources) = self.sources_of(ticket.edges()) {
                    break (ticket, sources);
                }
            };
            self.carry_out(piece, ticket.segments(), ticket.edges(), sources)?;
            ticket.complete();
            at = range.end;
        }
        Ok(())
    }

    /// Where the rest of blocks comes from; nothing if that is elsewhere by now.
    fn sources_of(&self, edges: &[Edge]) -> Option<TaggedRead> {
        let mut read = TaggedRead::of_edges(edges);
        self.container.load_tags(&mut read).then_some(read)
    }

    fn carry_out(&self, buf: &[u8], segments: &[WriteSegment], edges: &[Edge], sources: TaggedRead) -> Result<()> {
        let disk = self.container.disk();
        let mut sources = sources.into_parts();
        for edge in edges {
            let mut block = vec![0; BLOCK_LEN as usize];
            if let EdgeSource::Disk { offset } = edge.source {
                // A copy: what was damaged must not become the volume's own.
                match sources.next().and_then(|part| part.check) {
                    Some(check) => block = self.read_whole(&check)?,
                    None => disk.read_at(&mut block, offset).map_err(Error::io("cannot read data"))?,
                }
            }
            let from = edge.buffer_offset as usize;
            block[edge.offset_in_block..edge.offset_in_block + edge.len].copy_from_slice(&buf[from..from + edge.len]);
            disk.write_at(&block, edge.disk_offset).map_err(Error::io("cannot write data"))?;
        }
        for segment in segments {
            let from = segment.buffer_offset as usize;
            disk.write_at(&buf[from..from + segment.len as usize], segment.disk_offset)
                .map_err(Error::io("cannot write data"))?;
        }
        Ok(())
    }

    /// Makes `range` read as zeros.
    pub fn write_zeroes(&self, range: Range<u64>) -> Result<()> {
        self.zero(range, ZeroKind::WriteZeroes)
    }

    /// Gives up the contents of `range`: whole blocks in it read as zeros.
    pub fn discard(&self, range: Range<u64>) -> Result<()> {
        self.zero(range, ZeroKind::Discard)
    }

    fn zero(&self, range: Range<u64>, kind: ZeroKind) -> Result<()> {
        let mut rest = Some(range);
        while let Some(range) = rest {
            let ticket = self.planned(|waker| self.volume.plan_zero(range.clone(), kind, waker))?;
            let Some(sources) = self.sources_of(ticket.edges()) else {
                // Whole blocks have been zeroed, which may be done twice.
                rest = Some(range);
                continue;
            };
            let longest = ticket.segments().iter().map(|s| s.buffer_offset + s.len);
            let longest = longest.chain(ticket.edges().iter().map(|e| e.buffer_offset + e.len as u64)).max();
            let zeros = vec![0; longest.unwrap_or(0) as usize];
            self.carry_out(&zeros, ticket.segments(), ticket.edges(), sources)?;
            rest = ticket.remaining();
            ticket.complete();
        }
        Ok(())
    }

    /// Writes what is to be from byte `start` on; a multiple of 512 as its length is. Durable after [`VolumeIo::flush`].
    ///
    /// Errors: those of planning, [`Error::BadRange`] before anything is written.
    pub fn put(&self, start: u64, piece: Piece<'_>) -> Result<()> {
        let len = match piece {
            Piece::Data(data) => data.len() as u64,
            Piece::Zeros(len) => len,
        };
        let (end, size) = (start.saturating_add(len), self.volume.size());
        if end > size || !(start | len).is_multiple_of(MIN_IO_LEN) {
            return Err(Error::BadRange { start, end, size });
        }
        match piece {
            _ if len == 0 => Ok(()),
            Piece::Data(data) => self.write_at(data, start),
            Piece::Zeros(_) => self.write_zeroes(start..end),
        }
    }

    /// Makes all that was written before durable.
    pub fn flush(&self) -> Result<()> {
        self.container.run_flush(self.volume.start_flush(), true)
    }

    /// Whether the run that begins at `range.start` holds data, and its length in bytes, at most to `range.end`.
    pub fn block_status(&self, range: Range<u64>) -> Result<(Extent, u64)> {
        let mut plan = ReadPlan::default();
        let mut first: Option<Extent> = None;
        let mut at = range.start;
        while at < range.end {
            if let Some(end) = self.volume.untouched_until(at) {
                if *first.get_or_insert(Extent::Zero) == Extent::Data {
                    return Ok((Extent::Data, at - range.start));
                }
                at = end.min(range.end);
                continue;
            }
            let step = at..range.end.min(at + STEP);
            self.planned(|_| self.volume.plan_read(step.clone(), &mut plan))?;
            for segment in plan.segments() {
                let (extent, len) = match *segment {
                    ReadSegment::Data { len, .. } => (Extent::Data, len),
                    ReadSegment::Zero { len } => (Extent::Zero, len),
                };
                let first = *first.get_or_insert(extent);
                if first != extent {
                    return Ok((first, at - range.start));
                }
                at += len;
            }
        }
        Ok((first.unwrap_or(Extent::Zero), at - range.start))
    }
}

const _: () = assert!(STEP.is_multiple_of(MIN_IO_LEN));
