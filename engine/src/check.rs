//! Whether a stanza works from end to end: configuration, history, and one WAL segment on its way to every repository.
//!
//! [`archives`] and [`configuration`] look at the server alone; a backup asks the first before it starts. [`run`] does it
//! all on a primary;
//! on a standby it looks at the repositories only, since a standby cannot end a segment. What it writes is one restore
//! point in the server's WAL. One thread, no locks; blocks until the segment has arrived everywhere or the time is up.

use crate::archive::{check_own, is_ready, list_ready};
use crate::clock::Clock;
use crate::observe::Cancel;
use crate::pg::ClusterIdentity;
use crate::pg::server::{ArchiveMode, Connection, Identity};
use crate::repository::Repository;
use crate::repository::wal::ON_ITS_WAY;
use crate::{Error, Kind, Result};
use pgkeep_formats::pg::timeline::TimelineId;
use pgkeep_formats::repo::layout;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Name of the restore point, for those who meet it in the WAL.
const RESTORE_POINT: &str = "pgkeep archive check";

/// Which settings of the server to insist on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveCheck {
    /// None: `--no-archive-check`. No segment is waited for either.
    Off,
    /// Archiving is on and its command is ours; `archive_mode=always` will do: `--no-archive-mode-check`.
    AnyMode,
    /// As before, but with `archive_mode=on`: with `always` a standby and its primary archive the same segments.
    Strict,
}

/// What to check against.
#[derive(Debug, Clone, Copy)]
pub struct CheckOptions<'a> {
    /// The stanza.
    pub stanza: &'a str,
    /// Directory of the cluster, as configured.
    pub pgdata: &'a Path,
    /// Port of the server, as configured.
    pub port: u16,
    /// Names one of which must be in `archive_command`: the program's, and under which it was called.
    pub program_names: &'a [&'a str],
    /// Which settings to insist on.
    pub archive_check: ArchiveCheck,
    /// How long the segment may take to each repository.
    pub archive_timeout: Duration,
}

/// What a check found.
#[derive(Debug)]
pub struct CheckReport {
    /// What the server is.
    pub role: ServerRole,
    /// The repositories that are in order.
    pub repos: Vec<RepoCheck>,
    /// Numbers of the others, and what is wrong with each.
    pub failures: Vec<(u32, Error)>,
}

/// What a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerRole {
    /// It writes WAL; a segment was ended and waited for.
    Primary,
    /// It follows another: "switch wal not performed because this is a standby".
    Standby,
}

/// A repository that is in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoCheck {
    /// Its number.
    pub key: u32,
    /// The segment that arrived; none from a standby or without archive check.
    pub archived: Option<Archived>,
}

/// An archived segment: "WAL segment {segment} successfully archived to '{place}' on repo{key}".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archived {
    /// Its name.
    pub segment: String,
    /// Where it is: store and object.
    pub place: String,
}

/// Checks one stanza through one running server.
///
/// # Errors
/// As [`configuration`] and [`ClusterIdentity::of_server`]; `FileMissing` if a repository lacks the stanza; `FileInvalid`
/// if its history is of another cluster; `ArchiveTimeout` naming the segment and the repository it did not reach, or the WAL
/// that is missing behind the newest backup of each repository; what
/// the server and the stores said. The first failure ends the check.
pub fn run(
    server: &mut Connection,
    repositories: &[Arc<Repository>],
    options: &CheckOptions<'_>,
    clock: &dyn Clock,
    cancel: &Cancel,
) -> Result<CheckReport> {
    // 1. The server is the one configured, and archives to us.
    let (identity, found) = ClusterIdentity::of_server(server, options.pgdata, options.port)?;
    let role = if found.in_recovery { ServerRole::Standby } else { ServerRole::Primary };
    if role == ServerRole::Primary {
        configuration(&found, options.archive_check, options.program_names, options.stanza)?;
    }
    // 2. Every repository knows the cluster. One that does not keeps no other from being looked at.
    let (mut known, mut failures) = (Vec::new(), Vec::new());
    for repository in repositories {
        match archive_id(repository, options.stanza, &identity) {
            Ok(archive_id) => known.push((repository, archive_id)),
            Err(e) => failures.push((repository.key(), e)),
        }
    }
    // 3. A segment arrives in each.
    let segment = match (role, options.archive_check) {
        (ServerRole::Standby, _) | (_, ArchiveCheck::Off) => None,
        _ if known.is_empty() => None,
        _ => {
            // Without a record since the last switch there would be nothing to end, and an old segment's name would come back.
            server.create_restore_point(RESTORE_POINT)?;
            Some(server.switch_wal()?)
        }
    };
    let mut repos = Vec::with_capacity(known.len());
    let begun = std::time::Instant::now();
    for (repository, archive_id) in &known {
        // It is on its way to all of them at once.
        let left = options.archive_timeout.saturating_sub(begun.elapsed());
        let wait = |s: &String| wait(repository, archive_id, s, (options, left), clock, cancel);
        let archived = segment.as_ref().map(wait).transpose();
        // 4. What is archived leads from the newest backup to now.
        let archived = archived.and_then(|archived| match options.archive_check {
            ArchiveCheck::Off => Ok(archived),
            _ => match lacks(repository, archive_id, options, (role, found.timeline), clock)? {
                Some(text) => Err(Error::refused(Kind::ArchiveTimeout, text)),
                None => Ok(archived),
            },
        });
        match archived {
            Ok(archived) => repos.push(RepoCheck { key: repository.key(), archived }),
            Err(e) if e.kind() == Kind::Interrupted => return Err(e),
            Err(e) => failures.push((repository.key(), e)),
        }
    }
    Ok(CheckReport { role, repos, failures })
}

/// What is wrong with the WAL behind a repository's newest backup, if anything.
fn lacks(
    repository: &Repository,
    archive_id: &str,
    options: &CheckOptions<'_>,
    (role, timeline): (ServerRole, TimelineId),
    clock: &dyn Clock,
) -> Result<Option<String>> {
    // What cannot be read is no matter of the WAL behind the newest backup; 'info' and 'verify' show it.
    let (backups, _) = repository.backups_readable(options.stanza)?;
    let is_primary = role == ServerRole::Primary;
    let wal = options.pgdata.join("pg_wal");
    // What a primary has ready is late, and not lost. It is looked for before the archive, as it may arrive meanwhile.
    let late = if is_primary { list_ready(&wal)? } else { Vec::new() };
    let now = i64::try_from(clock.now().as_secs()).unwrap_or(i64::MAX);
    let before = (!is_primary).then(|| now.saturating_sub(ON_ITS_WAY));
    let look = || repository.wal_holes(options.stanza, archive_id, &backups, before, Some(timeline));
    let mut lost = look()?;
    let is_late = |first: &str| is_primary && is_ready(&wal, first).unwrap_or(false);
    lost.retain(|hole| !late.contains(&hole.first) && !is_late(&hole.first));
    if !lost.is_empty() {
        // A segment may have been stored, and the next one listed before it, while the first look was taken.
        let again = look()?;
        lost.retain(|hole| again.contains(hole));
    }
    let Some(first) = lost.first() else { return Ok(None) };
    let segments: u64 = lost.iter().map(|hole| hole.segments).sum();
    let range = if first.segments == 1 { first.first.clone() } else { format!("{} to {}", first.first, first.last) };
    let more = if segments > first.segments {
        format!(", and {} more behind", segments - first.segments)
    } else {
        String::new()
    };
    let cost = if first.is_needed { "which it needs itself" } else { "so recovery from it ends there" };
    let (key, label) = (repository.key(), &first.backup);
    Ok(Some(format!("repo{key} lacks WAL {range}{more}: it lies behind the start of backup {label}, {cost}")))
}

/// Checks that a primary archives its WAL at all.
///
/// # Errors
/// `ArchiveDisabled` with `archive_mode=off`; `ArchiveCommandInvalid` if there is neither a command nor a library.
pub fn archives(server: &Identity) -> Result<()> {
    if server.archive_mode == ArchiveMode::Off {
        let text = "archive_mode is off: the server does not archive its WAL";
        return Err(Error::refused(Kind::ArchiveDisabled, text));
    }
    if server.archive_command.trim().is_empty() && server.archive_library.is_empty() {
        let text = "archive_command is empty: the server keeps its WAL and archives none";
        return Err(Error::refused(Kind::ArchiveCommandInvalid, text));
    }
    Ok(())
}

/// Checks that a primary archives its WAL with this program.
///
/// # Errors
/// As [`archives`]; `FeatureNotSupported` with `archive_mode=always`; `ArchiveCommandInvalid` if the command does not name
/// the program, or names another stanza.
pub fn configuration(server: &Identity, check: ArchiveCheck, program_names: &[&str], stanza: &str) -> Result<()> {
    if check == ArchiveCheck::Off {
        return Ok(());
    }
    archives(server)?;
    if server.archive_mode == ArchiveMode::Always && check == ArchiveCheck::Strict {
        return Err(Error::refused(Kind::FeatureNotSupported, "archive_mode=always is not supported"));
    }
    // Where both are set the library archives, and the command is never called.
    if !server.archive_library.is_empty() {
        let text = format!("archive_library is '{}', so archive_command is not used", server.archive_library);
        return Err(Error::refused(Kind::ArchiveCommandInvalid, text));
    }
    let command = &server.archive_command;
    let calls_us = |text: &str| program_names.iter().any(|name| !name.is_empty() && text.contains(name));
    if calls_us(command) {
        // While another tool is still in use a command has several parts, each with a stanza of its own.
        let parts = command.split(['&', '|', ';']).filter(|part| calls_us(part));
        let told: Vec<Option<&str>> = parts.map(stanza_of).collect();
        return match told.first() {
            Some(Some(other)) if told.iter().all(|of| of.is_some_and(|of| of != stanza)) => {
                let text = format!("archive_command archives for stanza '{other}', not for '{stanza}': '{command}'");
                Err(Error::refused(Kind::ArchiveCommandInvalid, text))
            }
            _ => Ok(()),
        };
    }
    let mut names: Vec<&str> = Vec::new();
    for name in program_names.iter().filter(|name| !name.is_empty()) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    let text = format!("archive_command must contain '{}', but is '{command}'", names.join("' or '"));
    Err(Error::refused(Kind::ArchiveCommandInvalid, text))
}

/// The stanza that a command names, if it does so plainly: what a shell would still change is not guessed at.
fn stanza_of(command: &str) -> Option<&str> {
    let mut words = command.split_whitespace();
    let value = loop {
        match words.next()?.strip_prefix("--stanza") {
            Some("") => break words.next()?,
            Some(rest) if rest.starts_with('=') => break rest.get(1..)?,
            _ => {}
        }
    };
    let bare = ['"', '\''].into_iter().find_map(|q| value.strip_prefix(q)?.strip_suffix(q)).unwrap_or(value);
    let plain = |c: char| c.is_alphanumeric() || "._-".contains(c);
    (!bare.is_empty() && bare.chars().all(plain)).then_some(bare)
}

fn archive_id(repository: &Repository, stanza: &str, identity: &ClusterIdentity) -> Result<String> {
    let history = repository.stanza_history(stanza)?;
    let place = || format!("repo{} in {}", repository.key(), repository.store().describe());
    let Some(current) = history.last() else {
        return Err(Error::refused(Kind::FileMissing, format!("stanza '{stanza}' does not exist on {}", place())));
    };
    if !identity.matches(current) {
        let known = ClusterIdentity::from(current);
        let text = format!("stanza '{stanza}' on {} is for {known}, but the cluster is {identity}", place());
        return Err(Error::refused(Kind::FileInvalid, text));
    }
    Ok(current.archive_id())
}

fn wait(
    repository: &Repository,
    archive_id: &str,
    segment: &str,
    (options, left): (&CheckOptions<'_>, Duration),
    clock: &dyn Clock,
    cancel: &Cancel,
) -> Result<Archived> {
    let names = [segment.to_owned()];
    repository.wal_wait(options.stanza, archive_id, &names, left, clock, cancel).map_err(|e| {
        let key = repository.key();
        match e.kind() {
            Kind::ArchiveTimeout => Error::refused(
                Kind::ArchiveTimeout,
                format!(
                    "WAL segment {segment} was not archived to repo{key} before the {} ms timeout",
                    options.archive_timeout.as_millis()
                ),
            ),
            Kind::Interrupted => e,
            _ => e.during(format!("cannot look for WAL segment {segment} on repo{key}")),
        }
    })?;
    check_own(repository, options.stanza, archive_id, options.pgdata, segment, true)?;
    let object = layout::wal(options.stanza, archive_id, segment);
    Ok(Archived { segment: segment.to_owned(), place: format!("{}/{object}", repository.store().describe()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgkeep_formats::pg::version::Version;
    use pgkeep_formats::pg::wal::WalSegmentSize;

    fn server(archive_mode: ArchiveMode, command: &str, library: &str) -> Identity {
        Identity {
            version: Version::V15,
            version_num: 150_004,
            system_id: 1,
            catalog_version: 202_209_061,
            data_directory: "/data".into(),
            wal_segment_size: WalSegmentSize::DEFAULT,
            block_size: 8192,
            relation_segment_pages: 131_072,
            checksums: true,
            archive_mode,
            archive_command: command.to_owned(),
            archive_library: library.to_owned(),
            wal_level: "replica".to_owned(),
            in_recovery: false,
            timeline: TimelineId(1),
        }
    }

    #[test]
    fn each_wrong_setting_has_its_own_error() {
        use ArchiveMode::{Always, Off, On};
        let good = "pgkeep --stanza=demo archive-push %p";
        let kind = |mode, command, library, check| {
            configuration(&server(mode, command, library), check, &["pgkeep", "backuper"], "demo").map_err(|e| e.kind())
        };
        assert_eq!(kind(On, good, "", ArchiveCheck::Strict), Ok(()));
        assert_eq!(kind(On, "/opt/backuper archive-push %p", "", ArchiveCheck::Strict), Ok(()));
        assert_eq!(kind(Off, good, "", ArchiveCheck::Strict), Err(Kind::ArchiveDisabled));
        assert_eq!(kind(Off, good, "", ArchiveCheck::AnyMode), Err(Kind::ArchiveDisabled));
        assert_eq!(kind(Off, "", "", ArchiveCheck::Off), Ok(()));
        assert_eq!(kind(Always, good, "", ArchiveCheck::Strict), Err(Kind::FeatureNotSupported));
        assert_eq!(kind(Always, good, "", ArchiveCheck::AnyMode), Ok(()));
        assert_eq!(kind(On, "", "", ArchiveCheck::Strict), Err(Kind::ArchiveCommandInvalid));
        assert_eq!(kind(On, "cp %p /wal/%f", "", ArchiveCheck::AnyMode), Err(Kind::ArchiveCommandInvalid));
        assert_eq!(kind(On, good, "basic_archive", ArchiveCheck::Strict), Err(Kind::ArchiveCommandInvalid));
        assert_eq!(kind(On, "", "basic_archive", ArchiveCheck::Strict), Err(Kind::ArchiveCommandInvalid));
    }

    #[test]
    fn a_command_for_another_stanza_is_refused_if_it_says_so_plainly() {
        let of = |command: &str| {
            let server = server(ArchiveMode::On, command, "");
            configuration(&server, ArchiveCheck::AnyMode, &["pgkeep"], "demo").map_err(|e| e.to_string())
        };
        for good in [
            "pgkeep --stanza=demo archive-push %p",
            "pgkeep --stanza 'demo' archive-push %p",
            "pgkeep --stanza=\"demo\" archive-push %p",
            "pgkeep archive-push %p",
            "pgkeep --stanza=$STANZA archive-push %p",
            "pgkeep --stanza=$(hostname) archive-push %p",
            "pgkeep --stanza",
            "pgkeep --stanza=",
            "pgkeep --stanza=main archive-push %p && pgkeep --stanza=demo archive-push %p",
            "/usr/bin/pgkeep --stanza=main archive-push %p; pgkeep archive-push %p",
        ] {
            assert_eq!(of(good), Ok(()), "{good}");
        }
        for bad in [
            "pgkeep --stanza=main archive-push %p",
            "pgkeep --stanza 'main' archive-push %p",
            "test -f x && pgkeep --stanza=main archive-push %p",
        ] {
            let told = of(bad).unwrap_err();
            assert!(told.starts_with("archive_command archives for stanza 'main', not for 'demo'"), "{told}");
        }
    }

    #[test]
    fn a_name_is_told_once() {
        let names = ["pgkeep", "pgbackrest", "", "pgkeep"];
        let error =
            configuration(&server(ArchiveMode::On, "cp %p /wal", ""), ArchiveCheck::Strict, &names, "a").unwrap_err();
        assert_eq!(error.to_string(), "archive_command must contain 'pgkeep' or 'pgbackrest', but is 'cp %p /wal'");
    }
}
