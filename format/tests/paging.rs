//! Table pages that leave memory and come back: rule MAP-16, requirement R28.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pitstop_format::testing::SimDisk;
use pitstop_format::{Container, CreateOptions, Disk, OpenMode, PageLoad, Planned, ReadPlan, SLAB_LEN, VolumeIo};

/// What one table page describes.
const PAGE_SPAN: u64 = 128 * SLAB_LEN;

fn new_container() -> (Arc<SimDisk>, Container) {
    let disk = SimDisk::new();
    let options = CreateOptions { journal_len_bytes: 1 << 20, ..CreateOptions::default() };
    Container::create(disk.clone(), &options).unwrap();
    let container = Container::open(disk.clone(), OpenMode::ReadWrite).unwrap();
    (disk, container)
}

fn io(container: &Container, name: &str) -> VolumeIo {
    VolumeIo::new(container, container.volume(name).unwrap())
}

fn byte(container: &Container, name: &str, offset: u64) -> u8 {
    let mut bytes = [0; 512];
    io(container, name).read_at(&mut bytes, offset).unwrap();
    bytes[0]
}

fn write(container: &Container, name: &str, offset: u64, value: u8) {
    io(container, name).write_at(&[value; 4096], offset).unwrap();
}

/// Maintenance until every page that may leave memory has left it.
fn let_go(container: &Container) {
    container.limit_resident_pages(0);
    for _ in 0..8 {
        container.commit().unwrap();
        container.settle(100).unwrap();
    }
}

/// The page that a read of `offset` asks for.
fn page_wanted(container: &Container, name: &str, offset: u64) -> Option<PageLoad> {
    let volume = container.volume(name).unwrap();
    match volume.plan_read(offset..offset + 512, &mut ReadPlan::default()).unwrap() {
        Planned::NeedPage(load) => Some(load),
        _ => None,
    }
}

// rules: MAP-16, MAP-15 — memory does not grow with what is read and written, and nothing changes by it.
#[test]
fn the_pages_in_memory_are_bounded_and_come_back_as_they_were() {
    let (disk, container) = new_container();
    let pages = 200;
    container.limit_resident_pages(20);
    container.create_volume("wide", pages * PAGE_SPAN).unwrap();
    let place = |page: u64| page * PAGE_SPAN + page % 128 * SLAB_LEN;
    for page in 0..pages {
        write(&container, "wide", place(page), page as u8 + 1);
        container.maintain().unwrap();
    }
    container.settle(100).unwrap();
    for round in 0..3 {
        for page in 0..pages {
            assert_eq!(byte(&container, "wide", place(page)), page as u8 + 1, "round {round}, page {page}");
        }
        // The limit, and as many again as one look at a time leaves behind.
        assert!(container.resident_pages() <= 40, "{} pages in memory", container.resident_pages());
    }
    let_go(&container);
    assert_eq!(container.resident_pages(), 0);
    write(&container, "wide", place(7), 99);
    container.close().unwrap();
    let container = Container::open(disk.copy(), OpenMode::ReadOnly).unwrap();
    assert_eq!(byte(&container, "wide", place(7)), 99);
    assert_eq!(byte(&container, "wide", place(8)), 9);
}

// rule: MAP-16 — a page read before it was changed and let go again is not taken.
#[test]
fn a_page_read_before_it_changed_is_not_taken() {
    let (disk, container) = new_container();
    container.create_volume("v", SLAB_LEN).unwrap();
    write(&container, "v", 0, 1);
    let_go(&container);
    let load = page_wanted(&container, "v", 0).expect("the page is not in memory");
    let mut old = vec![0; load.len()];
    disk.read_at(&mut old, load.offset()).unwrap();
    write(&container, "v", 8192, 2);
    let_go(&container);
    assert!(page_wanted(&container, "v", 0).is_some(), "the page is in memory");
    container.install_page(load, &old).unwrap();
    assert!(page_wanted(&container, "v", 0).is_some(), "the old page was taken");
    assert_eq!(byte(&container, "v", 8192), 2);
    assert_eq!(byte(&container, "v", 0), 1);
    // A page asked for twice is taken once.
    let_go(&container);
    let load = page_wanted(&container, "v", 0).unwrap();
    write(&container, "v", 16384, 3);
    container.install_page(load, &old).unwrap();
    assert_eq!(byte(&container, "v", 16384), 3);
}

// rule: MAP-16 — a read that needs more pages at once than may stay still ends.
#[test]
fn a_chain_longer_than_the_limit_is_read() {
    let (_disk, container) = new_container();
    let layers = 300;
    container.create_volume("v", SLAB_LEN).unwrap();
    for n in 0..layers {
        write(&container, "v", n % 64 * 4096, n as u8);
        // A copy with writes of its own keeps its layer from being merged.
        container.snapshot("v", &format!("copy-{n}")).unwrap();
    }
    let_go(&container);
    container.limit_resident_pages(1);
    let mut bytes = vec![0; SLAB_LEN as usize];
    io(&container, "v").read_at(&mut bytes, 0).unwrap();
    for block in 0..64 {
        let last = (0..layers).filter(|n| n % 64 == block).max().unwrap();
        assert_eq!(bytes[(block * 4096) as usize], last as u8, "block {block}");
    }
}

// rules: MAP-16, LAY-8 — merges go on, and show the same, while every page that can leaves memory.
#[test]
fn merges_show_the_same_while_pages_leave_memory() {
    let (disk, container) = new_container();
    container.limit_resident_pages(0);
    container.create_volume("v", 12 * PAGE_SPAN).unwrap();
    let mut expected = std::collections::BTreeMap::new();
    for layer in 0..6u64 {
        for n in 0..40 {
            let offset = (n * 7 + layer * 3) % 12 * PAGE_SPAN + (n * 5 + layer) % 128 * SLAB_LEN + n % 3 * 4096;
            write(&container, "v", offset, (layer * 40 + n + 1) as u8);
            expected.insert(offset, (layer * 40 + n + 1) as u8);
        }
        container.snapshot("v", "copy").unwrap();
        container.delete_volume("copy").unwrap();
    }
    let compare = |container: &Container| {
        for (&offset, &value) in &expected {
            assert_eq!(byte(container, "v", offset), value, "at {offset:#x}");
        }
    };
    while container.maintain().unwrap() == pitstop_format::Maintained::Worked {
        compare(&container);
    }
    compare(&container);
    container.commit().unwrap();
    drop(container);
    compare(&Container::open(disk.copy(), OpenMode::ReadWrite).unwrap());
}

// rule: MAP-16 — a merge whose layers are given up while it waits for a page ends.
#[test]
fn a_merge_ends_when_its_layers_are_given_up_while_it_needs_a_page() {
    let (disk, container) = new_container();
    container.create_volume("v", 64 * PAGE_SPAN).unwrap();
    for layer in 0..2u64 {
        (0..64).for_each(|page| write(&container, "v", page * PAGE_SPAN + layer * 4096, 1));
        container.snapshot("v", "copy").unwrap();
        container.delete_volume("copy").unwrap();
    }
    container.commit().unwrap();
    container.close().unwrap();
    // At some read of a page the volume goes away with all its layers.
    for at in 1..20 {
        let copy = Arc::new(Meddling { disk: disk.copy(), left: AtomicU64::new(u64::MAX), then: Mutex::new(None) });
        let container = Arc::new(Container::open(copy.clone(), OpenMode::ReadWrite).unwrap());
        container.limit_resident_pages(0);
        let meddler = container.clone();
        *copy.then.lock().unwrap() = Some(Box::new(move || meddler.delete_volume("v").unwrap()));
        copy.left.store(at, Ordering::Relaxed);
        container.settle(10_000).unwrap();
        assert_eq!(container.volumes().is_empty(), copy.then.lock().unwrap().is_none());
        *copy.then.lock().unwrap() = None;
    }
}

type Deed = Box<dyn FnOnce() + Send>;

/// A disk that does something at its n-th read from now.
struct Meddling {
    disk: Arc<SimDisk>,
    left: AtomicU64,
    then: Mutex<Option<Deed>>,
}

impl std::fmt::Debug for Meddling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meddling")
    }
}

impl Disk for Meddling {
    fn len(&self) -> std::io::Result<u64> {
        self.disk.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            let deed = self.then.lock().unwrap().take();
            deed.into_iter().for_each(|deed| deed());
        }
        self.disk.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> std::io::Result<()> {
        self.disk.write_at(buf, offset)
    }

    fn write_at_durable(&self, buf: &[u8], offset: u64) -> std::io::Result<()> {
        self.disk.write_at_durable(buf, offset)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.disk.sync()
    }

    fn grow(&self, len: u64) -> std::io::Result<()> {
        self.disk.grow(len)
    }
}
