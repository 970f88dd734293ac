//! Small records that steer a repository: stanza histories, sessions, commits, fences, generations, notes, markers, drills,
//! traces.
//! FORMAT.md, "Records".
//!
//! All are tagged fields (see [`super::fields`]), sealed in envelopes of their own kind.

mod commit;
mod drill;
mod later;
mod trace;

pub use commit::{BackupType, Commit, DatabaseRef, LinkRef, TablespaceRef};
pub use drill::{CheckResult, DETAIL_BYTES_MAX, Drill, DrillCheck};
pub use later::{Expired, Heartbeat, Note, PINNED_FOR_EVER, Pin};
pub use trace::{Trace, TraceRun};

use crate::FormatError;
use crate::id::{PackId, SessionId};
use crate::repo::fields::{Fields, FieldsWriter, write_list};

const VERSION: u8 = 1;

/// One cluster a stanza has had: pgBackRest's "db history".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StanzaHistory {
    /// Number of the entry, from 1.
    pub id: u32,
    /// PostgreSQL major.
    pub version: u32,
    /// System identifier.
    pub system_identifier: u64,
    /// Catalog version number.
    pub catalog_version: u32,
    /// `pg_control` version number.
    pub control_version: u32,
    /// Seconds since the Unix epoch.
    pub created: i64,
}

impl StanzaHistory {
    /// Name of the WAL archive of this entry: `<major>-<id>`.
    #[must_use]
    pub fn archive_id(&self) -> String {
        format!("{}-{}", self.version, self.id)
    }

    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = FieldsWriter::new(VERSION);
        w.int(1, self.id.into()).int(3, self.version.into()).int(5, self.system_identifier);
        w.int(7, self.catalog_version.into()).int(9, self.control_version.into());
        w.int(11, self.created.max(0) as u64);
        w.finish()
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`FormatError`] naming the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let f = Fields::parse(bytes, VERSION, &[1, 3, 5, 7, 9, 11], "stanza history")?;
        Ok(Self {
            id: small(f.int(1)?, "history id")?,
            version: small(f.int(3)?, "PostgreSQL version")?,
            system_identifier: f.int(5)?,
            catalog_version: small(f.int(7)?, "catalog version")?,
            control_version: small(f.int(9)?, "pg_control version")?,
            created: time(f.int(11)?)?,
        })
    }
}

/// What a writer session declares before it writes anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOpen {
    /// Stanza it writes for.
    pub stanza: String,
    /// Generation it started from.
    pub generation: u64,
    /// What it does: "backup", "rewrite", ...
    pub purpose: String,
    /// Host and process, for messages.
    pub host: String,
    /// Seconds since the Unix epoch.
    pub started: i64,
    /// The process, for others on its kernel; empty if it is not told.
    pub process: String,
}

impl SessionOpen {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = FieldsWriter::new(VERSION);
        w.text(1, &self.stanza).int(3, self.generation).text(5, &self.purpose).text(6, &self.host);
        w.int(8, self.started.max(0) as u64);
        w.maybe(10, Some(&self.process).filter(|p| !p.is_empty()), |w, process| {
            w.bytes(process.as_bytes());
        });
        w.finish()
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`FormatError`] naming the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let f = Fields::parse(bytes, VERSION, &[1, 3, 5], "session record")?;
        Ok(Self {
            stanza: f.text(1)?,
            generation: f.int(3)?,
            purpose: f.text(5)?,
            host: f.text_maybe(6)?.unwrap_or_default(),
            started: time(f.int_or(8, 0)?)?,
            process: f.text_maybe(10)?.unwrap_or_default(),
        })
    }
}

/// Ends a session that did not commit: stands where its commit record would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// Session that created it, or a random id of the run that did.
    pub by: SessionId,
    /// Why, for messages.
    pub reason: String,
    /// Seconds since the Unix epoch.
    pub created: i64,
}

impl Fence {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = FieldsWriter::new(VERSION);
        w.field(1, |w| self.by.write(w)).text(2, &self.reason).int(4, self.created.max(0) as u64);
        w.finish()
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`FormatError`] naming the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let f = Fields::parse(bytes, VERSION, &[1], "fence or expired marker")?;
        Ok(Self { by: session(&f, 1)?, reason: f.text_maybe(2)?.unwrap_or_default(), created: time(f.int_or(4, 0)?)? })
    }
}

/// A pack that may be deleted once no session can reach it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condemned {
    /// The pack.
    pub pack: PackId,
    /// Generation that first condemned it.
    pub since: u64,
}

/// One decision of the garbage collector.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Generation {
    /// Number, from 0; generation 0 comes with the repository.
    pub number: u64,
    /// Sessions that started from a generation below this one are visible only if they are in the catalogue.
    pub boundary: u64,
    /// Sessions whose commits this generation saw.
    pub catalogue: Vec<SessionId>,
    /// Packs no writer may reference any more.
    pub condemned: Vec<Condemned>,
}

impl Generation {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = FieldsWriter::new(VERSION);
        w.int(1, self.number).int(3, self.boundary);
        w.field(5, |w| write_list(w, self.catalogue.iter(), |w, s| s.write(w)));
        w.field(7, |w| {
            write_list(w, self.condemned.iter(), |w, c| {
                w.bytes(&c.pack.0).varint(c.since);
            })
        });
        w.finish()
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`FormatError`] naming the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let f = Fields::parse(bytes, VERSION, &[1, 3, 5, 7], "generation record")?;
        Ok(Self {
            number: f.int(1)?,
            boundary: f.int(3)?,
            catalogue: f.list(5, SessionId::LEN, SessionId::read)?,
            condemned: f.list(7, PackId::LEN + 1, |r| {
                Ok(Condemned { pack: PackId::read(r)?, since: r.varint("condemned since")? })
            })?,
        })
    }
}

fn session(fields: &Fields<'_>, tag: u64) -> Result<SessionId, FormatError> {
    let mut r = fields.need(tag)?;
    let id = SessionId::read(&mut r)?;
    r.finish("session id")?;
    Ok(id)
}

fn small(value: u64, what: &'static str) -> Result<u32, FormatError> {
    u32::try_from(value).map_err(|_| FormatError::OutOfRange { offset: 0, what, found: value })
}

fn time(value: u64) -> Result<i64, FormatError> {
    i64::try_from(value).map_err(|_| FormatError::OutOfRange { offset: 0, what: "time", found: value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_round_trip() {
        let h = StanzaHistory {
            id: 2,
            version: 17,
            system_identifier: u64::MAX,
            catalog_version: 202_406_281,
            control_version: 1300,
            created: 5,
        };
        assert_eq!(StanzaHistory::decode(&h.encode()), Ok(h));
        let s = SessionOpen {
            stanza: "demo".into(),
            generation: 4,
            purpose: "backup".into(),
            host: "db1:77".into(),
            started: 9,
            process: "boot pid:[1] 7 9".into(),
        };
        assert_eq!(SessionOpen::decode(&s.encode()), Ok(s));
        let f = Fence { by: SessionId([1; 16]), reason: "silent".into(), created: 3 };
        assert_eq!(Fence::decode(&f.encode()), Ok(f));
        let g = Generation {
            number: 3,
            boundary: 2,
            catalogue: vec![SessionId([4; 16])],
            condemned: vec![Condemned { pack: PackId([5; 32]), since: 3 }],
        };
        assert_eq!(Generation::decode(&g.encode()), Ok(g));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 1..100)) {
            bytes[0] = VERSION;
            let _ = (StanzaHistory::decode(&bytes), SessionOpen::decode(&bytes), Fence::decode(&bytes));
            let _ = (Generation::decode(&bytes), Commit::decode(&bytes), Drill::decode(&bytes));
            let _ = Trace::decode(&bytes);
        }
    }
}
