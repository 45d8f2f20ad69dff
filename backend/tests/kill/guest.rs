//! A guest's queue that works until its daemon dies, and keeps the model.

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::common::Random;
use crate::common::client::{DATA_START, DriverQueue, T_DISCARD, T_FLUSH, T_IN, T_OUT, T_WRITE_ZEROES};
use crate::model::{Busy, SECTOR_LEN, fill};

/// Most requests under way in a queue, each with a buffer of its own.
const SLOTS: u64 = 8;
const SLOT_LEN: u64 = 1 << 20;

/// A request under way.
struct Request {
    head: u16,
    slot: u64,
    kind: u32,
    /// Sectors within the stripe.
    range: Range<usize>,
    /// Number of a change; what a flush covers.
    number: usize,
}

/// One queue of one guest.
pub(crate) struct Worker<'a> {
    pub(crate) queue: &'a mut DriverQueue,
    pub(crate) mem: &'a GuestMemoryMmap,
    pub(crate) volume: &'a Busy,
    /// Index of the queue and of its stripe.
    pub(crate) index: usize,
    pub(crate) random: Random,
    pub(crate) dead: &'a AtomicBool,
}

impl Worker<'_> {
    /// Works until the daemon is dead, and then takes what it had still answered; returns how many requests completed.
    pub(crate) fn run(mut self) -> usize {
        let mut under_way: Vec<Request> = Vec::new();
        let mut completed = 0;
        while !self.dead.load(Ordering::SeqCst) {
            let before = self.queue.next_avail();
            for _ in 0..=self.random.below(3) {
                self.offer(&mut under_way);
            }
            self.queue.kick_if_wanted(before);
            self.wait();
            completed += self.take_answers(&mut under_way);
        }
        completed + self.take_answers(&mut under_way)
    }

    fn take_answers(&mut self, under_way: &mut Vec<Request>) -> usize {
        let mut completed = 0;
        while let Some(done) = self.queue.take_done() {
            let at = under_way.iter().position(|request| request.head == done.head).unwrap();
            let request = under_way.swap_remove(at);
            assert_eq!(done.status, 0, "volume {} request of kind {}", self.volume.name, request.kind);
            self.complete(&request);
            completed += 1;
        }
        completed
    }

    fn complete(&mut self, request: &Request) {
        let mut stripe = self.volume.stripe(self.index);
        match request.kind {
            T_FLUSH => stripe.flushed(request.number),
            T_IN => {
                let mut found = vec![0; request.range.len() * SECTOR_LEN];
                self.mem.read_slice(&mut found, GuestAddress(self.buffer(request.slot))).unwrap();
                let first = self.index * stripe.len() + request.range.start;
                let mut expected = vec![0; found.len()];
                for (at, stamp) in stripe.settled(request.range.clone()).into_iter().enumerate() {
                    if stamp != 0 {
                        fill(&mut expected[at * SECTOR_LEN..][..SECTOR_LEN], stamp, (first + at) as u64);
                    }
                }
                assert!(found == expected, "volume {} reads wrong at sector {first}", self.volume.name);
            }
            _ => stripe.complete(request.range.clone(), request.number as u32),
        }
    }

    fn buffer(&self, slot: u64) -> u64 {
        DATA_START + (self.index as u64 * SLOTS + slot) * SLOT_LEN
    }

    /// Offers a random request that touches nothing that is under way.
    fn offer(&mut self, under_way: &mut Vec<Request>) {
        let Some(slot) = (0..SLOTS).find(|slot| under_way.iter().all(|request| request.slot != *slot)) else { return };
        let kind = match self.random.below(16) {
            0..8 => T_OUT,
            8..11 => T_IN,
            11..13 => T_FLUSH,
            13 | 14 => T_WRITE_ZEROES,
            _ => T_DISCARD,
        };
        let mut stripe = self.volume.stripe(self.index);
        if kind == T_FLUSH {
            let covers = stripe.flush();
            let head = self.queue.offer(kind, 0, &[]);
            under_way.push(Request { head, slot, kind, range: 0..0, number: covers });
            return;
        }
        let most = [8, 8, 128, 128, 128, 128, 2048, 256][self.random.below(8) as usize];
        let mut len = 1 + self.random.below(most) as usize;
        let mut start = self.random.below((stripe.len() - len) as u64) as usize;
        if kind == T_DISCARD || self.random.below(2) == 0 {
            (start, len) = (start & !7, (len.next_multiple_of(8)).min(stripe.len() - (start & !7)));
        }
        let range = start..start + len;
        let touches = |request: &Request| request.range.start < range.end && range.start < request.range.end;
        if under_way.iter().any(touches) {
            return;
        }
        let first = (self.index * stripe.len() + start) as u64;
        let buffer = self.buffer(slot);
        let (number, sector, pieces) = match kind {
            T_IN => (0, first, [(buffer, (len * SECTOR_LEN) as u32)]),
            T_OUT => {
                let (number, stamp) = stripe.submit(range.clone(), false);
                let mut bytes = vec![0; len * SECTOR_LEN];
                fill(&mut bytes, stamp, first);
                self.mem.write_slice(&bytes, GuestAddress(buffer)).unwrap();
                (number, first, [(buffer, bytes.len() as u32)])
            }
            _ => {
                let (number, _) = stripe.submit(range.clone(), true);
                self.mem.write_obj([first, len as u64], GuestAddress(buffer)).unwrap();
                (number, 0, [(buffer, 16)])
            }
        };
        drop(stripe);
        let head = self.queue.offer(kind, sector, &pieces);
        under_way.push(Request { head, slot, kind, range, number: number as usize });
    }

    /// Sleeps until the daemon calls, or shortly.
    fn wait(&mut self) {
        self.queue.want_call();
        std::sync::atomic::fence(Ordering::SeqCst);
        let mut fd = libc::pollfd { fd: self.queue.call.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, which lives until the call returns.
        unsafe { libc::poll(&raw mut fd, 1, 5) };
        if fd.revents & libc::POLLIN != 0 {
            self.queue.call.read().unwrap();
        }
    }
}
