//! What the control socket needs of the daemon.
//!
//! Role: the one seam between the QMP layer and the rest of the program, so that the layer runs in tests without a
//! guest. Invariant: every method may be called from any thread, and what it changed is durable when it returns (but see [`Target::write`]).

use std::sync::mpsc::Receiver;

use pitstop_format::addendum::Piece;
use pitstop_format::{CacheInfo, CacheOptions, Container, Durability, NewCopy, ViewEnd, VolumeChange, VolumeInfo};

use crate::config::ExportConfig;
use crate::daemon::{Daemon, DaemonError, Event, ExportStatus, WhenConnected};
use crate::jobs::{BackupError, BackupOrder, Dismissal, JobStatus, Jobs};

/// Why the daemon refused an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What is the matter.
    pub(crate) kind: RefusalKind,
    /// The error's text, unchanged.
    pub(crate) text: String,
}

/// What a program may want to know about a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefusalKind {
    /// The volume or export does not exist.
    NotFound,
    /// Anything else.
    Other,
}

/// Result of an order.
pub(crate) type Result<T> = std::result::Result<T, Refusal>;

/// The daemon, as the control socket sees it.
pub(crate) trait Target: Send + Sync {
    /// The container that is served; used for questions only.
    fn container(&self) -> &Container;
    /// The mark of the container's use of space that has been reached, in percent.
    fn space_mark(&self) -> Option<u8>;
    /// The jobs.
    fn jobs(&self) -> &Jobs;
    /// All exports.
    fn exports(&self) -> Vec<ExportStatus>;
    /// Starts serving a volume; when this returns, its socket accepts connections.
    fn add_export(&self, config: ExportConfig) -> Result<()>;
    /// Stops serving.
    fn remove_export(&self, id: &str, when_connected: WhenConnected) -> Result<()>;
    /// Creates a volume that reads as zeros.
    fn create_volume(&self, name: &str, size_bytes: u64, durability: Durability) -> Result<VolumeInfo>;
    /// Changes what flushes of a volume promise, or takes an undefined one as it is.
    fn set_volume(&self, name: &str, change: VolumeChange) -> Result<VolumeInfo>;
    /// Deletes a volume.
    fn delete_volume(&self, name: &str) -> Result<()>;
    /// Gives a volume another name.
    fn rename_volume(&self, name: &str, new_name: &str) -> Result<()>;
    /// Makes a new volume that is a copy of `source` as it is now.
    fn snapshot(&self, source: &str, new_name: &str) -> Result<VolumeInfo>;
    /// Makes a copy of each source, all as they are at one instant.
    fn snapshot_group(&self, copies: &[NewCopy]) -> Result<Vec<VolumeInfo>>;
    /// Makes `target` a copy of `source` as it is now.
    fn refresh(&self, target: &str, source: &str, when_connected: WhenConnected) -> Result<VolumeInfo>;
    /// Ends a volume's relation to the one that it is a copy of.
    fn split(&self, name: &str) -> Result<VolumeInfo>;
    /// Makes `name` a write-through view of `source` as it is now.
    fn create_view(&self, source: &str, name: &str) -> Result<VolumeInfo>;
    /// Ends the write-through view `name`.
    fn end_view(&self, name: &str, end: ViewEnd, when_connected: WhenConnected) -> Result<VolumeInfo>;
    /// Begins a backup; when this returns, its instant is fixed. `None` if it has ended by then.
    fn backup(&self, order: &BackupOrder, dismissal: Dismissal) -> Result<Option<JobStatus>>;
    /// Writes to a volume that no guest is connected to; with `flush`, all that was written before is durable, too.
    fn write(&self, name: &str, start: u64, piece: Piece<'_>, flush: bool) -> Result<()>;
    /// Makes a cache region.
    fn create_cache(&self, name: &str, options: CacheOptions) -> Result<CacheInfo>;
    /// Changes a cache region.
    fn resize_cache(&self, name: &str, options: CacheOptions) -> Result<CacheInfo>;
    /// Deletes a cache region.
    fn delete_cache(&self, name: &str) -> Result<()>;
    /// Asks the daemon to end; returns at once, and [`Event::Shutdown`] goes to the subscribers.
    fn request_shutdown(&self);
    /// Every event from now on.
    fn subscribe(&self) -> Receiver<Event>;
}

impl Refusal {
    /// The refusal that every order gives for a volume that does not exist.
    pub(crate) fn no_such_volume(name: String) -> Self {
        DaemonError::Format(pitstop_format::Error::NoSuchVolume { name }).into()
    }
}

impl From<DaemonError> for Refusal {
    fn from(error: DaemonError) -> Self {
        let not_found = matches!(
            error,
            DaemonError::NoSuchExport { .. }
                | DaemonError::Format(
                    pitstop_format::Error::NoSuchVolume { .. } | pitstop_format::Error::NoSuchCache { .. }
                )
        );
        let kind = if not_found { RefusalKind::NotFound } else { RefusalKind::Other };
        Refusal { kind, text: error.to_string() }
    }
}

impl From<BackupError> for Refusal {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Format(error) => DaemonError::from(error).into(),
            BackupError::Target(text) => Refusal { kind: RefusalKind::Other, text },
        }
    }
}

impl Target for Daemon {
    fn container(&self) -> &Container {
        self.container()
    }

    fn space_mark(&self) -> Option<u8> {
        self.space_mark().get()
    }

    fn jobs(&self) -> &Jobs {
        self.jobs()
    }

    fn exports(&self) -> Vec<ExportStatus> {
        self.exports()
    }

    fn add_export(&self, config: ExportConfig) -> Result<()> {
        Ok(self.add_export(config)?)
    }

    fn remove_export(&self, id: &str, when_connected: WhenConnected) -> Result<()> {
        Ok(self.remove_export(id, when_connected)?)
    }

    fn create_volume(&self, name: &str, size_bytes: u64, durability: Durability) -> Result<VolumeInfo> {
        Ok(self.create_volume(name, size_bytes, durability)?)
    }

    fn set_volume(&self, name: &str, change: VolumeChange) -> Result<VolumeInfo> {
        Ok(self.set_volume(name, change)?)
    }

    fn delete_volume(&self, name: &str) -> Result<()> {
        Ok(self.delete_volume(name)?)
    }

    fn rename_volume(&self, name: &str, new_name: &str) -> Result<()> {
        Ok(self.rename_volume(name, new_name)?)
    }

    fn snapshot(&self, source: &str, new_name: &str) -> Result<VolumeInfo> {
        Ok(self.snapshot(source, new_name)?)
    }

    fn snapshot_group(&self, copies: &[NewCopy]) -> Result<Vec<VolumeInfo>> {
        Ok(self.snapshot_group(copies)?)
    }

    fn refresh(&self, target: &str, source: &str, when_connected: WhenConnected) -> Result<VolumeInfo> {
        Ok(self.refresh(target, source, when_connected)?)
    }

    fn split(&self, name: &str) -> Result<VolumeInfo> {
        Ok(self.split(name)?)
    }

    fn create_view(&self, source: &str, name: &str) -> Result<VolumeInfo> {
        Ok(self.create_view(source, name)?)
    }

    fn end_view(&self, name: &str, end: ViewEnd, when_connected: WhenConnected) -> Result<VolumeInfo> {
        Ok(self.end_view(name, end, when_connected)?)
    }

    fn backup(&self, order: &BackupOrder, dismissal: Dismissal) -> Result<Option<JobStatus>> {
        self.jobs().backup(order, dismissal).map_err(Refusal::from)
    }

    fn write(&self, name: &str, start: u64, piece: Piece<'_>, flush: bool) -> Result<()> {
        Ok(self.write(name, start, piece, flush)?)
    }

    fn create_cache(&self, name: &str, options: CacheOptions) -> Result<CacheInfo> {
        Ok(self.container().create_cache(name, options).map_err(DaemonError::from)?)
    }

    fn resize_cache(&self, name: &str, options: CacheOptions) -> Result<CacheInfo> {
        Ok(self.container().resize_cache(name, options).map_err(DaemonError::from)?)
    }

    fn delete_cache(&self, name: &str) -> Result<()> {
        Ok(self.container().delete_cache(name).map_err(DaemonError::from)?)
    }

    fn request_shutdown(&self) {
        self.request_shutdown();
    }

    fn subscribe(&self) -> Receiver<Event> {
        self.subscribe()
    }
}
