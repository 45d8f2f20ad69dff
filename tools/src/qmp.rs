//! A small blocking QMP client for the daemon's control socket.
//!
//! Role: connect, negotiate, run one command at a time and hand back its result or the server's error.
//! Invariants: a call never waits longer than the time-out of the connection and never buffers more than
//! [`MESSAGE_LIMIT_BYTES`]; a reply is matched to its command by `id`, so a reply that comes after its call timed
//! out is not mistaken for the next one's.
//! It does not interpret results, does not deliver events (they are skipped), and does not reconnect.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

/// Longest message accepted from the server, in bytes.
const MESSAGE_LIMIT_BYTES: usize = 64 << 20;
/// Bytes asked of the socket at once.
const READ_LEN_BYTES: usize = 64 << 10;

/// Why a conversation with the daemon failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    /// The socket could not be connected.
    #[error("cannot connect to the daemon's control socket {path}: {source}; is pitstopd running?", path = .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The connection failed while in use.
    #[error("connection to the daemon failed: {0}")]
    Io(#[source] io::Error),
    /// The server closed the connection.
    #[error("the daemon closed the control connection while {waiting_for} was awaited; see its log")]
    Closed {
        /// What was awaited.
        waiting_for: String,
    },
    /// No answer within the time-out.
    #[error("the daemon did not send {waiting_for} within {seconds} s; it may be busy, see its log")]
    TimedOut {
        /// What was awaited.
        waiting_for: String,
        /// The time-out.
        seconds: f64,
    },
    /// A message longer than the limit.
    #[error("the daemon sent a message of more than {MESSAGE_LIMIT_BYTES} bytes")]
    MessageTooLong,
    /// Something that is not QMP.
    #[error("what answers on the control socket does not speak qmp: {detail}")]
    Protocol {
        /// What was received.
        detail: String,
    },
    /// The server refused the command; the text is the server's.
    #[error("{desc}")]
    Command {
        /// The error class, for instance `GenericError` or `CommandNotFound`.
        class: String,
        /// What went wrong, for people.
        desc: String,
    },
}

impl QmpError {
    /// Whether the server does not know the command: it is older than this program.
    pub(crate) fn is_command_not_found(&self) -> bool {
        matches!(self, Self::Command { class, .. } if class == "CommandNotFound")
    }
}

/// A negotiated connection to a QMP server.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    timeout: Duration,
    next_id: u64,
    greeting: Value,
    /// Bytes received and not yet consumed.
    input: Vec<u8>,
    /// How many bytes of `input` are known to hold no line end.
    scanned: usize,
}

impl Qmp {
    /// Connects to the server at `path` and negotiates. `timeout` bounds the connecting as a whole and, later,
    /// each command.
    pub(crate) fn connect(path: &Path, timeout: Duration) -> Result<Self, QmpError> {
        let started = Instant::now();
        let stream = connect_within(path, timeout)?;
        Self::negotiate(stream, timeout, started)
    }

    fn negotiate(stream: UnixStream, timeout: Duration, started: Instant) -> Result<Self, QmpError> {
        let mut qmp = Self { stream, timeout, next_id: 1, greeting: Value::Null, input: Vec::new(), scanned: 0 };
        let mut message = qmp.receive(started, "the greeting")?;
        if let Some(error) = message.get_mut("error") {
            return Err(command_error(error.take())); // for instance too many clients
        }
        match message.get_mut("QMP") {
            Some(greeting @ Value::Object(_)) => qmp.greeting = greeting.take(),
            _ => return Err(QmpError::Protocol { detail: format!("no greeting but {}", excerpt(&message)) }),
        }
        qmp.execute_by("qmp_capabilities", Value::Null, started)?;
        Ok(qmp)
    }

    /// The member `QMP` of the server's greeting: its version and capabilities.
    pub(crate) fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// Changes the longest time that a command may take.
    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Runs `command` and returns the member `return` of its reply. `arguments` is an object, or null for none.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_by(command, arguments, Instant::now())
    }

    fn execute_by(&mut self, command: &str, arguments: Value, started: Instant) -> Result<Value, QmpError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = Map::new();
        request.insert("execute".to_owned(), command.into());
        request.insert("id".to_owned(), id.into());
        if !arguments.is_null() {
            request.insert("arguments".to_owned(), arguments);
        }
        let waiting_for = format!("the reply to {command}");
        self.send(&Value::Object(request), started, &waiting_for)?;
        loop {
            let mut message = self.receive(started, &waiting_for)?;
            if message.get("event").is_some() {
                continue;
            }
            match message.get("id") {
                Some(found) if found.as_u64() == Some(id) => {}
                Some(_) => continue, // the late reply to a command that timed out
                None if message.get("error").is_some() => {} // refused before the id could be read
                None => {
                    return Err(QmpError::Protocol { detail: format!("no reply but {}", excerpt(&message)) });
                }
            }
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            return Err(match message.get_mut("error") {
                Some(error) => command_error(error.take()),
                None => QmpError::Protocol { detail: format!("no reply but {}", excerpt(&message)) },
            });
        }
    }

    fn send(&mut self, request: &Value, started: Instant, waiting_for: &str) -> Result<(), QmpError> {
        let mut line = request.to_string().into_bytes();
        line.extend_from_slice(b"\r\n");
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            self.stream.set_write_timeout(Some(self.remaining(started, waiting_for)?)).map_err(QmpError::Io)?;
            match self.stream.write(rest) {
                Ok(0) => return Err(QmpError::Closed { waiting_for: waiting_for.to_owned() }),
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) => self.transient(error, waiting_for)?,
            }
        }
        Ok(())
    }

    /// The next message, which is one line.
    fn receive(&mut self, started: Instant, waiting_for: &str) -> Result<Value, QmpError> {
        loop {
            if let Some(line) = self.take_line() {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return match serde_json::from_slice(&line) {
                    Ok(message @ Value::Object(_)) => Ok(message),
                    Ok(other) => Err(QmpError::Protocol { detail: excerpt(&other) }),
                    Err(error) => Err(QmpError::Protocol { detail: format!("malformed message: {error}") }),
                };
            }
            if self.input.len() > MESSAGE_LIMIT_BYTES {
                return Err(QmpError::MessageTooLong);
            }
            self.fill(started, waiting_for)?;
        }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let unseen = self.input.get(self.scanned..).unwrap_or_default();
        let Some(at) = unseen.iter().position(|&byte| byte == b'\n') else {
            self.scanned = self.input.len();
            return None;
        };
        let end = self.scanned + at + 1;
        self.scanned = 0;
        Some(self.input.drain(..end).collect())
    }

    fn fill(&mut self, started: Instant, waiting_for: &str) -> Result<(), QmpError> {
        let mut chunk = vec![0; READ_LEN_BYTES];
        self.stream.set_read_timeout(Some(self.remaining(started, waiting_for)?)).map_err(QmpError::Io)?;
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(QmpError::Closed { waiting_for: waiting_for.to_owned() }),
            Ok(len) => {
                self.input.extend_from_slice(chunk.get(..len).unwrap_or_default());
                Ok(())
            }
            Err(error) => self.transient(error, waiting_for),
        }
    }

    /// `Ok` when the call may be tried again.
    fn transient(&self, error: io::Error, waiting_for: &str) -> Result<(), QmpError> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Err(timed_out(waiting_for, self.timeout)),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                Err(QmpError::Closed { waiting_for: waiting_for.to_owned() })
            }
            _ => Err(QmpError::Io(error)),
        }
    }

    fn remaining(&self, started: Instant, waiting_for: &str) -> Result<Duration, QmpError> {
        match self.timeout.checked_sub(started.elapsed()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(timed_out(waiting_for, self.timeout)),
        }
    }
}

/// Connects in a thread of its own, because a connect to a full backlog blocks and takes no time-out. A thread that
/// is given up on ends with its connect.
fn connect_within(path: &Path, timeout: Duration) -> Result<UnixStream, QmpError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let target = path.to_owned();
    let spawned = thread::Builder::new().name("qmp-connect".to_owned()).spawn(move || {
        // The receiver is gone when the caller gave up: the connection then closes here.
        drop(sender.send(UnixStream::connect(&target)));
    });
    spawned.map_err(QmpError::Io)?;
    match receiver.recv_timeout(timeout) {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(QmpError::Connect { path: path.to_owned(), source }),
        Err(_) => Err(timed_out("an accepted connection", timeout)),
    }
}

fn timed_out(waiting_for: &str, timeout: Duration) -> QmpError {
    QmpError::TimedOut { waiting_for: waiting_for.to_owned(), seconds: timeout.as_secs_f64() }
}

fn command_error(error: Value) -> QmpError {
    let text = |name: &str| error.get(name).and_then(Value::as_str).map(str::to_owned);
    match (text("class"), text("desc")) {
        (Some(class), Some(desc)) => QmpError::Command { class, desc },
        _ => QmpError::Protocol { detail: format!("an error without class or text: {}", excerpt(&error)) },
    }
}

/// The first hundred characters of a message.
fn excerpt(message: &Value) -> String {
    let text = message.to_string();
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
#[path = "qmp_tests.rs"]
mod tests;
