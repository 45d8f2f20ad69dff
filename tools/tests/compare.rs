//! `compare`: a volume against another, and against image files.
// req: R16, R30

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Pit, noise};
use serde_json::{Value, json};

/// The exit code, and what is printed as JSON.
fn compare(pit: &Pit, args: &[&str]) -> (i32, Value) {
    let output = pit.run(&[&["compare", "disks.pit"], args, &["--output", "json"]].concat());
    let said = serde_json::from_slice(&output.stdout);
    let said = said.unwrap_or_else(|_| panic!("{args:?}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), said)
}

fn import(pit: &Pit, name: &str, len: u64, pieces: &[(u64, &[u8])]) {
    let file = format!("{name}.raw");
    pit.sparse(&file, len, pieces);
    pit.ok(&["import", "disks.pit", name, &file]);
}

// rule: MAP-34
#[test]
fn volumes_are_read_only_where_they_may_differ() {
    let pit = Pit::new();
    let data = noise(3 << 20, 1);
    import(&pit, "golden", 8 << 20, &[(0, &data), (6 << 20, &data[..4096])]);
    pit.ok(&["snapshot", "disks.pit", "golden", "ci"]);
    let same = |read: u64| {
        json!({
            "identical": true, "first-difference": null, "a-size-bytes": 8 << 20, "b-size-bytes": 8 << 20, "read-bytes": read,
        })
    };
    assert_eq!(compare(&pit, &["golden", "ci"]), (0, same(0)));
    assert_eq!(compare(&pit, &["golden", "golden"]), (0, same(0)));
    assert_eq!(pit.ok(&["compare", "disks.pit", "golden", "ci"]), "golden and ci are identical\n");
    // The same once more, related by nothing: it is read, and zeros are not.
    pit.ok(&["import", "disks.pit", "again", "golden.raw"]);
    assert_eq!(compare(&pit, &["golden", "again"]), (0, same(2 * ((3 << 20) + 4096))));

    for at in [0, 4095, (2 << 20) + 77, (6 << 20) + 4095] {
        let mut changed = data.clone();
        let mut last = data[..4096].to_vec();
        match changed.get_mut(at) {
            Some(byte) => *byte ^= 1,
            None => last[at - (6 << 20)] ^= 1,
        }
        import(&pit, "changed", 8 << 20, &[(0, &changed), (6 << 20, &last)]);
        for names in [["golden", "changed"], ["changed", "ci"]] {
            let (code, said) = compare(&pit, &names);
            assert_eq!((code, &said["identical"], &said["first-difference"]), (1, &json!(false), &json!(at)));
        }
        let output = pit.run(&["compare", "disks.pit", "golden", "changed"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, format!("golden and changed differ, first at byte {at}\n"));
        assert!(output.status.code() == Some(1) && output.stderr.is_empty());
        pit.ok(&["delete", "disks.pit", "changed"]);
    }
}

#[test]
fn the_rest_of_a_longer_volume_must_be_zeros() {
    let pit = Pit::new();
    let data = noise(4096, 1);
    import(&pit, "short", (1 << 20) + 512, &[(0, &data)]);
    import(&pit, "long", 3 << 20, &[(0, &data)]);
    import(&pit, "tail", 3 << 20, &[(0, &data), ((2 << 20) + 9, &[7])]);
    for [a, b] in [["short", "long"], ["long", "short"]] {
        let (code, said) = compare(&pit, &[a, b]);
        assert_eq!((code, &said["identical"]), (0, &json!(true)));
    }
    for [a, b] in [["short", "tail"], ["tail", "short"]] {
        let (code, said) = compare(&pit, &[a, b]);
        assert_eq!((code, &said["first-difference"]), (1, &json!((2 << 20) + 9)));
    }
    let text = pit.ok(&["compare", "disks.pit", "short", "--file", "long.raw"]);
    assert!(
        text.ends_with("short has 1049088 bytes, long.raw has 3145728: the rest is compared with zeros\n"),
        "{text}"
    );
    assert_eq!(compare(&pit, &["short", "--file", "tail.raw"]).1["first-difference"], (2 << 20) + 9);
    assert_eq!(compare(&pit, &["tail", "--file", "short.raw"]).1["first-difference"], (2 << 20) + 9);
}

#[test]
fn a_volume_is_compared_with_raw_and_qcow2_images() {
    let pit = Pit::new();
    let data = noise(3 << 20, 2);
    import(&pit, "golden", 40 << 20, &[(4096, &data), ((40 << 20) - 1, &[9])]);
    pit.ok(&["export", "disks.pit", "golden", "out.raw"]);
    pit.ok(&["export", "disks.pit", "golden", "out.qcow2", "-O", "qcow2"]);
    for file in ["golden.raw", "out.raw", "out.qcow2"] {
        let (code, said) = compare(&pit, &["golden", "--file", file]);
        assert_eq!((code, &said["identical"]), (0, &json!(true)), "{file}");
        assert!(said["read-bytes"].as_u64().unwrap() < 10 << 20, "{file}: holes are read: {said}");
    }
    // Data against a hole, a hole against data, and one byte that is another.
    pit.sparse("changed.raw", 40 << 20, &[(4096, &data), ((40 << 20) - 1, &[9]), (30 << 20, &[1])]);
    assert_eq!(compare(&pit, &["golden", "--file", "changed.raw"]).1["first-difference"], 30 << 20);
    pit.sparse("changed.raw", 40 << 20, &[(4096, &data)]);
    assert_eq!(compare(&pit, &["golden", "--file", "changed.raw"]).1["first-difference"], (40 << 20) - 1);
    // A file of no whole sectors, and one that is read as what it is not.
    import(&pit, "odd", 70_001, &[(70_000, &[5])]);
    assert_eq!(compare(&pit, &["odd", "--file", "odd.raw"]).0, 0);
    assert_eq!(compare(&pit, &["golden", "--file", "out.qcow2", "-f", "raw"]).1["first-difference"], 0);
}

#[test]
fn what_cannot_be_compared_exits_with_2_and_says_what_to_do() {
    let pit = Pit::new();
    import(&pit, "golden", 1 << 20, &[(0, &noise(4096, 1))]);
    std::fs::write(pit.path("bad.qcow2"), b"QFI\xfb\0\0\0\x09 nonsense").unwrap();
    for (args, expected) in [
        (&["disks.pit", "golden", "nobody"][..], "no volume named 'nobody'"),
        (&["disks.pit", "nobody", "golden"], "no volume named 'nobody'"),
        (&["none.pit", "golden", "golden"], "there is no container"),
        (&["disks.pit", "golden", "--file", "absent.raw"], "absent.raw"),
        (&["disks.pit", "golden", "--file", "."], "not a regular file"),
        (&["disks.pit", "golden", "--file", "bad.qcow2"], "bad.qcow2"),
        (&["disks.pit", "golden"], "required"),
        (&["disks.pit", "golden", "golden", "--file", "x"], "cannot be used with"),
        (&["disks.pit", "golden", "golden", "-f", "raw"], "cannot be used with"),
    ] {
        let output = pit.run(&[&["compare"], args].concat());
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
        assert!(message.contains(expected) && output.stdout.is_empty(), "{args:?}: {message}");
    }
}
