//! What is refused or warned of, and with which status.

use super::*;

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
        let mut warned = warned(args);
        warned.retain(|text| !text.contains("retention"));
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
        ("[global]\nrepo1-type=s3\nrepo1-s3-bucket=b\nrepo1-s3-endpoint=e\nrepo1-s3-region=r\n", 37),
        ("[global]\nrepo1-type=s3\nrepo1-s3-bucket=b\nrepo1-s3-endpoint=e\nrepo1-s3-region=r\nrepo1-s3-key=k\n", 37),
        (
            "[global]\nrepo1-type=s3\nrepo1-s3-bucket=b\nrepo1-s3-endpoint=ftp://e\nrepo1-s3-region=r\n\
             repo1-s3-key-type=auto\n",
            32,
        ),
        ("[global]\nrepo1-type=gcs\nrepo1-gcs-bucket=b\n", 37),
        (
            "[global]\nrepo1-type=gcs\nrepo1-gcs-bucket=b\nrepo1-gcs-key-type=auto\n\
             repo2-type=gcs\nrepo2-gcs-bucket=b\nrepo2-gcs-key-type=auto\n",
            32,
        ),
        ("[global]\nrepo1-type=azure\nrepo1-azure-container=c\nrepo1-azure-account=a\n", 37),
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
        ("expire", 37),
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
        ("repo-ls", 0),
        ("repo-ls backup/demo --output=json --recurse --filter=x --sort=desc", 0),
        ("--ignore-missing repo-ls", 31),
        ("--sort=up repo-ls", 32),
        ("--repo2-path=/x repo-ls", 37),
        ("--repo2-path=/x --repo=2 repo-ls", 0),
        ("repo-get", 43),
        ("repo-get a b", 96),
        ("--raw --ignore-missing repo-get a", 0),
        ("completion", 43),
        ("completion tcsh", 96),
        ("completion bash", 0),
        ("--stanza=demo completion bash", 0),
        ("help --output=man", 0),
        ("help backup --output=markdown", 0),
        ("info --output=json --help", 0),
        ("--stanza=demo backup x", 96),
        ("--stanza=demo archive-push", 43),
        ("--stanza=demo archive-push a b", 96),
        ("--stanza=demo archive-get a", 43),
        ("--stanza=demo mount", 43),
        ("--stanza=demo mount /m", 0),
        ("--stanza=S --set=L clone create --dir D --mountpoint M", 0),
        ("--stanza=S clone create", 37),
        ("--stanza=S clone create --dir D", 37),
        ("clone info", 37),
        ("clone list", 0),
        ("--delta clone infoo", 96),
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
        ("version x", 96),
        ("help backup delta", 0),
        ("help backup delta x", 96),
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
fn what_has_no_effect_is_said_once_where_people_read() {
    let host = Host::with(
        "[global]\nrepo1-bundle=y\nrepo2-bundle=y\nrepo2-path=/2\nrepo1-block=y\nrepo1-hardlink=n\ncompress-type=lz4\n\
         backup-standby=n\n[global:archive-push]\nsck-keep-alive=n\n[demo]\npg1-path=/p\n",
    );
    let said = host.notices(Level::Info, "--stanza=demo backup");
    let about = |name: &str| said.iter().filter(|n| n.contains(name)).count();
    assert_eq!((about("bundle"), about("block"), about("compress-type"), said.len()), (1, 1, 1, 3), "{said:#?}");
    let args = "--stanza=demo archive-push x";
    assert!(host.notices(Level::Info, args).is_empty());
    assert!(host.notices(Level::Debug, args).iter().any(|n| n.contains("sck-keep-alive")));
    assert_eq!(host.get("--stanza=demo backup --compress-level=9").compress_level(), Some(3));
    assert_eq!(host.get("--stanza=demo backup --compress-level=9 --compress-type=zst").compress_level(), Some(9));
    assert_eq!(host.get("--stanza=demo backup --compress-type=none").compress_level(), None);
}

#[test]
fn work_ahead_has_its_options_and_parameters() {
    let host = Host::with(
        "[global]\nspool-path=/spool\narchive-get-queue-max=1GiB\n[global:archive-push]\narchive-async=y\n\
         [demo]\npg1-path=/p\n[demo:archive-get]\narchive-async=n\n",
    );
    let push = host.get("--stanza=demo archive-push x");
    assert!(push.flag(Opt::ArchiveAsync) && push.path(Opt::SpoolPath) == Some(Path::new("/spool")));
    assert_eq!(push.size(Opt::ArchivePushBatchSize), Some(16 << 30));
    let get = host.get("--stanza=demo archive-get x y");
    assert!(!get.flag(Opt::ArchiveAsync) && get.path(Opt::SpoolPath).is_none());
    assert_eq!(get.size(Opt::ArchiveGetQueueMax), None, "it counts for nothing");
    assert_eq!(host.get("--stanza=demo restore").path(Opt::SpoolPath), Some(Path::new("/spool")), "to be emptied");
    assert_eq!(host.status("--stanza=demo --spool-path=/s archive-get x y"), 31);

    let role = host.get("--stanza=demo archive-push:async /p/pg_wal");
    assert_eq!((role.role(), role.shown_command().as_str()), (Role::Async, "archive-push:async"));
    assert_eq!((push.role(), push.shown_command().as_str()), (Role::Main, "archive-push"));
    for (args, status) in [
        ("archive-get:async 000000010000000000000001", 0),
        ("archive-get:async a b", 96),
        ("archive-push:async", 43),
        ("archive-push:local x", 48),
        ("backup:async", 48),
    ] {
        assert_eq!(host.status(&format!("--stanza=demo {args}")), status, "{args}");
    }
}

#[test]
fn what_this_version_cannot_do_is_refused_by_name() {
    for (config, what) in [
        ("[global]\nrepo1-host=h\nrepo1-host-user=u\n", "repo1"),
        ("[demo]\npg1-host=h\n", "pg1"),
        (
            "[global]\nrepo2-type=sftp\nrepo2-sftp-host=h\nrepo2-sftp-host-user=u\nrepo2-sftp-private-key-file=/k\n\
             repo2-sftp-host-key-hash-type=sha1\n",
            "repo2-type=sftp",
        ),
        (
            "[global]\nrepo2-type=s3\nrepo2-s3-bucket=b\nrepo2-s3-endpoint=e\nrepo2-s3-region=r\n\
             repo2-s3-key-type=process\nrepo2-s3-process-cmd=/p\n",
            "process",
        ),
    ] {
        let host = Host::with(config);
        let error = check_supported(&host.get("--stanza=demo --pg1-path=/p stanza-create")).expect_err(config);
        assert!(error.status.0 == 67 && error.message.contains(what), "{error}");
    }
    assert!(check_supported(&Host::with(PG).get("--stanza=demo backup")).is_ok());
}

#[test]
fn what_would_silently_do_something_else_is_refused() {
    let host = Host::with(PG);
    for (args, status) in [
        ("--stanza=demo restore", 0),
        ("--stanza=demo --repo=1 --repo-target-time=2026-01-01 restore", 67),
        ("--repo=1 --repo-target-time=2026-01-01 info", 67),
    ] {
        let settings = host.get(args);
        assert_eq!(check_supported(&settings).map_or_else(|e| e.status.0, |()| 0), status, "{args}");
    }
    check_supported(&host.get("--stanza=demo backup")).unwrap();
    assert_eq!(host.status("--set=20260101-000000F info"), 31);
    assert_eq!(host.status("--stanza=demo --set=20260101-000000F info"), 0);
}

#[test]
fn a_repository_that_only_grows_is_warned_of() {
    let host = Host::with(PG);
    let warned = |args: &str| host.notices(Level::Warn, &format!("--stanza=demo {args}"));
    assert!(warned("backup")[0].contains("'repo1-retention-full' is not set"));
    assert_eq!(warned("info").len(), 0);
    for rule in ["retention-full=2", "keep-daily=7", "retention-policy=REDUNDANCY=3"] {
        let args = format!("--repo1-{} expire", rule.replace("REDUNDANCY=3", "redundancy"));
        let known = rule != "retention-policy=REDUNDANCY=3";
        assert_eq!(host.status(&format!("--stanza=demo {args}")), if known { 0 } else { 32 }, "{args}");
        assert!(!known || warned(&args).is_empty(), "{args}");
    }
    assert_eq!(warned("--repo1-retention-diff=3 backup").len(), 1);
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
