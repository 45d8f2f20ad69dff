//! Table pages that leave memory under those who use them, and come back.
//!
//! Rules: MAP-15, MAP-16, JNL-9 (design rule 35).

use pitstop_format::{Container, ZeroKind};
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;

use crate::explore::{pick, scenario};
use crate::world::{World, in_chunk, leave_foreign_slabs, maintain, put, uniform, value};

/// Chunks that one table page describes.
const PAGE: u64 = 128;

fn prepare(container: &Container) {
    container.create_volume("v", 3 * PAGE * pitstop_format::SLAB_LEN).unwrap();
    for page in 0..3 {
        put(container, "v", in_chunk(page * PAGE, 0..2), 1);
    }
    container.snapshot("v", "copy").unwrap();
    leave_foreign_slabs(container);
}

fn a_little_memory(world: &World) {
    world.container.limit_resident_pages(pick(2) as usize);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let work = scope.spawn(|| maintain(&world.container, &stop));
        let mut others = Vec::new();
        let writer = world.queue("v");
        others.push(scope.spawn(move || {
            for (page, value) in [(0, 5), (1, 6), (0, 7)] {
                writer.write(in_chunk(page * PAGE, 0..1), value).unwrap();
                writer.flush().unwrap();
                world.promise(u64::from(value));
                let shown = uniform(&writer.read(in_chunk(page * PAGE, 0..1)).unwrap());
                assert_eq!(shown, value, "what was written is gone");
            }
        }));
        let zeroer = world.queue("v");
        others.push(scope.spawn(move || {
            zeroer.zero(in_chunk(2 * PAGE, 0..1), ZeroKind::Discard).unwrap();
            zeroer.write(in_chunk(PAGE, 1..2), 8).unwrap();
        }));
        let reader = world.queue("v");
        others.push(scope.spawn(move || {
            let mut last = 0;
            for _ in 0..3 {
                let shown = uniform(&reader.read(in_chunk(0, 0..1)).unwrap());
                let now = [1, 5, 7].iter().position(|value| *value == shown);
                let now = now.unwrap_or_else(|| panic!("a reader sees {shown}"));
                assert!(now >= last, "a reader sees {shown}, older than before");
                last = now;
                let discarded = uniform(&reader.read(in_chunk(2 * PAGE, 0..1)).unwrap());
                assert!([0, 1].contains(&discarded), "a reader sees {discarded}");
            }
        }));
        others.into_iter().for_each(|other| other.join().unwrap());
        stop.store(true, Ordering::SeqCst);
        work.join().unwrap();
    });
    world.crash(|container, promises| {
        let shown = value(container, "v", in_chunk(PAGE, 0..1));
        assert!(shown == 6 || (shown == 1 && !promises.contains(&6)), "{shown} {promises:?}");
        assert_eq!(value(container, "copy", in_chunk(0, 0..2)), 1);
    });
    world.close(|container| {
        let at = |page, block| value(container, "v", in_chunk(page * PAGE, block..block + 1));
        assert_eq!([at(0, 0), at(0, 1), at(1, 0), at(1, 1), at(2, 0), at(2, 1)], [7, 1, 6, 8, 0, 1]);
    });
}

scenario! {
    /// rules: MAP-15, MAP-16 — pages leave memory and come back under requests, and nobody sees a page of before.
    pages_leave_memory_under_those_who_use_them, prepare, a_little_memory
}
