//! A private world for the `pgkeep` command: directories, configuration file, the binary under test, empty environment.

mod binary;
mod running;

use std::{
    ffi::OsStr,
    fmt, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    account::{self, Scratch},
    mounts::{self, mount},
    pg::Cluster,
    tree,
};

pub use binary::pgkeep_binary;
pub use running::{Running, serving};

/// Repository, lock, log and spool directories, and a configuration file, below one directory that goes with it.
#[derive(Debug)]
pub struct Sandbox {
    home: Scratch,
    binary: PathBuf,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Sandbox {
    /// Makes the directories, owned by the servers' account, and builds the binary if that has not happened yet.
    ///
    /// # Panics
    /// When the binary does not build; with the compiler's output.
    pub fn new() -> Self {
        let binary = pgkeep_binary().to_owned();
        let home = Scratch::new("pgkeep-test");
        for name in ["repo", "lock", "log", "spool", "cache"] {
            account::private_dir(&home.path().join(name));
        }
        let sandbox = Self { home, binary };
        sandbox.write_config(&[]);
        sandbox
    }

    /// The directory of all.
    pub fn root(&self) -> &Path {
        self.home.path()
    }

    /// `repo1-path`.
    pub fn repo(&self) -> PathBuf {
        self.root().join("repo")
    }

    /// The largest pack of the repository, which holds what is large: pages of tables.
    ///
    /// # Panics
    /// When there is none.
    pub fn largest_pack(&self) -> PathBuf {
        let packs = tree::files(&self.repo().join("packs"));
        packs.into_iter().max_by_key(|(_, bytes)| *bytes).expect("there is no pack").0
    }

    /// `spool-path`.
    pub fn spool(&self) -> PathBuf {
        self.root().join("spool")
    }

    /// `log-path`.
    pub fn logs(&self) -> PathBuf {
        self.root().join("log")
    }

    /// `lock-path`.
    pub fn locks(&self) -> PathBuf {
        self.root().join("lock")
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.root().join("pgkeep.conf")
    }

    /// The binary, where the servers' account may run it.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Mounts a file system of its own of this many bytes on a new directory, unmounted on drop: one that can be full.
    ///
    /// # Panics
    /// When the tests do not run as root, who alone may mount.
    pub fn small_disk(&self, name: &str, bytes: u64) -> PathBuf {
        let dir = self.dir(name);
        mount(&["-t", "tmpfs", "-o", &format!("size={bytes},mode=0700"), "pgkeep-test"], &dir);
        account::give(&dir);
        dir
    }

    /// Changes options of a mounted file system, such as `ro` or `size=1g`.
    ///
    /// # Panics
    /// When `mount` refuses.
    pub fn remount(&self, point: &Path, options: &str) {
        mount(&["-o", &format!("remount,{options}")], point);
    }

    /// Makes a further empty directory, mode 0700, owned by the servers' account: restore target, mount point.
    pub fn dir(&self, name: &str) -> PathBuf {
        account::private_dir(&self.root().join(name))
    }

    /// Replaces the configuration file: the paths of this sandbox in `[global]`, then these sections of options.
    ///
    /// A section may be `global` again; a later value of an option is meant to win, so tests can override a path.
    pub fn write_config(&self, sections: &[(&str, &[(&str, &str)])]) {
        let paths = [
            ("repo1-path", self.repo()),
            ("lock-path", self.locks()),
            ("log-path", self.logs()),
            ("spool-path", self.spool()),
            ("cache-path", self.root().join("cache")),
            // A repository that keeps all backups for ever is warned of.
            ("repo1-retention-full", PathBuf::from("999")),
        ];
        let global = sections.iter().filter(|(name, _)| *name == "global").flat_map(|(_, options)| options.iter());
        let overridden: Vec<_> = global.clone().map(|(name, _)| *name).collect();
        let mut text = String::from("[global]\n");
        for (name, path) in paths.iter().filter(|(name, _)| !overridden.contains(name)) {
            text += &format!("{name}={}\n", path.display());
        }
        global.for_each(|(name, value)| text += &format!("{name}={value}\n"));
        for (section, options) in sections.iter().filter(|(name, _)| *name != "global") {
            text += &format!("\n[{section}]\n");
            options.iter().for_each(|(name, value)| text += &format!("{name}={value}\n"));
        }
        fs::write(self.config(), text).expect("cannot write the configuration");
        fs::set_permissions(self.config(), fs::Permissions::from_mode(0o600)).expect("cannot set a mode");
        account::give(&self.config());
    }

    /// Writes the usual configuration: one stanza for this cluster over its socket, and these options in `[global]`.
    pub fn configure(&self, stanza: &str, cluster: &Cluster, global: &[(&str, &str)]) {
        let path = cluster.data_dir().display().to_string();
        let socket = cluster.socket_dir().display().to_string();
        let port = cluster.port().to_string();
        let options =
            [("pg1-path", path.as_str()), ("pg1-socket-path", &socket), ("pg1-port", &port), ("pg1-user", "postgres")];
        self.write_config(&[("global", global), (stanza, &options)]);
    }

    /// An `archive_command` that pushes into this sandbox's repository.
    pub fn archive_command(&self, stanza: &str) -> String {
        format!("{} --config={} --stanza={stanza} archive-push %p", self.binary.display(), self.config().display())
    }

    /// The command with this sandbox's configuration and these arguments, as the servers' account, environment cleared.
    pub fn pgkeep<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Command {
        let mut command = account::command(&self.binary);
        command.arg(format!("--config={}", self.config().display())).args(args).stdin(Stdio::null());
        command
    }

    /// Runs the command to its end, whatever that is.
    pub fn run<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Run {
        self.finish(self.pgkeep(args))
    }

    /// Runs the command and expects exit status 0.
    ///
    /// # Panics
    /// With everything it printed, when the status is another.
    pub fn run_ok<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Run {
        self.run_expect(0, args)
    }

    /// Runs the command and expects this exit status.
    ///
    /// # Panics
    /// With everything it printed, when the status is another.
    pub fn run_expect<I: IntoIterator<Item: AsRef<OsStr>>>(&self, code: i32, args: I) -> Run {
        let run = self.run(args);
        assert_eq!(run.code, Some(code), "expected exit status {code}\n{run}");
        run
    }

    /// Runs a command made by [`Self::pgkeep`] and changed since (environment, working directory).
    ///
    /// # Panics
    /// When it does not start or does not end.
    pub fn finish(&self, command: Command) -> Run {
        self.spawn(command).wait()
    }

    /// Starts a command made by [`Self::pgkeep`] and lets it run.
    ///
    /// # Panics
    /// When it does not start.
    pub fn spawn(&self, command: Command) -> Running {
        Running::new(command)
    }

    /// Where something is mounted below this sandbox, deepest first.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mounts").expect("cannot read the mount table");
        let points = table.lines().filter_map(|line| line.split(' ').nth(1));
        let mut ours: Vec<_> = points.map(PathBuf::from).filter(|point| point.starts_with(self.root())).collect();
        ours.sort_unstable();
        ours.reverse();
        ours
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // A failed test may leave a mount: detached, so that removing the directory reaches no foreign tree.
        for point in self.mounts() {
            mounts::detach(&point);
        }
    }
}

/// What one command did.
#[derive(Debug, Clone)]
pub struct Run {
    /// The command line, for messages.
    pub command: String,
    /// Exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Everything on standard output.
    pub stdout: String,
    /// Everything on standard error.
    pub stderr: String,
}

impl Run {
    /// The messages of one level, such as `WARN`, without what stands before the text.
    pub fn messages(&self, level: &str) -> Vec<&str> {
        let mark = format!("{level}: ");
        let lines = self.stdout.lines().filter(|line| line.contains(" P") || line.starts_with('P'));
        lines.filter_map(|line| Some(line.split_once(&mark)?.1)).collect()
    }

    /// Whether a text stands anywhere in what was printed.
    pub fn says(&self, text: &str) -> bool {
        self.stdout.contains(text) || self.stderr.contains(text)
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// When it is not; with everything printed.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not JSON: {error}\n{self}"))
    }
}

impl fmt::Display for Run {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code.map_or_else(|| "a signal".to_owned(), |code| format!("exit status {code}"));
        write!(out, "{}: {code}\n--- stdout\n{}\n--- stderr\n{}\n---", self.command, self.stdout, self.stderr)
    }
}
