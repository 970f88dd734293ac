//! Finds or builds the `pgkeep` binary the tests run.
//!
//! Cargo builds no other package's binary for a test, so the first test that needs it asks cargo, in the profile and
//! target directory the test itself was built in. Cargo lets go of its lock before it runs tests, so this cannot hang;
//! when nothing changed it costs a fraction of a second. The result is the binary users get, without test features.

use std::{
    env,
    fs::{self, File},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::UNIX_EPOCH,
};

use crate::account;

/// The binary under test, runnable by the servers' account: `PGKEEP_BIN`, or else built now.
///
/// # Panics
/// When it does not build, or `PGKEEP_BIN` is not runnable.
pub fn pgkeep_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let Some(given) = env::var_os("PGKEEP_BIN") else { return reachable(&build()) };
        let given = PathBuf::from(given);
        assert!(given.is_absolute() && given.is_file(), "PGKEEP_BIN={}: not the full path of a file", given.display());
        reachable(&given)
    })
}

fn build() -> PathBuf {
    // <target>/<profile>/deps/<test>-<hash>
    let test = env::current_exe().expect("cannot tell where the test is");
    let profile_dir = test.parent().and_then(Path::parent).expect("a test lies in a target directory");
    let target = profile_dir.parent().expect("a profile lies in a target directory");
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()).expect("profiles are named in ASCII") {
        "debug" => "dev",
        other => other,
    };
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "pgkeep-cli", "--bin", "pgkeep", "--profile", profile]);
    cargo.arg("--target-dir");
    cargo.arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo tells this test about itself would look like a changed environment to some build scripts.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            cargo.env_remove(name);
        }
    }
    let out = cargo.output().expect("cannot run cargo");
    assert!(out.status.success(), "pgkeep does not build:\n{}", String::from_utf8_lossy(&out.stderr));
    profile_dir.join("pgkeep")
}

/// A copy where the servers' account can run it and no later build replaces it in mid-test.
///
/// One copy per build, shared by all test processes: `<tmp>/pgkeep-test-bin-<uid>-<of what>/<build>/pgkeep`. Each process
/// holds a shared lock on the directory's `lock` to its end, and the last one removes the directory.
fn reachable(built: &Path) -> PathBuf {
    let facts = fs::metadata(built).unwrap_or_else(|error| panic!("cannot find {}: {error}", built.display()));
    let changed = facts.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let of = blake3::hash(built.as_os_str().as_encoded_bytes()).to_hex();
    let uid = rustix::process::getuid().as_raw();
    let home = env::temp_dir().join(format!("pgkeep-test-bin-{uid}-{}", &of[..8]));
    let copy = home.join(format!("{}-{}", changed.as_nanos(), facts.len())).join("pgkeep");
    let lock = loop {
        open_dir(&home);
        // The last process of another test target may remove the directory between any two of these lines.
        let Ok(lock) = File::create(home.join("lock")) else { continue };
        // Whoever finds the copy made waits for nobody: others may use it for long.
        lock.lock_shared().expect("cannot share a lock");
        if copy.exists() && is_at(&lock, &home) {
            break lock;
        }
        lock.lock().expect("cannot lock");
        if !is_at(&lock, &home) {
            continue;
        }
        if !copy.exists() {
            make_copy(built, &home, &copy);
        }
        // Not one step: another process that ends may come between, and takes the directory with it.
        lock.lock_shared().expect("cannot share a lock");
        if is_at(&lock, &home) {
            break lock;
        }
    };
    assert!(USED.set((home, lock)).is_ok(), "the copy is made once");
    // SAFETY: the function is of this program, takes nothing and does not unwind.
    let registered = unsafe { libc::atexit(remove_unused) };
    assert!(registered == 0, "cannot register what cleans up");
    assert!(account::may(&copy, "-x"), "the servers' account cannot run {}", copy.display());
    copy
}

fn make_copy(built: &Path, home: &Path, copy: &Path) {
    // Copies of earlier builds go; a process that still runs one keeps its file.
    for entry in fs::read_dir(home).expect("cannot list a directory").flatten() {
        if entry.path().is_dir() {
            _ = fs::remove_dir_all(entry.path()); // the last process removes what is left
        }
    }
    let dir = copy.parent().expect("the copy has a directory");
    open_dir(dir);
    let part = dir.join("part");
    fs::copy(built, &part).expect("cannot copy the binary");
    fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).expect("cannot set a mode");
    fs::rename(&part, copy).expect("cannot rename the binary");
}

/// Whether the lock file is still the one that has its name.
fn is_at(lock: &File, home: &Path) -> bool {
    let (Ok(ours), Ok(named)) = (lock.metadata(), fs::metadata(home.join("lock"))) else { return false };
    (ours.dev(), ours.ino()) == (named.dev(), named.ino())
}

/// The directory of this process's copy, and its lock.
static USED: OnceLock<(PathBuf, File)> = OnceLock::new();

/// Removes the copy unless another process uses it. Run when the process ends, as nothing drops a static.
extern "C" fn remove_unused() {
    if let Some((home, lock)) = USED.get()
        && lock.try_lock().is_ok()
    {
        _ = fs::remove_dir_all(home); // nobody is left to be told
    }
}

fn open_dir(path: &Path) {
    if let Err(error) = fs::create_dir(path) {
        assert!(path.is_dir(), "cannot create {}: {error}", path.display());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("cannot set a mode");
}
