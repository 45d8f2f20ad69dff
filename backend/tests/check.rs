//! The check of a container in use (CTL-48, CHK-24 to CHK-26): an unmodified `pitstopd` under verified writes and commands.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::client::{Client, Style};
use common::{Daemon, Place, Qmp, Random, text, wait_until};
use pitstop_format::check::{Outcome, check};
use pitstop_format::{CreateOptions, FileDisk, OpenMode};
use serde_json::{Value, json};

/// Blocks of a volume that its guest works on; a few in each of the volume's chunks.
const BLOCKS: u64 = 1024;
const BLOCK_LEN: u64 = 4096;
/// Descriptors of a new container.
const DESCRIPTORS: u64 = 2 << 18;
const CHECKS: usize = 60;

fn start(place: &Place) -> Daemon {
    let daemon = place.serve(&["a", "b"], &["--control", text(&place.path("control"))]);
    wait_until("control socket", || place.path("control").exists());
    daemon
}

fn found(report: &Value) -> (u64, u64) {
    (report["corruptions"].as_u64().unwrap(), report["leaks"].as_u64().unwrap())
}

/// A guest that writes, discards, flushes, and compares what it reads.
fn guest(place: &Place, volume: &str, over: &AtomicBool, requests: &AtomicUsize) {
    let mut guest = Client::connect(&place.path(volume), Style::PLAIN);
    let mut random = Random(u64::from(volume.as_bytes()[0]));
    let mut holds = vec![0u8; BLOCKS as usize];
    while !over.load(Ordering::Relaxed) {
        let block = random.below(BLOCKS);
        let at = block * BLOCK_LEN;
        match random.below(8) {
            0 => {
                assert_eq!(guest.zero(common::client::T_WRITE_ZEROES, &[(at / 512, 8, 1)]), 0);
                holds[block as usize] = 0;
            }
            1 => guest.flush(),
            2 => assert!(guest.read(at, 4096) == [holds[block as usize]; 4096], "block {block} of {volume}"),
            _ => {
                let byte = 1 + random.below(255) as u8;
                guest.write(at, &[byte; 4096]);
                holds[block as usize] = byte;
            }
        }
        requests.fetch_add(1, Ordering::Relaxed);
    }
    for (block, byte) in (0..BLOCKS).zip(&holds) {
        assert!(guest.read(block * BLOCK_LEN, 4096) == [*byte; 4096], "block {block} of {volume}");
    }
}

/// Copies of the guests' volumes come, change each other, and go.
fn orders(place: &Place, over: &AtomicBool) -> usize {
    let mut qmp = Qmp::connect(&place.path("control"));
    let mut given = 0;
    while !over.load(Ordering::Relaxed) {
        for (command, arguments) in [
            ("x-pitstop-snapshot", json!({"source": "a", "name": "copy-a"})),
            ("x-pitstop-snapshot", json!({"source": "b", "name": "copy-b"})),
            ("x-pitstop-refresh", json!({"name": "copy-a", "source": "b"})),
            ("x-pitstop-snapshot", json!({"source": "copy-a", "name": "second"})),
            ("x-pitstop-refresh", json!({"name": "copy-b", "source": "copy-a"})),
            ("x-pitstop-volume-delete", json!({"name": "copy-a"})),
            ("x-pitstop-volume-rename", json!({"name": "second", "new-name": "third"})),
            ("x-pitstop-volume-delete", json!({"name": "copy-b"})),
            ("x-pitstop-volume-delete", json!({"name": "third"})),
        ] {
            qmp.order(command, arguments);
            given += 1;
        }
    }
    given
}

// rule: CTL-48, CHK-24, CHK-25, CHK-26
#[test]
fn a_container_in_use_is_always_found_clean_and_guests_go_on() {
    // A short journal, so that checkpoints and checks meet.
    for journal_len_bytes in [CreateOptions::default().journal_len_bytes, 1 << 20] {
        let place = Place::with_options(&["a", "b"], &CreateOptions { journal_len_bytes, ..CreateOptions::default() });
        let daemon = start(&place);
        let (over, requests) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (checked, busy) = std::thread::scope(|scope| {
            for volume in ["a", "b"] {
                scope.spawn({
                    let (place, over, requests) = (&place, &over, &requests);
                    move || guest(place, volume, over, requests)
                });
            }
            let ordering = scope.spawn(|| orders(&place, &over));
            let checks = std::panic::catch_unwind(|| checks(&place));
            over.store(true, Ordering::Relaxed);
            assert!(ordering.join().unwrap() > 0);
            checks.unwrap()
        });
        assert!(checked >= CHECKS / 2, "{checked} checks, {busy} gave up");
        assert!(requests.into_inner() > 100);
        assert_eq!(daemon.terminate().code(), Some(0));
        common::alone_with_container(|| {
            let disk = FileDisk::open(&place.container(), OpenMode::ReadOnly).unwrap();
            let report = check(&*disk).unwrap();
            assert_eq!(report.outcome(), Outcome::Clean, "{:?}", report.findings);
        });
    }
}

/// How many checks ended, all clean, and how many gave up since the container was too busy.
fn checks(place: &Place) -> (usize, usize) {
    let mut qmp = Qmp::connect(&place.path("control"));
    let (mut checked, mut busy) = (0, 0);
    for _ in 0..CHECKS {
        let answer = qmp.try_ask("x-pitstop-check", json!({})).unwrap();
        match answer.get("return") {
            Some(report) => {
                assert_eq!(found(report), (0, 0), "{report}");
                checked += 1;
            }
            None => {
                let why = answer["error"]["desc"].as_str().unwrap();
                assert!(why.contains("busy"), "{why}");
                busy += 1;
            }
        }
    }
    (checked, busy)
}

// rule: CTL-48, CHK-24
#[test]
fn damage_of_a_container_in_use_is_found() {
    let place = Place::with_volumes(&["a", "b"]);
    let daemon = start(&place);
    let mut qmp = Qmp::connect(&place.path("control"));
    let mut guest = Client::connect(&place.path("a"), Style::PLAIN);
    guest.write(0, &[1; 65536]);
    guest.flush();
    assert_eq!(found(&qmp.order("x-pitstop-check", json!({}))), (0, 0));
    // The last slab's descriptor: a free one, whose page the daemon has no cause to write.
    let file = std::fs::File::options().read(true).write(true).open(place.container()).unwrap();
    let at = DESCRIPTORS + (file.metadata().unwrap().len() / (256 << 10) - 1) * 32 + 9;
    let flip = || {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        file.sync_all().unwrap();
    };
    flip();
    for _ in 0..3 {
        let report = qmp.order("x-pitstop-check", json!({}));
        assert!(found(&report).0 > 0, "{report}");
        assert_eq!(report["findings"][0]["severity"], "corruption", "{report}");
    }
    // Finding it changes nothing.
    guest.write(65536, &[2; 4096]);
    guest.flush();
    flip();
    assert_eq!(found(&qmp.order("x-pitstop-check", json!({}))), (0, 0));
    drop(guest);
    assert_eq!(daemon.terminate().code(), Some(0));
}
