//! Against real servers, each test with its own.

mod cluster;
mod protected;

use super::*;
use crate::Kind;
use cluster::Cluster;
use std::error::Error as _;

fn chain(error: &ServerError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[test]
fn a_server_says_who_it_is() {
    let cluster = Cluster::start(&["-k", "--wal-segsize=1"], &["archive_mode=on", "archive_command=/bin/true"]);
    let mut session = cluster.connect();
    let identity = session.identity().unwrap();
    assert_eq!(identity.version, session.version());
    assert_eq!(identity.data_directory, cluster.data());
    assert_eq!(
        (identity.wal_segment_size.bytes(), identity.block_size, identity.relation_segment_pages),
        (1 << 20, 8192, 131_072)
    );
    assert!(identity.checksums && !identity.in_recovery);
    assert_eq!((identity.archive_mode, identity.archive_command.as_str()), (ArchiveMode::On, "/bin/true"));
    assert_eq!((identity.wal_level.as_str(), identity.timeline), ("replica", TimelineId(1)));
    let control = cluster.output("pg_controldata", &["-D", cluster.data().to_str().unwrap()]);
    assert!(control.contains(&format!(" {}\n", identity.system_id)), "{control}");
    assert!(control.contains(&format!(" {}\n", identity.catalog_version)), "{control}");
    assert!(session.is_primary().unwrap());
    assert_eq!(session.replay_lsn().unwrap(), None);
    assert!(session.current_time().unwrap() > Duration::from_secs(1_600_000_000));
}

#[test]
fn archiving_that_is_off_shows_no_command() {
    let cluster = Cluster::start(&[], &[]);
    let identity = cluster.connect().identity().unwrap();
    assert_eq!((identity.archive_mode, identity.archive_command.as_str()), (ArchiveMode::Off, ""));
    assert!(!identity.checksums);
}

#[test]
fn databases_and_tablespaces_are_listed() {
    let cluster = Cluster::start(&[], &[]);
    let mut session = cluster.connect();
    let location = cluster.directory("a space");
    session.client.batch_execute("create database \"odd: name\"").unwrap();
    session.client.batch_execute(&format!("create tablespace \"t'1\" location '{}'", location.display())).unwrap();
    let databases = session.databases().unwrap();
    let names: Vec<_> = databases.iter().map(|d| (d.name.as_str(), d.allows_connections, d.is_template)).collect();
    assert!(names.contains(&("template0", false, true)), "{names:?}");
    assert!(names.contains(&("odd: name", true, false)), "{names:?}");
    let tablespaces = session.tablespaces().unwrap();
    assert_eq!(tablespaces.len(), 1);
    assert_eq!((tablespaces[0].name.as_str(), &tablespaces[0].location), ("t'1", &location));
}

#[test]
fn names_that_are_no_text_are_escaped() {
    let cluster = Cluster::start(&["-E", "SQL_ASCII", "--locale=C"], &[]);
    let mut session = cluster.connect();
    let location = cluster.directory("space");
    session.client.batch_execute("create database one").unwrap();
    session.client.batch_execute(&format!("create tablespace two location '{}'", location.display())).unwrap();
    // `caf\xe9\`, which no client that speaks UTF-8 can write.
    let name = "convert_from('\\x636166e95c'::bytea, 'SQL_ASCII')::name";
    session.client.batch_execute(&format!("update pg_database set datname = {name} where datname = 'one'")).unwrap();
    session.client.batch_execute(&format!("update pg_tablespace set spcname = {name} where spcname = 'two'")).unwrap();
    let databases = session.databases().unwrap();
    let names: Vec<_> = databases.iter().map(|d| d.name.as_str()).collect();
    assert!(names.contains(&"caf\\xE9\\\\") && names.contains(&"postgres"), "{names:?}");
    let tablespaces = session.tablespaces().unwrap();
    assert_eq!((tablespaces[0].name.as_str(), &tablespaces[0].location), ("caf\\xE9\\\\", &location));
}

#[test]
fn each_major_is_spoken_to_in_its_own_words() {
    for (major, programs) in cluster::majors() {
        let cluster = Cluster::start_with(programs, &["-k"], &["archive_mode=always", "archive_command=/bin/true"]);
        let mut session = cluster.connect();
        let identity = session.identity().unwrap();
        let facts = identity.version.facts();
        assert_eq!((facts.major, facts.catalog_version), (major, identity.catalog_version));
        assert_eq!((identity.archive_mode, identity.checksums), (ArchiveMode::Always, true));
        let control = crate::pg::datadir::read_control(&identity.data_directory).unwrap().fields;
        assert_eq!((control.system_identifier, control.version), (identity.system_id, identity.version));
        assert!(crate::pg::datadir::is_running(&identity.data_directory).unwrap());
        session.lock_backup(0).unwrap();
        let start = session.backup_start("label", CheckpointPace::Fast).unwrap();
        session.client.batch_execute("create table public.t as select generate_series(1, 1000)").unwrap();
        let stop = session.backup_stop().unwrap();
        let label = pgkeep_formats::pg::BackupLabelFile::parse(stop.label_file.as_bytes()).unwrap();
        assert_eq!((label.start, label.timeline, label.label.as_str()), (start.lsn, start.timeline, "label"));
        assert_eq!((stop.tablespace_map.as_str(), stop.lsn > start.lsn), ("", true));
        assert!(session.create_restore_point("here").unwrap() >= stop.lsn);
        session.switch_wal().unwrap();
    }
}

#[test]
fn a_walk_over_a_running_server_finds_what_it_is_made_of() {
    let cluster = Cluster::start(&["-k"], &[]);
    let mut session = cluster.connect();
    let space = cluster.directory("space");
    let sql = format!("create tablespace s location '{}'", space.display());
    session.client.batch_execute(&sql).unwrap();
    let make = "create unlogged table public.u as select 1; create table public.t tablespace s as
        select generate_series(1, 100000) as i; create temporary table x as select 1; checkpoint";
    session.client.batch_execute(make).unwrap();
    let path = |s: &mut Connection, name: &str| -> String {
        s.client.query_one(&format!("select pg_relation_filepath('{name}')"), &[]).unwrap().get(0)
    };
    let (unlogged, table) = (path(&mut session, "public.u"), path(&mut session, "public.t"));
    let temporary = path(&mut session, "x");
    let start = session.backup_start("label", CheckpointPace::Fast).unwrap();
    let options = crate::pg::datadir::WalkOptions {
        version: session.version(),
        online: true,
        exclude: crate::pg::datadir::Exclusions::default(),
        report: true,
    };
    let mut found = std::collections::HashMap::new();
    crate::pg::datadir::walk(&cluster.data(), &options, &Cancel::default(), |entry| {
        found.insert(String::from_utf8(entry.path.clone()).unwrap(), entry);
        Ok(())
    })
    .unwrap();
    for path in ["PG_VERSION", "global/pg_control", "pg_wal/archive_status", &table, &format!("{unlogged}_init")] {
        assert!(found.contains_key(path), "{path} of {:?}", found.keys());
    }
    for path in ["postmaster.pid", "postmaster.opts", &unlogged, &temporary] {
        assert!(!found.contains_key(path), "{path}");
    }
    // Every page of every relation is right, at the place its path says.
    let mut pages = 0;
    for (path, entry) in found.iter().filter(|(_, e)| e.kind.is_file()) {
        let pgkeep_formats::pg::path::PathClass::Relation(file) = pgkeep_formats::pg::path::classify(path) else {
            continue;
        };
        let facts = crate::pg::read::Pages {
            size: std::num::NonZero::new(8192).unwrap(),
            first_block: file.first_block(131_072).unwrap(),
            check: pgkeep_formats::pg::page::PageCheck::ChecksumAndHeader,
            backup_start: Some(start.lsn),
        };
        let reader = crate::pg::read::RegionReader::open(&entry.source, Some(facts)).unwrap().unwrap();
        let mut buffer = vec![0; usize::try_from(entry.size).unwrap()];
        let region = reader.read(0, &mut buffer).unwrap();
        assert_eq!((region.bad_pages.as_slice(), region.len), (&[][..], buffer.len()), "{path}");
        pages += region.len / 8192;
    }
    assert!(pages > 1000, "{pages} pages");
    session.backup_stop().unwrap();
}

#[test]
fn a_backup_starts_and_stops_on_one_session() {
    let cluster = Cluster::start(&[], &[]);
    let mut session = cluster.connect();
    let location = cluster.directory("space");
    session.client.batch_execute(&format!("create tablespace s location '{}'", location.display())).unwrap();
    assert_eq!(session.backup_stop().unwrap_err().kind(), Kind::Assert);
    let start = session.backup_start("the label", CheckpointPace::Fast).unwrap();
    assert_eq!(session.backup_start("again", CheckpointPace::Fast).unwrap_err().kind(), Kind::Assert);
    session.ping().unwrap();
    session.client.batch_execute("create table public.t as select generate_series(1, 1000)").unwrap();
    let stop = session.backup_stop().unwrap();
    let lsn = |l: Lsn| format!("{:X}/{:X}", l.0 >> 32, l.0 & 0xffff_ffff);
    assert!(stop.label_file.contains(&format!("START WAL LOCATION: {} (file 0000000100", lsn(start.lsn))));
    assert!(stop.label_file.contains("LABEL: the label\nSTART TIMELINE: 1\n"), "{}", stop.label_file);
    assert!(stop.tablespace_map.ends_with(&format!(" {}\n", location.display())), "{}", stop.tablespace_map);
    assert!(stop.lsn > start.lsn && stop.time >= start.time);
    assert_eq!(start.timeline, TimelineId(1));
    // Another one, on the same session.
    assert!(session.backup_start("second", CheckpointPace::Fast).unwrap().lsn >= stop.lsn);
    session.backup_stop().unwrap();
}

#[test]
fn a_wal_switch_ends_the_segment_of_the_restore_point() {
    let cluster = Cluster::start(&[], &[]);
    let mut session = cluster.connect();
    let lsn = session.create_restore_point("here").unwrap();
    let name: String = session.client.query_one("select pg_walfile_name(pg_current_wal_lsn())", &[]).unwrap().get(0);
    assert_eq!(session.switch_wal().unwrap(), name);
    assert!(session.create_restore_point("there").unwrap() > lsn);
    assert_ne!(session.switch_wal().unwrap(), name);
    let refused = session.create_restore_point(&"x".repeat(100)).unwrap_err();
    assert!(chain(&refused).starts_with("cannot create a restore point: "), "{}", chain(&refused));
    assert_eq!(refused.kind(), Kind::DbQuery);
}

#[test]
fn the_advisory_lock_excludes_its_own_scope_until_the_session_ends() {
    let cluster = Cluster::start(&[], &[]);
    let (mut one, mut two) = (cluster.connect(), cluster.connect());
    one.lock_backup(7).unwrap();
    let refused = two.lock_backup(7).unwrap_err();
    assert_eq!(refused.kind(), Kind::LockAcquire);
    two.lock_backup(-8).unwrap();
    drop(one);
    // The server notices the end of the session in its own time.
    while let Err(e) = two.lock_backup(7) {
        assert_eq!(e.kind(), Kind::LockAcquire);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_server_that_goes_away_during_a_backup_is_named_as_the_cause() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::KILL] {
        let mut cluster = Cluster::start(&[], &[]);
        let mut session = cluster.connect();
        session.backup_start("label", CheckpointPace::Fast).unwrap();
        cluster.stop(signal);
        // After a kill of the postmaster alone the backend lives until it notices.
        let error = loop {
            match session.ping() {
                Ok(()) => std::thread::sleep(Duration::from_millis(20)),
                Err(e) => break e,
            }
        };
        assert_eq!(error.to_string(), "the server ended the connection during the backup, cannot reach the server");
        let error = session.backup_stop().unwrap_err();
        assert_eq!(error.to_string(), "the server ended the connection during the backup, cannot stop the backup");
        assert_eq!(error.kind(), Kind::DbQuery);
        assert!(matches!(error, ServerError::Lost { in_backup: true, .. }));
        let refused = cluster.try_connect(&cluster.options()).unwrap_err();
        assert_eq!(refused.kind(), Kind::DbConnect);
        assert!(refused.to_string().contains(&format!("port {}", cluster.port())), "{refused}");
    }
}

#[test]
fn a_terminated_session_says_so_at_the_stop() {
    let cluster = Cluster::start(&[], &[]);
    let (mut session, mut other) = (cluster.connect(), cluster.connect());
    session.backup_start("label", CheckpointPace::Fast).unwrap();
    let sql = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgkeep [test]'
        and pid <> pg_backend_pid()";
    assert_eq!(other.client.query(sql, &[]).unwrap().len(), 1);
    let error = session.backup_stop().unwrap_err();
    assert!(error.to_string().starts_with("the server ended the connection during the backup"), "{}", chain(&error));
}

#[test]
fn a_running_query_can_be_cancelled_and_is_limited() {
    let cluster = Cluster::start(&[], &[]);
    let cancel = Cancel::default();
    let mut session = Connection::open(&cluster.options(), "test", &cancel).unwrap();
    session.limit = Duration::from_millis(100);
    let late = session.run("sleep", |c| c.batch_execute("select pg_sleep(600)")).unwrap_err();
    assert!(matches!(late, ServerError::Timeout { .. }), "{}", chain(&late));
    assert_eq!(late.kind(), Kind::DbQuery);
    session.ping().unwrap();
    session.limit = Duration::from_secs(600);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            cancel.cancel();
        });
        let stopped = session.run("sleep", |c| c.batch_execute("select pg_sleep(600)")).unwrap_err();
        assert_eq!(stopped.kind(), Kind::Interrupted);
    });
    assert_eq!(session.ping().unwrap_err().kind(), Kind::Interrupted);
}

#[test]
fn settings_of_the_role_do_not_get_in_the_way() {
    let cluster = Cluster::start(&[], &[]);
    let hostile = "alter role postgres set statement_timeout = '20ms'; alter role postgres set search_path = 'evil';
        alter role postgres set idle_in_transaction_session_timeout = '20ms';
        alter role postgres set default_transaction_read_only = on;
        create schema evil; create function evil.pg_is_in_recovery() returns bool language sql as 'select true'";
    cluster.connect().client.batch_execute(hostile).unwrap();
    let mut session = cluster.connect();
    session.run("sleep", |c| c.batch_execute("select pg_sleep(0.2)")).unwrap();
    assert!(session.is_primary().unwrap());
    session.run("write", |c| c.batch_execute("create table evil.t ()")).unwrap();
}

#[test]
fn a_standby_tells_how_far_its_files_are() {
    let primary = Cluster::start(&[], &[]);
    let standby = primary.standby();
    let (mut one, mut two) = (primary.connect(), standby.connect());
    assert!(!two.is_primary().unwrap());
    let (identity, of_primary) = (two.identity().unwrap(), one.identity().unwrap());
    assert!(identity.in_recovery);
    assert_eq!((identity.system_id, identity.timeline), (of_primary.system_id, of_primary.timeline));
    one.client.batch_execute("create table public.t as select generate_series(1, 10000)").unwrap();
    let start = one.backup_start("label", CheckpointPace::Fast).unwrap();
    let checkpoint = one.last_checkpoint().unwrap();
    assert_eq!((checkpoint.redo, checkpoint.timeline), (start.lsn, start.timeline));
    while two.replay_lsn().unwrap().is_none_or(|replayed| replayed <= checkpoint.lsn) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_ne!(two.last_checkpoint().unwrap(), checkpoint, "it has not been written down yet");
    two.checkpoint().unwrap();
    assert_eq!(two.last_checkpoint().unwrap(), checkpoint);
    let written = two.written().unwrap();
    assert!(written.in_recovery && written.lsn > start.lsn && written.timeline == start.timeline, "{written:?}");
    assert!(!one.written().unwrap().in_recovery);
    // A backup of the standby alone is possible too.
    two.backup_start("on the standby", CheckpointPace::Fast).unwrap();
    assert!(two.backup_stop().unwrap().label_file.contains("BACKUP FROM: standby"));
    one.backup_stop().unwrap();
}
