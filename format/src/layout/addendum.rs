//! Addendum files: a header, then records of ranges with their data, then a record that says that nothing is missing.
//!
//! Structures are those of `spec/backup.md`. Does not: read or write files (see [`crate::addendum`]).

use uuid::Uuid;

use super::{Bad, checksum};
use crate::units::{MAX_VOLUME_LEN, MIN_IO_LEN};

const MAGIC: &[u8; 8] = b"PITADDM\0";
/// The only version.
const VERSION: u64 = 1;
/// Most bytes of data in a record.
pub(crate) const MAX_DATA_LEN: u64 = 1 << 20;

/// What the file begins with.
pub(crate) mod header {
    super::super::on_disk! { 128;
        MAGIC @ 0, 8;
        VERSION @ 8, 4;
        CRC @ 12, 4;
        CONTAINER @ 16, 16;
        VOLUME @ 32, 16;
        SIZE_BYTES @ 48, 8;
        INSTANT_NS @ 56, 8;
        BASE_NS @ 64, 8;
        PURPOSE @ 72, 1;
        INSTANT @ 80, 16;
        BASE @ 96, 16;
    }
}

/// What every record begins with.
pub(crate) mod record {
    super::super::on_disk! { 32;
        TAG @ 0, 1;
        CRC @ 4, 4;
        START @ 8, 8;
        LENGTH @ 16, 8;
        NUMBER @ 24, 8;
    }
}

/// Contents of a volume, wherever they are found: what one frozen layer shows (LAY-14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// Never of any others; nil if nothing had ever been written: zeros.
    pub id: Uuid,
    /// Since when they are there, in nanoseconds since 1970: for people.
    pub unix_ns: i64,
}

/// What the ranges of an addendum are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// What was at the instant where the live volume was written while it was read (R21).
    OriginalImages,
    /// What was at the instant where it may differ from these contents (`--since`).
    ChangesSince(Contents),
}

/// Of what an addendum is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddendumHeader {
    /// UUID of the container.
    pub container: Uuid,
    /// UUID of the volume.
    pub volume: Uuid,
    /// Size of the volume in bytes.
    pub size_bytes: u64,
    /// What the volume held at the instant.
    pub instant: Contents,
    /// What the ranges are.
    pub purpose: Purpose,
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    Data,
    Zeros,
    End,
}

/// A record without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) tag: Tag,
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) number: u64,
}

impl AddendumHeader {
    /// The bytes, and the checksum that binds the records to them.
    pub(crate) fn encode(&self) -> ([u8; header::LEN], u32) {
        let mut b = [0; header::LEN];
        header::MAGIC.bytes_mut(&mut b).copy_from_slice(MAGIC);
        header::VERSION.put(&mut b, VERSION);
        header::CONTAINER.put_uuid(&mut b, self.container);
        header::VOLUME.put_uuid(&mut b, self.volume);
        header::SIZE_BYTES.put(&mut b, self.size_bytes);
        header::INSTANT_NS.put(&mut b, self.instant.unix_ns as u64);
        header::INSTANT.put_uuid(&mut b, self.instant.id);
        if let Purpose::ChangesSince(base) = self.purpose {
            header::BASE_NS.put(&mut b, base.unix_ns as u64);
            header::BASE.put_uuid(&mut b, base.id);
            header::PURPOSE.put(&mut b, 1);
        }
        let crc = checksum(&[], &b, header::CRC);
        header::CRC.put(&mut b, crc.into());
        (b, crc)
    }

    pub(crate) fn decode(b: &[u8; header::LEN]) -> Result<(Self, u32), Bad> {
        if header::MAGIC.bytes(b) != MAGIC {
            return Err(Bad::new("BAK-15", "another magic", "an addendum"));
        }
        let version = header::VERSION.get(b);
        if version != VERSION {
            return Err(Bad::new("BAK-15", format!("version {version}"), VERSION));
        }
        let crc = checksum(&[], b, header::CRC);
        if header::CRC.get_u32(b) != crc {
            return Err(Bad::new("BAK-15", header::CRC.get(b), crc));
        }
        let purpose = match header::PURPOSE.get(b) {
            0 => Purpose::OriginalImages,
            1 => Purpose::ChangesSince(Contents { id: header::BASE.uuid(b), unix_ns: header::BASE_NS.get(b) as i64 }),
            other => return Err(Bad::new("BAK-15", format!("purpose {other}"), "0 or 1")),
        };
        let size_bytes = header::SIZE_BYTES.get(b);
        if size_bytes == 0 || size_bytes > MAX_VOLUME_LEN || !size_bytes.is_multiple_of(MIN_IO_LEN) {
            return Err(Bad::new("BAK-15", format!("size {size_bytes}"), "a multiple of 512 up to 64 TiB"));
        }
        let found = Self {
            container: header::CONTAINER.uuid(b),
            volume: header::VOLUME.uuid(b),
            size_bytes,
            instant: Contents { id: header::INSTANT.uuid(b), unix_ns: header::INSTANT_NS.get(b) as i64 },
            purpose,
        };
        Ok((found, crc))
    }
}

impl Record {
    /// The bytes before the record's data; `file` is the header's checksum.
    pub(crate) fn encode(&self, data: &[u8], file: u32) -> [u8; record::LEN] {
        let mut b = [0; record::LEN];
        let tag = match self.tag {
            Tag::Data => 1,
            Tag::Zeros => 2,
            Tag::End => 3,
        };
        record::TAG.put(&mut b, tag);
        record::START.put(&mut b, self.start);
        record::LENGTH.put(&mut b, self.length);
        record::NUMBER.put(&mut b, self.number);
        let crc = checksum_of(&b, data, file);
        record::CRC.put(&mut b, crc.into());
        b
    }

    /// The record that begins with these bytes, as far as that shows without its data; and the checksum that must fit.
    pub(crate) fn decode(b: &[u8; record::LEN]) -> Result<(Self, u32), Bad> {
        let tag = match record::TAG.get(b) {
            1 => Tag::Data,
            2 => Tag::Zeros,
            3 => Tag::End,
            other => return Err(Bad::new("BAK-16", format!("tag {other}"), "a tag from 1 to 3")),
        };
        let (start, length) = (record::START.get(b), record::LENGTH.get(b));
        if tag == Tag::Data && length > MAX_DATA_LEN {
            return Err(Bad::new("BAK-16", format!("{length} bytes of data"), "1 MiB at most"));
        }
        Ok((Self { tag, start, length, number: record::NUMBER.get(b) }, record::CRC.get_u32(b)))
    }
}

/// The checksum of a record, its data and the file that it belongs to.
pub(crate) fn checksum_of(b: &[u8; record::LEN], data: &[u8], file: u32) -> u32 {
    crc32c::crc32c_append(checksum(&[&file.to_le_bytes()], b, record::CRC), data)
}
