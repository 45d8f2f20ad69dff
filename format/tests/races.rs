//! Interleavings of requests with commands that once went wrong, and what a slow step must not break.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use common::{io, new_container};
use pitstop_format::{Container, Error, Maintained, OpenMode, Planned, ReadPlan, SLAB_LEN, ZeroKind};

const GIB: u64 = 1 << 30;
const RUN: Duration = Duration::from_millis(1500);

fn first_byte(container: &Container, name: &str, offset: u64) -> u8 {
    let mut bytes = [0; 512];
    io(container, name).read_at(&mut bytes, offset).unwrap();
    bytes[0]
}

// rules: SNP-6, MAP-6 — a copy made in the middle of a long discard is the same after a crash.
#[test]
fn a_copy_made_in_the_middle_of_a_discard_survives_a_crash() {
    let (disk, container) = new_container(1 << 20);
    let size = 2 * GIB;
    container.create_volume("golden", size).unwrap();
    let last = size - SLAB_LEN;
    for chunk in (0..1100).map(|n| n * SLAB_LEN).chain([last - SLAB_LEN, last]) {
        io(&container, "golden").write_at(&[7; 4096], chunk).unwrap();
    }
    container.snapshot("golden", "ci").unwrap();
    container.settle(1000).unwrap();
    container.commit().unwrap();
    // New pages in the journal, the last one among them.
    for offset in (0..8).map(|page| page * 128 * SLAB_LEN + 4096).chain([last]) {
        io(&container, "ci").write_at(&[9; 4096], offset).unwrap();
    }
    let volume = container.volume("ci").unwrap();
    let step = loop {
        match volume.plan_zero(0..size, ZeroKind::Discard, Waker::noop()).unwrap() {
            Planned::Ready(step) => break step,
            Planned::NeedPage(load) => container.load_page(load).unwrap(),
            Planned::Busy => drop(container.maintain().unwrap()),
        }
    };
    assert!(step.remaining().is_some(), "the discard is done in one step");
    step.complete();
    assert_eq!(first_byte(&container, "ci", last - SLAB_LEN), 7);
    container.snapshot("ci", "copy").unwrap();
    drop(container);
    let container = Container::open(disk.copy(), OpenMode::ReadWrite).unwrap();
    assert_eq!(first_byte(&container, "copy", last - SLAB_LEN), 7);
    assert_eq!(first_byte(&container, "copy", last), 9);
    assert_eq!(first_byte(&container, "copy", 0), 0);
}

/// Runs maintenance beside `work` until it ends.
fn beside_maintenance<T>(container: &Container, work: impl FnOnce(&AtomicBool) -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let maintenance = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if container.maintain().unwrap() == Maintained::Idle {
                    container.wait_for_work(Duration::from_millis(1));
                }
            }
        });
        let result = work(&stop);
        stop.store(true, Ordering::Relaxed);
        maintenance.join().unwrap();
        result
    })
}

// A request checked against the old size and planned against a smaller head is refused, not carried out.
#[test]
fn writes_meet_refreshes_to_a_smaller_size() {
    let (_, container) = new_container(4 << 20);
    for (name, size) in [("v", 8 * GIB), ("big", 8 * GIB), ("small", GIB)] {
        container.create_volume(name, size).unwrap();
    }
    let refused = beside_maintenance(&container, |stop| {
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let volume = container.volume("v").unwrap();
                let mut refused = 0;
                for n in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let at = 6 * GIB + n % 1000 * SLAB_LEN;
                    match volume.plan_write(at..at + 4096, Waker::noop()) {
                        Ok(Planned::Ready(ticket)) => ticket.complete(),
                        Ok(Planned::Busy | Planned::NeedPage(_)) => {}
                        Err(Error::BadRange { .. }) => refused += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                refused
            });
            let begin = Instant::now();
            while begin.elapsed() < RUN && !writer.is_finished() {
                container.refresh("v", "small").unwrap();
                container.refresh("v", "big").unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap()
        })
    });
    assert!(refused > 0, "the writer never met the smaller size");
}

// rule: LAY-8 — a layer that is deleted at the very end of its merge stays deleted, and nothing is left behind.
#[test]
fn deletes_meet_the_end_of_merges() {
    let (_, container) = new_container(4 << 20);
    let begin = Instant::now();
    beside_maintenance(&container, |_| {
        for round in (0..).take_while(|_| begin.elapsed() < RUN) {
            container.create_volume("g", 1 << 20).unwrap();
            io(&container, "g").write_at(&[1; 4096], 0).unwrap();
            container.snapshot("g", "v").unwrap();
            for (n, copy) in ["t", "u"].into_iter().enumerate() {
                io(&container, "v").write_at(&[1; 4096], (n as u64 + 1) * 4096).unwrap();
                container.snapshot("v", copy).unwrap();
            }
            container.delete_volume("t").unwrap();
            container.delete_volume("u").unwrap();
            (0..round % 50).for_each(|_| std::thread::yield_now());
            assert!(!container.layers().is_empty());
            container.delete_volume("v").unwrap();
            container.delete_volume("g").unwrap();
            let since = Instant::now();
            while !container.layers().is_empty() {
                assert!(since.elapsed() < Duration::from_secs(10), "left behind: {:#?}", container.layers());
                std::thread::yield_now();
            }
        }
    });
}

// A page asked for before its layer was given up is no error: the request is planned again.
#[test]
fn a_page_of_a_layer_that_is_being_freed_is_not_an_error() {
    let (disk, container) = new_container(4 << 20);
    container.create_volume("v", 4 * GIB).unwrap();
    container.create_volume("source", 4 * GIB).unwrap();
    for n in 0..6000 {
        io(&container, "v").write_at(&[1; 4096], n * SLAB_LEN).unwrap();
    }
    container.close().unwrap();
    let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
    let volume = container.volume("v").unwrap();
    let mut plan = ReadPlan::default();
    let Planned::NeedPage(load) = volume.plan_read(0..4096, &mut plan).unwrap() else {
        panic!("no page is needed right after opening");
    };
    container.refresh("v", "source").unwrap();
    for _ in 0..20 {
        container.load_page(load).unwrap();
        container.maintain().unwrap();
    }
    assert!(matches!(volume.plan_read(0..4096, &mut plan).unwrap(), Planned::Ready(())));
}

// rule: JNL-8 — first writes under way count against the journal: they wait, and the container lives.
#[test]
fn many_first_writes_under_way_do_not_exhaust_a_small_journal() {
    let (_, container) = new_container(256 << 10);
    container.create_volume("v", 8 * GIB).unwrap();
    let volume = container.volume("v").unwrap();
    let mut most = 0;
    for round in 0..8u64 {
        let mut tickets = Vec::new();
        for n in 0..4000 {
            let at = n * SLAB_LEN + round * 4096;
            match volume.plan_write(at..at + 4096, Waker::noop()).unwrap() {
                Planned::Ready(ticket) => tickets.push(ticket),
                Planned::NeedPage(load) => container.load_page(load).unwrap(),
                Planned::Busy if container.maintain().unwrap() == Maintained::Idle => break,
                Planned::Busy => {}
            }
        }
        most = most.max(tickets.len());
        tickets.into_iter().for_each(pitstop_format::WriteTicket::complete);
        container.commit().unwrap();
    }
    assert!((100..4000).contains(&most), "{most} writes were under way at once");
}

#[test]
fn a_command_that_needs_space_lets_the_file_grow() {
    let (_, container) = new_container(1 << 20);
    container.create_volume("v", GIB).unwrap();
    let volume = container.volume("v").unwrap();
    for n in 0.. {
        match volume.plan_write(n * SLAB_LEN..n * SLAB_LEN + 4096, Waker::noop()).unwrap() {
            Planned::Ready(ticket) => ticket.complete(),
            Planned::Busy => break,
            Planned::NeedPage(_) => unreachable!("all pages are new"),
        }
    }
    for n in 0..600 {
        container.create_volume(&format!("v{n}"), 1 << 20).unwrap();
    }
}

#[test]
fn handles_left_after_closing_get_errors() {
    let (_, container) = new_container(1 << 20);
    container.create_volume("v", 1 << 20).unwrap();
    let left = io(&container, "v");
    let other = container.clone();
    container.close().unwrap();
    assert!(matches!(left.write_at(&[1; 512], 0), Err(Error::Closed)));
    assert!(matches!(other.snapshot("v", "s"), Err(Error::Closed)));
    assert!(matches!(other.maintain(), Err(Error::Closed)));
}

#[test]
fn space_freed_on_a_full_disk_is_used_at_once() {
    let (disk, container) = new_container(1 << 20);
    disk.limit(Some(pitstop_format::Disk::len(&*disk).unwrap()));
    container.create_volume("v", GIB).unwrap();
    let mut n = 0;
    while io(&container, "v").write_at(&[1; 4096], n * SLAB_LEN).is_ok() {
        n += 1;
    }
    io(&container, "v").discard(0..4 * SLAB_LEN).unwrap();
    let since = Instant::now();
    io(&container, "v").write_at(&[1; 4096], n * SLAB_LEN).unwrap();
    assert!(since.elapsed() < Duration::from_secs(5), "took {:?}", since.elapsed());
}

// A request that finds some slabs, but too few, fails: it does not wait for those that it has just given back itself.
#[test]
fn a_write_that_needs_more_slabs_than_there_are_fails_at_once() {
    let (disk, container) = new_container(1 << 20);
    container.create_volume("v", GIB).unwrap();
    io(&container, "v").write_at(&[1; 4096], 0).unwrap();
    disk.limit(Some(pitstop_format::Disk::len(&*disk).unwrap()));
    let since = Instant::now();
    for chunks in [200, 100, 50, 20, 10, 5, 3, 2] {
        let bytes = vec![1; (chunks * SLAB_LEN) as usize];
        match io(&container, "v").write_at(&bytes, SLAB_LEN) {
            Ok(()) => {}
            Err(Error::NoSpace { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(since.elapsed() < Duration::from_secs(10), "took {:?}", since.elapsed());
}

// rules: JNL-8, JNL-17 — with the smallest journal, whatever gathers before a commit fits it.
#[test]
fn the_smallest_journal_takes_what_gathers_before_a_commit() {
    let (_, container) = new_container(256 << 10);
    container.create_volume("a", 32 * GIB).unwrap();
    let io = io(&container, "a");
    for i in 0..43 {
        io.write_at(&[1; 4096], i * SLAB_LEN).unwrap();
        io.flush().unwrap();
    }
    for i in 43..43 + 1024 {
        io.write_at(&[1; 4096], i * SLAB_LEN).unwrap();
    }
    io.flush().unwrap();
}

// rule: JNL-12 — many layers are freed in steps that fit the journal.
#[test]
fn hundreds_of_deleted_volumes_are_freed_with_the_smallest_journal() {
    let (disk, container) = new_container(256 << 10);
    container.create_volume("a", 1 << 20).unwrap();
    io(&container, "a").write_at(&[1; 512], 0).unwrap();
    for i in 0..600 {
        container.snapshot("a", &format!("s{i}")).unwrap();
    }
    for i in 0..600 {
        container.delete_volume(&format!("s{i}")).unwrap();
    }
    container.settle(100_000).unwrap();
    assert_eq!(container.volumes().len(), 1);
    container.close().unwrap();
    assert!(pitstop_format::check::check(&*disk).unwrap().findings.is_empty());
}

// A volume on more layers than one batch can change is refused with a way out, and nothing breaks.
#[test]
fn a_volume_on_too_many_layers_for_the_journal_is_kept() {
    let (_, container) = new_container(256 << 10);
    container.create_volume("a", 1 << 20).unwrap();
    for i in 0..200 {
        io(&container, "a").write_at(&[1; 512], 0).unwrap();
        container.snapshot("a", &format!("s{i}")).unwrap();
    }
    assert!(matches!(container.delete_volume("a"), Err(Error::TooManyLayers { .. })));
    // Without their copies the layers are merged, and the volume can go.
    for i in 0..200 {
        container.delete_volume(&format!("s{i}")).unwrap();
        container.settle(100).unwrap();
    }
    container.settle(100_000).unwrap();
    container.delete_volume("a").unwrap();
}

// A command waits for space that is on its way instead of failing.
#[test]
fn a_command_waits_for_a_commit_before_the_file_grows() {
    let (_, container) = new_container(4 << 20);
    container.create_volume("v", 8 * GIB).unwrap();
    for n in 0..254 {
        container.create_volume(&format!("v{n}"), 512).unwrap();
    }
    let volume = container.volume("v").unwrap();
    for n in 0.. {
        match volume.plan_write(n * SLAB_LEN..n * SLAB_LEN + 4096, Waker::noop()).unwrap() {
            Planned::Ready(ticket) => ticket.complete(),
            Planned::Busy => break,
            Planned::NeedPage(_) => unreachable!("all pages are new"),
        }
    }
    io(&container, "v").flush().unwrap();
    let mut plan = ReadPlan::default();
    assert!(matches!(volume.plan_read(0..4096, &mut plan).unwrap(), Planned::Ready(())));
    io(&container, "v").discard(0..SLAB_LEN).unwrap();
    for n in 0..8 {
        container.create_volume(&format!("x{n}"), 512).unwrap();
    }
}

// A write that finds one slab where it needs two does not wait for a read that holds a freed one.
#[test]
fn a_write_does_not_wait_for_an_unrelated_read() {
    let (_, container) = new_container(4 << 20);
    container.create_volume("v", 8 * GIB).unwrap();
    let volume = container.volume("v").unwrap();
    let mut n = 0;
    let mut plan = ReadPlan::default();
    let write = |n: u64, chunks: u64| volume.plan_write(n * SLAB_LEN..(n + chunks) * SLAB_LEN, Waker::noop()).unwrap();
    while let Planned::Ready(ticket) = write(n, 1) {
        ticket.complete();
        n += 1;
    }
    io(&container, "v").flush().unwrap();
    io(&container, "v").discard(SLAB_LEN..2 * SLAB_LEN).unwrap();
    container.commit().unwrap();
    assert!(matches!(volume.plan_read(0..4096, &mut plan).unwrap(), Planned::Ready(())));
    io(&container, "v").discard(2 * SLAB_LEN..3 * SLAB_LEN).unwrap();
    for _ in 0..20 {
        if let Planned::Ready(ticket) = write(n, 2) {
            return ticket.complete();
        }
        container.maintain().unwrap();
    }
    panic!("still waiting");
}

/// Wakes a counter.
struct Count(std::sync::atomic::AtomicU64);

impl std::task::Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

// A request that waits for space is not woken by its own failure to find it.
#[test]
fn a_waiting_write_does_not_wake_itself() {
    let (_, container) = new_container(1 << 20);
    container.create_volume("v", GIB).unwrap();
    let volume = container.volume("v").unwrap();
    let count = Arc::new(Count(0.into()));
    let waker = Waker::from(count.clone());
    let mut n = 0;
    while let Planned::Ready(ticket) = volume.plan_write(n * SLAB_LEN..(n + 3) * SLAB_LEN, &waker).unwrap() {
        ticket.complete();
        n += 3;
    }
    assert_eq!(count.0.load(Ordering::Relaxed), 0);
    container.maintain().unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), 1, "growth wakes those who wait");
}

// rules: SNP-2, LAY-11 — a copy is there only when the writes of before its instant have ended.
#[test]
fn a_snapshot_returns_only_after_the_writes_of_before_it() {
    let (disk, container) = new_container(1 << 20);
    container.create_volume("v", 1 << 20).unwrap();
    let Planned::Ready(ticket) = container.volume("v").unwrap().plan_write(0..4096, Waker::noop()).unwrap() else {
        panic!("busy");
    };
    std::thread::scope(|scope| {
        let snapshot = scope.spawn(|| container.snapshot("v", "copy").unwrap());
        // Writes of after the instant show when it has come; none of them waits.
        let since = Instant::now();
        while container.layers().len() < 2 {
            assert!(since.elapsed() < Duration::from_secs(10), "the instant never came");
        }
        io(&container, "v").write_at(&[2; 4096], 8192).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(!snapshot.is_finished(), "the copy is there while a write of before it is under way");
        assert_eq!(container.volumes().len(), 1);
        pitstop_format::Disk::write_at(&*disk, &[1; 4096], ticket.segments()[0].disk_offset).unwrap();
        ticket.complete();
        snapshot.join().unwrap();
    });
    assert_eq!((first_byte(&container, "copy", 0), first_byte(&container, "copy", 8192)), (1, 0));
}
