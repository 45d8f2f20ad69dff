//! The Pitstop container format: one file, many volumes, snapshot and refresh in constant time.
//!
//! Role: layout, recovery, copy-on-write semantics, and planning of requests. Invariant: the rules of `spec/`.
//! Does not: perform data I/O (it says where data is and publishes what was written), know sockets, thread pools or
//! io_uring. See ARCHITECTURE.md for the rooms.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod addendum;
mod alloc;
pub mod check;
mod container;
mod disk;
mod error;
mod file;
mod io;
mod layer;
mod layout;
mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod units;
mod volume;

pub use container::{
    BackgroundKind, BackgroundWork, Backup, BackupUse, CacheInfo, CacheOptions, ChangedIn, Check, Container,
    ContainerInfo, Content, CreateOptions, DiffCounts, DiffRange, DiffStep, Durability, EndingView, Flush, FlushStep,
    HydrateEnd, HydrateStep, HydrateWait, Hydrated, Hydration, JournalAppend, LayerInfo, Listing, Maintained,
    MapCounts, MapRange, MapStep, Moved, NewCopy, OpenMode, Origin, PendingBackup, PendingCopy, PendingView, Relation,
    RelationState, SealEnd, SealStep, Sealed, Sealing, SpaceInfo, TagLoad, TagStep, TaggedPart, TaggedRead, ViewEnd,
    VolumeChange, VolumeInfo, VolumeState,
};
pub use disk::Disk;
pub use error::{Corruption, Error, Place, Result};
pub use file::{FileDisk, Holder, IoAlignment, holder_of};
pub use io::{Extent, VolumeIo};
pub use layer::PageLoad;
pub use layout::slot::Verify;
pub use units::{
    BLOCK_LEN, BLOCKS_PER_CHUNK, ChunkNo, LayerId, MAX_NAME_LEN, MAX_VOLUME_LEN, MIN_IO_LEN, PAGE_LEN, RegionId,
    SLAB_LEN, SlabNo, SlotNo, VolumeId,
};
pub use volume::{
    Edge, EdgeSource, Planned, ReadPlan, ReadSegment, Volume, WriteSegment, WriteTicket, ZeroKind, ZeroTicket,
};
