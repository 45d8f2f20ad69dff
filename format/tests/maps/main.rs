//! What maps and differences say: rules MAP-30 to MAP-35, requirements R9, R10, R16.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod diff;
mod figures;
mod model;
mod steps;
mod support;
