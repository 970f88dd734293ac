//! PostgreSQL on a clone: started by `pg_ctl`, waited for until recovery is where it was told to go.

use super::{settings, told};
use crate::commands::Context;
use crate::commands::programs::Running;
use crate::error::Failure;
use crate::option::Opt;
use crate::servers;
use pgkeep_engine::pg::datadir;
use pgkeep_engine::restore::recovery::{RecoveryType, TargetAction};
use pgkeep_engine::{Error, FileError, Kind};
use pgkeep_formats::pg::control::DbState;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

/// What the server says until it logs by itself, in the data directory.
const LOG: &str = "pgkeep-clone.log";
/// How much of it a failure shows.
const LOG_TAIL_BYTES: u64 = 2048;
const LOG_TAIL_LINES: usize = 6;
/// `pg_ctl` waits for recovery to let connections in; a year of WAL takes a while.
const START_WAIT_SECONDS: u32 = 7 * 24 * 3600;
/// Between two looks how far recovery is.
const GLANCE: Duration = Duration::from_millis(100);

/// How recovery ends, as the server was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::commands) enum Ends {
    /// It goes on, or pauses at the target.
    Never,
    /// The server becomes a primary.
    AsPrimary,
    /// The server shuts itself down at the target.
    ShutDown,
}

impl Ends {
    /// What earlier versions made does not say.
    pub(super) fn of(identity: &[(String, String)]) -> Self {
        let of = |what: &str| identity.iter().find(|(name, _)| name == what).map(|(_, value)| value.as_str());
        let goes_on = [RecoveryType::Standby, RecoveryType::Preserve].map(RecoveryType::as_str);
        match of("action").map(TargetAction::parse) {
            None | Some(Some(TargetAction::Pause)) => Self::Never,
            _ if of("type").is_some_and(|kind| goes_on.contains(&kind)) => Self::Never,
            Some(Some(TargetAction::Shutdown)) => Self::ShutDown,
            Some(_) => Self::AsPrimary,
        }
    }
}

/// What a server is once recovery has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::commands) enum Recovered {
    /// It goes on: as a primary, unless recovery is not to end.
    GoesOn,
    /// It recovered to the target and shut itself down there.
    ShutDown,
}

/// Starts a server as [`run_pg_ctl`] does, and waits until recovery has ended, if it is to end.
///
/// # Errors
/// As [`run_pg_ctl`] and [`wait_recovered`].
pub(super) fn start(context: &Context<'_>, data: &Path, ends: Ends) -> Result<Recovered, Failure> {
    let before = control_written(data);
    match run_pg_ctl(context, data, "start", None) {
        // A server that ends before it lets anybody in has not started, says `pg_ctl` of most majors.
        Err(failure) if ends == Ends::ShutDown && control_written(data) != before && is_shut_down(data) => {
            tracing::debug!("the server was not seen to run: {failure}");
            Ok(Recovered::ShutDown)
        }
        Err(failure) => Err(failure),
        // Hot standby lets connections in long before recovery is where it was told to go.
        Ok(()) => wait_recovered(context, data, ends),
    }
}

/// When the server last wrote its control file.
fn control_written(data: &Path) -> Option<SystemTime> {
    std::fs::metadata(data.join("global/pg_control")).and_then(|facts| facts.modified()).ok()
}

fn is_shut_down(data: &Path) -> bool {
    datadir::read_control(data).is_ok_and(|control| control.fields.state == DbState::ShutDownInRecovery)
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
pub(super) fn log_of(pid: u32) -> Option<PathBuf> {
    let owner = std::fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    let path = std::fs::read_link(format!("/proc/{pid}/fd/2")).ok()?;
    let is_its_own = std::fs::metadata(&path).is_ok_and(|file| file.is_file() && file.uid() == owner);
    (path.is_absolute() && is_its_own).then_some(path)
}

/// Waits until a server has ended recovery, if it is to.
///
/// # Errors
/// `DbConnect` with what the server said last if it ended before; `Interrupted` if the command is asked to stop.
pub(in crate::commands) fn wait_recovered(
    context: &Context<'_>,
    data: &Path,
    ends: Ends,
) -> Result<Recovered, Failure> {
    if ends == Ends::Never {
        return Ok(Recovered::GoesOn);
    }
    let mut told = false;
    loop {
        // Replaced as a whole; while that happens the next look tells.
        let state = datadir::read_control(data).ok().map(|c| c.fields.state);
        if state == Some(DbState::InProduction) {
            return Ok(Recovered::GoesOn);
        }
        if servers::on(data)?.is_none() {
            if ends == Ends::ShutDown && is_shut_down(data) {
                return Ok(Recovered::ShutDown);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_recovery_ends_is_recorded() {
        let ends = |kind: &str, action: Option<&str>| {
            let action = action.map(|action| ("action".to_owned(), action.to_owned()));
            let identity: Vec<_> = [("type".to_owned(), kind.to_owned())].into_iter().chain(action).collect();
            Ends::of(&identity)
        };
        assert_eq!(ends("time", Some("promote")), Ends::AsPrimary);
        assert_eq!(ends("default", Some("")), Ends::AsPrimary);
        assert_eq!(ends("lsn", Some("shutdown")), Ends::ShutDown);
        for (kind, action) in [("time", Some("pause")), ("standby", Some("")), ("default", None)] {
            assert_eq!(ends(kind, action), Ends::Never, "{kind} {action:?}");
        }
    }
}
