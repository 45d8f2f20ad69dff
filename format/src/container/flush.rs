//! Group commit: the small state machine that makes changes durable without blocking a queue.
//!
//! Invariant (JNL-3): a batch is imaged before its data sync is issued and appended after it; a flush counts on a batch
//! only if that batch was imaged after the flush began. One leader at a time; everybody else waits for it.
//! Does not: perform I/O. The caller carries out each [`FlushStep`] and reports the result.

use std::io;
use std::sync::Arc;
use std::task::{Wake, Waker};

use super::ring::Position;
use super::{Container, Shared};
use crate::error::Result;
use crate::layout::record::Item;
use crate::layout::slot::Durability;
use crate::sync::thread::{self, Thread};
use crate::volume::VolumeCore;

/// What a flush needs next.
#[derive(Debug)]
pub enum FlushStep {
    /// Sync the container's data (fdatasync), then call [`Flush::synced`] and poll again.
    Sync,
    /// Write these bytes durably, then call [`Flush::appended`] and poll again.
    Append(JournalAppend),
    /// Another flush does the work, or the journal is full for the moment; poll again when woken.
    Wait,
    /// All that was complete when the flush began is durable.
    Done,
}

/// Bytes to append to the journal with one durable write (RWF_DSYNC).
#[derive(Debug, Clone)]
pub struct JournalAppend {
    offset: u64,
    bytes: Arc<Vec<u8>>,
}

impl JournalAppend {
    /// Byte offset in the container; a multiple of 4096.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The bytes; a multiple of 4096 long.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What a batch may take of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// Leaves the reserve alone.
    Ordinary,
    /// A checkpoint's or a freeing batch: may use the reserve.
    Reserve,
}

#[derive(Debug)]
enum Stage {
    /// Waits until this batch is durable, or leads it.
    Batch(u64),
    /// Only data needs a sync: all changes of the volume are durable already (JNL-7).
    SyncOnly,
    /// Leads: the batch is imaged, the data sync is under way.
    Syncing(Vec<Item>),
    /// Leads: the data is synced, these writes are left, then the head moves there.
    Appending(Vec<JournalAppend>, Position),
    Done,
}

/// A flush in progress.
#[derive(Debug)]
pub struct Flush {
    shared: Arc<Shared>,
    stage: Stage,
    room: Room,
    /// A step has been handed out and its result not yet reported.
    outstanding: bool,
}

impl Flush {
    /// A flush of all that `volume` has completed so far; one that is over if the volume's durability is none.
    pub(crate) fn of_volume(shared: Arc<Shared>, volume: &VolumeCore) -> Self {
        let stage = match volume.durability() {
            // The container's own commits are enough for it (VOL-40, VOL-41).
            Durability::None => Stage::Done,
            Durability::Flush => {
                let state = shared.lock();
                if volume.dirty_batch().max(state.batches.late) <= state.batches.durable {
                    Stage::SyncOnly
                } else {
                    Stage::Batch(state.batches.open)
                }
            }
        };
        Self { shared, stage, room: Room::Ordinary, outstanding: false }
    }

    /// A flush of every change made so far.
    pub(crate) fn of_container(shared: Arc<Shared>) -> Self {
        let stage = {
            let state = shared.lock();
            if state.dirty.is_empty() && state.batches.durable + 1 == state.batches.open {
                Stage::SyncOnly
            } else {
                Stage::Batch(state.batches.open)
            }
        };
        Self { shared, stage, room: Room::Ordinary, outstanding: false }
    }

    /// Like [`Flush::of_container`], allowed to use the journal's reserve.
    pub(crate) fn of_container_reserved(shared: Arc<Shared>) -> Self {
        let mut flush = Self::of_container(shared);
        flush.room = Room::Reserve;
        flush
    }

    /// What to do next. `waker` is registered when the answer is [`FlushStep::Wait`].
    ///
    /// Errors: [`crate::Error::Failed`] once the container has failed; the flush is then over.
    pub fn poll(&mut self, waker: &Waker) -> Result<FlushStep> {
        assert!(!self.outstanding, "a flush step's result was not reported");
        if let Err(failed) = self.shared.check_alive() {
            self.stage = Stage::Done;
            return Err(failed);
        }
        let needed = match &mut self.stage {
            Stage::Done => return Ok(FlushStep::Done),
            Stage::SyncOnly | Stage::Syncing(_) => {
                self.outstanding = true;
                return Ok(FlushStep::Sync);
            }
            Stage::Appending(writes, _) => {
                let append = writes.first().cloned();
                let append = append.expect("a batch without writes is complete after its sync");
                self.outstanding = true;
                return Ok(FlushStep::Append(append));
            }
            Stage::Batch(needed) => *needed,
        };
        let mut state = self.shared.lock();
        // Again: a failure since then has woken its waiters already, and would never wake this one.
        if let Err(failed) = self.shared.check_alive() {
            self.stage = Stage::Done;
            return Err(failed);
        }
        if state.batches.durable >= needed {
            self.stage = Stage::Done;
            return Ok(FlushStep::Done);
        }
        if state.batches.in_progress {
            state.register(waker);
            return Ok(FlushStep::Wait);
        }
        let reserve = match self.room {
            Room::Ordinary => state.ring.reserve() + state.set_aside,
            Room::Reserve => 0,
        };
        if !state.ring.fits(state.dirty.journal_bytes(), reserve) {
            if self.room == Room::Reserve {
                drop(state);
                self.stage = Stage::Done;
                self.shared.fail("the journal's reserve is exhausted".to_owned());
                return self.shared.check_alive().map(|()| FlushStep::Done);
            }
            state.checkpoint_wanted = true;
            state.register(waker);
            drop(state);
            self.shared.call_for_work();
            return Ok(FlushStep::Wait);
        }
        self.stage = Stage::Syncing(state.image_batch());
        self.outstanding = true;
        Ok(FlushStep::Sync)
    }

    /// Reports the data sync. An error fails the container (JNL-14).
    pub fn synced(&mut self, result: io::Result<()>) {
        self.outstanding = false;
        if let Err(error) = result {
            self.stage = Stage::Done;
            return self.shared.fail(format!("data sync failed: {error}"));
        }
        let Stage::Syncing(items) = std::mem::replace(&mut self.stage, Stage::Done) else {
            return;
        };
        let (ring, uuid, generation) = {
            let mut state = self.shared.lock();
            if items.is_empty() {
                state.batch_is_durable();
                return;
            }
            (state.ring.clone(), state.uuid, state.superblock.generation)
        };
        // Encoded without the lock: only the leader moves the head, and a tail that moves meanwhile only makes room.
        match ring.encode(uuid, generation, &items) {
            Some((appends, head)) => {
                let writes = appends
                    .into_iter()
                    .map(|(offset, bytes)| JournalAppend { offset, bytes: Arc::new(bytes) })
                    .collect();
                self.stage = Stage::Appending(writes, head);
            }
            None => unreachable!("a batch is imaged only when it fits the journal"),
        }
    }

    /// Reports the journal write. An error fails the container (JNL-14).
    pub fn appended(&mut self, result: io::Result<()>) {
        self.outstanding = false;
        if let Err(error) = result {
            self.stage = Stage::Done;
            return self.shared.fail(format!("journal write failed: {error}"));
        }
        let Stage::Appending(writes, head) = &mut self.stage else {
            return;
        };
        writes.remove(0);
        if writes.is_empty() {
            let mut state = self.shared.lock();
            state.ring.head = *head;
            state.batch_is_durable();
            self.shared.reap(&mut state);
            self.stage = Stage::Done;
            if state.ring.used() > state.ring.len / 2 {
                drop(state);
                self.shared.call_for_work();
            }
        }
    }
}

impl Drop for Flush {
    /// A leader that goes away in the middle leaves a batch that nobody can finish.
    fn drop(&mut self) {
        if matches!(self.stage, Stage::Syncing(_) | Stage::Appending(..)) {
            self.shared.fail("a flush was dropped before it ended".to_owned());
        }
    }
}

/// Unparks a thread.
struct ThreadWaker(Thread);

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// A waker for the thread that calls it.
pub(crate) fn thread_waker() -> Waker {
    Waker::from(Arc::new(ThreadWaker(thread::current())))
}

impl Container {
    /// Makes every change made so far durable; blocks.
    pub fn commit(&self) -> Result<()> {
        self.run_flush(Flush::of_container(self.shared.clone()), true)
    }

    pub(super) fn commit_reserved(&self) -> Result<()> {
        self.run_flush(Flush::of_container_reserved(self.shared.clone()), false)
    }

    /// Carries out a flush on the container's disk; blocks.
    pub(crate) fn run_flush(&self, mut flush: Flush, may_checkpoint: bool) -> Result<()> {
        let waker = thread_waker();
        loop {
            match flush.poll(&waker)? {
                FlushStep::Done => return Ok(()),
                FlushStep::Sync => flush.synced(self.shared.disk.sync()),
                FlushStep::Append(append) => {
                    flush.appended(self.shared.disk.write_at_durable(append.bytes(), append.offset()));
                }
                FlushStep::Wait => {
                    if may_checkpoint && self.shared.lock().checkpoint_wanted {
                        self.checkpoint()?;
                    } else {
                        thread::park();
                    }
                }
            }
        }
    }
}
