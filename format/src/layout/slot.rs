//! Catalog slots: 512 bytes each, one object per slot.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Bad, Field, checksum, on_disk};
use crate::units::{LayerId, MAX_NAME_LEN, MAX_VOLUME_LEN, MIN_IO_LEN, RegionId, SlotNo, VolumeId};

/// Bytes in a slot.
pub(crate) const LEN: usize = 512;
/// Slots in a page.
pub(crate) const PER_PAGE: u32 = 8;
/// Largest limit of a cache region, in bytes.
const MAX_REGION_LEN: u64 = 1 << 60;
/// Slots in a catalog slab.
pub(crate) const PER_SLAB: u32 = 512;

/// What every slot begins with.
pub(crate) mod header {
    super::on_disk! { 16;
        KIND @ 0, 1;
        VERSION @ 1, 1;
        CRC @ 4, 4;
        SLOT @ 8, 4;
    }
}

/// The container's own counters; always slot 0.
pub(crate) mod container {
    super::on_disk! { 512;
        NEXT_ID @ 16, 8;
        SLAB_COUNT @ 24, 8;
    }
}

/// A volume.
pub(crate) mod volume {
    super::on_disk! { 512;
        ID @ 16, 8;
        UUID @ 24, 16;
        SIZE_BYTES @ 40, 8;
        HEAD @ 48, 8;
        CREATED_NS @ 56, 8;
        FLAGS @ 64, 4;
        DURABILITY @ 68, 1;
        VERIFY @ 69, 1;
        SECTOR_LEN @ 70, 2;
        ORIGIN @ 72, 8;
        ORIGIN_NS @ 80, 8;
        ORIGIN_UUID @ 88, 16;
        NAME @ 104, 128;
        ORIGIN_NAME @ 232, 128;
        SEAL_SPEED @ 360, 8;
        REGION @ 376, 8;
        PROPERTIES @ 384, 128;
    }
}

/// What is tracked of a relation.
pub(crate) mod relation {
    super::on_disk! { 512;
        SECONDARY @ 16, 8;
        PRIMARY @ 24, 8;
        COPY @ 32, 8;
        BASE @ 40, 8;
        COPIED @ 48, 8;
        ADOPTED @ 56, 8;
    }
}

/// A layer.
pub(crate) mod layer {
    super::on_disk! { 512;
        ID @ 16, 8;
        UUID @ 24, 16;
        KIND @ 40, 1;
        FLAGS @ 41, 1;
        PARENT @ 48, 8;
        OWNER @ 56, 8;
        SIZE_BYTES @ 64, 8;
        PARENT_LIMIT @ 72, 8;
        BIRTH @ 80, 8;
        KEY @ 88, 8;
        CREATED_NS @ 96, 8;
        FROZEN_NS @ 104, 8;
        EXTERNAL @ 112, 64;
        SPEED @ 176, 8;
    }
}

/// A cache region.
pub(crate) mod region {
    super::on_disk! { 512;
        ID @ 16, 8;
        NAME @ 24, 128;
        LIMIT_BYTES @ 152, 8;
        GROWTH_BYTES @ 160, 8;
        MOST_BYTES @ 168, 8;
        CREATED_NS @ 176, 8;
        HIGH_WATER @ 184, 1;
    }
}

/// The container's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContainerRecord {
    /// Next volume or layer id; ids are never reused (LAY-1).
    pub(crate) next_id: u64,
    /// Slabs that the file must have.
    pub(crate) slab_count: u64,
}

/// What a flush of a volume promises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// What had completed before is durable.
    #[default]
    Flush,
    /// Nothing: the volume is disposable, and undefined after an unclean stop (VOL-40, VOL-44).
    None,
}

/// Where a volume's contents came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OriginRecord {
    pub(crate) volume: VolumeId,
    pub(crate) uuid: Uuid,
    pub(crate) instant_ns: i64,
    pub(crate) name: String,
}

/// A volume as the catalog stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeRecord {
    pub(crate) id: VolumeId,
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) head: LayerId,
    pub(crate) created_ns: i64,
    pub(crate) origin: Option<OriginRecord>,
    pub(crate) durability: Durability,
    /// An unclean stop may have cost it what was flushed (VOL-44).
    pub(crate) undefined: bool,
    pub(crate) verify: Verify,
    /// Its frozen layers are being sealed.
    pub(crate) sealing: Option<Pace>,
    /// The relation to `origin` was ended.
    pub(crate) split: bool,
    /// A write-through view: another volume's head stands on its head (LAY-70).
    pub(crate) is_view: bool,
    /// The volume is a backup's instant (CAT-15), and has no name.
    pub(crate) instant: Option<InstantRecord>,
}

/// What a backup's instant is, besides a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InstantRecord {
    /// The cache region that it draws on, if any.
    pub(crate) region: Option<RegionId>,
}

/// What is done so that damaged data of a volume is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// Nothing is sealed for it.
    #[default]
    Off,
    /// What is frozen of it is sealed, and verified whenever it is copied.
    Copy,
    /// The same, and what guests read of it is verified as far as it is sealed.
    Always,
}

impl Verify {
    /// Every value, by its word.
    pub const WORDS: [(&'static str, Self); 3] = [("off", Self::Off), ("copy", Self::Copy), ("always", Self::Always)];
}

/// What a volume that was hydrated has in common with the one that it was copied from (REL-2). Its layers are *pinned*.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RelationRecord {
    /// The volume that was copied to, and the one that was copied from; `None` once the relation has ended.
    pub(crate) volumes: Option<Pair>,
    /// The layer that was filled, until it is let go of.
    pub(crate) copy: Option<LayerId>,
    /// The layer that it was filled from, or one below it while it is let go of.
    pub(crate) base: Option<LayerId>,
    /// What filling it took.
    pub(crate) moved: Moved,
}

/// The volumes of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) secondary: VolumeId,
    pub(crate) primary: VolumeId,
}

/// What a hydration has moved, since the container was opened last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Moved {
    /// Bytes that were read and written.
    pub copied_bytes: u64,
    /// Bytes that were taken over where they lay.
    pub adopted_bytes: u64,
}

/// A cache region as the catalog stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RegionRecord {
    pub(crate) id: RegionId,
    pub(crate) name: String,
    /// Bytes that backups may keep on it.
    pub(crate) limit: u64,
    /// Bytes by which the limit grows where it is reached; 0: not at all.
    pub(crate) growth: u64,
    /// Where that ends.
    pub(crate) most: u64,
    /// Percent of the limit from which on to warn.
    pub(crate) high_water: u8,
    pub(crate) created_ns: i64,
}

/// What a layer is at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerKind {
    /// Takes a volume's writes.
    Head,
    /// Never changes again (but for a merge, which shows the same bytes).
    Frozen,
    /// Being filled with what its parent shows, until nothing needs the parent (LAY-30).
    Copy(Pace),
    /// Unlinked; its slabs are being freed.
    Doomed,
}

/// How fast a copy layer is to be filled, or a volume to be sealed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Not at all for now.
    pub(crate) paused: bool,
    /// Bytes a second at most; 0: as fast as can be.
    pub(crate) speed: u64,
}

impl LayerKind {
    pub(crate) fn is_copy(self) -> bool {
        matches!(self, Self::Copy(_))
    }

    /// Whether other layers may stand on one of this kind (LAY-2).
    pub(crate) fn may_be_parent(self) -> bool {
        matches!(self, Self::Frozen | Self::Copy(_))
    }
}

/// Flag of a volume: it is undefined.
const UNDEFINED: u64 = 1;
/// Flag of a copy layer: it is paused.
const PAUSED: u64 = 1;
/// Flag of a volume: it is being sealed.
const SEALING: u64 = 2;
/// Flags of a volume whose sealing is paused.
const SEALING_PAUSED: u64 = SEALING | 4;
/// Flag of a volume: its relation to its origin was ended.
const SPLIT: u64 = 8;
/// Flag of a volume: it is a write-through view.
const VIEW: u64 = 16;
/// Flag of a volume: it is a backup's instant.
const INSTANT: u64 = 32;

/// A layer as the catalog stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerRecord {
    pub(crate) id: LayerId,
    /// Once it is frozen, of what it shows: given at the freeze, and by a copy layer taken over from the layer below (LAY-14).
    pub(crate) uuid: Uuid,
    pub(crate) kind: LayerKind,
    pub(crate) parent: Option<LayerId>,
    /// The volume it was frozen from, while that volume still uses it.
    pub(crate) owner: Option<VolumeId>,
    pub(crate) size: u64,
    /// Bytes from which on the parent does not show through (LAY-6).
    pub(crate) parent_limit: u64,
    pub(crate) birth: LayerId,
    pub(crate) created_ns: i64,
    pub(crate) frozen_ns: i64,
}

/// A decoded slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Slot {
    Free,
    Container(ContainerRecord),
    Volume(VolumeRecord),
    Layer(LayerRecord),
    Relation(RelationRecord),
    Region(RegionRecord),
}

impl Slot {
    pub(crate) fn encode(&self, id: Uuid, slot: SlotNo) -> Box<[u8; LEN]> {
        let mut raw = Box::new([0u8; LEN]);
        let b = raw.as_mut_slice();
        header::VERSION.put(b, 1);
        header::SLOT.put(b, slot.0.into());
        match self {
            Slot::Free => {}
            Slot::Container(record) => {
                header::KIND.put(b, 1);
                container::NEXT_ID.put(b, record.next_id);
                container::SLAB_COUNT.put(b, record.slab_count);
            }
            Slot::Volume(record) => {
                header::KIND.put(b, 2);
                record.encode(b);
            }
            Slot::Layer(record) => {
                header::KIND.put(b, 3);
                record.encode(b);
            }
            Slot::Relation(record) => {
                header::KIND.put(b, 4);
                record.encode(b);
            }
            Slot::Region(record) => {
                header::KIND.put(b, 5);
                record.encode(b);
            }
        }
        let crc = checksum(&[id.as_bytes()], b, header::CRC);
        header::CRC.put(b, crc.into());
        raw
    }

    pub(crate) fn decode(b: &[u8], id: Uuid, slot: SlotNo) -> Result<Self, Bad> {
        let crc = checksum(&[id.as_bytes()], b, header::CRC);
        if header::CRC.get_u32(b) != crc {
            return Err(Bad::new("CON-10", header::CRC.get(b), crc));
        }
        if header::SLOT.get_u32(b) != slot.0 {
            return Err(Bad::new("CAT-1", header::SLOT.get(b), slot));
        }
        if header::VERSION.get(b) != 1 {
            return Err(Bad::new("CAT-2", header::VERSION.get(b), 1));
        }
        match header::KIND.get(b) {
            0 => Ok(Slot::Free),
            1 => Ok(Slot::Container(ContainerRecord {
                next_id: container::NEXT_ID.get(b),
                slab_count: container::SLAB_COUNT.get(b),
            })),
            2 => VolumeRecord::decode(b).map(Slot::Volume),
            3 => LayerRecord::decode(b).map(Slot::Layer),
            4 => RelationRecord::decode(b).map(Slot::Relation),
            5 => RegionRecord::decode(b).map(Slot::Region),
            kind => Err(Bad::new("CAT-2", format!("kind {kind}"), "a kind from 0 to 5")),
        }
    }
}

impl VolumeRecord {
    /// There is more to seal, if the volume is to be sealed (TAG-7).
    pub(crate) fn seal_more(&mut self) {
        if self.verify != Verify::Off {
            self.sealing.get_or_insert_default();
        }
    }

    fn encode(&self, b: &mut [u8]) {
        volume::ID.put(b, self.id.0);
        volume::UUID.put_uuid(b, self.uuid);
        volume::SIZE_BYTES.put(b, self.size);
        volume::HEAD.put(b, self.head.0);
        volume::CREATED_NS.put(b, self.created_ns as u64);
        let sealing = match self.sealing {
            None => 0,
            Some(Pace { paused: false, .. }) => SEALING,
            Some(Pace { paused: true, .. }) => SEALING_PAUSED,
        };
        let others =
            [(self.undefined, UNDEFINED), (self.split, SPLIT), (self.is_view, VIEW), (self.instant.is_some(), INSTANT)];
        let others = others.iter().map(|&(is_set, flag)| if is_set { flag } else { 0 }).sum::<u64>();
        volume::FLAGS.put(b, sealing | others);
        volume::DURABILITY.put(b, (self.durability == Durability::None).into());
        volume::SECTOR_LEN.put(b, MIN_IO_LEN);
        volume::NAME.put_str(b, &self.name);
        if let Some(origin) = &self.origin {
            volume::ORIGIN.put(b, origin.volume.0);
            volume::ORIGIN_NS.put(b, origin.instant_ns as u64);
            volume::ORIGIN_UUID.put_uuid(b, origin.uuid);
            volume::ORIGIN_NAME.put_str(b, &origin.name);
        }
        if let Some(instant) = self.instant {
            volume::REGION.put(b, instant.region.map_or(0, |id| id.0));
        }
        volume::VERIFY.put(b, self.verify as u64);
        if let Some(pace) = self.sealing {
            volume::SEAL_SPEED.put(b, pace.speed);
        }
    }

    fn decode(b: &[u8]) -> Result<Self, Bad> {
        let name = volume::NAME.get_str(b).unwrap_or_default();
        let flags = volume::FLAGS.get(b);
        let region = Some(RegionId(volume::REGION.get(b))).filter(|id| id.0 != 0);
        let instant = (flags & INSTANT != 0).then_some(InstantRecord { region });
        if instant.is_some() {
            if volume::NAME.bytes(b).iter().any(|&byte| byte != 0) {
                return Err(Bad::new("CAT-15", "an instant with a name", "no name"));
            }
        } else if check_name(&name).is_err() {
            return Err(Bad::new("CAT-4", format!("name {name:?}"), "a volume name"));
        }
        let size = volume::SIZE_BYTES.get(b);
        if size == 0 || size > MAX_VOLUME_LEN || !size.is_multiple_of(MIN_IO_LEN) {
            return Err(Bad::new("CON-4", size, "a multiple of 512 up to 64 TiB"));
        }
        let unknown = |field: Field| Bad::new("CAT-5", format!("{} {}", field.name, field.get(b)), "a known value");
        let sealing = match flags & !(UNDEFINED | SPLIT | VIEW | INSTANT) {
            0 => None,
            SEALING => Some(Pace { paused: false, speed: volume::SEAL_SPEED.get(b) }),
            SEALING_PAUSED => Some(Pace { paused: true, speed: volume::SEAL_SPEED.get(b) }),
            _ => return Err(unknown(volume::FLAGS)),
        };
        let verify = Verify::WORDS.get(volume::VERIFY.get(b) as usize).ok_or_else(|| unknown(volume::VERIFY))?.1;
        if volume::DURABILITY.get(b) > 1 {
            return Err(unknown(volume::DURABILITY));
        }
        let origin = match volume::ORIGIN.get(b) {
            0 => None,
            origin => Some(OriginRecord {
                volume: VolumeId(origin),
                uuid: volume::ORIGIN_UUID.uuid(b),
                instant_ns: volume::ORIGIN_NS.get(b) as i64,
                name: volume::ORIGIN_NAME
                    .get_str(b)
                    .ok_or_else(|| Bad::new("CAT-4", "an origin name that is not text", "a volume name"))?,
            }),
        };
        Ok(Self {
            id: VolumeId(volume::ID.get(b)),
            uuid: volume::UUID.uuid(b),
            name,
            size,
            head: LayerId(volume::HEAD.get(b)),
            created_ns: volume::CREATED_NS.get(b) as i64,
            origin,
            durability: if volume::DURABILITY.get(b) == 1 { Durability::None } else { Durability::Flush },
            undefined: flags & UNDEFINED != 0,
            split: flags & SPLIT != 0,
            verify,
            sealing,
            instant,
            is_view: flags & VIEW != 0,
        })
    }
}

impl RelationRecord {
    /// The layers that it keeps.
    pub(crate) fn pinned(&self) -> impl Iterator<Item = LayerId> {
        self.copy.into_iter().chain(self.base)
    }

    fn encode(&self, b: &mut [u8]) {
        relation::SECONDARY.put(b, self.volumes.map_or(0, |pair| pair.secondary.0));
        relation::PRIMARY.put(b, self.volumes.map_or(0, |pair| pair.primary.0));
        relation::COPY.put(b, self.copy.map_or(0, |id| id.0));
        relation::BASE.put(b, self.base.map_or(0, |id| id.0));
        relation::COPIED.put(b, self.moved.copied_bytes);
        relation::ADOPTED.put(b, self.moved.adopted_bytes);
    }

    fn decode(b: &[u8]) -> Result<Self, Bad> {
        let (secondary, primary) = (relation::SECONDARY.get(b), relation::PRIMARY.get(b));
        let layer = |id: u64| Some(LayerId(id)).filter(|id| id.0 != 0);
        let (copy, base) = (layer(relation::COPY.get(b)), layer(relation::BASE.get(b)));
        let volumes = match (secondary, primary) {
            (0, 0) => None,
            (0, _) | (_, 0) => {
                return Err(Bad::new("CAT-10", format!("volumes {secondary} and {primary}"), "two or none"));
            }
            _ => Some(Pair { secondary: VolumeId(secondary), primary: VolumeId(primary) }),
        };
        let fits = if volumes.is_some() { copy.is_some() && base.is_some() } else { copy.is_some() || base.is_some() };
        if !fits || copy == base || secondary != 0 && secondary == primary {
            let found = format!("volumes {secondary} and {primary}, layers {copy:?} and {base:?}");
            return Err(Bad::new("CAT-10", found, "two volumes and two layers, or none and one at least"));
        }
        let moved = Moved { copied_bytes: relation::COPIED.get(b), adopted_bytes: relation::ADOPTED.get(b) };
        Ok(Self { volumes, copy, base, moved })
    }
}

impl LayerRecord {
    /// The volume that the layer is filled for, if it is a copy layer.
    pub(crate) fn filled_for(&self) -> Option<VolumeId> {
        self.owner.filter(|_| self.kind.is_copy())
    }

    /// Makes a copy layer a plain frozen one, with what it has.
    pub(crate) fn end_copy(&mut self) {
        if self.kind.is_copy() {
            self.kind = LayerKind::Frozen;
        }
    }

    fn encode(&self, b: &mut [u8]) {
        layer::ID.put(b, self.id.0);
        layer::UUID.put_uuid(b, self.uuid);
        let kind = match self.kind {
            LayerKind::Head => 1,
            LayerKind::Frozen => 2,
            LayerKind::Copy(_) => 3,
            LayerKind::Doomed => 5,
        };
        if let LayerKind::Copy(pace) = self.kind {
            layer::FLAGS.put(b, if pace.paused { PAUSED } else { 0 });
            layer::SPEED.put(b, pace.speed);
        }
        layer::KIND.put(b, kind);
        layer::PARENT.put(b, self.parent.map_or(0, |id| id.0));
        layer::OWNER.put(b, self.owner.map_or(0, |id| id.0));
        layer::SIZE_BYTES.put(b, self.size);
        layer::PARENT_LIMIT.put(b, self.parent_limit);
        layer::BIRTH.put(b, self.birth.0);
        layer::CREATED_NS.put(b, self.created_ns as u64);
        layer::FROZEN_NS.put(b, self.frozen_ns as u64);
    }

    fn decode(b: &[u8]) -> Result<Self, Bad> {
        let kind = match layer::KIND.get(b) {
            1 => LayerKind::Head,
            2 => LayerKind::Frozen,
            3 => LayerKind::Copy(Pace { paused: layer::FLAGS.get(b) & PAUSED != 0, speed: layer::SPEED.get(b) }),
            5 => LayerKind::Doomed,
            kind => return Err(Bad::new("CAT-2", format!("layer kind {kind}"), "1, 2, 3 or 5")),
        };
        let known_flags = if kind.is_copy() { PAUSED } else { 0 };
        for (field, known) in [(layer::FLAGS, known_flags), (layer::KEY, 0)] {
            let unknown = field.get(b) & !known;
            if unknown != 0 {
                return Err(Bad::new("CAT-5", format!("{} {unknown}", field.name), 0));
            }
        }
        let size = layer::SIZE_BYTES.get(b);
        if size == 0 || size > MAX_VOLUME_LEN || !size.is_multiple_of(MIN_IO_LEN) {
            return Err(Bad::new("CON-4", size, "a multiple of 512 up to 64 TiB"));
        }
        Ok(Self {
            id: LayerId(layer::ID.get(b)),
            uuid: layer::UUID.uuid(b),
            kind,
            parent: Some(LayerId(layer::PARENT.get(b))).filter(|id| id.0 != 0),
            owner: Some(VolumeId(layer::OWNER.get(b))).filter(|id| id.0 != 0),
            size,
            parent_limit: layer::PARENT_LIMIT.get(b),
            birth: LayerId(layer::BIRTH.get(b)),
            created_ns: layer::CREATED_NS.get(b) as i64,
            frozen_ns: layer::FROZEN_NS.get(b) as i64,
        })
    }
}

impl RegionRecord {
    fn encode(&self, b: &mut [u8]) {
        region::ID.put(b, self.id.0);
        region::NAME.put_str(b, &self.name);
        region::LIMIT_BYTES.put(b, self.limit);
        region::GROWTH_BYTES.put(b, self.growth);
        region::MOST_BYTES.put(b, self.most);
        region::CREATED_NS.put(b, self.created_ns as u64);
        region::HIGH_WATER.put(b, self.high_water.into());
    }

    fn decode(b: &[u8]) -> Result<Self, Bad> {
        let record = Self {
            id: RegionId(region::ID.get(b)),
            name: region::NAME.get_str(b).unwrap_or_default(),
            limit: region::LIMIT_BYTES.get(b),
            growth: region::GROWTH_BYTES.get(b),
            most: region::MOST_BYTES.get(b),
            high_water: region::HIGH_WATER.bytes(b)[0],
            created_ns: region::CREATED_NS.get(b) as i64,
        };
        if check_name(&record.name).is_err() {
            return Err(Bad::new("CAT-16", format!("name {:?}", record.name), "a name"));
        }
        match record.complaint() {
            Some(expected) => Err(Bad::new("CAT-16", format!("{record:?}"), expected)),
            None => Ok(record),
        }
    }

    /// What a region's numbers must be, if these are not that (CAT-16).
    pub(crate) fn complaint(&self) -> Option<&'static str> {
        match self {
            _ if !(1..=MAX_REGION_LEN).contains(&self.limit) => Some("a limit from 1 byte to 1 EiB"),
            _ if self.most < self.limit || self.most > MAX_REGION_LEN => Some("a most from the limit to 1 EiB"),
            _ if self.growth > MAX_REGION_LEN => Some("a growth of at most 1 EiB"),
            _ if !(1..=100).contains(&self.high_water) => Some("a high-water mark from 1 to 100 percent"),
            _ => None,
        }
    }
}

/// Whether `name` may name a volume (CAT-4); the error says what is wrong.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    let Some(first) = name.chars().next() else {
        return Err("it is empty");
    };
    if name.len() > MAX_NAME_LEN {
        return Err("it is longer than 127 bytes");
    }
    if !first.is_ascii_alphanumeric() {
        return Err("it must begin with a letter or a digit");
    }
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-+@:".contains(c)) {
        return Err("only letters, digits and . _ - + @ : are allowed");
    }
    Ok(())
}
