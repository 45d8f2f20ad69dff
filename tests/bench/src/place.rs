//! Where a benchmark works, whom it starts, and where its results go.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::load::Measured;

/// Longest time until a backend's socket is there.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Longest time that a backend takes to end when asked to.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Folders and programs.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// For data: on the file system that is measured.
    pub(crate) folder: PathBuf,
    /// For sockets, whose paths must be short.
    pub(crate) sockets: PathBuf,
    pub(crate) pitstopd: PathBuf,
    pub(crate) pitstop: PathBuf,
    bench: PathBuf,
}

impl Place {
    /// The programs beside this one; data in `folder`, which is made.
    pub(crate) fn new(folder: PathBuf, sockets: PathBuf) -> Result<Self> {
        let bench = std::env::current_exe()?;
        let program = |name| {
            let path = bench.with_file_name(name);
            let hint = "build it with `cargo build --release --workspace --bins`";
            if path.exists() { Ok(path) } else { Err(format!("{} is missing: {hint}", path.display())) }
        };
        let (pitstopd, pitstop) = (program("pitstopd")?, program("pitstop")?);
        std::fs::create_dir_all(&folder)?;
        Ok(Place { folder, sockets, pitstopd, pitstop, bench })
    }

    /// Path of a data file.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Path of a socket.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.sockets.join(name)
    }

    /// A load on `socket` with these options of `pitstop-bench load`, as a process of its own; its measurements.
    pub(crate) fn load(&self, socket: &Path, pid: Option<u32>, options: &[&str]) -> Result<Measured> {
        self.start_load(socket, pid, options)?.wait()
    }

    /// The same on a file, by a thread of the load's own process.
    pub(crate) fn load_file(&self, file: &Path, options: &[&str]) -> Result<Measured> {
        self.spawn_load("--file", file, options)?.wait()
    }

    /// Starts a load that goes on beside others.
    pub(crate) fn start_load(&self, socket: &Path, pid: Option<u32>, options: &[&str]) -> Result<RunningLoad> {
        let pid = pid.map(|pid| format!("--pid={pid}"));
        let options: Vec<&str> = options.iter().copied().chain(pid.as_deref()).collect();
        self.spawn_load("--socket", socket, &options)
    }

    fn spawn_load(&self, target: &str, path: &Path, options: &[&str]) -> Result<RunningLoad> {
        let mut command = Command::new(&self.bench);
        command.arg("load").arg(target).arg(path).args(options).stdin(Stdio::null());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        Ok(RunningLoad(child))
    }
}

/// A load under way.
#[derive(Debug)]
pub(crate) struct RunningLoad(Child);

impl RunningLoad {
    /// Waits for its end.
    pub(crate) fn wait(self) -> Result<Measured> {
        let output = self.0.wait_with_output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// A backend under way; ends with its handle.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts `command` and waits until all `sockets` are there. Its output goes to `log`.
    pub(crate) fn start(command: &mut Command, sockets: &[&Path], log: &Path) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let log_file = File::create(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file)
            .spawn()
            .map_err(|error| format!("cannot start {name}: {error}"))?;
        let mut process = Process { child, name };
        let begin = Instant::now();
        while sockets.iter().any(|socket| !socket.exists()) {
            let ended = process.child.try_wait()?;
            if ended.is_some() || begin.elapsed() > START_LIMIT {
                let said = std::fs::read_to_string(log).unwrap_or_default();
                return Err(format!("{} does not serve {sockets:?}: {ended:?} {said}", process.name).into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(process)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end (SIGTERM) and waits.
    pub(crate) fn end(mut self) -> Result<()> {
        self.terminate()
    }

    fn terminate(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        // SAFETY: signals a child that has not been awaited, so its number is still its own.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let begin = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begin.elapsed() > END_LIMIT {
                self.child.kill()?;
                self.child.wait()?;
                return Err(format!("{} did not end when asked to", self.name).into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.terminate() {
            eprintln!("pitstop-bench: {error}");
        }
    }
}

/// Where each measurement goes as one line of JSON.
#[derive(Debug)]
pub(crate) struct Results {
    file: File,
    /// All of this run.
    pub(crate) records: Vec<serde_json::Value>,
}

impl Results {
    /// Appends to the file at `path`.
    pub(crate) fn append_to(path: &Path) -> Result<Self> {
        Ok(Results { file: OpenOptions::new().create(true).append(true).open(path)?, records: Vec::new() })
    }

    /// Keeps a measurement: a JSON object with `group`, `work`, `backend`, `repetition` and numbers.
    pub(crate) fn add(&mut self, record: serde_json::Value) -> Result<()> {
        writeln!(self.file, "{record}")?;
        let text = |key: &str| record.get(key).map(ToString::to_string).unwrap_or_default().replace('"', "");
        println!(
            "{:10} {:32} {:16} #{} {}",
            text("group"),
            text("work"),
            text("backend"),
            text("repetition"),
            text("iops")
        );
        self.records.push(record);
        Ok(())
    }
}

/// The middle value; of an even number, the mean of both in the middle. NaN of none.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}
