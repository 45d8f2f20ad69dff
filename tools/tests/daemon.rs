//! The verbs on a container that a daemon holds. The daemon here is the control protocol over an open container; the
//! real one is tested with its own crate.
// req: R30

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use common::Pit;
use pitstop_format::addendum::Piece;
use pitstop_format::{
    Container, Durability, FileDisk, Holder, Hydration, Listing, NewCopy, OpenMode, Verify, VolumeChange, VolumeInfo,
    VolumeIo,
};
use serde_json::{Value, json};

/// How long a daemon keeps clients that take no events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    Long,
    /// Until another client reads data.
    Short,
}

/// Drops all connections but that of number `client`.
fn forget_others(client: usize, clients: &[UnixStream]) {
    for (_, other) in clients.iter().enumerate().filter(|(number, _)| *number != client) {
        // Those that have gone already are not connected.
        drop(other.shutdown(Shutdown::Both));
    }
}

/// Holds the container of a [`Pit`] and answers on a socket.
struct Daemon {
    stop: Arc<AtomicBool>,
    socket: std::path::PathBuf,
    thread: Option<JoinHandle<()>>,
    /// Commands received.
    seen: Arc<Mutex<Vec<Value>>>,
}

impl Daemon {
    fn start(pit: &Pit) -> Self {
        Self::start_with(pit, Memory::Long)
    }

    fn start_with(pit: &Pit, memory: Memory) -> Self {
        let socket = pit.path("control");
        let disk = FileDisk::open(&pit.container, OpenMode::ReadWrite).unwrap();
        let program = "pitstopd".to_owned();
        disk.announce(&Holder { pid: std::process::id(), program, control: Some(socket.clone()) }).unwrap();
        let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, sees) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            let clients: Mutex<Vec<UnixStream>> = Mutex::default();
            std::thread::scope(|scope| {
                for (number, client) in listener.incoming().map(Result::unwrap).enumerate() {
                    if stopped.load(Ordering::SeqCst) {
                        break;
                    }
                    clients.lock().unwrap().push(client.try_clone().unwrap());
                    let (container, clients, sees) = (&container, &clients, &*sees);
                    scope.spawn(move || {
                        serve(client, container, sees, |command| {
                            if memory == Memory::Short && command == "x-pitstop-read" {
                                forget_others(number, &clients.lock().unwrap());
                            }
                        });
                    });
                }
            });
            container.close().unwrap();
        });
        Self { stop, socket, thread: Some(thread), seen }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(&self.socket));
        self.thread.take().unwrap().join().unwrap();
        std::fs::remove_file(&self.socket).unwrap();
    }
}

fn serve(mut client: UnixStream, container: &Container, seen: &Mutex<Vec<Value>>, answered: impl Fn(&str)) {
    let greeting = json!({"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": "pitstop 0.1.0"}, "capabilities": []}});
    write!(client, "{greeting}\r\n").unwrap();
    let lines = BufReader::new(client.try_clone().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        let request: Value = serde_json::from_str(&line).unwrap();
        seen.lock().unwrap().push(request.clone());
        let mut reply = match execute(container, request["execute"].as_str().unwrap(), &request["arguments"]) {
            Ok(value) => json!({ "return": value }),
            Err((class, desc)) => json!({ "error": { "class": class, "desc": desc } }),
        };
        reply["id"] = request["id"].clone();
        if write!(client, "{reply}\r\n").is_err() {
            return;
        }
        answered(request["execute"].as_str().unwrap());
    }
}

fn durability(arguments: &Value) -> Option<Durability> {
    Some(match arguments["durability"].as_str()? {
        "flush" => Durability::Flush,
        "none" => Durability::None,
        other => panic!("{other}"),
    })
}

fn execute(container: &Container, command: &str, arguments: &Value) -> Result<Value, (&'static str, String)> {
    let text = |name: &str| arguments[name].as_str().unwrap();
    let failed = |error: pitstop_format::Error| ("GenericError", error.to_string());
    let start = || arguments["start"].as_u64().unwrap();
    let moving =
        ["name", "a", "b"].iter().filter_map(|key| arguments[key].as_str()).find(|name| name.starts_with("moving"));
    let counts_only = arguments["counts-only"] == true && moving.is_none();
    let listing = || if counts_only { Listing::Counts } else { Listing::Ranges(2) };
    if let Some(name) = moving.filter(|_| command != "x-pitstop-refresh" && arguments["start"].as_u64() > Some(0)) {
        move_between_steps(container, name);
    }
    Ok(match command {
        "qmp_capabilities" => json!({}),
        "x-pitstop-query-container" => json!(container.info()),
        "x-pitstop-query-volumes" => json!(container.volumes()),
        "x-pitstop-check" => json!(container.check(&AtomicBool::new(false)).map_err(failed)?),
        "x-pitstop-query-layers" => json!(container.layers()),
        // Few ranges a step, as if there were many.
        "x-pitstop-map" => json!(container.map(text("name"), start(), listing()).map_err(failed)?),
        "x-pitstop-diff" => json!(container.diff(text("a"), text("b"), start(), listing()).map_err(failed)?),
        "x-pitstop-read" => {
            let volume = container.volume(text("name")).map_err(failed)?;
            let mut bytes = vec![0; arguments["length"].as_u64().unwrap() as usize];
            VolumeIo::new(container, volume).read_at(&mut bytes, start()).map_err(failed)?;
            json!({ "data": BASE64_STANDARD.encode(bytes) })
        }
        "x-pitstop-write" => {
            let io = VolumeIo::new(container, container.volume(text("name")).map_err(failed)?);
            let data = arguments["data"].as_str().map(|data| BASE64_STANDARD.decode(data).unwrap());
            assert!(data.as_ref().is_none_or(|data| data.len() <= 512 << 10));
            let piece = data.as_deref().map_or_else(|| Piece::Zeros(arguments["zeros"].as_u64().unwrap()), Piece::Data);
            io.put(start(), piece).map_err(failed)?;
            if arguments["flush"] != false {
                io.flush().map_err(failed)?;
            }
            json!({})
        }
        "query-block-exports" => json!([{ "node-name": "busy", "x-pitstop-connected": true }]),
        "x-pitstop-volume-set" if arguments["verify"] == "copy" => {
            json!({ "volume": container.set_verify(text("name"), Verify::Copy).map_err(failed)? })
        }
        "x-pitstop-volume-create" => {
            let (size, durability) = (arguments["size"].as_u64().unwrap(), durability(arguments).unwrap());
            json!({ "volume": container.create_volume_with(text("name"), size, durability).map_err(failed)? })
        }
        "x-pitstop-volume-set" => {
            let defined = arguments["defined"].as_bool().unwrap();
            let change = VolumeChange { durability: durability(arguments), defined };
            json!({ "volume": container.set_volume(text("name"), change).map_err(failed)? })
        }
        "x-pitstop-volume-delete" if text("name") == undeletable(container) => {
            return Err(("GenericError", "volume is exported as 'busy'; delete the export first".to_owned()));
        }
        "x-pitstop-volume-delete" => json!({ "": container.delete_volume(text("name")).map_err(failed)? }),
        "x-pitstop-volume-rename" => {
            json!({ "": container.rename_volume(text("name"), text("new-name")).map_err(failed)? })
        }
        "x-pitstop-snapshot" => {
            json!({ "volume": container.snapshot(text("source"), text("name")).map_err(failed)?, "elapsed-us": 7 })
        }
        "transaction" => {
            let actions = arguments["actions"].as_array().unwrap();
            assert!(actions.iter().all(|action| action["type"] == "x-pitstop-snapshot"));
            let text = |action: &Value, name: &str| action["data"][name].as_str().unwrap().to_owned();
            let copy = |action| NewCopy { source: text(action, "source"), name: text(action, "name") };
            let copies: Vec<_> = actions.iter().map(copy).collect();
            json!({ "x-pitstop-volumes": container.snapshot_group(&copies).map_err(failed)? })
        }
        "x-pitstop-refresh" if text("name") == "busy" && arguments["force"] != true => {
            return Err((
                "GenericError",
                "volume 'busy' is connected to a guest; power it off, or use force".to_owned(),
            ));
        }
        "x-pitstop-refresh" => {
            json!({ "volume": container.refresh(text("name"), text("source")).map_err(failed)?, "elapsed-us": 7 })
        }
        "x-pitstop-volume-hydrate" => {
            let begun = container.hydrate(text("name")).map_err(failed)?;
            if let Some(layer) = begun {
                container.set_hydration(layer, false, arguments["speed"].as_u64().unwrap()).map_err(failed)?;
            }
            json!({ "job": begun.map(|_| jobs(container).remove(0)) })
        }
        "query-jobs" => {
            // Each question finds the jobs a little further.
            for hydration in container.hydrations().iter().filter(|hydration| !hydration.paused) {
                container.hydrate_step(hydration.layer, 256 << 10).map_err(failed)?;
                container.maintain().map_err(failed)?;
            }
            json!(jobs(container))
        }
        "job-pause" | "job-resume" => {
            let hydration = container.hydrations().remove(0);
            container.set_hydration(hydration.layer, command == "job-pause", hydration.speed).map_err(failed)?;
            json!({})
        }
        "x-pitstop-job-set-speed" => {
            let hydration = container.hydrations().remove(0);
            let speed = arguments["speed"].as_u64().unwrap();
            container.set_hydration(hydration.layer, hydration.paused, speed).map_err(failed)?;
            json!({})
        }
        "job-cancel" => {
            let hydration = container.hydrations().remove(0);
            assert_eq!(arguments["id"], json!(format!("hydrate-{}", hydration.layer)));
            container.cancel_hydration(hydration.layer).map_err(failed)?;
            json!({})
        }
        _ => return Err(("CommandNotFound", format!("The command {command} has not been found"))),
    })
}

fn jobs(container: &Container) -> Vec<Value> {
    let job = |hydration: &Hydration| {
        json!({
            "id": format!("hydrate-{}", hydration.layer), "type": "hydrate",
            "status": if hydration.paused { "paused" } else { "running" },
            "current-progress": hydration.copied_bytes, "total-progress": hydration.total_bytes,
            "x-pitstop-volume": hydration.volume, "x-pitstop-speed": hydration.speed, "x-pitstop-rate": 5 << 20,
            "x-pitstop-waits-for-space": false, "x-pitstop-copied": 0, "x-pitstop-adopted": 0,
        })
    };
    container.hydrations().iter().map(job).collect()
}

// req: R18
#[test]
fn jobs_are_the_daemons() {
    let pit = Pit::new();
    std::fs::write(pit.path("golden.raw"), common::noise(8 << 20, 1)).unwrap();
    pit.ok(&["import", "disks.pit", "golden", "golden.raw"]);
    pit.ok(&["snapshot", "disks.pit", "golden", "ci"]);
    let daemon = Daemon::start(&pit);
    assert_eq!(pit.ok(&["hydrate", "disks.pit", "golden"]), "golden: real\n");
    let line = pit.ok(&["hydrate", "disks.pit", "ci", "--speed", "5M"]);
    let id = pit.json(&["job", "list", "disks.pit"])[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(line, format!("ci: hydrating 0 %, job {id}\n"));
    let table = pit.ok(&["job", "list", "disks.pit"]);
    assert!(table.contains("running") && table.contains("5 MiB/s") && !table.contains("nobody works"), "{table}");
    pit.ok(&["job", "pause", "disks.pit"]);
    assert!(pit.fails(&["job", "wait", "disks.pit", &id]).contains("is paused"));
    pit.ok(&["job", "set-speed", "disks.pit", &id, "--speed", "1G"]);
    // What was begun before goes on, with the speed that is said now, or the one of before.
    let hydrated = pit.json(&["hydrate", "disks.pit", "ci"]);
    assert_eq!((&hydrated["job"]["id"], &hydrated["job"]["status"]), (&json!(id), &json!("running")));
    assert_eq!(hydrated["job"]["x-pitstop-speed"], 1 << 30);
    assert_eq!(hydrated["volume"]["hydration"]["total-bytes"], 8 << 20);
    pit.ok(&["job", "cancel", "disks.pit", &id]);
    assert!(pit.fails(&["job", "pause", "disks.pit"]).contains("there is no job"));
    let line = pit.ok(&["refresh", "disks.pit", "ci", "--source", "golden", "--hydrate", "--wait"]);
    assert!(line.starts_with("ci: real"), "{line}");
    drop(daemon);
    pit.ok(&["delete", "disks.pit", "golden"]);
    pit.ok(&["compare", "disks.pit", "ci", "--file", "golden.raw"]);
}

#[test]
fn every_verb_works_through_a_daemon_as_it_does_without() {
    let pit = Pit::new();
    // Many ranges, which the daemon gives in steps of two.
    let noise = common::noise(4096, 1);
    let pieces: Vec<(u64, &[u8])> = (0..40).map(|index| (index * 8192, &noise[..])).collect();
    pit.sparse("ragged.raw", 1 << 20, &pieces);
    pit.ok(&["import", "disks.pit", "ragged", "ragged.raw"]);
    let daemon = Daemon::start(&pit);
    assert_eq!(pit.ok(&["volume", "create", "disks.pit", "golden", "--size", "8M"]), "golden: 8 MiB\n");
    let line = pit.ok(&["snapshot", "disks.pit", "golden", "ci-1"]);
    assert!(line.starts_with("ci-1: 8 MiB, copy of golden as of 20"), "{line}");
    let lines = pit.ok(&["snapshot", "disks.pit", "--group", "golden=ci-2", "ci-1=ci-3"]);
    assert!(lines.starts_with("ci-2: 8 MiB, copy of golden as of 20") && lines.contains("\nci-3: "), "{lines}");
    pit.ok(&["volume", "create", "disks.pit", "scratch", "--size", "4M"]);
    pit.ok(&["rename", "disks.pit", "scratch", "other"]);
    pit.ok(&["refresh", "disks.pit", "other", "--source", "golden"]);
    pit.ok(&["restore", "disks.pit", "golden", "--from", "other"]);
    pit.ok(&["restore", "disks.pit", "golden", "--from", "ci-2"]);
    pit.ok(&["volume", "create", "disks.pit", "gone", "--size", "4M"]);
    pit.ok(&["delete", "disks.pit", "gone"]);

    let looks: [&[&str]; 8] = [
        &["list", "disks.pit"],
        &["list", "disks.pit", "ci-1"],
        &["tree", "disks.pit"],
        &["info", "disks.pit", "ci-1"],
        &["tree", "disks.pit", "golden"],
        &["map", "disks.pit", "ragged"],
        &["diff", "disks.pit", "ragged", "golden"],
        &["diff", "disks.pit", "golden", "ci-1"],
    ];
    let through: Vec<Value> = looks.iter().map(|look| pit.json(look)).collect();
    let through_text: Vec<String> = looks.iter().map(|look| pit.ok(look)).collect();
    let info_through = pit.json(&["info", "disks.pit"]);
    assert_eq!(info_through["held-by"]["program"], "pitstopd");
    assert!(pit.ok(&["info", "disks.pit"]).contains("held by:          pitstopd (pid "));
    drop(daemon);

    assert_eq!(looks.iter().map(|look| pit.json(look)).collect::<Vec<_>>(), through);
    assert_eq!(looks.iter().map(|look| pit.ok(look)).collect::<Vec<_>>(), through_text);
    let info = pit.json(&["info", "disks.pit"]);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&info), keys(&info_through));
}

#[test]
fn refusals_are_in_the_daemons_words_and_force_is_passed_on() {
    let pit = Pit::new();
    pit.ok(&["volume", "create", "disks.pit", "golden", "--size", "8M"]);
    pit.ok(&["snapshot", "disks.pit", "golden", "busy"]);
    let daemon = Daemon::start(&pit);
    let message = pit.fails(&["refresh", "disks.pit", "busy", "--source", "golden"]);
    assert_eq!(message, "volume 'busy' is connected to a guest; power it off, or use force");
    pit.ok(&["refresh", "disks.pit", "busy", "--source", "golden", "--force"]);
    pit.ok(&["snapshot", "disks.pit", "busy", "idle"]);
    assert_eq!(pit.fails(&["restore", "disks.pit", "busy", "--from", "idle"]), message);
    pit.ok(&["restore", "disks.pit", "busy", "--from", "idle", "--force"]);
    pit.ok(&["refresh", "disks.pit", "busy", "--source", "golden", "--force"]);
    let message = pit.fails(&["snapshot", "disks.pit", "none", "x"]);
    assert!(message.contains("no volume named 'none'"), "{message}");
    let seen = daemon.seen.lock().unwrap();
    let forced = seen.iter().rfind(|request| request["execute"] == "x-pitstop-refresh").unwrap();
    assert_eq!(forced["arguments"], json!({ "name": "busy", "source": "golden", "force": true }));
}

/// Somebody refreshes volume `name`: once, or, where it is called just "moving", again and again.
fn move_between_steps(container: &Container, name: &str) {
    let is_moved = container.volumes().iter().any(|volume| volume.name == name && volume.origin.is_some());
    if name == "moving" || !is_moved {
        container.refresh(name, "golden").unwrap();
    }
}

// rule: CTL-73
#[test]
fn steps_of_different_heads_are_not_joined() {
    let pit = Pit::new();
    let pieces: Vec<_> = (0..8).map(|index| (index * 8192, &b"data"[..])).collect();
    pit.sparse("in.raw", 1 << 20, &pieces);
    for name in ["golden", "moving", "moving-map", "moving-a", "moving-b", "moving-info"] {
        pit.ok(&["import", "disks.pit", name, "in.raw"]);
    }
    let daemon = Daemon::start(&pit);
    for (args, named) in [
        (&["map", "disks.pit", "moving-map"][..], "'moving-map'"),
        (&["diff", "disks.pit", "moving-a", "golden"], "'moving-a' or 'golden'"),
        (&["diff", "disks.pit", "golden", "moving-b"], "'golden' or 'moving-b'"),
        (&["info", "disks.pit", "moving"], "'moving'"),
    ] {
        let message = pit.fails(args);
        let moved = format!("{named} was copied, refreshed or restored while it was being listed");
        assert!(message.contains(&moved) && message.contains("list again"), "{args:?}: {message}");
    }
    // What changed once is counted anew.
    let map = &pit.json(&["info", "disks.pit", "moving-info"])["map"];
    assert_eq!((&map["others-bytes"], &map["size-bytes"]), (&json!(8 * 4096), &json!(1 << 20)));
    pit.ok(&["map", "disks.pit", "moving-map"]);
    drop(daemon);
}

// rule: CTL-25
#[test]
fn a_client_that_is_dropped_while_it_moves_data_ends_well() {
    let pit = Pit::new();
    let golden = common::noise(4 << 20, 1);
    std::fs::write(pit.path("golden.raw"), &golden).unwrap();
    pit.ok(&["import", "disks.pit", "golden", "golden.raw"]);
    pit.ok(&["snapshot", "disks.pit", "golden", "ci"]);
    let daemon = Daemon::start_with(&pit, Memory::Short);
    pit.ok(&["export", "disks.pit", "golden", "out.raw"]);
    assert!(std::fs::read(pit.path("out.raw")).unwrap() == golden);
    pit.ok(&["compare", "disks.pit", "golden", "ci"]);
    pit.ok(&["compare", "disks.pit", "ci", "--file", "golden.raw"]);
    drop(daemon);
    // No copy that was made for it is left.
    assert_eq!(pit.names(), ["ci", "golden"]);
}

/// The oldest copy of a volume named `busy`: it cannot be deleted.
fn undeletable(container: &Container) -> String {
    let is_copy = |volume: &VolumeInfo| volume.origin.as_ref().is_some_and(|origin| origin.name == "busy");
    let oldest = container.volumes().into_iter().filter(is_copy).min_by_key(|volume| volume.id);
    oldest.map(|volume| volume.name).unwrap_or_default()
}

// req: R17; rule: SNP-26
#[test]
fn a_copy_that_cannot_be_deleted_stays_and_is_named() {
    let pit = Pit::new();
    pit.ok(&["volume", "create", "disks.pit", "busy", "--size", "8M"]);
    let daemon = Daemon::start(&pit);
    let rotate = ["snapshot", "disks.pit", "busy", "--rotate", "hour", "--keep", "2"];
    pit.ok(&rotate);
    pit.ok(&rotate);
    let names = pit.names();
    let message = pit.fails(&rotate);
    let after = pit.names();
    assert_eq!(after.len(), names.len() + 1);
    let (oldest, new) = (&names[1], after.last().unwrap());
    let made = format!("{new} has been made, but the old copy {oldest} could not be deleted");
    assert!(message.contains(&made) && message.contains("is exported as 'busy'"), "{message}");
    // Beside the one that cannot go, the history goes on.
    pit.fails(&rotate);
    assert!(pit.names().contains(oldest) && pit.names().contains(new) && !pit.names().contains(&names[2]));
    assert_eq!(pit.names().len(), after.len());
    drop(daemon);
    pit.ok(&rotate);
    assert_eq!(pit.names().len(), 1 + 2);
}

#[test]
fn imports_and_restores_go_through_the_daemon() {
    let pit = Pit::new();
    for name in ["busy", "idle"] {
        pit.ok(&["volume", "create", "disks.pit", name, "--size", "3M"]);
    }
    let image =
        [common::noise(700_000 / 512 * 512, 1), vec![0; 1 << 20], common::noise(1 << 20, 2), vec![0; 512]].concat();
    std::fs::write(pit.path("in.raw"), &image).unwrap();
    for round in 0..2 {
        let daemon = Daemon::start(&pit);
        pit.ok(&["import", "disks.pit", "v", "in.raw"]);
        assert!(pit.fails(&["import", "disks.pit", "v", "in.raw"]).contains("already"));
        let restored = pit.json(&["restore", "disks.pit", "idle", "--from-backup", "in.raw"]);
        assert_eq!(restored["size-bytes"], image.len() as u64);
        let before = daemon.seen.lock().unwrap().len();
        let message = pit.fails(&["restore", "disks.pit", "busy", "--from-backup", "in.raw"]);
        assert_eq!(message, "a guest is connected to volume busy; power it off first, or restore with --force");
        let seen: Vec<_> = daemon.seen.lock().unwrap()[before..].to_vec();
        assert!(seen.iter().all(|request| request["execute"] != "x-pitstop-write"), "{seen:?}");
        pit.ok(&["restore", "disks.pit", "busy", "--from-backup", "in.raw", "--force"]);
        let names = pit.names();
        assert!(["busy", "idle", "v"].iter().eq(names.iter()), "{names:?}");
        drop(daemon);
        for name in ["busy", "idle", "v"] {
            pit.ok(&["export", "disks.pit", name, "out.raw", "--force"]);
            assert!(std::fs::read(pit.path("out.raw")).unwrap() == image, "{name}, round {round}");
        }
        pit.ok(&["delete", "disks.pit", "v"]);
    }
}

#[test]
fn repairs_need_the_daemon_to_stop() {
    let pit = Pit::new();
    pit.ok(&["volume", "create", "disks.pit", "golden", "--size", "8M"]);
    let daemon = Daemon::start(&pit);
    assert_eq!(pit.ok(&["check", "disks.pit"]), "no errors were found\n");
    assert_eq!(pit.json(&["check", "disks.pit"])["volumes"], 1);
    let message = pit.fails(&["check", "disks.pit", "--repair", "all"]);
    assert!(message.contains("cannot be repaired while that runs"), "{message}");
    assert!(message.contains(&format!("pitstopd 0.1.0 (pid {})", std::process::id())), "{message}");
    drop(daemon);
    pit.ok(&["export", "disks.pit", "golden", "out.raw"]);
}

#[test]
fn a_holder_without_an_answer_is_named() {
    let pit = Pit::new();
    let disk = FileDisk::open(&pit.container, OpenMode::ReadWrite).unwrap();
    let message = pit.fails(&["list", "disks.pit"]);
    assert!(message.contains("is in use by"), "{message}");
    let holder = |control| Holder { pid: std::process::id(), program: "pitstopd".to_owned(), control };
    disk.announce(&holder(None)).unwrap();
    let message = pit.fails(&["list", "disks.pit"]);
    assert!(message.contains(&format!("pitstopd (pid {}); wait until it is done", std::process::id())), "{message}");
    disk.announce(&holder(Some(pit.path("nobody")))).unwrap();
    let message = pit.fails(&["list", "disks.pit"]);
    assert!(message.contains("control socket") && message.contains("does not answer"), "{message}");
}

#[test]
fn a_command_waits_for_another_short_one() {
    let pit = Pit::new();
    let disk = FileDisk::open(&pit.container, OpenMode::ReadWrite).unwrap();
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| pit.ok(&["volume", "create", "disks.pit", "v", "--size", "1M"]));
        std::thread::sleep(std::time::Duration::from_millis(400));
        drop(disk);
        waiting.join().unwrap()
    });
    assert_eq!(waiting, "v: 1 MiB\n");
}

// rule: VOL-43, VOL-46, CTL-130, CTL-131
#[test]
fn durability_is_set_through_the_daemon() {
    let pit = Pit::new();
    let daemon = Daemon::start(&pit);
    let line = pit.ok(&["volume", "create", "disks.pit", "ci", "--size", "8M", "--durability", "none"]);
    assert_eq!(line, "ci: 8 MiB, durability none\n");
    assert_eq!(pit.ok(&["set", "disks.pit", "ci", "--durability", "flush"]), "ci: 8 MiB\n");
    let volume = pit.json(&["set", "disks.pit", "ci", "--durability", "none", "--defined"]);
    assert_eq!((&volume["durability"], &volume["undefined"]), (&json!("none"), &json!(false)));
    let seen = daemon.seen.lock().unwrap();
    let last = seen.iter().rfind(|request| request["execute"] == "x-pitstop-volume-set").unwrap();
    assert_eq!(last["arguments"], json!({"name": "ci", "durability": "none", "defined": true}));
}
