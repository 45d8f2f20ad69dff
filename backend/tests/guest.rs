//! What a guest can rely on: data, statuses, notifications, drains and reconnections (R29).

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use common::client::{
    Client, DATA_START, DriverQueue, F_CONFIG_WCE, F_FLUSH, Style, T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT,
    T_WRITE_ZEROES,
};
use common::{Place, Random, VOLUME_LEN};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// One request under way in the random test: what must hold when it is done.
struct Expect {
    region: u64,
    addr: u64,
    data: Option<Vec<u8>>,
    pieces: Vec<(u64, u32)>,
}

const REGION_LEN: u64 = 256 << 10;
const REGIONS_PER_QUEUE: u64 = 12;

/// Random reads, writes, zeroes and flushes in one queue, on a stripe of the volume of its own; returns the stripe.
fn exercise(queue: &mut DriverQueue, mem: &GuestMemoryMmap, index: u64, rounds: usize) -> Vec<u8> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (index + 1));
    let stripe = index * REGIONS_PER_QUEUE * REGION_LEN;
    let mut model = vec![0u8; (REGIONS_PER_QUEUE * REGION_LEN) as usize];
    let mut free: Vec<u64> = (0..REGIONS_PER_QUEUE).collect();
    let mut expected = std::collections::HashMap::new();
    let mut submitted = 0;
    while submitted < rounds || !expected.is_empty() {
        let before = queue.next_avail();
        for _ in 0..=random.below(6) {
            if submitted == rounds || free.is_empty() || !queue.has_room(7) {
                break;
            }
            let region = free.swap_remove(random.below(free.len() as u64) as usize);
            let (head, expect) = offer_random(queue, mem, &mut random, &mut model, (index, stripe, region));
            expected.insert(head, expect);
            submitted += 1;
        }
        queue.kick_if_wanted(before);
        let done = queue.wait_one();
        let expect = expected.remove(&done.head).unwrap();
        assert_eq!(done.status, 0);
        if let Some(data) = expect.data {
            let mut got = vec![0; data.len()];
            let mut filled = 0;
            for (addr, len) in &expect.pieces {
                mem.read_slice(&mut got[filled..filled + *len as usize], GuestAddress(*addr)).unwrap();
                filled += *len as usize;
            }
            assert!(got == data, "queue {index} region {} at {:#x}: wrong data", expect.region, expect.addr);
            assert_eq!(done.len as usize, data.len() + 1);
        }
        free.push(expect.region);
    }
    model
}

fn offer_random(
    queue: &mut DriverQueue,
    mem: &GuestMemoryMmap,
    random: &mut Random,
    model: &mut [u8],
    (index, stripe, region): (u64, u64, u64),
) -> (u16, Expect) {
    let most = if random.below(4) == 0 { 256 } else { 24 };
    let sectors = 1 + random.below(most);
    let first = random.below(REGION_LEN / 512 - sectors + 1);
    let within = region * REGION_LEN + first * 512;
    let range = within as usize..(within + sectors * 512) as usize;
    let sector = (stripe + within) / 512;
    let slot = DATA_START + (index * REGIONS_PER_QUEUE + region) * (REGION_LEN + 8192);
    // Sometimes at an address that direct I/O cannot use.
    let addr = slot + [0, 0, 0, 512, 1, 100][random.below(6) as usize];
    let kind = [T_IN, T_IN, T_OUT, T_OUT, T_OUT, T_FLUSH, T_WRITE_ZEROES][random.below(7) as usize];
    let mut pieces = cut(addr, (sectors * 512) as u32, random);
    let mut data = None;
    match kind {
        T_IN => data = Some(model[range].to_vec()),
        T_OUT => {
            let bytes: Vec<u8> = random.bytes(sectors * 512);
            mem.write_slice(&bytes, GuestAddress(addr)).unwrap();
            model[range].copy_from_slice(&bytes);
        }
        T_WRITE_ZEROES => {
            mem.write_obj([sector, sectors], GuestAddress(addr)).unwrap();
            pieces = vec![(addr, 7), (addr + 7, 9)];
            model[range].fill(0);
        }
        _ => pieces = vec![],
    }
    (queue.offer(kind, sector, &pieces), Expect { region, addr, data, pieces })
}

/// Cuts a buffer into up to five pieces, sometimes in the middle of a sector.
fn cut(addr: u64, len: u32, random: &mut Random) -> Vec<(u64, u32)> {
    let unit = if random.below(5) == 0 { 1 } else { 512 };
    let mut cuts: Vec<u64> = (0..random.below(5)).map(|_| random.below(u64::from(len) / unit) * unit).collect();
    cuts.extend([0, u64::from(len)]);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).map(|pair| (addr + pair[0], (pair[1] - pair[0]) as u32)).collect()
}

fn random_io(style: Style, rounds: usize) {
    let place = Place::with_volumes(&["v"]);
    let daemon = place.serve(&["v"], &[]);
    let mut client = Client::connect(&place.path("v"), style);
    let mem = client.mem.clone();
    let models: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let run = |(index, queue)| {
            let mem = &mem;
            scope.spawn(move || exercise(queue, mem, index as u64, rounds))
        };
        let threads: Vec<_> = client.queues.iter_mut().enumerate().map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    client.flush();
    drop(client);
    assert_eq!(daemon.terminate().code(), Some(0));
    let mut expected = models.concat();
    expected.resize(VOLUME_LEN as usize, 0);
    assert!(place.read_volume("v") == expected, "the volume differs from what was written");
}

#[test]
fn random_io_in_one_queue_with_event_idx() {
    random_io(Style::PLAIN, 3000);
}

#[test]
fn random_io_in_four_queues_without_event_idx() {
    random_io(Style { queues: 4, event_idx: false, ..Style::PLAIN }, 1500);
}

#[test]
fn random_io_with_indirect_descriptors() {
    random_io(Style { queues: 2, indirect: true, ..Style::PLAIN }, 1500);
}

#[test]
fn random_io_write_through() {
    random_io(Style { queues: 2, refuses: F_FLUSH | F_CONFIG_WCE, ..Style::PLAIN }, 300);
}

#[test]
fn id_is_stable_and_cut_to_the_buffer() {
    let place = Place::with_volumes(&["v"]);
    let _daemon = place.serve(&["v"], &[]);
    let mut client = Client::connect(&place.path("v"), Style::PLAIN);
    let mut id = [0xee; 20];
    let done = client.request(T_GET_ID, 0, &mut id);
    assert_eq!((done.status, done.len), (0, 21));
    assert!(id.iter().all(u8::is_ascii_hexdigit), "{id:?}");
    let mut short = [0xee; 5];
    let done = client.request(T_GET_ID, 0, &mut short);
    assert_eq!((done.status, done.len, &short[..]), (0, 6, &id[..5]));
}

#[test]
fn refused_requests_say_why() {
    let place = Place::with_volumes(&["v"]);
    let _daemon = place.serve(&["v"], &[]);
    let mut client = Client::connect(&place.path("v"), Style::PLAIN);
    let end = VOLUME_LEN / 512;
    assert_eq!(client.request(T_IN, end, &mut [0; 512]).status, 1);
    assert_eq!(client.request(T_OUT, end - 1, &mut [0; 1024]).status, 1);
    assert_eq!(client.request(T_IN, 0, &mut [0; 100]).status, 1);
    assert_eq!(client.request(99, 0, &mut [0; 512]).status, 2);
    assert_eq!(client.zero(T_DISCARD, &[(0, 8, 1)]), 2);
    assert_eq!(client.zero(T_DISCARD, &[(end, 8, 0)]), 1);
    assert_eq!(client.zero(T_WRITE_ZEROES, &[(0, 8, 4)]), 2);
    client.write(0, &[1; 512]);
    assert_eq!(client.read(0, 512), [1; 512]);
}

#[test]
fn discarded_and_zeroed_ranges() {
    let place = Place::with_volumes(&["v"]);
    let _daemon = place.serve(&["v"], &[]);
    let mut client = Client::connect(&place.path("v"), Style::PLAIN);
    client.write(0, &[7; 65536]);
    assert_eq!(client.zero(T_WRITE_ZEROES, &[(1, 2, 0), (20, 9, 1), (40, 0, 0)]), 0);
    let mut expected = vec![7; 65536];
    expected[512..1536].fill(0);
    expected[10240..14848].fill(0);
    assert!(client.read(0, 65536) == expected);
    assert_eq!(client.zero(T_DISCARD, &[(0, 64, 0), (64, 64, 0)]), 0);
    assert!(client.read(0, 65536).iter().all(|&byte| byte == 0), "whole blocks that are discarded read as zeros");
    assert_eq!(client.zero(T_WRITE_ZEROES, &[(0, VOLUME_LEN as u32 / 512, 1)]), 0);
}

#[test]
fn read_only_exports_refuse_changes() {
    let place = Place::with_volumes(&["v"]);
    let option = format!("volume=v,socket={},readonly=on", place.path("ro").display());
    let daemon = place.serve(&[], &["--export", &option]);
    common::wait_until("socket", || place.path("ro").exists());
    let mut client = Client::connect(&place.path("ro"), Style::PLAIN);
    assert!(client.features & 1 << 5 != 0, "RO is offered");
    assert_eq!(client.request(T_OUT, 0, &mut [1; 512]).status, 1);
    assert_eq!(client.zero(T_DISCARD, &[(0, 8, 0)]), 1);
    assert_eq!(client.zero(T_WRITE_ZEROES, &[(0, 8, 0)]), 1);
    client.flush();
    assert_eq!(client.read(0, 512), [0; 512]);
    drop(client);
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn write_cache_can_be_switched() {
    let place = Place::with_volumes(&["v"]);
    let _daemon = place.serve(&["v"], &[]);
    let mut client = Client::connect(&place.path("v"), Style::PLAIN);
    assert_eq!(client.config(32, 1), [1]);
    client.write(0, &[1; 4096]);
    client.set_write_cache(false).unwrap();
    assert_eq!(client.config(32, 1), [0]);
    client.write(4096, &[2; 4096]);
    client.set_write_cache(true).unwrap();
    assert_eq!(client.config(0, 60)[32], 1);
    assert_eq!(client.config(0, 57).len(), 57);
    assert_eq!(client.config(0x100, 60), client.config(0, 60));
    assert_eq!((client.read(0, 4096), client.read(4096, 4096)), (vec![1; 4096], vec![2; 4096]));
}

/// Front ends show the guest their own copy of the setting and do not send it again.
#[test]
fn the_write_cache_stays_off_over_resets_and_reconnections() {
    let place = Place::with_volumes(&["v"]);
    let daemon = place.serve(&["v"], &[]);
    let mut client = Client::connect(&place.path("v"), Style::PLAIN);
    client.set_write_cache(false).unwrap();
    client.frontend.reset_device().unwrap();
    assert_eq!(client.config(32, 1), [0]);
    drop(client);
    let mut client = Client::connect(&place.path("v"), Style::PLAIN);
    assert_eq!(client.config(32, 1), [0]);
    client.write(0, &[7; 4096]);
    drop(daemon); // killed: what was written is durable all the same
    assert!(place.read_volume("v")[..4096] == [7; 4096]);
}

/// Whether the queue calls, soon.
fn called(queue: &DriverQueue) -> bool {
    let mut fd = libc::pollfd { fd: std::os::fd::AsRawFd::as_raw_fd(&queue.call), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, which lives until the call returns.
    unsafe { libc::poll(&raw mut fd, 1, 5000) == 1 }
}

#[test]
fn a_call_descriptor_that_comes_late_is_signalled() {
    let place = Place::with_volumes(&["v"]);
    let _daemon = place.serve(&["v"], &[]);
    let mut client = Client::connect(&place.path("v"), Style::PLAIN);
    assert!(called(&client.queues[0]), "at the start of the queue");
    client.queues[0].call.read().unwrap();
    let unseen = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    client.frontend.set_vring_call(0, &unseen).unwrap();
    client.queues[0].submit(T_IN, 0, &[(DATA_START, 512)]);
    common::wait_until("the answer", || client.queues[0].used_idx() == 1);
    assert!(unseen.read().unwrap() > 0);
    client.frontend.set_vring_call(0, &client.queues[0].call).unwrap();
    assert!(called(&client.queues[0]), "the new descriptor");
    assert_eq!(client.queues[0].wait_one().status, 0);
}

#[test]
fn stopping_a_ring_drains_it() {
    let place = Place::with_volumes(&["v"]);
    let _daemon = place.serve(&["v"], &[]);
    let mut client = Client::connect(&place.path("v"), Style::PLAIN);
    for round in 0..50u64 {
        for n in 0..30 {
            client.queues[0].offer(T_OUT, (round % 5) * 256 + n * 8, &[(DATA_START + n * 4096, 4096)]);
        }
        client.queues[0].kick.write(1).unwrap();
        if round % 2 == 0 {
            client.frontend.set_vring_enable(0, false).unwrap();
        }
        let base = client.frontend.get_vring_base(0).unwrap() as u16;
        assert_eq!(base, client.queues[0].used_idx(), "what was taken has been completed");
        assert_eq!(base, client.queues[0].kick_wanted_at(), "whoever serves the ring next may wait for a kick");
        while client.queues[0].take_done().is_some() {}
        client.start_queue(0); // the rest is served after the restart
        while client.queues[0].pending() > 0 {
            assert_eq!(client.queues[0].wait_one().status, 0);
        }
    }
}

#[test]
fn memory_can_change_while_queues_run() {
    let place = Place::with_volumes(&["v"]);
    let _daemon = place.serve(&["v"], &[]);
    let mut client = Client::connect(&place.path("v"), Style { queues: 2, ..Style::PLAIN });
    let more = std::fs::File::options().read(true).write(true).create_new(true).open(place.path("mem")).unwrap();
    more.set_len(1 << 20).unwrap();
    let mut region = client.region();
    region.guest_phys_addr = 1 << 32;
    region.userspace_addr = 1 << 45;
    region.memory_size = 1 << 20;
    region.mmap_handle = std::os::fd::AsRawFd::as_raw_fd(&more);
    for round in 0..20u8 {
        client.write(u64::from(round) * 512, &[round; 512]);
        client.frontend.add_mem_region(&region).unwrap();
        let head = client.queues[1].submit(T_IN, u64::from(round), &[(1 << 32, 512)]);
        let done = client.queues[1].wait_one();
        assert_eq!((done.head, done.status), (head, 0));
        client.frontend.remove_mem_region(&region).unwrap();
        let mut got = [0; 512];
        std::os::unix::fs::FileExt::read_exact_at(&more, &mut got, 0).unwrap();
        assert_eq!(got, [round; 512]);
        client.queues[1].submit(T_IN, 0, &[(1 << 32, 512)]);
        assert_eq!(client.queues[1].wait_one().status, 1, "the region is gone");
    }
    client.frontend.set_mem_table(&[client.region()]).unwrap();
    assert_eq!(client.read(512, 512), [1; 512]);
}

#[test]
fn reset_device_stops_the_rings_and_the_guest_starts_anew() {
    let place = Place::with_volumes(&["v"]);
    let _daemon = place.serve(&["v"], &[]);
    let mut client = Client::connect(&place.path("v"), Style::PLAIN);
    for round in 0..10u8 {
        client.write(0, &[round; 512]);
        client.frontend.reset_device().unwrap();
        client.start();
        assert_eq!(client.read(0, 512), [round; 512]);
    }
}

#[test]
fn guests_come_and_go_without_leaving_anything_behind() {
    let place = Place::with_volumes(&["v", "w"]);
    let daemon = place.serve(&["v", "w"], &[]);
    let style = Style { queues: 4, ..Style::PLAIN };
    let mut other = Client::connect(&place.path("w"), style);
    let mut after_first = None;
    for round in 0..20u8 {
        let mut client = Client::connect(&place.path("v"), style);
        if round > 0 {
            assert_eq!(client.read(0, 512), [round - 1; 512]);
        }
        client.write(0, &[round; 512]);
        if round % 3 == 1 {
            // Go without a word, with requests under way.
            for n in 0..20 {
                client.queues[1].submit(T_OUT, 2048 + n * 8, &[(DATA_START, 4096)]);
            }
        }
        drop(client);
        other.write(0, &[round; 512]);
        if after_first.is_none() {
            common::wait_until("the first session's end", || daemon.holdings().1 <= 10);
            after_first = Some(settled(&daemon));
        }
    }
    // Not more, and perhaps fewer: the kernel's own helper threads come and go. A leak would show nineteen times.
    let (descriptors, threads) = after_first.unwrap();
    common::wait_until("no more descriptors and threads than after the first", || {
        let now = daemon.holdings();
        now.0 <= descriptors && now.1 <= threads
    });
    drop(other);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(!place.path("v").exists() && !place.path("w").exists(), "sockets are removed");
}

/// Descriptors and threads, once they have not changed for a while: the end of a session takes a moment.
fn settled(daemon: &common::Daemon) -> (usize, usize) {
    let (mut found, mut same) = (daemon.holdings(), 0);
    common::wait_until("descriptors and threads that stay the same", || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        let now = daemon.holdings();
        same = if now == found { same + 1 } else { 0 };
        found = now;
        same == 15
    });
    found
}

#[test]
fn a_second_front_end_waits_for_the_first() {
    let place = Place::with_volumes(&["v"]);
    let _daemon = place.serve(&["v"], &[]);
    let mut first = Client::connect(&place.path("v"), Style::PLAIN);
    first.write(0, &[1; 512]);
    let path = place.path("v");
    let second = std::thread::spawn(move || Client::connect(&path, Style::PLAIN).read(0, 512));
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(!second.is_finished());
    first.write(0, &[2; 512]);
    drop(first);
    assert_eq!(second.join().unwrap(), [2; 512]);
}

#[test]
fn idle_queues_burn_no_processor() {
    let place = Place::with_volumes(&["v"]);
    let daemon = place.serve(&["v"], &[]);
    let mut client = Client::connect(&place.path("v"), Style { queues: 4, ..Style::PLAIN });
    client.write(0, &[1; 512]);
    std::thread::sleep(std::time::Duration::from_millis(100));
    let before = daemon.cpu_time();
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(daemon.cpu_time() - before <= std::time::Duration::from_millis(50));
}

#[test]
fn an_independent_driver_works() {
    use virtio_driver::{VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};
    let place = Place::with_volumes(&["v"]);
    let _daemon = place.serve(&["v"], &[]);
    let features = (VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX).bits()
        | (VirtioBlkFeatureFlags::MQ
            | VirtioBlkFeatureFlags::FLUSH
            | VirtioBlkFeatureFlags::DISCARD
            | VirtioBlkFeatureFlags::WRITE_ZEROES)
            .bits();
    let path = place.path("v");
    let transport = VhostUser::new(common::text(&path), features).unwrap();
    let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
    let mut queues = VirtioBlkQueue::<u64>::setup_queues(&mut *transport, 2, 128).unwrap();
    let memfd = tempfile::tempfile().unwrap();
    memfd.set_len(1 << 20).unwrap();
    let mapping: vm_memory::MmapRegion =
        vm_memory::MmapRegion::from_file(vm_memory::FileOffset::new(memfd.try_clone().unwrap(), 0), 1 << 20).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&memfd);
    let address = mapping.as_ptr() as usize;
    transport.map_mem_region(address, 1 << 20, fd, 0).unwrap();
    // SAFETY: the mapping lives until the end of the test and is used by nobody else while a request is not under way.
    let buffer = unsafe { std::slice::from_raw_parts_mut(mapping.as_ptr(), 1 << 20) };
    let wait = |queue: &mut VirtioBlkQueue<'_, u64>, index: usize, count: usize| {
        let mut done = 0;
        let since = std::time::Instant::now();
        while done < count {
            for completion in queue.completions() {
                assert_eq!(completion.ret, 0);
                done += 1;
            }
            assert!(since.elapsed() < common::PATIENCE, "queue {index}: {done} of {count}");
        }
    };
    for (index, queue) in queues.iter_mut().enumerate() {
        buffer.fill(index as u8 + 1);
        for n in 0..32usize {
            let offset = (index * 32 + n) as u64 * 8192;
            queue.write(offset, &buffer[n * 8192..(n + 1) * 8192], offset).unwrap();
        }
        transport.get_submission_notifier(index).notify().unwrap();
        wait(queue, index, 32);
        queue.flush(0).unwrap();
        transport.get_submission_notifier(index).notify().unwrap();
        wait(queue, index, 1);
    }
    for (index, queue) in queues.iter_mut().enumerate() {
        buffer.fill(0);
        queue.read(index as u64 * 32 * 8192, &mut buffer[..32 * 8192], 0).unwrap();
        transport.get_submission_notifier(index).notify().unwrap();
        wait(queue, index, 1);
        assert!(buffer[..32 * 8192].iter().all(|&byte| byte == index as u8 + 1));
    }
}

/// Writes single sectors of shared blocks, all queues at once: whatever the order, no sector may lose its last write.
#[test]
fn queues_that_write_parts_of_the_same_blocks_do_not_undo_each_other() {
    const QUEUES: u64 = 4;
    const BLOCKS: u64 = 64;
    let place = Place::with_volumes(&["v"]);
    let daemon = place.serve(&["v"], &[]);
    let mut client = Client::connect(&place.path("v"), Style { queues: QUEUES as usize, ..Style::PLAIN });
    let mem = client.mem.clone();
    let run = |index: u64, queue: &mut DriverQueue| {
        let mut random = Random(index + 11);
        let mut last = std::collections::HashMap::new();
        for round in 0..600u64 {
            let before = queue.next_avail();
            let mut taken = Vec::new();
            for n in 0..12 {
                // Two sectors of each block belong to each queue; sometimes both are written at once.
                let sector = random.below(BLOCKS) * 8 + index * 2;
                if taken.contains(&sector) {
                    continue;
                }
                taken.push(sector);
                let value = round << 32 | index << 16 | n;
                let addr = DATA_START + (index * 16 + n) * 4096;
                mem.write_slice(&value.to_le_bytes().repeat(128), GuestAddress(addr)).unwrap();
                let sectors = 1 + random.below(2);
                queue.offer(T_OUT, sector, &[(addr, sectors as u32 * 512)]);
                last.extend((sector..sector + sectors).map(|sector| (sector, value)));
            }
            queue.kick_if_wanted(before);
            while queue.pending() > 0 {
                assert_eq!(queue.wait_one().status, 0);
            }
        }
        last
    };
    let written: Vec<_> = std::thread::scope(|scope| {
        let start = |(index, queue)| scope.spawn(move || run(index as u64, queue));
        let threads: Vec<_> = client.queues.iter_mut().enumerate().map(start).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    drop(client);
    assert_eq!(daemon.terminate().code(), Some(0));
    let volume = place.read_volume("v");
    for (sector, value) in written {
        let at = sector as usize * 512;
        assert!(volume[at..at + 512] == value.to_le_bytes().repeat(64), "sector {sector} lost its last write");
    }
}

/// Orders through the control socket while the guest goes on.
#[test]
fn snapshots_and_refreshes_do_not_disturb_a_running_guest() {
    let place = Place::with_volumes(&["v", "golden", "job"]);
    let control = place.path("control");
    let daemon = place.serve(&["v"], &["--control", common::text(&control)]);
    common::wait_until("control socket", || control.exists());
    let mut client = Client::connect(&place.path("v"), Style { queues: 2, ..Style::PLAIN });
    let mem = client.mem.clone();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let models: Vec<Vec<u8>> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut qmp = common::Qmp::connect(&control);
            let mut rounds = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) || rounds < 3 {
                qmp.order("x-pitstop-snapshot", serde_json::json!({"source": "v", "name": "copy"}));
                qmp.order("x-pitstop-refresh", serde_json::json!({"name": "job", "source": "copy"}));
                qmp.order("x-pitstop-volume-delete", serde_json::json!({"name": "copy"}));
                rounds += 1;
            }
        });
        let threads: Vec<_> = client
            .queues
            .iter_mut()
            .enumerate()
            .map(|(index, queue)| {
                let mem = &mem;
                scope.spawn(move || exercise(queue, mem, index as u64, 3000))
            })
            .collect();
        let models = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        models
    });
    drop(client);
    assert_eq!(daemon.terminate().code(), Some(0));
    let mut expected = models.concat();
    expected.resize(VOLUME_LEN as usize, 0);
    assert!(place.read_volume("v") == expected, "the volume differs from what was written");
}

/// What may be done to a volume while it is exported, and while a guest uses it (R28).
#[test]
fn orders_that_would_harm_a_guest_are_refused() {
    use serde_json::json;
    let place = Place::with_volumes(&["v", "golden"]);
    let control = place.path("control");
    let daemon = place.serve(&["v"], &["--control", common::text(&control)]);
    common::wait_until("control socket", || control.exists());
    let mut qmp = common::Qmp::connect(&control);
    let mut client = Client::connect(&place.path("v"), Style::PLAIN);
    client.write(0, &[1; 4096]);
    let refresh = json!({"name": "v", "source": "golden"});
    assert!(qmp.refused("x-pitstop-refresh", refresh.clone()).contains("has a connected guest"));
    assert!(qmp.refused("x-pitstop-volume-delete", json!({"name": "v"})).contains("remove the export first"));
    assert!(qmp.refused("block-export-del", json!({"id": "v"})).contains("has a connected guest"));
    qmp.order("x-pitstop-volume-create", json!({"name": "other", "size": VOLUME_LEN * 2}));
    let other = json!({"name": "v", "source": "other", "force": true});
    assert!(qmp.refused("x-pitstop-refresh", other).contains("cannot change its size"));
    assert_eq!(client.read(0, 4096), [1; 4096], "nothing was changed");
    qmp.order("x-pitstop-refresh", json!({"name": "v", "source": "golden", "force": true}));
    assert_eq!(client.read(0, 4096), [0; 4096], "forced: the guest sees the source");
    client.write(0, &[2; 4096]);
    drop(client);
    common::wait_until("the guest's end", || {
        !qmp.order("query-block-exports", json!({}))[0]["x-pitstop-connected"].as_bool().unwrap()
    });
    qmp.order("x-pitstop-refresh", refresh);
    let mut client = Client::connect(&place.path("v"), Style::PLAIN);
    assert_eq!(client.read(0, 4096), [0; 4096]);
    qmp.order("block-export-del", json!({"id": "v", "mode": "hard"}));
    assert!(!place.path("v").exists());
    assert!(vhost::VhostBackend::get_features(&client.frontend).is_err(), "disconnected");
    qmp.order("x-pitstop-volume-delete", json!({"name": "v"}));
    qmp.order("quit", json!({}));
    drop((qmp, client));
    let mut daemon = daemon;
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!control.exists());
}

/// What was promised survives a daemon that is killed: its memory, and with it all that was not journalled, is lost.
#[test]
fn promised_writes_survive_a_killed_daemon() {
    let survives = |style: Style, write: fn(&mut Client)| {
        let place = Place::with_volumes(&["v"]);
        let daemon = place.serve(&["v"], &[]);
        let mut client = Client::connect(&place.path("v"), style);
        write(&mut client);
        drop(daemon); // killed
        let volume = place.read_volume("v");
        assert!(volume[8192..12288] == [7; 4096] && volume[1 << 20..(1 << 20) + 512] == [8; 512]);
    };
    survives(Style::PLAIN, |client| {
        client.write(8192, &[7; 4096]);
        client.write(1 << 20, &[8; 512]);
        client.flush();
    });
    survives(Style { refuses: F_FLUSH | F_CONFIG_WCE, ..Style::PLAIN }, |client| {
        client.write(8192, &[7; 4096]);
        client.write(1 << 20, &[8; 512]);
    });
    // rule: VOL-31 — turning the write cache off commits by itself.
    survives(Style::PLAIN, |client| {
        client.write(8192, &[7; 4096]);
        client.write(1 << 20, &[8; 512]);
        client.set_write_cache(false).unwrap();
    });
    survives(Style::PLAIN, |client| {
        client.write(8192, &[7; 4096]);
        client.set_write_cache(false).unwrap(); // commits what was written before
        client.write(1 << 20, &[8; 512]); // and this by itself
    });
    survives(Style::PLAIN, |client| {
        client.write(8192, &[7; 4096]);
        client.write(1 << 20, &[8; 1024]);
        client.set_write_cache(false).unwrap();
        assert_eq!(client.zero(T_WRITE_ZEROES, &[((1 << 11) + 1, 1, 1)]), 0);
    });
}
