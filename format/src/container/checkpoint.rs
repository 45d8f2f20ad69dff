//! Checkpoint: changed pages go home, then the journal's tail moves.
//!
//! Invariant (JNL-9): a page is written home only once every change in it is durable in the journal, and the tail passes
//! a record only once the homes it describes are synced. Order: home writes, sync, superblock, sync, release.
//! Does not: hold the engine lock during I/O.

use super::Container;
use super::state::{Homes, State};
use crate::error::{Error, Result};
use crate::layer::first_chunk;
use crate::layout::slot::{LayerKind, PER_PAGE};
use crate::layout::superblock::{self, OFFSETS};
use crate::units::{PAGE_LEN, SlabNo, SlotNo};

/// Pages copied per hold of the engine lock.
const PAGES_PER_HOLD: usize = 32;

/// A page image on its way home.
type Image = (u64, Vec<u8>);

impl Container {
    /// Writes all changed pages home and moves the journal's tail; blocks.
    pub(crate) fn checkpoint(&self) -> Result<()> {
        let _homes = super::lock(&self.shared.homes);
        self.checkpoint_locked()
    }

    pub(super) fn checkpoint_locked(&self) -> Result<()> {
        self.shared.check_writable()?;
        let (homes, tail) = {
            let mut state = self.shared.lock();
            // Homes change from here on, and a check that reads them begins anew (CHK-26).
            state.end_hold();
            (std::mem::take(&mut state.homes), state.ring.head)
        };
        let images = self.copy_pages(&homes);
        // Everything copied is durable in the journal before it overwrites a home.
        self.commit_reserved()?;
        self.write_home(images)?;
        // Both copies, one after the other: whichever is read later, its tail's records are still there.
        for _ in OFFSETS {
            let superblock = {
                let mut state = self.shared.lock();
                let ring_len = state.ring.len;
                state.superblock.sequence += 1;
                state.superblock.tail_offset = tail.at % ring_len;
                state.superblock.tail_sequence = tail.sequence;
                state.superblock.tail_prev_crc = tail.prev_crc;
                state.superblock.clone()
            };
            self.write_superblock(&superblock)?;
        }
        self.pages_are_home(&homes);
        let mut state = self.shared.lock();
        state.ring.tail = tail;
        state.checkpoint_wanted = false;
        self.shared.reap(&mut state);
        state.wake_all();
        Ok(())
    }

    /// Writes the superblock over its older copy, durably.
    pub(super) fn write_superblock(&self, superblock: &superblock::Superblock) -> Result<()> {
        let copy = (superblock.sequence % 2) as usize;
        self.shared
            .disk
            .write_at_durable(&superblock.encode(copy), OFFSETS[copy])
            .map_err(|error| self.home_failed("superblock write", &error))
    }

    fn home_failed(&self, what: &'static str, error: &std::io::Error) -> Error {
        let reason = format!("{what} failed: {error}");
        self.shared.fail(reason.clone());
        Error::Failed { reason }
    }

    fn copy_pages(&self, homes: &Homes) -> Vec<Image> {
        let mut images = Vec::with_capacity(homes.len());
        for group in homes.pages.chunks(PAGES_PER_HOLD) {
            let state = self.shared.lock();
            images.extend(group.iter().filter_map(|&(layer, table, page)| {
                let found = state.layers.get(&layer)?;
                // The tables of a doomed layer are being freed: its pages have no home any more (JNL-6).
                if state.layer_record(layer).kind == LayerKind::Doomed {
                    return None;
                }
                let home = found.table(table)?.slab.offset() + u64::from(page) * PAGE_LEN as u64;
                let guard = found.table(table)?.page(usize::from(page));
                let content = guard.as_ref()?;
                // Before the copy, under the lock: a later change lists the page again.
                content.begin_home_write();
                Some((home, content.encode(layer, first_chunk(table, page))))
            }));
        }
        let state = self.shared.lock();
        images.extend(homes.slots.iter().map(|&page| slot_page(&state, page)));
        images.extend(homes.descriptors.iter().map(|&page| descriptor_page(&state, page)));
        drop(state);
        images.sort_unstable_by_key(|(offset, _)| *offset);
        images
    }

    /// Notes that the copied pages are durable in their homes, so that they may be evicted (MAP-16).
    fn pages_are_home(&self, homes: &Homes) {
        for group in homes.pages.chunks(PAGES_PER_HOLD) {
            let state = self.shared.lock();
            for (layer, table, page) in group {
                let table = state.layers.get(layer).and_then(|layer| layer.table(*table));
                if let Some(page) =
                    table.map(|table| table.page(usize::from(*page))).as_deref().and_then(Option::as_ref)
                {
                    page.end_home_write();
                }
            }
        }
    }

    fn write_home(&self, images: Vec<Image>) -> Result<()> {
        if images.is_empty() {
            return Ok(());
        }
        let mut run: Option<Image> = None;
        for (offset, bytes) in images {
            match &mut run {
                Some((start, gathered)) if *start + gathered.len() as u64 == offset && gathered.len() < (1 << 20) => {
                    gathered.extend(bytes);
                }
                _ => {
                    if let Some(full) = run.replace((offset, bytes)) {
                        self.write_run(&full)?;
                    }
                }
            }
        }
        if let Some(last) = run {
            self.write_run(&last)?;
        }
        self.shared.disk.sync().map_err(|error| self.home_failed("sync of home writes", &error))
    }

    fn write_run(&self, (offset, bytes): &Image) -> Result<()> {
        self.shared.disk.write_at(bytes, *offset).map_err(|error| self.home_failed("home write", &error))
    }
}

fn slot_page(state: &State, page: u32) -> Image {
    let first = page * PER_PAGE;
    let slab = state.catalog_slab(first / crate::layout::slot::PER_SLAB);
    let offset = slab.offset() + u64::from(page % (crate::layout::slot::PER_SLAB / PER_PAGE)) * PAGE_LEN as u64;
    let mut bytes = Vec::with_capacity(PAGE_LEN);
    for slot in first..first + PER_PAGE {
        bytes.extend(state.slots()[slot as usize].encode(state.uuid, SlotNo(slot)).iter());
    }
    (offset, bytes)
}

fn descriptor_page(state: &State, page: u64) -> Image {
    let mut bytes = Vec::with_capacity(PAGE_LEN);
    for index in page * 128..(page + 1) * 128 {
        let descriptor = state.alloc.descriptor(SlabNo(index)).unwrap_or_default();
        bytes.extend(descriptor.encode(state.uuid, SlabNo(index)));
    }
    (State::descriptor_page_offset(page), bytes)
}
