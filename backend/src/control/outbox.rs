//! What waits to be sent to one client.
//!
//! Role: a bounded queue between whoever has a message and the one thread that writes to the client's socket.
//! Invariant: no more than [`OUTBOX_LIMIT_BYTES`] wait, plus at most one reply that is longer than that by itself
//! (CTL-25). A reply waits for room, and with it the reading of more requests; an event never waits: without room
//! the client is given up.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Most bytes that may wait for one client.
pub(super) const OUTBOX_LIMIT_BYTES: usize = 1 << 20;

/// The queue.
#[derive(Debug)]
pub(super) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Arc<[u8]>>,
    /// Bytes in `queue` and in the message that is being written.
    waiting_bytes: usize,
    phase: Phase,
    /// Whether the client has negotiated and so gets events.
    wants_events: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing is taken any more; what waits is still sent.
    Draining,
    /// Nothing is sent any more.
    Aborted,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Queued, or not for this client.
    Fine,
    /// No room: the client reads too slowly and is to be given up.
    Overflow,
}

/// The outbox takes nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closed;

impl Outbox {
    /// An empty, open outbox whose client gets no events yet.
    pub(super) fn new() -> Self {
        let state = State { queue: VecDeque::new(), waiting_bytes: 0, phase: Phase::Open, wants_events: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Queues a reply, when there is room for it.
    pub(super) fn push_reply(&self, message: Vec<u8>) -> Result<(), Closed> {
        let mut state = self.wait_for_room(message.len())?;
        self.push(&mut state, message.into());
        Ok(())
    }

    /// Queues the reply that ends the negotiation: behind it, and at once, the client gets events.
    pub(super) fn push_negotiated(&self, message: Vec<u8>) -> Result<(), Closed> {
        let mut state = self.wait_for_room(message.len())?;
        state.wants_events = true;
        self.push(&mut state, message.into());
        Ok(())
    }

    /// Queues an event if there is room for it now.
    pub(super) fn push_event(&self, message: &Arc<[u8]>) -> Delivery {
        let mut state = self.lock();
        if state.phase != Phase::Open || !state.wants_events {
            return Delivery::Fine;
        }
        if !state.has_room(message.len()) {
            return Delivery::Overflow;
        }
        self.push(&mut state, Arc::clone(message));
        Delivery::Fine
    }

    /// The next message to write, when there is one; `None` when there will be none. Call [`Outbox::written`] after
    /// it has been written.
    pub(super) fn pop(&self) -> Option<Arc<[u8]>> {
        let mut state = self.lock();
        loop {
            if let Some(message) = state.queue.pop_front() {
                return Some(message);
            }
            if state.phase != Phase::Open {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives back the room of a message that has been written.
    pub(super) fn written(&self, message: &[u8]) {
        let mut state = self.lock();
        state.waiting_bytes = state.waiting_bytes.saturating_sub(message.len());
        self.changed.notify_all();
    }

    /// Takes nothing more; what waits is still sent.
    pub(super) fn drain(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Draining;
        }
        self.changed.notify_all();
    }

    /// Throws away what waits, and takes nothing more.
    pub(super) fn abort(&self) {
        let mut state = self.lock();
        state.phase = Phase::Aborted;
        state.queue.clear();
        self.changed.notify_all();
    }

    fn wait_for_room(&self, len: usize) -> Result<MutexGuard<'_, State>, Closed> {
        let mut state = self.lock();
        while state.phase == Phase::Open && !state.has_room(len) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.phase == Phase::Open { Ok(state) } else { Err(Closed) }
    }

    fn push(&self, state: &mut State, message: Arc<[u8]>) {
        state.waiting_bytes += message.len();
        state.queue.push_back(message);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self, len: usize) -> bool {
        self.waiting_bytes == 0 || self.waiting_bytes + len <= OUTBOX_LIMIT_BYTES
    }
}

#[cfg(test)]
#[path = "tests/outbox.rs"]
mod tests;
