//! The verbs on a container that nobody holds.
// req: R1 R4 R5 R30

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::process::Command;

use common::Pit;
use pitstop_format::{Container, FileDisk, OpenMode};

#[test]
fn volumes_are_made_renamed_and_deleted() {
    let pit = Pit::new();
    assert_eq!(
        pit.ok(&["list", "disks.pit"]),
        "no volumes; make one with `pitstop volume create` or `pitstop import`\n"
    );
    assert_eq!(pit.ok(&["volume", "create", "disks.pit", "golden", "--size", "20M"]), "golden: 20 MiB\n");
    pit.ok(&["volume", "create", "disks.pit", "odd", "--size", "1000"]);
    let volumes = pit.json(&["list", "disks.pit"]);
    assert_eq!(volumes[0]["size-bytes"], 20 << 20);
    assert_eq!(volumes[1]["size-bytes"], 1024);
    assert_eq!(volumes[0]["state"], "real");
    pit.ok(&["rename", "disks.pit", "odd", "even"]);
    assert_eq!(pit.names(), ["even", "golden"]);
    pit.ok(&["delete", "disks.pit", "even"]);
    assert_eq!(pit.names(), ["golden"]);
}

#[test]
fn a_snapshot_is_a_copy_and_a_refresh_makes_one() {
    let pit = Pit::new();
    pit.ok(&["volume", "create", "disks.pit", "golden", "--size", "8M"]);
    let line = pit.ok(&["snapshot", "disks.pit", "golden", "ci-1"]);
    assert!(line.starts_with("ci-1: 8 MiB, copy of golden as of 20") && line.ends_with("Z\n"), "{line}");
    pit.ok(&["snapshot", "disks.pit", "ci-1", "ci-1-before"]);
    pit.ok(&["volume", "create", "disks.pit", "other", "--size", "4M"]);
    let before = pit.json(&["list", "disks.pit", "other"]);
    assert_eq!(before[0]["origin"], serde_json::Value::Null);
    let line = pit.ok(&["refresh", "disks.pit", "other", "--source", "golden"]);
    assert!(line.starts_with("other: 8 MiB, copy of golden as of 20"), "{line}");

    let tree = pit.ok(&["tree", "disks.pit"]);
    let shape: Vec<&str> = tree.lines().map(|line| line.split(" 8 MiB").next().unwrap().trim_end()).collect();
    assert_eq!(shape, ["golden", "├── ci-1", "│   └── ci-1-before", "└── other"]);
    let tree = pit.json(&["tree", "disks.pit", "ci-1"]);
    assert_eq!(tree[0]["copies"][0]["name"], "ci-1-before");
    assert_eq!(tree.as_array().unwrap().len(), 1);
}

// req: R2
#[test]
fn a_group_is_copied_at_one_instant() {
    let pit = Pit::new();
    for name in ["db", "log"] {
        pit.ok(&["volume", "create", "disks.pit", name, "--size", "8M"]);
    }
    let lines = pit.ok(&["snapshot", "disks.pit", "--group", "db=db-1", "log=log-1"]);
    let instants: Vec<_> = lines.lines().map(|line| line.split(" as of ").nth(1).unwrap()).collect();
    assert!(instants.len() == 2 && instants[0] == instants[1], "{lines}");
    let copies = pit.json(&["snapshot", "disks.pit", "--group", "log=log-2", "db=db-2"]);
    assert_eq!((&copies[0]["name"], &copies[1]["origin"]["name"]), (&"log-2".into(), &"db".into()));
    assert_eq!(copies[0]["origin"]["instant-unix-ns"], copies[1]["origin"]["instant-unix-ns"]);
    let names = pit.names();
    for (pairs, words) in [
        (["db=db-3", "nope=x"], "no volume named 'nope'"),
        (["db=db-3", "log=db-1"], "exists already"),
        (["db=x", "log=x"], "give each a name of its own"),
    ] {
        let message = pit.fails(&["snapshot", "disks.pit", "--group", pairs[0], pairs[1]]);
        assert!(message.contains(words), "{message}");
    }
    for (arguments, words) in [
        (&["db"][..], "<NEW_NAME>"),
        (&["db", "x", "--group", "log=y"], "cannot be used with"),
        (&["--group", "db=db-3", "log"], "as in golden=golden-1"),
    ] {
        let output = pit.run(&[&["snapshot", "disks.pit"], arguments].concat());
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && text.contains(words), "{arguments:?}: {text}");
    }
    assert_eq!(pit.names(), names);
}

// req: R16; rule: SNP-27
#[test]
fn a_volume_is_restored_from_its_own_copies_alone() {
    let pit = Pit::new();
    for name in ["db", "other"] {
        pit.ok(&["volume", "create", "disks.pit", name, "--size", "8M"]);
    }
    pit.ok(&["snapshot", "disks.pit", "db", "older"]);
    pit.ok(&["snapshot", "disks.pit", "db", "newer"]);
    pit.ok(&["snapshot", "disks.pit", "older", "second-hand"]);
    let line = pit.ok(&["restore", "disks.pit", "db", "--from", "older"]);
    assert!(line.starts_with("db: 8 MiB, copy of older as of 20"), "{line}");
    let restored = pit.json(&["restore", "disks.pit", "db", "--from", "newer"]);
    assert_eq!(restored["origin"]["name"], "newer");
    for (volume, copy, words) in [
        ("db", "other", "'other' is no copy of any volume and not a copy of 'db'"),
        ("db", "second-hand", "'second-hand' is a copy of 'older' and not a copy of 'db'; to give 'db' its contents"),
        ("other", "older", "'older' is a copy of 'db' and not a copy of 'other'"),
        ("db", "nope", "no volume named 'nope'"),
        ("nope", "older", "no volume named 'nope'"),
    ] {
        let message = pit.fails(&["restore", "disks.pit", volume, "--from", copy]);
        assert!(message.contains(words), "{message}");
    }
    // A volume of the same name is not the same volume.
    pit.ok(&["delete", "disks.pit", "db"]);
    pit.ok(&["volume", "create", "disks.pit", "db", "--size", "8M"]);
    assert!(pit.fails(&["restore", "disks.pit", "db", "--from", "older"]).contains("not a copy of 'db'"));
    pit.ok(&["refresh", "disks.pit", "db", "--source", "older"]);
}

// req: R17; rules: SNP-24, SNP-25
#[test]
fn rotations_keep_the_newest_copies() {
    let pit = Pit::new();
    for name in ["db", "other"] {
        pit.ok(&["volume", "create", "disks.pit", name, "--size", "8M"]);
    }
    pit.ok(&["snapshot", "disks.pit", "db", "day-of-reckoning"]);
    pit.ok(&["snapshot", "disks.pit", "other", "--rotate", "day", "--keep", "1"]);
    let mut made = Vec::new();
    for round in 0..5 {
        let rotated = pit.json(&["snapshot", "disks.pit", "db", "--rotate", "day", "--keep", "3"]);
        made.push(rotated["volume"]["name"].as_str().unwrap().to_owned());
        let gone: Vec<_> = (round >= 3).then(|| made[round - 3].as_str()).into_iter().collect();
        assert_eq!(rotated["deleted"], serde_json::json!(gone));
        assert_eq!(rotated["volume"]["origin"]["name"], "db");
    }
    assert!(made.is_sorted() && made.iter().all(|name| name.starts_with("day-20") && name.ends_with('Z')), "{made:?}");
    let names = pit.names();
    let left: Vec<_> = names.iter().filter(|name| made.contains(name)).collect();
    assert_eq!(left, made[2..].iter().collect::<Vec<_>>());
    // The other volume's one, the two volumes, and the copy with a name of its own.
    assert_eq!(names.len(), 3 + 4, "{names:?}");
    let text = pit.ok(&["snapshot", "disks.pit", "db", "--rotate", "day", "--keep", "1"]);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("day-20") && lines[0].contains(": 8 MiB, copy of db as of 20"), "{text}");
    assert_eq!(lines[1..], made[2..].iter().map(|name| format!("{name}: deleted")).collect::<Vec<_>>());
    let names = pit.names();
    assert!(pit.fails(&["snapshot", "disks.pit", "nope", "--rotate", "day", "--keep", "1"]).contains("'nope'"));
    assert!(
        pit.fails(&["snapshot", "disks.pit", "db", "--rotate", "", "--keep", "1"]).contains("is not a volume name")
    );
    for arguments in [
        &["db", "--rotate", "day"][..],
        &["db", "--keep", "1"],
        &["db", "--rotate", "day", "--keep", "0"],
        &["db", "new", "--rotate", "day", "--keep", "1"],
        &["--rotate", "day", "--keep", "1"],
    ] {
        let output = pit.run(&[&["snapshot", "disks.pit"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(pit.names(), names);
}

#[test]
fn info_shows_the_container_and_a_volume() {
    let pit = Pit::new();
    pit.ok(&["volume", "create", "disks.pit", "golden", "--size", "8M"]);
    let text = pit.ok(&["info", "disks.pit"]);
    assert!(text.contains("volumes:          1\n"), "{text}");
    let text = pit.ok(&["info", "disks.pit", "golden"]);
    assert!(text.contains("size:     8 MiB (8388608 bytes)\n") && text.contains("head"), "{text}");
    let info = pit.json(&["info", "disks.pit"]);
    assert_eq!((&info["volume-count"], &info["held-by"]), (&1.into(), &serde_json::Value::Null));
    assert_eq!(pit.json(&["info", "disks.pit", "golden"])["layers"][0]["kind"], "head");
}

#[test]
fn a_label_is_kept() {
    let pit = Pit::new();
    pit.ok(&["create", "labelled.pit", "--label", "ci host 7"]);
    assert_eq!(pit.json(&["info", "labelled.pit"])["label"], "ci host 7");
}

#[test]
fn a_clean_container_passes_the_check() {
    let pit = Pit::new();
    pit.ok(&["volume", "create", "disks.pit", "golden", "--size", "8M"]);
    assert_eq!(pit.ok(&["check", "disks.pit"]), "no errors were found\n");
    assert_eq!(pit.json(&["check", "disks.pit"])["findings"], serde_json::json!([]));
}

#[test]
fn a_damaged_container_fails_the_check_with_its_own_exit_codes() {
    let pit = Pit::new();
    pit.ok(&["volume", "create", "disks.pit", "golden", "--size", "8M"]);
    let good = std::fs::read(&pit.container).unwrap();
    let check = |bytes: &[u8]| {
        std::fs::write(&pit.container, bytes).unwrap();
        let output = pit.run(&["check", "disks.pit"]);
        (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    assert_eq!(check(&good), (0, "no errors were found\n".to_owned()));

    // Names are in catalog slots: a changed one breaks its checksum.
    let mut bad = good.clone();
    let at = bad.windows(6).rposition(|window| window == b"golden").unwrap();
    bad[at] = b'G';
    let (code, text) = check(&bad);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("corruption: ") && text.ends_with("restore the container from a copy\n"), "{text}");

    let (code, text) = check(&good[..1 << 20]);
    assert_eq!(code, 1, "{text}");
    assert!(text.starts_with("pitstop: disks.pit: "), "{text}");
    let (code, text) = check(b"not a container");
    assert_eq!((code, text.contains("not a pitstop container")), (1, true), "{text}");
    let (code, _) = check(&good);
    assert_eq!(code, 0);
}

// rules: CHK-27, CHK-29
#[test]
fn a_damaged_container_is_repaired_and_the_repair_undone() {
    let pit = Pit::new();
    std::fs::write(pit.path("in.raw"), common::noise(1 << 20, 1)).unwrap();
    pit.ok(&["import", "disks.pit", "golden", "in.raw"]);
    let good = std::fs::read(&pit.container).unwrap();
    let said = |args: &[&str]| {
        let output = pit.run(&[&["check", "disks.pit"], args].concat());
        (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    assert_eq!(said(&["--repair", "all"]), (0, "no errors were found\n".to_owned()));
    assert!(!pit.path("disks.pit.repair-log").exists(), "a log of nothing");

    // The volume's slot beyond recognition: its name is lost, its contents are not.
    let mut bad = good.clone();
    let at = bad.windows(6).rposition(|window| window == b"golden").unwrap();
    bad[at..at + 40].copy_from_slice(&common::noise(40, 3));
    std::fs::write(&pit.container, &bad).unwrap();
    assert_eq!(said(&["--repair", "leaks"]).0, 2);
    assert!(std::fs::read(&pit.container).unwrap() == bad, "there was no leak to repair");
    std::fs::write(pit.path("mine"), "mine").unwrap();
    assert_eq!(said(&["--repair", "all", "--repair-log", "mine"]).0, 1);
    assert!(std::fs::read(pit.path("mine")).unwrap() == b"mine" && std::fs::read(&pit.container).unwrap() == bad);
    let (code, text) = said(&["--repair", "all"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("what was there before is in disks.pit.repair-log\nno errors were found\n"), "{text}");
    let name = pit.names().remove(0);
    assert!(name.starts_with("recovered-"), "{name}");
    let (code, text) = said(&["--undo", "disks.pit.repair-log"]);
    assert_eq!(code, 2, "{text}");
    assert!(std::fs::read(&pit.container).unwrap() == bad, "not all is back");
    let (code, text) = said(&["--repair", "all", "--output", "json"]);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &report["repair-log"]), (0, &"disks.pit.repair-log.1".into()));
    assert!(report["corruptions-fixed"].as_u64().unwrap() > 0 && report["corruptions"] == 0, "{report:#}");
    assert_eq!((&report["leaks-fixed"], &report["lost"]), (&0.into(), &serde_json::json!([])));
    pit.ok(&["export", "disks.pit", &name, "out.raw"]);
    pit.identical(("raw", "in.raw"), ("raw", "out.raw"));
    // The container has been used since.
    pit.ok(&["rename", "disks.pit", &name, "golden"]);
    let message = pit.fails(&["check", "disks.pit", "--undo", "disks.pit.repair-log.1"]);
    assert!(message.contains("changed since the repair"), "{message}");

    // What cannot be repaired is left alone.
    std::fs::write(&pit.container, &good[..good.len() - (1 << 20)]).unwrap();
    let (code, text) = said(&["--repair", "all"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("bring back the rest of the file") && text.contains("nothing has been changed"), "{text}");
}

fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
}

// Exit code 63: a version and a feature that this program does not know.
#[test]
fn what_is_too_new_is_not_supported() {
    let pit = Pit::new();
    let good = std::fs::read(&pit.container).unwrap();
    for (at, value) in [(8, 2), (48, 1)] {
        let mut newer = good.clone();
        for copy in [0, 256 << 10] {
            newer[copy + at] = value;
            newer[copy + 12..copy + 16].fill(0);
            let crc = crc32c(&newer[copy..copy + 4096]);
            newer[copy + 12..copy + 16].copy_from_slice(&crc.to_le_bytes());
        }
        std::fs::write(&pit.container, &newer).unwrap();
        for args in [&["check", "disks.pit"][..], &["check", "disks.pit", "--repair", "all"]] {
            let output = pit.run(args);
            assert_eq!(output.status.code(), Some(63), "{}", String::from_utf8_lossy(&output.stderr));
        }
        assert!(std::fs::read(&pit.container).unwrap() == newer);
    }
}

#[test]
fn what_cannot_be_done_is_an_error_that_says_what_to_do() {
    let pit = Pit::new();
    pit.ok(&["volume", "create", "disks.pit", "golden", "--size", "8M"]);
    let cases: &[(&[&str], &str)] = &[
        (&["list", "none.pit"], "there is no container none.pit; make one with `pitstop create none.pit`"),
        (&["create", "disks.pit"], "disks.pit exists already; choose another name, or remove it first"),
        (&["info", "disks.pit", "none"], "no volume named 'none'; `pitstop list` shows the volumes"),
        (&["delete", "disks.pit", "none"], "no volume named 'none'"),
        (&["rename", "disks.pit", "none", "x"], "no volume named 'none'"),
        (&["snapshot", "disks.pit", "none", "x"], "no volume named 'none'"),
        (&["refresh", "disks.pit", "golden", "--source", "none"], "no volume named 'none'"),
        (&["refresh", "disks.pit", "golden", "--source", "golden"], "cannot be refreshed from itself"),
        (&["volume", "create", "disks.pit", "golden", "--size", "1G"], "exists already"),
        (&["volume", "create", "disks.pit", "", "--size", "1G"], "is not a volume name"),
        (&["volume", "create", "disks.pit", "empty", "--size", "0"], "is not a volume size"),
        (&["export", "disks.pit", "none", "x.img"], "no volume named 'none'"),
        (&["create", "none/disks.pit"], "No such file or directory"),
    ];
    for (args, expected) in cases {
        let message = pit.fails(args);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    assert_eq!(pit.names(), ["golden"]);
    assert!(!pit.path("x.img").exists());
}

#[test]
fn a_container_whose_lock_file_cannot_be_written_can_be_changed() {
    // As on a full file system.
    let pit = Pit::new();
    std::fs::create_dir_all(pit.path("disks.pit.lock/in-the-way")).unwrap();
    pit.ok(&["volume", "create", "disks.pit", "v", "--size", "8M"]);
    pit.ok(&["delete", "disks.pit", "v"]);
}

// rule: VOL-8, CHK-29
#[test]
fn a_limit_on_file_sizes_is_a_full_file_system() {
    let pit = Pit::new();
    std::fs::write(pit.path("in.raw"), common::noise(1 << 20, 1)).unwrap();
    let limited = |limit: u64, args: &[&str]| {
        let mut command = Command::new("prlimit");
        command.args([&format!("--fsize={limit}"), env!("CARGO_BIN_EXE_pitstop")]).args(args);
        let output = command.current_dir(pit.container.parent().unwrap()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, message) = limited(1 << 20, &["import", "disks.pit", "golden", "in.raw"]);
    assert!(code == Some(1) && message.starts_with("pitstop: "), "{code:?} {message}");
    assert_eq!(pit.names(), [""; 0], "a part of an import was left");
    pit.ok(&["import", "disks.pit", "golden", "in.raw"]);
    let mut bad = std::fs::read(&pit.container).unwrap();
    let at = bad.windows(6).rposition(|window| window == b"golden").unwrap();
    bad[at..at + 40].copy_from_slice(&common::noise(40, 3));
    std::fs::write(&pit.container, &bad).unwrap();
    let (code, message) = limited(4096, &["check", "disks.pit", "--repair", "all"]);
    assert!(code == Some(1) && message.contains("has not been changed"), "{code:?} {message}");
    assert!(!pit.path("disks.pit.repair-log").exists() && std::fs::read(&pit.container).unwrap() == bad);
}

#[test]
fn a_foreign_file_is_not_a_container_and_stays_as_it_is() {
    let pit = Pit::new();
    let bytes = common::noise(1 << 20, 5);
    for (name, bytes) in [("noise", &bytes[..]), ("short", &b"hello"[..]), ("empty", &b""[..])] {
        std::fs::write(pit.path(name), bytes).unwrap();
        for args in
            [&["list", name][..], &["volume", "create", name, "v", "--size", "1M"], &["snapshot", name, "a", "b"]]
        {
            pit.fails(args);
        }
        assert_eq!(std::fs::read(pit.path(name)).unwrap(), bytes);
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    let pit = Pit::new();
    for args in [
        &["fly"][..],
        &["list"],
        &["volume", "create", "disks.pit", "v"],
        &["volume", "create", "disks.pit", "v", "--size", "1X"],
    ] {
        let output = pit.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn every_verb_explains_itself_with_an_example() {
    let pit = Pit::new();
    for verb in [
        "create",
        "volume create",
        "rename",
        "delete",
        "list",
        "info",
        "map",
        "diff",
        "compare",
        "tree",
        "import",
        "export",
        "snapshot",
        "refresh",
        "restore",
        "check",
    ] {
        let mut args: Vec<&str> = verb.split(' ').collect();
        args.push("--help");
        let help = pit.ok(&args);
        assert!(help.contains(&format!("pitstop {verb} disks.pit")), "{help}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let pit = Pit::new();
    let program = env!("CARGO_BIN_EXE_pitstop");
    let script = format!("set -o pipefail; '{program}' info '{}' | true", pit.container.display());
    let status = Command::new("bash").args(["-c", &script]).status().unwrap();
    assert!(status.success());
}

// rule: VOL-44 to VOL-46, CHK-55; req: R18
#[test]
fn an_undefined_volume_is_shown_refused_and_defined_again() {
    let pit = Pit::new();
    pit.ok(&["volume", "create", "disks.pit", "golden", "--size", "8M"]);
    pit.ok(&["snapshot", "disks.pit", "golden", "ci"]);
    assert!(pit.ok(&["set", "disks.pit", "ci", "--durability", "none"]).ends_with(", durability none\n"));
    let info = pit.ok(&["info", "disks.pit", "ci"]);
    assert!(info.lines().any(|line| line.starts_with("durability:") && line.ends_with(" none")), "{info}");
    assert_eq!(pit.json(&["check", "disks.pit"])["undefined-volumes"], 0);
    // Whoever has it open dies.
    let disk = FileDisk::open(&pit.container, OpenMode::ReadWrite).unwrap();
    drop(Container::open(disk, OpenMode::ReadWrite).unwrap());

    assert_eq!(pit.json(&["check", "disks.pit"])["undefined-volumes"], 1);
    let said = pit.ok(&["check", "disks.pit"]);
    assert!(said.contains("undefined volumes: 1 ") && said.contains("no errors were found"), "{said}");
    assert!(pit.ok(&["list", "disks.pit", "ci"]).contains("real, undefined"));
    assert!(pit.ok(&["tree", "disks.pit"]).contains("real, undefined"));
    let info = pit.json(&["info", "disks.pit", "ci"]);
    assert_eq!((&info["durability"], &info["undefined"]), (&"none".into(), &true.into()));
    for refused in [
        &["snapshot", "disks.pit", "ci", "copy"][..],
        &["refresh", "disks.pit", "golden", "--source", "ci"],
        &["snapshot", "disks.pit", "--group", "golden=a", "ci=b"],
        &["diff", "disks.pit", "golden", "ci"],
        &["export", "disks.pit", "ci", "ci.img"],
    ] {
        let why = pit.fails(refused);
        assert!(why.contains("'ci' is undefined") && why.contains("--defined"), "{refused:?}: {why}");
    }
    let compared = pit.run(&["compare", "disks.pit", "golden", "ci"]);
    assert_eq!(compared.status.code(), Some(2));
    assert!(pit.ok(&["list", "disks.pit", "ci"]).contains("real, undefined"), "it stays so");
    pit.ok(&["refresh", "disks.pit", "ci", "--source", "golden"]);
    assert!(!pit.ok(&["list", "disks.pit"]).contains("undefined"));
    pit.ok(&["snapshot", "disks.pit", "ci", "copy"]);
    // Neither option is a wrong use, which changes nothing.
    assert_eq!(pit.run(&["set", "disks.pit", "ci"]).status.code(), Some(2));

    let disk = FileDisk::open(&pit.container, OpenMode::ReadWrite).unwrap();
    drop(Container::open(disk, OpenMode::ReadWrite).unwrap());
    let line = pit.ok(&["set", "disks.pit", "ci", "--defined"]);
    assert!(!line.contains("undefined"), "{line}");
    pit.ok(&["export", "disks.pit", "ci", "ci.img"]);
}
