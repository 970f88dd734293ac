//! Processes that `archive-push` and `archive-get` start for themselves: the same program in the role `async`.
//!
//! Such a process has the options that were typed, the environment, a session of its own and no open streams: it goes on
//! when the one that started it has ended, or was killed with the server. One works at a time for a stanza and direction of
//! this host: it holds the archive lock of the stanza in each repository. What it says is in its log file and in the spool.

use crate::commands::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::def::Group;
use crate::option::{Command, Opt, Repo, Role, Settings};
use crate::repos;
use pgkeep_engine::archive::spool::{RepositoryIdentity, Spool};
use pgkeep_engine::lock::{self, Holder, Lock, LockName, LockType};
use pgkeep_engine::repository::stanza_mark;
use pgkeep_engine::{Error, FileError, Kind, Result};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Shortest and longest pause between two looks at what a process in the background has done.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// How often another process may be faster in taking the lock, and be gone again when that is looked at.
const FASTER_MAX: u32 = 3;

/// Starts the role `async` of this command.
///
/// # Errors
/// If the program cannot be started.
fn start(context: &Context<'_>, params: &[&OsStr]) -> std::result::Result<Child, Failure> {
    let invocation = context.invocation;
    let role = format!("{}:{}", context.settings.command().name(), Role::Async.as_str());
    let mut command = std::process::Command::new(&invocation.exe);
    command.arg0(&invocation.argv0).args(invocation.typed_options()?).arg(role).arg("--").args(params);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(|e| Failure::file(FileError::at("start", &invocation.exe)(e)))
}

/// Leaves the session of whoever started this process: a server that is stopped at once signals all of its group.
///
/// # Errors
/// `Kernel`.
fn enter() -> Result<()> {
    match rustix::process::setsid() {
        // It leads one already.
        Ok(_) | Err(Errno::PERM) => Ok(()),
        Err(e) => Err(Error::refused(Kind::Kernel, format!("cannot begin a session: {}", std::io::Error::from(e)))),
    }
}

/// Begins the work of the role `async`: a session of its own, and the stanza's archive locks; none if another process works.
///
/// # Errors
/// `Kernel`; what the lock path said.
pub(crate) fn begin(settings: &Settings) -> Result<Option<Vec<Lock>>> {
    enter()?;
    match take_locks(settings) {
        Err(e) if e.kind() == Kind::LockAcquire => {
            tracing::info!("another process is at work: {e}");
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// The stanza's spool.
pub(crate) fn spool(settings: &Settings) -> Spool {
    // The option has a default; without one nothing could be written, and work is done without a spool.
    Spool::of(settings.path(Opt::SpoolPath).unwrap_or(Path::new("/")), settings.stanza_name())
}

fn lock_names(settings: &Settings) -> impl Iterator<Item = LockName> + '_ {
    let name =
        |repo_key| LockName { stanza: settings.stanza_name().to_owned(), lock_type: LockType::Archive, repo_key };
    settings.target_repos().map(move |repo| name(repo.key().into()))
}

/// Takes the archive lock of the stanza in each repository.
///
/// # Errors
/// `LockAcquire`.
fn take_locks(settings: &Settings) -> Result<Vec<Lock>> {
    let exec_id = repos::exec_id();
    lock_names(settings).map(|name| Lock::acquire(settings.lock_path(), &name, &exec_id)).collect()
}

/// Who holds the archive lock of the stanza in some repository.
///
/// # Errors
/// `FileOpen`, `FileRead`.
pub(crate) fn holder(settings: &Settings) -> Result<Option<Holder>> {
    for name in lock_names(settings) {
        if let Some(holder) = lock::holder(settings.lock_path(), &name)? {
            return Ok(Some(holder));
        }
    }
    Ok(None)
}

/// What tells each repository from others: all that is configured of it, but for secrets, and what it says of itself.
pub(crate) fn identities(settings: &Settings) -> Vec<RepositoryIdentity> {
    let config = |key: u16| {
        let own = settings.iter().filter(|(opt, index, _)| opt.def().group == Group::Repo && *index == key);
        let texts = own.filter(|(opt, ..)| !opt.def().secret).filter_map(|(opt, index, setting)| {
            setting.value.as_ref().map(|value| format!("{}={}", opt.def().display(index), crate::run::plain(value)))
        });
        texts.collect::<Vec<_>>().join("\n")
    };
    let mark = |repo: Repo<'_>| {
        let store = repos::store_of(settings, repo)?;
        Ok::<_, Failure>(stanza_mark(&*store, settings.stanza_name())?)
    };
    let one = |repo: Repo<'_>| {
        let mark = mark(repo).map_err(|e| tracing::debug!("repo{} cannot be told: {}", repo.key(), e.report(None)));
        RepositoryIdentity { config: config(repo.key()), mark: mark.ok() }
    };
    settings.target_repos().map(one).collect()
}

/// How a failure is told to who waits: its status, and its report without it.
pub(crate) fn word(command: Command) -> impl Fn(&Error) -> (u8, String) + Sync {
    move |error| {
        let status = Status::of(error.kind());
        let report = crate::error::report_of(error, Some(command));
        (status.0, report)
    }
}

/// Whether a failure of [`wait_for`] is the caller's end. After others it does the work itself.
pub(crate) fn is_final(failure: &Failure) -> bool {
    matches!(failure, Failure::Engine(e) if matches!(e.kind(), Kind::ArchiveTimeout | Kind::Interrupted))
}

/// What became of a wait.
pub(crate) enum Waited<T> {
    /// There is an answer.
    Answer(T),
    /// The process in the background cannot help: the work is done here.
    Alone,
}

/// Waits for an answer of a process in the background, started if none works.
///
/// `look` says whether there is an answer, and is told the number of the process that was started for this call, if one was;
/// with each start `begin` takes old answers away before. `may_wait` says whether a process that works already is to be waited for.
///
/// # Errors
/// `ArchiveTimeout` after `timeout`; `Interrupted`; what `look` says.
pub(crate) fn wait_for<T>(
    context: &Context<'_>,
    params: &[&OsStr],
    timeout: Duration,
    what: &str,
    begin: impl Fn() -> Result<()>,
    may_wait: impl Fn(&Holder) -> bool,
    mut look: impl FnMut(Option<u32>) -> std::result::Result<Option<T>, Failure>,
) -> std::result::Result<Waited<T>, Failure> {
    let begun = Instant::now();
    let (mut child, mut faster, mut pause): (Option<Child>, u32, Duration) = (None, 0, PAUSE.0);
    loop {
        context.cancel.check()?;
        let mut ended = None;
        match &mut child {
            Some(running) => {
                ended = running.try_wait().map_err(|e| Failure::file(FileError::at("wait for", "child")(e)))?;
            }
            None => match holder(context.settings)? {
                Some(holder) if !may_wait(&holder) => return Ok(Waited::Alone),
                Some(_) => {}
                None => {
                    begin()?;
                    child = Some(start(context, params)?);
                    pause = PAUSE.0;
                }
            },
        }
        // After the look at the process: its last word comes before its end.
        if let Some(answer) = look(child.as_ref().map(Child::id))? {
            return Ok(Waited::Answer(answer));
        }
        if let Some(status) = ended {
            child = None;
            faster += 1;
            if !lost_the_race(status) || faster >= FASTER_MAX {
                tracing::debug!("the process in the background ended ({status}) without a word about {what}");
                return Ok(Waited::Alone);
            }
        }
        if begun.elapsed() >= timeout {
            let text = format!("no answer from the process in the background about {what} within {timeout:?}");
            return Err(Error::refused(Kind::ArchiveTimeout, text).into());
        }
        std::thread::sleep(pause);
        pause = pause.mul_f32(1.5).min(PAUSE.1);
    }
}

/// Starts a process in the background if none works, and does not wait for it. That it cannot be is no failure of the caller.
pub(crate) fn nudge(context: &Context<'_>, params: &[&OsStr]) {
    let started = match holder(context.settings) {
        Ok(Some(_)) => return,
        Ok(None) => start(context, params).map(drop),
        Err(e) => Err(e.into()),
    };
    if let Err(e) = started {
        tracing::warn!("cannot start a process in the background: {}", e.report(None));
    }
}

fn lost_the_race(status: ExitStatus) -> bool {
    status.code() == Some(Status::of(Kind::LockAcquire).0.into())
}
