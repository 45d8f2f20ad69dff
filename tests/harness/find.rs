//! Where programs and guest files are, and what to do when one is missing.

use std::env;
use std::path::{Path, PathBuf};

const SETUP_HINT: &str = "run `tests/setup.sh` as root once, or `make test`, which does";

/// The top folder of the repository.
pub fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// A program of the system, looked up in PATH and in the administrator's folders.
///
/// # Panics
/// When it is not installed, with the way to install it.
pub fn system_program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("program {name} is not installed: {SETUP_HINT}"))
}

/// A program of this project, from the folder that this test was built into, or from
/// `PITSTOP_BIN_DIR`.
///
/// # Panics
/// When it was not built.
pub fn pitstop_program(name: &str) -> PathBuf {
    let folder = env::var_os("PITSTOP_BIN_DIR").map_or_else(own_build_folder, PathBuf::from);
    let program = folder.join(name);
    assert!(
        program.is_file(),
        "{} does not exist: run `cargo build --workspace --bins`, or `make test`, which does",
        program.display()
    );
    program
}

/// `target/debug` for a test in `target/debug/deps` and for a program in `target/debug`.
fn own_build_folder() -> PathBuf {
    let program = env::current_exe().expect("a running program has a path");
    let folder = program.parent().expect("a program lies in a folder");
    if folder.ends_with("deps") { folder.parent().unwrap_or(folder).to_path_buf() } else { folder.to_path_buf() }
}

/// A file that guests boot from, made by `tests/guest/build.sh`.
///
/// # Panics
/// When it was not built.
pub fn guest_file(name: &str) -> PathBuf {
    let file = repository().join("target/guest").join(name);
    assert!(file.is_file(), "{} does not exist: {SETUP_HINT}", file.display());
    file
}
