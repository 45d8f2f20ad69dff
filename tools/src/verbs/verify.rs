//! The argument `--verify` of several verbs.

use clap::ValueEnum;
use pitstop_format::Verify;

/// What is done so that damaged data of a volume is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum VerifyArg {
    /// Nothing is sealed for it
    Off,
    /// What is frozen of it (by a snapshot or refresh) is sealed, and verified whenever it is copied
    Copy,
    /// As copy, and what guests read of it is verified as far as it is sealed: one that is damaged gets an I/O error
    Always,
}

impl From<VerifyArg> for Verify {
    fn from(arg: VerifyArg) -> Self {
        match arg {
            VerifyArg::Off => Self::Off,
            VerifyArg::Copy => Self::Copy,
            VerifyArg::Always => Self::Always,
        }
    }
}
