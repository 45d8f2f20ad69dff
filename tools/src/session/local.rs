//! A volume of a container that is open here, to be read.

use std::path::{Path, PathBuf};

use pitstop_format::{Container, Extent, VolumeIo};

use crate::copy::{Run, Source};
use crate::error::{Error, Result};

/// Longest stretch of a volume that is looked at before some of it is read, in bytes.
const MAX_LOOK_LEN: u64 = 1 << 30;

/// The volume being read.
pub(super) struct LocalSource {
    path: PathBuf,
    io: VolumeIo,
    len_bytes: u64,
}

impl LocalSource {
    /// Volume `name` of `container`, whose file is `path`.
    pub(super) fn new(path: &Path, container: &Container, name: &str) -> Result<Self> {
        let volume = container.defined_volume(name).map_err(Error::container(path))?;
        let len_bytes = volume.size();
        Ok(Self { path: path.to_owned(), io: VolumeIo::new(container, volume), len_bytes })
    }
}

impl Source for LocalSource {
    fn len(&self) -> u64 {
        self.len_bytes
    }

    fn run_at(&mut self, offset: u64) -> Result<(Run, u64)> {
        let end = self.len_bytes.min(offset.saturating_add(MAX_LOOK_LEN));
        let (extent, len) = self.io.block_status(offset..end).map_err(Error::container(&self.path))?;
        let run = match extent {
            Extent::Data => Run::Data,
            Extent::Zero => Run::Zero,
        };
        Ok((run, len))
    }

    fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.io.read_at(buf, offset).map_err(Error::container(&self.path))
    }
}
