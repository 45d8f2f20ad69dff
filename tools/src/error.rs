//! What can go wrong in the `pitstop` command, each with what the user can do next.
//!
//! Invariant: messages are lower case, one line, without control characters from files. They are printed once, by
//! `main`. Does not: decide exit codes (see [`crate::verbs`]).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::render::printable;

/// Result of a part of a command.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The container refused or failed.
    #[error("{}: {source}", shown(.container))]
    Container {
        /// Path of the container.
        container: PathBuf,
        /// What the container said.
        source: pitstop_format::Error,
    },
    /// There is no such file.
    #[error("there is no container {}; make one with `pitstop create {}`", shown(.container), shown(.container))]
    NoContainer {
        /// Path of the container.
        container: PathBuf,
    },
    /// There is something of that name.
    #[error("{} exists already; choose another name, or remove it first", shown(.container))]
    ContainerExists {
        /// Path of the container.
        container: PathBuf,
    },
    /// A system call on a file failed.
    #[error("cannot {what} {}: {source}", shown(.path))]
    File {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file to export to is there already.
    #[error("{} exists already; choose another name, or overwrite it with --force", shown(.path))]
    TargetExists {
        /// The file.
        path: PathBuf,
    },
    /// Somebody works with the container of that name.
    #[error("{} is a container in use; choose another name", shown(.path))]
    TargetInUse {
        /// The file.
        path: PathBuf,
    },
    /// Something else than a file bears the name to export to.
    #[error("{} exists and is not a regular file; choose another name for the image", shown(.path))]
    TargetIsNoFile {
        /// What is there.
        path: PathBuf,
    },
    /// A file that is neither a regular file nor a block device.
    #[error("{} is not a regular file or block device; name a file that holds an image", shown(.path))]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// An image that cannot be imported as it is.
    #[error("{}: {problem}; {advice}", shown(.path))]
    Image {
        /// The image file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What the user can do about it.
        advice: String,
    },
    /// Library imago could not read an image.
    #[error(
        "{}: the image cannot be read: {}; look for damage with `qemu-img check`",
        shown(.path),
        printable(&.source.to_string())
    )]
    ImageUnreadable {
        /// The image file.
        path: PathBuf,
        /// The library's error.
        source: io::Error,
    },
    /// Library imago could not write an image.
    #[error("{}: the image cannot be written: {}", shown(.path), printable(&.source.to_string()))]
    ImageUnwritable {
        /// The image file.
        path: PathBuf,
        /// The library's error.
        source: io::Error,
    },
    /// The volume would change under its guest.
    #[error("a guest is connected to volume {}; power it off first, or restore with --force", printable(.volume))]
    Connected {
        /// The volume.
        volume: String,
    },
    /// Another program holds the container, and there is no talking to it.
    #[error("{} is in use by {holder}; wait until it is done, or stop it, then run this again", shown(.container))]
    InUse {
        /// Path of the container.
        container: PathBuf,
        /// Who holds it.
        holder: HolderName,
    },
    /// The holder's control socket does not answer.
    #[error(
        "{} is held by {holder}, but its control socket {} does not answer: {reason}; check the socket's permissions, or \
         stop that program",
        shown(.container),
        shown(.socket)
    )]
    NoAnswer {
        /// Path of the container.
        container: PathBuf,
        /// Who holds it.
        holder: HolderName,
        /// The control socket.
        socket: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The daemon refused a command; the text is the daemon's and says what to do.
    #[error("{}", printable(.message))]
    Refused {
        /// The daemon's message.
        message: String,
    },
    /// The daemon does not know the command.
    #[error("{holder} does not know the command {command}; stop it, or run a pitstopd as new as this pitstop")]
    Unknown {
        /// Who holds the container.
        holder: HolderName,
        /// The QMP command.
        command: &'static str,
    },
    /// The daemon answered with something else than the protocol says.
    #[error(
        "{holder} gave an answer to {command} that this pitstop does not understand: {reason}; run the same version of both"
    )]
    BadAnswer {
        /// Who holds the container.
        holder: HolderName,
        /// The QMP command.
        command: &'static str,
        /// What was wrong.
        reason: String,
    },
    /// No volume of that name in the answer.
    #[error("no volume named '{}'; `pitstop list` shows the volumes", printable(.name))]
    NoSuchVolume {
        /// The name asked for.
        name: String,
    },
    /// What was listed before a command came, and what after it, are of different instants.
    #[error(
        "{} was copied, refreshed or restored while it was being listed, so that the parts are of different instants; list \
         again, or make copies with `pitstop snapshot` and list those",
        either(.volumes)
    )]
    Moved {
        /// The volumes that were being listed.
        volumes: Vec<String>,
    },
    /// A volume is restored only from a copy of itself.
    #[error(
        "'{}' is {} and not a copy of '{}'; to give '{}' its contents all the same, use `pitstop refresh --source`",
        printable(.copy),
        of_whom(.source_name.as_deref()),
        printable(.volume),
        printable(.volume)
    )]
    NotItsCopy {
        /// The volume to restore.
        volume: String,
        /// What was said to be its copy.
        copy: String,
        /// What that is a copy of.
        source_name: Option<String>,
    },
    /// A rotation has made its copy, but an old one is still there.
    #[error(
        "{} has been made, but the old copy {} could not be deleted and stays: {source}; the next rotation tries again",
        printable(.made),
        printable(.old)
    )]
    NotRotated {
        /// The new copy.
        made: String,
        /// The first that should have been deleted.
        old: String,
        /// Why it was not.
        source: Box<Error>,
    },
    /// No job of that id.
    #[error("no job '{}'; it may have ended, `pitstop job list` shows the jobs", printable(.id))]
    NoSuchJob {
        /// The id asked for.
        id: String,
    },
    /// An order, and no job for it.
    #[error("there is no job; `pitstop hydrate` begins one")]
    NoJob,
    /// An order that does not say for which of several jobs.
    #[error("there are several jobs: name one of {}", printable(&.ids.join(", ")))]
    WhichJob {
        /// Their ids.
        ids: Vec<String>,
    },
    /// A job that does nothing is not waited for.
    #[error(
        "job {} is paused{}; let it go on with `pitstop job resume`, then wait again",
        printable(.id),
        .reason.as_deref().map(|reason| format!(": {}", printable(reason))).unwrap_or_default()
    )]
    JobPaused {
        /// The job.
        id: String,
        /// The error that paused it, if one did.
        reason: Option<String>,
    },
    /// Copies of copies of copies, and so on.
    #[error(
        "copies are nested {levels} levels deep, more than {most} are not shown as JSON; `pitstop list --output json` has \
         the origin of each volume, and a name after `tree` shows the part from that volume on"
    )]
    TooDeep {
        /// Levels of copies.
        levels: usize,
        /// Most levels that are shown.
        most: usize,
    },
    /// Jobs that do nothing are not waited for.
    #[error(
        "jobs {} are paused; let them go on with `pitstop job resume`, then wait again",
        printable(&.ids.join(", "))
    )]
    JobsPaused {
        /// The jobs.
        ids: Vec<String>,
    },
    /// A job has ended before its work was done.
    #[error(
        "job {} has ended, but {} is not real: the job was cancelled, or the volume was refreshed, restored or deleted",
        printable(.id),
        printable(.volume)
    )]
    JobGivenUp {
        /// The job.
        id: String,
        /// Its volume.
        volume: String,
    },
    /// A job other than a hydration has ended before its work was done.
    #[error("job {} has ended: {}", printable(.id), printable(.reason))]
    JobEnded {
        /// The job.
        id: String,
        /// Why.
        reason: String,
    },
    /// A path that cannot be told to a daemon.
    #[error("{} is not UTF-8, and cannot be told to the daemon; choose another name", shown(.path))]
    PathIsNotText {
        /// The path.
        path: PathBuf,
    },
    /// No cache region of that name.
    #[error("no cache region named {}; `pitstop cache list` shows them", printable(.name))]
    NoSuchCache {
        /// The name.
        name: String,
    },
    /// A file that should be an addendum.
    #[error("{}: {source}", shown(.path))]
    Addendum {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pitstop_format::addendum::AddendumError,
    },
    /// Files of a backup that do not belong together.
    #[error("{} {problem}; name the bulk and the addenda of one backup, the oldest first", shown(.path))]
    NotOfThisBackup {
        /// The addendum.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// A container that would replace itself.
    #[error("{} is the container itself; name another file", shown(.path))]
    TargetIsContainer {
        /// The file.
        path: PathBuf,
    },
    /// A backup whose files would replace each other.
    #[error("{} cannot be both the image and the addendum; name two files", shown(.path))]
    AddendumIsTarget {
        /// The file.
        path: PathBuf,
    },
    /// A bulk that looks like another format than raw, which its guest may have seen to.
    #[error("{} is of format {format}, or a raw image of a disk that begins so; say --format {format} or --format raw", shown(.path))]
    FormatIsUnsure {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        format: String,
    },
    /// A backup that has to be made into another format afterwards cannot be left to the daemon.
    #[error("a daemon writes raw images only, and this program converts: leave out --detach, or take -O raw")]
    CannotDetach,
    /// A copy that is not as large as the volume.
    #[error("{} and {} differ in size: what changed since can only be told of a copy as large", printable(.volume), printable(.copy))]
    SizesDiffer {
        /// The volume.
        volume: String,
        /// The copy.
        copy: String,
    },
    /// A refresh was done, but what should follow was not.
    #[error("{} has been refreshed, but is not being hydrated: {source}", printable(.volume))]
    NotHydrated {
        /// The volume.
        volume: String,
        /// Why not.
        source: Box<Error>,
    },
    /// A container is repaired only while nobody uses it.
    #[error(
        "{} is held by {holder} and cannot be repaired while that runs; stop it first (SIGTERM), then run this again",
        shown(.container)
    )]
    CannotRepairHeld {
        /// Path of the container.
        container: PathBuf,
        /// Who holds it.
        holder: HolderName,
    },
    /// What a repair would change could not be kept, so it was not begun.
    #[error(
        "there is no log {} of the repair: {source}; the container has not been changed: make room, or name another place \
         with --repair-log",
        shown(.log)
    )]
    LogNotWritten {
        /// The repair's log.
        log: PathBuf,
        /// What failed.
        source: Box<Error>,
    },
    /// A repair ended half-way.
    #[error(
        "{}: {source}; the repair is not complete: check and repair again when the storage is well, or put back what was \
         there with `pitstop check --undo {}`",
        shown(.container),
        shown(.log)
    )]
    RepairFailed {
        /// Path of the container.
        container: PathBuf,
        /// The repair's log.
        log: PathBuf,
        /// What failed.
        source: Box<pitstop_format::Error>,
    },
    /// Signal handlers could not be set.
    #[error("cannot watch for ctrl-c: {0}")]
    Signals(io::Error),
    /// The user or the system asked the command to stop.
    #[error("interrupted; {undone}")]
    Interrupted {
        /// What was undone.
        undone: &'static str,
    },
    /// Something that this program was sure of is not so.
    #[error("cannot show the result as JSON: {0}; report this as a defect")]
    Json(#[from] serde_json::Error),
    /// Standard output failed.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    /// The thread that reads ahead ended without a word.
    #[error("the reading thread ended unexpectedly; report this as a defect")]
    ReaderGone,
}

impl Error {
    /// Puts a system error on `path` into words: `cannot WHAT PATH: ERROR`.
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |source| Error::File { what, path, source }
    }

    /// Puts an error of the container at `path` into words.
    pub(crate) fn container(path: &Path) -> impl FnOnce(pitstop_format::Error) -> Error + use<> {
        let container = path.to_owned();
        move |source| Error::Container { container, source }
    }
}

/// Who holds a container, for people.
#[derive(Debug, Clone)]
pub(crate) struct HolderName {
    /// Name of the program.
    pub(crate) program: String,
    /// Its process.
    pub(crate) pid: Option<u32>,
}

impl fmt::Display for HolderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", printable(&self.program))?;
        if let Some(pid) = self.pid {
            write!(f, " (pid {pid})")?;
        }
        Ok(())
    }
}

/// What a volume is, as far as it is a copy.
/// Volumes of which one is meant.
fn either(names: &[String]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("'{}'", printable(name))).collect();
    quoted.join(" or ")
}

fn of_whom(source: Option<&str>) -> String {
    source.map_or_else(|| "no copy of any volume".to_owned(), |name| format!("a copy of '{}'", printable(name)))
}

/// A path for a message.
fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy())
}
