//! A guest without a VM: a vhost-user front end and a small virtio-blk driver over shared memory.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::PATIENCE;

/// Bytes of guest memory.
pub const MEM_LEN: u64 = 64 << 20;
/// Guest memory from here on is free for data.
pub const DATA_START: u64 = 4 << 20;
pub const QUEUE_LEN: u16 = 128;
const QUEUE_STRIDE: u64 = 64 << 10;

pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_GET_ID: u32 = 8;
pub const T_DISCARD: u32 = 11;
pub const T_WRITE_ZEROES: u32 = 13;

pub const F_FLUSH: u64 = 1 << 9;
pub const F_CONFIG_WCE: u64 = 1 << 11;
pub const F_EVENT_IDX: u64 = 1 << 29;
const F_INDIRECT: u64 = 1 << 28;

/// How the guest uses its rings.
#[derive(Clone, Copy)]
pub struct Style {
    pub queues: usize,
    pub event_idx: bool,
    pub indirect: bool,
    /// Features that the guest does not accept.
    pub refuses: u64,
}

impl Style {
    pub const PLAIN: Style = Style { queues: 1, event_idx: true, indirect: false, refuses: 0 };
}

/// A connected guest.
pub struct Client {
    pub frontend: Frontend,
    pub mem: GuestMemoryMmap,
    pub file: File,
    pub queues: Vec<DriverQueue>,
    pub features: u64,
}

/// One queue as its driver sees it.
pub struct DriverQueue {
    mem: GuestMemoryMmap,
    base: u64,
    pub kick: EventFd,
    pub call: EventFd,
    style: Style,
    free: Vec<u16>,
    next_avail: u16,
    last_used: u16,
    /// By head: the descriptors to free, and where the status is.
    pending: HashMap<u16, (Vec<u16>, u64)>,
}

/// A piece of a buffer.
pub type Piece = (u64, u32);

/// The end of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    pub head: u16,
    pub status: u8,
    pub len: u32,
}

impl Client {
    /// Connects and starts all queues.
    pub fn connect(socket: &Path, style: Style) -> Self {
        let mut client = Self::connect_stopped(socket, style);
        client.start();
        client
    }

    /// Connects and tells of its memory.
    pub fn connect_stopped(socket: &Path, style: Style) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut frontend = Frontend::from_stream(stream, style.queues as u64);
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let mut features = offered & !style.refuses;
        if !style.event_idx {
            features &= !F_EVENT_IDX;
        }
        if !style.indirect {
            features &= !F_INDIRECT;
        }
        let protocol = frontend.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::REPLY_ACK;
        assert!(protocol.contains(wanted));
        frontend.set_protocol_features(wanted).unwrap();
        frontend.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(features).unwrap();
        // SAFETY: the name is a C string, and the result is a new descriptor.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), 0)) };
        file.set_len(MEM_LEN).unwrap();
        let range = (GuestAddress(0), MEM_LEN as usize, Some(FileOffset::new(file.try_clone().unwrap(), 0)));
        let mem = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let client = Client { frontend, mem, file, queues: Vec::new(), features };
        client.frontend.set_mem_table(&[client.region()]).unwrap();
        let queues = (0..style.queues).map(|index| DriverQueue::new(&client.mem, index as u64, style)).collect();
        Client { queues, ..client }
    }

    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEM_LEN,
            userspace_addr: self.host_addr(0),
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    fn host_addr(&self, addr: u64) -> u64 {
        self.mem.get_host_address(GuestAddress(addr)).unwrap() as u64
    }

    /// Starts every queue at its present place.
    pub fn start(&mut self) {
        for index in 0..self.queues.len() {
            self.start_queue(index);
        }
    }

    pub fn start_queue(&mut self, index: usize) {
        let queue = &self.queues[index];
        let config = VringConfigData {
            queue_max_size: QUEUE_LEN,
            queue_size: QUEUE_LEN,
            flags: 0,
            desc_table_addr: self.host_addr(queue.base),
            avail_ring_addr: self.host_addr(queue.avail()),
            used_ring_addr: self.host_addr(queue.used()),
            log_addr: None,
        };
        self.frontend.set_vring_num(index, QUEUE_LEN).unwrap();
        self.frontend.set_vring_addr(index, &config).unwrap();
        self.frontend.set_vring_base(index, queue.last_used).unwrap();
        self.frontend.set_vring_call(index, &queue.call).unwrap();
        self.frontend.set_vring_kick(index, &queue.kick).unwrap();
        self.frontend.set_vring_enable(index, true).unwrap();
    }

    pub fn config(&mut self, offset: u32, len: u32) -> Vec<u8> {
        let buf = vec![0; len as usize];
        self.frontend.get_config(offset, len, VhostUserConfigFlags::WRITABLE, &buf).unwrap().1
    }

    pub fn set_write_cache(&mut self, on: bool) -> vhost::Result<()> {
        let bytes = [u8::from(on)];
        self.frontend.set_config(32, VhostUserConfigFlags::WRITABLE, &bytes)
    }

    /// One request with one data buffer at `DATA_START`, to its end.
    pub fn request(&mut self, kind: u32, sector: u64, data: &mut [u8]) -> Done {
        let addr = DATA_START;
        let piece = [(addr, data.len() as u32)];
        let pieces = if data.is_empty() { &[][..] } else { &piece };
        self.mem.write_slice(data, GuestAddress(addr)).unwrap();
        let head = self.queues[0].submit(kind, sector, pieces);
        let done = self.queues[0].wait_one();
        assert_eq!(done.head, head);
        self.mem.read_slice(data, GuestAddress(addr)).unwrap();
        done
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let done = self.request(T_OUT, offset / 512, &mut data.to_vec());
        assert_eq!((done.status, done.len), (0, 1));
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0xee; len];
        let done = self.request(T_IN, offset / 512, &mut data);
        assert_eq!((done.status, done.len), (0, len as u32 + 1));
        data
    }

    pub fn flush(&mut self) {
        assert_eq!(self.request(T_FLUSH, 0, &mut []).status, 0);
    }

    /// A discard or write-zeroes request of several `(sector, sectors, flags)`.
    pub fn zero(&mut self, kind: u32, segments: &[(u64, u32, u32)]) -> u8 {
        let mut data = Vec::new();
        for (sector, sectors, flags) in segments {
            data.extend(sector.to_le_bytes());
            data.extend(sectors.to_le_bytes());
            data.extend(flags.to_le_bytes());
        }
        self.request(kind, 0, &mut data).status
    }
}

impl DriverQueue {
    fn new(mem: &GuestMemoryMmap, index: u64, style: Style) -> Self {
        let queue = DriverQueue {
            mem: mem.clone(),
            base: index * QUEUE_STRIDE,
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(0).unwrap(),
            style,
            free: (0..QUEUE_LEN).collect(),
            next_avail: 0,
            last_used: 0,
            pending: HashMap::new(),
        };
        queue.want_call();
        queue
    }

    pub fn desc(&self) -> u64 {
        self.base
    }

    pub fn avail(&self) -> u64 {
        self.base + 0x1000
    }

    pub fn used(&self) -> u64 {
        self.base + 0x2000
    }

    /// Headers, statuses and indirect tables: 256 bytes and 4 KiB a head, in a part of memory of their own.
    fn header(&self, head: u16) -> u64 {
        self.base + 0x4000 + u64::from(head) * 32
    }

    /// Where the status of a request goes.
    pub fn status(&self, head: u16) -> u64 {
        self.header(head) + 16
    }

    fn table(&self, head: u16) -> u64 {
        (2 << 20) + self.base * 4 / 16 + u64::from(head) * 128
    }

    fn put16(&self, addr: u64, value: u16) {
        self.mem.store(value.to_le(), GuestAddress(addr), Ordering::SeqCst).unwrap();
    }

    fn get16(&self, addr: u64) -> u16 {
        u16::from_le(self.mem.load(GuestAddress(addr), Ordering::SeqCst).unwrap())
    }

    fn put_descriptor(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.mem.write_obj([addr, rest], GuestAddress(table + u64::from(index) * 16)).unwrap();
    }

    /// Asks to be called at the next used element.
    pub fn want_call(&self) {
        if self.style.event_idx {
            self.put16(self.avail() + 4 + u64::from(QUEUE_LEN) * 2, self.last_used);
        }
    }

    /// Whether as many descriptors are free as a request with so many pieces needs.
    pub fn has_room(&self, pieces: usize) -> bool {
        self.free.len() >= pieces + 2
    }

    /// Offers a request without kicking.
    pub fn offer(&mut self, kind: u32, sector: u64, data: &[Piece]) -> u16 {
        let head = *self.free.last().unwrap();
        let header = self.header(head);
        let status = self.status(head);
        self.mem.write_obj([u64::from(kind), sector], GuestAddress(header)).unwrap();
        self.mem.write_obj(0xffu8, GuestAddress(status)).unwrap();
        let writable = if matches!(kind, T_IN | T_GET_ID) { 2 } else { 0 };
        let mut chain = vec![(header, 16, 0)];
        chain.extend(data.iter().map(|&(addr, len)| (addr, len, writable)));
        chain.push((status, 1, 2));
        let descriptors = self.put_chain(head, &chain);
        self.pending.insert(head, (descriptors, status));
        self.offer_head(head);
        head
    }

    fn put_chain(&mut self, head: u16, chain: &[(u64, u32, u16)]) -> Vec<u16> {
        if self.style.indirect && chain.len() <= 8 {
            let table = self.table(head);
            for (index, &(addr, len, flags)) in chain.iter().enumerate() {
                let index = index as u16;
                let next = u16::from(usize::from(index) + 1 < chain.len());
                self.put_descriptor(table, index, addr, len, flags | next, index + 1);
            }
            self.put_descriptor(self.base, head, table, chain.len() as u32 * 16, 4, 0);
            return vec![self.free.pop().unwrap()];
        }
        let taken: Vec<u16> = (0..chain.len()).map(|_| self.free.pop().unwrap()).collect();
        for (place, &(addr, len, flags)) in chain.iter().enumerate() {
            let next = taken.get(place + 1).copied();
            let flags = flags | u16::from(next.is_some());
            self.put_descriptor(self.base, taken[place], addr, len, flags, next.unwrap_or(0));
        }
        taken
    }

    /// Puts a head into the available ring, whatever it is.
    pub fn offer_head(&mut self, head: u16) {
        self.put16(self.avail() + 4 + u64::from(self.next_avail % QUEUE_LEN) * 2, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.put16(self.avail() + 2, self.next_avail);
    }

    /// Sets the available index, whatever it is.
    pub fn force_avail_idx(&mut self, idx: u16) {
        self.put16(self.avail() + 2, idx);
    }

    /// The index whose head the device wants to be kicked for.
    pub fn kick_wanted_at(&self) -> u16 {
        self.get16(self.used() + 4 + u64::from(QUEUE_LEN) * 8)
    }

    /// Kicks if the device asked for it since `before`.
    pub fn kick_if_wanted(&self, before: u16) {
        std::sync::atomic::fence(Ordering::SeqCst);
        let wanted = if self.style.event_idx {
            self.next_avail.wrapping_sub(self.kick_wanted_at()).wrapping_sub(1) < self.next_avail.wrapping_sub(before)
        } else {
            self.get16(self.used()) & 1 == 0
        };
        if wanted {
            self.kick.write(1).unwrap();
        }
    }

    pub fn submit(&mut self, kind: u32, sector: u64, data: &[Piece]) -> u16 {
        let before = self.next_avail;
        let head = self.offer(kind, sector, data);
        self.kick_if_wanted(before);
        head
    }

    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    pub fn used_idx(&self) -> u16 {
        self.get16(self.used() + 2)
    }

    /// The next finished request, if there is one.
    pub fn take_done(&mut self) -> Option<Done> {
        if self.used_idx() == self.last_used {
            return None;
        }
        let place = self.used() + 4 + u64::from(self.last_used % QUEUE_LEN) * 8;
        let [id, len]: [u32; 2] = self.mem.read_obj(GuestAddress(place)).unwrap();
        self.last_used = self.last_used.wrapping_add(1);
        let (descriptors, status) = self.pending.remove(&(id as u16)).expect("a head comes back that was not offered");
        self.free.extend(descriptors.into_iter().rev());
        let status = self.mem.read_obj(GuestAddress(status)).unwrap();
        Some(Done { head: id as u16, status, len })
    }

    /// Sleeps until the device calls, as a guest would: a lost notification fails the test.
    pub fn wait_one(&mut self) -> Done {
        let since = Instant::now();
        loop {
            if let Some(done) = self.take_done() {
                return done;
            }
            self.want_call();
            std::sync::atomic::fence(Ordering::SeqCst);
            if let Some(done) = self.take_done() {
                return done;
            }
            let mut fd = libc::pollfd { fd: self.call.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, which lives until the call returns.
            unsafe { libc::poll(&raw mut fd, 1, 5000) };
            assert!(fd.revents & libc::POLLIN != 0, "no notification, {} pending", self.pending.len());
            self.call.read().unwrap();
            assert!(since.elapsed() < PATIENCE);
        }
    }
}
