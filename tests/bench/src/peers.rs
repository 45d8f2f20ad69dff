//! The backends and their data: makes the files once, starts one backend at a time.
//!
//! Every backend gets direct I/O, one queue, and the settings that are best for it: qemu-storage-daemon has an iothread
//! and caches that hold all of an image's metadata. Files are filled with data through the backend itself, so that
//! nothing is a hole or merely allocated. Does not: measure.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Result;
use crate::files::remove;
use crate::place::{Place, Process};
use crate::works::{Area, Backend, Contents};

/// Longest time until the space of a refreshed volume's old blocks is free again.
const RECLAIM_LIMIT: Duration = Duration::from_secs(60);
/// How long what the deletion of a large file leaves to do (discards) may go on before something is measured.
const SETTLE_TIME: Duration = Duration::from_secs(1);
const FILL_BLOCK_LEN: u64 = 256 << 10;

/// Files for all backends on one file system, each made when it is first needed.
pub(crate) struct Site {
    place: Place,
    area: Area,
    volume_len: u64,
    made: HashSet<&'static str>,
}

/// A backend that serves a volume.
pub(crate) struct Served {
    pub(crate) process: Process,
    pub(crate) socket: PathBuf,
    /// The container and the bytes it had at the start.
    container: Option<(PathBuf, u64)>,
}

impl Served {
    /// Ends the backend; says by how many bytes its container has grown.
    pub(crate) fn end(self) -> Result<Option<u64>> {
        self.process.end()?;
        let grown = |(path, before): (PathBuf, u64)| Ok(std::fs::metadata(path)?.len() - before);
        self.container.map(grown).transpose()
    }
}

impl Site {
    /// In `place.folder`, with volumes of `volume_len` bytes.
    pub(crate) fn new(place: Place, area: Area, volume_len: u64) -> Self {
        Site { place, area, volume_len, made: HashSet::new() }
    }

    /// Fails if the files will not fit.
    pub(crate) fn see_to_space(&self) -> Result<()> {
        // In memory there is neither qcow2 nor a container for fresh space.
        let volumes = if self.area == Area::Disk { 8 } else { 6 };
        let (needed, space) = (volumes * self.volume_len, rustix::fs::statvfs(&self.place.folder)?);
        let free = space.f_bavail * space.f_frsize;
        if free < needed {
            let folder = self.place.folder.display();
            return Err(format!(
                "{folder} has {} GiB free, {} GiB are needed: see --folder and --memory-folder",
                free >> 30,
                needed >> 30
            )
            .into());
        }
        Ok(())
    }

    /// Where it is, and whom it starts.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// The raw image, written everywhere.
    pub(crate) fn raw(&mut self) -> Result<PathBuf> {
        let file = self.place.file("disk.raw");
        if self.made.insert("disk.raw") {
            remove(&file)?;
            crate::fio::fill(&file, self.volume_len)?;
        }
        Ok(file)
    }

    /// Makes all that a run needs and that lasts for several.
    pub(crate) fn prepare(&mut self, backend: Backend, contents: Contents) -> Result<()> {
        match (backend, contents) {
            (Backend::Fio | Backend::FioBatched | Backend::HandOver | Backend::QsdRaw | Backend::QsdOverlay, _) => {
                self.raw().map(drop)
            }
            (Backend::QsdQcow2, _) => self.qcow2().map(drop),
            (Backend::Pitstop, Contents::Own | Contents::Refreshed) => self.container().map(drop),
            (Backend::NullCo, _) | (Backend::Pitstop, Contents::Fresh) => Ok(()),
        }
    }

    /// Starts `backend` on a volume with `contents`; not for those that are none.
    pub(crate) fn start(&mut self, backend: Backend, contents: Contents) -> Result<Served> {
        let served = match backend {
            Backend::Fio | Backend::FioBatched | Backend::HandOver => Err("no backend, which serves nothing".into()),
            Backend::QsdRaw => {
                let node = self.file_node("disk", &self.place.file("disk.raw"));
                self.storage_daemon(&[node])
            }
            Backend::QsdQcow2 => self.qcow2_daemon(&self.place.file("disk.qcow2"), None),
            Backend::QsdOverlay => {
                let golden = self.place.file("disk.raw");
                self.overlay(&golden).and_then(|file| self.qcow2_daemon(&file, Some(&golden)))
            }
            Backend::NullCo => self
                .storage_daemon(&[format!("driver=null-co,node-name=disk,size={},read-zeroes=off", self.volume_len)]),
            Backend::Pitstop => match contents {
                Contents::Own => self.daemon(&self.place.file("disks.pit"), "own"),
                Contents::Refreshed => self.refreshed(),
                Contents::Fresh => self.fresh(),
            },
        };
        self.sync()?;
        served
    }

    /// Removes what only one run needed.
    pub(crate) fn tidy(&self) -> Result<()> {
        let files = ["overlay.qcow2", "fresh.pit"].map(|name| self.place.file(name));
        let mut removed = false;
        for file in files {
            removed |= remove(&file)?;
        }
        if removed {
            self.sync()?;
            std::thread::sleep(SETTLE_TIME);
        }
        Ok(())
    }

    /// Removes all files.
    pub(crate) fn clear(&mut self) -> Result<()> {
        for name in std::mem::take(&mut self.made) {
            remove(&self.place.file(name))?;
        }
        self.tidy()
    }

    /// Leaves nothing of the preparation to be written back during a measurement.
    fn sync(&self) -> Result<()> {
        Ok(rustix::fs::syncfs(std::fs::File::open(&self.place.folder)?)?)
    }

    fn socket(&self, name: &str) -> Result<PathBuf> {
        let socket = self.place.socket(name);
        remove(&socket)?;
        Ok(socket)
    }

    /// Writes the first `len` bytes of the volume at `socket`.
    fn fill(&self, socket: &Path, len: u64) -> Result<()> {
        let (block, requests) = (FILL_BLOCK_LEN.to_string(), (len / FILL_BLOCK_LEN).to_string());
        let options = ["--pattern", "sequential", "--read-percent", "0", "--depth", "16", "--block-size", &block];
        let until = ["--requests", &requests, "--ramp", "0", "--seconds", "600"];
        let measured = self.place.load(socket, None, &[&options[..], &until[..]].concat())?;
        if measured.ended != "requests" {
            return Err("filling a volume took more than ten minutes: use a faster file system".into());
        }
        Ok(())
    }
}

/// qemu-storage-daemon.
impl Site {
    fn file_node(&self, name: &str, file: &Path) -> String {
        // In memory io_uring hands every request to a kernel thread: there the older interface is faster.
        let aio = if self.area == Area::Disk { "io_uring" } else { "native" };
        format!("driver=file,node-name={name},filename={},aio={aio},cache.direct=on,discard=unmap", file.display())
    }

    fn storage_daemon(&self, nodes: &[String]) -> Result<Served> {
        let socket = self.socket("qsd")?;
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--object", "iothread,id=iothread"]);
        for node in nodes {
            command.arg("--blockdev").arg(node);
        }
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=1,iothread=iothread,addr.type=unix,\
             addr.path={}",
            socket.display()
        ));
        let process = Process::start(&mut command, &[&socket], &self.place.file("qsd.log"))?;
        Ok(Served { process, socket, container: None })
    }

    fn qcow2_daemon(&self, image: &Path, golden: Option<&Path>) -> Result<Served> {
        let caches = "l2-cache-size=67108864,refcount-cache-size=16777216,cache-clean-interval=0";
        let mut disk = format!("driver=qcow2,node-name=disk,file=file,cache.direct=on,discard=unmap,{caches}");
        let mut nodes = vec![self.file_node("file", image)];
        if let Some(golden) = golden {
            // Left to open it by itself, it would use threads instead of io_uring.
            nodes.push(self.file_node("golden", golden) + ",read-only=on");
            disk += ",backing=golden";
        }
        nodes.push(disk);
        self.storage_daemon(&nodes)
    }

    fn qcow2(&mut self) -> Result<PathBuf> {
        let file = self.place.file("disk.qcow2");
        if self.made.insert("disk.qcow2") {
            remove(&file)?;
            let mut command = Command::new("qemu-img");
            command.args(["create", "-q", "-f", "qcow2", "-o", "cluster_size=64k"]);
            execute(command.arg(&file).arg(self.volume_len.to_string()))?;
            let served = self.qcow2_daemon(&file, None)?;
            self.fill(&served.socket, self.volume_len)?;
            served.end()?;
        }
        Ok(file)
    }

    fn overlay(&self, golden: &Path) -> Result<PathBuf> {
        let file = self.place.file("overlay.qcow2");
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-o", "cluster_size=64k,extended_l2=on", "-b"]);
        execute(command.arg(golden).arg(&file))?;
        Ok(file)
    }
}

/// pitstopd.
impl Site {
    /// A container with `golden`, `own` and `ci`, each written everywhere, and some space that once was another's.
    fn container(&mut self) -> Result<PathBuf> {
        let file = self.place.file("disks.pit");
        if self.made.insert("disks.pit") {
            remove(&file)?;
            let len = self.volume_len;
            self.create(&file, &[("golden", len), ("own", len), ("ci", len), ("other", len / 4)])?;
            self.pitstop("delete", &file, &["other"])?;
        }
        Ok(file)
    }

    fn create(&self, file: &Path, volumes: &[(&str, u64)]) -> Result<()> {
        self.pitstop("create", file, &[])?;
        for &(volume, len) in volumes {
            let mut command = Command::new(&self.place.pitstop);
            execute(command.args(["volume", "create"]).arg(file).args([volume, "--size", &len.to_string()]))?;
            let served = self.daemon(file, volume)?;
            self.fill(&served.socket, len)?;
            served.end()?;
        }
        Ok(())
    }

    fn daemon(&self, container: &Path, volume: &str) -> Result<Served> {
        let (socket, control) = (self.socket("pitstop")?, self.socket("control")?);
        let mut command = Command::new(&self.place.pitstopd);
        command.arg(container).arg("--control").arg(&control);
        command.arg("--export").arg(format!("volume={volume},socket={},num-queues=1", socket.display()));
        let process = Process::start(&mut command, &[&socket, &control], &self.place.file("pitstopd.log"))?;
        let len = std::fs::metadata(container)?.len();
        Ok(Served { process, socket, container: Some((container.to_owned(), len)) })
    }

    /// `ci` as a new copy of `golden`, the space of its old blocks free again.
    fn refreshed(&self) -> Result<Served> {
        let container = self.place.file("disks.pit");
        let served = self.daemon(&container, "ci")?;
        self.pitstop("refresh", &container, &["ci", "--source", "golden"])?;
        let begin = Instant::now();
        let mut free_before = 0;
        loop {
            let info: Value = serde_json::from_slice(&self.pitstop("info", &container, &["--output", "json"])?)?;
            let free = info["free-bytes"].as_u64().ok_or("`pitstop info` does not tell free-bytes")?;
            if free >= self.volume_len && free == free_before {
                return Ok(served);
            }
            if begin.elapsed() > RECLAIM_LIMIT {
                return Err(format!("the space of a refreshed volume is not free after {RECLAIM_LIMIT:?}").into());
            }
            free_before = free;
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// `ci` as a copy of `golden` in a new container, which has to grow for every write to a new place.
    fn fresh(&self) -> Result<Served> {
        let container = self.place.file("fresh.pit");
        self.create(&container, &[("golden", self.volume_len)])?;
        self.pitstop("snapshot", &container, &["golden", "ci"])?;
        self.daemon(&container, "ci")
    }

    fn pitstop(&self, verb: &str, container: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
        execute(Command::new(&self.place.pitstop).arg(verb).arg(container).args(arguments))
    }
}

/// Runs a command and returns what it printed.
pub(crate) fn execute(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("cannot run {name}: {error}; see 'tests/setup.sh bench'"))?;
    if !output.status.success() {
        return Err(format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    Ok(output.stdout)
}
