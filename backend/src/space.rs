//! Warnings before space runs out.
//!
//! A mark is reached when the container holds that share of what it could hold: its own free slabs and what the file
//! system can still give it. Invariant: a mark that was told of is told of again only after the use has been
//! [`HYSTERESIS`] points below it (CTL-53). Does not: make space.

use std::sync::atomic::{AtomicU8, Ordering};

use pitstop_format::SpaceInfo;

/// Points of percent by which the use must fall before a mark counts again.
const HYSTERESIS: u8 = 5;
/// Marks if nothing is said, in percent.
pub(crate) const DEFAULT_MARKS: &str = "80,95";

/// How much of what it could hold the container holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpaceUse {
    /// Share that is used, in percent, rounded down.
    pub(crate) used_percent: u8,
    /// Bytes that can still be used; `None` if unknown, and then `used_percent` counts the file alone.
    pub(crate) available_bytes: Option<u64>,
}

impl From<SpaceInfo> for SpaceUse {
    fn from(space: SpaceInfo) -> Self {
        let available_bytes = space.room_bytes.map(|room| room.saturating_add(space.free_bytes));
        let all = u128::from(space.used_bytes) + u128::from(available_bytes.unwrap_or(space.free_bytes));
        let percent = (u128::from(space.used_bytes) * 100).checked_div(all).unwrap_or(0);
        SpaceUse { used_percent: u8::try_from(percent).unwrap_or(100), available_bytes }
    }
}

/// The marks, ascending, in percent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marks(Vec<u8>);

impl std::str::FromStr for Marks {
    type Err = String;

    /// Parses `off`, or percentages in ascending order with commas between them.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Marks(Vec::new()));
        }
        let marks: Option<Vec<u8>> =
            text.split(',').map(|part| part.parse().ok().filter(|mark| (1..=99).contains(mark))).collect();
        match marks {
            Some(marks) if marks.is_sorted_by(|a, b| a < b) => Ok(Marks(marks)),
            _ => Err("use ascending numbers from 1 to 99 with commas between them, or off".to_owned()),
        }
    }
}

/// The highest mark that has been reached, for those who ask.
#[derive(Debug, Default)]
pub(crate) struct SpaceMark(AtomicU8);

impl SpaceMark {
    /// The mark in percent, if any has been reached.
    pub(crate) fn get(&self) -> Option<u8> {
        Some(self.0.load(Ordering::Acquire)).filter(|mark| *mark > 0)
    }

    pub(crate) fn set(&self, mark: Option<u8>) {
        self.0.store(mark.unwrap_or(0), Ordering::Release);
    }
}

/// What there is to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// This mark has been reached.
    Reached(u8),
    /// The use is below all marks again.
    Below,
}

/// Watches the use of space.
#[derive(Debug)]
pub(crate) struct Watch {
    marks: Marks,
    reached: Option<u8>,
}

impl Watch {
    pub(crate) fn new(marks: Marks) -> Self {
        Watch { marks, reached: None }
    }

    /// The highest mark that has been reached.
    pub(crate) fn reached(&self) -> Option<u8> {
        self.reached
    }

    /// Takes the present use; what there is to tell.
    pub(crate) fn look(&mut self, space: SpaceUse) -> Option<Change> {
        // Nothing can be said of a file system that does not say how much it can give.
        space.available_bytes?;
        let before = self.reached;
        let holds = |mark: u8| {
            let least =
                if before.is_some_and(|before| mark <= before) { mark.saturating_sub(HYSTERESIS) } else { mark };
            space.used_percent >= least
        };
        self.reached = self.marks.0.iter().rev().copied().find(|mark| holds(*mark));
        match (before, self.reached) {
            (Some(_), None) => Some(Change::Below),
            (before, Some(mark)) if before.is_none_or(|before| before < mark) => Some(Change::Reached(mark)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(used_percent: u8) -> SpaceUse {
        SpaceUse { used_percent, available_bytes: Some(1) }
    }

    // rule: CTL-53
    #[test]
    fn a_mark_is_told_of_once_until_the_use_has_been_well_below() {
        let mut watch = Watch::new(DEFAULT_MARKS.parse().unwrap());
        let told = [10, 79, 80, 81, 79, 80, 76, 80, 74, 80].map(|percent| watch.look(used(percent)));
        let mark = Some(Change::Reached(80));
        assert_eq!(told, [None, None, mark, None, None, None, None, None, Some(Change::Below), mark]);
    }

    #[test]
    fn the_highest_mark_counts() {
        let mut watch = Watch::new(DEFAULT_MARKS.parse().unwrap());
        assert_eq!(watch.look(used(97)), Some(Change::Reached(95)));
        assert_eq!(watch.look(used(91)), None);
        assert_eq!((watch.look(used(89)), watch.reached()), (None, Some(80)));
        assert_eq!(watch.look(used(95)), Some(Change::Reached(95)));
        assert_eq!(watch.look(used(0)), Some(Change::Below));
    }

    #[test]
    fn nothing_is_told_when_off_or_unknown() {
        assert_eq!(Watch::new("off".parse().unwrap()).look(used(100)), None);
        let unknown = SpaceUse { used_percent: 100, available_bytes: None };
        assert_eq!(Watch::new(DEFAULT_MARKS.parse().unwrap()).look(unknown), None);
    }

    #[test]
    fn marks_ascend_between_1_and_99() {
        for bad in ["", "0", "100", "95,80", "80,80", "80,", "x", "-1"] {
            assert!(bad.parse::<Marks>().is_err(), "{bad}");
        }
        assert_eq!("7".parse(), Ok(Marks(vec![7])));
    }

    #[test]
    fn the_use_counts_what_the_file_system_can_give() {
        let space = SpaceInfo { used_bytes: 30, free_bytes: 10, room_bytes: Some(60) };
        assert_eq!(SpaceUse::from(space), SpaceUse { used_percent: 30, available_bytes: Some(70) });
        let empty = SpaceInfo { used_bytes: 0, free_bytes: 0, room_bytes: Some(0) };
        assert_eq!(SpaceUse::from(empty).used_percent, 0);
    }
}
