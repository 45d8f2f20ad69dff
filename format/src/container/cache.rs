//! Cache regions: named budgets of the space that backups keep (BAK-20 to BAK-25).
//!
//! Invariant: what a region's backups use is not stored but computed from the catalog and the slabs of layers, so that it
//! is true after any crash. Does not: hold data, or end backups (`holdings`).

use serde::Serialize;

use super::ops::Slots;
use super::state::State;
use super::{Container, now_ns};
use crate::error::{Error, Result};
use crate::layout::slot::{RegionRecord, check_name};
use crate::units::{RegionId, SLAB_LEN, VolumeId};

/// Percent of the limit from which on to warn, unless told otherwise.
const HIGH_WATER: u8 = 80;

/// A cache region at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CacheInfo {
    /// Id within the container.
    pub id: RegionId,
    /// Name.
    pub name: String,
    /// Bytes that the backups drawing on it may keep together.
    pub limit_bytes: u64,
    /// Bytes that they keep now (BAK-20).
    pub used_bytes: u64,
    /// Percent of the limit from which on there is a warning.
    pub high_water_percent: u8,
    /// Bytes by which the limit grows where it is reached; 0: not at all.
    pub growth_bytes: u64,
    /// How far the limit grows.
    pub most_bytes: u64,
    /// Backups that draw on it.
    pub backups: u32,
    /// When it was created, in nanoseconds since 1970.
    pub created_unix_ns: i64,
}

impl CacheInfo {
    /// Whether more is used than may be (BAK-21).
    pub fn is_full(&self) -> bool {
        self.used_bytes > self.limit_bytes
    }

    /// Whether the high-water mark has been reached (BAK-22).
    pub fn is_high(&self) -> bool {
        u128::from(self.used_bytes) * 100 >= u128::from(self.limit_bytes) * u128::from(self.high_water_percent)
    }
}

/// What a cache region is to be; what is `None` stays, or is chosen for a new region.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheOptions {
    /// Bytes that backups may keep; a new region needs it.
    pub limit_bytes: Option<u64>,
    /// Percent of the limit from which on to warn; 80 for a new region.
    pub high_water_percent: Option<u8>,
    /// Bytes by which the limit grows where it is reached; 0 for a new region.
    pub growth_bytes: Option<u64>,
    /// How far the limit grows; the limit for a new region.
    pub most_bytes: Option<u64>,
}

impl CacheOptions {
    fn apply(self, record: &mut RegionRecord) -> Result<()> {
        record.limit = self.limit_bytes.unwrap_or(record.limit);
        record.high_water = self.high_water_percent.unwrap_or(record.high_water);
        record.growth = self.growth_bytes.unwrap_or(record.growth);
        record.most = self.most_bytes.unwrap_or(record.most.max(record.limit));
        let growing = record.growth > 0 && record.most == record.limit && self.growth_bytes.is_some();
        let complaint = if growing { Some("a most above the limit for it to grow to") } else { record.complaint() };
        match complaint {
            Some(expected) => Err(Error::BadCache { name: record.name.clone(), expected }),
            None => Ok(()),
        }
    }
}

impl State {
    fn named_region(&self, name: &str) -> Result<&RegionRecord> {
        self.region_record(name).ok_or_else(|| Error::NoSuchCache { name: name.to_owned() })
    }

    /// Instants that draw on a region.
    fn drawing_on(&self, region: RegionId) -> Vec<VolumeId> {
        let draws = |id: &VolumeId| self.volume_record(*id).instant.is_some_and(|found| found.region == Some(region));
        self.instants.iter().copied().filter(draws).collect()
    }
}

impl Container {
    /// The region of that name, for a new backup. The caller holds `control`.
    pub(super) fn region_with_room(&self, name: &str) -> Result<RegionId> {
        let info = self.grow_cache(self.cache(name)?)?;
        match info.is_full() {
            true => Err(Error::CacheFull { name: name.to_owned(), limit: info.limit_bytes, used: info.used_bytes }),
            false => Ok(info.id),
        }
    }

    /// The region with that id.
    pub(super) fn cache_of(&self, region: RegionId) -> Option<CacheInfo> {
        let record = {
            let state = self.shared.lock();
            let found =
                state.regions.keys().filter_map(|name| state.region_record(name)).find(|found| found.id == region);
            found?.clone()
        };
        Some(self.cache_info(&record))
    }

    /// A region at a glance; the engine lock must not be held.
    fn cache_info(&self, record: &RegionRecord) -> CacheInfo {
        let drawing = self.shared.lock().drawing_on(record.id);
        CacheInfo {
            id: record.id,
            name: record.name.clone(),
            limit_bytes: record.limit,
            used_bytes: self.kept_slabs(&drawing) * SLAB_LEN,
            high_water_percent: record.high_water,
            growth_bytes: record.growth,
            most_bytes: record.most,
            backups: drawing.len() as u32,
            created_unix_ns: record.created_ns,
        }
    }

    /// All cache regions, by name.
    pub fn caches(&self) -> Vec<CacheInfo> {
        let records: Vec<RegionRecord> = {
            let state = self.shared.lock();
            state.regions.keys().filter_map(|name| state.region_record(name)).cloned().collect()
        };
        records.iter().map(|record| self.cache_info(record)).collect()
    }

    fn cache(&self, name: &str) -> Result<CacheInfo> {
        let record = self.shared.lock().named_region(name)?.clone();
        Ok(self.cache_info(&record))
    }

    /// Makes a cache region.
    ///
    /// Errors: [`Error::BadName`], [`Error::CacheExists`], [`Error::BadCache`], [`Error::NoSpace`].
    pub fn create_cache(&self, name: &str, options: CacheOptions) -> Result<CacheInfo> {
        let _control = super::lock(&self.shared.control);
        self.shared.check_open()?;
        check_name(name).map_err(|why| Error::BadName { name: name.to_owned(), why })?;
        let mut record = RegionRecord {
            id: RegionId(0),
            name: name.to_owned(),
            limit: 0,
            growth: 0,
            most: 0,
            high_water: HIGH_WATER,
            created_ns: now_ns(),
        };
        options.apply(&mut record)?;
        {
            let mut state = self.lock_for(|state| match state.region_record(name) {
                Some(_) => Err(Error::CacheExists { name: name.to_owned() }),
                None => Ok(Slots { new: 1, changed: 0 }),
            })?;
            record.id = RegionId(state.next_id());
            state.set_region(record);
        }
        self.commit()?;
        self.cache(name)
    }

    /// Changes a cache region. A limit below what is used ends the backups that use it (BAK-21).
    ///
    /// Errors: [`Error::NoSuchCache`], [`Error::BadCache`].
    pub fn resize_cache(&self, name: &str, options: CacheOptions) -> Result<CacheInfo> {
        let _control = super::lock(&self.shared.control);
        self.shared.check_open()?;
        self.change_cache(name, options)
    }

    /// The caller holds `control`.
    fn change_cache(&self, name: &str, options: CacheOptions) -> Result<CacheInfo> {
        let mut changed = None;
        {
            let mut state = self.lock_for(|state| {
                let mut record = state.named_region(name)?.clone();
                options.apply(&mut record)?;
                changed = Some(record);
                Ok(Slots { new: 0, changed: 1 })
            })?;
            changed.into_iter().for_each(|record| state.set_region(record));
        }
        self.commit()?;
        self.cache(name)
    }

    /// Raises a full region's limit by as many steps as it takes, as far as it may grow (BAK-23); returns the region as it is
    /// then, full only if it may not grow any more. The caller holds `control`, so that no order of before is undone.
    pub(super) fn grow_cache(&self, mut found: CacheInfo) -> Result<CacheInfo> {
        loop {
            let lack = found.used_bytes.saturating_sub(found.limit_bytes);
            let steps = if found.growth_bytes == 0 { 0 } else { lack.div_ceil(found.growth_bytes) };
            let grown =
                found.limit_bytes.saturating_add(steps.saturating_mul(found.growth_bytes)).min(found.most_bytes);
            if grown <= found.limit_bytes {
                return Ok(found);
            }
            // Guests may have taken all of that meanwhile.
            found =
                self.change_cache(&found.name, CacheOptions { limit_bytes: Some(grown), ..CacheOptions::default() })?;
        }
    }

    /// Deletes a cache region that no backup draws on.
    ///
    /// Errors: [`Error::NoSuchCache`], [`Error::CacheInUse`].
    pub fn delete_cache(&self, name: &str) -> Result<()> {
        let _control = super::lock(&self.shared.control);
        self.shared.check_open()?;
        {
            let mut state = self.lock_for(|state| match state.drawing_on(state.named_region(name)?.id).len() {
                0 => Ok(Slots { new: 0, changed: 1 }),
                backups => Err(Error::CacheInUse { name: name.to_owned(), backups: backups as u32 }),
            })?;
            state.remove_region(name);
        }
        self.commit()
    }
}
