//! A virtqueue that says anything at all.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| pitstop_fuzz::chains::run(data));
