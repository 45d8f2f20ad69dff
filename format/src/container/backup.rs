//! Backups: a volume's contents at one instant, held while they are copied out (spec/backup.md).
//!
//! Role: makes and releases instants, says what was written since, and what holding one costs. Invariant: an instant is a
//! copy like any other (SNP-6), but nameless, and in the catalog only while a backup is under way (BAK-2, BAK-3); the
//! original images are derived, never copied: where the live volume's newer layers have a block, the frozen one still has
//! what was there (design rule 31). Does not: move data, or know targets.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use uuid::Uuid;

use super::diff::{DiffStep, Zeros};
use super::maps::Listing;
use super::state::State;
use super::{CacheInfo, Container, PendingCopy, now_ns};
use crate::addendum::Contents;
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::layout::slot::{InstantRecord, LayerKind};
use crate::sync::Mutex;
use crate::units::{SLAB_LEN, VolumeId};
use crate::volume::Volume;

/// Free slabs that guests keep whatever backups hold (BAK-24).
const FREE_SLABS_KEPT: u64 = 64;

/// Layers of a chain that are looked at per hold of the engine lock.
const LAYERS_PER_HOLD: usize = 256;

/// A backup under way. It must be released: dropping it leaves the instant until the container is opened again.
#[derive(Debug)]
pub struct Backup {
    container: Container,
    source: Volume,
    /// How often the source had been refreshed at the instant.
    refreshes: Option<u64>,
    instant: Volume,
    contents: Contents,
    region: InstantRecord,
    /// A second instant: when the live volume had been read through.
    end: Mutex<Option<VolumeId>>,
    base: Mutex<Option<Base>>,
}

/// The copy that a backup lists the differences from.
#[derive(Debug, Clone)]
struct Base {
    copy: Volume,
    refreshes: Option<u64>,
}

/// A backup whose instant has come, and that is not there yet.
#[derive(Debug)]
#[must_use = "nothing is held until it is finished"]
pub struct PendingBackup {
    copy: PendingCopy,
    live: Volume,
    refreshes: Option<u64>,
    region: InstantRecord,
}

impl PendingBackup {
    /// As [`PendingCopy::is_sealed`].
    pub fn is_sealed(&self) -> bool {
        self.copy.is_sealed()
    }

    /// As [`PendingCopy::finish_all`].
    pub fn finish(self) -> Result<Backup> {
        let Self { copy, live, refreshes, region } = self;
        let container = copy.container().clone();
        let info = copy.finish()?;
        let shared = &container.shared;
        let instant = Volume::new(shared.clone(), shared.lock().volumes[&info.id].clone());
        let contents = shared.lock().contents_below(info.id);
        let (end, base) = (Mutex::new(None), Mutex::new(None));
        Ok(Backup { container, source: live, refreshes, instant, contents, region, end, base })
    }
}

/// What a backup costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupUse {
    /// Bytes that are kept only for it, at most (BAK-20).
    pub kept_bytes: u64,
    /// The cache region that it draws on.
    pub cache: Option<CacheInfo>,
    /// The container cannot grow, hardly anything is free, and the backup keeps something (BAK-24).
    pub starves_guests: bool,
}

impl State {
    /// What the head of a volume stands on; of a view, what both of its heads stand on.
    fn contents_below(&self, id: VolumeId) -> Contents {
        let mut below = std::iter::successors(self.volumes[&id].head().parent(), |layer| layer.parent());
        match below.find(|layer| self.layer_record(layer.id).kind != LayerKind::Head) {
            Some(layer) => {
                let (id, unix_ns) = self.contents_of_layer(layer.id);
                Contents { id, unix_ns }
            }
            None => {
                let record = self.volume_record(id);
                let unix_ns = record.origin.as_ref().map_or(record.created_ns, |origin| origin.instant_ns);
                Contents { id: Uuid::nil(), unix_ns }
            }
        }
    }
}

impl Container {
    /// Slabs that are kept only for this instant, at most (BAK-20): as many as layers newer than it have, but not more than
    /// it has itself; where its source no longer stands on it, those that nobody else uses; 0 once it has been released.
    /// The engine lock is held for a few layers at a time.
    pub(super) fn kept_slabs(&self, instant: VolumeId) -> u64 {
        let (frozen, head) = {
            let state = self.shared.lock();
            let Some(frozen) = state.volumes.get(&instant).and_then(|core| core.head().parent()) else {
                return 0;
            };
            let source = state.volume_record(instant).origin.as_ref().map(|origin| origin.volume);
            (frozen, source.and_then(|source| state.volumes.get(&source)).map(|source| source.head()))
        };
        let (mut newer, mut stands_on_it) = (0, false);
        self.walk(head, |state, layer| {
            stands_on_it = layer.id == frozen.id;
            newer += if stands_on_it { 0 } else { state.slabs_of(layer.id) };
            !stands_on_it
        });
        let mut kept = 0;
        self.walk(Some(frozen), |state, layer| {
            let goes_on = if stands_on_it { kept < newer } else { state.child_count(layer.id) <= 1 };
            kept += if goes_on { state.slabs_of(layer.id) } else { 0 };
            goes_on
        });
        if stands_on_it { kept.min(newer) } else { kept }
    }

    /// Shows the layers from `first` down to `visit`, a few under each hold of the engine lock, until it answers false.
    fn walk(&self, first: Option<Arc<Layer>>, mut visit: impl FnMut(&State, &Layer) -> bool) {
        let mut next = first;
        while next.is_some() {
            let state = self.shared.lock();
            for _ in 0..LAYERS_PER_HOLD {
                let Some(layer) = next.take() else { return };
                if !visit(&state, &layer) {
                    return;
                }
                next = layer.parent();
            }
        }
    }
}

impl Container {
    /// Begins a backup of volume `source`: fixes the instant (BAK-1), which draws on the cache region `cache` if there is
    /// one. Costs what a snapshot costs.
    ///
    /// Errors: as [`Container::snapshot`], [`Error::NoSuchCache`], [`Error::CacheFull`].
    pub fn begin_backup(&self, source: &str, cache: Option<&str>) -> Result<Backup> {
        let _control = super::lock(&self.shared.control);
        self.start_backup(source, cache)?.finish()
    }

    /// The first half of [`Container::begin_backup`]: fixes the instant. For tests that hold writes under way; the caller
    /// runs no other control operation before it is finished.
    #[doc(hidden)]
    pub fn start_backup(&self, source: &str, cache: Option<&str>) -> Result<PendingBackup> {
        self.shared.check_open()?;
        let region = InstantRecord { region: cache.map(|name| self.region_with_room(name)).transpose()? };
        let copy = self.begin_instant(source, region)?;
        let live = self.volume(source)?;
        Ok(PendingBackup { refreshes: live.refreshes(), copy, live, region })
    }

    /// What volume `name` holds now; an id that no others will ever have if it was written since its last point-in-time
    /// event (LAY-4).
    ///
    /// Errors: [`Error::NoSuchVolume`], [`Error::Undefined`]; [`Error::InView`], as no backup is made of such a volume (BAK-28).
    pub fn contents(&self, name: &str) -> Result<Contents> {
        let state = self.shared.lock();
        let id = state.defined_volume_id(name)?;
        state.check_no_view(id)?;
        if state.volumes[&id].head().is_untouched() {
            return Ok(state.contents_below(id));
        }
        Ok(Contents { id: Uuid::new_v4(), unix_ns: now_ns() })
    }

    /// What volume `name` held at its last point-in-time event, whatever was written to it since: what it was copied from or
    /// refreshed from, or what was last copied of it.
    ///
    /// Errors: [`Error::NoSuchVolume`], [`Error::Undefined`].
    pub fn last_contents(&self, name: &str) -> Result<Contents> {
        let state = self.shared.lock();
        Ok(state.contents_below(state.defined_volume_id(name)?))
    }

    /// Backups' instants in the catalog.
    pub fn instants(&self) -> Vec<VolumeId> {
        self.shared.lock().instants.iter().copied().collect()
    }

    /// Lets go of an instant, if it is still there.
    fn release_instant(&self, id: VolumeId) -> Result<()> {
        let _control = super::lock(&self.shared.control);
        self.shared.check_open()?;
        if !self.shared.lock().instants.contains(&id) {
            return Ok(());
        }
        self.delete_found(|_| Ok(id))
    }

    /// Lets go of what backups held that had not ended when the container was closed, or its holder killed (BAK-3).
    pub(super) fn release_instants(&self) -> Result<()> {
        for id in self.instants() {
            let source = self.volume_info(id)?.origin.map(|origin| origin.name).unwrap_or_default();
            log::warn!(
                "a backup of volume '{source}' had not ended when the container was last in use: it is given up"
            );
            match self.release_instant(id) {
                // Merges make it possible, and the next opening tries again.
                Err(error @ Error::TooManyLayers { .. }) => log::warn!("what it held is not released yet: {error}"),
                result => result?,
            }
        }
        Ok(())
    }
}

impl Backup {
    /// Id of the instant; never used again.
    pub fn id(&self) -> VolumeId {
        self.instant.id()
    }

    /// The live volume.
    pub fn source(&self) -> &Volume {
        &self.source
    }

    /// The volume as it was at the instant.
    pub fn instant(&self) -> &Volume {
        &self.instant
    }

    /// What the volume held at the instant (BAK-40).
    pub fn contents(&self) -> Contents {
        self.contents
    }

    /// Refuses once the source has been refreshed, restored or deleted, or has got a view: then what is read of it may be neither of the
    /// instant nor listed by [`Backup::written`] (BAK-7).
    pub fn check_source(&self) -> Result<()> {
        if self.source.refreshes().is_some() && self.source.refreshes() == self.refreshes {
            return Ok(());
        }
        Err(Error::SourceChanged { name: self.source.name() })
    }

    /// The live volume has been read through: fixes what was written until now (BAK-6).
    ///
    /// Errors: [`Error::SourceChanged`], and those of [`Container::snapshot`].
    pub fn end_bulk(&self) -> Result<()> {
        let _control = super::lock(&self.container.shared.control);
        self.finish_end(self.start_end()?)
    }

    /// The first half of [`Backup::end_bulk`], as [`Container::start_backup`].
    #[doc(hidden)]
    pub fn start_end(&self) -> Result<PendingCopy> {
        self.container.shared.check_open()?;
        self.check_source()?;
        self.container.begin_instant(&self.source.name(), self.region)
    }

    /// The second half.
    #[doc(hidden)]
    pub fn finish_end(&self, copy: PendingCopy) -> Result<()> {
        let id = copy.finish()?.id;
        let before = super::lock(&self.end).replace(id);
        debug_assert_eq!(before, None, "the live volume is read through once");
        Ok(())
    }

    /// Where the live volume was first written between the instant and [`Backup::end_bulk`], from byte `start` on: the
    /// second side of a range, `b`, is what was there at the instant. May list more, never less (MAP-34).
    ///
    /// Errors: as [`Container::diff`]; [`Error::VolumeGone`] before [`Backup::end_bulk`].
    pub fn written(&self, start: u64, listing: Listing) -> Result<DiffStep> {
        let end = *super::lock(&self.end);
        let end = end.ok_or_else(|| Error::VolumeGone { name: self.source.name() })?;
        // What was written and is zeros again may have been read as it was in between.
        self.diff([end, self.id()], start, listing, Zeros::ByLayer)
    }

    /// Makes volume `name` what [`Backup::changed_since`] compares with; returns its [`Container::last_contents`].
    ///
    /// Errors: [`Error::NoSuchVolume`], [`Error::Undefined`]; [`Error::SinceItself`] for the source itself;
    /// [`Error::BadSize`] if it has another size than the source had.
    pub fn set_base(&self, name: &str) -> Result<Contents> {
        // Until a snapshot of the copy that is under way has ended: what it freezes is not sealed before.
        let _control = super::lock(&self.container.shared.control);
        let copy = self.container.defined_volume(name)?;
        if copy.id() == self.source.id() {
            return Err(Error::SinceItself { name: name.to_owned() });
        }
        if copy.size() != self.instant.size() {
            return Err(Error::BadSize {
                size: copy.size(),
                why: "a copy to compare with must be as large as the volume",
            });
        }
        // Before its contents: what is refreshed in between is found to be another.
        let refreshes = copy.refreshes();
        let contents = self.container.shared.lock().contents_below(copy.id());
        *super::lock(&self.base) = Some(Base { copy, refreshes });
        Ok(contents)
    }

    /// Where the instant may differ from the base, from byte `start` on: the first side of a range, `a`, is the instant's.
    ///
    /// Errors: as [`Container::diff`]; [`Error::SourceChanged`] if the base was refreshed or deleted.
    pub fn changed_since(&self, start: u64, listing: Listing) -> Result<DiffStep> {
        let Some(Base { copy, refreshes }) = super::lock(&self.base).clone() else {
            return Err(Error::VolumeGone { name: self.source.name() });
        };
        // The copy's own backup may hold what was in it before it was written (BAK-8).
        let step = self.diff([self.id(), copy.id()], start, listing, Zeros::ByLayer);
        // What was found counts only if the base was the same all the time.
        if copy.refreshes().is_none() || copy.refreshes() != refreshes {
            return Err(Error::SourceChanged { name: copy.name() });
        }
        step
    }

    fn diff(&self, ids: [VolumeId; 2], start: u64, listing: Listing, zeros: Zeros) -> Result<DiffStep> {
        let find = |state: &State| match ids.iter().find(|id| !state.volumes.contains_key(*id)) {
            Some(_) => Err(Error::VolumeGone { name: self.source.name() }),
            None => Ok(ids),
        };
        self.container.diff_found(find, start, listing, zeros, &AtomicBool::new(false))
    }

    /// What holding it costs now; `None` once it has been released. Cheap.
    pub fn cost(&self) -> Option<BackupUse> {
        let kept_slabs = self.container.kept_slabs(self.id());
        let cache = self.region.region.and_then(|region| self.container.cache_of(region));
        let state = self.container.shared.lock();
        let free = state.alloc.free_count() + state.alloc.limbo_count();
        let starves_guests = state.space.failure.is_some() && free < FREE_SLABS_KEPT && kept_slabs > 0;
        let is_held = state.instants.contains(&self.id());
        is_held.then_some(BackupUse { kept_bytes: kept_slabs * SLAB_LEN, cache, starves_guests })
    }

    /// Lets a full cache region grow, if it may (BAK-23). True if there is room then.
    pub fn grow_cache(&self) -> Result<bool> {
        let Some(cache) = self.cost().and_then(|cost| cost.cache) else {
            return Ok(true);
        };
        if !cache.is_full() {
            return Ok(true);
        }
        self.container.grow_cache(&cache.name)
    }

    /// Ends it: what only it kept is freed in the background. Nothing happens if that was done before.
    pub fn release(&self) -> Result<()> {
        let end = super::lock(&self.end).take();
        for id in end.into_iter().chain([self.id()]) {
            self.container.release_instant(id)?;
        }
        Ok(())
    }
}
