//! Tags: what is frozen is sealed, damage is found before it is served or copied, and nothing else ever is taken for damage.
//!
//! req: R13. Rules: TAG-2 to TAG-11, CHK-62, JOB-31, JOB-32.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(unreachable_pub, reason = "one crate")]

#[path = "../common/mod.rs"]
mod common;
mod copies;
mod crashes;
mod damage;
mod seals;
mod support;
