//! Storage that fails: which request fails with it, and when the container does.

use std::ops::Range;

use crate::common::client::{DATA_START, T_FLUSH, T_IN, T_OUT};
use crate::common::faulty::{Fault, Op};
use crate::common::{PATIENCE, text};
use pitstop_format::CreateOptions;
use serde_json::json;
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;

use crate::scene::*;

// rule: VOL-20
#[test]
fn a_read_error_fails_that_read_alone() {
    let scene = Scene::new();
    let (mut v, mut w) = (scene.guest("v"), scene.guest("w"));
    v.write(0, &[1; 65536]);
    w.write(0, &[2; 65536]);
    let qmp = &mut scene.qmp();
    scene.fs.fail(&[Fault { times: 1, ..Fault::every(Op::Read, libc::EIO) }]);
    assert_eq!(status(&mut v, T_IN, 0, &mut [0; 4096]), IOERR);
    let event = qmp.event("BLOCK_IO_ERROR");
    assert_eq!((&event["device"], &event["operation"]), (&json!("v"), &json!("read")));
    assert_eq!((&event["action"], &event["nospace"]), (&json!("report"), &json!(false)));
    scene.wait_for_log("request failed");
    assert!(v.read(0, 65536) == [1; 65536] && w.read(0, 65536) == [2; 65536]);
    assert_eq!(scene.fs.failed(), 1);
    v.flush();
    scene.end();
}

// rule: VOL-20, VOL-7
#[test]
fn a_write_error_fails_that_write_alone() {
    let scene = Scene::new();
    let (mut v, mut w) = (scene.guest("v"), scene.guest("w"));
    w.write(0, &[2; 8192]);
    scene.fs.fail(&[Fault { range: DATA, ..Fault::every(Op::Write, libc::EIO) }]);
    assert_eq!(writes(&mut v, 0, 1, 8192), IOERR, "a first write");
    assert_eq!(writes(&mut v, 8192, 1, 512), IOERR, "a part of a block");
    assert_eq!(writes(&mut w, 0, 3, 4096), IOERR, "an overwrite");
    assert!(v.read(0, 16384) == [0; 16384], "blocks that were absent stay so");
    assert!(w.read(4096, 4096) == [2; 4096]);
    v.flush();
    scene.fs.fail(&[]);
    let overwritten = w.read(0, 4096);
    assert!(overwritten.chunks(512).all(|sector| sector == [2; 512] || sector == [3; 512]));
    v.write(0, &[4; 8192]);
    v.write(8192, &[5; 512]);
    assert!(v.read(0, 8192) == [4; 8192] && v.read(8192, 512) == [5; 512] && v.read(8704, 3584) == [0; 3584]);
    w.flush();
    scene.end();
}

// rule: VOL-20
#[test]
fn of_adjacent_requests_only_that_on_the_bad_place_fails() {
    const COUNT: u64 = 8;
    let scene = Scene::new();
    let mut v = scene.guest("v");
    let bytes: Vec<u8> = (0..COUNT).flat_map(|n| [n as u8 + 0xb0; 4096]).collect();
    v.write(0, &bytes);
    v.flush();
    let file = std::fs::read(scene.place.container()).unwrap();
    let at = 4096 * file.chunks(4096).position(|block| block == [0xb3; 4096]).unwrap() as u64;
    for (op, kind) in [(Op::Read, T_IN), (Op::Write, T_OUT)] {
        scene.fs.fail(&[Fault { range: at..at + 4096, ..Fault::every(op, libc::EIO) }]);
        for turn in 0..20 {
            let queue = &mut v.queues[0];
            let before = queue.next_avail();
            let offer = |n| queue.offer(kind, n * 8, &[(DATA_START + n * 4096, 4096)]);
            let heads: Vec<u16> = (0..COUNT).map(offer).collect();
            queue.kick_if_wanted(before);
            for _ in &heads {
                let done = queue.wait_one();
                let expected = if done.head == heads[3] { IOERR } else { OK };
                assert_eq!(done.status, expected, "{op:?}, turn {turn}, of {heads:?} {}", done.head);
            }
        }
    }
    scene.fs.fail(&[]);
    let now = v.read(0, bytes.len());
    assert!(now[..3 * 4096] == bytes[..3 * 4096] && now[4 * 4096..] == bytes[4 * 4096..]);
    scene.end();
}

// rule: VOL-20
#[test]
fn errors_of_pages_and_of_the_rest_of_a_block_fail_that_request_alone() {
    let mut scene = Scene::new();
    let mut v = scene.guest("v");
    v.write(0, &[1; 8192]);
    v.flush();
    drop(v);
    scene.qmp().order("x-pitstop-snapshot", json!({"source": "v", "name": "copy"}));
    scene.restart();
    let mut v = scene.guest("v");
    // Nothing is in memory yet: the table page of what lies below is read first, then the block to complete.
    for after in 0..2 {
        scene.fs.fail(&[Fault { after, times: 1, ..Fault::every(Op::Read, libc::EIO) }]);
        assert_eq!(writes(&mut v, 512, 3, 512), IOERR, "after {after} reads");
        assert_eq!(scene.fs.failed(), 1);
    }
    v.write(512, &[4; 512]);
    assert!(v.read(0, 8192) == [&[1; 512][..], &[4; 512], &[1; 7168]].concat());
    scene.end();
}

/// A failed sync or journal write: from then on nothing can be promised, until the container is opened again.
fn fails_the_container(fault: Fault, reason: &str) {
    let mut scene = Scene::new();
    let (mut v, mut w) = (scene.guest("v"), scene.guest("w"));
    v.write(0, &[1; 8192]);
    w.write(0, &[1; 8192]);
    v.flush();
    w.flush();
    v.write(4096, &[2; 8192]);
    let mut qmp = scene.qmp();
    scene.fs.fail(&[fault]);
    assert_eq!(status(&mut v, T_FLUSH, 0, &mut []), IOERR);
    scene.fs.fail(&[]);
    // The storage is well again, but what it lost is unknown.
    assert_eq!(status(&mut v, T_FLUSH, 0, &mut []), IOERR);
    assert_eq!(status(&mut w, T_FLUSH, 0, &mut []), IOERR, "the container is one");
    assert_eq!(writes(&mut w, 65536, 3, 4096), IOERR);
    assert!(w.read(0, 8192) == [1; 8192], "reads go on");
    assert!(qmp.event("X_PITSTOP_CONTAINER_FAILED")["reason"].as_str().unwrap().contains(reason));
    let info = qmp.order("x-pitstop-query-container", json!({}));
    assert!(info["failure"].as_str().unwrap().contains(reason), "{info}");
    let why = qmp.refused("x-pitstop-snapshot", json!({"source": "w", "name": "late"}));
    assert!(why.contains("has failed") && why.contains("open it again"), "{why}");
    for (command, arguments) in [
        ("x-pitstop-volume-create", json!({"name": "late", "size": 1 << 20})),
        ("x-pitstop-volume-rename", json!({"name": "w", "new-name": "late"})),
        ("x-pitstop-refresh", json!({"name": "w", "source": "v", "force": true})),
    ] {
        let why = qmp.refused(command, arguments);
        assert!(why.contains("has failed") && why.contains("open it again"), "{command}: {why}");
    }
    for command in ["query-block-exports", "x-pitstop-query-volumes", "x-pitstop-query-layers"] {
        qmp.order(command, json!({}));
    }
    let report = qmp.order("x-pitstop-check", json!({}));
    assert_eq!((&report["corruptions"], &report["leaks"]), (&json!(0), &json!(0)), "what is durable is whole");
    qmp.order("block-export-del", json!({"id": "w", "mode": "hard"}));
    let why = qmp.refused("x-pitstop-volume-delete", json!({"name": "w"}));
    assert!(why.contains("has failed") && why.contains("open it again"), "{why}");
    scene.wait_for_log("end this daemon and start it again");
    drop((v, w, qmp));
    // An orderly end is not possible any more, and says so.
    let status = scene.daemon.take().unwrap().terminate();
    assert_eq!(status.code(), Some(1));
    scene.check();
    scene.start();
    let (mut v, mut w) = (scene.guest("v"), scene.guest("w"));
    assert!(v.read(0, 4096) == [1; 4096] && w.read(0, 8192) == [1; 8192], "what was flushed is there");
    let rewritten = v.read(4096, 4096);
    assert!(rewritten.chunks(512).all(|sector| sector == [1; 512] || sector == [2; 512]));
    v.write(65536, &[4; 4096]);
    v.flush();
    scene.end();
}

// rule: JNL-14
#[test]
fn a_failed_sync_fails_the_container_until_it_is_opened_again() {
    fails_the_container(Fault { times: 1, ..Fault::every(Op::Sync, libc::EIO) }, "sync failed");
}

// rule: JNL-14
#[test]
fn a_failed_journal_write_fails_the_container_until_it_is_opened_again() {
    let journal = Fault { range: JOURNAL, times: 1, ..Fault::every(Op::Write, libc::ENOSPC) };
    fails_the_container(journal, "journal write failed");
}

/// Nobody is shown what an earlier connection has left, even when nothing can be changed any more.
// rule: SNP-42
#[test]
fn a_failed_container_refuses_connections_that_need_a_refresh() {
    let mut scene = Scene::new();
    let mut qmp = scene.qmp();
    qmp.order("x-pitstop-volume-create", json!({"name": "ci", "size": 1 << 20}));
    let addr = json!({"type": "unix", "path": text(&scene.place.path("ci"))});
    let export = json!({"type": "vhost-user-blk", "id": "ci", "node-name": "ci", "writable": true, "addr": addr,
        "x-pitstop-refresh-on-connect": "v"});
    qmp.order("block-export-add", export);
    let (mut v, mut ci) = (scene.guest("v"), scene.guest("ci"));
    v.write(0, &[1; 4096]);
    ci.write(0, &[2; 4096]);
    drop(ci);
    scene.fs.fail(&[Fault { times: 1, ..Fault::every(Op::Sync, libc::EIO) }]);
    for _ in 0..2 {
        let stream = std::os::unix::net::UnixStream::connect(scene.place.path("ci")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(Frontend::from_stream(stream, 1).get_features().is_err());
    }
    assert_eq!(qmp.event("X_PITSTOP_REFRESH_FAILED")["id"], "ci");
    scene.wait_for_log("container has failed");
    assert!(v.read(0, 4096) == [1; 4096], "others go on reading");
    drop((v, qmp));
    assert_eq!(scene.daemon.take().unwrap().terminate().code(), Some(1));
    scene.check();
}

/// Metadata that does not come home leaves the journal full for ever.
// rule: JNL-14
#[test]
fn a_failed_home_write_fails_the_container_until_it_is_opened_again() {
    let options = CreateOptions { journal_len_bytes: 1 << 20, ..CreateOptions::default() };
    let mut scene = Scene::with_options("", &options);
    let mut v = scene.guest("v");
    let mut qmp = scene.qmp();
    const DESCRIPTORS: Range<u64> = 2 << 18..3 << 18;
    scene.fs.fail(&[Fault { range: DESCRIPTORS, ..Fault::every(Op::Write, libc::EIO) }]);
    let flushed = (1..=250u8).take_while(|&byte| {
        writes(&mut v, u64::from(byte) * 4096, byte, 4096) == OK && status(&mut v, T_FLUSH, 0, &mut []) == OK
    });
    let flushed = flushed.count();
    assert!(flushed < 250, "half of the journal is used up by then");
    qmp.event("X_PITSTOP_CONTAINER_FAILED");
    scene.wait_for_log("end this daemon and start it again");
    drop((v, qmp));
    assert_eq!(scene.daemon.take().unwrap().terminate().code(), Some(1));
    scene.fs.fail(&[]);
    scene.check();
    scene.start();
    let mut v = scene.guest("v");
    for byte in 1..=flushed as u8 {
        assert!(v.read(u64::from(byte) * 4096, 4096) == [byte; 4096], "block {byte} was flushed");
    }
    scene.end();
}
