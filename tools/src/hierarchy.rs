//! Hierarchies: primary volumes and the copies made from them.
//!
//! Invariant: every volume is shown exactly once. A volume whose source is gone is a root. Refreshing a source from its
//! own copy makes a circle of origins: it is cut at the oldest copy, which the newer ones have overtaken. Whoever makes
//! copies of copies decides how deep a hierarchy is: work is in proportion to the volumes, and nothing here recurs deeper
//! than [`MOST_NESTED`]. Does not: render.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::view::VolumeView;

/// Levels of copies that are nested in JSON: programs that read it do not take any number.
pub(crate) const MOST_NESTED: usize = 400;

/// A volume in a list of hierarchies, in which each volume is followed by the copies made from it, and their copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) volume: VolumeView,
    /// Levels below its root.
    pub(crate) depth: usize,
}

/// A volume and the copies made from it, for programs.
#[derive(Debug, Serialize)]
pub(crate) struct Nested<'a> {
    #[serde(flatten)]
    volume: &'a VolumeView,
    copies: Vec<Nested<'a>>,
}

/// Lists the hierarchies; roots and copies keep the order of `volumes`.
pub(crate) fn hierarchies(volumes: Vec<VolumeView>) -> Vec<Node> {
    let sources = sources(&volumes);
    let mut copies_of: HashMap<Option<u64>, Vec<VolumeView>> = HashMap::new();
    for volume in volumes {
        copies_of.entry(sources.get(&volume.id).copied()).or_default().push(volume);
    }
    let mut copies = |source, depth| {
        let volumes = copies_of.remove(&source).unwrap_or_default();
        volumes.into_iter().rev().map(move |volume| Node { volume, depth })
    };
    let mut nodes = Vec::new();
    let mut left: Vec<Node> = copies(None, 0).collect();
    while let Some(node) = left.pop() {
        left.extend(copies(Some(node.volume.id), node.depth + 1));
        nodes.push(node);
    }
    nodes
}

/// The part of the hierarchies from the volume `name` on.
pub(crate) fn part(nodes: Vec<Node>, name: &str) -> Option<Vec<Node>> {
    let mut from_it = nodes.into_iter().skip_while(|node| node.volume.name != name);
    let root = from_it.next()?;
    let depth = root.depth;
    let below = from_it.take_while(|node| node.depth > depth);
    let nodes = std::iter::once(root).chain(below);
    Some(nodes.map(|node| Node { depth: node.depth - depth, ..node }).collect())
}

/// The hierarchies as programs get them.
///
/// # Errors
/// [`Error::TooDeep`] if there are too many levels of copies.
pub(crate) fn nested(nodes: &[Node]) -> Result<Vec<Nested<'_>>> {
    let levels = nodes.iter().map(|node| node.depth).max().unwrap_or(0);
    if levels > MOST_NESTED {
        return Err(Error::TooDeep { levels, most: MOST_NESTED });
    }
    // By depth: those that have been made and whose source is still to come.
    let mut made: Vec<Vec<Nested<'_>>> = (0..levels + 2).map(|_| Vec::new()).collect();
    for Node { volume, depth } in nodes.iter().rev() {
        let mut copies = made.get_mut(depth + 1).map(std::mem::take).unwrap_or_default();
        copies.reverse();
        if let Some(made) = made.get_mut(*depth) {
            made.push(Nested { volume, copies });
        }
    }
    let mut roots = made.swap_remove(0);
    roots.reverse();
    Ok(roots)
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
    // In which walk from copy to source each volume was met first.
    let mut met: HashMap<u64, usize> = HashMap::new();
    for (walk, volume) in volumes.iter().enumerate() {
        let mut next = Some(volume.id);
        while let Some(id) = next.filter(|id| !met.contains_key(id)) {
            met.insert(id, walk);
            next = sources.get(&id).copied();
        }
        // A walk that comes to where it has been goes round.
        if let Some(id) = next.filter(|id| met.get(id) == Some(&walk)) {
            let round = std::iter::successors(Some(id), |at| sources.get(at).copied().filter(|&next| next != id));
            if let Some(oldest) = round.min_by_key(|id| (instants.get(id), *id)) {
                sources.remove(&oldest);
            }
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tests::volume;

    fn shape(nodes: &[Node]) -> String {
        of_nested(&nested(nodes).unwrap())
    }

    fn of_nested(nodes: &[Nested<'_>]) -> String {
        let texts: Vec<String> = nodes
            .iter()
            .map(|node| match of_nested(&node.copies).as_str() {
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
        let nodes = hierarchies(volumes);
        assert_eq!(shape(&nodes), "golden(ci-1(ci-1-before) ci-2) other");
        for (name, expected) in [("golden", "golden(ci-1(ci-1-before) ci-2)"), ("ci-1", "ci-1(ci-1-before)")] {
            assert_eq!(shape(&part(nodes.clone(), name).unwrap()), expected);
        }
        assert_eq!(part(nodes, "nobody"), None);
    }

    /// Copies of copies of copies; and the same in a circle.
    #[test]
    fn any_depth_takes_little_stack_and_time() {
        const LEVELS: u64 = 100_000;
        for root in [None, Some((LEVELS, "last", 5))] {
            let source = |id: u64| if id == 1 { root } else { Some((id - 1, "source", 10)) };
            let volumes = (1..=LEVELS).map(|id| volume(id, &format!("v-{id}"), source(id))).collect();
            let nodes = hierarchies(volumes);
            let depths = nodes.iter().map(|node| node.depth as u64);
            assert!(depths.eq(0..LEVELS) && nodes.iter().map(|node| node.volume.id).eq(1..=LEVELS));
            assert!(matches!(nested(&nodes), Err(Error::TooDeep { levels: 99_999, .. })));
            assert_eq!(part(nodes, "v-99990").unwrap().len(), 11);
        }
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
