//! A dump straight into another server, in one transaction.
//!
//! The transaction's begin and end are ours. `psql --single-transaction` would commit whatever it was given when its
//! input ends, also by our death; without a last line that says so, nothing is committed.

use crate::commands::Context;
use crate::commands::programs::{Ended, Running};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::OptionError;
use pgkeep_engine::{Error, Kind};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

const BEGIN: &[u8] = b"BEGIN;\n";
const COMMIT: &[u8] = b"COMMIT;\n";
const GLANCE: Duration = Duration::from_millis(20);

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

/// Runs a dump into a server. Returns the end of `dump` if the server took all it was given.
///
/// # Errors
/// `Execute` with what psql said if the server refused something: then it has kept nothing.
pub(super) fn load(context: &Context<'_>, dump: &mut Command, psql: PathBuf, conninfo: &str) -> Result<Ended, Failure> {
    let mut command = Command::new(psql);
    command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", conninfo]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut taker = Running::start(&mut command, "psql")?;
    let mut giver = Running::start(dump.stdout(Stdio::piped()), "pg_dump")?;
    let pipes = (giver.child().stdout.take(), taker.child().stdin.take());
    let (Some(mut from), Some(mut to)) = pipes else {
        return Err(Error::refused(Kind::Assert, "a program was started without its pipe").into());
    };
    let copy = move || {
        to.write_all(BEGIN)?;
        std::io::copy(&mut from, &mut to)?;
        Ok(to)
    };
    let copier: JoinHandle<std::io::Result<ChildStdin>> = std::thread::Builder::new()
        .name("copy".to_owned())
        .spawn(copy)
        .map_err(|e| Error::refused(Kind::Kernel, format!("cannot start a thread: {e}")))?;
    // Dropped on the way out, both programs are ended, and the server rolls back.
    while !(taker.has_ended()? || giver.has_ended()? && copier.is_finished()) {
        context.cancel.check()?;
        std::thread::sleep(GLANCE);
    }
    if taker.has_ended()? {
        // What it refused is the cause, and that nobody reads the dump any more its consequence.
        giver.kill();
        return Err(refused(taker.wait(context.cancel)?));
    }
    let copied = copier.join().unwrap_or_else(|_| Err(std::io::Error::other("the copying thread failed")));
    let given = giver.wait(context.cancel)?;
    let end = match copied {
        Ok(_) if !given.status.success() => return Ok(given),
        // What is not read any more was refused, and that ends the dump too.
        other => other.and_then(|mut to| to.write_all(COMMIT)),
    };
    let taken = taker.wait(context.cancel)?;
    match end {
        Ok(()) if taken.status.success() => taken.success().map(|_| given),
        _ => Err(refused(taken)),
    }
}

/// What psql said, once for all lines it did not run.
fn refused(ended: Ended) -> Failure {
    let text =
        format!("the server of option 'into' has not taken the dump, and kept nothing of it: {}", ended.failure());
    Error::refused(Kind::Execute, text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

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
