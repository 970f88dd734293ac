//! The built binary: what only a process can show. Statuses, streams, names, files, signals.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, too")]

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn pgkeep() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgkeep"));
    command.env_clear().env("TZ", "UTC").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    pgkeep().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Status, standard output, standard error.
fn told(output: &Output) -> (i32, String, String) {
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Directories of one test.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = pgkeep();
        let option = |name: &str, path: &str| format!("--{name}={}", self.path(path).display());
        command.args([option("lock-path", "lock"), option("log-path", "log")]).args(["--no-config", "--allow-root"]);
        command.args([option("config-include-path", "")]).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        told(&self.command(args).output().unwrap())
    }
}

/// A log line without its time, which must have the known shape.
fn without_time(line: &str) -> &str {
    let (time, rest) = line.split_at(24);
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    assert_eq!(shape, "9999-99-99 99:99:99.999 ", "{line}");
    rest
}

#[test]
fn version_has_three_forms() {
    let plain = format!("pgkeep {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(told(&run(&["version"])), (0, plain.clone(), String::new()));
    assert_eq!(told(&run(&["--version"])), (0, plain, String::new()));
    assert_eq!(told(&run(&["version", "--output", "num"])), (0, "1000".to_owned(), String::new()));
}

#[test]
fn under_the_name_pgbackrest_it_is_a_stand_in() {
    let told = |args: &[&str]| told(&pgkeep().arg0("pgbackrest").args(args).output().unwrap());
    assert_eq!(told(&["version"]).1, "pgBackRest 2.59.1\n");
    assert_eq!(told(&["version", "--output=num"]).1, "2059001");
    assert!(told(&["help", "backup", "repo1-path"]).1.contains("/var/lib/pgbackrest"));
}

#[test]
fn help_lists_what_there_is() {
    let expected = "\
pgkeep 0.1.0: backup, restore and instant clones of PostgreSQL

Usage:
    pgkeep [options] <command> [parameters]

Commands:
  annotate          Change the notes of a backup, or pin it.
  archive-get       Fetch one WAL file from the archive.
  archive-push      Store one WAL file in the archive.
  backup            Back up a cluster.
  check             Try out the configuration and the archive.
  clone             Make, run, keep or remove writable clones of a backup.
  completion        Print a script that completes commands and options in a shell.
  diff              Tell which relations differ between two backups.
  drill             Prove a backup: recover it, start it, check all of it.
  expire            Remove backups and WAL that retention no longer keeps.
  extract           Dump tables as they were at some time.
  gc                Give back the space of what no backup needs any more.
  help              Explain commands and options.
  info              List stanzas, backups and archived WAL.
  manifest          List the files of a backup.
  mount             Serve all backups of a stanza as a read-only tree.
  repair            Make the chunk index, stanzas' histories, or a lost generation anew.
  repo-get          Print a file of a repository, by the name pgBackRest's readers know.
  repo-ls           List a repository's files, by the names pgBackRest's readers know.
  repo-stats        Count what backups hold and what they cost to store.
  repo-sync         Copy backups and WAL that one repository has and another lacks.
  restore           Restore a cluster from a backup.
  stanza-create     Create a stanza in every repository.
  stanza-delete     Remove a stanza from one repository.
  stanza-upgrade    Take a stanza to the cluster's new version.
  start             Allow work on this host again.
  stop              Forbid work on this host.
  verify            Read and check everything a stanza has stored.
  version           Print the version.

'pgkeep help <command>' lists its options, 'pgkeep help <command> <option>' explains one.
";
    for args in [&["help"][..], &["--help"], &["-h"], &[]] {
        assert_eq!(told(&run(args)), (0, expected.to_owned(), String::new()), "{args:?}");
    }
}

#[test]
fn help_of_a_command_fits_its_columns() {
    let (status, help, errors) = told(&run(&["stop", "--help"]));
    assert_eq!((status, errors.as_str()), (0, ""));
    let expected = "\
stop: Forbid work on this host.

Usage:
    pgkeep [--stanza=<name>] [options] stop

General options:
  --allow-root                  run although the user is root [n]
";
    assert!(help.starts_with(expected), "{help}");
    let commands = [
        "backup",
        "restore",
        "archive-push",
        "archive-get",
        "check",
        "info",
        "verify",
        "clone",
        "mount",
        "repo-stats",
        "repo-sync",
        "extract",
        "drill",
    ];
    for command in commands {
        let (status, help, _) = told(&run(&["help", command]));
        assert_eq!(status, 0);
        for line in help.lines() {
            assert!(line.chars().count() <= 100 && line.trim_end() == line, "{command}: '{line}'");
        }
    }
    let extract = told(&run(&["help", "extract"])).1;
    assert!(
        extract.contains("\nExamples:\n") && extract.contains("--table=public.orders --type=time \\\n"),
        "{extract}"
    );
    assert!(told(&run(&["help", "restore"])).1.contains("75   no backup fits"));
    help_of_an_action_has_what_is_about_it();
    for (args, expected) in [
        (&["help", "nonsense"][..], "no command 'nonsense'"),
        (&["help", "backup", "nonsense"], "no option 'nonsense'"),
    ] {
        let (status, out, err) = told(&run(args));
        assert!(status != 0 && out.is_empty() && err.contains(expected), "{args:?}: {status} {out} {err}");
    }
}

fn help_of_an_action_has_what_is_about_it() {
    let help = |args: &[&str]| {
        let (status, help, _) = told(&run(&[&["help"], args].concat()));
        assert!(status == 0 && help.lines().all(|line| line.chars().count() <= 100), "{help}");
        help
    };
    let (all, create, info) = (help(&["clone"]), help(&["clone", "create"]), help(&["clone", "info"]));
    assert!(all.contains("'pgkeep help clone <action>' lists what is about one of them"), "{all}");
    let usage = "pgkeep --stanza=<name> [options] clone create --dir=<path> --mountpoint=<path>\n";
    assert!(create.starts_with("clone create: make a clone of a backup") && create.contains(usage), "{create}");
    for (option, creates, shows) in [
        ("--dir ", true, true),
        ("--output ", true, true),
        ("--target-action ", true, false),
        ("--clone-trace ", true, false),
        ("--repo<N>-path ", true, false),
        ("--io-limit ", false, false),
        ("--log-path ", true, true),
    ] {
        assert!(all.contains(option), "{option}");
        assert_eq!((create.contains(option), info.contains(option)), (creates, shows), "{option}");
    }
    for option in ["clone-trace", "repo-clone-cache-size"] {
        let text = help(&["clone", option]);
        for part in ["\n  What it does: ", "\n  When to change it: ", "\n  What it costs: "] {
            assert!(text.contains(part), "{text}");
        }
    }
}

#[test]
fn an_action_that_does_not_exist_is_refused_before_its_options() {
    let (status, out, error) = told(&run(&["--no-config", "--set=latest", "clone", "creat"]));
    assert_eq!((status, out.as_str()), (96, ""));
    let expected = "ERROR: [096]: there is no 'clone creat'\n       hint: did you mean 'clone create'?\n";
    assert_eq!(error, expected);
}

#[test]
fn help_of_an_option_shows_its_current_value() {
    let output = pgkeep().env("PGKEEP_LOG_PATH", "/x").args(["help", "backup", "log-path"]).output().unwrap();
    let expected = "\
backup --log-path: directory of log files

  value        an absolute path
  default      /var/log/pgkeep
  current      /x
  environment  PGKEEP_LOG_PATH
  file         in any section
";
    assert_eq!(told(&output), (0, expected.to_owned(), String::new()));
    let output =
        pgkeep().env("PGKEEP_REPO1_CIPHER_PASS", "hush").args(["help", "backup", "repo-cipher-pass"]).output().unwrap();
    let help = text(&output.stdout);
    assert!(help.contains("<redacted>") && !help.contains("hush"), "{help}");
    assert_eq!(run(&["help", "frob"]).status.code(), Some(48));
    assert_eq!(run(&["help", "backup", "frob"]).status.code(), Some(31));
    assert_eq!(run(&["help", "info", "start-fast"]).status.code(), Some(31));
}

#[test]
fn refusals_are_one_error_on_standard_error() {
    let (status, out, error) = told(&run(&["--stanza=demo", "--repo1-cipher-pass=hush", "backup"]));
    assert_eq!((status, out.as_str()), (31, ""));
    let mut lines = error.lines();
    assert_eq!(
        lines.next(),
        Some("ERROR: [031]: option 'repo1-cipher-pass' is a secret and not allowed on the command line")
    );
    assert!(lines.all(|l| l.starts_with("       hint: ")) && !error.contains("hush"), "{error}");
    for (args, status) in
        [(&["frob"][..], 48), (&["--bogus"], 31), (&["--no-config", "backup"], 31), (&["--stanza=x"], 30)]
    {
        let (code, out, error) = told(&run(args));
        // As root the user is refused first, otherwise the missing stanza.
        assert!(code == status || code == 37, "{args:?} {code}");
        assert_eq!(out, "");
        assert!(error.starts_with(&format!("ERROR: [{code:03}]: ")), "{error}");
    }
}

#[test]
fn stop_and_start_leave_a_file_and_lines() {
    let host = Host::new();
    assert_eq!(host.run(&["--stanza=demo", "stop"]), (0, String::new(), String::new()));
    assert!(host.path("lock/demo.stop").is_file());
    let (status, out, _) = host.run(&["--stanza=demo", "stop"]);
    assert_eq!((status, without_time(out.trim_end())), (0, "P00   WARN: there is a stop file for demo already"));
    let (status, out, error) = host.run(&["--stanza=demo", "--log-level-stderr=warn", "stop"]);
    assert_eq!((status, out.as_str(), error.as_str()), (0, "", "WARN: there is a stop file for demo already\n"));
    assert_eq!(host.run(&["--stanza=demo", "start"]), (0, String::new(), String::new()));
    assert!(!host.path("lock/demo.stop").exists());
    let (status, out, _) = host.run(&["--log-timestamp=n", "--log-level-console=info", "start"]);
    let path = |name| host.path(name).display().to_string();
    let expected = format!(
        "P00   INFO: start command begin {}: --allow-root --config-include-path={} --lock-path={} --log-level-console=info \
         --log-path={} --no-config --no-log-timestamp\n\
         P00   WARN: there is no stop file for all\n\
         P00   INFO: start command end: completed successfully\n",
        env!("CARGO_PKG_VERSION"),
        path("").trim_end_matches('/'),
        path("lock"),
        path("log")
    );
    assert_eq!((status, out), (0, expected));
    let log = std::fs::read_to_string(host.path("log/demo-stop.log")).unwrap();
    assert_eq!(log.matches("PROCESS START").count(), 3);
    let ends = log.lines().filter(|l| l.contains("P00   INFO: stop command end: completed successfully (")).count();
    assert_eq!(ends, 3, "{log}");
    assert!(host.path("log/all-start.log").is_file());
}

#[test]
fn stop_with_force_ends_the_holder_of_a_lock_and_nobody_else() {
    let host = Host::new();
    std::fs::create_dir_all(host.path("lock")).unwrap();
    let sleeper = || Command::new("sleep").arg("600").spawn().unwrap();
    let (mut holder, mut other, mut stale) = (sleeper(), sleeper(), sleeper());
    let lock = |name: &str, pid: u32| {
        let path = host.path(&format!("lock/{name}"));
        std::fs::write(&path, format!("{{\"execId\":\"x\",\"pid\":{pid}}}")).unwrap();
        std::fs::File::open(&path).unwrap()
    };
    let held = lock("my-demo-backup-1.lock", holder.id());
    let others = lock("demo-backup-1.lock", other.id());
    drop(lock("my-demo-archive-1.lock", stale.id()));
    for file in [&held, &others] {
        rustix::fs::flock(file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    }
    let (status, out, _) = host.run(&["--stanza=my-demo", "--force", "--log-level-console=info", "stop"]);
    assert_eq!(status, 0, "{out}");
    assert!(out.contains(&format!("sent a term signal to process {}", holder.id())), "{out}");
    use std::os::unix::process::ExitStatusExt as _;
    assert_eq!(holder.wait().unwrap().signal(), Some(15));
    for child in [&mut other, &mut stale] {
        assert!(child.try_wait().unwrap().is_none(), "only the holder is ended");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn failures_end_with_their_number_everywhere() {
    let host = Host::new();
    std::fs::write(host.path("lock"), "a file").unwrap();
    let (status, out, error) = host.run(&["--log-level-console=info", "--stanza=demo", "stop"]);
    assert_eq!((status, error.as_str()), (47, ""));
    let lines: Vec<_> = out.lines().filter(|l| l.starts_with("20")).map(without_time).collect();
    assert!(lines[1].starts_with("P00  ERROR: [047]: cannot create '"), "{out}");
    assert_eq!(lines[2], "P00   INFO: stop command end: aborted with exception [047]");
    assert!(std::fs::read_to_string(host.path("log/demo-stop.log")).unwrap().contains("[047]"));
}

#[test]
fn a_log_file_that_cannot_be_is_warned_of_once() {
    let host = Host::new();
    std::fs::write(host.path("log"), "a file").unwrap();
    let (status, out, _) = host.run(&["--stanza=demo", "stop"]);
    assert_eq!(status, 0);
    assert_eq!(out.matches("WARN").count(), 1, "{out}");
    assert!(out.contains("going on without a log file"), "{out}");
}

#[test]
fn a_closed_pipe_is_quiet() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = pgkeep().arg("help").stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn a_file_of_configuration_is_read_from_where_it_is_named() {
    let host = Host::new();
    let config = host.path("my.conf");
    std::fs::write(&config, format!("[global]\nlock-path={}\nallow-root=y\nfoo=1\n", host.path("other").display()))
        .unwrap();
    let log = format!("--log-path={}", host.path("log").display());
    let args = [&format!("--config={}", config.display()), &log, "--stanza=s", "stop"];
    let (status, out, _) = told(&pgkeep().args(args).output().unwrap());
    assert_eq!(status, 0);
    assert!(out.contains("WARN: option 'foo' in section 'global', line 4"), "{out}");
    assert!(Path::new(&host.path("other/s.stop")).is_file());
}

#[test]
fn nothing_but_certain_absence_lets_a_server_end_a_recovery_that_shall_abort() {
    let host = Host::new();
    let conf = host.path("pgkeep.conf");
    let option = format!("--config={}", conf.display());
    let get = |extra: &[&str]| {
        let mut args = vec![option.as_str(), "--stanza=main", "--on-error=abort"];
        args.extend_from_slice(extra);
        args.extend_from_slice(&["archive-get", "000000010000000000000001", "pg_wal/RECOVERYXLOG"]);
        let mut command = pgkeep();
        told(&command.args(args).arg("--allow-root").output().unwrap()).0
    };
    let good = format!(
        "[global]\nrepo1-path={0}/repo\nlog-path={0}/log\n[main]\npg1-path={0}/data\n",
        host.0.path().display()
    );
    assert_eq!(get(&[]), 126, "no configuration");
    for (what, content) in [
        ("a line that is none", format!("{good}typo = \n")),
        ("a value that does not fit", good.replace("[main]", "process-max=0\n[main]")),
        ("no data directory", good.replace("pg1-path", "# pg1-path")),
        ("no repository", good.clone()),
        ("a kind of repository that is not there yet", good.replace("[main]", "repo1-type=sftp\n[main]")),
    ] {
        std::fs::write(&conf, content).unwrap();
        assert_eq!(get(&[]), 126, "{what}");
    }
    assert_eq!(get(&["--no-such-option"]), 126);
    // Others are told what it was.
    let run =
        pgkeep().args([option.as_str(), "--stanza=main", "--allow-root", "--bad", "archive-get", "a", "b"]).output();
    assert_eq!(told(&run.unwrap()).0, 31);
}

#[test]
fn with_json_asked_for_nothing_else_is_on_standard_output() {
    let host = Host::new();
    let repo = format!("--repo1-path={}", host.path("nowhere").display());
    let clones = format!("--dir={}", host.path("clones").display());
    let cases: [(&[&str], i32); 5] = [
        (&["--stanza=demo", &repo, "info"], 0),
        (&["--stanza=demo", &repo, "verify"], 55),
        (&[&repo, "repo-stats"], 55),
        (&[&repo, &clones, "clone", "list"], 73),
        (&["--stanza=demo", &repo, "--type=bad", "info"], 32),
    ];
    for (args, expected) in cases {
        for level in ["--log-level-console=warn", "--log-level-console=debug"] {
            let args: Vec<_> = args.iter().copied().chain(["--output=json", level]).collect();
            let (status, out, error) = host.run(&args);
            assert_eq!(status, expected, "{args:?} {out} {error}");
            assert!(out.is_empty() || serde_json::from_str::<serde_json::Value>(&out).is_ok(), "{args:?}: {out}");
            let number = format!("ERROR: [{status:03}]: ");
            assert_eq!(error.contains(&number), status != 0, "{args:?}: {error}");
        }
    }
    // Without it lines are where they always are.
    let (status, out, error) = host.run(&["--stanza=demo", &repo, "verify"]);
    assert_eq!((status, error.as_str()), (55, ""));
    assert!(out.contains("P00  ERROR: [055]: repository directory '"), "{out}");
}

#[test]
fn info_tells_a_repository_that_is_not_there_from_an_empty_one() {
    let host = Host::new();
    let path = host.path("repo");
    let repo = format!("--repo1-path={}", path.display());
    let info = |args: &[&str]| host.run(&[&[repo.as_str(), "info"], args].concat());
    let json = |args: &[&str]| {
        let (status, out, error) = info(&[args, &["--output=json"]].concat());
        (status, serde_json::from_str::<serde_json::Value>(&out).unwrap(), error)
    };

    // The disk is not mounted: what pgBackRest says of a repository that cannot be read.
    let gone = format!("[FileMissingError] repository directory '{}' does not exist", path.display());
    for (args, name) in [(&[][..], "[invalid]"), (&["--stanza=main"], "main")] {
        let (status, found, error) = json(args);
        assert_eq!((status, error.as_str()), (0, ""));
        assert_eq!((&found[0]["name"], &found[0]["status"]["code"]), (&name.into(), &99.into()));
        assert_eq!(found[0]["repo"][0]["status"], serde_json::json!({"code": 99, "message": gone}));
        let (status, out, _) = info(args);
        assert!(status == 0 && out.contains(&gone) && !out.contains("No stanzas exist"), "{out}");
    }

    // A directory in which nothing was made yet, or on which nothing is mounted.
    std::fs::create_dir(&path).unwrap();
    let warned = format!("repo1: there is no repository in '{}'", path.display());
    let (status, found, error) = json(&[]);
    assert_eq!((status, found), (0, serde_json::json!([])));
    assert!(error.contains(&warned), "{error}");
    let (status, found, _) = json(&["--stanza=main"]);
    assert_eq!((status, &found[0]["status"]["code"]), (0, &1.into()));
    let (_, out, _) = info(&[]);
    assert!(out.contains(&warned) && out.ends_with("No stanzas exist in the repository.\n"), "{out}");
}

#[test]
fn help_says_what_an_option_means_to_the_command() {
    let help = |args: &[&str]| told(&run(&[&["help"], args].concat())).1;
    assert!(help(&["stop"]).contains("TERM"));
    assert!(help(&["restore", "force"]).contains("replace files"));
    assert!(
        help(&["backup", "delta"]).contains("compare all files") && help(&["restore", "delta"]).contains("keep what")
    );
    for (command, statuses) in
        [("stanza-create", &["47", "64"][..]), ("backup", &["41", "53", "68", "87"]), ("restore", &["53"])]
    {
        let help = help(&[command]);
        let (_, listed) = help.split_once("\nExit statuses:\n").unwrap();
        for status in statuses {
            assert!(listed.lines().any(|l| l.trim_start().starts_with(&format!("{status}   "))), "{command}: {listed}");
        }
    }
}

#[test]
fn a_file_with_a_secret_for_all_to_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt as _;
    let host = Host::new();
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(host.0.path(), 0o755);
    let config = host.path("my.conf");
    let text = format!(
        "[global]\nlog-path={0}/log\nlock-path={0}/lock\nrepo1-path={0}/repo\nallow-root=y\n\
         repo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=hush\n",
        host.0.path().display()
    );
    std::fs::write(&config, text).unwrap();
    let info = |of: u32| {
        mode(&config, of);
        let args = [&format!("--config={}", config.display()), "--output=json", "info"];
        told(&pgkeep().args(args).output().unwrap())
    };
    let (status, out, error) = info(0o600);
    assert_eq!((status, error.as_str()), (0, ""), "{out}");
    let (status, _, error) = info(0o644);
    assert_eq!(status, 0);
    let remedy = format!("chmod 600 '{}'\n", config.display());
    assert!(error.starts_with("WARN: ") && error.ends_with(&remedy) && !error.contains("hush"), "{error}");
}

#[test]
fn a_late_signal_ends_what_does_not_stop() {
    let host = Host::new();
    let (pipe, repo) = (host.path("pipe"), host.path("repo"));
    std::fs::create_dir(&repo).unwrap();
    assert!(Command::new("mkfifo").args(["-m", "600"]).arg(&pipe).status().unwrap().success());
    // Nobody ever writes a passphrase into the pipe, so the command waits for one, whoever asks it to stop.
    let repo = format!("--repo1-path={}", repo.display());
    let pass = format!("--repo1-cipher-pass-file={}", pipe.display());
    let mut command =
        host.command(&["--repo1-cipher-type=aes-256-cbc", &repo, &pass, "--log-level-console=info", "gc"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let pid = child.id().to_string();
    // Signals are no messages: several may be one, and none is heard before the command listens.
    while child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let caught = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok());
        // Bit 14 is TERM.
        if caught.is_some_and(|caught| caught & 1 << 14 != 0) {
            // It may have ended since.
            _ = Command::new("kill").args(["-TERM", &pid]).stderr(Stdio::null()).status().unwrap();
        }
    }
    let output = child.wait_with_output().unwrap();
    let (status, out, _) = told(&output);
    assert_eq!(status, 63, "{out}");
    assert!(out.contains("ERROR: [063]: SIGTERM after another one"), "{out}");
    let log = std::fs::read_to_string(host.path("log/all-gc.log")).unwrap();
    assert!(log.contains("ERROR: [063]: SIGTERM after another one"), "{log}");
}
