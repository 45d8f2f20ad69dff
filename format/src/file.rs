//! A container in a file: locking, direct I/O, allocation.
//!
//! Invariant: the lock belongs to the very open file description that carries all I/O, so that a writer's late I/O and its
//! lock end together (JNL-13). Does not: know the format.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::ReadWriteFlags;
use serde::{Deserialize, Serialize};

use crate::container::OpenMode;
use crate::disk::Disk;
use crate::error::{Error, Result};

/// Alignment that direct I/O is done with, in bytes.
const DIRECT_ALIGN: usize = 512;
/// Alignment of buffers of our own, in bytes.
const BUFFER_ALIGN: usize = 4096;
/// How long an opener waits for a lock that somebody may hold only for a moment.
const LOCK_PATIENCE: Duration = Duration::from_millis(300);

/// What direct I/O demands of a request, in bytes; 1 where the file is read and written through the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoAlignment {
    /// Alignment of buffers in memory.
    pub memory: u32,
    /// Alignment of offsets and lengths.
    pub offset: u32,
}

/// Who holds a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Name of the program.
    pub program: String,
    /// Control socket, if the program serves one.
    pub control: Option<PathBuf>,
}

/// A container file, locked.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    path: PathBuf,
    direct: bool,
    announced: Mutex<bool>,
}

impl FileDisk {
    /// Creates the file, which must not exist, and locks it.
    pub fn create(path: &Path) -> Result<Arc<Self>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(Error::io("cannot create the container"))?;
        lock_file(&file, path, OpenMode::ReadWrite)?;
        Ok(Arc::new(Self { file, path: real(path), direct: false, announced: Mutex::new(false) }))
    }

    /// Opens and locks the file: for writing by one holder, for reading by any number.
    ///
    /// Errors: [`Error::Locked`] names the holder.
    pub fn open(path: &Path, mode: OpenMode) -> Result<Arc<Self>> {
        let file = OpenOptions::new()
            .read(true)
            .write(mode == OpenMode::ReadWrite)
            .open(path)
            .map_err(Error::io("cannot open the container"))?;
        let kind = file.metadata().map_err(Error::io("cannot open the container"))?.file_type();
        if !kind.is_file() {
            return Err(Error::BadOption("the container must be a regular file".to_owned()));
        }
        lock_file(&file, path, mode)?;
        let direct = enable_direct(&file);
        Ok(Arc::new(Self { file, path: real(path), direct, announced: Mutex::new(false) }))
    }

    /// The open file, for I/O by other means on the same description.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What requests on [`FileDisk::file`] must keep to.
    pub fn io_alignment(&self) -> IoAlignment {
        let align = if self.direct { DIRECT_ALIGN as u32 } else { 1 };
        IoAlignment { memory: align, offset: align }
    }

    /// Tells others who holds the container: writes `PATH.lock`, which is removed when the file is closed.
    ///
    /// The lock itself does not depend on that file.
    pub fn announce(&self, holder: &Holder) -> Result<()> {
        let write = || -> io::Result<()> {
            let path = sidecar(&self.path);
            let mut temporary = path.clone().into_os_string();
            temporary.push(format!(".{}", holder.pid));
            let written = File::create(&temporary)
                .and_then(|mut file| file.write_all(&serde_json::to_vec(holder)?))
                .and_then(|()| std::fs::rename(&temporary, &path));
            if written.is_err()
                && let Err(error) = std::fs::remove_file(&temporary)
            {
                log::debug!("cannot remove {}: {error}", Path::new(&temporary).display());
            }
            written
        };
        write().map_err(Error::io("cannot write the .lock file beside the container"))?;
        *self.announced.lock().unwrap_or_else(PoisonError::into_inner) = true;
        Ok(())
    }
}

impl Drop for FileDisk {
    fn drop(&mut self) {
        if *self.announced.lock().unwrap_or_else(PoisonError::into_inner)
            && let Err(error) = std::fs::remove_file(sidecar(&self.path))
        {
            log::warn!("cannot remove {}: {error}", sidecar(&self.path).display());
        }
    }
}

/// Who holds the container at `path` now; `None` if nobody does.
pub fn holder_of(path: &Path) -> Option<Holder> {
    let file = File::open(path).ok()?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    Some(read_holder(&file, path))
}

/// The path without links, so that every spelling of it leads to one announcement.
fn real(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn sidecar(path: &Path) -> PathBuf {
    let mut name = real(path).into_os_string();
    name.push(".lock");
    name.into()
}

/// The holder as announced, if the announcement is the lock holder's own; else what the kernel knows of the lock.
fn read_holder(file: &File, path: &Path) -> Holder {
    let pid = file.metadata().ok().and_then(|metadata| lock_pid(metadata.dev(), metadata.ino()));
    let announced = std::fs::read(sidecar(path)).ok().and_then(|bytes| serde_json::from_slice::<Holder>(&bytes).ok());
    match (announced, pid) {
        (Some(holder), None) => holder,
        (Some(holder), Some(pid)) if holder.pid == pid => holder,
        (_, Some(pid)) => {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Holder { pid, program: comm.trim().to_owned(), control: None }
        }
        (None, None) => Holder { pid: 0, program: String::new(), control: None },
    }
}

/// The process that locked the file of this device and inode number, from the kernel's list of locks.
fn lock_pid(device: u64, inode: u64) -> Option<u32> {
    let wanted = format!("{:02x}:{:02x}:{inode}", rustix::fs::major(device), rustix::fs::minor(device));
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "FLOCK").skip(3);
        let pid = words.next()?.parse().ok().filter(|pid| *pid > 0)?;
        (words.next()? == wanted).then_some(pid)
    })
}

fn lock_file(file: &File, path: &Path, mode: OpenMode) -> Result<()> {
    let operation = match mode {
        OpenMode::ReadWrite => FlockOperation::NonBlockingLockExclusive,
        OpenMode::ReadOnly => FlockOperation::NonBlockingLockShared,
    };
    let begin = Instant::now();
    loop {
        match rustix::fs::flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if begin.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let holder = read_holder(file, path);
                let control = holder.control.map(|path| format!(", control socket {}", path.display()));
                let holder = match holder.pid {
                    0 => "another process".to_owned(),
                    pid => format!("process {pid} ({}{})", holder.program, control.unwrap_or_default()),
                };
                return Err(Error::Locked { holder });
            }
            Err(error) => return Err(Error::io("cannot lock the container")(error.into())),
        }
    }
}

/// Turns direct I/O on if the file system does it in units of 512 bytes.
fn enable_direct(file: &File) -> bool {
    let Ok(flags) = rustix::fs::fcntl_getfl(file) else {
        return false;
    };
    if rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).is_err() {
        return false;
    }
    let mut probe = Aligned::new(DIRECT_ALIGN);
    if file.read_exact_at(probe.as_mut(), DIRECT_ALIGN as u64).is_ok() {
        return true;
    }
    if let Err(error) = rustix::fs::fcntl_setfl(file, flags) {
        log::warn!("cannot turn direct I/O off again: {error}");
    }
    false
}

/// A buffer that begins at a multiple of 4096.
#[derive(Debug)]
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + BUFFER_ALIGN];
        let start = bytes.as_ptr().align_offset(BUFFER_ALIGN);
        Self { bytes, start, len }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

impl FileDisk {
    fn is_aligned(&self, buf: &[u8], offset: u64) -> bool {
        !self.direct
            || (buf.as_ptr().align_offset(DIRECT_ALIGN) == 0
                && buf.len().is_multiple_of(DIRECT_ALIGN)
                && offset.is_multiple_of(DIRECT_ALIGN as u64))
    }

    fn write(&self, buf: &[u8], offset: u64, flags: ReadWriteFlags) -> io::Result<()> {
        let mut bounce;
        let mut rest = if self.is_aligned(buf, offset) {
            buf
        } else {
            bounce = Aligned::new(buf.len());
            bounce.as_mut().copy_from_slice(buf);
            bounce.as_mut()
        };
        let mut at = offset;
        while !rest.is_empty() {
            let written = match rustix::io::pwritev2(&self.file, &[IoSlice::new(rest)], at, flags) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            rest = &rest[written..];
            at += written as u64;
        }
        Ok(())
    }
}

impl Disk for FileDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.is_aligned(buf, offset) {
            return self.file.read_exact_at(buf, offset);
        }
        let mut bounce = Aligned::new(buf.len());
        self.file.read_exact_at(bounce.as_mut(), offset)?;
        buf.copy_from_slice(bounce.as_mut());
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write(buf, offset, ReadWriteFlags::empty())
    }

    fn write_at_durable(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write(buf, offset, ReadWriteFlags::DSYNC)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn room(&self) -> io::Result<Option<u64>> {
        let file_system = rustix::fs::fstatvfs(&self.file)?;
        if file_system.f_blocks == 0 {
            return Ok(None); // a file system without a size
        }
        let metadata = self.file.metadata()?;
        // Holes of the file will take their part of what is free.
        let holes = metadata.len().saturating_sub(metadata.blocks().saturating_mul(512));
        let free = file_system.f_bavail.saturating_mul(file_system.f_frsize);
        Ok(Some(free.saturating_sub(holes)))
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        if len <= old {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), old, len - old) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP) => self.file.set_len(len),
            Err(error) => {
                // What was allocated of it is no use to anybody yet.
                self.file.set_len(old)?;
                Err(error.into())
            }
        }
    }
}
