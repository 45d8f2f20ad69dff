//! Containers written by earlier versions, kept forever: each must open and show what it showed then.
//!
//! req: R28. A vector is text: `length N`, then for each 512-byte sector that is not all zeros its offset and its bytes in
//! hexadecimal. `PITSTOP_WRITE_VECTORS=1` writes the files that are missing; existing ones are never changed.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pitstop_format::testing::SimDisk;
use pitstop_format::{
    Container, CreateOptions, Disk, Durability, HydrateEnd, HydrateStep, OpenMode, VolumeChange, VolumeIo,
};

const MIB: u64 = 1 << 20;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../spec/vectors").join(name)
}

fn dump(disk: &SimDisk) -> String {
    let bytes = disk.bytes();
    let mut text = format!("length {}\n", bytes.len());
    for (sector, offset) in bytes.chunks(512).zip((0..).step_by(512)) {
        if sector.iter().any(|byte| *byte != 0) {
            write!(text, "{offset} ").unwrap();
            sector.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
            text.push('\n');
        }
    }
    text
}

fn load(name: &str) -> Arc<SimDisk> {
    let text = std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("vector {name}: {error}"));
    let disk = SimDisk::new();
    for line in text.lines() {
        match line.split_once(' ').unwrap() {
            ("length", len) => disk.grow(len.parse().unwrap()).unwrap(),
            (offset, hex) => {
                let bytes: Vec<u8> =
                    (0..512).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap()).collect();
                disk.write_at(&bytes, offset.parse().unwrap()).unwrap();
            }
        }
    }
    disk
}

/// A golden volume, two copies, one of them written and refreshed, a discarded range, a renamed and a deleted volume.
fn build(disk: &Arc<SimDisk>) -> Container {
    let options = CreateOptions { journal_len_bytes: 256 << 10, label: "vector".to_owned() };
    Container::create(disk.clone(), &options).unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    container.create_volume("golden", 8 * MIB).unwrap();
    let io = |name: &str| VolumeIo::new(&container, container.volume(name).unwrap());
    io("golden").write_at(&[1; 8192], 0).unwrap();
    io("golden").write_at(&[2; 512], 3 * MIB + 512).unwrap();
    container.snapshot("golden", "first").unwrap();
    container.snapshot("golden", "second").unwrap();
    io("second").write_at(&[3; 4096], 4096).unwrap();
    io("golden").write_at(&[4; 4096], 4096).unwrap();
    io("golden").discard(0..4096).unwrap();
    container.refresh("first", "golden").unwrap();
    container.create_volume("gone", 64 * 1024 * MIB).unwrap();
    io("gone").write_at(&[5; 4096], 40 * 1024 * MIB).unwrap();
    container.rename_volume("second", "renamed").unwrap();
    container.delete_volume("gone").unwrap();
    container.commit().unwrap();
    container
}

fn write_missing() {
    if std::env::var_os("PITSTOP_WRITE_VECTORS").is_none() {
        return;
    }
    std::fs::create_dir_all(path("")).unwrap();
    let write = |name: &str, make: &dyn Fn(&Arc<SimDisk>)| {
        if !path(name).exists() {
            let disk = SimDisk::new();
            make(&disk);
            std::fs::write(path(name), dump(&disk)).unwrap();
        }
    };
    write("v1-empty.txt", &|disk| {
        let options = CreateOptions { journal_len_bytes: 256 << 10, ..CreateOptions::default() };
        Container::create(disk.clone(), &options).unwrap();
    });
    write("v1-clean.txt", &|disk| {
        let container = build(disk);
        container.settle(10_000).unwrap();
        container.close().unwrap();
    });
    write("v1-journal.txt", &|disk| drop(build(disk)));
    write("v1-disposable.txt", &|disk| build_disposable(disk));
    write("v1-hydrating.txt", &|disk| {
        let container = build(disk);
        let layer = container.hydrate("renamed").unwrap().unwrap();
        container.set_hydration(layer, true, MIB).unwrap();
        // The first of two chunks.
        assert_eq!(container.hydrate_step(layer, 1).unwrap(), HydrateStep::Copied(4096));
        container.commit().unwrap();
        container.settle(10_000).unwrap();
        container.close().unwrap();
    });
}

/// A disposable volume that is defined, one that is undefined, and one that an unclean stop has just left.
fn build_disposable(disk: &Arc<SimDisk>) {
    let container = build(disk);
    container.set_volume("first", VolumeChange { durability: Some(Durability::None), defined: false }).unwrap();
    drop(container);
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    container.set_volume("renamed", VolumeChange { durability: Some(Durability::None), defined: false }).unwrap();
    container.commit().unwrap();
}

fn check_hierarchy(disk: &Arc<SimDisk>) {
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    let names: Vec<String> = container.volumes().into_iter().map(|volume| volume.name).collect();
    assert_eq!(names, ["first", "golden", "renamed"]);
    let bytes = |name: &str, offset: u64| {
        let mut sector = [0xff; 512];
        VolumeIo::new(&container, container.volume(name).unwrap()).read_at(&mut sector, offset).unwrap();
        assert!(sector.iter().all(|byte| *byte == sector[0]));
        sector[0]
    };
    for (name, expected) in [("first", [0, 4, 2, 0]), ("golden", [0, 4, 2, 0]), ("renamed", [1, 3, 2, 0])] {
        let found = [0, 4096, 3 * MIB + 512, 5 * MIB].map(|offset| bytes(name, offset));
        assert_eq!(found, expected, "{name}");
    }
    assert_eq!(container.info().label, "vector");
    container.settle(10_000).unwrap();
    container.close().unwrap();
    let report = pitstop_format::check::check(&**disk).unwrap();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

#[test]
fn an_empty_container_of_version_1_opens() {
    write_missing();
    let container = Container::open(load("v1-empty.txt"), OpenMode::ReadWrite).unwrap();
    assert!(container.volumes().is_empty());
    container.create_volume("v", MIB).unwrap();
    container.close().unwrap();
}

#[test]
fn a_closed_container_of_version_1_opens() {
    write_missing();
    check_hierarchy(&load("v1-clean.txt"));
}

// rule: CAT-20, VOL-44
#[test]
fn disposable_volumes_of_version_1_are_known() {
    write_missing();
    let disk = load("v1-disposable.txt");
    let state = |mode| {
        let container = Container::open(disk.clone(), mode).unwrap();
        let volumes = container.volumes().into_iter();
        volumes.map(|volume| (volume.name, volume.durability, volume.undefined)).collect::<Vec<_>>()
    };
    let (flush, none) = (Durability::Flush, Durability::None);
    let expected = [("first", none, true), ("golden", flush, false), ("renamed", none, true)];
    let expected = expected.map(|(name, durability, undefined)| (name.to_owned(), durability, undefined));
    assert_eq!(state(OpenMode::ReadOnly), expected);
    assert_eq!(state(OpenMode::ReadWrite), expected);
    check_hierarchy(&disk);
}

// rule: LAY-36
#[test]
fn a_hydration_of_version_1_goes_on() {
    write_missing();
    let disk = load("v1-hydrating.txt");
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    let hydration = container.hydrations().remove(0);
    assert_eq!((hydration.volume.as_str(), hydration.paused, hydration.speed), ("renamed", true, MIB));
    let mut copied = 0;
    loop {
        match container.hydrate_step(hydration.layer, MIB).unwrap() {
            HydrateStep::Copied(bytes) => copied += bytes,
            HydrateStep::Blocked(_) => drop(container.maintain().unwrap()),
            HydrateStep::Ended(end) => break assert_eq!((end, copied), (HydrateEnd::Done, 4096)),
        }
    }
    container.close().unwrap();
    check_hierarchy(&disk);
}

#[test]
fn a_container_of_version_1_that_was_not_closed_is_recovered() {
    write_missing();
    check_hierarchy(&load("v1-journal.txt"));
}
