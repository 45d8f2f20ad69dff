//! The steps of a map or of a difference, one after the other.
//!
//! Invariant: all are of the same heads (CTL-73): what they list belongs together. Does not: join, count or print.

use crate::error::{Error, Result};
use crate::maps::{DiffStepView, MapStepView};
use crate::session::{Session, Want};

/// What steps have in common.
pub(crate) trait Step {
    /// The heads that it is of; that of a single volume twice.
    fn heads(&self) -> [u64; 2];
    /// Where the next one begins.
    fn next(&self) -> Option<u64>;
}

impl Step for MapStepView {
    fn heads(&self) -> [u64; 2] {
        [self.head; 2]
    }

    fn next(&self) -> Option<u64> {
        self.next
    }
}

impl Step for DiffStepView {
    fn heads(&self) -> [u64; 2] {
        [self.a_head, self.b_head]
    }

    fn next(&self) -> Option<u64> {
        self.next
    }
}

/// Fetches steps from the first byte to the end.
///
/// Ends with [`Error::Moved`] when a volume has got another head.
pub(crate) struct Steps<'a, S> {
    fetch: Box<dyn FnMut(u64) -> Result<S> + 'a>,
    volumes: Vec<&'a str>,
    heads: Option<[u64; 2]>,
    next: Option<u64>,
}

impl<'a> Steps<'a, MapStepView> {
    /// The map of volume `name`.
    pub(crate) fn of_map(session: &'a mut dyn Session, name: &'a str, want: Want) -> Self {
        Self::new(vec![name], move |start| session.map(name, start, want))
    }
}

impl<'a> Steps<'a, DiffStepView> {
    /// The difference of volumes `a` and `b`.
    pub(crate) fn of_difference(session: &'a mut dyn Session, a: &'a str, b: &'a str, want: Want) -> Self {
        Self::new(vec![a, b], move |start| session.diff(a, b, start, want))
    }
}

impl<'a, S> Steps<'a, S> {
    fn new(volumes: Vec<&'a str>, fetch: impl FnMut(u64) -> Result<S> + 'a) -> Self {
        Self { fetch: Box::new(fetch), volumes, heads: None, next: Some(0) }
    }
}

impl<S: Step> Iterator for Steps<'_, S> {
    type Item = Result<S>;

    fn next(&mut self) -> Option<Result<S>> {
        let start = self.next.take()?;
        let step = match (self.fetch)(start) {
            Ok(step) => step,
            Err(error) => return Some(Err(error)),
        };
        if *self.heads.get_or_insert(step.heads()) != step.heads() {
            let volumes = self.volumes.iter().map(|name| (*name).to_owned()).collect();
            return Some(Err(Error::Moved { volumes }));
        }
        self.next = step.next();
        Some(Ok(step))
    }
}
