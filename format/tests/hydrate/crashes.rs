//! A crash at every event of the disk, from the beginning of a hydration to the end of what it needed.

use std::sync::Arc;

use pitstop_format::check::{Outcome, check};
use pitstop_format::testing::{Fate, SimDisk};
use pitstop_format::{HydrateEnd, HydrateStep, SLAB_LEN, VolumeState};

use crate::common::Rng;
use crate::support::*;

/// What the volumes with these names must show, if they are there.
type Expected = Vec<(&'static str, Vec<u8>)>;

fn judge(disk: &Arc<SimDisk>, expected: &Expected, ends: bool) {
    let report = check(&**disk).unwrap();
    assert_eq!(report.outcome(), Outcome::Clean, "{:#?}", report.findings);
    let container = open(disk);
    let shows = || {
        for (name, bytes) in expected.iter().filter(|(name, _)| container.volume(name).is_ok()) {
            assert!(contents(&container, name) == *bytes, "{name}");
        }
    };
    shows();
    if !ends {
        return;
    }
    for hydration in container.hydrations() {
        assert_eq!(run(&container, hydration.layer, ALL).0, HydrateEnd::Done);
        assert_eq!(state(&container, &hydration.volume), VolumeState::Real);
    }
    container.settle(1000).unwrap();
    shows();
    let report = check(&**disk).unwrap();
    assert_eq!(report.corruptions + report.leaks, 0, "{:#?}", report.findings);
}

// req: R8; rules: LAY-30 to LAY-36, LAY-39, LAY-5, CHK-0
#[test]
fn a_crash_at_any_write_changes_no_contents_and_ends_no_hydration() {
    for seed in 0..4 {
        let (disk, container) = golden_and_ci();
        container.snapshot("golden", "old").unwrap();
        fill(&container, "golden", 2 * SLAB_LEN..3 * SLAB_LEN, 50);
        container.refresh("ci", "golden").unwrap();
        fill(&container, "ci", BLOCK..3 * BLOCK, 77);
        io(&container, "ci").discard(3 * SLAB_LEN..4 * SLAB_LEN).unwrap();
        container.commit().unwrap();
        let shown = |name: &'static str| (name, contents(&container, name));
        let mut expected: Expected = ["ci", "old"].map(shown).into();
        expected.push(("copy", expected[0].1.clone()));
        let mut crash = disk.record();
        let layer = container.hydrate("ci").unwrap().unwrap();
        let step = |budget| assert!(container.hydrate_step(layer, budget).is_ok());
        step(SLAB_LEN);
        container.commit().unwrap();
        step(2 * SLAB_LEN);
        match seed {
            // A copy meanwhile, and merges of what is below.
            0 => {
                container.snapshot("ci", "copy").unwrap();
                container.delete_volume("old").unwrap();
                container.settle(100).unwrap();
            }
            1 => {
                container.cancel_hydration(container.hydrations()[0].layer).unwrap();
                container.settle(100).unwrap();
                container.hydrate("ci").unwrap();
            }
            // Others let go.
            2 => {
                container.delete_volume("golden").unwrap();
                container.delete_volume("old").unwrap();
            }
            _ => container.set_hydration(container.hydrations()[0].layer, true, 1).unwrap(),
        }
        for hydration in container.hydrations() {
            while !matches!(container.hydrate_step(hydration.layer, SLAB_LEN).unwrap(), HydrateStep::Ended(_)) {
                container.maintain().unwrap();
            }
        }
        if container.volume("golden").is_ok() {
            container.delete_volume("golden").unwrap();
        }
        container.settle(1000).unwrap();
        container.clone().close().unwrap();
        let mut rng = Rng::new(seed);
        for (number, event) in disk.take_events().iter().enumerate() {
            crash.step(event);
            for percent in [0, 50, 100] {
                let left = crash.disk(|_| if rng.chance(percent) { Fate::Kept } else { Fate::Lost });
                judge(&left, &expected, number % 4 == 0);
            }
        }
    }
}
