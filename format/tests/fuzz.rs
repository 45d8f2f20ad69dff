//! Every kept input of the fuzz targets for containers, and every one that once broke something, as an ordinary test.
//!
//! The harness is that of `tests/fuzz`: what must hold of any container file stands in its `engine`.

#![allow(unreachable_pub, reason = "the modules are public where they are at home")]

#[path = "../../tests/fuzz/src/base.rs"]
mod base;
#[path = "../../tests/fuzz/src/engine.rs"]
mod engine;
#[path = "../../tests/fuzz/src/input.rs"]
mod input;
#[path = "../../tests/fuzz/src/patch.rs"]
mod patch;

use std::path::Path;

use input::Input;
use patch::Scope;

/// Runs each input of the target; says which one broke something.
fn replay(target: &str, at_least: usize, run: impl Fn(&[u8]) + std::panic::RefUnwindSafe) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz");
    let mut count = 0;
    for folder in [root.join("found").join(target), root.join("corpus").join(target)] {
        // A target that never broke anything has no folder of what did.
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("a folder that can be read").path();
            let bytes = std::fs::read(&path).expect("an input that can be read");
            let broken = std::panic::catch_unwind(|| run(&bytes)).is_err();
            assert!(!broken, "tests/fuzz/run.sh repeat {target} {}", path.display());
            count += 1;
        }
    }
    assert!(count >= at_least, "only {count} inputs of target {target}");
}

#[test]
fn inputs_of_target_open() {
    replay("open", 5, engine::exercise_bytes);
}

#[test]
fn inputs_of_target_container() {
    replay("container", 50, |bytes| engine::exercise(&patch::container(&mut Input::new(bytes), Scope::All)));
}

#[test]
fn inputs_of_target_journal() {
    replay("journal", 50, |bytes| engine::exercise(&patch::container(&mut Input::new(bytes), Scope::Journal)));
}

#[test]
fn inputs_of_target_catalog() {
    replay("catalog", 50, |bytes| engine::exercise(&patch::container(&mut Input::new(bytes), Scope::Catalog)));
}

// Else inputs that begin with their numbers exercise another base.
#[test]
fn the_bases_with_views_have_them() {
    for number in [250, 252] {
        let container = pitstop_format::Container::open(base::disk(number), pitstop_format::OpenMode::ReadOnly);
        let volumes = container.unwrap_or_else(|error| panic!("{error}")).volumes();
        assert!(volumes.iter().any(|volume| volume.view_of.as_deref() == Some("a")), "{volumes:?}");
    }
}
