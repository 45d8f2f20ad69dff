//! Processes: run to their end, or kept in the background and ended with their handle.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const LOG_TAIL_BYTES: usize = 4096;
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// Within this a command must end. Less than a test may take, so that the test can tell.
const RUN_LIMIT: Duration = Duration::from_secs(60);

/// Runs a command to its end and returns its standard output.
///
/// # Panics
/// When it cannot be started or does not exit with 0; the message holds what it printed.
pub fn run(command: &mut Command) -> String {
    let output = output_of(command);
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command to its end, whatever it says.
///
/// # Panics
/// When it cannot be started, or has not ended within [`RUN_LIMIT`]; then it is killed.
pub(crate) fn output_of(command: &mut Command) -> Output {
    // Files, not pipes: however much it prints, it can end, and there is a log if it does not.
    let folder = tempfile::tempdir().expect("a folder for a command's output can be made");
    let (out, errors) = (folder.path().join("out"), folder.path().join("errors"));
    let create = |path: &Path| File::create(path).expect("a file for output can be made");
    let child = command
        .stdin(Stdio::null())
        .stdout(create(&out))
        .stderr(create(&errors))
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let mut process = Background { name: format!("{command:?}"), child, log: errors.clone() };
    let status = process.wait(RUN_LIMIT);
    Output {
        status,
        stdout: fs::read(&out).expect("a command's output can be read"),
        stderr: fs::read(&errors).expect("a command's errors can be read"),
    }
}

/// Calls `ready` until it returns something.
///
/// # Panics
/// After `limit`, with the message that `explain` gives.
pub(crate) fn wait_until<T>(
    limit: Duration,
    mut ready: impl FnMut() -> Option<T>,
    explain: impl FnOnce() -> String,
) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < end, "{} (waited {limit:?})", explain());
        thread::sleep(POLL_INTERVAL);
    }
}

/// A process in the background whose output goes to a log file. Dropping the handle kills it.
#[derive(Debug)]
pub struct Background {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Background {
    /// Starts `command` with no standard input and all output in the file `log`.
    pub fn spawn(name: &str, command: &mut Command, log: PathBuf) -> Self {
        let out = File::create(&log).unwrap_or_else(|error| panic!("cannot make {}: {error}", log.display()));
        let errors = out.try_clone().expect("a log's handle can be cloned");
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { name: name.to_owned(), child, log }
    }

    /// Process id, for reading its figures in /proc.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of what it printed, for failure messages.
    pub fn log_tail(&self) -> String {
        format!("--- log of {}:\n{}", self.name, tail(&self.log))
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child's status can be read")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < end, "{} still runs after {limit:?}\n{}", self.name, self.log_tail());
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Panics
    /// When it does not exit with 0 within `limit`.
    pub fn terminate(mut self, limit: Duration) {
        self.signal(Signal::TERM);
        let status = self.wait(limit);
        assert!(status.success(), "{} ended with {status} after SIGTERM\n{}", self.name, self.log_tail());
    }

    /// Kills it (SIGKILL) and waits.
    pub fn kill(mut self) {
        self.kill_now();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // A child that was not waited for keeps its id, so this can hit no other process.
        if let Err(error) = kill_process(Pid::from_child(&self.child), signal) {
            eprintln!("signal {signal:?} for {}: {error}", self.name);
        }
    }

    fn kill_now(&mut self) {
        if self.ended().is_none() {
            self.signal(Signal::KILL);
            if let Err(error) = self.child.wait() {
                eprintln!("waiting for {}: {error}", self.name);
            }
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.kill_now();
    }
}

/// The last few KiB of a text file.
pub(crate) fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let start = bytes.len().saturating_sub(LOG_TAIL_BYTES);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}
