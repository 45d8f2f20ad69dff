//! What only a container that somebody has tampered with, or a very deep one, shows of hydrations.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::check::{Outcome, check};
use crate::container::{CreateOptions, HydrateEnd, HydrateStep, Listing, OpenMode};
use crate::io::VolumeIo;
use crate::layout::slot::Slot;
use crate::testing::SimDisk;
use crate::units::BLOCK_LEN;

const SIZE: u64 = 4 * SLAB_LEN;

fn open(disk: &Arc<SimDisk>) -> Container {
    Container::open(disk.clone(), OpenMode::ReadWrite).unwrap()
}

/// A container with the smallest journal, and `golden` in it.
fn golden(size: u64) -> (Arc<SimDisk>, Container) {
    let disk = SimDisk::new();
    Container::create(disk.clone(), &CreateOptions { journal_len_bytes: SLAB_LEN, ..Default::default() }).unwrap();
    let container = open(&disk);
    container.create_volume("golden", size).unwrap();
    (disk, container)
}

fn write(container: &Container, name: &str, block: u64, value: u8) {
    let volume = VolumeIo::new(container, container.volume(name).unwrap());
    volume.write_at(&[value; BLOCK_LEN as usize], block * BLOCK_LEN).unwrap();
}

fn contents(container: &Container, name: &str) -> Vec<u8> {
    let volume = container.volume(name).unwrap();
    let mut bytes = vec![0; volume.size() as usize];
    VolumeIo::new(container, volume).read_at(&mut bytes, 0).unwrap();
    bytes
}

/// `ci` on as many layers of golden, each kept apart by a copy that uses it, `kept-NUMBER`.
fn deep(size: u64, layers: u64) -> (Arc<SimDisk>, Container) {
    let (disk, container) = golden(size);
    for number in 0..layers {
        write(&container, "golden", number * (size / BLOCK_LEN / layers).max(1) % (size / BLOCK_LEN), number as u8 | 1);
        container.snapshot("golden", &format!("kept-{number}")).unwrap();
    }
    container.snapshot("golden", "ci").unwrap();
    (disk, container)
}

/// Makes `change` of the record of each of these layers.
fn tamper(container: &Container, layers: &[LayerId], change: impl Fn(&mut LayerRecord)) {
    for few in layers.chunks(16) {
        let mut state = container.lock_for(|_| Ok(Slots { new: 0, changed: few.len() })).unwrap();
        few.iter().for_each(|&layer| state.update_layer(layer, &change));
        drop(state);
        container.commit().unwrap();
    }
}

/// The layers below a volume's head.
fn below_head(container: &Container, name: &str) -> Vec<LayerId> {
    let state = container.shared.lock();
    let id = state.volume_id(name).unwrap();
    state.chain(id).iter().skip(1).map(|(layer, _)| *layer).collect()
}

fn owned(container: &Container, name: &str) -> usize {
    let state = container.shared.lock();
    let id = state.volume_id(name).unwrap();
    let is_its = |slot: &&Slot| matches!(slot, Slot::Layer(record) if record.owner == Some(id));
    state.slots().iter().filter(is_its).count()
}

// rules: LAY-41, JNL-31 — somebody says that the volume owns what is below its copy layer: it ends in bounded batches, and
// a crash between two of them leaves a whole container.
#[test]
fn losing_more_layers_than_a_batch_takes_does_not_overrun_the_journal() {
    let (disk, container) = deep(SIZE, 1100);
    let copy = container.hydrate("ci").unwrap().unwrap();
    let ci = container.shared.lock().volume_id("ci").unwrap();
    let golden: Vec<_> = below_head(&container, "ci").into_iter().filter(|&layer| layer != copy).collect();
    assert_eq!(golden.len(), 1100);
    tamper(&container, &golden, |record| record.owner = Some(ci));
    let before = contents(&container, "ci");
    let mut owners = vec![owned(&container, "ci")];
    let mut steps = 0;
    while container.hydrate_step(copy, SLAB_LEN).unwrap() != HydrateStep::Ended(HydrateEnd::Done) {
        container.maintain().unwrap();
        steps += 1;
        assert!(steps < 1000);
        let now = owned(&container, "ci");
        if owners.last() != Some(&now) {
            owners.push(now);
            let report = check(&*disk.copy()).unwrap();
            assert_eq!(report.outcome(), Outcome::Clean, "{:#?}", report.findings);
        }
    }
    assert_eq!((owned(&container, "ci"), container.failure()), (1, None));
    let most = container.shared.lock().most_doomed();
    assert!(owners.windows(2).all(|pair| pair[0] - pair[1] <= most) && owners.len() > 1100 / most, "{owners:?}");
    assert!(contents(&container, "ci") == before);
    // What it has in common with its source is tracked all the same (REL-2).
    let tracked =
        || container.volumes().into_iter().find(|volume| volume.name == "ci").unwrap().relation.unwrap().tracked;
    assert!(tracked());
    assert_eq!(container.diff("golden", "ci", 0, Listing::Ranges(10)).unwrap().ranges, []);
    container.settle(10_000).unwrap();
    assert!(tracked());
    container.close().unwrap();
    assert!(contents(&open(&disk), "ci") == before);
}

// rule: LAY-42 — little data in a deep chain: what a step costs is the layers that it walks, not the bytes that it copies.
#[test]
fn a_step_looks_at_a_bounded_number_of_layers() {
    let (_disk, container) = deep(4 << 30, 400);
    let copy = container.hydrate("ci").unwrap().unwrap();
    let passed = || container.hydration(copy).unwrap().copied_bytes / SLAB_LEN;
    for _ in 0..3 {
        let before = passed();
        assert!(matches!(container.hydrate_step(copy, u64::MAX).unwrap(), HydrateStep::Copied(_)));
        let now = passed() - before;
        assert!((10..=65_536 / 400 + 1).contains(&now), "{now} chunks of 400 layers each");
    }
}

// rule: LAY-42 — each table page counts that it reads, also those that answer the same look.
#[test]
fn a_step_reads_a_bounded_number_of_table_pages() {
    let (disk, container) = deep(64 << 20, 700);
    let copy = container.hydrate("ci").unwrap().unwrap();
    let before = contents(&container, "ci");
    container.close().unwrap();
    let container = open(&disk);
    let mut resident = container.resident_pages();
    let mut steps = 0;
    while container.hydrate_step(copy, u64::MAX).unwrap() != HydrateStep::Ended(HydrateEnd::Done) {
        let now = container.resident_pages();
        assert!(now - resident <= 256 + 64, "{} pages in step {steps}", now - resident);
        resident = now;
        container.maintain().unwrap();
        steps += 1;
        assert!(steps < 100);
    }
    assert!(resident > 600 && contents(&container, "ci") == before);
}

/// Layers below a volume's head that have no owner.
fn orphans(container: &Container, name: &str) -> usize {
    let layers = below_head(container, name);
    let state = container.shared.lock();
    layers.into_iter().filter(|&layer| state.layer_record(layer).owner.is_none()).count()
}

// rule: LAY-37 — more layers without an owner than a batch takes: all become the volume's, none is copied.
#[test]
fn many_layers_that_only_the_volume_uses_become_its_own() {
    let (disk, container) = golden(SIZE);
    write(&container, "golden", 0, 1);
    write(&container, "golden", 64, 1);
    container.snapshot("golden", "v-0").unwrap();
    for number in 0..300 {
        let (now, next) = (format!("v-{number}"), format!("v-{}", number + 1));
        write(&container, &now, 1 + number % 60, number as u8 | 1);
        container.snapshot(&now, &next).unwrap();
        container.delete_volume(&now).unwrap();
    }
    let before = contents(&container, "v-300");
    assert_eq!(orphans(&container, "v-300"), 300);
    // A part of the command does no more than some batches of it; then other commands have their turn.
    let id = container.shared.lock().volume_id("v-300").unwrap();
    let in_batches = BATCHES_PER_STEP * container.shared.lock().most_doomed();
    assert!(in_batches < 300, "the command is one part");
    assert!(container.begin_hydration(id, "v-300").unwrap().is_continue());
    assert_eq!(orphans(&container, "v-300"), 300 - in_batches);
    container.rename_volume("v-300", "v").unwrap();
    container.rename_volume("v", "v-300").unwrap();
    let copy = container.hydrate("v-300").unwrap().unwrap();
    assert_eq!((orphans(&container, "v-300"), owned(&container, "v-300")), (0, 301));
    assert_eq!(container.hydrate_step(copy, u64::MAX).unwrap(), HydrateStep::Copied(2 * BLOCK_LEN));
    while container.hydrate_step(copy, u64::MAX).unwrap() != HydrateStep::Ended(HydrateEnd::Done) {
        container.maintain().unwrap();
    }
    container.snapshot("v-300", "copy").unwrap();
    container.delete_volume("golden").unwrap();
    assert_eq!(container.hydrate("v-300").unwrap(), None, "it is real");
    assert!(contents(&container, "v-300") == before);
    container.close().unwrap();
    assert_eq!(check(&*disk).unwrap().outcome(), Outcome::Clean);
}

// rule: LAY-39 — when others let go of more layers than a batch takes, all of these become the volume's; a command that
// has the lock of commands is not waited for.
#[test]
fn many_layers_that_others_let_go_of_become_the_volumes() {
    let (disk, container) = golden(SIZE);
    for number in 0..60 {
        write(&container, "golden", number, number as u8 | 1);
        container.snapshot("golden", "kept").unwrap();
        container.delete_volume("kept").unwrap();
    }
    container.snapshot("golden", "ci").unwrap();
    write(&container, "ci", 70, 7);
    let before = contents(&container, "ci");
    let copy = container.hydrate("ci").unwrap().unwrap();
    container.delete_volume("golden").unwrap();
    assert_eq!(orphans(&container, "ci"), 60);
    let control = crate::container::lock(&container.shared.control);
    assert!(matches!(container.hydrate_step(copy, 1).unwrap(), HydrateStep::Copied(_)));
    drop(control);
    assert_eq!(container.hydrate_step(copy, 1).unwrap(), HydrateStep::Ended(HydrateEnd::Done));
    assert_eq!((orphans(&container, "ci"), owned(&container, "ci")), (0, 61));
    container.snapshot("ci", "copy").unwrap();
    assert_eq!(container.hydrate("ci").unwrap(), None, "it stays real");
    assert!(contents(&container, "ci") == before && contents(&container, "copy") == before);
    container.close().unwrap();
    assert_eq!(check(&*disk).unwrap().outcome(), Outcome::Clean);
}
