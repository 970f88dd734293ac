//! Access traces: what servers read of a stanza's backups when they were started on clones.
//!
//! Nothing depends on them: a trace that is lost or damaged costs the next clone some waiting. A stanza keeps the newest
//! [`KEPT`]; whoever stores one deletes the others and the damaged ones, and two that do so at once delete the same. Who
//! only reads deletes nothing.

use super::{Repository, put_new};
use crate::chunk::{Decoder, Encoder};
use crate::crypto::{Scope, SessionSealer};
use crate::store::Depth;
use crate::{Error, Kind, Result};
use pgkeep_formats::id::TraceId;
use pgkeep_formats::repo::chunk::Encoding;
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::Trace;
use pgkeep_formats::repo::wal::{Frame, FrameEncoding, decode_frames, encode_frames};
use std::sync::Arc;
use std::time::Duration;

/// Traces of a stanza that are kept: servers on clones are started for one thing today and for another tomorrow.
const KEPT: usize = 3;
/// Traces that are looked at for as many that can be read, and that there may be where none can be deleted.
const LOOKED_AT: usize = 16;
/// A name that is dated further ahead is of a clock that was wrong: it would be the newest for ever.
const AHEAD_MAX: Duration = Duration::from_secs(24 * 3600);
/// Most bytes of a trace, sealed and decoded; the largest that is written has some 100 KiB.
const BYTES_MAX: u64 = 4 << 20;
/// zstd's level.
const LEVEL: i32 = 3;

impl Repository {
    /// Stores a trace at this time since the Unix epoch, and deletes those that are damaged or not among the newest any
    /// more. Answers its name; `replaces` is one that it has all of, and is deleted. Where nothing can be deleted they stay, and once
    /// there are many no more come.
    ///
    /// # Errors
    /// `FeatureNotSupported` if this program must not write to the repository; `FileMissing` if it has no such stanza;
    /// what the store or the cipher said.
    pub fn put_trace(&self, stanza: &str, now: Duration, trace: &Trace, replaces: Option<&str>) -> Result<String> {
        self.check_writable()?;
        self.refuse_trace(stanza)?;
        let plain = trace.encode();
        let plain_len = u32::try_from(plain.len()).ok().filter(|len| u64::from(*len) <= BYTES_MAX);
        let plain_len = plain_len.ok_or_else(|| {
            Error::refused(Kind::OptionInvalidValue, format!("a trace of {} bytes is too long to be kept", plain.len()))
        })?;
        let mut encoder = Encoder::new(LEVEL)?;
        let (encoding, bytes) = encoder.encode(&plain)?;
        let encoding = if encoding == Encoding::Zstd { FrameEncoding::Zstd } else { FrameEncoding::Raw };
        let payload = encode_frames(&[Frame { encoding, plain_len, bytes }]);

        let sealer = SessionSealer::new(Arc::clone(self.keyring()))?;
        let mut id = [0; TraceId::LEN];
        let (time, random) = id.split_at_mut(8);
        time.copy_from_slice(&u64::try_from(now.as_millis()).unwrap_or(u64::MAX).to_be_bytes());
        // Whoever seals draws an id of its own, which is as random as this one has to be.
        for (to, from) in random.iter_mut().zip(sealer.session().0) {
            *to = from;
        }
        let name = layout::trace(stanza, TraceId(id));
        let object = sealer.seal_object(ObjectKind::Trace, &Scope::Stanza(stanza), &name, &[], &payload)?;
        put_new(&**self.store(), &name, &object)?;
        if let Err(e) = self.delete_traces(stanza, now, &name, replaces) {
            tracing::debug!("old traces of stanza '{stanza}' stay: {}", e.chain());
        }
        Ok(name)
    }

    /// Refuses a trace that nobody would read or remove.
    fn refuse_trace(&self, stanza: &str) -> Result<()> {
        let mut is_there = false;
        self.store().list(&layout::stanza_histories(stanza), Depth::Children, &mut |_| is_there = true)?;
        if !is_there {
            let text = format!("the repository has no stanza '{stanza}' any more");
            return Err(Error::refused(Kind::FileMissing, text));
        }
        let many = self.trace_names(stanza)?.len();
        if many >= LOOKED_AT {
            let text = format!("there are {many} traces of stanza '{stanza}', of which none could be deleted");
            return Err(Error::refused(Kind::FileWrite, text));
        }
        Ok(())
    }

    /// Deletes what is not among the newest, what `replaces` names, what is dated ahead of its time, and what is damaged;
    /// never `own`.
    fn delete_traces(&self, stanza: &str, now: Duration, own: &str, replaces: Option<&str>) -> Result<()> {
        let mut id = [0xff; TraceId::LEN];
        let (time, _) = id.split_at_mut(8);
        let last = now.saturating_add(AHEAD_MAX).as_millis();
        time.copy_from_slice(&u64::try_from(last).unwrap_or(u64::MAX).to_be_bytes());
        let last = layout::trace(stanza, TraceId(id));
        let mut kept = 0;
        for (name, size) in self.trace_names(stanza)?.iter().rev() {
            let is_old = name > &last || replaces == Some(name) || kept >= KEPT;
            if name != own && (is_old || self.is_damaged_trace(stanza, name, *size)) {
                self.store().delete(name)?;
            } else {
                kept += 1;
            }
        }
        Ok(())
    }

    /// True if nobody will ever read it: it is not what was stored. One of a later version, or of a key that is not at
    /// hand, may be of use to others.
    fn is_damaged_trace(&self, stanza: &str, name: &str, size: u64) -> bool {
        size > BYTES_MAX || self.read_trace(stanza, name).is_err_and(|e| is_damage(&e))
    }

    /// The traces of a stanza, the newest first; and why others cannot be read. Costs a list, and a small read for each.
    ///
    /// # Errors
    /// What the store said while listing.
    pub fn traces(&self, stanza: &str) -> Result<(Vec<Trace>, Vec<Error>)> {
        let (mut traces, mut problems) = (Vec::new(), Vec::new());
        for (name, size) in self.trace_names(stanza)?.iter().rev().take(LOOKED_AT) {
            if traces.len() >= KEPT {
                break;
            }
            if *size > BYTES_MAX {
                problems.push(Error::refused(Kind::Format, format!("'{name}' has {size} bytes: it is no trace")));
                continue;
            }
            match self.read_trace(stanza, name) {
                Ok(trace) => traces.push(trace),
                // Deleted since it was listed.
                Err(e) if e.is_not_found() => {}
                Err(e) => problems.push(e),
            }
        }
        Ok((traces, problems))
    }

    /// Names and sizes of a stanza's traces, the oldest first.
    fn trace_names(&self, stanza: &str) -> Result<Vec<(String, u64)>> {
        let mut names = Vec::new();
        self.store().list(&layout::traces_of(stanza), Depth::All, &mut |l| {
            // What others leave there is none of ours.
            if layout::parse_trace(stanza, &l.key).is_some() {
                names.push((l.key, l.size));
            }
        })?;
        names.sort_unstable();
        Ok(names)
    }

    /// Reads a trace.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub(crate) fn read_trace(&self, stanza: &str, name: &str) -> Result<Trace> {
        let opened = self.read_object(name, &[ObjectKind::Trace], &Scope::Stanza(stanza))?;
        let frames = decode_frames(&opened.plaintext).map_err(Error::damaged(name))?;
        let total: u64 = frames.iter().map(|f| u64::from(f.plain_len)).sum();
        if total > BYTES_MAX {
            return Err(Error::refused(Kind::Format, format!("'{name}' decodes to {total} bytes: it is no trace")));
        }
        let (mut plain, mut part, mut decoder) = (Vec::new(), Vec::new(), Decoder::new()?);
        for frame in frames {
            let encoding = match frame.encoding {
                FrameEncoding::Raw => Encoding::Raw,
                FrameEncoding::Zstd => Encoding::Zstd,
            };
            decoder
                .decode(encoding, frame.bytes, frame.plain_len as usize, &mut part)
                .map_err(|e| e.during(format!("cannot decode '{name}'")))?;
            plain.extend_from_slice(&part);
        }
        Trace::decode(&plain).map_err(Error::damaged(name))
    }
}

/// True if what was read is not what was stored.
fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), Kind::Checksum | Kind::Format)
}

#[cfg(test)]
mod tests;
