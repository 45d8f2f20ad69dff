//! Work that needs several commands to come to something: copies that are hydrated and made again, and histories.

use pitstop_format::{HydrateStep, LayerId, VolumeState};

use super::{BUDGETS, Work, copy_of};
use crate::world::World;

/// Copies that a rotation leaves.
const KEEP: usize = 1;
/// Steps after which a hydration that nothing hinders has ended.
const STEPS_MAX: u64 = 200;

/// Whether a refresh of `target` from `source` puts it back to a copy of its own (SNP-27).
pub fn is_restore(world: &World, target: &str, source: &str) -> bool {
    let volumes = world.container.volumes();
    let find = |name: &str| volumes.iter().find(|volume| volume.name == name);
    let origin = find(source).and_then(|source| source.origin.as_ref());
    find(target).is_some_and(|target| origin.is_some_and(|origin| origin.volume == target.id))
}

impl Work {
    /// A copy that is hydrated, then made again in either direction when both have been written, and hydrated again: the
    /// second hydration adopts what is still the same (REL-7). It may be left in its middle.
    pub(super) fn differential(&mut self, source: &str) {
        if self.lock().model[source].undefined {
            return;
        }
        self.write(source, 3);
        self.copy(&[source], None);
        let copy = self.lock().newest_name();
        if !self.hydrate_some(&copy, STEPS_MAX) {
            return;
        }
        let again = 1 + self.lock().rng.below(2);
        for _ in 0..again {
            self.write(source, 1);
            self.write(&copy, 1);
            let (back, steps) = {
                let mut world = self.lock();
                (world.rng.chance(40), [STEPS_MAX, 1 + world.rng.below(12)][world.rng.below(2) as usize])
            };
            let (from, to) = if back { (copy.as_str(), source) } else { (source, copy.as_str()) };
            self.copy(&[from], Some(to));
            self.lock().coverage.copies_again += 1;
            if !self.hydrate_some(to, steps) {
                return;
            }
        }
    }

    /// Writes of a volume, and their ends.
    fn write(&self, name: &str, count: usize) {
        self.finish_all();
        let mut world = self.lock();
        (0..count).for_each(|_| world.begin_request(name, None));
        drop(world);
        self.finish_all();
    }

    /// Hydrates a volume for some steps, while others go on; true if it is real then.
    fn hydrate_some(&self, name: &str, steps: u64) -> bool {
        let state = || self.lock().container.volumes().into_iter().find(|found| found.name == name).unwrap().state;
        // Requests of before hold up an adoption.
        self.finish_all();
        if state() == VolumeState::Virtual {
            self.hydrate(name);
        }
        for _ in 0..steps {
            if state() != VolumeState::Hydrating {
                break;
            }
            let (layer, budget, aside): (LayerId, _, _) = {
                let mut world = self.lock();
                let layer = copy_of(&world.container, name);
                (layer, BUDGETS[world.rng.below(3) as usize], world.rng.chance(25))
            };
            match self.step_hydration(layer, budget) {
                HydrateStep::Blocked(_) => self.finish_all(),
                HydrateStep::Copied(_) | HydrateStep::Ended(_) => {}
            }
            self.maintain(1);
            if aside {
                self.small_operation();
            }
        }
        state() == VolumeState::Real
    }

    /// Two copies more in a volume's history, one after the other; those of it that are too old go (SNP-24).
    pub(super) fn rotate(&mut self, name: &str) {
        for _ in 0..2 {
            if self.lock().model[name].undefined {
                return;
            }
            self.rotate_once(name);
        }
    }

    fn rotate_once(&mut self, name: &str) {
        self.copy(&[name], None);
        let outdated = {
            let mut world = self.lock();
            let new = world.newest_name();
            world.history.push(new);
            let volumes = world.container.volumes();
            let source = volumes.iter().find(|volume| volume.name == name).unwrap().id;
            let of_source = |copy: &&String| {
                let copy = volumes.iter().find(|volume| volume.name == **copy);
                copy.and_then(|copy| copy.origin.as_ref()).is_some_and(|origin| origin.volume == source)
            };
            let free = |copy: &&String| !world.is_in_view(copy);
            let mut copies: Vec<String> = world.history.iter().filter(of_source).filter(free).cloned().collect();
            copies.truncate(copies.len().saturating_sub(KEEP));
            world.coverage.rotations += u64::from(!copies.is_empty());
            copies
        };
        outdated.iter().for_each(|copy| self.delete(copy));
    }
}
