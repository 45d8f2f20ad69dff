//! Superblocks, descriptors and catalog slots, each for itself.
//!
//! Invariant: what is kept here is decoded and in range; what is damaged has been reported and is kept as `None`.
//! Does not: compare one object of the catalog with another (that is `catalog`).

use std::collections::BTreeMap;

use uuid::Uuid;

use super::finding::{CATALOG, CONTAINER_SLOT, CheckReport, DESCRIPTOR, JOURNAL, NEEDLESSLY_RESERVED, RESERVED};
use super::finding::{SLAB_COUNT, SLOT, SUPERBLOCK};
use super::journal::Journal;
use super::{View, read};
use crate::disk::Disk;
use crate::error::{Error, Place, Result};
use crate::layout::Bad;
use crate::layout::descriptor::{self, Descriptor};
use crate::layout::slot::{self, ContainerRecord, PER_PAGE, PER_SLAB, Slot};
use crate::layout::superblock::{self, OFFSETS, Superblock, Unusable};
use crate::units::{PAGE_LEN, PAGES_PER_SLAB, SLAB_LEN, SLABS_PER_GROUP, SlabNo, SlotNo};

/// Index within each group of the slab with the group's descriptors (CON-7).
pub(super) const DESCRIPTOR_SLAB: u64 = 2;
/// First slab of the journal (JNL-1).
pub(super) const JOURNAL_SLAB: u64 = 3;

/// The decoded metadata of a container, journal values over homes.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) uuid: Uuid,
    pub(super) journal: Journal,
    /// The container's slabs; `None` where the descriptor is damaged.
    pub(super) descriptors: Vec<Option<Descriptor>>,
    /// The catalog's slots; `None` where a slot is damaged.
    pub(super) slots: BTreeMap<SlotNo, Option<Slot>>,
    /// The container record; `None` if it is damaged.
    pub(super) counters: Option<ContainerRecord>,
    /// Damage hides who uses what: nothing can be called unused.
    pub(super) blind: bool,
}

impl Metadata {
    /// Reads and reports; `Err` where there is nothing to go on with.
    pub(super) fn read(disk: &dyn Disk, view: View, report: &mut CheckReport) -> Result<Self> {
        let file_len = view.file_len;
        let superblock = read_superblock(disk, file_len, report)?;
        report.clean = superblock.clean;
        let journal = Journal::read(disk, &superblock, view.journal_end)?;
        report.journal_batches = journal.batches;
        let (descriptors, damaged) = read_descriptors(disk, file_len, &superblock, &journal, report)?;
        let uuid = superblock.uuid;
        let mut metadata = Self { uuid, journal, descriptors, slots: BTreeMap::new(), counters: None, blind: false };
        metadata.read_catalog(disk, &superblock, report)?;
        metadata.cut_to_size(report);
        for (slab, bad) in damaged {
            if slab.0 < metadata.descriptors.len() as u64 {
                metadata.blind = true;
                report.add(DESCRIPTOR, Place::Slab(slab).to_string(), describe("slab descriptor", &bad), bad.rule);
            }
        }
        metadata.check_reserved(&superblock, report);
        report.slabs_checked = metadata.descriptors.len() as u64;
        let allocated = metadata.descriptors.iter().filter(|found| **found != Some(Descriptor::Free));
        report.allocated_slabs = allocated.count() as u64;
        Ok(metadata)
    }

    fn read_catalog(&mut self, disk: &dyn Disk, superblock: &Superblock, report: &mut CheckReport) -> Result<()> {
        let mut slabs: BTreeMap<u32, (SlabNo, u64)> = BTreeMap::new();
        for (found, slab) in self.descriptors.iter().zip(0..) {
            let Some(Descriptor::Catalog { index, pages }) = *found else {
                continue;
            };
            let slab = SlabNo(slab);
            if let Some((other, _)) = slabs.get(&index) {
                self.blind = true;
                let message = format!("catalog slab {index} is also in slab {other}");
                report.add(CATALOG, Place::Slab(slab).to_string(), message, "CAT-3");
            } else {
                slabs.insert(index, (slab, pages));
            }
        }
        let last = slabs.keys().next_back().copied();
        if last.is_none() {
            self.blind = true;
            report.add(CATALOG, "catalog".to_owned(), "no slab is described as catalog".to_owned(), "CAT-3");
        }
        for (&(slab, pages), (&index, expected)) in slabs.values().zip(slabs.keys().zip(0u32..)) {
            let whole = u64::from(pages.trailing_ones());
            let unbroken = whole == PAGES_PER_SLAB || pages == (1 << whole) - 1;
            if index != expected || !unbroken || whole == 0 || (whole < PAGES_PER_SLAB && Some(index) != last) {
                self.blind = true;
                let message = format!("catalog slab {index} with pages {pages:#x} where {expected} was expected");
                report.add(CATALOG, Place::Slab(slab).to_string(), message, "CAT-3");
            }
            let Some(first) = index.checked_mul(PER_SLAB).filter(|first| first.checked_add(PER_SLAB).is_some()) else {
                continue;
            };
            let bytes = read(disk, SLAB_LEN as usize, slab.offset())?;
            for (raw, number) in bytes.chunks_exact(slot::LEN).zip(first..) {
                if pages >> ((number - first) / PER_PAGE) & 1 == 1 {
                    self.decode_slot(raw, SlotNo(number), superblock, report);
                }
            }
        }
        for &number in self.journal.slots.keys().filter(|number| !self.slots.contains_key(*number)) {
            let message = "the journal has a value for a slot that the catalog does not have".to_owned();
            report.add(JOURNAL, Place::Slot(number.0).to_string(), message, "JNL-10");
        }
        Ok(())
    }

    fn decode_slot(&mut self, home: &[u8], number: SlotNo, superblock: &Superblock, report: &mut CheckReport) {
        let raw = self.journal.slots.get(&number).map_or(home, |image| image.as_slice());
        let place = || Place::Slot(number.0).to_string();
        let found = match Slot::decode(raw, superblock.uuid, number) {
            Ok(found) => Some(found),
            Err(bad) => {
                self.blind = true;
                report.add(SLOT, place(), describe("catalog slot", &bad), bad.rule);
                None
            }
        };
        match (&found, number.0) {
            (Some(Slot::Container(record)), 0) => self.counters = Some(*record),
            (Some(Slot::Container(_)), _) => {
                report.add(CONTAINER_SLOT, place(), "a second container record".to_owned(), "CAT-6");
            }
            (Some(_), 0) => {
                let message = "slot 0 does not hold the container record".to_owned();
                report.add(CONTAINER_SLOT, place(), message, "CAT-6");
            }
            (_, _) => {}
        }
        self.slots.insert(number, found);
    }

    /// Leaves the slabs that the container uses of its file (CON-14).
    fn cut_to_size(&mut self, report: &mut CheckReport) {
        let Some(counters) = self.counters else {
            return;
        };
        let present = self.descriptors.len() as u64;
        if counters.slab_count > present {
            self.blind = true;
            let message = format!("the file has {present} slabs, the container {}", counters.slab_count);
            report.add(SLAB_COUNT, "file".to_owned(), message, "CON-14");
            return;
        }
        for slab in self.journal.descriptors.keys().filter(|slab| (counters.slab_count..present).contains(&slab.0)) {
            let message = "the journal has a descriptor for a slab that the container does not use".to_owned();
            report.add(JOURNAL, Place::Slab(*slab).to_string(), message, "JNL-10");
        }
        let beyond = self.descriptors.split_off(counters.slab_count as usize);
        for (found, slab) in beyond.into_iter().zip(counters.slab_count..) {
            if let Some(found) = found.filter(|found| *found != Descriptor::Free) {
                self.blind = true;
                let message = format!("described as {found:?} beyond the container's {} slabs", counters.slab_count);
                report.add(SLAB_COUNT, Place::Slab(SlabNo(slab)).to_string(), message, "CON-14");
            }
        }
    }

    fn check_reserved(&self, superblock: &Superblock, report: &mut CheckReport) {
        let journal_end = JOURNAL_SLAB + superblock.journal_len / SLAB_LEN;
        for (found, slab) in self.descriptors.iter().zip(0u64..) {
            let Some(found) = found else {
                continue;
            };
            let must_be = slab < journal_end || slab % SLABS_PER_GROUP == DESCRIPTOR_SLAB;
            let place = || Place::Slab(SlabNo(slab)).to_string();
            match (must_be, *found == Descriptor::Reserved) {
                (true, false) => {
                    let message = format!("a slab of the container itself is described as {found:?}");
                    report.add(RESERVED, place(), message, "CON-13");
                }
                (false, true) => {
                    report.leaked_slabs += 1;
                    report.add(NEEDLESSLY_RESERVED, place(), "reserved for nothing".to_owned(), "CON-13");
                }
                (true, true) | (false, false) => {}
            }
        }
    }
}

pub(super) fn describe(structure: &str, bad: &Bad) -> String {
    format!("damaged {structure}: found {}, expected {}", bad.found, bad.expected)
}

/// The superblock that counts (CON-16).
pub(super) fn read_superblock(disk: &dyn Disk, file_len: u64, report: &mut CheckReport) -> Result<Superblock> {
    let mut usable: Option<Superblock> = None;
    let mut unusable = Vec::new();
    for (copy, offset) in OFFSETS.into_iter().enumerate() {
        let decoded = if file_len < offset + superblock::LEN as u64 {
            Err(Unusable::NoMagic)
        } else {
            Superblock::decode(&read(disk, superblock::LEN, offset)?, copy)
        };
        match decoded {
            Ok(found) => {
                if usable.as_ref().is_none_or(|best| found.sequence > best.sequence) {
                    usable = Some(found);
                }
            }
            Err(why) => unusable.push((copy, offset, why)),
        }
    }
    let Some(superblock) = usable else {
        return Err(no_superblock(&unusable));
    };
    for (copy, offset, why) in unusable {
        let (message, rule) = match why {
            Unusable::NoMagic => ("it does not begin with the magic bytes".to_owned(), "CON-5"),
            Unusable::Version(found) => (format!("it has version {found}"), "CON-5"),
            Unusable::Bad(bad) => (describe("superblock", &bad), bad.rule),
        };
        let message = format!("superblock copy {copy} cannot be used: {message}; the other one is used");
        report.add(SUPERBLOCK, Place::Offset(offset).to_string(), message, rule);
    }
    if superblock.incompat != 0 {
        return Err(Error::UnsupportedFeatures { bits: superblock.incompat });
    }
    let journal_end = superblock.journal_offset.saturating_add(superblock.journal_len);
    if superblock.journal_offset != SlabNo(JOURNAL_SLAB).offset() || journal_end > SLABS_PER_GROUP * SLAB_LEN {
        let bad = Bad::new("JNL-1", superblock.journal_offset, SlabNo(JOURNAL_SLAB).offset());
        return Err(bad.at("superblock", Place::Offset(0)).into());
    }
    if file_len < journal_end {
        return Err(Error::Truncated { found: file_len, expected: journal_end });
    }
    Ok(superblock)
}

/// Why neither copy can be used: the most telling reason.
fn no_superblock(unusable: &[(usize, u64, Unusable)]) -> Error {
    let bad = unusable.iter().find_map(|(_, offset, why)| match why {
        Unusable::Bad(bad) => Some(bad.clone().at("superblock", Place::Offset(*offset))),
        Unusable::NoMagic | Unusable::Version(_) => None,
    });
    let version = unusable.iter().find_map(|(_, _, why)| match why {
        Unusable::Version(found) => Some(*found),
        Unusable::NoMagic | Unusable::Bad(_) => None,
    });
    match (bad, version) {
        (Some(corruption), _) => Error::Corrupt(corruption),
        (None, Some(found)) => Error::UnsupportedVersion { found },
        (None, None) => Error::NotAContainer,
    }
}

type Damaged = Vec<(SlabNo, Bad)>;

fn read_descriptors(
    disk: &dyn Disk,
    file_len: u64,
    superblock: &Superblock,
    journal: &Journal,
    report: &mut CheckReport,
) -> Result<(Vec<Option<Descriptor>>, Damaged)> {
    let slabs = file_len / SLAB_LEN;
    let mut descriptors = Vec::new();
    let mut damaged = Vec::new();
    for group in 0..slabs.div_ceil(SLABS_PER_GROUP) {
        let first = group * SLABS_PER_GROUP;
        let count = (slabs - first).min(SLABS_PER_GROUP);
        if count <= DESCRIPTOR_SLAB {
            break;
        }
        let len = (count as usize * descriptor::LEN).next_multiple_of(PAGE_LEN);
        let bytes = read(disk, len, SlabNo(first + DESCRIPTOR_SLAB).offset())?;
        // A group that was never taken: a file that is much too long costs no memory (CON-14).
        let own = SlabNo(first + DESCRIPTOR_SLAB);
        let described = bytes[DESCRIPTOR_SLAB as usize * descriptor::LEN..][..descriptor::LEN].iter().any(|&b| b != 0);
        if group > 0 && !described && !journal.descriptors.contains_key(&own) {
            break;
        }
        for (raw, slab) in bytes.chunks_exact(descriptor::LEN).zip(first..first + count) {
            let slab = SlabNo(slab);
            let raw = journal.descriptors.get(&slab).map_or(raw, |image| image.as_slice());
            let found = Descriptor::decode(raw, superblock.uuid, slab);
            descriptors.push(found.as_ref().ok().copied());
            damaged.extend(found.err().map(|bad| (slab, bad)));
        }
    }
    for slab in journal.descriptors.keys().filter(|slab| slab.0 >= descriptors.len() as u64) {
        let message = "the journal has a descriptor for a slab that the file does not have".to_owned();
        report.add(JOURNAL, Place::Slab(*slab).to_string(), message, "JNL-10");
    }
    Ok((descriptors, damaged))
}
