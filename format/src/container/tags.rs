//! Tag slabs: where the tags of slabs' blocks are kept, and how they get there.
//!
//! Invariant (TAG-3, TAG-4): tags are only written of layers that are durably frozen or copy layers, and count only for the
//! birth and chunk that they name, so that what a crash leaves of them, and what is left of a slab's former life, is at
//! worst no tag. `writes` is held over the reading, changing and writing of pages; memory has what the disk has.
//! Does not: hold the engine lock during I/O, or decide what is sealed (see [`super::seal`]).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::state::State;
use super::{Container, Shared};
use crate::error::{Corruption, Error, Place, Result};
use crate::layout::descriptor::Descriptor;
use crate::layout::tags::{self, PER_PAGE, PER_SLAB, SlabTags};
use crate::sync::Mutex;
use crate::units::{BLOCK_LEN, BLOCKS_PER_CHUNK, BlockMask, ChunkNo, LayerId, PAGE_LEN, SLAB_LEN, SlabNo};

/// Pages kept in memory: 4 MiB, the tags of 2 GiB.
const PAGES_KEPT: usize = 1024;

type PageBytes = Arc<[u8]>;

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
}

/// A slab with data whose tags may be asked for.
#[derive(Debug, Clone, Copy)]
struct Tagged {
    birth: LayerId,
    chunk: ChunkNo,
    /// Where its page of tags is.
    home: u64,
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

    fn tagged_place(&self, slab: SlabNo) -> Option<Tagged> {
        let (_, birth, chunk) = self.data_in(slab)?;
        Some(Tagged { birth, chunk, home: self.tag_home(slab)? })
    }
}

fn record(page: &[u8], slab: SlabNo) -> &[u8] {
    let at = (slab.0 % PER_PAGE) as usize * tags::LEN;
    &page[at..at + tags::LEN]
}

impl Shared {
    /// A page of tags as it is on the disk.
    fn tag_page(&self, page: u64, home: u64) -> Result<PageBytes> {
        let changes = {
            let kept = super::lock(&self.tags.kept);
            if let Some(bytes) = kept.pages.get(&page) {
                return Ok(bytes.clone());
            }
            kept.changes
        };
        let mut bytes = vec![0; PAGE_LEN];
        self.disk.read_at(&mut bytes, home).map_err(Error::io("cannot read a page of tags"))?;
        let bytes: PageBytes = bytes.into();
        let mut kept = super::lock(&self.tags.kept);
        if kept.changes == changes {
            kept.keep(page, bytes.clone());
        }
        Ok(bytes)
    }

    /// The tags of slabs, as far as they have any that count (TAG-3). Who asks holds a grace token of before it found them.
    ///
    /// A record that is damaged is told of, and counts for nothing: `check` finds it too.
    pub(crate) fn tags_of(&self, slabs: &[SlabNo]) -> Result<Vec<Option<SlabTags>>> {
        let places: Vec<Option<Tagged>> = {
            let state = self.lock();
            if state.tag_slabs.is_empty() {
                return Ok(vec![None; slabs.len()]);
            }
            slabs.iter().map(|&slab| state.tagged_place(slab)).collect()
        };
        let uuid = self.uuid;
        let read = |(&slab, place): (&SlabNo, Option<Tagged>)| {
            let Some(place) = place else { return Ok(None) };
            let page = self.tag_page(slab.0 / PER_PAGE, place.home)?;
            Ok(match SlabTags::decode(record(&page, slab), uuid, slab) {
                Ok(found) => found.filter(|tags| (tags.birth, tags.chunk) == (place.birth, place.chunk)),
                Err(bad) => {
                    log::warn!("the tags of slab {slab} are damaged ({}); its blocks count as not sealed", bad.found);
                    None
                }
            })
        };
        slabs.iter().zip(places).map(read).collect()
    }

    /// Writes tags of slabs, beside those that they have. What no longer belongs to the slab is left out. False if no slab
    /// is free for some of them.
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
            let mut bytes = self.tag_page(page, home)?.to_vec();
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

impl Container {
    /// Whether some block of a slab has a tag.
    pub(crate) fn has_tags(&self, slab: SlabNo) -> Result<bool> {
        Ok(self.shared.tags_of(&[slab])?[0].is_some())
    }

    /// Refuses bytes read from the blocks `mask` of `slab`, one after the other in `bytes`, if one of them is not what it was
    /// sealed as. The caller holds a grace token of before it found the slab.
    pub(crate) fn verify(&self, slab: SlabNo, mask: BlockMask, bytes: &[u8]) -> Result<()> {
        let tags = self.shared.tags_of(&[slab])?.swap_remove(0);
        match tags.and_then(|tags| first_bad(&tags, mask, bytes)) {
            None => Ok(()),
            Some(bad) => {
                let layer = self.shared.lock().data_in(slab).map_or(LayerId(0), |(layer, ..)| layer);
                Err(bad.error(layer, slab))
            }
        }
    }
}
