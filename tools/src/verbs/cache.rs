//! `pitstop cache`: cache regions, the budgets of the space that backups keep.
//!
//! Does not: know what counts (the container does).

use std::path::Path;

use pitstop_format::CacheOptions;

use crate::error::{Error, Result};
use crate::render::{self, Output};
use crate::session::{self, Access};

/// Makes cache region `name` in the container `path`.
pub(crate) fn create(path: &Path, name: &str, options: CacheOptions, output: Output) -> Result<()> {
    let cache = session::with(path, Access::Change, |session| session.create_cache(name, options))?;
    render::show(output, &cache, render::cache_line)
}

/// Changes cache region `name`.
pub(crate) fn resize(path: &Path, name: &str, options: CacheOptions, output: Output) -> Result<()> {
    let cache = session::with(path, Access::Change, |session| session.resize_cache(name, options))?;
    render::show(output, &cache, render::cache_line)
}

/// Deletes cache region `name`.
pub(crate) fn delete(path: &Path, name: &str) -> Result<()> {
    session::with(path, Access::Change, |session| session.delete_cache(name))
}

/// Lists the cache regions, or only `name`.
pub(crate) fn list(path: &Path, name: Option<&str>, output: Output) -> Result<()> {
    let mut caches = session::with(path, Access::Read, |session| session.caches())?;
    if let Some(name) = name {
        caches.retain(|cache| cache.name == name);
        if caches.is_empty() {
            return Err(Error::NoSuchCache { name: name.to_owned() });
        }
    }
    render::show(output, &caches, |caches| render::cache_table(caches))
}
