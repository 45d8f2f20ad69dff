//! `pitstop backup`: files with what a volume holds at this instant.
//!
//! A daemon does it as a job, beside its guests; a closed container is read here, where nothing changes meanwhile.
//! Invariant: files appear only when they are complete. Does not: know what an instant is (the container does).

use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pitstop_format::addendum::{ADDENDUM_DATA_LEN, AddendumHeader, AddendumWriter, Piece, Purpose};
use serde::Serialize;
use tempfile::TempPath;

use super::{export, job};
use crate::copy::{Run, Source};
use crate::error::{Error, Result};
use crate::image::{self, Backing, Format, ImageFile, Overwrite, Target};
use crate::interrupt;
use crate::jobs::{JobOrder, JobView};
use crate::maps::ContentView;
use crate::progress::Progress;
use crate::render::{self, Output, printable};
use crate::session::{self, Access, Daemon, Direct, Session, Way};

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
    let job = match way(backup)? {
        Way::File(direct) => closed(direct, backup, &stop).map(|()| None)?,
        Way::Daemon(mut daemon) => served(&mut daemon, backup, &stop)?,
    };
    let done = Done { target: backup.target.to_owned(), addendum: backup.how.addendum.clone(), job };
    render::show(backup.output, &done, |done| match &done.job {
        Some(job) => format!("{}: job {}\n", printable(backup.name), printable(&job.id)),
        None => format!("{}: backed up to {}\n", printable(backup.name), printable(&done.target.to_string_lossy())),
    })
}

/// The way to the container. Where an addendum will tell what the volume holds now, a closed container is brought to know
/// that by an id first (BAK-41).
fn way(backup: &Backup<'_>) -> Result<Way> {
    let direct = match session::way(backup.path, Access::Read)? {
        Way::File(direct) => direct,
        way => return Ok(way),
    };
    if is_known(&direct, backup)? {
        return Ok(Way::File(direct));
    }
    direct.finish()?;
    let fixed = fix(backup);
    let way = session::way(backup.path, Access::Read)?;
    if let Way::File(direct) = &way
        && !is_known(direct, backup)?
    {
        let why = fixed.err().map_or_else(|| "it was written again".to_owned(), |error| error.to_string());
        crate::tell(format_args!("no addendum that is made later will be known to follow this backup ({why})"));
    }
    Ok(way)
}

/// Whether what the volume holds is known by an id, if anything will name it. Refuses a volume that is not backed up.
fn is_known(direct: &Direct, backup: &Backup<'_>) -> Result<bool> {
    let now = direct.opened().contents(backup.name).map_err(direct.failed())?;
    let is_named = backup.how.addendum.is_some() || backup.how.since.is_some();
    Ok(!is_named || now == direct.opened().last_contents(backup.name).map_err(direct.failed())?)
}

/// Freezes the volume's head. A daemon that has come meanwhile does it all.
fn fix(backup: &Backup<'_>) -> Result<()> {
    let Way::File(session) = session::way(backup.path, Access::Change)? else { return Ok(()) };
    let instant = session.opened().begin_backup(backup.name, None);
    let released = instant.and_then(|instant| instant.release()).map_err(session.failed());
    session.finish().and(released)
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
    // What the daemon makes gets no name before the image is whole, and goes whatever comes out of it.
    let random = RandomState::new().hash_one(std::process::id());
    let hidden = |path: &Path, what: &str| path.with_file_name(format!(".pitstop-backup-{random:016x}.{what}"));
    let raw = hidden(&target, "raw");
    let addendum = how.addendum.take();
    if let Some(path) = &addendum {
        Target::check(path, overwrite(&how))?;
        how.addendum = Some(hidden(path, "addendum"));
    }
    let job = daemon.backup(backup.name, &raw, &session::Backup { overwrite: false, ..how.clone() });
    let job = job.inspect_err(|error| {
        if matches!(error, Error::NoAnswer { .. }) {
            let raw = printable(&raw.to_string_lossy());
            crate::tell(format_args!("the daemon may make {raw} all the same: see `pitstop job list`, and remove it"));
        }
    })?;
    // From here on they are this command's own.
    let armed = |path: PathBuf| TempPath::try_from_path(&path).map_err(Error::file("find the place of", &path));
    let raw = armed(raw)?;
    let hidden_addendum = how.addendum.take().map(armed).transpose()?;
    // Nobody would make an image of what it goes on to write.
    wait(daemon, &job, stop).inspect_err(|_| give_up(backup.path, &job))?;
    let (_, mut source) = image::source(ImageFile::open(&raw)?, Some(Format::Raw), Backing::Refuse)?;
    let progress = Progress::start(format!("converting {}", printable(backup.name)), source.len());
    export::write(source.as_mut(), &made, (backup.format, backup.name), stop, &progress)?;
    let addendum = hidden_addendum.zip(addendum);
    let addendum = addendum.map(|(hidden, path)| Target::take_over(hidden, &path, overwrite(&how))).transpose()?;
    made.finish_with(addendum).map(|()| None)
}

/// Ends a job that may have ended, by a connection of its own: the one at hand may be the trouble.
fn give_up(path: &Path, job: &JobView) {
    if let Ok(Way::Daemon(mut daemon)) = session::way(path, Access::Read) {
        drop(daemon.order_job(&job.id, JobOrder::Cancel));
        drop(daemon.order_job(&job.id, JobOrder::Dismiss));
    }
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
    let header = header(&session, backup)?;
    let target = Target::create(backup.target, overwrite(how))?;
    if how.since.is_some() {
        changes(&mut session, backup, &target, header, stop)?;
    } else {
        let source = session.source(backup.name)?;
        let mut source = Limited { source, speed: how.speed, even_at: Instant::now() };
        let progress = Progress::start(format!("backing up {}", printable(backup.name)), source.len());
        export::write(&mut source, &target, (backup.format, backup.name), stop, &progress)?;
    }
    // Nothing was written meanwhile.
    let addendum = how.addendum.as_deref().map(|path| Target::create(path, overwrite(how))).transpose()?;
    if let Some(file) = &addendum {
        AddendumWriter::new(header).finish(&file.file()?).map_err(Error::file("write", file.path()))?;
    }
    target.finish_with(addendum)?;
    session.finish()
}

fn header(session: &Direct, backup: &Backup<'_>) -> Result<AddendumHeader> {
    let (container, name) = (session.opened(), backup.name);
    let made = || -> pitstop_format::Result<_> {
        let volume = container.defined_volume(name)?;
        let base = backup.how.since.as_deref().map(|copy| container.last_contents(copy)).transpose()?;
        Ok(AddendumHeader {
            container: container.info().uuid,
            volume: volume.uuid(),
            size_bytes: volume.size(),
            instant: container.contents(name)?,
            purpose: base.map_or(Purpose::OriginalImages, Purpose::ChangesSince),
        })
    };
    made().map_err(session.failed())
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
