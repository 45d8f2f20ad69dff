//! Backends that serve many volumes and take commands, and what the kernel says of their processes.
//!
//! Does not: measure, or keep data files.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Result;
use crate::place::{Place, Process};
use crate::qmp::Qmp;
use crate::{files, peers};

/// Longest time that a backend takes to write back what it holds.
const QUIT_LIMIT: Duration = Duration::from_secs(60);

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// All.
    Full,
    /// Small volumes, one repetition: shows that it works, no more.
    Quick,
}

impl Effort {
    /// One of two values.
    pub(crate) fn pick<T>(self, full: T, quick: T) -> T {
        match self {
            Effort::Full => full,
            Effort::Quick => quick,
        }
    }
}

/// Which threads of `qemu-storage-daemon` serve guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The one that also runs commands: with another, QEMU 10.0.2 hangs in an internal snapshot, or one of fifty volumes,
    /// while guests write, and dies of an assertion when a stream begins.
    Main,
    /// Two others, which is faster.
    Two,
}

/// A backend with a control socket.
#[derive(Debug)]
pub(crate) struct Server {
    process: Process,
    control: PathBuf,
    /// One for each volume, in the order asked for.
    pub(crate) sockets: Vec<PathBuf>,
}

impl Server {
    /// `pitstopd` on `container` with an export of one queue for each of `volumes`.
    pub(crate) fn pitstopd(place: &Place, container: &Path, volumes: &[String]) -> Result<Self> {
        let control = socket(place, "pitstop-control")?;
        let mut command = Command::new(&place.pitstopd);
        command.arg(container).arg("--control").arg(&control);
        let mut sockets = Vec::new();
        for (n, volume) in volumes.iter().enumerate() {
            let socket = socket(place, &format!("pitstop-{n}"))?;
            command.arg("--export").arg(format!("volume={volume},socket={},num-queues=1", socket.display()));
            sockets.push(socket);
        }
        Self::start(&mut command, control, sockets, &place.file("pitstopd.log"))
    }

    /// `qemu-storage-daemon` with `images`, in qcow2 or raw format as their names end, and caches that hold all tables
    /// of a 100 GiB image. Image n is node `disk-n`.
    pub(crate) fn storage_daemon(place: &Place, images: &[PathBuf], threads: Threads) -> Result<Self> {
        let control = socket(place, "qsd-control")?;
        let mut command = Command::new("qemu-storage-daemon");
        command.arg("--chardev").arg(format!("socket,id=qmp,path={},server=on,wait=off", control.display()));
        command.args(["--monitor", "chardev=qmp", "--object", "iothread,id=io-0", "--object", "iothread,id=io-1"]);
        let mut sockets = Vec::new();
        for (n, image) in images.iter().enumerate() {
            let socket = socket(place, &format!("qsd-{n}"))?;
            let file = format!("driver=file,filename={},aio=io_uring,cache.direct=on,discard=unmap", image.display());
            if image.extension().is_some_and(|extension| extension == "raw") {
                command.arg("--blockdev").arg(format!("{file},node-name=disk-{n}"));
            } else {
                let caches = "l2-cache-size=33554432,refcount-cache-size=2097152,cache-clean-interval=0";
                let qcow2 = format!("driver=qcow2,node-name=disk-{n},file=file-{n},cache.direct=on,discard=unmap");
                command.arg("--blockdev").arg(format!("{file},node-name=file-{n}"));
                command.arg("--blockdev").arg(format!("{qcow2},{caches}"));
            }
            let thread = match threads {
                Threads::Main => String::new(),
                Threads::Two => format!(",iothread=io-{}", n % 2),
            };
            command.arg("--export").arg(format!(
                "type=vhost-user-blk,id=export-{n},node-name=disk-{n},writable=on,num-queues=1,addr.type=unix,\
                 addr.path={}{thread}",
                socket.display()
            ));
            sockets.push(socket);
        }
        Self::start(&mut command, control, sockets, &place.file("qsd.log"))
    }

    fn start(command: &mut Command, control: PathBuf, sockets: Vec<PathBuf>, log: &Path) -> Result<Self> {
        let awaited: Vec<&Path> = sockets.iter().chain([&control]).map(PathBuf::as_path).collect();
        let process = Process::start(command, &awaited, log)?;
        Ok(Self { process, control, sockets })
    }

    /// A connection to its control socket.
    pub(crate) fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.control)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Ends it.
    pub(crate) fn end(self) -> Result<()> {
        self.process.end()
    }

    /// Ends it; the bytes that it has written to files in all its life. `qmp` is a connection of before its guest's
    /// end: QEMU 10.0.2 may die of one that is made just when a guest goes.
    pub(crate) fn end_and_count(self, mut qmp: Qmp) -> Result<u64> {
        qmp.execute("quit", json!({}))?;
        let begin = Instant::now();
        // A process that has ended keeps its counters until it is awaited.
        while !status(self.pid(), "State")?.starts_with('Z') {
            if begin.elapsed() > QUIT_LIMIT {
                return Err("a backend did not end within a minute of `quit`".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let written = written_bytes(self.pid())?;
        self.process.end()?;
        Ok(written)
    }
}

/// The path of a socket where none is now.
fn socket(place: &Place, name: &str) -> Result<PathBuf> {
    let path = place.socket(name);
    remove(&path)?;
    Ok(path)
}

/// Removes a file if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    files::remove(path).map(drop)
}

/// Runs a command to its end; how long it took, in milliseconds.
pub(crate) fn execute(command: &mut Command) -> Result<f64> {
    let begin = Instant::now();
    peers::execute(command)?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

/// Runs `pitstop VERB CONTAINER ARGUMENTS`; how long it took, in milliseconds.
pub(crate) fn pitstop(place: &Place, verb: &[&str], container: &Path, arguments: &[&str]) -> Result<f64> {
    execute(Command::new(&place.pitstop).args(verb).arg(container).args(arguments))
}

/// Makes a qcow2 overlay `file` on `base` (a raw image), or an image of its own with `size` bytes.
pub(crate) fn qemu_img_create(file: &Path, options: &str, contents: Contents<'_>) -> Result<f64> {
    remove(file)?;
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-o", options]);
    match contents {
        Contents::Of { base, format } => command.args(["-F", format, "-b"]).arg(base).arg(file),
        Contents::Zeros { size_bytes } => command.arg(file).arg(size_bytes.to_string()),
    };
    execute(&mut command)
}

/// What a new image shows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Contents<'a> {
    /// What another image shows.
    Of { base: &'a Path, format: &'a str },
    /// Nothing.
    Zeros { size_bytes: u64 },
}

/// Bytes that a process has caused to be written to storage, as the kernel accounts them: direct writes when they are
/// submitted, others when a page becomes dirty. The file system's own journal is not among them.
pub(crate) fn written_bytes(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.ok_or("/proc/PID/io has no write_bytes: the kernel needs CONFIG_TASK_IO_ACCOUNTING")?.parse()?)
}

/// Memory of a process's own, in bytes: neither files nor what guests share with it.
pub(crate) fn own_memory_bytes(pid: u32) -> Result<u64> {
    let text = status(pid, "RssAnon")?;
    Ok(text.trim_end_matches("kB").trim().parse::<u64>()? << 10)
}

fn status(pid: u32, field: &str) -> Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    Ok(line.ok_or_else(|| format!("/proc/PID/status has no {field}"))?.trim().to_owned())
}
