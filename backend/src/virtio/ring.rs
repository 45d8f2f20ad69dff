//! The split virtqueue: takes heads from the available ring, gives used elements back in batches.
//!
//! Invariant: a used element becomes visible to the guest only by [`SplitRing::publish`], one index store for all
//! elements since the last. Indexes are read once per use and checked; an impossible one is an error that ends the
//! session. Does not: walk descriptor chains (`chain`), or signal anybody.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Bytes of `flags` and `idx` before the elements of either ring.
const HEADER_LEN: u64 = 4;
const AVAIL_ELEMENT_LEN: u64 = 2;
const USED_ELEMENT_LEN: u64 = 8;
const IDX_OFFSET: u64 = 2;

/// Why a ring cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingError {
    /// The guest offers more heads than the ring has places.
    #[error("available index {avail} is more than {size} ahead of {next}")]
    AvailJump {
        /// Index in the ring.
        avail: u16,
        /// Index of the next head to take.
        next: u16,
        /// Places in the ring.
        size: u16,
    },
    /// A head that is not in the descriptor table.
    #[error("head {head} is outside the descriptor table of {size}")]
    BadHead {
        /// The head.
        head: u16,
        /// Descriptors in the table.
        size: u16,
    },
    /// The queue is not a power of two, or lies at the end of the address space.
    #[error("queue of {size} descriptors at {desc:#x}, {avail:#x}, {used:#x} is not possible")]
    BadLayout {
        /// Descriptors in the table.
        size: u16,
        /// Guest address of the descriptor table.
        desc: u64,
        /// Guest address of the available ring.
        avail: u64,
        /// Guest address of the used ring.
        used: u64,
    },
    /// The ring is outside guest memory.
    #[error("ring is outside guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// One split virtqueue as the device sees it.
#[derive(Debug)]
pub(crate) struct SplitRing {
    size: u16,
    desc_table: GuestAddress,
    avail: GuestAddress,
    used: GuestAddress,
    event_idx: bool,
    next_avail: Wrapping<u16>,
    /// Heads up to here are known to be offered.
    seen_avail: Wrapping<u16>,
    next_used: Wrapping<u16>,
    published_used: Wrapping<u16>,
}

impl SplitRing {
    /// A ring at `state`'s addresses that continues at its `next_avail` and at the used index found in memory.
    pub(crate) fn new(state: &QueueState, mem: &GuestMemoryMmap) -> Result<Self, RingError> {
        let bad = || RingError::BadLayout {
            size: state.size,
            desc: state.desc_table,
            avail: state.avail_ring,
            used: state.used_ring,
        };
        // Room for the largest table and rings before the end of the address space: no sum below overflows.
        let end = u64::MAX - (u64::from(u16::MAX) + 1) * 16;
        if !state.size.is_power_of_two()
            || [state.desc_table, state.avail_ring, state.used_ring].iter().any(|a| *a > end)
        {
            return Err(bad());
        }
        let used = GuestAddress(state.used_ring);
        let used_idx = u16::from_le(mem.load(GuestAddress(used.0 + IDX_OFFSET), Ordering::Acquire)?);
        Ok(SplitRing {
            size: state.size,
            desc_table: GuestAddress(state.desc_table),
            avail: GuestAddress(state.avail_ring),
            used,
            event_idx: state.event_idx_enabled,
            next_avail: Wrapping(state.next_avail),
            seen_avail: Wrapping(state.next_avail),
            next_used: Wrapping(used_idx),
            published_used: Wrapping(used_idx),
        })
    }

    /// Places in the ring.
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// Guest address of the descriptor table.
    pub(crate) fn desc_table(&self) -> GuestAddress {
        self.desc_table
    }

    /// Index of the next head to take: what the front end gets when the ring stops.
    pub(crate) fn next_avail(&self) -> u16 {
        self.next_avail.0
    }

    /// Whether the guest offers a head. Loads the index (Acquire) only when the heads known before are used up.
    pub(crate) fn has_avail(&mut self, mem: &GuestMemoryMmap) -> Result<bool, RingError> {
        if self.seen_avail != self.next_avail {
            return Ok(true);
        }
        let idx = u16::from_le(mem.load(GuestAddress(self.avail.0 + IDX_OFFSET), Ordering::Acquire)?);
        if (Wrapping(idx) - self.next_avail).0 > self.size {
            return Err(RingError::AvailJump { avail: idx, next: self.next_avail.0, size: self.size });
        }
        self.seen_avail = Wrapping(idx);
        Ok(self.seen_avail != self.next_avail)
    }

    /// Takes the next head, if the guest offers one.
    pub(crate) fn pop(&mut self, mem: &GuestMemoryMmap) -> Result<Option<u16>, RingError> {
        if !self.has_avail(mem)? {
            return Ok(None);
        }
        let place = u64::from(self.next_avail.0 % self.size) * AVAIL_ELEMENT_LEN;
        let head = u16::from_le(mem.load(GuestAddress(self.avail.0 + HEADER_LEN + place), Ordering::Relaxed)?);
        if head >= self.size {
            return Err(RingError::BadHead { head, size: self.size });
        }
        self.next_avail += 1;
        Ok(Some(head))
    }

    /// Writes a used element; the guest sees it at the next [`Self::publish`].
    pub(crate) fn push_used(&mut self, mem: &GuestMemoryMmap, head: u16, len: u32) -> Result<(), RingError> {
        let place = u64::from(self.next_used.0 % self.size) * USED_ELEMENT_LEN;
        let element = (u64::from(len) << 32) | u64::from(head);
        mem.write_obj(element.to_le(), GuestAddress(self.used.0 + HEADER_LEN + place))?;
        self.next_used += 1;
        Ok(())
    }

    /// Makes all written used elements visible; says whether the guest wants to be notified of them.
    pub(crate) fn publish(&mut self, mem: &GuestMemoryMmap) -> Result<bool, RingError> {
        if self.published_used == self.next_used {
            return Ok(false);
        }
        let old = self.published_used;
        mem.store(self.next_used.0.to_le(), GuestAddress(self.used.0 + IDX_OFFSET), Ordering::Release)?;
        self.published_used = self.next_used;
        // The index must be visible before the guest's wish is read, else both sides may sleep.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let place = self.avail.0 + HEADER_LEN + u64::from(self.size) * AVAIL_ELEMENT_LEN;
            let used_event = Wrapping(u16::from_le(mem.load(GuestAddress(place), Ordering::Relaxed)?));
            return Ok(self.next_used - used_event - Wrapping(1) < self.next_used - old);
        }
        let flags = u16::from_le(mem.load(self.avail, Ordering::Relaxed)?);
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the guest to kick; `true` if it offered a head meanwhile, so that there is no reason to sleep.
    pub(crate) fn enable_kicks(&mut self, mem: &GuestMemoryMmap) -> Result<bool, RingError> {
        if self.event_idx {
            let place = self.used.0 + HEADER_LEN + u64::from(self.size) * USED_ELEMENT_LEN;
            mem.store(self.next_avail.0.to_le(), GuestAddress(place), Ordering::Relaxed)?;
        } else {
            mem.store(0u16, self.used, Ordering::Relaxed)?;
        }
        // The wish must be visible before the ring is looked at for the last time.
        fence(Ordering::SeqCst);
        self.has_avail(mem)
    }

    /// Tells the guest that kicks are not needed.
    pub(crate) fn disable_kicks(&mut self, mem: &GuestMemoryMmap) -> Result<(), RingError> {
        if self.event_idx {
            // An index that the guest has passed; left at the next one, a kick would come for it.
            let place = self.used.0 + HEADER_LEN + u64::from(self.size) * USED_ELEMENT_LEN;
            mem.store((self.next_avail - Wrapping(1)).0.to_le(), GuestAddress(place), Ordering::Relaxed)?;
        } else {
            mem.store((VRING_USED_F_NO_NOTIFY as u16).to_le(), self.used, Ordering::Relaxed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u16 = 4;

    fn ring(event_idx: bool) -> (GuestMemoryMmap, SplitRing) {
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x3000)]).unwrap();
        let state = QueueState {
            max_size: 16,
            size: SIZE,
            ready: true,
            event_idx_enabled: event_idx,
            avail_ring: 0x1000,
            used_ring: 0x2000,
            ..QueueState::default()
        };
        let ring = SplitRing::new(&state, &mem).unwrap();
        (mem, ring)
    }

    fn set(mem: &GuestMemoryMmap, at: u64, value: u16) {
        mem.store(value.to_le(), GuestAddress(at), Ordering::Relaxed).unwrap();
    }

    #[test]
    fn heads_come_in_order_and_wrap() {
        let (mem, mut ring) = ring(false);
        for round in 0..10u16 {
            set(&mem, 0x1004 + u64::from(round % SIZE) * 2, round % SIZE);
            set(&mem, 0x1002, round + 1);
            assert_eq!(ring.pop(&mem).unwrap(), Some(round % SIZE));
            assert_eq!(ring.pop(&mem).unwrap(), None);
        }
        assert_eq!(ring.next_avail(), 10);
    }

    #[test]
    fn impossible_indexes_and_heads_are_errors() {
        let (mem, mut r) = ring(false);
        set(&mem, 0x1002, 5);
        assert!(matches!(r.pop(&mem), Err(RingError::AvailJump { avail: 5, .. })));
        let (mem, mut r) = ring(false);
        set(&mem, 0x1004, 4);
        set(&mem, 0x1002, 1);
        assert!(matches!(r.pop(&mem), Err(RingError::BadHead { head: 4, .. })));
    }

    #[test]
    fn used_elements_are_visible_only_after_publish() {
        let (mem, mut ring) = ring(false);
        ring.push_used(&mem, 3, 513).unwrap();
        ring.push_used(&mem, 1, 1).unwrap();
        assert_eq!(mem.read_obj::<u16>(GuestAddress(0x2002)).unwrap(), 0);
        assert!(ring.publish(&mem).unwrap());
        assert_eq!(mem.read_obj::<u16>(GuestAddress(0x2002)).unwrap(), 2);
        assert_eq!(mem.read_obj::<[u32; 4]>(GuestAddress(0x2004)).unwrap(), [3, 513, 1, 1]);
        assert!(!ring.publish(&mem).unwrap(), "nothing new, no notification");
    }

    #[test]
    fn notification_follows_used_event_or_the_flag() {
        let (mem, mut r) = ring(true);
        set(&mem, 0x1004 + u64::from(SIZE) * 2, 1); // used_event: notify when element 1 is used
        r.push_used(&mem, 0, 1).unwrap();
        assert!(!r.publish(&mem).unwrap());
        r.push_used(&mem, 0, 1).unwrap();
        assert!(r.publish(&mem).unwrap());
        r.push_used(&mem, 0, 1).unwrap();
        assert!(!r.publish(&mem).unwrap());
        let (mem, mut r) = ring(false);
        set(&mem, 0x1000, 1);
        r.push_used(&mem, 0, 1).unwrap();
        assert!(!r.publish(&mem).unwrap());
    }

    #[test]
    fn enabling_kicks_reports_heads_that_came_meanwhile() {
        let (mem, mut r) = ring(true);
        assert!(!r.enable_kicks(&mem).unwrap());
        set(&mem, 0x1002, 1);
        assert!(r.enable_kicks(&mem).unwrap());
        r.disable_kicks(&mem).unwrap();
        assert_eq!(mem.read_obj::<u16>(GuestAddress(0x2004 + u64::from(SIZE) * 8)).unwrap(), u16::MAX);
        let (mem, mut r) = ring(false);
        r.disable_kicks(&mem).unwrap();
        assert_eq!(mem.read_obj::<u16>(GuestAddress(0x2000)).unwrap(), 1);
        r.enable_kicks(&mem).unwrap();
        assert_eq!(mem.read_obj::<u16>(GuestAddress(0x2000)).unwrap(), 0);
    }

    #[test]
    fn rings_outside_memory_or_misshapen_are_refused() {
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x3000)]).unwrap();
        let state = QueueState { size: 4, used_ring: 0x10_0000, ..QueueState::default() };
        assert!(matches!(SplitRing::new(&state, &mem), Err(RingError::Memory(_))));
        let state = QueueState { size: 3, ..QueueState::default() };
        assert!(matches!(SplitRing::new(&state, &mem), Err(RingError::BadLayout { .. })));
        let state = QueueState { size: 4, avail_ring: u64::MAX - 3, ..QueueState::default() };
        assert!(matches!(SplitRing::new(&state, &mem), Err(RingError::BadLayout { .. })));
    }
}
