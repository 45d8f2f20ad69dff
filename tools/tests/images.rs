//! Import and export, judged by qemu-img.
// req: R30

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use common::{Pit, noise, occupied};

/// Patches bytes of a file.
fn patch(pit: &Pit, name: &str, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(pit.path(name)).unwrap().write_all_at(bytes, offset).unwrap();
}

/// Imports `file`, exports it in both formats, and has qemu-img compare all three.
fn round_trip(pit: &Pit, format: &str, file: &str, more: &[&str]) {
    pit.ok(&[&["import", "disks.pit", "v", file], more].concat());
    pit.ok(&["export", "disks.pit", "v", "out.raw", "--force"]);
    pit.identical((format, file), ("raw", "out.raw"));
    pit.ok(&["export", "disks.pit", "v", "out.qcow2", "-O", "qcow2", "--force"]);
    pit.identical((format, file), ("qcow2", "out.qcow2"));
    assert!(pit.qemu("qemu-img", &["check", "out.qcow2"]).contains("No errors were found"));
    pit.ok(&["delete", "disks.pit", "v"]);
}

#[test]
fn a_raw_image_comes_back_identical_and_sparse() {
    let pit = Pit::new();
    let (a, b) = (noise(3 << 20, 1), noise(5000, 2));
    pit.sparse(
        "in.raw",
        256 << 20,
        &[(0, &a[..512]), (10 << 20, &a), ((200 << 20) + 3584, &b), ((256 << 20) - 512, &a[..512])],
    );
    round_trip(&pit, "raw", "in.raw", &[]);
    assert!(occupied(&pit.path("out.raw")) <= 4 << 20, "{}", occupied(&pit.path("out.raw")));
    assert!(occupied(&pit.path("out.qcow2")) <= 5 << 20, "{}", occupied(&pit.path("out.qcow2")));
}

#[test]
fn written_zeros_take_no_space() {
    let pit = Pit::new();
    let mut bytes = vec![0; 32 << 20];
    bytes[(7 << 20)..(7 << 20) + 4096].copy_from_slice(&noise(4096, 3));
    std::fs::write(pit.path("in.raw"), &bytes).unwrap();
    round_trip(&pit, "raw", "in.raw", &[]);
    assert!(occupied(&pit.path("out.raw")) <= 64 << 10, "{}", occupied(&pit.path("out.raw")));
}

#[test]
fn a_length_that_is_not_whole_sectors_is_padded_and_said() {
    let pit = Pit::new();
    let bytes = noise(10_000, 4);
    std::fs::write(pit.path("in.raw"), &bytes).unwrap();
    let output = pit.run(&["import", "disks.pit", "v", "in.raw"]);
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "pitstop: 10000 bytes are not whole sectors; the volume is padded with zeros to 10240\n");
    pit.ok(&["export", "disks.pit", "v", "out.raw"]);
    let out = std::fs::read(pit.path("out.raw")).unwrap();
    assert_eq!((out.len(), &out[..10_000]), (10_240, &bytes[..]));
    assert!(out[10_000..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_qcow2_of_40_gib_with_scattered_data_comes_back_identical() {
    let pit = Pit::new();
    pit.qemu("qemu-img", &["create", "-f", "qcow2", "in.qcow2", "40G"]);
    let writes = [
        (1, "0", "512"),
        (2, "65024", "1024"),
        (3, "1M", "3M"),
        (4, "512M", "64k"),
        (5, "10G", "4096"),
        (6, "21474832384", "8192"),
        (7, "39G", "17M"),
        (8, "42949672448", "512"),
    ];
    pit.patterns("qcow2", "in.qcow2", &writes);
    round_trip(&pit, "qcow2", "in.qcow2", &[]);
    assert!(occupied(&pit.path("out.raw")) <= 22 << 20, "{}", occupied(&pit.path("out.raw")));
    assert!(occupied(&pit.path("out.qcow2")) <= 24 << 20, "{}", occupied(&pit.path("out.qcow2")));
}

#[test]
fn compressed_clusters_are_read() {
    let pit = Pit::new();
    let text = "all work and no play makes jack a dull boy\n".repeat(100_000);
    pit.sparse("plain.raw", 64 << 20, &[(0, text.as_bytes()), (40 << 20, &noise(300_000, 9))]);
    pit.qemu("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-c", "plain.raw", "in.qcow2"]);
    round_trip(&pit, "qcow2", "in.qcow2", &[]);
}

#[test]
fn every_kind_of_cluster_and_header_is_read() {
    let variants = [
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2M",
        "refcount_bits=1",
        "preallocation=metadata",
        "preallocation=falloc",
    ];
    for options in variants {
        let pit = Pit::new();
        pit.qemu("qemu-img", &["create", "-f", "qcow2", "-o", options, "in.qcow2", "70M"]);
        pit.patterns("qcow2", "in.qcow2", &[(1, "0", "1M"), (2, "33M", "100k"), (3, "60M", "64k")]);
        pit.qemu(
            "qemu-io",
            &[
                "-f",
                "qcow2",
                "-c",
                "write -z 512k 256k",
                "-c",
                "write -z -u 60M 64k",
                "-c",
                "discard 128k 64k",
                "in.qcow2",
            ],
        );
        round_trip(&pit, "qcow2", "in.qcow2", &[]);
    }
}

#[test]
fn internal_snapshots_do_not_disturb() {
    let pit = Pit::new();
    pit.qemu("qemu-img", &["create", "-f", "qcow2", "in.qcow2", "64M"]);
    pit.patterns("qcow2", "in.qcow2", &[(1, "0", "1M")]);
    pit.qemu("qemu-img", &["snapshot", "-c", "before", "in.qcow2"]);
    pit.patterns("qcow2", "in.qcow2", &[(2, "512k", "1M")]);
    round_trip(&pit, "qcow2", "in.qcow2", &[]);
}

#[test]
fn a_backing_file_is_followed_only_when_allowed() {
    for (format, size) in [("qcow2", "64M"), ("raw", "32M")] {
        let pit = Pit::new();
        pit.qemu("qemu-img", &["create", "-f", format, "base", size]);
        pit.patterns(format, "base", &[(1, "0", "2M"), (2, "30M", "128k")]);
        pit.qemu("qemu-img", &["create", "-f", "qcow2", "-b", "base", "-F", format, "in.qcow2", "64M"]);
        pit.patterns("qcow2", "in.qcow2", &[(3, "1M", "64k"), (4, "31M", "64k"), (5, "63M", "512")]);
        pit.qemu("qemu-io", &["-f", "qcow2", "-c", "write -z 0 64k", "in.qcow2"]);
        let message = pit.fails(&["import", "disks.pit", "v", "in.qcow2"]);
        assert!(
            message.contains("difference to the backing file 'base'") && message.contains("--allow-backing"),
            "{message}"
        );
        assert!(pit.names().is_empty());
        round_trip(&pit, "qcow2", "in.qcow2", &["--allow-backing"]);
    }
}

#[test]
fn an_external_data_file_is_followed_only_when_allowed_and_never_written() {
    let pit = Pit::new();
    pit.qemu("qemu-img", &["create", "-f", "qcow2", "-o", "data_file=data.raw,data_file_raw=on", "in.qcow2", "16M"]);
    pit.patterns("qcow2", "in.qcow2", &[(1, "3M", "2M")]);
    let message = pit.fails(&["import", "disks.pit", "v", "in.qcow2"]);
    assert!(message.contains("keeps its data in another file") && message.contains("--allow-backing"), "{message}");
    let before = std::fs::metadata(pit.path("data.raw")).unwrap().modified().unwrap();
    round_trip(&pit, "qcow2", "in.qcow2", &["--allow-backing"]);
    assert_eq!(std::fs::metadata(pit.path("data.raw")).unwrap().modified().unwrap(), before);
}

#[test]
fn a_circle_of_backing_files_is_an_error() {
    let pit = Pit::new();
    pit.qemu("qemu-img", &["create", "-f", "qcow2", "a.qcow2", "1M"]);
    pit.qemu("qemu-img", &["create", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "b.qcow2", "1M"]);
    pit.qemu("qemu-img", &["rebase", "-u", "-b", "b.qcow2", "-F", "qcow2", "a.qcow2"]);
    let message = pit.fails(&["import", "disks.pit", "v", "a.qcow2", "--allow-backing"]);
    assert!(message.contains("circle"), "{message}");
}

#[test]
fn images_that_cannot_be_read_are_refused_with_advice() {
    let pit = Pit::new();
    let create = |name: &str, options: &str| {
        pit.qemu("qemu-img", &["create", "-f", "qcow2", "-o", options, name, "8M"]);
    };
    create("zstd", "compression_type=zstd");
    create("subclusters", "extended_l2=on");
    create("dirty", "compat=1.1");
    patch(&pit, "dirty", 72 + 7, &[1]);
    create("corrupt", "compat=1.1");
    patch(&pit, "corrupt", 72 + 7, &[2]);
    create("future", "compat=1.1");
    patch(&pit, "future", 72, &[0x80]);
    create("version", "compat=1.1");
    patch(&pit, "version", 4, &[0, 0, 0, 9]);
    create("huge-l1", "compat=1.1");
    patch(&pit, "huge-l1", 36, &[0xff; 4]);
    create("short-l1", "compat=1.1");
    patch(&pit, "short-l1", 24, &(1u64 << 40).to_be_bytes());
    let args = [
        "create",
        "-f",
        "qcow2",
        "--object",
        "secret,id=s,data=x",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s",
        "luks",
        "8M",
    ];
    pit.qemu("qemu-img", &args);
    std::fs::write(pit.path("stub"), b"QFI\xfb\0\0\0\x03").unwrap();
    for (name, expected) in [
        ("zstd", "qemu-img convert"),
        ("subclusters", "qemu-img convert"),
        ("dirty", "qemu-img check -r leaks"),
        ("corrupt", "qemu-img check -r all"),
        ("future", "unknown features"),
        ("version", "qcow version 9 is not supported"),
        ("huge-l1", "impossible values"),
        ("short-l1", "cut off"),
        ("luks", "the image is encrypted"),
        ("stub", "cut off"),
    ] {
        let message = pit.fails(&["import", "disks.pit", "v", name]);
        assert!(message.starts_with(name) && message.contains(expected), "{name}: {message}");
    }
    assert!(pit.names().is_empty());
}

#[test]
fn a_truncated_qcow2_is_an_error_and_leaves_nothing() {
    let pit = Pit::new();
    pit.qemu("qemu-img", &["create", "-f", "qcow2", "in.qcow2", "64M"]);
    pit.patterns("qcow2", "in.qcow2", &[(1, "0", "16M")]);
    let len = std::fs::metadata(pit.path("in.qcow2")).unwrap().len();
    OpenOptions::new().write(true).open(pit.path("in.qcow2")).unwrap().set_len(len / 2).unwrap();
    let message = pit.fails(&["import", "disks.pit", "v", "in.qcow2"]);
    assert!(message.contains("cut off"), "{message}");
    assert!(pit.names().is_empty());
    assert_eq!(pit.ok(&["check", "disks.pit"]), "no errors were found\n");
}

#[test]
fn damaged_qcow2_images_never_crash_the_command() {
    let pit = Pit::new();
    pit.qemu("qemu-img", &["create", "-f", "qcow2", "good.qcow2", "8M"]);
    pit.patterns("qcow2", "good.qcow2", &[(1, "0", "300k")]);
    let good = std::fs::read(pit.path("good.qcow2")).unwrap();
    // Header, extensions, first- and second-level tables are within the first clusters.
    let random = noise(8 * 120, 77);
    for (round, numbers) in random.chunks_exact(8).enumerate() {
        let number = u64::from_le_bytes(numbers.try_into().unwrap());
        let mut bad = good.clone();
        let limit = if round % 2 == 0 { 512 } else { bad.len().min(5 << 16) as u64 };
        let at = (number % limit) as usize;
        bad[at] ^= (number >> 56) as u8 | 1;
        std::fs::write(pit.path("bad.qcow2"), &bad).unwrap();
        let output = pit.run(&["import", "disks.pit", &format!("v{round}"), "bad.qcow2"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 1)), "byte {at}: {stderr}");
        assert!(!stderr.contains("panicked"), "byte {at}: {stderr}");
    }
    assert!(pit.names().iter().all(|name| !name.starts_with("import-")));
}

#[test]
fn the_format_is_found_out_safely() {
    let pit = Pit::new();
    pit.qemu("qemu-img", &["create", "-f", "qcow2", "in.qcow2", "8M"]);
    pit.ok(&["import", "disks.pit", "as-qcow2", "in.qcow2"]);
    pit.ok(&["import", "disks.pit", "as-raw", "in.qcow2", "-f", "raw"]);
    assert_eq!(pit.json(&["list", "disks.pit", "as-qcow2"])[0]["size-bytes"], 8 << 20);
    let len = std::fs::metadata(pit.path("in.qcow2")).unwrap().len();
    assert_eq!(pit.json(&["list", "disks.pit", "as-raw"])[0]["size-bytes"], len.next_multiple_of(512));
    pit.qemu("qemu-img", &["convert", "-f", "qcow2", "-O", "vmdk", "in.qcow2", "in.vmdk"]);
    let message = pit.fails(&["import", "disks.pit", "v", "in.vmdk"]);
    assert!(message.contains("looks like a VMDK image"), "{message}");
    std::fs::write(pit.path("in.raw"), noise(8192, 1)).unwrap();
    let message = pit.fails(&["import", "disks.pit", "v", "in.raw", "-f", "qcow2"]);
    assert!(message.contains("qcow2 header"), "{message}");
}

#[test]
fn bad_targets_and_sources_are_errors_and_change_nothing() {
    let pit = Pit::new();
    std::fs::write(pit.path("in.raw"), noise(8192, 1)).unwrap();
    std::fs::write(pit.path("empty.raw"), b"").unwrap();
    std::fs::write(pit.path("taken"), b"mine").unwrap();
    pit.ok(&["import", "disks.pit", "v", "in.raw"]);
    for (args, expected) in [
        (&["import", "disks.pit", "v", "in.raw"][..], "exists already"),
        (&["import", "disks.pit", "", "in.raw"], "is not a volume name"),
        (&["import", "disks.pit", "w", "none.raw"], "cannot open none.raw"),
        (&["import", "disks.pit", "w", "."], "not a regular file"),
        (&["import", "disks.pit", "w", "empty.raw"], "is not a volume size"),
        (
            &["export", "disks.pit", "v", "taken"],
            "taken exists already; choose another name, or overwrite it with --force",
        ),
        (&["export", "disks.pit", "v", "none/out.raw"], "cannot make a file in none"),
        (&["export", "disks.pit", "v", "."], "is not a regular file"),
    ] {
        let message = pit.fails(args);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    assert_eq!(pit.names(), ["v"]);
    assert_eq!(std::fs::read(pit.path("taken")).unwrap(), b"mine");
    let files: Vec<String> = std::fs::read_dir(pit.path("."))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(files.iter().all(|name| !name.starts_with(".pitstop")), "{files:?}");
    pit.ok(&["export", "disks.pit", "v", "taken", "--force"]);
    assert_eq!(std::fs::read(pit.path("taken")).unwrap(), std::fs::read(pit.path("in.raw")).unwrap());
}

#[test]
fn an_interrupted_import_leaves_no_volume() {
    let pit = Pit::new();
    std::fs::write(pit.path("in.raw"), noise(512 << 20, 6)).unwrap();
    let mut import =
        pit.command(&["import", "disks.pit", "v", "in.raw"]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    // Interrupt it once it has the container.
    while !pit.path("disks.pit.lock").exists() {
        assert!(Instant::now() < deadline, "the import does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(50));
    let pid = import.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = loop {
        if import.try_wait().unwrap().is_some() {
            break import.wait_with_output().unwrap();
        }
        assert!(Instant::now() < deadline, "the import does not end");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "pitstop: interrupted; nothing was changed\n");
    assert!(pit.names().is_empty());
    assert_eq!(pit.ok(&["check", "disks.pit"]), "no errors were found\n");
}

#[test]
fn copies_keep_their_contents_through_refresh_and_delete() {
    // req: R1 R2 R4 R5
    let pit = Pit::new();
    let (old, new) = (noise(9 << 20, 11), noise(5 << 20, 12));
    pit.sparse("old.raw", 64 << 20, &[(1 << 20, &old), (50 << 20, &new)]);
    pit.sparse("new.raw", 96 << 20, &[(3 << 20, &new), (80 << 20, &old)]);
    pit.ok(&["import", "disks.pit", "golden", "old.raw"]);
    pit.ok(&["snapshot", "disks.pit", "golden", "ci-1"]);
    pit.ok(&["snapshot", "disks.pit", "ci-1", "ci-1-before"]);
    pit.ok(&["import", "disks.pit", "golden-2", "new.raw"]);
    pit.ok(&["refresh", "disks.pit", "ci-1", "--source", "golden-2"]);
    pit.ok(&["delete", "disks.pit", "golden"]);
    let check = |name: &str, expected: &str| {
        pit.ok(&["export", "disks.pit", name, "out.raw", "--force"]);
        pit.identical(("raw", "out.raw"), ("raw", expected));
    };
    check("ci-1", "new.raw");
    check("ci-1-before", "old.raw");
    pit.ok(&["delete", "disks.pit", "golden-2"]);
    pit.ok(&["import", "disks.pit", "golden", "old.raw"]);
    check("ci-1", "new.raw");
    check("ci-1-before", "old.raw");
    check("golden", "old.raw");
}

#[test]
fn a_killed_import_never_shows_the_name_and_can_be_repeated() {
    let pit = Pit::new();
    std::fs::write(pit.path("in.raw"), noise(256 << 20, 6)).unwrap();
    let import = ["import", "disks.pit", "v", "in.raw"];
    let mut killed = pit.command(&import).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(150));
    killed.kill().unwrap();
    killed.wait().unwrap();
    let names = pit.names();
    assert!(names.iter().all(|name| name.starts_with("import-v-")), "{names:?}");
    let output = pit.run(&import);
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.contains("is another import's that is under way, or was interrupted"), !names.is_empty(), "{said}");
    pit.ok(&["export", "disks.pit", "v", "out.raw"]);
    pit.identical(("raw", "in.raw"), ("raw", "out.raw"));
    assert_eq!(pit.ok(&["check", "disks.pit"]), "no errors were found\n");
}

#[test]
fn an_interrupted_export_leaves_no_file() {
    let pit = Pit::new();
    std::fs::write(pit.path("in.raw"), noise(256 << 20, 6)).unwrap();
    pit.ok(&["import", "disks.pit", "v", "in.raw"]);
    let temporary = || {
        let names = std::fs::read_dir(pit.path(".")).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with(".pitstop-export-")).count()
    };
    for format in ["raw", "qcow2"] {
        let mut export = pit.command(&["export", "disks.pit", "v", "out", "-O", format]).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while temporary() == 0 {
            assert!(Instant::now() < deadline, "the export does not begin");
            std::thread::sleep(Duration::from_millis(1));
        }
        let pid = export.id().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert_eq!(export.wait().unwrap().code(), Some(1));
        assert!(temporary() == 0 && !pit.path("out").exists());
    }
}
