//! Mutants: the engine with one rule broken, and the tests that must notice.
//!
//! Role: the list in `tests/mutants/list.toml` as Rust types, and what can be checked of it without building anything.
//! Does not: build or run mutants (`tests/mutants/main.rs`).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Deserialize;

/// One wrong version of the engine: a piece of source, what stands there instead, and the tests that must fail.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// What is wrong, in few words with dashes.
    pub name: String,
    /// Numbers of the design rules that it breaks.
    pub design: Vec<u32>,
    /// Ids of the rules of the specification that it breaks.
    pub rules: Vec<String>,
    /// The source file, from the repository's root.
    pub file: String,
    /// A piece of the file that occurs in it exactly once.
    pub find: String,
    /// What stands there in the mutant.
    pub replace: String,
    /// The crate whose tests are run.
    #[serde(default = "format_crate")]
    pub package: String,
    /// Tests of that crate, `BINARY::TEST`; at least one of them must fail. `lib` is the crate's own unit tests, `bin` those
    /// of its program.
    pub tests: Vec<String>,
    /// Built with `--cfg pitstop_interleavings`.
    #[serde(default)]
    pub interleavings: bool,
}

fn format_crate() -> String {
    "pitstop-format".to_owned()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

/// All mutants, in the list's order.
///
/// # Errors
/// What is wrong with the list.
pub fn mutants(root: &Path) -> Result<Vec<Mutant>, String> {
    let path = root.join("tests/mutants/list.toml");
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let list: List = toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(list.mutant)
}

impl Mutant {
    /// The mutant's file, given the right one.
    ///
    /// # Errors
    /// When the place to change is not there exactly once, or nothing would change.
    pub fn apply(&self, source: &str) -> Result<String, String> {
        let name = &self.name;
        match source.matches(&self.find).count() {
            1 if self.find != self.replace => Ok(source.replacen(&self.find, &self.replace, 1)),
            1 => Err(format!("{name}: `find` and `replace` are the same")),
            count => Err(format!("{name}: `find` occurs {count} times in {}, not once", self.file)),
        }
    }

    /// The binary and the name of each test.
    ///
    /// # Errors
    /// When a test is not `BINARY::TEST`.
    pub fn tests(&self) -> Result<Vec<(&str, &str)>, String> {
        let split = |test: &'_ String| format!("{}: test `{test}` is not BINARY::TEST", self.name);
        self.tests.iter().map(|test| test.split_once("::").ok_or_else(|| split(test))).collect()
    }

    /// What is wrong with the mutant as far as the sources under `root` tell.
    pub fn mistakes(&self, root: &Path) -> Vec<String> {
        let mut mistakes = Vec::new();
        let source = fs::read_to_string(root.join(&self.file)).map_err(|error| format!("{}: {error}", self.file));
        mistakes.extend(source.and_then(|source| self.apply(&source)).err());
        if self.tests.is_empty() || self.rules.is_empty() {
            mistakes.push(format!("{}: it has no tests or rules", self.name));
        }
        match self.tests() {
            Err(mistake) => mistakes.push(mistake),
            Ok(tests) => {
                let missing = tests.iter().filter(|(binary, test)| !has_test(root, &self.package, binary, test));
                mistakes.extend(missing.map(|(binary, test)| format!("{}: no test {binary}::{test}", self.name)));
            }
        }
        mistakes
    }
}

/// Whether the crate has that test, told from its sources.
pub fn has_test(root: &Path, package: &str, binary: &str, test: &str) -> bool {
    let folder = match package.strip_prefix("pitstop-") {
        Some("tests") => root.join("tests"),
        Some(folder) if ["lib", "bin"].contains(&binary) => root.join(folder).join("src"),
        Some(folder) => root.join(folder).join("tests"),
        None => return false,
    };
    let name = test.rsplit("::").next().unwrap_or(test);
    let mut files = BTreeSet::new();
    match binary {
        "lib" | "bin" => sources(&folder, &mut files),
        _ => {
            files.insert(folder.join(format!("{binary}.rs")));
            sources(&folder.join(binary), &mut files);
        }
    }
    // A function of that name, or a scenario: `name, prepare, body`.
    let (function, scenario) = (format!("fn {name}("), format!("{name}, "));
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .any(|text| text.lines().any(|line| line.contains(&function) || line.trim_start().starts_with(&scenario)))
}

fn sources(folder: &Path, files: &mut BTreeSet<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.insert(path);
        }
    }
}
