//! The superblock: identity, features and where the journal's live part begins.

use uuid::Uuid;

use super::{Bad, checksum, on_disk};
use crate::units::{BLOCK_LEN, BLOCKS_PER_CHUNK, SLAB_LEN};

/// First bytes of every container.
pub(crate) const MAGIC_VALUE: [u8; 8] = *b"PITSTOP\0";
/// The version this code writes.
pub(crate) const VERSION_VALUE: u32 = 1;
/// Offsets of the two copies (CON-5).
pub(crate) const OFFSETS: [u64; 2] = [0, SLAB_LEN];

on_disk! { 4096;
    MAGIC @ 0, 8;
    VERSION @ 8, 4;
    CRC @ 12, 4;
    UUID @ 16, 16;
    COMPAT @ 32, 8;
    RO_COMPAT @ 40, 8;
    INCOMPAT @ 48, 8;
    BLOCK_LEN_BYTES @ 56, 4;
    BLOCKS_IN_CHUNK @ 60, 2;
    COPY @ 62, 1;
    CLEAN @ 63, 1;
    SEQUENCE @ 64, 8;
    GENERATION @ 72, 8;
    JOURNAL_OFFSET @ 80, 8;
    JOURNAL_LEN @ 88, 8;
    JOURNAL_DEVICE @ 96, 2;
    TAIL_PREV_CRC @ 104, 4;
    TAIL_OFFSET @ 112, 8;
    TAIL_SEQUENCE @ 120, 8;
    CREATED_NS @ 128, 8;
    LABEL @ 136, 64;
    DEVICE_COUNT @ 200, 2;
    DEVICE_UUID @ 208, 16;
}

/// The decoded superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) uuid: Uuid,
    pub(crate) compat: u64,
    pub(crate) ro_compat: u64,
    pub(crate) incompat: u64,
    /// All changes were home and the holder closed the container.
    pub(crate) clean: bool,
    /// Number of this superblock; the larger of the two copies counts.
    pub(crate) sequence: u64,
    /// Number of this mount for writing; journal records of another are not replayed (JNL-4).
    pub(crate) generation: u64,
    pub(crate) journal_offset: u64,
    pub(crate) journal_len: u64,
    /// Where replay begins: offset within the ring, number of the record there, CRC of the one before.
    pub(crate) tail_offset: u64,
    pub(crate) tail_sequence: u64,
    pub(crate) tail_prev_crc: u32,
    pub(crate) created_ns: i64,
    pub(crate) label: String,
}

/// Why a superblock copy cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unusable {
    NoMagic,
    Version(u32),
    Bad(Bad),
}

impl Superblock {
    pub(crate) fn encode(&self, copy: usize) -> Vec<u8> {
        let mut b = vec![0u8; LEN];
        MAGIC.bytes_mut(&mut b).copy_from_slice(&MAGIC_VALUE);
        VERSION.put(&mut b, VERSION_VALUE.into());
        UUID.put_uuid(&mut b, self.uuid);
        COMPAT.put(&mut b, self.compat);
        RO_COMPAT.put(&mut b, self.ro_compat);
        INCOMPAT.put(&mut b, self.incompat);
        BLOCK_LEN_BYTES.put(&mut b, BLOCK_LEN);
        BLOCKS_IN_CHUNK.put(&mut b, BLOCKS_PER_CHUNK);
        COPY.put(&mut b, copy as u64);
        CLEAN.put(&mut b, self.clean.into());
        SEQUENCE.put(&mut b, self.sequence);
        GENERATION.put(&mut b, self.generation);
        JOURNAL_OFFSET.put(&mut b, self.journal_offset);
        JOURNAL_LEN.put(&mut b, self.journal_len);
        TAIL_PREV_CRC.put(&mut b, self.tail_prev_crc.into());
        TAIL_OFFSET.put(&mut b, self.tail_offset);
        TAIL_SEQUENCE.put(&mut b, self.tail_sequence);
        CREATED_NS.put(&mut b, self.created_ns as u64);
        LABEL.put_str(&mut b, &self.label);
        DEVICE_COUNT.put(&mut b, 1);
        DEVICE_UUID.put_uuid(&mut b, self.uuid);
        let crc = checksum(&[], &b, CRC);
        CRC.put(&mut b, crc.into());
        b
    }

    /// Decodes the copy numbered `copy` from its 4096 bytes.
    pub(crate) fn decode(b: &[u8], copy: usize) -> Result<Self, Unusable> {
        let bad = |rule, found: u64, expected: u64| Unusable::Bad(Bad::new(rule, found, expected));
        if MAGIC.bytes(b) != MAGIC_VALUE {
            return Err(Unusable::NoMagic);
        }
        let crc = checksum(&[], b, CRC);
        if CRC.get_u32(b) != crc {
            return Err(bad("CON-10", CRC.get(b), crc.into()));
        }
        if VERSION.get_u32(b) != VERSION_VALUE {
            return Err(Unusable::Version(VERSION.get_u32(b)));
        }
        for (field, expected, rule) in [
            (BLOCK_LEN_BYTES, BLOCK_LEN, "CON-1"),
            (BLOCKS_IN_CHUNK, BLOCKS_PER_CHUNK, "CON-1"),
            (COPY, copy as u64, "CON-5"),
            (JOURNAL_DEVICE, 0, "CON-6"),
            (DEVICE_COUNT, 1, "CON-6"),
        ] {
            if field.get(b) != expected {
                return Err(bad(rule, field.get(b), expected));
            }
        }
        let journal_offset = JOURNAL_OFFSET.get(b);
        let journal_len = JOURNAL_LEN.get(b);
        let tail_offset = TAIL_OFFSET.get(b);
        let end = journal_offset.checked_add(journal_len);
        if journal_len == 0
            || !journal_len.is_multiple_of(SLAB_LEN)
            || !journal_offset.is_multiple_of(SLAB_LEN)
            || end.is_none_or(|end| end > 1 << 40)
        {
            return Err(bad("JNL-1", journal_len, SLAB_LEN));
        }
        if tail_offset >= journal_len || !tail_offset.is_multiple_of(BLOCK_LEN) {
            return Err(bad("JNL-1", tail_offset, journal_len));
        }
        for counter in [SEQUENCE, GENERATION, TAIL_SEQUENCE] {
            if counter.get(b) >= 1 << 63 {
                return Err(bad("CON-5", counter.get(b), 1 << 63));
            }
        }
        let label = LABEL.get_str(b).ok_or_else(|| bad("CON-11", 1, 0))?;
        Ok(Self {
            uuid: UUID.uuid(b),
            compat: COMPAT.get(b),
            ro_compat: RO_COMPAT.get(b),
            incompat: INCOMPAT.get(b),
            clean: CLEAN.get(b) == 1,
            sequence: SEQUENCE.get(b),
            generation: GENERATION.get(b),
            journal_offset,
            journal_len,
            tail_offset,
            tail_sequence: TAIL_SEQUENCE.get(b),
            tail_prev_crc: TAIL_PREV_CRC.get_u32(b),
            created_ns: CREATED_NS.get(b) as i64,
            label,
        })
    }
}
