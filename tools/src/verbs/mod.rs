//! One module a verb. Each takes plain values, works through [`crate::session`] and shows its result.
//!
//! Invariant: a verb that fails returns an error and has changed nothing, or says what it left. Exit codes other than 0
//! and 1 come from [`check`] and [`compare`] (and 2 from wrong usage, which the parser reports). Does not: parse arguments.

pub(crate) mod backup;
pub(crate) mod cache;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod diff;
pub(crate) mod export;
pub(crate) mod hydrate;
pub(crate) mod import;
pub(crate) mod info;
pub(crate) mod job;
pub(crate) mod list;
pub(crate) mod map;
mod ranges;
pub(crate) mod refresh;
pub(crate) mod rename;
pub(crate) mod restore;
pub(crate) mod restore_backup;
pub(crate) mod rotate;
pub(crate) mod seal;
pub(crate) mod set;
pub(crate) mod snapshot;
pub(crate) mod split;
mod steps;
pub(crate) mod tree;
pub(crate) mod verify;
pub(crate) mod view;
pub(crate) mod volume_create;
