//! WAL that one repository has and the other lacks. What is copied must be of the history that the other has: after a data
//! directory was put back to an earlier state a server writes another history under the same names, and one repository may
//! have got that while another was away.

use super::SyncOptions;
use crate::observe::{Cancel, Counter, Observer};
use crate::repository::Repository;
use crate::repository::wal::{WalFile, WalPut, WalRange};
use crate::{Error, Kind, Result};
use std::collections::HashSet;

/// Place of a WAL file in the order of segments, whatever its timeline.
pub(super) fn segment(name: &str) -> &str {
    name.get(8..24).unwrap_or_default()
}

/// The archives of one cluster.
pub(super) struct Run<'a> {
    pub(super) from: &'a Repository,
    pub(super) to: &'a Repository,
    /// Their names in each.
    pub(super) archives: (&'a str, &'a str),
    /// The first segments of the backups whose WAL is to be there; at least one.
    pub(super) firsts: Vec<&'a str>,
    pub(super) options: &'a SyncOptions<'a>,
    pub(super) observer: &'a dyn Observer,
    pub(super) cancel: &'a Cancel,
}

impl Run<'_> {
    /// Copies what is missing, and notes the names. One that is damaged goes to `failed`.
    ///
    /// # Errors
    /// `ArchiveDuplicate` if the two have different histories: then nothing is copied.
    pub(super) fn copy(&self, copied: &mut HashSet<String>, failed: &mut Vec<Error>) -> Result<()> {
        let (stanza, (archive_from, archive_to)) = (self.options.stanza, self.archives);
        // Histories of timelines are few, and what leads to old backups.
        let floor = self.firsts.iter().map(|first| segment(first)).min().unwrap_or_default();
        let is_wanted = |name: &str| name.len() < 24 || segment(name) >= floor;
        let has: HashSet<String> = self.list(self.to, archive_to)?.into_iter().collect();
        let mut names = self.list(self.from, archive_from)?;
        if !self.options.dry_run {
            for name in borders(&names, &has, is_wanted) {
                self.cancel.check()?;
                check_same(self.from, self.to, stanza, self.archives, name)?;
            }
        }
        names.retain(|name| is_wanted(name) && !has.contains(name));
        if self.options.dry_run {
            copied.extend(names);
            return Ok(());
        }
        self.observer.begin("copy WAL", names.len() as u64);
        let done = names.into_iter().try_for_each(|name| {
            self.cancel.check()?;
            match self.one(&name) {
                Ok(true) => drop(copied.insert(name)),
                Ok(false) => {}
                Err(e) if e.is_damage() => failed.push(e.during(format!("WAL file {name} is not copied"))),
                Err(e) => return Err(e),
            }
            self.observer.add(Counter::Done, 1);
            Ok(())
        });
        self.observer.end();
        done
    }

    /// All histories of timelines, and, in order, what else there is from the directory of the first segment on: an archive of
    /// years is not listed for each backup.
    fn list(&self, repository: &Repository, archive_id: &str) -> Result<Vec<String>> {
        let stanza = self.options.stanza;
        let histories = repository.wal_timelines(stanza, archive_id)?;
        let mut names: Vec<String> = histories.iter().map(|timeline| timeline.history_file_name()).collect();
        let from = self.firsts.iter().min().and_then(|first| first.get(..16));
        repository.wal_list(stanza, archive_id, WalRange { from, to: None }, &mut |entry| {
            if entry.name.len() >= 24 {
                names.push(entry.name);
            }
            Ok(())
        })?;
        Ok(names)
    }

    /// False for one that is gone: it was removed by retention just now.
    fn one(&self, name: &str) -> Result<bool> {
        let (stanza, (archive_from, archive_to)) = (self.options.stanza, self.archives);
        let Some(content) = self.from.wal_get(stanza, archive_from, name)? else { return Ok(false) };
        let file = WalFile::encode(&content, self.options.compress_level)?;
        if self.to.wal_put(stanza, archive_to, name, &file)? == WalPut::Different {
            return Err(differs(self.to, name));
        }
        Ok(true)
    }
}

/// Segments that both have and beside which one is to be copied: `names` are the source's, in order.
fn borders<'n>(names: &'n [String], has: &HashSet<String>, is_wanted: impl Fn(&str) -> bool) -> Vec<&'n str> {
    let segments: Vec<&String> = names.iter().filter(|name| name.len() == 24).collect();
    let mut out: Vec<&str> = Vec::new();
    for pair in segments.windows(2) {
        let [a, b] = pair else { continue };
        let (both, lacks) = if has.contains(*a) { (a, b) } else { (b, a) };
        // Of one timeline, as only that could be mixed up.
        if a.get(..8) == b.get(..8)
            && has.contains(*a) != has.contains(*b)
            && is_wanted(lacks)
            && out.last() != Some(&both.as_str())
        {
            out.push(both);
        }
    }
    out
}

/// Refuses WAL of two histories.
///
/// # Errors
/// `ArchiveDuplicate` if both have a file of this name and its content differs; what either repository said.
pub(super) fn check_same(
    from: &Repository,
    to: &Repository,
    stanza: &str,
    (archive_from, archive_to): (&str, &str),
    name: &str,
) -> Result<()> {
    let content = match from.wal_get(stanza, archive_from, name) {
        Ok(Some(content)) => content,
        // What is damaged there tells nothing of what is here.
        Err(e) if !e.is_damage() => return Err(e),
        _ => return Ok(()),
    };
    match to.wal_has(stanza, archive_to, name, &content)? {
        Some(false) => Err(differs(to, name)),
        _ => Ok(()),
    }
}

fn differs(to: &Repository, name: &str) -> Error {
    let text = format!(
        "WAL file {name} differs from the one of that name on repo{}, which is of another history: nothing is copied beside it",
        to.key()
    );
    Error::refused(Kind::ArchiveDuplicate, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beside_that_which_is_copied_is_compared() {
        let name = |timeline: u32, number: u32| format!("{timeline:08X}00000000{number:08X}");
        let all: Vec<String> = (1..=8).map(|n| name(1, n)).chain((5..=6).map(|n| name(2, n))).collect();
        let has: HashSet<String> =
            [2, 3, 6].map(|n| name(1, n)).into_iter().chain(["00000002.history".to_owned()]).collect();
        let any = |_: &str| true;
        assert_eq!(borders(&all, &has, any), [name(1, 2), name(1, 3), name(1, 6)]);
        assert_eq!(borders(&all, &has, |name| segment(name) >= "0000000000000004"), [name(1, 3), name(1, 6)]);
        assert_eq!(borders(&all, &HashSet::new(), any), Vec::<&str>::new());
        assert_eq!(borders(&all, &all.iter().cloned().collect(), any), Vec::<&str>::new());
    }
}
