//! A reader of the guide: a cluster, a configuration file that grows from step to step, and lines of shell.

use std::{fs, os::unix::fs::symlink, path::Path, thread, time::Duration};

use serde_json::Value;
use support::{Cluster, Mode, Run, Running, Sandbox, account, pg::Builder, world};

/// Begins a step: shown with what follows if the test fails.
pub(crate) fn item(number: &str, what: &str) {
    println!("== item {number}: {what}");
}

/// One cluster, its repository, and the configuration so far.
pub(crate) struct Guide {
    pub(crate) cluster: Cluster,
    pub(crate) sandbox: Sandbox,
    /// Section, option, value; as they stand in the file.
    options: Vec<(String, String, String)>,
    variables: Vec<(&'static str, String)>,
}

impl Guide {
    /// A cluster that does not archive yet, and a file with `pg1-path`.
    pub(crate) fn new(builder: Builder) -> Self {
        let sandbox = Sandbox::new();
        let bin = sandbox.dir("bin");
        symlink(sandbox.binary(), bin.join("pgbackrest")).expect("cannot make a link");
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", bin.display());
        let variables = vec![("PATH", path), ("PGBACKREST_CONFIG", sandbox.config().display().to_string())];
        // Whoever commits behind a target decides whether it is reached.
        let builder = builder.setting("autovacuum", "off").setting("log_checkpoints", "on");
        let cluster = builder.setting("track_commit_timestamp", "on").init();
        let mut guide = Self { cluster, sandbox, options: Vec::new(), variables };
        for (name, dir) in
            [("log-path", "log"), ("lock-path", "lock"), ("spool-path", "spool"), ("cache-path", "cache")]
        {
            let value = guide.sandbox.root().join(dir).display().to_string();
            guide.set("global", name, &value);
        }
        let (data, sockets) = (guide.cluster.data_dir().display().to_string(), guide.cluster.socket_dir().to_owned());
        guide.set("demo", "pg1-path", &data);
        // Not in the guide: there is more than one server on this machine.
        guide.set("demo", "pg1-socket-path", &sockets.display().to_string());
        guide.set("demo", "pg1-port", &guide.cluster.port().to_string());
        guide.set("demo", "pg1-user", "postgres");
        guide
    }

    /// As the main road has it after its sixth item: sealed, archiving, with a full backup.
    pub(crate) fn prepared(builder: Builder) -> Self {
        let mut guide = Self::new(builder);
        guide.archive();
        guide.set("global", "repo1-retention-full", "9");
        guide.set("global", "start-fast", "y");
        guide.cluster.start();
        guide.ok("stanza-create");
        guide.ok("--type=full backup");
        guide
    }

    /// The repository, and a server that archives into it; in force after a restart.
    pub(crate) fn archive(&mut self) {
        let repo = self.sandbox.repo().display().to_string();
        self.set("global", "repo1-path", &repo);
        self.cluster.configure("archive_mode", "on");
        self.cluster.configure("archive_command", &self.archive_command());
    }

    /// `pgbackrest … archive-push %p` as a server can run it.
    pub(crate) fn archive_command(&self) -> String {
        let variables: String = self.variables.iter().map(|(name, value)| format!("{name}={value} ")).collect();
        format!("{variables}pgbackrest --stanza=demo archive-push %p")
    }

    /// Writes an option into the file, in place of what it said.
    pub(crate) fn set(&mut self, section: &str, name: &str, value: &str) {
        self.unset(section, name);
        self.options.push((section.to_owned(), name.to_owned(), value.to_owned()));
        self.write();
    }

    /// Takes an option out of the file.
    pub(crate) fn unset(&mut self, section: &str, name: &str) {
        self.options.retain(|(of, option, _)| (of.as_str(), option.as_str()) != (section, name));
        self.write();
    }

    fn write(&self) {
        let text: String =
            self.options.iter().map(|(section, name, value)| format!("[{section}]\n{name}={value}\n\n")).collect();
        fs::write(self.sandbox.config(), text).expect("cannot write the configuration");
        account::give(&self.sandbox.config());
    }

    /// A second configuration file, with these options in place of the first one's: another host.
    pub(crate) fn other_file(&self, name: &str, changed: &[(&str, &str, &str)]) -> String {
        let path = self.sandbox.root().join(name);
        let kept = self.options.iter().filter(|(section, option, _)| {
            !changed.iter().any(|(s, o, _)| (s, o) == (&section.as_str(), &option.as_str()))
        });
        let kept = kept.map(|(section, option, value)| (section.as_str(), option.as_str(), value.as_str()));
        let text: String = kept
            .chain(changed.iter().copied())
            .map(|(section, option, value)| format!("[{section}]\n{option}={value}\n\n"))
            .collect();
        fs::write(&path, text).expect("cannot write a configuration");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("cannot set a mode");
        account::give(&path);
        path.display().to_string()
    }

    /// Runs a line of shell to its end.
    pub(crate) fn shell(&self, line: &str) -> Run {
        let run = self.spawn_shell(line).wait();
        println!("$ {line}: {:?}", run.code);
        run
    }

    fn spawn_shell(&self, line: &str) -> Running {
        let mut command = account::command("/bin/sh");
        command.args(["-c", line]).envs(self.variables.iter().map(|(name, value)| (name, value)));
        self.sandbox.spawn(command)
    }

    /// Runs a line of shell and expects this exit status.
    pub(crate) fn shell_expect(&self, code: i32, line: &str) -> Run {
        let run = self.shell(line);
        assert_eq!(run.code, Some(code), "expected exit status {code}\n{run}\n{}", self.cluster.log_tail());
        run
    }

    fn line(args: &str) -> String {
        let level = if args.contains("--log-level-console") { "" } else { " --log-level-console=info" };
        format!("exec pgbackrest --stanza=demo{level} {args}")
    }

    /// `pgbackrest --stanza=demo` with these arguments, at INFO, and expects this exit status.
    pub(crate) fn expect(&self, code: i32, args: &str) -> Run {
        self.shell_expect(code, &Self::line(args))
    }

    /// The same, and success.
    pub(crate) fn ok(&self, args: &str) -> Run {
        self.expect(0, args)
    }

    /// The same, left running.
    pub(crate) fn spawn(&self, args: &str) -> Running {
        self.spawn_shell(&Self::line(args))
    }

    /// A backup; its label.
    pub(crate) fn backup(&self, args: &str) -> String {
        world::label(&self.ok(&format!("{args} backup")))
    }

    /// The stanza as `info` tells it in JSON, with more arguments.
    pub(crate) fn info(&self, args: &str) -> Value {
        let run = self.shell_expect(0, &format!("pgbackrest --stanza=demo --output=json {args} info"));
        run.json().get_mut(0).unwrap_or_else(|| panic!("no stanza\n{run}")).take()
    }

    /// The labels of the backups that there are.
    pub(crate) fn labels(&self) -> Vec<String> {
        let backups = self.info("")["backup"].take();
        let label = |backup: &Value| backup["label"].as_str().expect("a label").to_owned();
        backups.as_array().expect("a list").iter().map(label).collect()
    }

    /// Names of the archived segments of 16 MiB, in their order.
    pub(crate) fn archived(&self) -> Vec<String> {
        let run = self.shell_expect(0, "pgbackrest repo-ls archive/demo --recurse");
        let names = run.stdout.lines().filter_map(|line| line.rsplit('/').next()?.split_once('-'));
        names.filter(|(name, _)| name.len() == 24).map(|(name, _)| name.to_owned()).collect()
    }

    /// Stops the server, restores in place, starts it and waits until it takes writes.
    pub(crate) fn restore(&mut self, args: &str) -> Run {
        if self.cluster.running() {
            self.cluster.stop(Mode::Fast);
        }
        let run = self.ok(&format!("{args} restore"));
        self.cluster.start();
        self.cluster.wait_promoted();
        run
    }

    /// Restores beside the cluster, over what an earlier one has left there. Not started; archives nothing.
    pub(crate) fn beside(&self, args: &str) -> Cluster {
        let target = self.side();
        self.ok(&format!("--pg1-path={} --delta {args} restore", target.display()));
        self.adopt(&target)
    }

    /// Where [`Self::beside`] restores.
    pub(crate) fn side(&self) -> std::path::PathBuf {
        let target = self.sandbox.root().join("side");
        if !target.exists() {
            account::private_dir(&target);
        }
        target
    }

    /// The server of a restored directory.
    pub(crate) fn adopt(&self, target: &Path) -> Cluster {
        let mut cluster = Cluster::adopt(self.cluster.major(), target);
        cluster.override_setting("archive_mode", "off");
        cluster
    }

    /// Ends the current segment and waits until it is archived; its name.
    pub(crate) fn archive_now(&self) -> String {
        let segment = self.cluster.switch_wal();
        let status =
            |end: &str| self.cluster.data_dir().join(format!("pg_wal/archive_status/{segment}.{end}")).exists();
        let file = self.cluster.data_dir().join("pg_wal").join(&segment);
        support::wait_until("archiving", || !status("ready") && (status("done") || !file.exists()));
        segment
    }

    /// The time, in a second after that in which the newest backup ended; what happens later has a later second, too.
    pub(crate) fn time(&self) -> String {
        thread::sleep(Duration::from_millis(1100));
        let time = self.cluster.psql("SELECT clock_timestamp()::text");
        thread::sleep(Duration::from_millis(1100));
        time
    }
}

/// Asserts that a command has printed each of these.
pub(crate) fn says(run: &Run, texts: &[&str]) {
    texts.iter().for_each(|text| assert!(run.says(text), "does not say '{text}'\n{run}"));
}

/// Asserts that it has warned of nothing.
pub(crate) fn no_warning(run: &Run) {
    assert_eq!(run.messages("WARN"), [""; 0], "{run}");
}
