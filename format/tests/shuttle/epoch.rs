//! The instant of a copy against writes on several queues.
//!
//! Rules: SNP-1, SNP-2, SNP-20, SNP-21, SNP-22, LAY-11 (design rules 18, 19).

use pitstop_format::{Container, NewCopy};
use shuttle::sync::mpsc;
use shuttle::thread;

use crate::explore::{pick, scenario};
use crate::world::{BLOCK, Queue, World, bytes, exists, in_chunk, leave_foreign_slabs, put, uniform, value};

const SIZE: u64 = 1 << 20;

fn prepare(container: &Container) {
    container.create_volume("v", SIZE).unwrap();
    container.create_volume("target", SIZE).unwrap();
    // Two of the four places are in the head, so that writes go there in place; two are first writes.
    put(container, "v", in_chunk(0, 0..1), 1);
    put(container, "v", in_chunk(1, 0..1), 1);
    put(container, "target", in_chunk(0, 0..1), 9);
    leave_foreign_slabs(container);
}

/// Two places of the four: chunk 0 and 1 hold 1, chunk 2 and 3 nothing.
fn places() -> (u64, u64) {
    let places = [(0, 1), (0, 2), (2, 0), (2, 3)];
    places[pick(4) as usize]
}

fn before(chunk: u64) -> u8 {
    if chunk < 2 { 1 } else { 0 }
}

/// What a copy shows at the two places is one of the states that the volume went through.
fn is_an_instant(container: &Container, volume: &str, (a, b): (u64, u64)) {
    let at = |chunk| value(container, volume, in_chunk(chunk, 0..1));
    let found = (at(a), at(b));
    let allowed = [(before(a), before(b)), (2, before(b)), (2, 2)];
    assert!(allowed.contains(&found), "{volume} shows {found:?} at {a}, {b}");
}

/// A is written on one queue, and once that is acknowledged, B on another.
fn write_in_order<'scope>(scope: &'scope thread::Scope<'scope, '_>, world: &World, (a, b): (u64, u64)) {
    let (first, second) = (world.queue("v"), world.queue("v"));
    let (acknowledge, acknowledged) = mpsc::channel();
    scope.spawn(move || {
        first.write(in_chunk(a, 0..1), 2).unwrap();
        acknowledge.send(()).unwrap();
    });
    scope.spawn(move || {
        acknowledged.recv().unwrap();
        second.write(in_chunk(b, 0..1), 2).unwrap();
    });
}

fn two_queues_and_a_snapshot(world: &World) {
    let places = places();
    thread::scope(|scope| {
        write_in_order(scope, world, places);
        scope.spawn(|| {
            world.container.snapshot("v", "copy").unwrap();
            world.promise(1);
            is_an_instant(&world.container, "copy", places);
        });
    });
    let shown = bytes(&world.container, "copy", 0..SIZE);
    world.crash(|container, promises| {
        assert!(!promises.contains(&1) || exists(container, "copy"));
        if exists(container, "copy") {
            assert_eq!(bytes(container, "copy", 0..SIZE), shown, "a copy shows one instant for ever");
        }
    });
    world.close(|container| {
        assert_eq!(bytes(container, "copy", 0..SIZE), shown);
        for chunk in [places.0, places.1] {
            assert_eq!(value(container, "v", in_chunk(chunk, 0..1)), 2);
        }
    });
}

scenario! {
    /// rules: SNP-1, SNP-2 — B in the copy means that A is, and a crash changes nothing of that.
    a_copy_never_has_the_second_of_two_writes_alone, prepare, two_queues_and_a_snapshot
}

fn two_queues_and_a_refresh(world: &World) {
    let places = places();
    thread::scope(|scope| {
        write_in_order(scope, world, places);
        scope.spawn(|| {
            world.container.refresh("target", "v").unwrap();
            world.promise(1);
            is_an_instant(&world.container, "target", places);
        });
        let reader = world.queue("target");
        scope.spawn(move || {
            let shown = uniform(&reader.read(in_chunk(0, 0..1)).unwrap());
            assert!([9, 1, 2].contains(&shown), "the target shows {shown}");
        });
    });
    let shown = bytes(&world.container, "target", 0..SIZE);
    world.crash(|container, promises| {
        let now = bytes(container, "target", 0..SIZE);
        let old = now[0] == 9 && now[BLOCK..].iter().all(|byte| *byte == 0);
        assert!(now == shown || (old && !promises.contains(&1)), "neither the old target nor the instant");
    });
    world.close(|container| assert_eq!(bytes(container, "target", 0..SIZE), shown));
}

scenario! {
    /// rules: SNP-1, SNP-2 — a refreshed target is as before or as of one instant, for readers and after crashes.
    a_refresh_is_one_instant_or_none, prepare, two_queues_and_a_refresh
}

fn two_copies_and_a_writer(world: &World) {
    let places = places();
    thread::scope(|scope| {
        let queue = world.queue("v");
        scope.spawn(move || {
            queue.write(in_chunk(places.0, 0..1), 2).unwrap();
            queue.write(in_chunk(places.1, 0..1), 2).unwrap();
        });
        for name in ["copy1", "copy2"] {
            scope.spawn(move || {
                world.container.snapshot("v", name).unwrap();
                is_an_instant(&world.container, name, places);
                // The copy is a volume of its own.
                Queue::new(&world.container, name).write(in_chunk(3, 8..9), 7).unwrap();
            });
        }
    });
    world.crash(|container, _| {
        ["copy1", "copy2"].into_iter().filter(|name| exists(container, name)).for_each(|name| {
            is_an_instant(container, name, places);
        });
    });
    world.close(|container| {
        for name in ["copy1", "copy2"] {
            is_an_instant(container, name, places);
            assert_eq!(value(container, name, in_chunk(3, 8..9)), 7);
        }
        assert_eq!(value(container, "v", in_chunk(3, 8..9)), 0);
    });
}

scenario! {
    /// rules: SNP-1, VOL-12 — two copies at once are two instants of their source.
    two_copies_at_once_are_two_instants, prepare, two_copies_and_a_writer
}

fn prepare_two(container: &Container) {
    prepare(container);
    put(container, "target", in_chunk(1, 0..1), 1);
    put(container, "target", in_chunk(0, 0..1), 1);
}

/// A is written on one volume and queue, and once that is acknowledged, B on another volume, whose copy comes first or
/// second; on a third queue a write that nobody waits for.
fn two_volumes_and_a_group(world: &World) {
    let (a, b) = (pick(4), pick(4));
    let [(first, of_first), (second, of_second)] = {
        let both = [("v", "copy1"), ("target", "copy2")];
        if pick(2) == 0 { both } else { [both[1], both[0]] }
    };
    let group = [("v", "copy1"), ("target", "copy2")]
        .map(|(source, name)| NewCopy { source: source.to_owned(), name: name.to_owned() });
    let is_an_instant = |container: &Container| {
        let at = |copy, chunk| value(container, copy, in_chunk(chunk, 0..1));
        let found = (at(of_first, a), at(of_second, b));
        let allowed = [(before(a), before(b)), (2, before(b)), (2, 2)];
        assert!(allowed.contains(&found), "{of_first} and {of_second} show {found:?} at {a}, {b}");
    };
    thread::scope(|scope| {
        let (queue, other) = (world.queue(first), world.queue(second));
        let (acknowledge, acknowledged) = mpsc::channel();
        scope.spawn(move || {
            queue.write(in_chunk(a, 0..1), 2).unwrap();
            acknowledge.send(()).unwrap();
        });
        scope.spawn(move || {
            acknowledged.recv().unwrap();
            other.write(in_chunk(b, 0..1), 2).unwrap();
        });
        let queue = world.queue(second);
        scope.spawn(move || queue.write(in_chunk(1, 8..9), 3).unwrap());
        scope.spawn(|| {
            world.container.snapshot_group(&group).unwrap();
            world.promise(1);
            is_an_instant(&world.container);
        });
    });
    world.crash(|container, promises| {
        let there = ["copy1", "copy2"].map(|name| exists(container, name));
        assert!(there[0] == there[1] && (there[0] || !promises.contains(&1)), "{there:?} of a group");
        if there[0] {
            is_an_instant(container);
        }
    });
    world.close(is_an_instant);
}

scenario! {
    /// rules: SNP-20, SNP-21, SNP-22 — B in its copy means that A is in the other, and a crash leaves both copies or none.
    a_group_never_has_the_second_of_two_writes_alone, prepare_two, two_volumes_and_a_group
}
