//! Requests and flushes under way, carried out in steps that interleave with everything else.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use pitstop_format::{Edge, EdgeSource, Flush, ReadPlan, Volume, WriteSegment, WriteTicket, ZeroKind, ZeroTicket};

use crate::common::promises::Volume as Model;
use crate::common::{SECTOR, stamp, stamped};

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Write number.
    Write(u64),
    Zero(ZeroKind),
}

impl Kind {
    /// What a sector shows when the request has completed.
    pub fn value(self, sector: u64) -> u64 {
        match self {
            Kind::Write(number) => stamp(number, sector),
            Kind::Zero(_) => 0,
        }
    }

    /// The sectors that change, of those that the request names: only whole blocks are discarded.
    pub fn changes(self, sectors: Range<u64>) -> Range<u64> {
        match self {
            Kind::Zero(ZeroKind::Discard) => {
                let (first, last) = (sectors.start.next_multiple_of(8), sectors.end / 8 * 8);
                first..last.max(first)
            }
            Kind::Write(_) | Kind::Zero(ZeroKind::WriteZeroes) => sectors,
        }
    }
}

pub enum Ticket {
    Write(WriteTicket),
    Zero(ZeroTicket),
}

impl Ticket {
    pub fn segments(&self) -> &[WriteSegment] {
        match self {
            Ticket::Write(ticket) => ticket.segments(),
            Ticket::Zero(ticket) => ticket.segments(),
        }
    }

    pub fn edges(&self) -> &[Edge] {
        match self {
            Ticket::Write(ticket) => ticket.edges(),
            Ticket::Zero(ticket) => ticket.edges(),
        }
    }

    pub fn remaining(&self) -> Option<Range<u64>> {
        match self {
            Ticket::Write(_) => None,
            Ticket::Zero(ticket) => ticket.remaining(),
        }
    }

    pub fn complete(self) {
        match self {
            Ticket::Write(ticket) => ticket.complete(),
            Ticket::Zero(ticket) => ticket.complete(),
        }
    }
}

/// A write to the disk that a plan asks for.
#[derive(Debug, Clone, Copy)]
pub enum DiskWrite {
    Segment(WriteSegment),
    Edge(Edge),
}

impl DiskWrite {
    pub fn all(ticket: &Ticket) -> Vec<Self> {
        let edges = ticket.edges().iter().copied().map(DiskWrite::Edge);
        edges.chain(ticket.segments().iter().copied().map(DiskWrite::Segment)).collect()
    }

    /// Where and what; `read` fills a block from the disk.
    pub fn bytes(self, buffer: &[u8], read: impl FnOnce(&mut [u8], u64)) -> (u64, Vec<u8>) {
        match self {
            DiskWrite::Segment(segment) => {
                let from = segment.buffer_offset as usize;
                (segment.disk_offset, buffer[from..from + segment.len as usize].to_vec())
            }
            DiskWrite::Edge(edge) => {
                let mut block = vec![0; 4096];
                if let EdgeSource::Disk { offset } = edge.source {
                    read(&mut block, offset);
                }
                let from = edge.buffer_offset as usize;
                block[edge.offset_in_block..][..edge.len].copy_from_slice(&buffer[from..from + edge.len]);
                (edge.disk_offset, block)
            }
        }
    }
}

pub enum State {
    /// To be planned, or planned again: these bytes are left.
    Waiting(Range<u64>),
    /// Planned: these writes are still to be issued, those are issued.
    Active { ticket: Box<Ticket>, buffer: Vec<u8>, to_issue: Vec<DiskWrite>, issued: Vec<u64> },
}

/// A request under way.
pub struct Request {
    pub handle: Volume,
    /// The volume's life for which it was planned last.
    pub life: u64,
    pub kind: Kind,
    /// The sectors it names.
    pub sectors: Range<u64>,
    pub state: State,
    /// What the present plan covers of the sectors that change.
    pub covers: Vec<Range<u64>>,
    /// The lives in which the model knows that everything that is left may show: a plan that had to wait may have done a
    /// part.
    pub marked: Vec<u64>,
    /// Other lives that the present plan ends in, too: copies whose instant came after it, what a view is of.
    pub copies: Vec<u64>,
}

impl Request {
    pub fn new(handle: Volume, life: u64, kind: Kind, sectors: Range<u64>) -> Self {
        let bytes = sectors.start * SECTOR..sectors.end * SECTOR;
        let state = State::Waiting(bytes);
        Self { handle, life, kind, sectors, state, covers: Vec::new(), marked: Vec::new(), copies: Vec::new() }
    }

    /// The bytes to write, for a plan of `bytes`.
    pub fn buffer(&self, bytes: &Range<u64>) -> Vec<u8> {
        match self.kind {
            Kind::Write(number) => stamped(bytes.start / SECTOR..bytes.end / SECTOR, number),
            Kind::Zero(_) => Vec::new(),
        }
    }

    /// The sectors that change and that a plan of `bytes` covers when `remaining` is left.
    pub fn covered(&self, bytes: &Range<u64>, remaining: Option<&Range<u64>>) -> Vec<Range<u64>> {
        let planned = self.kind.changes(bytes.start / SECTOR..bytes.end / SECTOR);
        let ranges = match remaining {
            None => vec![planned],
            Some(left) => vec![planned.start..left.start / SECTOR, left.end / SECTOR..planned.end],
        };
        ranges.into_iter().filter(|range| !range.is_empty()).collect()
    }

    pub fn meets(&self, sectors: &Range<u64>) -> bool {
        self.sectors.start < sectors.end && sectors.start < self.sectors.end
    }
}

/// A read under way: planned, its bytes not yet read.
pub struct Reading {
    pub plan: ReadPlan,
    pub life: u64,
    pub sectors: Range<u64>,
    /// The volume as it was when the read was planned.
    pub then: Arc<Model>,
    /// Values of writes that have begun since.
    pub since: HashSet<u64>,
}

/// How far a flush has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing is issued for it.
    Waiting,
    Syncing(u64),
    Appending(u64),
}

/// A flush under way.
pub struct Flushing {
    pub flush: Flush,
    pub life: u64,
    /// When it began, on the model's clock.
    pub began: u64,
    /// It promises something: its volume's durability is flush.
    pub promises: bool,
    pub stage: Stage,
}
