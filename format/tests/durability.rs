//! Volumes whose flushes promise nothing: what that gains, what it costs, and that nobody else pays for it.
//!
//! req: R31. Rules: VOL-40 to VOL-47, JNL-50, CAT-20; random work with crashes is in model.rs.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use common::{io, new_container};
use pitstop_format::testing::{Crash, Event, Fate, SimDisk};
use pitstop_format::{
    Container, Durability, Error, FlushStep, Listing, NewCopy, OpenMode, Result, SLAB_LEN, VolumeChange, VolumeInfo,
};

const SIZE: u64 = 4 << 20;

fn find(container: &Container, name: &str) -> VolumeInfo {
    container.volumes().into_iter().find(|volume| volume.name == name).unwrap()
}

fn open(disk: &Arc<SimDisk>) -> Container {
    Container::open(disk.clone(), OpenMode::ReadWrite).unwrap()
}

fn put(container: &Container, name: &str, offset: u64, value: u8) {
    io(container, name).write_at(&[value; 4096], offset).unwrap();
}

fn get(container: &Container, name: &str, offset: u64) -> u8 {
    let mut bytes = [0; 4096];
    io(container, name).read_at(&mut bytes, offset).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{name} is mixed at {offset}");
    bytes[0]
}

fn set(durability: Durability) -> VolumeChange {
    VolumeChange { durability: Some(durability), defined: false }
}

/// What is left when nothing that was not synced has been written.
fn power_failure(disk: &SimDisk, crash: &mut Crash) -> Arc<SimDisk> {
    disk.take_events().iter().for_each(|event| crash.step(event));
    crash.disk(|_| Fate::Lost)
}

/// A container that was not closed, with `golden` (4096 bytes of 1), and `ci`, its disposable copy, which is undefined.
fn with_undefined() -> (Arc<SimDisk>, Container) {
    let (disk, container) = new_container(SLAB_LEN);
    container.create_volume("golden", SIZE).unwrap();
    put(&container, "golden", 0, 1);
    container.snapshot("golden", "ci").unwrap();
    container.set_volume("ci", set(Durability::None)).unwrap();
    put(&container, "ci", 0, 2);
    container.commit().unwrap();
    drop(container);
    let container = open(&disk);
    (disk, container)
}

fn is_refused<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Undefined { name }) if name == "ci")
}

// rule: VOL-40, VOL-41, VOL-44, JNL-50
#[test]
fn a_flush_that_promises_nothing_is_over_at_once_and_weakens_nobody() {
    let (disk, container) = new_container(1 << 20);
    container.create_volume_with("ci", SIZE, Durability::None).unwrap();
    container.create_volume("kept", SIZE).unwrap();
    for name in ["ci", "kept"] {
        put(&container, name, 0, 1);
    }
    container.commit().unwrap();
    let mut crash = disk.record();
    put(&container, "ci", 0, 2); // in place
    put(&container, "ci", SLAB_LEN, 2);
    put(&container, "kept", 0, 2);
    put(&container, "kept", SLAB_LEN, 2);
    let written = disk.take_events();
    let mut flush = container.volume("ci").unwrap().start_flush();
    assert!(matches!(flush.poll(Waker::noop()), Ok(FlushStep::Done)));
    io(&container, "ci").flush().unwrap();
    assert_eq!(disk.take_events().len(), 0, "a flush that promises nothing has asked the disk for something");
    written.iter().for_each(|event| crash.step(event));
    {
        let left = open(&crash.disk(|_| Fate::Lost));
        assert_eq!([get(&left, "ci", 0), get(&left, "ci", SLAB_LEN)], [1, 0], "this crash shows little");
        assert!(find(&left, "ci").undefined && !find(&left, "kept").undefined);
    }
    // What is promised of the other one holds, and its commit takes both along.
    io(&container, "kept").flush().unwrap();
    let left = open(&power_failure(&disk, &mut crash));
    assert_eq!([get(&left, "kept", 0), get(&left, "kept", SLAB_LEN)], [2, 2]);
    assert_eq!([get(&left, "ci", 0), get(&left, "ci", SLAB_LEN)], [2, 2]);
    assert!(find(&left, "ci").undefined, "nobody promised that");
}

// rule: VOL-44, VOL-45, CAT-20
#[test]
fn an_undefined_volume_is_no_source_and_everything_else_works() {
    let (disk, container) = with_undefined();
    let refused = [
        container.snapshot("ci", "copy").map(drop),
        container.refresh("golden", "ci").map(drop),
        container.diff("golden", "ci", 0, Listing::Counts).map(drop),
        container.diff("ci", "golden", 0, Listing::Counts).map(drop),
        container.defined_volume("ci").map(drop),
        container
            .snapshot_group(
                &["golden", "ci"].map(|source| NewCopy { source: source.into(), name: format!("{source}-1") }),
            )
            .map(drop),
    ];
    for (number, result) in refused.into_iter().enumerate() {
        assert!(is_refused(result), "number {number}");
    }
    assert_eq!(container.volumes().len(), 2, "a refused group has made a copy");
    let text = container.snapshot("ci", "copy").unwrap_err().to_string();
    assert!(text.contains("refresh") && text.contains("--defined"), "{text}");
    // It is served nobody's, but it is there.
    assert!(get(&container, "ci", 0) <= 2);
    container.map("ci", 0, Listing::Counts).unwrap();
    container.rename_volume("ci", "c").unwrap();
    container.rename_volume("c", "ci").unwrap();
    container.set_volume("ci", set(Durability::Flush)).unwrap();
    assert!(find(&container, "ci").undefined, "what flushes promise from now on does not mend it");
    container.close().unwrap();
    let container = open(&disk);
    assert!(find(&container, "ci").undefined, "closing in order does not mend it");
    container.delete_volume("ci").unwrap();
}

// rule: VOL-44
#[test]
fn a_reader_shows_what_the_next_opening_will_make_undefined_and_writes_nothing() {
    let (disk, container) = new_container(SLAB_LEN);
    container.create_volume_with("ci", SIZE, Durability::None).unwrap();
    drop(container);
    let before = disk.copy();
    let reader = Container::open(disk.clone(), OpenMode::ReadOnly).unwrap();
    assert!(find(&reader, "ci").undefined);
    assert!(is_refused(reader.defined_volume("ci").map(drop)));
    reader.close().unwrap();
    assert!(disk.is_same(&before));
}

// rule: VOL-42, VOL-46, SNP-27
#[test]
fn a_refresh_or_a_word_makes_it_defined_again() {
    let (_, container) = with_undefined();
    let info = container.refresh("ci", "golden").unwrap();
    assert!(!info.undefined && info.durability == Durability::None);
    assert_eq!(get(&container, "ci", 0), 1);
    container.snapshot("ci", "copy").unwrap();
    assert_eq!(find(&container, "copy").durability, Durability::Flush, "a copy is kept");
    let (disk, container) = with_undefined();
    let info = container.set_volume("ci", VolumeChange { durability: None, defined: true }).unwrap();
    assert!(!info.undefined && info.durability == Durability::None);
    container.close().unwrap();
    let container = open(&disk);
    assert!(!find(&container, "ci").undefined);
    container.snapshot("ci", "copy").unwrap();
}

// rule: VOL-47
#[test]
fn closed_in_order_it_is_durable_and_stays_defined() {
    let (disk, container) = new_container(1 << 20);
    container.create_volume_with("ci", SIZE, Durability::None).unwrap();
    put(&container, "ci", 0, 1);
    container.commit().unwrap();
    let mut crash = disk.record();
    put(&container, "ci", 0, 2); // in place
    put(&container, "ci", SLAB_LEN, 2);
    container.close().unwrap();
    let left = open(&power_failure(&disk, &mut crash));
    assert!(!find(&left, "ci").undefined);
    assert_eq!([get(&left, "ci", 0), get(&left, "ci", SLAB_LEN)], [2, 2]);
    // Who opens it and does not close it, has not closed it.
    let disk = power_failure(&disk, &mut crash);
    drop(open(&disk));
    assert!(find(&open(&disk), "ci").undefined);
}

// rule: VOL-42
#[test]
fn a_copy_of_it_is_whole_after_a_crash() {
    let (disk, container) = new_container(1 << 20);
    container.create_volume_with("ci", SIZE, Durability::None).unwrap();
    container.create_volume("target", SIZE).unwrap();
    put(&container, "ci", 0, 1);
    container.commit().unwrap();
    let mut crash = disk.record();
    for value in [2, 3] {
        put(&container, "ci", 0, value); // in place, then behind a snapshot a first write
        put(&container, "ci", SLAB_LEN, value);
        match value {
            2 => drop(container.snapshot("ci", "copy").unwrap()),
            _ => drop(container.refresh("target", "ci").unwrap()),
        }
        put(&container, "ci", 0, 9);
    }
    let left = open(&power_failure(&disk, &mut crash));
    assert!(find(&left, "ci").undefined);
    for (name, value) in [("copy", 2), ("target", 3)] {
        let info = find(&left, name);
        assert!(!info.undefined && info.durability == Durability::Flush);
        assert_eq!([get(&left, name, 0), get(&left, name, SLAB_LEN)], [value, value], "{name}");
    }
}

// rule: VOL-43
#[test]
fn set_to_flush_it_keeps_what_had_completed() {
    let (disk, container) = new_container(1 << 20);
    container.create_volume_with("ci", SIZE, Durability::None).unwrap();
    put(&container, "ci", 0, 1);
    container.commit().unwrap();
    let mut crash = disk.record();
    put(&container, "ci", 0, 2); // in place: no change of metadata asks for a sync
    io(&container, "ci").flush().unwrap();
    container.set_volume("ci", set(Durability::Flush)).unwrap();
    let left = open(&power_failure(&disk, &mut crash));
    assert!(!find(&left, "ci").undefined);
    assert_eq!(get(&left, "ci", 0), 2);
    put(&container, "ci", 0, 3);
    io(&container, "ci").flush().unwrap();
    assert_eq!(get(&open(&power_failure(&disk, &mut crash)), "ci", 0), 3);
}

/// Whatever a crash in the middle of the command leaves: what was flushed before is there, or the volume says that it may
/// not be.
// rule: VOL-43, VOL-44
#[test]
fn set_to_none_it_is_so_only_when_the_catalog_says_so() {
    let (disk, container) = new_container(1 << 20);
    container.create_volume("ci", SIZE).unwrap();
    put(&container, "ci", 0, 1);
    container.commit().unwrap();
    let mut crash = disk.record();
    let (guest, flushes) = (container.clone(), Arc::new(AtomicU64::new(0)));
    let begun = flushes.clone();
    disk.set_hook(Some(Box::new(move |_| {
        // In the middle of the command's own commit.
        let step = guest.volume("ci").unwrap().start_flush().poll(Waker::noop());
        assert!(!matches!(step, Ok(FlushStep::Done)), "a flush promises nothing before the catalog says so");
        begun.fetch_add(1, Ordering::Relaxed);
    })));
    container.set_volume("ci", set(Durability::None)).unwrap();
    disk.set_hook(None);
    assert!(flushes.load(Ordering::Relaxed) > 0, "no flush began in the middle of the command");
    let (mut kept, mut lost) = (0, 0);
    for event in disk.take_events() {
        crash.step(&event);
        for fate in [Fate::Lost, Fate::Kept] {
            let left = open(&crash.disk(|_| fate));
            let info = find(&left, "ci");
            assert_eq!(info.undefined, info.durability == Durability::None);
            *(if info.undefined { &mut lost } else { &mut kept }) += 1;
        }
    }
    assert!(kept > 0 && lost > 0, "{kept} crashes before and {lost} after the change show little");
}

// rule: VOL-44
#[test]
fn very_many_are_marked_whatever_crashes_meanwhile() {
    const MANY: usize = 200;
    // The smallest journal takes 63 slots at once.
    let (disk, container) = new_container(SLAB_LEN);
    for n in 0..MANY {
        container.create_volume_with(&format!("ci-{n}"), SIZE, Durability::None).unwrap();
    }
    container.create_volume("kept", SIZE).unwrap();
    drop(container);
    let disk = disk.copy();
    let mut crash = disk.record();
    let undefined = |container: &Container| container.volumes().iter().filter(|volume| volume.undefined).count();
    let container = open(&disk);
    assert_eq!(undefined(&container), MANY);
    assert!(!find(&container, "kept").undefined);
    let mut states = 0;
    for event in disk.take_events() {
        crash.step(&event);
        if matches!(event, Event::Write { .. } | Event::Durable(_) | Event::SyncEnded(_)) {
            for fate in [Fate::Lost, Fate::Kept] {
                let left = crash.disk(|_| fate);
                let container = open(&left);
                assert_eq!(undefined(&container), MANY);
                container.close().unwrap();
                assert_eq!(undefined(&open(&left)), MANY);
                states += 1;
            }
        }
    }
    assert!(states > 10, "{states} crashes show little");
}
