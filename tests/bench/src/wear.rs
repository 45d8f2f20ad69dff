//! What a guest's writes to a fresh copy cost the storage: bytes written, and space taken, for each byte.
//!
//! The disk has 12 GiB: 10 written, and 2 that read as zeros, where new files go. Written bytes are those of the backend's
//! process from before the first request until it has ended and has written back everything, as `/proc/PID/io` counts
//! them: the disk's own counters hold whatever else the machine writes. What the file system writes of its own accord,
//! such as its journal, is in neither figure; a raw image, where both must be 1, shows that the count is right. Space is
//! what the copy takes in the container, or the overlay in the file system. Does not: measure time.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Result;
use crate::load::Random;
use crate::place::{Place, Results};
use crate::rows::{Row, Runs};
use crate::serve::{Contents, Effort, Server, Threads, execute, pitstop, qemu_img_create, remove, written_bytes};
use crate::trace::{self, Regions};

const GROUP: &str = "wear";
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Longest time until the space of a deleted volume is free again.
const RECLAIM_LIMIT: Duration = Duration::from_secs(60);

/// What the guest writes.
#[derive(Debug, Clone, Copy)]
enum Writes {
    /// So many blocks anywhere in the written part, or from its beginning on.
    Blocks { order: Order, len: u64, total: u64 },
    /// [`trace::package_install`].
    Installation,
}

/// Where blocks are written.
#[derive(Debug, Clone, Copy)]
enum Order {
    Scattered,
    Sequential,
}

/// The kinds of writes: those that take little space come first, so that a container that has to grow is seen growing.
const WORKS: [(&str, Writes); 5] = [
    ("package-install", Writes::Installation),
    ("sequential-1g", Writes::Blocks { order: Order::Sequential, len: 128 << 10, total: GIB }),
    ("random-4k-64m", Writes::Blocks { order: Order::Scattered, len: 4096, total: 64 * MIB }),
    ("random-64k-1g", Writes::Blocks { order: Order::Scattered, len: 64 << 10, total: GIB }),
    ("random-4k-1g", Writes::Blocks { order: Order::Scattered, len: 4096, total: GIB }),
];

const OVERLAYS: [(&str, &str); 2] =
    [("qcow2", "cluster_size=64k"), ("qcow2-extended", "cluster_size=64k,extended_l2=on")];

/// What one run took.
#[derive(Debug, Clone, Copy)]
struct Cost {
    guest: u64,
    written: u64,
    space: u64,
    /// By which the container's file has grown, to be used now or later.
    growth: u64,
}

struct Site<'a> {
    place: &'a Place,
    /// Bytes of the disk that are written.
    len: u64,
    effort: Effort,
    raw: PathBuf,
    container: PathBuf,
    overlay: PathBuf,
}

/// Measures.
pub(crate) fn run(place: &Place, effort: Effort, results: &mut Results) -> Result<()> {
    let site = Site::build(place, effort)?;
    for (work, writes) in WORKS {
        let ours = site.pitstop(writes)?;
        results.add(record(work, "pitstop", ours))?;
        for (name, options) in OVERLAYS {
            results.add(record(work, name, site.qcow2(writes, options)?))?;
        }
        if work == "random-4k-64m" {
            // Changes what is golden, and not that it is written: what counts here.
            results.add(record(work, "raw", site.raw(writes)?))?;
        }
    }
    [&site.raw, &site.container, &site.overlay].into_iter().try_for_each(|file| remove(file))
}

impl<'a> Site<'a> {
    fn build(place: &'a Place, effort: Effort) -> Result<Self> {
        let len = effort.pick(10 * GIB, 2 * GIB);
        let [raw, container, overlay] = ["wear.raw", "wear.pit", "wear.qcow2"].map(|name| place.file(name));
        let site = Site { place, len, effort, raw, container, overlay };
        write_golden(&site.raw, len, len + 2 * GIB)?;
        remove(&site.container)?;
        pitstop(place, &["create"], &site.container, &[])?;
        let mut command = Command::new(&place.pitstop);
        execute(command.args(["import", "--format", "raw"]).arg(&site.container).arg("golden").arg(&site.raw))?;
        Ok(site)
    }

    /// Has a guest write; the bytes that it wrote.
    fn write(&self, server: &Server, writes: Writes) -> Result<u64> {
        let blocks = |len, total| self.effort.pick(total, total / 16) / len;
        let (steps, depth) = match writes {
            Writes::Installation => {
                let regions = Regions { journal: GIB, metadata: GIB + 64 * MIB, free: self.len };
                (trace::package_install(regions), 8)
            }
            Writes::Blocks { order: Order::Scattered, len, total } => {
                (trace::scattered(blocks(len, total), len, self.len), 32)
            }
            Writes::Blocks { order: Order::Sequential, len, total } => (trace::sequential(blocks(len, total), len), 32),
        };
        trace::play(&server.sockets[0], &steps, depth)?;
        Ok(trace::written_bytes(&steps))
    }

    fn pitstop(&self, writes: Writes) -> Result<Cost> {
        pitstop(self.place, &["snapshot"], &self.container, &["golden", "ci"])?;
        let server = Server::pitstopd(self.place, &self.container, &["ci".to_owned()])?;
        wait_for_space(&server)?;
        let (used, length) = (used_bytes(&server)?, space(&self.container)?);
        let (qmp, before) = (server.qmp()?, written_bytes(server.pid())?);
        let guest = self.write(&server, writes)?;
        let cost = Cost {
            guest,
            space: used_bytes(&server)? - used,
            written: server.end_and_count(qmp)? - before,
            growth: space(&self.container)? - length,
        };
        pitstop(self.place, &["delete"], &self.container, &["ci"])?;
        Ok(cost)
    }

    fn qcow2(&self, writes: Writes, options: &str) -> Result<Cost> {
        qemu_img_create(&self.overlay, options, Contents::Of { base: &self.raw, format: "raw" })?;
        let cost = self.storage_daemon(&self.overlay, writes)?;
        remove(&self.overlay)?;
        Ok(cost)
    }

    fn raw(&self, writes: Writes) -> Result<Cost> {
        self.storage_daemon(&self.raw, writes)
    }

    fn storage_daemon(&self, image: &Path, writes: Writes) -> Result<Cost> {
        let server = Server::storage_daemon(self.place, &[image.to_owned()], Threads::Two)?;
        let (qmp, length, before) = (server.qmp()?, space(image)?, written_bytes(server.pid())?);
        let guest = self.write(&server, writes)?;
        let written = server.end_and_count(qmp)? - before;
        let space = space(image)? - length;
        Ok(Cost { guest, written, space, growth: space })
    }
}

/// A raw image of `size` bytes, the first `len` of which are data.
pub(crate) fn write_golden(path: &Path, len: u64, size: u64) -> Result<()> {
    let mut bytes = vec![0; MIB as usize];
    Random::new(3).fill(&mut bytes);
    let mut file = File::create(path)?;
    for _ in 0..len / MIB {
        file.write_all(&bytes)?;
    }
    file.set_len(size)?;
    Ok(file.sync_all()?)
}

/// Bytes of the file system that a file takes.
fn space(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path)?.blocks() * 512)
}

/// Bytes of the container that are in use.
fn used_bytes(server: &Server) -> Result<u64> {
    let container = server.qmp()?.execute("x-pitstop-query-container", json!({}))?;
    Ok(container["allocated-bytes"].as_u64().ok_or("the daemon does not tell allocated-bytes")?)
}

/// Waits until no space becomes free any more.
pub(crate) fn wait_for_space(server: &Server) -> Result<()> {
    let begin = Instant::now();
    let mut before = 0;
    loop {
        let used = used_bytes(server)?;
        if used == before {
            return Ok(());
        }
        if begin.elapsed() > RECLAIM_LIMIT {
            return Err("the space of a deleted volume is not free after a minute".into());
        }
        before = used;
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn record(work: &str, backend: &str, cost: Cost) -> Value {
    let Cost { guest, written, space, growth } = cost;
    let part = |bytes: u64| bytes as f64 / guest as f64;
    let values = json!({
        "guest_bytes": guest,
        "written_bytes": written,
        "space_bytes": space,
        "growth_bytes": growth,
        "written_per_byte": part(written),
        "space_per_byte": part(space),
    });
    crate::rows::record(GROUP, work, backend, 0, &values)
}

/// What the report says of these records.
pub(crate) fn rows(records: &[Value]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (work, _) in WORKS {
        for (field, unit, what) in
            [("written_per_byte", "bytes written a byte", "written"), ("space_per_byte", "bytes taken a byte", "space")]
        {
            let value = |backend| Runs::of(records, GROUP, work, backend).median(field);
            for backend in ["pitstop", "qcow2", "qcow2-extended", "raw"] {
                let reference = (backend == "pitstop").then(|| value("qcow2-extended")).flatten();
                let row = |value| Row::new(&format!("{work}, {what}"), backend, value, unit).against(reference);
                rows.extend(value(backend).map(row));
            }
        }
    }
    rows
}
