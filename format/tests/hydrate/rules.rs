//! Rules that no other test would miss: for each, the state in which its obvious wrong version shows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};

use pitstop_format::testing::{Fault, Injection, Middle, SimDisk};
use pitstop_format::{
    Container, CreateOptions, Disk, Error, HydrateEnd, HydrateStep, HydrateWait, Planned, ReadPlan, SLAB_LEN, ViewEnd,
    VolumeState, check::check,
};

use crate::support::*;

// rule: LAY-31 — while a block is on its way into the copy layer, the one below is read; a crash then shows that, too.
#[test]
fn blocks_show_only_when_they_have_been_copied() {
    let (disk, container) = golden_and_ci();
    let before = contents(&container, "ci");
    let layer = container.hydrate("ci").unwrap().unwrap();
    let seen = Arc::new(AtomicU64::new(0));
    let (looked, handle, at_start) = (seen.clone(), container.clone(), before.clone());
    disk.set_hook(Some(Box::new(move |middle| {
        if middle == Middle::Write && looked.fetch_add(1, Ordering::Relaxed) < 3 {
            assert!(contents(&handle, "ci") == at_start);
        }
    })));
    assert_eq!(container.hydrate_step(layer, 2 * SLAB_LEN).unwrap(), HydrateStep::Copied(2 * SLAB_LEN));
    disk.set_hook(None);
    assert!(seen.load(Ordering::Relaxed) > 0, "nothing was written");
    assert!(contents(&container, "ci") == before);
    assert_eq!(run(&container, layer, ALL).0, HydrateEnd::Done);
    assert_clean(&disk, container);
}

// rule: LAY-33 — who is on the way to what is below still finds it.
#[test]
fn what_is_below_stays_until_requests_of_before_have_ended() {
    let (disk, container) = golden_and_ci();
    // Some slabs are freed first, so that this is not the very first period.
    container.create_volume("freed", SIZE).unwrap();
    fill(&container, "freed", 0..SLAB_LEN, 1);
    container.delete_volume("freed").unwrap();
    container.settle(1000).unwrap();
    let layer = container.hydrate("ci").unwrap().unwrap();
    let mut plan = ReadPlan::default();
    assert!(matches!(container.volume("ci").unwrap().plan_read(0..BLOCK, &mut plan).unwrap(), Planned::Ready(())));
    let mut waits = 0;
    for _ in 0..20 {
        match container.hydrate_step(layer, ALL).unwrap() {
            HydrateStep::Blocked(HydrateWait::Others) => waits += 1,
            HydrateStep::Copied(_) => {}
            other => panic!("{other:?} under a reader"),
        }
        // Not before the end is waited for: the reader then is of the very last period before it.
        if waits > 0 {
            container.maintain().unwrap();
        }
    }
    assert!(waits > 10);
    let progress = container.hydrations();
    assert_eq!((progress[0].copied_bytes, state(&container, "ci")), (SIZE, VolumeState::Hydrating));
    // Who begins now does not count.
    let mut late = ReadPlan::default();
    assert!(matches!(container.volume("ci").unwrap().plan_read(0..BLOCK, &mut late).unwrap(), Planned::Ready(())));
    drop(plan);
    assert_eq!(container.hydrate_step(layer, ALL).unwrap(), HydrateStep::Ended(HydrateEnd::Done));
    drop(late);
    assert_clean(&disk, container);
}

// rules: LAY-32, SNP-4 — the copy's instant comes, then the source is written, then what it has is left out.
#[test]
fn a_copy_of_a_volume_that_is_hydrated_does_not_need_what_was_left_out() {
    let (disk, container) = golden_and_ci();
    let before = contents(&container, "ci");
    let layer = container.hydrate("ci").unwrap().unwrap();
    let pending = container.begin_snapshot("ci", "copy").unwrap();
    fill(&container, "ci", 0..SLAB_LEN, 77);
    for _ in 0..20 {
        container.hydrate_step(layer, ALL).unwrap();
    }
    pending.finish().unwrap();
    run(&container, layer, ALL);
    assert_eq!(state(&container, "ci"), VolumeState::Real);
    container.delete_volume("golden").unwrap();
    container.settle(1000).unwrap();
    assert!(contents(&container, "copy") == before, "the copy has lost what its source overwrote");
    assert!(contents(&container, "ci")[..SLAB_LEN as usize].iter().all(|&byte| byte == 77));
    assert_clean(&disk, container);
}

// rules: LAY-32, LAY-34 — discarded after it was left out, a block reads as zeros, not as golden's.
#[test]
fn what_the_head_had_when_it_was_left_out_may_be_discarded() {
    let (disk, container) = golden_and_ci();
    fill(&container, "ci", 0..SLAB_LEN, 77);
    let layer = container.hydrate("ci").unwrap().unwrap();
    let copied = container.hydrate_step(layer, SLAB_LEN).unwrap();
    io(&container, "ci").discard(0..SLAB_LEN).unwrap();
    io(&container, "ci").discard(7 * SLAB_LEN..8 * SLAB_LEN).unwrap();
    let before = contents(&container, "ci");
    assert_eq!((copied, before[0]), (HydrateStep::Copied(SLAB_LEN), 0));
    assert_eq!(run(&container, layer, ALL).0, HydrateEnd::Done);
    assert!(contents(&container, "ci") == before);
    let container = reopen(&disk, container);
    assert!(contents(&container, "ci") == before);
    assert_clean(&disk, container);
}

// rule: LAY-32 — a block that the head has only claimed is copied: its write may be given up.
#[test]
fn a_write_that_is_given_up_leaves_nothing_out() {
    let (disk, container) = golden_and_ci();
    let before = contents(&container, "ci");
    let layer = container.hydrate("ci").unwrap().unwrap();
    let volume = container.volume("ci").unwrap();
    let Planned::Ready(ticket) = volume.plan_write(0..BLOCK, Waker::noop()).unwrap() else { panic!("not ready") };
    assert_eq!(container.hydrate_step(layer, SLAB_LEN).unwrap(), HydrateStep::Copied(SLAB_LEN));
    drop(ticket);
    assert_eq!(run(&container, layer, ALL).0, HydrateEnd::Done);
    assert!(contents(&container, "ci") == before);
    assert_clean(&disk, container);
}

// rules: LAY-31, LAY-35 — commands in the middle of a copy's write: what was on its way shows nowhere.
#[test]
fn commands_meet_a_block_on_its_way() {
    for command in 0..4 {
        let (disk, container) = golden_and_ci();
        container.create_volume("other", SIZE).unwrap();
        let before = contents(&container, "ci");
        let layer_id = container.hydrate("ci").unwrap().unwrap();
        container.hydrate_step(layer_id, SLAB_LEN).unwrap();
        if command == 2 {
            container.snapshot("ci", "copy").unwrap();
        }
        let handle = Mutex::new(Some(container.clone()));
        disk.set_hook(Some(Box::new(move |middle| {
            let Some(container) = handle.lock().unwrap().take_if(|_| middle == Middle::Write) else { return };
            match command {
                0 => container.cancel_hydration(container.hydrations()[0].layer).unwrap(),
                1 => drop(container.refresh("ci", "other").unwrap()),
                _ => container.delete_volume("ci").unwrap(),
            }
            container.settle(100).unwrap();
            fill(&container, "other", 0..SIZE, 99);
        })));
        let step = container.hydrate_step(layer_id, SLAB_LEN).unwrap();
        disk.set_hook(None);
        assert_eq!(step, HydrateStep::Ended(HydrateEnd::Cancelled), "command {command}");
        container.settle(1000).unwrap();
        assert!(contents(&container, "other").iter().all(|&byte| byte == 99), "command {command}");
        match command {
            0 => assert!(contents(&container, "ci") == before),
            1 => assert!(contents(&container, "ci").iter().all(|&byte| byte == 0)),
            2 => assert!(contents(&container, "copy") == before),
            _ => assert!(layer(&container, layer_id).is_none()),
        }
        assert_clean(&disk, container);
    }
}

// rules: LAY-37, LAY-7 — a layer that nobody owns any more and only this volume uses is not another's after a snapshot.
#[test]
fn layers_that_only_the_volume_uses_become_its_own() {
    let (disk, container) = golden_and_ci();
    container.snapshot("golden", "middle").unwrap();
    fill(&container, "middle", 0..SLAB_LEN, 60);
    container.snapshot("middle", "last").unwrap();
    container.delete_volume("middle").unwrap();
    let layer = container.hydrate("last").unwrap().unwrap();
    container.snapshot("last", "copy").unwrap();
    fill(&container, "last", BLOCK..2 * BLOCK, 61);
    container.snapshot("last", "second").unwrap();
    let before = ["last", "copy", "second"].map(|name| contents(&container, name));
    assert_eq!(run(&container, layer, ALL), (HydrateEnd::Done, 5 * SLAB_LEN + 6 * BLOCK));
    assert_eq!(state(&container, "last"), VolumeState::Real);
    container.delete_volume("golden").unwrap();
    container.settle(1000).unwrap();
    assert_eq!(["last", "copy", "second"].map(|name| contents(&container, name)), before);
    assert_clean(&disk, container);
}

// rule: LAY-39 — when nobody else uses what is below, nothing more has to be copied.
#[test]
fn it_is_done_when_others_let_go_of_what_is_below() {
    for begun in [false, true] {
        let (disk, container) = golden_and_ci();
        let before = contents(&container, "ci");
        let layer = container.hydrate("ci").unwrap().unwrap();
        if begun {
            container.hydrate_step(layer, SLAB_LEN).unwrap();
        }
        container.delete_volume("golden").unwrap();
        assert_eq!(counts(&container, "ci").to_copy_bytes, 0);
        assert_eq!(container.hydrate_step(layer, ALL).unwrap(), HydrateStep::Ended(HydrateEnd::Done));
        assert_eq!(state(&container, "ci"), VolumeState::Real);
        container.settle(1000).unwrap();
        assert_eq!(find(&container, "ci").depth, 1);
        assert!(contents(&container, "ci") == before);
        assert_clean(&disk, container);
    }
}

// rules: LAY-31, VOL-13 — a storage that fails a step, or has no space for it, leaves the volume whole; a later step goes on.
#[test]
fn a_step_that_fails_may_be_tried_again() {
    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;
    for (fault, errno) in [(Fault::Read, EIO), (Fault::Write, EIO), (Fault::Write, ENOSPC)] {
        for after in 0..3 {
            let (disk, container) = golden_and_ci();
            let before = contents(&container, "ci");
            let layer = container.hydrate("ci").unwrap().unwrap();
            disk.inject(Some(Injection { fault, after, once: false, errno }));
            let failed = (0..10).find_map(|_| container.hydrate_step(layer, SLAB_LEN).err());
            assert!(matches!(failed, Some(Error::Io { .. })), "{fault:?} after {after}: {failed:?}");
            disk.inject(None);
            assert!(contents(&container, "ci") == before);
            assert_eq!(container.failure(), None);
            assert_eq!(run(&container, layer, SLAB_LEN).0, HydrateEnd::Done);
            assert!(contents(&container, "ci") == before);
            assert_clean(&disk, container);
        }
    }
}

// rule: LAY-31 — a full disk blocks the hydration and nothing else, and passes.
#[test]
fn a_full_disk_blocks_it_until_there_is_space() {
    let (disk, container) = golden_and_ci();
    let before = contents(&container, "ci");
    container.create_volume("filler", 1 << 30).unwrap();
    container.settle(1000).unwrap();
    disk.limit(Some(disk.len().unwrap()));
    let mut filled = 0;
    while io(&container, "filler").write_at(&vec![5; SLAB_LEN as usize], filled).is_ok() {
        filled += SLAB_LEN;
    }
    // A catalog slot is there, a slab is not.
    let layer = container.hydrate("ci").unwrap().unwrap();
    let mut last = HydrateStep::Copied(0);
    for _ in 0..50 {
        last = container.hydrate_step(layer, ALL).unwrap();
        container.maintain().unwrap();
    }
    assert_eq!(last, HydrateStep::Blocked(HydrateWait::NoSpace));
    assert!(contents(&container, "ci") == before);
    fill(&container, "filler", 0..SLAB_LEN, 6);
    container.delete_volume("filler").unwrap();
    container.settle(1000).unwrap();
    container.commit().unwrap();
    assert_eq!(run(&container, layer, ALL).0, HydrateEnd::Done);
    assert!(contents(&container, "ci") == before);
    assert_clean(&disk, container);
}

// rules: LAY-34, LAY-5 — more layers go with the end than one batch can take: a crash between leaves the same bytes.
#[test]
fn a_long_chain_below_goes_in_several_batches() {
    let disk = SimDisk::new();
    let options = CreateOptions { journal_len_bytes: MIB, ..CreateOptions::default() };
    Container::create(disk.clone(), &options).unwrap();
    let container = open(&disk);
    container.create_volume("golden", SIZE).unwrap();
    // Each layer is kept apart by a copy that uses it until the end.
    for number in 0..150u64 {
        fill(&container, "golden", (number % 32) * BLOCK..(number % 32 + 1) * BLOCK, number as u8 + 1);
        io(&container, "golden").discard((32 + number % 8) * BLOCK..(33 + number % 8) * BLOCK).unwrap();
        container.snapshot("golden", &format!("s{number}")).unwrap();
    }
    container.snapshot("golden", "ci").unwrap();
    let before = contents(&container, "ci");
    let layer = container.hydrate("ci").unwrap().unwrap();
    container.hydrate_step(layer, ALL).unwrap();
    for name in (0..150).map(|number| format!("s{number}")).chain(["golden".to_owned()]) {
        // One of the layers of others stays another's until the end.
        if name != "s0" {
            container.delete_volume(&name).unwrap();
        }
    }
    assert!(find(&container, "ci").depth > 100);
    let (end, _) = run(&container, layer, ALL);
    assert_eq!((end, find(&container, "ci").depth), (HydrateEnd::Done, 1));
    assert!(contents(&container, "ci") == before);
    let report = check(&*disk).unwrap();
    assert_eq!(report.corruptions + report.leaks, 0, "{:#?}", report.findings);
    container.settle(10_000).unwrap();
    assert!(contents(&container, "ci") == before);
    assert_clean(&disk, container);
}

// rules: LAY-34, LAY-7 — who read through the copy layer loses what it owned below, too: it is another's now.
#[test]
fn what_is_below_is_not_owned_by_who_no_longer_reads_it() {
    let (disk, container) = new_container(MIB);
    container.create_volume("old", SIZE).unwrap();
    fill(&container, "old", 0..BLOCK, 1);
    container.snapshot("old", "kept").unwrap();
    container.create_view("old", "new").unwrap();
    fill(&container, "new", BLOCK..2 * BLOCK, 2);
    // Both stand on what was the view's head, and that on a layer that is old's own.
    container.end_view("new", ViewEnd::Drop).unwrap();
    let base = chain(&container, "kept").last().unwrap().id;
    let owner = || layer(&container, base).unwrap().owner;
    assert_eq!(owner(), Some(find(&container, "old").id));
    hydrated(&container, "new");
    assert!(chain(&container, "old").iter().all(|layer| layer.id != base));
    assert_eq!(owner(), Some(find(&container, "kept").id), "its only user's");
    container.delete_volume("old").unwrap();
    assert_clean(&disk, container);
}

// rules: LAY-42, JOB-5 — a chunk that does not fit is left for the next step, unless it is the first.
#[test]
fn a_step_copies_no_more_than_it_is_told_to() {
    let (disk, container) = new_container(MIB);
    container.create_volume("golden", 64 * SLAB_LEN).unwrap();
    for chunk in 0..64 {
        fill(&container, "golden", chunk * SLAB_LEN..(chunk + 1) * SLAB_LEN - BLOCK, chunk as u8 + 1);
    }
    container.snapshot("golden", "ci").unwrap();
    let before = contents(&container, "ci");
    let layer = container.hydrate("ci").unwrap().unwrap();
    let chunk = SLAB_LEN - BLOCK;
    for (budget, copied) in
        [(MIB, 4 * chunk), (1, chunk), (chunk - 1, chunk), (2 * chunk - 1, chunk), (4 * MIB, 16 * chunk)]
    {
        assert_eq!(container.hydrate_step(layer, budget).unwrap(), HydrateStep::Copied(copied), "of {budget}");
        container.maintain().unwrap();
    }
    assert_eq!(run(&container, layer, ALL), (HydrateEnd::Done, 41 * chunk));
    assert!(contents(&container, "ci") == before);
    assert_clean(&disk, container);
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

// rule: VOL-23 — a step has the last free slab, a request waits for it, and the hydration is given up.
#[test]
fn who_waits_for_a_slab_is_woken_when_a_step_gives_it_back() {
    let (disk, container) = golden_and_ci();
    container.create_volume("filler", 1 << 30).unwrap();
    let layer = container.hydrate("ci").unwrap().unwrap();
    let filler = container.volume("filler").unwrap();
    let plan = |chunk: usize, waker: &Waker| {
        let start = chunk as u64 * SLAB_LEN;
        filler.plan_write(start..start + BLOCK, waker).unwrap()
    };
    let mut tickets = Vec::new();
    while let Planned::Ready(ticket) = plan(tickets.len(), Waker::noop()) {
        tickets.push(ticket);
    }
    // One for the copy layer's table, one for its first chunk.
    tickets.truncate(tickets.len() - 2);
    let woken = Arc::new(Woken::default());
    let (waker, seen, late) = (Waker::from(woken.clone()), woken.clone(), filler.clone());
    let handle = Mutex::new(Some(container.clone()));
    disk.set_hook(Some(Box::new(move |middle| {
        let Some(container) = handle.lock().unwrap().take_if(|_| middle == Middle::Write) else { return };
        container.cancel_hydration(layer).unwrap();
        assert!(matches!(late.plan_write(1 << 29..(1 << 29) + BLOCK, &waker).unwrap(), Planned::Busy));
        assert!(!seen.0.load(Ordering::SeqCst));
    })));
    assert_eq!(container.hydrate_step(layer, ALL).unwrap(), HydrateStep::Ended(HydrateEnd::Cancelled));
    disk.set_hook(None);
    assert!(woken.0.load(Ordering::SeqCst), "it would wait for ever");
    assert!(matches!(plan(1 << 11, Waker::noop()), Planned::Ready(_)));
    drop(tickets);
    assert_clean(&disk, container);
}

// rules: LAY-8, LAY-20, LAY-71 — a hydration ends a merge that has moved slabs; what is merged into that layer afterwards
// would be in its entries in memory only.
#[test]
fn nothing_is_merged_into_a_layer_that_an_ended_merge_has_emptied_in_part() {
    let far = 600 * MIB;
    let (disk, container) = new_container(MIB);
    container.create_volume("a", 640 * MIB).unwrap();
    fill(&container, "a", 0..BLOCK, 1);
    container.snapshot("a", "holds-the-lowest").unwrap();
    fill(&container, "a", BLOCK..2 * BLOCK, 2);
    fill(&container, "a", far..far + BLOCK, 2);
    container.snapshot("a", "v").unwrap();
    fill(&container, "v", 8 * MIB..8 * MIB + BLOCK, 3);
    container.snapshot("v", "w").unwrap();
    container.delete_volume("a").unwrap();
    // The merge of the layer with the twos into that with the threes has passed the first chunk, and not the last.
    let own = chain(&container, "v")[1].clone();
    let moved = || layer(&container, own.id).unwrap().allocated_bytes > own.allocated_bytes;
    while !moved() {
        assert_eq!(container.maintain().unwrap(), pitstop_format::Maintained::Worked);
    }
    assert_eq!(chain(&container, "v").len(), 4);
    container.hydrate("v").unwrap().unwrap();
    container.delete_volume("holds-the-lowest").unwrap();
    container.settle(1000).unwrap();
    container.commit().unwrap();
    for container in [&container, &crashed(&disk)] {
        for name in ["v", "w"] {
            let at = |offset: u64| {
                let mut bytes = [0; BLOCK as usize];
                io(container, name).read_at(&mut bytes, offset).unwrap();
                bytes[0]
            };
            assert_eq!([at(0), at(BLOCK), at(8 * MIB), at(far), at(MIB)], [1, 2, 3, 2, 0], "{name}");
        }
    }
    assert_clean(&disk, container);
}
