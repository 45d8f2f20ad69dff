//! The guest's memory as the front end describes it: checked, mapped, translated.
//!
//! Invariant: every region is mapped shared from a file that was long enough when it was mapped, is registered with
//! `sigbus` while mapped, and overlaps no other. A [`GuestMap`] never changes: adding or removing a region makes a new
//! one, so whoever holds one (a queue's thread) can rely on it. Does not: decide when it is safe to switch (`session`).

use std::fs::File;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionCollectionError, GuestRegionMmap, MmapRegion};

use super::sigbus::Registration;

/// Most regions of one guest; what GET_MAX_MEM_SLOTS says.
pub(crate) const MAX_REGIONS: usize = 509;
/// Most bytes of guest memory that a session maps: a quarter of the address space.
const MAX_TOTAL_BYTES: u64 = 32 << 40;

/// Why memory is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    /// More regions than [`MAX_REGIONS`], or than the process can watch.
    #[error("too many memory regions")]
    TooManyRegions,
    /// More memory than [`MAX_TOTAL_BYTES`].
    #[error("memory regions of {bytes} bytes in all are too large")]
    TooLarge {
        /// Bytes in all.
        bytes: u64,
    },
    /// A region that ends beyond its file.
    #[error("memory region of {bytes} bytes at {offset} ends beyond its file of {file_bytes} bytes")]
    BeyondFile {
        /// Length of the region.
        bytes: u64,
        /// Its offset in the file.
        offset: u64,
        /// Length of the file.
        file_bytes: u64,
    },
    /// A region that is empty, or overflows.
    #[error("memory region at {guest_addr:#x} of {bytes} bytes is not possible")]
    BadRegion {
        /// Guest physical address.
        guest_addr: u64,
        /// Length of the region.
        bytes: u64,
    },
    /// The file could not be looked at.
    #[error("memory region's file: {0}")]
    File(#[from] std::io::Error),
    /// The file could not be mapped.
    #[error("cannot map a memory region: {0}")]
    Map(#[from] MmapRegionError),
    /// Regions that overlap.
    #[error("memory regions: {0}")]
    Layout(#[from] GuestRegionCollectionError),
    /// The region to be removed does not exist.
    #[error("no memory region at {guest_addr:#x}")]
    NoSuchRegion {
        /// Guest physical address.
        guest_addr: u64,
    },
}

/// One mapped region. Fields are dropped in order: first deregistered, then unmapped.
#[derive(Debug)]
struct Region {
    registration: Registration,
    mapping: Arc<GuestRegionMmap>,
    guest_addr: u64,
    /// Address in the front end's own address space, in which ring addresses are given.
    user_addr: u64,
    len: u64,
}

impl Region {
    fn map(described: &VhostUserMemoryRegion, file: File) -> Result<Self, MemoryError> {
        // The message is packed: copy the fields out.
        let (guest_addr, len) = (described.guest_phys_addr, described.memory_size);
        let (user_addr, offset) = (described.user_addr, described.mmap_offset);
        let bad = MemoryError::BadRegion { guest_addr, bytes: len };
        let overflows = [guest_addr, user_addr, offset].iter().any(|start| start.checked_add(len).is_none());
        if len == 0 || overflows {
            return Err(bad);
        }
        if len > MAX_TOTAL_BYTES {
            return Err(MemoryError::TooLarge { bytes: len });
        }
        let file_bytes = file.metadata()?.len();
        if offset + len > file_bytes {
            return Err(MemoryError::BeyondFile { bytes: len, offset, file_bytes });
        }
        let region = MmapRegion::from_file(FileOffset::new(file, offset), len as usize)?;
        let registration = Registration::new(region.as_ptr(), region.size()).ok_or(MemoryError::TooManyRegions)?;
        let mapping = GuestRegionMmap::new(region, GuestAddress(guest_addr)).ok_or(bad)?;
        Ok(Region { registration, mapping: Arc::new(mapping), guest_addr, user_addr, len })
    }
}

/// All memory of a guest. Regions are dropped (deregistered) before the mappings in `memory`.
#[derive(Debug, Default)]
pub(crate) struct GuestMap {
    regions: Vec<Arc<Region>>,
    memory: GuestMemoryMmap,
}

impl GuestMap {
    /// Maps the regions of a whole table.
    pub(crate) fn from_table(table: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<Self, MemoryError> {
        let map = |(described, file)| Region::map(described, file).map(Arc::new);
        // Bounds first: nothing is mapped for a table that will be refused.
        if table.len() > MAX_REGIONS {
            return Err(MemoryError::TooManyRegions);
        }
        check_total(table.iter().map(|described| described.memory_size))?;
        Self::from_regions(table.iter().zip(files).map(map).collect::<Result<_, _>>()?)
    }

    /// This map and one region more.
    pub(crate) fn with_region(&self, described: &VhostUserMemoryRegion, file: File) -> Result<Self, MemoryError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooManyRegions);
        }
        check_total(self.regions.iter().map(|region| region.len).chain([described.memory_size]))?;
        let mut regions = self.regions.clone();
        regions.push(Arc::new(Region::map(described, file)?));
        Self::from_regions(regions)
    }

    /// This map without one region.
    pub(crate) fn without_region(&self, described: &VhostUserMemoryRegion) -> Result<Self, MemoryError> {
        let (guest_addr, user_addr, len) = (described.guest_phys_addr, described.user_addr, described.memory_size);
        let is_it = |r: &Arc<Region>| (r.guest_addr, r.user_addr, r.len) == (guest_addr, user_addr, len);
        if !self.regions.iter().any(is_it) {
            return Err(MemoryError::NoSuchRegion { guest_addr });
        }
        Self::from_regions(self.regions.iter().filter(|region| !is_it(region)).cloned().collect())
    }

    fn from_regions(regions: Vec<Arc<Region>>) -> Result<Self, MemoryError> {
        let mut sorted: Vec<_> = regions.iter().map(|region| Arc::clone(&region.mapping)).collect();
        sorted.sort_by_key(|mapping| vm_memory::GuestMemoryRegion::start_addr(&**mapping));
        let memory =
            if sorted.is_empty() { GuestMemoryMmap::default() } else { GuestMemoryMmap::from_arc_regions(sorted)? };
        Ok(GuestMap { regions, memory })
    }

    /// The memory, by guest physical address.
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The guest physical address of an address in the front end's own address space.
    pub(crate) fn guest_addr_of(&self, user_addr: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user_addr.checked_sub(region.user_addr)?;
            (offset < region.len).then(|| region.guest_addr + offset)
        })
    }

    /// Whether there is no memory at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Whether the front end took any of the memory away.
    pub(crate) fn is_lost(&self) -> bool {
        self.regions.iter().any(|region| region.registration.is_lost())
    }
}

fn check_total(lens: impl Iterator<Item = u64>) -> Result<(), MemoryError> {
    let bytes = lens.fold(0u64, u64::saturating_add);
    if bytes > MAX_TOTAL_BYTES {
        return Err(MemoryError::TooLarge { bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use vm_memory::Bytes;

    use super::*;
    use crate::session::sigbus;

    const LEN: u64 = 1 << 20;

    fn file(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    fn described(guest_addr: u64, len: u64, offset: u64) -> VhostUserMemoryRegion {
        VhostUserMemoryRegion::new(guest_addr, len, guest_addr + 0x10_0000_0000, offset)
    }

    #[test]
    fn regions_are_translated_added_and_removed() {
        let map =
            GuestMap::from_table(&[described(LEN, LEN, 0), described(0, LEN, 0)], vec![file(LEN), file(LEN)]).unwrap();
        assert_eq!(map.guest_addr_of(0x10_0000_0000 + LEN + 5), Some(LEN + 5));
        assert_eq!(map.guest_addr_of(5), None);
        map.memory().write_obj(7u8, GuestAddress(2 * LEN - 1)).unwrap();
        let more = map.with_region(&described(4 * LEN, LEN, 0), file(LEN)).unwrap();
        more.memory().read_obj::<u8>(GuestAddress(4 * LEN)).unwrap();
        let less = more.without_region(&described(LEN, LEN, 0)).unwrap();
        assert!(less.memory().read_obj::<u8>(GuestAddress(LEN)).is_err());
        assert!(less.without_region(&described(LEN, LEN, 0)).is_err());
    }

    #[test]
    fn impossible_regions_are_refused() {
        let refused = |region: VhostUserMemoryRegion| GuestMap::from_table(&[region], vec![file(LEN)]).unwrap_err();
        assert!(matches!(refused(described(0, LEN + 1, 0)), MemoryError::BeyondFile { .. }));
        assert!(matches!(refused(described(0, LEN, 4096)), MemoryError::BeyondFile { .. }));
        assert!(matches!(refused(described(0, LEN, u64::MAX - 4095)), MemoryError::BadRegion { .. }));
        assert!(matches!(refused(described(0, 0, 0)), MemoryError::BadRegion { .. }));
        assert!(matches!(refused(described(0, 1 << 60, 0)), MemoryError::TooLarge { .. }));
        assert!(matches!(refused(described(0, 4096, 1)), MemoryError::Map(_)), "offset within a page");
        let two = [described(0, LEN, 0), described(4096, LEN, 0)];
        assert!(matches!(GuestMap::from_table(&two, vec![file(LEN), file(LEN)]), Err(MemoryError::Layout(_))));
    }

    #[test]
    fn truncated_memory_is_lost_but_kills_nobody() {
        sigbus::install().unwrap();
        let file = file(LEN);
        let map = GuestMap::from_table(&[described(0, LEN, 0)], vec![file.try_clone().unwrap()]).unwrap();
        map.memory().write_obj(7u8, GuestAddress(0)).unwrap();
        assert!(!map.is_lost());
        file.set_len(0).unwrap();
        assert_eq!(map.memory().load::<u16>(GuestAddress(4096), Ordering::Relaxed).unwrap(), 0);
        assert!(map.is_lost());
        map.memory().write_obj(7u8, GuestAddress(LEN - 1)).unwrap();
    }
}
