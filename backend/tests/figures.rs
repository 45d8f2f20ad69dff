//! The scenario of figures 3A to 3F through the daemon: V1; V2 with its point-in-time copy S2, whose background copy is under
//! way; writes of guests to V2 and S2; V2 refreshed from V1; more writes to all three in the middle of the copy from V1.
//!
//! What guests read, and the V, M and R maps, are those of `format/tests/maps/figures.rs`, which says where they differ from
//! the text's, and why. A job at a byte a second copies one block, and the next hours later.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use common::client::{Client, Style};
use common::{Place, Qmp, text, wait_until};
use pitstop_format::SLAB_LEN;
use serde_json::{Value, json};

/// Blocks of each volume, each as long as what is copied at once; the text counts them from 1.
const BLOCKS: u64 = 8;
const ALL: &[u64] = &[1, 2, 3, 4, 5, 6, 7, 8];
const NONE: &[u64] = &[];

/// A volume's guest, what its blocks hold, and those with V, with M and with R.
type Shown<'a> = (&'a mut Client, &'a str, [u8; BLOCKS as usize], [&'a [u64]; 3]);

fn write(guest: &mut Client, block: u64, value: u8) {
    guest.write((block - 1) * SLAB_LEN, &[value; SLAB_LEN as usize]);
}

fn maps(qmp: &mut Qmp, volume: &str) -> [Vec<u64>; 3] {
    let step = qmp.order("x-pitstop-map", json!({"name": volume}));
    assert_eq!(step["next"], Value::Null);
    let mut maps: [Vec<u64>; 3] = Default::default();
    for range in step["ranges"].as_array().unwrap() {
        assert_eq!(range["content"], "data");
        let [start, length] = ["start", "length"].map(|member| range[member].as_u64().unwrap());
        for (blocks, member) in maps.iter_mut().zip(["valid", "modified", "to-copy"]) {
            if range[member] == true {
                blocks.extend(start / SLAB_LEN + 1..=(start + length) / SLAB_LEN);
            }
        }
    }
    maps
}

fn assert_shown(qmp: &mut Qmp, when: &str, shown: [Shown<'_>; 3]) {
    for (guest, volume, blocks, [valid, modified, to_copy]) in shown {
        for (block, value) in (0..BLOCKS).zip(blocks) {
            let bytes = guest.read(block * SLAB_LEN, SLAB_LEN as usize);
            assert!(bytes.iter().all(|&byte| byte == value), "{when}: block {} of {volume}", block + 1);
        }
        assert_eq!(maps(qmp, volume), [valid, modified, to_copy].map(<[u64]>::to_vec), "{when}: V, M, R of {volume}");
    }
}

/// Begins to copy to a volume in the background; when this returns, one block has been copied.
fn begin_copy(qmp: &mut Qmp, volume: &str) -> String {
    let job = qmp.order("x-pitstop-volume-hydrate", json!({"name": volume, "speed": 1}))["job"]["id"].clone();
    wait_until("the first block", || progress(qmp, volume) == Some(SLAB_LEN));
    job.as_str().unwrap().to_owned()
}

/// Bytes that the volume's job has looked at, if there is one.
fn progress(qmp: &mut Qmp, volume: &str) -> Option<u64> {
    let jobs = qmp.order("query-jobs", json!({}));
    let job = jobs.as_array().unwrap().iter().find(|job| job["x-pitstop-volume"] == volume)?;
    job["current-progress"].as_u64()
}

fn end_copy(qmp: &mut Qmp, volume: &str, job: &str) {
    qmp.order("x-pitstop-job-set-speed", json!({"id": job, "speed": 0}));
    wait_until("the end of the copy", || progress(qmp, volume).is_none());
    assert_eq!(qmp.order("x-pitstop-query-volumes", json!({"name": volume}))[0]["state"], "real");
}

// req: R8, R9, R10; rules: MAP-30, MAP-36, SNP-1, SNP-10, LAY-30, LAY-34, LAY-39
#[test]
fn figures_3a_to_3f_beside_guests() {
    let place = Place::with_volumes(&[]);
    place.change(|container| {
        for name in ["v1", "v2"] {
            container.create_volume(name, BLOCKS * SLAB_LEN).unwrap();
        }
    });
    let control = place.path("control");
    let more = ["--control", text(&control)];
    let daemon = place.serve(&["v1", "v2"], &more);
    wait_until("control socket", || common::is_listened_on(&control));
    let mut qmp = Qmp::connect(&control);
    let guest = |name: &str| Client::connect(&place.path(name), Style::PLAIN);
    let (mut v1, mut v2) = (guest("v1"), guest("v2"));
    for block in 1..=BLOCKS {
        write(&mut v1, block, 1);
        write(&mut v2, block, 2);
    }

    // 3A: S2 is made, served, and its background copy has begun with block 1.
    qmp.order("x-pitstop-snapshot", json!({"source": "v2", "name": "s2"}));
    let export = json!({"type": "vhost-user-blk", "id": "s2", "node-name": "s2", "writable": true,
        "addr": {"type": "unix", "path": text(&place.path("s2"))}});
    qmp.order("block-export-add", export);
    let mut s2 = guest("s2");
    let s2_copy = begin_copy(&mut qmp, "s2");
    let shown: [Shown<'_>; 3] = [
        (&mut v1, "v1", [1; 8], [ALL, ALL, NONE]),
        (&mut v2, "v2", [2; 8], [ALL, NONE, NONE]),
        (&mut s2, "s2", [2; 8], [&[1], NONE, &[2, 3, 4, 5, 6, 7, 8]]),
    ];
    assert_shown(&mut qmp, "3A", shown);

    // 3B: block 1 of V2 and block 2 of S2 are modified.
    write(&mut v2, 1, 21);
    write(&mut s2, 2, 32);
    let s2_blocks = [2, 32, 2, 2, 2, 2, 2, 2];
    let shown: [Shown<'_>; 3] = [
        (&mut v1, "v1", [1; 8], [ALL, ALL, NONE]),
        (&mut v2, "v2", [21, 2, 2, 2, 2, 2, 2, 2], [ALL, &[1], NONE]),
        (&mut s2, "s2", s2_blocks, [&[1, 2], &[2], &[3, 4, 5, 6, 7, 8]]),
    ];
    assert_shown(&mut qmp, "3B", shown);

    // 3C, 3D: V2 is refreshed from V1 under its guest; S2 needs nothing of V2 any more.
    qmp.order("x-pitstop-refresh", json!({"name": "v2", "source": "v1", "force": true}));
    let shown: [Shown<'_>; 3] = [
        (&mut v1, "v1", [1; 8], [ALL, NONE, NONE]),
        (&mut v2, "v2", [1; 8], [NONE, NONE, NONE]),
        (&mut s2, "s2", s2_blocks, [ALL, &[2], NONE]),
    ];
    assert_shown(&mut qmp, "3D", shown);
    end_copy(&mut qmp, "s2", &s2_copy);

    // 3E: block 1 of V2 has been copied from V1.
    let v2_copy = begin_copy(&mut qmp, "v2");
    let shown: [Shown<'_>; 3] = [
        (&mut v1, "v1", [1; 8], [ALL, NONE, NONE]),
        (&mut v2, "v2", [1; 8], [&[1], NONE, &[2, 3, 4, 5, 6, 7, 8]]),
        (&mut s2, "s2", s2_blocks, [ALL, &[2], NONE]),
    ];
    assert_shown(&mut qmp, "3E", shown);

    // 3F: blocks 2 and 4 of V1, block 5 of V2 and block 6 of S2 are modified in the middle of the copy.
    write(&mut v1, 2, 12);
    write(&mut v1, 4, 14);
    write(&mut v2, 5, 25);
    write(&mut s2, 6, 36);
    qmp.order("job-pause", json!({"id": v2_copy}));
    let (v1_blocks, v2_blocks, s2_blocks) =
        ([1, 12, 1, 14, 1, 1, 1, 1], [1, 1, 1, 1, 25, 1, 1, 1], [2, 32, 2, 2, 2, 36, 2, 2]);
    let assert_3f = |qmp: &mut Qmp, guests: [&mut Client; 3]| {
        let [v1, v2, s2] = guests;
        let shown: [Shown<'_>; 3] = [
            (v1, "v1", v1_blocks, [ALL, &[2, 4], NONE]),
            (v2, "v2", v2_blocks, [&[1, 5], &[5], &[2, 3, 4, 6, 7, 8]]),
            (s2, "s2", s2_blocks, [ALL, &[2, 6], NONE]),
        ];
        assert_shown(qmp, "3F", shown);
    };
    assert_3f(&mut qmp, [&mut v1, &mut v2, &mut s2]);

    // Another daemon finds all of it, and goes on with the copy.
    for guest in [&mut v1, &mut v2, &mut s2] {
        guest.flush();
    }
    drop((v1, v2, s2, qmp));
    assert_eq!(daemon.terminate().code(), Some(0));
    let daemon = place.serve(&["v1", "v2", "s2"], &more);
    wait_until("control socket", || common::is_listened_on(&control));
    let mut qmp = Qmp::connect(&control);
    let (mut v1, mut v2, mut s2) = (guest("v1"), guest("v2"), guest("s2"));
    assert_3f(&mut qmp, [&mut v1, &mut v2, &mut s2]);
    qmp.order("job-resume", json!({"id": v2_copy}));
    end_copy(&mut qmp, "v2", &v2_copy);
    let shown: [Shown<'_>; 3] = [
        (&mut v1, "v1", v1_blocks, [ALL, &[2, 4], NONE]),
        (&mut v2, "v2", v2_blocks, [ALL, &[5], NONE]),
        (&mut s2, "s2", s2_blocks, [ALL, &[2, 6], NONE]),
    ];
    assert_shown(&mut qmp, "the end", shown);
    drop((v1, v2, s2, qmp));
    assert_eq!(daemon.terminate().code(), Some(0));
}
