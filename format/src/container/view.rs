//! Write-through views: a second volume over a volume's data, at once.
//!
//! Role: begins and ends views. Invariant (LAY-70): the head of a view has one child, the head of the volume that it is a
//! view of; each command is one batch, and what was planned before it ends in the heads of before (VIEW-6, VIEW-8). Does
//! not: carry writes through, which planning does (see [`crate::volume`]).

use std::sync::Arc;

use uuid::Uuid;

use super::ops::{Slots, add_head, check_volume_name};
use super::state::State;
use super::{Container, VolumeInfo, now_ns};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::layout::slot::{Durability, OriginRecord, Verify, VolumeRecord};
use crate::sync::MutexGuard;
use crate::units::VolumeId;
use crate::volume::{Role, Volume, VolumeCore, Writers};

/// What becomes of the versions that were written through the source of a view when the view ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViewEnd {
    /// They are given up: the source shows what the view shows.
    Drop,
    /// Both volumes keep what they show.
    Keep,
}

/// The two volumes of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    /// What is written through it is seen by itself alone.
    pub(super) source: VolumeId,
    /// What is written through it is seen by both.
    pub(super) view: VolumeId,
}

impl State {
    /// The view that a volume is part of.
    pub(super) fn view(&self, id: VolumeId) -> Option<View> {
        let record = self.volume_record(id);
        if record.is_view {
            let above = self.only_child(record.head)?;
            return Some(View { source: self.heads.get(&above).copied()?, view: id });
        }
        let below = self.layer_record(record.head).parent?;
        Some(View { source: id, view: self.heads.get(&below).copied()? })
    }

    /// Refuses a volume that is part of a view (VIEW-9).
    pub(super) fn check_no_view(&self, id: VolumeId) -> Result<()> {
        let Some(View { view, .. }) = self.view(id) else { return Ok(()) };
        Err(Error::InView { name: self.volume_record(id).name.clone(), view: self.volume_record(view).name.clone() })
    }
}

/// A view that has begun or ended in memory, at its instant, on the way to being durable.
#[derive(Debug)]
#[must_use = "nothing is durable until the command is finished"]
pub struct PendingView {
    container: Container,
    view: VolumeId,
    /// Below these heads no write may be under way when the command is over.
    heads: Vec<Arc<Layer>>,
}

impl PendingView {
    /// Whether the writes that [`PendingView::finish`] waits for have ended.
    pub fn is_sealed(&self) -> bool {
        self.heads.iter().all(|head| below(head).all(|layer| layer.is_drained()))
    }

    /// Makes the command durable; at the end of a view waits for the writes of before it (VIEW-8).
    pub fn finish(self) -> Result<VolumeInfo> {
        self.container.commit()?;
        for layer in self.heads.iter().flat_map(below) {
            self.container.shared.signal.wait_drained(&layer);
        }
        self.container.volume_info(self.view)
    }
}

/// A view that has ended in memory, with all commands held off until it is finished.
#[derive(Debug)]
#[must_use = "nothing is durable until the command is finished"]
pub struct EndingView<'a> {
    pending: PendingView,
    _control: MutexGuard<'a, ()>,
}

impl EndingView<'_> {
    /// Makes the end durable and waits for the writes of before it (VIEW-8).
    ///
    /// Errors: those of [`Container::commit`].
    pub fn finish(self) -> Result<VolumeInfo> {
        let container = self.pending.container.clone();
        let info = self.pending.finish()?;
        container.shared.call_for_work();
        Ok(info)
    }
}

fn below(head: &Arc<Layer>) -> impl Iterator<Item = Arc<Layer>> {
    std::iter::successors(head.parent(), |layer| layer.parent())
}

impl Container {
    /// Makes the new volume `name` a write-through view of `source`, as it is at this instant: what is written through the
    /// view from now on is seen by both, what is written through the source by the source alone. Waits for no request.
    ///
    /// Errors: [`Error::NoSuchVolume`], [`Error::VolumeExists`], [`Error::BadName`], [`Error::InView`],
    /// [`Error::Hydrating`], [`Error::Disposable`], [`Error::Undefined`], [`Error::NoSpace`].
    pub fn create_view(&self, source: &str, name: &str) -> Result<VolumeInfo> {
        let _control = super::lock(&self.shared.control);
        self.begin_create_view(source, name)?.finish()
    }

    /// Refuses one of the two volumes of a write-through view.
    ///
    /// Errors: [`Error::InView`], [`Error::VolumeGone`].
    pub fn check_not_in_view(&self, volume: &Volume) -> Result<()> {
        let state = self.shared.lock();
        if !state.volumes.contains_key(&volume.id()) {
            return Err(Error::VolumeGone { name: volume.name() });
        }
        state.check_no_view(volume.id())
    }

    /// Ends the write-through view `name`, for both volumes at one instant, which is at once; then the writes of before it
    /// are waited for, as by a snapshot (VIEW-8).
    ///
    /// Errors: [`Error::NoSuchVolume`], [`Error::NotAView`], [`Error::NoSpace`].
    pub fn end_view(&self, name: &str, end: ViewEnd) -> Result<VolumeInfo> {
        self.start_end_view(name, end)?.finish()
    }

    /// The first half of [`Container::end_view`], its instant, for a caller that holds something off over that alone. No other
    /// command runs before it is finished.
    ///
    /// Errors: those of [`Container::end_view`].
    pub fn start_end_view(&self, name: &str, end: ViewEnd) -> Result<EndingView<'_>> {
        let control = super::lock(&self.shared.control);
        Ok(EndingView { pending: self.begin_end_view(name, end)?, _control: control })
    }

    /// The first half of [`Container::create_view`]: its instant. For tests that hold writes under way; the caller runs no
    /// other control operation before it is finished.
    #[doc(hidden)]
    pub fn begin_create_view(&self, source: &str, name: &str) -> Result<PendingView> {
        self.shared.check_open()?;
        check_volume_name(name)?;
        let mut state = self.lock_for(|state| {
            state.check_new_name(name)?;
            let source_id = state.defined_volume_id(source)?;
            state.check_no_view(source_id)?;
            if state.volume_record(source_id).durability == Durability::None {
                return Err(Error::Disposable { name: source.to_owned() });
            }
            match state.copy_layer(source_id) {
                Some(_) => Err(Error::Hydrating { name: source.to_owned() }),
                None => Ok(Slots { new: 3, changed: 2 }),
            }
        })?;
        let source = state.volume_id(source)?;
        let view = self.begin_view(&mut state, source, name);
        Ok(PendingView { container: self.clone(), view, heads: Vec::new() })
    }

    /// Freezes the source's head, and puts the two heads of the view over it.
    fn begin_view(&self, state: &mut State, source: VolumeId, name: &str) -> VolumeId {
        let now = now_ns();
        let core = state.volumes[&source].clone();
        let frozen = core.head();
        state.freeze_layer(frozen.id, source, now);
        let size = frozen.size;
        let lower = add_head(state, Some(frozen), size);
        let upper = add_head(state, Some(lower.clone()), size);
        let id = VolumeId(state.next_id());
        let record = state.volume_record(source);
        let origin = OriginRecord { volume: source, uuid: record.uuid, instant_ns: now, name: record.name.clone() };
        let record = VolumeRecord {
            id,
            uuid: Uuid::new_v4(),
            name: name.to_owned(),
            size,
            head: lower.id,
            created_ns: now,
            origin: Some(origin),
            durability: Durability::Flush,
            undefined: false,
            verify: Verify::Off,
            sealing: None,
            split: false,
            is_view: true,
            instant: None,
        };
        // Both heads count as written to before anybody reads through them (MAP-17).
        let [upper, lower] = Role::pair(upper, lower, &self.shared.signal);
        state.update_volume(source, |record| {
            record.head = upper.layer.id;
            record.seal_more();
        });
        core.switch(upper);
        // A backup does not follow what both heads have and give away (BAK-7).
        core.note_refresh();
        core.touch(state);
        let view = Arc::new(VolumeCore::new(&record, lower));
        state.add_volume(record, view);
        id
    }

    /// The first half of [`Container::end_view`], as [`Container::begin_create_view`].
    #[doc(hidden)]
    pub fn begin_end_view(&self, name: &str, end: ViewEnd) -> Result<PendingView> {
        self.shared.check_open()?;
        let mut found = None;
        let mut state = self.lock_for(|state| {
            let id = state.volume_id(name)?;
            let view = state.view(id).filter(|view| view.view == id);
            found = Some(view.ok_or_else(|| Error::NotAView { name: name.to_owned() })?);
            Ok(Slots { new: 2, changed: 4 })
        })?;
        let view = found.ok_or_else(|| Error::NotAView { name: name.to_owned() })?;
        let heads = self.finish_view(&mut state, view, end);
        Ok(PendingView { container: self.clone(), view: view.view, heads: heads.into() })
    }

    /// Freezes the heads of a view, gives both volumes new ones, and returns those.
    fn finish_view(&self, state: &mut State, view: View, end: ViewEnd) -> [Arc<Layer>; 2] {
        let now = now_ns();
        let [upper, lower] = [view.source, view.view].map(|id| state.volumes[&id].head());
        state.freeze_layer(lower.id, view.view, now);
        let below_source = match end {
            ViewEnd::Drop => lower.clone(),
            ViewEnd::Keep => {
                state.freeze_layer(upper.id, view.source, now);
                upper.clone()
            }
        };
        let size = lower.size;
        let heads = [below_source, lower].map(|below| add_head(state, Some(below), size));
        for (id, head) in [view.source, view.view].into_iter().zip(&heads) {
            state.update_volume(id, |record| {
                (record.head, record.is_view) = (head.id, false);
                record.seal_more();
            });
            let core = state.volumes[&id].clone();
            core.switch(Writers::new(head.clone(), self.shared.signal.clone()));
            core.touch(state);
        }
        if end == ViewEnd::Drop {
            state.doom_unused(Some(upper.id), 1);
        }
        heads
    }
}
