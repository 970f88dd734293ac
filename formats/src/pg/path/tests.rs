use super::super::timeline::TimelineId;
use super::super::version::Version;
use super::*;
use proptest::prelude::*;

fn relation(path: &str) -> RelationFile {
    match classify(path) {
        PathClass::Relation(file) => file,
        other => panic!("{path}: {other:?}"),
    }
}

#[test]
fn relation_files() {
    let plain = RelationFile {
        tablespace_oid: None,
        database_oid: 5,
        filenode: 16384,
        fork: Fork::Main,
        segment: 0,
        temporary: None,
    };
    assert_eq!(relation("base/5/16384"), plain);
    assert_eq!(relation("base/5/16384.12"), RelationFile { segment: 12, ..plain });
    assert_eq!(relation("base/5/16384_vm.1"), RelationFile { fork: Fork::Vm, segment: 1, ..plain });
    assert_eq!(relation("base/5/t17_16384_fsm"), RelationFile { fork: Fork::Fsm, temporary: Some(17), ..plain });
    assert_eq!(relation("global/1262"), RelationFile { database_oid: 0, filenode: 1262, ..plain });
    let elsewhere = RelationFile { tablespace_oid: Some(24576), fork: Fork::Init, ..plain };
    assert_eq!(relation("pg_tblspc/24576/PG_15_202209061/5/16384_init"), elsewhere);
}

#[test]
fn names_that_only_resemble_relations_are_not() {
    for path in [
        "base/5/16384_",
        "base/5/16384_old",
        "base/5/16384.",
        "base/5/16384.0",
        "base/5/16384.01",
        "base/5/016384",
        "base/5/0",
        "base/5/4294967296",
        "base/5/16384.1.2",
        "base/5/t_16384",
        "base/5/t3_",
        "base/5/16384_fsm_vm",
        "base/5/x/16384",
        "base/0/16384",
        "base/x/16384",
        "base/16384",
        "16384",
        "pg_tblspc/24576/PG_15/5/16384",
        "pg_tblspc/24576/5/16384",
        "pg_tblspc/24576/PG_15_202209061/16384",
        "pg_tblspc/24576/PG_15_202209061/5/x/16384",
        "other/base/5/16384",
        "/base/5/16384",
        "",
    ] {
        assert_eq!(classify(path), PathClass::Unknown, "{path}");
    }
}

#[test]
fn everything_else_a_server_keeps() {
    let history = PathClass::Wal(ArchiveName::History(TimelineId(2)));
    for (path, class) in [
        ("global/pg_control", PathClass::ControlFile),
        ("global/pg_filenode.map", PathClass::RelationMap),
        ("base/5/pg_filenode.map", PathClass::RelationMap),
        ("global/pg_internal.init", PathClass::RelationCache),
        ("base/5/pg_internal.init.4711", PathClass::RelationCache),
        ("base/5/pg_internal.initial", PathClass::Unknown),
        ("PG_VERSION", PathClass::Version),
        ("base/5/PG_VERSION", PathClass::Version),
        ("pg_tblspc/24576/PG_15_202209061/5/PG_VERSION", PathClass::Version),
        ("pg_tblspc/24576", PathClass::TablespaceLink(24576)),
        ("pg_tblspc/x", PathClass::Unknown),
        ("pg_xact/0000", PathClass::Slru(Slru::Xact)),
        ("pg_xact/0000.old", PathClass::Unknown),
        ("pg_multixact/offsets/00FF", PathClass::Slru(Slru::MultixactOffsets)),
        ("pg_multixact/members/14078", PathClass::Slru(Slru::MultixactMembers)),
        ("pg_commit_ts/0000", PathClass::Slru(Slru::CommitTs)),
        ("pg_notify/000000000000001", PathClass::Slru(Slru::Notify)),
        ("pg_wal/00000002.history", history),
        ("pg_wal/xlogtemp.77", PathClass::WalOther),
        ("pg_wal/archive_status/00000002.history.done", PathClass::ArchiveStatus),
        ("pg_wal/summaries/0000000100000000010000280000000001001234.summary", PathClass::WalSummary),
        ("postgresql.conf", PathClass::Configuration),
        ("backup_label.old", PathClass::BackupLabel),
        ("tablespace_map", PathClass::TablespaceMap),
        ("backup_manifest", PathClass::BackupManifest),
        ("standby.signal", PathClass::RecoverySignal),
        ("postmaster.pid", PathClass::Postmaster),
        ("base/pgsql_tmp/pgsql_tmp17.0", PathClass::Temporary),
        ("base/pgsql_tmp/pgsql_tmp17.0.sharedfileset/o0of1.p0.0", PathClass::Temporary),
        ("pg_tblspc/24576/PG_15_202209061/pgsql_tmp/pgsql_tmp17.0", PathClass::Temporary),
        ("pg_replslot/standby1/state", PathClass::ReplicationSlot),
        ("pg_logical/replorigin_checkpoint", PathClass::Logical),
        ("pg_stat/pgstat.stat", PathClass::Statistics),
        ("pg_stat_tmp/global.stat", PathClass::StatisticsTemporary),
        ("log/postgresql-Mon.log", PathClass::Unknown),
    ] {
        assert_eq!(classify(path), class, "{path}");
    }
}

#[test]
fn what_the_server_rebuilds() {
    for path in ["base/5/t3_16384", "pg_subtrans/0000", "base/5/pg_internal.init", "postmaster.pid"] {
        assert!(classify(path).is_rebuilt_by_server(), "{path}");
    }
    for path in ["base/5/16384", "pg_xact/0000", "pg_stat/pgstat.stat", "backup_label", "unknown"] {
        assert!(!classify(path).is_rebuilt_by_server(), "{path}");
    }
}

#[test]
fn block_numbers_go_on_over_segments() {
    assert_eq!(relation("base/5/16384.2").first_block(131_072), Some(262_144));
    assert_eq!(relation("base/5/16384.4294967295").first_block(131_072), None);
}

fn relation_files_strategy() -> impl Strategy<Value = RelationFile> {
    let fork = prop_oneof![Just(Fork::Main), Just(Fork::Fsm), Just(Fork::Vm), Just(Fork::Init)];
    let place = prop_oneof![
        Just((None, 0)),
        (1u32..).prop_map(|database| (None, database)),
        (1u32.., 1u32..).prop_map(|(oid, database)| (Some(oid), database)),
    ];
    (place, 1u32.., fork, any::<u32>(), any::<Option<u32>>()).prop_map(
        |((tablespace_oid, database_oid), filenode, fork, segment, temporary)| RelationFile {
            tablespace_oid,
            database_oid,
            filenode,
            fork,
            segment,
            temporary,
        },
    )
}

proptest! {
    #[test]
    fn relation_paths_round_trip(file in relation_files_strategy(), which in 0usize..6) {
        let path = file.path(Version::ALL[which].facts().tablespace_directory);
        prop_assert_eq!(classify(&path), PathClass::Relation(file));
    }
}
