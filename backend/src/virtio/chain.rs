//! From a head to the guest's buffers: walks descriptor chains, direct and indirect.
//!
//! Invariant: a [`Chain`] has all device-readable segments before all device-writable ones, at most
//! [`MAX_SEGMENTS`] of them, and at most 4 GiB in all. Does not: look at what is in the buffers, or check that they lie
//! in guest memory (that happens when they are used).

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Most segments in a chain: as many as one vectored read or write takes.
pub(crate) const MAX_SEGMENTS: usize = 1024;
const DESCRIPTOR_LEN: u64 = 16;

/// A piece of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Guest physical address.
    pub(crate) addr: u64,
    /// Bytes, not 0.
    pub(crate) len: u32,
}

/// The buffers of one request, in order.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    /// What the device may read.
    pub(crate) readable: Vec<Segment>,
    /// What the device may write.
    pub(crate) writable: Vec<Segment>,
}

/// Why a chain cannot be walked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    /// The chain is longer than its table: it loops.
    #[error("descriptor chain loops")]
    Loop,
    /// More segments than [`MAX_SEGMENTS`].
    #[error("descriptor chain has more than {MAX_SEGMENTS} segments")]
    TooManySegments,
    /// More bytes than a chain may have.
    #[error("descriptor chain is longer than 4 GiB")]
    TooLong,
    /// The next descriptor is outside the table.
    #[error("descriptor {index} is outside the table of {size}")]
    BadIndex {
        /// Index of the descriptor.
        index: u16,
        /// Descriptors in the table.
        size: u16,
    },
    /// An indirect table inside an indirect table.
    #[error("indirect table within an indirect table")]
    NestedIndirect,
    /// An indirect table whose length is not that of 1 to 65535 descriptors.
    #[error("indirect table of {len} bytes")]
    BadIndirectLen {
        /// Its length in bytes.
        len: u32,
    },
    /// A readable segment after a writable one.
    #[error("device-readable segment after a device-writable one")]
    BadOrder,
    /// A descriptor outside guest memory.
    #[error("descriptor is outside guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// A table of descriptors: the ring's own or an indirect one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    /// Guest address of descriptor 0.
    pub(crate) addr: GuestAddress,
    /// Descriptors in the table.
    pub(crate) size: u16,
}

struct Descriptor {
    addr: u64,
    len: u32,
    flags: u32,
    next: u16,
}

impl Table {
    fn read(&self, mem: &GuestMemoryMmap, index: u16) -> Result<Descriptor, ChainError> {
        if index >= self.size {
            return Err(ChainError::BadIndex { index, size: self.size });
        }
        let at = self.addr.0.checked_add(u64::from(index) * DESCRIPTOR_LEN);
        let at = GuestAddress(at.ok_or(GuestMemoryError::GuestAddressOverflow)?);
        let [addr, rest] = mem.read_obj::<[u64; 2]>(at)?.map(u64::from_le);
        Ok(Descriptor { addr, len: rest as u32, flags: u32::from((rest >> 32) as u16), next: (rest >> 48) as u16 })
    }
}

impl Chain {
    /// Replaces the contents by the chain that begins at `head` of `table`.
    pub(crate) fn walk(&mut self, mem: &GuestMemoryMmap, table: Table, head: u16) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        let (mut table, mut index) = (table, head);
        let (mut visited, mut indirect, mut total_len) = (0u16, false, 0u32);
        loop {
            if visited == table.size {
                return Err(ChainError::Loop);
            }
            visited += 1;
            let descriptor = table.read(mem, index)?;
            if descriptor.flags & VRING_DESC_F_INDIRECT != 0 {
                if indirect {
                    return Err(ChainError::NestedIndirect);
                }
                table = indirect_table(&descriptor)?;
                (index, visited, indirect) = (0, 0, true);
                continue;
            }
            total_len = total_len.checked_add(descriptor.len).ok_or(ChainError::TooLong)?;
            self.push(&descriptor)?;
            if descriptor.flags & VRING_DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
    }

    fn push(&mut self, descriptor: &Descriptor) -> Result<(), ChainError> {
        if descriptor.len == 0 {
            return Ok(());
        }
        if self.readable.len() + self.writable.len() == MAX_SEGMENTS {
            return Err(ChainError::TooManySegments);
        }
        let segment = Segment { addr: descriptor.addr, len: descriptor.len };
        if descriptor.flags & VRING_DESC_F_WRITE != 0 {
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            return Err(ChainError::BadOrder);
        }
        Ok(())
    }
}

fn indirect_table(descriptor: &Descriptor) -> Result<Table, ChainError> {
    let bad = ChainError::BadIndirectLen { len: descriptor.len };
    if u64::from(descriptor.len) % DESCRIPTOR_LEN != 0 {
        return Err(bad);
    }
    match u16::try_from(u64::from(descriptor.len) / DESCRIPTOR_LEN) {
        Ok(size) if size > 0 => Ok(Table { addr: GuestAddress(descriptor.addr), size }),
        _ => Err(bad),
    }
}
