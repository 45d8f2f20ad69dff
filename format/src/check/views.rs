//! Write-through views whose two heads do not fit together.
//!
//! Invariant: work in proportion to the number of layers. Does not: look at entries.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::layout::slot::{Durability, LayerKind, LayerRecord, VolumeRecord};
use crate::units::{LayerId, VolumeId};

/// What is wrong with each view that breaks LAY-70. If `blind`, not all of the catalog could be read, and what is missing
/// may be in the rest.
pub(super) fn wrong_views<'a>(
    volumes: impl Iterator<Item = &'a VolumeRecord>,
    layers: impl Iterator<Item = &'a LayerRecord>,
    blind: bool,
) -> BTreeMap<VolumeId, String> {
    let volumes: Vec<&VolumeRecord> = volumes.collect();
    let views: HashMap<LayerId, &VolumeRecord> =
        volumes.iter().filter(|volume| volume.is_view).map(|volume| (volume.head, *volume)).collect();
    let mut wrong = BTreeMap::new();
    if views.is_empty() {
        return wrong;
    }
    let of_heads: HashMap<LayerId, &VolumeRecord> = volumes.iter().map(|volume| (volume.head, *volume)).collect();
    let live: Vec<&LayerRecord> = layers.filter(|layer| layer.kind != LayerKind::Doomed).collect();
    let hydrated: HashSet<VolumeId> = live.iter().filter_map(|layer| layer.filled_for()).collect();
    let mut above: HashMap<LayerId, u32> = HashMap::new();
    for layer in live {
        let Some((parent, view)) = layer.parent.and_then(|parent| Some((parent, views.get(&parent)?))) else {
            continue;
        };
        let count = above.entry(parent).or_default();
        *count += 1;
        let message = match layer.kind {
            _ if *count > 1 => format!("has {count} layers over its head"),
            LayerKind::Head if views.contains_key(&layer.id) => {
                format!("has another view's head {} over its own", layer.id)
            }
            LayerKind::Head if layer.size != view.size => {
                format!("has {} bytes, the head {} over its own {}", view.size, layer.id, layer.size)
            }
            LayerKind::Head if layer.parent_limit != layer.size => {
                format!("shows only {} bytes through the head {} over its own", layer.parent_limit, layer.id)
            }
            LayerKind::Head => {
                let pair = || of_heads.get(&layer.id).copied().into_iter().chain([*view]);
                if let Some(disposable) = pair().find(|volume| volume.durability == Durability::None) {
                    format!("and its source promise what volume '{}' does not", disposable.name)
                } else if let Some(filled) = pair().find(|volume| hydrated.contains(&volume.id)) {
                    format!("and its source take writes while volume '{}' is being hydrated", filled.name)
                } else {
                    continue;
                }
            }
            kind => format!("has layer {} of kind {kind:?} over its head", layer.id),
        };
        wrong.insert(view.id, message);
    }
    let alone = |view: &&&VolumeRecord| !above.contains_key(&view.head);
    if !blind {
        wrong.extend(views.values().filter(alone).map(|view| (view.id, "has no head over its own".to_owned())));
    }
    wrong
}
