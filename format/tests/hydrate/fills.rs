//! What is copied, what is not, and what shows meanwhile.

use pitstop_format::{Error, HydrateEnd, HydrateStep, SLAB_LEN, VolumeState};

use crate::support::*;

// req: R8; rules: LAY-30, LAY-31, LAY-34
#[test]
fn a_virtual_volume_becomes_real_and_keeps_its_contents() {
    for budget in [1, 100 * BLOCK, ALL] {
        let (disk, container) = golden_and_ci();
        fill(&container, "ci", BLOCK..2 * BLOCK, 77);
        let before = contents(&container, "ci");
        let layer = container.hydrate("ci").unwrap().unwrap();
        assert_eq!(state(&container, "ci"), VolumeState::Hydrating);
        assert!(matches!(container.hydrate("ci"), Err(Error::Hydrating { .. })));
        let mut copied = 0;
        loop {
            assert_eq!(contents(&container, "ci"), before);
            match container.hydrate_step(layer, budget).unwrap() {
                HydrateStep::Copied(bytes) => copied += bytes,
                HydrateStep::Ended(end) => break assert_eq!(end, HydrateEnd::Done),
                HydrateStep::Blocked(_) => drop(container.maintain().unwrap()),
            }
        }
        // All of golden's data but the block that was overwritten and what reads as zeros.
        assert_eq!(copied, 6 * SLAB_LEN + 2 * BLOCK + 4 * BLOCK - BLOCK);
        assert_eq!((contents(&container, "ci"), state(&container, "ci")), (before.clone(), VolumeState::Real));
        assert_eq!(container.hydrate("ci").unwrap(), None, "it is real already");
        assert_eq!(container.hydrations(), []);
        container.delete_volume("golden").unwrap();
        container.settle(1000).unwrap();
        let used: u64 = container.layers().iter().map(|layer| layer.allocated_bytes).sum();
        assert_eq!(used, find(&container, "ci").allocated_bytes, "nothing is kept for it");
        assert_eq!(contents(&container, "ci"), before);
        assert_clean(&disk, container);
    }
}

// rule: LAY-37 — what is the volume's own is neither copied nor covered.
#[test]
fn the_volumes_own_layers_stay_where_they_are() {
    let (disk, container) = golden_and_ci();
    fill(&container, "ci", 0..2 * SLAB_LEN, 70);
    container.snapshot("ci", "kept").unwrap();
    fill(&container, "ci", SLAB_LEN..3 * SLAB_LEN, 71);
    let before = ["ci", "kept"].map(|name| contents(&container, name));
    // Chunks 3, 6, 7 and what golden has of 2, 5 and 8: `kept` has no chunk 2 of its own.
    assert_eq!(hydrated(&container, "ci"), 4 * SLAB_LEN + 6 * BLOCK);
    let layers = chain(&container, "ci");
    assert_eq!(layers.iter().map(|layer| layer.kind).collect::<Vec<_>>(), ["head", "frozen", "frozen"]);
    container.delete_volume("golden").unwrap();
    container.settle(1000).unwrap();
    assert_eq!(["ci", "kept"].map(|name| contents(&container, name)), before);
    container.delete_volume("ci").unwrap();
    container.settle(1000).unwrap();
    assert_eq!(contents(&container, "kept"), before[1]);
    assert_clean(&disk, container);
}

// rules: LAY-36, LAY-30 — a crash or a restart ends no hydration, and what was copied is not copied again.
#[test]
fn it_goes_on_after_a_restart_with_its_pause_and_speed() {
    let (disk, mut container) = golden_and_ci();
    let before = contents(&container, "ci");
    let layer = container.hydrate("ci").unwrap().unwrap();
    container.set_hydration(layer, true, 12 << 20).unwrap();
    assert_eq!(container.hydrate_step(layer, 2 * SLAB_LEN).unwrap(), HydrateStep::Copied(2 * SLAB_LEN));
    let progress = container.hydrations();
    assert_eq!((progress[0].total_bytes, progress[0].copied_bytes), (SIZE, 2 * SLAB_LEN));
    container.commit().unwrap();
    let total = 6 * SLAB_LEN + 6 * BLOCK;
    for round in 0..2 {
        container = if round == 0 { crashed(&disk) } else { reopen(&disk, container) };
        let found = container.hydrations();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].layer, found[0].volume.as_str()), (layer, "ci"));
        assert_eq!((found[0].paused, found[0].speed), (true, 12 << 20));
        assert_eq!(state(&container, "ci"), VolumeState::Hydrating);
        if round == 0 {
            assert_eq!(run(&container, layer, ALL), (HydrateEnd::Done, total - 2 * SLAB_LEN));
            assert_eq!(contents(&container, "ci"), before);
            drop(container);
            container = open(&disk);
        }
    }
    container.set_hydration(layer, false, 0).unwrap();
    assert!(!container.hydrations()[0].paused);
    assert_eq!(run(&container, layer, ALL), (HydrateEnd::Done, total - 2 * SLAB_LEN));
    assert_eq!(contents(&container, "ci"), before);
    assert!(matches!(container.set_hydration(layer, true, 0), Err(Error::NotHydrating { .. })));
    assert_clean(&disk, container);
}

// req: R9; rule: MAP-36 — R is the data that is still to be copied, and nothing else.
#[test]
fn the_r_map_shrinks_as_blocks_are_copied_or_written() {
    let (disk, container) = golden_and_ci();
    assert_eq!(counts(&container, "ci").to_copy_bytes, 0);
    let layer = container.hydrate("ci").unwrap().unwrap();
    let total = 6 * SLAB_LEN + 5 * BLOCK + 512;
    assert_eq!(counts(&container, "ci").to_copy_bytes, total);
    assert_eq!(counts(&container, "golden").to_copy_bytes, 0);
    container.hydrate_step(layer, SLAB_LEN).unwrap();
    assert_eq!(counts(&container, "ci").to_copy_bytes, total - SLAB_LEN);
    let valid = counts(&container, "ci").valid_bytes;
    fill(&container, "ci", 3 * SLAB_LEN..3 * SLAB_LEN + BLOCK, 70);
    fill(&container, "ci", 0..BLOCK, 70);
    io(&container, "ci").discard(6 * SLAB_LEN..7 * SLAB_LEN).unwrap();
    let now = counts(&container, "ci");
    assert_eq!(now.to_copy_bytes, total - 2 * SLAB_LEN - BLOCK);
    assert_eq!((now.valid_bytes, now.modified_bytes), (valid + SLAB_LEN + BLOCK, SLAB_LEN + 2 * BLOCK));
    assert_eq!(run(&container, layer, ALL).0, HydrateEnd::Done);
    let now = counts(&container, "ci");
    assert_eq!((now.to_copy_bytes, now.others_bytes, now.valid_bytes), (0, 0, SIZE));
    assert_clean(&disk, container);
}
