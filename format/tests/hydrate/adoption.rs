//! Adoption where the storage fails, where space runs short, and where a hydration ends in several batches.

use std::sync::Arc;

use pitstop_format::check::CheckReport;
use pitstop_format::testing::{Fault, Injection, SimDisk};
use pitstop_format::{
    Container, Disk as _, Error, HydrateEnd, HydrateStep, HydrateWait, LayerId, Moved, SLAB_LEN, SealStep, VolumeState,
};

use crate::support::*;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// `ci`, hydrated from `golden` and sealed, as golden is; then both are written, and ci is copied again, with a hydration
/// that adopts what is the same.
fn copied_again() -> (Arc<SimDisk>, Container, LayerId) {
    let (disk, container) = golden_and_ci();
    hydrated(&container, "ci");
    ["golden", "ci"].iter().for_each(|name| sealed(&container, name));
    fill(&container, "golden", SLAB_LEN..SLAB_LEN + BLOCK, 50);
    fill(&container, "golden", 3 * SLAB_LEN..4 * SLAB_LEN, 51);
    fill(&container, "ci", 0..SLAB_LEN, 60);
    container.refresh("ci", "golden").unwrap();
    let layer = container.hydrate("ci").unwrap().unwrap();
    // Its table pages are not in memory any more.
    container.close().unwrap();
    let container = open(&disk);
    (disk, container, layer)
}

fn sealed(container: &Container, name: &str) {
    let volume = container.seal(name).unwrap();
    while !matches!(container.seal_step(volume, ALL).unwrap(), SealStep::Ended(_)) {
        container.maintain().unwrap();
    }
}

fn shown(container: &Container) -> [Vec<u8>; 2] {
    ["golden", "ci"].map(|name| contents(container, name))
}

fn tags_fit(container: &Container) -> u64 {
    let mut report = CheckReport::default();
    container.check_data(&mut report, &false.into()).unwrap();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    report.data_bytes_verified
}

// req: R16, R28; rules: REL-7, REL-8, REL-10, VOL-13, JNL-14 — whichever request of the storage fails while slabs are adopted:
// both volumes keep their contents, and the hydration goes on, in an opened-again container where the storage has failed it.
#[test]
fn a_fault_amid_an_adoption_loses_nothing_and_a_later_step_goes_on() {
    let (mut cases, mut failed, mut amid) = (0, 0, 0);
    for fault in [Fault::Read, Fault::Write, Fault::Durable, Fault::Sync, Fault::Grow] {
        for (once, errno) in [(true, EIO), (false, EIO), (false, ENOSPC)] {
            for after in 0.. {
                let (disk, container, layer) = copied_again();
                let before = shown(&container);
                disk.inject(Some(Injection { fault, after, once, errno }));
                let mut moved = Moved::default();
                for _ in 0..40 {
                    let step = container.hydrate_step(layer, SLAB_LEN);
                    let worked = container.maintain().map(drop);
                    for error in [step.as_ref().err(), worked.as_ref().err()].into_iter().flatten() {
                        assert!(disk.failures() > 0, "nothing was injected, yet: {error}");
                        assert!(matches!(error, Error::Io { .. } | Error::Failed { .. }), "{fault:?}: {error:?}");
                    }
                    moved = container.hydration(layer).map_or(moved, |found| found.moved);
                    if matches!(step, Ok(HydrateStep::Ended(_))) {
                        break;
                    }
                }
                disk.inject(None);
                if disk.failures() == 0 {
                    assert!(after > 0 || fault == Fault::Grow, "no request of this kind: {fault:?}");
                    break;
                }
                cases += 1;
                failed += u64::from(container.failure().is_some());
                amid += u64::from(container.hydration(layer).is_some() && moved.adopted_bytes > 0);
                assert!(container.failure().is_none() || !matches!(fault, Fault::Read | Fault::Grow), "{fault:?}");
                assert!(shown(&container) == before, "{fault:?} after {after}");
                let container = if container.failure().is_some() { crashed(&disk) } else { container };
                assert!(shown(&container) == before, "{fault:?} after {after}, opened again");
                if container.hydration(layer).is_some() {
                    assert_eq!(run(&container, layer, ALL).0, HydrateEnd::Done);
                }
                assert_eq!(state(&container, "ci"), VolumeState::Real);
                assert!(shown(&container) == before && tags_fit(&container) > 0, "{fault:?} after {after}, at the end");
                container.commit().unwrap();
                container.close().unwrap();
            }
        }
    }
    println!("{cases} faults, {failed} of them failed the container, {amid} came when slabs had been adopted");
    assert!(cases >= 40 && failed >= 10 && amid >= 10, "{cases} faults, {failed}, {amid}");
}

/// Writes a volume from its beginning until there is no space; returns the bytes written.
fn filled(container: &Container, name: &str, from: u64) -> u64 {
    let mut at = from;
    loop {
        match io(container, name).write_at(&vec![5; SLAB_LEN as usize], at) {
            Ok(()) => at += SLAB_LEN,
            Err(Error::NoSpace { .. }) => return at - from,
            Err(error) => panic!("{error}"),
        }
    }
}

fn is_tracked(container: &Container, name: &str) -> bool {
    find(container, name).relation.is_some_and(|relation| relation.tracked)
}

// rules: REL-11, VOL-8 — what is kept for copying again is given up before a guest's write fails for lack of space, and not
// before it must be; what nobody hydrates goes first.
#[test]
fn donors_are_given_up_when_space_runs_short() {
    for hydrating in [false, true] {
        let (disk, container) = golden_and_ci();
        hydrated(&container, "ci");
        container.snapshot("golden", "second").unwrap();
        hydrated(&container, "second");
        container.create_volume("filler", 1 << 30).unwrap();
        container.settle(1000).unwrap();
        disk.limit(Some(disk.len().unwrap()));
        let first = filled(&container, "filler", 0);
        assert!(is_tracked(&container, "ci") && is_tracked(&container, "second"), "nothing is kept for them alone");
        let before = shown(&container);
        container.refresh("second", "golden").unwrap();
        container.refresh("ci", "golden").unwrap();
        let layer = hydrating.then(|| container.hydrate("ci").unwrap().unwrap());
        let kept = ["ci", "second"].map(|name| find(&container, name).relation.unwrap().kept_bytes);
        assert!(kept.iter().all(|&kept| kept > 6 * SLAB_LEN), "{kept:?}");
        // As much as one of them keeps: the other, which is being hydrated, still keeps it.
        let mut at = first;
        while is_tracked(&container, "second") && is_tracked(&container, "ci") {
            fill(&container, "filler", at..at + SLAB_LEN, 6);
            at += SLAB_LEN;
            assert!(at < first + 4 * SLAB_LEN, "written where nothing was free");
        }
        assert!(!hydrating || is_tracked(&container, "ci"), "a hydration loses what it could adopt");
        let more = at - first + filled(&container, "filler", at);
        assert!(more + 2 * SLAB_LEN >= kept[0] + kept[1], "{more} bytes found room, {kept:?} were kept");
        assert!(["ci", "second"].iter().all(|name| !is_tracked(&container, name)));
        assert!(shown(&container) == before && contents(&container, "second") == before[0]);
        if let Some(layer) = layer {
            // It lacks space, as any other would; then it copies what it would have adopted.
            let mut last = HydrateStep::Copied(0);
            for _ in 0..50 {
                last = container.hydrate_step(layer, ALL).unwrap();
                container.maintain().unwrap();
            }
            assert_eq!(last, HydrateStep::Blocked(HydrateWait::NoSpace));
            container.delete_volume("filler").unwrap();
            container.settle(1000).unwrap();
            assert_eq!(run(&container, layer, ALL).0, HydrateEnd::Done);
            assert!(shown(&container) == before);
        }
        assert_clean(&disk, container);
    }
}
