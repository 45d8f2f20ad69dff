//! The shapes that `--output json` shows and that every verb works with.
//!
//! Invariant: a view made from an open container and one made from a daemon's answer are the same type, so no verb can
//! tell which it was. Sizes are exact bytes, instants are nanoseconds since 1970 in UTC; names of members are spelt with
//! dashes, as in QMP and in qemu-img. Does not: do I/O or rendering.

use clap::ValueEnum;
use pitstop_format::{Durability, Verify};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Makes a view of what the container library or a daemon gives, whichever way that spells names of members.
///
/// # Errors
/// A member is missing or of another type.
pub(crate) fn view<T: DeserializeOwned>(value: Value) -> serde_json::Result<T> {
    serde_json::from_value(with_dashes(value))
}

fn with_dashes(value: Value) -> Value {
    match value {
        Value::Object(members) => Value::Object(
            members
                .into_iter()
                .map(|(name, value)| (name.replace('_', "-"), with_dashes(value)))
                .collect::<Map<_, _>>(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(with_dashes).collect()),
        other => other,
    }
}

/// A cache region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct CacheView {
    pub(crate) id: u64,
    pub(crate) name: String,
    /// Bytes that the backups drawing on it may keep together.
    pub(crate) limit_bytes: u64,
    /// Bytes that they keep now.
    pub(crate) used_bytes: u64,
    /// Percent of the limit from which on there is a warning.
    pub(crate) high_water_percent: u8,
    /// Bytes by which the limit grows where it is reached; 0: not at all.
    pub(crate) growth_bytes: u64,
    /// How far the limit grows.
    pub(crate) most_bytes: u64,
    pub(crate) backups: u32,
    pub(crate) created_unix_ns: i64,
}

/// A container as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ContainerView {
    pub(crate) uuid: String,
    pub(crate) label: String,
    pub(crate) version: u32,
    pub(crate) block_len_bytes: u64,
    pub(crate) chunk_len_bytes: u64,
    pub(crate) file_len_bytes: u64,
    /// Metadata and data.
    pub(crate) allocated_bytes: u64,
    /// Free within the file.
    pub(crate) free_bytes: u64,
    pub(crate) journal_len_bytes: u64,
    pub(crate) volume_count: u64,
    pub(crate) layer_count: u64,
    /// How often it was opened for writing.
    pub(crate) generation: u64,
    pub(crate) created_unix_ns: i64,
    /// Why a daemon accepts no more changes to it, if so.
    #[serde(default)]
    pub(crate) failure: Option<String>,
}

/// Whether all of a volume's data is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StateView {
    /// Some data still lives in another volume's layers.
    Virtual,
    /// Virtual, and being made real.
    Hydrating,
    /// All of it is its own.
    Real,
}

/// What a flush of a volume promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DurabilityView {
    /// A write is durable when a later flush has returned
    Flush,
    /// Flushes return at once: for disposable disks
    None,
}

impl From<DurabilityView> for Durability {
    fn from(view: DurabilityView) -> Self {
        match view {
            DurabilityView::Flush => Self::Flush,
            DurabilityView::None => Self::None,
        }
    }
}

/// How far a volume has been hydrated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct HydrationView {
    /// The copy layer; the job is named after it.
    pub(crate) layer: u64,
    /// Bytes that have been looked at.
    pub(crate) copied_bytes: u64,
    /// Bytes to look at.
    pub(crate) total_bytes: u64,
}

/// How far what is frozen of a volume has been sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct SealingView {
    /// Bytes that have been looked at.
    pub(crate) passed_bytes: u64,
    /// Bytes to look at.
    pub(crate) total_bytes: u64,
}

/// What a volume was made from, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct OriginView {
    /// Id of the source volume.
    pub(crate) volume: u64,
    /// Its name at that instant.
    pub(crate) name: String,
    pub(crate) instant_unix_ns: i64,
}

/// How a volume stands to the one that it is a copy of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct RelationView {
    pub(crate) state: RelationStateView,
    /// A refresh, in either direction, moves only what differs.
    pub(crate) tracked: bool,
    /// Bytes of the file that are kept for it alone.
    pub(crate) kept_bytes: u64,
    /// What the last hydration has moved.
    pub(crate) moved: Option<MovedView>,
}

/// The state of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RelationStateView {
    /// The copy is virtual.
    Virtual,
    /// The copy is being made real.
    Hydrating,
    /// The copy is real.
    Real,
    /// It was ended, or the source is gone.
    Split,
}

/// What a hydration has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct MovedView {
    pub(crate) copied_bytes: u64,
    /// Taken over where they lay.
    pub(crate) adopted_bytes: u64,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct VolumeView {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) uuid: String,
    pub(crate) size_bytes: u64,
    pub(crate) created_unix_ns: i64,
    pub(crate) origin: Option<OriginView>,
    /// How it stands to its origin, if it has one.
    pub(crate) relation: Option<RelationView>,
    /// The volume that it is a write-through view of.
    #[serde(default)]
    pub(crate) view_of: Option<String>,
    /// The write-through view of it.
    #[serde(default)]
    pub(crate) viewed_by: Option<String>,
    pub(crate) state: StateView,
    /// How far it has been hydrated, while it is.
    pub(crate) hydration: Option<HydrationView>,
    /// What its flushes promise: `flush` or `none`.
    pub(crate) durability: DurabilityView,
    /// An unclean stop may have cost it what was flushed.
    pub(crate) undefined: bool,
    /// What is done so that damaged data of it is found.
    #[serde(default)]
    pub(crate) verify: Verify,
    /// How far what is frozen of it has been sealed, while it is.
    #[serde(default)]
    pub(crate) sealing: Option<SealingView>,
    /// Bytes of the file that layers of its own occupy.
    pub(crate) allocated_bytes: u64,
    /// The layer that takes its writes.
    pub(crate) head: u64,
    /// Layers below the head.
    pub(crate) depth: u32,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct LayerView {
    pub(crate) id: u64,
    pub(crate) kind: String,
    pub(crate) parent: Option<u64>,
    pub(crate) owner: Option<u64>,
    pub(crate) size_bytes: u64,
    pub(crate) allocated_bytes: u64,
    pub(crate) children: u32,
}

/// Something that a structural check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct FindingView {
    /// What kind of finding it is, as `spec/check.md` numbers them.
    pub(crate) id: String,
    pub(crate) severity: SeverityView,
    pub(crate) place: String,
    pub(crate) message: String,
    /// The broken rule.
    pub(crate) rule: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SeverityView {
    /// Nothing is wrong, but worth knowing.
    Note,
    /// Space is lost, nothing else.
    Leak,
    /// Data or structure is damaged.
    Corruption,
}

/// The result of a structural check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct CheckView {
    /// The first of them; the counts count all.
    pub(crate) findings: Vec<FindingView>,
    pub(crate) corruptions: u64,
    pub(crate) leaks: u64,
    pub(crate) notes: u64,
    /// The walker's other counts, as it names them.
    #[serde(flatten)]
    pub(crate) counts: Map<String, Value>,
}

/// The verdict of a check; the numbers are those of `qemu-img check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing found: 0.
    Clean,
    /// Some or all of it could not be checked: 1.
    CouldNotCheck,
    /// Damage: 2.
    Corrupt,
    /// Lost space only: 3.
    Leaks,
    /// A version or feature that this program cannot check: 63.
    Unsupported,
}

impl Verdict {
    /// The exit code that stands for it.
    pub(crate) const fn exit_code(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::CouldNotCheck => 1,
            Self::Corrupt => 2,
            Self::Leaks => 3,
            Self::Unsupported => 63,
        }
    }
}

impl CheckView {
    /// The verdict: damage counts more than leaks.
    pub(crate) fn verdict(&self) -> Verdict {
        match (self.corruptions, self.leaks) {
            (0, 0) => Verdict::Clean,
            (0, _) => Verdict::Leaks,
            _ => Verdict::Corrupt,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_qemu_img_check() {
        for (corruptions, leaks, code) in [(0, 0, 0), (0, 2, 3), (1, 2, 2), (1, 0, 2)] {
            let view = CheckView { findings: vec![], corruptions, leaks, notes: 1, counts: Map::new() };
            assert_eq!(view.verdict().exit_code(), code, "{corruptions} {leaks}");
        }
        assert_eq!(Verdict::CouldNotCheck.exit_code(), 1);
        assert_eq!(Verdict::Unsupported.exit_code(), 63);
    }

    #[test]
    fn members_are_found_under_either_spelling() {
        let value = serde_json::json!([{ "a_b": 1, "origin": { "c-d": 2, "name": "e_f" } }]);
        assert_eq!(with_dashes(value), serde_json::json!([{ "a-b": 1, "origin": { "c-d": 2, "name": "e_f" } }]));
    }

    #[test]
    fn the_walkers_counts_are_kept_in_json() {
        let text = r#"{"findings":[],"corruptions":0,"leaks":0,"notes":0,"slabs-checked":12}"#;
        let view: CheckView = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&view).unwrap(), text);
    }
}
