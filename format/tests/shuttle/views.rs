//! A view and its source under their writers, readers and commands.
//!
//! Rules: VIEW-1 to VIEW-8, MAP-7, MAP-17, SNP-3 (design rule 26).

use pitstop_format::{Container, ViewEnd, ZeroKind};
use shuttle::thread;

use crate::explore::{pick, scenario};
use crate::world::{World, bytes, in_chunk, leave_foreign_slabs, maintain_some, put, values};

const SIZE: u64 = 1 << 20;

fn prepare_source(container: &Container) {
    container.create_volume("a", SIZE).unwrap();
    put(container, "a", in_chunk(0, 0..4), 1);
    leave_foreign_slabs(container);
}

fn prepare(container: &Container) {
    prepare_source(container);
    container.create_view("a", "b").unwrap();
}

fn shown(container: &Container, volume: &str, blocks: std::ops::Range<u64>) -> Vec<u8> {
    values(&bytes(container, volume, in_chunk(0, blocks)))
}

/// The source writes a part of a block, the view all of it.
fn part_against_whole(world: &World) {
    // Sometimes the view's head has the block already: then it is overwritten in place.
    if pick(2) == 0 {
        world.queue("b").write(0..4096, 4).unwrap();
    }
    thread::scope(|scope| {
        let (source, view, reader) = (world.queue("a"), world.queue("b"), world.queue("a"));
        scope.spawn(move || source.write(0..512, 5).unwrap());
        scope.spawn(move || {
            view.write(0..4096, 6).unwrap();
            view.flush().unwrap();
            world.promise(1);
        });
        scope.spawn(move || {
            let found = values(&reader.read(0..4096).unwrap());
            assert!(found.iter().all(|value| [1, 4, 5, 6].contains(value)), "a reader saw {found:?}");
        });
    });
    let check = |container: &Container| {
        assert_eq!(shown(container, "b", 0..1), [6; 8]);
        let found = shown(container, "a", 0..1);
        assert!([5, 6].contains(&found[0]) && found[1..] == [6; 7], "the source shows {found:?}");
    };
    world.crash(|container, promises| {
        if promises.contains(&1) {
            check(container);
        }
    });
    world.close(check);
}

scenario! {
    /// rules: VIEW-2, VIEW-4 — the source never shows what the view has overwritten, around what it wrote itself.
    a_part_through_the_source_meets_a_block_through_the_view, prepare, part_against_whole
}

/// Both write parts of a block that the source has a version of.
fn parts(world: &World) {
    world.queue("a").write(0..4096, 2).unwrap();
    let zeroed = pick(2) == 0;
    if zeroed {
        world.queue("a").zero(0..4096, ZeroKind::Discard).unwrap();
    }
    thread::scope(|scope| {
        let (source, view, second) = (world.queue("a"), world.queue("b"), world.queue("b"));
        scope.spawn(move || source.write(512..1024, 5).unwrap());
        scope.spawn(move || view.write(0..512, 6).unwrap());
        scope.spawn(move || {
            second.write(1024..1536, 7).unwrap();
            second.flush().unwrap();
            world.promise(1);
        });
    });
    let rest = if zeroed { 0 } else { 2 };
    world.crash(|container, promises| {
        let (a, b) = (shown(container, "a", 0..1), shown(container, "b", 0..1));
        assert!(b[1] == 1 && b[3..] == [1; 5] && (b[2] == 7 || !promises.contains(&1)), "{b:?}");
        assert!(a[2] == 7 || !promises.contains(&1), "{a:?}");
    });
    world.close(|container| {
        assert_eq!(shown(container, "a", 0..1), [vec![6, 5, 7], vec![rest; 5]].concat());
        assert_eq!(shown(container, "b", 0..1), [vec![6, 1, 7], vec![1; 5]].concat());
    });
}

scenario! {
    /// rule: VIEW-3 — what the view writes of a block is seen by both, and the rest of it is each volume's own.
    parts_of_one_block_through_both, prepare, parts
}

/// The view comes while its source is written.
fn begin(world: &World) {
    thread::scope(|scope| {
        let (first, second) = (world.queue("a"), world.queue("a"));
        scope.spawn(move || {
            first.write(0..4096, 5).unwrap();
            first.write(4096..8192, 5).unwrap();
        });
        scope.spawn(move || second.write(2 * 4096 + 512..2 * 4096 + 1024, 6).unwrap());
        scope.spawn(move || {
            world.container.create_view("a", "b").unwrap();
            world.promise(1);
            world.queue("b").write(3 * 4096..4 * 4096, 7).unwrap();
            world.queue("b").write(2 * 4096..2 * 4096 + 512, 7).unwrap();
        });
    });
    let check = |container: &Container| {
        let (a, b) = (shown(container, "a", 0..4), shown(container, "b", 0..4));
        assert_eq!(a, [vec![5; 16], vec![7, 6], vec![1; 6], vec![7; 8]].concat());
        let before = |sectors: &[u8]| sectors == [1; 8] || sectors == [5; 8];
        assert!(before(&b[..8]) && before(&b[8..16]) && (b[0] == 5 || b[8] == 1), "no instant of the source: {b:?}");
        assert!(b[16] == 7 && [1, 6].contains(&b[17]) && b[18..24] == [1; 6] && b[24..] == [7; 8], "{b:?}");
    };
    world.crash(|container, promises| {
        assert!(crate::world::exists(container, "b") || !promises.contains(&1));
    });
    world.close(check);
}

scenario! {
    /// req: R25; rules: VIEW-6, VIEW-7 — a view shows an instant of its source, and what was under way ends in both.
    a_view_begins_among_writes, prepare_source, begin
}

/// The view ends while both are written.
fn end(world: &World) {
    world.queue("a").write(0..2 * 4096, 2).unwrap();
    let ending = if pick(2) == 0 { ViewEnd::Drop } else { ViewEnd::Keep };
    thread::scope(|scope| {
        let (source, view) = (world.queue("a"), world.queue("b"));
        scope.spawn(move || source.write(512..1024, 5).unwrap());
        scope.spawn(move || {
            view.write(0..512, 6).unwrap();
            view.write(4096..8192, 6).unwrap();
        });
        scope.spawn(move || {
            world.container.end_view("b", ending).unwrap();
            world.promise(1);
            maintain_some(&world.container, 20);
        });
    });
    let first = if ending == ViewEnd::Drop { 1 } else { 2 };
    world.crash(|container, promises| {
        let is_view = container.volumes().iter().any(|volume| volume.view_of.is_some());
        assert!(!is_view || !promises.contains(&1));
    });
    world.close(|container| {
        assert_eq!(shown(container, "b", 0..2), [vec![6], vec![1; 7], vec![6; 8]].concat());
        let a = shown(container, "a", 0..2);
        assert!([6, first].contains(&a[0]) && (a[1] == 5 || (a[1] == 1 && ending == ViewEnd::Drop)), "{a:?}");
        assert!(a[2..8] == vec![first; 6] && (a[8..] == [6; 8] || a[8..] == vec![first; 8]), "{a:?}");
        assert!(a[0] == 6 || a[8] != 6, "the view's second write was seen, its first was not: {a:?}");
    });
}

scenario! {
    /// rule: VIEW-8 — a view ends for both at one instant; what was under way through it is seen by both.
    a_view_ends_among_writes, prepare, end
}
