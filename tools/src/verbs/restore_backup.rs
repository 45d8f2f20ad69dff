//! `pitstop restore --from-backup`: a volume gets what a backup holds.
//!
//! Invariant: the volume changes in one command, when all has been read and shown to be whole; until then what is read goes
//! to a volume with a temporary name (BAK-13). Does not: know whether a daemon writes it.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum as _;
use pitstop_format::Durability;
use pitstop_format::addendum::{AddendumHeader, AddendumRange, AddendumReader, Purpose};

use super::import::{self, VolumeSink};
use crate::copy::{self, Source};
use crate::error::{Error, Result};
use crate::image::{self, Backing, Format, ImageFile};
use crate::interrupt;
use crate::progress::Progress;
use crate::render::{self, Output, printable};
use crate::session::{self, Access, Connected, Session};
use crate::view::VolumeView;

/// What to restore, from what.
#[derive(Debug)]
pub(crate) struct Restore<'a> {
    /// The container.
    pub(crate) path: &'a Path,
    /// The volume; made if it is not there.
    pub(crate) name: &'a str,
    /// The bulk.
    pub(crate) bulk: &'a Path,
    /// Its format; raw if absent, unless it looks like another.
    pub(crate) format: Option<Format>,
    /// What is written over it, in this order.
    pub(crate) addenda: &'a [PathBuf],
    /// Whether a guest may be connected to the volume.
    pub(crate) connected: Connected,
    /// For whom the result is.
    pub(crate) output: Output,
}

type Addendum = AddendumReader<BufReader<File>>;

/// Restores a volume.
pub(crate) fn run(restore: &Restore<'_>) -> Result<()> {
    let stop = interrupt::stop_flag().map_err(Error::Signals)?;
    let (found, mut bulk) = image::source(ImageFile::open(restore.bulk)?, restore.format, Backing::Refuse)?;
    if restore.format.is_none() && found != Format::Raw {
        // A raw image whose guest wrote that to its first sector looks the same.
        let format = found.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        return Err(Error::FormatIsUnsure { path: restore.bulk.to_owned(), format });
    }
    let mut addenda = open(restore.addenda, bulk.len())?;
    let volume = session::with(restore.path, Access::Change, |session| {
        fill(session, restore, bulk.as_mut(), &mut addenda, &stop)
    })?;
    render::show(restore.output, &volume, render::volume_line)
}

/// Opens the addenda and sees whether they belong together.
fn open(paths: &[PathBuf], len_bytes: u64) -> Result<Vec<(PathBuf, Addendum)>> {
    let mut opened = Vec::new();
    for path in paths {
        let file = ImageFile::open(path)?.file;
        rewind(&file, path)?;
        let reader = AddendumReader::new(BufReader::new(file)).map_err(unusable(path))?;
        opened.push((path.clone(), reader));
    }
    let headers: Vec<_> = opened.iter().map(|(path, reader)| (path.as_path(), reader.header())).collect();
    for number in 0..headers.len() {
        if let Some(problem) = misfit(&headers, number, len_bytes) {
            return Err(Error::NotOfThisBackup { path: headers[number].0.to_owned(), problem });
        }
    }
    Ok(opened)
}

/// Why an addendum cannot be written over what comes before it (BAK-14).
fn misfit(all: &[(&Path, &AddendumHeader)], number: usize, len_bytes: u64) -> Option<String> {
    let header = all[number].1;
    if header.size_bytes != len_bytes {
        return Some(format!("is of a volume of {} bytes, not of {len_bytes}", header.size_bytes));
    }
    let before = number.checked_sub(1).map(|number| all[number]);
    let base = match (header.purpose, before) {
        (Purpose::OriginalImages, None) => return None,
        (Purpose::OriginalImages, Some(_)) => {
            return Some("has original images, which belong right over their bulk".to_owned());
        }
        (Purpose::ChangesSince(base), Some((_, before))) if before.instant.id == base.id => return None,
        (Purpose::ChangesSince(base), _) => base,
    };
    let name = |path: &Path| printable(&path.to_string_lossy());
    let others = all.iter().enumerate().filter(|(other, _)| *other != number);
    if let Some((_, (other, _))) = others.into_iter().find(|(_, (_, other))| other.instant.id == base.id) {
        return Some(format!("belongs right behind {}", name(other)));
    }
    // What a bulk holds is said by its own addendum alone.
    let (before, AddendumHeader { instant, .. }) = before?;
    let [base, instant] = [base.unix_ns, instant.unix_ns].map(render::instant);
    Some(format!(
        "has the changes since what was there at {base}, and {} ends with what was there at {instant}: there is an addendum \
         missing between the two, or one too many",
        name(before)
    ))
}

/// Looking for its length has left the file at its end.
fn rewind(mut file: &File, path: &Path) -> Result<()> {
    std::io::Seek::rewind(&mut file).map_err(Error::file("read", path))
}

fn unusable(path: &Path) -> impl FnOnce(pitstop_format::addendum::AddendumError) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Addendum { path, source }
}

/// Fills a volume with a temporary name, then gives it, or what it holds, to the one that is meant.
fn fill(
    session: &mut dyn Session,
    restore: &Restore<'_>,
    bulk: &mut dyn Source,
    addenda: &mut [(PathBuf, Addendum)],
    stop: &AtomicBool,
) -> Result<VolumeView> {
    let exists = session.volumes()?.iter().any(|volume| volume.name == restore.name);
    // Now, not when all has been copied.
    if restore.connected == Connected::Spare && session.is_connected(restore.name)? {
        return Err(Error::Connected { volume: restore.name.to_owned() });
    }
    let temporary = if exists {
        let temporary = import::temporary_name(restore.name);
        session.create_volume(&temporary, bulk.len(), Durability::Flush)?;
        temporary
    } else {
        import::reserve(session, restore.name, bulk.len())?
    };
    let filled = write(session, &temporary, restore.name, bulk, addenda, stop);
    let done = filled.and_then(|()| {
        if exists {
            session.refresh(restore.name, &temporary, restore.connected)?;
            session.delete_volume(&temporary)
        } else {
            session.rename_volume(&temporary, restore.name)
        }
    });
    if let Err(error) = done {
        import::remove(restore.path, session, &temporary);
        return Err(error);
    }
    session.volume(restore.name)
}

/// The bulk, and the addenda over it (R22).
fn write(
    session: &mut dyn Session,
    temporary: &str,
    name: &str,
    bulk: &mut dyn Source,
    addenda: &mut [(PathBuf, Addendum)],
    stop: &AtomicBool,
) -> Result<()> {
    let mut sink = VolumeSink { session, name: temporary };
    let progress = Progress::start(format!("restoring {}", printable(name)), bulk.len());
    copy::copy(bulk, &mut sink, stop, &|offset| progress.at(offset))?;
    for (path, addendum) in addenda {
        while let Some(AddendumRange { start, piece }) = addendum.next_range().map_err(unusable(path))? {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted { undone: "nothing was changed" });
            }
            session.write(temporary, start, piece)?;
            progress.at(start);
        }
    }
    session.flush(temporary)
}
