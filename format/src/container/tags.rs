//! Tag slabs: where the tags of slabs' blocks are kept, and how they get there.
//!
//! Invariant (TAG-3, TAG-4): tags are only written of layers that are durably frozen or copy layers, and count only for the
//! birth and chunk that they name, so that what a crash leaves of them, and what is left of a slab's former life, is at
//! worst no tag, as is what cannot be read (TAG-18). Memory keeps a bounded number of pages (TAG-16). `writes` is held over the
//! reading, changing and writing of pages; memory has what the disk has.
//! Does not: hold the engine lock during I/O, or decide what is sealed (see [`super::seal`]).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::sync::Arc;

use super::Shared;
use super::state::State;
use crate::disk::read_what_can_be;
use crate::error::{Corruption, Error, Place, Result};
use crate::layout::descriptor::Descriptor;
use crate::layout::tags::{self, PER_PAGE, PER_SLAB, SlabTags};
use crate::sync::Mutex;
use crate::units::{BLOCK_LEN, BLOCKS_PER_CHUNK, BlockMask, ChunkNo, LayerId, PAGE_LEN, SLAB_LEN, SlabNo};

/// Pages kept in memory: 16 MiB, the tags of 8 GiB.
const PAGES_KEPT: usize = 4096;
/// Damaged records, and pages that cannot be read, that are told of.
const NEWS: usize = 1024;

pub(super) type PageBytes = Arc<[u8]>;

/// The tags of a container.
#[derive(Debug, Default)]
pub(crate) struct Tags {
    /// Held while pages are changed.
    writes: Mutex<()>,
    kept: Mutex<Kept>,
}

/// Pages in memory, by the number of their first slab / 8.
#[derive(Debug, Default)]
struct Kept {
    pages: HashMap<u64, PageBytes>,
    /// The longest kept first.
    order: VecDeque<u64>,
    /// Counts the changes: what was read before one may be out of date.
    changes: u64,
    /// Slabs whose records are damaged, as was told.
    told_of: HashSet<SlabNo>,
    /// Pages that could not be read, as was told.
    unread: HashSet<u64>,
}

impl Kept {
    fn keep(&mut self, page: u64, bytes: PageBytes) {
        if self.pages.insert(page, bytes).is_none() {
            self.order.push_back(page);
        }
        if self.order.len() > PAGES_KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.pages.remove(&oldest);
        }
    }

    /// Whether that the slab's record is damaged has not been told.
    fn is_news(&mut self, slab: SlabNo) -> bool {
        self.told_of.len() < NEWS && self.told_of.insert(slab)
    }

    /// Whether that the page cannot be read has not been told.
    fn is_unread_news(&mut self, page: u64) -> bool {
        self.unread.len() < NEWS && self.unread.insert(page)
    }
}

/// What is known of a slab before its tags are looked up.
#[derive(Debug, Clone, Copy)]
pub(super) enum SlabPlace {
    /// It holds no data any more.
    Freed,
    /// It has no tags.
    Untagged,
    Tagged(Tagged),
}

/// A slab with data whose tags may be asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tagged {
    /// The layer that has it.
    pub(super) layer: LayerId,
    birth: LayerId,
    chunk: ChunkNo,
    /// Where its page of tags is.
    pub(super) home: u64,
}

/// A block that is not what it was sealed as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadBlock {
    pub(crate) chunk: ChunkNo,
    pub(crate) block: u64,
    pub(crate) misfit: tags::Misfit,
}

impl BadBlock {
    /// The error for who wanted to read it from `slab` of `layer`.
    pub(crate) fn error(self, layer: LayerId, slab: SlabNo) -> Error {
        let block = u64::from(self.chunk.0) * BLOCKS_PER_CHUNK + self.block;
        let offset = slab.offset() + self.block * BLOCK_LEN;
        Error::Corrupt(Corruption {
            structure: "data",
            place: Place::Chunk(layer, self.chunk),
            found: format!("block {block} (offset {offset}) with a tag of {:#010x}", self.misfit.found),
            expected: format!("{:#010x}", self.misfit.expected),
            rule: "TAG-5",
        })
    }
}

/// The first of the blocks `mask`, packed into `bytes`, that has a tag which does not fit.
pub(crate) fn first_bad(tags: &SlabTags, mask: BlockMask, bytes: &[u8]) -> Option<BadBlock> {
    bad_blocks(tags, mask, bytes).next()
}

/// All of them.
pub(crate) fn bad_blocks<'a>(
    tags: &'a SlabTags,
    mask: BlockMask,
    bytes: &'a [u8],
) -> impl Iterator<Item = BadBlock> + 'a {
    let blocks = (0..BLOCKS_PER_CHUNK).filter(move |block| mask >> block & 1 == 1);
    blocks.zip(bytes.chunks_exact(BLOCK_LEN as usize)).filter_map(|(block, bytes)| {
        if tags.mask >> block & 1 == 0 {
            return None;
        }
        let misfit = tags.verify(block, bytes).err()?;
        Some(BadBlock { chunk: tags.chunk, block, misfit })
    })
}

impl State {
    /// Whose data is in a slab: the layer that has it, its birth, and the chunk.
    pub(super) fn data_in(&self, slab: SlabNo) -> Option<(LayerId, LayerId, ChunkNo)> {
        match self.alloc.descriptor(slab)? {
            Descriptor::Data { layer, index, birth } => Some((layer, birth, ChunkNo(index))),
            _ => None,
        }
    }

    /// Byte offset of the page with a slab's tags, if there is one.
    fn tag_home(&self, slab: SlabNo) -> Option<u64> {
        let home = self.tag_slabs.get(&((slab.0 / PER_SLAB) as u32))?;
        Some(home.offset() + slab.0 % PER_SLAB / PER_PAGE * PAGE_LEN as u64)
    }

    fn place_of(&self, slab: SlabNo) -> SlabPlace {
        let Some((layer, birth, chunk)) = self.data_in(slab) else { return SlabPlace::Freed };
        match self.tag_home(slab) {
            Some(home) => SlabPlace::Tagged(Tagged { layer, birth, chunk, home }),
            None => SlabPlace::Untagged,
        }
    }
}

impl Tagged {
    /// The tags of `slab` in the page that is at `home`, if they count (TAG-3).
    ///
    /// A record that is damaged is told of, and counts for nothing: `check` finds it too.
    pub(super) fn tags_in(&self, page: &[u8], slab: SlabNo, shared: &Shared) -> Option<SlabTags> {
        match SlabTags::decode(record(page, slab), shared.uuid, slab) {
            Ok(found) => found.filter(|tags| (tags.birth, tags.chunk) == (self.birth, self.chunk)),
            Err(bad) => {
                if super::lock(&shared.tags.kept).is_news(slab) {
                    log::warn!("the tags of slab {slab} are damaged ({}); its blocks count as not sealed", bad.found);
                }
                None
            }
        }
    }
}

fn record(page: &[u8], slab: SlabNo) -> &[u8] {
    let at = (slab.0 % PER_PAGE) as usize * tags::LEN;
    &page[at..at + tags::LEN]
}

impl Shared {
    /// A page of tags as it is on the disk; nothing if it cannot be read.
    fn tag_page(&self, page: u64, home: u64) -> Option<PageBytes> {
        let changes = match self.kept_tag_page(page) {
            Ok(bytes) => return Some(bytes),
            Err(changes) => changes,
        };
        let mut bytes = vec![0; PAGE_LEN];
        // A record that seems damaged may just be written.
        for _ in 0..2 {
            if let Err(error) = self.disk.read_at(&mut bytes, home) {
                self.miss_tag_page(page, home, &error);
                return None;
            }
            if !self.has_bad_record(page, &bytes) {
                break;
            }
        }
        let bytes: PageBytes = bytes.into();
        self.keep_tag_page(page, bytes.clone(), changes);
        Some(bytes)
    }

    /// Whether a record of a page is damaged, or was met while it was written.
    pub(super) fn has_bad_record(&self, page: u64, bytes: &[u8]) -> bool {
        let mut records = bytes.chunks_exact(tags::LEN).zip((page * PER_PAGE..).map(SlabNo));
        records.any(|(raw, slab)| SlabTags::decode(raw, self.uuid, slab).is_err())
    }

    /// A page of tags at `home` cannot be read: told of once, and no layer counts as sealed any more, so that the next sealing
    /// makes its tags anew (TAG-18).
    pub(super) fn miss_tag_page(&self, page: u64, home: u64, error: &io::Error) {
        if !super::lock(&self.tags.kept).is_unread_news(page) {
            return;
        }
        let (first, last) = (page * PER_PAGE, (page + 1) * PER_PAGE - 1);
        log::warn!(
            "the tags of slabs {first} to {last} at offset {home} cannot be read ({error}); their blocks count as not \
             sealed, until their volumes are sealed again"
        );
        let mut state = self.lock();
        state.tagged.values_mut().for_each(|tagging| tagging.sealed = false);
        state.to_seal += 1;
    }

    /// The page if it is in memory, otherwise how many changes there were until now.
    pub(super) fn kept_tag_page(&self, page: u64) -> std::result::Result<PageBytes, u64> {
        let kept = super::lock(&self.tags.kept);
        kept.pages.get(&page).cloned().ok_or(kept.changes)
    }

    /// Keeps a page that was read when there had been `changes`, unless there was one since.
    pub(super) fn keep_tag_page(&self, page: u64, bytes: PageBytes, changes: u64) {
        let mut kept = super::lock(&self.tags.kept);
        if kept.changes == changes {
            kept.keep(page, bytes);
        }
    }

    /// The tags of slabs, as far as they have any that count (TAG-3). Who asks holds a grace token of before it found them.
    pub(crate) fn tags_of(&self, slabs: &[SlabNo]) -> Vec<Option<SlabTags>> {
        let places = self.places_of(slabs);
        self.tags_at(slabs, &places)
    }

    /// As [`Shared::tags_of`], before the slabs are read (TAG-12): nothing if one of them holds no data any more, so that what
    /// was in it has to be looked for again.
    pub(crate) fn tags_before_reading(&self, slabs: &[SlabNo]) -> Option<Vec<Option<SlabTags>>> {
        let places = self.places_of(slabs);
        let is_freed = places.iter().any(|place| matches!(place, SlabPlace::Freed));
        (!is_freed).then(|| self.tags_at(slabs, &places))
    }

    /// All at one instant.
    pub(super) fn places_of(&self, slabs: &[SlabNo]) -> Vec<SlabPlace> {
        let state = self.lock();
        if state.tag_slabs.is_empty() {
            return vec![SlabPlace::Untagged; slabs.len()];
        }
        slabs.iter().map(|&slab| state.place_of(slab)).collect()
    }

    fn tags_at(&self, slabs: &[SlabNo], places: &[SlabPlace]) -> Vec<Option<SlabTags>> {
        let read = |(&slab, place): (&SlabNo, &SlabPlace)| {
            let SlabPlace::Tagged(place) = place else { return None };
            let page = self.tag_page(slab.0 / PER_PAGE, place.home)?;
            place.tags_in(&page, slab, self)
        };
        slabs.iter().zip(places).map(read).collect()
    }

    /// Writes tags of slabs, beside those that they have and that can be read. What no longer belongs to the slab is left out.
    /// False if no slab is free for some of them.
    ///
    /// The layers that have the slabs are durably frozen or copy layers (TAG-4).
    pub(crate) fn write_tags(&self, new: Vec<(SlabNo, SlabTags)>) -> Result<bool> {
        let mut by_page: BTreeMap<u64, Vec<(SlabNo, SlabTags)>> = BTreeMap::new();
        for (slab, tags) in new {
            by_page.entry(slab.0 / PER_PAGE).or_default().push((slab, tags));
        }
        let _writes = super::lock(&self.tags.writes);
        for (page, records) in by_page {
            let Some(home) = self.make_tag_home(SlabNo(page * PER_PAGE))? else {
                return Ok(false);
            };
            let mut bytes = self.tag_page_to_change(page, home);
            let slabs: Vec<SlabNo> = records.iter().map(|(slab, _)| *slab).collect();
            for (slab, tags) in records {
                let now = self.lock().data_in(slab).map(|(_, birth, chunk)| (birth, chunk));
                if now != Some((tags.birth, tags.chunk)) {
                    continue;
                }
                let before = SlabTags::decode(record(&bytes, slab), self.uuid, slab).unwrap_or_default();
                let mut tags = tags;
                if let Some(mut before) = before.filter(|found| (found.birth, found.chunk) == (tags.birth, tags.chunk))
                {
                    // A tag that is there stays: the data may have been damaged since it was made.
                    before.take_over(&tags, !before.mask);
                    tags = before;
                }
                let at = (slab.0 % PER_PAGE) as usize * tags::LEN;
                bytes[at..at + tags::LEN].copy_from_slice(&tags.encode(self.uuid, slab));
            }
            let written = self.disk.write_at(&bytes, home);
            let mut kept = super::lock(&self.tags.kept);
            kept.changes += 1;
            // Damage to what is there now is news.
            for slab in &slabs {
                kept.told_of.remove(slab);
            }
            match written {
                Ok(()) => kept.keep(page, bytes.into()),
                // What is there now nobody knows.
                Err(error) => {
                    kept.pages.remove(&page);
                    kept.order.retain(|kept| *kept != page);
                    return Err(Error::io("cannot write tags")(error));
                }
            }
        }
        Ok(true)
    }

    /// A page of tags as far as it can be read, zeros elsewhere. The caller holds `writes`.
    fn tag_page_to_change(&self, page: u64, home: u64) -> Vec<u8> {
        if let Ok(kept) = self.kept_tag_page(page) {
            return kept.to_vec();
        }
        let mut bytes = vec![0; PAGE_LEN];
        if let Some((_, error)) = read_what_can_be(&*self.disk, &mut bytes, home).first() {
            self.miss_tag_page(page, home, error);
        }
        bytes
    }

    /// Where the page of a slab's tags is, made if there is none; nothing if no slab is free for it.
    fn make_tag_home(&self, slab: SlabNo) -> Result<Option<u64>> {
        let new = {
            let mut state = self.lock();
            if let Some(home) = state.tag_home(slab) {
                return Ok(Some(home));
            }
            let Some(new) = state.take_slab() else { return Ok(None) };
            new
        };
        // Before it is described: durable with the batch that says so, since that batch's data sync comes later (TAG-2).
        let zeroed = self.disk.write_at(&vec![0; SLAB_LEN as usize], new.offset());
        let mut state = self.lock();
        if let Err(error) = zeroed {
            state.alloc.untake(new);
            return Err(Error::io("cannot write tags")(error));
        }
        let index = (slab.0 / PER_SLAB) as u32;
        state.describe(new, Descriptor::Tags { index });
        state.tag_slabs.insert(index, new);
        Ok(state.tag_home(slab))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // rule: TAG-16
    #[test]
    fn memory_keeps_a_bounded_number_of_pages() {
        let mut kept = Kept::default();
        for page in 0..3 * PAGES_KEPT as u64 {
            kept.keep(page, vec![0; PAGE_LEN].into());
            kept.keep(page, vec![1; PAGE_LEN].into());
        }
        assert_eq!((kept.pages.len(), kept.order.len()), (PAGES_KEPT, PAGES_KEPT));
        assert!(kept.pages.values().all(|page| page[0] == 1) && !kept.pages.contains_key(&0));
        assert_eq!(PAGES_KEPT * PAGE_LEN, 16 << 20);
        let told =
            (0..2 * NEWS as u64).filter(|&slab| kept.is_news(SlabNo(slab)) && !kept.is_news(SlabNo(slab))).count();
        assert_eq!((told, kept.told_of.len()), (NEWS, NEWS));
        let told = (0..2 * NEWS as u64).filter(|&page| kept.is_unread_news(page) && !kept.is_unread_news(page)).count();
        assert_eq!((told, kept.unread.len()), (NEWS, NEWS));
    }

    // rule: TAG-18 — in the same run of the program: the layer counted as sealed before.
    #[test]
    #[cfg(not(pitstop_interleavings))]
    fn a_layer_whose_tags_cannot_be_read_counts_as_sealed_no_more() {
        use crate::container::{Container, CreateOptions, OpenMode};
        use crate::layout::slot::Verify;
        let disk = crate::testing::SimDisk::new();
        Container::create(disk.clone(), &CreateOptions::default()).unwrap();
        let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
        container.create_volume("v", 1 << 20).unwrap();
        crate::io::VolumeIo::new(&container, container.volume("v").unwrap()).write_at(&[1; 4096], 0).unwrap();
        container.set_verify("v", Verify::Copy).unwrap();
        container.snapshot("v", "w").unwrap();
        let volume = container.volume("v").unwrap().id();
        let sealed = || {
            let mut sealed = 0;
            while container.sealing(volume).is_some() {
                if let crate::SealStep::Sealed(bytes) = container.seal_step(volume, 1 << 20).unwrap() {
                    sealed += bytes;
                }
            }
            sealed
        };
        assert_eq!(sealed(), 4096);
        *super::super::lock(&container.shared.tags.kept) = Kept::default();
        container.seal("v").unwrap();
        assert_eq!(sealed(), 0);
        let slab = *container.shared.lock().tag_slabs.values().next().unwrap();
        disk.make_unreadable(Some(slab.offset()..slab.offset() + SLAB_LEN));
        let mut bytes = [0; 512];
        crate::io::VolumeIo::new(&container, container.volume("w").unwrap()).read_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [1; 512]);
        container.seal("v").unwrap();
        assert_eq!(sealed(), 4096);
    }
}
