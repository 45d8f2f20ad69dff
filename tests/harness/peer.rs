//! QEMU's own vhost-user-blk export over a raw file: the backend that ours is compared with.
//!
//! It also proves this harness: a test that fails here is not the daemon's fault.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::find::system_program;
use crate::process::{Background, wait_until};
use crate::scratch::Scratch;

const START_LIMIT: Duration = Duration::from_secs(10);

/// A running qemu-storage-daemon with one export. Dropping it kills it.
#[derive(Debug)]
pub struct StorageDaemon {
    process: Background,
}

impl StorageDaemon {
    /// Serves the raw file `image` at `socket`.
    pub fn serve(scratch: &Scratch, image: &Path, socket: &Path, queues: u16) -> Self {
        let mut command = Command::new(system_program("qemu-storage-daemon"));
        command
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=disk,discard=unmap,filename={}", image.display()))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={queues},\
                 addr.type=unix,addr.path={}",
                socket.display()
            ));
        let log = scratch.file("qemu-storage-daemon.log");
        let mut process = Background::spawn("qemu-storage-daemon", &mut command, log);
        wait_until(
            START_LIMIT,
            || (socket.exists() || process.ended().is_some()).then_some(()),
            || "qemu-storage-daemon made no socket".to_owned(),
        );
        assert!(socket.exists(), "no export\n{}", process.log_tail());
        Self { process }
    }

    /// Ends it and waits; its file is complete then.
    pub fn stop(self) {
        self.process.terminate(START_LIMIT);
    }
}
