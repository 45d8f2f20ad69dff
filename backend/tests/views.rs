//! A takeover: a new owner works through a view while the old one's guest goes on writing.
// req: R24 R25 R27; rules: VIEW-1 to VIEW-8, CTL-150 to CTL-152

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use common::client::{Client, Style, T_DISCARD, T_OUT};
use common::{Daemon, Place, Qmp, Random, text, wait_until};
use serde_json::json;
use vm_memory::{Bytes, GuestAddress};

const LEN: u64 = 4 << 20;

/// A daemon that serves volume `old`, full of ones, and its control socket.
fn serve(place: &Place) -> (Daemon, Qmp, Client) {
    let control = place.path("control");
    let daemon = place.serve(&["old"], &["--control", text(&control)]);
    wait_until("control socket", || control.exists());
    let mut client = Client::connect(&place.path("old"), Style::PLAIN);
    for at in (0..LEN).step_by(64 << 10) {
        client.write(at, &[1; 64 << 10]);
    }
    (daemon, Qmp::connect(&control), client)
}

/// Makes the view `new` and connects to it.
fn take_over(place: &Place, qmp: &mut Qmp) -> Client {
    qmp.order("x-pitstop-view-create", json!({"source": "old", "name": "new"}));
    let addr = json!({"type": "unix", "path": text(&place.path("new"))});
    let export = json!({"type": "vhost-user-blk", "id": "new", "node-name": "new", "writable": true, "addr": addr});
    qmp.order("block-export-add", export);
    Client::connect(&place.path("new"), Style::PLAIN)
}

#[test]
fn late_writes_of_the_old_owner_do_not_reach_the_new_one() {
    for (ending, kept) in [("drop", false), ("keep", true)] {
        let place = Place::with_volumes(&["old"]);
        let (daemon, mut qmp, mut old) = serve(&place);
        let mut new = take_over(&place, &mut qmp);
        assert_eq!(new.config(0, 60), old.config(0, 60), "the new owner finds the disk that it knows");
        old.write(0, &[2; 8192]);
        new.write(4096, &[3; 8192]);
        new.write(512, &[3; 512]);
        old.write(12288, &[2; 512]);
        new.zero(T_DISCARD, &[(16384 / 512, 8, 0)]);
        let shown = |client: &mut Client| {
            let bytes = client.read(0, 20480);
            bytes
                .chunks(512)
                .map(|sector| if sector.iter().all(|byte| *byte == sector[0]) { sector[0] } else { 99 })
                .collect::<Vec<_>>()
        };
        let expected = |first: u8, late: u8| {
            [vec![first, 3], vec![first; 6], vec![3; 16], vec![late], vec![1; 7], vec![0; 8]].concat()
        };
        assert_eq!((shown(&mut old), shown(&mut new)), (expected(2, 2), expected(1, 1)));
        assert!(
            qmp.refused("x-pitstop-refresh", json!({"name": "old", "source": "new", "force": true}))
                .contains("view drop")
        );
        assert!(qmp.refused("x-pitstop-snapshot", json!({"source": "new", "name": "copy"})).contains("view keep"));
        if kept {
            qmp.order("x-pitstop-view-keep", json!({"name": "new"}));
            assert_eq!(shown(&mut old), expected(2, 2));
        } else {
            assert!(qmp.refused("x-pitstop-view-drop", json!({"name": "new"})).contains("has a connected guest"));
            qmp.order("x-pitstop-view-drop", json!({"name": "new", "force": true}));
            assert_eq!(shown(&mut old), expected(1, 1));
        }
        // Each goes its own way now, and what the end has settled survives the daemon's death.
        new.write(0, &[4; 512]);
        old.write(512, &[5; 512]);
        assert_eq!(old.read(0, 512), vec![if kept { 2 } else { 1 }; 512], "{ending}");
        assert_eq!(new.read(512, 512), [3; 512]);
        drop((old, new, qmp, daemon)); // killed
        let at =
            |name: &str| place.read_volume(name)[4096..20480].chunks(512).map(|sector| sector[0]).collect::<Vec<_>>();
        assert_eq!(at("new"), expected(1, 1)[8..]);
        assert_eq!(at("old"), if kept { expected(2, 2) } else { expected(1, 1) }[8..]);
    }
}

// rule: CTL-135 — data is put into no volume that a guest is connected to, nor into one that such a guest reads through.
#[test]
fn data_is_put_into_no_volume_of_a_guest() {
    let place = Place::with_volumes(&["old"]);
    let (_daemon, mut qmp, mut old) = serve(&place);
    let put = |name: &str| json!({"name": name, "start": 0, "zeros": 4096});
    assert!(qmp.refused("x-pitstop-write", put("old")).contains("connected"));
    qmp.order("x-pitstop-view-create", json!({"source": "old", "name": "new"}));
    for name in ["new", "old"] {
        let refused = qmp.refused("x-pitstop-write", put(name));
        assert!(refused.contains("view"), "{refused}");
    }
    assert_eq!(old.read(0, 4096), [1; 4096]);
    qmp.order("x-pitstop-view-drop", json!({"name": "new", "force": true}));
    qmp.order("x-pitstop-write", put("new"));
    assert_eq!(old.read(0, 4096), [1; 4096]);
}

/// Many writes under way while the view is made and ended: each owner finds its own last write of every place, and the old
/// one the new one's where it has not written since.
#[test]
fn both_owners_write_while_views_come_and_go() {
    let place = Place::with_volumes(&["old"]);
    let (daemon, mut qmp, mut old) = serve(&place);
    let mut random = Random(7);
    for round in 0..12u8 {
        // Under way when the command comes, and not waited for by it.
        let mem = old.mem.clone();
        let data = 0x60_0000;
        mem.write_slice(&[100 + round; 4096], GuestAddress(data)).unwrap();
        let late = u64::from(round) * (64 << 10);
        old.queues[0].submit(T_OUT, late / 512, &[(data, 4096)]);
        let mut new = take_over(&place, &mut qmp);
        assert_eq!(old.queues[0].wait_one().status, 0);
        // Planned before the instant it is the view's too, otherwise not: all of it or nothing.
        assert_eq!(old.read(late, 4096), [100 + round; 4096]);
        let found = new.read(late, 4096);
        assert!(found == [100 + round; 4096] || found == [1; 4096], "{:?}", &found[..8]);
        let mut model: Vec<Vec<u8>> = [&mut old, &mut new].map(|client| client.read(1 << 20, 256 << 10)).into();
        for _ in 0..150 {
            let sectors = 1 + random.below(20);
            let start = random.below(512 - sectors) * 512;
            let range = start as usize..(start + sectors * 512) as usize;
            let value = random.below(200) as u8;
            let bytes = vec![value; range.len()];
            if random.below(2) == 0 {
                old.write((1 << 20) + start, &bytes);
                model[0][range].fill(value);
            } else {
                new.write((1 << 20) + start, &bytes);
                model.iter_mut().for_each(|side| side[range.clone()].fill(value));
            }
        }
        for (client, side) in [&mut old, &mut new].into_iter().zip(&model) {
            assert!(client.read(1 << 20, 256 << 10) == *side, "round {round}");
        }
        let (end, arguments) = match round % 2 {
            0 => ("x-pitstop-view-drop", json!({"name": "new", "force": true})),
            _ => ("x-pitstop-view-keep", json!({"name": "new"})),
        };
        qmp.order(end, arguments);
        let source = if round % 2 == 0 { &model[1] } else { &model[0] };
        assert!(old.read(1 << 20, 256 << 10) == *source && new.read(1 << 20, 256 << 10) == model[1], "round {round}");
        qmp.order("block-export-del", json!({"id": "new", "mode": "hard"}));
        qmp.order("x-pitstop-volume-delete", json!({"name": "new"}));
    }
    drop((old, qmp));
    assert!(daemon.terminate().success());
}
