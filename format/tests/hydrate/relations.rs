//! Relations: what a second hydration moves, in both directions; what is kept for it, and what ends it.

use std::sync::Arc;

use pitstop_format::testing::SimDisk;
use pitstop_format::{
    Container, Error, HydrateEnd, HydrateStep, LayerId, Listing, Moved, Planned, ReadPlan, Relation, RelationState,
    SLAB_LEN, VolumeState,
};

use crate::support::*;

/// Bytes of data in `golden` as [`golden_and_ci`] makes it.
const DATA: u64 = 6 * SLAB_LEN + 6 * BLOCK;

fn relation(container: &Container, name: &str) -> Relation {
    find(container, name).relation.unwrap()
}

/// Hydrates a volume; returns what was copied and what adopted.
fn moved(container: &Container, name: &str) -> (u64, u64) {
    let before = contents(container, name);
    hydrated(container, name);
    assert_eq!(contents(container, name), before, "the volume has changed");
    let Moved { copied_bytes, adopted_bytes } = relation(container, name).moved.unwrap();
    (copied_bytes, adopted_bytes)
}

/// `golden` and `ci`, which was hydrated from it.
fn pair() -> (Arc<SimDisk>, Container) {
    let (disk, container) = golden_and_ci();
    assert_eq!(moved(&container, "ci"), (DATA, 0));
    (disk, container)
}

fn used(container: &Container) -> u64 {
    container.settle(10_000).unwrap();
    container.commit().unwrap();
    container.settle(10_000).unwrap();
    container.layers().iter().map(|layer| layer.allocated_bytes).sum()
}

// req: R14, R16; rules: REL-2, REL-5, REL-7
#[test]
fn copying_again_copies_only_what_has_changed_in_the_primary() {
    let (disk, container) = pair();
    // Of chunk 1 one block, all of chunk 3; chunk 6 becomes zeros, of chunk 4 a block is new.
    fill(&container, "golden", SLAB_LEN + BLOCK..SLAB_LEN + 2 * BLOCK, 50);
    fill(&container, "golden", 3 * SLAB_LEN..4 * SLAB_LEN, 51);
    fill(&container, "golden", 4 * SLAB_LEN..4 * SLAB_LEN + BLOCK, 52);
    io(&container, "golden").discard(6 * SLAB_LEN..7 * SLAB_LEN).unwrap();
    // What the secondary has written is given up, and costs nothing.
    fill(&container, "ci", 0..SLAB_LEN, 60);
    fill(&container, "ci", 4 * SLAB_LEN..5 * SLAB_LEN, 61);
    container.refresh("ci", "golden").unwrap();
    // Writes after the instant change nothing of it.
    let at_the_instant = contents(&container, "golden");
    fill(&container, "golden", 7 * SLAB_LEN..8 * SLAB_LEN, 53);
    assert_eq!(moved(&container, "ci"), (SLAB_LEN + 2 * BLOCK, DATA - 2 * SLAB_LEN - BLOCK));
    assert_eq!((contents(&container, "ci"), state(&container, "ci")), (at_the_instant, VolumeState::Real));
    // Again and again.
    fill(&container, "ci", 2 * SLAB_LEN..3 * SLAB_LEN, 62);
    for round in 0..3 {
        fill(&container, "golden", 2 * SLAB_LEN..2 * SLAB_LEN + BLOCK, 63 + round);
        container.refresh("ci", "golden").unwrap();
        let (copied, adopted) = moved(&container, "ci");
        let others = if round == 0 { SLAB_LEN } else { 0 };
        assert_eq!((copied, copied + adopted), (BLOCK + others, DATA - SLAB_LEN + BLOCK), "round {round}");
        assert_eq!(contents(&container, "ci"), contents(&container, "golden"));
        container.settle(1000).unwrap();
    }
    assert_clean(&disk, container);
}

// req: R16; rules: REL-2, REL-5 — the other direction, and back again.
#[test]
fn copying_back_copies_only_what_has_changed_in_the_secondary() {
    let (disk, container) = pair();
    fill(&container, "ci", SLAB_LEN..SLAB_LEN + BLOCK, 70);
    fill(&container, "ci", 4 * SLAB_LEN..4 * SLAB_LEN + BLOCK, 71);
    fill(&container, "golden", 2 * SLAB_LEN..3 * SLAB_LEN, 72);
    container.refresh("golden", "ci").unwrap();
    assert_eq!(moved(&container, "golden"), (2 * BLOCK, DATA - BLOCK));
    assert_eq!(contents(&container, "golden"), contents(&container, "ci"));
    assert!(relation(&container, "golden").tracked);
    // Now `golden` is the secondary; back and forth, with what lies below brought together in between.
    container.settle(1000).unwrap();
    for round in 0..4u8 {
        let (target, source) = if round % 2 == 0 { ("ci", "golden") } else { ("golden", "ci") };
        fill(&container, source, 3 * SLAB_LEN..3 * SLAB_LEN + BLOCK, 80 + round);
        fill(&container, target, 7 * SLAB_LEN..8 * SLAB_LEN, 90 + round);
        container.refresh(target, source).unwrap();
        let (copied, adopted) = moved(&container, target);
        assert_eq!((copied, adopted), (BLOCK, DATA), "round {round}");
        assert_eq!(contents(&container, target), contents(&container, source));
        container.settle(1000).unwrap();
    }
    assert_clean(&disk, container);
}

// rules: REL-7, REL-8, LAY-30 — what has been moved lies with one or the other, whatever ends the process.
#[test]
fn a_crash_amid_an_adoption_loses_nothing_and_adopts_the_rest() {
    let (disk, container) = pair();
    fill(&container, "golden", SLAB_LEN..SLAB_LEN + BLOCK, 50);
    container.refresh("ci", "golden").unwrap();
    let before = ["golden", "ci"].map(|name| contents(&container, name));
    let layer = container.hydrate("ci").unwrap().unwrap();
    loop {
        match container.hydrate_step(layer, 1).unwrap() {
            HydrateStep::Copied(0) | HydrateStep::Blocked(_) => drop(container.maintain().unwrap()),
            HydrateStep::Copied(_) => break,
            HydrateStep::Ended(end) => panic!("{end:?}"),
        }
    }
    let (disk, container) = {
        let left = disk.copy();
        (left.clone(), open(&left))
    };
    assert_eq!(["golden", "ci"].map(|name| contents(&container, name)), before);
    assert_eq!(run(&container, layer, ALL).0, HydrateEnd::Done);
    assert_eq!(["golden", "ci"].map(|name| contents(&container, name)), before);
    assert_clean(&disk, container);
}

// rule: REL-8 — a slab that a crash gives back to the donor has not been written into meanwhile: the primary may be put
// back to where the donor counts again.
#[test]
fn nothing_is_written_into_a_moved_slab_before_that_is_durable() {
    let (disk, container) = pair();
    container.snapshot("golden", "kept").unwrap();
    fill(&container, "golden", SLAB_LEN..SLAB_LEN + BLOCK, 50);
    container.refresh("ci", "golden").unwrap();
    let layer = container.hydrate("ci").unwrap().unwrap();
    while container.hydrate_step(layer, 1).unwrap() != HydrateStep::Copied(BLOCK) {
        container.maintain().unwrap();
    }
    // What the disk has of the last commit, with all data that was written since.
    let container = crashed(&disk);
    container.refresh("golden", "kept").unwrap();
    container.refresh("ci", "golden").unwrap();
    assert_eq!(contents(&container, "ci"), contents(&container, "kept"));
    hydrated(&container, "ci");
    assert_eq!(contents(&container, "ci"), contents(&container, "kept"));
    assert_eq!(contents(&container, "golden"), contents(&container, "kept"));
}

// rule: REL-7 — a request that was planned before the refresh reads what it would have read then.
#[test]
fn adoption_waits_for_requests_of_before() {
    let (disk, container) = pair();
    fill(&container, "golden", SLAB_LEN..2 * SLAB_LEN - BLOCK, 50);
    let mut plan = ReadPlan::default();
    let volume = container.volume("ci").unwrap();
    assert!(matches!(volume.plan_read(SLAB_LEN..2 * SLAB_LEN, &mut plan).unwrap(), Planned::Ready(())));
    container.refresh("ci", "golden").unwrap();
    let layer = container.hydrate("ci").unwrap().unwrap();
    for _ in 0..20 {
        let step = container.hydrate_step(layer, ALL).unwrap();
        assert!(matches!(step, HydrateStep::Copied(0) | HydrateStep::Blocked(_)), "{step:?}");
        container.maintain().unwrap();
    }
    assert_eq!(container.hydrations()[0].moved, Moved::default());
    drop(plan);
    assert_eq!(run(&container, layer, ALL).0, HydrateEnd::Done);
    assert_eq!(relation(&container, "ci").moved.unwrap().copied_bytes, SLAB_LEN - BLOCK);
    assert_clean(&disk, container);
}

// rule: REL-5 — what somebody else reads through is nobody's donor.
#[test]
fn a_layer_that_others_use_is_no_donor() {
    for back in [false, true] {
        let (disk, container) = pair();
        container.snapshot("ci", "ci-kept").unwrap();
        container.snapshot("golden", "golden-kept").unwrap();
        let (target, source) = if back { ("golden", "ci") } else { ("ci", "golden") };
        fill(&container, source, 0..BLOCK, 50);
        let kept = ["ci-kept", "golden-kept"].map(|name| contents(&container, name));
        container.refresh(target, source).unwrap();
        let (copied, adopted) = moved(&container, target);
        assert_eq!((copied, adopted), (DATA, 0), "back: {back}");
        container.settle(1000).unwrap();
        assert_eq!(["ci-kept", "golden-kept"].map(|name| contents(&container, name)), kept);
        assert_clean(&disk, container);
    }
}

// req: R11; rule: REL-6 — what is kept for the way back goes with the relation back, though it is the other volume's slot.
#[test]
fn a_split_of_a_refreshed_primary_frees_what_was_kept_for_it() {
    let (disk, container) = pair();
    container.refresh("golden", "ci").unwrap();
    let full = used(&container);
    assert!(relation(&container, "ci").tracked);
    container.split("golden").unwrap();
    assert!(used(&container) + DATA <= full);
    assert!(!relation(&container, "ci").tracked);
    assert_clean(&disk, container);
}

// req: R11; rules: REL-1, REL-6 — what was kept is free again, and both keep their contents.
#[test]
fn a_split_ends_a_relation_and_frees_what_was_kept_for_it() {
    let (disk, container) = pair();
    let before = ["golden", "ci"].map(|name| contents(&container, name));
    let found = relation(&container, "ci");
    assert_eq!((found.state, found.tracked, found.kept_bytes), (RelationState::Real, true, 0));
    container.refresh("ci", "golden").unwrap();
    let kept = relation(&container, "ci").kept_bytes;
    assert!(kept >= DATA, "the donor is kept: {kept}");
    let full = used(&container);
    container.split("ci").unwrap();
    assert_eq!(used(&container), full - kept);
    let found = relation(&container, "ci");
    assert_eq!((found.state, found.tracked, found.kept_bytes, found.moved), (RelationState::Split, false, 0, None));
    assert!(matches!(container.split("ci"), Err(Error::NoRelation { .. })));
    assert!(matches!(container.split("golden"), Err(Error::NoRelation { .. })));
    assert!(matches!(container.split("nobody"), Err(Error::NoSuchVolume { .. })));
    assert_eq!(["golden", "ci"].map(|name| contents(&container, name)), before);
    let container = reopen(&disk, container);
    assert_eq!(relation(&container, "ci").state, RelationState::Split);
    // A hydration of one that was split is tracked for nobody; a refresh makes a new relation.
    hydrated(&container, "ci");
    assert!(!relation(&container, "ci").tracked);
    container.refresh("ci", "golden").unwrap();
    assert_eq!(relation(&container, "ci").state, RelationState::Virtual);
    assert_eq!(moved(&container, "ci"), (DATA, 0));
    assert_clean(&disk, container);
}

// rule: REL-6 — whatever makes a relation of no use lets go of what it keeps, also after a restart.
#[test]
fn relations_of_no_use_keep_nothing() {
    for case in 0..5 {
        let (disk, container) = pair();
        container.create_volume("other", SIZE).unwrap();
        fill(&container, "golden", 0..BLOCK, 40);
        if case != 4 {
            container.refresh("ci", "golden").unwrap();
        }
        match case {
            0 => container.delete_volume("golden").unwrap(),
            1 => container.delete_volume("ci").unwrap(),
            2 => drop(container.refresh("ci", "other").unwrap()),
            3 => drop(container.split("ci").unwrap()),
            _ => drop(container.refresh("golden", "other").unwrap()),
        }
        let container = if case % 2 == 0 { crashed(&disk) } else { reopen(&disk, container) };
        used(&container);
        let (volumes, layers) = (container.volumes(), container.layers());
        assert!(volumes.iter().all(|volume| volume.relation.is_none_or(|relation| !relation.tracked)), "case {case}");
        let mut reached: Vec<LayerId> =
            volumes.iter().flat_map(|volume| chain(&container, &volume.name)).map(|l| l.id).collect();
        reached.sort();
        reached.dedup();
        assert_eq!(layers.iter().map(|layer| layer.id).collect::<Vec<_>>(), reached, "case {case}");
    }
}

// req: R11; rules: LAY-5, REL-6 — a golden volume goes at once, whoever depends on it.
#[test]
fn a_golden_volume_with_a_thousand_dependants_goes_at_once() {
    let (disk, container) = golden_and_ci();
    let before = contents(&container, "ci");
    for n in 0..1000 {
        if n % 100 == 0 {
            fill(&container, "golden", 0..BLOCK, (n / 100) as u8 + 1);
        }
        container.snapshot("golden", &format!("ci-{n}")).unwrap();
        if n % 50 == 0 {
            hydrated(&container, &format!("ci-{n}"));
        }
    }
    let began = std::time::Instant::now();
    container.delete_volume("golden").unwrap();
    println!("deleted in {:?}", began.elapsed());
    let container = crashed(&disk);
    for volume in container.volumes() {
        let relation = volume.relation.unwrap();
        assert!(relation.state == RelationState::Split && !relation.tracked, "{volume:?}");
    }
    used(&container);
    assert_eq!(contents(&container, "ci"), before);
    for n in (0..1000).step_by(37) {
        let mut expected = before.clone();
        expected[..BLOCK as usize].fill((n / 100) as u8 + 1);
        assert!(contents(&container, &format!("ci-{n}")) == expected, "ci-{n}");
    }
}

// rules: REL-3, LAY-8 — layers that a relation needs are not merged away, and are once it has ended.
#[test]
fn pinned_layers_stay_apart() {
    let (disk, container) = pair();
    for round in 0..3 {
        for name in ["golden", "ci"] {
            fill(&container, name, 0..BLOCK, 50 + round);
            container.snapshot(name, &format!("{name}-{round}")).unwrap();
        }
    }
    for round in 0..3 {
        for name in ["golden", "ci"] {
            container.delete_volume(&format!("{name}-{round}")).unwrap();
        }
    }
    used(&container);
    assert_eq!(["golden", "ci"].map(|name| chain(&container, name).len()), [3, 3]);
    let before = ["golden", "ci"].map(|name| contents(&container, name));
    container.split("ci").unwrap();
    used(&container);
    assert_eq!(["golden", "ci"].map(|name| chain(&container, name).len()), [2, 2]);
    assert_eq!(["golden", "ci"].map(|name| contents(&container, name)), before);
    assert_clean(&disk, container);
}

// req: R16, R18; rules: REL-9, MAP-34 — what has been copied and not changed since is no difference.
#[test]
fn differences_are_what_has_changed_since_the_copy() {
    let (disk, container) = pair();
    let counts = |a: &str, b: &str| {
        let step = container.diff(a, b, 0, Listing::Ranges(100)).unwrap();
        assert_eq!(step.next, None);
        let bytes = step.counts;
        (
            step.ranges.iter().map(|range| (range.start, range.length)).collect::<Vec<_>>(),
            bytes.a_data_bytes,
            bytes.b_data_bytes,
        )
    };
    assert_eq!(counts("golden", "ci"), (vec![], 0, 0));
    fill(&container, "golden", SLAB_LEN..SLAB_LEN + BLOCK, 50);
    fill(&container, "ci", 3 * SLAB_LEN..3 * SLAB_LEN + 2 * BLOCK, 51);
    fill(&container, "ci", 4 * SLAB_LEN..4 * SLAB_LEN + BLOCK, 52);
    io(&container, "golden").discard(6 * SLAB_LEN..7 * SLAB_LEN).unwrap();
    let ranges = vec![(SLAB_LEN, BLOCK), (3 * SLAB_LEN, 2 * BLOCK), (4 * SLAB_LEN, BLOCK), (6 * SLAB_LEN, SLAB_LEN)];
    assert_eq!(counts("golden", "ci"), (ranges.clone(), 3 * BLOCK, 4 * BLOCK + SLAB_LEN));
    assert_eq!(counts("ci", "golden"), (ranges, 4 * BLOCK + SLAB_LEN, 3 * BLOCK));
    container.split("ci").unwrap();
    // The last block is counted as far as the volume goes.
    assert_eq!(counts("golden", "ci").1, DATA - SLAB_LEN - (BLOCK - 512));
    assert_clean(&disk, container);
}
