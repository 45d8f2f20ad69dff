//! What tags cost: making them, and verifying what a guest reads.
//!
//! Each repetition has a golden volume of its own, imported and not sealed, and a copy of it; first golden is sealed while nobody
//! uses the container, then a guest reads the copy, verified and not. Does not: compare with others, who verify nothing.

use serde_json::{Value, json};

use crate::Result;
use crate::place::{Place, Results};
use crate::rows::{Row, Runs};
use crate::serve::{Effort, Server, execute, own_memory_bytes, pitstop, remove};

const GROUP: &str = "tags";
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What the guest reads, and the options of its load.
const WORKS: [(&str, &str, &[&str]); 2] = [
    ("read-4k-d32", "4 KiB random read, depth 32", &["--depth", "32"]),
    (
        "read-128k-d8",
        "128 KiB sequential read, depth 8",
        &["--depth", "8", "--block-size", "131072", "--pattern", "sequential"],
    ),
];
const VERIFY: [&str; 2] = ["off", "always"];

/// Measures.
pub(crate) fn run(place: &Place, effort: Effort, results: &mut Results) -> Result<()> {
    let (container, raw) = (place.file("tags.pit"), place.file("tags.raw"));
    let len = effort.pick(GIB, GIB / 4);
    crate::wear::write_golden(&raw, len, len)?;
    remove(&container)?;
    pitstop(place, &["create"], &container, &[])?;
    for repetition in 0..effort.pick(3, 1) {
        let (golden, ci) = (format!("golden-{repetition}"), format!("ci-{repetition}"));
        let mut import = std::process::Command::new(&place.pitstop);
        import.args(["import", "--format", "raw", "--verify", "off"]).arg(&container).arg(&golden).arg(&raw);
        execute(&mut import)?;
        pitstop(place, &["snapshot"], &container, &[&golden, &ci])?;
        let milliseconds = pitstop(place, &["seal"], &container, &[&golden])?;
        let values = json!({ "mib_per_s": len as f64 / MIB as f64 / milliseconds * 1e3 });
        results.add(crate::rows::record(GROUP, "seal", "pitstop", repetition, &values))?;
        let server = Server::pitstopd(place, &container, std::slice::from_ref(&ci))?;
        let mut qmp = server.qmp()?;
        for (work, _, options) in WORKS {
            for verify in VERIFY {
                qmp.execute("x-pitstop-volume-set", json!({ "name": ci, "verify": verify }))?;
                let common = ["--seconds", effort.pick("2", "0.3"), "--ramp", "0.5"];
                let options = [&common[..], options].concat();
                let measured = place.load(&server.sockets[0], Some(server.pid()), &options)?;
                let cpu = measured.backend_cpu_seconds.map(|seconds| seconds * 1e6 / measured.requests as f64);
                let values = json!({
                    "iops": measured.iops,
                    "cpu_seconds_per_million": cpu,
                    "memory_bytes": own_memory_bytes(server.pid())?,
                });
                results.add(crate::rows::record(GROUP, &format!("{work}-{verify}"), "pitstop", repetition, &values))?;
            }
        }
        drop(qmp);
        server.end()?;
        for volume in [&ci, &golden] {
            pitstop(place, &["delete"], &container, &[volume])?;
        }
    }
    remove(&container)?;
    remove(&raw)
}

/// What the report says of these records.
pub(crate) fn rows(records: &[Value]) -> Vec<Row> {
    let runs = |work: &str| Runs::of(records, GROUP, work, "pitstop");
    let mut rows = Vec::new();
    let mut add = |name: &str, value: Option<f64>, unit, reference: Option<f64>| {
        rows.extend(value.map(|value| Row::new(name, "pitstop", value, unit).against(reference)));
    };
    add("sealing", runs("seal").median("mib_per_s"), "MiB/s", None);
    for (work, title, _) in WORKS {
        let [off, always] = VERIFY.map(|verify| runs(&format!("{work}-{verify}")));
        add(&format!("{title}, verify off"), off.median("iops"), "IOPS", None);
        add(&format!("{title}, verify always, beside off"), always.median("iops"), "IOPS", off.median("iops"));
        let cpu = "cpu_seconds_per_million";
        add("the same, processor time of the backend", always.median(cpu), "s/million", off.median(cpu));
        let mib = |runs: &Runs<'_>| runs.median("memory_bytes").map(|bytes| bytes / MIB as f64);
        add("the same, memory of the backend", mib(&always), "MiB", mib(&off));
    }
    rows
}
