//! A golden volume that is to be sealed, a copy of it, and damage at a place of theirs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use pitstop_format::check::{CheckReport, Outcome, check};
use pitstop_format::testing::SimDisk;
use pitstop_format::{
    Container, Error, HydrateEnd, HydrateStep, Listing, MapCounts, Planned, ReadPlan, ReadSegment, SLAB_LEN, SealEnd,
    SealStep, Verify, VolumeId,
};

pub use crate::common::{contents, find, io, new_container, open};

pub const BLOCK: u64 = 4096;
pub const MIB: u64 = 1 << 20;
/// Nine chunks, the last cut short within a block.
pub const SIZE: u64 = 8 * SLAB_LEN + 3 * BLOCK + 512;

/// Different bytes in every block and of every value.
pub fn fill(container: &Container, name: &str, range: Range<u64>, value: u8) {
    let byte = |at: u64| (at / BLOCK * 7 + at % 251) as u8 ^ value;
    io(container, name).write_at(&range.clone().map(byte).collect::<Vec<u8>>(), range.start).unwrap();
}

/// `golden`: data in all chunks but one, a hole in one; `ci`, a copy of it. Golden is to be sealed.
pub fn golden_and_ci() -> (Arc<SimDisk>, Container) {
    let (disk, container) = new_container(MIB);
    container.create_volume("golden", SIZE).unwrap();
    for chunk in [0, 1, 2, 3, 5, 6, 7] {
        fill(&container, "golden", chunk * SLAB_LEN..(chunk + 1) * SLAB_LEN, chunk as u8 + 1);
    }
    io(&container, "golden").discard(5 * SLAB_LEN + BLOCK..6 * SLAB_LEN - BLOCK).unwrap();
    fill(&container, "golden", 8 * SLAB_LEN..SIZE, 9);
    assert_eq!(container.set_verify("golden", Verify::Copy).unwrap().verify, Verify::Copy);
    container.snapshot("golden", "ci").unwrap();
    (disk, container)
}

/// The same, sealed.
pub fn sealed() -> (Arc<SimDisk>, Container) {
    let (disk, container) = golden_and_ci();
    seal_all(&container);
    (disk, container)
}

/// Volume `v` over two sealed layers: block 0 is in the lower one (`a`), block 1 in both (`b`).
pub fn two_sealed() -> (Arc<SimDisk>, Container) {
    let (disk, container) = new_container(MIB);
    container.create_volume("v", SIZE).unwrap();
    container.set_verify("v", Verify::Copy).unwrap();
    fill(&container, "v", 0..2 * BLOCK, 1);
    container.snapshot("v", "a").unwrap();
    fill(&container, "v", BLOCK..2 * BLOCK, 2);
    container.snapshot("v", "b").unwrap();
    seal_all(&container);
    (disk, container)
}

pub fn counts(container: &Container, name: &str) -> MapCounts {
    let step = container.map(name, 0, Listing::Counts).unwrap();
    assert_eq!(step.next, None);
    step.counts
}

/// Steps until the sealing ends; how, and the bytes that got tags.
pub fn run(container: &Container, volume: VolumeId) -> (SealEnd, u64) {
    let (mut sealed, mut waits) = (0, 0);
    loop {
        match container.seal_step(volume, 300 << 10).unwrap() {
            SealStep::Sealed(bytes) => sealed += bytes,
            SealStep::Ended(end) => return (end, sealed),
            SealStep::Blocked(_) => {
                waits += 1;
                assert!(waits < 1000, "waits for ever");
                container.maintain().unwrap();
            }
        }
    }
}

/// Seals what is to be sealed; how many bytes got tags.
pub fn seal_all(container: &Container) -> u64 {
    let volumes: Vec<VolumeId> = container.seals().into_iter().map(|seal| seal.volume_id).collect();
    let sealed = volumes.into_iter().map(|volume| {
        let (end, sealed) = run(container, volume);
        assert_eq!((end, container.sealing(volume)), (SealEnd::Done, None));
        sealed
    });
    sealed.sum()
}

/// Makes a volume real; the error if a step fails.
pub fn hydrate(container: &Container, name: &str) -> Result<(), Error> {
    let under_way = container.hydrations().into_iter().find(|found| found.volume == name);
    let layer = match under_way {
        Some(found) => found.layer,
        None => container.hydrate(name).unwrap().unwrap(),
    };
    loop {
        match container.hydrate_step(layer, 1 << 40)? {
            HydrateStep::Ended(end) => {
                assert_eq!(end, HydrateEnd::Done);
                return Ok(());
            }
            HydrateStep::Copied(_) => {}
            HydrateStep::Blocked(_) => drop(container.maintain().unwrap()),
        }
    }
}

/// Where a byte of a volume is in the container.
pub fn place_of(container: &Container, name: &str, at: u64) -> u64 {
    let (volume, mut plan) = (container.volume(name).unwrap(), ReadPlan::default());
    loop {
        match volume.plan_read(at / 512 * 512..at / 512 * 512 + 512, &mut plan).unwrap() {
            Planned::Ready(()) => break,
            Planned::NeedPage(load) => container.load_page(load).unwrap(),
            Planned::Busy => unreachable!("reads do not wait"),
        }
    }
    match plan.segments() {
        [ReadSegment::Data { disk_offset, .. }] => disk_offset + at % 512,
        other => panic!("{other:?}"),
    }
}

pub fn data_report(container: &Container) -> CheckReport {
    let mut report = CheckReport::default();
    container.check_data(&mut report, &AtomicBool::new(false)).unwrap();
    report
}

pub fn assert_fits(container: &Container) -> u64 {
    let report = data_report(container);
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    report.data_bytes_verified
}

/// Whether an error is that data does not fit its tag.
pub fn is_unfit(error: &Error) -> bool {
    matches!(error, Error::Corrupt(found) if found.rule == "TAG-5")
}

pub fn assert_clean(disk: &Arc<SimDisk>, container: Container) {
    container.close().unwrap();
    let report = check(&**disk).unwrap();
    assert_eq!(report.outcome(), Outcome::Clean, "{:#?}", report.findings);
}
