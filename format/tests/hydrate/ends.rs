//! Commands on the volume, its source and its copies while it is being hydrated.

use pitstop_format::{Error, HydrateEnd, HydrateStep, SLAB_LEN, VolumeState};

use crate::support::*;

// rule: LAY-35
#[test]
fn giving_up_leaves_the_volume_virtual_and_whole() {
    let (disk, container) = golden_and_ci();
    let before = contents(&container, "ci");
    let depth = find(&container, "ci").depth;
    // At once: the layer goes.
    let layer_id = container.hydrate("ci").unwrap().unwrap();
    container.cancel_hydration(layer_id).unwrap();
    assert_eq!((find(&container, "ci").depth, state(&container, "ci")), (depth, VolumeState::Virtual));
    assert_eq!(container.hydrate_step(layer_id, ALL).unwrap(), HydrateStep::Ended(HydrateEnd::Cancelled));
    // After a while: what was copied stays, and is not copied again.
    let ended = layer_id;
    let layer_id = container.hydrate("ci").unwrap().unwrap();
    // An order to the one that has ended does not reach the one that goes on.
    assert!(matches!(container.cancel_hydration(ended), Err(Error::NotHydrating { layer }) if layer == ended));
    assert!(matches!(container.set_hydration(ended, true, 1), Err(Error::NotHydrating { .. })));
    assert!(!container.hydrations()[0].paused);
    container.hydrate_step(layer_id, 3 * SLAB_LEN).unwrap();
    container.cancel_hydration(layer_id).unwrap();
    assert_eq!(layer(&container, layer_id).unwrap().kind, "frozen");
    assert_eq!((contents(&container, "ci"), state(&container, "ci")), (before.clone(), VolumeState::Virtual));
    container.settle(1000).unwrap();
    assert_eq!(hydrated(&container, "ci"), 3 * SLAB_LEN + 6 * BLOCK);
    container.delete_volume("golden").unwrap();
    container.settle(1000).unwrap();
    assert_eq!(contents(&container, "ci"), before);
    assert_eq!(find(&container, "ci").depth, 1, "what both hydrations copied has been merged");
    assert_clean(&disk, container);
}

// rules: LAY-5, LAY-35
#[test]
fn deleting_refreshing_and_restoring_end_it() {
    for what in ["delete", "refresh", "restore"] {
        for kept in [false, true] {
            let (disk, container) = golden_and_ci();
            container.create_volume("other", SIZE).unwrap();
            if kept {
                fill(&container, "ci", 0..BLOCK, 70);
            }
            let layer_id = container.hydrate("ci").unwrap().unwrap();
            container.hydrate_step(layer_id, 3 * SLAB_LEN).unwrap();
            container.snapshot("ci", "copy").unwrap();
            let before = contents(&container, "copy");
            if !kept {
                container.delete_volume("copy").unwrap();
            }
            match what {
                "delete" => container.delete_volume("ci").unwrap(),
                "restore" if kept => drop(container.refresh("ci", "copy").unwrap()),
                _ => drop(container.refresh("ci", "other").unwrap()),
            }
            assert_eq!(container.hydrations(), []);
            assert_eq!(container.hydrate_step(layer_id, ALL).unwrap(), HydrateStep::Ended(HydrateEnd::Cancelled));
            assert_eq!(
                layer(&container, layer_id).map(|layer| layer.kind),
                Some(if kept { "frozen" } else { "doomed" })
            );
            container.settle(1000).unwrap();
            if kept {
                assert_eq!(contents(&container, "copy"), before);
                hydrated(&container, "copy");
                container.delete_volume("golden").unwrap();
                container.settle(1000).unwrap();
                assert_eq!(contents(&container, "copy"), before);
            } else {
                assert!(layer(&container, layer_id).is_none(), "its slabs are free");
            }
            assert_clean(&disk, container);
        }
    }
}
