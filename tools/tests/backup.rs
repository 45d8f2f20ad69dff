//! Backups and restores of a container that nobody holds.
//!
//! req: R21, R22. Rules: BAK-8, BAK-9, BAK-13, BAK-14, BAK-18, BAK-40, BAK-41, BAK-42.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Pit, noise};
use pitstop_format::{Container, FileDisk, OpenMode, VolumeIo};

const LEN: usize = 4 << 20;

/// Changes a volume.
fn change(pit: &Pit, name: &str, how: impl FnOnce(VolumeIo)) {
    let disk = FileDisk::open(&pit.container, OpenMode::ReadWrite).unwrap();
    let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
    how(VolumeIo::new(&container, container.volume(name).unwrap()));
    container.close().unwrap();
}

/// Writes into volume `db`.
fn write(pit: &Pit, at: u64, bytes: &[u8]) {
    change(pit, "db", |io| io.write_at(bytes, at).unwrap());
}

/// `db` of noise, its backup `bulk`, and an addendum for each of three days; what `db` held on each, the backup's first.
fn three_days(pit: &Pit) -> Vec<Vec<u8>> {
    let mut model = noise(LEN, 1);
    std::fs::write(pit.path("day-0"), &model).unwrap();
    pit.ok(&["import", "disks.pit", "db", "day-0"]);
    assert_eq!(pit.ok(&["backup", "disks.pit", "db", "bulk"]), "db: backed up to bulk\n");
    let mut days = vec![model.clone()];
    for day in 1..=3usize {
        let before = format!("day-{}", day - 1);
        pit.ok(&["snapshot", "disks.pit", "db", &before]);
        let (at, bytes) = (day << 19, noise(50 * 512, day as u64 + 10));
        write(pit, at as u64, &bytes);
        model[at..at + bytes.len()].copy_from_slice(&bytes);
        write(pit, (at + 65536) as u64, &[0; 8192]);
        model[at + 65536..at + 65536 + 8192].fill(0);
        pit.ok(&["backup", "disks.pit", "db", &format!("add-{day}"), "--since", &before]);
        days.push(model.clone());
    }
    days
}

fn contents(pit: &Pit, name: &str) -> Vec<u8> {
    pit.ok(&["export", "disks.pit", name, "exported", "--force"]);
    std::fs::read(pit.path("exported")).unwrap()
}

#[test]
fn every_day_of_a_chain_is_restored_over_what_is_there() {
    let pit = Pit::new();
    let days = three_days(&pit);
    assert!((1..=3).all(|day| std::fs::metadata(pit.path(&format!("add-{day}"))).unwrap().len() < 100_000));
    for last in [3, 0, 1, 2] {
        let addenda = (1..=last).map(|day| format!("--addendum=add-{day}"));
        let arguments: Vec<_> = ["restore", "disks.pit", "back", "--from-backup", "bulk"].map(String::from).into();
        let arguments: Vec<String> = arguments.into_iter().chain(addenda).collect();
        pit.ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(contents(&pit, "back") == days[last], "day {last} is not restored");
        assert_eq!(pit.ok(&["check", "disks.pit"]), "no errors were found\n");
    }
    // Copies of what was there before keep it.
    pit.ok(&["snapshot", "disks.pit", "back", "kept"]);
    pit.ok(&["restore", "disks.pit", "back", "--from-backup", "bulk", "-f", "raw"]);
    assert!(contents(&pit, "kept") == days[2] && contents(&pit, "back") == days[0]);
    assert_eq!(pit.names().iter().filter(|name| name.starts_with("import-")).count(), 0);
}

#[test]
fn what_a_copy_held_when_it_was_backed_up_is_undone_by_changes_since_it() {
    let pit = Pit::new();
    pit.ok(&["volume", "create", "disks.pit", "db", "--size", "4M"]);
    pit.ok(&["snapshot", "disks.pit", "db", "monday"]);
    change(&pit, "monday", |io| io.write_at(&noise(8192, 3), 1 << 20).unwrap());
    pit.ok(&["backup", "disks.pit", "monday", "bulk"]);
    change(&pit, "monday", |io| io.write_zeroes(1 << 20..(1 << 20) + 8192).unwrap());
    pit.ok(&["backup", "disks.pit", "db", "add", "--since", "monday"]);
    pit.ok(&["restore", "disks.pit", "back", "--from-backup", "bulk", "--addendum", "add"]);
    assert!(contents(&pit, "back") == vec![0; LEN]);
}

#[test]
fn files_that_do_not_belong_together_leave_the_volume_as_it_is() {
    let pit = Pit::new();
    let days = three_days(&pit);
    let whole = std::fs::read(pit.path("add-2")).unwrap();
    std::fs::write(pit.path("cut"), &whole[..whole.len() - 32]).unwrap();
    let mut flipped = whole.clone();
    flipped[5000] ^= 1;
    std::fs::write(pit.path("flipped"), &flipped).unwrap();
    std::fs::write(pit.path("small"), noise(1 << 20, 5)).unwrap();
    pit.ok(&["backup", "disks.pit", "db", "live", "--addendum", "originals"]);
    // A guest may have written that to its disk.
    pit.ok(&["export", "disks.pit", "db", "guests", "-O", "qcow2"]);
    pit.ok(&["export", "disks.pit", "db", "nested", "-O", "pitstop"]);
    let other = Pit::new();
    three_days(&other);
    std::fs::copy(other.path("add-2"), pit.path("other")).unwrap();
    let names = pit.names();
    let cases: [(&str, &[&str], &str); 12] = [
        ("bulk", &["add-1", "originals"], "has original images"),
        ("bulk", &["originals", "originals"], "has original images"),
        ("guests", &[], "say --format qcow2 or --format raw"),
        ("nested", &[], "say --format pitstop or --format raw"),
        ("bulk", &["add-2", "add-1"], "add-2 belongs right behind add-1"),
        ("bulk", &["add-1", "add-3"], "and add-1 ends with what was there at "),
        ("bulk", &["originals", "add-1"], "missing between the two"),
        ("bulk", &["add-1", "other"], "missing between the two"),
        ("bulk", &["cut"], "it is cut off"),
        ("bulk", &["flipped"], "BAK-16"),
        ("bulk", &["bulk"], "it is no addendum"),
        ("small", &["add-1"], "is of a volume of 4194304 bytes, not of 1048576"),
    ];
    for (bulk, addenda, expected) in cases {
        let mut arguments = vec!["restore", "disks.pit", "db", "--from-backup", bulk];
        addenda.iter().for_each(|addendum| arguments.extend(["--addendum", addendum]));
        let message = pit.fails(&arguments);
        assert!(message.contains(expected), "{message}");
        assert_eq!(pit.names(), names);
    }
    assert!(contents(&pit, "db") == days[3]);
    assert_eq!(pit.ok(&["check", "disks.pit"]), "no errors were found\n");
}

// rules: BAK-14, BAK-40, BAK-41
#[test]
fn original_images_are_followed_by_the_changes_since_a_copy_made_before_the_next_write() {
    let pit = Pit::new();
    let mut days = three_days(&pit);
    pit.ok(&["backup", "disks.pit", "db", "live", "--addendum", "originals"]);
    pit.ok(&["snapshot", "disks.pit", "db", "day-3"]);
    write(&pit, 0, &[5; 4096]);
    days[3][..4096].fill(5);
    pit.ok(&["backup", "disks.pit", "db", "add-4", "--since", "day-3"]);
    let restore = ["restore", "disks.pit", "back", "--from-backup"];
    let chains: [&[&str]; 2] = [
        &["live", "--addendum=originals", "--addendum=add-4"],
        &["bulk", "--addendum=add-1", "--addendum=add-2", "--addendum=add-3", "--addendum=add-4"],
    ];
    for chain in chains {
        pit.ok(&[&restore[..], chain].concat());
        assert!(contents(&pit, "back") == days[3], "{chain:?}");
    }
    // Nobody could know that a copy made later, after a write, is what the backup has.
    pit.ok(&["snapshot", "disks.pit", "db", "day-4"]);
    pit.ok(&["backup", "disks.pit", "db", "add-5", "--since", "day-4"]);
    let message = pit.fails(&[&restore[..], &["live", "--addendum=originals", "--addendum=add-5"]].concat());
    assert!(message.contains("missing between the two"), "{message}");
    // A container that cannot be changed is backed up all the same.
    write(&pit, 0, &[6; 4096]);
    let reader = FileDisk::open(&pit.container, OpenMode::ReadOnly).unwrap();
    let bytes = std::fs::read(&pit.container).unwrap();
    let output = pit.run(&["backup", "disks.pit", "db", "add-6", "--since", "day-4"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("no addendum that is made later will be known"), "{said}");
    assert!(std::fs::read(&pit.container).unwrap() == bytes);
    drop(reader);
    pit.ok(&["snapshot", "disks.pit", "db", "day-6"]);
    write(&pit, 0, &[7; 4096]);
    pit.ok(&["backup", "disks.pit", "db", "add-7", "--since", "day-6"]);
    let message = pit.fails(&[&restore[..], &["bulk", "--addendum=add-6", "--addendum=add-7"]].concat());
    assert!(message.contains("missing between the two"), "{message}");
}

// rules: BAK-14, BAK-40
#[test]
fn days_without_a_write_and_days_that_come_back_go_on_from_each_other() {
    let pit = Pit::new();
    let mut model = noise(LEN, 1);
    std::fs::write(pit.path("mon"), &model).unwrap();
    pit.ok(&["import", "disks.pit", "db", "mon"]);
    let day = |name: &str, before: &str| {
        pit.ok(&["snapshot", "disks.pit", "db", name]);
        pit.ok(&["backup", "disks.pit", name, &format!("{name}.add"), "--since", before]);
    };
    pit.ok(&["snapshot", "disks.pit", "db", "mon"]);
    pit.ok(&["backup", "disks.pit", "mon", "bulk"]);
    day("tue", "mon");
    day("wed", "tue");
    write(&pit, 0, &[5; 4096]);
    day("thu", "wed");
    pit.ok(&["refresh", "disks.pit", "db", "--source", "mon"]);
    day("fri", "thu");
    write(&pit, 8192, &[6; 4096]);
    day("sat", "fri");
    let monday = model.clone();
    model[8192..12288].fill(6);
    let restore = |addenda: &[&str]| {
        let mut arguments = vec!["restore", "disks.pit", "back", "--from-backup", "bulk"];
        addenda.iter().for_each(|addendum| arguments.extend(["--addendum", addendum]));
        pit.run(&arguments)
    };
    let right: [(&[&str], &[u8]); 6] = [
        (&["tue.add", "wed.add"], &monday),
        (&["wed.add", "tue.add"], &monday),
        (&["tue.add", "wed.add", "thu.add", "fri.add"], &monday),
        (&["thu.add", "fri.add", "tue.add"], &monday),
        (&["tue.add", "wed.add", "thu.add", "fri.add", "sat.add"], &model),
        (&["tue.add", "sat.add"], &model),
    ];
    for (addenda, expected) in right {
        let output = restore(addenda);
        assert!(output.status.success(), "{addenda:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(contents(&pit, "back") == expected, "{addenda:?}");
    }
    for addenda in [&["thu.add", "sat.add"][..], &["tue.add", "fri.add"], &["sat.add", "thu.add"]] {
        assert_eq!(restore(addenda).status.code(), Some(1), "{addenda:?}");
    }
}

// rules: BAK-10, BAK-28
#[test]
fn containers_in_use_are_not_replaced_and_volumes_in_views_not_backed_up() {
    let pit = Pit::new();
    three_days(&pit);
    pit.ok(&["backup", "disks.pit", "db", "db.pit", "-O", "pitstop"]);
    let held = FileDisk::open(&pit.path("db.pit"), OpenMode::ReadWrite).unwrap();
    let orders: [&[&str]; 4] = [
        &["backup", "disks.pit", "db", "db.pit", "-O", "pitstop", "--force"],
        &["backup", "disks.pit", "db", "db.pit", "--since", "day-0", "--force"],
        &["backup", "disks.pit", "db", "x", "--addendum", "db.pit", "--force"],
        &["export", "disks.pit", "db", "db.pit", "--force"],
    ];
    for order in orders {
        let message = pit.fails(order);
        assert!(message.contains("db.pit is a container in use"), "{message}");
    }
    drop(held);
    pit.ok(orders[0]);
    pit.ok(&["view", "create", "disks.pit", "db", "look"]);
    for name in ["db", "look"] {
        for more in [&[][..], &["--addendum", "y"], &["--since", "day-0"]] {
            let message = pit.fails(&[&["backup", "disks.pit", name, "x"], more].concat());
            assert!(message.contains("view"), "{message}");
        }
    }
    assert!(!pit.path("x").exists() && !pit.path("y").exists());
}

// rule: BAK-42
#[test]
fn a_backup_that_is_a_container_is_restored_and_imported() {
    let pit = Pit::new();
    let days = three_days(&pit);
    assert_eq!(pit.ok(&["backup", "disks.pit", "db", "db.pit", "-O", "pitstop"]), "db: backed up to db.pit\n");
    assert!(pit.fails(&["backup", "disks.pit", "db", "db.pit", "-O", "pitstop"]).contains("--force"));
    pit.ok(&["backup", "disks.pit", "db", "db.pit", "-O", "pitstop", "--force"]);
    assert_eq!(pit.json(&["list", "db.pit"])[0]["name"], "db");
    assert_eq!(pit.ok(&["check", "db.pit"]), "no errors were found\n");
    pit.ok(&["restore", "disks.pit", "back", "--from-backup", "db.pit", "-f", "pitstop"]);
    pit.ok(&["import", "disks.pit", "imported", "db.pit"]);
    assert!(contents(&pit, "back") == days[3] && contents(&pit, "imported") == days[3]);
    assert_eq!(pit.ok(&["compare", "disks.pit", "db", "--file", "db.pit"]), "db and db.pit are identical\n");
    let message = pit.fails(&["import", "disks.pit", "more", "disks.pit"]);
    assert!(message.contains("is a container of "), "{message}");
    // Nothing but the volume is in it, and it is a container like any other.
    pit.ok(&["snapshot", "db.pit", "db", "copy"]);
    let message = pit.fails(&["restore", "disks.pit", "back", "--from-backup", "db.pit", "-f", "pitstop"]);
    assert!(message.contains("is a container of 2 volumes") && message.contains("pitstop export"), "{message}");
    assert!(
        std::fs::read_dir(pit.path("."))
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_string_lossy().starts_with(".pitstop-") })
    );
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    let pit = Pit::new();
    pit.ok(&["volume", "create", "disks.pit", "db", "--size", "1M"]);
    pit.ok(&["volume", "create", "disks.pit", "small", "--size", "512K"]);
    let cases: [(&[&str], &str); 7] = [
        (&["backup", "disks.pit", "db", "bulk", "--since", "db"], "has not changed since itself"),
        (&["backup", "disks.pit", "db", "bulk", "--addendum", "./bulk"], "cannot be both"),
        (&["backup", "disks.pit", "db", "disks.pit", "--force"], "is the container itself"),
        (&["backup", "disks.pit", "none", "bulk"], "no volume named 'none'"),
        (&["backup", "disks.pit", "db", "bulk", "--since", "small"], "differ in size"),
        (&["backup", "disks.pit", "db", "bulk", "--cache", "none"], "no cache region named none"),
        (&["backup", "disks.pit", "db", "no/bulk"], "cannot make a file in"),
    ];
    for (arguments, expected) in cases {
        let message = pit.fails(arguments);
        assert!(message.contains(expected), "{message}");
        assert!(!pit.path("bulk").exists());
    }
    let usage = |arguments: &[&str]| assert_eq!(pit.run(arguments).status.code(), Some(2), "{arguments:?}");
    usage(&["backup", "disks.pit", "db", "bulk", "--since", "db", "-O", "qcow2"]);
    usage(&["backup", "disks.pit", "db", "bulk", "--in-place", "--addendum", "a"]);
    usage(&["restore", "disks.pit", "db"]);
    usage(&["restore", "disks.pit", "db", "--from", "a", "--from-backup", "b"]);
    usage(&["restore", "disks.pit", "db", "--from", "a", "--addendum", "b"]);
}
