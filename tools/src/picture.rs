//! The picture of `pitstop tree --svg`: hierarchies, what each volume consists of, and the layers that it stands on.
//!
//! Invariant: the same container gives the same bytes; the picture has at most [`MOST_VOLUMES`] volumes, the nearest to
//! the roots first, and tells how many it leaves out, and where. Whatever text comes from a container is escaped
//! ([`escaped`]) and cut to its place. Does not: fetch anything, or know fonts: names are in the viewer's fixed-width one.

use std::collections::{HashMap, HashSet};

use crate::hierarchy::Node;
use crate::maps::MapTotals;
use crate::render::{self, printable};
use crate::size::human;
use crate::view::{LayerView, StateView, VolumeView};

/// Volumes in a picture: more than these nobody looks through.
const MOST_VOLUMES: usize = 250;
/// Layers in a row; below them it only says how many more there are.
const MOST_LAYERS: usize = 10;
/// Levels that are indented further and further.
const MOST_INDENTS: usize = 5;

// Lengths are in pixels of an unscaled picture.
const WIDTH: usize = 1280;
const TOP: usize = 132;
const ROW: usize = 46;
const GAP: usize = 12;
const NAME_X: usize = 46;
const INDENT: usize = 20;
const BAR_X: usize = 470;
const BAR_LEN: usize = 260;
const STATE_X: usize = 748;
const LAYERS_X: usize = 920;
const LAYER_STEP: usize = 30;
/// A character of a name, and of the line below it, takes no more.
const NAME_CHAR: usize = 9;
const SMALL_CHAR: usize = 6;

/// What the picture says once: how its colours and marks are to be read.
const STYLE: &str = r##"<defs>
<pattern id="others" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="8" height="8" fill="#fde6c4"/><rect width="3" height="8" fill="#e08a1e"/></pattern>
<style>text{font-family:sans-serif;font-size:11px;fill:#4a5560}.h{font-size:20px;fill:#17202a}.n{font-family:monospace;font-size:14px;font-weight:bold;fill:#17202a}.c{font-size:12px;fill:#17202a}.k{font-family:monospace;text-anchor:middle}.rail{fill:none;stroke:#9aa5b1;stroke-width:1.5}.box{fill:#f4f6f8;stroke:#dde2e7}.edge{fill:none;stroke:#59636e}.own{fill:#2f6fb2}.zero{fill:#ffffff}.new{fill:#2c8a4b}</style>
</defs>
"##;

/// A row of the picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// A volume, so many levels below its root.
    Volume { volume: &'a VolumeView, depth: usize },
    /// So many volumes that are left out.
    LeftOut { volumes: usize, depth: usize },
}

/// The rows of a picture: whole levels as long as there is room, each volume below its source.
pub(crate) fn lines(nodes: &[Node]) -> Vec<Line<'_>> {
    let mut nearest: Vec<usize> = (0..nodes.len()).collect();
    nearest.sort_by_key(|&index| nodes.get(index).map(|node| node.depth));
    let drawn: HashSet<usize> = nearest.into_iter().take(MOST_VOLUMES).collect();
    let mut lines = Vec::new();
    for (index, Node { volume, depth }) in nodes.iter().enumerate() {
        match lines.last_mut() {
            _ if drawn.contains(&index) => lines.push(Line::Volume { volume, depth: *depth }),
            // What stands below a volume that is left out is, too.
            Some(Line::LeftOut { volumes, depth: of }) if *of <= *depth => *volumes += 1,
            _ => lines.push(Line::LeftOut { volumes: 1, depth: *depth }),
        }
    }
    lines
}

/// Volumes that are drawn, and that are left out.
pub(crate) fn count(lines: &[Line<'_>]) -> (usize, usize) {
    let one = |(drawn, left_out), line: &Line<'_>| match line {
        Line::Volume { .. } => (drawn + 1, left_out),
        Line::LeftOut { volumes, .. } => (drawn, left_out + volumes),
    };
    lines.iter().fold((0, 0), one)
}

/// What is drawn.
#[derive(Debug)]
pub(crate) struct Picture<'a> {
    /// The container's label.
    pub(crate) label: &'a str,
    pub(crate) lines: &'a [Line<'a>],
    /// All layers, by id.
    pub(crate) layers: &'a HashMap<u64, LayerView>,
    /// Of each volume what it consists of, by id; nothing of those that have changed meanwhile.
    pub(crate) maps: &'a HashMap<u64, MapTotals>,
}

impl Picture<'_> {
    /// The picture as SVG.
    pub(crate) fn draw(&self) -> String {
        let mut rows = Svg::default();
        let mut boxes = Svg::default();
        let (mut y, mut box_y) = (TOP, TOP);
        // Where the source of what is drawn next stands, level by level.
        let mut sources: Vec<usize> = Vec::new();
        for (index, line) in self.lines.iter().enumerate() {
            let (Line::Volume { depth, .. } | Line::LeftOut { depth, .. }) = line;
            if *depth == 0 && index > 0 {
                boxes.hierarchy(box_y, y);
                y += GAP;
                box_y = y;
            }
            sources.truncate(*depth);
            let x = NAME_X + (*depth).min(MOST_INDENTS) * INDENT;
            if let Some(from) = sources.last() {
                rows.rail(NAME_X + (depth - 1).min(MOST_INDENTS) * INDENT, *from, x, y + 16);
            }
            match line {
                Line::Volume { volume, depth } => {
                    self.volume(&mut rows, volume, *depth, (x, y));
                    sources.push(y + 16);
                }
                Line::LeftOut { volumes, .. } => {
                    let more = if *volumes == 1 { "1 more volume" } else { &format!("{volumes} more volumes") };
                    rows.text("c", x + 12, y + 20, &format!("… and {more}, left out"));
                }
            }
            y += ROW;
        }
        if self.lines.is_empty() {
            rows.text("c", NAME_X, y + 20, "no volumes; make one with `pitstop volume create` or `pitstop import`");
            y += ROW;
        }
        boxes.hierarchy(box_y, y);
        let height = y + 20;
        let head = self.head();
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} \
             {height}\" role=\"img\">\n<title>Volumes, and the copies made from them</title>\n{STYLE}\
             <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n{}{}{}</svg>\n",
            head.0, boxes.0, rows.0
        )
    }

    /// Title, legend, and what the columns are.
    fn head(&self) -> Svg {
        let mut svg = Svg::default();
        let title = match self.label {
            "" => "Volumes, and the copies made from them".to_owned(),
            label => format!("{}: volumes, and the copies made from them", cut(label, 60)),
        };
        svg.text("h", 24, 34, &title);
        let (drawn, left_out) = count(self.lines);
        let layers = self.layers.len();
        let left_out = if left_out > 0 { format!(", {left_out} more left out") } else { String::new() };
        svg.text("", 24, 54, &format!("{drawn} volumes drawn{left_out}; the container has {layers} layers"));
        let mut x = 24;
        for (fill, height, meaning) in [
            ("class=\"own\"", 12, "data of its own"),
            ("fill=\"url(#others)\"", 12, "virtual: still in other volumes' layers"),
            ("class=\"zero\"", 12, "zeros, which take no space"),
            ("class=\"new\"", 4, "written since it was last copied or refreshed"),
        ] {
            svg.rect(fill, x, 78 - height, 26, height, "");
            if height > 4 {
                svg.rect("class=\"edge\"", x, 78 - height, 26, height, "");
            }
            svg.text("c", x + 34, 77, meaning);
            x += 34 + meaning.chars().count() * 7 + 26;
        }
        for (x, name) in [
            (24, "VOLUME, below the one it is a copy of"),
            (BAR_X, "WHAT IT CONSISTS OF (shares of its size)"),
            (STATE_X, "STATE"),
            (LAYERS_X, "LAYERS, its head first, coloured as data"),
        ] {
            svg.text("", x, TOP - 14, name);
        }
        svg
    }

    fn volume(&self, svg: &mut Svg, volume: &VolumeView, depth: usize, (x, y): (usize, usize)) {
        let dot = match volume.state {
            StateView::Real => "class=\"own\"",
            StateView::Virtual | StateView::Hydrating => "fill=\"url(#others)\"",
        };
        svg.line(&format!("<circle {dot} stroke=\"#59636e\" cx=\"{x}\" cy=\"{}\" r=\"6\"/>", y + 16));
        let x = x + 14;
        let room = BAR_X - 16 - x;
        let level = if depth > MOST_INDENTS { format!("[{depth}] ") } else { String::new() };
        svg.text("n", x, y + 21, &(level.clone() + &cut(&volume.name, room / NAME_CHAR - level.len())));
        let size = human(volume.size_bytes);
        let facts = match &volume.origin {
            Some(origin) => {
                let as_of = render::instant(origin.instant_unix_ns);
                let rest = room / SMALL_CHAR - (size.len() + as_of.len() + 16).min(room / SMALL_CHAR);
                format!("{size}, copy of {}, {as_of}", cut(&origin.name, rest.max(6)))
            }
            None => size,
        };
        svg.text("", x, y + 37, &facts);
        svg.text("c", STATE_X, y + 21, &self.state(volume));
        svg.text("", STATE_X, y + 37, &format!("{} of its own", human(volume.allocated_bytes)));
        if let Some(map) = self.maps.get(&volume.id) {
            svg.shares(map, y);
        } else {
            svg.text("", BAR_X, y + 21, "changed while this was drawn");
        }
        self.stack(svg, volume, y);
    }

    fn state(&self, volume: &VolumeView) -> String {
        let state = render::state(volume);
        match (volume.state, self.maps.get(&volume.id)) {
            (StateView::Virtual, Some(map)) => {
                format!("{state}, {} others'", percent(map.counts.others_bytes, map.size_bytes))
            }
            _ => state,
        }
    }

    /// The layers from the head down, in the colours of whose they are (CTL-94).
    fn stack(&self, svg: &mut Svg, volume: &VolumeView, y: usize) {
        let mut next = Some(volume.head);
        let mut drawn = 0;
        while let Some(layer) = next.and_then(|id| self.layers.get(&id)).filter(|_| drawn < MOST_LAYERS) {
            let own = layer.owner == Some(volume.id);
            let x = LAYERS_X + drawn * LAYER_STEP;
            let (fill, ink) = match (layer.allocated_bytes, own) {
                (0, _) => ("class=\"zero\"", "#4a5560"),
                (_, true) => ("class=\"own\"", "#ffffff"),
                (_, false) => ("fill=\"url(#others)\"", "#17202a"),
            };
            let whose = if own { "its own" } else { "others'" };
            let tip =
                format!("layer {}: {}, {whose}, {}", layer.id, cut(&layer.kind, 20), human(layer.allocated_bytes));
            svg.rect(fill, x, y + 8, 26, 18, &tip);
            svg.rect("class=\"edge\"", x, y + 8, 26, 18, "");
            let id = layer.id.to_string();
            let id_size = if id.len() <= 3 { 12 } else { 7 };
            let id = if id.len() <= 5 { id } else { format!("…{}", &id[id.len() - 4..]) };
            if !own && layer.allocated_bytes > 0 {
                // The hatching would hide the number.
                svg.rect("fill=\"#ffffff\" opacity=\"0.75\"", x + 3, y + 11, 20, 12, "");
            }
            svg.line(&format!(
                "<text class=\"k\" x=\"{}\" y=\"{}\" style=\"font-size:{id_size}px;fill:{ink}\">{id}</text>",
                x + 13,
                y + 21
            ));
            next = layer.parent;
            drawn += 1;
        }
        let more = (volume.depth as usize + 1).saturating_sub(drawn);
        if more > 0 {
            svg.text("", LAYERS_X + drawn * LAYER_STEP + 4, y + 21, &format!("+{more}"));
        }
    }
}

/// Elements one after another.
#[derive(Debug, Default)]
struct Svg(String);

impl Svg {
    fn line(&mut self, element: &str) {
        self.0.push_str(element);
        self.0.push('\n');
    }

    fn text(&mut self, class: &str, x: usize, y: usize, text: &str) {
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        self.line(&format!("<text{class} x=\"{x}\" y=\"{y}\">{}</text>", escaped(text)));
    }

    /// A rectangle; a viewer that can shows `tip` when it is pointed at.
    fn rect(&mut self, look: &str, x: usize, y: usize, width: usize, height: usize, tip: &str) {
        let end = if tip.is_empty() { "/>".to_owned() } else { format!("><title>{}</title></rect>", escaped(tip)) };
        self.line(&format!("<rect {look} x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"{end}"));
    }

    /// What a hierarchy's rows stand on.
    fn hierarchy(&mut self, from: usize, to: usize) {
        let (width, height) = (WIDTH - 32, to - from);
        self.line(&format!(
            "<rect class=\"box\" x=\"16\" y=\"{from}\" width=\"{width}\" height=\"{height}\" rx=\"6\"/>"
        ));
    }

    /// From a source to its copy.
    fn rail(&mut self, from_x: usize, from_y: usize, x: usize, y: usize) {
        // Copies at the deepest indentation stand below their source.
        let (to_x, to_y) = if x > from_x { (x - 6, y) } else { (x, y - 6) };
        self.line(&format!("<path class=\"rail\" d=\"M{from_x} {}V{to_y}H{to_x}\"/>", from_y + 6));
    }

    /// The bar of a volume: its own data, what is others', zeros; below it what was written.
    fn shares(&mut self, map: &MapTotals, y: usize) {
        let counts = &map.counts;
        let zeros = counts.valid_bytes.saturating_sub(counts.own_data_bytes);
        let own = share(counts.own_data_bytes, map.size_bytes);
        let others = share(counts.others_bytes, map.size_bytes).min(BAR_LEN - own);
        let modified = share(counts.modified_bytes, map.size_bytes);
        let tip = |what: &str, bytes| format!("{what}: {}, {}", human(bytes), percent(bytes, map.size_bytes));
        self.rect("class=\"zero\"", BAR_X, y + 8, BAR_LEN, 18, &tip("zeros", zeros));
        if own > 0 {
            self.rect("class=\"own\"", BAR_X, y + 8, own, 18, &tip("data of its own", counts.own_data_bytes));
        }
        if others > 0 {
            let tip = tip("in other volumes' layers", counts.others_bytes);
            self.rect("fill=\"url(#others)\"", BAR_X + own, y + 8, others, 18, &tip);
        }
        self.rect("class=\"edge\"", BAR_X, y + 8, BAR_LEN, 18, "");
        if modified > 0 {
            let tip = tip("written since it was last copied or refreshed", counts.modified_bytes);
            self.rect("class=\"new\"", BAR_X, y + 29, modified, 4, &tip);
        }
    }
}

/// Pixels of the bar: what is there is seen, however small it is, and what is not all leaves something.
fn share(part: u64, whole: u64) -> usize {
    if part == 0 || whole == 0 {
        return 0;
    }
    if part >= whole {
        return BAR_LEN;
    }
    let pixels = u128::from(part) * BAR_LEN as u128 / u128::from(whole);
    usize::try_from(pixels).unwrap_or(BAR_LEN).clamp(3, BAR_LEN - 3)
}

/// A share in percent: 0 and 100 only if it is nothing and all.
fn percent(part: u64, whole: u64) -> String {
    match (u128::from(part) * 100).checked_div(u128::from(whole)) {
        None => "0 %".to_owned(),
        Some(0) if part > 0 => "<1 %".to_owned(),
        Some(percent) => format!("{percent} %"),
    }
}

/// The beginning of a text, if it is too long for its place; control characters are shown as escapes.
fn cut(text: &str, most: usize) -> String {
    let text = printable(text);
    if text.chars().count() <= most {
        return text;
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// Text for the inside of an XML element, whatever it holds: characters that XML does not know become marks.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
#[path = "picture_tests.rs"]
mod tests;
