//! Backups among random work: the instant shows what the model holds, and the live volume, read piece by piece while
//! everything goes on, with the original images over it, is the instant (BAK-4 to BAK-9, design rule 31).

use std::sync::Arc;

use pitstop_format::{Backup, CacheOptions, Container, Content, Error, Listing, VolumeIo};

use crate::common::compare::Comparer;
use crate::common::promises::{Volume, When};
use crate::work::Work;

/// Volumes that are read through; of larger ones the instant alone is compared.
const READ_LEN: u64 = 4 << 20;

/// A backup under way.
pub struct Held {
    backup: Backup,
    /// What the source held at the instant.
    expected: Arc<Volume>,
    /// What has been read of the live volume.
    bulk: Vec<u8>,
}

/// Bytes of a volume.
fn contents(container: &Container, volume: &pitstop_format::Volume, start: u64, len: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; len as usize];
    VolumeIo::new(container, volume.clone()).read_at(&mut bytes, start).map(|()| bytes)
}

impl Work {
    /// Begins a backup of a volume. Between its instant and its beginning everything goes on.
    pub fn begin_backup(&mut self, name: &str) {
        if self.lock().model[name].undefined {
            let refused = self.blocking(|container| container.begin_backup(name, None));
            assert!(matches!(refused, Err(Error::Undefined { .. })), "{refused:?}");
            return;
        }
        self.lock().note(format!("backup of {name}"));
        let cache = self.blocking(|container| {
            let options = CacheOptions { limit_bytes: Some(1 << 40), ..CacheOptions::default() };
            match container.create_cache("nightly", options) {
                Ok(_) | Err(Error::CacheExists { .. }) => "nightly",
                Err(error) => panic!("{error}"),
            }
        });
        let pending = self.blocking(|container| container.start_backup(name, Some(cache)).unwrap());
        let (copy, source, instant) = {
            let mut world = self.lock();
            let (copy, source) = world.begin_copy(name);
            (copy, source, world.time)
        };
        while !pending.is_sealed() {
            self.small_operation();
        }
        let expected = {
            let mut world = self.lock();
            world.end_in_copy(copy);
            let mut expected = world.coming.pop().unwrap();
            Arc::make_mut(&mut expected).seal();
            expected
        };
        let backup = self.blocking(|_| pending.finish().unwrap());
        {
            let mut world = self.lock();
            world.flushed(source, instant);
            world.promised();
            world.coverage.backups += 1;
        }
        self.backups.push(Held { backup, expected, bulk: Vec::new() });
    }

    /// Reads some more of the live volume, or compares and ends the backup.
    pub fn step_backup(&mut self) {
        let Some(at) = self.lock().rng.below(4).checked_rem(self.backups.len() as u64) else { return };
        let mut held = self.backups.swap_remove(at as usize);
        let size = held.expected.size;
        let read = held.bulk.len() as u64;
        if size <= READ_LEN && read < size {
            let len = (size - read).min(600 << 10);
            // A source that is gone or has another size is found out below.
            let source = held.backup.source().clone();
            let piece = self.blocking(|container| contents(container, &source, read, len));
            held.bulk.extend(piece.unwrap_or_else(|_| vec![0xEE; len as usize]));
            self.backups.push(held);
            return;
        }
        self.end_backup(held);
    }

    fn end_backup(&mut self, held: Held) {
        let Held { backup, expected, mut bulk } = held;
        let size = expected.size;
        self.blocking(|container| {
            let shown = Comparer::default().volume(container, backup.instant(), &expected, When::Live, None);
            shown.unwrap_or_else(|why| panic!("the instant does not hold what it should: {why}"));
        });
        if bulk.len() as u64 == size {
            self.apply_original_images(&backup, &mut bulk);
        }
        assert!(backup.ended().is_none() && backup.cost().is_some_and(|cost| cost.cache.is_some()));
        self.blocking(|_| backup.release().unwrap());
        assert_eq!(backup.cost(), None);
        self.lock().coverage.backups_ended += 1;
    }

    /// The live volume has been read through: what was written meanwhile is put right.
    fn apply_original_images(&mut self, backup: &Backup, bulk: &mut [u8]) {
        let pending = match self.blocking(|_| backup.start_end()) {
            Ok(pending) => pending,
            Err(Error::SourceChanged { .. }) => {
                self.lock().coverage.backups_in_vain += 1;
                return;
            }
            Err(error) => panic!("{error}"),
        };
        while !pending.is_sealed() {
            self.small_operation();
        }
        self.blocking(|_| backup.finish_end(pending).unwrap());
        let mut next = Some(0);
        while let Some(start) = next {
            let step = self.blocking(|_| backup.written(start, Listing::Ranges(3)).unwrap());
            for range in step.ranges {
                self.lock().coverage.original_images += 1;
                let place = range.start as usize..(range.start + range.length) as usize;
                if range.b == Content::Data {
                    let read =
                        |container: &_| contents(container, backup.instant(), range.start, range.length).unwrap();
                    bulk[place].copy_from_slice(&self.blocking(read));
                } else {
                    bulk[place].fill(0);
                }
            }
            next = step.next;
        }
        let size = bulk.len() as u64;
        let instant = self.blocking(|container| contents(container, backup.instant(), 0, size).unwrap());
        assert!(*bulk == instant[..], "the bulk and the original images are not what the volume held at the instant");
    }

    /// Forgets all backups: the container is opened again, and holds none.
    pub fn forget_backups(&mut self) {
        self.backups.clear();
        assert_eq!(self.lock().container.instants(), [], "an opening leaves backups of before");
    }

    /// Takes all backups to their ends.
    pub fn end_backups(&mut self) {
        while let Some(held) = self.backups.pop() {
            self.end_backup(held);
        }
    }
}
