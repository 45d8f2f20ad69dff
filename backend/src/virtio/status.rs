//! The one place where errors become virtio statuses.

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

use super::request::RequestError;

/// How a request ended, as its status byte says it.
pub(crate) fn status_byte<T>(outcome: &Result<T, RequestError>) -> u8 {
    let status = match outcome {
        Ok(_) => VIRTIO_BLK_S_OK,
        Err(error) => status_of(error),
    };
    status as u8
}

/// Exhaustive on purpose: a new error must decide what the guest is told.
fn status_of(error: &RequestError) -> u32 {
    match error {
        RequestError::UnknownType { .. } | RequestError::BadZeroFlags { .. } => VIRTIO_BLK_S_UNSUPP,
        RequestError::ShortHeader
        | RequestError::BadDataLen { .. }
        | RequestError::LongData { .. }
        | RequestError::BeyondEnd { .. }
        | RequestError::BadZeroPayload { .. }
        | RequestError::LongZeroSegment { .. }
        | RequestError::ReadOnly
        | RequestError::Memory(_)
        | RequestError::TooManyPieces
        | RequestError::Format(_)
        | RequestError::Io(_) => VIRTIO_BLK_S_IOERR,
    }
}

/// Whether the error is the guest's own doing (told at level debug) or the host's (a warning).
pub(crate) fn is_guests_fault(error: &RequestError) -> bool {
    !matches!(error, RequestError::Format(_) | RequestError::Io(_))
}
