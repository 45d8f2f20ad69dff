//! Repair of a closed container.
//!
//! Role: mends what the walker of `check` finds, as the table in `spec/check.md` says, with `layout` alone. A repair is
//! planned and carried out in memory first; only if the walker then finds nothing wrong does it touch the container, so
//! that it is done as a whole or not at all (CHK-28).
//! Invariant: a crash or a failure at any write leaves the container as it was or repaired (CHK-30); what was there before
//! is in the log (CHK-29). Does not: open files, lock, or take guest data for granted that metadata does not vouch for.

mod catalog;
mod draft;
mod entries;
mod log;
mod shadow;
mod steps;
mod tags;
#[cfg(test)]
pub(super) mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;

use serde::Serialize;
use uuid::Uuid;

pub use log::undo;

use self::draft::{Draft, impossible};
use self::shadow::Shadow;
use self::steps::Step;
use super::{CheckReport, Outcome, View, check, check_view};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::units::SlabNo;

/// Lost ranges that a plan keeps; further ones are only counted.
pub const LOST_KEPT: usize = 1000;

/// What is to be repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Space that nothing uses; needs a container without corruption.
    Leaks,
    /// Everything.
    All,
}

/// A part of a volume whose contents are lost: it reads as zeros where the damaged metadata would have been needed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Lost {
    /// Name of the volume.
    pub volume: String,
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// A repair that is ready to be carried out.
#[derive(Debug)]
pub struct Plan {
    uuid: Uuid,
    steps: Vec<Step>,
    /// Pages that are written and cannot be read as a whole.
    unread: BTreeSet<u64>,
    kept: Vec<SlabNo>,
    lost: Vec<Lost>,
    lost_count: u64,
    before: CheckReport,
    after: CheckReport,
}

/// Plans the repair of the container on `disk`; changes nothing.
///
/// Errors: [`Error::CannotRepair`] if what is wrong cannot be mended without doubt, [`Error::ReadOnlyFeatures`], and those
/// of [`check`].
pub fn plan(disk: &dyn Disk, scope: Scope) -> Result<Plan> {
    let before = check(disk)?;
    let shadow = Shadow::new(disk);
    let mut draft = Draft::read(&shadow)?;
    let uuid = draft.uuid();
    let nothing = match scope {
        Scope::Leaks => before.corruptions > 0 || before.leaks == 0,
        Scope::All => before.outcome() == Outcome::Clean && before.notes == 0,
    };
    if nothing {
        let after = before.clone();
        let (steps, unread, kept, lost) = Default::default();
        return Ok(Plan { uuid, steps, unread, kept, lost, lost_count: 0, before, after });
    }
    draft.mend_catalog(before.corruptions)?;
    draft.mend_entries()?;
    draft.mend_tags();
    if draft.counters().is_none_or(|counters| counters.next_id >= draft::MAX_COUNT) {
        return Err(impossible("its ids are used up (CON-18)"));
    }
    let steps = carry_out(&mut draft, &shadow)?;
    let file_len = disk.len().map_err(Error::io("cannot read the container's length"))?;
    let after = check_view(&shadow, View { file_len, journal_end: None })?;
    if after.outcome() != Outcome::Clean {
        let first = after
            .findings
            .first()
            .map_or_else(String::new, |finding| format!("{}: {}", finding.place, finding.message));
        return Err(impossible(format!("what is wrong goes too deep ({first})")));
    }
    let (lost, lost_count) = lost_in_volumes(&draft);
    let kept = draft.kept.iter().copied().collect();
    let unread = draft.unread_tags.clone();
    Ok(Plan { uuid, steps, unread, kept, lost, lost_count, before, after })
}

/// Carries the changes out on the shadow; returns the writes.
fn carry_out(draft: &mut Draft<'_>, shadow: &Shadow<'_>) -> Result<Vec<Step>> {
    let mut all = Vec::new();
    let mut put = |step: Step| -> Result<()> {
        for (offset, bytes) in &step {
            shadow.write_at(bytes, *offset).map_err(Error::io("cannot plan a write"))?;
        }
        all.push(step);
        Ok(())
    };
    let (batch, end) = match steps::append(draft) {
        Ok(found) => found,
        Err(Error::CannotRepair { .. }) => {
            // What the journal holds goes home first, to make room.
            let new = (
                std::mem::take(&mut draft.new_descriptors),
                std::mem::take(&mut draft.new_slots),
                std::mem::take(&mut draft.new_entries),
            );
            put(steps::homes(draft)?)?;
            let end = draft.journal.end;
            steps::superblocks(draft, end)?.into_iter().try_for_each(&mut put)?;
            draft.start_over()?;
            (draft.new_descriptors, draft.new_slots, draft.new_entries) = new;
            steps::append(draft)?
        }
        Err(error) => return Err(error),
    };
    put(batch)?;
    put(steps::homes(draft)?)?;
    steps::superblocks(draft, end)?.into_iter().try_for_each(&mut put)?;
    all.retain(|step| !step.is_empty());
    Ok(all)
}

/// Which volumes show what was lost in layers.
fn lost_in_volumes(draft: &Draft<'_>) -> (Vec<Lost>, u64) {
    let layers = draft.layers();
    let mut by_layer: BTreeMap<_, Vec<(u64, u64)>> = BTreeMap::new();
    for lost in &draft.lost {
        by_layer.entry(lost.layer).or_default().push((lost.start, lost.end));
    }
    let mut all = Vec::new();
    let mut count = 0;
    for (_, volume) in draft.volumes() {
        let mut ranges = Vec::new();
        let (mut next, mut limit, mut seen) = (Some(volume.head), volume.size, HashSet::new());
        while let Some(id) = next.filter(|id| seen.insert(*id)) {
            for &(start, end) in by_layer.get(&id).into_iter().flatten().filter(|(start, _)| *start < limit) {
                ranges.push((start, end.min(limit)));
            }
            let Some((_, layer)) = layers.get(&id) else {
                break;
            };
            limit = limit.min(layer.parent_limit);
            next = layer.parent;
        }
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in ranges {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        count += merged.len() as u64;
        let lost = merged.into_iter().map(|(start, end)| Lost { volume: volume.name.clone(), start, end });
        all.extend(lost.take(LOST_KEPT - all.len()));
    }
    (all, count)
}

impl Plan {
    /// Whether there is anything to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The check before the repair.
    pub fn before(&self) -> &CheckReport {
        &self.before
    }

    /// What a check after the repair will report.
    pub fn after(&self) -> &CheckReport {
        &self.after
    }

    /// Parts of volumes that are lost, the first [`LOST_KEPT`] of them.
    pub fn lost(&self) -> &[Lost] {
        &self.lost
    }

    /// Number of lost parts.
    pub fn lost_count(&self) -> u64 {
        self.lost_count
    }

    /// Writes everything that [`Plan::carry_out`] will change, old and new, and slabs that it will give up although they
    /// may hold what is lost. The caller makes it durable before it carries the plan out. Of tags that cannot be read it has
    /// zeros.
    ///
    /// Errors: the disk's and `out`'s.
    pub fn write_log(&self, disk: &dyn Disk, out: &mut dyn io::Write) -> Result<()> {
        log::write(self.uuid, (&self.steps, &self.unread), &self.kept, disk, out)
    }

    /// Does it: after each step, what was written is durable.
    ///
    /// Errors: the disk's; the container is then as it was, or as a crash would have left it (CHK-30).
    pub fn carry_out(&self, disk: &dyn Disk) -> Result<()> {
        for step in &self.steps {
            for (offset, bytes) in step {
                disk.write_at(bytes, *offset).map_err(Error::io("cannot write a repair"))?;
            }
            disk.sync().map_err(Error::io("cannot sync a repair"))?;
        }
        Ok(())
    }
}
