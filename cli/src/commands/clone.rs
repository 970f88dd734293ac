//! `clone`: writable clones of a backup, each a directory and a mount.
//!
//! `create` makes the directory and serves it, `mount` serves it again (after a reboot, or when the daemon died), `start` and
//! `stop` do that and start and stop its server, `hydrate` fetches everything, `promote` makes an ordinary data directory of
//! it, `list` and `info` show clones, `destroy` removes one with everything that was written to it.

mod absent;
pub(crate) mod instant;
pub(super) mod life;
pub(super) mod make;
mod settings;
pub(super) mod told;
mod traces;

use super::Context;
use crate::daemon::{self, Served};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Command, Opt, OptionError, Settings, Source};
use crate::render::{self, json};
use crate::size::human_size;
use crate::{mounts, repos, servers, zone};
use pgkeep_engine::repository::{ChunkSource, Repository};
use pgkeep_engine::view::{BackupSnapshot, ChunkCache, Snapshot};
use pgkeep_engine::{Error, FileError, Kind};
use pgkeep_formats::repo::records::Commit;
use pgkeep_fuse::clone::{self, CloneInfo, Hydration, HydrationState, OpenMode, Tracing};
use pgkeep_fuse::{IfUsed, Left, MountOptions, Mounted};
use rustix::process::Signal;
use serde_json::json;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a server that is told to quit at once may take.
const QUIT_WAIT: Duration = Duration::from_secs(10);
/// How long the daemon may take to make everything durable after the unmount.
const END_WAIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);
/// The unit of `st_blocks`, whatever the file system's blocks are.
const STAT_BLOCK_BYTES: u64 = 512;
/// Decoded chunks that are kept. What is fetched stays in the clone's files: only pages of one chunk that lie far apart,
/// as those of an increment do, are found here again. There may be many clones on a host, each served by a process.
const CHUNK_CACHE_BYTES: usize = 16 << 20;

/// Options that say what a clone is made of and what its server is told.
const OF_MAKING: [Opt; 10] = [
    Opt::Set,
    Opt::Type,
    Opt::Target,
    Opt::TargetAction,
    Opt::TargetExclusive,
    Opt::TargetTimeline,
    Opt::RecoveryOption,
    Opt::ArchiveTo,
    Opt::Port,
    Opt::SocketPath,
];
/// Those of them that `clone reset` takes.
const OF_RESET: [Opt; 2] = [Opt::Port, Opt::SocketPath];

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
        Some("list") => list(context.settings),
        Some("info") => info(context.settings),
        Some("destroy") => destroy(context.settings),
        _ => {
            let message = format!("'{}' is not something to do with clones", context.settings.param(0).display());
            Err(OptionError::new(Status::PARAM_INVALID, message)
                .hint("it is 'create', 'mount', 'start', 'stop', 'reset', 'hydrate', 'promote', 'list', 'info' or 'destroy'")
                .into())
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
    let index = repository.load_index_to_read()?;
    let source = Arc::new(ChunkSource::new(Arc::clone(repository), index, stanza));
    let cache = Arc::new(ChunkCache::new(CHUNK_CACHE_BYTES));
    Ok(Arc::new(BackupSnapshot::open(source, backup, cache)?))
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
    let info = clone::info(dir)?;
    check_stanza(&info, stanza, dir)?;
    let recorded_on = Some(recorded(&info, "mountpoint")).filter(|m| !m.is_empty()).map(Path::new);
    let mountpoint = mountpoint.or(recorded_on).ok_or_else(|| required("mountpoint"))?;
    if !mounts::of_source(&mounts::source_of(dir))?.is_empty() {
        // Served as it should be: no server is to be ended.
        clone::check_free(dir)?;
    }
    refuse_running(settings, dir)?;
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
    let backup = backups.iter().find(|b| b.label == label && b.session.to_string() == recorded(info, "session"));
    let backup = backup.ok_or_else(|| {
        let text =
            format!("backup {label}, which clone '{}' was made from, is not in repo{key} any more", dir.display());
        Error::refused(Kind::BackupSetInvalid, text)
    })?;
    let tracing = traces::of(settings, &repository, stanza, backup.session);
    Ok((open(&repository, stanza, backup)?, tracing))
}

/// A server of an earlier mount writes into whatever is mounted in its place, and keeps another from starting.
fn refuse_running(settings: &Settings, dir: &Path) -> Result<(), Failure> {
    match servers::of_clone(dir)? {
        Some(pid) if settings.flag(Opt::Force) => quit(pid),
        Some(pid) => {
            let text = format!("a server, process {pid}, runs on clone '{}'; --force ends it", dir.display());
            Err(Error::refused(Kind::PostgresRunning, text).into())
        }
        None => Ok(()),
    }
}

/// A clone as it is now.
struct State {
    dir: PathBuf,
    info: CloneInfo,
    mounted: Vec<Mounted>,
    /// The server's process, if one runs on it.
    postmaster: Option<u32>,
    hydration: Option<Hydration>,
}

fn state(dir: PathBuf, info: CloneInfo) -> Result<State, Failure> {
    let mounted = mounts::of_source(&mounts::source_of(&dir))?;
    let postmaster = servers::of_clone(&dir)?;
    let hydration = clone::hydration(&dir)?;
    Ok(State { dir, info, mounted, postmaster, hydration })
}

fn list(settings: &Settings) -> Result<Status, Failure> {
    let dir = dir(settings);
    let clones = match clone::info(&dir) {
        Err(e) if e.kind() == Kind::PathMissing => clone::list(&dir)?,
        info => vec![(dir, info)],
    };
    let mut status = Status::OK;
    let mut states = Vec::new();
    for (dir, info) in clones {
        match info.map_err(Failure::from).and_then(|info| state(dir.clone(), info)) {
            Ok(state) => states.push(state),
            // The others are good all the same.
            Err(e) => {
                tracing::error!("{}", e.report(Some(Command::Clone)));
                status = e.status();
            }
        }
    }
    if settings.text(Opt::Output) == Some("json") {
        render::print(&json::to_text(states.iter().map(of_state).collect()))?;
        return Ok(status);
    }
    let text: String = states.iter().map(text_of).collect();
    let none = text.is_empty() && status == Status::OK;
    render::print(if none { "No clones exist in the directory.\n" } else { &text })?;
    Ok(status)
}

fn info(settings: &Settings) -> Result<Status, Failure> {
    let dir = dir(settings);
    let state = state(dir.clone(), clone::info(&dir)?)?;
    // What this user may not list is not counted, and then the sum says nothing.
    let held = match held_bytes(&dir) {
        Ok(held) => Some(held),
        Err(e) => {
            tracing::debug!("how much clone '{}' takes is not known: {e}", dir.display());
            None
        }
    };
    if settings.text(Opt::Output) == Some("json") {
        let mut value = of_state(&state);
        value["held"] = held.into();
        render::print(&json::to_text(value))?;
    } else {
        let held = held.map_or_else(|| "not known".to_owned(), human_size);
        render::print(&format!("{}    on disk: {held}\n", text_of(&state)))?;
    }
    Ok(Status::OK)
}

/// Bytes that the clone takes on its file system. What vanishes meanwhile takes none.
fn held_bytes(dir: &Path) -> Result<u64, Failure> {
    let failed = |what, path: &Path, e| Failure::file(FileError::at(what, path)(e));
    let mut held = 0;
    let mut directories = vec![dir.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(|e| failed("list", &directory, e))?,
        };
        for entry in entries {
            let entry = entry.map_err(|e| failed("list", &directory, e))?;
            match entry.metadata() {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed("stat", &entry.path(), e)),
                Ok(facts) => {
                    held += facts.blocks() * STAT_BLOCK_BYTES;
                    if facts.is_dir() {
                        directories.push(entry.path());
                    }
                }
            }
        }
    }
    Ok(held)
}

fn of_state(s: &State) -> serde_json::Value {
    let of = |name| recorded(&s.info, name);
    let hydration = s
        .hydration
        .as_ref()
        .map(|h| json!({ "state": h.state.as_str(), "done": h.done, "total": h.total, "error": h.error }));
    json!({
        "dir": s.dir.display().to_string(),
        "stanza": of("stanza"),
        "label": of("label"),
        "repository": of("repository").parse::<u32>().ok(),
        "type": of("type"),
        "target": Some(of("target")).filter(|t| !t.is_empty()),
        "port": of("port").parse::<u16>().ok(),
        "socket": of("socket"),
        "mountpoint": s.mounted.first().map(|m| m.on.display().to_string()),
        "postmaster": s.postmaster,
        "created": s.info.created,
        "files": s.info.files,
        "bytes": s.info.bytes,
        "hydration": hydration,
    })
}

fn text_of(s: &State) -> String {
    let of = |name| recorded(&s.info, name);
    let created = jiff::Timestamp::from_second(s.info.created).unwrap_or_default().to_zoned(zone::local());
    let place = match (s.mounted.first(), s.postmaster) {
        (Some(on), Some(pid)) => format!("mounted on {}, server {pid} on port {}", on.on.display(), of("port")),
        (Some(on), None) => format!("mounted on {}, no server", on.on.display()),
        (None, Some(pid)) => format!("not mounted, but server {pid} still runs on it"),
        (None, None) => format!("not mounted, port {}", of("port")),
    };
    let hydration = match &s.hydration {
        Some(h) if h.state == HydrationState::Done => {
            "    hydration: done, all pages of the backup are here\n".to_owned()
        }
        Some(h) => format!(
            "    hydration: {}, {} of {}{}\n",
            h.state.as_str(),
            human_size(h.done),
            human_size(h.total),
            h.error.as_ref().map_or_else(String::new, |e| format!(": {e}"))
        ),
        None => String::new(),
    };
    let target = match (of("type"), of("target")) {
        (kind, "") => kind.to_owned(),
        (kind, target) => format!("{kind} {target}"),
    };
    format!(
        "clone: {}\n    backup: {} of stanza {}, repo{}, recovered to: {target}\n    size: {}, created {}\n    status: {place}\n{hydration}",
        s.dir.display(),
        of("label"),
        of("stanza"),
        of("repository"),
        human_size(s.info.bytes),
        created.strftime("%Y-%m-%d %H:%M:%S%:::z")
    )
}

fn destroy(settings: &Settings) -> Result<Status, Failure> {
    let dir = dir(settings);
    if !dir.is_dir() {
        return Err(Error::refused(Kind::PathMissing, format!("there is no clone '{}'", dir.display())).into());
    }
    if !settings.flag(Opt::Force) && clone::info(&dir).is_ok_and(|info| is_restore(&info)) {
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
