//! The process that makes, serves and removes a scratch clone, and lives as long as the command that started it.

use super::dismantle;
use super::places::{PORT, Places};
use crate::commands::Context;
use crate::commands::clone::make::{self, Recipe};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::Opt;
use pgkeep_engine::observe::Cancel;
use pgkeep_engine::{Error, FileError, Kind};
use pgkeep_fuse::Session;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often it looks whether it is to end.
const GLANCE: Duration = Duration::from_millis(50);
/// How long what a dead command was writing is tried to be removed.
const REMOVE_WAIT: Duration = Duration::from_secs(10);
/// Most bytes of names that the command may send.
const NAMES_BYTES_MAX: usize = 1 << 20;

/// Makes and serves the clone until the command ends, or a signal asks to, and removes everything.
///
/// # Errors
/// What making the clone said, or what is left of it.
pub(in crate::commands) fn keep(context: &Context<'_>) -> Result<Status, Failure> {
    let root = context.settings.path(Opt::Scratch).ok_or_else(|| {
        Error::refused(Kind::OptionRequired, "option scratch is for processes that this program starts itself")
    })?;
    // Ctrl-C is for the command, which tells us by its end.
    rustix::process::setsid().map_err(|e| kernel("leave the terminal's session", e.into()))?;
    let places = Places::of(root);
    // Before there is anything: whenever the command ends from here on, there is somebody to remove what is made.
    let others = listen(context.cancel.clone())?;
    let _held = places.create()?;
    let served = serve(context, &places);
    let (session, result) = match served {
        Ok(session) => (Some(session), attend(context).map(|()| Status::OK)),
        Err(failure) => (None, Err(failure)),
    };
    let removed = dismantle::all(&places, session);
    for path in &*others.lock().unwrap_or_else(PoisonError::into_inner) {
        remove(path);
    }
    result.and_then(|status| removed.map(|()| status))
}

fn serve(context: &Context<'_>, places: &Places) -> Result<Session, Failure> {
    let recipe = Recipe::of_scratch(context.settings, &places.sockets, PORT)?;
    let made = make::make(context, &recipe, &places.clone, &places.data, false)?;
    let owner = std::fs::metadata(&places.data).map_err(|e| Failure::file(FileError::at("stat", &places.data)(e)))?;
    if rustix::process::geteuid().is_root() {
        chown(&places.sockets, Some(owner.uid()), Some(owner.gid()))
            .map_err(|e| Failure::file(FileError::at("change owner of", &places.sockets)(e)))?;
    }
    Ok(made.session)
}

/// Says that the clone is served, and waits for the end.
fn attend(context: &Context<'_>) -> Result<(), Failure> {
    std::env::set_current_dir("/").map_err(|e| Failure::file(FileError::at("open", "/")(e)))?;
    // Whoever started us may be gone already; the listener tells.
    let _ = rustix::io::write(std::io::stdin(), b"R");
    while !context.cancel.is_cancelled() {
        std::thread::sleep(GLANCE);
    }
    Ok(())
}

/// Hears from the command: names of what else is to be removed, each ended by a zero, and its end.
fn listen(cancel: Cancel) -> Result<Arc<Mutex<Vec<PathBuf>>>, Failure> {
    let names = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&names);
    let body = move || {
        let (mut pending, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            match rustix::io::read(std::io::stdin(), &mut buffer) {
                Ok(0) => break,
                Ok(n) if pending.len() < NAMES_BYTES_MAX => {
                    pending.extend_from_slice(buffer.get(..n).unwrap_or_default());
                }
                Err(rustix::io::Errno::INTR) => {}
                Ok(_) | Err(_) => break,
            }
            while let Some(end) = pending.iter().position(|b| *b == 0) {
                let mut name: Vec<u8> = pending.drain(..=end).collect();
                name.pop();
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(PathBuf::from(OsString::from_vec(name)));
            }
        }
        cancel.cancel();
    };
    let thread = std::thread::Builder::new().name("listen".to_owned()).spawn(body);
    thread.map_err(|e| kernel("start a thread", e))?;
    Ok(names)
}

/// Removes what a command that died had begun to write. After one that ended by itself it has its final name.
fn remove(path: &PathBuf) {
    let begun = Instant::now();
    loop {
        let is_dir = std::fs::symlink_metadata(path).is_ok_and(|facts| facts.is_dir());
        let removed = if is_dir { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        match removed {
            Err(e) if e.kind() == ErrorKind::NotFound => return,
            // Until it is seen to be gone: who was writing it may take a moment to end, and make one more file.
            Ok(()) | Err(_) if begun.elapsed() < REMOVE_WAIT => std::thread::sleep(GLANCE),
            Ok(()) => return,
            Err(e) => return tracing::warn!("cannot remove '{}', which is not whole: {e}", path.display()),
        }
    }
}

fn kernel(what: &str, error: std::io::Error) -> Failure {
    Error::refused(Kind::Kernel, format!("cannot {what}: {error}")).into()
}
