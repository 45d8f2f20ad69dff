//! `pitstopd`: serves the volumes of one container to virtual machines over vhost-user-blk.
//!
//! The way of the data (ARCHITECTURE.md): `export` listens, `session` turns vhost-user messages into queues, `virtio`
//! understands descriptor chains, `dataplane` carries requests out with io_uring along the plans of `pitstop_format`.
//! `daemon` holds the exports and the rules about them, `control` is the way in for people and programs, `jobs` works in
//! the background. This file only wires them together and turns the outcome into an exit code: 0 after an orderly end,
//! 1 if something failed, 2 for a command line that makes no sense.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may unwrap"))]

mod config;
mod control;
mod daemon;
mod dataplane;
mod events;
mod export;
mod failure_log;
mod jobs;
mod logging;
mod on_connect;
mod session;
mod socket;
mod space;
mod trouble;
mod virtio;

use std::io::Write;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, CommandFactory, Parser};
use pitstop_format::{Container, Disk, FileDisk, Holder, OpenMode};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use config::{Access, ExportConfig, MAX_QUEUES, OnNoSpace, SocketSource};
use control::ControlServer;
use daemon::Daemon;

/// What QEMU's conventions for vhost-user programs let a program say of itself.
const CAPABILITIES: &str = r#"{"type":"block","features":["read-only","blk-file"]}"#;

/// Serves the volumes of a Pitstop container to virtual machines over vhost-user-blk.
#[derive(Debug, Parser)]
#[command(name = "pitstopd", version, about)]
struct Cli {
    /// The container file.
    #[arg(value_name = "CONTAINER", required_unless_present = "blk_file")]
    container: Option<PathBuf>,

    /// Serve a volume: volume=NAME,socket=PATH[,id=ID][,readonly=on][,num-queues=N][,on-enospc=report|stop]
    /// [,refresh-on-connect=SOURCE].
    /// With on-enospc=stop, writes that lack space wait until there is some. With refresh-on-connect=SOURCE, every new
    /// connection of a VM, one after a restart of pitstopd too, finds what volume SOURCE holds at that instant, and all that
    /// was written before is gone: for disposable disks only. May be repeated.
    #[arg(long = "export", value_name = "EXPORT")]
    exports: Vec<ExportConfig>,

    /// Make the control socket (QMP) at this path.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Warn when the container holds this share of what it could hold, in percent; several marks, or off.
    #[arg(long, value_name = "PERCENT,...", default_value = space::DEFAULT_MARKS)]
    space_warning: space::Marks,

    /// Memory for the container's tables, which tell where data lies: bytes, or a number with K, M, G or T. 1M covers
    /// 8 GiB of data; what is used more is read again from the container.
    #[arg(long, value_name = "SIZE", default_value = config::DEFAULT_TABLE_CACHE)]
    table_cache: config::TableCache,

    #[command(flatten)]
    conventions: Conventions,
}

/// Options of QEMU's conventions for vhost-user programs: one volume on one socket.
#[derive(Debug, Args)]
struct Conventions {
    /// Serve one volume on a socket made at this path.
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    socket_path: Option<PathBuf>,

    /// Serve one volume on this inherited socket, listening or connected.
    #[arg(long, value_name = "FDNUM", value_parser = clap::value_parser!(RawFd).range(0..))]
    fd: Option<RawFd>,

    /// The container file (instead of CONTAINER).
    #[arg(long, value_name = "CONTAINER", conflicts_with = "container")]
    blk_file: Option<PathBuf>,

    /// The volume that --socket-path or --fd serves; needed if the container has several.
    #[arg(long, value_name = "NAME")]
    volume: Option<String>,

    /// Open the container for reading only; all exports are read-only.
    #[arg(long)]
    read_only: bool,

    /// Print what this program can do, as JSON, and exit.
    #[arg(long)]
    print_capabilities: bool,
}

/// Why the daemon cannot start or end properly.
#[derive(Debug, thiserror::Error)]
enum MainError {
    #[error("container '{}': {source}", path.display())]
    Container { path: PathBuf, source: pitstop_format::Error },
    #[error("export '{id}': {source}")]
    Export { id: String, source: daemon::DaemonError },
    #[error(transparent)]
    Resources(#[from] export::ExportError),
    #[error("{option} serves one volume and the container has {count}; name it with --volume")]
    WhichVolume { option: &'static str, count: usize },
    #[error("control socket '{}': {source}", path.display())]
    Control { path: PathBuf, source: control::ListenError },
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

fn main() -> ExitCode {
    // The conventions ask to ignore everything else then.
    if std::env::args_os().any(|argument| argument == "--print-capabilities") {
        let printed = writeln!(std::io::stdout(), "{CAPABILITIES}");
        return if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let cli = Cli::parse();
    if cli.conventions.volume.is_some() && cli.conventions.socket_path.is_none() && cli.conventions.fd.is_none() {
        Cli::command()
            .error(clap::error::ErrorKind::MissingRequiredArgument, "--volume goes with --socket-path or --fd")
            .exit();
    }
    let serves_one = cli.conventions.socket_path.is_some() || cli.conventions.fd.is_some();
    if cli.exports.is_empty() && cli.control.is_none() && !serves_one {
        let text = "there is nothing to serve: give --export, --control, --socket-path or --fd";
        Cli::command().error(clap::error::ErrorKind::MissingRequiredArgument, text).exit();
    }
    start_log();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn start_log() {
    let filter = env_logger::Env::new().filter_or("PITSTOP_LOG", "info");
    let target = env_logger::Target::Pipe(Box::new(logging::PatientStderr::default()));
    env_logger::Builder::from_env(filter).format_target(false).format_timestamp_millis().target(target).init();
}

/// A write beyond the limit on file sizes (RLIMIT_FSIZE) is an error of that write, not the end of the process.
fn survive_file_size_limit() {
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

fn run(cli: Cli) -> Result<(), MainError> {
    // First of all: later, a descriptor of our own might have the number.
    if let Some(fd) = cli.conventions.fd {
        export::check_inherited(fd)?;
    }
    session::sigbus::install()?;
    survive_file_size_limit();
    // Before the container is opened: a signal during the start must end the daemon properly too.
    let signals = Signals::new([SIGTERM, SIGINT])?;
    raise_descriptor_limit();
    let path = cli.container.clone().or_else(|| cli.conventions.blk_file.clone()).unwrap_or_default();
    let in_container = |source| MainError::Container { path: path.clone(), source };
    let mode = if cli.conventions.read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
    let disk = FileDisk::open(&path, mode).map_err(in_container)?;
    let container = Container::open(Arc::clone(&disk) as Arc<dyn Disk>, mode).map_err(in_container)?;
    container.limit_resident_pages(cli.table_cache.pages);
    let control = cli.control.as_deref().map(std::path::absolute).transpose()?;
    if mode == OpenMode::ReadWrite {
        let holder = Holder { pid: std::process::id(), program: "pitstopd".to_owned(), control: control.clone() };
        // Only a help for other programs: a full or read-only folder is no reason not to serve.
        if let Err(error) = disk.announce(&holder) {
            log::warn!("'{}': {error}; the pitstop command will not find this daemon", path.display());
        }
    }
    let served = wanted_exports(&cli, &container).and_then(|exports| {
        let daemon = Daemon::new(container.clone(), disk)?;
        serve_until_shutdown(
            &daemon,
            signals,
            exports,
            &Serving { control: control.as_deref(), mode, marks: cli.space_warning },
        )
    });
    // Also after a failed start: what was opened is closed cleanly.
    let closed = if mode == OpenMode::ReadWrite { container.close().map_err(in_container) } else { Ok(()) };
    served.and(closed)?;
    log::info!("closed '{}'", path.display());
    Ok(())
}

/// The exports of the command line, including the one of the conventions.
fn wanted_exports(cli: &Cli, container: &Container) -> Result<Vec<ExportConfig>, MainError> {
    let mut exports = cli.exports.clone();
    let conventions = &cli.conventions;
    let single = match (&conventions.socket_path, conventions.fd) {
        (Some(path), _) => Some((SocketSource::Path(path.clone()), "--socket-path")),
        (None, Some(fd)) => Some((SocketSource::Fd(fd), "--fd")),
        (None, None) => None,
    };
    if let Some((socket, option)) = single {
        let volume = match (&conventions.volume, container.volumes().as_slice()) {
            (Some(name), _) => name.clone(),
            (None, [only]) => only.name.clone(),
            (None, volumes) => return Err(MainError::WhichVolume { option, count: volumes.len() }),
        };
        let access = Access::ReadWrite;
        exports.push(ExportConfig {
            id: volume.clone(),
            volume,
            socket,
            access,
            num_queues: MAX_QUEUES,
            on_enospc: OnNoSpace::Report,
            refresh_on_connect: None,
        });
    }
    if conventions.read_only {
        exports.iter_mut().for_each(|export| export.access = Access::ReadOnly);
    }
    Ok(exports)
}

/// How to serve.
struct Serving<'a> {
    /// Where to make the control socket.
    control: Option<&'a Path>,
    /// How the container is open.
    mode: OpenMode,
    /// When to warn of a lack of space.
    marks: space::Marks,
}

fn serve_until_shutdown(
    daemon: &Arc<Daemon>,
    mut signals: Signals,
    exports: Vec<ExportConfig>,
    serving: &Serving<'_>,
) -> Result<(), MainError> {
    let signals_handle = signals.handle();
    let its_daemon = Arc::clone(daemon);
    let signal_thread = std::thread::Builder::new().name("pit-signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            log::info!("signal {signal}: shutting down");
            its_daemon.request_shutdown();
        }
    })?;
    let maintenance = match serving.mode {
        OpenMode::ReadWrite => Some(jobs::Maintenance::start(daemon, serving.marks.clone())?),
        OpenMode::ReadOnly => None,
    };
    let turns = match serving.mode {
        OpenMode::ReadWrite => {
            daemon.jobs().go_on();
            Some(jobs::Turns::start(daemon.jobs(), Arc::clone(daemon.activity()))?)
        }
        OpenMode::ReadOnly => None,
    };
    let mut server = None;
    let served = start_serving(daemon, exports, serving.control, &mut server);
    if served.is_ok() {
        daemon.wait_for_shutdown();
    }
    // Orders end before what they work on; clients hear of the exports' end before they are sent away.
    if let Some(server) = &server {
        server.refuse_commands();
    }
    if let Some(turns) = turns {
        turns.stop();
        daemon.jobs().end();
    }
    daemon.stop_exports();
    if let Some(server) = server {
        server.stop();
    }
    if let Some(maintenance) = maintenance {
        maintenance.stop();
    }
    signals_handle.close();
    if signal_thread.join().is_err() {
        log::error!("the signal thread has failed");
    }
    served
}

fn start_serving(
    daemon: &Arc<Daemon>,
    exports: Vec<ExportConfig>,
    control: Option<&Path>,
    server: &mut Option<ControlServer>,
) -> Result<(), MainError> {
    for export in exports {
        let id = export.id.clone();
        daemon.add_export(export).map_err(|source| MainError::Export { id, source })?;
    }
    if let Some(path) = control {
        let failed = |source| MainError::Control { path: path.to_owned(), source };
        let target = Arc::clone(daemon) as Arc<dyn control::Target>;
        *server = Some(ControlServer::start(path, target).map_err(failed)?);
    }
    for export in daemon.exports() {
        let socket = export.socket.map_or_else(|| "an inherited socket".to_owned(), |path| path.display().to_string());
        let access = if export.writable { "" } else { " (read-only)" };
        log::info!("export {}: volume '{}'{access} on {socket}", export.id, export.volume);
    }
    Ok(())
}

/// Each queue takes a few descriptors; hundreds of guests need more than the usual soft limit.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives until the calls return.
    let result = unsafe {
        match libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) {
            0 => {
                limit.rlim_cur = limit.rlim_max;
                libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
            }
            failed => failed,
        }
    };
    if result != 0 {
        log::warn!("cannot raise the limit of open files: {}", std::io::Error::last_os_error());
    }
}
