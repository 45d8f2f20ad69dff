//! Freeing what heads hide under readers, writers and commands.
//!
//! Rules: LAY-72, LAY-73, JNL-6, MAP-7, VOL-8 (design rule 33).

use pitstop_format::{Container, Error, ZeroKind};
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;

use crate::explore::{pick, scenario};
use crate::world::{FOREIGN, World, bytes, in_chunk, maintain, put, uniform, value};

const SIZE: u64 = 1 << 20;

/// `v` over a frozen layer of its own, over another that a copy of long ago shows, too: whoever misses the first finds 1.
fn prepare(container: &Container) {
    container.create_volume("v", SIZE).unwrap();
    container.create_volume("other", SIZE).unwrap();
    for value in [1, 2] {
        put(container, "v", in_chunk(0, 0..2), value);
        put(container, "v", in_chunk(1, 0..1), value);
        container.snapshot("v", if value == 1 { "old" } else { "copy" }).unwrap();
    }
}

/// The same below so many copies that what is found there is remembered.
fn prepare_deep(container: &Container) {
    container.create_volume("v", SIZE).unwrap();
    container.create_volume("other", SIZE).unwrap();
    for (value, copy) in [(1, "old"), (1, "older"), (1, "oldest"), (2, "copy")] {
        put(container, "v", in_chunk(0, 0..2), value);
        put(container, "v", in_chunk(1, 0..1), value);
        container.snapshot("v", copy).unwrap();
    }
}

fn everybody(world: &World) {
    let (hides_all, command, stop) = (pick(2) == 0, pick(3), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| maintain(&world.container, &stop));
        let writer = world.queue("v");
        let writes = scope.spawn(move || {
            writer.write(in_chunk(0, 0..1), 3).unwrap();
            // Completed from below.
            let place = in_chunk(0, 1..2).start;
            writer.write(place + 512..place + 1024, 3).unwrap();
            if hides_all {
                writer.zero(in_chunk(1, 0..64), ZeroKind::Discard).unwrap();
            }
            writer.flush().unwrap();
            world.promise(1);
        });
        let reader = world.queue("v");
        let reads = scope.spawn(move || {
            let mut before = 2;
            for _ in 0..4 {
                let found = uniform(&reader.read(in_chunk(0, 0..1)).unwrap());
                assert!([2, 3].contains(&found) && found >= before, "{found} after {before}");
                before = found;
                let found = uniform(&reader.read(in_chunk(1, 0..1)).unwrap());
                assert!(found == 2 || (hides_all && found == 0), "{found}");
            }
        });
        let other = world.queue("other");
        let commands = scope.spawn(move || {
            world.container.delete_volume("copy").unwrap();
            for chunk in 0..3 {
                other.write(in_chunk(chunk, 0..2), FOREIGN).unwrap();
            }
            match command {
                0 => {
                    world.container.snapshot("v", "late").unwrap();
                    let shown = value(&world.container, "late", in_chunk(0, 0..1));
                    assert!([2, 3].contains(&shown), "{shown}");
                }
                1 => world.container.delete_volume("old").unwrap(),
                _ => world.container.commit().unwrap(),
            }
        });
        [writes, reads, commands].into_iter().for_each(|thread| thread.join().unwrap());
        stop.store(true, Ordering::SeqCst);
    });
    let shows = |container: &Container, is_written: bool| {
        let [first, last] = [in_chunk(0, 0..1), in_chunk(1, 0..1)].map(|range| value(container, "v", range));
        let part = bytes(container, "v", in_chunk(0, 1..2));
        assert_eq!((part[0], part[511], part[1024]), (2, 2, 2));
        if is_written {
            assert_eq!((first, last, part[512]), (3, if hides_all { 0 } else { 2 }, 3));
        } else {
            assert!([2, 3].contains(&first) && (last == 2 || (hides_all && last == 0)), "{first}, {last}");
        }
    };
    shows(&world.container, true);
    world.crash(|container, promises| shows(container, promises.contains(&1)));
    world.close(|container| shows(container, true));
}

scenario! {
    /// rules: LAY-72, LAY-73 — nobody sees that what a head hides is freed, whoever reads, writes, copies or crashes.
    what_a_head_hides_is_missed_by_nobody, prepare, everybody
}

scenario! {
    /// rules: LAY-72, MAP-17 — nor by those who remember what is below the head.
    what_a_head_hides_is_missed_by_nobody_who_remembers, prepare_deep, everybody
}

/// `v` over a frozen layer that a copy shows, too, in a file that is full.
fn prepare_full(container: &Container) {
    container.create_volume("v", SIZE).unwrap();
    put(container, "v", in_chunk(0, 0..1), 1);
    put(container, "v", in_chunk(1, 0..1), 1);
    container.snapshot("v", "copy").unwrap();
    put(container, "v", in_chunk(0, 0..1), 2);
    container.create_volume("rest", 1 << 40).unwrap();
    put(container, "rest", in_chunk(0, 0..1), 1);
    container.settle(100).unwrap();
    let free = container.info().free_bytes / 4096 / 64;
    for chunk in 1..=free {
        put(container, "rest", in_chunk(chunk, 0..1), 1);
    }
}

fn nothing_but_what_is_hidden(world: &World) {
    assert_eq!(world.container.info().free_bytes, 0);
    world.disk.limit(Some(0));
    world.container.delete_volume("copy").unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| maintain(&world.container, &stop));
        let writer = world.queue("v");
        let writes = scope.spawn(move || {
            // One slab is hidden, and no more.
            writer.write(in_chunk(2, 0..1), 3).unwrap();
            let refused = (3..8).find_map(|chunk| writer.write(in_chunk(chunk % 4, 8..9), 3).err());
            assert!(matches!(refused, Some(Error::NoSpace { .. })), "{refused:?}");
        });
        writes.join().unwrap();
        stop.store(true, Ordering::SeqCst);
    });
    world.disk.limit(None);
    world.close(|container| {
        let shown = [0, 1, 2].map(|chunk| value(container, "v", in_chunk(chunk, 0..1)));
        assert_eq!(shown, [2, 1, 3]);
    });
}

scenario! {
    /// rules: VOL-8, VOL-23, LAY-72 — who lacks a slab waits for what is hidden to be freed, and is told when that is over.
    what_is_hidden_is_freed_before_anybody_lacks_space, prepare_full, nothing_but_what_is_hidden
}
