//! Tests of the messages: CTL-4, CTL-8, CTL-16, CTL-24. The error texts are those of qemu-storage-daemon 10.0.

use serde_json::{Value, json};

use super::{Failure, event, greeting, parse_request, reply};

fn read(message: &[u8]) -> Value {
    serde_json::from_slice(message).unwrap()
}

/// CTL-4
#[test]
fn the_greeting_has_version_and_no_capabilities() {
    let greeting = read(&greeting());
    assert_eq!(greeting["QMP"]["capabilities"], json!([]));
    assert_eq!(greeting["QMP"]["version"]["package"], concat!("pitstop ", env!("CARGO_PKG_VERSION")));
    for part in ["major", "minor", "micro"] {
        assert!(greeting["QMP"]["version"]["qemu"][part].is_u64(), "{part}");
    }
}

/// CTL-8
#[test]
fn the_id_is_any_value_and_comes_back() {
    for id in [json!(null), json!(1), json!("x"), json!([1, {"a": null}]), json!({"b": 1.5})] {
        let parsed = parse_request(json!({"execute": "quit", "id": id}).to_string().as_bytes());
        assert!(parsed.request.is_ok());
        assert_eq!(read(&reply(parsed.id, Ok(json!({})))), json!({"return": {}, "id": id}));
    }
    assert_eq!(read(&reply(None, Ok(json!([])))), json!({"return": []}));
}

/// CTL-16
#[test]
fn malformed_requests_are_named_as_qemu_does() {
    for (text, desc) in [
        ("123", "QMP input must be a JSON object"),
        ("[]", "QMP input must be a JSON object"),
        ("{}", "QMP input lacks member 'execute'"),
        (r#"{"execute": 1}"#, "QMP input member 'execute' must be a string"),
        (r#"{"execute": "quit", "arguments": []}"#, "QMP input member 'arguments' must be an object"),
        (r#"{"execute": "quit", "foo": 1}"#, "QMP input member 'foo' is unexpected"),
        (r#"{"exec-oob": "quit"}"#, "QMP input member 'exec-oob' is unexpected"),
    ] {
        let parsed = parse_request(text.as_bytes());
        assert_eq!(parsed.request, Err(Failure::generic(desc)), "{text}");
    }
}

/// CTL-8
#[test]
fn a_malformed_request_keeps_its_id() {
    let parsed = parse_request(br#"{"exec-oob": "quit", "id": 4}"#);
    let message = read(&reply(parsed.id, Err(parsed.request.unwrap_err())));
    let desc = "QMP input member 'exec-oob' is unexpected";
    assert_eq!(message, json!({"id": 4, "error": {"class": "GenericError", "desc": desc}}));
}

/// CTL-13
#[test]
fn a_json_error_has_no_id() {
    let parsed = parse_request(br#"{"execute":"quit" "id":3}"#);
    assert_eq!(parsed.id, None);
    assert!(parsed.request.unwrap_err().desc.starts_with("JSON parse error, "));
}

/// CTL-24
#[test]
fn an_event_is_stamped() {
    let event = read(&event("SHUTDOWN", json!({"guest": false})));
    assert_eq!(event["event"], "SHUTDOWN");
    assert_eq!(event["data"], json!({"guest": false}));
    assert!(event["timestamp"]["seconds"].as_u64().unwrap() > 1_700_000_000);
    assert!(event["timestamp"]["microseconds"].as_u64().unwrap() < 1_000_000);
}
