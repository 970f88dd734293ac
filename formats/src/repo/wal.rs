//! One archived file: the public part of its envelope and its payload. FORMAT.md, "Archived files".
//!
//! The public part lets `archive-push` compare contents by a short ranged read, without any key but the id key.

use crate::FormatError;
use crate::codec::{Reader, Writer};

const VERSION: u8 = 1;
/// Bytes of [`WalPublic`].
pub const PUBLIC_LEN: usize = 1 + 32 + 8;
/// Largest plaintext of one frame.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// Largest archived file: PostgreSQL's largest WAL segment.
pub const FILE_BYTES_MAX: u64 = 1 << 30;

/// What can be read of an archived file without opening it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalPublic {
    /// BLAKE3 of the file's content under the repository's content key.
    pub content_hash: [u8; 32],
    /// Bytes of the file.
    pub size: u64,
}

impl WalPublic {
    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(VERSION).bytes(&self.content_hash).u64(self.size);
        w.into_bytes()
    }

    /// Reads the public part.
    ///
    /// # Errors
    /// [`FormatError`] naming the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        let version = r.u8("archived file version")?;
        if version != VERSION {
            return Err(FormatError::BadVersion { what: "archived file", found: version.into(), supported: "1" });
        }
        let content_hash = r.array("content hash")?;
        let offset = r.offset();
        let size = r.u64("file size")?;
        if size > FILE_BYTES_MAX {
            return Err(FormatError::OutOfRange { offset, what: "file size", found: size });
        }
        r.finish("archived file header")?;
        Ok(Self { content_hash, size })
    }
}

/// How one frame of an archived file is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameEncoding {
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// A run of the file, encoded on its own so that runs can be compressed side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// How it is encoded.
    pub encoding: FrameEncoding,
    /// Bytes of the run when decoded.
    pub plain_len: u32,
    /// The encoded bytes.
    pub bytes: &'a [u8],
}

/// The payload's bytes.
#[must_use]
pub fn encode_frames(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut w = Writer::new();
    w.varint(frames.len() as u64);
    for f in frames {
        w.u8(match f.encoding {
            FrameEncoding::Raw => 0,
            FrameEncoding::Zstd => 1,
        });
        w.varint(f.plain_len.into()).blob(f.bytes);
    }
    w.into_bytes()
}

/// Reads a payload without copying.
///
/// # Errors
/// [`FormatError`] naming the field that is wrong; an unknown frame encoding is [`FormatError::BadVersion`].
pub fn decode_frames(bytes: &[u8]) -> Result<Vec<Frame<'_>>, FormatError> {
    let mut r = Reader::new(bytes);
    let count = r.count(3, "frames")?;
    let mut frames = Vec::with_capacity(count);
    for _ in 0..count {
        let encoding = match r.u8("frame encoding")? {
            0 => FrameEncoding::Raw,
            1 => FrameEncoding::Zstd,
            found => {
                return Err(FormatError::BadVersion {
                    what: "WAL frame encoding",
                    found: found.into(),
                    supported: "0, 1",
                });
            }
        };
        let plain_len = r.varint_max(FRAME_BYTES_MAX as u64, "frame length")? as u32;
        frames.push(Frame { encoding, plain_len, bytes: r.blob("frame")? });
    }
    r.finish("archived file")?;
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let public = WalPublic { content_hash: [7; 32], size: 16 << 20 };
        assert_eq!(public.encode().len(), PUBLIC_LEN);
        assert_eq!(WalPublic::decode(&public.encode()), Ok(public));
        let frames = [
            Frame { encoding: FrameEncoding::Zstd, plain_len: 100, bytes: b"abc" },
            Frame { encoding: FrameEncoding::Raw, plain_len: 2, bytes: b"xy" },
        ];
        assert_eq!(decode_frames(&encode_frames(&frames)).unwrap(), frames);
        assert!(matches!(decode_frames(&[1, 9, 0, 0]), Err(FormatError::BadVersion { found: 9, .. })));
    }
}
