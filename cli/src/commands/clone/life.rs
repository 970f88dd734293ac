//! The life of a clone once it is made: its server started and stopped, all of it fetched, and the end as an ordinary data
//! directory.

use super::{
    State, canonical, dir, instant, make, mount, recorded, refuse_running, required, settings, state, told, unmount,
};
use crate::commands::Context;
use crate::commands::programs::Running;
use crate::daemon;
use crate::error::Failure;
use crate::exit::Status;
use crate::mounts;
use crate::option::{Opt, OptionError};
use crate::render::{self, json};
use crate::size::human_size;
use pgkeep_engine::observe::Counter;
use pgkeep_engine::pg::datadir;
use pgkeep_engine::restore::recovery::{RecoveryType, TargetAction};
use pgkeep_engine::{Error, FileError, Kind};
use pgkeep_formats::pg::control::DbState;
use pgkeep_fuse::clone::{self, CloneInfo, HydrationState};
use serde_json::json;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::num::NonZero;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What the server says until it logs by itself, in the data directory.
const LOG: &str = "pgkeep-clone.log";
/// How much of it a failure shows.
const LOG_TAIL_BYTES: u64 = 2048;
const LOG_TAIL_LINES: usize = 6;
/// Between two looks how far hydration is.
const GLANCE: Duration = Duration::from_millis(100);
/// `pg_ctl` waits for recovery to let connections in; a year of WAL takes a while.
const START_WAIT_SECONDS: u32 = 7 * 24 * 3600;

/// `clone start`: mounts the clone if it is not, and starts its server.
pub(super) fn start(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    if settings.flag(Opt::Foreground) {
        let message = "option foreground is not for 'clone start': 'clone mount --foreground' serves, 'clone start' beside it starts";
        return Err(OptionError::new(Status::OPTION_INVALID, message).into());
    }
    let dir = dir(settings);
    let now = state(dir.clone(), clone::info(&dir)?)?;
    refuse_restore(&now)?;
    let served = clone::check_free(&dir).is_err();
    if settings.flag(Opt::ReadyPipe) || now.mounted.is_empty() || !served {
        let status = daemon::run(context, mount)?;
        if settings.flag(Opt::ReadyPipe) || status != Status::OK {
            return Ok(status);
        }
    }
    started(context, &dir)
}

/// Starts the server of a mounted clone, unless it runs, waits until it is what was asked for, and tells how to reach it.
pub(super) fn started(context: &Context<'_>, dir: &Path) -> Result<Status, Failure> {
    let settings = context.settings;
    let now = state(dir.to_owned(), clone::info(dir)?)?;
    let Some(mounted) = now.mounted.first() else {
        let text = format!("clone '{}' is not mounted", dir.display());
        return Err(Error::refused(Kind::PathMissing, text).into());
    };
    if now.postmaster.is_none() {
        run_pg_ctl(context, &mounted.on, "start", None)?;
    }
    // Hot standby lets connections in long before recovery is where it was told to go.
    if recovery_ends(&now.info) {
        wait_recovered(context, &mounted.on)?;
    }
    let now = state(dir.to_owned(), now.info)?;
    let of = |name| recorded(&now.info, name);
    let connect = format!("host={} port={} dbname=postgres", of("socket"), of("port"));
    if settings.text(Opt::Output) == Some("json") {
        render::print(&json::to_text(json!({
            "dir": dir.display().to_string(),
            "mountpoint": now.mounted.first().map(|m| m.on.display().to_string()),
            "postmaster": now.postmaster,
            "socket": of("socket"),
            "port": of("port").parse::<u16>().ok(),
            "connect": connect,
        })))?;
    } else {
        render::print(&format!(
            "server {} runs on clone '{}'\nto connect: psql '{connect}'\n",
            now.postmaster.unwrap_or_default(),
            dir.display()
        ))?;
    }
    Ok(Status::OK)
}

/// The server of a restore is started as always: only its owner knows how.
fn refuse_restore(now: &State) -> Result<(), Failure> {
    if super::is_restore(&now.info) {
        let text = format!(
            "'{}' is a restore that is not complete: 'restore --instant' serves it, its server is started as always",
            now.dir.display()
        );
        return Err(Error::refused(Kind::OptionInvalidValue, text).into());
    }
    Ok(())
}

/// Starts a server on a data directory, as its owner, and waits until it accepts connections. `how` is `start`, or
/// `restart` for one that was started before, with the arguments of then. `log` is where it logs until it does so by
/// itself, if not in the data directory.
///
/// # Errors
/// `DbConnect` with what the server said last if it does not start; `Interrupted` if the command is asked to stop: the
/// server may go on starting.
pub(in crate::commands) fn run_pg_ctl(
    context: &Context<'_>,
    data: &Path,
    how: &str,
    log: Option<&Path>,
) -> Result<(), Failure> {
    let program = match context.settings.path(Opt::PgBin) {
        Some(bin) => bin.join("pg_ctl"),
        None => told::pg_ctl_of(data).ok_or_else(|| {
            let text = "PostgreSQL of the clone's major is not found: option pg-bin names the directory of pg_ctl";
            Error::refused(Kind::OptionRequired, text)
        })?,
    };
    let log = log.map_or_else(|| data.join(LOG), Path::to_path_buf);
    let owner = std::fs::metadata(data).map_err(|e| Failure::file(FileError::at("stat", data)(e)))?;
    // Groups as well: the server may read its key by one of them.
    let mut command = if rustix::process::geteuid().is_root() && owner.uid() != 0 {
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={}", owner.uid())).arg(format!("--regid={}", owner.gid()));
        command.args(["--init-groups", "--"]).arg(&program);
        command
    } else {
        Command::new(&program)
    };
    command.arg("-D").arg(data).arg("-l").arg(&log).args(["-w", "-s", "-t", &START_WAIT_SECONDS.to_string(), how]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
    let begun = std::fs::symlink_metadata(&log).map_or(0, |m| m.len());
    tracing::info!("starting the server on '{}'", data.display());
    let ended = Running::start(&mut command, "pg_ctl")?.wait(context.cancel)?;
    if ended.status.success() {
        return Ok(());
    }
    let said = ended.said.replace('\n', "; ");
    let text = format!("the server on '{}' does not start: {said}\n{}", data.display(), tail(&log, begun));
    Err(Error::refused(Kind::DbConnect, text.trim_end().to_owned()).into())
}

/// The file that a server's messages go to, if it is one that its user may go on writing to.
fn log_of(pid: u32) -> Option<PathBuf> {
    let owner = std::fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    let path = std::fs::read_link(format!("/proc/{pid}/fd/2")).ok()?;
    let is_its_own = std::fs::metadata(&path).is_ok_and(|file| file.is_file() && file.uid() == owner);
    (path.is_absolute() && is_its_own).then_some(path)
}

/// Whether the server was told to end recovery and to go on as a primary. What earlier versions made does not say.
fn recovery_ends(info: &CloneInfo) -> bool {
    let goes_on = [RecoveryType::Standby, RecoveryType::Preserve].map(RecoveryType::as_str);
    let stays = [TargetAction::Pause, TargetAction::Shutdown].map(TargetAction::as_str);
    let told = info.identity.iter().any(|(name, _)| name == "action");
    told && !goes_on.contains(&recorded(info, "type")) && !stays.contains(&recorded(info, "action"))
}

/// Waits until a server has ended recovery.
///
/// # Errors
/// `DbConnect` with what the server said last if it ended before; `Interrupted` if the command is asked to stop.
pub(in crate::commands) fn wait_recovered(context: &Context<'_>, data: &Path) -> Result<(), Failure> {
    let mut told = false;
    loop {
        // Replaced as a whole; while that happens the next look tells.
        let state = datadir::read_control(data).ok().map(|c| c.fields.state);
        if state == Some(DbState::InProduction) {
            return Ok(());
        }
        if datadir::postmaster(data)?.is_none_or(|found| !found.alive) {
            let text = format!("the server on '{}' ended before recovery did", data.display());
            let text = format!("{text}\n{}", tail(&data.join(LOG), 0));
            return Err(Error::refused(Kind::DbConnect, text.trim_end().to_owned()).into());
        }
        if context.cancel.is_cancelled() {
            tracing::info!("the server on '{}' goes on with recovery", data.display());
            return Err(Error::Interrupted.into());
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!("the server recovers to the target");
        }
        std::thread::sleep(GLANCE);
    }
}

/// What the server of a clone that logs to one place has said, from the beginning.
///
/// # Errors
/// What the file system said.
pub(in crate::commands) fn log(data: &Path) -> std::io::Result<String> {
    settings::read(&data.join(LOG)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of what was added to a log.
fn tail(log: &Path, begun: u64) -> String {
    // The server's user may have put a link there, and this process may be root.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let Ok(mut file) = File::options().read(true).custom_flags(flags).open(log) else { return String::new() };
    let len = file.metadata().map_or(0, |m| if m.is_file() { m.len() } else { 0 });
    if len == 0 {
        return String::new();
    }
    let mut bytes = Vec::new();
    let from = begun.max(len.saturating_sub(LOG_TAIL_BYTES)).min(len);
    // What cannot be read is not shown: the failure itself is told all the same.
    if file.seek(SeekFrom::Start(from)).is_err() || file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(LOG_TAIL_LINES)..).unwrap_or_default().join("\n")
}

/// `clone stop`: ends the server in order and takes the mount away. `clone start` goes on from there.
pub(super) fn stop(context: &Context<'_>) -> Result<Status, Failure> {
    let dir = dir(context.settings);
    let now = state(dir.clone(), clone::info(&dir)?)?;
    daemon::stop_server(&dir)?;
    unmount(&dir, &now.mounted)?;
    tracing::info!("clone '{}' is stopped", dir.display());
    Ok(Status::OK)
}

/// `clone reset`: the clone as it was made. Its server is started with `--start`.
pub(super) fn reset(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    if settings.flag(Opt::ReadyPipe) {
        return daemon::run(context, make::reset);
    }
    let dir = dir(settings);
    let now = state(dir.clone(), clone::info(&dir)?)?;
    refuse_restore(&now)?;
    make::again(settings, &dir)?;
    // What the server wrote is going to be removed: that must have been meant.
    refuse_running(settings, &dir)?;
    unmount(&dir, &now.mounted)?;
    let status = daemon::run(context, make::reset)?;
    if status == Status::OK && settings.flag(Opt::Start) && !settings.flag(Opt::Foreground) {
        return started(context, &dir);
    }
    Ok(status)
}

/// `clone hydrate`: has whoever serves the clone fetch all it lacks, and waits for it.
pub(super) fn hydrate(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let dir = dir(settings);
    clone::info(&dir)?;
    let total = hydrated(context, &dir)?;
    if settings.text(Opt::Output) == Some("json") {
        render::print(&json::to_text(json!({ "dir": dir.display().to_string(), "state": "done", "total": total })))?;
    } else {
        tracing::info!("clone '{}' is hydrated: {}", dir.display(), human_size(total));
    }
    Ok(Status::OK)
}

/// Asks for everything and waits until it is there. Returns how many bytes of the backup that are.
fn hydrated(context: &Context<'_>, dir: &Path) -> Result<u64, Failure> {
    let found = clone::hydration(dir)?;
    if let Some(done) = found.filter(|h| h.state == HydrationState::Done) {
        return Ok(done.total);
    }
    clone::hydrate(dir, context.settings.size(Opt::IoLimit).and_then(NonZero::new))?;
    let observer = context.observer;
    let (mut begun, mut shown) = (false, 0);
    let result = loop {
        if mounts::of_source(&mounts::source_of(dir))?.is_empty() || clone::check_free(dir).is_ok() {
            let text = format!("clone '{}' is not served: it goes on once it is mounted", dir.display());
            break Err(Error::refused(Kind::PathMissing, text).into());
        }
        if let Some(h) = clone::hydration(dir)? {
            if !std::mem::replace(&mut begun, true) {
                observer.begin("hydrate", h.total);
            }
            observer.add(Counter::Done, h.done.saturating_sub(shown));
            shown = shown.max(h.done);
            match h.state {
                HydrationState::Done => break Ok(h.total),
                HydrationState::Failed => {
                    let text = format!("{}; it is tried again", h.error.unwrap_or_default());
                    break Err(Error::refused(Kind::FileRead, text).into());
                }
                HydrationState::Running => {}
            }
        }
        if context.cancel.is_cancelled() {
            tracing::info!("hydration of clone '{}' goes on in the background", dir.display());
            break Err(Error::Interrupted.into());
        }
        std::thread::sleep(GLANCE);
    };
    if begun {
        observer.end();
    }
    result
}

/// `clone promote`: the clone becomes an ordinary data directory at its mountpoint.
pub(super) fn promote(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let dir = dir(settings);
    let info = clone::info(&dir)?;
    let now = state(dir.clone(), info.clone())?;
    let place = match now.mounted.first() {
        Some(mounted) => mounted.on.clone(),
        None => {
            let of = Some(recorded(&info, "mountpoint")).filter(|m| !m.is_empty()).map(Path::new);
            let place = settings.path(Opt::Mountpoint).or(of).ok_or_else(|| required("mountpoint"))?;
            mounts::resolved(place)
        }
    };
    // Told before anything is stopped.
    clone::try_promote(&dir, &place)?;
    if !now.mounted.is_empty() && clone::check_free(&dir).is_err() {
        hydrated(context, &dir)?;
    }
    let ran = now.postmaster.is_some();
    let is_whole = clone::hydration(&dir)?.is_some_and(|h| h.state == HydrationState::Done);
    if ran && !is_whole && clone::check_free(&dir).is_ok() {
        let text = format!("clone '{}' is not served, and lacks pages of its backup", dir.display());
        return Err(Error::refused(Kind::PathMissing, text).into());
    }
    // A restore's server goes on logging where it did.
    let log = now.postmaster.filter(|_| super::is_restore(&info)).and_then(log_of);
    let promote = || {
        daemon::stop_server(&dir)?;
        refuse_running(settings, &dir)?;
        unmount(&dir, &now.mounted)?;
        let dir = canonical(&dir)?;
        // A promotion that was cut off may have moved it already.
        let data = dir.join("data");
        if data.is_dir() {
            warn_of(&data);
            if super::is_restore(&info) {
                instant::forget_serving(&data)?;
            } else {
                settings::place_for(&data, &place)?;
            }
        }
        Ok::<_, Failure>(clone::promote(&dir, &place)?)
    };
    promote().inspect_err(|_| {
        if ran {
            let again = if super::is_restore(&info) {
                "'restore --instant', as before, serves it; start its server then"
            } else {
                "'clone start' starts it"
            };
            tracing::warn!("the server on clone '{}' was stopped; {again}", dir.display());
        }
    })?;
    tracing::info!("clone '{}' is now the ordinary data directory '{}'", dir.display(), place.display());
    if ran {
        let how = if super::is_restore(&info) { "restart" } else { "start" };
        run_pg_ctl(context, &place, how, log.as_deref()).map_err(|failure| match failure {
            Failure::Engine(e) if e.kind() == Kind::DbConnect => {
                Error::refused(e.kind(), format!("clone '{}' is promoted, but {e}", dir.display())).into()
            }
            other => other,
        })?;
    }
    let of = |name| recorded(&info, name);
    if settings.text(Opt::Output) == Some("json") {
        render::print(&json::to_text(json!({
            "pgdata": place.display().to_string(),
            "running": ran,
            "socket": of("socket"),
            "port": of("port").parse::<u16>().ok(),
        })))?;
    } else {
        let running = if ran { "its server runs again" } else { "it has no server" };
        let settings = if super::is_restore(&info) {
            String::new()
        } else {
            let archives = match of("archive-to") {
                "" => "archiving off".to_owned(),
                own => format!("archiving for stanza {own}"),
            };
            format!("settings of the clone stay in its postgresql.auto.conf: port {}, {archives}\n", of("port"))
        };
        render::print(&format!("'{}' is an ordinary data directory now; {running}\n{settings}", place.display()))?;
    }
    Ok(Status::OK)
}

/// What an ordinary data directory would not have.
pub(super) fn warn_of(data: &Path) {
    let recovers = ["backup_label", "recovery.signal", "standby.signal"].iter().any(|name| data.join(name).exists());
    if recovers {
        tracing::warn!("recovery has not ended: the server still needs WAL from the repository");
    }
    if std::fs::read_dir(data.join(".tablespaces")).is_ok_and(|mut entries| entries.next().is_some()) {
        tracing::warn!("its tablespaces stay in '.tablespaces' inside the data directory, which backups refuse");
    }
}
