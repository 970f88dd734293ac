//! Where values come from, and which wins.

use super::*;

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
            Opt::RepoRetentionPolicy => "REDUNDANCY 3".to_owned(),
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
        let warned = host.notices(Level::Warn, &args);
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
fn the_server_is_told_the_name_that_was_called() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let (binary, link) = (dir.join("pgkeep"), dir.join("bin/pgbackrest"));
    std::fs::create_dir(dir.join("bin")).unwrap();
    std::fs::write(&binary, "").unwrap();
    std::os::unix::fs::symlink(&binary, &link).unwrap();
    let host = Host::new().var("PATH", &format!("/nowhere:{}", dir.join("bin").display()));
    let called = |argv0: &str, exe: &Path| {
        let args = host.invocation("--stanza=demo --pg1-path=/pg restore").args;
        let invocation =
            Invocation { argv0: argv0.into(), exe: exe.into(), cwd: dir.clone(), args, ..host.invocation("") };
        let command = restore_command(&load(&invocation).unwrap().settings, None).unwrap();
        command.split(' ').next().unwrap().to_owned()
    };
    let link = link.to_str().unwrap();
    for argv0 in ["pgbackrest", "./bin/pgbackrest", "bin/pgbackrest", link] {
        assert_eq!(called(argv0, &binary), link, "{argv0}");
    }
    assert_eq!(called("pgkeep", &binary), binary.to_str().unwrap());
    // A link that is gone, or another program's.
    assert_eq!(called("pgbackrest", Path::new("/usr/bin/pgkeep")), "/usr/bin/pgkeep");
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
