//! `pitstop export`: an image file with the contents of a volume.
//!
//! Invariant: the file bears its name only when it is complete and durable. What reads as zeros is not written, so the
//! file is as sparse as the volume.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::copy::{self, Source};
use crate::error::{Error, Result};
use crate::image::{Format, Overwrite, PitstopSink, Qcow2Sink, RawSink, Target};
use crate::interrupt;
use crate::progress::Progress;
use crate::render::printable;
use crate::session::frozen;

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
    frozen::with(export.path, "export", &[export.name], |session, names| {
        let mut source = session.source(&names[0])?;
        let target = Target::create(export.file, export.overwrite)?;
        let progress = Progress::start(format!("exporting {}", printable(export.name)), source.len());
        write(source.as_mut(), &target, (export.format, export.name), &stop, &progress)?;
        target.finish()?;
        drop(progress);
        Ok(())
    })
}

/// Writes the disk in `source` to an image of `format`, in which it is called `name` if disks have names there.
pub(super) fn write(
    source: &mut dyn Source,
    target: &Target,
    (format, name): (Format, &str),
    stop: &AtomicBool,
    progress: &Progress,
) -> Result<()> {
    let at = |offset| progress.at(offset);
    let len_bytes = source.len();
    match format {
        Format::Raw => {
            let mut sink = RawSink::create(target.file()?, target.path(), len_bytes)?;
            copy::copy(source, &mut sink, stop, &at)?;
        }
        Format::Qcow2 => {
            let mut sink = Qcow2Sink::create(target.file()?, target.path(), len_bytes)?;
            copy::copy(source, &mut sink, stop, &at)?;
            sink.finish()?;
        }
        Format::Pitstop => {
            let mut sink = PitstopSink::create(target.temporary_path(), target.path(), name, len_bytes)?;
            copy::copy(source, &mut sink, stop, &at)?;
            sink.finish()?;
        }
    }
    Ok(())
}
