//! `pitstop tree`: primary volumes and the copies made from them, as text or as a picture.

use std::collections::HashMap;
use std::path::Path;

use super::info;
use crate::error::{Error, Result};
use crate::hierarchy::{Node, find, hierarchies};
use crate::image::{Overwrite, Target};
use crate::maps::MapTotals;
use crate::picture::{self, Line, Picture};
use crate::render::{self, Output, printable};
use crate::session::{self, Access, Session};
use crate::size::human;
use crate::view::VolumeView;

/// Draws the hierarchies of the container `path`, or the part from `name` on.
pub(crate) fn run(path: &Path, name: Option<&str>, output: Output) -> Result<()> {
    let roots = session::with(path, Access::Read, |session| roots(session, name))?;
    render::show(output, &roots, |roots| draw(roots))
}

/// As [`run`], as a picture in the new file `file`.
pub(crate) fn run_picture(path: &Path, name: Option<&str>, file: &Path, overwrite: Overwrite) -> Result<()> {
    let (svg, drawn, left_out) = session::with(path, Access::Read, |session| {
        let roots = roots(session, name)?;
        let lines = picture::lines(&roots);
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

fn roots(session: &mut dyn Session, name: Option<&str>) -> Result<Vec<Node>> {
    let roots = hierarchies(session.volumes()?);
    let Some(name) = name else { return Ok(roots) };
    let found = find(&roots, name).cloned();
    Ok(vec![found.ok_or_else(|| Error::NoSuchVolume { name: name.to_owned() })?])
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
    fn a_line_says_size_own_data_state_and_instant() {
        let text = draw(&hierarchies(vec![volume(2, "ci-1", Some((1, "golden", 1_700_000_000_000_000_000)))]));
        assert_eq!(text, "ci-1  20 GiB, 2 MiB own, virtual, copy of golden as of 2023-11-14T22:13:20.000Z\n");
    }
}
