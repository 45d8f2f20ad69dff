//! Memory that takes part in transfers: guest buffers as host addresses, aligned bounce buffers, a page of zeros.
//!
//! Invariant: an `iovec` made here points into a mapping that the worker keeps for its whole life (guest memory), into
//! an [`AlignedBuf`] that its transfer owns, or into [`ZEROS`]. Guest memory is only touched through volatile copies:
//! the guest may change it at any time. Does not: order transfers.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};

use libc::iovec;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use crate::virtio::chain::{MAX_SEGMENTS, Segment};
use crate::virtio::request::RequestError;

/// Alignment that satisfies every disk.
const ALIGNMENT: usize = 4096;
const ZEROS_LEN: usize = 64 << 10;

#[repr(align(4096))]
struct Zeros([u8; ZEROS_LEN]);

/// What zeros are written from.
static ZEROS: Zeros = Zeros([0; ZEROS_LEN]);

/// Host memory aligned for direct I/O.
#[derive(Debug)]
pub(crate) struct AlignedBuf {
    ptr: std::ptr::NonNull<u8>,
    layout: Layout,
}

impl AlignedBuf {
    /// Zeroed memory of `len` bytes, which must not be 0.
    pub(crate) fn zeroed(len: usize) -> Self {
        assert!(len > 0, "an aligned buffer is never empty");
        let Ok(layout) = Layout::from_size_align(len, ALIGNMENT) else {
            panic!("a buffer of {len} bytes is not possible");
        };
        // SAFETY: the layout has a size, checked above.
        match std::ptr::NonNull::new(unsafe { alloc_zeroed(layout) }) {
            Some(ptr) => AlignedBuf { ptr, layout },
            None => handle_alloc_error(layout),
        }
    }

    /// The part from `from` on, for a transfer.
    pub(crate) fn iovec_from(&mut self, from: usize) -> iovec {
        let part = &mut self[from..];
        iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is owned, initialised and of that size.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout and not freed before.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) }
    }
}

/// A guest's buffer in host addresses.
#[derive(Debug)]
pub(crate) struct HostBuffer {
    pieces: Vec<iovec>,
}

impl HostBuffer {
    /// Translates the segments; a segment that crosses memory regions becomes several pieces.
    pub(crate) fn resolve(mem: &GuestMemoryMmap, segments: &[Segment]) -> Result<Self, RequestError> {
        let mut pieces = Vec::with_capacity(segments.len());
        for segment in segments {
            for slice in GuestMemoryBackend::get_slices(mem, GuestAddress(segment.addr), segment.len as usize) {
                let slice = slice?;
                if pieces.len() == MAX_SEGMENTS {
                    return Err(RequestError::TooManyPieces);
                }
                pieces.push(iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() });
            }
        }
        Ok(HostBuffer { pieces })
    }

    /// Appends the pieces of `len` bytes from `offset` on to `into`.
    pub(crate) fn cut(&self, offset: u64, len: u64, into: &mut Vec<iovec>) {
        let (mut skip, mut rest) = (offset as usize, len as usize);
        for piece in &self.pieces {
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            if rest == 0 {
                return;
            }
            let count = (piece.iov_len - skip).min(rest);
            into.push(iovec { iov_base: piece.iov_base.wrapping_byte_add(skip), iov_len: count });
            rest -= count;
            skip = 0;
        }
        assert_eq!(rest, 0, "a plan names bytes outside the request's buffer");
    }

    /// Fills `len` bytes from `offset` on with zeros.
    pub(crate) fn fill_zero(&self, offset: u64, len: u64) {
        let mut pieces = Vec::new();
        self.cut(offset, len, &mut pieces);
        for piece in &pieces {
            let slice = volatile(piece);
            let mut done = 0;
            while done < slice.len() {
                let count = ZEROS_LEN.min(slice.len() - done);
                let Ok(part) = slice.subslice(done, count) else { return };
                part.copy_from(&ZEROS.0[..count]);
                done += count;
            }
        }
    }

    /// Copies as much of `bytes` as the buffer holds; returns how many bytes that is.
    pub(crate) fn fill(&self, bytes: &[u8]) -> usize {
        scatter(bytes, &self.pieces)
    }
}

/// Appends pieces of `len` zero bytes to `into`.
pub(crate) fn cut_zeros(len: u64, into: &mut Vec<iovec>) {
    let mut rest = len as usize;
    while rest > 0 {
        let count = rest.min(ZEROS_LEN);
        into.push(iovec { iov_base: ZEROS.0.as_ptr().cast_mut().cast(), iov_len: count });
        rest -= count;
    }
}

/// Most zero bytes that one transfer can write.
pub(crate) const MAX_ZEROS_LEN: u64 = (ZEROS_LEN * 256) as u64;

/// Bytes in all pieces.
pub(crate) fn total_len(pieces: &[iovec]) -> u64 {
    pieces.iter().map(|piece| piece.iov_len as u64).sum()
}

/// Cuts `count` bytes off the front.
pub(crate) fn advance(pieces: &mut Vec<iovec>, mut count: usize) {
    let mut whole = 0;
    for piece in pieces.iter_mut() {
        if count < piece.iov_len {
            piece.iov_base = piece.iov_base.wrapping_byte_add(count);
            piece.iov_len -= count;
            break;
        }
        count -= piece.iov_len;
        whole += 1;
    }
    pieces.drain(..whole);
}

/// Copies from the pieces into `into`.
pub(crate) fn gather(pieces: &[iovec], into: &mut [u8]) {
    let mut done = 0;
    for piece in pieces {
        let Some(rest) = into.get_mut(done..) else { return };
        let count = rest.len().min(piece.iov_len);
        volatile(piece).copy_to(&mut rest[..count]);
        done += count;
    }
}

/// Copies `from` into the pieces; returns how many bytes there was room for.
pub(crate) fn scatter(from: &[u8], pieces: &[iovec]) -> usize {
    let mut done = 0;
    for piece in pieces {
        let rest = from.get(done..).unwrap_or_default();
        let count = rest.len().min(piece.iov_len);
        volatile(piece).copy_from(&rest[..count]);
        done += count;
    }
    done
}

fn volatile(piece: &iovec) -> VolatileSlice<'_> {
    // SAFETY: the module's invariant: the piece is mapped for as long as the worker or the transfer lives, and whoever
    // else writes it (the guest) is tolerated by volatile access. Pieces of ZEROS are only read.
    unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn guest() -> (GuestMemoryMmap, HostBuffer) {
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)]).unwrap();
        let segments = [Segment { addr: 0x0fff, len: 3 }, Segment { addr: 0x10, len: 4 }];
        let buffer = HostBuffer::resolve(&mem, &segments).unwrap();
        (mem, buffer)
    }

    #[test]
    fn buffers_cross_regions_and_segments() {
        let (mem, buffer) = guest();
        assert_eq!(buffer.fill(&[1, 2, 3, 4, 5, 6, 7, 8]), 7);
        assert_eq!(mem.read_obj::<[u8; 3]>(GuestAddress(0x0fff)).unwrap(), [1, 2, 3]);
        assert_eq!(mem.read_obj::<[u8; 4]>(GuestAddress(0x10)).unwrap(), [4, 5, 6, 7]);
        let mut pieces = Vec::new();
        buffer.cut(2, 3, &mut pieces);
        let mut bytes = [0; 3];
        gather(&pieces, &mut bytes);
        assert_eq!(bytes, [3, 4, 5]);
        advance(&mut pieces, 1);
        assert_eq!(total_len(&pieces), 2);
        gather(&pieces, &mut bytes);
        assert_eq!(bytes[..2], [4, 5]);
        buffer.fill_zero(1, 5);
        let mut all = Vec::new();
        buffer.cut(0, 7, &mut all);
        let mut bytes = [9; 7];
        gather(&all, &mut bytes);
        assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn buffers_outside_memory_are_refused() {
        let (mem, _) = guest();
        for segment in [Segment { addr: 0x1fff, len: 2 }, Segment { addr: u64::MAX, len: 1 }] {
            assert!(HostBuffer::resolve(&mem, &[segment]).is_err());
        }
    }

    #[test]
    fn zeros_of_any_length_are_cut() {
        let mut pieces = Vec::new();
        cut_zeros(ZEROS_LEN as u64 * 2 + 512, &mut pieces);
        assert_eq!((pieces.len(), total_len(&pieces)), (3, ZEROS_LEN as u64 * 2 + 512));
    }
}
