//! A copy made again and hydrated again: what it held before moves into it, beside its readers, writers on both sides, a
//! checkpoint, and commands that take the donor away.
//!
//! Rules: REL-2, REL-5 to REL-8, LAY-30 (design rules 6, 20).

use pitstop_format::{Container, HydrateEnd, VolumeState};
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;

use crate::explore::{pick, scenario};
use crate::journal::fill_journal;
use crate::world::{FOREIGN, World, exists, fill, in_chunk, maintain, put, state, uniform, value};

const SIZE: u64 = 1 << 20;

/// `ci` was hydrated from `golden`; since then golden has another block in chunk 1, and ci one of its own in chunk 2.
fn prepare(container: &Container) {
    container.create_volume("golden", SIZE).unwrap();
    container.create_volume("w", SIZE).unwrap();
    put(container, "golden", in_chunk(0, 0..2), 1);
    put(container, "golden", in_chunk(1, 0..2), 2);
    put(container, "golden", in_chunk(2, 0..2), 3);
    container.snapshot("golden", "ci").unwrap();
    container.hydrate("ci").unwrap().unwrap();
    assert_eq!(fill(container), HydrateEnd::Done);
    put(container, "golden", in_chunk(1, 0..1), 4);
    put(container, "ci", in_chunk(2, 0..1), 7);
}

/// What a copy of golden shows: block 0 of ci is overwritten with 9 at some time.
fn holds(container: &Container, volume: &str) {
    let at = |chunk, block| value(container, volume, in_chunk(chunk, block..block + 1));
    let first = at(0, 0);
    assert!(first == 1 || first == 9, "{volume} shows {first}");
    assert_eq!([at(0, 1), at(1, 0), at(1, 1), at(2, 0), at(2, 1), at(3, 0)], [1, 4, 2, 3, 3, 0], "{volume}");
}

fn adopted_bytes(container: &Container) -> u64 {
    let volume = container.volumes().into_iter().find(|volume| volume.name == "ci").unwrap();
    volume.relation.and_then(|relation| relation.moved).unwrap().adopted_bytes
}

fn everybody(world: &World) {
    fill_journal(world, pick(36));
    let (command, stop) = (pick(8), AtomicBool::new(false));
    let container = &world.container;
    let end = thread::scope(|scope| {
        scope.spawn(|| maintain(container, &stop));
        let reader = world.queue("ci");
        let mut others = vec![scope.spawn(move || {
            for _ in 0..3 {
                // One request: of before the refresh, or of after it.
                let Ok(found) = reader.read(in_chunk(1, 0..66)) else {
                    assert_eq!(command, 6, "only a deleted volume is not read");
                    return;
                };
                let shown = [0, 1, 64, 65].map(|block| uniform(&found[block * 4096..(block + 1) * 4096]));
                let foreign = command == 0 && shown == [0; 4];
                assert!(foreign || [[2, 2, 7, 3], [4, 2, 3, 3]].contains(&shown), "{shown:?}");
            }
        })];
        let writer = world.queue("golden");
        container.refresh("ci", "golden").unwrap();
        let late = world.queue("ci");
        others.push(scope.spawn(move || {
            let written = [in_chunk(0, 0..2), in_chunk(3, 0..1)].map(|place| writer.write(place, 8));
            assert!(written.iter().all(Result::is_ok) || command == 2, "{written:?}");
            writer.flush().unwrap_or_else(|error| assert_eq!(command, 2, "{error}"));
        }));
        container.hydrate("ci").unwrap().unwrap();
        let filler = scope.spawn(|| fill(container));
        others.push(scope.spawn(move || {
            let place = in_chunk(2, 1..2).start;
            // The rest of the block comes from below. The volume may be gone, or another's copy.
            let written = late.write(in_chunk(0, 0..1), 9).and_then(|()| match command {
                0 => Ok(()),
                _ => late.write(place + 512..place + 1024, 3),
            });
            assert!(written.is_ok() || command == 6, "{written:?}");
            late.flush().unwrap_or_else(|error| assert_eq!(command, 6, "{error}"));
        }));
        let other = world.queue("w");
        others.push(scope.spawn(move || {
            match command {
                0 => drop(container.refresh("ci", "w").unwrap()),
                1 => drop(container.snapshot("ci", "copy").unwrap()),
                2 => container.delete_volume("golden").unwrap(),
                3 => drop(container.hydrations().first().map(|found| container.cancel_hydration(found.layer))),
                4 => drop(container.refresh("golden", "ci").unwrap()),
                5 => drop(container.split("ci").unwrap()),
                6 => container.delete_volume("ci").unwrap(),
                _ => {}
            }
            // What is freed is another's soon.
            (0..3).for_each(|chunk| other.write(in_chunk(chunk, 8..10), FOREIGN).unwrap());
        }));
        others.into_iter().for_each(|other| other.join().unwrap());
        let end = filler.join().unwrap();
        stop.store(true, Ordering::SeqCst);
        end
    });
    let shows = |container: &Container| {
        let copies = ["ci", "copy"].into_iter().filter(|name| exists(container, name));
        copies.filter(|name| command != 0 || *name != "ci").for_each(|name| holds(container, name));
    };
    shows(container);
    world.crash(|container, _| {
        // Of before the refresh, or another's copy, it shows something else.
        if exists(container, "ci") && value(container, "ci", in_chunk(2, 0..1)) == 3 {
            shows(container);
            fill(container);
            shows(container);
        }
    });
    match command {
        0 => assert_ne!(state(container, "ci"), VolumeState::Hydrating),
        3 | 6 => {}
        7 => assert!(adopted_bytes(container) > 0, "nothing was adopted"),
        _ => assert_eq!((end, state(container, "ci")), (HydrateEnd::Done, VolumeState::Real)),
    }
    world.close(shows);
}

scenario! {
    /// rules: REL-5 to REL-8, LAY-30 — an adoption is seen by nobody: neither by requests of before nor by writers, and not
    /// when its donor goes.
    an_adoption_is_seen_by_nobody, prepare, everybody
}
