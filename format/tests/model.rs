//! Random operations on several hierarchies against a plain model, with a crash at every write of the container.
//!
//! req: R1, R2, R3, R4, R5, R6, R7, R28. Rules: JNL-3 to JNL-10, MAP-7 to MAP-11, SNP-1 to SNP-4, LAY-5, LAY-8.
//!
//! `PITSTOP_MODEL_SEEDS=first..end` chooses other seeds, for soaks.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::task::Waker;

use common::{Model, Rng, SECTOR, Volume, compare, stamped};
use pitstop_format::testing::{Crash, Event, Fate, SimDisk};
use pitstop_format::{Container, CreateOptions, EdgeSource, Error, OpenMode, Planned, VolumeIo, WriteTicket, ZeroKind};

const OPERATIONS: u64 = 70;
const SIZES: [u64; 4] = [1 << 20, (1 << 20) + 512, 768 << 10, (256 << 10) - 4096];

/// A write under way: planned, some of its data not yet written.
struct InFlight {
    volume: String,
    ticket: WriteTicket,
    sectors: std::ops::Range<u64>,
    stamp: u64,
}

struct Run {
    rng: Rng,
    disk: Arc<SimDisk>,
    crash: Crash,
    container: Option<Container>,
    model: Model,
    /// What a crash in the middle of the present operation may leave instead of `model`.
    during: Vec<Model>,
    in_flight: Vec<InFlight>,
    stamps: u64,
    names: u64,
    states: u64,
    /// The operations so far, for the report of a failure.
    log: Vec<String>,
}

fn stamp_of(write: u64) -> impl Fn(u64) -> u64 {
    move |sector| write << 20 | sector << 1 | 1
}

impl Run {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new();
        let options = CreateOptions { journal_len_bytes: 256 << 10, ..CreateOptions::default() };
        Container::create(disk.clone(), &options).unwrap();
        let crash = disk.record();
        let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
        let mut run = Self {
            rng: Rng::new(seed + 1),
            disk,
            crash,
            container: Some(container),
            model: Model::new(),
            during: Vec::new(),
            in_flight: Vec::new(),
            stamps: 0,
            names: 0,
            states: 0,
            log: Vec::new(),
        };
        run.create();
        run.create();
        run
    }

    fn container(&self) -> &Container {
        self.container.as_ref().unwrap()
    }

    fn io(&self, name: &str) -> VolumeIo {
        VolumeIo::new(self.container(), self.container().volume(name).unwrap())
    }

    fn pick(&mut self) -> Option<String> {
        let count = self.model.len() as u64;
        (count > 0).then(|| self.model.keys().nth(self.rng.below(count) as usize).unwrap().clone())
    }

    fn fresh_name(&mut self) -> String {
        self.names += 1;
        format!("v{}", self.names)
    }

    fn range(&mut self, size: u64) -> std::ops::Range<u64> {
        let sectors = size / SECTOR;
        let start = self.rng.below(sectors);
        let longest = if self.rng.chance(20) { 700 } else { 24 };
        let (start, len) = if self.rng.chance(40) {
            (start / 8 * 8, (1 + self.rng.below(4)) * 8)
        } else {
            (start, 1 + self.rng.below(longest))
        };
        start..(start + len).min(sectors)
    }

    fn create(&mut self) {
        let name = self.fresh_name();
        let size = SIZES[self.rng.below(4) as usize];
        let mut after = self.model.clone();
        after.insert(name.clone(), Volume::new(size));
        self.control(after, |container| container.create_volume(&name, size).map(drop));
    }

    /// Runs a control operation that leads from the model to `after`.
    fn control(&mut self, after: Model, operation: impl FnOnce(&Container) -> Result<(), Error>) {
        self.during = vec![after.clone()];
        operation(self.container()).unwrap();
        self.examine();
        self.model = after;
        self.during.clear();
    }

    fn write(&mut self, name: &str) {
        let size = self.model[name].size;
        let sectors = self.range(size);
        // Which of two writes of one sector wins while both are under way is nobody's promise.
        while let Some(index) = self.overlapping(name, &sectors) {
            self.land(index);
        }
        self.stamps += 1;
        let stamp = stamp_of(self.stamps);
        let volume = self.container().volume(name).unwrap();
        let bytes = sectors.start * SECTOR..sectors.end * SECTOR;
        let ticket = loop {
            match volume.plan_write(bytes.clone(), Waker::noop()).unwrap() {
                Planned::Ready(ticket) => break ticket,
                Planned::NeedPage(load) => self.container().load_page(load).unwrap(),
                Planned::Busy if self.in_flight.is_empty() => {
                    self.container().maintain().unwrap();
                }
                Planned::Busy => {
                    // Something under way may be in the way.
                    self.land(0);
                    self.container().maintain().unwrap();
                }
            }
        };
        self.model.get_mut(name).unwrap().begin(sectors.clone(), &stamp);
        self.log.push(format!("write {} of {name} at {sectors:?}", self.stamps));
        self.in_flight.push(InFlight { volume: name.to_owned(), ticket, sectors, stamp: self.stamps });
        if self.rng.chance(70) || self.in_flight.len() > 4 {
            self.land(self.in_flight.len() - 1);
        }
    }

    fn overlapping(&self, name: &str, sectors: &std::ops::Range<u64>) -> Option<usize> {
        self.in_flight.iter().position(|other| {
            other.volume == name && other.sectors.start < sectors.end && sectors.start < other.sectors.end
        })
    }

    /// Writes the data of a write under way and completes it.
    fn land(&mut self, index: usize) {
        let write = self.in_flight.swap_remove(index);
        let stamp = stamp_of(write.stamp);
        let bytes = stamped(write.sectors.clone(), &stamp);
        let disk = self.disk.clone();
        use pitstop_format::Disk as _;
        for edge in write.ticket.edges() {
            let mut block = vec![0; 4096];
            if let EdgeSource::Disk { offset } = edge.source {
                disk.read_at(&mut block, offset).unwrap();
            }
            let from = edge.buffer_offset as usize;
            block[edge.offset_in_block..][..edge.len].copy_from_slice(&bytes[from..from + edge.len]);
            disk.write_at(&block, edge.disk_offset).unwrap();
        }
        for segment in write.ticket.segments() {
            let from = segment.buffer_offset as usize;
            disk.write_at(&bytes[from..from + segment.len as usize], segment.disk_offset).unwrap();
        }
        let given_up = self.rng.chance(5);
        self.log.push(format!("landed {} given up {given_up}", write.stamp));
        if given_up {
            drop(write.ticket);
        } else {
            write.ticket.complete();
        }
        self.examine();
        match self.model.get_mut(&write.volume) {
            Some(volume) if given_up => volume.abandon(write.sectors, stamp),
            Some(volume) => volume.complete(write.sectors, stamp),
            None => {}
        }
    }

    fn land_all(&mut self) {
        while !self.in_flight.is_empty() {
            self.land(0);
        }
    }

    fn zero(&mut self, name: &str) {
        let size = self.model[name].size;
        let sectors = if self.rng.chance(10) { 0..size / SECTOR } else { self.range(size) };
        let bytes = sectors.start * SECTOR..sectors.end * SECTOR;
        // Only whole blocks are discarded; writes of zeros cover every sector.
        let kind = if self.rng.chance(50) { ZeroKind::Discard } else { ZeroKind::WriteZeroes };
        let changed = match kind {
            ZeroKind::WriteZeroes => sectors,
            ZeroKind::Discard => {
                let (first, last) = (sectors.start.next_multiple_of(8), sectors.end / 8 * 8);
                first..last.max(first)
            }
        };
        self.log.push(format!("{kind:?} of {name} at {changed:?}"));
        self.land_all();
        self.model.get_mut(name).unwrap().begin(changed.clone(), |_| 0);
        let io = self.io(name);
        match kind {
            ZeroKind::Discard => io.discard(bytes).unwrap(),
            ZeroKind::WriteZeroes => io.write_zeroes(bytes).unwrap(),
        }
        self.examine();
        self.model.get_mut(name).unwrap().complete(changed, |_| 0);
    }

    fn flush(&mut self, name: &str) {
        self.io(name).flush().unwrap();
        self.examine();
        self.model.get_mut(name).unwrap().flushed();
    }

    /// Snapshot or refresh; writes of before the instant may end in the middle.
    fn copy(&mut self, source: &str, target: Option<&str>) {
        let at_instant = self.model[source].copy();
        let name = target.map_or_else(|| self.fresh_name(), str::to_owned);
        let pending = match target {
            None => self.container().begin_snapshot(source, &name).unwrap(),
            Some(target) => self.container().begin_refresh(target, source).unwrap(),
        };
        self.during = vec![self.with(&name, &at_instant)];
        self.examine();
        // Writes of after the instant go to the new head while those of before end.
        if self.rng.chance(50) {
            let source = source.to_owned();
            self.write_behind(&source);
        }
        let before: Vec<usize> = (0..self.in_flight.len()).collect();
        for _ in before {
            self.during = vec![self.with(&name, &at_instant)];
            self.land(0);
        }
        assert!(pending.is_sealed());
        self.during = vec![self.with(&name, &at_instant)];
        pending.finish().unwrap();
        self.examine();
        // What the source had completed at the instant is durable with its copy.
        self.model = self.with(&name, &at_instant);
        self.during.clear();
    }

    /// A write planned between the instant and the seal: never part of the copy.
    fn write_behind(&mut self, name: &str) {
        let size = self.model[name].size;
        let start = self.rng.below(size / 4096) * 8;
        let sectors = start..start + 8;
        if self.overlapping(name, &sectors).is_some() {
            return;
        }
        self.stamps += 1;
        let stamp = stamp_of(self.stamps);
        let volume = self.container().volume(name).unwrap();
        let bytes = sectors.start * SECTOR..sectors.end * SECTOR;
        let planned = volume.plan_write(bytes, Waker::noop()).unwrap();
        if let Planned::Ready(ticket) = planned {
            self.model.get_mut(name).unwrap().begin(sectors.clone(), &stamp);
            self.in_flight.push(InFlight { volume: name.to_owned(), ticket, sectors, stamp: self.stamps });
        }
    }

    fn with(&self, name: &str, volume: &Volume) -> Model {
        let mut model = self.model.clone();
        model.insert(name.to_owned(), volume.clone());
        model
    }

    fn reopen(&mut self) {
        self.land_all();
        let container = self.container.take().unwrap();
        if self.rng.chance(50) {
            container.close().unwrap();
        } else {
            container.commit().unwrap();
            drop(container);
        }
        self.examine();
        self.model.values_mut().for_each(Volume::flushed);
        self.container = Some(Container::open(self.disk.clone(), OpenMode::ReadWrite).unwrap());
        self.examine();
    }

    fn step(&mut self) {
        let Some(name) = self.pick() else {
            return self.create();
        };
        let choice = self.rng.below(100);
        self.log.push(format!("{choice} {name}"));
        match choice {
            0..40 => self.write(&name),
            40..50 => self.zero(&name),
            50..62 => self.flush(&name),
            62..70 => self.copy(&name, None),
            70..78 => {
                let target = self.pick().unwrap();
                if target != name {
                    // Writes under way to the target would land in what it gives up.
                    self.land_all();
                    self.copy(&name, Some(&target));
                }
            }
            78..83 if self.model.len() > 2 => {
                self.land_all();
                let mut after = self.model.clone();
                after.remove(&name);
                self.control(after, |container| container.delete_volume(&name));
            }
            83..93 => {
                let steps = 1 + self.rng.below(30) as usize;
                self.container().settle(steps).unwrap();
                self.examine();
            }
            93..95 => {
                let new_name = self.fresh_name();
                self.land_all();
                let mut after = self.model.clone();
                let volume = after.remove(&name).unwrap();
                after.insert(new_name.clone(), volume);
                self.control(after, |container| container.rename_volume(&name, &new_name));
            }
            95..97 => self.reopen(),
            97..99 if self.model.len() < 8 => self.create(),
            _ => {
                self.container().commit().unwrap();
                self.examine();
                self.model.values_mut().for_each(Volume::flushed);
            }
        }
        compare(self.container(), &self.model, false).unwrap_or_else(|why| panic!("live: {why}"));
    }

    /// Walks what the disk has recorded and opens what a crash at each event could have left.
    fn examine(&mut self) {
        for event in self.disk.take_events() {
            self.crash.step(&event);
            if matches!(event, Event::Mark(_)) {
                continue;
            }
            for _ in 0..1 + self.rng.below(2) {
                self.examine_crash();
            }
        }
    }

    fn examine_crash(&mut self) {
        let keep = [0, 100, 50, 90, 10][self.rng.below(5) as usize];
        let rng = &mut self.rng;
        let disk = self.crash.disk(|_| if rng.chance(keep) { Fate::Kept } else { Fate::Lost });
        self.states += 1;
        // A second crash, in the middle of the recovery of the first.
        let disk = if self.rng.chance(10) {
            let mut crash = disk.record();
            drop(Container::open(disk.clone(), OpenMode::ReadWrite).unwrap());
            let events = disk.take_events();
            let stop = self.rng.below(events.len() as u64 + 1) as usize;
            events[..stop].iter().for_each(|event| crash.step(event));
            let rng = &mut self.rng;
            crash.disk(|_| if rng.chance(50) { Fate::Kept } else { Fate::Lost })
        } else {
            disk
        };
        if self.rng.chance(25) {
            let report = pitstop_format::check::check(&*disk).unwrap();
            assert!(report.findings.is_empty(), "after a crash: {:#?} {:#?}", report.findings, self.log);
        }
        let container = Container::open(disk, OpenMode::ReadWrite).unwrap_or_else(|error| panic!("open: {error}"));
        let whys: Vec<String> = std::iter::once(&self.model)
            .chain(&self.during)
            .map(|model| compare(&container, model, true))
            .take_while(Result::is_err)
            .map(Result::unwrap_err)
            .collect();
        assert!(whys.len() <= self.during.len(), "after a crash: {whys:#?} {:#?}", self.log);
    }
}

fn run(seed: u64) -> u64 {
    let mut run = Run::new(seed);
    for _ in 0..OPERATIONS {
        run.step();
    }
    run.land_all();
    run.container().settle(10_000).unwrap();
    run.examine();
    compare(run.container(), &run.model, false).unwrap();
    run.states
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("PITSTOP_MODEL_SEEDS") {
        Ok(text) => {
            let (first, end) = text.split_once("..").expect("PITSTOP_MODEL_SEEDS=first..end");
            first.parse().unwrap()..end.parse().unwrap()
        }
        Err(_) => 0..24,
    }
}

#[test]
fn volumes_and_copies_survive_a_crash_at_every_write() {
    let mut states = 0;
    for seed in seeds() {
        let outcome = std::panic::catch_unwind(|| run(seed));
        match outcome {
            Ok(found) => states += found,
            Err(cause) => {
                eprintln!("seed {seed} failed; repeat with PITSTOP_MODEL_SEEDS={seed}..{}", seed + 1);
                std::panic::resume_unwind(cause);
            }
        }
    }
    println!("{states} crash states checked");
    assert!(states > 1000, "only {states} crash states: the record is not walked");
}
