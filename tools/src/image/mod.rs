//! Image files outside a container: what format a file has, and how to read and write it.
//!
//! Invariant: an image is untrusted input. Nothing in it makes this program open another file unless the user allowed it,
//! and a damaged one is an error, never a panic. Does not: know containers or verbs.

mod header;
mod pitstop;
mod qcow2;
mod raw;
mod target;

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use clap::ValueEnum;

pub(crate) use self::pitstop::PitstopSink;
use self::pitstop::PitstopSource;
pub(crate) use self::qcow2::Qcow2Sink;
use self::qcow2::Qcow2Source;
pub(crate) use self::raw::RawSink;
use self::raw::RawSource;
pub(crate) use self::target::{Overwrite, Target, sync_folder};
use crate::copy::Source;
use crate::error::{Error, Result};

/// An image format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The disk's bytes as they are
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3
    Qcow2,
    /// A container with one volume
    Pitstop,
}

/// Whether an image may name other files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    /// A backing file or external data file is an error.
    Refuse,
    /// They are opened for reading.
    Follow,
}

/// An image file, open for reading.
#[derive(Debug)]
pub(crate) struct ImageFile {
    /// Its path, as the user gave it or an image named it.
    pub(crate) path: PathBuf,
    /// The open file.
    pub(crate) file: File,
    /// Bytes in it.
    pub(crate) len_bytes: u64,
}

impl ImageFile {
    /// Opens a regular file or block device.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        // Opening a FIFO would wait for a writer: look first.
        let meta = std::fs::metadata(path).map_err(Error::file("open", path))?;
        if !meta.is_file() && !meta.file_type().is_block_device() {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        let mut file = File::open(path).map_err(Error::file("open", path))?;
        let len_bytes = file.seek(SeekFrom::End(0)).map_err(Error::file("find the length of", path))?;
        Ok(Self { path: path.to_owned(), file, len_bytes })
    }

    /// The first bytes, fewer if the file is shorter than `buf`.
    fn start<'a>(&self, buf: &'a mut [u8]) -> Result<&'a [u8]> {
        let len = usize::try_from(self.len_bytes).map_or(buf.len(), |len| len.min(buf.len()));
        self.file.read_exact_at(&mut buf[..len], 0).map_err(Error::file("read", &self.path))?;
        Ok(&buf[..len])
    }

    /// An error of this image.
    fn wrong(&self, problem: impl Into<String>, advice: impl Into<String>) -> Error {
        Error::Image { path: self.path.clone(), problem: problem.into(), advice: advice.into() }
    }
}

/// Beginnings of files that are surely no raw disk: offset, bytes, name, what to do.
const FOREIGN: &[(usize, &[u8], &str, &str)] = &[
    (0, b"KDMV", "a VMDK image", CONVERT),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor", CONVERT),
    (0, b"vhdxfile", "a VHDX image", CONVERT),
    (0, b"conectix", "a VHD image", CONVERT),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI image", CONVERT),
    (0, b"QED\0", "a QED image", CONVERT),
    (0, b"\xfd7zXZ\0", "compressed with xz", UNPACK),
    (0, b"\x1f\x8b\x08", "compressed with gzip", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
    (0, b"BZh", "compressed with bzip2", UNPACK),
];
const CONVERT: &str = "convert it first with `qemu-img convert -O qcow2`, or take its bytes as they are with -f raw";
const UNPACK: &str = "unpack it first, or take its bytes as they are with -f raw";

/// Finds out the format of a file: qcow2 or a container if it begins with that magic, otherwise raw.
///
/// # Errors
/// A file that begins like another well-known format is refused: as a raw disk it would be garbage.
fn detect(image: &ImageFile) -> Result<Format> {
    let mut buf = [0; 512];
    let start = image.start(&mut buf)?;
    if start.starts_with(&header::MAGIC) {
        return Ok(Format::Qcow2);
    }
    if start.starts_with(pitstop::MAGIC) {
        return Ok(Format::Pitstop);
    }
    let foreign =
        FOREIGN.iter().find(|(offset, magic, ..)| start.get(*offset..).is_some_and(|rest| rest.starts_with(magic)));
    match foreign {
        Some((_, _, name, advice)) => Err(image.wrong(format!("looks like {name}"), *advice)),
        None => Ok(Format::Raw),
    }
}

/// The disk in an image of `format`, or of the format that it seems to have.
pub(crate) fn source(image: ImageFile, format: Option<Format>, backing: Backing) -> Result<(Format, Box<dyn Source>)> {
    let format = match format {
        Some(format) => format,
        None => detect(&image)?,
    };
    let source: Box<dyn Source> = match format {
        Format::Raw => Box::new(RawSource::new(image)),
        Format::Qcow2 => Box::new(Qcow2Source::open(image, backing)?),
        Format::Pitstop => Box::new(PitstopSource::open(&image)?),
    };
    Ok((format, source))
}

/// Length of a volume that holds an image of `len_bytes`.
pub(crate) const fn padded(len_bytes: u64) -> u64 {
    len_bytes.saturating_add(511) / 512 * 512
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn image(bytes: &[u8]) -> (tempfile::NamedTempFile, ImageFile) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let image = ImageFile::open(file.path()).unwrap();
        (file, image)
    }

    #[test]
    fn a_magic_tells_the_format_and_anything_else_is_raw() {
        assert_eq!(detect(&image(b"QFI\xfb\0\0\0\x03").1).unwrap(), Format::Qcow2);
        assert_eq!(detect(&image(b"PITSTOP\0\x01").1).unwrap(), Format::Pitstop);
        for raw in [&b""[..], b"Q", b"QFI", b"PITSTOP", b"hello", &[0; 4096]] {
            assert_eq!(detect(&image(raw).1).unwrap(), Format::Raw);
        }
    }

    #[test]
    fn other_formats_are_not_taken_for_raw_disks() {
        for (offset, magic, name, _) in FOREIGN {
            let mut bytes = vec![0; offset + magic.len() + 100];
            bytes[*offset..][..magic.len()].copy_from_slice(magic);
            let error = detect(&image(&bytes).1).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("-f raw"), "{error}");
        }
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let error = ImageFile::open(Path::new("/")).unwrap_err().to_string();
        assert_eq!(error, "/ is not a regular file or block device; name a file that holds an image");
        let error = ImageFile::open(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(error.contains("not a regular file"));
    }

    #[test]
    fn lengths_are_padded_to_sectors() {
        assert_eq!([0, 1, 511, 512, 513].map(padded), [0, 512, 512, 512, 1024]);
    }
}
