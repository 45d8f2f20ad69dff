//! What the storage does to an export's requests: who waits for space, and what the log and the clients hear of it.
//!
//! Invariant: a request that begins to wait for space is counted until it ends, and the export is told of as starved, or
//! as going on, exactly when that count leaves or reaches zero, in the order in which that happens. Does not: decide which request waits (`dataplane`).

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pitstop_format::Volume;

use crate::config::OnNoSpace;
use crate::daemon::Event;
use crate::events::Events;
use crate::virtio::request::RequestError;

/// What a request does to the disk, in QEMU's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// It reads.
    Read,
    /// It changes something, or makes changes durable.
    Write,
}

/// What became of a request that the storage failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// The guest was told.
    Report,
    /// It waits for space.
    Stop,
}

/// One export's troubles.
#[derive(Debug)]
pub(crate) struct Trouble {
    export: String,
    volume: Volume,
    policy: OnNoSpace,
    /// Held while its change is told of: two queues' news must not overtake each other.
    starved: Mutex<usize>,
    events: Arc<Events>,
}

impl Trouble {
    /// None yet.
    pub(crate) fn new(export: &str, volume: Volume, policy: OnNoSpace, events: Arc<Events>) -> Arc<Self> {
        Arc::new(Trouble { export: export.to_owned(), volume, policy, starved: Mutex::new(0), events })
    }

    /// Whether requests that lack space wait.
    pub(crate) fn policy(&self) -> OnNoSpace {
        self.policy
    }

    /// Requests that wait for space.
    pub(crate) fn starved(&self) -> usize {
        *self.counted()
    }

    fn counted(&self) -> MutexGuard<'_, usize> {
        self.starved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request waits for space from now on.
    pub(crate) fn starves(&self, reason: &str) {
        let mut starved = self.counted();
        *starved += 1;
        if *starved == 1 {
            log::warn!(
                "export {}: {reason}; its writes wait until there is space (on-enospc=stop), and fail if the guest \
                 is disconnected before",
                self.export
            );
            self.tell(Operation::Write, Action::Stop, true, reason.to_owned());
        }
    }

    /// A request that had waited for space has ended.
    pub(crate) fn no_longer_starves(&self) {
        let mut starved = self.counted();
        *starved -= 1;
        if *starved == 0 {
            log::info!("export {}: no request waits for space any more", self.export);
            self.events.emit(&Event::ExportResumed { id: self.export.clone() });
        }
    }

    /// A request has failed, and the guest is told.
    pub(crate) fn failed(&self, operation: Operation, error: &RequestError) {
        self.tell(operation, Action::Report, is_no_space(error), error.to_string());
    }

    fn tell(&self, operation: Operation, action: Action, no_space: bool, reason: String) {
        self.events.emit(&Event::IoError {
            id: self.export.clone(),
            volume: self.volume.name(),
            operation,
            action,
            no_space,
            reason,
        });
    }
}

/// Whether the error says that there was no room for what the request would write.
pub(crate) fn is_no_space(error: &RequestError) -> bool {
    match error {
        RequestError::Format(pitstop_format::Error::NoSpace { .. }) => true,
        RequestError::Io(error) => lacks_space(error),
        _ => false,
    }
}

/// No space, no quota, or a limit on the length of files.
pub(crate) fn lacks_space(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG))
}

#[cfg(test)]
mod tests {
    use pitstop_format::{Container, CreateOptions, FileDisk, OpenMode};

    use super::*;

    // rule: CTL-54
    #[test]
    fn queues_that_wait_and_go_on_at_once_are_told_of_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let disk = FileDisk::create(&folder.path().join("d.pit")).unwrap();
        Container::create(disk.clone(), &CreateOptions::default()).unwrap();
        let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
        container.create_volume("v", 1 << 20).unwrap();
        let events = Arc::<Events>::default();
        let receiver = events.subscribe();
        let trouble = Trouble::new("v", container.volume("v").unwrap(), OnNoSpace::Stop, events);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        trouble.starves("full");
                        trouble.no_longer_starves();
                    }
                });
            }
        });
        assert_eq!(trouble.starved(), 0);
        let waits: Vec<bool> = receiver.try_iter().map(|event| matches!(event, Event::IoError { .. })).collect();
        assert!(!waits.is_empty() && waits.len().is_multiple_of(2));
        assert!(waits.chunks(2).all(|pair| pair == [true, false]), "going on was told before waiting");
    }

    #[test]
    fn only_a_lack_of_room_is_no_space() {
        let of = |code| is_no_space(&RequestError::Io(io::Error::from_raw_os_error(code)));
        assert!(of(libc::ENOSPC) && of(libc::EDQUOT) && of(libc::EFBIG));
        assert!(!of(libc::EIO) && !of(libc::ENOMEM));
        assert!(is_no_space(&RequestError::Format(pitstop_format::Error::NoSpace { detail: String::new() })));
        assert!(!is_no_space(&RequestError::ReadOnly));
    }
}
