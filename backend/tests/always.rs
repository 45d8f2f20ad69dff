//! A guest of a volume that is always verified, on a container in which bits turn over (TAG-14, TAG-15, CTL-140).
//!
//! req: R13

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;

use common::client::{Client, Style, T_IN, T_OUT};
use common::{Daemon, Place, Qmp, Random, VOLUME_LEN, text, wait_until};
use pitstop_format::{Verify, VolumeIo};
use serde_json::json;

const BLOCK: u64 = 4096;
const IOERR: u8 = 1;

struct Scene {
    place: Place,
    daemon: Option<Daemon>,
    golden: Vec<u8>,
}

impl Scene {
    /// `golden`, which is sealed when it is copied, and `ci`, served.
    fn new() -> Self {
        let place = Place::with_volumes(&["golden", "ci"]);
        let golden = Random(0x5eed_0009).bytes(VOLUME_LEN);
        place.change(|container| {
            let io = VolumeIo::new(container, container.volume("golden").unwrap());
            io.write_at(&golden, 0).unwrap();
            io.flush().unwrap();
            container.set_verify("golden", Verify::Copy).unwrap();
        });
        let mut scene = Scene { place, daemon: None, golden };
        scene.start();
        scene
    }

    fn start(&mut self) {
        let mut arguments = vec![text(&self.place.container()).to_owned()];
        arguments.extend(["--control".to_owned(), text(&self.place.path("control")).to_owned()]);
        arguments.push("--export".to_owned());
        arguments.push(format!("volume=ci,socket={}", text(&self.place.path("ci"))));
        self.daemon = Some(Daemon::start_logged(&arguments, &self.place.path("log")));
        for socket in ["control", "ci"] {
            wait_until(socket, || common::is_listened_on(&self.place.path(socket)));
        }
    }

    fn restart(&mut self) {
        assert!(self.daemon.take().unwrap().terminate().success());
        self.start();
    }

    fn qmp(&self) -> Qmp {
        Qmp::connect(&self.place.path("control"))
    }

    fn guest(&self) -> Client {
        Client::connect(&self.place.path("ci"), Style::PLAIN)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.place.path("log")).unwrap()
    }

    /// Turns a bit over of every block that holds these bytes; where they are.
    fn flip(&self, block: &[u8]) -> Vec<u64> {
        let bytes = std::fs::read(self.place.container()).unwrap();
        let found = bytes.chunks_exact(BLOCK as usize).zip(0u64..).filter(|(found, _)| *found == block);
        let places: Vec<u64> = found.map(|(_, number)| number * BLOCK).collect();
        let file = File::options().write(true).open(self.place.container()).unwrap();
        places.iter().for_each(|place| file.write_all_at(&[block[1000] ^ 1], place + 1000).unwrap());
        file.sync_all().unwrap();
        places
    }

    fn block(&self, number: u64) -> &[u8] {
        &self.golden[(number * BLOCK) as usize..][..BLOCK as usize]
    }

    /// The request must fail, and leave nothing in the guest's memory.
    fn assert_refused(&self, guest: &mut Client, at: u64, len: usize) {
        let mut bytes = vec![0xee; len];
        assert_eq!(guest.request(T_IN, at / 512, &mut bytes).status, IOERR, "{len} bytes at {at}");
        assert!(bytes.iter().all(|&byte| byte == 0xee), "{len} bytes at {at}");
    }
}

fn is_sealed(qmp: &mut Qmp) -> bool {
    qmp.order("query-jobs", json!({})) == json!([])
}

#[test]
fn a_guest_gets_an_error_for_just_the_block_in_which_a_bit_has_turned_over() {
    let mut scene = Scene::new();
    let mut qmp = scene.qmp();
    let set = qmp.order("x-pitstop-volume-set", json!({"name": "ci", "verify": "always"}));
    assert_eq!(set["volume"]["verify"], "always");
    let refreshed = qmp.order("x-pitstop-refresh", json!({"name": "ci", "source": "golden"}));
    assert_eq!(refreshed["volume"]["verify"], "always", "it is the volume's own");
    wait_until("the sealing", || is_sealed(&mut qmp));
    let mut guest = scene.guest();
    assert!(guest.read(0, VOLUME_LEN as usize) == scene.golden);
    let [place] = scene.flip(scene.block(300))[..] else { panic!("it is there once") };
    let at = 300 * BLOCK;
    for (from, len) in [(0, BLOCK), (0, 512), (3584, 512), (512, 1024)] {
        scene.assert_refused(&mut guest, at + from, len as usize);
    }
    for (from, to) in [(299, 302), (300, 400), (0, 301)] {
        let mut bytes = vec![0; ((to - from) * BLOCK) as usize];
        assert_eq!(guest.request(T_IN, from * BLOCK / 512, &mut bytes).status, IOERR);
    }
    for neighbour in [299, 301] {
        assert!(guest.read(neighbour * BLOCK, BLOCK as usize) == scene.block(neighbour));
    }
    assert!(guest.read(at - 512, 512) == scene.golden[at as usize - 512..at as usize]);
    // A write to a part of it would make the damage the volume's own.
    assert_eq!(guest.request(T_OUT, at / 512, &mut [1; 512]).status, IOERR);
    scene.assert_refused(&mut guest, at, 512);
    let told = format!("block 300 (offset {place})");
    let log = scene.log();
    let line = log.lines().find(|line| line.contains(&told)).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("export ci") && line.contains("volume 'ci'") && line.contains("layer"), "{line}");
    let reason = qmp.event("BLOCK_IO_ERROR");
    assert_eq!((&reason["operation"], &reason["node-name"]), (&json!("read"), &json!("ci")));
    assert!(reason["reason"].as_str().unwrap().contains(&told), "{reason}");
    let report = qmp.order("x-pitstop-check", json!({"data": true}));
    assert_eq!(report["corruptions"], 1);
    assert!(report["findings"][0]["place"].as_str().unwrap().ends_with(&told), "{report}");

    // All of the block is the guest's own from now on: not sealed, so served as it is.
    guest.write(at, &[0x77; BLOCK as usize]);
    assert_eq!(guest.read(at, BLOCK as usize), [0x77; BLOCK as usize]);
    let whole = guest.read(0, VOLUME_LEN as usize);
    assert!(
        whole[..at as usize] == scene.golden[..at as usize]
            && whole[at as usize + 4096..] == scene.golden[at as usize + 4096..]
    );
    // Each of several that are met one after the other comes to the log.
    for number in 310..314 {
        let [place] = scene.flip(scene.block(number))[..] else { panic!("it is there once") };
        scene.assert_refused(&mut guest, number * BLOCK, 512);
        scene.assert_refused(&mut guest, number * BLOCK, 512);
        let (log, told) = (scene.log(), format!("block {number} (offset {place})"));
        assert!(log.contains(&told), "{told}: {log}");
    }
    drop((guest, qmp));
    assert!(scene.daemon.take().unwrap().terminate().success());
}

#[test]
fn whether_a_guests_reads_are_verified_can_be_changed_beside_it_and_lasts() {
    let mut scene = Scene::new();
    let mut qmp = scene.qmp();
    qmp.order("x-pitstop-refresh", json!({"name": "ci", "source": "golden"}));
    wait_until("the sealing", || is_sealed(&mut qmp));
    let mut guest = scene.guest();
    scene.flip(scene.block(7));
    let mut damaged = scene.block(7).to_vec();
    damaged[1000] ^= 1;
    assert!(guest.read(7 * BLOCK, 4096) == damaged, "nobody asked for it to be verified");
    for verify in ["always", "copy", "always"] {
        qmp.order("x-pitstop-volume-set", json!({"name": "ci", "verify": verify}));
        if verify == "always" {
            scene.assert_refused(&mut guest, 7 * BLOCK, 4096);
        } else {
            assert!(guest.read(7 * BLOCK, 4096) == damaged);
        }
    }
    drop((guest, qmp));
    // Its tags are not in memory then.
    scene.restart();
    let mut guest = scene.guest();
    scene.assert_refused(&mut guest, 7 * BLOCK, 4096);
    assert!(guest.read(8 * BLOCK, 4096) == scene.block(8));
    // With durability none, and becoming real: what is copied is sealed as it was.
    let mut qmp = scene.qmp();
    qmp.order("x-pitstop-volume-set", json!({"name": "ci", "durability": "none"}));
    scene.assert_refused(&mut guest, 7 * BLOCK, 4096);
    guest.write(7 * BLOCK, scene.block(7));
    qmp.order("x-pitstop-volume-hydrate", json!({"name": "ci"}));
    wait_until("the hydration", || is_sealed(&mut qmp));
    assert_eq!(scene.flip(scene.block(9)).len(), 2, "golden's and ci's");
    scene.assert_refused(&mut guest, 9 * BLOCK, 4096);
    assert!(guest.read(7 * BLOCK, 8192) == scene.golden[7 * BLOCK as usize..9 * BLOCK as usize]);
    drop((guest, qmp));
    assert!(scene.daemon.take().unwrap().terminate().success());
}
