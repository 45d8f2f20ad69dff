//! The thread that makes and writes a backup's files.
//!
//! Job steps hand it pieces and never wait for it, so that a target that is slow, or hangs, holds up nobody but its own
//! backup (BAK-12). Invariant: what was handed over is written in order; a piece that could not be written stays the first
//! until it is; files get their names only as the last piece, and from when that begins the backup is not given up. Does
//! not: read the container, or hold anything of it.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pitstop_format::addendum::{AddendumHeader, AddendumWriter, Piece};

use super::super::target::{Target, is_same_place, name_files};
use super::Trouble;
use crate::daemon::lock;

/// Bytes that are handed over and not written, at most, but for one piece.
const MOST_BEHIND: u64 = 8 << 20;
/// After so many bytes what was written is made durable: on one file system, the container's own syncs and growth may have to
/// wait for what the target has not on disk yet, and guests for those; and so that the end does not take long.
const SYNC_AFTER: u64 = 8 << 20;

/// Files to make.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub(super) target: PathBuf,
    /// What is put beside it.
    pub(super) addendum: Option<PathBuf>,
    /// Whether what is there is replaced.
    pub(super) overwrite: bool,
}

/// Something to write.
#[derive(Debug)]
pub(super) enum Order {
    /// The target is a bulk of the header's size, and what is beside it begins with the header.
    Bulk(AddendumHeader),
    /// The target is an addendum, and begins with the header.
    Addendum(AddendumHeader),
    /// Bytes of the volume, to the bulk, but for blocks of zeros.
    Live(u64, Vec<u8>),
    /// A range's bytes, to the addendum, or over the bulk if there is none.
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

/// Hands pieces to the thread; dropped, it abandons what is not complete.
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
    /// What came of making the files.
    opened: Option<Result<(), String>>,
    /// What is to be written, besides what is under way.
    orders: VecDeque<Order>,
    /// Bytes that were handed over and are not written.
    behind_bytes: u64,
    /// Why the first could not be written, until somebody has been told.
    trouble: Option<Trouble>,
    /// The first waits to be tried again.
    stalled: bool,
    abandoned: bool,
    /// The files get their names.
    naming: bool,
    done: bool,
    /// The thread has ended, and the files are gone or have their names.
    gone: bool,
}

impl Order {
    fn len(&self) -> u64 {
        match self {
            Self::Live(_, data) | Self::Data(_, data) => data.len() as u64,
            Self::Zeros(_, len) => *len,
            Self::Bulk(_) | Self::Addendum(_) | Self::Finish => 0,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Waits until `done` shows something, for `most` at most.
    fn wait_for<T>(&self, most: Duration, mut done: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let until = Instant::now() + most;
        let mut state = self.lock();
        loop {
            let found = done(&mut state);
            let rest = until.saturating_duration_since(Instant::now());
            if found.is_some() || rest.is_zero() {
                return found;
            }
            state = self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Writer {
    /// Starts the thread, which makes the files under temporary names; waits for that, for `most` at most. Error: the text
    /// for who gave the order; none of the files is there then, or stays when its storage answers.
    pub(super) fn start(places: Places, most: Duration) -> Result<Self, String> {
        let shared = Arc::<Shared>::default();
        let (writer, shown) = (Self { shared: Arc::clone(&shared) }, places.target.display().to_string());
        // Nobody waits for its end for long: a store that hangs may never let it go.
        let thread = thread::Builder::new().name("pit-backup".to_owned());
        let started = thread.spawn(move || {
            let _end = End(&shared);
            write_all(&shared, &places);
        });
        started.map_err(|error| format!("cannot start a thread for the files: {error}"))?;
        let opened = writer.shared.wait_for(most, |state| state.opened.take());
        opened.unwrap_or_else(|| Err(format!("the storage of '{shown}' does not answer")))?;
        Ok(writer)
    }

    /// Whether there is room. An error is told once; asked again, the thread tries again.
    pub(super) fn ready(&self) -> Result<Ready, Trouble> {
        let mut state = self.shared.lock();
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

    /// Whether the files have their names.
    pub(super) fn is_done(&self) -> bool {
        self.shared.lock().done
    }

    /// Hands something over.
    pub(super) fn put(&self, order: Order) {
        let mut state = self.shared.lock();
        state.behind_bytes += order.len();
        state.orders.push_back(order);
        self.shared.changed.notify_all();
    }

    /// No piece is begun any more, and unfinished files are removed as soon as their storage answers; false, and nothing
    /// changes, if they are complete and get their names or have them.
    pub(super) fn abandon(&self) -> bool {
        let mut state = self.shared.lock();
        if state.naming || state.done {
            return false;
        }
        state.abandoned = true;
        state.orders.clear();
        self.shared.changed.notify_all();
        true
    }

    /// Waits until the thread has ended, for `most` at most; true if it has.
    pub(super) fn wait_gone(&self, most: Duration) -> bool {
        self.shared.wait_for(most, |state| state.gone.then_some(())).is_some()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.abandon();
    }
}

/// Tells that the thread has ended, however it has.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.lock().gone = true;
        self.0.changed.notify_all();
    }
}

/// What the thread does.
fn write_all(shared: &Shared, places: &Places) {
    let opened = Files::create(places);
    let mut state = shared.lock();
    let (mut files, told) = match opened {
        Ok(files) => (Some(files), Ok(())),
        Err(text) => (None, Err(text)),
    };
    state.opened = Some(told);
    shared.changed.notify_all();
    while let Some(files) = files.as_mut().filter(|_| !state.abandoned) {
        let next = if state.stalled { None } else { state.orders.pop_front() };
        let Some(order) = next else {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(state);
        let mut written = files.write(&order);
        state = shared.lock();
        if written.is_ok() && matches!(order, Order::Finish) && !state.abandoned {
            state.naming = true;
            drop(state);
            written = files.name();
            state = shared.lock();
            (state.naming, state.done) = (false, written.is_ok());
            if state.done {
                return;
            }
        }
        match written {
            Ok(()) => state.behind_bytes -= order.len(),
            Err(_) if state.abandoned => {}
            Err(trouble) => {
                state.orders.push_front(order);
                (state.trouble, state.stalled) = (Some(trouble), true);
            }
        }
    }
    drop(state);
}

/// Files in the making.
struct Files {
    target: Option<Target>,
    addendum: Option<Target>,
    writer: Option<AddendumWriter>,
    /// Bytes written since the last sync.
    unsynced: u64,
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
    fn create(places: &Places) -> Result<Self, String> {
        if places.addendum.as_ref().is_some_and(|addendum| is_same_place(addendum, &places.target)) {
            return Err("target and addendum are the same file".to_owned());
        }
        let target = Target::create(&places.target, places.overwrite)?;
        let addendum = places.addendum.as_ref().map(|path| Target::create(path, places.overwrite)).transpose()?;
        Ok(Self { target: Some(target), addendum, writer: None, unsynced: 0 })
    }

    fn write(&mut self, order: &Order) -> Result<(), Trouble> {
        let written = match (order, &self.target, &self.addendum, &mut self.writer) {
            (Order::Finish, ..) => return self.make_durable(),
            (Order::Bulk(header), Some(target), ..) => {
                target.file().set_len(header.size_bytes).map_err(cannot_write(target))?;
                self.writer = self.addendum.is_some().then(|| AddendumWriter::new(*header));
                0
            }
            (Order::Addendum(header), ..) => {
                self.writer = Some(AddendumWriter::new(*header));
                self.addendum = self.target.take();
                0
            }
            (Order::Live(at, data), Some(target), ..) => {
                target.write_sparsely(data, *at).map_err(cannot_write(target))?;
                order.len()
            }
            (Order::Data(at, data), _, Some(file), Some(writer)) => {
                writer.put(file.file(), *at, Piece::Data(data)).map_err(cannot_write(file))?;
                order.len()
            }
            (Order::Zeros(at, len), _, Some(file), Some(writer)) => {
                writer.put(file.file(), *at, Piece::Zeros(*len)).map_err(cannot_write(file))?;
                0
            }
            (Order::Data(at, data), Some(target), ..) => {
                target.file().write_all_at(data, *at).map_err(cannot_write(target))?;
                order.len()
            }
            (Order::Zeros(at, len), Some(target), ..) => {
                target.write_zeros(*at, *len).map_err(cannot_write(target))?;
                order.len()
            }
            (_, None, ..) => return Err(Trouble::Hopeless("the target is gone".to_owned())),
        };
        self.unsynced += written;
        if self.unsynced >= SYNC_AFTER {
            self.unsynced = 0;
            for file in self.addendum.iter().chain(&self.target) {
                file.file().sync_data().map_err(cannot_sync(file))?;
            }
        }
        Ok(())
    }

    /// Makes the files whole and durable.
    fn make_durable(&mut self) -> Result<(), Trouble> {
        if let (Some(file), Some(writer)) = (&self.addendum, &mut self.writer) {
            writer.finish(file.file()).map_err(cannot_write(file))?;
        }
        for file in self.addendum.iter().chain(&self.target) {
            file.file().sync_all().map_err(cannot_sync(file))?;
        }
        Ok(())
    }

    /// Gives the files their names, the target last.
    fn name(&mut self) -> Result<(), Trouble> {
        let addendum = self.addendum.take();
        let (addendum, last) = match self.target.take() {
            Some(target) => (addendum, Some(target)),
            None => (None, addendum),
        };
        last.map_or(Ok(()), |last| name_files(addendum, last)).map_err(Trouble::Hopeless)
    }
}
