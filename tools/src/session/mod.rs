//! One way to a container, whoever holds it: the file itself, or the daemon that serves it.
//!
//! Invariant: a verb works through [`Session`] and cannot tell the two apart; both give the same shapes and are durable
//! when they return. A container that is closed is opened here; one that a daemon holds is reached through the control
//! socket that its lock names. Does not: render, or copy volume data (see [`Session::source`] and [`Direct::opened`] for the verbs that do).

mod daemon;
mod direct;
pub(crate) mod frozen;
mod local;
mod remote;
mod work;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use pitstop_format::addendum::Piece;
use pitstop_format::{
    CacheOptions, Container, Durability, FileDisk, Holder, NewCopy, OpenMode, Verify, ViewEnd, VolumeChange, check,
    holder_of,
};

pub(crate) use self::daemon::Daemon;
pub(crate) use self::direct::Direct;
use crate::copy::Source;
use crate::error::{Error, HolderName, Result};
use crate::jobs::{JobOrder, JobView};
use crate::maps::{DiffStepView, MapStepView};
use crate::view::{CacheView, CheckView, ContainerView, LayerView, VolumeView};

/// How long a container that another short command holds, or a socket that is not up yet, is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long to sleep between two tries.
const RETRY_PAUSE: Duration = Duration::from_millis(40);
/// Ranges in a step: as many as a daemon gives at most.
const STEP_RANGES: u16 = 4096;

/// What a command wants to do with a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Look, beside other readers.
    Read,
    /// Change, alone.
    Change,
}

/// Whether a volume that a guest uses may lose its contents under that guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connected {
    /// Refuse.
    Spare,
    /// Do it: the user said `--force`.
    Force,
}

/// What a step of a map or a difference is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// The ranges, as many as a step gives.
    Ranges,
    /// The counts alone.
    Counts,
}

/// The operations that every verb uses.
pub(crate) trait Session {
    /// The container as a whole.
    fn container(&mut self) -> Result<ContainerView>;
    /// All volumes, sorted by name.
    fn volumes(&mut self) -> Result<Vec<VolumeView>>;
    /// All layers.
    fn layers(&mut self) -> Result<Vec<LayerView>>;
    /// Makes an empty volume of `size_bytes`.
    fn create_volume(&mut self, name: &str, size_bytes: u64, durability: Durability) -> Result<VolumeView>;
    /// Changes what flushes of a volume promise, or takes an undefined one as it is.
    fn set_volume(&mut self, name: &str, change: VolumeChange) -> Result<VolumeView>;
    /// Deletes a volume; copies made from it keep their contents.
    fn delete_volume(&mut self, name: &str) -> Result<()>;
    /// Gives a volume another name.
    fn rename_volume(&mut self, name: &str, new_name: &str) -> Result<()>;
    /// Makes `new_name` a point-in-time copy of `source`.
    fn snapshot(&mut self, source: &str, new_name: &str) -> Result<VolumeView>;
    /// Makes a copy of each source, all as they are at one instant.
    fn snapshot_group(&mut self, copies: &[NewCopy]) -> Result<Vec<VolumeView>>;
    /// Makes the existing volume `name` a point-in-time copy of `source`.
    fn refresh(&mut self, name: &str, source: &str, connected: Connected) -> Result<VolumeView>;
    /// Ends the relation of volume `name` to the one that it is a copy of.
    fn split(&mut self, name: &str) -> Result<VolumeView>;
    /// Makes `name` a write-through view of `source`.
    fn create_view(&mut self, source: &str, name: &str) -> Result<VolumeView>;
    /// Ends the write-through view `name`.
    fn end_view(&mut self, name: &str, end: ViewEnd, connected: Connected) -> Result<VolumeView>;
    /// A step of a volume's map, from byte `start` on.
    fn map(&mut self, name: &str, start: u64, want: Want) -> Result<MapStepView>;
    /// A step of the difference of two volumes, from byte `start` on.
    fn diff(&mut self, a: &str, b: &str, start: u64, want: Want) -> Result<DiffStepView>;
    /// Volume `name`, to be read; nobody may write it meanwhile ([`frozen::with`]).
    fn source(&mut self, name: &str) -> Result<Box<dyn Source>>;
    /// Writes what volume `name`, which no guest is connected to, is to hold from byte `start` on.
    fn write(&mut self, name: &str, start: u64, piece: Piece<'_>) -> Result<()>;
    /// Makes all that was written to volume `name` durable.
    fn flush(&mut self, name: &str) -> Result<()>;
    /// Whether a guest is connected to volume `name`.
    fn is_connected(&mut self, name: &str) -> Result<bool>;
    /// Jobs that are not over, or wait to be dismissed, the oldest first.
    fn jobs(&mut self) -> Result<Vec<JobView>>;
    /// Gives an order to job `id`.
    fn order_job(&mut self, id: &str, order: JobOrder) -> Result<()>;
    /// Begins to make volume `name` real, at `speed` bytes a second at most (0: no limit); nothing if it is real already.
    fn hydrate(&mut self, name: &str, speed: u64) -> Result<Option<JobView>>;
    /// Sets what is done so that damaged data of volume `name` is found.
    fn set_verify(&mut self, name: &str, verify: Verify) -> Result<VolumeView>;
    /// Begins to seal what is frozen of volume `name`, at `speed` bytes a second at most (0: no limit); nothing if that is
    /// done.
    fn seal(&mut self, name: &str, speed: u64) -> Result<Option<JobView>>;
    /// All cache regions, by name.
    fn caches(&mut self) -> Result<Vec<CacheView>>;
    /// Makes a cache region.
    fn create_cache(&mut self, name: &str, options: CacheOptions) -> Result<CacheView>;
    /// Changes a cache region.
    fn resize_cache(&mut self, name: &str, options: CacheOptions) -> Result<CacheView>;
    /// Deletes a cache region.
    fn delete_cache(&mut self, name: &str) -> Result<()>;
    /// Lets job `id` get on for a moment; a container opened here is worked at meanwhile.
    fn advance(&mut self, id: &str) -> Result<()>;
    /// Who serves the container, when it is not this program.
    fn holder(&self) -> Option<&Holder>;
    /// Ends the session; a container opened here is brought to rest.
    fn close(self: Box<Self>) -> Result<()>;

    /// One volume.
    fn volume(&mut self, name: &str) -> Result<VolumeView> {
        let found = self.volumes()?.into_iter().find(|volume| volume.name == name);
        found.ok_or_else(|| Error::NoSuchVolume { name: name.to_owned() })
    }
}

/// Opens the container at `path` one way or the other, does `work`, and closes it whatever came out.
pub(crate) fn with<T>(path: &Path, access: Access, work: impl FnOnce(&mut dyn Session) -> Result<T>) -> Result<T> {
    let mut session = open(path, access)?;
    let result = work(session.as_mut());
    let closed = session.close();
    let value = result?;
    closed.map(|()| value)
}

fn open(path: &Path, access: Access) -> Result<Box<dyn Session>> {
    Ok(match reach(path, mode_of(access))? {
        Reached::File(disk) => Box::new(Direct::open(path, disk, access)?),
        Reached::Daemon(daemon) => Box::new(daemon),
    })
}

/// How a backup is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Backup {
    /// The volume is read as it is, and the original images go to this file.
    pub(crate) addendum: Option<PathBuf>,
    /// The volume is read as it is, and the original images are written over it in the target.
    pub(crate) in_place: bool,
    /// Only what may differ from this copy is read; the target is an addendum.
    pub(crate) since: Option<String>,
    /// The cache region to draw on.
    pub(crate) cache: Option<String>,
    /// Existing files are replaced.
    pub(crate) overwrite: bool,
    /// Bytes a second at most; 0: no limit.
    pub(crate) speed: u64,
}

/// A container, for a verb that moves data here or lets the daemon do it.
#[derive(Debug)]
pub(crate) enum Way {
    /// It is open here.
    File(Direct),
    /// A daemon holds it.
    Daemon(Daemon),
}

/// The way to a container's data.
pub(crate) fn way(path: &Path, access: Access) -> Result<Way> {
    Ok(match reach(path, mode_of(access))? {
        Reached::File(disk) => Way::File(Direct::open(path, disk, access)?),
        Reached::Daemon(daemon) => Way::Daemon(daemon),
    })
}

/// Walks the container's structure.
///
/// The container is not opened for this: what cannot be opened can still be checked.
///
/// A daemon that holds it does the walk. With [`Depth::Data`] all data that has tags is verified, too, unless the structure of
/// a closed container is damaged.
pub(crate) fn check_structure(path: &Path, depth: Depth) -> Result<CheckView> {
    let disk = match reach(path, OpenMode::ReadOnly)? {
        Reached::File(disk) => disk,
        Reached::Daemon(mut daemon) => return daemon.check(depth),
    };
    let mut report = check::check(&*disk).map_err(Error::container(path))?;
    if depth == Depth::Data && report.corruptions == 0 {
        let verified = Container::open(disk, OpenMode::ReadOnly)
            .and_then(|container| container.check_data(&mut report, &AtomicBool::new(false)));
        verified.map_err(Error::container(path))?;
    }
    direct::view(&report)
}

/// What a check looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// The structure.
    Structure,
    /// Data that has tags, too.
    Data,
}

/// Checks the container on `disk`, whose file is `path`.
pub(crate) fn check_disk(path: &Path, disk: &FileDisk) -> Result<CheckView> {
    direct::view(&check::check(disk).map_err(Error::container(path))?)
}

/// Locks the container's file for a repair.
///
/// # Errors
/// [`Error::CannotRepairHeld`] when a daemon holds it, [`Error::InUse`] when another program does.
pub(crate) fn open_for_repair(path: &Path) -> Result<Arc<FileDisk>> {
    match reach(path, OpenMode::ReadWrite)? {
        Reached::File(disk) => {
            let holder = Holder { pid: std::process::id(), program: "pitstop".to_owned(), control: None };
            // A courtesy, as when the container is opened for changes.
            drop(disk.announce(&holder));
            Ok(disk)
        }
        Reached::Daemon(daemon) => {
            Err(Error::CannotRepairHeld { container: path.to_owned(), holder: daemon.holder_name() })
        }
    }
}

fn mode_of(access: Access) -> OpenMode {
    match access {
        Access::Read => OpenMode::ReadOnly,
        Access::Change => OpenMode::ReadWrite,
    }
}

/// What stands between this program and the container.
enum Reached {
    /// Nothing: the file is open and locked.
    File(Arc<FileDisk>),
    /// The daemon that holds it.
    Daemon(Daemon),
}

/// Connects to the holder, or opens the file; waits a little for one that is about to come or go.
fn reach(path: &Path, mode: OpenMode) -> Result<Reached> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The holder first: opening a held file waits for its lock.
        let error = match holder_of(path) {
            Some(Holder { pid, program, control: Some(socket) }) => {
                let holder = Holder { pid, program, control: Some(socket.clone()) };
                match Daemon::connect(path, holder, &socket) {
                    Ok(daemon) => return Ok(Reached::Daemon(daemon)),
                    Err(error) => error,
                }
            }
            Some(holder) => Error::InUse { container: path.to_owned(), holder: name_of(&holder) },
            None => match FileDisk::open(path, mode) {
                Ok(disk) => return Ok(Reached::File(disk)),
                Err(pitstop_format::Error::Locked { holder }) => {
                    let holder = HolderName { program: holder, pid: None };
                    Error::InUse { container: path.to_owned(), holder }
                }
                Err(error) => return Err(cannot_open(path, error)),
            },
        };
        if Instant::now() >= deadline {
            return Err(error);
        }
        thread::sleep(RETRY_PAUSE);
    }
}

fn name_of(holder: &Holder) -> HolderName {
    match holder.pid {
        0 => HolderName { program: "another program".to_owned(), pid: None },
        pid => HolderName { program: holder.program.clone(), pid: Some(pid) },
    }
}

fn cannot_open(path: &Path, error: pitstop_format::Error) -> Error {
    match error {
        pitstop_format::Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Error::NoContainer { container: path.to_owned() }
        }
        error => Error::Container { container: PathBuf::from(path), source: error },
    }
}
