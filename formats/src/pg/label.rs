//! `backup_label`, backup history files (`….backup` in the archive) and `tablespace_map`.
//!
//! The server returns the first and the last as text when a backup stops; they are stored and restored byte
//! by byte. This module reads what pgkeep needs from them, and writes them for backups made without a server.
//!
//! Source: `xlogbackup.c` and `xlogrecovery.c` (15 and later; the same code in `xlog.c` before). The server
//! reads fields in a fixed order; so a line that looks like a field inside a label with line breaks does no
//! harm here either: for each field the first line in order counts.

use super::lsn::Lsn;
use super::timeline::TimelineId;
use super::version::Version;
use super::wal::SegmentName;
use crate::FormatError;

/// How the backup was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupMethod {
    /// Non-exclusive or by the replication protocol: `streamed`.
    Streamed,
    /// Exclusive, possible until 14: `pg_start_backup`.
    Exclusive,
}

/// Where the backup was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupSource {
    /// `primary`; 13 writes `master`.
    Primary,
    /// `standby`.
    Standby,
}

/// What a backup history file adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStop {
    /// End of the backup: replay must reach it.
    pub lsn: Lsn,
    /// Segment that the server names for it.
    pub segment: SegmentName,
    /// When, in the server's log time zone.
    pub time: String,
    /// Timeline of that position.
    pub timeline: TimelineId,
}

/// The server's `backup_label` file, or a backup history file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabelFile {
    /// Where replay starts.
    pub start: Lsn,
    /// Segment that holds it.
    pub segment: SegmentName,
    /// Position of the checkpoint's record.
    pub checkpoint: Lsn,
    /// How the backup was begun.
    pub method: BackupMethod,
    /// Where it was taken.
    pub source: BackupSource,
    /// When it began, in the server's log time zone: `2024-05-01 10:00:00 UTC`.
    pub start_time: String,
    /// Its label, as passed to the start function; bytes that are not UTF-8 are replaced.
    pub label: String,
    /// Timeline it began on.
    pub timeline: TimelineId,
    /// From 17 on, in incremental backups only: start and timeline of the backup it builds on.
    pub incremental_from: Option<(Lsn, TimelineId)>,
    /// Only in a backup history file.
    pub stop: Option<BackupStop>,
}

const LABEL_FILE: &str = "backup label file";

impl BackupLabelFile {
    /// Parses the content of either kind of file.
    ///
    /// # Errors
    /// [`FormatError::BadText`] if a field the server needs is missing or cannot be parsed, or if the start
    /// timeline contradicts the start segment's name.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = Lines(text.split('\n').map(|l| l.strip_suffix('\r').unwrap_or(l)).collect());
        let (start, segment) = lines.need("START WAL LOCATION: ", parse_location)?;
        let stop = lines.find("STOP WAL LOCATION: ", parse_location)?;
        let checkpoint = lines.need("CHECKPOINT LOCATION: ", |v| Lsn::parse(v.trim_ascii()).ok())?;
        let method = lines.find("BACKUP METHOD: ", parse_method)?.unwrap_or(BackupMethod::Exclusive);
        let source = lines.find("BACKUP FROM: ", parse_source)?.unwrap_or(BackupSource::Primary);
        let start_time = lines.find("START TIME: ", owned)?.unwrap_or_default();
        let label = lines.find("LABEL: ", owned)?.unwrap_or_default();
        let timeline = lines.find("START TIMELINE: ", parse_timeline)?.unwrap_or(segment.timeline);
        if timeline != segment.timeline {
            return Err(bad(&format!("start timeline {timeline} but start segment {segment}")));
        }
        let stop = match stop {
            None => None,
            Some((lsn, segment)) => {
                let time = lines.find("STOP TIME: ", owned)?.unwrap_or_default();
                let timeline = lines.find("STOP TIMELINE: ", parse_timeline)?.unwrap_or(segment.timeline);
                Some(BackupStop { lsn, segment, time, timeline })
            }
        };
        let incremental_from = match lines.find("INCREMENTAL FROM LSN: ", |v| Lsn::parse(v.trim_ascii()).ok())? {
            None => None,
            Some(lsn) => Some((lsn, lines.need("INCREMENTAL FROM TLI: ", parse_timeline)?)),
        };
        Ok(Self { start, segment, checkpoint, method, source, start_time, label, timeline, incremental_from, stop })
    }

    /// The file's content, as the server writes it. Line breaks in the label become spaces.
    #[must_use]
    pub fn format(&self) -> String {
        let mut out = format!("START WAL LOCATION: {} (file {})\n", self.start, self.segment);
        if let Some(stop) = &self.stop {
            out += &format!("STOP WAL LOCATION: {} (file {})\n", stop.lsn, stop.segment);
        }
        let method = match self.method {
            BackupMethod::Streamed => "streamed",
            BackupMethod::Exclusive => "pg_start_backup",
        };
        let source = match self.source {
            BackupSource::Primary => "primary",
            BackupSource::Standby => "standby",
        };
        out += &format!("CHECKPOINT LOCATION: {}\nBACKUP METHOD: {method}\nBACKUP FROM: {source}\n", self.checkpoint);
        let label = self.label.replace(['\n', '\r'], " ");
        out += &format!("START TIME: {}\nLABEL: {label}\nSTART TIMELINE: {}\n", self.start_time, self.timeline);
        if let Some(stop) = &self.stop {
            out += &format!("STOP TIME: {}\nSTOP TIMELINE: {}\n", stop.time, stop.timeline);
        }
        if let Some((lsn, timeline)) = self.incremental_from {
            out += &format!("INCREMENTAL FROM LSN: {lsn}\nINCREMENTAL FROM TLI: {timeline}\n");
        }
        out
    }
}

/// The lines not used up yet.
struct Lines<'a>(Vec<&'a str>);

impl Lines<'_> {
    /// The value of the first line with this key; lines before it are used up, as the server never goes back.
    fn find<T>(&mut self, key: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, FormatError> {
        let found = self.0.iter().enumerate().find_map(|(i, line)| Some((i, line.strip_prefix(key)?)));
        let Some((index, value)) = found else { return Ok(None) };
        let parsed = parse(value).ok_or_else(|| bad(&format!("{key}{value}")))?;
        self.0.drain(..=index);
        Ok(Some(parsed))
    }

    fn need<T>(&mut self, key: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, FormatError> {
        self.find(key, parse)?.ok_or_else(|| bad(&format!("there is no line '{}'", key.trim_end())))
    }
}

fn bad(detail: &str) -> FormatError {
    FormatError::bad_text(LABEL_FILE, detail)
}

fn owned(value: &str) -> Option<String> {
    Some(value.to_owned())
}

fn parse_location(value: &str) -> Option<(Lsn, SegmentName)> {
    let (lsn, rest) = value.split_once(' ')?;
    let name = rest.trim_ascii().strip_prefix("(file ")?.strip_suffix(')')?;
    Some((Lsn::parse(lsn).ok()?, SegmentName::parse(name).ok()?))
}

fn parse_method(value: &str) -> Option<BackupMethod> {
    match value.trim_ascii() {
        "streamed" => Some(BackupMethod::Streamed),
        "pg_start_backup" => Some(BackupMethod::Exclusive),
        _ => None,
    }
}

fn parse_source(value: &str) -> Option<BackupSource> {
    match value.trim_ascii() {
        "primary" | "master" => Some(BackupSource::Primary),
        "standby" => Some(BackupSource::Standby),
        _ => None,
    }
}

fn parse_timeline(value: &str) -> Option<TimelineId> {
    let digits = value.trim_ascii();
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if plain { digits.parse().ok().map(TimelineId) } else { None }
}

/// One line of `tablespace_map`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceMapEntry {
    /// Oid of the tablespace: the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where the link points; bytes, since a path need not be UTF-8.
    pub path: Vec<u8>,
}

/// Parses `tablespace_map`: lines of oid, one space, path, in which a backslash protects a line break and, from 14
/// on, another backslash.
///
/// # Errors
/// [`FormatError::BadText`] for a line the server would refuse, or an end in the middle of one.
pub fn parse_tablespace_map(bytes: &[u8], version: Version) -> Result<Vec<TablespaceMapEntry>, FormatError> {
    let mut entries = Vec::new();
    let mut line = Vec::new();
    let mut rest = bytes;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'\\' if version.facts().map_escapes_backslash => {
                let (protected, after) = rest.split_first().ok_or_else(|| bad_map_line(&line))?;
                line.push(*protected);
                rest = after;
            }
            b'\\' => {
                let protected = rest.first().copied().filter(|b| is_line_break(*b));
                line.push(protected.unwrap_or(b'\\'));
                rest = rest.get(usize::from(protected.is_some())..).unwrap_or_default();
            }
            // An empty line is the second half of a line end of two bytes.
            byte if is_line_break(*byte) && line.is_empty() => {}
            byte if is_line_break(*byte) => {
                entries.push(parse_map_line(&line)?);
                line.clear();
            }
            byte => line.push(*byte),
        }
    }
    if line.is_empty() { Ok(entries) } else { Err(bad_map_line(&line)) }
}

/// The content of `tablespace_map`, as the server of that version writes it. 13 cannot express a path with a
/// backslash before a line break or at its end.
#[must_use]
pub fn format_tablespace_map(entries: &[TablespaceMapEntry], version: Version) -> Vec<u8> {
    let escapes_backslash = version.facts().map_escapes_backslash;
    let mut out = Vec::new();
    for entry in entries {
        out.extend_from_slice(entry.oid.to_string().as_bytes());
        out.push(b' ');
        for byte in entry.path.iter().copied() {
            if is_line_break(byte) || byte == b'\\' && escapes_backslash {
                out.push(b'\\');
            }
            out.push(byte);
        }
        out.push(b'\n');
    }
    out
}

fn is_line_break(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

fn parse_map_line(line: &[u8]) -> Result<TablespaceMapEntry, FormatError> {
    let space = line.iter().position(|b| *b == b' ').ok_or_else(|| bad_map_line(line))?;
    let (oid, path) = line.split_at(space);
    let digits = std::str::from_utf8(oid).ok().filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
    match (digits.and_then(|d| d.parse().ok()), path.get(1..)) {
        (Some(oid), Some(path)) if oid != 0 && !path.is_empty() => Ok(TablespaceMapEntry { oid, path: path.to_vec() }),
        _ => Err(bad_map_line(line)),
    }
}

fn bad_map_line(line: &[u8]) -> FormatError {
    FormatError::bad_text("tablespace map line", &String::from_utf8_lossy(line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAMPLE: &str = "START WAL LOCATION: 16/B3000028 (file 0000000300000016000000B3)\n\
        CHECKPOINT LOCATION: 16/B3000060\nBACKUP METHOD: streamed\nBACKUP FROM: standby\n\
        START TIME: 2024-05-01 10:00:00 UTC\nLABEL: nightly: a label\nSTART TIMELINE: 3\n";

    fn sample() -> BackupLabelFile {
        BackupLabelFile::parse(SAMPLE.as_bytes()).unwrap()
    }

    #[test]
    fn a_label_file_reads_and_writes_as_the_servers() {
        let file = sample();
        assert_eq!(file.start, Lsn(0x16_B300_0028));
        assert_eq!(file.segment.to_string(), "0000000300000016000000B3");
        assert_eq!((file.timeline, file.source), (TimelineId(3), BackupSource::Standby));
        assert_eq!(file.label, "nightly: a label");
        assert_eq!(file.format(), SAMPLE);
    }

    #[test]
    fn incremental_and_history_files_keep_what_they_add() {
        let incremental = format!("{SAMPLE}INCREMENTAL FROM LSN: 16/A0000028\nINCREMENTAL FROM TLI: 2\n");
        let file = BackupLabelFile::parse(incremental.as_bytes()).unwrap();
        assert_eq!(file.incremental_from, Some((Lsn(0x16_A000_0028), TimelineId(2))));
        assert_eq!(file.format(), incremental);
        let stop = BackupStop {
            lsn: Lsn(0x16_B400_0000),
            segment: SegmentName::parse("0000000300000016000000B3").unwrap(),
            time: "2024-05-01 11:00:00 UTC".into(),
            timeline: TimelineId(3),
        };
        let file = BackupLabelFile { stop: Some(stop), ..sample() };
        assert_eq!(BackupLabelFile::parse(file.format().as_bytes()), Ok(file));
    }

    #[test]
    fn what_the_server_needs_must_be_there_and_agree() {
        let without = |part: &str| {
            let lines: Vec<_> = SAMPLE.lines().filter(|l| !l.starts_with(part)).collect();
            BackupLabelFile::parse(lines.join("\n").as_bytes())
        };
        assert!(without("START WAL").is_err());
        assert!(without("CHECKPOINT").is_err());
        assert_eq!(without("START TIMELINE").unwrap().timeline, TimelineId(3));
        for (from, to) in [
            ("TIMELINE: 3", "TIMELINE: 4"),
            ("TIMELINE: 3", "TIMELINE: x"),
            ("16/B3000028", "16-B3000028"),
            ("(file 0", "(file g"),
            ("streamed", "beamed"),
        ] {
            assert!(BackupLabelFile::parse(SAMPLE.replace(from, to).as_bytes()).is_err(), "{to}");
        }
    }

    #[test]
    fn a_label_cannot_forge_fields_before_it() {
        let forged = SAMPLE.replace("a label", "x\nCHECKPOINT LOCATION: 0/1\nSTART WAL LOCATION: 0/1");
        let file = BackupLabelFile::parse(forged.as_bytes()).unwrap();
        assert_eq!((file.checkpoint, file.start), (sample().checkpoint, sample().start));
    }

    fn paths(text: &[u8], version: Version) -> Vec<String> {
        let entries = parse_tablespace_map(text, version).unwrap();
        entries.iter().map(|e| String::from_utf8(e.path.clone()).unwrap()).collect()
    }

    #[test]
    fn tablespace_maps_unescape_as_the_server_does() {
        let text = b"16384 /plain\r\n16385 /with space\n16386  /leading\n16387 /line\\\nbreak\\\\slash\n";
        let expected = ["/plain", "/with space", " /leading", "/line\nbreak\\slash"];
        assert_eq!(paths(text, Version::V14), expected);
        assert_eq!(paths(b"16387 /line\\\nbreak\\slash\\\\\n\n", Version::V13), ["/line\nbreak\\slash\\\n"]);
        for text in ["16384", "16384 \n", " /x\n", "x /y\n", "0 /x\n", "4294967296 /x\n", "1 /x", "1 /x\\"] {
            for version in Version::ALL {
                assert!(parse_tablespace_map(text.as_bytes(), version).is_err(), "{text:?}");
            }
        }
        assert_eq!(parse_tablespace_map(b"", Version::V18), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn tablespace_maps_round_trip(
            map in proptest::collection::vec((1u32.., proptest::collection::vec(any::<u8>(), 1..20)), 0..5),
        ) {
            let entries: Vec<_> = map.into_iter().map(|(oid, path)| TablespaceMapEntry { oid, path }).collect();
            let text = format_tablespace_map(&entries, Version::V18);
            prop_assert_eq!(parse_tablespace_map(&text, Version::V18), Ok(entries));
        }

        #[test]
        fn label_files_round_trip(start: u64, checkpoint: u64, timeline: u32, label in "[^\r\n\u{fffd}]{0,60}") {
            let segment = SegmentName { timeline: TimelineId(timeline), ..sample().segment };
            let file = BackupLabelFile {
                start: Lsn(start), checkpoint: Lsn(checkpoint), timeline: TimelineId(timeline), segment, label, ..sample()
            };
            prop_assert_eq!(BackupLabelFile::parse(file.format().as_bytes()), Ok(file));
        }
    }
}
