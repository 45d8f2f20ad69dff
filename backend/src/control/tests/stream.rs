//! Tests of the cutter: CTL-10 to CTL-15.

use proptest::prelude::*;

use super::{NESTING_LIMIT, Piece, REQUEST_LIMIT_BYTES, Splitter};

fn cut(input: &[u8]) -> Vec<Piece> {
    cut_in_pieces(input, input.len().max(1))
}

fn cut_in_pieces(input: &[u8], len: usize) -> Vec<Piece> {
    let mut splitter = Splitter::new();
    let mut pieces = Vec::new();
    for mut chunk in input.chunks(len) {
        while let Some(piece) = splitter.next(&mut chunk) {
            pieces.push(piece);
        }
        assert!(chunk.is_empty());
    }
    pieces
}

fn values(input: &[u8]) -> Vec<String> {
    cut(input)
        .into_iter()
        .map(|piece| match piece {
            Piece::Value(text) => String::from_utf8(text).unwrap(),
            other => panic!("{other:?}"),
        })
        .collect()
}

/// CTL-10
#[test]
fn values_are_cut_without_line_ends() {
    assert_eq!(
        values(br#"{"a":1}{"b":[{}]} ["}"]"x" 12 true {}"#),
        [r#"{"a":1}"#, r#"{"b":[{}]}"#, r#"["}"]"#, r#""x""#, "12", "true", "{}"]
    );
}

/// CTL-10
#[test]
fn a_value_in_single_bytes_is_the_same_as_at_once() {
    let input = b" \r\n{\"a\" :\n \"\\\"{\" , 'b':[1,2]}\t{\"c\":null} 7 ";
    assert_eq!(cut_in_pieces(input, 1), cut(input));
    assert_eq!(cut(input).len(), 3);
}

/// CTL-10
#[test]
fn an_incomplete_value_is_waited_for() {
    assert_eq!(cut(b"{\"a\":[1, \"x"), []);
    assert_eq!(cut(b"tru"), []);
}

/// CTL-12
#[test]
fn single_quotes_become_plain_json() {
    assert_eq!(values(br#"{'a': 'it\'s "q" \n \\ {'}"#), [r#"{"a": "it's \"q\" \n \\ {"}"#]);
    assert_eq!(values(br#"{"a\'": "it's"}"#), [r#"{"a'": "it's"}"#]);
}

/// CTL-13
#[test]
fn after_malformed_input_the_next_object_is_found() {
    for bad in [&b"}"[..], b"]", b",", b":", b"[1,2}", b"{\"a\":]", b"{\"a\":\"x\ty\"", b"} , 12 \"x\""] {
        let mut input = bad.to_vec();
        input.extend_from_slice(b" } ] , {\"b\":2}");
        let pieces = cut(&input);
        assert!(matches!(pieces.first(), Some(Piece::Malformed(_))), "{bad:?}: {pieces:?}");
        assert_eq!(pieces[1..], [Piece::Value(b"{\"b\":2}".to_vec())], "{bad:?}");
    }
}

/// CTL-13
#[test]
fn after_malformed_input_a_line_end_restores_everything() {
    let pieces = cut(b"] 1 2 3 'unclosed\n7 ");
    assert!(matches!(pieces[..], [Piece::Malformed(_), Piece::Value(_)]), "{pieces:?}");
    assert_eq!(pieces[1], Piece::Value(b"7".to_vec()));
}

/// CTL-13
#[test]
fn a_line_end_within_a_string_is_malformed_and_restores() {
    let pieces = cut(b"{\"execute\":\"que\n{\"b\":2}");
    assert!(matches!(pieces[0], Piece::Malformed(_)));
    assert_eq!(pieces[1..], [Piece::Value(b"{\"b\":2}".to_vec())]);
}

/// CTL-14
#[test]
fn a_reset_byte_restores_from_every_state() {
    for before in [&b""[..], b"tru", b"{\"a\": [", b"{\"a\": \"", b"{\"a\": \"\\", b"] x"] {
        for reset in [0, 1, 0x1b, 0xc0, 0xc1, 0xf5, 0xff] {
            let mut input = before.to_vec();
            input.push(reset);
            input.extend_from_slice(b"{}");
            let pieces = cut(&input);
            let [.., Piece::Malformed(_), Piece::Value(value)] = &pieces[..] else {
                panic!("{before:?} {reset:#x}: {pieces:?}");
            };
            assert_eq!(value, b"{}");
        }
    }
}

/// CTL-15
#[test]
fn a_value_of_the_limit_is_taken_and_one_more_byte_is_not() {
    for quote in ['"', '\''] {
        for step in [1, 4096, 2 * REQUEST_LIMIT_BYTES] {
            let fill = REQUEST_LIMIT_BYTES - 2;
            let exact = format!("{quote}{}{quote} {{}}", "x".repeat(fill));
            assert_eq!(cut_in_pieces(exact.as_bytes(), step).len(), 2, "quote {quote}, step {step}");
            let over = format!("{quote}{}{quote} {{}}", "x".repeat(fill + 1));
            let pieces = cut_in_pieces(over.as_bytes(), step);
            assert!(matches!(pieces[..], [Piece::TooLong]), "quote {quote}, step {step}");
        }
    }
}

/// CTL-15
#[test]
fn white_space_between_values_does_not_count() {
    let input = format!("{}{{}}", " \r\n\t".repeat(REQUEST_LIMIT_BYTES));
    assert_eq!(values(input.as_bytes()), ["{}"]);
}

/// CTL-15
#[test]
fn nesting_is_limited() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(values(nested(NESTING_LIMIT).as_bytes()).len(), 1);
    assert!(matches!(cut(nested(NESTING_LIMIT + 1).as_bytes())[0], Piece::Malformed(_)));
    // What is let through must not be too deep for the parser behind.
    assert!(super::super::json::parse(nested(NESTING_LIMIT).as_bytes()).is_ok());
}

proptest! {
    /// CTL-10, CTL-13: any bytes in any pieces: no panic, the same result.
    #[test]
    fn pieces_do_not_matter(input in prop::collection::vec(prop::sample::select(
        &b"{}[]:,\"'\\ \n\t\x00\xffax1\xc3\xa9"[..]), 0..200), len in 1_usize..50) {
        prop_assert_eq!(cut_in_pieces(&input, len), cut(&input));
    }

    /// CTL-14: whatever came before, after a reset byte an object is understood.
    #[test]
    fn a_reset_byte_restores_after_anything(mut input in prop::collection::vec(any::<u8>(), 0..200)) {
        input.extend_from_slice(b"\xff{\"execute\":\"quit\"}");
        let pieces = cut(&input);
        prop_assert_eq!(pieces.last(), Some(&Piece::Value(b"{\"execute\":\"quit\"}".to_vec())));
    }
}
