//! Listing in steps: what they cover, what they read, and commands that come between.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use pitstop_format::{Container, Content, Error, Listing, MapCounts, MapRange, SLAB_LEN, VolumeState};

use crate::support::*;

const GIB: u64 = 1 << 30;

fn range(start: u64, end: u64, flags: &str, content: Content) -> MapRange {
    let (valid, modified, to_copy) = (flags.contains('V'), flags.contains('M'), flags.contains('R'));
    MapRange { start, length: end - start, valid, modified, to_copy, content }
}

// rules: MAP-30, MAP-31 — zeros, nothing at all, data of one's own and of others.
#[test]
fn each_kind_of_block_is_told_from_the_others() {
    use Content::{Data, Zero};
    let (_, container) = new_container();
    let size = 20 * GIB + BLOCK + 512;
    container.create_volume("golden", size).unwrap();
    assert_eq!(map(&container, "golden"), [range(0, size, "V", Zero)], "nothing was written");
    fill(&container, "golden", 0..4 * BLOCK, 1);
    fill(&container, "golden", size - 512..size, 1);
    container.snapshot("golden", "ci").unwrap();
    fill(&container, "ci", BLOCK..BLOCK + 512, 2);
    io(&container, "ci").write_zeroes(2 * BLOCK..3 * BLOCK).unwrap();
    // Two tables and a part of the third.
    io(&container, "ci").discard(2 * GIB..7 * GIB).unwrap();
    let last = 20 * GIB + BLOCK;
    assert_eq!(
        map(&container, "ci"),
        [
            range(0, BLOCK, "", Data),
            range(BLOCK, 2 * BLOCK, "VM", Data),
            range(2 * BLOCK, 3 * BLOCK, "VM", Zero),
            range(3 * BLOCK, 4 * BLOCK, "", Data),
            range(4 * BLOCK, last, "V", Zero),
            range(last, size, "", Data),
        ]
    );
    assert_eq!(
        map(&container, "golden"),
        [range(0, 4 * BLOCK, "V", Data), range(4 * BLOCK, last, "V", Zero), range(last, size, "V", Data)]
    );
    let counts = container.map("ci", 0, Listing::Counts).unwrap();
    assert_eq!((counts.ranges.len(), counts.next, counts.size_bytes), (0, None, size));
    let others_bytes = 2 * BLOCK + 512;
    let expected = MapCounts {
        valid_bytes: size - others_bytes,
        others_bytes,
        modified_bytes: 2 * BLOCK,
        to_copy_bytes: 0,
        data_bytes: 3 * BLOCK + 512,
        own_data_bytes: BLOCK,
        sealed_bytes: 0,
    };
    assert_eq!(counts.counts, expected);

    // Whole tables of zeros over another's data.
    container.create_volume("wide", 6 * GIB).unwrap();
    for at in 0..6 {
        fill(&container, "wide", at * GIB..at * GIB + BLOCK, 3);
    }
    container.refresh("ci", "wide").unwrap();
    io(&container, "ci").discard(GIB..5 * GIB).unwrap();
    let shown = map(&container, "ci");
    let zeros: u64 = shown.iter().filter(|r| r.modified && r.content == Zero).map(|r| r.length).sum();
    assert!(zeros >= 2 * GIB, "{shown:?}");
    for at in 0..6 {
        let block = shown.iter().find(|r| r.start <= at * GIB && at * GIB < r.start + r.length).unwrap();
        let here = (1..5).contains(&at);
        assert_eq!((block.valid, block.modified, block.content), (here, here, if here { Zero } else { Data }), "{at}");
    }
}

// rule: MAP-32 — steps of any length list the same; the listing begins at any byte and ends with the volume.
#[test]
fn steps_of_any_length_list_the_same() {
    let (_, container) = new_container();
    container.create_volume("v", 3 * MIB).unwrap();
    for block in (0..300).step_by(2) {
        fill(&container, "v", block * BLOCK..(block + 1) * BLOCK, 1);
    }
    let (whole, steps) = map_by(&container, "v", 1000);
    assert_eq!((steps.len(), whole.len()), (1, 300));
    for limit in [1, 2, 7, 299] {
        let (ranges, steps) = map_by(&container, "v", limit);
        assert_eq!(ranges, whole, "by {limit}");
        assert_eq!(steps.len(), 300usize.div_ceil(limit));
        let valid: u64 = steps.iter().map(|step| step.counts.valid_bytes).sum();
        assert_eq!(valid, 3 * MIB);
    }
    let step = container.map("v", BLOCK + 100, Listing::Ranges(0)).unwrap();
    assert_eq!(step.ranges, [range(BLOCK + 100, 2 * BLOCK, "V", Content::Zero)]);
    assert_eq!(step.next, Some(2 * BLOCK));
    for beyond in [3 * MIB, 3 * MIB + 1, 64 << 40, u64::MAX] {
        let step = container.map("v", beyond, Listing::Ranges(9)).unwrap();
        assert_eq!((step.ranges.len(), step.next), (0, None));
    }
    assert!(matches!(container.map("nobody", 0, Listing::Counts), Err(Error::NoSuchVolume { .. })));
}

// rule: MAP-32 — one step does not look at all of a large volume, and goes over what has no tables at once.
#[test]
fn a_step_is_bounded_whatever_the_size() {
    let (_, container) = new_container();
    container.create_volume("v", 64 << 40).unwrap();
    let step = container.map("v", 0, Listing::Counts).unwrap();
    assert_eq!((step.next, step.counts.valid_bytes), (None, 64 << 40));
    // A page in each of 2,100 spans of 32 MiB: 268,800 chunks, one by one.
    for page in 0..2100 {
        fill(&container, "v", page * 128 * SLAB_LEN..page * 128 * SLAB_LEN + BLOCK, 1);
    }
    let step = container.map("v", 0, Listing::Ranges(100_000)).unwrap();
    assert_eq!(step.next, Some((256 << 10) * SLAB_LEN));
    let (ranges, steps) = map_by(&container, "v", 100_000);
    assert_eq!((ranges.len(), steps.len()), (4200, 2));
}

/// A golden volume over many pages, a copy of it that was written here and there, and nothing of it in memory.
fn spread(container: Container) {
    container.create_volume("golden", 40 * 128 * SLAB_LEN).unwrap();
    for page in 0..40 {
        fill(&container, "golden", page * 128 * SLAB_LEN..page * 128 * SLAB_LEN + 2 * BLOCK, 1);
    }
    container.snapshot("golden", "ci").unwrap();
    for page in (0..40).step_by(3) {
        fill(&container, "ci", page * 128 * SLAB_LEN..page * 128 * SLAB_LEN + BLOCK, 2);
    }
    container.close().unwrap();
}

// rules: MAP-32, MAP-34 — pages come as they are needed, leave again, and no data is read.
#[test]
fn maps_and_differences_read_pages_and_no_data() {
    let (disk, container) = new_container();
    spread(container);
    let watched = Watched::on(disk);
    let container = open(watched.clone());
    container.create_volume("other", 40 * 128 * SLAB_LEN).unwrap();
    let data: Vec<u64> = ["golden", "ci"].iter().flat_map(|name| data_slabs(&container, name)).collect();
    assert!(data.len() >= 53);
    container.limit_resident_pages(0);
    for _ in 0..8 {
        container.commit().unwrap();
        container.settle(100).unwrap();
    }
    container.limit_resident_pages(8);
    let reads = Arc::new(Mutex::new(Vec::new()));
    let told = reads.clone();
    watched.set(move |range| told.lock().unwrap().push(range));
    assert_eq!(map(&container, "ci").len(), 40 * 2 + 14);
    assert_eq!(map(&container, "golden").len(), 80);
    assert_eq!(diff(&container, "golden", "ci").len(), 14);
    assert_eq!(diff(&container, "ci", "other").len(), 40);
    let reads = reads.lock().unwrap();
    assert!(reads.len() >= 160, "{} pages for 40 of two volumes, twice", reads.len());
    assert!(reads.iter().all(|range| range.end - range.start == 4096 && !data.contains(&(range.start / SLAB_LEN))));
    assert!(container.resident_pages() < 60, "{}", container.resident_pages());
}

/// `deep` on 200 layers, each of which a copy keeps and has a page for each of 20 spans; nothing of it is in memory.
fn deep() -> (Arc<Watched>, Container, Arc<AtomicUsize>) {
    let (disk, container) = new_container();
    container.create_volume("deep", 20 * 128 * SLAB_LEN).unwrap();
    for layer in 0..200u64 {
        for page in 0..20 {
            fill(
                &container,
                "deep",
                page * 128 * SLAB_LEN + layer % 64 * BLOCK..page * 128 * SLAB_LEN + (layer % 64 + 1) * BLOCK,
                1,
            );
        }
        container.snapshot("deep", &format!("kept-{layer}")).unwrap();
    }
    container.close().unwrap();
    let watched = Watched::on(disk);
    let container = open(watched.clone());
    let reads = Arc::new(AtomicUsize::new(0));
    (watched, container, reads)
}

// rule: MAP-32 — pages count one by one: a step on a deep chain does not read a table of each layer.
#[test]
fn a_step_reads_a_bounded_number_of_pages() {
    let (watched, container, reads) = deep();
    let counted = reads.clone();
    watched.set(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let mut next = Some(0);
    let (mut steps, mut before) = (0, 0);
    while let Some(start) = next {
        next = container.map("deep", start, Listing::Counts).unwrap().next;
        let read = reads.load(Ordering::Relaxed) - before;
        // What is spent before the last chunk, and that chunk's.
        assert!(read <= 256 + 200, "{read} pages in one step");
        (steps, before) = (steps + 1, before + read);
    }
    assert!(before >= 20 * 200 && steps >= 9, "{before} pages in {steps} steps show little");
}

// rule: CTL-74
#[test]
fn a_step_ends_when_it_is_given_up() {
    for differs in [false, true] {
        let (watched, container, reads) = deep();
        let given_up = Arc::new(AtomicBool::new(false));
        let (counted, gives_up) = (reads.clone(), given_up.clone());
        watched.set(move |_| gives_up.store(counted.fetch_add(1, Ordering::Relaxed) == 9, Ordering::Relaxed));
        let result = if differs {
            container.diff_until("deep", "kept-0", 0, Listing::Counts, &given_up).map(drop)
        } else {
            container.map_until("deep", 0, Listing::Counts, &given_up).map(drop)
        };
        assert!(matches!(result, Err(Error::ListingGivenUp)), "{result:?}");
        assert_eq!(reads.load(Ordering::Relaxed), 10);
    }
}

// rule: MAP-33 — a command in the middle of a step ends it: what it lists is of one head.
#[test]
fn a_step_is_of_one_head() {
    for deleted in [false, true] {
        let (disk, container) = new_container();
        spread(container);
        let watched = Watched::on(disk);
        let container = open(watched.clone());
        container.create_volume("other", MIB).unwrap();
        fill(&container, "other", 0..BLOCK, 9);
        let (other, mut reads) = (container.clone(), 0);
        watched.set(move |_| {
            reads += 1;
            match (reads, deleted) {
                (20, false) => drop(other.refresh("ci", "other").unwrap()),
                (20, true) => other.delete_volume("ci").unwrap(),
                _ => {}
            }
        });
        let head = find(&container, "ci").head;
        let first = container.map("ci", 0, Listing::Ranges(1000)).unwrap();
        assert_eq!((first.head, first.size_bytes), (head, 40 * 128 * SLAB_LEN));
        assert!(first.next.is_some_and(|next| next < first.size_bytes), "the command did not end the step");
        assert_eq!(first.ranges.iter().map(|range| range.length).sum::<u64>(), first.next.unwrap());
        let second = container.map("ci", 0, Listing::Ranges(1000));
        if deleted {
            assert!(matches!(second, Err(Error::NoSuchVolume { .. })));
        } else {
            let second = second.unwrap();
            assert!(second.head != head && second.size_bytes == MIB && second.next.is_none());
            assert_eq!(second.ranges[0], range(0, BLOCK, "", Content::Data));
        }
    }
}

// rule: MAP-31 — a real volume is valid all over; LAY-7 calls a volume virtual for less.
#[test]
fn a_real_volume_is_valid_all_over() {
    let (_, container) = new_container();
    container.create_volume("golden", MIB).unwrap();
    fill(&container, "golden", 0..8 * BLOCK, 1);
    container.snapshot("golden", "ci").unwrap();
    fill(&container, "ci", 0..8 * BLOCK, 2);
    let others = |name: &str| container.map(name, 0, Listing::Counts).unwrap().counts.others_bytes;
    assert_eq!((find(&container, "ci").state, others("ci")), (VolumeState::Virtual, 0));
    container.snapshot("golden", "ci-2").unwrap();
    assert_eq!((find(&container, "ci-2").state, others("ci-2")), (VolumeState::Virtual, 8 * BLOCK));
    container.delete_volume("golden").unwrap();
    container.delete_volume("ci").unwrap();
    assert_eq!((find(&container, "ci-2").state, others("ci-2")), (VolumeState::Real, 0));
}
