//! Files written by real servers of every supported major, read by this crate and compared with what the
//! server's own tools say of them. `golden/pg/README.md` tells how they were made.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail loudly too")]

use pgkeep_formats::pg::control::WalLevel;
use pgkeep_formats::pg::label::{BackupMethod, BackupSource, format_tablespace_map, parse_tablespace_map};
use pgkeep_formats::pg::page::{self, PageCheck, PageHeader, PageState};
use pgkeep_formats::pg::path::{PathClass, classify};
use pgkeep_formats::pg::{
    ArchiveName, BackupLabelFile, ControlFile, DbState, Lsn, SummaryName, TimelineHistory, TimelineId, Version,
    WalHeader, WalSegment, WalSummary,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Names of the samples of one major; the first archived segment differs with the segment size.
fn names(version: Version) -> Vec<String> {
    let fixed = [
        "pg_control",
        "pg_control.promoted",
        "pg_controldata",
        "pg_controldata.promoted",
        "backup_label",
        "tablespace_map",
        "00000003.history",
        "heap.0",
        "index.3",
        "fsm.0",
        "files",
    ];
    let segment = segment_name(version);
    let named = [format!("{segment}.head"), format!("{segment}.00000028.backup")];
    let summaries = summaries(version).iter().flat_map(|name| [(*name).to_owned(), format!("{name}.contents")]);
    fixed.into_iter().map(str::to_owned).chain(named).chain(summaries).collect()
}

fn summaries(version: Version) -> &'static [&'static str] {
    match version {
        Version::V17 => {
            &["000000010000000001B9591800000000023B3AC8.summary", "00000001000000000279E63000000000027AEC80.summary"]
        }
        Version::V18 => {
            &["000000010000000001BC05E000000000023DF2F8.summary", "0000000100000000027E1FF000000000027F3230.summary"]
        }
        _ => &[],
    }
}

fn segment_name(version: Version) -> &'static str {
    if version == Version::V13 { "00000001000000000000000A" } else { "000000010000000000000002" }
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/pg")
}

fn read(version: Version, name: &str) -> Vec<u8> {
    let path = directory().join(version.to_string()).join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("cannot read '{}': {e}", path.display()))
}

fn read_text(version: Version, name: &str) -> String {
    String::from_utf8(read(version, name)).unwrap()
}

#[test]
fn every_file_is_listed_and_every_listed_file_is_there() {
    let list = |path: PathBuf| -> BTreeSet<String> {
        std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    };
    let majors = Version::ALL.into_iter().map(|v| v.to_string());
    let expected: BTreeSet<String> = majors.chain(["README.md".to_owned()]).collect();
    assert_eq!(list(directory()), expected);
    for version in Version::ALL {
        let expected: BTreeSet<String> = names(version).into_iter().collect();
        assert_eq!(list(directory().join(version.to_string())), expected, "{version}");
    }
}

/// What `pg_controldata` printed, by field.
fn controldata(version: Version, name: &str) -> BTreeMap<String, String> {
    let text = read_text(version, name);
    let line = |l: &str| l.split_once(':').map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned()));
    text.lines().filter_map(line).collect()
}

#[test]
fn control_files_say_what_pg_controldata_prints() {
    for version in Version::ALL {
        for suffix in ["", ".promoted"] {
            let bytes = read(version, &format!("pg_control{suffix}"));
            let printed = controldata(version, &format!("pg_controldata{suffix}"));
            assert_eq!(bytes.len(), 8192);
            let file = ControlFile::parse(&bytes).unwrap();
            assert_eq!(file.version, version);
            assert_eq!(file.state, DbState::ShutDown);
            assert_eq!(file.wal_level, WalLevel::Replica);
            assert!(file.has_page_checksums());
            let on_off = |b: bool| if b { "on" } else { "off" }.to_owned();
            let settings = file.standby_settings;
            for (field, found) in [
                ("pg_control version number", file.pg_control_version.to_string()),
                ("Catalog version number", file.catalog_version.to_string()),
                ("Database system identifier", file.system_identifier.to_string()),
                ("Latest checkpoint location", file.checkpoint.to_string()),
                ("Latest checkpoint's REDO location", file.redo.to_string()),
                ("Latest checkpoint's TimeLineID", file.timeline.to_string()),
                ("Latest checkpoint's PrevTimeLineID", file.prev_timeline.to_string()),
                ("Latest checkpoint's full_page_writes", on_off(file.full_page_writes)),
                ("Minimum recovery ending location", file.min_recovery_point.to_string()),
                ("Min recovery ending loc's timeline", file.min_recovery_timeline.to_string()),
                ("Backup start location", file.backup_start_point.to_string()),
                ("Backup end location", file.backup_end_point.to_string()),
                ("End-of-backup record required", if file.backup_end_required { "yes" } else { "no" }.to_owned()),
                ("max_connections setting", settings.max_connections.to_string()),
                ("max_worker_processes setting", settings.max_worker_processes.to_string()),
                ("max_wal_senders setting", settings.max_wal_senders.to_string()),
                ("max_prepared_xacts setting", settings.max_prepared_transactions.to_string()),
                ("max_locks_per_xact setting", settings.max_locks_per_transaction.to_string()),
                ("Database block size", file.block_size.to_string()),
                ("Blocks per segment of large relation", file.segment_blocks.to_string()),
                ("WAL block size", file.wal_block_size.to_string()),
                ("Bytes per WAL segment", file.wal_segment_size.bytes().to_string()),
                ("Data page checksum version", file.data_checksum_version.to_string()),
            ] {
                assert_eq!(printed.get(field), Some(&found), "{version}{suffix}: {field}");
            }
            let redo_segment = WalSegment::at(file.timeline, file.redo, file.wal_segment_size);
            assert_eq!(printed["Latest checkpoint's REDO WAL file"], redo_segment.name(file.wal_segment_size));
            for (field, seconds) in
                [("pg_control last modified", file.time), ("Time of latest checkpoint", file.checkpoint_time)]
            {
                // "Sat Nov 21 00:44:06 2026", in UTC: the time of day is enough to tell the offset right.
                let of_day = seconds.rem_euclid(86_400);
                let clock = format!(" {:02}:{:02}:{:02} ", of_day / 3600, of_day / 60 % 60, of_day % 60);
                assert!(printed[field].contains(&clock), "{version}{suffix}: {field}");
            }
        }
    }
}

#[test]
fn a_fabricated_control_file_differs_from_a_real_one_only_where_it_may() {
    for version in Version::ALL {
        let real = read(version, "pg_control");
        let mut made = ControlFile::parse(&real).unwrap().encode();
        // Not held by the type: transaction counters (64..104, 112..128), the unlogged counter (128..136), two
        // settings, the nonce, and with all of those the CRC.
        let crc = if version == Version::V18 { 292 } else { 288 };
        let free = [64..104, 112..136, 176..180, 200..204, 256 + usize::from(version == Version::V18)..crc + 4];
        for range in free {
            made[range.clone()].copy_from_slice(&real[range]);
        }
        let differs: Vec<usize> = (0..8192).filter(|i| made[*i] != real[*i]).collect();
        assert_eq!(differs, [0usize; 0], "{version}");
    }
}

#[test]
fn wal_headers_belong_to_the_cluster_and_to_their_name() {
    for version in Version::ALL {
        let control = ControlFile::parse(&read(version, "pg_control")).unwrap();
        let name = segment_name(version);
        let header = WalHeader::parse(&read(version, &format!("{name}.head"))).unwrap();
        assert_eq!(header.version, version);
        assert_eq!(header.system_identifier, control.system_identifier);
        assert_eq!(header.segment_size, control.wal_segment_size);
        assert_eq!(header.block_size, control.wal_block_size);
        assert_eq!(header.segment(), WalSegment::parse(name, header.segment_size).unwrap());
    }
}

#[test]
fn pages_carry_the_checksum_computed_here() {
    for version in Version::ALL {
        for (name, block) in [("heap.0", 0), ("index.3", 3), ("fsm.0", 0)] {
            let mut bytes = read(version, name);
            let header = PageHeader::read(&bytes).unwrap();
            assert_eq!((header.page_size(), header.layout_version()), (8192, 4));
            assert_eq!(page::checksum(&bytes, block), header.checksum, "{version} {name}");
            assert_eq!(page::verify(&bytes, block, PageCheck::ChecksumAndHeader), PageState::Valid);
            let moved = page::verify(&bytes, block + 1, PageCheck::ChecksumAndHeader);
            assert!(matches!(moved, PageState::BadChecksum { .. }));
            bytes[5000] ^= 4;
            assert!(!page::verify(&bytes, block, PageCheck::ChecksumOnly).is_good());
        }
        let heap = PageHeader::read(&read(version, "heap.0")).unwrap();
        let control = ControlFile::parse(&read(version, "pg_control")).unwrap();
        assert!(Lsn(0) < heap.lsn && heap.lsn < control.checkpoint, "{version}: {}", heap.lsn);
    }
}

#[test]
fn backup_labels_and_history_files() {
    for version in Version::ALL {
        let text = read_text(version, "backup_label");
        let file = BackupLabelFile::parse(text.as_bytes()).unwrap();
        assert_eq!(file.segment.to_string(), segment_name(version));
        assert_eq!((file.method, file.source), (BackupMethod::Streamed, BackupSource::Primary));
        assert_eq!(file.label, "golden: a label");
        assert_eq!((file.timeline, file.stop.clone()), (TimelineId(1), None));
        // 13 has an older word for primary.
        assert_eq!(file.format(), text.replace("master", "primary"));

        let name = format!("{}.00000028.backup", segment_name(version));
        let text = read_text(version, &name);
        let history = BackupLabelFile::parse(text.as_bytes()).unwrap();
        assert_eq!(history.format(), text.replace("master", "primary"));
        let stop = history.stop.clone().unwrap();
        assert_eq!(BackupLabelFile { stop: None, ..history }, file);
        assert!(stop.lsn > file.checkpoint);
        let size = ControlFile::parse(&read(version, "pg_control")).unwrap().wal_segment_size;
        let offset = u32::try_from(file.start.segment_offset(size)).unwrap();
        assert_eq!(ArchiveName::parse(&name), Ok(ArchiveName::Backup { segment: file.segment, offset }));
        let needed: Vec<_> = WalSegment::range(file.timeline, file.start, stop.lsn, size).collect();
        assert_eq!(needed.last().unwrap().segment_name(size), stop.segment);
    }
}

#[test]
fn tablespace_maps_give_the_paths_they_were_made_with() {
    for version in Version::ALL {
        let bytes = read(version, "tablespace_map");
        let entries = parse_tablespace_map(&bytes, version).unwrap();
        let paths: Vec<_> = entries.iter().map(|e| String::from_utf8(e.path.clone()).unwrap()).collect();
        let base = format!("/tmp/golden_pg/{version}");
        assert_eq!(paths, [format!("{base}/ts"), format!("{base}/back\\slash\nline")]);
        assert_eq!(entries.iter().map(|e| e.oid).collect::<Vec<_>>(), [16384, 16385]);
        assert_eq!(format_tablespace_map(&entries, version), bytes, "{version}");
    }
}

#[test]
fn timeline_histories() {
    for version in Version::ALL {
        let text = read_text(version, "00000003.history");
        let history = TimelineHistory::parse(TimelineId(3), text.as_bytes()).unwrap();
        assert_eq!(history.parents.iter().map(|p| p.timeline.0).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(history.parents[0].reason, "no recovery target specified");
        assert_eq!(history.format(), text);
        let control = ControlFile::parse(&read(version, "pg_control.promoted")).unwrap();
        assert_eq!(control.timeline, history.own);
        assert_eq!(history.timeline_at(control.checkpoint), history.own);
    }
}

#[test]
fn every_file_of_a_running_server_is_known() {
    for version in Version::ALL {
        let text = read_text(version, "files");
        let classes: Vec<(&str, PathClass)> = text.lines().map(|path| (path, classify(path))).collect();
        let unknown: Vec<_> = classes.iter().filter(|(_, class)| *class == PathClass::Unknown).collect();
        assert!(unknown.is_empty(), "{version}: {unknown:?}");
        let relations = classes.iter().filter(|(_, class)| matches!(class, PathClass::Relation(_))).count();
        assert!(relations > 800, "{version}: {relations}");
        let links = classes.iter().filter(|(_, class)| matches!(class, PathClass::TablespaceLink(_))).count();
        assert_eq!(links, 2, "{version}");
    }
}

/// Blocks as ranges, the way the golden `contents` have them.
fn ranges(mut blocks: Vec<u32>) -> String {
    blocks.sort_unstable();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for block in blocks {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == block => *last = block,
            _ => ranges.push((block, block)),
        }
    }
    let texts: Vec<String> = ranges.iter().map(|(a, b)| format!("{a}-{b}")).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(",") }
}

#[test]
fn wal_summaries_say_what_the_server_says_of_them() {
    for version in Version::ALL {
        assert_eq!(summaries(version).is_empty(), !version.facts().wal_summaries, "{version}");
        for name in summaries(version) {
            assert_eq!(SummaryName::parse(name).unwrap().to_string(), *name);
            assert_eq!(classify(&format!("pg_wal/summaries/{name}")), PathClass::WalSummary);
            let bytes = read(version, name);
            let summary = WalSummary::parse(&bytes).unwrap();
            let lines = summary.entries().map(|e| {
                let r = e.relation;
                let limit = e.limit.map_or_else(|| "-".to_owned(), |l| l.to_string());
                let blocks = ranges(e.blocks().collect());
                format!("{} {} {} {} {limit} {blocks}\n", r.tablespace_oid, r.database_oid, r.filenode, e.fork)
            });
            assert_eq!(lines.collect::<String>(), read_text(version, &format!("{name}.contents")), "{version} {name}");
        }
    }
}
