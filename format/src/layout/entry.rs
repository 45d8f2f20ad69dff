//! The chunk entry: where a chunk's slab is and which blocks it shows.

use super::{Bad, checksum, on_disk};
use crate::units::{BlockMask, ChunkNo, LayerId, SlabNo};

on_disk! { 32;
    SLAB @ 0, 5;
    DEVICE @ 5, 1;
    ENCODING @ 6, 1;
    D @ 8, 8;
    Z @ 16, 8;
    CHECK @ 28, 4;
}

/// The decoded chunk entry. `slab` 0 means none (slab 0 holds a superblock).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RawEntry {
    pub(crate) slab: SlabNo,
    /// Blocks with data in the slab.
    pub(crate) d: BlockMask,
    /// Blocks that read as zeros where `d` is clear.
    pub(crate) z: BlockMask,
}

impl RawEntry {
    /// Encodes the entry of `chunk` of `layer`; `slab` must be below 2^40.
    pub(crate) fn encode(self, layer: LayerId, chunk: ChunkNo) -> [u8; LEN] {
        let mut b = [0u8; LEN];
        SLAB.put(&mut b, self.slab.0);
        D.put(&mut b, self.d);
        Z.put(&mut b, self.z);
        let crc = checksum(&[&layer.0.to_le_bytes(), &chunk.0.to_le_bytes()], &b, CHECK);
        CHECK.put(&mut b, crc.into());
        b
    }

    pub(crate) fn decode(b: &[u8], layer: LayerId, chunk: ChunkNo) -> Result<Self, Bad> {
        let crc = checksum(&[&layer.0.to_le_bytes(), &chunk.0.to_le_bytes()], b, CHECK);
        if CHECK.get_u32(b) != crc {
            return Err(Bad::new("MAP-5", CHECK.get(b), crc));
        }
        Self::decode_unchecked(b)
    }

    /// What the bytes say if they are an entry at all: of which chunk of which layer is not looked at.
    pub(crate) fn decode_unchecked(b: &[u8]) -> Result<Self, Bad> {
        if DEVICE.get(b) != 0 || ENCODING.get(b) != 0 {
            return Err(Bad::new("MAP-4", format!("device {} encoding {}", DEVICE.get(b), ENCODING.get(b)), "0 and 0"));
        }
        let entry = Self { slab: SlabNo(SLAB.get(b)), d: D.get(b), z: Z.get(b) };
        if (entry.d == 0) != (entry.slab.0 == 0) {
            return Err(Bad::new("MAP-3", format!("slab {} with D {:#x}", entry.slab, entry.d), "both or neither"));
        }
        Ok(entry)
    }
}
