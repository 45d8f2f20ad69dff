//! Sealing, and damage that is found, on a container that nobody holds.
// req: R13, R18; rules: TAG-5, TAG-7 to TAG-10, BAK-27, JOB-32, CHK-62

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;

use common::Pit;

const LEN: usize = 6 << 20;

/// A container with `golden`, full of data, and its copy `ci`.
fn pit() -> Pit {
    let pit = Pit::new();
    std::fs::write(pit.path("golden.raw"), common::noise(LEN, 1)).unwrap();
    pit.ok(&["import", "disks.pit", "golden", "golden.raw"]);
    pit.ok(&["snapshot", "disks.pit", "golden", "ci"]);
    pit
}

/// Turns a bit of the block that begins with these bytes over; every place in the file that has them is the one.
fn flip(pit: &Pit, block: &[u8]) {
    let bytes = std::fs::read(&pit.container).unwrap();
    let places = bytes.chunks_exact(4096).enumerate().filter(|(_, found)| *found == block);
    let [(place, _)] = places.collect::<Vec<_>>()[..] else { panic!("not just once") };
    let file = File::options().write(true).open(&pit.container).unwrap();
    file.write_all_at(&[block[77] ^ 8], place as u64 * 4096 + 77).unwrap();
}

#[test]
fn what_was_imported_is_sealed_and_damage_is_neither_exported_nor_copied() {
    let pit = pit();
    let jobs = pit.json(&["job", "list", "disks.pit"]);
    assert_eq!((&jobs[0]["type"], &jobs[0]["x-pitstop-volume"]), (&"seal".into(), &"golden".into()));
    assert_eq!(pit.json(&["info", "disks.pit", "golden"])["verify"], "copy");
    assert_eq!(pit.ok(&["seal", "disks.pit", "golden"]), "golden: sealed 6 MiB of 6 MiB data, 100 %\n");
    assert_eq!(pit.ok(&["job", "list", "disks.pit"]), "no jobs\n");
    let info = pit.json(&["info", "disks.pit", "ci"]);
    assert_eq!((&info["verify"], &info["map"]["sealed-bytes"]), (&"off".into(), &LEN.into()));
    assert!(pit.ok(&["info", "disks.pit", "ci"]).contains("6 MiB of 6 MiB data, 100 %"));
    let text = pit.ok(&["check", "disks.pit", "--data"]);
    assert!(text.contains("6 MiB of sealed data were read and verified") && text.contains("no errors"), "{text}");
    pit.ok(&["compare", "disks.pit", "ci", "--file", "golden.raw"]);

    let golden = std::fs::read(pit.path("golden.raw")).unwrap();
    let number = 700;
    let block = &golden[number * 4096..(number + 1) * 4096];
    flip(&pit, block);
    // The structure is whole, the data is not.
    pit.ok(&["check", "disks.pit"]);
    let output = pit.run(&["check", "disks.pit", "--data"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    for part in ["CHK-62", &format!("block {number} "), "golden", "bring the blocks back from a copy"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let message = pit.fails(&["export", "disks.pit", "ci", "out.raw"]);
    assert!(message.contains(&format!("block {number} ")) && message.contains("TAG-5"), "{message}");
    assert!(!pit.path("out.raw").exists());
    let message = pit.fails(&["backup", "disks.pit", "ci", "out.raw"]);
    assert!(message.contains(&format!("block {number} ")) && message.contains("TAG-5"), "{message}");
    assert!(!pit.path("out.raw").exists());
    let message = pit.fails(&["hydrate", "disks.pit", "ci"]);
    assert!(message.contains(&format!("block {number} ")), "{message}");
    // Nothing of it was lost: it can be written anew, and then all is well.
    let mut damaged = block.to_vec();
    damaged[77] ^= 8;
    flip(&pit, &damaged);
    assert_eq!(pit.ok(&["hydrate", "disks.pit", "ci"]), "ci: real, copied 4 MiB, adopted 0 B\n");
    pit.ok(&["delete", "disks.pit", "golden"]);
    assert_eq!(pit.json(&["info", "disks.pit", "ci"])["map"]["sealed-bytes"], LEN);
    pit.ok(&["check", "disks.pit", "--data"]);
    pit.ok(&["compare", "disks.pit", "ci", "--file", "golden.raw"]);
}

#[test]
fn whether_a_volume_is_sealed_by_itself_is_set_for_each() {
    let pit = pit();
    assert_eq!(pit.ok(&["set", "disks.pit", "golden", "--verify", "off"]), "golden: verify off\n");
    assert_eq!(pit.ok(&["job", "list", "disks.pit"]), "no jobs\n");
    assert_eq!(pit.ok(&["set", "disks.pit", "golden", "--verify", "copy"]), "golden: verify copy\n");
    pit.ok(&["job", "set-speed", "disks.pit", "--speed", "100M"]);
    pit.ok(&["job", "pause", "disks.pit"]);
    let job = &pit.json(&["job", "list", "disks.pit"])[0];
    assert_eq!((&job["status"], &job["x-pitstop-speed"]), (&"paused".into(), &(100 << 20).into()));
    pit.ok(&["job", "resume", "disks.pit"]);
    pit.ok(&["job", "wait", "disks.pit"]);
    assert_eq!(pit.ok(&["job", "list", "disks.pit"]), "no jobs\n");
    assert_eq!(pit.json(&["info", "disks.pit", "golden"])["map"]["sealed-bytes"], LEN);
    for (args, verify) in [(&["--verify", "copy"][..], "copy"), (&[], "off")] {
        pit.ok(&[&["volume", "create", "disks.pit", verify, "--size", "1M"], args].concat());
        assert_eq!(pit.json(&["info", "disks.pit", verify])["verify"], verify);
    }
    pit.ok(&["import", "disks.pit", "plain", "golden.raw", "--verify", "off"]);
    assert_eq!(pit.json(&["info", "disks.pit", "plain"])["verify"], "off");
    let message = pit.fails(&["set", "disks.pit", "nobody", "--verify", "copy"]);
    assert!(message.contains("no volume named 'nobody'"), "{message}");
    let message = pit.fails(&["seal", "disks.pit", "nobody"]);
    assert!(message.contains("no volume named 'nobody'"), "{message}");
}
