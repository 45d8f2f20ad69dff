//! What a crash could leave, judged: the check is clean, the container opens, every sector shows what the promises allow.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use pitstop_format::check::{CheckReport, check};
use pitstop_format::testing::{Crash, CrashDisk, Event, Fate, SimDisk};
use pitstop_format::{Container, OpenMode};

use crate::common::Rng;
use crate::common::compare::Comparer;
use crate::common::promises::{Model, When};

/// How the unsynced sectors are divided into kept and lost ones.
#[derive(Debug, Clone, Copy)]
enum Style {
    None,
    All,
    /// Each sector by itself, kept with this chance in percent.
    Each(u64),
    /// Each write as a whole.
    Writes,
    DropOne,
    KeepOne,
    /// Everything before the newest write is kept (or lost); of the newest, the sectors to one side of a cut.
    Torn(Fate),
    /// This subset, as bits.
    Exactly(u64),
}

const STYLES: [Style; 13] = [
    Style::None,
    Style::All,
    Style::Each(50),
    Style::Torn(Fate::Kept),
    Style::DropOne,
    Style::KeepOne,
    Style::Writes,
    Style::Each(50),
    Style::Torn(Fate::Lost),
    Style::Torn(Fate::Kept),
    Style::Each(90),
    Style::Each(10),
    Style::DropOne,
];
/// With so few unsynced sectors, every subset is tried.
const EXHAUSTIVE: usize = 3;

/// Walks the record of a disk and judges what crashes could leave.
pub struct Crashes {
    crash: Crash,
    rng: Rng,
    /// For what the work goes on with, which shall not hang on how many crashes are judged.
    choices: Rng,
    /// Of 1000 places in the record, so many are tried.
    density: u64,
    comparer: Comparer,
    /// Disks judged since the promises last changed.
    now: HashSet<u64>,
    /// All disks ever judged.
    seen: HashSet<u64>,
    pub counts: Counts,
}

/// What was done, for the test's report.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Disks that differ in at least a byte from every other one.
    pub distinct: u64,
    /// Judgements: disk and promises differ from every other one.
    pub judged: u64,
    /// Judgements of disks that a crash inside recovery left.
    pub in_recovery: u64,
    /// Places in the record at which crashes were tried.
    pub places: u64,
    /// Bytes with tags that were verified.
    pub verified: u64,
}

impl Counts {
    pub fn add(&mut self, other: Counts) {
        self.distinct += other.distinct;
        self.judged += other.judged;
        self.in_recovery += other.in_recovery;
        self.places += other.places;
        self.verified += other.verified;
    }
}

/// Whether the event changes what a crash could leave.
fn matters(event: &Event) -> bool {
    match event {
        Event::Write { .. } | Event::Durable(_) | Event::SyncEnded(_) | Event::Grow(_) => true,
        Event::Completed(_) | Event::SyncBegun(_) | Event::Mark(_) => false,
    }
}

fn divide(crash: &Crash, rng: &mut Rng, style: Style) -> CrashDisk {
    let sectors = crash.pending();
    let fate = |kept: bool| if kept { Fate::Kept } else { Fate::Lost };
    let growth = fate(!crash.may_shrink() || rng.chance(50));
    let one = rng.below(sectors.max(1) as u64) as usize;
    let last = crash.last_write();
    let cut = sectors - last + rng.below(last.max(1) as u64) as usize;
    let front = rng.chance(50);
    let mut fates = Vec::new();
    if let Style::Writes = style {
        for sectors in crash.writes() {
            let fate = fate(rng.chance(50));
            fates.extend(std::iter::repeat_n(fate, sectors));
        }
    }
    crash.leave(growth, |number| match style {
        Style::None => Fate::Lost,
        Style::All => Fate::Kept,
        Style::Each(percent) => fate(rng.chance(percent)),
        Style::Writes => fates[number],
        Style::DropOne => fate(number != one),
        Style::KeepOne => fate(number == one),
        Style::Torn(older) if number < sectors - last => older,
        Style::Torn(_) => fate((number < cut) == front),
        Style::Exactly(bits) => fate(bits >> number & 1 == 1),
    })
}

impl Crashes {
    pub fn new(crash: Crash, seed: u64, density: u64) -> Self {
        Self {
            crash,
            rng: Rng::new(seed ^ 0x5EED_0000),
            choices: Rng::new(seed ^ 0xC401_CE00),
            density,
            comparer: Comparer::default(),
            now: HashSet::new(),
            seen: HashSet::new(),
            counts: Counts::default(),
        }
    }

    /// The workload goes on with another disk.
    pub fn restart(&mut self, crash: Crash) {
        self.crash = crash;
        self.now.clear();
    }

    /// The promises are no longer what they were when crashes were last judged.
    pub fn promises_changed(&mut self) {
        self.now.clear();
    }

    /// Goes on by one event and judges crashes behind it.
    pub fn step(&mut self, event: &Event, models: &[Model]) -> Result<(), String> {
        self.crash.step(event);
        if matters(event) { self.examine(models) } else { Ok(()) }
    }

    /// Judges crashes at this place of the record, if it is one of those that are tried.
    pub fn examine(&mut self, models: &[Model]) -> Result<(), String> {
        if self.rng.below(1000) >= self.density {
            return Ok(());
        }
        self.counts.places += 1;
        let sectors = self.crash.pending();
        if sectors <= EXHAUSTIVE {
            (0..1 << sectors).try_for_each(|bits| self.examine_one(Style::Exactly(bits), models))
        } else {
            STYLES.into_iter().try_for_each(|style| self.examine_one(style, models))
        }
    }

    fn examine_one(&mut self, style: Style, models: &[Model]) -> Result<(), String> {
        let left = divide(&self.crash, &mut self.rng, style);
        if !self.now.insert(left.identity) {
            return Ok(());
        }
        self.counts.distinct += u64::from(self.seen.insert(left.identity));
        self.counts.judged += 1;
        if self.rng.chance(1) {
            self.examine_recovery(&left.disk, models)?;
        }
        self.judge(left.disk, models).map_err(|why| format!("{style:?}: {why}"))
    }

    /// Crashes inside the recovery from a crash.
    fn examine_recovery(&mut self, left: &SimDisk, models: &[Model]) -> Result<(), String> {
        let disk = left.copy();
        let mut crash = disk.record();
        Container::open(disk.clone(), OpenMode::ReadWrite).map_err(|error| format!("open: {error}"))?;
        let mut found = HashSet::new();
        for event in disk.take_events() {
            crash.step(&event);
            for style in [Style::Each(50), Style::Torn(Fate::Kept)] {
                let left = divide(&crash, &mut self.rng, style);
                if found.insert(left.identity) {
                    let new = u64::from(self.seen.insert(left.identity));
                    self.counts.distinct += new;
                    self.counts.in_recovery += new;
                    self.counts.judged += 1;
                    self.judge(left.disk, models).map_err(|why| format!("in recovery, {style:?}: {why}"))?;
                }
            }
        }
        Ok(())
    }

    /// The disk after a crash at this place, for the workload to go on with.
    pub fn choose(&mut self) -> Arc<SimDisk> {
        let style = STYLES[self.choices.below(STYLES.len() as u64) as usize];
        divide(&self.crash, &mut self.choices, style).disk
    }

    fn judge(&mut self, disk: Arc<SimDisk>, models: &[Model]) -> Result<(), String> {
        structure(&disk).map_err(|why| format!("check: {why}"))?;
        let container = Container::open(disk.clone(), OpenMode::ReadWrite).map_err(|error| format!("open: {error}"))?;
        let mut whys = Vec::new();
        for model in models {
            match self.comparer.container(&container, model, When::AfterCrash) {
                Ok(()) => {
                    whys.clear();
                    break;
                }
                Err(why) => whys.push(why),
            }
        }
        if !whys.is_empty() {
            return Err(format!("contents: {whys:#?}"));
        }
        if self.rng.chance(20) {
            self.counts.verified += verified(&container)?;
        }
        // Recovery has written homes: they must be whole, too.
        if self.rng.chance(5) {
            drop(container);
            structure(&disk).map_err(|why| format!("check behind recovery: {why}"))?;
        }
        Ok(())
    }
}

/// Bytes that have tags; every one of them must fit (TAG-3, TAG-4, TAG-9).
pub fn verified(container: &Container) -> Result<u64, String> {
    let mut report = CheckReport::default();
    container.check_data(&mut report, &AtomicBool::new(false)).map_err(|error| format!("tags: {error}"))?;
    if report.findings.is_empty() {
        Ok(report.data_bytes_verified)
    } else {
        Err(format!("tags: {:#?}", report.findings))
    }
}

/// The independent check. A superblock copy that was being written may be torn (CHK-1, a note); nothing else.
pub fn structure(disk: &SimDisk) -> Result<(), String> {
    let report = check(disk).map_err(|error| error.to_string())?;
    match report.findings.iter().find(|finding| finding.id != "CHK-1") {
        None => Ok(()),
        Some(_) => Err(format!("{:#?}", report.findings)),
    }
}
