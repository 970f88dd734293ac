//! A clone that goes with the command that needs it.
//!
//! Nothing of it may be left when the command has ended, however it ended. So two processes share the work. The
//! command starts a *keeper* ([`keeper`]) and, once that serves the mount, starts the server and uses it. The keeper
//! makes the directory and the clone and serves it; its standard input is a socket whose other end only the command
//! holds. When that end closes, by intent or by death, the keeper ends the server, unmounts, and removes the
//! directory. If it is the keeper that dies, the command does the same. If both die at once, nobody is left to; the
//! next command of the kind finds the directory by its name, sees that nobody holds its lock, and removes it then.
//!
//! The directory, `pgkeep-scratch.<process>-<number>` in `--dir`, holds `clone` (what the server writes), `data` (the
//! mountpoint), `s` (the server's socket, reachable by its user alone) and `lock`.

mod dismantle;
pub(super) mod keeper;
mod places;

use super::Context;
use super::clone::server::{self, Ends};
use super::clone::told;
use super::programs::{Ended, Running};
use crate::daemon;
use crate::error::Failure;
use crate::option::{Opt, Settings};
use pgkeep_engine::{Error, FileError, Kind};
use pgkeep_fuse::clone as clones;
use places::{Held, PORT, Places};
use std::ffi::OsString;
use std::io::Write as _;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// How long the keeper may take to remove everything.
const END_WAIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);
/// How long a server may take from the end of recovery until it lets connections in.
const START_WAIT: Duration = Duration::from_secs(60);
/// What it says until then.
const STARTING: [&str; 2] = ["the database system is starting up", "the database system is not accepting connections"];
/// Database that is in every cluster.
const ANY_DATABASE: &str = "template1";
/// As a set: the newest backup that fits.
const LATEST: &str = "latest";
/// What is said where no room is left.
const FULL: [&str; 2] = ["No space left on device", "Disk quota exceeded"];
/// The first superuser where packages make clusters.
const SUPERUSER: &str = "postgres";

/// A mounted clone of the backup that the options choose. Dropping it removes everything.
pub(super) struct Scratch {
    places: Places,
    /// None once the keeper was told to end.
    line: Option<UnixStream>,
    keeper: Child,
    /// Should the keeper die, nobody else takes the directory for abandoned.
    held: Option<Held>,
    /// Directory of PostgreSQL's programs.
    bin: PathBuf,
    /// Whom to connect as; known once the server runs.
    role: String,
    /// When it was asked for.
    begun: (Instant, SystemTime),
}

/// When a scratch clone was what, from when it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    /// The cluster was consistent, as the server's log says; `None` if it says nothing of it.
    pub(super) consistent: Option<Duration>,
    /// Recovery had ended.
    pub(super) recovered: Duration,
    /// The first query was answered.
    pub(super) query: Duration,
}

impl Scratch {
    /// Makes the clone and mounts it; its server does not run yet. The keeper is given `more` options.
    ///
    /// # Errors
    /// `Kernel` without FUSE, `FileWrite` without room, `OptionRequired` if PostgreSQL's programs are not found, and
    /// what choosing the backup or making the clone said.
    pub(super) fn open(context: &Context<'_>, more: &[OsString]) -> Result<Self, Failure> {
        Self::open_for(context, more, 0)
    }

    /// As [`Self::open`], for a clone of which so many bytes are going to be read: they come to lie in `--dir`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn open_for(context: &Context<'_>, more: &[OsString], read: u64) -> Result<Self, Failure> {
        let begun = (Instant::now(), SystemTime::now());
        let places = places::choose(context.settings, read)?;
        let (line, mut keeper) = start_keeper(context, &places, more)?;
        let ready = daemon::wait(context, &line, &mut keeper);
        // From here on its drop clears up.
        let line = Some(line);
        let mut scratch = Self { places, line, keeper, held: None, bin: PathBuf::new(), role: String::new(), begun };
        ready?;
        scratch.held = Some(scratch.places.hold()?);
        scratch.bin = bin(context.settings, &scratch.places.data)?;
        Ok(scratch)
    }

    /// Starts the server and waits until it has recovered to the target and goes on as a primary.
    ///
    /// # Errors
    /// `DbConnect` with what the server said if it does not start, cannot reach the target or lets nobody in;
    /// `UserMissing` if no superuser is known.
    pub(super) fn start(&mut self, context: &Context<'_>) -> Result<Times, Failure> {
        server::run_pg_ctl(context, &self.places.data, "start", None)?;
        server::wait_recovered(context, &self.places.data, Ends::AsPrimary)?;
        let recovered = self.begun.0.elapsed();
        self.role = self.find_role(context)?;
        let query = self.begun.0.elapsed();
        Ok(Times { consistent: self.consistent(), recovered, query })
    }

    /// When the server noted that it was consistent.
    fn consistent(&self) -> Option<Duration> {
        let log = server::log(&self.places.data).ok()?;
        let line = log.lines().find(|line| line.contains("consistent recovery state reached"))?;
        // `2026-11-21 10:00:00.123 GMT LOG:  consistent ...`
        let (time, _) = line.split_once(" GMT ")?;
        let time: jiff::civil::DateTime = time.parse().ok()?;
        let time = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
        SystemTime::from(time).duration_since(self.begun.1).ok()
    }

    /// Whether what went wrong with the clone may be the backup's fault: it is served, and had room. `said` is what was
    /// said of it.
    ///
    /// # Errors
    /// `Runtime` if the keeper is gone, `FileWrite` without room.
    pub(super) fn check_sound<'a>(&mut self, mut said: impl Iterator<Item = &'a str>) -> Result<(), Failure> {
        let ended = self.keeper.try_wait();
        let ended = ended.map_err(|e| Error::refused(Kind::Kernel, format!("cannot ask for a process: {e}")))?;
        if let Some(status) = ended {
            let text =
                format!("the process that served the clone has ended ({status}): nothing is known of the backup");
            return Err(Error::refused(Kind::Runtime, text).into());
        }
        // Whoever ran out of room may have given back what it had: then its words tell. Those of the server are in its log,
        // if it got so far.
        let log = server::log(&self.places.data).unwrap_or_default();
        let is_full = |said: &&str| FULL.iter().any(|words| said.contains(words));
        places::check_left(&self.places.root, said.find(is_full).or_else(|| log.lines().find(is_full)))
    }

    /// Stops the server in order, as for good.
    ///
    /// # Errors
    /// `PostgresRunning` if it does not end.
    pub(super) fn stop(&self) -> Result<(), Failure> {
        daemon::stop_server(&self.places.clone)
    }

    /// The data directory.
    pub(super) fn data(&self) -> &Path {
        &self.places.data
    }

    /// What the creator recorded of the clone: `label`, `repository`, ...
    ///
    /// # Errors
    /// `FileInvalid` if the record is damaged.
    pub(super) fn recorded(&self, name: &str) -> Result<String, Failure> {
        let info = clones::info(&self.places.clone)?;
        Ok(info.identity.into_iter().find(|(n, _)| n == name).map(|(_, value)| value).unwrap_or_default())
    }

    /// One of PostgreSQL's programs, of the backup's major.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// A client program that finds the clone's server by its environment, and nothing else there.
    pub(super) fn client(&self, name: &str, database: &str) -> Command {
        self.client_as(name, database, &self.role)
    }

    fn client_as(&self, name: &str, database: &str, role: &str) -> Command {
        let mut command = Command::new(self.program(name));
        // What the user's environment says of connections is about other servers.
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"PG")) {
            command.env_remove(variable);
        }
        command.env("PGHOST", &self.places.sockets).env("PGPORT", PORT.to_string());
        command.env("PGUSER", role).env("PGDATABASE", database);
        command.env("PGOPTIONS", "-c statement_timeout=0 -c default_transaction_read_only=off");
        // What is compared and shown does not depend on who runs it.
        command.env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// Asks the server something; the answer is psql's, unaligned, tuples only.
    ///
    /// # Errors
    /// `DbQuery` with what the server said.
    pub(super) fn ask(&self, context: &Context<'_>, database: &str, sql: &str) -> Result<String, Failure> {
        answer(self.psql(context, database, &self.role, sql)?, sql)
    }

    fn psql(&self, context: &Context<'_>, database: &str, role: &str, sql: &str) -> Result<Ended, Failure> {
        let mut command = self.client_as("psql", database, role);
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        Running::start_to_ask(&mut command, "psql")?.wait(context.cancel)
    }

    /// A superuser: the one that is configured, or else the backup's owner or `postgres`.
    fn find_role(&self, context: &Context<'_>) -> Result<String, Failure> {
        let mut roles = Vec::new();
        match context.settings.pg(1).user() {
            Some(user) => roles.push(user.to_owned()),
            None => {
                roles.extend(Some(self.recorded("user")?).filter(|user| !user.is_empty()));
                roles.push(SUPERUSER.to_owned());
            }
        }
        roles.dedup();
        let sql = "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user";
        let mut said = String::new();
        for role in &roles {
            let ended = self.first_answer(context, role, sql)?;
            if ended.status.success() && ended.answer.trim_ascii() == b"t" {
                return Ok(role.clone());
            }
            said = if ended.status.success() { "it is no superuser".to_owned() } else { ended.said };
            if !ended.status.success() && !is_role_missing(&said, role) {
                // Another role would fare no better: catalogs that all databases share may be damaged.
                let text = format!("the clone's server has recovered, but does not let '{role}' in: {said}");
                return Err(Error::refused(Kind::DbConnect, text).into());
            }
        }
        let text = format!(
            "cannot connect to the clone's server as {}: {said}; option pg1-user names a superuser of the cluster",
            roles.join(" or ")
        );
        Err(Error::refused(Kind::UserMissing, text).into())
    }

    /// Asks a server that has just recovered, and lets nobody in for a moment more.
    fn first_answer(&self, context: &Context<'_>, role: &str, sql: &str) -> Result<Ended, Failure> {
        let begun = Instant::now();
        loop {
            let ended = self.psql(context, ANY_DATABASE, role, sql)?;
            let early = STARTING.iter().any(|words| ended.said.contains(words));
            if ended.status.success() || !early || begun.elapsed() > START_WAIT {
                return Ok(ended);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Databases that let connections in and are no templates, by name. One that `DROP DATABASE` has left half lets nobody
    /// in, and says so by its limit.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(super) fn databases(&self, context: &Context<'_>) -> Result<Vec<String>, Failure> {
        let sql = "SELECT datname FROM pg_catalog.pg_database \
                   WHERE datallowconn AND datconnlimit <> -2 AND NOT datistemplate ORDER BY 1";
        Ok(self.ask(context, ANY_DATABASE, sql)?.lines().map(str::to_owned).collect())
    }

    /// Has a file or directory removed with the clone, if it is still there then.
    ///
    /// # Errors
    /// `Runtime` if the keeper is gone.
    pub(super) fn also_remove(&mut self, path: &Path) -> Result<(), Failure> {
        let gone = |e| Error::refused(Kind::Runtime, format!("the process that serves the clone is gone: {e}"));
        let Some(line) = &mut self.line else { return Ok(()) };
        let mut bytes = path.as_os_str().as_bytes().to_vec();
        bytes.push(0);
        Ok(line.write_all(&bytes).map_err(gone)?)
    }

    /// Removes everything.
    ///
    /// # Errors
    /// What is left and why.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        self.close()
    }

    fn close(&mut self) -> Result<(), Failure> {
        let Some(line) = self.line.take() else { return Ok(()) };
        // A keeper that is gone hears nothing, and leaves its work to us.
        let _ = line.shutdown(Shutdown::Both);
        drop(line);
        let begun = Instant::now();
        let status = loop {
            match self.keeper.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if begun.elapsed() < END_WAIT => std::thread::sleep(PAUSE),
                Ok(None) | Err(_) => break None,
            }
        };
        if status.is_none() {
            // It is our child and not waited for, so the number is still its own; it may end just now.
            let _ = self.keeper.kill();
            let _ = self.keeper.wait();
        }
        if !places::is_ours(&self.places.root) {
            return Ok(());
        }
        self.held = None;
        tracing::info!("the process that served the clone has left '{}'", self.places.root.display());
        dismantle::all(&self.places, None)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(failure) = self.close() {
            tracing::error!("cannot remove '{}': {}", self.places.root.display(), failure.report(None));
        }
    }
}

/// Whether a server refuses a role for no other reason than that it has none of that name.
fn is_role_missing(said: &str, role: &str) -> bool {
    said.contains(&format!("role \"{role}\" does not exist"))
}

/// The answer of a psql that has ended.
fn answer(ended: Ended, sql: &str) -> Result<String, Failure> {
    if !ended.status.success() {
        let text = format!("the clone's server refuses '{sql}': {}", ended.said);
        return Err(Error::refused(Kind::DbQuery, text).into());
    }
    Ok(String::from_utf8_lossy(&ended.answer).into_owned())
}

/// Options that make the keeper take the backup that was chosen here, whatever is committed meanwhile. A `latest` that was
/// given says no more than nothing, and the keeper is not told of it.
pub(super) fn pinned(settings: &Settings, label: &str, repository: u32) -> Vec<OsString> {
    let mut options = Vec::new();
    if settings.text(Opt::Set).is_none_or(|set| set == LATEST) {
        options.push(format!("--{}={}", Opt::Set.def().name, label).into());
    }
    if !settings.is_given(Opt::RepoKey) {
        options.push(format!("--{}={}", Opt::RepoKey.def().name, repository).into());
    }
    options
}

/// The command's arguments for a keeper that is given `more`: an option stands on a command line once.
fn without_latest(args: &[OsString], more: &[OsString]) -> Vec<OsString> {
    let name = format!("--{}", Opt::Set.def().name);
    let whole = format!("{name}={LATEST}");
    if !more.iter().any(|arg| arg.as_bytes().starts_with(format!("{name}=").as_bytes())) {
        return args.to_vec();
    }
    let mut kept = Vec::with_capacity(args.len());
    let mut args = args.iter().peekable();
    while let Some(arg) = args.next() {
        let is_apart = *arg == *name && args.peek().is_some_and(|next| **next == *LATEST);
        if is_apart {
            args.next();
        } else if *arg != *whole {
            kept.push(arg.clone());
        }
    }
    kept
}

fn start_keeper(context: &Context<'_>, places: &Places, more: &[OsString]) -> Result<(UnixStream, Child), Failure> {
    let kernel = |e| Error::refused(Kind::Kernel, format!("cannot make a socket: {e}"));
    let (ours, theirs) = UnixStream::pair().map_err(kernel)?;
    let invocation = context.invocation;
    let mut command = Command::new(&invocation.exe);
    let mut root = OsString::from(format!("--{}=", Opt::Scratch.def().name));
    root.push(&places.root);
    command
        .arg0(&invocation.argv0)
        .arg(format!("--{}", Opt::ReadyPipe.def().name))
        .arg(root)
        .args(more)
        .args(without_latest(&invocation.args, more));
    // Whoever reads our output must not wait for the keeper's end.
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
    let child = command.spawn();
    // With the command goes our copy of the keeper's end: its death is then the end of ours.
    drop(command);
    Ok((ours, child.map_err(|e| Failure::file(FileError::at("start", &invocation.exe)(e)))?))
}

/// The directory of PostgreSQL's programs: the one that is named, or the one of the backup's major.
fn bin(settings: &Settings, data: &Path) -> Result<PathBuf, Failure> {
    if let Some(bin) = settings.path(Opt::PgBin) {
        return Ok(bin.to_path_buf());
    }
    let found = told::pg_ctl_of(data).and_then(|program| program.parent().map(Path::to_path_buf));
    found.ok_or_else(|| {
        let text = "PostgreSQL of the backup's major is not found: option pg-bin names the directory of its programs";
        Error::refused(Kind::OptionRequired, text).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_is_kept_from_a_keeper_that_is_told_a_label() {
        let list = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let more = list(&["--set=20240101-000000F"]);
        for args in [&["drill", "--set=latest", "--type=name"] as &[&str], &["drill", "--set", "latest", "--type=name"]]
        {
            assert_eq!(without_latest(&list(args), &more), list(&["drill", "--type=name"]));
            assert_eq!(without_latest(&list(args), &list(&["--repo=1"])), list(args));
        }
        assert_eq!(without_latest(&list(&["drill", "latest"]), &more), list(&["drill", "latest"]));
    }

    #[test]
    fn a_missing_role_is_told_from_other_refusals() {
        let missing = "psql: error: connection to server failed: FATAL:  role \"a\" does not exist";
        assert!(is_role_missing(missing, "a") && !is_role_missing(missing, "b"));
        let damaged = "FATAL:  could not read block 0 in file \"global/1260\"";
        assert!(!is_role_missing(damaged, "a"));
    }
}
