//! An access trace: what a server read of a backup when it was started on a clone, in order of first access, so that the
//! next clone has it fetched before it is asked for.

use super::{VERSION, session, time};
use crate::FormatError;
use crate::codec::Reader;
use crate::id::SessionId;
use crate::repo::fields::{Fields, FieldsWriter, write_list};

/// Largest region; no read of a backup is larger.
const UNIT_MAX: u64 = 1 << 30;

/// Most paths, and most regions of all runs: 4 GiB in regions of 256 KiB.
const REGIONS_MAX: u64 = 16 << 10;

/// Some regions of a file that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceRun {
    /// Which of [`Trace::paths`].
    pub path: u32,
    /// The first region, in units from the file's begin.
    pub first: u64,
    /// How many; never 0.
    pub count: u64,
}

/// What a server read, in order of first access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Session of the backup that the clone was of.
    pub session: SessionId,
    /// Bytes of a region; never 0.
    pub unit: u32,
    /// Paths of files in the backup.
    pub paths: Vec<String>,
    /// What was read of them.
    pub runs: Vec<TraceRun>,
    /// Seconds since the Unix epoch.
    pub created: i64,
    /// Host and process, for messages.
    pub host: String,
    /// Version of the program.
    pub program: String,
}

impl Trace {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = FieldsWriter::new(VERSION);
        w.field(1, |w| self.session.write(w)).int(3, self.unit.into());
        w.field(5, |w| {
            write_list(w, self.paths.iter(), |w, path| {
                w.text(path);
            });
        });
        w.field(7, |w| {
            write_list(w, self.runs.iter(), |w, run| {
                w.varint(run.path.into()).varint(run.first).varint(run.count);
            });
        });
        w.int(8, self.created.max(0) as u64).text(10, &self.host).text(12, &self.program);
        w.finish()
    }

    /// Reads a record. Every run is of a path that is there, and ends below 2^64 bytes; no path is empty, and there are no
    /// more than 16 384 paths, and regions of all runs.
    ///
    /// # Errors
    /// [`FormatError`] naming the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let f = Fields::parse(bytes, VERSION, &[1, 3, 5, 7], "trace record")?;
        let out_of_range = |what, found| FormatError::OutOfRange { offset: 0, what, found };
        let unit = f.int(3)?;
        let unit = match u32::try_from(unit) {
            Ok(small) if small > 0 && unit <= UNIT_MAX => small,
            _ => return Err(out_of_range("bytes of a region", unit)),
        };
        let mut number = 0;
        let paths = f.list(5, 2, |r| {
            let (offset, path) = (r.offset(), r.text("path of a trace")?);
            number += 1;
            if path.is_empty() || number > REGIONS_MAX {
                return Err(FormatError::OutOfRange { offset, what: "paths of a trace", found: number });
            }
            Ok(path.to_owned())
        })?;
        let mut regions = 0u64;
        let runs = f.list(7, 3, |r| {
            let offset = r.offset();
            let run = run(r, paths.len() as u64, unit.into())?;
            regions = regions.saturating_add(run.count);
            if regions > REGIONS_MAX {
                return Err(FormatError::OutOfRange { offset, what: "regions of a trace", found: regions });
            }
            Ok(run)
        })?;
        let text = |tag| f.text_maybe(tag).map(Option::unwrap_or_default);
        Ok(Self {
            session: session(&f, 1)?,
            unit,
            paths,
            runs,
            created: time(f.int_or(8, 0)?)?,
            host: text(10)?,
            program: text(12)?,
        })
    }
}

fn run(r: &mut Reader<'_>, paths: u64, unit: u64) -> Result<TraceRun, FormatError> {
    let offset = r.offset();
    let out_of_range = |what, found| FormatError::OutOfRange { offset, what, found };
    let path = r.varint("path of a run")?;
    let path = u32::try_from(path).ok().filter(|_| path < paths).ok_or(out_of_range("path of a run", path))?;
    let first = r.varint("first region of a run")?;
    let count = r.varint("regions of a run")?;
    let end = first.checked_add(count).and_then(|end| end.checked_mul(unit));
    if count == 0 || end.is_none() {
        return Err(out_of_range("regions of a run", count));
    }
    Ok(TraceRun { path, first, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        let run = |path, first, count| TraceRun { path, first, count };
        Trace {
            session: SessionId([3; 16]),
            unit: 1 << 18,
            paths: vec!["base/5/1259".into(), "base/5/2662".into()],
            runs: vec![run(1, 0, 1), run(0, 7, 3), run(1, 1, 1)],
            created: 77,
            host: "h:1".into(),
            program: "0.1.0".into(),
        }
    }

    #[test]
    fn a_trace_round_trips() {
        assert_eq!(Trace::decode(&trace().encode()), Ok(trace()));
        let empty = Trace { paths: Vec::new(), runs: Vec::new(), ..trace() };
        assert_eq!(Trace::decode(&empty.encode()), Ok(empty));
    }

    #[test]
    fn runs_of_no_file_and_behind_all_bytes_are_refused() {
        let with = |path, first, count| Trace { runs: vec![TraceRun { path, first, count }], ..trace() };
        for bad in [with(2, 0, 1), with(0, 0, 0), with(0, u64::MAX, 1), with(0, u64::MAX >> 18, 1)] {
            let refused = Trace::decode(&bad.encode());
            assert!(matches!(refused, Err(FormatError::OutOfRange { .. })), "{refused:?}");
        }
        assert!(Trace::decode(&with(0, (u64::MAX >> 18) - 1, 1).encode()).is_ok());
        assert!(Trace::decode(&with(0, 5, REGIONS_MAX).encode()).is_ok());
        let many = TraceRun { path: 0, first: 0, count: REGIONS_MAX };
        for bad in [
            with(0, 5, REGIONS_MAX + 1),
            Trace { runs: vec![many, TraceRun { count: 1, ..many }], ..trace() },
            Trace { paths: vec![String::new(); 3], ..trace() },
            Trace { paths: vec!["a".to_owned(); REGIONS_MAX as usize + 1], ..trace() },
        ] {
            assert!(matches!(Trace::decode(&bad.encode()), Err(FormatError::OutOfRange { .. })));
        }
        for unit in [0, u32::MAX] {
            assert!(Trace::decode(&Trace { unit, ..trace() }.encode()).is_err());
        }
    }
}
