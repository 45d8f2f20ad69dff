//! A front end that says anything at all, on its socket and in its virtqueue.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| pitstop_fuzz::messages::run(data));
