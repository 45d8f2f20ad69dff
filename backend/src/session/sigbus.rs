//! Survives a front end that truncates the file behind its guest memory.
//!
//! A load or store in a mapped page that the file no longer has raises SIGBUS, which would end the daemon and every
//! guest with it. The handler here looks the address up among the registered guest regions, maps zeroed memory over the
//! whole region, and marks it lost, so that its session ends. A SIGBUS anywhere else keeps its usual effect.
//!
//! Invariant: a region is registered for as long as it is mapped, and not longer. The table is made of atomics and the
//! handler only reads them and calls `mmap`, both allowed in a signal handler.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Most guest regions in the process.
const MAX_REGIONS: usize = 8192;

struct Slot {
    taken: AtomicBool,
    /// Address; 0 while the slot is not in use. Stored last, cleared first.
    start: AtomicUsize,
    len: AtomicUsize,
    lost: AtomicBool,
}

#[expect(clippy::declare_interior_mutable_const, reason = "only the start value of the array below")]
const FREE: Slot = Slot {
    taken: AtomicBool::new(false),
    start: AtomicUsize::new(0),
    len: AtomicUsize::new(0),
    lost: AtomicBool::new(false),
};

static SLOTS: [Slot; MAX_REGIONS] = [FREE; MAX_REGIONS];

/// A region whose loss is survived; deregisters when dropped, which must happen before it is unmapped.
#[derive(Debug)]
pub(crate) struct Registration {
    index: usize,
}

impl Registration {
    /// Registers the mapping of `len` bytes at `start`. `None` if there are too many regions.
    pub(crate) fn new(start: *const u8, len: usize) -> Option<Self> {
        let take = |slot: &Slot| slot.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let index = SLOTS.iter().position(take)?;
        let slot = &SLOTS[index];
        slot.len.store(len, Ordering::Relaxed);
        slot.lost.store(false, Ordering::Relaxed);
        slot.start.store(start as usize, Ordering::Release);
        Some(Registration { index })
    }

    /// Whether the front end took the memory away.
    pub(crate) fn is_lost(&self) -> bool {
        SLOTS[self.index].lost.load(Ordering::Acquire)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let slot = &SLOTS[self.index];
        slot.start.store(0, Ordering::Release);
        slot.taken.store(false, Ordering::Release);
    }
}

/// Installs the handler for the whole process.
pub(crate) fn install() -> io::Result<()> {
    // SAFETY: sigaction is plain old data, for which zeros are valid; `on_sigbus` has the signature that SA_SIGINFO
    // asks for and calls only what a signal handler may.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo_t, whose address field is set for SIGBUS.
    let address = unsafe { (*info).si_addr() } as usize;
    if replace_region_at(address) {
        return;
    }
    // Not ours: give the signal its default effect; the faulting instruction raises it again.
    // SAFETY: setting a disposition to the default is allowed in a handler.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Maps zeros over the registered region that holds `address`.
fn replace_region_at(address: usize) -> bool {
    for slot in &SLOTS {
        let start = slot.start.load(Ordering::Acquire);
        let len = slot.len.load(Ordering::Relaxed);
        if start == 0 || !(start..start.saturating_add(len)).contains(&address) {
            continue;
        }
        slot.lost.store(true, Ordering::Release);
        // SAFETY: the range is a mapping of guest memory that stays registered while it is mapped, and which is only
        // accessed as volatile bytes: replacing its pages breaks nobody's assumption.
        let mapped = unsafe {
            libc::mmap(
                start as *mut libc::c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        return mapped != libc::MAP_FAILED;
    }
    false
}
