//! Disks that fail: the n-th read, write, durable write, sync or growth of random work, once or from then on.
//!
//! The caller gets an error of the right kind and nothing else breaks; a failed sync, journal or home write fails the
//! container until it is opened again (JNL-14); after that, and after a crash at that point, the promises hold.
//!
//! req: R28. Rules: JNL-8, JNL-14, VOL-7, VOL-8, VOL-13, MAP-10, MAP-11, CHK-0.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use common::compare::Comparer;
use common::promises::{Change, Model, Volume, When};
use common::{Rng, SECTOR, stamp, stamped};
use pitstop_format::check::check;
use pitstop_format::testing::{Crash, Fate, Fault, Injection, SimDisk};
use pitstop_format::{Container, CreateOptions, Error, NewCopy, OpenMode, Planned, VolumeIo};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const MIB: u64 = 1 << 20;
const OPERATIONS: u64 = 40;
const SEEDS: u64 = 16;
/// Places of a fault that are tried for each kind and seed.
const PLACES: u64 = 8;
const KINDS: [Fault; 5] = [Fault::Read, Fault::Write, Fault::Durable, Fault::Sync, Fault::Grow];

struct Run {
    rng: Rng,
    disk: Arc<SimDisk>,
    crash: Crash,
    container: Container,
    injection: Option<Injection>,
    model: Model,
    /// A command that failed with the container: it may have happened or not.
    change: Option<Change>,
    comparer: Comparer,
    writes: u64,
    lives: u64,
    names: u64,
    time: u64,
    context: String,
}

/// A container with some content, closed and opened again, so that its pages are not in memory.
fn prepared(seed: u64) -> Run {
    let disk = SimDisk::new();
    let options = CreateOptions { journal_len_bytes: 256 << 10, ..CreateOptions::default() };
    Container::create(disk.clone(), &options).unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    let mut run = Run {
        rng: Rng::new(seed + 1),
        crash: disk.record(),
        disk: disk.clone(),
        container,
        injection: None,
        model: Model::new(),
        change: None,
        comparer: Comparer::default(),
        writes: 0,
        lives: 0,
        names: 0,
        time: 0,
        context: format!("seed {seed}"),
    };
    run.create(64 * MIB);
    run.create(MIB);
    run.create(40 * MIB + 512);
    for _ in 0..15 {
        run.operation();
    }
    run.container.clone().close().unwrap();
    run.model.values_mut().for_each(|volume| Arc::make_mut(volume).flush(u64::MAX));
    run.container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    run.crash = disk.record();
    run
}

impl Run {
    fn io(&self, name: &str) -> VolumeIo {
        VolumeIo::new(&self.container, self.container.volume(name).unwrap())
    }

    fn volume(&mut self, name: &str) -> &mut Volume {
        Arc::make_mut(self.model.get_mut(name).unwrap())
    }

    fn has_failed(&self) -> bool {
        self.container.failure().is_some()
    }

    /// The error must be one that the injected fault explains.
    #[track_caller]
    fn tolerate(&self, error: &Error) {
        let fault = self.injection.map(|injection| injection.fault);
        assert!(self.disk.failures() > 0, "{}: nothing was injected, yet: {error}", self.context);
        let right = if self.has_failed() {
            matches!(fault, Some(Fault::Write | Fault::Durable | Fault::Sync)) && matches!(error, Error::Failed { .. })
        } else {
            match fault {
                Some(Fault::Read | Fault::Write) => matches!(error, Error::Io { .. }),
                Some(Fault::Grow) => matches!(error, Error::NoSpace { .. }),
                _ => false,
            }
        };
        assert!(right, "{}: a wrong error for {fault:?}: {error:?}", self.context);
    }

    fn life(&mut self) -> u64 {
        self.lives += 1;
        self.lives
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("v{}", self.names)
    }

    fn command(&mut self, change: Change, operation: impl FnOnce(&Container) -> Result<(), Error>) {
        let failed_before = self.has_failed();
        match operation(&self.container) {
            Ok(()) => {
                assert!(!failed_before, "{}: a command succeeds on a failed container", self.context);
                change.apply(&mut self.model);
            }
            Err(error) => {
                self.tolerate(&error);
                if self.has_failed() && !failed_before {
                    self.change = Some(change);
                }
            }
        }
    }

    fn create(&mut self, size: u64) {
        let (name, life) = (self.name(), self.life());
        let change = Change::Put(vec![(name.clone(), Arc::new(Volume::new(size, life)))]);
        self.command(change, |container| container.create_volume(&name, size).map(drop));
    }

    fn copy(&mut self, sources: &[&str], target: Option<&str>) {
        let (mut put, mut copies) = (Vec::new(), Vec::new());
        for source in sources {
            let life = self.life();
            let mut copy = self.model[*source].copy(life);
            copy.flush(u64::MAX);
            let name = target.map_or_else(|| self.name(), str::to_owned);
            copies.push(NewCopy { source: (*source).to_owned(), name: name.clone() });
            put.push((name, Arc::new(copy)));
        }
        self.command(Change::Put(put), |container| match target {
            None => container.snapshot_group(&copies).map(drop),
            Some(target) => container.refresh(target, sources[0]).map(drop),
        });
    }

    fn write(&mut self, name: &str) {
        let sectors = self.model[name].size / SECTOR;
        let start = self.rng.below(sectors);
        let (start, len) = match self.rng.below(4) {
            0 => (start / 8 * 8, 8 * (1 + self.rng.below(3))),
            1 => (start, 1 + self.rng.below(600)),
            _ => (start, 1 + self.rng.below(20)),
        };
        let range = start..(start + len).min(sectors);
        self.writes += 1;
        let number = self.writes;
        let value = move |sector| stamp(number, sector);
        let outcome = self.io(name).write_at(&stamped(range.clone(), number), range.start * SECTOR);
        self.ended(name, range, value, outcome);
    }

    fn zero(&mut self, name: &str) {
        let sectors = self.model[name].size / SECTOR;
        let start = self.rng.below(sectors);
        let range = start..(start + 1 + self.rng.below(1200)).min(sectors);
        let bytes = range.start * SECTOR..range.end * SECTOR;
        let outcome = self.io(name).write_zeroes(bytes);
        self.ended(name, range, |_| 0, outcome);
    }

    /// A write has returned.
    fn ended(
        &mut self,
        name: &str,
        range: std::ops::Range<u64>,
        value: impl Fn(u64) -> u64,
        outcome: Result<(), Error>,
    ) {
        self.time += 1;
        let time = self.time;
        let volume = self.volume(name);
        volume.begin(range.clone(), &value);
        match outcome {
            Ok(()) => volume.complete(range, &value, time),
            Err(error) => {
                volume.give_up(range, &value);
                self.tolerate(&error);
            }
        }
    }

    fn flush(&mut self, name: &str) {
        let time = self.time;
        let failed_before = self.has_failed();
        match self.io(name).flush() {
            Ok(()) => {
                assert!(!failed_before, "{}: a flush succeeds on a failed container", self.context);
                self.volume(name).flush(time);
            }
            Err(error) => self.tolerate(&error),
        }
    }

    fn read(&mut self, name: &str) {
        let volume = self.model[name].clone();
        let mut bytes = vec![0; 4 * SECTOR as usize];
        let start = self.rng.below(volume.size / SECTOR - 4);
        match self.io(name).read_at(&mut bytes, start * SECTOR) {
            Ok(()) => {
                for (sector, bytes) in (start..).zip(bytes.chunks_exact(SECTOR as usize)) {
                    let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                    assert!(volume.may_show(sector, value, When::Live), "{}: {name} shows {value:#x}", self.context);
                }
            }
            Err(error) => self.tolerate(&error),
        }
    }

    fn operation(&mut self) {
        // A command that failed with the container may have taken its volume away in memory.
        let container = self.container.clone();
        let names: Vec<String> = self.model.keys().filter(|name| container.volume(name).is_ok()).cloned().collect();
        let changing: Vec<&String> = match &self.change {
            Some(Change::Put(volumes)) => volumes.iter().map(|(name, _)| name).collect(),
            Some(Change::Remove(name) | Change::Rename(name, _)) => vec![name],
            None => Vec::new(),
        };
        let untouched: Vec<String> = names.into_iter().filter(|name| !changing.contains(&name)).collect();
        let name = untouched[self.rng.below(untouched.len() as u64) as usize].clone();
        let other = untouched[self.rng.below(untouched.len() as u64) as usize].clone();
        match self.rng.below(100) {
            0..35 => self.write(&name),
            35..43 => {
                // Many chunks: slabs run out where the file cannot grow.
                for _ in 0..12 {
                    self.write(&name);
                }
            }
            43..50 => self.zero(&name),
            50..60 => self.flush(&name),
            60..67 => self.read(&name),
            67..70 if untouched.len() < 5 && name != other => self.copy(&[&name, &other], None),
            67..73 if untouched.len() < 6 => self.copy(&[&name], None),
            67..80 if name != other => self.copy(&[&name], Some(&other)),
            80..84 if untouched.len() > 3 => {
                let change = Change::Remove(name.clone());
                self.command(change, |container| container.delete_volume(&name));
            }
            84..87 => {
                let new_name = self.name();
                let change = Change::Rename(name.clone(), new_name.clone());
                self.command(change, |container| container.rename_volume(&name, &new_name));
            }
            87..90 => match self.container.hydrate(&name) {
                Ok(_) | Err(Error::Hydrating { .. }) => {}
                Err(error) => self.tolerate(&error),
            },
            90..94 => {
                for hydration in container.hydrations() {
                    if let Err(error) = container.hydrate_step(hydration.layer, 2 * MIB) {
                        self.tolerate(&error);
                    }
                }
            }
            _ => {
                let failed_before = self.has_failed();
                match self.container.settle(4) {
                    Ok(()) => assert!(!failed_before, "{}: work on a failed container", self.context),
                    Err(error) => self.tolerate(&error),
                }
            }
        }
    }

    /// What may be there now.
    fn models(&self) -> Vec<Model> {
        let mut models = vec![self.model.clone()];
        if let Some(change) = &self.change {
            let mut after = self.model.clone();
            change.apply(&mut after);
            models.push(after);
        }
        models
    }

    #[track_caller]
    fn expect(&mut self, container: &Container, when: When) -> Model {
        let mut whys = Vec::new();
        for model in self.models() {
            match self.comparer.container(container, &model, when) {
                Ok(()) => return model,
                Err(why) => whys.push(why),
            }
        }
        panic!("{}, {when:?}: {whys:#?}", self.context);
    }

    /// The container lives, or has failed for good; then it is opened again, and after a crash.
    fn end(mut self) {
        self.disk.inject(None);
        let container = self.container.clone();
        self.expect(&container, When::Live);
        if self.has_failed() {
            let names: Vec<String> = container.volumes().into_iter().map(|volume| volume.name).collect();
            for name in names {
                assert!(matches!(self.io(&name).flush(), Err(Error::Failed { .. })), "{}", self.context);
                let write = self.io(&name).write_at(&[1; 512], 0);
                assert!(matches!(write, Err(Error::Failed { .. })), "{}", self.context);
            }
            assert!(matches!(container.commit(), Err(Error::Failed { .. })), "{}", self.context);
            assert!(matches!(container.create_volume("new", MIB), Err(Error::Failed { .. })), "{}", self.context);
            assert!(matches!(container.maintain(), Err(Error::Failed { .. })), "{}", self.context);
        }
        drop(container);
        for event in self.disk.take_events() {
            self.crash.step(&event);
        }
        for percent in [0, 100, 50, 50] {
            let rng = &mut self.rng;
            let left = self.crash.disk(|_| if rng.chance(percent) { Fate::Kept } else { Fate::Lost });
            self.opens_again(left);
        }
        let disk = self.disk.copy();
        self.opens_again(disk);
    }

    fn opens_again(&mut self, disk: Arc<SimDisk>) {
        self.clean(&disk);
        let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
        let model = self.expect(&container, When::AfterCrash);
        // It works again.
        for name in model.keys() {
            let io = VolumeIo::new(&container, container.volume(name).unwrap());
            io.write_at(&stamped(0..1, 1 << 30), 0).unwrap();
            io.flush().unwrap();
        }
        container.settle(1000).unwrap();
        container.close().unwrap();
        self.clean(&disk);
    }

    #[track_caller]
    fn clean(&self, disk: &SimDisk) {
        let report = check(disk).unwrap();
        let bad = report.findings.iter().find(|finding| finding.id != "CHK-1");
        assert!(bad.is_none(), "{}: {report:#?}", self.context);
    }
}

fn work(seed: u64, injection: Option<Injection>) -> Run {
    let mut run = prepared(seed);
    run.injection = injection;
    run.context = format!("seed {seed}, {injection:?}");
    run.disk.inject(injection);
    for _ in 0..OPERATIONS {
        run.operation();
        let gone_by = injection.is_none_or(|injection| injection.once) && run.disk.failures() > 0;
        if gone_by && !run.has_failed() {
            // One request has failed, or none that anybody waits for: everything else goes on.
            run.injection = None;
        }
    }
    run
}

// rules: JNL-14, VOL-7, VOL-13
#[test]
fn a_fault_fails_what_needs_the_disk_and_harms_nothing_else() {
    let (mut cases, mut failed, mut errors) = (0, 0, std::collections::BTreeMap::new());
    for seed in 0..SEEDS {
        let before = prepared(seed);
        let first = KINDS.map(|kind| before.disk.requests(kind));
        let whole = work(seed, None);
        assert!(!whole.has_failed());
        let counts: Vec<u64> = KINDS.iter().zip(first).map(|(kind, n)| whole.disk.requests(*kind) - n).collect();
        whole.end();
        for (fault, count) in KINDS.into_iter().zip(counts) {
            let places = count.min(PLACES);
            for place in 0..places {
                // All places if there are few; otherwise some, spread over the run.
                let after = if count <= PLACES { place } else { (place * count + seed % count) / places };
                let errnos: &[i32] = if matches!(fault, Fault::Read | Fault::Sync) { &[EIO] } else { &[EIO, ENOSPC] };
                for (&errno, once) in errnos.iter().flat_map(|errno| [(errno, true), (errno, false)]) {
                    let injection = Injection { fault, after, once, errno };
                    let run = work(seed, Some(injection));
                    if run.disk.failures() == 0 {
                        continue;
                    }
                    cases += 1;
                    *errors.entry(format!("{fault:?}")).or_insert(0) += 1;
                    failed += u64::from(run.has_failed());
                    let must_fail = matches!(fault, Fault::Sync | Fault::Durable);
                    let may_fail = must_fail || fault == Fault::Write;
                    assert!(!must_fail || run.has_failed(), "{}: the container goes on", run.context);
                    assert!(may_fail || !run.has_failed(), "{}: the container has failed", run.context);
                    run.end();
                }
            }
        }
    }
    println!("{cases} faults injected: {errors:?}; {failed} of them failed the container");
    assert!(cases >= 500, "only {cases} faults: the sweep does not reach the work");
    assert_eq!(errors.len(), KINDS.len(), "{errors:?}");
}

/// Wakes a counter.
struct Count(AtomicU64);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn small() -> (Arc<SimDisk>, Container) {
    let disk = SimDisk::new();
    Container::create(disk.clone(), &CreateOptions { journal_len_bytes: MIB, ..CreateOptions::default() }).unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    (disk, container)
}

fn io(container: &Container, name: &str) -> VolumeIo {
    VolumeIo::new(container, container.volume(name).unwrap())
}

fn sector(container: &Container, name: &str, number: u64) -> Result<u64, Error> {
    let mut bytes = [0; SECTOR as usize];
    io(container, name).read_at(&mut bytes, number * SECTOR)?;
    Ok(u64::from_le_bytes(bytes[..8].try_into().unwrap()))
}

// rules: MAP-10, MAP-11, VOL-7 — a failed first write lets its blocks go, shows nothing of the slab that it got, and whoever
// waited for the blocks goes on.
#[test]
fn a_failed_first_write_releases_its_blocks_and_shows_nothing() {
    let (disk, container) = small();
    container.create_volume("old", MIB).unwrap();
    container.create_volume("v", MIB).unwrap();
    io(&container, "old").write_at(&stamped(0..512, 1), 0).unwrap();
    container.delete_volume("old").unwrap();
    container.settle(1000).unwrap();
    let volume = container.volume("v").unwrap();
    let Planned::Ready(first) = volume.plan_write(0..8192, Waker::noop()).unwrap() else { panic!("busy") };
    let count = Arc::new(Count(0.into()));
    let waker = Waker::from(count.clone());
    assert!(matches!(volume.plan_write(4096..4608, &waker).unwrap(), Planned::Busy));
    disk.inject(Some(Injection { fault: Fault::Write, after: 0, once: true, errno: EIO }));
    let place = first.segments()[0].disk_offset;
    pitstop_format::Disk::write_at(&*disk, &stamped(0..16, 2), place).unwrap_err();
    drop(first);
    assert_eq!(count.0.load(Ordering::Relaxed), 1, "nobody told the write that waited");
    assert!((0..16).all(|number| sector(&container, "v", number).unwrap() == 0));
    io(&container, "v").write_at(&stamped(8..9, 3), 4096).unwrap();
    // The rest of the block is zeros, not what a deleted volume or the failed write left in the slab.
    assert_eq!(sector(&container, "v", 8).unwrap(), stamp(3, 8));
    assert!((9..16).all(|number| sector(&container, "v", number).unwrap() == 0));
    io(&container, "v").flush().unwrap();
}

// rules: MAP-5, MAP-15 — a table page that cannot be read fails the request that needs it, and the next one tries again.
#[test]
fn a_table_page_that_cannot_be_read_fails_one_request() {
    let (disk, container) = small();
    for name in ["a", "b"] {
        container.create_volume(name, MIB).unwrap();
        io(&container, name).write_at(&stamped(0..8, 1), 0).unwrap();
    }
    container.close().unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    disk.inject(Some(Injection { fault: Fault::Read, after: 0, once: true, errno: EIO }));
    assert!(matches!(io(&container, "a").write_at(&stamped(0..1, 2), 0), Err(Error::Io { .. })));
    assert_eq!(disk.failures(), 1);
    assert_eq!(sector(&container, "b", 0).unwrap(), stamp(1, 0));
    assert_eq!(sector(&container, "a", 0).unwrap(), stamp(1, 0));
    io(&container, "a").write_at(&stamped(0..1, 3), 0).unwrap();
    io(&container, "a").flush().unwrap();
    assert!(container.failure().is_none());
}

// rule: JNL-8 — without any flush, changes are committed when they are many.
#[test]
fn many_changes_are_committed_without_a_flush() {
    let (disk, container) = small();
    container.create_volume("v", 8 << 30).unwrap();
    let limit = MIB / 32;
    let volume = container.volume("v").unwrap();
    disk.record();
    let (mut planned, mut most, mut commits) = (0, 0, 0);
    for chunk in 0..4000 {
        let start = chunk * (256 << 10);
        loop {
            match volume.plan_write(start..start + 4096, Waker::noop()).unwrap() {
                Planned::Ready(ticket) => break ticket.complete(),
                Planned::NeedPage(_) => panic!("all pages are new"),
                Planned::Busy => {
                    container.maintain().unwrap();
                }
            }
        }
        // An entry and a descriptor: what a batch must hold of it.
        planned += 88;
        most = most.max(planned);
        let durable = disk.take_events();
        let journal = |event: &&pitstop_format::testing::Event| matches!(event, pitstop_format::testing::Event::Write { offset, .. } if (3 << 18..(3 << 18) + MIB).contains(offset));
        if durable.iter().filter(journal).count() > 0 {
            (planned, commits) = (0, commits + 1);
        }
    }
    assert!(commits >= 4, "{commits} commits");
    // Twice the limit stops planning; new pages and tables come on top.
    assert!(most <= 2 * limit + 4096, "{most} bytes of changes were not durable");
}

// rule: JNL-8 — and when they are old.
#[test]
fn old_changes_are_committed_without_a_flush() {
    let (disk, container) = small();
    container.create_volume("v", MIB).unwrap();
    container.settle(1000).unwrap();
    io(&container, "v").write_at(&stamped(0..8, 1), 0).unwrap();
    let since = Instant::now();
    loop {
        container.maintain().unwrap();
        let crashed = Container::open(disk.copy(), OpenMode::ReadWrite).unwrap();
        if sector(&crashed, "v", 0).unwrap() == stamp(1, 0) {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "never committed");
        std::thread::sleep(Duration::from_millis(100));
    }
}
