//! A dump straight into another server, in one transaction.
//!
//! The dump goes as an archive through a pipe to `pg_restore --single-transaction`, which knows where it ends: it commits
//! when it has come to the end of the last of the data that the archive's table of contents promises, so that what is
//! cut short, also by our death, is rolled back. A dump as text would not do: around large objects it has `BEGIN` and
//! `COMMIT` of its own, which would end a transaction of ours.

use crate::commands::Context;
use crate::commands::programs::{Ended, Running};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::OptionError;
use pgkeep_engine::{Error, Kind};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

const GLANCE: Duration = Duration::from_millis(20);
/// What `pg_dump` is told: nobody keeps the archive, so it need not be small.
pub(super) const DUMP_ARGS: [&str; 2] = ["--format=custom", "--compress=0"];
/// What a program says that writes to nobody any more.
const BROKEN_PIPE: &str = "Broken pipe";
/// What `pg_restore` says if `COMMIT` itself fails, and any server's no.
const AT_COMMIT: &str = "could not commit database transaction";
const SERVERS_NO: &str = "ERROR: ";

/// Refuses a connection string with a password: everyone on the host could read it.
///
/// # Errors
/// Status 32.
pub(super) fn check(conninfo: &str) -> Result<(), Failure> {
    if !has_password(conninfo) {
        return Ok(());
    }
    let message = "option 'into' holds a password, which everyone on the host can read";
    Err(OptionError::new(Status::OPTION_INVALID_VALUE, message)
        .hint("a password file (~/.pgpass, PGPASSFILE), a service file or PGPASSWORD keeps it")
        .into())
}

fn has_password(conninfo: &str) -> bool {
    let is_uri = conninfo.starts_with("postgresql://") || conninfo.starts_with("postgres://");
    let Some((_, rest)) = conninfo.split_once("://").filter(|_| is_uri) else {
        // `keyword = value`, spaces at will; a value that only looks so is refused too.
        let squeezed: String = conninfo.to_ascii_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
        return squeezed
            .replace(" =", "=")
            .split(' ')
            .any(|word| word.starts_with("password=") || word.starts_with("sslpassword="));
    };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    user.contains(':')
        || rest.split_once('?').is_some_and(|(_, query)| query.to_ascii_lowercase().contains("password="))
}

/// Runs a dump into a server by `pg_restore`, which is given all but the server. Returns the end of `dump` if the server
/// took all it was given, or if it is the dump that failed.
///
/// # Errors
/// `Execute` with what `pg_restore` said if the server refused something, and what that means for what it has.
pub(super) fn load(
    context: &Context<'_>,
    dump: &mut Command,
    restore: &mut Command,
    conninfo: &str,
) -> Result<Ended, Failure> {
    let mut giver = Running::start(dump.args(DUMP_ARGS).stdout(Stdio::piped()), "pg_dump")?;
    let Some(pipe) = giver.child().stdout.take() else {
        return Err(Error::refused(Kind::Assert, "a program was started without its pipe").into());
    };
    restore.args(["--single-transaction", "--exit-on-error", "-d", conninfo]).env("LC_ALL", "C");
    let mut taker = Running::start(restore.stdin(pipe).stdout(Stdio::null()), "pg_restore")?;
    // The pipe's reading end goes with the command: without its reader the dump ends.
    restore.stdin(Stdio::null());
    // Dropped on the way out, both programs are ended, and the server rolls back.
    while !(taker.has_ended()? && giver.has_ended()?) {
        context.cancel.check()?;
        std::thread::sleep(GLANCE);
    }
    let (given, taken) = (giver.wait(context.cancel)?, taker.wait(context.cancel)?);
    // Each may fail for the other's sake: a dump that nobody reads any more, an archive that is cut short.
    let unread = given.status.signal() == Some(libc::SIGPIPE) || given.said.contains(BROKEN_PIPE);
    match (given.status.success() || unread, taken.status.success()) {
        (true, false) => Err(refused(&taken)),
        (true, true) => taken.success().map(|_| given),
        (false, _) => Ok(given),
    }
}

/// What became of the dump in a server that has not taken it.
fn refused(ended: &Ended) -> Failure {
    let unknown = is_unknown(ended.status.code(), &ended.said);
    let kept = if unknown {
        "has not said whether it has committed the dump: look there whether it is in it, all or nothing"
    } else {
        "has not taken the dump, and kept nothing of it"
    };
    Error::refused(Kind::Execute, format!("the server of option 'into' {kept}: {}", ended.failure())).into()
}

/// Whether the server may have committed: `pg_restore` was killed, or the connection was lost when it asked for that.
fn is_unknown(code: Option<i32>, said: &str) -> bool {
    code.is_none() || said.contains(AT_COMMIT) && !said.contains(SERVERS_NO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_commit_without_an_answer_leaves_it_open() {
        let lost =
            "pg_restore: error: could not commit database transaction: server closed the connection unexpectedly";
        let refused = "pg_restore: error: could not commit database transaction: ERROR:  insert violates foreign key";
        let before = "pg_restore: error: could not execute query: server closed the connection unexpectedly";
        assert!(is_unknown(Some(1), lost) && is_unknown(None, ""));
        assert!(!is_unknown(Some(1), refused) && !is_unknown(Some(1), before));
    }

    #[test]
    fn passwords_are_found_in_either_form() {
        for bad in [
            "host=a password=x",
            "PASSWORD = 'x' host=a",
            "host=a sslpassword =x",
            "postgresql://u:p@h/d",
            "postgres://h/d?user=u&password=x",
        ] {
            assert!(has_password(bad), "{bad}");
        }
        for good in ["host=a dbname=b", "b", "postgresql://u@h:5433/d", "postgresql://h/d?user=u", "passfile=/x", ""] {
            assert!(!has_password(good), "{good}");
        }
    }
}
