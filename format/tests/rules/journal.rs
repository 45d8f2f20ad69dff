//! Journal, commit, checkpoint and recovery (design rules 3-5, 10-14, 32, 36).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Waker;
use std::time::Duration;

use pitstop_format::testing::{Event, SimDisk};
use pitstop_format::{Container, CreateOptions, Disk, Error, FileDisk, Flush, FlushStep, OpenMode, SLAB_LEN};

use crate::support::*;

/// Carries a flush out until it ends, or waits for others.
fn carry_out(disk: &SimDisk, flush: &mut Flush) -> FlushStep {
    loop {
        match flush.poll(Waker::noop()).unwrap() {
            FlushStep::Sync => flush.synced(disk.sync()),
            FlushStep::Append(append) => flush.appended(disk.write_at_durable(append.bytes(), append.offset())),
            end @ (FlushStep::Done | FlushStep::Wait) => return end,
        }
    }
}

/// Fills the journal to where a checkpoint is due.
fn fill_journal(container: &Container, name: &str) {
    for round in 0..40 {
        put(container, name, round % 8 * SLAB_LEN + round * BLOCK, 1);
        io(container, name).flush().unwrap();
    }
}

// rule: JNL-3 — what completes between the data sync and the record is not in the record: its data may be lost.
#[test]
fn a_record_holds_only_what_was_complete_before_its_data_sync() {
    let (disk, container) = new_container();
    for name in ["a", "b"] {
        container.create_volume(name, MIB).unwrap();
    }
    put(&container, "b", SLAB_LEN, 1);
    leave_stale_slabs(&container);
    let mut crash = disk.record();
    put(&container, "a", 0, 4);
    let mut flush = container.volume("a").unwrap().start_flush();
    assert!(matches!(flush.poll(Waker::noop()).unwrap(), FlushStep::Sync));
    let synced = disk.sync();
    let pitstop_format::Planned::Ready(late) =
        container.volume("b").unwrap().plan_write(0..BLOCK, Waker::noop()).unwrap()
    else {
        panic!("busy")
    };
    let place = late.segments()[0].disk_offset;
    assert_stale(&disk, place);
    disk.write_at(&[5; BLOCK as usize], place).unwrap();
    late.complete();
    flush.synced(synced);
    assert!(matches!(carry_out(&disk, &mut flush), FlushStep::Done));
    let after = open(power_failure(&disk, &mut crash));
    assert_eq!((block(&after, "a", 0), block(&after, "b", 0)), (4, 0));
}

// rule: JNL-7 — a flush whose changes another's batch has taken is not clean: it waits for that batch.
#[test]
fn a_flush_waits_for_the_batch_that_took_its_changes() {
    let (disk, container) = new_container();
    for name in ["a", "b"] {
        container.create_volume(name, MIB).unwrap();
    }
    for name in ["a", "b"] {
        put(&container, name, 0, 1);
    }
    let start = |name: &str| container.volume(name).unwrap().start_flush();
    let mut leader = start("b");
    assert!(matches!(leader.poll(Waker::noop()).unwrap(), FlushStep::Sync));
    let mut flush = start("a");
    assert!(matches!(carry_out(&disk, &mut flush), FlushStep::Wait), "the flush did not wait for the record");
    leader.synced(disk.sync());
    assert!(matches!(carry_out(&disk, &mut leader), FlushStep::Done));
    assert!(matches!(carry_out(&disk, &mut flush), FlushStep::Wait | FlushStep::Done));
    assert!(matches!(carry_out(&disk, &mut start("a")), FlushStep::Done));
}

// rule: JNL-9 — what is committed while a checkpoint writes older pages home is behind the new tail.
#[test]
fn the_tail_does_not_pass_what_a_checkpoint_has_not_written_home() {
    let (disk, container) = new_container();
    container.create_volume("v", 16 * SLAB_LEN).unwrap();
    drop(container);
    let hooked = Hooked::on(disk.clone());
    let container = open(hooked.clone());
    fill_journal(&container, "v");
    let mut crash = disk.record();
    let (inside, done) = (container.clone(), Arc::new(AtomicBool::new(false)));
    let is_done = done.clone();
    hooked.set(move |op| {
        if op == Op::Write && !is_done.swap(true, Ordering::Relaxed) {
            put(&inside, "v", 12 * SLAB_LEN, 7);
            io(&inside, "v").flush().unwrap();
        }
        Ok(())
    });
    container.settle(10).unwrap();
    hooked.clear();
    assert!(done.load(Ordering::Relaxed), "there was no checkpoint");
    let after = open(power_failure(&disk, &mut crash));
    assert_eq!(block(&after, "v", 12 * SLAB_LEN), 7);
}

// rules: MAP-6, JNL-2 — a table page that was never written shows nothing, whatever its slab held, after a crash too.
#[test]
fn a_new_table_page_never_shows_what_its_slab_held_before() {
    let (disk, container) = new_container();
    leave_stale_slabs(&container);
    container.create_volume("v", 8 << 30).unwrap();
    let mut crash = disk.record();
    put(&container, "v", 0, 1);
    let other_page = 200 * SLAB_LEN;
    assert_eq!((block(&container, "v", SLAB_LEN), block(&container, "v", other_page)), (0, 0));
    io(&container, "v").flush().unwrap();
    let after = open(power_failure(&disk, &mut crash));
    let shown = [0, SLAB_LEN, other_page].map(|offset| block(&after, "v", offset));
    assert_eq!(shown, [1, 0, 0]);
}

// rule: JNL-4 — the generation is raised durably before an opening's first record.
#[test]
fn every_opening_for_writing_has_a_generation_of_its_own_before_its_first_record() {
    let (disk, container) = new_container();
    let mut seen = vec![container.info().generation];
    drop(container);
    for _ in 0..3 {
        let mut crash = disk.record();
        let container = open(disk.clone());
        let left = power_failure(&disk, &mut crash);
        let durable = Container::open(left, OpenMode::ReadOnly).unwrap().info().generation;
        assert_eq!(durable, container.info().generation, "the generation is not durable");
        assert!(!seen.contains(&durable), "generation {durable} a second time");
        seen.push(durable);
    }
}

// rule: JNL-4 — a record of which one sector is not as it was written counts for nothing.
#[test]
fn a_torn_record_counts_for_nothing() {
    let (disk, container) = new_container();
    container.create_volume("v", 16 * SLAB_LEN).unwrap();
    for chunk in 0..16 {
        put(&container, "v", chunk * SLAB_LEN, 1);
    }
    let mut flush = container.volume("v").unwrap().start_flush();
    assert!(matches!(flush.poll(Waker::noop()).unwrap(), FlushStep::Sync));
    flush.synced(disk.sync());
    let FlushStep::Append(record) = flush.poll(Waker::noop()).unwrap() else { panic!("nothing to journal") };
    let shown = |torn: Option<usize>| {
        let (mut bytes, left) = (record.bytes().to_vec(), disk.copy());
        if let Some(sector) = torn {
            bytes[sector * 512 + 100] ^= 1;
        }
        left.write_at(&bytes, record.offset()).unwrap();
        block(&open(left), "v", 15 * SLAB_LEN)
    };
    for sector in 0..record.bytes().len() / 512 {
        assert_eq!(shown(Some(sector)), 0, "sector {sector}");
    }
    assert_eq!(shown(None), 1);
}

// rule: JNL-13 — while anything may still be under way on the description that carries the I/O, nobody else gets the lock.
#[test]
fn the_lock_lasts_as_long_as_the_description_that_carries_the_io() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disks.pit");
    Container::create(FileDisk::create(&path).unwrap(), &CreateOptions::default()).unwrap();
    let disk = FileDisk::open(&path, OpenMode::ReadWrite).unwrap();
    // As a ring with requests under way does, this keeps the open file description.
    let kept = disk.file().try_clone().unwrap();
    drop(disk);
    assert!(matches!(FileDisk::open(&path, OpenMode::ReadWrite), Err(Error::Locked { .. })));
    assert!(matches!(FileDisk::open(&path, OpenMode::ReadOnly), Err(Error::Locked { .. })));
    drop(kept);
    FileDisk::open(&path, OpenMode::ReadWrite).unwrap();
}

// rule: JNL-14 — one failed journal write, home write, sync or superblock write is never made good by trying again.
#[test]
fn a_failed_write_of_metadata_fails_the_container() {
    let fails = |wanted: Op, skip: usize, work: fn(&Container)| {
        let (disk, container) = new_container();
        container.create_volume("v", 16 * SLAB_LEN).unwrap();
        drop(container);
        let hooked = Hooked::on(disk);
        let container = open(hooked.clone());
        fill_journal(&container, "v");
        put(&container, "v", 9 * SLAB_LEN, 2);
        let mut left = skip as i64;
        hooked.set(move |op| {
            left -= i64::from(op == wanted);
            if op == wanted && left == -1 { Err(std::io::Error::other("injected")) } else { Ok(()) }
        });
        work(&container);
        assert!(container.failure().is_some(), "{wanted:?} {skip} failed, the container did not");
        assert!(matches!(io(&container, "v").flush(), Err(Error::Failed { .. })));
    };
    let flush = |container: &Container| drop(io(container, "v").flush());
    let checkpoint = |container: &Container| drop(container.settle(10));
    fails(Op::Sync, 0, flush);
    fails(Op::WriteDurable, 0, flush);
    // A home, the sync behind the homes, and both superblocks behind the record.
    fails(Op::Write, 0, checkpoint);
    fails(Op::Sync, 1, checkpoint);
    fails(Op::WriteDurable, 1, checkpoint);
    fails(Op::WriteDurable, 2, checkpoint);
}

// rule: JNL-8 — changes are committed in the end though nobody flushes.
#[test]
fn changes_are_committed_without_a_flush() {
    let (disk, container) = new_container();
    container.create_volume("v", MIB).unwrap();
    let mut crash = disk.record();
    container.settle(100).unwrap();
    put(&container, "v", 0, 1);
    container.settle(100).unwrap();
    std::thread::sleep(Duration::from_millis(5100));
    container.settle(100).unwrap();
    let after = open(power_failure(&disk, &mut crash));
    assert_eq!(block(&after, "v", 0), 1);
}

// rule: JNL-17 — when ordinary commits find no more room, a checkpoint still does.
#[test]
fn a_checkpoint_finds_room_in_a_full_journal() {
    let (disk, container) = new_container();
    container.create_volume("v", 1 << 30).unwrap();
    let mut flush = None;
    for chunk in 0.. {
        put(&container, "v", chunk * SLAB_LEN, 1);
        let mut next = container.volume("v").unwrap().start_flush();
        if matches!(carry_out(&disk, &mut next), FlushStep::Wait) {
            flush = Some(next);
            break;
        }
    }
    container.settle(10).unwrap();
    assert_eq!(container.failure(), None);
    assert!(matches!(carry_out(&disk, &mut flush.unwrap()), FlushStep::Done));
}

// rule: CON-5 — no sync, and no moment between two of them, has both superblock copies to lose.
#[test]
fn never_are_both_superblock_copies_at_stake() {
    let disk = SimDisk::new();
    disk.record();
    let options = CreateOptions { journal_len_bytes: SMALL_JOURNAL, ..CreateOptions::default() };
    Container::create(disk.clone(), &options).unwrap();
    let container = open(disk.clone());
    container.create_volume("v", 16 * SLAB_LEN).unwrap();
    for _ in 0..3 {
        fill_journal(&container, "v");
        container.settle(100).unwrap();
    }
    container.close().unwrap();
    let mut written = [0; 2];
    let mut at_stake = HashMap::new();
    for event in disk.take_events() {
        match event {
            Event::Write { id, offset, .. } => {
                let Some(copy) = [0, SLAB_LEN].iter().position(|start| *start == offset) else { continue };
                written[copy] += 1;
                at_stake.insert(id, copy);
                assert!(at_stake.values().all(|other| *other == copy), "both copies are being written");
            }
            Event::Durable(id) => drop(at_stake.remove(&id)),
            Event::SyncEnded(_) => at_stake.clear(),
            _ => {}
        }
    }
    assert!(written.iter().all(|count| *count > 3), "{written:?}");
}

// rule: SNP-11 — a copy that waits for a write of before its instant holds up no commit and no checkpoint.
#[test]
fn commits_go_on_while_a_copy_waits_for_its_seal() {
    let (disk, container) = new_container();
    for name in ["v", "w"] {
        container.create_volume(name, 100 * SLAB_LEN).unwrap();
    }
    let pitstop_format::Planned::Ready(ticket) =
        container.volume("v").unwrap().plan_write(0..BLOCK, Waker::noop()).unwrap()
    else {
        panic!("busy")
    };
    std::thread::scope(|scope| {
        let copy = scope.spawn(|| container.snapshot("v", "copy").unwrap());
        while container.layers().len() < 3 {
            std::thread::yield_now();
        }
        let (tell, told) = mpsc::channel();
        let writer = container.clone();
        scope.spawn(move || {
            // More than the journal holds, so that checkpoints are needed too.
            for chunk in 0..100 {
                put(&writer, "w", chunk * SLAB_LEN, 1);
                io(&writer, "w").flush().unwrap();
            }
            tell.send(()).unwrap();
        });
        let went_on = told.recv_timeout(Duration::from_secs(20)).is_ok();
        let waited = !copy.is_finished();
        disk.write_at(&[1; BLOCK as usize], ticket.segments()[0].disk_offset).unwrap();
        ticket.complete();
        copy.join().unwrap();
        assert!(went_on, "commits waited for the seal");
        assert!(waited, "the copy did not wait at all");
    });
    assert_eq!(block(&container, "copy", 0), 1);
}
