//! Many volumes of one backend, each with a guest, all at once: throughput and fairness, beside one volume alone.
//!
//! All volumes are copies of one golden volume of 1 GiB. Guests read 4 KiB at random, 4 at a time; then, refreshed, they
//! write each 4 KiB block of 64 MiB once. Each guest is a process; all processes share the machine's cores with the backend.
//! Does not: give one guest alone the depth of all together; it has 4 under way, then 128.

use serde_json::{Value, json};

use crate::Result;
use crate::place::{Place, Results, median};
use crate::rows::{Row, Runs};
use crate::serve::{Contents, Effort, Server, Threads, own_memory_bytes, pitstop, qemu_img_create, remove};

const GROUP: &str = "scale";
const GIB: u64 = 1 << 30;
/// Guests at once.
const CROWD: usize = 100;

/// What the guests do, and the options of their loads.
const WORKS: [(&str, &[&str]); 2] =
    [("read", &[]), ("first-write", &["--read-percent", "0", "--range", "67108864", "--pattern", "once"])];

const BACKENDS: [Backend; 2] = [Backend::Pitstop, Backend::Overlays];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Pitstop,
    /// qcow2 overlays of a raw image, all in one storage daemon.
    Overlays,
}

impl Backend {
    fn name(self) -> &'static str {
        match self {
            Backend::Pitstop => "pitstop",
            Backend::Overlays => "qcow2-extended",
        }
    }
}

struct Site<'a> {
    place: &'a Place,
    container: std::path::PathBuf,
    raw: std::path::PathBuf,
}

/// Measures.
pub(crate) fn run(place: &Place, effort: Effort, results: &mut Results) -> Result<()> {
    let site = Site { place, container: place.file("crowd.pit"), raw: place.file("crowd.raw") };
    site.build()?;
    for repetition in 0..effort.pick(3, 1) {
        for backend in BACKENDS {
            for (guests, depth) in [(1, 4), (1, 128), (CROWD, 4)] {
                let server = site.start(backend, guests)?;
                let connected = own_memory_bytes(server.pid())?;
                for (work, options) in WORKS {
                    let mut values = together(place, &server, depth, options)?;
                    values["memory_bytes"] = json!(own_memory_bytes(server.pid())?);
                    values["memory_at_start_bytes"] = json!(connected);
                    let work = format!("{work}-{guests}x{depth}");
                    results.add(crate::rows::record(GROUP, &work, backend.name(), repetition, &values))?;
                }
                server.end()?;
            }
        }
    }
    for n in 0..CROWD {
        remove(&site.overlay(n))?;
    }
    remove(&site.container)?;
    remove(&site.raw)
}

/// One load for each volume, all at once.
fn together(place: &Place, server: &Server, depth: usize, options: &[&str]) -> Result<Value> {
    let depth = depth.to_string();
    // The ramp lasts until all have started. One alone needs none, and might have written everything by then.
    let ramp = if server.sockets.len() > 1 { "1" } else { "0" };
    let mut loads = Vec::new();
    for (socket, seed) in server.sockets.iter().zip(1..) {
        let seed = format!("{seed}");
        let common = ["--depth", &depth, "--ramp", ramp, "--seconds", "1.5", "--seed", &seed];
        // One process tells of the backend's time, which is that of all.
        let pid = (seed == "1").then(|| server.pid());
        loads.push(place.start_load(socket, pid, &[&common[..], options].concat())?);
    }
    let measured = loads.into_iter().map(|load| load.wait()).collect::<Result<Vec<_>>>()?;
    let iops: Vec<f64> = measured.iter().map(|one| one.iops).collect();
    let mut p99: Vec<f64> = measured.iter().map(|one| one.latency_us.p99).collect();
    let least = iops.iter().copied().fold(f64::INFINITY, f64::min);
    Ok(json!({
        "iops": iops.iter().sum::<f64>(),
        "least_iops": least,
        "median_iops": median(&mut iops.clone()),
        "most_iops": iops.iter().copied().fold(0.0, f64::max),
        "median_p99_us": median(&mut p99),
        "backend_cpu_seconds": measured.first().and_then(|one| one.backend_cpu_seconds),
    }))
}

impl Site<'_> {
    fn build(&self) -> Result<()> {
        crate::wear::write_golden(&self.raw, GIB, GIB)?;
        remove(&self.container)?;
        pitstop(self.place, &["create"], &self.container, &[])?;
        let mut import = std::process::Command::new(&self.place.pitstop);
        import.args(["import", "--format", "raw"]).arg(&self.container).arg("golden").arg(&self.raw);
        crate::serve::execute(&mut import)?;
        let server = Server::pitstopd(self.place, &self.container, &[])?;
        let mut qmp = server.qmp()?;
        for n in 0..CROWD {
            qmp.execute("x-pitstop-snapshot", json!({ "source": "golden", "name": format!("ci-{n}") }))?;
        }
        server.end()
    }

    fn overlay(&self, n: usize) -> std::path::PathBuf {
        self.place.file(&format!("crowd-{n}.qcow2"))
    }

    /// A backend with new copies of golden.
    fn start(&self, backend: Backend, guests: usize) -> Result<Server> {
        match backend {
            Backend::Pitstop => {
                let volumes: Vec<String> = (0..guests).map(|n| format!("ci-{n}")).collect();
                let server = Server::pitstopd(self.place, &self.container, &volumes)?;
                let mut qmp = server.qmp()?;
                for volume in volumes {
                    qmp.execute("x-pitstop-refresh", json!({ "name": volume, "source": "golden" }))?;
                }
                drop(qmp);
                crate::wear::wait_for_space(&server)?;
                Ok(server)
            }
            Backend::Overlays => {
                let images: Vec<_> = (0..guests).map(|n| self.overlay(n)).collect();
                let base = Contents::Of { base: &self.raw, format: "raw" };
                let new = self.place.file("crowd-new.qcow2");
                qemu_img_create(&new, "cluster_size=64k,extended_l2=on", base)?;
                for image in &images {
                    remove(image)?;
                    std::fs::copy(&new, image)?;
                }
                remove(&new)?;
                Server::storage_daemon(self.place, &images, Threads::Two)
            }
        }
    }
}

/// What the report says of these records.
pub(crate) fn rows(records: &[Value]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (work, _) in WORKS {
        for backend in BACKENDS.map(Backend::name) {
            let runs = |guests, depth| Runs::of(records, GROUP, &format!("{work}-{guests}x{depth}"), backend);
            let peer = Runs::of(records, GROUP, &format!("{work}-{CROWD}x4"), Backend::Overlays.name()).median("iops");
            let crowd = runs(CROWD, 4);
            let mut add = |name: &str, value: Option<f64>, unit, reference: Option<f64>| {
                let row = |value| Row::new(&format!("{work}, {name}"), backend, value, unit).against(reference);
                rows.extend(value.map(row));
            };
            add("1 volume, 4 at a time", runs(1, 4).median("iops"), "IOPS", None);
            add("1 volume, 128 at a time", runs(1, 128).median("iops"), "IOPS", None);
            let other = peer.filter(|_| backend == Backend::Pitstop.name());
            add("100 volumes together", crowd.median("iops"), "IOPS", other);
            let middle = crowd.median("median_iops");
            add("100 volumes, the slowest beside the median", crowd.median("least_iops"), "IOPS", middle);
            add("100 volumes, the fastest beside the median", crowd.median("most_iops"), "IOPS", middle);
            let mib = |bytes: f64| bytes / f64::from(1 << 20);
            add("100 volumes, memory of the backend", crowd.median("memory_bytes").map(mib), "MiB", None);
        }
    }
    rows
}
