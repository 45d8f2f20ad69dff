//! The commands about cache regions (CTL-112 to CTL-114).
//!
//! Role: arguments, order to the daemon, result. It does not know what a region counts.

use pitstop_format::CacheOptions;
use serde_json::json;

use super::args::Args;
use super::commands::{Context, Done, as_typed, nothing, to_value};
use super::protocol::Failure;

/// What the region is to be.
fn options(args: &mut Args) -> Result<CacheOptions, Failure> {
    let percent = args.optional_u16("high-water-percent")?;
    // What does not fit is out of bounds anyway.
    let high_water_percent = percent.map(|percent| u8::try_from(percent).unwrap_or(u8::MAX));
    Ok(CacheOptions {
        limit_bytes: args.optional_u64("limit")?,
        high_water_percent,
        growth_bytes: args.optional_u64("growth")?,
        most_bytes: args.optional_u64("most")?,
    })
}

pub(super) fn create(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.string("name")?;
    let options = options(&mut args)?;
    args.finish()?;
    let cache = context.target().create_cache(&name, options).map_err(as_typed)?;
    Ok(Done::Return(json!({"cache": to_value(&cache)?})))
}

pub(super) fn resize(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.string("name")?;
    let options = options(&mut args)?;
    args.finish()?;
    let cache = context.target().resize_cache(&name, options).map_err(as_typed)?;
    Ok(Done::Return(json!({"cache": to_value(&cache)?})))
}

pub(super) fn delete(context: &Context, mut args: Args) -> Result<Done, Failure> {
    let name = args.string("name")?;
    args.finish()?;
    context.target().delete_cache(&name).map_err(as_typed)?;
    Ok(nothing())
}

pub(super) fn query(context: &Context, args: Args) -> Result<Done, Failure> {
    args.finish()?;
    Ok(Done::Return(to_value(&context.target().container().caches())?))
}
