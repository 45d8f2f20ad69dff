//! What requests do in the two heads of a write-through view.
//!
//! Invariant: a write through the view claims its blocks in its own head, the lower one, whether that has them or not, and
//! those that the upper head has there too, and both change under one hold of the engine lock (VIEW-3, VIEW-4). Whoever
//! plans under that lock waits for blocks that are claimed in either head. Does not: begin or end views.

use std::sync::Arc;
use std::task::Waker;

use super::write::{Claimed, NotReady, out_of_space};
use super::{EdgeSource, Piece, VolumeCore, WriteTicket, Writers, runs};
use crate::container::Signal;
use crate::container::state::State;
use crate::layer::{InLayer, Layer, PageLoad};
use crate::units::{BlockMask, ChunkNo};

/// What a head is in a write-through view.
#[derive(Debug)]
pub(crate) enum Role {
    /// It is in none.
    Alone,
    /// The head of the source: its parent is the view's head.
    Upper {
        /// The view's head.
        lower: Arc<Layer>,
    },
    /// The head of the view.
    Lower {
        /// A write through the view is one to the source's head, too: neither is sealed before it has ended.
        upper: Arc<Writers>,
    },
}

impl Role {
    /// The writers of the two heads of a view: upper, lower.
    pub(crate) fn pair(upper: Arc<Layer>, lower: Arc<Layer>, signal: &Arc<Signal>) -> [Arc<Writers>; 2] {
        let upper = Writers::with_role(upper, Role::Upper { lower: lower.clone() }, signal.clone());
        let lower = Writers::with_role(lower, Role::Lower { upper: upper.clone() }, signal.clone());
        [upper, lower]
    }
}

/// Blocks of a chunk that first writes under way have claimed; a page with claims stays in memory.
fn pending(head: &Layer, chunk: ChunkNo) -> BlockMask {
    match head.lookup(chunk) {
        InLayer::Entry(entry) => entry.pending(),
        InLayer::Absent | InLayer::AllZero | InLayer::NeedPage(_) => 0,
    }
}

impl Writers {
    /// The head above, if this is a view's.
    pub(super) fn upper(&self) -> Option<&Layer> {
        match &self.role {
            Role::Lower { upper } => Some(&upper.layer),
            Role::Alone | Role::Upper { .. } => None,
        }
    }

    /// Whether `layer` is the view's head below this one: it is always written to.
    pub(super) fn is_lower(&self, layer: &Layer) -> bool {
        matches!(&self.role, Role::Upper { lower } if lower.id == layer.id)
    }

    /// Blocks of a chunk that are claimed in this head or in the other one of its view (VIEW-4).
    pub(super) fn pending(&self, chunk: ChunkNo) -> BlockMask {
        let beside = match &self.role {
            Role::Alone => 0,
            Role::Upper { lower } => pending(lower, chunk),
            Role::Lower { upper } => pending(&upper.layer, chunk),
        };
        pending(&self.layer, chunk) | beside
    }

    /// Notes that the open batch holds a change made through `core` in this head, for all volumes that show it (VIEW-5).
    pub(super) fn touch(&self, core: &VolumeCore, state: &mut State) {
        core.touch(state);
        let source = self.upper().and_then(|upper| state.heads.get(&upper.id));
        if let Some(source) = source.and_then(|source| state.volumes.get(source)) {
            source.touch(state);
        }
        if state.heads.get(&self.layer.id) != Some(&core.id) {
            state.batches.late = state.batches.open;
        }
    }

    /// Blocks of a chunk that the head above has as data: its zeros need not give way to zeros (VIEW-3).
    pub(super) fn upper_data(&self, chunk: ChunkNo) -> Result<BlockMask, PageLoad> {
        match self.upper().map(|upper| upper.lookup(chunk)) {
            None | Some(InLayer::Absent | InLayer::AllZero) => Ok(0),
            Some(InLayer::Entry(entry)) => Ok(entry.view().d),
            Some(InLayer::NeedPage(load)) => Err(load),
        }
    }

    /// Blocks of a chunk that the head above has, as data or as zeros.
    pub(super) fn upper_has(&self, chunk: ChunkNo) -> Result<BlockMask, PageLoad> {
        match self.upper().map(|upper| upper.lookup(chunk)) {
            None | Some(InLayer::Absent) => Ok(0),
            Some(InLayer::AllZero) => Ok(!0),
            Some(InLayer::Entry(entry)) => Ok(entry.view().d | entry.view().z),
            Some(InLayer::NeedPage(load)) => Err(load),
        }
    }
}

impl WriteTicket {
    /// Plans what a write through a view does in the head above: whole blocks that this has give way to it, and blocks
    /// that are written in part are written there, too (VIEW-3). Nothing of it is pending.
    pub(super) fn plan_upper(
        &mut self,
        state: &mut State,
        upper: &Layer,
        piece: Piece,
        waker: &Waker,
    ) -> Result<(), NotReady> {
        if matches!(upper.lookup(piece.chunk), InLayer::Absent) {
            return Ok(());
        }
        let Some(entry) = state.entry_for_change(upper, piece.chunk)? else {
            return Err(out_of_space(state, waker));
        };
        let view = entry.view();
        let has = piece.blocks() & (view.d | view.z);
        let parts = has & !piece.whole_blocks();
        if parts != 0 {
            let Some(slab) = state.slab_for(&entry) else {
                return Err(out_of_space(state, waker));
            };
            self.claim(state, &entry, piece.chunk, parts, Claimed::Above);
            self.push_blocks(piece, slab, parts & view.d);
            for (first, end) in runs(parts & !view.d) {
                (first..end).for_each(|block| self.push_edge(piece, slab, block, EdgeSource::Zero));
            }
        }
        let whole = has & piece.whole_blocks();
        if whole != 0 {
            self.claim(state, &entry, piece.chunk, whole, Claimed::GivesWay);
        }
        Ok(())
    }
}
