//! Containers that inputs are changes of: kept as files, so that an input means the same for ever.
//!
//! The form is that of `spec/vectors/`: `length N`, then offset and hexadecimal bytes of each sector that is not all
//! zeros. Two of the bases are vectors; the others were written by `examples/bases.rs`. Does not: change a base.

use std::sync::{Arc, OnceLock};

use pitstop_format::Disk;
use pitstop_format::testing::SimDisk;

const TEXTS: [&str; 7] = [
    // Closed, with volumes, copies and a discarded range.
    include_str!("../../../spec/vectors/v1-clean.txt"),
    // Left by a crash: the journal holds batches.
    include_str!("../../../spec/vectors/v1-journal.txt"),
    // Nothing in it.
    include_str!("../../../spec/vectors/v1-empty.txt"),
    // Layers of several tables, some of them zero tables; a chain that a merge shortens; doomed layers; closed.
    include_str!("../bases/wide-clean.txt"),
    // The same, left by a crash.
    include_str!("../bases/wide-journal.txt"),
    // A write-through view, each head with what the other does not have; closed.
    include_str!("../bases/views-clean.txt"),
    // The same, left by a crash.
    include_str!("../bases/views-journal.txt"),
];

/// Bases that came later, and the numbers, which no kept input had, that stand for them.
const LATER: [usize; 2] = [250, 252];

/// Number of bases.
pub const COUNT: usize = TEXTS.len();

/// A copy of a base that the caller may change.
pub fn disk(number: usize) -> Arc<SimDisk> {
    static LOADED: OnceLock<Vec<Arc<SimDisk>>> = OnceLock::new();
    let all = LOADED.get_or_init(|| TEXTS.iter().map(|text| load(text)).collect());
    let first = COUNT - LATER.len();
    let place = LATER.iter().position(|&later| later == number).map_or(number % first, |later| first + later);
    all[place].copy()
}

fn load(text: &str) -> Arc<SimDisk> {
    let disk = SimDisk::new();
    for line in text.lines() {
        match line.split_once(' ').expect("two words a line") {
            ("length", len) => disk.grow(len.parse().expect("a number")).expect("a disk in memory grows"),
            (offset, hex) => {
                let byte = |n: usize| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).expect("hexadecimal");
                let bytes: Vec<u8> = (0..hex.len() / 2).map(byte).collect();
                disk.write_at(&bytes, offset.parse().expect("a number")).expect("within the disk");
            }
        }
    }
    disk
}
