//! A QMP client, just large enough to steer QEMU: one command at a time, events passed over.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

const ANSWER_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and leaves capabilities negotiation.
    pub(crate) fn connect(path: &Path) -> Self {
        let stream =
            UnixStream::connect(path).unwrap_or_else(|error| panic!("cannot connect to {}: {error}", path.display()));
        stream.set_read_timeout(Some(ANSWER_LIMIT)).expect("a socket takes a read timeout");
        let lines = BufReader::new(stream.try_clone().expect("a socket can be cloned"));
        let mut qmp = Self { stream, lines };
        let greeting = qmp.read();
        assert!(greeting.get("QMP").is_some(), "no QMP greeting: {greeting}");
        qmp.execute("qmp_capabilities");
        qmp
    }

    /// Executes a command without arguments and returns what it returns.
    pub(crate) fn execute(&mut self, command: &str) -> Value {
        let line = format!("{}\n", json!({ "execute": command }));
        self.stream.write_all(line.as_bytes()).unwrap_or_else(|error| panic!("cannot send {command}: {error}"));
        loop {
            let mut answer = self.read();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if let Some(value) = answer.get_mut("return") {
                return value.take();
            }
        }
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap_or_else(|error| panic!("no QMP answer: {error}"));
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("QMP answered {line:?}: {error}"))
    }
}
