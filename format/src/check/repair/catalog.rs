//! Descriptors of the container's own slabs, and the catalog: ids, names, heads, parents.
//!
//! Invariant: afterwards every layer has one record and every volume a head of its own, and no slab of a layer has been
//! given up only because a record that led to it is lost (CHK-32).

use std::collections::{BTreeMap, BTreeSet, HashSet};

use uuid::Uuid;

use super::draft::{Draft, impossible, turn_back};
use crate::check::copies::wrong_copies;
use crate::check::read;
use crate::check::views::wrong_views;
use crate::error::Result;
use crate::layout::descriptor::Descriptor;
use crate::layout::slot::{
    self, ContainerRecord, Durability, LayerKind, LayerRecord, PER_SLAB, RegionRecord, Slot, Verify, VolumeRecord,
    check_name,
};
use crate::units::{
    LayerId, MAX_VOLUME_LEN, PAGE_LEN, RegionId, SLAB_LEN, SLABS_PER_GROUP, SlabNo, SlotNo, TABLE_SPAN, VolumeId,
};

/// Ids skipped when the counter is rebuilt, so that none of a deleted object is given again.
const ID_GAP: u64 = 1 << 32;
const MAX_ID: u64 = 1 << 62;

impl Draft<'_> {
    /// Descriptors that can be told without the catalog, then the catalog itself.
    /// `corruptions` were found before.
    pub(super) fn mend_catalog(&mut self, corruptions: u64) -> Result<()> {
        self.mend_own_descriptors()?;
        self.find_catalog_slabs()?;
        self.read_catalog()?;
        self.mend_slots()?;
        if corruptions > 0 {
            self.end_relations();
        }
        self.mend_container_record()?;
        self.mend_ids()?;
        self.mend_names()?;
        self.mend_heads()?;
        // First: the head of a view whose volume is lost is still one, and nobody else shows what is in it.
        self.adopt_heads()?;
        self.mend_views();
        self.mend_parents()?;
        self.cut_cycles();
        self.mend_copies();
        self.adopt_heads()?;
        if self.links_lost {
            self.adopt_layers()?;
        }
        self.mend_limits_and_owners();
        // What was done to the two heads may have parted them.
        if self.mend_views() {
            self.mend_parents()?;
        }
        // Again: an owner may be lost, and layers may have become heads.
        self.mend_copies();
        Ok(())
    }

    fn mend_own_descriptors(&mut self) -> Result<()> {
        for slab in (0..self.descriptors.len() as u64).map(SlabNo) {
            let must_be = self.must_be_reserved(slab);
            match self.descriptors[slab.0 as usize] {
                Some(Descriptor::Reserved) if !must_be => self.describe(slab, Descriptor::Free),
                Some(Descriptor::Reserved) => {}
                _ if must_be => self.describe(slab, Descriptor::Reserved),
                Some(_) => {}
                None => {
                    let raw = self.raw_descriptor(slab)?;
                    let uuid = self.uuid();
                    if let Some(found) = turn_back(&raw, |raw| Descriptor::decode(raw, uuid, slab).ok()) {
                        self.describe(slab, found);
                    }
                }
            }
        }
        Ok(())
    }

    /// Catalog slabs whose descriptors are damaged tell by their slots that they are.
    fn find_catalog_slabs(&mut self) -> Result<()> {
        let known: BTreeSet<u32> = self
            .descriptors
            .iter()
            .filter_map(|found| match found {
                Some(Descriptor::Catalog { index, .. }) => Some(*index),
                _ => None,
            })
            .collect();
        // A descriptor that became zeros describes a free slab.
        let gap = known.is_empty() || known.last().is_some_and(|last| *last as usize + 1 != known.len());
        for slab in (0..self.descriptors.len() as u64).map(SlabNo) {
            let found = self.descriptors[slab.0 as usize];
            if found.is_some() && !(gap && found == Some(Descriptor::Free)) {
                continue;
            }
            let bytes = read(self.disk, SLAB_LEN as usize, slab.offset())?;
            let decodes = |raw: &[u8], number: u32| Slot::decode(raw, self.uuid(), SlotNo(number)).is_ok();
            let index = bytes.chunks_exact(slot::LEN).zip(0u32..).find_map(|(raw, at)| {
                let number = slot::header::SLOT.get_u32(raw);
                (number % PER_SLAB == at && decodes(raw, number)).then_some(number / PER_SLAB)
            });
            let Some(index) = index.filter(|index| !known.contains(index)) else {
                continue;
            };
            let first = index * PER_SLAB;
            let mut pages = 0u64;
            for (page, number) in bytes.chunks_exact(PAGE_LEN).zip(0u32..64) {
                let slots = page.chunks_exact(slot::LEN).zip(first + number * 8..);
                let any = slots
                    .into_iter()
                    .any(|(raw, slot)| self.journal.slots.contains_key(&SlotNo(slot)) || decodes(raw, slot));
                if !any {
                    break;
                }
                pages |= 1 << number;
            }
            self.describe(slab, Descriptor::Catalog { index, pages });
        }
        Ok(())
    }

    fn mend_slots(&mut self) -> Result<()> {
        let damaged: Vec<SlotNo> =
            self.slots.iter().filter(|(_, found)| found.is_none()).map(|(number, _)| *number).collect();
        for number in damaged {
            let (raw, uuid) = (self.raw_slot(number)?, self.uuid());
            match turn_back(&raw, |raw| Slot::decode(raw, uuid, number).ok()) {
                Some(found) => self.set_slot(number, found),
                None if number.0 == 0 => {}
                None => {
                    self.links_lost = true;
                    self.set_slot(number, Slot::Free);
                }
            }
        }
        let second: Vec<SlotNo> = self
            .slots
            .iter()
            .filter(|(number, found)| number.0 != 0 && matches!(found, Some(Slot::Container(_))))
            .map(|(number, _)| *number)
            .collect();
        for number in second {
            self.set_slot(number, Slot::Free);
        }
        let slots = self.slots.len();
        let journal = &mut self.journal;
        let before = journal.slots.len();
        journal.slots.retain(|number, _| (number.0 as usize) < slots);
        self.journal_pruned |= journal.slots.len() < before;
        Ok(())
    }

    /// What is mended may not be what it was: no relation vouches for it any more (CHK-42).
    fn end_relations(&mut self) {
        let relations = self.slots.iter().filter(|(_, found)| matches!(found, Some(Slot::Relation(_))));
        let relations: Vec<SlotNo> = relations.map(|(number, _)| *number).collect();
        relations.into_iter().for_each(|number| self.set_slot(number, Slot::Free));
    }

    /// Slot 0, and how many of the file's slabs are the container's.
    fn mend_container_record(&mut self) -> Result<()> {
        let present = self.descriptors.len() as u64;
        let described = self.descriptors.iter().rposition(|found| !matches!(found, Some(Descriptor::Free) | None));
        let described = described.map_or(0, |last| last as u64 + 1);
        let mut record = match self.slots.get(&SlotNo(0)) {
            Some(Some(Slot::Container(record))) => *record,
            Some(None) => ContainerRecord { next_id: self.highest_id() + ID_GAP, slab_count: present },
            Some(Some(Slot::Free)) => ContainerRecord { next_id: self.highest_id() + ID_GAP, slab_count: present },
            _ => return Err(impossible("slot 0 holds something else than the container record (CHK-7)")),
        };
        if record.slab_count > present {
            return Err(impossible(format!(
                "the file has {present} slabs and the container {} (CHK-4); bring back the rest of the file from a copy",
                record.slab_count
            )));
        }
        record.slab_count = record.slab_count.max(described);
        if (1..=2).contains(&(record.slab_count % SLABS_PER_GROUP)) {
            record.slab_count -= record.slab_count % SLABS_PER_GROUP;
        }
        if record.slab_count < described {
            return Err(impossible("slabs beyond the container's own are described as in use (CHK-4)"));
        }
        let counted = record.slab_count;
        if self.counters() != Some(record) {
            self.set_slot(SlotNo(0), Slot::Container(record));
        }
        self.descriptors.truncate(counted as usize);
        self.new_descriptors.retain(|slab, _| slab.0 < counted);
        let before = self.journal.descriptors.len();
        self.journal.descriptors.retain(|slab, _| slab.0 < counted);
        self.journal_pruned |= self.journal.descriptors.len() < before;
        Ok(())
    }

    /// The highest id below [`MAX_ID`] that anything names.
    fn highest_id(&self) -> u64 {
        let slots = self.slots.values().flatten().map(|slot| match slot {
            Slot::Volume(record) => record.id.0.max(record.head.0),
            Slot::Layer(record) => record.id.0.max(record.parent.map_or(0, |id| id.0)),
            Slot::Region(record) => record.id.0,
            Slot::Free | Slot::Container(_) | Slot::Relation(_) => 0,
        });
        let slabs = self.descriptors.iter().flatten().map(|found| found.layer().map_or(0, |layer| layer.0));
        slots.chain(slabs).filter(|id| *id < MAX_ID).max().unwrap_or(0) + 1
    }

    fn mend_ids(&mut self) -> Result<()> {
        let mut ids = HashSet::new();
        let mut highest = 0;
        let mut again = Vec::new();
        for (number, found) in &self.slots {
            // Nothing that lasts names a volume or a region by its id.
            let (id, may_change) = match found {
                Some(Slot::Volume(record)) => (record.id.0, true),
                Some(Slot::Region(record)) => (record.id.0, true),
                Some(Slot::Layer(record)) => (record.id.0, false),
                _ => continue,
            };
            let bad = id == 0 || id >= MAX_ID;
            if may_change && (bad || ids.contains(&id)) {
                again.push(*number);
                continue;
            }
            if bad || !ids.insert(id) {
                return Err(impossible(format!("layer id {id} cannot be told from another's (CHK-8)")));
            }
            highest = highest.max(id);
        }
        let mut counters = self.counters().ok_or_else(|| impossible("the container record is lost"))?;
        if counters.next_id <= highest || counters.next_id > MAX_ID {
            counters.next_id = highest + ID_GAP;
            self.set_slot(SlotNo(0), Slot::Container(counters));
        }
        for number in again {
            let id = self.new_id()?;
            let renumbered = match self.slots.get(&number) {
                Some(Some(Slot::Volume(record))) => Slot::Volume(VolumeRecord { id: VolumeId(id), ..record.clone() }),
                Some(Some(Slot::Region(record))) => Slot::Region(RegionRecord { id: RegionId(id), ..record.clone() }),
                _ => continue,
            };
            self.set_slot(number, renumbered);
        }
        Ok(())
    }

    fn mend_names(&mut self) -> Result<()> {
        let mut names = HashSet::new();
        for (number, mut record) in self.volumes() {
            if record.instant.is_some() || names.insert(record.name.clone()) {
                continue;
            }
            let all: HashSet<String> = self.volumes().into_iter().map(|(_, volume)| volume.name).collect();
            record.name = unused_name(&all, &record.name)?;
            names.insert(record.name.clone());
            self.set_slot(number, Slot::Volume(record));
        }
        self.mend_region_names()
    }

    fn mend_region_names(&mut self) -> Result<()> {
        let regions: Vec<(SlotNo, RegionRecord)> = self
            .slots
            .iter()
            .filter_map(|(number, slot)| match slot {
                Some(Slot::Region(record)) => Some((*number, record.clone())),
                _ => None,
            })
            .collect();
        let all: HashSet<String> = regions.iter().map(|(_, region)| region.name.clone()).collect();
        let mut names = HashSet::new();
        for (number, mut record) in regions {
            if names.insert(record.name.clone()) {
                continue;
            }
            record.name = unused_name(&all.union(&names).cloned().collect(), &record.name)?;
            names.insert(record.name.clone());
            self.set_slot(number, Slot::Region(record));
        }
        Ok(())
    }

    /// Bytes that a layer must have for all that is described as its own.
    fn extent(&self, layer: LayerId) -> u64 {
        let end = |found: &Option<Descriptor>| match *found {
            Some(Descriptor::Data { layer: owner, index, .. }) if owner == layer => (u64::from(index) + 1) * SLAB_LEN,
            Some(Descriptor::Table { layer: owner, index, .. }) if owner == layer => {
                u64::from(index) * TABLE_SPAN + SLAB_LEN
            }
            _ => 0,
        };
        self.descriptors.iter().map(end).filter(|end| *end <= MAX_VOLUME_LEN).max().unwrap_or(0).max(SLAB_LEN)
    }

    fn rebuild_layer(&mut self, id: LayerId, kind: LayerKind, size: u64) -> Result<()> {
        let number = self.free_slot()?;
        let record = LayerRecord {
            id,
            uuid: Uuid::new_v4(),
            kind,
            parent: None,
            owner: None,
            size,
            parent_limit: 0,
            birth: id,
            created_ns: 0,
            frozen_ns: 0,
        };
        self.links_lost = true;
        // What lay below it, if anything did, is not known any more.
        self.lose(id, 0, size);
        self.set_slot(number, Slot::Layer(record));
        Ok(())
    }

    fn mend_heads(&mut self) -> Result<()> {
        let mut used: BTreeMap<LayerId, u32> = BTreeMap::new();
        self.volumes().iter().for_each(|(_, volume)| *used.entry(volume.head).or_default() += 1);
        for (number, mut volume) in self.volumes() {
            match self.layers().get(&volume.head).cloned() {
                None => self.rebuild_layer(volume.head, LayerKind::Head, volume.size)?,
                Some((_, layer)) if layer.kind == LayerKind::Doomed => {
                    return Err(impossible(format!("volume '{}' has been deleted in part (CHK-10)", volume.name)));
                }
                Some((at, mut layer)) if layer.kind.may_be_parent() || used[&volume.head] > 1 => {
                    // The volumes go on above it, each with a head of its own.
                    if layer.kind == LayerKind::Head {
                        layer.kind = LayerKind::Frozen;
                        self.set_slot(at, Slot::Layer(layer.clone()));
                    }
                    let id = LayerId(self.new_id()?);
                    let slot = self.free_slot()?;
                    let head = LayerRecord {
                        id,
                        uuid: Uuid::new_v4(),
                        kind: LayerKind::Head,
                        parent: Some(layer.id),
                        owner: None,
                        size: volume.size,
                        parent_limit: volume.size.min(layer.size),
                        birth: id,
                        created_ns: layer.created_ns,
                        frozen_ns: 0,
                    };
                    self.set_slot(slot, Slot::Layer(head));
                    volume.head = id;
                    self.set_slot(number, Slot::Volume(volume));
                }
                Some((at, mut layer)) if layer.size != volume.size => {
                    let size = layer.size.max(volume.size);
                    (layer.size, volume.size) = (size, size);
                    self.set_slot(at, Slot::Layer(layer));
                    self.set_slot(number, Slot::Volume(volume));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn mend_parents(&mut self) -> Result<()> {
        let ids: Vec<LayerId> = self.layers().keys().copied().collect();
        for id in ids {
            let layers = self.layers();
            let Some((number, layer)) = layers.get(&id).filter(|(_, layer)| layer.kind != LayerKind::Doomed) else {
                continue;
            };
            let Some(parent) = layer.parent else {
                continue;
            };
            let is_view = || self.volumes().iter().any(|(_, volume)| volume.is_view && volume.head == parent);
            match layers.get(&parent) {
                Some((_, above)) if above.kind.may_be_parent() => {}
                Some((_, above)) if above.kind == LayerKind::Head && is_view() => {}
                Some((at, above)) if above.kind == LayerKind::Head && parent != id => self.freeze(*at, above)?,
                None if self.descriptors.iter().flatten().any(|found| found.layer() == Some(parent)) => {
                    let size = layer.parent_limit.max(self.extent(parent)).min(MAX_VOLUME_LEN).next_multiple_of(512);
                    self.rebuild_layer(parent, LayerKind::Frozen, size)?;
                }
                _ => self.cut(*number, layer.clone()),
            }
        }
        Ok(())
    }

    /// Makes a head that others stand on a frozen layer, with a new head over it for its volume.
    fn freeze(&mut self, at: SlotNo, layer: &LayerRecord) -> Result<()> {
        self.set_slot(at, Slot::Layer(LayerRecord { kind: LayerKind::Frozen, ..layer.clone() }));
        self.mend_heads()
    }

    /// A layer whose parent is lost shows zeros where it showed that.
    fn cut(&mut self, number: SlotNo, layer: LayerRecord) {
        self.links_lost = true;
        self.lose(layer.id, 0, layer.parent_limit.min(layer.size));
        self.set_slot(number, Slot::Layer(LayerRecord { parent: None, parent_limit: 0, ..layer }));
    }

    fn cut_cycles(&mut self) {
        let ids: Vec<LayerId> = self.layers().keys().copied().collect();
        for id in ids {
            let layers = self.layers();
            let mut seen = HashSet::new();
            let mut next = Some(id);
            while let Some(current) = next {
                let Some((number, layer)) = layers.get(&current).filter(|(_, l)| l.kind != LayerKind::Doomed) else {
                    break;
                };
                if !seen.insert(current) {
                    self.cut(*number, layer.clone());
                    break;
                }
                next = layer.parent;
            }
        }
    }

    /// Views whose two heads do not fit together end: their volumes keep what they show. True if there were any.
    fn mend_views(&mut self) -> bool {
        let (volumes, layers) = (self.volumes(), self.layers());
        let records = volumes.iter().map(|(_, volume)| volume);
        let wrong = wrong_views(records, layers.values().map(|(_, layer)| layer), false);
        for (number, volume) in volumes.iter().filter(|(_, volume)| wrong.contains_key(&volume.id)) {
            self.set_slot(*number, Slot::Volume(VolumeRecord { is_view: false, ..volume.clone() }));
        }
        !wrong.is_empty()
    }

    /// Copy layers that nobody can go on filling become frozen ones: they show the same.
    fn mend_copies(&mut self) {
        let layers = self.layers();
        let heads = self.volumes().into_iter().map(|(_, volume)| (volume.id, volume.head)).collect();
        for id in wrong_copies(layers.values().map(|(_, layer)| layer), &heads, false).into_keys() {
            if let Some((number, mut layer)) = layers.get(&id).cloned() {
                layer.end_copy();
                self.set_slot(number, Slot::Layer(layer));
            }
        }
    }

    /// A volume for a head that has none.
    fn recover_volume(&mut self, head: &LayerRecord) -> Result<()> {
        let names: HashSet<String> = self.volumes().into_iter().map(|(_, volume)| volume.name).collect();
        let name = unused_name(&names, &format!("recovered-{}", head.id))?;
        let id = VolumeId(self.new_id()?);
        let number = self.free_slot()?;
        let record = VolumeRecord {
            id,
            uuid: Uuid::new_v4(),
            name,
            size: head.size,
            head: head.id,
            created_ns: head.created_ns,
            origin: None,
            durability: Durability::Flush,
            undefined: false,
            verify: Verify::Off,
            sealing: None,
            split: false,
            instant: None,
            is_view: false,
        };
        self.set_slot(number, Slot::Volume(record));
        Ok(())
    }

    fn adopt_heads(&mut self) -> Result<()> {
        let used: HashSet<LayerId> = self.volumes().into_iter().map(|(_, volume)| volume.head).collect();
        for (id, (_, layer)) in self.layers() {
            if layer.kind == LayerKind::Head && !used.contains(&id) {
                self.recover_volume(&layer)?;
            }
        }
        Ok(())
    }

    /// Layers that no volume leads to any more become volumes, because what led to them may be what was lost.
    fn adopt_layers(&mut self) -> Result<()> {
        let known = self.layers();
        let orphans: BTreeSet<LayerId> = self
            .descriptors
            .iter()
            .flatten()
            .filter_map(|found| found.layer())
            .filter(|id| id.0 != 0 && id.0 < MAX_ID && !known.contains_key(id))
            .collect();
        let ids: HashSet<u64> = self.volumes().iter().map(|(_, volume)| volume.id.0).collect();
        for id in orphans.into_iter().filter(|id| !ids.contains(&id.0)) {
            let size = self.extent(id);
            self.rebuild_layer(id, LayerKind::Head, size)?;
            self.thawed.insert(id);
            if let Some((_, layer)) = self.layers().get(&id) {
                self.recover_volume(layer)?;
            }
        }
        let mut counters = self.counters().ok_or_else(|| impossible("the container record is lost"))?;
        let highest = self.highest_id();
        if counters.next_id < highest {
            counters.next_id = highest + ID_GAP;
            self.set_slot(SlotNo(0), Slot::Container(counters));
        }
        let layers = self.layers();
        let parents: HashSet<LayerId> = layers.values().filter_map(|(_, layer)| layer.parent).collect();
        for (id, (number, layer)) in layers {
            if layer.kind == LayerKind::Frozen && !parents.contains(&id) {
                let head = LayerRecord { kind: LayerKind::Head, owner: None, frozen_ns: 0, ..layer };
                self.thawed.insert(id);
                self.set_slot(number, Slot::Layer(head.clone()));
                self.recover_volume(&head)?;
            }
        }
        Ok(())
    }

    fn mend_limits_and_owners(&mut self) {
        let volumes: HashSet<VolumeId> = self.volumes().into_iter().map(|(_, volume)| volume.id).collect();
        let layers = self.layers();
        for (number, layer) in layers.values() {
            let above = layer.parent.and_then(|parent| layers.get(&parent));
            let most = above.map_or(u64::MAX, |(_, above)| above.size.min(layer.size));
            let limit = layer.parent_limit.min(most);
            let owner = layer.owner.filter(|owner| volumes.contains(owner));
            if layer.kind != LayerKind::Doomed && (limit != layer.parent_limit || owner != layer.owner) {
                let mended = LayerRecord { parent_limit: limit, owner, ..layer.clone() };
                self.set_slot(*number, Slot::Layer(mended));
            }
        }
    }
}

fn unused_name(names: &HashSet<String>, wanted: &str) -> Result<String> {
    let short = &wanted[..wanted.len().min(110)];
    let candidates = std::iter::once(wanted.to_owned()).chain((2..10_000).map(|n| format!("{short}-{n}")));
    candidates
        .into_iter()
        .find(|name| check_name(name).is_ok() && !names.contains(name))
        .ok_or_else(|| impossible(format!("there is no free name like '{wanted}'")))
}
