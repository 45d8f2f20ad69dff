//! What heads hide: slabs of frozen layers that nobody can come to any more.
//!
//! Role: knows which frozen layers one head alone stands on, and what of them it hides. Invariant (LAY-72): a layer with which
//! that is so stays so until the head is frozen or goes, and a head's blocks stay; what comes to be hidden after a layer was
//! looked through is noted as it does, so that it is not looked through again. Does not: free anything (see
//! [`super::hidden_steps`]).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::hidden_steps::{Hiding, Pages};
use super::merge::is_frozen;
use super::state::State;
use crate::layer::{InLayer, Layer, PageLoad};
use crate::layout::slot::{LayerKind, LayerRecord, Slot};
use crate::units::{BlockMask, ChunkNo, ENTRIES_PER_PAGE, LayerId, PAGES_PER_SLAB};

/// Catalog slots looked at per hold of the engine lock.
const SLOTS_PER_HOLD: usize = 1024;
/// Heads that have come to hide more, looked at per hold.
const HEADS_PER_HOLD: usize = 64;
/// Pages of a layer that are looked at again at once.
const PAGES_AT_ONCE: usize = 4096;

/// What is known of heads that hide what is below them.
#[derive(Debug)]
pub(crate) struct Hidden {
    /// Heads whose parents have been, or are being, looked through.
    watches: HashMap<LayerId, Watch>,
    /// Heads that have come to hide more.
    due: BTreeSet<LayerId>,
    /// The one of them that had its turn last.
    last: LayerId,
    /// It is the turn of those that nobody has looked through.
    is_turn_of_others: bool,
    /// The tree of layers has changed since a look at all heads began.
    has_changed: bool,
    /// The slot at which the look at all heads goes on.
    next_slot: Option<usize>,
    /// The look has met a layer that somebody still writes to.
    has_met_writes: bool,
    /// Layers that copies on their way are to stand on, and how many do.
    awaited: HashMap<LayerId, usize>,
}

/// A head, and what it has come to hide since its parent was looked through.
#[derive(Debug)]
struct Watch {
    parent: Arc<Layer>,
    /// Pages of the parent, counted over its tables.
    pages: BTreeSet<u32>,
}

impl Hidden {
    pub(crate) fn new() -> Self {
        Self {
            watches: HashMap::new(),
            due: BTreeSet::new(),
            last: LayerId(0),
            is_turn_of_others: false,
            has_changed: true,
            next_slot: None,
            has_met_writes: false,
            awaited: HashMap::new(),
        }
    }

    pub(crate) fn tree_has_changed(&mut self) {
        self.has_changed = true;
    }

    /// Forgets a layer that is no head any more, or has another parent.
    pub(crate) fn forget(&mut self, head: LayerId) {
        self.watches.remove(&head);
        self.due.remove(&head);
    }

    /// A copy is on its way that is to stand on the layer.
    pub(super) fn keep_for_copy(&mut self, layer: LayerId) {
        *self.awaited.entry(layer).or_default() += 1;
    }

    /// The copy stands on the layer, or never will.
    pub(super) fn copy_is_over(&mut self, layer: LayerId) {
        if let Some(count) = self.awaited.get_mut(&layer) {
            *count -= 1;
            if *count == 0 {
                self.awaited.remove(&layer);
            }
        }
    }
}

/// What a head does to a chunk of its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    /// The parent has nothing there.
    Empty,
    /// Something of it shows.
    Shows,
    /// All that it has is hidden: zeros.
    HidesZeros,
    /// All that it has, these blocks, is hidden, and it has data.
    HidesData(BlockMask),
}

/// Blocks that a layer has, as data or as zeros.
pub(super) fn blocks_of(layer: &Layer, chunk: ChunkNo) -> std::result::Result<BlockMask, PageLoad> {
    match layer.lookup(chunk) {
        InLayer::Absent => Ok(0),
        InLayer::AllZero => Ok(!0),
        InLayer::Entry(entry) => {
            let view = entry.view();
            Ok(view.d | view.z)
        }
        InLayer::NeedPage(load) => Err(load),
    }
}

/// What the head does to a chunk of its parent. The head's blocks stay, so that what is hidden stays so.
pub(super) fn look(parent: &Layer, head: &Layer, chunk: ChunkNo) -> std::result::Result<Chunk, PageLoad> {
    let hides = blocks_of(head, chunk)? | !head.link().mask(chunk);
    let (has, has_data) = match parent.lookup(chunk) {
        InLayer::Absent => (0, false),
        InLayer::AllZero => (!0, false),
        InLayer::Entry(entry) => {
            let view = entry.view();
            (view.d | view.z, view.d != 0)
        }
        InLayer::NeedPage(load) => return Err(load),
    };
    Ok(match has & !hides {
        _ if has == 0 => Chunk::Empty,
        0 if has_data => Chunk::HidesData(has),
        0 => Chunk::HidesZeros,
        _ => Chunk::Shows,
    })
}

/// What comes next.
pub(super) enum Next {
    Hiding(Hiding),
    /// There are more heads to look at.
    More,
    /// Writes of before a freeze have to end first.
    Wait,
    Nothing,
}

impl Next {
    /// What comes next if this is nothing to do at once.
    fn or_else(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Next::Hiding(_) | Next::More => self,
            Next::Wait | Next::Nothing => match other() {
                Next::Nothing => self,
                next => next,
            },
        }
    }
}

impl State {
    /// Whether a head is all that stands on a frozen layer, and all that will.
    fn stands_alone(&self, parent: &Layer, head: &Layer) -> bool {
        let is_head = |record: &LayerRecord| record.kind == LayerKind::Head && record.parent == Some(parent.id);
        self.layer_slots.contains_key(&head.id)
            && is_head(self.layer_record(head.id))
            && self.child_count(parent.id) == 1
            // A view's head shows elsewhere, too.
            && self.child_count(head.id) == 0
            && self.is_frozen_kind(parent.id)
            && !self.is_being_filled(parent.id)
            && !self.is_pinned(parent.id)
            // Its entries in memory still name slabs that are others' by now (LAY-71).
            && !parent.has_moved.load(Ordering::Relaxed)
            && !self.hidden.awaited.contains_key(&parent.id)
            && !self.fills.values().any(|fill| fill.base == Some(parent.id))
    }

    /// Whether a look goes on: nothing has come into the parent since it began.
    pub(super) fn goes_on(&self, hiding: &Hiding) -> bool {
        let watch = self.hidden.watches.get(&hiding.head.id);
        watch.is_some_and(|watch| watch.parent.id == hiding.parent.id)
            && self.stands_alone(&hiding.parent, &hiding.head)
            && is_frozen(self, &hiding.parent)
    }

    /// Something has come into a layer: a head above it may hide that, once it is alone there.
    pub(super) fn look_again_over(&mut self, layer: LayerId) {
        for above in self.children.get(&layer).into_iter().flatten() {
            self.hidden.forget(*above);
        }
        self.tree_has_changed();
    }

    /// Notes that a layer has more of a chunk than before: if it is a head that hides all of the chunk now, its parent's slab
    /// is to be freed (LAY-72).
    pub(super) fn note_gain(&mut self, layer: &Layer, chunk: ChunkNo) {
        let Some(watch) = self.hidden.watches.get_mut(&layer.id) else { return };
        let slabs = self.layer_slabs.get(&watch.parent.id).copied().unwrap_or(0);
        let is_of_use = match look(&watch.parent, layer, chunk) {
            Ok(Chunk::HidesData(_)) | Err(_) => true,
            // Perhaps nothing of a layer without data shows any more.
            Ok(Chunk::HidesZeros) => slabs == watch.parent.table_count(),
            Ok(Chunk::Empty | Chunk::Shows) => false,
        };
        if is_of_use {
            watch.pages.insert(chunk.0 / ENTRIES_PER_PAGE as u32);
            self.hidden.due.insert(layer.id);
            self.space.chances += 1;
        }
    }

    /// As [`State::note_gain`], of a whole table.
    pub(super) fn note_gain_of_table(&mut self, layer: &Layer, index: u32) {
        let Some(watch) = self.hidden.watches.get_mut(&layer.id) else { return };
        let Some(table) = watch.parent.table(index) else { return };
        let pages = (0..PAGES_PER_SLAB as u32).filter(|page| table.is_initialised(*page as usize));
        watch.pages.extend(pages.map(|page| index * PAGES_PER_SLAB as u32 + page));
        self.hidden.due.insert(layer.id);
        self.space.chances += 1;
    }

    /// The next layer to look through: by turns one of which more has come to be hidden, and one that nobody has looked
    /// through. None below a head that is `busy`.
    pub(super) fn next_hiding(&mut self, damaged: &HashSet<LayerId>, busy: impl Fn(LayerId) -> bool) -> Next {
        self.hidden.is_turn_of_others ^= true;
        if self.hidden.is_turn_of_others {
            self.next_of_others(damaged).or_else(|| self.next_due(busy))
        } else {
            self.next_due(busy).or_else(|| self.next_of_others(damaged))
        }
    }

    /// The next head that has come to hide more: each has its turn.
    fn next_due(&mut self, busy: impl Fn(LayerId) -> bool) -> Next {
        for _ in 0..HEADS_PER_HOLD {
            let after = self.hidden.due.range(LayerId(self.hidden.last.0 + 1)..);
            let Some(head) = after.chain(&self.hidden.due).copied().find(|head| !busy(*head)) else {
                return Next::Nothing;
            };
            self.hidden.last = head;
            self.hidden.due.remove(&head);
            let Some(watch) = self.hidden.watches.get_mut(&head) else { continue };
            let rest = watch.pages.iter().nth(PAGES_AT_ONCE).copied().map(|first| watch.pages.split_off(&first));
            let pages = std::mem::replace(&mut watch.pages, rest.unwrap_or_default());
            let (parent, is_more) = (watch.parent.clone(), !watch.pages.is_empty());
            if let Some(layer) = self.layers.get(&head).filter(|head| self.stands_alone(&parent, head)).cloned() {
                if is_more {
                    self.hidden.due.insert(head);
                }
                let count = pages.len();
                return Next::Hiding(Hiding::new(parent, layer, Pages::Some(pages.into_iter().collect(), count)));
            }
            // If that changes, all of it is looked through again.
            self.hidden.forget(head);
        }
        Next::More
    }

    /// The next head, of all, below which nobody has looked.
    fn next_of_others(&mut self, damaged: &HashSet<LayerId>) -> Next {
        if self.hidden.next_slot.is_none() && std::mem::take(&mut self.hidden.has_changed) {
            (self.hidden.next_slot, self.hidden.has_met_writes) = (Some(0), false);
        }
        let Some(first) = self.hidden.next_slot else { return Next::Nothing };
        for index in first..first + SLOTS_PER_HOLD {
            let Some(slot) = self.slots().get(index) else {
                self.hidden.next_slot = None;
                // The end of a write is no change of the tree: the next look finds it.
                self.hidden.has_changed |= self.hidden.has_met_writes;
                return if self.hidden.has_met_writes { Next::Wait } else { Next::Nothing };
            };
            let Slot::Layer(record) = slot else { continue };
            let (LayerKind::Head, Some(parent)) = (record.kind, record.parent) else { continue };
            let head = record.id;
            let watched = self.hidden.watches.get(&head).is_some_and(|watch| watch.parent.id == parent);
            let Some((parent, head)) = self.layers.get(&parent).zip(self.layers.get(&head)) else { continue };
            if !self.stands_alone(parent, head) {
                // While it is not, nobody sees to it that all that comes to be hidden is noted.
                let head = head.id;
                self.hidden.forget(head);
                continue;
            }
            if watched || damaged.contains(&parent.id) {
                continue;
            }
            if !is_frozen(self, parent) {
                self.hidden.has_met_writes = true;
                continue;
            }
            let (parent, head) = (parent.clone(), head.clone());
            // From here on what comes to be hidden is noted.
            self.hidden.watches.insert(head.id, Watch { parent: parent.clone(), pages: BTreeSet::new() });
            // An untouched head hides nothing, and a copy of it gets its parent (SNP-4), which therefore stays.
            if !head.is_untouched() {
                self.hidden.next_slot = Some(index + 1);
                return Next::Hiding(Hiding::new(parent, head, Pages::From(0)));
            }
        }
        self.hidden.next_slot = Some(first + SLOTS_PER_HOLD);
        Next::More
    }
}
