//! A file system with one file whose requests fail on demand: the storage under an unmodified `pitstopd`.
//!
//! A FUSE file system rather than a wrapper inside the daemon, because then everything that carries requests is what
//! users run: io_uring, direct I/O, `fallocate`, `fdatasync`, and the errors come from the kernel as a broken disk's do.
//! The file's bytes are in a backing file. Mounting needs root or `fusermount3`.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

/// Name of the file.
pub const FILE: &str = "disks.pit";
const FILE_INODE: INodeNo = INodeNo(2);
/// Unit of `statfs`.
const STATFS_BLOCK_LEN: u64 = 4096;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Read,
    Write,
    Sync,
    /// Allocation.
    Grow,
}

/// Requests that fail.
#[derive(Debug, Clone)]
pub struct Fault {
    pub op: Op,
    /// Those that touch these bytes of the file; a sync touches all.
    pub range: Range<u64>,
    pub errno: i32,
    /// Requests that succeed before.
    pub after: u64,
    /// Requests that fail, then no more.
    pub times: u64,
}

impl Fault {
    /// Every request of this kind.
    pub fn every(op: Op, errno: i32) -> Self {
        Fault { op, range: 0..u64::MAX, errno, after: 0, times: u64::MAX }
    }
}

/// Whether direct I/O in sectors is possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    Sector,
    /// Direct I/O only in whole pages, so that the daemon goes through the page cache.
    Page,
}

struct State {
    backing: File,
    grain: Grain,
    faults: Mutex<Vec<Fault>>,
    /// Requests that failed.
    failed: AtomicU64,
    /// The file may not become longer than this.
    capacity: AtomicU64,
    /// How long a read takes at least, in milliseconds.
    read_takes_ms: AtomicU64,
    /// No request is answered.
    hung: Mutex<bool>,
    hung_changed: Condvar,
    held: Mutex<Held>,
    held_changed: Condvar,
}

/// Writes that wait, while others go on.
#[derive(Default)]
struct Held {
    /// Those that begin with this byte.
    byte: Option<u8>,
    count: u64,
}

/// The mounted file system; unmounted when dropped.
pub struct FaultyFs {
    session: Option<BackgroundSession>,
    state: Arc<State>,
    folder: PathBuf,
}

impl FaultyFs {
    /// Mounts it at the new folder `folder`, over the file `backing`.
    pub fn mount(folder: &Path, backing: &Path, grain: Grain) -> Self {
        std::fs::create_dir(folder).unwrap();
        let backing = File::options().read(true).write(true).open(backing).unwrap();
        let state = Arc::new(State {
            backing,
            grain,
            faults: Mutex::default(),
            failed: AtomicU64::new(0),
            capacity: AtomicU64::new(u64::MAX),
            read_takes_ms: AtomicU64::new(0),
            hung: Mutex::default(),
            hung_changed: Condvar::new(),
            held: Mutex::default(),
            held_changed: Condvar::new(),
        });
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("pitstop-faulty".to_owned())];
        let session = fuser::spawn_mount(Served(Arc::clone(&state)), folder, &config)
            .expect("mounting needs /dev/fuse, and root or fusermount3 (apt-get install fuse3)");
        FaultyFs { session: Some(session), state, folder: folder.to_owned() }
    }

    pub fn file(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// From now on these requests fail, and no others.
    pub fn fail(&self, faults: &[Fault]) {
        *lock(&self.state.faults) = faults.to_vec();
        self.state.failed.store(0, Ordering::SeqCst);
    }

    /// Requests that have failed since [`FaultyFs::fail`].
    pub fn failed(&self) -> u64 {
        self.state.failed.load(Ordering::SeqCst)
    }

    /// Bytes that the file may have.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.capacity.store(bytes, Ordering::SeqCst);
    }

    /// How long a read takes at least.
    pub fn slow_reads(&self, time: Duration) {
        self.state.read_takes_ms.store(time.as_millis() as u64, Ordering::SeqCst);
    }

    /// Whether requests wait instead of being answered.
    pub fn set_hung(&self, hung: bool) {
        *lock(&self.state.hung) = hung;
        self.state.hung_changed.notify_all();
    }

    /// From now on writes that begin with this byte wait, and no others; those that have waited go on.
    pub fn hold_writes_of(&self, byte: Option<u8>) {
        lock(&self.state.held).byte = byte;
        self.state.held_changed.notify_all();
    }

    /// Writes that wait.
    pub fn held(&self) -> u64 {
        lock(&self.state.held).count
    }

    /// Bytes that the file has.
    pub fn file_len(&self) -> u64 {
        self.state.backing.metadata().unwrap().len()
    }
}

impl Drop for FaultyFs {
    fn drop(&mut self) {
        self.set_hung(false);
        self.hold_writes_of(None);
        if let Some(session) = self.session.take()
            && let Err(error) = session.umount_and_join()
        {
            eprintln!("cannot unmount {}: {error}", self.folder.display());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// The error for a request, if it is to fail.
    fn check(&self, op: Op, range: Range<u64>) -> Result<(), Errno> {
        let mut hung = lock(&self.hung);
        while *hung {
            hung = self.hung_changed.wait(hung).unwrap_or_else(PoisonError::into_inner);
        }
        drop(hung);
        if op == Op::Read {
            std::thread::sleep(Duration::from_millis(self.read_takes_ms.load(Ordering::SeqCst)));
        }
        let touches = |fault: &Fault| op == Op::Sync || fault.range.start < range.end && range.start < fault.range.end;
        for fault in lock(&self.faults).iter_mut().filter(|fault| fault.op == op && touches(fault)) {
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 {
                fault.times -= 1;
                self.failed.fetch_add(1, Ordering::SeqCst);
                return Err(Errno::from_i32(fault.errno));
            }
        }
        Ok(())
    }

    fn wait_while_held(&self, byte: Option<u8>) {
        let mut held = lock(&self.held);
        held.count += 1;
        while held.byte == byte {
            held = self.held_changed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        held.count -= 1;
    }

    fn write(&self, data: &[u8], offset: u64, reply: ReplyWrite) {
        match self.backing.write_all_at(data, offset) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error.into()),
        }
    }

    fn attr(&self) -> FileAttr {
        let size = self.backing.metadata().map_or(0, |metadata| metadata.len());
        attr(FILE_INODE, FileType::RegularFile, size)
    }
}

fn attr(ino: INodeNo, kind: FileType, size: u64) -> FileAttr {
    FileAttr {
        ino,
        size,
        blocks: size / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: if kind == FileType::Directory { 0o755 } else { 0o644 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

struct Served(Arc<State>);

impl Filesystem for Served {
    /// As a disk does, requests are taken before others have ended: otherwise the kernel waits within the submission.
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let asked = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).is_ok();
        if !asked || config.set_max_background(1024).is_err() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == FILE {
            reply.entry(&Duration::ZERO, &self.0.attr(), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match ino {
            FILE_INODE => reply.attr(&Duration::ZERO, &self.0.attr()),
            _ => reply.attr(&Duration::ZERO, &attr(INodeNo::ROOT, FileType::Directory, 0)),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Some(size) = size
            && let Err(error) = self.0.backing.set_len(size)
        {
            return reply.error(error.into());
        }
        reply.attr(&Duration::ZERO, &self.0.attr());
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.0.grain == Grain::Page && !(offset | u64::from(size)).is_multiple_of(4096) {
            return reply.error(Errno::EINVAL);
        }
        if let Err(error) = self.0.check(Op::Read, offset..offset + u64::from(size)) {
            return reply.error(error);
        }
        let mut bytes = vec![0; size as usize];
        match self.0.backing.read_at(&mut bytes, offset) {
            Ok(read) => reply.data(&bytes[..read]),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if let Err(error) = self.0.check(Op::Write, offset..offset + data.len() as u64) {
            return reply.error(error);
        }
        let byte = lock(&self.0.held).byte;
        if byte.is_none() || data.first() != byte.as_ref() {
            return self.0.write(data, offset, reply);
        }
        let (state, data) = (Arc::clone(&self.0), data.to_vec());
        std::thread::spawn(move || {
            state.wait_while_held(byte);
            state.write(&data, offset, reply);
        });
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        match self.0.check(Op::Sync, 0..u64::MAX) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let capacity = self.0.capacity.load(Ordering::SeqCst).min(1 << 50);
        let free = capacity.saturating_sub(self.0.attr().size) / STATFS_BLOCK_LEN;
        let unit = STATFS_BLOCK_LEN as u32;
        reply.statfs(capacity / STATFS_BLOCK_LEN, free, free, 2, 0, unit, 255, unit);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let end = offset + length;
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        if let Err(error) = self.0.check(Op::Grow, offset..end) {
            return reply.error(error);
        }
        if end > self.0.capacity.load(Ordering::SeqCst) {
            return reply.error(Errno::ENOSPC);
        }
        match self.0.backing.set_len(end.max(self.0.attr().size)) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }
}
