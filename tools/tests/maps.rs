//! `map`, `diff` and the counts of `info` on a container that nobody holds.
// req: R9, R16, R18, R30

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Pit, noise};
use serde_json::{Value, json};

/// `golden` of 1 MiB with 8 KiB of data, its copy `ci`, and `other` of 2 MiB.
fn pit() -> Pit {
    let pit = Pit::new();
    pit.sparse("golden.raw", 1 << 20, &[(0, &noise(8192, 1))]);
    pit.ok(&["import", "disks.pit", "golden", "golden.raw"]);
    pit.ok(&["snapshot", "disks.pit", "golden", "ci"]);
    pit.ok(&["volume", "create", "disks.pit", "other", "--size", "2M"]);
    pit
}

// rules: MAP-30, MAP-32
#[test]
fn a_map_is_a_table_for_people_and_exact_for_programs() {
    let pit = pit();
    assert_eq!(
        pit.ok(&["map", "disks.pit", "ci"]),
        "          START          LENGTH  STATE\n              \
                      0            8192  others' data\n           \
                   8192         1040384  zeros\n\
         1040384 of 1048576 bytes are valid (99 %), 8192 are others', 0 modified\n"
    );
    let map = pit.json(&["map", "disks.pit", "golden"]);
    let range = |start: u64, length: u64, content: &str| json!({ "start": start, "length": length, "valid": true, "modified": false, "to-copy": false, "content": content });
    assert_eq!(map["ranges"], json!([range(0, 8192, "data"), range(8192, 1_040_384, "zero")]));
    assert_eq!((&map["valid-percent"], &map["size-bytes"]), (&json!(100), &json!(1 << 20)));
    let info = pit.json(&["info", "disks.pit", "ci"]);
    let counts = json!({
        "size-bytes": 1 << 20, "valid-bytes": 1_040_384, "others-bytes": 8192, "modified-bytes": 0,
        "to-copy-bytes": 0, "data-bytes": 8192, "own-data-bytes": 0,
        "sealed-bytes": 0, "valid-percent": 99,
    });
    assert_eq!((&info["map"], &info["state"]), (&counts, &json!("virtual")));
    assert_eq!(pit.json(&["info", "disks.pit", "golden"])["state"], "real");
    let text = pit.ok(&["info", "disks.pit", "ci"]);
    let shown = |name: &str, value: &str| text.lines().any(|line| line.starts_with(name) && line.ends_with(value));
    assert!(shown("valid: ", " 1016 KiB (1040384 bytes), 99 %") && shown("others': ", " 8 KiB (8192 bytes)"), "{text}");
}

// rules: MAP-34, MAP-35
#[test]
fn a_difference_names_who_has_what() {
    let pit = pit();
    assert_eq!(pit.ok(&["diff", "disks.pit", "golden", "ci"]), "0 bytes may differ (0 changed in golden, 0 in ci)\n");
    let nothing = pit.json(&["diff", "disks.pit", "golden", "ci"]);
    assert_eq!((&nothing["ranges"], &nothing["bytes"]), (&json!([]), &json!(0)));
    assert_eq!(
        pit.ok(&["diff", "disks.pit", "golden", "other"]),
        "          START          LENGTH  CHANGED IN  A     B\n              \
                      0            8192  a           data  zeros\n        \
                1048576         1048576  b           -     zeros\n\
         1056768 bytes may differ (8192 changed in golden, 1048576 in other)\n\
         golden has 1048576 bytes, other has 2097152\n"
    );
    let diff = pit.json(&["diff", "disks.pit", "other", "golden"]);
    assert_eq!(
        diff["ranges"],
        json!([
            { "start": 0, "length": 8192, "changed-in": "b", "a": "zero", "b": "data" },
            { "start": 1 << 20, "length": 1 << 20, "changed-in": "a", "a": "zero", "b": "none" },
        ])
    );
    assert_eq!(diff["bytes"], Value::from(8192 + (1 << 20)));
}

#[test]
fn what_cannot_be_listed_is_an_error_that_says_what_to_do() {
    let pit = pit();
    for args in [
        &["map", "disks.pit", "nobody"][..],
        &["diff", "disks.pit", "nobody", "ci"],
        &["diff", "disks.pit", "ci", "nobody"],
    ] {
        assert!(pit.fails(args).contains("no volume named 'nobody'"));
    }
    assert!(pit.fails(&["map", "none.pit", "ci"]).contains("there is no container"));
    for args in [&["map", "disks.pit"][..], &["diff", "disks.pit", "ci"], &["map", "disks.pit", "ci", "golden"]] {
        assert_eq!(pit.run(args).status.code(), Some(2), "{args:?}");
    }
}

// A table page that holds no entries: the place is named, and nothing is listed as if it were so.
#[test]
fn damaged_tables_are_an_error_that_names_the_place() {
    let pit = pit();
    let bytes = std::fs::read(&pit.container).unwrap();
    // The descriptors lie in slab 2, 32 bytes each; kind 3 is a table.
    let descriptors = &bytes[2 * (256 << 10)..3 * (256 << 10)];
    let tables = descriptors.chunks(32).enumerate().filter(|(_, descriptor)| descriptor[0] == 3);
    let mut spoiled = bytes.clone();
    let mut count = 0;
    for (slab, _) in tables {
        let page = slab * (256 << 10);
        spoiled[page..page + 4096].fill(0x5a);
        count += 1;
    }
    assert!(count > 0, "no table found");
    std::fs::write(&pit.container, &spoiled).unwrap();
    for args in [&["map", "disks.pit", "ci"][..], &["diff", "disks.pit", "ci", "other"], &["info", "disks.pit", "ci"]] {
        let message = pit.fails(args);
        assert!(message.contains("corrupt") && message.contains("pitstop check"), "{message}");
    }
}
