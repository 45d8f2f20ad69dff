//! Sealings as jobs.
//!
//! Invariant: a volume that the container says is being sealed has a job of the daemon, under the id that the volume's gives it
//! (CTL-142), from a moment after its beginning or the daemon's until it has ended (JOB-30). Does not: make tags
//! (`pitstop_format`).

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use pitstop_format::{
    Container, Error as FormatError, HydrateWait, Moved, SealEnd, SealStep, Sealing, Verify, VolumeId, VolumeInfo,
};

use super::work::{JobKind, Progress, Settings, Step, Wait, Work};
use super::{Dismissal, Job, JobState, JobStatus, Jobs};
use crate::trouble::lacks_space;

/// The sealing of one volume.
struct Seal {
    container: Container,
    volume: VolumeId,
}

/// Why an order to a sealing failed.
fn told(error: FormatError) -> String {
    match error {
        FormatError::NotSealing { .. } => "Job not found".to_owned(),
        error => error.to_string(),
    }
}

fn id_of(volume: VolumeId) -> String {
    format!("{}-{volume}", JobKind::Seal.word())
}

impl Jobs {
    /// Begins to seal what is frozen of volume `name`, or goes on with it, at `speed` bytes a second at most (0: no limit).
    /// `None` if that has ended by now.
    pub(crate) fn seal(&self, name: &str, speed: u64, dismissal: Dismissal) -> Result<Option<JobStatus>, FormatError> {
        let volume = self.container.seal(name)?;
        let kept = self.container.set_seal(volume, false, speed);
        // Whatever has ended it meanwhile, the job says whether it is there.
        kept.or_else(|error| match error {
            FormatError::NotSealing { .. } => Ok(()),
            error => Err(error),
        })?;
        let id = id_of(volume);
        if self.has(&id) {
            // It goes on with the new speed, paused or not before.
            drop(self.set_speed(&id, speed));
            drop(self.resume(&id));
        } else {
            self.add_seal(volume, Settings { paused: false, speed }, dismissal);
        }
        Ok(self.get(&id))
    }

    /// Sets whether what is frozen of a volume is sealed by itself.
    pub(crate) fn set_verify(&self, name: &str, verify: Verify) -> Result<VolumeInfo, FormatError> {
        let info = self.container.set_verify(name, verify)?;
        self.take_up_seals();
        self.look();
        Ok(info)
    }

    /// Makes jobs of sealings that have none, those that a freeze has begun or an earlier daemon has left, and lets those go
    /// on that had stopped at what cannot be read if more has been frozen since (JOB-33). Next to nothing if none has changed.
    pub(crate) fn take_up_seals(&self) {
        // Whoever comes meanwhile finds all of them taken up.
        let _one = self.taking_up.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = self.container.seal_changes();
        if self.seals_seen.swap(changes, Ordering::SeqCst) == changes {
            return;
        }
        let known: HashSet<String> =
            self.lock().jobs.iter().filter(|job| !job.is_over()).map(|job| job.id.clone()).collect();
        for volume in self.container.sealing_volumes() {
            let id = id_of(volume);
            if known.contains(&id) {
                if self.container.has_more_to_seal(volume) {
                    self.go_on_sealing(&id);
                }
            } else if let Some(Sealing { paused, speed, .. }) = self.container.sealing(volume) {
                self.add_seal(volume, Settings { paused, speed }, Dismissal::Auto);
            }
        }
    }

    /// Whether [`Jobs::take_up_seals`] would find something new.
    pub(super) fn misses_seals(&self) -> bool {
        self.seals_seen.load(Ordering::SeqCst) != self.container.seal_changes()
    }

    /// Lets a sealing go on that an error has paused, and nobody else.
    fn go_on_sealing(&self, id: &str) {
        let mut list = self.lock();
        let stopped = |job: &&mut Job| job.state == JobState::Paused && job.error.is_some() && !job.told_to_pause;
        if let Some(job) = list.jobs.iter_mut().filter(stopped).find(|job| job.id == id) {
            job.error = None;
            self.turn(job, JobState::Running);
        }
        drop(list);
        self.changed.notify_all();
    }

    fn has(&self, id: &str) -> bool {
        self.lock().has(id)
    }

    fn add_seal(&self, volume: VolumeId, settings: Settings, dismissal: Dismissal) {
        let work = Arc::new(Seal { container: self.container.clone(), volume });
        self.add(id_of(volume), work, settings, dismissal);
    }
}

impl Work for Seal {
    fn kind(&self) -> JobKind {
        JobKind::Seal
    }

    fn look(&self) -> Option<Progress> {
        let Sealing { volume, passed_bytes, total_bytes, .. } = self.container.sealing(self.volume)?;
        Some(Progress { volume: Some(volume), current_bytes: passed_bytes, total_bytes, moved: Moved::default() })
    }

    fn step(&self, budget_bytes: u64) -> Step {
        match self.container.seal_step(self.volume, budget_bytes) {
            Ok(SealStep::Sealed(bytes)) => Step::Moved(bytes),
            Ok(SealStep::Blocked(HydrateWait::NoSpace)) => Step::Blocked(Wait::Space),
            Ok(SealStep::Blocked(HydrateWait::Others)) => Step::Blocked(Wait::Others),
            Ok(SealStep::Ended(SealEnd::Done)) => Step::Complete,
            Ok(SealStep::Ended(SealEnd::Cancelled)) => Step::Void,
            Err(FormatError::Io { source, .. }) if lacks_space(&source) => Step::Blocked(Wait::Space),
            Err(error) => Step::Failed(error.to_string()),
        }
    }

    fn keep(&self, settings: Settings) -> Result<(), String> {
        self.container.set_seal(self.volume, settings.paused, settings.speed).map_err(told)
    }

    fn cancel(&self) -> Result<(), String> {
        self.container.cancel_seal(self.volume).map_err(told)
    }
}
