//! Commands that change as many slots as they may, while the journal is nearly full and guests write (JNL-31).

use std::sync::Arc;
use std::task::Waker;

use pitstop_format::testing::SimDisk;
use pitstop_format::{Container, Error, NewCopy, Planned, Result};

use crate::support::*;

/// Commits of before the command: from none to more than the ring takes without a checkpoint.
const COMMITS: std::ops::Range<u64> = 0..48;
const CHUNK: u64 = 64 * BLOCK;

/// A closed container with a volume `guest` that has nothing yet, with free slabs, and with what `prepare` makes.
fn prepared(prepare: impl FnOnce(&Container)) -> Arc<SimDisk> {
    let (disk, container) = new_container();
    container.create_volume("guest", 1 << 30).unwrap();
    container.create_volume("old", 1 << 30).unwrap();
    for chunk in 0..400 {
        put(&container, "old", chunk * CHUNK, 1);
    }
    container.delete_volume("old").unwrap();
    prepare(&container);
    container.settle(100_000).unwrap();
    container.close().unwrap();
    disk
}

/// Runs `command` behind each number of commits, with as many changes gathered as guests may make.
fn assert_finds_room(prepared: &SimDisk, command: impl Fn(&Container) -> Result<()>) {
    for commits in COMMITS {
        let disk = prepared.copy();
        let container = open(disk.clone());
        for n in 0..commits {
            put(&container, "guest", n * CHUNK, 1);
            io(&container, "guest").flush().unwrap();
        }
        let guest = container.volume("guest").unwrap();
        let plan = |n: u64| guest.plan_write(n * CHUNK..n * CHUNK + BLOCK, Waker::noop()).unwrap();
        let mut next = commits;
        // Every other one is still under way.
        let mut under_way = Vec::new();
        while let Planned::Ready(ticket) = plan(next) {
            if next % 2 == 0 {
                under_way.push(ticket)
            } else {
                ticket.complete()
            }
            next += 1;
        }
        assert!(next > commits + 150, "only {} chunks until guests wait", next - commits);
        command(&container).unwrap_or_else(|error| panic!("behind {commits} commits: {error}"));
        under_way.into_iter().for_each(|ticket| ticket.complete());
        assert_eq!(container.failure(), None, "behind {commits} commits");
        put(&container, "guest", 0, 2);
        io(&container, "guest").flush().unwrap();
        container.settle(100_000).unwrap();
        container.close().unwrap();
        assert_clean(&*disk);
    }
}

fn group(count: usize) -> Vec<NewCopy> {
    (0..count).map(|n| NewCopy { source: format!("s{n}"), name: format!("copy-{n}") }).collect()
}

// rules: JNL-31, SNP-23
#[test]
fn the_largest_group_finds_room_in_a_nearly_full_journal() {
    let (_, container) = new_container();
    let Err(Error::TooManyCopies { most, .. }) = container.snapshot_group(&group(1000)) else { panic!("not too many") };
    let disk = prepared(|container| {
        for copy in group(most) {
            container.create_volume(&copy.source, MIB).unwrap();
            put(container, &copy.source, 0, 1);
        }
    });
    assert_finds_room(&disk, |container| container.snapshot_group(&group(most)).map(drop));
}

/// Puts a volume `deep` on `layers` layers that are its own, its head included, each of which a copy keeps.
fn make_deep(container: &Container, layers: usize) {
    container.create_volume("deep", MIB).unwrap();
    for n in 1..layers {
        put(container, "deep", 0, 1);
        container.snapshot("deep", &format!("kept-{n}")).unwrap();
    }
    put(container, "deep", 0, 1);
}

fn deepest() -> usize {
    let (_, container) = new_container();
    make_deep(&container, 100);
    let Err(Error::TooManyLayers { most, layers: 100, .. }) = container.delete_volume("deep") else {
        panic!("not too many")
    };
    most
}

// rules: JNL-31, LAY-5
#[test]
fn letting_the_deepest_volume_go_finds_room_in_a_nearly_full_journal() {
    let most = deepest();
    let disk = prepared(|container| {
        make_deep(container, most);
        container.create_volume("other", MIB).unwrap();
        put(container, "other", 0, 7);
    });
    assert_finds_room(&disk, |container| container.delete_volume("deep"));
    assert_finds_room(&disk, |container| container.refresh("deep", "other").map(drop));
}
