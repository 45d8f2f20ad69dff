//! A container that this program opens itself.
//!
//! Invariant: a container opened for changes is announced to others while it is held, if that can be, and closed cleanly
//! after a bounded amount of background work. Does not: talk to daemons.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pitstop_format::addendum::Piece;
use pitstop_format::{
    CacheOptions, Container, Durability, FileDisk, Holder, Listing, Maintained, NewCopy, Verify, ViewEnd, VolumeChange,
    VolumeIo,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::local::LocalSource;
use super::work::{self, Worker};
use super::{Access, Connected, STEP_RANGES, Session, Want, mode_of};
use crate::copy::Source;
use crate::error::{Error, Result};
use crate::jobs::{JobOrder, JobView};
use crate::maps::{DiffStepView, MapStepView};
use crate::view::{self, CacheView, ContainerView, LayerView, VolumeView};

/// Most steps of background work (freeing what a deleted volume used) before a command returns; what remains is done by
/// the next one, or by the daemon.
const MAX_MAINTENANCE_STEPS: u32 = 4096;
/// Longest time that these steps may take.
const MAX_MAINTENANCE_TIME: Duration = Duration::from_secs(3);

/// An open container.
#[derive(Debug)]
pub(crate) struct Direct {
    path: PathBuf,
    access: Access,
    container: Container,
    worker: Worker,
}

impl Direct {
    /// Opens the container on `disk`, whose file is `path`.
    pub(super) fn open(path: &Path, disk: Arc<FileDisk>, access: Access) -> Result<Self> {
        if access == Access::Change {
            let holder = Holder { pid: std::process::id(), program: "pitstop".to_owned(), control: None };
            // A courtesy to those who find the container locked. It fails where the file system is full or refuses new
            // files; deleting volumes must work there all the same.
            drop(disk.announce(&holder));
        }
        let container = Container::open(disk, mode_of(access)).map_err(Error::container(path))?;
        Ok(Self { path: path.to_owned(), access, container, worker: Worker::default() })
    }

    /// The container, for the verb that backs up.
    pub(crate) fn opened(&self) -> &Container {
        &self.container
    }

    /// Where volume `name` may differ from what `copy` is, or was since it was made.
    pub(crate) fn changed_since(&self, name: &str, copy: &str, start: u64) -> Result<DiffStepView> {
        view(&self.container.changed_since(name, copy, start, listing(Want::Ranges)).map_err(self.failed())?)
    }

    fn io(&self, name: &str) -> Result<VolumeIo> {
        let volume = self.container.volume(name).map_err(self.failed())?;
        Ok(VolumeIo::new(&self.container, volume))
    }

    /// Puts an error of this container into words.
    pub(crate) fn failed(&self) -> impl FnOnce(pitstop_format::Error) -> Error + use<> {
        Error::container(&self.path)
    }

    /// Does a bounded amount of background work and closes the container cleanly.
    pub(crate) fn finish(self) -> Result<()> {
        if self.access == Access::Read {
            return Ok(());
        }
        let deadline = Instant::now() + MAX_MAINTENANCE_TIME;
        for _ in 0..MAX_MAINTENANCE_STEPS {
            let done = self.container.maintain().map_err(Error::container(&self.path))?;
            if done == Maintained::Idle || Instant::now() >= deadline {
                break;
            }
        }
        self.container.close().map_err(Error::container(&self.path))
    }
}

impl Session for Direct {
    fn container(&mut self) -> Result<ContainerView> {
        view(&self.container.info())
    }

    fn volumes(&mut self) -> Result<Vec<VolumeView>> {
        view(&self.container.volumes())
    }

    fn layers(&mut self) -> Result<Vec<LayerView>> {
        view(&self.container.layers())
    }

    fn create_volume(&mut self, name: &str, size_bytes: u64, durability: Durability) -> Result<VolumeView> {
        view(&self.container.create_volume_with(name, size_bytes, durability).map_err(self.failed())?)
    }

    fn set_volume(&mut self, name: &str, change: VolumeChange) -> Result<VolumeView> {
        view(&self.container.set_volume(name, change).map_err(self.failed())?)
    }

    fn delete_volume(&mut self, name: &str) -> Result<()> {
        self.container.delete_volume(name).map_err(self.failed())
    }

    fn rename_volume(&mut self, name: &str, new_name: &str) -> Result<()> {
        self.container.rename_volume(name, new_name).map_err(self.failed())
    }

    fn snapshot(&mut self, source: &str, new_name: &str) -> Result<VolumeView> {
        view(&self.container.snapshot(source, new_name).map_err(self.failed())?)
    }

    fn snapshot_group(&mut self, copies: &[NewCopy]) -> Result<Vec<VolumeView>> {
        view(&self.container.snapshot_group(copies).map_err(self.failed())?)
    }

    fn refresh(&mut self, name: &str, source: &str, _connected: Connected) -> Result<VolumeView> {
        // Nobody but this program has the container, so no guest is connected.
        view(&self.container.refresh(name, source).map_err(self.failed())?)
    }

    fn split(&mut self, name: &str) -> Result<VolumeView> {
        view(&self.container.split(name).map_err(self.failed())?)
    }

    fn create_view(&mut self, source: &str, name: &str) -> Result<VolumeView> {
        view(&self.container.create_view(source, name).map_err(self.failed())?)
    }

    fn end_view(&mut self, name: &str, end: ViewEnd, _connected: Connected) -> Result<VolumeView> {
        view(&self.container.end_view(name, end).map_err(self.failed())?)
    }

    fn map(&mut self, name: &str, start: u64, want: Want) -> Result<MapStepView> {
        view(&self.container.map(name, start, listing(want)).map_err(self.failed())?)
    }

    fn diff(&mut self, a: &str, b: &str, start: u64, want: Want) -> Result<DiffStepView> {
        view(&self.container.diff(a, b, start, listing(want)).map_err(self.failed())?)
    }

    fn source(&mut self, name: &str) -> Result<Box<dyn Source>> {
        Ok(Box::new(LocalSource::new(&self.path, &self.container, name)?))
    }

    fn write(&mut self, name: &str, start: u64, piece: Piece<'_>) -> Result<()> {
        self.io(name)?.put(start, piece).map_err(self.failed())
    }

    fn flush(&mut self, name: &str) -> Result<()> {
        self.io(name)?.flush().map_err(self.failed())
    }

    fn is_connected(&mut self, _name: &str) -> Result<bool> {
        // Nobody but this program has the container.
        Ok(false)
    }

    fn jobs(&mut self) -> Result<Vec<JobView>> {
        Ok(work::jobs(&self.container))
    }

    fn order_job(&mut self, id: &str, order: JobOrder) -> Result<()> {
        match work::order(&self.container, id, order) {
            Some(result) => result.map_err(self.failed()),
            None => Err(Error::NoSuchJob { id: id.to_owned() }),
        }
    }

    fn hydrate(&mut self, name: &str, speed: u64) -> Result<Option<JobView>> {
        let Some(layer) = self.container.hydrate(name).map_err(self.failed())? else {
            return Ok(None);
        };
        self.container.set_hydration(layer, false, speed).map_err(self.failed())?;
        let is_its = |job: &JobView| job.kind == "hydrate" && job.volume.as_deref() == Some(name);
        Ok(work::jobs(&self.container).into_iter().find(is_its))
    }

    fn set_verify(&mut self, name: &str, verify: Verify) -> Result<VolumeView> {
        view(&self.container.set_verify(name, verify).map_err(self.failed())?)
    }

    fn seal(&mut self, name: &str, speed: u64) -> Result<Option<JobView>> {
        let volume = self.container.seal(name).map_err(self.failed())?;
        self.container.set_seal(volume, false, speed).map_err(self.failed())?;
        let is_its = |job: &JobView| job.kind == "seal" && job.volume.as_deref() == Some(name);
        Ok(work::jobs(&self.container).into_iter().find(is_its))
    }

    fn caches(&mut self) -> Result<Vec<CacheView>> {
        view(&self.container.caches())
    }

    fn create_cache(&mut self, name: &str, options: CacheOptions) -> Result<CacheView> {
        view(&self.container.create_cache(name, options).map_err(self.failed())?)
    }

    fn resize_cache(&mut self, name: &str, options: CacheOptions) -> Result<CacheView> {
        view(&self.container.resize_cache(name, options).map_err(self.failed())?)
    }

    fn delete_cache(&mut self, name: &str) -> Result<()> {
        self.container.delete_cache(name).map_err(self.failed())
    }

    fn advance(&mut self, id: &str) -> Result<()> {
        self.worker.advance(&self.container, id).map_err(Error::container(&self.path))
    }

    fn holder(&self) -> Option<&Holder> {
        None
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.finish()
    }
}

fn listing(want: Want) -> Listing {
    match want {
        Want::Ranges => Listing::Ranges(STEP_RANGES.into()),
        Want::Counts => Listing::Counts,
    }
}

/// Turns what the container library gives into the shape that verbs work with.
pub(super) fn view<T: Serialize, V: DeserializeOwned>(value: &T) -> Result<V> {
    Ok(view::view(serde_json::to_value(value)?)?)
}
