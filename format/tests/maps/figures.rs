//! The scenario of figures 3A to 3F in the text on refresh: V1; V2 with its point-in-time copy S2; writes to V2 and S2;
//! V2 refreshed from V1; more writes to all three.
//!
//! First without the background copy, then with it under way from 3A to 3F. Where the text copies old data to S2 before V2
//! changes, V2's layer goes over to S2 when V2 lets go of it; where it copies to V2 before V1 changes, V1 writes elsewhere:
//! so blocks that the text must copy out of turn (2 and 4 of V2 in 3F, all of S2 in 3D) are not.

use pitstop_format::{Container, Content, HydrateEnd, HydrateStep, SLAB_LEN, VolumeState};

use crate::support::*;

/// Blocks of each volume; the text counts them from 1.
const BLOCKS: u64 = 8;

fn write(container: &Container, name: &str, block: u64, value: u8) {
    fill(container, name, (block - 1) * BLOCK..block * BLOCK, value);
}

/// What each block holds.
fn data(container: &Container, name: &str) -> Vec<u8> {
    let mut bytes = vec![0; (BLOCKS * BLOCK) as usize];
    io(container, name).read_at(&mut bytes, 0).unwrap();
    bytes.chunks(BLOCK as usize).map(|block| block[0]).collect()
}

/// The blocks whose V bit, and those whose M bit is set.
fn maps(container: &Container, name: &str) -> (Vec<u64>, Vec<u64>) {
    let (mut valid, mut modified) = (Vec::new(), Vec::new());
    for range in map(container, name) {
        assert_eq!(range.content, Content::Data);
        let blocks = range.start / BLOCK + 1..=(range.start + range.length) / BLOCK;
        valid.extend(blocks.clone().filter(|_| range.valid));
        modified.extend(blocks.filter(|_| range.modified));
    }
    (valid, modified)
}

/// A volume's name, what its blocks hold, and those whose V bit, and whose M bit is set.
type Shown<'a> = (&'a str, [u8; BLOCKS as usize], &'a [u64], &'a [u64]);

fn assert_shown(container: &Container, when: &str, shown: [Shown<'_>; 3]) {
    for (name, blocks, valid, modified) in shown {
        assert_eq!(data(container, name), blocks, "{when}: data of {name}");
        assert_eq!(maps(container, name), (valid.to_vec(), modified.to_vec()), "{when}: V and M of {name}");
    }
}

// req: R9, R10; rules: MAP-30, MAP-31
#[test]
fn figures_3a_to_3f() {
    const ALL: &[u64] = &[1, 2, 3, 4, 5, 6, 7, 8];
    let (disk, mut container) = new_container();
    for (name, value) in [("v1", 1), ("v2", 2)] {
        container.create_volume(name, BLOCKS * BLOCK).unwrap();
        fill(&container, name, 0..BLOCKS * BLOCK, value);
    }
    assert_eq!(maps(&container, "v2"), (ALL.to_vec(), ALL.to_vec()), "all of it is new");

    // 3A: S2 is made; V2 has all of it, S2 nothing, and nothing has been modified since.
    container.snapshot("v2", "s2").unwrap();
    let v1 = ("v1", [1; 8], ALL, ALL);
    assert_shown(&container, "3A", [v1, ("v2", [2; 8], ALL, &[]), ("s2", [2; 8], &[], &[])]);

    // 3B: block 1 of V2 and block 2 of S2 are modified.
    write(&container, "v2", 1, 21);
    write(&container, "s2", 2, 32);
    let s2 = [2, 32, 2, 2, 2, 2, 2, 2];
    let shown = [v1, ("v2", [21, 2, 2, 2, 2, 2, 2, 2], ALL, &[1]), ("s2", s2, &[2], &[2])];
    assert_shown(&container, "3B", shown);

    // 3C, 3D: V2 is refreshed from V1: nothing is valid in V2, nothing modified in V1 since; S2 keeps its contents, by
    // now all in its own storage.
    container.refresh("v2", "v1").unwrap();
    let shown = [("v1", [1; 8], ALL, &[][..]), ("v2", [1; 8], &[], &[]), ("s2", s2, ALL, &[2])];
    assert_shown(&container, "3D", shown);
    let state = |container: &Container, name: &str| find(container, name).state;
    assert_eq!(["v1", "v2", "s2"].map(|name| state(&container, name)), {
        [VolumeState::Real, VolumeState::Virtual, VolumeState::Real]
    });

    // 3F: blocks 2 and 4 of V1, block 5 of V2 and block 6 of S2 are modified while V2 is virtual.
    write(&container, "v1", 2, 12);
    write(&container, "v1", 4, 14);
    write(&container, "v2", 5, 25);
    write(&container, "s2", 6, 36);
    let s2 = [2, 32, 2, 2, 2, 36, 2, 2];
    let shown = [
        ("v1", [1, 12, 1, 14, 1, 1, 1, 1], ALL, &[2, 4][..]),
        ("v2", [1, 1, 1, 1, 25, 1, 1, 1], &[5], &[5]),
        ("s2", s2, ALL, &[2, 6]),
    ];
    assert_shown(&container, "3F", shown);

    // The maps are persistent, and background work does not change them here.
    for round in 0..2 {
        container.settle(1000).unwrap();
        assert_shown(&container, "background work", shown);
        if round == 0 {
            container.close().unwrap();
            container = open(disk.clone());
            assert_shown(&container, "a restart", shown);
        }
    }
}

/// As [`write`], of volumes whose blocks are chunks, which the background copy takes one at a time.
fn write_chunk(container: &Container, name: &str, block: u64, value: u8) {
    fill(container, name, (block - 1) * SLAB_LEN..block * SLAB_LEN, value);
}

/// The blocks with V, with M and with R.
fn chunk_maps(container: &Container, name: &str) -> [Vec<u64>; 3] {
    let mut maps: [Vec<u64>; 3] = Default::default();
    for range in map(container, name) {
        assert_eq!(range.content, Content::Data);
        let flags = [range.valid, range.modified, range.to_copy];
        for (blocks, _) in maps.iter_mut().zip(flags).filter(|(_, flag)| *flag) {
            blocks.extend(range.start / SLAB_LEN + 1..=(range.start + range.length) / SLAB_LEN);
        }
    }
    maps
}

/// A volume's name, what its blocks hold, and those with V, with M and with R.
type ChunksShown<'a> = (&'a str, [u8; BLOCKS as usize], &'a [u64], &'a [u64], &'a [u64]);

fn assert_chunks(container: &Container, when: &str, shown: [ChunksShown<'_>; 3]) {
    for (name, blocks, valid, modified, to_copy) in shown {
        assert_eq!(chunk_data(container, name), blocks, "{when}: data of {name}");
        let maps = [valid, modified, to_copy].map(<[u64]>::to_vec);
        assert_eq!(chunk_maps(container, name), maps, "{when}: V, M and R of {name}");
    }
}

// req: R8, R9, R10; rules: MAP-30, MAP-36, LAY-30, LAY-34, LAY-36, LAY-39
#[test]
fn figures_3a_to_3f_with_the_background_copy() {
    const ALL: &[u64] = &[1, 2, 3, 4, 5, 6, 7, 8];
    let (disk, mut container) = new_container();
    for (name, value) in [("v1", 1), ("v2", 2)] {
        container.create_volume(name, BLOCKS * SLAB_LEN).unwrap();
        fill(&container, name, 0..BLOCKS * SLAB_LEN, value);
    }
    // 3A: S2 is made, and its background copy begins.
    container.snapshot("v2", "s2").unwrap();
    let s2_copy = container.hydrate("s2").unwrap().unwrap();
    let v1 = ("v1", [1; 8], ALL, ALL, &[][..]);
    assert_chunks(&container, "3A", [v1, ("v2", [2; 8], ALL, &[], &[]), ("s2", [2; 8], &[], &[], ALL)]);

    // 3B: block 1 of V2 and block 2 of S2 are modified, and a block of V2 as it was has been copied to S2.
    write_chunk(&container, "v2", 1, 21);
    write_chunk(&container, "s2", 2, 32);
    assert_eq!(container.hydrate_step(s2_copy, 1).unwrap(), HydrateStep::Copied(SLAB_LEN));
    let s2 = [2, 32, 2, 2, 2, 2, 2, 2];
    let v2 = ("v2", [21, 2, 2, 2, 2, 2, 2, 2], ALL, &[1][..], &[][..]);
    assert_chunks(&container, "3B", [v1, v2, ("s2", s2, &[1, 2], &[2], &[3, 4, 5, 6, 7, 8])]);

    // 3C, 3D: V2 is refreshed from V1, and the copy from V1 begins; S2 needs nothing of V2 any more.
    container.refresh("v2", "v1").unwrap();
    let v2_copy = container.hydrate("v2").unwrap().unwrap();
    let v1 = ("v1", [1; 8], ALL, &[][..], &[][..]);
    assert_chunks(&container, "3D", [v1, ("v2", [1; 8], &[], &[], ALL), ("s2", s2, ALL, &[2], &[])]);
    assert_eq!(container.hydrate_step(s2_copy, 1).unwrap(), HydrateStep::Ended(HydrateEnd::Done));

    // 3E: block 1 of V2 has been copied from V1.
    assert_eq!(container.hydrate_step(v2_copy, 1).unwrap(), HydrateStep::Copied(SLAB_LEN));
    let v2 = ("v2", [1; 8], &[1][..], &[][..], &[2, 3, 4, 5, 6, 7, 8][..]);
    assert_chunks(&container, "3E", [v1, v2, ("s2", s2, ALL, &[2], &[])]);

    // 3F: blocks 2 and 4 of V1, block 5 of V2 and block 6 of S2 are modified in the middle of the copy.
    write_chunk(&container, "v1", 2, 12);
    write_chunk(&container, "v1", 4, 14);
    write_chunk(&container, "v2", 5, 25);
    write_chunk(&container, "s2", 6, 36);
    let (s2, v2) = ([2, 32, 2, 2, 2, 36, 2, 2], [1, 1, 1, 1, 25, 1, 1, 1]);
    let shown = [
        ("v1", [1, 12, 1, 14, 1, 1, 1, 1], ALL, &[2, 4][..], &[][..]),
        ("v2", v2, &[1, 5], &[5], &[2, 3, 4, 6, 7, 8]),
        ("s2", s2, ALL, &[2, 6], &[]),
    ];
    for round in 0..2 {
        container.settle(1000).unwrap();
        assert_chunks(&container, "3F", shown);
        if round == 0 {
            container.close().unwrap();
            container = open(disk.clone());
            assert_chunks(&container, "a restart", shown);
        }
    }

    // The end: all of V2 is its own; neither V1 nor anything that was written to it meanwhile is needed.
    while container.hydrate_step(v2_copy, SLAB_LEN).unwrap() != HydrateStep::Ended(HydrateEnd::Done) {
        container.maintain().unwrap();
    }
    assert_chunks(&container, "the end", [shown[0], ("v2", v2, ALL, &[5], &[]), shown[2]]);
    assert_eq!(find(&container, "v2").state, VolumeState::Real);
    container.delete_volume("v1").unwrap();
    container.settle(1000).unwrap();
    assert_eq!(chunk_data(&container, "v2"), v2);
}

/// What each block holds.
fn chunk_data(container: &Container, name: &str) -> Vec<u8> {
    let mut bytes = vec![0; (BLOCKS * SLAB_LEN) as usize];
    io(container, name).read_at(&mut bytes, 0).unwrap();
    bytes.chunks(SLAB_LEN as usize).map(|block| block[0]).collect()
}
