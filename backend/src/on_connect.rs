//! Refresh on connect: every connection of such an export begins with its source's contents (SNP-40 to SNP-43).
//!
//! Invariant: nobody is shown the volume's old contents: the refresh comes before the connection's first message is carried
//! out, and one that fails ends the connection; front ends that come again and again neither fill the log nor keep the
//! container busy (SNP-44, CTL-93). Does not: know messages (`session`), or who may be exported (`daemon`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pitstop_format::{Container, Error, Volume};

use crate::daemon::Event;
use crate::events::Events;
use crate::failure_log::FailureLog;
use crate::jobs::Jobs;

/// How long the next connection waits after the first that was refused; after each further one twice as long.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// The longest it waits.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Held while an exported volume may change its size, and by those who must know that none does.
pub(crate) type Sizes = Arc<Mutex<()>>;

/// From what an export's volume is refreshed, and whom to tell.
#[derive(Debug)]
pub(crate) struct RefreshOnConnect {
    /// The export's id.
    pub(crate) export: String,
    /// Name of the source, looked up anew each time.
    pub(crate) source: String,
    /// The volume to be refreshed.
    pub(crate) volume: Volume,
    /// The container of both.
    pub(crate) container: Container,
    /// See there.
    pub(crate) sizes: Sizes,
    /// Whom to tell.
    pub(crate) events: Arc<Events>,
    /// Where the sealing of what it froze goes on (JOB-30).
    pub(crate) jobs: Arc<Jobs>,
    /// What was refused lately; nothing at first.
    pub(crate) refusals: Mutex<Refusals>,
}

/// Connections refused since the last that was not.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    in_a_row: u32,
    /// Why the last was.
    reason: String,
    log: FailureLog,
}

impl Refusals {
    /// Takes one at `now`; the number kept back before it if it is to be told: another reason is told at once.
    fn refused(&mut self, reason: &str, now: Instant) -> Option<u64> {
        self.in_a_row = self.in_a_row.saturating_add(1);
        let mut kept_back = 0;
        if self.reason != reason {
            kept_back = self.log.take_kept_back();
            self.log = FailureLog::default();
            reason.clone_into(&mut self.reason);
        }
        self.log.failed(now).map(|more| kept_back + more)
    }

    /// How long the next connection has to wait.
    fn pause(&self) -> Duration {
        match self.in_a_row.checked_sub(1) {
            None => Duration::ZERO,
            Some(more) => (SHORTEST_PAUSE * (1 << more.min(8))).min(LONGEST_PAUSE),
        }
    }
}

/// The volume could not be refreshed, so the connection must end.
#[derive(Debug, thiserror::Error)]
#[error(
    "refused: volume '{volume}' cannot be refreshed from '{source_name}' on connect: {source}{}",
    more(.kept_back)
)]
pub(crate) struct NotRefreshed {
    volume: String,
    source_name: String,
    source: Box<Error>,
    kept_back: Option<u64>,
}

fn more(kept_back: &Option<u64>) -> String {
    kept_back.filter(|&more| more > 0).map_or_else(String::new, |more| format!(" ({more} more were refused before)"))
}

impl NotRefreshed {
    /// How it is logged: not each of many as a warning.
    pub(crate) fn level(&self) -> log::Level {
        if self.kept_back.is_some() { log::Level::Warn } else { log::Level::Debug }
    }
}

impl RefreshOnConnect {
    /// Makes the volume a copy of its source as it is now. Waits for the writes to the source that are under way.
    pub(crate) fn run(&self) -> Result<(), NotRefreshed> {
        let started = Instant::now();
        let sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let refreshed = self.container.refresh_volume(&self.volume, &self.source);
        drop(sizes);
        let (id, source) = (self.export.clone(), self.source.clone());
        match refreshed {
            Ok(info) => {
                *self.refusals() = Refusals::default();
                self.jobs.take_up_seals();
                let elapsed_ms = started.elapsed().as_millis();
                log::info!("export {id}: volume '{}' refreshed from '{source}' in {elapsed_ms} ms", info.name);
                self.events.emit(&Event::VolumeRefreshed { volume: info.name, source });
                Ok(())
            }
            Err(error) => {
                let volume = self.volume.name();
                let reason = error.to_string();
                let kept_back = self.refusals().refused(&reason, Instant::now());
                if let Some(kept_back) = kept_back {
                    let (volume, source) = (volume.clone(), source.clone());
                    self.events.emit(&Event::RefreshFailed { id, volume, source, reason, refusals: kept_back + 1 });
                }
                Err(NotRefreshed { volume, source_name: source, source: Box::new(error), kept_back })
            }
        }
    }

    /// How long the next connection has to wait: not at all, unless the last was refused (SNP-44).
    pub(crate) fn pause(&self) -> Duration {
        self.refusals().pause()
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // rules: SNP-44, CTL-93
    #[test]
    fn refusals_are_paced_and_few_are_told() {
        let start = Instant::now();
        let mut refusals = Refusals::default();
        assert_eq!(refusals.pause(), Duration::ZERO);
        let paused = [(); 6].map(|()| {
            let told = refusals.refused("no source", start);
            (told, refusals.pause().as_millis())
        });
        assert_eq!(paused.map(|(_, pause)| pause), [100, 200, 400, 500, 500, 500]);
        assert_eq!(paused.map(|(told, _)| told), [Some(0), None, None, None, None, None]);
        assert_eq!(refusals.refused("no space", start), Some(5), "another reason");
        assert_eq!(refusals.refused("no space", start), None);
        assert_eq!(refusals.refused("no space", start + Duration::from_secs(5)), Some(1));
        refusals.in_a_row = u32::MAX;
        refusals.refused("no space", start);
        assert_eq!(refusals.pause(), LONGEST_PAUSE);
    }
}
