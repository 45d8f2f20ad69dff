//! The log on standard error, which nobody may be reading.
//!
//! A reader that has stopped (a full pipe, a terminal that is held) must never stop a queue: what cannot be written at
//! once is dropped, and the next line that can be written says how many were. Written by the thread that logs, so that
//! nothing is lost when the process aborts. Does not: filter or format (`env_logger`).

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};

/// Longest piece written at once: a pipe that is ready takes as much without waiting (PIPE_BUF).
const PIECE_LEN: usize = 4096;

/// Standard error, without waiting for it.
#[derive(Debug)]
pub(crate) struct PatientStderr {
    fd: RawFd,
    /// It is a file, where writing waits for nobody but the disk.
    is_file: bool,
    /// Messages that were dropped since the last one that was written.
    dropped: u64,
    /// The last message was cut off in the middle.
    torn: bool,
}

impl Default for PatientStderr {
    fn default() -> Self {
        Self::of(io::stderr().as_raw_fd())
    }
}

impl PatientStderr {
    /// For the open descriptor `fd`.
    fn of(fd: RawFd) -> Self {
        let kind = std::fs::metadata(format!("/proc/self/fd/{fd}"));
        PatientStderr { fd, is_file: kind.is_ok_and(|kind| kind.is_file()), dropped: 0, torn: false }
    }

    /// Writes what can be written without waiting; returns how much that was.
    fn write_at_once(&self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while let Some(piece) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let piece = &piece[..piece.len().min(PIECE_LEN)];
            match self.write_piece(piece) {
                0 => break,
                written => done += written,
            }
        }
        done
    }

    /// Writes a piece if it can be written now; 0 if not.
    fn write_piece(&self, piece: &[u8]) -> usize {
        if self.is_file {
            return self.write_waiting(piece);
        }
        let mut polled = libc::pollfd { fd: self.fd, events: libc::POLLOUT, revents: 0 };
        // SAFETY: one pollfd, which lives until the call returns.
        if unsafe { libc::poll(&raw mut polled, 1, 0) } <= 0 || polled.revents & libc::POLLOUT == 0 {
            return 0;
        }
        // Others may write to the same pipe, so being ready is no promise: where the kernel can, it is asked not to wait.
        let vector = libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
        // SAFETY: the vector names `piece`, which lives until the call returns and is only read.
        let written = unsafe { libc::pwritev2(self.fd, &raw const vector, 1, -1, libc::RWF_NOWAIT) };
        if written < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP) {
            return self.write_waiting(piece);
        }
        usize::try_from(written).unwrap_or(0)
    }

    fn write_waiting(&self, piece: &[u8]) -> usize {
        // SAFETY: `piece` is valid for its length.
        let written = unsafe { libc::write(self.fd, piece.as_ptr().cast(), piece.len()) };
        usize::try_from(written).unwrap_or(0)
    }
}

impl Write for PatientStderr {
    /// Takes one message. Never fails: there is nowhere to tell it.
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        if self.dropped > 0 || self.torn {
            let newline = if self.torn { "\n" } else { "" };
            let told = format!("{newline}[{} log messages were dropped: nobody read them]\n", self.dropped);
            if self.write_at_once(told.as_bytes()) < told.len() {
                self.dropped += 1;
                return Ok(message.len());
            }
            (self.dropped, self.torn) = (0, false);
        }
        let written = self.write_at_once(message);
        if written < message.len() {
            self.dropped += 1;
            self.torn = written > 0;
        }
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_pipe_that_nobody_reads_costs_messages_and_no_time() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut log = PatientStderr::of(writer.as_raw_fd());
        for number in 0..5000 {
            log.write_all(format!("message {number:0100}\n").as_bytes()).unwrap();
        }
        assert!(log.dropped > 1000, "a pipe does not hold that much");
        let dropped = log.dropped;
        let mut bytes = vec![0; 1 << 20];
        let count = reader.read(&mut bytes).unwrap();
        log.write_all(b"after\n").unwrap();
        drop(writer);
        let mut rest = String::from_utf8(bytes[..count].to_vec()).unwrap();
        reader.read_to_string(&mut rest).unwrap();
        assert!(rest.ends_with("nobody read them]\nafter\n"), "{}", &rest[rest.len() - 200..]);
        assert!(rest.contains(&format!("[{dropped} log messages were dropped")));
        assert!(rest.starts_with(&format!("message {:0100}\n", 0)));
    }
}
