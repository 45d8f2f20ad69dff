//! Backups' instants and original images, each promise by itself.
//!
//! req: R19, R20, R21, R22. Rules: BAK-1 to BAK-9, BAK-26, BAK-28, BAK-40, CAT-15, LAY-14.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{io, new_container};
use pitstop_format::check::{Outcome, check};
use pitstop_format::{
    Backup, CacheOptions, Container, Content, DiffRange, Durability, Error, HydrateEnd, HydrateStep, Listing,
    Maintained, OpenMode, ViewEnd, VolumeChange, VolumeIo,
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 4 * MIB;
const BLOCK: u64 = 4096;

fn fill(container: &Container, name: &str, range: std::ops::Range<u64>, byte: u8) {
    io(container, name).write_at(&vec![byte; (range.end - range.start) as usize], range.start).unwrap();
}

/// A volume of ones.
fn ones() -> (std::sync::Arc<pitstop_format::testing::SimDisk>, Container) {
    let (disk, container) = new_container(MIB);
    container.create_volume("v", SIZE).unwrap();
    fill(&container, "v", 0..SIZE, 1);
    (disk, container)
}

fn shown(container: &Container, backup: &Backup) -> Vec<u8> {
    let mut bytes = vec![0; backup.instant().size() as usize];
    VolumeIo::new(container, backup.instant().clone()).read_at(&mut bytes, 0).unwrap();
    bytes
}

/// All ranges of the steps, two a step.
fn ranges(step: impl Fn(u64, Listing) -> pitstop_format::Result<pitstop_format::DiffStep>) -> Vec<DiffRange> {
    let (mut all, mut next) = (Vec::new(), Some(0));
    while let Some(start) = next {
        let found = step(start, Listing::Ranges(2)).unwrap();
        all.extend(found.ranges);
        next = found.next;
    }
    all
}

fn limit(bytes: u64) -> CacheOptions {
    CacheOptions { limit_bytes: Some(bytes), ..CacheOptions::default() }
}

#[test]
fn an_instant_holds_what_was_there_and_nobody_can_name_it() {
    let (_, container) = ones();
    let before = container.info();
    let backup = container.begin_backup("v", None).unwrap();
    fill(&container, "v", 0..SIZE, 2);
    assert_eq!(container.volumes().len(), 1);
    assert_eq!(container.info().volume_count, before.volume_count);
    assert_eq!(container.instants(), [backup.id()]);
    for gone in [container.volume("").err(), container.delete_volume("").err(), container.snapshot("", "copy").err()] {
        assert!(matches!(gone, Some(Error::NoSuchVolume { .. })), "{gone:?}");
    }
    assert!(matches!(container.create_volume("", MIB), Err(Error::BadName { .. })));
    // Whatever becomes of the source (BAK-4).
    container.rename_volume("v", "w").unwrap();
    container.create_volume("v", MIB).unwrap();
    container.refresh("w", "v").unwrap();
    assert!(shown(&container, &backup) == vec![1; SIZE as usize]);
    container.delete_volume("w").unwrap();
    container.settle(10_000).unwrap();
    assert!(shown(&container, &backup) == vec![1; SIZE as usize]);
    // And then it is gone, with its space.
    backup.release().unwrap();
    backup.release().unwrap();
    assert_eq!((container.instants(), backup.cost()), (vec![], None));
    container.settle(10_000).unwrap();
    container.commit().unwrap();
    container.settle(10_000).unwrap();
    assert_eq!(container.layers().len(), 1, "{:?}", container.layers());
}

#[test]
fn original_images_are_of_what_was_written_between_the_two_instants() {
    let (_, container) = ones();
    fill(&container, "v", 2 * MIB..SIZE, 3);
    let backup = container.begin_backup("v", None).unwrap();
    assert!(matches!(backup.written(0, Listing::Counts), Err(Error::VolumeGone { .. })));
    fill(&container, "v", 10 * BLOCK..12 * BLOCK, 9);
    fill(&container, "v", 10 * BLOCK..11 * BLOCK, 8); // in place
    io(&container, "v").discard(SIZE - BLOCK..SIZE).unwrap();
    container.snapshot("v", "kept").unwrap();
    fill(&container, "v", MIB..MIB + 512, 7);
    backup.end_bulk().unwrap();
    fill(&container, "v", 3 * MIB..3 * MIB + BLOCK, 6);
    container.delete_volume("kept").unwrap();
    container.settle(10_000).unwrap();
    let found: Vec<_> =
        ranges(|at, listing| backup.written(at, listing)).iter().map(|r| (r.start, r.length, r.b)).collect();
    let expected =
        [(10 * BLOCK, 2 * BLOCK, Content::Data), (MIB, BLOCK, Content::Data), (SIZE - BLOCK, BLOCK, Content::Data)];
    assert_eq!(found, expected);
    let mut instant = vec![1; SIZE as usize];
    instant[2 * MIB as usize..].fill(3);
    assert!(shown(&container, &backup) == instant);
    backup.release().unwrap();
    assert_eq!(container.instants(), []);
}

#[test]
fn reading_the_live_volume_is_in_vain_once_it_was_refreshed_or_deleted() {
    let (_, container) = ones();
    container.snapshot("v", "copy").unwrap();
    let backup = container.begin_backup("v", None).unwrap();
    backup.check_source().unwrap();
    container.rename_volume("v", "w").unwrap();
    container.snapshot("w", "more").unwrap();
    backup.check_source().unwrap();
    // Back to just what it was: what was read in between is not known.
    container.refresh("w", "copy").unwrap();
    assert!(matches!(backup.check_source(), Err(Error::SourceChanged { name }) if name == "w"));
    assert!(matches!(backup.end_bulk(), Err(Error::SourceChanged { .. })));
    backup.release().unwrap();
    let backup = container.begin_backup("w", None).unwrap();
    container.delete_volume("w").unwrap();
    assert!(matches!(backup.end_bulk(), Err(Error::SourceChanged { .. })));
    backup.release().unwrap();
}

#[test]
fn what_changed_since_a_copy_is_listed_with_what_is_there_now() {
    let (_, container) = ones();
    container.snapshot("v", "monday").unwrap();
    fill(&container, "v", 0..BLOCK, 2);
    io(&container, "v").discard(MIB..MIB + BLOCK).unwrap();
    let backup = container.begin_backup("v", None).unwrap();
    fill(&container, "v", 2 * MIB..3 * MIB, 3);
    let base = backup.set_base("monday").unwrap();
    assert!(base.unix_ns < backup.contents().unix_ns && base.id != backup.contents().id);
    let found: Vec<_> =
        ranges(|at, listing| backup.changed_since(at, listing)).iter().map(|r| (r.start, r.a)).collect();
    assert_eq!(found, [(0, Content::Data), (MIB, Content::Zero)]);
    container.create_volume("small", MIB).unwrap();
    assert!(matches!(backup.set_base("small"), Err(Error::BadSize { .. })));
    assert!(matches!(backup.set_base("none"), Err(Error::NoSuchVolume { .. })));
    container.refresh("monday", "v").unwrap();
    assert!(matches!(backup.changed_since(0, Listing::Counts), Err(Error::SourceChanged { name }) if name == "monday"));
    backup.release().unwrap();
}

// rules: BAK-7, BAK-28
#[test]
fn no_instant_is_made_of_a_volume_in_a_view_and_a_view_ends_what_reads_its_source() {
    let (_, container) = ones();
    for end in [ViewEnd::Drop, ViewEnd::Keep] {
        let backup = container.begin_backup("v", None).unwrap();
        backup.check_source().unwrap();
        container.create_view("v", "view").unwrap();
        for name in ["v", "view"] {
            assert!(matches!(container.begin_backup(name, None), Err(Error::InView { .. })));
        }
        fill(&container, "v", 0..2 * BLOCK, 1);
        fill(&container, "view", 0..3 * BLOCK, 1);
        assert!(matches!(backup.end_bulk(), Err(Error::SourceChanged { .. })));
        container.end_view("view", end).unwrap();
        assert!(matches!(backup.end_bulk(), Err(Error::SourceChanged { .. })));
        assert!(shown(&container, &backup) == vec![1; SIZE as usize]);
        backup.release().unwrap();
        container.delete_volume("view").unwrap();
    }
    assert_eq!(container.instants(), []);
}

// rules: BAK-6, BAK-9
#[test]
fn what_was_written_and_became_zeros_again_is_an_original_image() {
    let (_, container) = ones();
    io(&container, "v").discard(MIB..2 * MIB).unwrap();
    container.create_volume("new", SIZE).unwrap();
    for name in ["v", "new"] {
        let backup = container.begin_backup(name, None).unwrap();
        fill(&container, name, MIB..MIB + 3 * BLOCK, 2);
        // Here the live volume would be read.
        io(&container, name).discard(MIB..2 * MIB).unwrap();
        backup.end_bulk().unwrap();
        let found = ranges(|at, listing| backup.written(at, listing));
        let [DiffRange { start: MIB, length, b: Content::Zero, .. }] = found[..] else { panic!("{name}: {found:?}") };
        assert!(length >= 3 * BLOCK, "{name}: {length}");
        backup.release().unwrap();
    }
}

// rule: BAK-26
#[test]
fn volumes_of_any_durability_are_backed_up_but_undefined_ones_are_not() {
    let (disk, container) = ones();
    container.snapshot("v", "disposable").unwrap();
    let none = VolumeChange { durability: Some(Durability::None), defined: false };
    container.set_volume("disposable", none).unwrap();
    let backup = container.begin_backup("disposable", None).unwrap();
    fill(&container, "disposable", 0..BLOCK, 2);
    assert!(shown(&container, &backup) == vec![1; SIZE as usize]);
    backup.release().unwrap();
    container.commit().unwrap();
    drop((backup, container)); // not closed
    let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
    assert!(matches!(container.begin_backup("disposable", None), Err(Error::Undefined { .. })));
    let backup = container.begin_backup("v", None).unwrap();
    assert!(matches!(backup.set_base("disposable"), Err(Error::Undefined { .. })));
    backup.release().unwrap();
}

// rule: BAK-3
#[test]
fn an_opening_for_changes_releases_what_backups_held() {
    let (disk, container) = ones();
    container.create_cache("nightly", limit(MIB)).unwrap();
    let backup = container.begin_backup("v", Some("nightly")).unwrap();
    fill(&container, "v", 0..SIZE, 2);
    backup.end_bulk().unwrap();
    container.commit().unwrap();
    assert_eq!(container.instants().len(), 2);
    drop((backup, container));
    // For reading, nothing changes; the container is sound all the time.
    let reader = Container::open(disk.clone(), OpenMode::ReadOnly).unwrap();
    assert_eq!((reader.instants().len(), reader.volumes().len()), (2, 1));
    drop(reader);
    assert_eq!(check(&*disk).unwrap().outcome(), Outcome::Clean);
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    assert_eq!(container.instants(), []);
    let [cache] = &container.caches()[..] else { panic!("{:?}", container.caches()) };
    assert_eq!((&*cache.name, cache.used_bytes, cache.backups), ("nightly", 0, 0));
    container.settle(10_000).unwrap();
    container.close().unwrap();
    assert_eq!(check(&*disk).unwrap().outcome(), Outcome::Clean);
}

fn make_real(container: &Container, name: &str) {
    let layer = container.hydrate(name).unwrap().unwrap();
    loop {
        match container.hydrate_step(layer, MIB).unwrap() {
            HydrateStep::Copied(_) => {}
            HydrateStep::Blocked(_) => drop(container.maintain().unwrap()),
            HydrateStep::Ended(HydrateEnd::Done) => return,
            HydrateStep::Ended(end) => panic!("{end:?}"),
        }
    }
}

// req: R22; rules: LAY-14, BAK-40
#[test]
fn contents_are_known_again_wherever_they_are_and_no_others_are_taken_for_them() {
    let (disk, container) = ones();
    let id_of = |container: &Container, name: &str| {
        let backup = container.begin_backup(name, None).unwrap();
        backup.release().unwrap();
        backup.contents()
    };
    container.create_volume("empty", SIZE).unwrap();
    assert!(id_of(&container, "empty").id.is_nil());
    container.snapshot("v", "monday").unwrap();
    let monday = container.contents("monday").unwrap();
    let instant = container.volumes().iter().find_map(|volume| volume.origin.clone()).unwrap().instant_unix_ns;
    assert_eq!(monday.unix_ns, instant);
    // The instant of the contents is that of the copy, whenever they are backed up.
    assert_eq!([id_of(&container, "monday"), id_of(&container, "v")], [monday; 2]);
    // A view through which nothing is written changes nothing.
    for (end, name) in [(ViewEnd::Drop, "v"), (ViewEnd::Keep, "v"), (ViewEnd::Keep, "empty")] {
        let before = container.contents(name).unwrap();
        container.create_view(name, "view").unwrap();
        assert!(matches!(container.contents(name), Err(Error::InView { .. })));
        assert_eq!(container.last_contents(name).unwrap().id, before.id);
        container.end_view("view", end).unwrap();
        assert_eq!([name, "view"].map(|name| container.contents(name).unwrap().id), [before.id; 2]);
        container.delete_volume("view").unwrap();
    }
    fill(&container, "v", 0..BLOCK, 2);
    let tuesday = id_of(&container, "v");
    assert!(tuesday.id != monday.id && tuesday.unix_ns > monday.unix_ns);
    container.snapshot("v", "tuesday").unwrap();
    // Merged, hydrated, opened again, written to: what they were is known.
    make_real(&container, "monday");
    while container.maintain().unwrap() == Maintained::Worked {}
    assert_eq!(container.contents("monday").unwrap(), monday);
    assert_eq!(id_of(&container, "monday"), monday);
    container.delete_volume("v").unwrap();
    while container.maintain().unwrap() == Maintained::Worked {}
    container.close().unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    assert_eq!([id_of(&container, "monday"), id_of(&container, "tuesday")], [monday, tuesday]);
    fill(&container, "monday", 0..BLOCK, 3);
    let written = [(); 2].map(|()| container.contents("monday").unwrap());
    assert_eq!(container.last_contents("monday").unwrap(), monday);
    let frozen = id_of(&container, "monday");
    assert_eq!(container.last_contents("monday").unwrap(), frozen);
    let ids = [monday.id, tuesday.id, written[0].id, written[1].id, frozen.id];
    assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), ids.len(), "{ids:?}");
    container.close().unwrap();
    // Two copies of the file that go on by themselves.
    let other = disk.copy();
    let [one, two] = [disk, other].map(|disk| {
        let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
        assert_eq!(container.last_contents("tuesday").unwrap(), tuesday);
        fill(&container, "tuesday", 0..BLOCK, 4);
        id_of(&container, "tuesday")
    });
    assert!(one.id != two.id);
}
