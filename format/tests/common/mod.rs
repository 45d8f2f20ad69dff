//! The plain model that the engine is compared with: for each sector, the values that it may show.
//!
//! A sector's value is a stamp, unique to the write that wrote it and to the place; a sector that shows a stamp which was
//! never written there has leaked.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(unreachable_pub, dead_code, reason = "every test file uses its part of this")]

use std::collections::{BTreeMap, HashMap};

use pitstop_format::{Container, VolumeIo};

/// Bytes in a sector, the unit in which the model keeps values.
pub const SECTOR: u64 = 512;

/// A small deterministic generator; the same seed gives the same run everywhere.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What a sector may hold.
#[derive(Debug, Clone)]
pub struct Sector {
    /// What a read shows now.
    now: u64,
    /// What it may show after a crash now, `now` included.
    after_crash: Vec<u64>,
    /// Values of writes under way, which may or may not show.
    in_flight: Vec<u64>,
}

impl Default for Sector {
    fn default() -> Self {
        Self { now: 0, after_crash: vec![0], in_flight: Vec::new() }
    }
}

/// A volume of the model.
#[derive(Debug, Clone, Default)]
pub struct Volume {
    pub size: u64,
    sectors: HashMap<u64, Sector>,
}

impl Volume {
    pub fn new(size: u64) -> Self {
        Self { size, sectors: HashMap::new() }
    }

    fn sector(&mut self, number: u64) -> &mut Sector {
        self.sectors.entry(number).or_default()
    }

    /// A write of `stamp(sector)` begins.
    pub fn begin(&mut self, sectors: std::ops::Range<u64>, stamp: impl Fn(u64) -> u64) {
        for number in sectors {
            let value = stamp(number);
            self.sector(number).in_flight.push(value);
        }
    }

    /// The write has completed.
    pub fn complete(&mut self, sectors: std::ops::Range<u64>, stamp: impl Fn(u64) -> u64) {
        for number in sectors {
            let value = stamp(number);
            let sector = self.sector(number);
            sector.in_flight.retain(|other| *other != value);
            sector.now = value;
            sector.after_crash.push(value);
        }
    }

    /// The write was given up: it may have landed in part where it overwrote in place.
    pub fn abandon(&mut self, sectors: std::ops::Range<u64>, stamp: impl Fn(u64) -> u64) {
        for number in sectors {
            let value = stamp(number);
            let sector = self.sector(number);
            sector.in_flight.retain(|other| *other != value);
            sector.after_crash.push(value);
            sector.in_flight.push(value);
        }
    }

    /// A flush has returned: what completed before is durable.
    pub fn flushed(&mut self) {
        for sector in self.sectors.values_mut() {
            sector.after_crash = vec![sector.now];
        }
    }

    /// What a copy made now holds.
    pub fn copy(&self) -> Self {
        let mut copy = self.clone();
        for sector in copy.sectors.values_mut() {
            sector.after_crash = vec![sector.now];
        }
        copy
    }

    pub fn may_show(&self, number: u64, value: u64, after_crash: bool) -> bool {
        match self.sectors.get(&number) {
            None => value == 0,
            Some(sector) => {
                sector.in_flight.contains(&value)
                    || if after_crash { sector.after_crash.contains(&value) } else { sector.now == value }
            }
        }
    }

    /// Compares all sectors with what the container shows; the error says where they differ.
    pub fn compare(&self, io: &VolumeIo, after_crash: bool) -> Result<(), String> {
        let mut bytes = vec![0; self.size as usize];
        io.read_at(&mut bytes, 0).map_err(|error| format!("read: {error}"))?;
        for (number, sector) in (0..).zip(bytes.chunks(SECTOR as usize)) {
            let value = u64::from_le_bytes(sector[..8].try_into().unwrap());
            if !sector.chunks(8).all(|word| word == &sector[..8]) {
                return Err(format!("sector {number} is torn within itself"));
            }
            if !self.may_show(number, value, after_crash) {
                let allowed = self.sectors.get(&number);
                return Err(format!("sector {number} shows {value:#x}, allowed {allowed:x?}"));
            }
        }
        Ok(())
    }
}

/// All volumes by name.
pub type Model = BTreeMap<String, Volume>;

/// Compares a whole container with the model.
pub fn compare(container: &Container, model: &Model, after_crash: bool) -> Result<(), String> {
    let names: Vec<String> = container.volumes().into_iter().map(|volume| volume.name).collect();
    let expected: Vec<&String> = model.keys().collect();
    if names.iter().collect::<Vec<_>>() != expected {
        return Err(format!("volumes {names:?}, expected {expected:?}"));
    }
    for (name, volume) in model {
        let handle = container.volume(name).map_err(|error| error.to_string())?;
        if handle.size() != volume.size {
            return Err(format!("volume {name} has {} bytes, expected {}", handle.size(), volume.size));
        }
        volume
            .compare(&VolumeIo::new(container, handle), after_crash)
            .map_err(|why| format!("volume {name}: {why}"))?;
    }
    Ok(())
}

/// The bytes of a write: each sector repeats its stamp.
pub fn stamped(sectors: std::ops::Range<u64>, stamp: impl Fn(u64) -> u64) -> Vec<u8> {
    sectors.flat_map(|number| stamp(number).to_le_bytes().repeat(SECTOR as usize / 8)).collect()
}
