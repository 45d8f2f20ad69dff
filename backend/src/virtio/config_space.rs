//! The configuration space of the disk, and the features that go with it.
//!
//! Layout: `struct virtio_blk_config`, little-endian, offsets below. Invariant: a read of any length within
//! [`SPACE_LEN`] gives exactly that many bytes (front ends ask for 57 to 96). Does not: decide what a change of the
//! write cache means (`session`).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::SECTOR_LEN;
use crate::config::Access;

/// Bytes of configuration space, and the offset at which old cloud-hypervisor versions look for it.
const SPACE_LEN: usize = 0x100;
/// Most data segments of a request.
const SEG_MAX: u32 = 126;
/// Sectors of 512 bytes, in physical blocks of 2^3 = 4 KiB.
const PHYSICAL_BLOCK_EXP: u8 = 3;
const MIN_IO_BLOCKS: u16 = 8;
/// 256 KiB, a chunk.
const OPT_IO_BLOCKS: u32 = 512;
/// Most sectors in a segment of a discard or write-zeroes request: 2 GiB.
pub(crate) const MAX_ZERO_SECTORS: u32 = 1 << 22;
/// Most segments in a discard or write-zeroes request.
pub(crate) const MAX_ZERO_SEGMENTS: u32 = 64;
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;

const CAPACITY: usize = 0;
const SEG_MAX_AT: usize = 12;
const BLK_SIZE: usize = 20;
const PHYSICAL_BLOCK_EXP_AT: usize = 24;
const MIN_IO: usize = 26;
const OPT_IO: usize = 28;
const WCE: usize = 32;
const NUM_QUEUES: usize = 34;
const MAX_DISCARD_SECTORS: usize = 36;
const MAX_DISCARD_SEG: usize = 40;
const DISCARD_ALIGNMENT: usize = 44;
const MAX_WRITE_ZEROES_SECTORS: usize = 48;
const MAX_WRITE_ZEROES_SEG: usize = 52;
const WRITE_ZEROES_MAY_UNMAP: usize = 56;

/// Whether completed writes may wait in a cache until the next flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteCache {
    /// Writes are durable when they complete.
    WriteThrough,
    /// Writes are durable after a flush.
    WriteBack,
}

/// What the disk says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DiskShape {
    /// Bytes in the volume.
    pub(crate) capacity_bytes: u64,
    /// Most queues.
    pub(crate) num_queues: u16,
    /// Present state of the write cache.
    pub(crate) write_cache: WriteCache,
}

/// Virtio features that an export offers.
pub(crate) fn offered_features(access: Access) -> u64 {
    let mut features = 1 << VIRTIO_F_VERSION_1
        | 1 << VIRTIO_RING_F_EVENT_IDX
        | 1 << VIRTIO_RING_F_INDIRECT_DESC
        | 1 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | 1 << VIRTIO_BLK_F_TOPOLOGY
        | 1 << VIRTIO_BLK_F_FLUSH
        | 1 << VIRTIO_BLK_F_CONFIG_WCE
        | 1 << VIRTIO_BLK_F_MQ
        | 1 << VIRTIO_BLK_F_DISCARD
        | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    if access == Access::ReadOnly {
        features |= 1 << VIRTIO_BLK_F_RO;
    }
    features
}

/// Whether the guest promised to flush.
pub(crate) fn has_flush(features: u64) -> bool {
    features & (1 << VIRTIO_BLK_F_FLUSH) != 0
}

/// Whether event indexes are in use.
pub(crate) fn has_event_idx(features: u64) -> bool {
    features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0
}

/// Reads `len` bytes at `offset`; `None` if that is outside the space.
pub(crate) fn read(shape: &DiskShape, offset: u32, len: u32) -> Option<Vec<u8>> {
    let start = offset as usize % SPACE_LEN; // a space at 0x100 is the same space
    if offset as usize >= 2 * SPACE_LEN {
        return None;
    }
    space(shape).get(start..start.checked_add(len as usize)?).map(<[u8]>::to_vec)
}

/// Understands a write: only the write cache can be changed. `None` for anything else.
pub(crate) fn written(offset: u32, bytes: &[u8]) -> Option<WriteCache> {
    match (offset as usize, bytes) {
        (WCE, [0]) => Some(WriteCache::WriteThrough),
        (WCE, [1]) => Some(WriteCache::WriteBack),
        _ => None,
    }
}

fn space(shape: &DiskShape) -> [u8; SPACE_LEN] {
    let mut space = [0; SPACE_LEN];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(CAPACITY, &(shape.capacity_bytes / SECTOR_LEN).to_le_bytes());
    put(SEG_MAX_AT, &SEG_MAX.to_le_bytes());
    put(BLK_SIZE, &(SECTOR_LEN as u32).to_le_bytes());
    put(PHYSICAL_BLOCK_EXP_AT, &[PHYSICAL_BLOCK_EXP]);
    put(MIN_IO, &MIN_IO_BLOCKS.to_le_bytes());
    put(OPT_IO, &OPT_IO_BLOCKS.to_le_bytes());
    put(WCE, &[u8::from(shape.write_cache == WriteCache::WriteBack)]);
    put(NUM_QUEUES, &shape.num_queues.to_le_bytes());
    put(MAX_DISCARD_SECTORS, &MAX_ZERO_SECTORS.to_le_bytes());
    put(MAX_DISCARD_SEG, &MAX_ZERO_SEGMENTS.to_le_bytes());
    put(DISCARD_ALIGNMENT, &DISCARD_ALIGNMENT_SECTORS.to_le_bytes());
    put(MAX_WRITE_ZEROES_SECTORS, &MAX_ZERO_SECTORS.to_le_bytes());
    put(MAX_WRITE_ZEROES_SEG, &MAX_ZERO_SEGMENTS.to_le_bytes());
    put(WRITE_ZEROES_MAY_UNMAP, &[1]);
    space
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_blk::virtio_blk_config;

    use super::*;

    const SHAPE: DiskShape = DiskShape { capacity_bytes: 20 << 30, num_queues: 4, write_cache: WriteCache::WriteBack };

    #[test]
    fn layout_is_that_of_the_kernel_header() {
        let bytes = read(&SHAPE, 0, size_of::<virtio_blk_config>() as u32).unwrap();
        // SAFETY: virtio_blk_config is plain old data, packed, and `bytes` has its length.
        let config = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast::<virtio_blk_config>()) };
        assert_eq!({ config.capacity }, (20 << 30) / 512);
        assert_eq!({ config.size_max }, 0);
        assert_eq!({ config.seg_max }, 126);
        assert_eq!({ config.blk_size }, 512);
        assert_eq!((config.physical_block_exp, config.alignment_offset), (3, 0));
        assert_eq!(({ config.min_io_size }, { config.opt_io_size }), (8, 512));
        assert_eq!((config.wce, { config.num_queues }), (1, 4));
        assert_eq!(({ config.max_discard_sectors }, { config.max_discard_seg }), (1 << 22, 64));
        assert_eq!({ config.discard_sector_alignment }, 8);
        assert_eq!(({ config.max_write_zeroes_sectors }, { config.max_write_zeroes_seg }), (1 << 22, 64));
        assert_eq!(config.write_zeroes_may_unmap, 1);
    }

    #[test]
    fn any_length_within_the_space_is_answered_in_full() {
        for len in [1, 57, 60, 96, 256] {
            assert_eq!(read(&SHAPE, 0, len).unwrap().len(), len as usize);
        }
        assert_eq!(read(&SHAPE, 32, 1).unwrap(), [1]);
        assert_eq!(read(&SHAPE, 0x100, 60), read(&SHAPE, 0, 60));
        for (offset, len) in [(0, 257), (255, 2), (0x1ff, 2), (0x200, 1), (u32::MAX, 1), (1, u32::MAX)] {
            assert_eq!(read(&SHAPE, offset, len), None, "{offset} {len}");
        }
    }

    #[test]
    fn only_the_write_cache_can_be_written() {
        assert_eq!(written(32, &[0]), Some(WriteCache::WriteThrough));
        assert_eq!(written(32, &[1]), Some(WriteCache::WriteBack));
        for (offset, bytes) in [(32, &[2][..]), (32, &[0, 0]), (31, &[0]), (0, &[0; 8]), (32, &[])] {
            assert_eq!(written(offset, bytes), None);
        }
    }
}
