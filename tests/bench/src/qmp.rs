//! A QMP client that does no more than the benchmark needs: one command at a time, events passed over.
//!
//! Speaks to `pitstopd` and to `qemu-storage-daemon` alike. Does not: reconnect.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Result;

/// Longest time for an answer: a peer may take long to delete a snapshot.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection whose capabilities are negotiated.
#[derive(Debug)]
pub(crate) struct Qmp(BufReader<UnixStream>);

impl Qmp {
    /// Connects to the control socket at `path`.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path)
            .map_err(|error| format!("cannot connect to the control socket {}: {error}", path.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self(BufReader::new(stream));
        qmp.message()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returns.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.0.get_mut().write_all(request.as_bytes())?;
        loop {
            let mut answer = self.message()?;
            if let Some(error) = answer.get("error") {
                return Err(format!("{command}: {error}").into());
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Runs a command and returns how long it took, in milliseconds.
    pub(crate) fn time(&mut self, command: &str, arguments: Value) -> Result<f64> {
        let begin = Instant::now();
        self.execute(command, arguments)?;
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err("the control socket was closed: see the daemon's messages".into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}
