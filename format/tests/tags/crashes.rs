//! Crashes while tags are made, taken over and given up: no block that a disk has kept is ever taken for damaged.

use std::sync::Arc;

use pitstop_format::check::check;
use pitstop_format::testing::{Crash, Event, Fate, SimDisk};
use pitstop_format::{Container, HydrateStep, SLAB_LEN, Verify};

use crate::common::Rng;
use crate::support::*;

fn judge(disk: Arc<SimDisk>, rng: &mut Rng) {
    let report = check(&*disk).unwrap();
    assert_eq!(report.corruptions + report.leaks, 0, "{:#?}", report.findings);
    let container = open(&disk);
    assert_fits(&container);
    let names: Vec<String> = container.volumes().into_iter().map(|volume| volume.name).collect();
    for name in &names {
        contents(&container, name);
    }
    if rng.chance(25) {
        // What comes after the crash uses ids and slabs that were in use before it.
        for name in &names {
            fill(&container, name, 0..BLOCK, 200);
            fill(&container, name, 2 * SLAB_LEN..2 * SLAB_LEN + 3 * BLOCK, 201);
            container.snapshot(name, &format!("{name}-after")).unwrap();
            container.seal(name).unwrap();
            seal_all(&container);
            fill(&container, name, 0..BLOCK, 202);
        }
        container.settle(1000).unwrap();
        assert_fits(&container);
        names.iter().for_each(|name| drop(contents(&container, name)));
    }
}

/// Judges crashes at every event so far.
fn examine(disk: &SimDisk, crash: &mut Crash, rng: &mut Rng) {
    for event in disk.take_events() {
        crash.step(&event);
        if !matches!(event, Event::Write { .. } | Event::Durable(_) | Event::SyncEnded(_)) {
            continue;
        }
        for percent in [0, 50, 100] {
            judge(crash.disk(|_| if rng.chance(percent) { Fate::Kept } else { Fate::Lost }), rng);
        }
    }
}

// req: R13, R28; rules: TAG-2 to TAG-4, TAG-8, CHK-0
#[test]
fn a_crash_at_any_write_makes_no_whole_block_look_damaged() {
    for seed in 0..3 {
        let mut rng = Rng::new(seed + 1);
        let (disk, container) = new_container(MIB);
        container.create_volume("golden", SIZE).unwrap();
        container.set_verify("golden", Verify::Copy).unwrap();
        fill(&container, "golden", 0..3 * SLAB_LEN + BLOCK, 1);
        let mut crash = disk.record();
        container.snapshot("golden", "ci").unwrap();
        fill(&container, "golden", BLOCK..3 * BLOCK, 2);
        let volume = find(&container, "golden").id;
        container.seal_step(volume, SLAB_LEN).unwrap();
        examine(&disk, &mut crash, &mut rng);
        // A freeze that is not durable, while sealing goes on.
        let pending = container.begin_snapshot("golden", "second").unwrap();
        for _ in 0..4 {
            container.seal_step(volume, SLAB_LEN).unwrap();
        }
        examine(&disk, &mut crash, &mut rng);
        pending.finish().unwrap();
        let layer = container.hydrate("ci").unwrap().unwrap();
        while !matches!(container.hydrate_step(layer, SLAB_LEN).unwrap(), HydrateStep::Ended(_)) {
            container.maintain().unwrap();
            if container.seals().iter().any(|seal| seal.volume_id == volume) {
                container.seal_step(volume, SLAB_LEN).unwrap();
            }
        }
        examine(&disk, &mut crash, &mut rng);
        container.delete_volume("second").unwrap();
        container.settle(1000).unwrap();
        container.commit().unwrap();
        fill(&container, "ci", 0..2 * SLAB_LEN, 7);
        container.snapshot("ci", "third").unwrap();
        container.seal("ci").unwrap();
        seal_all(&container);
        examine(&disk, &mut crash, &mut rng);
        container.close().unwrap();
        examine(&disk, &mut crash, &mut rng);
    }
}

// rule: TAG-4 — tags that reach the disk before the freeze does would outlive it: the head is one again after a crash.
#[test]
fn tags_wait_until_the_freeze_is_durable() {
    let (disk, container) = new_container(MIB);
    // There are tags already, so that no new place for them brings about a commit.
    container.create_volume("sealed", SIZE).unwrap();
    fill(&container, "sealed", 0..SLAB_LEN, 1);
    container.snapshot("sealed", "copy").unwrap();
    container.seal("sealed").unwrap();
    seal_all(&container);
    container.create_volume("v", SIZE).unwrap();
    container.set_verify("v", Verify::Copy).unwrap();
    fill(&container, "v", 0..SLAB_LEN, 1);
    container.commit().unwrap();
    let volume = find(&container, "v").id;
    let pending = container.begin_snapshot("v", "w").unwrap();
    container.seal_step(volume, SLAB_LEN).unwrap();
    // The process dies: all that was written is there.
    let left = disk.copy();
    drop(pending);
    let after = Container::open(left, pitstop_format::OpenMode::ReadWrite).unwrap();
    fill(&after, "v", 0..SLAB_LEN, 2);
    after.snapshot("v", "w").unwrap();
    contents(&after, "w");
    assert_fits(&after);
}
