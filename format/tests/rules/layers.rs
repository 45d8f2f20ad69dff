//! Heads, copies and merges (design rules 1, 18, 19, 21).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use pitstop_format::testing::{Fate, SimDisk};
use pitstop_format::{Container, Disk, Maintained, Planned, SLAB_LEN};

use crate::support::*;

// rules: LAY-4, LAY-8 — nothing but the volume's own writes comes into a head; merges stop below it.
#[test]
fn a_head_holds_only_what_was_written_through_its_volume() {
    let (disk, container) = new_container();
    container.create_volume("v", MIB).unwrap();
    put(&container, "v", 0, 1);
    container.snapshot("v", "copy").unwrap();
    container.delete_volume("copy").unwrap();
    // Once more after opening, when no write keeps a head from being drained.
    container.close().unwrap();
    let container = open(disk);
    container.settle(1000).unwrap();
    let layers = container.layers();
    let held = |kind: &str| {
        let found: Vec<u64> =
            layers.iter().filter(|layer| layer.kind == kind).map(|layer| layer.allocated_bytes).collect();
        found
    };
    assert_eq!((held("head"), held("frozen")), (vec![0], vec![2 * SLAB_LEN]));
}

// rule: SNP-1 — whatever else is under way, a write planned after the instant goes to the new head.
#[test]
fn a_write_planned_after_the_instant_is_not_in_the_copy() {
    let (disk, container) = new_container();
    container.create_volume("v", MIB).unwrap();
    for n in 0..3 {
        put(&container, "v", n * BLOCK, 1);
    }
    let volume = container.volume("v").unwrap();
    let Planned::Ready(before) = volume.plan_write(0..BLOCK, Waker::noop()).unwrap() else { panic!("busy") };
    let copy = container.begin_snapshot("v", "copy").unwrap();
    let Planned::Ready(after) = volume.plan_write(BLOCK..2 * BLOCK, Waker::noop()).unwrap() else { panic!("busy") };
    for (ticket, value) in [(after, 3), (before, 2)] {
        disk.write_at(&[value; BLOCK as usize], ticket.segments()[0].disk_offset).unwrap();
        ticket.complete();
    }
    copy.finish().unwrap();
    let shown = |name: &str| [0, 1, 2].map(|n| block(&container, name, n * BLOCK));
    assert_eq!((shown("copy"), shown("v")), ([2, 1, 1], [2, 3, 1]));
}

// rule: SNP-4 — a head that holds nothing but zeros was written to: its copy shows them.
#[test]
fn a_copy_of_a_discarded_volume_shows_zeros() {
    let (_, container) = new_container();
    container.create_volume("golden", MIB).unwrap();
    put(&container, "golden", 0, 1);
    container.snapshot("golden", "v").unwrap();
    io(&container, "v").discard(0..BLOCK).unwrap();
    container.snapshot("v", "copy").unwrap();
    assert_eq!(["golden", "v", "copy"].map(|name| block(&container, name, 0)), [1, 0, 0]);
}

/// `v` over two frozen layers that can be merged: in the even chunks both have a slab, in the others only the lower one.
fn two_layers(container: &Container) {
    container.create_volume("v", 300 * SLAB_LEN).unwrap();
    for chunk in 0..300 {
        put(container, "v", chunk * SLAB_LEN, 1);
    }
    container.snapshot("v", "lower").unwrap();
    for chunk in (0..300).step_by(2) {
        put(container, "v", chunk * SLAB_LEN + BLOCK, 2);
    }
    container.snapshot("v", "upper").unwrap();
    container.delete_volume("lower").unwrap();
    container.commit().unwrap();
}

fn assert_two_layers(container: &Container, what: &str) {
    for name in ["v", "upper"] {
        for chunk in 0..300 {
            let shown = [0, BLOCK].map(|offset| block(container, name, chunk * SLAB_LEN + offset));
            assert_eq!(shown, [1, if chunk % 2 == 0 { 2 } else { 0 }], "{what}: {name}, chunk {chunk}");
        }
    }
}

// rules: LAY-8, JNL-2 — at no write of a merge does a crash show anything else, or leave entries that disagree.
#[test]
fn a_crash_in_the_middle_of_a_merge_changes_nothing() {
    let (disk, container) = new_container();
    two_layers(&container);
    let mut crash = disk.record();
    let mut steps = 0;
    let mut look = |disk: &SimDisk| {
        for event in disk.take_events() {
            crash.step(&event);
        }
        steps += 1;
        for keep in [Fate::Lost, Fate::Kept] {
            let left = crash.disk(|_| keep);
            assert_clean(&*left);
            assert_two_layers(&open(left), &format!("a crash after step {steps}"));
        }
    };
    while container.maintain().unwrap() == Maintained::Worked {
        look(&disk);
        container.commit().unwrap();
        look(&disk);
    }
    assert_two_layers(&container, "at the end");
    assert_eq!(container.layers().len(), 3, "nothing was merged");
}

// rule: LAY-8 — while a merge copies blocks, and before they are in their place, everybody reads the same.
#[test]
fn a_merge_shows_blocks_only_when_they_have_been_copied() {
    let (disk, container) = new_container();
    two_layers(&container);
    container.close().unwrap();
    let hooked = Hooked::on(disk);
    let container = open(hooked.clone());
    let looks = Arc::new(AtomicU64::new(0));
    let (inside, count) = (container.clone(), looks.clone());
    hooked.set(move |op| {
        if op == Op::Write {
            let chunk = count.fetch_add(1, Ordering::Relaxed) % 150 * 2;
            assert_eq!(block(&inside, "v", chunk * SLAB_LEN), 1, "chunk {chunk}");
        }
        Ok(())
    });
    container.settle(1000).unwrap();
    hooked.clear();
    assert!(looks.load(Ordering::Relaxed) >= 150, "nothing was copied");
    assert_two_layers(&container, "at the end");
}

// rule: LAY-8 — zeros that hide what an older layer holds are merged like data: single blocks, and whole tables.
#[test]
fn a_merge_takes_zeros_along() {
    let (disk, container) = new_container();
    container.create_volume("golden", MIB).unwrap();
    for offset in [0, BLOCK, SLAB_LEN] {
        put(&container, "golden", offset, 1);
    }
    for (name, discarded) in [("v", 0..BLOCK), ("w", 0..MIB)] {
        container.snapshot("golden", name).unwrap();
        io(&container, name).discard(discarded).unwrap();
        container.snapshot(name, "between").unwrap();
        put(&container, name, 2 * BLOCK, 2);
        container.snapshot(name, &format!("{name}-copy")).unwrap();
        container.delete_volume("between").unwrap();
    }
    let layers = container.layers().len();
    container.settle(1000).unwrap();
    assert!(container.layers().len() < layers, "nothing was merged");
    container.close().unwrap();
    let container = open(disk);
    for (name, expected) in [("v", [0, 1, 2, 1]), ("w", [0, 0, 2, 0])] {
        for name in [name, &format!("{name}-copy")] {
            let shown = [0, BLOCK, 2 * BLOCK, SLAB_LEN].map(|offset| block(&container, name, offset));
            assert_eq!(shown, expected, "{name}");
        }
    }
}

// rule: LAY-8 — a layer that a write of before its freeze still fills takes no part in a merge.
#[test]
fn a_layer_that_is_not_sealed_is_not_merged() {
    let (disk, container) = new_container();
    container.create_volume("v", MIB).unwrap();
    put(&container, "v", 0, 1);
    container.snapshot("v", "first").unwrap();
    container.delete_volume("first").unwrap();
    let volume = container.volume("v").unwrap();
    let Planned::Ready(late) = volume.plan_write(0..BLOCK, Waker::noop()).unwrap() else { panic!("busy") };
    let copy = container.begin_snapshot("v", "copy").unwrap();
    disk.write_at(&[2; BLOCK as usize], late.segments()[0].disk_offset).unwrap();
    container.settle(1000).unwrap();
    late.complete();
    copy.finish().unwrap();
    container.settle(1000).unwrap();
    assert_eq!((block(&container, "copy", 0), block(&container, "v", 0)), (2, 2));
}

// rule: MAP-17 — what a deep chain shows is not remembered while a write planned before a copy is under way in it.
#[test]
fn a_write_that_ends_below_the_head_is_shown_through_a_deep_chain() {
    let (disk, container) = new_container();
    container.create_volume("v", MIB).unwrap();
    // The lowest layer shows most of the chunk: that is what would be remembered.
    for n in [0, 10, 11] {
        put(&container, "v", n * BLOCK, 1);
    }
    for n in 1..6 {
        container.snapshot("v", &format!("copy-{n}")).unwrap();
        put(&container, "v", n * BLOCK, 2);
    }
    let volume = container.volume("v").unwrap();
    let Planned::Ready(late) = volume.plan_write(0..BLOCK, Waker::noop()).unwrap() else { panic!("busy") };
    let copy = container.begin_snapshot("v", "copy").unwrap();
    for _ in 0..3 {
        assert_eq!(block(&container, "v", 0), 1);
    }
    disk.write_at(&[3; BLOCK as usize], late.segments()[0].disk_offset).unwrap();
    late.complete();
    assert_eq!(block(&container, "v", 0), 3);
    copy.finish().unwrap();
    assert_eq!([block(&container, "v", 0), block(&container, "copy", 0), block(&container, "copy-1", 0)], [3, 3, 1]);
}
