//! What each requirement promises, one test a promise, through the public interface.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::task::Waker;

use pitstop_format::testing::{Event, Fate, Fault, SimDisk};
use pitstop_format::{
    Container, CreateOptions, Disk, EdgeSource, Error, Extent, Flush, FlushStep, Maintained, OpenMode, Planned,
    ReadPlan, ReadSegment, VolumeInfo, VolumeIo, VolumeState, ZeroKind,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn new_disk() -> Arc<SimDisk> {
    let disk = SimDisk::new();
    let options = CreateOptions { journal_len_bytes: MIB, ..CreateOptions::default() };
    Container::create(disk.clone(), &options).unwrap();
    disk
}

fn open(disk: &Arc<SimDisk>) -> Container {
    Container::open(disk.clone(), OpenMode::ReadWrite).unwrap()
}

fn new_container() -> (Arc<SimDisk>, Container) {
    let disk = new_disk();
    let container = open(&disk);
    (disk, container)
}

fn io(container: &Container, name: &str) -> VolumeIo {
    VolumeIo::new(container, container.volume(name).unwrap())
}

fn fill(container: &Container, name: &str, range: std::ops::Range<u64>, value: u8) {
    let bytes = vec![value; (range.end - range.start) as usize];
    io(container, name).write_at(&bytes, range.start).unwrap();
}

/// The value that the whole range holds.
fn value(container: &Container, name: &str, range: std::ops::Range<u64>) -> u8 {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    io(container, name).read_at(&mut bytes, range.start).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{name} {range:?} is mixed");
    bytes[0]
}

fn find(container: &Container, name: &str) -> VolumeInfo {
    container.volumes().into_iter().find(|volume| volume.name == name).unwrap()
}

// req: R1, R2 — two volumes of two hierarchies; the source goes on being written.
#[test]
fn an_unrelated_volume_becomes_a_copy_of_the_source_at_once() {
    let (_, container) = new_container();
    container.create_volume("v1", 4 * MIB).unwrap();
    container.create_volume("v2", 2 * MIB).unwrap();
    fill(&container, "v1", 0..MIB, 1);
    fill(&container, "v2", 0..2 * MIB, 2);
    container.refresh("v2", "v1").unwrap();
    fill(&container, "v1", 0..MIB, 3);
    assert_eq!(value(&container, "v2", 0..MIB), 1);
    assert_eq!(value(&container, "v2", MIB..4 * MIB), 0);
    assert_eq!(value(&container, "v1", 0..MIB), 3);
    let info = find(&container, "v2");
    assert_eq!((info.size_bytes, info.state), (4 * MIB, VolumeState::Virtual));
    assert_eq!(info.origin.unwrap().name, "v1");
}

// req: R3 — reads and writes before any data has been copied; a write smaller than a block keeps the rest of the block.
#[test]
fn a_refreshed_volume_is_written_in_parts_of_blocks_at_once() {
    let (_, container) = new_container();
    container.create_volume("golden", MIB).unwrap();
    container.create_volume("ci", MIB).unwrap();
    fill(&container, "golden", 0..MIB, 7);
    container.refresh("ci", "golden").unwrap();
    fill(&container, "ci", 4096 + 512..4096 + 1024, 9);
    assert_eq!(value(&container, "ci", 4096..4096 + 512), 7);
    assert_eq!(value(&container, "ci", 4096 + 512..4096 + 1024), 9);
    assert_eq!(value(&container, "ci", 4096 + 1024..8192), 7);
    assert_eq!(value(&container, "golden", 0..MIB), 7);
}

// req: R4, R5 — copies made before keep what they held: those of the source, and those of the refreshed volume.
#[test]
fn copies_made_before_a_refresh_keep_their_contents() {
    let (disk, container) = new_container();
    container.create_volume("v1", MIB).unwrap();
    container.create_volume("v2", MIB).unwrap();
    fill(&container, "v1", 0..MIB, 1);
    fill(&container, "v2", 0..MIB, 2);
    container.snapshot("v1", "s1").unwrap();
    container.snapshot("v2", "s2").unwrap();
    fill(&container, "v1", 0..MIB / 2, 3);
    fill(&container, "v2", 0..MIB / 2, 4);
    container.refresh("v2", "v1").unwrap();
    container.settle(10_000).unwrap();
    for container in [container.clone(), {
        container.close().unwrap();
        open(&disk)
    }] {
        assert_eq!(value(&container, "s1", 0..MIB), 1);
        assert_eq!(value(&container, "s2", 0..MIB), 2);
        assert_eq!(value(&container, "v2", 0..MIB / 2), 3);
        assert_eq!(value(&container, "v2", MIB / 2..MIB), 1);
    }
}

// req: R6 — source and target may be copies themselves, also of each other.
#[test]
fn copies_are_sources_and_targets_of_refreshes() {
    let (_, container) = new_container();
    container.create_volume("v1", MIB).unwrap();
    fill(&container, "v1", 0..MIB, 1);
    container.snapshot("v1", "s1").unwrap();
    fill(&container, "v1", 0..MIB, 2);
    container.snapshot("v1", "s2").unwrap();
    container.refresh("s2", "s1").unwrap();
    assert_eq!(value(&container, "s2", 0..MIB), 1);
    container.refresh("v1", "s1").unwrap();
    assert_eq!(value(&container, "v1", 0..MIB), 1);
    fill(&container, "s1", 0..MIB, 5);
    container.refresh("v1", "s1").unwrap();
    container.refresh("s1", "s2").unwrap();
    assert_eq!(value(&container, "v1", 0..MIB), 5);
    assert_eq!(value(&container, "s1", 0..MIB), 1);
    for _ in 0..20 {
        container.refresh("v1", "s2").unwrap();
        container.refresh("s2", "v1").unwrap();
    }
    container.settle(10_000).unwrap();
    assert_eq!(value(&container, "s2", 0..MIB), 1);
}

// req: R7 — copies of the refreshed volume, made before and right after, and while a write of before is under way.
#[test]
fn copies_of_the_refreshed_volume_are_made_around_the_refresh() {
    let (_, container) = new_container();
    container.create_volume("v1", MIB).unwrap();
    container.create_volume("v2", MIB).unwrap();
    fill(&container, "v1", 0..MIB, 1);
    fill(&container, "v2", 0..MIB, 2);
    container.snapshot("v2", "before").unwrap();
    container.refresh("v2", "v1").unwrap();
    container.snapshot("v2", "after").unwrap();
    fill(&container, "v2", 0..MIB, 3);
    container.snapshot("v2", "later").unwrap();
    assert_eq!(value(&container, "before", 0..MIB), 2);
    assert_eq!(value(&container, "after", 0..MIB), 1);
    assert_eq!(value(&container, "later", 0..MIB), 3);
}

// rule: VOL-3 (req: R3) — counted from the plans: no edge to complete, nothing read, and only the guest's own bytes.
#[test]
fn first_aligned_writes_after_a_refresh_read_and_copy_nothing() {
    let (disk, container) = new_container();
    container.create_volume("golden", 64 * MIB).unwrap();
    container.create_volume("ci", 64 * MIB).unwrap();
    fill(&container, "golden", 0..64 * MIB, 1);
    container.refresh("ci", "golden").unwrap();
    container.settle(1000).unwrap();
    let volume = container.volume("ci").unwrap();
    let (reads, writes) = disk.counts();
    let mut planned_bytes = 0;
    let starts: Vec<u64> = (0..512).map(|n| n * 37 % 512 * 32 * 4096).collect();
    for &start in &starts {
        let Planned::Ready(ticket) = volume.plan_write(start..start + 4096, Waker::noop()).unwrap() else {
            panic!("a first write has to wait or to load a page");
        };
        assert!(ticket.edges().is_empty());
        planned_bytes += ticket.segments().iter().map(|segment| segment.len).sum::<u64>();
        ticket.complete();
    }
    assert_eq!(planned_bytes, 512 * 4096);
    assert_eq!(disk.counts(), (reads, writes), "planning and publishing did I/O");
    // The other case, so that the counts above can fail: a part of a block must be completed.
    let Planned::Ready(ticket) = volume.plan_write(4096..4096 + 512, Waker::noop()).unwrap() else {
        panic!("busy");
    };
    assert!(matches!(ticket.edges()[0].source, EdgeSource::Disk { .. }));
}

/// Bytes and syncs that an operation costs.
fn cost(disk: &SimDisk, operation: impl FnOnce()) -> (u64, u64) {
    disk.record();
    operation();
    disk.take_events().iter().fold((0, 0), |(bytes, syncs), event| match event {
        Event::Write { bytes: written, .. } => (bytes + written.len() as u64, syncs),
        Event::Durable(_) | Event::SyncEnded(_) => (bytes, syncs + 1),
        Event::Completed(_) | Event::SyncBegun(_) | Event::Grow(_) | Event::Mark(_) => (bytes, syncs),
    })
}

// Constant time, as counts that cannot be noisy: the same bytes and syncs for a small volume and for a large written one.
#[test]
fn snapshot_and_refresh_cost_the_same_for_any_size() {
    let mut costs = Vec::new();
    for (size, written) in [(GIB, 4 * MIB), (1024 * GIB, 256 * MIB)] {
        let (disk, container) = new_container();
        container.create_volume("golden", size).unwrap();
        container.create_volume("ci", size).unwrap();
        let step = size / (written / MIB) / 4096 * 4096;
        for n in 0..written / MIB {
            fill(&container, "golden", n * step..n * step + 4096, 1);
            fill(&container, "ci", n * step..n * step + 4096, 2);
        }
        container.settle(1000).unwrap();
        container.commit().unwrap();
        let snapshot = cost(&disk, || drop(container.snapshot("golden", "copy").unwrap()));
        fill(&container, "golden", 0..4096, 3);
        container.commit().unwrap();
        let refresh = cost(&disk, || drop(container.refresh("ci", "golden").unwrap()));
        costs.push((snapshot, refresh));
    }
    assert_eq!(costs[0], costs[1]);
    let ((bytes, syncs), _) = costs[0];
    assert!(bytes <= 16 << 10 && syncs <= 4, "a snapshot wrote {bytes} bytes and synced {syncs} times");
}

// req: R28 — several hierarchies in one container, and space that comes back.
#[test]
fn space_of_refreshed_and_deleted_volumes_is_used_again() {
    let (disk, container) = new_container();
    container.create_volume("golden", 64 * MIB).unwrap();
    container.create_volume("ci", 64 * MIB).unwrap();
    fill(&container, "golden", 0..16 * MIB, 1);
    let mut sizes = Vec::new();
    for round in 0..12 {
        container.refresh("ci", "golden").unwrap();
        container.settle(1000).unwrap();
        fill(&container, "ci", 0..32 * MIB, round);
        sizes.push(disk.len().unwrap());
    }
    assert_eq!(sizes[3], sizes[11], "the file grows although the same space is used: {sizes:?}");
    container.delete_volume("ci").unwrap();
    container.delete_volume("golden").unwrap();
    container.settle(1000).unwrap();
    container.commit().unwrap();
    assert_eq!(container.layers().len(), 0);
}

#[test]
fn deleting_a_golden_volume_leaves_its_copies_whole() {
    let (disk, container) = new_container();
    container.create_volume("golden", MIB).unwrap();
    fill(&container, "golden", 0..MIB, 1);
    for n in 0..20 {
        container.snapshot("golden", &format!("ci-{n}")).unwrap();
    }
    container.delete_volume("golden").unwrap();
    container.settle(1000).unwrap();
    container.close().unwrap();
    let container = open(&disk);
    for n in 0..20 {
        assert_eq!(value(&container, &format!("ci-{n}"), 0..MIB), 1);
    }
    assert_eq!(find(&container, "ci-3").origin.unwrap().name, "golden");
}

// rule: LAY-8 — layers that only one volume uses are folded together, and the volume shows the same bytes throughout.
#[test]
fn chains_of_frozen_layers_are_merged() {
    let (disk, container) = new_container();
    container.create_volume("v", 8 * MIB).unwrap();
    let mut expected = vec![0u8; 8 * MIB as usize];
    for round in 1..=30u8 {
        let start = u64::from(round) * 100 * 1024 / 512 * 512;
        let end = start + 300 * 1024;
        fill(&container, "v", start..end, round);
        expected[start as usize..end as usize].fill(round);
        io(&container, "v").discard(start + 8192..start + 16384).unwrap();
        let (first, last) = ((start + 8192).next_multiple_of(4096), (start + 16384) / 4096 * 4096);
        expected[first as usize..last as usize].fill(0);
        container.snapshot("v", "s").unwrap();
        container.delete_volume("s").unwrap();
    }
    assert!(find(&container, "v").depth >= 30);
    while container.maintain().unwrap() == Maintained::Worked {
        let mut bytes = vec![0; expected.len()];
        io(&container, "v").read_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, expected);
    }
    assert_eq!(find(&container, "v").depth, 1);
    container.close().unwrap();
    let container = open(&disk);
    let mut bytes = vec![0; expected.len()];
    io(&container, "v").read_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, expected);
}

// rule: VOL-5 — discarding a large clone touches little.
#[test]
fn discarding_a_tebibyte_is_small_and_shows_zeros() {
    let (disk, container) = new_container();
    container.create_volume("golden", 1024 * GIB).unwrap();
    for n in 0..16 {
        fill(&container, "golden", n * 64 * GIB..n * 64 * GIB + 8192, 1);
    }
    container.snapshot("golden", "clone").unwrap();
    container.settle(100).unwrap();
    disk.record();
    io(&container, "clone").discard(0..1024 * GIB).unwrap();
    io(&container, "clone").flush().unwrap();
    let written: usize = disk
        .take_events()
        .iter()
        .map(|event| if let Event::Write { bytes, .. } = event { bytes.len() } else { 0 })
        .sum();
    assert!(written < 256 << 10, "{written} bytes of metadata");
    let container = {
        container.close().unwrap();
        open(&disk)
    };
    for n in 0..16 {
        assert_eq!(value(&container, "clone", n * 64 * GIB..n * 64 * GIB + 8192), 0);
        assert_eq!(value(&container, "golden", n * 64 * GIB..n * 64 * GIB + 8192), 1);
    }
    let status = io(&container, "clone").block_status(0..1024 * GIB).unwrap();
    assert_eq!(status, (Extent::Zero, 1024 * GIB));
    fill(&container, "clone", 4096..8192, 5);
    assert_eq!(value(&container, "clone", 0..4096), 0);
    assert_eq!(value(&container, "clone", 4096..8192), 5);
}

#[test]
fn what_reads_as_zeros_costs_nothing_to_zero() {
    let (_, container) = new_container();
    container.create_volume("v", 64 << 40).unwrap();
    io(&container, "v").write_zeroes(512..(64 << 40) - 512).unwrap();
    assert_eq!(find(&container, "v").allocated_bytes, 0);
}

// rule: MAP-11 — first writes of parts of one block wait for each other, and neither is lost.
#[test]
fn two_first_writes_of_one_block_wait_for_each_other() {
    let (disk, container) = new_container();
    container.create_volume("v", MIB).unwrap();
    let volume = container.volume("v").unwrap();
    let Planned::Ready(first) = volume.plan_write(0..512, Waker::noop()).unwrap() else { panic!() };
    assert!(matches!(volume.plan_write(512..1024, Waker::noop()).unwrap(), Planned::Busy));
    assert!(matches!(volume.plan_zero(0..4096, ZeroKind::Discard, Waker::noop()).unwrap(), Planned::Busy));
    let edge = first.edges()[0];
    let mut block = [0; 4096];
    block[..512].fill(1);
    disk.write_at(&block, edge.disk_offset).unwrap();
    first.complete();
    fill(&container, "v", 512..1024, 2);
    assert_eq!(value(&container, "v", 0..512), 1);
    assert_eq!(value(&container, "v", 512..1024), 2);
}

// rule: SNP-3 — a part of a block is not completed from a layer that old writes still change.
#[test]
fn a_partial_first_write_waits_for_writes_of_before_a_snapshot() {
    let (disk, container) = new_container();
    container.create_volume("v", MIB).unwrap();
    fill(&container, "v", 0..4096, 1);
    let volume = container.volume("v").unwrap();
    // Overwrites a sector in place, planned before the snapshot, written after it.
    let Planned::Ready(old) = volume.plan_write(0..512, Waker::noop()).unwrap() else { panic!() };
    let copy = container.begin_snapshot("v", "s").unwrap();
    assert!(matches!(volume.plan_write(512..1024, Waker::noop()).unwrap(), Planned::Busy));
    // A whole block needs nothing from below and does not wait.
    let Planned::Ready(whole) = volume.plan_write(8192..12288, Waker::noop()).unwrap() else { panic!() };
    drop(whole);
    assert!(!copy.is_sealed());
    disk.write_at(&[2; 512], old.segments()[0].disk_offset).unwrap();
    old.complete();
    assert!(copy.is_sealed());
    fill(&container, "v", 512..1024, 3);
    copy.finish().unwrap();
    assert_eq!(value(&container, "v", 0..512), 2);
    assert_eq!(value(&container, "v", 512..1024), 3);
    assert_eq!(value(&container, "v", 1024..4096), 1);
    assert_eq!(value(&container, "s", 0..512), 2);
    assert_eq!(value(&container, "s", 512..4096), 1);
}

// rule: JNL-6 — a slab is not used again while a request planned before still reads it.
#[test]
fn a_freed_slab_waits_for_requests_that_know_it() {
    let (_, container) = new_container();
    container.create_volume("a", 256 * MIB).unwrap();
    fill(&container, "a", 0..MIB, 1);
    let volume = container.volume("a").unwrap();
    let mut plan = ReadPlan::default();
    assert!(matches!(volume.plan_read(0..4096, &mut plan).unwrap(), Planned::Ready(())));
    let ReadSegment::Data { disk_offset, .. } = plan.segments()[0] else { panic!() };
    io(&container, "a").discard(0..MIB).unwrap();
    let uses_it = |container: &Container| {
        (0..300u64).any(|n| {
            let start = 16 * MIB + n * 256 * 1024;
            let Planned::Ready(ticket) = volume.plan_write(start..start + 4096, Waker::noop()).unwrap() else {
                container.settle(100).unwrap();
                return false;
            };
            let found = ticket.segments()[0].disk_offset == disk_offset;
            ticket.complete();
            found
        })
    };
    container.commit().unwrap();
    assert!(!uses_it(&container), "reused under a reader");
    drop(plan);
    container.commit().unwrap();
    io(&container, "a").discard(16 * MIB..128 * MIB).unwrap();
    container.commit().unwrap();
    container.settle(100).unwrap();
    assert!(uses_it(&container), "never reused at all");
}

// rule: JNL-6 — nor before the record that frees it is durable: a crash would bring the old owner back.
#[test]
fn a_freed_slab_waits_for_its_freeing_to_be_durable() {
    let (disk, container) = new_container();
    container.create_volume("old", MIB).unwrap();
    container.create_volume("new", 64 * MIB).unwrap();
    // Plenty of free slabs: nothing else calls for a commit.
    fill(&container, "new", 32 * MIB..34 * MIB, 9);
    container.settle(100).unwrap();
    fill(&container, "old", 0..256 << 10, 1);
    io(&container, "old").flush().unwrap();
    let mut plan = ReadPlan::default();
    container.volume("old").unwrap().plan_read(0..4096, &mut plan).unwrap();
    let ReadSegment::Data { disk_offset, .. } = plan.segments()[0] else { panic!("no data") };
    plan.clear();
    io(&container, "old").discard(0..256 << 10).unwrap();
    container.settle(10).unwrap();
    // The lowest free slab is taken first: it would be this one.
    fill(&container, "new", 0..4 * MIB, 2);
    let crashed = Container::open(disk.copy(), OpenMode::ReadWrite).unwrap();
    assert_eq!(value(&crashed, "old", 0..256 << 10), 1, "the old owner shows another volume's data");
    io(&container, "new").flush().unwrap();
    container.settle(10).unwrap();
    fill(&container, "new", 8 * MIB..12 * MIB, 3);
    let mut seen = false;
    for start in (8 * MIB..12 * MIB).step_by(256 << 10) {
        container.volume("new").unwrap().plan_read(start..start + 4096, &mut plan).unwrap();
        seen |= matches!(plan.segments()[0], ReadSegment::Data { disk_offset: found, .. } if found == disk_offset);
    }
    assert!(seen, "never reused at all");
}

// rule: JNL-14 — after a failed sync no flush succeeds until the container is opened again.
#[test]
fn a_failed_sync_fails_the_container_until_it_is_reopened() {
    let (disk, container) = new_container();
    container.create_volume("v", MIB).unwrap();
    fill(&container, "v", 0..4096, 1);
    io(&container, "v").flush().unwrap();
    fill(&container, "v", 4096..8192, 2);
    disk.fail(Some((Fault::Sync, 0)));
    assert!(matches!(io(&container, "v").flush(), Err(Error::Failed { .. })));
    disk.fail(None);
    assert!(matches!(io(&container, "v").flush(), Err(Error::Failed { .. })));
    assert!(container.snapshot("v", "s").is_err());
    assert!(container.failure().is_some());
    drop(container);
    let container = open(&disk);
    assert_eq!(value(&container, "v", 0..4096), 1);
    io(&container, "v").flush().unwrap();
}

#[test]
fn a_full_disk_is_an_error_that_harms_nothing_and_passes() {
    let (disk, container) = new_container();
    container.create_volume("v", 256 * MIB).unwrap();
    fill(&container, "v", 0..MIB, 1);
    disk.limit(Some(disk.len().unwrap()));
    let bytes = vec![2; 256 * MIB as usize];
    let error = io(&container, "v").write_at(&bytes, 0).unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    io(&container, "v").flush().unwrap();
    container.snapshot("v", "s").unwrap();
    disk.limit(None);
    // Growth is tried again, but not more often than once a second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    container.maintain().unwrap();
    io(&container, "v").write_at(&bytes, 0).unwrap();
    assert_eq!(value(&container, "v", 0..256 * MIB), 2);
    container.close().unwrap();
    open(&disk);
}

#[test]
fn wrong_names_sizes_and_ranges_are_refused() {
    let (_, container) = new_container();
    for name in ["", "-x", "a b", "a/b", "ü", &"x".repeat(128)] {
        assert!(matches!(container.create_volume(name, MIB), Err(Error::BadName { .. })), "{name}");
    }
    for size in [0, 100, (64 << 40) + 512] {
        assert!(matches!(container.create_volume("v", size), Err(Error::BadSize { .. })), "{size}");
    }
    container.create_volume("v", MIB).unwrap();
    assert!(matches!(container.create_volume("v", MIB), Err(Error::VolumeExists { .. })));
    assert!(matches!(container.snapshot("nobody", "s"), Err(Error::NoSuchVolume { .. })));
    assert!(matches!(container.refresh("v", "v"), Err(Error::SameVolume { .. })));
    assert!(matches!(container.refresh("nobody", "v"), Err(Error::NoSuchVolume { .. })));
    let volume = container.volume("v").unwrap();
    for range in [0..MIB + 512, 100..512, MIB..MIB + 512] {
        assert!(matches!(volume.plan_write(range, Waker::noop()), Err(Error::BadRange { .. })));
    }
    container.delete_volume("v").unwrap();
    assert!(matches!(volume.plan_write(0..512, Waker::noop()), Err(Error::VolumeGone { .. })));
    assert!(matches!(volume.plan_read(0..512, &mut ReadPlan::default()), Err(Error::VolumeGone { .. })));
}

// rule: SNP-40 — a handle stays with its volume, whoever gets its name.
#[test]
fn a_volume_is_refreshed_by_its_handle_under_any_name() {
    let (_, container) = new_container();
    for (name, size) in [("golden", MIB), ("v", 2 * MIB), ("w", MIB)] {
        container.create_volume(name, size).unwrap();
    }
    fill(&container, "golden", 0..4096, 7);
    let volume = container.volume("v").unwrap();
    container.rename_volume("v", "moved").unwrap();
    container.rename_volume("w", "v").unwrap();
    let info = container.refresh_volume(&volume, "golden").unwrap();
    assert_eq!((info.name.as_str(), info.size_bytes, volume.size()), ("moved", MIB, MIB));
    assert_eq!(value(&container, "moved", 0..4096), 7);
    assert_eq!(value(&container, "v", 0..4096), 0);
    assert!(matches!(container.refresh_volume(&volume, "moved"), Err(Error::SameVolume { .. })));
    assert!(matches!(container.refresh_volume(&volume, "nobody"), Err(Error::NoSuchVolume { .. })));
    container.delete_volume("moved").unwrap();
    container.rename_volume("v", "moved").unwrap();
    assert!(matches!(container.refresh_volume(&volume, "golden"), Err(Error::VolumeGone { .. })));
    assert_eq!(value(&container, "moved", 0..4096), 0);
}

#[test]
fn reading_only_changes_nothing_even_after_a_crash() {
    let (disk, container) = new_container();
    container.create_volume("v", MIB).unwrap();
    fill(&container, "v", 0..4096, 1);
    container.commit().unwrap();
    drop(container);
    let before = disk.bytes();
    let container = Container::open(disk.clone(), OpenMode::ReadOnly).unwrap();
    assert_eq!(value(&container, "v", 0..4096), 1);
    assert!(matches!(container.create_volume("w", MIB), Err(Error::ReadOnly)));
    assert!(matches!(container.volume("v").unwrap().plan_write(0..512, Waker::noop()), Err(Error::ReadOnly)));
    container.close().unwrap();
    assert!(disk.bytes() == before);
}

// rule: CON-17 — a crash while a container is created leaves a file that is not one, never half of one.
#[test]
fn a_crash_during_creation_leaves_no_half_container() {
    let disk = SimDisk::new();
    let mut crash = disk.record();
    let options = CreateOptions { journal_len_bytes: 256 << 10, ..CreateOptions::default() };
    Container::create(disk.clone(), &options).unwrap();
    let mut opened = 0;
    for event in disk.take_events() {
        crash.step(&event);
        for every in [1, 2, 3, usize::MAX] {
            let left = crash.disk(|n| if n % every == 0 { Fate::Kept } else { Fate::Lost });
            match Container::open(left, OpenMode::ReadWrite) {
                Ok(container) => {
                    assert!(container.volumes().is_empty());
                    opened += 1;
                }
                Err(Error::NotAContainer | Error::Corrupt(_)) if opened == 0 => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(opened > 0, "the finished container does not open");
}

/// Carries a flush out to its end.
fn finish(disk: &SimDisk, flush: &mut Flush) {
    loop {
        match flush.poll(Waker::noop()).unwrap() {
            FlushStep::Done => return,
            FlushStep::Sync => flush.synced(disk.sync()),
            FlushStep::Append(append) => flush.appended(disk.write_at_durable(append.bytes(), append.offset())),
            FlushStep::Wait => panic!("nobody else does the work"),
        }
    }
}

// rules: JNL-18, JNL-3 — flushes share a batch, but only one that was imaged after they began.
#[test]
fn flushes_share_a_commit_that_began_after_them() {
    let (disk, container) = new_container();
    for name in ["a", "b", "c"] {
        container.create_volume(name, MIB).unwrap();
    }
    for name in ["a", "b", "c"] {
        fill(&container, name, 0..4096, 1);
    }
    let start = |name: &str| container.volume(name).unwrap().start_flush();
    let (mut leader, mut follower) = (start("a"), start("b"));
    assert!(matches!(leader.poll(Waker::noop()).unwrap(), FlushStep::Sync));
    assert!(matches!(follower.poll(Waker::noop()).unwrap(), FlushStep::Wait));
    // Completed after the image: not in the leader's batch.
    fill(&container, "c", 8192..12288, 2);
    let mut late = start("c");
    assert!(matches!(late.poll(Waker::noop()).unwrap(), FlushStep::Wait));
    leader.synced(disk.sync());
    finish(&disk, &mut leader);
    assert!(matches!(follower.poll(Waker::noop()).unwrap(), FlushStep::Done));
    assert!(matches!(late.poll(Waker::noop()).unwrap(), FlushStep::Sync), "the late flush relied on an older image");
    late.synced(disk.sync());
    finish(&disk, &mut late);
    // rule: JNL-7 — with nothing to journal, a flush is one sync.
    assert_eq!(cost(&disk, || finish(&disk, &mut start("a"))), (0, 1));
}

// rule: LAY-7 — what is a volume's own, and when it is real.
#[test]
fn a_volume_is_real_when_nothing_it_shows_is_anothers() {
    let (_, container) = new_container();
    container.create_volume("golden", MIB).unwrap();
    fill(&container, "golden", 0..MIB, 1);
    container.snapshot("golden", "ci").unwrap();
    fill(&container, "ci", 0..4096, 2);
    let (golden, ci) = (find(&container, "golden"), find(&container, "ci"));
    assert_eq!((golden.state, ci.state), (VolumeState::Real, VolumeState::Virtual));
    assert_eq!(golden.allocated_bytes, MIB + (256 << 10));
    assert_eq!(ci.allocated_bytes, 2 * (256 << 10));
    let owners = || container.layers().iter().map(|layer| layer.owner).collect::<Vec<_>>();
    assert_eq!(owners(), [golden.id, golden.id, ci.id].map(Some));
    container.delete_volume("golden").unwrap();
    let ci = find(&container, "ci");
    assert_eq!(owners(), [Some(ci.id), None, Some(ci.id)], "golden's head is doomed");
    assert_eq!((ci.state, ci.allocated_bytes), (VolumeState::Real, MIB + 3 * (256 << 10)));
}

// rule: VOL-9 — a write under way when its volume is deleted ends without harm.
#[test]
fn a_write_under_way_outlives_its_volume() {
    let (disk, container) = new_container();
    container.create_volume("v", MIB).unwrap();
    container.create_volume("w", MIB).unwrap();
    fill(&container, "w", 0..MIB, 7);
    let volume = container.volume("v").unwrap();
    let Planned::Ready(ticket) = volume.plan_write(0..4096, Waker::noop()).unwrap() else { panic!() };
    container.delete_volume("v").unwrap();
    container.settle(1000).unwrap();
    disk.write_at(&[9; 4096], ticket.segments()[0].disk_offset).unwrap();
    ticket.complete();
    container.settle(1000).unwrap();
    container.commit().unwrap();
    container.settle(1000).unwrap();
    assert_eq!(value(&container, "w", 0..MIB), 7);
    assert_eq!(container.layers().len(), 1, "the deleted volume's layer is never freed");
    container.close().unwrap();
    assert!(pitstop_format::check::check(&*disk).unwrap().findings.is_empty());
}
