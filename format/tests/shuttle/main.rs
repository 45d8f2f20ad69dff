//! Interleavings of queue threads with each other, with control operations and with background work.
//!
//! Each scenario is a few threads and the promises that hold whatever they do and whenever the power fails. A scheduler
//! (shuttle) runs it many times, each time deciding anew at every lock, atomic, swapped pointer and disk request which
//! thread goes on: at random, or with few but hostile preemptions (PCT). A thread that nobody wakes is a deadlock, and
//! fails. Only `make interleavings` builds this; a run is repeated by its seed, a failure by the schedule that it leaves.
//!
//! Memory orders weaker than sequential consistency are loom's matter: `format/src/layer/loom.rs`.

#![cfg(pitstop_interleavings)]
#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests")]

mod adopt;
mod claims;
mod close;
mod epoch;
mod explore;
mod hidden;
mod hydrate;
mod journal;
mod merge;
mod paging;
mod reuse;
mod seal;
mod views;
mod world;
