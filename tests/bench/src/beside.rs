//! What a guest is left of its rate while its volume is copied in the background: made real, or backed up.
//!
//! Turns without and with a job follow one another. A guest reads at random from a copy of a golden volume that is made
//! real, and writes at random to the golden volume while it is backed up into a raw file; the same with QEMU's stream and
//! backup jobs. Each job is cancelled when the guest has been measured. Does not: measure whole jobs.

use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use crate::Result;
use crate::copies::{GROUP, LOOK, create, find_job, write_all};
use crate::place::{Place, Results};
use crate::qmp::Qmp;
use crate::rows::{Row, Runs, record};
use crate::serve::{Contents, Effort, Server, Threads, qemu_img_create, remove};

const MIB: u64 = 1 << 20;
/// Bytes of the golden volume: more than a job copies while a guest is measured.
const LEN: (u64, u64) = (4 << 30, 512 << 20);

/// What is done in the background, the share of the guest's requests that are reads, and names for the report.
struct Job {
    name: &'static str,
    read_percent: &'static str,
    guest: &'static str,
    title: &'static str,
}

const JOBS: [Job; 2] = [
    Job { name: "hydration", read_percent: "100", guest: "reads", title: "a copy is made real" },
    Job { name: "backup", read_percent: "0", guest: "writes", title: "the volume is backed up" },
];

struct Site<'a> {
    place: &'a Place,
    len: u64,
    container: PathBuf,
    golden: PathBuf,
    overlay: PathBuf,
    target: PathBuf,
}

/// Measures.
pub(crate) fn run(place: &Place, effort: Effort, results: &mut Results) -> Result<()> {
    let [container, golden, overlay, target] =
        ["beside.pit", "beside-golden.qcow2", "beside-overlay.qcow2", "beside-target.raw"].map(|name| place.file(name));
    let site = Site { place, len: effort.pick(LEN.0, LEN.1), container, golden, overlay, target };
    site.build()?;
    for turn in 0..effort.pick(5, 1) {
        for job in &JOBS {
            for with in [false, true] {
                let work = work(job, with);
                results.add(record(GROUP, &work, "pitstop", turn, &site.pitstop(job, with)?))?;
                results.add(record(GROUP, &work, "qcow2", turn, &site.storage_daemon(job, with)?))?;
            }
        }
    }
    [&site.container, &site.golden, &site.overlay, &site.target].into_iter().try_for_each(|file| remove(file))
}

fn work(job: &Job, with: bool) -> String {
    format!("{}-{}", if with { "beside" } else { "without" }, job.name)
}

impl Site<'_> {
    fn build(&self) -> Result<()> {
        create(self.place, &self.container, &["golden", "ci"], self.len)?;
        let server = Server::pitstopd(self.place, &self.container, &["golden".to_owned()])?;
        write_all(&server, self.len)?;
        server.end()?;
        qemu_img_create(&self.golden, "cluster_size=64k", Contents::Zeros { size_bytes: self.len })?;
        let server = Server::storage_daemon(self.place, std::slice::from_ref(&self.golden), Threads::Two)?;
        write_all(&server, self.len)?;
        server.end()
    }

    fn pitstop(&self, job: &Job, with: bool) -> Result<Value> {
        let volume = if job.name == "hydration" { "ci" } else { "golden" };
        let server = Server::pitstopd(self.place, &self.container, &[volume.to_owned()])?;
        let mut qmp = server.qmp()?;
        if job.name == "hydration" {
            qmp.execute("x-pitstop-refresh", json!({ "name": "ci", "source": "golden" }))?;
        }
        crate::wear::wait_for_space(&server)?;
        let begin = |qmp: &mut Qmp| {
            let job = match job.name {
                "hydration" => qmp.execute("x-pitstop-volume-hydrate", json!({ "name": "ci" }))?,
                _ => {
                    let target = json!({ "name": "golden", "target": self.target, "overwrite": true });
                    qmp.execute("x-pitstop-backup", target)?
                }
            };
            Ok(job["job"]["id"].as_str().ok_or("there was nothing to do")?.to_owned())
        };
        let values = self.guest(&server, &mut qmp, job, with.then_some(begin))?;
        drop(qmp);
        server.end()?;
        Ok(values)
    }

    fn storage_daemon(&self, job: &Job, with: bool) -> Result<Value> {
        let image = if job.name == "hydration" {
            let base = Contents::Of { base: &self.golden, format: "qcow2" };
            qemu_img_create(&self.overlay, "cluster_size=64k", base)?;
            &self.overlay
        } else {
            remove(&self.target)?;
            File::create(&self.target)?.set_len(self.len)?;
            &self.golden
        };
        let server = Server::storage_daemon(self.place, std::slice::from_ref(image), Threads::Main)?;
        let mut qmp = server.qmp()?;
        let begin = |qmp: &mut Qmp| {
            if job.name == "hydration" {
                qmp.execute("block-stream", json!({ "job-id": "job", "device": "disk-0" }))?;
            } else {
                let file = json!({
                    "driver": "file", "node-name": "target", "filename": self.target, "aio": "io_uring",
                    "cache": { "direct": true },
                });
                qmp.execute("blockdev-add", file)?;
                let backup = json!({ "job-id": "job", "device": "disk-0", "target": "target", "sync": "full" });
                qmp.execute("blockdev-backup", backup)?;
            }
            Ok("job".to_owned())
        };
        let values = self.guest(&server, &mut qmp, job, with.then_some(begin))?;
        drop(qmp);
        server.end()?;
        Ok(values)
    }

    /// What a guest reaches, beside the job that `begin` starts, which is then cancelled.
    fn guest(
        &self,
        server: &Server,
        qmp: &mut Qmp,
        job: &Job,
        begin: Option<impl FnOnce(&mut Qmp) -> Result<String>>,
    ) -> Result<Value> {
        let options = ["--read-percent", job.read_percent, "--depth", "8", "--ramp", "0.5", "--seconds", "1"];
        let load = self.place.start_load(&server.sockets[0], None, &options)?;
        let begun =
            begin.map(|begin| Ok::<_, Box<dyn std::error::Error>>((begin(qmp)?, Instant::now()))).transpose()?;
        let measured = load.wait()?;
        let latency = measured.latency_us;
        let mut values =
            json!({ "iops": measured.iops, "p99_us": latency.p99, "longest_request_ms": latency.max / 1e3 });
        if let Some((id, began)) = begun {
            let job = find_job(qmp, &id)?.ok_or("the job has ended before the guest: the volume is too small")?;
            let copied = job["current-progress"].as_f64().ok_or("a job tells no progress")?;
            values["copied_per_second"] = json!(copied / began.elapsed().as_secs_f64());
            qmp.execute("job-cancel", json!({ "id": id }))?;
            while find_job(qmp, &id)?.is_some() {
                std::thread::sleep(LOOK);
            }
        }
        Ok(values)
    }
}

/// What the report says of these records.
pub(crate) fn rows(records: &[Value]) -> Vec<Row> {
    let mut rows = Vec::new();
    for job in &JOBS {
        for backend in ["pitstop", "qcow2"] {
            let runs = |with| Runs::of(records, GROUP, &work(job, with), backend);
            let (alone, beside) = (runs(false), runs(true));
            let mut add = |name: &str, value: Option<f64>, unit, reference: Option<f64>| {
                rows.extend(value.map(|value| Row::new(name, backend, value, unit).against(reference)));
            };
            let name = format!("{} while {}, beside those without", job.guest, job.title);
            add(&name, beside.median("iops"), "IOPS", alone.median("iops"));
            add("the same, p99 latency", beside.median("p99_us"), "us", alone.median("p99_us"));
            let (longest, without) = (beside.median("longest_request_ms"), alone.median("longest_request_ms"));
            add("the same, longest request", longest, "ms", without);
            let copied = beside.median("copied_per_second").map(|bytes| bytes / MIB as f64);
            add("the same, copied meanwhile", copied, "MiB/s", None);
        }
    }
    rows
}
