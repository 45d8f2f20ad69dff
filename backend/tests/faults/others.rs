//! Memory, announcements and logs, and faults of all kinds among random requests.

use std::process::Stdio;

use crate::common::client::{Client, Style, T_FLUSH, T_IN};
use crate::common::faulty::{Fault, FaultyFs, Grain, Op};
use crate::common::{Daemon, Place, Random, text, wait_until};
use pitstop_format::VolumeIo;

use crate::scene::*;

/// Which places of a volume the daemon knows without asking the storage, after all have been read: each is described by a
/// table page of its own.
fn places_in_memory(options: &[&str]) -> usize {
    const PLACES: u64 = 400;
    const PAGE_COVERS: u64 = 32 << 20;
    let place = Place::with_volumes(&[]);
    place.change(|container| {
        container.create_volume("v", PLACES * PAGE_COVERS).unwrap();
        let volume = VolumeIo::new(container, container.volume("v").unwrap());
        (0..PLACES).for_each(|index| volume.write_at(&[1; 4096], index * PAGE_COVERS).unwrap());
    });
    let fs = FaultyFs::mount(&place.path("mounted"), &place.container(), Grain::Sector);
    let mut arguments = vec![text(&fs.file()).to_owned(), "--export".to_owned()];
    arguments.push(format!("volume=v,socket={}", text(&place.path("v"))));
    arguments.extend(options.iter().map(|&option| option.to_owned()));
    let daemon = Daemon::start(&arguments);
    wait_until("socket", || crate::common::is_listened_on(&place.path("v")));
    let mut v = Client::connect(&place.path("v"), Style::PLAIN);
    // Beside what was written, so that nothing but the table is read.
    let mut known = || {
        let read = |index: &u64| status(&mut v, T_IN, index * PAGE_COVERS + (1 << 20), &mut [0; 512]) == OK;
        (0..PLACES).filter(read).count()
    };
    assert_eq!(known(), PLACES as usize);
    fs.fail(&[Fault::every(Op::Read, libc::EIO)]);
    let known = known();
    fs.fail(&[]);
    assert_eq!(daemon.terminate().code(), Some(0));
    known
}

// rule: MAP-16
#[test]
fn tables_take_no_more_memory_than_they_may() {
    assert_eq!(places_in_memory(&[]), 400);
    let known = places_in_memory(&["--table-cache", "1M"]);
    assert!((1..=256 + 8).contains(&known), "{known} pages of 4 KiB are in memory");
}

#[test]
fn a_daemon_that_cannot_announce_itself_serves_all_the_same() {
    let scene = Scene::new();
    scene.wait_for_log("cannot write the .lock file beside the container");
    scene.wait_for_log("the pitstop command will not find this daemon");
    let mut v = scene.guest("v");
    v.write(0, &[1; 512]);
    scene.end();
}

/// A log that nobody reads costs messages, not service.
#[test]
fn a_log_that_nobody_reads_stops_no_guest() {
    let place = Place::with_volumes(&["v"]);
    let mut command = crate::common::command();
    command.env("PITSTOP_LOG", "debug").stderr(Stdio::piped());
    command.args([text(&place.container()), "--export", &format!("volume=v,socket={}", text(&place.path("v")))]);
    let daemon = Daemon::of(&mut command);
    wait_until("socket", || crate::common::is_listened_on(&place.path("v")));
    let mut v = Client::connect(&place.path("v"), Style::PLAIN);
    // Each is told of by the queue's own thread; a pipe holds less than a tenth of it.
    for _ in 0..10_000 {
        assert_eq!(status(&mut v, T_IN, u64::MAX / 4, &mut [0; 512]), IOERR);
    }
    v.write(0, &[1; 512]);
    v.flush();
    assert_eq!(daemon.terminate().code(), Some(0));
}

/// Faults of all kinds under random requests: every answer is true, and in the end everything is sound.
// rule: VOL-20, VOL-7
#[test]
fn random_faults_break_nothing_else() {
    const BLOCKS: u64 = 512;
    let scene = Scene::new();
    let (mut v, mut w) = (scene.guest("v"), scene.guest("w"));
    let mut random = Random(0x7654_3210);
    // By block: what it may show; the last is what was written last.
    let mut may_show = vec![vec![0u8]; BLOCKS as usize];
    let (mut failed, mut fine) = (0, 0);
    for round in 0..2000u32 {
        if round % 20 == 0 {
            let op = [Op::Read, Op::Write, Op::Grow][random.below(3) as usize];
            let errno = [libc::EIO, libc::ENOSPC, libc::ENOMEM][random.below(3) as usize];
            let (after, times) = (random.below(8), 1 + random.below(6));
            scene.fs.fail(&[Fault { op, range: DATA, errno, after, times }]);
        }
        let (block, byte) = (random.below(BLOCKS), 1 + random.below(255) as u8);
        let shown = &mut may_show[block as usize];
        if random.below(2) == 0 {
            if writes(&mut v, block * 4096, byte, 4096) == OK {
                *shown = vec![byte];
                fine += 1;
            } else {
                shown.push(byte);
                failed += 1;
            }
        } else {
            let mut data = [0xee; 4096];
            if status(&mut v, T_IN, block * 4096, &mut data) == OK {
                assert!(
                    data.chunks(512).all(|s| shown.iter().any(|byte| s.iter().all(|b| b == byte))),
                    "block {block}"
                );
                fine += 1;
            } else {
                failed += 1;
            }
        }
        if round % 100 == 50 {
            assert_eq!(status(&mut v, T_FLUSH, 0, &mut []), OK);
            assert_eq!(status(&mut w, T_FLUSH, 0, &mut []), OK);
        }
    }
    assert!(failed > 50 && fine > 500, "{failed} failed, {fine} were fine");
    scene.fs.fail(&[]);
    for (block, shown) in may_show.iter().enumerate() {
        let data = v.read(block as u64 * 4096, 4096);
        assert!(data.chunks(512).all(|s| shown.iter().any(|byte| s.iter().all(|b| b == byte))), "block {block}");
    }
    scene.end();
}
