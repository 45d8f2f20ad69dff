//! The server over real sockets, with a fake daemon: CTL-1, CTL-2, CTL-6, CTL-9, CTL-10, CTL-13, CTL-15, CTL-22 to
//! CTL-28, CTL-45 to CTL-47.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::fake::FakeTarget;
use super::super::hub::CLIENT_LIMIT;
use super::super::listen::ListenError;
use super::super::stream::REQUEST_LIMIT_BYTES;
use super::{ControlServer, Target};
use crate::daemon::Event;

/// Nothing here may take so long.
const LIMIT: Duration = Duration::from_secs(20);

struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connected, greeted, not negotiated.
    fn greeted(path: &Path) -> Self {
        let mut client = Client::connected(path);
        assert!(client.receive()["QMP"].is_object());
        client
    }

    fn connected(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Client { stream: BufReader::new(stream) }
    }

    fn negotiated(path: &Path) -> Self {
        let mut client = Client::greeted(path);
        assert_eq!(client.call(r#"{"execute":"qmp_capabilities"}"#), json!({"return": {}}));
        client
    }

    fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(text.as_ref()).unwrap();
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        assert!(line.ends_with("\r\n") && line.is_ascii(), "{line:?}");
        serde_json::from_str(&line).unwrap()
    }

    fn call(&mut self, text: impl AsRef<[u8]>) -> Value {
        self.send(text);
        self.receive()
    }

    /// Whether the server has closed the connection, after what may still be read.
    fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn start() -> (Arc<FakeTarget>, ControlServer) {
    let target = FakeTarget::new();
    let server = ControlServer::start(&target.socket(), target.clone()).unwrap();
    (target, server)
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < LIMIT, "waited too long until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn snapshot(name: &str) -> String {
    json!({"execute": "x-pitstop-snapshot", "arguments": {"source": "golden", "name": name}, "id": name}).to_string()
}

const VERSION: &str = r#"{"execute":"query-version","id":7}"#;

/// CTL-1
#[test]
fn the_socket_is_private_and_goes_with_the_server() {
    let (target, server) = start();
    let mode = fs::metadata(target.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    server.stop();
    assert!(!target.socket().exists());
    let left: Vec<_> = fs::read_dir(target.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().starts_with("test.pit")), "{left:?}");
}

/// CTL-2
#[test]
fn only_a_dead_socket_is_replaced() {
    let target = FakeTarget::new();
    let path = target.socket();
    fs::write(&path, "precious").unwrap();
    let error = ControlServer::start(&path, target.clone()).unwrap_err();
    assert!(matches!(error, ListenError::NotASocket { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();

    let alive = UnixListener::bind(&path).unwrap();
    let error = ControlServer::start(&path, target.clone()).unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
    drop(alive);

    let server = ControlServer::start(&path, target.clone()).unwrap(); // the dead one's file is still there
    Client::negotiated(&path);
    // Somebody else's file in its place survives the end of the server.
    fs::remove_file(&path).unwrap();
    fs::write(&path, "other").unwrap();
    server.stop();
    assert_eq!(fs::read(&path).unwrap(), b"other");
}

/// CTL-2
#[test]
fn a_path_may_be_as_long_as_a_socket_address() {
    let folder = tempfile::tempdir().unwrap();
    let longest = 107 - folder.path().as_os_str().len() - 1;
    let path = folder.path().join("x".repeat(longest));
    let server = ControlServer::start(&path, FakeTarget::new()).unwrap();
    Client::negotiated(&path);
    server.stop();
    let path = folder.path().join("x".repeat(longest + 1));
    let error = ControlServer::start(&path, FakeTarget::new()).unwrap_err();
    assert!(matches!(error, ListenError::PathTooLong { .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_missing_folder_is_named() {
    let target = FakeTarget::new();
    let path = target.folder.path().join("missing/control.sock");
    let error = ControlServer::start(&path, target.clone()).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert!(matches!(ControlServer::start(Path::new("/"), target), Err(ListenError::NotASocket { .. })));
}

/// CTL-5, CTL-9, CTL-10
#[test]
fn a_packet_may_hold_part_of_an_object_or_several() {
    let (target, _server) = start();
    let mut client = Client::greeted(&target.socket());
    assert_eq!(client.call(VERSION)["error"]["class"], "CommandNotFound");
    client.send(r#"{"execute":"qmp_capabilities","id":1}{"execute":"query-version","id":2} {"execute":"query-commands","id":3}"#);
    for id in 1..=3 {
        assert_eq!(client.receive()["id"], id);
    }
    for byte in VERSION.bytes() {
        client.send([byte]);
    }
    assert_eq!(client.receive()["id"], 7);
}

/// CTL-13, CTL-14
#[test]
fn after_malformed_input_the_session_goes_on() {
    let (target, _server) = start();
    let mut client = Client::negotiated(&target.socket());
    for bad in ["{\"execute\": ] ", "}", "{\"execute\":\"x\" \"id\":3}", "{\"a\": [\u{1}", "nonsense "] {
        let error = client.call(bad);
        assert_eq!(error["error"]["class"], "GenericError", "{bad}");
        assert!(error["error"]["desc"].as_str().unwrap().starts_with("JSON parse error"), "{error}");
        assert_eq!(client.call(VERSION)["id"], 7);
    }
}

/// CTL-15
#[test]
fn a_request_that_is_too_long_ends_the_connection() {
    let (target, _server) = start();
    let mut client = Client::negotiated(&target.socket());
    client.send(format!("{{\"execute\":\"{}", "x".repeat(REQUEST_LIMIT_BYTES)));
    let error = client.receive();
    assert_eq!(error["error"]["class"], "GenericError");
    assert!(client.is_closed());
    Client::negotiated(&target.socket());
}

/// CTL-23
#[test]
fn a_half_closed_connection_gets_its_replies() {
    let (target, _server) = start();
    let mut client = Client::greeted(&target.socket());
    client.send(r#"{"execute":"qmp_capabilities","id":1}{"execute":"query-version","id":2}"#);
    client.stream.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.receive()["id"], 1);
    assert_eq!(client.receive()["id"], 2);
    assert!(client.is_closed());
}

/// CTL-22
#[test]
fn clients_beyond_the_limit_are_refused_until_one_leaves() {
    let (target, _server) = start();
    let mut clients: Vec<_> = (0..CLIENT_LIMIT).map(|_| Client::negotiated(&target.socket())).collect();
    let mut refused = Client::connected(&target.socket());
    assert_eq!(refused.receive()["error"]["class"], "GenericError");
    assert!(refused.is_closed());
    for client in &mut clients {
        assert_eq!(client.call(VERSION)["id"], 7);
    }
    drop(clients.pop());
    wait_until("the freed place is given away", || Client::connected(&target.socket()).receive()["QMP"].is_object());
}

/// CTL-25, CTL-26
#[test]
fn a_client_that_does_not_read_harms_nobody() {
    let (target, server) = start();
    let path = target.socket();
    let mut deaf = Client::negotiated(&path);
    deaf.stream.get_ref().set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let request = r#"{"execute":"query-commands"}"#.repeat(100);
    let mut sent = 0;
    while let Ok(len) = deaf.stream.get_mut().write(request.as_bytes()) {
        sent += len;
        assert!(sent < 64 << 20, "the server keeps on reading from a client that does not");
    }
    let mut other = Client::negotiated(&path);
    assert_eq!(other.call(VERSION)["id"], 7);
    let started = Instant::now();
    server.stop();
    assert!(started.elapsed() < Duration::from_secs(5), "a deaf client delays the end");
}

/// CTL-25
#[test]
fn a_client_that_does_not_read_its_events_is_dropped() {
    let (target, _server) = start();
    let mut deaf = Client::negotiated(&target.socket());
    let mut other = Client::negotiated(&target.socket());
    let mut others_events = 0;
    let mut received = 0;
    // Far more than socket buffers and the outbox hold.
    for round in 0..40 {
        for _ in 0..1000 {
            target.emit(&Event::ExportAdded { id: format!("round-{round}") });
            others_events += 1;
        }
        while received < others_events {
            assert_eq!(other.receive()["event"], "X_PITSTOP_BLOCK_EXPORT_ADDED");
            received += 1;
        }
    }
    let mut bytes = 0;
    let mut chunk = vec![0; 1 << 16];
    loop {
        match deaf.stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(len) => bytes += len,
            Err(error) => panic!("not dropped: {error}"),
        }
    }
    assert!(bytes < 3 << 20, "{bytes} bytes were kept for a deaf client");
    assert_eq!(other.call(VERSION)["id"], 7);
}

/// CTL-6, CTL-24
#[test]
fn events_go_to_negotiated_clients_only() {
    let (target, _server) = start();
    let mut greeted = Client::greeted(&target.socket());
    let mut negotiated = Client::negotiated(&target.socket());
    target.emit(&Event::ExportDeleted { id: "a".to_owned() });
    let event = negotiated.receive();
    assert_eq!(event["event"], "BLOCK_EXPORT_DELETED");
    assert_eq!(event["data"], json!({"id": "a"}));
    assert_eq!(greeted.call(r#"{"execute":"qmp_capabilities"}"#), json!({"return": {}}), "no event before");
}

/// CTL-24, CTL-46
#[test]
fn changes_of_volumes_are_told_before_the_reply() {
    let (target, _server) = start();
    let mut watcher = Client::negotiated(&target.socket());
    let mut client = Client::negotiated(&target.socket());
    for (command, arguments, event, data) in [
        ("volume-create", json!({"name": "v", "size": 4096}), "CREATED", json!({"name": "v"})),
        ("snapshot", json!({"name": "s", "source": "v"}), "CREATED", json!({"name": "s", "source": "v"})),
        ("refresh", json!({"name": "s", "source": "v"}), "REFRESHED", json!({"name": "s", "source": "v"})),
        ("volume-rename", json!({"name": "s", "new-name": "t"}), "RENAMED", json!({"name": "s", "new-name": "t"})),
        ("volume-delete", json!({"name": "t"}), "DELETED", json!({"name": "t"})),
    ] {
        client.send(json!({"execute": format!("x-pitstop-{command}"), "arguments": arguments}).to_string());
        for reader in [&mut watcher, &mut client] {
            let message = reader.receive();
            assert_eq!(message["event"], format!("X_PITSTOP_VOLUME_{event}"));
            assert_eq!(message["data"], data);
        }
        assert!(client.receive()["return"].is_object());
    }
}

/// CTL-26, CTL-27
#[test]
fn a_long_command_blocks_only_its_own_session() {
    let (target, server) = start();
    target.hold_snapshots(true);
    let mut slow = Client::negotiated(&target.socket());
    slow.send(snapshot("s") + VERSION);
    wait_until("the snapshot has begun", || target.snapshots_begun() == 1);
    let mut other = Client::negotiated(&target.socket());
    assert_eq!(other.call(VERSION)["id"], 7);

    let refusing = thread::scope(|scope| {
        let refusing = scope.spawn(|| server.refuse_commands());
        thread::sleep(Duration::from_millis(50));
        let waited = !refusing.is_finished();
        target.hold_snapshots(false);
        waited
    });
    assert!(refusing, "refusing commands must wait for the one under way");
    assert!(slow.receive()["event"].is_string());
    assert_eq!(slow.receive()["id"], "s");
    let refused = slow.receive();
    assert_eq!(refused["error"]["desc"], "the daemon is shutting down");
    assert!(other.receive()["event"].is_string());
    assert_eq!(other.call(VERSION)["error"]["class"], "GenericError");
}

/// CTL-45, CTL-47
#[test]
fn quit_is_answered_then_announced_and_the_last_events_arrive() {
    let (target, server) = start();
    let mut watcher = Client::negotiated(&target.socket());
    let mut client = Client::negotiated(&target.socket());
    assert_eq!(client.call(r#"{"execute":"quit","id":9}"#), json!({"return": {}, "id": 9}));
    wait_until("the daemon is asked to end", || target.is_shut_down());
    server.refuse_commands();
    target.emit(&Event::ExportDeleted { id: "last".to_owned() }); // as the daemon does when it stops its exports
    server.stop();
    for reader in [&mut watcher, &mut client] {
        let event = reader.receive();
        assert_eq!(event["event"], "SHUTDOWN");
        assert_eq!(event["data"], json!({"guest": false, "reason": "host-qmp-quit"}));
        assert_eq!(reader.receive()["event"], "BLOCK_EXPORT_DELETED");
        assert!(reader.is_closed());
    }
}

/// CTL-28
#[test]
fn a_panic_in_a_command_ends_that_session_only() {
    let (target, _server) = start();
    let mut other = Client::negotiated(&target.socket());
    for _ in 0..CLIENT_LIMIT + 1 {
        let mut client = Client::negotiated(&target.socket());
        client.send(r#"{"execute":"x-pitstop-snapshot","arguments":{"source":"panic","name":"x"}}"#);
        assert!(client.is_closed());
    }
    assert_eq!(other.call(VERSION)["id"], 7);
    assert_eq!(other.call(snapshot("s"))["event"], "X_PITSTOP_VOLUME_CREATED");
    assert_eq!(other.receive()["id"], "s");
}

/// CTL-9, CTL-26: many clients at once, each in its own order.
#[test]
fn clients_work_at_the_same_time() {
    let (target, _server) = start();
    thread::scope(|scope| {
        for worker in 0..8 {
            let path = target.socket();
            scope.spawn(move || {
                let mut client = Client::negotiated(&path);
                for round in 0..20 {
                    let name = format!("w{worker}-{round}");
                    client.send(snapshot(&name));
                    client.send(
                        json!({"execute": "x-pitstop-volume-delete", "arguments": {"name": name}, "id": round})
                            .to_string(),
                    );
                    let mut ids = Vec::new();
                    while ids.len() < 2 {
                        let message = client.receive();
                        if message.get("event").is_none() {
                            assert!(message.get("error").is_none(), "{message}");
                            ids.push(message["id"].clone());
                        }
                    }
                    assert_eq!(ids, [json!(name), json!(round)]);
                }
            });
        }
    });
}

/// CTL-26
#[test]
fn a_server_of_a_daemon_that_already_ends_can_be_stopped() {
    let target = FakeTarget::new();
    target.request_shutdown();
    let server = ControlServer::start(&target.socket(), target.clone()).unwrap();
    Client::negotiated(&target.socket());
    let started = Instant::now();
    server.stop();
    assert!(started.elapsed() < Duration::from_secs(5));
}
