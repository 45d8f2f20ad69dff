//! Opens a container that somebody else made and works with it as the daemon and the command would.
//!
//! What must hold of any bytes: nothing panics, hangs or takes memory without bound. What must hold once opening for
//! writing has accepted them: a volume shows what was written to it, and nothing that was written to another; what the
//! container showed it goes on showing, over a snapshot, background work, and closing and opening again; the work breaks
//! no rule that was not broken before; a container that the checker calls clean opens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pitstop_format::check::{CheckReport, Outcome, Severity, check};
use pitstop_format::testing::SimDisk;
use pitstop_format::{Container, Content, Disk, Error, HydrateStep, Listing, OpenMode, ViewEnd, VolumeIo};

const BLOCK: usize = 4096;
/// Volumes that are looked at.
const VOLUMES: usize = 4;
/// Bytes that the file may grow by.
const GROWTH: u64 = 64 << 20;

type Shown = BTreeMap<(String, u64), Vec<u8>>;

/// Does everything that is to be done with one container.
pub fn exercise(disk: &Arc<SimDisk>) {
    let before = check(&**disk);
    let (_, writes) = disk.counts();
    let read_only = Container::open(disk.clone(), OpenMode::ReadOnly);
    if let Ok(container) = &read_only {
        describe(container);
        drop(shown(container));
    }
    assert_eq!(disk.counts().1, writes, "opening for reading has written");
    drop(read_only);
    disk.limit(Some(disk.len().expect("a disk in memory has a length") + GROWTH));
    let container = match Container::open(disk.clone(), OpenMode::ReadWrite) {
        Ok(container) => container,
        Err(error) => {
            let clean = before.as_ref().is_ok_and(|report| report.outcome() == Outcome::Clean);
            let refused = match &error {
                Error::ReadOnlyFeatures { .. } => true,
                Error::Corrupt(why) => why.rule == "CON-18",
                _ => false,
            };
            assert!(!clean || refused, "the checker calls clean what cannot be opened: {error}");
            return;
        }
    };
    let known = broken(before.as_ref().unwrap_or_else(|error| panic!("opened, but not to be checked: {error}")));
    let kept = work(&container);
    let failed = container.failure().is_some();
    assert!(!failed, "the container failed on a disk without faults: {:?}", container.failure());
    container.close().unwrap_or_else(|error| panic!("closing: {error}"));
    let after = check(&**disk).unwrap_or_else(|error| panic!("checking after the work: {error}"));
    let new: Vec<_> = after.findings.iter().filter(|found| is_worse(found.id, &known, found.severity)).collect();
    assert!(new.is_empty(), "the work has broken rules: {new:#?} before: {before:#?}");
    let container = match Container::open(disk.clone(), OpenMode::ReadWrite) {
        Ok(container) => container,
        Err(error) => panic!("opening again: {error}"),
    };
    compare(&kept, &shown(&container));
}

/// Corruptions, by id.
fn broken(report: &CheckReport) -> BTreeSet<&'static str> {
    report.findings.iter().filter(|found| found.severity != Severity::Note).map(|found| found.id).collect()
}

fn is_worse(id: &str, known: &BTreeSet<&'static str>, severity: Severity) -> bool {
    // An entry that names a free slab is never followed; the slab is given to another, and then both name it.
    let follows = id == "CHK-17" && known.contains("CHK-16");
    severity != Severity::Note && !known.contains(id) && !follows
}

/// What the container says of itself.
fn describe(container: &Container) {
    drop(format!("{:?} {:?} {:?}", container.info(), container.volumes(), container.layers()));
}

fn names(container: &Container) -> Vec<String> {
    container.volumes().into_iter().map(|volume| volume.name).take(VOLUMES).collect()
}

/// Places of a volume that are looked at: around chunks and tables, and its last block.
fn places(size: u64) -> impl Iterator<Item = u64> {
    let last = (size - 1) / BLOCK as u64 * BLOCK as u64;
    let chunk = 256 << 10;
    let table = 2u64 << 30;
    [0, BLOCK as u64, chunk, 2 * chunk, 3 << 20, table, 2 * table, 2 * table + chunk, last]
        .into_iter()
        .filter(move |at| *at <= last)
}

/// The blocks that can be read.
fn shown(container: &Container) -> Shown {
    let mut shown = Shown::new();
    for name in names(container) {
        let Ok(volume) = container.volume(&name) else { continue };
        let (size, io) = (volume.size(), VolumeIo::new(container, volume));
        for at in places(size) {
            drop(io.block_status(at..size.min(at + (1 << 20))));
        }
        for at in places(size) {
            let mut block = vec![0; (size - at).min(BLOCK as u64) as usize];
            if io.read_at(&mut block, at).is_ok() {
                shown.insert((name.clone(), at), block);
            }
        }
    }
    told(container, &shown);
    shown
}

/// What maps and differences say is so, as far as it can be read.
fn told(container: &Container, shown: &Shown) {
    let names = names(container);
    for (name, other) in names.iter().zip(names.iter().cycle().skip(1)) {
        let Ok(volume) = container.volume(name) else { continue };
        for at in places(volume.size()).step_by(4) {
            let Some(block) = shown.get(&(name.clone(), at)) else { continue };
            if let Ok(step) = container.map(name, at, Listing::Ranges(1)) {
                let range = step.ranges.first().expect("there is no gap before the end");
                assert!(range.start == at && step.next.is_none_or(|next| next == at + range.length));
                assert!(range.content == Content::Data || block.iter().all(|byte| *byte == 0), "{name} at {at}");
            }
            let Some(of_other) = shown.get(&(other.clone(), at)) else { continue };
            if let Ok(step) = container.diff(name, other, at, Listing::Ranges(1)) {
                let end = step.ranges.first().map_or(step.next.unwrap_or(u64::MAX), |range| range.start);
                let same = (end - at).min(block.len().min(of_other.len()) as u64) as usize;
                assert!(block[..same] == of_other[..same], "{name} and {other} at {at}");
            }
        }
    }
}

fn compare(expected: &Shown, found: &Shown) {
    for (place, block) in expected {
        let Some(now) = found.get(place) else { panic!("{place:?} cannot be read any more") };
        assert!(now == block, "{place:?} shows {:?}..., not {:?}...", &now[..8], &block[..8]);
    }
}

/// The volume that a view is one of.
fn source_of(container: &Container, view: &str) -> Option<String> {
    container.volumes().into_iter().find(|volume| volume.name == view)?.view_of
}

/// As [`compare`], of the volumes that are looked at: an account may have others.
fn compare_visible(kept: &Shown, container: &Container) {
    let (now, names) = (shown(container), names(container));
    let visible = kept.iter().filter(|((name, _), _)| names.contains(name));
    compare(&visible.map(|(place, block)| (place.clone(), block.clone())).collect(), &now);
}

/// Writes a block of its own to each place, and keeps the account.
fn stamp(container: &Container, kept: &mut Shown, round: u8) {
    for (number, name) in names(container).into_iter().enumerate() {
        let Ok(volume) = container.volume(&name) else { continue };
        let (size, io) = (volume.size(), VolumeIo::new(container, volume));
        let source = source_of(container, &name);
        for (index, at) in places(size).enumerate() {
            if (index + number + usize::from(round)) % 2 == 0 {
                continue;
            }
            let len = (size - at).min(BLOCK as u64) as usize;
            let mut block = format!("round {round} of {name} at {at}").into_bytes();
            block.resize(len, round);
            match io.write_at(&block, at) {
                Ok(()) => {
                    // What is written through a view is seen by its source.
                    if let Some(of_source) = source.as_ref().and_then(|name| kept.get_mut(&(name.clone(), at))) {
                        of_source.clone_from(&block);
                    }
                    kept.insert((name.clone(), at), block);
                }
                Err(Error::Corrupt(_) | Error::NoSpace { .. }) => {}
                Err(error) => panic!("write to {name} at {at}: {error}"),
            }
        }
    }
}

/// Gives up a place of each volume, in the middle of a chunk or by the table.
fn discard(container: &Container, kept: &mut Shown) {
    for name in names(container) {
        let Ok(volume) = container.volume(&name) else { continue };
        let (size, io) = (volume.size(), VolumeIo::new(container, volume));
        let source = source_of(container, &name);
        let shows = |of: &String| *of == name || source.as_ref() == Some(of);
        // A whole table is a thing of its own, and takes its time: one volume is enough.
        let far = 2u64 << 30;
        let whole = if name == "fuzz-copy" { far..2 * far } else { far..far + (1 << 19) };
        for range in [BLOCK as u64..8192, whole] {
            if range.end <= size && tolerate("discard", io.discard(range.clone())).is_some() {
                let given_up = kept.iter_mut().filter(|((of, at), _)| shows(of) && range.contains(at));
                given_up.for_each(|(_, block)| block.fill(0));
            } else {
                kept.retain(|(of, at), _| !shows(of) || !range.contains(at));
            }
        }
    }
}

/// Begins hydrations and takes all a few steps further, which changes nobody's contents.
fn hydrate(container: &Container, steps: usize) {
    for name in names(container) {
        tolerate("hydrate", container.hydrate(&name));
    }
    for hydration in container.hydrations().into_iter().take(VOLUMES) {
        for _ in 0..steps {
            match tolerate("step of a hydration", container.hydrate_step(hydration.layer, 1 << 20)) {
                Some(HydrateStep::Copied(_)) => {}
                Some(HydrateStep::Blocked(_)) => drop(tolerate("background work", container.settle(10))),
                Some(HydrateStep::Ended(_)) | None => break,
            }
        }
    }
    assert!(container.hydrations().iter().all(|hydration| hydration.copied_bytes <= hydration.total_bytes));
}

/// Whether an error is a refusal that a hostile but accepted container may bring about.
fn tolerate<T>(what: &str, result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(done) => Some(done),
        Err(
            Error::Corrupt(_)
            | Error::NoSpace { .. }
            | Error::TooManyLayers { .. }
            | Error::Hydrating { .. }
            | Error::InView { .. }
            | Error::VolumeExists { .. }
            | Error::NoSuchVolume { .. },
        ) => None,
        Err(error) => panic!("{what}: {error}"),
    }
}

/// Ends all views, in turns one way and the other; after a drop the source shows what the view shows.
fn end_views(container: &Container, kept: &mut Shown) {
    let views = container.volumes().into_iter().filter_map(|volume| Some((volume.name, volume.view_of?)));
    for (number, (view, source)) in views.collect::<Vec<_>>().into_iter().enumerate() {
        let end = if number % 2 == 0 { ViewEnd::Drop } else { ViewEnd::Keep };
        if tolerate("end of a view", container.end_view(&view, end)).is_some() && end == ViewEnd::Drop {
            kept.retain(|(name, _), _| *name != source);
            let shown: Vec<_> = kept.iter().filter(|((name, _), _)| *name == view).collect();
            let shown: Vec<_> = shown.into_iter().map(|((_, at), block)| (*at, block.clone())).collect();
            kept.extend(shown.into_iter().map(|(at, block)| ((source.clone(), at), block)));
        }
    }
}

/// Commands and writes; returns what the volumes show at the end.
fn work(container: &Container) -> Shown {
    let mut kept = shown(container);
    stamp(container, &mut kept, 1);
    compare(&kept, &shown(container));
    tolerate("commit", container.commit());
    let first = names(container).into_iter().next();
    if let Some(name) = &first
        && tolerate("snapshot", container.snapshot(name, "fuzz-copy")).is_some()
    {
        let copied = kept.iter().filter(|((of, _), _)| of == name);
        let copied: Vec<_> = copied.map(|((_, at), block)| (("fuzz-copy".to_owned(), *at), block.clone())).collect();
        kept.extend(copied);
    }
    if tolerate("create", container.create_volume("fuzz-new", 3 << 30)).is_some() {
        let io = VolumeIo::new(container, container.volume("fuzz-new").expect("made just now"));
        for at in places(3 << 30) {
            let mut block = vec![1; BLOCK];
            if tolerate("read", io.read_at(&mut block, at)).is_some() {
                assert!(block == vec![0; BLOCK], "a new volume shows {:?}... at {at}", &block[..8]);
            }
        }
    }
    hydrate(container, 4);
    stamp(container, &mut kept, 2);
    discard(container, &mut kept);
    compare_visible(&kept, container);
    end_views(container, &mut kept);
    compare_visible(&kept, container);
    tolerate("background work", container.settle(60));
    hydrate(container, 20);
    // As a user would: the copy takes the contents of the last volume.
    if let Some(last) = names(container).into_iter().next_back()
        && last != "fuzz-copy"
        && tolerate("refresh", container.refresh("fuzz-copy", &last)).is_some()
    {
        kept.retain(|(name, _), _| name != "fuzz-copy");
    }
    if let Some(name) = &first
        && tolerate("delete", container.delete_volume(name)).is_some()
    {
        kept.retain(|(of, _), _| of != name);
    }
    tolerate("background work", container.settle(200));
    // Names beyond the first few come into view when one is deleted.
    let now = shown(container);
    kept.retain(|(name, _), _| now.keys().any(|(there, _)| there == name));
    compare(&kept, &now);
    kept
}

/// Opens the bytes as a container file of their own length.
pub fn exercise_bytes(bytes: &[u8]) {
    let disk = SimDisk::new();
    disk.grow(bytes.len() as u64).expect("a disk in memory grows");
    disk.write_at(bytes, 0).expect("within the disk");
    exercise(&disk);
}
