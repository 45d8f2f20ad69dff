//! Copies of several volumes at one instant: no order of writes across volumes and queues is inverted, and a crash leaves
//! all copies or none.
//!
//! req: R2, R4. Rules: SNP-20 to SNP-23, SNP-28.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{StopOnDrop, StopOnPanic, io, new_container};
use pitstop_format::check::{Outcome, check};
use pitstop_format::testing::{Event, Fate};
use pitstop_format::{Container, Error, Maintained, NewCopy, OpenMode, SLAB_LEN, VolumeIo};

const SIZE: u64 = 4 << 20;

fn put(io: &VolumeIo, offset: u64, value: u64) {
    io.write_at(&value.to_le_bytes().repeat(64), offset).unwrap();
}

fn get(io: &VolumeIo, offset: u64) -> u64 {
    let mut sector = [0; 512];
    io.read_at(&mut sector, offset).unwrap();
    assert!(sector.chunks(8).all(|word| word == &sector[..8]), "torn sector at {offset}");
    u64::from_le_bytes(sector[..8].try_into().unwrap())
}

fn group(pairs: &[(&str, &str)]) -> Vec<NewCopy> {
    let copy = |&(source, name): &(&str, &str)| NewCopy { source: source.to_owned(), name: name.to_owned() };
    pairs.iter().map(copy).collect()
}

fn names(container: &Container) -> Vec<String> {
    container.volumes().into_iter().map(|volume| volume.name).collect()
}

const VOLUMES: u64 = 8;
const SERIES: u64 = 2;
const THREADS: u64 = 4;
const GROUPS: u64 = 1500;

/// Write number `k` of a series goes to volume `k % VOLUMES`, at the series' place, when number `k - 1` has completed,
/// on whichever thread.
struct Series {
    place: u64,
    next: Mutex<u64>,
    completed: AtomicU64,
}

impl Series {
    fn new(n: u64) -> Self {
        Self { place: n * SLAB_LEN, next: Mutex::new(0), completed: AtomicU64::new(0) }
    }

    fn write(&self, volumes: &[VolumeIo]) {
        let mut next = self.next.lock().unwrap();
        *next += 1;
        put(&volumes[(*next % VOLUMES) as usize], self.place, *next);
        self.completed.store(*next, Ordering::Release);
    }

    /// The copies show the writes up to one of them, and no later one.
    fn assert_is_instant(&self, copies: &[VolumeIo], completed: u64) {
        let shown: Vec<_> = copies.iter().map(|copy| get(copy, self.place)).collect();
        let last = *shown.iter().max().unwrap();
        assert!(last >= completed, "{completed} writes had completed: {shown:?}");
        for (volume, &value) in (0u64..).zip(&shown) {
            let newest = (0..VOLUMES).find_map(|back| last.checked_sub(back).filter(|k| k % VOLUMES == volume));
            assert_eq!(value, newest.unwrap_or(0), "volume {volume} is of another instant: {shown:?}");
        }
    }
}

// rule: SNP-20, SNP-21
#[test]
fn a_group_never_has_a_later_write_without_an_earlier_one_on_any_volume_or_queue() {
    let (disk, container) = new_container(1 << 20);
    let sources: Vec<_> = (0..VOLUMES).map(|n| format!("v{n}")).collect();
    sources.iter().for_each(|name| drop(container.create_volume(name, SIZE).unwrap()));
    let series: Vec<_> = (0..SERIES).map(Series::new).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop_all = StopOnDrop(&stop);
        for n in 0..THREADS {
            let (container, sources, stop) = (&container, &sources, &stop);
            let series = &series[(n % SERIES) as usize];
            scope.spawn(move || {
                let _stop_all = StopOnPanic(stop);
                let volumes: Vec<_> = sources.iter().map(|name| io(container, name)).collect();
                while !stop.load(Ordering::Relaxed) {
                    series.write(&volumes);
                }
            });
        }
        let (maintained, stopped) = (&container, &stop);
        scope.spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if maintained.maintain().unwrap() == Maintained::Idle {
                    maintained.wait_for_work(std::time::Duration::from_millis(2));
                }
            }
        });
        for n in 0..GROUPS {
            assert!(!stop.load(Ordering::Relaxed), "a writer failed");
            let completed: Vec<_> = series.iter().map(|series| series.completed.load(Ordering::Acquire)).collect();
            let copy = |source: &String| NewCopy { source: source.clone(), name: format!("{source}-{n}") };
            let copies: Vec<_> = sources.iter().map(copy).collect();
            let made = container.snapshot_group(&copies).unwrap();
            assert!(made.iter().map(|copy| &copy.name).eq(copies.iter().map(|copy| &copy.name)));
            let shown: Vec<_> = copies.iter().map(|copy| io(&container, &copy.name)).collect();
            series.iter().zip(completed).for_each(|(series, completed)| series.assert_is_instant(&shown, completed));
            copies.iter().for_each(|copy| container.delete_volume(&copy.name).unwrap());
        }
        drop(stop_all);
    });
    let written: Vec<_> = series.iter().map(|series| series.completed.load(Ordering::Acquire)).collect();
    println!("wrote {written:?} times");
    container.settle(100_000).unwrap();
    container.close().unwrap();
    assert!(check(&*disk).unwrap().findings.is_empty());
}

// rule: SNP-22
#[test]
fn a_crash_at_any_write_leaves_all_copies_of_a_group_or_none() {
    let (disk, container) = new_container(SLAB_LEN);
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        container.create_volume(name, SIZE).unwrap();
        put(&io(&container, name), 0, 1 + n as u64);
    }
    container.create_volume("untouched", SIZE).unwrap();
    container.commit().unwrap();
    let mut crash = disk.record();
    // Not durable yet, and not even committed: the copies have it all the same.
    put(&io(&container, "b"), SLAB_LEN, 7);
    let pairs = [("a", "a-1"), ("b", "b-1"), ("c", "c-1"), ("untouched", "u-1"), ("b", "b-2")];
    container.snapshot_group(&group(&pairs)).unwrap();
    disk.mark(1);
    put(&io(&container, "a"), 0, 100);
    io(&container, "a").flush().unwrap();
    let (mut promised, mut with, mut without) = (false, 0, 0);
    for event in &disk.take_events() {
        crash.step(event);
        promised |= matches!(event, Event::Mark(1));
        for keep in [0, 1, 2, 3] {
            // Nothing, everything, every other sector that was not synced.
            let left = crash.disk(|sector| {
                let kept = keep == 1 || keep == 2 && sector % 2 == 0 || keep == 3 && sector % 2 == 1;
                if kept { Fate::Kept } else { Fate::Lost }
            });
            assert_eq!(check(&*left).unwrap().outcome(), Outcome::Clean);
            let container = Container::open(left, OpenMode::ReadWrite).unwrap();
            let there = pairs.iter().filter(|(_, name)| container.volume(name).is_ok()).count();
            assert!(there == 0 || there == pairs.len(), "{there} copies of {}", pairs.len());
            assert!(!promised || there != 0, "a group that had returned is gone");
            if there == 0 {
                without += 1;
                continue;
            }
            with += 1;
            let shown = |name: &str, offset| get(&io(&container, name), offset);
            assert_eq!([shown("a-1", 0), shown("b-1", 0), shown("c-1", 0), shown("u-1", 0)], [1, 2, 3, 0]);
            assert_eq!([shown("b-1", SLAB_LEN), shown("b-2", SLAB_LEN), shown("b-2", 0)], [7, 7, 2]);
        }
    }
    assert!(with > 10 && without > 10, "{with} crashes after and {without} before the group show little");
}

// rule: SNP-20 — the copies are volumes of one instant, each with its own source's past.
#[test]
fn the_copies_of_a_group_have_one_instant_and_each_its_source() {
    let (_, container) = new_container(1 << 20);
    container.create_volume("a", SIZE).unwrap();
    container.create_volume("b", 2 * SIZE).unwrap();
    put(&io(&container, "a"), 0, 1);
    container.snapshot("a", "older").unwrap();
    let made = container.snapshot_group(&group(&[("a", "a-1"), ("b", "b-1"), ("a", "a-2"), ("older", "o-1")])).unwrap();
    let origins: Vec<_> = made.iter().map(|copy| copy.origin.clone().unwrap()).collect();
    assert!(origins.iter().all(|origin| origin.instant_unix_ns == origins[0].instant_unix_ns), "{origins:?}");
    assert!(origins.iter().map(|origin| origin.name.as_str()).eq(["a", "b", "a", "older"]));
    assert_eq!((made[0].size_bytes, made[1].size_bytes), (SIZE, 2 * SIZE));
    put(&io(&container, "a"), 0, 2);
    put(&io(&container, "a-1"), 0, 3);
    let shown = |name| get(&io(&container, name), 0);
    assert_eq!([shown("a"), shown("a-1"), shown("a-2"), shown("older"), shown("o-1")], [2, 3, 1, 1, 1]);
}

// rule: SNP-23
#[test]
fn a_group_that_cannot_be_made_changes_nothing() {
    let (disk, container) = new_container(SLAB_LEN);
    container.create_volume("a", SIZE).unwrap();
    container.create_volume("b", SIZE).unwrap();
    put(&io(&container, "a"), 0, 1);
    container.commit().unwrap();
    let (layers, before) = (container.layers().len(), disk.bytes());
    let fails = |pairs: &[(&str, &str)]| container.snapshot_group(&group(pairs)).unwrap_err();
    assert!(matches!(fails(&[("a", "x"), ("b", "x")]), Error::SameName { name } if name == "x"));
    assert!(matches!(fails(&[("a", "x"), ("nope", "y")]), Error::NoSuchVolume { name } if name == "nope"));
    assert!(matches!(fails(&[("a", "x"), ("b", "a")]), Error::VolumeExists { name } if name == "a"));
    assert!(matches!(fails(&[("a", "x"), ("b", "no/slash")]), Error::BadName { .. }));
    let many: Vec<_> = (0..1000).map(|n| format!("x{n}")).collect();
    let many: Vec<_> = many.iter().map(|name| ("a", name.as_str())).collect();
    let Error::TooManyCopies { copies: 1000, most } = fails(&many) else { panic!("not too many") };
    assert!(container.snapshot_group(&[]).unwrap().is_empty());
    assert_eq!((names(&container).len(), container.layers().len()), (2, layers));
    container.commit().unwrap();
    assert!(before == disk.bytes(), "a refused group has written");
    // As many as it says fit, even with the smallest journal.
    assert!(most >= 8, "{most}");
    assert!(fails(&many[..=most]).to_string().contains("smaller groups"));
    let sources: Vec<_> = (0..most).map(|n| format!("s{n}")).collect();
    for source in &sources {
        container.create_volume(source, SIZE).unwrap();
        put(&io(&container, source), 0, 1);
    }
    let pairs: Vec<_> = sources.iter().zip(&many).map(|(source, (_, name))| (source.as_str(), *name)).collect();
    assert_eq!(container.snapshot_group(&group(&pairs)).unwrap().len(), most);
}

// rule: SNP-28 — neither a target that cannot be let go nor a lack of space for the copy leaves the source frozen.
#[test]
fn a_refused_copy_freezes_nothing() {
    let (_, container) = new_container(SLAB_LEN);
    container.create_volume("deep", SIZE).unwrap();
    container.create_volume("source", SIZE).unwrap();
    put(&io(&container, "source"), 0, 1);
    for n in 0..100 {
        put(&io(&container, "deep"), 0, 1);
        container.snapshot("deep", &format!("kept-{n}")).unwrap();
    }
    let layers = container.layers().len();
    assert!(matches!(container.refresh("deep", "source"), Err(Error::TooManyLayers { .. })));
    assert!(matches!(container.refresh("nope", "source"), Err(Error::NoSuchVolume { .. })));
    assert_eq!(container.layers().len(), layers);

    let (disk, container) = new_container(1 << 20);
    container.create_volume("source", 8 << 30).unwrap();
    // All slots of a catalog slab but one, which is enough for a new head of the source.
    (0..254).for_each(|n| drop(container.create_volume(&format!("v{n}"), 512).unwrap()));
    disk.limit(Some(pitstop_format::Disk::len(&*disk).unwrap()));
    let full = (0..).find_map(|n| io(&container, "source").write_at(&[1; 4096], n * SLAB_LEN).err());
    assert!(matches!(full, Some(Error::NoSpace { .. })), "{full:?}");
    let layers = container.layers().len();
    assert!(matches!(container.snapshot("source", "copy"), Err(Error::NoSpace { .. })));
    assert_eq!(container.layers().len(), layers);
}
