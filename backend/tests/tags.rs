//! Sealing by the daemon, beside it being asked, and damage that its jobs and checks find (TAG-5, BAK-27, JOB-30 to JOB-32, CTL-140 to
//! CTL-144).
//!
//! req: R13

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;

use common::{Daemon, Place, Qmp, Random, VOLUME_LEN, text, wait_until};
use pitstop_format::VolumeIo;
use serde_json::{Value, json};

fn golden_bytes() -> Vec<u8> {
    Random(0xfeed_1234).bytes(VOLUME_LEN)
}

fn place() -> Place {
    let place = Place::with_volumes(&["golden"]);
    place.change(|container| {
        let io = VolumeIo::new(container, container.volume("golden").unwrap());
        io.write_at(&golden_bytes(), 0).unwrap();
        io.flush().unwrap();
    });
    place
}

fn serve(place: &Place) -> (Daemon, Qmp) {
    let control = place.path("control");
    let daemon = place.serve(&[], &["--control", text(&control)]);
    wait_until("control socket", || common::is_listened_on(&control));
    let qmp = Qmp::connect(&control);
    (daemon, qmp)
}

fn volume(qmp: &mut Qmp, name: &str) -> Value {
    qmp.order("x-pitstop-query-volumes", json!({"name": name}))[0].clone()
}

fn sealed_bytes(qmp: &mut Qmp, name: &str) -> u64 {
    let step = qmp.order("x-pitstop-map", json!({"name": name, "counts-only": true}));
    step["counts"]["sealed-bytes"].as_u64().unwrap()
}

fn job(qmp: &mut Qmp, kind: &str) -> Option<Value> {
    let jobs = qmp.order("query-jobs", json!({}));
    jobs.as_array().unwrap().iter().find(|job| job["type"] == kind).cloned()
}

/// Turns a bit over of the first block that holds these bytes.
fn flip(place: &Place, block: &[u8], mask: u8) {
    let bytes = std::fs::read(place.container()).unwrap();
    let number = bytes.chunks_exact(4096).position(|found| found == block).unwrap() as u64;
    let file = File::options().write(true).open(place.container()).unwrap();
    file.write_all_at(&[block[9] ^ mask], number * 4096 + 9).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn the_daemon_seals_what_is_frozen_and_its_jobs_stop_at_damage() {
    let place = place();
    let (daemon, mut qmp) = serve(&place);
    assert_eq!(volume(&mut qmp, "golden")["verify"], "off");
    let set = qmp.order("x-pitstop-volume-set", json!({"name": "golden", "verify": "copy"}));
    assert_eq!(set["volume"]["verify"], "copy");
    assert!(qmp.refused("x-pitstop-volume-set", json!({"name": "golden", "verify": "no"})).contains("does not accept"));
    // Nothing was frozen yet: what there is to seal ends at once.
    wait_until("the first sealing", || job(&mut qmp, "seal").is_none());
    assert_eq!(sealed_bytes(&mut qmp, "golden"), 0);
    // A copy freezes it, and it is sealed by itself.
    qmp.order("x-pitstop-snapshot", json!({"source": "golden", "name": "ci"}));
    wait_until("the sealing", || job(&mut qmp, "seal").is_none() && volume(&mut qmp, "golden")["sealing"].is_null());
    assert_eq!((sealed_bytes(&mut qmp, "ci"), sealed_bytes(&mut qmp, "golden")), (VOLUME_LEN, VOLUME_LEN));
    assert_eq!(volume(&mut qmp, "ci")["verify"], "off");
    let report = qmp.order("x-pitstop-check", json!({"data": true}));
    assert_eq!((&report["corruptions"], &report["data-bytes-verified"]), (&json!(0), &json!(VOLUME_LEN)));
    assert_eq!(qmp.order("x-pitstop-check", json!({}))["data-bytes-verified"], 0);

    let golden = golden_bytes();
    let block = golden[300 * 4096..301 * 4096].to_vec();
    flip(&place, &block, 1);
    let report = qmp.order("x-pitstop-check", json!({"data": true}));
    assert_eq!((&report["corruptions"], &report["findings"][0]["id"]), (&json!(1), &json!("CHK-62")));
    assert!(report["findings"][0]["place"].as_str().unwrap().contains("block 300 "), "{report}");
    let target = place.path("backup");
    qmp.order("x-pitstop-backup", json!({"name": "ci", "target": text(&target)}));
    wait_until("the backup to stop", || job(&mut qmp, "backup").is_some_and(|job| job["status"] == "paused"));
    let paused = job(&mut qmp, "backup").unwrap();
    assert!(paused["error"].as_str().unwrap().contains("block 300 "), "{paused}");
    qmp.order("job-cancel", json!({"id": paused["id"]}));
    assert!(!target.exists());
    let begun = qmp.order("x-pitstop-volume-hydrate", json!({"name": "ci"}))["job"].clone();
    let id = begun["id"].as_str().unwrap().to_owned();
    wait_until("the hydration to stop", || job(&mut qmp, "hydrate").is_some_and(|job| job["status"] == "paused"));
    let paused = job(&mut qmp, "hydrate").unwrap();
    let error = paused["error"].as_str().unwrap();
    assert!(error.contains("block 300 ") && error.contains("TAG-5"), "{error}");
    let mut damaged = block.clone();
    damaged[9] ^= 1;
    flip(&place, &damaged, 1);
    qmp.order("job-resume", json!({"id": id}));
    wait_until("the hydration", || volume(&mut qmp, "ci")["state"] == "real");
    qmp.order("x-pitstop-volume-delete", json!({"name": "golden"}));
    assert_eq!(sealed_bytes(&mut qmp, "ci"), VOLUME_LEN);
    drop(qmp);
    assert!(daemon.terminate().success());
    assert!(place.read_volume("ci") == golden);
}

#[test]
fn a_sealing_keeps_its_pause_and_speed_over_a_restart() {
    let place = place();
    place.change(|container| drop(container.snapshot("golden", "ci").unwrap()));
    let (daemon, mut qmp) = serve(&place);
    let begun = qmp.order("x-pitstop-volume-seal", json!({"name": "golden", "speed": 1 << 20}))["job"].clone();
    let id = begun["id"].as_str().unwrap().to_owned();
    assert_eq!((&begun["type"], &begun["x-pitstop-speed"]), (&json!("seal"), &json!(1 << 20)));
    wait_until("some tags", || sealed_bytes(&mut qmp, "ci") > 0);
    qmp.order("job-pause", json!({"id": id}));
    let sealed = sealed_bytes(&mut qmp, "ci");
    drop(qmp);
    assert!(daemon.terminate().success());
    let (daemon, mut qmp) = serve(&place);
    let again = job(&mut qmp, "seal").unwrap();
    assert_eq!((&again["id"], &again["status"]), (&json!(id), &json!("paused")));
    assert_eq!((again["x-pitstop-speed"].as_u64(), sealed_bytes(&mut qmp, "ci")), (Some(1 << 20), sealed));
    qmp.order("x-pitstop-job-set-speed", json!({"id": id, "speed": 0}));
    qmp.order("job-resume", json!({"id": id}));
    wait_until("the sealing", || job(&mut qmp, "seal").is_none());
    assert_eq!(sealed_bytes(&mut qmp, "ci"), VOLUME_LEN);
    // One that is given up stays given up.
    qmp.order("x-pitstop-volume-set", json!({"name": "ci", "verify": "copy"}));
    wait_until("nothing to seal", || job(&mut qmp, "seal").is_none());
    drop(qmp);
    assert!(daemon.terminate().success());
}
