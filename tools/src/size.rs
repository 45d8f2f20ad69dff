//! Sizes in and out: what the user types after `--size`, and what tables show.
//!
//! Invariant: a parsed size is a multiple of [`MIN_IO_LEN`] and never wraps. Does not: know the largest volume (the
//! container does).

use pitstop_format::MIN_IO_LEN;

/// Letters after a number, each 1024 times the one before.
const UNITS: [(char, &str); 6] = [('K', "KiB"), ('M', "MiB"), ('G', "GiB"), ('T', "TiB"), ('P', "PiB"), ('E', "EiB")];

/// Parses a size like qemu-img: a number of bytes, or a number with an optional fraction and one of `K M G T P E`
/// (powers of 1024: `20G`, `1.5T`, `512k`, `20GiB`); `B` means bytes. `GB` is refused, since it often means powers of 1000.
///
/// The result is rounded up to a multiple of 512.
///
/// # Errors
/// A message for the user if the text is no size, or too large for 64 bits.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let usage = || format!("'{text}' is not a size; write bytes or a number with K, M, G, T or P, such as 20G or 1.5T");
    let text_len = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(text_len);
    let shift = shift_of(unit).ok_or_else(usage)?;
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, fraction),
        None => (number, ""),
    };
    let fraction_wanted = number.contains('.');
    if whole.is_empty() || (fraction_wanted && (fraction.is_empty() || shift == 0)) || fraction.contains('.') {
        return Err(usage());
    }
    let too_large = || format!("{text} is too large; the largest size is below 16 EiB");
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    if whole > u128::from(u64::MAX) {
        return Err(too_large());
    }
    let bytes = (whole << shift) + fraction_bytes(fraction, shift).ok_or_else(usage)?;
    let bytes = bytes.next_multiple_of(u128::from(MIN_IO_LEN));
    u64::try_from(bytes).map_err(|_| too_large())
}

/// The power of two that a unit stands for; `None` if it is no unit.
fn shift_of(unit: &str) -> Option<u32> {
    let mut letters = unit.chars();
    let Some(letter) = letters.next() else { return Some(0) };
    let rest = letters.as_str();
    if letter.eq_ignore_ascii_case(&'b') {
        return rest.is_empty().then_some(0);
    }
    let index = UNITS.iter().position(|(known, _)| letter.eq_ignore_ascii_case(known))?;
    let power = u32::try_from(index).ok()? + 1;
    (rest.is_empty() || rest.eq_ignore_ascii_case("ib")).then_some(power * 10)
}

/// Bytes in the decimal fraction `0.FRACTION` of `1 << shift`, rounded up.
fn fraction_bytes(fraction: &str, shift: u32) -> Option<u128> {
    // Twelve digits are finer than a sector of any unit up to P; more would only risk an overflow.
    let digits = &fraction[..fraction.len().min(12)];
    if digits.is_empty() {
        return Some(0);
    }
    let value: u128 = digits.parse().ok()?;
    let scale = 10u128.pow(u32::try_from(digits.len()).ok()?);
    Some((value << shift).div_ceil(scale))
}

/// A size for people: three significant digits, no trailing zeros: `20 GiB`, `1.46 GiB`, `512 B`.
pub(crate) fn human(bytes: u64) -> String {
    let mut unit = "B";
    let mut shift = 0;
    for (index, (_, name)) in UNITS.iter().enumerate() {
        let next = 10 * (index as u32 + 1);
        if bytes >> next == 0 {
            break;
        }
        (unit, shift) = (name, next);
    }
    if shift == 0 {
        return format!("{bytes} B");
    }
    let value = bytes as f64 / (1u64 << shift) as f64;
    let decimals = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    let mut text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    format!("{text} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_like_qemu_img() {
        assert_eq!(parse("512"), Ok(512));
        assert_eq!(parse("4096b"), Ok(4096));
        assert_eq!(parse("1k"), Ok(1024));
        assert_eq!(parse("1K"), Ok(1024));
        assert_eq!(parse("10M"), Ok(10 << 20));
        assert_eq!(parse("20G"), Ok(20 << 30));
        assert_eq!(parse("20GiB"), Ok(20 << 30));
        assert_eq!(parse("64T"), Ok(64 << 40));
        assert_eq!(parse("2P"), Ok(2 << 50));
        assert_eq!(parse("1.5G"), Ok(3 << 29));
        assert_eq!(parse("0.25T"), Ok(1 << 38));
        assert_eq!(parse("0"), Ok(0));
    }

    #[test]
    fn sizes_are_rounded_up_to_sectors() {
        assert_eq!(parse("1"), Ok(512));
        assert_eq!(parse("513"), Ok(1024));
        assert_eq!(parse("1.1K"), Ok(1536));
        assert_eq!(parse("0.3G"), Ok(322_122_752));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for bad in
            ["", "G", ".5G", "5.", "5.G", "1.5", "-1", "+1", "1 G", "0x10", "1X", "1GG", "1.2.3G", "１G", "1GB", "1BB"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        for large in
            ["16E", "18446744073709551615", "99999999999999999999999", "340282366920938463463374607431768211456K"]
        {
            assert!(parse(large).unwrap_err().contains("too large"), "{large}");
        }
        assert!(parse("1.000000000000000000000000000000000000000000001G").is_ok());
    }

    #[test]
    fn sizes_for_people_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (20 << 30, "20 GiB"),
            ((1 << 30) + (470 << 20), "1.46 GiB"),
            ((14 << 30) + (614 << 20), "14.6 GiB"),
            (1000 << 20, "1000 MiB"),
            ((1 << 30) - 1, "1024 MiB"),
            (64 << 40, "64 TiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
