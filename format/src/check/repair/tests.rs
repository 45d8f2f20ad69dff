//! Repairs of seeded and random damage: whole or not at all, losing nothing that is not told, whatever crashes.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Lost, Plan, Scope, plan, undo};
use crate::check::{Outcome, check};
use crate::disk::Disk;
use crate::error::Error;
use crate::layout::descriptor::{self, Descriptor};
use crate::layout::entry::RawEntry;
use crate::testing::{Fate, Fault, SimDisk};
use crate::units::{ChunkNo, LayerId, PAGE_LEN, SLAB_LEN};
use crate::{Container, CreateOptions, OpenMode, VolumeIo};

const SIZE: u64 = 12 << 20;

/// Repairs a copy of the disk and asserts all that a repair promises; the plan, if it can be repaired.
#[track_caller]
pub(in crate::check) fn assert_repairs(disk: &Arc<SimDisk>) -> Option<(Plan, Arc<SimDisk>)> {
    let before = disk.copy();
    let planned = plan(&**disk, Scope::All);
    assert!(disk.is_same(&before), "planning has written");
    let planned = match planned {
        Ok(planned) => planned,
        Err(Error::CannotRepair { .. } | Error::Corrupt(_) | Error::NotAContainer) => return None,
        Err(error) => panic!("{error}"),
    };
    let mended = disk.copy();
    let mut log = Vec::new();
    planned.write_log(&*mended, &mut log).unwrap();
    planned.carry_out(&*mended).unwrap();
    let report = check(&*mended).unwrap();
    assert_eq!((report.outcome(), report.notes), (Outcome::Clean, 0), "{report:#?}");
    let again = plan(&*mended, Scope::All).unwrap();
    assert!(again.is_empty(), "a second repair changes something");
    let undone = mended.copy();
    undo(&*undone, &mut &log[..]).unwrap();
    assert!(undone.is_same(&before), "undo has not put everything back");
    // It opens, works and is clean afterwards.
    let opened = mended.copy();
    let container = Container::open(opened.clone(), OpenMode::ReadWrite).unwrap();
    container.settle(1000).unwrap();
    container.close().unwrap();
    let report = check(&*opened).unwrap();
    assert_eq!(report.outcome(), Outcome::Clean, "{report:#?}");
    if !planned.is_empty() {
        assert!(undo(&*opened, &mut &log[..]).is_err(), "undone although the container has been used since");
    }
    Some((planned, mended))
}

/// More for longer runs: `PITSTOP_REPAIR_SEEDS=40`.
fn seeds() -> u64 {
    std::env::var("PITSTOP_REPAIR_SEEDS").map_or(2, |count| count.parse().unwrap())
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % end
    }
}

pub(in crate::check) fn contents(disk: Arc<SimDisk>) -> BTreeMap<String, Vec<u8>> {
    let container = Container::open(disk, OpenMode::ReadOnly).unwrap();
    let mut all = BTreeMap::new();
    for volume in container.volumes() {
        let mut bytes = vec![0; volume.size_bytes as usize];
        VolumeIo::new(&container, container.volume(&volume.name).unwrap()).read_at(&mut bytes, 0).unwrap();
        all.insert(volume.name, bytes);
    }
    all
}

/// A container with related and unrelated volumes, each chunk with bytes of its own, and where its metadata lies.
fn busy(random: &mut Random, close: bool) -> (Arc<SimDisk>, BTreeMap<String, Vec<u8>>) {
    let disk = SimDisk::new();
    Container::create(disk.clone(), &CreateOptions { journal_len_bytes: 1 << 20, ..Default::default() }).unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    container.create_volume("golden", SIZE).unwrap();
    container.create_volume("other", SIZE).unwrap();
    let mut write = |name: &str, count: u64| {
        let io = VolumeIo::new(&container, container.volume(name).unwrap());
        for _ in 0..count {
            let at = random.below(SIZE / 4096) * 4096;
            let len = (4096 * (1 + random.below(40))).min(SIZE - at);
            io.write_at(&vec![random.below(255) as u8 + 1; len as usize], at).unwrap();
        }
        let at = random.below(SIZE / SLAB_LEN - 3) * SLAB_LEN;
        io.discard(at..at + 3 * SLAB_LEN).unwrap();
    };
    write("golden", 30);
    write("other", 10);
    container.snapshot("golden", "ci-1").unwrap();
    write("ci-1", 10);
    write("golden", 5);
    container.snapshot("golden", "ci-2").unwrap();
    container.snapshot("ci-1", "ci-3").unwrap();
    write("ci-3", 10);
    container.refresh("other", "ci-2").unwrap();
    write("other", 5);
    container.create_view("ci-3", "view").unwrap();
    write("ci-3", 3);
    write("view", 3);
    container.settle(1000).unwrap();
    if !close {
        write("ci-1", 5);
        write("golden", 5);
    }
    container.commit().unwrap();
    if close {
        container.close().unwrap();
    } else {
        drop(container);
    }
    let expected = contents(disk.copy());
    (disk, expected)
}

/// Pages that hold metadata: superblocks, descriptors, catalog, tables.
fn metadata_pages(disk: &SimDisk) -> Vec<u64> {
    let mut pages = vec![0, SLAB_LEN];
    let bytes = disk.bytes();
    let superblock = crate::layout::superblock::Superblock::decode(&bytes[..PAGE_LEN], 0).unwrap();
    let slabs = bytes.len() as u64 / SLAB_LEN;
    pages.extend((0..(slabs * descriptor::LEN as u64).div_ceil(4096)).map(|page| 2 * SLAB_LEN + page * 4096));
    for slab in 0..slabs {
        let at = (2 * SLAB_LEN) as usize + slab as usize * descriptor::LEN;
        let found = Descriptor::decode(&bytes[at..at + descriptor::LEN], superblock.uuid, crate::SlabNo(slab));
        let mask = match found {
            Ok(Descriptor::Catalog { pages, .. } | Descriptor::Table { pages, .. }) => pages,
            _ => 0,
        };
        pages.extend((0..64).filter(|page| mask >> page & 1 == 1).map(|page| slab * SLAB_LEN + page * 4096));
    }
    pages
}

fn damage(disk: &SimDisk, pages: &[u64], random: &mut Random) {
    for _ in 0..=random.below(3) {
        let page = pages[random.below(pages.len() as u64) as usize];
        match random.below(6) {
            0..=2 => {
                for _ in 0..=random.below(3) {
                    disk.flip(page + random.below(4096), 1 << random.below(8));
                }
            }
            3 => {
                let sector = page + random.below(8) * 512;
                let noise: Vec<u8> = (0..512).map(|_| random.below(256) as u8).collect();
                disk.write_at(&noise, sector).unwrap();
            }
            4 => disk.write_at(&[0; 512], page + random.below(8) * 512).unwrap(),
            _ => {
                let noise: Vec<u8> = (0..4096).map(|_| random.below(256) as u8).collect();
                disk.write_at(&noise, page).unwrap();
            }
        }
    }
}

/// Every byte that is not among the lost ones is as before; says how many volumes kept their names.
#[track_caller]
fn assert_kept(
    expected: &BTreeMap<String, Vec<u8>>,
    found: &BTreeMap<String, Vec<u8>>,
    lost: &[Lost],
    context: &str,
) -> usize {
    let mut kept = 0;
    for (name, before) in expected {
        let Some(now) = found.get(name) else {
            assert!(found.keys().any(|name| name.starts_with("recovered-")), "{context}: volume {name} is gone");
            continue;
        };
        kept += 1;
        assert_eq!(now.len(), before.len(), "{context}: size of {name}");
        for (at, (old, new)) in before.chunks(4096).zip(now.chunks(4096)).enumerate() {
            let at = at as u64 * 4096;
            let is_lost = lost.iter().any(|lost| lost.volume == *name && lost.start <= at && at < lost.end);
            assert!(is_lost || old == new, "{context}: volume {name} changed at {at}: {lost:?}");
        }
    }
    kept
}

// rules: CHK-27, CHK-28, CHK-31, CHK-32
#[test]
fn random_damage_is_repaired_or_left_alone_and_what_is_lost_is_told() {
    let (mut repaired, mut refused, mut kept, mut lossless) = (0, 0, 0, 0);
    for seed in 0..seeds() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed << 7 | 1));
        let (disk, expected) = busy(&mut random, seed % 2 == 0);
        let pages = metadata_pages(&disk);
        for round in 0..20 {
            let damaged = disk.copy();
            damage(&damaged, &pages, &mut random);
            let context = format!("seed {seed} round {round}");
            println!("{context}");
            match assert_repairs(&damaged) {
                None => refused += 1,
                Some((planned, mended)) => {
                    repaired += 1;
                    lossless += u64::from(planned.lost().is_empty());
                    kept += assert_kept(&expected, &contents(mended), planned.lost(), &context) as u64;
                }
            }
        }
    }
    println!("{repaired} repaired ({lossless} without loss), {refused} refused, {kept} volumes compared");
    assert!(repaired > 14 * seeds() && lossless > 2 * seeds() && kept > 40 * seeds());
}

// rule: CHK-30
#[test]
fn a_crash_or_failure_at_any_write_of_a_repair_leaves_it_undone_or_done() {
    let mut states = 0;
    for seed in 0..seeds().min(8) {
        let mut random = Random(77 + seed);
        let (disk, expected) = busy(&mut random, seed % 2 == 0);
        let pages = metadata_pages(&disk);
        for round in 0..2 {
            let damaged = disk.copy();
            damage(&damaged, &pages, &mut random);
            let Ok(planned) = plan(&*damaged, Scope::All) else {
                continue;
            };
            let corruptions = check(&*damaged).unwrap().corruptions;
            let target = damaged.copy();
            let mut crash = target.record();
            planned.carry_out(&*target).unwrap();
            for (number, event) in target.take_events().iter().enumerate() {
                crash.step(event);
                for style in 0..3 {
                    let after = crash.disk(|_| match style {
                        0 => Fate::Lost,
                        1 => Fate::Kept,
                        _ if random.below(2) == 0 => Fate::Lost,
                        _ => Fate::Kept,
                    });
                    let context = format!("seed {seed} round {round} event {number} style {style}");
                    let report = check(&*after).unwrap();
                    assert!(report.corruptions <= corruptions, "{context}: worse: {report:#?}");
                    let (again, mended) = assert_repairs(&after).unwrap_or_else(|| panic!("{context}: beyond repair"));
                    let lost: Vec<Lost> = planned.lost().iter().chain(again.lost()).cloned().collect();
                    assert_kept(&expected, &contents(mended), &lost, &context);
                    states += 1;
                }
            }
            for after in 0..planned.steps.iter().map(|step| step.len() as u64).sum::<u64>() {
                for fault in [Fault::Write, Fault::Sync] {
                    let target = damaged.copy();
                    target.fail(Some((fault, after)));
                    let failed = planned.carry_out(&*target);
                    target.fail(None);
                    assert!(fault == Fault::Sync || failed.is_err());
                    assert!(check(&*target).unwrap().corruptions <= corruptions);
                    assert!(assert_repairs(&target).is_some());
                }
            }
        }
    }
    println!("{states} crash states");
    assert!(states > 10 * seeds().min(8));
}

// rule: CHK-31
#[test]
fn a_repair_that_would_not_end_is_refused() {
    let disk = SimDisk::new();
    Container::create(disk.clone(), &CreateOptions::default()).unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    container.create_volume("data", SLAB_LEN).unwrap();
    let io = VolumeIo::new(&container, container.volume("data").unwrap());
    io.write_at(&[7; 4096], 0).unwrap();
    // Together 4,259,840 tables.
    for number in 0..130 {
        container.create_volume(&format!("large-{number}"), 64 << 40).unwrap();
    }
    drop(io);
    container.close().unwrap();
    // Nobody knows any more what the slab of data and its table were, and what they hold may be entries.
    let uuid = crate::layout::superblock::Superblock::decode(&disk.bytes()[..PAGE_LEN], 0).unwrap().uuid;
    for slab in 0..disk.len().unwrap() / SLAB_LEN {
        let (mut bytes, at) = ([0; descriptor::LEN], 2 * SLAB_LEN + slab * descriptor::LEN as u64);
        disk.read_at(&mut bytes, at).unwrap();
        let found = Descriptor::decode(&bytes, uuid, crate::SlabNo(slab));
        if matches!(found, Ok(Descriptor::Data { .. } | Descriptor::Table { .. })) {
            let forged = RawEntry { slab: crate::SlabNo(600), d: 1, z: 0 }.encode(LayerId(u64::MAX), ChunkNo(0));
            disk.write_at(&forged.repeat(SLAB_LEN as usize / forged.len()), slab * SLAB_LEN).unwrap();
            disk.write_at(&[0xa5; descriptor::LEN], at).unwrap();
        }
    }
    let refused = plan(&*disk, Scope::All).map(drop).unwrap_err();
    assert!(refused.to_string().contains("too many slabs and tables are to be told apart"), "{refused}");
}
