//! Ctrl-C and SIGTERM during a long copy.
//!
//! Invariant: the first signal asks the copy to stop and tidy up; a second one ends the program at once. A limit on file
//! sizes is an error of the write that meets it, never the end of the program (VOL-8). Does not: handle signals of short
//! commands, whose work is atomic anyway.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

/// Exit status of a program that two signals ended.
const INTERRUPTED_TWICE: i32 = 130;

/// From now on, a flag that becomes true when the program is asked to stop.
///
/// # Errors
/// The system's, if handlers cannot be set.
pub(crate) fn stop_flag() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // The order matters: the shutdown looks at the flag before the signal sets it.
        flag::register_conditional_shutdown(signal, INTERRUPTED_TWICE, Arc::clone(&stop))?;
        flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// From now on, a write beyond the limit on file sizes (RLIMIT_FSIZE) fails, as on a full file system.
///
/// # Errors
/// The system's, if the handler cannot be set.
pub(crate) fn survive_file_size_limit() -> io::Result<()> {
    flag::register(SIGXFSZ, Arc::default()).map(drop)
}
