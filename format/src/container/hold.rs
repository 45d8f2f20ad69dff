//! Checking a container while it is in use.
//!
//! Role: holds homes still, so that the walker of `check` can read them from the disk as it does with a closed container:
//! superblock, homes, and the journal up to the batch that was durable when the hold began (CHK-24). Commits go on.
//! Invariant: nobody waits for a check. A checkpoint that is due ends the hold, and the walk begins anew (CHK-26).
//! Does not: look at what the engine has in memory; the walker shares no code with it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::state::State;
use super::{Container, OpenMode};
use crate::check::{self, CheckReport, View};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::units::SLAB_LEN;

/// How often a walk is tried.
const TRIES: u32 = 5;

/// Homes do not change while the state has this.
#[derive(Debug)]
pub(crate) struct Hold {
    ended: Arc<AtomicBool>,
}

impl State {
    /// Ends the hold, if there is one: homes may change, and freed tables may be reused.
    pub(super) fn end_hold(&mut self) {
        if let Some(hold) = self.hold.take() {
            hold.ended.store(true, Ordering::SeqCst);
            self.alloc.release_tables();
            self.wake_all();
        }
    }
}

/// Ends its hold when the walk is over, however it ended.
struct Walk<'a> {
    container: &'a Container,
    ended: Arc<AtomicBool>,
    view: View,
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        let mut state = self.container.shared.lock();
        // A checkpoint may have ended it before, and another check have begun one.
        if state.hold.as_ref().is_some_and(|hold| Arc::ptr_eq(&hold.ended, &self.ended)) {
            state.end_hold();
        }
    }
}

/// The container's disk as long as the hold lasts.
#[derive(Debug)]
struct HeldDisk<'a> {
    disk: &'a dyn Disk,
    ended: &'a AtomicBool,
    given_up: &'a AtomicBool,
}

impl HeldDisk<'_> {
    fn check(&self) -> io::Result<()> {
        if self.ended.load(Ordering::SeqCst) || self.given_up.load(Ordering::SeqCst) {
            return Err(io::Error::other("the check was interrupted"));
        }
        Ok(())
    }
}

impl Disk for HeldDisk<'_> {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.check()?;
        self.disk.read_at(buf, offset)?;
        // What was read counts only if nothing could have changed it meanwhile.
        self.check()
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn write_at_durable(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn grow(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

impl Container {
    /// Checks the container as the next opening would find it if it crashed now, while it goes on being used; blocks.
    ///
    /// Setting `given_up` ends it early. Memory: about 48 bytes for every slab of the file, and what the journal holds.
    ///
    /// Errors: [`Error::CheckUnderWay`], [`Error::CheckGivenUp`], [`Error::TooBusyToCheck`], and those of
    /// [`check::check`].
    pub fn check(&self, given_up: &AtomicBool) -> Result<CheckReport> {
        for _ in 0..TRIES {
            let walk = self.begin_walk()?;
            let disk = HeldDisk { disk: &*self.shared.disk, ended: &walk.ended, given_up };
            let result = check::check_view(&disk, walk.view);
            if given_up.load(Ordering::SeqCst) {
                return Err(Error::CheckGivenUp);
            }
            if !walk.ended.load(Ordering::SeqCst) {
                return result;
            }
        }
        Err(Error::TooBusyToCheck { tries: TRIES })
    }

    /// Begins a hold, with a journal that has room for the time that a walk takes.
    fn begin_walk(&self) -> Result<Walk<'_>> {
        let _homes = super::lock(&self.shared.homes);
        let wants_room = {
            let state = self.shared.lock();
            if state.hold.is_some() {
                return Err(Error::CheckUnderWay);
            }
            state.ring.used() > state.ring.len / 8
        };
        // A container that has failed, or is only read, has no more checkpoints, and none that could disturb.
        if wants_room && self.shared.mode == OpenMode::ReadWrite && self.shared.check_alive().is_ok() {
            self.checkpoint_locked()?;
        }
        let mut state = self.shared.lock();
        let ended = Arc::new(AtomicBool::new(false));
        state.hold = Some(Hold { ended: Arc::clone(&ended) });
        state.alloc.keep_tables();
        let view = View {
            file_len: state.alloc.slab_count() * SLAB_LEN,
            journal_end: (self.shared.mode == OpenMode::ReadWrite).then_some(state.ring.head.sequence),
        };
        drop(state);
        Ok(Walk { container: self, ended, view })
    }
}
