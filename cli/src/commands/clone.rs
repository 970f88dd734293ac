//! `clone`: writable clones of a backup, each a directory and a mount.
//!
//! `create` makes the directory and serves it, `mount` serves it again (after a reboot, or when the daemon died), `start` and
//! `stop` do that and start and stop its server, `hydrate` fetches everything, `promote` makes an ordinary data directory of
//! it, `list` and `info` show clones (`clone/show.rs`), `destroy` removes one with everything that was written to it.

mod absent;
pub(crate) mod instant;
mod life;
pub(super) mod make;
pub(super) mod server;
mod settings;
mod show;
pub(super) mod told;
mod traces;

use super::Context;
use crate::daemon::{self, Served};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::action::{OF_MAKING, OF_RESET};
use crate::option::{Opt, OptionError, Settings, Source};
use crate::{mounts, repos, servers};
use pgkeep_engine::clock::SystemClock;
use pgkeep_engine::repository::{ChunkSource, PinGuard, Repository};
use pgkeep_engine::restore::Choice;
use pgkeep_engine::view::{BackupSnapshot, ChunkCache, Snapshot};
use pgkeep_engine::{Error, FileError, Kind};
use pgkeep_formats::id::SessionId;
use pgkeep_formats::repo::records::Commit;
use pgkeep_fuse::clone::{self, CloneInfo, OpenMode, Tracing};
use pgkeep_fuse::{IfUsed, Left, MountOptions, Mounted};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a server that is told to quit at once may take.
const QUIT_WAIT: Duration = Duration::from_secs(10);
/// How long processes of a server may take to notice that it died.
const LEFT_WAIT: Duration = Duration::from_secs(3);
/// How long the daemon may take to make everything durable after the unmount.
const END_WAIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);
/// Decoded chunks that are kept. What is fetched stays in the clone's files: only pages of one chunk that lie far apart,
/// as those of an increment do, are found here again. There may be many clones on a host, each served by a process.
const CHUNK_CACHE_BYTES: usize = 16 << 20;

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    refuse_unused(context.settings)?;
    match context.settings.param(0).to_str() {
        Some("create") => create(context),
        Some("mount") if context.settings.flag(Opt::Start) => life::start(context),
        Some("mount") => daemon::run(context, mount),
        Some("start") => life::start(context),
        Some("stop") => life::stop(context),
        Some("reset") => life::reset(context),
        Some("hydrate") => life::hydrate(context),
        Some("promote") => life::promote(context),
        Some("list") => show::list(context.settings),
        Some("info") => show::info(context.settings),
        Some("destroy") => destroy(context.settings),
        _ => {
            // Actions that do not exist are refused with the command line.
            let text = format!("'clone {}' was taken for an action", context.settings.param(0).display());
            Err(Error::refused(Kind::Assert, text).into())
        }
    }
}

/// Refuses what was typed for a clone that is made already: it would change nothing.
fn refuse_unused(settings: &Settings) -> Result<(), Failure> {
    let what = settings.param(0);
    if what == Path::new("create") {
        return Ok(());
    }
    let is_typed = |opt: &Opt| settings.setting(*opt, 0).is_some_and(|s| s.source == Source::CommandLine);
    let is_used = |opt: &Opt| what == Path::new("reset") && OF_RESET.contains(opt);
    match OF_MAKING.iter().find(|opt| is_typed(opt) && !is_used(opt)) {
        None => Ok(()),
        Some(opt) => {
            let message =
                format!("option '{}' is for making a clone, not for 'clone {}'", opt.def().name, what.display());
            Err(OptionError::new(Status::OPTION_INVALID, message)
                .hint("the clone keeps what it was made with; 'clone reset' takes another port and socket-path")
                .into())
        }
    }
}

/// Makes a clone and, with `--start`, starts its server.
fn create(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let start = settings.flag(Opt::Start);
    if start && settings.flag(Opt::Foreground) {
        let message = "option start is not for a clone that is served in front: start its server beside it";
        return Err(OptionError::new(Status::OPTION_INVALID, message).into());
    }
    let status = daemon::run(context, make::create)?;
    if start && !settings.flag(Opt::ReadyPipe) && status == Status::OK {
        return life::started(context, &dir(settings));
    }
    Ok(status)
}

/// What the clone in a directory is of.
///
/// # Errors
/// What `clone::info` said, or, where the directory is something else that is known, what that is.
fn known(dir: &Path) -> Result<CloneInfo, Failure> {
    clone::info(dir).map_err(|error| taken_for_a_clone(dir).unwrap_or_else(|| error.into()))
}

/// What a directory is that somebody takes for a clone's: a mountpoint, a part of a clone, a cluster, a place of clones.
fn taken_for_a_clone(dir: &Path) -> Option<Failure> {
    let shown = dir.display();
    let text = if let Ok(Some(own)) = mounts::clone_on(dir) {
        format!("'{shown}' is where clone '{}' is mounted, not its own directory", own.display())
    } else if let Some(own) = dir.ancestors().skip(1).find(|above| clone::info(above).is_ok()) {
        format!("'{shown}' is a part of clone '{}', not its own directory", own.display())
    } else if dir.join("PG_VERSION").is_file() {
        format!("'{shown}' is an ordinary data directory, not a clone")
    } else {
        let clones = clone::list(dir).ok().filter(|clones| !clones.is_empty())?;
        let names: Vec<_> = clones.iter().map(|(path, _)| format!("'{}'", path.display())).collect();
        format!("'{shown}' is not a clone, but holds some: {}", names.join(", "))
    };
    Some(Error::refused(Kind::PathMissing, text).into())
}

/// The clone's directory, absolute.
fn dir(settings: &Settings) -> PathBuf {
    mounts::resolved(settings.path(Opt::Dir).unwrap_or(Path::new("")))
}

fn stanza(settings: &Settings) -> Result<&str, Failure> {
    settings.stanza().ok_or_else(|| {
        let message = "command clone needs option 'stanza' to read a backup";
        OptionError::new(Status::OPTION_REQUIRED, message).into()
    })
}

fn required(what: &str) -> Failure {
    OptionError::new(Status::OPTION_REQUIRED, format!("command clone needs option '{what}'")).into()
}

/// Refuses a clone's directory and a mountpoint of which one is in the other: requests would wait for themselves.
fn check_apart(dir: &Path, mountpoint: &Path) -> Result<(), Failure> {
    if dir.starts_with(mountpoint) || mountpoint.starts_with(dir) {
        let text = format!("clone '{}' and mountpoint '{}' lie in each other", dir.display(), mountpoint.display());
        return Err(Error::refused(Kind::OptionInvalidValue, text).into());
    }
    Ok(())
}

fn open(repository: &Arc<Repository>, stanza: &str, backup: &Commit) -> Result<Arc<dyn Snapshot>, Failure> {
    let index = repository.load_index_of_what_is_there()?;
    let source = Arc::new(ChunkSource::new(Arc::clone(repository), index, stanza));
    let cache = Arc::new(ChunkCache::new(CHUNK_CACHE_BYTES));
    Ok(Arc::new(BackupSnapshot::open(source, backup, cache)?))
}

/// Under which name a clone's record has the pin that keeps its backup.
const PIN: &str = "pin";
/// How long a clone holds its backup at the most, should it be removed by other means than `clone destroy`.
const PINNED_FOR: Duration = Duration::from_secs(365 * 24 * 3600);
/// The same of one that a command makes for itself.
const SCRATCH_PINNED_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// Keeps the backup of a clone that is to be made.
fn pin(choice: &Choice, stanza: &str, is_scratch: bool) -> Result<Option<PinGuard>, Failure> {
    let time = if is_scratch { SCRATCH_PINNED_FOR } else { PINNED_FOR };
    Ok(choice.repository.try_pin(stanza, choice.backup.session, "clone", time, &SystemClock)?)
}

/// What a clone records, with its pin.
fn pinned(mut identity: Vec<(String, String)>, pin: Option<&PinGuard>) -> Vec<(String, String)> {
    identity.extend(pin.map(|pin| (PIN.to_owned(), pin.name().to_owned())));
    identity
}

/// Lets the backup of a clone go that is gone, or needs it no more. The pin ends by itself too, so this need not succeed.
fn unpin(settings: &Settings, info: &CloneInfo) {
    let (pin, key) = (recorded(info, PIN), recorded(info, "repository"));
    let Some(repo) = settings.repos().find(|r| r.key().to_string() == key).filter(|_| !pin.is_empty()) else { return };
    let unpinned = repos::open(settings, repo).and_then(|repository| Ok(repository.unpin(pin)?));
    if let Err(e) = unpinned {
        tracing::warn!("repo{key} keeps the backup of the clone until its pin ends: {}", repos::chain(&e));
    }
}

fn open_mode(settings: &Settings) -> OpenMode {
    settings.text(Opt::CloneOpenMode).and_then(OpenMode::parse).unwrap_or_default()
}

fn mount_options(settings: &Settings, dir: &Path) -> MountOptions {
    MountOptions { source: mounts::source_of(dir), open_mode: open_mode(settings), ..MountOptions::default() }
}

/// What the creator recorded under a name.
fn recorded<'a>(info: &'a CloneInfo, name: &str) -> &'a str {
    info.identity.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
}

fn check_stanza(info: &CloneInfo, stanza: &str, dir: &Path) -> Result<(), Failure> {
    let of = recorded(info, "stanza");
    if of != stanza {
        let text = format!("clone '{}' is of stanza '{of}', not '{stanza}'", dir.display());
        return Err(Error::refused(Kind::OptionInvalidValue, text).into());
    }
    Ok(())
}

/// True if the clone is a restore that is served until it is complete.
fn is_restore(info: &CloneInfo) -> bool {
    recorded(info, instant::FOR) == instant::FOR_RESTORE
}

fn mount(context: &Context<'_>) -> Result<Served, Failure> {
    mount_at(context, &dir(context.settings), context.settings.path(Opt::Mountpoint))
}

/// Mounts a clone where it was mounted, or on another directory.
fn mount_at(context: &Context<'_>, dir: &Path, mountpoint: Option<&Path>) -> Result<Served, Failure> {
    let settings = context.settings;
    let stanza = stanza(settings)?;
    let info = known(dir)?;
    check_stanza(&info, stanza, dir)?;
    let recorded_on = Some(recorded(&info, "mountpoint")).filter(|m| !m.is_empty()).map(Path::new);
    let mountpoint = mountpoint.or(recorded_on).ok_or_else(|| required("mountpoint"))?;
    if !mounts::of_source(&mounts::source_of(dir))?.is_empty() {
        // Served as it should be: no server is to be ended.
        clone::check_free(dir)?;
    }
    refuse_running(settings, dir)?;
    if !clone::is_held(dir)? {
        servers::forget_dead(&dir.join("data"))?;
    }
    mounts::refuse_inside(settings, &mounts::resolved(mountpoint))?;
    let mountpoint = mounts::prepare(mountpoint)?;
    check_apart(dir, &mountpoint)?;
    let (snapshot, tracing) = backup_of(settings, dir, &info).or_else(|failure| {
        let snapshot = absent::of_hydrated(dir, &info, failure)?;
        Ok::<_, Failure>((snapshot, Tracing::default()))
    })?;
    let session = {
        let _claim = mounts::claim(&mountpoint)?;
        clone::serve_traced(dir, snapshot, &mountpoint, &mount_options(settings, dir), tracing)?
    };
    // One that somebody looks at elsewhere stays a clone.
    let becomes_plain = is_restore(&info) && Path::new(recorded(&info, "mountpoint")) == session.mountpoint();
    if !is_restore(&info) {
        settings::place(session.mountpoint())?;
    }
    let text = told::told(settings, &info, dir, session.mountpoint());
    Ok(Served { session, clone: Some(dir.to_owned()), text, becomes_plain })
}

/// The backup that a clone was made from, and what becomes of traces.
fn backup_of(settings: &Settings, dir: &Path, info: &CloneInfo) -> Result<(Arc<dyn Snapshot>, Tracing), Failure> {
    let (stanza, label) = (stanza(settings)?, recorded(info, "label"));
    let key = settings.chosen_repo().map(|k| k.to_string());
    let key = key.as_deref().unwrap_or(recorded(info, "repository"));
    let repo = settings.repos().find(|r| r.key().to_string() == key).ok_or_else(|| {
        let text = format!("repo{key}, which clone '{}' was made from, is not configured", dir.display());
        Error::refused(Kind::OptionRequired, text)
    })?;
    let repository = repos::open(settings, repo)?;
    let (backups, unreadable) = repository.backups_readable(stanza)?;
    for e in &unreadable {
        tracing::warn!("repo{key}: a backup is passed over, as its record cannot be read: {}", repos::chain(e));
    }
    let visible = backups.into_iter().find(|b| b.label == label && b.session.to_string() == recorded(info, "session"));
    // Its pin keeps what has expired since.
    let expired = || match (SessionId::parse(recorded(info, "session")), recorded(info, PIN)) {
        (Ok(session), pin) if !pin.is_empty() => repository.pinned_backup(stanza, session, pin),
        _ => Ok(None),
    };
    let backup = visible.map_or_else(expired, |found| Ok(Some(found)))?.ok_or_else(|| {
        let text =
            format!("backup {label}, which clone '{}' was made from, is not in repo{key} any more", dir.display());
        Error::refused(Kind::BackupSetInvalid, text)
    })?;
    let tracing = traces::of(settings, &repository, stanza, backup.session);
    Ok((open(&repository, stanza, &backup)?, tracing))
}

/// A server of an earlier mount writes into whatever is mounted in its place, and keeps another from starting.
fn refuse_running(settings: &Settings, dir: &Path) -> Result<(), Failure> {
    let force = settings.flag(Opt::Force);
    match servers::of_clone(dir)? {
        Some(pid) if force => quit(pid)?,
        Some(pid) => {
            let text = format!("a server, process {pid}, runs on clone '{}'; --force ends it", dir.display());
            return Err(Error::refused(Kind::PostgresRunning, text).into());
        }
        None => {}
    }
    let begun = Instant::now();
    loop {
        // Those of a server that has just died end by themselves, but for one that is busy.
        let left = servers::left_on_clone(dir)?;
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() < LEFT_WAIT {
            std::thread::sleep(PAUSE);
        } else if force {
            left.into_iter().try_for_each(quit)?;
        } else {
            let text =
                format!("processes {left:?} of a server that died run on clone '{}'; --force ends them", dir.display());
            return Err(Error::refused(Kind::PostgresRunning, text).into());
        }
    }
}

fn destroy(settings: &Settings) -> Result<Status, Failure> {
    let dir = dir(settings);
    let info = clone::info(&dir);
    let known = clone::info(&dir).ok();
    let is_of_restore = info.as_ref().is_ok_and(is_restore);
    // Before all else: nothing is done to what is no clone, nor to a server that runs below it. The rest of a clone goes.
    clone::try_destroy(&dir).map_err(|refused| {
        let why = match (info, refused) {
            (Err(why), Error::File(_)) => why,
            (_, refused) => refused,
        };
        taken_for_a_clone(&dir).unwrap_or_else(|| why.into())
    })?;
    if !settings.flag(Opt::Force) && is_of_restore {
        let text =
            format!("'{}' is a restore, with all that its server has written since; --force removes it", dir.display());
        return Err(Error::refused(Kind::OptionInvalidValue, text).into());
    }
    refuse_running(settings, &dir)?;
    let mounted = mounts::of_source(&mounts::source_of(&dir))?;
    leave(&dir, &mounted)?;
    // The daemon holds the clone until everything is durable.
    let begun = Instant::now();
    loop {
        match clone::destroy(&dir) {
            Err(e) if e.kind() == Kind::LockAcquire && !mounted.is_empty() && begun.elapsed() < END_WAIT => {
                std::thread::sleep(PAUSE);
            }
            other => {
                other?;
                break;
            }
        }
    }
    tracing::info!("clone '{}' is removed", dir.display());
    if let Some(info) = known {
        unpin(settings, &info);
    }
    Ok(Status::OK)
}

/// Takes a clone's mounts away.
fn leave(dir: &Path, mounted: &[Mounted]) -> Result<(), Failure> {
    for mount in mounted {
        let on = mount.on.display();
        let text = match mount.unmount(IfUsed::Stay)? {
            Left::Gone => continue,
            Left::Used => format!("'{on}' is used by processes {:?}", servers::users_of(&mount.on)),
            Left::Covered => format!("another mount lies over '{on}'"),
        };
        return Err(Error::refused(Kind::Kernel, format!("cannot unmount clone '{}': {text}", dir.display())).into());
    }
    Ok(())
}

/// Takes a clone's mounts away and waits until its daemon has made everything durable.
fn unmount(dir: &Path, mounted: &[Mounted]) -> Result<(), Failure> {
    leave(dir, mounted)?;
    let begun = Instant::now();
    loop {
        match clone::check_free(dir) {
            Err(e) if e.kind() == Kind::LockAcquire && !mounted.is_empty() && begun.elapsed() < END_WAIT => {
                std::thread::sleep(PAUSE);
            }
            other => return Ok(other?),
        }
    }
}

/// Ends a server at once: what it has is lost already, or going to be removed.
fn quit(pid: u32) -> Result<(), Failure> {
    if servers::end(pid, Signal::QUIT, QUIT_WAIT)? {
        return Ok(());
    }
    Err(Error::refused(Kind::PostgresRunning, format!("server {pid} did not end")).into())
}

/// A directory that must be there.
fn canonical(path: &Path) -> Result<PathBuf, Failure> {
    path.canonicalize().map_err(|e| Failure::file(FileError::at("open", path)(e)))
}
