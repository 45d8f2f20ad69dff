//! Any byte string as an addendum: what is read is in order and in bounds, and a file is whole or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitstop_format::addendum::{ADDENDUM_DATA_LEN, AddendumRange, AddendumReader, Piece};

fuzz_target!(|data: &[u8]| {
    let Ok(mut reader) = AddendumReader::new(data) else {
        return;
    };
    let size = reader.header().size_bytes;
    let mut end = 0;
    while let Ok(Some(AddendumRange { start, piece })) = reader.next_range() {
        let len = match piece {
            Piece::Data(data) => data.len() as u64,
            Piece::Zeros(len) => len,
        };
        assert!(start >= end && len > 0 && start + len <= size && (start | len) % 512 == 0);
        assert!(matches!(piece, Piece::Zeros(_)) || len <= ADDENDUM_DATA_LEN as u64);
        end = start + len;
    }
});
