//! Blocking I/O on a volume: carries out plans on the container's own disk.
//!
//! Role: what the tools and the tests use; the daemon carries plans out with its own rings. Does not: run concurrently
//! with itself faster than one request at a time a caller.

use std::ops::Range;

use crate::container::Container;
use crate::container::flush_waker;
use crate::error::{Error, Result};
use crate::sync::thread;
use crate::units::{BLOCK_LEN, MIN_IO_LEN, SLAB_LEN, SlabNo, mask_of};
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
            self.planned(|_| self.volume.plan_read(range.clone(), &mut plan))?;
            let mut rest = &mut *piece;
            for segment in plan.segments() {
                match *segment {
                    ReadSegment::Data { disk_offset, len } => {
                        let (now, later) = rest.split_at_mut(len as usize);
                        self.container.disk().read_at(now, disk_offset).map_err(Error::io("cannot read data"))?;
                        self.verify(now, disk_offset)?;
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

    /// Refuses bytes that were read from the container if they are not what was sealed (TAG-5); the plan that led to them is
    /// still there. A block that was read in part is read again as a whole.
    fn verify(&self, bytes: &mut [u8], disk_offset: u64) -> Result<()> {
        let end = disk_offset + bytes.len() as u64;
        let mut at = disk_offset;
        while at < end {
            let (slab, start) = (SlabNo(at / SLAB_LEN), at / SLAB_LEN * SLAB_LEN);
            let first = at / BLOCK_LEN * BLOCK_LEN;
            let last = end.min(start + SLAB_LEN).next_multiple_of(BLOCK_LEN);
            let mask = mask_of((first - start) / BLOCK_LEN, (last - start) / BLOCK_LEN);
            if first >= disk_offset && last <= end {
                let (from, to) = ((first - disk_offset) as usize, (last - disk_offset) as usize);
                self.container.verify(slab, mask, &bytes[from..to])?;
            } else if self.container.has_tags(slab)? {
                let mut whole = vec![0; (last - first) as usize];
                self.container.disk().read_at(&mut whole, first).map_err(Error::io("cannot read data"))?;
                self.container.verify(slab, mask, &whole)?;
                let (from, to) = (first.max(disk_offset), last.min(end));
                let verified = &whole[(from - first) as usize..(to - first) as usize];
                bytes[(from - disk_offset) as usize..(to - disk_offset) as usize].copy_from_slice(verified);
            }
            at = last;
        }
        Ok(())
    }

    /// Writes `buf` at `offset`; length and offset are multiples of 512. Durable after [`VolumeIo::flush`].
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let mut at = offset;
        for piece in buf.chunks(STEP as usize) {
            let range = at..at + piece.len() as u64;
            let ticket = self.planned(|waker| self.volume.plan_write(range.clone(), waker))?;
            self.carry_out(piece, ticket.segments(), ticket.edges())?;
            ticket.complete();
            at = range.end;
        }
        Ok(())
    }

    fn carry_out(&self, buf: &[u8], segments: &[WriteSegment], edges: &[Edge]) -> Result<()> {
        let disk = self.container.disk();
        for edge in edges {
            let mut block = vec![0; BLOCK_LEN as usize];
            if let EdgeSource::Disk { offset } = edge.source {
                disk.read_at(&mut block, offset).map_err(Error::io("cannot read data"))?;
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
            let longest = ticket.segments().iter().map(|s| s.buffer_offset + s.len);
            let longest = longest.chain(ticket.edges().iter().map(|e| e.buffer_offset + e.len as u64)).max();
            let zeros = vec![0; longest.unwrap_or(0) as usize];
            self.carry_out(&zeros, ticket.segments(), ticket.edges())?;
            rest = ticket.remaining();
            ticket.complete();
        }
        Ok(())
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
