//! One vhost-user session: what the front end says, turned into running queues.
//!
//! A queue runs exactly while it has been kicked off (SET_VRING_KICK), is enabled, has a size, addresses and memory.
//! Whatever a queue's thread relies on changes only while that thread is stopped: the handler stops the queues that are
//! concerned, which completes the requests they have taken, then changes, then starts them again, then replies. So
//! GET_VRING_BASE, SET_MEM_TABLE, RESET_DEVICE and the others drain by construction. Invariant: an error returned from
//! here ends the session and nothing else. Does not: read or write the rings (`dataplane`), or listen (`export`).
//!
//! In-flight tracking fits in at [`Queue::start`] (replay before the thread starts) and in the split ring (marks at pop
//! and publish); a change of size fits in at [`VhostUserBackendReqHandlerMut::set_backend_req_fd`].

pub(crate) mod memory;
mod queue;
pub(crate) mod sigbus;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pitstop_format::{Container, Volume, VolumeIo};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, Result, VhostUserBackendReqHandlerMut};
use vmm_sys_util::eventfd::EventFd;

use crate::config::Access;
use crate::dataplane::{DataDisk, Durability, prepare_eventfd};
use crate::trouble::Trouble;
use crate::virtio::config_space::{self, DiskShape, WriteCache};
use memory::{GuestMap, MAX_REGIONS, MemoryError};
pub(crate) use queue::QueueError;
use queue::{Queue, RingAddresses, Run};

/// What a session serves.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    /// Name for messages.
    pub(crate) name: String,
    /// The container.
    pub(crate) container: Container,
    /// Its file.
    pub(crate) disk: Arc<DataDisk>,
    /// The volume.
    pub(crate) volume: Volume,
    /// Whether the guest may write.
    pub(crate) access: Access,
    /// Most queues.
    pub(crate) num_queues: u16,
    /// Whether the export's write cache is off. Outlives resets and sessions: front ends answer the guest from their own
    /// copy of the configuration space and do not send it again.
    pub(crate) write_through: Arc<AtomicBool>,
    /// What the storage does to the export's requests.
    pub(crate) trouble: Arc<Trouble>,
}

/// Why a message is refused; the session ends.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("cannot make completed writes durable: {0}")]
    Flush(#[from] pitstop_format::Error),
    #[error("vring {index} does not exist: this export has {num_queues} queues")]
    NoSuchQueue { index: u32, num_queues: u16 },
    #[error("features {features:#x} were not offered")]
    NotOffered { features: u64 },
    #[error("write of {len} bytes at {offset} of the configuration space; only the write cache at 32 can be changed")]
    BadConfigWrite { offset: u32, len: usize },
    #[error("message for a feature that was not offered")]
    Unsupported,
    #[error("session has an owner already")]
    HasOwner,
    #[error("{what} needs an eventfd: {source}")]
    BadEventFd { what: &'static str, source: std::io::Error },
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::ReqHandlerError(std::io::Error::other(refusal))
    }
}

type Answer<T> = std::result::Result<T, Refusal>;

/// The state of one session.
pub(crate) struct Session {
    served: Served,
    owned: bool,
    features: u64,
    map: Arc<GuestMap>,
    queues: Vec<Queue>,
    failure: Arc<EventFd>,
}

impl Session {
    /// A fresh session. `failure` is signalled when a queue breaks and the session must end.
    pub(crate) fn new(served: Served, failure: Arc<EventFd>) -> std::result::Result<Self, QueueError> {
        let queues = (0..served.num_queues).map(|_| Queue::new()).collect::<std::result::Result<_, _>>()?;
        Ok(Session { served, owned: false, features: 0, map: Arc::default(), queues, failure })
    }

    /// Ends the session: every queue completes what it has taken, then guest memory is unmapped.
    pub(crate) fn end(&mut self) {
        self.stop_all();
        self.map = Arc::default();
    }

    fn stop_all(&mut self) {
        // First ask all, then wait for each: they drain at the same time.
        self.queues.iter().for_each(Queue::ask_to_stop);
        self.queues.iter_mut().for_each(Queue::stop);
    }

    /// Stops all queues, changes something they rely on, and starts again those that may run.
    fn change<T>(&mut self, change: impl FnOnce(&mut Self) -> Answer<T>) -> Answer<T> {
        self.stop_all();
        let result = change(self)?;
        self.start_all()?;
        Ok(result)
    }

    fn start_all(&mut self) -> Answer<()> {
        (0..self.queues.len()).try_for_each(|index| self.start_if_ready(index))
    }

    fn start_if_ready(&mut self, index: usize) -> Answer<()> {
        let run = Run {
            served: &self.served,
            map: &self.map,
            durability: self.durability(),
            event_idx: config_space::has_event_idx(self.features),
            failure: &self.failure,
        };
        if let Some(queue) = self.queues.get_mut(index) {
            queue.start_if_ready(index, &run)?;
        }
        Ok(())
    }

    fn durability(&self) -> Durability {
        if self.write_cache() == WriteCache::WriteThrough || !config_space::has_flush(self.features) {
            Durability::EveryWrite
        } else {
            Durability::OnFlush
        }
    }

    fn offered_features(&self) -> u64 {
        config_space::offered_features(self.served.access) | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn shape(&self) -> DiskShape {
        DiskShape {
            capacity_bytes: self.served.volume.size(),
            num_queues: self.served.num_queues,
            write_cache: self.write_cache(),
        }
    }

    fn write_cache(&self) -> WriteCache {
        if self.served.write_through.load(Ordering::Acquire) { WriteCache::WriteThrough } else { WriteCache::WriteBack }
    }

    /// The queue of that index, stopped.
    fn stopped_queue(&mut self, index: u32) -> Answer<(usize, &mut Queue)> {
        let num_queues = self.served.num_queues;
        let queue = self.queues.get_mut(index as usize).ok_or(Refusal::NoSuchQueue { index, num_queues })?;
        queue.stop();
        Ok((index as usize, queue))
    }

    /// Changes a queue while it is stopped, then starts it again if it may run.
    fn change_queue<T>(&mut self, index: u32, change: impl FnOnce(&mut Queue) -> Answer<T>) -> Answer<T> {
        let (index, queue) = self.stopped_queue(index)?;
        let result = change(queue)?;
        self.start_if_ready(index)?;
        Ok(result)
    }

    /// Makes everything that has completed durable, blocking.
    fn commit(&self) -> Answer<()> {
        if self.served.access == Access::ReadOnly {
            return Ok(());
        }
        Ok(VolumeIo::new(&self.served.container, self.served.volume.clone()).flush()?)
    }

    fn reset(&mut self) {
        self.stop_all();
        self.queues.iter_mut().for_each(Queue::reset);
    }

    fn take_features(&mut self, features: u64) -> Answer<()> {
        let unknown = features & !self.offered_features();
        if unknown != 0 {
            return Err(Refusal::NotOffered { features: unknown });
        }
        self.change(|session| {
            session.features = features;
            if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
                session.queues.iter_mut().for_each(|queue| queue.set_enabled(true)); // there is no message to do it
            }
            if session.durability() == Durability::EveryWrite { session.commit() } else { Ok(()) }
        })
    }

    fn take_config_write(&mut self, offset: u32, bytes: &[u8]) -> Answer<()> {
        let cache = config_space::written(offset, bytes).ok_or(Refusal::BadConfigWrite { offset, len: bytes.len() })?;
        if cache == self.write_cache() {
            return Ok(());
        }
        self.change(|session| {
            let write_through = cache == WriteCache::WriteThrough;
            session.served.write_through.store(write_through, Ordering::Release);
            if write_through { session.commit() } else { Ok(()) }
        })
    }

    fn take_kick(&mut self, index: u8, fd: Option<File>) -> Answer<()> {
        let Some(file) = fd else {
            let source = std::io::ErrorKind::Unsupported.into();
            return Err(Refusal::BadEventFd { what: "a kick (queues are not served by polling alone)", source });
        };
        prepare_eventfd(&file).map_err(|source| Refusal::BadEventFd { what: "a kick", source })?;
        self.change_queue(u32::from(index), |queue| {
            queue.set_kick(file);
            Ok(())
        })
    }

    fn take_call(&mut self, index: u8, fd: Option<File>) -> Answer<()> {
        let (index, num_queues) = (u32::from(index), self.served.num_queues);
        if let Some(file) = &fd {
            prepare_eventfd(file).map_err(|source| Refusal::BadEventFd { what: "a call", source })?;
            log::trace!("{}: vring {index} calls descriptor {}", self.served.name, file.as_raw_fd());
        }
        // The queue goes on: front ends do this often, whenever an interrupt is masked.
        let queue = self.queues.get(index as usize).ok_or(Refusal::NoSuchQueue { index, num_queues })?;
        queue.set_call(fd);
        Ok(())
    }

    fn take_ring_base(&mut self, index: u32) -> Answer<VhostUserVringState> {
        let (_, queue) = self.stopped_queue(index)?;
        queue.forget_kick();
        Ok(VhostUserVringState::new(index, u32::from(queue.next_avail())))
    }
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.owned, true) {
            return Err(Refusal::HasOwner.into());
        }
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset();
        self.owned = false;
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered_features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        Ok(self.take_features(features)?)
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<vhost::VhostUserMemoryRegionBase>>> {
        self.change(|session| {
            session.map = Arc::default(); // the old memory goes before the new comes
            session.map = Arc::new(GuestMap::from_table(table, files)?);
            Ok(())
        })?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        Ok(self.change_queue(index, |queue| Ok(queue.set_size(num)?))?)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let addresses = RingAddresses { descriptor, available, used };
        Ok(self.change_queue(index, |queue| {
            queue.set_addresses(addresses);
            Ok(())
        })?)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        Ok(self.change_queue(index, |queue| Ok(queue.set_base(base)?))?)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        Ok(self.take_ring_base(index)?)
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        Ok(self.take_kick(index, fd)?)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        Ok(self.take_call(index, fd)?)
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        // Errors end the session, which says more than an event; the descriptor is not needed.
        self.stopped_queue(u32::from(index)).map(drop)?;
        Ok(self.start_if_ready(usize::from(index))?)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let offered = self.get_protocol_features()? | VhostUserProtocolFeatures::REPLY_ACK;
        match features & !offered.bits() {
            0 => Ok(()),
            features => Err(Refusal::NotOffered { features }.into()),
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.served.num_queues))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        Ok(self.change_queue(index, |queue| {
            queue.set_enabled(enable);
            Ok(())
        })?)
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        config_space::read(&self.shape(), offset, size).ok_or(Error::InvalidParam)
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Ok(self.take_config_write(offset, bytes)?)
    }

    fn set_gpu_socket(&mut self, _backend: vhost::vhost_user::GpuBackend) -> Result<()> {
        Err(Refusal::Unsupported.into())
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Refusal::Unsupported.into())
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Refusal::Unsupported.into())
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(Refusal::Unsupported.into())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<vhost::VhostUserMemoryRegionBase>> {
        self.change(|session| {
            session.map = Arc::new(session.map.with_region(region, file)?);
            Ok(())
        })?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Ok(self.change(|session| {
            session.map = Arc::new(session.map.without_region(region)?);
            Ok(())
        })?)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(Refusal::Unsupported.into())
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Refusal::Unsupported.into())
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Refusal::Unsupported.into())
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Refusal::Unsupported.into())
    }
}
