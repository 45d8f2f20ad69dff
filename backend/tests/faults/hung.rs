//! Storage that does not answer.

use std::time::{Duration, Instant};

use crate::common::client::{Client, DATA_START, Style, T_FLUSH, T_IN};
use crate::common::faulty::{FaultyFs, Grain};
use crate::common::{Daemon, Place, Qmp, text, wait_until};
use pitstop_format::VolumeIo;
use serde_json::json;

use crate::scene::*;

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

/// A map of a deep chain reads hundreds of table pages, each of which takes its time.
// rule: CTL-74
#[test]
fn the_end_of_the_daemon_waits_for_no_map() {
    const LAYERS: u32 = 250;
    const READ_TAKES: Duration = Duration::from_millis(20);
    let place = Place::with_volumes(&["v"]);
    place.change(|container| {
        for number in 0..LAYERS {
            VolumeIo::new(container, container.volume("v").unwrap()).write_at(&[1; 4096], 0).unwrap();
            container.snapshot("v", &format!("kept-{number}")).unwrap();
        }
    });
    let fs = FaultyFs::mount(&place.path("mounted"), &place.container(), Grain::Sector);
    let control = place.path("control");
    let daemon = Daemon::start(&[text(&fs.file()).to_owned(), "--control".to_owned(), text(&control).to_owned()]);
    wait_until("control socket", || control.exists());
    let mut qmp = Qmp::connect(&control);
    fs.slow_reads(READ_TAKES);
    // The blocks of the chunk but the first are looked for in all layers.
    let asked = std::thread::spawn(move || qmp.try_ask("x-pitstop-map", json!({"name": "v", "counts-only": true})));
    std::thread::sleep(15 * READ_TAKES);
    assert!(!asked.is_finished(), "the map is too fast to show anything");
    let since = Instant::now();
    assert_eq!(daemon.terminate().code(), Some(0));
    let took = since.elapsed();
    assert!(took < READ_TAKES * LAYERS / 3, "{took:?}");
    let answer = asked.join().unwrap();
    assert!(answer.is_none_or(|answer| answer.get("error").is_some()), "the map was not given up");
}
