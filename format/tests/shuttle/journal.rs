//! Flushes that meet: who leads, who follows, what they may count on, and who wakes whom.
//!
//! Rules: JNL-1, JNL-3, JNL-5, JNL-7, JNL-8, JNL-9, JNL-14, JNL-18, VOL-8 (design rules 3, 4, 5, 14).

use pitstop_format::testing::Fault;
use pitstop_format::{Container, Error, SLAB_LEN, ZeroKind};
use shuttle::sync::atomic::AtomicBool;
use shuttle::sync::atomic::Ordering;
use shuttle::thread;

use crate::explore::{pick, scenario};
use crate::world::{World, in_chunk, leave_foreign_slabs, maintain, maintain_some, put, value};

const SIZE: u64 = 1 << 20;

fn prepare(container: &Container) {
    container.create_volume("v", SIZE).unwrap();
    container.create_volume("w", SIZE).unwrap();
    put(container, "w", in_chunk(0, 0..1), 1);
    leave_foreign_slabs(container);
}

/// Each writer's place: two share a volume and a chunk.
const PLACES: [(&str, u64); 3] = [("v", 0), ("v", 1), ("w", 64)];

fn kept(container: &Container, promises: &[u64], places: &[(&str, u64)]) {
    for (&(volume, block), number) in places.iter().zip(5u8..) {
        let shown = value(container, volume, in_chunk(0, block..block + 1));
        let promised = promises.contains(&u64::from(number));
        assert!(shown == number || (shown == 0 && !promised), "{volume} {block}: {shown}, promised: {promised}");
    }
}

fn flushes(world: &World) {
    thread::scope(|scope| {
        for ((volume, block), number) in PLACES.into_iter().zip(5u8..) {
            let queue = world.queue(volume);
            scope.spawn(move || {
                queue.write(in_chunk(0, block..block + 1), number).unwrap();
                queue.flush().unwrap();
                world.promise(u64::from(number));
            });
        }
        // Flushes what others wrote, and has nothing of its own.
        let queue = world.queue("v");
        scope.spawn(move || queue.flush().unwrap());
    });
    world.crash(|container, promises| kept(container, promises, &PLACES));
    world.close(|container| kept(container, &[5, 6, 7], &PLACES));
}

scenario! {
    /// rules: JNL-3, JNL-7, JNL-18 — a flush that returns has made durable what completed before it, and nothing unsynced
    /// ever shows.
    flushes_at_once_keep_what_each_promised, prepare, flushes
}

fn acknowledged_elsewhere(world: &World) {
    thread::scope(|scope| {
        let (writer, other) = (world.queue("v"), world.queue("v"));
        let written = AtomicBool::new(false);
        let written = std::sync::Arc::new(written);
        let told = written.clone();
        scope.spawn(move || {
            writer.write(in_chunk(0, 0..1), 5).unwrap();
            written.store(true, Ordering::SeqCst);
            writer.flush().unwrap();
            world.promise(5);
        });
        scope.spawn(move || {
            let completed = told.load(Ordering::SeqCst);
            other.flush().unwrap();
            if completed {
                world.promise(5);
            }
        });
        let third = world.queue("w");
        scope.spawn(move || third.flush().unwrap());
    });
    world.crash(|container, promises| kept(container, promises, &PLACES[..1]));
    world.close(|container| kept(container, &[5], &PLACES[..1]));
}

scenario! {
    /// rule: JNL-7 — a flush that finds nothing listed waits for the batch that has taken it.
    a_clean_flush_waits_for_the_batch_that_has_its_changes, prepare, acknowledged_elsewhere
}

fn failing(world: &World) {
    let fault = if pick(2) == 0 { Fault::Sync } else { Fault::Write };
    let after = pick(4);
    thread::scope(|scope| {
        for ((volume, block), number) in PLACES.into_iter().zip(5u8..) {
            let queue = world.queue(volume);
            scope.spawn(move || {
                let written = queue.write(in_chunk(0, block..block + 1), number);
                match written.and_then(|()| queue.flush()) {
                    Ok(()) => world.promise(u64::from(number)),
                    Err(Error::Failed { .. } | Error::Io { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            });
        }
        scope.spawn(move || world.disk.fail(Some((fault, after))));
        scope.spawn(|| match world.container.snapshot("v", "copy") {
            Ok(_) => world.promise(1),
            Err(Error::Failed { .. }) => {}
            Err(error) => panic!("{error}"),
        });
    });
    if world.container.failure().is_some() {
        assert!(matches!(world.queue("v").flush(), Err(Error::Failed { .. })), "a failed container flushes");
    }
    world.disk.fail(None);
    world.crash(|container, promises| {
        kept(container, promises, &PLACES);
        assert!(!promises.contains(&1) || container.volume("copy").is_ok());
    });
}

scenario! {
    /// rule: JNL-14 — after a failed sync or journal write every flush fails, none hangs, and what was promised is there.
    a_failed_sync_fails_every_flush_and_hangs_none, prepare, failing
}

/// Brings the journal near the fill at which a checkpoint is due.
pub fn fill_journal(world: &World, commits: u64) {
    let queue = world.queue("w");
    for _ in 0..commits {
        queue.write(in_chunk(1, 0..1), 1).unwrap();
        queue.zero(in_chunk(1, 0..1), ZeroKind::Discard).unwrap();
        queue.flush().unwrap();
    }
}

fn checkpoints(world: &World) {
    fill_journal(world, 28 + pick(14));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let work = scope.spawn(|| maintain(&world.container, &stop));
        let writers = PLACES.into_iter().zip(5u8..).map(|((volume, block), number)| {
            let queue = world.queue(volume);
            scope.spawn(move || {
                queue.write(in_chunk(0, block..block + 1), number).unwrap();
                queue.flush().unwrap();
                world.promise(u64::from(number));
            })
        });
        let writers: Vec<_> = writers.collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        stop.store(true, Ordering::SeqCst);
        work.join().unwrap();
    });
    world.crash(|container, promises| kept(container, promises, &PLACES));
    world.close(|container| kept(container, &[5, 6, 7], &PLACES));
}

scenario! {
    /// rules: JNL-5, JNL-9 — a checkpoint among flushes loses nothing, and a full journal wakes those who wait for room.
    checkpoints_among_flushes_lose_nothing, prepare, checkpoints
}

/// Nothing is free but two slabs, and the file may not grow.
fn prepare_full(container: &Container) {
    container.create_volume("v", 8 * SLAB_LEN).unwrap();
    container.create_volume("w", 8 * SLAB_LEN).unwrap();
    put(container, "v", in_chunk(6, 0..1), 1);
    put(container, "w", in_chunk(6, 0..1), 1);
    let free = container.info().free_bytes / SLAB_LEN;
    container.create_volume("rest", 1 << 40).unwrap();
    for chunk in 0..free - 3 {
        put(container, "rest", in_chunk(chunk, 0..1), 2);
    }
}

fn no_space(world: &World) {
    let free = world.container.info().free_bytes / SLAB_LEN;
    assert!(free <= 3, "{free} slabs are free");
    world.disk.limit(Some(0));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let work = scope.spawn(|| maintain(&world.container, &stop));
        let writers: Vec<_> = ["v", "w"]
            .into_iter()
            .map(|volume| {
                let queue = world.queue(volume);
                scope.spawn(move || {
                    for chunk in 0..2 {
                        match queue.write(in_chunk(chunk, 0..1), 5) {
                            Ok(()) | Err(Error::NoSpace { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            })
            .collect();
        let freer = scope.spawn(|| {
            let queue = world.queue("rest");
            queue.zero(in_chunk(0, 0..64).start..in_chunk(1, 0..64).end, ZeroKind::Discard).unwrap();
        });
        freer.join().unwrap();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        stop.store(true, Ordering::SeqCst);
        work.join().unwrap();
    });
    let shown = |container: &Container| {
        let at = |volume, chunk| value(container, volume, in_chunk(chunk, 0..1));
        [at("v", 0), at("v", 1), at("w", 0), at("w", 1)]
    };
    let now = shown(&world.container);
    assert!(now.iter().all(|value| [0, 5].contains(value)), "{now:?}");
    world.disk.limit(None);
    world.close(|container| assert_eq!(shown(container), now));
}

scenario! {
    /// rule: VOL-8 — who waits for a slab is woken when one comes free, and told when none will.
    who_waits_for_space_is_woken_or_told, prepare_full, no_space
}

fn growth(world: &World) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let work = scope.spawn(|| maintain(&world.container, &stop));
        let writers: Vec<_> = ["v", "w"]
            .into_iter()
            .map(|volume| {
                let queue = world.queue(volume);
                scope.spawn(move || {
                    for chunk in 0..2 {
                        queue.write(in_chunk(chunk, 0..1), 5).unwrap();
                    }
                    queue.flush().unwrap();
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        stop.store(true, Ordering::SeqCst);
        work.join().unwrap();
    });
    maintain_some(&world.container, 1);
    world.crash(|_, _| {});
    world.close(|container| {
        for (volume, chunk) in [("v", 0), ("v", 1), ("w", 0), ("w", 1)] {
            assert_eq!(value(container, volume, in_chunk(chunk, 0..1)), 5);
        }
    });
}

scenario! {
    /// rule: VOL-8 — growth wakes those who wait for it, and no write fails while the file may grow.
    growth_wakes_those_who_wait, prepare_full, growth
}
