//! What is recorded of a backup after its commit, and of a session before it: notes, expired markers, heartbeats.
//! Times are seconds since the Unix epoch.

use super::{Fence, VERSION, time};
use crate::FormatError;
use crate::repo::fields::{Fields, FieldsWriter, write_list};
use std::collections::BTreeMap;

/// The end of a pin that has none.
pub const PINNED_FOR_EVER: i64 = i64::MAX;

/// What users have noted of a backup since its commit. The newest note of a backup holds all there is; it takes the place of
/// the commit's annotations and of every earlier note.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Note {
    /// All key-value notes of the backup.
    pub annotations: BTreeMap<String, String>,
    /// When it was made.
    pub created: i64,
    /// Until when retention must not take the backup; [`PINNED_FOR_EVER`] has no end.
    pub pinned_until: Option<i64>,
}

impl Note {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = FieldsWriter::new(VERSION);
        w.field(1, |w| {
            write_list(w, self.annotations.iter(), |w, (k, v)| {
                w.text(k).text(v);
            })
        });
        w.int(2, self.created.max(0) as u64);
        // A program that overlooks a pin would take the backup away.
        if let Some(until) = self.pinned_until {
            w.int(3, until.max(0) as u64);
        }
        w.finish()
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`FormatError`] naming the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let f = Fields::parse(bytes, VERSION, &[1, 3], "note")?;
        let pinned_until = match f.get(3) {
            Some(_) => Some(time(f.int(3)?)?),
            None => None,
        };
        let pair = |r: &mut crate::codec::Reader<'_>| Ok((r.text("key")?.to_owned(), r.text("value")?.to_owned()));
        Ok(Self {
            annotations: f.list(1, 2, pair)?.into_iter().collect(),
            created: time(f.int_or(2, 0)?)?,
            pinned_until,
        })
    }
}

/// Marks a backup as expired, in the fields of a fence: who, why and when. That it exists is what counts.
pub type Expired = Fence;

/// A sign of life of a session. Those of older programs are empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heartbeat {
    /// The archive, `<version>-<history id>`, and the first segment of it that the backup will need.
    pub wal: Option<(String, String)>,
    /// The backup needs no WAL: its server is stopped.
    pub without_wal: bool,
}

impl Heartbeat {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = FieldsWriter::new(VERSION);
        w.maybe(2, self.wal.as_ref(), |w, (archive_id, first)| {
            w.text(archive_id).text(first);
        });
        if self.without_wal {
            w.int(4, 1);
        }
        w.finish()
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`FormatError`] naming the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let f = Fields::parse(bytes, VERSION, &[], "heartbeat")?;
        let without_wal = f.int_or(4, 0)? != 0;
        let Some(mut r) = f.get(2) else { return Ok(Self { wal: None, without_wal }) };
        let wal = (r.text("archive id")?.to_owned(), r.text("first segment")?.to_owned());
        r.finish("heartbeat")?;
        Ok(Self { wal: Some(wal), without_wal })
    }
}

/// A reader's claim on a backup: its chunks and manifest stay while this is there, though the backup expires.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pin {
    /// When it ends by itself; 0 if it does not.
    pub until: i64,
    /// Host, process and purpose, for messages.
    pub holder: String,
    /// When it was made.
    pub created: i64,
    /// What for, for messages.
    pub reason: String,
}

impl Pin {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = FieldsWriter::new(VERSION);
        w.int(1, self.until.max(0) as u64).text(2, &self.holder).int(4, self.created.max(0) as u64);
        w.text(6, &self.reason);
        w.finish()
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`FormatError`] naming the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let f = Fields::parse(bytes, VERSION, &[1], "pin")?;
        Ok(Self {
            until: time(f.int(1)?)?,
            holder: f.text_maybe(2)?.unwrap_or_default(),
            created: time(f.int_or(4, 0)?)?,
            reason: f.text_maybe(6)?.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let note = Note {
            annotations: [("a".to_owned(), "b".to_owned()), ("c".to_owned(), String::new())].into(),
            created: 7,
            pinned_until: Some(PINNED_FOR_EVER),
        };
        assert_eq!(Note::decode(&note.encode()), Ok(note.clone()));
        let free = Note { pinned_until: None, ..note };
        assert_eq!(Note::decode(&free.encode()), Ok(free));
        let beat = Heartbeat { wal: Some(("17-1".into(), "000000010000000000000005".into())), ..Heartbeat::default() };
        assert_eq!(Heartbeat::decode(&beat.encode()), Ok(beat));
        let pin = Pin { until: 9, holder: "db1:7".into(), created: 3, reason: "restore".into() };
        assert_eq!(Pin::decode(&pin.encode()), Ok(pin));
        let without = Heartbeat { without_wal: true, ..Heartbeat::default() };
        assert_eq!(Heartbeat::decode(&without.encode()), Ok(without));
        assert_eq!(Heartbeat::decode(&[]), Ok(Heartbeat::default()));
        assert_eq!(Heartbeat::decode(&Heartbeat::default().encode()), Ok(Heartbeat::default()));
    }
}
