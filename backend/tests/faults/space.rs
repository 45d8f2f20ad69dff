//! Storage that is full.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::client::{Client, DATA_START, Style, T_FLUSH, T_IN, T_OUT};
use crate::common::faulty::{Fault, Op};
use crate::common::{Daemon, Place, Qmp, text, wait_until};
use serde_json::json;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::{Bytes, GuestAddress};

use crate::scene::*;

/// Fills `v` from its beginning with blocks of 256 KiB until a write is not answered well, or not at all within a
/// second; returns where, and the answer.
pub fn fill_up(guest: &mut Client) -> (u64, Option<u8>) {
    for offset in (0..crate::common::VOLUME_LEN).step_by(256 << 10) {
        guest.mem.write_slice(&[7; 256 << 10], GuestAddress(DATA_START)).unwrap();
        guest.queues[0].submit(T_OUT, offset / 512, &[(DATA_START, 256 << 10)]);
        let since = Instant::now();
        let done = loop {
            if let Some(done) = guest.queues[0].take_done() {
                break Some(done.status);
            }
            if since.elapsed() > Duration::from_secs(3) {
                break None;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        if done != Some(OK) {
            return (offset, done);
        }
    }
    panic!("the file system did not become full");
}

// rule: VOL-8, VOL-20
#[test]
fn a_full_file_system_fails_first_writes_alone_and_passes() {
    let scene = Scene::without_room("");
    let (mut v, mut w) = (scene.guest("v"), scene.guest("w"));
    w.write(0, &[2; 4096]);
    let mut qmp = scene.qmp();
    let (offset, answer) = fill_up(&mut v);
    assert_eq!(answer, Some(IOERR));
    let event = qmp.event("BLOCK_IO_ERROR");
    assert_eq!((&event["nospace"], &event["action"]), (&json!(true), &json!("report")));
    assert!(event["reason"].as_str().unwrap().contains("no space left in the container"), "{event}");
    w.write(0, &[3; 4096]);
    v.write(0, &[8; 4096]);
    v.flush();
    assert!(v.read(4096, 4096) == [7; 4096] && w.read(0, 4096) == [3; 4096]);
    qmp.order("x-pitstop-snapshot", json!({"source": "w", "name": "copy"}));
    scene.fs.set_capacity(u64::MAX);
    wait_until("growth", || writes(&mut v, offset, 9, 4096) == OK);
    v.flush();
    scene.end();
}

// rule: VOL-8
#[test]
fn a_limit_on_file_sizes_is_a_full_file_system() {
    let place = Place::with_volumes(&["v"]);
    let limit = std::fs::metadata(place.container()).unwrap().len();
    let mut command = std::process::Command::new("prlimit");
    command.args([&format!("--fsize={limit}"), env!("CARGO_BIN_EXE_pitstopd"), text(&place.container())]);
    command.args(["--export", &format!("volume=v,socket={}", text(&place.path("v")))]);
    let daemon = Daemon::of(command.stdin(Stdio::null()));
    wait_until("socket", || crate::common::is_listened_on(&place.path("v")));
    let mut v = Client::connect(&place.path("v"), Style::PLAIN);
    assert_eq!(fill_up(&mut v).1, Some(IOERR));
    v.write(0, &[1; 512]);
    v.flush();
    assert_eq!(daemon.terminate().code(), Some(0));
}

/// A guest of an export with `on-enospc=stop` whose last request waits for space; its place on the disk.
fn starved(scene: &Scene, qmp: &mut Qmp) -> (Client, u64) {
    let mut v = scene.guest("v");
    let (offset, answer) = fill_up(&mut v);
    assert_eq!(answer, None);
    let event = qmp.event("BLOCK_IO_ERROR");
    assert_eq!((&event["nospace"], &event["action"]), (&json!(true), &json!("stop")));
    assert_eq!((&event["device"], &event["node-name"]), (&json!("v"), &json!("v")));
    scene.wait_for_log("wait until there is space");
    let exports = qmp.order("query-block-exports", json!({}));
    assert_eq!((&exports[0]["x-pitstop-starved"], &exports[1]["x-pitstop-starved"]), (&json!(1), &json!(0)));
    (v, offset)
}

fn wait_for_answer(guest: &mut Client) -> u8 {
    let mut answer = None;
    wait_until("the answer", || {
        answer = guest.queues[0].take_done();
        answer.is_some()
    });
    answer.unwrap().status
}

/// Requests of other kinds, while one waits.
fn others_go_on(scene: &Scene, guest: &mut Client, qmp: &mut Qmp) {
    let mut pending = Vec::new();
    for (kind, sector) in [(T_IN, 8), (T_OUT, 16), (T_FLUSH, 0)] {
        let pieces = [(DATA_START + (1 << 20), 4096)];
        let pieces = if kind == T_FLUSH { &[][..] } else { &pieces };
        pending.push(guest.queues[0].submit(kind, sector, pieces));
        let done = guest.queues[0].wait_one();
        assert_eq!((Some(&done.head), done.status), (pending.last(), OK), "kind {kind}");
    }
    let mut w = scene.guest("w");
    assert_eq!(status(&mut w, T_FLUSH, 0, &mut []), OK);
    qmp.order("x-pitstop-snapshot", json!({"source": "v", "name": "copy"}));
    qmp.order("x-pitstop-volume-delete", json!({"name": "copy"}));
}

// rule: VOL-21, CTL-50, CTL-51, CTL-54
#[test]
fn with_on_enospc_stop_a_write_waits_until_the_file_can_grow() {
    let scene = Scene::without_room(",on-enospc=stop");
    let mut qmp = scene.qmp();
    let (mut v, offset) = starved(&scene, &mut qmp);
    others_go_on(&scene, &mut v, &mut qmp);
    assert!(v.queues[0].take_done().is_none());
    scene.fs.set_capacity(u64::MAX);
    assert_eq!(wait_for_answer(&mut v), OK);
    assert_eq!(qmp.event("X_PITSTOP_BLOCK_EXPORT_RESUMED"), json!({"id": "v"}));
    assert!(v.read(offset, 256 << 10) == [7; 256 << 10]);
    v.flush();
    scene.end();
}

// rule: VOL-21
#[test]
fn with_on_enospc_stop_a_write_waits_until_slabs_are_freed() {
    let scene = Scene::without_room(",on-enospc=stop");
    let mut qmp = scene.qmp();
    qmp.order("x-pitstop-volume-create", json!({"name": "waste", "size": 1 << 20}));
    let addr = json!({"type": "unix", "path": text(&scene.place.path("waste"))});
    let export = json!({"type": "vhost-user-blk", "id": "waste", "node-name": "waste", "writable": true, "addr": addr});
    qmp.order("block-export-add", export);
    let mut waste = scene.guest("waste");
    waste.write(0, &[1; 1 << 20]);
    waste.flush();
    drop(waste);
    let (mut v, offset) = starved(&scene, &mut qmp);
    qmp.order("block-export-del", json!({"id": "waste", "mode": "hard"}));
    qmp.order("x-pitstop-volume-delete", json!({"name": "waste"}));
    assert_eq!(wait_for_answer(&mut v), OK);
    assert!(v.read(offset, 256 << 10) == [7; 256 << 10]);
    scene.end();
}

// rule: VOL-21
#[test]
fn with_on_enospc_stop_a_write_waits_also_where_the_storage_itself_is_full() {
    let scene = Scene::with(",on-enospc=stop");
    let (mut v, mut w) = (scene.guest("v"), scene.guest("w"));
    let mut qmp = scene.qmp();
    for errno in [libc::ENOSPC, libc::EDQUOT] {
        scene.fs.fail(&[Fault { range: DATA, ..Fault::every(Op::Write, errno) }]);
        v.mem.write_slice(&[5; 4608], GuestAddress(DATA_START)).unwrap();
        v.queues[0].submit(T_OUT, 0, &[(DATA_START, 4608)]);
        assert_eq!(qmp.event("BLOCK_IO_ERROR")["action"], "stop");
        assert_eq!(status(&mut w, T_FLUSH, 0, &mut []), OK);
        let failed = scene.fs.failed();
        wait_until("another try", || scene.fs.failed() > failed + 1);
        assert!(v.queues[0].take_done().is_none());
        scene.fs.fail(&[]);
        assert_eq!(wait_for_answer(&mut v), OK);
        qmp.event("X_PITSTOP_BLOCK_EXPORT_RESUMED");
    }
    assert!(v.read(0, 4608) == [5; 4608]);
    // Another error is no lack of space.
    scene.fs.fail(&[Fault { range: DATA, ..Fault::every(Op::Write, libc::EIO) }]);
    assert_eq!(writes(&mut v, 0, 6, 512), IOERR);
    scene.fs.fail(&[]);
    scene.end();
}

// rule: VOL-22
#[test]
fn nothing_waits_for_a_request_that_waits_for_space() {
    for case in 0..5 {
        let mut scene = Scene::without_room(",on-enospc=stop");
        let mut qmp = scene.qmp();
        let (mut v, _) = starved(&scene, &mut qmp);
        match case {
            0 => {
                let base = v.frontend.get_vring_base(0).unwrap();
                assert_eq!(base, u32::from(v.queues[0].next_avail()));
                assert_eq!(v.queues[0].take_done().unwrap().status, IOERR, "a drained ring has no request left");
                assert_eq!(qmp.event("X_PITSTOP_BLOCK_EXPORT_RESUMED"), json!({"id": "v"}));
                v.start_queue(0);
                assert!(v.read(0, 4096) == [7; 4096]);
            }
            1 => v.frontend.reset_owner().unwrap(),
            2 => {
                drop(v);
                assert_eq!(qmp.event("X_PITSTOP_BLOCK_EXPORT_RESUMED"), json!({"id": "v"}));
                v = scene.guest("v");
                assert!(v.read(0, 4096) == [7; 4096]);
            }
            3 => {
                qmp.order("block-export-del", json!({"id": "v", "mode": "hard"}));
                assert_eq!(wait_for_answer(&mut v), IOERR);
            }
            _ => {
                qmp.order("quit", json!({}));
                assert_eq!(scene.daemon.take().unwrap().end().code(), Some(0));
                scene.check();
                continue;
            }
        }
        scene.end();
    }
}

// rule: VOL-21, VOL-22
#[test]
fn many_requests_that_wait_for_space_stop_nobody_and_complete_as_what_they_were() {
    const WAITING: u64 = 40;
    let scene = Scene::without_room(",on-enospc=stop");
    let mut qmp = scene.qmp();
    let mut w = scene.guest("w");
    (0..WAITING).for_each(|index| w.write(index * (256 << 10), &[5; 512])); // so that `v` cannot get that much
    let (mut v, offset) = starved(&scene, &mut qmp);
    let buffer = |index: u64| DATA_START + (1 << 20) + index * 4096;
    for index in 0..WAITING - 1 {
        v.mem.write_slice(&[index as u8 + 1; 4096], GuestAddress(buffer(index))).unwrap();
        v.queues[0].submit(T_OUT, (offset + (1 + index) * (256 << 10)) / 512, &[(buffer(index), 4096)]);
    }
    let waiting = |qmp: &mut Qmp| qmp.order("query-block-exports", json!({}))[0]["x-pitstop-starved"].as_u64();
    wait_until("all wait", || waiting(&mut qmp) == Some(WAITING));
    // One starved export stops no other, nor the background, nor does it keep a processor busy.
    let before = scene.daemon.as_ref().unwrap().cpu_time();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2) {
        assert_eq!(status(&mut w, T_FLUSH, 0, &mut []), OK);
        std::thread::sleep(Duration::from_millis(100));
    }
    let used = scene.daemon.as_ref().unwrap().cpu_time() - before;
    assert!(used < Duration::from_secs(1), "{used:?} of processor time to wait for 2 s");
    qmp.order("x-pitstop-refresh", json!({"name": "v", "source": "w", "force": true}));
    scene.fs.set_capacity(u64::MAX);
    let mut ended = 0;
    wait_until("all complete", || {
        while let Some(done) = v.queues[0].take_done() {
            assert_eq!(done.status, OK);
            ended += 1;
        }
        ended == WAITING
    });
    assert_eq!(qmp.event("X_PITSTOP_BLOCK_EXPORT_RESUMED"), json!({"id": "v"}));
    assert!(v.read(0, 1024) == [[5; 512], [0; 512]].concat(), "it has been refreshed");
    assert!(v.read(offset, 256 << 10) == [7; 256 << 10]);
    for index in 0..WAITING - 1 {
        assert!(v.read(offset + (1 + index) * (256 << 10), 4096) == [index as u8 + 1; 4096]);
    }
    scene.end();
}

// rule: VOL-21
#[test]
fn with_on_enospc_stop_a_guest_makes_room_for_itself_by_discards() {
    let scene = Scene::without_room(",on-enospc=stop");
    let mut qmp = scene.qmp();
    let (mut v, offset) = starved(&scene, &mut qmp);
    assert!(offset > 0);
    let descriptor = |sector: u64, sectors: u32| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes
    };
    let addr = DATA_START + (1 << 20);
    v.mem.write_slice(&descriptor(0, 512), GuestAddress(addr)).unwrap();
    let discard = v.queues[0].submit(crate::common::client::T_DISCARD, 0, &[(addr, 16)]);
    let mut ended = Vec::new();
    wait_until("both", || {
        while let Some(done) = v.queues[0].take_done() {
            assert_eq!(done.status, OK);
            ended.push(done.head);
        }
        ended.len() == 2
    });
    assert_eq!(ended[0], discard, "a discard waits for no space");
    assert!(v.read(0, 4096) == [0; 4096] && v.read(offset, 256 << 10) == [7; 256 << 10]);
    scene.end();
}

// rule: VOL-22, JNL-14
#[test]
fn whatever_ends_the_wait_for_space_the_request_is_answered() {
    for case in 0..5 {
        let mut scene = Scene::without_room(",on-enospc=stop");
        let mut qmp = scene.qmp();
        let mut w = scene.guest("w");
        w.write(0, &[1; 512]);
        let (mut v, _) = starved(&scene, &mut qmp);
        match case {
            0 => {
                scene.fs.fail(&[Fault { times: 1, ..Fault::every(Op::Sync, libc::EIO) }]);
                w.write(512, &[1; 512]);
                assert_eq!(status(&mut w, T_FLUSH, 0, &mut []), IOERR);
            }
            1 => drop(v.frontend.set_mem_table(&[v.region()]).unwrap()),
            2 => v.set_write_cache(false).unwrap(),
            3 => v.frontend.set_vring_enable(0, false).unwrap(),
            _ => scene.daemon.as_ref().unwrap().signal("TERM"),
        };
        assert_eq!(wait_for_answer(&mut v), IOERR, "case {case}");
        assert_eq!(qmp.event("X_PITSTOP_BLOCK_EXPORT_RESUMED"), json!({"id": "v"}));
        if case == 0 {
            assert_eq!(scene.daemon.take().unwrap().terminate().code(), Some(1));
            scene.check();
        } else if case == 4 {
            assert_eq!(scene.daemon.take().unwrap().end().code(), Some(0));
            scene.check();
        } else {
            scene.end();
        }
    }
}

// rule: VOL-21, CTL-51, CTL-54
#[test]
fn exports_that_wait_and_exports_that_report_stand_side_by_side() {
    let scene = Scene::without_room(",on-enospc=stop");
    let mut qmp = scene.qmp();
    qmp.order("x-pitstop-volume-create", json!({"name": "r", "size": crate::common::VOLUME_LEN}));
    let addr = json!({"type": "unix", "path": text(&scene.place.path("r"))});
    let export = json!({"type": "vhost-user-blk", "id": "r", "node-name": "r", "writable": true, "addr": addr});
    qmp.order("block-export-add", export);
    let (mut v, _) = starved(&scene, &mut qmp);
    let mut r = scene.guest("r");
    assert_eq!(writes(&mut r, 0, 1, 4096), IOERR);
    let event = qmp.event("BLOCK_IO_ERROR");
    assert_eq!((&event["device"], &event["action"]), (&json!("r"), &json!("report")));
    assert!(v.queues[0].take_done().is_none());
    scene.fs.set_capacity(u64::MAX);
    assert_eq!(wait_for_answer(&mut v), OK);
    wait_until("growth", || writes(&mut r, 0, 1, 4096) == OK);
    scene.end();
}

// rule: CTL-52, CTL-53
#[test]
fn space_is_warned_of_before_it_runs_out() {
    let scene = Scene::new();
    let mut qmp = scene.qmp();
    let used = qmp.order("x-pitstop-query-container", json!({}))["allocated-bytes"].as_u64().unwrap();
    let capacity = |percent: u64| scene.fs.set_capacity(used * 100 / percent);
    capacity(84);
    let event = qmp.event("X_PITSTOP_SPACE_WARNING");
    assert_eq!(event["mark"], 80);
    assert!((80..=84).contains(&event["used-percent"].as_u64().unwrap()), "{event}");
    scene.wait_for_log("MiB are left");
    let space = &qmp.order("x-pitstop-query-container", json!({}))["space"];
    assert_eq!(space["warning"], 80, "{space}");
    scene.fs.set_capacity(1 << 40);
    assert!(qmp.event("X_PITSTOP_SPACE_OK")["available-bytes"].as_u64().unwrap() > 1 << 38);
    assert!(qmp.order("x-pitstop-query-container", json!({}))["space"]["warning"].is_null());
    scene.end();
}
