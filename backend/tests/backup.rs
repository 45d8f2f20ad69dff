//! Backups through the daemon, beside guests whose every read is verified.
//!
//! req: R19, R20, R21, R22, R23. Rules: BAK-1 to BAK-12, BAK-21 to BAK-23, CTL-110 to CTL-115, JOB-25 to JOB-27.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::client::{Client, Style};
use common::{Daemon, Place, Qmp, Random, VOLUME_LEN, text, wait_until};
use pitstop_format::VolumeIo;
use pitstop_format::addendum::{AddendumRange, AddendumReader, Piece};
use pitstop_format::check::{Outcome, check};
use pitstop_format::{FileDisk, OpenMode};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn noise(seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..VOLUME_LEN / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// A place with volume `db`, full of data.
fn place() -> Place {
    let place = Place::with_volumes(&["db"]);
    place.change(|container| {
        VolumeIo::new(container, container.volume("db").unwrap()).write_at(&noise(7), 0).unwrap();
        container.settle(1000).unwrap();
    });
    place
}

fn serve(place: &Place) -> (Daemon, Qmp) {
    let control = place.path("control");
    let daemon = place.serve(&["db"], &["--control", text(&control)]);
    wait_until("control socket", || common::is_listened_on(&control));
    (daemon, Qmp::connect(&control))
}

fn backup(qmp: &mut Qmp, place: &Place, more: Value) -> String {
    let mut arguments = json!({"name": "db", "target": text(&place.path("bulk")), "auto-dismiss": false});
    arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let job = qmp.order("x-pitstop-backup", arguments)["job"].clone();
    assert_eq!(job["type"], "backup");
    job["id"].as_str().unwrap().to_owned()
}

fn job(qmp: &mut Qmp, id: &str) -> Value {
    let jobs = qmp.order("query-jobs", json!({}));
    jobs.as_array().unwrap().iter().find(|job| job["id"] == id).cloned().unwrap_or(Value::Null)
}

fn wait_for(qmp: &mut Qmp, id: &str, status: &str) -> Value {
    let mut found = Value::Null;
    wait_until(&format!("{id} {status}"), || {
        found = job(qmp, id);
        assert!(found["status"] == status || found["status"] != "concluded", "{found}");
        found["status"] == status
    });
    found
}

/// Instants that the container holds: heads beyond those of volumes.
fn instants(qmp: &mut Qmp) -> usize {
    let layers = qmp.order("x-pitstop-query-layers", json!({}));
    let volumes = qmp.order("x-pitstop-query-volumes", json!({})).as_array().unwrap().len();
    layers.as_array().unwrap().iter().filter(|layer| layer["kind"] == "head").count() - volumes
}

/// Whether only what was there before lies in the folder, but for sockets and the container's own.
fn files(place: &Place) -> Vec<String> {
    let folder = place.path("x").parent().unwrap().to_owned();
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> =
        names.filter(|name| ["bulk", "addendum", ".pitstop"].iter().any(|begin| name.starts_with(begin))).collect();
    names.sort();
    names
}

/// Writes all over the volume, with reads that must show the model, until told to stop; at least 100 of each.
fn exercise(client: &mut Client, model: &mut [u8], stop: &AtomicBool) {
    let mut random = Random(0x5eed);
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) || rounds < 100 {
        let len = (1 + random.below(32)) * 512;
        let offset = random.below((VOLUME_LEN - len) / 512) * 512;
        let bytes: Vec<u8> = (0..len / 8).flat_map(|_| random.next().to_le_bytes()).collect();
        client.write(offset, &bytes);
        model[offset as usize..(offset + len) as usize].copy_from_slice(&bytes);
        let offset = random.below((VOLUME_LEN - len) / 512) * 512;
        let expected = &model[offset as usize..(offset + len) as usize];
        assert!(client.read(offset, len as usize) == *expected, "wrong data at {offset:#x}, {len} bytes");
        rounds += 1;
    }
    client.flush();
}

/// Does `orders` while a guest writes.
fn beside_guest<T>(client: &mut Client, model: &mut [u8], orders: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| exercise(client, model, &stop));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(orders));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Writes an addendum over a bulk; returns the bytes that it lists.
fn apply(addendum: &Path, bulk: &mut [u8]) -> u64 {
    let mut reader = AddendumReader::new(BufReader::new(File::open(addendum).unwrap())).unwrap();
    assert_eq!(reader.header().size_bytes, bulk.len() as u64);
    let mut listed = 0;
    while let Some(AddendumRange { start, piece }) = reader.next_range().unwrap() {
        let start = start as usize;
        listed += match piece {
            Piece::Data(data) => {
                bulk[start..start + data.len()].copy_from_slice(data);
                data.len() as u64
            }
            Piece::Zeros(len) => {
                bulk[start..start + len as usize].fill(0);
                len
            }
        };
    }
    listed
}

fn assert_clean(place: &Place) {
    let report = common::alone_with_container(|| {
        check(&*FileDisk::open(&place.container(), OpenMode::ReadOnly).unwrap()).unwrap()
    });
    assert_eq!(report.outcome(), Outcome::Clean, "{:?}", report.findings);
}

// rules: BAK-4 to BAK-6, BAK-9
#[test]
fn every_way_of_reading_gives_the_instant_beside_a_guest_that_writes() {
    let place = place();
    let (daemon, mut qmp) = serve(&place);
    let mut client = Client::connect(&place.path("db"), Style::PLAIN);
    let mut model = noise(7);
    let addendum = place.path("addendum");
    for more in [json!({}), json!({"addendum": text(&addendum)}), json!({"in-place": true})] {
        let instant = model.clone();
        let mut more = more;
        more["speed"] = (12 * MIB).into();
        let id = backup(&mut qmp, &place, more.clone());
        assert_eq!(instants(&mut qmp), 1);
        // Nothing shows before all is done (BAK-10).
        assert_eq!(files(&place).iter().filter(|name| !name.starts_with(".pitstop-backup-")).count(), 0);
        let ended = beside_guest(&mut client, &mut model, || wait_for(&mut qmp, &id, "concluded"));
        assert_eq!((&ended["error"], &ended["current-progress"]), (&Value::Null, &ended["total-progress"]));
        qmp.order("job-dismiss", json!({"id": id}));
        let mut bulk = std::fs::read(place.path("bulk")).unwrap();
        if more.get("addendum").is_some() {
            // The live volume was read straight through: it is not yet what it was.
            assert!(bulk != instant, "the guest has written nothing that the copier has read");
            let listed = apply(&addendum, &mut bulk);
            assert!(listed > 0 && listed <= VOLUME_LEN, "{listed} bytes");
        }
        assert!(bulk == instant, "{more}: not what the volume held at the instant");
        assert_eq!(instants(&mut qmp), 0);
        for name in files(&place) {
            std::fs::remove_file(place.path(&name)).unwrap();
        }
    }
    drop(client);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(place.read_volume("db") == model, "the volume differs from what was written");
    assert_clean(&place);
}

// rules: BAK-21, BAK-22, BAK-25 — a paused backup, too; the guest notices nothing.
#[test]
fn a_full_cache_region_ends_the_backup_and_nothing_else() {
    let place = place();
    let (daemon, mut qmp) = serve(&place);
    let mut client = Client::connect(&place.path("db"), Style::PLAIN);
    let mut model = noise(7);
    qmp.order("x-pitstop-cache-create", json!({"name": "nightly", "limit": 4 * MIB, "high-water-percent": 50}));
    for paused in [false, true] {
        let id = backup(&mut qmp, &place, json!({"cache": "nightly", "speed": 256 << 10}));
        if paused {
            qmp.order("job-pause", json!({"id": id}));
        }
        let refused = qmp.refused("x-pitstop-cache-delete", json!({"name": "nightly"}));
        assert!(refused.contains("backups draw on cache region"), "{refused}");
        let ended = beside_guest(&mut client, &mut model, || wait_for(&mut qmp, &id, "concluded"));
        let error = ended["error"].as_str().unwrap();
        assert!(error.contains("cache region 'nightly' is full") && error.contains("cache resize"), "{error}");
        let warning = qmp.event("X_PITSTOP_CACHE_WARNING");
        assert_eq!((&warning["name"], &warning["limit-bytes"]), (&json!("nightly"), &json!(4 * MIB)));
        assert_eq!(instants(&mut qmp), 0);
        wait_until("its file has gone", || files(&place).is_empty());
        let caches = qmp.order("x-pitstop-query-caches", json!({}));
        assert_eq!((&caches[0]["used-bytes"], &caches[0]["backups"]), (&json!(0), &json!(0)));
        qmp.order("job-dismiss", json!({"id": id}));
    }
    // One that may grow takes the same.
    qmp.order("x-pitstop-cache-resize", json!({"name": "nightly", "growth": MIB, "most": 64 * MIB}));
    let instant = model.clone();
    let id = backup(&mut qmp, &place, json!({"cache": "nightly", "speed": 6 * MIB}));
    beside_guest(&mut client, &mut model, || wait_for(&mut qmp, &id, "concluded"));
    assert_eq!(job(&mut qmp, &id)["error"], Value::Null);
    assert!(std::fs::read(place.path("bulk")).unwrap() == instant);
    let limit = qmp.order("x-pitstop-query-caches", json!({}))[0]["limit-bytes"].as_u64().unwrap();
    assert!(limit > 4 * MIB && limit <= 64 * MIB, "{limit}");
    qmp.order("x-pitstop-cache-delete", json!({"name": "nightly"}));
    drop(client);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(place.read_volume("db") == model);
    assert_clean(&place);
}

// rules: BAK-3, BAK-10
#[test]
fn a_backup_that_does_not_end_leaves_nothing() {
    let place = place();
    let log = place.path("log");
    let (daemon, mut qmp) = serve(&place);
    let slow = json!({"speed": MIB, "addendum": text(&place.path("addendum"))});
    // Cancelled, paused or not.
    for paused in [false, true] {
        let id = backup(&mut qmp, &place, slow.clone());
        wait_until("progress", || job(&mut qmp, &id)["current-progress"].as_u64().unwrap() > 0);
        if paused {
            qmp.order("job-pause", json!({"id": id}));
        }
        qmp.order("job-cancel", json!({"id": id}));
        assert_eq!((files(&place), instants(&mut qmp)), (vec![], 0));
        qmp.order("job-dismiss", json!({"id": id}));
    }
    // Killed: the next daemon lets go of the instant; a temporary file may stay.
    let id = backup(&mut qmp, &place, slow.clone());
    wait_until("progress", || job(&mut qmp, &id)["current-progress"].as_u64().unwrap() > 0);
    daemon.signal("KILL");
    daemon.end();
    for name in files(&place) {
        assert!(name.starts_with(".pitstop-backup-"), "{name}");
        std::fs::remove_file(place.path(&name)).unwrap();
    }
    let control = place.path("control");
    let arguments = [place.container().display().to_string(), "--control".into(), text(&control).into()];
    let daemon = Daemon::start_logged(&arguments, &log);
    wait_until("control socket", || common::is_listened_on(&control));
    let mut qmp = Qmp::connect(&control);
    assert_eq!(instants(&mut qmp), 0);
    assert!(std::fs::read_to_string(&log).unwrap().contains("a backup of volume 'db' had not ended"));
    // Ended in order.
    let id = backup(&mut qmp, &place, slow);
    wait_until("progress", || job(&mut qmp, &id)["current-progress"].as_u64().unwrap() > 0);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(files(&place), Vec::<String>::new());
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains(&format!("job {id} is given up: the daemon ends")), "{said}");
    place.change(|container| assert_eq!(container.instants(), []));
    assert_clean(&place);
}

// rules: BAK-7, BAK-8, BAK-10, CTL-110, CTL-111
#[test]
fn orders_that_cannot_be_are_refused_and_sources_may_change() {
    let place = place();
    let (daemon, mut qmp) = serve(&place);
    std::fs::write(place.path("there"), b"mine").unwrap();
    let (there, target) = (place.path("there"), place.path("bulk"));
    let cases = [
        (json!({"name": "none"}), "no volume named 'none'"),
        (json!({"target": "bulk"}), "not an absolute path"),
        (json!({"target": text(&there)}), "exists already"),
        (json!({"target": "/dev/null"}), "not a regular file"),
        (json!({"target": text(&place.container()), "overwrite": true}), "is a container in use"),
        (json!({"target": "/no/such/folder/bulk"}), "cannot make a file in '/no/such/folder'"),
        (json!({"addendum": text(&target)}), "the same file"),
        (json!({"addendum": text(&there)}), "exists already"),
        (json!({"in-place": true, "since": "db"}), "only one can be given"),
        (json!({"since": "none"}), "no volume named 'none'"),
        (json!({"cache": "none"}), "no cache region named 'none'"),
    ];
    for (more, expected) in cases {
        let mut arguments = json!({"name": "db", "target": text(&target)});
        arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let said = qmp.refused("x-pitstop-backup", arguments);
        assert!(said.contains(expected), "{more}: {said}");
        assert_eq!((files(&place), instants(&mut qmp)), (vec![], 0), "{more}");
    }
    assert_eq!(std::fs::read(&there).unwrap(), b"mine");
    // By order, a file is replaced.
    qmp.order("x-pitstop-snapshot", json!({"source": "db", "name": "monday"}));
    let id = backup(&mut qmp, &place, json!({"target": text(&there), "overwrite": true}));
    wait_for(&mut qmp, &id, "concluded");
    assert!(std::fs::read(&there).unwrap() == noise(7));
    // Nothing has changed since: an addendum without a range.
    let id = backup(&mut qmp, &place, json!({"since": "monday"}));
    wait_for(&mut qmp, &id, "concluded");
    let mut whole = noise(7);
    assert_eq!(apply(&target, &mut whole), 0);
    std::fs::remove_file(&target).unwrap();

    // The source is restored: what is read of the live volume counts for nothing, of the instant all.
    let live = backup(&mut qmp, &place, json!({"in-place": true, "speed": 4 * MIB}));
    let held = backup(&mut qmp, &place, json!({"target": text(&place.path("bulk-2")), "speed": 4 * MIB}));
    qmp.order("x-pitstop-refresh", json!({"name": "db", "source": "monday"}));
    let ended = wait_for(&mut qmp, &live, "concluded");
    assert!(ended["error"].as_str().unwrap().contains("was refreshed, restored or deleted"), "{ended}");
    qmp.order("x-pitstop-job-set-speed", json!({"id": held, "speed": 0}));
    assert_eq!(wait_for(&mut qmp, &held, "concluded")["error"], Value::Null);
    assert!(std::fs::read(place.path("bulk-2")).unwrap() == noise(7));
    assert_eq!(instants(&mut qmp), 0);
    wait_until("the files have gone", || files(&place) == ["bulk-2"]);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_clean(&place);
}

// rules: JOB-5, JOB-6, BAK-11
#[test]
fn a_backup_is_paused_resumed_and_limited_like_any_job() {
    let place = place();
    let (daemon, mut qmp) = serve(&place);
    // A limit that comes to no whole sectors.
    let id = backup(&mut qmp, &place, json!({"speed": 4 * MIB + 777}));
    thread::sleep(Duration::from_millis(600));
    qmp.order("job-pause", json!({"id": id}));
    let at = job(&mut qmp, &id)["current-progress"].as_u64().unwrap();
    assert!(at > 0 && at <= 6 * MIB, "{at}");
    thread::sleep(Duration::from_millis(700));
    let paused = job(&mut qmp, &id);
    assert_eq!((&paused["status"], paused["current-progress"].as_u64().unwrap()), (&json!("paused"), at));
    qmp.order("x-pitstop-job-set-speed", json!({"id": id, "speed": 0}));
    qmp.order("job-resume", json!({"id": id}));
    wait_for(&mut qmp, &id, "concluded");
    assert!(std::fs::read(place.path("bulk")).unwrap() == noise(7));
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_clean(&place);
}

// rules: BAK-8, BAK-9; req: R22 — a chain of three: each addendum is of one day.
#[test]
fn a_bulk_and_the_addenda_of_three_days_are_each_days_instant() {
    let place = place();
    let (daemon, mut qmp) = serve(&place);
    let mut client = Client::connect(&place.path("db"), Style::PLAIN);
    let mut model = noise(7);
    qmp.order("x-pitstop-snapshot", json!({"source": "db", "name": "day-0"}));
    let id = backup(&mut qmp, &place, json!({}));
    wait_for(&mut qmp, &id, "concluded");
    let mut restored = std::fs::read(place.path("bulk")).unwrap();
    let mut random = Random(3);
    for day in 1..=3u64 {
        let at = day * MIB;
        let bytes: Vec<u8> = (0..40_960).map(|_| random.next() as u8).collect();
        client.write(at, &bytes);
        model[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
        client.write(8 * MIB + day * 4096, &[0; 4096]);
        model[(8 * MIB + day * 4096) as usize..][..4096].fill(0);
        let name = format!("day-{day}");
        qmp.order("x-pitstop-snapshot", json!({"source": "db", "name": name}));
        let target = place.path(&format!("addendum-{day}"));
        // Written after the copy: not in its backup.
        client.write(12 * MIB, &vec![day as u8; 8192]);
        let before = format!("day-{}", day - 1);
        let id = backup(&mut qmp, &place, json!({"name": name, "target": text(&target), "since": before}));
        wait_for(&mut qmp, &id, "concluded");
        let mut expected = model.clone();
        if day > 1 {
            expected[12 * MIB as usize..][..8192].fill(day as u8 - 1);
        }
        let listed = apply(&target, &mut restored);
        assert!(listed > 0 && listed < MIB, "{listed} bytes of day {day}");
        assert!(restored == expected, "day {day} is not restored");
    }
    drop(client);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_clean(&place);
}
