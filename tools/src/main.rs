//! The `pitstop` command: makes, inspects, converts and checks containers.
//!
//! This file holds the arguments, and hands them to one module a verb ([`verbs`]). Exit codes: 0 done, 1 an error that
//! standard error explains, 2 wrong usage; `check` and `compare` have their own. Does not: touch containers.

#![forbid(unsafe_code)]

mod copy;
mod error;
mod hierarchy;
mod image;
mod interrupt;
mod jobs;
mod maps;
mod picture;
mod progress;
mod qmp;
mod render;
mod session;
mod size;
mod verbs;
mod view;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use pitstop_format::{CacheOptions, NewCopy, ViewEnd, VolumeChange};

use crate::error::Result;
use crate::image::{Backing, Format, Overwrite};
use crate::jobs::JobOrder;
use crate::render::Output;
use crate::session::{Connected, Depth};
use crate::verbs::backup::Backup;
use crate::verbs::check::{Repair, Task};
use crate::verbs::compare::Other;
use crate::verbs::export::Export;
use crate::verbs::hydrate::{How, Wait};
use crate::verbs::import::Import;
use crate::verbs::restore_backup::Restore;
use crate::verbs::rotate::History;
use crate::verbs::verify::VerifyArg;
use crate::view::DurabilityView;

/// Work with Pitstop containers: files that hold many virtual disks, their snapshots and copies.
///
/// Every verb has the same shape: pitstop VERB CONTAINER [VOLUME] [more]. A container that a daemon (pitstopd) holds is
/// reached through the daemon; one that nobody holds is opened directly. The command is the same.
#[derive(Debug, Parser)]
#[command(
    name = "pitstop",
    version,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        pitstop create disks.pit\n  \
        pitstop import disks.pit golden debian-12.qcow2\n  \
        pitstop snapshot disks.pit golden ci-1\n  \
        pitstop refresh disks.pit ci-1 --source golden\n  \
        pitstop tree disks.pit"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make an empty container
    #[command(after_help = "Example:\n  pitstop create disks.pit --label 'ci host 7'")]
    Create {
        /// The file to make; it must not exist
        container: PathBuf,
        /// A text of your own, shown by `info`
        #[arg(long, default_value = "", hide_default_value = true)]
        label: String,
    },
    /// Make volumes
    Volume {
        #[command(subcommand)]
        verb: VolumeVerb,
    },
    /// Set what flushes of a volume promise, or take an undefined volume as it is
    ///
    /// With durability none, for disposable disks, the guest's flushes return at once: it runs faster, and loses nothing
    /// while the daemon ends in order. If the daemon is killed or the host fails, the volume is undefined: it is not
    /// served, copied or exported until it has been refreshed. Other volumes, and copies made of it before, are not touched
    /// by that.
    #[command(
        group = clap::ArgGroup::new("change").required(true).multiple(true),
        after_help = "Examples:\n  \
            pitstop set disks.pit ci-1 --durability none\n  \
            pitstop set disks.pit ci-1 --defined\n  \
            pitstop set disks.pit ci-1 --verify always"
    )]
    Set {
        #[command(flatten)]
        volume: VolumeArgs,
        /// What a flush promises
        #[arg(long, value_name = "WHAT", group = "change")]
        durability: Option<DurabilityView>,
        /// Take an undefined volume as it is
        ///
        /// Its guest's file system or data base may find itself damaged: what it flushed may be there in part.
        #[arg(long, group = "change")]
        defined: bool,
        /// What is done so that data damaged on its storage is found
        #[arg(long, value_name = "WHEN", group = "change")]
        verify: Option<VerifyArg>,
        #[command(flatten)]
        show: Show,
    },
    /// Give a volume another name
    #[command(after_help = "Example:\n  pitstop rename disks.pit golden golden-2025")]
    Rename {
        #[command(flatten)]
        volume: VolumeArgs,
        /// Its new name
        new_name: String,
    },
    /// End the relation of a copy to its source; both keep their contents
    ///
    /// A copy that was hydrated remembers what it has in common with its source, so that copying again, in either direction,
    /// moves only what differs. What is kept for that is given up; what the copy still reads from its source stays shared.
    #[command(after_help = "Example:\n  pitstop split disks.pit ci-1")]
    Split {
        #[command(flatten)]
        volume: VolumeArgs,
        #[command(flatten)]
        show: Show,
    },
    /// Delete a volume; copies made from it keep their contents
    #[command(after_help = "Example:\n  pitstop delete disks.pit ci-1")]
    Delete {
        #[command(flatten)]
        volume: VolumeArgs,
    },
    /// List the volumes
    #[command(after_help = "Examples:\n  pitstop list disks.pit\n  pitstop list disks.pit ci-1 --output json")]
    List(Look),
    /// Show a container, or one volume and its layers
    #[command(after_help = "Examples:\n  pitstop info disks.pit\n  pitstop info disks.pit ci-1")]
    Info(Look),
    /// List which parts of a volume are its own, and which were written since it was last copied or refreshed
    ///
    /// No data is read. A volume that is written meanwhile is listed part by part as it is: take a snapshot to have one
    /// instant.
    #[command(after_help = "Examples:\n  pitstop map disks.pit ci-1\n  pitstop map disks.pit ci-1 --output json")]
    Map {
        #[command(flatten)]
        volume: VolumeArgs,
        #[command(flatten)]
        show: Show,
    },
    /// List where two volumes may differ, without reading their data
    ///
    /// All that differs is listed; what was written again with the same contents, too. Volumes that are written meanwhile
    /// are listed part by part as they are: take snapshots to have one instant.
    #[command(
        after_help = "Examples:\n  pitstop diff disks.pit golden ci-1\n  pitstop diff disks.pit golden ci-1 --output json"
    )]
    Diff {
        #[command(flatten)]
        pair: Pair,
        #[command(flatten)]
        show: Show,
    },
    /// Compare a volume's contents with another volume, or with an image file
    ///
    /// What two volumes share is not read. Where sizes differ, the rest of the longer one must be zeros. In a container that
    /// a daemon holds, both volumes are compared as they are at one instant, in copies that are deleted afterwards; what counts
    /// as modified in their maps begins anew with these. Exit codes are those of qemu-img compare: 0 identical, 1 different,
    /// 2 an error.
    #[command(after_help = "Examples:\n  \
        pitstop compare disks.pit golden ci-1\n  \
        pitstop compare disks.pit golden --file debian-12.qcow2")]
    Compare {
        #[command(flatten)]
        volume: VolumeArgs,
        /// The volume to compare it with
        #[arg(value_name = "OTHER", required_unless_present = "file", conflicts_with = "file")]
        other: Option<String>,
        /// The image to compare it with
        #[arg(long)]
        file: Option<PathBuf>,
        /// Format of the image; if absent, a file with the magic of qcow2 or a container is that and any other raw
        #[arg(short, long, value_name = "FORMAT", requires = "file", conflicts_with = "other")]
        format: Option<Format>,
        /// Follow the backing file or external data file that the image names
        ///
        /// Only for images from somebody you trust: an image can name any file that you can read.
        #[arg(long, requires = "file", conflicts_with = "other")]
        allow_backing: bool,
        #[command(flatten)]
        show: Show,
    },
    /// Draw volumes and the copies made from them
    ///
    /// With --svg, as a picture: hierarchies, what each volume consists of (its own data, what is still in other volumes'
    /// layers, zeros), what was written since it was last copied or refreshed, and the layers that it stands on. Of very
    /// many volumes the picture has the first, and tells how many are left out where.
    #[command(after_help = "Examples:\n  \
        pitstop tree disks.pit\n  \
        pitstop tree disks.pit golden --output json\n  \
        pitstop tree disks.pit --svg disks.svg")]
    Tree {
        #[command(flatten)]
        look: Look,
        /// Make this file, a picture (SVG), instead
        #[arg(long, value_name = "FILE", conflicts_with = "output")]
        svg: Option<PathBuf>,
        /// Replace the file if it exists
        #[arg(long, requires = "svg")]
        force: bool,
    },
    /// Make a volume with the contents of an image file
    ///
    /// Areas that are zero or sparse in the image take no space in the container. The volume appears under its name only
    /// when it is complete.
    #[command(after_help = "Examples:\n  \
        pitstop import disks.pit golden debian-12.qcow2\n  \
        pitstop import disks.pit data disk.img -f raw")]
    Import {
        #[command(flatten)]
        volume: VolumeArgs,
        /// The image
        file: PathBuf,
        /// Format of the image; if absent, a file with the magic of qcow2 or a container is that and any other raw
        #[arg(short, long, value_name = "FORMAT")]
        format: Option<Format>,
        /// Follow the backing file or external data file that the image names
        ///
        /// Only for images from somebody you trust: an image can name any file that you can read.
        #[arg(long)]
        allow_backing: bool,
        /// What is done so that data damaged on its storage is found
        #[arg(long, value_name = "WHEN", default_value = "copy")]
        verify: VerifyArg,
        #[command(flatten)]
        show: Show,
    },
    /// Make an image file with the contents of a volume
    ///
    /// Areas that are zero take no space in the image. The file appears under its name only when it is complete. Of a
    /// container that a daemon holds, the volume is exported as it is at one instant, as after a power failure if its
    /// guest runs, from a copy that is deleted afterwards; what counts as modified in its map begins anew with that copy.
    #[command(after_help = "Examples:\n  \
        pitstop export disks.pit golden golden.img\n  \
        pitstop export disks.pit golden golden.qcow2 -O qcow2")]
    Export {
        #[command(flatten)]
        volume: VolumeArgs,
        /// The image to make
        file: PathBuf,
        /// Format of the image
        #[arg(short = 'O', long, value_name = "FORMAT", default_value = "raw")]
        format: Format,
        /// Replace the file if it exists
        #[arg(long)]
        force: bool,
    },
    /// Make a volume that is a point-in-time copy of another, at once
    ///
    /// Nothing is copied; both can be written at any time. Guests that use the source go on.
    ///
    /// With --group, several volumes are copied at one instant: what the copies show together is what all the volumes
    /// showed at one moment, as after a power failure. After a crash all of the copies are there or none.
    ///
    /// With --rotate, the copies are the volume's history: each is named PREFIX and the time in UTC, as in
    /// daily-20251121T150220.123Z, and the oldest of the volume's copies with such names are deleted, so that --keep of
    /// them stay. A copy with another name is never deleted: rename one to keep it.
    #[command(after_help = "Examples:\n  \
        pitstop snapshot disks.pit golden ci-1\n  \
        pitstop snapshot disks.pit --group db=db-monday log=log-monday\n  \
        pitstop snapshot disks.pit db --rotate daily --keep 7")]
    Snapshot {
        /// The container
        container: PathBuf,
        /// The volume to copy
        #[arg(required_unless_present = "group")]
        source: Option<String>,
        /// Name of the copy
        #[arg(required_unless_present_any = ["group", "rotate"])]
        new_name: Option<String>,
        /// Copy each SOURCE to a new volume NAME, all at one instant
        #[arg(
            long,
            value_name = "SOURCE=NAME",
            num_args = 1..,
            value_parser = verbs::snapshot::parse_copy,
            conflicts_with_all = ["source", "new_name"],
        )]
        group: Vec<NewCopy>,
        /// Name the copy PREFIX-TIME, and delete the oldest of the volume's copies that are named so
        #[arg(long, value_name = "PREFIX", requires = "keep", conflicts_with_all = ["new_name", "group"])]
        rotate: Option<String>,
        /// How many copies named PREFIX-TIME stay, the new one included
        #[arg(long, value_name = "N", requires = "rotate", value_parser = clap::value_parser!(u32).range(1..))]
        keep: Option<u32>,
        #[command(flatten)]
        show: Show,
    },
    /// Replace a volume's contents by a point-in-time copy of another, at once
    ///
    /// Nothing is copied. Copies made of the volume before keep its old contents. Guests that use the source go on.
    ///
    /// With --hydrate, all of it is copied afterwards, in the background, so that the volume is real: see `hydrate`.
    #[command(after_help = "Examples:\n  \
        pitstop refresh disks.pit ci-1 --source golden\n  \
        pitstop refresh disks.pit ci-1 --source golden --hydrate --speed 200M")]
    Refresh {
        #[command(flatten)]
        volume: VolumeArgs,
        /// The volume to copy
        #[arg(long, value_name = "VOLUME")]
        source: String,
        /// Then make the volume real
        #[arg(long)]
        hydrate: bool,
        /// Hydrate at so many bytes a second at most: a number, or one with K, M, G or T; 0 for no limit
        #[arg(long, value_name = "SPEED", requires = "hydrate", value_parser = size::parse)]
        speed: Option<u64>,
        /// Wait until the volume is real
        #[arg(long, requires = "hydrate")]
        wait: bool,
        /// Refresh even if a guest is connected to the volume
        ///
        /// The guest's disk changes under its file system, which it will take for damage: power it off first.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        show: Show,
    },
    /// Make a file with what a volume holds at this instant, while guests go on
    ///
    /// The target gets the contents of the instant at which the command begins, whatever guests write meanwhile; they never
    /// wait for it. With --addendum or --in-place the live volume is read straight through, and what was written meanwhile
    /// is put right afterwards: by a second file, or in the target itself. With --since, only what may differ from a copy is
    /// read; the file is an addendum to a backup of that copy. `restore --from-backup` takes all of them.
    ///
    /// A daemon does it as a job, and opens the files itself. If the target's file system is full the job pauses, and goes on
    /// when it is resumed. A backup does not outlive its daemon.
    #[command(after_help = "Examples:\n  \
        pitstop backup disks.pit db /backup/db.raw\n  \
        pitstop backup disks.pit db /backup/db.qcow2 -O qcow2\n  \
        pitstop backup disks.pit db /backup/db.pit -O pitstop\n  \
        pitstop backup disks.pit db /backup/db.raw --addendum /backup/db.add --cache nightly\n  \
        pitstop backup disks.pit db /backup/db-tuesday.add --since db-monday")]
    Backup {
        #[command(flatten)]
        volume: VolumeArgs,
        /// The file to make
        target: PathBuf,
        /// Format of the image
        #[arg(short = 'O', long, value_name = "FORMAT", default_value = "raw")]
        format: Format,
        /// Read the live volume, and put what was written meanwhile into this file, as it was
        #[arg(long, value_name = "FILE", conflicts_with_all = ["in_place", "since"])]
        addendum: Option<PathBuf>,
        /// Read the live volume, and write what was written meanwhile over it in the target, as it was
        #[arg(long, conflicts_with = "since")]
        in_place: bool,
        /// Only what may differ from this copy of the volume; the target is an addendum
        #[arg(long, value_name = "COPY", conflicts_with = "format")]
        since: Option<String>,
        /// Charge the space that is kept meanwhile to this cache region; the backup ends if it is full
        #[arg(long, value_name = "REGION")]
        cache: Option<String>,
        /// Read so many bytes a second at most: a number, or one with K, M, G or T; 0 for no limit
        #[arg(long, value_name = "SPEED", value_parser = size::parse, default_value = "0", hide_default_value = true)]
        speed: u64,
        /// Leave the job to the daemon, and return at once
        #[arg(long)]
        detach: bool,
        /// Replace files that exist
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        show: Show,
    },
    /// Make, list, resize and delete cache regions: budgets of the space that backups keep
    Cache {
        #[command(subcommand)]
        verb: CacheVerb,
    },
    /// Put a volume back to what one of its copies, or a backup, holds
    ///
    /// With --from, at once: a refresh from a copy of the volume itself. What was written to the volume since is given up.
    /// All its copies keep what they hold, those made after COPY too, so a volume can be restored forward again. To be able
    /// to come back to what the volume holds now, make a copy of it first.
    ///
    /// With --from-backup, from files that `backup` made: BULK first, then each addendum over it, the oldest first; one that
    /// does not go on from where the one before it ends is refused. The
    /// volume is made if it is not there, and changes only when all has been read.
    #[command(after_help = "Examples:\n  \
        pitstop snapshot disks.pit db db-before\n  \
        pitstop restore disks.pit db --from db-before\n  \
        pitstop restore disks.pit db --from-backup /backup/db.raw --addendum /backup/db.add")]
    Restore {
        #[command(flatten)]
        volume: VolumeArgs,
        /// The copy: a point-in-time copy that was made of this volume
        #[arg(long, value_name = "COPY", required_unless_present = "from_backup", conflicts_with = "from_backup")]
        from: Option<String>,
        /// A file that `backup` made, or any image
        #[arg(long, value_name = "BULK")]
        from_backup: Option<PathBuf>,
        /// Write this addendum over it; may be given several times, each behind the one that it goes on from
        #[arg(long, value_name = "FILE", requires = "from_backup", conflicts_with = "from")]
        addendum: Vec<PathBuf>,
        /// Format of BULK; raw if absent, but a file that looks like another is refused then: a guest can write that to a raw one
        #[arg(short, long, value_name = "FORMAT", requires = "from_backup", conflicts_with = "from")]
        format: Option<Format>,
        /// Restore even if a guest is connected to the volume
        ///
        /// The guest's disk changes under its file system, which it will take for damage: power it off first.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        show: Show,
    },
    /// Make a second volume over a volume's data, for a new owner to take over while the old one still writes
    View {
        #[command(subcommand)]
        verb: ViewVerb,
    },
    /// Make a virtual volume real: copy what it still reads from other volumes
    ///
    /// Afterwards the volume needs nobody else's data: what it was copied from can be deleted, and its space given back. It
    /// can be read and written all the time, and so can every other volume; copies made of it stay as they are.
    ///
    /// A daemon does it as a job in the background, leaving most of the storage to guests; a job outlives the daemon and
    /// goes on with the next one. A container that nobody holds is worked at by this command until the volume is real; when
    /// it is interrupted, even by SIGKILL, what has been copied stays, and the same command goes on from there.
    #[command(after_help = "Examples:\n  \
        pitstop hydrate disks.pit ci-1 --wait\n  \
        pitstop hydrate disks.pit ci-1 --speed 200M\n  \
        pitstop job list disks.pit")]
    Hydrate {
        #[command(flatten)]
        volume: VolumeArgs,
        /// Copy so many bytes a second at most: a number, or one with K, M, G or T; 0 for no limit
        #[arg(long, value_name = "SPEED", value_parser = size::parse)]
        speed: Option<u64>,
        /// Wait until the volume is real
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        show: Show,
    },
    /// Seal what is frozen of a volume, so that data damaged on its storage is found
    ///
    /// What a snapshot or refresh has frozen is read once, and a tag is kept of each block of 4 KiB, which binds the data to its
    /// place. From then on hydrations, merges, exports and `check --data` verify what they read, and fail rather than pass on
    /// what was damaged. Volumes that were imported are sealed by themselves (see `set`).
    ///
    /// A daemon does it as a job in the background, as `hydrate`; of a container that nobody holds it is done here.
    #[command(after_help = "Examples:\n  \
        pitstop seal disks.pit golden --wait\n  \
        pitstop seal disks.pit golden --speed 200M\n  \
        pitstop check disks.pit --data")]
    Seal {
        #[command(flatten)]
        volume: VolumeArgs,
        /// Read so many bytes a second at most: a number, or one with K, M, G or T; 0 for no limit
        #[arg(long, value_name = "SPEED", value_parser = size::parse)]
        speed: Option<u64>,
        /// Wait until all that is frozen of the volume is sealed
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        show: Show,
    },
    /// List background jobs, wait for them, pause, resume, cancel or limit them
    Job {
        #[command(subcommand)]
        verb: JobVerb,
    },
    /// Check the structure of a container, and repair it
    ///
    /// A container in use is checked by the daemon that holds it, while guests go on; it is repaired only when closed.
    /// Exit codes are those of qemu-img check: 0 clean, 1 could not check, 2 corrupt, 3 leaks only, 63 not supported.
    /// With --repair they tell the state after it.
    #[command(after_help = "Examples:\n  \
        pitstop check disks.pit\n  \
        pitstop check disks.pit --data\n  \
        pitstop check disks.pit --repair all\n  \
        pitstop check disks.pit --undo disks.pit.repair-log")]
    Check {
        /// The container
        container: PathBuf,
        /// Also read and verify all data that is sealed
        #[arg(long, conflicts_with_all = ["repair", "undo"])]
        data: bool,
        /// Repair what can be repaired: space that nothing uses, or everything
        #[arg(long, value_name = "WHAT")]
        repair: Option<Repair>,
        /// Where what the repair changes is kept; it must not exist [default: CONTAINER.repair-log, or a name like it]
        #[arg(long, value_name = "FILE", requires = "repair")]
        repair_log: Option<PathBuf>,
        /// Put back what a repair has changed, if the container has not been used since
        #[arg(long, value_name = "LOG", conflicts_with = "repair")]
        undo: Option<PathBuf>,
        #[command(flatten)]
        show: Show,
    },
}

#[derive(Debug, Subcommand)]
enum VolumeVerb {
    /// Make a volume that reads as zeros
    #[command(after_help = "Example:\n  pitstop volume create disks.pit scratch --size 20G")]
    Create {
        #[command(flatten)]
        volume: VolumeArgs,
        /// Its size: bytes, or a number with K, M, G, T or P (powers of 1024)
        #[arg(long, value_parser = size::parse)]
        size: u64,
        /// What a flush promises: see `pitstop set`
        #[arg(long, value_name = "WHAT", default_value = "flush")]
        durability: DurabilityView,
        /// What is done so that data damaged on its storage is found
        #[arg(long, value_name = "WHEN", default_value = "off")]
        verify: VerifyArg,
        #[command(flatten)]
        show: Show,
    },
}

#[derive(Debug, Subcommand)]
enum ViewVerb {
    /// Make VIEW a write-through view of VOLUME as it is now, at once
    ///
    /// What is written through VIEW from now on is seen by both volumes; what is written through VOLUME is seen by VOLUME
    /// alone, until VIEW writes there again. What VOLUME's guest had under way still ends in what both show. Nothing is copied,
    /// and no guest waits. Until the view ends, neither volume can be copied, refreshed, hydrated or deleted.
    #[command(after_help = "Example:\n  pitstop view create disks.pit db db-new")]
    Create {
        #[command(flatten)]
        volume: VolumeArgs,
        /// The new volume
        view: String,
        #[command(flatten)]
        show: Show,
    },
    /// End a view, and give up what was written through its source alone: both volumes show what VIEW shows
    #[command(after_help = "Example:\n  pitstop view drop disks.pit db-new")]
    Drop {
        #[command(flatten)]
        view: ViewArgs,
        /// Drop them even if a guest is connected to the source
        ///
        /// The guest's disk changes under its file system, which it will take for damage: power it off first.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        show: Show,
    },
    /// End a view; both volumes keep what they show
    #[command(after_help = "Example:\n  pitstop view keep disks.pit db-new")]
    Keep {
        #[command(flatten)]
        view: ViewArgs,
        #[command(flatten)]
        show: Show,
    },
}

/// A view of a container.
#[derive(Debug, Args)]
struct ViewArgs {
    /// The container
    container: PathBuf,
    /// The view
    #[arg(value_name = "VIEW")]
    name: String,
}

#[derive(Debug, Subcommand)]
enum JobVerb {
    /// List the jobs, with what is done, and how fast
    #[command(after_help = "Examples:\n  pitstop job list disks.pit\n  pitstop job list disks.pit --output json")]
    List {
        #[command(flatten)]
        job: JobArgs,
        #[command(flatten)]
        show: Show,
    },
    /// Wait until a job has ended, or all have that are not paused
    ///
    /// On a container that nobody holds, this command does the jobs' work. It fails if a job is paused or given up.
    #[command(after_help = "Examples:\n  pitstop job wait disks.pit\n  pitstop job wait disks.pit hydrate-17")]
    Wait(JobArgs),
    /// Let a job do nothing until it is resumed, even by another daemon
    #[command(after_help = "Example:\n  pitstop job pause disks.pit hydrate-17")]
    Pause(JobArgs),
    /// Let a paused job go on
    #[command(after_help = "Example:\n  pitstop job resume disks.pit hydrate-17")]
    Resume(JobArgs),
    /// Give a job up
    ///
    /// A volume whose hydration is cancelled stays virtual and whole; what has been copied stays in it.
    #[command(after_help = "Example:\n  pitstop job cancel disks.pit hydrate-17")]
    Cancel(JobArgs),
    /// Limit how many bytes a second a job moves
    #[command(after_help = "Examples:\n  \
        pitstop job set-speed disks.pit hydrate-17 --speed 50M\n  \
        pitstop job set-speed disks.pit --speed 0")]
    SetSpeed {
        #[command(flatten)]
        job: JobArgs,
        /// Bytes a second at most: a number, or one with K, M, G or T; 0 for no limit
        #[arg(long, value_name = "SPEED", value_parser = size::parse)]
        speed: u64,
    },
}

#[derive(Debug, Subcommand)]
enum CacheVerb {
    /// Make a cache region
    #[command(after_help = "Examples:\n  \
        pitstop cache create disks.pit nightly --limit 20G\n  \
        pitstop cache create disks.pit nightly --limit 20G --growth 5G --max 100G --high-water 90")]
    Create {
        #[command(flatten)]
        cache: CacheArgs,
        /// How much backups that draw on it may keep together: bytes, or a number with K, M, G, T or P
        #[arg(long, value_name = "SIZE", value_parser = size::parse)]
        limit: u64,
        #[command(flatten)]
        options: CacheOptionArgs,
        #[command(flatten)]
        show: Show,
    },
    /// List the cache regions, and how much of them is used
    #[command(after_help = "Example:\n  pitstop cache list disks.pit")]
    List {
        /// The container
        container: PathBuf,
        /// Only this region
        #[arg(value_name = "REGION")]
        name: Option<String>,
        #[command(flatten)]
        show: Show,
    },
    /// Change a cache region; what is not given stays
    #[command(after_help = "Example:\n  pitstop cache resize disks.pit nightly --limit 50G")]
    Resize {
        #[command(flatten)]
        cache: CacheArgs,
        /// How much backups that draw on it may keep together: bytes, or a number with K, M, G, T or P
        #[arg(long, value_name = "SIZE", value_parser = size::parse)]
        limit: Option<u64>,
        #[command(flatten)]
        options: CacheOptionArgs,
        #[command(flatten)]
        show: Show,
    },
    /// Delete a cache region that no backup draws on
    #[command(after_help = "Example:\n  pitstop cache delete disks.pit nightly")]
    Delete {
        #[command(flatten)]
        cache: CacheArgs,
    },
}

/// A cache region of a container.
#[derive(Debug, Args)]
struct CacheArgs {
    /// The container
    container: PathBuf,
    /// The cache region
    #[arg(value_name = "REGION")]
    name: String,
}

/// What a cache region is to be, besides its limit.
#[derive(Debug, Args)]
struct CacheOptionArgs {
    /// Percent of the limit from which on a daemon warns [default: 80]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    high_water: Option<u8>,
    /// Let the limit grow by so much where it is reached; 0 for not at all
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    growth: Option<u64>,
    /// How far the limit may grow
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    max: Option<u64>,
}

impl From<CacheOptionArgs> for CacheOptions {
    fn from(args: CacheOptionArgs) -> Self {
        let CacheOptionArgs { high_water: high_water_percent, growth: growth_bytes, max: most_bytes } = args;
        Self { limit_bytes: None, high_water_percent, growth_bytes, most_bytes }
    }
}

/// A job of a container.
#[derive(Debug, Args)]
struct JobArgs {
    /// The container
    container: PathBuf,
    /// The job; not needed if there is only one
    #[arg(value_name = "JOB")]
    id: Option<String>,
}

/// A volume of a container.
#[derive(Debug, Args)]
struct VolumeArgs {
    /// The container
    container: PathBuf,
    /// The volume
    #[arg(value_name = "VOLUME")]
    name: String,
}

/// Two volumes of a container.
#[derive(Debug, Args)]
struct Pair {
    /// The container
    container: PathBuf,
    /// One volume
    a: String,
    /// The other volume
    b: String,
}

/// What is looked at, and for whom.
#[derive(Debug, Args)]
struct Look {
    /// The container
    container: PathBuf,
    /// Only this volume
    #[arg(value_name = "VOLUME")]
    name: Option<String>,
    #[command(flatten)]
    show: Show,
}

/// For whom the result is.
#[derive(Debug, Args)]
struct Show {
    /// How to show the result
    #[arg(long, value_name = "FORM", default_value = "human")]
    output: Output,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match interrupt::survive_file_size_limit().map_err(error::Error::Signals).and_then(|()| run(cli.verb)) {
        Ok(code) => code,
        Err(error) => {
            tell(&error);
            ExitCode::FAILURE
        }
    }
}

/// Explains on standard error. If that cannot be written, the exit code still says that something failed.
fn tell(error: impl std::fmt::Display) {
    drop(writeln!(std::io::stderr(), "pitstop: {error}"));
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Create { container, label } => verbs::create::run(&container, &label)?,
        Verb::Volume { verb: VolumeVerb::Create { volume, size, durability, verify, show } } => {
            let VolumeArgs { container, name } = &volume;
            verbs::volume_create::run(container, name, size, durability.into(), verify, show.output)?;
        }
        Verb::Set { volume, durability, defined, verify, show } => {
            let change = VolumeChange { durability: durability.map(Into::into), defined };
            verbs::set::run(&volume.container, &volume.name, change, verify, show.output)?;
        }
        Verb::Rename { volume, new_name } => verbs::rename::run(&volume.container, &volume.name, &new_name)?,
        Verb::Split { volume, show } => verbs::split::run(&volume.container, &volume.name, show.output)?,
        Verb::Delete { volume } => verbs::delete::run(&volume.container, &volume.name)?,
        Verb::List(look) => verbs::list::run(&look.container, look.name.as_deref(), look.show.output)?,
        Verb::Info(look) => verbs::info::run(&look.container, look.name.as_deref(), look.show.output)?,
        Verb::Map { volume, show } => verbs::map::run(&volume.container, &volume.name, show.output)?,
        Verb::Diff { pair, show } => verbs::diff::run(&pair.container, &pair.a, &pair.b, show.output)?,
        Verb::Tree { look, svg: None, .. } => {
            verbs::tree::run(&look.container, look.name.as_deref(), look.show.output)?;
        }
        Verb::Tree { look, svg: Some(file), force } => {
            verbs::tree::run_picture(&look.container, look.name.as_deref(), &file, overwrite(force))?;
        }
        Verb::Compare { volume, other, file, format, allow_backing, show } => {
            let other = match (&other, &file) {
                (Some(other), _) => Other::Volume(other),
                (None, Some(path)) => Other::File { path, format, backing: backing(allow_backing) },
                (None, None) => unreachable!("the parser asks for one of them"),
            };
            return Ok(compare(&volume, &other, show.output));
        }
        Verb::Import { volume, file, format, allow_backing, verify, show } => {
            let backing = backing(allow_backing);
            let VolumeArgs { container, name } = &volume;
            let output = show.output;
            verbs::import::run(&Import { path: container, name, file: &file, format, backing, verify, output })?;
        }
        Verb::Export { volume, file, format, force } => {
            let VolumeArgs { container, name } = &volume;
            verbs::export::run(&Export { path: container, name, file: &file, format, overwrite: overwrite(force) })?;
        }
        Verb::Snapshot { container, source: Some(source), new_name: Some(new_name), show, .. } => {
            verbs::snapshot::run(&container, &source, &new_name, show.output)?;
        }
        Verb::Snapshot { container, source: Some(source), rotate: Some(prefix), keep: Some(keep), show, .. } => {
            let history = History { source: &source, prefix: &prefix, keep };
            verbs::rotate::run(&container, &history, show.output)?;
        }
        Verb::Snapshot { container, group, show, .. } => {
            verbs::snapshot::run_group(&container, &group, show.output)?;
        }
        Verb::Refresh { volume, source, hydrate: true, speed, wait, force, show } => {
            let (VolumeArgs { container, name }, connected) = (&volume, connected(force));
            verbs::hydrate::refresh(container, name, &source, connected, how(speed, wait), show.output)?;
        }
        Verb::Refresh { volume, source, force, show, .. } => {
            verbs::refresh::run(&volume.container, &volume.name, &source, connected(force), show.output)?;
        }
        Verb::Restore { volume, from: Some(from), force, show, .. } => {
            verbs::restore::run(&volume.container, &volume.name, &from, connected(force), show.output)?;
        }
        Verb::Restore { volume, from_backup: Some(bulk), addendum, format, force, show, .. } => {
            let VolumeArgs { container: path, name } = &volume;
            let (connected, output) = (connected(force), show.output);
            let restore = Restore { path, name, bulk: &bulk, format, addenda: &addendum, connected, output };
            verbs::restore_backup::run(&restore)?;
        }
        Verb::Restore { .. } => unreachable!("the parser asks for one of them"),
        Verb::Backup { volume, target, format, addendum, in_place, since, cache, speed, detach, force, show } => {
            let VolumeArgs { container: path, name } = &volume;
            let how = session::Backup { addendum, in_place, since, cache, overwrite: force, speed };
            let output = show.output;
            verbs::backup::run(&Backup { path, name, target: &target, format, how, detach, output })?;
        }
        Verb::Cache { verb } => cache(verb)?,
        Verb::Hydrate { volume, speed, wait, show } => {
            verbs::hydrate::run(&volume.container, &volume.name, how(speed, wait), show.output)?;
        }
        Verb::Seal { volume, speed, wait, show } => {
            verbs::seal::run(&volume.container, &volume.name, how(speed, wait), show.output)?;
        }
        Verb::View { verb } => view(verb)?,
        Verb::Job { verb } => job(verb)?,
        Verb::Check { container, data, repair, repair_log, undo, show } => {
            let task = match (repair, undo) {
                (Some(what), _) => Task::Repair { what, log: repair_log },
                (None, Some(log)) => Task::Undo { log },
                (None, None) => Task::Check(if data { Depth::Data } else { Depth::Structure }),
            };
            return Ok(check(&container, &task, show.output));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn cache(verb: CacheVerb) -> Result<()> {
    match verb {
        CacheVerb::Create { cache, limit, options, show } => {
            let options = CacheOptions { limit_bytes: Some(limit), ..options.into() };
            verbs::cache::create(&cache.container, &cache.name, options, show.output)
        }
        CacheVerb::List { container, name, show } => verbs::cache::list(&container, name.as_deref(), show.output),
        CacheVerb::Resize { cache, limit, options, show } => {
            let options = CacheOptions { limit_bytes: limit, ..options.into() };
            verbs::cache::resize(&cache.container, &cache.name, options, show.output)
        }
        CacheVerb::Delete { cache } => verbs::cache::delete(&cache.container, &cache.name),
    }
}

fn view(verb: ViewVerb) -> Result<()> {
    match verb {
        ViewVerb::Create { volume: VolumeArgs { container, name }, view, show } => {
            verbs::view::create(&container, &name, &view, show.output)
        }
        ViewVerb::Drop { view: ViewArgs { container, name }, force, show } => {
            verbs::view::end(&container, &name, ViewEnd::Drop, connected(force), show.output)
        }
        ViewVerb::Keep { view: ViewArgs { container, name }, show } => {
            verbs::view::end(&container, &name, ViewEnd::Keep, Connected::Spare, show.output)
        }
    }
}

fn job(verb: JobVerb) -> Result<()> {
    let order = |job: &JobArgs, order| verbs::job::order(&job.container, job.id.as_deref(), order);
    match verb {
        JobVerb::List { job, show } => verbs::job::list(&job.container, job.id.as_deref(), show.output),
        JobVerb::Wait(job) => verbs::job::wait(&job.container, job.id.as_deref()),
        JobVerb::Pause(job) => order(&job, JobOrder::Pause),
        JobVerb::Resume(job) => order(&job, JobOrder::Resume),
        JobVerb::Cancel(job) => order(&job, JobOrder::Cancel),
        JobVerb::SetSpeed { job, speed } => order(&job, JobOrder::SetSpeed(speed)),
    }
}

fn how(speed: Option<u64>, wait: bool) -> How {
    How { speed, wait: if wait { Wait::Yes } else { Wait::No } }
}

fn connected(force: bool) -> Connected {
    if force { Connected::Force } else { Connected::Spare }
}

const fn overwrite(force: bool) -> Overwrite {
    if force { Overwrite::Replace } else { Overwrite::Refuse }
}

const fn backing(allow: bool) -> Backing {
    if allow { Backing::Follow } else { Backing::Refuse }
}

fn compare(volume: &VolumeArgs, other: &Other<'_>, output: Output) -> ExitCode {
    match verbs::compare::run(&volume.container, &volume.name, other, output) {
        Ok(outcome) => ExitCode::from(outcome.exit_code()),
        Err(error) => {
            tell(&error);
            ExitCode::from(2)
        }
    }
}

fn check(container: &Path, task: &Task, output: Output) -> ExitCode {
    let verdict = verbs::check::run(container, task, output).unwrap_or_else(|error| {
        tell(&error);
        verbs::check::verdict_of(&error)
    });
    ExitCode::from(verdict.exit_code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
