//! The shapes of maps and differences: steps as a session gives them, and what they come to.
//!
//! Invariant: as [`crate::view`]. Does not: do I/O or rendering.

use serde::{Deserialize, Serialize};

/// What lies somewhere, without a look at the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ContentView {
    /// Data, which may be zeros.
    Data,
    /// Zeros.
    Zero,
    /// Nothing: the volume has ended.
    None,
}

/// Bytes of which a map says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct MapRangeView {
    pub(crate) start: u64,
    pub(crate) length: u64,
    /// In storage of the volume's own, or in nobody's.
    pub(crate) valid: bool,
    /// Written since the volume's last point-in-time event.
    pub(crate) modified: bool,
    /// Data that hydrating has still to copy.
    pub(crate) to_copy: bool,
    pub(crate) content: ContentView,
}

/// Bytes that a step of a map has passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct MapCountsView {
    pub(crate) valid_bytes: u64,
    /// In layers of other volumes.
    pub(crate) others_bytes: u64,
    pub(crate) modified_bytes: u64,
    pub(crate) to_copy_bytes: u64,
    pub(crate) data_bytes: u64,
    /// Data in layers of the volume's own.
    pub(crate) own_data_bytes: u64,
    /// Data that has tags.
    #[serde(default)]
    pub(crate) sealed_bytes: u64,
}

/// A step of a map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct MapStepView {
    pub(crate) size_bytes: u64,
    /// The volume's head at the step.
    pub(crate) head: u64,
    pub(crate) ranges: Vec<MapRangeView>,
    pub(crate) counts: MapCountsView,
    pub(crate) next: Option<u64>,
}

/// A whole map, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct MapTotals {
    pub(crate) size_bytes: u64,
    #[serde(flatten)]
    pub(crate) counts: MapCountsView,
    /// Share of the volume that is valid; 100 only if all of it is.
    pub(crate) valid_percent: u64,
}

impl MapTotals {
    /// Adds what a step has passed.
    pub(crate) fn add(&mut self, step: &MapStepView) {
        let (sum, more) = (&mut self.counts, &step.counts);
        sum.valid_bytes += more.valid_bytes;
        sum.others_bytes += more.others_bytes;
        sum.modified_bytes += more.modified_bytes;
        sum.to_copy_bytes += more.to_copy_bytes;
        sum.data_bytes += more.data_bytes;
        sum.own_data_bytes += more.own_data_bytes;
        sum.sealed_bytes += more.sealed_bytes;
        self.size_bytes = step.size_bytes;
        let passed = u128::from(sum.valid_bytes) + u128::from(sum.others_bytes);
        let percent = (u128::from(sum.valid_bytes) * 100).checked_div(passed).unwrap_or(100);
        self.valid_percent = u64::try_from(percent).unwrap_or(100);
    }
}

/// Bytes in which two volumes may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DiffRangeView {
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) changed_in: ChangedInView,
    /// What the first volume has there.
    pub(crate) a: ContentView,
    /// What the second one has.
    pub(crate) b: ContentView,
}

/// Who has something that the other volume does not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ChangedInView {
    /// The first volume.
    A,
    /// The second.
    B,
    /// Each something of its own.
    Both,
}

/// Bytes that a step of a difference has listed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DiffCountsView {
    pub(crate) bytes: u64,
    pub(crate) changed_in_a_bytes: u64,
    pub(crate) changed_in_b_bytes: u64,
    /// Data of the first volume, and of the second.
    #[serde(default)]
    pub(crate) a_data_bytes: u64,
    #[serde(default)]
    pub(crate) b_data_bytes: u64,
}

/// How a copy and its source differ: what copying would move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Differences {
    /// From the source to the copy.
    pub(crate) to_secondary_bytes: u64,
    /// From the copy to the source.
    pub(crate) to_primary_bytes: u64,
}

/// A step of a difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DiffStepView {
    pub(crate) a_size_bytes: u64,
    pub(crate) b_size_bytes: u64,
    /// The volumes' heads at the step.
    pub(crate) a_head: u64,
    pub(crate) b_head: u64,
    pub(crate) ranges: Vec<DiffRangeView>,
    pub(crate) counts: DiffCountsView,
    pub(crate) next: Option<u64>,
}

/// A whole difference, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DiffTotals {
    pub(crate) a_size_bytes: u64,
    pub(crate) b_size_bytes: u64,
    #[serde(flatten)]
    pub(crate) counts: DiffCountsView,
}

impl DiffTotals {
    /// Adds what a step has listed.
    pub(crate) fn add(&mut self, step: &DiffStepView) {
        let (sum, more) = (&mut self.counts, &step.counts);
        sum.bytes += more.bytes;
        sum.changed_in_a_bytes += more.changed_in_a_bytes;
        sum.changed_in_b_bytes += more.changed_in_b_bytes;
        sum.a_data_bytes += more.a_data_bytes;
        sum.b_data_bytes += more.b_data_bytes;
        (self.a_size_bytes, self.b_size_bytes) = (step.a_size_bytes, step.b_size_bytes);
    }
}
