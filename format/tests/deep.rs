//! Deep chains of copies under random work of one thread, compared with a model: rules MAP-1, MAP-17, LAY-8, SNP-6.
//!
//! What is remembered below heads must be right after every merge, deletion, refresh, eviction and reuse of a slab, and
//! of chunks whose places among what is remembered are the same.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;

use common::{Rng, SECTOR, stamp, stamped};
use pitstop_format::testing::SimDisk;
use pitstop_format::{
    BLOCK_LEN, Container, CreateOptions, Disk, OpenMode, Planned, ReadPlan, ReadSegment, SLAB_LEN, VolumeIo,
    WriteTicket,
};

/// Chunks in which all work is done: neighbours, another page, another table; the last two share the places of the first
/// two among what is remembered.
const AREAS: [Range<u64>; 3] = [0..2, 128..129, 262_144..262_146];
const IN_CHUNK: u64 = SLAB_LEN / SECTOR;
const BLOCK: u64 = BLOCK_LEN / SECTOR;
/// Sizes of volumes in sectors: with parts of a chunk, and of a block, at their ends.
const SIZES: [u64; 4] = [262_146 * IN_CHUNK, 262_145 * IN_CHUNK + 101, 128 * IN_CHUNK + 77, IN_CHUNK + 52];
const VOLUMES_MAX: usize = 20;
/// Pages that one plan may ask for before something is wrong: many more than there are layers and tables.
const LOADS_MAX: usize = 2000;

#[derive(Debug, Clone)]
struct Shown {
    sectors: u64,
    /// Values by sector; absent: zeros.
    values: BTreeMap<u64, u64>,
}

impl Shown {
    fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        let value = |sector| self.values.get(&sector).copied().unwrap_or(0);
        range.flat_map(|sector| value(sector).to_le_bytes().repeat(SECTOR as usize / 8)).collect()
    }

    fn write(&mut self, range: Range<u64>, write: u64) {
        self.values.extend(range.map(|sector| (sector, stamp(write, sector))));
    }

    fn zero(&mut self, range: Range<u64>) {
        self.values.retain(|sector, _| !range.contains(sector));
    }
}

/// A read that was planned and not yet carried out.
struct Held {
    plan: ReadPlan,
    expected: Vec<u8>,
    until: u64,
}

/// A write to a volume that its guest has lost: nobody ever sees it, but it keeps a doomed head and what is below.
struct Lost {
    _ticket: WriteTicket,
    until: u64,
}

struct Run {
    disk: Arc<SimDisk>,
    container: Container,
    rng: Rng,
    model: BTreeMap<String, Shown>,
    held: Vec<Held>,
    lost: Vec<Lost>,
    count: u64,
    now: u64,
    deepest: usize,
}

fn bytes_of(sectors: &Range<u64>) -> Range<u64> {
    sectors.start * SECTOR..sectors.end * SECTOR
}

impl Run {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new();
        let options = CreateOptions { journal_len_bytes: 1 << 20, ..CreateOptions::default() };
        Container::create(disk.clone(), &options).unwrap();
        let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
        Self {
            disk,
            container,
            rng: Rng::new(seed),
            model: BTreeMap::new(),
            held: Vec::new(),
            lost: Vec::new(),
            count: 0,
            now: 0,
            deepest: 0,
        }
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// Any volume; more often than not one of the newest copies.
    fn any(&mut self) -> String {
        let among = if self.rng.chance(60) { 3.min(self.model.len()) } else { self.model.len() };
        let n = self.rng.below(among as u64) as usize;
        self.model.keys().rev().nth(n).unwrap().clone()
    }

    fn range(&mut self, sectors: u64) -> Range<u64> {
        loop {
            let n = self.rng.below(AREAS.len() as u64) as usize;
            let area = AREAS[n].start * IN_CHUNK..(AREAS[n].end * IN_CHUNK).min(sectors);
            if area.is_empty() {
                continue;
            }
            let start = area.start + self.rng.below(area.end - area.start);
            let most = [1, 12, 100, 1024][self.rng.below(4) as usize];
            let end = (start + 1 + self.rng.below(most)).min(area.end);
            return start..end;
        }
    }

    fn plan(&mut self, name: &str, sectors: &Range<u64>) -> ReadPlan {
        let volume = self.container.volume(name).unwrap();
        let mut plan = ReadPlan::default();
        for _ in 0..LOADS_MAX {
            match volume.plan_read(bytes_of(sectors), &mut plan).unwrap() {
                Planned::Ready(()) => return plan,
                Planned::NeedPage(load) => self.container.load_page(load).unwrap(),
                Planned::Busy => unreachable!("reads never wait"),
            }
        }
        panic!("{name}: pages are asked for for ever");
    }

    fn carry_out(&self, plan: &ReadPlan) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in plan.segments() {
            match *segment {
                ReadSegment::Zero { len } => bytes.resize(bytes.len() + len as usize, 0),
                ReadSegment::Data { disk_offset, len } => {
                    let at = bytes.len();
                    bytes.resize(at + len as usize, 0);
                    self.disk.read_at(&mut bytes[at..], disk_offset).unwrap();
                }
            }
        }
        bytes
    }

    fn same(&self, found: &[u8], expected: &[u8], what: &str) {
        assert_eq!(found.len(), expected.len());
        let differs = (0..found.len()).step_by(SECTOR as usize).find(|&at| found[at..at + 8] != expected[at..at + 8]);
        assert!(found == expected, "step {}: {what} differs from byte {differs:?} on", self.now);
    }

    fn read(&mut self, name: &str) {
        let sectors = self.range(self.model[name].sectors);
        let plan = self.plan(name, &sectors);
        self.same(&self.carry_out(&plan), &self.model[name].bytes(sectors.clone()), &format!("{name} {sectors:?}"));
    }

    fn write(&mut self, name: &str, whole: bool) {
        let mut sectors = self.range(self.model[name].sectors);
        if whole {
            sectors = sectors.start / BLOCK * BLOCK..(sectors.end / BLOCK * BLOCK).max(sectors.start / BLOCK * BLOCK);
        }
        if sectors.is_empty() {
            return;
        }
        let write = self.next();
        self.io(name).write_at(&stamped(sectors.clone(), write), sectors.start * SECTOR).unwrap();
        self.model.get_mut(name).unwrap().write(sectors, write);
    }

    fn io(&self, name: &str) -> VolumeIo {
        VolumeIo::new(&self.container, self.container.volume(name).unwrap())
    }

    fn new_name(&mut self) -> String {
        format!("{:08}", self.next())
    }

    fn copy(&mut self, source: &str) {
        let name = self.new_name();
        self.container.snapshot(source, &name).unwrap();
        let shown = self.model[source].clone();
        self.model.insert(name, shown);
    }

    /// A copy while a write of before is under way: it shows in both as soon as it completes, not before.
    fn copy_under_a_write(&mut self, source: &str) {
        let sectors = self.range(self.model[source].sectors);
        let sectors = sectors.start / BLOCK * BLOCK..sectors.end / BLOCK * BLOCK;
        if sectors.is_empty() {
            return self.copy(source);
        }
        let Planned::Ready(late) =
            self.container.volume(source).unwrap().plan_write(bytes_of(&sectors), Waker::noop()).unwrap()
        else {
            return self.copy(source);
        };
        let name = self.new_name();
        let copy = self.container.begin_snapshot(source, &name).unwrap();
        let mut below = self.model[source].clone();
        let before = self.count;
        for _ in 0..self.rng.below(6) {
            match self.rng.below(3) {
                0 => self.write(source, true),
                1 => self.container.settle(2).unwrap(),
                _ => self.read(source),
            }
        }
        let write = self.next();
        let data = stamped(sectors.clone(), write);
        for segment in late.segments() {
            let from = segment.buffer_offset as usize;
            self.disk.write_at(&data[from..from + segment.len as usize], segment.disk_offset).unwrap();
        }
        late.complete();
        below.write(sectors.clone(), write);
        // What the source has written since lies above it.
        let shown = self.model.get_mut(source).unwrap();
        for sector in sectors {
            let value = shown.values.get(&sector).copied().unwrap_or(0);
            if value >> 32 <= before {
                shown.values.insert(sector, stamp(write, sector));
            }
        }
        self.read(source);
        copy.finish().unwrap();
        self.model.insert(name, below);
    }

    /// Plans a read whose bytes nobody may change any more, to be carried out much later.
    fn hold(&mut self, name: &str) {
        let sectors = self.range(self.model[name].sectors);
        let plan = self.plan(name, &sectors);
        let expected = self.model[name].bytes(sectors);
        self.copy(name);
        let until = self.now + 1 + self.rng.below(60);
        self.held.push(Held { plan, expected, until });
    }

    /// Deletes a volume, any of them, so that layers in the middle of chains are merged; perhaps under a write.
    fn delete(&mut self) {
        let n = self.rng.below(self.model.len() as u64) as usize;
        let name = self.model.keys().nth(n).unwrap().clone();
        let sectors = self.range(self.model[&name].sectors);
        let volume = self.container.volume(&name).unwrap();
        if self.rng.chance(30)
            && let Planned::Ready(ticket) = volume.plan_write(bytes_of(&sectors), Waker::noop()).unwrap()
        {
            self.lost.push(Lost { _ticket: ticket, until: self.now + 1 + self.rng.below(40) });
        }
        self.container.delete_volume(&name).unwrap();
        self.model.remove(&name);
    }

    fn step(&mut self) {
        self.now += 1;
        if self.model.is_empty() {
            let (name, size) = (self.new_name(), SIZES[self.rng.below(4) as usize]);
            self.container.create_volume(&name, size * SECTOR).unwrap();
            self.model.insert(name, Shown { sectors: size, values: BTreeMap::new() });
        }
        let name = self.any();
        let full = self.model.len() >= VOLUMES_MAX;
        match self.rng.below(100) {
            0..20 => self.write(&name, false),
            20..25 => {
                let sectors = self.range(self.model[&name].sectors);
                self.io(&name).write_zeroes(bytes_of(&sectors)).unwrap();
                self.model.get_mut(&name).unwrap().zero(sectors);
            }
            25..28 => {
                let sectors = self.range(self.model[&name].sectors);
                self.io(&name).discard(bytes_of(&sectors)).unwrap();
                let (first, end) = (sectors.start.next_multiple_of(BLOCK), sectors.end / BLOCK * BLOCK);
                self.model.get_mut(&name).unwrap().zero(first..end.max(first));
            }
            28..40 if !full => self.copy(&name),
            40..43 if !full => self.copy_under_a_write(&name),
            43..47 if !full => self.hold(&name),
            28..33 | 65..69 => {
                let target = self.any();
                if target != name {
                    self.container.refresh(&target, &name).unwrap();
                    self.model.insert(target, self.model[&name].clone());
                }
            }
            33..47 if full => self.delete(),
            47..59 => {
                let steps = 1 + self.rng.below(8) as usize;
                self.container.settle(steps).unwrap();
            }
            59..61 => self.container.commit().unwrap(),
            61..62 => self.container.settle(1000).unwrap(),
            62..64 => {
                let pages = [0, 3, 10, 1000][self.rng.below(4) as usize];
                self.container.limit_resident_pages(pages);
            }
            64 if self.rng.chance(10) => {
                self.held.clear();
                self.lost.clear();
                self.container.clone().close().unwrap();
                self.container = Container::open(self.disk.clone(), OpenMode::ReadWrite).unwrap();
            }
            _ => (0..3).for_each(|_| self.read(&name)),
        }
        self.lost.retain(|lost| lost.until > self.now);
        let due: Vec<Held> = self.held.extract_if(.., |held| held.until <= self.now).collect();
        for held in due {
            self.same(&self.carry_out(&held.plan), &held.expected, "a read planned before");
        }
    }
}

// rules: MAP-1, MAP-17, LAY-8, SNP-6, JNL-6
#[test]
fn deep_chains_show_what_was_written_through_them() {
    let seeds: u64 = std::env::var("PITSTOP_DEEP_SEEDS").map_or(2, |seeds| seeds.parse().unwrap());
    for seed in 1..=seeds {
        let mut run = Run::new(seed);
        for _ in 0..3000 {
            run.step();
            run.deepest = run.deepest.max(run.container.layers().len());
        }
        println!("seed {seed}: {} layers at most", run.deepest);
        run.held.clear();
        run.lost.clear();
        for name in run.model.keys().cloned().collect::<Vec<_>>() {
            (0..20).for_each(|_| run.read(&name));
        }
        drop(run.container.close());
        let findings = pitstop_format::check::check(&*run.disk).unwrap().findings;
        assert!(findings.is_empty(), "seed {seed}: {findings:#?}");
    }
}
