//! Commands in a guest: sent over its second serial port to `tests/guest/agent`.
//!
//! One command runs at a time. What the kernel prints goes to the first port and cannot be
//! mistaken for an answer.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const READY: &str = "@@READY@@";
const READ_TIMEOUT: Duration = Duration::from_millis(100);

/// What a command in the guest gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Exit status.
    pub status: i32,
    /// Standard output and errors, without blanks at the ends.
    pub text: String,
}

/// Why an answer did not come.
#[derive(Debug)]
pub(crate) enum AgentError {
    /// Nothing more came within the limit; what had come so far.
    Timeout(String),
    /// The port was closed: the guest's machine is off.
    Closed(String),
}

/// The harness's end of the second serial port.
#[derive(Debug)]
pub(crate) struct Agent {
    stream: UnixStream,
    pending: Vec<u8>,
    number: u32,
}

impl Agent {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(READ_TIMEOUT)).expect("a socket takes a read timeout");
        Self { stream, pending: Vec::new(), number: 0 }
    }

    /// Waits until the guest has started its end.
    pub(crate) fn wait_ready(&mut self, limit: Duration) -> Result<(), AgentError> {
        self.read_to(READY, limit).map(drop)
    }

    /// Sends a command without waiting for its answer.
    pub(crate) fn send(&mut self, command: &str) -> Result<(), AgentError> {
        self.number += 1;
        let line = format!("{} {}\n", self.number, base64(command.as_bytes()));
        self.stream.write_all(line.as_bytes()).map_err(|error| AgentError::Closed(error.to_string()))
    }

    /// Waits for the answer to the command sent last.
    pub(crate) fn receive(&mut self, limit: Duration) -> Result<Reply, AgentError> {
        let end = Instant::now() + limit;
        let text = self.read_to(&format!("@@END {} ", self.number), limit)?;
        let left = end.saturating_duration_since(Instant::now());
        let status = self.read_to("@@", left.max(READ_TIMEOUT))?;
        Ok(Reply {
            status: status.parse().unwrap_or_else(|_| panic!("the guest answered with status {status:?}")),
            text: text.trim().to_owned(),
        })
    }

    /// Reads up to `marker`, returns what came before it and drops the marker.
    fn read_to(&mut self, marker: &str, limit: Duration) -> Result<String, AgentError> {
        let end = Instant::now() + limit;
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = find(&self.pending, marker.as_bytes()) {
                let text = String::from_utf8_lossy(&self.pending[..at]).into_owned();
                self.pending.drain(..at + marker.len());
                return Ok(text);
            }
            if Instant::now() >= end {
                return Err(AgentError::Timeout(self.pending_text()));
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(AgentError::Closed(self.pending_text())),
                Ok(count) => self.pending.extend_from_slice(&buffer[..count]),
                Err(error) if is_temporary(error.kind()) => {}
                Err(error) => return Err(AgentError::Closed(error.to_string())),
            }
        }
    }

    fn pending_text(&self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

fn is_temporary(kind: ErrorKind) -> bool {
    kind == ErrorKind::WouldBlock || kind == ErrorKind::TimedOut || kind == ErrorKind::Interrupted
}

fn find(text: &[u8], marker: &[u8]) -> Option<usize> {
    text.windows(marker.len()).position(|part| part == marker)
}

/// Base64 with padding (RFC 4648), so that a command of several lines travels as one.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group.iter().chain([0, 0].iter()).take(3).fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
        for index in 0..4 {
            if index <= group.len() {
                let digit = word >> (18 - 6 * index) & 63;
                text.push(char::from(DIGITS[digit as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_agrees_with_the_examples_of_rfc_4648() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }
}
