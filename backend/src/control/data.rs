//! The commands that move a volume's data, a piece at a time, in the client's own thread (CTL-133, CTL-135).

use base64::prelude::{BASE64_STANDARD, Engine as _};
use pitstop_format::addendum::Piece;
use pitstop_format::{Error as FormatError, VolumeIo};
use serde_json::json;

use super::args::Args;
use super::commands::{Context, Done, as_typed, of_container};
use super::protocol::Failure;

/// Most bytes of data in a request or a reply.
const LIMIT_BYTES: usize = 512 << 10;

/// Most zeros that one request writes: little work, wherever they are.
const ZEROS_LIMIT_BYTES: u64 = 1 << 30;

/// A piece of what a volume holds.
pub(super) fn read(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.string("name")?;
    let (start, length) = (args.u64("start")?, args.u64("length")?);
    args.finish()?;
    let len = usize::try_from(length).ok().filter(|len| (1..=LIMIT_BYTES).contains(len));
    let Some(len) = len else {
        return Err(Failure::generic(format!("length must be from 512 to {LIMIT_BYTES}")));
    };
    let container = context.target().container();
    let volume = container.defined_volume(&name).map_err(of_container)?;
    let (end, size) = (start.saturating_add(length), volume.size());
    if end > size {
        return Err(of_container(FormatError::BadRange { start, end, size }));
    }
    let mut bytes = vec![0; len];
    VolumeIo::new(container, volume).read_at(&mut bytes, start).map_err(of_container)?;
    Ok(Done::Return(json!({"data": BASE64_STANDARD.encode(&bytes)})))
}

/// A piece of what a volume is to hold.
pub(super) fn write(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.string("name")?;
    let start = args.u64("start")?;
    let (data, zeros) = (args.optional_string("data")?, args.optional_u64("zeros")?);
    let flush = args.optional_bool("flush")?.unwrap_or(true);
    args.finish()?;
    let bytes;
    let piece = match (data, zeros) {
        (Some(data), None) => {
            let decoded = BASE64_STANDARD.decode(data).ok().filter(|bytes| bytes.len() <= LIMIT_BYTES);
            bytes = decoded
                .ok_or_else(|| Failure::generic(format!("data must be base64 of at most {LIMIT_BYTES} bytes")))?;
            Piece::Data(&bytes)
        }
        (None, Some(zeros)) if zeros > ZEROS_LIMIT_BYTES => {
            return Err(Failure::generic(format!("zeros must be at most {ZEROS_LIMIT_BYTES}")));
        }
        (None, Some(zeros)) => Piece::Zeros(zeros),
        _ => return Err(Failure::generic("one of the parameters 'data' and 'zeros' must be given")),
    };
    context.target().write(&name, start, piece, flush).map_err(as_typed)?;
    Ok(Done::Return(json!({})))
}
