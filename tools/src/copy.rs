//! Copies everything that is not zero from a source to a sink.
//!
//! Invariant: what the source reports as zero is neither read nor written; what turns out to be zeros, piece by piece of
//! the sink's granularity, is not written. A sink starts out as all zeros. Reading and writing overlap: one thread reads
//! ahead by a few buffers. Does not: know files, formats or containers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::error::{Error, Result};

/// Largest piece read at once, in bytes.
pub(crate) const BUFFER_LEN: usize = 2 << 20;
/// Alignment of buffers, in bytes.
const PAGE_LEN: usize = 4096;
/// Buffers in flight between the two threads.
const BUFFER_COUNT: usize = 4;

/// What a range of a source holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    /// Something that must be read.
    Data,
    /// Zeros, known without reading.
    Zero,
}

/// A disk to copy from. Its length is a multiple of 512 bytes.
pub(crate) trait Source: Send {
    /// Length in bytes.
    fn len(&self) -> u64;
    /// What lies at `offset < len()`, and for how many bytes (at least 1, at most up to the end).
    fn run_at(&mut self, offset: u64) -> Result<(Run, u64)>;
    /// Fills `buf` from `offset`; the range lies within the source.
    fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<()>;
}

/// A disk to copy to, which reads as zeros where nothing was written.
pub(crate) trait Sink {
    /// The unit in which zeros are worth leaving out, in bytes: a power of two, at least 512.
    fn granularity(&self) -> usize;
    /// Writes `buf` at `offset`; both are multiples of 512 bytes.
    fn write_at(&mut self, buf: &[u8], offset: u64) -> Result<()>;
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    /// Bytes read from the source.
    pub(crate) read_bytes: u64,
    /// Bytes written to the sink.
    pub(crate) written_bytes: u64,
}

/// A piece of the source on its way to the sink.
struct Piece {
    offset: u64,
    len: usize,
    buf: Buffer,
}

/// Memory that begins at a page, so that direct I/O needs no copy of it.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Self {
        let bytes = vec![0; BUFFER_LEN + PAGE_LEN];
        // Without an answer the buffer is only slower.
        let start = bytes.as_ptr().align_offset(PAGE_LEN).min(PAGE_LEN);
        Self { bytes, start }
    }

    fn first(&self, len: usize) -> &[u8] {
        &self.bytes[self.start..self.start + len]
    }

    fn first_mut(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + len]
    }
}

/// Copies `source` to `sink`; calls `progress` with the offset reached. Ends early when `stop` becomes true.
///
/// # Errors
/// The first error of either side; [`Error::Interrupted`] when stopped.
pub(crate) fn copy(
    source: &mut dyn Source,
    sink: &mut dyn Sink,
    stop: &AtomicBool,
    progress: &dyn Fn(u64),
) -> Result<Copied> {
    let granularity = sink.granularity();
    let (full_tx, full_rx) = sync_channel::<Piece>(BUFFER_COUNT);
    let (empty_tx, empty_rx) = sync_channel::<Buffer>(BUFFER_COUNT);
    thread::scope(|scope| {
        let reader = scope.spawn(move || read_ahead(source, granularity, stop, &full_tx, &empty_rx));
        // The receiver moves into `write_out`: when writing fails it is dropped, and the reader ends at its next piece.
        let written = write_out(sink, granularity, full_rx, &empty_tx, progress);
        drop(empty_tx);
        let read = reader.join().unwrap_or(Err(Error::ReaderGone));
        let written_bytes = written?;
        let read_bytes = read?;
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted { undone: "nothing was changed" });
        }
        Ok(Copied { read_bytes, written_bytes })
    })
}

fn read_ahead(
    source: &mut dyn Source,
    granularity: usize,
    stop: &AtomicBool,
    full: &SyncSender<Piece>,
    empty: &Receiver<Buffer>,
) -> Result<u64> {
    let mut read_bytes = 0;
    let mut made = 0;
    let mut offset = 0;
    while offset < source.len() && !stop.load(Ordering::Relaxed) {
        let end = match next_data(source, offset, granularity as u64)? {
            Next::Data { end } => end,
            Next::Zero { end } => {
                offset = end;
                continue;
            }
        };
        while offset < end && !stop.load(Ordering::Relaxed) {
            let len = usize::try_from(end - offset).map_or(BUFFER_LEN, |rest| rest.min(BUFFER_LEN));
            let mut buf = if made < BUFFER_COUNT {
                made += 1;
                Buffer::new()
            } else {
                match empty.recv() {
                    Ok(buf) => buf,
                    // The writer has failed and says why itself.
                    Err(_) => return Ok(read_bytes),
                }
            };
            source.read_at(buf.first_mut(len), offset)?;
            read_bytes += len as u64;
            if full.send(Piece { offset, len, buf }).is_err() {
                return Ok(read_bytes);
            }
            offset += len as u64;
        }
    }
    Ok(read_bytes)
}

/// The next stretch from an offset on; `end` is past the offset.
enum Next {
    Data { end: u64 },
    Zero { end: u64 },
}

/// Rounds the source's runs to whole granules: a granule that is zero in part counts as data, so that no granule is
/// written twice.
fn next_data(source: &mut dyn Source, offset: u64, granularity: u64) -> Result<Next> {
    let len = source.len();
    let (run, run_len) = source.run_at(offset)?;
    let run_end = offset.saturating_add(run_len.max(1)).min(len);
    if run == Run::Zero {
        let whole = if run_end == len { len } else { run_end - run_end % granularity };
        if whole > offset {
            return Ok(Next::Zero { end: whole });
        }
    }
    Ok(Next::Data { end: run_end.next_multiple_of(granularity).min(len) })
}

fn write_out(
    sink: &mut dyn Sink,
    granularity: usize,
    full: Receiver<Piece>,
    empty: &SyncSender<Buffer>,
    progress: &dyn Fn(u64),
) -> Result<u64> {
    let mut written_bytes = 0;
    for Piece { offset, len, buf } in full {
        let data = buf.first(len);
        for (start, end) in nonzero_runs(data, granularity) {
            sink.write_at(&data[start..end], offset + start as u64)?;
            written_bytes += (end - start) as u64;
        }
        progress(offset + len as u64);
        // The reader may have ended already; then nobody needs the buffer.
        drop(empty.send(buf));
    }
    Ok(written_bytes)
}

/// Ranges of `data`, in whole granules (the last may be short), that are not all zeros; neighbours are joined.
fn nonzero_runs(data: &[u8], granularity: usize) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (index, granule) in data.chunks(granularity).enumerate() {
        if is_zero(granule) {
            continue;
        }
        let start = index * granularity;
        let end = start + granule.len();
        match runs.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => runs.push((start, end)),
        }
    }
    runs
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    let (lines, rest) = data.as_chunks::<64>();
    // Or-ing whole lines lets the compiler use vector registers.
    lines.iter().all(|line| line.iter().fold(0, |seen, byte| seen | byte) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Memory {
        data: Vec<u8>,
        zero: Vec<std::ops::Range<u64>>,
        reads: Vec<(u64, usize)>,
    }

    impl Source for Memory {
        fn len(&self) -> u64 {
            self.data.len() as u64
        }
        fn run_at(&mut self, offset: u64) -> Result<(Run, u64)> {
            if let Some(range) = self.zero.iter().find(|range| range.contains(&offset)) {
                return Ok((Run::Zero, range.end - offset));
            }
            let next = self.zero.iter().map(|range| range.start).filter(|start| *start > offset).min();
            Ok((Run::Data, next.unwrap_or(self.len()) - offset))
        }
        fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
            buf.copy_from_slice(&self.data[offset as usize..][..buf.len()]);
            self.reads.push((offset, buf.len()));
            Ok(())
        }
    }

    struct Written {
        granularity: usize,
        data: Vec<u8>,
        writes: Vec<(u64, usize)>,
        fail_at: Option<u64>,
    }

    impl Sink for Written {
        fn granularity(&self) -> usize {
            self.granularity
        }
        fn write_at(&mut self, buf: &[u8], offset: u64) -> Result<()> {
            if self.fail_at.is_some_and(|at| offset >= at) {
                return Err(Error::Output(std::io::Error::other("full")));
            }
            self.data[offset as usize..][..buf.len()].copy_from_slice(buf);
            self.writes.push((offset, buf.len()));
            Ok(())
        }
    }

    fn sink(len: usize, granularity: usize) -> Written {
        Written { granularity, data: vec![0; len], writes: vec![], fail_at: None }
    }

    fn run(source: &mut Memory, sink: &mut Written) -> Result<Copied> {
        copy(source, sink, &AtomicBool::new(false), &|_| ())
    }

    #[test]
    fn zeros_are_neither_read_nor_written() {
        let mut data = vec![0; 1 << 20];
        data[8192..12288].fill(7);
        data[20000] = 1;
        let mut source = Memory { data: data.clone(), zero: vec![0..8192, 65536..1 << 20], reads: vec![] };
        let mut out = sink(1 << 20, 4096);
        let copied = run(&mut source, &mut out).unwrap();
        assert_eq!(source.reads, [(8192, 57344)]);
        assert_eq!(out.writes, [(8192, 4096), (16384, 4096)]);
        assert_eq!(copied, Copied { read_bytes: 57344, written_bytes: 8192 });
        assert_eq!(out.data, data);
    }

    #[test]
    fn a_granule_is_written_once_however_the_source_is_cut() {
        let mut data = vec![0; 262_144 + 512];
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = u8::from(index % 8192 < 4096);
        }
        let holes = (0..32).map(|index| index * 8192 + 4096..(index + 1) * 8192).collect();
        let mut source = Memory { data: data.clone(), zero: holes, reads: vec![] };
        let mut out = sink(data.len(), 65536);
        run(&mut source, &mut out).unwrap();
        assert_eq!(out.data, data);
        let total: usize = out.writes.iter().map(|(_, len)| len).sum();
        assert_eq!(total, data.len());
    }

    #[test]
    fn long_data_comes_in_large_buffers() {
        let data = vec![3; 5 * BUFFER_LEN + 512];
        let mut source = Memory { data: data.clone(), zero: vec![], reads: vec![] };
        let mut out = sink(data.len(), 4096);
        run(&mut source, &mut out).unwrap();
        assert_eq!(source.reads.len(), 6);
        assert_eq!(out.writes.len(), 6);
        assert!(out.data == data);
    }

    #[test]
    fn a_failing_sink_ends_the_copy_with_its_error() {
        let mut source = Memory { data: vec![3; 32 * BUFFER_LEN], zero: vec![], reads: vec![] };
        let mut out = sink(source.data.len(), 4096);
        out.fail_at = Some(2 * BUFFER_LEN as u64);
        assert!(matches!(run(&mut source, &mut out), Err(Error::Output(_))));
        assert!(source.reads.len() < 16);
    }

    #[test]
    fn a_stopped_copy_says_so() {
        let mut source = Memory { data: vec![3; 4096], zero: vec![], reads: vec![] };
        let result = copy(&mut source, &mut sink(4096, 4096), &AtomicBool::new(true), &|_| ());
        assert!(matches!(result, Err(Error::Interrupted { .. })));
    }

    #[test]
    fn zero_detection_looks_at_every_byte() {
        for len in [0, 1, 63, 64, 65, 4096] {
            let mut data = vec![0; len];
            assert!(is_zero(&data));
            for at in 0..len {
                data[at] = 1;
                assert!(!is_zero(&data), "byte {at} of {len}");
                data[at] = 0;
            }
        }
    }
}
