//! Relations on a container that nobody holds: copying again moves only what differs; split.
// req: R11 R14 R16 R18; rules: REL-1, REL-2, CTL-101, CTL-102, JOB-20

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::Pit;
use serde_json::{Value, json};

const CHUNK: usize = 256 << 10;
const LEN: usize = 8 * CHUNK;

/// Replaces what `name` holds by `bytes`: only what differs is written.
fn change(pit: &Pit, name: &str, bytes: &[u8]) {
    use pitstop_format::{Container, FileDisk, OpenMode, VolumeIo};
    let container =
        Container::open(FileDisk::open(&pit.path("disks.pit"), OpenMode::ReadWrite).unwrap(), OpenMode::ReadWrite)
            .unwrap();
    let io = VolumeIo::new(&container, container.volume(name).unwrap());
    let mut before = vec![0; bytes.len()];
    io.read_at(&mut before, 0).unwrap();
    for (at, (old, new)) in before.chunks(4096).zip(bytes.chunks(4096)).enumerate() {
        if old != new {
            io.write_at(new, at as u64 * 4096).unwrap();
        }
    }
    drop(io);
    container.close().unwrap();
}

fn info(pit: &Pit, name: &str) -> Value {
    pit.json(&["info", "disks.pit", name])
}

#[test]
fn copying_again_moves_only_what_differs_in_both_directions() {
    let pit = Pit::new();
    let mut golden = common::noise(LEN, 1);
    std::fs::write(pit.path("golden.raw"), &golden).unwrap();
    pit.ok(&["import", "disks.pit", "golden", "golden.raw"]);
    pit.ok(&["snapshot", "disks.pit", "golden", "ci"]);
    let relation = json!({"state": "virtual", "tracked": false, "kept-bytes": 0, "moved": null});
    assert_eq!(info(&pit, "ci")["relation"], relation);
    assert_eq!(info(&pit, "ci")["differences"], json!({"to-secondary-bytes": 0, "to-primary-bytes": 0}));
    assert_eq!(pit.ok(&["hydrate", "disks.pit", "ci"]), "ci: real, copied 2 MiB, adopted 0 B\n");
    assert_eq!(info(&pit, "ci")["relation"]["tracked"], true);

    golden[CHUNK..CHUNK + 4096].fill(7);
    change(&pit, "golden", &golden);
    let mut ci = std::fs::read(pit.path("golden.raw")).unwrap();
    ci[3 * CHUNK..3 * CHUNK + 8192].fill(8);
    change(&pit, "ci", &ci);
    assert_eq!(info(&pit, "ci")["differences"], json!({"to-secondary-bytes": 12288, "to-primary-bytes": 12288}));
    let text = pit.ok(&["info", "disks.pit", "ci"]);
    assert!(text.contains("relation:") && text.contains("new in source: 12 KiB"), "{text}");

    // There, then back.
    let again = &["refresh", "disks.pit", "ci", "--source", "golden", "--hydrate", "--wait"];
    assert_eq!(pit.ok(again), "ci: real, copied 4 KiB, adopted 2 MiB\n");
    std::fs::write(pit.path("now.raw"), &golden).unwrap();
    pit.ok(&["compare", "disks.pit", "ci", "--file", "now.raw"]);
    golden[5 * CHUNK..5 * CHUNK + 4096].fill(9);
    change(&pit, "ci", &golden);
    let back = pit.json(&["refresh", "disks.pit", "golden", "--source", "ci", "--hydrate", "--wait"]);
    assert_eq!(back["moved"], json!({"copied-bytes": 4096, "adopted-bytes": LEN - 4096}));
    std::fs::write(pit.path("now.raw"), &golden).unwrap();
    pit.ok(&["compare", "disks.pit", "golden", "--file", "now.raw"]);
    assert_eq!(pit.ok(&["check", "disks.pit"]), "no errors were found\n");
}

#[test]
fn a_split_volume_is_shown_as_such() {
    let pit = Pit::new();
    pit.ok(&["volume", "create", "disks.pit", "golden", "--size", "1M"]);
    pit.ok(&["snapshot", "disks.pit", "golden", "ci"]);
    let line = pit.ok(&["split", "disks.pit", "ci"]);
    assert!(line.starts_with("ci: 1 MiB, copy of golden as of ") && line.ends_with(", split\n"), "{line}");
    for verb in ["list", "tree", "info"] {
        let text = pit.ok(&[verb, "disks.pit", "ci"]);
        assert!(text.contains("split"), "{verb}: {text}");
    }
    assert_eq!(pit.json(&["list", "disks.pit", "ci"])[0]["relation"]["state"], "split");
    assert_eq!(pit.json(&["tree", "disks.pit"])[0]["copies"][0]["relation"]["state"], "split");
    assert_eq!(info(&pit, "ci")["differences"], Value::Null);
    for name in ["ci", "golden"] {
        let message = pit.fails(&["split", "disks.pit", name]);
        assert!(message.contains("has no relation to another volume"), "{message}");
    }
    // A refresh makes a new one.
    pit.ok(&["refresh", "disks.pit", "ci", "--source", "golden"]);
    assert_eq!(info(&pit, "ci")["relation"]["state"], "real");
    pit.ok(&["delete", "disks.pit", "golden"]);
    assert_eq!(info(&pit, "ci")["relation"]["state"], "split");
}
