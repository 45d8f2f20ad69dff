//! Slabs that are given up, freed and used by another volume, while somebody still knows them.
//!
//! Rules: JNL-6, MAP-8, MAP-9, LAY-12 (design rules 6, 8).

use pitstop_format::{Container, Error, ZeroKind};
use shuttle::thread;

use crate::explore::{pick, scenario};
use crate::world::{FOREIGN, Queue, World, bytes, exists, in_chunk, maintain_some, put, uniform, value, values};

const SIZE: u64 = 1 << 20;

fn prepare(container: &Container) {
    for name in ["other", "golden", "victim"] {
        container.create_volume(name, SIZE).unwrap();
    }
    put(container, "golden", in_chunk(0, 0..1), 3);
    put(container, "other", in_chunk(3, 0..1), 4);
    // A copy's own blocks and its parent's are in slabs of the same order; the victim's are the lowest.
    put(container, "victim", in_chunk(0, 0..1), 7);
    put(container, "victim", in_chunk(1, 0..1), 7);
}

/// Gives up the victim's first chunk, in one of the ways there are.
fn give_up(world: &World, way: u64) {
    match way {
        0 => world.container.delete_volume("victim").unwrap(),
        1 => drop(world.container.refresh("victim", "golden").unwrap()),
        _ => {
            let queue = world.queue("victim");
            queue.zero(in_chunk(0, 0..64), ZeroKind::Discard).unwrap();
        }
    }
}

/// What the victim's first block may show then.
fn left(way: u64) -> &'static [u8] {
    match way {
        0 => &[],
        1 => &[3],
        _ => &[0],
    }
}

fn readers(world: &World) {
    let way = pick(3);
    thread::scope(|scope| {
        let reader = world.queue("victim");
        scope.spawn(move || {
            for _ in 0..2 {
                match reader.read(in_chunk(0, 0..1)) {
                    Ok(found) => {
                        let found = uniform(&found);
                        assert!(found == 7 || left(way).contains(&found), "way {way}: a reader of 7 sees {found}");
                    }
                    Err(Error::VolumeGone { .. }) if way == 0 => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        scope.spawn(move || {
            give_up(world, way);
            maintain_some(&world.container, 3);
            world.queue("other").flush().unwrap();
            let other = world.queue("other");
            for chunk in 0..2 {
                other.write(in_chunk(chunk, 0..1), FOREIGN).unwrap();
            }
        });
    });
    world.crash(|container, _| {
        if exists(container, "victim") {
            let shown = value(container, "victim", in_chunk(0, 0..1));
            assert!(shown == 7 || left(way).contains(&shown), "way {way}: after a crash 7 is {shown}");
        }
    });
    world.close(|container| {
        assert_eq!(value(container, "other", in_chunk(0, 0..1)), FOREIGN);
        assert_eq!(exists(container, "victim"), way != 0);
    });
}

scenario! {
    /// rules: JNL-6, MAP-8 — a reader, and a crash, never see a slab of before in its next owner's hands.
    who_knows_a_slab_never_sees_its_next_owner, prepare, readers
}

fn late_writers(world: &World) {
    let way = pick(3);
    let late = Queue::new(&world.container, "victim");
    thread::scope(|scope| {
        scope.spawn(move || {
            // In place, into a head that may be doomed by then; in part, into a block that may be zero by then.
            let part = pick(2) * 3584 + 512;
            match late.write(0..part, FOREIGN) {
                Ok(()) | Err(Error::VolumeGone { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        });
        scope.spawn(move || {
            give_up(world, way);
            maintain_some(&world.container, 3);
            let other = world.queue("other");
            for chunk in 0..3 {
                other.write(in_chunk(chunk, 0..1), 6).unwrap();
            }
            other.flush().unwrap();
            world.promise(1);
        });
    });
    let holds = |container: &Container| (0..3).all(|chunk| value(container, "other", in_chunk(chunk, 0..1)) == 6);
    world.crash(|container, promises| assert!(!promises.contains(&1) || holds(container)));
    world.close(|container| assert!(holds(container), "another volume's late write shows"));
}

scenario! {
    /// rules: JNL-6, LAY-12 — a write that is late lands in a slab that is still its own.
    a_late_write_lands_in_nobody_elses_slab, prepare, late_writers
}

fn prepare_discarded(container: &Container) {
    prepare(container);
    container.snapshot("golden", "copy").unwrap();
    put(container, "copy", in_chunk(0, 1..3), 5);
}

fn again_and_again(world: &World) {
    thread::scope(|scope| {
        let (discarder, writer, reader) = (world.queue("copy"), world.queue("copy"), world.queue("copy"));
        let other = world.queue("other");
        scope.spawn(move || {
            discarder.zero(in_chunk(0, 0..64), ZeroKind::Discard).unwrap();
            discarder.flush().unwrap();
            world.promise(1);
        });
        // The same entry gets a slab again.
        scope.spawn(move || writer.write(in_chunk(0, 1..2), 6).unwrap());
        scope.spawn(move || {
            maintain_some(&world.container, 2);
            other.write(in_chunk(0, 0..4), FOREIGN).unwrap();
        });
        scope.spawn(move || {
            let found = reader.read(in_chunk(0, 0..3)).unwrap();
            let found: Vec<u8> = found.chunks(4096).map(uniform).collect();
            let allowed: [&[u8]; 3] = [&[3, 0], &[5, 0, 6], &[5, 0]];
            assert!(found.iter().zip(allowed).all(|(value, allowed)| allowed.contains(value)), "{found:?}");
        });
    });
    let shown = bytes(&world.container, "copy", in_chunk(0, 0..3));
    let found: Vec<u8> = shown.chunks(4096).map(uniform).collect();
    assert!(found == [0, 6, 0] || found == [0, 0, 0], "{found:?}");
    world.crash(|container, promises| {
        let found = values(&bytes(container, "copy", in_chunk(0, 0..3)));
        let after: [&[u8]; 3] =
            if promises.contains(&1) { [&[0], &[0, 6], &[0]] } else { [&[3, 0], &[5, 0, 6], &[5, 0]] };
        for (sectors, allowed) in found.chunks(8).zip(after) {
            assert!(sectors.iter().all(|value| allowed.contains(value)), "{found:?}");
        }
    });
    world.close(|container| assert_eq!(bytes(container, "copy", in_chunk(0, 0..3)), shown));
}

scenario! {
    /// rules: MAP-7, MAP-8, MAP-9, JNL-6 — one entry's slab goes and another comes, and no reader sees a third's bytes.
    an_entry_changes_its_slab_under_readers, prepare_discarded, again_and_again
}
