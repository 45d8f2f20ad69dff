//! A client of the control socket that sends anything at all.
//!
//! The server is the daemon's own, the daemon behind it is not: its exports are only a list, so that no path of an input
//! is ever opened. Every answer must be a line of JSON, and the server must answer the next client.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use pitstop_format::addendum::Piece;
use pitstop_format::testing::SimDisk;
use pitstop_format::{CacheInfo, CacheOptions, Container, CreateOptions, Durability, NewCopy, OpenMode, ViewEnd, VolumeChange, VolumeInfo, VolumeIo};

use super::commands::Context;
use super::hub::Hub;
use super::session::{self, Link};
use super::target::{Refusal, RefusalKind, Result as TargetResult, Target};
use crate::config::{Access, ExportConfig};
use crate::daemon::{DaemonError, Event, ExportStatus, WhenConnected};
use crate::jobs::{BackupOrder, Dismissal, JobStatus, Jobs};

/// A daemon whose exports are a list.
struct Listed {
    container: Container,
    exports: Mutex<Vec<ExportConfig>>,
    subscriber: Mutex<Option<Sender<Event>>>,
    jobs: Arc<Jobs>,
}

impl Listed {
    fn exports(&self) -> std::sync::MutexGuard<'_, Vec<ExportConfig>> {
        self.exports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        if let Some(subscriber) = &*self.subscriber.lock().unwrap_or_else(PoisonError::into_inner) {
            drop(subscriber.send(event));
        }
    }

    /// As it was before the client.
    fn restore(&self) {
        self.exports().clear();
        for volume in self.container.volumes() {
            if volume.name != "golden" {
                drop(self.container.delete_volume(&volume.name));
            }
        }
        if self.container.volume("golden").is_err() {
            self.container.create_volume("golden", 8 << 20).expect("the volume again");
        }
        self.container.settle(100).expect("background work");
    }
}

fn refused<T>(result: Result<T, pitstop_format::Error>) -> TargetResult<T> {
    Ok(result.map_err(DaemonError::from)?)
}

impl Target for Listed {
    fn container(&self) -> &Container {
        &self.container
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
            connected: false,
            on_enospc: export.on_enospc,
            starved: 0,
            refresh_on_connect: export.refresh_on_connect.clone(),
            ending: false,
        };
        Listed::exports(self).iter().map(status).collect()
    }

    fn add_export(&self, config: ExportConfig) -> TargetResult<()> {
        refused(self.container.volume(&config.volume))?;
        let id = config.id.clone();
        Listed::exports(self).push(config);
        self.tell(Event::ExportAdded { id });
        Ok(())
    }

    fn remove_export(&self, id: &str, _: WhenConnected) -> TargetResult<()> {
        let mut exports = Listed::exports(self);
        let Some(at) = exports.iter().position(|export| export.id == id) else {
            return Err(DaemonError::NoSuchExport { id: id.to_owned() }.into());
        };
        exports.remove(at);
        self.tell(Event::ExportDeleted { id: id.to_owned() });
        Ok(())
    }

    fn write(&self, name: &str, start: u64, piece: Piece<'_>, flush: bool) -> TargetResult<()> {
        let written = self.container.defined_volume(name).and_then(|volume| {
            let io = VolumeIo::new(&self.container, volume);
            io.put(start, piece)?;
            if flush { io.flush() } else { Ok(()) }
        });
        refused(written)
    }

    fn create_volume(&self, name: &str, size_bytes: u64, durability: Durability) -> TargetResult<VolumeInfo> {
        refused(self.container.create_volume_with(name, size_bytes, durability))
    }

    fn set_volume(&self, name: &str, change: VolumeChange) -> TargetResult<VolumeInfo> {
        refused(self.container.set_volume(name, change))
    }

    fn delete_volume(&self, name: &str) -> TargetResult<()> {
        refused(self.container.delete_volume(name))
    }

    fn split(&self, name: &str) -> TargetResult<VolumeInfo> {
        refused(self.container.split(name))
    }

    fn rename_volume(&self, name: &str, new_name: &str) -> TargetResult<()> {
        refused(self.container.rename_volume(name, new_name))
    }

    fn snapshot(&self, source: &str, new_name: &str) -> TargetResult<VolumeInfo> {
        refused(self.container.snapshot(source, new_name))
    }

    fn snapshot_group(&self, copies: &[NewCopy]) -> TargetResult<Vec<VolumeInfo>> {
        refused(self.container.snapshot_group(copies))
    }

    fn refresh(&self, target: &str, source: &str, _: WhenConnected) -> TargetResult<VolumeInfo> {
        refused(self.container.refresh(target, source))
    }

    /// Refused: an input shall not make files.
    fn backup(&self, order: &BackupOrder, _: Dismissal) -> TargetResult<Option<JobStatus>> {
        let text = format!("no backup of '{}' here", order.volume);
        Err(Refusal { kind: RefusalKind::Other, text })
    }

    fn create_cache(&self, name: &str, options: CacheOptions) -> TargetResult<CacheInfo> {
        refused(self.container.create_cache(name, options))
    }

    fn resize_cache(&self, name: &str, options: CacheOptions) -> TargetResult<CacheInfo> {
        refused(self.container.resize_cache(name, options))
    }

    fn delete_cache(&self, name: &str) -> TargetResult<()> {
        refused(self.container.delete_cache(name))
    }

    fn create_view(&self, source: &str, name: &str) -> TargetResult<VolumeInfo> {
        refused(self.container.create_view(source, name))
    }

    fn end_view(&self, name: &str, end: ViewEnd, _: WhenConnected) -> TargetResult<VolumeInfo> {
        refused(self.container.end_view(name, end))
    }

    fn space_mark(&self) -> Option<u8> {
        None
    }

    /// The server is needed for the next input.
    fn request_shutdown(&self) {}

    fn subscribe(&self) -> Receiver<Event> {
        let (sender, receiver) = channel();
        *self.subscriber.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }
}

/// One client, from its greeting to its end. The first byte says whether it negotiates first.
pub fn run(data: &[u8]) {
    static DAEMON: OnceLock<Arc<Listed>> = OnceLock::new();
    let daemon = DAEMON.get_or_init(|| {
        let disk = SimDisk::new();
        let options = CreateOptions { journal_len_bytes: 1 << 20, ..CreateOptions::default() };
        Container::create(disk.clone(), &options).expect("a container");
        let container = Container::open(disk, OpenMode::ReadWrite).expect("a container that opens");
        let jobs = Jobs::new(container.clone(), Arc::default());
        Arc::new(Listed { container, exports: Mutex::default(), subscriber: Mutex::default(), jobs })
    });
    daemon.restore();
    let hub = Arc::new(Hub::default());
    let context = Arc::new(Context::new(daemon.clone(), Arc::clone(&hub)));
    let (mut own, theirs) = UnixStream::pair().expect("a pair of sockets");
    own.set_read_timeout(Some(Duration::from_secs(5))).expect("a time to wait");
    let link = Arc::new(Link::new(1, theirs));
    assert!(hub.add(&link).is_ok(), "the first client is admitted");
    session::spawn(link, context, Arc::clone(&hub)).expect("threads");
    let (flags, said) = data.split_first().map_or((0, data), |(first, rest)| (*first, rest));
    if flags & 1 == 0 {
        own.write_all(b"{'execute':'qmp_capabilities'}").expect("a session that listens");
    }
    // A session that ends early, as for a request that is too long, takes no more.
    for part in said.chunks(if flags & 2 == 0 { usize::MAX } else { 7 }) {
        if own.write_all(part).is_err() {
            break;
        }
    }
    drop(own.shutdown(Shutdown::Write));
    let mut answers = Vec::new();
    if let Err(error) = own.read_to_end(&mut answers) {
        assert!(error.kind() == std::io::ErrorKind::ConnectionReset, "the session does not end: {error}");
        return;
    }
    for line in answers.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let parsed = serde_json::from_slice::<serde_json::Value>(line);
        assert!(parsed.is_ok(), "not JSON: {}", String::from_utf8_lossy(line));
    }
}
