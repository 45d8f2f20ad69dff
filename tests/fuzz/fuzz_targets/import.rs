//! Any byte string as an image file to import: raw, qcow2, or whatever it looks like.
//!
//! `pitstop` is a program and exports nothing, so its modules are compiled in here, as they are.
#![no_main]

macro_rules! modules {
    ($($path:literal $name:ident;)*) => {
        $(#[allow(dead_code, unused_imports, reason = "the target uses a part of the program")] #[path = $path] mod $name;)*
    };
}

modules! {
    "../../../tools/src/copy.rs" copy;
    "../../../tools/src/error.rs" error;
    "../../../tools/src/image/mod.rs" image;
    "../../../tools/src/jobs.rs" jobs;
    "../../../tools/src/maps.rs" maps;
    "../../../tools/src/render.rs" render;
    "../../../tools/src/size.rs" size;
    "../../../tools/src/view.rs" view;
    "../src/image.rs" input;
}

/// What the program would say on standard error.
#[allow(dead_code, reason = "the target uses a part of the program")]
fn tell(_: impl std::fmt::Display) {}

libfuzzer_sys::fuzz_target!(|data: &[u8]| input::run(data));
