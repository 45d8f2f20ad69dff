//! The workload: which operation comes next, and commands, which block while everything else goes on in their middle.

use std::sync::{Arc, Mutex, MutexGuard};

use pitstop_format::testing::SimDisk;
use pitstop_format::{
    Container, CreateOptions, Durability, Error, HydrateEnd, HydrateStep, LayerId, LayerInfo, NewCopy, OpenMode,
    SealEnd, SealStep, Verify, ViewEnd, VolumeChange, VolumeId, VolumeInfo, VolumeState, ZeroKind,
};

use crate::backup::Held;
use crate::common::compare::{Comparer, Shown};
use crate::common::promises::{Change, Model, Volume, When};
use crate::crashes::{Counts, Crashes};
use crate::request::Stage;
use crate::world::{Coverage, Pair, World};

#[path = "again.rs"]
mod again;
#[path = "lists.rs"]
mod lists;

const OPERATIONS: u64 = 120;
/// Bytes that a step of a hydration or a sealing may move.
const BUDGETS: [u64; 3] = [1, 300 << 10, 2 << 20];
const MIB: u64 = 1 << 20;
const SMALL: [u64; 4] = [MIB, MIB + 512, 768 << 10, (256 << 10) - 4096];
/// More than one page of chunk entries, more than one table.
const PAGED: [u64; 4] = [40 * MIB, 33 * MIB + 512, MIB, 2 * MIB];
const TABLED: [u64; 4] = [2048 * MIB + 40 * MIB, 2048 * MIB + 512, 40 * MIB, MIB];
const JOURNALS: [u64; 8] = [256 << 10, 256 << 10, 256 << 10, 512 << 10, 256 << 10, 512 << 10, MIB, 4 * MIB];

/// The world, and what kind of world it is.
pub struct Work {
    world: Arc<Mutex<World>>,
    sizes: [u64; 4],
    pub backups: Vec<Held>,
}

/// Runs one sequence: that of this seed. Crashes are judged at about `density` of 1000 places; what is done, and what is
/// gone on from, is the same whatever the density.
pub fn run(seed: u64, density: u64) -> (Counts, Coverage) {
    let mut work = Work::new(seed, density);
    work.create();
    work.create();
    for _ in 0..OPERATIONS {
        work.operation();
    }
    work.end_backups();
    work.finish_all();
    work.hydrate_all();
    work.seal_all();
    work.blocking(|container| container.settle(10_000).unwrap());
    let mut world = work.lock();
    world.compare();
    world.disk.set_hook(None);
    (world.crashes.counts, world.coverage)
}

fn doomed(layers: &[LayerInfo]) -> usize {
    layers.iter().filter(|layer| layer.kind == "doomed").count()
}

/// Frozen layers on which one head alone stands, and how much they have.
fn below_heads(layers: &[LayerInfo]) -> Vec<(LayerId, u64)> {
    let is_below_head = |layer: &LayerInfo| {
        let above = layers.iter().filter(|above| above.parent == Some(layer.id));
        layer.kind == "frozen" && above.map(|above| above.kind).eq(["head"])
    };
    let below = layers.iter().filter(|layer| is_below_head(layer));
    below.map(|layer| (layer.id, layer.allocated_bytes)).collect()
}

impl Work {
    fn new(seed: u64, density: u64) -> Self {
        let disk = SimDisk::new();
        let journal_len_bytes = JOURNALS[(seed / 3 % 8) as usize];
        let options = CreateOptions { journal_len_bytes, ..CreateOptions::default() };
        Container::create(disk.clone(), &options).unwrap();
        let crashes = Crashes::new(disk.record(), seed, density);
        let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
        let world = Arc::new(Mutex::new(World::new(seed, disk, container, crashes, journal_len_bytes)));
        let sizes = match seed % 8 {
            0..5 => SMALL,
            5 | 6 => PAGED,
            _ => TABLED,
        };
        let work = Self { world, sizes, backups: Vec::new() };
        work.hook();
        work.lock().examine();
        work
    }

    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Lets everything else go on in the middle of the disk's blocking requests.
    fn hook(&self) {
        let world = Arc::downgrade(&self.world);
        self.lock().disk.set_hook(Some(Box::new(move |_| {
            if let Some(world) = world.upgrade() {
                world.lock().unwrap().in_the_middle();
            }
        })));
    }

    /// Runs something that blocks; the world is not locked meanwhile.
    pub fn blocking<T>(&self, operation: impl FnOnce(&Container) -> T) -> T {
        let container = {
            let mut world = self.lock();
            world.finish_leaders();
            world.container.clone()
        };
        let result = operation(&container);
        self.lock().examine();
        result
    }

    /// Runs a command that leads from the model to what `change` makes of it.
    fn command(&self, target: Option<u64>, change: Change, operation: impl FnOnce(&Container)) {
        {
            let mut world = self.lock();
            // Leaders first: what they examine is not the command's.
            world.finish_leaders();
            world.note(format!("{:?}", Named(&change)));
            (world.target, world.change) = (target, Some(change));
            world.crashes.promises_changed();
        }
        let before = self.lock().container.hydrations().len();
        self.blocking(operation);
        let mut world = self.lock();
        world.coverage.hydrations_ended_by_commands += u64::from(world.container.hydrations().len() < before);
        if let Some(change) = world.change.take() {
            change.apply(&mut world.model);
        }
        world.target = None;
        world.crashes.promises_changed();
        world.promised();
    }

    fn create(&mut self) {
        let (name, volume) = {
            let mut world = self.lock();
            let size = self.sizes[world.rng.below(4) as usize];
            let life = world.fresh_life();
            let durability = if world.rng.chance(30) { Durability::None } else { Durability::Flush };
            let mut volume = Volume::new(size, life);
            volume.durability = durability;
            (world.fresh_name(), Arc::new(volume))
        };
        let (given, size, durability) = (name.clone(), volume.size, volume.durability);
        self.command(None, Change::Put(vec![(name, volume)]), |container| {
            drop(container.create_volume_with(&given, size, durability).unwrap())
        });
        if self.lock().rng.chance(60) {
            self.blocking(|container| drop(container.set_verify(&given, Verify::Copy).unwrap()));
            self.promised();
        }
    }

    fn delete(&mut self, name: &str) {
        let life = self.lock().model[name].life;
        self.lock().coverage.deletes += 1;
        self.command(Some(life), Change::Remove(name.to_owned()), |container| container.delete_volume(name).unwrap());
    }

    fn rename(&mut self, name: &str) {
        let (life, new_name) = {
            let mut world = self.lock();
            (world.model[name].life, world.fresh_name())
        };
        let change = Change::Rename(name.to_owned(), new_name.clone());
        self.command(Some(life), change, |container| container.rename_volume(name, &new_name).unwrap());
    }

    /// Sets what flushes of a volume promise, or takes an undefined one as it is; its guest goes on meanwhile.
    fn set(&self, name: &str) {
        let refused = {
            let mut world = self.lock();
            world.is_in_view(name) && world.rng.chance(30)
        };
        if refused {
            return self.refused_in_view(name);
        }
        let (after, change) = {
            let mut world = self.lock();
            world.finish_leaders();
            let in_view = world.is_in_view(name);
            let mut after = Volume::clone(&world.model[name]);
            let durability = match world.rng.below(5) {
                0 | 1 if !in_view => Some(Durability::None),
                2 | 3 => Some(Durability::Flush),
                _ => None,
            };
            let defined = world.rng.chance(30);
            after.durability = durability.unwrap_or(after.durability);
            after.undefined &= !defined;
            if durability == Some(Durability::Flush) {
                // What completed before the command is durable (VOL-43).
                after.flush(world.time);
            }
            world.coverage.changes_of_durability += u64::from(after.durability != world.model[name].durability);
            (Arc::new(after), VolumeChange { durability, defined })
        };
        let put = Change::Put(vec![(name.to_owned(), after)]);
        self.command(None, put, |container| drop(container.set_volume(name, change).unwrap()));
    }

    /// What would part the two volumes of a view, or make their flushes promise different things (VIEW-9, VIEW-10).
    fn refused_in_view(&self, name: &str) {
        let choice = self.lock().rng.below(3);
        let refused = self.blocking(|container| match choice {
            0 => {
                let change = VolumeChange { durability: Some(Durability::None), defined: false };
                container.set_volume(name, change).map(drop)
            }
            1 => container.hydrate(name).map(drop),
            _ => container.begin_snapshot(name, "copy").map(drop),
        });
        assert!(matches!(refused, Err(Error::InView { .. })), "{refused:?}");
    }

    /// An undefined volume is no source (VOL-45); nothing has changed when it is refused.
    fn refused_copy(&self, sources: &[&str], target: Option<&str>) {
        self.lock().coverage.undefined_refused += 1;
        let copy =
            |(n, source): (usize, &&str)| NewCopy { source: (*source).to_owned(), name: format!("{source}-copy-{n}") };
        let refused = self.blocking(|container| match target {
            None => container.begin_snapshot_group(&sources.iter().enumerate().map(copy).collect::<Vec<_>>()).map(drop),
            Some(target) => container.begin_refresh(target, sources[0]).map(drop),
        });
        assert!(matches!(refused, Err(Error::Undefined { .. })), "{refused:?}");
    }

    /// Snapshot, of several volumes too, or refresh. Between the instant and the end everything goes on.
    fn copy(&mut self, sources: &[&str], target: Option<&str>) {
        if sources.iter().any(|source| self.lock().model[*source].undefined) {
            return self.refused_copy(sources, target);
        }
        let names: Vec<_> = match target {
            Some(target) => vec![target.to_owned()],
            None => sources.iter().map(|_| self.lock().fresh_name()).collect(),
        };
        self.lock().note(format!("copy of {sources:?} to {names:?}"));
        let pending = self.blocking(|container| match target {
            None => {
                let copy =
                    |(source, name): (&&str, &String)| NewCopy { source: (*source).to_owned(), name: name.clone() };
                container.begin_snapshot_group(&sources.iter().zip(&names).map(copy).collect::<Vec<_>>()).unwrap()
            }
            Some(target) => container.begin_refresh(target, sources[0]).unwrap(),
        });
        let (lives, instant) = {
            let mut world = self.lock();
            world.coverage.copies += 1;
            world.coverage.groups += u64::from(sources.len() > 1);
            world.coverage.groups_of_one += u64::from(sources.len() > 2);
            world.coverage.restores +=
                u64::from(target.is_some_and(|target| again::is_restore(&world, target, sources[0])));
            let lives: Vec<_> = sources.iter().map(|source| world.begin_copy(source)).collect();
            (lives, world.time)
        };
        let between = self.lock().rng.below(12);
        for _ in 0..between {
            self.small_operation();
        }
        while !pending.is_sealed() {
            self.small_operation();
        }
        let (copies, old) = {
            let mut world = self.lock();
            // Zeros that were only metadata do not keep a layer from being sealed: they were complete when planned.
            lives.iter().for_each(|(life, _)| world.end_in_copy(*life));
            let mut copies = std::mem::take(&mut world.coming);
            // They show the instant, and durably so, from the moment that they are there.
            for copy in copies.iter_mut().map(Arc::make_mut) {
                copy.seal();
                copy.flush(u64::MAX);
                if let Some(target) = target {
                    copy.durability = world.model[target].durability;
                }
            }
            world.coverage.undefined_refreshed += u64::from(target.is_some_and(|name| world.model[name].undefined));
            (copies, target.map(|target| world.model[target].life))
        };
        let change = Change::Put(names.into_iter().zip(copies).collect());
        self.command(old, change, |_| drop(pending.finish_all().unwrap()));
        let mut world = self.lock();
        // The sources stand on the same frozen layers.
        lives.iter().for_each(|(_, source_life)| world.flushed(*source_life, instant));
        world.promised();
    }

    /// Begins a view of a volume, or ends one; what was planned before goes on.
    fn view(&mut self, name: &str) {
        let (pair, end) = {
            let mut world = self.lock();
            let count = world.views.len().max(1) as u64;
            let index = world.rng.below(count) as usize;
            let pair = world.views.get(index).copied();
            (pair, if world.rng.chance(50) { ViewEnd::Drop } else { ViewEnd::Keep })
        };
        let hydrating = |world: &World| world.container.hydrations().iter().any(|found| found.volume == name);
        let (free, few, durability, undefined) = {
            let world = self.lock();
            let volume = &world.model[name];
            let free = !world.is_in_view(name) && !hydrating(&world);
            (free, world.model.len() < 8, volume.durability, volume.undefined)
        };
        match pair {
            Some(pair) if !free || !few || self.lock().rng.chance(40) => self.end_view(pair, end),
            _ if free && few && (undefined || durability == Durability::None) => {
                let refused = self.blocking(|container| container.begin_create_view(name, "view").map(drop));
                assert!(matches!(refused, Err(Error::Undefined { .. } | Error::Disposable { .. })), "{refused:?}");
            }
            _ if free && few => self.create_view(name),
            _ => {}
        }
    }

    /// The view shows what the source does, and what was planned before ends in both (R25): nobody waits for it.
    fn create_view(&mut self, source: &str) {
        let name = self.lock().fresh_name();
        let pending = self.blocking(|container| container.begin_create_view(source, &name).unwrap());
        let (volume, lives, instant) = {
            let mut world = self.lock();
            world.coverage.views += 1;
            let (life, source_life) = world.begin_copy(source);
            world.views.push(Pair { source: source_life, view: life });
            (world.coming.pop().unwrap(), [life, source_life], world.time)
        };
        self.command(None, Change::Put(vec![(name, volume)]), |_| drop(pending.finish().unwrap()));
        let mut world = self.lock();
        lives.iter().for_each(|life| world.flushed(*life, instant));
        world.promised();
    }

    fn end_view(&mut self, pair: Pair, end: ViewEnd) {
        let [source, view] = {
            let world = self.lock();
            [pair.source, pair.view].map(|life| world.name_of(life))
        };
        self.lock().note(format!("{end:?} of {view}, a view of {source}"));
        let pending = self.blocking(|container| container.begin_end_view(&view, end).unwrap());
        let (instant, mut lives) = {
            let mut world = self.lock();
            world.views.retain(|other| *other != pair);
            if end == ViewEnd::Drop {
                world.coverage.views_dropped += 1;
                let (life, _) = world.begin_copy(&view);
                let volume = world.coming.pop().unwrap();
                (world.change, world.target) = (Some(Change::Put(vec![(source, volume)])), Some(pair.source));
                world.crashes.promises_changed();
                (world.time, vec![pair.view, life])
            } else {
                world.coverage.views_kept += 1;
                (world.time, vec![pair.view, pair.source])
            }
        };
        while !pending.is_sealed() {
            self.lock().step_any();
            self.maintain(1);
        }
        self.lock().finish_leaders();
        let change = self.lock().change.take();
        match change {
            Some(change) => self.command(Some(pair.source), change, |_| drop(pending.finish().unwrap())),
            None => self.blocking(|_| drop(pending.finish().unwrap())),
        }
        let mut world = self.lock();
        lives.drain(..).for_each(|life| world.flushed(life, instant));
        world.promised();
    }

    /// What may come at any time, also while a copy is under way.
    pub fn small_operation(&self) {
        let mut world = self.lock();
        let Some(name) = world.pick_busy() else { return };
        match world.rng.below(100) {
            0..48 => world.step_any(),
            48..53 => {
                drop(world);
                self.hydrate_step();
            }
            53..56 => {
                drop(world);
                self.seal_step();
            }
            56..76 => world.begin_request(&name, None),
            76..79 => world.begin_request(&name, Some(ZeroKind::Discard)),
            79..81 => world.begin_request(&name, Some(ZeroKind::WriteZeroes)),
            81..86 => world.begin_flush(&name),
            86..89 => world.begin_read(&name),
            _ => {
                let steps = 1 + world.rng.below(6) as usize;
                drop(world);
                self.maintain(steps);
            }
        }
    }

    fn maintain(&self, steps: usize) {
        for _ in 0..steps {
            let before = self.lock().container.layers();
            self.blocking(|container| container.maintain().unwrap());
            let mut world = self.lock();
            let after = world.container.layers();
            // Which way a layer became less: into its child, or because a head hides what it had.
            let below_heads = below_heads(&before);
            let is_doomed = |id: &LayerId| after.iter().any(|layer| layer.id == *id && layer.kind == "doomed");
            let unlinked = below_heads.iter().filter(|(id, _)| is_doomed(id)).count();
            let freed = |(id, len): &&(LayerId, u64)| {
                after.iter().any(|layer| layer.id == *id && layer.kind == "frozen" && layer.allocated_bytes < *len)
            };
            world.coverage.hidden_freed += u64::from(below_heads.iter().any(|below| freed(&below)));
            world.coverage.hidden_unlinked += unlinked as u64;
            world.coverage.merges += u64::from(doomed(&after) > doomed(&before) + unlinked);
            world.coverage.reclaims += u64::from(after.len() < before.len());
        }
    }

    /// Begins to hydrate a volume, gives it up, or sets its pace: nobody's contents change.
    fn hydrate(&self, name: &str) {
        let state = |container: &Container| {
            let volumes = container.volumes();
            volumes.into_iter().find(|volume| volume.name == name).unwrap().state
        };
        self.lock().note(format!("hydration of {name}"));
        let before = state(&self.lock().container);
        if before != VolumeState::Hydrating {
            let begun = self.blocking(|container| container.hydrate(name).unwrap());
            assert_eq!(begun.is_some(), before == VolumeState::Virtual);
            self.lock().coverage.hydrations += u64::from(begun.is_some());
        } else if self.lock().rng.chance(40) {
            self.blocking(|container| container.cancel_hydration(copy_of(container, name)).unwrap());
            self.lock().coverage.hydrations_cancelled += 1;
        } else {
            let (paused, speed) = {
                let mut world = self.lock();
                (world.rng.chance(50), world.rng.below(1 << 30))
            };
            self.blocking(|container| container.set_hydration(copy_of(container, name), paused, speed).unwrap());
            self.lock().coverage.paces += 1;
        }
        self.promised();
    }

    /// Copies between two volumes of a relation again, in either direction, or makes one to come.
    fn copy_again(&mut self) {
        let (volumes, choice) = {
            let mut world = self.lock();
            (world.container.volumes(), world.rng.below(1 << 20) as usize)
        };
        let free = |volume: &&VolumeInfo| volume.view_of.is_none() && volume.viewed_by.is_none();
        let related = volumes.iter().filter(free).filter_map(|volume| {
            let (origin, relation) = (volume.origin.as_ref()?, volume.relation?);
            let source = volumes.iter().filter(free).find(|source| source.id == origin.volume)?;
            Some((volume, source, relation))
        });
        let (tracked, others): (Vec<_>, Vec<_>) = related.partition(|(.., relation)| relation.tracked);
        let name = if let Some((volume, source, _)) = tracked.get(choice % tracked.len().max(1)) {
            if choice % 16 == 0 {
                self.blocking(|container| drop(container.split(&volume.name).unwrap()));
                self.lock().coverage.splits += 1;
                return self.promised();
            }
            let (target, source) = if choice / 16 % 2 == 0 { (volume, source) } else { (source, volume) };
            self.copy(&[&source.name], Some(&target.name));
            self.lock().coverage.copies_again += 1;
            &target.name
        } else if let Some((volume, ..)) = others.get(choice % others.len().max(1)) {
            &volume.name
        } else {
            return;
        };
        if !self
            .lock()
            .container
            .volumes()
            .iter()
            .any(|volume| volume.name == *name && volume.state == VolumeState::Virtual)
        {
            return;
        }
        self.hydrate(name);
        if choice / 1024 % 2 == 0 {
            // What was planned before holds up an adoption (REL-7).
            self.finish_all();
        }
        for _ in 0..choice / 32 % 12 {
            self.hydrate_step();
            self.maintain(1);
        }
    }

    /// A step of some hydration, if any is under way.
    fn hydrate_step(&self) {
        let (layer, budget) = {
            let mut world = self.lock();
            let found = world.container.hydrations();
            if found.is_empty() {
                return;
            }
            let layer = found[world.rng.below(found.len() as u64) as usize].layer;
            (layer, BUDGETS[world.rng.below(3) as usize])
        };
        self.step_hydration(layer, budget);
    }

    /// A step of this hydration.
    fn step_hydration(&self, layer: LayerId, budget: u64) -> HydrateStep {
        let adopted = |container: &Container| container.hydration(layer).map_or(0, |found| found.moved.adopted_bytes);
        let before = adopted(&self.lock().container);
        let step = self.blocking(|container| container.hydrate_step(layer, budget).unwrap());
        let mut world = self.lock();
        let has_adopted = adopted(&world.container) > before;
        world.coverage.steps_that_adopted += u64::from(has_adopted);
        let coverage = &mut world.coverage;
        match step {
            HydrateStep::Copied(_) => coverage.steps_that_copied += 1,
            HydrateStep::Blocked(_) => coverage.steps_that_waited += 1,
            HydrateStep::Ended(end) => {
                assert_eq!(end, HydrateEnd::Done);
                coverage.hydrations_done += 1;
                world.note(format!("layer {layer} is whole"));
            }
        }
        step
    }

    /// Begins to seal a volume, gives that up, or sets its pace or whether it is sealed by itself: nobody's contents change.
    fn order_seal(&self, name: &str) {
        self.lock().note(format!("sealing of {name}"));
        let found = self.lock().container.seals().into_iter().find(|seal| seal.volume == name);
        let (choice, speed) = {
            let mut world = self.lock();
            (world.rng.below(4), world.rng.below(1 << 30))
        };
        match (found, choice) {
            (None, 0) => {
                let verify = if speed.is_multiple_of(2) { Verify::Copy } else { Verify::Always };
                self.blocking(|container| drop(container.set_verify(name, verify).unwrap()));
            }
            (None, _) => {
                self.blocking(|container| container.seal(name).unwrap());
            }
            (Some(seal), 0) => {
                self.blocking(|container| container.cancel_seal(seal.volume_id).unwrap());
                self.lock().coverage.seals_given_up += 1;
            }
            (Some(_), 1) => {
                self.blocking(|container| drop(container.set_verify(name, Verify::Off).unwrap()));
                self.lock().coverage.seals_given_up += 1;
            }
            (Some(seal), _) => {
                self.blocking(|container| container.set_seal(seal.volume_id, choice == 2, speed).unwrap());
            }
        }
        self.promised();
    }

    /// A step of some sealing, if any is under way.
    fn seal_step(&self) {
        let (volume, budget) = {
            let mut world = self.lock();
            let found = world.container.seals();
            if found.is_empty() {
                return;
            }
            let volume = found[world.rng.below(found.len() as u64) as usize].volume_id;
            (volume, BUDGETS[world.rng.below(3) as usize])
        };
        let step = self.blocking(|container| container.seal_step(volume, budget).unwrap());
        let mut world = self.lock();
        match step {
            SealStep::Sealed(bytes) => world.coverage.steps_that_sealed += u64::from(bytes > 0),
            SealStep::Blocked(_) => {}
            SealStep::Ended(end) => {
                assert_eq!(end, SealEnd::Done);
                world.coverage.seals_done += 1;
            }
        }
    }

    /// Takes all sealings to their ends: all that is frozen of their volumes has tags then, and is what it was.
    fn seal_all(&self) {
        for step in 0.. {
            if self.lock().container.seals().is_empty() {
                break;
            }
            assert!(step < 1000, "a sealing does not end: {:?}", self.lock().container.seals());
            self.maintain(1);
            self.seal_step();
        }
    }

    /// Takes all hydrations to their ends: their volumes are real then.
    fn hydrate_all(&self) {
        let names: Vec<_> = self.lock().container.hydrations().into_iter().map(|found| found.volume).collect();
        for step in 0.. {
            if self.lock().container.hydrations().is_empty() {
                break;
            }
            assert!(step < 1000, "a hydration does not end: {:?}", self.lock().container.hydrations());
            self.maintain(1);
            // Requests that others' I/O let begin hold up the end (LAY-33).
            self.finish_all();
            self.hydrate_step();
        }
        let volumes = self.lock().container.volumes();
        let found = volumes.iter().filter(|volume| names.contains(&volume.name));
        assert!(found.clone().all(|volume| volume.state == VolumeState::Real), "{volumes:#?}");
    }

    /// What a command has promised is durable.
    fn promised(&self) {
        self.lock().promised();
    }

    fn commit(&self) {
        let began = {
            let mut world = self.lock();
            world.finish_leaders();
            world.time
        };
        self.blocking(|container| container.commit().unwrap());
        let mut world = self.lock();
        world.all_flushed(began);
        world.promised();
    }

    /// Takes everything that is under way to its end.
    fn finish_all(&self) {
        let mut world = self.lock();
        while !world.readings.is_empty() {
            world.end_read(0);
        }
        drop(world);
        loop {
            let mut world = self.lock();
            if world.requests.is_empty() && world.flushes.is_empty() {
                return;
            }
            for _ in 0..10 {
                world.step_any();
            }
            drop(world);
            self.maintain(1);
        }
    }

    fn reopen(&mut self) {
        self.finish_all();
        let close = {
            let mut world = self.lock();
            // Nothing may begin any more: it would outlive its container.
            world.disk.set_hook(None);
            world.note("reopen".to_owned());
            world.coverage.reopened += 1;
            world.rng.chance(50)
        };
        if close {
            self.blocking(|container| container.clone().close().unwrap());
            let mut world = self.lock();
            world.all_flushed(u64::MAX);
            world.promised();
        } else {
            self.commit();
        }
        let mut world = self.lock();
        let orders = Orders::of(&world.container);
        let container = Container::open(world.disk.clone(), OpenMode::ReadWrite).unwrap();
        orders.outlive(&container);
        world.use_container(container);
        if !close {
            world.lose_durability();
        }
        world.examine();
        drop(world);
        self.forget_backups();
        self.hook();
    }

    /// Crashes, and goes on with what is left: with everything that was under way forgotten.
    fn crash(&mut self) {
        let mut world = self.lock();
        world.finish_leaders();
        world.note("crash".to_owned());
        world.disk.set_hook(None);
        world.requests.clear();
        world.readings.clear();
        // A flush that leads must not be dropped in the middle; none does.
        assert!(world.flushes.iter().all(|flush| flush.stage == Stage::Waiting));
        world.flushes.clear();
        let orders = Orders::of(&world.container);
        let mut left = world.crashes.choose();
        loop {
            world.coverage.crashes_gone_on_from += 1;
            let crash = left.record();
            let container = Container::open(left.clone(), OpenMode::ReadWrite).unwrap();
            orders.outlive(&container);
            // The disk is what it is: what it shows now is durable.
            world.model = settled(&mut world, &container);
            world.find_views(&container);
            world.disk = left;
            world.use_container(container);
            world.crashes.restart(crash);
            let again = world.rng.chance(30);
            if !again {
                world.examine();
                break;
            }
            world.coverage.crashes_in_recovery_gone_on_from += 1;
            world.note("crash in recovery".to_owned());
            world.examine_part();
            left = world.crashes.choose();
        }
        drop(world);
        self.forget_backups();
        self.hook();
    }

    fn operation(&mut self) {
        let Some(name) = self.lock().pick() else {
            return self.create();
        };
        let (choice, count, other, free, both_free) = {
            let mut world = self.lock();
            let other = world.pick().unwrap();
            let free = !world.is_in_view(&name);
            (world.rng.below(1000), world.model.len(), other.clone(), free, free && !world.is_in_view(&other))
        };
        match choice {
            0..45 if free => self.hydrate(&name),
            45..60 => self.order_seal(&name),
            60..85 => self.set(&name),
            85..185 => self.copy_again(),
            0..230 => self.view(&name),
            230..260 if free && count < 7 => self.differential(&name),
            260..280 if free && count < 8 => self.rotate(&name),
            280..310 if both_free => self.list(&name, &other),
            310..315 => self.check(),
            315..345 if free && self.backups.len() < 3 => self.begin_backup(&name),
            315..520 if !self.backups.is_empty() => self.step_backup(),
            230..700 => {
                for _ in 0..4 {
                    self.small_operation();
                }
            }
            700..705 if both_free && count < 6 => self.copy(&[&name, &other, &name], None),
            700..720 if both_free && count < 7 && name != other => self.copy(&[&name, &other], None),
            700..770 if free && count < 8 => self.copy(&[&name], None),
            700..870 if both_free && name != other => self.copy(&[&name], Some(&other)),
            870..915 if free && count > 2 => self.delete(&name),
            915..930 => self.rename(&name),
            930..945 => self.reopen(),
            945..965 => self.crash(),
            965..985 if count < 8 => self.create(),
            _ => self.commit(),
        }
        let mut world = self.lock();
        if world.rng.chance(30) {
            world.compare();
        }
    }
}

/// A model that holds just what the container shows, which must be what the promises allow.
fn settled(world: &mut World, container: &Container) -> Model {
    let mut comparer = Comparer::default();
    let mut model = Model::new();
    if let Err(why) = comparer.container(container, &world.model, When::AfterCrash) {
        panic!("a crash loses what was promised: {why}");
    }
    let volumes = world.model.clone();
    for ((name, volume), info) in volumes.iter().zip(container.volumes()) {
        let mut shown = Shown::new();
        let handle = container.volume(name).unwrap();
        comparer.volume(container, &handle, volume, When::AfterCrash, Some(&mut shown)).unwrap();
        let life = world.fresh_life();
        world.coverage.became_undefined += u64::from(info.undefined && !volume.undefined);
        let mut held = Volume::holding(volume.size, life, shown);
        (held.durability, held.undefined) = (info.durability, info.undefined);
        model.insert(name.clone(), Arc::new(held));
    }
    world.crashes.promises_changed();
    model
}

/// A change without the contents of volumes.
struct Named<'a>(&'a Change);

impl std::fmt::Debug for Named<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Change::Put(volumes) => {
                volumes.iter().try_for_each(|(name, volume)| write!(f, "put {name} of {} bytes ", volume.size))
            }
            Change::Remove(name) => write!(f, "remove {name}"),
            Change::Rename(name, new_name) => write!(f, "rename {name} to {new_name}"),
        }
    }
}

/// The layer that is filled for a volume.
fn copy_of(container: &Container, name: &str) -> LayerId {
    container.hydrations().iter().find(|hydration| hydration.volume == name).unwrap().layer
}

/// Background work that was ordered: what no crash and no restart ends or changes (LAY-36, TAG-8).
struct Orders {
    hydrations: Vec<(LayerId, bool, u64)>,
    seals: Vec<(VolumeId, bool, u64)>,
}

impl Orders {
    fn of(container: &Container) -> Self {
        let hydrations = container.hydrations().into_iter().map(|found| (found.layer, found.paused, found.speed));
        let seals = container.seals().into_iter().map(|found| (found.volume_id, found.paused, found.speed));
        Self { hydrations: hydrations.collect(), seals: seals.collect() }
    }

    fn outlive(&self, container: &Container) {
        let found = Self::of(container);
        assert_eq!(self.hydrations, found.hydrations, "orders do not outlive a restart");
        let lost = self.seals.iter().find(|seal| !found.seals.contains(seal));
        assert!(lost.is_none(), "the order {lost:?} does not outlive a restart: {:?}", found.seals);
    }
}
