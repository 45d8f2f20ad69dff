//! One guest request on its way: plan, transfers, publish, flush, and then its outcome.
//!
//! Invariant: the plan or ticket of a request is kept until all its transfers have ended, and is completed only if all
//! succeeded; dropping it abandons the write. A request in a write-through queue ends only after a flush that began
//! after its data was published. Does not: touch rings or statuses (`worker`).

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::task::Waker;

use libc::iovec;
use pitstop_format::{
    Container, Flush, FlushStep, JournalAppend, PageLoad, Planned, ReadPlan, TagLoad, TagStep, TaggedRead, Volume,
    WriteTicket, ZeroKind, ZeroTicket,
};
use vm_memory::GuestAddress;

use super::Durability;
use super::buffers::{AlignedBuf, HostBuffer, cut_zeros};
use super::start::{start_read, start_verified_read, start_write};
use super::transfer::Kind;
use super::transfers::{Finished, Transfers};
use crate::trouble::Operation;
use crate::virtio::request::RequestError;

/// What a request wants.
#[derive(Debug)]
pub(crate) enum Work {
    /// From the volume into the buffer.
    Read { range: Range<u64>, buffer: HostBuffer },
    /// From the buffer into the volume.
    Write { range: Range<u64>, buffer: HostBuffer },
    /// Zeros, range by range; the first is the one under way.
    Zero { kind: ZeroKind, ranges: VecDeque<Range<u64>> },
    /// Durability of what was completed before.
    Flush,
}

/// How far a request is.
#[derive(Debug)]
enum Stage {
    Planning,
    Loading(PageLoad),
    LoadingTags(Box<LoadingTags>),
    Reading(ReadPlan),
    Writing(WriteTicket),
    Zeroing(ZeroTicket),
    Flushing(Flush),
    /// The record is boxed so that its bytes stay where they are while the kernel reads them.
    Appending(Flush, Box<JournalAppend>),
}

/// What has been planned and not begun.
#[derive(Debug)]
enum Ready {
    Read(ReadPlan),
    Write(WriteTicket),
    Zero(ZeroTicket),
}

impl Ready {
    /// What of it is read, by the guest or to complete a block.
    fn reads(&self) -> TaggedRead {
        match self {
            Self::Read(plan) => TaggedRead::of_plan(plan),
            Self::Write(ticket) => TaggedRead::of_edges(ticket.edges()),
            Self::Zero(ticket) => TaggedRead::of_edges(ticket.edges()),
        }
    }
}

/// A plan that waits for tags of what it reads.
#[derive(Debug)]
struct LoadingTags {
    ready: Ready,
    read: TaggedRead,
    load: TagLoad,
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Task {
    /// The chain to give back.
    pub(crate) head: u16,
    /// Where the status goes.
    pub(crate) status: GuestAddress,
    /// Bytes that the guest's buffer gets if all goes well, without the status.
    pub(crate) data_len: u32,
    work: Work,
    stage: Stage,
    /// Transfers that have not ended.
    pending: usize,
    failure: Option<RequestError>,
    /// The block that was loaded.
    page: Option<AlignedBuf>,
    /// The result of a sync or append, for the flush.
    flush_result: Option<io::Result<()>>,
    /// The lack of space for which it waits, or has waited.
    starved_by: Option<RequestError>,
}

/// What a task needs to go on.
pub(crate) struct Context<'a> {
    pub(crate) container: &'a Container,
    pub(crate) volume: &'a Volume,
    pub(crate) durability: Durability,
    pub(crate) transfers: &'a mut Transfers,
    pub(crate) waker: &'a Waker,
    /// A cleared plan to be used again.
    pub(crate) spare_plan: &'a mut Option<ReadPlan>,
}

/// What became of a task that was asked to go on.
#[derive(Debug)]
pub(crate) enum Advance {
    /// It waits for its transfers.
    Waits,
    /// It waits to be woken.
    Parked,
    /// It has ended.
    Ended(Result<(), RequestError>),
}

impl Task {
    pub(crate) fn new(head: u16, status: GuestAddress, data_len: u32, work: Work) -> Self {
        Task {
            head,
            status,
            data_len,
            work,
            stage: Stage::Planning,
            pending: 0,
            failure: None,
            page: None,
            flush_result: None,
            starved_by: None,
        }
    }

    /// What the request does to the disk.
    pub(crate) fn operation(&self) -> Operation {
        match self.work {
            Work::Read { .. } => Operation::Read,
            Work::Write { .. } | Work::Zero { .. } | Work::Flush => Operation::Write,
        }
    }

    /// Puts a request that ended for lack of space back to its planning; `true` if it had not waited before. It keeps no
    /// ticket, so that nothing waits for it (VOL-21).
    pub(crate) fn starve(&mut self, error: RequestError) -> bool {
        assert!(self.pending == 0 && self.failure.is_none(), "a request under way cannot wait for space");
        self.stage = Stage::Planning;
        self.page = None;
        self.starved_by.replace(error).is_none()
    }

    /// The lack of space for which it waits, or has waited.
    pub(crate) fn take_starved_by(&mut self) -> Option<RequestError> {
        self.starved_by.take()
    }

    /// Takes the end of one of the task's transfers; `true` if it was the last.
    pub(crate) fn transfer_ended(&mut self, finished: Finished) -> bool {
        assert!(self.pending > 0, "a transfer ended that its task did not start");
        self.pending -= 1;
        if matches!(self.stage, Stage::Flushing(_) | Stage::Appending(..)) {
            // The first error stays: one lost piece makes the whole worthless. The flush decides what that means.
            if !matches!(self.flush_result, Some(Err(_))) {
                self.flush_result = Some(finished.result.map(drop).map_err(|error| match error {
                    RequestError::Io(error) => error,
                    error => io::Error::other(error.to_string()),
                }));
            }
        } else {
            match finished.result {
                Ok(page) => self.page = self.page.take().or(page),
                Err(error) => self.failure = Some(error),
            }
        }
        self.pending == 0
    }

    /// Operations that it will make when it has the tags that it waits for (TAG-19).
    fn waiting_parts(&self) -> usize {
        match &self.stage {
            Stage::LoadingTags(loading) => loading.read.len(),
            _ => 0,
        }
    }

    /// Goes on as far as possible without waiting. `id` is the task's number for its transfers.
    pub(super) fn advance(&mut self, id: usize, context: &mut Context<'_>) -> Advance {
        loop {
            if self.pending > 0 {
                return Advance::Waits;
            }
            // A page of tags that cannot be read is no reason to end (TAG-18).
            if !matches!(self.stage, Stage::LoadingTags(_))
                && let Some(error) = self.failure.take()
            {
                return Advance::Ended(Err(error));
            }
            match self.step(id, context) {
                Ok(None) => {}
                Ok(Some(advance)) => return advance,
                Err(error) => return Advance::Ended(Err(error)),
            }
        }
    }

    /// One step from a stage whose transfers have ended.
    fn step(&mut self, id: usize, context: &mut Context<'_>) -> Result<Option<Advance>, RequestError> {
        match std::mem::replace(&mut self.stage, Stage::Planning) {
            Stage::Planning => self.plan(id, context),
            Stage::Loading(load) => {
                let page = self.page.take();
                if let Some(next) = page.map(|page| context.container.install_page(load, &page)).transpose()?.flatten()
                {
                    self.load(id, next, context);
                }
                Ok(None)
            }
            Stage::LoadingTags(loading) => {
                let LoadingTags { ready, mut read, load } = *loading;
                match (self.page.take(), self.failure.take()) {
                    (Some(page), None) => context.container.install_tags(&mut read, load, &page),
                    (_, Some(RequestError::Io(error))) => context.container.miss_tags(&mut read, load, &error),
                    (_, failure) => panic!("a page of tags was read with {failure:?}"),
                }
                self.look_up_tags(id, ready, read, context);
                Ok(None)
            }
            Stage::Reading(mut plan) => {
                plan.clear();
                *context.spare_plan = Some(plan);
                Ok(Some(Advance::Ended(Ok(()))))
            }
            Stage::Writing(ticket) => {
                ticket.complete();
                Ok(self.written(context))
            }
            Stage::Zeroing(ticket) => {
                let remaining = ticket.remaining();
                ticket.complete();
                let Work::Zero { ranges, .. } = &mut self.work else { panic!("zeros written for another request") };
                ranges.pop_front();
                if let Some(rest) = remaining {
                    ranges.push_front(rest);
                }
                if ranges.is_empty() { Ok(self.written(context)) } else { Ok(None) }
            }
            Stage::Flushing(mut flush) => {
                if let Some(result) = self.flush_result.take() {
                    flush.synced(result);
                }
                self.poll_flush(id, flush, context)
            }
            Stage::Appending(mut flush, record) => {
                drop(record);
                if let Some(result) = self.flush_result.take() {
                    flush.appended(result);
                }
                self.poll_flush(id, flush, context)
            }
        }
    }

    /// The volume has the data: done, or a flush first.
    fn written(&mut self, context: &Context<'_>) -> Option<Advance> {
        match context.durability {
            Durability::OnFlush => Some(Advance::Ended(Ok(()))),
            Durability::EveryWrite => {
                self.stage = Stage::Flushing(context.volume.start_flush());
                None
            }
        }
    }

    fn plan(&mut self, id: usize, context: &mut Context<'_>) -> Result<Option<Advance>, RequestError> {
        let load = match &self.work {
            Work::Read { range, .. } => {
                let mut plan = context.spare_plan.take().unwrap_or_default();
                match context.volume.plan_read(range.clone(), &mut plan)? {
                    Planned::Ready(()) => {
                        self.begin(id, Ready::Read(plan), context);
                        return Ok(None);
                    }
                    Planned::NeedPage(load) => load,
                    Planned::Busy => return Ok(Some(Advance::Parked)),
                }
            }
            Work::Write { range, .. } => match context.volume.plan_write(range.clone(), context.waker)? {
                Planned::Ready(ticket) => {
                    self.begin(id, Ready::Write(ticket), context);
                    return Ok(None);
                }
                Planned::NeedPage(load) => load,
                Planned::Busy => return Ok(Some(Advance::Parked)),
            },
            Work::Zero { kind, ranges } => {
                let Some(range) = ranges.front() else { return Ok(self.written(context)) };
                match context.volume.plan_zero(range.clone(), *kind, context.waker)? {
                    Planned::Ready(ticket) => {
                        self.begin(id, Ready::Zero(ticket), context);
                        return Ok(None);
                    }
                    Planned::NeedPage(load) => load,
                    Planned::Busy => return Ok(Some(Advance::Parked)),
                }
            }
            Work::Flush => {
                self.stage = Stage::Flushing(context.volume.start_flush());
                return Ok(None);
            }
        };
        self.load(id, load, context);
        Ok(None)
    }

    /// Begins what has been planned; what it reads is verified if the volume says so (TAG-14, TAG-15).
    fn begin(&mut self, id: usize, ready: Ready, context: &mut Context<'_>) {
        if context.volume.verifies_reads() {
            let read = ready.reads();
            if !read.is_empty() {
                return self.look_up_tags(id, ready, read, context);
            }
        }
        self.carry_out(id, ready, None, context);
    }

    /// Goes on when the tags are known; if the data is elsewhere by now, it is planned again.
    fn look_up_tags(&mut self, id: usize, ready: Ready, mut read: TaggedRead, context: &mut Context<'_>) {
        match context.container.look_up_tags(&mut read) {
            TagStep::Ready => self.carry_out(id, ready, Some(read), context),
            TagStep::NeedTags(load) => {
                self.pending = context.transfers.start(id, Kind::ReadPage, Vec::new(), load.offset());
                self.stage = Stage::LoadingTags(Box::new(LoadingTags { ready, read, load }));
            }
            TagStep::Moved => self.stage = Stage::Planning,
        }
    }

    /// Begins a read that was planned before; whether it is planned again instead.
    #[cfg(test)]
    pub(super) fn begin_read(&mut self, plan: ReadPlan, context: &mut Context<'_>) -> bool {
        self.begin(0, Ready::Read(plan), context);
        matches!(self.stage, Stage::Planning)
    }

    fn carry_out(&mut self, id: usize, ready: Ready, read: Option<TaggedRead>, context: &mut Context<'_>) {
        let transfers = &mut *context.transfers;
        match (ready, &self.work) {
            (Ready::Read(plan), Work::Read { buffer, .. }) => {
                self.pending = match read {
                    None => start_read(id, &plan, buffer, transfers),
                    Some(read) => start_verified_read(id, &plan, read, buffer, transfers),
                };
                self.stage = Stage::Reading(plan);
            }
            (Ready::Write(ticket), Work::Write { buffer, .. }) => {
                let cut = |offset, len, pieces: &mut Vec<iovec>| buffer.cut(offset, len, pieces);
                self.pending = start_write(id, ticket.segments(), (ticket.edges(), read), transfers, cut);
                self.stage = Stage::Writing(ticket);
            }
            (Ready::Zero(ticket), Work::Zero { .. }) => {
                let cut = |_, len, pieces: &mut Vec<iovec>| cut_zeros(len, pieces);
                self.pending = start_write(id, ticket.segments(), (ticket.edges(), read), transfers, cut);
                self.stage = Stage::Zeroing(ticket);
            }
            (ready, work) => panic!("{ready:?} was planned for {work:?}"),
        }
    }

    fn load(&mut self, id: usize, load: PageLoad, context: &mut Context<'_>) {
        self.pending = context.transfers.start(id, Kind::ReadPage, Vec::new(), load.offset());
        self.stage = Stage::Loading(load);
    }

    fn poll_flush(
        &mut self,
        id: usize,
        mut flush: Flush,
        context: &mut Context<'_>,
    ) -> Result<Option<Advance>, RequestError> {
        match flush.poll(context.waker)? {
            FlushStep::Done => return Ok(Some(Advance::Ended(Ok(())))),
            FlushStep::Wait => {
                self.stage = Stage::Flushing(flush);
                return Ok(Some(Advance::Parked));
            }
            FlushStep::Sync => {
                self.pending = context.transfers.start(id, Kind::Sync, Vec::new(), 0);
                self.stage = Stage::Flushing(flush);
            }
            FlushStep::Append(record) => {
                let record = Box::new(record);
                let bytes = record.bytes();
                let mut pieces = context.transfers.pieces();
                pieces.push(iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
                self.pending = context.transfers.start(id, Kind::WriteDurable, pieces, record.offset());
                self.stage = Stage::Appending(flush, record);
            }
        }
        Ok(None)
    }
}

/// All tasks of one queue, by number.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    slots: Vec<Option<Task>>,
    free: Vec<usize>,
    waiting_parts: usize,
}

impl Tasks {
    /// Adds a task; returns its number.
    pub(crate) fn insert(&mut self, task: Task) -> usize {
        let id = self.free.pop().unwrap_or(self.slots.len());
        if id == self.slots.len() {
            self.slots.push(Some(task));
        } else {
            self.slots[id] = Some(task);
        }
        id
    }

    /// The task of that number, which must exist.
    pub(crate) fn get_mut(&mut self, id: usize) -> &mut Task {
        let Some(task) = self.slots.get_mut(id).and_then(Option::as_mut) else {
            panic!("task {id} does not exist");
        };
        task
    }

    /// Lets a task go on as far as possible without waiting.
    pub(super) fn advance(&mut self, id: usize, context: &mut Context<'_>) -> Advance {
        let task = self.get_mut(id);
        let before = task.waiting_parts();
        let advance = task.advance(id, context);
        let now = task.waiting_parts();
        self.waiting_parts = self.waiting_parts + now - before;
        advance
    }

    /// Operations that tasks will make when they have the tags that they wait for.
    pub(super) fn waiting_parts(&self) -> usize {
        self.waiting_parts
    }

    /// Takes the task of that number out.
    pub(crate) fn remove(&mut self, id: usize) -> Task {
        let Some(task) = self.slots.get_mut(id).and_then(Option::take) else {
            panic!("task {id} does not exist");
        };
        self.free.push(id);
        task
    }

    /// Tasks under way.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_piece_of_a_flush_is_not_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let disk = pitstop_format::FileDisk::create(&folder.path().join("d.pit")).unwrap();
        Container::create(disk.clone(), &pitstop_format::CreateOptions::default()).unwrap();
        let container = Container::open(disk, pitstop_format::OpenMode::ReadWrite).unwrap();
        container.create_volume("v", 1 << 20).unwrap();
        let mut task = Task::new(0, GuestAddress(0), 0, Work::Flush);
        task.stage = Stage::Flushing(container.volume("v").unwrap().start_flush());
        task.pending = 2;
        assert!(!task.transfer_ended(Finished { task: 0, result: Err(io::Error::other("lost").into()) }));
        assert!(task.transfer_ended(Finished { task: 0, result: Ok(None) }));
        assert!(matches!(task.flush_result, Some(Err(_))));
    }
}
