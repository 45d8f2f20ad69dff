//! The command line, its errors, and the conventions for vhost-user programs (R29).

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Child;

use common::client::{Client, DATA_START, Style, T_OUT};
use common::{Place, command, run, spawn, text, wait_until};

fn fails(arguments: &[&str], code: i32, part: &str) {
    let (found, _, errors) = run(arguments);
    assert!(found == code && errors.contains(part), "{arguments:?}: exit code {found}, said: {errors}");
}

#[test]
fn capabilities_are_printed_whatever_else_is_said() {
    let expected = "{\"type\":\"block\",\"features\":[\"read-only\",\"blk-file\"]}\n";
    for arguments in [&["--print-capabilities"][..], &["--nonsense", "--print-capabilities", "x"]] {
        let (code, output, _) = run(arguments);
        assert_eq!((code, output.as_str()), (0, expected));
    }
}

#[test]
fn the_description_file_names_the_program() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/50-pitstopd.json")).unwrap();
    let description: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(description["type"], "block");
    assert!(description["binary"].as_str().unwrap().starts_with('/'));
}

#[test]
fn mistakes_end_the_daemon_with_a_reason() {
    let place = Place::with_volumes(&["v", "w"]);
    let container = place.container();
    let container = text(&container);
    let export = |volume: &str, socket: &str| format!("volume={volume},socket={}", place.path(socket).display());
    fails(&[], 2, "CONTAINER");
    fails(&[container, "--export", "volume=v"], 2, "needs socket=");
    fails(&[container, "--volume", "v"], 2, "--socket-path or --fd");
    fails(&[container], 2, "nothing to serve");
    fails(&[container, "--table-cache", "1K"], 2, "at least 1M");
    fails(&[text(&place.path("none.pit")), "--export", &export("v", "s")], 1, "none.pit");
    fails(&[container, "--export", &export("x", "s")], 1, "no volume named 'x'");
    fails(&[container, "--export", &export("v", "folder/s")], 1, "does not exist; create it first");
    fails(&[container, "--export", &export("v", "disks.pit")], 1, "not a socket");
    fails(&[container, "--export", &export("v", "s"), "--export", &export("v", "t")], 1, "choose another id");
    let other_id = format!("{},id=other", export("v", "t"));
    fails(&[container, "--export", &export("v", "s"), "--export", &other_id], 1, "exported already");
    let long = export("v", &"x".repeat(120));
    fails(&[container, "--export", &long], 1, "longer than 107 bytes");
    fails(&[container, "--socket-path", text(&place.path("s"))], 1, "name it with --volume");
    fails(&[container, "--fd", "77", "--volume", "v"], 1, "not a vhost-user socket");
    fails(&[text(&place.path("")), "--export", &export("v", "s")], 1, "container");
    let left: Vec<_> = std::fs::read_dir(place.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["disks.pit"], "nothing is left behind");
}

#[test]
fn a_second_daemon_is_told_who_holds_the_container() {
    let place = Place::with_volumes(&["v"]);
    let daemon = place.serve(&["v"], &[]);
    let export = format!("volume=v,socket={}", place.path("t").display());
    let (code, _, errors) = run(&[text(&place.container()), "--export", &export]);
    assert_eq!(code, 1);
    assert!(errors.contains("in use") && errors.contains(&daemon.pid().to_string()), "{errors}");
    assert!(!place.path("t").exists());
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn stale_sockets_are_replaced_and_live_ones_are_not() {
    let place = Place::with_volumes(&["v"]);
    drop(UnixListener::bind(place.path("v")).unwrap());
    assert!(place.path("v").exists());
    let daemon = place.serve(&["v"], &[]);
    wait_until("the new socket", || UnixStream::connect(place.path("v")).is_ok());
    assert_eq!(daemon.terminate().code(), Some(0));
    let _live = UnixListener::bind(place.path("v")).unwrap();
    let export = format!("volume=v,socket={}", place.path("v").display());
    fails(&[text(&place.container()), "--export", &export], 1, "in use by another program");
    assert!(place.path("v").exists());
}

#[test]
fn signals_drain_and_commit() {
    for signal in ["TERM", "INT"] {
        let place = Place::with_volumes(&["v"]);
        let mut daemon = place.serve(&["v"], &[]);
        let mut client = Client::connect(&place.path("v"), Style::PLAIN);
        client.write(1 << 20, &[9; 4096]);
        for n in 0..40 {
            client.queues[0].submit(T_OUT, n * 8, &[(DATA_START, 4096)]);
        }
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(0));
        while client.queues[0].take_done().is_some() {} // what was taken has been answered
        assert!(!place.path("v").exists());
        assert!(place.read_volume("v")[1 << 20..(1 << 20) + 4096] == [9; 4096], "written, not flushed, committed");
    }
}

#[test]
fn socket_path_serves_the_only_volume() {
    let place = Place::with_volumes(&["only"]);
    let socket = place.path("s");
    let container = place.container();
    let arguments = ["--blk-file", text(&container), "--socket-path", text(&socket), "--read-only"];
    let daemon = common::Daemon::start(&arguments.map(str::to_owned));
    wait_until("socket", || socket.exists());
    let mut client = Client::connect(&socket, Style::PLAIN);
    assert_eq!(client.request(T_OUT, 0, &mut [1; 512]).status, 1);
    assert_eq!(client.read(0, 512), [0; 512]);
    drop(client);
    assert_eq!(daemon.terminate().code(), Some(0));
}

/// Starts a daemon that inherits `fd` under the number 10.
fn start_with_fd(place: &Place, fd: i32) -> Child {
    let mut command = command();
    command.args([text(&place.container()), "--fd", "10", "--volume", "v"]);
    // SAFETY: dup2 is allowed between fork and exec.
    unsafe {
        command.pre_exec(move || if libc::dup2(fd, 10) < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) });
    }
    spawn(&mut command)
}

#[test]
fn an_inherited_listener_serves_one_guest_after_another() {
    let place = Place::with_volumes(&["v"]);
    let listener = UnixListener::bind(place.path("s")).unwrap();
    let mut child = start_with_fd(&place, listener.as_raw_fd());
    for round in 0..3u8 {
        let mut client = Client::connect(&place.path("s"), Style::PLAIN);
        client.write(0, &[round; 512]);
    }
    // SAFETY: signals a child that has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
    assert!(child.wait().unwrap().success());
    assert!(place.path("s").exists(), "a socket that is not ours stays");
    assert!(place.read_volume("v")[..512] == [2; 512]);
}

#[test]
fn an_inherited_connection_is_served_to_its_end() {
    let place = Place::with_volumes(&["v"]);
    let relay = UnixListener::bind(place.path("s")).unwrap();
    let path = place.path("s");
    let guest = std::thread::spawn(move || {
        let mut client = Client::connect(&path, Style::PLAIN);
        client.write(0, &[5; 512]);
    });
    let (stream, _) = relay.accept().unwrap();
    let fd = stream.into_raw_fd();
    let mut child = start_with_fd(&place, fd);
    // SAFETY: the descriptor is ours, and the child has its own.
    unsafe { libc::close(fd) };
    guest.join().unwrap();
    assert!(child.wait().unwrap().success(), "the daemon ends with its only connection");
    assert!(place.read_volume("v")[..512] == [5; 512]);
}
