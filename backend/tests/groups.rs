//! Copies at one instant, through the daemon: guests write numbered records, one after the other, on several volumes and
//! queues; no copy or group ever has a record without all those before it.
//!
//! "A test proves that no write order across volumes and queues is ever inverted."
//! req: R2, R14. Rules: SNP-1, SNP-20 to SNP-22, CTL-56.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use common::client::{Client, DATA_START, DriverQueue, Style, T_OUT};
use common::{Daemon, Place, Qmp, text, wait_until};
use serde_json::json;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SECTOR: u64 = 512;
/// Places of a series in each volume, a sector each, written again and again in turn.
const SLOTS: u64 = 16;
/// Distance of two series in a volume.
const STRIDE: u64 = 256 << 10;
const SERIES: u64 = 2;
/// Queues that a series uses in each volume.
const QUEUES: u64 = 2;

/// Record `k` of a series goes to volume `k % volumes`, queue and slot by turns, when record `k - 1` has completed.
struct Series {
    number: u64,
    queues: Vec<Vec<DriverQueue>>,
    mems: Vec<GuestMemoryMmap>,
    next: u64,
}

impl Series {
    fn write(&mut self) -> u64 {
        let k = self.next;
        let (volume, turn) = (k % self.queues.len() as u64, k / self.queues.len() as u64);
        let addr = DATA_START + self.number * 4096;
        let record = k.to_le_bytes().repeat(SECTOR as usize / 8);
        self.mems[volume as usize].write_slice(&record, GuestAddress(addr)).unwrap();
        let queue = &mut self.queues[volume as usize][(turn % QUEUES) as usize];
        queue.submit(T_OUT, place(self.number, turn % SLOTS) / SECTOR, &[(addr, SECTOR as u32)]);
        assert_eq!(queue.wait_one().status, 0);
        self.next += 1;
        k
    }
}

fn place(series: u64, slot: u64) -> u64 {
    series * STRIDE + slot * SECTOR
}

/// The records of a series that each volume shows: all up to one of them, and no later one; which that is.
fn instant(series: u64, volumes: &mut [Client]) -> u64 {
    let shown: Vec<Vec<u64>> = volumes
        .iter_mut()
        .map(|volume| {
            let bytes = volume.read(place(series, 0), (SLOTS * SECTOR) as usize);
            let sectors = bytes.chunks(SECTOR as usize);
            let number = |sector: &[u8]| {
                assert!(sector.chunks(8).all(|word| word == &sector[..8]), "torn record");
                u64::from_le_bytes(sector[..8].try_into().unwrap())
            };
            sectors.map(number).collect()
        })
        .collect();
    let last = *shown.iter().flatten().max().unwrap();
    let (count, turns) = (volumes.len() as u64, volumes.len() as u64 * SLOTS);
    for (volume, slots) in (0..).zip(&shown) {
        for (slot, &found) in (0..).zip(slots) {
            let is_its = |k: &u64| (k % count, k / count % SLOTS) == (volume, slot);
            let newest = (0..turns).filter_map(|back| last.checked_sub(back)).filter(|k| *k > 0).find(is_its);
            assert_eq!(found, newest.unwrap_or(0), "record {last} is there, volume {volume} slot {slot}: {shown:?}");
        }
    }
    last
}

/// A daemon whose volumes are written by guests, until this is dropped.
struct Scene {
    place: Place,
    daemon: Option<Daemon>,
    control: Qmp,
    sources: Vec<String>,
}

impl Scene {
    fn new(volumes: usize) -> Self {
        let sources: Vec<String> = (0..volumes).map(|n| format!("v{n}")).collect();
        let names: Vec<&str> = sources.iter().map(String::as_str).collect();
        let place = Place::with_volumes(&names);
        let control = place.path("control");
        let daemon = Some(place.serve(&names, &["--control", text(&control)]));
        wait_until("control socket", || common::is_listened_on(&control));
        let control = Qmp::connect(&control);
        Self { place, daemon, control, sources }
    }

    /// Guests of all volumes, and the series that they write: each has queues of its own in every volume.
    fn guests(&self) -> (Vec<Client>, Vec<Series>) {
        let style = Style { queues: (SERIES * QUEUES) as usize, ..Style::PLAIN };
        let mut clients: Vec<_> =
            self.sources.iter().map(|name| Client::connect(&self.place.path(name), style)).collect();
        let mems: Vec<_> = clients.iter().map(|client| client.mem.clone()).collect();
        let mut series: Vec<_> =
            (0..SERIES).map(|number| Series { number, queues: Vec::new(), mems: mems.clone(), next: 1 }).collect();
        for client in &mut clients {
            let mut queues = std::mem::take(&mut client.queues);
            for one in &mut series {
                one.queues.push(queues.drain(..QUEUES as usize).collect());
            }
        }
        (clients, series)
    }

    /// A guest of a volume that nobody has served yet, who only reads.
    fn reader(&mut self, name: &str) -> Client {
        let socket = self.place.path(name);
        let address = json!({"type": "unix", "path": text(&socket)});
        self.control.order(
            "block-export-add",
            json!({"type": "vhost-user-blk", "id": name, "node-name": name, "addr": address}),
        );
        Client::connect(&socket, Style::PLAIN)
    }

    fn forget(&mut self, name: &str) {
        self.control.order("block-export-del", json!({"id": name, "mode": "hard"}));
        self.control.order("x-pitstop-volume-delete", json!({"name": name}));
    }

    /// Lets guests write while `work` runs; it is told how many records of each series have completed.
    fn while_written(&mut self, work: impl FnOnce(&mut Self, &[AtomicU64])) {
        let (clients, series) = self.guests();
        let completed: Vec<_> = series.iter().map(|_| AtomicU64::new(0)).collect();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for (mut one, completed) in series.into_iter().zip(&completed) {
                let stop = &stop;
                scope.spawn(move || {
                    let _stop = Stop(stop);
                    while !stop.load(Ordering::Relaxed) {
                        completed.store(one.write(), Ordering::Release);
                    }
                });
            }
            let stopping = Stop(&stop);
            wait_until("the first records", || completed.iter().all(|count| count.load(Ordering::Acquire) > 0));
            work(self, &completed);
            assert!(!stop.load(Ordering::Relaxed), "a guest has failed");
            drop(stopping);
        });
        drop(clients);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let (Some(daemon), false) = (self.daemon.take(), thread::panicking()) {
            assert_eq!(daemon.terminate().code(), Some(0));
        }
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn counts(completed: &[AtomicU64]) -> Vec<u64> {
    completed.iter().map(|count| count.load(Ordering::Acquire)).collect()
}

// req: R2; rule: SNP-20, SNP-21, CTL-56
#[test]
fn no_group_inverts_the_order_of_writes_across_volumes_and_queues() {
    const GROUPS: usize = 60;
    let mut scene = Scene::new(3);
    let sources = scene.sources.clone();
    let mut advanced = 0;
    scene.while_written(|scene, completed| {
        for round in 0..GROUPS {
            let names: Vec<String> = sources.iter().map(|source| format!("{source}-{round}")).collect();
            let action = |(source, name): (&String, &String)| {
                json!({"type": "x-pitstop-snapshot", "data": {"source": source, "name": name}})
            };
            let actions: Vec<_> = sources.iter().zip(&names).map(action).collect();
            let before = counts(completed);
            scene.control.order("transaction", json!({"actions": actions}));
            let mut copies: Vec<_> = names.iter().map(|name| scene.reader(name)).collect();
            for (number, before) in (0..).zip(&before) {
                let last = instant(number, &mut copies);
                assert!(last >= *before, "record {before} had completed, {last} is the last");
                advanced += usize::from(last > *before);
            }
            drop(copies);
            names.iter().for_each(|name| scene.forget(name));
        }
    });
    assert!(advanced > GROUPS / 4, "guests wrote in {advanced} of {GROUPS} groups only");
}

// req: R2, R14; rule: SNP-1, LAY-11
#[test]
fn a_refreshed_volume_keeps_its_instant_while_its_source_is_written_and_it_is_hydrated() {
    let mut scene = Scene::new(1);
    scene.control.order("x-pitstop-volume-create", json!({"name": "target", "size": common::VOLUME_LEN}));
    scene.while_written(|scene, completed| {
        for round in 0..20 {
            let before = counts(completed);
            scene.control.order("x-pitstop-refresh", json!({"name": "target", "source": "v0"}));
            let mut target = [scene.reader("target")];
            let shown: Vec<_> = (0..SERIES).map(|number| instant(number, &mut target)).collect();
            assert!(shown.iter().zip(&before).all(|(shown, before)| shown >= before), "{shown:?} {before:?}");
            if round % 2 == 0 {
                // The background copy meets writes to what it has still to copy.
                scene.control.order("x-pitstop-volume-hydrate", json!({"name": "target"}));
                let state =
                    |qmp: &mut Qmp| qmp.order("x-pitstop-query-volumes", json!({"name": "target"}))[0]["state"].clone();
                wait_until("a real volume", || state(&mut scene.control) == "real");
            } else {
                let now = counts(completed);
                wait_until("later writes", || {
                    counts(completed).iter().zip(&now).all(|(later, now)| later > &(now + 50))
                });
            }
            let again: Vec<_> = (0..SERIES).map(|number| instant(number, &mut target)).collect();
            assert_eq!(shown, again, "the copy has changed");
            drop(target);
            scene.control.order("block-export-del", json!({"id": "target", "mode": "hard"}));
        }
    });
}
