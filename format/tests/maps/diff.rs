//! Differences of two volumes, one promise a test; `model.rs` compares them with what the volumes hold.

use pitstop_format::{ChangedIn, Content, DiffCounts, DiffRange, Error, Listing, SLAB_LEN};

use crate::support::*;

use ChangedIn::{A, B, Both};
use Content::{Data, None as End, Zero};

fn range(blocks: std::ops::Range<u64>, changed_in: ChangedIn, a: Content, b: Content) -> DiffRange {
    DiffRange { start: blocks.start * BLOCK, length: (blocks.end - blocks.start) * BLOCK, changed_in, a, b }
}

// req: R16; rules: MAP-34, MAP-35 — what either side has changed since they were one; both directions are told apart.
#[test]
fn a_copy_and_its_source_differ_where_either_was_written_since() {
    let (_, container) = new_container();
    container.create_volume("golden", MIB).unwrap();
    fill(&container, "golden", 0..64 * BLOCK, 1);
    container.snapshot("golden", "ci").unwrap();
    assert_eq!(diff(&container, "golden", "ci"), []);
    fill(&container, "golden", 2 * BLOCK..6 * BLOCK, 2);
    fill(&container, "ci", 4 * BLOCK..8 * BLOCK, 3);
    io(&container, "ci").discard(10 * BLOCK..12 * BLOCK).unwrap();
    io(&container, "golden").discard(11 * BLOCK..13 * BLOCK).unwrap();
    fill(&container, "ci", 100 * BLOCK..101 * BLOCK, 3);
    let expected = [
        range(2..4, A, Data, Data),
        range(4..6, Both, Data, Data),
        range(6..8, B, Data, Data),
        range(10..11, B, Data, Zero),
        range(12..13, A, Zero, Data),
        range(100..101, B, Zero, Data),
    ];
    assert_eq!(diff(&container, "golden", "ci"), expected);
    let reverse: Vec<DiffRange> = diff(&container, "ci", "golden");
    assert_eq!(reverse.len(), expected.len());
    for (there, back) in expected.iter().zip(&reverse) {
        let changed_in = match there.changed_in {
            A => B,
            B => A,
            Both => Both,
        };
        assert_eq!(*back, DiffRange { changed_in, a: there.b, b: there.a, ..*there });
    }
    for limit in [1, 2, 5] {
        let (ranges, steps) = diff_by(&container, "golden", "ci", limit);
        assert_eq!(ranges, expected, "by {limit}");
        assert!(steps.len() > 1);
    }
    let counts = container.diff("golden", "ci", 0, Listing::Counts).unwrap();
    let bytes = |blocks: u64| blocks * BLOCK;
    let expected = DiffCounts {
        bytes: bytes(9),
        changed_in_a_bytes: bytes(5),
        changed_in_b_bytes: bytes(6),
        a_data_bytes: bytes(7),
        b_data_bytes: bytes(8),
    };
    assert_eq!((counts.counts, counts.next, counts.ranges.len()), (expected, None, 0));

    // The same again: nothing differs; then a copy of a copy, across the layer that both stand on.
    container.refresh("ci", "golden").unwrap();
    assert_eq!(diff(&container, "golden", "ci"), []);
    container.snapshot("ci", "second").unwrap();
    fill(&container, "second", 0..BLOCK, 5);
    container.snapshot("second", "third").unwrap();
    fill(&container, "golden", BLOCK..2 * BLOCK, 6);
    assert_eq!(diff(&container, "golden", "third"), [range(0..1, B, Data, Data), range(1..2, A, Data, Data)]);
    assert_eq!(diff(&container, "third", "second"), []);
    assert_eq!(diff(&container, "third", "third"), []);
}

// rules: MAP-34, MAP-35 — without a common layer everything that either has; beyond one's end all that the other is.
#[test]
fn unrelated_volumes_of_different_sizes_differ_in_all_that_either_has() {
    let (_, container) = new_container();
    let (small, large) = (3 * BLOCK + 512, 3 * SLAB_LEN);
    container.create_volume("small", small).unwrap();
    container.create_volume("large", large).unwrap();
    fill(&container, "small", 0..BLOCK, 1);
    fill(&container, "large", 2 * BLOCK..5 * BLOCK, 1);
    let part = |start: u64, end: u64, changed_in, a, b| DiffRange { start, length: end - start, changed_in, a, b };
    let expected = [
        part(0, BLOCK, A, Data, Zero),
        part(2 * BLOCK, small, B, Zero, Data),
        part(small, 5 * BLOCK, B, End, Data),
        part(5 * BLOCK, large, B, End, Zero),
    ];
    assert_eq!(diff(&container, "small", "large"), expected);
    let step = container.diff("large", "small", 5 * BLOCK + 1, Listing::Ranges(9)).unwrap();
    assert_eq!(step.ranges, [part(5 * BLOCK + 1, large, A, Zero, End)]);
    assert_eq!((step.a_size_bytes, step.b_size_bytes, step.next), (large, small, None));
    assert_eq!(container.diff("large", "small", u64::MAX, Listing::Counts).unwrap().counts, DiffCounts::default());
    for (a, b) in [("nobody", "small"), ("small", "nobody")] {
        assert!(matches!(container.diff(a, b, 0, Listing::Counts), Err(Error::NoSuchVolume { .. })));
    }
}

// rules: MAP-34, LAY-8 — a merge that comes between the looks at two volumes makes no difference.
#[test]
fn a_merge_in_the_middle_is_no_difference() {
    let (disk, container) = new_container();
    container.create_volume("v", MIB).unwrap();
    fill(&container, "v", 0..4 * BLOCK, 1);
    container.snapshot("v", "lower").unwrap();
    fill(&container, "v", 4 * BLOCK..8 * BLOCK, 2);
    container.snapshot("v", "copy").unwrap();
    fill(&container, "copy", 9 * BLOCK..10 * BLOCK, 3);
    container.delete_volume("lower").unwrap();
    container.close().unwrap();
    let watched = Watched::on(disk);
    let container = open(watched.clone());
    let frozen = || container.layers().iter().filter(|layer| layer.kind == "frozen").count();
    assert_eq!(frozen(), 2);
    // In memory: all that `v` needs; the page of the copy's own head is not.
    let mut bytes = [0; 4096];
    io(&container, "v").read_at(&mut bytes, 0).unwrap();
    let (merging, mut reads) = (container.clone(), 0);
    watched.set(move |_| {
        reads += 1;
        if reads == 1 {
            merging.settle(1000).unwrap();
        }
    });
    assert_eq!(diff(&container, "v", "copy"), [range(9..10, B, Zero, Data)]);
    assert_eq!(frozen(), 1, "nothing was merged");
}
