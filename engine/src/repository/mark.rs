//! What tells a stanza in a repository from one that was made anew at the same place.

use crate::store::{Depth, Range, Store};
use crate::{Error, Result};
use pgkeep_formats::repo::config::RepositoryConfig;
use pgkeep_formats::repo::layout;

/// Identifier of the repository and newest entry of the stanza's history, with a hash of its object: repositories and entries
/// that are made again have other ones. Needs no key: two small reads and a list of one directory. Nothing of it is
/// authenticated, so it is for noticing accidents.
///
/// # Errors
/// What the store said; `Format` if what is there is no repository.
pub fn stanza_mark(store: &dyn Store, stanza: &str) -> Result<String> {
    let format = store.get(layout::FORMAT, Range::Whole)?;
    let (config, _) = RepositoryConfig::decode(&format).map_err(Error::damaged(layout::FORMAT))?;
    let mut newest = None;
    store.list(&layout::stanza_histories(stanza), Depth::All, &mut |l| {
        newest = newest.max(layout::parse_stanza_history(stanza, &l.key));
    })?;
    let mut mark = config.repo.to_string();
    if let Some(id) = newest {
        let entry = store.get(&layout::stanza_history(stanza, id), Range::Whole)?;
        mark = format!("{mark} {id} {}", blake3::hash(&entry).to_hex());
    }
    Ok(mark)
}
