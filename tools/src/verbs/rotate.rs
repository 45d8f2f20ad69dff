//! `pitstop snapshot --rotate`: the newest copies of a volume serve as its history.
//!
//! Invariant: only copies of this very volume that rotations of this prefix have made are deleted, the oldest first, and
//! none before the new one is there (SNP-24). Their names end in the time at which they were made, or in the next free one
//! where the clock was set back, so that they sort in the order in which they were made and never meet (SNP-25).

use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::render::{self, Output, printable};
use crate::session::{self, Access, Session};
use crate::view::VolumeView;

/// How often a name is looked for that no other program takes first.
const TRIES: u32 = 8;

/// The history of a volume.
#[derive(Debug)]
pub(crate) struct History<'a> {
    /// The volume.
    pub(crate) source: &'a str,
    /// What the names of its copies begin with.
    pub(crate) prefix: &'a str,
    /// Copies that stay, the new one included; at least 1.
    pub(crate) keep: u32,
}

#[derive(Debug, Serialize)]
struct Rotated {
    /// The new copy.
    volume: VolumeView,
    /// Names of the copies that are gone, the oldest first.
    deleted: Vec<String>,
}

/// Adds a copy to a history in the container `path`, and deletes those that are too old.
pub(crate) fn run(path: &Path, history: &History<'_>, output: Output) -> Result<()> {
    let rotated = session::with(path, Access::Change, |session| rotate(session, history))?;
    render::show(output, &rotated, |rotated| {
        let deleted = rotated.deleted.iter().map(|name| format!("{}: deleted\n", printable(name)));
        render::volume_line(&rotated.volume) + &deleted.collect::<String>()
    })
}

fn rotate(session: &mut dyn Session, history: &History<'_>) -> Result<Rotated> {
    let (volume, before) = add(session, history)?;
    let (mut deleted, mut failed) = (Vec::new(), None);
    // Of the volume that was copied, whatever its name was a moment ago.
    let source = volume.origin.as_ref().map(|origin| origin.volume);
    for old in history.outdated(before, source) {
        match session.delete_volume(&old) {
            Ok(()) => deleted.push(old),
            // Another rotation at the same time has deleted it.
            Err(_) if is_gone(session, &old) => {}
            // Later ones are tried all the same: one that is in use must not make a history grow for ever.
            Err(error) => failed = failed.or(Some((old, error))),
        }
    }
    match failed {
        None => Ok(Rotated { volume, deleted }),
        Some((old, source)) => Err(Error::NotRotated { made: volume.name, old, source: Box::new(source) }),
    }
}

/// Makes the new copy; returns it, and the volumes that were there before.
fn add(session: &mut dyn Session, history: &History<'_>) -> Result<(VolumeView, Vec<VolumeView>)> {
    let mut tries = TRIES;
    loop {
        let before = session.volumes()?;
        let name = history.next_name(&before, Timestamp::now());
        match session.snapshot(history.source, &name) {
            Ok(volume) => return Ok((volume, before)),
            Err(error) => {
                tries -= 1;
                // Another rotation at the same time may have taken the name.
                if tries == 0 || !session.volumes()?.iter().any(|volume| volume.name == name) {
                    return Err(error);
                }
            }
        }
    }
}

fn is_gone(session: &mut dyn Session, name: &str) -> bool {
    session.volumes().is_ok_and(|volumes| volumes.iter().all(|volume| volume.name != name))
}

impl History<'_> {
    /// The time in a name that a rotation of this prefix gave; nothing for other names.
    fn time_in(&self, name: &str) -> Option<Timestamp> {
        let text = name.strip_prefix(self.prefix)?.strip_prefix('-')?;
        let time = text.parse().ok()?;
        (spelt(time) == text).then_some(time)
    }

    /// The name of a copy made `now` beside `volumes`.
    fn next_name(&self, volumes: &[VolumeView], now: Timestamp) -> String {
        let newest = volumes.iter().filter_map(|volume| self.time_in(&volume.name)).max();
        let free = newest.and_then(|newest| Timestamp::from_millisecond(newest.as_millisecond() + 1).ok());
        format!("{}-{}", self.prefix, spelt(free.map_or(now, |free| free.max(now))))
    }

    /// Names of the copies of volume `source` among `volumes`, the oldest first, that are too many beside a new one.
    fn outdated(&self, volumes: Vec<VolumeView>, source: Option<u64>) -> Vec<String> {
        let Some(source) = source else { return Vec::new() };
        let is_of_source = |volume: &VolumeView| volume.origin.as_ref().is_some_and(|origin| origin.volume == source);
        let mut copies: Vec<_> = volumes.into_iter().filter(is_of_source).collect();
        copies.retain(|copy| self.time_in(&copy.name).is_some());
        // Ids are given in the order in which volumes are made, whatever the clock said.
        copies.sort_by_key(|copy| copy.id);
        let keep = usize::try_from(self.keep).unwrap_or(usize::MAX);
        copies.truncate((copies.len() + 1).saturating_sub(keep));
        copies.into_iter().map(|copy| copy.name).collect()
    }
}

/// A time as names have it: `20251121T150220.123Z`.
fn spelt(time: Timestamp) -> String {
    format!("{time:.3}").replace(['-', ':'], "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tests::volume;

    const HISTORY: History<'static> = History { source: "db", prefix: "day", keep: 2 };

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    // rule: SNP-24
    #[test]
    fn only_copies_that_rotations_made_of_this_volume_are_outdated() {
        let of_db = Some((1, "db", 10));
        let volumes = vec![
            volume(1, "db", None),
            volume(9, "day-20250101T000000.000Z", of_db),
            volume(3, "day-20250301T000000.000Z", of_db),
            volume(4, "day-20250201T000000.000Z", of_db),
            volume(5, "day-20240101T000000.000Z", Some((2, "other", 10))),
            volume(6, "day-20240102T000000.000Z", None),
            volume(7, "day-before-the-upgrade", of_db),
            volume(8, "day-20240103", of_db),
            volume(10, "day-x-20240104T000000.000Z", of_db),
            volume(11, "daily-20240105T000000.000Z", of_db),
            volume(12, "day-2024-01-06T00:00:00.000Z", of_db),
        ];
        let outdated = |keep| History { keep, ..HISTORY }.outdated(volumes.clone(), Some(1));
        let all = ["day-20250301T000000.000Z", "day-20250201T000000.000Z", "day-20250101T000000.000Z"];
        assert_eq!(outdated(1), all);
        assert_eq!(outdated(2), all[..2]);
        assert_eq!(outdated(3), all[..1]);
        assert!(outdated(4).is_empty() && outdated(u32::MAX).is_empty());
        assert!(History { keep: 1, ..HISTORY }.outdated(volumes.clone(), Some(77)).is_empty());
    }

    // rule: SNP-25
    #[test]
    fn names_sort_in_their_order_whatever_the_clock_says() {
        let mut volumes = vec![volume(1, "db", None)];
        let mut names = Vec::new();
        for now in
            ["2025-11-21T15:02:20.1239Z", "2025-11-21T15:02:20.1239Z", "2025-11-21T14:00:00Z", "2025-11-21T16:00:00Z"]
        {
            let name = HISTORY.next_name(&volumes, time(now));
            volumes.push(volume(2, &name, None));
            names.push(name);
        }
        let expected = ["20251121T150220.123Z", "20251121T150220.124Z", "20251121T150220.125Z", "20251121T160000.000Z"];
        assert_eq!(names, expected.map(|time| format!("day-{time}")));
        assert!(names.iter().all(|name| HISTORY.time_in(name).is_some()));
    }
}
