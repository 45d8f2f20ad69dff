//! Tests of parsing and printing: CTL-3, CTL-11.

use serde_json::json;

use super::{message, parse};

/// CTL-3
#[test]
fn output_is_ascii_and_one_line() {
    let value = json!({"k\u{e9}y": "\u{e9}\u{1f600}\u{7f}\n\"\\ plain", "list": [1, null, true, -2, 1.5]});
    let text = message(&value);
    assert!(text.is_ascii());
    assert!(text.ends_with(b"\r\n"));
    assert_eq!(text.iter().filter(|&&byte| byte < b' ').count(), 2, "only the line end");
    let printed = String::from_utf8(text.clone()).unwrap();
    assert!(printed.contains(r"\u00e9\ud83d\ude00\u007f\n"), "{printed}");
    assert_eq!(parse(&text).unwrap(), value);
}

/// CTL-11
#[test]
fn a_member_named_twice_is_an_error() {
    let error = parse(br#"{"a": {"b": 1, "b": 2}}"#).unwrap_err().to_string();
    assert!(error.starts_with("duplicate key 'b'"), "{error}");
}

#[test]
fn integers_of_64_bits_stay_exact() {
    let value = parse(b"[18446744073709551615, -9223372036854775808]").unwrap();
    assert_eq!(value, json!([u64::MAX, i64::MIN]));
}

/// CTL-13
#[test]
fn what_is_not_json_is_an_error() {
    for text in [&b"{"[..], b"{\"a\":}", b"{\"a\" 1}", b"[1,]", b"tru", b"01", b"\"\\x\"", b"\"\xe9\"", b"1e999", b""] {
        assert!(parse(text).is_err(), "{text:?}");
    }
}
