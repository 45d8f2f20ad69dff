//! Containers as images: of one volume each.
//!
//! Invariant: a container with none or several volumes is no image of a disk, and refused. A container that is made is at
//! rest, and holds nothing but its volume. Does not: decide where containers lie.

use std::path::{Path, PathBuf};

use pitstop_format::{Container, CreateOptions, Extent, FileDisk, Maintained, OpenMode, VolumeIo};

use super::ImageFile;
use crate::copy::{Run, Sink, Source};
use crate::error::{Error, Result};

/// What a container begins with.
pub(super) const MAGIC: &[u8] = b"PITSTOP\0";
/// Unit of zero detection in bytes: a block of a container.
const GRANULARITY: usize = 4096;
/// Longest stretch that is looked at before some of it is read, in bytes.
const MAX_LOOK_LEN: u64 = 1 << 30;

/// The only volume of a container.
#[derive(Debug)]
pub(crate) struct PitstopSource {
    path: PathBuf,
    io: VolumeIo,
    len_bytes: u64,
}

impl PitstopSource {
    /// Opens the container `image`, which nobody may hold for changes.
    pub(crate) fn open(image: &ImageFile) -> Result<Self> {
        let failed = || Error::container(&image.path);
        let disk = FileDisk::open(&image.path, OpenMode::ReadOnly).map_err(failed())?;
        let container = Container::open(disk, OpenMode::ReadOnly).map_err(failed())?;
        let volumes = container.volumes();
        let [only] = &volumes[..] else {
            return Err(image.wrong(
                format!("is a container of {} volumes", volumes.len()),
                "an image is a container of one: make an image of the volume that is meant with `pitstop export`",
            ));
        };
        let volume = container.defined_volume(&only.name).map_err(failed())?;
        let len_bytes = volume.size();
        Ok(Self { path: image.path.clone(), io: VolumeIo::new(&container, volume), len_bytes })
    }
}

impl Source for PitstopSource {
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

/// A container in the making.
#[derive(Debug)]
pub(crate) struct PitstopSink {
    path: PathBuf,
    container: Container,
    io: VolumeIo,
}

impl PitstopSink {
    /// Makes the empty file `file` a container with the empty volume `name`; `path` is what messages call it.
    pub(crate) fn create(file: &Path, path: &Path, name: &str, len_bytes: u64) -> Result<Self> {
        let failed = || Error::container(path);
        let disk = FileDisk::open(file, OpenMode::ReadWrite).map_err(failed())?;
        Container::create(disk.clone(), &CreateOptions::default()).map_err(failed())?;
        let container = Container::open(disk, OpenMode::ReadWrite).map_err(failed())?;
        container.create_volume(name, len_bytes).map_err(failed())?;
        let volume = container.volume(name).map_err(failed())?;
        let io = VolumeIo::new(&container, volume);
        Ok(Self { path: path.to_owned(), container, io })
    }

    /// Makes what was written durable, and brings the container to rest.
    pub(crate) fn finish(self) -> Result<()> {
        let Self { path, container, io } = self;
        let closed = io.flush().and_then(|()| {
            while container.maintain()? == Maintained::Worked {}
            container.close()
        });
        closed.map_err(Error::container(&path))
    }
}

impl Sink for PitstopSink {
    fn granularity(&self) -> usize {
        GRANULARITY
    }

    fn write_at(&mut self, buf: &[u8], offset: u64) -> Result<()> {
        self.io.write_at(buf, offset).map_err(Error::container(&self.path))
    }
}
