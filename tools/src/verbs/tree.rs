//! `pitstop tree`: primary volumes and the copies made from them, as text or as a picture.

use std::collections::HashMap;
use std::path::Path;

use super::info;
use crate::error::{Error, Result};
use crate::hierarchy::{Node, hierarchies, nested, part};
use crate::image::{Overwrite, Target};
use crate::maps::MapTotals;
use crate::picture::{self, Line, Picture};
use crate::render::{self, Output, printable};
use crate::session::{self, Access, Session};
use crate::size::human;
use crate::view::VolumeView;

/// Levels that are indented further and further; deeper ones say how deep they are.
const MOST_INDENTS: usize = 30;

/// Draws the hierarchies of the container `path`, or the part from `name` on.
pub(crate) fn run(path: &Path, name: Option<&str>, output: Output) -> Result<()> {
    let nodes = session::with(path, Access::Read, |session| nodes(session, name))?;
    match output {
        Output::Human => render::print(&draw(&nodes)),
        Output::Json => render::show(output, &nested(&nodes)?, |_| String::new()),
    }
}

/// As [`run`], as a picture in the new file `file`.
pub(crate) fn run_picture(path: &Path, name: Option<&str>, file: &Path, overwrite: Overwrite) -> Result<()> {
    let (svg, drawn, left_out) = session::with(path, Access::Read, |session| {
        let nodes = nodes(session, name)?;
        let lines = picture::lines(&nodes);
        let mut maps = HashMap::new();
        for line in &lines {
            if let Line::Volume { volume, .. } = line
                && let Some(map) = map(session, volume)?
            {
                maps.insert(volume.id, map);
            }
        }
        let container = session.container()?;
        let layers = session.layers()?.into_iter().map(|layer| (layer.id, layer)).collect();
        let (drawn, left_out) = picture::count(&lines);
        Ok((Picture { label: &container.label, lines: &lines, layers: &layers, maps: &maps }.draw(), drawn, left_out))
    })?;
    let target = Target::create(file, overwrite)?;
    target.write(svg.as_bytes())?;
    target.finish()?;
    let shown = printable(&file.to_string_lossy());
    render::print(&match left_out {
        0 => format!("{shown}: {drawn} volumes\n"),
        _ => format!("{shown}: {drawn} volumes, {left_out} more are left out; name one to draw the part from it on\n"),
    })
}

fn nodes(session: &mut dyn Session, name: Option<&str>) -> Result<Vec<Node>> {
    let nodes = hierarchies(session.volumes()?);
    let Some(name) = name else { return Ok(nodes) };
    part(nodes, name).ok_or_else(|| Error::NoSuchVolume { name: name.to_owned() })
}

/// What a volume consists of; `None` if it has gone or got another name since it was listed, or gets new heads all the
/// time.
fn map(session: &mut dyn Session, volume: &VolumeView) -> Result<Option<MapTotals>> {
    match info::count(session, &volume.name) {
        Ok(totals) => Ok(Some(totals)),
        Err(Error::Moved { .. }) => Ok(None),
        Err(error) => {
            let is_it = |now: &VolumeView| (now.id, &now.name) == (volume.id, &volume.name);
            if session.volumes()?.iter().any(is_it) { Err(error) } else { Ok(None) }
        }
    }
}

fn draw(nodes: &[Node]) -> String {
    if nodes.is_empty() {
        return "no volumes; make one with `pitstop volume create` or `pitstop import`\n".to_owned();
    }
    let last = last_copies(nodes);
    // Whether what stands above the next volume, level by level, is the last copy of its source.
    let mut above: Vec<bool> = Vec::new();
    let mut lines = Vec::with_capacity(nodes.len());
    for (Node { volume, depth }, is_last) in nodes.iter().zip(last) {
        above.truncate(*depth);
        above.push(is_last);
        let shown = (*depth).min(MOST_INDENTS);
        let mut left: String =
            above.iter().take(shown).skip(1).map(|last| if *last { "    " } else { "│   " }).collect();
        left += match (depth, is_last) {
            (0, _) => "",
            (_, true) => "└── ",
            (_, false) => "├── ",
        };
        if *depth > MOST_INDENTS {
            left += &format!("[{depth}] ");
        }
        lines.push((left + &printable(&volume.name), facts(volume)));
    }
    let width = lines.iter().map(|(left, _)| left.chars().count()).max().unwrap_or(0);
    let pad = |left: &str| " ".repeat(width - left.chars().count() + 2);
    lines.iter().map(|(left, facts)| format!("{left}{}{facts}\n", pad(left))).collect()
}

/// Whether each volume is the last copy of its source.
fn last_copies(nodes: &[Node]) -> Vec<bool> {
    // By depth: another copy of the same source comes below.
    let mut follows: Vec<bool> = Vec::new();
    let mut last = Vec::with_capacity(nodes.len());
    for node in nodes.iter().rev() {
        last.push(follows.get(node.depth) != Some(&true));
        follows.resize(node.depth, false);
        follows.push(true);
    }
    last.reverse();
    last
}

fn facts(volume: &VolumeView) -> String {
    let (size, own) = (human(volume.size_bytes), human(volume.allocated_bytes));
    let facts = format!("{size}, {own} own, {}", render::state_and_split(volume));
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

    #[test]
    fn copies_are_drawn_below_their_sources() {
        let volumes = vec![
            volume(1, "golden", None),
            volume(2, "ci-1", Some((1, "golden", 10))),
            volume(3, "ci-2", Some((1, "golden", 20))),
            volume(4, "ci-1-before", Some((2, "ci-1", 30))),
            volume(5, "other", None),
        ];
        let lines = draw(&hierarchies(volumes));
        let left: Vec<&str> = lines.lines().map(|line| line.split(" 20 GiB").next().unwrap().trim_end()).collect();
        assert_eq!(left, ["golden", "├── ci-1", "│   └── ci-1-before", "└── ci-2", "other"]);
    }

    #[test]
    fn deep_copies_say_how_deep_they_are() {
        let source = |id: u64| (id > 1).then(|| (id - 1, "source", 10));
        let text = draw(&hierarchies((1..=100_000).map(|id| volume(id, &format!("v-{id}"), source(id))).collect()));
        let lines: Vec<&str> = text.lines().collect();
        let ends = [(30, "└── v-31 "), (31, "└── [31] v-32 "), (99_999, "└── [99999] v-100000 ")];
        for (index, left) in ends {
            assert!(lines[index].starts_with(&(" ".repeat(4 * 29) + left)), "{}", lines[index]);
        }
    }

    #[test]
    fn a_line_says_size_own_data_state_and_instant() {
        let text = draw(&hierarchies(vec![volume(2, "ci-1", Some((1, "golden", 1_700_000_000_000_000_000)))]));
        assert_eq!(text, "ci-1  20 GiB, 2 MiB own, virtual, copy of golden as of 2023-11-14T22:13:20.000Z\n");
    }
}
