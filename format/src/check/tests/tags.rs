//! Tag slabs and records that are damaged, and what is done about them.

use super::*;
use crate::Verify;
use crate::error::Place;
use crate::layout::tags::{self, SlabTags};

/// With golden's frozen layer sealed.
fn sealed() -> Fixture {
    let (disk, container) = Fixture::work();
    container.set_verify("golden", Verify::Copy).unwrap();
    // What was frozen before is sealed, too.
    let volume = container.seals()[0].volume_id;
    while container.sealing(volume).is_some() {
        container.seal_step(volume, 1 << 20).unwrap();
    }
    container.close().unwrap();
    Fixture::on(disk)
}

fn tag_slab(fixture: &Fixture) -> SlabNo {
    fixture.find_slab(|found| matches!(found, Descriptor::Tags { .. }))
}

/// The slab of golden's first chunk, and its tags.
fn tagged(fixture: &Fixture) -> (SlabNo, u64, SlabTags) {
    let layer = fixture.frozen().1.id;
    let slab = fixture.entry(layer, 0).slab;
    let at = tag_slab(fixture).offset() + slab.0 % tags::PER_SLAB * tags::LEN as u64;
    (slab, at, SlabTags::decode(&fixture.read(tags::LEN, at), fixture.uuid(), slab).unwrap().unwrap())
}

fn sealed_bytes(disk: &Arc<SimDisk>, name: &str) -> u64 {
    let container = Container::open(disk.clone(), OpenMode::ReadOnly).unwrap();
    container.map(name, 0, crate::Listing::Counts).unwrap().counts.sealed_bytes
}

#[test]
fn chk_60_a_damaged_tag_record_is_dropped() {
    let fixture = sealed();
    fixture.expect(&[]);
    let (_, at, found) = tagged(&fixture);
    assert_eq!((found.mask, found.chunk), (0b11, ChunkNo(0)));
    let before = sealed_bytes(&fixture.disk, "golden");
    fixture.disk.flip(at + 301, 2);
    fixture.expect(&["CHK-60"]);
    // It is no damage to data, and opening does not mind.
    assert_eq!(sealed_bytes(&fixture.disk, "golden"), before - 8192);
    let (_, mended) = crate::check::repair::tests::assert_repairs(&fixture.disk).unwrap();
    assert_eq!(sealed_bytes(&mended, "golden"), before - 8192);
}

// rule: TAG-18 — the others of its page stay, and what is there is written.
#[test]
fn chk_60_a_tag_record_that_cannot_be_read_is_dropped() {
    use crate::check::repair::{Scope, plan, undo};
    let fixture = sealed();
    let (_, at, found) = tagged(&fixture);
    let (disk, before) = (fixture.disk.copy(), sealed_bytes(&fixture.disk, "golden"));
    disk.make_unreadable(Some(at + 1..at + 2));
    let report = crate::check::check(&*disk).unwrap();
    let [finding] = &report.findings[..] else { panic!("{:#?}", report.findings) };
    assert_eq!((finding.id, finding.rule, finding.place.clone()), ("CHK-60", "TAG-18", Place::Offset(at).to_string()));
    assert_eq!(report.outcome(), Outcome::Corrupt);
    let planned = plan(&*disk, Scope::All).unwrap();
    let mut log = Vec::new();
    planned.write_log(&*disk, &mut log).unwrap();
    planned.carry_out(&*disk).unwrap();
    let report = crate::check::check(&*disk).unwrap();
    assert_eq!(report.outcome(), Outcome::Clean, "{report:#?}");
    assert_eq!(sealed_bytes(&disk, "golden"), before - u64::from(found.mask.count_ones()) * 4096);
    undo(&*disk, &mut &log[..]).unwrap();
    let mut record = [1; tags::LEN];
    disk.read_at(&mut record, at).unwrap();
    assert_eq!(record, [0; tags::LEN]);
}

#[test]
fn a_record_of_a_slabs_former_life_is_no_finding() {
    let fixture = sealed();
    let (slab, at, found) = tagged(&fixture);
    let before = sealed_bytes(&fixture.disk, "golden");
    for stale in [SlabTags::new(found.birth, ChunkNo(7)), SlabTags::new(LayerId(found.birth.0 + 1), found.chunk)] {
        let mut stale = stale;
        (0..64).for_each(|block| stale.make(block, &[9; 4096]));
        fixture.disk.write_at(&stale.encode(fixture.uuid(), slab), at).unwrap();
        fixture.expect(&[]);
        assert_eq!(sealed_bytes(&fixture.disk, "golden"), before - 8192);
        let container = Container::open(fixture.disk.copy(), OpenMode::ReadOnly).unwrap();
        let mut report = CheckReport::default();
        container.check_data(&mut report, &std::sync::atomic::AtomicBool::new(false)).unwrap();
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
    }
}

#[test]
fn chk_61_a_tag_slab_that_no_slab_needs() {
    let fixture = sealed();
    fixture.put_descriptor(fixture.free_slab(), Descriptor::Tags { index: 0 });
    fixture.expect(&["CHK-61"]);
    assert_eq!(refused(&fixture), "TAG-2");
    let fixture = sealed();
    fixture.put_descriptor(fixture.free_slab(), Descriptor::Tags { index: 1 << 31 });
    fixture.expect(&["CHK-61"]);
    assert_eq!(refused(&fixture), "TAG-2");
}

#[test]
fn chk_62_data_that_is_not_what_was_sealed() {
    let fixture = sealed();
    let (slab, ..) = tagged(&fixture);
    fixture.disk.flip(slab.offset() + 5000, 1);
    fixture.expect(&[]);
    let container = Container::open(fixture.disk.clone(), OpenMode::ReadOnly).unwrap();
    let mut report = fixture.check();
    container.check_data(&mut report, &std::sync::atomic::AtomicBool::new(false)).unwrap();
    let found: Vec<&str> = report.findings.iter().map(|finding| finding.id).collect();
    assert_eq!((found, report.outcome(), report.data_bytes_verified), (vec!["CHK-62"], Outcome::Corrupt, 12288));
}

// rules: MAP-5, TAG-2 — nothing leads into a tag slab.
#[test]
fn an_entry_does_not_lead_to_tags() {
    let fixture = sealed();
    let (layer, slab) = (fixture.head_of("ci").1.id, tag_slab(&fixture));
    fixture.put_entry(layer, 9, RawEntry { slab, d: 1, z: 0 });
    let report = fixture.check();
    assert!(report.findings.iter().any(|finding| finding.id == "CHK-16"), "{report:#?}");
    let container = Container::open(fixture.disk.clone(), OpenMode::ReadOnly).unwrap();
    let ci = VolumeIo::new(&container, container.volume("ci").unwrap());
    assert!(ci.read_at(&mut [0; 512], 9 * SLAB_LEN).is_err());
}

// rules: TAG-4, CHK-60 — a repair that makes a sealed layer a head, which may be overwritten in place, drops its tags.
#[test]
fn a_sealed_layer_that_a_repair_makes_a_head_has_no_tags() {
    let fixture = sealed();
    let (_, at, found) = tagged(&fixture);
    let layer = fixture.frozen().1.id;
    let lost = ["golden", "ci"].map(|name| [fixture.head_of(name).0, fixture.volume(name).0]);
    for number in lost.into_iter().flatten() {
        fixture.disk.write_at(&[0xa5; 512], fixture.slot_offset(number)).unwrap();
    }
    let (_, mended) = crate::check::repair::tests::assert_repairs(&fixture.disk).unwrap();
    let mut record = [0; tags::LEN];
    mended.read_at(&mut record, at).unwrap();
    assert!(found.mask == 0b11 && record == [0; tags::LEN], "its tags are there");
    let container = Container::open(mended, OpenMode::ReadWrite).unwrap();
    let volume = container.volumes().into_iter().find(|volume| volume.head == layer).unwrap();
    let io = VolumeIo::new(&container, container.volume(&volume.name).unwrap());
    io.write_at(&[7; 4096], 0).unwrap();
    let mut bytes = [0; 8192];
    io.read_at(&mut bytes, 0).unwrap();
    assert!(bytes[..4096] == [7; 4096] && bytes[4096..] == [1; 4096]);
    let mut report = CheckReport::default();
    container.check_data(&mut report, &std::sync::atomic::AtomicBool::new(false)).unwrap();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}
