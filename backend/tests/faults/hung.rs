//! Storage that does not answer.

use std::time::Duration;

use crate::common::client::{Client, DATA_START, Style, T_FLUSH, T_IN};
use crate::common::wait_until;
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
