//! Repairs that could make things worse: what a guest wrote, what nobody can tell any more, and counters at their end.

use super::*;
use crate::check::repair::tests::{assert_repairs, contents};
use crate::check::repair::{Scope, plan};
use crate::error::Error;
use crate::testing::Fate;
use crate::units::TABLE_SPAN;

/// Damages the slab's descriptor in more than a single bit.
fn ruin_descriptor(fixture: &Fixture, slab: SlabNo) {
    fixture.disk.write_at(&[0xa5; descriptor::LEN], Fixture::descriptor_offset(slab)).unwrap();
}

fn table_of(fixture: &Fixture, layer: LayerId) -> SlabNo {
    fixture.find_slab(|found| matches!(found, Descriptor::Table { layer: owner, index: 0, .. } if owner == layer))
}

// rule: CHK-31 — a guest may keep a container in its volume, whose tables are of layers with the same ids.
#[test]
fn what_a_guest_wrote_is_not_taken_for_a_table() {
    let disk = SimDisk::new();
    Container::create(disk.clone(), &CreateOptions { journal_len_bytes: 1 << 20, ..Default::default() }).unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    container.create_volume("outer", 2 * TABLE_SPAN).unwrap();
    let head = container.volumes()[0].head;
    let first = ChunkNo(8192);
    let mut inner = Vec::new();
    for chunk in first.0..first.0 + 8192 {
        inner.extend(RawEntry::default().encode(head, ChunkNo(chunk)));
    }
    let io = VolumeIo::new(&container, container.volume("outer").unwrap());
    io.write_at(&inner, 5 * SLAB_LEN).unwrap();
    drop(io);
    container.close().unwrap();
    let fixture = Fixture::on(disk);
    let slab = fixture.find_slab(|found| matches!(found, Descriptor::Data { index: 5, .. }));
    ruin_descriptor(&fixture, slab);
    let (planned, mended) = assert_repairs(&fixture.disk).unwrap();
    assert!(planned.lost().is_empty(), "{:?}", planned.lost());
    let container = Container::open(mended, OpenMode::ReadOnly).unwrap();
    let mut found = vec![0; inner.len()];
    VolumeIo::new(&container, container.volume("outer").unwrap()).read_at(&mut found, 5 * SLAB_LEN).unwrap();
    assert!(found == inner, "the guest's data has become a table");
}

// rule: CHK-31 — a table is gone, but its data is not: its chunks read as zeros, and the rest is not vouched for.
#[test]
fn chunks_of_a_table_that_is_gone_do_not_show_the_parents_older_data() {
    let fixture = Fixture::closed();
    let before = contents(fixture.disk.copy()).remove("golden").unwrap();
    let layer = fixture.head_of("ci").1.id;
    let table = table_of(&fixture, layer);
    fixture.disk.write_at(&[0x5a; SLAB_LEN as usize], table.offset()).unwrap();
    ruin_descriptor(&fixture, table);
    let (planned, mended) = assert_repairs(&fixture.disk).unwrap();
    let now = contents(mended);
    assert!(now["golden"] == before, "another volume has changed");
    let chunk = SLAB_LEN as usize;
    assert!(now["ci"][..chunk].iter().all(|&byte| byte == 0), "older data shows where newer was");
    assert!(now["ci"][chunk..chunk + 4096].iter().all(|&byte| byte == 1), "what the parent shows is gone");
    let lost: Vec<_> = planned.lost().iter().map(|lost| (lost.volume.as_str(), lost.start, lost.end)).collect();
    assert_eq!(lost, [("ci", 0, SIZE)]);
}

// rule: CHK-31 — nothing is left of a table that hid the parent: at least it is told.
#[test]
fn a_table_of_which_nothing_is_left_is_told() {
    let (disk, container) = Fixture::work();
    let ci = VolumeIo::new(&container, container.volume("ci").unwrap());
    ci.discard(0..SIZE).unwrap();
    drop(ci);
    container.settle(100).unwrap();
    container.close().unwrap();
    let fixture = Fixture::on(disk);
    let table = table_of(&fixture, fixture.head_of("ci").1.id);
    ruin_descriptor(&fixture, table);
    fixture.disk.write_at(&[0; SLAB_LEN as usize], table.offset()).unwrap();
    let (planned, mended) = assert_repairs(&fixture.disk).unwrap();
    assert!(contents(mended)["ci"][0] == 1, "this test is about older data that shows again");
    assert!(planned.lost().iter().any(|lost| lost.volume == "ci" && lost.start == 0), "{:?}", planned.lost());
}

// rules: CHK-27, LAY-10 — slabs of a layer that is gone may be described as any tables: they are only freed.
#[test]
fn orphaned_tables_are_freed_whatever_their_numbers() {
    let fixture = Fixture::closed();
    let Slot::Container(mut record) = fixture.slot(SlotNo(0)) else {
        panic!("no container record");
    };
    let layer = LayerId(record.next_id);
    record.next_id += 1;
    fixture.put_slot(SlotNo(0), &Slot::Container(record));
    for index in [0, 3, 3] {
        fixture.put_descriptor(fixture.free_slab(), Descriptor::Table { layer, index, pages: 0, zero: false });
    }
    assert!(assert_repairs(&fixture.disk).is_some());
}

// rules: CHK-27, CON-18 — a container whose counters are used up is not repaired into one that cannot be opened.
#[test]
fn used_up_counters_are_beyond_repair() {
    type Change = fn(&mut Superblock);
    let changes: [Change; 3] = [
        |superblock| superblock.sequence = (1 << 62) - 1,
        |superblock| superblock.generation = (1 << 62) - 1,
        |superblock| superblock.tail_sequence = (1 << 62) - 1,
    ];
    for change in changes {
        let fixture = Fixture::closed();
        let mut superblock = fixture.superblock.clone();
        change(&mut superblock);
        let copy = (superblock.sequence % 2) as usize;
        fixture.disk.write_at(&superblock.encode(copy), OFFSETS[copy]).unwrap();
        fixture.disk.flip(OFFSETS[1 - copy] + 200, 1);
        assert!(matches!(plan(&*fixture.disk, Scope::All), Err(Error::CannotRepair { .. })));
    }
    let fixture = Fixture::closed();
    fixture.edit_volume("ci", |record| record.id = VolumeId((1 << 62) - 2));
    assert!(assert_repairs(&fixture.disk).is_none());
}

// rules: CON-14, CON-19 — a file may be made of holes and as long as can be: a repair looks no further than opening does.
#[test]
fn repairing_a_very_long_file_of_holes_reads_little() {
    let len = 1 << 44;
    let fixture = Fixture::closed();
    fixture.disk.grow(len).unwrap();
    fixture.disk.flip(OFFSETS[0] + 200, 1);
    let before = fixture.disk.counts().0;
    assert!(!plan(&*fixture.disk, Scope::All).unwrap().is_empty());
    assert!(fixture.disk.counts().0 - before < 1000, "slabs beyond the count");
    edit_slab_count(&fixture, |_| len / SLAB_LEN);
    let before = fixture.disk.counts().0;
    assert!(matches!(plan(&*fixture.disk, Scope::All), Err(Error::CannotRepair { .. })));
    assert!(fixture.disk.counts().0 - before < 1000, "groups that were never made");
}

/// Repairs, and crashes after each event with nothing and with all that is not yet durable: every volume stays as it was,
/// at once if the container can be opened, and after another repair.
#[track_caller]
fn assert_crashes_lose_nothing(fixture: &Fixture, expected: &std::collections::BTreeMap<String, Vec<u8>>, opens: bool) {
    let planned = plan(&*fixture.disk, Scope::All).unwrap();
    assert!(planned.lost().is_empty(), "{:?}", planned.lost());
    let target = fixture.disk.copy();
    let mut crash = target.record();
    planned.carry_out(&*target).unwrap();
    let mut states = 0;
    for event in target.take_events() {
        crash.step(&event);
        for fate in [Fate::Lost, Fate::Kept] {
            let after = crash.disk(|_| fate);
            if opens {
                assert!(contents(after.copy()) == *expected, "changed by a crash in state {states}");
            }
            let (_, mended) = assert_repairs(&after).unwrap();
            assert!(contents(mended) == *expected, "changed by a crash and a repair in state {states}");
            states += 1;
        }
    }
    assert!(states > 8, "{states} states");
}

// rule: CHK-30 — homes are durable before a superblock says that the journal is empty.
#[test]
fn a_crash_in_a_repair_never_loses_what_only_the_journal_has() {
    for copy in OFFSETS {
        let fixture = Fixture::crashed();
        let expected = contents(fixture.disk.copy());
        fixture.disk.flip(copy + 200, 1);
        assert_crashes_lose_nothing(&fixture, &expected, true);
    }
}

// rule: CHK-30 — a journal without room goes home first, and then takes the changes.
#[test]
fn a_crash_in_a_repair_with_a_full_journal_loses_nothing() {
    let fixture = Fixture::crashed();
    let expected = contents(fixture.disk.copy());
    let image = fixture.slot(SlotNo(0)).encode(fixture.uuid(), SlotNo(0));
    let newest = Journal::read(&*fixture.disk, &fixture.superblock, None).unwrap().slots.get(&SlotNo(0)).cloned();
    let item = Item::Slot { slot: SlotNo(0), image: newest.unwrap_or(image) };
    loop {
        let end = Journal::read(&*fixture.disk, &fixture.superblock, None).unwrap().end;
        let room = fixture.superblock.journal_len - end.walked.max(end.at);
        if room < PAGE_LEN as u64 {
            break;
        }
        let count = ((room.min(200 << 10) as usize - record::LEN) / 520).max(1);
        fixture.append(&vec![item.clone(); count]);
    }
    // Descriptors at home count only where the journal has none: a slab that was never described.
    let free = SlabNo(fixture.disk.len().unwrap() / SLAB_LEN - 1);
    fixture.put_descriptor(free, Descriptor::Reserved);
    assert_crashes_lose_nothing(&fixture, &expected, true);
}
