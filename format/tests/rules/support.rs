//! Containers on a simulated disk, with a look at each request to it.

use std::io;
use std::sync::{Arc, Mutex};

use pitstop_format::testing::{Crash, Fate, SimDisk};
use pitstop_format::{Container, CreateOptions, Disk, OpenMode, SLAB_LEN, VolumeIo};

pub const BLOCK: u64 = 4096;
pub const MIB: u64 = 1 << 20;
/// The smallest journal there is: a batch is due after 8 KiB of changes.
pub const SMALL_JOURNAL: u64 = 256 << 10;
/// What slabs hold that somebody used before.
pub const STALE: u8 = 0xee;

pub fn new_container() -> (Arc<SimDisk>, Container) {
    let disk = SimDisk::new();
    Container::create(disk.clone(), &options()).unwrap();
    let container = open(disk.clone());
    (disk, container)
}

fn options() -> CreateOptions {
    CreateOptions { journal_len_bytes: SMALL_JOURNAL, ..CreateOptions::default() }
}

pub fn open(disk: Arc<dyn Disk>) -> Container {
    Container::open(disk, OpenMode::ReadWrite).unwrap()
}

pub fn io(container: &Container, name: &str) -> VolumeIo {
    VolumeIo::new(container, container.volume(name).unwrap())
}

/// Writes one block.
pub fn put(container: &Container, name: &str, offset: u64, value: u8) {
    io(container, name).write_at(&[value; BLOCK as usize], offset).unwrap();
}

/// The byte that every byte of the block at `offset` is.
pub fn block(container: &Container, name: &str, offset: u64) -> u8 {
    let mut bytes = [0; BLOCK as usize];
    io(container, name).read_at(&mut bytes, offset).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{name} at {offset:#x} is not of one value");
    bytes[0]
}

/// Leaves free slabs that hold [`STALE`], durably; they are the next to be used.
pub fn leave_stale_slabs(container: &Container) {
    container.create_volume("stale", 16 * SLAB_LEN).unwrap();
    io(container, "stale").write_at(&vec![STALE; 16 * SLAB_LEN as usize], 0).unwrap();
    io(container, "stale").flush().unwrap();
    container.delete_volume("stale").unwrap();
    for _ in 0..4 {
        container.settle(1000).unwrap();
        container.commit().unwrap();
    }
    container.settle(1000).unwrap();
}

/// Asserts that the place holds stale bytes: else a test would show nothing.
pub fn assert_stale(disk: &SimDisk, offset: u64) {
    let mut bytes = [0; 512];
    disk.read_at(&mut bytes, offset).unwrap();
    assert_eq!(bytes, [STALE; 512], "the slab at {offset:#x} is a new one");
}

/// What a power failure now leaves if nothing unsynced was written.
pub fn power_failure(disk: &SimDisk, crash: &mut Crash) -> Arc<SimDisk> {
    disk.take_events().iter().for_each(|event| crash.step(event));
    crash.disk(|_| Fate::Lost)
}

/// Asserts that the checker finds nothing.
pub fn assert_clean(disk: &dyn Disk) {
    let findings = pitstop_format::check::check(disk).unwrap().findings;
    assert!(findings.is_empty(), "{findings:#?}");
}

/// A request to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Write,
    WriteDurable,
    Sync,
}

type Hook = Box<dyn FnMut(Op) -> io::Result<()> + Send>;

/// A disk that asks a hook before each write and sync. The hook's own requests are not asked about.
pub struct Hooked {
    pub disk: Arc<SimDisk>,
    hook: Mutex<Option<Hook>>,
}

impl Hooked {
    pub fn on(disk: Arc<SimDisk>) -> Arc<Self> {
        Arc::new(Self { disk, hook: Mutex::new(None) })
    }

    pub fn set(&self, hook: impl FnMut(Op) -> io::Result<()> + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    pub fn clear(&self) {
        *self.hook.lock().unwrap() = None;
    }

    fn ask(&self, op: Op) -> io::Result<()> {
        let Some(mut hook) = self.hook.lock().unwrap().take() else { return Ok(()) };
        let answer = hook(op);
        self.hook.lock().unwrap().get_or_insert(hook);
        answer
    }
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hooked")
    }
}

impl Disk for Hooked {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.ask(Op::Write)?;
        self.disk.write_at(buf, offset)
    }

    fn write_at_durable(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.ask(Op::WriteDurable)?;
        self.disk.write_at_durable(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.ask(Op::Sync)?;
        self.disk.sync()
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        self.disk.grow(len)
    }
}
