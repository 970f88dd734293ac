//! Entry points into the decoders of PostgreSQL's files.

use super::Target;
use crate::pg::label::{BackupLabelFile, format_tablespace_map, parse_tablespace_map};
use crate::pg::page::{self, PageCheck, PageHeader};
use crate::pg::path::{self, PathClass};
use crate::pg::summary::{CHUNK_BLOCKS, SummaryName, WalSummary};
use crate::pg::{ArchiveName, ControlFile, Lsn, TimelineHistory, TimelineId, Version, WalHeader, WalSegmentSize};

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "pg_archive_name", run: archive_name },
    Target { name: "pg_backup_label", run: backup_label },
    Target { name: "pg_control", run: control },
    Target { name: "pg_history", run: history },
    Target { name: "pg_page", run: page },
    Target { name: "pg_path", run: path },
    Target { name: "pg_tablespace_map", run: tablespace_map },
    Target { name: "pg_version", run: version },
    Target { name: "pg_wal_header", run: wal_header },
    Target { name: "pg_wal_summary", run: wal_summary },
];

/// `pg_control`, under each version's layout. A mutated file almost never keeps its CRC, so it is also read
/// with the CRC made right.
pub fn control(bytes: &[u8]) {
    let _ = ControlFile::parse(bytes);
    for version in Version::ALL {
        check_control(bytes, version);
        let crc_at = version.facts().control.crc;
        let mut repaired = bytes.to_vec();
        let crc = repaired.get(..crc_at).map(crc32c::crc32c);
        if let (Some(crc), Some(field)) = (crc, repaired.get_mut(crc_at..crc_at + 4)) {
            field.copy_from_slice(&crc.to_le_bytes());
            check_control(&repaired, version);
        }
    }
}

fn check_control(bytes: &[u8], version: Version) {
    if let Ok(file) = ControlFile::parse_as(bytes, version) {
        assert_eq!(ControlFile::parse_as(&file.encode(), version), Ok(file));
    }
}

/// Header and checks of a page, whatever its length.
pub fn page(bytes: &[u8]) {
    let header = PageHeader::read(bytes);
    for check in [PageCheck::ChecksumAndHeader, PageCheck::ChecksumOnly, PageCheck::HeaderOnly] {
        let state = page::verify(bytes, 7, check);
        assert!(header.is_some() || !state.is_good());
    }
    assert_ne!(page::checksum(bytes, u32::MAX), 0);
}

/// `backup_label` and backup history files.
pub fn backup_label(bytes: &[u8]) {
    if let Ok(file) = BackupLabelFile::parse(bytes) {
        let text = file.format();
        let again = BackupLabelFile::parse(text.as_bytes()).map(|f| f.format());
        assert_eq!(again, Ok(text));
    }
}

/// `tablespace_map` in both dialects.
pub fn tablespace_map(bytes: &[u8]) {
    for version in [Version::V13, Version::V14] {
        if let Ok(entries) = parse_tablespace_map(bytes, version) {
            let text = format_tablespace_map(&entries, version);
            // 13 cannot express every path; what it reads from its own text is still read without a panic.
            let again = parse_tablespace_map(&text, version);
            assert!(version == Version::V13 || again == Ok(entries));
        }
    }
}

/// Timeline history files.
pub fn history(bytes: &[u8]) {
    if let Ok(history) = TimelineHistory::parse(TimelineId(9), bytes) {
        assert!(history.parents.iter().all(|p| p.timeline < history.own));
        let again = TimelineHistory::parse(history.own, history.format().as_bytes());
        assert_eq!(again, Ok(history));
    }
}

/// The header of a WAL segment.
pub fn wal_header(bytes: &[u8]) {
    if let Ok(header) = WalHeader::parse(bytes) {
        assert_eq!(WalHeader::parse(&header.encode()), Ok(header));
        assert_eq!(header.segment().start(header.segment_size), header.page_address);
    }
}

/// WAL summaries and their names. A mutated file almost never keeps its CRC, so it is also read with the CRC made right.
pub fn wal_summary(bytes: &[u8]) {
    check_summary(bytes);
    if let Some((covered, _)) = bytes.split_last_chunk::<4>() {
        check_summary(&[covered, &crc32c::crc32c(covered).to_le_bytes()].concat());
    }
    for line in String::from_utf8_lossy(bytes).lines() {
        if let Some(name) = SummaryName::parse(line) {
            assert_eq!(name.to_string(), line);
        }
    }
}

fn check_summary(bytes: &[u8]) {
    let Ok(summary) = WalSummary::parse(bytes) else { return };
    for entry in summary.entries() {
        for chunk in entry.chunks() {
            assert!(chunk.first_block % CHUNK_BLOCKS == 0 && chunk.blocks.iter().count() <= 1 << 16);
        }
    }
}

/// Names of archived files, and WAL positions as text.
pub fn archive_name(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(name) = ArchiveName::parse(&text) {
        assert_eq!(name.to_string(), text);
        for size in [WalSegmentSize::MIN, WalSegmentSize::DEFAULT, WalSegmentSize::MAX] {
            if let Some(Ok(segment)) = name.segment_name().map(|s| s.segment(size)) {
                assert_eq!(segment.segment_name(size), name.segment_name().unwrap_or(segment.segment_name(size)));
            }
        }
    }
    if let Ok(lsn) = Lsn::parse(&text) {
        assert_eq!(Lsn::parse(&lsn.to_string()), Ok(lsn));
    }
}

/// Paths under PGDATA, one a line.
pub fn path(bytes: &[u8]) {
    for text in String::from_utf8_lossy(bytes).lines() {
        let class = path::classify(text);
        let _ = class.is_rebuilt_by_server();
        if let PathClass::Relation(file) = class {
            let _ = file.first_block(131_072);
            let again = file.path(Version::V18.facts().tablespace_directory);
            assert_eq!(path::classify(&again), class);
        }
    }
}

/// `PG_VERSION`, and the numbers that identify a version.
pub fn version(bytes: &[u8]) {
    if let Ok(version) = Version::parse(&String::from_utf8_lossy(bytes)) {
        assert_eq!(Version::parse(&version.to_string()), Ok(version));
    }
    if let Some((head, _)) = bytes.split_first_chunk::<4>() {
        let number = u32::from_le_bytes(*head);
        let _ = (Version::from_server_version_num(number), Version::from_control(number, number));
        let _ = (Version::from_major(number), Version::from_wal_magic((number & 0xffff) as u16));
    }
}
