//! Write-through views of a container that nobody holds.
// req: R24; rules: VIEW-8, VIEW-9

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::Pit;

#[test]
fn a_view_is_made_shown_and_ended() {
    let pit = Pit::new();
    std::fs::write(pit.path("disk.raw"), common::noise(4 << 20, 1)).unwrap();
    pit.ok(&["import", "disks.pit", "db", "disk.raw"]);
    for end in ["drop", "keep"] {
        let made = pit.json(&["view", "create", "disks.pit", "db", "db-new"]);
        assert_eq!((&made["name"], &made["view-of"], &made["viewed-by"]), (&"db-new".into(), &"db".into(), &().into()));
        let list = pit.ok(&["list", "disks.pit"]);
        assert!(list.contains("viewed by db-new") && list.contains("virtual, view of db"), "{list}");
        assert!(pit.ok(&["tree", "disks.pit"]).contains("└── db-new"));
        assert!(pit.ok(&["info", "disks.pit", "db-new"]).contains("view of db"));
        pit.ok(&["compare", "disks.pit", "db-new", "--file", "disk.raw"]);
        for refused in [
            &["snapshot", "disks.pit", "db", "copy"][..],
            &["refresh", "disks.pit", "db", "--source", "db-new"],
            &["hydrate", "disks.pit", "db-new"],
            &["delete", "disks.pit", "db"],
            &["view", "create", "disks.pit", "db-new", "third"],
        ] {
            let message = pit.fails(refused);
            assert!(message.contains("pitstop view drop CONTAINER db-new"), "{refused:?}: {message}");
        }
        let message = pit.fails(&["view", end, "disks.pit", "db"]);
        assert!(message.contains("'db' is no write-through view"), "{message}");
        assert_eq!(pit.ok(&["check", "disks.pit"]), "no errors were found\n");
        assert!(pit.ok(&["view", end, "disks.pit", "db-new"]).starts_with("db-new: 4 MiB, copy of db as of "));
        assert!(!pit.ok(&["list", "disks.pit"]).contains("view"));
        pit.ok(&["compare", "disks.pit", "db", "db-new"]);
        pit.ok(&["delete", "disks.pit", "db-new"]);
    }
    pit.ok(&["compare", "disks.pit", "db", "--file", "disk.raw"]);
    assert_eq!(pit.ok(&["check", "disks.pit"]), "no errors were found\n");
}
