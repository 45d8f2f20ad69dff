//! The client against a scripted server at the other end of a socket pair.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{MESSAGE_LIMIT_BYTES, Qmp, QmpError};

const GREETING: &str = r#"{"QMP": {"version": {"package": "pitstop 1"}, "capabilities": []}}"#;
const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(20);

/// A server that greets, answers the negotiation, then hands each request and the stream to `answer`, until that
/// returns false.
fn serve(mut answer: impl FnMut(Value, &mut UnixStream) -> bool + Send + 'static) -> (UnixStream, JoinHandle<()>) {
    let (client, mut server) = UnixStream::pair().unwrap();
    let handle = thread::spawn(move || {
        server.write_all(format!("{GREETING}\r\n").as_bytes()).unwrap();
        let mut lines = BufReader::new(server.try_clone().unwrap()).lines();
        let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(first["execute"], "qmp_capabilities");
        write!(server, "{}\r\n", json!({"return": {}, "id": first["id"]})).unwrap();
        while let Some(Ok(line)) = lines.next() {
            if !answer(serde_json::from_str(&line).unwrap(), &mut server) {
                break;
            }
        }
    });
    (client, handle)
}

fn negotiated(client: UnixStream, timeout: Duration) -> Qmp {
    let mut qmp = Qmp::negotiate(client, LONG, Instant::now()).unwrap();
    qmp.set_timeout(timeout);
    qmp
}

#[test]
fn a_command_returns_its_value_and_sends_its_arguments() {
    let (client, server) = serve(|request, stream| {
        assert_eq!(request["arguments"], json!({"name": "golden"}));
        write!(stream, "{}\r\n", json!({"return": {"ok": "\u{e9}"}, "id": request["id"]})).unwrap();
        true
    });
    let mut qmp = negotiated(client, LONG);
    assert_eq!(qmp.greeting()["version"]["package"], "pitstop 1");
    assert_eq!(qmp.execute("x-test", json!({"name": "golden"})).unwrap(), json!({"ok": "\u{e9}"}));
    drop(qmp);
    server.join().unwrap();
}

#[test]
fn a_command_without_arguments_sends_none() {
    let (client, _server) = serve(|request, stream| {
        assert!(request.get("arguments").is_none());
        write!(stream, "{}\r\n", json!({"return": [], "id": request["id"]})).unwrap();
        true
    });
    assert_eq!(negotiated(client, LONG).execute("query-commands", Value::Null).unwrap(), json!([]));
}

#[test]
fn an_error_carries_class_and_text_unchanged() {
    let (client, _server) = serve(|request, stream| {
        let error = json!({"class": "CommandNotFound", "desc": "The command x has not been found"});
        write!(stream, "{}\r\n", json!({"error": error, "id": request["id"]})).unwrap();
        true
    });
    let error = negotiated(client, LONG).execute("x", Value::Null).unwrap_err();
    assert_eq!(error.to_string(), "The command x has not been found");
    assert!(error.is_command_not_found());
}

#[test]
fn events_and_late_replies_in_between_are_skipped() {
    let (client, _server) = serve(|request, stream| {
        let id = request["id"].as_u64().unwrap();
        write!(stream, "{}\r\n", json!({"event": "SHUTDOWN", "data": {"id": id}})).unwrap();
        write!(stream, "{}\r\n", json!({"return": "late", "id": id - 1})).unwrap();
        write!(stream, "{}\r\n", json!({"return": "mine", "id": id})).unwrap();
        true
    });
    assert_eq!(negotiated(client, LONG).execute("x", Value::Null).unwrap(), json!("mine"));
}

#[test]
fn a_reply_split_in_pieces_is_put_together() {
    let (client, _server) = serve(|request, stream| {
        for byte in format!("{}\r\n", json!({"return": "pieces", "id": request["id"]})).bytes() {
            stream.write_all(&[byte]).unwrap();
            thread::sleep(Duration::from_micros(200));
        }
        true
    });
    assert_eq!(negotiated(client, LONG).execute("x", Value::Null).unwrap(), json!("pieces"));
}

#[test]
fn a_silent_server_times_out_and_a_later_command_still_works() {
    let mut held = None;
    let (client, _server) = serve(move |request, stream| {
        match held.take() {
            None => held = Some(request["id"].clone()), // keep quiet on the first command
            Some(late) => {
                write!(stream, "{}\r\n", json!({"return": "late", "id": late})).unwrap();
                write!(stream, "{}\r\n", json!({"return": "now", "id": request["id"]})).unwrap();
            }
        }
        true
    });
    let mut qmp = negotiated(client, SHORT);
    let started = Instant::now();
    let error = qmp.execute("first", Value::Null).unwrap_err();
    assert!(matches!(&error, QmpError::TimedOut { .. }), "{error}");
    assert!(started.elapsed() < LONG, "{error}");
    qmp.set_timeout(LONG);
    assert_eq!(qmp.execute("second", Value::Null).unwrap(), json!("now"));
}

#[test]
fn a_stream_of_events_does_not_outlast_the_time_out() {
    let (client, _server) = serve(|_, stream| {
        while write!(stream, "{}\r\n", json!({"event": "TICK"})).is_ok() {
            thread::sleep(Duration::from_millis(5));
        }
        false
    });
    let error = negotiated(client, SHORT).execute("x", Value::Null).unwrap_err();
    assert!(matches!(error, QmpError::TimedOut { .. }), "{error}");
}

#[test]
fn a_closed_connection_is_reported() {
    let (client, _server) = serve(|_, _| false);
    let error = negotiated(client, LONG).execute("quit", Value::Null).unwrap_err();
    assert!(matches!(error, QmpError::Closed { .. }), "{error}");
}

#[test]
fn an_endless_message_is_refused() {
    let (client, _server) = serve(|_, stream| {
        let chunk = vec![b' '; 1 << 20];
        while stream.write_all(&chunk).is_ok() {}
        false
    });
    let mut qmp = negotiated(client, Duration::from_secs(60));
    let error = qmp.execute("x", Value::Null).unwrap_err();
    assert!(matches!(error, QmpError::MessageTooLong), "{error}");
    assert!(qmp.input.len() <= MESSAGE_LIMIT_BYTES + super::READ_LEN_BYTES);
}

#[test]
fn a_server_that_refuses_the_connection_is_quoted() {
    let (client, mut server) = UnixStream::pair().unwrap();
    write!(server, "{}\r\n", json!({"error": {"class": "GenericError", "desc": "too many clients"}})).unwrap();
    let error = Qmp::negotiate(client, LONG, Instant::now()).unwrap_err();
    assert_eq!(error.to_string(), "too many clients");
}

#[test]
fn something_else_than_qmp_is_named() {
    for text in ["SSH-2.0-x\r\n", "[1]\r\n", "{\"return\": {}}\r\n"] {
        let (client, mut server) = UnixStream::pair().unwrap();
        server.write_all(text.as_bytes()).unwrap();
        let error = Qmp::negotiate(client, LONG, Instant::now()).unwrap_err();
        assert!(matches!(error, QmpError::Protocol { .. }), "{error}");
    }
}

#[test]
fn a_missing_socket_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let error = Qmp::connect(&path, LONG).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn a_server_that_accepts_but_never_greets_times_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let error = Qmp::connect(&path, SHORT).unwrap_err();
    assert!(matches!(error, QmpError::TimedOut { .. }), "{error}");
}
