//! Units of the format: sizes, counts and the newtypes that keep identifiers apart.
//!
//! Invariant: every constant here is a fact of `spec/container.md` (rules CON-1 to CON-4).
//! Does not: know offsets of structures (that is `layout`).

use std::fmt;

use serde::Serialize;

/// Smallest unit of guest I/O in bytes, and the unit that a disk writes atomically (CON-3).
pub const MIN_IO_LEN: u64 = 512;
/// Bytes in a block, the unit of presence (CON-1).
pub const BLOCK_LEN: u64 = 4096;
/// Blocks in a chunk (CON-1); one presence word covers a chunk.
pub const BLOCKS_PER_CHUNK: u64 = 64;
/// Bytes in a chunk and in a slab (CON-1).
pub const SLAB_LEN: u64 = BLOCK_LEN * BLOCKS_PER_CHUNK;
/// Bytes in a page, the unit in which metadata goes home (CON-2).
pub const PAGE_LEN: usize = 4096;
/// Chunk entries in a table page.
pub(crate) const ENTRIES_PER_PAGE: u64 = 128;
/// Pages in a metadata slab.
pub(crate) const PAGES_PER_SLAB: u64 = 64;
/// Chunk entries in a table slab: 2 GiB of volume.
pub(crate) const ENTRIES_PER_TABLE: u64 = ENTRIES_PER_PAGE * PAGES_PER_SLAB;
/// Bytes of volume that one table describes.
pub(crate) const TABLE_SPAN: u64 = ENTRIES_PER_TABLE * SLAB_LEN;
/// Slabs in an allocation group, described by one descriptor slab.
pub(crate) const SLABS_PER_GROUP: u64 = 8192;
/// Largest volume in bytes: 64 TiB (CON-4).
pub const MAX_VOLUME_LEN: u64 = 64 << 40;
/// Longest volume name in bytes.
pub const MAX_NAME_LEN: usize = 127;

macro_rules! id {
    ($(#[$meta:meta])* $name:ident, $inner:ty) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id!(
    /// Identifies a layer within its container; never reused (LAY-1).
    LayerId,
    u64
);
id!(
    /// Identifies a volume within its container; never reused.
    VolumeId,
    u64
);
id!(
    /// Identifies a cache region within its container; never reused.
    RegionId,
    u64
);
id!(
    /// Index of a slab in the container file; its offset is `index * SLAB_LEN`.
    SlabNo,
    u64
);
id!(
    /// Index of a chunk within a volume or layer.
    ChunkNo,
    u32
);
id!(
    /// Index of a 512-byte slot in the catalog.
    SlotNo,
    u32
);

impl SlabNo {
    /// Byte offset of the slab in the container file.
    pub const fn offset(self) -> u64 {
        self.0 * SLAB_LEN
    }
}

impl ChunkNo {
    /// The chunk that holds the volume's byte `offset`.
    ///
    /// `offset` must be below [`MAX_VOLUME_LEN`].
    pub fn containing(offset: u64) -> Self {
        assert!(offset < MAX_VOLUME_LEN, "offset {offset} is beyond the largest volume");
        Self((offset / SLAB_LEN) as u32)
    }

    /// Byte offset of the chunk in its volume.
    pub const fn start(self) -> u64 {
        self.0 as u64 * SLAB_LEN
    }

    /// Index of the table that holds the chunk's entry.
    pub const fn table(self) -> u32 {
        self.0 / ENTRIES_PER_TABLE as u32
    }

    /// Index of the page within its table.
    pub const fn page(self) -> usize {
        (self.0 as u64 % ENTRIES_PER_TABLE / ENTRIES_PER_PAGE) as usize
    }

    /// Index of the entry within its page.
    pub const fn entry(self) -> usize {
        (self.0 as u64 % ENTRIES_PER_PAGE) as usize
    }
}

/// A set of blocks of one chunk: bit `n` is block `n`.
pub(crate) type BlockMask = u64;

/// The mask with bits `start..end` set; `start <= end <= 64`.
pub(crate) const fn mask_of(start: u64, end: u64) -> BlockMask {
    debug_assert!(start <= end && end <= 64);
    if start == end { 0 } else { (!0u64 >> (64 - (end - start))) << start }
}

/// Largest next id (LAY-1): more ids than any container can use up.
pub(crate) const MAX_NEXT_ID: u64 = 1 << 63;
