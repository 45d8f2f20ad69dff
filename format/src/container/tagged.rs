//! Data that is about to be read, with the tags that it must fit.
//!
//! Role: looks tags up before the read, without I/O: a page of tags that is not in memory is reported as a [`TagLoad`], as a
//! table page is. Invariant (TAG-12): the slabs are looked up at one instant at which all of them hold data, while the plan that
//! names them keeps them from reuse; so what is read of them later is what the tags were made of, or damaged.
//! Does not: read data, or hold the engine lock for longer than a look.

use std::io;
use std::sync::Arc;

use smallvec::SmallVec;

use super::tags::{SlabPlace, Tagged, first_bad};
use super::{Container, Shared};
use crate::error::Result;
use crate::layout::tags::{PER_PAGE, SlabTags};
use crate::units::{BLOCK_LEN, LayerId, PAGE_LEN, SLAB_LEN, SlabNo, mask_of};
use crate::volume::{Edge, EdgeSource, ReadPlan, ReadSegment};

/// A page of tags to be read: [`PAGE_LEN`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagLoad {
    page: u64,
    offset: u64,
    /// Changes of tags until then.
    changes: u64,
}

impl TagLoad {
    /// Byte offset in the container.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// How far the tags of a [`TaggedRead`] are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagStep {
    /// All are known.
    Ready,
    /// Read this page, hand it to [`Container::install_tags`], or if it cannot be read say so to [`Container::miss_tags`], look
    /// again.
    NeedTags(TagLoad),
    /// Some of the data is elsewhere by now: plan again.
    Moved,
}

/// Places that are about to be read, slab by slab, and what is known of their tags.
#[derive(Debug, Default)]
pub struct TaggedRead {
    parts: SmallVec<[Part; 2]>,
    is_placed: bool,
    /// The page that had a damaged record and is read again: that may just have been written.
    looked_again: Option<u64>,
}

#[derive(Debug)]
struct Part {
    disk_offset: u64,
    len: u64,
    known: Known,
}

#[derive(Debug, Clone)]
enum Known {
    Untagged,
    Place(Tagged),
    /// Shared by all parts of the slab.
    Tags(LayerId, Arc<SlabTags>),
}

/// Bytes of one slab that are to be read.
#[derive(Debug)]
pub struct TaggedPart {
    /// Byte offset in the container.
    pub disk_offset: u64,
    /// Bytes.
    pub len: u64,
    /// What they are to be verified with, if some block of them has a tag.
    pub check: Option<Check>,
}

/// Verifies the blocks that a [`TaggedPart`] touches.
#[derive(Debug)]
pub struct Check {
    layer: LayerId,
    slab: SlabNo,
    /// Blocks of the slab: from this one on, up to `end`.
    first: u64,
    end: u64,
    tags: Arc<SlabTags>,
}

impl Check {
    /// Byte offset in the container of the first block.
    pub fn disk_offset(&self) -> u64 {
        self.slab.offset() + self.first * BLOCK_LEN
    }

    /// Bytes of all the blocks.
    pub fn len_bytes(&self) -> u64 {
        (self.end - self.first) * BLOCK_LEN
    }

    /// Refuses the blocks' bytes if those of a block that has a tag are not what it was sealed as.
    ///
    /// Errors: [`Error::Corrupt`] (TAG-5), which names layer, block and byte offset.
    pub fn verify(&self, bytes: &[u8]) -> Result<()> {
        debug_assert_eq!(bytes.len() as u64, self.len_bytes());
        match first_bad(&self.tags, mask_of(self.first, self.end), bytes) {
            None => Ok(()),
            Some(bad) => Err(bad.error(self.layer, self.slab)),
        }
    }
}

impl Part {
    fn slab(&self) -> SlabNo {
        SlabNo(self.disk_offset / SLAB_LEN)
    }

    fn check(self) -> Option<Check> {
        let slab = self.slab();
        let Known::Tags(layer, tags) = self.known else { return None };
        let start = self.disk_offset - slab.offset();
        let (first, end) = (start / BLOCK_LEN, (start + self.len).div_ceil(BLOCK_LEN));
        (tags.mask & mask_of(first, end) != 0).then_some(Check { layer, slab, first, end, tags })
    }
}

impl TaggedRead {
    /// All data of a plan, in its order; the plan is kept until it has been read.
    pub fn of_plan(plan: &ReadPlan) -> Self {
        let mut read = Self::default();
        for segment in plan.segments() {
            if let ReadSegment::Data { disk_offset, len } = *segment {
                read.add(disk_offset, len);
            }
        }
        read
    }

    /// The blocks that the rest of these is taken from, in their order; the ticket is kept until they have been read.
    pub fn of_edges(edges: &[Edge]) -> Self {
        let mut read = Self::default();
        for edge in edges {
            if let EdgeSource::Disk { offset } = edge.source {
                read.add(offset, BLOCK_LEN);
            }
        }
        read
    }

    fn add(&mut self, disk_offset: u64, len: u64) {
        let (mut at, end) = (disk_offset, disk_offset + len);
        while at < end {
            let next = end.min((at / SLAB_LEN + 1) * SLAB_LEN);
            self.parts.push(Part { disk_offset: at, len: next - at, known: Known::Untagged });
            at = next;
        }
    }

    /// Parts of slabs that are to be read.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Whether there is nothing to be read.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// What was found, when all is known.
    pub fn into_parts(self) -> impl Iterator<Item = TaggedPart> {
        self.parts.into_iter().map(|part| {
            let Part { disk_offset, len, .. } = part;
            TaggedPart { disk_offset, len, check: part.check() }
        })
    }

    /// Notes what the parts whose tags are in `page` have there.
    fn take(&mut self, page: u64, bytes: &[u8], shared: &Shared) {
        let mut of_slabs: [Option<Known>; PER_PAGE as usize] = Default::default();
        for part in self.parts.iter_mut().filter(|part| part.slab().0 / PER_PAGE == page) {
            if let Known::Place(place) = part.known {
                let slab = part.slab();
                let known = of_slabs[(slab.0 % PER_PAGE) as usize].get_or_insert_with(|| {
                    let tags = place.tags_in(bytes, slab, shared);
                    tags.map_or(Known::Untagged, |tags| Known::Tags(place.layer, Arc::new(tags)))
                });
                part.known = known.clone();
            }
        }
    }
}

impl Container {
    /// Looks up the tags of what is to be read, without I/O. Who asks keeps the plan or ticket that it was made of.
    pub fn look_up_tags(&self, read: &mut TaggedRead) -> TagStep {
        if !read.is_placed {
            let slabs: SmallVec<[SlabNo; 2]> = read.parts.iter().map(Part::slab).collect();
            for (part, place) in read.parts.iter_mut().zip(self.shared.places_of(&slabs)) {
                part.known = match place {
                    SlabPlace::Freed => return TagStep::Moved,
                    SlabPlace::Untagged => Known::Untagged,
                    SlabPlace::Tagged(place) => Known::Place(place),
                };
            }
            read.is_placed = true;
        }
        while let Some((page, home)) = read.parts.iter().find_map(|part| match part.known {
            Known::Place(place) => Some((part.slab().0 / PER_PAGE, place.home)),
            Known::Untagged | Known::Tags(..) => None,
        }) {
            match self.shared.kept_tag_page(page) {
                Ok(bytes) => read.take(page, &bytes, &self.shared),
                Err(changes) => return TagStep::NeedTags(TagLoad { page, offset: home, changes }),
            }
        }
        TagStep::Ready
    }

    /// Takes the [`PAGE_LEN`] bytes read at `load.offset()`: for this read, and for others while no tags are changed. A page with
    /// a damaged record is asked for once more (TAG-2).
    pub fn install_tags(&self, read: &mut TaggedRead, load: TagLoad, bytes: &[u8]) {
        debug_assert_eq!(bytes.len(), PAGE_LEN);
        if self.shared.has_bad_record(load.page, bytes) && read.looked_again.replace(load.page) != Some(load.page) {
            return;
        }
        self.shared.keep_tag_page(load.page, bytes.into(), load.changes);
        read.take(load.page, bytes, &self.shared);
    }

    /// The page at `load.offset()` cannot be read: what has its tags there counts as not sealed in this read (TAG-18).
    pub fn miss_tags(&self, read: &mut TaggedRead, load: TagLoad, error: &io::Error) {
        self.shared.miss_tag_page(load.page, load.offset, error);
        for part in read.parts.iter_mut().filter(|part| part.slab().0 / PER_PAGE == load.page) {
            if let Known::Place(_) = part.known {
                part.known = Known::Untagged;
            }
        }
    }

    /// Looks up the tags of what is to be read, blocking; false if some of the data is elsewhere by now: plan again.
    pub(crate) fn load_tags(&self, read: &mut TaggedRead) -> bool {
        loop {
            match self.look_up_tags(read) {
                TagStep::Ready => return true,
                TagStep::Moved => return false,
                TagStep::NeedTags(load) => {
                    let mut bytes = vec![0; PAGE_LEN];
                    match self.shared.disk.read_at(&mut bytes, load.offset) {
                        Ok(()) => self.install_tags(read, load, &bytes),
                        Err(error) => self.miss_tags(read, load, &error),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(pitstop_interleavings))]
mod tests {
    use super::*;
    use crate::container::{CreateOptions, OpenMode, SealStep};
    use crate::io::VolumeIo;
    use crate::layout::slot::Verify;
    use crate::testing::SimDisk;

    // rule: TAG-19
    #[test]
    fn parts_of_a_slab_share_its_tags() {
        let disk = SimDisk::new();
        Container::create(disk.clone(), &CreateOptions::default()).unwrap();
        let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
        container.create_volume("v", 1 << 20).unwrap();
        VolumeIo::new(&container, container.volume("v").unwrap()).write_at(&[1; 2 * SLAB_LEN as usize], 0).unwrap();
        container.set_verify("v", Verify::Copy).unwrap();
        container.snapshot("v", "w").unwrap();
        let id = container.volume("v").unwrap().id();
        while !matches!(container.seal_step(id, 1 << 20).unwrap(), SealStep::Ended(_)) {}
        let mut plan = ReadPlan::default();
        assert!(container.volume("w").unwrap().plan_read(0..2 * SLAB_LEN, &mut plan).is_ok());
        let mut read = TaggedRead::default();
        for part in TaggedRead::of_plan(&plan).parts {
            (0..32).for_each(|block| read.add(part.disk_offset + 2 * block * BLOCK_LEN, BLOCK_LEN));
        }
        assert!(container.load_tags(&mut read) && read.len() == 64);
        let tags = |part: &Part| match &part.known {
            Known::Tags(_, tags) => Arc::as_ptr(tags),
            other => panic!("{other:?}"),
        };
        let (first, second) = read.parts.split_at(32);
        assert!(first.iter().all(|part| tags(part) == tags(&first[0])));
        assert!(second.iter().all(|part| tags(part) == tags(&second[0])));
        assert_ne!(tags(&first[0]), tags(&second[0]));
    }
}
