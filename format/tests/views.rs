//! Write-through views: two volumes over one image, and which of them sees what.
//!
//! req: R24, R25, R26, R27. Rules: VIEW-1 to VIEW-10, LAY-7, LAY-70, MAP-30, REL-2, REL-7, SNP-3, TAG-4, TAG-7.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::Waker;

use common::{contents, find, io, new_container, open};
use pitstop_format::check::{CheckReport, Outcome, check};
use pitstop_format::testing::{Fault, Injection, SimDisk};
use pitstop_format::{
    Container, Disk as _, Durability, Edge, EdgeSource, Error, HydrateEnd, HydrateStep, HydrateWait, Listing, NewCopy,
    Planned, RelationState, Result, SLAB_LEN, SealEnd, SealStep, Verify, ViewEnd, VolumeChange, WriteSegment,
    WriteTicket, ZeroKind,
};

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;

/// The bytes of some blocks of a chunk.
fn blocks(chunk: u64, blocks: Range<u64>) -> Range<u64> {
    chunk * SLAB_LEN + blocks.start * BLOCK..chunk * SLAB_LEN + blocks.end * BLOCK
}

fn fill(container: &Container, name: &str, range: Range<u64>, value: u8) {
    io(container, name).write_at(&vec![value; (range.end - range.start) as usize], range.start).unwrap();
}

/// The value of each sector.
fn values(container: &Container, name: &str, range: Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    io(container, name).read_at(&mut bytes, range.start).unwrap();
    let value = |sector: &[u8]| {
        assert!(sector.iter().all(|byte| *byte == sector[0]));
        sector[0]
    };
    bytes.chunks(512).map(value).collect()
}

/// The one value of a range through the source and through the view.
#[track_caller]
fn both(container: &Container, range: Range<u64>) -> (u8, u8) {
    let one = |name| {
        let found = values(container, name, range.clone());
        assert!(found.iter().all(|value| *value == found[0]), "{name}: {found:?}");
        found[0]
    };
    (one("a"), one("b"))
}

/// `a` with ones in two chunks, and `b`, a view of it.
fn view() -> (Arc<SimDisk>, Container) {
    let (disk, container) = new_container(MIB);
    container.create_volume("a", 4 * MIB + 512).unwrap();
    fill(&container, "a", blocks(0, 0..8), 1);
    fill(&container, "a", blocks(1, 0..8), 1);
    container.create_view("a", "b").unwrap();
    (disk, container)
}

fn ready(planned: Result<Planned<WriteTicket>>) -> WriteTicket {
    match planned.unwrap() {
        Planned::Ready(ticket) => ticket,
        other => panic!("{other:?}"),
    }
}

fn plan(container: &Container, name: &str, range: Range<u64>) -> WriteTicket {
    ready(container.volume(name).unwrap().plan_write(range, Waker::noop()))
}

fn is_busy(container: &Container, name: &str, range: Range<u64>) -> bool {
    matches!(container.volume(name).unwrap().plan_write(range, Waker::noop()).unwrap(), Planned::Busy)
}

/// Writes all that a ticket asks for; the write is not published.
fn carry_out(disk: &SimDisk, segments: &[WriteSegment], edges: &[Edge], value: u8) {
    for edge in edges {
        let mut block = vec![0; BLOCK as usize];
        if let EdgeSource::Disk { offset } = edge.source {
            disk.read_at(&mut block, offset).unwrap();
        }
        block[edge.offset_in_block..][..edge.len].fill(value);
        disk.write_at(&block, edge.disk_offset).unwrap();
    }
    for segment in segments {
        disk.write_at(&vec![value; segment.len as usize], segment.disk_offset).unwrap();
    }
}

fn end(disk: &SimDisk, ticket: WriteTicket, value: u8) {
    carry_out(disk, ticket.segments(), ticket.edges(), value);
    ticket.complete();
}

/// As after the end of the process without closing: what has not been committed is gone.
fn crashed(disk: &Arc<SimDisk>) -> Container {
    open(&disk.copy())
}

fn assert_clean(disk: &Arc<SimDisk>, container: Container) {
    container.commit().unwrap();
    for _ in 0..2 {
        let report = check(&**disk).unwrap();
        assert_eq!(report.outcome(), Outcome::Clean, "{:#?}", report.findings);
        container.settle(1000).unwrap();
    }
    container.close().unwrap();
    let report = check(&**disk).unwrap();
    assert_eq!(report.outcome(), Outcome::Clean, "{:#?}", report.findings);
}

// req: R24, R27; rules: VIEW-1, VIEW-2, VIEW-3
#[test]
fn what_is_written_through_the_view_is_seen_by_both_and_what_through_the_source_by_it_alone() {
    let (disk, container) = view();
    fill(&container, "a", blocks(0, 0..2), 2);
    fill(&container, "b", blocks(0, 2..4), 3);
    let check = |container: &Container| {
        assert_eq!(both(container, blocks(0, 0..2)), (2, 1));
        assert_eq!(both(container, blocks(0, 2..4)), (3, 3));
        assert_eq!(both(container, blocks(0, 4..8)), (1, 1));
        assert_eq!(both(container, blocks(3, 0..1)), (0, 0));
    };
    check(&container);
    // Over what the source has, the view's write is what both see, until the source writes again.
    fill(&container, "b", blocks(0, 1..2), 4);
    assert_eq!((both(&container, blocks(0, 0..1)), both(&container, blocks(0, 1..2))), ((2, 1), (4, 4)));
    fill(&container, "a", blocks(0, 1..2), 5);
    assert_eq!(both(&container, blocks(0, 1..2)), (5, 4));
    fill(&container, "b", blocks(0, 1..2), 6);
    assert_eq!(both(&container, blocks(0, 1..2)), (6, 6));
    // Zeros are versions, too.
    io(&container, "a").discard(blocks(0, 4..6)).unwrap();
    io(&container, "b").discard(blocks(0, 2..3)).unwrap();
    assert_eq!((both(&container, blocks(0, 4..6)), both(&container, blocks(0, 2..3))), ((0, 1), (0, 0)));
    fill(&container, "b", blocks(0, 4..5), 7);
    io(&container, "a").discard(blocks(0, 3..4)).unwrap();
    io(&container, "b").write_zeroes(blocks(0, 0..4)).unwrap();
    assert_eq!((both(&container, blocks(0, 0..4)), both(&container, blocks(0, 4..5))), ((0, 0), (7, 7)));
    container.close().unwrap();
    let container = open(&disk);
    assert_eq!((both(&container, blocks(0, 0..4)), both(&container, blocks(0, 5..6))), ((0, 0), (0, 1)));
    fill(&container, "b", blocks(0, 5..6), 8);
    assert_eq!(both(&container, blocks(0, 5..6)), (8, 8));
    assert_clean(&disk, container);
}

// rule: VIEW-3 — zeros of whole tables: the source's, and the view's over what the source has.
#[test]
fn whole_tables_become_zeros_through_either() {
    let (disk, container) = new_container(MIB);
    container.create_volume("a", 5 << 30).unwrap();
    let places = [0, 2 << 30, (4 << 30) + MIB];
    places.iter().for_each(|at| fill(&container, "a", *at..at + BLOCK, 1));
    container.create_view("a", "b").unwrap();
    io(&container, "a").discard(0..5 << 30).unwrap();
    places.iter().for_each(|at| assert_eq!(both(&container, *at..at + BLOCK), (0, 1)));
    fill(&container, "b", 2 << 30..(2 << 30) + 512, 2);
    assert_eq!(values(&container, "a", 2 << 30..(2 << 30) + 1024), [2, 0]);
    assert_eq!(values(&container, "b", 2 << 30..(2 << 30) + 1024), [2, 1]);
    fill(&container, "a", 0..BLOCK, 3);
    io(&container, "b").discard(0..4 << 30).unwrap();
    assert_eq!((both(&container, 0..BLOCK), both(&container, 2 << 30..(2 << 30) + BLOCK)), ((0, 0), (0, 0)));
    assert_eq!(both(&container, places[2]..places[2] + BLOCK), (0, 1));
    assert_clean(&disk, container);
}

// rules: VIEW-3, VOL-5 — zeros through the view over the source's zeros go table by table, in one step.
#[test]
fn zeros_over_zeros_cost_the_view_as_little_as_another_volume() {
    let (disk, container) = new_container(MIB);
    container.create_volume("a", 5 << 30).unwrap();
    fill(&container, "a", (2 << 30) + MIB..(2 << 30) + 2 * MIB, 1);
    container.create_view("a", "b").unwrap();
    io(&container, "a").discard(0..5 << 30).unwrap();
    assert_eq!(both(&container, (2 << 30) + MIB..(2 << 30) + 2 * MIB), (0, 1));
    let b = container.volume("b").unwrap();
    match b.plan_zero(0..5 << 30, ZeroKind::Discard, Waker::noop()).unwrap() {
        Planned::Ready(ticket) => {
            assert_eq!(ticket.remaining(), None);
            ticket.complete();
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(both(&container, (2 << 30) + MIB..(2 << 30) + 2 * MIB), (0, 0));
    // The view's data takes the source's zeros away.
    fill(&container, "b", (2 << 30) + MIB..(2 << 30) + MIB + 512, 2);
    assert_eq!(values(&container, "a", (2 << 30) + MIB..(2 << 30) + MIB + 1024), [2, 0]);
    assert_clean(&disk, container);
}

// rule: VIEW-3 — a part of a block that the source's head has, as data, as zeros, or not at all.
#[test]
fn a_part_of_a_block_is_written_to_both_heads() {
    let (disk, container) = view();
    fill(&container, "a", blocks(0, 0..1), 2);
    io(&container, "a").discard(blocks(0, 1..2)).unwrap();
    for (block, rest) in [(0, 2), (1, 0), (2, 1)] {
        let range = blocks(0, block..block + 1);
        fill(&container, "b", range.start + 512..range.start + 1024, 9);
        let shown = |rest| [vec![rest, 9], vec![rest; 6]].concat();
        assert_eq!(values(&container, "b", range.clone()), shown(1), "block {block}");
        assert_eq!(values(&container, "a", range), shown(rest), "block {block}");
    }
    // Both ends of one write, and whole blocks between them.
    fill(&container, "a", blocks(1, 0..4), 2);
    let range = blocks(1, 0..4);
    fill(&container, "b", range.start + 3584..range.end - 3584, 9);
    let shown = |rest| [vec![rest; 7], vec![9; 18], vec![rest; 7]].concat();
    assert_eq!(values(&container, "b", range.clone()), shown(1));
    assert_eq!(values(&container, "a", range.clone()), shown(2));
    io(&container, "b").write_zeroes(range.start + 512..range.start + 1024).unwrap();
    assert_eq!(values(&container, "a", range.start..range.start + 1536), [2, 0, 2]);
    // Given up, a write to two heads leaves both.
    drop(plan(&container, "b", range.start + 1024..range.start + 1536));
    drop(plan(&container, "b", range.clone()));
    assert_eq!(values(&container, "a", range.start..range.start + 1536), [2, 0, 2]);
    let a = values(&container, "a", 0..4 * MIB);
    container.close().unwrap();
    let container = open(&disk);
    assert_eq!(values(&container, "a", 0..4 * MIB), a);
    assert_clean(&disk, container);
}

// req: R25; rules: VIEW-6, VIEW-7, SNP-3
#[test]
fn a_write_of_before_ends_in_what_both_show_and_nobody_waits_for_it() {
    let (disk, container) = new_container(MIB);
    container.create_volume("a", 4 * MIB).unwrap();
    fill(&container, "a", blocks(0, 0..8), 1);
    let overwrite = plan(&container, "a", blocks(0, 0..2));
    let first = plan(&container, "a", blocks(1, 0..2));
    // Returns though both are under way, and the new I/O runs at the same time.
    container.create_view("a", "b").unwrap();
    fill(&container, "a", blocks(0, 1..2), 5);
    fill(&container, "b", blocks(1, 1..2), 6);
    // But for parts of blocks: the rest is taken from below, where it is not settled.
    for name in ["a", "b"] {
        assert!(is_busy(&container, name, blocks(0, 3..3).start..blocks(0, 3..3).start + 512));
    }
    end(&disk, overwrite, 2);
    end(&disk, first, 3);
    assert_eq!((both(&container, blocks(0, 0..1)), both(&container, blocks(0, 1..2))), ((2, 2), (5, 2)));
    assert_eq!((both(&container, blocks(1, 0..1)), both(&container, blocks(1, 1..2))), ((3, 3), (6, 6)));
    // What both show, the flush of either makes durable.
    io(&container, "b").flush().unwrap();
    let after = crashed(&disk);
    assert_eq!((both(&after, blocks(0, 0..1)).1, both(&after, blocks(1, 0..1)).1), (2, 3));
    drop(after);
    fill(&container, "a", 512..1024, 4);
    assert_eq!((values(&container, "a", 0..1024), values(&container, "b", 0..1024)), (vec![2, 4], vec![2, 2]));
    assert_clean(&disk, container);
}

// req: R26; rule: VIEW-4
#[test]
fn writes_that_meet_in_a_block_wait_whichever_side_they_come_from() {
    let (disk, container) = view();
    let part = 512..1024;
    // The source takes the rest of the block from below: the view must not change it meanwhile.
    let source = plan(&container, "a", part.clone());
    assert!(is_busy(&container, "b", blocks(0, 0..1)) && is_busy(&container, "b", 2048..2560));
    let zero = container.volume("b").unwrap().plan_zero(0..BLOCK, ZeroKind::Discard, Waker::noop()).unwrap();
    assert!(matches!(zero, Planned::Busy));
    end(&disk, source, 2);
    assert_eq!(values(&container, "a", 0..1536), [1, 2, 1]);
    // The other way round, also where the view's head has the block already.
    for value in [3, 4] {
        let through = plan(&container, "b", blocks(0, 4..6));
        assert!(is_busy(&container, "a", blocks(0, 4..4).start..blocks(0, 4..4).start + 512));
        assert!(is_busy(&container, "a", blocks(0, 5..6)));
        let zero = container.volume("a").unwrap().plan_zero(blocks(0, 4..5), ZeroKind::Discard, Waker::noop()).unwrap();
        assert!(matches!(zero, Planned::Busy));
        end(&disk, through, value);
        assert_eq!(both(&container, blocks(0, 4..6)), (value, value));
    }
    // Neighbours in the chunk do not wait.
    let through = plan(&container, "b", blocks(0, 4..6));
    fill(&container, "a", blocks(0, 6..7), 7);
    end(&disk, through, 8);
    assert_eq!((both(&container, blocks(0, 4..6)), both(&container, blocks(0, 6..7))), ((8, 8), (7, 1)));
    assert_clean(&disk, container);
}

// rules: VIEW-4, VIEW-5 — an overwrite that takes no lock counts as before the view's write that it meets.
#[test]
fn an_overwrite_that_a_write_through_the_view_overtakes_counts_as_before_it() {
    let (disk, container) = view();
    fill(&container, "a", blocks(0, 0..1), 2);
    io(&container, "a").flush().unwrap();
    let late = plan(&container, "a", blocks(0, 0..1));
    fill(&container, "b", blocks(0, 0..1), 3);
    // Its slab is nobody else's until it ends.
    fill(&container, "a", blocks(2, 0..64), 4);
    end(&disk, late, 5);
    assert_eq!((both(&container, blocks(0, 0..1)), both(&container, blocks(2, 0..64))), ((3, 3), (4, 0)));
    let found = values(&crashed(&disk), "a", blocks(0, 0..1));
    assert!(found == [5; 8], "what the source has written is what a crash leaves: {found:?}");
    io(&container, "a").flush().unwrap();
    assert_eq!(both(&crashed(&disk), blocks(0, 0..1)), (3, 3));
    assert_clean(&disk, container);
}

// rule: VIEW-5
#[test]
fn a_flush_of_either_makes_durable_what_was_written_through_the_view() {
    for name in ["a", "b"] {
        let (disk, container) = view();
        fill(&container, "a", blocks(0, 0..2), 2);
        fill(&container, "b", blocks(0, 0..1), 3);
        io(&container, "b").discard(blocks(1, 0..1)).unwrap();
        assert_eq!(both(&crashed(&disk), blocks(0, 0..1)), (1, 1));
        io(&container, name).flush().unwrap();
        let after = crashed(&disk);
        assert_eq!((both(&after, blocks(0, 0..1)), both(&after, blocks(1, 0..1))), ((3, 3), (0, 0)));
    }
}

// rules: JNL-7, VIEW-5 — it changes no entry.
#[test]
fn a_flush_after_an_overwrite_through_the_view_is_one_sync() {
    let (disk, container) = view();
    let flush = |name: &str| io(&container, name).flush().unwrap();
    let records = || disk.requests(Fault::Durable);
    fill(&container, "b", blocks(0, 0..4), 2);
    ["a", "b"].into_iter().for_each(flush);
    for name in ["a", "b"] {
        let (before, syncs) = (records(), disk.requests(Fault::Sync));
        fill(&container, "b", blocks(0, 1..3), 3);
        io(&container, "b").write_at(&[4; 512], 512).unwrap();
        flush(name);
        assert_eq!((records(), disk.requests(Fault::Sync)), (before, syncs + 1), "a flush of {name}");
    }
    assert_eq!(both(&container, blocks(0, 1..3)), (3, 3));
    // What takes blocks from the source is a change, and so is what is new.
    for (name, range) in [("a", blocks(0, 1..2)), ("b", blocks(0, 1..2)), ("b", blocks(2, 0..1))] {
        let before = records();
        fill(&container, name, range, 5);
        flush("a");
        assert!(records() > before);
    }
    assert_clean(&disk, container);
}

// req: R24; rule: VIEW-8
#[test]
fn after_drop_both_show_the_view_and_after_keep_each_its_own() {
    for ending in [ViewEnd::Drop, ViewEnd::Keep] {
        let (disk, container) = view();
        fill(&container, "a", blocks(0, 0..2), 2);
        fill(&container, "b", blocks(0, 1..3), 3);
        let late = [plan(&container, "a", blocks(0, 0..1)), plan(&container, "b", blocks(1, 0..1))];
        let info = std::thread::scope(|scope| {
            let pending = container.begin_end_view("b", ending).unwrap();
            assert!(!pending.is_sealed());
            // At once, though writes of before are under way.
            fill(&container, "b", blocks(0, 2..3), 4);
            let finished = scope.spawn(|| pending.finish().unwrap());
            let [source, through] = late;
            end(&disk, source, 5);
            end(&disk, through, 6);
            finished.join().unwrap()
        });
        assert_eq!((info.name.as_str(), info.view_of), ("b", None));
        let first = if ending == ViewEnd::Drop { (1, 1) } else { (5, 1) };
        let check = |container: &Container| {
            assert_eq!(both(container, blocks(0, 0..1)), first);
            assert_eq!(both(container, blocks(0, 1..2)), (3, 3));
            assert_eq!(both(container, blocks(0, 2..3)), (3, 4));
            assert_eq!((both(container, blocks(1, 0..1)), both(container, blocks(1, 1..2))), ((6, 6), (1, 1)));
        };
        check(&container);
        container.settle(1000).unwrap();
        check(&container);
        // They are volumes like any other.
        fill(&container, "b", blocks(0, 4..5), 7);
        assert_eq!(both(&container, blocks(0, 4..5)), (1, 7));
        container.snapshot("a", "copy").unwrap();
        container.create_view("b", "c").unwrap();
        container.end_view("c", ViewEnd::Drop).unwrap();
        container.delete_volume("c").unwrap();
        container.delete_volume("b").unwrap();
        assert_eq!(values(&container, "a", blocks(0, 0..1)), [first.0; 8]);
        assert_clean(&disk, container);
    }
}

// rule: VIEW-8 — a write through the view that ends after the source's version was kept still covers it.
#[test]
fn a_late_write_through_the_view_is_seen_by_both_whatever_ended_it() {
    for ending in [ViewEnd::Drop, ViewEnd::Keep] {
        let (disk, container) = view();
        fill(&container, "a", blocks(0, 0..4), 2);
        let late = plan(&container, "b", 512..4 * BLOCK);
        let pending = container.begin_end_view("b", ending).unwrap();
        fill(&container, "a", blocks(0, 3..4), 4);
        container.settle(1000).unwrap();
        end(&disk, late, 3);
        pending.finish().unwrap();
        let first = if ending == ViewEnd::Drop { 1 } else { 2 };
        let check = |container: &Container| {
            assert_eq!(values(container, "b", 0..1024), [1, 3]);
            assert_eq!(values(container, "a", 0..1024), [first, 3]);
            assert_eq!((both(container, blocks(0, 1..3)), both(container, blocks(0, 3..4))), ((3, 3), (4, 3)));
        };
        check(&container);
        io(&container, "a").flush().unwrap();
        check(&crashed(&disk));
        container.settle(1000).unwrap();
        check(&container);
        assert_clean(&disk, container);
    }
}

// rules: VIEW-6, VIEW-8 — nothing of a command that was not committed is left, and all of one that was.
#[test]
fn a_crash_leaves_a_view_or_none() {
    let (disk, container) = view();
    fill(&container, "a", blocks(0, 0..1), 2);
    container.commit().unwrap();
    for ending in [ViewEnd::Drop, ViewEnd::Keep] {
        let disk = disk.copy();
        let container = open(&disk);
        let pending = container.begin_end_view("b", ending).unwrap();
        let before = crashed(&disk);
        assert_eq!((find(&before, "b").view_of.as_deref(), both(&before, blocks(0, 0..1))), (Some("a"), (2, 1)));
        pending.finish().unwrap();
        let after = crashed(&disk);
        let shown = if ending == ViewEnd::Drop { (1, 1) } else { (2, 1) };
        assert_eq!((find(&after, "b").view_of, both(&after, blocks(0, 0..1))), (None, shown));
    }
    container.end_view("b", ViewEnd::Keep).unwrap();
    let pending = container.begin_create_view("a", "c").unwrap();
    fill(&container, "a", blocks(0, 1..2), 3);
    assert!(crashed(&disk).volume("c").is_err());
    pending.finish().unwrap();
    assert_eq!(find(&crashed(&disk), "a").viewed_by.as_deref(), Some("c"));
}

// rule: VIEW-9
#[test]
fn what_would_freeze_or_replace_a_head_of_a_view_is_refused() {
    let (_disk, container) = view();
    container.create_volume("other", MIB).unwrap();
    let layers = container.layers().len();
    let copy = |source: &str| NewCopy { source: source.to_owned(), name: format!("{source}-copy") };
    for name in ["a", "b"] {
        let refusals = [
            container.snapshot(name, "copy").map(drop),
            container.snapshot_group(&[copy("other"), copy(name)]).map(drop),
            container.refresh("other", name).map(drop),
            container.refresh(name, "other").map(drop),
            container.hydrate(name).map(drop),
            container.delete_volume(name),
            container.create_view(name, "second").map(drop),
        ];
        for (index, refusal) in refusals.into_iter().enumerate() {
            let Err(Error::InView { view, .. }) = &refusal else { panic!("{index} of {name}: {refusal:?}") };
            assert_eq!(view, "b");
            assert!(refusal.unwrap_err().to_string().contains("pitstop view drop CONTAINER b"));
        }
    }
    for name in ["a", "other"] {
        assert!(matches!(container.end_view(name, ViewEnd::Keep), Err(Error::NotAView { .. })));
    }
    assert!(matches!(container.end_view("nobody", ViewEnd::Drop), Err(Error::NoSuchVolume { .. })));
    assert!(matches!(container.create_view("other", "b"), Err(Error::VolumeExists { .. })));
    assert_eq!((container.layers().len(), container.volumes().len()), (layers, 3));
    container.snapshot("other", "ci").unwrap();
    fill(&container, "other", 0..BLOCK, 1);
    container.refresh("ci", "other").unwrap();
    container.hydrate("ci").unwrap().unwrap();
    assert!(matches!(container.create_view("ci", "c"), Err(Error::Hydrating { .. })));
    container.rename_volume("b", "new").unwrap();
    assert_eq!(find(&container, "a").viewed_by.as_deref(), Some("new"));
}

// rules: LAY-7, MAP-30 — a view's head is the view's; what the two share is neither's but its owner's.
#[test]
fn maps_tell_whose_each_block_is() {
    let (_disk, container) = view();
    fill(&container, "a", blocks(0, 0..2), 2);
    fill(&container, "b", blocks(2, 0..3), 3);
    let counts = |name: &str| container.map(name, 0, Listing::Counts).unwrap().counts;
    let (a, b) = (counts("a"), counts("b"));
    assert_eq!((a.modified_bytes, b.modified_bytes), (2 * BLOCK, 3 * BLOCK));
    // The frozen layer is a's: of 16 blocks two are covered.
    assert_eq!((a.own_data_bytes, a.others_bytes), (16 * BLOCK, 3 * BLOCK));
    assert_eq!((b.own_data_bytes, b.others_bytes), (3 * BLOCK, 16 * BLOCK));
    let diff = container.diff("a", "b", 0, Listing::Counts).unwrap().counts;
    assert_eq!(diff.bytes, 2 * BLOCK);
    assert_eq!(
        (find(&container, "a").viewed_by.as_deref(), find(&container, "b").view_of.as_deref()),
        (Some("b"), Some("a"))
    );
}

// rule: VIEW-10
#[test]
fn a_view_promises_what_its_source_promises() {
    let (disk, container) = view();
    let set = |durability| VolumeChange { durability: Some(durability), defined: false };
    for name in ["a", "b"] {
        assert!(matches!(container.set_volume(name, set(Durability::None)), Err(Error::InView { .. })));
        assert_eq!(container.set_volume(name, set(Durability::Flush)).unwrap().durability, Durability::Flush);
    }
    container.end_view("b", ViewEnd::Keep).unwrap();
    container.set_volume("a", set(Durability::None)).unwrap();
    let refused = container.create_view("a", "c").unwrap_err();
    assert!(matches!(refused, Error::Disposable { .. }) && refused.to_string().contains("--durability flush"));
    let after = crashed(&disk);
    after.set_volume("a", set(Durability::Flush)).unwrap();
    assert!(matches!(after.create_view("a", "c"), Err(Error::Undefined { .. })));
    drop(after);
    container.set_volume("a", set(Durability::Flush)).unwrap();
    assert_eq!(container.create_view("a", "c").unwrap().durability, Durability::Flush);
    assert_clean(&disk, container);
}

/// Hydrates a volume; what was copied and what adopted.
fn hydrated(container: &Container, name: &str) -> (u64, u64) {
    let layer = container.hydrate(name).unwrap().unwrap();
    loop {
        match container.hydrate_step(layer, MIB).unwrap() {
            HydrateStep::Ended(end) => break assert_eq!(end, HydrateEnd::Done),
            HydrateStep::Copied(_) | HydrateStep::Blocked(_) => drop(container.maintain().unwrap()),
        }
    }
    let moved = find(container, name).relation.unwrap().moved.unwrap();
    (moved.copied_bytes, moved.adopted_bytes)
}

// rules: VIEW-7, VIEW-9, REL-2, REL-7, TAG-4, TAG-7 — what is known of the layers below both heads stays true.
#[test]
fn relations_and_seals_go_on_below_a_view() {
    for ending in [ViewEnd::Drop, ViewEnd::Keep] {
        let (disk, container) = new_container(MIB);
        container.create_volume("a", 4 * MIB).unwrap();
        fill(&container, "a", 0..2 * MIB, 1);
        container.set_verify("a", Verify::Copy).unwrap();
        container.snapshot("a", "ci").unwrap();
        assert_eq!(hydrated(&container, "ci"), (2 * MIB, 0));
        let late = plan(&container, "a", blocks(0, 0..1));
        container.create_view("a", "b").unwrap();
        // What the view froze is sealed when the writes of before have ended, and not before.
        let a = find(&container, "a").id;
        let waits = loop {
            match container.seal_step(a, MIB).unwrap() {
                SealStep::Sealed(_) => {}
                other => break other,
            }
        };
        assert_eq!(waits, SealStep::Blocked(HydrateWait::Others));
        end(&disk, late, 2);
        while container.seal_step(a, MIB).unwrap() != SealStep::Ended(SealEnd::Done) {
            container.maintain().unwrap();
        }
        fill(&container, "b", blocks(0, 1..2), 3);
        fill(&container, "a", blocks(1, 0..1), 4);
        assert_eq!(find(&container, "b").relation.unwrap().state, RelationState::Virtual);
        assert!(find(&container, "ci").relation.unwrap().tracked);
        container.end_view("b", ending).unwrap();
        // Both heads were frozen, or one of them: that is sealed, too.
        assert!(find(&container, "a").sealing.is_some() && find(&container, "b").sealing.is_none());
        while container.seal_step(a, MIB).unwrap() != SealStep::Ended(SealEnd::Done) {
            container.maintain().unwrap();
        }
        let mut report = CheckReport::default();
        container.check_data(&mut report, &AtomicBool::new(false)).unwrap();
        assert!(report.findings.is_empty() && report.data_bytes_verified > 0, "{:#?}", report.findings);
        // Copied again, only what has changed since moves.
        container.refresh("ci", "a").unwrap();
        let changed = if ending == ViewEnd::Drop { 2 } else { 3 };
        assert_eq!(hydrated(&container, "ci"), (changed * BLOCK, 2 * MIB - changed * BLOCK));
        assert!(contents(&container, "ci") == contents(&container, "a"));
        assert_eq!(values(&container, "ci", blocks(0, 0..3)), [[2; 8], [3; 8], [1; 8]].concat());
        assert_clean(&disk, container);
    }
}

// rules: VIEW-2, VIEW-3, VOL-11, VOL-20 — a write that goes to both heads fails at any of its writes: what each volume shows is of
// before it or its own, sector by sector, also after a crash, and the next one succeeds.
#[test]
fn a_write_through_the_view_that_fails_half_way_shows_nothing_wrong() {
    // A part of a block that the source has; whole blocks and a part; what the view has itself already.
    let ranges = [512..1536, 512..3 * BLOCK + 1024, BLOCK..2 * BLOCK, 5 * BLOCK + 512..7 * BLOCK];
    for (errno, range) in [5, 28].into_iter().flat_map(|errno| ranges.clone().map(|range| (errno, range))) {
        for after in 0.. {
            let (disk, container) = view();
            fill(&container, "a", blocks(0, 0..4), 2);
            fill(&container, "b", blocks(0, 6..7), 3);
            io(&container, "b").flush().unwrap();
            let all = blocks(0, 0..8);
            let before = ["a", "b"].map(|name| values(&container, name, all.clone()));
            disk.inject(Some(Injection { fault: Fault::Write, after, once: true, errno }));
            let failures = disk.failures();
            let result = io(&container, "b").write_at(&vec![9; (range.end - range.start) as usize], range.start);
            let has_failed = disk.failures() > failures;
            disk.inject(None);
            assert_eq!(result.is_err(), has_failed, "{errno} {range:?} {after}");
            io(&container, "a").flush().unwrap();
            for container in [&container, &crashed(&disk)] {
                for (name, before) in ["a", "b"].iter().zip(&before) {
                    let now = values(container, name, all.clone());
                    for ((sector, now), before) in (0..).zip(now).zip(before) {
                        let is_written = range.contains(&(sector * 512));
                        let fits = match has_failed {
                            _ if !is_written => now == *before,
                            true => now == *before || now == 9,
                            false => now == 9,
                        };
                        assert!(fits, "{errno} {range:?} {after}: sector {sector} of {name} is {now}, was {before}");
                    }
                }
            }
            if !has_failed {
                assert!(after > 0);
                break;
            }
            fill(&container, "b", range.clone(), 8);
            assert_eq!(both(&container, range.clone()), (8, 8));
            assert_clean(&disk, container);
        }
    }
}
