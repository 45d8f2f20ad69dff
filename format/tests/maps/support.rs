//! Containers on a disk that tells what was read of it.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use pitstop_format::testing::SimDisk;
use pitstop_format::{
    Container, CreateOptions, DiffRange, DiffStep, Disk, Listing, MapRange, MapStep, OpenMode, Planned, ReadPlan,
    ReadSegment, SLAB_LEN, VolumeInfo, VolumeIo,
};

pub const BLOCK: u64 = 4096;
pub const MIB: u64 = 1 << 20;

/// Called before a read with the bytes that are asked for.
type Hook = Box<dyn FnMut(Range<u64>) + Send>;

/// A disk that tells each read before it is done. The hook's own reads are not told of.
pub struct Watched {
    disk: Arc<SimDisk>,
    hook: Mutex<Option<Hook>>,
}

impl Watched {
    pub fn on(disk: Arc<SimDisk>) -> Arc<Self> {
        Arc::new(Self { disk, hook: Mutex::default() })
    }

    pub fn set(&self, hook: impl FnMut(Range<u64>) + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watched")
    }
}

impl Disk for Watched {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let hook = self.hook.lock().unwrap().take();
        if let Some(mut hook) = hook {
            hook(offset..offset + buf.len() as u64);
            self.hook.lock().unwrap().get_or_insert(hook);
        }
        self.disk.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.disk.write_at(buf, offset)
    }

    fn write_at_durable(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.disk.write_at_durable(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        self.disk.grow(len)
    }
}

pub fn new_container() -> (Arc<SimDisk>, Container) {
    let disk = SimDisk::new();
    let options = CreateOptions { journal_len_bytes: MIB, ..CreateOptions::default() };
    Container::create(disk.clone(), &options).unwrap();
    let container = open(disk.clone());
    (disk, container)
}

pub fn open(disk: Arc<dyn Disk>) -> Container {
    Container::open(disk, OpenMode::ReadWrite).unwrap()
}

pub fn io(container: &Container, name: &str) -> VolumeIo {
    VolumeIo::new(container, container.volume(name).unwrap())
}

pub fn fill(container: &Container, name: &str, range: Range<u64>, value: u8) {
    io(container, name).write_at(&vec![value; (range.end - range.start) as usize], range.start).unwrap();
}

pub fn find(container: &Container, name: &str) -> VolumeInfo {
    container.volumes().into_iter().find(|volume| volume.name == name).unwrap()
}

/// The whole map by steps of `limit` ranges, which must follow each other without gaps; ranges of one kind are joined.
pub fn map_by(container: &Container, name: &str, limit: usize) -> (Vec<MapRange>, Vec<MapStep>) {
    let (mut ranges, mut steps) = (Vec::<MapRange>::new(), Vec::new());
    let mut next = Some(0);
    while let Some(start) = next {
        let step = container.map(name, start, Listing::Ranges(limit)).unwrap();
        assert!(step.ranges.len() <= limit);
        for range in &step.ranges {
            let end = ranges.last().map_or(0, |last| last.start + last.length);
            assert_eq!(range.start, end, "{name}: a gap");
            match ranges.last_mut() {
                Some(last) if MapRange { start: range.start, length: range.length, ..*last } == *range => {
                    last.length += range.length;
                }
                _ => ranges.push(*range),
            }
        }
        assert!(step.next.is_none_or(|next| next > start), "no progress at {start}");
        next = step.next;
        steps.push(step);
    }
    let size = steps.last().unwrap().size_bytes;
    assert_eq!(ranges.last().map_or(0, |last| last.start + last.length), size, "{name}: the end is missing");
    (ranges, steps)
}

pub fn map(container: &Container, name: &str) -> Vec<MapRange> {
    map_by(container, name, 1000).0
}

/// The whole difference by steps of `limit` ranges; ranges of one kind are joined.
pub fn diff_by(container: &Container, a: &str, b: &str, limit: usize) -> (Vec<DiffRange>, Vec<DiffStep>) {
    let (mut ranges, mut steps) = (Vec::<DiffRange>::new(), Vec::new());
    let mut next = Some(0);
    while let Some(start) = next {
        let step = container.diff(a, b, start, Listing::Ranges(limit)).unwrap();
        assert!(step.ranges.len() <= limit);
        for range in &step.ranges {
            assert!(range.start >= start && step.next.is_none_or(|next| range.start + range.length <= next));
            match ranges.last_mut() {
                Some(last)
                    if last.start + last.length == range.start
                        && DiffRange { start: range.start, length: range.length, ..*last } == *range =>
                {
                    last.length += range.length;
                }
                _ => ranges.push(*range),
            }
        }
        assert!(step.next.is_none_or(|next| next > start), "no progress at {start}");
        assert_eq!(step.counts.bytes, step.ranges.iter().map(|range| range.length).sum::<u64>());
        next = step.next;
        steps.push(step);
    }
    (ranges, steps)
}

pub fn diff(container: &Container, a: &str, b: &str) -> Vec<DiffRange> {
    diff_by(container, a, b, 1000).0
}

/// The slabs that hold data which the volume shows.
pub fn data_slabs(container: &Container, name: &str) -> Vec<u64> {
    let volume = container.volume(name).unwrap();
    let mut slabs = Vec::new();
    for start in (0..volume.size()).step_by(SLAB_LEN as usize) {
        let mut plan = ReadPlan::default();
        let range = start..volume.size().min(start + SLAB_LEN);
        while let Planned::NeedPage(load) = volume.plan_read(range.clone(), &mut plan).unwrap() {
            container.load_page(load).unwrap();
        }
        slabs.extend(plan.segments().iter().filter_map(|segment| match segment {
            ReadSegment::Data { disk_offset, .. } => Some(disk_offset / SLAB_LEN),
            ReadSegment::Zero { .. } => None,
        }));
    }
    slabs
}
