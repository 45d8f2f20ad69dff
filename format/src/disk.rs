//! The storage under a container, as the format sees it.
//!
//! Role: the few operations that metadata needs, so that a file, a simulated disk or a fault injector can stand below
//! the same engine. Does not: carry guest data (the caller executes plans itself) or know what it stores.

use std::{fmt, io};

/// Bytes that storage reads, or fails to read, by themselves.
const SECTOR_LEN: usize = 512;

/// A random-access store of bytes. All calls block; reads and writes are exact, a short transfer is an error.
///
/// Buffers need no particular alignment: an implementation that needs one bounces.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the disk holds no byte.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from `offset`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset`; durable only after a later [`Disk::sync`].
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset` and returns when those bytes are durable.
    fn write_at_durable(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Returns when all writes that completed before the call are durable.
    fn sync(&self) -> io::Result<()>;

    /// Bytes by which the disk can still grow, as far as the store can tell now; `None` if it cannot.
    fn room(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Makes the disk at least `len` bytes long, with space allocated where the store can do that. New bytes read as
    /// zeros.
    fn grow(&self, len: u64) -> io::Result<()>;
}

/// Fills `buf` from `offset` as far as it can be read, with zeros elsewhere; the offsets of sectors that cannot be, and why.
pub(crate) fn read_what_can_be(disk: &dyn Disk, buf: &mut [u8], offset: u64) -> Vec<(u64, io::Error)> {
    if disk.read_at(buf, offset).is_ok() {
        return Vec::new();
    }
    let sectors = buf.chunks_mut(SECTOR_LEN).zip((offset..).step_by(SECTOR_LEN));
    let unread = sectors.filter_map(|(sector, at)| {
        let error = disk.read_at(sector, at).err()?;
        sector.fill(0);
        Some((at, error))
    });
    unread.collect()
}
