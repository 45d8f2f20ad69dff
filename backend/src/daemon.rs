//! The daemon: one container, its exports, and the rules on what may be done to a volume that is exported.
//!
//! Every order from the command line or the control socket ends in a method of [`Daemon`]. Invariant: at most one
//! export has a given id, and at most one writable export serves a given volume; a volume that is exported is not
//! deleted. Orders are serialised by one lock, which no queue thread ever takes, and which is never held while a socket is
//! opened or a thread's end is awaited: an export that ends stays listed until it has ended. Does not: parse orders
//! (`config`, `control`) or serve guests (`export`).

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pitstop_format::addendum::Piece;
use pitstop_format::{
    Container, Durability, EndingView, FileDisk, NewCopy, ViewEnd, Volume, VolumeChange, VolumeId, VolumeInfo, VolumeIo,
};

use crate::config::{Access, ExportConfig, MAX_QUEUES, OnNoSpace};
use crate::events::Events;
use crate::export::{Door, Export, ExportError, Resources};
use crate::jobs::{Activity, JobState, Jobs};
use crate::space::{SpaceMark, SpaceUse};
use crate::trouble::{Action, Operation};

/// How often the main thread looks whether there is anything left to serve.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

/// What to do about a connected guest when an order disturbs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhenConnected {
    /// Refuse the order ("safe").
    Refuse,
    /// Do it all the same ("hard", `--force`).
    Force,
}

/// One export as shown to people and programs.
#[derive(Debug, Clone)]
pub(crate) struct ExportStatus {
    /// The export's id.
    pub(crate) id: String,
    /// Present name of its volume.
    pub(crate) volume: String,
    /// The socket's path; `None` for an inherited descriptor.
    pub(crate) socket: Option<PathBuf>,
    /// Whether the guest may write.
    pub(crate) writable: bool,
    /// Most queues the guest may use.
    pub(crate) num_queues: u16,
    /// Whether a front end is connected.
    pub(crate) connected: bool,
    /// Whether it is about to end.
    pub(crate) ending: bool,
    /// What becomes of a request for which there is no space.
    pub(crate) on_enospc: OnNoSpace,
    /// Requests that wait for space.
    pub(crate) starved: usize,
    /// Name of the volume from which this one is refreshed whenever a front end connects.
    pub(crate) refresh_on_connect: Option<String>,
}

/// What happened; sent to every subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// An export came to be.
    ExportAdded {
        /// Its id.
        id: String,
    },
    /// An export has ended: its socket is gone and its guest disconnected.
    ExportDeleted {
        /// Its id.
        id: String,
    },
    /// The storage failed a request of an export.
    IoError {
        /// The export's id.
        id: String,
        /// Present name of its volume.
        volume: String,
        /// What the request was about.
        operation: Operation,
        /// What became of it.
        action: Action,
        /// Whether space was lacking.
        no_space: bool,
        /// The error.
        reason: String,
    },
    /// No request of an export waits for space any more.
    ExportResumed {
        /// The export's id.
        id: String,
    },
    /// A volume was refreshed because a front end has connected.
    VolumeRefreshed {
        /// Present name of the volume.
        volume: String,
        /// Name of the source.
        source: String,
    },
    /// A front end was refused because the volume could not be refreshed.
    RefreshFailed {
        /// The export's id.
        id: String,
        /// Present name of its volume.
        volume: String,
        /// Name of the source.
        source: String,
        /// Why not.
        reason: String,
        /// Front ends that were refused since the last event of this kind, this one included.
        refusals: u64,
    },
    /// The container takes no more changes.
    ContainerFailed {
        /// Why.
        reason: String,
    },
    /// A cache region's high-water mark was reached.
    CacheWarning {
        /// The region.
        name: String,
        /// Bytes that backups keep.
        used_bytes: u64,
        /// Bytes that they may keep.
        limit_bytes: u64,
    },
    /// A mark of the container's use of space was reached.
    SpaceWarning {
        /// The mark, in percent.
        mark: u8,
        /// The use.
        space: SpaceUse,
    },
    /// The use of space is below all marks again.
    SpaceOk {
        /// The use.
        space: SpaceUse,
    },
    /// A job has turned to another state.
    JobStatusChanged {
        /// Its id.
        id: String,
        /// Its new state.
        state: JobState,
    },
    /// The daemon begins to end.
    Shutdown,
}

/// Why an order was refused or failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// The container refused or failed.
    #[error(transparent)]
    Format(#[from] pitstop_format::Error),
    /// The export could not be started.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// No such export.
    #[error("no export with id '{id}'; query-block-exports shows the exports")]
    NoSuchExport {
        /// The id asked for.
        id: String,
    },
    /// The id is taken.
    #[error("an export with id '{id}' exists already; choose another id")]
    ExportExists {
        /// The id asked for.
        id: String,
    },
    /// The export is about to end.
    #[error("export '{id}' is ending; try again when it has ended")]
    ExportEnding {
        /// The id asked for.
        id: String,
    },
    /// The volume has a writable export already.
    #[error("volume '{volume}' is exported already as '{id}'; only read-only exports may share a volume")]
    AlreadyExported {
        /// The volume.
        volume: String,
        /// The export that serves it.
        id: String,
    },
    /// Who may not write may not refresh either.
    #[error(
        "export '{id}' is read-only and cannot refresh volume '{volume}' on connect; make it writable, or leave out \
         refresh-on-connect"
    )]
    RefreshReadOnly {
        /// The export.
        id: String,
        /// The volume.
        volume: String,
    },
    /// A number of queues that cannot be.
    #[error("{found} queues are not possible; use 1 to {MAX_QUEUES}")]
    BadQueueCount {
        /// The number asked for.
        found: u16,
    },
    /// The export has a connected guest.
    #[error("export '{id}' has a connected guest; stop the guest first, or use mode 'hard' to disconnect it")]
    ExportConnected {
        /// The export.
        id: String,
    },
    /// The volume is exported, so it cannot be deleted.
    #[error("volume '{volume}' is exported as '{id}'; remove the export first")]
    DeleteExported {
        /// The volume.
        volume: String,
        /// The export that serves it.
        id: String,
    },
    /// A guest uses the volume that would be refreshed.
    #[error(
        "volume '{volume}' has a connected guest (export '{id}'): a running guest holds cached file system data that \
         would no longer match and would corrupt the refreshed disk; stop the guest first, or refresh it with --force"
    )]
    RefreshConnected {
        /// The volume.
        volume: String,
        /// The export that serves it.
        id: String,
    },
    /// A guest uses the volume that would be written.
    #[error(
        "volume '{volume}' has a connected guest (export '{id}'), whose disk would change under it; stop the guest first"
    )]
    WriteConnected {
        /// The volume.
        volume: String,
        /// The export that serves it.
        id: String,
    },
    /// A guest uses the volume whose versions would be given up.
    #[error(
        "volume '{volume}', of which '{view}' is a view, has a connected guest (export '{id}'), whose writes would be given \
         up: stop the guest first, use --force, or keep what it wrote with `pitstop view keep`"
    )]
    DropConnected {
        /// The volume.
        volume: String,
        /// Its view.
        view: String,
        /// The export that serves it.
        id: String,
    },
    /// A refresh would change the size of an exported volume.
    #[error(
        "volume '{volume}' ({target_bytes} bytes) is exported as '{id}' and source '{source_name}' has \
         {source_bytes} bytes: an exported volume cannot change its size; remove the export first"
    )]
    RefreshChangesSize {
        /// The volume to be refreshed.
        volume: String,
        /// The export that serves it.
        id: String,
        /// The source.
        source_name: String,
        /// Size of the volume.
        target_bytes: u64,
        /// Size of the source.
        source_bytes: u64,
    },
    /// The daemon is ending.
    #[error("the daemon is shutting down")]
    ShuttingDown,
}

/// Result of an order.
pub(crate) type Result<T> = std::result::Result<T, DaemonError>;

/// One container and its exports.
pub(crate) struct Daemon {
    resources: Resources,
    jobs: Arc<Jobs>,
    exports: Mutex<Vec<Served>>,
    /// An export that was ending has ended.
    export_ended: Condvar,
    /// Held while a socket is opened: two exports must not take each other's new socket for a dead one.
    opening: Mutex<()>,
    space_mark: Arc<SpaceMark>,
    shutdown: AtomicBool,
    shutdown_lock: Mutex<()>,
    shutdown_asked: Condvar,
}

/// An export and what was asked for.
struct Served {
    config: ExportConfig,
    volume: VolumeId,
    export: Arc<Export>,
    /// Somebody waits for its end.
    ending: bool,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("shutdown", &self.shutdown).finish_non_exhaustive()
    }
}

impl Daemon {
    /// A daemon over an open container, without exports. `disk` must be the disk under `container`.
    pub(crate) fn new(container: Container, disk: Arc<FileDisk>) -> std::result::Result<Arc<Self>, ExportError> {
        let resources = Resources::new(container, disk)?;
        Ok(Arc::new(Daemon {
            jobs: Arc::clone(resources.jobs()),
            resources,
            exports: Mutex::default(),
            export_ended: Condvar::new(),
            opening: Mutex::default(),
            space_mark: Arc::default(),
            shutdown: AtomicBool::new(false),
            shutdown_lock: Mutex::default(),
            shutdown_asked: Condvar::new(),
        }))
    }

    /// The container that is served.
    pub(crate) fn container(&self) -> &Container {
        self.resources.container()
    }

    /// Whom to tell what happens.
    pub(crate) fn events(&self) -> &Arc<Events> {
        self.resources.events()
    }

    /// The jobs.
    pub(crate) fn jobs(&self) -> &Arc<Jobs> {
        &self.jobs
    }

    /// Whether guests are active.
    pub(crate) fn activity(&self) -> &Arc<Activity> {
        self.resources.activity()
    }

    /// The mark of the container's use of space that has been reached.
    pub(crate) fn space_mark(&self) -> &Arc<SpaceMark> {
        &self.space_mark
    }

    /// All exports, in the order in which they were added.
    pub(crate) fn exports(&self) -> Vec<ExportStatus> {
        lock(&self.exports).iter().map(Served::status).collect()
    }

    /// Starts serving a volume. When this returns, the socket accepts connections.
    pub(crate) fn add_export(&self, config: ExportConfig) -> Result<()> {
        if !(1..=MAX_QUEUES).contains(&config.num_queues) {
            return Err(DaemonError::BadQueueCount { found: config.num_queues });
        }
        self.check_new(&lock(&self.exports), &config)?;
        let opening = lock(&self.opening);
        let door = Door::open(&config.socket)?;
        drop(opening);
        let mut exports = lock(&self.exports);
        let volume = self.check_new(&exports, &config)?; // again: the lock was not held
        let id = volume.id();
        let export = Arc::new(Export::start(&config, door, volume, &self.resources)?);
        let event = Event::ExportAdded { id: config.id.clone() };
        exports.push(Served { config, volume: id, export, ending: false });
        drop(exports);
        self.emit(&event);
        Ok(())
    }

    /// Whether an export may be added; its volume.
    fn check_new(&self, exports: &[Served], config: &ExportConfig) -> Result<Volume> {
        if self.shutdown.load(Ordering::Acquire) {
            return Err(DaemonError::ShuttingDown);
        }
        if let Some(served) = exports.iter().find(|served| served.config.id == config.id) {
            let id = config.id.clone();
            return Err(if served.ending {
                DaemonError::ExportEnding { id }
            } else {
                DaemonError::ExportExists { id }
            });
        }
        // One that begins anew with every connection need not be defined before (VOL-45).
        let volume = match &config.refresh_on_connect {
            Some(_) => self.container().volume(&config.volume)?,
            None => self.container().defined_volume(&config.volume)?,
        };
        let shares = |served: &&Served| {
            served.volume == volume.id()
                && (served.config.access == Access::ReadWrite || config.access == Access::ReadWrite)
        };
        if let Some(other) = exports.iter().find(shares) {
            let volume = config.volume.clone();
            return Err(DaemonError::AlreadyExported { volume, id: other.config.id.clone() });
        }
        if let Some(source) = &config.refresh_on_connect {
            if config.access == Access::ReadOnly {
                return Err(DaemonError::RefreshReadOnly { id: config.id.clone(), volume: config.volume.clone() });
            }
            if self.container().volume(source)?.id() == volume.id() {
                return Err(pitstop_format::Error::SameVolume { name: source.clone() }.into());
            }
        }
        Ok(volume)
    }

    /// Stops serving: the socket disappears, a connected guest is disconnected after its requests in flight.
    pub(crate) fn remove_export(&self, id: &str, when_connected: WhenConnected) -> Result<()> {
        let mut exports = lock(&self.exports);
        let Some(served) = exports.iter_mut().find(|served| served.config.id == id) else {
            return Err(DaemonError::NoSuchExport { id: id.to_owned() });
        };
        if served.ending {
            return Err(DaemonError::ExportEnding { id: id.to_owned() });
        }
        if when_connected == WhenConnected::Refuse && served.export.is_connected() {
            return Err(DaemonError::ExportConnected { id: id.to_owned() });
        }
        served.ending = true;
        let export = Arc::clone(&served.export);
        drop(exports);
        self.await_end(id, &export);
        Ok(())
    }

    /// Stops an export that is marked as ending, waits for its end, and takes it from the list.
    fn await_end(&self, id: &str, export: &Export) {
        let stopped = export.stop();
        lock(&self.exports).retain(|served| served.config.id != id);
        self.export_ended.notify_all();
        self.emit(&Event::ExportDeleted { id: id.to_owned() });
        if let Err(panic) = stopped {
            std::panic::resume_unwind(panic);
        }
    }

    /// Creates an empty volume.
    pub(crate) fn create_volume(&self, name: &str, size_bytes: u64, durability: Durability) -> Result<VolumeInfo> {
        Ok(self.container().create_volume_with(name, size_bytes, durability)?)
    }

    /// Changes what flushes of a volume promise, or takes an undefined one as it is; guests go on.
    pub(crate) fn set_volume(&self, name: &str, change: VolumeChange) -> Result<VolumeInfo> {
        Ok(self.container().set_volume(name, change)?)
    }

    /// Deletes a volume that is not exported.
    pub(crate) fn delete_volume(&self, name: &str) -> Result<()> {
        let exports = lock(&self.exports); // held: no export of it may start meanwhile
        if let Some(served) = self.served(&exports, name)? {
            return Err(DaemonError::DeleteExported { volume: name.to_owned(), id: served.config.id.clone() });
        }
        self.container().delete_volume(name)?;
        drop(exports); // a step under way may take long, and others need not wait for it
        self.jobs.look();
        Ok(())
    }

    /// Renames a volume, exported or not.
    pub(crate) fn rename_volume(&self, name: &str, new_name: &str) -> Result<()> {
        let _exports = lock(&self.exports); // held: exports are found by name
        Ok(self.container().rename_volume(name, new_name)?)
    }

    /// Ends a volume's relation to the one that it is a copy of; guests go on.
    pub(crate) fn split(&self, name: &str) -> Result<VolumeInfo> {
        Ok(self.container().split(name)?)
    }

    /// Makes `new_name` a copy of `source` as it is at this instant; guests go on.
    pub(crate) fn snapshot(&self, source: &str, new_name: &str) -> Result<VolumeInfo> {
        let copy = self.container().snapshot(source, new_name)?;
        self.jobs.take_up_seals();
        Ok(copy)
    }

    /// Makes a copy of each source, all as they are at one instant; guests go on.
    pub(crate) fn snapshot_group(&self, copies: &[NewCopy]) -> Result<Vec<VolumeInfo>> {
        let copies = self.container().snapshot_group(copies)?;
        self.jobs.take_up_seals();
        Ok(copies)
    }

    /// Makes `target` a copy of `source` as it is at this instant, if no guest of `target` is harmed or it is forced.
    pub(crate) fn refresh(&self, target: &str, source: &str, when_connected: WhenConnected) -> Result<VolumeInfo> {
        let refreshed = self.refresh_alone(target, source, when_connected)?;
        self.jobs.take_up_seals();
        self.jobs.look();
        Ok(refreshed)
    }

    /// Refreshes while nobody exports, connects to or resizes what it is about.
    fn refresh_alone(&self, target: &str, source: &str, when_connected: WhenConnected) -> Result<VolumeInfo> {
        let exports = lock(&self.exports); // held: no guest may be exported meanwhile
        let _sizes = lock(self.resources.sizes());
        if let Some(served) = self.served(&exports, target)? {
            let id = served.config.id.clone();
            let target_bytes = self.container().volume(target)?.size();
            let source_bytes = self.container().volume(source)?.size();
            if target_bytes != source_bytes {
                return Err(DaemonError::RefreshChangesSize {
                    volume: target.to_owned(),
                    id,
                    source_name: source.to_owned(),
                    target_bytes,
                    source_bytes,
                });
            }
        }
        // No export of the target may connect between the question and the refresh: connections wait at the gate.
        let volume = self.container().volume(target)?.id();
        let of_target = || exports.iter().filter(|served| served.volume == volume);
        let _gates: Vec<_> = of_target().map(|served| served.export.hold_new_connections()).collect();
        if when_connected == WhenConnected::Refuse
            && let Some(served) = of_target().find(|served| served.export.is_connected())
        {
            return Err(DaemonError::RefreshConnected { volume: target.to_owned(), id: served.config.id.clone() });
        }
        Ok(self.container().refresh(target, source)?)
    }

    /// Writes to a volume that no guest is connected to; with `flush`, all that was written before is durable, too.
    pub(crate) fn write(&self, name: &str, start: u64, piece: Piece<'_>, flush: bool) -> Result<()> {
        let container = self.container();
        let volume = container.defined_volume(name)?;
        // A guest of the other volume would meet it, too (VIEW-2).
        container.check_not_in_view(&volume)?;
        let is_its_guest = |served: &&Served| served.volume == volume.id() && served.export.is_connected();
        // Not held while it is written: the piece is small, and a guest that connects meanwhile sees it or not.
        let guest = lock(&self.exports).iter().find(is_its_guest).map(|served| served.config.id.clone());
        if let Some(id) = guest {
            return Err(DaemonError::WriteConnected { volume: name.to_owned(), id });
        }
        let io = VolumeIo::new(container, volume);
        io.put(start, piece)?;
        if flush {
            io.flush()?;
        }
        Ok(())
    }

    /// Makes `name` a write-through view of `source` as it is at this instant; guests go on.
    pub(crate) fn create_view(&self, source: &str, name: &str) -> Result<VolumeInfo> {
        Ok(self.container().create_view(source, name)?)
    }

    /// Ends a write-through view, if that gives up no guest's writes or is forced; guests go on.
    pub(crate) fn end_view(&self, name: &str, end: ViewEnd, when_connected: WhenConnected) -> Result<VolumeInfo> {
        if (end, when_connected) != (ViewEnd::Drop, WhenConnected::Refuse) {
            // It may wait for guests' writes: nothing else waits with it.
            return Ok(self.container().end_view(name, end)?);
        }
        // What holds guests off is let go at the instant: nothing else waits for their writes with the command.
        self.instant_of_drop(name)?.finish().map_err(DaemonError::from)
    }

    /// The instant of an unforced `drop`: while it lasts nobody may be exported, or connect, who would lose writes.
    fn instant_of_drop(&self, name: &str) -> Result<EndingView<'_>> {
        let exports = lock(&self.exports);
        let source = self.container().volumes().into_iter().find(|volume| volume.viewed_by.as_deref() == Some(name));
        // As for a refresh, no guest may connect between the question and the end.
        let of_source = || exports.iter().filter(|served| source.as_ref().is_some_and(|it| it.id == served.volume));
        let _gates: Vec<_> = of_source().map(|served| served.export.hold_new_connections()).collect();
        if let Some(source) = &source
            && let Some(served) = of_source().find(|served| served.export.is_connected())
        {
            let (volume, id) = (source.name.clone(), served.config.id.clone());
            return Err(DaemonError::DropConnected { volume, view: name.to_owned(), id });
        }
        Ok(self.container().start_end_view(name, ViewEnd::Drop)?)
    }

    /// The first export of the volume `name`, if it has any; fails if there is no such volume.
    fn served<'a>(&self, exports: &'a [Served], name: &str) -> Result<Option<&'a Served>> {
        let volume = self.container().volume(name)?.id();
        Ok(exports.iter().find(|served| served.volume == volume))
    }

    /// Asks the daemon to end; returns at once. The main thread then stops the exports and closes the container.
    pub(crate) fn request_shutdown(&self) {
        if self.shutdown.swap(true, Ordering::AcqRel) {
            return;
        }
        let held = lock(&self.shutdown_lock);
        self.shutdown_asked.notify_all();
        drop(held);
        self.emit(&Event::Shutdown);
    }

    /// Sleeps until someone asks the daemon to end, or until all that it serves was one inherited connection that has
    /// ended.
    pub(crate) fn wait_for_shutdown(&self) {
        while !self.is_over() {
            let held = lock(&self.shutdown_lock);
            if self.shutdown.load(Ordering::Acquire) {
                return;
            }
            drop(self.shutdown_asked.wait_timeout(held, LOOK_PERIOD));
        }
    }

    /// Whether there were exports and all have ended by themselves.
    fn is_over(&self) -> bool {
        let exports = lock(&self.exports);
        !exports.is_empty() && exports.iter().all(|served| !served.ending && served.export.is_over())
    }

    /// Stops every export: guests are disconnected after their requests in flight.
    pub(crate) fn stop_exports(&self) {
        let mut ours = Vec::new();
        for served in lock(&self.exports).iter_mut().filter(|served| !served.ending) {
            served.ending = true;
            served.export.ask_to_stop();
            ours.push((served.config.id.clone(), Arc::clone(&served.export)));
        }
        for (id, export) in ours {
            self.await_end(&id, &export);
        }
        // Others may be ending by an order.
        let mut exports = lock(&self.exports);
        while !exports.is_empty() {
            exports = self.export_ended.wait(exports).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Every event from now on. A receiver that is dropped unsubscribes.
    pub(crate) fn subscribe(&self) -> Receiver<Event> {
        self.events().subscribe()
    }

    fn emit(&self, event: &Event) {
        self.events().emit(event);
    }
}

impl Served {
    fn status(&self) -> ExportStatus {
        ExportStatus {
            id: self.config.id.clone(),
            volume: self.export.volume().name(),
            socket: self.config.socket.path().cloned(),
            writable: self.config.access == Access::ReadWrite,
            num_queues: self.config.num_queues,
            connected: self.export.is_connected(),
            ending: self.ending,
            on_enospc: self.config.on_enospc,
            starved: self.export.trouble().starved(),
            refresh_on_connect: self.config.refresh_on_connect.clone(),
        }
    }
}

/// Locks, also after a panic of another holder: what these locks guard is changed in single steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
