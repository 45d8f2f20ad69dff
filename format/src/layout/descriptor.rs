//! The slab descriptor: who owns a slab, and for what.

use uuid::Uuid;

use super::{Bad, checksum, on_disk};
use crate::units::{LayerId, SlabNo};

on_disk! { 32;
    KIND @ 0, 1;
    FLAGS @ 1, 1;
    INDEX @ 4, 4;
    OWNER @ 8, 8;
    EXTRA @ 16, 8;
    CRC @ 28, 4;
}

/// Table flag: entries of pages not yet initialised read as zeros instead of absent (MAP-6).
const FLAG_ZERO: u64 = 1;

/// The decoded descriptor of one slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Descriptor {
    /// Nobody's; may be allocated.
    #[default]
    Free,
    /// Superblocks, journal and descriptor tables.
    Reserved,
    /// Catalog slots `index * 512..`; `pages` are those initialised.
    Catalog { index: u32, pages: u64 },
    /// Chunk entries `index * 8192..` of `layer`; `pages` are those initialised, others hold `zero` or absent entries.
    Table { layer: LayerId, index: u32, pages: u64, zero: bool },
    /// Guest data of chunk `index` of `layer`, written first by layer `birth`.
    Data { layer: LayerId, index: u32, birth: LayerId },
    /// Tags of the slabs `index * 512..`.
    Tags { index: u32 },
}

impl Descriptor {
    /// The layer that owns the slab, if a layer does.
    pub(crate) fn layer(self) -> Option<LayerId> {
        match self {
            Descriptor::Table { layer, .. } | Descriptor::Data { layer, .. } => Some(layer),
            Descriptor::Free | Descriptor::Reserved | Descriptor::Catalog { .. } | Descriptor::Tags { .. } => None,
        }
    }

    pub(crate) fn encode(self, container: Uuid, slab: SlabNo) -> [u8; LEN] {
        let (kind, flags, index, owner, extra) = match self {
            Descriptor::Free => return [0; LEN],
            Descriptor::Reserved => (1, 0, 0, 0, 0),
            Descriptor::Catalog { index, pages } => (2, 0, index, 0, pages),
            Descriptor::Table { layer, index, pages, zero } => {
                (3, if zero { FLAG_ZERO } else { 0 }, index, layer.0, pages)
            }
            Descriptor::Data { layer, index, birth } => (4, 0, index, layer.0, birth.0),
            Descriptor::Tags { index } => (5, 0, index, 0, 0),
        };
        let mut b = [0u8; LEN];
        KIND.put(&mut b, kind);
        FLAGS.put(&mut b, flags);
        INDEX.put(&mut b, index.into());
        OWNER.put(&mut b, owner);
        EXTRA.put(&mut b, extra);
        let crc = checksum(&[container.as_bytes(), &slab.0.to_le_bytes()], &b, CRC);
        CRC.put(&mut b, crc.into());
        b
    }

    pub(crate) fn decode(b: &[u8], container: Uuid, slab: SlabNo) -> Result<Self, Bad> {
        if b.iter().all(|&byte| byte == 0) {
            return Ok(Descriptor::Free);
        }
        let crc = checksum(&[container.as_bytes(), &slab.0.to_le_bytes()], b, CRC);
        if CRC.get_u32(b) != crc {
            return Err(Bad::new("CON-10", CRC.get(b), crc));
        }
        let index = INDEX.get_u32(b);
        let owner = LayerId(OWNER.get(b));
        let extra = EXTRA.get(b);
        match (KIND.get(b), FLAGS.get(b)) {
            (1, 0) => Ok(Descriptor::Reserved),
            (2, 0) => Ok(Descriptor::Catalog { index, pages: extra }),
            (3, flags) if flags & !FLAG_ZERO == 0 => {
                Ok(Descriptor::Table { layer: owner, index, pages: extra, zero: flags & FLAG_ZERO != 0 })
            }
            (4, 0) => Ok(Descriptor::Data { layer: owner, index, birth: LayerId(extra) }),
            (5, 0) => Ok(Descriptor::Tags { index }),
            (kind, flags) => {
                Err(Bad::new("CON-8", format!("kind {kind} flags {flags}"), "a kind from 1 to 5 and its flags"))
            }
        }
    }
}
