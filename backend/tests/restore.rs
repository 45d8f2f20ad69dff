//! Backups that `pitstop` orders of a daemon beside a guest that writes, and what `pitstop restore` makes of them.
//!
//! req: R19, R20, R21, R22. Rules: BAK-4, BAK-5, BAK-6, BAK-9, BAK-10, BAK-13, BAK-14, BAK-40, BAK-42, CTL-135.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::client::{Client, Style};
use common::{Daemon, Place, Qmp, Random, VOLUME_LEN, text, wait_until};
use pitstop_format::{FileDisk, VolumeIo};
use serde_json::json;

const MIB: u64 = 1 << 20;

fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// A place with volume `db`, full of data but for the zeros of its second MiB.
fn place() -> (Place, Vec<u8>) {
    let place = Place::with_volumes(&["db"]);
    let mut model = noise(7, VOLUME_LEN);
    model[MIB as usize..2 * MIB as usize].fill(0);
    place.change(|container| {
        let io = VolumeIo::new(container, container.volume("db").unwrap());
        io.write_at(&model[..MIB as usize], 0).unwrap();
        io.write_at(&model[2 * MIB as usize..], 2 * MIB).unwrap();
        container.settle(1000).unwrap();
    });
    (place, model)
}

fn serve(place: &Place) -> (Daemon, Qmp) {
    let control = place.path("control");
    let daemon = place.serve(&["db"], &["--control", text(&control)]);
    wait_until("control socket", || common::is_listened_on(&control));
    (daemon, Qmp::connect(&control))
}

/// Starts `pitstop VERB disks.pit ...`.
fn pitstop(place: &Place, verb: &str, arguments: &[&str]) -> Child {
    let program = Path::new(env!("CARGO_BIN_EXE_pitstopd")).with_file_name("pitstop");
    assert!(program.is_file(), "{} does not exist: run `cargo build --workspace --bins`", program.display());
    let mut command = Command::new(program);
    command.arg(verb).arg(place.container()).args(arguments);
    command.current_dir(place.container().parent().unwrap());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    common::alone_with_container(|| command.spawn().unwrap())
}

fn ok(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn fails(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

/// Writes, and makes zeros of, what is all over the volume until told to stop; of each at least 100.
fn exercise(client: &mut Client, model: &mut [u8], random: &mut Random, stop: &AtomicBool) {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) || rounds < 100 {
        let len = (1 + random.below(32)) * 512;
        let offset = random.below((VOLUME_LEN - len) / 512) * 512;
        let bytes = if random.below(4) == 0 { vec![0; len as usize] } else { noise(random.next(), len) };
        client.write(offset, &bytes);
        model[offset as usize..(offset + len) as usize].copy_from_slice(&bytes);
        rounds += 1;
    }
    client.flush();
}

/// Waits for `pitstop` to end while a guest writes, beginning when there is a job: after the instant.
fn beside_guest(qmp: &mut Qmp, client: &mut Client, model: &mut [u8], random: &mut Random, child: Child) {
    wait_until("a backup", || {
        let jobs = qmp.order("query-jobs", json!({}));
        jobs.as_array().unwrap().iter().any(|job| job["type"] == "backup")
    });
    let stop = AtomicBool::new(false);
    let output = thread::scope(|scope| {
        scope.spawn(|| exercise(client, model, random, &stop));
        let output = child.wait_with_output();
        stop.store(true, Ordering::Relaxed);
        output.unwrap()
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Names of files that backups have left without a name of their own.
fn hidden(place: &Place) -> Vec<String> {
    let entries = std::fs::read_dir(place.container().parent().unwrap()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".pitstop-")).collect()
}

// rules: BAK-4 to BAK-6, BAK-9, BAK-10, BAK-13, BAK-42, CTL-135
#[test]
fn whatever_a_guest_writes_meanwhile_a_backup_is_restored_as_of_its_instant() {
    let (place, mut model) = place();
    let (daemon, mut qmp) = serve(&place);
    let mut client = Client::connect(&place.path("db"), Style::PLAIN);
    let mut random = Random(0x5eed);
    let mut instants = Vec::new();
    for (number, format) in ["raw", "qcow2", "pitstop"].into_iter().enumerate() {
        let more = ["--addendum", "--in-place", "--force"][number];
        let mut arguments = vec!["db", format, "-O", format, "--speed", "12M", more];
        let addendum = format!("{format}.add");
        if number != 1 {
            arguments.extend(if number == 0 { vec![&*addendum] } else { vec!["--addendum", &addendum] });
        }
        instants.push((format, (number != 1).then_some(addendum.clone()), model.clone()));
        let child = pitstop(&place, "backup", &arguments);
        beside_guest(&mut qmp, &mut client, &mut model, &mut random, child);
        assert_eq!(hidden(&place), Vec::<String>::new());
        if number != 1 {
            let listed = std::fs::metadata(place.path(&addendum)).unwrap().len();
            assert!(listed > 64 << 10, "the guest has written nothing meanwhile: {listed} bytes");
        }
    }
    assert!(std::fs::read(place.path("raw")).unwrap() != instants[0].2, "the copier has seen nothing of the guest's");
    let restore = |name: &str, (format, addendum, _): &(&str, Option<String>, Vec<u8>), more: &[&str]| {
        let mut arguments = vec![name, "--from-backup", format, "-f", format];
        arguments.extend(addendum.iter().flat_map(|addendum| ["--addendum", addendum]));
        pitstop(&place, "restore", &[&arguments, more].concat())
    };
    // Beside the guest, and over its disk only by order; then by the command alone.
    let said = fails(restore("db", &instants[0], &[]));
    assert!(said.contains("a guest is connected to volume db") && said.contains("--force"), "{said}");
    assert!(client.read(0, VOLUME_LEN as usize / 4) == model[..VOLUME_LEN as usize / 4]);
    ok(restore("db", &instants[0], &["--force"]));
    assert!(client.read(0, VOLUME_LEN as usize / 4) == instants[0].2[..VOLUME_LEN as usize / 4]);
    for backup in &instants {
        ok(restore(&format!("back-{}", backup.0), backup, &[]));
    }
    drop(client);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(place.read_volume("db") == instants[0].2);
    for backup in &instants {
        assert!(place.read_volume(&format!("back-{}", backup.0)) == backup.2, "{}: not the instant", backup.0);
        ok(restore("alone", backup, &[]));
        assert!(place.read_volume("alone") == backup.2, "{}: not the instant", backup.0);
    }
    ok(pitstop(&place, "check", &[]));
}

// rules: BAK-8, BAK-9, BAK-14, BAK-40
#[test]
fn addenda_are_put_over_what_they_go_on_from_and_nothing_else() {
    let (place, mut model) = place();
    let (daemon, mut qmp) = serve(&place);
    let mut client = Client::connect(&place.path("db"), Style::PLAIN);
    let mut random = Random(0xdab);
    let mut days = Vec::new();
    for day in ["mon", "tue", "wed", "thu"] {
        qmp.order("x-pitstop-snapshot", json!({"source": "db", "name": day}));
        days.push(model.clone());
        exercise(&mut client, &mut model, &mut random, &AtomicBool::new(true));
    }
    // Copies may be backed up in any order, whatever clocks say then.
    let since =
        |day: &str, before: &str| ok(pitstop(&place, "backup", &[day, &format!("{day}.add"), "--since", before]));
    since("thu", "wed");
    since("wed", "tue");
    for format in ["raw", "qcow2", "pitstop"] {
        ok(pitstop(&place, "backup", &["mon", format, "-O", format, "--addendum", "mon.add", "--force"]));
    }
    since("tue", "mon");
    // Its layers are others then, not what they show.
    qmp.order("x-pitstop-volume-hydrate", json!({"name": "tue"}));
    wait_until("hydration", || qmp.order("query-jobs", json!({})).as_array().unwrap().is_empty());
    std::fs::rename(place.path("wed.add"), place.path("wed.before")).unwrap();
    since("wed", "tue");
    let restore = |bulk: &str, addenda: &[&str]| {
        let mut arguments = vec!["back", "--from-backup", bulk, "-f", bulk];
        addenda.iter().for_each(|addendum| arguments.extend(["--addendum", addendum]));
        pitstop(&place, "restore", &arguments)
    };
    drop(client);
    assert_eq!(daemon.terminate().code(), Some(0));
    let all = ["mon.add", "tue.add", "wed.add", "thu.add"];
    for bulk in ["raw", "qcow2", "pitstop"] {
        for last in 0..4 {
            ok(restore(bulk, &all[..=last]));
            assert!(place.read_volume("back") == days[last], "{bulk}: day {last} is not restored");
        }
    }
    ok(restore("raw", &["tue.add", "wed.before", "thu.add"]));
    assert!(place.read_volume("back") == days[3]);
    let cases: [(&[&str], &str); 7] = [
        (&["mon.add", "wed.add"], "addendum missing between"),
        (&["tue.add", "thu.add"], "addendum missing between"),
        (&["mon.add", "wed.add", "tue.add"], "wed.add belongs right behind tue.add"),
        (&["wed.add", "tue.add"], "wed.add belongs right behind tue.add"),
        (&["tue.add", "tue.add"], "one too many"),
        (&["tue.add", "mon.add"], "mon.add has original images"),
        (&["mon.add", "mon.add"], "belong right over their bulk"),
    ];
    for (addenda, expected) in cases {
        let said = fails(restore("raw", addenda));
        assert!(said.contains(expected), "{addenda:?}: {said}");
        assert!(place.read_volume("back") == days[3], "{addenda:?}");
    }
    ok(pitstop(&place, "check", &[]));
}

// rules: BAK-10, BAK-11
#[test]
fn a_conversion_that_cannot_be_leaves_no_file_and_no_job() {
    let (place, _) = place();
    let (daemon, mut qmp) = serve(&place);
    let jobs = |qmp: &mut Qmp| qmp.order("query-jobs", json!({})).as_array().unwrap().len();
    for format in ["qcow2", "pitstop"] {
        let arguments = ["db", "bulk", "-O", format, "--addendum", "bulk.add", "--speed", "1M"];
        // A container that somebody works with.
        let held = FileDisk::create(&place.path("held.pit")).unwrap();
        let said = fails(pitstop(&place, "backup", &["db", "held.pit", "-O", format, "--force"]));
        assert!(said.contains("held.pit is a container in use"), "{said}");
        let said = fails(pitstop(&place, "backup", &["db", "x", "-O", format, "--addendum", "held.pit", "--force"]));
        assert!(said.contains("held.pit is a container in use"), "{said}");
        drop(held);
        std::fs::remove_file(place.path("held.pit")).unwrap();
        // Somebody pauses it.
        let child = pitstop(&place, "backup", &arguments);
        wait_until("a backup", || jobs(&mut qmp) > 0);
        let id = qmp.order("query-jobs", json!({}))[0]["id"].clone();
        qmp.order("job-pause", json!({"id": id}));
        let said = fails(child);
        assert!(said.contains("is paused"), "{said}");
        // The target comes to be there meanwhile.
        let child = pitstop(&place, "backup", &[&arguments[..6], &["--speed", "12M"]].concat());
        wait_until("a backup", || jobs(&mut qmp) > 0);
        std::fs::write(place.path("bulk"), b"mine").unwrap();
        let said = fails(child);
        assert!(said.contains("exists already"), "{said}");
        assert_eq!(std::fs::read(place.path("bulk")).unwrap(), b"mine");
        std::fs::remove_file(place.path("bulk")).unwrap();
        assert!(!place.path("bulk.add").exists(), "an addendum without its image");
        assert_eq!((hidden(&place), jobs(&mut qmp)), (vec![], 0));
    }
    assert_eq!(daemon.terminate().code(), Some(0));
}
