//! Tests of how a backup's files get their names: BAK-10.

use pitstop_format::{Container, CreateOptions, FileDisk, Holder, OpenMode};

use super::*;

fn file(path: &Path, text: &str, overwrite: bool) -> Target {
    let target = Target::create(path, overwrite).unwrap();
    target.file().write_all_at(text.as_bytes(), 0).unwrap();
    target
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_pair_is_replaced_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let (bulk, addendum) = (folder.path().join("bulk"), other.path().join("addendum"));
    for text in ["old", "new"] {
        name_files(Some(file(&addendum, text, true)), file(&bulk, text, true)).unwrap();
        assert_eq!((read(&bulk), read(&addendum)), (text.to_owned(), text.to_owned()));
    }
    // Where one cannot be named, both are as before.
    let (new_bulk, new_addendum) = (file(&bulk, "newer", true), file(&addendum, "newer", true));
    std::fs::remove_file(new_addendum.temporary.path()).unwrap();
    let said = name_files(Some(new_addendum), new_bulk).unwrap_err();
    assert!(said.contains("cannot name"), "{said}");
    assert_eq!((read(&bulk), read(&addendum)), ("new".to_owned(), "new".to_owned()));
    let (new_bulk, new_addendum) = (file(&bulk, "newer", true), file(&addendum, "newer", true));
    std::fs::remove_file(new_bulk.temporary.path()).unwrap();
    name_files(Some(new_addendum), new_bulk).unwrap_err();
    assert_eq!((read(&bulk), read(&addendum)), ("new".to_owned(), "new".to_owned()));
    for folder in [folder, other] {
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn what_has_come_to_its_place_meanwhile_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (bulk, addendum) = (folder.path().join("bulk"), folder.path().join("addendum"));
    let (new_bulk, new_addendum) = (file(&bulk, "new", false), file(&addendum, "new", false));
    std::fs::write(&bulk, "mine").unwrap();
    let said = name_files(Some(new_addendum), new_bulk).unwrap_err();
    assert!(said.contains("exists already"), "{said}");
    assert_eq!((read(&bulk).as_str(), addendum.exists()), ("mine", false));

    let new_bulk = file(&bulk, "new", true);
    std::fs::remove_file(&bulk).unwrap();
    let disk = FileDisk::create(&bulk).unwrap();
    Container::create(disk, &CreateOptions::default()).unwrap();
    let disk = FileDisk::open(&bulk, OpenMode::ReadWrite).unwrap();
    disk.announce(&Holder { pid: std::process::id(), program: "test".to_owned(), control: None }).unwrap();
    let said = name_files(None, new_bulk).unwrap_err();
    assert!(said.contains("a container in use"), "{said}");
    assert!(read(&bulk) != "new");
}

#[test]
fn one_place_is_known_by_all_its_names() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link");
    std::fs::create_dir(folder.path().join("real")).unwrap();
    std::os::unix::fs::symlink("real", &link).unwrap();
    let place = folder.path().join("real/bulk");
    for name in ["real/../real/bulk", "link/bulk", "./real/bulk", "real/bulk"] {
        assert!(is_same_place(&folder.path().join(name), &place), "{name}");
    }
    for name in ["bulk", "real/other", "none/bulk"] {
        assert!(!is_same_place(&folder.path().join(name), &place), "{name}");
    }
}

#[test]
fn zeros_are_written_in_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let target = Target::create(&folder.path().join("bulk"), false).unwrap();
    let len = 2 * ZEROS_LEN + 4096;
    target.file().write_all_at(&vec![1; len as usize + 2], 0).unwrap();
    target.write_zeros(1, len).unwrap();
    let bytes = std::fs::read(target.temporary.path()).unwrap();
    assert!(bytes[1..=len as usize].iter().all(|&byte| byte == 0) && bytes[0] == 1 && bytes[len as usize + 1] == 1);
}
