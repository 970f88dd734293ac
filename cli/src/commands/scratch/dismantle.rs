//! Taking a scratch clone away: server, mount, directory, whoever else made or left them.

use super::places::Places;
use crate::error::Failure;
use crate::{mounts, servers};
use pgkeep_engine::{Error, FileError, Kind};
use pgkeep_fuse::{IfUsed, Left, Session, clone as clones};
use rustix::process::Signal;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

/// How long a server may take to quit at once, and to vanish when it is killed.
const QUIT_WAIT: [(Signal, Duration); 2] =
    [(Signal::QUIT, Duration::from_secs(10)), (Signal::KILL, Duration::from_secs(10))];
/// How long everything else is tried.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// Ends the server, unmounts, and removes the directory. What the clone holds is worth nothing, so nobody waits for the
/// server to end in order.
///
/// # Errors
/// What is left and why.
pub(super) fn all(places: &Places, session: Option<Session>) -> Result<(), Failure> {
    let begun = Instant::now();
    end_servers(places)?;
    while !unmount(places, begun.elapsed() > PATIENCE)? {
        // A server that was about to start has got so far.
        end_servers(places)?;
        std::thread::sleep(PAUSE);
    }
    let owner = if session.is_some() { Owner::Us } else { Owner::Another };
    // Its end would make durable what is going to be removed. Its threads have nothing left to answer.
    std::mem::forget(session);
    end_servers(places)?;
    remove(places, owner)
}

/// Who serves the clone, or did.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Us,
    Another,
}

fn end_servers(places: &Places) -> Result<(), Failure> {
    let begun = Instant::now();
    while let Some(pid) = servers::of_clone(&places.clone)?.or_else(|| servers::at(&places.data)) {
        for (signal, wait) in QUIT_WAIT {
            tracing::debug!("ending server {pid} with {signal:?}");
            if servers::end(pid, signal, wait)? {
                break;
            }
        }
        if begun.elapsed() > PATIENCE {
            return Err(Error::refused(Kind::PostgresRunning, format!("server {pid} did not end")).into());
        }
    }
    Ok(())
}

/// True when nothing is mounted any more. At last what is used is taken out of sight: no server is among the users.
fn unmount(places: &Places, at_last: bool) -> Result<bool, Failure> {
    let mounted = mounts::of_source(&mounts::source_of(&places.clone))?;
    let if_used = if at_last { IfUsed::Detach } else { IfUsed::Stay };
    let mut gone = true;
    for mount in mounted {
        gone &= mount.unmount(if_used)? == Left::Gone;
    }
    if !gone && at_last {
        let text = format!("'{}' cannot be unmounted: another mount lies over it", places.data.display());
        return Err(Error::refused(Kind::Kernel, text).into());
    }
    Ok(gone)
}

fn remove(places: &Places, owner: Owner) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        // The lock of a clone outlives its mount by what its daemon still has to do.
        let free =
            owner == Owner::Us || !places.clone.join("meta").is_dir() || clones::check_free(&places.clone).is_ok();
        let removed = if free { std::fs::remove_dir_all(&places.root) } else { Err(ErrorKind::ResourceBusy.into()) };
        match removed {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound && !places.root.exists() => return Ok(()),
            // Somebody who is about to end has just made a file.
            Err(_) if begun.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            Err(e) => return Err(Failure::file(FileError::at("remove", &places.root)(e))),
        }
    }
}
