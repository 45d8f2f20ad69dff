//! A front end that says anything at all on its socket, with any descriptors, and whose virtqueue does so too.
//!
//! The export, session, queue threads and container file are the daemon's own. Whatever the front end does, its session
//! ends when it goes, nothing panics, and a well-behaved reader of the same volume goes on.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pitstop_format::{Container, CreateOptions, FileDisk, OpenMode};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::chains;
use crate::config::{Access, ExportConfig, MAX_QUEUES, SocketSource};
use crate::export::{Door, Export, Resources};
use crate::input::Input;

/// Guest memory; the front end's own addresses begin at [`USER`].
const MEM_LEN: u64 = 0x3_0000;
const USER: u64 = 0x7000_0000;
/// Messages of one input.
const MESSAGES: usize = 24;

/// The volume that is served, on a real file.
fn resources() -> &'static (tempfile::TempDir, Resources) {
    static MADE: OnceLock<(tempfile::TempDir, Resources)> = OnceLock::new();
    MADE.get_or_init(|| {
        crate::session::sigbus::install().expect("a signal handler");
        let folder = tempfile::tempdir().expect("a folder");
        let disk = FileDisk::create(&folder.path().join("fuzz.pit")).expect("a file");
        let options = CreateOptions { journal_len_bytes: 1 << 20, ..CreateOptions::default() };
        Container::create(disk.clone(), &options).expect("a container");
        let container = Container::open(disk.clone(), OpenMode::ReadWrite).expect("a container that opens");
        container.create_volume("v", 1 << 20).expect("a volume");
        (folder, Resources::new(container, disk).expect("resources"))
    })
}

/// The front end's side of a session.
struct FrontEnd {
    stream: UnixStream,
    memory: File,
    kick: EventFd,
    call: EventFd,
}

impl FrontEnd {
    fn send(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) {
        let mut message = Vec::with_capacity(12 + payload.len());
        for word in [request, flags, payload.len() as u32] {
            message.extend(word.to_le_bytes());
        }
        message.extend(payload);
        // The session may have ended: then there is nobody to tell.
        _ = self.stream.send_with_fds(&[&message[..]], fds);
        self.take_replies();
    }

    fn take_replies(&mut self) {
        let mut replies = [0; 4096];
        while self.stream.read(&mut replies).is_ok_and(|len| len > 0) {}
    }

    /// What every front end says first.
    fn greet(&mut self, features: u64) {
        let word = |value: u64| value.to_le_bytes().to_vec();
        let state = |index: u32, num: u32| [index.to_le_bytes(), num.to_le_bytes()].concat();
        self.send(3, 1, &[], &[]);
        self.send(16, 1, &word(1 | 1 << 9 | 1 << 13 | 1 << 15), &[]);
        self.send(2, 1, &word(features), &[]);
        let memory = self.memory.as_raw_fd();
        let table = [1, 0, MEM_LEN, USER, 0].map(u64::to_le_bytes).concat();
        let table = [&table[..4], &[0; 4], &[0; 8], &table[16..]].concat();
        self.send(5, 1, &table, &[memory]);
        self.send(8, 1, &state(0, 64), &[]);
        self.send(10, 1, &state(0, 0), &[]);
        let addresses = [0, USER, USER + 0x5000, USER + 0x4000, 0].map(u64::to_le_bytes).concat();
        self.send(9, 1, &addresses, &[]);
        let (kick, call) = (self.kick.as_raw_fd(), self.call.as_raw_fd());
        self.send(13, 1, &word(0), &[call]);
        self.send(12, 1, &word(0), &[kick]);
        self.send(18, 1, &state(0, 1), &[]);
    }

    /// A message of the input's making.
    fn say(&mut self, input: &mut Input<'_>) {
        let request = u32::from(input.byte() % 48);
        let choice = input.byte();
        let flags = match choice & 3 {
            0 | 1 => 1,
            2 => 1 | 8,
            _ => input.word() as u32,
        };
        let (mut fds, mut kept) = (Vec::new(), Vec::new());
        for _ in 0..(choice >> 2 & 3) {
            fds.push(self.descriptor(input.byte(), &mut kept));
        }
        let payload = if choice & 16 == 0 { usual_payload(request, input) } else { wild_payload(input) };
        self.send(request, flags, &payload, &fds);
        if choice & 32 != 0 {
            drop(self.kick.write(1));
        }
        if choice & 64 != 0 {
            drop(self.memory.set_len(input.number(2) * 4));
        }
    }

    fn descriptor(&self, choice: u8, kept: &mut Vec<OwnedFd>) -> RawFd {
        let own = |fd: Option<OwnedFd>, kept: &mut Vec<OwnedFd>| match fd {
            Some(fd) => {
                kept.push(fd);
                kept.last().map_or(-1, AsRawFd::as_raw_fd)
            }
            None => self.memory.as_raw_fd(),
        };
        match choice % 8 {
            0 | 1 => self.memory.as_raw_fd(),
            2 | 3 => self.kick.as_raw_fd(),
            4 => self.call.as_raw_fd(),
            5 => own(memory_file(u64::from(choice) << 8).map(OwnedFd::from), kept),
            6 => own(File::open("/dev/null").ok().map(OwnedFd::from), kept),
            _ => self.stream.as_raw_fd(),
        }
    }
}

fn usual_payload(request: u32, input: &mut Input<'_>) -> Vec<u8> {
    let small = |input: &mut Input<'_>| u32::from(input.byte() % 4).to_le_bytes();
    let place = |input: &mut Input<'_>| match input.byte() {
        choice if choice < 200 => USER + u64::from(choice) * 0x400,
        _ => input.word(),
    };
    match request {
        5 => {
            let regions = input.byte() % 4;
            let mut payload = vec![regions, 0, 0, 0, 0, 0, 0, 0];
            for _ in 0..regions {
                payload.extend(region(input));
            }
            payload
        }
        37 | 38 => [vec![0; 8], region(input)].concat(),
        8 | 10 | 11 | 18 => [small(input).to_vec(), (input.word() as u32).to_le_bytes().to_vec()].concat(),
        9 => {
            let mut payload = [small(input), small(input)].concat();
            (0..4).for_each(|_| payload.extend(place(input).to_le_bytes()));
            payload
        }
        24 | 25 => {
            let bytes = input.byte() % 70;
            let mut payload =
                [input.word() as u32, u32::from(bytes), u32::from(input.byte() % 4)].map(u32::to_le_bytes).concat();
            payload.extend((0..bytes).map(|_| input.byte()));
            payload
        }
        1 | 3 | 4 | 15 | 17 | 34 | 36 => Vec::new(),
        _ => input.word().to_le_bytes().to_vec(),
    }
}

fn region(input: &mut Input<'_>) -> Vec<u8> {
    let pages = |input: &mut Input<'_>| u64::from(input.byte()) << 12;
    let mut fields = [pages(input), pages(input), USER + pages(input), pages(input)];
    if input.byte() % 8 == 0 {
        fields[usize::from(input.byte() % 4)] = input.word();
    }
    fields.map(u64::to_le_bytes).concat()
}

fn wild_payload(input: &mut Input<'_>) -> Vec<u8> {
    let len = usize::from(input.byte());
    input.bytes(len).to_vec()
}

fn memory_file(len: u64) -> Option<File> {
    // SAFETY: the name is a literal that ends with NUL; the result is a new descriptor that nobody else owns.
    let file = unsafe {
        let fd = libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC);
        (fd >= 0).then(|| File::from_raw_fd(fd))
    }?;
    file.set_len(len).ok().map(|()| file)
}

/// One session, from its beginning to its end.
pub fn run(data: &[u8]) {
    let (_, resources) = resources();
    let mut input = Input::new(data);
    let flags = input.byte();
    let memory = memory_file(MEM_LEN).expect("a file in memory");
    let (own, theirs) = UnixStream::pair().expect("a pair of sockets");
    own.set_nonblocking(true).expect("a socket that does not block");
    let config = ExportConfig {
        id: "fuzz".to_owned(),
        volume: "v".to_owned(),
        socket: SocketSource::Fd(-1),
        access: if flags & 4 == 0 { Access::ReadWrite } else { Access::ReadOnly },
        num_queues: if flags & 8 == 0 { 1 } else { MAX_QUEUES },
        on_enospc: Default::default(),
        refresh_on_connect: None,
    };
    let volume = resources.container().volume("v").expect("the volume");
    let export = Export::start(&config, Door::Connection(theirs), volume, resources).expect("an export");
    let eventfd = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let mut front_end = FrontEnd { stream: own, memory, kick: eventfd(), call: eventfd() };
    let messages = usize::from(input.byte()) % MESSAGES;
    let mut said = Input::new(input.bytes(messages * 24));
    if flags & 1 == 0 {
        fill(&front_end.memory, &mut input.clone());
        let features = 1 << 32 | 1 << 30 | 1 << 9 | 1 << 13 | 1 << 14 | 1 << 28 | 1 << 29 | 1 << 12;
        front_end.greet(if flags & 2 == 0 { features } else { input.word() });
        drop(front_end.kick.write(1));
        wait(&front_end);
    }
    while !said.is_empty() {
        front_end.say(&mut said);
    }
    front_end.take_replies();
    drop(front_end.stream.flush());
    drop(front_end);
    assert!(export.stop().is_ok(), "the export's thread has panicked");
    assert!(resources.container().failure().is_none(), "the container has failed");
}

/// Puts the virtqueue of the input into the memory.
fn fill(memory: &File, input: &mut Input<'_>) {
    let Ok(file) = memory.try_clone() else { return };
    let range = (GuestAddress(0), MEM_LEN as usize, Some(FileOffset::new(file, 0)));
    if let Ok(mapped) = GuestMemoryMmap::<()>::from_ranges_with_files([range]) {
        chains::fill(&mapped, input);
        drop(mapped.read_obj::<u8>(GuestAddress(0)));
    }
}

/// Gives the queue a moment to answer: a queue that is told to stop takes no more requests.
fn wait(front_end: &FrontEnd) {
    let since = Instant::now();
    while since.elapsed() < Duration::from_micros(1500) && front_end.call.read().is_err() {
        std::thread::yield_now();
    }
}
