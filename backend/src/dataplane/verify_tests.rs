//! Requests to a volume that is always verified, with every part of a block asked for, some blocks damaged and some not
//! sealed (TAG-14, TAG-15).

use std::ops::Range;

use pitstop_format::{
    CreateOptions, Disk, FileDisk, IoAlignment, OpenMode, Planned, ReadPlan, ReadSegment, SLAB_LEN, SealStep, Verify,
    VolumeIo,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::buffers::HostBuffer;
use super::task::{Advance, Context, Task, Tasks, Work};
use super::transfers::{MAX_BOUNCED_LEN, Transfers};
use super::wake::Signal;
use super::*;
use crate::virtio::chain::Segment;
use crate::virtio::request::RequestError;

const BLOCK: u64 = 4096;
const LEN: u64 = 2 * SLAB_LEN;
/// What guest memory holds before a read.
const NOTHING: u8 = 0xee;

/// `ci`, a copy of `golden`, which is sealed; what it shows, and a guest's memory.
struct Scene {
    container: Container,
    volume: Volume,
    disk: Arc<FileDisk>,
    transfers: Transfers,
    mem: GuestMemoryMmap,
    model: Vec<u8>,
    /// The next operation fails.
    fails: bool,
    /// Most bytes in bounce buffers so far.
    most_bounced: usize,
    /// Most parts that reads waited with for tags.
    most_waiting: usize,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn new(alignment: IoAlignment) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disks.pit");
        let disk = FileDisk::create(&path).unwrap();
        Container::create(disk.clone(), &CreateOptions::default()).unwrap();
        let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
        container.create_volume("golden", LEN).unwrap();
        let model: Vec<u8> = (0..LEN).map(|at| (at / BLOCK * 7 + at % 249) as u8).collect();
        VolumeIo::new(&container, container.volume("golden").unwrap()).write_at(&model, 0).unwrap();
        container.set_verify("golden", Verify::Copy).unwrap();
        container.snapshot("golden", "ci").unwrap();
        let golden = container.volume("golden").unwrap().id();
        while !matches!(container.seal_step(golden, 1 << 30).unwrap(), SealStep::Ended(_)) {}
        container.set_verify("ci", Verify::Always).unwrap();
        container.close().unwrap();
        // No page of tags is in memory.
        let disk = FileDisk::open(&path, OpenMode::ReadWrite).unwrap();
        let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
        let real = disk.io_alignment();
        let alignment =
            IoAlignment { memory: alignment.memory.max(real.memory), offset: alignment.offset.max(real.offset) };
        let buffered = Some(File::options().read(true).write(true).open(&path).unwrap());
        let data = DataDisk { disk: Arc::clone(&disk), buffered, alignment, activity: Arc::default() };
        Scene {
            volume: container.volume("ci").unwrap(),
            container,
            disk,
            transfers: Transfers::new(Arc::new(data)).unwrap(),
            mem: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap(),
            model,
            fails: false,
            most_bounced: 0,
            most_waiting: 0,
            _folder: folder,
        }
    }

    /// Takes a request to its end.
    fn run(&mut self, work: Work) -> Result<(), RequestError> {
        self.run_all(vec![work]).pop().unwrap()
    }

    /// Takes requests to their ends, all at once.
    fn run_all(&mut self, works: Vec<Work>) -> Vec<Result<(), RequestError>> {
        let signal = Signal::new().unwrap();
        let (mut tasks, mut spare_plan) = (Tasks::default(), None);
        let mut results: Vec<_> = works.iter().map(|_| None).collect();
        let mut next: Vec<usize> =
            works.into_iter().map(|work| tasks.insert(Task::new(0, GuestAddress(0), 0, work))).collect();
        let (mut completions, mut ended) = (Vec::new(), Vec::new());
        while results.iter().any(Option::is_none) {
            while let Some(id) = next.pop() {
                let mut context = Context {
                    container: &self.container,
                    volume: &self.volume,
                    durability: Durability::OnFlush,
                    transfers: &mut self.transfers,
                    waker: &signal.waker(),
                    spare_plan: &mut spare_plan,
                };
                match tasks.advance(id, &mut context) {
                    Advance::Ended(result) => results[id] = Some(result),
                    Advance::Parked => {
                        self.container.maintain().unwrap();
                        next.push(id);
                    }
                    Advance::Waits => {}
                }
                self.most_waiting = self.most_waiting.max(tasks.waiting_parts());
            }
            self.transfers.submit().unwrap();
            self.most_bounced = self.most_bounced.max(self.transfers.bounced_len());
            if results.iter().all(Option::is_some) {
                break;
            }
            self.transfers.ring().wait().unwrap();
            self.transfers.ring().take_completions(usize::MAX, &mut completions);
            for (user_data, result) in completions.drain(..) {
                let result = if std::mem::take(&mut self.fails) { -libc::EIO } else { result };
                self.transfers.completed(user_data, result, &mut ended);
            }
            for finished in ended.drain(..) {
                let id = finished.task;
                if tasks.get_mut(id).transfer_ended(finished) {
                    next.push(id);
                }
            }
        }
        assert_eq!((tasks.waiting_parts(), self.transfers.bounced_len()), (0, 0));
        results.into_iter().flatten().collect()
    }

    fn buffer(&self, at: u64, len: u64) -> HostBuffer {
        let half = len / 2;
        let segments = [Segment { addr: at, len: half as u32 }, Segment { addr: at + half, len: (len - half) as u32 }];
        HostBuffer::resolve(&self.mem, &segments).unwrap()
    }

    /// Reads into memory at `at`; what is there afterwards.
    fn read(&mut self, range: Range<u64>, at: u64) -> (Vec<u8>, Result<(), RequestError>) {
        let len = range.end - range.start;
        let mut bytes = vec![NOTHING; len as usize];
        self.mem.write_slice(&bytes, GuestAddress(at)).unwrap();
        let buffer = self.buffer(at, len);
        let result = self.run(Work::Read { range, buffer });
        self.mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        (bytes, result)
    }

    fn write(&mut self, range: Range<u64>, value: u8) -> Result<(), RequestError> {
        let len = range.end - range.start;
        self.mem.write_slice(&vec![value; len as usize], GuestAddress(4096)).unwrap();
        let buffer = self.buffer(4096, len);
        self.run(Work::Write { range: range.clone(), buffer })?;
        self.model[range.start as usize..range.end as usize].fill(value);
        Ok(())
    }

    /// Where a block is in the file.
    fn place_of(&self, block: u64) -> u64 {
        let mut plan = ReadPlan::default();
        loop {
            match self.volume.plan_read(block * BLOCK..block * BLOCK + 512, &mut plan).unwrap() {
                Planned::Ready(()) => break,
                Planned::NeedPage(load) => self.container.load_page(load).unwrap(),
                Planned::Busy => unreachable!("reads do not wait"),
            }
        }
        match plan.segments() {
            [ReadSegment::Data { disk_offset, .. }] => *disk_offset,
            other => panic!("{other:?}"),
        }
    }

    /// Turns a bit of a block over.
    fn flip(&self, block: u64, at: usize) {
        let (place, mut bytes) = (self.place_of(block), vec![0; BLOCK as usize]);
        self.disk.read_at(&mut bytes, place).unwrap();
        bytes[at] ^= 8;
        self.disk.write_at(&bytes, place).unwrap();
    }

    /// Reads every part of the blocks `blocks`: `damaged` is refused, and not a byte of it seen; everything else is as it was.
    fn assert_reads(&mut self, blocks: Range<u64>, damaged: u64) {
        let (first, end) = (blocks.start * BLOCK / 512, blocks.end * BLOCK / 512);
        let bad = damaged * BLOCK..(damaged + 1) * BLOCK;
        let (mut refused, mut read) = (0, 0);
        for start in first..end {
            for stop in start + 1..=end {
                let range = start * 512..stop * 512;
                // At an address that direct I/O can use, and at one that it cannot.
                let at = if (start + stop) % 3 == 0 { 4096 + 7 } else { 8192 };
                let (bytes, result) = self.read(range.clone(), at);
                if range.start < bad.end && bad.start < range.end {
                    let error = result.unwrap_err();
                    let place = format!("block {damaged} (offset {})", self.place_of(damaged));
                    assert!(error.to_string().contains(&place), "{error}");
                    let within = range.start.max(bad.start) - range.start..range.end.min(bad.end) - range.start;
                    let seen = &bytes[within.start as usize..within.end as usize];
                    assert!(seen.iter().all(|&byte| byte == NOTHING), "{range:?}: bytes of a damaged block");
                    refused += 1;
                } else {
                    result.unwrap();
                    assert!(bytes == self.model[range.start as usize..range.end as usize], "{range:?}");
                    read += 1;
                }
            }
        }
        assert!(refused > 0 && read > 0);
    }
}

fn fill(mem: &GuestMemoryMmap, at: u64, len: u64) {
    mem.write_slice(&vec![NOTHING; len as usize], GuestAddress(at)).unwrap();
}

fn every_alignment(test: impl Fn(&mut Scene)) {
    for (memory, offset) in [(1, 1), (512, 512), (4096, 4096)] {
        test(&mut Scene::new(IoAlignment { memory, offset }));
    }
}

// req: R13; rules: TAG-14, TAG-15 — over the border of two slabs.
#[test]
fn every_part_of_sealed_blocks_is_read_or_refused() {
    every_alignment(|scene| {
        scene.flip(63, 4095);
        scene.assert_reads(61..66, 63);
        scene.flip(63, 4095);
        scene.flip(64, 0);
        scene.assert_reads(62..66, 64);
    });
}

// rules: TAG-14, TAG-15 — a block of the volume's own, which is not sealed, between those that are.
#[test]
fn what_is_not_sealed_is_read_as_it_is_between_what_is() {
    every_alignment(|scene| {
        scene.write(10 * BLOCK..11 * BLOCK, 0x31).unwrap();
        scene.flip(10, 9);
        scene.model[10 * BLOCK as usize + 9] ^= 8;
        scene.flip(12, 100);
        scene.assert_reads(9..13, 12);
    });
}

// req: R13; rule: TAG-15 — the rest of a block that is written in part is read from below.
#[test]
fn parts_of_damaged_blocks_are_not_written() {
    let mut scene = Scene::new(IoAlignment { memory: 1, offset: 1 });
    for block in 20..30 {
        scene.flip(block, 512);
        for (start, end) in [(0, 512), (3584, 4096), (512, 1024), (1024, 3072), (512, 4096 + 512)] {
            let range = block * BLOCK + start..block * BLOCK + end;
            assert!(scene.write(range.clone(), 1).unwrap_err().to_string().contains("TAG-5"));
            let zeros = Work::Zero { kind: pitstop_format::ZeroKind::WriteZeroes, ranges: [range].into() };
            assert!(scene.run(zeros).is_err());
        }
        let (_, result) = scene.read(block * BLOCK..(block + 1) * BLOCK, 4096);
        result.unwrap_err();
        scene.flip(block, 512);
        let part = block * BLOCK + 512..block * BLOCK + 1024;
        scene.write(part, block as u8).unwrap();
        let (bytes, result) = scene.read(block * BLOCK..(block + 1) * BLOCK, 4096);
        result.unwrap();
        assert!(bytes == scene.model[(block * BLOCK) as usize..][..4096], "block {block}");
    }
    // All of a block needs nothing of what was there.
    scene.flip(40, 0);
    scene.write(40 * BLOCK..41 * BLOCK, 9).unwrap();
    scene.read(40 * BLOCK..41 * BLOCK, 4096).1.unwrap();
}

// rule: TAG-14 — of a volume that is not always verified, damage is served.
#[test]
fn only_a_volume_that_says_so_is_verified() {
    let mut scene = Scene::new(IoAlignment { memory: 1, offset: 1 });
    scene.flip(5, 5);
    let block = 5 * BLOCK..6 * BLOCK;
    for (verify, is_refused) in
        [(Verify::Always, true), (Verify::Copy, false), (Verify::Off, false), (Verify::Always, true)]
    {
        scene.container.set_verify("ci", verify).unwrap();
        let (bytes, result) = scene.read(block.clone(), 4096);
        assert_eq!((result.is_err(), bytes[5] == NOTHING), (is_refused, is_refused), "{verify:?}");
    }
}

// rules: TAG-14, TAG-19 — more at once than bounce buffers are made for; while tags are awaited, their parts count.
#[test]
fn long_reads_take_turns() {
    let mut scene = Scene::new(IoAlignment { memory: 1, offset: 1 });
    // Table pages are loaded first: then all of them wait for tags at once.
    scene.place_of(0);
    for (cut, places) in [(0, 4096), (512, 4096 + 1)] {
        let range = cut..LEN - cut;
        let len = range.end - range.start;
        let at = |n: u64| places + n * LEN;
        let reads = (0..8).map(|n| {
            fill(&scene.mem, at(n), len);
            Work::Read { range: range.clone(), buffer: scene.buffer(at(n), len) }
        });
        let reads: Vec<Work> = reads.collect();
        assert!(scene.run_all(reads).iter().all(Result::is_ok));
        for n in 0..8 {
            let mut bytes = vec![0; len as usize];
            scene.mem.read_slice(&mut bytes, GuestAddress(at(n))).unwrap();
            assert!(bytes == scene.model[range.start as usize..range.end as usize], "read {n}");
        }
    }
    assert_eq!(scene.most_waiting, 8 * 2, "two slabs each");
    // Blocks and pages do not wait.
    let (most, pages) = (scene.most_bounced, 8 * BLOCK as usize);
    assert!((MAX_BOUNCED_LEN / 2..=MAX_BOUNCED_LEN + pages).contains(&most), "{most} bytes at once");
}

// req: R13; rule: TAG-18 — a page of tags that cannot be read is no reason to refuse data, or not to write beside it.
#[test]
fn tags_that_cannot_be_read_cost_no_data() {
    every_alignment(|scene| {
        scene.flip(63, 5);
        scene.fails = true;
        let (bytes, result) = scene.read(62 * BLOCK..64 * BLOCK, 4096);
        result.unwrap();
        scene.model[63 * BLOCK as usize + 5] ^= 8;
        assert!(bytes == scene.model[62 * BLOCK as usize..64 * BLOCK as usize] && !scene.fails);
        // Written in part, what was taken from the damaged block is the volume's own from now on.
        scene.fails = true;
        scene.write(63 * BLOCK + 1024..63 * BLOCK + 2048, 7).unwrap();
        assert!(!scene.fails);
        let (bytes, result) = scene.read(63 * BLOCK..64 * BLOCK, 4096);
        result.unwrap();
        assert!(bytes == scene.model[63 * BLOCK as usize..64 * BLOCK as usize]);
        // What can be read again is verified.
        scene.flip(10, 5);
        scene.read(10 * BLOCK..11 * BLOCK, 4096).1.unwrap_err();
    });
}

// rules: TAG-12, JNL-6 — data that a merge has taken elsewhere behind the plan is looked for anew, not read unverified.
#[test]
fn a_read_whose_data_has_moved_is_planned_again() {
    let mut scene = Scene::new(IoAlignment { memory: 1, offset: 1 });
    // Block 0 is in golden's layer, block 1 in the one above it, which takes the other when golden is gone.
    scene.write(BLOCK..2 * BLOCK, 0x42).unwrap();
    scene.container.snapshot("ci", "copy").unwrap();
    let ci = scene.volume.id();
    while !matches!(scene.container.seal_step(ci, 1 << 30).unwrap(), SealStep::Ended(_)) {}
    let before = scene.place_of(0);
    let plan = |scene: &Scene| {
        let mut plan = ReadPlan::default();
        assert!(matches!(scene.volume.plan_read(0..BLOCK, &mut plan), Ok(Planned::Ready(()))));
        plan
    };
    let (stale, signal) = (plan(&scene), Signal::new().unwrap());
    scene.container.delete_volume("golden").unwrap();
    scene.container.settle(1000).unwrap();
    assert_ne!(scene.place_of(0), before);
    let buffer = scene.buffer(4096, BLOCK);
    let mut task = Task::new(0, GuestAddress(0), 0, Work::Read { range: 0..BLOCK, buffer });
    let mut context = Context {
        container: &scene.container,
        volume: &scene.volume,
        durability: Durability::OnFlush,
        transfers: &mut scene.transfers,
        waker: &signal.waker(),
        spare_plan: &mut None,
    };
    assert!(task.begin_read(stale, &mut context), "what is no longer there is read");
    let (bytes, result) = scene.read(0..BLOCK, 4096);
    result.unwrap();
    assert!(bytes == scene.model[..BLOCK as usize]);
    scene.flip(0, 0);
    scene.read(0..BLOCK, 4096).1.unwrap_err();
}
