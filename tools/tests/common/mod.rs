//! What the whole-command tests share: a folder of their own, the command, and qemu-img.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses a part of it, and a test may panic")]

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder with a container.
pub(crate) struct Pit {
    folder: tempfile::TempDir,
    pub(crate) container: PathBuf,
}

impl Pit {
    /// A folder with an empty container `disks.pit`.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let container = folder.path().join("disks.pit");
        let pit = Self { folder, container };
        pit.ok(&["create", "disks.pit"]);
        pit
    }

    /// A path in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command, to be run in the folder.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pitstop"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Runs the command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs the command, which must do its work; returns what it printed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "pitstop {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs the command, which must print JSON.
    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[args, &["--output", "json"]].concat())).unwrap()
    }

    /// Runs the command, which must fail with exit code 1 and one line of explanation, which is returned.
    pub(crate) fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "pitstop {args:?}: {stderr}");
        let message = stderr.strip_prefix("pitstop: ").unwrap_or_else(|| panic!("no 'pitstop: ' in {stderr}"));
        assert_eq!(message.lines().count(), 1, "{message}");
        message.trim_end().to_owned()
    }

    /// Names of the volumes.
    pub(crate) fn names(&self) -> Vec<String> {
        let volumes = self.json(&["list", "disks.pit"]);
        volumes.as_array().unwrap().iter().map(|volume| volume["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Runs a tool of QEMU in the folder; a machine without it fails the test.
    pub(crate) fn qemu(&self, tool: &str, args: &[&str]) -> String {
        let output = Command::new(tool)
            .args(args)
            .current_dir(self.folder.path())
            .output()
            .unwrap_or_else(|error| panic!("{tool} is needed for this test (package qemu-utils): {error}"));
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{tool} {args:?}: {text}");
        text
    }

    /// `qemu-img compare` must find both images identical.
    pub(crate) fn identical(&self, (format, file): (&str, &str), (other_format, other): (&str, &str)) {
        let text = self.qemu("qemu-img", &["compare", "-f", format, "-F", other_format, file, other]);
        assert!(text.contains("identical"), "{text}");
    }

    /// Writes patterns into an image: (pattern, offset, length) in qemu-io's notation.
    pub(crate) fn patterns(&self, format: &str, file: &str, writes: &[(u8, &str, &str)]) {
        let commands: Vec<String> =
            writes.iter().map(|(byte, at, len)| format!("write -P {byte} {at} {len}")).collect();
        let mut args = vec!["-f", format];
        for command in &commands {
            args.extend(["-c", command.as_str()]);
        }
        args.push(file);
        let text = self.qemu("qemu-io", &args);
        assert!(!text.contains("failed"), "{text}");
    }

    /// A sparse file of `len` bytes with `pieces` (offset, bytes) written.
    pub(crate) fn sparse(&self, name: &str, len: u64, pieces: &[(u64, &[u8])]) {
        let file = File::create(self.path(name)).unwrap();
        file.set_len(len).unwrap();
        for (offset, bytes) in pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
    }
}

/// Bytes that a file occupies.
pub(crate) fn occupied(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// Bytes that no compression or zero detection can leave out.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
