//! Results for people (tables, blocks, trees) and for programs (JSON).
//!
//! Invariant: text that comes from a container or an image passes [`printable`] before a terminal sees it; JSON carries
//! exact bytes and is what the views serialize to. Does not: fetch anything.

use std::io::{self, Write};

use clap::ValueEnum;
use jiff::Timestamp;
use pitstop_format::Verify;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::jobs::{JobView, percent};
use crate::maps::{DiffTotals, Differences, MapTotals};
use crate::size::human;
use crate::view::{
    CacheView, CheckView, ContainerView, DurabilityView, HydrationView, LayerView, MovedView, OriginView,
    RelationStateView, RelationView, SealingView, SeverityView, StateView, Verdict, VolumeView,
};

/// The finding of data that is not what was sealed (`spec/check.md`).
const DAMAGED_DATA: &str = "CHK-62";

/// For whom a result is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Output {
    /// Text for people
    #[default]
    Human,
    /// JSON for programs: exact bytes, nanoseconds since 1970
    Json,
}

/// Prints `value` as JSON or as what `text` makes of it.
pub(crate) fn show<T: Serialize>(output: Output, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
    let text = match output {
        Output::Human => text(value),
        Output::Json => serde_json::to_string_pretty(value)? + "\n",
    };
    print(&text)
}

/// Prints text; that nobody reads it (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Output(error)),
        _ => Ok(()),
    }
}

/// Text without anything that a terminal would obey: control characters are shown as escapes.
pub(crate) fn printable(text: &str) -> String {
    // The marks that turn the direction of text can disguise a name as well as an escape sequence can.
    let obeyed = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if obeyed(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// An instant: RFC 3339 in UTC, to the millisecond.
pub(crate) fn instant(unix_ns: i64) -> String {
    match Timestamp::from_nanosecond(i128::from(unix_ns)) {
        Ok(timestamp) => format!("{timestamp:.3}"),
        Err(_) => format!("{unix_ns} ns"),
    }
}

/// The table of `pitstop list`.
pub(crate) fn volume_table(volumes: &[VolumeView]) -> String {
    if volumes.is_empty() {
        return "no volumes; make one with `pitstop volume create` or `pitstop import`\n".to_owned();
    }
    let mut rows = vec![["NAME", "SIZE", "OWN", "STATE", "COPY OF", "AS OF"].map(str::to_owned)];
    for volume in volumes {
        let (source, as_of) = match &volume.origin {
            Some(origin) => (printable(&origin.name), instant(origin.instant_unix_ns)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let (size, own) = (human(volume.size_bytes), human(volume.allocated_bytes));
        rows.push([printable(&volume.name), size, own, state_and_split(volume), source, as_of]);
    }
    table(&rows, &[1, 2])
}

/// The table of `pitstop cache list`.
pub(crate) fn cache_table(caches: &[CacheView]) -> String {
    if caches.is_empty() {
        return "no cache regions; make one with `pitstop cache create`\n".to_owned();
    }
    let mut rows = vec![["NAME", "LIMIT", "USED", "WARN AT", "GROWS BY", "UP TO", "BACKUPS"].map(str::to_owned)];
    for cache in caches {
        let grows = cache.growth_bytes > 0;
        let growth = |bytes| if grows { human(bytes) } else { "-".to_owned() };
        rows.push([
            printable(&cache.name),
            human(cache.limit_bytes),
            human(cache.used_bytes),
            format!("{}%", cache.high_water_percent),
            growth(cache.growth_bytes),
            growth(cache.most_bytes),
            cache.backups.to_string(),
        ]);
    }
    table(&rows, &[1, 2, 3, 4, 5, 6])
}

/// What a command that made or changed a cache region says.
pub(crate) fn cache_line(cache: &CacheView) -> String {
    format!("{}: {} of {} used\n", printable(&cache.name), human(cache.used_bytes), human(cache.limit_bytes))
}

/// What a command that made or changed a volume says.
pub(crate) fn volume_line(volume: &VolumeView) -> String {
    let name = printable(&volume.name);
    let mut text = format!("{name}: {}", human(volume.size_bytes));
    if let Some(OriginView { name: source, instant_unix_ns, .. }) = &volume.origin {
        text.push_str(&format!(", copy of {} as of {}", printable(source), instant(*instant_unix_ns)));
    }
    if is_split(volume) {
        text.push_str(", split");
    }
    if volume.durability == DurabilityView::None {
        text.push_str(", durability none");
    }
    if volume.undefined {
        text.push_str(", undefined");
    }
    text + "\n"
}

/// How much data has tags.
pub(crate) fn sealed(sealed_bytes: u64, data_bytes: u64) -> String {
    format!("{} of {} data, {} %", human(sealed_bytes), human(data_bytes), percent(sealed_bytes, data_bytes))
}

/// What `pitstop set --verify` says.
pub(crate) fn verify_line(volume: &VolumeView) -> String {
    format!("{}: verify {}\n", printable(&volume.name), verify_word(volume.verify))
}

fn verify_word(verify: Verify) -> &'static str {
    Verify::WORDS.iter().find(|(_, value)| *value == verify).map_or("", |(word, _)| word)
}

/// `pitstop info` of a container.
pub(crate) fn container_block(container: &ContainerView, holder: Option<&str>) -> String {
    let exact = |bytes: u64| format!("{} ({bytes} bytes)", human(bytes));
    let mut lines = vec![("uuid", container.uuid.clone())];
    if !container.label.is_empty() {
        lines.push(("label", printable(&container.label)));
    }
    lines.extend([
        ("made", instant(container.created_unix_ns)),
        ("format version", container.version.to_string()),
        ("volumes", container.volume_count.to_string()),
        ("layers", container.layer_count.to_string()),
        ("file length", exact(container.file_len_bytes)),
        ("allocated", exact(container.allocated_bytes)),
        ("free in the file", exact(container.free_bytes)),
        ("journal", exact(container.journal_len_bytes)),
        ("block, chunk", format!("{}, {}", human(container.block_len_bytes), human(container.chunk_len_bytes))),
        ("generation", container.generation.to_string()),
    ]);
    if let Some(holder) = holder {
        lines.push(("held by", printable(holder)));
    }
    if let Some(failure) = &container.failure {
        lines.push(("failed", printable(failure)));
    }
    block(&lines)
}

/// `pitstop info` of a volume, with the layers that a read may look through, head first.
pub(crate) fn volume_block(
    volume: &VolumeView,
    map: &MapTotals,
    differences: Option<Differences>,
    layers: &[LayerView],
) -> String {
    let exact = |bytes: u64| format!("{} ({bytes} bytes)", human(bytes));
    let mut lines = vec![
        ("name", printable(&volume.name)),
        ("uuid", volume.uuid.clone()),
        ("size", exact(volume.size_bytes)),
        ("made", instant(volume.created_unix_ns)),
    ];
    if let Some(origin) = &volume.origin {
        lines.push(("copy of", printable(&origin.name)));
        lines.push(("as of", instant(origin.instant_unix_ns)));
    }
    if let Some(relation) = &volume.relation {
        lines.extend(relation_lines(relation, differences));
    }
    lines.extend([
        ("state", state(volume)),
        ("valid", format!("{}, {} %", exact(map.counts.valid_bytes), map.valid_percent)),
        ("others'", exact(map.counts.others_bytes)),
        ("modified", exact(map.counts.modified_bytes)),
        ("own data", exact(volume.allocated_bytes)),
        ("depth", volume.depth.to_string()),
    ]);
    if volume.durability == DurabilityView::None {
        lines.push(("durability", "none".to_owned()));
    }
    if volume.verify != Verify::Off || map.counts.sealed_bytes > 0 {
        lines.push(("verify", verify_word(volume.verify).to_owned()));
        lines.push(("sealed", sealed(map.counts.sealed_bytes, map.counts.data_bytes)));
    }
    if let Some(SealingView { passed_bytes, total_bytes }) = volume.sealing {
        lines.push(("sealing", format!("{} %", percent(passed_bytes, total_bytes))));
    }
    if volume.state == StateView::Hydrating {
        lines.push(("to copy", exact(map.counts.to_copy_bytes)));
    }
    let mut text = block(&lines);
    if !layers.is_empty() {
        let mut rows = vec![["LAYER", "KIND", "ALLOCATED", "OWNER", "CHILDREN"].map(str::to_owned)];
        for layer in layers {
            let owner = match layer.owner {
                Some(owner) if owner == volume.id => "this volume".to_owned(),
                Some(owner) => format!("volume {owner}"),
                None => "-".to_owned(),
            };
            let kind = printable(&layer.kind);
            rows.push([layer.id.to_string(), kind, human(layer.allocated_bytes), owner, layer.children.to_string()]);
        }
        text.push('\n');
        text.push_str(&table(&rows, &[0, 2, 4]));
    }
    text
}

/// The table of `pitstop job list`.
pub(crate) fn job_table(jobs: &[JobView]) -> String {
    if jobs.is_empty() {
        return "no jobs\n".to_owned();
    }
    let mut rows = vec![["JOB", "TYPE", "VOLUME", "STATE", "DONE", "OF", "RATE", "LIMIT"].map(str::to_owned)];
    let per_second = |bytes: u64| if bytes == 0 { "-".to_owned() } else { format!("{}/s", human(bytes)) };
    for job in jobs {
        let state = if job.waits_for_space { "waits for space" } else { &job.status };
        let volume = job.volume.as_deref().map_or_else(|| "-".to_owned(), printable);
        rows.push([
            printable(&job.id),
            printable(&job.kind),
            volume,
            printable(state),
            format!("{} %", percent(job.current_progress, job.total_progress)),
            human(job.total_progress),
            per_second(job.rate),
            per_second(job.speed),
        ]);
    }
    let mut text = table(&rows, &[4, 5, 6, 7]);
    for job in jobs {
        if let Some(error) = &job.error {
            text.push_str(&format!("{}: {}\n", printable(&job.id), printable(error)));
        }
    }
    text
}

/// What stands below the table of `pitstop map`.
pub(crate) fn map_totals(totals: &MapTotals) -> String {
    let counts = &totals.counts;
    format!(
        "{} of {} bytes are valid ({} %), {} are others', {} modified\n",
        counts.valid_bytes, totals.size_bytes, totals.valid_percent, counts.others_bytes, counts.modified_bytes
    )
}

/// What stands below the table of `pitstop diff`.
pub(crate) fn diff_totals(totals: &DiffTotals, a: &str, b: &str) -> String {
    let counts = &totals.counts;
    let (a, b) = (printable(a), printable(b));
    let mut text = format!(
        "{} bytes may differ ({} changed in {a}, {} in {b})\n",
        counts.bytes, counts.changed_in_a_bytes, counts.changed_in_b_bytes
    );
    let (a_size, b_size) = (totals.a_size_bytes, totals.b_size_bytes);
    if a_size != b_size {
        text.push_str(&format!("{a} has {a_size} bytes, {b} has {b_size}\n"));
    }
    text
}

/// `pitstop check`.
pub(crate) fn check_text(report: &CheckView) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let severity = match finding.severity {
            SeverityView::Corruption => "corruption",
            SeverityView::Leak => "leak",
            SeverityView::Note => "note",
        };
        let (place, message) = (printable(&finding.place), printable(&finding.message));
        let (id, rule) = (printable(&finding.id), printable(&finding.rule));
        text.push_str(&format!("{severity}: {place}: {message} [{id}, {rule}]\n"));
    }
    text.push_str(&repair_text(report));
    let all = report.corruptions + report.leaks + report.notes;
    let shown = report.findings.len() as u64;
    if shown < all {
        text.push_str(&format!("and {} more\n", all - shown));
    }
    text.push_str(&undefined_text(report));
    if let Some(bytes) = report.counts.get("data-bytes-verified").and_then(serde_json::Value::as_u64).filter(|n| *n > 0)
    {
        text.push_str(&format!("{} of sealed data were read and verified\n", human(bytes)));
    }
    let counts = counts_text(report.corruptions, report.leaks);
    text.push_str(&match report.verdict() {
        Verdict::Clean => "no errors were found\n".to_owned(),
        Verdict::Leaks => {
            format!("{counts}: space is lost, data is safe; `pitstop check --repair leaks` gives the space back\n")
        }
        _ if report.findings.iter().all(|finding| finding.id == DAMAGED_DATA) => format!(
            "{counts}: data was damaged on its storage, the structure is whole; bring the blocks back from a copy of the \
             volume\n"
        ),
        // It was asked for, and could not be done.
        _ if report.counts.contains_key("not-repaired") => {
            format!("{counts}: export what can be read, and restore the container from a copy\n")
        }
        _ => format!(
            "{counts}: repair it with `pitstop check --repair all`, or export what can be read and restore the container \
             from a copy\n"
        ),
    });
    text
}

/// How many volumes are undefined, if any are: no damage, and nothing to repair.
fn undefined_text(report: &CheckView) -> String {
    match report.counts.get("undefined-volumes").and_then(serde_json::Value::as_u64) {
        None | Some(0) => String::new(),
        Some(count) => {
            format!("undefined volumes: {count} (the container was not closed once); `pitstop list` shows which\n")
        }
    }
}

/// What `pitstop check --repair` has done, if it was asked to.
fn repair_text(report: &CheckView) -> String {
    let count = |name: &str| report.counts.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let word = |name: &str| report.counts.get(name).and_then(serde_json::Value::as_str).map(printable);
    let mut text = String::new();
    if let Some(why) = word("not-repaired") {
        text.push_str(&format!("{why}\n"));
    }
    let lost = report.counts.get("lost").and_then(serde_json::Value::as_array);
    for part in lost.into_iter().flatten() {
        let number = |name: &str| part.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let volume = part.get("volume").and_then(serde_json::Value::as_str).map(printable).unwrap_or_default();
        let (start, end) = (number("start"), number("end"));
        text.push_str(&format!(
            "lost: volume {volume}: bytes {start} to {end} ({})\n",
            human(end.saturating_sub(start))
        ));
    }
    let shown = lost.map_or(0, |lost| lost.len() as u64);
    if shown < count("lost-count") {
        text.push_str(&format!("and {} more lost parts\n", count("lost-count") - shown));
    }
    if let Some(log) = word("repair-log") {
        let (corruptions, leaks) = (count("corruptions-fixed"), count("leaks-fixed"));
        let counts = counts_text(corruptions, leaks);
        text.push_str(&format!("repaired: {counts}; what was there before is in {log}\n"));
    }
    text
}

fn counts_text(corruptions: u64, leaks: u64) -> String {
    let counted = |number: u64, what: &str| if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") };
    format!("{}, {}", counted(corruptions, "corruption"), counted(leaks, "leak"))
}

/// How a volume's state is called.
pub(crate) fn state(volume: &VolumeView) -> String {
    let state = match (volume.state, &volume.hydration) {
        (StateView::Virtual, _) => "virtual".to_owned(),
        (StateView::Hydrating, None) => "hydrating".to_owned(),
        (StateView::Hydrating, Some(HydrationView { copied_bytes, total_bytes, .. })) => {
            format!("hydrating {} %", percent(*copied_bytes, *total_bytes))
        }
        (StateView::Real, _) => "real".to_owned(),
    };
    let state = if volume.undefined { format!("{state}, undefined") } else { state };
    match (&volume.view_of, &volume.viewed_by) {
        (Some(source), _) => format!("{state}, view of {}", printable(source)),
        (None, Some(view)) => format!("{state}, viewed by {}", printable(view)),
        (None, None) => state,
    }
}

/// Whether the volume is a copy of another, and its relation to that has ended.
fn is_split(volume: &VolumeView) -> bool {
    volume.relation.as_ref().is_some_and(|relation| relation.state == RelationStateView::Split)
}

/// How a volume's state is called, and whether its relation has ended.
pub(crate) fn state_and_split(volume: &VolumeView) -> String {
    state(volume) + if is_split(volume) { ", split" } else { "" }
}

/// What a hydration has moved.
pub(crate) fn moved(moved: MovedView) -> String {
    format!("copied {}, adopted {}", human(moved.copied_bytes), human(moved.adopted_bytes))
}

/// What `pitstop info` says of a relation.
fn relation_lines(relation: &RelationView, differences: Option<Differences>) -> Vec<(&'static str, String)> {
    let exact = |bytes: u64| format!("{} ({bytes} bytes)", human(bytes));
    let word = match (relation.state, relation.tracked) {
        (RelationStateView::Split, _) => "split",
        (_, true) => "tracked: copying again moves only what differs",
        (_, false) => "not tracked: copying again moves everything",
    };
    let mut lines = vec![("relation", word.to_owned())];
    if let Some(last) = relation.moved {
        lines.push(("last hydrated", moved(last)));
    }
    if relation.kept_bytes > 0 {
        lines.push(("kept for it", exact(relation.kept_bytes)));
    }
    if let Some(Differences { to_secondary_bytes, to_primary_bytes }) = differences {
        lines.push(("new in source", exact(to_secondary_bytes)));
        lines.push(("new in copy", exact(to_primary_bytes)));
    }
    lines
}

/// Lines of `name: value`, values under one another.
fn block(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    lines.iter().map(|(name, value)| format!("{:width$} {value}\n", format!("{name}:"))).collect()
}

/// Columns under one another, two spaces apart; `right` are the columns whose values end together.
fn table<const N: usize>(rows: &[[String; N]], right: &[usize]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
            let padding = " ".repeat(width - cell.chars().count());
            let (before, after) = if right.contains(&index) { (padding.as_str(), "") } else { ("", padding.as_str()) };
            line.push_str(before);
            line.push_str(cell);
            line.push_str(after);
            line.push_str("  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
#[path = "render_tests.rs"]
pub(crate) mod tests;
