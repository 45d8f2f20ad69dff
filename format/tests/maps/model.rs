//! Random writes, zeroes, snapshots, refreshes, deletions, merges and restarts against a plain model.
//!
//! The model keeps for each layer that the container names which blocks were written into it, and for each volume what
//! it shows and which blocks were written since its last point-in-time event.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use pitstop_format::{ChangedIn, Container, Content, LayerId, LayerInfo, Maintained, SLAB_LEN, VolumeId};

use crate::common::Rng;
use crate::support::*;

/// Blocks of a volume: two chunks and a part, the last block cut short.
const SIZE: u64 = 2 * SLAB_LEN + 5 * BLOCK + 512;
const BLOCKS: u64 = SIZE.div_ceil(BLOCK);
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// The value of a block that was written; `None`: zeros without data.
type Block = Option<u8>;

#[derive(Default)]
struct Model {
    /// What was written into each layer.
    layers: Layers,
    /// Blocks written since the volume's last point-in-time event.
    modified: BTreeMap<&'static str, BTreeSet<u64>>,
    merges: u64,
}

type Layers = BTreeMap<LayerId, BTreeMap<u64, Block>>;

/// Where a chain shows a block from, and what.
fn seen(layers: &Layers, chain: &[LayerInfo], block: u64) -> (Option<LayerId>, Block) {
    let found = chain.iter().find_map(|layer| Some((Some(layer.id), *layers.get(&layer.id)?.get(&block)?)));
    found.unwrap_or((None, None))
}

impl Model {
    fn chain(container: &Container, name: &str) -> Vec<LayerInfo> {
        let layers = container.layers();
        let mut next = Some(find(container, name).head);
        let mut chain = Vec::new();
        while let Some(id) = next {
            let layer = layers.iter().find(|layer| layer.id == id).unwrap();
            next = layer.parent;
            chain.push(layer.clone());
        }
        chain
    }

    fn write(&mut self, container: &Container, name: &'static str, blocks: Range<u64>, value: Block) {
        if value.is_none() && blocks.end == BLOCKS {
            // The last block is covered in part: zeros are written to it, unless it reads as zeros.
            let last = BLOCKS - 1;
            if seen(&self.layers, &Self::chain(container, name), last).1.is_some() {
                self.write(container, name, last..BLOCKS, Some(0));
            }
            return self.write(container, name, blocks.start..last, None);
        }
        let chain = Self::chain(container, name);
        let (head, modified) = (chain[0].id, self.modified.get_mut(name).unwrap());
        let per_chunk = SLAB_LEN / BLOCK;
        for chunk in blocks.start / per_chunk..blocks.end.div_ceil(per_chunk) {
            let piece = blocks.start.max(chunk * per_chunk)..blocks.end.min((chunk + 1) * per_chunk);
            // What reads as zeros already is not zeroed once more (VOL-5).
            if value.is_none() && piece.clone().all(|block| seen(&self.layers, &chain, block).1.is_none()) {
                continue;
            }
            self.layers.entry(head).or_default().extend(piece.clone().map(|block| (block, value)));
            modified.extend(piece);
        }
    }

    /// All background work, so that no merge is half done; what one folds into its child is the child's.
    fn maintain(&mut self, container: &Container) {
        loop {
            let before = container.layers();
            let worked = container.maintain().unwrap();
            let after = container.layers();
            let kind = |layers: &[LayerInfo], id| layers.iter().find(|layer| layer.id == id).map(|layer| layer.kind);
            for child in after.iter().filter(|layer| layer.kind != "doomed") {
                let parent = before.iter().find(|layer| layer.id == child.id).and_then(|layer| layer.parent);
                let Some(parent) = parent.filter(|_| child.parent != parent) else { continue };
                assert_eq!(kind(&before, parent), Some("frozen"));
                self.merges += 1;
                for (block, value) in self.layers.remove(&parent).unwrap_or_default() {
                    self.layers.entry(child.id).or_default().entry(block).or_insert(value);
                }
            }
            if worked == Maintained::Idle {
                return;
            }
        }
    }

    fn check(&self, container: &Container, name: &'static str) {
        let chain = Self::chain(container, name);
        let id = find(container, name).id;
        let mut maps = Vec::new();
        for range in map(container, name) {
            let blocks = range.start / BLOCK..(range.start + range.length).div_ceil(BLOCK);
            maps.extend(blocks.map(|_| (range.valid, range.modified, range.content)));
        }
        assert_eq!(maps.len() as u64, BLOCKS);
        let own = |layer: LayerId| Self::owner(&chain, layer) == Some(id);
        for (block, shown) in (0..).zip(maps) {
            let (layer, value) = seen(&self.layers, &chain, block);
            let content = if value.is_some() { Content::Data } else { Content::Zero };
            let modified = self.modified[name].contains(&block);
            assert_eq!(shown, (layer.is_none_or(own), modified, content), "{name}, block {block}, in {layer:?}");
        }
    }

    /// Every byte that differs is listed, and of the blocks that do not differ those alone that may, by the layers.
    fn check_diff(&self, container: &Container, a: &str, b: &str) {
        let chains = [a, b].map(|name| Self::chain(container, name));
        let has = |chain: &[LayerInfo], layer| chain.iter().any(|found| Some(found.id) == layer);
        let shared = |layer: Option<LayerId>| has(&chains[0], layer) && has(&chains[1], layer);
        let mut listed = BTreeMap::new();
        for range in diff(container, a, b) {
            let blocks = range.start / BLOCK..(range.start + range.length).div_ceil(BLOCK);
            listed.extend(blocks.map(|block| (block, (range.changed_in, range.a, range.b))));
        }
        let content = |value: Block| if value.is_some() { Content::Data } else { Content::Zero };
        for block in 0..BLOCKS {
            let [(layer_a, of_a), (layer_b, of_b)] =
                [0, 1].map(|index: usize| seen(&self.layers, &chains[index], block));
            let found = listed.get(&block);
            assert!(found.is_some() || of_a.unwrap_or(0) == of_b.unwrap_or(0), "{a}, {b}: block {block} is not listed");
            let expected = match (layer_a.is_some() && !shared(layer_a), layer_b.is_some() && !shared(layer_b)) {
                _ if of_a.is_none() && of_b.is_none() => None,
                (false, false) => None,
                (true, true) => Some(ChangedIn::Both),
                (true, false) => Some(ChangedIn::A),
                (false, true) => Some(ChangedIn::B),
            };
            let expected = expected.map(|changed_in| (changed_in, content(of_a), content(of_b)));
            assert_eq!(found.copied(), expected, "{a}, {b}: block {block} in {layer_a:?} and {layer_b:?}");
        }
    }

    fn owner(chain: &[LayerInfo], layer: LayerId) -> Option<VolumeId> {
        chain.iter().find(|found| found.id == layer).and_then(|found| found.owner)
    }
}

fn value_of(container: &Container, name: &str, block: u64) -> u8 {
    let mut bytes = vec![0; (SIZE - block * BLOCK).min(BLOCK) as usize];
    io(container, name).read_at(&mut bytes, block * BLOCK).unwrap();
    bytes[0]
}

/// A step of the work; returns the container, which may have been opened again.
fn step(model: &mut Model, container: Container, rng: &mut Rng, disk: &std::sync::Arc<Watched>) -> Container {
    let names: Vec<&'static str> = NAMES.into_iter().filter(|name| container.volume(name).is_ok()).collect();
    let free = NAMES.into_iter().find(|name| !names.contains(name));
    let pick = |rng: &mut Rng| names[rng.below(names.len() as u64) as usize];
    match (rng.below(20), free) {
        (0..=9, _) => {
            let (name, first) = (pick(rng), rng.below(BLOCKS));
            let end = BLOCKS.min(first + 1 + rng.below(9));
            let bytes = first * BLOCK..SIZE.min(end * BLOCK);
            let value = rng.chance(70).then(|| rng.below(255) as u8 + 1);
            match value {
                Some(value) => fill(&container, name, bytes, value),
                None => io(&container, name).write_zeroes(bytes).unwrap(),
            }
            model.write(&container, name, first..end, value);
        }
        (10..=12, Some(new)) => {
            let source = pick(rng);
            container.snapshot(source, new).unwrap();
            model.modified.extend([source, new].map(|name| (name, BTreeSet::new())));
        }
        (13, Some(new)) => {
            container.create_volume(new, SIZE).unwrap();
            model.modified.insert(new, BTreeSet::new());
        }
        (14..=15, _) if names.len() > 1 => {
            let (target, source) = (pick(rng), pick(rng));
            if target != source {
                container.refresh(target, source).unwrap();
                model.modified.extend([source, target].map(|name| (name, BTreeSet::new())));
            }
        }
        (16, _) if names.len() > 2 => container.delete_volume(pick(rng)).unwrap(),
        (17..=18, _) => model.maintain(&container),
        _ => {
            container.close().unwrap();
            return open(disk.clone());
        }
    }
    container
}

// req: R9, R16; rules: MAP-30, MAP-34, MAP-35, LAY-4, LAY-7
#[test]
fn random_work_leaves_the_maps_and_differences_that_a_model_has() {
    let mut merges = 0;
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let (disk, container) = new_container();
        container.close().unwrap();
        let disk = Watched::on(disk);
        let mut container = open(disk.clone());
        let mut model = Model::default();
        for name in ["a", "b"] {
            container.create_volume(name, SIZE).unwrap();
            model.modified.insert(name, BTreeSet::new());
        }
        for _ in 0..100 {
            container = step(&mut model, container, &mut rng, &disk);
            let names: Vec<&str> = NAMES.into_iter().filter(|name| container.volume(name).is_ok()).collect();
            for (name, other) in names.iter().zip(names.iter().cycle().skip(1)) {
                model.check(&container, name);
                model.check_diff(&container, name, other);
            }
        }
        for name in NAMES.into_iter().filter(|name| container.volume(name).is_ok()) {
            let chain = Model::chain(&container, name);
            for block in 0..BLOCKS {
                let expected = seen(&model.layers, &chain, block).1.unwrap_or(0);
                assert_eq!(value_of(&container, name, block), expected, "seed {seed}, {name}, block {block}");
            }
        }
        merges += model.merges;
    }
    assert!(merges > 20, "{merges} merges");
}
