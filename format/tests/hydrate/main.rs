//! Hydrating: a virtual volume becomes real while it, its source and its copies serve requests.
//!
//! req: R8, R9. Rules: LAY-30 to LAY-37, MAP-36.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(unreachable_pub, reason = "one crate")]

#[path = "../common/mod.rs"]
mod common;

mod adoption;
mod crashes;
mod ends;
mod fills;
mod relations;
mod rules;
mod support;
