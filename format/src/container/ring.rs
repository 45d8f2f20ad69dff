//! Position in the journal ring.
//!
//! Invariant: bytes between tail and head hold the records that replay needs; nothing else overwrites them (JNL-5).
//! Does not: perform I/O or know what records contain.

use crate::layout::record::{self, Item, Link};
use crate::units::PAGE_LEN;

/// A place in the ring and the link of the record that begins there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// Bytes since the ring's beginning, counted on at every turn.
    pub(crate) at: u64,
    pub(crate) sequence: u64,
    pub(crate) prev_crc: u32,
}

/// The ring's geometry and ends.
#[derive(Debug, Clone)]
pub(crate) struct Ring {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) tail: Position,
    pub(crate) head: Position,
}

/// Bytes to append, in order; each is one write.
pub(crate) type Appends = Vec<(u64, Vec<u8>)>;

impl Ring {
    /// Bytes in use, with the gaps that records skip at the ring's end.
    pub(crate) fn used(&self) -> u64 {
        self.head.at - self.tail.at
    }

    /// Most bytes of changes that a batch should gather before it is committed (JNL-8).
    pub(crate) fn batch_limit(&self) -> u64 {
        (self.len / 32).min(4 << 20)
    }

    /// Bytes kept for the batches of checkpoints and of freeing.
    pub(crate) fn reserve(&self) -> u64 {
        self.len / 4
    }

    fn max_record(&self) -> u64 {
        (record::MAX_LEN as u64).min(self.len / 4)
    }

    /// Bytes of the ring that a batch of `item_bytes` may take, gaps included; never less than it does.
    pub(crate) fn need(&self, item_bytes: u64) -> u64 {
        let record = self.max_record();
        // Every record but the last holds at least half its limit; each adds a header, padding and an item cut off.
        let records = item_bytes / (record / 2) + 1;
        let gap = (item_bytes + 8192).min(record);
        item_bytes + records * 5120 + gap
    }

    /// Whether a batch of `item_bytes` fits and leaves `reserve` bytes.
    pub(crate) fn fits(&self, item_bytes: u64, reserve: u64) -> bool {
        self.used() + self.need(item_bytes) + reserve <= self.len
    }

    /// Encodes a batch at the head; the head moves only when the caller says so with the returned position.
    ///
    /// `None`: the batch does not fit.
    pub(crate) fn encode(&self, uuid: uuid::Uuid, generation: u64, items: &[Item]) -> Option<(Appends, Position)> {
        let mut appends: Appends = Vec::new();
        let mut head = self.head;
        let mut rest = items;
        while !rest.is_empty() {
            let mut bytes = record::LEN;
            let take = rest
                .iter()
                .take_while(|item| {
                    bytes += item.encoded_len();
                    bytes as u64 <= self.max_record()
                })
                .count();
            let (now, later) = rest.split_at(take);
            rest = later;
            let link = Link { uuid, generation, sequence: head.sequence, prev_crc: head.prev_crc };
            let (encoded, crc) = record::encode(link, now, rest.is_empty());
            debug_assert_eq!(encoded.len() % PAGE_LEN, 0);
            let len = encoded.len() as u64;
            if head.at % self.len + len > self.len {
                head.at = head.at.next_multiple_of(self.len);
            }
            let offset = self.offset + head.at % self.len;
            head = Position { at: head.at + len, sequence: head.sequence + 1, prev_crc: crc };
            if head.at - self.tail.at > self.len {
                return None;
            }
            match appends.last_mut() {
                Some((start, bytes)) if *start + bytes.len() as u64 == offset => bytes.extend(encoded),
                _ => appends.push((offset, encoded)),
            }
        }
        Some((appends, head))
    }
}
