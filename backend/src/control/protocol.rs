//! The messages of QMP: greeting, request, reply, event.
//!
//! Role: between JSON values and typed messages, with the error texts of QEMU for malformed requests (CTL-16).
//! It does not know any command.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::json;

/// Error classes of QMP that this server uses (CTL-20).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorClass {
    /// Everything that has no class of its own, malformed input and bad arguments included.
    Generic,
    /// No such command, or not in this state of the session.
    CommandNotFound,
    /// A volume or export does not exist.
    DeviceNotFound,
}

impl ErrorClass {
    fn as_str(self) -> &'static str {
        match self {
            Self::Generic => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
            Self::DeviceNotFound => "DeviceNotFound",
        }
    }
}

/// Why a request failed, as the client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// For programs.
    pub(super) class: ErrorClass,
    /// For people.
    pub(super) desc: String,
}

impl Failure {
    /// A failure of class `GenericError`.
    pub(super) fn generic(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::Generic, desc: desc.into() }
    }

    /// A failure of class `CommandNotFound`.
    pub(super) fn command_not_found(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::CommandNotFound, desc: desc.into() }
    }
}

/// A command to run.
#[derive(Debug, PartialEq)]
pub(super) struct Request {
    /// The command's name.
    pub(super) command: String,
    /// Its arguments, unchecked.
    pub(super) arguments: Map<String, Value>,
}

/// A request or why it is none, and the `id` to give back with the reply.
#[derive(Debug, PartialEq)]
pub(super) struct Parsed {
    /// Any JSON value; absent if the client gave none or it could not be read.
    pub(super) id: Option<Value>,
    /// The request.
    pub(super) request: Result<Request, Failure>,
}

/// Parses the text of one value.
pub(super) fn parse_request(text: &[u8]) -> Parsed {
    match json::parse(text) {
        Err(error) => Parsed { id: None, request: Err(malformed(&error.to_string())) },
        Ok(Value::Object(mut members)) => Parsed { id: members.remove("id"), request: request(members) },
        Ok(_) => Parsed { id: None, request: Err(Failure::generic("QMP input must be a JSON object")) },
    }
}

/// The failure for input that is not JSON.
pub(super) fn malformed(why: &str) -> Failure {
    Failure::generic(format!("JSON parse error, {why}"))
}

fn request(mut members: Map<String, Value>) -> Result<Request, Failure> {
    let command = members.remove("execute");
    let arguments = members.remove("arguments");
    if let Some(name) = members.keys().next() {
        return Err(Failure::generic(format!("QMP input member '{name}' is unexpected")));
    }
    let command = match command {
        Some(Value::String(command)) => command,
        Some(_) => return Err(Failure::generic("QMP input member 'execute' must be a string")),
        None => return Err(Failure::generic("QMP input lacks member 'execute'")),
    };
    let arguments = match arguments {
        None => Map::new(),
        Some(Value::Object(arguments)) => arguments,
        Some(_) => return Err(Failure::generic("QMP input member 'arguments' must be an object")),
    };
    Ok(Request { command, arguments })
}

/// What `query-version` returns and the greeting carries: this program's version in both forms.
pub(super) fn version() -> Value {
    let number = |text: &str| text.parse::<u32>().unwrap_or(0);
    json!({
        "qemu": {
            "major": number(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": number(env!("CARGO_PKG_VERSION_MINOR")),
            "micro": number(env!("CARGO_PKG_VERSION_PATCH")),
        },
        "package": concat!("pitstop ", env!("CARGO_PKG_VERSION")),
    })
}

/// The first message of the server.
pub(super) fn greeting() -> Vec<u8> {
    json::message(&json!({"QMP": {"version": version(), "capabilities": []}}))
}

/// The answer to a request.
pub(super) fn reply(id: Option<Value>, result: Result<Value, Failure>) -> Vec<u8> {
    let mut members = Map::new();
    match result {
        Ok(value) => members.insert("return".to_owned(), value),
        Err(failure) => {
            members.insert("error".to_owned(), json!({"class": failure.class.as_str(), "desc": failure.desc}))
        }
    };
    if let Some(id) = id {
        members.insert("id".to_owned(), id);
    }
    json::message(&Value::Object(members))
}

/// Something that happened, stamped with the present time.
pub(super) fn event(name: &str, data: Value) -> Vec<u8> {
    let timestamp = match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => json!({"seconds": since.as_secs(), "microseconds": since.subsec_micros()}),
        Err(_) => json!({"seconds": -1, "microseconds": -1}), // as the QMP specification says
    };
    json::message(&json!({"event": name, "data": data, "timestamp": timestamp}))
}

#[cfg(test)]
#[path = "tests/protocol.rs"]
mod tests;
