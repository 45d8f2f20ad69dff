//! The container under test, the model, and everything under way, in steps.
//!
//! Requests and flushes of several queues are carried out a step at a time: planned, a disk write issued, a disk write
//! completed, published. Steps interleave at random, also in the middle of the syncs and writes of commands, commits and
//! checkpoints (the disk's hook). Every event of the disk is examined under the promises of that very moment.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;

use pitstop_format::testing::{Event, SimDisk};
use pitstop_format::{
    Container, Disk as _, Durability, Error, FlushStep, Planned, ReadPlan, ReadSegment, VolumeInfo, ZeroKind,
};

use crate::common::compare::Comparer;
use crate::common::promises::{Change, Model, Volume, When};
use crate::common::{Rng, SECTOR};
use crate::crashes::{Crashes, verified};
use crate::request::{DiskWrite, Flushing, Kind, Reading, Request, Stage, State, Ticket};

const REQUESTS: usize = 6;
const FLUSHES: usize = 4;
const READS: usize = 4;

/// What the workload came across, so that a test that no longer reaches something fails.
#[derive(Debug, Clone, Copy, Default)]
pub struct Coverage {
    pub writes: u64,
    pub large_writes: u64,
    pub zeroes: u64,
    pub reads: u64,
    pub flushes: u64,
    pub flushes_at_once: u64,
    pub waits: u64,
    pub given_up: u64,
    pub orphans: u64,
    pub copies: u64,
    pub groups: u64,
    pub views: u64,
    pub views_dropped: u64,
    pub views_kept: u64,
    pub writes_through_views: u64,
    pub writes_beside_views: u64,
    pub deletes: u64,
    pub steps_inside_commands: u64,
    pub writes_during_sync: u64,
    pub merges: u64,
    pub hidden_freed: u64,
    pub hidden_unlinked: u64,
    pub reclaims: u64,
    pub growths: u64,
    pub ring_turns: u64,
    pub pages_loaded: u64,
    pub backups: u64,
    pub backups_ended: u64,
    pub backups_in_vain: u64,
    pub original_images: u64,
    pub hydrations: u64,
    pub hydrations_done: u64,
    pub hydrations_cancelled: u64,
    pub hydrations_ended_by_commands: u64,
    pub steps_that_copied: u64,
    pub steps_that_adopted: u64,
    pub copies_again: u64,
    pub restores: u64,
    pub rotations: u64,
    pub groups_of_one: u64,
    pub paces: u64,
    pub maps: u64,
    pub differences: u64,
    pub checks: u64,
    pub splits: u64,
    pub steps_that_waited: u64,
    pub flushes_that_promise_nothing: u64,
    pub changes_of_durability: u64,
    pub became_undefined: u64,
    pub undefined_refused: u64,
    pub undefined_refreshed: u64,
    pub steps_that_sealed: u64,
    pub seals_done: u64,
    pub seals_given_up: u64,
    pub verified: u64,
    pub reopened: u64,
    pub crashes_gone_on_from: u64,
    pub crashes_in_recovery_gone_on_from: u64,
}

impl Coverage {
    pub fn fields(&mut self) -> Vec<(&'static str, &mut u64)> {
        vec![
            ("writes", &mut self.writes),
            ("large writes", &mut self.large_writes),
            ("discards and writes of zeros", &mut self.zeroes),
            ("reads that took their time", &mut self.reads),
            ("flushes", &mut self.flushes),
            ("flushes under way at once", &mut self.flushes_at_once),
            ("requests that waited", &mut self.waits),
            ("writes given up", &mut self.given_up),
            ("requests that outlived their volume", &mut self.orphans),
            ("snapshots and refreshes", &mut self.copies),
            ("groups of copies", &mut self.groups),
            ("views", &mut self.views),
            ("views dropped", &mut self.views_dropped),
            ("views kept", &mut self.views_kept),
            ("writes through views", &mut self.writes_through_views),
            ("writes to what has a view", &mut self.writes_beside_views),
            ("deletions", &mut self.deletes),
            ("steps in the middle of others' I/O", &mut self.steps_inside_commands),
            ("writes completed during a sync", &mut self.writes_during_sync),
            ("merges", &mut self.merges),
            ("steps that freed what heads hide", &mut self.hidden_freed),
            ("layers of which nothing showed", &mut self.hidden_unlinked),
            ("reclaims", &mut self.reclaims),
            ("growths", &mut self.growths),
            ("turns of the ring", &mut self.ring_turns),
            ("table pages loaded", &mut self.pages_loaded),
            ("backups begun", &mut self.backups),
            ("backups ended", &mut self.backups_ended),
            ("backups whose volume was refreshed or deleted", &mut self.backups_in_vain),
            ("original images", &mut self.original_images),
            ("hydrations begun", &mut self.hydrations),
            ("hydrations done", &mut self.hydrations_done),
            ("hydrations given up", &mut self.hydrations_cancelled),
            ("hydrations ended by other commands", &mut self.hydrations_ended_by_commands),
            ("steps of hydrations that copied", &mut self.steps_that_copied),
            ("steps of hydrations that adopted", &mut self.steps_that_adopted),
            ("copies between volumes of a relation", &mut self.copies_again),
            ("copies back from an own copy", &mut self.restores),
            ("rotations of a history that deleted", &mut self.rotations),
            ("groups with a source twice", &mut self.groups_of_one),
            ("hydrations paused, resumed or given a speed", &mut self.paces),
            ("maps listed", &mut self.maps),
            ("differences listed", &mut self.differences),
            ("checks beside others", &mut self.checks),
            ("splits", &mut self.splits),
            ("steps of hydrations that waited", &mut self.steps_that_waited),
            ("flushes that promise nothing", &mut self.flushes_that_promise_nothing),
            ("changes of durability", &mut self.changes_of_durability),
            ("volumes that became undefined", &mut self.became_undefined),
            ("copies of undefined volumes refused", &mut self.undefined_refused),
            ("undefined volumes refreshed", &mut self.undefined_refreshed),
            ("steps that sealed", &mut self.steps_that_sealed),
            ("sealings done", &mut self.seals_done),
            ("sealings given up", &mut self.seals_given_up),
            ("bytes verified beside others", &mut self.verified),
            ("reopenings", &mut self.reopened),
            ("crashes gone on from", &mut self.crashes_gone_on_from),
            ("crashes in recovery gone on from", &mut self.crashes_in_recovery_gone_on_from),
        ]
    }

    pub fn add(&mut self, mut other: Coverage) {
        for ((_, sum), (_, more)) in self.fields().into_iter().zip(other.fields()) {
            *sum += *more;
        }
    }
}

/// A write-through view: what is written through `view` is written to both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    pub source: u64,
    pub view: u64,
}

pub struct World {
    pub rng: Rng,
    pub disk: Arc<SimDisk>,
    pub container: Container,
    pub model: Model,
    /// What the command under way will have changed when it returns; a crash may leave it done or not.
    pub change: Option<Change>,
    /// Copies whose instant has come and that are not there yet.
    pub coming: Vec<Arc<Volume>>,
    /// The lives of the two volumes of each view.
    pub views: Vec<Pair>,
    /// The life of the volume that the command under way is about: nothing new begins on it.
    pub target: Option<u64>,
    pub requests: Vec<Request>,
    pub flushes: Vec<Flushing>,
    pub readings: Vec<Reading>,
    pub crashes: Crashes,
    pub coverage: Coverage,
    pub journal_len: u64,
    /// Table pages that may stay in memory.
    resident: usize,
    /// Copies that rotations have made, the oldest first; some may be gone.
    pub history: Vec<String>,
    pub log: Vec<String>,
    pub comparer: Comparer,
    writes: u64,
    names: u64,
    lives: u64,
    pub time: u64,
    syncs: u64,
    journal_bytes: u64,
}

impl World {
    /// Goes on with another container, or the same one opened again.
    pub fn use_container(&mut self, container: Container) {
        container.limit_resident_pages(self.resident);
        self.container = container;
    }

    pub fn new(seed: u64, disk: Arc<SimDisk>, container: Container, crashes: Crashes, journal_len: u64) -> Self {
        // Every other run lets go of its pages as soon as it can.
        let resident = if seed % 2 == 1 { 0 } else { usize::MAX };
        container.limit_resident_pages(resident);
        Self {
            rng: Rng::new(seed + 1),
            disk,
            container,
            model: Model::new(),
            change: None,
            coming: Vec::new(),
            views: Vec::new(),
            target: None,
            requests: Vec::new(),
            flushes: Vec::new(),
            readings: Vec::new(),
            crashes,
            coverage: Coverage::default(),
            journal_len,
            resident,
            history: Vec::new(),
            log: Vec::new(),
            comparer: Comparer::default(),
            writes: 0,
            names: 0,
            lives: 0,
            time: 0,
            syncs: 0,
            journal_bytes: 0,
        }
    }

    pub fn fresh_name(&mut self) -> String {
        self.names += 1;
        format!("v{}", self.names)
    }

    /// The name that was given last.
    pub fn newest_name(&self) -> String {
        format!("v{}", self.names)
    }

    pub fn fresh_life(&mut self) -> u64 {
        self.lives += 1;
        self.lives
    }

    pub fn pick(&mut self) -> Option<String> {
        let count = self.model.len() as u64;
        (count > 0).then(|| self.model.keys().nth(self.rng.below(count) as usize).unwrap().clone())
    }

    /// A volume to work on: most often one of a view, as long as there is one.
    fn pick_of_view(&mut self) -> Option<String> {
        let count = self.views.len() as u64;
        if count == 0 || self.rng.chance(30) {
            return None;
        }
        let pair = self.views[self.rng.below(count) as usize];
        let life = if self.rng.chance(50) { pair.source } else { pair.view };
        // A view that is about to be made has no name yet.
        self.model.iter().find(|(_, volume)| volume.life == life).map(|(name, _)| name.clone())
    }

    pub fn pick_busy(&mut self) -> Option<String> {
        self.pick_of_view().or_else(|| self.pick())
    }

    pub fn note(&mut self, text: String) {
        self.log.push(text);
    }

    pub fn fail(&self, why: &str) -> ! {
        let from = self.log.len().saturating_sub(60);
        panic!("{why}\nlast operations: {:#?}", &self.log[from..]);
    }

    // --- views ---

    /// The life of the volume that a write through this life is written to as well.
    fn beside(&self, life: u64) -> Option<u64> {
        self.views.iter().find(|pair| pair.view == life).map(|pair| pair.source)
    }

    /// Whether a volume is part of a view.
    pub fn is_in_view(&self, name: &str) -> bool {
        let life = self.model[name].life;
        self.views.iter().any(|pair| pair.source == life || pair.view == life)
    }

    /// The views that a crash has left.
    pub fn find_views(&mut self, container: &Container) {
        let volumes = container.volumes();
        let pair = |volume: &VolumeInfo| {
            let source = volume.view_of.as_ref()?;
            Some(Pair { source: self.model[source].life, view: self.model[&volume.name].life })
        };
        self.views = volumes.iter().filter_map(pair).collect();
    }

    /// The name of a life.
    pub fn name_of(&self, life: u64) -> String {
        self.model.iter().find(|(_, volume)| volume.life == life).unwrap().0.clone()
    }

    // --- promises ---

    /// The volume of this life, in the model and in what is coming.
    fn volumes_of(&mut self, life: u64) -> impl Iterator<Item = &mut Volume> {
        self.crashes.promises_changed();
        let changing = match &mut self.change {
            Some(Change::Put(volumes)) => volumes.as_mut_slice(),
            _ => &mut [],
        };
        let changing = changing.iter_mut().map(|(_, volume)| volume);
        let all = self.model.values_mut().chain(&mut self.coming).chain(changing);
        all.filter(move |volume| volume.life == life).map(Arc::make_mut)
    }

    fn begin(&mut self, life: u64, kind: Kind, ranges: &[Range<u64>]) {
        for reading in self.readings.iter_mut().filter(|reading| reading.life == life) {
            for range in ranges {
                let both = range.start.max(reading.sectors.start)..range.end.min(reading.sectors.end);
                reading.since.extend(both.map(|sector| kind.value(sector)));
            }
        }
        for volume in self.volumes_of(life) {
            ranges.iter().for_each(|range| volume.begin(range.clone(), |sector| kind.value(sector)));
        }
    }

    fn complete(&mut self, life: u64, kind: Kind, ranges: &[Range<u64>]) {
        self.time += 1;
        let time = self.time;
        for volume in self.volumes_of(life) {
            ranges.iter().for_each(|range| volume.complete(range.clone(), |sector| kind.value(sector), time));
        }
    }

    fn give_up(&mut self, life: u64, kind: Kind, ranges: &[Range<u64>]) {
        for volume in self.volumes_of(life) {
            ranges.iter().for_each(|range| volume.give_up(range.clone(), |sector| kind.value(sector)));
        }
    }

    /// A flush of one volume that began at `time` has returned.
    pub fn flushed(&mut self, life: u64, time: u64) {
        self.volumes_of(life).for_each(|volume| volume.flush(time));
    }

    /// A commit of everything that began at `time` has returned.
    pub fn all_flushed(&mut self, time: u64) {
        self.crashes.promises_changed();
        self.model.values_mut().for_each(|volume| Arc::make_mut(volume).flush(time));
    }

    /// The container was opened without having been closed: what disposable volumes flushed counts for nothing (VOL-44).
    pub fn lose_durability(&mut self) {
        self.crashes.promises_changed();
        let lost = |volume: &&mut Arc<Volume>| volume.durability == Durability::None && !volume.undefined;
        for volume in self.model.values_mut().filter(lost) {
            self.coverage.became_undefined += 1;
            Arc::make_mut(volume).undefined = true;
        }
    }

    // --- crashes ---

    /// What a crash now may leave.
    fn models(&self) -> Vec<Model> {
        let mut models = vec![self.model.clone()];
        if let Some(change) = &self.change {
            let mut after = self.model.clone();
            change.apply(&mut after);
            models.push(after);
        }
        models
    }

    /// Judges crashes at every event that the disk has recorded.
    pub fn examine(&mut self) {
        let events = self.disk.take_events();
        if events.is_empty() {
            return;
        }
        let models = self.models();
        for event in events {
            self.count(&event);
            if let Err(why) = self.crashes.step(&event, &models) {
                self.fail(&format!("a crash loses what was promised: {why}"));
            }
        }
    }

    /// As [`World::examine`], but for the first events only; the others are forgotten.
    pub fn examine_part(&mut self) {
        let mut events = self.disk.take_events();
        events.truncate(self.rng.below(events.len() as u64 + 1) as usize);
        let models = self.models();
        for event in events {
            if let Err(why) = self.crashes.step(&event, &models) {
                self.fail(&format!("a crash in recovery loses what was promised: {why}"));
            }
        }
    }

    /// Judges crashes now: there is a new promise.
    pub fn promised(&mut self) {
        self.examine();
        let models = self.models();
        if let Err(why) = self.crashes.examine(&models) {
            self.fail(&format!("what was just promised is not so: {why}"));
        }
    }

    fn count(&mut self, event: &Event) {
        match event {
            Event::Write { offset, bytes, .. } => {
                let journal = 3 * (256 << 10);
                if (journal..journal + self.journal_len).contains(offset) {
                    self.journal_bytes += bytes.len() as u64;
                    self.coverage.ring_turns += self.journal_bytes / self.journal_len;
                    self.journal_bytes %= self.journal_len;
                }
            }
            Event::Completed(_) if self.syncs > 0 => self.coverage.writes_during_sync += 1,
            Event::SyncBegun(_) => self.syncs += 1,
            Event::SyncEnded(_) => self.syncs -= 1,
            Event::Grow(_) => self.coverage.growths += 1,
            Event::Completed(_) | Event::Durable(_) | Event::Mark(_) => {}
        }
    }

    /// Compares everything with what the running engine shows.
    pub fn compare(&mut self) {
        let (container, model) = (self.container.clone(), self.model.clone());
        if let Err(why) = self.comparer.container(&container, &model, When::Live) {
            self.fail(&format!("live: {why}"));
        }
        match verified(&container) {
            Ok(bytes) => self.coverage.verified += bytes,
            Err(why) => self.fail(&format!("live: {why}")),
        }
    }

    // --- requests ---

    /// Places that are written again and again: both ends, and where pages and tables of entries meet.
    fn range(&mut self, size: u64) -> Range<u64> {
        let sectors = size / SECTOR;
        let places = [0, sectors, (32 << 20) / SECTOR, (2 << 30) / SECTOR];
        let place = places[self.rng.below(4) as usize];
        let place = if place > sectors { 0 } else { place };
        let window = 1536;
        let low = place.saturating_sub(window / 2).min(sectors.saturating_sub(window));
        let start = (low + self.rng.below(window)).min(sectors - 1);
        let (start, len) = match self.rng.below(100) {
            0..40 => (start / 8 * 8, (1 + self.rng.below(4)) * 8),
            40..85 => (start, 1 + self.rng.below(24)),
            85..93 => (start, 1 + self.rng.below(700)),
            93..97 => (low, 2048),
            _ => (low.next_multiple_of(512), 512 * (1 + self.rng.below(2))),
        };
        let start = start.min(sectors - 1);
        start..(start + len).min(sectors)
    }

    /// Begins a request on a volume, unless it would meet one under way in a sector: who wins there is nobody's promise.
    pub fn begin_request(&mut self, name: &str, zero: Option<ZeroKind>) {
        let volume = self.model[name].clone();
        let sectors = match zero {
            Some(_) if self.rng.chance(10) => 0..volume.size / SECTOR,
            // Whole chunks: their slabs are free then.
            Some(_) if self.rng.chance(50) => {
                let first = self.range(volume.size).start / 512 * 512;
                first..(first + 512 * (1 + self.rng.below(2))).min(volume.size / SECTOR)
            }
            _ => self.range(volume.size),
        };
        let lives: Vec<u64> = std::iter::once(volume.life).chain(self.beside(volume.life)).collect();
        let busy = self.requests.iter().any(|request| {
            let others = request.copies.iter().copied().chain(self.beside(request.life)).chain([request.life]);
            request.meets(&sectors) && others.into_iter().any(|life| lives.contains(&life))
        });
        if busy || self.requests.len() >= REQUESTS {
            return;
        }
        self.writes += 1;
        let kind = zero.map_or(Kind::Write(self.writes), Kind::Zero);
        self.note(format!("{kind:?} of {name} at {sectors:?}"));
        self.coverage.writes += u64::from(zero.is_none());
        self.coverage.writes_through_views += u64::from(lives.len() > 1);
        self.coverage.writes_beside_views += u64::from(self.views.iter().any(|pair| pair.source == volume.life));
        self.coverage.zeroes += u64::from(zero.is_some());
        self.coverage.large_writes += u64::from(zero.is_none() && sectors.end - sectors.start >= 2048);
        let handle = self.container.volume(name).unwrap();
        self.requests.push(Request::new(handle, volume.life, kind, sectors));
        self.step_request(self.requests.len() - 1);
    }

    /// Takes a request one step further; it may end.
    pub fn step_request(&mut self, index: usize) {
        let mut request = self.requests.swap_remove(index);
        if let State::Waiting(bytes) = &request.state {
            let bytes = bytes.clone();
            if self.target != Some(request.life) && !self.plan(&mut request, bytes) {
                return;
            }
            self.requests.push(request);
            return;
        }
        let give_up = matches!(request.kind, Kind::Write(_)) && self.rng.chance(1);
        let State::Active { buffer, to_issue, issued, .. } = &mut request.state else { unreachable!() };
        if give_up {
            // What was issued ends first: nobody gives up a write that the disk still has.
            issued.drain(..).for_each(|id| self.disk.end_write(id));
            self.examine();
            return self.end(request, true);
        }
        if !to_issue.is_empty() && (issued.is_empty() || self.rng.chance(50)) {
            let write = to_issue.swap_remove(self.rng.below(to_issue.len() as u64) as usize);
            let disk = self.disk.clone();
            let (offset, bytes) = write.bytes(buffer, |block, from| disk.read_at(block, from).unwrap());
            issued.push(disk.begin_write(&bytes, offset).unwrap());
            self.requests.push(request);
            return self.examine();
        }
        if !issued.is_empty() {
            self.disk.end_write(issued.swap_remove(self.rng.below(issued.len() as u64) as usize));
            self.requests.push(request);
            return self.examine();
        }
        self.end(request, false);
    }

    /// The disk has done all that a plan asked for: publish.
    fn end(&mut self, mut request: Request, give_up: bool) {
        let State::Active { ticket, .. } = request.state else { unreachable!() };
        let known = self.model.values().any(|volume| volume.life == request.life);
        self.coverage.orphans += u64::from(!known);
        let remaining = ticket.remaining();
        let lives: Vec<u64> = std::iter::once(request.life).chain(request.copies.drain(..)).collect();
        let covers = std::mem::take(&mut request.covers);
        if give_up {
            self.coverage.given_up += 1;
            drop(ticket);
            lives.into_iter().for_each(|life| self.give_up(life, request.kind, &covers));
            return;
        }
        ticket.complete();
        lives.into_iter().for_each(|life| self.complete(life, request.kind, &covers));
        if let Some(left) = remaining {
            request.state = State::Waiting(left);
            self.requests.push(request);
        }
    }

    /// The instant of a copy of `source` has come. Returns the lives of the copy and of the source.
    pub fn begin_copy(&mut self, source: &str) -> (u64, u64) {
        let life = self.fresh_life();
        let source = self.model[source].clone();
        self.coming.push(Arc::new(source.copy(life)));
        for request in &mut self.requests {
            let ends_in_it = request.life == source.life || request.copies.contains(&source.life);
            if ends_in_it && matches!(request.state, State::Active { .. }) {
                request.copies.push(life);
            }
        }
        (life, source.life)
    }

    /// The copy of this life is sealed: what was planned before its instant has ended in it.
    pub fn end_in_copy(&mut self, life: u64) {
        let mut requests = std::mem::take(&mut self.requests);
        for request in requests.iter_mut().filter(|request| request.copies.contains(&life)) {
            self.complete(life, request.kind, &request.covers);
            request.copies.retain(|copy| *copy != life);
        }
        self.requests = requests;
    }

    /// Plans a request; false if it is over because its volume is gone or has become smaller.
    fn plan(&mut self, request: &mut Request, bytes: Range<u64>) -> bool {
        let outcome = loop {
            let planned = match request.kind {
                Kind::Write(_) => {
                    request.handle.plan_write(bytes.clone(), Waker::noop()).map(|planned| match planned {
                        Planned::Ready(ticket) => Planned::Ready(Ticket::Write(ticket)),
                        Planned::NeedPage(load) => Planned::NeedPage(load),
                        Planned::Busy => Planned::Busy,
                    })
                }
                Kind::Zero(kind) => {
                    request.handle.plan_zero(bytes.clone(), kind, Waker::noop()).map(|planned| match planned {
                        Planned::Ready(ticket) => Planned::Ready(Ticket::Zero(ticket)),
                        Planned::NeedPage(load) => Planned::NeedPage(load),
                        Planned::Busy => Planned::Busy,
                    })
                }
            };
            match planned {
                Ok(Planned::NeedPage(load)) => {
                    // What a plan of zeros did before it needed the page may show.
                    self.mark(request, &bytes);
                    self.coverage.pages_loaded += 1;
                    self.container.load_page(load).unwrap();
                }
                other => break other,
            }
        };
        // The plan belongs to the volume's life of now: a request may have waited over a refresh.
        let now = self.model.get(&request.handle.name()).map_or(0, |volume| volume.life);
        if now != request.life {
            (request.life, request.marked) = (now, Vec::new());
        }
        match outcome {
            Ok(Planned::Ready(ticket)) => {
                request.covers = request.covered(&bytes, ticket.remaining().as_ref());
                let beside = self.beside(request.life);
                for life in std::iter::once(request.life).chain(beside) {
                    if !request.marked.contains(&life) {
                        self.begin(life, request.kind, &request.covers);
                    }
                }
                request.copies.extend(beside);
                let buffer = match &ticket {
                    Ticket::Write(_) => request.buffer(&bytes),
                    Ticket::Zero(_) => vec![0; 8192],
                };
                let to_issue = DiskWrite::all(&ticket);
                request.state = State::Active { ticket: Box::new(ticket), buffer, to_issue, issued: Vec::new() };
                true
            }
            Ok(_) => {
                self.coverage.waits += 1;
                self.mark(request, &bytes);
                true
            }
            Err(Error::VolumeGone { .. } | Error::BadRange { .. }) => {
                for life in std::mem::take(&mut request.marked) {
                    let left = request.covered(&bytes, None);
                    self.give_up(life, request.kind, &left);
                }
                false
            }
            Err(error) => self.fail(&format!("plan: {error}")),
        }
    }

    /// A plan of zeros that could not be made may have done a part.
    fn mark(&mut self, request: &mut Request, bytes: &Range<u64>) {
        if matches!(request.kind, Kind::Zero(_)) {
            for life in std::iter::once(request.life).chain(self.beside(request.life)) {
                if !request.marked.contains(&life) {
                    request.marked.push(life);
                    let left = request.covered(bytes, None);
                    self.begin(life, request.kind, &left);
                }
            }
        }
    }

    // --- reads ---

    /// Plans a read; its bytes are read later, whatever has become of the volume by then.
    pub fn begin_read(&mut self, name: &str) {
        let then = self.model[name].clone();
        let sectors = self.range(then.size);
        let handle = self.container.volume(name).unwrap();
        let mut plan = ReadPlan::default();
        while let Planned::NeedPage(load) =
            handle.plan_read(sectors.start * SECTOR..sectors.end * SECTOR, &mut plan).unwrap()
        {
            self.container.load_page(load).unwrap();
        }
        self.coverage.reads += 1;
        let life = then.life;
        self.readings.push(Reading { plan, life, sectors, then, since: HashSet::new() });
        if self.readings.len() > READS {
            self.end_read(0);
        }
    }

    /// Reads the bytes: no slab of the plan may have been reused (JNL-6).
    pub fn end_read(&mut self, index: usize) {
        let reading = self.readings.swap_remove(index);
        let mut sector = reading.sectors.start;
        for segment in reading.plan.segments() {
            let bytes = match *segment {
                ReadSegment::Zero { len } => vec![0; len as usize],
                ReadSegment::Data { disk_offset, len } => {
                    let mut bytes = vec![0; len as usize];
                    self.disk.read_at(&mut bytes, disk_offset).unwrap();
                    bytes
                }
            };
            for bytes in bytes.chunks_exact(SECTOR as usize) {
                let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                if !reading.then.may_show(sector, value, When::Live) && !reading.since.contains(&value) {
                    let allowed = reading.then.describe(sector);
                    self.fail(&format!(
                        "a read shows {value:#x} in sector {sector}, allowed {allowed} and writes since"
                    ));
                }
                sector += 1;
            }
        }
    }

    // --- flushes ---

    pub fn begin_flush(&mut self, name: &str) {
        if self.flushes.len() >= FLUSHES {
            return;
        }
        self.note(format!("flush of {name}"));
        let life = self.model[name].life;
        let promises = self.model[name].durability == Durability::Flush;
        let mut flush = self.container.volume(name).unwrap().start_flush();
        // While a command changes what it promises, it may be either.
        if !promises && self.change.is_none() {
            self.coverage.flushes_that_promise_nothing += 1;
            assert!(matches!(flush.poll(Waker::noop()), Ok(FlushStep::Done)), "a flush that promises nothing waits");
            return;
        }
        self.flushes.push(Flushing { flush, life, began: self.time, promises, stage: Stage::Waiting });
        self.coverage.flushes += 1;
        let leading = self.flushes.iter().filter(|flush| flush.stage != Stage::Waiting).count();
        self.coverage.flushes_at_once += u64::from(leading > 0);
        self.step_flush(self.flushes.len() - 1);
    }

    /// Takes a flush one step further; it may end. Between two steps it has either issued something or only waits.
    pub fn step_flush(&mut self, index: usize) {
        let mut flushing = self.flushes.swap_remove(index);
        match flushing.stage {
            Stage::Syncing(id) => {
                self.disk.end_sync(id);
                self.examine();
                flushing.flush.synced(Ok(()));
            }
            Stage::Appending(id) => {
                self.disk.end_durable_write(id);
                self.examine();
                flushing.flush.appended(Ok(()));
            }
            Stage::Waiting => {}
        }
        flushing.stage = match flushing.flush.poll(Waker::noop()).unwrap() {
            FlushStep::Done => {
                if flushing.promises {
                    self.flushed(flushing.life, flushing.began);
                }
                return self.promised();
            }
            FlushStep::Wait => Stage::Waiting,
            FlushStep::Sync => Stage::Syncing(self.disk.begin_sync()),
            FlushStep::Append(append) => {
                Stage::Appending(self.disk.begin_write(append.bytes(), append.offset()).unwrap())
            }
        };
        self.flushes.push(flushing);
        self.examine();
    }

    /// Takes every flush that leads a batch to its end: whoever blocks would wait for it for ever.
    pub fn finish_leaders(&mut self) {
        while let Some(index) = self.flushes.iter().position(|flush| flush.stage != Stage::Waiting) {
            self.step_flush(index);
        }
    }

    /// A step of something that is under way, if there is anything.
    pub fn step_any(&mut self) {
        if !self.readings.is_empty() && self.rng.chance(5) {
            self.end_read(0);
        }
        let count = self.requests.len() + self.flushes.len();
        if count == 0 {
            return;
        }
        let index = self.rng.below(count as u64) as usize;
        match index.checked_sub(self.requests.len()) {
            None => self.step_request(index),
            Some(index) => self.step_flush(index),
        }
    }

    /// Something blocks in the middle of its I/O: others go on.
    pub fn in_the_middle(&mut self) {
        self.examine();
        if !self.rng.chance(50) {
            return;
        }
        for _ in 0..1 + self.rng.below(4) {
            self.coverage.steps_inside_commands += 1;
            let name = self.pick_busy().filter(|name| Some(self.model[name].life) != self.target);
            match (self.rng.below(10), name) {
                (0..2, Some(name)) => self.begin_request(&name, None),
                (2, Some(name)) => self.begin_request(&name, Some(ZeroKind::Discard)),
                (3, Some(name)) => self.begin_flush(&name),
                _ => self.step_any(),
            }
        }
        self.finish_leaders();
    }
}
