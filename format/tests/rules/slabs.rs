//! Blocks, claims and the reuse of slabs (design rules 1, 6-10, 33, 34).

use std::collections::BTreeSet;
use std::task::Waker;

use pitstop_format::testing::{Event, SimDisk};
use pitstop_format::{BackgroundKind, Container, Disk, Planned, SLAB_LEN, WriteTicket};

use crate::support::*;

fn plan(container: &Container, name: &str, range: std::ops::Range<u64>) -> WriteTicket {
    match container.volume(name).unwrap().plan_write(range, Waker::noop()).unwrap() {
        Planned::Ready(ticket) => ticket,
        other => panic!("{other:?}"),
    }
}

fn carry_out(disk: &SimDisk, ticket: WriteTicket, value: u8) {
    for segment in ticket.segments() {
        disk.write_at(&vec![value; segment.len as usize], segment.disk_offset).unwrap();
    }
    ticket.complete();
}

// rule: MAP-10 — between plan and completion a first write shows nothing, and a slab's older bytes least of all.
#[test]
fn a_block_shows_only_when_it_has_been_written() {
    let (disk, container) = new_container();
    leave_stale_slabs(&container);
    container.create_volume("v", MIB).unwrap();
    put(&container, "v", SLAB_LEN, 1);
    let ticket = plan(&container, "v", 0..BLOCK);
    assert_stale(&disk, ticket.segments()[0].disk_offset);
    assert_eq!(block(&container, "v", 0), 0);
    carry_out(&disk, ticket, 5);
    assert_eq!(block(&container, "v", 0), 5);
}

// rules: MAP-8, MAP-11 — a slab whose last block is discarded stays while a first write into it is under way.
#[test]
fn a_slab_with_a_claim_stays_with_its_entry() {
    let (disk, container) = new_container();
    container.create_volume("v", MIB).unwrap();
    put(&container, "v", 0, 1);
    let ticket = plan(&container, "v", BLOCK..2 * BLOCK);
    io(&container, "v").discard(0..BLOCK).unwrap();
    container.commit().unwrap();
    container.settle(100).unwrap();
    put(&container, "v", 2 * SLAB_LEN, 3);
    carry_out(&disk, ticket, 2);
    container.close().unwrap();
    let container = open(disk.clone());
    let shown = [0, BLOCK, 2 * SLAB_LEN].map(|offset| block(&container, "v", offset));
    assert_eq!(shown, [0, 2, 3]);
    assert_clean(&*disk);
}

// rules: JNL-6, JNL-19 — a table that is freed in the first of many steps is another's slab long before the last.
#[test]
fn a_page_of_a_deleted_volume_is_not_written_over_its_slabs_next_owner() {
    let (disk, container) = new_container();
    container.create_volume("other", 256 * SLAB_LEN).unwrap();
    container.create_volume("gone", 4000 * SLAB_LEN).unwrap();
    for chunk in 0..4000 {
        put(&container, "gone", chunk * SLAB_LEN, 1);
    }
    container.close().unwrap();
    // The journal is empty, and the first page of the table waits to go home: a checkpoint comes in the middle.
    let container = open(disk);
    put(&container, "gone", BLOCK, 1);
    container.delete_volume("gone").unwrap();
    let mut chunks = 0;
    while container.layers().len() > 1 && chunks < 200 {
        container.maintain().unwrap();
        put(&container, "other", chunks * SLAB_LEN, 7);
        io(&container, "other").flush().unwrap();
        chunks += 1;
    }
    assert!(chunks > 32, "{chunks} steps: no checkpoint can have come in between");
    for chunk in 0..chunks {
        assert_eq!(block(&container, "other", chunk * SLAB_LEN), 7, "chunk {chunk}");
    }
}

// rule: JNL-10 — what the journal says of a volume that was deleted since harms nobody, whatever has been freed of it.
#[test]
fn replay_leaves_the_slabs_of_a_deleted_volume_to_their_next_owner() {
    let (disk, container) = new_container();
    container.create_volume("other", 256 * SLAB_LEN).unwrap();
    container.create_volume("gone", 300 * SLAB_LEN).unwrap();
    for chunk in 0..300 {
        put(&container, "gone", chunk * SLAB_LEN, 1);
    }
    container.delete_volume("gone").unwrap();
    let mut steps = 0;
    while container.layers().len() > 1 && steps < 100 {
        container.maintain().unwrap();
        put(&container, "other", steps * SLAB_LEN, 7);
        io(&container, "other").flush().unwrap();
        steps += 1;
        let copy = disk.copy();
        let after = open(copy.clone());
        for chunk in 0..steps {
            assert_eq!(block(&after, "other", chunk * SLAB_LEN), 7, "step {steps}, chunk {chunk}");
        }
        after.settle(1000).unwrap();
        after.close().unwrap();
        assert_clean(&*copy);
    }
    assert!((3..100).contains(&steps), "{steps} steps");
}

// rule: LAY-1 — ids of volumes and layers are never given twice, also not after both are gone.
#[test]
fn an_id_is_never_used_twice() {
    let (disk, mut container) = new_container();
    let mut seen = BTreeSet::new();
    for round in 0..4 {
        for (source, copy) in [("a", "b"), ("c", "d")] {
            let source = container.create_volume(source, MIB).unwrap();
            put(&container, &source.name, 0, 1);
            let copy = container.snapshot(&source.name, copy).unwrap();
            for id in [source.id.0, source.head.0, copy.id.0, copy.head.0] {
                assert!(seen.insert(id), "round {round}: id {id} a second time, after {seen:?}");
            }
        }
        for name in ["a", "b", "c", "d"] {
            container.delete_volume(name).unwrap();
        }
        for _ in 0..4 {
            container.settle(1000).unwrap();
            container.commit().unwrap();
        }
        assert!(container.layers().is_empty());
        if round == 1 {
            container.close().unwrap();
            container = open(disk.clone());
        }
    }
}

// rule: JNL-12 — freeing more than the journal holds goes in steps, and what a crash leaves undone is done later.
#[test]
fn freeing_goes_in_steps_and_goes_on_after_a_crash() {
    let (disk, container) = new_container();
    container.create_volume("kept", MIB).unwrap();
    container.create_volume("gone", 6500 * SLAB_LEN).unwrap();
    for chunk in 0..6500 {
        put(&container, "gone", chunk * SLAB_LEN, 1);
    }
    put(&container, "kept", 0, 2);
    container.commit().unwrap();
    container.delete_volume("gone").unwrap();
    let mut steps = 0;
    while container.layers().len() > 1 && steps < 1000 {
        container.maintain().unwrap();
        steps += 1;
        if steps % 16 == 3 {
            let copy = disk.copy();
            let after = open(copy.clone());
            after.settle(10_000).unwrap();
            assert_eq!((after.layers().len(), block(&after, "kept", 0)), (1, 2));
            after.close().unwrap();
            assert_clean(&*copy);
        }
    }
    assert!((10..1000).contains(&steps), "{steps} steps");
    container.close().unwrap();
    assert_clean(&*disk);
}

// rule: JOB-11 — what background work is at is shown between its steps, and nothing when there is none.
#[test]
fn background_work_is_shown_between_its_steps() {
    let (_, container) = new_container();
    container.create_volume("gone", 6500 * SLAB_LEN).unwrap();
    for chunk in 0..6500 {
        put(&container, "gone", chunk * SLAB_LEN, 1);
    }
    container.commit().unwrap();
    container.create_volume("v", 6500 * SLAB_LEN).unwrap();
    for (value, copy) in [(1, "older"), (2, "newer")] {
        put(&container, "v", 0, value);
        container.snapshot("v", copy).unwrap();
    }
    container.delete_volume("older").unwrap();
    container.delete_volume("gone").unwrap();
    let (mut reclaimed, mut merged) = (Vec::new(), Vec::new());
    for _ in 0..1000 {
        container.maintain().unwrap();
        for work in container.background() {
            assert!(work.passed_bytes <= work.total_bytes, "{work:?}");
            match work.kind {
                BackgroundKind::Reclaim => reclaimed.push(work.passed_bytes),
                BackgroundKind::Merge(_) => merged.push((work.total_bytes, work.passed_bytes)),
            }
        }
    }
    for shown in [reclaimed, merged.iter().map(|(_, passed)| *passed).collect()] {
        assert!(shown.is_sorted() && shown.first() < shown.last(), "{shown:?}");
    }
    assert!(merged.iter().all(|(total, _)| *total == 6500 * SLAB_LEN));
    assert_eq!(container.background(), []);
}

// rule: VOL-5 — zeroing what was zeroed before, or never written, leaves nothing to journal.
#[test]
fn zeroing_what_reads_as_zeros_changes_nothing() {
    let (disk, container) = new_container();
    container.create_volume("v", MIB).unwrap();
    io(&container, "v").write_at(&vec![1; MIB as usize / 2], 0).unwrap();
    io(&container, "v").discard(BLOCK..SLAB_LEN).unwrap();
    io(&container, "v").flush().unwrap();
    disk.record();
    io(&container, "v").discard(BLOCK..SLAB_LEN).unwrap();
    io(&container, "v").write_zeroes(BLOCK + 512..SLAB_LEN).unwrap();
    io(&container, "v").write_zeroes(MIB / 2..MIB).unwrap();
    io(&container, "v").flush().unwrap();
    let writes = disk.take_events().iter().filter(|event| matches!(event, Event::Write { .. })).count();
    assert_eq!(writes, 0);
}

// rule: VOL-6 — discard leaves blocks that it covers in part; write-zeroes makes just its own bytes zero.
#[test]
fn discard_leaves_parts_of_blocks_and_writes_of_zeros_do_not() {
    let (_, container) = new_container();
    for (name, is_discard) in [("discarded", true), ("zeroed", false)] {
        container.create_volume(name, MIB).unwrap();
        io(&container, name).write_at(&[1; 3 * BLOCK as usize], 0).unwrap();
        let range = 512..2 * BLOCK + 512;
        let mut expected = vec![1; 3 * BLOCK as usize];
        if is_discard {
            io(&container, name).discard(range).unwrap();
            expected[BLOCK as usize..2 * BLOCK as usize].fill(0);
        } else {
            io(&container, name).write_zeroes(range.clone()).unwrap();
            expected[range.start as usize..range.end as usize].fill(0);
        }
        let mut shown = vec![9; expected.len()];
        io(&container, name).read_at(&mut shown, 0).unwrap();
        assert!(shown == expected, "{name}");
    }
}

// rule: VOL-5 — what a copy shows of 2 GiB, however many chunks of it hold something, is given up by one descriptor.
#[test]
fn a_full_table_is_discarded_by_one_descriptor() {
    let (disk, container) = new_container();
    let chunks = 8192;
    container.create_volume("golden", chunks * SLAB_LEN).unwrap();
    for chunk in 0..chunks {
        put(&container, "golden", chunk * SLAB_LEN, 1);
    }
    container.snapshot("golden", "clone").unwrap();
    container.settle(100).unwrap();
    container.commit().unwrap();
    disk.record();
    io(&container, "clone").discard(0..chunks * SLAB_LEN).unwrap();
    io(&container, "clone").flush().unwrap();
    let written = |event: &Event| if let Event::Write { bytes, .. } = event { bytes.len() } else { 0 };
    let written: usize = disk.take_events().iter().map(written).sum();
    assert!(written <= 8192, "{written} bytes of metadata");
    let container = open(disk.copy());
    for chunk in [0, 1, 127, 128, chunks - 1] {
        let shown = ["clone", "golden"].map(|name| block(&container, name, chunk * SLAB_LEN));
        assert_eq!(shown, [0, 1], "chunk {chunk}");
    }
}
