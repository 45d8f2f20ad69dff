//! The plain model that the engine is compared with: for each sector of each volume, the values that it may show.
//!
//! A sector's value is a stamp, unique to the write that wrote it and to the place: a sector that shows a stamp which is
//! not allowed there has lost a write, has kept one that was never made, or shows another place's, another volume's or a
//! freed slab's bytes. Zero is the value of what was never written or was zeroed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use pitstop_format::Durability;

/// Sectors that lie together.
const GROUP: u64 = 512;

/// What is known of a value that a sector may show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Its write has completed at this time.
    Completed(u64),
    /// Its write was given up or failed: it may have landed.
    GivenUp,
    /// Its write is under way.
    UnderWay,
}

/// Values that a sector may show.
#[derive(Debug, Clone, Default)]
struct Sector {
    /// The newest durable value.
    durable: u64,
    /// Newer ones, oldest first.
    newer: Vec<(u64, Standing)>,
}

impl Sector {
    fn may_show(&self, value: u64, when: When) -> bool {
        match when {
            When::AfterCrash => self.durable == value || self.newer.iter().any(|(newer, _)| *newer == value),
            When::Live => {
                let last = self.newer.iter().rposition(|(_, standing)| matches!(standing, Standing::Completed(_)));
                let now = last.map_or(self.durable, |index| self.newer[index].0);
                let later = self.newer.iter().skip(last.map_or(0, |index| index + 1));
                let under_way = self.newer.iter().filter(|(_, standing)| *standing == Standing::UnderWay);
                now == value || later.chain(under_way).any(|(newer, _)| *newer == value)
            }
        }
    }

    fn end(&mut self, value: u64, standing: Standing) {
        match self.newer.iter().position(|(newer, found)| *newer == value && *found == Standing::UnderWay) {
            Some(begun) => drop(self.newer.remove(begun)),
            // Zeros over what was never written are not noted.
            None => assert_eq!(value, 0, "a write that ends has begun"),
        }
        self.newer.push((value, standing));
    }

    /// What had completed by `time` is durable.
    fn flush(&mut self, time: u64) {
        let covered = |standing| matches!(standing, Standing::Completed(at) if at <= time);
        if let Some(last) = self.newer.iter().rposition(|(_, standing)| covered(*standing)) {
            self.durable = self.newer[last].0;
            let mut index = 0;
            // Writes under way stay, wherever they began.
            self.newer.retain(|(_, standing)| {
                index += 1;
                index > last + 1 || *standing == Standing::UnderWay
            });
        }
    }
}

/// Which promises count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Now, in the running engine.
    Live,
    /// After a crash now.
    AfterCrash,
}

/// A volume of the model.
#[derive(Debug, Clone)]
pub struct Volume {
    pub size: u64,
    /// Tells a refreshed volume from what it was before.
    pub life: u64,
    /// What its flushes promise.
    pub durability: Durability,
    /// It is marked so.
    pub undefined: bool,
    groups: BTreeMap<u64, Box<[Sector]>>,
}

impl Volume {
    pub fn new(size: u64, life: u64) -> Self {
        Self { size, life, durability: Durability::Flush, undefined: false, groups: BTreeMap::new() }
    }

    /// A volume that holds just these values, durably, and zeros.
    pub fn holding(size: u64, life: u64, values: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut volume = Self::new(size, life);
        for (sector, value) in values {
            volume.sector(sector).durable = value;
        }
        volume
    }

    /// The sectors of a write. Where nothing was ever written, zeros are what is there in any case, and are left out.
    fn each(&mut self, sectors: Range<u64>, value: impl Fn(u64) -> u64, change: impl Fn(&mut Sector, u64)) {
        let mut at = sectors.start;
        while at < sectors.end {
            let end = (at / GROUP + 1) * GROUP;
            if value(at) != 0 || self.groups.contains_key(&(at / GROUP)) {
                (at..end.min(sectors.end)).for_each(|number| change(self.sector(number), value(number)));
            }
            at = end;
        }
    }

    fn sector(&mut self, number: u64) -> &mut Sector {
        let group = self.groups.entry(number / GROUP).or_insert_with(|| vec![Sector::default(); GROUP as usize].into());
        &mut group[(number % GROUP) as usize]
    }

    /// A write of `value(sector)` begins.
    pub fn begin(&mut self, sectors: Range<u64>, value: impl Fn(u64) -> u64) {
        self.each(sectors, value, |sector, value| sector.newer.push((value, Standing::UnderWay)));
    }

    /// The write has completed, at `time`.
    pub fn complete(&mut self, sectors: Range<u64>, value: impl Fn(u64) -> u64, time: u64) {
        self.each(sectors, value, |sector, value| sector.end(value, Standing::Completed(time)));
    }

    /// The write was given up or failed: it may have landed in part where it overwrote in place.
    pub fn give_up(&mut self, sectors: Range<u64>, value: impl Fn(u64) -> u64) {
        self.each(sectors, value, |sector, value| sector.end(value, Standing::GivenUp));
    }

    /// A flush that began at `time` has returned: what had completed by then is durable.
    pub fn flush(&mut self, time: u64) {
        for sector in self.groups.values_mut().flat_map(|group| group.iter_mut()) {
            if !sector.newer.is_empty() {
                sector.flush(time);
            }
        }
    }

    /// A point-in-time copy made now. Writes under way may still end in it.
    pub fn copy(&self, life: u64) -> Self {
        Self { life, durability: Durability::Flush, undefined: false, ..self.clone() }
    }

    /// No write is under way any more; those that never ended may have landed.
    pub fn seal(&mut self) {
        for sector in self.groups.values_mut().flat_map(|group| group.iter_mut()) {
            for (_, standing) in &mut sector.newer {
                if *standing == Standing::UnderWay {
                    *standing = Standing::GivenUp;
                }
            }
        }
    }

    pub fn may_show(&self, number: u64, value: u64, when: When) -> bool {
        match self.groups.get(&(number / GROUP)) {
            None => value == 0,
            Some(group) => group[(number % GROUP) as usize].may_show(value, when),
        }
    }

    /// The first of `sectors` that must not read as zeros.
    pub fn first_not_zero(&self, sectors: Range<u64>, when: When) -> Option<u64> {
        for (group, found) in self.groups.range(sectors.start / GROUP..sectors.end.div_ceil(GROUP)) {
            let first = group * GROUP;
            let within = sectors.start.saturating_sub(first)..(sectors.end - first).min(GROUP);
            let bad = found[within.start as usize..within.end as usize].iter().position(|s| !s.may_show(0, when));
            if let Some(index) = bad {
                return Some(first + within.start + index as u64);
            }
        }
        None
    }

    /// What a sector may show, for people.
    pub fn describe(&self, number: u64) -> String {
        match self.groups.get(&(number / GROUP)) {
            None => "only zeros".to_owned(),
            Some(group) => format!("{:x?}", group[(number % GROUP) as usize]),
        }
    }
}

/// All volumes by name.
pub type Model = BTreeMap<String, Arc<Volume>>;

/// What a command under way will make of the model.
#[derive(Debug, Clone)]
pub enum Change {
    /// All of these at once.
    Put(Vec<(String, Arc<Volume>)>),
    Remove(String),
    Rename(String, String),
}

impl Change {
    pub fn apply(&self, model: &mut Model) {
        match self {
            Change::Put(volumes) => model.extend(volumes.iter().cloned()),
            Change::Remove(name) => {
                model.remove(name);
            }
            Change::Rename(name, new_name) => {
                if let Some(volume) = model.remove(name) {
                    model.insert(new_name.clone(), volume);
                }
            }
        }
    }
}
