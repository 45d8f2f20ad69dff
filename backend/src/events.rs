//! What happened, told to whoever has subscribed.
//!
//! Invariant: telling never blocks, so queue threads may tell too. Does not: know who listens.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use crate::daemon::Event;

/// The subscribers.
#[derive(Debug, Default)]
pub(crate) struct Events {
    subscribers: Mutex<Vec<Sender<Event>>>,
}

impl Events {
    /// Every event from now on. A receiver that is dropped unsubscribes.
    pub(crate) fn subscribe(&self) -> Receiver<Event> {
        let (sender, receiver) = channel();
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    /// Tells all subscribers.
    pub(crate) fn emit(&self, event: &Event) {
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| subscriber.send(event.clone()).is_ok());
    }
}
