//! Hydrating and jobs on a container that nobody holds.
// req: R8 R12 R15 R18; rule: JOB-2, JOB-6

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::Pit;

const LEN: usize = 12 << 20;

/// A container with `golden`, full of data, and its copy `ci`.
fn pit() -> Pit {
    let pit = Pit::new();
    std::fs::write(pit.path("golden.raw"), common::noise(LEN, 1)).unwrap();
    pit.ok(&["import", "disks.pit", "golden", "golden.raw", "--verify", "off"]);
    pit.ok(&["snapshot", "disks.pit", "golden", "ci"]);
    pit
}

fn assert_whole(pit: &Pit, name: &str) {
    pit.ok(&["compare", "disks.pit", name, "--file", "golden.raw"]);
    assert_eq!(pit.ok(&["check", "disks.pit"]), "no errors were found\n");
}

/// The only job's id.
fn only_job(pit: &Pit) -> String {
    let jobs = pit.json(&["job", "list", "disks.pit"]);
    assert_eq!(jobs.as_array().unwrap().len(), 1, "{jobs}");
    jobs[0]["id"].as_str().unwrap().to_owned()
}

fn state(pit: &Pit, name: &str) -> String {
    pit.json(&["list", "disks.pit", name])[0]["state"].as_str().unwrap().to_owned()
}

fn signal(child: &Child, name: &str) {
    let status = std::process::Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

#[test]
fn a_hydrated_volume_needs_its_source_no_more() {
    let pit = pit();
    assert_eq!(pit.ok(&["job", "list", "disks.pit"]), "no jobs\n");
    assert_eq!(pit.ok(&["hydrate", "disks.pit", "golden"]), "golden: real\n");
    assert_eq!(pit.ok(&["hydrate", "disks.pit", "ci"]), "ci: real, copied 12 MiB, adopted 0 B\n");
    assert_eq!((state(&pit, "ci").as_str(), pit.ok(&["job", "list", "disks.pit"]).as_str()), ("real", "no jobs\n"));
    let allocated = |name| pit.json(&["info", "disks.pit", name])["allocated-bytes"].as_u64().unwrap();
    assert!(allocated("ci") >= LEN as u64 && allocated("golden") >= LEN as u64);
    pit.ok(&["delete", "disks.pit", "golden"]);
    assert_whole(&pit, "ci");
    let message = pit.fails(&["hydrate", "disks.pit", "golden"]);
    assert!(message.contains("no volume named 'golden'"), "{message}");
}

#[test]
fn a_refresh_can_be_hydrated() {
    let pit = pit();
    pit.ok(&["volume", "create", "disks.pit", "job", "--size", "4M"]);
    let line = pit.ok(&["refresh", "disks.pit", "job", "--source", "ci", "--hydrate", "--wait"]);
    assert_eq!(line, "job: real, copied 12 MiB, adopted 0 B\n");
    let hydrated = pit.json(&["refresh", "disks.pit", "job", "--source", "ci", "--hydrate"]);
    assert_eq!((&hydrated["volume"]["state"], &hydrated["job"]), (&"real".into(), &serde_json::Value::Null));
    assert_eq!(state(&pit, "ci"), "virtual");
    pit.ok(&["delete", "disks.pit", "golden"]);
    pit.ok(&["delete", "disks.pit", "ci"]);
    assert_whole(&pit, "job");
}

/// Ctrl-C and worse: what was copied stays, and the same command goes on.
#[test]
fn an_interrupted_hydration_goes_on_where_it_was() {
    for name in ["INT", "TERM", "KILL"] {
        let pit = pit();
        let args = ["hydrate", "disks.pit", "ci", "--speed", "3M"];
        let child = pit.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        if name != "KILL" {
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            let expected = "pitstop: interrupted; what has been copied stays: `pitstop job wait`, or a daemon, goes on from there\n";
            assert_eq!(stderr, expected);
        }
        let jobs = pit.json(&["job", "list", "disks.pit"]);
        let job = &jobs[0];
        assert_eq!((&job["status"], &job["x-pitstop-volume"]), (&"created".into(), &"ci".into()));
        assert_eq!(job["x-pitstop-speed"], 3 << 20);
        let done = job["current-progress"].as_u64().unwrap();
        assert!(done > 0 || name == "KILL", "{job}");
        assert_eq!(state(&pit, "ci"), "hydrating");
        for (verb, volume) in [("list", None), ("tree", None), ("info", Some("ci"))] {
            let text = pit.ok(&[&[verb, "disks.pit"], volume.as_slice()].concat());
            assert!(text.contains(&format!("hydrating {} %", done * 100 / LEN as u64)), "{text}");
        }
        let text = pit.ok(&["job", "list", "disks.pit"]);
        assert!(text.contains("3 MiB/s") && text.contains("nobody works at them"), "{text}");
        // Whole, whatever became of the command.
        assert_whole(&pit, "ci");
        let last = if name == "INT" {
            &["job", "wait", "disks.pit"][..]
        } else {
            &["hydrate", "disks.pit", "ci", "--speed", "0"]
        };
        let line = pit.ok(last);
        assert!(line.starts_with("ci: real, copied "), "{line}");
        pit.ok(&["delete", "disks.pit", "golden"]);
        assert_whole(&pit, "ci");
    }
}

/// Begins to hydrate a volume at 512 KiB a second, and interrupts that.
fn begin_slowly(pit: &Pit, name: &str) {
    let mut child =
        pit.command(&["hydrate", "disks.pit", name, "--speed", "512K"]).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(700));
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn orders_to_jobs_are_kept() {
    let pit = pit();
    pit.ok(&["snapshot", "disks.pit", "golden", "other"]);
    assert!(pit.fails(&["job", "pause", "disks.pit"]).contains("there is no job"));
    for name in ["ci", "other"] {
        begin_slowly(&pit, name);
    }
    let jobs = pit.json(&["job", "list", "disks.pit"]);
    let [id, other] = [&jobs[0]["id"], &jobs[1]["id"]].map(|id| id.as_str().unwrap());
    let message = pit.fails(&["job", "pause", "disks.pit"]);
    assert!(message.contains("several jobs") && message.contains(id) && message.contains(other), "{message}");
    pit.ok(&["job", "cancel", "disks.pit", other]);
    assert_eq!((only_job(&pit).as_str(), state(&pit, "other").as_str()), (id, "virtual"));
    let message = pit.fails(&["job", "resume", "disks.pit", other]);
    assert!(message.contains(&format!("no job '{other}'")), "{message}");

    pit.ok(&["job", "pause", "disks.pit"]);
    let job = |member: &str| pit.json(&["job", "list", "disks.pit", id])[0][member].clone();
    assert_eq!((job("status"), job("x-pitstop-speed")), ("paused".into(), (512 << 10).into()));
    let message = pit.fails(&["job", "wait", "disks.pit"]);
    assert!(message.contains("is paused; let it go on with `pitstop job resume`"), "{message}");
    pit.ok(&["job", "set-speed", "disks.pit", "--speed", "4M"]);
    assert_eq!((job("status"), job("x-pitstop-speed")), ("paused".into(), (4 << 20).into()));
    pit.ok(&["job", "resume", "disks.pit", id]);
    let since = Instant::now();
    let line = pit.ok(&["job", "wait", "disks.pit", id]);
    assert!(line.starts_with("ci: real, copied "), "{line}");
    assert!(since.elapsed() > Duration::from_millis(1500), "a limit of 4 MiB/s was passed: {:?}", since.elapsed());
    assert!(pit.fails(&["job", "wait", "disks.pit", id]).contains("it may have ended"));
    assert_eq!(pit.ok(&["job", "wait", "disks.pit"]), "");
    assert_whole(&pit, "ci");
}

// rule: JOB-14
#[test]
fn waiting_for_all_jobs_waits_for_those_that_run() {
    let pit = pit();
    for name in ["other", "third"] {
        pit.ok(&["snapshot", "disks.pit", "golden", name]);
    }
    for name in ["ci", "other", "third"] {
        begin_slowly(&pit, name);
    }
    let jobs = pit.json(&["job", "list", "disks.pit"]);
    let [first, second, third] = [0, 1, 2].map(|job| jobs[job]["id"].as_str().unwrap());
    for id in [first, third] {
        pit.ok(&["job", "pause", "disks.pit", id]);
    }
    pit.ok(&["job", "set-speed", "disks.pit", second, "--speed", "0"]);
    let message = pit.fails(&["job", "wait", "disks.pit"]);
    assert!(message.contains(&format!("jobs {first}, {third} are paused")), "{message}");
    assert_eq!(["ci", "other", "third"].map(|name| state(&pit, name)), ["hydrating", "real", "hydrating"]);
    pit.ok(&["job", "cancel", "disks.pit", third]);
    let message = pit.fails(&["job", "wait", "disks.pit"]);
    assert!(message.contains(&format!("job {first} is paused")), "{message}");
}
