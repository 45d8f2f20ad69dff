//! Listings of ranges that come step by step, from the file or from a daemon.
//!
//! Invariant: each range is printed as soon as it is known to have ended, so that a listing of any length takes no memory;
//! ranges that a step has cut are one again. Does not: fetch the steps.

use serde::Serialize;

use crate::error::Result;
use crate::maps::{ChangedInView, ContentView, DiffRangeView, MapRangeView};
use crate::render::{self, Output};

/// Bytes of a volume of which the same is said.
pub(crate) trait Range: Serialize + Copy + PartialEq {
    /// Heads the table for people.
    const HEADING: &'static str;
    /// First byte, and bytes.
    fn place(&mut self) -> (&mut u64, &mut u64);
    /// Line of the table.
    fn row(&self) -> String;

    /// Takes in `next` if it follows at once and says the same.
    fn join(&mut self, next: &Self) -> bool {
        let (start, length) = self.place();
        let (start, length) = (*start, *length);
        let mut same = *next;
        let (next_start, next_length) = same.place();
        let (follows, more) = (start.checked_add(length) == Some(*next_start), *next_length);
        (*next_start, *next_length) = (start, length);
        let joins = follows && same == *self;
        if joins {
            *self.place().1 = length.saturating_add(more);
        }
        joins
    }
}

impl Range for MapRangeView {
    const HEADING: &'static str = "          START          LENGTH  STATE";

    fn place(&mut self) -> (&mut u64, &mut u64) {
        (&mut self.start, &mut self.length)
    }

    fn row(&self) -> String {
        let owner = match (self.valid, self.content) {
            (true, ContentView::Data) => "own data",
            (false, ContentView::Data) => "others' data",
            (true, _) => "zeros",
            (false, _) => "others' zeros",
        };
        let modified = if self.modified { ", modified" } else { "" };
        let to_copy = if self.to_copy { ", to be copied" } else { "" };
        format!("{:>15} {:>15}  {owner}{modified}{to_copy}", self.start, self.length)
    }
}

impl Range for DiffRangeView {
    const HEADING: &'static str = "          START          LENGTH  CHANGED IN  A     B";

    fn place(&mut self) -> (&mut u64, &mut u64) {
        (&mut self.start, &mut self.length)
    }

    fn row(&self) -> String {
        let word = |content| match content {
            ContentView::Data => "data",
            ContentView::Zero => "zeros",
            ContentView::None => "-",
        };
        let changed_in = match self.changed_in {
            ChangedInView::A => "a",
            ChangedInView::B => "b",
            ChangedInView::Both => "both",
        };
        format!("{:>15} {:>15}  {changed_in:10}  {:5} {}", self.start, self.length, word(self.a), word(self.b))
    }
}

/// A listing on its way to standard output.
#[derive(Debug)]
pub(crate) struct Printer<R> {
    output: Output,
    /// The last range, which may go on.
    open: Option<R>,
    printed: u64,
}

impl<R: Range> Printer<R> {
    /// Begins a listing.
    pub(crate) const fn new(output: Output) -> Self {
        Self { output, open: None, printed: 0 }
    }

    /// Adds the ranges of the next step.
    pub(crate) fn add(&mut self, ranges: &[R]) -> Result<()> {
        let mut text = String::new();
        for range in ranges {
            if self.open.as_mut().is_some_and(|open| open.join(range)) {
                continue;
            }
            if let Some(ended) = self.open.replace(*range) {
                text.push_str(&self.line(&ended)?);
            }
        }
        render::print(&text)
    }

    /// Ends the listing with `totals`, for people as `text`.
    pub(crate) fn end(mut self, totals: &impl Serialize, text: &str) -> Result<()> {
        let last = match self.open.take() {
            Some(range) => self.line(&range)?,
            None => String::new(),
        };
        let end = match self.output {
            Output::Human => text.to_owned(),
            Output::Json => {
                let begin = if self.printed == 0 { "{\"ranges\": [" } else { "\n" };
                let members = serde_json::to_string(totals)?;
                format!("{begin}], {}\n", members.strip_prefix('{').unwrap_or(&members))
            }
        };
        render::print(&(last + &end))
    }

    fn line(&mut self, range: &R) -> Result<String> {
        self.printed += 1;
        let first = self.printed == 1;
        Ok(match self.output {
            Output::Human if first => format!("{}\n{}\n", R::HEADING, range.row()),
            Output::Human => format!("{}\n", range.row()),
            Output::Json => {
                let begin = if first { "{\"ranges\": [\n" } else { ",\n" };
                format!("{begin}{}", serde_json::to_string(range)?)
            }
        })
    }
}
