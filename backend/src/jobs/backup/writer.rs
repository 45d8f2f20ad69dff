//! The thread that writes a backup's files.
//!
//! Job steps hand it pieces and never wait for it, so that a target that is slow, or hangs, holds up nobody but its own
//! backup (BAK-12). Invariant: what was handed over is written in order; a piece that could not be written stays the first
//! until it is; files get their names only as the last piece. Does not: read the container, or hold anything of it.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use pitstop_format::addendum::{AddendumWriter, Piece};

use super::super::target::{Target, name_files};
use super::Trouble;
use crate::daemon::lock;

/// Bytes that are handed over and not written, at most, but for one piece.
const MOST_BEHIND: u64 = 8 << 20;
/// After so many bytes what was written is made durable: on one file system, the container's own syncs and growth may have to
/// wait for what the target has not on disk yet, and guests for those; and so that the end does not take long.
const SYNC_AFTER: u64 = 8 << 20;

/// Files in the making.
pub(super) struct Files {
    pub(super) target: Option<Target>,
    pub(super) addendum: Option<(Target, AddendumWriter)>,
}

/// Something to write.
#[derive(Debug)]
pub(super) enum Order {
    /// Bytes of the volume, to the target, but for blocks of zeros.
    Bulk(u64, Vec<u8>),
    /// A range's bytes, to the addendum, or over the target if there is none.
    Data(u64, Vec<u8>),
    /// A range that is so many zeros.
    Zeros(u64, u64),
    /// The files are complete: makes them durable and gives them their names.
    Finish,
}

/// How far the thread is.
#[derive(Debug)]
pub(super) enum Ready {
    /// There is room for a piece.
    Room,
    /// There is none for the moment.
    Behind,
    /// The files have their names.
    Done,
}

/// Hands pieces to the thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What is to be written, besides what is under way.
    orders: VecDeque<Order>,
    /// Bytes that were handed over and are not written.
    behind_bytes: u64,
    /// Why the first could not be written, until somebody has been told.
    trouble: Option<Trouble>,
    /// The first waits to be tried again.
    stalled: bool,
    abandoned: bool,
    done: bool,
    /// The thread has ended, and the files are gone or have their names.
    gone: bool,
}

impl Order {
    fn len(&self) -> u64 {
        match self {
            Self::Bulk(_, data) | Self::Data(_, data) => data.len() as u64,
            Self::Zeros(_, len) => *len,
            Self::Finish => 0,
        }
    }
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(files: Files) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let its_shared = Arc::clone(&shared);
        // Nobody waits for its end for long: a store that hangs may never let it go.
        thread::Builder::new().name("pit-backup".to_owned()).spawn(move || {
            let _end = End(&its_shared);
            write_all(&its_shared, files);
        })?;
        Ok(Self { shared })
    }

    /// Whether there is room. An error is told once; asked again, the thread tries again.
    pub(super) fn ready(&self) -> Result<Ready, Trouble> {
        let mut state = lock(&self.shared.state);
        if let Some(trouble) = state.trouble.take() {
            return Err(trouble);
        }
        if state.done {
            return Ok(Ready::Done);
        }
        if state.gone {
            return Err(Trouble::Hopeless("the thread that writes the target has ended".to_owned()));
        }
        if std::mem::take(&mut state.stalled) {
            self.shared.changed.notify_all();
            return Ok(Ready::Behind);
        }
        Ok(if state.behind_bytes < MOST_BEHIND { Ready::Room } else { Ready::Behind })
    }

    /// Hands something over.
    pub(super) fn put(&self, order: Order) {
        let mut state = lock(&self.shared.state);
        state.behind_bytes += order.len();
        state.orders.push_back(order);
        self.shared.changed.notify_all();
    }

    /// No piece is begun any more, and unfinished files are removed as soon as their storage answers; false if they are
    /// complete.
    pub(super) fn abandon(&self) -> bool {
        let mut state = lock(&self.shared.state);
        state.abandoned |= !state.done;
        self.shared.changed.notify_all();
        state.abandoned
    }

    /// Waits until the thread has ended, for `most` at most; true if it has.
    pub(super) fn wait_gone(&self, most: Duration) -> bool {
        let until = Instant::now() + most;
        let mut state = lock(&self.shared.state);
        while !state.gone {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return false;
            }
            state = wait(&self.shared, state, Some(rest));
        }
        true
    }
}

fn wait<'a>(shared: &Shared, state: MutexGuard<'a, State>, most: Option<Duration>) -> MutexGuard<'a, State> {
    let most = most.unwrap_or(Duration::from_secs(3600));
    shared.changed.wait_timeout(state, most).unwrap_or_else(std::sync::PoisonError::into_inner).0
}

/// Tells that the thread has ended, however it has.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).gone = true;
        self.0.changed.notify_all();
    }
}

/// What the thread does.
fn write_all(shared: &Shared, mut files: Files) {
    let mut unsynced = 0;
    let mut state = lock(&shared.state);
    while !state.abandoned {
        let next = if state.stalled { None } else { state.orders.pop_front() };
        let Some(order) = next else {
            state = wait(shared, state, None);
            continue;
        };
        drop(state);
        let mut written = files.write(&order, &mut unsynced);
        state = lock(&shared.state);
        if written.is_ok() && matches!(order, Order::Finish) && !state.abandoned {
            drop(state);
            let named = files.name();
            state = lock(&shared.state);
            match named {
                Ok(named) => {
                    state.done = !state.abandoned;
                    drop(state);
                    // Given up at the last moment: who was told so finds none.
                    return remove_unless_done(shared, &named);
                }
                Err(trouble) => written = Err(trouble),
            }
        }
        match written {
            Ok(()) => state.behind_bytes -= order.len(),
            Err(trouble) => {
                state.orders.push_front(order);
                (state.trouble, state.stalled) = (Some(trouble), true);
            }
        }
    }
    drop(state);
}

/// Removes files that have their names, the target first, if the backup was given up meanwhile.
fn remove_unless_done(shared: &Shared, named: &[PathBuf]) {
    if lock(&shared.state).done {
        return;
    }
    for path in named.iter().rev() {
        if let Err(error) = std::fs::remove_file(path) {
            log::warn!("the backup was given up, but '{}' stays: {error}", path.display());
        }
    }
}

/// An error of a file of ours.
fn cannot_write(target: &Target) -> impl FnOnce(io::Error) -> Trouble + use<'_> {
    move |error| Trouble::Failed(format!("cannot write '{}': {error}", target.path().display()))
}

/// What was not made durable may be gone though a second sync succeeds (design rule 14): it must be written anew.
fn cannot_sync(target: &Target) -> impl FnOnce(io::Error) -> Trouble + use<'_> {
    move |error| Trouble::Hopeless(format!("cannot make '{}' durable: {error}; back up again", target.path().display()))
}

impl Files {
    fn write(&mut self, order: &Order, unsynced: &mut u64) -> Result<(), Trouble> {
        *unsynced += match (order, &mut self.addendum, &self.target) {
            (Order::Finish, ..) => return self.make_durable(),
            (Order::Bulk(at, data), _, Some(target)) => {
                target.write_sparsely(data, *at).map_err(cannot_write(target))?;
                order.len()
            }
            (Order::Data(at, data), Some((file, writer)), _) => {
                writer.put(file.file(), *at, Piece::Data(data)).map_err(cannot_write(file))?;
                order.len()
            }
            (Order::Zeros(at, len), Some((file, writer)), _) => {
                writer.put(file.file(), *at, Piece::Zeros(*len)).map_err(cannot_write(file))?;
                0
            }
            (Order::Data(at, data), None, Some(target)) => {
                target.file().write_all_at(data, *at).map_err(cannot_write(target))?;
                order.len()
            }
            (Order::Zeros(at, len), None, Some(target)) => {
                target.write_zeros(*at, *len).map_err(cannot_write(target))?;
                order.len()
            }
            (Order::Bulk(..), _, None) | (_, None, None) => {
                return Err(Trouble::Hopeless("the target is gone".to_owned()));
            }
        };
        if *unsynced >= SYNC_AFTER {
            *unsynced = 0;
            for file in self.addendum.iter().map(|(file, _)| file).chain(&self.target) {
                file.file().sync_data().map_err(cannot_sync(file))?;
            }
        }
        Ok(())
    }

    /// Makes the files whole and durable.
    fn make_durable(&mut self) -> Result<(), Trouble> {
        if let Some((file, writer)) = &mut self.addendum {
            writer.finish(file.file()).map_err(cannot_write(file))?;
        }
        for file in self.addendum.iter().map(|(file, _)| file).chain(&self.target) {
            file.file().sync_all().map_err(cannot_sync(file))?;
        }
        Ok(())
    }

    /// Gives the files their names, the target last; returns them.
    fn name(&mut self) -> Result<Vec<PathBuf>, Trouble> {
        let addendum = self.addendum.take().map(|(file, _)| file);
        let (addendum, last) = match self.target.take() {
            Some(target) => (addendum, Some(target)),
            None => (None, addendum),
        };
        last.map_or(Ok(Vec::new()), |last| name_files(addendum, last)).map_err(Trouble::Hopeless)
    }
}
