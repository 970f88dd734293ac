//! Which backups of a cluster there are, in whatever stanza, and which of them is the newest.
//!
//! Pages are compared with the newest backup of the same system identifier: what a replica, a moved cluster or a second
//! stanza has stored is then not stored again. Which one that is decides what a backup costs and nothing else, as every
//! page is compared by its hash; so a wrong clock anywhere makes a backup larger at worst.
//!
//! Even so no clock is asked where something better is known. *Within a stanza* the order is that of labels, which
//! [`super::label::make`] keeps growing when the clock does not. *Between stanzas* it is, of backups on the timeline of this
//! cluster, that of their WAL positions: the cluster's own measure of age, the same on every host. Backups on another
//! timeline come behind them, for that may be a fork which shares nothing new with this cluster. Only what is left is
//! ordered by generation, which garbage collection counts, and then by the time of stop.

use super::cluster::Cluster;
use crate::repository::Repository;
use crate::{Error, Result};
use pgkeep_formats::repo::records::Commit;
use std::collections::VecDeque;

/// A backup and the stanza it is in.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) stanza: String,
    pub(super) commit: Commit,
}

/// All readable backups of the cluster, the newest first. `existing` are those of the stanza `own`, by label.
///
/// To be asked before the session starts: the index that is loaded then knows the chunks of each of them, for a backup's
/// index is written before its commit. A stanza that cannot be read is passed over.
///
/// # Errors
/// What concerns the run and not what is read, such as an interrupt.
pub(super) fn find(repository: &Repository, cluster: &Cluster, own: &str, existing: &[Commit]) -> Result<Vec<Found>> {
    let same = |c: &Commit| c.system_identifier == cluster.system_identifier;
    let mut stanzas = vec![(own.to_owned(), existing.iter().filter(|c| same(c)).cloned().collect())];
    let names = or_pass(repository.stanzas(), "the other stanzas are")?.unwrap_or_default();
    for name in names.into_iter().filter(|name| name != own) {
        let what = format!("stanza '{name}' is");
        // A small object that tells whether the others need be read at all.
        let Some(history) = or_pass(repository.stanza_history(&name), &what)? else { continue };
        if !history.iter().any(|h| h.system_identifier == cluster.system_identifier) {
            continue;
        }
        let Some((backups, unreadable)) = or_pass(repository.backups_readable(&name), &what)? else { continue };
        for e in unreadable {
            or_pass::<()>(Err(e), &format!("a backup of stanza '{name}' is"))?;
        }
        stanzas.push((name, backups.into_iter().filter(same).collect()));
    }
    Ok(merge(stanzas, cluster.timeline.0))
}

/// What was read, or nothing and a line in the log.
fn or_pass<T>(read: Result<T>, what: &str) -> Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(e) if concerns_the_run(&e) => Err(e),
        // What a key may not open is no damage.
        Err(e) if matches!(e.root(), Error::Crypto(crate::crypto::CryptoError::RoleLacks { .. })) => {
            tracing::debug!("{what} not looked at for pages: {}", e.chain());
            Ok(None)
        }
        Err(e) => {
            tracing::warn!("{what} passed over when looking for pages: {}", e.chain());
            Ok(None)
        }
    }
}

/// True for failures that say nothing of the objects read.
pub(super) fn concerns_the_run(error: &Error) -> bool {
    error.concerns_the_run()
}

/// Puts the backups of several stanzas in one order, the newest first. The first stanza's come before their equals.
///
/// Always the newest of some stanza's is next, so labels decide within one. `is_newer` alone is no order to sort by: of a
/// backup with a WAL position, one without and one more with it, each may be newer than the next, in a circle.
fn merge(stanzas: Vec<(String, Vec<Commit>)>, timeline: u32) -> Vec<Found> {
    let mut stanzas: Vec<(String, VecDeque<Commit>)> = stanzas.into_iter().map(|(name, c)| (name, c.into())).collect();
    let mut out = Vec::new();
    loop {
        let mut newest: Option<(usize, &Commit)> = None;
        for (at, (_, commits)) in stanzas.iter().enumerate() {
            if let Some(commit) = commits.back()
                && newest.is_none_or(|(_, than)| is_newer(commit, than, timeline))
            {
                newest = Some((at, commit));
            }
        }
        let Some(at) = newest.map(|(at, _)| at) else { return out };
        let taken = stanzas.get_mut(at).and_then(|(name, commits)| Some((name.clone(), commits.pop_back()?)));
        out.extend(taken.map(|(stanza, commit)| Found { stanza, commit }));
    }
}

fn is_newer(a: &Commit, than: &Commit, timeline: u32) -> bool {
    let (a_here, than_here) = (a.timeline == timeline, than.timeline == timeline);
    match (a.lsn, than.lsn) {
        _ if a_here != than_here => a_here,
        (Some((a, _)), Some((than, _))) if a_here && a != than => a > than,
        _ => (a.generation, a.stop) > (than.generation, than.stop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::tests::commit;

    /// A backup on timeline 1, where the others are not named.
    fn of(label: &str, generation: u64, stop: i64, lsn: Option<u64>) -> Commit {
        Commit { generation, stop, lsn: lsn.map(|lsn| (lsn, lsn + 1)), ..commit(label) }
    }

    fn labels(stanzas: &[&[Commit]], timeline: u32) -> Vec<String> {
        let named = stanzas.iter().enumerate().map(|(n, commits)| (n.to_string(), commits.to_vec())).collect();
        merge(named, timeline).into_iter().map(|f| format!("{} {}", f.stanza, f.commit.label)).collect()
    }

    #[test]
    fn labels_decide_in_a_stanza_whatever_its_clock_did() {
        let own = [of("a", 3, 900, None), of("b", 3, 100, None), of("c", 3, 500, None)];
        assert_eq!(labels(&[&own], 1), ["0 c", "0 b", "0 a"]);
        // The other stanza's backup was made between the last two.
        assert_eq!(labels(&[&own, &[of("x", 3, 400, None)]], 1), ["0 c", "1 x", "0 b", "0 a"]);
    }

    #[test]
    fn wal_positions_decide_between_stanzas_where_there_are_any() {
        // The other host's clock is ahead by years.
        let (own, other) = ([of("a", 0, 100, Some(50))], [of("x", 9, 1 << 40, Some(40))]);
        assert_eq!(labels(&[&own, &other], 1), ["0 a", "1 x"]);
        let other = [of("x", 0, 1, Some(60))];
        assert_eq!(labels(&[&own, &other], 1), ["1 x", "0 a"]);
        // On a timeline that is not this cluster's they tell nothing; nor without one.
        assert_eq!(labels(&[&own, &other], 2), ["0 a", "1 x"]);
        assert_eq!(labels(&[&own, &[of("x", 0, 200, None)]], 1), ["1 x", "0 a"]);
        assert_eq!(labels(&[&own, &[of("x", 1, 10, None)]], 1), ["1 x", "0 a"]);
        // Equals: the own stanza's.
        assert_eq!(labels(&[&own, &[of("x", 0, 100, None)]], 1), ["0 a", "1 x"]);
    }

    #[test]
    fn a_fork_comes_behind_the_clusters_own_timeline() {
        let fork = [Commit { timeline: 2, ..of("x", 5, 900, Some(900)) }];
        let own = [of("a", 0, 100, Some(50))];
        assert_eq!(labels(&[&own, &fork], 1), ["0 a", "1 x"]);
        assert_eq!(labels(&[&own, &fork], 2), ["1 x", "0 a"]);
    }

    #[test]
    fn a_circle_of_newer_ones_is_an_order_all_the_same() {
        let (a, b, c) = ([of("a", 0, 5, Some(10))], [of("b", 0, 6, None)], [of("c", 0, 7, Some(5))]);
        assert!(is_newer(&a[0], &c[0], 1) && is_newer(&c[0], &b[0], 1) && is_newer(&b[0], &a[0], 1));
        for stanzas in [[&a[..], &b, &c], [&c, &a, &b], [&b, &c, &a]] {
            assert_eq!(labels(&stanzas, 1).len(), 3);
        }
    }
}
