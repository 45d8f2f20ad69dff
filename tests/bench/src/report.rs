//! Tables and charts of `docs/performance.md`, made of raw measurements.
//!
//! Replaces what stands between two markers of the document and leaves the rest, which people write. Does not: measure.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use crate::Result;
use crate::chart::{self, Bar, Chart, Group, number};
use crate::numbers::{Numbers, Summary};
use crate::rows::Runs;
use crate::run::{PARTS, Part};
use crate::works::{Area, Backend, Contents, Goal, Measure, Pattern, TARGETS, Target, WORKS, Work};

const BEGIN: &str = "<!-- results -->";
const END: &str = "<!-- end -->";

/// A bar of the operations' chart: its name, work and backend.
type Operation = (&'static str, &'static str, &'static str);

/// Groups of the operations' chart: what is done, and how.
const OPERATIONS: &[(&str, &[Operation])] = &[
    (
        "snapshot",
        &[
            ("pitstop", "snapshot", "pitstop"),
            ("qcow2 internal", "snapshot-internal", "qcow2"),
            ("qcow2 external", "snapshot-external", "qcow2"),
            ("qcow2 offline", "snapshot-offline", "qcow2"),
        ],
    ),
    ("refresh", &[("pitstop", "refresh", "pitstop")]),
    ("check", &[("pitstop", "check", "pitstop"), ("qcow2", "check", "qcow2")]),
];

/// What to make of what.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Measurements as lines of JSON
    #[arg(long, default_value = "target/bench/results.jsonl")]
    results: PathBuf,
    /// The document whose part between `<!-- results -->` and `<!-- end -->` is replaced
    #[arg(long, default_value = "docs/performance.md")]
    document: PathBuf,
    /// For charts; beside the document or below it
    #[arg(long, default_value = "docs/performance")]
    charts: PathBuf,
}

/// Writes tables and charts.
///
/// # Errors
/// Nothing was measured, or the document has no markers.
pub(crate) fn run(options: &Options) -> Result<()> {
    let numbers = Numbers::read(&options.results)?;
    let mut text = String::new();
    machine(&numbers, &mut text)?;
    targets(&numbers, &mut text)?;
    std::fs::create_dir_all(&options.charts)?;
    for (name, chart) in charts(&numbers) {
        if chart.groups.is_empty() {
            continue;
        }
        let file = options.charts.join(name);
        chart::draw(&chart, &file)?;
        let folder = options.document.parent().unwrap_or(Path::new(""));
        let link = file.strip_prefix(folder).unwrap_or(&file);
        writeln!(text, "![{}]({})\n", chart.title, link.display())?;
    }
    for part in PARTS {
        table(part, &numbers, &mut text)?;
    }
    medians(&numbers, &mut text)?;
    replace(&options.document, text.trim())?;
    println!("{} and {} are up to date", options.document.display(), options.charts.display());
    Ok(())
}

fn replace(document: &Path, text: &str) -> Result<()> {
    let old = std::fs::read_to_string(document)?;
    let parts = old.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.ok_or_else(|| format!("{} lacks {BEGIN} and {END}", document.display()))?;
    Ok(std::fs::write(document, format!("{before}{BEGIN}\n\n{text}\n\n{END}{after}"))?)
}

fn machine(numbers: &Numbers, text: &mut String) -> Result<()> {
    let machine = numbers.records.iter().find(|record| record["group"] == "machine");
    let Some(machine) = machine else { return Ok(()) };
    let field = |name: &str| match &machine[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let virtual_machine = if machine["virtual_machine"] == true { ", itself a virtual machine" } else { "" };
    writeln!(
        text,
        "Measured on {}: {} cores of {}{virtual_machine}, {} GiB of memory; {}; {}; {}; {}. Repetitions: {}.\n",
        field("date"),
        field("cores"),
        field("cpu"),
        field("memory_gib"),
        field("kernel"),
        field("file_system"),
        field("qemu"),
        field("fio"),
        numbers.repetitions(),
    )?;
    Ok(())
}

fn targets(numbers: &Numbers, text: &mut String) -> Result<()> {
    let (mut met, mut measured) = (0, 0);
    writeln!(text, "### Targets\n")?;
    writeln!(text, "| work | pitstop | compared with | ratio (least to most) | target | | peers' ratio |")?;
    writeln!(text, "|---|---|---|---|---|---|---|")?;
    for target in TARGETS {
        let (ours, theirs) = ((target.work, "pitstop"), (target.against_work, target.against.name()));
        let (bound, goal) = match target.goal {
            Goal::AtLeast(bound) => (bound, "at least"),
            Goal::AtMost(bound) => (bound, "at most"),
        };
        let against = match target.against {
            Backend::Pitstop => "pitstop, own blocks",
            other => other.name(),
        };
        let figure = |run| numbers.summary(run, |record| target.measure.of(record)).map(|value| figure(target, value));
        let (Some(ratio), Some(our_figure), Some(their_figure)) =
            (numbers.ratio(ours, theirs, target.measure), figure(ours), figure(theirs))
        else {
            writeln!(text, "| {} | not measured | {against} | | {goal} {bound} | | |", target.title)?;
            continue;
        };
        let is_met = target.goal.is_met(ratio.median);
        (met, measured) = (met + usize::from(is_met), measured + 1);
        let verdict = if is_met { "met" } else { "**missed**" };
        writeln!(
            text,
            "| {} | {our_figure} | {against} {their_figure} | **{:.2}** ({:.2} to {:.2}) | {goal} {bound:.2} | {verdict} | {} |",
            target.title,
            ratio.median,
            ratio.least,
            ratio.most,
            peers(numbers, target),
        )?;
    }
    writeln!(text, "\n{met} of {measured} met.\n")?;
    Ok(())
}

/// What the others who did the same work reach.
fn peers(numbers: &Numbers, target: &Target) -> String {
    let theirs = (target.against_work, target.against.name());
    let work = WORKS.iter().find(|work| work.name == target.work);
    if target.against == Backend::Pitstop {
        return String::new();
    }
    let others = work.into_iter().flat_map(|work| work.backends).filter(|backend| {
        !matches!(backend, Backend::Pitstop | Backend::Fio | Backend::FioBatched) && **backend != target.against
    });
    let ratio = |backend: &Backend| {
        let ratio = numbers.ratio((target.work, backend.name()), theirs, target.measure)?;
        Some(format!("{} {:.2}", backend.name(), ratio.median))
    };
    others.filter_map(ratio).collect::<Vec<_>>().join(", ")
}

fn figure(target: &Target, value: Summary) -> String {
    match target.measure {
        Measure::Rate => rate(work_named(target.work), value.median),
        Measure::P99 => format!("{:.0} µs", value.median),
        Measure::Cpu => format!("{:.1} µs", value.median),
    }
}

fn work_named(name: &str) -> Option<&'static Work> {
    WORKS.iter().find(|work| work.name == name)
}

/// Requests a second, or for large ones what they move.
fn rate(work: Option<&Work>, iops: f64) -> String {
    let block_len = work.map_or(0, |work| work.shape.block_len_bytes);
    if block_len > 4096 {
        return format!("{:.0} MiB/s", iops * block_len as f64 / f64::from(1 << 20));
    }
    if iops < 1e4 { format!("{iops:.0}/s") } else { format!("{:.1}k/s", iops / 1e3) }
}

/// The table of what is no work of the data path.
fn table(part: &Part, numbers: &Numbers, text: &mut String) -> Result<()> {
    let rows = (part.rows)(&numbers.records);
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(text, "### {}\n", part.title)?;
    writeln!(text, "| what | backend | | ratio | target | |")?;
    writeln!(text, "|---|---|---|---|---|---|")?;
    for row in rows {
        let ratio =
            row.ratio.map(|ratio| format!("{} of {}", number(ratio), number(row.reference.unwrap_or(f64::NAN))));
        let verdict = row.met.map_or("", |met| if met { "met" } else { "**missed**" });
        writeln!(
            text,
            "| {} | {} | {} {} | {} | {} | {verdict} |",
            row.name,
            row.backend,
            number(row.value),
            row.unit,
            ratio.unwrap_or_default(),
            row.target.unwrap_or_default(),
        )?;
    }
    writeln!(text)?;
    Ok(())
}

fn medians(numbers: &Numbers, text: &mut String) -> Result<()> {
    writeln!(text, "### All medians\n")?;
    writeln!(text, "| work | backend | rate | least to most | p50 µs | p99 µs | CPU µs a request | container grew |")?;
    writeln!(text, "|---|---|---|---|---|---|---|---|")?;
    for work in WORKS {
        for backend in work.backends {
            let run = (work.name, backend.name());
            let Some(iops) = numbers.summary(run, |record| Measure::Rate.of(record)) else { continue };
            let column = |pick: &dyn Fn(&Value) -> Option<f64>, decimals: usize| {
                numbers.summary(run, pick).map_or_else(String::new, |value| format!("{:.decimals$}", value.median))
            };
            let grown = column(&|record| Some(record["container_grew_bytes"].as_f64()? / f64::from(1 << 20)), 0);
            let allocates = work.shape.pattern == Pattern::Once && !grown.is_empty();
            writeln!(
                text,
                "| {} | {} | {} | {} to {} | {} | {} | {} | {} |",
                work.name,
                backend.name(),
                rate(Some(work), iops.median),
                rate(Some(work), iops.least),
                rate(Some(work), iops.most),
                column(&|record| record["latency_us"]["p50"].as_f64(), 0),
                column(&|record| record["latency_us"]["p99"].as_f64(), 0),
                column(&|record| Measure::Cpu.of(record), 1),
                if allocates { format!("{grown} MiB") } else { String::new() },
            )?;
        }
    }
    writeln!(text)?;
    Ok(())
}

/// Every chart with the name of its file.
fn charts(numbers: &Numbers) -> Vec<(&'static str, Chart)> {
    let own = |work: &Work| work.area == Area::Disk && work.shape.pattern != Pattern::Once;
    let first = |work: &Work| work.area == Area::Disk && work.shape.pattern == Pattern::Once;
    let memory = |work: &Work| work.area == Area::Memory;
    vec![
        ("steady.svg", ratios(numbers, "Written volumes and virtual reads", Backend::Fio, own)),
        ("first-writes.svg", ratios(numbers, "First writes after a refresh", Backend::QsdOverlay, first)),
        ("tmpfs.svg", ratios(numbers, "In memory: the cost of the software alone", Backend::NullCo, memory)),
        ("operations.svg", operations(numbers)),
    ]
}

/// Times of what is done to a volume as a whole.
fn operations(numbers: &Numbers) -> Chart {
    let axis = "milliseconds, logarithmic".to_owned();
    let mut chart = Chart { title: "Operations on volumes".to_owned(), axis, logarithmic: true, groups: Vec::new() };
    for (name, size) in [("1\u{a0}GiB", "1g"), ("100\u{a0}GiB", "100g")] {
        for (label, bars) in OPERATIONS {
            let bar = |&(series, work, backend): &Operation| {
                let runs = Runs::of(&numbers.records, "operations", &format!("{work}-{size}"), backend);
                let value = runs.median("milliseconds")?;
                Some(Bar { series: series.to_owned(), value, mark: None })
            };
            let bars: Vec<Bar> = bars.iter().filter_map(bar).collect();
            if !bars.is_empty() {
                chart.groups.push(Group { label: format!("{label} of {name}"), bars });
            }
        }
    }
    chart
}

/// Rates of some works in parts of the rate of one backend.
fn ratios(numbers: &Numbers, title: &str, reference: Backend, wanted: impl Fn(&Work) -> bool) -> Chart {
    let mut chart = Chart {
        title: title.to_owned(),
        axis: format!("rate, {} = 1", reference.name()),
        logarithmic: false,
        groups: Vec::new(),
    };
    for work in WORKS.iter().filter(|work| wanted(work)) {
        // A work without the reference of its own has a target that names it.
        let rated = |target: &&Target| {
            target.work == work.name && target.against == reference && target.measure == Measure::Rate
        };
        let target = TARGETS.iter().find(rated);
        let against = target.map_or(work.name, |target| target.against_work);
        let bar = |backend: &Backend| {
            let ratio = numbers.ratio((work.name, backend.name()), (against, reference.name()), Measure::Rate)?;
            let mark = target.filter(|_| *backend == Backend::Pitstop).map(|target| target.goal.bound());
            Some(Bar { series: backend.name().to_owned(), value: ratio.median, mark })
        };
        let bars: Vec<Bar> = work.backends.iter().filter_map(bar).collect();
        if !bars.is_empty() {
            let label = work.name.trim_start_matches("tmpfs-");
            let recycled = work.contents == Contents::Refreshed && work.name == "first-4k-d32";
            let label = if recycled { format!("{label}-recycled") } else { label.to_owned() };
            chart.groups.push(Group { label, bars });
        }
    }
    chart
}

#[cfg(test)]
mod tests {
    use super::{Numbers, charts, rate, replace, targets, work_named};

    #[test]
    fn only_what_stands_between_the_markers_is_replaced() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a\n<!-- results -->\nold\n<!-- end -->\nb\n").unwrap();
        replace(file.path(), "new").unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(text, "a\n<!-- results -->\n\nnew\n\n<!-- end -->\nb\n");
        std::fs::write(file.path(), "no markers").unwrap();
        assert!(replace(file.path(), "new").is_err());
    }

    #[test]
    fn a_target_is_met_missed_or_not_measured() {
        let run = |backend: &str, iops: f64| serde_json::json!({ "work": "randread-4k-d32", "backend": backend, "repetition": 0, "iops": iops });
        let numbers = Numbers { records: vec![run("fio", 1e4), run("fio-batched", 2e4), run("pitstop", 1.5e4)] };
        let mut text = String::new();
        targets(&numbers, &mut text).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("depth 32 | 15.0k/s")).collect();
        assert!(lines[0].contains("**1.50** (1.50 to 1.50) | at least 1.00 | met"), "{text}");
        assert!(lines[1].contains("**0.75** (0.75 to 0.75) | at least 0.85 | **missed**"), "{text}");
        assert!(text.contains("not measured") && text.contains("1 of 2 met"));
        assert_eq!(charts(&numbers)[0].1.groups[0].bars.len(), 3);
    }

    #[test]
    fn large_requests_are_told_by_what_they_move() {
        assert_eq!(rate(work_named("read-128k-d8"), 8000.0), "1000 MiB/s");
        assert_eq!(rate(work_named("randread-4k-d32"), 12345.0), "12.3k/s");
    }
}
