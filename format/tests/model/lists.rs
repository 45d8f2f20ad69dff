//! Listings beside everything else: maps and differences against what the volumes show, and the check.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use pitstop_format::{Content, Error, Listing, VolumeState};

use super::Work;
use crate::common::SECTOR;
use crate::common::compare::Shown;
use crate::common::promises::When;
use crate::world::World;

/// Ranges that a step lists at most.
const RANGES: usize = 7;

impl Work {
    /// What the map of one volume, and the difference of two, say.
    pub(super) fn list(&self, a: &str, b: &str) {
        let mut world = self.lock();
        world.note(format!("lists of {a} and {b}"));
        if let Err(why) = world.map(a).and_then(|()| if a == b { Ok(()) } else { world.difference(a, b) }) {
            world.fail(&format!("lists of {a} and {b}: {why}"));
        }
    }

    /// The check of the container as a crash would leave it now, while it is used (CHK-26).
    pub(super) fn check(&self) {
        let report = self.blocking(|container| container.check(&AtomicBool::new(false)).unwrap());
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
        self.lock().coverage.checks += 1;
    }
}

fn sectors(start: u64, length: u64) -> Range<u64> {
    start / SECTOR..(start + length) / SECTOR
}

impl World {
    /// The map covers the volume; what it has as zeros reads so, and all of a real volume is valid (MAP-30 to MAP-32, MAP-36).
    fn map(&mut self, name: &str) -> Result<(), String> {
        let (container, model) = (self.container.clone(), self.model[name].clone());
        let state = container.volumes().into_iter().find(|volume| volume.name == name).unwrap().state;
        let (mut next, mut end) = (Some(0), 0);
        while let Some(start) = next {
            let step = container.map(name, start, Listing::Ranges(RANGES)).map_err(|error| error.to_string())?;
            for range in &step.ranges {
                if range.start != end || range.length == 0 {
                    return Err(format!("the map goes on at {}, not at {end}", range.start));
                }
                end += range.length;
                if !range.valid && state == VolumeState::Real {
                    return Err(format!("{range:?} of a real volume is not its own"));
                }
                if range.to_copy && (state != VolumeState::Hydrating || range.valid || range.content != Content::Data) {
                    return Err(format!("{range:?} is to be copied, though the volume is {state:?}"));
                }
                let first = model.first_not_zero(sectors(range.start, range.length), When::Live);
                if let Some(sector) = first.filter(|_| range.content == Content::Zero) {
                    return Err(format!("{range:?}, but sector {sector} must show {}", model.describe(sector)));
                }
            }
            next = step.next;
        }
        self.coverage.maps += 1;
        if end == model.size { Ok(()) } else { Err(format!("the map ends at {end} of {} bytes", model.size)) }
    }

    /// Every byte that differs is listed (MAP-34); an undefined volume is not compared (VOL-45).
    fn difference(&mut self, a: &str, b: &str) -> Result<(), String> {
        let container = self.container.clone();
        let models = [self.model[a].clone(), self.model[b].clone()];
        let (mut next, mut listed) = (Some(0), Vec::<Range<u64>>::new());
        while let Some(start) = next {
            let step = match container.diff(a, b, start, Listing::Ranges(RANGES)) {
                Err(Error::Undefined { .. }) if models.iter().any(|model| model.undefined) => return Ok(()),
                step => step.map_err(|error| error.to_string())?,
            };
            listed.extend(step.ranges.iter().map(|range| sectors(range.start, range.length)));
            next = step.next;
        }
        if models.iter().any(|model| model.undefined) {
            return Err("an undefined volume is compared".to_owned());
        }
        if let Some(pair) = listed.windows(2).find(|pair| pair[0].end > pair[1].start) {
            return Err(format!("ranges do not ascend: {pair:?}"));
        }
        let mut shown = [Shown::new(), Shown::new()];
        for ((name, model), shown) in [a, b].into_iter().zip(&models).zip(&mut shown) {
            let handle = container.volume(name).unwrap();
            self.comparer.volume(&container, &handle, model, When::Live, Some(shown))?;
        }
        let is_listed = |sector: u64| {
            let after = listed.partition_point(|range| range.end <= sector);
            listed.get(after).is_some_and(|range| range.contains(&sector))
        };
        let [in_a, in_b] = shown.map(|shown| shown.into_iter().collect::<std::collections::BTreeSet<_>>());
        if let Some((sector, value)) = in_a.symmetric_difference(&in_b).find(|(sector, _)| !is_listed(*sector)) {
            return Err(format!("sector {sector} differs ({value:#x} in one of them), and is not listed: {listed:?}"));
        }
        let (short, long) = (models[0].size.min(models[1].size), models[0].size.max(models[1].size));
        let tail: u64 = listed.iter().map(|range| range.end.saturating_sub(range.start.max(short / SECTOR))).sum();
        if tail * SECTOR != long - short {
            return Err(format!("of the {} bytes that one has alone, {} are listed", long - short, tail * SECTOR));
        }
        self.coverage.differences += 1;
        Ok(())
    }
}
