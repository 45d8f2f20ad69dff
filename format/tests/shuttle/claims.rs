//! Requests that meet in one block.
//!
//! Rules: MAP-7, MAP-10, MAP-11, VOL-2, VOL-6, VOL-7, VOL-11 (design rule 7).

use pitstop_format::{Container, ZeroKind};
use shuttle::thread;

use crate::explore::{pick, scenario};
use crate::world::{World, bytes, in_chunk, leave_foreign_slabs, put, values};

const SIZE: u64 = 1 << 20;

/// A volume whose blocks are a copy's: below it, not in its head.
fn prepare(container: &Container) {
    container.create_volume("golden", SIZE).unwrap();
    put(container, "golden", in_chunk(0, 0..4), 1);
    container.snapshot("golden", "v").unwrap();
    leave_foreign_slabs(container);
}

fn parts_of_one_block(world: &World) {
    let places = [0u64, 1, 7];
    thread::scope(|scope| {
        for (value, sector) in (5..).zip(places) {
            let queue = world.queue("v");
            scope.spawn(move || {
                queue.write(sector * 512..(sector + 1) * 512, value).unwrap();
                assert_eq!(values(&queue.read(sector * 512..(sector + 1) * 512).unwrap()), [value]);
                queue.flush().unwrap();
                world.promise(u64::from(value));
            });
        }
    });
    world.crash(|container, promises| {
        let shown = values(&bytes(container, "v", in_chunk(0, 0..1)));
        for (value, sector) in (5..).zip(places) {
            let found = shown[sector as usize];
            assert!(found == value || (found == 1 && !promises.contains(&u64::from(value))), "{shown:?} {promises:?}");
        }
        assert_eq!(shown[2..7], [1; 5]);
    });
    world.close(|container| {
        assert_eq!(values(&bytes(container, "v", in_chunk(0, 0..1))), [5, 6, 1, 1, 1, 1, 1, 7]);
        assert_eq!(values(&bytes(container, "golden", in_chunk(0, 0..1))), [1; 8]);
    });
}

scenario! {
    /// rules: MAP-11, VOL-2 — first writes of parts of one block all stay, and so does the rest of the block.
    first_writes_of_parts_of_one_block_all_stay, prepare, parts_of_one_block
}

fn overlapping(world: &World) {
    let ranges = [0..2 * 4096, 4096..3 * 4096, 4096 + 512..4096 + 1024];
    thread::scope(|scope| {
        for (value, range) in (5..).zip(ranges.clone()) {
            let queue = world.queue("v");
            scope.spawn(move || queue.write(range, value).unwrap());
        }
        let reader = world.queue("v");
        scope.spawn(move || {
            let shown = values(&reader.read(in_chunk(0, 0..4)).unwrap());
            assert!(shown.iter().all(|value| [1, 5, 6, 7].contains(value)), "a reader saw {shown:?}");
        });
    });
    let shown = values(&bytes(&world.container, "v", in_chunk(0, 0..4)));
    assert_eq!(shown[..8], [5; 8]);
    assert!(shown[8..16].iter().all(|value| [5, 6].contains(value) || (*value == 7)), "{shown:?}");
    assert_eq!((shown[8..16].iter().filter(|value| **value == 7).count() <= 1, &shown[16..24]), (true, &[6; 8][..]));
    assert_eq!(shown[24..], [1; 8]);
    world.close(|container| assert_eq!(values(&bytes(container, "v", in_chunk(0, 0..4))), shown));
}

scenario! {
    /// rules: MAP-10, VOL-11 — where writes overlap, each sector is one of theirs; readers see nothing else.
    overlapping_writes_leave_each_sector_to_one_of_them, prepare, overlapping
}

fn zeroes_and_writes(world: &World) {
    let kind = if pick(2) == 0 { ZeroKind::Discard } else { ZeroKind::WriteZeroes };
    // Blocks 0 and 1 first written by the one, zeroed by the other; write-zeroes also takes half of block 2.
    let zeroed = 0..2 * 4096 + 2048;
    thread::scope(|scope| {
        let (writer, part, zeroer, reader) = (world.queue("v"), world.queue("v"), world.queue("v"), world.queue("v"));
        scope.spawn(move || writer.write(0..4096, 5).unwrap());
        scope.spawn(move || part.write(2 * 4096..2 * 4096 + 512, 6).unwrap());
        scope.spawn(move || {
            zeroer.zero(zeroed, kind).unwrap();
            zeroer.flush().unwrap();
            world.promise(1);
        });
        scope.spawn(move || {
            let shown = values(&reader.read(in_chunk(0, 0..4)).unwrap());
            assert!(shown.iter().all(|value| [0, 1, 5, 6].contains(value)), "a reader saw {shown:?}");
        });
    });
    let shown = values(&bytes(&world.container, "v", in_chunk(0, 0..4)));
    let one_of = |sectors: &[u8], allowed: &[u8]| sectors.iter().all(|value| allowed.contains(value));
    assert!(shown[..8] == [0; 8] || shown[..8] == [5; 8], "{shown:?}");
    assert_eq!(shown[8..16], [0; 8]);
    let rest = if kind == ZeroKind::Discard { 1 } else { 0 };
    assert!(one_of(&shown[16..17], if rest == 0 { &[0, 6] } else { &[6] }), "{shown:?}");
    assert_eq!((&shown[17..20], &shown[20..]), (&[rest; 3][..], &[1; 12][..]));
    world.crash(|container, promises| {
        let after = values(&bytes(container, "v", in_chunk(0, 0..4)));
        assert!(one_of(&after[..8], &[0, 1, 5]) && one_of(&after[16..17], &[0, 1, 6]), "{after:?}");
        assert!(!promises.contains(&1) || (after[8..16] == [0; 8] && !after[..8].contains(&1)), "{after:?}");
        assert_eq!(after[20..], [1; 12]);
    });
    world.close(|container| assert_eq!(values(&bytes(container, "v", in_chunk(0, 0..4))), shown));
}

scenario! {
    /// rules: MAP-7, MAP-11, VOL-6 — zeroing waits for first writes under way, or they for it.
    zeroing_and_first_writes_take_turns, prepare, zeroes_and_writes
}

fn given_up(world: &World) {
    use std::task::Waker;
    let volume = world.container.volume("v").unwrap();
    thread::scope(|scope| {
        let (queue, zeroer) = (world.queue("v"), world.queue("v"));
        scope.spawn(move || {
            // Claims the block and never writes it.
            if let pitstop_format::Planned::Ready(ticket) = volume.plan_write(0..4096, Waker::noop()).unwrap() {
                thread::yield_now();
                drop(ticket);
            }
        });
        scope.spawn(move || queue.write(512..1024, 5).unwrap());
        scope.spawn(move || zeroer.zero(4096..8192, ZeroKind::Discard).unwrap());
    });
    let expected = [vec![1, 5], vec![1; 6], vec![0; 8], vec![1; 16]].concat();
    world.close(|container| assert_eq!(values(&bytes(container, "v", in_chunk(0, 0..4))), expected));
}

scenario! {
    /// rules: VOL-7, MAP-11 — a write that is given up leaves what was there and wakes those who wait for it.
    a_write_given_up_leaves_what_was_there, prepare, given_up
}
