//! What is sealed, when, and how that goes on.

use pitstop_format::testing::{Fault, Injection};
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
            assert_eq!((errors, container.sealing(volume)), (1, None), "{fault:?} {after}");
            let counts = counts(&container, "ci");
            assert_eq!(counts.sealed_bytes, counts.data_bytes);
            assert_fits(&container);
            assert_clean(&disk, container);
        }
    }
}

// rule: JOB-12 — a full container: the sealing waits, and goes on when there is space.
#[test]
fn sealing_waits_for_space() {
    use pitstop_format::testing::SimDisk;
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
