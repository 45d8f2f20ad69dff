//! `pitstop check`: a structural check and repair; its exit codes are those of `qemu-img check`.
//!
//! Invariant: the log of a repair is complete and durable before the container is changed (CHK-29), and never written over
//! another file. Does not: know what is wrong with a container, or how it is mended (`pitstop_format::check`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use pitstop_format::check::repair::{self, Plan, Scope};
use pitstop_format::{Error as FormatError, FileDisk};
use serde_json::json;

use crate::error::{Error, Result};
use crate::render::{self, Output};
use crate::session::{self, Depth};
use crate::view::{CheckView, Verdict};

/// Most names tried for a log that the user has not named.
const LOG_NAMES: u32 = 1000;

/// What is repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Repair {
    /// Space that nothing uses; changes nothing if there is damage too
    Leaks,
    /// Everything; what is lost is told
    All,
}

/// What is done.
#[derive(Debug)]
pub(crate) enum Task {
    /// Look.
    Check(Depth),
    /// Look, mend, look again.
    Repair {
        /// What is mended.
        what: Repair,
        /// Where to keep what is changed.
        log: Option<PathBuf>,
    },
    /// Put back what a repair has changed.
    Undo {
        /// The repair's log.
        log: PathBuf,
    },
}

/// Checks the container `path`, repairs it if asked to, and shows what is so afterwards.
///
/// # Errors
/// Only what kept the check or the repair from running; what was found is in the verdict.
pub(crate) fn run(path: &Path, task: &Task, output: Output) -> Result<Verdict> {
    let report = match task {
        Task::Check(depth) => session::check_structure(path, *depth)?,
        Task::Repair { what, log } => mend(path, *what, log.as_deref())?,
        Task::Undo { log } => {
            let disk = session::open_for_repair(path)?;
            let file = File::open(log).map_err(Error::file("open", log))?;
            repair::undo(&*disk, &mut BufReader::new(file)).map_err(Error::container(path))?;
            session::check_disk(path, &disk)?
        }
    };
    render::show(output, &report, render::check_text)?;
    Ok(report.verdict())
}

fn mend(path: &Path, what: Repair, log: Option<&Path>) -> Result<CheckView> {
    let scope = match what {
        Repair::Leaks => Scope::Leaks,
        Repair::All => Scope::All,
    };
    let disk = session::open_for_repair(path)?;
    let plan = match repair::plan(&*disk, scope) {
        Ok(plan) => plan,
        Err(error @ FormatError::CannotRepair { .. }) => {
            let mut report = session::check_disk(path, &disk)?;
            report.counts.insert("corruptions-fixed".to_owned(), json!(0));
            report.counts.insert("leaks-fixed".to_owned(), json!(0));
            report.counts.insert("not-repaired".to_owned(), json!(error.to_string()));
            return Ok(report);
        }
        Err(error) => return Err(Error::container(path)(error)),
    };
    let mut kept = None;
    if !plan.is_empty() {
        let (file, name) = create_log(path, log)?;
        if let Err(error) = write_log(&plan, path, &disk, file, &name) {
            // A part of a log would only mislead.
            drop(fs::remove_file(&name));
            return Err(Error::LogNotWritten { log: name, source: Box::new(error) });
        }
        kept = Some(name.clone());
        plan.carry_out(&*disk).map_err(|source| Error::RepairFailed {
            container: path.to_owned(),
            log: name,
            source: Box::new(source),
        })?;
    }
    let mut report = session::check_disk(path, &disk)?;
    let fixed = [
        ("corruptions-fixed", plan.before().corruptions.saturating_sub(report.corruptions)),
        ("leaks-fixed", plan.before().leaks.saturating_sub(report.leaks)),
        ("lost-count", plan.lost_count()),
    ];
    for (name, count) in fixed {
        report.counts.insert(name.to_owned(), json!(count));
    }
    report.counts.insert("lost".to_owned(), serde_json::to_value(plan.lost())?);
    report.counts.insert("repair-log".to_owned(), json!(kept.map(|name| name.to_string_lossy().into_owned())));
    Ok(report)
}

/// A new file for the log, which may hold guests' data: for its owner alone.
fn create_log(container: &Path, named: Option<&Path>) -> Result<(File, PathBuf)> {
    let create = |path: &Path| OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let default = |number: u32| {
        let mut name = container.as_os_str().to_owned();
        name.push(if number == 0 { ".repair-log".to_owned() } else { format!(".repair-log.{number}") });
        PathBuf::from(name)
    };
    let names = match named {
        Some(path) => vec![path.to_owned()],
        None => (0..LOG_NAMES).map(default).collect(),
    };
    let mut last = container.to_owned();
    for name in names {
        match create(&name) {
            Ok(file) => return Ok((file, name)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = name,
            Err(error) => return Err(Error::file("create", &name)(error)),
        }
    }
    Err(Error::ContainerExists { container: last })
}

/// Writes the log and makes it durable, its name included.
fn write_log(plan: &Plan, container: &Path, disk: &FileDisk, file: File, name: &Path) -> Result<()> {
    let mut out = BufWriter::new(file);
    plan.write_log(disk, &mut out).map_err(Error::container(container))?;
    out.flush().and_then(|()| out.get_ref().sync_all()).map_err(Error::file("write", name))?;
    let folder = match name.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::file("sync", folder))
}

/// The verdict for a check that did not run.
pub(crate) fn verdict_of(error: &Error) -> Verdict {
    match error {
        Error::Container {
            source:
                FormatError::UnsupportedVersion { .. }
                | FormatError::UnsupportedFeatures { .. }
                | FormatError::ReadOnlyFeatures { .. },
            ..
        } => Verdict::Unsupported,
        _ => Verdict::CouldNotCheck,
    }
}
