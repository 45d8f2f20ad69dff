//! Tags: what binds the data of a slab's blocks to the layer and the blocks that they were born in.
//!
//! Invariant (TAG-1): a tag is the CRC-32C of a block's bytes xor a function of birth layer and block number, so that it can
//! be exchanged for another place's without the data. A record counts only for the slab, birth and chunk that it names
//! (TAG-3). Does not: know which slabs have tags, or when they are made.

use uuid::Uuid;

use super::{Bad, checksum, on_disk};
use crate::units::{BLOCK_LEN, BLOCKS_PER_CHUNK, BlockMask, ChunkNo, LayerId, SlabNo};

on_disk! { 512;
    CRC @ 0, 4;
    CHUNK @ 4, 4;
    BIRTH @ 8, 8;
    MASK @ 16, 8;
    TAGS @ 256, 256;
}

/// Records in a page.
pub(crate) const PER_PAGE: u64 = 8;
/// Records in a tag slab: it has those of so many slabs.
pub(crate) const PER_SLAB: u64 = 512;

/// The tags of one slab's blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlabTags {
    /// The layer that wrote the slab first.
    pub(crate) birth: LayerId,
    /// The chunk whose blocks are in the slab.
    pub(crate) chunk: ChunkNo,
    /// Blocks that have a tag.
    pub(crate) mask: BlockMask,
    tags: Box<[u32; BLOCKS_PER_CHUNK as usize]>,
}

/// What a block is bound to: different for any two blocks of a layer that are less than 16 TiB apart.
fn address(birth: LayerId, block: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&birth.0.to_le_bytes()), &block.to_le_bytes())
}

/// A block whose bytes and tag do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Misfit {
    pub(crate) found: u32,
    pub(crate) expected: u32,
}

impl SlabTags {
    /// No tag yet.
    pub(crate) fn new(birth: LayerId, chunk: ChunkNo) -> Self {
        Self { birth, chunk, mask: 0, tags: Box::new([0; BLOCKS_PER_CHUNK as usize]) }
    }

    fn address(&self, block: u64) -> u32 {
        address(self.birth, u64::from(self.chunk.0) * BLOCKS_PER_CHUNK + block)
    }

    /// Makes the tag of block `block` of the chunk from its bytes.
    pub(crate) fn make(&mut self, block: u64, bytes: &[u8]) {
        debug_assert_eq!(bytes.len() as u64, BLOCK_LEN);
        self.tags[block as usize] = crc32c::crc32c(bytes) ^ self.address(block);
        self.mask |= 1 << block;
    }

    /// Whether the bytes are those that block `block`, which has a tag, was sealed with.
    pub(crate) fn verify(&self, block: u64, bytes: &[u8]) -> Result<(), Misfit> {
        debug_assert!(self.mask >> block & 1 == 1);
        let (found, expected) = (crc32c::crc32c(bytes) ^ self.address(block), self.tags[block as usize]);
        if found == expected { Ok(()) } else { Err(Misfit { found, expected }) }
    }

    /// Takes over the tags of the blocks `mask` of a slab from which these blocks were copied: only the place is exchanged,
    /// so that a copy of damaged data does not fit either (TAG-6).
    pub(crate) fn take_over(&mut self, from: &SlabTags, mask: BlockMask) {
        let mut rest = mask & from.mask;
        self.mask |= rest;
        while rest != 0 {
            let block = u64::from(rest.trailing_zeros());
            rest &= rest - 1;
            self.tags[block as usize] = from.tags[block as usize] ^ from.address(block) ^ self.address(block);
        }
    }

    pub(crate) fn encode(&self, container: Uuid, slab: SlabNo) -> [u8; LEN] {
        let mut b = [0u8; LEN];
        CHUNK.put(&mut b, self.chunk.0.into());
        BIRTH.put(&mut b, self.birth.0);
        MASK.put(&mut b, self.mask);
        for (raw, tag) in TAGS.bytes_mut(&mut b).chunks_exact_mut(4).zip(self.tags.iter()) {
            raw.copy_from_slice(&tag.to_le_bytes());
        }
        let crc = checksum(&[container.as_bytes(), &slab.0.to_le_bytes()], &b, CRC);
        CRC.put(&mut b, crc.into());
        b
    }

    /// The record of `slab`; none if its bytes are zeros.
    pub(crate) fn decode(b: &[u8], container: Uuid, slab: SlabNo) -> Result<Option<Self>, Bad> {
        if b.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let crc = checksum(&[container.as_bytes(), &slab.0.to_le_bytes()], b, CRC);
        if CRC.get_u32(b) != crc {
            return Err(Bad::new("TAG-2", CRC.get(b), crc));
        }
        let mut tags = Self::new(LayerId(BIRTH.get(b)), ChunkNo(CHUNK.get_u32(b)));
        tags.mask = MASK.get(b);
        for (raw, tag) in TAGS.bytes(b).as_chunks::<4>().0.iter().zip(tags.tags.iter_mut()) {
            *tag = u32::from_le_bytes(*raw);
        }
        Ok(Some(tags))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(birth: u64, chunk: u32, bytes: &[u8]) -> SlabTags {
        let mut tags = SlabTags::new(LayerId(birth), ChunkNo(chunk));
        (0..64).for_each(|block| tags.make(block, bytes));
        tags
    }

    // rule: TAG-1
    #[test]
    fn a_tag_fits_its_bytes_in_their_place_alone() {
        let bytes = [7; 4096];
        let here = tags(5, 9, &bytes);
        assert!((0..64).all(|block| here.verify(block, &bytes).is_ok()));
        for at in [0, 2000, 4095] {
            let mut other = bytes;
            other[at] ^= 1;
            assert!(here.verify(3, &other).is_err());
        }
        let all: std::collections::HashSet<u32> = here.tags.iter().copied().collect();
        assert_eq!(all.len(), 64, "equal bytes of different blocks have different tags");
        for (birth, chunk) in [(6, 9), (5, 10), (1 << 40, 9)] {
            let there = tags(birth, chunk, &bytes);
            assert!((0..64).all(|block| there.tags[block] != here.tags[block]));
        }
    }

    // rule: TAG-1, TAG-6 — far blocks of a layer too, and without looking at the data.
    #[test]
    fn tags_change_their_place_without_the_data() {
        let bytes = [1; 4096];
        let far = tags(5, u32::MAX >> 6, &bytes);
        let mut near = SlabTags::new(LayerId(77), ChunkNo(3));
        near.take_over(&far, 0b1011);
        let mut expected = tags(77, 3, &bytes);
        assert_eq!(near.mask, 0b1011);
        assert!((0..64).filter(|block| near.mask >> block & 1 == 1).all(|block| near.verify(block, &bytes).is_ok()));
        assert!(near.verify(1, &[2; 4096]).is_err());
        expected.take_over(&near, !0);
        assert_eq!(expected, tags(77, 3, &bytes));
    }

    // rule: TAG-2
    #[test]
    fn a_record_is_read_back_for_its_own_slab_and_container() {
        let (uuid, slab) = (Uuid::from_u128(1), SlabNo(1000));
        let written = tags(5, 9, &[3; 4096]);
        let raw = written.encode(uuid, slab);
        assert_eq!(SlabTags::decode(&raw, uuid, slab).unwrap(), Some(written));
        assert!(SlabTags::decode(&raw, uuid, SlabNo(1001)).is_err());
        assert!(SlabTags::decode(&raw, Uuid::from_u128(2), slab).is_err());
        assert_eq!(SlabTags::decode(&[0; LEN], uuid, slab).unwrap(), None);
        for at in 0..LEN {
            let mut damaged = raw;
            damaged[at] ^= 4;
            assert!(SlabTags::decode(&damaged, uuid, slab).is_err(), "byte {at}");
        }
    }
}
