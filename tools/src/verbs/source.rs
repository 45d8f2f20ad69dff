//! A volume to read from, for the verbs that move or compare data.

use pitstop_format::{Extent, VolumeIo};

use crate::copy::{Run, Source};
use crate::error::Result;
use crate::session::Direct;

/// Longest stretch of a volume that is looked at before some of it is read, in bytes.
const MAX_LOOK_LEN: u64 = 1 << 30;

/// The volume being read.
pub(super) struct VolumeSource<'a> {
    session: &'a Direct,
    io: VolumeIo,
    len_bytes: u64,
}

impl<'a> VolumeSource<'a> {
    /// Volume `name` of the session's container.
    pub(super) fn new(session: &'a Direct, name: &str) -> Result<Self> {
        let volume = session.opened().defined_volume(name).map_err(session.failed())?;
        let len_bytes = volume.size();
        Ok(Self { session, io: VolumeIo::new(session.opened(), volume), len_bytes })
    }
}

impl Source for VolumeSource<'_> {
    fn len(&self) -> u64 {
        self.len_bytes
    }

    fn run_at(&mut self, offset: u64) -> Result<(Run, u64)> {
        let end = self.len_bytes.min(offset.saturating_add(MAX_LOOK_LEN));
        let (extent, len) = self.io.block_status(offset..end).map_err(self.session.failed())?;
        let run = match extent {
            Extent::Data => Run::Data,
            Extent::Zero => Run::Zero,
        };
        Ok((run, len))
    }

    fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.io.read_at(buf, offset).map_err(self.session.failed())
    }
}
