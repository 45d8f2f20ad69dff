//! Backups in full containers: guests get what they keep.
//!
//! req: R23. Rules: BAK-12, BAK-24, LAY-74.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::ops::Range;
use std::time::Duration;

use common::{io, new_container};
use pitstop_format::{Container, Error, SLAB_LEN};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 4 * MIB;

fn fill(container: &Container, name: &str, range: Range<u64>, byte: u8) {
    io(container, name).write_at(&vec![byte; (range.end - range.start) as usize], range.start).unwrap();
}

/// Does all background work.
fn settled(container: &Container) {
    for _ in 0..3 {
        container.settle(100_000).unwrap();
        container.commit().unwrap();
    }
}

/// A container with a volume of ones, one that is to be filled until there is no space, and one that nobody writes.
fn full() -> (std::sync::Arc<pitstop_format::testing::SimDisk>, Container) {
    let (disk, container) = new_container(MIB);
    container.create_volume("v", SIZE).unwrap();
    fill(&container, "v", 0..SIZE, 1);
    container.create_volume("w", 1 << 30).unwrap();
    container.create_volume("quiet", SIZE).unwrap();
    (disk, container)
}

/// Writes chunk after chunk of `w` until one fails for lack of space; returns how many did not.
fn fill_up(container: &Container) -> u64 {
    let mut chunks = 0;
    loop {
        match io(container, "w").write_at(&vec![7; SLAB_LEN as usize], chunks * SLAB_LEN) {
            Ok(()) => chunks += 1,
            Err(Error::NoSpace { .. }) => return chunks,
            Err(error) => panic!("{error}"),
        }
    }
}

// rules: BAK-12, BAK-24
#[test]
fn a_write_that_finds_no_space_ends_the_backups_that_keep_any() {
    // What is kept: by the instant alone; below a frozen layer; as zeros; below a head.
    for case in 0..4 {
        let (disk, container) = full();
        let idle = container.begin_backup("quiet", None).unwrap();
        let backup = container.begin_backup("v", None).unwrap();
        match case {
            0 => container.delete_volume("v").unwrap(),
            1 | 3 => fill(&container, "v", 0..SIZE, 2),
            _ => io(&container, "v").discard(0..SIZE).unwrap(),
        }
        if case == 1 || case == 2 {
            container.snapshot("v", "later").unwrap();
        }
        settled(&container);
        disk.limit(Some(container.info().file_len_bytes));
        let free = container.space().unwrap().free_bytes / SLAB_LEN;
        assert!(backup.ended().is_none());
        let written = fill_up(&container);
        assert!(matches!(backup.ended(), Some(Error::BackupEnded { kept_bytes }) if *kept_bytes >= 16 * SLAB_LEN));
        // The first write without an answer that is good came after all of that.
        assert!(written + 3 >= free + 16, "case {case}: {written} chunks were written, {free} were free");
        // It keeps nothing: ending it would help nobody.
        assert_eq!((container.instants(), idle.ended().is_none()), (vec![idle.id()], true));
        idle.release().unwrap();
        backup.release().unwrap();
        container.close().unwrap();
    }
}

// rule: BAK-24 — a write that takes some slabs and not enough waits for nothing that does not come.
#[test]
fn a_long_write_fails_beside_a_backup_that_keeps_nothing() {
    let (disk, container) = full();
    let idle = container.begin_backup("quiet", None).unwrap();
    settled(&container);
    disk.limit(Some(container.info().file_len_bytes));
    let chunks = fill_up(&container);
    // One slab is free again.
    io(&container, "w").discard(0..SLAB_LEN).unwrap();
    settled(&container);
    let long = vec![8; 3 * SLAB_LEN as usize];
    let (done, answer) = std::sync::mpsc::channel();
    let io = io(&container, "w");
    std::thread::spawn(move || done.send(io.write_at(&long, (chunks + 1) * SLAB_LEN)));
    let answer = answer.recv_timeout(Duration::from_secs(10)).expect("the write waits for ever");
    assert!(matches!(answer, Err(Error::NoSpace { .. })), "{answer:?}");
    assert!(idle.ended().is_none());
    idle.release().unwrap();
}

// rules: BAK-12, BAK-24 — also while what a backup that has ended kept is not free yet.
#[test]
fn a_write_after_the_end_of_a_backup_waits_for_what_that_kept() {
    let (disk, container) = full();
    let backup = container.begin_backup("v", None).unwrap();
    fill(&container, "v", 0..SIZE, 2);
    settled(&container);
    disk.limit(Some(container.info().file_len_bytes));
    let free = container.space().unwrap().free_bytes / SLAB_LEN;
    for chunk in 0..free - 2 {
        fill(&container, "w", chunk * SLAB_LEN..(chunk + 1) * SLAB_LEN, 7);
    }
    assert!(backup.ended().is_none());
    backup.release().unwrap();
    // Some of it is there by itself.
    for chunk in free..free + 12 {
        fill(&container, "w", chunk * SLAB_LEN..(chunk + 1) * SLAB_LEN, 7);
    }
}

// rules: BAK-12, BAK-24 — also while a backup begins, of which nothing is known yet.
#[test]
fn a_write_that_finds_no_space_waits_for_a_backup_that_begins() {
    let (disk, container) = full();
    let pending = container.start_backup("v", None).unwrap();
    io(&container, "v").discard(0..SIZE).unwrap();
    settled(&container);
    disk.limit(Some(container.info().file_len_bytes));
    let writer = {
        let container = container.clone();
        std::thread::spawn(move || fill_up(&container))
    };
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!writer.is_finished(), "it has failed before anybody looked");
    let backup = pending.finish().unwrap();
    writer.join().unwrap();
    assert!(backup.ended().is_some() && container.instants().is_empty());
    backup.release().unwrap();
}

// rule: LAY-74
#[test]
fn a_merge_that_lacks_space_keeps_no_other_from_freeing_some() {
    let (disk, container) = full();
    // What lies below needs a table above.
    container.create_volume("a", 4 << 30).unwrap();
    for (at, copy) in [(3 << 30, "a1"), (0, "a2")] {
        fill(&container, "a", at..at + SLAB_LEN, 1);
        container.snapshot("a", copy).unwrap();
    }
    let backup = container.begin_backup("v", None).unwrap();
    fill(&container, "v", 0..SIZE, 2);
    container.snapshot("v", "later").unwrap();
    settled(&container);
    disk.limit(Some(container.info().file_len_bytes));
    let mut chunk = 2000;
    while container.space().unwrap().free_bytes >= SLAB_LEN {
        fill(&container, "w", chunk * SLAB_LEN..(chunk + 1) * SLAB_LEN, 7);
        chunk += 1;
    }
    container.delete_volume("a1").unwrap();
    settled(&container);
    assert!(backup.ended().is_none());
    assert!(fill_up(&container) >= 12);
    assert!(backup.ended().is_some());
    backup.release().unwrap();
}

// rule: LAY-74 — a merge that lacks a slab loses nothing of what another has brought into its layer meanwhile.
#[test]
fn merges_of_one_chain_that_lack_space_lose_nothing() {
    let (disk, container) = full();
    container.create_volume("a", 6 << 30).unwrap();
    // Each layer has a table that no other has.
    let places = [0, 2 << 30, 4 << 30].map(|at| at..at + SLAB_LEN);
    for (number, place) in (1..).zip(&places) {
        fill(&container, "a", place.clone(), number);
        container.snapshot("a", &format!("a{number}")).unwrap();
    }
    settled(&container);
    disk.limit(Some(container.info().file_len_bytes));
    fill_up(&container);
    // The upper merge comes first, and lacks a table; so does the lower one then.
    for copy in ["a2", "a1"] {
        container.delete_volume(copy).unwrap();
        settled(&container);
    }
    assert_eq!(
        container.layers().iter().filter(|layer| layer.kind == "frozen" && layer.size_bytes == 6 << 30).count(),
        3
    );
    container.delete_volume("w").unwrap();
    settled(&container);
    let layers = container.layers();
    assert_eq!(layers.iter().filter(|layer| layer.kind == "frozen" && layer.size_bytes == 6 << 30).count(), 1);
    for name in ["a", "a3"] {
        for (number, place) in (1..).zip(&places) {
            let mut bytes = vec![0; SLAB_LEN as usize];
            io(&container, name).read_at(&mut bytes, place.start).unwrap();
            assert!(bytes == vec![number; SLAB_LEN as usize], "{name} {number}");
        }
    }
}
