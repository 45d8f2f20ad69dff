//! Data that a disk has changed or delivers from another place.

use pitstop_format::check::Severity;
use pitstop_format::{Error, OpenMode, SLAB_LEN, SealEnd};

use crate::support::*;

fn read(container: &pitstop_format::Container, name: &str, at: u64, len: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; len];
    io(container, name).read_at(&mut bytes, at).map(|()| bytes)
}

// req: R13; rules: TAG-5, TAG-9, CHK-62
#[test]
fn a_flipped_bit_is_neither_read_nor_copied_but_reported_with_its_place() {
    let (disk, container) = sealed();
    let at = 2 * SLAB_LEN + 5 * BLOCK + 1000;
    let place = place_of(&container, "ci", at);
    let good = contents(&container, "ci");
    disk.flip(place, 0x10);
    let block = place / BLOCK * BLOCK;
    for (start, len) in
        [(at / BLOCK * BLOCK, 4096), (at / 512 * 512, 512), (at / BLOCK * BLOCK + 3584, 512), (0, MIB as usize)]
    {
        for name in ["ci", "golden"] {
            let error = read(&container, name, start, len).unwrap_err();
            let text = error.to_string();
            assert!(is_unfit(&error) && text.contains(&format!("block {} (offset {block})", at / BLOCK)), "{text}");
        }
    }
    // Its neighbours are whole, in the same block's sectors too only with all of it.
    assert!(
        read(&container, "ci", at / BLOCK * BLOCK + BLOCK, 4096).unwrap()
            == good[(at / BLOCK * BLOCK + BLOCK) as usize..][..4096]
    );
    let error = hydrate(&container, "ci").unwrap_err();
    assert!(is_unfit(&error), "{error}");
    let report = data_report(&container);
    let [finding] = &report.findings[..] else { panic!("{:#?}", report.findings) };
    assert_eq!((finding.id, finding.severity, finding.rule), ("CHK-62", Severity::Corruption, "TAG-5"));
    assert!(finding.place.ends_with(&format!("block {} (offset {block})", at / BLOCK)), "{}", finding.place);
    assert!(finding.message.contains("golden") && finding.message.contains("ci"), "{}", finding.message);
    // It turns back, and all is well: the hydration goes on from where it was.
    disk.flip(place, 0x10);
    hydrate(&container, "ci").unwrap();
    assert!(contents(&container, "ci") == good);
    assert_fits(&container);
    assert_clean(&disk, container);
}

// req: R13; rule: TAG-5 — a disk that delivers another block, written as such by the same layer.
#[test]
fn a_block_in_anothers_place_is_found() {
    let (disk, container) = sealed();
    let (a, b) = (place_of(&container, "ci", 0), place_of(&container, "ci", 7 * SLAB_LEN + 3 * BLOCK));
    let mut bytes = [vec![0; BLOCK as usize], vec![0; BLOCK as usize]];
    use pitstop_format::Disk as _;
    disk.read_at(&mut bytes[0], a).unwrap();
    disk.read_at(&mut bytes[1], b).unwrap();
    disk.write_at(&bytes[1], a).unwrap();
    disk.write_at(&bytes[0], b).unwrap();
    assert_eq!(data_report(&container).findings.len(), 2);
    assert!(is_unfit(&read(&container, "ci", 0, 512).unwrap_err()));
}

// rules: TAG-5, TAG-3 — what has no tag is served as it is, in the same slab too.
#[test]
fn what_is_not_sealed_is_not_verified() {
    let (disk, container) = sealed();
    fill(&container, "ci", 0..BLOCK, 50);
    let place = place_of(&container, "ci", 0);
    disk.flip(place, 1);
    read(&container, "ci", 0, 4096).unwrap();
    assert_fits(&container);
    assert_ne!(place, place_of(&container, "golden", 0));
}

// rules: TAG-5, TAG-6 — a merge does not carry damage on: it does not happen.
#[test]
fn a_merge_fails_rather_than_copy_damage() {
    let (disk, container) = two_sealed();
    container.delete_volume("a").unwrap();
    let place = place_of(&container, "v", 0);
    disk.flip(place, 1);
    container.settle(1000).unwrap();
    assert_eq!(find(&container, "v").depth, 2, "it was merged");
    assert!(is_unfit(&read(&container, "v", 0, 512).unwrap_err()));
    disk.flip(place, 1);
    container.close().unwrap();
    let container = open(&disk);
    container.settle(1000).unwrap();
    assert_eq!(find(&container, "v").depth, 1);
    let counts = counts(&container, "v");
    assert_eq!(counts.sealed_bytes, counts.data_bytes);
    assert_fits(&container);
}

// rules: TAG-2, CHK-60 — a damaged record is no damaged data.
#[test]
fn a_damaged_record_only_means_that_its_slab_is_not_sealed() {
    use pitstop_format::check::check;
    let (disk, container) = sealed();
    let slab = place_of(&container, "ci", 0) / SLAB_LEN;
    container.close().unwrap();
    // The record names the slab's number only in its checksum: all records of the tag slab are tried.
    let bytes = disk.bytes();
    let container = open(&disk);
    let before = counts(&container, "ci");
    container.close().unwrap();
    let tags = (0..bytes.len() as u64 / SLAB_LEN).find(|&tags| {
        let copy = disk.copy();
        copy.flip(tags * SLAB_LEN + slab % 512 * 512 + 300, 1);
        check(&*copy).is_ok_and(|report| report.findings.iter().any(|finding| finding.id == "CHK-60"))
    });
    disk.flip(tags.unwrap() * SLAB_LEN + slab % 512 * 512 + 300, 1);
    let container = pitstop_format::Container::open(disk.clone(), OpenMode::ReadOnly).unwrap();
    assert_eq!(counts(&container, "ci").sealed_bytes, before.sealed_bytes - SLAB_LEN);
    assert_fits(&container);
    drop(container);
    // Sealing makes it anew.
    let container = open(&disk);
    let volume = container.seal("golden").unwrap();
    assert_eq!(run(&container, volume), (SealEnd::Done, SLAB_LEN));
    assert_eq!(counts(&container, "ci"), before);
    assert_clean(&disk, container);
}

/// Where the page is that has the tags of a volume's first block; it is not in memory.
fn tag_page(container: &pitstop_format::Container, name: &str) -> u64 {
    use pitstop_format::{ReadPlan, TagStep, TaggedRead};
    place_of(container, name, 0);
    let (volume, mut plan) = (container.volume(name).unwrap(), ReadPlan::default());
    volume.plan_read(0..512, &mut plan).unwrap();
    match container.look_up_tags(&mut TaggedRead::of_plan(&plan)) {
        TagStep::NeedTags(load) => load.offset(),
        step => panic!("{step:?}"),
    }
}

// req: R13; rules: TAG-18, TAG-12, CHK-60 — nor is a page of tags that cannot be read; tags beside it stay as they are.
#[test]
fn tags_that_cannot_be_read_cost_no_data_and_are_made_anew() {
    let (disk, container) = sealed();
    let (good, before) = (contents(&container, "ci"), counts(&container, "ci"));
    container.close().unwrap();
    let container = open(&disk);
    let page = tag_page(&container, "ci");
    let slab = |chunk: u64| place_of(&container, "ci", chunk * SLAB_LEN) / SLAB_LEN;
    let beside = [1, 2, 3, 5].into_iter().find(|&chunk| slab(chunk) / 8 == slab(0) / 8).unwrap();
    let lost = page + slab(0) % 8 * 512;
    disk.make_unreadable(Some(lost + 511..lost + 512));
    // One bit in a block whose tag is in that page.
    let bad = place_of(&container, "ci", beside * SLAB_LEN);
    disk.flip(bad, 1);
    assert!(read(&container, "ci", 0, 4096).unwrap() == good[..4096]);
    read(&container, "ci", beside * SLAB_LEN, 512).unwrap();
    io(&container, "ci").write_at(&good[512..1024], 512).unwrap();
    assert_fits(&container);
    let report = pitstop_format::check::check(&*disk).unwrap();
    let [finding] = &report.findings[..] else { panic!("{:#?}", report.findings) };
    assert_eq!((finding.id, finding.rule, finding.place.as_str()), ("CHK-60", "TAG-18", &*format!("offset {lost}")));
    // Hydrating copies what it can read, and goes on where there are tags.
    container.snapshot("golden", "real").unwrap();
    hydrate(&container, "real").unwrap();
    assert_eq!(contents(&container, "real")[..512], good[..512]);
    // What can be read of the page counts again once it is written.
    let volume = container.seal("golden").unwrap();
    assert_eq!(run(&container, volume).0, SealEnd::Done);
    assert!(is_unfit(&read(&container, "golden", beside * SLAB_LEN, 512).unwrap_err()));
    disk.flip(bad, 1);
    disk.flip(place_of(&container, "golden", 0), 1);
    assert!(is_unfit(&read(&container, "golden", 0, 512).unwrap_err()));
    disk.flip(place_of(&container, "golden", 0), 1);
    container.delete_volume("real").unwrap();
    container.close().unwrap();
    let container = open(&disk);
    assert_eq!(counts(&container, "golden").sealed_bytes, before.sealed_bytes);
    assert!(contents(&container, "ci") == good);
    assert_clean(&disk, container);
}

// req: R13; rule: TAG-15 — what is written in part does not make damage the volume's own.
#[test]
fn a_write_to_a_part_of_a_damaged_block_fails() {
    let (disk, container) = sealed();
    let at = 3 * SLAB_LEN + 7 * BLOCK;
    let place = place_of(&container, "ci", at + 3000);
    let good = contents(&container, "ci");
    disk.flip(place, 4);
    let error = io(&container, "ci").write_at(&[9; 512], at + 512).unwrap_err();
    assert!(is_unfit(&error), "{error}");
    assert!(is_unfit(&io(&container, "ci").write_zeroes(at + 512..at + 1024).unwrap_err()));
    io(&container, "ci").write_at(&[9; 512], at + BLOCK).unwrap();
    assert!(is_unfit(&read(&container, "ci", at, 4096).unwrap_err()));
    // The whole block needs nothing of what was there.
    disk.flip(place, 4);
    io(&container, "ci").write_at(&[9; 512], at + 512).unwrap();
    let now = contents(&container, "ci");
    let block = at as usize..(at + BLOCK) as usize;
    assert!(now[block.start..block.start + 512] == good[block.start..block.start + 512]);
    assert!(now[block.start + 512..block.start + 1024] == [9; 512]);
    assert!(now[block.start + 1024..block.end] == good[block.start + 1024..block.end]);
    disk.flip(place, 4);
    io(&container, "ci").write_at(&[8; 4096], at).unwrap();
    assert!(read(&container, "ci", at, 4096).unwrap() == [8; 4096]);
}

// rule: TAG-12 — what was freed between the plan and the look is looked for anew, not taken for what has no tag.
#[test]
fn a_slab_freed_behind_a_plan_does_not_count_as_not_sealed() {
    use pitstop_format::{Planned, ReadPlan, TagStep, TaggedRead};
    let (_, container) = two_sealed();
    let volume = container.volume("v").unwrap();
    let look = |plan: &mut ReadPlan| {
        assert!(matches!(volume.plan_read(0..512, plan), Ok(Planned::Ready(()))));
        TaggedRead::of_plan(plan)
    };
    let tags_of = |read: &mut TaggedRead| match container.look_up_tags(read) {
        TagStep::NeedTags(load) => {
            let mut page = [0; 4096];
            container.disk().read_at(&mut page, load.offset()).unwrap();
            container.install_tags(read, load, &page);
            container.look_up_tags(read)
        }
        step => step,
    };
    let mut plan = ReadPlan::default();
    let mut before = look(&mut plan);
    container.delete_volume("a").unwrap();
    // The upper layer has a slab there: the block is copied, and the lower one's slab freed, but not yet to be used again.
    container.settle(1000).unwrap();
    assert_eq!(find(&container, "v").depth, 1);
    assert_eq!(tags_of(&mut before), TagStep::Moved);
    let mut now = look(&mut plan);
    assert_eq!(tags_of(&mut now), TagStep::Ready);
    let part = now.into_parts().next().unwrap();
    let check = part.check.unwrap();
    assert_eq!((part.len, check.len_bytes(), check.disk_offset()), (512, BLOCK, part.disk_offset));
}

// rule: TAG-2 — a record that is looked at while it is written is looked at again; one that is damaged is so then, too.
#[test]
fn a_record_that_seems_damaged_is_looked_at_again() {
    use pitstop_format::{ReadPlan, TagStep, TaggedRead};
    let (disk, container) = sealed();
    container.close().unwrap();
    for (damaged_looks, is_checked) in [(1, true), (2, false)] {
        let container = open(&disk);
        let slab = place_of(&container, "ci", 0) / SLAB_LEN;
        let (volume, mut plan) = (container.volume("ci").unwrap(), ReadPlan::default());
        volume.plan_read(0..512, &mut plan).unwrap();
        let (mut read, mut looks) = (TaggedRead::of_plan(&plan), 0);
        while let TagStep::NeedTags(load) = container.look_up_tags(&mut read) {
            let mut page = [0; 4096];
            container.disk().read_at(&mut page, load.offset()).unwrap();
            if looks < damaged_looks {
                page[slab as usize % 8 * 512 + 400] ^= 1;
            }
            looks += 1;
            container.install_tags(&mut read, load, &page);
        }
        let check = read.into_parts().next().unwrap().check;
        assert_eq!((looks, check.is_some()), (2, is_checked));
        drop((plan, volume, check));
        container.close().unwrap();
    }
}
