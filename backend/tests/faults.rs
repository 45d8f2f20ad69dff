//! What guests, clients and the log see when the storage fails or is full (promises 1 to 4, VOL-8, VOL-20 to VOL-22,
//! JNL-14): an unmodified `pitstopd` on a file system whose requests fail on demand (`common/faulty.rs`).

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use std::ops::Range;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::client::{Client, DATA_START, Style, T_FLUSH, T_IN, T_OUT};
use common::faulty::{Fault, FaultyFs, Grain, Op};
use common::{Daemon, Place, Qmp, Random, text, wait_until};
use pitstop_format::check::{Outcome, check};
use pitstop_format::{CreateOptions, FileDisk, OpenMode, VolumeIo};
use serde_json::json;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::{Bytes, GuestAddress};

const OK: u8 = 0;
const IOERR: u8 = 1;
/// Journal of a new container; data lies behind it.
const JOURNAL: Range<u64> = 3 << 18..(3 << 18) + (64 << 20);
const DATA: Range<u64> = JOURNAL.end..u64::MAX;

/// A daemon that serves `v` and `w` from the faulty file system.
struct Scene {
    daemon: Option<Daemon>,
    fs: FaultyFs,
    place: Place,
    more: String,
}

impl Scene {
    fn new() -> Self {
        Self::with("")
    }

    /// Exports with more options: `,KEY=VALUE`.
    fn with(more: &str) -> Self {
        Self::with_options(more, &CreateOptions::default())
    }

    /// On a file system without room for a larger container: the daemon never gets to grow it, however early it tries.
    fn without_room(more: &str) -> Self {
        Self::prepared(more, &CreateOptions::default(), |fs| fs.set_capacity(fs.file_len()))
    }

    fn with_options(more: &str, options: &CreateOptions) -> Self {
        Self::prepared(more, options, |_| {})
    }

    fn prepared(more: &str, options: &CreateOptions, prepare: impl FnOnce(&FaultyFs)) -> Self {
        let place = Place::with_options(&["v", "w"], options);
        let fs = FaultyFs::mount(&place.path("mounted"), &place.container(), Grain::Sector);
        prepare(&fs);
        let mut scene = Scene { daemon: None, fs, place, more: more.to_owned() };
        scene.start();
        scene
    }

    fn start(&mut self) {
        let mut arguments = vec![text(&self.fs.file()).to_owned()];
        arguments.extend(["--control".to_owned(), text(&self.control()).to_owned()]);
        for volume in ["v", "w"] {
            arguments.push("--export".to_owned());
            arguments.push(format!("volume={volume},socket={}{}", text(&self.place.path(volume)), self.more));
        }
        self.daemon = Some(Daemon::start_logged(&arguments, &self.place.path("log")));
        wait_until("control socket", || self.control().exists());
    }

    fn control(&self) -> PathBuf {
        self.place.path("control")
    }

    fn qmp(&self) -> Qmp {
        Qmp::connect(&self.control())
    }

    fn guest(&self, volume: &str) -> Client {
        Client::connect(&self.place.path(volume), Style::PLAIN)
    }

    fn wait_for_log(&self, part: &str) {
        let path = self.place.path("log");
        wait_until(part, || std::fs::read_to_string(&path).unwrap().contains(part));
    }

    /// Ends the daemon, which must have survived all this.
    fn stop(&mut self) {
        assert_eq!(self.daemon.take().unwrap().terminate().code(), Some(0));
    }

    fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// Ends the daemon; the container must be sound.
    fn end(mut self) {
        self.stop();
        self.check();
    }

    fn check(&self) {
        common::alone_with_container(|| {
            let disk = FileDisk::open(&self.place.container(), OpenMode::ReadOnly).unwrap();
            let report = check(&*disk).unwrap();
            assert_eq!(report.outcome(), Outcome::Clean, "{:?}", report.findings);
        });
    }
}

fn status(guest: &mut Client, kind: u32, offset: u64, data: &mut [u8]) -> u8 {
    guest.request(kind, offset / 512, data).status
}

fn writes(guest: &mut Client, offset: u64, byte: u8, len: usize) -> u8 {
    status(guest, T_OUT, offset, &mut vec![byte; len])
}

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

/// Fills `v` from its beginning with blocks of 256 KiB until a write is not answered well, or not at all within a
/// second; returns where, and the answer.
fn fill_up(guest: &mut Client) -> (u64, Option<u8>) {
    for offset in (0..common::VOLUME_LEN).step_by(256 << 10) {
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
    wait_until("socket", || common::is_listened_on(&place.path("v")));
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
    let discard = v.queues[0].submit(common::client::T_DISCARD, 0, &[(addr, 16)]);
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
    qmp.order("x-pitstop-volume-create", json!({"name": "r", "size": common::VOLUME_LEN}));
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

/// A store that answers nothing holds up requests, and nothing else.
// rule: CTL-32
#[test]
fn a_store_that_hangs_leaves_questions_answered_and_the_end_in_order() {
    let mut scene = Scene::new();
    let mut v = Client::connect(&scene.place.path("v"), Style { indirect: true, ..Style::PLAIN });
    let mut w = scene.guest("w");
    v.write(0, &[1; 4096]);
    w.write(0, &[1; 4096]);
    v.flush();
    let mut qmp = scene.qmp();
    scene.fs.set_hung(true);
    // Pieces that suit no direct I/O: each request takes a buffer beside, of which there are few.
    for index in 0..40u64 {
        let at = DATA_START + (1 << 20) + index * 8192;
        v.queues[0].submit(T_IN, 0, &[(at, 100), (at + 100, 3996)]);
    }
    let flush = w.queues[0].submit(T_FLUSH, 0, &[]);
    let before = scene.daemon.as_ref().unwrap().cpu_time();
    std::thread::sleep(Duration::from_secs(2));
    let used = scene.daemon.as_ref().unwrap().cpu_time() - before;
    let mut other = scene.qmp();
    let ending = std::thread::spawn(move || {
        other.order("block-export-del", json!({"id": "w", "mode": "hard"}));
    });
    wait_until("the end has begun", || qmp.order("query-block-exports", json!({}))[1]["shutting-down"] == true);
    for command in ["query-version", "query-block-exports", "x-pitstop-query-volumes", "x-pitstop-query-layers"] {
        qmp.order(command, json!({}));
    }
    assert!(v.queues[0].take_done().is_none() && w.queues[0].take_done().is_none());
    assert!(used < Duration::from_secs(1), "{used:?} of processor time to wait for 2 s");
    scene.daemon.as_ref().unwrap().signal("TERM");
    qmp.event("SHUTDOWN");
    assert!(scene.daemon.as_mut().unwrap().is_running(), "requests are under way");
    scene.fs.set_hung(false);
    ending.join().unwrap();
    assert_eq!(scene.daemon.take().unwrap().end().code(), Some(0));
    let mut answers = 0;
    while let Some(done) = v.queues[0].take_done() {
        assert_eq!(done.status, OK);
        answers += 1;
    }
    assert_eq!(answers, 40, "the queue had two seconds to take them all");
    let done = w.queues[0].take_done().unwrap();
    assert_eq!((done.head, done.status), (flush, OK));
    scene.check();
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
    wait_until("socket", || common::is_listened_on(&place.path("v")));
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
    let mut command = common::command();
    command.env("PITSTOP_LOG", "debug").stderr(Stdio::piped());
    command.args([text(&place.container()), "--export", &format!("volume=v,socket={}", text(&place.path("v")))]);
    let daemon = Daemon::of(&mut command);
    wait_until("socket", || common::is_listened_on(&place.path("v")));
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
