//! Hydrations as jobs.
//!
//! Invariant: a hydration of the container is a job of the daemon, from its beginning or the daemon's on until it has ended,
//! under the id that its copy layer gives it (CTL-83). Does not: copy (`pitstop_format`).

use std::sync::Arc;

use pitstop_format::{Container, Error as FormatError, HydrateEnd, HydrateStep, HydrateWait, Hydration, LayerId};

use super::work::{JobKind, Progress, Settings, Step, Wait, Work};
use super::{Dismissal, JobStatus, Jobs};
use crate::trouble::lacks_space;

/// One hydration.
struct Hydrate {
    container: Container,
    layer: LayerId,
}

/// Why an order to a hydration failed.
fn told(error: FormatError) -> String {
    match error {
        FormatError::NotHydrating { .. } => "Job not found".to_owned(),
        error => error.to_string(),
    }
}

fn id_of(layer: LayerId) -> String {
    format!("{}-{layer}", JobKind::Hydrate.word())
}

impl Jobs {
    /// Begins to make volume `name` real, at `speed` bytes a second at most (0: no limit). `None` if it is real already, or
    /// was given up again meanwhile.
    pub(crate) fn hydrate(
        &self,
        name: &str,
        speed: u64,
        dismissal: Dismissal,
    ) -> Result<Option<JobStatus>, FormatError> {
        let Some(layer) = self.container.hydrate(name)? else {
            return Ok(None);
        };
        if speed > 0 {
            let limited = self.container.set_hydration(layer, false, speed);
            // Whatever has ended it meanwhile, the job says whether it is there.
            limited.or_else(|error| match error {
                FormatError::NotHydrating { .. } => Ok(()),
                error => Err(error),
            })?;
        }
        self.add_hydration(layer, Settings { paused: false, speed }, dismissal);
        Ok(self.get(&id_of(layer)))
    }

    /// Goes on with what was not finished when the container was closed, or its daemon killed.
    pub(crate) fn go_on(&self) {
        for Hydration { layer, paused, speed, volume, .. } in self.container.hydrations() {
            log::info!(
                "volume '{volume}' is being hydrated: job {}{}",
                id_of(layer),
                if paused { ", paused" } else { "" }
            );
            self.add_hydration(layer, Settings { paused, speed }, Dismissal::Auto);
        }
        self.take_up_seals();
    }

    fn add_hydration(&self, layer: LayerId, settings: Settings, dismissal: Dismissal) {
        let work = Arc::new(Hydrate { container: self.container.clone(), layer });
        self.add(id_of(layer), work, settings, dismissal);
    }
}

impl Hydrate {
    fn find(&self) -> Option<Hydration> {
        self.container.hydration(self.layer)
    }
}

impl Work for Hydrate {
    fn kind(&self) -> JobKind {
        JobKind::Hydrate
    }

    fn look(&self) -> Option<Progress> {
        let Hydration { volume, copied_bytes, total_bytes, moved, .. } = self.find()?;
        Some(Progress { volume: Some(volume), current_bytes: copied_bytes, total_bytes, moved })
    }

    fn step(&self, budget_bytes: u64) -> Step {
        match self.container.hydrate_step(self.layer, budget_bytes) {
            Ok(HydrateStep::Copied(bytes)) => Step::Moved(bytes),
            Ok(HydrateStep::Blocked(HydrateWait::NoSpace)) => Step::Blocked(Wait::Space),
            Ok(HydrateStep::Blocked(HydrateWait::Others)) => Step::Blocked(Wait::Others),
            Ok(HydrateStep::Ended(HydrateEnd::Done)) => Step::Complete,
            Ok(HydrateStep::Ended(HydrateEnd::Cancelled)) => Step::Void,
            Err(FormatError::Io { source, .. }) if lacks_space(&source) => Step::Blocked(Wait::Space),
            Err(error) => Step::Failed(error.to_string()),
        }
    }

    fn keep(&self, settings: Settings) -> Result<(), String> {
        self.container.set_hydration(self.layer, settings.paused, settings.speed).map_err(told)
    }

    fn cancel(&self) -> Result<(), String> {
        self.container.cancel_hydration(self.layer).map_err(told)
    }
}
