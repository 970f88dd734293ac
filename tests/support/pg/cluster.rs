//! A cluster and its server: made by `initdb`, or adopted where `pgkeep` put a data directory.
//!
//! The server is our own child, not a daemon: we see it die, an interrupt at the terminal reaches it, and no process
//! survives [`Cluster`]. What says *where* a server is (port, sockets) goes on its command line and never into the
//! data directory, so that a restored copy can be started beside the original.

use std::{
    fmt, fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use postgres::{Client, Config, NoTls, SimpleQueryMessage};
use rustix::process::{Pid, Signal, kill_process};

use super::{Binaries, template};
use crate::account::{self, Scratch};

/// How long a server may take to start or stop, with recovery, on a busy machine. Reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(180);
/// `sun_path` holds 107 bytes; the server refuses a socket directory that leaves no room for its file name.
const SOCKET_DIR_BYTES_MAX: usize = 90;

/// Small and quick, whatever the machine; durability as in production unless a test gives it up.
const SETTINGS: &[(&str, &str)] = &[
    ("shared_buffers", "32MB"),
    ("max_connections", "40"),
    ("max_wal_size", "512MB"),
    ("jit", "off"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("logging_collector", "off"),
];

/// How to stop a server; the names are PostgreSQL's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Waits for clients to leave.
    Smart,
    /// Disconnects clients, writes a shutdown checkpoint.
    Fast,
    /// No checkpoint: the next start recovers from WAL.
    Immediate,
}

/// What a new cluster should be like. Made by [`Cluster::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    major: u32,
    checksums: bool,
    tcp: bool,
    settings: Vec<(String, String)>,
    initdb_args: Vec<String>,
}

impl Builder {
    /// Page checksums on or off. Default on.
    pub fn checksums(mut self, on: bool) -> Self {
        self.checksums = on;
        self
    }

    /// Whether to listen on 127.0.0.1 as well. Default off: a Unix socket only.
    pub fn tcp(mut self, on: bool) -> Self {
        self.tcp = on;
        self
    }

    /// A line for `postgresql.conf`; the value is quoted here.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A further argument for `initdb`, such as `--wal-segsize=1`.
    pub fn initdb_arg(mut self, arg: &str) -> Self {
        self.initdb_args.push(arg.to_owned());
        self
    }

    /// A new cluster in a directory of its own, made by `initdb` or a copy of what that made. The server is not started.
    ///
    /// # Panics
    /// When the major is not installed or `initdb` fails.
    pub fn init(self) -> Cluster {
        let home = Scratch::new("pgkeep-pg");
        let data = account::private_dir(&home.path().join("data"));
        let mut cluster = Cluster::at(self.major, home, data);
        cluster.tcp = self.tcp;
        // The cluster is empty and about to be filled: its first fsync can wait for the first checkpoint.
        let mut args = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"].to_vec();
        match (self.checksums, self.major) {
            (true, _) => args.push("--data-checksums"),
            (false, 18..) => args.push("--no-data-checksums"),
            (false, _) => {}
        }
        args.extend(self.initdb_args.iter().map(String::as_str));
        template::initdb(&cluster.binaries, &args, &cluster.data);
        for (name, value) in SETTINGS {
            cluster.configure(name, value);
        }
        for (name, value) in &self.settings {
            cluster.configure(name, value);
        }
        cluster
    }
}

/// One data directory and, while it runs, its server. Dropping it stops the server and removes what it created.
pub struct Cluster {
    binaries: Binaries,
    home: Scratch,
    data: PathBuf,
    sockets: PathBuf,
    port: u16,
    tcp: bool,
    overrides: Vec<(String, String)>,
    server: Option<Child>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PostgreSQL {} in {}, port {}", self.binaries.major(), self.data.display(), self.port)
    }
}

impl Cluster {
    /// Describes a new cluster: checksums on, Unix socket only, small and quick settings, fsync on.
    pub fn builder(major: u32) -> Builder {
        Builder { major, checksums: true, tcp: false, settings: Vec::new(), initdb_args: Vec::new() }
    }

    /// Takes a data directory that exists already: a restore target, a clone's mount point. It is not removed on drop.
    pub fn adopt(major: u32, data: &Path) -> Self {
        Self::at(major, Scratch::new("pgkeep-pg"), data.to_owned())
    }

    fn at(major: u32, home: Scratch, data: PathBuf) -> Self {
        let sockets = account::private_dir(&home.path().join("s"));
        // Root's own connections enter a 0700 directory anyway; an unprivileged run owns it.
        let length = sockets.as_os_str().len();
        assert!(length < SOCKET_DIR_BYTES_MAX, "{} is too long for a socket: set TMPDIR to less", sockets.display());
        let binaries = Binaries::find(major);
        Self { binaries, home, data, sockets, port: free_port(), tcp: false, overrides: Vec::new(), server: None }
    }

    /// The programs of this cluster's major.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.binaries.major()
    }

    /// PGDATA.
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// The directory of the Unix socket: `pg1-socket-path`, `host`.
    pub fn socket_dir(&self) -> &Path {
        &self.sockets
    }

    /// The port, which names the socket file too.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A new directory beside PGDATA, owned by the server: a tablespace, a second WAL directory.
    pub fn side_dir(&self, name: &str) -> PathBuf {
        account::private_dir(&self.home.path().join(name))
    }

    /// Appends a line to `postgresql.conf`; in force after the next start or reload. The value is quoted here.
    pub fn configure(&self, name: &str, value: &str) {
        let path = self.data.join("postgresql.conf");
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
        writeln!(file, "{name} = '{}'", value.replace('\'', "''")).expect("cannot write postgresql.conf");
    }

    /// Sets a parameter on the command line of every later start, leaving the data directory as it is.
    pub fn override_setting(&mut self, name: &str, value: &str) {
        self.overrides.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the server and returns when it answers queries (which a standby in recovery does too).
    ///
    /// # Panics
    /// When it exits or hangs instead; with its log.
    pub fn start(&mut self) {
        if let Err(why) = self.try_start() {
            panic!("{self:?}: {why}\n{}", self.log_tail());
        }
    }

    /// As [`Self::start`], for a server that is expected to refuse: `Err` says how it ended. See [`Self::log`].
    pub fn try_start(&mut self) -> Result<(), String> {
        assert!(!self.running(), "{self:?} runs already");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("cannot open the log");
        let mut command = account::command(self.binaries.own("postgres"));
        command.arg("-D").arg(&self.data);
        let listen = if self.tcp { "127.0.0.1" } else { "" };
        for (name, value) in [("port", self.port.to_string()), ("listen_addresses", listen.to_owned())] {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.arg("-c").arg(format!("unix_socket_directories={}", self.sockets.display()));
        for (name, value) in &self.overrides {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("cannot clone a handle")).stderr(log);
        self.server = Some(command.spawn().expect("cannot run postgres"));

        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.exited() {
                return Err(format!("the server ended while starting: {status}"));
            }
            match self.config().connect(NoTls) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    self.kill9();
                    return Err(format!("the server did not answer within {} s: {error}", PATIENCE.as_secs()));
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Whether the server process is there.
    pub fn running(&mut self) -> bool {
        self.server.is_some() && self.exited().is_none()
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        let status = self.server.as_mut()?.try_wait().expect("cannot ask for the server's state");
        if status.is_some() {
            self.server = None;
        }
        status
    }

    /// Stops the server and waits for its end.
    ///
    /// # Panics
    /// When it does not run, or hangs.
    pub fn stop(&mut self, mode: Mode) {
        assert!(self.running(), "{self:?} does not run\n{}", self.log_tail());
        let signal = match mode {
            Mode::Smart => Signal::TERM,
            Mode::Fast => Signal::INT,
            Mode::Immediate => Signal::QUIT,
        };
        kill_process(self.postmaster(), signal).expect("cannot signal the server");
        if !self.wait_end() {
            self.kill9();
            panic!("{self:?} did not stop ({mode:?})\n{}", self.log_tail());
        }
    }

    /// Waits until the server ends by itself (recovery with the action `shutdown`); `false` if it is still there.
    pub fn wait_end(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while self.running() {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// Kills the server and all its processes with SIGKILL, as a machine would; returns when all are gone.
    pub fn kill9(&mut self) {
        if !self.running() {
            return;
        }
        let postmaster = self.postmaster();
        // Held still first, or it would replace each process we kill.
        kill_process(postmaster, Signal::STOP).expect("cannot stop the server");
        let mut all = children_of(postmaster);
        all.push(postmaster);
        for pid in &all {
            _ = kill_process(*pid, Signal::KILL); // gone already is what we want
        }
        if let Some(mut server) = self.server.take() {
            server.wait().expect("cannot wait for the server");
        }
        // A survivor would keep the shared memory and make the next start fail.
        while all.iter().any(|pid| state(*pid).is_some_and(|(state, _)| state != 'Z')) {
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn postmaster(&self) -> Pid {
        Pid::from_child(self.server.as_ref().expect("the server does not run"))
    }

    /// How to reach the server as its superuser over the Unix socket, database `postgres`.
    pub fn config(&self) -> Config {
        let mut config = Config::new();
        config.host_path(&self.sockets).port(self.port).user("postgres").dbname("postgres");
        config
    }

    /// A connection as superuser to the database `postgres`.
    pub fn connect(&self) -> Client {
        self.connect_to("postgres")
    }

    /// A connection as superuser to a database.
    pub fn connect_to(&self, database: &str) -> Client {
        self.config()
            .dbname(database)
            .connect(NoTls)
            .unwrap_or_else(|error| panic!("{self:?}: cannot connect to {database}: {error:?}\n{}", self.log_tail()))
    }

    /// Runs SQL in the database `postgres`: rows as lines, columns joined by `|`, like `psql -At`.
    ///
    /// Several statements form one transaction. An error panics with the statement.
    pub fn psql(&self, sql: &str) -> String {
        self.psql_in("postgres", sql)
    }

    /// As [`Self::psql`], in another database.
    pub fn psql_in(&self, database: &str, sql: &str) -> String {
        let messages = self
            .connect_to(database)
            .simple_query(sql)
            .unwrap_or_else(|error| panic!("{self:?}: {error:?}\nin: {sql}\n{}", self.log_tail()));
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).unwrap_or("")).collect::<Vec<_>>().join("|"))
            }
            _ => None,
        });
        rows.collect::<Vec<_>>().join("\n")
    }

    /// Writes a checkpoint.
    pub fn checkpoint(&self) {
        self.psql("CHECKPOINT");
    }

    /// Ends the current WAL segment and returns its name. A record is written first, so that there is one to end.
    pub fn switch_wal(&self) -> String {
        self.psql("SELECT pg_create_restore_point('pgkeep test switch')");
        self.psql("SELECT pg_walfile_name(pg_switch_wal())")
    }

    /// Waits until a query answers `t`.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn wait_for(&self, sql: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.psql(sql) != "t" {
            assert!(Instant::now() < deadline, "{self:?}: not so in time: {sql}\n{}", self.log_tail());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until recovery has ended and the server takes writes.
    ///
    /// # Panics
    /// When it ends or stays in recovery.
    pub fn wait_promoted(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.psql("SELECT pg_is_in_recovery()") != "f" {
            assert!(self.running() && Instant::now() < deadline, "{self:?} stays in recovery\n{}", self.log_tail());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Everything the servers on this data directory have logged since it was made or adopted.
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("server.log")
    }

    /// The last lines of the log, for messages of failing tests.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let from = lines.len().saturating_sub(40);
        format!("--- server log, last lines\n{}\n---", lines[from..].join("\n"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.running() {
            if thread::panicking() {
                eprintln!("{self:?}\n{}", self.log_tail());
            }
            self.kill9();
        }
    }
}

/// A port nobody listens on now. The socket file is private, so for most clusters it is no more than a number.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("cannot bind to 127.0.0.1");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// State letter and parent of a process, from `/proc/<pid>/stat`; `None` when it is gone.
fn state(pid: Pid) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so start behind the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn children_of(parent: Pid) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").expect("cannot list /proc");
    entries
        .filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .filter(|pid| state(*pid).is_some_and(|(_, of)| of == parent.as_raw_nonzero().get()))
        .collect()
}
