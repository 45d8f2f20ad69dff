//! A write-through view is made and ended while writes are held in flight.

use serde_json::{Value, json};
use vm_memory::{Bytes, GuestAddress};

use crate::common::client::{Client, Style, T_OUT};
use crate::common::{Qmp, text, wait_until};
use crate::scene::*;

/// What the storage holds back begins with this.
const HELD: u8 = 0x77;
const LEN: usize = 4096;

/// Submits a write and does not wait for its end.
fn submit(guest: &mut Client, offset: u64, byte: u8) {
    let addr = 0x60_0000 + offset;
    guest.mem.write_slice(&[byte; LEN], GuestAddress(addr)).unwrap();
    guest.queues[0].submit(T_OUT, offset / 512, &[(addr, LEN as u32)]);
}

fn take_over(scene: &Scene, qmp: &mut Qmp) -> Client {
    qmp.order("x-pitstop-view-create", json!({"source": "v", "name": "new"}));
    let socket = scene.place.path("new");
    let addr = json!({"type": "unix", "path": text(&socket)});
    let export = json!({"type": "vhost-user-blk", "id": "new", "node-name": "new", "writable": true, "addr": addr});
    qmp.order("block-export-add", export);
    Client::connect(&socket, Style::PLAIN)
}

/// A view of four blocks of 1, of which the source has 2 in the first. Writes that begin with [`HELD`] are held from now on.
fn taken_over(scene: &Scene) -> (Qmp, Client, Client) {
    let (mut qmp, mut v) = (scene.qmp(), scene.guest("v"));
    assert_eq!(writes(&mut v, 0, 1, 4 * LEN), OK);
    let new = take_over(scene, &mut qmp);
    assert_eq!(writes(&mut v, 0, 2, LEN), OK);
    scene.fs.hold_writes_of(Some(HELD));
    (qmp, v, new)
}

/// Both volumes' first bytes at this place.
fn both(v: &mut Client, new: &mut Client, offset: u64) -> (u8, u8) {
    (v.read(offset, LEN)[0], new.read(offset, LEN)[0])
}

// req: R24, R25, R27; rules: VIEW-1, VIEW-6, VIEW-7
#[test]
fn a_view_is_made_and_used_while_writes_of_before_are_held_in_flight() {
    let scene = Scene::new();
    let (mut qmp, mut v) = (scene.qmp(), scene.guest("v"));
    assert_eq!(writes(&mut v, 0, 1, 4 * LEN), OK);
    v.flush();
    scene.fs.hold_writes_of(Some(HELD));
    // One in the place of data, one that is a first write.
    submit(&mut v, 0, HELD);
    submit(&mut v, 1 << 20, HELD);
    wait_until("the storage has both", || scene.fs.held() == 2);
    // The command does not wait for them, nor does what begins after it.
    let mut new = take_over(&scene, &mut qmp);
    assert_eq!(both(&mut v, &mut new, 0), (1, 1));
    assert_eq!(writes(&mut new, LEN as u64, 2, LEN), OK);
    assert_eq!(writes(&mut v, 2 * LEN as u64, 3, LEN), OK);
    // Over a held write, through the view: both show that, whatever becomes of the other.
    assert_eq!(writes(&mut new, 1 << 20, 4, LEN), OK);
    v.flush();
    new.flush();
    assert!(v.queues[0].take_done().is_none() && scene.fs.held() == 2, "they are still under way");
    scene.fs.hold_writes_of(None);
    for _ in 0..2 {
        assert_eq!(v.queues[0].wait_one().status, OK);
    }
    // What was held has finished against the image of before, which both show.
    assert_eq!(both(&mut v, &mut new, 0), (HELD, HELD));
    assert_eq!(both(&mut v, &mut new, LEN as u64), (2, 2));
    assert_eq!(both(&mut v, &mut new, 2 * LEN as u64), (3, 1));
    assert_eq!(both(&mut v, &mut new, 1 << 20), (4, 4));
    drop((v, new, qmp));
    scene.end();
}

// req: R24, R27; rules: VIEW-1, VIEW-8
#[test]
fn late_writes_that_are_held_in_flight_end_in_neither_volume_after_a_drop() {
    let scene = Scene::new();
    let (mut qmp, mut v, mut new) = taken_over(&scene);
    submit(&mut v, 0, HELD);
    // One after the other: neighbours that come together go as one write.
    wait_until("the storage has the first", || scene.fs.held() == 1);
    submit(&mut v, LEN as u64, HELD);
    wait_until("the storage has both", || scene.fs.held() == 2);
    // They are given up: neither the command waits for them, nor what begins after it.
    let ended = qmp.order("x-pitstop-view-drop", json!({"name": "new", "force": true}));
    assert!(ended["volume"]["view-of"].is_null(), "{ended}");
    assert_eq!(both(&mut v, &mut new, 0), (1, 1));
    assert_eq!(writes(&mut v, 2 * LEN as u64, 3, LEN), OK);
    assert_eq!(writes(&mut new, 3 * LEN as u64, 4, LEN), OK);
    assert!(v.queues[0].take_done().is_none() && scene.fs.held() == 2, "they are still under way");
    scene.fs.hold_writes_of(None);
    for _ in 0..2 {
        assert_eq!(v.queues[0].wait_one().status, OK);
    }
    for (block, shown) in [(1, 1), (1, 1), (3, 1), (1, 4)].into_iter().enumerate() {
        assert_eq!(both(&mut v, &mut new, (block * LEN) as u64), shown, "block {block}");
    }
    drop((v, new, qmp));
    scene.end();
}

// rules: VIEW-8, CTL-151 — a drop that waits for a guest's write keeps nobody from exports.
#[test]
fn a_drop_that_waits_for_writes_holds_up_no_other_command() {
    let scene = Scene::new();
    let (mut qmp, v, mut new) = taken_over(&scene);
    let mut other = scene.qmp();
    drop(v);
    let of_v = |export: &&Value| export["node-name"] == "v";
    wait_until("nobody is connected to the source", || {
        let exports = other.order("query-block-exports", json!({}));
        exports.as_array().unwrap().iter().find(of_v).unwrap()["x-pitstop-connected"] == false
    });
    submit(&mut new, 0, HELD);
    wait_until("the storage has it", || scene.fs.held() == 1);
    let dropping = std::thread::spawn(move || qmp.order("x-pitstop-view-drop", json!({"name": "new"})));
    let is_view = |qmp: &mut Qmp| {
        let volumes = qmp.order("x-pitstop-query-volumes", json!({"name": "new"}));
        !volumes[0]["view-of"].is_null()
    };
    wait_until("the instant", || !is_view(&mut other));
    // The answer waits for the write; others do not wait for the answer.
    assert_eq!(other.order("query-block-exports", json!({})).as_array().unwrap().len(), 3);
    let mut v = scene.guest("v");
    assert_eq!(both(&mut v, &mut new, LEN as u64), (1, 1));
    assert!(!dropping.is_finished() && scene.fs.held() == 1);
    scene.fs.hold_writes_of(None);
    assert_eq!(new.queues[0].wait_one().status, OK);
    dropping.join().unwrap();
    assert_eq!(both(&mut v, &mut new, 0), (HELD, HELD));
    drop((v, new, other));
    scene.end();
}

// req: R26, R27; rules: VIEW-2, VIEW-3, VIEW-4 — where a block lives is known, and changes, while the images are at work.
#[test]
fn blocks_are_found_while_a_write_through_the_view_is_held_in_flight() {
    let scene = Scene::new();
    let (qmp, mut v, mut new) = taken_over(&scene);
    submit(&mut new, 0, HELD);
    submit(&mut new, 3 * LEN as u64, HELD);
    wait_until("the storage has both", || scene.fs.held() == 2);
    // The blocks that are being written are found where they were before, their neighbours are written.
    assert_eq!((both(&mut v, &mut new, 0), both(&mut v, &mut new, 3 * LEN as u64)), ((2, 1), (1, 1)));
    assert_eq!(writes(&mut v, LEN as u64, 3, LEN), OK);
    assert_eq!(writes(&mut new, 2 * LEN as u64, 4, LEN), OK);
    // Over what the source has already it writes at once, and comes first; elsewhere it waits, and comes second.
    assert_eq!(writes(&mut v, 0, 5, LEN), OK);
    submit(&mut v, 3 * LEN as u64, 6);
    assert_eq!((both(&mut v, &mut new, 0), both(&mut v, &mut new, 3 * LEN as u64)), ((5, 1), (1, 1)));
    assert!(v.queues[0].take_done().is_none() && new.queues[0].take_done().is_none());
    scene.fs.hold_writes_of(None);
    let statuses = [new.queues[0].wait_one(), new.queues[0].wait_one(), v.queues[0].wait_one()].map(|done| done.status);
    assert_eq!(statuses, [OK; 3]);
    for (block, shown) in [(HELD, HELD), (3, 1), (4, 4), (6, HELD)].into_iter().enumerate() {
        assert_eq!(both(&mut v, &mut new, (block * LEN) as u64), shown, "block {block}");
    }
    drop((v, new, qmp));
    scene.end();
}
