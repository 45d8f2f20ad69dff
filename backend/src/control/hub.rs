//! The sessions that are open, and events to all of them.
//!
//! Invariant: at most [`CLIENT_LIMIT`] sessions (CTL-22); sending an event never blocks, because a client without
//! room for it is given up (CTL-25).

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::outbox::Delivery;
use super::protocol;
use super::session::Link;

/// Most clients at once.
pub(super) const CLIENT_LIMIT: usize = 32;

/// The open sessions.
#[derive(Debug, Default)]
pub(super) struct Hub {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    links: Vec<Arc<Link>>,
    closed: bool,
}

/// No session may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// There are as many clients as there may be.
    TooManyClients,
    /// The server is ending.
    Ending,
}

impl Hub {
    /// Adds a session, until [`Hub::remove`].
    pub(super) fn add(&self, link: &Arc<Link>) -> Result<(), Full> {
        let mut state = self.lock();
        if state.closed {
            return Err(Full::Ending);
        }
        if state.links.len() >= CLIENT_LIMIT {
            return Err(Full::TooManyClients);
        }
        state.links.push(Arc::clone(link));
        Ok(())
    }

    /// Takes a session out.
    pub(super) fn remove(&self, link: &Arc<Link>) {
        self.lock().links.retain(|other| !Arc::ptr_eq(other, link));
        self.changed.notify_all();
    }

    /// Sends an event to every client that has negotiated.
    pub(super) fn broadcast(&self, name: &str, data: Value) {
        let message: Arc<[u8]> = protocol::event(name, data).into();
        for link in &self.lock().links {
            if link.outbox().push_event(&message) == Delivery::Overflow {
                log::warn!("control client {} reads its events too slowly; dropping it", link.number());
                link.give_up();
            }
        }
    }

    /// Ends every session after what waits for it has been sent, or at the latest after `patience`.
    pub(super) fn close(&self, patience: Duration) {
        let mut state = self.lock();
        state.closed = true;
        for link in &state.links {
            link.finish();
        }
        state = self.wait_until_empty(state, patience);
        for link in &state.links {
            log::warn!("control client {} did not take its last messages; dropping it", link.number());
            link.give_up();
        }
        let state = self.wait_until_empty(state, patience);
        if !state.links.is_empty() {
            log::error!("{} control sessions did not end", state.links.len());
        }
    }

    fn wait_until_empty<'a>(&'a self, mut state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        let started = Instant::now();
        while !state.links.is_empty() {
            let Some(left) = limit.checked_sub(started.elapsed()) else {
                break;
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
