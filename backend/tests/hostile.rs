//! What a misbehaving front end cannot do: end the daemon, disturb another guest, or leave anything behind.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::client::{Client, DATA_START, Style, T_IN, T_OUT};
use common::{Daemon, PATIENCE, Place, Random};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// A daemon with a well-behaved guest on `good`, to which nothing may happen, and a victim export `bad`.
struct Scene {
    place: Place,
    daemon: Daemon,
    good: Client,
    before: (usize, usize),
}

impl Scene {
    fn new() -> Self {
        let place = Place::with_volumes(&["good", "bad"]);
        let daemon = place.serve(&["good", "bad"], &[]);
        let mut good = Client::connect(&place.path("good"), Style::PLAIN);
        good.write(0, &[1; 4096]);
        let before = daemon.holdings();
        Scene { place, daemon, good, before }
    }

    fn bad_guest(&self) -> Client {
        Client::connect(&self.place.path("bad"), Style::PLAIN)
    }

    fn bad_stream(&self) -> UnixStream {
        let stream = UnixStream::connect(self.place.path("bad")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Waits until the session on `bad` has ended by the daemon's will, then looks whether all else is well.
    fn assert_survives(mut self) {
        self.good.write(4096, &[2; 4096]);
        assert_eq!(self.good.read(4096, 4096), [2; 4096]);
        let mut again = Client::connect(&self.place.path("bad"), Style::PLAIN);
        again.write(0, &[3; 512]);
        assert_eq!(again.read(0, 512), [3; 512]);
        drop(again);
        common::wait_until("descriptors and threads as before", || self.daemon.holdings() == self.before);
        assert!(self.daemon.is_running());
        assert_eq!(self.daemon.terminate().code(), Some(0));
    }
}

/// The daemon closes the connection.
fn wait_for_end(client: Client) {
    let since = std::time::Instant::now();
    while client.frontend.get_features().is_ok() {
        assert!(since.elapsed() < PATIENCE, "the session goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn truncated_guest_memory() {
    let scene = Scene::new();
    let mut bad = scene.bad_guest();
    bad.write(0, &[1; 4096]);
    bad.file.set_len(0).unwrap();
    bad.queues[0].kick.write(1).unwrap();
    wait_for_end(bad);
    scene.assert_survives();
}

#[test]
fn guest_memory_truncated_under_the_data() {
    let scene = Scene::new();
    let mut bad = scene.bad_guest();
    bad.file.set_len(DATA_START).unwrap();
    for addr in [DATA_START + 4096, DATA_START + 4096 + 1] {
        // Direct: the kernel cannot reach it. Bounced: the daemon's own copy finds zeros.
        for kind in [T_IN, T_OUT] {
            bad.queues[0].submit(kind, 0, &[(addr, 4096)]);
        }
    }
    wait_for_end(bad);
    scene.assert_survives();
}

/// Requests that are answered at once never fill the ring: the queue must still answer and stop.
#[test]
fn a_guest_that_offers_without_end_cannot_hold_its_queue() {
    let scene = Scene::new();
    let mut bad = scene.bad_guest();
    let heads: Vec<u16> = (0..32).map(|_| bad.queues[0].offer(T_IN, u64::MAX / 512, &[(DATA_START, 512)])).collect();
    bad.queues[0].kick.write(1).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let Client { frontend, queues, mem, .. } = &mut bad;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A head is offered again as soon as its status is there, long before the used index says so.
            for &head in heads.iter().cycle() {
                let status = GuestAddress(queues[0].status(head));
                while mem.read_obj::<u8>(status).unwrap() == 0xff {
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        return;
                    }
                }
                mem.write_obj(0xffu8, status).unwrap();
                queues[0].offer_head(head);
            }
        });
        std::thread::sleep(Duration::from_millis(200));
        let since = std::time::Instant::now();
        frontend.get_vring_base(0).unwrap();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(since.elapsed() < PATIENCE);
    });
    drop(bad);
    scene.assert_survives();
}

/// Each of these reads goes as two thousand transfers; a ring full of them must not become a quarter of a million.
#[test]
fn scattered_reads_do_not_take_memory_without_bound() {
    const LEN: u32 = 16 << 20;
    let scene = Scene::new();
    let mut bad = scene.bad_guest();
    for block in (0..u64::from(LEN) / 4096).step_by(2) {
        bad.write(block * 4096, &[1; 4096]);
    }
    let before = scene.daemon.own_memory();
    while bad.queues[0].has_room(1) {
        bad.queues[0].offer(T_IN, 0, &[(DATA_START, LEN)]);
    }
    bad.queues[0].kick.write(1).unwrap();
    for _ in 0..bad.queues[0].pending() {
        assert_eq!(bad.queues[0].wait_one().status, 0);
    }
    // What the transfers took is kept for the queue's next ones.
    let grown = scene.daemon.own_memory() - before;
    assert!(grown < 8 << 20, "{grown} bytes more for one guest's requests");
    drop(bad);
    scene.assert_survives();
}

#[test]
fn impossible_rings() {
    for case in 0..4 {
        let scene = Scene::new();
        let mut bad = scene.bad_guest();
        match case {
            0 => bad.queues[0].force_avail_idx(5000),
            1 => bad.queues[0].offer_head(40000),
            2 => {
                let used = bad.queues[0].used();
                bad.mem.write_slice(&[0xff; 4096], GuestAddress(used)).unwrap();
                bad.queues[0].force_avail_idx(0xffff);
            }
            _ => {
                let desc = bad.queues[0].desc();
                bad.mem.write_slice(&[0xff; 2048], GuestAddress(desc)).unwrap();
                for head in 0..100 {
                    bad.queues[0].offer_head(head); // broken chains, given back unanswered
                }
                bad.queues[0].force_avail_idx(30000);
            }
        }
        bad.queues[0].kick.write(1).unwrap();
        wait_for_end(bad);
        scene.assert_survives();
    }
}

#[test]
fn the_same_head_over_and_over() {
    let scene = Scene::new();
    let mut bad = scene.bad_guest();
    let head = bad.queues[0].submit(T_OUT, 0, &[(DATA_START, 4096)]);
    for round in 0..2000u32 {
        for _ in 0..100 {
            bad.queues[0].offer_head(head);
        }
        bad.queues[0].kick.write(1).unwrap();
        if round % 200 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    drop(bad);
    scene.assert_survives();
}

#[test]
fn impossible_memory_tables() {
    let scene = Scene::new();
    let change: [fn(&mut vhost::VhostUserMemoryRegionInfo); 5] = [
        |region| region.memory_size = 1 << 45,
        |region| region.mmap_offset = 1 << 62,
        |region| region.mmap_offset = 100,
        |region| region.guest_phys_addr = u64::MAX - 4096,
        |region| region.memory_size += 4096,
    ];
    for (index, change) in change.iter().enumerate() {
        let mut bad = scene.bad_guest();
        let mut region = bad.region();
        region.guest_phys_addr = 1 << 40;
        change(&mut region);
        // Some are refused by the front end's own crate; then there is nothing to survive.
        let refused = if index % 2 == 0 {
            bad.frontend.add_mem_region(&region).is_err()
        } else {
            bad.frontend.set_mem_table(&[region]).is_err()
        };
        assert!(refused, "case {index}");
    }
    scene.assert_survives();
}

#[test]
fn impossible_queues() {
    let scene = Scene::new();
    for case in 0..6 {
        let mut bad = Client::connect_stopped(&scene.place.path("bad"), Style { queues: 2, ..Style::PLAIN });
        let frontend = Frontend::clone(&bad.frontend);
        let config = |addr| VringConfigData {
            queue_max_size: 128,
            queue_size: 128,
            flags: 0,
            desc_table_addr: addr,
            used_ring_addr: addr,
            avail_ring_addr: addr,
            log_addr: None,
        };
        let result = match case {
            0 => frontend.set_vring_num(0, 3),
            1 => frontend.set_vring_num(0, 0),
            2 => {
                // Addresses in no region: refused when the ring is started.
                frontend.set_vring_num(0, 128).unwrap();
                frontend.set_vring_addr(0, &config(16)).unwrap();
                frontend.set_vring_kick(0, &EventFd::new(0).unwrap()).unwrap();
                bad.frontend.set_vring_enable(0, true)
            }
            3 => {
                // The ring's last bytes are beyond memory.
                bad.start_queue(0);
                frontend.get_vring_base(0).unwrap();
                let end = bad.region().userspace_addr + common::client::MEM_LEN - 16;
                frontend.set_vring_addr(0, &config(end)).unwrap();
                match frontend.set_vring_kick(0, &EventFd::new(0).unwrap()) {
                    Ok(()) => {
                        wait_for_end(bad);
                        continue;
                    }
                    refused => refused,
                }
            }
            4 => {
                // A kick that is not an eventfd would spin or block.
                let null = File::open("/dev/null").unwrap();
                // SAFETY: the descriptor is open; `EventFd` closes it, `null` is forgotten.
                let fake = unsafe { EventFd::from_raw_fd(null.as_raw_fd()) };
                std::mem::forget(null);
                frontend.set_vring_kick(0, &fake)
            }
            _ => bad.set_write_cache(false).and_then(|()| {
                let flags = vhost::vhost_user::message::VhostUserConfigFlags::WRITABLE;
                bad.frontend.set_config(0, flags, &[0; 8])
            }),
        };
        assert!(result.is_err(), "case {case}");
    }
    scene.assert_survives();
}

#[test]
fn a_call_descriptor_that_is_full_and_blocks() {
    let scene = Scene::new();
    let mut bad = scene.bad_guest();
    common::wait_until("the signal at the queue's start", || bad.queues[0].call.read().is_ok());
    bad.queues[0].call.write(u64::MAX - 1).unwrap();
    // SAFETY: F_SETFL touches no memory.
    unsafe { libc::fcntl(bad.queues[0].call.as_raw_fd(), libc::F_SETFL, 0) };
    for n in 0..100 {
        bad.queues[0].submit(T_OUT, n * 8, &[(DATA_START, 4096)]);
        common::wait_until("an answer", || bad.queues[0].take_done().is_some());
    }
    let base = bad.frontend.get_vring_base(0).unwrap();
    assert_eq!(base, 100);
    drop(bad);
    scene.assert_survives();
}

#[test]
fn random_messages() {
    let scene = Scene::new();
    let mut random = Random(7);
    for round in 0..400u32 {
        let mut stream = scene.bad_stream();
        for _ in 0..6 {
            let size = [0, 8, 8, 8, 16, 40, 48][random.below(7) as usize];
            let mut message = (random.below(46) as u32).to_le_bytes().to_vec();
            message.extend((1u32 | (random.below(3) as u32) << 3).to_le_bytes());
            message.extend((size as u32).to_le_bytes());
            let wild = random.below(3) == 0;
            message.extend((0..size).map(|_| if wild { random.next() as u8 } else { (random.next() & 1) as u8 }));
            if stream.write_all(&message).is_err() {
                break;
            }
        }
        if round % 2 == 0 {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut rest = Vec::new();
            drop(stream.read_to_end(&mut rest));
        }
    }
    scene.assert_survives();
}

#[test]
fn half_a_message_and_silence() {
    let scene = Scene::new();
    let mut stream = scene.bad_stream();
    stream.write_all(&[1, 0, 0]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let Scene { daemon, good, place, .. } = scene;
    drop(good);
    assert_eq!(daemon.terminate().code(), Some(0), "a silent front end does not hold the daemon up");
    assert!(!place.path("bad").exists());
}

#[test]
fn replies_that_nobody_reads() {
    let scene = Scene::new();
    let mut stream = scene.bad_stream();
    stream.set_nonblocking(true).unwrap();
    let message: Vec<u8> = [1u32, 1, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    while stream.write_all(&message).is_ok() {}
    std::thread::sleep(Duration::from_millis(100));
    let before = scene.daemon.cpu_time();
    std::thread::sleep(Duration::from_millis(500));
    assert!(scene.daemon.cpu_time() - before <= Duration::from_millis(50), "the daemon spins");
    assert_eq!(scene.daemon.terminate().code(), Some(0));
}
