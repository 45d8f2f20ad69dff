//! Hydrations as jobs.
//!
//! Invariant: a hydration of the container is a job of the daemon, from its beginning or the daemon's on until it has ended,
//! under the id that its copy layer gives it (CTL-83). Does not: copy (`pitstop_format`).

use std::sync::Arc;

use pitstop_format::{Container, Error as FormatError, HydrateEnd, HydrateStep, HydrateWait, Hydration, LayerId};

use super::work::{JobKind, Progress, Settings, Step, Wait, Work};
use super::{Dismissal, JobStatus, Jobs};
use crate::trouble::lacks_space;

/// How often an order is tried again whose volume is renamed between the look for its name and the order.
const TRIES: u32 = 8;

/// One hydration.
struct Hydrate {
    container: Container,
    layer: LayerId,
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
            let limited = self.container.set_hydration(name, false, speed);
            // A rename, or an order to give it up, has come between: the job says whether it is there.
            limited.or_else(|error| match error {
                FormatError::NoSuchVolume { .. } | FormatError::NotHydrating { .. } => Ok(()),
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

    /// Carries out an order that names the volume, whatever it is called by then.
    fn order(&self, order: impl Fn(&str) -> Result<(), FormatError>) -> Result<(), String> {
        let mut tries = 0;
        loop {
            let Some(hydration) = self.find() else {
                return Err("Job not found".to_owned());
            };
            tries += 1;
            match order(&hydration.volume) {
                Err(FormatError::NoSuchVolume { .. } | FormatError::NotHydrating { .. }) if tries < TRIES => {}
                result => return result.map_err(|error| error.to_string()),
            }
        }
    }
}

impl Work for Hydrate {
    fn kind(&self) -> JobKind {
        JobKind::Hydrate
    }

    fn look(&self) -> Option<Progress> {
        let Hydration { volume, copied_bytes, total_bytes, .. } = self.find()?;
        Some(Progress { volume: Some(volume), current_bytes: copied_bytes, total_bytes })
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
        self.order(|name| self.container.set_hydration(name, settings.paused, settings.speed))
    }

    fn cancel(&self) -> Result<(), String> {
        self.order(|name| self.container.cancel_hydration(name))
    }
}
