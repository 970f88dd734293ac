//! The file the server hands over: read whole, and checked for being what its name says.
//!
//! Source of the rules: `access/xlog_internal.h` for headers and sizes, `postmaster/pgarch.c` for what is handed over:
//! complete segments, the partial segment of a timeline that was left, backup and timeline history files.

use crate::{Error, FileError, Kind, Result};
use pgkeep_formats::FormatError;
use pgkeep_formats::pg::control::ControlFile;
use pgkeep_formats::pg::timeline::TimelineHistory;
use pgkeep_formats::pg::wal::{ArchiveName, WalHeader, WalSegmentSize};
use rustix::fs::OFlags;
use std::fs::{Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Longest backup or timeline history file that is taken: a line for each of many thousand timelines.
const HISTORY_BYTES_MAX: u64 = 16 << 20;

/// The name of the file, checked.
///
/// # Errors
/// `ParamInvalid` if the server archives no file of such a name.
pub(super) fn name_of(path: &Path) -> Result<ArchiveName> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    ArchiveName::parse(name).map_err(|_| {
        Error::refused(Kind::ParamInvalid, format!("'{}' is no name of a WAL or history file", path.display()))
    })
}

/// Reads the file whole, and its facts. It must not change meanwhile, and have a size that a file of its name can have.
///
/// # Errors
/// `FileMissing` and other file errors; `FileInvalid` if it is no regular file, its size is wrong, or it changes while
/// it is read.
pub(super) fn read(path: &Path, name: &ArchiveName, control: Option<&ControlFile>) -> Result<(Vec<u8>, Metadata)> {
    let invalid = |what: String| Error::refused(Kind::FileInvalid, format!("'{}' {what}", path.display()));
    // Without waiting: opening a pipe that nobody writes to would take for ever.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(FileError::at("open", path))?;
    let before = file.metadata().map_err(FileError::at("stat", path))?;
    if !before.is_file() {
        return Err(invalid("is not a regular file".into()));
    }
    let len = before.len();
    match name {
        ArchiveName::Segment(_) | ArchiveName::Partial(_) => match control.map(|c| c.wal_segment_size.bytes()) {
            Some(size) if size != len => {
                return Err(invalid(format!("has {len} bytes, but WAL segments of this cluster have {size}")));
            }
            None if WalSegmentSize::new(len).is_none() => {
                return Err(invalid(format!("has {len} bytes, which is no size of a WAL segment")));
            }
            _ => {}
        },
        ArchiveName::Backup { .. } | ArchiveName::History(_) if len == 0 || len > HISTORY_BYTES_MAX => {
            return Err(invalid(format!("has {len} bytes, which is no size of a history file")));
        }
        _ => {}
    }
    let content = read_exactly(&mut file, len, path)?;
    let after = file.metadata().map_err(FileError::at("stat", path))?;
    if after.len() != len || after.modified().ok() != before.modified().ok() {
        return Err(invalid("changed while it was read".into()));
    }
    // A damaged history would keep every later recovery from choosing its timeline.
    if let ArchiveName::History(timeline) = name {
        TimelineHistory::parse(*timeline, &content).map_err(|e| invalid(format!("is no timeline history: {e}")))?;
    }
    Ok((content, after))
}

/// All bytes of a source that must have `len` of them.
fn read_exactly(source: &mut impl Read, len: u64, path: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::with_capacity(usize::try_from(len).unwrap_or(0).saturating_add(1));
    // One byte more than there should be, so that growth is seen.
    source.take(len.saturating_add(1)).read_to_end(&mut content).map_err(FileError::at("read", path))?;
    if content.len() as u64 == len {
        return Ok(content);
    }
    let how = if content.len() as u64 > len { "grew" } else { "shrank" };
    Err(Error::refused(Kind::FileInvalid, format!("'{}' {how} while it was read: it had {len} bytes", path.display())))
}

/// What the header of a segment's first page says, checked against its name; none for files without such a header.
///
/// # Errors
/// `VersionNotSupported` for a magic of no supported version, `Format` for what is no header, `FileInvalid` if the
/// header belongs to another segment or size.
pub(super) fn header(path: &Path, name: &ArchiveName, content: &[u8]) -> Result<Option<WalHeader>> {
    let (ArchiveName::Segment(segment) | ArchiveName::Partial(segment)) = name else { return Ok(None) };
    let header = WalHeader::parse(content).map_err(|e| match e {
        FormatError::BadVersion { found, .. } => Error::refused(
            Kind::VersionNotSupported,
            format!("WAL file '{}' has magic {found:#06x}, which no supported version writes", path.display()),
        ),
        source => Error::Damaged { object: path.display().to_string(), source },
    })?;
    let invalid = |what: String| Error::refused(Kind::FileInvalid, format!("WAL file '{}' {what}", path.display()));
    if header.segment_size.bytes() != content.len() as u64 {
        let (has, says) = (content.len(), header.segment_size.bytes());
        return Err(invalid(format!("has {has} bytes and says it has {says}")));
    }
    let own = header.segment();
    // The first segment of a new timeline begins with a copy of the old one's pages.
    let fits = segment.segment(header.segment_size).is_ok_and(|s| s.number == own.number && own.timeline <= s.timeline);
    if !fits {
        return Err(invalid(format!("holds segment {}", own.name(header.segment_size))));
    }
    Ok(Some(header))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_grows_or_shrinks_is_refused() {
        let path = Path::new("pg_wal/000000010000000000000003");
        assert_eq!(read_exactly(&mut &b"12345"[..], 5, path).unwrap(), b"12345");
        for (bytes, how) in [(&b"1234"[..], "shrank"), (b"123456", "grew"), (b"", "shrank")] {
            let mut source = bytes;
            let error = read_exactly(&mut source, 5, path).unwrap_err();
            assert_eq!(error.kind(), Kind::FileInvalid);
            assert!(error.to_string().contains(how), "{error}");
        }
    }
}
