//! What grows with a container: memory, the time to open it, the cost of depth. Many volumes are [`crate::crowd`]'s.
//!
//! Memory for tables is that of a mapped volume of 256 GiB whose data takes no space in the file (see [`crate::sparse`]),
//! once with all tables read; a TiB takes four times as much. Does not: judge.

use std::path::Path;
use std::time::Instant;

use pitstop_format::{BLOCK_LEN, Container, CreateOptions, FileDisk, OpenMode, SLAB_LEN, VolumeIo};
use serde_json::{Value, json};

use crate::Result;
use crate::crowd;
use crate::place::{Place, Results};
use crate::rows::{Row, Runs};
use crate::serve::{Effort, Server, own_memory_bytes, remove};
use crate::sparse::{DATA, SparseDisk};

const GROUP: &str = "scale";
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// Layers of the container whose opening is timed.
const LAYERS: usize = 1000;
/// Depths at which is read, and bytes of that volume.
const DEPTHS: [usize; 3] = [1, 10, 100];
const DEEP_LEN: u64 = 64 << 20;

/// Measures.
pub(crate) fn run(place: &Place, effort: Effort, results: &mut Results) -> Result<()> {
    crowd::run(place, effort, results)?;
    depth(place, effort, results)?;
    layers(place, effort, results)?;
    memory(place, effort, results)
}

/// A new container in which some data takes no space.
fn create(path: &Path) -> Result<Container> {
    remove(path)?;
    Container::create(FileDisk::create(path)?, &CreateOptions::default())?;
    Ok(Container::open(SparseDisk::open(path)?, OpenMode::ReadWrite)?)
}

/// A container with volumes `at-1` to `at-100` that read through so many layers. The lowest one has all data; each of the
/// others has one block in every chunk, which takes no space in the file.
fn build_deep(path: &Path) -> Result<()> {
    let container = create(path)?;
    container.create_volume("growing", DEEP_LEN)?;
    let io = VolumeIo::new(&container, container.volume("growing")?);
    let data = vec![!DATA; 4 << 20];
    (0..DEEP_LEN).step_by(data.len()).try_for_each(|at| io.write_at(&data, at))?;
    let block = [DATA; BLOCK_LEN as usize];
    for depth in 1..=DEPTHS[2] {
        // Its other child is the volume's next layer: with two children it is not merged.
        container.snapshot("growing", &format!("at-{depth}"))?;
        (0..DEEP_LEN).step_by(SLAB_LEN as usize).try_for_each(|at| io.write_at(&block, at))?;
    }
    container.close()?;
    Ok(())
}

fn depth(place: &Place, effort: Effort, results: &mut Results) -> Result<()> {
    let container = place.file("deep.pit");
    build_deep(&container)?;
    let seconds = effort.pick("2", "0.3");
    for repetition in 0..effort.pick(3, 1) {
        for at in DEPTHS {
            for depth in ["1", "32"] {
                let server = Server::pitstopd(place, &container, &[format!("at-{at}")])?;
                let options = ["--depth", depth, "--seconds", seconds];
                let measured = place.load(&server.sockets[0], Some(server.pid()), &options)?;
                server.end()?;
                let cpu = measured.backend_cpu_seconds.map(|seconds| seconds * 1e6 / measured.requests as f64);
                let values = json!({
                    "iops": measured.iops,
                    "p50_us": measured.latency_us.p50,
                    "cpu_seconds_per_million": cpu,
                });
                results.add(record(&format!("read-through-{at}-d{depth}"), repetition, &values))?;
            }
        }
    }
    remove(&container)
}

fn layers(place: &Place, effort: Effort, results: &mut Results) -> Result<()> {
    let path = place.file("layers.pit");
    let container = create(&path)?;
    container.create_volume("growing", GIB)?;
    let io = VolumeIo::new(&container, container.volume("growing")?);
    for n in 0..LAYERS {
        io.write_at(&[DATA; BLOCK_LEN as usize], n as u64 % (GIB / SLAB_LEN) * SLAB_LEN)?;
        container.snapshot("growing", &format!("at-{n}"))?;
    }
    drop(io);
    container.close()?;
    let last = format!("at-{}", LAYERS - 1);
    for repetition in 0..effort.pick(5, 1) {
        let begin = Instant::now();
        let opened = Container::open(FileDisk::open(&path, OpenMode::ReadWrite)?, OpenMode::ReadWrite)?;
        let open = begin.elapsed().as_secs_f64() * 1e3;
        let count = opened.layers().len();
        opened.close()?;
        let begin = Instant::now();
        let server = Server::pitstopd(place, &path, std::slice::from_ref(&last))?;
        let serve = begin.elapsed().as_secs_f64() * 1e3;
        server.end()?;
        let values = json!({ "layers": count, "milliseconds": open, "until_served_ms": serve });
        results.add(record("open-1000-layers", repetition, &values))?;
    }
    remove(&path)
}

fn memory(place: &Place, effort: Effort, results: &mut Results) -> Result<()> {
    let path = place.file("large.pit");
    let len = effort.pick(256 * GIB, 16 * GIB);
    for (work, mapped) in [("memory-empty", 0), ("memory-mapped", len)] {
        let container = create(&path)?;
        container.create_volume("large", len)?;
        let io = VolumeIo::new(&container, container.volume("large")?);
        let data = vec![DATA; 4 << 20];
        for at in (0..mapped).step_by(data.len()) {
            io.write_at(&data, at)?;
            if at % GIB == 0 {
                container.settle(100)?;
            }
        }
        drop(io);
        container.close()?;
        let begin = Instant::now();
        let server = Server::pitstopd(place, &path, &["large".to_owned()])?;
        let open = begin.elapsed().as_secs_f64() * 1e3;
        let opened = own_memory_bytes(server.pid())?;
        // Every page of the tables is read several times over.
        let options = ["--depth", "32", "--ramp", "0", "--seconds", effort.pick("4", "0.5")];
        place.load(&server.sockets[0], None, &options)?;
        let values = json!({
            "mapped_bytes": mapped,
            "until_served_ms": open,
            "memory_opened_bytes": opened,
            "memory_bytes": own_memory_bytes(server.pid())?,
        });
        server.end()?;
        results.add(record(work, 0, &values))?;
    }
    remove(&path)
}

fn record(work: &str, repetition: usize, values: &Value) -> Value {
    crate::rows::record(GROUP, work, "pitstop", repetition, values)
}

/// What the report says of these records.
pub(crate) fn rows(records: &[Value]) -> Vec<Row> {
    let mut rows = crowd::rows(records);
    let runs = |work: &str| Runs::of(records, GROUP, work, "pitstop");
    let mut add = |name: String, value: Option<f64>, unit, reference| {
        rows.extend(value.map(|value| Row::new(&name, "pitstop", value, unit).against(reference)));
    };
    for depth in ["1", "32"] {
        let shallow = runs(&format!("read-through-1-d{depth}")).median("iops");
        for at in DEPTHS {
            let these = runs(&format!("read-through-{at}-d{depth}"));
            add(format!("read through {at} layers, {depth} at a time"), these.median("iops"), "IOPS", shallow);
            let cpu = these.median("cpu_seconds_per_million");
            add("the same, processor time of the backend".to_owned(), cpu, "s/million", None);
        }
    }
    let opened = runs("open-1000-layers");
    add("open a container of 1,000 layers".to_owned(), opened.median("milliseconds"), "ms", None);
    add("the same, from the daemon's start to its socket".to_owned(), opened.median("until_served_ms"), "ms", None);
    let (empty, mapped) = (runs("memory-empty"), runs("memory-mapped"));
    for (field, name) in [("memory_opened_bytes", "opened"), ("memory_bytes", "all of it read")] {
        let difference = mapped.median(field).zip(empty.median(field)).map(|(mapped, empty)| mapped - empty);
        let of_a_tib = difference.zip(mapped.median("mapped_bytes")).map(|(bytes, mapped)| bytes * TIB as f64 / mapped);
        add(format!("memory for a mapped TiB, {name}"), of_a_tib.map(|bytes| bytes / f64::from(1 << 20)), "MiB", None);
    }
    let until = mapped.median("until_served_ms").zip(mapped.median("mapped_bytes"));
    let of_a_tib = until.map(|(time, mapped)| time * TIB as f64 / mapped);
    add("start of the daemon with a mapped TiB".to_owned(), of_a_tib, "ms", None);
    rows
}
