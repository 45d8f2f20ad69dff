//! What a check found, for people and programs.
//!
//! Invariant: every finding carries an id of `spec/check.md` and the rule that is broken; all are counted, the first
//! [`FINDINGS_KEPT`] are kept. Does not: decide what is wrong (that is `walk`).

use serde::Serialize;

use crate::units::LayerId;

/// Findings that a report keeps; further ones are only counted.
pub const FINDINGS_KEPT: usize = 1000;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Nothing is wrong, but worth knowing.
    Note,
    /// Space that nothing uses is not free.
    Leak,
    /// A rule is broken; data or a whole volume may be unreadable.
    Corruption,
}

/// The result as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Neither corruption nor leak.
    Clean,
    /// Leaks only.
    Leaks,
    /// At least one corruption.
    Corrupt,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Finding {
    /// Id in `spec/check.md`, such as `CHK-16`.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Where it is.
    pub place: String,
    /// What it is.
    pub message: String,
    /// The rule of `spec/` that is broken.
    pub rule: &'static str,
}

/// Everything a check found and looked at.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckReport {
    /// The first [`FINDINGS_KEPT`] findings, in the order of the walk.
    pub findings: Vec<Finding>,
    /// Number of corruptions.
    pub corruptions: u64,
    /// Number of leaks.
    pub leaks: u64,
    /// Number of notes.
    pub notes: u64,
    /// Slabs of the container.
    pub slabs_checked: u64,
    /// Tables of live layers.
    pub tables_checked: u64,
    /// Chunk entries of their initialised pages.
    pub entries_checked: u64,
    /// Volumes.
    pub volumes: u64,
    /// Volumes that are undefined, or will be once the container is opened for writing (VOL-44); nothing is damaged.
    pub undefined_volumes: u64,
    /// Layers, doomed ones included.
    pub layers: u64,
    /// Slabs that are described as something.
    pub allocated_slabs: u64,
    /// Slabs that nothing uses and that are not free.
    pub leaked_slabs: u64,
    /// Complete batches in the journal that the next opening replays.
    pub journal_batches: u64,
    /// The superblock says that the container was closed in order.
    pub clean: bool,
    /// Bytes of data that have tags and were read and verified; 0 unless that was asked for.
    pub data_bytes_verified: u64,
}

/// A block whose data is not what it was sealed as, or cannot be read.
#[derive(Debug)]
pub(crate) struct Unfit {
    pub(crate) layer: LayerId,
    /// Its number in the layer.
    pub(crate) block: u64,
    /// Its byte offset in the container file.
    pub(crate) offset: u64,
    /// Some of the volumes that read through the layer.
    pub(crate) volumes: Vec<String>,
}

impl CheckReport {
    /// The result as a whole.
    pub fn outcome(&self) -> Outcome {
        match (self.corruptions, self.leaks) {
            (0, 0) => Outcome::Clean,
            (0, _) => Outcome::Leaks,
            _ => Outcome::Corrupt,
        }
    }

    /// Adds a block that does not fit its tag.
    pub(crate) fn add_unfit(&mut self, unfit: &Unfit, why: &str) {
        let Unfit { layer, block, offset, volumes } = unfit;
        let place = format!("layer {layer} block {block} (offset {offset})");
        let message = format!("the data is not what was sealed: {why}; read by volumes: {}", volumes.join(", "));
        self.add(DATA, place, message, "TAG-5");
    }

    pub(super) fn add(&mut self, kind: Kind, place: String, message: String, rule: &'static str) {
        match kind.severity {
            Severity::Corruption => self.corruptions += 1,
            Severity::Leak => self.leaks += 1,
            Severity::Note => self.notes += 1,
        }
        if self.findings.len() < FINDINGS_KEPT {
            self.findings.push(Finding { id: kind.id, severity: kind.severity, place, message, rule });
        }
    }
}

/// A row of the table in `spec/check.md`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) id: &'static str,
    pub(super) severity: Severity,
}

macro_rules! kinds {
    ($($name:ident $id:literal $severity:ident;)*) => {
        $(pub(super) const $name: Kind = Kind { id: $id, severity: Severity::$severity };)*
        /// All kinds; compared with the specification by a test.
        #[cfg(test)]
        pub(super) const KINDS: &[Kind] = &[$($name),*];
    };
}

kinds! {
    SUPERBLOCK "CHK-1" Note;
    DESCRIPTOR "CHK-2" Corruption;
    RESERVED "CHK-3" Corruption;
    SLAB_COUNT "CHK-4" Corruption;
    CATALOG "CHK-5" Corruption;
    SLOT "CHK-6" Corruption;
    CONTAINER_SLOT "CHK-7" Corruption;
    ID "CHK-8" Corruption;
    NAME "CHK-9" Corruption;
    HEAD "CHK-10" Corruption;
    PARENT "CHK-11" Corruption;
    UNREACHED_LAYER "CHK-12" Leak;
    PARENT_LIMIT "CHK-13" Corruption;
    TABLE "CHK-14" Corruption;
    ENTRY "CHK-15" Corruption;
    ENTRY_SLAB "CHK-16" Corruption;
    SHARED_SLAB "CHK-17" Corruption;
    UNREACHED_DATA "CHK-18" Leak;
    ORPHAN "CHK-19" Leak;
    BEYOND_SIZE "CHK-20" Corruption;
    JOURNAL "CHK-21" Corruption;
    OWNER "CHK-22" Corruption;
    NEEDLESSLY_RESERVED "CHK-23" Leak;
    COPY "CHK-33" Corruption;
    RELATION "CHK-40" Corruption;
    SECOND_RELATION "CHK-41" Corruption;
    REGION "CHK-50" Corruption;
    TAG_RECORD "CHK-60" Corruption;
    TAG_SLAB "CHK-61" Corruption;
    DATA "CHK-62" Corruption;
    VIEW "CHK-70" Corruption;
}
