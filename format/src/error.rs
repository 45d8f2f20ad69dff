//! What can go wrong, typed by area, each with what the user can do next.

use std::io;
use std::sync::Arc;

use crate::units::{ChunkNo, LayerId, SlabNo, VolumeId};

/// Result of a container operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a container operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file does not begin with a superblock.
    #[error("not a pitstop container: no superblock magic at offset 0 or 262144; create one with `pitstop create`")]
    NotAContainer,
    /// A superblock of a version that this program does not know.
    #[error("container version {found} is not supported (this program knows version 1); use a newer pitstop")]
    UnsupportedVersion {
        /// Version in the superblock.
        found: u32,
    },
    /// Feature bits that this program does not know (CON-12).
    #[error("container uses unknown incompatible features {bits:#x}; use a newer pitstop")]
    UnsupportedFeatures {
        /// The unknown bits.
        bits: u64,
    },
    /// The container may be opened only for reading (CON-12).
    #[error("container uses unknown features {bits:#x} that allow reading only; use a newer pitstop to change it")]
    ReadOnlyFeatures {
        /// The unknown bits.
        bits: u64,
    },
    /// The file is shorter than its metadata says.
    #[error(
        "container is truncated: the file has {found} bytes, its metadata needs {expected}; restore the file from a copy"
    )]
    Truncated {
        /// Bytes the file has.
        found: u64,
        /// Bytes the file must have.
        expected: u64,
    },
    /// A structure that disagrees with its checksum, its place or another structure.
    #[error("{0}")]
    Corrupt(#[from] Corruption),
    /// The disk under the container failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The disk's error.
        #[source]
        source: io::Error,
    },
    /// A sync, journal or home write failed earlier (JNL-14).
    #[error("container has failed and accepts no more changes: {reason}; close it, mend the storage, open it again")]
    Failed {
        /// The first failure.
        reason: String,
    },
    /// The container was closed while a handle to it was open.
    #[error("container has been closed; open it again")]
    Closed,
    /// No free slab and the file cannot grow.
    #[error("no space left in the container: {detail}; free space on the file system, or delete volumes")]
    NoSpace {
        /// What was tried.
        detail: String,
    },
    /// No volume of that name.
    #[error("no volume named '{name}'; `pitstop list` shows the volumes")]
    NoSuchVolume {
        /// The name asked for.
        name: String,
    },
    /// No cache region of that name.
    #[error("no cache region named '{name}'; `pitstop cache list` shows them")]
    NoSuchCache {
        /// The name asked for.
        name: String,
    },
    /// The name of a cache region is taken.
    #[error("a cache region named '{name}' exists already; choose another name, or `pitstop cache resize` it")]
    CacheExists {
        /// The name.
        name: String,
    },
    /// Backups draw on a cache region that was to be deleted.
    #[error("backups draw on cache region '{name}' ({backups} instants); wait for them or cancel them first")]
    CacheInUse {
        /// The region.
        name: String,
        /// Their instants.
        backups: u32,
    },
    /// A cache region that cannot be as asked for.
    #[error("cache region '{name}' needs {expected}")]
    BadCache {
        /// The region.
        name: String,
        /// What it must have.
        expected: &'static str,
    },
    /// More is kept on a cache region than it may hold.
    #[error(
        "cache region '{name}' is full: {used} of {limit} bytes are used; give it more with `pitstop cache resize`, and \
         begin the backup again"
    )]
    CacheFull {
        /// The region.
        name: String,
        /// Bytes that it may hold.
        limit: u64,
        /// Bytes that are kept.
        used: u64,
    },
    /// A backup kept what guests needed.
    #[error(
        "the container is full and cannot grow, and the backup kept {kept_bytes} bytes that guests need; make space, and begin \
         the backup again"
    )]
    BackupEnded {
        /// Bytes that were kept for it, at most.
        kept_bytes: u64,
    },
    /// A volume got other contents while a backup read them as they were.
    #[error(
        "volume '{name}' was refreshed, restored or deleted, or got a view, while its live data was read; begin the backup again (one \
         without an addendum is not affected)"
    )]
    SourceChanged {
        /// The volume.
        name: String,
    },
    /// The name is taken.
    #[error("a volume named '{name}' exists already; choose another name or delete it first")]
    VolumeExists {
        /// The name asked for.
        name: String,
    },
    /// The name is not one.
    #[error("'{name}' is not a volume name: {why}")]
    BadName {
        /// The name asked for.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The size is not one.
    #[error("{size} is not a volume size: {why}")]
    BadSize {
        /// Bytes asked for.
        size: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A volume is to be told apart from itself.
    #[error("'{name}' has not changed since itself; name a copy of it that was backed up before")]
    SinceItself {
        /// The volume.
        name: String,
    },
    /// Source and target of a refresh are the same volume.
    #[error("volume '{name}' cannot be refreshed from itself; name another source")]
    SameVolume {
        /// The volume.
        name: String,
    },
    /// The volume was deleted while a handle to it was open.
    #[error("volume '{name}' has been deleted")]
    VolumeGone {
        /// The volume.
        name: String,
    },
    /// An unclean stop may have cost the volume what was flushed (VOL-44).
    #[error(
        "volume '{name}' is undefined: the container was not closed, and a volume of durability none may have lost then \
         what its guest had flushed; refresh or restore it, delete it, or take it as it is with `pitstop set CONTAINER \
         {name} --defined`"
    )]
    Undefined {
        /// The volume.
        name: String,
    },
    /// The request does not lie within the volume or is not aligned to 512 bytes.
    #[error("request {start}..{end} is outside the volume of {size} bytes or not aligned to 512")]
    BadRange {
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// Size of the volume in bytes.
        size: u64,
    },
    /// The container was opened for reading only.
    #[error("container is open for reading only")]
    ReadOnly,
    /// Another program holds the container.
    #[error("container is in use by {holder}")]
    Locked {
        /// The holder, for people.
        holder: String,
    },
    /// The volume is part of a write-through view, which must end first.
    #[error(
        "volume '{name}' is part of the write-through view '{view}'; end that first with `pitstop view drop CONTAINER \
         {view}` or `pitstop view keep CONTAINER {view}`"
    )]
    InView {
        /// The volume.
        name: String,
        /// The view.
        view: String,
    },
    /// The volume is no write-through view.
    #[error("volume '{name}' is no write-through view; `pitstop list` shows which volumes are")]
    NotAView {
        /// The volume.
        name: String,
    },
    /// The volume's flushes promise nothing, and a view of it would have to promise what is its (VIEW-10).
    #[error(
        "volume '{name}' is of durability none, and no view is made of such a volume; change that first with `pitstop set \
         CONTAINER {name} --durability flush`"
    )]
    Disposable {
        /// The volume.
        name: String,
    },
    /// The volume is being hydrated already.
    #[error("volume '{name}' is being hydrated already; cancel that first, or wait until it has ended")]
    Hydrating {
        /// The volume.
        name: String,
    },
    /// No volume is hydrated by filling this layer, or not any more.
    #[error("the hydration of layer {layer} has ended; `pitstop info` shows the state of its volume")]
    NotHydrating {
        /// The layer.
        layer: LayerId,
    },
    /// The volume is not being sealed, or not any more.
    #[error("volume {volume} is not being sealed; `pitstop info` shows how much of it is sealed")]
    NotSealing {
        /// The volume's id.
        volume: VolumeId,
    },
    /// The volume is no copy of another, or its relation to that was ended.
    #[error("volume '{name}' has no relation to another volume; `pitstop list` shows which have")]
    NoRelation {
        /// The volume.
        name: String,
    },
    /// More layers would change at once than the journal can hold.
    #[error(
        "volume '{name}' stands on {layers} layers, and this container's journal can change {most} at once; wait until \
         background work has merged some, or use a container with a larger journal"
    )]
    TooManyLayers {
        /// The volume.
        name: String,
        /// Layers that would change.
        layers: usize,
        /// Layers that may change at once.
        most: usize,
    },
    /// Two copies of a group are to have one name.
    #[error("two copies of the group are to be named '{name}'; give each a name of its own")]
    SameName {
        /// The name.
        name: String,
    },
    /// More copies at one instant than the journal can hold.
    #[error(
        "{copies} copies are too many for one instant: this container's journal can take {most} at once; make smaller \
         groups, or use a container with a larger journal"
    )]
    TooManyCopies {
        /// Copies asked for.
        copies: usize,
        /// Copies that may be made at once.
        most: usize,
    },
    /// The journal had to be emptied during every try to check the container.
    #[error(
        "container is too busy to be checked: its journal filled up during each of {tries} tries; try again when less is \
         written, or use a container with a larger journal"
    )]
    TooBusyToCheck {
        /// How often it was tried.
        tries: u32,
    },
    /// The container cannot be repaired.
    #[error(
        "cannot repair the container: {why}; nothing has been changed: export what can be read, and restore the rest from \
         a copy"
    )]
    CannotRepair {
        /// What stands in the way.
        why: String,
    },
    /// The file is no log of a repair of this container, or of a state that it is not in any more.
    #[error("cannot undo the repair: {why}; nothing has been changed")]
    BadRepairLog {
        /// What is wrong with it.
        why: String,
    },
    /// Somebody else checks the container.
    #[error("another check of this container is under way; wait until it has ended, then check again")]
    CheckUnderWay,
    /// The one who asked for a check gave it up.
    #[error("the check was given up before it ended; check again")]
    CheckGivenUp,
    /// Everything else that is frozen of a volume is sealed.
    #[error(
        "{places} {} cannot be read and {} not sealed, everything else is; the first: {first}; mend the storage and seal \
         again, or do without",
        if *.places == 1 { "block or table page" } else { "blocks or table pages" },
        if *.places == 1 { "is" } else { "are" }
    )]
    NotAllSealed {
        /// Blocks, and table pages, that cannot be read.
        places: u64,
        /// What the first of them gave.
        first: Arc<Error>,
    },
    /// A block cannot be read.
    #[error("cannot read block {block} of layer {layer} (offset {offset}): {source}")]
    BlockUnreadable {
        /// The layer that has it.
        layer: LayerId,
        /// Its number in the layer, of blocks of 4096 bytes.
        block: u64,
        /// Byte offset in the container.
        offset: u64,
        /// What the disk says.
        source: io::Error,
    },
    /// The one who asked for a step of a map or a difference gave it up.
    #[error("the listing was given up before it ended; list again")]
    ListingGivenUp,
    /// Options that make no sense together.
    #[error("{0}")]
    BadOption(String),
}

impl Error {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { what, source }
    }
}

/// A structure that is damaged, misplaced, or contradicts another.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "corrupt {structure} at {place}: found {found}, expected {expected} [{rule}]; run `pitstop check{}`",
    if *.structure == "data" { " --data" } else { "" }
)]
pub struct Corruption {
    /// Kind of structure.
    pub structure: &'static str,
    /// Where it lies.
    pub place: Place,
    /// What is there.
    pub found: String,
    /// What should be there.
    pub expected: String,
    /// The spec rule that it breaks.
    pub rule: &'static str,
}

/// Where a structure lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Byte offset in the container file.
    Offset(u64),
    /// A slab.
    Slab(SlabNo),
    /// The entry of a chunk.
    Chunk(LayerId, ChunkNo),
    /// A catalog slot.
    Slot(u32),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Offset(offset) => write!(f, "offset {offset}"),
            Place::Slab(slab) => write!(f, "slab {slab}"),
            Place::Chunk(layer, chunk) => write!(f, "layer {layer} chunk {chunk}"),
            Place::Slot(slot) => write!(f, "catalog slot {slot}"),
        }
    }
}
