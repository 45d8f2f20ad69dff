//! `pitstop compare`: whether a volume holds the bytes of another one, or of an image file.
//!
//! Invariant: everything is read but what two volumes show from layers that both have, and what both sides are known to
//! show as zeros. As with `qemu-img compare`, whose exit codes these are, zeros follow the end of the shorter side.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use pitstop_format::MIN_IO_LEN;
use serde::Serialize;

use super::steps::Steps;
use crate::copy::{BUFFER_LEN, Run, Source};
use crate::error::{Error, Result};
use crate::image::{self, Backing, Format, ImageFile};
use crate::interrupt;
use crate::maps::ContentView;
use crate::progress::Progress;
use crate::render::{self, Output, printable};
use crate::session::{Session, Want, frozen};

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
    let stop = interrupt::stop_flag().map_err(Error::Signals)?;
    let progress = |len| Progress::start(format!("comparing {}", printable(name)), len);
    let (comparison, other_name) = match other {
        Other::Volume(other) => {
            let other: &str = other;
            let comparison = frozen::with(path, "compare", &[name, other], |session, names| {
                let (mut a, mut b) = (session.source(&names[0])?, session.source(&names[1])?);
                let progress = progress(a.len());
                let mut sides = Sides::new([a.as_mut(), b.as_mut()], &stop);
                let found = sides.compare_volumes(session, [&names[0], &names[1]], &progress)?;
                Ok(sides.comparison(found))
            })?;
            (comparison, printable(other))
        }
        Other::File { path: file, format, backing } => {
            let (_, mut b) = image::source(ImageFile::open(file)?, *format, *backing)?;
            let comparison = frozen::with(path, "compare", &[name], |session, names| {
                let mut a = session.source(&names[0])?;
                let progress = progress(a.len());
                let mut sides = Sides::new([a.as_mut(), b.as_mut()], &stop);
                let found = sides.compare_all(&progress)?;
                Ok(sides.comparison(found))
            })?;
            (comparison, printable(&file.to_string_lossy()))
        }
    };
    render::show(output, &comparison, |comparison| text(comparison, &printable(name), &other_name))?;
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
    stop: &'a AtomicBool,
}

impl<'a> Sides<'a> {
    fn new(sources: [&'a mut dyn Source; 2], stop: &'a AtomicBool) -> Self {
        Self { sources, buffers: [vec![0; BUFFER_LEN], vec![0; BUFFER_LEN]], read_bytes: 0, stop }
    }

    fn comparison(&self, first_difference: Option<u64>) -> Comparison {
        let [a_size_bytes, b_size_bytes] = [self.sources[0].len(), self.sources[1].len()];
        let identical = first_difference.is_none();
        Comparison { identical, first_difference, a_size_bytes, b_size_bytes, read_bytes: self.read_bytes }
    }

    /// Compares only where the layers of the volumes `names` say that they may differ.
    fn compare_volumes(
        &mut self,
        session: &mut dyn Session,
        [a, b]: [&str; 2],
        progress: &Progress,
    ) -> Result<Option<u64>> {
        for step in Steps::of_difference(session, a, b, Want::Ranges) {
            for range in &step?.ranges {
                progress.at(range.start);
                let held = [range.a, range.b].map(|content| match content {
                    ContentView::Data => Held::Bytes,
                    ContentView::Zero | ContentView::None => Held::Zeros,
                });
                let found = self.first_difference(range.start..range.start + range.length, held)?;
                if found.is_some() {
                    return Ok(found);
                }
            }
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
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted { undone: "nothing was changed" });
            }
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
