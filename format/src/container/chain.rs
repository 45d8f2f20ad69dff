//! The layers that a volume reads through, and whose they are (LAY-7).
//!
//! Invariant: a chain that may be long is looked up a few layers at a time ([`ChainWalk`]), so that nobody waits for the
//! engine lock; what commands and merges do meanwhile is the caller's to heed. Does not: look at entries.

use std::sync::Arc;

use super::state::State;
use super::{Container, Shared};
use crate::layer::Layer;
use crate::units::{LayerId, VolumeId};

/// Layers of a chain that are looked up in the catalog per hold of the engine lock.
pub(super) const LAYERS_PER_HOLD: usize = 256;

/// A look at the layers of a chain, head first.
pub(super) struct ChainWalk {
    volume: VolumeId,
    next: Option<Arc<Layer>>,
    /// Each layer so far has at most one child.
    alone: bool,
}

/// What a walk down a volume's chain has found of what is its own.
pub(super) struct Own {
    /// All that it reads is.
    pub(super) all: bool,
    /// The lowest layer down to which all are.
    pub(super) lowest: LayerId,
    /// Those of them that have no owner, but the head.
    pub(super) orphans: Vec<LayerId>,
}

impl ChainWalk {
    pub(super) fn new(volume: VolumeId, head: Arc<Layer>) -> Self {
        Self { volume, next: Some(head), alone: true }
    }

    /// Whether there are layers left to look at.
    pub(super) fn is_left(&self) -> bool {
        self.next.is_some()
    }

    /// Looks up some of the layers, and tells `visit` of each whether it is the volume's own, until that answers false.
    pub(super) fn go_on(&mut self, state: &State, mut visit: impl FnMut(&Layer, bool) -> bool) {
        for _ in 0..LAYERS_PER_HOLD {
            let Some(layer) = self.next.take() else { return };
            if !visit(&layer, state.is_own(self.volume, layer.id, &mut self.alone)) {
                return;
            }
            self.next = layer.parent();
        }
    }
}

impl Shared {
    /// Tells `visit` of a layer and all below it, some per hold of the engine lock (MAP-32); returns how many holds that took.
    pub(super) fn visit_layers(&self, first: Option<Arc<Layer>>, mut visit: impl FnMut(&State, &Layer)) -> usize {
        let (mut next, mut holds) = (first, 0);
        while next.is_some() {
            let state = self.lock();
            holds += 1;
            for _ in 0..LAYERS_PER_HOLD {
                let Some(layer) = next.take() else { break };
                visit(&state, &layer);
                next = layer.parent();
            }
        }
        holds
    }
}

impl State {
    /// The layers that `volume` reads through, head first, and whether each is its own (LAY-7).
    pub(super) fn chain(&self, volume: VolumeId) -> Vec<(LayerId, bool)> {
        let mut chain = Vec::new();
        let mut next = Some(self.volume_record(volume).head);
        let mut alone = true;
        while let Some(id) = next {
            chain.push((id, self.is_own(volume, id, &mut alone)));
            next = self.layer_record(id).parent;
        }
        chain
    }

    /// Layers and volumes that use a layer: the volume of a head that another's stands on counts, too.
    pub(super) fn use_count(&self, layer: LayerId) -> usize {
        self.child_count(layer) + usize::from(self.heads.contains_key(&layer))
    }

    /// Whether a layer of `volume`'s chain is its own (LAY-7); `alone` says whether each layer above it has at most one
    /// user, and then whether it has, too.
    fn is_own(&self, volume: VolumeId, layer: LayerId, alone: &mut bool) -> bool {
        *alone &= self.use_count(layer) <= 1;
        if let Some(&head_of) = self.heads.get(&layer) {
            return head_of == volume;
        }
        // A layer that a merge has taken out of the chain meanwhile may be gone.
        let owner = self.layer_slots.contains_key(&layer).then(|| self.layer_record(layer).owner).flatten();
        owner.map_or(*alone, |owner| owner == volume)
    }

    /// Whether a layer is a frozen one that has no owner.
    fn is_orphan(&self, layer: LayerId) -> bool {
        self.is_frozen_kind(layer) && self.layer_record(layer).owner.is_none()
    }

    /// Makes the volume the owner of those of these layers that still have none.
    pub(super) fn adopt(&mut self, volume: VolumeId, layers: &[LayerId]) {
        for &layer in layers {
            if self.is_orphan(layer) {
                self.update_layer(layer, |record| record.owner = Some(volume));
            }
        }
    }
}

impl Container {
    /// What of a volume's chain is its own; nothing if the volume is gone. While `control` is held nobody comes to share a
    /// layer, so that what is found to be its own stays so.
    pub(super) fn own_layers(&self, volume: VolumeId) -> Option<Own> {
        let head = self.shared.lock().volumes.get(&volume)?.head();
        let mut own = Own { all: true, lowest: head.id, orphans: Vec::new() };
        let mut is_down_to_here = true;
        let mut walk = ChainWalk::new(volume, head);
        while walk.is_left() {
            let state = self.shared.lock();
            walk.go_on(&state, |layer, is_own| {
                is_down_to_here &= is_own;
                own.all = is_own || state.slabs_of(layer.id) == 0;
                if is_down_to_here {
                    own.lowest = layer.id;
                    own.orphans.extend(Some(layer.id).filter(|&layer| state.is_orphan(layer)));
                }
                own.all
            });
        }
        Some(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{CreateOptions, OpenMode};
    use crate::io::VolumeIo;
    use crate::testing::SimDisk;

    // rule: MAP-32 — of a long chain, few layers are looked up under one hold of the engine lock; all are in the end.
    #[test]
    fn a_long_chain_is_looked_up_in_pieces() {
        let disk = SimDisk::new();
        Container::create(disk.clone(), &CreateOptions::default()).unwrap();
        let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
        container.create_volume("v", 1 << 20).unwrap();
        for n in 0..600 {
            VolumeIo::new(&container, container.volume("v").unwrap()).write_at(&[1; 4096], 0).unwrap();
            container.snapshot("v", &format!("kept-{n}")).unwrap();
        }
        let volume = container.volume("v").unwrap().id();
        let head = container.shared.lock().volumes[&volume].head();
        let mut walk = ChainWalk::new(volume, head);
        let mut own = 0;
        for looked_up in [256, 512, 601] {
            walk.go_on(&container.shared.lock(), |_, is_own| {
                own += usize::from(is_own);
                true
            });
            assert_eq!((own, walk.is_left()), (looked_up, looked_up < 601));
        }
        let head = container.shared.lock().volumes[&volume].head();
        let mut visited = 0;
        let holds = container.shared.visit_layers(Some(head), |_, _| visited += 1);
        assert_eq!((holds, visited), (3, 601));
        let found = container.own_layers(volume).unwrap();
        assert_eq!((found.all, found.orphans.len()), (true, 0));
        assert_eq!(Some(found.lowest), container.shared.lock().chain(volume).last().map(|(layer, _)| *layer));
    }
}
