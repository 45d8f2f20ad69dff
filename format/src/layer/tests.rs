use super::*;
use crate::layout::entry::RawEntry;
use crate::units::ENTRIES_PER_PAGE;

fn layer(id: u64, link: Link, entries: &[(u32, RawEntry)]) -> Arc<Layer> {
    let layer = Layer::new(LayerId(id), 1 << 20, link, true);
    let mut raw = [RawEntry::default(); ENTRIES_PER_PAGE as usize];
    entries.iter().for_each(|&(chunk, entry)| raw[chunk as usize] = entry);
    let table = Table::new(SlabNo(id), 1, false);
    table.install(0, Page::from_raw(&raw));
    assert!(layer.add_table(0, table));
    Arc::new(layer)
}

fn resolved(top: &Arc<Layer>, chunk: u32) -> Vec<(BlockMask, Found)> {
    let mut found = Vec::new();
    resolve(top, ChunkNo(chunk), !0, |mask, place| found.push((mask, place))).unwrap();
    found
}

fn data(slab: u64, d: BlockMask, z: BlockMask) -> RawEntry {
    RawEntry { slab: SlabNo(slab), d, z }
}

// rules: MAP-1, MAP-12 — the nearest layer that has a block shows it; D counts before Z.
#[test]
fn each_block_comes_from_the_nearest_layer_that_has_it() {
    let bottom = layer(1, Link { parent: None, limit: 0 }, &[(0, data(50, 0b1111, 0))]);
    let top = layer(2, Link { parent: Some(bottom), limit: 1 << 20 }, &[(0, data(60, 0b0001, 0b0011))]);
    let found = resolved(&top, 0);
    assert_eq!(found[0], (0b0001, Found::Data(SlabNo(60))));
    assert_eq!(found[1], (0b1100, Found::Data(SlabNo(50))));
    assert_eq!(found[2], (!0b1101, Found::Zero));
}

// rule: MAP-16 — a page leaves memory only if it is home, unused, unclaimed, and no merge has moved an entry of it.
#[test]
fn a_page_stays_while_something_depends_on_it() {
    let page = Page::from_raw(&[RawEntry::default(); ENTRIES_PER_PAGE as usize]);
    let table = Table::new(SlabNo(9), 1, false);
    assert_eq!(table.evict(0), Evicted::Gone);
    let page = table.install(0, page);
    assert_eq!(table.evict(0), Evicted::Used);
    assert!(table.entry(ChunkNo(5)).is_some());
    assert_eq!(table.evict(0), Evicted::Used);
    assert!(page.mark_dirty());
    assert!(!page.mark_dirty());
    assert_eq!(table.evict(0), Evicted::Dirty);
    page.begin_home_write();
    assert_eq!(table.evict(0), Evicted::Dirty);
    assert!(page.mark_dirty());
    page.end_home_write();
    assert_eq!(table.evict(0), Evicted::Dirty);
    page.begin_home_write();
    page.end_home_write();
    page.entries[3].set_pending(1);
    assert_eq!(table.evict(0), Evicted::Used);
    page.entries[3].set_pending(0);
    page.entries[4].mark_dirty();
    assert_eq!(table.evict(0), Evicted::Used);
    page.entries[4].clear_dirty();
    assert!(table.is_current(0));
    assert_eq!(table.evict(0), Evicted::Gone);
    assert!(!table.is_current(0));
    let page = table.install(0, Page::from_raw(&[RawEntry::default(); ENTRIES_PER_PAGE as usize]));
    page.entries[5].mark_moved();
    for _ in 0..3 {
        assert_eq!(table.evict(0), Evicted::Used);
    }
}

// rule: MAP-2 — a directory takes each index of its size once, and costs little where it is empty.
#[test]
fn tables_are_found_by_index_in_a_large_layer() {
    let layer = Layer::new(LayerId(1), 1 << 50, Link { parent: None, limit: 0 }, true);
    let indexes = [0, 255, 256, 300_000, layer.table_limit() - 1];
    for index in indexes {
        assert!(layer.table(index).is_none());
        assert!(layer.add_table(index, Table::new(SlabNo(u64::from(index)), 0, false)));
        assert!(!layer.add_table(index, Table::new(SlabNo(1), 0, false)));
    }
    assert!(indexes.iter().all(|&index| layer.table(index).is_some_and(|table| table.slab.0 == u64::from(index))));
    assert!(layer.table(254).is_none());
    assert!(!layer.add_table(layer.table_limit(), Table::new(SlabNo(1), 0, false)));
    assert!(layer.table(u32::MAX).is_none());
}

// rule: LAY-6 — nothing of the parent shows beyond the limit.
#[test]
fn beyond_the_parent_limit_is_zero() {
    let bottom = layer(1, Link { parent: None, limit: 0 }, &[(0, data(50, !0, 0)), (1, data(51, !0, 0))]);
    let top = layer(2, Link { parent: Some(bottom), limit: 2 * BLOCK_LEN + 512 }, &[]);
    assert_eq!(resolved(&top, 0), [(0b111, Found::Data(SlabNo(50))), (!0b111, Found::Zero)]);
    assert_eq!(resolved(&top, 1), [(!0, Found::Zero)]);
}

#[test]
fn a_very_long_chain_is_dropped_without_recursion() {
    let mut top = layer(1, Link { parent: None, limit: 0 }, &[]);
    for id in 2..200_000 {
        top = Arc::new(Layer::new(LayerId(id), 1 << 20, Link { parent: Some(top), limit: 1 << 20 }, true));
    }
    drop(top);
}
