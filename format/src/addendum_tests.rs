//! rules: BAK-15 to BAK-18; req: R21, R22

use std::io::Read as _;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const SIZE: u64 = 8 << 20;

fn head() -> AddendumHeader {
    AddendumHeader {
        container: Uuid::from_u128(1),
        volume: Uuid::from_u128(2),
        size_bytes: SIZE,
        instant: Contents { id: Uuid::from_u128(3), unix_ns: 1_700_000_000_000_000_000 },
        purpose: Purpose::ChangesSince(Contents { id: Uuid::from_u128(4), unix_ns: -5 }),
    }
}

/// An addendum with data, zeros and data.
fn sample() -> Vec<u8> {
    let mut file = tempfile::tempfile().unwrap();
    let mut writer = AddendumWriter::new(head());
    writer.put(&file, 4096, Piece::Data(&[7; 8192])).unwrap();
    writer.put(&file, 12288, Piece::Zeros(1 << 20)).unwrap();
    writer.put(&file, SIZE - 512, Piece::Data(&[9; 512])).unwrap();
    assert_eq!(writer.listed_bytes(), 8192 + (1 << 20) + 512);
    writer.finish(&file).unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// What an addendum does to an image of ones.
fn applied(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut reader = AddendumReader::new(bytes)?;
    let mut image = vec![1; SIZE as usize];
    while let Some(AddendumRange { start, piece }) = reader.next_range()? {
        let start = start as usize;
        match piece {
            Piece::Data(data) => image[start..start + data.len()].copy_from_slice(data),
            Piece::Zeros(len) => image[start..start + len as usize].fill(0),
        }
    }
    Ok(image)
}

#[test]
fn what_was_put_is_read_back() {
    let bytes = sample();
    let mut expected = vec![1; SIZE as usize];
    expected[4096..12288].fill(7);
    expected[12288..12288 + (1 << 20)].fill(0);
    expected[SIZE as usize - 512..].fill(9);
    assert!(applied(&bytes).unwrap() == expected);
    assert_eq!(*AddendumReader::new(&bytes[..]).unwrap().header(), head());
    let original = AddendumHeader { purpose: Purpose::OriginalImages, ..head() };
    let (raw, crc) = original.encode();
    assert_eq!(AddendumHeader::decode(&raw).unwrap(), (original, crc));
}

#[test]
fn an_addendum_that_ends_anywhere_early_is_cut_off() {
    let bytes = sample();
    for len in (0..bytes.len()).step_by(97).chain([bytes.len() - 1, bytes.len() - record::LEN]) {
        assert!(matches!(applied(&bytes[..len]), Err(AddendumError::CutOff)), "{len} of {} bytes", bytes.len());
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(matches!(applied(&longer), Err(AddendumError::Bad { rule: "BAK-18", .. })));
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let bytes = sample();
    for at in (0..bytes.len()).step_by(61).chain(0..300) {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(applied(&bad).is_err(), "byte {at}");
    }
}

/// A file with just these records, each with its right checksum.
fn forged(records: &[Record], data: &[u8]) -> Vec<u8> {
    let (mut bytes, file) = (head().encode().0.to_vec(), head().encode().1);
    for found in records {
        bytes.extend(found.encode(data, file));
        bytes.extend(data);
    }
    bytes
}

#[test]
fn records_out_of_order_or_bounds_are_refused_before_their_data_is_read() {
    let zeros = |start, length, number| Record { tag: Tag::Zeros, start, length, number };
    let cases: &[(&[Record], &str)] = &[
        (&[zeros(0, 512, 1)], "BAK-17"),
        (&[zeros(0, 0, 0)], "BAK-17"),
        (&[zeros(100, 512, 0)], "BAK-17"),
        (&[zeros(SIZE, 512, 0)], "BAK-17"),
        (&[zeros(u64::MAX - 511, 512, 0)], "BAK-17"),
        (&[zeros(4096, 4096, 0), zeros(4096, 4096, 1)], "BAK-17"),
        (&[Record { tag: Tag::Data, start: 0, length: 1 << 40, number: 0 }], "BAK-16"),
        (&[Record { tag: Tag::End, start: SIZE, length: 512, number: 0 }], "BAK-18"),
    ];
    for (records, rule) in cases {
        match applied(&forged(records, &[])) {
            Err(AddendumError::Bad { rule: found, .. }) => assert_eq!(found, *rule, "{records:?}"),
            other => panic!("{records:?}: {other:?}"),
        }
    }
}

#[test]
fn a_record_of_another_file_does_not_fit() {
    let other = AddendumHeader { container: Uuid::from_u128(5), ..head() };
    let mut bytes = other.encode().0.to_vec();
    bytes.extend(&sample()[header::LEN..]);
    assert!(matches!(applied(&bytes), Err(AddendumError::Bad { rule: "BAK-16", .. })));
}

#[test]
fn a_range_can_be_put_again_after_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let file = std::fs::File::create(&path).unwrap();
    let closed = std::fs::File::open(&path).unwrap(); // for reading: every write fails
    let mut writer = AddendumWriter::new(head());
    writer.put(&closed, 0, Piece::Data(&[1; 512])).unwrap_err();
    writer.put(&file, 0, Piece::Data(&[3; 512])).unwrap();
    writer.put(&closed, 512, Piece::Data(&[1; 512])).unwrap_err();
    writer.put(&file, 512, Piece::Data(&[4; 512])).unwrap();
    writer.finish(&closed).unwrap_err();
    writer.finish(&file).unwrap();
    writer.finish(&file).unwrap();
    let image = applied(&std::fs::read(&path).unwrap()).unwrap();
    assert!(image[..512] == [3; 512] && image[512..1024] == [4; 512] && image[1024..] == vec![1; SIZE as usize - 1024]);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096), keep in 0usize..400) {
        let good = sample();
        let mixed = [&good[..keep.min(good.len())], &bytes].concat();
        prop_assert!(applied(&mixed).is_err());
    }
}
