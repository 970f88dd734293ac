//! Servers that run on clones, found by the processes there are and not by what is mounted: a server outlives its file
//! system, and then writes what it names by absolute paths into whatever is mounted there next.

use crate::error::Failure;
use pgkeep_engine::{Error, FileError, Kind};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A server notes when it started a moment after it did, and both are in whole units.
const START_SLACK: Duration = Duration::from_secs(5);
/// Length of the unit of time in `/proc/<pid>/stat`, the same for all programs on Linux.
const TICKS_PER_SECOND: u64 = 100;
/// Most bytes of a `postmaster.pid` that are read: it has some ten lines.
const PID_BYTES_MAX: u64 = 64 << 10;
/// Between two looks whether a server has ended.
const PAUSE: Duration = Duration::from_millis(20);

/// The server that runs on the clone in `dir`, mounted or not.
///
/// # Errors
/// `FileOpen` and its like if its `postmaster.pid` cannot be read.
pub(crate) fn of_clone(dir: &Path) -> Result<Option<u32>, Failure> {
    let path = dir.join("data/postmaster.pid");
    let failed = |what: &'static str, e| Failure::file(FileError::at(what, &path)(e));
    // Whoever owns the data may have put anything there, and a server of another user is not theirs to have ended.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = match File::options().read(true).custom_flags(flags).open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::ELOOP) => return Ok(None),
        other => other.map_err(|e| failed("open", e))?,
    };
    let facts = file.metadata().map_err(|e| failed("stat", e))?;
    if !facts.is_file() {
        return Ok(None);
    }
    let mut text = Vec::new();
    (&mut file).take(PID_BYTES_MAX).read_to_end(&mut text).map_err(|e| failed("read", e))?;
    let text = String::from_utf8_lossy(&text);
    // A server that is no postmaster notes the negative of its number.
    let first = text.lines().next().and_then(|line| line.trim().parse::<i64>().ok());
    let Some(pid) = first.and_then(|n| u32::try_from(n.unsigned_abs()).ok()).filter(|pid| *pid > 0) else {
        return Ok(None);
    };
    if std::fs::metadata(format!("/proc/{pid}")).map_or(true, |process| process.uid() != facts.uid()) {
        return Ok(None);
    }
    // Its second line is the data directory, its third the time it started. A clock that was set spoils the time.
    let told = text.lines().nth(1).is_some_and(|line| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|args| is_told(&args, Path::new(line)))
    });
    let noted = text.lines().nth(2).filter(|_| !told).and_then(|line| line.trim().parse().ok());
    let noted = noted.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
    Ok(is_the_server(pid, noted).then_some(pid))
}

/// False if a process of that number is certainly another one than the server that noted it. What cannot be told counts
/// as the server.
fn is_the_server(pid: u32, noted: Option<SystemTime>) -> bool {
    let stat = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(e) => return e.kind() == std::io::ErrorKind::PermissionDenied,
    };
    let Some((name, state, ticks)) = parse(&stat) else { return true };
    if matches!(state, "Z" | "X") || !matches!(name, "postgres" | "postmaster") {
        return false;
    }
    match (noted, booted()) {
        (Some(noted), Some(booted)) => booted + Duration::from_secs(ticks / TICKS_PER_SECOND) <= noted + START_SLACK,
        _ => true,
    }
}

/// Name, state and start after boot of a process: `7 (name) S parent ...`, see proc(5).
fn parse(stat: &str) -> Option<(&str, &str, u64)> {
    let (before, after) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let mut fields = after.split_ascii_whitespace();
    let state = fields.next()?;
    Some((name, state, fields.nth(18)?.parse().ok()?))
}

fn booted() -> Option<SystemTime> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let seconds = text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())?;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// A server whose data directory is, or was, at `path`: it works there or was told so when it was started.
pub(crate) fn at(path: &Path) -> Option<u32> {
    processes().into_iter().find(|pid| {
        let of = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
        let stat = std::fs::read_to_string(of("stat")).unwrap_or_default();
        if !parse(&stat).is_some_and(|(name, state, _)| name == "postgres" && state != "Z") {
            return false;
        }
        let told = std::fs::read(of("cmdline")).is_ok_and(|line| is_told(&line, path));
        told || std::fs::read_link(of("cwd")).is_ok_and(|cwd| cwd == path)
    })
}

/// Whether the arguments of a server name the directory: `-D path`, `-Dpath`.
fn is_told(line: &[u8], path: &Path) -> bool {
    let mut args = line.split(|b| *b == 0);
    while let Some(arg) = args.next() {
        let Some(rest) = arg.strip_prefix(b"-D") else { continue };
        let named = if rest.is_empty() { args.next().unwrap_or_default() } else { rest };
        if Path::new(OsStr::from_bytes(named)) == path {
            return true;
        }
    }
    false
}

/// The processes that work in a directory or have something in it open, as far as this user may know.
pub(crate) fn users_of(path: &Path) -> Vec<u32> {
    let is_in = |link: &Path| std::fs::read_link(link).is_ok_and(|to| to.starts_with(path));
    let uses = |pid: &u32| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd"));
        is_in(Path::new(&format!("/proc/{pid}/cwd")))
            || fds.is_ok_and(|mut fds| fds.any(|fd| fd.is_ok_and(|fd| is_in(&fd.path()))))
    };
    processes().into_iter().filter(uses).collect()
}

fn processes() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Ends a server by a signal; false if it is still there after `wait`.
///
/// # Errors
/// `Kernel` if this user may not.
pub(crate) fn end(pid: u32, signal: Signal, wait: Duration) -> Result<bool, Failure> {
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(true) };
    match kill_process(process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(e) => return Err(Error::refused(Kind::Kernel, format!("cannot end server {pid}: {e}")).into()),
    }
    let begun = Instant::now();
    // One that has ended, but whose parent has not noticed, is a zombie.
    while is_the_server(pid, None) {
        if begun.elapsed() > wait {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_read_whatever_the_name() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse(&format!("7 (a) b (c) {rest}")), Some(("a) b (c", "S", 4711)));
        assert_eq!(parse("7 (a) S 1"), None);
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        let (_, state, ticks) = parse(&own).unwrap();
        assert!(state == "R" || state == "S");
        assert!(booted().unwrap() + Duration::from_secs(ticks / TICKS_PER_SECOND) <= SystemTime::now());
    }

    #[test]
    fn a_number_that_another_process_has_now_is_no_server() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let pid = std::process::id();
        std::fs::write(dir.path().join("data/postmaster.pid"), format!("{pid}\n/x\n1\n5432\n")).unwrap();
        assert_eq!(of_clone(dir.path()).unwrap(), None);
        assert_eq!(at(dir.path()), None);
    }

    #[test]
    fn a_link_to_the_file_of_another_server_tells_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        std::fs::write(dir.path().join("others"), format!("{}\n/x\n1\n", std::process::id())).unwrap();
        std::os::unix::fs::symlink(dir.path().join("others"), dir.path().join("data/postmaster.pid")).unwrap();
        assert_eq!(of_clone(dir.path()).unwrap(), None);
    }

    #[test]
    fn the_directory_a_server_was_told() {
        let path = Path::new("/srv/m");
        assert!(is_told(b"postgres\0-D\0/srv/m\0", path) && is_told(b"postgres\0-p\x001\0-D/srv/m\0", path));
        assert!(!is_told(b"postgres\0-D\0/srv/m2\0", path) && !is_told(b"postgres\0-D", path));
    }
}
