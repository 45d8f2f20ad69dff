//! A golden volume with some of everything, and volumes made of it.

use std::ops::Range;
use std::sync::Arc;

use pitstop_format::check::{Outcome, check};
use pitstop_format::testing::SimDisk;
use pitstop_format::{
    Container, HydrateEnd, HydrateStep, HydrateWait, LayerId, LayerInfo, Listing, MapCounts, SLAB_LEN, VolumeState,
};

pub use crate::common::{contents, find, io, new_container, open};

pub const BLOCK: u64 = 4096;
pub const MIB: u64 = 1 << 20;
/// Nine chunks, the last cut short within a block.
pub const SIZE: u64 = 8 * SLAB_LEN + 3 * BLOCK + 512;
/// More than any volume here.
pub const ALL: u64 = 1 << 40;

pub fn fill(container: &Container, name: &str, range: Range<u64>, value: u8) {
    io(container, name).write_at(&vec![value; (range.end - range.start) as usize], range.start).unwrap();
}

/// `golden`: data in most chunks, a chunk without, a hole in a chunk, zeros over data; `ci`, a copy of it.
pub fn golden_and_ci() -> (Arc<SimDisk>, Container) {
    let (disk, container) = new_container(MIB);
    container.create_volume("golden", SIZE).unwrap();
    for chunk in [0, 1, 2, 3, 5, 6, 7] {
        fill(&container, "golden", chunk * SLAB_LEN..(chunk + 1) * SLAB_LEN, chunk as u8 + 1);
    }
    io(&container, "golden").discard(5 * SLAB_LEN + BLOCK..6 * SLAB_LEN - BLOCK).unwrap();
    fill(&container, "golden", 8 * SLAB_LEN..SIZE, 9);
    container.snapshot("golden", "ci").unwrap();
    (disk, container)
}

pub fn state(container: &Container, name: &str) -> VolumeState {
    find(container, name).state
}

pub fn layer(container: &Container, id: LayerId) -> Option<LayerInfo> {
    container.layers().into_iter().find(|layer| layer.id == id)
}

/// The layers that a volume reads through, head first.
pub fn chain(container: &Container, name: &str) -> Vec<LayerInfo> {
    let mut next = Some(find(container, name).head);
    let found = std::iter::from_fn(|| {
        let found = layer(container, next?).unwrap();
        next = found.parent;
        Some(found)
    });
    found.collect()
}

pub fn counts(container: &Container, name: &str) -> MapCounts {
    let step = container.map(name, 0, Listing::Counts).unwrap();
    assert_eq!(step.next, None);
    step.counts
}

/// Steps until the hydration ends, with background work in between; returns how, and the bytes copied.
pub fn run(container: &Container, layer: LayerId, budget: u64) -> (HydrateEnd, u64) {
    let (mut copied, mut waits) = (0, 0);
    loop {
        match container.hydrate_step(layer, budget).unwrap() {
            HydrateStep::Copied(bytes) => copied += bytes,
            HydrateStep::Ended(end) => return (end, copied),
            HydrateStep::Blocked(wait) => {
                waits += 1;
                assert!(wait == HydrateWait::Others && waits < 1000, "waits for {wait:?}");
                container.maintain().unwrap();
            }
        }
    }
}

pub fn hydrated(container: &Container, name: &str) -> u64 {
    let layer = container.hydrate(name).unwrap().unwrap();
    let (end, copied) = run(container, layer, ALL);
    assert_eq!((end, state(container, name)), (HydrateEnd::Done, VolumeState::Real));
    copied
}

pub fn reopen(disk: &Arc<SimDisk>, container: Container) -> Container {
    container.close().unwrap();
    open(disk)
}

/// As after the end of the process without closing: what has not been committed is gone.
pub fn crashed(disk: &Arc<SimDisk>) -> Container {
    open(&disk.copy())
}

pub fn assert_clean(disk: &Arc<SimDisk>, container: Container) {
    container.commit().unwrap();
    let report = check(&**disk).unwrap();
    assert_eq!(report.outcome(), Outcome::Clean, "{:#?}", report.findings);
    container.close().unwrap();
    let report = check(&**disk).unwrap();
    assert_eq!(report.outcome(), Outcome::Clean, "{:#?}", report.findings);
}
