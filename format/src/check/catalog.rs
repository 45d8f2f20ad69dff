//! The catalog against itself: ids, names, heads, parents.
//!
//! Invariant: layers that are kept as live have a decoded record and an id of their own; the walk up through parents ends.
//! Does not: look at descriptors or entries.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::copies::wrong_copies;
use super::finding::{
    COPY, CheckReport, HEAD, ID, NAME, OWNER, PARENT, PARENT_LIMIT, REGION, RELATION, SECOND_RELATION, UNREACHED_LAYER,
    VIEW,
};
use super::metadata::Metadata;
use super::relations::wrong_relations;
use super::views::wrong_views;
use crate::error::Place;
use crate::layout::slot::{Durability, LayerKind, LayerRecord, RegionRecord, RelationRecord, Slot, VolumeRecord};
use crate::units::{LayerId, MAX_NEXT_ID, SlotNo, VolumeId};

/// The objects of the catalog, by id.
#[derive(Debug, Default)]
pub(super) struct Catalog<'a> {
    volumes: Vec<(SlotNo, &'a VolumeRecord)>,
    regions: Vec<(SlotNo, &'a RegionRecord)>,
    pub(super) layers: BTreeMap<LayerId, (SlotNo, &'a LayerRecord)>,
    relations: Vec<(SlotNo, &'a RelationRecord)>,
    /// Frozen layers that neither a volume nor a relation reaches.
    pub(super) unreached: BTreeSet<LayerId>,
}

fn next_id(metadata: &Metadata) -> u64 {
    metadata.counters.map_or(u64::MAX, |counters| counters.next_id)
}

fn place(slot: SlotNo) -> String {
    Place::Slot(slot.0).to_string()
}

impl<'a> Catalog<'a> {
    /// Sorts the slots and reports what does not fit together.
    pub(super) fn check(metadata: &'a Metadata, report: &mut CheckReport) -> Self {
        let mut catalog = Self::default();
        catalog.collect(metadata, report);
        // Backups' instants are nobody's volumes (BAK-2).
        report.volumes = catalog.volumes.iter().filter(|(_, volume)| volume.instant.is_none()).count() as u64;
        report.layers = catalog.layers.len() as u64;
        catalog.check_volumes(report);
        catalog.check_regions(report);
        catalog.check_parents(report);
        catalog.check_copies(metadata.blind, report);
        catalog.check_relations(next_id(metadata), report);
        catalog.check_views(metadata.blind, report);
        catalog.check_reach(metadata.blind, report);
        catalog
    }

    /// Volumes that are undefined, or will be at the next opening after an unclean stop (CHK-55).
    pub(super) fn undefined(&self, unclean: bool) -> u64 {
        let is_undefined = |volume: &VolumeRecord| volume.undefined || unclean && volume.durability == Durability::None;
        self.volumes.iter().filter(|(_, volume)| is_undefined(volume)).count() as u64
    }

    /// The layer, if its entries count.
    pub(super) fn live(&self, id: LayerId) -> Option<&'a LayerRecord> {
        self.layers.get(&id).map(|(_, record)| *record).filter(|record| record.kind != LayerKind::Doomed)
    }

    fn collect(&mut self, metadata: &'a Metadata, report: &mut CheckReport) {
        let next_id = next_id(metadata);
        if metadata.counters.is_some_and(|_| next_id == 0 || next_id > MAX_NEXT_ID) {
            report.add(ID, place(SlotNo(0)), format!("the next id {next_id} is not from 1 to 2^63"), "LAY-1");
        }
        let mut ids = HashSet::new();
        for (&number, found) in &metadata.slots {
            let id = match found {
                Some(Slot::Volume(record)) => {
                    self.volumes.push((number, record));
                    record.id.0
                }
                Some(Slot::Layer(record)) => {
                    self.layers.entry(record.id).or_insert((number, record));
                    record.id.0
                }
                Some(Slot::Region(record)) => {
                    self.regions.push((number, record));
                    record.id.0
                }
                Some(Slot::Relation(record)) => {
                    self.relations.push((number, record));
                    continue;
                }
                Some(Slot::Free | Slot::Container(_)) | None => continue,
            };
            if id == 0 || id >= next_id {
                let message = format!("id {id} is not from 1 to below the container's next id {next_id}");
                report.add(ID, place(number), message, "LAY-1");
            }
            if !ids.insert(id) {
                report.add(ID, place(number), format!("id {id} is used twice"), "LAY-1");
            }
        }
    }

    fn check_volumes(&self, report: &mut CheckReport) {
        let mut names = HashSet::new();
        let mut heads = HashSet::new();
        for &(number, volume) in &self.volumes {
            if volume.instant.is_none() && !names.insert(&volume.name) {
                report.add(NAME, place(number), format!("a second volume named '{}'", volume.name), "CAT-4");
            }
            let complaint = match self.layers.get(&volume.head) {
                None => Some(format!("head {} does not exist", volume.head)),
                Some((_, head)) if head.kind != LayerKind::Head => {
                    Some(format!("head {} is of kind {:?}", volume.head, head.kind))
                }
                Some((_, head)) if head.size != volume.size => {
                    Some(format!("{} bytes long over a head of {} bytes", volume.size, head.size))
                }
                Some(_) => None,
            };
            let shared = (!heads.insert(volume.head)).then(|| format!("head {} is another volume's", volume.head));
            for message in complaint.into_iter().chain(shared) {
                report.add(HEAD, place(number), format!("volume '{}': {message}", volume.name), "LAY-3");
            }
        }
        let ids: HashSet<VolumeId> = self.volumes.iter().map(|(_, volume)| volume.id).collect();
        for (id, (number, layer)) in &self.layers {
            if layer.kind == LayerKind::Head && !heads.contains(id) {
                report.add(HEAD, place(*number), format!("head {id} belongs to no volume"), "LAY-3");
            }
            if let Some(owner) = layer.owner.filter(|owner| layer.kind != LayerKind::Doomed && !ids.contains(owner)) {
                let message = format!("layer {id} is owned by volume {owner}, which does not exist");
                report.add(OWNER, place(*number), message, "LAY-5");
            }
        }
    }

    fn check_regions(&self, report: &mut CheckReport) {
        let mut names = HashSet::new();
        for &(number, region) in &self.regions {
            if !names.insert(&region.name) {
                let message = format!("a second cache region named '{}'", region.name);
                report.add(REGION, place(number), message, "CAT-16");
            }
        }
    }

    fn check_views(&self, blind: bool, report: &mut CheckReport) {
        let volumes = self.volumes.iter().map(|(_, volume)| *volume);
        let wrong = wrong_views(volumes, self.layers.values().map(|(_, layer)| *layer), blind);
        for &(number, volume) in &self.volumes {
            if let Some(message) = wrong.get(&volume.id) {
                report.add(VIEW, place(number), format!("view '{}' {message}", volume.name), "LAY-70");
            }
        }
    }

    fn check_parents(&self, report: &mut CheckReport) {
        // What stands on the head of a view is looked at with the views.
        let views: HashSet<LayerId> =
            self.volumes.iter().filter(|(_, volume)| volume.is_view).map(|(_, volume)| volume.head).collect();
        // Layers whose walk up is known to end or has been reported.
        let mut done: HashSet<LayerId> = HashSet::new();
        for (&id, &(number, layer)) in &self.layers {
            let Some(parent) = layer.parent.filter(|_| layer.kind != LayerKind::Doomed) else {
                continue;
            };
            let complaint = match self.layers.get(&parent) {
                None => Some(format!("parent {parent} of layer {id} does not exist")),
                Some((_, above)) if !above.kind.may_be_parent() && !views.contains(&parent) => {
                    Some(format!("parent {parent} of layer {id} is of kind {:?}", above.kind))
                }
                Some((_, above)) => {
                    let most = layer.size.min(above.size);
                    if layer.parent_limit > most {
                        let message = format!("parent limit {} of layer {id} exceeds {most}", layer.parent_limit);
                        report.add(PARENT_LIMIT, place(number), message, "LAY-6");
                    }
                    None
                }
            };
            if let Some(message) = complaint {
                report.add(PARENT, place(number), message, "LAY-2");
            }
            let mut walked = HashSet::new();
            let mut next = Some(id);
            while let Some(current) = next.filter(|current| !done.contains(current)) {
                if !walked.insert(current) {
                    report.add(PARENT, place(number), format!("the parents of layer {id} form a cycle"), "LAY-2");
                    break;
                }
                next = self.live(current).and_then(|layer| layer.parent);
            }
            done.extend(walked);
        }
    }

    fn check_copies(&self, blind: bool, report: &mut CheckReport) {
        let heads = self.volumes.iter().map(|(_, volume)| (volume.id, volume.head)).collect();
        for (id, message) in wrong_copies(self.layers.values().map(|(_, layer)| *layer), &heads, blind) {
            report.add(COPY, place(self.layers[&id].0), format!("copy layer {id} {message}"), "LAY-38");
        }
    }

    fn check_relations(&self, next_id: u64, report: &mut CheckReport) {
        for &(number, relation) in &self.relations {
            let ids = relation.volumes.into_iter().flat_map(|pair| [pair.secondary, pair.primary]);
            for id in ids.filter(|id| id.0 >= next_id) {
                let message = format!("a relation of volume {id}, which is to come");
                report.add(RELATION, place(number), message, "LAY-1");
            }
        }
        let layer = |id| self.layers.get(&id).map(|(_, record)| *record);
        let (wrong, second) = wrong_relations(self.relations.iter().copied(), layer);
        for (kind, complaints) in [(RELATION, wrong), (SECOND_RELATION, second)] {
            for (number, (message, rule)) in complaints {
                report.add(kind, place(number), message, rule);
            }
        }
    }

    fn check_reach(&mut self, blind: bool, report: &mut CheckReport) {
        let mut reached = HashSet::new();
        let heads = self.volumes.iter().map(|(_, volume)| volume.head);
        for first in heads.chain(self.relations.iter().flat_map(|(_, relation)| relation.pinned())) {
            let mut next = Some(first);
            while let Some(id) = next.filter(|id| reached.insert(*id)) {
                next = self.live(id).and_then(|layer| layer.parent);
            }
        }
        if blind {
            return;
        }
        for (&id, &(number, layer)) in &self.layers {
            if layer.kind.may_be_parent() && !reached.contains(&id) {
                self.unreached.insert(id);
                report.add(
                    UNREACHED_LAYER,
                    place(number),
                    format!("neither a volume nor a relation uses layer {id}"),
                    "LAY-9",
                );
            }
        }
    }
}
