//! Tag slabs and their records, each for itself.
//!
//! Invariant: a record is a finding only if it is damaged: one that names another birth or chunk than its slab has now is left
//! of the slab's former life (TAG-3), or cannot be read (TAG-18). Does not: read guest data (`Container::check_data` does).

use std::collections::HashSet;

use uuid::Uuid;

use super::finding::{CheckReport, TAG_RECORD, TAG_SLAB};
use super::metadata::{Metadata, describe};
use crate::disk::{Disk, read_what_can_be};
use crate::error::Place;
use crate::layout::descriptor::Descriptor;
use crate::layout::tags::{self, SlabTags};
use crate::units::{PAGE_LEN, SLAB_LEN, SlabNo};

/// How often a page with a damaged record is read: it may just be written.
const TRIES: u32 = 4;

/// A tag slab: its number, and where it is.
type TagSlab = (u32, SlabNo);

/// A record that counts for nothing.
pub(super) struct Damaged {
    /// The slab it is of.
    of: SlabNo,
    /// Its byte offset.
    pub(super) at: u64,
    why: String,
    rule: &'static str,
    /// Else its bytes are wrong.
    pub(super) is_unreadable: bool,
}

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
pub(super) fn damaged(disk: &dyn Disk, uuid: Uuid, index: u32, slab: SlabNo) -> Vec<Damaged> {
    let mut bytes = vec![0; SLAB_LEN as usize];
    let is_read = disk.read_at(&mut bytes, slab.offset()).is_ok();
    let mut found = Vec::new();
    let mut of = u64::from(index) * tags::PER_SLAB;
    for (page, at) in bytes.chunks_exact_mut(PAGE_LEN).zip((slab.offset()..).step_by(PAGE_LEN)) {
        let mut bad = if is_read { bad_records(page, uuid, of, at) } else { look(disk, page, uuid, of, at) };
        for _ in 1..TRIES {
            if bad.iter().all(|bad| bad.is_unreadable) {
                break;
            }
            bad = look(disk, page, uuid, of, at);
        }
        found.extend(bad);
        of += tags::PER_PAGE;
    }
    found
}

/// Reads a page anew.
fn look(disk: &dyn Disk, page: &mut [u8], uuid: Uuid, of: u64, at: u64) -> Vec<Damaged> {
    let unread = read_what_can_be(disk, page, at);
    let unread = unread.into_iter().map(|(offset, error)| Damaged {
        of: SlabNo(of + (offset - at) / tags::LEN as u64),
        at: offset,
        why: format!("the tag record cannot be read: {error}"),
        rule: "TAG-18",
        is_unreadable: true,
    });
    let mut found: Vec<Damaged> = unread.collect();
    found.extend(bad_records(page, uuid, of, at));
    found
}

fn bad_records(page: &[u8], uuid: Uuid, of: u64, at: u64) -> Vec<Damaged> {
    let records = page.chunks_exact(tags::LEN).zip((of..).map(SlabNo)).zip((at..).step_by(tags::LEN));
    let bad = records.filter_map(|((raw, of), at)| {
        let bad = SlabTags::decode(raw, uuid, of).err()?;
        Some(Damaged { of, at, why: describe("tag record", &bad), rule: bad.rule, is_unreadable: false })
    });
    bad.collect()
}

/// Checks every tag slab.
pub(super) fn check(disk: &dyn Disk, metadata: &Metadata, report: &mut CheckReport) {
    let (good, needless) = tag_slabs(&metadata.descriptors);
    for (index, slab) in needless {
        let message = format!("tag slab {index} is there twice, or beyond the container");
        report.add(TAG_SLAB, Place::Slab(slab).to_string(), message, "TAG-2");
    }
    for (index, slab) in good {
        for Damaged { of, at, why, rule, .. } in damaged(disk, metadata.uuid, index, slab) {
            report.add(TAG_RECORD, Place::Offset(at).to_string(), format!("of slab {of}: {why}"), rule);
        }
    }
}
