//! The bytes of a simulated disk: sparse, copied on write, cheap to clone.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::crash::SECTOR;

const PAGE: usize = 4096;
const PAGES: usize = 64;
/// Bytes of a node.
const NODE: u64 = (PAGE * PAGES) as u64;

type Page = [u8; PAGE];
type Node = [Option<Arc<Page>>; PAGES];

/// Sparse bytes; what was never written reads as zeros.
#[derive(Debug, Clone, Default)]
pub(super) struct Pages(BTreeMap<u64, Arc<Node>>);

/// The pieces of `offset..offset + len` that lie in one page each: node, page, offset in the page, range in the buffer.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < len).then(|| {
            let at = offset + done as u64;
            let within = (at % PAGE as u64) as usize;
            let piece = done..(done + PAGE - within).min(len);
            done = piece.end;
            (at / NODE, (at % NODE) as usize / PAGE, within, piece)
        })
    })
}

impl Pages {
    fn page(&self, node: u64, page: usize) -> Option<&Page> {
        self.0.get(&node)?[page].as_deref()
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) {
        for (node, page, within, piece) in pieces(offset, buf.len()) {
            let buf = &mut buf[piece];
            match self.page(node, page) {
                Some(page) => buf.copy_from_slice(&page[within..within + buf.len()]),
                None => buf.fill(0),
            }
        }
    }

    pub(super) fn write(&mut self, buf: &[u8], offset: u64) {
        for (node, page, within, piece) in pieces(offset, buf.len()) {
            let buf = &buf[piece];
            let node = self.0.entry(node).or_insert_with(|| Arc::new([const { None }; PAGES]));
            let page = Arc::make_mut(node)[page].get_or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..within + buf.len()].copy_from_slice(buf);
        }
    }

    /// The sector at `offset`, unless it was never written.
    pub(super) fn sector(&self, offset: u64) -> Option<&[u8]> {
        let (node, page, within, _) = pieces(offset, SECTOR).next()?;
        self.page(node, page).map(|page| &page[within..within + SECTOR])
    }

    /// Whether both hold the same bytes, written or not.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same = |node: &u64| {
            let both = (self.0.get(node), other.0.get(node));
            matches!(both, (Some(a), Some(b)) if Arc::ptr_eq(a, b))
                || (0..PAGES).all(|page| match (self.page(*node, page), other.page(*node, page)) {
                    (Some(a), Some(b)) => a == b,
                    (Some(only), None) | (None, Some(only)) => only.iter().all(|byte| *byte == 0),
                    (None, None) => true,
                })
        };
        self.0.keys().chain(other.0.keys()).all(same)
    }

    pub(super) fn truncate(&mut self, len: u64) {
        self.0.retain(|node, _| node * NODE < len);
        let Some(node) = self.0.get_mut(&(len / NODE)) else {
            return;
        };
        let kept = (len % NODE) as usize;
        let node = Arc::make_mut(node);
        for page in &mut node[kept.div_ceil(PAGE)..] {
            *page = None;
        }
        if let Some(page) = node[kept / PAGE].as_mut().filter(|_| !kept.is_multiple_of(PAGE)) {
            Arc::make_mut(page)[kept % PAGE..].fill(0);
        }
    }
}
