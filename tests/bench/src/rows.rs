//! What operations, wear and scale have to say in the report: lines of a table, made of raw records.
//!
//! Does not: render, or know what is measured.

use serde_json::{Value, json};

use crate::place::median;

/// A line of a table.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) name: String,
    /// Whose figure it is.
    pub(crate) backend: String,
    /// The figure, in `unit`.
    pub(crate) value: f64,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// What it is compared with, in `unit`.
    pub(crate) reference: Option<f64>,
    /// `value` in parts of `reference`.
    pub(crate) ratio: Option<f64>,
    /// What was aimed at, in words.
    pub(crate) target: Option<&'static str>,
    /// Whether that was reached.
    pub(crate) met: Option<bool>,
}

impl Row {
    /// A figure that is compared with nothing.
    pub(crate) fn new(name: &str, backend: &str, value: f64, unit: &'static str) -> Self {
        let (name, backend) = (name.to_owned(), backend.to_owned());
        Self { name, backend, value, unit, reference: None, ratio: None, target: None, met: None }
    }

    /// Compares the figure with `reference`, if that was measured.
    pub(crate) fn against(mut self, reference: Option<f64>) -> Self {
        self.reference = reference;
        self.ratio = reference.filter(|&reference| reference > 0.0).map(|reference| self.value / reference);
        self
    }

    /// Says what was aimed at, and whether it was reached.
    pub(crate) fn aim(mut self, target: &'static str, met: bool) -> Self {
        (self.target, self.met) = (Some(target), Some(met));
        self
    }
}

/// A raw record: what was measured, on what, in which turn, and the members of `values`.
pub(crate) fn record(group: &str, work: &str, backend: &str, repetition: usize, values: &Value) -> Value {
    let mut record = json!({ "group": group, "work": work, "backend": backend, "repetition": repetition });
    if let (Value::Object(record), Value::Object(values)) = (&mut record, values) {
        record.extend(values.clone());
    }
    record
}

/// The records of one kind of measurement.
#[derive(Debug, Clone)]
pub(crate) struct Runs<'a>(Vec<&'a Value>);

impl<'a> Runs<'a> {
    /// Those among `records` of this group, work and backend.
    pub(crate) fn of(records: &'a [Value], group: &str, work: &str, backend: &str) -> Self {
        let wanted =
            |record: &&'a Value| record["group"] == group && record["work"] == work && record["backend"] == backend;
        Self(records.iter().filter(wanted).collect())
    }

    /// All values of the number or array of numbers `field`.
    pub(crate) fn all(&self, field: &str) -> Vec<f64> {
        let numbers = self.0.iter().map(|record| &record[field]);
        let each = |value: &Value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        numbers.flat_map(each).filter_map(|value| value.as_f64()).collect()
    }

    /// The median of `field`, if it was measured.
    pub(crate) fn median(&self, field: &str) -> Option<f64> {
        let mut values = self.all(field);
        (!values.is_empty()).then(|| median(&mut values))
    }

    /// The largest value of `field`, if it was measured.
    pub(crate) fn max(&self, field: &str) -> Option<f64> {
        self.all(field).into_iter().reduce(f64::max)
    }
}
