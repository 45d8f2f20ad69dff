//! Backups: a volume's contents at one instant, held while they are copied out (spec/backup.md).
//!
//! Role: makes and releases instants, and says what was written since. Invariant: an instant is a
//! copy like any other (SNP-6), but nameless, and in the catalog only while a backup is under way (BAK-2, BAK-3); the
//! original images are derived, never copied: where the live volume's newer layers have a block, the frozen one still has
//! what was there (design rule 31). Does not: move data, know targets, or say when a backup has to end (`holdings`).

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use uuid::Uuid;

use super::diff::{DiffStep, Zeros};
use super::holdings::{Beginning, Holding};
use super::maps::Listing;
use super::state::State;
use super::{CacheInfo, Container, PendingCopy, now_ns};
use crate::addendum::Contents;
use crate::error::{Error, Result};
use crate::layout::slot::{InstantRecord, LayerKind};
use crate::sync::Mutex;
use crate::units::{SLAB_LEN, VolumeId};
use crate::volume::Volume;

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
    /// What the engine knows of it.
    holding: Arc<Holding>,
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
    beginning: Beginning,
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
        let Self { copy, beginning, live, refreshes, region } = self;
        let container = copy.container().clone();
        let info = copy.finish()?;
        let shared = &container.shared;
        let instant = Volume::new(shared.clone(), shared.lock().volumes[&info.id].clone());
        let contents = shared.lock().contents_below(info.id);
        let holding = Arc::new(Holding::new(info.id, region.region));
        shared.lock().holdings.add(Arc::clone(&holding));
        drop(beginning);
        let base = Mutex::new(None);
        Ok(Backup { container, source: live, refreshes, instant, contents, region, holding, base })
    }
}

/// What a backup costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupUse {
    /// Bytes that are kept only for it, at most (BAK-20).
    pub kept_bytes: u64,
    /// The cache region that it draws on.
    pub cache: Option<CacheInfo>,
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
        let beginning = Beginning::new(self);
        let copy = self.begin_instant(source, region)?;
        let live = self.volume(source)?;
        Ok(PendingBackup { refreshes: live.refreshes(), copy, beginning, live, region })
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

    /// Lets go of what backups held that had not ended when the container was closed, or its holder killed (BAK-3).
    pub(super) fn release_instants(&self) -> Result<()> {
        for id in self.instants() {
            let source = self.volume_info(id)?.origin.map(|origin| origin.name).unwrap_or_default();
            log::warn!(
                "a backup of volume '{source}' had not ended when the container was last in use: it is given up"
            );
            let holding = Arc::new(Holding::new(id, None));
            holding.set_over();
            let _control = super::lock(&self.shared.control);
            match self.release_holding(&holding) {
                Err(error @ Error::TooManyLayers { .. }) => {
                    log::warn!("what it held is not released yet: {error}");
                    // Merges make it possible.
                    self.shared.lock().holdings.add(holding);
                }
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
        if self.ended().is_some() {
            return Err(Error::VolumeGone { name: self.source.name() });
        }
        self.container.begin_instant(&self.source.name(), self.region)
    }

    /// The second half.
    #[doc(hidden)]
    pub fn finish_end(&self, copy: PendingCopy) -> Result<()> {
        self.holding.set_end(copy.finish()?.id);
        Ok(())
    }

    /// Where the live volume was first written between the instant and [`Backup::end_bulk`], from byte `start` on: the
    /// second side of a range, `b`, is what was there at the instant. May list more, never less (MAP-34).
    ///
    /// Errors: as [`Container::diff`]; [`Error::VolumeGone`] before [`Backup::end_bulk`].
    pub fn written(&self, start: u64, listing: Listing) -> Result<DiffStep> {
        let end = self.holding.end().ok_or_else(|| Error::VolumeGone { name: self.source.name() })?;
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

    /// What holding it costs now; `None` once its instant has been released. Walks its chain.
    pub fn cost(&self) -> Option<BackupUse> {
        let kept_bytes = self.container.kept_slabs(&self.holding.instants()) * SLAB_LEN;
        let cache = self.region.region.and_then(|region| self.container.cache_of(region));
        let is_held = self.container.shared.lock().instants.contains(&self.id());
        is_held.then_some(BackupUse { kept_bytes, cache })
    }

    /// Why background work has ended it for the guests' sake, if it has: [`Error::CacheFull`] or [`Error::BackupEnded`]. Its
    /// instants are gone then, or about to go.
    pub fn ended(&self) -> Option<&Error> {
        self.holding.ended()
    }

    /// Its region as it was when background work first found that at its high-water mark (BAK-22).
    pub fn high_water(&self) -> Option<&CacheInfo> {
        self.holding.high_water()
    }

    /// Ends it: what only it kept is freed in the background. Nothing happens if that was done before; what fails is tried
    /// again by background work.
    pub fn release(&self) -> Result<()> {
        self.holding.set_over();
        let _control = super::lock(&self.container.shared.control);
        self.container.shared.check_open()?;
        self.container.release_holding(&self.holding)
    }
}
