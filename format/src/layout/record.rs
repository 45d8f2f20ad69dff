//! The journal record: a header, then items with absolute values.

use uuid::Uuid;

use super::{checksum, descriptor, on_disk, slot};
use crate::units::{ChunkNo, LayerId, PAGE_LEN, SlabNo, SlotNo};

/// First bytes of every record.
pub(crate) const MAGIC_VALUE: [u8; 8] = *b"PITJRNL\0";
/// Longest record in bytes.
pub(crate) const MAX_LEN: usize = 1 << 20;

on_disk! { 64;
    MAGIC @ 0, 8;
    CRC @ 8, 4;
    PREV_CRC @ 12, 4;
    UUID @ 16, 16;
    GENERATION @ 32, 8;
    SEQUENCE @ 40, 8;
    LENGTH @ 48, 4;
    ITEM_BYTES @ 52, 4;
    LAST @ 56, 1;
}

/// One absolute value. Applying the items of a batch twice, or over their own result, changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// The table page was new: what its home holds counts for nothing, and its entries were absent, or zero entries with
    /// `zero` (MAP-6).
    FreshPage { layer: LayerId, table: u32, page: u8, zero: bool },
    /// A chunk entry. `slab` is 0 where `d` is.
    Entry { layer: LayerId, chunk: ChunkNo, slab: SlabNo, d: u64, z: u64 },
    /// A slab descriptor, in its on-disk form.
    Descriptor { slab: SlabNo, image: [u8; descriptor::LEN] },
    /// A catalog slot, in its on-disk form.
    Slot { slot: SlotNo, image: Box<[u8; slot::LEN]> },
}

const TAG_FRESH: u8 = 1;
const TAG_ENTRY: u8 = 2;
const TAG_DESCRIPTOR: u8 = 3;
const TAG_SLOT: u8 = 4;

impl Item {
    /// Bytes the item takes in a record.
    pub(crate) fn encoded_len(&self) -> usize {
        match self {
            Item::FreshPage { .. } => 16,
            Item::Entry { .. } => 40,
            Item::Descriptor { .. } => 48,
            Item::Slot { .. } => 520,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        match self {
            Item::FreshPage { layer, table, page, zero } => {
                out.extend([TAG_FRESH, *page, u8::from(*zero), 0]);
                out.extend(table.to_le_bytes());
                out.extend(layer.0.to_le_bytes());
            }
            Item::Entry { layer, chunk, slab, d, z } => {
                out.extend([TAG_ENTRY, 0, 0, 0]);
                out.extend(chunk.0.to_le_bytes());
                out.extend(layer.0.to_le_bytes());
                out.extend(slab.0.to_le_bytes());
                out.extend(d.to_le_bytes());
                out.extend(z.to_le_bytes());
            }
            Item::Descriptor { slab, image } => {
                out.extend([TAG_DESCRIPTOR, 0, 0, 0, 0, 0, 0, 0]);
                out.extend(slab.0.to_le_bytes());
                out.extend(image);
            }
            Item::Slot { slot, image } => {
                out.extend([TAG_SLOT, 0, 0, 0]);
                out.extend(slot.0.to_le_bytes());
                out.extend(image.iter());
            }
        }
        debug_assert_eq!(out.len() - start, self.encoded_len());
    }

    /// Decodes one item and the bytes behind it; `None` if the bytes are not an item.
    fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let u32_at = |at: usize| -> Option<u32> { Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
        let u64_at = |at: usize| -> Option<u64> { Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?)) };
        let item = match *bytes.first()? {
            TAG_FRESH => Item::FreshPage {
                page: *bytes.get(1)?,
                zero: *bytes.get(2)? != 0,
                table: u32_at(4)?,
                layer: LayerId(u64_at(8)?),
            },
            TAG_ENTRY => Item::Entry {
                chunk: ChunkNo(u32_at(4)?),
                layer: LayerId(u64_at(8)?),
                slab: SlabNo(u64_at(16)?),
                d: u64_at(24)?,
                z: u64_at(32)?,
            },
            TAG_DESCRIPTOR => Item::Descriptor { slab: SlabNo(u64_at(8)?), image: bytes.get(16..48)?.try_into().ok()? },
            TAG_SLOT => Item::Slot { slot: SlotNo(u32_at(4)?), image: Box::new(bytes.get(8..520)?.try_into().ok()?) },
            _ => return None,
        };
        let len = item.encoded_len();
        Some((item, &bytes[len..]))
    }
}

/// Where a record stands in its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) uuid: Uuid,
    pub(crate) generation: u64,
    pub(crate) sequence: u64,
    pub(crate) prev_crc: u32,
}

/// Encodes one record, padded to whole pages; returns the bytes and the record's CRC.
///
/// `items` must fit into [`MAX_LEN`] with the header.
pub(crate) fn encode(link: Link, items: &[Item], last: bool) -> (Vec<u8>, u32) {
    let mut b = vec![0u8; LEN];
    for item in items {
        item.encode(&mut b);
    }
    let item_bytes = b.len() - LEN;
    b.resize(b.len().next_multiple_of(PAGE_LEN), 0);
    assert!(b.len() <= MAX_LEN, "record of {} bytes", b.len());
    MAGIC.bytes_mut(&mut b).copy_from_slice(&MAGIC_VALUE);
    PREV_CRC.put(&mut b, link.prev_crc.into());
    UUID.put_uuid(&mut b, link.uuid);
    GENERATION.put(&mut b, link.generation);
    SEQUENCE.put(&mut b, link.sequence);
    let length = b.len() as u64;
    LENGTH.put(&mut b, length);
    ITEM_BYTES.put(&mut b, item_bytes as u64);
    LAST.put(&mut b, last.into());
    let crc = checksum(&[], &b, CRC);
    CRC.put(&mut b, crc.into());
    (b, crc)
}

/// Bytes of the record that begins with this page, if it is the one that `link` expects.
pub(crate) fn peek_len(page: &[u8], link: Link) -> Option<usize> {
    if MAGIC.bytes(page) != MAGIC_VALUE
        || UUID.uuid(page) != link.uuid
        || GENERATION.get(page) != link.generation
        || SEQUENCE.get(page) != link.sequence
        || PREV_CRC.get_u32(page) != link.prev_crc
    {
        return None;
    }
    let len = LENGTH.get(page) as usize;
    ((PAGE_LEN..=MAX_LEN).contains(&len) && len.is_multiple_of(PAGE_LEN)).then_some(len)
}

/// A whole record read back.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) items: Vec<Item>,
    /// The batch ends with this record.
    pub(crate) last: bool,
    pub(crate) crc: u32,
}

/// Decodes a record whose first page passed [`peek_len`]; `None` if it is torn or damaged.
pub(crate) fn decode(bytes: &[u8]) -> Option<Decoded> {
    let crc = checksum(&[], bytes, CRC);
    if CRC.get_u32(bytes) != crc {
        return None;
    }
    let item_bytes = ITEM_BYTES.get(bytes) as usize;
    let mut rest = bytes.get(LEN..LEN.checked_add(item_bytes)?)?;
    let mut items = Vec::new();
    while !rest.is_empty() {
        let (item, behind) = Item::decode(rest)?;
        items.push(item);
        rest = behind;
    }
    Some(Decoded { items, last: LAST.get(bytes) == 1, crc })
}
