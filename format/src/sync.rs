//! The primitives through which threads meet, in one place so that tests can explore how they interleave.
//!
//! Role: the engine takes its locks, atomics, cells, swapped pointers, waiting and elapsed time from here. Usually they
//! are the standard library's and arc_swap's themselves. With `--cfg pitstop_interleavings` (`make interleavings`) they
//! are shuttle's: a scheduler then decides at each of them which thread goes on, and a seed repeats a run exactly. In
//! this crate's own tests under that cfg the atomics are loom's, which also knows what weak memory orders allow.
//!
//! `Arc` and `Weak` stay the standard library's: what other threads can tell from a count is its reaching zero, and the
//! points on either side of a drop (a lock, a swapped pointer, the disk) already let them look before and after it.
//! Does not: stand below `FileDisk`, which those tests do not use.

#[cfg(not(pitstop_interleavings))]
mod primitives {
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
    pub(crate) use std::thread;
    pub(crate) use std::time::Instant;

    pub(crate) use arc_swap::{ArcSwap, ArcSwapOption};
}

#[cfg(pitstop_interleavings)]
mod primitives {
    use std::sync::Arc;
    use std::time::Duration;

    use arc_swap::{Guard, RefCnt};
    pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use shuttle::thread;

    #[cfg(not(test))]
    pub(crate) use atomics::{AtomicBool, AtomicU8, AtomicU64};
    #[cfg(test)]
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};

    /// Any thread may go on from here.
    #[cfg(not(test))]
    fn point() {
        std::thread_local! {
            static ANY: shuttle::sync::atomic::AtomicBool = const { shuttle::sync::atomic::AtomicBool::new(false) };
        }
        ANY.with(|any| any.load(std::sync::atomic::Ordering::SeqCst));
    }

    /// loom has points of its own at its atomics.
    #[cfg(test)]
    fn point() {}

    /// Atomics with a point before each use. Plain ones are far smaller than shuttle's: a table page has 512.
    #[cfg(not(test))]
    mod atomics {
        use std::sync::atomic::{self, Ordering};

        use super::point;

        macro_rules! atomic {
            ($name:ident, $value:ty, $($method:ident),*) => {
                #[derive(Debug, Default)]
                pub(crate) struct $name(atomic::$name);

                impl $name {
                    pub(crate) const fn new(value: $value) -> Self {
                        Self(atomic::$name::new(value))
                    }

                    pub(crate) fn load(&self, order: Ordering) -> $value {
                        point();
                        self.0.load(order)
                    }

                    pub(crate) fn store(&self, value: $value, order: Ordering) {
                        point();
                        self.0.store(value, order);
                    }

                    $(pub(crate) fn $method(&self, value: $value, order: Ordering) -> $value {
                        point();
                        self.0.$method(value, order)
                    })*
                }
            };
        }

        atomic!(AtomicBool, bool, swap);
        atomic!(AtomicU8, u8, swap);
        atomic!(AtomicU64, u64, fetch_add, fetch_or, fetch_and);
    }

    /// A cell that is set once. What initialises it must not meet other threads itself.
    #[derive(Debug)]
    pub(crate) struct OnceLock<T>(std::sync::OnceLock<T>);

    impl<T> OnceLock<T> {
        pub(crate) const fn new() -> Self {
            Self(std::sync::OnceLock::new())
        }

        pub(crate) fn get(&self) -> Option<&T> {
            point();
            self.0.get()
        }

        pub(crate) fn set(&self, value: T) -> Result<(), T> {
            point();
            self.0.set(value)
        }

        pub(crate) fn get_or_init(&self, init: impl FnOnce() -> T) -> &T {
            point();
            self.0.get_or_init(init)
        }
    }

    /// A pointer that is swapped as a whole; arc_swap's own, with a point before each use.
    #[derive(Debug)]
    pub(crate) struct ArcSwapAny<T: RefCnt>(arc_swap::ArcSwapAny<T>);

    pub(crate) type ArcSwap<T> = ArcSwapAny<Arc<T>>;
    pub(crate) type ArcSwapOption<T> = ArcSwapAny<Option<Arc<T>>>;

    impl<T> ArcSwapAny<Option<Arc<T>>> {
        pub(crate) const fn const_empty() -> Self {
            Self(arc_swap::ArcSwapAny::const_empty())
        }
    }

    impl<T> ArcSwapAny<Arc<T>> {
        pub(crate) fn from_pointee(value: T) -> Self {
            Self::new(Arc::new(value))
        }
    }

    impl<T: RefCnt> ArcSwapAny<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(arc_swap::ArcSwapAny::new(value))
        }

        pub(crate) fn load(&self) -> Guard<T> {
            point();
            self.0.load()
        }

        pub(crate) fn load_full(&self) -> T {
            point();
            self.0.load_full()
        }

        pub(crate) fn store(&self, value: T) {
            point();
            self.0.store(value);
        }

        /// Without a point: it ends grace periods, right after the engine lock was taken, and unlinks layers that are
        /// dropped, as many and in such order as hash maps will.
        pub(crate) fn swap(&self, value: T) -> T {
            self.0.swap(value)
        }
    }

    /// A moment after which, each time somebody asks, no time has passed or very much, as the scheduler wills.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Instant;

    impl Instant {
        pub(crate) fn now() -> Self {
            Self
        }

        #[expect(clippy::unused_self, reason = "stands in for the standard library's")]
        pub(crate) fn elapsed(self) -> Duration {
            use shuttle::rand::Rng;
            Duration::from_secs(if shuttle::rand::thread_rng().r#gen() { 3600 } else { 0 })
        }
    }
}

pub(crate) use primitives::*;
