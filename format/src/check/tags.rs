//! Tag slabs and their records, each for itself.
//!
//! Invariant: a record is a finding only if it is damaged: one that names another birth or chunk than its slab has now is left
//! of the slab's former life (TAG-3). Does not: read guest data (`Container::check_data` does).

use std::collections::HashSet;

use uuid::Uuid;

use super::finding::{CheckReport, TAG_RECORD, TAG_SLAB};
use super::metadata::{Metadata, describe};
use super::read;
use crate::disk::Disk;
use crate::error::{Place, Result};
use crate::layout::Bad;
use crate::layout::descriptor::Descriptor;
use crate::layout::tags::{self, SlabTags};
use crate::units::{PAGE_LEN, SLAB_LEN, SlabNo};

/// How often a page with a damaged record is read: it may just be written.
const TRIES: u32 = 4;

/// A tag slab: its number, and where it is.
type TagSlab = (u32, SlabNo);
/// A damaged record: the slab it is of, its byte offset, and what is wrong.
type Damaged = (SlabNo, u64, Bad);

/// Tag slabs that count, and those that no slab needs or that are there twice.
pub(super) fn tag_slabs(descriptors: &[Option<Descriptor>]) -> (Vec<TagSlab>, Vec<TagSlab>) {
    let most = (descriptors.len() as u64).div_ceil(tags::PER_SLAB);
    let mut seen = HashSet::new();
    let found = descriptors.iter().zip(0..).filter_map(|(found, slab)| match found {
        Some(Descriptor::Tags { index }) => Some((*index, SlabNo(slab))),
        _ => None,
    });
    found.partition(|(index, _)| u64::from(*index) < most && seen.insert(*index))
}

/// The damaged records of a tag slab.
pub(super) fn damaged(disk: &dyn Disk, uuid: Uuid, index: u32, slab: SlabNo) -> Result<Vec<Damaged>> {
    let bytes = read(disk, SLAB_LEN as usize, slab.offset())?;
    let mut found = Vec::new();
    let mut of = u64::from(index) * tags::PER_SLAB;
    for (page, at) in bytes.chunks_exact(PAGE_LEN).zip((slab.offset()..).step_by(PAGE_LEN)) {
        let mut bad = bad_records(page, uuid, of, at);
        for _ in 1..TRIES {
            if bad.is_empty() {
                break;
            }
            bad = bad_records(&read(disk, PAGE_LEN, at)?, uuid, of, at);
        }
        found.extend(bad);
        of += tags::PER_PAGE;
    }
    Ok(found)
}

fn bad_records(page: &[u8], uuid: Uuid, of: u64, at: u64) -> Vec<Damaged> {
    let records = page.chunks_exact(tags::LEN).zip((of..).map(SlabNo)).zip((at..).step_by(tags::LEN));
    records.filter_map(|((raw, of), at)| Some((of, at, SlabTags::decode(raw, uuid, of).err()?))).collect()
}

/// Checks every tag slab.
pub(super) fn check(disk: &dyn Disk, metadata: &Metadata, report: &mut CheckReport) -> Result<()> {
    let (good, needless) = tag_slabs(&metadata.descriptors);
    for (index, slab) in needless {
        let message = format!("tag slab {index} is there twice, or beyond the container");
        report.add(TAG_SLAB, Place::Slab(slab).to_string(), message, "TAG-2");
    }
    for (index, slab) in good {
        for (of, at, bad) in damaged(disk, metadata.uuid, index, slab)? {
            let message = format!("of slab {of}: {}", describe("tag record", &bad));
            report.add(TAG_RECORD, Place::Offset(at).to_string(), message, bad.rule);
        }
    }
    Ok(())
}
