//! Disposable volumes, served: flushes return at once, an unclean end makes them undefined, a refresh defines them again
//! (VOL-40 to VOL-47, CTL-130 to CTL-132).
//!
//! req: R15, R31

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use common::client::{Client, Style};
use common::{Daemon, Place, Qmp, VOLUME_LEN, run, text, wait_until};
use serde_json::{Value, json};

fn serve(place: &Place, volumes: &[&str]) -> (Daemon, Qmp) {
    let control = place.path("control");
    drop(std::fs::remove_file(&control));
    let daemon = place.serve(volumes, &["--control", text(&control)]);
    wait_until("control socket", || control.exists());
    let qmp = Qmp::connect(&control);
    (daemon, qmp)
}

fn volume(qmp: &mut Qmp, name: &str) -> (Value, Value) {
    let volume = qmp.order("x-pitstop-query-volumes", json!({"name": name}))[0].clone();
    (volume["durability"].clone(), volume["undefined"].clone())
}

fn guest(place: &Place, volume: &str) -> Client {
    Client::connect(&place.path(volume), Style::PLAIN)
}

// rule: VOL-40, VOL-41, VOL-44 to VOL-46, CTL-130 to CTL-132
#[test]
fn a_killed_daemon_leaves_its_disposable_volumes_undefined_and_the_others_whole() {
    let place = Place::with_volumes(&["golden", "ci"]);
    let (daemon, mut qmp) = serve(&place, &["golden", "ci"]);
    let (mut golden, mut ci) = (guest(&place, "golden"), guest(&place, "ci"));
    // Under a guest that runs on.
    qmp.order("x-pitstop-volume-set", json!({"name": "ci", "durability": "none"}));
    assert_eq!(volume(&mut qmp, "ci"), (json!("none"), json!(false)));
    golden.write(0, &[1; 4096]);
    ci.write(0, &[2; 4096]);
    ci.flush();
    golden.flush();
    assert_eq!(ci.read(0, 4096), [2; 4096]);
    // Every write by itself, as without a write cache.
    ci.set_write_cache(false).unwrap();
    ci.write(8192, &[3; 4096]);
    qmp.order("x-pitstop-snapshot", json!({"source": "ci", "name": "copy"}));
    ci.write(0, &[4; 4096]);
    drop((daemon, golden, ci, qmp)); // killed

    let (code, _, said) =
        run(&[text(&place.container()), "--export", &format!("volume=ci,socket={}", text(&place.path("ci")))]);
    assert!(code != 0 && said.contains("'ci' is undefined") && said.contains("refresh"), "{said}");
    let (daemon, mut qmp) = serve(&place, &["golden", "copy"]);
    assert_eq!(volume(&mut qmp, "ci"), (json!("none"), json!(true)));
    assert_eq!(volume(&mut qmp, "golden"), (json!("flush"), json!(false)));
    assert_eq!(volume(&mut qmp, "copy"), (json!("flush"), json!(false)));
    assert_eq!(guest(&place, "golden").read(0, 4096), [1; 4096]);
    let mut copy = guest(&place, "copy");
    assert_eq!([copy.read(0, 4096), copy.read(8192, 4096)], [[2; 4096], [3; 4096]]);
    drop(copy);
    let export = |more: Value| {
        let address = json!({"type": "unix", "path": text(&place.path("ci"))});
        let mut arguments =
            json!({"type": "vhost-user-blk", "id": "ci", "node-name": "ci", "writable": true, "addr": address});
        arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        arguments
    };
    for (command, arguments) in [
        ("x-pitstop-snapshot", json!({"source": "ci", "name": "no"})),
        ("x-pitstop-refresh", json!({"name": "copy", "source": "ci", "force": true})),
        ("x-pitstop-diff", json!({"a": "golden", "b": "ci"})),
        ("block-export-add", export(json!({}))),
    ] {
        let why = qmp.refused(command, arguments);
        assert!(why.contains("'ci' is undefined"), "{command}: {why}");
    }
    // A connection that begins with a refresh defines it.
    qmp.order("block-export-add", export(json!({"x-pitstop-refresh-on-connect": "golden"})));
    assert_eq!(volume(&mut qmp, "ci").1, json!(true));
    let mut ci = guest(&place, "ci");
    assert_eq!([ci.read(0, 4096), ci.read(8192, 4096)], [[1; 4096], [0; 4096]]);
    assert_eq!(volume(&mut qmp, "ci"), (json!("none"), json!(false)));
    drop(ci);
    drop(qmp);
    assert_eq!(daemon.terminate().code(), Some(0));
}

// rule: VOL-43, VOL-47
#[test]
fn an_ordered_end_and_a_change_to_flush_keep_what_was_written() {
    let place = Place::with_volumes(&["ci", "kept"]);
    let (daemon, mut qmp) = serve(&place, &["ci", "kept"]);
    for name in ["ci", "kept"] {
        qmp.order("x-pitstop-volume-set", json!({"name": name, "durability": "none"}));
    }
    let (mut ci, mut kept) = (guest(&place, "ci"), guest(&place, "kept"));
    ci.write(0, &[1; 4096]);
    kept.write(0, &[2; 4096]);
    drop((ci, kept, qmp));
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(place.read_volume("ci")[..4096] == [1; 4096] && place.read_volume("kept")[..4096] == [2; 4096]);

    let (daemon, mut qmp) = serve(&place, &["ci", "kept"]);
    assert_eq!(volume(&mut qmp, "ci"), (json!("none"), json!(false)));
    let mut kept = guest(&place, "kept");
    kept.write(VOLUME_LEN - 4096, &[3; 4096]);
    kept.flush();
    qmp.order("x-pitstop-volume-set", json!({"name": "kept", "durability": "flush"}));
    drop((daemon, kept, qmp)); // killed
    let (daemon, mut qmp) = serve(&place, &["kept"]);
    assert_eq!(volume(&mut qmp, "kept"), (json!("flush"), json!(false)));
    assert_eq!(volume(&mut qmp, "ci"), (json!("none"), json!(true)));
    assert_eq!(guest(&place, "kept").read(VOLUME_LEN - 4096, 4096), [3; 4096]);
    qmp.order("x-pitstop-volume-set", json!({"name": "ci", "defined": true}));
    qmp.order("x-pitstop-snapshot", json!({"source": "ci", "name": "copy"}));
    drop(qmp);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(place.read_volume("copy")[..4096] == [1; 4096]);
}
