//! Tags that do not check out: they are dropped, and what they were of counts as not sealed.
//!
//! Does not: look at guest data, or make tags.

use super::draft::Draft;
use crate::check::tags::{damaged, tag_slabs};
use crate::error::Result;
use crate::layout::descriptor::Descriptor;

impl Draft<'_> {
    /// Frees tag slabs that no slab needs, and clears damaged records.
    pub(super) fn mend_tags(&mut self) -> Result<()> {
        let (good, needless) = tag_slabs(&self.descriptors);
        for (_, slab) in needless {
            self.describe(slab, Descriptor::Free);
        }
        for (index, slab) in good {
            let found = damaged(self.disk, self.uuid(), index, slab)?;
            self.dropped_tags.extend(found.into_iter().map(|(_, at, _)| at));
        }
        Ok(())
    }
}
