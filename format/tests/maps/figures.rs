//! The scenario of figures 3A to 3F in the text on refresh: V1; V2 with its point-in-time copy S2; writes to V2 and S2;
//! V2 refreshed from V1; more writes to all three.
//!
//! Where the text copies old data to S2 before V2 changes, V2's layer goes over to S2 when V2 lets go of it. The steps of
//! the background copy (one block of S2 in 3B, block 1 of V2 in 3E) come with hydrate.

use pitstop_format::{Container, Content, VolumeState};

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
