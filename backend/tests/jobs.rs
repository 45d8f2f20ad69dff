//! Jobs through the daemon: hydrations beside guests whose every read is verified (JOB-1 to JOB-9, CTL-80 to CTL-84).

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::client::{Client, Style, T_OUT};
use common::faulty::{Fault, FaultyFs, Grain, Op};
use common::{Daemon, Place, Qmp, Random, VOLUME_LEN, text, wait_until};
use pitstop_format::check::{Outcome, check};
use pitstop_format::{FileDisk, OpenMode, VolumeIo};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// Requests that a guest makes at least.
const LEAST_ROUNDS: u32 = 200;

/// The contents of `golden`.
fn golden_bytes() -> Vec<u8> {
    Random(0xdead_beef_1234).bytes(VOLUME_LEN)
}

/// A place with `golden`, full of data, and its copy `ci`.
fn place() -> Place {
    let place = Place::with_volumes(&["golden"]);
    place.change(|container| {
        let io = VolumeIo::new(container, container.volume("golden").unwrap());
        io.write_at(&golden_bytes(), 0).unwrap();
        container.snapshot("golden", "ci").unwrap();
        container.settle(1000).unwrap();
    });
    place
}

fn serve(place: &Place, volumes: &[&str]) -> (Daemon, Qmp) {
    let control = place.path("control");
    let daemon = place.serve(volumes, &["--control", text(&control)]);
    (daemon, connect(&control))
}

fn connect(control: &Path) -> Qmp {
    wait_until("control socket", || common::is_listened_on(control));
    Qmp::connect(control)
}

fn jobs(qmp: &mut Qmp) -> Vec<Value> {
    let jobs = qmp.order("query-jobs", json!({}));
    jobs.as_array().unwrap().iter().filter(|job| job["type"] == "hydrate").cloned().collect()
}

fn progress(qmp: &mut Qmp) -> u64 {
    jobs(qmp)[0]["current-progress"].as_u64().unwrap()
}

fn hydrate(qmp: &mut Qmp, more: Value) -> String {
    let mut arguments = json!({"name": "ci"});
    arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let job = qmp.order("x-pitstop-volume-hydrate", arguments)["job"].clone();
    assert_eq!((&job["type"], &job["x-pitstop-volume"]), (&json!("hydrate"), &json!("ci")));
    job["id"].as_str().unwrap().to_owned()
}

fn state(qmp: &mut Qmp, volume: &str) -> String {
    let volumes = qmp.order("x-pitstop-query-volumes", json!({"name": volume}));
    volumes[0]["state"].as_str().unwrap().to_owned()
}

/// The states that job `id` turns to, up to `last`.
fn states(qmp: &mut Qmp, id: &str, last: &str) -> Vec<String> {
    let mut states = Vec::new();
    while states.last().is_none_or(|state| state != last) {
        let event = qmp.event("JOB_STATUS_CHANGE");
        if event["id"] == id {
            states.push(event["status"].as_str().unwrap().to_owned());
        }
    }
    states
}

/// Random reads, which must show the model, and writes, until told to stop, but some at least; then a flush.
fn exercise(client: &mut Client, model: &mut [u8], seed: u64, stop: &AtomicBool) {
    let mut random = Random(seed);
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) || rounds < LEAST_ROUNDS {
        let len = (1 + random.below(64)) * 512;
        let offset = random.below((VOLUME_LEN - len) / 512) * 512;
        let range = offset as usize..(offset + len) as usize;
        if random.below(3) == 0 {
            let bytes: Vec<u8> = random.bytes(len);
            client.write(offset, &bytes);
            model[range].copy_from_slice(&bytes);
        } else {
            assert!(client.read(offset, len as usize) == model[range], "wrong data at {offset:#x}, {len} bytes");
        }
        rounds += 1;
    }
    client.flush();
}

/// Runs `orders` while a guest of each of these volumes works; every read is compared with its model.
fn beside_guests<T>(place: &Place, guests: &mut [(&str, Vec<u8>)], orders: impl FnOnce() -> T) -> T {
    static SEED: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for (name, model) in guests {
            let (socket, stop) = (place.path(name), &stop);
            let seed = SEED.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            scope.spawn(move || {
                let mut client = Client::connect(&socket, Style::PLAIN);
                exercise(&mut client, model, seed, stop);
            });
        }
        // Also when the orders fail, the guests end.
        let stopping = Stop(&stop);
        let result = orders();
        drop(stopping);
        result
    })
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn assert_clean(place: &Place) {
    let report = common::alone_with_container(|| {
        check(&*FileDisk::open(&place.container(), OpenMode::ReadOnly).unwrap()).unwrap()
    });
    assert_eq!(report.outcome(), Outcome::Clean, "{:?}", report.findings);
}

// req: R8, R12, R15
#[test]
fn a_volume_becomes_real_beside_its_guest_whatever_is_ordered_meanwhile_and_whoever_dies() {
    let place = place();
    let mut guests = [("ci", golden_bytes()), ("golden", golden_bytes())];
    let (daemon, mut qmp) = serve(&place, &["ci", "golden"]);
    assert_eq!(state(&mut qmp, "ci"), "virtual");

    // Pause, resume, cancel.
    let id = beside_guests(&place, &mut guests, || {
        let id = hydrate(&mut qmp, json!({"speed": 4 * MIB}));
        assert_eq!(state(&mut qmp, "ci"), "hydrating");
        wait_until("progress", || progress(&mut qmp) > 0);
        qmp.order("job-pause", json!({"id": id}));
        let at = progress(&mut qmp);
        thread::sleep(Duration::from_millis(500));
        assert_eq!((progress(&mut qmp), &jobs(&mut qmp)[0]["status"]), (at, &json!("paused")));
        qmp.order("job-resume", json!({"id": id}));
        wait_until("more progress", || progress(&mut qmp) > at);
        qmp.order("job-cancel", json!({"id": id}));
        assert_eq!(states(&mut qmp, &id, "null").last().unwrap(), "null");
        assert_eq!((jobs(&mut qmp), state(&mut qmp, "ci").as_str()), (vec![], "virtual"));

        let id = hydrate(&mut qmp, json!({"speed": 4 * MIB}));
        wait_until("progress", || progress(&mut qmp) > 0);
        qmp.order("x-pitstop-job-set-speed", json!({"id": id, "speed": 2 * MIB}));
        id
    });

    // A daemon is killed in the middle: what was told is remembered.
    daemon.signal("KILL");
    daemon.end();
    let (daemon, mut qmp) = serve(&place, &["ci", "golden"]);
    beside_guests(&place, &mut guests, || {
        let job = &jobs(&mut qmp)[0];
        assert_eq!((&job["id"], &job["x-pitstop-speed"]), (&json!(id), &json!(2 * MIB)));
        assert_eq!(job["status"], "running");
        qmp.order("job-pause", json!({"id": id}));
    });

    // One that was paused stays so, also over an orderly end.
    assert_eq!(daemon.terminate().code(), Some(0));
    let (daemon, mut qmp) = serve(&place, &["ci", "golden"]);
    beside_guests(&place, &mut guests, || {
        assert_eq!((&jobs(&mut qmp)[0]["id"], &jobs(&mut qmp)[0]["status"]), (&json!(id), &json!("paused")));
        let before = progress(&mut qmp);
        thread::sleep(Duration::from_millis(300));
        assert_eq!(progress(&mut qmp), before);
        qmp.order("x-pitstop-job-set-speed", json!({"id": id, "speed": 0}));
        qmp.order("job-resume", json!({"id": id}));
        let ended = states(&mut qmp, &id, "null");
        assert_eq!(ended[ended.len() - 5..], ["running", "waiting", "pending", "concluded", "null"]);
        assert_eq!(state(&mut qmp, "ci"), "real");
        assert_eq!(jobs(&mut qmp), Vec::<Value>::new());
    });

    // Its source can go.
    qmp.order("block-export-del", json!({"id": "golden", "mode": "hard"}));
    qmp.order("x-pitstop-volume-delete", json!({"name": "golden"}));
    let [mut ci, _] = guests;
    beside_guests(&place, std::slice::from_mut(&mut ci), || thread::sleep(Duration::from_millis(300)));
    assert_eq!(state(&mut qmp, "ci"), "real");
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(place.read_volume("ci") == ci.1, "the volume differs from what was written");
    assert_clean(&place);
}

/// rule: JOB-6, JOB-9
#[test]
fn a_limit_holds_and_the_end_of_the_daemon_waits_for_no_job() {
    let place = place();
    let (daemon, mut qmp) = serve(&place, &["ci"]);
    let began = Instant::now();
    let id = hydrate(&mut qmp, json!({"speed": 4 * MIB}));
    thread::sleep(Duration::from_millis(1500));
    let (at, since) = (progress(&mut qmp), began.elapsed());
    let most = (since.as_secs_f64() * 4.0 * MIB as f64) as u64 + MIB;
    assert!(at > MIB && at < most, "{at} bytes in {since:?}");
    let rate = jobs(&mut qmp)[0]["x-pitstop-rate"].as_u64().unwrap();
    assert!((2 * MIB..6 * MIB).contains(&rate), "{rate} bytes a second");
    // At a byte a second the next step is hours away.
    qmp.order("x-pitstop-job-set-speed", json!({"id": id, "speed": 1}));
    let began = Instant::now();
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(3), "the end took {:?}", began.elapsed());
    assert_clean(&place);
}

/// rule: JOB-7
#[test]
fn a_job_ends_with_its_volume() {
    let place = place();
    let (daemon, mut qmp) = serve(&place, &[]);
    for paused in [false, true] {
        let id = hydrate(&mut qmp, json!({"speed": 1, "auto-dismiss": false}));
        if paused {
            qmp.order("job-pause", json!({"id": id}));
        }
        qmp.order("x-pitstop-refresh", json!({"name": "ci", "source": "golden"}));
        let job = &jobs(&mut qmp)[0];
        assert_eq!((&job["id"], &job["status"]), (&json!(id), &json!("concluded")));
        assert!(job["error"].as_str().unwrap().contains("refreshed"), "{job}");
        qmp.order("job-dismiss", json!({"id": id}));
    }
    let id = hydrate(&mut qmp, json!({}));
    qmp.order("x-pitstop-volume-delete", json!({"name": "ci"}));
    assert_eq!(jobs(&mut qmp), Vec::<Value>::new());
    assert_eq!(states(&mut qmp, &id, "null").last().unwrap(), "null");
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_clean(&place);
}

/// rule: JOB-4
#[test]
fn a_job_that_cannot_read_pauses_and_goes_on_when_it_is_resumed() {
    let place = place();
    let file_system = FaultyFs::mount(&place.path("mounted"), &place.container(), Grain::Sector);
    let control = place.path("control");
    let arguments = [text(&file_system.file()).to_owned(), "--control".to_owned(), text(&control).to_owned()];
    let daemon = Daemon::start(&arguments);
    let mut qmp = connect(&control);
    let id = hydrate(&mut qmp, json!({"speed": 2 * MIB}));
    wait_until("progress", || progress(&mut qmp) > 0);
    file_system.fail(&[Fault::every(Op::Read, libc::EIO)]);
    assert_eq!(states(&mut qmp, &id, "paused").last().unwrap(), "paused");
    let job = &jobs(&mut qmp)[0];
    assert!(job["error"].as_str().unwrap().contains("Input/output error"), "{job}");
    file_system.fail(&[]);
    qmp.order("x-pitstop-job-set-speed", json!({"id": id, "speed": 0}));
    qmp.order("job-resume", json!({"id": id}));
    assert_eq!(states(&mut qmp, &id, "null").last().unwrap(), "null");
    assert_eq!(state(&mut qmp, "ci"), "real");
    assert_eq!(daemon.terminate().code(), Some(0));
    drop(file_system);
    assert!(place.read_volume("ci") == golden_bytes(), "the volume differs from its source");
    assert_clean(&place);
}

/// rule: JOB-12
#[test]
fn a_job_that_lacks_space_waits_for_it() {
    let place = place();
    place.change(|container| drop(container.create_volume("filler", 1 << 30).unwrap()));
    let file_system = FaultyFs::mount(&place.path("mounted"), &place.container(), Grain::Sector);
    file_system.set_capacity(file_system.file_len());
    let (control, socket) = (place.path("control"), place.path("filler"));
    let mut arguments = vec![text(&file_system.file()).to_owned(), "--control".to_owned(), text(&control).to_owned()];
    arguments.extend(["--export".to_owned(), format!("volume=filler,socket={}", text(&socket))]);
    let daemon = Daemon::start(&arguments);
    let mut qmp = connect(&control);
    let mut client = Client::connect(&socket, Style::PLAIN);
    let is_full = (0..4096).any(|chunk| client.request(T_OUT, chunk * 512, &mut [1; 4096]).status != 0);
    assert!(is_full, "the container is not full");
    let id = hydrate(&mut qmp, json!({}));
    wait_until("a job that waits", || jobs(&mut qmp)[0]["x-pitstop-waits-for-space"] == true);
    assert_eq!(jobs(&mut qmp)[0]["status"], "running");
    file_system.set_capacity(u64::MAX);
    assert_eq!(states(&mut qmp, &id, "null").last().unwrap(), "null");
    assert_eq!(state(&mut qmp, "ci"), "real");
    drop(client);
    assert_eq!(daemon.terminate().code(), Some(0));
    drop(file_system);
    assert!(place.read_volume("ci") == golden_bytes(), "the volume differs from its source");
    assert_clean(&place);
}

/// Refreshes `target` from `source` and makes it real; returns what was copied and what adopted.
fn copy_again(qmp: &mut Qmp, target: &str, source: &str) -> (u64, u64) {
    qmp.order("x-pitstop-refresh", json!({"name": target, "source": source, "force": true}));
    qmp.order("x-pitstop-volume-hydrate", json!({"name": target}));
    wait_until("the copy is real", || state(qmp, target) == "real");
    let volumes = qmp.order("x-pitstop-query-volumes", json!({"name": target}));
    let moved = &volumes[0]["relation"]["moved"];
    (moved["copied-bytes"].as_u64().unwrap(), moved["adopted-bytes"].as_u64().unwrap())
}

/// R14, R16; REL-2, REL-5, REL-7
#[test]
fn a_pair_is_copied_there_and_back_and_only_what_guests_wrote_moves() {
    let place = place();
    let (daemon, mut qmp) = serve(&place, &["golden", "ci"]);
    assert_eq!(copy_again(&mut qmp, "ci", "golden"), (VOLUME_LEN, 0));
    let mut golden = golden_bytes();
    for round in 0..4u8 {
        let (target, source) = if round % 2 == 0 { ("ci", "golden") } else { ("golden", "ci") };
        // A guest of the source changes one block; one of the target much, which is given up.
        let at = u64::from(round) * MIB + 4096;
        golden[at as usize..at as usize + 4096].fill(round);
        let mut client = Client::connect(&place.path(source), Style::PLAIN);
        client.write(at, &[round; 4096]);
        drop(client);
        let mut client = Client::connect(&place.path(target), Style::PLAIN);
        client.write(2 * MIB, &vec![0xee; MIB as usize]);
        drop(client);
        let idle = |qmp: &mut Qmp| qmp.order("query-jobs", json!({})).as_array().unwrap().is_empty();
        wait_until("merges have ended", || idle(&mut qmp));
        let (copied, adopted) = copy_again(&mut qmp, target, source);
        assert_eq!((copied, adopted), (4096, VOLUME_LEN - 4096), "round {round}");
        let mut client = Client::connect(&place.path(target), Style::PLAIN);
        for (at, expected) in (0..VOLUME_LEN).step_by(64 << 10).zip(golden.chunks(64 << 10)) {
            assert!(client.read(at, expected.len()) == expected, "round {round}, {at:#x}");
        }
    }
    assert!(daemon.terminate().success());
    for name in ["golden", "ci"] {
        assert!(place.read_volume(name) == golden, "{name}");
    }
    assert_clean(&place);
}
