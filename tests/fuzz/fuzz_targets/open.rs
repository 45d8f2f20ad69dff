//! Any byte string as a container file, at its own length and followed by zeros.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitstop_format::Disk;
use pitstop_format::testing::SimDisk;
use pitstop_fuzz::engine;

fuzz_target!(|data: &[u8]| {
    engine::exercise_bytes(data);
    let disk = SimDisk::new();
    disk.grow(2 << 20).expect("a disk in memory grows");
    disk.write_at(&data[..data.len().min(2 << 20)], 0).expect("within the disk");
    engine::exercise(&disk);
});
