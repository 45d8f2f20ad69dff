//! `pitstop tree`: primary volumes and the copies made from them.
//!
//! Invariant: every volume is shown exactly once. A volume whose source is gone is a root. Refreshing a source from its
//! own copy makes a circle of origins: it is cut at the oldest copy, which the newer ones have overtaken.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::render::{self, Output, printable};
use crate::session::{self, Access};
use crate::size::human;
use crate::view::VolumeView;

/// A volume and the copies made from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Node {
    #[serde(flatten)]
    volume: VolumeView,
    copies: Vec<Node>,
}

/// Draws the hierarchies of the container `path`, or the part from `name` on.
pub(crate) fn run(path: &Path, name: Option<&str>, output: Output) -> Result<()> {
    let volumes = session::with(path, Access::Read, |session| session.volumes())?;
    let mut roots = hierarchies(volumes);
    if let Some(name) = name {
        let found = find(&roots, name).cloned();
        roots = vec![found.ok_or_else(|| Error::NoSuchVolume { name: name.to_owned() })?];
    }
    render::show(output, &roots, |roots| draw(roots))
}

fn find<'a>(nodes: &'a [Node], name: &str) -> Option<&'a Node> {
    nodes.iter().find_map(|node| if node.volume.name == name { Some(node) } else { find(&node.copies, name) })
}

/// Builds the hierarchies; roots and copies keep the order of `volumes`.
fn hierarchies(volumes: Vec<VolumeView>) -> Vec<Node> {
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

fn draw(roots: &[Node]) -> String {
    if roots.is_empty() {
        return "no volumes; make one with `pitstop volume create` or `pitstop import`\n".to_owned();
    }
    let mut lines = Vec::new();
    for root in roots {
        lines.push((printable(&root.volume.name), facts(&root.volume)));
        draw_copies(&root.copies, "", &mut lines);
    }
    let width = lines.iter().map(|(left, _)| left.chars().count()).max().unwrap_or(0);
    let pad = |left: &str| " ".repeat(width - left.chars().count() + 2);
    lines.iter().map(|(left, facts)| format!("{left}{}{facts}\n", pad(left))).collect()
}

fn draw_copies(copies: &[Node], indent: &str, lines: &mut Vec<(String, String)>) {
    for (index, copy) in copies.iter().enumerate() {
        let (branch, below) = if index + 1 == copies.len() { ("└── ", "    ") } else { ("├── ", "│   ") };
        lines.push((format!("{indent}{branch}{}", printable(&copy.volume.name)), facts(&copy.volume)));
        draw_copies(&copy.copies, &format!("{indent}{below}"), lines);
    }
}

fn facts(volume: &VolumeView) -> String {
    let (size, own) = (human(volume.size_bytes), human(volume.allocated_bytes));
    let facts = format!("{size}, {own} own, {}", render::state(volume));
    match &volume.origin {
        Some(origin) => {
            format!("{facts}, copy of {} as of {}", printable(&origin.name), render::instant(origin.instant_unix_ns))
        }
        None => facts,
    }
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
        assert_eq!(shape(&hierarchies(volumes.clone())), "golden(ci-1(ci-1-before) ci-2) other");
        let lines = draw(&hierarchies(volumes));
        let left: Vec<&str> = lines.lines().map(|line| line.split(" 20 GiB").next().unwrap().trim_end()).collect();
        assert_eq!(left, ["golden", "├── ci-1", "│   └── ci-1-before", "└── ci-2", "other"]);
    }

    #[test]
    fn a_line_says_size_own_data_state_and_instant() {
        let text = draw(&hierarchies(vec![volume(2, "ci-1", Some((1, "golden", 1_700_000_000_000_000_000)))]));
        assert_eq!(text, "ci-1  20 GiB, 2 MiB own, virtual, copy of golden as of 2023-11-14T22:13:20.000Z\n");
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
