//! The machine that measures: what a reader must know of it.
//!
//! Does not: say anything that tells one machine from another of its kind, such as a host name.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::Result;
use crate::peers::execute;

/// A record of group `machine`: processor, memory, kernel, file system of `folder`, versions of programs.
///
/// # Errors
/// A program is missing.
pub(crate) fn describe(folder: &Path) -> Result<Value> {
    let (cpu, memory) = (proc_field("cpuinfo", "model name")?, proc_field("meminfo", "MemTotal")?);
    let memory_kib: u64 = memory.trim_end_matches(" kB").parse()?;
    Ok(json!({
        "group": "machine",
        "work": "machine",
        "cpu": cpu,
        "cores": std::thread::available_parallelism()?.get(),
        "memory_gib": memory_kib >> 20,
        "kernel": first_line(Command::new("uname").args(["--kernel-name", "--kernel-release", "--machine"]))?,
        "virtual_machine": proc_field("cpuinfo", "flags")?.split(' ').any(|flag| flag == "hypervisor"),
        "file_system": file_system(folder)?,
        "qemu": first_line(Command::new("qemu-storage-daemon").arg("--version"))?,
        "fio": first_line(Command::new("fio").arg("--version"))?,
        "date": first_line(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?,
    }))
}

/// Its type, and whether it discards what is freed, at once.
fn file_system(folder: &Path) -> Result<String> {
    let shown = |what| first_line(Command::new("findmnt").args(["-n", "-o", what, "-T"]).arg(folder));
    let discards = shown("OPTIONS")?.split(',').any(|option| option == "discard");
    Ok(shown("FSTYPE")? + if discards { " with discard" } else { "" })
}

fn proc_field(file: &str, name: &str) -> Result<String> {
    let text = std::fs::read_to_string(Path::new("/proc").join(file))?;
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned());
    Ok(value.unwrap_or_else(|| "unknown".to_owned()))
}

fn first_line(command: &mut Command) -> Result<String> {
    let output = execute(command)?;
    let text = String::from_utf8_lossy(&output);
    Ok(text.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" "))
}
