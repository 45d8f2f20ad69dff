//! A client of the control socket that sends anything at all.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| pitstop_fuzz::control::client::run(data));
