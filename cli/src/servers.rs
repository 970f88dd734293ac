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

/// A server that runs, and where it says that it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) pid: u32,
    pub(crate) port: Option<u16>,
    /// The first directory of its sockets; `None` if it has no sockets.
    pub(crate) socket: Option<String>,
}

/// The server that runs on the clone in `dir`, mounted or not.
///
/// # Errors
/// `FileOpen` and its like if its `postmaster.pid` cannot be read.
pub(crate) fn of_clone(dir: &Path) -> Result<Option<u32>, Failure> {
    Ok(on_clone(dir)?.map(|server| server.pid))
}

/// The same, with where it listens: options of its start may have moved it from what its files say.
///
/// # Errors
/// As [`of_clone`].
pub(crate) fn on_clone(dir: &Path) -> Result<Option<Server>, Failure> {
    on(&dir.join("data"))
}

/// The server that runs on a data directory.
///
/// # Errors
/// As [`of_clone`].
pub(crate) fn on(data: &Path) -> Result<Option<Server>, Failure> {
    let noted = Noted::read(data)?.filter(Noted::is_alive);
    Ok(noted.map(|noted| Server {
        pid: noted.pid,
        port: noted.line(4).parse().ok().filter(|port| *port > 0),
        socket: Some(noted.line(5).to_owned()).filter(|socket| !socket.is_empty()),
    }))
}

/// What a server notes in the `postmaster.pid` of its data directory; the lines are those of PostgreSQL's `pidfile.h`.
struct Noted {
    path: PathBuf,
    pid: u32,
    uid: u32,
    text: String,
}

impl Noted {
    /// `None` where there is none, or what is there was not written by a server.
    fn read(data: &Path) -> Result<Option<Self>, Failure> {
        let path = data.join("postmaster.pid");
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
        let text = String::from_utf8_lossy(&text).into_owned();
        // A server that is no postmaster notes the negative of its number.
        let first = text.lines().next().and_then(|line| line.trim().parse::<i64>().ok());
        let pid = first.and_then(|n| u32::try_from(n.unsigned_abs()).ok()).filter(|pid| *pid > 0);
        Ok(pid.map(|pid| Self { path, pid, uid: facts.uid(), text }))
    }

    /// A line by its number, from 1; empty if it is not there.
    fn line(&self, number: usize) -> &str {
        self.text.lines().nth(number - 1).unwrap_or_default().trim()
    }

    fn started(&self) -> Option<SystemTime> {
        Some(UNIX_EPOCH + Duration::from_secs(self.line(3).parse().ok()?))
    }

    fn is_alive(&self) -> bool {
        if !self.owns(self.pid) {
            return false;
        }
        // A clock that was set spoils the time.
        let args = std::fs::read(format!("/proc/{}/cmdline", self.pid));
        let told = args.is_ok_and(|args| is_told(&args, Path::new(self.line(2))));
        is_the_server(self.pid, self.started().filter(|_| !told))
    }

    /// True if it has certainly ended, and its number is taken all the same.
    fn is_zombie(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        self.owns(self.pid) && parse(&stat).is_some_and(|process| matches!(process.state, "Z" | "X"))
    }

    /// True for a process of the file's owner.
    fn owns(&self, pid: u32) -> bool {
        std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == self.uid)
    }

    /// Key and number of its shared memory, if it was made since this host started: earlier ones may be another's by now.
    fn memory(&self) -> Option<(u32, u64)> {
        let (started, booted) = (self.started()?, booted()?);
        let mut words = self.line(7).split_ascii_whitespace();
        // The key is a signed number of 32 bits that is written as an unsigned long.
        let key = words.next()?.parse::<u64>().ok()? as u32;
        let number = words.next()?.parse().ok()?;
        (started + START_SLACK >= booted).then_some((key, number))
    }
}

/// What a server that has died has left: processes that still have its shared memory. They may go on writing to files they
/// have open, so none may be left when another server starts; PostgreSQL itself refuses to start beside them.
///
/// # Errors
/// As [`of_clone`].
pub(crate) fn left_on_clone(dir: &Path) -> Result<Vec<u32>, Failure> {
    let Some(noted) = Noted::read(&dir.join("data"))?.filter(|noted| !noted.is_alive()) else { return Ok(Vec::new()) };
    Ok(left_by(&noted))
}

fn left_by(noted: &Noted) -> Vec<u32> {
    let Some((key, number)) = noted.memory() else { return Vec::new() };
    let has_it = |pid: &u32| {
        // Names of libraries may be in any encoding.
        let maps = std::fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
        String::from_utf8_lossy(&maps).lines().any(|line| is_memory(line, key, number))
    };
    let stat = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_server =
        |pid: &u32| parse(&stat(*pid)).is_some_and(|process| matches!(process.name, "postgres" | "postmaster"));
    let left: Vec<u32> =
        processes().into_iter().filter(|pid| noted.owns(*pid) && is_server(pid) && has_it(pid)).collect();
    // Those of a postmaster that lives are not left by one that died, whatever the numbers say.
    let parent = |pid: &u32| parse(&stat(*pid)).map(|process| process.parent);
    if left.iter().filter_map(parent).any(|parent| left.contains(&parent)) { Vec::new() } else { left }
}

/// Whether a line of `/proc/<pid>/maps` is of that System V shared memory: its number stands as the inode.
fn is_memory(line: &str, key: u32, number: u64) -> bool {
    let mut fields = line.split_ascii_whitespace().skip(4);
    let inode = fields.next().and_then(|field| field.parse().ok());
    inode == Some(number) && fields.next() == Some(&format!("/SYSV{key:08x}"))
}

/// Removes the `postmaster.pid` of a server that has ended if it is a zombie that nobody has waited for, as in containers
/// whose first process does not: a server that is started takes it for one that runs, and refuses. A number that another
/// process has now is left to PostgreSQL, for what runs elsewhere under it cannot be seen from here.
///
/// Nobody may be left of the server, see [`left_on_clone`].
///
/// # Errors
/// As [`of_clone`]; `FileRemove` if it cannot be removed.
pub(crate) fn forget_dead(data: &Path) -> Result<(), Failure> {
    let Some(noted) = Noted::read(data)?.filter(|noted| noted.is_zombie() && left_by(noted).is_empty()) else {
        return Ok(());
    };
    // Looking at all processes takes a while, in which the zombie may have gone and another server have come.
    if Noted::read(data)?.is_some_and(|now| now.text == noted.text && now.is_zombie()) {
        tracing::info!("removing '{}': server {} has ended, and is a zombie", noted.path.display(), noted.pid);
        std::fs::remove_file(&noted.path).map_err(|e| Failure::file(FileError::at("remove", &noted.path)(e)))?;
    }
    Ok(())
}

/// False if a process of that number is certainly another one than the server that noted it. What cannot be told counts
/// as the server.
fn is_the_server(pid: u32, noted: Option<SystemTime>) -> bool {
    let stat = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(e) => return e.kind() == std::io::ErrorKind::PermissionDenied,
    };
    let Some(process) = parse(&stat) else { return true };
    if matches!(process.state, "Z" | "X") || !matches!(process.name, "postgres" | "postmaster") {
        return false;
    }
    match (noted, booted()) {
        (Some(noted), Some(booted)) => {
            booted + Duration::from_secs(process.ticks / TICKS_PER_SECOND) <= noted + START_SLACK
        }
        _ => true,
    }
}

/// What the kernel says of a process.
#[derive(Debug, PartialEq, Eq)]
struct Process<'a> {
    name: &'a str,
    state: &'a str,
    parent: u32,
    /// When it started after boot.
    ticks: u64,
}

/// `7 (name) S parent ...`, see proc(5).
fn parse(stat: &str) -> Option<Process<'_>> {
    let (before, after) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let mut fields = after.split_ascii_whitespace();
    let (state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
    Some(Process { name, state, parent, ticks: fields.nth(17)?.parse().ok()? })
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
        if !parse(&stat).is_some_and(|process| process.name == "postgres" && process.state != "Z") {
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
        let expected = Process { name: "a) b (c", state: "S", parent: 1, ticks: 4711 };
        assert_eq!(parse(&format!("7 (a) b (c) {rest}")), Some(expected));
        assert_eq!(parse("7 (a) S 1"), None);
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        let own = parse(&own).unwrap();
        assert!(own.state == "R" || own.state == "S");
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert!(booted().unwrap() + Duration::from_secs(own.ticks / TICKS_PER_SECOND) <= SystemTime::now());
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
    fn the_file_of_a_server_goes_if_that_is_a_zombie() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("postmaster.pid");
        // A zombie: it has ended, and nobody has waited for it.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let stat = || std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        while parse(&stat()).unwrap().state != "Z" {
            std::thread::sleep(PAUSE);
        }
        std::fs::write(&path, format!("{}\n/x\n1\n5432\n", child.id())).unwrap();
        forget_dead(dir.path()).unwrap();
        assert!(!path.exists());
        // One whose number another process has, or nobody, is PostgreSQL's to judge, by what it says of shared memory.
        std::fs::write(&path, format!("{}\n/x\n1\n5432\n", child.id())).unwrap();
        child.wait().unwrap();
        forget_dead(dir.path()).unwrap();
        assert!(path.exists());
        std::fs::write(&path, format!("{}\n/x\n1\n5432\n", std::process::id())).unwrap();
        forget_dead(dir.path()).unwrap();
        assert!(path.exists());
    }

    #[test]
    fn shared_memory_is_known_by_key_and_number() {
        let line = "7f0a14000000-7f0a14001000 rw-s 00000000 00:01 32769                      /SYSV0052e2c1 (deleted)";
        assert!(is_memory(line, 0x0052_e2c1, 32769));
        assert!(!is_memory(line, 0x0052_e2c1, 32770) && !is_memory(line, 1, 32769) && !is_memory("", 1, 1));
        let dir = tempfile::tempdir().unwrap();
        let noted = |started: u64| {
            let text = format!("7\n/x\n{started}\n5432\n/tmp\n\n 18446744073709551615     32769\nready   \n");
            std::fs::write(dir.path().join("postmaster.pid"), text).unwrap();
            Noted::read(dir.path()).unwrap().unwrap()
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(noted(now).memory(), Some((u32::MAX, 32769)));
        // Numbers of before the start of this host are given anew.
        assert_eq!(noted(1000).memory(), None);
        assert_eq!((noted(now).line(4), noted(now).line(6), noted(now).line(9)), ("5432", "", ""));
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
