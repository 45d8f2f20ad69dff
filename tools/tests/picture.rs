//! `tree --svg`: the picture of hierarchies, volumes and layers.
// req: R10, R18

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Pit, noise};

fn pit() -> Pit {
    let pit = Pit::new();
    pit.sparse("golden.raw", 4 << 20, &[(0, &noise(1 << 20, 1))]);
    pit.ok(&["import", "disks.pit", "golden", "golden.raw"]);
    pit.ok(&["snapshot", "disks.pit", "golden", "ci-1"]);
    pit.ok(&["snapshot", "disks.pit", "ci-1", "ci-1-before"]);
    pit.ok(&["volume", "create", "disks.pit", "scratch", "--size", "1G"]);
    pit
}

#[test]
fn a_picture_shows_every_volume_and_nothing_of_the_machine() {
    let pit = pit();
    assert_eq!(pit.ok(&["tree", "disks.pit", "--svg", "all.svg"]), "all.svg: 4 volumes\n");
    let svg = std::fs::read_to_string(pit.path("all.svg")).unwrap();
    for text in [">golden<", ">ci-1<", ">ci-1-before<", ">scratch<", ">virtual, 25 % others&apos;<", ">real<"] {
        assert!(svg.contains(text), "{text} in {svg}");
    }
    assert!(svg.contains("data of its own: 1 MiB, 25 %"), "{svg}");
    let folder = pit.path("");
    assert!(!svg.contains(folder.to_str().unwrap()) && !svg.contains("disks.pit"));
    pit.ok(&["tree", "disks.pit", "--svg", "again.svg"]);
    assert!(std::fs::read_to_string(pit.path("again.svg")).unwrap() == svg, "the same again");
    pit.ok(&["tree", "disks.pit", "ci-1", "--svg", "part.svg"]);
    let part = std::fs::read_to_string(pit.path("part.svg")).unwrap();
    assert!(part.contains(">ci-1-before<") && !part.contains(">scratch<") && !part.contains(">golden<"));
}

#[test]
fn a_file_is_replaced_only_when_told_and_not_by_half() {
    let pit = pit();
    std::fs::write(pit.path("mine"), "mine").unwrap();
    assert!(pit.fails(&["tree", "disks.pit", "--svg", "mine"]).contains("overwrite it with --force"));
    assert!(
        pit.fails(&["tree", "disks.pit", "nobody", "--svg", "mine", "--force"]).contains("no volume named 'nobody'")
    );
    assert_eq!(std::fs::read_to_string(pit.path("mine")).unwrap(), "mine");
    pit.ok(&["tree", "disks.pit", "--svg", "mine", "--force"]);
    assert!(std::fs::read_to_string(pit.path("mine")).unwrap().starts_with("<svg "));
    for args in [&["--svg", "x", "--output", "json"][..], &["--force"]] {
        assert_eq!(pit.run(&[&["tree", "disks.pit"], args].concat()).status.code(), Some(2));
    }
    assert!(!pit.path("x").exists());
}
