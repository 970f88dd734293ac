//! Promise: the user guide of pgBackRest can be followed word for word, with a link `pgbackrest` to this program.
//!
//! Steps have the numbers of the guide's items: 1 to 21 are its main road, walked on one cluster ([`road`]); 25 to 31 have
//! standbys ([`hosts`]); 33 and 34 are what goes wrong, and what the guide's questions and answers are about ([`extras`]).
//! [`changes`] has what differs on purpose, or is only seen by who runs commands (docs/compat.md).
//! A failing test prints the items and commands up to there.
//!
//! Elsewhere, whole: 22 with directories and 29 ("control", "archive::several"), 31 ("backup::standby"), 32 ("clients::upgrade").
//! Not here: 23, and 22 with object stores; 24, other hosts.

mod changes;
mod extras;
mod hosts;
mod rig;
mod road;

/// Majors that walk the whole guide: with `PGKEEP_TEST_GUIDE=whole`, which `scripts/test --matrix` sets, all that are
/// tested, else the newest of them.
fn whole() -> Vec<u32> {
    let all = support::majors();
    match std::env::var_os("PGKEEP_TEST_GUIDE") {
        Some(_) => all,
        None => all.into_iter().max().into_iter().collect(),
    }
}

/// The others: they go the beginning of the road, to the first restore.
fn brief() -> Vec<u32> {
    let whole = whole();
    support::majors().into_iter().filter(|major| !whole.contains(major)).collect()
}
