//! Closing, and failing, while everybody is at work.
//!
//! Rules: JNL-14, JNL-19, VOL-7, VOL-9 (design rule 14).

use pitstop_format::testing::Fault;
use pitstop_format::{Container, Error};
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;

use crate::explore::{pick, scenario};
use crate::world::{World, exists, in_chunk, leave_foreign_slabs, maintain, put, value};

const SIZE: u64 = 1 << 20;

fn prepare(container: &Container) {
    container.create_volume("v", SIZE).unwrap();
    container.create_volume("w", SIZE).unwrap();
    put(container, "v", in_chunk(0, 0..1), 1);
    container.snapshot("v", "copy").unwrap();
    put(container, "v", in_chunk(0, 1..2), 1);
    leave_foreign_slabs(container);
}

/// Whether a step was refused because the container is closed or has failed.
fn refused<T>(outcome: pitstop_format::Result<T>) -> bool {
    match outcome {
        Ok(_) => false,
        Err(Error::Closed | Error::Failed { .. } | Error::Io { .. } | Error::VolumeGone { .. }) => true,
        Err(error) => panic!("{error}"),
    }
}

/// What each promise stands for.
fn kept(container: &Container, promises: &[u64]) {
    let shown = value(container, "v", in_chunk(1, 0..1));
    assert!(shown == 5 || (shown == 0 && !promises.contains(&5)), "{shown} {promises:?}");
    assert!(!promises.contains(&1) || exists(container, "new"));
    assert!(!promises.contains(&2) || !exists(container, "copy"));
    assert_eq!(value(container, "v", in_chunk(0, 0..2)), 1);
    for volume in ["new", "w"] {
        let refreshed = exists(container, volume) && value(container, volume, in_chunk(0, 0..1)) == 1;
        assert!(refreshed || volume == "w" || !exists(container, volume));
    }
}

fn busy<'scope>(scope: &'scope thread::Scope<'scope, '_>, world: &'scope World, stop: &'scope AtomicBool) {
    scope.spawn(move || maintain(&world.container, stop));
    let queue = world.queue("v");
    scope.spawn(move || {
        let write = queue.write(in_chunk(1, 0..1), 5);
        if !refused(write.and_then(|()| queue.flush())) {
            world.promise(5);
        }
    });
    scope.spawn(move || {
        if !refused(world.container.snapshot("v", "new")) {
            world.promise(1);
        }
        if !refused(world.container.delete_volume("copy")) {
            world.promise(2);
        }
        refused(world.container.refresh("w", "v"));
        stop.store(true, Ordering::SeqCst);
    });
}

fn closing(world: &World) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        busy(scope, world, &stop);
        scope.spawn(|| world.container.clone().close().unwrap());
    });
    world.crash(kept);
}

scenario! {
    /// rule: VOL-13 — commands and flushes that meet a close end: done or refused, never halfway, never for ever.
    closing_while_everybody_is_at_work, prepare, closing
}

fn failing(world: &World) {
    let fault = [Fault::Sync, Fault::Write, Fault::Durable, Fault::Grow][pick(4) as usize];
    world.disk.fail(Some((fault, pick(12))));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| busy(scope, world, &stop));
    world.disk.fail(None);
    world.crash(kept);
}

scenario! {
    /// rules: JNL-14, VOL-7 — whatever fails, nobody waits for ever, and what was promised is there after a crash.
    a_disk_that_fails_while_everybody_is_at_work, prepare, failing
}
