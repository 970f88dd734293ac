//! Whole invocations against the rules: precedence, sections, files, numbers, refusals.

use super::def::{Group, Scope};
use super::table::TABLE;
use super::*;
use proptest::prelude::*;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use tempfile::TempDir;

/// A host with configuration of its own.
struct Host {
    etc: TempDir,
    vars: Vec<(OsString, OsString)>,
    argv0: &'static str,
    euid: u32,
}

impl Host {
    fn new() -> Self {
        Self { etc: tempfile::tempdir().unwrap(), vars: Vec::new(), argv0: "/usr/bin/pgkeep", euid: 1000 }
    }

    fn with(config: &str) -> Self {
        let host = Self::new();
        host.file("pgkeep/pgkeep.conf", config);
        host
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.etc.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn var(mut self, name: &str, value: &str) -> Self {
        self.vars.push((name.into(), value.into()));
        self
    }

    fn invocation(&self, args: &str) -> Invocation {
        Invocation {
            argv0: self.argv0.into(),
            args: args.split(' ').filter(|a| !a.is_empty()).map(OsString::from).collect(),
            vars: self.vars.clone(),
            euid: self.euid,
            cwd: "/work dir".into(),
            exe: "/usr/bin/pgkeep".into(),
            etc: self.etc.path().to_owned(),
        }
    }

    fn run(&self, args: &str) -> Result<Loaded, OptionError> {
        load(&self.invocation(args))
    }

    fn get(&self, args: &str) -> Settings {
        self.run(args).unwrap_or_else(|e| panic!("{args}: {e}")).settings
    }

    fn status(&self, args: &str) -> u8 {
        self.run(args).map_or_else(|e| e.status.0, |_| 0)
    }

    fn notices(&self, level: Level, args: &str) -> Vec<String> {
        let loaded = self.run(args).unwrap_or_else(|e| panic!("{args}: {e}"));
        loaded.notices.into_iter().filter(|n| n.level == level).map(|n| n.text).collect()
    }
}

const PG: &str = "[demo]\npg1-path=/pg\n";

#[test]
fn defaults_are_those_of_the_name_called_by() {
    let mut host = Host::with(PG);
    let settings = host.get("--stanza=demo backup");
    assert_eq!(settings.repo(1).path(), Path::new("/var/lib/pgkeep"));
    assert_eq!(settings.lock_path(), Path::new("/tmp/pgkeep"));
    assert_eq!(settings.pg(1).path(), Some(Path::new("/pg")));
    assert_eq!(settings.text(Opt::Type), Some("incr"));
    assert_eq!(settings.text(Opt::LogLevelConsole), Some("warn"));
    assert_eq!(settings.compress_level(), Some(3));
    assert!(settings.process_max() >= 1 && settings.flag(Opt::Online) && !settings.flag(Opt::StartFast));
    assert_eq!(settings.time(Opt::ArchiveTimeout).as_secs(), 60);
    assert_eq!(settings.flag_if_set(Opt::ChecksumPage), None);
    assert_eq!(settings.repo(1).cipher(), Cipher::None);

    host.argv0 = "pgbackrest";
    host.file("pgbackrest.conf", PG);
    let settings = host.get("--stanza=demo backup");
    assert_eq!(settings.repo(1).path(), Path::new("/var/lib/pgbackrest"));
    assert_eq!(settings.path(Opt::LogPath), Some(Path::new("/var/log/pgbackrest")));
    assert_eq!(settings.program().name, "pgbackrest");
    let host = host.var("PGBACKREST_REPO1_PATH", "/theirs").var("PGKEEP_REPO1_PATH", "/ours");
    assert_eq!(host.get("--stanza=demo backup").repo(1).path(), Path::new("/theirs"));
}

#[test]
fn defaults_differ_by_command() {
    let host = Host::with(PG);
    assert_eq!(host.get("--stanza=demo restore").text(Opt::Set), Some("latest"));
    assert_eq!(host.get("--stanza=demo info").text(Opt::Set), None);
    assert_eq!(host.get("--stanza=demo restore").text(Opt::Type), Some("default"));
    assert_eq!(host.get("--stanza=demo archive-get a b").int(Opt::JobRetry), Some(1));
    assert_eq!(host.get("--stanza=demo backup").int(Opt::JobRetry), Some(2));
    assert_eq!(host.get("--output=json info").text(Opt::Output), Some("json"));
    assert_eq!(host.status("--stanza=demo --output=num info"), 32);
}

#[test]
fn sections_have_their_order_and_replace() {
    let host = Host::with(
        "[global]\nexclude=a\nexclude=b\nprocess-max=2\ncompress-level=1\n\
         [global:backup]\nprocess-max=3\ncompress-level=2\n\
         [demo]\npg1-path=/pg\nexclude=c\nprocess-max=4\n[demo:backup]\nprocess-max=5\n[global]\nstart-fast=y\n",
    );
    let settings = host.get("--stanza=demo backup");
    assert_eq!(settings.int(Opt::ProcessMax), Some(5));
    assert_eq!(settings.int(Opt::CompressLevel), Some(2));
    assert_eq!(settings.list(Opt::Exclude), ["c"]);
    assert!(settings.flag(Opt::StartFast));
    assert_eq!(host.get("--stanza=demo restore").int(Opt::ProcessMax), Some(4));
    assert_eq!(host.get("--stanza=demo archive-push x").int(Opt::CompressLevel), Some(1));
    assert_eq!(settings.configured_stanzas(), ["demo"]);

    let host = host.var("PGKEEP_EXCLUDE", "x:y").var("PGKEEP_PROCESS_MAX", "6");
    let settings = host.get("--stanza=demo --process-max=7 backup");
    assert_eq!(settings.list(Opt::Exclude), ["x", "y"]);
    assert_eq!(settings.int(Opt::ProcessMax), Some(7));
    assert_eq!(settings.setting(Opt::Exclude, 0).unwrap().source, Source::Environment);
    assert_eq!(
        host.get("--stanza=demo --reset-process-max backup").process_max(),
        host.get("--stanza=x --pg1-path=/p --reset-process-max backup").process_max()
    );
    assert!(!host.get("--stanza=demo --reset-process-max backup").is_given(Opt::ProcessMax));
}

#[test]
fn files_are_found_as_the_table_of_rules_says() {
    let host = Host::with("[global]\nrepo1-path=/main\n");
    host.file("pgkeep/conf.d/b.conf", "[global]\nrepo2-path=/b\n");
    host.file("pgkeep/conf.d/a.conf", "[global]\nrepo3-path=/a\n");
    host.file("pgkeep/conf.d/c.txt", "not read");
    host.file("other/pgkeep.conf", "[global]\nrepo1-path=/other\n");
    host.file("other/conf.d/x.conf", "[global]\nrepo2-path=/x\n");
    host.file("alone.conf", "[global]\nrepo1-path=/alone\n");
    let etc = host.etc.path().display().to_string();
    let paths = |args: String| {
        let settings = host.get(&args);
        settings.repos().map(|r| r.path().display().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(paths("info".into()), ["/main", "/b", "/a"]);
    assert_eq!(paths(format!("info --config={etc}/alone.conf")), ["/alone"]);
    assert_eq!(paths(format!("info --config-include-path={etc}/other/conf.d")), ["/main", "/x"]);
    assert_eq!(
        paths(format!("info --config={etc}/alone.conf --config-include-path={etc}/other/conf.d")),
        ["/alone", "/x"]
    );
    assert_eq!(paths(format!("info --config-path={etc}/other")), ["/other", "/x"]);
    assert_eq!(paths(format!("info --config={etc}/alone.conf --config-path={etc}/other")), ["/alone", "/x"]);
    assert_eq!(paths("info --no-config".into()), ["/b", "/a"]);
    assert_eq!(host.status("info --config=/nonexistent/x"), 55);
    assert_eq!(host.status("info --config-include-path=/nonexistent"), 73);
    assert_eq!(host.status("info --config-path=/nonexistent"), 0);
    assert_eq!(host.status("info --config=relative"), 32);
    assert_eq!(host.status("info --config=/etc"), 42);
    host.file("pgkeep/conf.d/d.conf", "x=1\n");
    assert_eq!(host.status("info"), 29);
    let host = host.var("PGKEEP_CONFIG", &format!("{etc}/alone.conf"));
    assert_eq!(host.get("info").repo(1).path(), Path::new("/alone"));
}

#[test]
fn pgbackrest_files_stand_in_when_there_are_none_of_ours() {
    let host = Host::new();
    host.file("pgbackrest/pgbackrest.conf", "[global]\nrepo1-path=/theirs\n[demo]\npg1-path=/pg\n");
    host.file("pgbackrest/conf.d/more.conf", "[demo]\npg1-port=5433\n");
    let settings = host.get("--stanza=demo backup");
    assert_eq!((settings.repo(1).path(), settings.pg(1).port()), (Path::new("/theirs"), 5433));
    let (push, get) = ("--stanza=demo archive-push x", "--stanza=demo archive-get a b");
    // With every WAL file it would fill the server's log.
    for (args, level) in
        [("--stanza=demo backup", Level::Aside), ("info", Level::Aside), (push, Level::Debug), (get, Level::Debug)]
    {
        let is_it = |said: &String| said.contains("pgkeep/pgkeep.conf' does not exist");
        let said: Vec<_> = host.notices(level, args).into_iter().filter(is_it).collect();
        assert!(level == Level::Aside || !host.notices(Level::Aside, args).iter().any(is_it), "{args}");
        assert!(said.len() == 1 && said[0].contains("pgbackrest.conf") && said[0].contains("more.conf"), "{said:?}");
    }
    assert!(host.notices(Level::Aside, "--no-config info").is_empty());
    assert_eq!(host.get("info --no-config").repo(1).path(), Path::new("/var/lib/pgkeep"));
    host.file("pgkeep/conf.d/x.conf", "[global]\nrepo1-path=/ours\n");
    assert_eq!(host.get("info").repo(1).path(), Path::new("/ours"));
    assert!(host.notices(Level::Aside, "info").is_empty());
}

#[test]
fn a_size_for_old_pages_that_are_not_kept_is_warned_of() {
    let host = Host::new();
    host.file("pgkeep/pgkeep.conf", PG);
    let warned = |args: &str| {
        let all = host.notices(Level::Warn, &format!("--stanza=demo {args} backup"));
        all.into_iter().filter(|n| n.contains("repo1-delta-cache-size")).collect::<Vec<_>>()
    };
    let said = warned("--repo1-delta=off --repo1-delta-cache-size=1GiB");
    assert!(said.len() == 1 && said[0].contains("ignored because of repo1-delta=off"), "{said:?}");
    for fine in ["--repo1-delta=off", "--repo1-delta=off --repo1-delta-cache-size=0", "--repo1-delta-cache-size=1GiB"] {
        assert!(warned(fine).is_empty(), "{fine}");
    }
}

#[test]
fn secrets_that_everybody_can_read_are_warned_of() {
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let host = Host::new();
    let (etc, home) = (host.etc.path(), host.etc.path().join("pgkeep"));
    let (pass, key) = (home.join("pass"), home.join("key"));
    let config = format!(
        "[global]\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=hush\nrepo2-path=/2\nrepo2-cipher-type=aes-256-cbc\n\
         repo2-cipher-pass-file={}\nrepo3-path=/3\nrepo3-cipher-type=aes-256-cbc\nrepo3-key-file={}\n[demo]\npg1-path=/p\n",
        pass.display(),
        key.display()
    );
    host.file("pgkeep/pgkeep.conf", &config);
    host.file("pgkeep/conf.d/open.conf", "[demo]\npg1-port=5433\n");
    for path in [&pass, &key] {
        std::fs::write(path, "x").unwrap();
    }
    let files = [home.join("pgkeep.conf"), pass.clone(), key.clone()];
    let modes = |of: u32| files.iter().for_each(|path| mode(path, of));
    let warned = |args: &str| host.notices(Level::Warn, args);
    modes(0o644);
    mode(&home, 0o755);
    mode(etc, 0o700);
    assert_eq!(warned("info"), Vec::<String>::new(), "nobody gets there");
    mode(etc, 0o755);
    for args in ["info", "--stanza=demo backup"] {
        let warned = warned(args);
        assert_eq!(warned.len(), 3, "{warned:#?}");
        for path in &files {
            let remedy = format!("chmod 600 '{}'", path.display());
            assert!(warned.iter().any(|w| w.contains(&remedy) && !w.contains("hush")), "{path:?}: {warned:#?}");
        }
    }
    assert_eq!(warned("--stanza=demo archive-push x"), Vec::<String>::new(), "not with every segment");
    modes(0o640);
    assert_eq!(warned("info"), Vec::<String>::new(), "a group is chosen by somebody");
}

#[test]
fn misplaced_and_unknown_names_are_warned_of() {
    let host = Host::with(
        "[global]\nfoo=bar\nno-delta=y\nreset-delta=y\nset=x\npg1-path=/x\nstart-fast=y\nexclude=a\n\
         [global:info]\nstart-fast=y\nrepo1-path=/r\n[other]\nfoo=bar\n[junk:backup]\nfoo=bar\n",
    )
    .var("PGKEEP_FOO", "1")
    .var("PGKEEP_NO_DELTA", "y")
    .var("PGKEEPER", "1");
    let warned = host.notices(Level::Warn, "info");
    let expected = [
        ("PGKEEP_FOO", "no such option"),
        ("PGKEEP_NO_DELTA", "cannot negate"),
        ("'start-fast' in section 'global:info', line 10", "not valid for this command"),
        ("'foo' in section 'global', line 2", "no such option"),
        ("'no-delta'", "a file cannot negate"),
        ("'reset-delta'", "a file cannot negate"),
        ("'set'", "command line"),
        ("'pg1-path'", "section of a stanza"),
    ];
    assert_eq!(warned.len(), expected.len(), "{warned:#?}");
    for (warning, (what, why)) in warned.iter().zip(expected) {
        assert!(warning.contains(what) && warning.contains(why), "{warning} | {what} {why}");
    }
    assert_eq!(host.get("info").repo(1).path(), Path::new("/r"));
}

#[test]
fn malformed_configuration_has_its_status() {
    for (config, status) in [
        ("[global\nx=1\n", 29),
        ("x=1\n", 29),
        ("[global]\nx\n", 29),
        ("[global]\nrepo1-path=\n", 32),
        ("[global]\nrepo1-path=/a\nrepo1-path=/b\n", 31),
        ("[global]\nrepo1-path=/a\nrepo-path=/b\n", 31),
        ("[global]\nrepo1-path=/a\n[global]\nrepo1-path=/b\n", 31),
        ("[global]\nrepo-bundle=y\n", 31),
        ("[global]\nrepo257-path=/a\n", 31),
        ("[global]\ndelta=q\n", 32),
        ("[global]\nlog-timestamp=yes\n", 32),
        ("[global]\nprocess-max=0\n", 32),
        ("[global]\nprocess-max=many\n", 32),
        ("[global]\nrepo1-path=relative\n", 32),
        ("[global]\nrepo1-path=/a//b\n", 32),
        ("[global]\nrepo1-type=tape\n", 32),
        ("[global]\nbuffer-size=5\n", 32),
        ("[global]\narchive-timeout=soon\n", 32),
        ("[global]\nrecovery-option=x\n", 31),
        ("[global]\nrepo2-path=/var/lib/pgkeep\nrepo1-path=/var/lib/pgkeep/\n", 32),
        ("[global]\nrepo1-cipher-type=aes-256-cbc\n", 37),
        ("[global]\nrepo1-cipher-pass=x\nrepo1-key-file=/k\n", 31),
        ("[global]\ndb-timeout=10\nprotocol-timeout=5\n", 32),
        ("[global]\nrepo1-host=a\n[demo]\npg1-host=b\n", 27),
        ("[global]\nrepo1-type=s3\n", 37),
    ] {
        // Options are judged only by commands that take them.
        let command = match config {
            c if c.contains("timeout=") => "check",
            c if c.contains("host=") => "stanza-create",
            _ => "restore",
        };
        let host = Host::with(config);
        assert_eq!(host.status(&format!("--stanza=demo --pg1-path=/p {command}")), status, "{config}");
    }
}

#[test]
fn command_lines_have_their_status() {
    let host = Host::with(PG);
    for (args, status) in [
        ("", 0),
        ("--stanza=demo", 30),
        ("frob", 48),
        ("expire", 48),
        ("backup", 37),
        ("verify", 37),
        ("info", 0),
        ("start", 0),
        ("check", 0),
        ("--stanza=other backup", 37),
        ("--stanza=other info", 0),
        ("--stanza=other archive-push /x/pg_wal/a", 0),
        ("repo-stats", 0),
        ("--stanza=demo --set=L --output=json repo-stats", 0),
        ("--output=none repo-stats", 32),
        ("repo-stats x", 96),
        ("--stanza=demo backup x", 96),
        ("--stanza=demo archive-push", 43),
        ("--stanza=demo archive-push a b", 96),
        ("--stanza=demo archive-get a", 43),
        ("--stanza=demo mount", 43),
        ("--stanza=demo mount /m", 0),
        ("--stanza=S --set=L clone create --dir D --mountpoint M", 0),
        ("--stanza=S clone create", 37),
        ("--stanza=demo --delta info", 31),
        ("--stanza=demo --archive-push-queue-max=1 backup", 31),
        ("--stanza=demo --type=zzz backup", 32),
        ("--stanza=demo --type=time restore", 37),
        ("--stanza=demo --target=x restore", 31),
        ("--stanza=demo --type=time --target=x restore", 0),
        ("--stanza=demo --type=immediate --target-action=promote restore", 0),
        ("--stanza=demo --target-action=promote restore", 31),
        ("--stanza=demo --delta --delta restore", 31),
        ("--stanza=demo --exclude=a --exclude=b backup", 0),
        ("--stanza=demo --repo=3 backup", 32),
        ("--stanza=demo --repo=0 backup", 32),
        ("--stanza=demo --repo=257 backup", 32),
        ("--stanza=demo --repo2-path=/x stanza-delete", 37),
        ("--stanza=demo --repo2-path=/x --repo=2 stanza-delete", 0),
        ("--stanza=demo --repo2-path=/x backup", 0),
        ("--stanza=demo --repo1-s3-bucket=x backup", 31),
        ("--stanza=demo --repo1-block backup", 31),
        ("--stanza=demo --no-online --archive-check backup", 31),
        ("--stanza=a/b info", 32),
        ("--stanza=.. info", 32),
        ("--stanza= info", 32),
        ("backup --help", 0),
        ("--version", 0),
        ("version --output=num", 0),
        ("help backup delta x", 0),
    ] {
        assert_eq!(host.status(args), status, "{args}");
    }
    let clone = host.get("--stanza=S --set=L clone create --dir D --mountpoint /m/");
    assert_eq!(clone.path(Opt::Dir), Some(Path::new("/work dir/D")));
    assert_eq!(clone.path(Opt::Mountpoint), Some(Path::new("/m")));
    assert_eq!(clone.param(0), Path::new("create"));
    assert_eq!(host.get("backup --help").params(), ["backup"]);
}

#[test]
fn root_is_refused_where_it_does_harm() {
    let mut host = Host::with(PG);
    host.euid = 0;
    for (args, status) in [
        ("--stanza=demo backup", 31),
        ("--stanza=demo archive-push x", 31),
        ("info", 31),
        ("--stanza=demo --allow-root backup", 0),
        ("--stanza=demo restore", 0),
        ("--stanza=demo --no-allow-root restore", 31),
        ("--stanza=demo mount /m", 0),
        ("--stanza=demo clone list --dir /d", 0),
        ("version", 0),
        ("help", 0),
    ] {
        assert_eq!(host.status(args), status, "{args}");
    }
    host.file("pgkeep/pgkeep.conf", "[global]\nallow-root=y\n");
    assert_eq!(host.status("info"), 0);
}

#[test]
fn numbers_may_have_gaps_and_keep_their_order() {
    let host = Host::with("[global]\nrepo12-path=/l\nrepo3-path=/c\n[demo]\npg1-path=/p\npg4-path=/q\npg4-port=5433\n");
    let settings = host.get("--stanza=demo check");
    assert_eq!(settings.repos().map(Repo::key).collect::<Vec<_>>(), [3, 12]);
    assert_eq!(settings.pgs().map(|p| (p.key(), p.port())).collect::<Vec<_>>(), [(1, 5432), (4, 5433)]);
    let settings = host.get("--stanza=demo --repo=12 backup");
    assert_eq!(settings.target_repos().map(Repo::key).collect::<Vec<_>>(), [12]);
    assert_eq!(settings.repos().count(), 2);
    assert_eq!(settings.pg(256).path(), None);
    assert_eq!(settings.repo(256).path(), Path::new("/"));
}

#[test]
fn secrets_come_from_files_and_environment_and_never_show() {
    let host = Host::with("[global]\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=hush hush\n")
        .var("PGKEEP_REPO2_CIPHER_PASS", "quiet")
        .var("PGKEEP_REPO2_PATH", "/two")
        .var("PGKEEP_REPO3_CIPHER_PASS_FILE", "/pass")
        .var("PGKEEP_REPO3_PATH", "/three")
        .var("PGKEEP_REPO4_KEY_FILE", "/key")
        .var("PGKEEP_REPO4_PATH", "/four");
    let settings = host.get("--stanza=demo --pg1-path=/p backup");
    assert_eq!(settings.repo(1).cipher(), Cipher::Passphrase(&Secret::new("hush hush".into())));
    assert_eq!(settings.repo(2).cipher(), Cipher::Passphrase(&Secret::new("quiet".into())));
    assert_eq!(settings.repo(3).cipher(), Cipher::PassphraseFile(Path::new("/pass")));
    assert_eq!(settings.repo(4).cipher(), Cipher::KeyFile(Path::new("/key")));
    let shown = format!("{settings:?}");
    assert!(!shown.contains("hush") && !shown.contains("quiet"), "{shown}");
    let said = host.notices(Level::Info, "--stanza=demo --pg1-path=/p backup");
    assert!(said.iter().any(|n| n.contains("repo1-cipher-type") && n.contains("ChaCha20")), "{said:?}");

    let host = Host::with("[global]\nrepo1-cipher-type=none\nrepo1-cipher-pass=x\n");
    assert_eq!(host.get("info").repo(1).cipher(), Cipher::None);
    assert_eq!(host.notices(Level::Warn, "info").len(), 1);
}

#[test]
fn what_has_no_effect_is_said_once_where_people_read() {
    let host = Host::with(
        "[global]\nrepo1-bundle=y\nrepo2-bundle=y\nrepo2-path=/2\nrepo1-block=y\nrepo1-hardlink=n\ncompress-type=lz4\n\
         archive-async=y\nbackup-standby=n\n[demo]\npg1-path=/p\n",
    );
    let said = host.notices(Level::Info, "--stanza=demo backup");
    let about = |name: &str| said.iter().filter(|n| n.contains(name)).count();
    assert_eq!((about("bundle"), about("block"), about("compress-type"), said.len()), (1, 1, 1, 3), "{said:#?}");
    let args = "--stanza=demo archive-push x";
    assert!(host.notices(Level::Info, args).is_empty());
    assert!(host.notices(Level::Debug, args).iter().any(|n| n.contains("archive-async")));
    assert_eq!(host.get("--stanza=demo backup --compress-level=9").compress_level(), Some(3));
    assert_eq!(host.get("--stanza=demo backup --compress-level=9 --compress-type=zst").compress_level(), Some(9));
    assert_eq!(host.get("--stanza=demo backup --compress-type=none").compress_level(), None);
}

#[test]
fn timeouts_follow_each_other() {
    let host = Host::with(PG);
    let times = |args: &str| {
        let settings = host.get(&format!("--stanza=demo check {args}"));
        (settings.time(Opt::DbTimeout).as_secs(), settings.time(Opt::ProtocolTimeout).as_secs())
    };
    assert_eq!(times(""), (1800, 1860));
    assert_eq!(times("--db-timeout=3600"), (3600, 3630));
    assert_eq!(times("--protocol-timeout=60"), (30, 60));
    assert_eq!(times("--protocol-timeout=20"), (10, 20));
}

#[test]
fn what_this_version_cannot_do_is_refused_by_name() {
    for (config, what) in [
        ("[global]\nrepo1-host=h\nrepo1-host-user=u\n", "repo1"),
        ("[demo]\npg1-host=h\n", "pg1"),
        ("[global]\nrepo2-type=s3\nrepo2-s3-bucket=b\nrepo2-s3-endpoint=e\nrepo2-s3-region=r\n", "repo2-type=s3"),
    ] {
        let host = Host::with(config);
        let error = check_supported(&host.get("--stanza=demo --pg1-path=/p stanza-create")).expect_err(config);
        assert!(error.status.0 == 67 && error.message.contains(what), "{error}");
    }
    assert!(check_supported(&Host::with(PG).get("--stanza=demo backup")).is_ok());
}

/// A value that an option takes.
fn sample(ty: Type) -> String {
    match ty {
        Type::Bool => "y".into(),
        Type::Int(least, most) => least.max(0).min(most).to_string(),
        Type::Size(least, _) => least.to_string(),
        Type::Time(least, _) => format!("{least}ms"),
        Type::Cpus => "50%".into(),
        Type::Path | Type::AnyPath => "/a/b".into(),
        Type::Text | Type::List => "word".into(),
        Type::Hash => "key=value".into(),
        Type::Enum(words) => words.first().map(|w| (*w).to_owned()).unwrap(),
    }
}

#[test]
fn a_file_with_every_option_loads_for_every_command() {
    let (mut global, mut stanza) = (String::from("[global]\n"), String::from("[demo]\n"));
    for def in TABLE.iter().filter(|d| d.scope != Scope::CommandLine) {
        // These exclude others of the same file.
        if matches!(def.opt, Opt::RepoCipherPassFile | Opt::RepoKeyFile | Opt::PgHost) {
            continue;
        }
        let section = if def.scope == Scope::Stanza { &mut stanza } else { &mut global };
        let value = match def.opt {
            Opt::RepoCipherType => "aes-256-cbc".to_owned(),
            Opt::AllowRoot => "n".to_owned(),
            Opt::DbTimeout => "1m".to_owned(),
            Opt::ProtocolTimeout => "2m".to_owned(),
            _ => sample(def.ty),
        };
        section.push_str(&format!("{}={value}\n", def.display(if def.group == Group::None { 0 } else { 1 })));
    }
    let host = Host::with(&format!("{global}{stanza}"));
    for (args, names) in [
        ("backup", 20),
        ("restore", 20),
        ("archive-push x", 10),
        ("archive-get x y", 10),
        ("check", 10),
        ("info", 5),
        ("verify", 5),
        ("repo-stats", 5),
        ("stanza-create", 5),
        ("stanza-upgrade", 5),
        ("stanza-delete", 5),
        ("start", 5),
        ("stop", 5),
        ("mount m", 5),
        ("clone list --dir d", 5),
    ] {
        let args = format!("--stanza=demo {args}");
        let mut warned = host.notices(Level::Warn, &args);
        // Each backup warns of retention that is not applied.
        warned.retain(|text| !(args.ends_with("backup") && text.contains("retention")));
        assert_eq!(warned, Vec::<String>::new(), "{args}");
        let settings = host.get(&args);
        assert!(settings.iter().filter(|(_, _, s)| s.source == Source::File).count() >= names, "{args}");
    }
}

#[test]
fn accessors_agree_with_the_types_of_the_table() {
    let host = Host::with(PG);
    for args in ["backup", "restore", "archive-push x", "check", "info", "stanza-create", "clone list --dir d"] {
        let settings = host.get(&format!("--stanza=demo {args}"));
        for (opt, index, setting) in settings.iter() {
            let ty = opt.def().type_for(settings.command());
            let fits = setting.value.as_ref().is_none_or(|value| match value {
                Value::Bool(_) => ty == Type::Bool,
                Value::Int(_) => matches!(ty, Type::Int(..)),
                Value::Size(_) => matches!(ty, Type::Size(..)),
                Value::Time(_) => matches!(ty, Type::Time(..)),
                Value::Cpus(_) => ty == Type::Cpus,
                Value::List(_) => ty == Type::List,
                Value::Hash(_) => ty == Type::Hash,
                Value::Secret(_) => opt.def().secret && ty == Type::Text,
                Value::Text(_) => matches!(ty, Type::Path | Type::AnyPath | Type::Text | Type::Enum(_)),
            });
            assert!(fits, "{} {index}", opt.def().name);
        }
    }
}

#[test]
fn limits_of_a_backup_come_from_anywhere_and_must_make_sense() {
    use crate::size::CpuShare::{Cpus, Percent};
    let host = Host::with("[global:backup]\nio-limit=50MB\ncpu-limit=1.5\n[demo]\npg1-path=/pg\n");
    let settings = host.get("--stanza=demo backup");
    assert_eq!((settings.size(Opt::IoLimit), settings.cpus(Opt::CpuLimit)), (Some(50 << 20), Some(Cpus(1500))));
    assert_eq!(settings.setting(Opt::CpuLimit, 0).unwrap().source, Source::File);
    let host = host.var("PGKEEP_IO_LIMIT", "200MiB").var("PGKEEP_CPU_LIMIT", "25%");
    let settings = host.get("--stanza=demo --cpu-limit=12.5% backup");
    assert_eq!((settings.size(Opt::IoLimit), settings.cpus(Opt::CpuLimit)), (Some(200 << 20), Some(Percent(12_500))));
    assert_eq!(settings.setting(Opt::IoLimit, 0).unwrap().source, Source::Environment);
    let settings = host.get("--stanza=demo --reset-io-limit --reset-cpu-limit backup");
    assert_eq!((settings.size(Opt::IoLimit), settings.cpus(Opt::CpuLimit)), (None, None));

    let host = Host::with(PG);
    let unset = host.get("--stanza=demo backup");
    assert_eq!((unset.size(Opt::IoLimit), unset.cpus(Opt::CpuLimit)), (None, None));
    for (bad, says) in [
        ("--io-limit=fast", "'fast' is not a size for option 'io-limit'"),
        ("--io-limit=50MB/s", "'50MB/s' is not a size for option 'io-limit'"),
        ("--io-limit=0", "'0' is out of range for option 'io-limit'"),
        ("--io-limit=63KiB", "'63KiB' is out of range for option 'io-limit'"),
        ("--cpu-limit=half", "'half' is not a share of CPUs for option 'cpu-limit'"),
        ("--cpu-limit=0%", "'0%' is out of range for option 'cpu-limit'"),
        ("--cpu-limit=101%", "'101%' is out of range for option 'cpu-limit'"),
        ("--cpu-limit=0.001", "'0.001' is out of range for option 'cpu-limit'"),
    ] {
        let error = host.run(&format!("--stanza=demo {bad} backup")).unwrap_err();
        assert_eq!((error.status.0, error.to_string().as_str()), (32, says), "{bad}");
    }
    assert_eq!(host.status("--stanza=demo --io-limit=1MiB restore"), 31);

    // A forgotten percent sign, on any machine but the largest.
    let warned = host.notices(Level::Warn, "--stanza=demo --cpu-limit=1024 backup");
    assert_eq!(warned.iter().filter(|n| n.contains("cpu-limit")).count(), usize::from(crate::size::cpus() < 1024));
    assert!(!host.notices(Level::Warn, "--stanza=demo --cpu-limit=1 backup").iter().any(|n| n.contains("cpu-limit")));
}

#[test]
fn the_server_is_told_what_was_typed() {
    let host = Host::with("[global]\nrepo1-path=/r\n[demo]\npg1-path=/pg\n").var("PGKEEP_REPO1_CIPHER_PASS", "hush");
    let settings = host.get("--stanza=demo --repo=1 --log-level-console=info --type=time --target=x --delta restore");
    assert_eq!(
        restore_command(&settings, None).unwrap(),
        "/usr/bin/pgkeep --pg1-path=/pg --repo=1 --stanza=demo archive-get %f \"%p\""
    );
    let settings = host.get("--stanza=demo --no-config --pg1-path=/p$q --repo1-path=/a%b restore --cmd=wrap");
    assert_eq!(
        restore_command(&settings, None).unwrap(),
        "wrap --no-config '--pg1-path=/p$q' --repo1-path=/a%%b --stanza=demo archive-get %f \"%p\""
    );
}

#[test]
fn one_stanza_of_several_is_resolved_for_itself() {
    let host = Host::with("[global]\nrepo1-path=/r\n[a]\npg1-path=/a\n[b:check]\npg1-path=/b\n");
    let all = host.get("check");
    assert_eq!(all.configured_stanzas(), ["a", "b"]);
    let one = load(&host.invocation("check").for_stanza("b")).unwrap().settings;
    assert_eq!((one.stanza_name(), one.pg(1).path()), ("b", Some(Path::new("/b"))));
}

fn place() -> impl Strategy<Value = Option<u32>> {
    proptest::option::weighted(0.6, 1_u32..=900)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_highest_place_wins(
        line in place(), var in place(), stanza_command in place(), stanza in place(),
        global_command in place(), global in place(),
    ) {
        let section = |name: &str, n: Option<u32>| n.map_or_else(String::new, |n| format!("[{name}]\nprocess-max={n}\n"));
        // The order in the file must not matter.
        let config = section("global", global) + &section("demo:backup", stanza_command)
            + &section("global:backup", global_command) + &section("demo", stanza);
        let mut host = Host::with(&config);
        if let Some(n) = var {
            host = host.var("PGKEEP_PROCESS_MAX", &n.to_string());
        }
        let typed = line.map_or_else(String::new, |n| format!("--process-max={n}"));
        let settings = host.get(&format!("--stanza=demo --pg1-path=/p backup {typed}"));
        let expected = line.or(var).or(stanza_command).or(stanza).or(global_command).or(global);
        match expected {
            Some(n) => prop_assert_eq!(settings.int(Opt::ProcessMax), Some(i64::from(n))),
            None => prop_assert!(!settings.is_given(Opt::ProcessMax)),
        }
    }

    #[test]
    fn any_configuration_and_words_never_panic(
        config in "(\\[(global|demo)(:backup)?\\]\n|(repo|pg)[0-9]{0,3}-(path|type|cipher-pass|host)=[/a-z]{0,4}\n|[a-z-]{1,12}=[yn0-9/]{0,3}\n|\\PC{0,6}){0,8}",
        args in "(--stanza=demo |--pg1-path=/p |--[a-z]{1,8}(=[a-z0-9/]{0,3})? |-- |[a-z]{1,5} ){0,4}(backup|info|restore|help|check)?",
    ) {
        let host = Host::with(&config);
        if let Err(error) = host.run(&args) {
            prop_assert!(error.status.0 >= 27 && !error.message.is_empty());
        }
        let _ = load_for_help(&host.invocation(&args), Command::Backup);
    }
}

#[test]
fn what_would_silently_do_something_else_is_refused() {
    let mut host = Host::with(PG);
    for (args, status) in [
        ("--stanza=demo restore", 0),
        ("--stanza=demo --db-include=app restore", 67),
        ("--stanza=demo --db-exclude=app restore", 67),
        ("--stanza=demo --repo=1 --repo-target-time=2026-01-01 restore", 67),
        ("--repo=1 --repo-target-time=2026-01-01 info", 67),
    ] {
        let settings = host.get(args);
        assert_eq!(check_supported(&settings).map_or_else(|e| e.status.0, |()| 0), status, "{args}");
    }
    host = Host::with("[global:restore]\ndb-include=app\n[demo]\npg1-path=/pg\n");
    assert!(check_supported(&host.get("--stanza=demo restore")).is_err());
    check_supported(&host.get("--stanza=demo backup")).unwrap();
    assert_eq!(host.status("--set=20260101-000000F info"), 31);
    assert_eq!(host.status("--stanza=demo --set=20260101-000000F info"), 0);
}

#[test]
fn retention_that_is_not_applied_is_warned_of() {
    let host = Host::with(PG);
    assert!(host.notices(Level::Warn, "--stanza=demo backup").is_empty());
    let warned = host.notices(Level::Warn, "--stanza=demo --repo1-retention-full=2 --repo1-retention-diff=3 backup");
    assert!(warned.len() == 1 && warned[0].contains("'repo1-retention-full' is not applied"), "{warned:?}");
}

#[test]
fn a_configuration_without_end_is_not_read() {
    let host = Host::with(PG);
    assert_eq!(host.status("--config=/dev/zero --stanza=demo info"), 42);
    assert_eq!(host.status("--config=/dev/null --stanza=demo info"), 0);
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    assert_eq!(host.status(&format!("--config={} info", pipe.display())), 42);
    let large = dir.path().join("large.conf");
    std::fs::write(&large, "#\n".repeat(1 << 19)).unwrap();
    assert_eq!(host.status(&format!("--config={} info", large.display())), 0);
    std::fs::write(&large, "#\n".repeat((1 << 19) + 1)).unwrap();
    assert_eq!(host.status(&format!("--config={} info", large.display())), 42);
}
