//! What is measured, against whom, and what is to be reached: the data path's rows of the targets.
//!
//! Invariant: a reference is measured in the same repetition as what is compared with it. Does not: start or measure
//! anything, which [`crate::run`] does.

/// The file system that a work's files lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Area {
    /// The file system of `--folder`.
    Disk,
    /// A file system in memory.
    Memory,
}

impl Area {
    /// The name of its records' group.
    pub(crate) const fn group(self) -> &'static str {
        match self {
            Area::Disk => "ext4",
            Area::Memory => "tmpfs",
        }
    }
}

/// Who does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Backend {
    /// fio with io_uring on a raw file, one system call a request.
    Fio,
    /// The same with 16 requests a system call.
    FioBatched,
    /// The raw file by way of another thread, and nothing more: what no backend that sleeps can pass.
    HandOver,
    /// qemu-storage-daemon on a raw file.
    QsdRaw,
    /// qemu-storage-daemon on a qcow2 image with clusters of 64 KiB.
    QsdQcow2,
    /// qemu-storage-daemon on a new qcow2 overlay with extended L2 entries, over a golden raw image.
    QsdOverlay,
    /// qemu-storage-daemon without storage: what the protocol allows.
    NullCo,
    /// pitstopd.
    Pitstop,
}

impl Backend {
    /// Its name in records and tables.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Backend::Fio => "fio",
            Backend::FioBatched => "fio-batched",
            Backend::HandOver => "hand-over",
            Backend::QsdRaw => "qsd-raw",
            Backend::QsdQcow2 => "qsd-qcow2",
            Backend::QsdOverlay => "qsd-extl2",
            Backend::NullCo => "null-co",
            Backend::Pitstop => "pitstop",
        }
    }
}

/// What the volume holds when the work begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Contents {
    /// Blocks of its own everywhere.
    Own,
    /// Golden's blocks everywhere, after a refresh; space for its own has been used before, and is free again.
    Refreshed,
    /// Golden's blocks everywhere; space for its own is taken from a part of the file that was never written.
    Fresh,
}

/// In which order blocks are touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Any block, again and again.
    Random,
    /// One after the other.
    Sequential,
    /// Any block, but none twice.
    Once,
}

/// The requests of a work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Bytes of a request.
    pub(crate) block_len_bytes: u64,
    /// Requests under way.
    pub(crate) depth: u32,
    /// Reads of a hundred requests.
    pub(crate) read_percent: u8,
    /// Order.
    pub(crate) pattern: Pattern,
    /// A flush after so many requests; 0: none.
    pub(crate) flush_every: u32,
    /// Ends after so many bytes instead of after some seconds.
    pub(crate) total_len_bytes: Option<u64>,
}

/// A load and the backends that carry it, in the order in which they take turns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    /// Name in records, charts and `--only`.
    pub(crate) name: &'static str,
    /// Where its files lie.
    pub(crate) area: Area,
    /// What pitstop's volume holds.
    pub(crate) contents: Contents,
    /// The requests.
    pub(crate) shape: Shape,
    /// Who carries it.
    pub(crate) backends: &'static [Backend],
}

const READ: Shape = Shape {
    block_len_bytes: 4096,
    depth: 32,
    read_percent: 100,
    pattern: Pattern::Random,
    flush_every: 0,
    total_len_bytes: None,
};
const WRITE: Shape = Shape { read_percent: 0, ..READ };
const STREAM: Shape = Shape { block_len_bytes: 128 << 10, depth: 8, pattern: Pattern::Sequential, ..READ };
// Everybody writes the same number of blocks: in a fixed time the faster one would get to where less is left to allocate.
const FIRST: Shape = Shape { pattern: Pattern::Once, total_len_bytes: Some(128 << 20), ..WRITE };

/// Every work of the data path.
pub(crate) const WORKS: &[Work] = {
    use Backend::{Fio, FioBatched, HandOver, NullCo, Pitstop, QsdOverlay, QsdQcow2, QsdRaw};
    const fn own(name: &'static str, shape: Shape, backends: &'static [Backend]) -> Work {
        Work { name, area: Area::Disk, contents: Contents::Own, shape, backends }
    }
    const fn refreshed(name: &'static str, shape: Shape, backends: &'static [Backend]) -> Work {
        Work { name, area: Area::Disk, contents: Contents::Refreshed, shape, backends }
    }
    &[
        own("randread-4k-d32", READ, &[Fio, FioBatched, HandOver, QsdRaw, QsdQcow2, Pitstop]),
        refreshed("randread-4k-d32-virtual", READ, &[QsdOverlay, Pitstop]),
        own("randread-4k-d1", Shape { depth: 1, ..READ }, &[Fio, HandOver, QsdRaw, QsdQcow2, Pitstop]),
        own("randwrite-4k-d1", Shape { depth: 1, ..WRITE }, &[Fio, HandOver, QsdRaw, QsdQcow2, Pitstop]),
        own("randwrite-4k-d32", WRITE, &[Fio, HandOver, QsdRaw, QsdQcow2, Pitstop]),
        own("read-128k-d8", STREAM, &[Fio, HandOver, QsdRaw, QsdQcow2, Pitstop]),
        own("write-128k-d8", Shape { read_percent: 0, ..STREAM }, &[Fio, HandOver, QsdRaw, QsdQcow2, Pitstop]),
        own(
            "randwrite-4k-d1-flush",
            Shape { depth: 1, flush_every: 1, ..WRITE },
            &[Fio, HandOver, QsdRaw, QsdQcow2, Pitstop],
        ),
        refreshed("first-4k-d32", FIRST, &[QsdOverlay, Pitstop]),
        Work {
            name: "first-4k-d32-fresh",
            area: Area::Disk,
            contents: Contents::Fresh,
            shape: FIRST,
            backends: &[Pitstop],
        },
        refreshed(
            "first-64k-d32",
            Shape { block_len_bytes: 64 << 10, total_len_bytes: Some(1 << 30), ..FIRST },
            &[QsdOverlay, Pitstop],
        ),
        refreshed("first-4k-d32-flush32", Shape { flush_every: 32, ..FIRST }, &[QsdOverlay, Pitstop]),
        Work {
            name: "tmpfs-randread-4k-d32",
            area: Area::Memory,
            contents: Contents::Own,
            shape: READ,
            backends: &[NullCo, Fio, HandOver, QsdRaw, Pitstop],
        },
        Work {
            name: "tmpfs-first-4k-d32",
            area: Area::Memory,
            contents: Contents::Refreshed,
            shape: Shape { total_len_bytes: Some(1 << 30), ..FIRST },
            backends: &[NullCo, QsdOverlay, Pitstop],
        },
    ]
};

/// The number of a run that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Requests a second.
    Rate,
    /// 99 of 100 requests take no longer.
    P99,
    /// The backend's CPU time a request.
    Cpu,
}

/// The bound of a ratio.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Goal {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Goal {
    /// Whether `ratio` reaches it.
    pub(crate) fn is_met(self, ratio: f64) -> bool {
        match self {
            Goal::AtLeast(bound) => ratio >= bound,
            Goal::AtMost(bound) => ratio <= bound,
        }
    }

    /// The bound.
    pub(crate) fn bound(self) -> f64 {
        match self {
            Goal::AtLeast(bound) | Goal::AtMost(bound) => bound,
        }
    }
}

/// A ratio to reach: pitstop's number in one work to that of another run in the same repetition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// What a reader calls it.
    pub(crate) title: &'static str,
    /// Pitstop's work.
    pub(crate) work: &'static str,
    /// The other run's work.
    pub(crate) against_work: &'static str,
    /// The other run's backend.
    pub(crate) against: Backend,
    /// What is compared.
    pub(crate) measure: Measure,
    /// What is to be reached.
    pub(crate) goal: Goal,
}

/// Every target of the data path.
pub(crate) const TARGETS: &[Target] = {
    use Backend::{Fio, FioBatched, NullCo, Pitstop, QsdOverlay, QsdQcow2, QsdRaw};
    use Goal::{AtLeast, AtMost};
    use Measure::{Cpu, P99, Rate};
    const fn row(title: &'static str, work: &'static str, measure: Measure, against: Backend, goal: Goal) -> Target {
        Target { title, work, against_work: work, against, measure, goal }
    }
    const fn to(against_work: &'static str, target: Target) -> Target {
        Target { against_work, ..target }
    }
    const READ_32: &str = "randread-4k-d32";
    const VIRTUAL: &str = "randread-4k-d32-virtual";
    const VIRTUAL_TITLE: &str = "the same through a virtual volume";
    const FIRST_4K: &str = "first-4k-d32";
    const FRESH: &str = "first-4k-d32-fresh";
    &[
        row("4 KiB random read, depth 32", READ_32, Rate, Fio, AtLeast(1.0)),
        row("4 KiB random read, depth 32", READ_32, Rate, FioBatched, AtLeast(0.85)),
        to(READ_32, row(VIRTUAL_TITLE, VIRTUAL, Rate, Fio, AtLeast(1.0))),
        to(READ_32, row(VIRTUAL_TITLE, VIRTUAL, Rate, FioBatched, AtLeast(0.85))),
        row("4 KiB random read, depth 1", "randread-4k-d1", Rate, Fio, AtLeast(0.85)),
        row("CPU time a 4 KiB random read, depth 1", "randread-4k-d1", Cpu, QsdRaw, AtMost(1.0)),
        row("4 KiB random write, depth 1", "randwrite-4k-d1", Rate, Fio, AtLeast(0.85)),
        row("4 KiB random write, depth 32", "randwrite-4k-d32", Rate, Fio, AtLeast(0.95)),
        row("128 KiB sequential read, depth 8", "read-128k-d8", Rate, Fio, AtLeast(0.95)),
        row("128 KiB sequential write, depth 8", "write-128k-d8", Rate, Fio, AtLeast(0.90)),
        row("4 KiB random write, a flush after each, depth 1", "randwrite-4k-d1-flush", Rate, Fio, AtLeast(0.90)),
        row("first write 4 KiB, depth 32, recycled space", FIRST_4K, Rate, QsdOverlay, AtLeast(4.0)),
        to(
            "randwrite-4k-d32",
            row("first write 4 KiB, depth 32, recycled space", FIRST_4K, Rate, Pitstop, AtLeast(0.8)),
        ),
        to(FIRST_4K, row("first write 4 KiB, depth 32, fresh space", FRESH, Rate, QsdOverlay, AtLeast(2.0))),
        row("first write 64 KiB, depth 32", "first-64k-d32", Rate, QsdOverlay, AtLeast(2.0)),
        row("first write 4 KiB, a flush every 32", "first-4k-d32-flush32", Rate, QsdOverlay, AtLeast(3.0)),
        row("p99 latency of first writes, depth 32", FIRST_4K, P99, QsdOverlay, AtMost(0.25)),
        row("CPU time a 4 KiB random read, depth 32", READ_32, Cpu, QsdQcow2, AtMost(0.45)),
        row("tmpfs: 4 KiB random read, depth 32", "tmpfs-randread-4k-d32", Rate, NullCo, AtLeast(0.55)),
        row("tmpfs: first write 4 KiB, depth 32", "tmpfs-first-4k-d32", Rate, NullCo, AtLeast(0.40)),
    ]
};

#[cfg(test)]
mod tests {
    use super::{Backend, TARGETS, WORKS};

    fn is_measured(name: &str, backend: Backend) -> bool {
        WORKS.iter().any(|work| work.name == name && work.backends.contains(&backend))
    }

    #[test]
    fn both_sides_of_every_target_are_measured() {
        for target in TARGETS {
            assert!(is_measured(target.work, Backend::Pitstop), "{}", target.work);
            assert!(is_measured(target.against_work, target.against), "{}", target.title);
        }
    }
}
