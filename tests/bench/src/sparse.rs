//! A container file that takes no space for some data: what is large about it is then its metadata.
//!
//! Invariant: everything but [`DATA`] is written as in any container. Does not: keep that data, which reads as zeros.

use std::io;
use std::path::Path;
use std::sync::Arc;

use pitstop_format::{Disk, FileDisk, OpenMode};

use crate::Result;

/// A file that grows as a hole and drops [`DATA`].
#[derive(Debug)]
pub(crate) struct SparseDisk {
    file: Arc<FileDisk>,
}

/// A write of nothing but this byte is dropped. Metadata never consists of it.
pub(crate) const DATA: u8 = 0xda;

impl SparseDisk {
    /// Opens the file of a container.
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { file: FileDisk::open(path, OpenMode::ReadWrite)? }))
    }
}

impl Disk for SparseDisk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        // Looks at some bytes of each sector: there are many.
        if buf.chunks_exact(512).all(|sector| [0, 100, 511].iter().all(|&n| sector[n] == DATA)) {
            return Ok(());
        }
        self.file.write_at(buf, offset)
    }

    fn write_at_durable(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at_durable(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        let old = self.file.len()?;
        if len > old { self.file.file().set_len(len) } else { Ok(()) }
    }
}
