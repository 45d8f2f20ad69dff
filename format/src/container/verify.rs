//! Verifying all that has tags: `check --data`.
//!
//! Role: reads every tagged block of the container, slab by slab, beside whatever else goes on, and reports those that are not
//! what they were sealed as. Invariant (TAG-9): a block is reported only if it is shown by its layer's entry and has a tag that
//! counts, so never for what a crash or a merge has left. Does not: change anything.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Container;
use super::tags::bad_blocks;
use crate::check::{CheckReport, Unfit};
use crate::error::{Error, Result};
use crate::layer::InLayer;
use crate::layout::tags::SlabTags;
use crate::units::{BLOCK_LEN, BLOCKS_PER_CHUNK, BlockMask, ChunkNo, LayerId, SLAB_LEN, SlabNo};
use crate::volume::runs;

/// Slabs that are looked up under one hold of the engine lock.
const SLABS_PER_HOLD: u64 = 512;

impl Container {
    /// Reads all data that has tags, verifies it, and adds to `report` what does not fit; blocks, while the container goes on
    /// being used. Setting `given_up` ends it early.
    ///
    /// Errors: [`Error::CheckGivenUp`], [`Error::Io`] for tables that cannot be read, [`Error::Corrupt`].
    pub fn check_data(&self, report: &mut CheckReport, given_up: &AtomicBool) -> Result<()> {
        let mut next = 0;
        loop {
            // Before the slabs are looked up: none of them is reused while it is held (JNL-6).
            let grace = self.shared.passing();
            let found: Vec<(SlabNo, LayerId, ChunkNo)> = {
                let state = self.shared.lock();
                let end = state.alloc.slab_count();
                if next >= end {
                    return Ok(());
                }
                let slabs = next..end.min(next + SLABS_PER_HOLD);
                next = slabs.end;
                let data = |slab| state.data_in(slab).map(|(layer, _, chunk)| (slab, layer, chunk));
                slabs.map(SlabNo).filter_map(data).filter(|(_, layer, _)| !state.doomed.contains(layer)).collect()
            };
            let slabs: Vec<SlabNo> = found.iter().map(|(slab, ..)| *slab).collect();
            let tags = self.shared.tags_of(&slabs);
            for ((slab, layer, chunk), tags) in found.into_iter().zip(tags) {
                if given_up.load(Ordering::SeqCst) {
                    return Err(Error::CheckGivenUp);
                }
                let Some(tags) = tags else { continue };
                let mask = tags.mask & self.shown_of(slab, layer, chunk)?;
                self.check_slab(slab, layer, &tags, mask, report)?;
            }
            drop(grace);
        }
    }

    /// The blocks of a slab that the entry of its layer shows.
    fn shown_of(&self, slab: SlabNo, layer: LayerId, chunk: ChunkNo) -> Result<BlockMask> {
        loop {
            let Some(layer) = self.shared.lock().layers.get(&layer).cloned() else { return Ok(0) };
            match layer.lookup(chunk) {
                InLayer::Absent | InLayer::AllZero => return Ok(0),
                InLayer::Entry(entry) => {
                    let view = entry.view();
                    return Ok(if view.slab == slab { view.d } else { 0 });
                }
                InLayer::NeedPage(load) => {
                    self.load_page(load)?;
                    // A layer doomed meanwhile takes no page: asking again would never end.
                    if self.shared.lock().doomed.contains(&layer.id) {
                        return Ok(0);
                    }
                }
            }
        }
    }

    fn check_slab(
        &self,
        slab: SlabNo,
        layer: LayerId,
        tags: &SlabTags,
        mask: BlockMask,
        report: &mut CheckReport,
    ) -> Result<()> {
        let mut bytes = vec![0; SLAB_LEN as usize];
        for (first, end) in runs(mask) {
            let part = &mut bytes[..((end - first) * BLOCK_LEN) as usize];
            let blocks = crate::units::mask_of(first, end);
            let read = self.shared.disk.read_at(part, slab.offset() + first * BLOCK_LEN);
            report.data_bytes_verified += part.len() as u64;
            let at = |block: u64| Unfit {
                layer,
                block: u64::from(tags.chunk.0) * BLOCKS_PER_CHUNK + block,
                offset: slab.offset() + block * BLOCK_LEN,
                volumes: self.users_of(layer),
            };
            match read {
                Ok(()) => {
                    for bad in bad_blocks(tags, blocks, part) {
                        // What has moved on meanwhile may hold other data by now.
                        let place = (layer, tags.birth, tags.chunk);
                        if self.shared.lock().data_in(slab) != Some(place)
                            || self.shown_of(slab, layer, tags.chunk)? >> bad.block & 1 == 0
                        {
                            continue;
                        }
                        let (found, expected) = (bad.misfit.found, bad.misfit.expected);
                        report
                            .add_unfit(&at(bad.block), &format!("a tag of {found:#010x} instead of {expected:#010x}"));
                    }
                }
                Err(error) => report.add_unfit(&at(first), &format!("cannot be read: {error}")),
            }
        }
        Ok(())
    }

    /// Some volumes that read through a layer, for people.
    fn users_of(&self, layer: LayerId) -> Vec<String> {
        const MOST: usize = 4;
        let state = self.shared.lock();
        let (mut names, mut stack, mut seen) = (Vec::new(), vec![layer], 0);
        while let Some(id) = stack.pop().filter(|_| names.len() < MOST && seen < 1000) {
            seen += 1;
            if let Some(volume) = state.heads.get(&id).filter(|volume| !state.instants.contains(*volume)) {
                names.push(state.volume_record(*volume).name.clone());
            }
            stack.extend(state.children.get(&id).into_iter().flatten().take(MOST));
        }
        names
    }
}
