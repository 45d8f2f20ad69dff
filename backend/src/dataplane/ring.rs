//! io_uring for one thread: entries in, completions out, one wait for everything.
//!
//! Completed work of the kernel is deferred to the thread's own calls where the kernel can (6.1 and later), so nothing
//! interrupts it. Invariant: an entry is pushed or reported as not pushed, never lost. Does not: know what the entries
//! mean, or keep their memory alive (the caller's duty).

use std::io;

use io_uring::{IoUring, cqueue, squeue};

const SUBMISSION_ENTRIES: u32 = 256;
const COMPLETION_ENTRIES: u32 = 1024;

/// One thread's ring.
pub(crate) struct Ring {
    uring: IoUring,
}

impl Ring {
    /// Makes a ring, to be used by the calling thread only.
    pub(crate) fn new() -> io::Result<Self> {
        let deferred = IoUring::builder()
            .setup_cqsize(COMPLETION_ENTRIES)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(SUBMISSION_ENTRIES);
        let uring = match deferred {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                IoUring::builder().setup_cqsize(COMPLETION_ENTRIES).build(SUBMISSION_ENTRIES)?
            }
            made => made?,
        };
        Ok(Ring { uring })
    }

    /// Queues an entry; `false` if the queue is full even after submitting what is in it.
    ///
    /// # Safety
    /// Memory and descriptors named in the entry must stay valid until its completion has been taken.
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<bool> {
        // SAFETY: the caller vouches for the entry.
        if unsafe { self.uring.submission().push(entry) }.is_ok() {
            return Ok(true);
        }
        self.submit()?;
        // SAFETY: as above.
        Ok(unsafe { self.uring.submission().push(entry) }.is_ok())
    }

    /// Submits what is queued and runs deferred work, without waiting and without a system call if there is nothing.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        let queue = self.uring.submission();
        if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
            return Ok(());
        }
        drop(queue);
        tolerate(self.uring.submit())
    }

    /// Submits what is queued and sleeps until something has completed.
    pub(crate) fn wait(&mut self) -> io::Result<()> {
        tolerate(self.uring.submit_and_wait(1))
    }

    /// Takes completions, `most` of them at most: user data and result.
    pub(crate) fn take_completions(&mut self, most: usize, into: &mut Vec<(u64, i32)>) {
        let taken = self.uring.completion().take(most);
        into.extend(taken.map(|entry: cqueue::Entry| (entry.user_data(), entry.result())));
    }
}

/// Errors that only mean "later": the entries stay queued and the next call tries again.
fn tolerate(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::EBUSY) => Ok(()),
            Some(libc::EAGAIN) => {
                std::thread::yield_now(); // the kernel is short of memory
                Ok(())
            }
            _ => Err(error),
        },
    }
}
