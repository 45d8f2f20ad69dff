//! What the tests of the daemon share: a container, a running `pitstopd`, and a guest without a VM.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "every test file uses its part of this, and tests may unwrap"
)]

pub mod client;
pub mod faulty;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pitstop_format::{Container, CreateOptions, Disk, FileDisk, OpenMode, VolumeIo};

/// Bytes in each test volume.
pub const VOLUME_LEN: u64 = 16 << 20;
/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Held while this process has a container open, and while it starts a child: between fork and exec the child would
/// hold the container's lock too.
static CONTAINER_OR_FORK: Mutex<()> = Mutex::new(());

fn container_or_fork() -> MutexGuard<'static, ()> {
    CONTAINER_OR_FORK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a container in this process while no child is started.
pub fn alone_with_container<T>(work: impl FnOnce() -> T) -> T {
    let _alone = container_or_fork();
    work()
}

/// A folder with a container and sockets.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// A container with these volumes, each of [`VOLUME_LEN`] bytes.
    pub fn with_volumes(names: &[&str]) -> Self {
        Self::with_options(names, &CreateOptions::default())
    }

    pub fn with_options(names: &[&str], options: &CreateOptions) -> Self {
        let folder = tempfile::Builder::new().prefix("pit").tempdir_in(scratch()).unwrap();
        let place = Place { folder };
        let _alone = container_or_fork();
        let disk = FileDisk::create(&place.container()).unwrap();
        Container::create(Arc::clone(&disk) as Arc<dyn Disk>, options).unwrap();
        let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
        for name in names {
            container.create_volume(name, VOLUME_LEN).unwrap();
        }
        container.close().unwrap();
        place
    }

    /// Opens the container, which no daemon holds, and changes it.
    pub fn change(&self, work: impl FnOnce(&Container)) {
        let _alone = container_or_fork();
        let disk = FileDisk::open(&self.container(), OpenMode::ReadWrite).unwrap();
        let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
        work(&container);
        container.close().unwrap();
    }

    pub fn container(&self) -> PathBuf {
        self.path("disks.pit")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// All bytes of a volume, read without the daemon (which must have ended).
    pub fn read_volume(&self, name: &str) -> Vec<u8> {
        let _alone = container_or_fork();
        let disk = FileDisk::open(&self.container(), OpenMode::ReadOnly).unwrap();
        let container = Container::open(disk, OpenMode::ReadOnly).unwrap();
        let mut bytes = vec![0; VOLUME_LEN as usize];
        VolumeIo::new(&container, container.volume(name).unwrap()).read_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Starts a daemon with one export a volume, each on a socket of the volume's name.
    pub fn serve(&self, volumes: &[&str], more: &[&str]) -> Daemon {
        let mut arguments = vec![self.container().display().to_string()];
        for volume in volumes {
            arguments.push("--export".into());
            arguments.push(format!("volume={volume},socket={}", self.path(volume).display()));
        }
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        let daemon = Daemon::start(&arguments);
        for volume in volumes {
            wait_until("socket", || is_listened_on(&self.path(volume)));
        }
        daemon
    }
}

/// Whether somebody listens at `path`, where a dead socket may have been before.
pub fn is_listened_on(path: &Path) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    // The daemon binds it in a folder beside, and links it when it listens.
    let (folder, name) = (text(path.parent().unwrap()), text(Path::new(path.file_name().unwrap())));
    let is_its_name = |bound: &str| bound.starts_with(&format!("{folder}/.")) && bound.ends_with(&format!("/{name}"));
    // Number, references, protocol, flags, type, state, inode, path; the flag is that of a listener.
    let is_it = |line: &str| {
        let mut columns = line.split_whitespace();
        columns.nth(3) == Some("00010000") && columns.nth(3).is_some_and(is_its_name)
    };
    path.exists() && sockets.lines().any(is_it)
}

/// A folder on a real file system, so that direct I/O is tested where there is any.
fn scratch() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}

/// A running `pitstopd`, killed when dropped.
pub struct Daemon {
    child: Child,
}

impl Daemon {
    pub fn start(arguments: &[String]) -> Self {
        Daemon { child: spawn(command().args(arguments)) }
    }

    /// Its messages go into the file `log`.
    pub fn start_logged(arguments: &[String], log: &Path) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        Daemon { child: spawn(command().args(arguments).stderr(log)) }
    }

    /// Whatever `command` starts.
    pub fn of(command: &mut Command) -> Self {
        Daemon { child: spawn(command) }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn terminate(mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    pub fn signal(&self, name: &str) {
        let number = match name {
            "TERM" => libc::SIGTERM,
            "INT" => libc::SIGINT,
            "KILL" => libc::SIGKILL,
            _ => panic!("signal {name}"),
        };
        // SAFETY: the child has not been waited for, so its number is still its own.
        assert_eq!(unsafe { libc::kill(self.pid() as i32, number) }, 0);
    }

    /// Waits for the end of a daemon that was told to.
    pub fn end(mut self) -> ExitStatus {
        self.wait()
    }

    pub fn wait(&mut self) -> ExitStatus {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(since.elapsed() < PATIENCE, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Open descriptors and threads.
    pub fn holdings(&self) -> (usize, usize) {
        let count = |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", self.pid())).unwrap().count();
        (count("fd"), count("task"))
    }

    /// Memory of its own, in bytes: without that of guests.
    pub fn own_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    /// Processor time used so far.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// `pitstopd` without arguments; its messages go where the test's go.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pitstopd"));
    command.stdin(Stdio::null());
    command
}

/// Starts a child that inherits nobody's container.
pub fn spawn(command: &mut Command) -> Child {
    let _alone = container_or_fork();
    command.spawn().unwrap()
}

/// Runs `pitstopd` to its end; returns exit code, standard output and standard error.
pub fn run(arguments: &[&str]) -> (i32, String, String) {
    let child = spawn(command().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A connection to the control socket.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    /// Events that came before an answer.
    events: Vec<serde_json::Value>,
}

impl Qmp {
    pub fn connect(path: &Path) -> Self {
        Self::try_connect(path).unwrap()
    }

    /// `None` if nobody listens, or the listener is about to die.
    pub fn try_connect(path: &Path) -> Option<Self> {
        let stream = UnixStream::connect(path).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut qmp = Qmp { reader: BufReader::new(stream), events: Vec::new() };
        assert!(qmp.try_receive()?["QMP"].is_object());
        let answer = qmp.try_ask("qmp_capabilities", serde_json::json!({}))?;
        assert!(answer.get("return").is_some(), "{answer}");
        Some(qmp)
    }

    /// Gives an order that must succeed.
    pub fn order(&mut self, command: &str, arguments: serde_json::Value) -> serde_json::Value {
        let answer = self.ask(command, arguments);
        assert!(answer.get("return").is_some(), "{command}: {answer}");
        answer["return"].clone()
    }

    /// Gives an order that must be refused; returns why.
    pub fn refused(&mut self, command: &str, arguments: serde_json::Value) -> String {
        let answer = self.ask(command, arguments);
        answer["error"]["desc"].as_str().unwrap_or_else(|| panic!("{command}: {answer}")).to_owned()
    }

    fn ask(&mut self, command: &str, arguments: serde_json::Value) -> serde_json::Value {
        self.try_ask(command, arguments).unwrap()
    }

    /// `None` if the daemon has gone before its whole answer was here.
    pub fn try_ask(&mut self, command: &str, arguments: serde_json::Value) -> Option<serde_json::Value> {
        let request = serde_json::json!({"execute": command, "arguments": arguments});
        self.reader.get_mut().write_all(request.to_string().as_bytes()).ok()?;
        loop {
            let answer = self.try_receive()?;
            if answer.get("event").is_none() {
                return Some(answer);
            }
            self.events.push(answer);
        }
    }

    /// The next event of that name; those before it are dropped.
    pub fn event(&mut self, name: &str) -> serde_json::Value {
        loop {
            let event = if self.events.is_empty() { self.receive() } else { self.events.remove(0) };
            if event["event"] == name {
                return event["data"].clone();
            }
        }
    }

    /// The next event: its name and data.
    #[allow(dead_code, reason = "not every test needs it")]
    pub fn next_event(&mut self) -> (String, serde_json::Value) {
        let event = if self.events.is_empty() { self.receive() } else { self.events.remove(0) };
        (event["event"].as_str().unwrap().to_owned(), event["data"].clone())
    }

    fn receive(&mut self) -> serde_json::Value {
        self.try_receive().unwrap()
    }

    fn try_receive(&mut self) -> Option<serde_json::Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line).ok()?;
        serde_json::from_str(line.strip_suffix('\n')?).ok()
    }
}

/// Waits until `done` says so.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A small random generator, so that a failure can be repeated.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len / 8).flat_map(|_| self.next().to_le_bytes()).collect()
    }

    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }
}
