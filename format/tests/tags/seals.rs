//! What is sealed, when, and how that goes on.

use pitstop_format::testing::{Fault, Injection, SimDisk};
use pitstop_format::{Error, HydrateWait, SLAB_LEN, SealEnd, SealStep, Verify};

use crate::support::*;

// rules: TAG-7, TAG-10, MAP-30
#[test]
fn what_is_frozen_is_sealed_and_what_a_head_has_is_not() {
    let (disk, container) = golden_and_ci();
    fill(&container, "golden", 0..BLOCK, 99);
    let seal = container.seals().swap_remove(0);
    assert_eq!((seal.volume.as_str(), seal.passed_bytes, seal.total_bytes), ("golden", 0, 8 * SLAB_LEN));
    assert!(find(&container, "golden").sealing.is_some());
    let data = counts(&container, "ci").data_bytes;
    assert_eq!(counts(&container, "ci").sealed_bytes, 0);
    // The last block is cut short by the volume's end, but it is a block.
    assert_eq!(seal_all(&container), data + BLOCK - 512);
    assert_eq!(counts(&container, "ci").sealed_bytes, data);
    let golden = counts(&container, "golden");
    assert_eq!((golden.sealed_bytes, golden.data_bytes), (data - BLOCK, data));
    assert_eq!(find(&container, "golden").sealing, None);
    assert_eq!(assert_fits(&container), data + BLOCK - 512);
    assert_clean(&disk, container);
}

// rule: TAG-7
#[test]
fn a_volume_is_sealed_by_itself_only_if_it_is_told_to() {
    let (_, container) = new_container(MIB);
    container.create_volume("v", SIZE).unwrap();
    fill(&container, "v", 0..MIB, 1);
    container.snapshot("v", "a").unwrap();
    assert!(container.seals().is_empty());
    container.set_verify("v", Verify::Copy).unwrap();
    assert_eq!(container.seals().len(), 1);
    // A copy does not take it over.
    assert_eq!(find(&container, "a").verify, Verify::Off);
    container.set_verify("v", Verify::Off).unwrap();
    assert!(container.seals().is_empty());
    // By order, once.
    let volume = container.seal("a").unwrap();
    assert_eq!(run(&container, volume), (SealEnd::Done, MIB));
    fill(&container, "a", 0..BLOCK, 2);
    container.snapshot("a", "b").unwrap();
    assert!(container.seals().is_empty());
    // A refresh freezes its source, too, and nothing else changes what is set.
    container.set_verify("a", Verify::Copy).unwrap();
    assert_eq!(seal_all(&container), BLOCK);
    fill(&container, "a", 0..BLOCK, 3);
    container.refresh("b", "a").unwrap();
    assert_eq!(seal_all(&container), BLOCK);
    container.refresh("a", "v").unwrap();
    assert_eq!(find(&container, "a").verify, Verify::Copy);
    // Nothing is frozen of a head that was never written.
    container.snapshot("a", "c").unwrap();
    assert!(container.seals().is_empty());
}

// rules: TAG-8, TAG-10, JOB-31, JOB-32
#[test]
fn sealing_goes_on_after_a_restart_and_reads_nothing_again() {
    let (disk, container) = golden_and_ci();
    let volume = find(&container, "golden").id;
    container.set_seal(volume, true, 1 << 20).unwrap();
    let all = counts(&container, "ci").data_bytes + BLOCK - 512;
    let SealStep::Sealed(first) = container.seal_step(volume, 3 * SLAB_LEN).unwrap() else { panic!("not sealed") };
    assert!((3 * SLAB_LEN..all).contains(&first), "{first}");
    container.close().unwrap();
    let container = open(&disk);
    let seal = container.sealing(volume).unwrap();
    assert_eq!((seal.paused, seal.speed), (true, 1 << 20));
    assert_eq!(run(&container, volume), (SealEnd::Done, all - first));
    assert!(matches!(container.set_seal(volume, false, 0), Err(Error::NotSealing { .. })));
    assert!(matches!(container.cancel_seal(volume), Err(Error::NotSealing { .. })));
    // Ordered again, it finds nothing to do.
    container.seal("golden").unwrap();
    assert_eq!(run(&container, volume), (SealEnd::Done, 0));
    assert_fits(&container);
}

// rules: TAG-10, JOB-32
#[test]
fn sealing_is_given_up_by_order_or_with_its_volume() {
    let (disk, container) = golden_and_ci();
    let volume = find(&container, "golden").id;
    assert!(matches!(container.seal_step(volume, 1).unwrap(), SealStep::Sealed(SLAB_LEN)));
    container.cancel_seal(volume).unwrap();
    assert_eq!(container.seal_step(volume, 1).unwrap(), SealStep::Ended(SealEnd::Cancelled));
    assert_eq!(counts(&container, "ci").sealed_bytes, SLAB_LEN);
    container.seal("golden").unwrap();
    container.delete_volume("golden").unwrap();
    assert_eq!(container.seal_step(volume, 1).unwrap(), SealStep::Ended(SealEnd::Cancelled));
    assert!(container.seals().is_empty());
    // What was made stays, as the layers do.
    assert_eq!(counts(&container, "ci").sealed_bytes, SLAB_LEN);
    assert_fits(&container);
    assert_clean(&disk, container);
}

// rule: TAG-10 — a freeze in the middle of the sealing is sealed with it.
#[test]
fn what_is_frozen_meanwhile_is_sealed_too() {
    let (_, container) = golden_and_ci();
    let volume = find(&container, "golden").id;
    container.seal_step(volume, SLAB_LEN).unwrap();
    fill(&container, "golden", 0..MIB, 70);
    container.snapshot("golden", "later").unwrap();
    assert_eq!(run(&container, volume).0, SealEnd::Done);
    for name in ["ci", "golden", "later"] {
        let counts = counts(&container, name);
        assert_eq!(counts.sealed_bytes, counts.data_bytes, "{name}");
    }
}

// rule: TAG-4 — a copy that waits for a write of before it: what that writes must not be sealed before.
#[test]
fn nothing_is_sealed_before_writes_of_before_the_freeze_have_ended() {
    let (_, container) = new_container(MIB);
    container.create_volume("v", SIZE).unwrap();
    fill(&container, "v", 0..SLAB_LEN, 1);
    container.set_verify("v", Verify::Copy).unwrap();
    let volume = find(&container, "v").id;
    let handle = container.volume("v").unwrap();
    let pitstop_format::Planned::Ready(ticket) = handle.plan_write(0..BLOCK, std::task::Waker::noop()).unwrap() else {
        panic!("not planned")
    };
    let pending = container.begin_snapshot("v", "w").unwrap();
    assert_eq!(container.seal_step(volume, SLAB_LEN).unwrap(), SealStep::Blocked(HydrateWait::Others));
    ticket.complete();
    drop(handle);
    pending.finish().unwrap();
    assert_eq!(seal_all(&container), SLAB_LEN);
}

// rules: VOL-20, TAG-8 — storage that fails or is full while tags are made.
#[test]
fn storage_that_fails_ends_no_sealing_and_spoils_no_tag() {
    for fault in [Fault::Read, Fault::Write] {
        for after in 0..4 {
            let (disk, container) = golden_and_ci();
            let volume = find(&container, "golden").id;
            disk.inject(Some(Injection { fault, after, once: true, errno: 5 }));
            let mut errors = 0;
            for _ in 0..1000 {
                match container.seal_step(volume, SLAB_LEN) {
                    Ok(SealStep::Ended(end)) => {
                        assert_eq!(end, SealEnd::Done);
                        break;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        assert!(matches!(error, Error::Io { .. }), "{error}");
                        errors += 1;
                    }
                }
            }
            // A read that fails once is tried again, block by block.
            let most = if fault == Fault::Write { 1..=1 } else { 0..=1 };
            assert!(most.contains(&errors), "{errors}");
            assert_eq!(container.sealing(volume), None, "{fault:?} {after}");
            let counts = counts(&container, "ci");
            assert_eq!(counts.sealed_bytes, counts.data_bytes);
            assert_fits(&container);
            assert_clean(&disk, container);
        }
    }
}

// rules: TAG-13, JOB-33 — what cannot be read costs only itself; told of in the end, it is tried again.
#[test]
fn everything_is_sealed_but_what_cannot_be_read() {
    let (disk, container) = golden_and_ci();
    let volume = find(&container, "golden").id;
    let places =
        [2 * SLAB_LEN + 5 * BLOCK, 2 * SLAB_LEN + 6 * BLOCK, 7 * SLAB_LEN].map(|at| place_of(&container, "ci", at));
    disk.make_unreadable(places.map(|place| place + 100..place + 101));
    let data = counts(&container, "ci").data_bytes;
    for _ in 0..2 {
        container.seal("golden").unwrap();
        let error = loop {
            match container.seal_step(volume, 300 << 10) {
                Ok(SealStep::Sealed(_)) => {}
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        };
        let Error::NotAllSealed { places: 3, .. } = error else { panic!("{error}") };
        let text = error.to_string();
        let first = format!("block {} of layer", 2 * 64 + 5);
        assert!(text.contains("3 blocks") && text.contains(&first), "{text}");
        assert!(text.contains(&format!("offset {}", places[0])), "{text}");
        assert_eq!(counts(&container, "ci").sealed_bytes, data - 3 * BLOCK);
        assert!(container.sealing(volume).is_some());
    }
    // What is frozen later is sealed, and nothing is tried again for that.
    assert!(!container.has_more_to_seal(volume));
    container.snapshot("golden", "same").unwrap();
    assert!(!container.has_more_to_seal(volume));
    fill(&container, "golden", 0..MIB, 77);
    container.snapshot("golden", "later").unwrap();
    assert!(container.has_more_to_seal(volume));
    let failures = |disk: &SimDisk| disk.requests(Fault::Read) - disk.counts().0;
    let before = failures(&disk);
    assert_eq!(container.seal_step(volume, 10 * MIB).unwrap(), SealStep::Sealed(MIB));
    assert!(!container.has_more_to_seal(volume), "a step was made");
    for _ in 0..2 {
        let error = container.seal_step(volume, MIB).unwrap_err();
        assert!(matches!(error, Error::NotAllSealed { places: 3, .. }), "{error}");
        assert!(!container.has_more_to_seal(volume));
    }
    assert_eq!(failures(&disk), before);
    container.delete_volume("later").unwrap();
    disk.make_unreadable(None);
    container.set_seal(volume, false, 0).unwrap();
    assert_eq!(run(&container, volume), (SealEnd::Done, 3 * BLOCK));
    assert_eq!(counts(&container, "ci").sealed_bytes, data);
    assert_fits(&container);
    assert_clean(&disk, container);
}

// rule: TAG-13 — a step over what cannot be read ends after a mebibyte of it, block by block.
#[test]
fn a_step_does_not_go_far_where_nothing_can_be_read() {
    let (disk, container) = golden_and_ci();
    let volume = find(&container, "golden").id;
    let data = counts(&container, "ci").data_bytes;
    disk.make_unreadable(Some(0..u64::MAX));
    let mut steps = 0;
    let error = loop {
        let before = disk.requests(Fault::Read);
        let step = container.seal_step(volume, 1 << 40);
        let reads = disk.requests(Fault::Read) - before;
        assert!(reads <= MIB / BLOCK + 8, "{reads} reads in a step");
        match step {
            Ok(SealStep::Sealed(0)) => steps += 1,
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    // The last block is cut short by the volume's end.
    let blocks = data.div_ceil(BLOCK);
    assert!(matches!(error, Error::NotAllSealed { places, .. } if places == blocks), "{error}");
    assert_eq!(steps, 2, "nothing was tried twice");
    disk.make_unreadable(None);
    container.seal("golden").unwrap();
    assert_eq!(run(&container, volume).0, SealEnd::Done);
}

// rule: TAG-13 — a table page that cannot be read costs the chunks of it.
#[test]
fn a_table_page_that_cannot_be_read_costs_only_its_chunks() {
    let far = 300 * SLAB_LEN;
    let (disk, container) = new_container(MIB);
    container.create_volume("v", far + SLAB_LEN).unwrap();
    fill(&container, "v", 0..BLOCK, 1);
    fill(&container, "v", far..far + BLOCK, 2);
    container.set_verify("v", Verify::Copy).unwrap();
    container.snapshot("v", "w").unwrap();
    container.close().unwrap();
    let container = open(&disk);
    let volume = container.volume("w").unwrap();
    let mut plan = pitstop_format::ReadPlan::default();
    let Ok(pitstop_format::Planned::NeedPage(load)) = volume.plan_read(0..512, &mut plan) else { panic!("resident") };
    drop(volume);
    disk.make_unreadable(Some(load.offset()..load.offset() + 1));
    let volume = find(&container, "v").id;
    let error = loop {
        match container.seal_step(volume, MIB) {
            Ok(SealStep::Sealed(_)) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::NotAllSealed { places: 1, .. }), "{error}");
    disk.make_unreadable(None);
    assert_eq!(counts(&container, "w").sealed_bytes, BLOCK);
    container.seal("v").unwrap();
    assert_eq!(run(&container, volume), (SealEnd::Done, BLOCK));
}

// rules: TAG-7, CAT-5 — always: also what a refresh brings, and over refreshes and restarts.
#[test]
fn a_volume_that_is_always_verified_has_sealed_what_it_reads() {
    let (disk, container) = new_container(MIB);
    for name in ["golden", "ci"] {
        container.create_volume(name, SIZE).unwrap();
        fill(&container, name, 0..MIB, 1);
    }
    assert!(!container.volume("ci").unwrap().verifies_reads());
    container.set_verify("ci", Verify::Always).unwrap();
    assert!(container.volume("ci").unwrap().verifies_reads());
    assert_eq!(seal_all(&container), 0);
    container.refresh("ci", "golden").unwrap();
    assert_eq!((container.seals().len(), find(&container, "ci").verify), (1, Verify::Always));
    assert_eq!(seal_all(&container), MIB);
    // Known to be sealed: nothing to do.
    container.refresh("ci", "golden").unwrap();
    assert!(container.seals().is_empty());
    container.close().unwrap();
    let container = open(&disk);
    assert!(container.volume("ci").unwrap().verifies_reads());
    assert_eq!(find(&container, "golden").verify, Verify::Off);
    container.snapshot("ci", "copy").unwrap();
    assert!(!container.volume("copy").unwrap().verifies_reads());
    // What is verified but not sealed is sealed when it is to be verified always.
    container.refresh("copy", "golden").unwrap();
    fill(&container, "copy", 0..BLOCK, 2);
    container.snapshot("copy", "more").unwrap();
    container.set_verify("copy", Verify::Copy).unwrap();
    container.cancel_seal(find(&container, "copy").id).unwrap();
    container.set_verify("copy", Verify::Always).unwrap();
    assert_eq!(seal_all(&container), BLOCK);
    container.set_verify("ci", Verify::Copy).unwrap();
    assert!(!container.volume("ci").unwrap().verifies_reads());
}

// rule: JOB-12 — a full container: the sealing waits, and goes on when there is space.
#[test]
fn sealing_waits_for_space() {
    use pitstop_format::{Container, CreateOptions, OpenMode};
    let disk = SimDisk::new();
    Container::create(disk.clone(), &CreateOptions { journal_len_bytes: MIB, ..CreateOptions::default() }).unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    disk.limit(Some(0));
    container.create_volume("v", 64 * MIB).unwrap();
    container.set_verify("v", Verify::Copy).unwrap();
    let mut chunk = 0;
    let full = loop {
        match io(&container, "v").write_at(&[7; BLOCK as usize], chunk * SLAB_LEN) {
            Ok(()) => chunk += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, Error::NoSpace { .. }), "{full}");
    container.snapshot("v", "w").unwrap();
    let volume = find(&container, "v").id;
    let mut last = container.seal_step(volume, MIB).unwrap();
    for _ in 0..100 {
        container.maintain().unwrap();
        last = container.seal_step(volume, MIB).unwrap();
    }
    assert_eq!(last, SealStep::Blocked(HydrateWait::NoSpace));
    disk.limit(None);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(run(&container, volume), (SealEnd::Done, chunk * BLOCK));
}
