//! Steps of sealing: blocks without tags are read, and their tags made and written.
//!
//! Invariant (TAG-4): before the first tag of a layer is written, its freeze, and all that was written to it, is durable. The
//! slabs read are kept by a grace token. One thread at a time seals a volume. Does not: hold the engine lock while it looks,
//! reads or writes, or heed pause and speed (the caller does).

use std::io;
use std::sync::Arc;

use super::ops::Slots;
use super::pieces::{Move, Piece, reads};
use super::seal::{At, SealEnd, SealStep};
use super::{Container, HydrateWait, Shared};
use crate::error::{Error, Result};
use crate::layer::{InLayer, Layer};
use crate::layout::tags::SlabTags;
use crate::units::{
    BLOCK_LEN, BLOCKS_PER_CHUNK, BlockMask, ChunkNo, ENTRIES_PER_PAGE, LayerId, SLAB_LEN, SlabNo, VolumeId,
};

/// Bytes that are read at once.
const BYTES_AT_ONCE: u64 = 1 << 20;
/// Chunks that one step looks at.
const LOOKS_PER_STEP: usize = 16 << 10;
/// What reading a table page counts for.
const LOOKS_PER_PAGE: usize = 256;

/// What a step goes on with.
enum Next {
    Layer(Arc<Layer>, At),
    Blocked(HydrateWait),
    /// When [`super::state::State::to_seal`] was this.
    AllPassed(u64),
    Cancelled,
}

/// What became of some chunks.
struct Passed {
    /// So much data got tags.
    bytes: u64,
    /// Something could not be read.
    has_left_out: bool,
}

/// Tags that were made.
struct Made {
    /// Of so much data.
    bytes: u64,
    /// Blocks that could not be read, and what the first of them gave.
    left_out: Option<(u64, Error)>,
}

/// A step under way for a volume; nobody else makes one.
struct UnderWay<'a> {
    shared: &'a Shared,
    volume: VolumeId,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(seal) = self.shared.lock().seals.get_mut(&self.volume) {
            seal.is_under_way = false;
        }
    }
}

impl Container {
    /// Reads about `budget_bytes` of what is frozen of a volume and has no tags, a chunk at least, and makes its tags; blocks
    /// for its I/O. Threads may step different volumes at once. After an error the step may be tried again.
    ///
    /// Errors: [`Error::NotAllSealed`] when everything else is sealed: what was left out is tried again after
    /// [`Container::seal`] or [`Container::set_seal`] only; [`Error::Io`], [`Error::Corrupt`], [`Error::Failed`],
    /// [`Error::Closed`], [`Error::ReadOnly`].
    pub fn seal_step(&self, volume: VolumeId, budget_bytes: u64) -> Result<SealStep> {
        self.shared.check_open()?;
        {
            let mut state = self.shared.lock();
            let Some(seal) = state.seals.get_mut(&volume) else {
                return Ok(SealStep::Ended(SealEnd::Cancelled));
            };
            if std::mem::replace(&mut seal.is_under_way, true) {
                return Ok(SealStep::Blocked(HydrateWait::Others));
            }
            seal.stopped_at = None;
        }
        let _under_way = UnderWay { shared: &self.shared, volume };
        let (mut sealed, mut looks) = (0, 0);
        while sealed < budget_bytes.max(1) && looks < LOOKS_PER_STEP {
            self.shared.check_open()?;
            let step = match self.next_to_seal(volume)? {
                Next::Layer(layer, at) => {
                    let most = (budget_bytes.max(1) - sealed).min(BYTES_AT_ONCE);
                    match self.seal_some(volume, &layer, at, most, &mut looks)? {
                        // What cannot be read takes its time, and does not count as sealed: enough for a step.
                        Some(Passed { bytes, has_left_out: true }) => return Ok(SealStep::Sealed(sealed + bytes)),
                        Some(Passed { bytes, has_left_out: false }) => {
                            sealed += bytes;
                            continue;
                        }
                        None => SealStep::Blocked(self.hindrance()),
                    }
                }
                Next::Blocked(wait) => SealStep::Blocked(wait),
                Next::Cancelled => SealStep::Ended(SealEnd::Cancelled),
                // What was sealed is told first.
                Next::AllPassed(_) if sealed > 0 => break,
                Next::AllPassed(to_seal) if self.end_seal(volume, to_seal)? => SealStep::Ended(SealEnd::Done),
                Next::AllPassed(_) => break,
            };
            return Ok(if sealed > 0 { SealStep::Sealed(sealed) } else { step });
        }
        Ok(SealStep::Sealed(sealed))
    }

    /// No slab is free for tags: now, or for good.
    fn hindrance(&self) -> HydrateWait {
        self.shared.call_for_work();
        if self.shared.lock().is_full() { HydrateWait::NoSpace } else { HydrateWait::Others }
    }

    /// The layer to go on with. Before the first tag of a layer is written, its freeze is made durable (TAG-4).
    fn next_to_seal(&self, volume: VolumeId) -> Result<Next> {
        loop {
            let found = {
                let mut state = self.shared.lock();
                let state = &mut *state;
                let Some(seal) = state.seals.get_mut(&volume) else { return Ok(Next::Cancelled) };
                let at = match seal.at {
                    Some(at) => Some(at),
                    None => seal.todo.pop().map(|layer| At { layer, ..At::default() }),
                };
                seal.at = at;
                at
            };
            let Some(at) = found else {
                if let Some(to_seal) = self.list_to_seal(volume) {
                    return Ok(Next::AllPassed(to_seal));
                }
                continue;
            };
            let mut state = self.shared.lock();
            if !state.is_frozen_kind(at.layer) || state.is_sealed(at.layer) {
                if let Some(seal) = state.seals.get_mut(&volume) {
                    seal.at = None;
                }
                continue;
            }
            let layer = state.layers[&at.layer].clone();
            if !layer.is_drained() {
                return Ok(Next::Blocked(HydrateWait::Others));
            }
            if state.is_behind() {
                drop(state);
                self.shared.call_for_work();
                return Ok(Next::Blocked(HydrateWait::Others));
            }
            let tagging = state.tagged.get(&at.layer).copied().unwrap_or_default();
            if !tagging.lasts {
                drop(state);
                self.commit()?;
                let mut state = self.shared.lock();
                if state.is_frozen_kind(at.layer) {
                    state.tagged.entry(at.layer).or_default().lasts = true;
                }
                continue;
            }
            let mut at = at;
            if at.next == 0 {
                at.merges = tagging.merges;
            }
            return Ok(Next::Layer(layer, at));
        }
    }

    /// Lists the frozen layers of a volume that are not sealed, but those with something left out; if there is none, what [`super::state::State::to_seal`] was
    /// before it looked.
    pub(super) fn list_to_seal(&self, volume: VolumeId) -> Option<u64> {
        let (head, to_seal, left_out) = {
            let state = self.shared.lock();
            let left_out = state.seals.get(&volume).map(|seal| seal.left_out.layers.clone());
            (state.volumes.get(&volume).map(|core| core.head()), state.to_seal, left_out.unwrap_or_default())
        };
        let mut todo = Vec::new();
        self.shared.visit_layers(head.and_then(|head| head.parent()), |state, layer| {
            if state.is_frozen_kind(layer.id) && !state.is_sealed(layer.id) && !left_out.contains(&layer.id) {
                todo.push(layer.id);
            }
        });
        if todo.is_empty() {
            return Some(to_seal);
        }
        if let Some(seal) = self.shared.lock().seals.get_mut(&volume) {
            seal.todo = todo;
        }
        None
    }

    /// Seals some chunks of a layer, `most` bytes about. Nothing if there was no space for tags.
    fn seal_some(
        &self,
        volume: VolumeId,
        layer: &Arc<Layer>,
        mut at: At,
        most: u64,
        looks: &mut usize,
    ) -> Result<Option<Passed>> {
        let end = layer.size.div_ceil(SLAB_LEN);
        // Before the entries are looked at: none of the slabs found is reused while it is held (JNL-6).
        let grace = self.shared.passing();
        let (mut found, mut bytes): (Vec<(ChunkNo, SlabNo, BlockMask)>, u64) = (Vec::new(), 0);
        let mut left_out = Vec::new();
        while at.next < end && bytes < most && *looks < LOOKS_PER_STEP {
            let chunk = ChunkNo(at.next as u32);
            *looks += 1;
            match layer.lookup(chunk) {
                InLayer::Absent | InLayer::AllZero => at.next = layer.no_page_until(chunk).min(end),
                InLayer::NeedPage(_) if !found.is_empty() => break,
                InLayer::NeedPage(load) => {
                    *looks += LOOKS_PER_PAGE;
                    match self.load_page(load) {
                        Ok(()) => {}
                        Err(error @ (Error::Io { .. } | Error::Corrupt(_))) => {
                            left_out.push((1, error));
                            at.next = ((at.next / ENTRIES_PER_PAGE + 1) * ENTRIES_PER_PAGE).min(end);
                        }
                        Err(error) => return Err(error),
                    }
                    // A layer doomed meanwhile takes no page: asking again would never end.
                    if !self.shared.lock().is_frozen_kind(layer.id) {
                        return Ok(Some(Passed { bytes: 0, has_left_out: false }));
                    }
                }
                InLayer::Entry(entry) => {
                    let view = entry.view();
                    if view.d != 0 {
                        found.push((chunk, view.slab, view.d));
                        bytes += u64::from(view.d.count_ones()) * BLOCK_LEN;
                        at.slabs += 1;
                    }
                    at.next += 1;
                }
            }
        }
        let Some(made) = self.make_tags(at.layer, &found)? else { return Ok(None) };
        drop(grace);
        left_out.extend(made.left_out);
        let has_left_out = !left_out.is_empty();
        at.has_left_out |= has_left_out;
        let mut state = self.shared.lock();
        let state = &mut *state;
        let is_over = at.next >= end;
        let is_whole = is_over && !at.has_left_out;
        if let Some(tagging) = state.tagged.get_mut(&layer.id).filter(|tagging| is_whole && tagging.merges == at.merges)
        {
            tagging.sealed = true;
        }
        if let Some(seal) = state.seals.get_mut(&volume) {
            left_out.into_iter().for_each(|(places, error)| seal.left_out.add(places, error));
            if is_over && at.has_left_out {
                seal.left_out.layers.insert(layer.id);
            }
            // Where a merge has brought something into it meanwhile, it is passed again.
            seal.at = (!is_over).then_some(at);
        }
        Ok(Some(Passed { bytes: made.bytes, has_left_out }))
    }

    /// Reads those blocks that have no tag, and makes and writes their tags; nothing without space.
    fn make_tags(&self, layer: LayerId, found: &[(ChunkNo, SlabNo, BlockMask)]) -> Result<Option<Made>> {
        let slabs: Vec<SlabNo> = found.iter().map(|(_, slab, _)| *slab).collect();
        let known = self.shared.tags_of(&slabs);
        let (mut pieces, mut new) = (Vec::new(), Vec::new());
        for (&(chunk, slab, mask), known) in found.iter().zip(known) {
            let want = mask & !known.map_or(0, |tags| tags.mask);
            if want == 0 {
                continue;
            }
            // A slab that a merge, an adoption or reclaim has taken away meanwhile is passed with its new layer, if at all.
            if let Some((owner, birth, described)) = self.shared.lock().data_in(slab)
                && (owner, described) == (layer, chunk)
            {
                pieces.push(Piece::of_slab(chunk, want, slab));
                new.push((slab, SlabTags::new(birth, chunk)));
            }
        }
        let moves = reads(&pieces);
        let mut buffer = vec![0; moves.last().map_or(0, |last| last.start + last.len)];
        let mut unread = Vec::new();
        for found in moves {
            if self.shared.disk.read_at(&mut buffer[found.start..][..found.len], found.offset).is_err() {
                self.read_block_by_block(found, &mut buffer, &mut unread);
            }
        }
        let mut blocks = buffer.chunks_exact(BLOCK_LEN as usize).enumerate();
        let mut first_unread = None;
        for (piece, (slab, tags)) in pieces.iter().zip(&mut new) {
            let of_piece = (0..BLOCKS_PER_CHUNK).filter(|block| piece.mask >> block & 1 == 1);
            for (block, (index, bytes)) in of_piece.zip(&mut blocks) {
                match unread.iter_mut().find(|(unread, _)| *unread == index) {
                    None => tags.make(block, bytes),
                    Some((_, error)) => {
                        let source = std::mem::replace(error, io::ErrorKind::Other.into());
                        first_unread.get_or_insert_with(|| Error::BlockUnreadable {
                            layer,
                            block: u64::from(piece.chunk.0) * BLOCKS_PER_CHUNK + block,
                            offset: slab.offset() + block * BLOCK_LEN,
                            source,
                        });
                    }
                }
            }
        }
        new.retain(|(_, tags)| tags.mask != 0);
        if !new.is_empty() && !self.shared.write_tags(new)? {
            return Ok(None);
        }
        let bytes = buffer.len() as u64 - unread.len() as u64 * BLOCK_LEN;
        Ok(Some(Made { bytes, left_out: first_unread.map(|error| (unread.len() as u64, error)) }))
    }

    /// Reads what could not be read at once; adds the number of each block in the buffer that cannot be read, and why.
    fn read_block_by_block(&self, found: Move, buffer: &mut [u8], unread: &mut Vec<(usize, io::Error)>) {
        let blocks = buffer[found.start..][..found.len].chunks_exact_mut(BLOCK_LEN as usize);
        for ((index, offset), block) in
            (found.start / BLOCK_LEN as usize..).zip((found.offset..).step_by(BLOCK_LEN as usize)).zip(blocks)
        {
            if let Err(error) = self.shared.disk.read_at(block, offset) {
                unread.push((index, error));
            }
        }
    }

    /// All has been passed: says so durably, and with it makes the tags durable. False if there may be more to seal since
    /// `to_seal` was looked at (TAG-10).
    fn end_seal(&self, volume: VolumeId, to_seal: u64) -> Result<bool> {
        {
            let mut state = self.lock_for(|_| Ok(Slots { new: 0, changed: 1 }))?;
            if state.to_seal != to_seal {
                return Ok(false);
            }
            let Some(seal) = state.seals.get_mut(&volume) else { return Ok(true) };
            if let Some(error) = seal.left_out.error() {
                seal.stopped_at = Some(to_seal);
                return Err(error);
            }
            state.update_volume(volume, |record| record.sealing = None);
        }
        self.commit()?;
        Ok(true)
    }
}

#[cfg(test)]
#[cfg(not(pitstop_interleavings))]
mod tests {
    use super::*;
    use crate::container::{CreateOptions, OpenMode};
    use crate::io::VolumeIo;
    use crate::layout::slot::Verify;
    use crate::testing::SimDisk;

    // rule: TAG-10 — an older layer that lacks tags keeps the sealing going, whatever the newest has.
    #[test]
    fn a_sealing_does_not_end_when_something_was_frozen_since_it_looked() {
        let disk = SimDisk::new();
        Container::create(disk.clone(), &CreateOptions::default()).unwrap();
        let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
        container.create_volume("v", 1 << 20).unwrap();
        container.set_verify("v", Verify::Copy).unwrap();
        let volume = container.volume("v").unwrap().id();
        let to_seal = container.list_to_seal(volume).unwrap();
        for name in ["a", "b"] {
            VolumeIo::new(&container, container.volume("v").unwrap()).write_at(&[1; 4096], 0).unwrap();
            container.snapshot("v", name).unwrap();
        }
        let newest = container.shared.lock().volumes[&volume].head().parent().unwrap().id;
        container.shared.lock().tagged.entry(newest).or_default().sealed = true;
        assert!(!container.end_seal(volume, to_seal).unwrap());
        assert_eq!(container.list_to_seal(volume), None);
        let mut sealed = 0;
        loop {
            match container.seal_step(volume, 1 << 20).unwrap() {
                SealStep::Sealed(bytes) => sealed += bytes,
                SealStep::Blocked(wait) => panic!("{wait:?}"),
                SealStep::Ended(end) => break assert_eq!((end, sealed), (SealEnd::Done, 4096)),
            }
        }
    }
}
