//! Archived files: WAL segments, partial segments, backup and timeline history files.
//!
//! Owns how such a file becomes an object and comes back; which archive a file belongs to, and what the server is told,
//! is `archive`'s. Submodules: `listing` (what is there, what is missing, waiting for it), `holes` (what recovery from the
//! newest backup lacks).
//!
//! Invariants: a name maps to one content for ever, because an object is created if absent and never replaced. Nothing
//! is returned that was not authenticated and whose content hash was not computed again. No index, no lock, and no
//! list: one put, and one or two gets if the name is taken. What the store calls created is durable.
//!
//! Cost: a segment is held in memory once, and once more compressed; frames are compressed side by side on rayon's
//! threads. Layout: FORMAT.md, "Archived files".

mod holes;
mod listing;
pub(crate) mod path;
mod remove;
#[cfg(test)]
mod tests;

pub(crate) use holes::ON_ITS_WAY;
pub use holes::WalHole;
pub use listing::{WalEntry, WalGaps, WalRange};
pub use remove::{Removal, WalRemoved};

use super::Repository;
use crate::chunk::Encoder;
use crate::crypto::{CryptoError, Opened};
use crate::store::{Depth, Put, Range, StoreError};
use crate::{Error, Kind, Result};
use pgkeep_formats::FormatError;
use pgkeep_formats::repo::chunk::Encoding;
use pgkeep_formats::repo::envelope::{Domain, FIXED_LEN, Head, ObjectKind, Sealed, TAG_LEN, WRAP_LEN};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::wal::{Frame, FrameEncoding, PUBLIC_LEN, WalPublic, decode_frames, encode_frames};
use rayon::prelude::*;

/// Bytes of the file in one frame: four of them in an ordinary segment keep two to four processors equally busy, and
/// cost 0.4 % of space on WAL of pgbench and nothing on that of a load (`benches/levels.rs`).
const FRAME_BYTES: usize = 4 << 20;
/// No sealed archived file is shorter, and its head is no longer: what a first look at one reads.
const OBJECT_LEN_MIN: usize = FIXED_LEN + WRAP_LEN + PUBLIC_LEN + TAG_LEN;

/// What came of archiving a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalPut {
    /// The file is durable under its name.
    Created,
    /// The archive had a file of that name and content already.
    SameContent,
    /// The archive has a file of that name with other content, which stays as it is.
    Different,
}

/// A file's content, compressed once for all repositories it goes to.
#[derive(Debug)]
pub struct WalFile<'a> {
    content: &'a [u8],
    payload: Vec<u8>,
}

impl<'a> WalFile<'a> {
    /// What was encoded.
    pub(crate) fn content(&self) -> &'a [u8] {
        self.content
    }

    /// Compresses a file with zstd's `level`, each frame that does not become smaller left as it is. What was encoded
    /// has been decoded and compared.
    ///
    /// # Errors
    /// `Assert` if a frame does not decode to what was read; `Memory`.
    pub fn encode(content: &'a [u8], level: i32) -> Result<Self> {
        let encoded = content
            .par_chunks(FRAME_BYTES)
            .map_init(
                || None,
                |encoder, plain| {
                    let encoder = match encoder {
                        Some(encoder) => encoder,
                        none => none.insert(Encoder::for_wal(level)?),
                    };
                    encoder.encode(plain).map(|(encoding, bytes)| (encoding, bytes.to_vec()))
                },
            )
            .collect::<Result<Vec<_>>>()?;
        let frames: Vec<_> = content
            .chunks(FRAME_BYTES)
            .zip(&encoded)
            .map(|(plain, (encoding, bytes))| Frame {
                encoding: if *encoding == Encoding::Zstd { FrameEncoding::Zstd } else { FrameEncoding::Raw },
                plain_len: plain.len() as u32,
                bytes,
            })
            .collect();
        Ok(Self { content, payload: encode_frames(&frames) })
    }

    /// Bytes of the file.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.content.len() as u64
    }

    /// Bytes of the file when compressed.
    #[must_use]
    pub fn encoded_size(&self) -> u64 {
        self.payload.len() as u64
    }
}

impl Repository {
    /// Archives a file under its name, unless the name is taken. After `Created` and `SameContent` the file is durable
    /// and reads back; nothing is ever overwritten. Any thread, any host, any number of times.
    ///
    /// A taken name is settled by the content hash in the object's public part. Another hash is `Different`, without
    /// more ado: not acknowledging is always safe. An equal hash is believed only once the object has been read whole,
    /// authenticated, and its content hashed again. A role that cannot open data checks what it can: that the hash, made
    /// with a key that only roles with secrets have, is right, and that the object has the length its head says.
    ///
    /// # Errors
    /// What the store or the cipher said. The file may or may not be there afterwards; calling again settles it.
    /// `Checksum` or `Format` if the object that is there claims to be the same but is damaged.
    pub fn wal_put(&self, stanza: &str, archive_id: &str, name: &str, file: &WalFile<'_>) -> Result<WalPut> {
        self.check_writable()?;
        let key = layout::wal(stanza, archive_id, name);
        let public = WalPublic { content_hash: self.keyring.content_hash(file.content)?, size: file.size() };
        let object =
            self.keyring.seal_embedded(ObjectKind::Wal, Domain::Data, &key, &public.encode(), &file.payload)?;
        match self.store.put_if_absent(&key, &object)? {
            Put::Created => Ok(WalPut::Created),
            Put::Exists => self.wal_compare(&key, &public),
        }
    }

    fn wal_compare(&self, key: &str, ours: &WalPublic) -> Result<WalPut> {
        if wal_public(&self.wal_start(key)?).map_err(Error::damaged(key))? != *ours {
            return Ok(WalPut::Different);
        }
        let object = self.store.get(key, Range::Whole)?;
        match self.wal_open(key, &object) {
            Ok((found, _)) if found == *ours => Ok(WalPut::SameContent),
            Ok(_) => Ok(WalPut::Different),
            Err(e) if matches!(e.root(), Error::Crypto(CryptoError::RoleLacks { .. })) => {
                let sealed = Sealed::parse(&object).map_err(Error::damaged(key))?;
                let found = WalPublic::decode(sealed.head.public).map_err(Error::damaged(key))?;
                Ok(if found == *ours { WalPut::SameContent } else { WalPut::Different })
            }
            Err(e) => Err(e),
        }
    }

    /// Bytes of an object that hold its public part.
    fn wal_start(&self, key: &str) -> Result<Vec<u8>, StoreError> {
        match self.store.get(key, Range::Span { offset: 0, len: OBJECT_LEN_MIN }) {
            Err(StoreError::TooShort { .. }) => self.store.get(key, Range::Whole),
            other => other,
        }
    }

    /// Whether an archived file has this content, by the hash in its public part; none if it is certainly not there.
    ///
    /// # Errors
    /// What the store said; `Format` if the object is damaged.
    pub fn wal_has(&self, stanza: &str, archive_id: &str, name: &str, content: &[u8]) -> Result<Option<bool>> {
        let key = layout::wal(stanza, archive_id, name);
        let start = match self.wal_start(&key) {
            Ok(start) => start,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let ours = WalPublic { content_hash: self.keyring.content_hash(content)?, size: content.len() as u64 };
        Ok(Some(wal_public(&start).map_err(Error::damaged(&key))? == ours))
    }

    /// The content of an archived file; none if it is certainly not there.
    ///
    /// # Errors
    /// What the store said; `Checksum` or `Format` if the object is damaged, altered or belongs elsewhere; `Crypto` if
    /// the role held cannot open data.
    pub fn wal_get(&self, stanza: &str, archive_id: &str, name: &str) -> Result<Option<Vec<u8>>> {
        let key = layout::wal(stanza, archive_id, name);
        match self.store.get(&key, Range::Whole) {
            Ok(object) => Ok(Some(self.wal_open(&key, &object)?.1)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Authenticates an object and decodes it.
    fn wal_open(&self, key: &str, object: &[u8]) -> Result<(WalPublic, Vec<u8>)> {
        let opened = self.wal_unseal(key, object)?;
        let public = WalPublic::decode(&opened.public).map_err(Error::damaged(key))?;
        let content = decode_content(key, &public, &opened.plaintext)?;
        if self.keyring.content_hash(&content)? != public.content_hash {
            return Err(Error::refused(Kind::Checksum, format!("'{key}' does not have the content its hash says")));
        }
        Ok((public, content))
    }

    /// Opens with the key in the object's head or, once its epoch has been retired, with a later wrap of that key.
    fn wal_unseal(&self, key: &str, object: &[u8]) -> Result<Opened> {
        // What is wrong may be a key in it, which has no name of its own.
        let named = |e: CryptoError| Error::from(e).during(format!("cannot open '{key}'"));
        let open =
            |wrap: Option<&[u8]>| self.keyring.open_embedded(key, object, &[ObjectKind::Wal], Domain::Data, wrap);
        let failure = match open(None) {
            Err(e @ (CryptoError::NoEpoch { .. } | CryptoError::RoleLacks { .. })) => e,
            other => return other.map_err(named),
        };
        let session = Head::parse(object).map_err(Error::damaged(key))?.header.session;
        let mut wraps = Vec::new();
        self.store.list(&format!("sk/{session}/"), Depth::All, &mut |l| wraps.push(l.key))?;
        for name in wraps.iter().rev() {
            match open(Some(&self.store.get(name, Range::Whole)?)) {
                Err(CryptoError::NoEpoch { .. } | CryptoError::RoleLacks { .. }) => {}
                other => return other.map_err(named),
            }
        }
        Err(named(failure))
    }
}

/// The public part of an object, of which at least the head is at hand. Not authenticated.
fn wal_public(start: &[u8]) -> Result<WalPublic, FormatError> {
    WalPublic::decode(Head::parse(start)?.public)
}

fn decode_content(key: &str, public: &WalPublic, payload: &[u8]) -> Result<Vec<u8>> {
    let frames = decode_frames(payload).map_err(Error::damaged(key))?;
    let total: u64 = frames.iter().map(|f| u64::from(f.plain_len)).sum();
    if total != public.size {
        return Err(Error::refused(
            Kind::Checksum,
            format!("'{key}' has {total} bytes in its frames and {} in its head", public.size),
        ));
    }
    let mut content = vec![0; total as usize];
    let mut rest = content.as_mut_slice();
    let mut work = Vec::with_capacity(frames.len());
    for frame in &frames {
        let Some((out, after)) = rest.split_at_mut_checked(frame.plain_len as usize) else { break };
        work.push((frame, out));
        rest = after;
    }
    work.into_par_iter().try_for_each(|(frame, out)| decode_frame(key, frame, out))?;
    Ok(content)
}

fn decode_frame(key: &str, frame: &Frame<'_>, out: &mut [u8]) -> Result<()> {
    let damaged = |what: String| Error::refused(Kind::Checksum, format!("'{key}' cannot be decoded: {what}"));
    let expected = out.len();
    let found = match frame.encoding {
        FrameEncoding::Raw if frame.bytes.len() == expected => {
            out.copy_from_slice(frame.bytes);
            expected
        }
        FrameEncoding::Raw => frame.bytes.len(),
        FrameEncoding::Zstd => {
            let mut decoder = zstd::bulk::Decompressor::new()
                .map_err(|e| Error::refused(Kind::Memory, format!("cannot prepare decompression: {e}")))?;
            decoder.decompress_to_buffer(frame.bytes, out).map_err(|e| damaged(e.to_string()))?
        }
    };
    if found != expected {
        return Err(damaged(format!("a frame of {expected} bytes decodes to {found}")));
    }
    Ok(())
}
