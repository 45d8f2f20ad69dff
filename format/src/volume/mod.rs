//! A volume: its head, and planning of requests against it.
//!
//! Role: turns a byte range into places in the container ([`ReadPlan`], [`WriteTicket`], [`ZeroTicket`]) and publishes
//! what was written. Invariant: a request belongs to the head that was current when it was planned (SNP-1); planning
//! never blocks and performs no I/O; reads and overwrites of the head's own blocks take no lock.
//! Does not: move data, know queues, or journal by itself.

mod read;
mod resolved;
mod view;
mod write;
mod zero;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use uuid::Uuid;

pub use read::{ReadPlan, ReadSegment};
pub(crate) use resolved::Resolved;
pub(crate) use view::Role;
pub use write::{Edge, EdgeSource, WriteSegment, WriteTicket};
pub use zero::{ZeroKind, ZeroTicket};

use crate::container::state::State;
use crate::container::{Flush, Shared, Signal, lock};
use crate::error::{Error, Result};
use crate::layer::{Layer, Link, PageLoad};
use crate::layout::slot::{Durability, Verify, VolumeRecord};
use crate::sync::{ArcSwap, AtomicBool, AtomicU64, Mutex};
use crate::units::{BLOCK_LEN, BlockMask, ChunkNo, LayerId, MIN_IO_LEN, SLAB_LEN, VolumeId, mask_of};

/// Outcome of planning.
#[derive(Debug)]
pub enum Planned<T> {
    /// The plan; carry it out.
    Ready(T),
    /// Read this page, hand it to `Container::install_page`, plan again.
    NeedPage(PageLoad),
    /// Something is in the way for the moment; the waker has been registered, plan again when it wakes.
    Busy,
}

/// The right to write to a head: lives as long as the volume points to the head or a write to it is under way.
#[derive(Debug)]
pub(crate) struct Writers {
    pub(crate) layer: Arc<Layer>,
    /// The chain below is so deep that what it shows is remembered (MAP-17).
    deep: AtomicBool,
    /// What the head is in a write-through view; never changes, because a view's end gives both volumes other heads.
    role: Role,
    signal: Arc<Signal>,
}

impl Writers {
    /// Of a head that is in no view.
    pub(crate) fn new(layer: Arc<Layer>, signal: Arc<Signal>) -> Arc<Self> {
        Self::with_role(layer, Role::Alone, signal)
    }

    pub(crate) fn with_role(layer: Arc<Layer>, role: Role, signal: Arc<Signal>) -> Arc<Self> {
        layer.drained.store(false, Ordering::Release);
        Arc::new(Self { layer, deep: AtomicBool::new(false), role, signal })
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.signal.drained(&self.layer);
    }
}

/// The runtime half of a volume.
#[derive(Debug)]
pub(crate) struct VolumeCore {
    pub(crate) id: VolumeId,
    pub(crate) uuid: Uuid,
    name: Mutex<String>,
    size: AtomicU64,
    /// The one word that decides to which head a request belongs (SNP-1).
    current: ArcSwap<Writers>,
    gone: AtomicBool,
    /// Newest batch that holds a change of this volume (JNL-7).
    dirty_batch: AtomicU64,
    /// Its flushes promise nothing (VOL-40). Set only while the catalog says so durably (VOL-43).
    is_disposable: AtomicBool,
    /// How often it has been refreshed since the container was opened.
    refreshes: AtomicU64,
    /// What its guests read is verified (TAG-14).
    verifies: AtomicBool,
}

impl VolumeCore {
    pub(crate) fn new(record: &VolumeRecord, writers: Arc<Writers>) -> Self {
        Self {
            id: record.id,
            uuid: record.uuid,
            name: Mutex::new(record.name.clone()),
            size: AtomicU64::new(record.size),
            current: ArcSwap::new(writers),
            gone: AtomicBool::new(false),
            dirty_batch: AtomicU64::new(0),
            is_disposable: AtomicBool::new(record.durability == Durability::None),
            refreshes: AtomicU64::new(0),
            verifies: AtomicBool::new(record.verify == Verify::Always),
        }
    }

    pub(crate) fn name(&self) -> String {
        lock(&self.name).clone()
    }

    pub(crate) fn set_name(&self, name: &str) {
        name.clone_into(&mut lock(&self.name));
    }

    pub(crate) fn head(&self) -> Arc<Layer> {
        self.current.load().layer.clone()
    }

    pub(crate) fn writers(&self) -> Arc<Writers> {
        self.current.load_full()
    }

    /// Makes another head the current one: requests planned from now on belong to it (SNP-1). Under the engine lock.
    pub(crate) fn switch(&self, writers: Arc<Writers>) {
        self.size.store(writers.layer.size, Ordering::Release);
        self.current.store(writers);
    }

    /// The volume is deleted: handles that are left get errors, and no longer keep its head from draining.
    pub(crate) fn retire(&self, signal: Arc<Signal>) {
        self.gone.store(true, Ordering::Release);
        let nothing = Layer::new(LayerId(0), self.size.load(Ordering::Acquire), Link { parent: None, limit: 0 }, true);
        self.current.store(Writers::new(Arc::new(nothing), signal));
    }

    /// What a flush that begins now promises.
    pub(crate) fn durability(&self) -> Durability {
        if self.is_disposable.load(Ordering::Acquire) { Durability::None } else { Durability::Flush }
    }

    pub(crate) fn set_durability(&self, durability: Durability) {
        self.is_disposable.store(durability == Durability::None, Ordering::Release);
    }

    /// Notes that the volume got other contents. Under the engine lock.
    pub(crate) fn note_refresh(&self) {
        self.refreshes.fetch_add(1, Ordering::AcqRel);
    }

    /// How often it got other contents; `None` if it is gone.
    pub(crate) fn refreshes(&self) -> Option<u64> {
        (!self.gone.load(Ordering::Acquire)).then(|| self.refreshes.load(Ordering::Acquire))
    }

    pub(crate) fn set_verify(&self, verify: Verify) {
        self.verifies.store(verify == Verify::Always, Ordering::Release);
    }

    pub(crate) fn dirty_batch(&self) -> u64 {
        self.dirty_batch.load(Ordering::Acquire)
    }

    /// Notes that the open batch holds a change of this volume. Under the engine lock.
    pub(crate) fn touch(&self, state: &State) {
        self.dirty_batch.store(state.batches.open, Ordering::Release);
    }
}

/// A handle to a volume of an open container. Clones share it.
#[derive(Debug, Clone)]
pub struct Volume {
    shared: Arc<Shared>,
    core: Arc<VolumeCore>,
}

impl Volume {
    pub(crate) fn new(shared: Arc<Shared>, core: Arc<VolumeCore>) -> Self {
        Self { shared, core }
    }

    /// The volume's id within its container.
    pub fn id(&self) -> VolumeId {
        self.core.id
    }

    /// The volume's present name.
    pub fn name(&self) -> String {
        self.core.name()
    }

    /// The volume's size in bytes; a multiple of 512.
    pub fn size(&self) -> u64 {
        self.core.size.load(Ordering::Acquire)
    }

    /// How often it was refreshed since the container was opened; `None` if it is gone.
    pub(crate) fn refreshes(&self) -> Option<u64> {
        self.core.refreshes()
    }

    /// Whether what its guests read is to be verified: whoever carries a plan out looks up its tags first (TAG-14).
    pub fn verifies_reads(&self) -> bool {
        self.core.verifies.load(Ordering::Acquire)
    }

    /// The volume's own UUID.
    pub fn uuid(&self) -> Uuid {
        self.core.uuid
    }

    /// Begins to make durable all that has completed on this volume; of a volume of durability none, which promises
    /// nothing, it is over at once (VOL-40).
    pub fn start_flush(&self) -> Flush {
        Flush::of_volume(self.shared.clone(), &self.core)
    }

    fn check(&self, range: &Range<u64>) -> Result<()> {
        if self.core.gone.load(Ordering::Acquire) {
            return Err(Error::VolumeGone { name: self.name() });
        }
        let size = self.size();
        if range.start > range.end || range.end > size || !(range.start | range.end).is_multiple_of(MIN_IO_LEN) {
            return Err(Error::BadRange { start: range.start, end: range.end, size });
        }
        Ok(())
    }

    fn check_change(&self, range: &Range<u64>) -> Result<()> {
        self.shared.check_open()?;
        self.check(range)
    }
}

/// The part of a request that lies in one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    chunk: ChunkNo,
    /// First byte, from the chunk's beginning.
    start: u64,
    /// One past the last byte, from the chunk's beginning.
    end: u64,
    /// Offset of the piece in the request's buffer.
    buffer_offset: u64,
}

impl Piece {
    /// Blocks that the piece touches.
    fn blocks(&self) -> BlockMask {
        mask_of(self.start / BLOCK_LEN, self.end.div_ceil(BLOCK_LEN))
    }

    /// Blocks that the piece covers entirely.
    fn whole_blocks(&self) -> BlockMask {
        let first = self.start.div_ceil(BLOCK_LEN);
        mask_of(first, (self.end / BLOCK_LEN).max(first))
    }
}

/// Splits a range at chunk boundaries.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Piece> {
    let origin = range.start;
    let mut at = range.start;
    std::iter::from_fn(move || {
        (at < range.end).then(|| {
            let chunk = ChunkNo::containing(at);
            let base = chunk.start();
            let end = range.end.min(base + SLAB_LEN);
            let piece = Piece { chunk, start: at - base, end: end - base, buffer_offset: at - origin };
            at = end;
            piece
        })
    })
}

/// The runs of set bits in a mask, lowest first, as half-open block ranges.
pub(crate) fn runs(mask: BlockMask) -> impl Iterator<Item = (u64, u64)> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        (rest != 0).then(|| {
            let start = u64::from(rest.trailing_zeros());
            let end = start + u64::from((!(rest >> start)).trailing_zeros());
            rest &= !mask_of(start, end);
            (start, end)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_set_bits_in_order() {
        assert_eq!(runs(0).count(), 0);
        assert_eq!(runs(!0).collect::<Vec<_>>(), [(0, 64)]);
        assert_eq!(runs(0b1011 | 1 << 63).collect::<Vec<_>>(), [(0, 2), (3, 4), (63, 64)]);
    }

    #[test]
    fn pieces_split_at_chunks_and_count_the_buffer_on() {
        let found: Vec<_> = pieces(SLAB_LEN - 512..2 * SLAB_LEN + 512).collect();
        assert_eq!(found.len(), 3);
        assert_eq!((found[0].start, found[0].end, found[0].buffer_offset), (SLAB_LEN - 512, SLAB_LEN, 0));
        assert_eq!((found[1].start, found[1].end, found[1].buffer_offset), (0, SLAB_LEN, 512));
        assert_eq!((found[2].start, found[2].end, found[2].buffer_offset), (0, 512, SLAB_LEN + 512));
        assert_eq!(found[0].blocks(), 1 << 63);
        assert_eq!(found[0].whole_blocks(), 0);
        assert_eq!(found[1].whole_blocks(), !0);
    }
}
