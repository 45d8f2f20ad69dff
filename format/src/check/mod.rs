//! The structural check: an independent walk over a container.
//!
//! Role: finds every rule of `spec/container.md` that a container breaks, with the ids of `spec/check.md`. Reads with
//! `layout` alone, and replays the journal with code of its own, so that it cannot inherit a bug of the engine.
//! Invariant: it writes nothing, never panics on bad bytes, allocates in proportion to the file's length at most, and goes
//! on after a finding where it can. Does not: read guest data (`Container::check_data` does), or repair.

mod catalog;
mod copies;
mod entries;
mod finding;
mod journal;
mod metadata;
mod relations;
pub mod repair;
mod tags;
#[cfg(test)]
mod tests;
mod views;

pub(crate) use finding::Unfit;
pub use finding::{CheckReport, FINDINGS_KEPT, Finding, Outcome, Severity};

use crate::disk::Disk;
use crate::error::{Error, Result};

/// Checks the container on `disk` as the next opening would find it, its journal replayed in memory.
///
/// Errors: the container could not be checked: [`Error::NotAContainer`], [`Error::UnsupportedVersion`],
/// [`Error::UnsupportedFeatures`], [`Error::Corrupt`] for two unusable superblocks, [`Error::Truncated`] if the file ends
/// before the journal does, and the disk's own.
pub fn check(disk: &dyn Disk) -> Result<CheckReport> {
    check_view(disk, View::of_closed(disk)?)
}

/// What of a disk is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    /// Bytes of the file.
    pub(crate) file_len: u64,
    /// Number of the first record of the journal that does not count.
    pub(crate) journal_end: Option<u64>,
}

impl View {
    /// All of it.
    fn of_closed(disk: &dyn Disk) -> Result<Self> {
        let file_len = disk.len().map_err(Error::io("cannot read the container's length"))?;
        Ok(Self { file_len, journal_end: None })
    }
}

/// Checks what `view` shows of `disk`.
pub(crate) fn check_view(disk: &dyn Disk, view: View) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let metadata = metadata::Metadata::read(disk, view, &mut report)?;
    let catalog = catalog::Catalog::check(&metadata, &mut report);
    // Of a container in use only the marks count: who has it open may still close it in order.
    let unclean = view.journal_end.is_none() && (!report.clean || report.journal_batches > 0);
    report.undefined_volumes = catalog.undefined(unclean);
    entries::check(disk, &metadata, &catalog, &mut report)?;
    tags::check(disk, &metadata, &mut report);
    Ok(report)
}

/// Reads whole pages.
fn read(disk: &dyn Disk, len: usize, offset: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    disk.read_at(&mut bytes, offset).map_err(Error::io("cannot read the container's metadata"))?;
    Ok(bytes)
}
