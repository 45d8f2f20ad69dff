//! Bytes that a daemon sends as text: base64, as in RFC 4648, with padding.

/// What one digit stands for.
fn value(digit: u8) -> Option<u32> {
    Some(u32::from(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

/// Fills `bytes` with what `text` says; `None` if that is not just as many bytes, or no such text.
pub(crate) fn decode(text: &str, bytes: &mut [u8]) -> Option<()> {
    if text.len() != bytes.len().div_ceil(3) * 4 {
        return None;
    }
    for (digits, group) in text.as_bytes().chunks(4).zip(bytes.chunks_mut(3)) {
        let (digits, padding) = digits.split_at(group.len() + 1);
        let bits = digits.iter().try_fold(0, |bits, digit| Some(bits << 6 | value(*digit)?))? << (6 * padding.len());
        if padding.iter().any(|byte| *byte != b'=') {
            return None;
        }
        group.copy_from_slice(&bits.to_be_bytes()[1..][..group.len()]);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_decoded_as_the_standard_says_and_others_refused() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            let mut found = vec![0; bytes.len()];
            assert_eq!(decode(text, &mut found), Some(()));
            assert_eq!(found, bytes.as_bytes());
        }
        let mut digits = [0; 6];
        assert_eq!(decode("+/AZaz09", &mut digits), Some(()));
        assert_eq!(digits, [0xfb, 0xf0, 0x19, 0x6b, 0x3d, 0x3d]);
        for text in ["Zg==", "Zm9", "Zm9vYmFy", "Zm9\u{e9}", "Zm9=", "Z===", "Zm-v"] {
            assert_eq!(decode(text, &mut [0; 3]), None, "{text}");
        }
    }
}
