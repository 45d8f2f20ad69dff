//! Steps that free what heads hide.
//!
//! Invariant (LAY-72, LAY-73): a chunk is cleared only when every request that may not know yet what the head has is gone, and
//! a layer is unlinked only when all of it was seen to be hidden. Nobody else changes entries of layers meanwhile: the caller
//! holds `homes`. Does not: move data, bring anything into heads, or hold the engine lock while it looks.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Container;
use super::hidden::{Chunk, Next, blocks_of, look};
use super::maintain::{Background, Found};
use super::state::State;
use crate::error::{Error, Result};
use crate::layer::{InLayer, Layer, PageLoad, first_chunk};
use crate::units::{BlockMask, ChunkNo, ENTRIES_PER_PAGE, PAGES_PER_SLAB, SLAB_LEN};

/// Table pages looked through per step.
const PAGES_PER_STEP: usize = 8;
/// Chunks that wait together for the requests of before.
const CHUNKS_AT_ONCE: usize = 4096;
/// Looks that may wait at once for requests of before.
const LOOKS_AT_ONCE: usize = 64;
/// Chunks cleared per hold of the engine lock, and such holds per step.
const CHUNKS_PER_HOLD: usize = 256;
const HOLDS_PER_STEP: usize = 4;
/// A look through one layer, its parent, for what a head hides.
#[derive(Debug)]
pub(super) struct Hiding {
    pub(super) parent: Arc<Layer>,
    pub(super) head: Arc<Layer>,
    pages: Pages,
    /// Chunks that the head was seen to hide, and what the parent had of them.
    found: Vec<(ChunkNo, BlockMask)>,
    /// Requests of this grace period and before may not know yet what the head has.
    period: Option<u64>,
    /// Something of the parent shows.
    shows: bool,
    /// The parent has no data: only whether something of it shows is of interest.
    is_for_unlinking: bool,
}

/// Pages of the parent to look at.
#[derive(Debug)]
pub(super) enum Pages {
    /// All from this one on.
    From(u32),
    /// These, and how many there were.
    Some(Vec<u32>, usize),
}

impl Hiding {
    pub(super) fn new(parent: Arc<Layer>, head: Arc<Layer>, pages: Pages) -> Self {
        Self { parent, head, pages, found: Vec::new(), period: None, shows: false, is_for_unlinking: false }
    }

    /// Chunks that have been passed, and chunks to pass.
    pub(super) fn chunks(&self) -> (u64, u64) {
        match &self.pages {
            Pages::From(next) => (u64::from(*next) * ENTRIES_PER_PAGE, self.parent.size.div_ceil(SLAB_LEN)),
            Pages::Some(left, all) => ((all - left.len()) as u64 * ENTRIES_PER_PAGE, *all as u64 * ENTRIES_PER_PAGE),
        }
    }

    /// The next page that the parent has, or that its table has as zeros.
    fn next_page(&mut self) -> Option<u32> {
        let next = match &mut self.pages {
            Pages::Some(left, _) => return left.pop(),
            Pages::From(next) => next,
        };
        let per_table = PAGES_PER_SLAB as u32;
        while *next < self.parent.table_limit() * per_table {
            let Some(table) = self.parent.table(*next / per_table) else {
                *next = (*next / per_table + 1) * per_table;
                continue;
            };
            let page = *next;
            *next += 1;
            if table.is_initialised((page % per_table) as usize) || table.zero.load(Ordering::Acquire) {
                return Some(page);
            }
        }
        None
    }
}

/// What became of a step.
enum Step {
    More,
    /// Requests of before have to end.
    Wait,
    Ended,
}

impl Container {
    /// Does one step of freeing what heads hide (LAY-72). Looks that wait keep no other head waiting.
    pub(super) fn free_hidden(&self, background: &mut Background) -> Result<Found> {
        for _ in 0..background.hidings.len() {
            let Some(hiding) = background.hidings.pop_front() else { break };
            if self.go_on_hiding(hiding, background)? == Found::Work {
                return Ok(Found::Work);
            }
        }
        let waits = |head| background.hidings.iter().any(|hiding| hiding.head.id == head);
        let next = if background.hidings.len() < LOOKS_AT_ONCE {
            self.shared.lock().next_hiding(&background.unmergeable, waits)
        } else {
            Next::Wait
        };
        match next {
            Next::Hiding(hiding) => self.go_on_hiding(hiding, background),
            Next::More => Ok(Found::Work),
            Next::Wait => Ok(Found::Wait),
            Next::Nothing if background.hidings.is_empty() => Ok(Found::Nothing),
            Next::Nothing => Ok(Found::Wait),
        }
    }

    /// Does one step of a look, and keeps it if it is not over.
    fn go_on_hiding(&self, mut hiding: Hiding, background: &mut Background) -> Result<Found> {
        let gets_more = background.merge.as_ref().is_some_and(|merge| merge.child() == hiding.parent.id);
        match self.hiding_step(&mut hiding, gets_more) {
            Ok(Step::More) => background.hidings.push_front(hiding),
            Ok(Step::Wait) => {
                background.hidings.push_back(hiding);
                return Ok(Found::Wait);
            }
            Ok(Step::Ended) => {}
            Err(failed @ Error::Failed { .. }) => return Err(failed),
            Err(error) => {
                // One bad page must stop neither others' work nor whoever does it.
                log::warn!("what layer {} hides of layer {} is not freed: {error}", hiding.head.id, hiding.parent.id);
                background.unmergeable.insert(hiding.parent.id);
                self.shared.lock().hidden.forget(hiding.head.id);
            }
        }
        Ok(Found::Work)
    }

    fn hiding_step(&self, hiding: &mut Hiding, gets_more: bool) -> Result<Step> {
        {
            let mut state = self.shared.lock();
            if !state.goes_on(hiding) {
                state.hidden.forget(hiding.head.id);
                return Ok(Step::Ended);
            }
            if hiding.period.is_some_and(|period| !state.alloc.is_over(period)) {
                return Ok(Step::Wait);
            }
        }
        if hiding.period.is_some() { self.clear_found(hiding) } else { self.look_for_hidden(hiding, gets_more) }
    }

    /// Looks at some pages; when enough has been found, or there are no more, begins to wait for requests of before.
    fn look_for_hidden(&self, hiding: &mut Hiding, gets_more: bool) -> Result<Step> {
        for _ in 0..PAGES_PER_STEP {
            if hiding.is_for_unlinking && hiding.shows {
                return Ok(Step::Ended);
            }
            if hiding.found.len() < CHUNKS_AT_ONCE {
                let Some(page) = hiding.next_page() else { return Ok(self.all_is_looked_at(hiding, gets_more)) };
                if !self.look_at_page(hiding, page)? {
                    self.shared.lock().hidden.forget(hiding.head.id);
                    return Ok(Step::Ended);
                }
            } else {
                self.await_readers(hiding);
                break;
            }
        }
        Ok(Step::More)
    }

    /// Whoever looked at the head before it had what it hides would go on below a chunk that is cleared, and find what was
    /// there before (LAY-72).
    fn await_readers(&self, hiding: &mut Hiding) {
        let mut state = self.shared.lock();
        hiding.period = Some(self.shared.end_period(&mut state.alloc));
    }

    /// Looks at the chunks of a page; false if the head did not stand alone any more, so that not all have been looked at.
    fn look_at_page(&self, hiding: &mut Hiding, page: u32) -> Result<bool> {
        let (table, page) = (page / PAGES_PER_SLAB as u32, page % PAGES_PER_SLAB as u32);
        let first = first_chunk(table, page as u8);
        let chunks = hiding.parent.size.div_ceil(SLAB_LEN).min(u64::from(first.0) + ENTRIES_PER_PAGE) as u32;
        let head = hiding.head.clone();
        let hides_some = |chunk| Ok(blocks_of(&head, chunk)? | !head.link().mask(chunk) != 0);
        let mut hides_any = false;
        for chunk in (first.0..chunks).map(ChunkNo) {
            let Some(hides) = self.loaded(hiding, || hides_some(chunk))? else { return Ok(false) };
            hides_any |= hides;
        }
        // Otherwise the parent's page need only be looked at for whether anything of it shows.
        if !hides_any && (hiding.shows || matches!(hiding.pages, Pages::Some(..))) {
            return Ok(true);
        }
        for chunk in (first.0..chunks).map(ChunkNo) {
            match self.loaded(hiding, || look(&hiding.parent, &hiding.head, chunk))? {
                Some(Chunk::HidesData(has)) => hiding.found.push((chunk, has)),
                Some(Chunk::Shows) => hiding.shows = true,
                Some(Chunk::Empty | Chunk::HidesZeros) => {}
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// What a look finds once the pages that it needs are in memory; nothing if the head does not stand alone any more.
    fn loaded<T>(&self, hiding: &Hiding, look: impl Fn() -> std::result::Result<T, PageLoad>) -> Result<Option<T>> {
        loop {
            match look() {
                Ok(found) => return Ok(Some(found)),
                Err(load) => self.load_page(load)?,
            }
            // A layer doomed meanwhile takes no page: asking again would never end.
            if !self.shared.lock().goes_on(hiding) {
                return Ok(None);
            }
        }
    }

    /// All pages have been looked at: takes a layer of which nothing shows out of the chain (LAY-73), or clears what was
    /// found. `gets_more`: a merge brings blocks into the layer.
    fn all_is_looked_at(&self, hiding: &mut Hiding, gets_more: bool) -> Step {
        let is_all = matches!(hiding.pages, Pages::From(_));
        let mut state = self.shared.lock();
        let state = &mut *state;
        if !state.goes_on(hiding) {
            state.hidden.forget(hiding.head.id);
            return Step::Ended;
        }
        if is_all && !hiding.shows && !gets_more {
            self.shared.unlink_parent(state, &hiding.parent, &hiding.head);
            return Step::Ended;
        }
        if !hiding.found.is_empty() {
            hiding.period = Some(self.shared.end_period(&mut state.alloc));
            return Step::More;
        }
        // Of a layer without data perhaps nothing shows at all.
        if !is_all && state.slabs_of(hiding.parent.id) == hiding.parent.table_count() {
            (hiding.pages, hiding.shows, hiding.is_for_unlinking) = (Pages::From(0), false, true);
            return Step::More;
        }
        Step::Ended
    }

    /// Clears what was found, as far as it is still hidden and a batch has room.
    fn clear_found(&self, hiding: &mut Hiding) -> Result<Step> {
        for _ in 0..HOLDS_PER_STEP {
            let missing = {
                let mut state = self.shared.lock();
                if !state.goes_on(hiding) {
                    state.hidden.forget(hiding.head.id);
                    return Ok(Step::Ended);
                }
                clear_some(&mut state, hiding)
            };
            if let Err(load) = missing {
                self.load_page(load)?;
            }
            if hiding.found.is_empty() {
                hiding.period = None;
                break;
            }
        }
        Ok(Step::More)
    }
}

/// Clears some of the chunks that were found; `Err` if a page is needed for the next.
fn clear_some(state: &mut State, hiding: &mut Hiding) -> std::result::Result<(), PageLoad> {
    for _ in 0..CHUNKS_PER_HOLD {
        let Some(&(chunk, seen)) = hiding.found.last() else { break };
        if state.dirty.journal_bytes() > state.ring.batch_limit() {
            break;
        }
        match look(&hiding.parent, &hiding.head, chunk)? {
            // For what a merge has brought since, nobody was waited for: its end has all looked through again.
            Chunk::HidesData(has) if has & !seen != 0 => {}
            Chunk::HidesData(_) => {
                if let InLayer::Entry(entry) = hiding.parent.lookup(chunk) {
                    state.give_way(&hiding.parent, chunk, &entry, !0);
                }
            }
            Chunk::Shows => hiding.shows = true,
            Chunk::Empty | Chunk::HidesZeros => {}
        }
        hiding.found.pop();
    }
    Ok(())
}
