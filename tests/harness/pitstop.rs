//! The command `pitstop` and the daemon `pitstopd`, as their user starts them.

use std::ffi::OsStr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::find::{pitstop_program, system_program};
use crate::process::{Background, output_of, run, wait_until};
use crate::scratch::Scratch;

const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How long the kernel may still work on what a stopped daemon had submitted.
const SETTLE_TIME: Duration = Duration::from_millis(50);

/// The command on one container.
#[derive(Debug, Clone)]
pub struct Pitstop {
    container: PathBuf,
}

/// A command that failed, as it should.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: i32,
    /// Standard error.
    pub message: String,
}

impl Pitstop {
    /// The command on the container at `container`, which need not exist.
    pub fn on(container: impl Into<PathBuf>) -> Self {
        Self { container: container.into() }
    }

    /// The container's path.
    pub fn container(&self) -> &Path {
        &self.container
    }

    /// The command line `pitstop VERB... CONTAINER ARGUMENTS...`, with `verb` split at blanks.
    pub fn command<S: AsRef<OsStr>>(&self, verb: &str, arguments: &[S]) -> Command {
        let mut command = Command::new(pitstop_program("pitstop"));
        command.args(verb.split_whitespace()).arg(&self.container).args(arguments);
        command
    }

    /// Runs a verb that must succeed and returns its standard output.
    ///
    /// # Panics
    /// When it does not exit with 0.
    pub fn run<S: AsRef<OsStr>>(&self, verb: &str, arguments: &[S]) -> String {
        run(&mut self.command(verb, arguments))
    }

    /// Like [`Pitstop::run`], with the time that the command took from start to end.
    pub fn timed<S: AsRef<OsStr>>(&self, verb: &str, arguments: &[S]) -> (String, Duration) {
        let mut command = self.command(verb, arguments);
        let start = Instant::now();
        let output = run(&mut command);
        (output, start.elapsed())
    }

    /// Runs a verb with `--output json` and parses what it prints.
    pub fn json<S: AsRef<OsStr>>(&self, verb: &str, arguments: &[S]) -> Value {
        let mut command = self.command(verb, arguments);
        let text = run(command.args(["--output", "json"]));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command:?} printed no JSON: {error}\n{text}"))
    }

    /// Runs a verb that must fail with a message.
    ///
    /// # Panics
    /// When it exits with 0, is killed by a signal, panics, or says nothing.
    pub fn fails<S: AsRef<OsStr>>(&self, verb: &str, arguments: &[S]) -> Failure {
        failure_of(&mut self.command(verb, arguments))
    }

    /// Asserts that the container's structure is sound and nothing leaks.
    pub fn assert_clean(&self) {
        self.run::<&str>("check", &[]);
    }

    /// The exit code of a `check` that does not end with 0.
    pub fn fails_check(&self) -> i32 {
        let output = output_of(&mut self.command::<&str>("check", &[]));
        output.status.code().expect("check is killed by nobody")
    }

    /// Asserts that `check` finds damage (exit code 2) or cannot check (1), and says what.
    pub fn assert_not_sound(&self) {
        let mut command = self.command::<&str>("check", &[]);
        let output = output_of(&mut command);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!([Some(1), Some(2)].contains(&output.status.code()), "{command:?} ended with {}\n{said}", output.status);
        assert!(!said.trim().is_empty(), "{command:?} says nothing");
    }
}

/// Runs a command that must fail with a message.
pub(crate) fn failure_of(command: &mut Command) -> Failure {
    let output = output_of(command);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = String::from_utf8_lossy(&output.stdout);
    let code =
        output.status.code().unwrap_or_else(|| panic!("{command:?} was killed: {}\n{said}{message}", output.status));
    assert_ne!(code, 0, "{command:?} succeeded\n{said}{message}");
    assert!(code != 101 && !message.contains("panicked at"), "{command:?} panicked\n{message}");
    assert!(!message.trim().is_empty(), "{command:?} fails in silence");
    Failure { code, message }
}

/// One volume that the daemon serves.
#[derive(Debug, Clone)]
pub struct Export {
    volume: String,
    socket: PathBuf,
    options: &'static str,
}

impl Export {
    /// `volume` at `socket`, writable.
    pub fn writable(volume: &str, socket: impl Into<PathBuf>) -> Self {
        Self { volume: volume.to_owned(), socket: socket.into(), options: "" }
    }

    /// `volume` at `socket`, for reading only.
    pub fn read_only(volume: &str, socket: impl Into<PathBuf>) -> Self {
        Self { options: ",readonly=on", ..Self::writable(volume, socket) }
    }

    fn argument(&self) -> String {
        let socket = self.socket.display();
        format!("volume={},socket={socket}{}", self.volume, self.options)
    }
}

/// A running daemon. Dropping it kills it, as a crash would; [`Pitstopd::stop`] ends it well.
#[derive(Debug)]
pub struct Pitstopd {
    process: Background,
}

impl Pitstopd {
    /// Starts the daemon and waits for its sockets; its control socket is `control` in `scratch`.
    ///
    /// # Panics
    /// When it ends, or the sockets do not come; the message holds its log.
    pub fn serve(scratch: &Scratch, container: &Path, exports: &[Export]) -> Self {
        let control = scratch.socket("control");
        let mut command = daemon_command(container, exports, &control);
        let log = scratch.file("pitstopd.log");
        let mut process = Background::spawn("pitstopd", &mut command, log);
        let sockets: Vec<&Path> = exports.iter().map(|export| &*export.socket).collect();
        let up = wait_until(
            START_LIMIT,
            || {
                if process.ended().is_some() {
                    return Some(false);
                }
                let all = sockets.iter().all(|socket| socket.exists());
                (all && UnixStream::connect(&control).is_ok()).then_some(true)
            },
            || "pitstopd made no sockets".to_owned(),
        );
        assert!(up, "pitstopd ended at its start\n{}", process.log_tail());
        Self { process }
    }

    /// Runs a daemon that must fail at its start with a message.
    pub fn fails(container: &Path, exports: &[Export], control: &Path) -> Failure {
        failure_of(&mut daemon_command(container, exports, control))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Copies the container's file as a crash at this instant would leave it: the daemon is held
    /// (SIGSTOP) while the copy is made, and goes on afterwards.
    pub fn copy_container_at_once(&self, container: &Path, copy: &Path) {
        self.process.signal(Signal::STOP);
        thread::sleep(SETTLE_TIME);
        let copied =
            output_of(Command::new(system_program("cp")).args(["--sparse=always", "--"]).arg(container).arg(copy));
        self.process.signal(Signal::CONT);
        assert!(copied.status.success(), "cannot copy {}", container.display());
    }

    /// Ends it with SIGTERM.
    ///
    /// # Panics
    /// When it does not drain, commit and exit with 0 in time.
    pub fn stop(self) {
        self.process.terminate(STOP_LIMIT);
    }

    /// Kills it: what was not durable is lost.
    pub fn kill(self) {
        self.process.kill();
    }
}

fn daemon_command(container: &Path, exports: &[Export], control: &Path) -> Command {
    let mut command = Command::new(pitstop_program("pitstopd"));
    command.arg(container).arg("--control").arg(control);
    for export in exports {
        command.arg("--export").arg(export.argument());
    }
    command.env("PITSTOP_LOG", "info");
    command
}
