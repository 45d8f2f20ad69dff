//! What the engine lock guards: catalog, allocator, lists of changes, journal position.
//!
//! Invariant: every change of metadata goes through a method here that also lists it for the journal (JNL-2) and for its
//! home (JNL-9). A slab's descriptor says "data of this chunk" exactly while the chunk's entry has a D bit (MAP-9).
//! Does not: perform I/O; callers hold the lock for microseconds.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;

use uuid::Uuid;

use crate::alloc::{Allocator, Held};
use crate::container::fill::Fill;
use crate::container::hidden::Hidden;
use crate::container::hold::Hold;
use crate::container::holdings::Holdings;
use crate::container::relations::Relations;
use crate::container::ring::Ring;
use crate::container::seal::{Seal, Tagging};
use crate::error::{Error, Result};
use crate::layer::{Entry, EntryRef, Evicted, InLayer, Layer, Page, PageLoad, Table};
use crate::layout::descriptor::Descriptor;
use crate::layout::record::Item;
use crate::layout::slot::{
    ContainerRecord, LayerKind, LayerRecord, PER_PAGE, PER_SLAB, RegionRecord, Slot, VolumeRecord,
};
use crate::layout::superblock::Superblock;
use crate::units::{BlockMask, ChunkNo, ENTRIES_PER_TABLE, LayerId, SLABS_PER_GROUP, SlabNo, SlotNo, VolumeId};
use crate::volume::VolumeCore;

/// Table pages kept in memory unless told otherwise: 256 MiB, which describe 2 TiB.
const RESIDENT_PAGES: usize = 64 << 10;
/// Changed pages that bring about a checkpoint; bounds what the next open must read.
pub(crate) const HOME_PAGES_MAX: usize = 4096;
/// Pages looked at, to evict some, for each that a plan makes resident: it may load 64 more of the same chain.
const LOOKS_PER_PAGE: usize = 160;

/// Progress of the journal in batches: every change belongs to the batch that is open when it is made.
#[derive(Debug)]
pub(crate) struct Batches {
    /// The batch that changes made now will be in.
    pub(crate) open: u64,
    /// The newest batch whose record is durable.
    pub(crate) durable: u64,
    /// The newest batch that holds a change made by a write that was planned before its volume got another head: other
    /// volumes may show it.
    pub(crate) late: u64,
    /// A leader is syncing or appending the batch before `open`.
    pub(crate) in_progress: bool,
    /// Bytes of the ring that this batch may still take.
    pub(crate) on_way: u64,
}

/// Changes made since the last batch was imaged.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    entries: Vec<(LayerId, ChunkNo)>,
    /// New pages, and whether their entries began as zero entries.
    fresh: Vec<(LayerId, u32, u8, bool)>,
    descriptors: HashSet<SlabNo>,
    slots: BTreeSet<SlotNo>,
}

impl Dirty {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.fresh.is_empty() && self.descriptors.is_empty() && self.slots.is_empty()
    }

    /// Bytes that the changes take in the journal, roughly and never less.
    pub(crate) fn journal_bytes(&self) -> u64 {
        (self.entries.len() * 40 + self.fresh.len() * 16 + self.descriptors.len() * 48 + self.slots.len() * 520) as u64
    }
}

/// Pages that differ from their homes.
#[derive(Debug, Default)]
pub(crate) struct Homes {
    pub(crate) pages: Vec<(LayerId, u32, u8)>,
    /// Pages of descriptors: slab number / 128.
    pub(crate) descriptors: BTreeSet<u64>,
    /// Pages of slots: slot number / 8.
    pub(crate) slots: BTreeSet<u32>,
}

impl Homes {
    pub(crate) fn len(&self) -> usize {
        self.pages.len() + self.descriptors.len() + self.slots.len()
    }
}

/// Room in the file.
#[derive(Debug, Default)]
pub(crate) struct Space {
    /// Somebody needs more free slabs.
    pub(crate) wanted: bool,
    /// Why the last attempt to grow failed.
    pub(crate) failure: Option<String>,
    /// What a relation kept was given up, and its slabs are not all in limbo yet (REL-11).
    pub(crate) giving_up: bool,
    /// Counts what may have left something for background work to free.
    pub(crate) chances: u64,
    /// What `chances` was when background work found nothing to free, and the file could not grow.
    pub(crate) exhausted_at: Option<u64>,
}

impl Space {
    /// Whether background work has looked for something to free in vain, and there has been no chance since.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.exhausted_at == Some(self.chances)
    }
}

/// The engine's locked state.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) uuid: Uuid,
    pub(crate) superblock: Superblock,
    slots: Vec<Slot>,
    free_slots: BTreeSet<SlotNo>,
    catalog_slabs: Vec<SlabNo>,
    pub(crate) volume_slots: HashMap<VolumeId, SlotNo>,
    pub(crate) layer_slots: HashMap<LayerId, SlotNo>,
    /// Volumes by name; backups' instants have none, so that no command reaches them (BAK-2).
    pub(crate) names: BTreeMap<String, VolumeId>,
    /// Backups' instants.
    pub(crate) instants: BTreeSet<VolumeId>,
    /// Those of backups under way, and why they had to end.
    pub(crate) holdings: Holdings,
    /// Cache regions by name.
    pub(crate) regions: BTreeMap<String, SlotNo>,
    /// The volume of each head.
    pub(crate) heads: HashMap<LayerId, VolumeId>,
    pub(crate) volumes: HashMap<VolumeId, Arc<VolumeCore>>,
    pub(crate) layers: HashMap<LayerId, Arc<Layer>>,
    /// Layers whose parent is the key.
    pub(crate) children: HashMap<LayerId, BTreeSet<LayerId>>,
    pub(crate) alloc: Allocator,
    /// Slabs that each layer owns, tables included.
    pub(super) layer_slabs: HashMap<LayerId, u64>,
    /// Chunks that were made zeros in each layer made since the container was opened, at most.
    zeroed: HashMap<LayerId, u64>,
    pub(crate) dirty: Dirty,
    /// Slabs that show nothing any more but are kept for first writes under way: readers of before may know them.
    was_shown: HashSet<SlabNo>,
    /// First writes under way, in chunks: each becomes a change.
    claimed: u64,
    /// Layers whose slabs are to be freed.
    pub(crate) doomed: BTreeSet<LayerId>,
    /// The copy layer that is filled for each volume that is being hydrated.
    pub(crate) copies: HashMap<VolumeId, LayerId>,
    /// How far copy layers have been filled, as far as that has begun since the container was opened.
    pub(crate) fills: HashMap<LayerId, Fill>,
    pub(crate) relations: Relations,
    /// Slabs with tags, by their number.
    pub(crate) tag_slabs: BTreeMap<u32, SlabNo>,
    /// Volumes that are being sealed, and how far that is.
    pub(crate) seals: BTreeMap<VolumeId, Seal>,
    /// What is known of layers that may have tags.
    pub(crate) tagged: HashMap<LayerId, Tagging>,
    /// Counts what may have brought data without tags into some chain, a freeze, another head, a merge, and sealings begun.
    pub(crate) to_seal: u64,
    /// The tree of layers has changed since a merge was looked for in vain.
    pub(crate) merge_possible: bool,
    pub(crate) hidden: Hidden,
    pub(crate) homes: Homes,
    /// Pages in memory, the longest resident first; some of them of layers that are gone.
    resident: VecDeque<(LayerId, u32, u8)>,
    pub(crate) resident_limit: usize,
    pub(crate) batches: Batches,
    pub(crate) ring: Ring,
    pub(crate) space: Space,
    /// A flush waits for room in the journal.
    pub(crate) checkpoint_wanted: bool,
    /// Bytes of the ring that ordinary commits leave for a command which waits for them (JNL-31).
    pub(crate) set_aside: u64,
    wakers: Vec<Waker>,
    /// A check reads homes.
    pub(crate) hold: Option<Hold>,
}

/// The parts that opening a container has put together.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) superblock: Superblock,
    pub(crate) slots: Vec<Slot>,
    pub(crate) catalog_slabs: Vec<SlabNo>,
    pub(crate) alloc: Allocator,
    pub(crate) layers: HashMap<LayerId, Arc<Layer>>,
    pub(crate) volumes: HashMap<VolumeId, Arc<VolumeCore>>,
    pub(crate) ring: Ring,
}

impl State {
    pub(crate) fn new(opened: Opened) -> Self {
        let mut state = Self {
            uuid: opened.superblock.uuid,
            superblock: opened.superblock,
            slots: opened.slots,
            free_slots: BTreeSet::new(),
            catalog_slabs: opened.catalog_slabs,
            volume_slots: HashMap::new(),
            layer_slots: HashMap::new(),
            names: BTreeMap::new(),
            instants: BTreeSet::new(),
            holdings: Holdings::default(),
            regions: BTreeMap::new(),
            heads: HashMap::new(),
            volumes: opened.volumes,
            layers: opened.layers,
            children: HashMap::new(),
            alloc: opened.alloc,
            layer_slabs: HashMap::new(),
            zeroed: HashMap::new(),
            dirty: Dirty::default(),
            was_shown: HashSet::new(),
            claimed: 0,
            doomed: BTreeSet::new(),
            copies: HashMap::new(),
            fills: HashMap::new(),
            relations: Relations::default(),
            tag_slabs: BTreeMap::new(),
            seals: BTreeMap::new(),
            tagged: HashMap::new(),
            to_seal: 0,
            merge_possible: true,
            hidden: Hidden::new(),
            homes: Homes::default(),
            resident: VecDeque::new(),
            resident_limit: RESIDENT_PAGES,
            batches: Batches { open: 1, durable: 0, late: 0, in_progress: false, on_way: 0 },
            ring: opened.ring,
            space: Space::default(),
            checkpoint_wanted: false,
            set_aside: 0,
            wakers: Vec::new(),
            hold: None,
        };
        for (descriptor, slab) in state.alloc.descriptors().iter().zip(0..) {
            if let Some(layer) = descriptor.layer() {
                *state.layer_slabs.entry(layer).or_default() += 1;
            }
            if let Descriptor::Tags { index } = *descriptor {
                state.tag_slabs.insert(index, SlabNo(slab));
            }
        }
        for (slot, index) in state.slots.iter().zip(0u32..) {
            match slot {
                Slot::Volume(record) => {
                    state.volume_slots.insert(record.id, SlotNo(index));
                    match record.instant {
                        None => drop(state.names.insert(record.name.clone(), record.id)),
                        Some(_) => drop(state.instants.insert(record.id)),
                    }
                    state.heads.insert(record.head, record.id);
                    if record.sealing.is_some() {
                        state.seals.insert(record.id, Seal::default());
                    }
                }
                Slot::Layer(record) => {
                    state.layer_slots.insert(record.id, SlotNo(index));
                    state.copies.extend(record.filled_for().map(|volume| (volume, record.id)));
                    if record.kind.may_be_parent() {
                        state.tagged.insert(record.id, Tagging { lasts: true, ..Tagging::default() });
                    }
                    if record.kind == LayerKind::Doomed {
                        state.doomed.insert(record.id);
                    } else if let Some(parent) = record.parent {
                        // A doomed layer's parent does not count (LAY-10).
                        state.children.entry(parent).or_default().insert(record.id);
                    }
                }
                Slot::Free => {
                    state.free_slots.insert(SlotNo(index));
                }
                Slot::Relation(record) => state.relations.add(SlotNo(index), record),
                Slot::Region(record) => {
                    state.regions.insert(record.name.clone(), SlotNo(index));
                }
                Slot::Container(_) => {}
            }
        }
        state
    }

    // --- waiting ---

    /// Registers a waker for the next change that may let a waiting request go on.
    pub(crate) fn register(&mut self, waker: &Waker) {
        if !self.wakers.iter().any(|known| known.will_wake(waker)) {
            self.wakers.push(waker.clone());
        }
    }

    /// Wakes all that wait. Wakers must not call into the container.
    pub(crate) fn wake_all(&mut self) {
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
    }

    // --- catalog ---

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(crate) fn catalog_slab(&self, index: u32) -> SlabNo {
        self.catalog_slabs[index as usize]
    }

    pub(crate) fn set_slot(&mut self, slot: SlotNo, content: Slot) {
        if content == Slot::Free {
            self.free_slots.insert(slot);
        } else {
            self.free_slots.remove(&slot);
        }
        self.slots[slot.0 as usize] = content;
        self.dirty.slots.insert(slot);
        self.homes.slots.insert(slot.0 / PER_PAGE);
    }

    pub(crate) fn counters(&self) -> ContainerRecord {
        match self.slots.first() {
            Some(Slot::Container(record)) => *record,
            _ => unreachable!("opening has checked that slot 0 holds the container record"),
        }
    }

    pub(crate) fn set_counters(&mut self, record: ContainerRecord) {
        self.set_slot(SlotNo(0), Slot::Container(record));
    }

    /// A fresh id for a volume or a layer (LAY-1).
    pub(crate) fn next_id(&mut self) -> u64 {
        let mut counters = self.counters();
        let id = counters.next_id;
        counters.next_id += 1;
        self.set_counters(counters);
        id
    }

    /// Makes sure that `count` slots are free, so that what follows cannot fail half-way.
    pub(crate) fn reserve_slots(&mut self, count: usize) -> Result<()> {
        while self.free_slots.len() < count {
            self.add_catalog_page()?;
        }
        Ok(())
    }

    /// Adds eight free slots; all eight are journalled, so that what the page's home held before counts for nothing.
    fn add_catalog_page(&mut self) -> Result<()> {
        let first = self.slots.len() as u32;
        let index = first / PER_SLAB;
        if first.is_multiple_of(PER_SLAB) {
            let slab = self.take_slab().ok_or_else(|| self.no_space())?;
            self.catalog_slabs.push(slab);
        }
        let slab = self.catalog_slabs[index as usize];
        let page = first % PER_SLAB / PER_PAGE;
        let pages = if page == 63 { !0 } else { (1u64 << (page + 1)) - 1 };
        self.describe(slab, Descriptor::Catalog { index, pages });
        for slot in first..first + PER_PAGE {
            self.slots.push(Slot::Free);
            self.set_slot(SlotNo(slot), Slot::Free);
        }
        Ok(())
    }

    pub(super) fn any_free_slot(&self) -> Option<SlotNo> {
        self.free_slots.first().copied()
    }

    fn free_slot(&self) -> SlotNo {
        *self.free_slots.first().expect("the caller has reserved the slots it needs")
    }

    pub(crate) fn add_volume(&mut self, record: VolumeRecord, core: Arc<VolumeCore>) {
        let slot = self.free_slot();
        self.volume_slots.insert(record.id, slot);
        match record.instant {
            None => drop(self.names.insert(record.name.clone(), record.id)),
            Some(_) => drop(self.instants.insert(record.id)),
        }
        self.heads.insert(record.head, record.id);
        self.volumes.insert(record.id, core);
        self.set_slot(slot, Slot::Volume(record));
    }

    pub(crate) fn remove_volume(&mut self, id: VolumeId) {
        self.relations.may_have_ended = true;
        let (name, head) = (self.volume_record(id).name.clone(), self.volume_record(id).head);
        if !self.instants.remove(&id) {
            self.names.remove(&name);
        }
        self.heads.remove(&head);
        self.volumes.remove(&id);
        self.seals.remove(&id);
        if let Some(slot) = self.volume_slots.remove(&id) {
            self.set_slot(slot, Slot::Free);
        }
    }

    pub(crate) fn volume_record(&self, id: VolumeId) -> &VolumeRecord {
        match &self.slots[self.volume_slots[&id].0 as usize] {
            Slot::Volume(record) => record,
            other => unreachable!("slot of volume {id} holds {other:?}"),
        }
    }

    /// Adds a cache region, or changes the one of its name.
    pub(crate) fn set_region(&mut self, record: RegionRecord) {
        let slot = self.regions.get(&record.name).copied().unwrap_or_else(|| self.free_slot());
        self.regions.insert(record.name.clone(), slot);
        self.set_slot(slot, Slot::Region(record));
    }

    pub(crate) fn remove_region(&mut self, name: &str) {
        if let Some(slot) = self.regions.remove(name) {
            self.set_slot(slot, Slot::Free);
        }
    }

    pub(crate) fn region_record(&self, name: &str) -> Option<&RegionRecord> {
        match &self.slots[self.regions.get(name)?.0 as usize] {
            Slot::Region(record) => Some(record),
            other => unreachable!("slot of region '{name}' holds {other:?}"),
        }
    }

    pub(crate) fn update_volume(&mut self, id: VolumeId, change: impl FnOnce(&mut VolumeRecord)) {
        let mut record = self.volume_record(id).clone();
        let (old_name, old_head) = (record.name.clone(), record.head);
        change(&mut record);
        if record.head != old_head {
            self.to_seal += 1;
            self.heads.remove(&old_head);
            self.heads.insert(record.head, id);
        }
        if record.name != old_name {
            self.names.remove(&old_name);
            self.names.insert(record.name.clone(), id);
        }
        if record.sealing.is_none() {
            self.seals.remove(&id);
        } else {
            self.to_seal += u64::from(!self.seals.contains_key(&id));
            self.seals.entry(id).or_default();
        }
        self.set_slot(self.volume_slots[&id], Slot::Volume(record));
    }

    /// Notes that the tree of layers, or who needs them, has changed: there may be something to merge or to free.
    pub(crate) fn tree_has_changed(&mut self) {
        self.merge_possible = true;
        self.hidden.tree_has_changed();
        self.space.chances += 1;
        self.holdings.changed();
    }

    pub(crate) fn add_layer(&mut self, record: LayerRecord, layer: Arc<Layer>) {
        self.tree_has_changed();
        let slot = self.free_slot();
        self.layer_slots.insert(record.id, slot);
        self.zeroed.insert(record.id, 0);
        self.layers.insert(record.id, layer);
        if let Some(parent) = record.parent {
            self.children.entry(parent).or_default().insert(record.id);
        }
        self.copies.extend(record.filled_for().map(|volume| (volume, record.id)));
        self.set_slot(slot, Slot::Layer(record));
    }

    pub(crate) fn remove_layer(&mut self, id: LayerId) {
        self.layers.remove(&id);
        self.layer_slabs.remove(&id);
        self.zeroed.remove(&id);
        self.children.remove(&id);
        self.doomed.remove(&id);
        if self.fills.remove(&id).is_some() {
            // What it was filled from is needed no more.
            self.tree_has_changed();
        }
        self.tagged.remove(&id);
        if let Some(slot) = self.layer_slots.remove(&id) {
            self.set_slot(slot, Slot::Free);
        }
    }

    pub(crate) fn layer_record(&self, id: LayerId) -> &LayerRecord {
        match &self.slots[self.layer_slots[&id].0 as usize] {
            Slot::Layer(record) => record,
            other => unreachable!("slot of layer {id} holds {other:?}"),
        }
    }

    /// Changes a layer's record and keeps the lists of children and of copy layers true.
    pub(crate) fn update_layer(&mut self, id: LayerId, change: impl FnOnce(&mut LayerRecord)) {
        let mut record = self.layer_record(id).clone();
        let (old_parent, old_copy, old_kind) = (record.parent, record.filled_for(), record.kind);
        change(&mut record);
        self.tree_has_changed();
        if record.kind == LayerKind::Frozen && old_kind != LayerKind::Frozen {
            self.to_seal += 1;
        }
        if record.kind != LayerKind::Head || record.parent != old_parent {
            self.hidden.forget(id);
        }
        if record.filled_for() != old_copy {
            old_copy.and_then(|volume| self.copies.remove(&volume));
            self.copies.extend(record.filled_for().map(|volume| (volume, id)));
        }
        self.relations.may_have_changed();
        if record.kind == LayerKind::Doomed {
            self.doomed.insert(id);
        }
        if record.parent != old_parent {
            if let Some(children) = old_parent.and_then(|parent| self.children.get_mut(&parent)) {
                children.remove(&id);
            }
            if let Some(parent) = record.parent {
                self.children.entry(parent).or_default().insert(id);
            }
        }
        self.set_slot(self.layer_slots[&id], Slot::Layer(record));
    }

    pub(crate) fn child_count(&self, id: LayerId) -> usize {
        self.children.get(&id).map_or(0, BTreeSet::len)
    }

    /// The layer's only child, if it has just one.
    pub(crate) fn only_child(&self, id: LayerId) -> Option<LayerId> {
        let children = self.children.get(&id).filter(|children| children.len() == 1)?;
        children.first().copied()
    }

    /// Whether somebody writes blocks into the layer from below (LAY-31).
    pub(crate) fn is_being_filled(&self, id: LayerId) -> bool {
        self.fills.get(&id).is_some_and(|fill| fill.is_under_way)
    }

    // --- slabs ---

    /// Takes a free slab, or notes that the file must grow.
    pub(crate) fn take_slab(&mut self) -> Option<SlabNo> {
        let slab = self.alloc.take();
        if slab.is_none() {
            self.space.wanted = true;
        }
        slab
    }

    /// Whether no slab will come to be free by itself: the file cannot grow, and there is nothing left to free (VOL-8).
    pub(crate) fn is_full(&self) -> bool {
        self.space.failure.is_some() && !self.may_yet_free()
    }

    /// Whether slabs are on their way, something is kept that could be given up, or background work has not yet looked for
    /// something to free in vain.
    fn may_yet_free(&self) -> bool {
        self.alloc.limbo_count() > 0
            || self.space.giving_up
            || self.relations.may_have_donor
            || self.relations.may_have_ended
            // One that is being filled waits for who fills it, who may be the one to ask.
            || self.doomed.iter().any(|layer| !self.is_being_filled(*layer))
            || !self.space.is_exhausted()
    }

    pub(crate) fn no_space(&self) -> Error {
        Error::NoSpace { detail: self.space.failure.clone().unwrap_or_else(|| "no free slab".to_owned()) }
    }

    /// Slabs that `layer` owns, tables included.
    pub(crate) fn slabs_of(&self, layer: LayerId) -> u64 {
        self.layer_slabs.get(&layer).copied().unwrap_or(0)
    }

    /// Chunks of `layer` that were made zeros, at most; not known of layers of before the container was opened.
    pub(crate) fn zeroed_in(&self, layer: LayerId) -> u64 {
        self.zeroed.get(&layer).copied().unwrap_or(u64::MAX)
    }

    /// Some chunks of `layer` become zeros.
    pub(crate) fn note_zeroed(&mut self, layer: LayerId, chunks: u64) {
        if let Some(count) = self.zeroed.get_mut(&layer) {
            *count = count.saturating_add(chunks);
        }
        self.holdings.changed();
    }

    pub(crate) fn describe(&mut self, slab: SlabNo, descriptor: Descriptor) {
        let before = self.alloc.descriptor(slab).and_then(Descriptor::layer);
        if let Some(count) = before.and_then(|layer| self.layer_slabs.get_mut(&layer)) {
            *count -= 1;
        }
        if let Some(layer) = descriptor.layer() {
            *self.layer_slabs.entry(layer).or_default() += 1;
            self.holdings.changed();
        }
        self.alloc.describe(slab, descriptor);
        self.dirty.descriptors.insert(slab);
        self.homes.descriptors.insert(slab.0 / 128);
    }

    /// Frees a slab that nothing on disk will point to once the open batch is durable.
    pub(crate) fn free_slab(&mut self, slab: SlabNo) {
        let was_table = matches!(self.alloc.descriptor(slab), Some(Descriptor::Table { .. }));
        if self.alloc.descriptor(slab) != Some(Descriptor::Free) {
            self.describe(slab, Descriptor::Free);
        }
        // With nothing listed, no later batch may come: what is durable already is enough.
        let batch = if self.dirty.is_empty() { self.batches.open - 1 } else { self.batches.open };
        self.alloc.release(slab, batch, if was_table { Held::Table } else { Held::Data });
    }

    // --- entries ---

    /// The slab of an entry, which gets a free one if it has none; `None` if there is none.
    pub(crate) fn slab_for(&mut self, entry: &EntryRef) -> Option<SlabNo> {
        let slab = entry.slab();
        if slab.0 != 0 {
            return Some(slab);
        }
        let slab = self.take_slab()?;
        entry.set_slab(slab);
        Some(slab)
    }

    /// The chunk's entry in `layer` for changing it: makes the table and page if there are none.
    ///
    /// `Ok(None)`: no slab is free for the table. `Err`: the page must be loaded first.
    pub(crate) fn entry_for_change(
        &mut self,
        layer: &Layer,
        chunk: ChunkNo,
    ) -> std::result::Result<Option<EntryRef>, PageLoad> {
        match layer.lookup(chunk) {
            InLayer::Entry(entry) => return Ok(Some(entry)),
            InLayer::NeedPage(load) => return Err(load),
            InLayer::Absent | InLayer::AllZero => {}
        }
        let Some(table) = self.table_for_change(layer, chunk.table(), false) else {
            return Ok(None);
        };
        let page = chunk.page();
        let zero = table.zero.load(Ordering::Acquire);
        table.install(page, Page::fresh(zero));
        let initialised = table.initialised.fetch_or(1 << page, Ordering::AcqRel) | 1 << page;
        self.dirty.fresh.push((layer.id, chunk.table(), page as u8, zero));
        self.homes.pages.push((layer.id, chunk.table(), page as u8));
        self.describe(
            table.slab,
            Descriptor::Table { layer: layer.id, index: chunk.table(), pages: initialised, zero },
        );
        self.evict(LOOKS_PER_PAGE);
        self.note_resident(layer.id, chunk.table(), page as u8);
        match layer.lookup(chunk) {
            InLayer::Entry(entry) => Ok(Some(entry)),
            _ => unreachable!("a fresh page is resident until it has gone home"),
        }
    }

    // --- resident pages ---

    /// Counts a page that has been made resident.
    pub(crate) fn note_resident(&mut self, layer: LayerId, table: u32, page: u8) {
        self.resident.push_back((layer, table, page));
    }

    /// Counts a page that has been loaded, and evicts others if there are too many: at the first page that a plan asks
    /// for, when the request has just used all the others that it needs.
    pub(crate) fn note_loaded(&mut self, load: PageLoad) {
        if load.is_first() {
            self.evict(LOOKS_PER_PAGE);
        }
        self.note_resident(load.layer, load.table, load.page);
    }

    /// Pages in memory: those of layers that are still there.
    pub(crate) fn resident_pages(&self) -> usize {
        self.resident.iter().filter(|(layer, ..)| self.layers.contains_key(layer)).count()
    }

    /// Looks at up to `looks` of the pages longest resident and evicts those that were not used since the last look,
    /// until no more are resident than allowed (MAP-16).
    pub(crate) fn evict(&mut self, looks: usize) {
        let mut dirty = 0;
        // No page twice: a request that needs it must have the time to use it.
        let looks = looks.min(self.resident.len());
        for _ in 0..looks {
            if self.resident.len() <= self.resident_limit {
                return;
            }
            let Some((layer, table, page)) = self.resident.pop_front() else {
                return;
            };
            // Pages of a layer that is gone went with it.
            let Some(found) = self.layers.get(&layer).and_then(|layer| layer.table(table)) else {
                continue;
            };
            let outcome = found.evict(usize::from(page));
            if outcome != Evicted::Gone {
                self.resident.push_back((layer, table, page));
                // The pages of a doomed layer never go home.
                dirty += usize::from(outcome == Evicted::Dirty && !self.doomed.contains(&layer));
            }
        }
        self.checkpoint_wanted |= looks > 0 && dirty == looks;
    }

    /// The table, made if there is none; with `zero`, its pages not yet initialised read as zeros from now on.
    pub(crate) fn table_for_change<'a>(&mut self, layer: &'a Layer, index: u32, zero: bool) -> Option<&'a Table> {
        if layer.table(index).is_none() {
            let slab = self.take_slab()?;
            let added = layer.add_table(index, Table::new(slab, 0, false));
            assert!(added, "table {index} of layer {} is beyond its size", layer.id);
            self.describe(slab, Descriptor::Table { layer: layer.id, index, pages: 0, zero: false });
        }
        let table = layer.table(index)?;
        if zero && !table.zero.swap(true, Ordering::AcqRel) {
            let pages = table.initialised.load(Ordering::Acquire);
            self.describe(table.slab, Descriptor::Table { layer: layer.id, index, pages, zero: true });
            self.note_gain_of_table(layer, index);
            self.note_zeroed(layer.id, ENTRIES_PER_TABLE);
        }
        Some(table)
    }

    /// Lists a changed entry for the journal and its page for going home.
    pub(crate) fn note_entry(&mut self, layer: &Layer, chunk: ChunkNo, entry: &Entry) {
        if entry.mark_dirty() {
            self.dirty.entries.push((layer.id, chunk));
        }
        let page = layer.table(chunk.table()).map(|table| table.page(chunk.page()));
        if page.is_some_and(|page| page.as_ref().is_some_and(|page| page.mark_dirty())) {
            self.homes.pages.push((layer.id, chunk.table(), chunk.page() as u8));
        }
    }

    /// Brings the descriptor in line with the entry's D mask, and lets go of a slab that shows nothing (MAP-9).
    fn settle(&mut self, layer: &Layer, chunk: ChunkNo, entry: &Entry) {
        let view = entry.view();
        if view.slab.0 == 0 {
            return;
        }
        let described = matches!(self.alloc.descriptor(view.slab), Some(Descriptor::Data { .. }));
        if view.d != 0 {
            if !described {
                self.was_shown.remove(&view.slab);
                self.describe(view.slab, Descriptor::Data { layer: layer.id, index: chunk.0, birth: layer.id });
            }
        } else {
            if described {
                self.describe(view.slab, Descriptor::Free);
                self.was_shown.insert(view.slab);
            }
            if entry.pending() == 0 {
                entry.set_slab(SlabNo(0));
                if self.was_shown.remove(&view.slab) {
                    self.free_slab(view.slab);
                } else {
                    // At once, so that a request that finds too few slabs leaves none in limbo and can fail.
                    self.alloc.untake(view.slab);
                }
            }
        }
    }

    /// Bytes that the changes listed, and those on their way, take in the journal; never less than they do.
    pub(crate) fn gathered(&self) -> u64 {
        // A first write changes an entry and a descriptor.
        self.dirty.journal_bytes() + self.claimed * 88
    }

    /// Whether so many changes are listed or on their way that first writes must wait for a commit or a checkpoint (JNL-8).
    pub(crate) fn is_throttled(&self) -> bool {
        self.gathered() > 2 * self.ring.batch_limit() || self.homes.len() > 4 * HOME_PAGES_MAX
    }

    /// Claims absent blocks for a first write.
    pub(crate) fn claim(&mut self, entry: &Entry, mask: BlockMask) {
        debug_assert_eq!(entry.pending() & mask, 0);
        entry.set_pending(entry.pending() | mask);
        self.claimed += 1;
    }

    /// Makes the pending blocks `mask` visible: their data has been written. Whether that changes the entry.
    pub(crate) fn publish(&mut self, layer: &Layer, chunk: ChunkNo, entry: &Entry, mask: BlockMask) -> bool {
        debug_assert_eq!(entry.pending() & mask, mask);
        entry.set_pending(entry.pending() & !mask);
        self.claimed -= 1;
        // A write through a view claims what its head has, too: that is no change.
        let is_change = entry.view().d & mask != mask;
        if is_change {
            entry.set_data(mask);
            self.settle(layer, chunk, entry);
            self.note_entry(layer, chunk, entry);
            self.note_gain(layer, chunk);
        }
        is_change
    }

    /// Moves a chunk's slab from one layer, through which nobody reads, to another that has none there and then has the
    /// blocks `mask`.
    pub(crate) fn hand_over(
        &mut self,
        (from, old): (&Layer, &Entry),
        (to, new): (&Layer, &Entry),
        chunk: ChunkNo,
        mask: BlockMask,
    ) {
        let slab = old.slab();
        old.clear();
        self.note_entry(from, chunk, old);
        new.set_slab(slab);
        new.set_data(mask);
        // Born anew: other bytes may come into it, for which tags of before must not count (TAG-3).
        self.describe(slab, Descriptor::Data { layer: to.id, index: chunk.0, birth: to.id });
        self.note_entry(to, chunk, new);
    }

    /// Gives up the pending blocks `mask`: their data was not written.
    pub(crate) fn abandon(&mut self, layer: &Layer, chunk: ChunkNo, entry: &Entry, mask: BlockMask) {
        debug_assert_eq!(entry.pending() & mask, mask);
        entry.set_pending(entry.pending() & !mask);
        self.claimed -= 1;
        self.settle(layer, chunk, entry);
    }

    /// Makes the blocks `mask`, which a write through a view has claimed here, absent again (VIEW-3).
    pub(crate) fn give_way_claimed(&mut self, layer: &Layer, chunk: ChunkNo, entry: &Entry, mask: BlockMask) {
        debug_assert_eq!(entry.pending() & mask, mask);
        entry.set_pending(entry.pending() & !mask);
        self.claimed -= 1;
        self.give_way(layer, chunk, entry, mask);
    }

    /// Makes the blocks `mask` absent again, so that the head below shows (VIEW-3), or because the head above hides them
    /// (LAY-72); none of them may be pending.
    pub(crate) fn give_way(&mut self, layer: &Layer, chunk: ChunkNo, entry: &Entry, mask: BlockMask) {
        debug_assert_eq!(entry.pending() & mask, 0);
        entry.set_absent(mask);
        self.settle(layer, chunk, entry);
        self.note_entry(layer, chunk, entry);
    }

    /// Makes the blocks `mask` read as zeros; none of them may be pending.
    pub(crate) fn zero(&mut self, layer: &Layer, chunk: ChunkNo, entry: &Entry, mask: BlockMask) {
        debug_assert_eq!(entry.pending() & mask, 0);
        if entry.view().z == 0 {
            self.note_zeroed(layer.id, 1);
        }
        entry.set_zero(mask);
        self.settle(layer, chunk, entry);
        self.note_entry(layer, chunk, entry);
        self.note_gain(layer, chunk);
    }

    // --- batches ---

    /// Bytes in the ring that bring about a checkpoint; more while a check would have to begin anew for one (CHK-26).
    pub(crate) fn checkpoint_threshold(&self) -> u64 {
        if self.hold.is_some() { self.ring.len / 8 * 5 } else { self.ring.len / 2 }
    }

    /// Changed pages that bring about a checkpoint; more during a check.
    pub(crate) fn home_pages_threshold(&self) -> usize {
        if self.hold.is_some() { 2 * HOME_PAGES_MAX } else { HOME_PAGES_MAX }
    }

    /// Images all changes into the items of the open batch and opens the next one (JNL-3).
    pub(crate) fn image_batch(&mut self) -> Vec<Item> {
        let dirty = std::mem::take(&mut self.dirty);
        self.batches.on_way = self.ring.need(dirty.journal_bytes());
        let mut items =
            Vec::with_capacity(dirty.entries.len() + dirty.fresh.len() + dirty.descriptors.len() + dirty.slots.len());
        for (layer, table, page, zero) in dirty.fresh {
            if self.layers.contains_key(&layer) {
                items.push(Item::FreshPage { layer, table, page, zero });
            }
        }
        for (layer, chunk) in dirty.entries {
            let Some(InLayer::Entry(entry)) = self.layers.get(&layer).map(|found| found.lookup(chunk)) else {
                continue;
            };
            entry.clear_dirty();
            let stored = entry.stored();
            items.push(Item::Entry { layer, chunk, slab: stored.slab, d: stored.d, z: stored.z });
        }
        for slab in dirty.descriptors {
            let image = self.alloc.descriptor(slab).unwrap_or_default().encode(self.uuid, slab);
            items.push(Item::Descriptor { slab, image });
        }
        for slot in dirty.slots {
            items.push(Item::Slot { slot, image: self.slots[slot.0 as usize].encode(self.uuid, slot) });
        }
        self.batches.open += 1;
        self.batches.in_progress = true;
        items
    }

    /// The batch before the open one is durable: wakes those who wait for it and lets freed slabs move on.
    pub(crate) fn batch_is_durable(&mut self) {
        self.batches.durable = self.batches.open - 1;
        self.batches.in_progress = false;
        self.batches.on_way = 0;
        self.wake_all();
    }

    /// Byte offset of the page that holds the descriptors `page * 128..`.
    pub(crate) fn descriptor_page_offset(page: u64) -> u64 {
        let per_group = SLABS_PER_GROUP / 128;
        let group = page / per_group;
        SlabNo(group * SLABS_PER_GROUP + crate::alloc::DESCRIPTOR_SLAB).offset() + page % per_group * 4096
    }
}
