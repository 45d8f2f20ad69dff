//! Bytes on disk <-> plain structs.
//!
//! Invariant: offsets of structures exist only here, and equal the tables of `spec/` (a test compares them).
//! Does not: hold policy, perform I/O, or trust a byte it decodes: every decoder checks checksum and own address.

pub(crate) mod addendum;
pub(crate) mod descriptor;
pub(crate) mod entry;
pub(crate) mod record;
pub(crate) mod slot;
pub(crate) mod superblock;
pub(crate) mod tags;

/// A field of an on-disk structure: offset and length in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) at: usize,
    pub(crate) len: usize,
}

/// Declares a structure's fields once; offsets are checked at compile time to be ascending, free of overlap, and within
/// the structure's length.
macro_rules! on_disk {
    ($len:expr; $($name:ident @ $at:expr, $size:expr;)*) => {
        /// Length of the structure in bytes.
        pub(crate) const LEN: usize = $len;
        $(pub(crate) const $name: $crate::layout::Field =
            $crate::layout::Field { name: stringify!($name), at: $at, len: $size };)*
        /// All fields, in order; compared with the specification by a test.
        #[allow(dead_code, reason = "read by the specification test")]
        pub(crate) const FIELDS: &[$crate::layout::Field] = &[$($name),*];
        const _: () = {
            let mut end = 0;
            let mut i = 0;
            while i < FIELDS.len() {
                assert!(FIELDS[i].at >= end, "fields overlap or are out of order");
                end = FIELDS[i].at + FIELDS[i].len;
                i += 1;
            }
            assert!(end <= LEN, "fields exceed the structure");
        };
    };
}
pub(crate) use on_disk;

impl Field {
    pub(crate) fn bytes<'a>(&self, from: &'a [u8]) -> &'a [u8] {
        &from[self.at..self.at + self.len]
    }

    pub(crate) fn bytes_mut<'a>(&self, of: &'a mut [u8]) -> &'a mut [u8] {
        &mut of[self.at..self.at + self.len]
    }

    /// The field as a little-endian number; its length must be 1, 2, 4 or 8.
    pub(crate) fn get(&self, from: &[u8]) -> u64 {
        let mut raw = [0u8; 8];
        raw[..self.len].copy_from_slice(self.bytes(from));
        u64::from_le_bytes(raw)
    }

    pub(crate) fn get_u32(&self, from: &[u8]) -> u32 {
        debug_assert!(self.len <= 4);
        self.get(from) as u32
    }

    /// Stores `value` little-endian; it must fit the field.
    pub(crate) fn put(&self, of: &mut [u8], value: u64) {
        assert!(self.len == 8 || value >> (8 * self.len) == 0, "{} does not fit: {value}", self.name);
        self.bytes_mut(of).copy_from_slice(&value.to_le_bytes()[..self.len]);
    }

    pub(crate) fn uuid(&self, from: &[u8]) -> uuid::Uuid {
        let mut raw = [0u8; 16];
        raw.copy_from_slice(self.bytes(from));
        uuid::Uuid::from_bytes(raw)
    }

    pub(crate) fn put_uuid(&self, of: &mut [u8], value: uuid::Uuid) {
        self.bytes_mut(of).copy_from_slice(value.as_bytes());
    }

    /// Stores a string NUL-padded; it must fit.
    pub(crate) fn put_str(&self, of: &mut [u8], value: &str) {
        let field = self.bytes_mut(of);
        field.fill(0);
        field[..value.len()].copy_from_slice(value.as_bytes());
    }

    /// A NUL-padded string; `None` if it is not UTF-8 or has bytes behind the first NUL.
    pub(crate) fn get_str(&self, from: &[u8]) -> Option<String> {
        let raw = self.bytes(from);
        let end = raw.iter().position(|&b| b == 0).unwrap_or(raw.len());
        if raw[end..].iter().any(|&b| b != 0) {
            return None;
        }
        std::str::from_utf8(&raw[..end]).ok().map(str::to_owned)
    }
}

/// CRC-32C of a structure whose checksum field counts as zeros, seeded with its context (CON-10).
pub(crate) fn checksum(context: &[&[u8]], bytes: &[u8], crc: Field) -> u32 {
    let mut sum = 0;
    for part in context {
        sum = crc32c::crc32c_append(sum, part);
    }
    sum = crc32c::crc32c_append(sum, &bytes[..crc.at]);
    sum = crc32c::crc32c_append(sum, &[0u8; 8][..crc.len]);
    crc32c::crc32c_append(sum, &bytes[crc.at + crc.len..])
}

/// What is wrong with a structure, before the caller adds where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bad {
    pub(crate) found: String,
    pub(crate) expected: String,
    pub(crate) rule: &'static str,
}

impl Bad {
    pub(crate) fn new(rule: &'static str, found: impl ToString, expected: impl ToString) -> Self {
        Self { found: found.to_string(), expected: expected.to_string(), rule }
    }

    pub(crate) fn at(self, structure: &'static str, place: crate::error::Place) -> crate::error::Corruption {
        crate::error::Corruption { structure, place, found: self.found, expected: self.expected, rule: self.rule }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every structure's fields stand in `container.md`, `journal.md` or `backup.md` of `spec/` with the same offset and length.
    #[test]
    fn the_specification_and_the_code_agree_on_offsets() {
        let spec = concat!(
            include_str!("../../../spec/container.md"),
            include_str!("../../../spec/journal.md"),
            include_str!("../../../spec/tags.md"),
            include_str!("../../../spec/backup.md"),
        );
        let structures: &[(&str, usize, &[Field])] = &[
            ("superblock", superblock::LEN, superblock::FIELDS),
            ("descriptor", descriptor::LEN, descriptor::FIELDS),
            ("chunk entry", entry::LEN, entry::FIELDS),
            ("slot header", slot::header::LEN, slot::header::FIELDS),
            ("container slot", slot::container::LEN, slot::container::FIELDS),
            ("volume slot", slot::volume::LEN, slot::volume::FIELDS),
            ("layer slot", slot::layer::LEN, slot::layer::FIELDS),
            ("relation slot", slot::relation::LEN, slot::relation::FIELDS),
            ("cache region slot", slot::region::LEN, slot::region::FIELDS),
            ("addendum header", addendum::header::LEN, addendum::header::FIELDS),
            ("addendum record", addendum::record::LEN, addendum::record::FIELDS),
            ("record header", record::LEN, record::FIELDS),
            ("tag record", tags::LEN, tags::FIELDS),
        ];
        for (name, len, fields) in structures {
            let start = spec
                .find(&format!("### Table: {name} ({len} bytes)"))
                .unwrap_or_else(|| panic!("no table for {name} of {len} bytes"));
            let table = spec[start + 4..].split("\n###").next().unwrap();
            let rows: Vec<(usize, usize, String)> = table
                .lines()
                .filter_map(|line| {
                    let cells: Vec<_> = line.split('|').map(str::trim).collect();
                    let at = cells.get(1)?.parse().ok()?;
                    Some((at, cells.get(2)?.parse().ok()?, cells.get(3)?.trim_matches('`').to_uppercase()))
                })
                .filter(|(_, _, name)| name != "RESERVED")
                .collect();
            let code: Vec<(usize, usize, String)> = fields.iter().map(|f| (f.at, f.len, f.name.to_owned())).collect();
            assert_eq!(rows, code, "table of {name}");
        }
    }
}
