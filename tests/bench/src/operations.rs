//! What snapshot and refresh take and cost a writing guest, beside qcow2's; structural checks; an idle daemon.
//!
//! A volume of 100 GiB with 20 GiB written in random places, and one of 1 GiB with 16 MiB: 256 KiB in each place, written
//! in pieces of 64 KiB that come in random order, each a cluster of qcow2. The guest writes 4 KiB blocks at random within
//! 64 MiB, 8 at a time, while in turns of about a second nothing else happens, or copies are made through the control
//! socket, ten a second at most. Does not: measure copies of idle volumes, which cost less.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Result;
use crate::device::{self, Device, Target};
use crate::load::{Measured, cpu_seconds};
use crate::place::{Place, Results};
use crate::qmp::Qmp;
use crate::rows::{Row, Runs};
use crate::serve::{Contents, Effort, Server, Threads, execute, pitstop, qemu_img_create, remove};
use crate::trace;

const GROUP: &str = "operations";
const GIB: u64 = 1 << 30;
/// What is written in one place, so that it takes the same space of every backend; and in one request.
const PLACE_LEN: u64 = 256 << 10;
const PIECE_LEN: u64 = 64 << 10;
/// One operation may begin in each of these.
const PACE: Duration = Duration::from_millis(100);
/// Operations begin for so long in a turn.
const TURN: Duration = Duration::from_millis(900);
/// Connected volumes of an idle daemon, and how long it is watched.
const IDLE: (usize, Duration) = (100, Duration::from_secs(10));

/// A size of volume.
#[derive(Debug, Clone, Copy)]
struct Size {
    name: &'static str,
    len: u64,
    written: u64,
}

/// Measures.
pub(crate) fn run(place: &Place, effort: Effort, results: &mut Results) -> Result<()> {
    let large = Size { name: "100g", len: 100 * GIB, written: effort.pick(20 * GIB, GIB) };
    let small = Size { name: "1g", len: GIB, written: 16 << 20 };
    let (turns, checks) = effort.pick((5, 3), (1, 1));
    for size in [small, large] {
        let images = Images::new(place, size);
        images.build(place)?;
        for repetition in 0..checks {
            images.check(place, repetition, results)?;
        }
        images.copies(place, turns, results)?;
        images.clones(place, turns, results)?;
        images.remove()?;
    }
    idle(place, effort, results)
}

/// The same volume for both backends.
struct Images {
    size: Size,
    container: PathBuf,
    qcow2: PathBuf,
    clone: PathBuf,
}

/// What happens in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    Snapshot,
    Refresh,
    Internal,
    External,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Nothing => "nothing",
            Kind::Snapshot => "snapshot",
            Kind::Refresh => "refresh",
            Kind::Internal => "snapshot-internal",
            Kind::External => "snapshot-external",
        }
    }

    /// Operations in a turn at most: external snapshots stay, each a file that later requests go through.
    fn most(self) -> usize {
        match self {
            Kind::Nothing => 0,
            Kind::Snapshot | Kind::Refresh | Kind::Internal => 10,
            Kind::External => 2,
        }
    }
}

/// A backend whose guest writes, and how often its volume was copied.
struct Subject {
    name: &'static str,
    server: Server,
    qmp: Qmp,
    folder: PathBuf,
    count: usize,
    /// The node that is exported, where that changes.
    node: String,
}

impl Images {
    fn new(place: &Place, size: Size) -> Self {
        let file = |end: &str| place.file(&format!("operations-{}{end}", size.name));
        Self { size, container: file(".pit"), qcow2: file(".qcow2"), clone: file("-clone.qcow2") }
    }

    fn build(&self, place: &Place) -> Result<()> {
        remove(&self.container)?;
        let size = self.size.len.to_string();
        pitstop(place, &["create"], &self.container, &[])?;
        pitstop(place, &["volume", "create"], &self.container, &["golden", "--size", &size])?;
        pitstop(place, &["volume", "create"], &self.container, &["ci", "--size", &size])?;
        let served = Server::pitstopd(place, &self.container, &["golden".to_owned()])?;
        self.fill(served)?;
        qemu_img_create(&self.qcow2, "cluster_size=64k", Contents::Zeros { size_bytes: self.size.len })?;
        self.fill(Server::storage_daemon(place, std::slice::from_ref(&self.qcow2), Threads::Main)?)
    }

    fn fill(&self, server: Server) -> Result<()> {
        let steps = trace::places(self.size.written / PLACE_LEN, PLACE_LEN, PIECE_LEN, self.size.len);
        trace::play(&server.sockets[0], &steps, 16)?;
        server.end()
    }

    fn remove(&self) -> Result<()> {
        for file in [&self.container, &self.qcow2, &self.clone] {
            remove(file)?;
        }
        Ok(())
    }

    /// Both structural checks of closed files, from storage.
    fn check(&self, place: &Place, repetition: usize, results: &mut Results) -> Result<()> {
        let work = format!("check-{}", self.size.name);
        drop_caches()?;
        let took = pitstop(place, &["check"], &self.container, &[])?;
        results.add(record(&work, "pitstop", repetition, &json!({ "milliseconds": took })))?;
        drop_caches()?;
        let took = execute(Command::new("qemu-img").args(["check", "-q"]).arg(&self.qcow2))?;
        results.add(record(&work, "qcow2", repetition, &json!({ "milliseconds": took })))
    }

    /// Turns of all kinds, one of each kind after the other.
    fn copies(&self, place: &Place, turns: usize, results: &mut Results) -> Result<()> {
        let served = Server::pitstopd(place, &self.container, &["golden".to_owned()])?;
        let mut ours = Subject::new("pitstop", served, place)?;
        let mut theirs = Subject::new(
            "qcow2",
            Server::storage_daemon(place, std::slice::from_ref(&self.qcow2), Threads::Main)?,
            place,
        )?;
        for turn in 0..turns {
            for kind in [Kind::Nothing, Kind::Snapshot, Kind::Refresh] {
                self.turn(place, &mut ours, kind, turn, results)?;
            }
            for kind in [Kind::Nothing, Kind::Internal] {
                self.turn(place, &mut theirs, kind, turn, results)?;
            }
        }
        // Last: these leave files behind, which slow down what follows.
        for turn in 0..turns {
            self.turn(place, &mut theirs, Kind::External, turn, results)?;
        }
        let files = theirs.count;
        ours.server.end()?;
        theirs.server.end()?;
        (0..=files).try_for_each(|n| remove(&overlay(&place.folder, n)))
    }

    fn turn(&self, place: &Place, on: &mut Subject, kind: Kind, turn: usize, results: &mut Results) -> Result<()> {
        let (took, measured) = on.turn(place, kind)?;
        let values = json!({
            "milliseconds": took,
            "longest_request_ms": measured.latency_us.max / 1e3,
            "iops": measured.iops,
        });
        results.add(record(&format!("{}-{}", kind.name(), self.size.name), on.name, turn, &values))
    }

    /// Copies that programs make of a volume whose guest is off: `pitstop` has the daemon do it. Then qcow2's snapshot
    /// by `qemu-img`, once.
    fn clones(&self, place: &Place, turns: usize, results: &mut Results) -> Result<()> {
        let work = format!("clone-{}", self.size.name);
        let served = Server::pitstopd(place, &self.container, &["golden".to_owned()])?;
        for turn in 0..turns {
            let name = format!("clone-{turn}");
            let took = pitstop(place, &["snapshot"], &self.container, &["golden", &name])?;
            results.add(record(&work, "pitstop", turn, &json!({ "milliseconds": took })))?;
            let base = Contents::Of { base: &self.qcow2, format: "qcow2" };
            let took = qemu_img_create(&self.clone, "cluster_size=64k", base)?;
            results.add(record(&work, "qcow2", turn, &json!({ "milliseconds": took })))?;
        }
        served.end()?;
        let took = execute(Command::new("qemu-img").args(["snapshot", "-c", "offline"]).arg(&self.qcow2))?;
        let work = format!("snapshot-offline-{}", self.size.name);
        results.add(record(&work, "qcow2", 0, &json!({ "milliseconds": took })))
    }
}

impl Subject {
    fn new(name: &'static str, server: Server, place: &Place) -> Result<Self> {
        let (qmp, folder) = (server.qmp()?, place.folder.clone());
        Ok(Self { name, server, qmp, folder, count: 0, node: "disk-0".to_owned() })
    }

    /// A turn with a writing guest: the milliseconds of each operation, and what the guest saw.
    fn turn(&mut self, place: &Place, kind: Kind) -> Result<(Vec<f64>, Measured)> {
        let options =
            ["--read-percent", "0", "--depth", "8", "--range", "67108864", "--ramp", "0.2", "--seconds", "1.2"];
        let load = place.start_load(&self.server.sockets[0], None, &options)?;
        // Until the guest's time is measured.
        std::thread::sleep(Duration::from_millis(400));
        let begin = Instant::now();
        let (mut took, first) = (Vec::new(), self.count);
        while took.len() < kind.most() && begin.elapsed() < TURN {
            took.push(self.operate(kind)?);
            let next = PACE * took.len() as u32;
            std::thread::sleep(next.saturating_sub(begin.elapsed()));
        }
        let measured = load.wait()?;
        for n in first + 1..=self.count {
            match kind {
                Kind::Snapshot => self.qmp.execute("x-pitstop-volume-delete", json!({ "name": format!("copy-{n}") })),
                Kind::Internal => self.qmp.execute(
                    "blockdev-snapshot-delete-internal-sync",
                    json!({ "device": self.node, "name": format!("copy-{n}") }),
                ),
                Kind::Nothing | Kind::Refresh | Kind::External => Ok(Value::Null),
            }?;
        }
        Ok((took, measured))
    }

    /// One operation; its milliseconds.
    fn operate(&mut self, kind: Kind) -> Result<f64> {
        self.count += 1;
        let name = format!("copy-{}", self.count);
        match kind {
            Kind::Nothing => Ok(0.0),
            Kind::Snapshot => self.qmp.time("x-pitstop-snapshot", json!({ "source": "golden", "name": name })),
            Kind::Refresh => self.qmp.time("x-pitstop-refresh", json!({ "name": "ci", "source": "golden" })),
            Kind::Internal => {
                self.qmp.time("blockdev-snapshot-internal-sync", json!({ "device": self.node, "name": name }))
            }
            Kind::External => {
                let file = overlay(&self.folder, self.count);
                remove(&file)?;
                let arguments = json!({ "node-name": self.node, "snapshot-file": file, "snapshot-node-name": name });
                let took = self.qmp.time("blockdev-snapshot-sync", arguments)?;
                self.node = name;
                Ok(took)
            }
        }
    }
}

fn overlay(folder: &Path, n: usize) -> PathBuf {
    folder.join(format!("operations-external-{n}.qcow2"))
}

/// Processor time of a daemon with connected volumes whose guests do nothing.
fn idle(place: &Place, effort: Effort, results: &mut Results) -> Result<()> {
    let container = place.file("idle.pit");
    remove(&container)?;
    pitstop(place, &["create"], &container, &[])?;
    let (count, time) = (IDLE.0, effort.pick(IDLE.1, Duration::from_secs(2)));
    let volumes: Vec<String> = (0..count).map(|n| format!("ci-{n}")).collect();
    let server = Server::pitstopd(place, &container, &[])?;
    let mut qmp = server.qmp()?;
    for volume in &volumes {
        qmp.execute("x-pitstop-volume-create", json!({ "name": volume, "size": GIB }))?;
    }
    drop(qmp);
    server.end()?;
    let server = Server::pitstopd(place, &container, &volumes)?;
    let mut guests = Vec::new();
    for socket in &server.sockets {
        let mut guest = Device::connect(socket, 1, 128, 1, 4096)?;
        guest.send(0, 0, device::Kind::Read, 0, 4096)?;
        guest.kick_if_wanted(0)?;
        guest.sleep()?;
        guests.push(guest);
    }
    // What follows from connecting is over.
    std::thread::sleep(Duration::from_secs(2));
    let (pid, begin) = (Some(server.pid().cast_signed()), Instant::now());
    let before = cpu_seconds(pid)?;
    std::thread::sleep(time);
    let share = (cpu_seconds(pid)? - before) / begin.elapsed().as_secs_f64();
    drop(guests);
    server.end()?;
    remove(&container)?;
    results.add(record(&format!("idle-{count}"), "pitstop", 0, &json!({ "core_percent": share * 100.0 })))
}

/// Has the next reader of any file read it from storage.
fn drop_caches() -> Result<()> {
    // SAFETY: takes nothing, returns nothing.
    unsafe { libc::sync() };
    std::fs::write("/proc/sys/vm/drop_caches", "3")
        .map_err(|error| format!("cannot drop the page cache: {error}; run this as root").into())
}

fn record(work: &str, backend: &str, repetition: usize, values: &Value) -> Value {
    crate::rows::record(GROUP, work, backend, repetition, values)
}

/// What the report says of these records.
pub(crate) fn rows(records: &[Value]) -> Vec<Row> {
    let runs = |work: String, backend| Runs::of(records, GROUP, &work, backend);
    let mut rows = Vec::new();
    let mut add = |row: Option<Row>| rows.extend(row);
    for size in ["1g", "100g"] {
        let quiet = |backend| runs(format!("nothing-{size}"), backend).median("longest_request_ms");
        let copies = [("snapshot", "pitstop"), ("refresh", "pitstop"), ("snapshot-internal", "qcow2")];
        for (kind, backend) in copies.into_iter().chain([("snapshot-external", "qcow2")]) {
            let these = runs(format!("{kind}-{size}"), backend);
            let named = |what| format!("{kind} of {size}, {what}");
            add(these.median("milliseconds").map(|value| {
                let row = Row::new(&named("median"), backend, value, "ms");
                if backend == "pitstop" { row.aim("<= 5 ms", value <= 5.0) } else { row }
            }));
            add(these.max("milliseconds").map(|value| Row::new(&named("longest"), backend, value, "ms")));
            add(these.median("longest_request_ms").map(|value| {
                Row::new(&named("guest's longest request, beside that without"), backend, value, "ms")
                    .against(quiet(backend))
            }));
        }
        for backend in ["pitstop", "qcow2"] {
            let value = runs(format!("clone-{size}"), backend).median("milliseconds");
            add(value.map(|value| Row::new(&format!("clone of {size} by a program"), backend, value, "ms")));
        }
        let offline = runs(format!("snapshot-offline-{size}"), "qcow2").median("milliseconds");
        add(offline.map(|value| Row::new(&format!("snapshot of {size} by qemu-img"), "qcow2", value, "ms")));
        let check = |backend| runs(format!("check-{size}"), backend).median("milliseconds");
        add(check("qcow2").map(|value| Row::new(&format!("check of {size}"), "qcow2", value, "ms")));
        add(check("pitstop").map(|value| {
            let row = Row::new(&format!("check of {size}"), "pitstop", value, "ms").against(check("qcow2"));
            let met = row.ratio.is_some_and(|ratio| ratio <= 0.1);
            if size == "100g" { row.aim("<= 0.1", met) } else { row }
        }));
    }
    let idle = runs(format!("idle-{}", IDLE.0), "pitstop").median("core_percent");
    add(idle.map(|value| {
        Row::new("idle, 100 connected volumes", "pitstop", value, "% of a core").aim("< 0.5 %", value < 0.5)
    }));
    rows
}
