//! Arguments of a command: takes each out of the object under its type, with QEMU's error texts (CTL-17).
//!
//! Invariant: [`Args::finish`] fails if an argument was not asked for, so that a misspelt one is never ignored.

use serde_json::{Map, Value};

use super::protocol::Failure;

/// The arguments that have not been taken yet.
#[derive(Debug)]
pub(super) struct Args {
    members: Map<String, Value>,
    /// Put before names in messages: `addr.` for the members of `addr`.
    prefix: String,
}

impl Args {
    /// All arguments of a request.
    pub(super) fn new(members: Map<String, Value>) -> Self {
        Self { members, prefix: String::new() }
    }

    /// A string that must be there.
    pub(super) fn string(&mut self, name: &str) -> Result<String, Failure> {
        self.optional_string(name)?.ok_or_else(|| self.missing(name))
    }

    /// A string that may be there.
    pub(super) fn optional_string(&mut self, name: &str) -> Result<Option<String>, Failure> {
        match self.members.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.ill_typed(name, "string")),
        }
    }

    /// A boolean that may be there.
    pub(super) fn optional_bool(&mut self, name: &str) -> Result<Option<bool>, Failure> {
        match self.members.remove(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(self.ill_typed(name, "boolean")),
        }
    }

    /// An unsigned 64-bit integer that must be there.
    pub(super) fn u64(&mut self, name: &str) -> Result<u64, Failure> {
        let value = self.members.remove(name).ok_or_else(|| self.missing(name))?;
        value.as_u64().ok_or_else(|| self.expects(name, "uint64"))
    }

    /// An unsigned 64-bit integer that may be there.
    pub(super) fn optional_u64(&mut self, name: &str) -> Result<Option<u64>, Failure> {
        if self.members.contains_key(name) { self.u64(name).map(Some) } else { Ok(None) }
    }

    /// An unsigned 16-bit integer that may be there.
    pub(super) fn optional_u16(&mut self, name: &str) -> Result<Option<u16>, Failure> {
        match self.members.remove(name) {
            None => Ok(None),
            Some(Value::Number(number)) => match number.as_u64().map(u16::try_from) {
                Some(Ok(value)) => Ok(Some(value)),
                _ => Err(self.expects(name, "uint16_t")),
            },
            Some(_) => Err(self.expects(name, "uint64")),
        }
    }

    /// One of a few words that must be there.
    pub(super) fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Result<T, Failure> {
        self.optional_choice(name, choices)?.ok_or_else(|| self.missing(name))
    }

    /// One of a few words that may be there.
    pub(super) fn optional_choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Result<Option<T>, Failure> {
        let Some(word) = self.optional_string(name)? else {
            return Ok(None);
        };
        match choices.iter().find(|(choice, _)| *choice == word) {
            Some(&(_, value)) => Ok(Some(value)),
            None => Err(Failure::generic(format!("Parameter '{}{name}' does not accept value '{word}'", self.prefix))),
        }
    }

    /// An object that must be there; finish it too.
    pub(super) fn object(&mut self, name: &str) -> Result<Args, Failure> {
        match self.members.remove(name) {
            None => Err(self.missing(name)),
            Some(Value::Object(members)) => Ok(Args { members, prefix: format!("{}{name}.", self.prefix) }),
            Some(_) => Err(self.ill_typed(name, "object")),
        }
    }

    /// An object that may be there; finish it too.
    pub(super) fn optional_object(&mut self, name: &str) -> Result<Option<Args>, Failure> {
        if self.members.contains_key(name) { self.object(name).map(Some) } else { Ok(None) }
    }

    /// An array of objects that must be there; finish each.
    pub(super) fn objects(&mut self, name: &str) -> Result<Vec<Args>, Failure> {
        let values = self.optional_array(name)?.ok_or_else(|| self.missing(name))?;
        let object = |(index, value)| match value {
            Value::Object(members) => Ok(Args { members, prefix: format!("{}{name}[{index}].", self.prefix) }),
            _ => Err(self.ill_typed(&format!("{name}[{index}]"), "object")),
        };
        values.into_iter().enumerate().map(object).collect()
    }

    /// An array that may be there.
    pub(super) fn optional_array(&mut self, name: &str) -> Result<Option<Vec<Value>>, Failure> {
        match self.members.remove(name) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(_) => Err(self.ill_typed(name, "array")),
        }
    }

    /// Fails if any argument is left.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self.members.keys().next() {
            None => Ok(()),
            Some(name) => Err(Failure::generic(format!("Parameter '{}{name}' is unexpected", self.prefix))),
        }
    }

    fn missing(&self, name: &str) -> Failure {
        Failure::generic(format!("Parameter '{}{name}' is missing", self.prefix))
    }

    fn ill_typed(&self, name: &str, expected: &str) -> Failure {
        Failure::generic(format!("Invalid parameter type for '{}{name}', expected: {expected}", self.prefix))
    }

    fn expects(&self, name: &str, expected: &str) -> Failure {
        Failure::generic(format!("Parameter '{}{name}' expects {expected}", self.prefix))
    }
}
