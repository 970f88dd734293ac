//! The record of a drill: a backup was recovered, started and checked, and this is what came of it.

use super::{VERSION, session, small, time};
use crate::FormatError;
use crate::codec::Reader;
use crate::id::SessionId;
use crate::repo::fields::{Fields, FieldsWriter, write_list};

/// Most bytes of a check's detail: it is for people, and a log has the rest.
pub const DETAIL_BYTES_MAX: usize = 4096;

/// What a check said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CheckResult {
    /// All is well.
    Passed = 0,
    /// Something is wrong.
    Failed = 1,
    /// It could not be done here, or was not asked for; the detail says why.
    Skipped = 2,
}

impl CheckResult {
    /// A word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// One check of a drill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrillCheck {
    /// What was checked.
    pub name: String,
    /// What came of it.
    pub result: CheckResult,
    /// How long it took, in milliseconds.
    pub millis: u64,
    /// What to tell of it; may be empty.
    pub detail: String,
}

/// The record of a drill. Times are seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drill {
    /// Session of the backup.
    pub session: SessionId,
    /// Its label.
    pub label: String,
    /// When the drill began.
    pub start: i64,
    /// When it ended.
    pub stop: i64,
    /// Whether no check failed.
    pub passed: bool,
    /// What was checked, in that order.
    pub checks: Vec<DrillCheck>,
    /// Type of recovery, as `--type` has it.
    pub recovery_type: String,
    /// Its target; empty if it has none.
    pub target: String,
    /// PostgreSQL major.
    pub version: u32,
    /// Milliseconds from the begin until the server noted in its log that a consistent recovery state was reached; 0 if it
    /// did not.
    pub consistent_millis: u64,
    /// Milliseconds from the begin until the first query was answered; 0 if none was.
    pub query_millis: u64,
    /// Milliseconds from the begin until recovery had ended; 0 if it did not.
    pub recovered_millis: u64,
    /// The last LSN that was replayed; 0 if none is known.
    pub lsn: u64,
    /// Host and process, for messages.
    pub host: String,
    /// Version of the program.
    pub program: String,
}

impl Drill {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = FieldsWriter::new(VERSION);
        w.field(1, |w| self.session.write(w)).text(3, &self.label);
        w.int(5, self.start.max(0) as u64).int(7, self.stop.max(0) as u64).int(9, self.passed.into());
        w.field(11, |w| {
            write_list(w, self.checks.iter(), |w, c| {
                w.text(&c.name).u8(c.result as u8).varint(c.millis).text(&c.detail);
            });
        });
        w.text(12, &self.recovery_type).text(14, &self.target).int(16, self.version.into());
        w.int(18, self.consistent_millis).int(20, self.query_millis).int(22, self.recovered_millis);
        w.int(24, self.lsn).text(26, &self.host).text(28, &self.program);
        w.finish()
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`FormatError`] naming the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let f = Fields::parse(bytes, VERSION, &[1, 3, 5, 7, 9, 11], "drill record")?;
        let text = |tag| f.text_maybe(tag).map(Option::unwrap_or_default);
        let passed = match f.int(9)? {
            0 => false,
            1 => true,
            found => return Err(FormatError::OutOfRange { offset: 0, what: "outcome of a drill", found }),
        };
        Ok(Self {
            session: session(&f, 1)?,
            label: f.text(3)?,
            start: time(f.int(5)?)?,
            stop: time(f.int(7)?)?,
            passed,
            checks: f.list(11, 4, check)?,
            recovery_type: text(12)?,
            target: text(14)?,
            version: small(f.int_or(16, 0)?, "PostgreSQL version")?,
            consistent_millis: f.int_or(18, 0)?,
            query_millis: f.int_or(20, 0)?,
            recovered_millis: f.int_or(22, 0)?,
            lsn: f.int_or(24, 0)?,
            host: text(26)?,
            program: text(28)?,
        })
    }
}

fn check(r: &mut Reader<'_>) -> Result<DrillCheck, FormatError> {
    let name = r.text("name of a check")?.to_owned();
    let offset = r.offset();
    let result = match r.u8("result of a check")? {
        0 => CheckResult::Passed,
        1 => CheckResult::Failed,
        2 => CheckResult::Skipped,
        found => return Err(FormatError::OutOfRange { offset, what: "result of a check", found: found.into() }),
    };
    Ok(DrillCheck {
        name,
        result,
        millis: r.varint("time of a check")?,
        detail: r.text("detail of a check")?.to_owned(),
    })
}
