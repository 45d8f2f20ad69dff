//! `make mutants`: breaks the engine on purpose, one rule at a time, and runs the tests that must notice.
//!
//! Role: copies the sources into `target/mutants/`, applies one mutant of `list.toml` after the other there, builds it and
//! runs its tests; says of each whether it was caught, and by what. Exits with 0 only if all were. The tests must pass on
//! the unchanged copy first. Does not: touch the work tree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use pitstop_tests::{Mutant, mutants, repository};
use rustix::process::{Pid, Signal, kill_process_group};

/// What the copy holds of the repository.
const SOURCES: [&str; 8] =
    ["Cargo.toml", "Cargo.lock", "clippy.toml", ".config", "format", "backend", "tools", "tests"];
/// Besides, what tests read.
const READ_BY_TESTS: [&str; 1] = ["spec"];
/// Building and testing one mutant takes at most this long. A single test that hangs is ended far sooner by cargo-nextest
/// (`.config/nextest.toml`), and counts as failed.
const LIMIT: Duration = Duration::from_secs(900);
/// Seeds of the crash replay (`format/tests/model.rs`).
const MODEL_SEEDS: &str = "0..4";
/// What cargo-nextest exits with when tests fail, and when the build does.
const TESTS_FAILED: i32 = 100;
const BUILD_FAILED: i32 = 101;

/// What became of a mutant.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// These tests failed, as cargo-nextest says: FAIL, TIMEOUT or a signal.
    Caught(BTreeSet<String>),
    Survived,
    DoesNotBuild,
    /// The run as a whole came to no end, or could not begin.
    NoResult(String),
}

impl Outcome {
    fn text(&self) -> String {
        match self {
            Outcome::Caught(tests) => format!("caught by {}", tests.iter().cloned().collect::<Vec<_>>().join(", ")),
            Outcome::Survived => "SURVIVED".to_owned(),
            Outcome::DoesNotBuild => "DOES NOT BUILD".to_owned(),
            Outcome::NoResult(why) => format!("NO RESULT: {why}"),
        }
    }
}

/// Tests that are built and run alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    package: String,
    interleavings: bool,
}

/// The copy of the sources, and where its builds go.
struct Workshop {
    copy: PathBuf,
    place: PathBuf,
}

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    match run(&repository(), &wanted) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(root: &Path, wanted: &[String]) -> Result<bool, String> {
    let mut list = mutants(root)?;
    if let Some(name) = wanted.iter().find(|name| !list.iter().any(|mutant| mutant.name == **name)) {
        return Err(format!("no mutant is called `{name}`; see tests/mutants/list.toml"));
    }
    list.retain(|mutant| wanted.is_empty() || wanted.contains(&mutant.name));
    let mistakes: Vec<String> = list.iter().flat_map(|mutant| mutant.mistakes(root)).collect();
    if !mistakes.is_empty() {
        return Err(mistakes.join("\n"));
    }
    let place = root.join("target/mutants");
    let workshop = Workshop { copy: place.join("copy"), place };
    for name in SOURCES.iter().chain(&READ_BY_TESTS) {
        refresh(&root.join(name), &workshop.copy.join(name)).map_err(|error| format!("copying {name}: {error}"))?;
    }
    workshop.check_unchanged(&list)?;
    // Those that are built alike follow each other: the others need not be built anew in between.
    list.sort_by_key(Kind::of);
    let mut rows = String::new();
    let mut caught = 0;
    for mutant in &list {
        let since = Instant::now();
        let outcome = workshop.try_mutant(mutant)?;
        caught += usize::from(matches!(outcome, Outcome::Caught(_)));
        println!("{}: {} ({} s)", mutant.name, outcome.text(), since.elapsed().as_secs());
        let design: Vec<String> = mutant.design.iter().map(u32::to_string).collect();
        let (rules, said) = (mutant.rules.join(", "), outcome.text());
        rows += &format!("| `{}` | {} | {rules} | {said} |\n", mutant.name, design.join(", "));
    }
    let results = workshop.place.join("results.md");
    fs::write(&results, rows).map_err(|error| format!("{}: {error}", results.display()))?;
    println!("{caught} of {} mutants caught; table rows in {}", list.len(), results.display());
    Ok(caught == list.len())
}

impl Kind {
    fn of(mutant: &Mutant) -> Self {
        Self { package: mutant.package.clone(), interleavings: mutant.interleavings }
    }
}

impl Workshop {
    /// Runs all named tests on the unchanged copy: a test that fails anyway shows nothing.
    fn check_unchanged(&self, list: &[Mutant]) -> Result<(), String> {
        let mut kinds: BTreeMap<Kind, BTreeSet<(&str, &str)>> = BTreeMap::new();
        for mutant in list {
            kinds.entry(Kind::of(mutant)).or_default().extend(mutant.tests()?);
        }
        for (kind, tests) in kinds {
            match self.test(&kind, &tests, "unchanged")? {
                Outcome::Survived => println!("unchanged: {} tests of {} pass", tests.len(), kind.package),
                outcome => return Err(format!("the unchanged sources: {}", outcome.text())),
            }
        }
        Ok(())
    }

    fn try_mutant(&self, mutant: &Mutant) -> Result<Outcome, String> {
        let path = self.copy.join(&mutant.file);
        let says = |error: std::io::Error| format!("{}: {error}", path.display());
        let right = fs::read_to_string(&path).map_err(says)?;
        fs::write(&path, mutant.apply(&right)?).map_err(says)?;
        let outcome = self.test(&Kind::of(mutant), &mutant.tests()?.into_iter().collect(), &mutant.name);
        fs::write(&path, right).map_err(says)?;
        outcome
    }

    fn test(&self, kind: &Kind, tests: &BTreeSet<(&str, &str)>, name: &str) -> Result<Outcome, String> {
        let logs = self.place.join("logs");
        fs::create_dir_all(&logs).map_err(|error| format!("{}: {error}", logs.display()))?;
        let log = logs.join(format!("{name}.log"));
        let file = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let errors = file.try_clone().map_err(|error| format!("{}: {error}", log.display()))?;
        let mut command = Command::new("cargo");
        command.args(["nextest", "run", "--no-fail-fast", "--color", "never", "--status-level", "fail"]);
        command.args(["--final-status-level", "none", "--package", &kind.package]);
        for binary in tests.iter().map(|(binary, _)| *binary).collect::<BTreeSet<_>>() {
            match binary {
                "lib" => command.arg("--lib"),
                "bin" => command.arg("--bins"),
                _ => command.args(["--test", binary]),
            };
        }
        let names: Vec<String> = tests.iter().map(|(_, test)| format!("test(={test})")).collect();
        command.args(["--filterset", &names.join(" or ")]);
        let target = if kind.interleavings { "build-interleavings" } else { "build" };
        command.current_dir(&self.copy).env("CARGO_TARGET_DIR", self.place.join(target)).env("CARGO_INCREMENTAL", "1");
        // No debug information: it is half of the work of building.
        command.env("CARGO_PROFILE_DEV_DEBUG", "0");
        // A part of the crash replay: what a mutant breaks shows within a few seeds, or the rule has a test of its own.
        command.env("PITSTOP_MODEL_SEEDS", MODEL_SEEDS).env("PITSTOP_MODEL_PLACES", "1000");
        if kind.interleavings {
            command.env("RUSTFLAGS", "--cfg pitstop_interleavings");
        }
        command.stdin(Stdio::null()).stdout(file).stderr(errors).process_group(0);
        let child = command.spawn().map_err(|error| format!("cargo nextest: {error}; tests/setup.sh installs it"))?;
        let Some(code) = wait(child)? else {
            return Ok(Outcome::NoResult(format!("not done after {} s", LIMIT.as_secs())));
        };
        let text = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        Ok(match code {
            0 => Outcome::Survived,
            TESTS_FAILED => Outcome::Caught(failed(&text, tests)),
            BUILD_FAILED => Outcome::DoesNotBuild,
            code => Outcome::NoResult(format!("cargo nextest exited with {code}, see {}", log.display())),
        })
    }
}

/// The exit code; `None` if the run had to be ended.
fn wait(mut child: Child) -> Result<Option<i32>, String> {
    let begin = Instant::now();
    loop {
        match child.try_wait().map_err(|error| format!("cargo nextest: {error}"))? {
            Some(status) => return Ok(Some(status.code().unwrap_or(-1))),
            None if begin.elapsed() < LIMIT => std::thread::sleep(Duration::from_millis(50)),
            None => {
                if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
                    kill_process_group(group, Signal::KILL).map_err(|error| format!("killing a run: {error}"))?;
                }
                child.wait().map_err(|error| format!("cargo nextest: {error}"))?;
                return Ok(None);
            }
        }
    }
}

/// The tests that the log says have failed; those that were ended by their time limit say so.
fn failed(log: &str, tests: &BTreeSet<(&str, &str)>) -> BTreeSet<String> {
    let mut failed = BTreeSet::new();
    for line in log.lines().map(str::trim) {
        let Some((word, rest)) = line.split_once(" [") else { continue };
        if word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') {
            continue;
        }
        for (binary, test) in tests {
            if rest.split_whitespace().next_back() == Some(test) {
                let how = if word == "TIMEOUT" { " (time limit)" } else { "" };
                failed.insert(format!("{binary}::{test}{how}"));
            }
        }
    }
    failed
}

/// Makes `to` a copy of `from`, leaving files alone that are the same: what is not touched is not built again.
fn refresh(from: &Path, to: &Path) -> std::io::Result<()> {
    if !from.is_dir() {
        let content = fs::read(from)?;
        if fs::read(to).is_ok_and(|old| old == content) {
            return Ok(());
        }
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        return fs::write(to, content);
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(to)? {
        let old = entry?;
        if !from.join(old.file_name()).exists() {
            if old.file_type()?.is_dir() { fs::remove_dir_all(old.path())? } else { fs::remove_file(old.path())? }
        }
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() != "target" {
            refresh(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
