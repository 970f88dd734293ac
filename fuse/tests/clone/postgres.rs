//! A real PostgreSQL on a clone of a stopped cluster: it reads, writes, is killed with its file system, and recovers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pgkeep_fuse::Owner;
use pgkeep_fuse::clone::OpenMode;

use crate::support::{Daemon, Place, run, spawn};

const BIN: &str = "/usr/lib/postgresql/15/bin";
/// Only names the socket; nothing listens on the network.
const PORT: &str = "54329";

/// A program of PostgreSQL, as the user PostgreSQL runs as.
fn program(name: &str) -> Command {
    let path = Path::new(BIN).join(name);
    assert!(path.exists(), "{} is missing: install PostgreSQL 15", path.display());
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "env", "-i", "HOME=/tmp", "LC_ALL=C"]);
    command.arg(format!("PATH={BIN}:/usr/bin:/bin")).arg(path);
    command
}

struct Server {
    data: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    postmaster: Option<i32>,
}

impl Server {
    fn new(place: &Place, data: PathBuf) -> Self {
        Self { data, socket: place.path("socket"), log: place.path("socket/log"), postmaster: None }
    }

    fn start(&mut self) {
        let options = format!("-p {PORT} -k {} -c listen_addresses='' -c shared_buffers=16MB", self.socket.display());
        let mut command = program("pg_ctl");
        command.arg("-D").arg(&self.data).arg("-l").arg(&self.log);
        command.args(["-w", "-t", "60", "-o", &options, "start"]).stdout(Stdio::null());
        let status = spawn(&mut command).wait().unwrap();
        assert!(status.success(), "{}", fs::read_to_string(&self.log).unwrap_or_default());
        let pid = fs::read_to_string(self.data.join("postmaster.pid")).unwrap();
        self.postmaster = Some(pid.lines().next().unwrap().parse().unwrap());
    }

    fn stop(&mut self) {
        run(program("pg_ctl").arg("-D").arg(&self.data).args(["-w", "-m", "fast", "stop"]));
        self.postmaster = None;
    }

    /// Kills the postmaster and all it started: those waiting for a lock of a dead one would wait for ever.
    fn kill(&mut self) {
        let Some(postmaster) = self.postmaster.take() else { return };
        let mut processes = vec![postmaster];
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            // "pid (name) state parent ..."
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
            if parent == Some(postmaster) {
                processes.extend(entry.file_name().to_str().and_then(|pid| pid.parse::<i32>().ok()));
            }
        }
        for pid in processes.into_iter().filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        // A dead postmaster that nobody waited for still looks alive to the next one.
        let pid = rustix::process::Pid::from_raw(postmaster);
        let _ = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
    }

    fn client(&self, name: &str) -> Command {
        let mut command = program(name);
        command.arg("-h").arg(&self.socket).args(["-p", PORT, "-U", "postgres"]);
        command
    }

    fn ask(&self, sql: &str) -> String {
        run(self.client("psql").args(["-XAtq", "-d", "postgres", "-c", sql])).trim().to_owned()
    }

    fn check(&self) {
        run(self.client("pg_amcheck").args(["--all", "--install-missing", "--heapallindexed"]));
        let sums = self.ask(
            "select (select sum(abalance) from pgbench_accounts) = (select sum(tbalance) from pgbench_tellers)
             and (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches)
             and (select sum(abalance) from pgbench_accounts) = (select coalesce(sum(delta), 0) from pgbench_history)",
        );
        assert_eq!(sums, "t", "balances");
    }

    fn load(&self) -> Child {
        let mut command = self.client("pgbench");
        command.args(["-n", "-c", "4", "-T", "60", "postgres"]).stdout(Stdio::null()).stderr(Stdio::null());
        spawn(&mut command)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn cluster(place: &Place) {
    let owner = Owner::of_user("postgres").expect("the user postgres does not exist");
    fs::create_dir(place.path("socket")).unwrap();
    for path in [place.base(), place.path("socket")] {
        std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid)).unwrap();
    }
    run(program("initdb").arg("-D").arg(place.base()).args(["-k", "-N", "-U", "postgres", "-A", "trust"]));
    let mut server = Server::new(place, place.base());
    server.start();
    run(server.client("pgbench").args(["-i", "-q", "-s", "4", "postgres"]));
    server.stop();
    fs::remove_file(place.path("socket/log")).unwrap();
}

// A test for each mode: they wait much, and so go on beside others.
const _: () = assert!(OpenMode::NAMES.len() == 3);

#[test]
fn postgresql_runs_on_a_clone_and_recovers_when_both_are_killed_auto() {
    runs_and_recovers("auto");
}

#[test]
fn postgresql_runs_on_a_clone_and_recovers_when_both_are_killed_cached() {
    runs_and_recovers("cached");
}

#[test]
fn postgresql_runs_on_a_clone_and_recovers_when_both_are_killed_plain() {
    runs_and_recovers("plain");
}

fn runs_and_recovers(mode: &'static str) {
    // The postmaster's parent leaves at once; this makes it ours, to be waited for.
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1)).unwrap();
    let place = Place::in_mode(mode);
    cluster(&place);
    let begun = Instant::now();
    place.create();
    let created = begun.elapsed();
    let daemon = Daemon::start(&place);
    let mut server = Server::new(&place, place.mountpoint());
    server.start();
    assert_eq!(server.ask("select count(*) from pgbench_branches"), "4");
    eprintln!("clone created after {created:?}, first answer after {:?}", begun.elapsed());

    run(server.client("pgbench").args(["-n", "-c", "2", "-t", "100", "postgres"]));
    server.ask("checkpoint");
    server.check();
    let acknowledged =
        server.ask("create table noted as select generate_series(1, 20000) as i; select count(*) from noted");
    assert_eq!(acknowledged, "20000");

    // The whole host side dies under load: file system and server.
    let mut load = server.load();
    std::thread::sleep(Duration::from_secs(2));
    server.ask("checkpoint");
    std::thread::sleep(Duration::from_secs(1));
    let history: u64 = server.ask("select count(*) from pgbench_history").parse().unwrap();
    server.kill();
    daemon.kill();
    let _ = load.wait();
    pgkeep_fuse::unmount(&place.mountpoint()).unwrap();

    let daemon = Daemon::start(&place);
    server.start();
    server.check();
    assert_eq!(server.ask("select count(*) from noted"), "20000");
    assert!(server.ask("select count(*) from pgbench_history").parse::<u64>().unwrap() >= history);

    // Only the file system dies: the server panics, and recovers on the next.
    let mut load = server.load();
    std::thread::sleep(Duration::from_secs(1));
    daemon.kill();
    let _ = load.wait();
    server.kill();
    pgkeep_fuse::unmount(&place.mountpoint()).unwrap();
    let daemon = Daemon::start(&place);
    server.start();
    server.check();
    server.ask("vacuum full pgbench_accounts");
    server.ask("drop table noted");
    server.check();
    server.stop();
    pgkeep_fuse::unmount(&place.mountpoint()).unwrap();
    daemon.wait();
}
