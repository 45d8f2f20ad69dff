//! A container on a simulated disk, queues that work on its volumes step by step, and crashes.

use std::ops::Range;
use std::sync::Arc;
use std::task::{Wake, Waker};

use pitstop_format::check::Outcome;
use pitstop_format::testing::{Crash, Event, Fate, SimDisk};
use pitstop_format::{
    BLOCK_LEN, Container, CreateOptions, Edge, EdgeSource, Error, Flush, FlushStep, HydrateEnd, HydrateStep,
    Maintained, OpenMode, Planned, ReadPlan, ReadSegment, Result, SLAB_LEN, Volume, VolumeIo, VolumeState,
    WriteSegment, ZeroKind,
};
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread::{self, Thread};

use crate::explore::pick;

/// Bytes of a block, for buffers.
pub const BLOCK: usize = BLOCK_LEN as usize;
/// Value of bytes that belong to others: nobody's block may ever show it.
pub const FOREIGN: u8 = 0xee;

/// A closed container, from which each run starts.
#[derive(Debug)]
pub struct Image(Crash);

impl Image {
    /// A small container as `prepare` leaves it, its background work done.
    pub fn of(prepare: fn(&Container)) -> Self {
        let disk = SimDisk::new();
        let options = CreateOptions { journal_len_bytes: SLAB_LEN, ..CreateOptions::default() };
        Container::create(disk.clone(), &options).unwrap();
        let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
        container.settle(1000).unwrap();
        prepare(&container);
        container.close().unwrap();
        Self(disk.record())
    }
}

/// One run's container.
#[derive(Debug)]
pub struct World {
    pub disk: Arc<SimDisk>,
    pub container: Container,
    before: Crash,
}

impl World {
    pub fn new(image: &Image) -> Self {
        let disk = image.0.disk(|_| Fate::Kept);
        let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
        let before = disk.record();
        Self { disk, container, before }
    }

    pub fn queue(&self, volume: &str) -> Queue {
        Queue::new(&self.container, volume)
    }

    /// A promise begins to hold: crashes after this know it.
    pub fn promise(&self, number: u64) {
        self.disk.mark(number);
    }

    /// The power fails at some moment; what is left must be clean, open, and keep the promises made by then.
    pub fn crash(&self, check: impl Fn(&Container, &[u64])) {
        let events = self.disk.take_events();
        for _ in 0..2 {
            let cut = pick(events.len() as u64 + 1) as usize;
            let mut crash = self.before.clone();
            let mut promises = Vec::new();
            for event in &events[..cut] {
                crash.step(event);
                if let Event::Mark(number) = event {
                    promises.push(*number);
                }
            }
            let kept = pick(5);
            let disk = crash.disk(|_| if pick(4) < kept { Fate::Kept } else { Fate::Lost });
            assert_clean(&disk);
            let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
            check(&container, &promises);
            drop(container);
            assert_clean(&disk);
        }
    }

    /// Everybody is done: background work ends, the container closes, and still shows the same.
    pub fn close(&self, check: impl Fn(&Container)) {
        check(&self.container);
        self.container.settle(200).unwrap();
        check(&self.container);
        self.container.clone().close().unwrap();
        assert_clean(&self.disk);
        check(&Container::open(self.disk.copy(), OpenMode::ReadOnly).unwrap());
    }
}

fn assert_clean(disk: &SimDisk) {
    let report = pitstop_format::check::check(disk).unwrap();
    // A superblock copy that was being written may be torn: a note.
    assert_eq!(report.outcome(), Outcome::Clean, "{:?}", report.findings);
}

/// Does background work until told to stop, as the daemon's thread does.
pub fn maintain(container: &Container, stop: &AtomicBool) {
    loop {
        match container.maintain() {
            Ok(Maintained::Worked) => {}
            Ok(Maintained::Idle) if stop.load(Ordering::SeqCst) => return,
            Ok(Maintained::Idle) => thread::yield_now(),
            Err(Error::Failed { .. } | Error::Closed) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// At most `steps` steps of background work.
pub fn maintain_some(container: &Container, steps: usize) {
    for _ in 0..steps {
        container.maintain().unwrap();
    }
}

/// The disk takes as long as it likes: now and then until the others have done much.
fn linger() {
    if pick(4) == 0 {
        (0..pick(64)).for_each(|_| thread::yield_now());
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Wakes the thread that made it.
pub fn waker() -> Waker {
    Waker::from(Arc::new(Unpark(thread::current())))
}

/// A queue thread: plans, carries out, completes, and sleeps when told to wait. It does no background work: what it
/// waits for must wake it.
#[derive(Debug)]
pub struct Queue {
    container: Container,
    volume: Volume,
}

impl Queue {
    pub fn new(container: &Container, volume: &str) -> Self {
        Self { container: container.clone(), volume: container.volume(volume).unwrap() }
    }

    fn planned<T>(&self, mut plan: impl FnMut(&Waker) -> Result<Planned<T>>) -> Result<T> {
        let waker = waker();
        loop {
            match plan(&waker)? {
                Planned::Ready(ready) => return Ok(ready),
                Planned::NeedPage(load) => self.container.load_page(load)?,
                Planned::Busy => thread::park(),
            }
        }
    }

    pub fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut plan = ReadPlan::default();
        self.planned(|_| self.volume.plan_read(range.clone(), &mut plan))?;
        linger();
        let mut bytes = Vec::new();
        for segment in plan.segments() {
            match *segment {
                ReadSegment::Data { disk_offset, len } => {
                    let mut piece = vec![0; len as usize];
                    self.container.disk().read_at(&mut piece, disk_offset).unwrap();
                    bytes.extend(piece);
                }
                ReadSegment::Zero { len } => bytes.resize(bytes.len() + len as usize, 0),
            }
        }
        Ok(bytes)
    }

    fn carry_out(&self, value: u8, segments: &[WriteSegment], edges: &[Edge]) -> std::io::Result<()> {
        let disk = self.container.disk();
        for edge in edges {
            let mut block = vec![0; BLOCK];
            if let EdgeSource::Disk { offset } = edge.source {
                disk.read_at(&mut block, offset)?;
            }
            block[edge.offset_in_block..edge.offset_in_block + edge.len].fill(value);
            disk.write_at(&block, edge.disk_offset)?;
        }
        for segment in segments {
            disk.write_at(&vec![value; segment.len as usize], segment.disk_offset)?;
        }
        Ok(())
    }

    /// Fills `range` with `value`. A write that the disk refuses is given up.
    pub fn write(&self, range: Range<u64>, value: u8) -> Result<()> {
        let ticket = self.planned(|waker| self.volume.plan_write(range.clone(), waker))?;
        linger();
        self.carry_out(value, ticket.segments(), ticket.edges())
            .map_err(|source| Error::Io { what: "cannot write", source })?;
        linger();
        ticket.complete();
        Ok(())
    }

    pub fn zero(&self, range: Range<u64>, kind: ZeroKind) -> Result<()> {
        let mut rest = Some(range);
        while let Some(range) = rest {
            let ticket = self.planned(|waker| self.volume.plan_zero(range.clone(), kind, waker))?;
            self.carry_out(0, ticket.segments(), ticket.edges())
                .map_err(|source| Error::Io { what: "cannot write", source })?;
            rest = ticket.remaining();
            ticket.complete();
        }
        Ok(())
    }

    pub fn flush(&self) -> Result<()> {
        self.carry_out_flush(self.volume.start_flush())
    }

    pub fn carry_out_flush(&self, mut flush: Flush) -> Result<()> {
        let waker = waker();
        let disk = self.container.disk();
        loop {
            match flush.poll(&waker)? {
                FlushStep::Done => return Ok(()),
                FlushStep::Sync => {
                    let synced = disk.sync();
                    linger();
                    flush.synced(synced);
                }
                FlushStep::Append(append) => {
                    let appended = disk.write_at_durable(append.bytes(), append.offset());
                    linger();
                    flush.appended(appended);
                }
                FlushStep::Wait => thread::park(),
            }
        }
    }
}

/// The blocks of a range as bytes.
pub fn blocks(range: Range<u64>) -> Range<u64> {
    range.start * BLOCK_LEN..range.end * BLOCK_LEN
}

/// Blocks of a chunk, as bytes of the volume.
pub fn in_chunk(chunk: u64, range: Range<u64>) -> Range<u64> {
    blocks(chunk * 64 + range.start..chunk * 64 + range.end)
}

/// The one value that all of `bytes` have.
pub fn uniform(bytes: &[u8]) -> u8 {
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "torn: {:?}", values(bytes));
    bytes[0]
}

/// The value of each sector.
pub fn values(bytes: &[u8]) -> Vec<u8> {
    let sector = |bytes: &[u8]| {
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a sector is torn");
        bytes[0]
    };
    bytes.chunks(512).map(sector).collect()
}

/// The bytes of a range, read with the blocking I/O of the tools.
pub fn bytes(container: &Container, volume: &str, range: Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    VolumeIo::new(container, container.volume(volume).unwrap()).read_at(&mut bytes, range.start).unwrap();
    bytes
}

/// The one value of a range.
pub fn value(container: &Container, volume: &str, range: Range<u64>) -> u8 {
    uniform(&bytes(container, volume, range))
}

/// Fills a range with the blocking I/O of the tools.
pub fn put(container: &Container, volume: &str, range: Range<u64>, value: u8) {
    let io = VolumeIo::new(container, container.volume(volume).unwrap());
    io.write_at(&vec![value; (range.end - range.start) as usize], range.start).unwrap();
}

/// Leaves freed slabs behind that hold foreign bytes: the next to be used.
pub fn leave_foreign_slabs(container: &Container) {
    container.create_volume("foreign", 8 * SLAB_LEN).unwrap();
    for chunk in 0..8 {
        put(container, "foreign", in_chunk(chunk, 0..4), FOREIGN);
    }
    container.delete_volume("foreign").unwrap();
    container.settle(100).unwrap();
}

pub fn exists(container: &Container, volume: &str) -> bool {
    container.volume(volume).is_ok()
}

/// Steps of the only hydration until it ends; volumes have a MiB.
pub fn fill(container: &Container) -> HydrateEnd {
    let Some(layer) = container.hydrations().first().map(|hydration| hydration.layer) else {
        return HydrateEnd::Cancelled;
    };
    loop {
        match container.hydrate_step(layer, 1 + pick(2) * (1 << 20)).unwrap() {
            HydrateStep::Ended(end) => return end,
            HydrateStep::Copied(_) => {}
            // Nobody else may be there to make room.
            HydrateStep::Blocked(_) => {
                maintain_some(container, 1);
                thread::yield_now();
            }
        }
    }
}

pub fn state(container: &Container, name: &str) -> VolumeState {
    container.volumes().into_iter().find(|volume| volume.name == name).unwrap().state
}
