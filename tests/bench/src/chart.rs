//! Bar charts as SVG files.
//!
//! Does not: know what the bars mean.

use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::Result;

const SIZE: (u32, u32) = (960, 420);
/// Characters of a line under a group.
const LABEL_CHARS: usize = 14;
/// Part of a group's width that its bars take.
const BARS_PART: f64 = 0.84;
/// Part of a group's width that one bar takes at most.
const BAR_PART_MAX: f64 = 0.22;

/// Bars side by side, by groups.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chart {
    /// What stands above.
    pub(crate) title: String,
    /// What stands beside the vertical axis.
    pub(crate) axis: String,
    /// Vertical axis by powers of ten instead of linear.
    pub(crate) logarithmic: bool,
    pub(crate) groups: Vec<Group>,
}

/// The bars of one kind of work.
#[derive(Debug, Clone, Default)]
pub(crate) struct Group {
    /// What stands below.
    pub(crate) label: String,
    pub(crate) bars: Vec<Bar>,
}

/// One bar.
#[derive(Debug, Clone)]
pub(crate) struct Bar {
    /// Whose it is; decides the colour.
    pub(crate) series: String,
    pub(crate) value: f64,
    /// A value to reach, drawn as a line across the bar.
    pub(crate) mark: Option<f64>,
}

/// Draws `chart` into the file at `path`.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn draw(chart: &Chart, path: &Path) -> Result<()> {
    let bars = || chart.groups.iter().flat_map(|group| &group.bars);
    let values = || bars().flat_map(|bar| [Some(bar.value), bar.mark]).flatten().filter(|value| *value > 0.0);
    let top = values().fold(0.0, f64::max) * 1.12;
    if top == 0.0 {
        return Err(format!("nothing was measured for the chart {}", chart.title).into());
    }
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    if chart.logarithmic {
        let bottom = 10f64.powf((values().fold(top, f64::min) / 2.0).log10().floor());
        plot(chart, &root, (bottom..top * 2.0).log_scale(), bottom)?;
    } else {
        plot(chart, &root, 0.0..top, 0.0)?;
    }
    Ok(root.present()?)
}

fn plot<'a, Y>(chart: &Chart, root: &DrawingArea<SVGBackend<'a>, Shift>, range: Y, bottom: f64) -> Result<()>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut plot = ChartBuilder::on(root)
        .caption(&chart.title, ("sans-serif", 18))
        .margin(10)
        .margin_top(8)
        .margin_bottom(46)
        .margin_right(150)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..chart.groups.len() as f64, range)?;
    plot.configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(TRANSPARENT)
        .y_desc(&chart.axis)
        .label_style(("sans-serif", 12))
        .y_label_formatter(&|value| number(*value))
        .draw()?;
    for (n, group) in chart.groups.iter().enumerate() {
        let count = group.bars.len().max(1) as f64;
        let width = (BARS_PART / count).min(BAR_PART_MAX);
        let first = n as f64 + (1.0 - width * count) / 2.0;
        for (k, bar) in group.bars.iter().enumerate() {
            let left = first + k as f64 * width;
            let right = left + width * 0.92;
            let color = color(&bar.series);
            plot.draw_series([Rectangle::new([(left, bottom), (right, bar.value)], color.filled())])?;
            if let Some(mark) = bar.mark {
                plot.draw_series([PathElement::new([(left, mark), (right, mark)], BLACK.stroke_width(2))])?;
            }
            let middle = plot.backend_coord(&(f64::midpoint(left, right), bar.value));
            text(root, &number(bar.value), (middle.0, middle.1 - 3), (10, HPos::Center, VPos::Bottom))?;
        }
        let foot = plot.backend_coord(&(n as f64 + 0.5, bottom));
        for (line, label) in lines(&group.label).iter().enumerate() {
            text(root, label, (foot.0, foot.1 + 8 + 14 * line as i32), (12, HPos::Center, VPos::Top))?;
        }
    }
    legend(chart, root)
}

fn legend(chart: &Chart, root: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<()> {
    let mut series: Vec<&str> = Vec::new();
    for bar in chart.groups.iter().flat_map(|group| &group.bars) {
        if !series.contains(&bar.series.as_str()) {
            series.push(&bar.series);
        }
    }
    let left = SIZE.0 as i32 - 140;
    let mut top = 40;
    for name in series {
        root.draw(&Rectangle::new([(left, top), (left + 12, top + 12)], color(name).filled()))?;
        text(root, name, (left + 18, top + 6), (12, HPos::Left, VPos::Center))?;
        top += 20;
    }
    if chart.groups.iter().flat_map(|group| &group.bars).any(|bar| bar.mark.is_some()) {
        root.draw(&PathElement::new([(left, top + 6), (left + 12, top + 6)], BLACK.stroke_width(2)))?;
        text(root, "target", (left + 18, top + 6), (12, HPos::Left, VPos::Center))?;
    }
    Ok(())
}

type Style = (i32, HPos, VPos);

fn text(root: &DrawingArea<SVGBackend<'_>, Shift>, text: &str, at: (i32, i32), style: Style) -> Result<()> {
    let (size, horizontal, vertical) = style;
    let style = TextStyle::from(("sans-serif", size).into_font()).pos(Pos::new(horizontal, vertical));
    Ok(root.draw(&Text::new(text, at, style))?)
}

/// A label in lines, broken behind words and dashes.
fn lines(label: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in label.split_inclusive([' ', '-']) {
        if let Some(line) = lines.last_mut()
            && (line.is_empty() || line.len() + word.trim_end().len() <= LABEL_CHARS)
        {
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// A number for people: three digits, or a few more before the point.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        value if value < 0.1 => format!("{value:.3}"),
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

fn color(series: &str) -> RGBColor {
    match series {
        "pitstop" => RGBColor(216, 67, 21),
        "fio" => RGBColor(176, 176, 176),
        "fio-batched" => RGBColor(96, 96, 96),
        "null-co" => RGBColor(140, 140, 140),
        "qsd-raw" | "qcow2 internal" => RGBColor(144, 202, 249),
        "qsd-qcow2" | "qcow2 external" => RGBColor(66, 140, 210),
        "qsd-extl2" | "qcow2 offline" => RGBColor(21, 101, 192),
        _ => RGBColor(102, 170, 120),
    }
}

#[cfg(test)]
mod tests {
    use super::{Bar, Chart, Group, draw, lines};

    #[test]
    fn labels_break_behind_dashes() {
        assert_eq!(lines("randread-4k-d32-virtual"), ["randread-4k-", "d32-virtual"]);
        assert_eq!(lines("read"), ["read"]);
    }

    #[test]
    fn a_chart_shows_its_groups_series_and_values() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bar = |series: &str, value| Bar { series: series.to_owned(), value, mark: Some(0.5) };
        let group = Group { label: "work".to_owned(), bars: vec![bar("fio", 1.0), bar("pitstop", 20.25)] };
        for logarithmic in [false, true] {
            let chart =
                Chart { title: "Title".to_owned(), axis: "ratio".to_owned(), logarithmic, groups: vec![group.clone()] };
            draw(&chart, file.path()).unwrap();
            let svg = std::fs::read_to_string(file.path()).unwrap();
            for part in ["Title", "ratio", "work", "fio", "pitstop", "20.2", "target"] {
                assert!(svg.contains(part), "{part}");
            }
        }
    }

    #[test]
    fn a_chart_of_nothing_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(draw(&Chart::default(), file.path()).is_err());
    }
}
