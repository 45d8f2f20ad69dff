//! A disk in front of another: writes stay in memory.
//!
//! Role: a repair is carried out here first and checked, and touches the container only if the result is sound.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use crate::disk::Disk;
use crate::units::PAGE_LEN;

/// Whole pages over `disk`.
#[derive(Debug)]
pub(super) struct Shadow<'a> {
    disk: &'a dyn Disk,
    pages: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl<'a> Shadow<'a> {
    pub(super) fn new(disk: &'a dyn Disk) -> Self {
        Self { disk, pages: Mutex::default() }
    }
}

impl Disk for Shadow<'_> {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        // What has been written in one page is read even where the disk cannot be.
        let page_of = |at: u64| at / PAGE_LEN as u64 * PAGE_LEN as u64;
        if buf.is_empty() || page_of(offset) != page_of(end - 1) || !pages.contains_key(&page_of(offset)) {
            self.disk.read_at(buf, offset)?;
        }
        let first = offset / PAGE_LEN as u64 * PAGE_LEN as u64;
        for (&at, page) in pages.range(first..end) {
            let (from, to) = (at.max(offset), (at + PAGE_LEN as u64).min(end));
            buf[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&page[(from - at) as usize..(to - at) as usize]);
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if !offset.is_multiple_of(PAGE_LEN as u64) || !buf.len().is_multiple_of(PAGE_LEN) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        for (page, at) in buf.chunks_exact(PAGE_LEN).zip((offset..).step_by(PAGE_LEN)) {
            pages.insert(at, page.to_vec());
        }
        Ok(())
    }

    fn write_at_durable(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn grow(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
