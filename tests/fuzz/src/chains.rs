//! A virtqueue in guest memory that says anything at all, taken apart as a queue's thread does.

use std::sync::atomic::Ordering;

use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::input::Input;
use crate::virtio::chain::{Chain, MAX_SEGMENTS, Table};
use crate::virtio::request::{BlockRequest, MAX_DATA_LEN, parse, total_len};
use crate::virtio::ring::SplitRing;
use crate::virtio::status::status_byte;

const DESC: u64 = 0;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x5000;
const DATA: u64 = 0x8000;
const CAPACITY: u64 = 1 << 20;

/// A guest address: mostly somewhere that matters, and around the ends of both regions.
fn address(input: &mut Input<'_>) -> u64 {
    let near = |base: u64, by: u8| base.wrapping_add(by as i8 as u64);
    match input.byte() % 8 {
        0 => DESC + u64::from(input.byte()) * 16,
        1 => DATA + u64::from(input.byte()) * 16,
        2 => near(0x1_0000, input.byte()),
        3 => near(0x2_0000, input.byte()),
        4 => near(0x2_8000, input.byte()),
        5 => near(0, input.byte()),
        6 => DATA,
        _ => input.word(),
    }
}

/// Puts what the input says into guest memory, piece by piece.
pub fn fill(mem: &GuestMemoryMmap, input: &mut Input<'_>) {
    let put = |bytes: &[u8], at: u64| drop(mem.write_slice(bytes, GuestAddress(at)));
    while !input.is_empty() {
        match input.byte() % 5 {
            0 => {
                let table = if input.byte() & 1 == 0 { DESC } else { DATA };
                let at = table + u64::from(input.byte()) * 16;
                put(&address(input).to_le_bytes(), at);
                put(&(input.word() as u32).to_le_bytes(), at + 8);
                put(&[input.byte() % 8, 0, input.byte(), input.byte() & 3], at + 12);
            }
            1 => {
                let (place, head) = (u64::from(input.byte()), u16::from(input.byte()));
                put(&head.to_le_bytes(), AVAIL + 4 + place * 2);
            }
            2 => put(&(input.word() as u16).to_le_bytes(), AVAIL + 2),
            3 => {
                // The header of a request, or a segment of a discard.
                let at = DATA + u64::from(input.byte()) * 16;
                put(&u32::from(input.byte() % 16).to_le_bytes(), at);
                put(&input.word().to_le_bytes(), at + 8);
            }
            _ => {
                let (at, len) = (input.number(2), usize::from(input.byte()));
                put(input.bytes(len), at);
            }
        }
    }
}

/// Takes every request there is, and answers it.
pub fn run(data: &[u8]) {
    let regions = [(GuestAddress(0), 0x1_0000), (GuestAddress(0x2_0000), 0x8000)];
    let mem = GuestMemoryMmap::from_ranges(&regions).expect("a little memory");
    let mut input = Input::new(data);
    let flags = input.byte();
    let state = QueueState {
        max_size: 1024,
        next_avail: input.byte().into(),
        size: if flags & 8 == 0 { 1 << (flags & 7) } else { input.word() as u16 },
        ready: true,
        event_idx_enabled: flags & 16 != 0,
        desc_table: DESC,
        avail_ring: if flags & 32 == 0 { AVAIL } else { address(&mut input) },
        used_ring: if flags & 64 == 0 { USED } else { address(&mut input) },
        ..QueueState::default()
    };
    fill(&mem, &mut input);
    let Ok(mut ring) = SplitRing::new(&state, &mem) else { return };
    let table = Table { addr: ring.desc_table(), size: ring.size() };
    let mut chain = Chain::default();
    for _ in 0..1024 {
        let Ok(Some(head)) = ring.pop(&mem) else { break };
        let walked = chain.walk(&mem, table, head);
        let answer = match walked {
            Ok(()) => answer(&mem, &mut chain),
            Err(_) => 0,
        };
        if ring.push_used(&mem, head, answer).is_err() || ring.publish(&mem).is_err() {
            break;
        }
    }
    drop(ring.enable_kicks(&mem));
    drop(ring.disable_kicks(&mem));
}

/// Answers as far as no disk is needed; returns how many bytes were written.
fn answer(mem: &GuestMemoryMmap, chain: &mut Chain) -> u32 {
    assert!(chain.readable.len() + chain.writable.len() <= MAX_SEGMENTS);
    let all = chain.readable.iter().chain(&chain.writable);
    assert!(all.map(|segment| u64::from(segment.len)).sum::<u64>() <= u64::from(u32::MAX));
    let Ok(parsed) = parse(mem, chain, CAPACITY) else { return 0 };
    match &parsed.request {
        Ok(request @ (BlockRequest::Read { range, data } | BlockRequest::Write { range, data })) => {
            assert!(range.end <= CAPACITY && range.start % 512 == 0 && range.end % 512 == 0);
            assert_eq!(range.end - range.start, total_len(data));
            assert_eq!(request.data_len(), total_len(data));
            assert!(total_len(data) <= MAX_DATA_LEN);
        }
        Ok(BlockRequest::Discard { ranges } | BlockRequest::WriteZeroes { ranges }) => {
            assert!(ranges.iter().all(|range| range.start < range.end && range.end <= CAPACITY));
        }
        Ok(BlockRequest::Flush | BlockRequest::GetId { .. }) | Err(_) => {}
    }
    let written = mem.store(status_byte(&parsed.request), parsed.status, Ordering::Relaxed);
    u32::from(written.is_ok())
}
