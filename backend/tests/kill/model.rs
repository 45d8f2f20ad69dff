//! What each sector may show after a crash, and what a copy may show.
//!
//! Every write puts a stamp into each of its sectors: which guest wrote it, which write it was, and which sector it was
//! meant for. Writes of one guest never overlap while they are under way, so a sector has a plain history: after a kill
//! it shows the last flushed write or any later submitted one (promises 1 and 2), and a copy shows the histories as they
//! stood at one instant between its command and the answer (SNP-1).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

pub(crate) const SECTOR_LEN: usize = 512;

/// Guest and number of a write; 0 stands for zeros.
pub(crate) type Stamp = u64;

/// Orders submissions and completions of all guests.
static CLOCK: AtomicU64 = AtomicU64::new(1);

fn tick() -> u64 {
    CLOCK.fetch_add(1, Ordering::SeqCst)
}

/// Fills `bytes` with the stamp, from sector `sector` of the volume on.
pub(crate) fn fill(bytes: &mut [u8], stamp: Stamp, sector: u64) {
    for (content, sector) in bytes.chunks_exact_mut(SECTOR_LEN).zip(sector..) {
        for pair in content.chunks_exact_mut(16) {
            pair[..8].copy_from_slice(&stamp.to_le_bytes());
            pair[8..].copy_from_slice(&(sector + 1).to_le_bytes());
        }
    }
}

/// The stamps of `bytes`, which begin at sector 0 of a volume. A sector that is torn or another's is an error.
pub(crate) fn stamps(name: &str, bytes: &[u8]) -> Vec<Stamp> {
    let one = |(content, sector): (&[u8], u64)| {
        if content.iter().all(|&byte| byte == 0) {
            return 0;
        }
        let word = |at: usize| u64::from_le_bytes(content[at..at + 8].try_into().unwrap());
        let mut expected = [0; SECTOR_LEN];
        fill(&mut expected, word(0), sector);
        assert!(content == expected, "volume {name} sector {sector} is torn or misplaced: {:x?}", &content[..32]);
        word(0)
    };
    bytes.chunks_exact(SECTOR_LEN).zip(0..).map(one).collect()
}

/// One write or zeroing of a sector.
#[derive(Debug, Clone, Copy)]
struct Change {
    stamp: Stamp,
    submitted: u64,
    /// When its completion was seen.
    done: Option<u64>,
    number: u32,
}

#[derive(Debug, Clone)]
struct Sector {
    /// Oldest first.
    changes: Vec<Change>,
    /// The change that at least must show after a crash.
    durable: usize,
}

/// One queue's part of a volume.
#[derive(Debug)]
pub(crate) struct Stripe {
    guest: u64,
    sectors: Vec<Sector>,
    next: u32,
    /// Changes that have completed since a flush covered them.
    completed: Vec<(Range<usize>, u32)>,
    /// Changes that were in `completed` before those.
    covered: usize,
    write_through: bool,
}

impl Stripe {
    pub(crate) fn new(guest: u64, len: usize, write_through: bool) -> Self {
        let mut stripe =
            Stripe { guest, sectors: Vec::new(), next: 1, completed: Vec::new(), covered: 0, write_through };
        stripe.begin_anew(&vec![0; len]);
        stripe
    }

    /// Forgets all but what the sectors show now.
    pub(crate) fn begin_anew(&mut self, shown: &[Stamp]) {
        let sector = |&stamp: &Stamp| Sector {
            changes: vec![Change { stamp, submitted: 0, done: Some(0), number: 0 }],
            durable: 0,
        };
        self.sectors = shown.iter().map(sector).collect();
        self.covered += self.completed.len();
        self.completed.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.sectors.len()
    }

    /// A change is about to be submitted; its number and stamp.
    pub(crate) fn submit(&mut self, range: Range<usize>, zero: bool) -> (u32, Stamp) {
        let number = self.next;
        self.next += 1;
        let stamp = if zero { 0 } else { self.guest << 32 | u64::from(number) };
        let submitted = tick();
        for sector in &mut self.sectors[range] {
            sector.changes.push(Change { stamp, submitted, done: None, number });
        }
        (number, stamp)
    }

    /// A change has completed.
    pub(crate) fn complete(&mut self, range: Range<usize>, number: u32) {
        let done = Some(tick());
        for sector in &mut self.sectors[range.clone()] {
            let last = sector.changes.last_mut().unwrap();
            assert_eq!(last.number, number, "changes under way never overlap");
            last.done = done;
        }
        self.completed.push((range, number));
        if self.write_through {
            self.flushed(self.flush());
        }
    }

    /// A flush is about to be submitted: what it will cover.
    pub(crate) fn flush(&self) -> usize {
        self.covered + self.completed.len()
    }

    /// A flush that covered the first `count` completed changes has completed.
    pub(crate) fn flushed(&mut self, count: usize) {
        // Another flush may have covered some of them.
        let count = count.saturating_sub(self.covered);
        self.covered += count;
        for (range, number) in self.completed.drain(..count) {
            for sector in &mut self.sectors[range] {
                // Reads happen in order of numbers, so what is found lies at or behind what was durable before.
                if let Some(at) = sector.changes.iter().rposition(|change| change.number == number) {
                    sector.durable = sector.durable.max(at);
                }
            }
        }
    }

    /// What the sectors of a range show that nothing is changing.
    pub(crate) fn settled(&self, range: Range<usize>) -> Vec<Stamp> {
        self.sectors[range].iter().map(|sector| sector.changes.last().unwrap().stamp).collect()
    }

    /// Compares with what was found after a crash, and takes that over.
    pub(crate) fn survived(&mut self, name: &str, first: usize, found: &[Stamp]) {
        for ((sector, stamp), index) in self.sectors.iter().zip(found).zip(first..) {
            let allowed = &sector.changes[sector.durable..];
            assert!(
                allowed.iter().any(|change| change.stamp == *stamp),
                "volume {name} sector {index} shows {stamp:x} after the kill; flushed or later: {allowed:x?}"
            );
        }
        self.begin_anew(found);
    }
}

/// One possible state of a sector in a copy: it was the state from no earlier than `from` to no later than `until`.
#[derive(Debug, Clone, Copy)]
struct Possible {
    stamp: Stamp,
    from: u64,
    until: u64,
}

/// What a volume without a guest shows: one stamp a sector, or several possible ones for a copy of a busy volume.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    sure: Vec<Stamp>,
    open: BTreeMap<usize, Vec<Possible>>,
}

/// A volume with a guest: its stripes one behind the other.
pub(crate) struct Busy {
    pub(crate) name: &'static str,
    pub(crate) stripes: Vec<Mutex<Stripe>>,
}

/// How far each sector was when a command was sent.
pub(crate) struct Before(Vec<usize>);

impl Busy {
    pub(crate) fn stripe(&self, index: usize) -> MutexGuard<'_, Stripe> {
        self.stripes[index].lock().unwrap()
    }

    /// To be called before a copy of the volume is ordered.
    pub(crate) fn before(&self) -> Before {
        let last_done = |sector: &Sector| sector.changes.iter().rposition(|change| change.done.is_some()).unwrap();
        Before(
            self.stripes
                .iter()
                .flat_map(|s| s.lock().unwrap().sectors.iter().map(last_done).collect::<Vec<_>>())
                .collect(),
        )
    }

    /// What a copy may show that was ordered at `before` and, at the latest, made now.
    pub(crate) fn copied(&self, before: &Before) -> Content {
        let mut content = Content { sure: Vec::new(), open: BTreeMap::new() };
        for stripe in &self.stripes {
            let stripe = stripe.lock().unwrap();
            for sector in &stripe.sectors {
                let index = content.sure.len();
                let changes = &sector.changes[before.0[index]..];
                content.sure.push(changes[0].stamp);
                if changes.len() > 1 {
                    let until = |at: usize| changes.get(at + 1).and_then(|next| next.done).unwrap_or(u64::MAX);
                    let possible = |(at, change): (usize, &Change)| Possible {
                        stamp: change.stamp,
                        from: change.submitted,
                        until: until(at),
                    };
                    content.open.insert(index, changes.iter().enumerate().map(possible).collect());
                }
            }
        }
        content
    }
}

impl Content {
    pub(crate) fn exactly(found: Vec<Stamp>) -> Self {
        Content { sure: found, open: BTreeMap::new() }
    }

    pub(crate) fn stamps(&self) -> &[Stamp] {
        assert!(self.open.is_empty(), "it has not been looked at yet");
        &self.sure
    }

    /// Why the volume may not show `found`, if it may not: every sector must be as at one and the same instant.
    pub(crate) fn differs_from(&self, found: &[Stamp]) -> Option<String> {
        let (mut from, mut until) = (0, u64::MAX);
        for (index, (sure, stamp)) in self.sure.iter().zip(found).enumerate() {
            let Some(possible) = self.open.get(&index) else {
                if sure != stamp {
                    return Some(format!("sector {index} shows {stamp:x}, not {sure:x}"));
                }
                continue;
            };
            // Zeros can come from several changes: the widest span is the weakest demand.
            let spans = || possible.iter().filter(|p| p.stamp == *stamp);
            if spans().next().is_none() {
                return Some(format!("sector {index} shows {stamp:x}, not one of {possible:x?}"));
            }
            from = from.max(spans().map(|p| p.from).min().unwrap());
            until = until.min(spans().map(|p| p.until).max().unwrap());
        }
        (from > until).then(|| format!("no single instant: something of {from} shows and something gone by {until}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_covers_what_had_completed_before_it() {
        let mut stripe = Stripe::new(1, 2, false);
        let (first, stamp) = stripe.submit(0..1, false);
        stripe.complete(0..1, first);
        let covered = stripe.flush();
        let (second, _) = stripe.submit(1..2, false);
        stripe.complete(1..2, second);
        stripe.flushed(covered);
        stripe.survived("v", 0, &[stamp, 0]);
    }

    #[test]
    #[should_panic(expected = "after the kill")]
    fn a_lost_flushed_write_is_found() {
        let mut stripe = Stripe::new(1, 1, false);
        let (first, _) = stripe.submit(0..1, false);
        stripe.complete(0..1, first);
        stripe.flushed(stripe.flush());
        stripe.survived("v", 0, &[0]);
    }

    #[test]
    fn a_copy_of_no_single_instant_is_found() {
        let busy = Busy { name: "v", stripes: vec![Mutex::new(Stripe::new(1, 2, false))] };
        let before = busy.before();
        let (first, old) = busy.stripe(0).submit(0..1, false);
        busy.stripe(0).complete(0..1, first);
        let (second, new) = busy.stripe(0).submit(1..2, false);
        busy.stripe(0).complete(1..2, second);
        let copied = busy.copied(&before);
        assert_eq!(copied.differs_from(&[0, 0]), None);
        assert_eq!(copied.differs_from(&[old, 0]), None);
        assert_eq!(copied.differs_from(&[old, new]), None);
        assert!(copied.differs_from(&[0, new]).is_some(), "the second began after the first had ended");
    }
}
