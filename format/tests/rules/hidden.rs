//! What heads hide is freed (design rule 33), and nobody is told that there is no space before that.

use std::sync::Arc;
use std::task::Waker;

use pitstop_format::testing::{Fate, SimDisk};
use pitstop_format::{BackgroundKind, Container, Disk as _, Error, LayerInfo, Maintained, Planned, ReadPlan, SLAB_LEN};

use crate::support::*;

/// Bytes that a table describes.
const TABLE: u64 = 8192 * SLAB_LEN;

fn fill(container: &Container, name: &str, chunks: std::ops::Range<u64>, value: u8) {
    let len = (chunks.end - chunks.start) * SLAB_LEN;
    io(container, name).write_at(&vec![value; len as usize], chunks.start * SLAB_LEN).unwrap();
}

/// The first byte of each block of a chunk.
fn blocks(container: &Container, name: &str, chunk: u64) -> Vec<u8> {
    let mut bytes = vec![0; SLAB_LEN as usize];
    io(container, name).read_at(&mut bytes, chunk * SLAB_LEN).unwrap();
    bytes.chunks(BLOCK as usize).map(|block| block[0]).collect()
}

fn settle(container: &Container) {
    for _ in 0..2 {
        container.settle(10_000).unwrap();
        container.commit().unwrap();
    }
    container.settle(10_000).unwrap();
}

/// Slabs of the only frozen layer that one head stands on, its table not counted.
fn below(container: &Container) -> Option<u64> {
    let layers = container.layers();
    let is_below = |layer: &&LayerInfo| layer.kind == "frozen" && layer.children == 1;
    let found: Vec<_> = layers.iter().filter(is_below).map(|layer| layer.allocated_bytes / SLAB_LEN - 1).collect();
    assert!(found.len() <= 1, "{layers:?}");
    found.first().copied()
}

fn used(container: &Container) -> u64 {
    container.info().allocated_bytes
}

fn closed_clean(disk: &Arc<SimDisk>, container: Container) -> Container {
    container.close().unwrap();
    assert_clean(&**disk);
    open(disk.clone())
}

// req: R21, R23; rules: LAY-72, LAY-73 — a backup or a copy that is over costs nothing any more once its volume has been written
// anew, and no layer is left of it.
#[test]
fn what_a_backup_or_a_copy_kept_is_given_back() {
    for is_backup in [true, false] {
        let (disk, container) = new_container();
        container.create_volume("v", 40 * SLAB_LEN).unwrap();
        fill(&container, "v", 0..40, 1);
        settle(&container);
        let before = used(&container);
        let backup = is_backup.then(|| container.begin_backup("v", None).unwrap());
        if !is_backup {
            container.snapshot("v", "copy").unwrap();
        }
        fill(&container, "v", 0..40, 2);
        settle(&container);
        assert_eq!(used(&container), before + 41 * SLAB_LEN, "what it shows is kept");
        match backup {
            Some(backup) => backup.release().unwrap(),
            None => container.delete_volume("copy").unwrap(),
        }
        settle(&container);
        assert_eq!((used(&container), container.layers().len()), (before, 1));
        let container = closed_clean(&disk, container);
        assert_eq!((used(&container), blocks(&container, "v", 39)), (before, vec![2; 64]));
    }
}

// rule: LAY-72 — the slab of a chunk goes as soon as all that it shows is hidden, by data or by zeros, and not before.
#[test]
fn a_slab_goes_when_the_last_of_its_blocks_is_hidden() {
    let (disk, container) = new_container();
    container.create_volume("v", 8 * SLAB_LEN).unwrap();
    fill(&container, "v", 0..5, 1);
    io(&container, "v").write_at(&[1; 8 * BLOCK as usize], 5 * SLAB_LEN).unwrap();
    container.snapshot("v", "copy").unwrap();
    fill(&container, "v", 0..1, 2);
    io(&container, "v").discard(SLAB_LEN..2 * SLAB_LEN).unwrap();
    // All but a block.
    io(&container, "v").write_at(&[2; 63 * BLOCK as usize], 2 * SLAB_LEN + BLOCK).unwrap();
    io(&container, "v").write_at(&[2; 8 * BLOCK as usize], 5 * SLAB_LEN).unwrap();
    settle(&container);
    assert_eq!(below(&container), None, "a copy stands on it, too");
    container.delete_volume("copy").unwrap();
    settle(&container);
    assert_eq!(below(&container), Some(3), "chunks 2, 3 and 4 show");
    let container = closed_clean(&disk, container);
    let first = |chunk| blocks(&container, "v", chunk)[..9].to_vec();
    assert_eq!((first(0), first(1), first(3)), (vec![2; 9], vec![0; 9], vec![1; 9]));
    assert_eq!(first(2), [1, 2, 2, 2, 2, 2, 2, 2, 2]);
    assert_eq!(first(5), [2, 2, 2, 2, 2, 2, 2, 2, 0]);
    settle(&container);
    assert_eq!(below(&container), Some(3));
    // A part of a block is completed from below first.
    io(&container, "v").write_at(&[3; 512], 2 * SLAB_LEN).unwrap();
    settle(&container);
    assert_eq!(below(&container), Some(2), "chunk 2 is hidden");
    assert_eq!(blocks(&container, "v", 2)[..2], [3, 2]);
    let mut block = [0; BLOCK as usize];
    io(&container, "v").read_at(&mut block, 2 * SLAB_LEN).unwrap();
    assert_eq!((block[511], block[512]), (3, 1));
    fill(&container, "v", 3..4, 4);
    settle(&container);
    assert_eq!(below(&container), Some(1));
    io(&container, "v").discard(4 * SLAB_LEN..5 * SLAB_LEN).unwrap();
    settle(&container);
    assert_eq!((below(&container), container.layers().len()), (None, 1), "nothing of the layer shows");
    let container = closed_clean(&disk, container);
    assert_eq!((blocks(&container, "v", 3), blocks(&container, "v", 4)), (vec![4; 64], vec![0; 64]));
}

// rules: LAY-72, LAY-73, VOL-5 — a discard of a whole table hides all that is below it, before and after that was looked through.
#[test]
fn a_table_of_zeros_hides_a_table() {
    for is_early in [true, false] {
        let (disk, container) = new_container();
        container.create_volume("v", 2 * TABLE).unwrap();
        settle(&container);
        let before = used(&container);
        [0, 200, 8000].iter().for_each(|&chunk| fill(&container, "v", chunk..chunk + 2, 1));
        container.snapshot("v", "copy").unwrap();
        put(&container, "v", TABLE, 2);
        if is_early {
            io(&container, "v").discard(0..TABLE).unwrap();
        }
        container.delete_volume("copy").unwrap();
        settle(&container);
        if !is_early {
            assert_eq!(below(&container), Some(6));
            io(&container, "v").discard(0..TABLE).unwrap();
            settle(&container);
        }
        assert_eq!(below(&container), None);
        // Two tables, and a block.
        assert_eq!(used(&container), before + 3 * SLAB_LEN);
        let container = closed_clean(&disk, container);
        assert_eq!((block(&container, "v", 200 * SLAB_LEN), block(&container, "v", TABLE)), (0, 2));
    }
}

// rule: LAY-72 — in a deep chain each layer that comes to be alone below the head goes, as far as it is hidden.
#[test]
fn deep_chains_shrink_to_what_shows() {
    let (disk, container) = new_container();
    container.create_volume("v", 64 * SLAB_LEN).unwrap();
    fill(&container, "v", 0..64, 1);
    settle(&container);
    let before = used(&container);
    for n in 0..6u8 {
        container.snapshot("v", &format!("copy-{n}")).unwrap();
        fill(&container, "v", u64::from(n) * 8..u64::from(n) * 8 + 12, n + 2);
    }
    for n in [2, 0, 5, 1, 4, 3] {
        container.delete_volume(&format!("copy-{n}")).unwrap();
        settle(&container);
        for chunk in 0..64 {
            let last = if chunk < 52 { 1 + (chunk / 8).min(5) as u8 + 1 } else { 1 };
            assert_eq!(block(&container, "v", chunk * SLAB_LEN), last, "chunk {chunk} without copy {n}");
        }
    }
    // One frozen layer shows what the head has not: each chunk has one slab, and each layer a table.
    assert_eq!((used(&container), below(&container)), (before + SLAB_LEN, Some(52)));
    fill(&container, "v", 0..64, 9);
    settle(&container);
    assert_eq!((used(&container), container.layers().len()), (before, 1));
    closed_clean(&disk, container);
}

// rule: LAY-72 — as long as a request is under way that may have looked at the head before it had what it hides, that stays.
#[test]
fn what_is_hidden_stays_for_readers_of_before() {
    let (_, container) = new_container();
    container.create_volume("v", 4 * SLAB_LEN).unwrap();
    fill(&container, "v", 0..4, 1);
    container.snapshot("v", "copy").unwrap();
    container.delete_volume("copy").unwrap();
    put(&container, "v", 3 * SLAB_LEN, 2);
    settle(&container);
    let mut plan = ReadPlan::default();
    let read = container.volume("v").unwrap().plan_read(0..BLOCK, &mut plan).unwrap();
    assert!(matches!(read, Planned::Ready(())));
    fill(&container, "v", 0..2, 2);
    settle(&container);
    assert_eq!(below(&container), Some(4));
    assert_eq!(container.background().first().map(|work| work.kind), Some(BackgroundKind::Reclaim));
    plan.clear();
    settle(&container);
    assert_eq!(below(&container), Some(2));
    assert!(container.background().is_empty());
}

// rules: LAY-72, SNP-4, SNP-6 — a copy on its way shows what it should, though nobody else can come to it any more.
#[test]
fn a_copy_on_its_way_keeps_what_it_will_show() {
    for is_untouched in [true, false] {
        let (disk, container) = new_container();
        container.create_volume("v", 4 * SLAB_LEN).unwrap();
        fill(&container, "v", 0..4, 1);
        if is_untouched {
            container.snapshot("v", "other").unwrap();
            container.delete_volume("other").unwrap();
        }
        settle(&container);
        let copies = [container.begin_snapshot("v", "copy").unwrap(), container.begin_snapshot("v", "again").unwrap()];
        fill(&container, "v", 0..4, 2);
        settle(&container);
        for (copy, name) in copies.into_iter().zip(["copy", "again"]) {
            copy.finish().unwrap();
            settle(&container);
            assert_eq!(blocks(&container, name, 1), vec![1; 64], "{name}, untouched: {is_untouched}");
        }
        let full = used(&container);
        container.delete_volume("copy").unwrap();
        container.delete_volume("again").unwrap();
        // One that is given up keeps nothing, either.
        drop(container.begin_snapshot("v", "copy").unwrap());
        settle(&container);
        assert!(used(&container) < full - 3 * SLAB_LEN, "{} of {full}", used(&container));
        let container = closed_clean(&disk, container);
        assert_eq!(blocks(&container, "v", 1), vec![2; 64]);
    }
}

/// What `v` shows, chunk by chunk: of chunks that were not flushed what it held before, or holds now.
fn assert_shows(container: &Container, flushed: u64, what: &str) {
    for chunk in 0..60 {
        let shown = blocks(container, "v", chunk);
        let last = if chunk % 3 == 0 { 1 } else { 2 };
        let is_old = chunk >= flushed && shown == [1; 64];
        assert!(is_old || (shown[0] == 2 && shown[1..] == [last; 63]), "{what}: chunk {chunk} shows {shown:?}");
    }
}

// rules: LAY-72, JNL-2, JNL-6, CHK-0 — at no write of such a pass does a crash show anything else, or leave what disagrees.
#[test]
fn a_crash_in_the_middle_of_freeing_changes_nothing() {
    let (disk, container) = new_container();
    container.create_volume("v", 60 * SLAB_LEN).unwrap();
    fill(&container, "v", 0..60, 1);
    container.snapshot("v", "copy").unwrap();
    container.delete_volume("copy").unwrap();
    // Looked through already: what is written now, and what that hides, comes into the same batches.
    settle(&container);
    let mut crash = disk.record();
    let (mut states, mut freed) = (0, Vec::new());
    let mut look = |disk: &SimDisk, flushed: u64| {
        for event in disk.take_events() {
            crash.step(&event);
            for keep in [Fate::Lost, Fate::Kept] {
                let left = crash.disk(|_| keep);
                assert_clean(&*left);
                assert_shows(&open(left), flushed, &format!("crash state {states}"));
                states += 1;
            }
        }
    };
    for chunk in 0..60 {
        let len = if chunk % 3 == 0 { BLOCK } else { SLAB_LEN };
        io(&container, "v").write_at(&vec![2; len as usize], chunk * SLAB_LEN).unwrap();
        if chunk % 20 == 19 {
            // No flush: what is cleared is in no batch before what hides it.
            look(&disk, 0);
            while container.maintain().unwrap() == Maintained::Worked {
                look(&disk, 0);
            }
            freed.extend(below(&container));
            // Here both are in one batch, the others come with the next flush.
            if chunk == 19 {
                container.commit().unwrap();
                look(&disk, 0);
            }
        }
    }
    assert_eq!(freed, [47, 34, 20]);
    io(&container, "v").flush().unwrap();
    look(&disk, 0);
    settle(&container);
    look(&disk, 60);
    // What is free is used, by another.
    container.create_volume("other", 40 * SLAB_LEN).unwrap();
    fill(&container, "other", 0..40, STALE);
    io(&container, "other").flush().unwrap();
    look(&disk, 60);
    assert!(states > 100, "{states}");
    assert_shows(&container, 60, "at the end");
}

/// Writes chunks of `v` from `first` on until there is no space; returns the first that found none.
fn fill_up(container: &Container, first: u64, value: u8) -> u64 {
    for chunk in first.. {
        match io(container, "v").write_at(&vec![value; SLAB_LEN as usize], chunk * SLAB_LEN) {
            Ok(()) => {}
            Err(Error::NoSpace { .. }) => return chunk,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!()
}

// req: R23; rules: VOL-8, LAY-72 — a write that lacks a slab waits while a deleted copy, or what a head hides, still has to be
// freed, and fails when nothing is left to free.
#[test]
fn nobody_lacks_space_that_is_only_not_free_yet() {
    let (disk, container) = new_container();
    container.create_volume("v", 1 << 40).unwrap();
    settle(&container);
    disk.limit(Some(disk.len().unwrap()));
    let half = container.info().free_bytes / SLAB_LEN / 2;
    fill(&container, "v", 0..half + 8, 1);
    container.snapshot("v", "copy").unwrap();
    let end = fill_up(&container, 0, 2);
    assert!(end > 8 && end < half);
    // A block of a chunk that the head has nothing of.
    let plan = |chunk: u64| {
        let volume = container.volume("v").unwrap();
        volume.plan_write(chunk * SLAB_LEN..chunk * SLAB_LEN + BLOCK, Waker::noop())
    };
    assert!(matches!(plan(end), Err(Error::NoSpace { .. })));
    container.delete_volume("copy").unwrap();
    assert!(matches!(plan(end), Ok(Planned::Busy)), "what the copy kept is not free yet, but comes");
    put(&container, "v", end * SLAB_LEN, 3);
    // Each chunk that is overwritten gives its slab for the next; in the end every chunk of the volume is the head's.
    let last = fill_up(&container, end, 3);
    assert!(last > 2 * half - 20, "{last} chunks of {} found room", 2 * half);
    for _ in 0..3 {
        assert!(matches!(plan(last), Err(Error::NoSpace { .. })), "nothing is left to free");
        container.settle(100).unwrap();
    }
    for (chunk, value) in [(0, 2), (end - 1, 2), (end, 3), (half + 7, 3), (last - 1, 3), (last, 0)] {
        assert_eq!(block(&container, "v", chunk * SLAB_LEN), value, "chunk {chunk}");
    }
    disk.limit(None);
    closed_clean(&disk, container);
}
