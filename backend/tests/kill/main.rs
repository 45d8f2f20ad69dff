//! `pitstopd` is killed again and again in the middle of guests' I/O and of storms of commands; nothing promised is lost.
//!
//! What this shows: whatever instant the process dies at, the next one finds every flushed write, every copy whose
//! command was answered, each other command wholly or not at all, and a structure without fault; and neither sockets, nor
//! the lock file, nor I/O of the dead process stand in its way. What it cannot show: the loss of power, for the page
//! cache outlives a process. That is the simulated disk's (`format/tests/model.rs`).
//!
//! `PITSTOP_KILLS` sets how often (`make kill-soak`), `PITSTOP_KILL_SEED` another seed; timing is random all the same.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

#[path = "../common/mod.rs"]
mod common;
mod guest;
mod model;
mod storm;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::client::{Client, F_CONFIG_WCE, F_FLUSH, Style};
use common::faulty::{FaultyFs, Grain};
use common::{Daemon, PATIENCE, Place, Qmp, Random, text};
use guest::Worker;
use model::{Busy, SECTOR_LEN, Stripe, stamps};
use pitstop_format::check::repair::{self, Scope};
use pitstop_format::check::{Outcome, check};
use pitstop_format::{Container, CreateOptions, Disk, FileDisk, OpenMode, VolumeIo};
use serde_json::json;
use storm::Storm;

const QUEUES: usize = 2;
/// Sectors of a queue's stripe.
const STRIPE: usize = (3 << 20) / SECTOR_LEN;
/// Sectors of a volume that are used.
const USED: usize = QUEUES * STRIPE;

/// How a guest wants its writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cache {
    /// It flushes.
    WriteBack,
    /// It knows no flush: every completed write is durable.
    NoFlush,
    /// It has switched the write cache off.
    SwitchedOff,
}

const GUESTS: [(&str, Cache); 4] =
    [("a", Cache::WriteBack), ("b", Cache::WriteBack), ("c", Cache::NoFlush), ("d", Cache::SwitchedOff)];

struct Scene {
    /// Before `place`: unmounted before its folder goes.
    file_system: Option<FaultyFs>,
    place: Place,
    guests: Vec<Busy>,
    storms: Vec<Storm>,
    random: Random,
    requests: usize,
    commands: usize,
    kills: usize,
}

impl Scene {
    fn new(grain: Grain) -> Self {
        // A small journal, so that checkpoints come often.
        let options = CreateOptions { journal_len_bytes: 4 << 20, ..CreateOptions::default() };
        let place = Place::with_options(&GUESTS.map(|(name, _)| name), &options);
        let file_system =
            (grain == Grain::Page).then(|| FaultyFs::mount(&place.path("mounted"), &place.container(), grain));
        let busy = |(number, (name, cache)): (u64, (&'static str, Cache))| {
            let stripe = |_| Mutex::new(Stripe::new(number, STRIPE, cache != Cache::WriteBack));
            Busy { name, stripes: (0..QUEUES).map(stripe).collect() }
        };
        let seed = std::env::var("PITSTOP_KILL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
        Scene {
            file_system,
            place,
            guests: (1..).zip(GUESTS).map(busy).collect(),
            storms: vec![Storm::new('p', USED), Storm::new('q', USED)],
            random: Random(0x5851_f42d_4c95_7f2d ^ seed),
            requests: 0,
            commands: 0,
            kills: 0,
        }
    }

    fn container(&self) -> PathBuf {
        self.file_system.as_ref().map_or_else(|| self.place.container(), FaultyFs::file)
    }

    fn spawn(&self) -> Daemon {
        let mut arguments = vec![text(&self.container()).to_owned()];
        arguments.extend(["--control".to_owned(), text(&self.place.path("control")).to_owned()]);
        for (name, _) in GUESTS {
            arguments.push("--export".to_owned());
            arguments.push(format!("volume={name},socket={},num-queues={QUEUES}", self.place.path(name).display()));
        }
        Daemon::start(&arguments)
    }

    /// Starts a daemon on what the last one left, perhaps after others that were killed on the way.
    fn restart(&mut self) -> (Daemon, Qmp) {
        let mut dying: Vec<Daemon> = Vec::new();
        for _ in 0..self.random.below(3) {
            let daemon = self.spawn();
            std::thread::sleep(Duration::from_micros(self.random.below(30_000)));
            daemon.signal("KILL");
            // Not waited for: the next one comes while the kernel may still be at work for this one.
            dying.push(daemon);
            self.kills += 1;
        }
        let since = Instant::now();
        let mut daemon = self.spawn();
        let mut may_be_refused = !dying.is_empty();
        for daemon in dying {
            daemon.end();
        }
        loop {
            assert!(since.elapsed() < PATIENCE, "the daemon does not start again");
            if let Some(qmp) = Qmp::try_connect(&self.place.path("control")) {
                return (daemon, qmp);
            }
            if !daemon.is_running() {
                // The one killed last may have held the lock for too long: that, and nothing else, may refuse.
                assert!(std::mem::take(&mut may_be_refused), "the daemon does not start again");
                daemon = self.spawn();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// From a start of the daemon to its death.
    fn live_and_die(&mut self) {
        let (daemon, mut qmp) = self.restart();
        self.refresh_a_guest(&mut qmp);
        let mut clients: Vec<Client> = GUESTS.iter().map(|&(name, cache)| self.connect(name, cache)).collect();
        let mut lines = vec![qmp, Qmp::connect(&self.place.path("control"))];
        let mut checking = Qmp::connect(&self.place.path("control"));
        let dead = AtomicBool::new(false);
        let time = Duration::from_micros(20_000 + self.random.below(380_000));
        let mut seeds: Vec<Random> = (0..16).map(|_| Random(self.random.next() | 1)).collect();
        let guests = &self.guests;
        let (requests, commands) = std::thread::scope(|scope| {
            let mut workers = Vec::new();
            for (client, volume) in clients.iter_mut().zip(guests) {
                let Client { queues, mem, .. } = client;
                for (index, queue) in queues.iter_mut().enumerate() {
                    let random = seeds.pop().unwrap();
                    let worker = Worker { queue, mem, volume, index, random, dead: &dead };
                    workers.push(scope.spawn(move || worker.run()));
                }
            }
            let mut storms = Vec::new();
            for (storm, qmp) in self.storms.iter_mut().zip(&mut lines) {
                let (mut random, dead) = (seeds.pop().unwrap(), &dead);
                storms.push(scope.spawn(move || storm.run(qmp, guests, &mut random, dead)));
            }
            scope.spawn(|| check_until_dead(&mut checking));
            std::thread::sleep(time);
            daemon.signal("KILL");
            daemon.end();
            dead.store(true, Ordering::SeqCst);
            let sum = |threads: Vec<std::thread::ScopedJoinHandle<'_, usize>>| {
                threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
            };
            (sum(workers), sum(storms))
        });
        self.requests += requests;
        self.commands += commands;
        self.kills += 1;
    }

    fn connect(&self, name: &str, cache: Cache) -> Client {
        let refuses = if cache == Cache::NoFlush { F_FLUSH | F_CONFIG_WCE } else { 0 };
        let mut client = Client::connect(&self.place.path(name), Style { queues: QUEUES, refuses, ..Style::PLAIN });
        if cache == Cache::SwitchedOff {
            client.set_write_cache(false).unwrap();
        }
        client
    }

    /// Sometimes a guest's volume is refreshed before its guest comes.
    fn refresh_a_guest(&mut self, qmp: &mut Qmp) {
        let guest = self.random.below(2 * GUESTS.len() as u64) as usize;
        let (Some(volume), Some((source, content))) = (self.guests.get(guest), self.storms[0].any()) else { return };
        qmp.order("x-pitstop-refresh", json!({"name": volume.name, "source": source}));
        for (index, part) in content.stamps().chunks(STRIPE).enumerate() {
            volume.stripe(index).begin_anew(part);
        }
    }

    /// Repairs what the dead daemon left, where nothing is damaged: nothing may come of it (CHK-27).
    fn repair(&self) {
        common::alone_with_container(|| {
            let disk = FileDisk::open(&self.container(), OpenMode::ReadWrite).unwrap();
            let plan = repair::plan(&*disk, Scope::All).unwrap();
            assert_eq!(plan.lost_count(), 0);
            plan.carry_out(&*disk).unwrap();
        });
    }

    /// Looks at what the dead daemon left, writing nothing.
    fn verify(&mut self) {
        let mut found = common::alone_with_container(|| {
            let disk = FileDisk::open(&self.container(), OpenMode::ReadOnly).unwrap();
            let report = check(&*disk).unwrap();
            assert_eq!(report.outcome(), Outcome::Clean, "{:?}", report.findings);
            let container = Container::open(Arc::clone(&disk) as Arc<dyn Disk>, OpenMode::ReadOnly).unwrap();
            let mut found = BTreeMap::new();
            let mut bytes = vec![0; USED * SECTOR_LEN];
            for volume in container.volumes() {
                let io = VolumeIo::new(&container, container.volume(&volume.name).unwrap());
                io.read_at(&mut bytes, 0).unwrap();
                found.insert(volume.name.clone(), stamps(&volume.name, &bytes));
            }
            found
        });
        // Storms first: copies are judged by the guests' histories.
        for storm in &mut self.storms {
            let (own, others) = found.into_iter().partition(|(name, _)| storm.owns(name));
            found = others;
            storm.survived(own, &self.guests);
        }
        for guest in &self.guests {
            let shown = found.remove(guest.name).unwrap();
            for (index, part) in shown.chunks(STRIPE).enumerate() {
                guest.stripe(index).survived(guest.name, index * STRIPE, part);
            }
        }
        assert!(found.is_empty(), "volumes that nobody made: {:?}", found.keys());
    }
}

/// Has the daemon check the container until it dies (CTL-48).
fn check_until_dead(qmp: &mut Qmp) {
    while let Some(answer) = qmp.try_ask("x-pitstop-check", json!({})) {
        match answer.get("return") {
            Some(report) => assert!(report["corruptions"] == 0 && report["leaks"] == 0, "{report}"),
            None => assert!(answer["error"]["desc"].as_str().unwrap().contains("too busy"), "{answer}"),
        }
    }
}

fn kill_again_and_again(grain: Grain, usual: usize) {
    let kills = std::env::var("PITSTOP_KILLS").map_or(usual, |kills| kills.parse().unwrap());
    let mut scene = Scene::new(grain);
    while scene.kills < kills {
        scene.live_and_die();
        if scene.random.below(4) == 0 {
            scene.repair();
        }
        scene.verify();
    }
    // And it still ends in good order.
    let (daemon, _qmp) = scene.restart();
    assert_eq!(daemon.terminate().code(), Some(0));
    scene.verify();
    let Scene { kills, requests, commands, .. } = scene;
    println!("{kills} kills, {requests} requests and {commands} commands answered");
    assert!(requests > 50 * kills && commands > kills, "too little happened to show anything");
}

// rule: JNL-3, JNL-10, JNL-13, SNP-2, SNP-6, VOL-13, CTL-44
#[test]
fn a_daemon_killed_at_any_instant_loses_nothing_promised() {
    kill_again_and_again(Grain::Sector, 50);
}

/// The same where direct I/O in sectors is not possible.
// rule: JNL-3, JNL-10, JNL-13, SNP-2, SNP-6, VOL-13, CTL-44
#[test]
fn a_daemon_killed_at_any_instant_loses_nothing_promised_through_the_page_cache() {
    kill_again_and_again(Grain::Page, 20);
}
