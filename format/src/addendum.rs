//! Addendum files: parts of a volume as they were at an instant, to be written over an older or mixed image of it.
//!
//! Role: writes them, reads them back. Invariant: a reader takes bounded memory, and says of every byte that it gives that
//! it is in its place (BAK-15 to BAK-18); a file that ends early is never taken for a whole one. Does not: know containers.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use crate::layout::Bad;
pub use crate::layout::addendum::{AddendumHeader, Contents, Purpose};
use crate::layout::addendum::{MAX_DATA_LEN, Record, Tag, checksum_of, header, record};
use crate::units::MIN_IO_LEN;

/// Most bytes of data that one range of [`AddendumWriter::put`] may have.
pub const ADDENDUM_DATA_LEN: usize = MAX_DATA_LEN as usize;

/// What is in a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// These bytes: a multiple of 512, at most [`ADDENDUM_DATA_LEN`].
    Data(&'a [u8]),
    /// So many zeros: a multiple of 512.
    Zeros(u64),
}

impl Piece<'_> {
    /// Bytes of the volume that it covers.
    fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeros(len) => *len,
        }
    }
}

/// A range that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddendumRange<'a> {
    /// First byte of the volume.
    pub start: u64,
    /// What is there.
    pub piece: Piece<'a>,
}

/// Why an addendum cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AddendumError {
    /// The file could not be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It ends before its end record.
    #[error("it is cut off (BAK-18): bring back the whole file")]
    CutOff,
    /// Something in it is not as it must be.
    #[error("{found} where {expected} is expected ({rule}): it is no addendum, or damaged")]
    Bad {
        /// What is there.
        found: String,
        /// What should be.
        expected: String,
        /// The rule that is broken.
        rule: &'static str,
    },
}

impl From<Bad> for AddendumError {
    fn from(Bad { found, expected, rule }: Bad) -> Self {
        Self::Bad { found, expected, rule }
    }
}

/// Result of reading.
type Result<T> = std::result::Result<T, AddendumError>;

/// Where the next record must lie: what writer and reader both count.
#[derive(Debug, Clone, Copy)]
struct Position {
    size: u64,
    /// The checksum of the file's header.
    file: u32,
    number: u64,
    /// End of the range before.
    end: u64,
    listed: u64,
}

impl Position {
    fn new(header: &AddendumHeader, file: u32) -> Self {
        Self { size: header.size_bytes, file, number: 0, end: 0, listed: 0 }
    }

    /// The record of a range.
    fn range(&self, tag: Tag, start: u64, length: u64) -> Record {
        Record { tag, start, length, number: self.number }
    }

    fn end_record(&self) -> Record {
        self.range(Tag::End, self.size, self.listed)
    }

    /// Whether a record may come next (BAK-17).
    fn check(&self, found: &Record) -> std::result::Result<(), Bad> {
        if found.number != self.number {
            return Err(Bad::new("BAK-17", format!("record {}", found.number), self.number));
        }
        if found.tag == Tag::End {
            let expected = self.end_record();
            return if *found == expected {
                Ok(())
            } else {
                Err(Bad::new("BAK-18", format!("{found:?}"), format!("{expected:?}")))
            };
        }
        let end = found.start.checked_add(found.length).filter(|end| *end <= self.size);
        let whole = (found.start | found.length).is_multiple_of(MIN_IO_LEN) && found.length > 0;
        match end {
            Some(_) if whole && found.start >= self.end => Ok(()),
            _ => Err(Bad::new(
                "BAK-17",
                format!("{} bytes at {}", found.length, found.start),
                format!("whole sectors from {} to {}", self.end, self.size),
            )),
        }
    }

    fn pass(&mut self, found: &Record) {
        self.number += 1;
        self.end = found.start + found.length;
        self.listed += found.length;
    }
}

/// Writes an addendum into an empty file.
#[derive(Debug)]
pub struct AddendumWriter {
    header: AddendumHeader,
    position: Position,
    /// Bytes of the file that are written.
    at: u64,
}

impl AddendumWriter {
    /// Nothing is written yet.
    pub fn new(header: AddendumHeader) -> Self {
        Self { header, position: Position::new(&header, header.encode().1), at: 0 }
    }

    /// Bytes of the volume that are listed.
    pub fn listed_bytes(&self) -> u64 {
        self.position.listed
    }

    /// Adds a range behind the others. After an error the same range may be put again.
    ///
    /// Panics if the range is not made of whole sectors behind the one before.
    pub fn put(&mut self, file: &File, start: u64, piece: Piece<'_>) -> io::Result<()> {
        let (tag, data): (Tag, &[u8]) = match piece {
            Piece::Data(data) => (Tag::Data, data),
            Piece::Zeros(_) => (Tag::Zeros, &[]),
        };
        let record = self.position.range(tag, start, piece.len());
        assert!(
            self.position.check(&record).is_ok() && data.len() <= ADDENDUM_DATA_LEN,
            "a range out of order: {record:?} behind {}",
            self.position.end
        );
        self.append(file, &record, data)?;
        self.position.pass(&record);
        Ok(())
    }

    /// Writes what says that the file is whole; the caller makes it durable. Done again, it writes the same.
    pub fn finish(&mut self, file: &File) -> io::Result<()> {
        let record = self.position.end_record();
        let end = self.at.max(header::LEN as u64);
        self.append(file, &record, &[])?;
        self.at = end;
        Ok(())
    }

    fn append(&mut self, file: &File, found: &Record, data: &[u8]) -> io::Result<()> {
        if self.at == 0 {
            file.write_all_at(&self.header.encode().0, 0)?;
            self.at = header::LEN as u64;
        }
        file.write_all_at(&found.encode(data, self.position.file), self.at)?;
        file.write_all_at(data, self.at + record::LEN as u64)?;
        self.at += (record::LEN + data.len()) as u64;
        Ok(())
    }
}

/// Reads an addendum from its beginning.
#[derive(Debug)]
pub struct AddendumReader<R> {
    from: R,
    header: AddendumHeader,
    position: Position,
    data: Vec<u8>,
}

impl<R: Read> AddendumReader<R> {
    /// Reads the header.
    pub fn new(mut from: R) -> Result<Self> {
        let mut raw = [0; header::LEN];
        fill(&mut from, &mut raw)?;
        let (header, crc) = AddendumHeader::decode(&raw)?;
        Ok(Self { from, header, position: Position::new(&header, crc), data: Vec::new() })
    }

    /// Of what it is.
    pub fn header(&self) -> &AddendumHeader {
        &self.header
    }

    /// The next range, in ascending order; `None` behind the last, when the file has shown to be whole.
    pub fn next_range(&mut self) -> Result<Option<AddendumRange<'_>>> {
        let mut raw = [0; record::LEN];
        fill(&mut self.from, &mut raw)?;
        let (found, crc) = Record::decode(&raw)?;
        self.position.check(&found)?;
        // At most ADDENDUM_DATA_LEN: the decoder has checked that.
        self.data.resize(if found.tag == Tag::Data { found.length as usize } else { 0 }, 0);
        fill(&mut self.from, &mut self.data)?;
        let expected = checksum_of(&raw, &self.data, self.position.file);
        if crc != expected {
            return Err(Bad::new("BAK-16", format!("checksum {crc:#x}"), format!("{expected:#x}")).into());
        }
        let piece = match found.tag {
            Tag::Data => Piece::Data(&self.data),
            Tag::Zeros => Piece::Zeros(found.length),
            Tag::End => {
                return match self.from.read(&mut [0])? {
                    0 => Ok(None),
                    _ => Err(Bad::new("BAK-18", "more bytes", "the end of the file").into()),
                };
            }
        };
        self.position.pass(&found);
        Ok(Some(AddendumRange { start: found.start, piece }))
    }
}

/// Fills `buf`.
fn fill(from: &mut impl Read, buf: &mut [u8]) -> Result<()> {
    from.read_exact(buf).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => AddendumError::CutOff,
        _ => error.into(),
    })
}

#[cfg(test)]
#[path = "addendum_tests.rs"]
mod tests;
