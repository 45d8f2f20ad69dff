//! What the engine itself refuses of a container that tells lies (design rules 9, 15).

use super::*;
use crate::Error;

// rules: MAP-5, JNL-10 — an entry that names a slab of another layer, in its home or in the journal, is never followed.
#[test]
fn an_entry_that_names_anothers_slab_is_never_followed() {
    let chunk = 9;
    let lie = |fixture: &Fixture| {
        let (golden, ci) = (fixture.head_of("golden").1.id, fixture.head_of("ci").1.id);
        (ci, fixture.entry(golden, 3).slab)
    };
    let fixture = Fixture::closed();
    let (layer, slab) = lie(&fixture);
    fixture.put_entry(layer, chunk, RawEntry { slab, d: 1, z: 0 });
    let container = Container::open(fixture.disk.clone(), OpenMode::ReadWrite).unwrap();
    let ci = VolumeIo::new(&container, container.volume("ci").unwrap());
    let place = u64::from(chunk) * SLAB_LEN;
    for outcome in [ci.read_at(&mut [0; 512], place), ci.write_at(&[7; 512], place), ci.discard(place..place + 4096)] {
        assert!(matches!(&outcome, Err(Error::Corrupt(found)) if found.rule == "MAP-5"), "{outcome:?}");
    }
    let golden = VolumeIo::new(&container, container.volume("golden").unwrap());
    let mut bytes = [0; 4096];
    golden.read_at(&mut bytes, 3 * SLAB_LEN).unwrap();
    assert_eq!(bytes, [3; 4096]);

    let fixture = Fixture::closed();
    let (layer, slab) = lie(&fixture);
    fixture.append(&[Item::Entry { layer, chunk: ChunkNo(chunk), slab, d: 1, z: 0 }]);
    assert_eq!(refused(&fixture), "MAP-5");
}
