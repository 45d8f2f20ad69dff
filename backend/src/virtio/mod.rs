//! The virtio side: split ring, descriptor chains, block requests, statuses, configuration space.
//!
//! Everything here treats what the guest wrote as untrusted: it is read once, checked, and typed errors say what was
//! wrong. Sectors (512 bytes) exist only in this room. Does not: perform I/O, or know sessions and threads.

pub(crate) mod chain;
pub(crate) mod config_space;
pub(crate) mod request;
pub(crate) mod ring;
pub(crate) mod status;

#[cfg(test)]
mod request_tests;

/// Bytes in a sector, the unit of addresses in virtio-blk.
pub(crate) const SECTOR_LEN: u64 = 512;
