//! The command and the daemon on bad input: a clear error that says what to do, an exit code that
//! is not 0, and a container whose bytes are as before. Conversion is compared with qemu-img.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use pitstop_tests::{
    Background, Export, Failure, Pitstop, Pitstopd, Scratch, allocated_bytes, run, sha256_of, system_program,
    write_pattern_file,
};

const MIB: u64 = 1 << 20;
/// Where the two copies of the superblock lie.
const SUPERBLOCKS: [u64; 2] = [0, 256 << 10];
const SUPERBLOCK_BYTES: usize = 4096;

/// A container with the volume `golden` of 8 MiB and its snapshot `ci-1`.
fn small_container(scratch: &Scratch) -> Pitstop {
    let image = scratch.file("golden.raw");
    write_pattern_file(&image, 8 * MIB, 1);
    let pitstop = Pitstop::on(scratch.file("disks.pit"));
    pitstop.run::<&str>("create", &[]);
    pitstop.run("import", &["golden", text(&image)]);
    pitstop.run("snapshot", &["golden", "ci-1"]);
    pitstop.assert_clean();
    pitstop
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests' paths are text")
}

/// A file's bytes, to be compared with what it holds later.
struct Bytes(Vec<u8>);

impl Bytes {
    fn of(path: &Path) -> Self {
        Self(fs::read(path).unwrap())
    }

    /// Asserts that the file has not changed at all.
    fn assert_same(&self, path: &Path, what: &str) {
        assert!(self.0 == fs::read(path).unwrap(), "{what} changed {}", path.display());
    }

    /// Asserts that nothing has changed but the superblocks, which say that the container was
    /// opened and closed.
    fn assert_same_contents(&self, path: &Path, what: &str) {
        let now = fs::read(path).unwrap();
        assert_eq!(self.0.len(), now.len(), "{what} changed the size of {}", path.display());
        let mut start = 0;
        for superblock in SUPERBLOCKS.map(|offset| usize::try_from(offset).unwrap()) {
            let same = self.0[start..superblock] == now[start..superblock];
            assert!(same, "{what} changed {} before {superblock}", path.display());
            start = superblock + SUPERBLOCK_BYTES;
        }
        assert!(self.0[start..] == now[start..], "{what} changed {}", path.display());
    }
}

fn assert_says(failure: &Failure, words: &[&str]) {
    for word in words {
        assert!(failure.message.contains(word), "the message lacks {word:?}: {}", failure.message);
    }
}

/// Every verb that opens a container, with arguments that suit [`small_container`].
fn verbs(scratch: &Scratch) -> Vec<(&'static str, Vec<String>)> {
    let image = scratch.file("verb.raw");
    write_pattern_file(&image, MIB, 9);
    let target = scratch.file("verb.exported");
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    vec![
        ("list", words(&[])),
        ("info", words(&[])),
        ("map", words(&["ci-1"])),
        ("diff", words(&["golden", "ci-1"])),
        ("compare", words(&["golden", "ci-1"])),
        ("tree", words(&[])),
        ("volume create", words(&["new", "--size", "1M"])),
        ("rename", words(&["ci-1", "ci-2"])),
        ("delete", words(&["ci-1"])),
        ("set", words(&["ci-1", "--durability", "none"])),
        ("snapshot", words(&["golden", "ci-2"])),
        ("refresh", words(&["ci-1", "--source", "golden"])),
        ("hydrate", words(&["ci-1"])),
        ("split", words(&["ci-1"])),
        ("job list", words(&[])),
        ("job wait", words(&[])),
        ("job pause", words(&["hydrate-1"])),
        ("restore", words(&["golden", "--from", "ci-1"])),
        ("import", words(&["new", text(&image)])),
        ("export", words(&["golden", text(&target)])),
    ]
}

/// Asserts that every verb, `check` and the daemon refuse the container with `expected`, and that
/// its bytes stay.
fn assert_refused_everywhere(scratch: &Scratch, container: &Path, expected: &[&str]) {
    let pitstop = Pitstop::on(container);
    let before = Bytes::of(container);
    for (verb, arguments) in verbs(scratch) {
        assert_says(&pitstop.fails(verb, &arguments), expected);
        before.assert_same(container, verb);
    }
    assert!(!scratch.file("verb.exported").exists());
    let exports = [Export::writable("golden", scratch.socket("golden"))];
    let failure = Pitstopd::fails(container, &exports, &scratch.socket("control"));
    assert_says(&failure, expected);
    before.assert_same(container, "pitstopd");
    assert!(!scratch.socket("golden").exists() && !scratch.socket("control").exists());
}

#[test]
fn a_foreign_file_is_refused() {
    let scratch = Scratch::new("cli-foreign");
    let noise = scratch.file("noise");
    write_pattern_file(&noise, 3 * MIB, 5);
    let zeros = scratch.file("zeros");
    File::create(&zeros).unwrap().set_len(2 * MIB).unwrap();
    let short = scratch.file("short");
    fs::write(&short, "this is not a container\n").unwrap();
    let qcow2 = scratch.file("image.qcow2");
    run(Command::new(system_program("qemu-img")).args(["create", "-q", "-f", "qcow2"]).args([text(&qcow2), "1M"]));
    for file in [&noise, &zeros, &short, &qcow2] {
        assert_refused_everywhere(&scratch, file, &["not a pitstop container"]);
        Pitstop::on(file).assert_not_sound();
    }
}

#[test]
fn a_container_that_is_not_there_is_named() {
    let scratch = Scratch::new("cli-missing");
    let missing = scratch.file("missing.pit");
    let pitstop = Pitstop::on(&missing);
    for (verb, arguments) in verbs(&scratch) {
        assert_says(&pitstop.fails(verb, &arguments), &["missing.pit"]);
        assert!(!missing.exists(), "`pitstop {verb}` made a file");
    }
    assert_eq!(pitstop.fails::<&str>("check", &[]).code, 1);
    let failure = Pitstopd::fails(&missing, &[], &scratch.socket("control"));
    assert_says(&failure, &["missing.pit"]);
    assert!(!missing.exists());
}

#[test]
fn a_truncated_container_is_refused() {
    let scratch = Scratch::new("cli-truncated");
    let pitstop = small_container(&scratch);
    let whole = fs::metadata(pitstop.container()).unwrap().len();
    let cut = scratch.file("cut.pit");
    for len in [whole / 2, MIB, 300 << 10] {
        fs::copy(pitstop.container(), &cut).unwrap();
        OpenOptions::new().write(true).open(&cut).unwrap().set_len(len).unwrap();
        assert_refused_everywhere(&scratch, &cut, &["truncated"]);
        Pitstop::on(&cut).assert_not_sound();
    }
}

#[test]
fn flipped_bits_in_both_superblocks_are_refused() {
    let scratch = Scratch::new("cli-superblock");
    let pitstop = small_container(&scratch);
    let spoiled = scratch.file("spoiled.pit");
    for offset in [16, 40, 100, 200] {
        fs::copy(pitstop.container(), &spoiled).unwrap();
        for superblock in SUPERBLOCKS {
            flip_bit(&spoiled, superblock + offset);
        }
        assert_refused_everywhere(&scratch, &spoiled, &["superblock"]);
        Pitstop::on(&spoiled).assert_not_sound();
    }
}

/// Flips one bit in each written 4 KiB page in turn: whatever it hits, nothing panics, nothing is
/// killed, nothing is written, and the damaged structures are found.
#[test]
fn a_flipped_bit_anywhere_is_found_or_harmless_and_never_a_panic() {
    let scratch = Scratch::new("cli-flips");
    let pitstop = small_container(&scratch);
    let container = pitstop.container();
    let before = Bytes::of(container);
    let mut found = 0;
    for offset in pages_with_content(container, 100) {
        flip_bit(container, offset + 24);
        let written = fs::metadata(container).unwrap().modified().unwrap();
        for verb in ["check", "list", "info", "tree"] {
            let output = pitstop.command::<&str>(verb, &[]).output().unwrap();
            let message = String::from_utf8_lossy(&output.stderr);
            let code = output.status.code();
            assert!(
                code.is_some_and(|code| code != 101) && !message.contains("panicked"),
                "`pitstop {verb}` with a flipped bit at {offset}: {} {message}",
                output.status
            );
            if verb == "check" && code != Some(0) {
                assert!([1, 2, 3].contains(&code.unwrap()), "check gave {code:?}");
                found += 1;
            }
        }
        let now = fs::metadata(container).unwrap().modified().unwrap();
        assert_eq!(now, written, "a flip at {offset} led to a write");
        flip_bit(container, offset + 24);
    }
    before.assert_same(container, "looking");
    assert!(found > 0, "check found none of the flipped bits");
    pitstop.assert_clean();
}

fn flip_bit(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 0x10;
    file.write_all_at(&byte, offset).unwrap();
}

/// Offsets of pages that are not all zeros, `limit` of them at most, spread over the file.
fn pages_with_content(path: &Path, limit: usize) -> Vec<u64> {
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    let mut page = [0; 4096];
    let mut written = Vec::new();
    for offset in (0..len / 4096).map(|page| page * 4096) {
        file.read_exact_at(&mut page, offset).unwrap();
        if page.iter().any(|byte| *byte != 0) {
            written.push(offset);
        }
    }
    // Metadata is a small part: all of the first pages, and samples of the rest.
    let (first, rest) = written.split_at(written.len().min(limit / 2));
    let step = rest.len().div_ceil(limit / 2).max(1);
    first.iter().chain(rest.iter().step_by(step)).copied().collect()
}

/// A tmpfs of a few MiB, in the mount namespace of a process that ends with the test.
struct TinyFileSystem {
    _holder: Background,
    folder: PathBuf,
}

impl TinyFileSystem {
    fn mount(scratch: &Scratch, size_mib: u64) -> Self {
        let folder = scratch.file("tiny");
        fs::create_dir(&folder).unwrap();
        // A symbolic link on the way would be followed outside of the other namespace.
        let folder = folder.canonicalize().unwrap();
        let script = format!(
            "mount -t tmpfs -o size={size_mib}M none '{0}' && touch '{0}/mounted' && exec sleep 600",
            folder.display()
        );
        let mut holder = Background::spawn(
            "mount",
            Command::new(system_program("unshare")).args(["--mount", "sh", "-c", &script]),
            scratch.file("mount.log"),
        );
        // Others reach it through the process that sees it.
        let folder = PathBuf::from(format!("/proc/{}/root{}", holder.pid(), folder.display()));
        for _ in 0..500 {
            if folder.join("mounted").exists() {
                return Self { _holder: holder, folder };
            }
            let ended = holder.ended();
            assert!(ended.is_none(), "mounting needs root\n{}", holder.log_tail());
            thread::sleep(Duration::from_millis(10));
        }
        panic!("no mount after 5 s\n{}", holder.log_tail());
    }
}

#[test]
fn a_file_system_too_small_for_a_container_leaves_no_file() {
    let scratch = Scratch::new("cli-too-small");
    let tiny = TinyFileSystem::mount(&scratch, 4);
    let pitstop = Pitstop::on(tiny.folder.join("disks.pit"));
    let failure = pitstop.fails::<&str>("create", &[]);
    assert_says(&failure, &["space"]);
    assert!(!pitstop.container().exists(), "a part of a container was left");
}

#[test]
fn a_file_system_that_fills_up_during_an_import_costs_only_the_import() {
    let scratch = Scratch::new("cli-full");
    let tiny = TinyFileSystem::mount(&scratch, 96);
    let pitstop = Pitstop::on(tiny.folder.join("disks.pit"));
    pitstop.run::<&str>("create", &[]);
    let small = scratch.file("small.raw");
    write_pattern_file(&small, 2 * MIB, 3);
    pitstop.run("import", &["small", text(&small)]);
    let before = pitstop.run::<&str>("list", &[]);

    let large = scratch.file("large.raw");
    write_pattern_file(&large, 128 * MIB, 4);
    let failure = pitstop.fails("import", &["large", text(&large)]);
    assert_says(&failure, &["space"]);
    assert_eq!(pitstop.run::<&str>("list", &[]), before);
    let exported = scratch.file("small.exported");
    pitstop.run("export", &["small", text(&exported)]);
    assert_eq!(sha256_of(&exported), sha256_of(&small));
    pitstop.assert_clean();
}

// rule: CHK-29
#[test]
fn a_repair_whose_log_finds_no_room_changes_nothing() {
    let scratch = Scratch::new("cli-log-full");
    let tiny = TinyFileSystem::mount(&scratch, 1);
    let pitstop = small_container(&scratch);
    // The last slab's descriptor: a free one.
    let slab = fs::metadata(pitstop.container()).unwrap().len() / (256 << 10) - 1;
    flip_bit(pitstop.container(), 2 * (256 << 10) + slab * 32 + 9);
    let before = Bytes::of(pitstop.container());
    let room = 8 << 10;
    fs::write(tiny.folder.join("filler"), vec![1; usize::try_from(MIB).unwrap() - room]).unwrap();
    let log = tiny.folder.join("log");
    let failure = pitstop.fails("check", &["--repair", "all", "--repair-log", text(&log)]);
    assert_eq!(failure.code, 1);
    assert_says(&failure, &["No space left", text(&log), "has not been changed", "--repair-log"]);
    before.assert_same(pitstop.container(), "a repair without a log");
    assert!(!log.exists(), "a part of a log was left");
    fs::remove_file(tiny.folder.join("filler")).unwrap();
    pitstop.run("check", &["--repair", "all", "--repair-log", text(&log)]);
    pitstop.assert_clean();
}

#[test]
fn a_second_daemon_is_told_who_holds_the_container() {
    let scratch = Scratch::new("cli-second");
    let pitstop = small_container(&scratch);
    let exports = [Export::writable("ci-1", scratch.socket("ci-1"))];
    let daemon = Pitstopd::serve(&scratch, pitstop.container(), &exports);
    let holder = daemon.pid().to_string();

    let others = [Export::writable("golden", scratch.socket("golden"))];
    let failure = Pitstopd::fails(pitstop.container(), &others, &scratch.socket("second"));
    assert_says(&failure, &["in use", "pitstopd", &holder]);
    assert!(!scratch.socket("second").exists());
    assert!(!scratch.socket("golden").exists());

    // The first goes on: looking and changing work through it.
    pitstop.run("snapshot", &["golden", "ci-2"]);
    assert!(pitstop.run::<&str>("list", &[]).contains("ci-2"));
    daemon.stop();
    pitstop.assert_clean();
    assert!(pitstop.run::<&str>("list", &[]).contains("ci-2"));
}

#[test]
fn a_socket_in_a_missing_folder_is_refused_before_anything_is_served() {
    let scratch = Scratch::new("cli-folder");
    let pitstop = small_container(&scratch);
    // Background work goes on in a container that is open; here there is none.
    pitstop.run("set", &["golden", "--verify", "off"]);
    let before = Bytes::of(pitstop.container());
    let missing = scratch.socket("no-such-folder/ci-1.sock");
    let good = scratch.socket("golden");
    let exports = [Export::writable("golden", &good), Export::writable("ci-1", &missing)];
    let failure = Pitstopd::fails(pitstop.container(), &exports, &scratch.socket("control"));
    assert_says(&failure, &["no-such-folder"]);
    let control = scratch.socket("no-such-folder/control");
    let failure = Pitstopd::fails(pitstop.container(), &exports[..1], &control);
    assert_says(&failure, &["no-such-folder"]);
    assert!(!good.exists() && !scratch.socket("control").exists());
    before.assert_same_contents(pitstop.container(), "pitstopd");
}

#[test]
fn a_volume_that_does_not_exist_is_named() {
    let scratch = Scratch::new("cli-volume");
    let pitstop = small_container(&scratch);
    let before = Bytes::of(pitstop.container());
    let target = scratch.file("exported");
    let golden = scratch.file("golden.raw");
    let expected = ["no volume named 'nobody'"];
    for (verb, arguments) in [
        ("list", &["nobody"][..]),
        ("info", &["nobody"]),
        ("map", &["nobody"]),
        ("diff", &["golden", "nobody"]),
        ("compare", &["golden", "nobody"]),
        ("compare", &["nobody", "--file", text(&golden)]),
        ("tree", &["nobody"]),
        ("rename", &["nobody", "somebody"]),
        ("delete", &["nobody"]),
        ("set", &["nobody", "--defined"]),
        ("snapshot", &["nobody", "ci-2"]),
        ("refresh", &["nobody", "--source", "golden"]),
        ("refresh", &["ci-1", "--source", "nobody"]),
        ("restore", &["nobody", "--from", "golden"]),
        ("restore", &["golden", "--from", "nobody"]),
        ("export", &["nobody", text(&target)]),
    ] {
        assert_says(&pitstop.fails(verb, arguments), &expected);
        before.assert_same_contents(pitstop.container(), verb);
    }
    assert!(!target.exists());
    let exports = [Export::writable("nobody", scratch.socket("nobody"))];
    let failure = Pitstopd::fails(pitstop.container(), &exports, &scratch.socket("control"));
    assert_says(&failure, &expected);
    before.assert_same_contents(pitstop.container(), "pitstopd");
}

#[test]
fn names_and_sizes_that_cannot_be_are_refused() {
    let scratch = Scratch::new("cli-arguments");
    let pitstop = small_container(&scratch);
    let before = Bytes::of(pitstop.container());
    let absent = scratch.file("absent.raw");
    let image = scratch.file("golden.raw");
    for (verb, arguments, words) in [
        ("create", &[][..], &["exists"][..]),
        ("volume create", &["golden", "--size", "1M"], &["golden", "exists"]),
        ("volume create", &["new", "--size", "many"], &["many"]),
        ("volume create", &["new", "--size", "0"], &["0"]),
        ("volume create", &["", "--size", "1M"], &["name"]),
        ("snapshot", &["golden", "ci-1"], &["ci-1", "exists"]),
        ("snapshot", &["--group", "golden=ci-2", "ci-1=golden"], &["golden", "exists"]),
        ("snapshot", &["--group", "golden=ci-2", "ci-1=ci-2"], &["ci-2", "name of its own"]),
        ("rename", &["ci-1", "golden"], &["golden", "exists"]),
        ("refresh", &["ci-1", "--source", "ci-1"], &["itself"]),
        ("restore", &["ci-1", "--from", "golden"], &["golden", "not a copy of 'ci-1'", "refresh"]),
        ("import", &["golden", text(&image)], &["golden", "exists"]),
        ("import", &["new", text(&absent)], &["absent.raw"]),
    ] {
        assert_says(&pitstop.fails(verb, arguments), words);
        before.assert_same_contents(pitstop.container(), verb);
    }
    let failure = pitstop.fails::<&str>("frobnicate", &[]);
    assert_eq!(failure.code, 2);
}

// req: R1 R2 R4 R5 R6
#[test]
fn copies_keep_their_instants_through_refreshes_between_unrelated_volumes() {
    let scratch = Scratch::new("cli-refresh");
    let pitstop = Pitstop::on(scratch.file("disks.pit"));
    pitstop.run::<&str>("create", &[]);
    let mut hashes = Vec::new();
    for (seed, volume) in [(21, "a"), (22, "b")] {
        let image = scratch.file(&format!("{volume}.raw"));
        write_pattern_file(&image, 4 * MIB + 512, seed);
        pitstop.run("import", &[volume, text(&image)]);
        hashes.push(sha256_of(&image));
    }
    let hash_of = |volume: &str| {
        let target = scratch.file("hash.raw");
        pitstop.run("export", &[volume, text(&target), "--force"]);
        sha256_of(&target)
    };
    let (a, b) = (&hashes[0], &hashes[1]);
    pitstop.run("snapshot", &["a", "a-copy"]);
    pitstop.run("snapshot", &["b", "b-copy"]);
    pitstop.run("refresh", &["b", "--source", "a-copy"]);
    pitstop.run("snapshot", &["b", "b-second"]);
    pitstop.run("refresh", &["a", "--source", "b-copy"]);
    for (volume, hash) in [("a", b), ("a-copy", a), ("b", a), ("b-copy", b), ("b-second", a)] {
        assert_eq!(&hash_of(volume), hash, "volume {volume}");
    }
    // Sources may go; what was made from them stays.
    for volume in ["a-copy", "b-copy", "b"] {
        pitstop.run("delete", &[volume]);
        pitstop.assert_clean();
    }
    assert_eq!(&hash_of("a"), b);
    assert_eq!(&hash_of("b-second"), a);
}

// req: R5 R16; rules: SNP-7, SNP-27
#[test]
fn a_volume_goes_back_and_forth_between_its_copies() {
    let scratch = Scratch::new("cli-restore");
    let pitstop = small_container(&scratch);
    let other = scratch.file("other.raw");
    write_pattern_file(&other, 8 * MIB, 2);
    let hashes = [sha256_of(&scratch.file("golden.raw")), sha256_of(&other)];
    pitstop.run("import", &["other", text(&other)]);
    pitstop.run("snapshot", &["golden", "older"]);
    pitstop.run("refresh", &["golden", "--source", "other"]);
    pitstop.run("snapshot", &["golden", "newer"]);
    let hash_of = |volume: &str| {
        let target = scratch.file("hash.raw");
        pitstop.run("export", &[volume, text(&target), "--force"]);
        sha256_of(&target)
    };
    let exports = [Export::writable("golden", scratch.socket("golden"))];
    for (copy, now) in [("older", &hashes[0]), ("newer", &hashes[1]), ("older", &hashes[0])] {
        // Exported, but no guest is connected.
        let daemon = Pitstopd::serve(&scratch, pitstop.container(), &exports);
        pitstop.run("restore", &["golden", "--from", copy]);
        assert_says(&pitstop.fails("restore", &["golden", "--from", "other"]), &["not a copy of 'golden'"]);
        daemon.stop();
        for (volume, hash) in [("golden", now), ("older", &hashes[0]), ("newer", &hashes[1]), ("ci-1", &hashes[0])] {
            assert_eq!(&hash_of(volume), hash, "{volume} after golden was restored from {copy}");
        }
        pitstop.assert_clean();
    }
}

// req: R17; rules: SNP-24, SNP-26
#[test]
fn a_history_goes_on_beside_a_copy_in_use() {
    let scratch = Scratch::new("cli-history");
    let pitstop = small_container(&scratch);
    let rotate = ["golden", "--rotate", "day", "--keep", "2"];
    let name_of = |rotated: &serde_json::Value| rotated["volume"]["name"].as_str().unwrap().to_owned();
    let first = name_of(&pitstop.json("snapshot", &rotate));
    let second = name_of(&pitstop.json("snapshot", &rotate));
    let exports = [Export::read_only(&first, scratch.socket("first"))];
    let daemon = Pitstopd::serve(&scratch, pitstop.container(), &exports);
    assert_says(&pitstop.fails("snapshot", &rotate), &["has been made", &first, "could not be deleted"]);
    let third = name_of(&pitstop.json("snapshot", &["ci-1", "--rotate", "day", "--keep", "1"]));
    assert_says(&pitstop.fails("snapshot", &rotate), &[&first]);
    assert_says(&pitstop.fails("info", &[&second]), &["no volume named"]);
    daemon.stop();
    let rotated = pitstop.json("snapshot", &rotate);
    assert_eq!(rotated["deleted"][0], first.as_str());
    assert_eq!(rotated["deleted"].as_array().unwrap().len(), 2);
    pitstop.run("info", &[&third]);
    pitstop.run("info", &["ci-1"]);
    pitstop.assert_clean();
}

// req: R8, R12, R15, R18
#[test]
fn a_copy_becomes_real_by_a_daemons_job_or_by_the_command_itself() {
    let scratch = Scratch::new("cli-hydrate");
    let pitstop = small_container(&scratch);
    pitstop.run("snapshot", &["golden", "ci-2"]);
    let state = |name: &str| pitstop.json("list", &[name])[0]["state"].as_str().unwrap().to_owned();
    let exports = [Export::writable("ci-1", scratch.socket("ci-1"))];
    let daemon = Pitstopd::serve(&scratch, pitstop.container(), &exports);
    let job = pitstop.json("hydrate", &["ci-1", "--speed", "64K"])["job"].clone();
    assert_eq!((&job["type"], &job["status"]), (&"hydrate".into(), &"running".into()));
    let id = job["id"].as_str().unwrap();
    assert_eq!(state("ci-1"), "hydrating");
    for text in [pitstop.run::<&str>("list", &[]), pitstop.run("info", &["ci-1"]), pitstop.run::<&str>("tree", &[])] {
        assert!(text.contains("hydrating ") && text.contains(" %"), "{text}");
    }
    pitstop.run("job pause", &[id]);
    let table = pitstop.run::<&str>("job list", &[]);
    assert!(table.contains(id) && table.contains("paused") && table.contains("64 KiB/s"), "{table}");
    assert_says(&pitstop.fails::<&str>("job wait", &[]), &["is paused", "pitstop job resume"]);
    daemon.stop();
    // The same orders, and the same answers, on the closed container.
    assert_says(&pitstop.fails("job wait", &[id]), &["is paused", "pitstop job resume"]);
    pitstop.run("job set-speed", &[id, "--speed", "0"]);
    let daemon = Pitstopd::serve(&scratch, pitstop.container(), &exports);
    let again = &pitstop.json("job list", &[id])[0];
    assert_eq!((&again["status"], &again["x-pitstop-speed"]), (&"paused".into(), &0.into()));
    pitstop.run("job resume", &[id]);
    // It may have ended by now.
    drop(pitstop.run::<&str>("job wait", &[]));
    assert_eq!((state("ci-1"), state("ci-2")), ("real".to_owned(), "virtual".to_owned()));
    pitstop.run("delete", &["golden"]);
    let line = pitstop.run("refresh", &["ci-2", "--source", "ci-1", "--hydrate", "--wait"]);
    assert!(line.starts_with("ci-2: real, copied "), "{line}");
    daemon.stop();
    for name in ["ci-1", "ci-2"] {
        let target = scratch.file("hydrated.raw");
        pitstop.run("export", &[name, text(&target), "--force"]);
        assert_eq!(sha256_of(&target), sha256_of(&scratch.file("golden.raw")));
    }
    pitstop.assert_clean();
}

/// Makes `target` a backup of `db`, by a daemon or on the closed container.
fn back_up(pitstop: &Pitstop, scratch: &Scratch, served: bool, target: &Path, more: &[&str]) {
    let daemon = served.then(|| Pitstopd::serve(scratch, pitstop.container(), &[]));
    let arguments = [&["db", text(target)], more].concat();
    assert_eq!(pitstop.run("backup", &arguments), format!("db: backed up to {}\n", text(target)));
    daemon.into_iter().for_each(Pitstopd::stop);
    pitstop.assert_clean();
}

// req: R19, R21, R22; rules: BAK-4, BAK-9, BAK-13
#[test]
fn backups_are_the_same_through_a_daemon_and_are_restored() {
    for served in [false, true] {
        let scratch = Scratch::new("cli-backup");
        let pitstop = small_container(&scratch);
        pitstop.run("snapshot", &["golden", "db"]);
        pitstop.run("cache create", &["nightly", "--limit", "64M"]);
        let file = |name: &str| scratch.file(name);
        let [bulk, qcow2, live, in_place] = ["bulk.raw", "bulk.qcow2", "live.raw", "in-place.raw"].map(file);
        let container = file("bulk.pit");
        let [addendum, changes] = ["live.add", "changes.add"].map(file);
        back_up(&pitstop, &scratch, served, &bulk, &["--cache", "nightly"]);
        back_up(&pitstop, &scratch, served, &qcow2, &["-O", "qcow2"]);
        back_up(&pitstop, &scratch, served, &container, &["-O", "pitstop"]);
        Pitstop::on(&container).assert_clean();
        back_up(&pitstop, &scratch, served, &live, &["--addendum", text(&addendum), "--speed", "1G"]);
        back_up(&pitstop, &scratch, served, &in_place, &["--in-place"]);
        back_up(&pitstop, &scratch, served, &changes, &["--since", "golden"]);
        let golden = sha256_of(&file("golden.raw"));
        assert_eq!([&bulk, &live, &in_place].map(|image| sha256_of(image)), [&golden; 3].map(Clone::clone));
        assert_says(&pitstop.fails("backup", &["db", text(&bulk)]), &["exists", "--force"]);
        back_up(&pitstop, &scratch, served, &bulk, &["--force"]);
        let restored = [
            vec!["--from-backup", text(&bulk)],
            vec!["--from-backup", text(&qcow2), "--format", "qcow2"],
            vec!["--from-backup", text(&container), "--format", "pitstop"],
            vec!["--from-backup", text(&live), "--addendum", text(&addendum), "--addendum", text(&changes)],
        ];
        let daemon = served.then(|| Pitstopd::serve(&scratch, pitstop.container(), &[]));
        for (round, files) in restored.into_iter().enumerate() {
            // The first makes the volume, the others write over it.
            let said = pitstop.run("restore", &[vec!["back"], files].concat());
            assert!(said.starts_with("back: 8 MiB"), "{round}: {said}");
            let exported = file("back.raw");
            pitstop.run("export", &["back", text(&exported), "--force"]);
            assert_eq!(sha256_of(&exported), golden, "round {round}");
            pitstop.assert_clean();
        }
        pitstop.run("import", &["imported", text(&container)]);
        let line = pitstop.run("compare", &["imported", "golden"]);
        assert!(line.contains("identical"), "{line}");
        daemon.into_iter().for_each(Pitstopd::stop);
        pitstop.assert_clean();
        let names = pitstop.json::<&str>("list", &[]);
        let names: Vec<_> = names.as_array().unwrap().iter().map(|volume| volume["name"].clone()).collect();
        assert_eq!(names, ["back", "ci-1", "db", "golden", "imported"]);
    }
}

// req: R23; rules: BAK-11, BAK-12
#[test]
fn a_full_target_pauses_the_backup_which_goes_on_when_there_is_room() {
    let scratch = Scratch::new("cli-backup-full");
    let tiny = TinyFileSystem::mount(&scratch, 12);
    let pitstop = small_container(&scratch);
    let filler = tiny.folder.join("filler");
    fs::write(&filler, vec![1; 8 << 20]).unwrap();
    let daemon = Pitstopd::serve(&scratch, pitstop.container(), &[]);
    let target = tiny.folder.join("bulk.raw");
    let failure = pitstop.fails("backup", &["golden", text(&target)]);
    assert_says(&failure, &["is paused", "No space left", "pitstop job resume"]);
    assert!(!target.exists(), "a part of a backup has the name");
    let id = pitstop.json::<&str>("job list", &[])[0]["id"].as_str().unwrap().to_owned();
    fs::remove_file(&filler).unwrap();
    pitstop.run("job resume", &[&id]);
    pitstop.run("job wait", &[&id]);
    assert_eq!(sha256_of(&target), sha256_of(&scratch.file("golden.raw")));
    daemon.stop();
    pitstop.assert_clean();
}

// rules: BAK-20, BAK-25, CTL-112 to CTL-114
#[test]
fn cache_regions_are_the_same_through_a_daemon() {
    let scratch = Scratch::new("cli-cache");
    let pitstop = small_container(&scratch);
    assert_eq!(pitstop.run::<&str>("cache list", &[]), "no cache regions; make one with `pitstop cache create`\n");
    for served in [false, true] {
        let daemon = served.then(|| Pitstopd::serve(&scratch, pitstop.container(), &[]));
        let line = pitstop.run("cache create", &["nightly", "--limit", "1G", "--growth", "512M", "--max", "2G"]);
        assert_eq!(line, "nightly: 0 B of 1 GiB used\n");
        assert_says(&pitstop.fails("cache create", &["nightly", "--limit", "1G"]), &["exists already"]);
        assert_says(
            &pitstop.fails("cache create", &["no", "--limit", "1G", "--growth", "1G"]),
            &["needs a most above"],
        );
        let cache = pitstop.json("cache resize", &["nightly", "--limit", "3G", "--high-water", "90"]);
        assert_eq!((&cache["limit-bytes"], &cache["most-bytes"]), (&(3u64 << 30).into(), &(3u64 << 30).into()));
        let table = pitstop.run::<&str>("cache list", &[]);
        assert!(table.contains("nightly") && table.contains("3 GiB") && table.contains("90%"), "{table}");
        assert_says(&pitstop.fails("cache list", &["weekly"]), &["no cache region named"]);
        assert_says(&pitstop.fails("backup", &["golden", "x.raw", "--cache", "weekly"]), &["no cache region named"]);
        pitstop.run("cache delete", &["nightly"]);
        assert_says(&pitstop.fails("cache delete", &["nightly"]), &["no cache region named"]);
        daemon.into_iter().for_each(Pitstopd::stop);
    }
    pitstop.assert_clean();
}

// req: R2
#[test]
fn several_volumes_are_copied_at_one_instant_with_and_without_a_daemon() {
    let scratch = Scratch::new("cli-group");
    let pitstop = small_container(&scratch);
    pitstop.run("volume create", &["log", "--size", "4M"]);
    let check = |first: &str, second: &str| {
        let arguments = [format!("ci-1={first}"), format!("log={second}")];
        let copies = pitstop.json("snapshot", &["--group", &arguments[0], &arguments[1]]);
        assert_eq!((&copies[0]["name"], &copies[1]["name"]), (&first.into(), &second.into()));
        assert_eq!(copies[0]["origin"]["instant-unix-ns"], copies[1]["origin"]["instant-unix-ns"]);
        let failure = pitstop.fails("snapshot", &["--group", "ci-1=new", "nobody=newer"]);
        assert_says(&failure, &["no volume named 'nobody'"]);
        assert_says(&pitstop.fails("info", &["new"]), &["no volume named 'new'"]);
    };
    check("ci-a", "log-a");
    let daemon = Pitstopd::serve(&scratch, pitstop.container(), &[]);
    check("ci-b", "log-b");
    daemon.stop();
    for copy in ["ci-a", "ci-b"] {
        let target = scratch.file("copy.raw");
        pitstop.run("export", &[copy, text(&target), "--force"]);
        assert_eq!(sha256_of(&target), sha256_of(&scratch.file("golden.raw")));
    }
    pitstop.assert_clean();
}

// req: R16, R30; rule: CTL-133
#[test]
fn volumes_in_use_are_compared_and_exported_through_their_daemon() {
    let scratch = Scratch::new("cli-data");
    let pitstop = small_container(&scratch);
    let (image, other) = (scratch.file("golden.raw"), scratch.file("other.raw"));
    write_pattern_file(&other, 8 * MIB, 1);
    OpenOptions::new().write(true).open(&other).unwrap().write_all_at(&[0xff; 1], 5 * MIB + 77).unwrap();
    pitstop.run("import", &["other", text(&other)]);
    pitstop.run("volume create", &["longer", "--size", "9M"]);
    let exports = [Export::writable("ci-1", scratch.socket("ci-1"))];
    let daemon = Pitstopd::serve(&scratch, pitstop.container(), &exports);
    let names = || {
        let volumes = pitstop.json::<&str>("list", &[]);
        volumes.as_array().unwrap().iter().map(|volume| volume["name"].clone()).collect::<Vec<_>>()
    };
    let before = names();

    for (arguments, first) in [
        (&["golden", "ci-1"][..], None),
        (&["golden", "golden"], None),
        (&["golden", "other"], Some(5 * MIB + 77)),
        (&["longer", "other"], Some(0)),
        (&["golden", "--file", text(&image)], None),
        (&["golden", "--file", text(&other)], Some(5 * MIB + 77)),
    ] {
        let mut command = pitstop.command("compare", arguments);
        let output = command.args(["--output", "json"]).output().unwrap();
        let said: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(output.status.code(), Some(i32::from(first.is_some())), "{arguments:?}: {said}");
        assert_eq!(said["first-difference"], serde_json::json!(first), "{arguments:?}");
        // What they share is not read, through a daemon neither.
        assert!(arguments[1] != "ci-1" || said["read-bytes"] == 0, "{said}");
    }
    for (name, format) in [("golden", "raw"), ("other", "raw"), ("longer", "raw"), ("other", "qcow2")] {
        let target = scratch.file("exported");
        pitstop.run("export", &[name, text(&target), "-O", format, "--force"]);
        if format == "raw" {
            let expected = match name {
                "golden" => sha256_of(&image),
                "other" => sha256_of(&other),
                _ => {
                    File::create(scratch.file("zeros")).unwrap().set_len(9 * MIB).unwrap();
                    assert!(allocated_bytes(&target) < MIB, "zeros were written");
                    sha256_of(&scratch.file("zeros"))
                }
            };
            assert_eq!(sha256_of(&target), expected, "{name}");
        } else {
            pitstop.run("compare", &[name, "--file", text(&target)]);
        }
    }
    for (verb, arguments) in
        [("export", &["nobody", text(&scratch.file("none"))][..]), ("compare", &["golden", "nobody"])]
    {
        assert_says(&pitstop.fails(verb, arguments), &["no volume named 'nobody'"]);
    }
    assert!(!scratch.file("none").exists());
    // The copies have gone, whatever came out.
    assert_eq!(names(), before);
    daemon.stop();
    pitstop.assert_clean();
}

// req: R11, R16, R18; rules: REL-1, REL-2, CTL-100 to CTL-102
#[test]
fn relations_are_the_same_through_a_daemon() {
    let scratch = Scratch::new("cli-relations");
    let pitstop = small_container(&scratch);
    for served in [false, true] {
        let daemon = served.then(|| Pitstopd::serve(&scratch, pitstop.container(), &[]));
        for round in 0..2 {
            let line = pitstop.run("refresh", &["ci-1", "--source", "golden", "--hydrate", "--wait"]);
            let copies_all = round == 0;
            assert!(line.starts_with("ci-1: real, copied "), "{line}");
            assert_eq!(line.contains("copied 0 B"), !copies_all, "{line}");
            let info = pitstop.json("info", &["ci-1"]);
            assert_eq!((&info["relation"]["state"], &info["relation"]["tracked"]), (&"real".into(), &true.into()));
            assert_eq!(info["differences"]["to-secondary-bytes"], 0);
        }
        let line = pitstop.run("split", &["ci-1"]);
        assert!(line.starts_with("ci-1: ") && line.ends_with(", split\n"), "{line}");
        for text in [pitstop.run::<&str>("list", &[]), pitstop.run("info", &["ci-1"]), pitstop.run::<&str>("tree", &[])]
        {
            assert!(text.contains("split"), "{text}");
        }
        assert_says(&pitstop.fails("split", &["ci-1"]), &["has no relation"]);
        assert_says(&pitstop.fails("split", &["golden"]), &["has no relation"]);
        if let Some(daemon) = daemon {
            daemon.stop();
        };
    }
    pitstop.assert_clean();
}

// req: R24; rules: VIEW-8, VIEW-9, CTL-150 to CTL-152
#[test]
fn a_view_begins_without_a_daemon_and_ends_with_one_and_the_other_way_round() {
    let scratch = Scratch::new("cli-views");
    let pitstop = small_container(&scratch);
    let create = || {
        let made = pitstop.json("view create", &["ci-1", "new"]);
        assert_eq!((&made["name"], &made["view-of"]), (&"new".into(), &"ci-1".into()));
    };
    let look = || {
        assert!(pitstop.run::<&str>("list", &[]).contains("virtual, view of ci-1"));
        assert_eq!(pitstop.json("info", &["ci-1"])["viewed-by"], "new");
        assert_says(&pitstop.fails("snapshot", &["new", "copy"]), &["'new' is part of", "view drop CONTAINER new"]);
        assert_says(&pitstop.fails("view keep", &["golden"]), &["'golden' is no write-through view"]);
    };
    let ended = |end: &str| {
        pitstop.run(&format!("view {end}"), &["new"]);
        assert_eq!(pitstop.json("list", &["new"])[0]["view-of"], serde_json::Value::Null);
        pitstop.run("delete", &["new"]);
    };
    create();
    look();
    let daemon = Pitstopd::serve(&scratch, pitstop.container(), &[]);
    look();
    ended("keep");
    create();
    daemon.kill();
    look();
    ended("drop");
    pitstop.assert_clean();
    let target = scratch.file("after.raw");
    pitstop.run("export", &["ci-1", text(&target)]);
    assert_eq!(sha256_of(&target), sha256_of(&scratch.file("golden.raw")));
}

// req: R9, R16, R18; rules: CTL-70 to CTL-72
#[test]
fn maps_and_differences_are_the_same_through_a_daemon() {
    let scratch = Scratch::new("cli-maps");
    let pitstop = small_container(&scratch);
    let image = scratch.file("other.raw");
    write_pattern_file(&image, 3 * MIB + 512, 7);
    pitstop.run("import", &["other", text(&image)]);
    // Nothing is sealed between two looks.
    pitstop.run("set", &["golden", "--verify", "off"]);
    let look = || {
        let maps = ["golden", "ci-1", "other"].map(|name| pitstop.json("map", &[name]));
        let diffs = [["golden", "ci-1"], ["ci-1", "other"]].map(|names| pitstop.json("diff", &names));
        let counts = pitstop.json("info", &["ci-1"])["map"].clone();
        let picture = scratch.file("tree.svg");
        pitstop.run("tree", &["--svg", text(&picture), "--force"]);
        (maps, diffs, counts, fs::read_to_string(&picture).unwrap())
    };
    let direct = look();
    let (maps, diffs, counts, picture) = &direct;
    assert!(["golden", "ci-1", "other"].iter().all(|name| picture.contains(&format!(">{name}<"))), "{picture}");
    assert_eq!((&maps[0]["valid-percent"], &maps[1]["valid-bytes"]), (&100.into(), &0.into()));
    assert_eq!((&diffs[0]["bytes"], &diffs[1]["bytes"]), (&0.into(), &(8 * MIB).into()));
    assert_eq!(counts["others-bytes"], 8 * MIB);
    let exports = [Export::writable("ci-1", scratch.socket("ci-1"))];
    let daemon = Pitstopd::serve(&scratch, pitstop.container(), &exports);
    assert_eq!(look(), direct);
    pitstop.run("refresh", &["other", "--source", "golden"]);
    assert_eq!(pitstop.json("diff", &["other", "golden"])["bytes"], 0);
    assert_says(&pitstop.fails("map", &["nobody"]), &["no volume named 'nobody'"]);
    daemon.stop();
    pitstop.assert_clean();
}

// req: R30
#[test]
fn a_large_sparse_qcow2_comes_back_identical() {
    let scratch = Scratch::new("cli-qcow2");
    let pitstop = Pitstop::on(scratch.file("disks.pit"));
    let source = scratch.file("source.qcow2");
    let qemu_img = || Command::new(system_program("qemu-img"));
    run(qemu_img().args(["create", "-q", "-f", "qcow2", text(&source), "40G"]));
    run(Command::new(system_program("qemu-io"))
        .args(["-f", "qcow2", "-c", "write -P 1 0 64k", "-c", "write -P 2 1G 3M"])
        .args(["-c", "write -P 3 5368713728 512", "-c", "write -z 1025M 1M"])
        .args(["-c", "write -P 4 21474771456 128k", "-c", "write -P 5 42949607424 64k"])
        .arg(&source));
    pitstop.run::<&str>("create", &[]);
    pitstop.run("import", &["disk", text(&source)]);
    let qcow2 = scratch.file("exported.qcow2");
    let raw = scratch.file("exported.raw");
    pitstop.run("export", &["disk", text(&qcow2), "-O", "qcow2"]);
    pitstop.run("export", &["disk", text(&raw)]);
    for (format, exported) in [("qcow2", &qcow2), ("raw", &raw)] {
        run(qemu_img().args(["compare", "-f", "qcow2", "-F", format]).args([&source, exported]));
        assert!(allocated_bytes(exported) < 16 * MIB, "{format} is not sparse");
    }
    run(qemu_img().args(["check", "-q", text(&qcow2)]));
    pitstop.assert_clean();
}

// req: R29
#[test]
fn a_killed_daemon_leaves_a_container_that_opens_and_holds_what_was_said() {
    let scratch = Scratch::new("cli-killed");
    let pitstop = small_container(&scratch);
    let exports = [Export::writable("ci-1", scratch.socket("ci-1"))];
    for round in 0..5 {
        let daemon = Pitstopd::serve(&scratch, pitstop.container(), &exports);
        let name = format!("copy-{round}");
        pitstop.run("snapshot", &["golden", &name]);
        pitstop.run("refresh", &["ci-1", "--source", &name]);
        daemon.kill();
        pitstop.assert_clean();
        assert!(pitstop.run::<&str>("list", &[]).contains(&name));
    }
    let exported = scratch.file("exported");
    pitstop.run("export", &["ci-1", text(&exported)]);
    assert_eq!(sha256_of(&exported), sha256_of(&scratch.file("golden.raw")));
}

// rules: VOL-40, VOL-44 to VOL-47; req: R15, R31
#[test]
fn a_disposable_volume_is_undefined_after_a_kill_until_it_is_refreshed() {
    let scratch = Scratch::new("cli-disposable");
    let pitstop = small_container(&scratch);
    pitstop.run("snapshot", &["golden", "ci-2"]);
    let undefined = |name: &str| pitstop.json("list", &[name])[0]["undefined"].clone();
    let exports = [Export::writable("ci-1", scratch.socket("ci-1"))];
    let daemon = Pitstopd::serve(&scratch, pitstop.container(), &exports);
    pitstop.run("set", &["ci-1", "--durability", "none"]);
    daemon.stop();
    assert_eq!(undefined("ci-1"), false);
    Pitstopd::serve(&scratch, pitstop.container(), &exports).kill();
    // A reader tells, and so does everybody else.
    assert_eq!((undefined("ci-1"), undefined("ci-2")), (true.into(), false.into()));
    assert_says(&Pitstopd::fails(pitstop.container(), &exports, &scratch.socket("control")), &["'ci-1' is undefined"]);
    let target = scratch.file("exported");
    assert_says(&pitstop.fails("export", &["ci-1", text(&target)]), &["'ci-1' is undefined", "refresh", "--defined"]);
    assert!(!target.exists());
    pitstop.assert_clean();
    let daemon = Pitstopd::serve(&scratch, pitstop.container(), &[]);
    assert_eq!(undefined("ci-1"), true);
    assert_says(&pitstop.fails("snapshot", &["ci-1", "copy"]), &["'ci-1' is undefined"]);
    pitstop.run("refresh", &["ci-1", "--source", "golden"]);
    assert_eq!(undefined("ci-1"), false);
    pitstop.run("snapshot", &["ci-1", "copy"]);
    daemon.stop();
    pitstop.run("export", &["ci-1", text(&target)]);
    assert_eq!(sha256_of(&target), sha256_of(&scratch.file("golden.raw")));
}

// rules: CHK-24, CTL-48; req: R30
#[test]
fn a_container_in_use_is_checked_by_its_daemon() {
    let scratch = Scratch::new("cli-online-check");
    let pitstop = small_container(&scratch);
    let exports = [Export::writable("ci-1", scratch.socket("ci-1"))];
    let daemon = Pitstopd::serve(&scratch, pitstop.container(), &exports);
    thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let pitstop = Pitstop::on(scratch.file("disks.pit"));
            for round in 0..20 {
                let name = format!("copy-{round}");
                pitstop.run("snapshot", &["golden", &name]);
                pitstop.run("refresh", &["ci-1", "--source", &name]);
                pitstop.run("delete", &[&name]);
            }
        });
        while !storm.is_finished() {
            pitstop.assert_clean();
        }
    });
    assert_says(&pitstop.fails("check", &["--repair", "all"]), &["pitstopd", "cannot be repaired while that runs"]);
    // The last slab's descriptor: a free one, whose page the daemon has no cause to write.
    let slab = fs::metadata(pitstop.container()).unwrap().len() / (256 << 10) - 1;
    flip_bit(pitstop.container(), 2 * (256 << 10) + slab * 32 + 9);
    assert_eq!(pitstop.fails_check(), 2);
    daemon.kill();
    assert_eq!(pitstop.fails_check(), 2);
    pitstop.run("check", &["--repair", "all"]);
    pitstop.assert_clean();
}

#[test]
fn capabilities_are_printed_as_qemus_backend_conventions_ask() {
    let mut command = Command::new(pitstop_tests::pitstop_program("pitstopd"));
    let said = run(command.args(["--print-capabilities"]));
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["type"], "block");
    for feature in said["features"].as_array().unwrap() {
        assert!(["read-only", "blk-file"].contains(&feature.as_str().unwrap()));
    }
}

/// Keeps the name used: a process that outlives its test would hold its container.
#[test]
fn a_background_process_ends_with_its_handle() {
    let scratch = Scratch::new("cli-background");
    let log = scratch.file("sleep.log");
    let sleep = Background::spawn("sleep", Command::new("sleep").arg("60"), log);
    let folder = PathBuf::from(format!("/proc/{}", sleep.pid()));
    assert!(folder.exists());
    drop(sleep);
    assert!(!folder.exists());
}
