//! A file system for targets: a folder of files in memory, whose writes or syncs hang on demand.
//!
//! A FUSE file system, as `common/faulty.rs`, so that the daemon meets what a server that does not answer does to system calls.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};

/// What is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hangs {
    Creates,
    Writes,
    Syncs,
    Renames,
}

#[derive(Default)]
struct State {
    /// Inode by name; 1 is the folder.
    names: BTreeMap<String, u64>,
    files: BTreeMap<u64, Vec<u8>>,
    next_inode: u64,
    hangs: Option<Hangs>,
    fails_syncs: bool,
    /// Requests that wait.
    waiting: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The mounted file system; unmounted when dropped.
pub struct Shelf {
    session: Option<BackgroundSession>,
    shared: Arc<Shared>,
    folder: PathBuf,
}

impl Shelf {
    /// Mounts it at the new folder `folder`.
    pub fn mount(folder: &Path) -> Self {
        std::fs::create_dir(folder).unwrap();
        let shared = Arc::<Shared>::default();
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("pitstop-shelf".to_owned())];
        let session = fuser::spawn_mount(Served(Arc::clone(&shared)), folder, &config)
            .expect("mounting needs /dev/fuse, and root or fusermount3 (apt-get install fuse3)");
        Shelf { session: Some(session), shared, folder: folder.to_owned() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// From now on these requests wait, and no others; those that have waited go on.
    pub fn hang(&self, hangs: Option<Hangs>) {
        self.shared.lock().hangs = hangs;
        self.shared.changed.notify_all();
    }

    /// From now on syncs fail, or do not.
    pub fn fail_syncs(&self, fail: bool) {
        self.shared.lock().fails_syncs = fail;
    }

    /// Puts a file there.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        let mut state = self.shared.lock();
        let inode = state.add(name);
        state.files.insert(inode, bytes.to_vec());
    }

    /// Whether a request waits.
    pub fn is_waited_for(&self) -> bool {
        self.shared.lock().waiting > 0
    }

    /// Names of the files, without asking the file system.
    pub fn names(&self) -> Vec<String> {
        self.shared.lock().names.keys().cloned().collect()
    }

    /// What a file holds.
    pub fn read(&self, name: &str) -> Vec<u8> {
        let state = self.shared.lock();
        state.files[&state.names[name]].clone()
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.hang(None);
        if let Some(session) = self.session.take()
            && let Err(error) = session.umount_and_join()
        {
            eprintln!("cannot unmount {}: {error}", self.folder.display());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does it once requests of this kind are answered; never in the thread that takes requests.
    fn when_answered(self: &Arc<Self>, kind: Hangs, work: impl FnOnce(&mut State) + Send + 'static) {
        let shared = Arc::clone(self);
        std::thread::spawn(move || {
            let mut state = shared.lock();
            state.waiting += 1;
            while state.hangs == Some(kind) {
                state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.waiting -= 1;
            work(&mut state);
        });
    }
}

impl State {
    /// A new, empty file; returns its inode.
    fn add(&mut self, name: &str) -> u64 {
        self.next_inode += 1;
        let inode = INodeNo::ROOT.0 + self.next_inode;
        self.names.insert(name.to_owned(), inode);
        self.files.insert(inode, Vec::new());
        inode
    }

    fn attr(&self, inode: u64) -> FileAttr {
        let is_folder = inode == INodeNo::ROOT.0;
        let size = self.files.get(&inode).map_or(0, |bytes| bytes.len() as u64);
        FileAttr {
            ino: INodeNo(inode),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_folder { FileType::Directory } else { FileType::RegularFile },
            perm: if is_folder { 0o755 } else { 0o644 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn inode(&self, name: &OsStr) -> Option<u64> {
        self.names.get(name.to_str()?).copied()
    }
}

struct Served(Arc<Shared>);

impl Filesystem for Served {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.0.lock();
        match state.inode(name) {
            Some(inode) => reply.entry(&Duration::ZERO, &state.attr(inode), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &self.0.lock().attr(ino.0));
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
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
        let mut state = self.0.lock();
        if let (Some(size), Some(file)) = (size, state.files.get_mut(&ino.0)) {
            file.resize(size as usize, 0);
        }
        reply.attr(&Duration::ZERO, &state.attr(ino.0));
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let name = name.to_str().unwrap().to_owned();
        self.0.when_answered(Hangs::Creates, move |state| {
            let inode = state.add(&name);
            reply.created(&Duration::ZERO, &state.attr(inode), Generation(0), FileHandle(0), FopenFlags::empty());
        });
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match name.to_str().and_then(|name| self.0.lock().names.remove(name)) {
            Some(_) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let [name, new_name] = [name, newname].map(|name| name.to_str().unwrap().to_owned());
        self.0.when_answered(Hangs::Renames, move |state| {
            if flags.contains(RenameFlags::RENAME_NOREPLACE) && state.names.contains_key(&new_name) {
                return reply.error(Errno::EEXIST);
            }
            match state.names.remove(&name) {
                Some(inode) => {
                    state.names.insert(new_name, inode);
                    reply.ok();
                }
                None => reply.error(Errno::ENOENT),
            }
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.0.lock();
        let bytes = state.files.get(&ino.0).map_or(&[][..], Vec::as_slice);
        let first = bytes.len().min(offset as usize);
        reply.data(&bytes[first..bytes.len().min(first + size as usize)]);
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        self.0.when_answered(Hangs::Writes, move |state| {
            let Some(file) = state.files.get_mut(&ino.0) else { return reply.error(Errno::ENOENT) };
            let end = offset as usize + data.len();
            file.resize(file.len().max(end), 0);
            file[offset as usize..end].copy_from_slice(&data);
            reply.written(data.len() as u32);
        });
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.0.when_answered(Hangs::Syncs, move |state| match state.fails_syncs {
            true => reply.error(Errno::EIO),
            false => reply.ok(),
        });
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }
}
