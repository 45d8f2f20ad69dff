//! A daemon that serves from a file system whose requests fail on demand, and requests to it.

use std::ops::Range;
use std::path::PathBuf;

use crate::common::client::{Client, Style, T_OUT};
use crate::common::faulty::{FaultyFs, Grain};
use crate::common::{Daemon, Place, Qmp, text, wait_until};
use pitstop_format::check::{Outcome, check};
use pitstop_format::{CreateOptions, FileDisk, OpenMode};

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
/// Journal of a new container; data lies behind it.
pub const JOURNAL: Range<u64> = 3 << 18..(3 << 18) + (64 << 20);
pub const DATA: Range<u64> = JOURNAL.end..u64::MAX;

/// A daemon that serves `v` and `w` from the faulty file system.
pub struct Scene {
    pub daemon: Option<Daemon>,
    pub fs: FaultyFs,
    pub place: Place,
    pub more: String,
}

impl Scene {
    pub fn new() -> Self {
        Self::with("")
    }

    /// Exports with more options: `,KEY=VALUE`.
    pub fn with(more: &str) -> Self {
        Self::with_options(more, &CreateOptions::default())
    }

    /// On a file system without room for a larger container: the daemon never gets to grow it, however early it tries.
    pub fn without_room(more: &str) -> Self {
        Self::prepared(more, &CreateOptions::default(), |fs| fs.set_capacity(fs.file_len()))
    }

    pub fn with_options(more: &str, options: &CreateOptions) -> Self {
        Self::prepared(more, options, |_| {})
    }

    pub fn prepared(more: &str, options: &CreateOptions, prepare: impl FnOnce(&FaultyFs)) -> Self {
        let place = Place::with_options(&["v", "w"], options);
        let fs = FaultyFs::mount(&place.path("mounted"), &place.container(), Grain::Sector);
        prepare(&fs);
        let mut scene = Scene { daemon: None, fs, place, more: more.to_owned() };
        scene.start();
        scene
    }

    pub fn start(&mut self) {
        let mut arguments = vec![text(&self.fs.file()).to_owned()];
        arguments.extend(["--control".to_owned(), text(&self.control()).to_owned()]);
        for volume in ["v", "w"] {
            arguments.push("--export".to_owned());
            arguments.push(format!("volume={volume},socket={}{}", text(&self.place.path(volume)), self.more));
        }
        self.daemon = Some(Daemon::start_logged(&arguments, &self.place.path("log")));
        wait_until("control socket", || self.control().exists());
    }

    pub fn control(&self) -> PathBuf {
        self.place.path("control")
    }

    pub fn qmp(&self) -> Qmp {
        Qmp::connect(&self.control())
    }

    pub fn guest(&self, volume: &str) -> Client {
        Client::connect(&self.place.path(volume), Style::PLAIN)
    }

    pub fn wait_for_log(&self, part: &str) {
        let path = self.place.path("log");
        wait_until(part, || std::fs::read_to_string(&path).unwrap().contains(part));
    }

    /// Ends the daemon, which must have survived all this.
    pub fn stop(&mut self) {
        assert_eq!(self.daemon.take().unwrap().terminate().code(), Some(0));
    }

    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// Ends the daemon; the container must be sound.
    pub fn end(mut self) {
        self.stop();
        self.check();
    }

    pub fn check(&self) {
        crate::common::alone_with_container(|| {
            let disk = FileDisk::open(&self.place.container(), OpenMode::ReadOnly).unwrap();
            let report = check(&*disk).unwrap();
            assert_eq!(report.outcome(), Outcome::Clean, "{:?}", report.findings);
        });
    }
}

pub fn status(guest: &mut Client, kind: u32, offset: u64, data: &mut [u8]) -> u8 {
    guest.request(kind, offset / 512, data).status
}

pub fn writes(guest: &mut Client, offset: u64, byte: u8, len: usize) -> u8 {
    status(guest, T_OUT, offset, &mut vec![byte; len])
}
