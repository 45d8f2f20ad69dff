//! Relations that name what they must not.
//!
//! Invariant: work in proportion to the number of relations. Does not: look at entries, or know whether the layers of a
//! relation hold the same bytes.

use std::collections::{BTreeMap, BTreeSet};

use crate::layout::slot::{LayerKind, LayerRecord, RelationRecord};
use crate::units::{LayerId, SlotNo};

/// What is wrong with a relation, and the rule that it breaks.
pub(super) type Complaint = (String, &'static str);

/// What is wrong with each of `relations` that breaks REL-3, and with the second of two that break REL-4.
pub(super) fn wrong_relations<'a>(
    relations: impl Iterator<Item = (SlotNo, &'a RelationRecord)>,
    layer: impl Fn(LayerId) -> Option<&'a LayerRecord>,
) -> (BTreeMap<SlotNo, Complaint>, BTreeMap<SlotNo, Complaint>) {
    let (mut wrong, mut second) = (BTreeMap::new(), BTreeMap::new());
    let (mut secondaries, mut copies) = (BTreeSet::new(), BTreeSet::new());
    for (slot, record) in relations {
        let message = record.pinned().find_map(|id| match layer(id) {
            None => Some(format!("layer {id} does not exist")),
            Some(found) if found.kind != LayerKind::Frozen => Some(format!("layer {id} is of kind {:?}", found.kind)),
            Some(LayerRecord { parent: Some(parent), .. }) if record.copy == Some(id) => {
                Some(format!("layer {id}, which was filled, stands on layer {parent}"))
            }
            Some(_) => None,
        });
        if let Some(message) = message {
            wrong.insert(slot, (message, "REL-3"));
            continue;
        }
        if record.volumes.is_some_and(|pair| !secondaries.insert(pair.secondary)) {
            second.insert(slot, ("another one has the same secondary".to_owned(), "REL-4"));
        } else if record.copy.is_some_and(|copy| !copies.insert(copy)) {
            second.insert(slot, ("another one has the same filled layer".to_owned(), "REL-4"));
        }
    }
    (wrong, second)
}
