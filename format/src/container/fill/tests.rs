//! What a fill claims while others gather changes.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::container::{CreateOptions, OpenMode};
use crate::io::VolumeIo;
use crate::testing::SimDisk;

// rules: LAY-31, JNL-8 — pieces that were read while others gathered changes are claimed as far as a batch takes them, and a
// guest's first write goes on.
#[test]
fn no_more_is_claimed_than_a_batch_takes() {
    let disk = SimDisk::new();
    Container::create(disk.clone(), &CreateOptions { journal_len_bytes: SLAB_LEN, ..Default::default() }).unwrap();
    let container = Container::open(disk, OpenMode::ReadWrite).unwrap();
    container.create_volume("golden", 400 * SLAB_LEN).unwrap();
    let golden = VolumeIo::new(&container, container.volume("golden").unwrap());
    for chunk in 0..200 {
        golden.write_at(&[1; 4096], chunk * SLAB_LEN).unwrap();
    }
    container.snapshot("golden", "ci").unwrap();
    let copy = container.hydrate("ci").unwrap().unwrap();
    let layer = container.shared.lock().layers[&copy].clone();
    container.shared.lock().fills.entry(copy).or_default();
    let pieces: Vec<Piece> =
        (0..200).map(|chunk| look(&layer, None, ChunkNo(chunk), &mut 0).unwrap().unwrap()).collect();
    let (slabs, hindrance) = container.claim_pieces(&layer, &pieces).unwrap();
    assert!(matches!(hindrance, Some(Hindrance::Space(HydrateWait::Others))));
    assert!((10..200).contains(&slabs.len()), "{} pieces", slabs.len());
    {
        let state = container.shared.lock();
        assert!(state.gathered() < state.ring.batch_limit() + 512 && !state.is_throttled());
    }
    assert!(container.publish_pieces(&layer, &pieces[..slabs.len()], false, 0));
    let state = container.shared.lock();
    assert!(state.gathered() < state.ring.batch_limit());
}
