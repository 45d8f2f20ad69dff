//! The structural check from outside: work and crashes leave a clean container, bad bytes are told, nothing panics.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use pitstop_format::check::{Outcome, check};
use pitstop_format::testing::{Fate, SimDisk};
use pitstop_format::{Container, CreateOptions, Disk, Error, FileDisk, OpenMode, SLAB_LEN, VolumeIo};

const SIZE: u64 = 4 << 20;
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// A small generator of reproducible randomness.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn create(journal_len_bytes: u64) -> Arc<SimDisk> {
    let disk = SimDisk::new();
    Container::create(disk.clone(), &CreateOptions { journal_len_bytes, ..Default::default() }).unwrap();
    disk
}

fn open(disk: &Arc<SimDisk>) -> Container {
    Container::open(disk.clone(), OpenMode::ReadWrite).unwrap()
}

/// One random operation; names that exist or do not exist are part of it.
fn work(container: &Container, random: &mut Random) {
    let name = NAMES[random.below(5) as usize];
    let other = NAMES[random.below(5) as usize];
    let volume = container.volume(name);
    let range = {
        let start = random.below(SIZE / 512) * 512;
        start..(start + (1 + random.below(1200)) * 512).min(SIZE)
    };
    let result = match (random.below(16), volume) {
        (0, _) => container.create_volume(name, SIZE).map(drop),
        (1 | 2, _) => container.snapshot(name, other).map(drop),
        (3 | 4, _) => container.refresh(name, other).map(drop),
        (5, _) if random.below(3) == 0 => container.delete_volume(name),
        (6, Ok(volume)) => VolumeIo::new(container, volume).discard(range),
        (7, Ok(volume)) => VolumeIo::new(container, volume).write_zeroes(range),
        (8, Ok(volume)) => VolumeIo::new(container, volume).flush(),
        (9 | 10, _) => container.settle(2),
        (_, Ok(volume)) => {
            let bytes = vec![random.below(255) as u8 + 1; (range.end - range.start) as usize];
            VolumeIo::new(container, volume).write_at(&bytes, range.start)
        }
        _ => Ok(()),
    };
    match result {
        Ok(()) | Err(Error::NoSuchVolume { .. } | Error::VolumeExists { .. } | Error::SameVolume { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn assert_clean(disk: &dyn Disk, context: &str) {
    let report = check(disk).unwrap();
    assert_eq!(report.outcome(), Outcome::Clean, "{context}: {report:#?}");
}

#[test]
fn random_work_leaves_a_clean_container() {
    for seed in 1..=16 {
        let mut random = Random::new(seed);
        let disk = create(256 << 10);
        let mut most = (0, 0, 0);
        for round in 0..4 {
            let container = open(&disk);
            for step in 0..60 {
                work(&container, &mut random);
                // The disk as it is now, as if the process had been killed.
                if step % 10 == 0 {
                    assert_clean(&*disk.copy(), &format!("seed {seed} round {round} step {step}"));
                }
            }
            if round % 2 == 0 {
                container.settle(1000).unwrap();
                container.close().unwrap();
                assert!(check(&*disk).unwrap().clean);
            }
            assert_clean(&*disk, &format!("seed {seed} round {round}"));
            let report = check(&*disk).unwrap();
            most = most.max((report.layers, report.volumes, report.entries_checked));
        }
        assert!(most.0 > 3 && most.2 >= 2 * 128, "seed {seed}: the work did nothing: {most:?}");
    }
}

#[test]
fn a_crash_at_any_write_leaves_a_clean_container() {
    for seed in 1..=6 {
        let mut random = Random::new(100 + seed);
        let disk = create(256 << 10);
        let mut crash = disk.record();
        let container = open(&disk);
        container.create_volume("a", SIZE).unwrap();
        for _ in 0..250 {
            work(&container, &mut random);
        }
        drop(container);
        let mut checked = 0;
        for (number, event) in disk.take_events().iter().enumerate() {
            crash.step(event);
            let style = random.below(3);
            let after = crash.disk(|_| match style {
                0 => Fate::Lost,
                1 => Fate::Kept,
                _ if random.below(2) == 0 => Fate::Lost,
                _ => Fate::Kept,
            });
            checked += 1;
            let context = format!("seed {seed} event {number} style {style}");
            assert_clean(&*after, &context);
            if number % 10 == 0 {
                let recovered = open(&after);
                recovered.settle(100).unwrap();
                recovered.close().unwrap();
                assert_clean(&*after, &context);
            }
        }
        assert!(checked > 50, "seed {seed}: only {checked} crashes");
    }
}

#[test]
fn what_is_no_container_cannot_be_checked() {
    let disk = SimDisk::new();
    assert!(matches!(check(&*disk), Err(Error::NotAContainer)));
    disk.grow(8 << 20).unwrap();
    assert!(matches!(check(&*disk), Err(Error::NotAContainer)));
    let disk = create(256 << 10);
    disk.truncate(3 * SLAB_LEN);
    assert!(matches!(check(&*disk), Err(Error::Truncated { .. })));
    let disk = create(256 << 10);
    disk.flip(130, 1);
    disk.flip(SLAB_LEN + 130, 1);
    assert!(matches!(check(&*disk), Err(Error::Corrupt(_))));
}

#[test]
fn flipped_bits_and_cut_files_never_panic_and_never_write() {
    let disk = create(256 << 10);
    let container = open(&disk);
    let mut random = Random::new(77);
    container.create_volume("a", SIZE).unwrap();
    for _ in 0..80 {
        work(&container, &mut random);
    }
    container.commit().unwrap();
    drop(container);
    let len = disk.len().unwrap();
    for round in 0..400 {
        let damaged = disk.copy();
        for _ in 0..=random.below(4) {
            // Most flips where metadata is: superblocks, descriptors, journal, catalog; some anywhere.
            let (start, span) = match random.below(5) {
                0 => (0, 4096),
                1 => (2 * SLAB_LEN, 4096),
                2 => (3 * SLAB_LEN, SLAB_LEN),
                3 => (4 * SLAB_LEN, 8192),
                _ => (0, len),
            };
            damaged.flip(start + random.below(span), 1 << random.below(8));
        }
        if round % 4 == 0 {
            damaged.truncate(random.below(len));
        }
        let (_, writes) = damaged.counts();
        match check(&*damaged) {
            Ok(report) => assert!(report.findings.len() as u64 <= report.corruptions + report.leaks + report.notes),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        assert_eq!(damaged.counts().1, writes);
    }
}

#[test]
fn a_report_is_readable_by_programs() {
    let disk = create(256 << 10);
    let report = serde_json::to_value(check(&*disk).unwrap()).unwrap();
    assert_eq!(report["findings"], serde_json::json!([]));
    assert_eq!(report["allocated-slabs"], 5);
    assert_eq!(report["clean"], true);
}

#[test]
fn a_file_is_checked_like_a_disk_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disks.pit");
    let options = CreateOptions { journal_len_bytes: 1 << 20, ..Default::default() };
    Container::create(FileDisk::create(&path).unwrap(), &options).unwrap();
    let container = Container::open(FileDisk::open(&path, OpenMode::ReadWrite).unwrap(), OpenMode::ReadWrite).unwrap();
    container.create_volume("a", SIZE).unwrap();
    VolumeIo::new(&container, container.volume("a").unwrap()).write_at(&[1; 4096], 4096).unwrap();
    container.snapshot("a", "b").unwrap();
    container.close().unwrap();
    let report = check(&*FileDisk::open(&path, OpenMode::ReadOnly).unwrap()).unwrap();
    assert_eq!((report.outcome(), report.volumes, report.layers), (Outcome::Clean, 2, 3));
}
