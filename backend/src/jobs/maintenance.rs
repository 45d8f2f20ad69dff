//! Background work of the container: growth, periodic commits, checkpoints, reclaim, merges; and an eye on its health.
//!
//! One thread that calls `maintain` while there is work and sleeps otherwise, tells when the container has failed, and
//! warns before space runs out. Invariant: after [`Maintenance::stop`] nothing of it runs. Does not: decide what the work
//! is (`pitstop_format`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pitstop_format::{Container, Maintained};

use crate::daemon::{Daemon, Event};
use crate::events::Events;
use crate::space::{Change, Marks, SpaceMark, SpaceUse, Watch};

/// Longest sleep between looks for work; also how long stopping may take.
const PERIOD: Duration = Duration::from_millis(200);
/// Pause after a failure, so that a broken disk does not fill the log.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);

/// How often the use of space is looked at.
const SPACE_PERIOD: Duration = Duration::from_secs(1);

/// The running thread.
#[derive(Debug)]
pub(crate) struct Maintenance {
    stopping: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Maintenance {
    /// Starts the thread.
    pub(crate) fn start(daemon: &Daemon, marks: Marks) -> io::Result<Self> {
        let container = daemon.container().clone();
        let mut health = Health {
            container: container.clone(),
            events: Arc::clone(daemon.events()),
            watch: Watch::new(marks),
            mark: Arc::clone(daemon.space_mark()),
            looked: None,
            failed: false,
        };
        let stopping = Arc::new(AtomicBool::new(false));
        let its_stopping = Arc::clone(&stopping);
        let body = move || maintain_until(&container, &its_stopping, &mut health);
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

fn maintain_until(container: &Container, stopping: &AtomicBool, health: &mut Health) {
    let mut failures = 0u32;
    while !stopping.load(Ordering::Acquire) {
        health.look();
        match container.maintain() {
            Ok(Maintained::Worked) => failures = 0,
            Ok(Maintained::Idle) => {
                failures = 0;
                container.wait_for_work(PERIOD);
            }
            Err(error) => {
                // A failure of the container is told of by `health`.
                if failures == 0 && container.failure().is_none() {
                    log::error!("background work: {error}");
                }
                failures += 1;
                health.look();
                pause(FAILURE_PAUSE, stopping);
            }
        }
    }
}

/// What people should know of the container before it hurts.
struct Health {
    container: Container,
    events: Arc<Events>,
    watch: Watch,
    mark: Arc<SpaceMark>,
    looked: Option<Instant>,
    failed: bool,
}

impl Health {
    fn look(&mut self) {
        if !self.failed
            && let Some(reason) = self.container.failure()
        {
            self.failed = true;
            log::error!(
                "the container takes no more changes: {reason}; its guests get I/O errors for writes and flushes: mend \
                 the storage, then end this daemon and start it again, which recovers everything that was durable"
            );
            self.events.emit(&Event::ContainerFailed { reason });
        }
        if self.looked.is_none_or(|at| at.elapsed() >= SPACE_PERIOD) {
            self.looked = Some(Instant::now());
            self.look_at_space();
        }
    }

    fn look_at_space(&mut self) {
        let space = match self.container.space() {
            Ok(space) => SpaceUse::from(space),
            Err(error) => return log::debug!("{error}"),
        };
        let change = self.watch.look(space);
        self.mark.set(self.watch.reached());
        let mib = space.available_bytes.unwrap_or(0) >> 20;
        match change {
            Some(Change::Reached(mark)) => {
                log::warn!(
                    "{} % of what the container can hold is used, {mib} MiB are left: make room on its file system, or \
                     delete volumes",
                    space.used_percent
                );
                self.events.emit(&Event::SpaceWarning { mark, space });
            }
            Some(Change::Below) => {
                log::info!("{mib} MiB are left for the container, which is enough again");
                self.events.emit(&Event::SpaceOk { space });
            }
            None => {}
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
