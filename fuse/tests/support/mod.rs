//! A backup that is a plain directory, mounts that never outlive their test, and a daemon that can be killed.
#![allow(dead_code, unreachable_pub, reason = "each test target uses its part")]

use pgkeep_engine::view::{Content, Entry, EntryKind, Snapshot};
use pgkeep_engine::{Error, FileError, Kind, Result};
use pgkeep_fuse::MountOptions;
use pgkeep_fuse::clone::{self, OpenMode};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

mod programs;

pub use programs::{alone, run, spawn};

/// A directory seen as a backup: links are followed, as a backup does.
pub struct DirectorySnapshot {
    root: PathBuf,
    broken: Arc<AtomicBool>,
    fetched: Arc<AtomicU64>,
}

impl DirectorySnapshot {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf(), broken: Arc::default(), fetched: Arc::default() }
    }

    /// While set, opening and reading content fails.
    pub fn broken(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.broken)
    }

    /// Bytes read from contents so far.
    pub fn fetched(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.fetched)
    }

    fn entry(&self, path: &str) -> Result<Option<Entry>> {
        let full = self.root.join(path);
        let Ok(link) = std::fs::symlink_metadata(&full) else { return Ok(None) };
        let meta = std::fs::metadata(&full).map_err(FileError::at("stat", &full))?;
        let destination = || std::fs::read_link(&full).map(|to| to.display().to_string()).unwrap_or_default();
        let kind = match (link.is_symlink(), meta.is_dir()) {
            (false, true) => EntryKind::Directory,
            (true, true) => EntryKind::LinkedDirectory { destination: destination() },
            (false, false) => EntryKind::File,
            (true, false) => EntryKind::LinkedFile { destination: destination() },
        };
        Ok(Some(Entry {
            path: path.to_owned(),
            kind,
            mode: meta.mode() & 0o7777,
            user: meta.uid().to_string(),
            group: meta.gid().to_string(),
            modified: meta.mtime(),
            size: if meta.is_dir() { 0 } else { meta.len() },
        }))
    }

    fn walk(&self, directory: &str, each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        for entry in self.children(directory)? {
            let (path, is_directory) = (entry.path.clone(), entry.is_directory());
            each(entry)?;
            if is_directory {
                self.walk(&path, each)?;
            }
        }
        Ok(())
    }
}

impl Snapshot for DirectorySnapshot {
    fn page_size(&self) -> u32 {
        8192
    }

    fn entries(&self, each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        if let Some(root) = self.entry("")? {
            each(root)?;
        }
        self.walk("", each)
    }

    fn lookup(&self, path: &str) -> Result<Option<Entry>> {
        self.entry(path)
    }

    fn children(&self, directory: &str) -> Result<Vec<Entry>> {
        let full = self.root.join(directory);
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(&full).map_err(FileError::at("list", &full))? {
            let name = entry.map_err(FileError::at("list", &full))?.file_name().into_string().unwrap();
            paths.push(if directory.is_empty() { name } else { format!("{directory}/{name}") });
        }
        paths.sort();
        paths.iter().filter_map(|path| self.entry(path).transpose()).collect()
    }

    fn open(&self, path: &str) -> Result<Arc<dyn Content>> {
        let full = self.root.join(path);
        let file = File::open(&full).map_err(FileError::at("open", &full))?;
        Ok(Arc::new(FileContent {
            size: file.metadata().unwrap().len(),
            file,
            broken: self.broken(),
            fetched: self.fetched(),
        }))
    }
}

struct FileContent {
    file: File,
    size: u64,
    broken: Arc<AtomicBool>,
    fetched: Arc<AtomicU64>,
}

impl Content for FileContent {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(Error::refused(Kind::Service, "the store is broken by the test"));
        }
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64).unwrap() {
                0 => break,
                read => filled += read,
            }
        }
        self.fetched.fetch_add(filled as u64, Ordering::SeqCst);
        Ok(filled)
    }
}

/// A directory that others may enter, with what a clone test needs in it. Whatever is mounted in it is unmounted.
pub struct Place {
    dir: Option<tempfile::TempDir>,
    root: PathBuf,
    /// How the clone's files are opened.
    mode: &'static str,
}

impl Place {
    pub fn new() -> Self {
        Self::in_mode("auto")
    }

    /// Runs a test once for each way in which files may be opened.
    pub fn in_each_mode(test: impl Fn(Self)) {
        for mode in OpenMode::NAMES {
            eprintln!("mode {mode}");
            test(Self::in_mode(mode));
        }
    }

    pub fn in_mode(mode: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let root = dir.path().to_path_buf();
        for name in ["base", "mnt"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        Self { dir: Some(dir), root, mode }
    }

    /// The same place, used in another mode. Whoever made it removes it.
    pub fn again(&self, mode: &'static str) -> Self {
        Self { dir: None, root: self.root.clone(), mode }
    }

    pub fn base(&self) -> PathBuf {
        self.root.join("base")
    }

    pub fn clone_dir(&self) -> PathBuf {
        self.root.join("clone")
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.root.join("mnt")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn create(&self) {
        let snapshot = DirectorySnapshot::new(&self.base());
        alone(|| clone::create(&self.clone_dir(), &snapshot, &Default::default())).unwrap();
    }

    /// Makes the clone believe that the host went down: its record names another boot.
    pub fn pretend_reboot(&self) {
        let path = self.clone_dir().join("meta/session.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert!(text.contains(boot.trim()));
        std::fs::write(&path, text.replace(boot.trim(), "another")).unwrap();
    }

    pub fn serve(&self) -> pgkeep_fuse::Session {
        self.serve_snapshot(DirectorySnapshot::new(&self.base()))
    }

    pub fn serve_snapshot(&self, snapshot: DirectorySnapshot) -> pgkeep_fuse::Session {
        let (snapshot, options) = (Arc::new(snapshot), options(self.mode));
        alone(|| clone::serve(&self.clone_dir(), snapshot, &self.mountpoint(), &options)).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.dir.is_none() {
            return;
        }
        let flags = rustix::mount::UnmountFlags::DETACH;
        for path in [self.mountpoint(), self.clone_dir()] {
            while rustix::mount::unmount(&path, flags).is_ok() {}
        }
        if std::env::var_os("KEEP_TEST_DIRECTORIES").is_some() {
            eprintln!("kept {}", self.root.display());
            std::mem::forget(self.dir.take());
        }
    }
}

fn options(mode: &str) -> MountOptions {
    MountOptions { open_mode: OpenMode::parse(mode).unwrap(), ..MountOptions::default() }
}

/// Names the clone, the backup and the mountpoint a daemon serves.
const DAEMON: &str = "PGKEEP_TEST_DAEMON";
/// Names how it opens files.
const MODE: &str = "PGKEEP_TEST_DAEMON_MODE";

/// The other side of [`Daemon::start`]: call this from a test called `daemon`.
pub fn daemon_main() {
    let Ok(root) = std::env::var(DAEMON) else { return };
    let root = Path::new(&root);
    let snapshot = Arc::new(DirectorySnapshot::new(&root.join("base")));
    let options = options(&std::env::var(MODE).unwrap());
    let session = clone::serve(&root.join("clone"), snapshot, &root.join("mnt"), &options).unwrap();
    println!("\nserving");
    session.join().unwrap();
}

/// A process that serves a place's clone.
pub struct Daemon {
    child: Child,
}

impl Daemon {
    pub fn start(place: &Place) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "daemon", "--nocapture"])
            .env(DAEMON, &place.root)
            .env(MODE, place.mode)
            .stdout(Stdio::piped());
        // SAFETY: prctl is a plain system call.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child = spawn(&mut command);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "serving"), "the daemon did not start");
        std::thread::spawn(move || lines.for_each(drop));
        Self { child }
    }

    /// Waits for its orderly end, which someone's unmounting begins.
    pub fn wait(mut self) {
        assert!(self.child.wait().unwrap().success());
    }

    /// Kills it as the kernel does when memory runs out. The mount stays, dead.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that differ in every page and from seed to seed.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}
