//! A check of a container in use, among threads that write, copy, refresh, delete and do background work.
//!
//! Rules: CHK-24 to CHK-26.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pitstop_format::check::{Outcome, check};
use pitstop_format::testing::SimDisk;
use pitstop_format::{Container, CreateOptions, Disk, Error, Maintained, OpenMode, SLAB_LEN, VolumeIo};

/// Checks that must come to an end.
const CHECKS: u32 = 100;
const SIZE: u64 = 64 << 20;
/// Bytes that a page of a table describes.
const PAGE_SPAN: u64 = 128 * SLAB_LEN;

thread_local! {
    /// Whether this thread's reads take long.
    static SLOW: Cell<bool> = const { Cell::new(false) };
}

/// A disk on which a walk takes long enough for others to get in its way.
#[derive(Debug)]
struct SlowDisk(Arc<SimDisk>);

impl Disk for SlowDisk {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        if SLOW.get() {
            std::thread::sleep(Duration::from_micros(100));
        }
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> std::io::Result<()> {
        self.0.write_at(buf, offset)
    }

    fn write_at_durable(&self, buf: &[u8], offset: u64) -> std::io::Result<()> {
        self.0.write_at_durable(buf, offset)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.0.sync()
    }

    fn grow(&self, len: u64) -> std::io::Result<()> {
        self.0.grow(len)
    }
}

fn open(journal_len_bytes: u64) -> (Arc<SimDisk>, Container) {
    let disk = SimDisk::new();
    Container::create(disk.clone(), &CreateOptions { journal_len_bytes, ..CreateOptions::default() }).unwrap();
    let container = Container::open(Arc::new(SlowDisk(disk.clone())), OpenMode::ReadWrite).unwrap();
    (disk, container)
}

fn write_for_ever(container: &Container, name: &str, stop: &AtomicBool) {
    let io = VolumeIo::new(container, container.volume(name).unwrap());
    for round in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let at = round.wrapping_mul(7919) % (SIZE / 4096) * 4096;
        io.write_at(&[0xee; 4096], at).unwrap();
        if round % 3 == 0 {
            let end = (at + 5 * SLAB_LEN).min(SIZE);
            io.discard(at..end).unwrap();
        }
        if round % 8 == 0 {
            io.flush().unwrap();
        }
        // Else the journal would be full all the time, and every walk in vain.
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Makes copies with tables of their own and deletes them, so that tables are freed and their slabs become guest data.
fn copy_for_ever(container: &Container, stop: &AtomicBool) {
    for round in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let name = format!("copy-{}", round % 5);
        container.snapshot("a", &name).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        let io = VolumeIo::new(container, container.volume(&name).unwrap());
        io.write_at(&[0xdd; 4096], round % 2 * PAGE_SPAN).unwrap();
        if round % 2 == 1 {
            container.refresh(&name, "b").unwrap();
        }
        if round % 7 == 0 {
            container.rename_volume(&name, "renamed").unwrap();
            container.delete_volume("renamed").unwrap();
        } else {
            container.delete_volume(&name).unwrap();
        }
    }
}

fn maintain_for_ever(container: &Container, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if container.maintain().unwrap() == Maintained::Idle {
            container.wait_for_work(Duration::from_millis(2));
        }
    }
}

/// Stops the others also when an assertion fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

// rules: CHK-24, CHK-25, CHK-26
#[test]
fn checks_among_busy_threads_find_nothing() {
    let (disk, container) = open(2 << 20);
    for name in ["a", "b"] {
        container.create_volume(name, SIZE).unwrap();
    }
    let stop = AtomicBool::new(false);
    let (mut done, mut busy) = (0, 0);
    std::thread::scope(|scope| {
        let guard = StopOnDrop(&stop);
        let (container, stop) = (&container, &stop);
        for name in ["a", "b"] {
            scope.spawn(move || {
                let _guard = StopOnDrop(stop);
                write_for_ever(container, name, stop);
            });
        }
        scope.spawn(move || {
            let _guard = StopOnDrop(stop);
            copy_for_ever(container, stop);
        });
        scope.spawn(move || {
            let _guard = StopOnDrop(stop);
            maintain_for_ever(container, stop);
        });
        SLOW.set(true);
        while done < CHECKS && busy < 100 {
            assert!(!stop.load(Ordering::Relaxed), "another thread failed");
            match container.check(&AtomicBool::new(false)) {
                Ok(report) => {
                    assert_eq!(report.outcome(), Outcome::Clean, "after {done} checks: {report:#?}");
                    done += 1;
                }
                Err(Error::TooBusyToCheck { .. }) => busy += 1,
                Err(error) => panic!("after {done} checks: {error}"),
            }
        }
        drop(guard);
    });
    println!("{done} checks, {busy} times too busy");
    assert_eq!(done, CHECKS, "{busy} times too busy");
    SLOW.set(false);
    container.settle(10_000).unwrap();
    container.close().unwrap();
    assert_eq!(check(&*disk).unwrap().outcome(), Outcome::Clean);
}

// rule: CHK-24 — damage is found while the container is open, and what is not durable yet does not count.
#[test]
fn a_check_of_an_open_container_finds_damage() {
    let (disk, container) = open(1 << 20);
    container.create_volume("a", SIZE).unwrap();
    let io = VolumeIo::new(&container, container.volume("a").unwrap());
    io.write_at(&[1; 4096], 0).unwrap();
    container.commit().unwrap();
    let never = AtomicBool::new(false);
    let report = container.check(&never).unwrap();
    assert_eq!((report.outcome(), report.volumes, report.layers), (Outcome::Clean, 1, 1));
    let before = report.allocated_slabs;
    io.write_at(&[1; 4096], SLAB_LEN).unwrap();
    assert_eq!(container.check(&never).unwrap().allocated_slabs, before);
    // A free slab's descriptor.
    let last = disk.len().unwrap() / SLAB_LEN - 1;
    disk.flip(2 * SLAB_LEN + last * 32 + 9, 1);
    let report = container.check(&never).unwrap();
    assert_eq!((report.outcome(), report.findings[0].id), (Outcome::Corrupt, "CHK-2"));
}

// rule: CHK-26 — guests do not wait for a check, which begins anew and in the end says that it cannot.
#[test]
fn a_check_gives_way_to_checkpoints_and_to_those_who_give_it_up() {
    let (_, container) = open(256 << 10);
    container.create_volume("a", SIZE).unwrap();
    assert!(matches!(container.check(&AtomicBool::new(true)), Err(Error::CheckGivenUp)));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _guard = StopOnDrop(&stop);
        let (container, stop) = (&container, &stop);
        scope.spawn(move || {
            SLOW.set(true);
            // Reads of 256 KiB each: slower than checkpoints by far.
            while !stop.load(Ordering::Relaxed) {
                match container.check(&AtomicBool::new(false)) {
                    Ok(report) => assert_eq!(report.outcome(), Outcome::Clean),
                    Err(Error::TooBusyToCheck { tries }) => assert_eq!(tries, 5),
                    Err(error) => panic!("{error}"),
                }
            }
        });
        scope.spawn(move || {
            let _guard = StopOnDrop(stop);
            maintain_for_ever(container, stop);
        });
        let io = VolumeIo::new(container, container.volume("a").unwrap());
        for round in 0..4000 {
            io.write_at(&[1; 4096], round % 256 * SLAB_LEN).unwrap();
            io.flush().unwrap();
            if round % 256 == 255 {
                io.discard(0..SIZE).unwrap();
            }
        }
    });
}
