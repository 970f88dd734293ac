//! From options to open repositories and reachable servers.

use crate::buckets;
use crate::error::Failure;
use crate::option::{Cipher, Command, Opt, PGBACKREST, Pg, Program, Repo, Settings};
use pgkeep_engine::archive::Configured;
use pgkeep_engine::clock::SystemClock;
use pgkeep_engine::crypto::{KeyFile, Passphrase, Unlock};
use pgkeep_engine::info::RepoAccess;
use pgkeep_engine::pg::datadir::names;
use pgkeep_engine::pg::server::ConnectOptions;
use pgkeep_engine::repository::{OpenOptions, Repository};
use pgkeep_engine::stanza::RepoTarget;
use pgkeep_engine::store::{LocalStore, RetryPolicy, RetryStore, Store};
use pgkeep_engine::{Error, FileError, Kind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Bytes that are kept of what clones read of a repository that is not near.
const CLONE_CACHE_BYTES: u64 = 1 << 30;

/// How often a request to a service is tried at most.
const REMOTE_TRIES: u32 = 20;

/// Opens one repository.
///
/// # Errors
/// What the store, the key or the repository said.
pub(crate) fn open(settings: &Settings, repo: Repo<'_>) -> Result<Arc<Repository>, Failure> {
    let store = store_of(settings, repo)?;
    let is_near = store.is_near();
    let repository = Repository::open(store, options(settings, repo)?)?;
    let bytes = clone_cache(settings, repo, is_near);
    if bytes == 0 {
        return Ok(Arc::new(repository));
    }
    if let Err(reason) = usable_cache(settings) {
        tracing::warn!("nothing is kept of the packs of repo{}: {reason}", repo.key());
        return Ok(Arc::new(repository));
    }
    Ok(Arc::new(repository.keeping_packs(bytes)))
}

/// The store of a repository, without opening it.
///
/// # Errors
/// What the store said.
pub(crate) fn store_of(settings: &Settings, repo: Repo<'_>) -> Result<Arc<dyn Store>, Failure> {
    if !repo.is_local() {
        let bucket = Arc::new(buckets::open(settings, repo)?);
        buckets::count(repo.key(), &bucket);
        return Ok(remote(settings, bucket));
    }
    Ok(near(settings, local(repo)?))
}

fn local(repo: Repo<'_>) -> Result<LocalStore, Error> {
    LocalStore::open(repo.path()).map_err(|e| match e.kind() {
        // pgBackRest looks for a file in it, and that is what its status says.
        Kind::PathMissing => {
            let text = format!("repository directory '{}' does not exist", repo.path().display());
            Error::refused(Kind::FileMissing, text)
        }
        _ => e.into(),
    })
}

/// How much is kept of what clones read. What is near is read again as fast as it could be kept.
fn clone_cache(settings: &Settings, repo: Repo<'_>, is_near: bool) -> u64 {
    let default = if is_near { 0 } else { CLONE_CACHE_BYTES };
    match settings.command() {
        Command::Restore if !settings.flag(Opt::Instant) => 0,
        // What a drill proves is that the repository has everything.
        Command::Restore | Command::Clone | Command::Mount | Command::Extract | Command::Diff => {
            repo.size(Opt::RepoCloneCacheSize).unwrap_or(default)
        }
        _ => 0,
    }
}

/// Opens the repositories the command reads from, in key order. One that fails is left out with a warning, unless it is
/// the only one.
///
/// # Errors
/// What the last one said if none is left.
pub(crate) fn usable(settings: &Settings) -> Result<Vec<Arc<Repository>>, Failure> {
    let (mut usable, mut failure) = (Vec::new(), None);
    for repo in settings.target_repos() {
        match open(settings, repo) {
            Ok(repository) => usable.push(repository),
            Err(e) => {
                if let Some(earlier) = failure.replace((repo.key(), e)) {
                    tracing::warn!("repo{} cannot be used: {}", earlier.0, chain(&earlier.1));
                }
            }
        }
    }
    match failure {
        Some((_, e)) if usable.is_empty() => Err(e),
        Some((key, e)) => {
            tracing::warn!("repo{key} cannot be used: {}", chain(&e));
            Ok(usable)
        }
        None => Ok(usable),
    }
}

/// Opens all repositories the command works on; those that fail keep their error.
///
/// # Errors
/// Only what concerns no repository in particular.
pub(crate) fn configured(settings: &Settings) -> Result<Vec<Configured>, Failure> {
    let one = |repo: Repo<'_>| {
        let repository = match open(settings, repo) {
            Ok(repository) => Ok(repository),
            Err(Failure::Engine(e)) => Err(e),
            Err(other) => return Err(other),
        };
        Ok(Configured { key: repo.key().into(), repository })
    };
    settings.target_repos().map(one).collect()
}

/// A repository as `info` sees it: its failure is something to show.
///
/// # Errors
/// What a key file said.
pub(crate) fn access(settings: &Settings, repo: Repo<'_>) -> Result<RepoAccess, Failure> {
    let store = match store_of(settings, repo) {
        Ok(store) => store,
        Err(Failure::Engine(e)) => return Ok(RepoAccess::Failed(e)),
        Err(other) => return Err(other),
    };
    let place = store.describe();
    let access = RepoAccess::open(store, options(settings, repo)?);
    if matches!(access, RepoAccess::Missing) {
        // Not an error, as it is none for pgBackRest; but before the first 'stanza-create' only.
        let key = repo.key();
        if repo.is_local() {
            tracing::warn!(
                "repo{key}: there is no repository in '{}', the directory is empty: is its file system mounted? \
                 'stanza-create' makes a new one",
                repo.path().display()
            );
        } else {
            tracing::warn!(
                "repo{key}: there is no repository in {place}: are bucket and repo{key}-path right? 'stanza-create' \
                 makes a new one"
            );
        }
    }
    Ok(access)
}

/// A repository that need not exist yet. Only who makes it makes its directory: a disk may not be mounted.
///
/// # Errors
/// What the directory or a key file said.
pub(crate) fn target(settings: &Settings, repo: Repo<'_>) -> Result<RepoTarget, Failure> {
    let store = if repo.is_local() {
        near(
            settings,
            match settings.command() {
                Command::StanzaCreate => LocalStore::create(repo.path()).map_err(Error::from)?,
                _ => local(repo)?,
            },
        )
    } else {
        store_of(settings, repo)?
    };
    Ok(RepoTarget { store, options: options(settings, repo)? })
}

/// How to reach the server of the first cluster.
pub(crate) fn server(settings: &Settings) -> ConnectOptions {
    server_of(settings, settings.pg(1))
}

/// How to reach the server of a cluster.
pub(crate) fn server_of(settings: &Settings, pg: Pg<'_>) -> ConnectOptions {
    ConnectOptions {
        host: None,
        socket_path: pg.socket_path().map(Path::to_path_buf),
        port: pg.port(),
        user: pg.user().map(str::to_owned),
        database: pg.database().to_owned(),
        query_timeout: settings.time(Opt::DbTimeout),
        ..ConnectOptions::default()
    }
}

/// Data directory of the first cluster.
///
/// # Errors
/// `OptionRequired` if it is not configured.
pub(crate) fn pgdata(settings: &Settings) -> Result<PathBuf, Failure> {
    pgdata_of(settings.pg(1))
}

/// Data directory of a cluster.
///
/// # Errors
/// `OptionRequired` if it is not configured.
pub(crate) fn pgdata_of(pg: Pg<'_>) -> Result<PathBuf, Failure> {
    let missing = || Error::refused(Kind::OptionRequired, format!("option pg{}-path is required", pg.key()));
    Ok(pg.path().ok_or_else(missing)?.to_path_buf())
}

/// A store at the other end of a network is tried again as long as `io-timeout` allows, whatever `job-retry` says: what asks
/// to come again later means seconds.
fn remote(settings: &Settings, store: impl Store + 'static) -> Arc<dyn Store> {
    let policy = RetryPolicy { tries: REMOTE_TRIES, total: settings.time(Opt::IoTimeout), ..RetryPolicy::default() };
    Arc::new(RetryStore::new(store, Arc::new(SystemClock), policy))
}

fn near(settings: &Settings, local: LocalStore) -> Arc<dyn Store> {
    let first_wait = Duration::from_millis(100);
    let tries = settings.int(Opt::JobRetry).and_then(|n| u32::try_from(n).ok()).unwrap_or(2) + 1;
    let (total, longest_wait) = (settings.time(Opt::IoTimeout), settings.time(Opt::JobRetryInterval).max(first_wait));
    Arc::new(RetryStore::new(local, Arc::new(SystemClock), RetryPolicy { tries, total, first_wait, longest_wait }))
}

fn options(settings: &Settings, repo: Repo<'_>) -> Result<OpenOptions, Failure> {
    let unlock = match repo.cipher() {
        Cipher::None => Unlock::None,
        Cipher::Passphrase(secret) => Unlock::Passphrase(Passphrase::new(secret.expose().to_owned())),
        Cipher::PassphraseFile(path) => Unlock::Passphrase(Passphrase::new(first_line(path)?)),
        Cipher::KeyFile(path) => Unlock::KeyFile(KeyFile::read(path)?),
    };
    Ok(OpenOptions { key: repo.key().into(), unlock, cache: cache(settings, repo) })
}

fn first_line(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(FileError::at("open", path)).map_err(Failure::file)?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => {
            let text = format!("the passphrase file '{}' is empty", path.display());
            Err(Error::refused(Kind::FileInvalid, text).into())
        }
    }
}

/// The cache directory, if it can be used. Those who lose most by its absence, or are listened to, say why it cannot;
/// archive-push would say it with every segment.
fn cache(settings: &Settings, repo: Repo<'_>) -> Option<PathBuf> {
    let is_sealed = !matches!(repo.cipher(), Cipher::None);
    let keeps_pages =
        repo.text(Opt::RepoDelta) == Some("cache") || repo.size(Opt::RepoDeltaCacheSize).is_some_and(|s| s > 0);
    let found = usable_cache(settings);
    match (&found, settings.command()) {
        (Err(reason), Command::Check | Command::StanzaCreate | Command::Backup) if is_sealed => {
            let text = format!("no cache, so each run derives the repository's key anew, archive-push too: {reason}");
            match is_told_aside(settings.program(), settings.is_given(Opt::CachePath)) {
                true => tracing::info!("{text}"),
                false => tracing::warn!("{text}"),
            }
        }
        (Err(reason), Command::Backup) if keeps_pages => {
            tracing::warn!("no cache, so no old pages are kept on this host: {reason}");
        }
        (Err(reason), _) => tracing::debug!("no cache: {reason}"),
        (Ok(_), _) => {}
    }
    found.ok()
}

/// Who brought a configuration of pgBackRest along never heard of a cache, and without one everything works.
fn is_told_aside(program: &Program, is_given: bool) -> bool {
    *program == PGBACKREST && !is_given
}

/// The cache directory, made if need be; or why it is not ours to use.
fn usable_cache(settings: &Settings) -> Result<PathBuf, String> {
    let path = settings.path(Opt::CachePath).ok_or("cache-path is not set")?;
    cache_of(path, rustix::process::geteuid().as_raw())
}

/// Whoever restores as root must not leave files there that keep the server's own user out, so a cache of another user is not
/// used, without which everything works, only slower; one that root makes is handed over at the end (`made.rs`).
fn cache_of(path: &Path, user: u32) -> Result<PathBuf, String> {
    let mut builder = std::fs::DirBuilder::new();
    let shown = path.display();
    builder.recursive(true).mode(0o700).create(path).map_err(|e| {
        format!("cannot create '{shown}': {e}: make it for the user who runs this, or have cache-path name another directory")
    })?;
    let facts = std::fs::metadata(path).map_err(|e| format!("cannot stat '{shown}': {e}"))?;
    if facts.uid() == user {
        return Ok(path.to_path_buf());
    }
    let name = |id: u32| names::user(id).unwrap_or_else(|| id.to_string());
    let (owner, user) = (name(facts.uid()), name(user));
    Err(format!(
        "the cache directory '{shown}' belongs to user '{owner}', not to '{user}': run the command as '{owner}', or have \
         cache-path name a directory that '{user}' owns"
    ))
}

/// Name of this run in lock files: process and a random part.
pub(crate) fn exec_id() -> String {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    format!("{}-{nanos:08x}", std::process::id())
}

/// This host and process, for messages in the repository.
pub(crate) fn host() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{name}:{}", std::process::id())
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_nobody_asked_for_is_no_warning_under_the_other_name() {
        assert!(is_told_aside(&PGBACKREST, false));
        assert!(!is_told_aside(&PGBACKREST, true) && !is_told_aside(&crate::option::PGKEEP, false));
    }

    #[test]
    fn a_cache_of_somebody_else_is_named_with_its_owner_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let (path, owner) = (dir.path().join("cache"), rustix::process::geteuid().as_raw());
        assert_eq!(cache_of(&path, owner), Ok(path.clone()));
        let stranger = 4_000_000_001;
        let reason = cache_of(&path, stranger).unwrap_err();
        let named = names::user(owner).unwrap_or_else(|| owner.to_string());
        for part in
            [&format!("'{}'", path.display()), &format!("belongs to user '{named}', not to '{stranger}'"), "cache-path"]
        {
            assert!(reason.contains(part), "{reason}");
        }
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(cache_of(&dir.path().join("file/cache"), owner).unwrap_err().starts_with("cannot create '"));
    }
}
