//! A volume that is filled from below under its guest, readers, commands, merges of its parents and reuse of slabs.
//!
//! Rules: LAY-30 to LAY-35 (design rules 1, 6, 21).

use pitstop_format::{Container, HydrateEnd, VolumeState};
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;

use crate::explore::{pick, scenario};
use crate::world::{FOREIGN, World, exists, fill, in_chunk, maintain, put, state, uniform, value};

const SIZE: u64 = 1 << 20;

/// `ci` over two layers of golden's, of which the lower one is also that of `old`; it is being hydrated.
fn prepare(container: &Container) {
    container.create_volume("golden", SIZE).unwrap();
    container.create_volume("other", SIZE).unwrap();
    put(container, "golden", in_chunk(0, 0..2), 1);
    put(container, "golden", in_chunk(2, 0..1), 3);
    container.snapshot("golden", "old").unwrap();
    put(container, "golden", in_chunk(0, 1..2), 2);
    put(container, "golden", in_chunk(1, 0..1), 2);
    container.snapshot("golden", "ci").unwrap();
    container.hydrate("ci").unwrap().unwrap();
}

/// What a volume with ci's contents shows: block 0 of ci is overwritten with 9 at some time.
fn holds(container: &Container, volume: &str) {
    let at = |chunk, block| value(container, volume, in_chunk(chunk, block..block + 1));
    let first = at(0, 0);
    assert!(first == 1 || first == 9, "{volume} shows {first}");
    assert_eq!([at(0, 1), at(1, 0), at(2, 0), at(3, 0)], [2, 2, 3, 0], "{volume}");
}

fn everybody(world: &World) {
    let (command, stop) = (pick(7), AtomicBool::new(false));
    let container = &world.container;
    let end = thread::scope(|scope| {
        scope.spawn(|| maintain(container, &stop));
        let filler = scope.spawn(|| fill(container));
        let (reader, late) = (world.queue("ci"), world.queue("ci"));
        let mut others = vec![scope.spawn(move || {
            for _ in 0..3 {
                let found = reader.read(in_chunk(0, 0..2)).unwrap();
                let (first, second) = (uniform(&found[..4096]), uniform(&found[4096..]));
                if command != 0 {
                    assert!((first == 1 || first == 9) && second == 2, "{first} {second}");
                }
            }
        })];
        others.push(scope.spawn(move || {
            late.write(in_chunk(0, 0..1), 9).unwrap();
            // The rest of the block comes from below.
            let place = in_chunk(1, 0..1).start;
            late.write(place + 512..place + 1024, 2).unwrap();
            late.flush().unwrap();
        }));
        let other = world.queue("other");
        others.push(scope.spawn(move || {
            match command {
                0 => drop(container.refresh("ci", "other").unwrap()),
                1 => drop(container.snapshot("ci", "copy").unwrap()),
                2 => container.delete_volume("golden").unwrap(),
                3 => drop(container.hydrations().first().map(|found| container.cancel_hydration(found.layer))),
                4 => drop(container.refresh("golden", "ci").unwrap()),
                5 => {
                    container.snapshot("ci", "copy").unwrap();
                    container.delete_volume("golden").unwrap();
                }
                _ => container.delete_volume("old").unwrap(),
            }
            // What is freed is another's soon.
            (0..3).for_each(|chunk| other.write(in_chunk(chunk, 0..2), FOREIGN).unwrap());
        }));
        others.into_iter().for_each(|other| other.join().unwrap());
        let end = filler.join().unwrap();
        stop.store(true, Ordering::SeqCst);
        end
    });
    let shows = |container: &Container| {
        let copies = ["ci", "copy"].into_iter().filter(|name| exists(container, name));
        copies.filter(|name| command != 0 || *name != "ci").for_each(|name| holds(container, name));
        if command == 4 {
            holds(container, "golden");
        }
    };
    shows(container);
    world.crash(|container, _| {
        shows(container);
        fill(container);
        shows(container);
    });
    match command {
        0 => assert_ne!(state(container, "ci"), VolumeState::Hydrating),
        3 => {}
        _ => assert_eq!((end, state(container, "ci")), (HydrateEnd::Done, VolumeState::Real)),
    }
    world.close(shows);
}

scenario! {
    /// rules: LAY-30 to LAY-35 — a volume that is filled shows the same to everybody, also when it ends or is given up.
    a_hydration_is_seen_by_nobody, prepare, everybody
}
