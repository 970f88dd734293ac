//! The commit record: what `info` tells of a backup, and where its manifest is.

use super::{small, time};
use crate::FormatError;
use crate::codec::{Reader, Writer};
use crate::id::{ChunkId, SessionId};
use crate::repo::fields::{Fields, FieldsWriter, write_list};
use std::collections::BTreeMap;

const VERSION: u8 = 1;

/// Type of a backup, as asked for or as it became.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackupType {
    /// Every byte was read.
    Full,
    /// What changed since the last full was read.
    Diff,
    /// What changed since the last backup was read.
    Incr,
}

impl BackupType {
    /// The word users know.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Diff => "diff",
            Self::Incr => "incr",
        }
    }

    /// The letter that ends a label.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::Full => 'F',
            Self::Diff => 'D',
            Self::Incr => 'I',
        }
    }
}

/// A database at the time of the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseRef {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
}

/// A tablespace at the time of the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceRef {
    /// Its OID.
    pub oid: u32,
    /// Its name; its OID in digits if the backup was taken from a stopped server.
    pub name: String,
    /// Where its link pointed.
    pub destination: String,
}

/// A link, other than a tablespace's, at the time of the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkRef {
    /// Path relative to PGDATA.
    pub name: String,
    /// Where it pointed.
    pub destination: String,
}

/// The commit record of a backup. Times are seconds since the Unix epoch, sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Session that wrote the backup.
    pub session: SessionId,
    /// Generation the session started from.
    pub generation: u64,
    /// The name users know.
    pub label: String,
    /// Type.
    pub backup_type: BackupType,
    /// Label of the backup it was compared with.
    pub prior: Option<String>,
    /// Labels of the backups that pgBackRest's rules make it depend on: the full, then diffs and incrs up to `prior`.
    pub reference: Vec<String>,
    /// Entry of the stanza's history.
    pub history_id: u32,
    /// PostgreSQL major.
    pub version: u32,
    /// System identifier.
    pub system_identifier: u64,
    /// Timeline at the start.
    pub timeline: u32,
    /// When it began and ended.
    pub start: i64,
    /// When it ended.
    pub stop: i64,
    /// First and last LSN needed to make it consistent; `None` for a backup of a stopped server.
    pub lsn: Option<(u64, u64)>,
    /// First and last WAL segment needed.
    pub wal: Option<(String, String)>,
    /// Bytes of a WAL segment.
    pub wal_segment_size: u64,
    /// Bytes of all files.
    pub size: u64,
    /// Bytes of the files that were read and found changed.
    pub delta: u64,
    /// Bytes stored of all chunks it uses.
    pub repository_size: u64,
    /// Bytes it added to the repository.
    pub repository_delta: u64,
    /// The chunks whose plaintexts, joined, are the manifest root.
    pub manifest: Vec<ChunkId>,
    /// Key-value notes.
    pub annotations: BTreeMap<String, String>,
    /// Whether page checksums were verified.
    pub page_checksums: bool,
    /// Files with pages that failed their checksum.
    pub error_list: Vec<String>,
    /// Databases.
    pub databases: Vec<DatabaseRef>,
    /// Tablespaces.
    pub tablespaces: Vec<TablespaceRef>,
    /// Links.
    pub links: Vec<LinkRef>,
    /// Version of the program that wrote it.
    pub program: String,
    /// Whether the server was running.
    pub online: bool,
    /// When copying began, after the walk: a file changed shortly before may have changed again without showing it. Where
    /// WAL summaries spared reading, or files came from a standby, when the backup was asked for: what was not read, and what
    /// the standby had not got yet, is as it was at its start.
    /// Nanoseconds since the Unix epoch.
    pub copy_start_nanos: u64,
    /// Whether the segments of `wal` are among its files, so that it becomes consistent without the archive.
    pub keeps_wal: bool,
}

impl Commit {
    /// True if any page failed its checksum.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        !self.error_list.is_empty()
    }

    /// Name of the WAL archive the backup needs.
    #[must_use]
    pub fn archive_id(&self) -> String {
        format!("{}-{}", self.version, self.history_id)
    }

    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let texts = |w: &mut Writer, list: &[String]| {
            write_list(w, list.iter(), |w, t| {
                w.text(t);
            })
        };
        let mut w = FieldsWriter::new(VERSION);
        w.field(1, |w| self.session.write(w)).int(3, self.generation).text(5, &self.label);
        w.int(7, u64::from(u32::from(self.backup_type.letter())));
        w.maybe(8, self.prior.as_ref(), |w, p| {
            w.bytes(p.as_bytes());
        });
        w.field(10, |w| texts(w, &self.reference));
        w.int(11, self.history_id.into()).int(13, self.version.into()).int(15, self.system_identifier);
        w.int(17, self.timeline.into()).int(19, self.start.max(0) as u64).int(21, self.stop.max(0) as u64);
        w.maybe(23, self.lsn, |w, (start, stop)| {
            w.u64(start).u64(stop);
        });
        w.maybe(25, self.wal.as_ref(), |w, (start, stop)| {
            w.text(start).text(stop);
        });
        w.int(27, self.wal_segment_size).int(29, self.size).int(30, self.delta);
        w.int(32, self.repository_size).int(34, self.repository_delta);
        w.field(35, |w| write_list(w, self.manifest.iter(), |w, id| id.write(w)));
        w.field(36, |w| {
            write_list(w, self.annotations.iter(), |w, (k, v)| {
                w.text(k).text(v);
            })
        });
        w.int(38, self.page_checksums.into());
        w.field(40, |w| texts(w, &self.error_list));
        w.field(42, |w| {
            write_list(w, self.databases.iter(), |w, d| {
                w.varint(d.oid.into()).text(&d.name);
            })
        });
        w.field(43, |w| {
            write_list(w, self.tablespaces.iter(), |w, t| {
                w.varint(t.oid.into()).text(&t.name).text(&t.destination);
            });
        });
        w.field(45, |w| {
            write_list(w, self.links.iter(), |w, l| {
                w.text(&l.name).text(&l.destination);
            })
        });
        w.text(46, &self.program).int(47, self.online.into()).int(48, self.copy_start_nanos);
        w.maybe(50, self.keeps_wal.then_some(1), |w, yes| {
            w.varint(yes);
        });
        w.finish()
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`FormatError`] naming the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let known = [1, 3, 5, 7, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 35, 43, 45, 47];
        let f = Fields::parse(bytes, VERSION, &known, "commit record")?;
        let text = |r: &mut Reader<'_>| Ok(r.text("text")?.to_owned());
        let oid = |r: &mut Reader<'_>| Ok::<_, FormatError>(r.varint_max(u32::MAX.into(), "oid")? as u32);
        let letter = f.int(7)?;
        let backup_type = [BackupType::Full, BackupType::Diff, BackupType::Incr]
            .into_iter()
            .find(|t| u64::from(u32::from(t.letter())) == letter)
            .ok_or(FormatError::OutOfRange { offset: 0, what: "backup type", found: letter })?;
        let lsn = match f.get(23) {
            Some(mut r) => {
                let lsn = (r.u64("start LSN")?, r.u64("stop LSN")?);
                r.finish("LSN range")?;
                Some(lsn)
            }
            None => None,
        };
        let wal = match f.get(25) {
            Some(mut r) => {
                let wal = (text(&mut r)?, text(&mut r)?);
                r.finish("WAL range")?;
                Some(wal)
            }
            None => None,
        };
        Ok(Self {
            session: super::session(&f, 1)?,
            generation: f.int(3)?,
            label: f.text(5)?,
            backup_type,
            prior: f.text_maybe(8)?,
            reference: f.list(10, 1, text)?,
            history_id: small(f.int(11)?, "history id")?,
            version: small(f.int(13)?, "PostgreSQL version")?,
            system_identifier: f.int(15)?,
            timeline: small(f.int(17)?, "timeline")?,
            start: time(f.int(19)?)?,
            stop: time(f.int(21)?)?,
            lsn,
            wal,
            wal_segment_size: f.int(27)?,
            size: f.int(29)?,
            delta: f.int_or(30, 0)?,
            repository_size: f.int_or(32, 0)?,
            repository_delta: f.int_or(34, 0)?,
            manifest: f.list(35, ChunkId::LEN, ChunkId::read)?,
            annotations: f.list(36, 2, |r| Ok((text(r)?, text(r)?)))?.into_iter().collect(),
            page_checksums: f.int_or(38, 0)? != 0,
            error_list: f.list(40, 1, text)?,
            databases: f.list(42, 2, |r| Ok(DatabaseRef { oid: oid(r)?, name: text(r)? }))?,
            tablespaces: f
                .list(43, 3, |r| Ok(TablespaceRef { oid: oid(r)?, name: text(r)?, destination: text(r)? }))?,
            links: f.list(45, 2, |r| Ok(LinkRef { name: text(r)?, destination: text(r)? }))?,
            program: f.text_maybe(46)?.unwrap_or_default(),
            online: f.int(47)? != 0,
            copy_start_nanos: f.int_or(48, 0)?,
            keeps_wal: f.int_or(50, 0)? != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let commit = Commit {
            session: SessionId([1; 16]),
            generation: 2,
            label: "20260101-000000F_20260102-000000I".into(),
            backup_type: BackupType::Incr,
            prior: Some("20260101-000000F".into()),
            reference: vec!["20260101-000000F".into()],
            history_id: 1,
            version: 15,
            system_identifier: 7_000_000_000_000_000_000,
            timeline: 1,
            start: 10,
            stop: 20,
            lsn: Some((1, 2)),
            wal: Some(("a".into(), "b".into())),
            wal_segment_size: 16 << 20,
            size: 100,
            delta: 50,
            repository_size: 30,
            repository_delta: 20,
            manifest: vec![ChunkId([2; 32])],
            annotations: [("k".to_owned(), "v".to_owned())].into(),
            page_checksums: true,
            error_list: vec!["base/1/2".into()],
            databases: vec![DatabaseRef { oid: 5, name: "postgres".into() }],
            tablespaces: vec![TablespaceRef { oid: 16400, name: "ts".into(), destination: "/ts".into() }],
            links: vec![LinkRef { name: "pg_wal".into(), destination: "/wal".into() }],
            program: "0.1.0".into(),
            online: true,
            copy_start_nanos: 1 << 60,
            keeps_wal: true,
        };
        assert_eq!(Commit::decode(&commit.encode()), Ok(commit.clone()));
        let bare = Commit { prior: None, lsn: None, wal: None, ..commit };
        assert_eq!(Commit::decode(&bare.encode()), Ok(bare));
    }
}
