//! Whether a store keeps the promises a repository rests on, tried before the first repository is made in it.
//!
//! Some object stores accept conditional writes and ignore the condition; with those two writers would overwrite each
//! other's commits in silence. The objects of the probe lie where [`Repository::create`] looks for leftovers, so an
//! interrupted probe is cleaned up.
//!
//! [`Repository::create`]: crate::repository::Repository::create

use crate::store::{Depth, Put, Range, Store, StoreError};
use crate::{Error, Kind, Result};
use pgkeep_formats::repo::layout;

/// Tries create-if-absent, read after write, parts of an object, list after write, delete.
///
/// # Errors
/// `RepoInvalid` if a promise is broken; what the store said.
pub(super) fn probe(store: &dyn Store) -> Result<()> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|_| crate::crypto::CryptoError::Primitive { what: "system randomness" })?;
    let nonce: String = nonce.iter().map(|b| format!("{b:02x}")).collect();
    let key = layout::key_probe(&nonce);
    let found = tried(store, &key);
    store.delete(&key)?;
    if let Some(broken) = found? {
        let place = store.describe();
        return Err(Error::refused(Kind::RepoInvalid, format!("a repository cannot be kept in {place}: {broken}")));
    }
    match store.get(&key, Range::Whole) {
        Err(StoreError::NotFound { .. }) => Ok(()),
        Err(e) => Err(e.into()),
        Ok(_) => {
            let place = store.describe();
            let text = format!("a repository cannot be kept in {place}: a deleted object can still be read");
            Err(Error::refused(Kind::RepoInvalid, text))
        }
    }
}

/// What does not hold; `None` if everything does.
fn tried(store: &dyn Store, key: &str) -> Result<Option<&'static str>> {
    let (one, two) = (b"pgkeep probe, first writer".as_slice(), b"pgkeep probe, second writer".as_slice());
    // A retried put may find its own object: what counts is whose bytes are there in the end.
    store.put_if_absent(key, one)?;
    if store.put_if_absent(key, two)? == Put::Created {
        return Ok(Some("it overwrites objects that should only be created"));
    }
    match store.get(key, Range::Whole) {
        Err(StoreError::NotFound { .. }) => return Ok(Some("a new object cannot be read at once")),
        Err(e) => return Err(e.into()),
        Ok(bytes) if bytes != one => return Ok(Some("it overwrites objects that should only be created")),
        Ok(_) => {}
    }
    let (span, tail) = (Range::Span { offset: 7, len: 5 }, Range::Tail { len: 6 });
    if store.get(key, span)? != b"probe" || store.get(key, tail)? != b"writer" {
        return Ok(Some("it does not answer with the part of an object that was asked for"));
    }
    let prefix = key.rsplit_once('/').map_or(String::new(), |(dir, _)| format!("{dir}/"));
    let mut listed = false;
    store.list(&prefix, Depth::All, &mut |l| listed |= l.key == key && l.size == one.len() as u64)?;
    Ok((!listed).then_some("a new object is not listed at once"))
}
