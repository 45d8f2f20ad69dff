//! The QMP client that people use, PyPI `qemu.qmp`, against the server with a fake daemon.
//!
//! Needs the environment that `tests/setup.sh` makes; without it the test fails and says so.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use super::ControlServer;
use super::fake::FakeTarget;

const LIMIT: Duration = Duration::from_secs(60);

/// The interpreter of the environment with `qemu.qmp`: `PITSTOP_QMP_PYTHON`, or where `tests/setup.sh` puts it.
fn python() -> PathBuf {
    if let Some(python) = env::var_os("PITSTOP_QMP_PYTHON") {
        return python.into();
    }
    let workspace = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let target = env::var_os("CARGO_TARGET_DIR").map(|dir| workspace.join(dir));
    let places = [target, Some(workspace.join("target"))].into_iter().flatten();
    let candidates: Vec<_> = places.map(|place| place.join("qmp-venv/bin/python")).collect();
    match candidates.iter().find(|python| python.exists()) {
        Some(python) => python.clone(),
        None => panic!("no Python with qemu.qmp in {candidates:?}: run tests/setup.sh, or set PITSTOP_QMP_PYTHON"),
    }
}

/// CTL-4 to CTL-9, CTL-29, CTL-45: `tests/qmp/drive.py` says what it checks.
#[test]
fn the_python_client_and_qmp_shell_drive_the_server() {
    let target = FakeTarget::new();
    let server = ControlServer::start(&target.socket(), target.clone()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/qmp/drive.py");
    let mut child = Command::new(python())
        .args([script.as_ref(), target.socket().as_os_str(), target.folder.path().as_os_str()])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    let mut server = Some(server);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("drive.py did not end within {LIMIT:?}");
        }
        if target.is_shut_down() {
            drop(server.take()); // as the daemon does; the clients see their connections end
        }
        thread::sleep(Duration::from_millis(10));
    };
    assert!(status.success(), "drive.py: {status}");
    assert!(target.is_shut_down(), "drive.py must end with quit");
}
