//! Tests of the queue: CTL-25.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::{Closed, Delivery, OUTBOX_LIMIT_BYTES, Outbox};

fn event(len: usize) -> Arc<[u8]> {
    vec![b'e'; len].into()
}

/// CTL-25
#[test]
fn events_without_room_overflow_and_are_not_kept() {
    let outbox = Outbox::new();
    outbox.push_negotiated(vec![b'n']).unwrap();
    assert_eq!(outbox.push_event(&event(OUTBOX_LIMIT_BYTES - 1)), Delivery::Fine);
    assert_eq!(outbox.push_event(&event(1)), Delivery::Overflow);
    let message = outbox.pop().unwrap();
    assert_eq!(message[..], *b"n");
    assert_eq!(outbox.push_event(&event(1)), Delivery::Overflow, "a message being written still takes room");
    outbox.written(&message);
    assert_eq!(outbox.push_event(&event(1)), Delivery::Fine);
}

/// CTL-6
#[test]
fn events_before_negotiation_are_not_kept() {
    let outbox = Outbox::new();
    assert_eq!(outbox.push_event(&event(10)), Delivery::Fine);
    outbox.drain();
    assert_eq!(outbox.pop(), None);
}

/// CTL-25
#[test]
fn a_reply_waits_for_room() {
    let outbox = Arc::new(Outbox::new());
    outbox.push_reply(vec![b'1'; OUTBOX_LIMIT_BYTES]).unwrap();
    let pusher = {
        let outbox = Arc::clone(&outbox);
        thread::spawn(move || outbox.push_reply(vec![b'2']))
    };
    thread::sleep(Duration::from_millis(50));
    assert!(!pusher.is_finished());
    let first = outbox.pop().unwrap();
    assert!(!pusher.is_finished());
    outbox.written(&first);
    assert_eq!(pusher.join().unwrap(), Ok(()));
    assert_eq!(outbox.pop().unwrap()[..], *b"2");
}

/// CTL-25
#[test]
fn a_reply_longer_than_the_limit_is_taken_when_nothing_waits() {
    let outbox = Outbox::new();
    assert_eq!(outbox.push_reply(vec![0; OUTBOX_LIMIT_BYTES + 1]), Ok(()));
    assert_eq!(outbox.pop().unwrap().len(), OUTBOX_LIMIT_BYTES + 1);
}

#[test]
fn draining_sends_what_waits_and_takes_nothing() {
    let outbox = Outbox::new();
    outbox.push_reply(b"last".to_vec()).unwrap();
    outbox.drain();
    assert_eq!(outbox.push_reply(b"more".to_vec()), Err(Closed));
    assert_eq!(outbox.pop().unwrap()[..], *b"last");
    assert_eq!(outbox.pop(), None);
}

#[test]
fn aborting_wakes_a_waiting_reply() {
    let outbox = Arc::new(Outbox::new());
    outbox.push_reply(vec![b'1'; OUTBOX_LIMIT_BYTES]).unwrap();
    let pusher = {
        let outbox = Arc::clone(&outbox);
        thread::spawn(move || outbox.push_reply(vec![b'2']))
    };
    outbox.abort();
    assert_eq!(pusher.join().unwrap(), Err(Closed));
    assert_eq!(outbox.pop(), None);
}
