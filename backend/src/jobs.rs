//! Background work of the container: growth, periodic commits, checkpoints, reclaim.
//!
//! One thread that calls `maintain` while there is work and sleeps otherwise. Invariant: after [`Maintenance::stop`]
//! nothing of it runs. Does not: decide what the work is (`pitstop_format`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pitstop_format::{Container, Maintained};

/// Longest sleep between looks for work; also how long stopping may take.
const PERIOD: Duration = Duration::from_millis(200);
/// Pause after a failure, so that a broken disk does not fill the log.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);

/// The running thread.
#[derive(Debug)]
pub(crate) struct Maintenance {
    stopping: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Maintenance {
    /// Starts the thread.
    pub(crate) fn start(container: Container) -> io::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let its_stopping = Arc::clone(&stopping);
        let body = move || maintain_until(&container, &its_stopping);
        let thread = thread::Builder::new().name("pit-maintain".to_owned()).spawn(body)?;
        Ok(Maintenance { stopping, thread })
    }

    /// Stops after the step under way.
    pub(crate) fn stop(self) {
        self.stopping.store(true, Ordering::Release);
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

fn maintain_until(container: &Container, stopping: &AtomicBool) {
    let mut failures = 0u32;
    while !stopping.load(Ordering::Acquire) {
        match container.maintain() {
            Ok(Maintained::Worked) => failures = 0,
            Ok(Maintained::Idle) => {
                failures = 0;
                container.wait_for_work(PERIOD);
            }
            Err(error) => {
                if failures == 0 {
                    log::error!("background work: {error}");
                }
                failures += 1;
                pause(FAILURE_PAUSE, stopping);
            }
        }
    }
}

fn pause(time: Duration, stopping: &AtomicBool) {
    let mut rest = time;
    while !rest.is_zero() && !stopping.load(Ordering::Acquire) {
        let step = rest.min(PERIOD);
        thread::sleep(step);
        rest -= step;
    }
}
