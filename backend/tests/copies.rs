//! What the requirements on copies promise, through the daemon, to guests that are connected: every volume's contents are
//! compared with a plain model of them.
//!
//! req: R1 to R9, R14, R15, R17.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use std::collections::BTreeMap;

use common::client::{Client, Style};
use common::{Daemon, Place, Qmp, Random, VOLUME_LEN, text, wait_until};
use pitstop_format::check::{Outcome, check};
use pitstop_format::{FileDisk, OpenMode, VolumeIo};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

fn noise(len: u64, seed: u64) -> Vec<u8> {
    Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).bytes(len)
}

/// A daemon, a guest of each volume, and what each volume must hold.
struct Scene {
    place: Place,
    daemon: Option<Daemon>,
    qmp: Qmp,
    guests: BTreeMap<String, Client>,
    models: BTreeMap<String, Vec<u8>>,
}

impl Scene {
    /// Volumes full of data, each of its own.
    fn full(names: &[&str]) -> Self {
        let place = Place::with_volumes(names);
        let models: BTreeMap<String, Vec<u8>> =
            (1..).zip(names).map(|(seed, name)| ((*name).to_owned(), noise(VOLUME_LEN, seed))).collect();
        place.change(|container| {
            for (name, model) in &models {
                VolumeIo::new(container, container.volume(name).unwrap()).write_at(model, 0).unwrap();
            }
        });
        let (daemon, qmp) = start(&place);
        let mut scene = Scene { place, daemon: Some(daemon), qmp, guests: BTreeMap::new(), models };
        names.iter().for_each(|name| scene.connect(name));
        scene
    }

    /// Serves a volume and connects its guest.
    fn connect(&mut self, name: &str) {
        let socket = self.place.path(name);
        let address = json!({"type": "unix", "path": text(&socket)});
        let arguments =
            json!({"type": "vhost-user-blk", "id": name, "node-name": name, "writable": true, "addr": address});
        self.qmp.order("block-export-add", arguments);
        self.guests.insert(name.to_owned(), Client::connect(&socket, Style::PLAIN));
    }

    fn write(&mut self, name: &str, offset: u64, data: &[u8]) {
        self.guests.get_mut(name).unwrap().write(offset, data);
        self.models.get_mut(name).unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
    }

    /// A write of whole sectors, seldom of whole blocks.
    fn write_somewhere(&mut self, name: &str, random: &mut Random) {
        let len = (1 + random.below(96)) * 512;
        let offset = random.below((VOLUME_LEN - len) / 512) * 512;
        let data = noise(len, random.next());
        self.write(name, offset, &data);
    }

    fn snapshot(&mut self, source: &str, name: &str) {
        self.qmp.order("x-pitstop-snapshot", json!({"source": source, "name": name}));
        self.models.insert(name.to_owned(), self.models[source].clone());
    }

    /// Under a guest that looks on: it has been told.
    fn refresh(&mut self, name: &str, source: &str) {
        self.qmp.order("x-pitstop-refresh", json!({"name": name, "source": source, "force": true}));
        self.models.insert(name.to_owned(), self.models[source].clone());
    }

    fn hydrate(&mut self, name: &str, speed: u64) -> String {
        let job = self.qmp.order("x-pitstop-volume-hydrate", json!({"name": name, "speed": speed}))["job"].clone();
        job["id"].as_str().unwrap().to_owned()
    }

    fn job(&mut self, id: &str) -> Option<Value> {
        let jobs = self.qmp.order("query-jobs", json!({}));
        jobs.as_array().unwrap().iter().find(|job| job["id"] == id).cloned()
    }

    /// The hydration has copied something, and not all, and rests.
    fn pause_in_the_middle(&mut self, id: &str) {
        wait_until("progress", || self.job(id).unwrap()["current-progress"].as_u64().unwrap() > 0);
        self.qmp.order("job-pause", json!({"id": id}));
        let job = self.job(id).unwrap();
        assert!(job["current-progress"].as_u64() < job["total-progress"].as_u64(), "{job}");
    }

    fn finish(&mut self, id: &str) {
        self.qmp.order("x-pitstop-job-set-speed", json!({"id": id, "speed": 0}));
        self.qmp.order("job-resume", json!({"id": id}));
        wait_until("the job's end", || self.job(id).is_none());
    }

    fn volume(&mut self, name: &str) -> Value {
        self.qmp.order("x-pitstop-query-volumes", json!({"name": name}))[0].clone()
    }

    /// All ranges of a volume's map: first byte, length, valid, modified, to be copied.
    fn map(&mut self, name: &str) -> Vec<(u64, u64, bool, bool, bool)> {
        let mut ranges = Vec::new();
        let mut start = json!(0);
        while !start.is_null() {
            let step = self.qmp.order("x-pitstop-map", json!({"name": name, "start": start}));
            ranges.extend(step["ranges"].as_array().unwrap().iter().map(|range| {
                let is = |bit: &str| range[bit].as_bool().unwrap();
                let number = |what: &str| range[what].as_u64().unwrap();
                (number("start"), number("length"), is("valid"), is("modified"), is("to-copy"))
            }));
            start = step["next"].clone();
        }
        ranges
    }

    /// Every byte of every volume, as its guest reads it.
    fn compare(&mut self) {
        for (name, guest) in &mut self.guests {
            for offset in (0..VOLUME_LEN).step_by(MIB as usize) {
                let expected = &self.models[name][offset as usize..][..MIB as usize];
                assert!(guest.read(offset, MIB as usize) == expected, "{name} differs at {offset:#x}..");
            }
        }
    }

    /// Kills the daemon when all that was written has been flushed, starts another one, and the guests connect again.
    fn kill(&mut self) {
        self.guests.values_mut().for_each(Client::flush);
        let names: Vec<String> = std::mem::take(&mut self.guests).into_keys().collect();
        drop(self.daemon.take());
        let (daemon, qmp) = start(&self.place);
        (self.daemon, self.qmp) = (Some(daemon), qmp);
        names.iter().for_each(|name| self.connect(name));
    }

    /// Ends the daemon and looks at what it leaves.
    fn end(mut self) {
        self.compare();
        self.guests.clear();
        assert_eq!(self.daemon.take().unwrap().terminate().code(), Some(0));
        for (name, model) in &self.models {
            assert!(self.place.read_volume(name) == *model, "{name} differs from its model");
        }
        let report = common::alone_with_container(|| {
            check(&*FileDisk::open(&self.place.container(), OpenMode::ReadOnly).unwrap()).unwrap()
        });
        assert_eq!(report.outcome(), Outcome::Clean, "{:?}", report.findings);
    }
}

fn start(place: &Place) -> (Daemon, Qmp) {
    let control = place.path("control");
    let daemon = place.serve(&[], &["--control", text(&control)]);
    wait_until("control socket", || common::is_listened_on(&control));
    (daemon, Qmp::connect(&control))
}

fn bytes_that(map: &[(u64, u64, bool, bool, bool)], is: impl Fn(bool, bool, bool) -> bool) -> u64 {
    map.iter().filter(|(_, _, v, m, r)| is(*v, *m, *r)).map(|(_, len, ..)| len).sum()
}

// req: R1, R2, R3, R4, R5, R6, R15
#[test]
fn any_volume_becomes_a_copy_of_any_other_at_once_and_all_copies_keep_theirs() {
    let mut scene = Scene::full(&["a", "b"]);
    let mut random = Random(0x5eed_0001);
    let mut refreshes = 0;
    for round in 0..160 {
        let names: Vec<String> = scene.guests.keys().cloned().collect();
        let pick = |random: &mut Random| names[random.below(names.len() as u64) as usize].clone();
        let (one, other) = (pick(&mut random), pick(&mut random));
        match random.below(10) {
            0 if names.len() < 7 => {
                let name = format!("s{round}");
                scene.snapshot(&one, &name);
                scene.connect(&name);
                // Usable from that moment on.
                scene.write_somewhere(&name, &mut random);
            }
            1 | 2 if one != other => {
                scene.refresh(&one, &other);
                refreshes += 1;
                scene.write_somewhere(&one, &mut random);
                scene.write_somewhere(&other, &mut random);
            }
            _ => scene.write_somewhere(&one, &mut random),
        }
        if round % 20 == 19 {
            scene.compare();
        }
    }
    assert!(refreshes > 10 && scene.guests.len() == 7, "{refreshes} refreshes, {} volumes", scene.guests.len());
    scene.end();
}

// req: R4, R5, R7, R8, R14
#[test]
fn copies_made_before_and_while_a_volume_is_refreshed_keep_what_they_showed() {
    let mut scene = Scene::full(&["golden", "ci"]);
    let mut random = Random(0x5eed_0002);
    scene.snapshot("ci", "ci-before");
    scene.snapshot("golden", "golden-before");
    scene.write_somewhere("golden", &mut random);
    scene.refresh("ci", "golden");
    let id = scene.hydrate("ci", 4 * MIB);
    scene.pause_in_the_middle(&id);
    assert_eq!(scene.volume("ci")["state"], "hydrating");
    // In the middle of the copy: writes on both sides, to what has been copied and to what has not, and copies of both.
    for round in 0..40 {
        scene.write_somewhere("golden", &mut random);
        scene.write_somewhere("ci", &mut random);
        match round {
            10 => scene.snapshot("ci", "ci-during"),
            20 => scene.snapshot("golden", "golden-during"),
            _ => {}
        }
    }
    for name in ["ci-before", "golden-before", "ci-during", "golden-during"] {
        scene.connect(name);
    }
    scene.write_somewhere("ci-during", &mut random);
    scene.compare();
    scene.finish(&id);
    assert_eq!(scene.volume("ci")["state"], "real");
    scene.compare();
    // What the copy was made of may go now.
    for name in ["golden", "golden-before", "golden-during"] {
        scene.guests.remove(name);
        scene.models.remove(name);
        scene.qmp.order("block-export-del", json!({"id": name, "mode": "hard"}));
        scene.qmp.order("x-pitstop-volume-delete", json!({"name": name}));
    }
    scene.end();
}

// req: R9; rule: MAP-30, MAP-36
#[test]
fn the_maps_tell_what_guests_wrote_and_what_is_to_be_copied_and_survive_a_kill() {
    let mut scene = Scene::full(&["golden"]);
    scene.snapshot("golden", "ci");
    scene.connect("ci");
    assert_eq!(scene.map("ci"), [(0, VOLUME_LEN, false, false, false)]);
    assert_eq!(bytes_that(&scene.map("golden"), |valid, modified, _| valid && !modified), VOLUME_LEN);
    scene.write("ci", 3 * BLOCK, &[1; 4096]);
    scene.write("ci", VOLUME_LEN - 512, &[2; 512]); // keeps the rest of its block
    let map = scene.map("ci");
    let written: Vec<_> = map.iter().filter(|range| range.3).copied().collect();
    assert_eq!(written, [(3 * BLOCK, BLOCK, true, true, false), (VOLUME_LEN - BLOCK, BLOCK, true, true, false)]);
    assert_eq!(bytes_that(&map, |valid, _, _| !valid), VOLUME_LEN - 2 * BLOCK);
    let id = scene.hydrate("ci", 4 * MIB);
    scene.pause_in_the_middle(&id);
    scene.guests.get_mut("ci").unwrap().flush();
    let map = scene.map("ci");
    let to_copy = bytes_that(&map, |_, _, to_copy| to_copy);
    assert!(to_copy > 0 && to_copy < VOLUME_LEN - 2 * BLOCK, "{to_copy} bytes are to be copied");
    assert_eq!(bytes_that(&map, |valid, _, to_copy| !valid && !to_copy), 0);
    let golden = scene.map("golden");
    scene.kill();
    assert_eq!(scene.map("ci"), map);
    assert_eq!(scene.map("golden"), golden);
    scene.finish(&id);
    let map = scene.map("ci");
    assert_eq!(bytes_that(&map, |valid, _, to_copy| valid && !to_copy), VOLUME_LEN);
    assert_eq!(bytes_that(&map, |_, modified, _| modified), 2 * BLOCK, "copying is not writing");
    scene.end();
}

// req: R17, R5; rule: SNP-6, SNP-7
#[test]
fn copies_taken_one_after_another_are_the_volumes_history() {
    const KEPT: usize = 4;
    let mut scene = Scene::full(&["db"]);
    let mut random = Random(0x5eed_0003);
    let mut history: Vec<String> = Vec::new();
    for day in 0..12 {
        (0..10).for_each(|_| scene.write_somewhere("db", &mut random));
        let name = format!("day-{day}");
        scene.snapshot("db", &name);
        scene.connect(&name);
        history.push(name);
        if history.len() > KEPT {
            let oldest = history.remove(0);
            scene.guests.remove(&oldest);
            scene.models.remove(&oldest);
            scene.qmp.order("block-export-del", json!({"id": oldest, "mode": "hard"}));
            scene.qmp.order("x-pitstop-volume-delete", json!({"name": oldest}));
        }
        scene.compare();
        if day == 8 {
            // Back to a day, while its guest looks on: all days stay.
            let to = history[1].clone();
            scene.refresh("db", &to);
            scene.kill();
            scene.compare();
        }
    }
    assert_eq!(history, ["day-8", "day-9", "day-10", "day-11"]);
    let origins: Vec<_> = history.iter().map(|name| scene.volume(name)["origin"]["name"].clone()).collect();
    assert!(origins.iter().all(|origin| origin == "db"), "{origins:?}");
    scene.end();
}
