//! Rules that no other test would miss: for each, the state in which its obvious wrong version shows.
//!
//! `spec/proof.md` says which design rule each belongs to, `tests/mutants/list.toml` which wrong version it catches.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests")]

mod hidden;
mod journal;
mod layers;
mod room;
mod slabs;
mod support;
