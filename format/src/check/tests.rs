//! One seeded corruption for each kind of finding, and no other finding with it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::sync::Arc;

use uuid::Uuid;

use super::finding::KINDS;
use super::journal::Journal;
use super::{CheckReport, Outcome, Severity, check};
use crate::disk::Disk;
use crate::layout::checksum;
use crate::layout::descriptor::{self, Descriptor};
use crate::layout::entry::{self, RawEntry};
use crate::layout::record::{self, Item};
use crate::layout::slot::{
    self, InstantRecord, LayerKind, LayerRecord, Pace, Pair, RegionRecord, RelationRecord, Slot, VolumeRecord,
};
use crate::layout::superblock::{self, OFFSETS, Superblock};
use crate::testing::SimDisk;
use crate::units::{ChunkNo, LayerId, PAGE_LEN, RegionId, SLAB_LEN, SlabNo, SlotNo, VolumeId};
use crate::{Container, CreateOptions, Durability, HydrateEnd, HydrateStep, OpenMode, VolumeChange, VolumeIo};

mod repair;
mod rules;
mod tags;

const SIZE: u64 = 16 << 20;

/// A container with `golden` (its frozen layer and head) and `ci` over the frozen layer.
struct Fixture {
    disk: Arc<SimDisk>,
    superblock: Superblock,
}

fn empty() -> (Arc<SimDisk>, Container) {
    let disk = SimDisk::new();
    let options = CreateOptions { journal_len_bytes: 1 << 20, ..Default::default() };
    Container::create(disk.clone(), &options).unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    (disk, container)
}

impl Fixture {
    fn work() -> (Arc<SimDisk>, Container) {
        let (disk, container) = empty();
        container.create_volume("golden", SIZE).unwrap();
        let golden = VolumeIo::new(&container, container.volume("golden").unwrap());
        golden.write_at(&[1; 8192], 0).unwrap();
        golden.write_at(&[1; 4096], SLAB_LEN).unwrap();
        container.snapshot("golden", "ci").unwrap();
        let ci = VolumeIo::new(&container, container.volume("ci").unwrap());
        ci.write_at(&[2; 4096], 0).unwrap();
        ci.write_at(&[2; 4096], 2 * SLAB_LEN).unwrap();
        golden.write_at(&[3; 4096], 3 * SLAB_LEN).unwrap();
        golden.flush().unwrap();
        (disk, container)
    }

    fn on(disk: Arc<SimDisk>) -> Self {
        let newest = OFFSETS.iter().enumerate().filter_map(|(copy, &offset)| {
            let mut bytes = vec![0; superblock::LEN];
            disk.read_at(&mut bytes, offset).unwrap();
            Superblock::decode(&bytes, copy).ok()
        });
        let superblock = newest.max_by_key(|found| found.sequence).unwrap();
        Self { disk, superblock }
    }

    fn closed() -> Self {
        let (disk, container) = Self::work();
        container.close().unwrap();
        Self::on(disk)
    }

    fn crashed() -> Self {
        let (disk, container) = Self::work();
        drop(container);
        Self::on(disk)
    }

    /// With ci being hydrated: its copy layer has one chunk of golden's two.
    fn hydrating() -> Self {
        let (disk, container) = Self::work();
        // Leaves ids that nothing has.
        container.create_volume("gone", SIZE).unwrap();
        container.delete_volume("gone").unwrap();
        container.settle(100).unwrap();
        let layer = container.hydrate("ci").unwrap().unwrap();
        container.set_hydration(layer, true, 1 << 20).unwrap();
        assert_eq!(container.hydrate_step(layer, 1).unwrap(), HydrateStep::Copied(4096));
        container.close().unwrap();
        Self::on(disk)
    }

    /// With a relation of ci to golden; if `donor`, ci has been refreshed, and what it had is a donor.
    fn related(donor: bool) -> Self {
        let (disk, container) = Self::work();
        // Leaves a free slot.
        container.create_volume("gone", SIZE).unwrap();
        container.create_volume("gone-too", SIZE).unwrap();
        container.delete_volume("gone").unwrap();
        container.delete_volume("gone-too").unwrap();
        container.settle(100).unwrap();
        let layer = container.hydrate("ci").unwrap().unwrap();
        while container.hydrate_step(layer, 1 << 20).unwrap() != HydrateStep::Ended(HydrateEnd::Done) {
            container.maintain().unwrap();
        }
        if donor {
            container.refresh("ci", "golden").unwrap();
            container.settle(100).unwrap();
        }
        container.close().unwrap();
        Self::on(disk)
    }

    /// With b, a view of a, and a volume beside them.
    fn viewing() -> Self {
        let (disk, container) = empty();
        container.create_volume("a", SIZE).unwrap();
        let put = |name: &str, value: u8| {
            let io = VolumeIo::new(&container, container.volume(name).unwrap());
            io.write_at(&[value; 8192], u64::from(value) * 4096).unwrap();
        };
        put("a", 1);
        container.create_view("a", "b").unwrap();
        put("a", 2);
        put("b", 3);
        container.create_volume("other", SIZE).unwrap();
        container.close().unwrap();
        Self::on(disk)
    }

    fn relation(&self) -> (SlotNo, RelationRecord) {
        let found = self.slots().find_map(|number| match self.slot(number) {
            Slot::Relation(record) => Some((number, record)),
            _ => None,
        });
        found.unwrap()
    }

    fn uuid(&self) -> Uuid {
        self.superblock.uuid
    }

    fn read(&self, len: usize, offset: u64) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.disk.read_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn descriptor_offset(slab: SlabNo) -> u64 {
        2 * SLAB_LEN + slab.0 * descriptor::LEN as u64
    }

    fn descriptor(&self, slab: SlabNo) -> Descriptor {
        let raw = self.read(descriptor::LEN, Self::descriptor_offset(slab));
        Descriptor::decode(&raw, self.uuid(), slab).unwrap()
    }

    fn put_descriptor(&self, slab: SlabNo, content: Descriptor) {
        self.disk.write_at(&content.encode(self.uuid(), slab), Self::descriptor_offset(slab)).unwrap();
    }

    fn find_slab(&self, wanted: impl Fn(Descriptor) -> bool) -> SlabNo {
        let slabs = self.disk.len().unwrap() / SLAB_LEN;
        (0..slabs).map(SlabNo).find(|&slab| wanted(self.descriptor(slab))).unwrap()
    }

    fn free_slab(&self) -> SlabNo {
        self.find_slab(|found| found == Descriptor::Free)
    }

    fn slot_offset(&self, number: SlotNo) -> u64 {
        let catalog = self.find_slab(|found| matches!(found, Descriptor::Catalog { .. }));
        catalog.offset() + u64::from(number.0) * slot::LEN as u64
    }

    fn slot(&self, number: SlotNo) -> Slot {
        Slot::decode(&self.read(slot::LEN, self.slot_offset(number)), self.uuid(), number).unwrap()
    }

    fn put_slot(&self, number: SlotNo, content: &Slot) {
        self.disk.write_at(&*content.encode(self.uuid(), number), self.slot_offset(number)).unwrap();
    }

    fn find_slot(&self, wanted: impl Fn(&Slot) -> bool) -> SlotNo {
        self.slots().find(|&number| wanted(&self.slot(number))).unwrap()
    }

    fn slots(&self) -> impl Iterator<Item = SlotNo> {
        let catalog = self.find_slab(|found| matches!(found, Descriptor::Catalog { .. }));
        let Descriptor::Catalog { pages, .. } = self.descriptor(catalog) else { panic!("no catalog") };
        (0..pages.count_ones() * slot::PER_PAGE).map(SlotNo)
    }

    fn free_slot(&self) -> SlotNo {
        self.find_slot(|found| *found == Slot::Free)
    }

    fn volume(&self, name: &str) -> (SlotNo, VolumeRecord) {
        let number = self.find_slot(|found| matches!(found, Slot::Volume(record) if record.name == name));
        match self.slot(number) {
            Slot::Volume(record) => (number, record),
            other => panic!("{other:?}"),
        }
    }

    fn layer(&self, wanted: impl Fn(&LayerRecord) -> bool) -> (SlotNo, LayerRecord) {
        let number = self.find_slot(|found| matches!(found, Slot::Layer(record) if wanted(record)));
        match self.slot(number) {
            Slot::Layer(record) => (number, record),
            other => panic!("{other:?}"),
        }
    }

    fn head_of(&self, name: &str) -> (SlotNo, LayerRecord) {
        let head = self.volume(name).1.head;
        self.layer(|record| record.id == head)
    }

    fn frozen(&self) -> (SlotNo, LayerRecord) {
        self.layer(|record| record.kind == LayerKind::Frozen)
    }

    fn edit_layer(&self, (number, mut record): (SlotNo, LayerRecord), change: impl FnOnce(&mut LayerRecord)) {
        change(&mut record);
        self.put_slot(number, &Slot::Layer(record));
    }

    fn edit_volume(&self, name: &str, change: impl FnOnce(&mut VolumeRecord)) {
        let (number, mut record) = self.volume(name);
        change(&mut record);
        self.put_slot(number, &Slot::Volume(record));
    }

    fn entry_offset(&self, layer: LayerId, chunk: u32) -> u64 {
        let is_table = |found| matches!(found, Descriptor::Table { layer: owner, .. } if owner == layer);
        self.find_slab(is_table).offset() + u64::from(chunk) * entry::LEN as u64
    }

    fn entry(&self, layer: LayerId, chunk: u32) -> RawEntry {
        let raw = self.read(entry::LEN, self.entry_offset(layer, chunk));
        RawEntry::decode(&raw, layer, ChunkNo(chunk)).unwrap()
    }

    fn put_entry(&self, layer: LayerId, chunk: u32, content: RawEntry) {
        let raw = content.encode(layer, ChunkNo(chunk));
        self.disk.write_at(&raw, self.entry_offset(layer, chunk)).unwrap();
    }

    /// Appends a complete batch to the journal.
    fn append(&self, items: &[Item]) {
        let end = Journal::read(&*self.disk, &self.superblock, None).unwrap().end;
        let (bytes, _) = record::encode(end.link, items, true);
        self.disk.write_at(&bytes, self.superblock.journal_offset + end.at).unwrap();
    }

    fn check(&self) -> CheckReport {
        check(&*self.disk).unwrap()
    }

    /// Checks, and demands just these kinds of findings.
    #[track_caller]
    fn expect(&self, ids: &[&str]) -> CheckReport {
        let report = self.check();
        let found: BTreeSet<&str> = report.findings.iter().map(|finding| finding.id).collect();
        assert_eq!(found, ids.iter().copied().collect(), "{:#?}", report.findings);
        crate::check::repair::tests::assert_repairs(&self.disk);
        let corrupt = report.findings.iter().any(|finding| finding.severity == Severity::Corruption);
        assert_eq!(report.outcome() == Outcome::Corrupt, corrupt);
        report
    }
}

#[test]
fn the_specification_lists_just_these_findings() {
    let spec = include_str!("../../../spec/check.md");
    let findings = spec.split("\n## ").find(|section| section.starts_with("Findings")).unwrap();
    let rows: Vec<(String, String)> = findings
        .lines()
        .filter(|line| line.starts_with("| CHK-"))
        .map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            (cells.next().unwrap().to_owned(), cells.next().unwrap().to_owned())
        })
        .collect();
    let kinds: Vec<(String, String)> =
        KINDS.iter().map(|kind| (kind.id.to_owned(), format!("{:?}", kind.severity).to_lowercase())).collect();
    assert_eq!(rows, kinds);
    // And what a repair does about each of them.
    let repair = spec.split("\n## ").find(|section| section.starts_with("Repair")).unwrap();
    let repaired: Vec<&str> = repair
        .lines()
        .filter(|line| line.starts_with("| CHK-"))
        .filter_map(|line| line.split('|').nth(1))
        .map(str::trim)
        .collect();
    assert_eq!(repaired, KINDS.iter().map(|kind| kind.id).collect::<Vec<_>>());
}

#[test]
fn a_closed_container_is_clean() {
    let report = Fixture::closed().expect(&[]);
    assert!(report.clean);
    assert_eq!((report.volumes, report.layers, report.tables_checked), (2, 3, 3));
    assert_eq!(report.journal_batches, 0);
    assert_eq!(report.leaked_slabs, 0);
    assert!(report.entries_checked >= 3 * 128);
}

#[test]
fn a_crashed_container_is_clean_through_its_journal() {
    let report = Fixture::crashed().expect(&[]);
    assert!(!report.clean);
    assert!(report.journal_batches > 0);
    assert_eq!((report.volumes, report.layers), (2, 3));
}

#[test]
fn journal_values_hide_damaged_homes() {
    let fixture = Fixture::crashed();
    // No home has been written since the container was created: all that counts is in the journal.
    let table = {
        let journal = Journal::read(&*fixture.disk, &fixture.superblock, None).unwrap();
        let image =
            |(slab, raw): (&SlabNo, &[u8; 32])| Some((*slab, Descriptor::decode(raw, fixture.uuid(), *slab).ok()?));
        let found = journal.descriptors.iter().filter_map(image);
        found.filter(|(_, found)| matches!(found, Descriptor::Table { .. })).map(|(slab, _)| slab).next().unwrap()
    };
    fixture.disk.write_at(&[0xa5; PAGE_LEN], table.offset()).unwrap();
    fixture.disk.flip(Fixture::descriptor_offset(table) + 4, 0xff);
    fixture.expect(&[]);
}

#[test]
fn chk_1_a_damaged_superblock_copy() {
    let fixture = Fixture::closed();
    let copy = (fixture.superblock.sequence % 2) as usize;
    fixture.disk.flip(OFFSETS[1 - copy] + 140, 1);
    let report = fixture.expect(&["CHK-1"]);
    assert_eq!(report.outcome(), Outcome::Clean);
}

#[test]
fn chk_2_a_damaged_descriptor() {
    let fixture = Fixture::closed();
    let data = fixture.find_slab(|found| matches!(found, Descriptor::Data { .. }));
    fixture.disk.flip(Fixture::descriptor_offset(data) + 9, 4);
    fixture.expect(&["CHK-2"]);
    let fixture = Fixture::closed();
    fixture.disk.flip(Fixture::descriptor_offset(fixture.free_slab()) + 9, 4);
    fixture.expect(&["CHK-2"]);
}

#[test]
fn chk_3_a_journal_slab_described_as_something_else() {
    for (slab, content) in [
        (SlabNo(4), Descriptor::Free),
        (SlabNo(0), Descriptor::Free),
        (SlabNo(2), Descriptor::Catalog { index: 9, pages: 0 }),
    ] {
        let fixture = Fixture::closed();
        fixture.put_descriptor(slab, content);
        let report = fixture.check();
        assert!(report.findings.iter().any(|finding| finding.id == "CHK-3"), "{report:#?}");
    }
    // An entry that points at the journal, with a descriptor that agrees: the attack that CON-13 is against.
    let fixture = Fixture::closed();
    let layer = fixture.head_of("ci").1.id;
    fixture.put_entry(layer, 9, RawEntry { slab: SlabNo(4), d: 1, z: 0 });
    fixture.put_descriptor(SlabNo(4), Descriptor::Data { layer, index: 9, birth: layer });
    fixture.expect(&["CHK-3"]);
}

fn edit_slab_count(fixture: &Fixture, change: impl FnOnce(u64) -> u64) {
    let Slot::Container(mut record) = fixture.slot(SlotNo(0)) else {
        panic!("no container record");
    };
    record.slab_count = change(record.slab_count);
    fixture.put_slot(SlotNo(0), &Slot::Container(record));
}

#[test]
fn chk_4_a_file_that_is_shorter_or_slabs_beyond_the_count() {
    let fixture = Fixture::closed();
    edit_slab_count(&fixture, |count| count + 1);
    fixture.expect(&["CHK-4"]);
    let fixture = Fixture::closed();
    fixture.disk.truncate(fixture.disk.len().unwrap() - 1);
    fixture.expect(&["CHK-4"]);
    let fixture = Fixture::closed();
    let last = fixture.disk.len().unwrap() / SLAB_LEN - 1;
    fixture.put_descriptor(SlabNo(last), Descriptor::Data { layer: LayerId(1), index: 5, birth: LayerId(1) });
    edit_slab_count(&fixture, |count| count - 1);
    fixture.expect(&["CHK-4"]);
}

#[test]
fn a_file_that_is_longer_is_clean() {
    let fixture = Fixture::closed();
    fixture.disk.grow(fixture.disk.len().unwrap() + 5 * SLAB_LEN + 512).unwrap();
    fixture.expect(&[]);
}

#[test]
fn chk_5_two_catalog_slabs_of_one_number_or_a_gap() {
    let fixture = Fixture::closed();
    fixture.put_descriptor(fixture.free_slab(), Descriptor::Catalog { index: 0, pages: 1 });
    fixture.expect(&["CHK-5"]);
    let fixture = Fixture::closed();
    fixture.put_descriptor(fixture.free_slab(), Descriptor::Catalog { index: u32::MAX, pages: 1 });
    fixture.expect(&["CHK-5"]);
}

#[test]
fn chk_6_a_damaged_slot() {
    let fixture = Fixture::closed();
    fixture.disk.flip(fixture.slot_offset(fixture.free_slot()) + 300, 1);
    fixture.expect(&["CHK-6"]);
    // The right content at the wrong place.
    let fixture = Fixture::closed();
    let (from, to) = (fixture.free_slot(), SlotNo(fixture.free_slot().0 + 1));
    let raw = fixture.read(slot::LEN, fixture.slot_offset(from));
    fixture.disk.write_at(&raw, fixture.slot_offset(to)).unwrap();
    let report = fixture.expect(&["CHK-6"]);
    assert_eq!(report.findings[0].rule, "CAT-1");
}

// rule: CAT-5, CAT-20
#[test]
fn chk_6_unknown_durability_and_flags_of_a_volume() {
    for (field, value, is_known) in [
        (slot::volume::DURABILITY, 1, true),
        (slot::volume::DURABILITY, 2, false),
        (slot::volume::FLAGS, 1, true),
        (slot::volume::FLAGS, 2, true),
        (slot::volume::FLAGS, 4, false),
        (slot::volume::FLAGS, 8, true),
        (slot::volume::FLAGS, 64, false),
        (slot::volume::VERIFY, 1, true),
        (slot::volume::VERIFY, 2, true),
        (slot::volume::VERIFY, 3, false),
    ] {
        let fixture = Fixture::closed();
        let (number, record) = fixture.volume("ci");
        let mut raw = Slot::Volume(record).encode(fixture.uuid(), number);
        field.put(&mut raw[..], value);
        let crc = checksum(&[fixture.uuid().as_bytes()], &raw[..], slot::header::CRC);
        slot::header::CRC.put(&mut raw[..], crc.into());
        fixture.disk.write_at(&raw[..], fixture.slot_offset(number)).unwrap();
        let report = fixture.check();
        let rules: Vec<_> =
            report.findings.iter().filter(|found| found.id == "CHK-6").map(|found| found.rule).collect();
        assert_eq!(rules, if is_known { vec![] } else { vec!["CAT-5"] }, "{} {value}", field.name);
        let opened = Container::open(fixture.disk.copy(), OpenMode::ReadOnly);
        assert_eq!(opened.is_ok(), is_known, "{} {value}: {opened:?}", field.name);
    }
}

// rule: CHK-55, CHK-56, VOL-44
#[test]
fn undefined_volumes_are_counted_and_no_repair_hides_them() {
    let fixture = Fixture::closed();
    fixture.edit_volume("ci", |record| record.durability = Durability::None);
    assert_eq!(fixture.expect(&[]).undefined_volumes, 0);
    fixture.edit_volume("golden", |record| record.undefined = true);
    assert_eq!(fixture.expect(&[]).undefined_volumes, 1);
    let (disk, container) = Fixture::work();
    container.set_volume("ci", VolumeChange { durability: Some(Durability::None), defined: false }).unwrap();
    drop(container);
    let fixture = Fixture::on(disk);
    assert_eq!(fixture.expect(&[]).undefined_volumes, 1);
    // A repair puts the journal home and begins an empty one: that is not closing in order.
    let last = SlabNo(fixture.disk.len().unwrap() / SLAB_LEN - 1);
    fixture.disk.flip(Fixture::descriptor_offset(last) + 9, 4);
    fixture.expect(&["CHK-2"]);
    let (_, mended) = crate::check::repair::tests::assert_repairs(&fixture.disk).unwrap();
    let report = check(&*mended).unwrap();
    assert_eq!((report.undefined_volumes, report.journal_batches, report.clean), (1, 0, false));
    let container = Container::open(mended, OpenMode::ReadWrite).unwrap();
    assert!(container.volumes().iter().all(|volume| volume.undefined == (volume.name == "ci")));
}

#[test]
fn chk_7_no_container_record_or_two() {
    let fixture = Fixture::closed();
    fixture.put_slot(fixture.free_slot(), &fixture.slot(SlotNo(0)));
    fixture.expect(&["CHK-7"]);
    let fixture = Fixture::closed();
    fixture.put_slot(SlotNo(0), &Slot::Free);
    fixture.expect(&["CHK-7"]);
}

#[test]
fn chk_8_ids_used_twice_or_beyond_the_counter() {
    let fixture = Fixture::closed();
    let (_, frozen) = fixture.frozen();
    fixture.put_slot(fixture.free_slot(), &Slot::Layer(frozen));
    fixture.expect(&["CHK-8"]);
    let fixture = Fixture::closed();
    fixture.edit_volume("ci", |record| record.id = VolumeId(u64::MAX));
    fixture.expect(&["CHK-8"]);
}

#[test]
fn chk_9_two_volumes_of_one_name() {
    let fixture = Fixture::closed();
    fixture.edit_volume("ci", |record| record.name = "golden".to_owned());
    fixture.expect(&["CHK-9"]);
}

#[test]
fn chk_10_heads_and_volumes_that_disagree() {
    let fixture = Fixture::closed();
    fixture.edit_volume("ci", |record| record.size += 512);
    fixture.expect(&["CHK-10"]);
    let fixture = Fixture::closed();
    fixture.put_slot(fixture.volume("ci").0, &Slot::Free);
    fixture.expect(&["CHK-10"]);
    let fixture = Fixture::closed();
    let golden = fixture.volume("golden").1.head;
    fixture.edit_volume("ci", |record| record.head = golden);
    fixture.expect(&["CHK-10"]);
    let fixture = Fixture::closed();
    let frozen = fixture.frozen().1.id;
    fixture.edit_volume("ci", |record| record.head = frozen);
    fixture.expect(&["CHK-10"]);
}

#[test]
fn chk_11_parents_that_are_missing_live_or_in_a_circle() {
    let fixture = Fixture::closed();
    fixture.edit_layer(fixture.head_of("ci"), |record| record.parent = Some(LayerId(999)));
    fixture.expect(&["CHK-11"]);
    let fixture = Fixture::closed();
    let golden = fixture.head_of("golden").1.id;
    fixture.edit_layer(fixture.head_of("ci"), |record| record.parent = Some(golden));
    fixture.expect(&["CHK-11"]);
    let fixture = Fixture::closed();
    let frozen = fixture.frozen().1.id;
    fixture.edit_layer(fixture.frozen(), |record| record.parent = Some(frozen));
    let report = fixture.expect(&["CHK-11"]);
    assert_eq!(report.corruptions, 1);
}

#[test]
fn chk_12_a_frozen_layer_that_nobody_uses() {
    let fixture = Fixture::closed();
    fixture.edit_layer(fixture.head_of("ci"), |record| record.parent = None);
    fixture.edit_layer(fixture.head_of("golden"), |record| record.parent = None);
    let report = fixture.expect(&["CHK-12"]);
    assert_eq!(report.outcome(), Outcome::Leaks);
    assert_eq!(report.leaked_slabs, 3); // a table and two data slabs
}

#[test]
fn chk_13_a_parent_limit_beyond_the_parent() {
    let fixture = Fixture::closed();
    fixture.edit_layer(fixture.head_of("ci"), |record| record.parent_limit = SIZE + 512);
    fixture.expect(&["CHK-13"]);
}

#[test]
fn chk_14_a_second_table_or_one_beyond_the_size() {
    for index in [0, 1, u32::MAX] {
        let fixture = Fixture::closed();
        let layer = fixture.frozen().1.id;
        let table = Descriptor::Table { layer, index, pages: 0, zero: false };
        fixture.put_descriptor(fixture.free_slab(), table);
        fixture.expect(&["CHK-14"]);
    }
}

#[test]
fn chk_15_damaged_misplaced_and_malformed_entries() {
    let fixture = Fixture::closed();
    let layer = fixture.frozen().1.id;
    fixture.disk.flip(fixture.entry_offset(layer, 0) + 8, 1);
    fixture.expect(&["CHK-15"]);
    let fixture = Fixture::closed();
    let raw = fixture.read(entry::LEN, fixture.entry_offset(layer, 5));
    fixture.disk.write_at(&raw, fixture.entry_offset(layer, 6)).unwrap();
    fixture.expect(&["CHK-15"]);
    let fixture = Fixture::closed();
    fixture.put_entry(layer, 0, RawEntry { slab: SlabNo(0), d: 1, z: 0 });
    let report = fixture.expect(&["CHK-15"]);
    assert_eq!(report.findings[0].rule, "MAP-3");
    let fixture = Fixture::crashed();
    let head = {
        let journal = Journal::read(&*fixture.disk, &fixture.superblock, None).unwrap();
        *journal.entries.keys().next_back().unwrap()
    };
    fixture.append(&[Item::Entry { layer: head.0, chunk: head.1, slab: SlabNo(9), d: 0, z: 0 }]);
    fixture.expect(&["CHK-15"]);
}

#[test]
fn chk_16_entries_that_name_a_slab_of_another_or_none() {
    for slab in [SlabNo(3), SlabNo(1 << 39)] {
        let fixture = Fixture::closed();
        let layer = fixture.frozen().1.id;
        fixture.put_entry(layer, 7, RawEntry { slab, d: 1, z: 0 });
        fixture.expect(&["CHK-16"]);
    }
    let fixture = Fixture::closed();
    let layer = fixture.frozen().1.id;
    fixture.put_descriptor(fixture.entry(layer, 0).slab, Descriptor::Free);
    fixture.expect(&["CHK-16"]);
}

#[test]
fn chk_17_two_entries_that_name_one_slab() {
    let fixture = Fixture::closed();
    let (frozen, ci) = (fixture.frozen().1.id, fixture.head_of("ci").1.id);
    fixture.put_entry(ci, 9, fixture.entry(frozen, 0));
    fixture.expect(&["CHK-16", "CHK-17"]);
}

#[test]
fn chk_18_data_that_its_entry_does_not_name() {
    let fixture = Fixture::closed();
    let layer = fixture.frozen().1.id;
    fixture.put_descriptor(fixture.free_slab(), Descriptor::Data { layer, index: 9, birth: layer });
    let report = fixture.expect(&["CHK-18"]);
    assert_eq!((report.outcome(), report.leaked_slabs), (Outcome::Leaks, 1));
    let fixture = Fixture::closed();
    fixture.put_entry(layer, 0, RawEntry::default());
    fixture.expect(&["CHK-18"]);
}

#[test]
fn chk_19_slabs_of_a_layer_that_does_not_exist() {
    let missing = LayerId(999);
    for orphan in [
        Descriptor::Data { layer: missing, index: 0, birth: missing },
        Descriptor::Table { layer: missing, index: 0, pages: !0, zero: true },
    ] {
        let fixture = Fixture::closed();
        fixture.put_descriptor(fixture.free_slab(), orphan);
        let report = fixture.expect(&["CHK-19"]);
        assert_eq!((report.outcome(), report.leaked_slabs), (Outcome::Leaks, 1));
    }
}

#[test]
fn chk_20_data_beyond_the_layers_size() {
    let fixture = Fixture::closed();
    fixture.edit_layer(fixture.head_of("ci"), |record| {
        record.size = SLAB_LEN;
        record.parent_limit = SLAB_LEN;
    });
    fixture.edit_volume("ci", |record| record.size = SLAB_LEN);
    fixture.expect(&["CHK-20"]);
}

#[test]
fn chk_21_journal_values_for_what_does_not_exist() {
    let fixture = Fixture::crashed();
    let layer = {
        let journal = Journal::read(&*fixture.disk, &fixture.superblock, None).unwrap();
        journal.entries.keys().next().unwrap().0
    };
    let free = Slot::Free.encode(fixture.uuid(), SlotNo(4000));
    for item in [
        Item::FreshPage { layer, table: 0, page: 60, zero: false },
        Item::FreshPage { layer, table: 0, page: 64, zero: false },
        Item::FreshPage { layer, table: 77, page: 0, zero: false },
        Item::Entry { layer, chunk: ChunkNo(u32::MAX), slab: SlabNo(0), d: 0, z: 0 },
        Item::Descriptor { slab: SlabNo(1 << 50), image: [0; 32] },
        Item::Slot { slot: SlotNo(4000), image: free },
    ] {
        let fixture = Fixture { disk: fixture.disk.copy(), superblock: fixture.superblock.clone() };
        fixture.append(&[item]);
        fixture.expect(&["CHK-21"]);
    }
    // Items of a layer that does not exist are dropped.
    fixture.append(&[Item::FreshPage { layer: LayerId(999), table: 0, page: 0, zero: false }]);
    fixture.expect(&[]);
}

#[test]
fn chk_22_an_owner_that_does_not_exist() {
    let fixture = Fixture::closed();
    fixture.edit_layer(fixture.frozen(), |record| record.owner = Some(VolumeId(999)));
    fixture.expect(&["CHK-22"]);
}

#[test]
fn chk_23_a_slab_that_is_reserved_for_nothing() {
    let fixture = Fixture::closed();
    fixture.put_descriptor(fixture.free_slab(), Descriptor::Reserved);
    let report = fixture.expect(&["CHK-23"]);
    assert_eq!((report.outcome(), report.leaked_slabs), (Outcome::Leaks, 1));
}

// rules: LAY-38, LAY-40 — each of the ways; a whole copy layer is none.
#[test]
fn chk_33_a_copy_layer_that_nobody_can_fill() {
    let fixture = Fixture::hydrating();
    fixture.expect(&[]);
    let copy = || fixture.layer(|record| record.kind.is_copy());
    let (number, whole) = copy();
    assert_eq!(whole.kind, LayerKind::Copy(Pace { paused: true, speed: 1 << 20 }));
    let restore = || fixture.put_slot(number, &Slot::Layer(whole.clone()));
    // Without a parent, its source's layer is of no other use than golden's.
    fixture.edit_layer(copy(), |record| (record.parent, record.parent_limit) = (None, 0));
    fixture.expect(&["CHK-33"]);
    restore();
    fixture.edit_layer(copy(), |record| record.owner = None);
    fixture.expect(&["CHK-33"]);
    restore();
    let golden = fixture.volume("golden").1.id;
    fixture.edit_layer(copy(), |record| record.owner = Some(golden));
    fixture.expect(&["CHK-33"]);
    restore();
    let (at, head) = fixture.head_of("golden");
    fixture.edit_layer((at, head.clone()), |record| record.parent = Some(whole.id));
    fixture.expect(&["CHK-33"]);
    fixture.put_slot(at, &Slot::Layer(head));
    // Ci's head stands on golden's frozen layer: nobody is left on the copy layer.
    let (at, head) = fixture.head_of("ci");
    fixture.edit_layer((at, head.clone()), |record| record.parent = whole.parent);
    fixture.expect(&["CHK-33", "CHK-12"]);
    fixture.put_slot(at, &Slot::Layer(head));
    // A second one above the first.
    let (at, head) = fixture.head_of("ci");
    let id = LayerId(whole.id.0 - 1);
    assert!((0..8).map(SlotNo).all(|slot| !matches!(fixture.slot(slot), Slot::Layer(found) if found.id == id)));
    let second = LayerRecord { id, birth: id, parent: Some(whole.id), ..whole.clone() };
    fixture.put_slot(fixture.free_slot(), &Slot::Layer(second));
    fixture.edit_layer((at, head), |record| record.parent = Some(id));
    assert_eq!(refused(&fixture), "LAY-40");
    fixture.expect(&["CHK-33"]);
}

fn region(id: u64, name: &str) -> RegionRecord {
    let (limit, growth, most, high_water) = (1 << 20, 0, 1 << 20, 80);
    RegionRecord { id: RegionId(id), name: name.to_owned(), limit, growth, most, high_water, created_ns: 0 }
}

#[test]
fn chk_50_two_cache_regions_of_one_name() {
    let fixture = Fixture::closed();
    let Slot::Container(mut record) = fixture.slot(SlotNo(0)) else {
        panic!("no container record");
    };
    record.next_id += 100;
    let next = record.next_id;
    fixture.put_slot(SlotNo(0), &Slot::Container(record));
    fixture.put_slot(fixture.free_slot(), &Slot::Region(region(next - 1, "nightly")));
    fixture.expect(&[]);
    fixture.put_slot(fixture.free_slot(), &Slot::Region(region(next - 2, "nightly")));
    assert_eq!(refused(&fixture), "CAT-16");
    fixture.expect(&["CHK-50"]);
    // One id for two is no better than with volumes.
    let fixture = Fixture::closed();
    let id = fixture.volume("ci").1.id;
    fixture.put_slot(fixture.free_slot(), &Slot::Region(region(id.0, "nightly")));
    fixture.expect(&["CHK-8"]);
}

// rules: CAT-15, CAT-16
#[test]
fn regions_and_instants_that_cannot_be_are_refused() {
    let (uuid, number) = (Uuid::from_u128(7), SlotNo(3));
    let rule_of = |slot: &Slot| Slot::decode(&slot.encode(uuid, number)[..], uuid, number).map_err(|bad| bad.rule);
    let whole = region(1, "nightly");
    assert_eq!(rule_of(&Slot::Region(whole.clone())), Ok(Slot::Region(whole.clone())));
    for bad in [
        RegionRecord { name: String::new(), ..whole.clone() },
        RegionRecord { name: ".n".to_owned(), ..whole.clone() },
        RegionRecord { limit: 0, ..whole.clone() },
        RegionRecord { limit: 2 << 20, ..whole.clone() },
        RegionRecord { most: 1 << 61, ..whole.clone() },
        RegionRecord { growth: 1 << 61, ..whole.clone() },
        RegionRecord { high_water: 0, ..whole.clone() },
        RegionRecord { high_water: 101, ..whole },
    ] {
        assert_eq!(rule_of(&Slot::Region(bad.clone())), Err("CAT-16"), "{bad:?}");
    }
    let ci = Fixture::closed().volume("ci").1;
    let instant = Some(InstantRecord { region: Some(RegionId(9)) });
    let nameless = Slot::Volume(VolumeRecord { name: String::new(), instant, ..ci.clone() });
    assert_eq!(rule_of(&nameless), Ok(nameless));
    assert_eq!(rule_of(&Slot::Volume(VolumeRecord { instant, ..ci.clone() })), Err("CAT-15"));
    assert_eq!(rule_of(&Slot::Volume(VolumeRecord { name: String::new(), ..ci })), Err("CAT-4"));
}

// rule: LAY-70 — each of the ways; a whole view is none.
#[test]
fn chk_70_a_view_whose_heads_do_not_fit() {
    type Damage = fn(&Fixture);
    let whole = Fixture::viewing();
    whole.expect(&[]);
    drop(Container::open(whole.disk.clone(), OpenMode::ReadWrite).unwrap());
    let damages: [(Damage, &[&str]); 6] = [
        (|fixture| fixture.edit_layer(fixture.head_of("a"), |record| record.parent_limit -= 4096), &["CHK-70"]),
        (
            |fixture| {
                let lower = fixture.head_of("b").1.id;
                fixture.edit_layer(fixture.head_of("other"), |record| {
                    (record.parent, record.parent_limit) = (Some(lower), record.size);
                });
            },
            &["CHK-70"],
        ),
        (
            |fixture| {
                let frozen = fixture.frozen().1.id;
                fixture.edit_layer(fixture.head_of("a"), |record| record.parent = Some(frozen));
            },
            &["CHK-70"],
        ),
        (|fixture| fixture.edit_volume("a", |record| record.is_view = true), &["CHK-70"]),
        (|fixture| fixture.edit_volume("other", |record| record.is_view = true), &["CHK-70"]),
        (
            |fixture| {
                fixture.edit_layer(fixture.head_of("a"), |record| record.size -= 4096);
                fixture.edit_layer(fixture.head_of("a"), |record| record.parent_limit = record.size);
                fixture.edit_volume("a", |record| record.size -= 4096);
            },
            &["CHK-70"],
        ),
    ];
    for (damage, ids) in damages {
        let fixture = Fixture::viewing();
        damage(&fixture);
        fixture.expect(ids);
        assert_eq!(refused(&fixture), "LAY-70");
    }
    for name in ["a", "b"] {
        let fixture = Fixture::viewing();
        fixture.edit_volume(name, |record| record.durability = Durability::None);
        fixture.expect(&["CHK-70"]);
        assert_eq!(refused(&fixture), "LAY-70");
    }
    // A view of ci, which is being hydrated: the copy layer is the view's, or the source's.
    for of_source in [false, true] {
        let fixture = Fixture::hydrating();
        let (lower, golden) = (fixture.head_of("ci").1.id, fixture.volume("golden").1.id);
        fixture.edit_layer(fixture.head_of("golden"), |record| {
            (record.parent, record.parent_limit) = (Some(lower), record.size);
        });
        fixture.edit_volume("ci", |record| record.is_view = true);
        if of_source {
            let copy = fixture.layer(|record| record.filled_for().is_some());
            fixture.edit_layer(copy, |record| record.owner = Some(golden));
        }
        fixture.expect(&["CHK-70"]);
        assert_eq!(refused(&fixture), "LAY-70");
    }
    // A head that is no view's is nobody's parent.
    let fixture = Fixture::viewing();
    fixture.edit_volume("b", |record| record.is_view = false);
    fixture.expect(&["CHK-11"]);
    assert_eq!(refused(&fixture), "LAY-2");
}

// rules: CHK-31, CHK-32 — of a view whose slot is lost only the name is.
#[test]
fn a_view_whose_slot_is_lost_is_recovered_with_what_it_showed() {
    use super::repair::{Scope, plan};
    for lost in ["a", "b"] {
        let fixture = Fixture::viewing();
        let number = fixture.volume(lost).0;
        fixture.disk.write_at(&[0xa5; slot::LEN], fixture.slot_offset(number)).unwrap();
        let planned = plan(&*fixture.disk, Scope::All).unwrap();
        planned.carry_out(&*fixture.disk).unwrap();
        fixture.expect(&[]);
        let container = Container::open(fixture.disk.clone(), OpenMode::ReadWrite).unwrap();
        let shown = |name: &str| {
            let mut bytes = [0; 5 * 4096];
            VolumeIo::new(&container, container.volume(name).unwrap()).read_at(&mut bytes, 0).unwrap();
            bytes.chunks(4096).map(|block| block[0]).collect::<Vec<_>>()
        };
        let names: Vec<_> = container.volumes().into_iter().map(|volume| volume.name).collect();
        let recovered = names.iter().find(|name| name.starts_with("recovered-")).unwrap();
        let name = |of: &'static str| if of == lost { recovered.as_str() } else { of };
        assert_eq!(shown(name("a")), [0, 1, 2, 3, 3], "{lost} was lost");
        assert_eq!(shown(name("b")), [0, 1, 1, 3, 3], "{lost} was lost");
    }
}

#[test]
fn chk_40_a_relation_of_what_is_not_there() {
    for donor in [false, true] {
        let fixture = Fixture::related(donor);
        fixture.expect(&[]);
        let (number, whole) = fixture.relation();
        let (Some(pair), Some(copy)) = (whole.volumes, whole.copy) else { panic!("{whole:?}") };
        // What a donor has is nobody's without its relation.
        let findings = |id| if donor { vec![id, "CHK-12"] } else { vec![id] };
        let head = fixture.volume("golden").1.head;
        let Slot::Container(counters) = fixture.slot(SlotNo(0)) else { panic!("no container record") };
        let to_come = Pair { primary: VolumeId(counters.next_id), ..pair };
        for (wrong, id) in [
            (RelationRecord { copy: Some(LayerId(pair.primary.0)), ..whole.clone() }, "CHK-40"),
            (RelationRecord { copy: Some(head), ..whole.clone() }, "CHK-40"),
            (RelationRecord { base: None, ..whole.clone() }, "CHK-6"),
        ] {
            fixture.put_slot(number, &Slot::Relation(wrong));
            fixture.expect(&if id == "CHK-6" { vec![id] } else { findings(id) });
        }
        for wrong in [
            RelationRecord { base: Some(head), ..whole.clone() },
            RelationRecord { volumes: Some(to_come), ..whole.clone() },
        ] {
            fixture.put_slot(number, &Slot::Relation(wrong));
            fixture.expect(&["CHK-40"]);
        }
        fixture.put_slot(number, &Slot::Relation(whole.clone()));
        fixture.edit_layer(fixture.layer(|layer| layer.id == copy), |record| record.parent = whole.base);
        fixture.expect(&["CHK-40"]);
    }
}

#[test]
fn chk_41_two_relations_of_one_volume() {
    let fixture = Fixture::related(false);
    let (_, whole) = fixture.relation();
    let slot = fixture.free_slot();
    let other = RelationRecord { copy: whole.base, base: whole.copy, ..whole.clone() };
    // The layer below is no filled one, but does not stand on another either.
    fixture.put_slot(slot, &Slot::Relation(other));
    fixture.expect(&["CHK-41"]);
    fixture.put_slot(slot, &Slot::Relation(RelationRecord { volumes: None, base: None, ..whole }));
    fixture.expect(&["CHK-41"]);
}

// rule: CHK-42 — a repair of leaks leaves relations alone, one of corruption ends them and dooms what they alone kept.
#[test]
fn repairs_end_relations_only_where_something_was_damaged() {
    use super::repair::{Scope, plan};
    let fixture = Fixture::related(true);
    let base = fixture.relation().1.base.unwrap();
    let leaked = Descriptor::Data { layer: base, index: 40, birth: base };
    fixture.put_descriptor(fixture.free_slab(), leaked);
    let planned = plan(&*fixture.disk, Scope::All).unwrap();
    planned.carry_out(&*fixture.disk).unwrap();
    assert_eq!(fixture.relation().1.base, Some(base));
    fixture.disk.flip(fixture.entry_offset(base, 0) + 8, 1);
    fixture.disk.flip(fixture.entry_offset(base, 0) + 9, 1);
    let planned = plan(&*fixture.disk, Scope::All).unwrap();
    planned.carry_out(&*fixture.disk).unwrap();
    assert!(fixture.slots().all(|number| !matches!(fixture.slot(number), Slot::Relation(_))));
    fixture.expect(&[]);
}

#[test]
fn a_doomed_layer_counts_by_its_descriptors_only() {
    let fixture = Fixture::closed();
    fixture.put_slot(fixture.volume("ci").0, &Slot::Free);
    let (number, mut head) = fixture.head_of("golden");
    if head.id != fixture.volume("golden").1.head {
        panic!("not the head");
    }
    // Dooms ci's head: what its table says does not matter any more.
    let ci = fixture.layer(|record| record.kind == LayerKind::Head && record.id != head.id);
    fixture.disk.flip(fixture.entry_offset(ci.1.id, 0) + 8, 1);
    fixture.edit_layer(ci, |record| {
        record.kind = LayerKind::Doomed;
        record.parent = None;
    });
    head.owner = None;
    fixture.put_slot(number, &Slot::Layer(head));
    fixture.expect(&[]);
}

#[test]
fn more_findings_than_a_report_keeps_are_counted() {
    let fixture = Fixture::closed();
    edit_slab_count(&fixture, |count| count + 4000);
    fixture.disk.grow(fixture.disk.len().unwrap() + 4000 * SLAB_LEN).unwrap();
    let first = fixture.free_slab().0;
    for slab in first..first + 2000 {
        if fixture.descriptor(SlabNo(slab)) == Descriptor::Free {
            fixture.put_descriptor(SlabNo(slab), Descriptor::Reserved);
        }
    }
    let report = fixture.check();
    assert_eq!(report.findings.len(), super::FINDINGS_KEPT);
    assert!(report.leaks > 1900);
}

/// Opens for writing; the rule that the container breaks.
#[track_caller]
fn refused(fixture: &Fixture) -> &'static str {
    match Container::open(fixture.disk.clone(), OpenMode::ReadWrite) {
        Err(crate::Error::Corrupt(corruption)) => corruption.rule,
        Err(crate::Error::Truncated { .. }) => "CON-14",
        other => panic!("{other:?}"),
    }
}

// rules: CON-13, CON-14, LAY-1, CAT-6 — values that would let the engine hand out its own slabs, or an id twice.
#[test]
fn opening_refuses_what_would_lead_the_engine_astray() {
    let fixture = Fixture::closed();
    let layer = fixture.head_of("ci").1.id;
    fixture.put_entry(layer, 9, RawEntry { slab: SlabNo(4), d: 1, z: 0 });
    fixture.put_descriptor(SlabNo(4), Descriptor::Data { layer, index: 9, birth: layer });
    assert_eq!(refused(&fixture), "CON-13");
    for slab in 0..3 {
        let fixture = Fixture::closed();
        fixture.put_descriptor(SlabNo(slab), Descriptor::Free);
        assert_eq!(refused(&fixture), "CON-13");
    }
    for count in [1, 3, 6, 7] {
        let fixture = Fixture::closed();
        edit_slab_count(&fixture, |_| count);
        assert!(["CON-13", "CON-14"].contains(&refused(&fixture)), "{count} slabs");
    }
    let fixture = Fixture::closed();
    edit_slab_count(&fixture, |count| count + 1);
    assert_eq!(refused(&fixture), "CON-14");
    for next_id in [0, 1, u64::MAX] {
        let fixture = Fixture::closed();
        let Slot::Container(mut record) = fixture.slot(SlotNo(0)) else {
            panic!("no container record");
        };
        record.next_id = next_id;
        fixture.put_slot(SlotNo(0), &Slot::Container(record));
        assert_eq!(refused(&fixture), "LAY-1");
    }
    // Also where nothing has an id.
    let disk = SimDisk::new();
    Container::create(disk.clone(), &CreateOptions::default()).unwrap();
    let fixture = Fixture::on(disk);
    let Slot::Container(mut record) = fixture.slot(SlotNo(0)) else {
        panic!("no container record");
    };
    record.next_id = 0;
    fixture.put_slot(SlotNo(0), &Slot::Container(record));
    assert_eq!(refused(&fixture), "LAY-1");
    assert!(check(&*fixture.disk).unwrap().findings.iter().any(|found| found.id == "CHK-8"));
    let fixture = Fixture::closed();
    fixture.edit_volume("ci", |record| record.id = VolumeId(1 << 40));
    assert_eq!(refused(&fixture), "LAY-1");
    let fixture = Fixture::closed();
    fixture.put_slot(fixture.free_slot(), &fixture.slot(SlotNo(0)));
    assert_eq!(refused(&fixture), "CAT-6");
    // A merge would move chunks to where the child has no table.
    let fixture = Fixture::closed();
    let (number, mut record) = fixture.head_of("ci");
    record.parent_limit = record.size + 512;
    fixture.put_slot(number, &Slot::Layer(record));
    assert_eq!(refused(&fixture), "LAY-6");
    // The next layer that is made would have a table that it does not know.
    let fixture = Fixture::closed();
    let Slot::Container(record) = fixture.slot(SlotNo(0)) else {
        panic!("no container record");
    };
    let table = Descriptor::Table { layer: LayerId(record.next_id), index: 0, pages: 0, zero: false };
    fixture.put_descriptor(fixture.free_slab(), table);
    assert_eq!(refused(&fixture), "LAY-1");
    let fixture = Fixture::closed();
    let empty = Descriptor::Catalog { index: 1, pages: 0 };
    fixture.put_descriptor(
        fixture.find_slab(|found| matches!(found, Descriptor::Catalog { .. })),
        Descriptor::Catalog { index: 0, pages: !0 },
    );
    fixture.put_descriptor(fixture.free_slab(), empty);
    assert_eq!(refused(&fixture), "CAT-3");
}

// rules: CON-13, CON-14 — a file may be made of holes and as long as can be: opening looks no further than the container
// goes, nor further than its descriptors are sound.
#[test]
fn opening_a_very_long_file_of_holes_reads_little() {
    let len = 1 << 44;
    let fixture = Fixture::closed();
    fixture.disk.grow(len).unwrap();
    let reads = || fixture.disk.counts().0;
    let before = reads();
    Container::open(fixture.disk.clone(), OpenMode::ReadOnly).unwrap();
    assert!(reads() - before < 100, "slabs beyond the count");
    edit_slab_count(&fixture, |_| len / SLAB_LEN);
    let before = reads();
    assert_eq!(refused(&fixture), "CON-13");
    assert!(reads() - before < 100, "groups that were never made");
}

// rules: JNL-10, CON-5 — journal items for places that do not exist, and counters that would overflow.
#[test]
fn opening_refuses_impossible_items_and_counters() {
    let free = |slot: u32| Item::Slot {
        slot: SlotNo(slot),
        image: Slot::Free.encode(Fixture::crashed().uuid(), SlotNo(slot)),
    };
    for item in [free(0x77), free(0xffff_fffe), Item::Descriptor { slab: SlabNo(u64::MAX), image: [0; 32] }] {
        let fixture = Fixture::crashed();
        fixture.append(&[item]);
        assert!(["JNL-10", "CON-14"].contains(&refused(&fixture)));
    }
    for change in [
        |superblock: &mut Superblock| superblock.sequence = u64::MAX,
        |superblock: &mut Superblock| superblock.generation = u64::MAX,
        |superblock: &mut Superblock| superblock.tail_sequence = u64::MAX,
    ] {
        let fixture = Fixture::closed();
        let mut superblock = fixture.superblock.clone();
        change(&mut superblock);
        for (copy, &offset) in OFFSETS.iter().enumerate() {
            fixture.disk.write_at(&superblock.encode(copy), offset).unwrap();
        }
        assert_eq!(refused(&fixture), "CON-5");
    }
}

// rule: JNL-9 — whichever superblock copy is lost to damage, the other one's journal is still there.
#[test]
fn either_superblock_copy_is_enough() {
    for lost in OFFSETS {
        let (disk, container) = Fixture::work();
        for round in 0..200u8 {
            let io = VolumeIo::new(&container, container.volume("golden").unwrap());
            io.write_at(&[round; 4096], u64::from(round) % 60 * SLAB_LEN).unwrap();
            io.flush().unwrap();
            container.settle(10).unwrap();
        }
        let golden = VolumeIo::new(&container, container.volume("golden").unwrap());
        let mut expected = vec![0; SIZE as usize];
        golden.read_at(&mut expected, 0).unwrap();
        drop((golden, container));
        disk.flip(lost + 200, 1);
        let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
        let mut found = vec![0; SIZE as usize];
        VolumeIo::new(&container, container.volume("golden").unwrap()).read_at(&mut found, 0).unwrap();
        assert!(found == expected, "the copy at {lost} was needed");
    }
}

// rule: JNL-4 — a record that is not the expected one, or a batch without its end, changes nothing.
#[test]
fn records_of_another_chain_and_unfinished_batches_do_not_count() {
    type Change = fn(&mut record::Link);
    let changes: [(&str, Change); 4] = [
        ("generation", |link| link.generation -= 1),
        ("previous CRC", |link| link.prev_crc ^= 1),
        ("sequence", |link| link.sequence += 1),
        ("container", |link| link.uuid = Uuid::from_u128(7)),
    ];
    let renamed = |fixture: &Fixture| {
        let journal = Journal::read(&*fixture.disk, &fixture.superblock, None).unwrap();
        let (number, mut record) = journal
            .slots
            .iter()
            .find_map(|(&number, image)| match Slot::decode(&image[..], fixture.uuid(), number) {
                Ok(Slot::Volume(record)) if record.name == "ci" => Some((number, record)),
                _ => None,
            })
            .unwrap();
        record.name = "renamed".to_owned();
        let image = Slot::Volume(record).encode(fixture.uuid(), number);
        (journal.end, Item::Slot { slot: number, image })
    };
    let names = |fixture: &Fixture| {
        let container = Container::open(fixture.disk.clone(), OpenMode::ReadWrite).unwrap();
        container.volumes().into_iter().map(|volume| volume.name).collect::<Vec<_>>()
    };
    let put = |fixture: &Fixture, change: Change, last: bool| {
        let (end, item) = renamed(fixture);
        let mut link = end.link;
        change(&mut link);
        let (bytes, _) = record::encode(link, &[item], last);
        fixture.disk.write_at(&bytes, fixture.superblock.journal_offset + end.at).unwrap();
    };
    for (what, change) in changes {
        let fixture = Fixture::crashed();
        put(&fixture, change, true);
        assert_eq!(names(&fixture), ["ci", "golden"], "another {what}");
    }
    let fixture = Fixture::crashed();
    put(&fixture, |_| {}, false);
    assert_eq!(names(&fixture), ["ci", "golden"], "a batch without its end");
    let fixture = Fixture::crashed();
    put(&fixture, |_| {}, true);
    assert_eq!(names(&fixture), ["golden", "renamed"], "the expected record");
}
