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
    match misfit(&headers, len_bytes) {
        Some((number, problem)) => Err(Error::NotOfThisBackup { path: headers[number].0.to_owned(), problem }),
        None => Ok(opened),
    }
}

/// The addendum that cannot be written over what comes before it, and why (BAK-14).
fn misfit(all: &[(&Path, &AddendumHeader)], len_bytes: u64) -> Option<(usize, String)> {
    for (number, (_, header)) in all.iter().enumerate() {
        if header.size_bytes != len_bytes {
            return Some((number, format!("is of a volume of {} bytes, not of {len_bytes}", header.size_bytes)));
        }
        if number > 0 && header.purpose == Purpose::OriginalImages {
            return Some((number, "has original images, which belong right over their bulk".to_owned()));
        }
    }
    let base = |number: usize| match all[number].1.purpose {
        Purpose::ChangesSince(base) => Some(base),
        Purpose::OriginalImages => None,
    };
    let does_not_go_on = |number: &usize| base(*number).is_some_and(|base| base.id != all[number - 1].1.instant.id);
    let wrong: Vec<usize> = (1..all.len()).filter(does_not_go_on).collect();
    let first = *wrong.first()?;
    // What a bulk holds is said by its own addendum alone: the first one may be what is out of place.
    for number in wrong.into_iter().chain([0]) {
        let Some(base) = base(number).filter(|base| base.id != all[number].1.instant.id) else { continue };
        if let Some((before, _)) = all.iter().find(|(_, header)| header.instant.id == base.id) {
            return Some((number, format!("belongs right behind {}", shown(before))));
        }
    }
    let (before, AddendumHeader { instant, .. }) = all[first - 1];
    let [base, instant] = [base(first)?.unix_ns, instant.unix_ns].map(render::instant);
    let problem = format!(
        "has the changes since what was there at {base}, and {} ends with what was there at {instant}: there is an \
         addendum missing between the two, or one too many",
        shown(before)
    );
    Some((first, problem))
}

fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy())
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
    let done = filled.and_then(|()| match exists {
        true => session.refresh(restore.name, &temporary, restore.connected).map(drop),
        false => session.rename_volume(&temporary, restore.name),
    });
    // Once the volume has changed, what is left over is no failure.
    if exists || done.is_err() {
        import::remove(restore.path, session, &temporary);
    }
    done?;
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
