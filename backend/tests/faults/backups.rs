//! Backups to storage that does not answer, and of containers that are full.
//!
//! req: R23. Rules: BAK-3, BAK-10 to BAK-12, BAK-21, BAK-24, JOB-9, JOB-26, JOB-27.

use std::time::{Duration, Instant};

use pitstop_format::{Container, CreateOptions, FileDisk, OpenMode, SLAB_LEN, VolumeIo};
use serde_json::{Value, json};

use crate::common::client::{Client, Style};
use crate::common::{Daemon, Place, Qmp, VOLUME_LEN, alone_with_container, is_listened_on, text, wait_until};
use crate::scene::*;
use crate::shelf::{Hangs, Shelf};
use crate::space::fill_up;

const MIB: u64 = 1 << 20;

/// A daemon that serves `db`, full of data, of which there is a copy, and a place for targets.
struct Stage {
    place: Place,
    shelf: Shelf,
    daemon: Daemon,
    qmp: Qmp,
}

impl Stage {
    fn new() -> Self {
        let place = Place::with_volumes(&["db"]);
        place.change(|container| {
            let volume = container.volume("db").unwrap();
            VolumeIo::new(container, volume).write_at(&vec![7; VOLUME_LEN as usize], 0).unwrap();
            container.snapshot("db", "copy").unwrap();
        });
        let shelf = Shelf::mount(&place.path("shelf"));
        let control = place.path("control");
        let socket = format!("volume=db,socket={}", text(&place.path("db")));
        let container = text(&place.container()).to_owned();
        let arguments = [container, "--control".into(), text(&control).into(), "--export".into(), socket];
        let daemon = Daemon::start_logged(&arguments, &place.path("log"));
        wait_until("sockets", || is_listened_on(&control) && is_listened_on(&place.path("db")));
        let qmp = Qmp::connect(&control);
        Stage { place, shelf, daemon, qmp }
    }

    fn guest(&self) -> Client {
        Client::connect(&self.place.path("db"), Style::PLAIN)
    }

    /// Begins a backup whose target hangs.
    fn stuck(&mut self, hangs: Hangs, more: &Value) -> String {
        self.shelf.hang(Some(hangs));
        let mut arguments = json!({"name": "db", "target": text(&self.shelf.path("bulk")), "auto-dismiss": false});
        arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let id = self.qmp.order("x-pitstop-backup", arguments)["job"]["id"].as_str().unwrap().to_owned();
        wait_until("the target is waited for", || self.shelf.is_waited_for());
        id
    }
}

fn job(qmp: &mut Qmp, id: &str) -> Value {
    let jobs = qmp.order("query-jobs", json!({}));
    jobs.as_array().unwrap().iter().find(|job| job["id"] == id).cloned().unwrap_or(Value::Null)
}

fn wait_for_end(qmp: &mut Qmp, id: &str) -> Value {
    wait_until("the job ends", || job(qmp, id)["status"] == "concluded");
    job(qmp, id)
}

/// Instants that the container holds: heads beyond those of volumes.
fn instants(qmp: &mut Qmp) -> usize {
    let layers = qmp.order("x-pitstop-query-layers", json!({}));
    let volumes = qmp.order("x-pitstop-query-volumes", json!({})).as_array().unwrap().len();
    layers.as_array().unwrap().iter().filter(|layer| layer["kind"] == "head").count() - volumes
}

// rules: BAK-12, JOB-27
#[test]
fn a_target_that_hangs_holds_up_its_own_backup_alone() {
    for hangs in [Hangs::Writes, Hangs::Syncs] {
        let mut stage = Stage::new();
        let mut guest = stage.guest();
        let id = stage.stuck(hangs, &json!({}));
        // Jobs, guests and orders go on.
        let hydration = stage.qmp.order("x-pitstop-volume-hydrate", json!({"name": "copy", "auto-dismiss": false}));
        let hydration = hydration["job"]["id"].as_str().unwrap().to_owned();
        assert_eq!(wait_for_end(&mut stage.qmp, &hydration)["error"], Value::Null);
        guest.write(0, &[8; 4096]);
        guest.flush();
        assert!(guest.read(0, 4096) == [8; 4096]);
        let since = Instant::now();
        stage.qmp.order("job-pause", json!({"id": id}));
        stage.qmp.order("job-resume", json!({"id": id}));
        let other = json!({"name": "db", "target": text(&stage.place.path("other")), "speed": MIB});
        let other = stage.qmp.order("x-pitstop-backup", other)["job"]["id"].as_str().unwrap().to_owned();
        let mut control = Qmp::connect(&stage.place.path("control"));
        let its_id = id.clone();
        let cancelling = std::thread::spawn(move || control.order("job-cancel", json!({"id": its_id})));
        wait_until("the end of the job", || job(&mut stage.qmp, &id)["status"] == "concluded");
        stage.qmp.order("job-pause", json!({"id": other}));
        assert!(since.elapsed() < Duration::from_millis(1500), "{:?}", since.elapsed());
        assert_eq!(instants(&mut stage.qmp), 1);
        stage.qmp.order("job-cancel", json!({"id": other}));
        assert_eq!(instants(&mut stage.qmp), 0);
        cancelling.join().unwrap();
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        // The file goes when its storage answers.
        assert_eq!(stage.shelf.names().len(), 1);
        assert!(stage.shelf.names()[0].starts_with(".pitstop-backup-"));
        stage.shelf.hang(None);
        wait_until("the file has gone", || stage.shelf.names().is_empty());
        drop(guest);
        assert_eq!(stage.daemon.terminate().code(), Some(0));
    }
}

// rules: BAK-21, JOB-26
#[test]
fn a_full_region_ends_a_backup_whose_target_hangs() {
    let mut stage = Stage::new();
    stage.qmp.order("x-pitstop-volume-delete", json!({"name": "copy"}));
    stage.qmp.order("x-pitstop-cache-create", json!({"name": "small", "limit": 2 * SLAB_LEN}));
    let id = stage.stuck(Hangs::Writes, &json!({"cache": "small"}));
    stage.guest().write(0, &vec![9; MIB as usize]);
    let since = Instant::now();
    let ended = wait_for_end(&mut stage.qmp, &id);
    assert!(since.elapsed() < Duration::from_millis(2500), "{:?}", since.elapsed());
    assert!(ended["error"].as_str().unwrap().contains("cache region 'small' is full"), "{ended}");
    assert_eq!(instants(&mut stage.qmp), 0);
    stage.shelf.hang(None);
    wait_until("the file has gone", || stage.shelf.names().is_empty());
    assert_eq!(stage.daemon.terminate().code(), Some(0));
}

// rules: BAK-3, BAK-10, BAK-11 — what was handed over is written when the storage answers again, in order.
#[test]
fn a_target_that_answers_again_becomes_complete() {
    for (hangs, more) in [(Hangs::Writes, json!({})), (Hangs::Syncs, json!({"since": "copy"}))] {
        let mut stage = Stage::new();
        let mut guest = stage.guest();
        guest.write(MIB, &[8; 4096]);
        let id = stage.stuck(hangs, &more);
        std::thread::sleep(Duration::from_millis(300));
        assert_ne!(job(&mut stage.qmp, &id)["status"], "concluded");
        assert!(!stage.shelf.names().contains(&"bulk".to_owned()));
        // All has been read where only the sync is missing: the instant is needed no longer (BAK-3).
        assert_eq!(instants(&mut stage.qmp), usize::from(hangs == Hangs::Writes));
        stage.shelf.hang(None);
        assert_eq!(wait_for_end(&mut stage.qmp, &id)["error"], Value::Null);
        assert_eq!(stage.shelf.names(), ["bulk"]);
        if hangs == Hangs::Writes {
            let mut expected = vec![7; VOLUME_LEN as usize];
            expected[MIB as usize..MIB as usize + 4096].fill(8);
            assert!(stage.shelf.read("bulk") == expected);
        }
        drop(guest);
        assert_eq!(stage.daemon.terminate().code(), Some(0));
    }
}

// rule: BAK-11
#[test]
fn a_target_that_cannot_be_made_durable_ends_the_backup() {
    let mut stage = Stage::new();
    stage.shelf.fail_syncs(true);
    let order = json!({"name": "db", "target": text(&stage.shelf.path("bulk")), "auto-dismiss": false});
    let id = stage.qmp.order("x-pitstop-backup", order)["job"]["id"].as_str().unwrap().to_owned();
    let ended = wait_for_end(&mut stage.qmp, &id);
    assert!(
        ended["error"].as_str().unwrap().contains("durable: Input/output error (os error 5); back up again"),
        "{ended}"
    );
    assert_eq!(instants(&mut stage.qmp), 0);
    wait_until("the file has gone", || stage.shelf.names().is_empty());
    assert_eq!(stage.daemon.terminate().code(), Some(0));
}

// rules: BAK-10, JOB-27 — from there on it is complete, whoever orders what.
#[test]
fn a_backup_whose_files_get_their_names_is_not_given_up() {
    let mut stage = Stage::new();
    stage.shelf.write("bulk", b"of before");
    let id = stage.stuck(Hangs::Renames, &json!({"overwrite": true}));
    stage.qmp.order("job-pause", json!({"id": id}));
    let refused = stage.qmp.refused("job-cancel", json!({"id": id}));
    assert!(refused.contains("its files get their names"), "{refused}");
    assert_eq!(stage.shelf.read("bulk"), b"of before");
    stage.shelf.hang(None);
    // Paused or not.
    assert_eq!(wait_for_end(&mut stage.qmp, &id)["error"], Value::Null);
    assert!(stage.shelf.read("bulk") == vec![7; VOLUME_LEN as usize]);
    assert_eq!(stage.shelf.names(), ["bulk"]);
    assert_eq!(stage.daemon.terminate().code(), Some(0));
}

// rules: BAK-12, JOB-9
#[test]
fn an_order_whose_files_do_not_come_holds_nothing() {
    let mut stage = Stage::new();
    stage.shelf.hang(Some(Hangs::Creates));
    let order = json!({"name": "db", "target": text(&stage.shelf.path("bulk"))});
    let mut control = Qmp::connect(&stage.place.path("control"));
    let asked = std::thread::spawn(move || control.refused("x-pitstop-backup", order));
    wait_until("the target is waited for", || stage.shelf.is_waited_for());
    assert_eq!(instants(&mut stage.qmp), 0);
    let said = asked.join().unwrap();
    assert!(said.contains("does not answer"), "{said}");
    stage.shelf.hang(None);
    wait_until("the file has gone", || stage.shelf.names().is_empty());
    assert_eq!(stage.daemon.terminate().code(), Some(0));
}

// rules: BAK-10, JOB-9
#[test]
fn the_end_of_the_daemon_does_not_wait_for_a_target_that_hangs() {
    let mut stage = Stage::new();
    stage.stuck(Hangs::Writes, &json!({}));
    let since = Instant::now();
    stage.daemon.signal("TERM");
    let log = stage.place.path("log");
    wait_until("the container is closed", || std::fs::read_to_string(&log).unwrap().contains("closed '"));
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("the daemon ends") && said.contains("does not answer"), "{said}");
    // Others may have it, though the kernel keeps the process until its write is answered.
    stage.place.change(|container| assert_eq!(container.instants(), []));
    stage.shelf.hang(None);
    assert_eq!(stage.daemon.end().code(), Some(0));
}

/// Free slabs of the container behind a file system.
fn free_slabs(file: &std::path::Path) -> u64 {
    alone_with_container(|| {
        let disk = FileDisk::open(file, OpenMode::ReadOnly).unwrap();
        Container::open(disk, OpenMode::ReadOnly).unwrap().info().free_bytes / SLAB_LEN
    })
}

// rules: BAK-12, BAK-24
#[test]
fn a_guest_that_finds_no_space_gets_what_a_backup_keeps() {
    const KEPT: u64 = 16;
    for source_lives_on in [false, true] {
        let mut free = 0;
        let scene = Scene::prepared("", &CreateOptions::default(), |fs| {
            fs.set_capacity(fs.file_len());
            free = free_slabs(&fs.file());
        });
        let shelf = Shelf::mount(&scene.place.path("shelf"));
        let (mut v, mut w, mut qmp) = (scene.guest("v"), scene.guest("w"), scene.qmp());
        let mut overwrite = |byte| {
            for chunk in 0..KEPT {
                w.write(chunk * SLAB_LEN, &[byte; SLAB_LEN as usize]);
            }
            w.flush();
        };
        overwrite(6);
        shelf.hang(Some(Hangs::Writes));
        let target = shelf.path("bulk");
        let order = json!({"name": "w", "target": text(&target), "speed": 256 << 10, "auto-dismiss": false});
        let id = qmp.order("x-pitstop-backup", order)["job"]["id"].as_str().unwrap().to_owned();
        wait_until("the target is waited for", || shelf.is_waited_for());
        let held = if source_lives_on {
            overwrite(5);
            KEPT + 2
        } else {
            drop(w);
            qmp.order("block-export-del", json!({"id": "w", "mode": "hard"}));
            qmp.order("x-pitstop-volume-delete", json!({"name": "w"}));
            0
        };
        assert_ne!(job(&mut qmp, &id)["status"], "concluded");
        let (end, answer) = fill_up(&mut v);
        // The first error comes when nothing is kept any more.
        assert_eq!(answer, Some(IOERR));
        let written = end / SLAB_LEN + held;
        assert!(written + 4 > free, "{written} slabs were written of {free} that were free at first");
        let ended = wait_for_end(&mut qmp, &id);
        assert!(ended["error"].as_str().unwrap().contains("the container is full and cannot grow"), "{ended}");
        shelf.hang(None);
        drop((v, qmp));
        scene.end();
    }
}
