//! Volumes to be read, as they are at one instant, whoever holds their container.
//!
//! Invariant: what is read does not change meanwhile: a container that nobody else holds is open here; in one that a daemon
//! holds, copies are made of the volumes at one instant, and deleted afterwards whatever came out. Does not: move data
//! itself (see [`Session::source`]).

use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;

use pitstop_format::NewCopy;

use super::{Access, Session, open};
use crate::error::{Error, Result};
use crate::render::printable;

/// Bytes of a volume's name that its copy's name repeats.
const STEM_LEN: usize = 64;

/// Does `work` with the volumes `names` of the container at `path`, or with copies of them: it is told their names. `verb`
/// begins the names of copies.
pub(crate) fn with<T>(
    path: &Path,
    verb: &str,
    names: &[&str],
    work: impl FnOnce(&mut dyn Session, &[String]) -> Result<T>,
) -> Result<T> {
    let mut session = open(path, Access::Read)?;
    let result = if session.holder().is_some() {
        with_copies(path, session.as_mut(), verb, names, work)
    } else {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        work(session.as_mut(), &names)
    };
    let closed = session.close();
    let value = result?;
    closed.map(|()| value)
}

fn with_copies<T>(
    path: &Path,
    session: &mut dyn Session,
    verb: &str,
    names: &[&str],
    work: impl FnOnce(&mut dyn Session, &[String]) -> Result<T>,
) -> Result<T> {
    for left in session.volumes()?.iter().filter(|volume| is_copy(&volume.name, verb, names)) {
        let left = printable(&left.name);
        crate::tell(format_args!(
            "copy '{left}' is another {verb}'s that is under way, or was killed: then delete it with `pitstop delete`"
        ));
    }
    // Not the process's id, which is 1 in many a container of its own.
    let random = RandomState::new().hash_one(std::process::id()) as u32;
    let copy = |(number, name): (usize, &&str)| NewCopy {
        source: (*name).to_owned(),
        name: format!("{}{random:08x}-{number}", stem(verb, name)),
    };
    let copies: Vec<NewCopy> = names.iter().enumerate().map(copy).collect();
    let made = session.snapshot_group(&copies).map(drop);
    let copies: Vec<String> = copies.into_iter().map(|copy| copy.name).collect();
    match made {
        Ok(()) => {
            let result = work(session, &copies);
            delete(path, &copies);
            result
        }
        // Nobody knows whether there are any.
        Err(error @ Error::NoAnswer { .. }) => {
            delete(path, &copies);
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// Deletes copies, by a session of its own: the daemon may have dropped the one that moved data and took no events
/// meanwhile (CTL-25), or may have ended.
fn delete(path: &Path, copies: &[String]) {
    let mut session = open(path, Access::Change);
    // All of them, even if one stays.
    for copy in copies {
        let deleted = match &mut session {
            Ok(session) => session.delete_volume(copy).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = deleted {
            crate::tell(format_args!("the copy '{copy}' may be left; delete it with `pitstop delete` ({error})"));
        }
    }
    if let Err(error) = session.and_then(Session::close) {
        crate::tell(format_args!("{error}"));
    }
}

/// What the name of a volume's copy begins with.
fn stem(verb: &str, name: &str) -> String {
    let mut len = name.len().min(STEM_LEN);
    while !name.is_char_boundary(len) {
        len -= 1;
    }
    format!("{verb}-{}-", &name[..len])
}

/// Whether a volume is named as a copy that is made here of one of `names`.
fn is_copy(volume: &str, verb: &str, names: &[&str]) -> bool {
    let of = |name: &&str| {
        let rest = volume.strip_prefix(&stem(verb, name)).and_then(|rest| rest.split_once('-'));
        rest.is_some_and(|(process, number)| {
            let is_hex = process.len() == 8 && process.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_hex && number.len() == 1 && number.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    names.iter().any(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_are_made_here_count_as_left_over() {
        assert!(is_copy("export-golden-0000abcd-0", "export", &["other", "golden"]));
        for other in
            ["export-golden-", "export-golden-0000abcd", "compare-golden-0000abcd-0", "export-golden-0000abcx-0"]
        {
            assert!(!is_copy(other, "export", &["golden"]), "{other}");
        }
    }
}
