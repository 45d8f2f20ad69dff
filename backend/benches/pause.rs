//! Measures what snapshot and refresh cost, and how long a writing guest's longest request takes meanwhile.
//!
//! `cargo bench -p pitstop-backend --bench pause -- FOLDER` builds a container in FOLDER with a volume of 1 GiB
//! and one of 1 TiB with 20 GiB written in random places (it needs 25 GiB of space), serves each, writes 4 KiB blocks at
//! random with 8 requests under way, and takes turns of a second without and with ten snapshots or refreshes.

#![allow(clippy::unwrap_used, reason = "a measuring tool: any failure ends it")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::Daemon;
use common::client::{Client, DATA_START, Style, T_OUT};
use pitstop_format::{Container, CreateOptions, Disk, FileDisk, OpenMode, SLAB_LEN, VolumeIo};

const GIB: u64 = 1 << 30;
const TURNS: usize = 7;
const DEPTH: usize = 8;

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn build(path: &Path, size: u64, written: u64) {
    let disk = FileDisk::create(path).unwrap();
    Container::create(Arc::clone(&disk) as Arc<dyn Disk>, &CreateOptions::default()).unwrap();
    let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
    container.create_volume("golden", size).unwrap();
    container.create_volume("ci", size).unwrap();
    let io = VolumeIo::new(&container, container.volume("golden").unwrap());
    let data = vec![0x5a; SLAB_LEN as usize];
    let mut rng = Rng(7);
    for n in 0..written / SLAB_LEN {
        io.write_at(&data, rng.below(size / SLAB_LEN) * SLAB_LEN).unwrap();
        if n % 4096 == 0 {
            io.flush().unwrap();
        }
    }
    container.settle(100_000).unwrap();
    container.close().unwrap();
}

/// A QMP client that does no more than is needed here.
struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn connect(path: &Path) -> Self {
        let mut qmp = Qmp(BufReader::new(UnixStream::connect(path).unwrap()));
        qmp.line();
        qmp.execute("qmp_capabilities", "{}");
        qmp
    }

    fn line(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn execute(&mut self, command: &str, arguments: &str) -> serde_json::Value {
        let request = format!("{{\"execute\":\"{command}\",\"arguments\":{arguments}}}\n");
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        loop {
            let answer = self.line();
            if let Some(error) = answer.get("error") {
                panic!("{command}: {error}");
            }
            if let Some(result) = answer.get("return") {
                return result.clone();
            }
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Writes until told to stop; returns the longest time that one request took, and how many there were.
fn load(client: &mut Client, size: u64, stop: &AtomicBool) -> (f64, u64) {
    let mut rng = Rng(Instant::now().elapsed().as_nanos() as u64 | 0x9E37_79B9);
    let mut since: std::collections::HashMap<u16, Instant> = std::collections::HashMap::new();
    let (mut longest, mut count) = (0f64, 0);
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        while !stopping && since.len() < DEPTH {
            // Within the first 64 MiB: in a larger range every write after a copy would take a slab of its own.
            let sector = rng.below(size.min(64 << 20) / 4096) * 8;
            let head = client.queues[0].submit(T_OUT, sector, &[(DATA_START, 4096)]);
            since.insert(head, Instant::now());
        }
        if since.is_empty() {
            return (longest, count);
        }
        let done = client.queues[0].wait_one();
        assert_eq!(done.status, 0);
        longest = longest.max(since.remove(&done.head).unwrap().elapsed().as_secs_f64() * 1000.0);
        count += 1;
    }
}

fn measure(folder: &Path, name: &str, size: u64, written: u64) {
    let path = folder.join(format!("{name}.pit"));
    if !path.exists() {
        build(&path, size, written);
    }
    let (socket, control) = (folder.join("golden.sock"), folder.join("control.sock"));
    let daemon = Daemon::start(&[
        path.display().to_string(),
        "--export".into(),
        format!("volume=golden,socket={}", socket.display()),
        "--control".into(),
        control.display().to_string(),
    ]);
    common::wait_until("sockets", || socket.exists() && control.exists());
    let mut client = Client::connect(&socket, Style::PLAIN);
    let mut qmp = Qmp::connect(&control);
    let mut copies = 0;
    let mut rows = ["nothing", "snapshot", "refresh"].map(|kind| (kind, vec![], vec![], vec![]));
    for turn in 0..TURNS * 3 {
        let (kind, times, longest, iops) = &mut rows[turn % 3];
        let stop = AtomicBool::new(false);
        let ((pause, count), elapsed) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let since = Instant::now();
                (load(&mut client, size, &stop), since.elapsed().as_secs_f64())
            });
            let begin = Instant::now();
            for n in 1..=10 {
                let since = Instant::now();
                match *kind {
                    "snapshot" => {
                        copies += 1;
                        let arguments = format!("{{\"source\":\"golden\",\"name\":\"copy-{copies}\"}}");
                        qmp.execute("x-pitstop-snapshot", &arguments);
                        times.push(since.elapsed().as_secs_f64() * 1000.0);
                    }
                    "refresh" => {
                        qmp.execute("x-pitstop-refresh", "{\"name\":\"ci\",\"source\":\"golden\"}");
                        times.push(since.elapsed().as_secs_f64() * 1000.0);
                    }
                    _ => {}
                }
                std::thread::sleep((Duration::from_millis(100) * n).saturating_sub(begin.elapsed()));
            }
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap()
        });
        longest.push(pause);
        iops.push(count as f64 / elapsed);
        if *kind == "snapshot" {
            for copy in copies - 9..=copies {
                qmp.execute("x-pitstop-volume-delete", &format!("{{\"name\":\"copy-{copy}\"}}"));
            }
        }
    }
    for (kind, mut times, mut longest, mut iops) in rows {
        let most = times.iter().copied().fold(0.0, f64::max);
        let took = if times.is_empty() { "-".to_owned() } else { format!("{:.2} (max {most:.2})", median(&mut times)) };
        println!(
            "{name:>8} | {kind:>8} | {took:>20} ms | longest request {:>7.2} ms | {:>7.0} writes/s",
            median(&mut longest),
            median(&mut iops)
        );
    }
    drop(client);
    assert!(daemon.terminate().success());
}

fn main() {
    let folder = std::env::args_os().skip(1).find(|argument| argument != "--bench");
    let folder = folder.expect("usage: cargo bench -p pitstop-backend --bench pause -- FOLDER");
    let folder = Path::new(&folder);
    measure(folder, "1G", GIB, 16 << 20);
    measure(folder, "1T-20G", 1024 * GIB, 20 * GIB);
}
