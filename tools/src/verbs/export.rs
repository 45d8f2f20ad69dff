//! `pitstop export`: an image file with the contents of a volume.
//!
//! Invariant: the file bears its name only when it is complete and durable. What reads as zeros is not written, so the
//! file is as sparse as the volume.

use std::path::Path;

use super::source::VolumeSource;
use crate::copy::{self, Source};
use crate::error::{Error, Result};
use crate::image::{Format, Overwrite, Qcow2Sink, RawSink, Target};
use crate::interrupt;
use crate::progress::Progress;
use crate::render::printable;
use crate::session::{self, Access};

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
    let mut source = VolumeSource::new(&session, export.name)?;
    let len_bytes = source.len();

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
