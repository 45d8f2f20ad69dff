//! Tags that do not check out: they are dropped, and what they were of counts as not sealed.
//!
//! Does not: look at guest data, or make tags.

use super::draft::Draft;
use crate::check::tags::{damaged, tag_slabs};
use crate::layout::descriptor::Descriptor;
use crate::layout::tags::{LEN, PER_SLAB};
use crate::units::PAGE_LEN;

impl Draft<'_> {
    /// Frees tag slabs that no slab needs, and clears damaged records, and those of slabs that may be overwritten now.
    pub(super) fn mend_tags(&mut self) {
        let (good, needless) = tag_slabs(&self.descriptors);
        for (_, slab) in needless {
            self.describe(slab, Descriptor::Free);
        }
        for (index, slab) in good {
            for found in damaged(self.disk, self.uuid(), index, slab) {
                if found.is_unreadable {
                    self.unread_tags.insert(found.at / PAGE_LEN as u64 * PAGE_LEN as u64);
                }
                self.dropped_tags.insert(found.at);
            }
            let first = u64::from(index) * PER_SLAB;
            let thawed = (first..first + PER_SLAB).zip((slab.offset()..).step_by(LEN)).filter(|(of, _)| {
                let owner = self.descriptors.get(*of as usize).copied().flatten().and_then(|found| found.layer());
                owner.is_some_and(|owner| self.thawed.contains(&owner))
            });
            let thawed: Vec<u64> = thawed.map(|(_, at)| at).collect();
            self.dropped_tags.extend(thawed);
        }
    }
}
