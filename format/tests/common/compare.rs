//! Compares every sector of every volume with what the model allows.
//!
//! Sparse, and complete nevertheless: runs that the engine says read as zeros are compared with the model's sectors in
//! them, all others byte by byte.

use pitstop_format::{Container, Durability, Planned, ReadPlan, ReadSegment, Volume as Handle, VolumeInfo};

use super::SECTOR;
use super::promises::{Model, Volume, When};

/// Values other than zero that a volume shows: sector, value.
pub type Shown = Vec<(u64, u64)>;

/// Reused between comparisons.
#[derive(Default)]
pub struct Comparer {
    buffer: Vec<u8>,
}

/// The value of a sector; `None`: it is torn within itself.
fn value(sector: &[u8]) -> Option<u64> {
    let (first, rest) = sector.split_first_chunk::<8>()?;
    (*rest == sector[..rest.len()]).then(|| u64::from_le_bytes(*first))
}

/// Whether the volume is marked as it should be, and what it must show then. After an unclean stop a volume whose flushes
/// promised nothing is undefined; one that is not shows exactly what was written (VOL-44, VOL-47).
fn standing(info: &VolumeInfo, model: &Volume, when: When) -> Result<When, String> {
    if info.durability != model.durability {
        return Err(format!("durability is {:?}, expected {:?}", info.durability, model.durability));
    }
    let is_disposable = model.durability == Durability::None;
    match (when, info.undefined, model.undefined) {
        (When::AfterCrash, true, false) if is_disposable => Ok(when),
        (When::AfterCrash, false, false) if is_disposable => Ok(When::Live),
        (_, found, expected) if found == expected => Ok(when),
        (_, found, expected) => Err(format!("undefined is {found}, expected {expected}")),
    }
}

impl Comparer {
    /// Compares one volume; the error says where it differs.
    pub fn volume(
        &mut self,
        container: &Container,
        handle: &Handle,
        model: &Volume,
        when: When,
        mut shown: Option<&mut Shown>,
    ) -> Result<(), String> {
        let mut plan = ReadPlan::default();
        loop {
            match handle.plan_read(0..model.size, &mut plan).map_err(|error| format!("plan: {error}"))? {
                Planned::Ready(()) => break,
                Planned::NeedPage(load) => container.load_page(load).map_err(|error| format!("page: {error}"))?,
                Planned::Busy => return Err("a read has to wait".to_owned()),
            }
        }
        let mut at = 0;
        for segment in plan.segments() {
            match *segment {
                ReadSegment::Zero { len } => {
                    let sectors = at / SECTOR..(at + len) / SECTOR;
                    if let Some(sector) = model.first_not_zero(sectors, when) {
                        return Err(format!("sector {sector} shows zeros, allowed {}", model.describe(sector)));
                    }
                    at += len;
                }
                ReadSegment::Data { disk_offset, len } => {
                    self.buffer.resize(len as usize, 0);
                    container
                        .disk()
                        .read_at(&mut self.buffer, disk_offset)
                        .map_err(|error| format!("read: {error}"))?;
                    for (number, sector) in (at / SECTOR..).zip(self.buffer.chunks_exact(SECTOR as usize)) {
                        let value = value(sector).ok_or_else(|| format!("sector {number} is torn within itself"))?;
                        if !model.may_show(number, value, when) {
                            let allowed = model.describe(number);
                            return Err(format!("sector {number} shows {value:#x}, allowed {allowed}"));
                        }
                        if let Some(shown) = shown.as_mut().filter(|_| value != 0) {
                            shown.push((number, value));
                        }
                    }
                    at += len;
                }
            }
        }
        if at == model.size { Ok(()) } else { Err(format!("the plan covers {at} of {} bytes", model.size)) }
    }

    /// Compares a whole container with the model.
    pub fn container(&mut self, container: &Container, model: &Model, when: When) -> Result<(), String> {
        let volumes = container.volumes();
        let names = volumes.iter().map(|volume| &volume.name);
        if !names.clone().eq(model.keys()) {
            return Err(format!("volumes {:?}, expected {:?}", names.collect::<Vec<_>>(), model.keys()));
        }
        for ((name, volume), info) in model.iter().zip(&volumes) {
            let when = standing(info, volume, when).map_err(|why| format!("volume {name}: {why}"))?;
            let handle = container.volume(name).map_err(|error| error.to_string())?;
            if handle.size() != volume.size {
                return Err(format!("volume {name} has {} bytes, expected {}", handle.size(), volume.size));
            }
            self.volume(container, &handle, volume, when, None).map_err(|why| format!("volume {name}: {why}"))?;
        }
        Ok(())
    }
}
