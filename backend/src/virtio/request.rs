//! From a chain of buffers to a [`BlockRequest`]: what the guest asks for, checked as far as the disk's limits.
//!
//! Framing is not assumed: the header is the first 16 readable bytes and the status is the last writable byte, however
//! the guest cut its buffers. Invariant: a range in a [`BlockRequest`] lies within the capacity and is a multiple of
//! 512 bytes. Does not: touch the data, or decide whether writes are allowed.

use std::ops::Range;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::SECTOR_LEN;
use super::chain::{Chain, Segment};
use super::config_space::{MAX_ZERO_SECTORS, MAX_ZERO_SEGMENTS};

const HEADER_LEN: usize = 16;
const ZERO_SEGMENT_LEN: usize = 16;
/// Longest read or write: bounds the memory that one request takes, far above what guests send.
pub(crate) const MAX_DATA_LEN: u64 = 32 << 20;
/// Bytes that GET_ID returns.
pub(crate) const ID_LEN: usize = 20;

/// What the guest asks for. Ranges are bytes of the volume; buffers are trimmed to the data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BlockRequest {
    /// Read the range into the buffers.
    Read { range: Range<u64>, data: Vec<Segment> },
    /// Write the buffers to the range.
    Write { range: Range<u64>, data: Vec<Segment> },
    /// The contents of the ranges do not matter any more.
    Discard { ranges: Vec<Range<u64>> },
    /// Make the ranges read as zeros.
    WriteZeroes { ranges: Vec<Range<u64>> },
    /// Make all completed writes durable.
    Flush,
    /// Put the disk's id into the buffers.
    GetId { data: Vec<Segment> },
}

impl BlockRequest {
    /// Bytes of the disk's data that the request carries.
    pub(crate) fn data_len(&self) -> u64 {
        match self {
            BlockRequest::Read { range, .. } | BlockRequest::Write { range, .. } => range.end - range.start,
            BlockRequest::Discard { .. }
            | BlockRequest::WriteZeroes { .. }
            | BlockRequest::Flush
            | BlockRequest::GetId { .. } => 0,
        }
    }
}

/// A request that can be answered: where the status goes, and what is asked or why that is refused.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// Where the status byte goes.
    pub(crate) status: GuestAddress,
    /// What is asked for.
    pub(crate) request: Result<BlockRequest, RequestError>,
}

/// The chain has no place for a status, so it can only be returned as it is.
#[derive(Debug, thiserror::Error)]
#[error("request has no status byte")]
pub(crate) struct NoStatus;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// Fewer than 16 readable bytes.
    #[error("request header is cut short")]
    ShortHeader,
    /// A type that this device does not know.
    #[error("request type {kind} is unknown")]
    UnknownType {
        /// The type.
        kind: u32,
    },
    /// Data that is not whole sectors, or none.
    #[error("{len} bytes of data are not one or more whole sectors")]
    BadDataLen {
        /// Bytes of data.
        len: u64,
    },
    /// More data than one request may carry.
    #[error("{len} bytes of data are more than one request may carry ({MAX_DATA_LEN}); split the request")]
    LongData {
        /// Bytes of data.
        len: u64,
    },
    /// Sectors beyond the end of the disk.
    #[error("sectors from {sector} ({len} bytes) lie beyond the end of the disk")]
    BeyondEnd {
        /// First sector.
        sector: u64,
        /// Bytes from there.
        len: u64,
    },
    /// A discard or write-zeroes payload that is not 1 to the configured number of segments.
    #[error("discard or write-zeroes payload of {len} bytes")]
    BadZeroPayload {
        /// Bytes of payload.
        len: u64,
    },
    /// A discard or write-zeroes segment longer than configured.
    #[error("discard or write-zeroes segment of {sectors} sectors")]
    LongZeroSegment {
        /// Its length in sectors.
        sectors: u32,
    },
    /// A flag that this device does not know, or that this type does not have.
    #[error("discard or write-zeroes flags {flags:#x}")]
    BadZeroFlags {
        /// The flags.
        flags: u32,
    },
    /// A write to a read-only disk.
    #[error("disk is read-only")]
    ReadOnly,
    /// A buffer outside guest memory.
    #[error("buffer is outside guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    /// More pieces of host memory than one vectored transfer takes.
    #[error("buffer has too many pieces")]
    TooManyPieces,
    /// The container refused or failed.
    #[error(transparent)]
    Format(#[from] pitstop_format::Error),
    /// The disk under the container failed.
    #[error("disk: {0}")]
    Io(#[from] std::io::Error),
}

/// Understands the request in `chain`. The chain's segments are used up.
pub(crate) fn parse(mem: &GuestMemoryMmap, chain: &mut Chain, capacity: u64) -> Result<Parsed, NoStatus> {
    let status = take_last_byte(&mut chain.writable).ok_or(NoStatus)?;
    Ok(Parsed { status, request: parse_body(mem, chain, capacity) })
}

fn parse_body(mem: &GuestMemoryMmap, chain: &mut Chain, capacity: u64) -> Result<BlockRequest, RequestError> {
    let mut header = [0; HEADER_LEN];
    if !take_first_bytes(mem, &mut chain.readable, &mut header)? {
        return Err(RequestError::ShortHeader);
    }
    let kind = le32(&header, 0);
    let sector = le64(&header, 8);
    match kind {
        VIRTIO_BLK_T_IN => {
            let data = std::mem::take(&mut chain.writable);
            Ok(BlockRequest::Read { range: data_range(sector, &data, capacity)?, data })
        }
        VIRTIO_BLK_T_OUT => {
            let data = std::mem::take(&mut chain.readable);
            Ok(BlockRequest::Write { range: data_range(sector, &data, capacity)?, data })
        }
        VIRTIO_BLK_T_FLUSH => Ok(BlockRequest::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(BlockRequest::GetId { data: std::mem::take(&mut chain.writable) }),
        VIRTIO_BLK_T_DISCARD => Ok(BlockRequest::Discard { ranges: zero_ranges(mem, chain, capacity, 0)? }),
        VIRTIO_BLK_T_WRITE_ZEROES => {
            let allowed = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
            Ok(BlockRequest::WriteZeroes { ranges: zero_ranges(mem, chain, capacity, allowed)? })
        }
        _ => Err(RequestError::UnknownType { kind }),
    }
}

/// Bytes in all segments.
pub(crate) fn total_len(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

fn data_range(sector: u64, data: &[Segment], capacity: u64) -> Result<Range<u64>, RequestError> {
    let len = total_len(data);
    if len == 0 || !len.is_multiple_of(SECTOR_LEN) {
        return Err(RequestError::BadDataLen { len });
    }
    if len > MAX_DATA_LEN {
        return Err(RequestError::LongData { len });
    }
    byte_range(sector, len, capacity)
}

fn byte_range(sector: u64, len: u64, capacity: u64) -> Result<Range<u64>, RequestError> {
    let beyond = RequestError::BeyondEnd { sector, len };
    let start = sector.checked_mul(SECTOR_LEN);
    match start.and_then(|start| Some(start..start.checked_add(len)?)) {
        Some(range) if range.end <= capacity => Ok(range),
        _ => Err(beyond),
    }
}

/// Reads the segments of a discard or write-zeroes request; empty ones are left out.
fn zero_ranges(
    mem: &GuestMemoryMmap,
    chain: &mut Chain,
    capacity: u64,
    allowed_flags: u32,
) -> Result<Vec<Range<u64>>, RequestError> {
    let len = total_len(&chain.readable);
    let most = u64::from(MAX_ZERO_SEGMENTS) * ZERO_SEGMENT_LEN as u64;
    if len == 0 || len > most || !len.is_multiple_of(ZERO_SEGMENT_LEN as u64) {
        return Err(RequestError::BadZeroPayload { len });
    }
    let mut ranges = Vec::new();
    let mut segment = [0; ZERO_SEGMENT_LEN];
    while take_first_bytes(mem, &mut chain.readable, &mut segment)? {
        let (sector, sectors, flags) = (le64(&segment, 0), le32(&segment, 8), le32(&segment, 12));
        if flags & !allowed_flags != 0 {
            return Err(RequestError::BadZeroFlags { flags });
        }
        if sectors > MAX_ZERO_SECTORS {
            return Err(RequestError::LongZeroSegment { sectors });
        }
        let range = byte_range(sector, u64::from(sectors) * SECTOR_LEN, capacity)?;
        if !range.is_empty() {
            ranges.push(range);
        }
    }
    Ok(ranges)
}

/// Cuts the last byte off and returns its address.
fn take_last_byte(segments: &mut Vec<Segment>) -> Option<GuestAddress> {
    let last = segments.last_mut()?;
    last.len -= 1; // segments are never empty
    let at = last.addr.checked_add(u64::from(last.len));
    if last.len == 0 {
        segments.pop();
    }
    at.map(GuestAddress)
}

/// Fills `bytes` from the front of the segments and cuts that off; `false` if there are too few bytes.
fn take_first_bytes(
    mem: &GuestMemoryMmap,
    segments: &mut Vec<Segment>,
    bytes: &mut [u8],
) -> Result<bool, GuestMemoryError> {
    if total_len(segments) < bytes.len() as u64 {
        return Ok(false);
    }
    let (mut filled, mut whole) = (0, 0);
    for segment in segments.iter_mut() {
        let rest = bytes.get_mut(filled..).unwrap_or_default();
        let count = rest.len().min(segment.len as usize);
        mem.read_slice(rest.get_mut(..count).unwrap_or_default(), GuestAddress(segment.addr))?;
        filled += count;
        segment.addr += count as u64;
        segment.len -= count as u32;
        if segment.len > 0 {
            break;
        }
        whole += 1;
        if filled == bytes.len() {
            break;
        }
    }
    segments.drain(..whole);
    Ok(true)
}

fn le32(bytes: &[u8; 16], at: usize) -> u32 {
    let mut le = [0; 4];
    le.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(le)
}

fn le64(bytes: &[u8; 16], at: usize) -> u64 {
    let mut le = [0; 8];
    le.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(le)
}
