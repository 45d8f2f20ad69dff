//! Runs every work with every backend, in turns: all of one repetition before the next one.
//!
//! What changes on the machine in the course of minutes then meets all alike. Each run has the machine and a freshly
//! started backend to itself. Does not: compare, which [`crate::report`] does.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::Result;
use crate::fio::{self, Batching};
use crate::peers::Site;
use crate::place::{Place, Results};
use crate::rows::Row;
use crate::serve::Effort;
use crate::works::{Area, Backend, Pattern, Shape, WORKS, Work};
use crate::{copies, machine, operations, scale, tags, wear};

/// Bytes of a volume on disk and in memory; and both with `--quick`.
const VOLUME_LEN: [u64; 2] = [2 << 30, 1 << 30];
const QUICK_VOLUME_LEN: u64 = 256 << 20;
/// A run that ends by its number of requests ends after this at the latest.
const LONGEST: f64 = 20.0;
const ENDED_EARLY: &str = "ended early; what was measured is in the results";

/// What is measured besides the data path, in ways of its own.
pub(crate) struct Part {
    /// Group of its records, and name for `--only`.
    pub(crate) name: &'static str,
    /// What stands above its table.
    pub(crate) title: &'static str,
    /// Measured only if `--only` asks for it.
    if_named: bool,
    run: fn(&Place, Effort, &mut Results) -> Result<()>,
    /// Its table, made of all records.
    pub(crate) rows: fn(&[Value]) -> Vec<Row>,
}

/// Every such part.
pub(crate) const PARTS: &[Part] = &[
    Part { name: "operations", title: "Operations", if_named: false, run: operations::run, rows: operations::rows },
    Part {
        name: "copies",
        title: "Copies in the background, and of many volumes",
        if_named: true,
        run: copies::run,
        rows: copies::rows,
    },
    Part { name: "wear", title: "Space and wear", if_named: false, run: wear::run, rows: wear::rows },
    Part { name: "tags", title: "Tags", if_named: true, run: tags::run, rows: tags::rows },
    Part { name: "scale", title: "Scale", if_named: false, run: scale::run, rows: scale::rows },
];

/// What to measure.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// For data: on the file system to measure, with 60 GB free
    #[arg(long, default_value = "target/bench")]
    folder: PathBuf,
    /// For the works in memory: on a tmpfs, with 8 GB free
    #[arg(long, default_value = "/dev/shm")]
    memory_folder: PathBuf,
    /// Measurements as lines of JSON; what is there is replaced
    #[arg(long, default_value = "target/bench/results.jsonl")]
    results: PathBuf,
    /// Add to the results, replacing only what is measured again: with all works that a ratio is made of
    #[arg(long)]
    append: bool,
    /// Only works whose name or group begins so; may be repeated
    #[arg(long, value_name = "WORK")]
    only: Vec<String>,
    /// Turns of every backend at every work
    #[arg(long, default_value_t = 5)]
    repetitions: u32,
    /// Measured time of a run, unless its number of requests is fixed
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// One short repetition with small volumes: shows that it works, no more
    #[arg(long)]
    quick: bool,
}

impl Options {
    fn wants(&self, group: &str, work: &str) -> bool {
        let begins = |only: &String| work.starts_with(only.as_str()) || group.starts_with(only.as_str());
        self.only.is_empty() || self.only.iter().any(begins)
    }
}

/// Measures.
///
/// # Errors
/// A backend or a load fails, there is no space, or nothing is called what `--only` says.
pub(crate) fn run(options: &Options) -> Result<()> {
    let works: Vec<&Work> = WORKS.iter().filter(|work| options.wants(work.area.group(), work.name)).collect();
    let parts: Vec<&Part> = PARTS
        .iter()
        .filter(|part| options.wants(part.name, part.name) && !(part.if_named && options.only.is_empty()))
        .collect();
    if works.is_empty() && parts.is_empty() {
        return Err("no work is called so; the names are in the tables of docs/performance.md".into());
    }
    let begin = Instant::now();
    // Ended early it still ends backends and removes its files, of which some take memory.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let sockets = tempfile::Builder::new().prefix("pitstop-bench-").tempdir()?;
    let memory = tempfile::Builder::new().prefix("pitstop-bench-").tempdir_in(&options.memory_folder)?;
    let place = Place::new(std::path::absolute(&options.folder)?, sockets.path().to_owned())?;
    if !options.append && options.results.exists() {
        std::fs::remove_file(&options.results)?;
    }
    if let Some(folder) = options.results.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut results = Results::append_to(&options.results)?;
    results.add(machine::describe(&place.folder)?)?;
    let mut memory_place = place.clone();
    memory_place.folder = memory.path().to_owned();
    data_path(options, &works, [place.clone(), memory_place], &mut results, &interrupted)?;
    for part in parts {
        if interrupted.load(Ordering::Relaxed) {
            return Err(ENDED_EARLY.into());
        }
        (part.run)(&place, if options.quick { Effort::Quick } else { Effort::Full }, &mut results)
            .map_err(|error| format!("{}: {error}", part.name))?;
    }
    println!("measured in {} s: {}", begin.elapsed().as_secs(), options.results.display());
    Ok(())
}

fn data_path(
    options: &Options,
    works: &[&Work],
    places: [Place; 2],
    results: &mut Results,
    interrupted: &AtomicBool,
) -> Result<()> {
    let volume_len = if options.quick { [QUICK_VOLUME_LEN; 2] } else { VOLUME_LEN };
    let [disk, memory] = places;
    let mut sites = HashMap::from([
        (Area::Disk, Site::new(disk, Area::Disk, volume_len[0])),
        (Area::Memory, Site::new(memory, Area::Memory, volume_len[1])),
    ]);
    for (area, site) in &sites {
        if works.iter().any(|work| work.area == *area) {
            site.see_to_space()?;
        }
    }
    let outcome = turns(options, works, &mut sites, results, interrupted);
    sites.values_mut().try_for_each(Site::clear)?;
    outcome
}

fn turns(
    options: &Options,
    works: &[&Work],
    sites: &mut HashMap<Area, Site>,
    results: &mut Results,
    interrupted: &AtomicBool,
) -> Result<()> {
    for repetition in 0..if options.quick { 1 } else { options.repetitions } {
        for work in works {
            let site = sites.get_mut(&work.area).ok_or("a work's files lie nowhere")?;
            for &backend in work.backends {
                site.prepare(backend, work.contents)?;
            }
            for &backend in work.backends {
                if interrupted.load(Ordering::Relaxed) {
                    return Err(ENDED_EARLY.into());
                }
                let measured = measure(options, site, work, backend, repetition)
                    .map_err(|error| format!("{} with {}: {error}", work.name, backend.name()))?;
                let mut record = json!({
                    "group": work.area.group(),
                    "work": work.name,
                    "backend": backend.name(),
                    "repetition": repetition,
                });
                if let (Value::Object(record), Value::Object(measured)) = (&mut record, measured) {
                    record.extend(measured);
                }
                results.add(record)?;
            }
            site.tidy()?;
        }
    }
    Ok(())
}

fn measure(options: &Options, site: &mut Site, work: &Work, backend: Backend, repetition: u32) -> Result<Value> {
    let (seconds, ramp) = if options.quick { (0.3, 0.1) } else { (options.seconds, 0.5) };
    let shape = work.shape;
    match backend {
        Backend::Fio => fio::run(&site.raw()?, shape, Batching::Single, seconds, ramp),
        Backend::FioBatched => fio::run(&site.raw()?, shape, Batching::Sixteen, seconds, ramp),
        Backend::HandOver => {
            let arguments = load_arguments(shape, seconds, ramp, repetition);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let file = site.raw()?;
            Ok(serde_json::to_value(site.place().load_file(&file, &arguments)?)?)
        }
        Backend::QsdRaw | Backend::QsdQcow2 | Backend::QsdOverlay | Backend::NullCo | Backend::Pitstop => {
            let served = site.start(backend, work.contents)?;
            let arguments = load_arguments(shape, seconds, ramp, repetition);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let measured = site.place().load(&served.socket, Some(served.process.pid()), &arguments)?;
            if shape.total_len_bytes.is_some() && measured.ended == "time" {
                eprintln!("pitstop-bench: {} of {} took too long: not all of it counts", work.name, backend.name());
            }
            let mut measured = serde_json::to_value(measured)?;
            if let Some(grown) = served.end()? {
                measured["container_grew_bytes"] = json!(grown);
            }
            Ok(measured)
        }
    }
}

fn load_arguments(shape: Shape, seconds: f64, ramp: f64, repetition: u32) -> Vec<String> {
    let pattern = match shape.pattern {
        Pattern::Random => "random",
        Pattern::Sequential => "sequential",
        Pattern::Once => "once",
    };
    let mut arguments = vec![
        format!("--pattern={pattern}"),
        format!("--block-size={}", shape.block_len_bytes),
        format!("--depth={}", shape.depth),
        format!("--read-percent={}", shape.read_percent),
        format!("--flush-every={}", shape.flush_every),
        format!("--seed={}", repetition + 1),
    ];
    match shape.total_len_bytes {
        Some(len) => arguments.extend([
            format!("--requests={}", len / shape.block_len_bytes),
            format!("--seconds={LONGEST}"),
            "--ramp=0".to_owned(),
        ]),
        None => arguments.extend([format!("--seconds={seconds}"), format!("--ramp={ramp}")]),
    }
    arguments
}
