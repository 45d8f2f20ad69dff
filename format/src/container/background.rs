//! What the container's own background work is at, for display.
//!
//! Invariant: looking never waits for a step of that work, which may be long on slow storage. Does not: do the work
//! (`maintain`, `merge`), or bind it: what is shown was true a step ago.

use super::Container;
use super::hidden_steps::Hiding;
use super::maintain::Background;
use crate::units::{LayerId, SLAB_LEN};

/// Background work under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackgroundWork {
    /// What is done.
    pub kind: BackgroundKind,
    /// Bytes that have been looked through: of the layer that is merged, of the file or the layer that slabs are freed in.
    pub passed_bytes: u64,
    /// Bytes to look through.
    pub total_bytes: u64,
}

/// A kind of background work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackgroundKind {
    /// This frozen layer is folded into its only child (LAY-8).
    Merge(LayerId),
    /// The slabs of doomed layers are freed (JNL-12), or those that a head hides (LAY-72).
    Reclaim,
}

impl Container {
    /// The background work that [`Container::maintain`] is in the middle of: at most one of each kind.
    pub fn background(&self) -> Vec<BackgroundWork> {
        super::lock(&self.shared.background).clone()
    }

    /// Shows what `background` is at.
    pub(super) fn show(&self, background: &Background) {
        let work = |kind, (passed, total): (u64, u64)| {
            let total_bytes = total * SLAB_LEN;
            BackgroundWork { kind, passed_bytes: (passed * SLAB_LEN).min(total_bytes), total_bytes }
        };
        let hiding = || background.hidings.front().map(Hiding::chunks);
        let reclaim = background.reclaim_progress().or_else(hiding).map(|slabs| work(BackgroundKind::Reclaim, slabs));
        let merge = background.merge.as_ref().map(|job| work(BackgroundKind::Merge(job.parent()), job.chunks()));
        *super::lock(&self.shared.background) = reclaim.into_iter().chain(merge).collect();
    }
}
