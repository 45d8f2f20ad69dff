//! Raw images: sparse on both sides.
//!
//! Invariant: holes of the file are found by the system (`SEEK_DATA`, `SEEK_HOLE`), never read; what is not written stays
//! a hole. Where the system cannot tell, everything counts as data and zero detection does the rest. Does not: know
//! other formats.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{ImageFile, padded};
use crate::copy::{Run, Sink, Source};
use crate::error::{Error, Result};

/// Unit of zero detection in bytes: a page of the page cache, and a block of the container.
const GRANULARITY: usize = 4096;

/// A raw image to read.
#[derive(Debug)]
pub(crate) struct RawSource {
    image: ImageFile,
}

impl RawSource {
    /// Reads `image` as it is.
    pub(crate) fn new(image: ImageFile) -> Self {
        Self { image }
    }
}

impl Source for RawSource {
    fn len(&self) -> u64 {
        padded(self.image.len_bytes)
    }

    fn run_at(&mut self, offset: u64) -> Result<(Run, u64)> {
        if offset >= self.image.len_bytes {
            return Ok((Run::Zero, self.len() - offset));
        }
        let (run, len) = run_of(&self.image.file, &self.image.path, offset, self.image.len_bytes)?;
        if offset + len == self.image.len_bytes {
            // The padding belongs to the last run.
            return Ok((run, self.len() - offset));
        }
        Ok((run, len))
    }

    fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        let in_file =
            usize::try_from(self.image.len_bytes.saturating_sub(offset)).map_or(buf.len(), |len| len.min(buf.len()));
        let (data, padding) = buf.split_at_mut(in_file);
        self.image.file.read_exact_at(data, offset).map_err(Error::file("read", &self.image.path))?;
        padding.fill(0);
        Ok(())
    }
}

/// What lies at `offset < len` of a file, and how far, at most up to `len`.
pub(super) fn run_of(file: &File, path: &Path, offset: u64, len: u64) -> Result<(Run, u64)> {
    let failed = |error: Errno| Error::file("find the holes of", path)(error.into());
    let data = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => data,
        Err(Errno::NXIO) => return Ok((Run::Zero, len - offset)),
        // Block devices and some file systems cannot tell.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((Run::Data, len - offset)),
        Err(error) => return Err(failed(error)),
    };
    if data > offset {
        return Ok((Run::Zero, data.min(len) - offset));
    }
    let hole = rustix::fs::seek(file, SeekFrom::Hole(offset)).map_err(failed)?;
    // A file that shrinks meanwhile must not stall the copy.
    Ok((Run::Data, hole.clamp(offset + 1, len) - offset))
}

/// A raw image being written.
#[derive(Debug)]
pub(crate) struct RawSink {
    file: File,
    path: PathBuf,
}

impl RawSink {
    /// Makes the empty `file` a hole of `len_bytes`; `path` is what messages call it.
    pub(crate) fn create(file: File, path: &Path, len_bytes: u64) -> Result<Self> {
        file.set_len(len_bytes).map_err(Error::file("set the length of", path))?;
        Ok(Self { file, path: path.to_owned() })
    }
}

impl Sink for RawSink {
    fn granularity(&self) -> usize {
        GRANULARITY
    }

    fn write_at(&mut self, buf: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(buf, offset).map_err(Error::file("write", &self.path))
    }
}
