//! The log of a repair: what it changes, before and after.
//!
//! Invariant: bytes as `spec/check.md` tells them, every item with a checksum of its own, so that a log can be read by
//! itself and a damaged one is noticed. Does not: open files.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use uuid::Uuid;

use super::shadow::Shadow;
use super::steps::Step;
use crate::disk::{Disk, read_what_can_be};
use crate::error::{Error, Result};
use crate::layout::{checksum, on_disk};
use crate::units::{PAGE_LEN, SLAB_LEN, SlabNo};

/// First bytes of a log.
const MAGIC_VALUE: [u8; 8] = *b"PITMEND\0";
const WRITE: u64 = 1;
const KEPT: u64 = 2;
const END: u64 = 3;
/// Longest run of bytes in an item.
const MOST: u64 = 1 << 20;
const SECTOR: usize = 512;

/// What a log begins with.
mod header {
    super::on_disk! { 64;
        MAGIC @ 0, 8;
        VERSION @ 8, 4;
        CRC @ 12, 4;
        UUID @ 16, 16;
    }
}

/// What every item begins with.
mod item {
    super::on_disk! { 32;
        KIND @ 0, 4;
        CRC @ 4, 4;
        OFFSET @ 8, 8;
        LENGTH @ 16, 8;
    }
}

pub(super) fn write(
    uuid: Uuid,
    (steps, unread): (&[Step], &BTreeSet<u64>),
    kept: &[SlabNo],
    disk: &dyn Disk,
    out: &mut dyn io::Write,
) -> Result<()> {
    let failed = || Error::io("cannot write the repair log");
    let mut raw = [0; header::LEN];
    header::MAGIC.bytes_mut(&mut raw).copy_from_slice(&MAGIC_VALUE);
    header::VERSION.put(&mut raw, 1);
    header::UUID.put_uuid(&mut raw, uuid);
    let crc = checksum(&[], &raw, header::CRC);
    header::CRC.put(&mut raw, crc.into());
    out.write_all(&raw).map_err(failed())?;
    let mut put = |kind: u64, offset: u64, old: &[u8], new: &[u8]| {
        let mut raw = [0; item::LEN];
        item::KIND.put(&mut raw, kind);
        item::OFFSET.put(&mut raw, offset);
        item::LENGTH.put(&mut raw, old.len() as u64);
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(checksum(&[], &raw, item::CRC), old), new);
        item::CRC.put(&mut raw, crc.into());
        [&raw[..], old, new].into_iter().try_for_each(|bytes| out.write_all(bytes)).map_err(failed())
    };
    let shadow = Shadow::new(disk);
    for (offset, new) in steps.iter().flatten() {
        let mut old = vec![0; new.len()];
        if unread.contains(offset) {
            read_what_can_be(&shadow, &mut old, *offset);
        } else {
            shadow.read_at(&mut old, *offset).map_err(Error::io("cannot read what is to be repaired"))?;
        }
        put(WRITE, *offset, &old, new)?;
        shadow.write_at(new, *offset).map_err(failed())?;
    }
    for slab in kept {
        let mut old = vec![0; SLAB_LEN as usize];
        disk.read_at(&mut old, slab.offset()).map_err(Error::io("cannot read a slab that is to be kept"))?;
        put(KEPT, slab.offset(), &old, &[])?;
    }
    put(END, 0, &[], &[])
}

/// One item read back.
struct Found {
    kind: u64,
    offset: u64,
    old: Vec<u8>,
    new: Vec<u8>,
}

fn damaged(what: &str) -> Error {
    Error::BadRepairLog { why: what.to_owned() }
}

fn read_exact(log: &mut dyn Read, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    log.read_exact(&mut bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it ends too early"),
        _ => Error::io("cannot read the repair log")(error),
    })?;
    Ok(bytes)
}

fn read_header(log: &mut dyn Read) -> Result<Uuid> {
    let raw = read_exact(log, header::LEN)?;
    if header::MAGIC.bytes(&raw) != MAGIC_VALUE || header::VERSION.get(&raw) != 1 {
        return Err(damaged("it does not begin as one"));
    }
    if header::CRC.get_u32(&raw) != checksum(&[], &raw, header::CRC) {
        return Err(damaged("its header is damaged"));
    }
    Ok(header::UUID.uuid(&raw))
}

fn read_item(log: &mut dyn Read) -> Result<Found> {
    let raw = read_exact(log, item::LEN)?;
    let (kind, len) = (item::KIND.get(&raw), item::LENGTH.get(&raw));
    if !(WRITE..=END).contains(&kind) || len > MOST {
        return Err(damaged("an item is damaged"));
    }
    let old = read_exact(log, len as usize)?;
    let new = if kind == WRITE { read_exact(log, len as usize)? } else { Vec::new() };
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(checksum(&[], &raw, item::CRC), &old), &new);
    if crc != item::CRC.get_u32(&raw) {
        return Err(damaged("an item is damaged"));
    }
    Ok(Found { kind, offset: item::OFFSET.get(&raw), old, new })
}

/// Puts back what a repair has changed; may be called again after it was interrupted.
///
/// Errors: [`Error::BadRepairLog`] if the log is damaged, belongs to another container, or the container has been changed
/// since the repair. Nothing has been changed then.
pub fn undo(disk: &dyn Disk, log: &mut dyn Read) -> Result<()> {
    let uuid = read_header(log)?;
    // For each page what was there first, and all that has been there since.
    let mut pages: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    loop {
        let found = read_item(log)?;
        match found.kind {
            END => break,
            WRITE => {
                let both = found.old.chunks_exact(PAGE_LEN).zip(found.new.chunks_exact(PAGE_LEN));
                for ((old, new), at) in both.zip((found.offset..).step_by(PAGE_LEN)) {
                    pages.entry(at).or_insert_with(|| vec![old.to_vec()]).push(new.to_vec());
                }
            }
            _ => {}
        }
    }
    let same = crate::layout::superblock::OFFSETS.iter().enumerate().any(|(copy, offset)| {
        let first = pages.get(offset).and_then(|values| values.last());
        first.is_some_and(|raw| {
            crate::layout::superblock::Superblock::decode(raw, copy).is_ok_and(|found| found.uuid == uuid)
        })
    });
    if !same && !pages.is_empty() {
        return Err(damaged("it is not whole"));
    }
    for (&at, values) in &pages {
        let mut now = vec![0; PAGE_LEN];
        disk.read_at(&mut now, at).map_err(Error::io("cannot read the container"))?;
        for (sector, start) in now.chunks_exact(SECTOR).zip((0..).step_by(SECTOR)) {
            if !values.iter().any(|value| value[start..start + SECTOR] == *sector) {
                return Err(damaged("the container is another one, or has been changed since the repair"));
            }
        }
    }
    for (&at, values) in &pages {
        disk.write_at(&values[0], at).map_err(Error::io("cannot write the container"))?;
    }
    disk.sync().map_err(Error::io("cannot sync the container"))
}
