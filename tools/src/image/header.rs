//! The header of a qcow2 image, read before the image is: what must be refused is refused here, with words of our own.
//!
//! Invariant: after [`Header::read`] the image is one that library imago can read, and opening it neither allocates more
//! than a few tens of MiB nor panics. Does not: read tables or data.

use super::{Backing, ImageFile};
use crate::error::Result;
use crate::render::printable;

/// The first four bytes of every qcow2 image.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Bytes of the header up to version 3's last field.
const HEADER_LEN: usize = 104;
/// Bytes of a version 2 header.
const HEADER_LEN_V2: usize = 72;
/// Largest first-level table that QEMU opens, in bytes.
const MAX_L1_LEN: u64 = 32 << 20;
/// Largest refcount table that QEMU opens, in bytes.
const MAX_REFTABLE_LEN: u64 = 8 << 20;
/// Header extension: names of features.
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;

/// Incompatible features: bit, name, what to do.
const INCOMPATIBLE: [(u64, &str, &str); 4] = [
    (1 << 1, "is marked corrupt", "repair it with `qemu-img check -r all` on a copy first"),
    (1 << 0, "was not closed cleanly", "repair it with `qemu-img check -r leaks` first"),
    (1 << 3, "uses a compression that is not supported (zstd)", CONVERT),
    (1 << 4, "uses extended l2 entries (subclusters), which are not supported", CONVERT),
];
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const CONVERT: &str = "convert it first with `qemu-img convert -O qcow2`";
const DAMAGED: &str = "it is damaged or no qcow2 image; restore it, or take its bytes as they are with -f raw";

/// What is worth knowing of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// Length of a cluster in bytes.
    pub(super) cluster_len_bytes: u64,
    /// Name of the backing file, if it has one.
    pub(super) backing: Option<String>,
    /// Whether the data lies in another file.
    pub(super) external_data: bool,
}

impl Header {
    /// Reads and judges the header of `image`.
    ///
    /// # Errors
    /// The image is damaged, encrypted, of an unsupported kind, or names other files and `allowed` refuses that.
    pub(super) fn read(image: &ImageFile, allowed: Backing) -> Result<Self> {
        let mut buf = vec![0; 2 << 20];
        let start = image.start(&mut buf)?;
        let raw = match Raw::parse(start) {
            Some(raw) => raw,
            None => return Err(image.wrong("the qcow2 header is cut off or not one", DAMAGED)),
        };
        raw.judge(image)?;
        let backing = raw.backing_name(start).map_err(|problem| image.wrong(problem, DAMAGED))?;
        raw.judge_extensions(start).map_err(|problem| image.wrong(problem, DAMAGED))?;
        let header = Self {
            cluster_len_bytes: 1 << raw.cluster_bits,
            backing,
            external_data: raw.incompatible & INCOMPATIBLE_DATA_FILE != 0,
        };
        header.judge_references(image, allowed)?;
        Ok(header)
    }

    fn judge_references(&self, image: &ImageFile, allowed: Backing) -> Result<()> {
        if allowed == Backing::Follow {
            return Ok(());
        }
        let advice = "opening it could read any file of this machine; if the image is from somebody you trust, pass \
                      --allow-backing";
        if let Some(name) = &self.backing {
            return Err(
                image.wrong(format!("the image is a difference to the backing file '{}'", printable(name)), advice)
            );
        }
        if self.external_data {
            return Err(image.wrong("the image keeps its data in another file", advice));
        }
        Ok(())
    }
}

/// The header's fields that are looked at.
#[derive(Debug)]
struct Raw {
    version: u32,
    backing_offset: u64,
    backing_len: u32,
    cluster_bits: u32,
    size: u64,
    crypt_method: u32,
    l1_entries: u32,
    l1_offset: u64,
    reftable_clusters: u32,
    incompatible: u64,
    refcount_order: u32,
    header_len: u32,
}

impl Raw {
    fn parse(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(&MAGIC) || bytes.len() < HEADER_LEN_V2 {
            return None;
        }
        let version = be32(bytes, 4)?;
        let mut raw = Self {
            version,
            backing_offset: be64(bytes, 8)?,
            backing_len: be32(bytes, 16)?,
            cluster_bits: be32(bytes, 20)?,
            size: be64(bytes, 24)?,
            crypt_method: be32(bytes, 32)?,
            l1_entries: be32(bytes, 36)?,
            l1_offset: be64(bytes, 40)?,
            reftable_clusters: be32(bytes, 56)?,
            incompatible: 0,
            refcount_order: 4,
            header_len: HEADER_LEN_V2 as u32,
        };
        if version >= 3 {
            raw.incompatible = be64(bytes, 72)?;
            raw.refcount_order = be32(bytes, 96)?;
            raw.header_len = be32(bytes, 100)?;
        }
        Some(raw)
    }

    fn judge(&self, image: &ImageFile) -> Result<()> {
        if self.version != 2 && self.version != 3 {
            return Err(image.wrong(format!("qcow version {} is not supported", self.version), CONVERT));
        }
        if self.crypt_method != 0 {
            return Err(image.wrong(
                "the image is encrypted",
                "decrypt it first with `qemu-img convert --image-opts` and its secret; encrypted images are not imported",
            ));
        }
        for (bit, problem, advice) in INCOMPATIBLE {
            if self.incompatible & bit != 0 {
                return Err(image.wrong(format!("the image {problem}"), advice));
            }
        }
        if self.incompatible >> 5 != 0 {
            return Err(image.wrong(format!("the image uses unknown features ({:#x})", self.incompatible), CONVERT));
        }
        let sane = (9..=21).contains(&self.cluster_bits)
            && self.refcount_order <= 6
            && u64::from(self.l1_entries) * 8 <= MAX_L1_LEN
            && u64::from(self.reftable_clusters) << self.cluster_bits.min(21) <= MAX_REFTABLE_LEN
            && self.size <= i64::MAX as u64
            && (self.version == 2 || (HEADER_LEN as u32..=1 << self.cluster_bits).contains(&self.header_len));
        if !sane {
            return Err(image.wrong("the qcow2 header has impossible values", DAMAGED));
        }
        self.judge_l1(image)
    }

    /// The first-level table must lie in the file and cover the disk: missing entries would read as zeros.
    fn judge_l1(&self, image: &ImageFile) -> Result<()> {
        let table_len = u64::from(self.l1_entries) * 8;
        let covered_by_entry = 1u64 << (2 * self.cluster_bits - 3);
        let needed = self.size.div_ceil(covered_by_entry);
        let end = self.l1_offset.checked_add(table_len);
        if needed > u64::from(self.l1_entries)
            || end.is_none_or(|end| end > image.len_bytes.next_multiple_of(1 << self.cluster_bits))
        {
            return Err(image.wrong("the image is cut off: its first-level table is not all there", DAMAGED));
        }
        Ok(())
    }

    fn backing_name(&self, bytes: &[u8]) -> std::result::Result<Option<String>, &'static str> {
        if self.backing_offset == 0 {
            return Ok(None);
        }
        if self.backing_len == 0 {
            return Err("the backing file's name is empty");
        }
        let end =
            self.backing_offset.checked_add(u64::from(self.backing_len)).filter(|end| *end < 1 << self.cluster_bits);
        let (Some(end), true) = (end, self.backing_len <= 1023) else {
            return Err("the backing file's name is out of place");
        };
        let range = usize::try_from(self.backing_offset).ok().zip(usize::try_from(end).ok());
        let name = range.and_then(|(start, end)| bytes.get(start..end)).ok_or("the backing file's name is cut off")?;
        String::from_utf8(name.to_vec()).map(Some).map_err(|_| "the backing file's name is not text in utf-8")
    }

    /// Walks the header extensions: library imago expects whole records in the table of feature names.
    fn judge_extensions(&self, bytes: &[u8]) -> std::result::Result<(), &'static str> {
        if self.version == 2 {
            return Ok(());
        }
        let limit = 1usize << self.cluster_bits;
        let mut at = self.header_len as usize;
        loop {
            let (Some(kind), Some(len)) = (be32(bytes, at), be32(bytes, at + 4)) else {
                return Err("the header extensions are cut off");
            };
            if kind == 0 {
                return Ok(());
            }
            if kind == EXTENSION_FEATURE_NAMES && len % 48 != 0 {
                return Err("the table of feature names is damaged");
            }
            at = at.saturating_add(8).saturating_add((len as usize).next_multiple_of(8));
            if at > limit {
                return Err("the header extensions do not end within the first cluster");
            }
        }
    }
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_be_bytes)
}
