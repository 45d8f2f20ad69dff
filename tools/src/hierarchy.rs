//! Hierarchies: primary volumes and the copies made from them.
//!
//! Invariant: every volume is shown exactly once. A volume whose source is gone is a root. Refreshing a source from its
//! own copy makes a circle of origins: it is cut at the oldest copy, which the newer ones have overtaken. Does not: render.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::view::VolumeView;

/// A volume and the copies made from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Node {
    #[serde(flatten)]
    pub(crate) volume: VolumeView,
    pub(crate) copies: Vec<Node>,
}

/// The volume `name`, with the copies made from it.
pub(crate) fn find<'a>(nodes: &'a [Node], name: &str) -> Option<&'a Node> {
    nodes.iter().find_map(|node| if node.volume.name == name { Some(node) } else { find(&node.copies, name) })
}

/// Builds the hierarchies; roots and copies keep the order of `volumes`.
pub(crate) fn hierarchies(volumes: Vec<VolumeView>) -> Vec<Node> {
    let sources = sources(&volumes);
    let mut copies_of: HashMap<Option<u64>, Vec<VolumeView>> = HashMap::new();
    for volume in volumes {
        copies_of.entry(sources.get(&volume.id).copied()).or_default().push(volume);
    }
    take(&mut copies_of, None)
}

fn take(copies_of: &mut HashMap<Option<u64>, Vec<VolumeView>>, source: Option<u64>) -> Vec<Node> {
    let volumes = copies_of.remove(&source).unwrap_or_default();
    volumes.into_iter().map(|volume| Node { copies: take(copies_of, Some(volume.id)), volume }).collect()
}

/// The source of each copy whose source still exists, without circles.
fn sources(volumes: &[VolumeView]) -> HashMap<u64, u64> {
    let known: HashSet<u64> = volumes.iter().map(|volume| volume.id).collect();
    let mut sources = HashMap::new();
    let mut instants = HashMap::new();
    for volume in volumes {
        if let Some(origin) = volume.origin.as_ref().filter(|origin| known.contains(&origin.volume)) {
            sources.insert(volume.id, origin.volume);
            instants.insert(volume.id, origin.instant_unix_ns);
        }
    }
    for volume in volumes {
        let circle = circle_from(volume.id, &sources);
        if let Some(oldest) = circle.iter().min_by_key(|id| (instants.get(id), **id)) {
            sources.remove(oldest);
        }
    }
    sources
}

/// The circle of origins that `start` is part of; empty if it is in none.
fn circle_from(start: u64, sources: &HashMap<u64, u64>) -> Vec<u64> {
    let mut way = vec![start];
    let mut seen = HashSet::from([start]);
    let mut at = start;
    while let Some(next) = sources.get(&at) {
        if *next == start {
            return way;
        }
        if !seen.insert(*next) {
            return Vec::new();
        }
        way.push(*next);
        at = *next;
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tests::volume;

    fn shape(nodes: &[Node]) -> String {
        let texts: Vec<String> = nodes
            .iter()
            .map(|node| match shape(&node.copies).as_str() {
                "" => node.volume.name.clone(),
                copies => format!("{}({copies})", node.volume.name),
            })
            .collect();
        texts.join(" ")
    }

    #[test]
    fn copies_hang_below_their_sources() {
        let volumes = vec![
            volume(1, "golden", None),
            volume(2, "ci-1", Some((1, "golden", 10))),
            volume(3, "ci-2", Some((1, "golden", 20))),
            volume(4, "ci-1-before", Some((2, "ci-1", 30))),
            volume(5, "other", None),
        ];
        assert_eq!(shape(&hierarchies(volumes)), "golden(ci-1(ci-1-before) ci-2) other");
    }

    #[test]
    fn a_copy_of_a_deleted_volume_is_a_root() {
        let volumes = vec![volume(2, "ci-1", Some((1, "golden", 10))), volume(3, "ci-2", Some((2, "ci-1", 20)))];
        assert_eq!(shape(&hierarchies(volumes)), "ci-1(ci-2)");
    }

    #[test]
    fn a_circle_of_refreshes_is_cut_at_the_oldest_copy() {
        let volumes = vec![
            volume(1, "golden", Some((2, "ci-1", 20))),
            volume(2, "ci-1", Some((1, "golden", 10))),
            volume(3, "ci-2", Some((1, "golden", 5))),
        ];
        assert_eq!(shape(&hierarchies(volumes)), "ci-1(golden(ci-2))");
        let volumes = vec![
            volume(1, "a", Some((2, "b", 3))),
            volume(2, "b", Some((3, "c", 2))),
            volume(3, "c", Some((1, "a", 1))),
            volume(4, "d", Some((4, "d", 9))),
        ];
        assert_eq!(shape(&hierarchies(volumes)), "c(b(a)) d");
    }
}
