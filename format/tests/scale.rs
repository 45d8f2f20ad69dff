//! Large numbers: many volumes and layers, large volumes, much discarded. Requirements R28, R29; rules MAP-6, MAP-16, VOL-5.
//!
//! Times are printed, never asserted: `cargo nextest run -p pitstop-format --test scale --no-capture` shows them.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stderr, reason = "numbers for people")]

use std::sync::Arc;
use std::time::Instant;

use pitstop_format::testing::SimDisk;
use pitstop_format::{Container, CreateOptions, FileDisk, OpenMode, SLAB_LEN, VolumeIo};

const TIB: u64 = 1 << 40;

fn new_container() -> (Arc<SimDisk>, Container) {
    let disk = SimDisk::new();
    Container::create(disk.clone(), &CreateOptions::default()).unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    (disk, container)
}

fn io(container: &Container, name: &str) -> VolumeIo {
    VolumeIo::new(container, container.volume(name).unwrap())
}

fn first_byte(container: &Container, name: &str, offset: u64) -> u8 {
    let mut bytes = [0; 512];
    io(container, name).read_at(&mut bytes, offset).unwrap();
    bytes[0]
}

// req: R28 — 10,000 volumes whose heads hang from 10,000 frozen layers of one chain.
#[test]
fn ten_thousand_volumes_and_layers_are_opened_and_work() {
    let (disk, container) = new_container();
    container.create_volume("golden", TIB).unwrap();
    let deep = 63 * 4096;
    io(&container, "golden").write_at(&[77; 4096], deep).unwrap();
    let count = 10_000u64;
    let since = Instant::now();
    for n in 0..count {
        // A write between two copies gives each copy a layer of its own to hang from.
        io(&container, "golden").write_at(&[n as u8; 4096], n % 63 * 4096).unwrap();
        container.snapshot("golden", &format!("copy-{n}")).unwrap();
        if n % 100 == 0 {
            container.settle(20).unwrap();
        }
    }
    eprintln!("{count} writes and copies: {:.0?}", since.elapsed());
    container.close().unwrap();
    for mode in [OpenMode::ReadOnly, OpenMode::ReadWrite] {
        let since = Instant::now();
        let container = Container::open(disk.clone(), mode).unwrap();
        eprintln!("open {mode:?}: {:.0?}", since.elapsed());
        assert_eq!(container.volumes().len() as u64, count + 1);
        assert!(container.layers().len() as u64 > 2 * count);
        let since = Instant::now();
        for n in [0, 1, 5000, count - 1] {
            assert_eq!(first_byte(&container, &format!("copy-{n}"), n % 63 * 4096), n as u8, "copy-{n}");
        }
        eprintln!("four reads: {:.0?}", since.elapsed());
        let since = Instant::now();
        assert_eq!(first_byte(&container, &format!("copy-{}", count - 1), deep), 77);
        eprintln!("a read through {count} layers, each with a page to load: {:.0?}", since.elapsed());
        let since = Instant::now();
        assert_eq!(first_byte(&container, &format!("copy-{}", count - 1), deep + 512), 77);
        eprintln!("the same again: {:.0?}", since.elapsed());
        if mode == OpenMode::ReadWrite {
            let since = Instant::now();
            container.refresh("copy-7", "copy-9000").unwrap();
            eprintln!("refresh: {:.1?}", since.elapsed());
            let since = Instant::now();
            container.snapshot("golden", "one-more").unwrap();
            eprintln!("snapshot: {:.1?}", since.elapsed());
            let since = Instant::now();
            container.delete_volume("golden").unwrap();
            eprintln!("delete: {:.1?}", since.elapsed());
            let since = Instant::now();
            assert_eq!(first_byte(&container, "copy-7", 9000 % 63 * 4096), 9000u64 as u8);
            container.settle(50).unwrap();
            eprintln!("50 steps of background work: {:.1?}", since.elapsed());
            container.close().unwrap();
        }
    }
    let since = Instant::now();
    assert!(pitstop_format::check::check(&*disk).unwrap().findings.is_empty());
    eprintln!("check: {:.1?}", since.elapsed());
}

// req: R28 — 10,000 volumes refreshed from one golden volume, in a file.
#[test]
fn a_file_with_ten_thousand_volumes_of_one_golden_is_opened() {
    let (disk, container) = new_container();
    container.create_volume("golden", TIB).unwrap();
    (0..64).for_each(|n| io(&container, "golden").write_at(&[n as u8; 4096], n * SLAB_LEN).unwrap());
    let count = 10_000;
    (0..count).for_each(|n| drop(container.snapshot("golden", &format!("ci-{n}")).unwrap()));
    container.close().unwrap();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("disks.pit");
    std::fs::write(&path, disk.bytes()).unwrap();
    let since = Instant::now();
    let file = FileDisk::open(&path, OpenMode::ReadWrite).unwrap();
    let container = Container::open(file, OpenMode::ReadWrite).unwrap();
    eprintln!("open of a file with {count} volumes: {:.0?}", since.elapsed());
    assert_eq!(container.volumes().len(), count + 1);
    assert!(container.layers().len() > count);
    let since = Instant::now();
    container.refresh("ci-77", "golden").unwrap();
    eprintln!("refresh: {:.1?}", since.elapsed());
    assert_eq!(first_byte(&container, "ci-77", 63 * SLAB_LEN), 63);
    container.close().unwrap();
}

// req: R28, R29; rules: VOL-5, MAP-6 — the largest volume works to its last sector, and discarding all of it is small.
#[test]
fn a_volume_of_64_tebibytes_works_to_its_last_sector() {
    let (disk, container) = new_container();
    let size = 64 * TIB;
    container.create_volume("large", size).unwrap();
    assert!(container.create_volume("larger", size + 512).is_err());
    let places = [0, 3 * TIB + 512, 31 * TIB + SLAB_LEN - 512, size - TIB, size - 512];
    for (n, &at) in places.iter().enumerate() {
        io(&container, "large").write_at(&[n as u8 + 1; 512], at).unwrap();
    }
    container.snapshot("large", "copy").unwrap();
    let written = disk.counts().1;
    let since = Instant::now();
    io(&container, "copy").discard(0..size).unwrap();
    container.commit().unwrap();
    eprintln!("discard of 64 TiB: {:.0?}, {} writes", since.elapsed(), disk.counts().1 - written);
    // Five tables, each one descriptor: not 268 million entries.
    assert!(disk.counts().1 - written < 10, "{} writes", disk.counts().1 - written);
    container.close().unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    for (n, &at) in places.iter().enumerate() {
        assert_eq!(first_byte(&container, "large", at), n as u8 + 1);
        assert_eq!(first_byte(&container, "copy", at), 0);
    }
    container.refresh("copy", "large").unwrap();
    assert_eq!(first_byte(&container, "copy", size - 512), 5);
    container.close().unwrap();
    assert!(pitstop_format::check::check(&*disk).unwrap().findings.is_empty());
}
