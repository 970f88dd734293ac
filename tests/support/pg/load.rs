//! pgbench: data to back up and load to back it up under.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use super::Cluster;
use crate::account;

/// How long one [`Cluster::pgbench`] run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// This many transactions per client: the amount of change does not depend on the machine.
    Transactions(u32),
    /// This many seconds.
    Seconds(u32),
}

impl Cluster {
    fn pgbench_command(&self) -> Command {
        let mut command = account::command(self.binaries().client("pgbench"));
        command.arg("-h").arg(self.socket_dir()).arg("-p").arg(self.port().to_string()).args(["-U", "postgres"]);
        command
    }

    fn pgbench_run(&self, args: &[&str]) {
        let out = self.pgbench_command().args(args).arg("postgres").output().expect("cannot run pgbench");
        assert!(
            out.status.success(),
            "{self:?}: pgbench {args:?} failed: {}\n{}",
            String::from_utf8_lossy(&out.stderr),
            self.log_tail()
        );
    }

    /// Fills the pgbench tables, about 15 MB per unit of scale, in the database `postgres`.
    pub fn pgbench_init(&self, scale: u32) {
        self.pgbench_run(&["-i", "-q", "-s", &scale.to_string()]);
    }

    /// Runs the TPC-B-like transactions and waits for their end.
    pub fn pgbench(&self, clients: u32, work: Work) {
        let clients = clients.to_string();
        let (flag, amount) = match work {
            Work::Transactions(count) => ("-t", count.to_string()),
            Work::Seconds(seconds) => ("-T", seconds.to_string()),
        };
        self.pgbench_run(&["-n", "-c", &clients, flag, &amount]);
    }

    /// Starts the same transactions in the background, until [`Load::stop`] or drop.
    pub fn load(&self, clients: u32) -> Load {
        let log = self.socket_dir().join("load.log");
        let err = fs::File::create(&log).expect("cannot create a log");
        let child = self
            .pgbench_command()
            .args(["-n", "-c", &clients.to_string(), "-T", "86400", "postgres"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(err)
            .spawn()
            .expect("cannot run pgbench");
        Load { child, log }
    }
}

/// A running pgbench.
#[derive(Debug)]
pub struct Load {
    child: Child,
    log: PathBuf,
}

impl Load {
    /// Ends the load. What was committed stays; open transactions roll back.
    ///
    /// # Panics
    /// When it had ended before: then the test ran without the load it was about.
    pub fn stop(mut self) {
        if let Some(status) = self.child.try_wait().expect("cannot ask for the load's state") {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            panic!("the load ended by itself, {status}:\n{log}");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        _ = self.child.kill(); // it may have ended with its server
        _ = self.child.wait();
    }
}
