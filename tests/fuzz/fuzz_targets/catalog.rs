//! A container with a catalog that says anything at all, checksums made right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitstop_fuzz::input::Input;
use pitstop_fuzz::{engine, patch};

fuzz_target!(|data: &[u8]| engine::exercise(&patch::container(&mut Input::new(data), patch::Scope::Catalog)));
