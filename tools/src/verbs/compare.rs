//! `pitstop compare`: whether a volume holds the bytes of another one, or of an image file.
//!
//! Invariant: everything is read but what two volumes show from layers that both have, and what both sides are known to
//! show as zeros. As with `qemu-img compare`, whose exit codes these are, zeros follow the end of the shorter side.
//! Does not: work through a daemon, which gives out no data.

use std::ops::Range;
use std::path::Path;

use pitstop_format::{Content, Listing, MIN_IO_LEN};
use serde::Serialize;

use super::source::VolumeSource;
use crate::copy::{BUFFER_LEN, Run, Source};
use crate::error::Result;
use crate::image::{self, Backing, Format, ImageFile};
use crate::progress::Progress;
use crate::render::{self, Output, printable};
use crate::session::{self, Access, Direct};

/// Ranges of a difference that are fetched at once.
const STEP_RANGES: usize = 4096;

/// What a volume is compared with.
#[derive(Debug)]
pub(crate) enum Other<'a> {
    /// Another volume of the container.
    Volume(&'a str),
    /// An image.
    File {
        /// The file.
        path: &'a Path,
        /// Its format, if the user has said.
        format: Option<Format>,
        /// Whether it may name other files.
        backing: Backing,
    },
}

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The same bytes.
    Identical,
    /// Some are not.
    Different,
}

impl Outcome {
    /// The exit code that stands for it; an error is 2.
    pub(crate) const fn exit_code(self) -> u8 {
        match self {
            Self::Identical => 0,
            Self::Different => 1,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Comparison {
    identical: bool,
    /// Byte at which they first differ.
    first_difference: Option<u64>,
    a_size_bytes: u64,
    b_size_bytes: u64,
    /// Read from both to find out.
    read_bytes: u64,
}

/// Compares volume `name` of the container `path` with `other`.
pub(crate) fn run(path: &Path, name: &str, other: &Other<'_>, output: Output) -> Result<Outcome> {
    let session = session::open_direct(path, Access::Read, "compared")?;
    let mut a = VolumeSource::new(&session, name)?;
    let progress = Progress::start(format!("comparing {}", printable(name)), a.len());
    let (comparison, other_name) = match other {
        Other::Volume(other) => {
            let mut b = VolumeSource::new(&session, other)?;
            let mut sides = Sides::new([&mut a, &mut b]);
            let found = sides.compare_volumes(&session, [name, other], &progress)?;
            (sides.comparison(found), printable(other))
        }
        Other::File { path, format, backing } => {
            let (_, mut b) = image::source(ImageFile::open(path)?, *format, *backing)?;
            let mut sides = Sides::new([&mut a, b.as_mut()]);
            let found = sides.compare_all(&progress)?;
            (sides.comparison(found), printable(&path.to_string_lossy()))
        }
    };
    drop(progress);
    render::show(output, &comparison, |comparison| text(comparison, &printable(name), &other_name))?;
    session.finish()?;
    Ok(if comparison.identical { Outcome::Identical } else { Outcome::Different })
}

fn text(comparison: &Comparison, a: &str, b: &str) -> String {
    let mut text = match comparison.first_difference {
        None => format!("{a} and {b} are identical\n"),
        Some(at) => format!("{a} and {b} differ, first at byte {at}\n"),
    };
    let (a_size, b_size) = (comparison.a_size_bytes, comparison.b_size_bytes);
    if a_size != b_size {
        text.push_str(&format!("{a} has {a_size} bytes, {b} has {b_size}: the rest is compared with zeros\n"));
    }
    text
}

/// What a side is known to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// What reading it shows.
    Bytes,
    /// Zeros, or it has ended.
    Zeros,
}

/// Both sides.
struct Sides<'a> {
    sources: [&'a mut dyn Source; 2],
    buffers: [Vec<u8>; 2],
    read_bytes: u64,
}

impl<'a> Sides<'a> {
    fn new(sources: [&'a mut dyn Source; 2]) -> Self {
        Self { sources, buffers: [vec![0; BUFFER_LEN], vec![0; BUFFER_LEN]], read_bytes: 0 }
    }

    fn comparison(&self, first_difference: Option<u64>) -> Comparison {
        let [a_size_bytes, b_size_bytes] = [self.sources[0].len(), self.sources[1].len()];
        let identical = first_difference.is_none();
        Comparison { identical, first_difference, a_size_bytes, b_size_bytes, read_bytes: self.read_bytes }
    }

    /// Compares only where the layers of the volumes `names` say that they may differ.
    fn compare_volumes(&mut self, session: &Direct, names: [&str; 2], progress: &Progress) -> Result<Option<u64>> {
        let mut next = Some(0);
        while let Some(start) = next {
            let listing = Listing::Ranges(STEP_RANGES);
            let step = session.opened().diff(names[0], names[1], start, listing).map_err(session.failed())?;
            for range in &step.ranges {
                progress.at(range.start);
                let held = [range.a, range.b].map(|content| match content {
                    Content::Data => Held::Bytes,
                    Content::Zero | Content::None => Held::Zeros,
                });
                let found = self.first_difference(range.start..range.start + range.length, held)?;
                if found.is_some() {
                    return Ok(found);
                }
            }
            next = step.next;
        }
        Ok(None)
    }

    /// Compares everything.
    fn compare_all(&mut self, progress: &Progress) -> Result<Option<u64>> {
        let len = self.sources[0].len().max(self.sources[1].len());
        let mut runs = [(Held::Zeros, 0); 2];
        let mut at = 0;
        while at < len {
            progress.at(at);
            for (run, source) in runs.iter_mut().zip(&mut self.sources) {
                if run.1 <= at {
                    *run = held_at(*source, at, len)?;
                }
            }
            let end = runs[0].1.min(runs[1].1);
            let found = self.first_difference(at..end, runs.map(|(held, _)| held))?;
            if found.is_some() {
                return Ok(found);
            }
            at = end;
        }
        Ok(None)
    }

    /// The first byte of `range` in which the sides differ.
    fn first_difference(&mut self, range: Range<u64>, held: [Held; 2]) -> Result<Option<u64>> {
        let mut at = range.start;
        while at < range.end && held != [Held::Zeros; 2] {
            let len = usize::try_from(range.end - at).map_or(BUFFER_LEN, |left| left.min(BUFFER_LEN));
            for ((source, buffer), held) in self.sources.iter_mut().zip(&mut self.buffers).zip(held) {
                match held {
                    Held::Bytes => {
                        source.read_at(&mut buffer[..len], at)?;
                        self.read_bytes += len as u64;
                    }
                    Held::Zeros => buffer[..len].fill(0),
                }
            }
            let (a, b) = (&self.buffers[0][..len], &self.buffers[1][..len]);
            if a != b {
                return Ok(a.iter().zip(b).position(|(a, b)| a != b).map(|index| at + index as u64));
            }
            at += len as u64;
        }
        Ok(None)
    }
}

/// What a side holds from `at` on, and up to where; sectors of which it knows only a part count as bytes.
fn held_at(source: &mut dyn Source, at: u64, len: u64) -> Result<(Held, u64)> {
    if at >= source.len() {
        return Ok((Held::Zeros, len));
    }
    let (run, run_len) = source.run_at(at)?;
    let end = at.saturating_add(run_len.max(1)).min(source.len());
    let whole = end / MIN_IO_LEN * MIN_IO_LEN;
    Ok(match run {
        Run::Data => (Held::Bytes, end.next_multiple_of(MIN_IO_LEN).min(source.len())),
        Run::Zero if whole > at => (Held::Zeros, whole),
        Run::Zero => (Held::Bytes, at + MIN_IO_LEN),
    })
}
