//! Commands without end on volumes of its own, through one QMP connection.
//!
//! A command that was answered has happened, one that was refused has not, and the one that the kill left unanswered has
//! happened wholly or not at all (promise 3).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::common::{Qmp, Random, VOLUME_LEN};
use crate::model::{Before, Busy, Content, Stamp};

/// Names that a storm uses.
const NAMES: u64 = 4;

/// Where a copy comes from.
enum Source {
    /// A volume with a guest: its number, and how far it was.
    Busy(usize, Before),
    /// A volume of the storm's own.
    Own(String),
}

/// A command that has been sent.
enum Command {
    Create(String),
    Delete(String),
    Rename(String, String),
    /// Makes the volume, or refreshes it if it is there.
    Copy(String, Source),
    /// Begins to make a volume real, which shows nobody anything.
    Hydrate(String),
}

/// One storm, from kill to kill.
pub(crate) struct Storm {
    prefix: char,
    known: BTreeMap<String, Content>,
    sent: Option<Command>,
    sectors: usize,
}

impl Storm {
    pub(crate) fn new(prefix: char, sectors: usize) -> Self {
        Storm { prefix, known: BTreeMap::new(), sent: None, sectors }
    }

    pub(crate) fn owns(&self, name: &str) -> bool {
        name.starts_with(self.prefix)
    }

    /// The contents of one of its volumes, if it has any.
    pub(crate) fn any(&self) -> Option<(&String, &Content)> {
        self.known.iter().next()
    }

    /// Gives commands until the daemon is dead; returns how many were answered.
    pub(crate) fn run(&mut self, qmp: &mut Qmp, busy: &[Busy], random: &mut Random, dead: &AtomicBool) -> usize {
        let mut answered = 0;
        while !dead.load(Ordering::SeqCst) {
            let command = self.choose(busy, random);
            let (verb, arguments) = self.words(&command, busy);
            self.sent = Some(command);
            let Some(answer) = qmp.try_ask(verb, arguments.clone()) else { break };
            let is_refused = matches!(self.sent, Some(Command::Hydrate(_))) && is_hydrating_already(&answer);
            assert!(answer.get("return").is_some() || is_refused, "{verb} {arguments}: {answer}");
            if let Some(command) = self.sent.take() {
                self.apply(command, busy);
            }
            answered += 1;
        }
        answered
    }

    fn choose(&self, busy: &[Busy], random: &mut Random) -> Command {
        let name = |random: &mut Random| format!("{}{}", self.prefix, random.below(NAMES));
        let first = name(random);
        if !self.known.contains_key(&first) {
            if random.below(4) == 0 {
                return Command::Create(first);
            }
        } else {
            let second = name(random);
            match random.below(8) {
                0 | 1 => return Command::Delete(first),
                2 if !self.known.contains_key(&second) => return Command::Rename(first, second),
                3 | 4 => return Command::Hydrate(first),
                _ => {}
            }
        }
        let own: Vec<&String> = self.known.keys().filter(|known| **known != first).collect();
        let source = if own.is_empty() || random.below(3) > 0 {
            let index = random.below(busy.len() as u64) as usize;
            Source::Busy(index, busy[index].before())
        } else {
            Source::Own(own[random.below(own.len() as u64) as usize].clone())
        };
        Command::Copy(first, source)
    }

    fn words(&self, command: &Command, busy: &[Busy]) -> (&'static str, Value) {
        match command {
            Command::Create(name) => ("x-pitstop-volume-create", json!({"name": name, "size": VOLUME_LEN})),
            Command::Delete(name) => ("x-pitstop-volume-delete", json!({"name": name})),
            Command::Rename(name, new) => ("x-pitstop-volume-rename", json!({"name": name, "new-name": new})),
            Command::Hydrate(name) => ("x-pitstop-volume-hydrate", json!({"name": name})),
            Command::Copy(name, source) => {
                let source = match source {
                    Source::Busy(index, _) => busy[*index].name,
                    Source::Own(name) => name,
                };
                let verb = if self.known.contains_key(name) { "x-pitstop-refresh" } else { "x-pitstop-snapshot" };
                (verb, json!({"name": name, "source": source}))
            }
        }
    }

    fn apply(&mut self, command: Command, busy: &[Busy]) {
        match command {
            Command::Create(name) => {
                self.known.insert(name, Content::exactly(vec![0; self.sectors]));
            }
            Command::Delete(name) => {
                self.known.remove(&name);
            }
            Command::Rename(name, new) => {
                let content = self.known.remove(&name).unwrap();
                self.known.insert(new, content);
            }
            Command::Hydrate(_) => {}
            Command::Copy(name, source) => {
                let content = match source {
                    Source::Busy(index, before) => busy[index].copied(&before),
                    Source::Own(source) => self.known[&source].clone(),
                };
                self.known.insert(name, content);
            }
        }
    }

    /// Compares with the volumes found after the kill, by name, and takes over what they show.
    pub(crate) fn survived(&mut self, found: BTreeMap<String, Vec<Stamp>>, busy: &[Busy]) {
        if let Err(before) = self.fits(&found) {
            let Some(command) = self.sent.take() else { panic!("after the kill: {before}") };
            self.apply(command, busy);
            if let Err(after) = self.fits(&found) {
                panic!("the unanswered command has happened in part: not before ({before}), not after ({after})");
            }
        }
        self.sent = None;
        self.known = found.into_iter().map(|(name, stamps)| (name, Content::exactly(stamps))).collect();
    }

    fn fits(&self, found: &BTreeMap<String, Vec<Stamp>>) -> Result<(), String> {
        if !self.known.keys().eq(found.keys()) {
            let names = |keys: Vec<&String>| format!("{keys:?}");
            return Err(format!("{} instead of {}", names(found.keys().collect()), names(self.known.keys().collect())));
        }
        for (name, stamps) in found {
            if let Some(why) = self.known[name].differs_from(stamps) {
                return Err(format!("volume {name}: {why}"));
            }
        }
        Ok(())
    }
}

fn is_hydrating_already(answer: &Value) -> bool {
    answer["error"]["desc"].as_str().is_some_and(|text| text.contains("is being hydrated already"))
}
