//! The protocol of a chunk entry's words (MAP-7) under every interleaving and every order that the memory model allows.
//!
//! One writer at a time, as the engine lock makes sure; a reader without a lock. loom explores it all, so the scenarios are
//! as small as the protocol. Only `make interleavings` builds this.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use super::Entry;
use crate::layout::entry::RawEntry;
use crate::units::SlabNo;

fn raw(slab: u64, d: u64, z: u64) -> RawEntry {
    RawEntry { slab: SlabNo(slab), d, z }
}

/// What a reader makes of block 0 in `view`: data of a slab, zero, or what lies below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Data(u64),
    Zero,
    Below,
}

fn shown(view: RawEntry) -> Shown {
    match (view.d & 1, view.z & 1) {
        (1, _) => Shown::Data(view.slab.0),
        (0, 1) => Shown::Zero,
        _ => Shown::Below,
    }
}

/// Explores `write` against one look at the entry, which must show one of `allowed`; all of them must come up.
///
/// The writer is the thread that loom runs first: of an object's accesses it remembers the last, and a writer's own load
/// would hide the reader's from it.
fn explore(begin: RawEntry, write: fn(&Entry), allowed: &'static [Shown]) {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let all = seen.clone();
    loom::model(move || {
        let entry = Arc::new(Entry::new(begin));
        let (reader, all) = (entry.clone(), all.clone());
        let reader = thread::spawn(move || {
            let found = shown(reader.view());
            assert!(allowed.contains(&found), "a reader sees {found:?}");
            all.lock().unwrap().push(found);
        });
        write(&entry);
        reader.join().unwrap();
    });
    let seen = seen.lock().unwrap();
    println!("{} executions", seen.len());
    assert!(allowed.iter().all(|shown| seen.contains(shown)), "explored too little: {allowed:?}");
}

// rule: MAP-7 — data becomes zero: Z before D goes, or what lies below would show.
#[test]
fn data_becomes_zero_without_a_third_state() {
    explore(raw(5, 1, 0), |entry| entry.set_zero(1), &[Shown::Data(5), Shown::Zero]);
}

// rule: MAP-7 — zero becomes data: D while Z stays.
#[test]
fn zero_becomes_data_without_a_third_state() {
    explore(
        raw(0, 0, 1),
        |entry| {
            entry.set_slab(SlabNo(6));
            entry.set_data(1);
        },
        &[Shown::Zero, Shown::Data(6)],
    );
}

// rule: MAP-7 — data over zeros becomes absent: Z goes first, or they would show.
#[test]
fn data_becomes_absent_without_a_third_state() {
    explore(raw(5, 1, 1), |entry| entry.set_absent(1), &[Shown::Data(5), Shown::Below]);
}

// rules: MAP-7, MAP-8 — a slab goes and another comes: D is never seen with a slab that it does not belong to.
#[test]
fn a_slab_is_never_paired_with_anothers_data() {
    explore(
        raw(5, 1, 0),
        |entry| {
            entry.set_zero(1);
            entry.set_slab(SlabNo(0));
            entry.set_slab(SlabNo(6));
            entry.set_data(1);
        },
        &[Shown::Data(5), Shown::Zero, Shown::Data(6)],
    );
}

// rule: MAP-10 — who sees D sees the data that was written before it was set.
#[test]
fn data_is_written_when_its_bit_is_seen() {
    loom::model(|| {
        let entry = Arc::new(Entry::new(raw(5, 0, 0)));
        let disk = Arc::new(AtomicU64::new(0));
        let reader = {
            let (entry, disk) = (entry.clone(), disk.clone());
            thread::spawn(move || {
                if shown(entry.view()) == Shown::Data(5) {
                    assert_eq!(disk.load(Ordering::Relaxed), 7);
                }
            })
        };
        disk.store(7, Ordering::Relaxed);
        entry.set_data(1);
        reader.join().unwrap();
    });
}

// The flags beside the slab never show in a view, and whoever lists an entry for the journal lists it once.
#[test]
fn flags_do_not_disturb_a_view() {
    loom::model(|| {
        let entry = Arc::new(Entry::new(raw(5, 1, 0)));
        let reader = entry.clone();
        let reader = thread::spawn(move || assert_eq!(reader.view(), raw(5, 1, 0)));
        assert!(entry.mark_dirty());
        assert!(!entry.mark_dirty());
        entry.mark_moved();
        entry.clear_dirty();
        reader.join().unwrap();
    });
}
