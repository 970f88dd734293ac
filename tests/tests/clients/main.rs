//! Promise: what others wrote for pgBackRest works with this program under its name.
//!
//! Operators, monitoring, dashboards, Patroni: their very command lines, through a link named `pgbackrest`.

mod exporter;
mod files;
mod monitor;
mod operator;
mod patroni;
mod upgrade;

use std::{os::unix::fs::symlink, path::PathBuf, process::Command};

use support::{Run, Sandbox, account};

/// A directory for PATH with the link `pgbackrest` in it.
fn link(sandbox: &Sandbox) -> PathBuf {
    let dir = sandbox.root().join("bin");
    if !dir.exists() {
        account::private_dir(&dir);
        symlink(sandbox.binary(), dir.join("pgbackrest")).expect("cannot make a link");
    }
    dir
}

/// What a shell must know to find the link and this sandbox's configuration.
fn environment(sandbox: &Sandbox) -> Vec<(&'static str, String)> {
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", link(sandbox).display());
    vec![("PATH", path), ("PGBACKREST_CONFIG", sandbox.config().display().to_string())]
}

/// The same in front of a command line, for programs that a server runs.
fn prefix(variables: &[(&str, String)]) -> String {
    variables.iter().map(|(name, value)| format!("{name}={value} ")).collect()
}

/// Runs a line of shell as the servers' account, with these variables.
fn shell(sandbox: &Sandbox, variables: &[(&str, String)], line: &str) -> Run {
    let mut command: Command = account::command("/bin/sh");
    command.args(["-c", line]);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    sandbox.finish(command)
}

/// The same, and expects this exit status.
fn shell_expect(code: i32, sandbox: &Sandbox, variables: &[(&str, String)], line: &str) -> Run {
    let run = shell(sandbox, variables, line);
    assert_eq!(run.code, Some(code), "expected exit status {code}\n{run}");
    run
}
