//! Copy layers that nobody could go on filling.
//!
//! Invariant: work in proportion to the number of layers, whatever their parents say. Does not: look at entries.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::layout::slot::{LayerKind, LayerRecord};
use crate::units::{LayerId, VolumeId};

/// What is wrong with each copy layer that breaks LAY-38, of live and doomed `layers` and of volumes by id and head. If
/// `blind`, not all of the catalog could be read, and what is missing may be in the rest.
pub(super) fn wrong_copies<'a>(
    layers: impl Iterator<Item = &'a LayerRecord>,
    heads: &HashMap<VolumeId, LayerId>,
    blind: bool,
) -> BTreeMap<LayerId, String> {
    let live: Vec<&LayerRecord> = layers.filter(|layer| layer.kind != LayerKind::Doomed).collect();
    let copies: Vec<&LayerRecord> = live.iter().copied().filter(|layer| layer.kind.is_copy()).collect();
    if copies.is_empty() {
        return BTreeMap::new();
    }
    let mut children: HashMap<LayerId, Vec<LayerId>> = HashMap::new();
    for layer in &live {
        layer.parent.into_iter().for_each(|parent| children.entry(parent).or_default().push(layer.id));
    }
    let spans = spans(&live, &children);
    let reaches = |head: &LayerId, layer: LayerId| match (spans.get(head), spans.get(&layer)) {
        (Some((at, _)), Some((first, end))) => (first..end).contains(&at),
        _ => false,
    };
    let mut owners = HashSet::new();
    let complaint = |layer: &&LayerRecord| {
        let count = children.get(&layer.id).map_or(0, Vec::len);
        let message = match (layer.owner, layer.owner.and_then(|owner| heads.get(&owner))) {
            _ if layer.parent.is_none() => "has no parent".to_owned(),
            _ if count > 1 || (count == 0 && !blind) => format!("has {count} children"),
            (None, _) => "has no owner".to_owned(),
            (Some(owner), _) if !owners.insert(owner) => format!("is volume {owner}'s second one"),
            (Some(owner), head) if !blind && !head.is_some_and(|head| reaches(head, layer.id)) => {
                format!("is not used by volume {owner}, which owns it")
            }
            _ => return None,
        };
        Some((layer.id, message))
    };
    copies.iter().filter_map(complaint).collect()
}

/// The layers that stand on each layer, itself the first, as a range of numbers; none for those that parents lead round
/// and round.
fn spans(live: &[&LayerRecord], children: &HashMap<LayerId, Vec<LayerId>>) -> HashMap<LayerId, (u64, u64)> {
    let known: HashSet<LayerId> = live.iter().map(|layer| layer.id).collect();
    let roots = live.iter().filter(|layer| layer.parent.is_none_or(|parent| !known.contains(&parent)));
    let (mut spans, mut next) = (HashMap::new(), 0);
    // A layer comes twice: before those that stand on it, and after them.
    let mut stack: Vec<(LayerId, bool)> = roots.map(|layer| (layer.id, false)).collect();
    while let Some((id, passed)) = stack.pop() {
        if passed {
            spans.entry(id).and_modify(|(_, end)| *end = next);
            continue;
        }
        spans.insert(id, (next, next));
        next += 1;
        stack.push((id, true));
        stack.extend(children.get(&id).into_iter().flatten().map(|&child| (child, false)));
    }
    spans
}
