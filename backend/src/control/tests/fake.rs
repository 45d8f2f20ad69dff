//! A daemon without guests: a real container on a temporary file, and exports that are only a list.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};

use pitstop_format::addendum::Piece;
use pitstop_format::{
    CacheInfo, CacheOptions, Container, CreateOptions, Durability, FileDisk, NewCopy, OpenMode, ViewEnd, VolumeChange,
    VolumeInfo,
};

use super::target::{Refusal, RefusalKind, Result, Target};
use crate::config::{Access, ExportConfig};
use crate::daemon::{DaemonError, Event, ExportStatus, WhenConnected};
use crate::jobs::{BackupOrder, Dismissal, JobStatus, Jobs};

/// Size of volume `golden`.
pub(crate) const GOLDEN_BYTES: u64 = 8 << 20;

/// The fake. Volume `golden` exists; a guest is "connected" to the exports named in `connected`.
pub(crate) struct FakeTarget {
    container: Container,
    jobs: Arc<Jobs>,
    exports: Mutex<Vec<ExportConfig>>,
    subscribers: Mutex<Vec<Sender<Event>>>,
    shutdown: AtomicBool,
    /// While true, snapshots wait.
    held: Mutex<bool>,
    released: Condvar,
    snapshots_begun: Mutex<usize>,
    pub(crate) folder: tempfile::TempDir,
}

impl FakeTarget {
    pub(crate) fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let disk = FileDisk::create(&folder.path().join("test.pit")).unwrap();
        let options = CreateOptions { journal_len_bytes: 4 << 20, ..CreateOptions::default() };
        Container::create(disk.clone(), &options).unwrap();
        let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
        container.create_volume("golden", GOLDEN_BYTES).unwrap();
        Arc::new(FakeTarget {
            jobs: Jobs::new(container.clone(), Arc::default()),
            container,
            exports: Mutex::default(),
            subscribers: Mutex::default(),
            shutdown: AtomicBool::new(false),
            held: Mutex::new(false),
            released: Condvar::new(),
            snapshots_begun: Mutex::new(0),
            folder,
        })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    pub(crate) fn is_shut_down(&self) -> bool {
        self.shutdown.load(Ordering::Acquire)
    }

    /// Makes snapshots wait, or lets them go on.
    pub(crate) fn hold_snapshots(&self, hold: bool) {
        *self.held.lock().unwrap() = hold;
        self.released.notify_all();
    }

    pub(crate) fn snapshots_begun(&self) -> usize {
        *self.snapshots_begun.lock().unwrap()
    }

    pub(crate) fn emit(&self, event: &Event) {
        self.subscribers.lock().unwrap().retain(|subscriber| subscriber.send(event.clone()).is_ok());
    }
}

fn refuse(text: &str) -> Refusal {
    Refusal { kind: RefusalKind::Other, text: text.to_owned() }
}

/// A guest is connected to every export whose id begins with `busy`.
fn is_connected(export: &ExportConfig) -> bool {
    export.id.starts_with("busy")
}

impl Target for FakeTarget {
    fn container(&self) -> &Container {
        &self.container
    }

    fn space_mark(&self) -> Option<u8> {
        Some(80)
    }

    fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    fn exports(&self) -> Vec<ExportStatus> {
        let status = |export: &ExportConfig| ExportStatus {
            id: export.id.clone(),
            volume: export.volume.clone(),
            socket: export.socket.path().cloned(),
            writable: export.access == Access::ReadWrite,
            num_queues: export.num_queues,
            connected: is_connected(export),
            ending: false,
            on_enospc: export.on_enospc,
            starved: 0,
            refresh_on_connect: export.refresh_on_connect.clone(),
        };
        self.exports.lock().unwrap().iter().map(status).collect()
    }

    fn add_export(&self, config: ExportConfig) -> Result<()> {
        self.container.volume(&config.volume).map_err(DaemonError::from)?;
        let mut exports = self.exports.lock().unwrap();
        if exports.iter().any(|export| export.id == config.id) {
            return Err(DaemonError::ExportExists { id: config.id }.into());
        }
        let id = config.id.clone();
        exports.push(config);
        self.emit(&Event::ExportAdded { id });
        Ok(())
    }

    fn remove_export(&self, id: &str, when_connected: WhenConnected) -> Result<()> {
        let mut exports = self.exports.lock().unwrap();
        let Some(at) = exports.iter().position(|export| export.id == id) else {
            return Err(DaemonError::NoSuchExport { id: id.to_owned() }.into());
        };
        if when_connected == WhenConnected::Refuse && is_connected(&exports[at]) {
            return Err(DaemonError::ExportConnected { id: id.to_owned() }.into());
        }
        exports.remove(at);
        self.emit(&Event::ExportDeleted { id: id.to_owned() });
        Ok(())
    }

    fn write(&self, name: &str, start: u64, piece: Piece<'_>, flush: bool) -> Result<()> {
        let volume = self.container.defined_volume(name).map_err(DaemonError::from)?;
        let exports = self.exports.lock().unwrap();
        if let Some(export) = exports.iter().find(|export| export.volume == name && is_connected(export)) {
            return Err(DaemonError::WriteConnected { volume: name.to_owned(), id: export.id.clone() }.into());
        }
        let io = pitstop_format::VolumeIo::new(&self.container, volume);
        let written = io.put(start, piece).and_then(|()| if flush { io.flush() } else { Ok(()) });
        Ok(written.map_err(DaemonError::from)?)
    }

    fn create_volume(&self, name: &str, size_bytes: u64, durability: Durability) -> Result<VolumeInfo> {
        Ok(self.container.create_volume_with(name, size_bytes, durability).map_err(DaemonError::from)?)
    }

    fn set_volume(&self, name: &str, change: VolumeChange) -> Result<VolumeInfo> {
        Ok(self.container.set_volume(name, change).map_err(DaemonError::from)?)
    }

    fn delete_volume(&self, name: &str) -> Result<()> {
        if self.exports.lock().unwrap().iter().any(|export| export.volume == name) {
            return Err(refuse("volume is exported"));
        }
        Ok(self.container.delete_volume(name).map_err(DaemonError::from)?)
    }

    fn split(&self, name: &str) -> Result<VolumeInfo> {
        Ok(self.container.split(name).map_err(DaemonError::from)?)
    }

    fn rename_volume(&self, name: &str, new_name: &str) -> Result<()> {
        Ok(self.container.rename_volume(name, new_name).map_err(DaemonError::from)?)
    }

    fn snapshot(&self, source: &str, new_name: &str) -> Result<VolumeInfo> {
        *self.snapshots_begun.lock().unwrap() += 1;
        let mut held = self.held.lock().unwrap();
        while *held {
            held = self.released.wait(held).unwrap();
        }
        drop(held);
        assert_ne!(source, "panic", "the test asked for a panic");
        Ok(self.container.snapshot(source, new_name).map_err(DaemonError::from)?)
    }

    fn snapshot_group(&self, copies: &[NewCopy]) -> Result<Vec<VolumeInfo>> {
        Ok(self.container.snapshot_group(copies).map_err(DaemonError::from)?)
    }

    fn refresh(&self, target: &str, source: &str, when_connected: WhenConnected) -> Result<VolumeInfo> {
        let exports = self.exports.lock().unwrap();
        let busy = exports.iter().find(|export| export.volume == target && is_connected(export));
        if let (Some(export), WhenConnected::Refuse) = (busy, when_connected) {
            return Err(DaemonError::RefreshConnected { volume: target.to_owned(), id: export.id.clone() }.into());
        }
        Ok(self.container.refresh(target, source).map_err(DaemonError::from)?)
    }

    fn backup(&self, order: &BackupOrder, dismissal: Dismissal) -> Result<Option<JobStatus>> {
        self.jobs.backup(order, dismissal).map_err(Refusal::from)
    }

    fn create_cache(&self, name: &str, options: CacheOptions) -> Result<CacheInfo> {
        Ok(self.container.create_cache(name, options).map_err(DaemonError::from)?)
    }

    fn resize_cache(&self, name: &str, options: CacheOptions) -> Result<CacheInfo> {
        Ok(self.container.resize_cache(name, options).map_err(DaemonError::from)?)
    }

    fn delete_cache(&self, name: &str) -> Result<()> {
        Ok(self.container.delete_cache(name).map_err(DaemonError::from)?)
    }

    fn create_view(&self, source: &str, name: &str) -> Result<VolumeInfo> {
        Ok(self.container.create_view(source, name).map_err(DaemonError::from)?)
    }

    fn end_view(&self, name: &str, end: ViewEnd, when_connected: WhenConnected) -> Result<VolumeInfo> {
        let exports = self.exports.lock().unwrap();
        if let (Some(export), ViewEnd::Drop, WhenConnected::Refuse) =
            (exports.iter().find(|export| is_connected(export)), end, when_connected)
        {
            let (volume, id) = (export.volume.clone(), export.id.clone());
            return Err(DaemonError::DropConnected { volume, view: name.to_owned(), id }.into());
        }
        Ok(self.container.end_view(name, end).map_err(DaemonError::from)?)
    }

    fn request_shutdown(&self) {
        if !self.shutdown.swap(true, Ordering::AcqRel) {
            self.emit(&Event::Shutdown);
        }
    }

    fn subscribe(&self) -> Receiver<Event> {
        let (sender, receiver) = channel();
        self.subscribers.lock().unwrap().push(sender);
        receiver
    }
}
