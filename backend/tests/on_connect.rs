//! Refresh on connect: every connection begins with what the source holds, or is refused (SNP-40 to SNP-43, CTL-90 to
//! CTL-92).

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::client::{Client, Style};
use common::{Daemon, PATIENCE, Place, Qmp, VOLUME_LEN, text, wait_until};
use serde_json::{Value, json};
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;

/// `golden`, served as it is, and `ci`, which begins anew from it with every connection.
struct Scene {
    place: Place,
    daemon: Option<Daemon>,
}

impl Scene {
    fn new() -> Self {
        let mut scene = Scene { place: Place::with_volumes(&["golden", "ci"]), daemon: None };
        scene.start();
        scene
    }

    fn start(&mut self) {
        let export = |volume: &str| format!("volume={volume},socket={}", text(&self.place.path(volume)));
        let mut arguments = vec![text(&self.place.container()).to_owned()];
        arguments.extend(["--control".to_owned(), text(&self.control()).to_owned()]);
        arguments.extend(["--export".to_owned(), export("golden")]);
        arguments.extend(["--export".to_owned(), export("ci") + ",refresh-on-connect=golden"]);
        self.daemon = Some(Daemon::start_logged(&arguments, &self.place.path("log")));
        wait_until("control socket", || self.control().exists());
    }

    fn stop(&mut self) {
        assert_eq!(self.daemon.take().unwrap().terminate().code(), Some(0));
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

    /// A front end's first message must be refused by the end of its connection.
    fn assert_refused(&self) {
        let stream = UnixStream::connect(self.place.path("ci")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let refused = Frontend::from_stream(stream, 1).get_features();
        assert!(refused.is_err(), "{refused:?}");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.place.path("log")).unwrap()
    }
}

fn volume(qmp: &mut Qmp, name: &str) -> Value {
    qmp.order("x-pitstop-query-volumes", json!({"name": name}))[0].clone()
}

fn is_connected(qmp: &mut Qmp, id: &str) -> bool {
    let exports = qmp.order("query-block-exports", json!({}));
    let export = exports.as_array().unwrap().iter().find(|export| export["id"] == id).unwrap();
    export["x-pitstop-connected"].as_bool().unwrap()
}

fn sectors(client: &mut Client) -> u64 {
    u64::from_le_bytes(client.config(0, 8).try_into().unwrap())
}

// rule: SNP-40, SNP-41, CTL-92
#[test]
fn every_connection_begins_with_what_the_source_holds_then() {
    let mut scene = Scene::new();
    let mut qmp = scene.qmp();
    let mut golden = scene.guest("golden");
    golden.write(0, &[1; 4096]);
    let mut ci = scene.guest("ci");
    assert_eq!(qmp.event("X_PITSTOP_VOLUME_REFRESHED"), json!({"name": "ci", "source": "golden"}));
    assert_eq!(ci.read(0, 4096), [1; 4096]);
    ci.write(0, &[8; 4096]);
    ci.write(1 << 20, &[9; 65536]);
    ci.flush();
    drop(ci);
    let mut ci = scene.guest("ci");
    assert_eq!(ci.read(0, 4096), [1; 4096]);
    assert_eq!(ci.read(1 << 20, 65536), [0; 65536]);
    golden.write(0, &[2; 4096]);
    ci.frontend.reset_owner().unwrap();
    drop(ci);
    let mut ci = scene.guest("ci");
    assert_eq!(ci.read(0, 4096), [2; 4096]);
    golden.write(0, &[3; 4096]);
    assert_eq!(ci.read(0, 4096), [2; 4096], "once a connection");
    drop((ci, golden, qmp));
    scene.stop();
}

// rules: SNP-40, VIEW-9
#[test]
fn a_volume_that_is_part_of_a_view_lets_nobody_in() {
    let mut scene = Scene::new();
    let mut qmp = scene.qmp();
    qmp.order("x-pitstop-view-create", json!({"source": "ci", "name": "view"}));
    scene.assert_refused();
    wait_until("the reason", || scene.log().contains("part of the write-through view 'view'"));
    qmp.order("x-pitstop-view-drop", json!({"name": "view"}));
    drop((scene.guest("ci"), qmp));
    scene.stop();
}

// rule: SNP-43
#[test]
fn after_a_restart_of_the_daemon_it_is_a_new_connection() {
    let mut scene = Scene::new();
    let mut ci = scene.guest("ci");
    ci.write(0, &[8; 4096]);
    ci.flush();
    drop(ci);
    scene.stop();
    assert_eq!(scene.place.read_volume("ci")[..4096], [8; 4096], "until the next connection it is what it was");
    scene.start();
    assert_eq!(scene.guest("ci").read(0, 4096), [0; 4096]);
    scene.stop();
}

/// Who only looks whether somebody listens takes nobody's data away.
// rule: SNP-40
#[test]
fn a_connection_without_a_word_refreshes_nothing() {
    let mut scene = Scene::new();
    let mut qmp = scene.qmp();
    let mut ci = scene.guest("ci");
    ci.write(0, &[8; 4096]);
    drop(ci);
    let instant = |qmp: &mut Qmp| volume(qmp, "ci")["origin"]["instant-unix-ns"].clone();
    let before = instant(&mut qmp);
    let silent = UnixStream::connect(scene.place.path("ci")).unwrap();
    wait_until("connection", || is_connected(&mut qmp, "ci"));
    drop(silent);
    wait_until("its end", || !is_connected(&mut qmp, "ci"));
    assert_eq!(instant(&mut qmp), before);
    // Half a message is a word; the refresh is not the other half's.
    let mut half = UnixStream::connect(scene.place.path("ci")).unwrap();
    half.write_all(&[1, 0]).unwrap();
    wait_until("refresh", || instant(&mut qmp) != before);
    let before = instant(&mut qmp);
    half.write_all(&[0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap(); // GET_FEATURES
    half.read_exact(&mut [0; 20]).unwrap();
    assert_eq!(instant(&mut qmp), before);
    drop((half, qmp));
    scene.stop();
}

// rule: SNP-42, CTL-91, CTL-92
#[test]
fn without_its_source_a_connection_is_refused_until_there_is_one_again() {
    let mut scene = Scene::new();
    let mut qmp = scene.qmp();
    let mut ci = scene.guest("ci");
    ci.write(0, &[8; 4096]);
    ci.flush();
    drop(ci);
    qmp.order("x-pitstop-volume-rename", json!({"name": "golden", "new-name": "moved"}));
    scene.assert_refused();
    let event = qmp.event("X_PITSTOP_REFRESH_FAILED");
    assert_eq!((&event["id"], &event["node-name"], &event["source"]), (&json!("ci"), &json!("ci"), &json!("golden")));
    assert!(event["reason"].as_str().unwrap().contains("no volume named 'golden'"), "{event}");
    let line = "refused: volume 'ci' cannot be refreshed from 'golden' on connect: no volume named 'golden'";
    wait_until("log", || scene.log().contains(line));
    scene.assert_refused();
    // What has the source's name then is the source, even if it is not what it was.
    qmp.order("x-pitstop-volume-rename", json!({"name": "ci", "new-name": "golden"}));
    scene.assert_refused();
    assert!(qmp.event("X_PITSTOP_REFRESH_FAILED")["reason"].is_string());
    wait_until("log", || scene.log().contains("cannot be refreshed from itself"));
    qmp.order("x-pitstop-volume-rename", json!({"name": "golden", "new-name": "ci"}));
    qmp.order("x-pitstop-volume-create", json!({"name": "golden", "size": VOLUME_LEN}));
    qmp.order("x-pitstop-snapshot", json!({"source": "ci", "name": "kept"}));
    let mut ci = scene.guest("ci");
    assert_eq!(ci.read(0, 4096), [0; 4096]);
    qmp.order("x-pitstop-volume-delete", json!({"name": "golden"}));
    assert_eq!(ci.read(0, 4096), [0; 4096], "a connection does not need its source any more");
    drop((ci, qmp));
    scene.stop();
    assert_eq!(scene.place.read_volume("kept")[..4096], [8; 4096], "refused connections changed nothing");
}

/// Without the source, `ci` is knocked at again and again.
// rules: SNP-44, CTL-93
#[test]
fn front_ends_that_come_again_and_again_are_paced_and_told_of_once() {
    let mut scene = Scene::new();
    let mut qmp = scene.qmp();
    qmp.order("x-pitstop-volume-rename", json!({"name": "golden", "new-name": "moved"}));
    let (started, mut refused) = (Instant::now(), 0);
    while started.elapsed() < Duration::from_secs(2) {
        scene.assert_refused();
        refused += 1;
    }
    // After 0, 100, 300, 700, 1200 and 1700 ms; the last waits until 2200 ms.
    assert!((2..=7).contains(&refused), "{refused} in {:?}", started.elapsed());
    assert_eq!(qmp.event("X_PITSTOP_REFRESH_FAILED")["refusals"], 1);
    assert_eq!(scene.log().matches("cannot be refreshed").count(), 1);
    // Deleting the export does not wait for the pause; the best of some tries, as the machine may be busy.
    let addr = json!({"type": "unix", "path": text(&scene.place.path("ci"))});
    let export = json!({"type": "vhost-user-blk", "id": "ci", "node-name": "ci", "writable": true, "addr": addr,
        "x-pitstop-refresh-on-connect": "golden"});
    let deleted_in = [(); 3].map(|()| {
        (0..4).for_each(|_| scene.assert_refused());
        let since = Instant::now();
        qmp.order("block-export-del", json!({"id": "ci", "mode": "hard"}));
        let took = since.elapsed();
        qmp.event("BLOCK_EXPORT_DELETED");
        qmp.order("x-pitstop-volume-rename", json!({"name": "moved", "new-name": "golden"}));
        qmp.order("block-export-add", export.clone());
        assert_eq!(scene.guest("ci").read(0, 4096), [0; 4096], "it is refreshed as soon as there is a source");
        qmp.order("x-pitstop-volume-rename", json!({"name": "golden", "new-name": "moved"}));
        took
    });
    assert!(deleted_in.iter().min() < Some(&Duration::from_millis(250)), "{deleted_in:?}");
    drop(qmp);
    scene.stop();
}

// rule: SNP-41, SNP-9
#[test]
fn the_guest_finds_the_size_of_the_source() {
    let mut scene = Scene::new();
    let mut qmp = scene.qmp();
    assert_eq!(sectors(&mut scene.guest("ci")), VOLUME_LEN / 512);
    for size in [2 * VOLUME_LEN, VOLUME_LEN / 4] {
        qmp.order("x-pitstop-volume-rename", json!({"name": "golden", "new-name": format!("was-before-{size}")}));
        qmp.order("x-pitstop-volume-create", json!({"name": "golden", "size": size}));
        let mut ci = scene.guest("ci");
        assert_eq!(sectors(&mut ci), size / 512);
        ci.write(size - 4096, &[7; 4096]);
        assert_eq!(ci.read(size - 4096, 4096), [7; 4096]);
        assert_ne!(ci.request(common::client::T_IN, size / 512, &mut [0; 512]).status, 0, "beyond the end");
        assert_eq!(volume(&mut qmp, "ci")["size-bytes"], size);
    }
    drop(qmp);
    scene.stop();
}

/// The export stays with its volume, whatever the volume and others are named meanwhile.
// rule: SNP-40
#[test]
fn a_renamed_volume_is_refreshed_and_nobody_else() {
    let mut scene = Scene::new();
    let mut qmp = scene.qmp();
    let mut golden = scene.guest("golden");
    golden.write(0, &[1; 4096]);
    golden.flush();
    drop(golden);
    qmp.order("x-pitstop-volume-rename", json!({"name": "ci", "new-name": "other"}));
    qmp.order("x-pitstop-volume-create", json!({"name": "ci", "size": VOLUME_LEN}));
    assert_eq!(scene.guest("ci").read(0, 4096), [1; 4096]);
    assert_eq!(qmp.event("X_PITSTOP_VOLUME_REFRESHED"), json!({"name": "other", "source": "golden"}));
    drop(qmp);
    scene.stop();
    assert_eq!(scene.place.read_volume("ci")[..4096], [0; 4096]);
    assert_eq!(scene.place.read_volume("other")[..4096], [1; 4096]);
}

// rule: SNP-5
#[test]
fn what_earlier_connections_wrote_is_freed() {
    let mut scene = Scene::new();
    let mut qmp = scene.qmp();
    scene.guest("golden").write(0, &[1; 4096]);
    for round in 0..20u8 {
        let mut ci = scene.guest("ci");
        for part in 0..8 {
            ci.write(part << 20, &[round; 1 << 20]);
        }
        ci.flush();
    }
    let mut ci = scene.guest("ci");
    ci.write(0, &[2; 512]);
    ci.flush();
    let allocated = |qmp: &mut Qmp| {
        let layers = qmp.order("x-pitstop-query-layers", json!({}));
        layers.as_array().unwrap().iter().map(|layer| layer["allocated-bytes"].as_u64().unwrap()).sum::<u64>()
    };
    wait_until("background work", || allocated(&mut qmp) <= 4 << 20);
    drop((ci, qmp));
    scene.stop();
}

// rule: CTL-90, CTL-91
#[test]
fn exports_that_could_not_be_refreshed_are_refused() {
    let mut scene = Scene::new();
    let mut qmp = scene.qmp();
    let exports = qmp.order("query-block-exports", json!({}));
    assert_eq!(exports[0]["x-pitstop-refresh-on-connect"], Value::Null);
    assert_eq!(exports[1]["x-pitstop-refresh-on-connect"], "golden");
    qmp.order("x-pitstop-volume-create", json!({"name": "n", "size": VOLUME_LEN}));
    let path = scene.place.path("n");
    let add = |writable: bool, source: &str| {
        let addr = json!({"type": "unix", "path": text(&path)});
        json!({"type": "vhost-user-blk", "id": "x", "node-name": "n", "writable": writable, "addr": addr,
            "x-pitstop-refresh-on-connect": source})
    };
    for (writable, source, part) in [
        (false, "golden", "export 'x' is read-only and cannot refresh volume 'n' on connect"),
        (true, "n", "volume 'n' cannot be refreshed from itself"),
        (true, "nobody", "no volume named 'nobody'"),
    ] {
        let why = qmp.refused("block-export-add", add(writable, source));
        assert!(why.contains(part), "{why}");
        assert!(!path.exists());
    }
    qmp.order("block-export-add", add(true, "golden"));
    assert_eq!(scene.guest("n").read(0, 512), [0; 512]);
    drop(qmp);
    scene.stop();
    let container = scene.place.container();
    let export = |more: &str| format!("volume=ci,socket={},refresh-on-connect={more}", text(&path));
    for (arguments, part) in [
        (vec!["--export", &export("golden,readonly=on")], "make it writable, or leave out refresh-on-connect"),
        (vec!["--export", &export("golden"), "--read-only"], "make it writable, or leave out refresh-on-connect"),
        (vec!["--export", &export("ci")], "cannot be refreshed from itself"),
        (vec!["--export", &export("nobody")], "no volume named 'nobody'"),
    ] {
        let (code, _, messages) = common::run(&[vec![text(&container)], arguments].concat());
        assert_eq!(code, 1);
        assert!(messages.contains(part), "{messages}");
    }
}

// rule: JOB-30 — the sealing of what a connection froze has a job when the connection's refresh is told of.
#[test]
fn what_a_connection_freezes_is_sealed_at_once() {
    let mut scene = Scene::new();
    let mut qmp = scene.qmp();
    qmp.order("x-pitstop-volume-set", json!({"name": "golden", "verify": "copy"}));
    let mut golden = scene.guest("golden");
    golden.write(0, &[5; 8192]);
    golden.flush();
    let has_jobs = |qmp: &mut Qmp| qmp.order("query-jobs", json!({})) != json!([]);
    wait_until("the first sealing", || !has_jobs(&mut qmp));
    let mut watcher = scene.qmp();
    drop(scene.guest("ci"));
    let mut created = false;
    loop {
        let (event, data) = watcher.next_event();
        match event.as_str() {
            "JOB_STATUS_CHANGE" => {
                created |= data["status"] == "created" && data["id"].as_str().unwrap().starts_with("seal-");
            }
            "X_PITSTOP_VOLUME_REFRESHED" => break,
            _ => {}
        }
    }
    assert!(created, "the refresh is told of before the job that it began");
    scene.stop();
}
