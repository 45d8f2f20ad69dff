//! Refresh on connect: every connection of such an export begins with its source's contents (SNP-40 to SNP-43).
//!
//! Invariant: nobody is shown the volume's old contents: the refresh comes before the connection's first message is carried
//! out, and one that fails ends the connection. Does not: know messages (`session`), or who may be exported (`daemon`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use pitstop_format::{Container, Error, Volume};

use crate::daemon::Event;
use crate::events::Events;

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
}

/// The volume could not be refreshed, so the connection must end.
#[derive(Debug, thiserror::Error)]
#[error("refused: volume '{volume}' cannot be refreshed from '{source_name}' on connect: {source}")]
pub(crate) struct NotRefreshed {
    volume: String,
    source_name: String,
    source: Box<Error>,
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
                let elapsed_ms = started.elapsed().as_millis();
                log::info!("export {id}: volume '{}' refreshed from '{source}' in {elapsed_ms} ms", info.name);
                self.events.emit(&Event::VolumeRefreshed { volume: info.name, source });
                Ok(())
            }
            Err(error) => {
                let volume = self.volume.name();
                let reason = error.to_string();
                self.events.emit(&Event::RefreshFailed { id, volume: volume.clone(), source: source.clone(), reason });
                Err(NotRefreshed { volume, source_name: source, source: Box::new(error) })
            }
        }
    }
}
