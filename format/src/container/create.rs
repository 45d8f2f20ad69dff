//! Writing a new, empty container.

use std::sync::Arc;

use uuid::Uuid;

use super::{Container, now_ns};
use crate::alloc::DESCRIPTOR_SLAB;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::layout::descriptor::Descriptor;
use crate::layout::slot::{ContainerRecord, PER_PAGE, Slot};
use crate::layout::superblock::{OFFSETS, Superblock};
use crate::units::{PAGE_LEN, SLAB_LEN, SlabNo, SlotNo};

/// Slabs of free space that a new container has behind its metadata.
const FIRST_FREE_SLABS: u64 = 64;
/// Smallest and largest journal in bytes.
const JOURNAL_LEN_RANGE: std::ops::RangeInclusive<u64> = SLAB_LEN..=(1 << 30);

/// How a container is created.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Bytes of the journal ring: a multiple of 256 KiB from 256 KiB to 1 GiB. 64 MiB unless told otherwise.
    pub journal_len_bytes: u64,
    /// A note for people, up to 64 bytes.
    pub label: String,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self { journal_len_bytes: 64 << 20, label: String::new() }
    }
}

impl CreateOptions {
    fn check(&self) -> Result<()> {
        if !JOURNAL_LEN_RANGE.contains(&self.journal_len_bytes) || !self.journal_len_bytes.is_multiple_of(SLAB_LEN) {
            return Err(Error::BadOption(format!(
                "journal of {} bytes: choose a multiple of 256K from 256K to 1G",
                self.journal_len_bytes
            )));
        }
        if self.label.len() > 64 || self.label.contains('\0') {
            return Err(Error::BadOption("the label must be at most 64 bytes without NUL".to_owned()));
        }
        Ok(())
    }
}

/// First slab of the journal.
pub(crate) const JOURNAL_SLAB: u64 = 3;

impl Container {
    /// Writes an empty container to `disk`, durably.
    ///
    /// The superblocks come last: a crash before leaves a file that no open accepts.
    pub fn create(disk: Arc<dyn Disk>, options: &CreateOptions) -> Result<()> {
        options.check()?;
        let uuid = Uuid::new_v4();
        let catalog = JOURNAL_SLAB + options.journal_len_bytes / SLAB_LEN;
        let slab_count = catalog + 1 + FIRST_FREE_SLABS;
        disk.grow(slab_count * SLAB_LEN).map_err(|source| match source.kind() {
            std::io::ErrorKind::StorageFull => {
                Error::NoSpace { detail: format!("a new container needs {} bytes", slab_count * SLAB_LEN) }
            }
            _ => Error::io("cannot allocate the container")(source),
        })?;
        let write =
            |bytes: &[u8], offset| disk.write_at(bytes, offset).map_err(Error::io("cannot write the container"));
        let sync = || disk.sync().map_err(Error::io("cannot sync the container"));

        let zeros = vec![0u8; SLAB_LEN as usize];
        for slab in JOURNAL_SLAB..catalog {
            write(&zeros, SlabNo(slab).offset())?;
        }
        let mut descriptors = Vec::new();
        for slab in 0..(catalog + 1).next_multiple_of(128) {
            let descriptor = match slab {
                slab if slab < catalog => Descriptor::Reserved,
                slab if slab == catalog => Descriptor::Catalog { index: 0, pages: 1 },
                _ => Descriptor::Free,
            };
            descriptors.extend(descriptor.encode(uuid, SlabNo(slab)));
        }
        write(&descriptors, SlabNo(DESCRIPTOR_SLAB).offset())?;
        let mut slots = Vec::with_capacity(PAGE_LEN);
        for slot in 0..PER_PAGE {
            let content = match slot {
                0 => Slot::Container(ContainerRecord { next_id: 1, slab_count }),
                _ => Slot::Free,
            };
            slots.extend(content.encode(uuid, SlotNo(slot)).iter());
        }
        write(&slots, SlabNo(catalog).offset())?;
        sync()?;

        let mut superblock = Superblock {
            uuid,
            compat: 0,
            ro_compat: 0,
            incompat: 0,
            clean: true,
            sequence: 0,
            generation: 1,
            journal_offset: SlabNo(JOURNAL_SLAB).offset(),
            journal_len: options.journal_len_bytes,
            tail_offset: 0,
            tail_sequence: 1,
            tail_prev_crc: 0,
            created_ns: now_ns(),
            label: options.label.clone(),
        };
        for _ in OFFSETS {
            superblock.sequence += 1;
            let copy = (superblock.sequence % 2) as usize;
            write(&superblock.encode(copy), OFFSETS[copy])?;
            sync()?;
        }
        Ok(())
    }
}
