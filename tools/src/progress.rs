//! The progress bar of long copies.
//!
//! Invariant: it is drawn on standard error, and only if that is a terminal. Does not: measure anything else than bytes.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const TEMPLATE: &str = "{msg} {wide_bar} {percent:>3}% of {binary_total_bytes}, {elapsed_precise}, {eta} left";

/// A bar from 0 to `len_bytes`; it draws nothing if nobody would see it.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Starts a bar; `message` stands before it.
    pub(crate) fn start(message: String, len_bytes: u64) -> Self {
        let target = if stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(len_bytes), target).with_message(message);
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// So many bytes of so many are done.
    pub(crate) fn is_at(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    /// `offset` has been reached.
    pub(crate) fn at(&self, offset: u64) {
        self.0.set_position(offset);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
