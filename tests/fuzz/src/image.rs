//! An image file that is anything at all, read as the import reads it.
//!
//! Files that it names are not followed: with `Backing::Refuse` none may be opened, whatever the name. The image's disk is
//! copied to nowhere, as far as a bound: a few KiB of tables may well describe terabytes.

use std::io::Write;
use std::sync::atomic::AtomicBool;

use crate::copy::{self, Sink};
use crate::error::{Error, Result};
use crate::image::{self, Backing, Format, ImageFile};

/// Bytes of data that are copied before the copy is ended.
const ENOUGH: u64 = 8 << 20;
/// Largest volume; an import refuses larger images.
const MAX_DISK: u64 = 64 << 40;

/// Takes everything, up to a bound.
struct Nowhere {
    left: u64,
    len: u64,
}

impl Sink for Nowhere {
    fn granularity(&self) -> usize {
        4096
    }

    fn write_at(&mut self, buf: &[u8], offset: u64) -> Result<()> {
        assert!(offset + buf.len() as u64 <= self.len, "more than the disk is copied");
        self.left = self.left.saturating_sub(buf.len() as u64);
        if self.left == 0 { Err(Error::Interrupted { undone: "enough was read" }) } else { Ok(()) }
    }
}

/// Imports one image. The first byte says how the rest is spread over the file.
pub(crate) fn run(data: &[u8]) {
    let (flags, bytes) = data.split_first().map_or((0, data), |(first, rest)| (*first, rest));
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(bytes).expect("a file that takes bytes");
    // Tables far behind the header, without inputs of their length.
    if flags & 3 == 1 {
        file.as_file().set_len(1 << 20).expect("a longer file");
    }
    let forced = [None, None, Some(Format::Raw), Some(Format::Qcow2)][usize::from(flags >> 2 & 3)];
    let image = ImageFile::open(file.path()).expect("the file just made");
    let mut source = match image::source(image, forced, Backing::Refuse) {
        Ok((_, source)) if source.len() <= MAX_DISK => source,
        Ok(_) => return,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert_eq!(source.len() % 512, 0);
    let mut sink = Nowhere { left: ENOUGH, len: source.len() };
    drop(copy::copy(source.as_mut(), &mut sink, &AtomicBool::new(false), &|_| {}));
}
