//! Removing archived files that retention no longer keeps.

use super::WalRange;
use crate::observe::{Cancel, Counter, Observer};
use crate::repository::Repository;
use crate::{Error, Result};
use pgkeep_formats::repo::layout;

/// What was removed of an archive, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WalRemoved {
    /// Number of files.
    pub files: u64,
    /// Bytes that were stored of them.
    pub bytes: u64,
    /// Runs of removed files: the segments of the first and the last of each, history files left out.
    pub runs: Vec<(String, String)>,
}

impl Repository {
    /// Removes the files of an archive that `keeps` does not keep, in the order of their names, so that what is left after an
    /// interruption lacks no more than its beginning. `to` ends the search: names behind it are not looked at. With `dry_run`
    /// nothing is removed.
    ///
    /// # Errors
    /// `FeatureNotSupported` if this program must not write to the repository; `Interrupted`; what the store said.
    #[allow(clippy::too_many_arguments)]
    pub fn wal_remove(
        &self,
        stanza: &str,
        archive_id: &str,
        to: Option<&str>,
        keeps: &dyn Fn(&str) -> bool,
        dry_run: bool,
        observer: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<WalRemoved> {
        self.check_writable()?;
        let mut removed = WalRemoved::default();
        let mut run: Option<(String, String)> = None;
        self.wal_list(stanza, archive_id, WalRange { from: None, to }, &mut |entry| {
            cancel.check()?;
            let is_history = entry.name.ends_with(".history");
            if keeps(&entry.name) {
                if !is_history {
                    removed.runs.extend(run.take());
                }
                return Ok(());
            }
            if !dry_run {
                self.store().delete(&layout::wal(stanza, archive_id, &entry.name)).map_err(Error::from)?;
            }
            observer.add(Counter::Files, 1);
            removed.files += 1;
            removed.bytes += entry.size;
            if !is_history {
                let segment = entry.name.get(..24).unwrap_or(&entry.name);
                match &mut run {
                    Some((_, last)) => segment.clone_into(last),
                    None => run = Some((segment.to_owned(), segment.to_owned())),
                }
            }
            Ok(())
        })?;
        removed.runs.extend(run);
        Ok(removed)
    }
}
