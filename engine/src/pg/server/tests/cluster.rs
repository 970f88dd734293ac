//! A throw-away server: own directory, own port, gone with its value.

use super::super::{ConnectOptions, Connection, ServerError};
use crate::observe::Cancel;
use rustix::process::{Pid, Signal, kill_process};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

pub(super) struct Cluster {
    programs: PathBuf,
    root: TempDir,
    server: Option<Child>,
    port: u16,
}

/// Where the server's programs are: the newest version a Debian machine has.
fn newest_programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL must be installed for this test");
    let number = |p: &PathBuf| p.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<u32>().ok());
    let newest = versions.flatten().map(|e| e.path()).filter(|p| p.join("bin/initdb").exists()).max_by_key(number);
    newest.expect("PostgreSQL must be installed for this test").join("bin")
}

/// Programs of each major in `PGKEEP_TEST_MAJORS`, Debian's or from where `scripts/setup` puts others.
pub(super) fn majors() -> Vec<(u32, PathBuf)> {
    let text = std::env::var("PGKEEP_TEST_MAJORS").unwrap_or_else(|_| "15".to_owned());
    let cache = std::env::var("PGKEEP_TEST_CACHE").unwrap_or_else(|_| "/var/cache/pgkeep-test".to_owned());
    let find = |major: &str| {
        let places = [format!("/usr/lib/postgresql/{major}/bin"), format!("{cache}/pg/{major}/bin")];
        let found = places.iter().map(PathBuf::from).find(|p| p.join("initdb").exists());
        let number = major.parse().expect("PGKEEP_TEST_MAJORS holds majors, separated by commas");
        (number, found.unwrap_or_else(|| panic!("PostgreSQL {major} is in none of {places:?}: run scripts/setup")))
    };
    text.split(',').map(|major| find(major.trim())).collect()
}

/// The server refuses to run as root, so root runs it as the user the package made for it.
fn command(path: PathBuf) -> Command {
    let mut command = match rustix::process::geteuid().is_root() {
        false => Command::new(path),
        true => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(path);
            command
        }
    };
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
    command
}

pub(super) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

fn give_to_server(path: &Path) {
    if rustix::process::geteuid().is_root() {
        let id = |flag: &str| run(Command::new("id").args([flag, "postgres"])).trim().parse().expect("a number");
        std::os::unix::fs::chown(path, Some(id("-u")), Some(id("-g"))).expect("chown");
    }
}

fn new_root() -> TempDir {
    let root = tempfile::tempdir().expect("a temporary directory");
    give_to_server(root.path());
    root
}

impl Cluster {
    /// Makes a cluster (user postgres, trusted on the socket, scram over TCP) and starts it.
    pub(super) fn start(initdb: &[&str], settings: &[&str]) -> Self {
        Self::start_with(newest_programs(), initdb, settings)
    }

    /// The same with the programs of another version.
    pub(super) fn start_with(programs: PathBuf, initdb: &[&str], settings: &[&str]) -> Self {
        let mut cluster = Self { programs, root: new_root(), server: None, port: 0 };
        let data = cluster.data();
        let fixed = ["-U", "postgres", "-A", "trust", "--auth-host=scram-sha-256", "--no-sync", "-E", "UTF8", "-D"];
        run(command(cluster.programs.join("initdb")).args(fixed).arg(&data).args(initdb));
        cluster.serve(settings);
        cluster
    }

    /// A streaming standby of this cluster.
    pub(super) fn standby(&self) -> Self {
        let mut standby = Self { programs: self.programs.clone(), root: new_root(), server: None, port: 0 };
        let socket = self.root.path().to_str().expect("a path of ASCII");
        let (port, data) = (self.port.to_string(), standby.data());
        run(command(self.programs.join("pg_basebackup"))
            .args(["-h", socket, "-p", &port, "-U", "postgres", "-R", "--no-sync", "-c", "fast", "-D"])
            .arg(&data));
        standby.serve(&["hot_standby=on"]);
        standby
    }

    fn serve(&mut self, settings: &[&str]) {
        // Between finding a free port and using it another program may take it.
        for _ in 0..5 {
            self.port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
            let socket = format!("unix_socket_directories={}", self.root.path().display());
            let log = std::fs::File::create(self.root.path().join("log")).expect("a log file");
            let mut server = command(self.programs.join("postgres"))
                .arg("-D")
                .arg(self.data())
                .args([
                    "-p",
                    &self.port.to_string(),
                    "-c",
                    "listen_addresses=127.0.0.1",
                    "-c",
                    "fsync=off",
                    "-c",
                    &socket,
                ])
                .args(settings.iter().flat_map(|s| ["-c", s]))
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("start a server");
            while server.try_wait().expect("wait for the server").is_none() {
                if self.try_connect(&self.options()).is_ok() {
                    self.server = Some(server);
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("the server does not start: {:?}", std::fs::read_to_string(self.root.path().join("log")));
    }

    pub(super) fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// A directory the server may use.
    pub(super) fn directory(&self, name: &str) -> PathBuf {
        let path = self.root.path().join(name);
        std::fs::create_dir(&path).expect("create a directory");
        give_to_server(&path);
        path
    }

    /// Puts a file into the data directory, as the server wants its key file.
    pub(super) fn put(&self, name: &str, content: &[u8]) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.data().join(name);
        std::fs::write(&path, content).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        give_to_server(&path);
    }

    pub(super) fn output(&self, program: &str, arguments: &[&str]) -> String {
        run(command(self.programs.join(program)).args(arguments))
    }

    /// Over the socket, as the superuser.
    pub(super) fn options(&self) -> ConnectOptions {
        ConnectOptions {
            socket_path: Some(self.root.path().to_path_buf()),
            port: self.port,
            user: Some("postgres".to_owned()),
            ..ConnectOptions::default()
        }
    }

    /// Over TCP, as the superuser.
    pub(super) fn tcp(&self, password: &str) -> ConnectOptions {
        ConnectOptions {
            host: Some("127.0.0.1".to_owned()),
            socket_path: None,
            password: Some(password.to_owned().into()),
            ..self.options()
        }
    }

    pub(super) fn try_connect(&self, options: &ConnectOptions) -> Result<Connection, ServerError> {
        Connection::open(options, "test", &Cancel::default())
    }

    pub(super) fn connect(&self) -> Connection {
        self.try_connect(&self.options()).expect("connect")
    }

    /// Signals the postmaster and waits for its end.
    pub(super) fn stop(&mut self, signal: Signal) {
        if let Some(mut server) = self.server.take() {
            if let Some(pid) = i32::try_from(server.id()).ok().and_then(Pid::from_raw) {
                // It may have ended by itself, which the wait below sees.
                let _ = kill_process(pid, signal);
            }
            let _ = server.wait();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop(Signal::QUIT);
    }
}
