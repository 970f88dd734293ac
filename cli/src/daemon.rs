//! Mounts are served in the background: the command returns when the mount can be used.
//!
//! The command starts itself anew with `--ready-pipe`, in a session of its own, and waits at a pipe that is the new
//! process's standard input. That one does all the work, with the terminal's output streams until the mount is ready, so
//! that its messages are seen where they are looked for; then it says so through the pipe and lets go of all three
//! streams. Later messages are in the log file alone. If it ends before, its status becomes the command's.
//!
//! Starting anew instead of forking: nothing of the first process, threads and locks above all, is taken over.
//!
//! The daemon ends when somebody unmounts; TERM, INT and HUP make it unmount by itself. Before it unmounts a clone it
//! stops the server on it, and while anybody still uses the clone it goes on serving: a server that lost its file system
//! would write into whatever is mounted there next.

use crate::commands::Context;
use crate::commands::clone::instant::{self, Ripeness};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::Opt;
use crate::{render, servers};
use pgkeep_engine::observe::Cancel;
use pgkeep_engine::{Error, FileError, Kind};
use pgkeep_fuse::{IfUsed, Left, Mounted, Session};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;
use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a waiting process looks whether it was asked to stop.
const GLANCE: Duration = Duration::from_millis(100);

/// How long a server may take for its shutdown checkpoint, and to end without one.
const STOP_WAIT: [(Signal, Duration); 2] =
    [(Signal::INT, Duration::from_secs(60)), (Signal::QUIT, Duration::from_secs(10))];
/// Between two tries to unmount what is used.
const USED_PAUSE: Duration = Duration::from_secs(1);

/// A mount that can be used, and what its user should know.
pub(crate) struct Served {
    pub(crate) session: Session,
    /// The directory of the clone that is served; `None` for a read-only tree.
    pub(crate) clone: Option<PathBuf>,
    pub(crate) text: String,
    /// The clone becomes an ordinary directory in the mountpoint's place when it lacks nothing and no server runs.
    pub(crate) becomes_plain: bool,
}

/// Serves a mount: in front if asked to, else in the background. `serve` makes it, in the process that serves it.
///
/// # Errors
/// What `serve` or the session said; [`Failure::Told`] if that happened in the background.
pub(crate) fn run(
    context: &Context<'_>,
    serve: impl FnOnce(&Context<'_>) -> Result<Served, Failure>,
) -> Result<Status, Failure> {
    let settings = context.settings;
    if settings.flag(Opt::ReadyPipe) {
        rustix::process::setsid().map_err(|e| kernel("leave the terminal's session", &e.into()))?;
        let served = serve(context)?;
        say(&served.text);
        let_go()?;
        return attend(context, served);
    }
    if settings.flag(Opt::Foreground) {
        let served = serve(context)?;
        say(&served.text);
        notify("READY=1");
        let result = attend(context, served);
        notify("STOPPING=1");
        return result;
    }
    start(context)
}

/// Tells systemd, if it started us and asked to be told (`Type=notify`): see sd_notify(3). Nothing depends on the answer.
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else { return };
    let bytes = path.as_bytes();
    let address = match bytes.split_first() {
        // A name that is no file.
        Some((b'@', name)) => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!("cannot tell systemd '{state}' through {}: {error}", Path::new(&path).display());
    }
}

/// The mount is good, whether or not anybody can read about it.
fn say(text: &str) {
    if let Err(error) = render::print(text) {
        tracing::info!("the mount is served, but nobody reads about it: {}", error.report(None));
    }
}

fn kernel(what: &str, error: &std::io::Error) -> Failure {
    Error::refused(Kind::Kernel, format!("cannot {what}: {error}")).into()
}

/// Starts the daemon and waits until it is ready.
fn start(context: &Context<'_>) -> Result<Status, Failure> {
    let invocation = context.invocation;
    let (reader, writer) = std::io::pipe().map_err(|e| kernel("make a pipe", &e))?;
    let mut command = Command::new(&invocation.exe);
    command.arg0(&invocation.argv0).arg(format!("--{}", Opt::ReadyPipe.def().name)).args(&invocation.args);
    let child = command.stdin(Stdio::from(writer)).spawn();
    // With the command goes our copy of the writing end: the daemon's death is then the end of the pipe.
    drop(command);
    let mut child = child.map_err(|e| Failure::file(FileError::at("start", &invocation.exe)(e)))?;
    wait(context, reader, &mut child)
}

/// Waits until a process in the background says that it is ready.
///
/// # Errors
/// [`Failure::Told`] if it ended with a status of its own before that.
pub(crate) fn wait(context: &Context<'_>, mut reader: impl Read + AsFd, child: &mut Child) -> Result<Status, Failure> {
    let glance = Timespec::try_from(GLANCE).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    let mut asked = false;
    loop {
        if context.cancel.is_cancelled() && !std::mem::replace(&mut asked, true) {
            let pid = rustix::process::Pid::from_child(child);
            rustix::process::kill_process(pid, Signal::TERM)
                .map_err(|e| kernel("stop the process in the background", &e.into()))?;
        }
        match rustix::event::poll(&mut [PollFd::new(&reader, PollFlags::IN)], Some(&glance)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => break,
            Err(e) => return Err(kernel("wait for the process in the background", &e.into())),
        }
    }
    let mut word = [0];
    let told = reader.read(&mut word).map_err(|e| kernel("hear from the process in the background", &e))?;
    if told == 1 {
        return Ok(Status::OK);
    }
    let ended = child.wait().map_err(|e| kernel("wait for the process in the background", &e))?;
    match (ended.code().and_then(|c| u8::try_from(c).ok()), ended.signal()) {
        (Some(0), _) => Err(Error::refused(Kind::Assert, "the process in the background ended without a mount").into()),
        (Some(status), _) => Err(Failure::Told(Status(status))),
        (None, signal) => {
            let signal = signal.map_or_else(String::new, |s| format!(" by signal {s}"));
            Err(Error::refused(Kind::Runtime, format!("the process in the background was killed{signal}")).into())
        }
    }
}

/// Tells who waits that the mount is ready and lets go of the terminal and the working directory.
fn let_go() -> Result<(), Failure> {
    // What cannot be written was said to nobody, as above.
    let _ = std::io::stdout().flush();
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|e| Failure::file(FileError::at("open", "/dev/null")(e)))?;
    std::env::set_current_dir("/").map_err(|e| Failure::file(FileError::at("open", "/")(e)))?;
    // Whoever started us may be gone already: the mount is good all the same.
    let _ = rustix::io::write(std::io::stdin(), b"R");
    for stream in 0..=2 {
        // SAFETY: both are open descriptors of this process; the standard streams own nothing but their numbers, which
        // stay open.
        if unsafe { libc::dup2(null.as_raw_fd(), stream) } < 0 {
            return Err(kernel("let go of the terminal", &std::io::Error::last_os_error()));
        }
    }
    Ok(())
}

/// Serves until somebody unmounts, or a signal asks to, or a restore is complete.
fn attend(context: &Context<'_>, served: Served) -> Result<Status, Failure> {
    let Served { session, clone, becomes_plain, .. } = served;
    let restore = clone.clone().filter(|_| becomes_plain);
    // Whoever else unmounts goes on with it as well.
    let ours = Arc::new(AtomicBool::new(false));
    let watch = Watch {
        cancel: context.cancel.clone(),
        mounted: session.mounted().clone(),
        clone,
        restore: restore.clone(),
        ours: Arc::clone(&ours),
    };
    std::thread::Builder::new()
        .name("unmount".to_owned())
        .spawn(move || watch.run())
        .map_err(|e| kernel("start a thread that waits for signals", &e))?;
    let mountpoint = session.mountpoint().to_owned();
    session.join()?;
    let shown = mountpoint.display();
    tracing::info!("'{shown}' is not mounted any more");
    if let Some(dir) = restore.filter(|dir| ours.load(Ordering::Acquire) && instant::is_whole(dir)) {
        instant::promote(&dir, &mountpoint)?;
    }
    Ok(Status::OK)
}

/// Who unmounts when it is time.
struct Watch {
    cancel: Cancel,
    mounted: Mounted,
    clone: Option<PathBuf>,
    /// The clone, if it is to become an ordinary directory.
    restore: Option<PathBuf>,
    /// Set while this is what unmounts.
    ours: Arc<AtomicBool>,
}

impl Watch {
    fn run(self) {
        let mut ripeness = Ripeness::new();
        while !self.cancel.is_cancelled() {
            std::thread::sleep(GLANCE);
            if self.restore.as_deref().is_some_and(|dir| ripeness.reached(dir)) {
                if matches!(self.unmount(), Ok(Left::Gone)) {
                    return;
                }
                // A shell, a tool, a server that starts: another time.
                ripeness.begin_anew();
            }
        }
        tracing::info!("asked to stop: unmounting '{}'", self.mounted.on.display());
        let mut told = false;
        let mut tell = |text: String| {
            if !std::mem::replace(&mut told, true) {
                tracing::warn!("'{}' is served until it can be unmounted: {text}", self.mounted.on.display());
            }
        };
        loop {
            let stopped = self.clone.as_deref().map_or(Ok(()), stop_server);
            match stopped.and_then(|()| self.unmount()) {
                Ok(Left::Gone) => return,
                Ok(Left::Used) => tell(format!("it is used by processes {:?}", servers::users_of(&self.mounted.on))),
                Ok(Left::Covered) => tell("another mount lies over it".to_owned()),
                Err(error) => tell(error.report(None)),
            }
            std::thread::sleep(USED_PAUSE);
        }
    }

    fn unmount(&self) -> Result<Left, Failure> {
        let if_used = if self.clone.is_some() { IfUsed::Stay } else { IfUsed::Detach };
        self.ours.store(true, Ordering::Release);
        let left = self.mounted.unmount(if_used);
        if !matches!(left, Ok(Left::Gone)) {
            self.ours.store(false, Ordering::Release);
        }
        Ok(left?)
    }
}

/// Stops the server on a clone, if there is one: in order, or else at once.
///
/// # Errors
/// `PostgresRunning` if it does not end.
pub(crate) fn stop_server(clone: &Path) -> Result<(), Failure> {
    let Some(pid) = servers::of_clone(clone)? else { return Ok(()) };
    for (signal, wait) in STOP_WAIT {
        tracing::info!("stopping server {pid} with {signal:?}");
        if servers::end(pid, signal, wait)? {
            return Ok(());
        }
    }
    Err(Error::refused(Kind::PostgresRunning, format!("server {pid} did not end")).into())
}
