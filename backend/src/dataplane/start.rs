//! From a plan to transfers: which bytes go between which memory and which place of the file.
//!
//! Invariant: the transfers of a plan together move just what it names. Does not: plan, wait, or know what comes of a request.

use libc::iovec;
use pitstop_format::{Check, Edge, EdgeSource, ReadPlan, ReadSegment, TaggedRead, WriteSegment};

use super::buffers::{HostBuffer, MAX_ZEROS_LEN};
use super::transfer::Kind;
use super::transfers::Transfers;

/// Starts the transfers of a read; parts that read as zeros are filled at once.
pub(super) fn start_read(id: usize, plan: &ReadPlan, buffer: &HostBuffer, transfers: &mut Transfers) -> usize {
    let (mut started, mut done) = (0, 0);
    for segment in plan.segments() {
        match *segment {
            ReadSegment::Data { disk_offset, len } => {
                let mut pieces = transfers.pieces();
                buffer.cut(done, len, &mut pieces);
                started += transfers.start(id, Kind::Read, pieces, disk_offset);
                done += len;
            }
            ReadSegment::Zero { len } => {
                buffer.fill_zero(done, len);
                done += len;
            }
        }
    }
    started
}

/// As [`start_read`], of a plan of which `read` was made: what has tags is verified, slab by slab.
pub(super) fn start_verified_read(
    id: usize,
    plan: &ReadPlan,
    read: TaggedRead,
    buffer: &HostBuffer,
    transfers: &mut Transfers,
) -> usize {
    let (mut started, mut done) = (0, 0);
    let mut parts = read.into_parts();
    for segment in plan.segments() {
        let (disk_offset, len) = match *segment {
            ReadSegment::Data { disk_offset, len } => (disk_offset, len),
            ReadSegment::Zero { len } => {
                buffer.fill_zero(done, len);
                done += len;
                continue;
            }
        };
        // From `from` to `at` nothing has tags: that goes at once.
        let (mut from, mut at) = (0, 0);
        let mut start = |from: u64, to: u64, check: Option<Check>| {
            if from == to {
                return;
            }
            let mut pieces = transfers.pieces();
            buffer.cut(done + from, to - from, &mut pieces);
            let offset = disk_offset + from;
            started += match check {
                None => transfers.start(id, Kind::Read, pieces, offset),
                Some(check) => transfers.start_checked(id, Kind::Read, pieces, offset, check),
            };
        };
        while at < len {
            let Some(part) = parts.next() else { panic!("the parts are not those of the plan") };
            let next = at + part.len;
            if part.check.is_some() {
                start(from, at, None);
                start(at, next, part.check);
                from = next;
            }
            at = next;
        }
        start(from, at, None);
        done += len;
    }
    started
}

/// Starts the transfers of a write whose bytes `cut` gives; the edges are with what they read, if that is to be verified.
pub(super) fn start_write(
    id: usize,
    segments: &[WriteSegment],
    (edges, read): (&[Edge], Option<TaggedRead>),
    transfers: &mut Transfers,
    cut: impl Fn(u64, u64, &mut Vec<iovec>),
) -> usize {
    let mut started = 0;
    let mut sources = read.into_iter().flat_map(TaggedRead::into_parts);
    for segment in segments {
        let mut done = 0;
        while done < segment.len {
            // Pieces of zeros are short: a long run of them goes in several transfers.
            let len = (segment.len - done).min(MAX_ZEROS_LEN);
            let mut pieces = transfers.pieces();
            cut(segment.buffer_offset + done, len, &mut pieces);
            started += transfers.start(id, Kind::Write, pieces, segment.disk_offset + done);
            done += len;
        }
    }
    for edge in edges {
        let (source, check) = match edge.source {
            EdgeSource::Zero => (None, None),
            EdgeSource::Disk { offset } => (Some(offset), sources.next().and_then(|part| part.check)),
        };
        let mut pieces = transfers.pieces();
        cut(edge.buffer_offset, edge.len as u64, &mut pieces);
        let kind = Kind::Edge { source, offset_in_block: edge.offset_in_block };
        started += match check {
            None => transfers.start(id, kind, pieces, edge.disk_offset),
            Some(check) => transfers.start_checked(id, kind, pieces, edge.disk_offset, check),
        };
    }
    started
}
