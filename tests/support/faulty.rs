//! A store that misbehaves: an existing directory shown at another place by a FUSE file system of our own, which can be
//! slow, unreachable or broken while it is used.
//!
//! All is passed through, writes too, so that `pgkeep` can have its repository there. Nothing is cached by the kernel
//! (direct IO, no lifetimes), so every read arrives and is delayed or refused as the tests say. A request that waits
//! does so on a thread of its own: others go past it, as they would on a network.
//!
//! The source must be one file system. As root the mount is for all users; the kernel checks modes and owners.

mod inodes;
mod passthrough;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use fuser::{BackgroundSession, Config, MountOption, SessionACL};

use crate::{mounts, seed::Seed};

/// Threads that take requests; none of them ever waits.
const THREADS: usize = 4;
/// How long the end of the session is waited for once it is unmounted: somebody may use it still.
const PATIENCE: Duration = Duration::from_secs(10);

/// The mount. Dropping it answers what hangs, unmounts, and leaves the source as it is.
pub struct Faulty {
    source: PathBuf,
    mountpoint: PathBuf,
    faults: Arc<Faults>,
    session: Option<BackgroundSession>,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} at {}", self.source.display(), self.mountpoint.display())
    }
}

impl Faulty {
    /// Shows the directory `source` at the existing directory `mountpoint`, faultless for now.
    ///
    /// # Panics
    /// When the kernel does not mount it.
    pub fn mount(source: &Path, mountpoint: &Path) -> Self {
        let faults = Arc::new(Faults::new());
        let shown = passthrough::Passthrough::new(source, Arc::clone(&faults));
        let shown = shown.unwrap_or_else(|error| panic!("cannot open {}: {error}", source.display()));
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("faulty-store".to_owned()),
            MountOption::DefaultPermissions,
            MountOption::NoSuid,
            MountOption::NoDev,
        ];
        let common = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
        if rustix::process::geteuid().is_root() || common.lines().any(|line| line.trim() == "user_allow_other") {
            config.acl = SessionACL::All;
        }
        config.n_threads = Some(THREADS);
        let session = fuser::Session::new(shown, mountpoint, &config).and_then(fuser::Session::spawn);
        let session = session.unwrap_or_else(|error| panic!("cannot mount {}: {error}", mountpoint.display()));
        let (source, mountpoint) = (source.to_owned(), mountpoint.to_owned());
        Self { source, mountpoint, faults, session: Some(session) }
    }

    /// The directory that is shown.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// Where it is shown.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Delays each read from now on.
    pub fn set_delay(&self, delay: Duration) {
        self.faults.read_delay_us.store(micros(delay), Ordering::Release);
    }

    /// Delays each look-up of a name and each opening from now on.
    pub fn set_name_delay(&self, delay: Duration) {
        self.faults.name_delay_us.store(micros(delay), Ordering::Release);
    }

    /// From `true` on nothing is answered until `false`; then all is.
    pub fn hang(&self, hangs: bool) {
        self.faults.set_hung(hangs);
    }

    /// Requests that wait because of [`Self::hang`].
    pub fn waiting(&self) -> u64 {
        self.faults.waiting.load(Ordering::Acquire)
    }

    /// From now on reads of files whose path below the source contains `pattern` fail with EIO; the empty one is in all.
    pub fn fail(&self, pattern: &str) {
        self.fail_some(pattern, 1.0);
    }

    /// As [`Self::fail`], each read with this probability.
    pub fn fail_some(&self, pattern: &str, probability: f64) {
        let mut failing = lock(&self.faults.failing);
        failing.push((pattern.to_owned(), probability));
    }

    /// Ends every fault.
    pub fn heal(&self) {
        lock(&self.faults.failing).clear();
        self.set_delay(Duration::ZERO);
        self.set_name_delay(Duration::ZERO);
        self.hang(false);
    }

    /// Reads that have arrived, answered or not.
    pub fn reads(&self) -> u64 {
        self.faults.reads.load(Ordering::Acquire)
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.heal();
        let Some(session) = self.session.take() else { return };
        mounts::detach(&self.mountpoint);
        let begun = Instant::now();
        while !session.guard.is_finished() && begun.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(5));
        }
        // Its own unmounting would find whatever is mounted there by then.
        std::mem::forget(session);
    }
}

/// What a request that panicked has left is as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).expect("a delay in microseconds fits 64 bits")
}

/// What requests suffer at this moment.
struct Faults {
    read_delay_us: AtomicU64,
    name_delay_us: AtomicU64,
    hung: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicU64,
    failing: Mutex<Vec<(String, f64)>>,
    seed: Mutex<Seed>,
    reads: AtomicU64,
}

impl Faults {
    fn new() -> Self {
        Self {
            read_delay_us: AtomicU64::new(0),
            name_delay_us: AtomicU64::new(0),
            hung: Mutex::new(false),
            changed: Condvar::new(),
            waiting: AtomicU64::new(0),
            failing: Mutex::default(),
            // Which reads fail depends on the order they come in anyhow: the same sequence each time is enough.
            seed: Mutex::new(Seed::of(1)),
            reads: AtomicU64::new(0),
        }
    }

    fn set_hung(&self, hung: bool) {
        *lock(&self.hung) = hung;
        self.changed.notify_all();
    }

    /// Runs a request when its time has come: here if that is now, else on a thread of its own.
    fn pass(self: &Arc<Self>, delay_us: &AtomicU64, work: impl FnOnce() + Send + 'static) {
        let delay = Duration::from_micros(delay_us.load(Ordering::Acquire));
        if delay.is_zero() && !*lock(&self.hung) {
            return work();
        }
        let faults = Arc::clone(self);
        thread::spawn(move || {
            thread::sleep(delay);
            let mut hung = lock(&faults.hung);
            if *hung {
                faults.waiting.fetch_add(1, Ordering::AcqRel);
                while *hung {
                    hung = faults.changed.wait(hung).unwrap_or_else(PoisonError::into_inner);
                }
                faults.waiting.fetch_sub(1, Ordering::AcqRel);
            }
            drop(hung);
            work();
        });
    }

    /// Whether a read of the file at this path fails.
    fn fails(&self, path: &Path) -> bool {
        let failing = lock(&self.failing);
        let path = path.to_string_lossy();
        failing.iter().filter(|(pattern, _)| path.contains(pattern)).any(|(_, probability)| {
            let mut seed = lock(&self.seed);
            (seed.below(1 << 32) as f64) < probability * (1_u64 << 32) as f64
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        time::{Duration, Instant},
    };

    use super::Faulty;

    #[test]
    fn what_is_shown_is_the_source_and_its_faults_are_those_asked_for() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [source, shown] = [dirs[0].path(), dirs[1].path()];
        fs::create_dir(source.join("packs")).unwrap();
        fs::write(source.join("packs/a"), vec![7; 300_000]).unwrap();
        let faulty = Faulty::mount(source, shown);
        assert_eq!(fs::read(shown.join("packs/a")).unwrap(), vec![7; 300_000]);
        fs::write(shown.join("b"), "bb").unwrap();
        fs::rename(shown.join("b"), shown.join("packs/c")).unwrap();
        fs::hard_link(shown.join("packs/c"), shown.join("d")).unwrap();
        assert_eq!(fs::read(source.join("d")).unwrap(), b"bb");
        let mut names: Vec<_> = fs::read_dir(shown).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["d", "packs"]);

        faulty.fail("packs/");
        assert_eq!(fs::read(shown.join("packs/a")).unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(fs::read(shown.join("d")).unwrap(), b"bb");
        faulty.heal();
        assert_eq!(fs::read(shown.join("packs/a")).unwrap().len(), 300_000);

        // Delays are waited for.
        faulty.set_delay(Duration::from_millis(500));
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..60 {
                scope.spawn(|| assert_eq!(fs::read(shown.join("d")).unwrap(), b"bb"));
            }
        });
        assert!(begun.elapsed() >= Duration::from_millis(500));
        faulty.heal();
        faulty.hang(true);
        let reader = std::thread::spawn({
            let path = shown.join("d");
            move || fs::read(path).unwrap()
        });
        while faulty.waiting() == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!reader.is_finished());
        faulty.hang(false);
        assert_eq!(reader.join().unwrap(), b"bb");
        drop(faulty);
        assert_eq!(fs::read_dir(shown).unwrap().count(), 0);
    }
}
