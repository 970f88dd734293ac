//! WAL segments: sizes, numbers, file names, and the header of their first page.
//!
//! Source: `access/xlog_internal.h`. A name spells the timeline and two 32-bit halves, of which the second
//! is a segment number below 4 GiB / segment size; so a name alone says nothing of its position
//! until the segment size is known.

use super::lsn::Lsn;
use super::timeline::{TimelineId, parse_hex8};
use super::version::Version;
use crate::FormatError;
use crate::codec::Reader;
use std::fmt;

/// A valid WAL segment size: a power of two from 1 MiB to 1 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WalSegmentSize(u32);

impl WalSegmentSize {
    /// 16 MiB, what initdb chooses unless told otherwise.
    pub const DEFAULT: Self = Self(16 << 20);
    /// 1 MiB.
    pub const MIN: Self = Self(1 << 20);
    /// 1 GiB.
    pub const MAX: Self = Self(1 << 30);

    /// Checks a size in bytes; `None` if the server would not accept it.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        let size = u32::try_from(bytes).ok().filter(|b| b.is_power_of_two())?;
        (Self::MIN.0..=Self::MAX.0).contains(&size).then_some(Self(size))
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// Segments in 4 GiB of WAL, which is where the second half of a name wraps.
    #[must_use]
    fn per_high(self) -> u64 {
        (1 << 32) / self.bytes()
    }

    fn read(r: &mut Reader<'_>, what: &'static str) -> Result<Self, FormatError> {
        let offset = r.offset();
        let found = u64::from(r.u32(what)?);
        Self::new(found).ok_or(FormatError::OutOfRange { offset, what, found })
    }
}

impl Default for WalSegmentSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The 24 hex digits of a segment's file name, whatever the segment size. Sorts as the names do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// Timeline: the first eight digits.
    pub timeline: TimelineId,
    /// Upper 32 bits of the segment's position: the second eight digits.
    pub high: u32,
    /// Number of the segment inside those 4 GiB: the last eight digits.
    pub low: u32,
}

impl SegmentName {
    /// Parses exactly 24 upper-case hex digits.
    ///
    /// # Errors
    /// [`FormatError::BadText`].
    pub fn parse(name: &str) -> Result<Self, FormatError> {
        let part = |at: usize| name.get(at..at + 8).and_then(parse_hex8);
        match (name.len(), part(0), part(8), part(16)) {
            (24, Some(timeline), Some(high), Some(low)) => Ok(Self { timeline: TimelineId(timeline), high, low }),
            _ => Err(FormatError::bad_text("WAL segment name", name)),
        }
    }

    /// First 16 digits: the name of the archive directory that holds the segment.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("{:08X}{:08X}", self.timeline.0, self.high)
    }

    /// The segment of this name at a segment size.
    ///
    /// # Errors
    /// [`FormatError::BadText`] if no segment of that size has this name.
    pub fn segment(&self, size: WalSegmentSize) -> Result<WalSegment, FormatError> {
        if u64::from(self.low) >= size.per_high() {
            return Err(FormatError::bad_text("WAL segment name for this segment size", &self.to_string()));
        }
        let number = u64::from(self.high) * size.per_high() + u64::from(self.low);
        Ok(WalSegment { timeline: self.timeline, number })
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.0, self.high, self.low)
    }
}

impl fmt::Debug for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentName({self})")
    }
}

/// One segment of one timeline. `number` counts segments from position zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalSegment {
    /// The timeline that wrote it.
    pub timeline: TimelineId,
    /// Its first position divided by the segment size.
    pub number: u64,
}

impl WalSegment {
    /// The segment of `timeline` that holds the byte at `lsn`.
    #[must_use]
    pub fn at(timeline: TimelineId, lsn: Lsn, size: WalSegmentSize) -> Self {
        Self { timeline, number: lsn.segment_number(size) }
    }

    /// The file name: 24 upper-case hex digits. A number beyond the last position wraps, as the server's does.
    #[must_use]
    pub fn name(&self, size: WalSegmentSize) -> String {
        self.segment_name(size).to_string()
    }

    /// The file name in parts.
    #[must_use]
    pub fn segment_name(&self, size: WalSegmentSize) -> SegmentName {
        let high = (self.number / size.per_high()) as u32;
        SegmentName { timeline: self.timeline, high, low: (self.number % size.per_high()) as u32 }
    }

    /// Parses a file name.
    ///
    /// # Errors
    /// [`FormatError::BadText`] if it is not 24 upper-case hex digits, or not the name of a segment of this size.
    pub fn parse(name: &str, size: WalSegmentSize) -> Result<Self, FormatError> {
        SegmentName::parse(name)?.segment(size)
    }

    /// Position of its first byte.
    #[must_use]
    pub fn start(&self, size: WalSegmentSize) -> Lsn {
        Lsn(self.number.saturating_mul(size.bytes()))
    }

    /// The segment after this one on the same timeline.
    #[must_use]
    pub fn next(&self) -> Self {
        Self { timeline: self.timeline, number: self.number.saturating_add(1) }
    }

    /// The segments of one timeline needed to replay from `start` until `stop`, where `stop` is the end of the
    /// last record: a stop exactly on a segment's first byte needs the segments before it only (the server
    /// archives no more). At least the segment of `start`.
    pub fn range(
        timeline: TimelineId,
        start: Lsn,
        stop: Lsn,
        size: WalSegmentSize,
    ) -> impl ExactSizeIterator<Item = Self> + DoubleEndedIterator + Clone {
        let first = start.segment_number(size);
        // At most 2^44 segments exist; a range of usize is what counts itself.
        let count = stop.segment_number_before(size).saturating_sub(first) as usize + 1;
        (0..count).map(move |i| Self { timeline, number: first + i as u64 })
    }
}

/// What the server passes to `archive_command`, by file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ArchiveName {
    /// A complete segment.
    Segment(SegmentName),
    /// `….partial`: the last segment of a timeline that was left in its middle.
    Partial(SegmentName),
    /// `….00000028.backup`: a backup history file.
    Backup {
        /// The segment the backup started in.
        segment: SegmentName,
        /// Offset of the start position inside that segment, in bytes.
        offset: u32,
    },
    /// `00000002.history`: a timeline history file.
    History(TimelineId),
}

impl ArchiveName {
    /// Classifies a file name.
    ///
    /// # Errors
    /// [`FormatError::BadText`] if the server archives no file of such a name.
    pub fn parse(name: &str) -> Result<Self, FormatError> {
        if let Some(timeline) = TimelineId::parse_history_file_name(name) {
            return Ok(Self::History(timeline));
        }
        let unknown = || FormatError::bad_text("name of an archived file", name);
        let (segment, rest) = name.split_at_checked(24).ok_or_else(unknown)?;
        let segment = SegmentName::parse(segment).map_err(|_| unknown())?;
        match rest {
            "" => Ok(Self::Segment(segment)),
            ".partial" => Ok(Self::Partial(segment)),
            _ => {
                let offset = rest.strip_prefix('.').and_then(|r| r.strip_suffix(".backup")).and_then(parse_hex8);
                offset.map(|offset| Self::Backup { segment, offset }).ok_or_else(unknown)
            }
        }
    }

    /// The timeline in the name.
    #[must_use]
    pub fn timeline(&self) -> TimelineId {
        match self {
            Self::Segment(s) | Self::Partial(s) | Self::Backup { segment: s, .. } => s.timeline,
            Self::History(timeline) => *timeline,
        }
    }

    /// The segment in the name; `None` for a history file.
    #[must_use]
    pub fn segment_name(&self) -> Option<SegmentName> {
        match self {
            Self::Segment(s) | Self::Partial(s) | Self::Backup { segment: s, .. } => Some(*s),
            Self::History(_) => None,
        }
    }

    /// Name of the archive directory that holds the file: 16 hex digits; `None` for a history file, which lies
    /// beside those directories.
    #[must_use]
    pub fn directory(&self) -> Option<String> {
        self.segment_name().map(|s| s.directory())
    }
}

impl fmt::Display for ArchiveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(s) => s.fmt(f),
            Self::Partial(s) => write!(f, "{s}.partial"),
            Self::Backup { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
            Self::History(timeline) => f.write_str(&timeline.history_file_name()),
        }
    }
}

/// The long header that starts the first page of every segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalHeader {
    /// Version that wrote it, by its magic.
    pub version: Version,
    /// Flag bits; [`WalHeader::LONG`] is always set.
    pub info: u16,
    /// Timeline of the first record on the page.
    pub timeline: TimelineId,
    /// Position of the page: the first of its segment.
    pub page_address: Lsn,
    /// Bytes that remain of a record begun in the segment before.
    pub remaining: u32,
    /// System identifier from `pg_control`.
    pub system_identifier: u64,
    /// Size of this and every other segment.
    pub segment_size: WalSegmentSize,
    /// Size of a WAL page, in bytes.
    pub block_size: u32,
}

impl WalHeader {
    /// Bytes that [`Self::parse`] reads.
    pub const LEN: usize = 40;
    /// Flag: the page starts with the rest of a record.
    pub const FIRST_IS_CONTINUATION: u16 = 0x0001;
    /// Flag: the header is a long one.
    pub const LONG: u16 = 0x0002;
    const ALL_FLAGS: u16 = 0x000f;

    /// Reads the header from the first bytes of a segment; more may follow.
    ///
    /// # Errors
    /// [`FormatError::Truncated`], [`FormatError::BadVersion`] for a magic of no supported version,
    /// [`FormatError::OutOfRange`] for any other field the server would refuse.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        let version = Version::from_wal_magic(r.u16("WAL page magic")?)?;
        let info = r.u16("WAL page flags")?;
        if info & !Self::ALL_FLAGS != 0 || info & Self::LONG == 0 {
            return Err(FormatError::OutOfRange { offset: 2, what: "WAL page flags", found: u64::from(info) });
        }
        let timeline = TimelineId(r.u32("WAL page timeline")?);
        let page_address = Lsn(r.u64("WAL page address")?);
        let remaining = r.u32("WAL remaining record length")?;
        r.u32("WAL page header padding")?;
        let system_identifier = r.u64("WAL system identifier")?;
        let segment_size = WalSegmentSize::read(&mut r, "WAL segment size")?;
        let offset = r.offset();
        let block_size = r.u32("WAL block size")?;
        if !block_size.is_power_of_two() || !(1024..=65536).contains(&block_size) {
            return Err(FormatError::OutOfRange { offset, what: "WAL block size", found: u64::from(block_size) });
        }
        if page_address.segment_offset(segment_size) != 0 {
            return Err(FormatError::OutOfRange { offset: 8, what: "WAL page address", found: page_address.0 });
        }
        if timeline.0 == 0 {
            return Err(FormatError::OutOfRange { offset: 4, what: "WAL page timeline", found: 0 });
        }
        Ok(Self { version, info, timeline, page_address, remaining, system_identifier, segment_size, block_size })
    }

    /// Major version that wrote the segment.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.version.major()
    }

    /// The segment this header says it belongs to; must agree with the file's name.
    ///
    /// The timeline in a file name may be above that in the header: the first segment of a new timeline starts
    /// with a copy of the old one's pages.
    #[must_use]
    pub fn segment(&self) -> WalSegment {
        WalSegment::at(self.timeline, self.page_address, self.segment_size)
    }

    /// The header's bytes, for clusters made up by tests.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = crate::codec::Writer::new();
        w.u16(self.version.facts().wal_magic).u16(self.info).u32(self.timeline.0).u64(self.page_address.0);
        w.u32(self.remaining).u32(0).u64(self.system_identifier).u32(self.segment_size.0).u32(self.block_size);
        w.into_bytes()
    }
}

#[cfg(test)]
mod tests;
