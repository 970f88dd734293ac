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

/// What to remove.
pub struct Removal<'a> {
    /// Ends the search: names behind it are not looked at.
    pub to: Option<&'a str>,
    /// Whether a file stays.
    pub keeps: &'a dyn Fn(&str) -> bool,
    /// Nothing is removed.
    pub dry_run: bool,
    /// Called with the first and the last segment of each run of files, when it has been removed.
    pub each_run: &'a dyn Fn(&str, &str),
}

impl Repository {
    /// Removes the files of an archive that are not kept, in the order of their names.
    ///
    /// # Errors
    /// `FeatureNotSupported` if this program must not write to the repository; `Interrupted`; what the store said.
    pub fn wal_remove(
        &self,
        stanza: &str,
        archive_id: &str,
        removal: &Removal<'_>,
        observer: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<WalRemoved> {
        self.check_writable()?;
        let mut removed = WalRemoved::default();
        let mut run: Option<(String, String)> = None;
        let end = |run: Option<(String, String)>, removed: &mut WalRemoved| {
            if let Some((first, last)) = run {
                (removal.each_run)(&first, &last);
                removed.runs.push((first, last));
            }
        };
        let outcome = self.wal_list(stanza, archive_id, WalRange { from: None, to: removal.to }, &mut |entry| {
            cancel.check()?;
            let is_history = entry.name.ends_with(".history");
            if (removal.keeps)(&entry.name) {
                if !is_history {
                    end(run.take(), &mut removed);
                }
                return Ok(());
            }
            if !removal.dry_run {
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
        });
        // Also what was removed before a failure.
        end(run, &mut removed);
        outcome.map(|()| removed)
    }
}
