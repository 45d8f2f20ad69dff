//! Measurements by work, backend and repetition; medians and ratios of them.
//!
//! A ratio is made of two runs of one repetition, and only then the median taken of all repetitions' ratios. Does not:
//! know targets.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::Value;

use crate::Result;
use crate::place::median;
use crate::works::{Measure, WORKS};

/// Runs of one backend at one work.
type Run<'a> = (&'a str, &'a str);

/// What a number of runs has come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Summary {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.retain(|value| value.is_finite());
        let median = median(&mut values);
        Some(Summary { median, least: *values.first()?, most: *values.last()? })
    }
}

/// All records of a run of the benchmark.
#[derive(Debug)]
pub(crate) struct Numbers {
    pub(crate) records: Vec<Value>,
}

impl Numbers {
    /// Reads lines of JSON. Of a run that was measured again, the last counts.
    ///
    /// # Errors
    /// The file cannot be read, or a line is no JSON.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let hint = "measure first with 'pitstop-bench run'";
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read measurements from {}: {error}; {hint}", path.display()))?;
        let parse = |(n, line)| {
            serde_json::from_str(line).map_err(|error| format!("{} line {}: {error}", path.display(), n + 1))
        };
        let mut records = text.lines().enumerate().map(parse).collect::<std::result::Result<Vec<Value>, _>>()?;
        let mut seen = HashSet::new();
        records.reverse();
        records.retain(|record| {
            seen.insert(["group", "work", "backend", "repetition"].map(|member| record[member].to_string()))
        });
        records.reverse();
        Ok(Numbers { records })
    }

    fn runs(&self, (work, backend): Run<'_>) -> impl Iterator<Item = &Value> {
        self.records.iter().filter(move |record| record["work"] == work && record["backend"] == backend)
    }

    /// The number that `pick` takes from each of the runs.
    pub(crate) fn summary(&self, run: Run<'_>, pick: impl Fn(&Value) -> Option<f64>) -> Option<Summary> {
        Summary::of(self.runs(run).filter_map(pick).collect())
    }

    /// The ratios of `ours` to `theirs` in the same repetition.
    pub(crate) fn ratio(&self, ours: Run<'_>, theirs: Run<'_>, measure: Measure) -> Option<Summary> {
        let by_repetition = |run| -> BTreeMap<u64, f64> {
            let number = |record: &Value| Some((record["repetition"].as_u64()?, measure.of(record)?));
            self.runs(run).filter_map(number).collect()
        };
        let references = by_repetition(theirs);
        let ratio = |(repetition, value): (u64, f64)| Some(value / references.get(&repetition)?);
        Summary::of(by_repetition(ours).into_iter().filter_map(ratio).collect())
    }

    /// How often each work of the data path was done.
    pub(crate) fn repetitions(&self) -> usize {
        let works = self.records.iter().filter(|record| WORKS.iter().any(|work| record["work"] == work.name));
        works.filter_map(|record| record["repetition"].as_u64()).collect::<HashSet<_>>().len()
    }
}

impl Measure {
    /// This number of a run.
    pub(crate) fn of(self, record: &Value) -> Option<f64> {
        match self {
            Measure::Rate => record["iops"].as_f64(),
            Measure::P99 => record["latency_us"]["p99"].as_f64(),
            Measure::Cpu => Some(record["backend_cpu_seconds"].as_f64()? * 1e6 / record["requests"].as_f64()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Numbers, Summary};
    use crate::works::Measure;

    fn run(backend: &str, repetition: u64, iops: f64) -> serde_json::Value {
        json!({ "work": "w", "backend": backend, "repetition": repetition, "iops": iops })
    }

    #[test]
    fn ratios_are_made_within_a_repetition() {
        let records = vec![
            run("a", 0, 10.0),
            run("b", 0, 5.0),
            run("a", 1, 100.0),
            run("b", 1, 200.0),
            run("a", 2, 3.0),
            run("b", 2, 1.0),
            run("a", 3, 7.0),
        ];
        let ratio = Numbers { records }.ratio(("w", "a"), ("w", "b"), Measure::Rate);
        assert_eq!(ratio, Some(Summary { median: 2.0, least: 0.5, most: 3.0 }));
    }

    #[test]
    fn of_a_run_measured_again_the_last_counts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines = [run("a", 0, 1.0), run("a", 1, 2.0), run("a", 0, 3.0)].map(|record| record.to_string() + "\n");
        std::fs::write(file.path(), lines.concat()).unwrap();
        let summary = Numbers::read(file.path()).unwrap().summary(("w", "a"), |record| Measure::Rate.of(record));
        assert_eq!(summary, Some(Summary { median: 2.5, least: 2.0, most: 3.0 }));
    }

    #[test]
    fn what_was_not_measured_has_no_ratio() {
        let numbers = Numbers { records: vec![run("a", 0, 10.0)] };
        assert_eq!(numbers.ratio(("w", "a"), ("w", "b"), Measure::Rate), None);
    }
}
