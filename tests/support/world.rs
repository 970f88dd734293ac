//! A server that archives into a repository: what most end-to-end tests begin with.
//!
//! [`Mark`]s say what the data was at a point of recovery, taken under load: while a mark holds its lock no transaction
//! of pgbench can commit, so whatever names that moment (LSN, time, name, transaction) names exactly the data seen.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use crate::{
    account,
    pg::{Builder, Cluster, Fingerprint},
    sandbox::{Run, Running, Sandbox},
};

/// The stanza of every world.
pub const STANZA: &str = "demo";
/// How long WAL may take into the archive. Reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A cluster and the sandbox it archives into.
#[derive(Debug)]
pub struct World {
    /// The cluster; its server is stopped first on drop.
    pub cluster: Cluster,
    /// Repository and configuration.
    pub sandbox: Sandbox,
}

/// What the data was at a moment that recovery can go to. The table `mark` holds `number` from just after it.
#[derive(Debug, Clone)]
pub struct Mark {
    /// Its row in the table `mark`.
    pub number: u32,
    /// Fingerprint of the database `postgres` without the table `mark`.
    pub data: Fingerprint,
    /// Name of a restore point.
    pub name: String,
    /// Position in the WAL.
    pub lsn: String,
    /// Time, with microseconds and zone.
    pub time: String,
    /// The transaction that inserts the row.
    pub xid: String,
}

impl World {
    /// A world of this major with the usual settings.
    pub fn new(major: u32) -> Self {
        Self::of(Cluster::builder(major), &[])
    }

    /// A world of this cluster, with these options in `[global]`: started, archiving, its stanza created.
    pub fn of(builder: Builder, global: &[(&str, &str)]) -> Self {
        let sandbox = Sandbox::new();
        Self::within(sandbox, builder, global)
    }

    /// As [`Self::of`], with a sandbox that was prepared before.
    pub fn within(sandbox: Sandbox, builder: Builder, global: &[(&str, &str)]) -> Self {
        let archive = sandbox.archive_command(STANZA);
        let mut cluster = builder.setting("archive_mode", "on").setting("archive_command", &archive).init();
        sandbox.configure(STANZA, &cluster, global);
        cluster.start();
        let world = Self { cluster, sandbox };
        world.ok(["stanza-create"]);
        world
    }

    /// The command for the stanza with messages from INFO on, unless the arguments say otherwise.
    pub fn pgkeep<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Command {
        let mut all: Vec<OsString> = vec![format!("--stanza={STANZA}").into()];
        all.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        if !all.iter().any(|arg| arg.to_string_lossy().starts_with("--log-level-console")) {
            all.insert(1, "--log-level-console=info".into());
        }
        self.sandbox.pgkeep(all)
    }

    /// Runs the command for the stanza to its end, whatever that is.
    pub fn run<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Run {
        self.sandbox.finish(self.pgkeep(args))
    }

    /// Runs the command for the stanza and expects success.
    pub fn ok<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Run {
        self.expect(0, args)
    }

    /// Runs the command for the stanza and expects this exit status.
    ///
    /// # Panics
    /// With everything printed, when the status is another.
    pub fn expect<I: IntoIterator<Item: AsRef<OsStr>>>(&self, code: i32, args: I) -> Run {
        let run = self.run(args);
        assert_eq!(run.code, Some(code), "expected exit status {code}\n{run}\n{}", self.cluster.log_tail());
        run
    }

    /// Starts the command for the stanza and lets it run.
    pub fn spawn<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Running {
        self.sandbox.spawn(self.pgkeep(args))
    }

    /// A backup of this type, with an immediate checkpoint; its label.
    pub fn backup(&self, backup_type: &str) -> String {
        label(&self.ok(["--start-fast", &format!("--type={backup_type}"), "backup"]))
    }

    /// The stanza as `info` tells it in JSON.
    pub fn info(&self) -> Value {
        let run = self.sandbox.run_ok([&format!("--stanza={STANZA}"), "--output=json", "info"]);
        let mut all = run.json();
        all.get_mut(0).unwrap_or_else(|| panic!("no stanza\n{run}")).take()
    }

    /// The backups of the stanza, oldest first.
    pub fn backups(&self) -> Vec<Value> {
        self.info()["backup"].as_array().expect("backup is a list").clone()
    }

    /// Their labels.
    pub fn labels(&self) -> Vec<String> {
        self.backups().iter().map(|b| b["label"].as_str().expect("a label is text").to_owned()).collect()
    }

    /// Changes `archive_command` of the running server; in force on return.
    pub fn set_archive_command(&self, command: &str) {
        self.cluster.configure("archive_command", command);
        self.cluster.psql("SELECT pg_reload_conf()");
        // A new session may still see the old value: the reload is a signal.
        while self.cluster.psql("SHOW archive_command") != command {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the current segment and waits until it is archived; its name.
    pub fn archive_now(&self) -> String {
        let segment = self.cluster.switch_wal();
        self.wait_archived(&segment);
        segment
    }

    /// Waits until the server has had a segment archived.
    ///
    /// # Panics
    /// When that does not happen.
    pub fn wait_archived(&self, segment: &str) {
        let deadline = Instant::now() + PATIENCE;
        // History and backup files are archived in between, so the status file is what tells.
        let wal = self.cluster.data_dir().join("pg_wal");
        let status = |suffix: &str| wal.join(format!("archive_status/{segment}.{suffix}")).exists();
        let pending = || status("ready") || (!status("done") && wal.join(segment).exists());
        while pending() {
            assert!(Instant::now() < deadline, "{segment} is not archived\n{}", self.cluster.log_tail());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Creates the table of marks.
    pub fn create_marks(&self) {
        self.cluster.psql("CREATE TABLE mark (number int)");
    }

    /// Takes a mark; pgbench waits meanwhile. Its second is later than that of any backup's end: backups are chosen for a
    /// time by whole seconds.
    pub fn mark(&self, number: u32) -> Mark {
        let begun = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock before 1970");
        thread::sleep(Duration::from_secs(1) - Duration::from_nanos(begun.subsec_nanos().into()));
        let mut client = self.cluster.connect();
        let mut lock = client.transaction().expect("cannot begin a transaction");
        lock.batch_execute("LOCK TABLE pgbench_history IN SHARE MODE").expect("cannot lock");
        let xid: String = lock.query_one("SELECT pg_current_xact_id()::text", &[]).expect("cannot query").get(0);
        let data = data(&self.cluster);
        let name = format!("mark {number}");
        let sql =
            "SELECT clock_timestamp()::text, pg_current_wal_insert_lsn()::text, pg_create_restore_point($1)::text";
        let row = lock.query_one(sql, &[&name]).expect("cannot query");
        let (time, lsn): (String, String) = (row.get(0), row.get(1));
        lock.execute("INSERT INTO mark VALUES ($1)", &[&(number as i32)]).expect("cannot insert");
        lock.commit().expect("cannot commit");
        Mark { number, data, name, lsn, time, xid }
    }

    /// The directory for option `pg-bin`: programs of the cluster's server, and clients.
    pub fn pg_bin(&self) -> PathBuf {
        self.cluster.binaries().with_clients(&self.path("pg-bin"))
    }

    /// Arguments for a command that makes a clone of its own below `dir`: where, and the server's programs, unless these
    /// arguments say so.
    pub fn scratch_args(&self, command: &str, dir: &Path, more: &[&str]) -> Vec<String> {
        let mut args = vec![command.to_owned()];
        for (option, value) in [("--dir=", dir.to_owned()), ("--pg-bin=", self.pg_bin())] {
            if !more.iter().any(|arg| arg.starts_with(option)) {
                args.push(format!("{option}{}", value.display()));
            }
        }
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        args
    }

    /// A path in the sandbox that does not exist yet.
    pub fn path(&self, name: &str) -> PathBuf {
        self.sandbox.root().join(name)
    }

    /// Restores into a new directory of this name and adopts it; not started. Archiving is off in it.
    pub fn restore<I: IntoIterator<Item: AsRef<OsStr>>>(&self, name: &str, args: I) -> Cluster {
        let target = self.sandbox.dir(name);
        self.restore_to(&target, args);
        self.adopt(&target)
    }

    /// Restores into a directory.
    pub fn restore_to<I: IntoIterator<Item: AsRef<OsStr>>>(&self, target: &Path, args: I) -> Run {
        let mut all: Vec<OsString> = vec![format!("--pg1-path={}", target.display()).into()];
        all.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        all.push("restore".into());
        self.ok(all)
    }

    /// Adopts a restored directory; archiving is off in it, so that it writes nothing into the archive it came from.
    pub fn adopt(&self, target: &Path) -> Cluster {
        let mut cluster = Cluster::adopt(self.cluster.major(), target);
        cluster.override_setting("archive_mode", "off");
        cluster
    }

    /// Copies a file with its owner's rights, so that it can be handed to the command.
    pub fn take(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.path(name);
        std::fs::copy(from, &to).unwrap_or_else(|error| panic!("cannot copy {}: {error}", from.display()));
        account::give(&to);
        to
    }
}

/// The label a backup run reported.
///
/// # Panics
/// When it reported none.
pub fn label(run: &Run) -> String {
    let line = run.messages("INFO").into_iter().find_map(|text| text.strip_prefix("new backup label = "));
    line.unwrap_or_else(|| panic!("no label\n{run}")).to_owned()
}

/// Fingerprint of the database `postgres`, without the table of marks.
pub fn data(cluster: &Cluster) -> Fingerprint {
    let mut data = cluster.fingerprint_of("postgres");
    data.remove("postgres.public.mark");
    data
}

/// The rows of the table of marks.
pub fn marks(cluster: &Cluster) -> Vec<u32> {
    let rows = cluster.psql("SELECT number FROM mark ORDER BY 1");
    rows.lines().map(|row| row.parse().expect("a mark is a number")).collect()
}
