//! Requests in random and in hand-made descriptor chains.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::chain::{Chain, ChainError, Table};
use super::request::{BlockRequest, NoStatus, Parsed, RequestError, parse};
use super::status::status_byte;

const CAPACITY: u64 = 1 << 20;
const MEM_LEN: usize = 1 << 16;
const TABLE_SIZE: u16 = 16;
const HEADER: u64 = 0x4000;
const DATA: u64 = 0x5000;
const STATUS: u64 = 0x8000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEM_LEN)]).unwrap()
}

fn put(mem: &GuestMemoryMmap, table: u64, index: u16, (addr, len, flags, next): (u64, u32, u16, u16)) {
    let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
    mem.write_obj([addr, rest], GuestAddress(table + u64::from(index) * 16)).unwrap();
}

/// Puts a chain of `(addr, len, extra flags)` at the start of memory.
fn put_chain(mem: &GuestMemoryMmap, table: u64, descriptors: &[(u64, u32, u16)]) {
    for (index, &(addr, len, flags)) in descriptors.iter().enumerate() {
        let index = index as u16;
        let next = if usize::from(index) + 1 == descriptors.len() { 0 } else { NEXT };
        put(mem, table, index, (addr, len, flags | next, index + 1));
    }
}

fn put_header(mem: &GuestMemoryMmap, kind: u32, sector: u64) {
    mem.write_obj([u64::from(kind), sector], GuestAddress(HEADER)).unwrap();
}

fn walk(mem: &GuestMemoryMmap, head: u16) -> Result<Chain, ChainError> {
    let mut chain = Chain::default();
    chain.walk(mem, Table { addr: GuestAddress(0), size: TABLE_SIZE }, head)?;
    Ok(chain)
}

fn parse_at(mem: &GuestMemoryMmap) -> Result<Parsed, NoStatus> {
    parse(mem, &mut walk(mem, 0).unwrap(), CAPACITY)
}

fn request(kind: u32, sector: u64, data_len: u32, data_flags: u16) -> Result<BlockRequest, RequestError> {
    let mem = memory();
    put_header(&mem, kind, sector);
    put_chain(&mem, 0, &[(HEADER, 16, 0), (DATA, data_len, data_flags), (STATUS, 1, WRITE)]);
    let parsed = parse_at(&mem).unwrap();
    assert_eq!(parsed.status, GuestAddress(STATUS));
    parsed.request
}

fn zero_request(kind: u32, segments: &[(u64, u32, u32)]) -> Result<BlockRequest, RequestError> {
    let mem = memory();
    put_header(&mem, kind, 0);
    for (index, &(sector, count, flags)) in segments.iter().enumerate() {
        mem.write_obj([sector, u64::from(count) | u64::from(flags) << 32], GuestAddress(DATA + index as u64 * 16))
            .unwrap();
    }
    put_chain(&mem, 0, &[(HEADER, 16, 0), (DATA, segments.len() as u32 * 16, 0), (STATUS, 1, WRITE)]);
    parse_at(&mem).unwrap().request
}

#[test]
fn reads_and_writes_name_their_range() {
    let Ok(BlockRequest::Read { range, data }) = request(0, 3, 1024, WRITE) else { panic!() };
    assert_eq!((range, data.len()), (1536..2560, 1));
    let Ok(BlockRequest::Write { range, .. }) = request(1, 0, 512, 0) else { panic!() };
    assert_eq!(range, 0..512);
}

#[test]
fn ranges_end_at_the_capacity() {
    assert!(request(0, CAPACITY / 512 - 1, 512, WRITE).is_ok());
    for sector in [CAPACITY / 512, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1] {
        assert!(matches!(request(0, sector, 512, WRITE), Err(RequestError::BeyondEnd { .. })), "{sector}");
    }
    assert!(matches!(request(1, CAPACITY / 512 - 1, 1024, 0), Err(RequestError::BeyondEnd { .. })));
}

#[test]
fn a_request_carries_32_mib_at_most() {
    let most = 32 << 20;
    assert!(!matches!(request(0, 0, most, WRITE), Err(RequestError::LongData { .. })));
    assert!(matches!(request(0, 0, most + 512, WRITE), Err(RequestError::LongData { .. })));
}

#[test]
fn data_must_be_whole_sectors() {
    assert!(matches!(request(0, 0, 511, WRITE), Err(RequestError::BadDataLen { len: 511 })));
    assert!(matches!(request(1, 0, 0, 0), Err(RequestError::BadDataLen { len: 0 })));
}

#[test]
fn framing_does_not_matter() {
    let mem = memory();
    put_header(&mem, 0, 1);
    // Header in three pieces, the status in the same segment as the data.
    put_chain(&mem, 0, &[(HEADER, 3, 0), (HEADER + 3, 5, 0), (HEADER + 8, 8, 0), (DATA, 513, WRITE)]);
    let parsed = parse_at(&mem).unwrap();
    assert_eq!(parsed.status, GuestAddress(DATA + 512));
    let Ok(BlockRequest::Read { range, data }) = parsed.request else { panic!() };
    assert_eq!((range, data[0].len), (512..1024, 512));
}

#[test]
fn discard_and_write_zeroes_take_several_segments() {
    let Ok(BlockRequest::Discard { ranges }) = zero_request(11, &[(0, 8, 0), (9, 0, 0), (16, 1, 0)]) else { panic!() };
    assert_eq!(ranges, [0..4096, 8192..8704]);
    let Ok(BlockRequest::WriteZeroes { ranges }) = zero_request(13, &[(1, 1, 1), (2, 2, 0)]) else { panic!() };
    assert_eq!(ranges, [512..1024, 1024..2048]);
}

#[test]
fn discard_flags_and_limits_are_checked() {
    let status = |result: Result<BlockRequest, RequestError>| status_byte(&result);
    assert_eq!(status(zero_request(11, &[(0, 8, 1)])), 2, "unmap on discard is unsupported");
    assert_eq!(status(zero_request(13, &[(0, 8, 2)])), 2, "unknown flag is unsupported");
    assert_eq!(status(zero_request(11, &[(CAPACITY / 512, 1, 0)])), 1);
    assert_eq!(status(zero_request(11, &[(0, (1 << 22) + 1, 0)])), 1);
    assert_eq!(status(zero_request(11, &[])), 1);
    assert_eq!(status(zero_request(11, &[(0, 1, 0); 65])), 1);
    assert_eq!(status(request(11, 0, 17, 0)), 1);
    assert_eq!(status(request(14, 0, 16, 0)), 2, "secure erase is unsupported");
    assert_eq!(status(request(99, 0, 16, 0)), 2);
}

#[test]
fn requests_without_header_or_status_are_told_apart() {
    let mem = memory();
    put_chain(&mem, 0, &[(HEADER, 16, 0), (DATA, 512, 0)]);
    assert!(parse_at(&mem).is_err());
    put_chain(&mem, 0, &[(HEADER, 15, 0), (STATUS, 1, WRITE)]);
    assert!(matches!(parse_at(&mem).unwrap().request, Err(RequestError::ShortHeader)));
    put_chain(&mem, 0, &[(1 << 40, 16, 0), (STATUS, 1, WRITE)]);
    assert!(matches!(parse_at(&mem).unwrap().request, Err(RequestError::Memory(_))));
}

#[test]
fn broken_chains_are_errors() {
    let mem = memory();
    put(&mem, 0, 0, (HEADER, 16, NEXT, 0));
    assert!(matches!(walk(&mem, 0), Err(ChainError::Loop)));
    put(&mem, 0, 0, (HEADER, 16, NEXT, TABLE_SIZE));
    assert!(matches!(walk(&mem, 0), Err(ChainError::BadIndex { .. })));
    put_chain(&mem, 0, &[(DATA, 16, WRITE), (HEADER, 16, 0)]);
    assert!(matches!(walk(&mem, 0), Err(ChainError::BadOrder)));
    put_chain(&mem, 0, &[(DATA, u32::MAX, 0), (HEADER, 1, 0)]);
    assert!(matches!(walk(&mem, 0), Err(ChainError::TooLong)));
    for len in [0, 15, 17, 16 * 65536] {
        put(&mem, 0, 0, (0x1000, len, INDIRECT, 0));
        assert!(matches!(walk(&mem, 0), Err(ChainError::BadIndirectLen { .. })), "{len}");
    }
    put(&mem, 0, 0, (0x1000, 16, INDIRECT, 0));
    put(&mem, 0x1000, 0, (0x1000, 16, INDIRECT, 0));
    assert!(matches!(walk(&mem, 0), Err(ChainError::NestedIndirect)));
    put(&mem, 0, 0, (u64::MAX - 8, 32, INDIRECT, 0));
    assert!(matches!(walk(&mem, 0), Err(ChainError::Memory(_))));
}

#[test]
fn indirect_chains_read_like_direct_ones() {
    let mem = memory();
    put_header(&mem, 1, 2);
    put(&mem, 0, 0, (0x1000, 48, INDIRECT, 0));
    put_chain(&mem, 0x1000, &[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)]);
    let Ok(BlockRequest::Write { range, .. }) = parse_at(&mem).unwrap().request else { panic!() };
    assert_eq!(range, 1024..1536);
}

#[test]
fn long_indirect_chains_are_bounded() {
    let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let long: Vec<_> = (0..1025).map(|_| (DATA, 1, 0)).collect();
    put_chain(&mem, 0x1_0000, &long);
    put(&mem, 0, 0, (0x1_0000, 1025 * 16, INDIRECT, 0));
    assert!(matches!(walk(&mem, 0), Err(ChainError::TooManySegments)));
}

proptest! {
    #[test]
    fn random_tables_never_panic_and_keep_the_invariants(
        bytes in prop::collection::vec(any::<u8>(), 0x2000),
        shaped in prop::collection::vec(
            (0u64..0x1_2000, prop_oneof![Just(16u32), Just(1), Just(512), 0u32..2000, any::<u32>()], 0u16..8, 0u16..18),
            16,
        ),
        kind in prop_oneof![0u32..16, any::<u32>()],
        head in 0u16..18,
    ) {
        let mem = memory();
        mem.write_slice(&bytes, GuestAddress(0x3000)).unwrap();
        for (index, &(addr, len, flags, next)) in shaped.iter().enumerate() {
            put(&mem, 0, index as u16, (addr, len, flags, next));
            put(&mem, 0x1000, index as u16, (addr ^ 0x40, len, flags & 3, next));
            mem.write_obj(kind, GuestAddress(addr & 0xff00)).unwrap();
        }
        if let Ok(mut chain) = walk(&mem, head)
            && let Ok(parsed) = parse(&mem, &mut chain, CAPACITY)
            && let Ok(request) = parsed.request
        {
            let ranges = match request {
                BlockRequest::Read { range, data } | BlockRequest::Write { range, data } => {
                    prop_assert_eq!(range.end - range.start, data.iter().map(|s| u64::from(s.len)).sum::<u64>());
                    vec![range]
                }
                BlockRequest::Discard { ranges } | BlockRequest::WriteZeroes { ranges } => ranges,
                BlockRequest::Flush | BlockRequest::GetId { .. } => vec![],
            };
            for range in ranges {
                prop_assert!(range.start < range.end && range.end <= CAPACITY && range.start % 512 == 0);
            }
        }
    }
}
