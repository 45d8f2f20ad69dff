//! Planning writes and publishing them.
//!
//! Invariant: a block becomes visible only in [`WriteTicket::complete`], after its data has been written (MAP-10). First
//! writes cover whole blocks and claim them when planned; writes that overlap a claim wait (MAP-11).

use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;

use smallvec::SmallVec;

use super::{Piece, Planned, Volume, VolumeCore, Writers, pieces, runs};
use crate::alloc::Grace;
use crate::container::Shared;
use crate::container::state::State;
use crate::error::Result;
use crate::layer::{Entry, Found, InLayer, Layer, PageLoad, resolve};
use crate::units::{BLOCK_LEN, BlockMask, ChunkNo, SlabNo};

/// Bytes to write from the request's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteSegment {
    /// Offset in the request's buffer.
    pub buffer_offset: u64,
    /// Byte offset in the container; a multiple of 512.
    pub disk_offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Where the rest of a block comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EdgeSource {
    /// It reads as zeros.
    Zero,
    /// These 4096 bytes of the container.
    Disk {
        /// Byte offset; a multiple of 4096.
        offset: u64,
    },
}

/// A block that is written in part and must be completed: fill 4096 bytes from `source`, lay `len` bytes of the buffer
/// over them, write them at `disk_offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// Where the rest comes from.
    pub source: EdgeSource,
    /// Byte offset in the container of the whole block.
    pub disk_offset: u64,
    /// Offset in the request's buffer.
    pub buffer_offset: u64,
    /// Where the buffer's bytes belong in the block.
    pub offset_in_block: usize,
    /// Bytes of the buffer.
    pub len: usize,
}

/// Blocks of one chunk that a ticket has claimed.
#[derive(Debug, Clone, Copy)]
struct Claim {
    chunk: ChunkNo,
    mask: BlockMask,
    what: Claimed,
}

/// What becomes of claimed blocks when the data has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claimed {
    /// They show, in the head.
    Own,
    /// They show, in the head above the view's.
    Above,
    /// They are absent from the head above the view's.
    GivesWay,
}

/// A planned write. Write all segments and edges, then call [`WriteTicket::complete`].
///
/// Dropping it gives the write up: blocks that were absent stay as they were; blocks that were overwritten in place may
/// hold old or new data in each sector.
#[derive(Debug)]
#[must_use = "a ticket that is dropped gives its write up"]
pub struct WriteTicket {
    segments: SmallVec<[WriteSegment; 4]>,
    edges: SmallVec<[Edge; 2]>,
    claims: SmallVec<[Claim; 2]>,
    shared: Arc<Shared>,
    core: Arc<VolumeCore>,
    /// Keeps the head unsealed.
    writers: Arc<Writers>,
    /// Keeps the slabs that are read or written from reuse.
    _grace: Arc<Grace>,
}

impl WriteTicket {
    /// What to write straight from the buffer.
    pub fn segments(&self) -> &[WriteSegment] {
        &self.segments
    }

    /// Blocks to complete first; at most two, through a write-through view four.
    pub fn edges(&self) -> &[Edge] {
        &self.edges
    }

    /// Publishes the write: all of it has been written.
    pub fn complete(mut self) {
        let claims = std::mem::take(&mut self.claims);
        if !claims.is_empty() {
            let mut state = self.shared.lock();
            let mut is_change = false;
            for claim in claims {
                let layer = self.layer_of(claim);
                if let InLayer::Entry(entry) = layer.lookup(claim.chunk) {
                    match claim.what {
                        Claimed::Own | Claimed::Above => {
                            is_change |= state.publish(layer, claim.chunk, &entry, claim.mask);
                        }
                        Claimed::GivesWay => {
                            state.give_way_claimed(layer, claim.chunk, &entry, claim.mask);
                            is_change = true;
                        }
                    }
                }
            }
            // An overwrite through a view changes no entry: its flush is a sync (JNL-7).
            if is_change {
                self.writers.touch(&self.core, &mut state);
            }
            state.wake_all();
            if state.dirty.journal_bytes() > state.ring.batch_limit() {
                drop(state);
                self.shared.call_for_work();
            }
        }
    }
}

impl WriteTicket {
    fn layer_of(&self, claim: Claim) -> &Layer {
        match (claim.what, self.writers.upper()) {
            (Claimed::Above | Claimed::GivesWay, Some(upper)) => upper,
            _ => &self.writers.layer,
        }
    }

    /// Claims blocks of which none is pending.
    pub(super) fn claim(&mut self, state: &mut State, entry: &Entry, chunk: ChunkNo, mask: BlockMask, what: Claimed) {
        state.claim(entry, mask);
        self.claims.push(Claim { chunk, mask, what });
    }

    /// Gives the claims up. Under the lock that they were made under, nobody can be waiting for them yet, and a waker
    /// that this very plan has registered must not be woken by its own failure.
    pub(super) fn roll_back(&mut self, state: &mut State) {
        for claim in std::mem::take(&mut self.claims) {
            let layer = self.layer_of(claim);
            if let InLayer::Entry(entry) = layer.lookup(claim.chunk) {
                state.abandon(layer, claim.chunk, &entry, claim.mask);
            }
        }
    }
}

impl Drop for WriteTicket {
    fn drop(&mut self) {
        if !self.claims.is_empty() {
            let shared = self.shared.clone();
            let mut state = shared.lock();
            self.roll_back(&mut state);
            state.wake_all();
        }
    }
}

/// Why a plan is not ready.
pub(super) enum NotReady {
    NeedPage(PageLoad),
    Busy,
    Failed(crate::Error),
}

impl From<PageLoad> for NotReady {
    fn from(load: PageLoad) -> Self {
        NotReady::NeedPage(load)
    }
}

impl NotReady {
    pub(super) fn into_planned<T>(self) -> Result<Planned<T>> {
        match self {
            NotReady::NeedPage(load) => Ok(Planned::NeedPage(load)),
            NotReady::Busy => Ok(Planned::Busy),
            NotReady::Failed(error) => Err(error),
        }
    }
}

impl Volume {
    /// Plans a write of `range` (bytes, multiples of 512, within the volume).
    ///
    /// Overwrites of blocks that the head has touch no metadata and take no lock, but for those through a write-through
    /// view (VIEW-4); first writes claim their blocks. A first write that covers whole blocks reads and copies nothing
    /// (VOL-3).
    ///
    /// Errors: [`crate::Error::NoSpace`], [`crate::Error::Failed`], [`crate::Error::ReadOnly`],
    /// [`crate::Error::BadRange`], [`crate::Error::VolumeGone`].
    pub fn plan_write(&self, range: Range<u64>, waker: &Waker) -> Result<Planned<WriteTicket>> {
        self.check_change(&range)?;
        let mut ticket = self.ticket();
        match ticket.overwrite(range.clone()) {
            Ok(true) => return Ok(Planned::Ready(ticket)),
            Ok(false) => {}
            Err(load) => return Ok(Planned::NeedPage(load)),
        }
        ticket.segments.clear();
        let mut state = self.shared.lock();
        // Again: a refresh may have changed the size meanwhile, and a failure has woken its waiters already.
        self.check_change(&range)?;
        // Under the lock the head cannot be switched: a first write is never planned against a frozen layer.
        ticket.writers = self.core.current.load_full();
        if state.is_throttled() {
            state.register(waker);
            drop(state);
            self.shared.call_for_work();
            return Ok(Planned::Busy);
        }
        for piece in pieces(range) {
            if let Err(why) = ticket.plan_piece(&mut state, piece, waker) {
                ticket.roll_back(&mut state);
                drop(state);
                if matches!(why, NotReady::Busy) {
                    self.shared.call_for_work();
                }
                drop(ticket);
                return why.into_planned();
            }
        }
        Ok(Planned::Ready(ticket))
    }

    pub(super) fn ticket(&self) -> WriteTicket {
        WriteTicket {
            segments: SmallVec::new(),
            edges: SmallVec::new(),
            claims: SmallVec::new(),
            _grace: self.shared.grace.load_full(),
            writers: self.core.current.load_full(),
            shared: self.shared.clone(),
            core: self.core.clone(),
        }
    }
}

impl WriteTicket {
    /// Plans overwrites in place, without a lock; false if some block is not in the head, or the head is a view's.
    fn overwrite(&mut self, range: Range<u64>) -> std::result::Result<bool, PageLoad> {
        if self.writers.upper().is_some() {
            return Ok(false);
        }
        for piece in pieces(range) {
            let view = match self.writers.layer.lookup(piece.chunk) {
                InLayer::Entry(entry) => entry.view(),
                InLayer::NeedPage(load) => return Err(load),
                InLayer::Absent | InLayer::AllZero => return Ok(false),
            };
            if piece.blocks() & !view.d != 0 {
                return Ok(false);
            }
            push(&mut self.segments, piece.buffer_offset, view.slab.offset() + piece.start, piece.end - piece.start);
        }
        Ok(true)
    }

    /// Plans one piece under the engine lock: overwrites what the head has, claims the rest.
    pub(super) fn plan_piece(
        &mut self,
        state: &mut State,
        piece: Piece,
        waker: &Waker,
    ) -> std::result::Result<(), NotReady> {
        let writers = self.writers.clone();
        let layer = &writers.layer;
        let blocks = piece.blocks();
        // A view's write needs to know what the head above has before it claims anything.
        writers.upper_has(piece.chunk)?;
        let Some(entry) = state.entry_for_change(layer, piece.chunk)? else {
            return Err(out_of_space(state, waker));
        };
        if writers.pending(piece.chunk) & blocks != 0 {
            state.register(waker);
            return Err(NotReady::Busy);
        }
        let view = entry.view();
        let first_writes = blocks & !view.d;
        let partial = first_writes & !piece.whole_blocks();
        let sources = self.edge_sources(layer, piece.chunk, partial, waker)?;
        let Some(slab) = state.slab_for(&entry) else {
            return Err(out_of_space(state, waker));
        };
        // The rest of a block above a view's head is taken from there: its overwrites are claimed, too.
        let claimed = if writers.upper().is_some() { blocks } else { first_writes };
        if claimed != 0 {
            self.claim(state, &entry, piece.chunk, claimed, Claimed::Own);
        }
        self.push_blocks(piece, slab, blocks & !partial);
        for (block, source) in sources {
            self.push_edge(piece, slab, block, source);
        }
        match writers.upper() {
            Some(upper) => self.plan_upper(state, upper, piece, waker),
            None => Ok(()),
        }
    }

    /// Plans to write the blocks `mask` of a piece, as far as it covers them, straight from the buffer.
    pub(super) fn push_blocks(&mut self, piece: Piece, slab: SlabNo, mask: BlockMask) {
        for (first, end) in runs(mask) {
            let start = piece.start.max(first * BLOCK_LEN);
            let end = piece.end.min(end * BLOCK_LEN);
            push(&mut self.segments, piece.buffer_offset + start - piece.start, slab.offset() + start, end - start);
        }
    }

    /// Plans to write a block that a piece covers in part.
    pub(super) fn push_edge(&mut self, piece: Piece, slab: SlabNo, block: u64, source: EdgeSource) {
        let base = block * BLOCK_LEN;
        let start = piece.start.max(base);
        let end = piece.end.min(base + BLOCK_LEN);
        self.edges.push(Edge {
            source,
            disk_offset: slab.offset() + base,
            buffer_offset: piece.buffer_offset + start - piece.start,
            offset_in_block: (start - base) as usize,
            len: (end - start) as usize,
        });
    }

    /// Where the blocks `partial` have their present contents.
    ///
    /// While a layer below still takes writes of before a snapshot, their sectors are not settled: wait (SNP-3). Those to
    /// a view's head claim their blocks instead (VIEW-4).
    fn edge_sources(
        &self,
        layer: &Arc<Layer>,
        chunk: ChunkNo,
        partial: BlockMask,
        waker: &Waker,
    ) -> std::result::Result<SmallVec<[(u64, EdgeSource); 2]>, NotReady> {
        let mut sources = SmallVec::new();
        if partial == 0 {
            return Ok(sources);
        }
        let mut below = layer.parent();
        while let Some(frozen) = below {
            if !frozen.is_drained() && !self.writers.is_lower(&frozen) {
                self.shared.signal.register(waker);
                if !frozen.is_drained() {
                    return Err(NotReady::Busy);
                }
            }
            below = frozen.parent();
        }
        resolve(layer, chunk, partial, |mask, place| {
            for (first, end) in runs(mask) {
                sources.extend((first..end).map(|block| {
                    let source = match place {
                        Found::Zero => EdgeSource::Zero,
                        Found::Data(slab) => EdgeSource::Disk { offset: slab.offset() + block * BLOCK_LEN },
                    };
                    (block, source)
                }));
            }
        })?;
        Ok(sources)
    }
}

/// No slab is free: waits for the file to grow, and for backups to be ended (BAK-24), or fails if nothing is left to come.
pub(super) fn out_of_space(state: &mut State, waker: &Waker) -> NotReady {
    if state.is_full() && !state.holdings.are_in_the_way() {
        return NotReady::Failed(state.no_space());
    }
    state.register(waker);
    NotReady::Busy
}

fn push(segments: &mut SmallVec<[WriteSegment; 4]>, buffer_offset: u64, disk_offset: u64, len: u64) {
    if let Some(last) = segments.last_mut()
        && last.buffer_offset + last.len == buffer_offset
        && last.disk_offset + last.len == disk_offset
    {
        last.len += len;
        return;
    }
    segments.push(WriteSegment { buffer_offset, disk_offset, len });
}
