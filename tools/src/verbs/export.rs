//! `pitstop export`: an image file with the contents of a volume.
//!
//! Invariant: the file bears its name only when it is complete and durable. What reads as zeros is not written, so the
//! file is as sparse as the volume.

use std::path::Path;

use pitstop_format::{Extent, VolumeIo};

use crate::copy::{self, Run, Source};
use crate::error::{Error, Result};
use crate::image::{Format, Overwrite, Qcow2Sink, RawSink, Target};
use crate::interrupt;
use crate::progress::Progress;
use crate::render::printable;
use crate::session::{self, Access, Direct};

/// Longest stretch of a volume that is looked at before some of it is copied, in bytes.
const MAX_LOOK_LEN: u64 = 1 << 30;

/// What to export, and as what.
#[derive(Debug)]
pub(crate) struct Export<'a> {
    /// The container.
    pub(crate) path: &'a Path,
    /// The volume.
    pub(crate) name: &'a str,
    /// The file to make.
    pub(crate) file: &'a Path,
    /// Its format.
    pub(crate) format: Format,
    /// Whether an existing file is replaced.
    pub(crate) overwrite: Overwrite,
}

/// Exports a volume.
pub(crate) fn run(export: &Export<'_>) -> Result<()> {
    let stop = interrupt::stop_flag().map_err(Error::Signals)?;
    let session = session::open_direct(export.path, Access::Read, "exported")?;
    let volume = session.opened().volume(export.name).map_err(session.failed())?;
    let len_bytes = volume.size();
    let io = VolumeIo::new(session.opened(), volume);
    let mut source = VolumeSource { session: &session, io, len_bytes };

    let target = Target::create(export.file, export.overwrite)?;
    let progress = Progress::start(format!("exporting {}", printable(export.name)), len_bytes);
    let at = |offset| progress.at(offset);
    match export.format {
        Format::Raw => {
            let mut sink = RawSink::create(target.file()?, target.path(), len_bytes)?;
            copy::copy(&mut source, &mut sink, &stop, &at)?;
        }
        Format::Qcow2 => {
            let mut sink = Qcow2Sink::create(target.file()?, target.path(), len_bytes)?;
            copy::copy(&mut source, &mut sink, &stop, &at)?;
            sink.finish()?;
        }
    }
    target.finish()?;
    drop(progress);
    session.finish()
}

/// The volume being read.
struct VolumeSource<'a> {
    session: &'a Direct,
    io: VolumeIo,
    len_bytes: u64,
}

impl Source for VolumeSource<'_> {
    fn len(&self) -> u64 {
        self.len_bytes
    }

    fn run_at(&mut self, offset: u64) -> Result<(Run, u64)> {
        let end = self.len_bytes.min(offset.saturating_add(MAX_LOOK_LEN));
        let (extent, len) = self.io.block_status(offset..end).map_err(self.session.failed())?;
        let run = match extent {
            Extent::Data => Run::Data,
            Extent::Zero => Run::Zero,
        };
        Ok((run, len))
    }

    fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.io.read_at(buf, offset).map_err(self.session.failed())
    }
}
