//! Writes under way while their head is frozen or doomed.
//!
//! Rules: SNP-1, SNP-2, SNP-3, LAY-11 (design rules 16, 19).

use pitstop_format::Container;
use shuttle::thread;

use crate::explore::{pick, scenario};
use crate::world::{World, bytes, exists, in_chunk, leave_foreign_slabs, put, uniform, value, values};

const SIZE: u64 = 1 << 20;

fn prepare(container: &Container) {
    container.create_volume("v", SIZE).unwrap();
    container.create_volume("target", SIZE).unwrap();
    put(container, "v", in_chunk(0, 0..4), 1);
    put(container, "v", in_chunk(1, 0..4), 1);
    put(container, "target", in_chunk(0, 0..1), 9);
    leave_foreign_slabs(container);
}

/// A write across two chunks, in two disk writes: in place, or for the first time.
fn across() -> std::ops::Range<u64> {
    let chunk = 2 * pick(2);
    in_chunk(chunk, 63..64).start..in_chunk(chunk + 1, 0..1).end
}

/// Both halves of the write, or none.
fn whole(container: &Container, volume: &str, range: std::ops::Range<u64>) -> bool {
    let half = (range.end - range.start) / 2;
    let at = |range| value(container, volume, range);
    let found = (at(range.start..range.start + half), at(range.start + half..range.end));
    let second_before = if range.start < in_chunk(1, 0..1).start { 1 } else { 0 };
    assert!([(0, second_before), (5, 5)].contains(&found), "{volume} shows {found:?}");
    found == (5, 5)
}

fn a_write_under_way(world: &World) {
    let range = across();
    thread::scope(|scope| {
        let queue = world.queue("v");
        let written = range.clone();
        scope.spawn(move || queue.write(written, 5).unwrap());
        let range = range.clone();
        scope.spawn(move || {
            if pick(2) == 0 {
                world.container.snapshot("v", "copy").unwrap();
            } else {
                world.container.create_volume("copy", SIZE).unwrap();
                world.container.refresh("copy", "v").unwrap();
            }
            world.promise(1);
            let shown = whole(&world.container, "copy", range.clone());
            thread::yield_now();
            assert_eq!(whole(&world.container, "copy", range), shown, "the copy changed");
        });
    });
    let shown = bytes(&world.container, "copy", 0..SIZE);
    world.crash(|container, promises| {
        if exists(container, "copy") {
            let now = bytes(container, "copy", 0..SIZE);
            assert!(now == shown || (now.iter().all(|byte| *byte == 0) && !promises.contains(&1)));
        } else {
            assert!(!promises.contains(&1));
        }
    });
    world.close(|container| {
        assert_eq!(bytes(container, "copy", 0..SIZE), shown);
        assert!(whole(container, "v", range.clone()));
    });
}

scenario! {
    /// rules: SNP-1, SNP-2 — a copy waits for the writes of before it, shows each whole or not at all, and never changes.
    a_copy_is_there_only_when_the_writes_of_before_it_have_ended, prepare, a_write_under_way
}

fn parts_of_blocks(world: &World) {
    let block = in_chunk(0, 0..1).start;
    thread::scope(|scope| {
        let (first, second) = (world.queue("v"), world.queue("v"));
        scope.spawn(move || first.write(block..block + 512, 5).unwrap());
        scope.spawn(|| {
            world.container.snapshot("v", "copy").unwrap();
        });
        // A first write to a part of the new head's block, perhaps while the other is under way below it.
        scope.spawn(move || second.write(block + 512..block + 1024, 6).unwrap());
    });
    let copy = values(&bytes(&world.container, "copy", in_chunk(0, 0..1)));
    assert!([1, 5].contains(&copy[0]) && [1, 6].contains(&copy[1]) && copy[2..] == [1; 6], "the copy shows {copy:?}");
    world.close(|container| {
        assert_eq!(values(&bytes(container, "copy", in_chunk(0, 0..1))), copy);
        let now = values(&bytes(container, "v", in_chunk(0, 0..1)));
        assert_eq!(now, [5, 6, 1, 1, 1, 1, 1, 1], "the source lost a sector");
    });
}

scenario! {
    /// rule: SNP-3 — a part of a block is completed from below only when what lies below is settled.
    parts_of_a_block_on_either_side_of_the_instant_both_stay, prepare, parts_of_blocks
}

fn both() -> std::ops::Range<u64> {
    in_chunk(0, 60..64).start..in_chunk(1, 0..4).end
}

fn prepare_both(container: &Container) {
    prepare(container);
    put(container, "v", both(), 2);
    put(container, "target", both(), 9);
}

fn refresh_among_readers(world: &World) {
    let both = both();
    thread::scope(|scope| {
        let (reader, writer) = (world.queue("target"), world.queue("v"));
        let range = both.clone();
        scope.spawn(move || {
            for _ in 0..2 {
                let shown = uniform(&reader.read(range.clone()).unwrap());
                assert!([9, 2].contains(&shown), "the target shows {shown}");
            }
        });
        let range = both.clone();
        scope.spawn(move || writer.write(in_chunk(2, 0..1).start..in_chunk(2, 0..2).end, 3).unwrap());
        scope.spawn(move || {
            world.container.refresh("target", "v").unwrap();
            world.promise(1);
            assert_eq!(value(&world.container, "target", range), 2);
        });
    });
    world.crash(|container, promises| {
        let shown = value(container, "target", both.clone());
        assert!(shown == 2 || (shown == 9 && !promises.contains(&1)), "the target shows {shown}");
    });
    world.close(|container| assert_eq!(value(container, "target", both.clone()), 2));
}

scenario! {
    /// rules: SNP-1, SNP-2 — one read of a volume that is being refreshed shows the old contents or the new.
    a_read_shows_one_side_of_a_refresh, prepare_both, refresh_among_readers
}
