//! Copies of many volumes, and copying in the background: how long, how many bytes, and what guests feel of it.
//!
//! A copy made real, then made again of a golden volume that has changed a little, beside a qcow2 overlay that has the
//! same streamed into it; a golden volume deleted that a thousand others read from, and fifty volumes copied at one
//! instant, while guests write. What jobs leave to guests is [`crate::beside`]'s. Does not: compare contents, which tests do.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Result;
use crate::beside;
use crate::place::{Place, Results, RunningLoad};
use crate::qmp::Qmp;
use crate::rows::{Row, Runs};
use crate::serve::{Contents, Effort, Server, Threads, pitstop, qemu_img_create, remove};
use crate::trace;

pub(crate) const GROUP: &str = "copies";
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Longest time for a job.
const JOB_LIMIT: Duration = Duration::from_secs(120);
/// Between two looks at a job.
pub(crate) const LOOK: Duration = Duration::from_millis(5);
/// Bytes of the golden volume that is copied, and those of it that change, in pieces of so many.
const CHANGES: (u64, u64) = (64 * MIB, 64 << 10);
/// Volumes that read from one golden volume.
const DEPENDANTS: usize = 1000;
/// Volumes copied at one instant; writes a second of each guest; when it happens in a turn; its length.
const TOGETHER: usize = 50;
const RATE: &str = "200";
const TURN: Turn = Turn { ramp: "0.5", seconds: "1.5", operation: Duration::from_millis(1200) };

/// The course of a turn beside guests.
#[derive(Debug, Clone, Copy)]
struct Turn {
    ramp: &'static str,
    seconds: &'static str,
    /// From its beginning on.
    operation: Duration,
}

/// Measures.
pub(crate) fn run(place: &Place, effort: Effort, results: &mut Results) -> Result<()> {
    for repetition in 0..effort.pick(3, 1) {
        hydrations(place, effort, repetition, results)?;
        streams(place, effort, repetition, results)?;
    }
    beside::run(place, effort, results)?;
    for repetition in 0..effort.pick(3, 1) {
        deletion(place, effort, repetition, results)?;
    }
    groups(place, effort, results)
}

/// A first copy made real, and a second one of the same golden volume, of which little has changed since.
fn hydrations(place: &Place, effort: Effort, repetition: usize, results: &mut Results) -> Result<()> {
    let container = place.file("copies.pit");
    let len = effort.pick(GIB, 128 * MIB);
    create(place, &container, &["golden", "ci"], len)?;
    let server = Server::pitstopd(place, &container, &["golden".to_owned()])?;
    let mut qmp = server.qmp()?;
    for work in ["hydrate-first", "hydrate-second"] {
        prepare(&server, work, len)?;
        qmp.execute("x-pitstop-refresh", json!({ "name": "ci", "source": "golden" }))?;
        let begin = Instant::now();
        let job = qmp.execute("x-pitstop-volume-hydrate", json!({ "name": "ci", "auto-dismiss": false }))?;
        let id = job["job"]["id"].as_str().ok_or("a refreshed volume has nothing to hydrate")?.to_owned();
        let job = ended_job(&mut qmp, &id)?.ok_or("a job that waits to be dismissed has gone")?;
        let values = json!({
            "milliseconds": begin.elapsed().as_secs_f64() * 1e3,
            "copied_bytes": job["x-pitstop-copied"],
            "adopted_bytes": job["x-pitstop-adopted"],
        });
        qmp.execute("job-dismiss", json!({ "id": id }))?;
        results.add(record(work, "pitstop", repetition, &values))?;
    }
    drop(qmp);
    server.end()?;
    remove(&container)
}

/// The same with qcow2 overlays: the second one is new, as none can be refreshed.
fn streams(place: &Place, effort: Effort, repetition: usize, results: &mut Results) -> Result<()> {
    let (golden, overlay) = (place.file("copies-golden.qcow2"), place.file("copies-overlay.qcow2"));
    let len = effort.pick(GIB, 128 * MIB);
    qemu_img_create(&golden, "cluster_size=64k", Contents::Zeros { size_bytes: len })?;
    for work in ["hydrate-first", "hydrate-second"] {
        let server = Server::storage_daemon(place, std::slice::from_ref(&golden), Threads::Main)?;
        prepare(&server, work, len)?;
        server.end()?;
        let begin = Instant::now();
        qemu_img_create(&overlay, "cluster_size=64k", Contents::Of { base: &golden, format: "qcow2" })?;
        let server = Server::storage_daemon(place, std::slice::from_ref(&overlay), Threads::Main)?;
        let mut qmp = server.qmp()?;
        qmp.execute("block-stream", json!({ "job-id": "stream", "device": "disk-0", "auto-dismiss": false }))?;
        let job = ended_job(&mut qmp, "stream")?.ok_or("a stream that waits to be dismissed has gone")?;
        let values = json!({
            "milliseconds": begin.elapsed().as_secs_f64() * 1e3,
            "copied_bytes": job["current-progress"],
        });
        qmp.execute("job-dismiss", json!({ "id": "stream" }))?;
        drop(qmp);
        server.end()?;
        results.add(record(work, "qcow2", repetition, &values))?;
    }
    remove(&golden)?;
    remove(&overlay)
}

/// The golden volume goes while one of those that read from it is written.
fn deletion(place: &Place, effort: Effort, repetition: usize, results: &mut Results) -> Result<()> {
    let container = place.file("copies.pit");
    create(place, &container, &["golden"], GIB)?;
    let server = Server::pitstopd(place, &container, &["golden".to_owned()])?;
    write_all(&server, effort.pick(256 * MIB, 16 * MIB))?;
    let mut qmp = server.qmp()?;
    for n in 0..DEPENDANTS {
        qmp.execute("x-pitstop-snapshot", json!({ "source": "golden", "name": format!("ci-{n}") }))?;
    }
    drop(qmp);
    server.end()?;
    let server = Server::pitstopd(place, &container, &["ci-0".to_owned()])?;
    let mut qmp = server.qmp()?;
    for work in ["delete-nothing", "delete-golden"] {
        let loads = start(place, &server, &["--depth", "8"])?;
        let took = match work {
            "delete-golden" => Some(qmp.time("x-pitstop-volume-delete", json!({ "name": "golden" }))?),
            _ => None,
        };
        let values = json!({ "milliseconds": took, "longest_request_ms": longest(loads)? });
        results.add(record(work, "pitstop", repetition, &values))?;
    }
    drop(qmp);
    server.end()?;
    remove(&container)
}

/// All volumes of a daemon copied at one instant while each has a guest that writes.
fn groups(place: &Place, effort: Effort, results: &mut Results) -> Result<()> {
    let container = place.file("copies.pit");
    let names: Vec<String> = (0..TOGETHER).map(|n| format!("ci-{n}")).collect();
    let images: Vec<PathBuf> = (0..TOGETHER).map(|n| place.file(&format!("copies-{n}.qcow2"))).collect();
    create(place, &container, &names.iter().map(String::as_str).collect::<Vec<_>>(), GIB)?;
    for image in &images {
        qemu_img_create(image, "cluster_size=64k", Contents::Zeros { size_bytes: GIB })?;
    }
    let ours = Server::pitstopd(place, &container, &names)?;
    let theirs = Server::storage_daemon(place, &images, Threads::Main)?;
    let (mut our_qmp, mut their_qmp) = (ours.qmp()?, theirs.qmp()?);
    let mut overlays = Vec::new();
    // The first turn of each writes to places for the first time.
    for turn in 0..=effort.pick(5, 1) {
        for work in ["group-nothing", "group-snapshot"] {
            let loads = start(place, &ours, &["--rate", RATE])?;
            let took = (work == "group-snapshot").then(|| {
                let one = |name: &String| {
                    let data = json!({ "source": name, "name": format!("{name}-at-{turn}") });
                    json!({ "type": "x-pitstop-snapshot", "data": data })
                };
                our_qmp.time("transaction", json!({ "actions": names.iter().map(one).collect::<Vec<_>>() }))
            });
            let values = json!({ "milliseconds": took.transpose()?, "longest_request_ms": longest(loads)? });
            if turn > 0 {
                results.add(record(work, "pitstop", turn - 1, &values))?;
            }
        }
        for work in ["group-nothing", "group-snapshot"] {
            let loads = start(place, &theirs, &["--rate", RATE])?;
            let took = (work == "group-snapshot").then(|| {
                let one = |n: usize| {
                    let file = place.file(&format!("copies-{n}-at-{turn}.qcow2"));
                    let node = if turn == 0 { format!("disk-{n}") } else { format!("disk-{n}-at-{}", turn - 1) };
                    let name = format!("disk-{n}-at-{turn}");
                    overlays.push(file.clone());
                    let data = json!({ "node-name": node, "snapshot-file": file, "snapshot-node-name": name });
                    json!({ "type": "blockdev-snapshot-sync", "data": data })
                };
                their_qmp.time("transaction", json!({ "actions": (0..TOGETHER).map(one).collect::<Vec<_>>() }))
            });
            let values = json!({ "milliseconds": took.transpose()?, "longest_request_ms": longest(loads)? });
            if turn > 0 {
                results.add(record(work, "qcow2", turn - 1, &values))?;
            }
        }
    }
    drop((our_qmp, their_qmp));
    ours.end()?;
    theirs.end()?;
    remove(&container)?;
    images.iter().chain(&overlays).try_for_each(|file| remove(file))
}

/// A container with volumes that read as zeros.
pub(crate) fn create(place: &Place, container: &std::path::Path, volumes: &[&str], len: u64) -> Result<()> {
    remove(container)?;
    pitstop(place, &["create"], container, &[])?;
    for volume in volumes {
        pitstop(place, &["volume", "create"], container, &[volume, "--size", &len.to_string()])?;
    }
    Ok(())
}

/// Writes the first `len` bytes of the first volume.
pub(crate) fn write_all(server: &Server, len: u64) -> Result<()> {
    trace::play(&server.sockets[0], &trace::sequential(len / MIB, MIB), 8)
}

/// Writes all of a golden volume, or for the second copy a small part of it again, in scattered places.
fn prepare(server: &Server, work: &str, len: u64) -> Result<()> {
    let (total, piece) = CHANGES;
    match work {
        "hydrate-first" => write_all(server, len),
        _ => trace::play(&server.sockets[0], &trace::scattered(total.min(len / 16) / piece, piece, len), 8),
    }
}

/// Starts a guest for each volume, which writes; returns when the time for the operation has come.
fn start(place: &Place, server: &Server, options: &[&str]) -> Result<Vec<RunningLoad>> {
    let common = ["--read-percent", "0", "--range", "67108864", "--ramp", TURN.ramp, "--seconds", TURN.seconds];
    let begin = Instant::now();
    let one = |socket: &PathBuf| place.start_load(socket, None, &[&common[..], options].concat());
    let loads = server.sockets.iter().map(one).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(TURN.operation.saturating_sub(begin.elapsed()));
    Ok(loads)
}

/// Milliseconds of the longest request of all guests.
fn longest(loads: Vec<RunningLoad>) -> Result<f64> {
    let measured = loads.into_iter().map(RunningLoad::wait).collect::<Result<Vec<_>>>()?;
    Ok(measured.iter().map(|one| one.latency_us.max / 1e3).fold(0.0, f64::max))
}

/// Job `id`, if it is there.
pub(crate) fn find_job(qmp: &mut Qmp, id: &str) -> Result<Option<Value>> {
    let jobs = qmp.execute("query-jobs", json!({}))?;
    Ok(jobs.as_array().into_iter().flatten().find(|job| job["id"] == id).cloned())
}

/// A job that has ended, if it is still there.
fn ended_job(qmp: &mut Qmp, id: &str) -> Result<Option<Value>> {
    let begin = Instant::now();
    loop {
        let Some(job) = find_job(qmp, id)? else { return Ok(None) };
        if let Some(error) = job.get("error") {
            return Err(format!("job {id}: {error}").into());
        }
        if job["status"] == "concluded" {
            return Ok(Some(job));
        }
        if begin.elapsed() > JOB_LIMIT {
            return Err(format!("job {id} has not ended after two minutes").into());
        }
        std::thread::sleep(LOOK);
    }
}

fn record(work: &str, backend: &str, repetition: usize, values: &Value) -> Value {
    crate::rows::record(GROUP, work, backend, repetition, values)
}

/// What the report says of these records.
pub(crate) fn rows(records: &[Value]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |name: &str, backend, value: Option<f64>, unit, reference: Option<f64>| {
        rows.extend(value.map(|value| Row::new(name, backend, value, unit).against(reference)));
    };
    let runs = |work: &str, backend| Runs::of(records, GROUP, work, backend);
    for (work, name) in [("hydrate-first", "copy of 1g made real"), ("hydrate-second", "the same after 64 MiB changed")]
    {
        for (backend, reference) in [("pitstop", Some("qcow2")), ("qcow2", None)] {
            let these = runs(work, backend);
            let compared = |field| reference.and_then(|reference| runs(work, reference).median(field));
            add(name, backend, these.median("milliseconds"), "ms", compared("milliseconds"));
            let mib = |bytes: Option<f64>| bytes.map(|bytes| bytes / MIB as f64);
            let copied = mib(these.median("copied_bytes"));
            add(&format!("{name}, copied"), backend, copied, "MiB", mib(compared("copied_bytes")));
        }
    }
    let (deletion, quiet) = (runs("delete-golden", "pitstop"), runs("delete-nothing", "pitstop"));
    let name = format!("deletion of a volume that {DEPENDANTS} read from");
    add(&name, "pitstop", deletion.median("milliseconds"), "ms", None);
    let (longest, without) = (deletion.median("longest_request_ms"), quiet.median("longest_request_ms"));
    add("the same, guest's longest request, beside that without", "pitstop", longest, "ms", without);
    for backend in ["pitstop", "qcow2"] {
        let (group, quiet) = (runs("group-snapshot", backend), runs("group-nothing", backend));
        let name = format!("snapshot of {TOGETHER} at one instant");
        add(&name, backend, group.median("milliseconds"), "ms", None);
        let (longest, without) = (group.median("longest_request_ms"), quiet.median("longest_request_ms"));
        add("the same, longest request of all guests, beside that without", backend, longest, "ms", without);
    }
    rows.extend(beside::rows(records));
    rows
}
