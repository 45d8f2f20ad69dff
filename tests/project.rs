//! The project has the shape and the packages that its owner drew.
//!
//! req: R32

use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate lies in the workspace")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_top_level_is_as_drawn() {
    for entry in ["Cargo.toml", "format", "backend", "tools", "spec", "tests", "README.md"] {
        assert!(root().join(entry).exists(), "{entry} is missing");
    }
}

#[test]
fn the_prescribed_packages_are_used() {
    let manifests = ["format/Cargo.toml", "backend/Cargo.toml", "tools/Cargo.toml"].map(read).concat();
    let lock = read("Cargo.lock");
    let prescribed =
        ["vhost", "vhost-user-backend", "virtio-queue", "vm-memory", "vmm-sys-util", "bitvec", "serde", "clap", "log"];
    for package in prescribed {
        assert!(manifests.contains(&format!("\n{package}.workspace = true")), "no crate depends on {package}");
        assert!(lock.contains(&format!("name = \"{package}\"")), "{package} is not locked");
    }
}

#[test]
fn backend_and_tools_do_not_depend_on_each_other() {
    for (crate_name, other) in [("backend", "pitstop-tools"), ("tools", "pitstop-backend"), ("format", "pitstop-")] {
        let manifest = read(&format!("{crate_name}/Cargo.toml"));
        let dependencies = manifest.split("[dependencies]").nth(1).and_then(|rest| rest.split("\n[").next());
        let dependencies = dependencies.unwrap_or_else(|| panic!("{crate_name} has no dependencies"));
        assert!(!dependencies.contains(other), "{crate_name} depends on {other}");
    }
}
