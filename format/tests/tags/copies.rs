//! What becomes of tags when data is copied, moved, given up and written over.

use pitstop_format::{SLAB_LEN, SealEnd, Verify};

use crate::support::*;

// req: R13; rule: TAG-6
#[test]
fn a_hydrated_copy_is_sealed_as_its_source_was() {
    let (disk, container) = sealed();
    fill(&container, "ci", 3 * SLAB_LEN..3 * SLAB_LEN + 2 * BLOCK, 80);
    let shown = contents(&container, "ci");
    let before = counts(&container, "ci");
    hydrate(&container, "ci").unwrap();
    container.delete_volume("golden").unwrap();
    container.settle(1000).unwrap();
    assert_eq!(counts(&container, "ci").sealed_bytes, before.sealed_bytes);
    assert!(contents(&container, "ci") == shown);
    assert!(assert_fits(&container) >= before.sealed_bytes);
    // Its tags are of its own place: damage is found there.
    let place = place_of(&container, "ci", 6 * SLAB_LEN);
    disk.flip(place, 4);
    assert_eq!(data_report(&container).findings.len(), 1);
    disk.flip(place, 4);
    container.close().unwrap();
    let container = open(&disk);
    assert_eq!(counts(&container, "ci").sealed_bytes, before.sealed_bytes);
    assert_fits(&container);
    assert_clean(&disk, container);
}

// req: R13, R16; rules: TAG-3, REL-7, REL-10 — an adopted slab takes the tags of what moved along, and only those.
#[test]
fn adopted_slabs_are_sealed_or_not_but_never_unfit() {
    let (disk, container) = sealed();
    hydrate(&container, "ci").unwrap();
    let before = counts(&container, "ci").sealed_bytes;
    fill(&container, "golden", SLAB_LEN..SLAB_LEN + 5 * BLOCK, 77);
    fill(&container, "golden", 6 * SLAB_LEN + BLOCK..6 * SLAB_LEN + 2 * BLOCK, 78);
    container.refresh("ci", "golden").unwrap();
    seal_all(&container);
    hydrate(&container, "ci").unwrap();
    assert!(contents(&container, "ci") == contents(&container, "golden"));
    let after = counts(&container, "ci").sealed_bytes;
    assert_eq!(after, before);
    assert_fits(&container);
    container.close().unwrap();
    let container = open(&disk);
    assert_fits(&container);
    assert_eq!(counts(&container, "ci").sealed_bytes, after);
    assert_clean(&disk, container);
}

// req: R13; rule: REL-10 — a merge has left a tag of a block that the slab no longer shows; after the slab was adopted, other
// data comes into that block.
#[test]
fn a_tag_of_what_a_slab_no_longer_shows_counts_for_nothing_in_its_next_layer() {
    let (disk, container) = new_container(MIB);
    container.create_volume("a", SIZE).unwrap();
    container.set_verify("a", Verify::Copy).unwrap();
    fill(&container, "a", 0..SLAB_LEN, 1);
    container.snapshot("a", "s1").unwrap();
    seal_all(&container);
    io(&container, "a").discard(5 * BLOCK..6 * BLOCK).unwrap();
    container.snapshot("a", "b").unwrap();
    container.delete_volume("s1").unwrap();
    container.settle(1000).unwrap();
    hydrate(&container, "b").unwrap();
    fill(&container, "b", 5 * BLOCK..6 * BLOCK, 9);
    container.refresh("a", "b").unwrap();
    hydrate(&container, "a").unwrap();
    assert!(contents(&container, "a") == contents(&container, "b"));
    assert!(assert_fits(&container) > 0);
    seal_all(&container);
    assert_fits(&container);
    assert_clean(&disk, container);
}

// rules: TAG-3, TAG-6 — slabs that move keep their tags, blocks that are copied take them along.
#[test]
fn merged_layers_stay_sealed() {
    let (disk, container) = new_container(MIB);
    container.create_volume("v", SIZE).unwrap();
    container.set_verify("v", Verify::Copy).unwrap();
    for round in 0..4u64 {
        fill(&container, "v", round * SLAB_LEN..(round + 2) * SLAB_LEN, round as u8);
        fill(
            &container,
            "v",
            6 * SLAB_LEN + 3 * round * BLOCK..6 * SLAB_LEN + (3 * round + 4) * BLOCK,
            round as u8 + 9,
        );
        container.snapshot("v", &format!("s{round}")).unwrap();
        if round == 2 {
            io(&container, "v").discard(0..2 * BLOCK).unwrap();
        }
    }
    seal_all(&container);
    let (shown, before) = (contents(&container, "v"), counts(&container, "v"));
    (0..3).for_each(|round| container.delete_volume(&format!("s{round}")).unwrap());
    container.settle(1000).unwrap();
    assert_eq!(find(&container, "v").depth, 1);
    assert!(contents(&container, "v") == shown);
    assert_eq!(counts(&container, "v").sealed_bytes, before.sealed_bytes);
    assert_eq!(before.sealed_bytes, before.data_bytes);
    assert_fits(&container);
    // And nothing is left to seal.
    let volume = container.seal("v").unwrap();
    assert_eq!(run(&container, volume), (SealEnd::Done, 0));
    assert_clean(&disk, container);
}

// rule: TAG-3 — a slab that comes back into use has no tag, whatever its record holds.
#[test]
fn tags_of_a_slabs_former_life_count_for_nothing() {
    let (disk, container) = sealed();
    let before: Vec<u64> = (0..3).map(|chunk| place_of(&container, "ci", chunk * SLAB_LEN)).collect();
    container.delete_volume("ci").unwrap();
    container.delete_volume("golden").unwrap();
    container.settle(1000).unwrap();
    container.commit().unwrap();
    container.settle(1000).unwrap();
    container.create_volume("new", SIZE).unwrap();
    fill(&container, "new", 0..SIZE, 33);
    let after: Vec<u64> = (0..9).map(|chunk| place_of(&container, "new", chunk * SLAB_LEN)).collect();
    assert!(before.iter().any(|place| after.contains(place)), "no slab has come back: {before:?} {after:?}");
    assert_eq!(counts(&container, "new").sealed_bytes, 0);
    assert_eq!(assert_fits(&container), 0);
    contents(&container, "new");
    // Nor in a frozen layer, until it is sealed; nor do they spoil its own.
    container.snapshot("new", "newer").unwrap();
    assert_eq!(counts(&container, "newer").sealed_bytes, 0);
    container.seal("new").unwrap();
    seal_all(&container);
    let counts = counts(&container, "newer");
    assert_eq!(counts.sealed_bytes, counts.data_bytes);
    assert_fits(&container);
    assert_clean(&disk, container);
}

// rules: TAG-3, TAG-5 — a slab whose chunk is given up and taken again by the same head.
#[test]
fn a_head_that_gives_up_and_takes_slabs_again_is_sealed_as_it_is_frozen() {
    let (_, container) = new_container(MIB);
    container.create_volume("v", SIZE).unwrap();
    container.set_verify("v", Verify::Copy).unwrap();
    for round in 0..6 {
        fill(&container, "v", 0..3 * SLAB_LEN, round);
        io(&container, "v").discard(0..2 * SLAB_LEN).unwrap();
        container.commit().unwrap();
        container.settle(100).unwrap();
        fill(&container, "v", SLAB_LEN..2 * SLAB_LEN, round + 50);
        container.snapshot("v", &format!("s{round}")).unwrap();
        seal_all(&container);
        assert_fits(&container);
    }
    for round in 0..5 {
        container.delete_volume(&format!("s{round}")).unwrap();
        container.settle(1000).unwrap();
        assert_fits(&container);
    }
}
