//! `pitstop import`: a new volume with the contents of an image file.
//!
//! Invariant: the volume bears its name only when it is complete and durable. Until then it has a temporary name and is
//! deleted if the import fails or is interrupted; after a crash it may stay, and the next import says so.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use pitstop_format::Durability;
use pitstop_format::addendum::Piece;

use super::verify::VerifyArg;
use crate::copy::{self, Sink, Source};
use crate::error::{Error, Result};
use crate::image::{self, Backing, Format, ImageFile};
use crate::interrupt;
use crate::progress::Progress;
use crate::render::{self, Output, printable};
use crate::session::{self, Access, Session};
use crate::view::VolumeView;

/// Unit of zero detection in bytes: a block of the container.
const GRANULARITY: usize = 4096;
/// Bytes of a volume's name that its temporary name repeats.
const TEMPORARY_STEM_LEN: usize = 64;

/// What to import, and as what.
#[derive(Debug)]
pub(crate) struct Import<'a> {
    /// The container.
    pub(crate) path: &'a Path,
    /// Name of the new volume.
    pub(crate) name: &'a str,
    /// The image.
    pub(crate) file: &'a Path,
    /// Its format; found out if absent.
    pub(crate) format: Option<Format>,
    /// Whether files that the image names are followed.
    pub(crate) backing: Backing,
    /// What is done so that damaged data of the volume is found.
    pub(crate) verify: VerifyArg,
    /// For whom the result is.
    pub(crate) output: Output,
}

/// Imports an image.
pub(crate) fn run(import: &Import<'_>) -> Result<()> {
    let stop = interrupt::stop_flag().map_err(Error::Signals)?;
    let image = ImageFile::open(import.file)?;
    let len_bytes = image.len_bytes;
    let (format, mut source) = image::source(image, import.format, import.backing)?;
    if format == Format::Raw && source.len() != len_bytes {
        crate::tell(format_args!(
            "{len_bytes} bytes are not whole sectors; the volume is padded with zeros to {}",
            source.len()
        ));
    }
    let volume = session::with(import.path, Access::Change, |session| fill(session, import, source.as_mut(), &stop))?;
    render::show(import.output, &volume, render::volume_line)
}

/// Makes the volume, fills it, names it.
fn fill(
    session: &mut dyn Session,
    import: &Import<'_>,
    source: &mut dyn Source,
    stop: &AtomicBool,
) -> Result<VolumeView> {
    let temporary = reserve(session, import.name, source.len())?;
    let filled = (|| {
        let mut sink = VolumeSink { session, name: &temporary };
        let progress = Progress::start(format!("importing {}", printable(import.name)), source.len());
        copy::copy(source, &mut sink, stop, &|offset| progress.at(offset))?;
        session.flush(&temporary)
    })()
    .and_then(|()| match import.verify {
        VerifyArg::Off => Ok(()),
        verify => session.set_verify(&temporary, verify.into()).map(drop),
    });
    let named = filled.and_then(|()| session.rename_volume(&temporary, import.name));
    if let Err(error) = named {
        remove(import.path, session, &temporary);
        return Err(error);
    }
    session.volume(import.name)
}

/// Deletes a volume of a temporary name, by a connection of its own if the one at hand is the trouble.
pub(super) fn remove(path: &Path, session: &mut dyn Session, temporary: &str) {
    let remove = |session: &mut dyn Session| {
        session.delete_volume(temporary).or_else(|error| {
            let is_gone = session.volumes().is_ok_and(|volumes| volumes.iter().all(|volume| volume.name != temporary));
            if is_gone { Ok(()) } else { Err(error) }
        })
    };
    let removed = remove(session).or_else(|error| match session.holder() {
        Some(_) => session::with(path, Access::Change, remove),
        None => Err(error),
    });
    if let Err(left) = removed {
        crate::tell(format_args!("the volume '{temporary}' may be left; delete it with `pitstop delete` ({left})"));
    }
}

/// Makes the volume and moves it to a temporary name, which is returned: so a name or size that cannot be is known before
/// any data is copied.
pub(super) fn reserve(session: &mut dyn Session, name: &str, len_bytes: u64) -> Result<String> {
    let stem = stem(name);
    for left in session.volumes()?.iter().filter(|volume| is_temporary(&volume.name, &stem)) {
        let left = printable(&left.name);
        crate::tell(format_args!(
            "volume '{left}' is another import's that is under way, or was interrupted: then delete it with `pitstop delete`"
        ));
    }
    session.create_volume(name, len_bytes, Durability::Flush)?;
    let temporary = temporary_name(name);
    if let Err(error) = session.rename_volume(name, &temporary) {
        session.delete_volume(name)?;
        return Err(error);
    }
    Ok(temporary)
}

/// What the temporary name of a volume `name` begins with.
fn stem(name: &str) -> String {
    let mut stem_len = name.len().min(TEMPORARY_STEM_LEN);
    while !name.is_char_boundary(stem_len) {
        stem_len -= 1;
    }
    format!("import-{}-", &name[..stem_len])
}

/// The name that a volume has while this program fills it.
pub(super) fn temporary_name(name: &str) -> String {
    format!("{}{:08x}", stem(name), std::process::id())
}

fn is_temporary(name: &str, stem: &str) -> bool {
    name.strip_prefix(stem).is_some_and(|id| id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The volume being filled.
pub(super) struct VolumeSink<'a> {
    pub(super) session: &'a mut dyn Session,
    /// Its present name.
    pub(super) name: &'a str,
}

impl Sink for VolumeSink<'_> {
    fn granularity(&self) -> usize {
        GRANULARITY
    }

    fn write_at(&mut self, buf: &[u8], offset: u64) -> Result<()> {
        self.session.write(self.name, offset, Piece::Data(buf))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_an_import_makes_count_as_left_over() {
        assert!(is_temporary("import-golden-0000abcd", "import-golden-"));
        for other in [
            "import-golden-",
            "import-golden-0000abc",
            "import-golden-0000abcdx",
            "golden-0000abcd",
            "import-golden-2024july",
        ] {
            assert!(!is_temporary(other, "import-golden-"), "{other}");
        }
    }
}
