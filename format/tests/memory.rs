//! What opening takes of memory: no container file makes it take more than a few times its own length. What reading takes:
//! no number of volumes makes it more than a bound.
//!
//! An allocator counts. One test at a time: others in the process would be counted too.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pitstop_format::check::check;
use pitstop_format::testing::SimDisk;
use pitstop_format::{Container, CreateOptions, Disk, Error, OpenMode, Planned, ReadPlan, VolumeIo};

struct Counting;

/// Held by the test that counts.
static ALONE: Mutex<()> = Mutex::new(());
static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all memory comes from and goes back to the system's allocator; only sizes are added up.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes taken at once, beyond those taken before.
fn taken<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let result = work();
    (MOST.load(Ordering::Relaxed) - before, result)
}

const FEW_MIB: usize = 4 << 20;

/// Puts `value` into both superblocks and makes their checksums right.
fn set(disk: &SimDisk, at: usize, value: u64) {
    for offset in [0, 256 << 10] {
        let mut bytes = vec![0; 4096];
        disk.read_at(&mut bytes, offset).unwrap();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        bytes[12..16].fill(0);
        let crc = crc32c::crc32c(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        disk.write_at(&bytes, offset).unwrap();
    }
}

#[track_caller]
fn opens_or_not_within_bounds(disk: &Arc<SimDisk>, what: &str) {
    for mode in [OpenMode::ReadOnly, OpenMode::ReadWrite] {
        let (bytes, result) = taken(|| Container::open(disk.clone(), mode).map(drop));
        assert!(bytes <= FEW_MIB, "{what}: opening takes {bytes} bytes ({result:?})");
    }
    let (bytes, result) = taken(|| check(&**disk).map(drop));
    assert!(bytes <= FEW_MIB, "{what}: checking takes {bytes} bytes ({result:?})");
}

// rules: CON-14, CON-19, JNL-1
#[test]
fn opening_takes_memory_for_what_is_there_not_for_what_is_claimed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let small = SimDisk::new();
    Container::create(small.clone(), &CreateOptions { journal_len_bytes: 256 << 10, ..Default::default() }).unwrap();
    let container = Container::open(small.clone(), OpenMode::ReadWrite).unwrap();
    // As large as a volume can be, with one table.
    container.create_volume("large", 64 << 40).unwrap();
    VolumeIo::new(&container, container.volume("large").unwrap()).write_at(&[1; 4096], 63 << 40).unwrap();
    container.commit().unwrap();
    drop(container);
    opens_or_not_within_bounds(&small.copy(), "a volume of 64 TiB");

    // Journals of any length, in a file of 1 MiB and in one that is as long as it claims.
    for len in [256 << 10, 1 << 20, 1 << 30, 2 << 30, 1 << 40, 1 << 62, !0x3_ffff] {
        let disk = small.copy();
        disk.truncate(1 << 20);
        set(&disk, 88, len);
        opens_or_not_within_bounds(&disk, &format!("a journal of {len} bytes in a file of 1 MiB"));
        disk.grow(len.min(4 << 30)).unwrap();
        opens_or_not_within_bounds(&disk, &format!("a journal of {len} bytes"));
    }
    for (at, name) in
        [(64, "sequence"), (72, "generation"), (80, "journal offset"), (112, "tail"), (120, "tail number")]
    {
        for value in [1, 4096, 1 << 40, (1 << 62) + 1, 1 << 63, u64::MAX] {
            let disk = small.copy();
            set(&disk, at, value);
            opens_or_not_within_bounds(&disk, &format!("{name} {value}"));
        }
    }

    // A file of holes, as long as a file can be: what lies beyond the container counts for nothing.
    let disk = small.copy();
    disk.grow((1 << 63) - (256 << 10)).unwrap();
    opens_or_not_within_bounds(&disk, "a file of 8 EiB");
    Container::open(disk, OpenMode::ReadWrite).unwrap();

    // A container that says it uses all of that.
    let claims = small.copy();
    claims.grow(1 << 50).unwrap();
    // Behind superblocks, descriptors and a journal of one slab.
    let catalog = 4 * (256 << 10);
    let mut slot = [0; 512];
    claims.read_at(&mut slot, catalog).unwrap();
    let mut uuid = [0; 16];
    claims.read_at(&mut uuid, 16).unwrap();
    slot[24..32].copy_from_slice(&(1u64 << 32).to_le_bytes());
    slot[4..8].fill(0);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&uuid), &slot);
    slot[4..8].copy_from_slice(&crc.to_le_bytes());
    claims.write_at(&slot, catalog).unwrap();
    // The journal's value of the slot would count: begin behind it.
    set(&claims, 120, 1 << 40);
    opens_or_not_within_bounds(&claims, "2^32 slabs");
    let refused = Container::open(claims, OpenMode::ReadWrite).unwrap_err();
    assert!(matches!(&refused, Error::Corrupt(why) if why.rule == "CON-13"), "{refused}");
}

// rule: MAP-17
#[test]
fn what_is_remembered_of_many_volumes_takes_bounded_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let disk = SimDisk::new();
    Container::create(disk.clone(), &CreateOptions::default()).unwrap();
    let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
    container.create_volume("golden", 64 << 30).unwrap();
    for n in 0..5 {
        VolumeIo::new(&container, container.volume("golden").unwrap()).write_at(&[1; 4096], n * 4096).unwrap();
        container.snapshot("golden", &format!("old-{n}")).unwrap();
    }
    let copies: Vec<_> = (0..300)
        .map(|n| container.volume(&container.snapshot("golden", &format!("copy-{n}")).unwrap().name).unwrap())
        .collect();
    let mut plan = ReadPlan::default();
    let (bytes, ()) = taken(|| {
        for copy in copies.iter().cycle().take(3 * copies.len()) {
            assert!(matches!(copy.plan_read(0..4096, &mut plan).unwrap(), Planned::Ready(())));
        }
    });
    assert!(bytes <= 40 << 20, "reading {} copies takes {bytes} bytes", copies.len());
}
