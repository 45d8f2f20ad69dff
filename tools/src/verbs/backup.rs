//! `pitstop backup`: files with what a volume holds at this instant.
//!
//! A daemon does it as a job, beside its guests; a closed container is read here, where nothing changes meanwhile.
//! Invariant: files appear only when they are complete. Does not: know what an instant is (the container does).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pitstop_format::addendum::{ADDENDUM_DATA_LEN, AddendumHeader, AddendumWriter, Piece, Purpose};
use serde::Serialize;

use super::{export, job};
use crate::copy::{Run, Source};
use crate::error::{Error, Result};
use crate::image::{self, Backing, Format, ImageFile, Overwrite, Target};
use crate::interrupt;
use crate::jobs::{JobOrder, JobView};
use crate::maps::ContentView;
use crate::progress::Progress;
use crate::render::{self, Output, printable};
use crate::session::{self, Daemon, Direct, Session, Way};

/// What to back up, and as what.
#[derive(Debug)]
pub(crate) struct Backup<'a> {
    /// The container.
    pub(crate) path: &'a Path,
    /// The volume.
    pub(crate) name: &'a str,
    /// The file to make.
    pub(crate) target: &'a Path,
    /// Its format, if it is not an addendum.
    pub(crate) format: Format,
    /// How.
    pub(crate) how: session::Backup,
    /// Leave the job to the daemon.
    pub(crate) detach: bool,
    /// For whom the result is.
    pub(crate) output: Output,
}

#[derive(Debug, Serialize)]
struct Done {
    target: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    addendum: Option<PathBuf>,
    /// The job, unless it has ended.
    job: Option<JobView>,
}

/// Backs a volume up.
pub(crate) fn run(backup: &Backup<'_>) -> Result<()> {
    for file in [Some(backup.target), backup.how.addendum.as_deref()].into_iter().flatten() {
        if std::fs::canonicalize(file)
            .is_ok_and(|file| std::fs::canonicalize(backup.path).is_ok_and(|path| path == file))
        {
            return Err(Error::TargetIsContainer { path: file.to_owned() });
        }
    }
    if backup.how.addendum.as_deref().is_some_and(|addendum| is_same_file(addendum, backup.target)) {
        return Err(Error::AddendumIsTarget { path: backup.target.to_owned() });
    }
    let stop = interrupt::stop_flag().map_err(Error::Signals)?;
    let job = match session::way(backup.path)? {
        Way::File(direct) => closed(direct, backup, &stop).map(|()| None)?,
        Way::Daemon(mut daemon) => served(&mut daemon, backup, &stop)?,
    };
    let done = Done { target: backup.target.to_owned(), addendum: backup.how.addendum.clone(), job };
    render::show(backup.output, &done, |done| match &done.job {
        Some(job) => format!("{}: job {}\n", printable(backup.name), printable(&job.id)),
        None => format!("{}: backed up to {}\n", printable(backup.name), printable(&done.target.to_string_lossy())),
    })
}

/// Whether two paths lead to one file, or would if it were there.
fn is_same_file(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| {
        let path = std::path::absolute(path).ok()?;
        let folder = std::fs::canonicalize(path.parent()?).ok()?;
        Some(folder.join(path.file_name()?))
    };
    a == b || place(a).is_some_and(|place_of_a| Some(place_of_a) == place(b))
}

/// Has the daemon do it.
fn served(daemon: &mut Daemon, backup: &Backup<'_>, stop: &AtomicBool) -> Result<Option<JobView>> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(Error::file("find the place of", path));
    let mut how = backup.how.clone();
    how.addendum = how.addendum.as_deref().map(absolute).transpose()?;
    let target = absolute(backup.target)?;
    if backup.format == Format::Raw {
        let job = daemon.backup(backup.name, &target, &how)?;
        if backup.detach {
            return Ok(Some(job));
        }
        return wait(daemon, &job, stop).map(|()| None);
    }
    if backup.detach {
        return Err(Error::CannotDetach);
    }
    // Checked before the daemon is put to work.
    let made = Target::create(backup.target, overwrite(&how))?;
    let raw = target.with_file_name(format!(".pitstop-backup-{}.raw", std::process::id()));
    let job = daemon.backup(backup.name, &raw, &how)?;
    let waited = wait(daemon, &job, stop).inspect_err(|_| {
        // Nobody would make an image of what it goes on to write. It may have ended.
        drop(daemon.order_job(&job.id, JobOrder::Cancel));
        drop(daemon.order_job(&job.id, JobOrder::Dismiss));
    });
    let converted = waited.and_then(|()| {
        let (_, mut source) = image::source(ImageFile::open(&raw)?, Some(Format::Raw), Backing::Refuse)?;
        let progress = Progress::start(format!("converting {}", printable(backup.name)), source.len());
        export::write(source.as_mut(), &made, backup.format, stop, &progress)?;
        made.finish()
    });
    // Where the backup has failed it is not there.
    drop(std::fs::remove_file(&raw));
    converted.map(|()| None)
}

/// Waits for the job; whoever interrupts that gives the backup up.
fn wait(daemon: &mut Daemon, job: &JobView, stop: &AtomicBool) -> Result<()> {
    match job::until_end(daemon, job, stop) {
        Err(Error::Interrupted { .. }) => {
            daemon.order_job(&job.id, JobOrder::Cancel)?;
            daemon.order_job(&job.id, JobOrder::Dismiss)?;
            Err(Error::Interrupted { undone: "the backup was given up, and nothing of it is left" })
        }
        result => result.map(drop),
    }
}

fn overwrite(how: &session::Backup) -> Overwrite {
    if how.overwrite { Overwrite::Replace } else { Overwrite::Refuse }
}

/// Reads a container that nobody else holds: the instant is now, for as long as it takes.
fn closed(mut session: Direct, backup: &Backup<'_>, stop: &AtomicBool) -> Result<()> {
    let how = &backup.how;
    if let Some(cache) = &how.cache
        && !session.caches()?.iter().any(|found| found.name == *cache)
    {
        return Err(Error::NoSuchCache { name: cache.clone() });
    }
    let header = header(&mut session, backup)?;
    let target = Target::create(backup.target, overwrite(how))?;
    if how.since.is_some() {
        changes(&mut session, backup, &target, header, stop)?;
    } else {
        let source = session.source(backup.name)?;
        let mut source = Limited { source, speed: how.speed, even_at: Instant::now() };
        let progress = Progress::start(format!("backing up {}", printable(backup.name)), source.len());
        export::write(&mut source, &target, backup.format, stop, &progress)?;
    }
    // Nothing was written meanwhile.
    let addendum = how.addendum.as_deref().map(|path| Target::create(path, overwrite(how))).transpose()?;
    if let Some(file) = addendum {
        AddendumWriter::new(header).finish(&file.file()?).map_err(Error::file("write", file.path()))?;
        file.finish()?;
    }
    target.finish()?;
    session.finish()
}

fn header(session: &mut Direct, backup: &Backup<'_>) -> Result<AddendumHeader> {
    let purpose = match &backup.how.since {
        None => Purpose::OriginalImages,
        Some(copy) => {
            let copy = session.volume(copy)?;
            let base_unix_ns = copy.origin.map_or(copy.created_unix_ns, |origin| origin.instant_unix_ns);
            Purpose::ChangesSince { base_unix_ns }
        }
    };
    let volume = session.opened().defined_volume(backup.name).map_err(session.failed())?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Ok(AddendumHeader {
        container: session.opened().info().uuid,
        volume: volume.uuid(),
        size_bytes: volume.size(),
        instant_unix_ns: now.map_or(0, |since| since.as_nanos() as i64),
        purpose,
    })
}

/// Lists what may differ from a copy, and writes what the volume has there.
fn changes(
    session: &mut Direct,
    backup: &Backup<'_>,
    target: &Target,
    header: AddendumHeader,
    stop: &AtomicBool,
) -> Result<()> {
    let copy = backup.how.since.as_deref().unwrap_or_default();
    let size_bytes = session.volume(copy)?.size_bytes;
    if size_bytes != header.size_bytes {
        return Err(Error::SizesDiffer { volume: backup.name.to_owned(), copy: copy.to_owned() });
    }
    let (file, mut writer) = (target.file()?, AddendumWriter::new(header));
    let progress = Progress::start(format!("backing up {}", printable(backup.name)), size_bytes);
    let mut next = Some(0);
    while let Some(start) = next {
        let step = session.changed_since(backup.name, copy, start)?;
        let source = session.source(backup.name)?;
        let mut source = Limited { source, speed: backup.how.speed, even_at: Instant::now() };
        for range in step.ranges {
            put(&mut writer, &file, target, &mut source, (range.start, range.length, range.a), stop)?;
            progress.at(range.start + range.length);
        }
        next = step.next;
    }
    writer.finish(&file).map_err(Error::file("write", target.path()))
}

/// Puts a range into an addendum.
fn put(
    writer: &mut AddendumWriter,
    file: &File,
    target: &Target,
    source: &mut dyn Source,
    (start, length, content): (u64, u64, ContentView),
    stop: &AtomicBool,
) -> Result<()> {
    let failed = || Error::file("write", target.path());
    if content != ContentView::Data {
        return writer.put(file, start, Piece::Zeros(length)).map_err(failed());
    }
    let mut at = start;
    while at < start + length {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted { undone: "nothing was changed" });
        }
        let mut data = vec![0; ADDENDUM_DATA_LEN.min((start + length - at) as usize)];
        source.read_at(&mut data, at)?;
        writer.put(file, at, Piece::Data(&data)).map_err(failed())?;
        at += data.len() as u64;
    }
    Ok(())
}

/// A source that is read at a limited speed.
struct Limited {
    source: Box<dyn Source>,
    /// Bytes a second at most; 0: no limit.
    speed: u64,
    /// When what was read so far may have been read.
    even_at: Instant,
}

impl Source for Limited {
    fn len(&self) -> u64 {
        self.source.len()
    }

    fn run_at(&mut self, offset: u64) -> Result<(Run, u64)> {
        self.source.run_at(offset)
    }

    fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.source.read_at(buf, offset)?;
        if self.speed > 0 {
            let now = Instant::now();
            let cost = Duration::from_secs_f64((buf.len() as f64 / self.speed as f64).min(1e6));
            self.even_at = self.even_at.max(now) + cost;
            thread::sleep(self.even_at - now);
        }
        Ok(())
    }
}
