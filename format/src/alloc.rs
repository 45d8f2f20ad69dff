//! The slab allocator: descriptors, the set of slabs in use, and freed slabs that may not be reused yet.
//!
//! Invariant: a slab is handed out only if its descriptor is free, the record that freed it is durable, and every
//! request planned before it was unlinked has ended (JNL-6). Recycled slabs are preferred to fresh ones.
//! Does not: perform I/O or decide what a slab is for.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use bitvec::vec::BitVec;

use crate::layout::descriptor::Descriptor;
use crate::units::{SLABS_PER_GROUP, SlabNo};

/// Index within each group of the slab that holds the group's descriptors (CON-7).
pub(crate) const DESCRIPTOR_SLAB: u64 = 2;

/// Token that every request holds while it is under way: slabs unlinked while a token was current are reused only when
/// the token, and all older ones, are gone.
#[derive(Debug, Default)]
pub(crate) struct Grace;

#[derive(Debug)]
struct Limbo {
    slab: SlabNo,
    /// Batch that makes the freeing durable.
    batch: u64,
    /// Grace period during which the slab was unlinked.
    period: u64,
    was_table: bool,
}

/// What a slab held until it was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// Chunk entries.
    Table,
    /// Guest data.
    Data,
}

#[derive(Debug)]
pub(crate) struct Allocator {
    descriptors: Vec<Descriptor>,
    used: BitVec,
    free: u64,
    /// No slab below this index is free.
    hint: usize,
    limbo: VecDeque<Limbo>,
    /// Tables that have been through limbo while a check reads homes; `None` if none does (CHK-25).
    kept: Option<Vec<SlabNo>>,
    /// Number of the current grace period.
    period: u64,
    /// Ended periods, oldest first, that requests may still hold.
    past: VecDeque<(u64, Weak<Grace>)>,
}

impl Allocator {
    pub(crate) fn new(descriptors: Vec<Descriptor>) -> Self {
        let used: BitVec = descriptors.iter().map(|d| *d != Descriptor::Free).collect();
        let free = used.count_zeros() as u64;
        Self { descriptors, used, free, hint: 0, limbo: VecDeque::new(), kept: None, period: 0, past: VecDeque::new() }
    }

    pub(crate) fn slab_count(&self) -> u64 {
        self.descriptors.len() as u64
    }

    pub(crate) fn free_count(&self) -> u64 {
        self.free
    }

    pub(crate) fn limbo_count(&self) -> u64 {
        self.limbo.len() as u64
    }

    /// Adds free slabs up to `count` in all; returns the descriptor slabs of new groups.
    pub(crate) fn grow(&mut self, count: u64) -> Vec<SlabNo> {
        let mut reserved = Vec::new();
        for index in self.slab_count()..count {
            let is_descriptors = index % SLABS_PER_GROUP == DESCRIPTOR_SLAB;
            self.descriptors.push(if is_descriptors { Descriptor::Reserved } else { Descriptor::Free });
            self.used.push(is_descriptors);
            if is_descriptors {
                reserved.push(SlabNo(index));
            } else {
                self.free += 1;
            }
        }
        reserved
    }

    pub(crate) fn descriptor(&self, slab: SlabNo) -> Option<Descriptor> {
        self.descriptors.get(slab.0 as usize).copied()
    }

    pub(crate) fn descriptors(&self) -> &[Descriptor] {
        &self.descriptors
    }

    /// Sets the descriptor; the slab must exist and be in use.
    pub(crate) fn describe(&mut self, slab: SlabNo, descriptor: Descriptor) {
        debug_assert!(self.used[slab.0 as usize]);
        self.descriptors[slab.0 as usize] = descriptor;
    }

    /// Takes a free slab; its descriptor stays free until the owner publishes it.
    pub(crate) fn take(&mut self) -> Option<SlabNo> {
        if self.free == 0 {
            return None;
        }
        let index = self.hint + self.used[self.hint..].first_zero()?;
        self.used.set(index, true);
        self.free -= 1;
        self.hint = index + 1;
        Some(SlabNo(index as u64))
    }

    /// Gives back a slab whose descriptor is free: reusable once `batch` is durable and today's requests have ended.
    pub(crate) fn release(&mut self, slab: SlabNo, batch: u64, held: Held) {
        debug_assert_eq!(self.descriptors[slab.0 as usize], Descriptor::Free);
        debug_assert!(self.used[slab.0 as usize]);
        self.limbo.push_back(Limbo { slab, batch, period: self.period, was_table: held == Held::Table });
    }

    /// Gives back a slab that was taken and that no entry ever showed: nobody else can know it.
    pub(crate) fn untake(&mut self, slab: SlabNo) {
        let index = slab.0 as usize;
        debug_assert_eq!(self.descriptors[index], Descriptor::Free);
        debug_assert!(self.used[index]);
        self.used.set(index, false);
        self.hint = self.hint.min(index);
        self.free += 1;
    }

    /// Whether a new grace period would let slabs move on.
    pub(crate) fn wants_new_period(&self) -> bool {
        self.limbo.back().is_some_and(|last| last.period == self.period)
    }

    /// Ends the current grace period, whose token was `ended`.
    pub(crate) fn end_period(&mut self, ended: &Arc<Grace>) {
        self.past.push_back((self.period, Arc::downgrade(ended)));
        self.period += 1;
    }

    /// The number of the current grace period.
    pub(crate) fn period(&self) -> u64 {
        self.period
    }

    /// Whether all requests of `period`, and of those before it, have ended.
    pub(crate) fn is_over(&mut self, period: u64) -> bool {
        self.oldest_held() > period
    }

    /// The oldest period that a request may still hold, or the current one.
    fn oldest_held(&mut self) -> u64 {
        while self.past.front().is_some_and(|(_, token)| token.strong_count() == 0) {
            self.past.pop_front();
        }
        self.past.front().map_or(self.period, |(period, _)| *period)
    }

    /// Makes slabs free that have been through limbo; `durable` is the newest durable batch.
    pub(crate) fn reap(&mut self, durable: u64) -> u64 {
        let oldest_held = self.oldest_held();
        let mut freed = 0;
        while let Some(first) = self.limbo.front() {
            if first.period >= oldest_held || first.batch > durable {
                break;
            }
            let slab = first.slab;
            let kept = self.kept.as_mut().filter(|_| first.was_table);
            self.limbo.pop_front();
            match kept {
                Some(kept) => kept.push(slab),
                None => {
                    self.set_free(slab);
                    freed += 1;
                }
            }
        }
        freed
    }

    fn set_free(&mut self, slab: SlabNo) {
        let index = slab.0 as usize;
        self.used.set(index, false);
        self.hint = self.hint.min(index);
        self.free += 1;
    }

    /// From now on tables that are freed are not reused, so that a check can go on reading them (CHK-25).
    pub(crate) fn keep_tables(&mut self) {
        self.kept.get_or_insert_default();
    }

    /// Ends [`Allocator::keep_tables`].
    pub(crate) fn release_tables(&mut self) {
        for slab in self.kept.take().unwrap_or_default() {
            self.set_free(slab);
        }
    }
}
