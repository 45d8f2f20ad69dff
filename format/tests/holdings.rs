//! What backups keep, what that is counted as, and cache regions.
//!
//! req: R23. Rules: BAK-20 to BAK-23, BAK-25, CAT-16.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::ops::Range;
use std::time::Duration;

use common::{Rng, io, new_container};
use pitstop_format::{BackupUse, CacheOptions, Container, Error, OpenMode, SLAB_LEN};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 4 * MIB;
const BLOCK: u64 = 4096;
/// Slabs of a volume that is full: those of its data, and its table.
const WHOLE: u64 = SIZE / SLAB_LEN + 1;

fn fill(container: &Container, name: &str, range: Range<u64>, byte: u8) {
    io(container, name).write_at(&vec![byte; (range.end - range.start) as usize], range.start).unwrap();
}

/// A volume of ones.
fn ones() -> (std::sync::Arc<pitstop_format::testing::SimDisk>, Container) {
    let (disk, container) = new_container(MIB);
    container.create_volume("v", SIZE).unwrap();
    fill(&container, "v", 0..SIZE, 1);
    (disk, container)
}

fn limit(bytes: u64) -> CacheOptions {
    CacheOptions { limit_bytes: Some(bytes), ..CacheOptions::default() }
}

fn used_slabs(container: &Container) -> u64 {
    container.caches()[0].used_bytes / SLAB_LEN
}

/// Lets background work look at backups, which it does several times a second.
fn look(container: &Container) {
    std::thread::sleep(Duration::from_millis(300));
    container.settle(10_000).unwrap();
}

/// Does all background work; returns the slabs that hold something then.
fn settled(container: &Container) -> u64 {
    for _ in 0..3 {
        container.settle(100_000).unwrap();
        container.commit().unwrap();
    }
    container.space().unwrap().used_bytes / SLAB_LEN
}

// rules: BAK-20, BAK-21
#[test]
fn a_region_counts_what_newer_layers_shadow() {
    let (_, container) = ones();
    container.create_cache("nightly", limit(2 * SLAB_LEN)).unwrap();
    let backup = container.begin_backup("v", Some("nightly")).unwrap();
    let used = || container.caches()[0].used_bytes;
    assert_eq!(used(), 0);
    fill(&container, "v", 0..BLOCK, 2);
    // A slab of data, and the table that leads to it.
    assert_eq!(used(), 2 * SLAB_LEN);
    assert!(!container.caches()[0].is_full() && container.caches()[0].is_high());
    fill(&container, "v", BLOCK..2 * BLOCK, 2);
    assert_eq!(used(), 2 * SLAB_LEN, "no new slab");
    fill(&container, "v", MIB..MIB + BLOCK, 2);
    assert_eq!(used(), 3 * SLAB_LEN);
    assert!(container.caches()[0].is_full());
    assert_eq!(backup.cost().unwrap().cache.unwrap().used_bytes, used());
    assert!(matches!(container.begin_backup("v", Some("nightly")), Err(Error::CacheFull { .. })));
    container.resize_cache("nightly", limit(100 * MIB)).unwrap();
    // Other backups do not count on it, and never more than the instant has.
    let other = container.begin_backup("v", None).unwrap();
    fill(&container, "v", 0..SIZE, 3);
    let BackupUse { kept_bytes, cache } = other.cost().unwrap();
    assert!(kept_bytes > 0 && cache.is_none());
    let before = container.caches()[0].used_bytes;
    for round in 0..5 {
        container.snapshot("v", &format!("kept-{round}")).unwrap();
        fill(&container, "v", 0..SIZE, round);
    }
    assert!(container.caches()[0].used_bytes <= (SIZE / SLAB_LEN + 1) * SLAB_LEN);
    assert!(container.caches()[0].used_bytes >= before);
    other.release().unwrap();
    backup.release().unwrap();
    assert_eq!(used(), 0);
}

// rule: BAK-20 — what nobody else uses any more counts in full.
#[test]
fn the_instant_of_a_deleted_volume_counts_all_that_it_keeps() {
    let (_, container) = ones();
    container.create_cache("nightly", limit(MIB)).unwrap();
    let backup = container.begin_backup("v", Some("nightly")).unwrap();
    container.delete_volume("v").unwrap();
    assert_eq!(container.caches()[0].used_bytes, (SIZE / SLAB_LEN + 1) * SLAB_LEN);
    backup.release().unwrap();
}

// rule: BAK-20 — a discard hides as much as a write, and takes no slab.
#[test]
fn what_is_discarded_is_counted() {
    for (range, least) in [(0..SIZE, WHOLE), (MIB..2 * MIB, 4), (0..SLAB_LEN, 1)] {
        let (_, container) = ones();
        container.create_cache("nightly", limit(100 * MIB)).unwrap();
        let backup = container.begin_backup("v", Some("nightly")).unwrap();
        io(&container, "v").discard(range.clone()).unwrap();
        assert!(used_slabs(&container) >= least, "{range:?}: {}", used_slabs(&container));
        fill(&container, "v", range.clone(), 2);
        let written = used_slabs(&container);
        io(&container, "v").discard(range.clone()).unwrap();
        assert!(used_slabs(&container) >= written.min(least), "{range:?}: overwritten, then discarded");
        container.snapshot("v", "later").unwrap();
        settled(&container);
        assert!(used_slabs(&container) >= written.min(least), "{range:?}: in a frozen layer");
        backup.release().unwrap();
    }
}

// rule: BAK-20 — instants that share what they keep.
#[test]
fn what_several_instants_keep_is_counted_for_each_region_and_once() {
    let (_, container) = ones();
    for name in ["one", "two"] {
        container.create_cache(name, limit(MIB)).unwrap();
    }
    let used = || container.caches().iter().map(|cache| cache.used_bytes / SLAB_LEN).collect::<Vec<_>>();
    // Two of one region, one of another, and one that has read its volume through.
    let same = [Some("one"), Some("one"), Some("two")].map(|cache| container.begin_backup("v", cache).unwrap());
    container.create_volume("w", SIZE).unwrap();
    container.refresh("w", "v").unwrap();
    assert_eq!(used(), [0, 0]);
    container.delete_volume("v").unwrap();
    assert_eq!(used(), [0, 0], "a copy needs it all");
    container.delete_volume("w").unwrap();
    assert_eq!(used(), [WHOLE, WHOLE]);
    assert_eq!(same[0].cost().unwrap().kept_bytes, WHOLE * SLAB_LEN);
    same.iter().for_each(|backup| backup.release().unwrap());

    container.create_volume("v", SIZE).unwrap();
    container.create_volume("empty", SIZE).unwrap();
    fill(&container, "v", 0..SIZE, 1);
    let live = container.begin_backup("v", Some("one")).unwrap();
    fill(&container, "v", 0..MIB, 2);
    live.end_bulk().unwrap();
    container.refresh("v", "empty").unwrap();
    // The table and the slabs of what was written meanwhile, too.
    assert_eq!(used(), [WHOLE + 5, 0]);
    live.release().unwrap();
    assert_eq!(used(), [0, 0]);
}

/// Random work on some volumes, with backups among it.
struct Work {
    container: Container,
    rng: Rng,
    volumes: Vec<String>,
    backups: Vec<pitstop_format::Backup>,
    names: u32,
}

impl Work {
    fn new(seed: u64) -> Self {
        let (_, container) = new_container(MIB);
        container.create_cache("all", limit(1 << 40)).unwrap();
        let mut work = Work { container, rng: Rng::new(seed), volumes: vec![], backups: vec![], names: 0 };
        for _ in 0..2 {
            let name = work.name();
            work.container.create_volume(&name, SIZE).unwrap();
            fill(&work.container, &name, 0..SIZE / 2, 1);
            work.volumes.push(name);
        }
        work
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("v{}", self.names)
    }

    fn any(&mut self) -> String {
        let index = self.rng.below(self.volumes.len() as u64) as usize;
        self.volumes[index].clone()
    }

    fn range(&mut self) -> Range<u64> {
        let unit = if self.rng.chance(70) { SLAB_LEN } else { BLOCK };
        let first = self.rng.below(SIZE / unit);
        let len = (1 + self.rng.below(6)).min(SIZE / unit - first);
        first * unit..(first + len) * unit
    }

    fn step(&mut self) {
        let (name, range) = (self.any(), self.range());
        match self.rng.below(14) {
            0..=3 => fill(&self.container, &name, range, 3),
            4 => io(&self.container, &name).discard(range).unwrap(),
            5 => io(&self.container, &name).discard(0..SIZE).unwrap(),
            6 | 7 => {
                let copy = self.name();
                self.container.snapshot(&name, &copy).unwrap();
                self.volumes.push(copy);
            }
            8 if self.volumes.len() > 1 => {
                self.container.delete_volume(&name).unwrap();
                self.volumes.retain(|found| *found != name);
            }
            9 => {
                let source = self.any();
                if source != name {
                    self.container.refresh(&name, &source).unwrap();
                }
            }
            10 | 11 => self.backups.push(self.container.begin_backup(&name, Some("all")).unwrap()),
            12 => {
                if let Some(backup) = self.backups.last()
                    && backup.written(0, pitstop_format::Listing::Counts).is_err()
                {
                    // Refused where the source has changed.
                    let _ended = backup.end_bulk();
                }
            }
            _ => self.container.settle(50).unwrap(),
        }
    }
}

// rule: BAK-20 — what becomes free when all backups have ended was counted before.
#[test]
fn no_more_is_free_without_backups_than_was_counted() {
    let (mut freed_in_all, mut counted_in_all) = (0, 0);
    for seed in 1..=120 {
        let mut work = Work::new(seed);
        for _ in 0..30 {
            work.step();
        }
        // Only what lies below frozen layers is given back.
        for name in work.volumes.clone() {
            let copy = work.name();
            work.container.snapshot(&name, &copy).unwrap();
        }
        let before = settled(&work.container);
        let counted = used_slabs(&work.container);
        work.backups.iter().for_each(|backup| backup.release().unwrap());
        let freed = before - settled(&work.container);
        assert!(freed <= counted, "seed {seed}: {freed} slabs were kept for backups alone, {counted} were counted");
        freed_in_all += freed;
        counted_in_all += counted;
    }
    assert!(freed_in_all > 500 && counted_in_all < 4 * freed_in_all, "{freed_in_all} of {counted_in_all}");
}

// rules: BAK-21, BAK-22 — whatever the backup's own job does.
#[test]
fn background_work_ends_the_backups_of_a_full_region() {
    let (_, container) = ones();
    container.create_cache("nightly", limit(4 * SLAB_LEN)).unwrap();
    let backup = container.begin_backup("v", Some("nightly")).unwrap();
    let other = container.begin_backup("v", None).unwrap();
    fill(&container, "v", 0..2 * SLAB_LEN, 2);
    look(&container);
    assert!(backup.high_water().is_none() && backup.ended().is_none());
    fill(&container, "v", 2 * SLAB_LEN..3 * SLAB_LEN, 2);
    look(&container);
    assert_eq!(backup.high_water().unwrap().used_bytes, 4 * SLAB_LEN);
    assert!(backup.ended().is_none());
    fill(&container, "v", 3 * SLAB_LEN..4 * SLAB_LEN, 2);
    look(&container);
    assert!(matches!(backup.ended(), Some(Error::CacheFull { used, .. }) if *used == 5 * SLAB_LEN));
    assert_eq!((container.instants(), other.ended().is_none()), (vec![other.id()], true));
    assert!(matches!(backup.end_bulk(), Err(Error::VolumeGone { .. })));
    backup.release().unwrap();
    other.release().unwrap();
}

// rules: BAK-23, BAK-25, CAT-16
#[test]
fn regions_are_made_changed_grown_and_deleted() {
    let (disk, container) = ones();
    assert!(matches!(container.create_cache("n", CacheOptions::default()), Err(Error::BadCache { .. })));
    assert!(matches!(container.create_cache("", limit(1)), Err(Error::BadName { .. })));
    let growing = CacheOptions { growth_bytes: Some(MIB), ..limit(MIB) };
    assert!(matches!(container.create_cache("n", growing), Err(Error::BadCache { .. })));
    let growing = CacheOptions { most_bytes: Some(5 * MIB / 2), ..growing };
    let cache = container.create_cache("n", growing).unwrap();
    assert_eq!((cache.limit_bytes, cache.most_bytes, cache.high_water_percent), (MIB, 5 * MIB / 2, 80));
    assert!(matches!(container.create_cache("n", growing), Err(Error::CacheExists { .. })));
    for bad in [
        CacheOptions { high_water_percent: Some(0), ..CacheOptions::default() },
        CacheOptions { high_water_percent: Some(101), ..CacheOptions::default() },
        limit(0),
        limit(1 << 61),
    ] {
        assert!(matches!(container.resize_cache("n", bad), Err(Error::BadCache { .. })), "{bad:?}");
    }
    assert!(matches!(container.resize_cache("m", limit(1)), Err(Error::NoSuchCache { .. })));
    assert!(matches!(container.begin_backup("v", Some("m")), Err(Error::NoSuchCache { .. })));
    // A name of its own: volumes do not mind.
    container.snapshot("v", "n").unwrap();
    container.delete_volume("n").unwrap();

    let backup = container.begin_backup("v", Some("n")).unwrap();
    assert!(matches!(container.delete_cache("n"), Err(Error::CacheInUse { backups: 1, .. })));
    // By as many steps as it takes.
    let wide = CacheOptions { most_bytes: Some(100 * MIB), ..limit(MIB) };
    container.resize_cache("n", wide).unwrap();
    fill(&container, "v", 0..SIZE, 2);
    look(&container);
    let cache = container.caches().swap_remove(0);
    assert!(cache.used_bytes > 2 * MIB && backup.ended().is_none());
    assert_eq!(cache.limit_bytes, cache.used_bytes.next_multiple_of(MIB));
    // A new backup finds room, too.
    container.resize_cache("n", limit(MIB)).unwrap();
    container.begin_backup("v", Some("n")).unwrap().release().unwrap();
    assert_eq!((container.caches()[0].limit_bytes, backup.ended().is_none()), (cache.limit_bytes, true));
    // Not beyond what was ordered; nor back to what was before an order.
    container.resize_cache("n", CacheOptions { most_bytes: Some(5 * MIB / 2), ..limit(MIB) }).unwrap();
    look(&container);
    assert_eq!(container.caches()[0].limit_bytes, 5 * MIB / 2);
    assert!(matches!(backup.ended(), Some(Error::CacheFull { limit, .. }) if *limit == 5 * MIB / 2));
    container.resize_cache("n", CacheOptions { most_bytes: Some(100 * MIB), ..limit(100 * MIB) }).unwrap();
    backup.release().unwrap();
    container.close().unwrap();

    let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
    assert_eq!(container.caches()[0].limit_bytes, 100 * MIB);
    container.delete_cache("n").unwrap();
    assert!(matches!(container.delete_cache("n"), Err(Error::NoSuchCache { .. })));
    assert_eq!(container.caches(), []);
}
