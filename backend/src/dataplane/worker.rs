//! A queue's thread: takes heads, moves tasks on, gives answers back, polls a little, sleeps.
//!
//! Each turn of the loop takes some completions and some offered heads, then makes all answers visible with one index
//! store, notifies once, and enters the kernel once. Invariant: every head taken is given back exactly once, its status
//! byte written before (in [`Worker::answer`], the only place that does). When the ring or the memory turns out broken,
//! the queue takes no more heads, finishes what it has, and tells the session to end.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use io_uring::types::{Fd, Timespec};
use io_uring::{opcode, squeue};
use pitstop_format::{ReadPlan, ZeroKind};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::buffers::HostBuffer;
use super::polling::Polling;
use super::task::{Advance, Context, Task, Tasks, Work};
use super::transfers::{Finished, Transfers};
use super::wake::Signal;
use super::{CallSlot, DataDisk, Durability, QueueSetup};
use crate::config::{Access, OnNoSpace};
use crate::failure_log::FailureLog;
use crate::jobs::QueueActivity;
use crate::session::memory::GuestMap;
use crate::trouble::{Operation, Trouble, is_no_space};
use crate::virtio::chain::{Chain, Table};
use crate::virtio::request::{BlockRequest, ID_LEN, RequestError, parse, total_len};
use crate::virtio::ring::SplitRing;
use crate::virtio::status::{is_guests_fault, status_byte};

/// User data of ring entries that are not transfers.
const KICK: u64 = u64::MAX;
const BELL: u64 = u64::MAX - 1;
const CALL: u64 = u64::MAX - 2;
const TIMER: u64 = u64::MAX - 3;

/// Most completions and most heads taken in one turn, and most bytes of data these may carry: between turns what was taken
/// is submitted, answers become visible, and a stop is seen, whatever the guest offers. Few, so that the guest wakes up
/// with the first answers while the others are given, and the storage begins with the first heads while the next are
/// planned.
const MAX_TURN: usize = 4;
const MAX_TURN_LEN: u64 = 4 << 20;
/// While more transfers than this exist, or are to come of reads that wait for tags, no head is taken: bounds the memory of
/// requests under way (TAG-19).
const MAX_TRANSFERS: usize = 4096;

/// How long requests that wait for space wait between two plans (VOL-21). A timer, because the storage tells nobody
/// when it has room again.
static STARVED_PERIOD: Timespec = Timespec::new().nsec(200_000_000);

/// What an eventfd is signalled with.
static ONE: u64 = 1;

/// One queue and all that is under way in it.
pub(crate) struct Worker {
    // Dropped first: after it the kernel touches nothing of the rest.
    transfers: Transfers,
    tasks: Tasks,
    /// Tasks that wait to be woken, oldest first.
    parked: Vec<usize>,
    /// Tasks that wait for space, oldest first.
    starved: Vec<usize>,
    timer_armed: bool,
    trouble: Arc<Trouble>,
    activity: Arc<QueueActivity>,
    ring: SplitRing,
    chain: Chain,
    map: Arc<GuestMap>,
    container: pitstop_format::Container,
    volume: pitstop_format::Volume,
    access: Access,
    durability: Durability,
    name: String,
    kick: OwnedFd,
    call: Arc<CallSlot>,
    /// The descriptor that the notification under way uses.
    calling: Option<Arc<File>>,
    call_again: bool,
    signal: Arc<Signal>,
    waker: Waker,
    kick_armed: bool,
    bell_armed: bool,
    failure: Arc<EventFd>,
    failed: bool,
    completions: Vec<(u64, i32)>,
    finished: Vec<Finished>,
    spare_plan: Option<ReadPlan>,
    polling: Polling,
    failures: FailureLog,
}

impl Worker {
    /// Prepares the queue; must be called by the thread that runs it.
    pub(crate) fn new(setup: QueueSetup, signal: Arc<Signal>) -> io::Result<Self> {
        let disk: Arc<DataDisk> = setup.disk;
        let activity = disk.activity().queue();
        Ok(Worker {
            transfers: Transfers::new(disk)?,
            tasks: Tasks::default(),
            parked: Vec::new(),
            starved: Vec::new(),
            timer_armed: false,
            trouble: setup.trouble,
            activity,
            ring: setup.ring,
            chain: Chain::default(),
            map: setup.map,
            container: setup.container,
            volume: setup.volume,
            access: setup.access,
            durability: setup.durability,
            name: setup.name,
            kick: setup.kick,
            call: setup.call,
            calling: None,
            // The first turn signals: an answer of a run before may have found no descriptor.
            call_again: true,
            waker: signal.waker(),
            signal,
            kick_armed: false,
            bell_armed: false,
            failure: setup.failure,
            failed: false,
            completions: Vec::new(),
            finished: Vec::new(),
            spare_plan: None,
            polling: Polling::new(),
            failures: FailureLog::default(),
        })
    }

    /// Serves the queue until it is asked to stop; returns the index of the next available head.
    pub(crate) fn run(&mut self) -> u16 {
        if let Err(error) = self.ring.disable_kicks(self.map.memory()) {
            self.fail(&error);
        }
        loop {
            let mut worked = self.take_completions();
            if self.signal.take_retry() {
                worked |= self.retry_parked();
                self.call_again |= self.call.take_replaced();
            }
            let stopping = self.failed || self.signal.is_stopping();
            if stopping {
                self.give_up_starved();
            } else {
                worked |= self.take_heads();
            }
            if !self.starved.is_empty() && !self.timer_armed {
                self.timer_armed = self.push(opcode::Timeout::new(&raw const STARVED_PERIOD).build().user_data(TIMER));
            }
            self.publish();
            if let Err(error) = self.transfers.submit() {
                abandon(&self.name, &error);
            }
            if self.map.is_lost() && !self.failed {
                self.fail(&"the front end took guest memory away");
            }
            if stopping && self.tasks.len() == 0 {
                self.tell_of_failures();
                self.notify_last();
                // Whoever serves the ring next may be another program, which waits for a kick.
                if let Err(error) = self.ring.enable_kicks(self.map.memory()) {
                    log::debug!("{}: {error}", self.name);
                }
                return self.ring.next_avail();
            }
            if worked || self.transfers.is_held_up() {
                self.polling.worked();
            } else if self.tasks.len() == 0 && self.polling.goes_on() {
                std::hint::spin_loop();
            } else {
                self.sleep(stopping);
            }
        }
    }

    /// Waits for a kick, a completion or the bell, whichever comes first.
    fn sleep(&mut self, stopping: bool) {
        let takes_heads = !stopping && self.has_room();
        if takes_heads {
            match self.ring.enable_kicks(self.map.memory()) {
                Ok(false) => {}
                Ok(true) => return self.disable_kicks(),
                Err(error) => return self.fail(&error),
            }
            if !self.kick_armed {
                self.kick_armed = self.arm(self.kick.as_raw_fd(), KICK);
            }
        }
        if !self.bell_armed {
            self.bell_armed = self.arm(self.signal.as_raw_fd(), BELL);
        }
        // The storage's interrupt wakes a processor anyway, but a guest's request may come sooner than a wake-up lasts.
        let waits_for_guest = self.tasks.len() == 0;
        self.activity.sleeps(self.tasks.len() > self.starved.len());
        if let Err(error) = self.transfers.ring().wait() {
            abandon(&self.name, &error);
        }
        if waits_for_guest {
            self.polling.slept();
        }
        if takes_heads {
            self.disable_kicks();
        }
    }

    fn disable_kicks(&mut self) {
        if let Err(error) = self.ring.disable_kicks(self.map.memory()) {
            self.fail(&error);
        }
    }

    /// Lets the ring report once that `fd` is readable.
    fn arm(&mut self, fd: i32, user_data: u64) -> bool {
        self.push(opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).build().user_data(user_data))
    }

    /// Pushes a poll or the timer; `false` if there is no room now.
    fn push(&mut self, entry: squeue::Entry) -> bool {
        // SAFETY: the entry names no memory but a static, and both descriptors are open for as long as the worker.
        match unsafe { self.transfers.ring().push(&entry) } {
            Ok(pushed) => pushed,
            Err(error) => abandon(&self.name, &error),
        }
    }

    fn take_completions(&mut self) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        self.transfers.ring().take_completions(MAX_TURN, &mut completions);
        let worked = !completions.is_empty();
        for (user_data, result) in completions.drain(..) {
            match user_data {
                KICK => {
                    self.kick_armed = false;
                    self.kicked(result);
                }
                BELL => {
                    self.bell_armed = false;
                    self.signal.silence();
                }
                TIMER => {
                    self.timer_armed = false;
                    self.retry_starved();
                }
                CALL => self.called(),
                of_transfers => self.transfers_completed(of_transfers, result),
            }
        }
        self.completions = completions;
        worked
    }

    fn transfers_completed(&mut self, user_data: u64, result: i32) {
        let mut finished = std::mem::take(&mut self.finished);
        self.transfers.completed(user_data, result, &mut finished);
        for finished in finished.drain(..) {
            let task = finished.task;
            if self.tasks.get_mut(task).transfer_ended(finished) {
                self.advance(task);
            }
        }
        self.finished = finished;
    }

    /// Resets the kick's counter. Never blocks, whatever the front end did to its descriptor.
    fn kicked(&mut self, result: i32) {
        if result < 0 {
            return self.fail(&io::Error::from_raw_os_error(-result));
        }
        let mut count = 0u64;
        let piece = libc::iovec { iov_base: (&raw mut count).cast(), iov_len: size_of::<u64>() };
        // SAFETY: the piece is `count`, which lives until the call returns.
        let read = unsafe { libc::preadv2(self.kick.as_raw_fd(), &raw const piece, 1, -1, libc::RWF_NOWAIT) };
        if read < 0 {
            let error = io::Error::last_os_error();
            if !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) {
                self.fail(&error);
            }
        }
    }

    fn retry_parked(&mut self) -> bool {
        let parked = std::mem::take(&mut self.parked);
        let any = !parked.is_empty();
        for id in parked {
            self.advance(id);
        }
        any
    }

    /// Plans those that wait for space again.
    fn retry_starved(&mut self) {
        for id in std::mem::take(&mut self.starved) {
            self.advance(id);
        }
    }

    /// The queue stops: nobody may be left behind (VOL-22).
    fn give_up_starved(&mut self) {
        for id in std::mem::take(&mut self.starved) {
            if let Some(error) = self.tasks.get_mut(id).take_starved_by() {
                self.trouble.no_longer_starves();
                self.end(id, Err(error));
            }
        }
    }

    fn take_heads(&mut self) -> bool {
        let (mut heads, mut len) = (0, 0);
        while heads < MAX_TURN && len < MAX_TURN_LEN && self.has_room() && !self.signal.is_stopping() {
            match self.ring.pop(self.map.memory()) {
                Ok(Some(head)) => len += self.start(head),
                Ok(None) => break,
                Err(error) => {
                    self.fail(&error);
                    break;
                }
            }
            heads += 1;
        }
        if heads > 0 {
            self.activity.took_requests();
        }
        heads > 0
    }

    /// Whether one more request may be taken. A correct guest never has more under way than the ring has places.
    fn has_room(&self) -> bool {
        let transfers = self.transfers.len() + self.tasks.waiting_parts();
        self.tasks.len() < usize::from(self.ring.size()) && transfers <= MAX_TRANSFERS
    }

    /// Understands the request at `head` and starts it; returns how many bytes of data it carries.
    fn start(&mut self, head: u16) -> u64 {
        let table = Table { addr: self.ring.desc_table(), size: self.ring.size() };
        let mem = self.map.memory();
        let walked = self.chain.walk(mem, table, head);
        if let Err(error) = walked {
            log::debug!("{}: {error}", self.name);
            self.give_back(head, 0);
            return 0;
        }
        let parsed = match parse(mem, &mut self.chain, self.volume.size()) {
            Ok(parsed) => parsed,
            Err(error) => {
                log::debug!("{}: {error}", self.name);
                self.give_back(head, 0);
                return 0;
            }
        };
        let status = parsed.status;
        let data_len = parsed.request.as_ref().map_or(0, BlockRequest::data_len);
        match parsed.request.and_then(|request| self.prepare(head, status, request)) {
            Ok(Prepared::Task(task)) => {
                let id = self.tasks.insert(task);
                self.advance(id);
            }
            Ok(Prepared::Done { data_len }) => self.answer(head, status, Ok(data_len)),
            Err(error) => self.answer(head, status, Err(error)),
        }
        data_len
    }

    fn prepare(&self, head: u16, status: GuestAddress, request: BlockRequest) -> Result<Prepared, RequestError> {
        let mem = self.map.memory();
        let task = |data_len, work| Ok(Prepared::Task(Task::new(head, status, data_len, work)));
        match request {
            BlockRequest::Read { range, data } => {
                let buffer = HostBuffer::resolve(mem, &data)?;
                task(total_len(&data) as u32, Work::Read { range, buffer })
            }
            BlockRequest::GetId { data } => {
                let count = HostBuffer::resolve(mem, &data)?.fill(&self.disk_id());
                Ok(Prepared::Done { data_len: count as u32 })
            }
            BlockRequest::Flush if self.access == Access::ReadOnly => Ok(Prepared::Done { data_len: 0 }),
            _ if self.access == Access::ReadOnly => Err(RequestError::ReadOnly),
            BlockRequest::Write { range, data } => {
                let buffer = HostBuffer::resolve(mem, &data)?;
                task(0, Work::Write { range, buffer })
            }
            BlockRequest::Discard { ranges } => task(0, Work::Zero { kind: ZeroKind::Discard, ranges: ranges.into() }),
            BlockRequest::WriteZeroes { ranges } => {
                task(0, Work::Zero { kind: ZeroKind::WriteZeroes, ranges: ranges.into() })
            }
            BlockRequest::Flush => task(0, Work::Flush),
        }
    }

    /// The first 20 hexadecimal digits of the volume's uuid: stable under renaming.
    fn disk_id(&self) -> [u8; ID_LEN] {
        let mut id = [0; ID_LEN];
        let text = self.volume.uuid().simple().to_string();
        for (to, from) in id.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        id
    }

    fn advance(&mut self, id: usize) {
        let mut context = Context {
            container: &self.container,
            volume: &self.volume,
            durability: self.durability,
            transfers: &mut self.transfers,
            waker: &self.waker,
            spare_plan: &mut self.spare_plan,
        };
        match self.tasks.advance(id, &mut context) {
            Advance::Waits => {}
            Advance::Parked => self.parked.push(id),
            Advance::Ended(Err(error)) if self.trouble.policy() == OnNoSpace::Stop && is_no_space(&error) => {
                let text = error.to_string();
                if self.tasks.get_mut(id).starve(error) {
                    self.trouble.starves(&text);
                }
                self.starved.push(id);
            }
            Advance::Ended(result) => {
                if self.tasks.get_mut(id).take_starved_by().is_some() {
                    self.trouble.no_longer_starves();
                }
                self.end(id, result);
            }
        }
    }

    /// The request of a task has ended.
    fn end(&mut self, id: usize, result: Result<(), RequestError>) {
        let task = self.tasks.remove(id);
        if let Err(error) = &result {
            self.tell(error, task.operation());
        }
        self.answer(task.head, task.status, result.map(|()| task.data_len));
    }

    /// Tells of a request that failed, unless it is the guest's own doing or there have been too many.
    fn tell(&mut self, error: &RequestError, operation: Operation) {
        if is_guests_fault(error) {
            return;
        }
        let now = Instant::now();
        let kept_back = match error {
            RequestError::Format(damaged @ pitstop_format::Error::Corrupt(_)) => {
                self.failures.failed_at(damaged.to_string(), now)
            }
            _ => self.failures.failed(now),
        };
        let Some(kept_back) = kept_back else { return };
        let (name, volume) = (&self.name, self.volume.name());
        match kept_back {
            0 => log::warn!("{name}: volume '{volume}': request failed: {error}"),
            more => log::warn!("{name}: volume '{volume}': request failed: {error} ({more} more failed before)"),
        }
        self.trouble.failed(operation, error);
    }

    /// Writes the status and gives the chain back.
    fn answer(&mut self, head: u16, status: GuestAddress, outcome: Result<u32, RequestError>) {
        if let Err(error) = &outcome
            && is_guests_fault(error)
        {
            log::debug!("{}: {error}", self.name);
        }
        let written = match self.map.memory().write_obj(status_byte(&outcome), status) {
            Ok(()) => outcome.unwrap_or(0).saturating_add(1),
            Err(error) => {
                log::debug!("{}: status byte: {error}", self.name);
                0
            }
        };
        self.give_back(head, written);
    }

    /// At the end of the queue: failures that no line has told of.
    fn tell_of_failures(&mut self) {
        match self.failures.take_kept_back() {
            0 => {}
            more => log::warn!("{}: {more} more requests failed", self.name),
        }
    }

    fn give_back(&mut self, head: u16, written: u32) {
        if let Err(error) = self.ring.push_used(self.map.memory(), head, written) {
            self.fail(&error);
        }
    }

    /// Makes the answers of this turn visible and notifies the guest if it wants that.
    fn publish(&mut self) {
        match self.ring.publish(self.map.memory()) {
            Ok(true) => self.notify(),
            // A notification that found no room on the ring goes out now.
            Ok(false) if self.call_again && self.calling.is_none() => self.called(),
            Ok(false) => {}
            Err(error) => self.fail(&error),
        }
    }

    /// Signals through the ring, so that a descriptor that the front end made to block never blocks this thread.
    fn notify(&mut self) {
        if self.calling.is_some() {
            self.call_again = true; // the one under way may be older than the answers
            return;
        }
        let Some(call) = self.call.get() else { return };
        let one = (&raw const ONE).cast();
        let entry = opcode::Write::new(Fd(call.as_raw_fd()), one, size_of::<u64>() as u32).build().user_data(CALL);
        // SAFETY: the entry names a static, and a descriptor that `calling` keeps open until the completion is taken.
        match unsafe { self.transfers.ring().push(&entry) } {
            Ok(true) => self.calling = Some(call),
            Ok(false) => self.call_again = true,
            Err(error) => abandon(&self.name, &error),
        }
    }

    /// A notification has ended. Its result does not matter: a full counter means that the guest has been notified.
    fn called(&mut self) {
        self.calling = None;
        if std::mem::take(&mut self.call_again) {
            self.notify();
        }
    }

    /// Signals answers that came behind a notification under way, whose end nobody waits for any more.
    fn notify_last(&mut self) {
        // Submitted, so the kernel holds its descriptor.
        self.calling = None;
        if std::mem::take(&mut self.call_again) {
            self.notify();
            if let Err(error) = self.transfers.submit() {
                abandon(&self.name, &error);
            }
        }
    }

    /// The queue is unusable: take no more heads, let the session end.
    fn fail(&mut self, reason: &dyn std::fmt::Display) {
        if self.failed {
            return;
        }
        self.failed = true;
        log::warn!("{}: queue stopped: {reason}", self.name);
        if let Err(error) = self.failure.write(1) {
            log::warn!("{}: cannot end the session: {error}", self.name);
        }
    }
}

#[expect(clippy::large_enum_variant, reason = "lives for one call, and boxing would cost an allocation a request")]
enum Prepared {
    Task(Task),
    Done { data_len: u32 },
}

/// The ring itself failed. Operations under way can neither be awaited nor taken back, so their memory may never be
/// reused: nothing is left but to end the process. Data is as safe as after a crash.
fn abandon(name: &str, error: &io::Error) -> ! {
    log::error!("{name}: io_uring failed: {error}");
    std::process::abort()
}
