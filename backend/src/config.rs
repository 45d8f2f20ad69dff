//! What the user asks for: exports and program options, as parsed from the command line or the control socket.
//!
//! Invariant: an [`ExportConfig`] that exists is well-formed (names not empty, queue count in range); whether its volume
//! and socket folder exist is found out by the daemon. Does not: open anything.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

/// Most queues an export may have; also the number it serves when nothing is said.
pub(crate) const MAX_QUEUES: u16 = 64;

/// Whether a guest may change the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// The guest reads and writes.
    ReadWrite,
    /// The guest only reads; writes fail with an I/O error.
    ReadOnly,
}

/// What becomes of a request for which there is no space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum OnNoSpace {
    /// It fails with an I/O error.
    #[default]
    Report,
    /// It waits until there is space.
    Stop,
}

impl OnNoSpace {
    /// Every value with the word for it.
    pub(crate) const WORDS: [(&'static str, OnNoSpace); 2] = [("report", OnNoSpace::Report), ("stop", OnNoSpace::Stop)];

    /// The word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            OnNoSpace::Report => "report",
            OnNoSpace::Stop => "stop",
        }
    }
}

/// Where the front end connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SocketSource {
    /// Listen on a socket made at this path.
    Path(PathBuf),
    /// Use this inherited descriptor: a listening or an already connected socket.
    Fd(RawFd),
}

impl SocketSource {
    /// The path, if there is one.
    pub(crate) fn path(&self) -> Option<&PathBuf> {
        match self {
            SocketSource::Path(path) => Some(path),
            SocketSource::Fd(_) => None,
        }
    }
}

/// One volume served on one socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExportConfig {
    /// Unique among the daemon's exports; the volume's name when nothing is said.
    pub(crate) id: String,
    /// Name of the volume.
    pub(crate) volume: String,
    /// Where the front end connects.
    pub(crate) socket: SocketSource,
    /// Whether the guest may write.
    pub(crate) access: Access,
    /// Most queues the guest may use, `1..=MAX_QUEUES`.
    pub(crate) num_queues: u16,
    /// What becomes of a request for which there is no space.
    pub(crate) on_enospc: OnNoSpace,
    /// Name of the volume from which this one is refreshed whenever a front end connects.
    pub(crate) refresh_on_connect: Option<String>,
}

/// Bytes of a table page in memory.
const TABLE_PAGE_LEN: u64 = 4096;
/// The least cache of tables: with less, requests of several queues would read the same pages again and again.
const MIN_TABLE_CACHE_LEN: u64 = 1 << 20;
/// The default of `--table-cache`.
pub(crate) const DEFAULT_TABLE_CACHE: &str = "256M";

/// How much of the containers' tables stays in memory (MAP-16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableCache {
    /// Pages of 4 KiB.
    pub(crate) pages: usize,
}

impl FromStr for TableCache {
    type Err = String;

    /// Parses bytes, or a number with `K`, `M`, `G` or `T` (powers of 1024; `KiB` and so on are understood too).
    fn from_str(text: &str) -> Result<Self, String> {
        let usage = "write bytes or a number with K, M, G or T, such as 256M, and at least 1M";
        let digits_len = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits_len);
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(usage.to_owned()),
        };
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        let bytes = bytes.filter(|bytes| *bytes >= MIN_TABLE_CACHE_LEN).ok_or(usage)?;
        let pages = usize::try_from(bytes / TABLE_PAGE_LEN).map_err(|_| usage.to_owned())?;
        Ok(TableCache { pages })
    }
}

/// The keys of an export option.
const KEYS: &str = "volume, socket, id, readonly, num-queues, on-enospc, refresh-on-connect";

/// Why an export option cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A part that is not `key=value`.
    #[error("'{part}' in --export is not KEY=VALUE; the keys are {KEYS}")]
    NotKeyValue {
        /// The part.
        part: String,
    },
    /// A key that does not exist.
    #[error("unknown key '{key}' in --export; the keys are {KEYS}")]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A key given twice.
    #[error("key '{key}' is given twice in one --export")]
    Twice {
        /// The key.
        key: String,
    },
    /// A key that must be there.
    #[error("--export needs {key}=...")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A value that is not one of those allowed.
    #[error("'{value}' is not a value for {key}; use {allowed}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What may be given.
        allowed: &'static str,
    },
}

impl FromStr for ExportConfig {
    type Err = ConfigError;

    /// Parses `volume=NAME,socket=PATH[,id=ID][,readonly=on|off][,num-queues=N][,on-enospc=report|stop]` and
    /// `[,refresh-on-connect=SOURCE]`; a comma in a value is doubled.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let (mut volume, mut socket, mut id, mut access, mut num_queues) = (None, None, None, None, None);
        let (mut on_enospc, mut refresh_on_connect) = (None, None);
        for part in split_at_commas(text) {
            let Some((key, value)) = part.split_once('=') else {
                return Err(ConfigError::NotKeyValue { part });
            };
            match key {
                "volume" => set_once(&mut volume, key, not_empty("volume", value)?)?,
                "socket" => set_once(&mut socket, key, PathBuf::from(not_empty("socket", value)?))?,
                "id" => set_once(&mut id, key, not_empty("id", value)?)?,
                "readonly" => set_once(&mut access, key, parse_readonly(value)?)?,
                "num-queues" => set_once(&mut num_queues, key, parse_num_queues(value)?)?,
                "on-enospc" => set_once(&mut on_enospc, key, parse_on_enospc(value)?)?,
                "refresh-on-connect" => {
                    set_once(&mut refresh_on_connect, key, not_empty("refresh-on-connect", value)?)?;
                }
                _ => return Err(ConfigError::UnknownKey { key: key.to_owned() }),
            }
        }
        let volume = volume.ok_or(ConfigError::Missing { key: "volume" })?;
        Ok(ExportConfig {
            id: id.unwrap_or_else(|| volume.clone()),
            volume,
            socket: SocketSource::Path(socket.ok_or(ConfigError::Missing { key: "socket" })?),
            access: access.unwrap_or(Access::ReadWrite),
            num_queues: num_queues.unwrap_or(MAX_QUEUES),
            on_enospc: on_enospc.unwrap_or_default(),
            refresh_on_connect,
        })
    }
}

/// Splits at single commas; a doubled comma stands for one.
fn split_at_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

fn set_once<T>(slot: &mut Option<T>, key: &str, value: T) -> Result<(), ConfigError> {
    if slot.is_some() {
        return Err(ConfigError::Twice { key: key.to_owned() });
    }
    *slot = Some(value);
    Ok(())
}

fn not_empty(key: &'static str, value: &str) -> Result<String, ConfigError> {
    if value.is_empty() {
        return Err(ConfigError::BadValue { key, value: String::new(), allowed: "at least one character" });
    }
    Ok(value.to_owned())
}

fn parse_readonly(value: &str) -> Result<Access, ConfigError> {
    match value {
        "on" => Ok(Access::ReadOnly),
        "off" => Ok(Access::ReadWrite),
        _ => Err(ConfigError::BadValue { key: "readonly", value: value.to_owned(), allowed: "on or off" }),
    }
}

fn parse_on_enospc(value: &str) -> Result<OnNoSpace, ConfigError> {
    let found = OnNoSpace::WORDS.iter().find(|(word, _)| *word == value).map(|(_, policy)| *policy);
    found.ok_or_else(|| ConfigError::BadValue { key: "on-enospc", value: value.to_owned(), allowed: "report or stop" })
}

fn parse_num_queues(value: &str) -> Result<u16, ConfigError> {
    match value.parse() {
        Ok(count) if (1..=MAX_QUEUES).contains(&count) => Ok(count),
        _ => {
            Err(ConfigError::BadValue { key: "num-queues", value: value.to_owned(), allowed: "a number from 1 to 64" })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // rule: MAP-16
    #[test]
    fn a_cache_of_tables_is_a_size() {
        for (text, pages) in [
            (DEFAULT_TABLE_CACHE, 65_536),
            ("1048576", 256),
            ("1048576B", 256),
            ("1024k", 256),
            ("1MiB", 256),
            ("2g", 1 << 19),
            ("1T", 1 << 28),
        ] {
            assert_eq!(text.parse(), Ok(TableCache { pages }), "{text}");
        }
        for bad in ["", "M", "0", "1048575", "1023K", "-1M", "1.5G", "1GB", "1 M", "16777216T", "99999999999999999999"]
        {
            assert!(bad.parse::<TableCache>().unwrap_err().contains("such as 256M"), "{bad}");
        }
    }

    #[test]
    fn full_export_is_understood() {
        let config: ExportConfig =
            "volume=ci-1,socket=/run/a,,b.sock,id=x,readonly=on,num-queues=4,on-enospc=stop,refresh-on-connect=a,,b"
                .parse()
                .unwrap();
        assert_eq!(
            config,
            ExportConfig {
                id: "x".into(),
                volume: "ci-1".into(),
                socket: SocketSource::Path("/run/a,b.sock".into()),
                access: Access::ReadOnly,
                num_queues: 4,
                on_enospc: OnNoSpace::Stop,
                refresh_on_connect: Some("a,b".into()),
            }
        );
    }

    #[test]
    fn defaults_are_volume_name_read_write_and_most_queues() {
        let config: ExportConfig = "socket=s,volume=v".parse().unwrap();
        assert_eq!((config.id.as_str(), config.access, config.num_queues), ("v", Access::ReadWrite, MAX_QUEUES));
        assert_eq!((config.on_enospc, config.refresh_on_connect), (OnNoSpace::Report, None));
    }

    #[test]
    fn bad_exports_are_refused_with_a_reason() {
        for (text, part) in [
            ("volume=v", "needs socket="),
            ("socket=s", "needs volume="),
            ("", "not KEY=VALUE"),
            ("volume=v,socket=s,", "not KEY=VALUE"),
            ("volume=v,socket=s,readonly", "not KEY=VALUE"),
            ("volume=v,socket=s,readonly=yes", "use on or off"),
            ("volume=v,volume=w,socket=s", "given twice"),
            ("volume=,socket=s", "at least one character"),
            ("volume=v,socket=s,num-queues=0", "from 1 to 64"),
            ("volume=v,socket=s,num-queues=65", "from 1 to 64"),
            ("volume=v,socket=s,on-enospc=wait", "use report or stop"),
            ("volume=v,socket=s,refresh-on-connect=", "at least one character"),
            ("volume=v,socket=s,refresh-on-connect=a,refresh-on-connect=b", "given twice"),
            ("volume=v,socket=s,size=3", "unknown key 'size'"),
        ] {
            let error = text.parse::<ExportConfig>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
