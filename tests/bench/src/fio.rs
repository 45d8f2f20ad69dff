//! fio with io_uring and direct I/O on a raw file: what the storage gives without a protocol in between.
//!
//! Does not: judge; its numbers get the members that `load` prints, fio's own CPU time as the backend's.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::Result;
use crate::works::{Pattern, Shape};

/// How many requests go with one system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Batching {
    /// One.
    Single,
    /// Up to 16, submitted and reaped.
    Sixteen,
}

/// Writes `len` bytes of data to a new file, so that no block of it is a hole or merely allocated.
///
/// # Errors
/// fio is missing or fails.
pub(crate) fn fill(file: &Path, len: u64) -> Result<()> {
    let mut command = fio(file);
    command.args(["--rw=write", "--bs=1M", "--iodepth=8", "--fallocate=none", "--refill_buffers", "--end_fsync=1"]);
    command.arg(format!("--size={len}"));
    output(&mut command).map(drop)
}

/// Runs a load for `seconds` after `ramp` seconds that do not count.
///
/// # Errors
/// fio is missing, fails, or says something that cannot be understood.
pub(crate) fn run(file: &Path, shape: Shape, batching: Batching, seconds: f64, ramp: f64) -> Result<Value> {
    let direction = if shape.read_percent == 100 { "read" } else { "write" };
    let order = if shape.pattern == Pattern::Sequential { "" } else { "rand" };
    let mut command = fio(file);
    command
        .args(["--time_based", "--norandommap", "--randrepeat=0"])
        .arg(format!("--rw={order}{direction}"))
        .arg(format!("--bs={}", shape.block_len_bytes))
        .arg(format!("--iodepth={}", shape.depth))
        .arg(format!("--runtime={}ms", (seconds * 1e3).round()))
        .arg(format!("--ramp_time={}ms", (ramp * 1e3).round()));
    if shape.flush_every > 0 {
        command.arg(format!("--fdatasync={}", shape.flush_every));
    }
    if batching == Batching::Sixteen {
        command.args(["--iodepth_batch_submit=16", "--iodepth_batch_complete_max=16"]);
    }
    parse(&output(&mut command)?, direction)
}

fn fio(file: &Path) -> Command {
    let mut command = Command::new("fio");
    command.args(["--name=bench", "--ioengine=io_uring", "--direct=1", "--output-format=json"]);
    command.arg(format!("--filename={}", file.display()));
    command
}

fn output(command: &mut Command) -> Result<Value> {
    let output =
        command.output().map_err(|error| format!("cannot run fio: {error}; 'tests/setup.sh bench' gets it"))?;
    if !output.status.success() {
        return Err(format!("fio failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
    }
    // Notes may stand before the JSON.
    let start = output.stdout.iter().position(|&byte| byte == b'{').ok_or("fio printed no JSON")?;
    Ok(serde_json::from_slice(&output.stdout[start..])?)
}

fn parse(report: &Value, direction: &str) -> Result<Value> {
    let job = &report["jobs"][0];
    let side = &job[direction];
    let number = |value: &Value, name: &str| value.as_f64().ok_or_else(|| format!("fio's report has no {name}"));
    let requests = number(&side["total_ios"], "total_ios")?;
    let seconds = number(&side["runtime"], "runtime")? / 1e3;
    let cpu_percent = number(&job["usr_cpu"], "usr_cpu")? + number(&job["sys_cpu"], "sys_cpu")?;
    let job_seconds = number(&job["job_runtime"], "job_runtime")? / 1e3;
    let latency = &side["clat_ns"];
    let microseconds = |value: &Value, name: &str| number(value, name).map(|nanoseconds| nanoseconds / 1e3);
    let percentile = |name: &str| microseconds(&latency["percentile"][name], name);
    Ok(json!({
        "requests": requests,
        "flushes": job["sync"]["total_ios"],
        "seconds": seconds,
        "iops": number(&side["iops"], "iops")?,
        "mib_per_s": number(&side["bw_bytes"], "bw_bytes")? / f64::from(1 << 20),
        "latency_us": {
            "mean": microseconds(&latency["mean"], "mean")?,
            "p50": percentile("50.000000")?,
            "p90": percentile("90.000000")?,
            "p99": percentile("99.000000")?,
            "p999": percentile("99.900000")?,
            "max": microseconds(&latency["max"], "max")?,
        },
        "backend_cpu_seconds": cpu_percent / 100.0 * job_seconds,
    }))
}
