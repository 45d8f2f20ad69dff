//! From an input to a container: a base, changed structure by structure, with checksums made right again.
//!
//! A checksum is no defence against who knows the format, so inputs are containers whose checksums fit; only then is what
//! the structures say put to the test. Offsets are those of `spec/container.md` and `spec/journal.md`, written down here
//! a second time. Does not: use the code under test, but for the disk in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use pitstop_format::Disk;
use pitstop_format::testing::SimDisk;

use crate::base;
use crate::input::Input;

const SLAB: u64 = 256 << 10;
const PAGE: usize = 4096;
const DESCRIPTORS: u64 = 2 * SLAB;
const RING: u64 = 3 * SLAB;
const MAX_RECORD: usize = 1 << 20;
/// Most slabs that an input gives the file: enough for a second group.
const MAX_SLABS: u64 = 8192 + 64;

/// What an input may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// Records of the journal.
    Journal,
    /// Catalog slots, and the descriptors of the catalog.
    Catalog,
}

/// The container that `input` describes.
pub fn container(input: &mut Input<'_>, scope: Scope) -> Arc<SimDisk> {
    let disk = base::disk(usize::from(input.byte()));
    // Structures whose checksums are left as they come out.
    let unfixed = input.byte();
    let mut patch = Patch { disk: &disk, records: Vec::new(), items: Vec::new() };
    while !input.is_empty() {
        let kind = match scope {
            Scope::All => input.byte() % 14,
            Scope::Journal => 8 + input.byte() % 6,
            Scope::Catalog => [2, 5, 2, 5, 1, 6, 10, 13][usize::from(input.byte() % 8)],
        };
        patch.step(kind, input);
    }
    patch.end_record(true);
    let records = std::mem::take(&mut patch.records);
    fix(&disk, unfixed, &records);
    disk
}

fn get(disk: &SimDisk, offset: u64, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    disk.read_at(&mut bytes, offset).ok().map(|()| bytes)
}

/// Writes as far as the disk goes.
fn put(disk: &SimDisk, offset: u64, bytes: &[u8]) {
    let room = disk.len().unwrap_or(0).saturating_sub(offset).min(bytes.len() as u64) as usize;
    if room > 0 {
        drop(disk.write_at(&bytes[..room], offset));
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |raw| u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Puts the checksum of `bytes` behind `context` at `at`.
fn seal(bytes: &mut [u8], context: &[&[u8]], at: usize) -> u32 {
    bytes[at..at + 4].fill(0);
    let mut crc = 0;
    for part in context {
        crc = crc32c::crc32c_append(crc, part);
    }
    crc = crc32c::crc32c_append(crc, bytes);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    crc
}

struct Patch<'a> {
    disk: &'a SimDisk,
    /// Complete records to append: items, and whether a batch ends.
    records: Vec<(Vec<u8>, bool)>,
    items: Vec<u8>,
}

impl Patch<'_> {
    fn step(&mut self, kind: u8, input: &mut Input<'_>) {
        match kind {
            0 => {
                let copy = input.below(2);
                let at = input.below(224);
                put(self.disk, copy * SLAB + at, &input.value());
            }
            1 => {
                let slab = input.below(128);
                let at = input.below(32);
                put(self.disk, DESCRIPTORS + slab * 32 + at, &input.value());
            }
            2 => {
                let at = self.slot_offset(input.below(64)) + input.below(512);
                put(self.disk, at, &input.value());
            }
            3 => {
                let table = input.below(8);
                let entry = input.below(8192);
                let at = input.below(32);
                if let Some(slab) = self.slabs_of_kind(3).nth(table as usize) {
                    put(self.disk, slab * SLAB + entry * 32 + at, &input.value());
                }
            }
            4 => {
                let at = input.number(3);
                put(self.disk, at, &input.value());
            }
            5 => {
                let (from, to) = (input.below(64), input.below(64));
                self.copy(self.slot_offset(from), self.slot_offset(to), 512);
                // The copy names its own number, or it would only be refused for that.
                put(self.disk, self.slot_offset(to) + 8, &(to as u32).to_le_bytes());
            }
            6 => {
                let (from, to) = (input.below(128), input.below(128));
                self.copy(DESCRIPTORS + from * 32, DESCRIPTORS + to * 32, 32);
            }
            7 => self.resize(input),
            8 => {
                let at = input.number(2);
                put(self.disk, RING + at, &input.value());
            }
            9 => {
                let last = input.byte() & 1 == 0;
                self.end_record(last);
            }
            _ => self.item(kind, input),
        }
    }

    fn item(&mut self, kind: u8, input: &mut Input<'_>) {
        match kind {
            10 => {
                // A descriptor, with any fields.
                let slab = input.word();
                let mut image = [0; 32];
                image[0] = input.byte() % 6;
                image[1] = input.byte() % 4;
                image[4..8].copy_from_slice(&(input.word() as u32).to_le_bytes());
                image[8..16].copy_from_slice(&input.word().to_le_bytes());
                image[16..24].copy_from_slice(&input.word().to_le_bytes());
                self.items.extend([3, 0, 0, 0, 0, 0, 0, 0]);
                self.items.extend(slab.to_le_bytes());
                self.items.extend(image);
            }
            11 => {
                self.items.extend([2, 0, 0, 0]);
                self.items.extend((input.word() as u32).to_le_bytes());
                for _ in 0..4 {
                    self.items.extend(input.word().to_le_bytes());
                }
            }
            12 => {
                self.items.extend([1, input.byte() % 65, input.byte() & 1, 0]);
                self.items.extend((input.word() as u32).to_le_bytes());
                self.items.extend(input.word().to_le_bytes());
            }
            _ => {
                // A catalog slot: another one, with a change.
                let (from, number) = (input.below(64), input.word() as u32);
                let mut image = get(self.disk, self.slot_offset(from), 512).unwrap_or_else(|| vec![0; 512]);
                let at = input.below(512) as usize;
                for (byte, value) in image.iter_mut().skip(at).zip(input.value()) {
                    *byte = value;
                }
                image[8..12].copy_from_slice(&number.to_le_bytes());
                self.items.extend([4, 0, 0, 0]);
                self.items.extend(number.to_le_bytes());
                self.items.extend(image);
            }
        }
        if self.items.len() > MAX_RECORD / 2 {
            self.end_record(false);
        }
    }

    fn end_record(&mut self, last: bool) {
        if !self.items.is_empty() {
            self.records.push((std::mem::take(&mut self.items), last));
        }
    }

    fn slabs_of_kind(&self, kind: u8) -> impl Iterator<Item = u64> + use<'_> {
        let home = get(self.disk, DESCRIPTORS, 128 * 32).unwrap_or_default();
        (0..128).filter(move |slab| home.get(slab * 32) == Some(&kind)).map(|slab| slab as u64)
    }

    fn slot_offset(&self, number: u64) -> u64 {
        self.slabs_of_kind(2).next().unwrap_or(4) * SLAB + number * 512
    }

    fn copy(&self, from: u64, to: u64, len: usize) {
        if let Some(bytes) = get(self.disk, from, len) {
            put(self.disk, to, &bytes);
        }
    }

    fn resize(&self, input: &mut Input<'_>) {
        let len = (input.number(2) % MAX_SLABS) * SLAB + u64::from(input.byte()) * 1024;
        if len < self.disk.len().unwrap_or(0) {
            self.disk.truncate(len);
        } else {
            drop(self.disk.grow(len));
        }
    }
}

const UNFIXED_SUPERBLOCKS: u8 = 1;
const UNFIXED_DESCRIPTORS: u8 = 2;
const UNFIXED_SLOTS: u8 = 4;
const UNFIXED_ENTRIES: u8 = 8;
const UNFIXED_RECORDS: u8 = 16;

/// Makes checksums right, but for those that `unfixed` names, and appends `records` to the journal.
fn fix(disk: &SimDisk, unfixed: u8, records: &[(Vec<u8>, bool)]) {
    let mut newest: Option<Vec<u8>> = None;
    for copy in 0..2 {
        let Some(mut bytes) = get(disk, copy * SLAB, PAGE) else { continue };
        if unfixed & UNFIXED_SUPERBLOCKS == 0 {
            seal(&mut bytes, &[], 12);
            put(disk, copy * SLAB, &bytes);
        }
        if newest.as_ref().is_none_or(|best| u64_at(&bytes, 64) > u64_at(best, 64)) {
            newest = Some(bytes);
        }
    }
    let Some(superblock) = newest else { return };
    let uuid = &superblock[16..32];
    let mut journalled = BTreeMap::new();
    if unfixed & UNFIXED_RECORDS == 0 {
        fix_records(disk, &superblock, records, &mut journalled);
    }
    let slabs = (disk.len().unwrap_or(0) / SLAB).min(8192);
    for slab in 0..slabs {
        let at = DESCRIPTORS + slab * 32;
        let Some(mut found) = get(disk, at, 32) else { break };
        if unfixed & UNFIXED_DESCRIPTORS == 0 && found.iter().any(|byte| *byte != 0) {
            seal(&mut found, &[uuid, &slab.to_le_bytes()], 28);
            put(disk, at, &found);
        }
        let found = journalled.get(&slab).unwrap_or(&found);
        match found[0] {
            2 if unfixed & UNFIXED_SLOTS == 0 => fix_slots(disk, slab, u64_at(found, 16), uuid),
            3 if unfixed & UNFIXED_ENTRIES == 0 => fix_entries(disk, slab, found),
            _ => {}
        }
    }
}

fn fix_slots(disk: &SimDisk, slab: u64, pages: u64, uuid: &[u8]) {
    for slot in 0..u64::from(pages.trailing_ones()).min(8) * 8 {
        let at = slab * SLAB + slot * 512;
        let Some(mut bytes) = get(disk, at, 512) else { return };
        seal(&mut bytes, &[uuid], 4);
        put(disk, at, &bytes);
    }
}

fn fix_entries(disk: &SimDisk, slab: u64, descriptor: &[u8]) {
    let (table, layer, pages) = (u32_at(descriptor, 4), u64_at(descriptor, 8), u64_at(descriptor, 16));
    for page in (0..64u32).filter(|page| pages >> page & 1 == 1) {
        let at = slab * SLAB + u64::from(page) * PAGE as u64;
        let Some(mut bytes) = get(disk, at, PAGE) else { return };
        for (entry, number) in bytes.chunks_exact_mut(32).zip(page * 128..) {
            let chunk = table.wrapping_mul(8192).wrapping_add(number);
            seal(entry, &[&layer.to_le_bytes(), &chunk.to_le_bytes()], 28);
        }
        put(disk, at, &bytes);
    }
}

/// Chains the records from the tail on, and appends more.
fn fix_records(disk: &SimDisk, superblock: &[u8], more: &[(Vec<u8>, bool)], journalled: &mut BTreeMap<u64, Vec<u8>>) {
    let (len, generation) = (u64_at(superblock, 88), u64_at(superblock, 72));
    let (mut at, mut sequence) = (u64_at(superblock, 112), u64_at(superblock, 120));
    let mut prev_crc = u32_at(superblock, 104);
    let mut more = more.iter();
    while at < len.min(1 << 30) {
        let there = get(disk, RING + at, 64).filter(|header| header.starts_with(b"PITJRNL\0"));
        let mut record = match (there, more.as_slice().first()) {
            (Some(header), _) => {
                let len = (u32_at(&header, 48) as usize).clamp(1, MAX_RECORD).next_multiple_of(PAGE);
                let Some(bytes) = get(disk, RING + at, len) else { return };
                bytes
            }
            (None, Some((items, last))) => {
                let mut bytes = b"PITJRNL\0".to_vec();
                bytes.resize(64, 0);
                bytes.extend(items);
                bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
                bytes[52..56].copy_from_slice(&(items.len() as u32).to_le_bytes());
                bytes[56] = u8::from(*last);
                more.next();
                bytes
            }
            (None, None) => return,
        };
        if at + record.len() as u64 > len {
            return;
        }
        record[12..16].copy_from_slice(&prev_crc.to_le_bytes());
        record[16..32].copy_from_slice(&superblock[16..32]);
        record[32..40].copy_from_slice(&generation.to_le_bytes());
        record[40..48].copy_from_slice(&sequence.to_le_bytes());
        let record_len = record.len() as u32;
        record[48..52].copy_from_slice(&record_len.to_le_bytes());
        fix_items(&mut record, &superblock[16..32], journalled);
        prev_crc = seal(&mut record, &[], 8);
        put(disk, RING + at, &record);
        at += record.len() as u64;
        sequence = sequence.wrapping_add(1);
    }
}

/// Seals the structures within a record's items.
fn fix_items(record: &mut [u8], uuid: &[u8], journalled: &mut BTreeMap<u64, Vec<u8>>) {
    let end = (64 + u32_at(record, 52) as usize).min(record.len());
    let mut at = 64;
    while at < end {
        let len = match record[at] {
            1 => 16,
            2 => 40,
            3 => 48,
            4 => 520,
            _ => return,
        };
        let Some(item) = record.get_mut(at..at + len) else { return };
        if item[0] == 3 {
            let slab = u64_at(item, 8);
            if item[16..].iter().any(|byte| *byte != 0) {
                seal(&mut item[16..], &[uuid, &slab.to_le_bytes()], 28);
            }
            journalled.insert(slab, item[16..].to_vec());
        } else if item[0] == 4 {
            seal(&mut item[8..], &[uuid], 4);
        }
        at += len;
    }
}
