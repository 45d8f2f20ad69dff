//! A guest in QEMU whose disk is a vhost-user-blk socket.
//!
//! The machine is emulated (TCG), so that it needs no KVM; its memory is shared, as vhost-user
//! asks. The first serial port is the console, kept in a log; over the second the harness sends
//! commands; a QMP socket steers QEMU itself.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::agent::{Agent, AgentError, Reply};
use crate::find::{guest_file, system_program};
use crate::process::{Background, tail, wait_until};
use crate::qmp::Qmp;
use crate::scratch::Scratch;

/// Within this a guest must have booted; emulation on two busy cores takes 5 to 20 s.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
const POWER_OFF_LIMIT: Duration = Duration::from_secs(60);

/// What the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestKind {
    /// The initramfs alone: a shell and a few programs; nothing is mounted.
    Busybox,
    /// Debian with systemd, root=/dev/vda, checked by e2fsck before it is mounted.
    Debian,
}

/// How many queues the disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queues {
    /// QEMU's own choice: one for each virtual CPU.
    Automatic,
    /// This many.
    Exactly(u16),
}

/// What a reboot or reset from inside the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReboot {
    /// QEMU exits, so that a kernel that panics is noticed at once.
    Exit,
    /// The guest boots again in the same QEMU, over the same connection.
    Boot,
}

/// A disk of the guest: vda, vdb, and so on.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// Its queues.
    pub queues: Queues,
}

impl Disk {
    /// A disk with QEMU's own choice of queues.
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), queues: Queues::Automatic }
    }
}

/// The guest's machine.
#[derive(Debug, Clone)]
pub struct QemuOptions {
    /// Names its log and sockets; unique within a test.
    pub name: String,
    /// What it runs.
    pub kind: GuestKind,
    /// Virtual CPUs.
    pub cpus: u16,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// What a reboot does.
    pub on_reboot: OnReboot,
    /// Its disks.
    pub disks: Vec<Disk>,
}

impl QemuOptions {
    /// A busybox guest with one virtual CPU and one disk.
    pub fn busybox(name: &str, socket: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            kind: GuestKind::Busybox,
            cpus: 1,
            memory_mib: 256,
            on_reboot: OnReboot::Exit,
            disks: vec![Disk::at(socket)],
        }
    }

    /// A Debian guest with two virtual CPUs whose root file system is the disk.
    pub fn debian(name: &str, socket: impl Into<PathBuf>) -> Self {
        Self { kind: GuestKind::Debian, cpus: 2, memory_mib: 512, ..Self::busybox(name, socket) }
    }
}

/// A running guest. Dropping it kills its QEMU, as a power cut would.
#[derive(Debug)]
pub struct Qemu {
    name: String,
    kind: GuestKind,
    process: Background,
    agent: Agent,
    console: PathBuf,
    qmp: PathBuf,
}

impl Qemu {
    /// Starts QEMU and waits until the guest takes commands.
    ///
    /// # Panics
    /// When it does not boot; the message holds QEMU's log and the console.
    pub fn boot(scratch: &Scratch, options: &QemuOptions) -> Self {
        let mut guest = Self::start(scratch, options);
        guest.wait_ready();
        guest
    }

    /// Starts QEMU and returns as soon as it has connected its serial ports.
    fn start(scratch: &Scratch, options: &QemuOptions) -> Self {
        let console = scratch.file(&format!("{}.console", options.name));
        let qmp = scratch.socket(&format!("{}.qmp", options.name));
        let port = scratch.socket(&format!("{}.port", options.name));
        let listener = listen(&port);
        let mut command = command_line(options, &console, &port, &qmp);
        let log = scratch.file(&format!("{}.qemu.log", options.name));
        let mut process = Background::spawn(&options.name, &mut command, log);
        let stream = wait_until(
            CONNECT_LIMIT,
            || {
                if let Ok((stream, _)) = listener.accept() {
                    return Some(Some(stream));
                }
                process.ended().map(|_| None)
            },
            || format!("QEMU of {} did not connect its serial port", options.name),
        )
        .unwrap_or_else(|| panic!("QEMU of {} ended\n{}", options.name, process.log_tail()));
        stream.set_nonblocking(false).expect("a socket can be made blocking");
        Self { name: options.name.clone(), kind: options.kind, process, agent: Agent::new(stream), console, qmp }
    }

    /// Waits until the guest takes commands: after the start, and after each reboot or reset.
    pub fn wait_ready(&mut self) {
        if let Err(error) = self.agent.wait_ready(BOOT_LIMIT) {
            self.fail("did not boot", &error);
        }
    }

    /// Runs a command in the guest's shell.
    pub fn run(&mut self, command: &str) -> Reply {
        self.send(command);
        self.receive(command, COMMAND_LIMIT)
    }

    /// Runs a command that must succeed and returns what it printed.
    ///
    /// # Panics
    /// When its exit status is not 0.
    pub fn sh(&mut self, command: &str) -> String {
        self.sh_within(COMMAND_LIMIT, command)
    }

    /// Like [`Qemu::sh`], for a command that may take as long as `limit`.
    pub fn sh_within(&mut self, limit: Duration, command: &str) -> String {
        self.send(command);
        let reply = self.receive(command, limit);
        assert_eq!(
            reply.status,
            0,
            "in guest {}: `{command}` gave status {}\n{}\n{}",
            self.name,
            reply.status,
            reply.text,
            self.console_tail()
        );
        reply.text
    }

    /// Everything the guest's kernel and init have printed.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Writes everything back, unmounts and switches the machine off, as its owner would.
    ///
    /// # Panics
    /// When the machine does not go off, or QEMU fails.
    pub fn power_off(mut self) {
        self.send(match self.kind {
            GuestKind::Busybox => "umount -a -t ext4; sync; poweroff -f",
            GuestKind::Debian => "systemctl poweroff",
        });
        let status = self.process.wait(POWER_OFF_LIMIT);
        assert!(status.success(), "QEMU of {} ended with {status}\n{}", self.name, self.process.log_tail());
    }

    /// Reboots from inside the guest and waits until it takes commands again.
    pub fn reboot(&mut self) {
        self.send("sync; reboot -f");
        self.wait_ready();
    }

    /// Presses the machine's reset button and waits until the guest takes commands again.
    pub fn reset(&mut self) {
        Qmp::connect(&self.qmp).execute("system_reset");
        self.wait_ready();
    }

    /// Cuts the power: QEMU is killed, nothing is written back.
    pub fn cut_power(self) {
        self.process.kill();
    }

    fn send(&mut self, command: &str) {
        if let Err(error) = self.agent.send(command) {
            self.fail(&format!("cannot be sent `{command}`"), &error);
        }
    }

    fn receive(&mut self, command: &str, limit: Duration) -> Reply {
        match self.agent.receive(limit) {
            Ok(reply) => reply,
            Err(error) => self.fail(&format!("did not answer `{command}` in {limit:?}"), &error),
        }
    }

    fn console_tail(&self) -> String {
        format!("--- console of {}:\n{}", self.name, tail(&self.console))
    }

    fn fail(&self, what: &str, error: &AgentError) -> ! {
        let (why, said) = match error {
            AgentError::Timeout(said) => ("no answer in time", said),
            AgentError::Closed(said) => ("its machine is off", said),
        };
        panic!(
            "guest {} {what}: {why}; it said last: {said:?}\n{}\n{}",
            self.name,
            self.console_tail(),
            self.process.log_tail()
        );
    }
}

/// A listening socket that does not block, at a path that may hold an old one.
fn listen(path: &Path) -> UnixListener {
    if path.exists() {
        std::fs::remove_file(path).expect("an old socket can be removed");
    }
    let listener =
        UnixListener::bind(path).unwrap_or_else(|error| panic!("cannot listen at {}: {error}", path.display()));
    listener.set_nonblocking(true).expect("a socket can be made non-blocking");
    listener
}

fn command_line(options: &QemuOptions, console: &Path, port: &Path, qmp: &Path) -> Command {
    let memory = options.memory_mib;
    let mut command = Command::new(system_program("qemu-system-x86_64"));
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-machine", "q35,memory-backend=memory"])
        .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-smp", &options.cpus.to_string()])
        .args(["-m", &memory.to_string()])
        .arg("-object")
        .arg(format!("memory-backend-memfd,id=memory,size={memory}M,share=on"))
        .arg("-kernel")
        .arg(guest_file("vmlinuz"))
        .arg("-initrd")
        .arg(guest_file("initramfs.gz"))
        .args(["-append", kernel_arguments(options.kind)])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-chardev")
        .arg(format!("socket,id=port,path={}", port.display()))
        .args(["-serial", "chardev:port"])
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", qmp.display()));
    if options.on_reboot == OnReboot::Exit {
        command.arg("-no-reboot");
    }
    for (index, disk) in options.disks.iter().enumerate() {
        let queues = match disk.queues {
            Queues::Automatic => String::new(),
            Queues::Exactly(count) => format!(",num-queues={count}"),
        };
        command
            .arg("-chardev")
            .arg(format!("socket,id=disk{index},path={}", disk.socket.display()))
            .arg("-device")
            .arg(format!("vhost-user-blk-pci,chardev=disk{index}{queues}"));
    }
    command
}

fn kernel_arguments(kind: GuestKind) -> &'static str {
    match kind {
        GuestKind::Busybox => "console=ttyS0 quiet panic=-1",
        GuestKind::Debian => "console=ttyS0 quiet panic=-1 root=/dev/vda",
    }
}
