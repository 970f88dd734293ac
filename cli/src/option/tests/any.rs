//! Every option there is, in every place, with good values and bad ones.

use super::*;
use crate::option::command::COMMANDS;
use crate::option::env;
use crate::option::lookup::{self, Lookup};

/// Every option that pgBackRest's files may have, by the names of its reference, so that none is lost here.
const FILE_OPTIONS: &str = "
    allow-root buffer-size cmd cmd-ssh compress-type compress-level compress-level-network db-timeout delta io-timeout job-retry
    job-retry-interval lock-path neutral-umask priority process-max protocol-timeout spool-path sck-keep-alive
    tcp-keep-alive-count tcp-keep-alive-idle tcp-keep-alive-interval tls-cipher-12 tls-cipher-13
    log-level-console log-level-file log-level-stderr log-path log-subprocess log-timestamp
    archive-async archive-get-queue-max archive-push-queue-max archive-push-batch-size archive-missing-retry archive-timeout
    archive-header-check archive-mode-check
    archive-check archive-copy backup-standby checksum-page page-header-check exclude expire-auto manifest-save-threshold resume
    start-fast stop-auto compress
    archive-mode db-include db-exclude link-all link-map recovery-option tablespace-map tablespace-map-all
    pg1-path pg1-port pg1-socket-path pg1-user pg1-database pg1-host pg1-host-type pg1-host-user pg1-host-port pg1-host-cmd
    pg1-host-config pg1-host-config-path pg1-host-config-include-path pg1-host-ca-file pg1-host-ca-path pg1-host-cert-file
    pg1-host-key-file pg-version-force
    tls-server-address tls-server-port tls-server-ca-file tls-server-cert-file tls-server-key-file tls-server-auth
    repo1-type repo1-path repo1-cipher-type repo1-cipher-pass repo1-bundle repo1-bundle-size repo1-bundle-limit repo1-block
    repo1-block-size-map repo1-block-age-map repo1-block-checksum-size-map repo1-block-size-super repo1-block-size-super-full
    repo1-hardlink repo1-symlink repo1-retention-full repo1-retention-full-type repo1-retention-diff repo1-retention-archive
    repo1-retention-archive-type repo1-retention-history repo1-host repo1-host-type repo1-host-user repo1-host-port repo1-host-cmd
    repo1-host-config repo1-host-config-path repo1-host-config-include-path repo1-host-ca-file repo1-host-ca-path
    repo1-host-cert-file repo1-host-key-file repo1-storage-ca-file repo1-storage-ca-path repo1-storage-host repo1-storage-port
    repo1-storage-tag repo1-storage-upload-chunk-size repo1-storage-verify-tls
    repo1-s3-bucket repo1-s3-endpoint repo1-s3-region repo1-s3-key-type repo1-s3-key repo1-s3-key-secret repo1-s3-token
    repo1-s3-role repo1-s3-process-cmd repo1-s3-kms-key-id repo1-s3-sse-customer-key repo1-s3-requester-pays repo1-s3-service
    repo1-s3-sts-host repo1-s3-uri-style
    repo1-azure-account repo1-azure-container repo1-azure-key repo1-azure-key-type repo1-azure-endpoint repo1-azure-uri-style
    repo1-gcs-bucket repo1-gcs-key repo1-gcs-key-type repo1-gcs-endpoint repo1-gcs-user-project
    repo1-sftp-host repo1-sftp-host-user repo1-sftp-private-key-file repo1-sftp-host-key-hash-type repo1-sftp-host-port
    repo1-sftp-host-key-check-type repo1-sftp-host-fingerprint repo1-sftp-known-host repo1-sftp-public-key-file
    repo1-sftp-private-key-passphrase
    repo-path repo-type repo-cipher-type repo-cipher-pass repo-s3-bucket retention-full retention-diff retention-archive
    retention-archive-type db-path db1-path db-port db-host db-user db-cmd db-config db-ssh-port backup-host backup-user backup-cmd
    backup-config backup-ssh-port hardlink archive-queue-max repo1-s3-verify-ssl repo1-s3-verify-tls repo1-s3-host repo1-s3-port
    repo1-s3-ca-file repo1-s3-ca-path repo1-azure-verify-tls
";

/// Those that its command line has beside.
const TYPED_OPTIONS: &str = "
    config config-path config-include-path stanza repo set type target target-action target-exclusive target-timeline force online
    annotation output dry-run filter recurse sort ignore-missing raw detail-level verbose repo-target-time
";

/// A value that the option takes.
fn good(def: &Def, dir: &str) -> String {
    match def.ty {
        Type::Bool => "y".to_owned(),
        Type::Int(least, most) => least.max(1).min(most).to_string(),
        // What fits any of the sizes, of which some may be only certain ones.
        Type::Size(least, most) => (16 * 1024 * 1024_u64).clamp(least, most).to_string(),
        Type::Time(least, most) => format!("{}ms", 60_000_u64.clamp(least, most)),
        Type::Cpus => "50%".to_owned(),
        Type::Path | Type::AnyPath => format!("{dir}/{}", def.name),
        Type::Text | Type::List => "text".to_owned(),
        Type::Hash => "key=value".to_owned(),
        Type::Enum(words) => (*words.last().unwrap()).to_owned(),
    }
}

#[test]
fn every_option_of_pgbackrest_loads_from_a_file() {
    for name in FILE_OPTIONS.split_whitespace() {
        let Lookup::Found(def, _) = lookup::exact(name) else { panic!("there is no option '{name}'") };
        let section = if def.scope == Scope::Stanza { "demo" } else { "global" };
        let value = good(def, "/x");
        let host = Host::with(&format!("[{section}]\n{name}={value}\n"));
        // By every command that takes it, and by one that does not: in silence.
        for row in COMMANDS {
            let params = row.params.first().map_or("x", |words| words.split('|').next().unwrap());
            let params = vec![params; row.params.len() - row.optional].join(" ");
            let stanza = if row.stanza == command::StanzaUse::Never { "" } else { "--stanza=demo" };
            let args = format!("{stanza} {} {params}", row.name);
            let said: Vec<String> = match host.run(&args) {
                Ok(loaded) => loaded.notices.into_iter().map(|n| n.text).collect(),
                // What goes with it is missing, or another of the same kind is: not that it is unknown.
                Err(e) if matches!(e.status.0, 27 | 31 | 32 | 37) => vec![e.message],
                Err(e) => panic!("{name}={value}, {args}: {e}"),
            };
            for text in &said {
                assert!(!text.contains("no such option") && !text.contains("belongs "), "{name}, {args}: {text}");
            }
            let hidden = format!("'{name}'");
            let ours = |text: &&String| text.contains(&hidden) && text.contains("is not valid for");
            assert!(!said.iter().any(|text| ours(&text)), "{name}, {args}: {said:?}");
        }
    }
    for name in TYPED_OPTIONS.split_whitespace() {
        let Lookup::Found(def, _) = lookup::exact(name) else { panic!("there is no option '{name}'") };
        assert_eq!(def.scope, Scope::CommandLine, "{name}");
    }
}

#[test]
fn what_does_not_fit_its_option_is_refused_by_its_name() {
    for def in TABLE.iter().filter(|d| d.scope != Scope::CommandLine && !d.hidden && !d.later) {
        let bad: &[&str] = match def.ty {
            Type::Bool => &["yes", "1", "Y"],
            Type::Int(..) => &["x", "1.5", "99999999999999999999", "-99999"],
            Type::Size(..) => &["x", "1.5MB", "1x", "-1", "99999999999999999999", "99999PB"],
            Type::Time(..) => &["x", "1.0005s", "1y", "-1", "99999999999999999999"],
            Type::Cpus => &["x", "0", "0%", "101%", "-1", "nan", "1e3"],
            Type::Path => &["relative", "/a//b"],
            Type::Hash => &["key", "=value"],
            Type::Enum(_) => &["zzz", "N", ""],
            Type::AnyPath | Type::Text | Type::List => &[],
        };
        let Some(row) = COMMANDS.iter().find(|c| c.command != Command::Annotate && def.is_valid_for(c.command)) else {
            continue;
        };
        // Only where it counts: what depends on another is not looked at without it.
        if def.depend.is_some() {
            continue;
        }
        let params = row.params.first().map_or("x", |words| words.split('|').next().unwrap());
        let params = vec![params; row.params.len() - row.optional].join(" ");
        let (section, name) = (if def.scope == Scope::Stanza { "demo" } else { "global" }, def.display(1));
        for value in bad {
            let host = Host::with(&format!(
                "[demo]\n{}[{section}]\n{name}={value}\n",
                if name == "pg1-path" { "" } else { "pg1-path=/p\n" }
            ));
            let args = format!("--stanza=demo {} {params}", row.name);
            let error = host.run(&args).expect_err(&format!("{name}={value} is taken by {args}"));
            assert!(matches!(error.status.0, 31 | 32), "{name}={value}: {error}");
            assert!(error.message.contains(&name) && !(def.secret && error.message.contains(value)), "{error}");
        }
    }
}

/// One option somewhere: which, its number, where, and how its value is chosen.
type Choice = (usize, u16, u8, u8);

fn choices() -> impl Strategy<Value = Vec<Choice>> {
    proptest::collection::vec((0..TABLE.len(), 0_u16..4, 0_u8..5, 0_u8..8), 0..8)
}

fn chosen_value(def: &Def, dir: &str, how: u8) -> String {
    match how {
        0..=3 => good(def, dir),
        4 => String::new(),
        5 => "-1".to_owned(),
        6 => "\u{e4}=\u{1f40f}\u{7}".to_owned(),
        _ => "99999999999999999999".to_owned(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is asked for, it is understood or refused with a documented status, and nothing has been done by then: no
    /// directory is there that an option names.
    #[test]
    fn any_options_anywhere_are_understood_or_refused_and_nothing_is_begun(choices in choices(), command in 0..COMMANDS.len(), params in 0_usize..3) {
        let row = &COMMANDS[command];
        let mut host = Host::new();
        let dir = host.etc.path().join("touched").display().to_string();
        let (mut sections, mut args) = (String::from("[demo]\n"), vec!["--stanza=demo".to_owned()]);
        for (at, number, place, how) in choices {
            let def = &TABLE[at];
            let (name, value) = (def.display(number), chosen_value(def, &dir, how));
            match place {
                0 => sections += &format!("[global]\n{name}={}\n", value.replace(['\n', '\u{7}'], "")),
                1 => sections += &format!("[demo:{}]\n{name}={}\n", row.name, value.replace('\u{7}', "")),
                2 => host = host.var(&env_name(&name), &value),
                3 if def.ty == Type::Bool => args.push(format!("--no-{name}")),
                _ => args.push(format!("--{name}={value}")),
            }
        }
        host.file("pgkeep/pgkeep.conf", &sections);
        args.push(row.name.to_owned());
        args.extend((0..params).map(|_| "x".to_owned()));
        let mut invocation = host.invocation("");
        invocation.args = args.iter().map(OsString::from).collect();
        match load(&invocation) {
            Ok(loaded) => {
                prop_assert_eq!(loaded.settings.command(), row.command);
                let _ = check_supported(&loaded.settings);
            }
            Err(error) => {
                // Files and directories that options name and that are not there, among them.
                let documented = [27, 29, 31, 32, 37, 41, 43, 48, 55, 73, 96];
                prop_assert!(documented.contains(&error.status.0), "{:?}: {}", args, error);
                prop_assert!(!error.message.is_empty());
            }
        }
        prop_assert!(!Path::new(&dir).exists());
    }
}

fn env_name(name: &str) -> String {
    format!("{}{}", PGKEEP.env_prefix, name.to_ascii_uppercase().replace('-', "_"))
}

#[test]
fn names_of_the_environment_are_those_of_options() {
    let vars = vec![(OsString::from(env_name("repo2-path")), OsString::from("/r"))];
    let found = env::read(&PGKEEP, &vars, &mut Vec::new()).unwrap();
    assert_eq!((found[0].def.opt, found[0].index), (Opt::RepoPath, 2));
}
