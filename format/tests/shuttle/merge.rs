//! Merges of frozen layers under readers, writers and commands.
//!
//! Rules: LAY-5, LAY-8, LAY-11, MAP-17 (design rules 21, 23).

use pitstop_format::{Container, Error};
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;

use crate::explore::{pick, scenario};
use crate::world::{FOREIGN, World, bytes, exists, in_chunk, maintain, maintain_some, put, uniform, value};

const SIZE: u64 = 1 << 20;

/// Two frozen layers below `v`, which become one: in chunk 0 both have a slab, in chunk 1 only the lower one.
fn prepare(container: &Container) {
    container.create_volume("v", SIZE).unwrap();
    container.create_volume("other", SIZE).unwrap();
    put(container, "v", in_chunk(0, 0..2), 1);
    put(container, "v", in_chunk(1, 0..1), 2);
    container.snapshot("v", "first").unwrap();
    put(container, "v", in_chunk(0, 1..2), 3);
    container.snapshot("v", "second").unwrap();
    put(container, "v", in_chunk(2, 0..1), 4);
}

/// The same below two more copies, so that what is found there is remembered.
fn prepare_deep(container: &Container) {
    prepare(container);
    for (n, name) in [(1, "fourth"), (2, "fifth")] {
        container.snapshot("v", name).unwrap();
        put(container, "v", in_chunk(2, n..n + 1), 5);
    }
}

/// What `v` and the second copy show, whatever is merged.
fn holds(container: &Container, volume: &str) {
    let at = |chunk, block| value(container, volume, in_chunk(chunk, block..block + 1));
    let found = [at(0, 0), at(0, 1), at(1, 0)];
    assert_eq!(found, [1, 3, 2], "{volume}");
}

fn everybody(world: &World) {
    let command = pick(4);
    thread::scope(|scope| {
        scope.spawn(move || {
            world.container.delete_volume("first").unwrap();
            maintain_some(&world.container, 5);
            let other = world.queue("other");
            other.write(in_chunk(0, 0..1), FOREIGN).unwrap();
        });
        let (reader, copy) = (world.queue("v"), world.queue("second"));
        scope.spawn(move || {
            for _ in 0..3 {
                assert_eq!(uniform(&reader.read(in_chunk(1, 0..1)).unwrap()), 2);
                match copy.read(in_chunk(0, 0..2)) {
                    Ok(found) => assert_eq!((uniform(&found[..4096]), uniform(&found[4096..])), (1, 3)),
                    Err(Error::VolumeGone { .. }) if command == 1 => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let writer = world.queue("v");
        scope.spawn(move || {
            // Completed from below: from layers that are being merged.
            let place = in_chunk(1, 0..1).start;
            writer.write(place + 512..place + 1024, 2).unwrap();
            match command {
                0 => drop(world.container.snapshot("second", "third").unwrap()),
                1 => world.container.delete_volume("second").unwrap(),
                2 => drop(world.container.refresh("other", "v").unwrap()),
                _ => drop(world.container.snapshot("v", "third").unwrap()),
            }
        });
    });
    let shows = |container: &Container| {
        for volume in ["v", "second", "third"] {
            if exists(container, volume) {
                holds(container, volume);
            }
        }
    };
    shows(&world.container);
    world.crash(|container, _| shows(container));
    let other = bytes(&world.container, "other", in_chunk(0, 0..1))[0];
    world.close(|container| {
        shows(container);
        assert_eq!(value(container, "other", in_chunk(0, 0..1)), other);
    });
}

scenario! {
    /// rules: LAY-8, LAY-11 — what is merged shows the same bytes to everybody at every instant, after crashes too.
    a_merge_is_seen_by_nobody, prepare, everybody
}

/// Readers who remember already, merges one after another, and slabs that others use as soon as they are free.
fn everybody_remembers(world: &World) {
    let again = |container: &Container| ["v", "fifth"].iter().for_each(|volume| holds(container, volume));
    (0..3).for_each(|_| again(&world.container));
    let (command, stop) = (pick(4), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| maintain(&world.container, &stop));
        let readers = ["v", "fifth"].map(|volume| {
            let queue = world.queue(volume);
            scope.spawn(move || {
                for _ in 0..4 {
                    let found = queue.read(in_chunk(0, 0..2)).unwrap();
                    assert_eq!((uniform(&found[..4096]), uniform(&found[4096..])), (1, 3));
                    assert_eq!(uniform(&queue.read(in_chunk(1, 0..1)).unwrap()), 2);
                }
            })
        });
        let other = world.queue("other");
        let commands = scope.spawn(move || {
            world.container.delete_volume("first").unwrap();
            other.write(in_chunk(0, 0..1), FOREIGN).unwrap();
            world.container.delete_volume("second").unwrap();
            match command {
                0 => drop(world.container.snapshot("v", "third").unwrap()),
                1 => drop(world.container.refresh("other", "v").unwrap()),
                2 => world.container.delete_volume("fourth").unwrap(),
                _ => world.container.commit().unwrap(),
            }
            let chunks = if command == 1 { 3..4 } else { 1..4 };
            chunks.for_each(|chunk| other.write(in_chunk(chunk, 0..1), FOREIGN).unwrap());
        });
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        commands.join().unwrap();
        stop.store(true, Ordering::SeqCst);
    });
    world.close(again);
}

scenario! {
    /// rules: MAP-17, LAY-8, JNL-6 — nor by those who have remembered before layers left the chain and their slabs went.
    merges_and_reuse_meet_what_is_remembered, prepare_deep, everybody_remembers
}

scenario! {
    /// rules: MAP-17, LAY-8 — nor by those who remember what is below a head.
    a_merge_is_seen_by_nobody_who_remembers, prepare_deep, everybody
}
