//! Threads that write, copy, discard and flush at once: what a copy shows is one instant of its source.
//!
//! req: R1, R2, R4, R7. Rules: SNP-1, SNP-2, JNL-6.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{StopOnDrop, StopOnPanic};
use pitstop_format::testing::SimDisk;
use pitstop_format::{Container, CreateOptions, Maintained, OpenMode, ViewEnd, VolumeIo};

const WRITERS: u64 = 3;
const COPIES: u64 = 6000;
/// Bytes between a writer's places: in chunks of their own, and one place shared in halves by two writers.
const STRIDE: u64 = 1 << 20;

fn counter(io: &VolumeIo, offset: u64) -> u64 {
    let mut sector = [0; 512];
    io.read_at(&mut sector, offset).unwrap();
    assert!(sector.chunks(8).all(|word| word == &sector[..8]), "torn sector at {offset}");
    u64::from_le_bytes(sector[..8].try_into().unwrap())
}

fn put(io: &VolumeIo, offset: u64, value: u64, len: usize) {
    io.write_at(&value.to_le_bytes().repeat(len / 8), offset).unwrap();
}

/// Writer `n` counts: writes its counter at place 0, and only when that has completed, at place 1. Sectors of one shared
/// block carry the counters too, so that first writes of parts of a block meet.
fn write(io: &VolumeIo, n: u64, stop: &AtomicBool, done: &AtomicU64) {
    let base = n * STRIDE;
    let mut value = 0;
    while !stop.load(Ordering::Relaxed) {
        value += 1;
        put(io, base, value, 512);
        put(io, base + (512 << 10), value, 8192);
        put(io, WRITERS * STRIDE + n * 512, value, 512);
        if value % 16 == 0 {
            io.flush().unwrap();
        }
        if value % 64 == 0 {
            io.discard(base + (600 << 10)..base + (900 << 10)).unwrap();
            put(io, base + (640 << 10), value, 64 << 10);
        }
        done.store(value, Ordering::Release);
    }
}

fn check_copy(io: &VolumeIo, before: &[u64]) {
    for n in 0..WRITERS {
        let base = n * STRIDE;
        let first = counter(io, base);
        let second = counter(io, base + (512 << 10));
        let third = counter(io, WRITERS * STRIDE + n * 512);
        assert!(
            third >= before[n as usize],
            "writer {n}: lost {} of what had completed, found {third}",
            before[n as usize]
        );
        assert!(first >= second && second >= third, "writer {n}: {first} {second} {third} is no instant");
        assert!(first - third <= 1, "writer {n}: {first} {second} {third} is no instant");
    }
}

#[test]
fn a_copy_made_among_busy_writers_is_one_instant_of_all_of_them() {
    let disk = SimDisk::new();
    let options = CreateOptions { journal_len_bytes: 1 << 20, ..CreateOptions::default() };
    Container::create(disk.clone(), &options).unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    container.create_volume("golden", 8 << 20).unwrap();
    container.create_volume("target", 8 << 20).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let done: Vec<AtomicU64> = (0..WRITERS).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        let guard = StopOnDrop(&stop);
        for n in 0..WRITERS {
            let (container, stop, done) = (&container, &stop, &done);
            scope.spawn(move || {
                let _stop_all = StopOnPanic(stop);
                let io = VolumeIo::new(container, container.volume("golden").unwrap());
                write(&io, n, stop, &done[n as usize]);
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
        for copy in 0..COPIES {
            assert!(!stop.load(Ordering::Relaxed), "a writer failed");
            let before: Vec<u64> = done.iter().map(|value| value.load(Ordering::Acquire)).collect();
            let name = if copy % 3 == 0 {
                container.refresh("target", "golden").unwrap();
                "target".to_owned()
            } else {
                let name = format!("copy-{copy}");
                container.snapshot("golden", &name).unwrap();
                name
            };
            let io = VolumeIo::new(&container, container.volume(&name).unwrap());
            check_copy(&io, &before);
            // The copy is a volume of its own: writing it disturbs nobody.
            put(&io, 0, u64::MAX, 4096);
            if copy % 3 == 2 && copy > 30 {
                container.delete_volume(&format!("copy-{}", copy - 30)).unwrap();
            }
        }
        drop(guard);
    });
    container.settle(100_000).unwrap();
    let values: Vec<u64> = done.iter().map(|value| value.load(Ordering::Acquire)).collect();
    println!("writers wrote {values:?} times");
    check_copy(&VolumeIo::new(&container, container.volume("golden").unwrap()), &values);
    container.close().unwrap();
    let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
    check_copy(&VolumeIo::new(&container, container.volume("golden").unwrap()), &values);
}

// rules: VIEW-2 to VIEW-4 — each owner finds what it wrote, the old one also what the new one wrote, block by block and in
// parts, while views come and go.
#[test]
fn a_view_and_its_source_are_written_by_two_owners() {
    const PART: u64 = 0;
    const WHOLE: u64 = 4096;
    let disk = SimDisk::new();
    let options = CreateOptions { journal_len_bytes: 1 << 20, ..CreateOptions::default() };
    Container::create(disk.clone(), &options).unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    container.create_volume("a", 1 << 20).unwrap();
    for round in 1..300u64 {
        container.create_view("a", "b").unwrap();
        let io = |name| VolumeIo::new(&container, container.volume(name).unwrap());
        let before = counter(&io("b"), PART + 512);
        std::thread::scope(|scope| {
            let (a, b) = (io("a"), io("b"));
            scope.spawn(move || {
                for value in round << 32..(round << 32) + 20 {
                    put(&b, PART, value, 512);
                    assert_eq!(counter(&a, PART), value, "a part of a block");
                    put(&b, WHOLE, value, 4096);
                    assert_eq!(counter(&a, WHOLE), value, "a block of which the source writes a part");
                    assert_eq!((counter(&b, PART + 512), counter(&b, WHOLE + 512)), (before, value));
                }
            });
            let a = io("a");
            scope.spawn(move || {
                for value in round << 32..(round << 32) + 20 {
                    put(&a, PART + 512, value, 512);
                    assert_eq!(counter(&a, PART + 512), value, "the source's own part");
                    put(&a, WHOLE + 512, value, 512);
                    if value % 8 == 0 {
                        a.flush().unwrap();
                    }
                }
            });
            let maintained = &container;
            scope.spawn(move || {
                for _ in 0..20 {
                    maintained.maintain().unwrap();
                }
            });
        });
        let own = counter(&io("a"), PART + 512);
        let end = if round % 2 == 0 { ViewEnd::Drop } else { ViewEnd::Keep };
        container.end_view("b", end).unwrap();
        assert_eq!(counter(&io("a"), PART + 512), if end == ViewEnd::Drop { before } else { own });
        container.delete_volume("b").unwrap();
    }
    container.settle(100_000).unwrap();
    container.close().unwrap();
    assert!(pitstop_format::check::check(&*disk).unwrap().findings.is_empty());
}

// rule: VOL-12 — commands from several threads run one after the other and never meet half-done work.
#[test]
fn commands_from_many_threads_take_turns() {
    let disk = SimDisk::new();
    let options = CreateOptions { journal_len_bytes: 1 << 20, ..CreateOptions::default() };
    Container::create(disk.clone(), &options).unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    container.create_volume("golden", 1 << 20).unwrap();
    std::thread::scope(|scope| {
        for n in 0..4u64 {
            let container = &container;
            scope.spawn(move || {
                let (a, b) = (format!("a{n}"), format!("b{n}"));
                for round in 0..60 {
                    container.snapshot("golden", &a).unwrap();
                    put(&VolumeIo::new(container, container.volume(&a).unwrap()), n * 8192, round, 4096);
                    container.rename_volume(&a, &b).unwrap();
                    if n == 0 {
                        container.refresh("golden", &b).unwrap();
                    }
                    assert_eq!(counter(&VolumeIo::new(container, container.volume(&b).unwrap()), n * 8192), round);
                    container.delete_volume(&b).unwrap();
                    container.maintain().unwrap();
                }
            });
        }
    });
    container.settle(100_000).unwrap();
    assert_eq!(container.volumes().len(), 1);
    container.close().unwrap();
    assert!(pitstop_format::check::check(&*disk).unwrap().findings.is_empty());
}
