//! `global/pg_control`: what a cluster says of itself.
//!
//! The layout differs little between majors: 17 put a field into padding, 18 appended one, which moved the
//! CRC. The offsets below hold for all; what differs is in [`super::version`]. The file is 8 KiB
//! of which the server uses 296 bytes. It may be caught while the server writes it: the CRC then fails and the
//! caller reads again. This module never alters a file; [`ControlFile::encode`] exists to make up clusters.
//!
//! Source: `catalog/pg_control.h` of 13 to 18, offsets by `offsetof` on x86-64. All fields little-endian.

use super::lsn::Lsn;
use super::timeline::TimelineId;
use super::version::{ControlLayout, Version};
use super::wal::WalSegmentSize;
use crate::FormatError;

/// Size of the file in bytes.
pub const CONTROL_FILE_SIZE: usize = 8192;
/// A checkpoint where no WAL can be, in the control file of a restored online backup: without `backup_label`, which says where
/// to begin, no server starts on it. The value is pgBackRest's.
pub const CHECKPOINT_INVALID: Lsn = Lsn(0xDEAD);

const SYSTEM_IDENTIFIER: usize = 0;
const PG_CONTROL_VERSION: usize = 8;
const CATALOG_VERSION: usize = 12;
const STATE: usize = 16;
const TIME: usize = 24;
const CHECKPOINT: usize = 32;
const REDO: usize = 40;
const TIMELINE: usize = 48;
const PREV_TIMELINE: usize = 52;
const FULL_PAGE_WRITES: usize = 56;
const CHECKPOINT_WAL_LEVEL: usize = 60;
const CHECKPOINT_TIME: usize = 104;
const MIN_RECOVERY_POINT: usize = 136;
const MIN_RECOVERY_TIMELINE: usize = 144;
const BACKUP_START_POINT: usize = 152;
const BACKUP_END_POINT: usize = 160;
const BACKUP_END_REQUIRED: usize = 168;
const WAL_LEVEL: usize = 172;
const MAX_CONNECTIONS: usize = 180;
const MAX_WORKER_PROCESSES: usize = 184;
const MAX_WAL_SENDERS: usize = 188;
const MAX_PREPARED_TRANSACTIONS: usize = 192;
const MAX_LOCKS_PER_TRANSACTION: usize = 196;
const MAX_ALIGN: usize = 204;
const FLOAT_FORMAT: usize = 208;
const BLOCK_SIZE: usize = 216;
const SEGMENT_BLOCKS: usize = 220;
const WAL_BLOCK_SIZE: usize = 224;
const WAL_SEGMENT_SIZE: usize = 228;
const NAME_DATA_LEN: usize = 232;
const INDEX_MAX_KEYS: usize = 236;
const TOAST_MAX_CHUNK_SIZE: usize = 240;
const LARGE_OBJECT_BLOCK_SIZE: usize = 244;
const FLOAT8_BY_VALUE: usize = 248;
const DATA_CHECKSUM_VERSION: usize = 252;
const CHAR_SIGNEDNESS: usize = 256;

/// The server writes this number to find out whether its floating-point format is the file's.
const FLOAT_FORMAT_VALUE: f64 = 1_234_567.0;

/// What the cluster was doing when the file was last written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DbState {
    /// Starting up.
    StartingUp,
    /// Shut down cleanly as a primary.
    ShutDown,
    /// Shut down cleanly as a standby.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// Replaying WAL after a crash.
    InCrashRecovery,
    /// Replaying WAL from an archive or as a standby.
    InArchiveRecovery,
    /// Running as a primary.
    InProduction,
}

impl DbState {
    const ALL: [Self; 7] = [
        Self::StartingUp,
        Self::ShutDown,
        Self::ShutDownInRecovery,
        Self::ShuttingDown,
        Self::InCrashRecovery,
        Self::InArchiveRecovery,
        Self::InProduction,
    ];

    /// True after a clean shutdown, of a primary or a standby.
    #[must_use]
    pub fn is_shut_down(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }
}

/// Setting `wal_level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// Not enough to archive.
    Minimal,
    /// Enough to archive and replicate.
    Replica,
    /// And to decode logically.
    Logical,
}

impl WalLevel {
    const ALL: [Self; 3] = [Self::Minimal, Self::Replica, Self::Logical];
}

/// Settings that a hot standby must not set lower than the primary whose WAL it replays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbySettings {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

/// The fields of `pg_control` that matter here. Times are seconds since 1970-01-01 UTC, sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// Major version, by the two version fields.
    pub version: Version,
    /// Version of the file's layout.
    pub pg_control_version: u32,
    /// Version of the system catalogs.
    pub catalog_version: u32,
    /// Names the cluster; its standbys and copies share it.
    pub system_identifier: u64,
    /// What the cluster was doing.
    pub state: DbState,
    /// When the file was last written.
    pub time: i64,
    /// Position of the last checkpoint's record.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint starts.
    pub redo: Lsn,
    /// Timeline of the checkpoint.
    pub timeline: TimelineId,
    /// Timeline before it, if the checkpoint's record begins a new one; else the same.
    pub prev_timeline: TimelineId,
    /// Setting `full_page_writes` at the checkpoint.
    pub full_page_writes: bool,
    /// When the checkpoint was made.
    pub checkpoint_time: i64,
    /// Position that recovery must reach before the cluster is consistent; invalid outside recovery.
    pub min_recovery_point: Lsn,
    /// Timeline of that position; zero outside recovery.
    pub min_recovery_timeline: TimelineId,
    /// Redo position of the backup being recovered; invalid if none is, or its end has been passed.
    pub backup_start_point: Lsn,
    /// End of the backup being recovered, if it was taken from a standby.
    pub backup_end_point: Lsn,
    /// True while recovery must still see the end of a backup.
    pub backup_end_required: bool,
    /// Setting `wal_level`.
    pub wal_level: WalLevel,
    /// Settings a standby must match.
    pub standby_settings: StandbySettings,
    /// Size of a page of a relation.
    pub block_size: u32,
    /// Pages in a relation segment: 131 072 (1 GiB) unless PostgreSQL was built otherwise.
    pub segment_blocks: u32,
    /// Size of a WAL page.
    pub wal_block_size: u32,
    /// Size of a WAL segment.
    pub wal_segment_size: WalSegmentSize,
    /// Zero if pages have no checksums, else the version of the algorithm.
    pub data_checksum_version: u32,
}

impl ControlFile {
    /// Reads the file's content; bytes after what the server uses are ignored.
    ///
    /// # Errors
    /// [`FormatError::BadVersion`] for a version that is not supported, [`FormatError::Truncated`],
    /// [`FormatError::BadChecksum`] (perhaps caught while being written: read again),
    /// [`FormatError::OutOfRange`] for a field no server writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let at = Fields(bytes);
        let version = Version::from_control(at.u32(PG_CONTROL_VERSION)?, at.u32(CATALOG_VERSION)?)?;
        Self::parse_as(bytes, version)
    }

    /// As [`Self::parse`], but takes the layout of `version` whatever the version fields say. For servers that
    /// derive from PostgreSQL and number themselves differently.
    ///
    /// # Errors
    /// As [`Self::parse`], without [`FormatError::BadVersion`].
    pub fn parse_as(bytes: &[u8], version: Version) -> Result<Self, FormatError> {
        let at = Fields(bytes);
        let layout = version.facts().control;
        let computed = at.crc(&layout)?;
        let stored = at.u32(layout.crc)?;
        if computed != stored {
            return Err(FormatError::BadChecksum { what: "pg_control", stored, computed });
        }
        if at.u64(FLOAT_FORMAT)? != FLOAT_FORMAT_VALUE.to_bits() {
            return Err(at.out_of_range(FLOAT_FORMAT, "floating-point format"));
        }
        let block_size = at.checked(BLOCK_SIZE, "block size", |n| power_of_two_in(n, 1024, 32768))?;
        let wal_block_size = at.checked(WAL_BLOCK_SIZE, "WAL block size", |n| power_of_two_in(n, 1024, 65536))?;
        let segment_blocks = at.checked(SEGMENT_BLOCKS, "blocks per relation segment", |n| n > 0)?;
        Ok(Self {
            version,
            pg_control_version: at.u32(PG_CONTROL_VERSION)?,
            catalog_version: at.u32(CATALOG_VERSION)?,
            system_identifier: at.u64(SYSTEM_IDENTIFIER)?,
            state: at.choice(STATE, "cluster state", &DbState::ALL)?,
            time: at.i64(TIME)?,
            checkpoint: Lsn(at.u64(CHECKPOINT)?),
            redo: Lsn(at.u64(REDO)?),
            timeline: TimelineId(at.checked(TIMELINE, "timeline", |n| n > 0)?),
            prev_timeline: TimelineId(at.u32(PREV_TIMELINE)?),
            full_page_writes: at.bool(FULL_PAGE_WRITES)?,
            checkpoint_time: at.i64(CHECKPOINT_TIME)?,
            min_recovery_point: Lsn(at.u64(MIN_RECOVERY_POINT)?),
            min_recovery_timeline: TimelineId(at.u32(MIN_RECOVERY_TIMELINE)?),
            backup_start_point: Lsn(at.u64(BACKUP_START_POINT)?),
            backup_end_point: Lsn(at.u64(BACKUP_END_POINT)?),
            backup_end_required: at.bool(BACKUP_END_REQUIRED)?,
            wal_level: at.choice(WAL_LEVEL, "wal_level", &WalLevel::ALL)?,
            standby_settings: StandbySettings {
                max_connections: at.u32(MAX_CONNECTIONS)?,
                max_worker_processes: at.u32(MAX_WORKER_PROCESSES)?,
                max_wal_senders: at.u32(MAX_WAL_SENDERS)?,
                max_prepared_transactions: at.u32(MAX_PREPARED_TRANSACTIONS)?,
                max_locks_per_transaction: at.u32(MAX_LOCKS_PER_TRANSACTION)?,
            },
            block_size,
            segment_blocks,
            wal_block_size,
            wal_segment_size: WalSegmentSize::new(at.u32(WAL_SEGMENT_SIZE)?.into())
                .ok_or_else(|| at.out_of_range(WAL_SEGMENT_SIZE, "WAL segment size"))?,
            data_checksum_version: at.u32(DATA_CHECKSUM_VERSION)?,
        })
    }

    /// The file's content with [`CHECKPOINT_INVALID`] in the place of its checkpoint, and a right CRC.
    ///
    /// # Errors
    /// As [`Self::parse_as`].
    pub fn without_checkpoint(bytes: &[u8], version: Version) -> Result<Vec<u8>, FormatError> {
        Self::parse_as(bytes, version)?;
        let crc_at = version.facts().control.crc;
        let mut out = bytes.to_vec();
        // What was parsed is as long as that.
        if let Some(field) = out.get_mut(CHECKPOINT..CHECKPOINT + 8) {
            field.copy_from_slice(&CHECKPOINT_INVALID.0.to_le_bytes());
        }
        let crc = out.get(..crc_at).map(crc32c::crc32c).unwrap_or_default();
        if let Some(field) = out.get_mut(crc_at..crc_at + 4) {
            field.copy_from_slice(&crc.to_le_bytes());
        }
        Ok(out)
    }

    /// True if pages carry checksums of the algorithm this program knows.
    #[must_use]
    pub fn has_page_checksums(&self) -> bool {
        self.data_checksum_version == 1
    }

    /// A plausible control file of a cleanly shut down new cluster with page checksums: a start for tests that
    /// make up clusters. Its first WAL segment after the checkpoint is number 1 of timeline 1.
    #[must_use]
    pub fn fabricated(version: Version, system_identifier: u64) -> Self {
        let facts = version.facts();
        Self {
            version,
            pg_control_version: facts.pg_control_version,
            catalog_version: facts.catalog_version,
            system_identifier,
            state: DbState::ShutDown,
            time: 1_700_000_000,
            checkpoint: Lsn(0x100_0028),
            redo: Lsn(0x100_0028),
            timeline: TimelineId::FIRST,
            prev_timeline: TimelineId::FIRST,
            full_page_writes: true,
            checkpoint_time: 1_700_000_000,
            min_recovery_point: Lsn::INVALID,
            min_recovery_timeline: TimelineId(0),
            backup_start_point: Lsn::INVALID,
            backup_end_point: Lsn::INVALID,
            backup_end_required: false,
            wal_level: WalLevel::Replica,
            standby_settings: StandbySettings {
                max_connections: 100,
                max_worker_processes: 8,
                max_wal_senders: 10,
                max_prepared_transactions: 0,
                max_locks_per_transaction: 64,
            },
            block_size: 8192,
            segment_blocks: 131_072,
            wal_block_size: 8192,
            wal_segment_size: WalSegmentSize::DEFAULT,
            data_checksum_version: 1,
        }
    }

    /// A whole file of 8192 bytes with a valid CRC, for clusters made up by tests. Fields this type does not
    /// hold get the values of an ordinary build, or zero.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let layout = self.version.facts().control;
        let settings = &self.standby_settings;
        let mut out = vec![0; CONTROL_FILE_SIZE];
        let mut put = |offset: usize, bytes: &[u8]| out[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(SYSTEM_IDENTIFIER, &self.system_identifier.to_le_bytes());
        let wide = [
            (TIME, self.time.cast_unsigned()),
            (CHECKPOINT, self.checkpoint.0),
            (REDO, self.redo.0),
            (CHECKPOINT_TIME, self.checkpoint_time.cast_unsigned()),
            (MIN_RECOVERY_POINT, self.min_recovery_point.0),
            (BACKUP_START_POINT, self.backup_start_point.0),
            (BACKUP_END_POINT, self.backup_end_point.0),
            (FLOAT_FORMAT, FLOAT_FORMAT_VALUE.to_bits()),
        ];
        wide.iter().for_each(|(offset, value)| put(*offset, &value.to_le_bytes()));
        let narrow = [
            (PG_CONTROL_VERSION, self.pg_control_version),
            (CATALOG_VERSION, self.catalog_version),
            (STATE, self.state as u32),
            (TIMELINE, self.timeline.0),
            (PREV_TIMELINE, self.prev_timeline.0),
            (FULL_PAGE_WRITES, self.full_page_writes.into()),
            (CHECKPOINT_WAL_LEVEL, if layout.checkpoint_wal_level { self.wal_level as u32 } else { 0 }),
            (MIN_RECOVERY_TIMELINE, self.min_recovery_timeline.0),
            (BACKUP_END_REQUIRED, self.backup_end_required.into()),
            (WAL_LEVEL, self.wal_level as u32),
            (MAX_CONNECTIONS, settings.max_connections),
            (MAX_WORKER_PROCESSES, settings.max_worker_processes),
            (MAX_WAL_SENDERS, settings.max_wal_senders),
            (MAX_PREPARED_TRANSACTIONS, settings.max_prepared_transactions),
            (MAX_LOCKS_PER_TRANSACTION, settings.max_locks_per_transaction),
            (MAX_ALIGN, 8),
            (BLOCK_SIZE, self.block_size),
            (SEGMENT_BLOCKS, self.segment_blocks),
            (WAL_BLOCK_SIZE, self.wal_block_size),
            (WAL_SEGMENT_SIZE, self.wal_segment_size.bytes() as u32),
            (NAME_DATA_LEN, 64),
            (INDEX_MAX_KEYS, 32),
            (TOAST_MAX_CHUNK_SIZE, 1996),
            (LARGE_OBJECT_BLOCK_SIZE, 2048),
            (FLOAT8_BY_VALUE, 1),
            (DATA_CHECKSUM_VERSION, self.data_checksum_version),
            (CHAR_SIGNEDNESS, layout.char_signedness.into()),
        ];
        narrow.iter().for_each(|(offset, value)| put(*offset, &value.to_le_bytes()));
        let crc = crc32c::crc32c(&out[..layout.crc]);
        out[layout.crc..layout.crc + 4].copy_from_slice(&crc.to_le_bytes());
        out
    }
}

/// [`ControlFile::fabricated`], encoded.
#[must_use]
pub fn fabricate(version: Version, system_identifier: u64) -> Vec<u8> {
    ControlFile::fabricated(version, system_identifier).encode()
}

fn power_of_two_in(n: u32, min: u32, max: u32) -> bool {
    n.is_power_of_two() && (min..=max).contains(&n)
}

/// Fields at fixed offsets, checked against the end of the buffer.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, offset: usize) -> Result<[u8; N], FormatError> {
        let found = self.0.get(offset..offset + N).and_then(|b| b.try_into().ok());
        let need = (offset + N).saturating_sub(self.0.len());
        found.ok_or(FormatError::Truncated { offset: self.0.len(), need, what: "pg_control" })
    }

    fn bool(&self, offset: usize) -> Result<bool, FormatError> {
        Ok(self.array::<1>(offset)? != [0])
    }

    fn u32(&self, offset: usize) -> Result<u32, FormatError> {
        self.array(offset).map(u32::from_le_bytes)
    }

    fn u64(&self, offset: usize) -> Result<u64, FormatError> {
        self.array(offset).map(u64::from_le_bytes)
    }

    fn i64(&self, offset: usize) -> Result<i64, FormatError> {
        self.array(offset).map(i64::from_le_bytes)
    }

    fn crc(&self, layout: &ControlLayout) -> Result<u32, FormatError> {
        let need = (layout.crc + 4).saturating_sub(self.0.len());
        let truncated = FormatError::Truncated { offset: self.0.len(), need, what: "pg_control" };
        self.0.get(..layout.crc).map(crc32c::crc32c).ok_or(truncated)
    }

    fn checked(&self, offset: usize, what: &'static str, fits: impl Fn(u32) -> bool) -> Result<u32, FormatError> {
        let found = self.u32(offset)?;
        if fits(found) { Ok(found) } else { Err(self.out_of_range(offset, what)) }
    }

    fn choice<T: Copy>(&self, offset: usize, what: &'static str, all: &[T]) -> Result<T, FormatError> {
        let index = usize::try_from(self.u32(offset)?).ok();
        let found = index.and_then(|i| all.get(i)).copied();
        found.ok_or_else(|| self.out_of_range(offset, what))
    }

    fn out_of_range(&self, offset: usize, what: &'static str) -> FormatError {
        FormatError::OutOfRange { offset, what, found: self.u32(offset).unwrap_or_default().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_fabricated_file_reads_back_for_every_version() {
        for version in Version::ALL {
            let made = ControlFile::fabricated(version, 7_300_000_000_000_000_042);
            let bytes = made.encode();
            assert_eq!(bytes.len(), CONTROL_FILE_SIZE);
            assert_eq!(ControlFile::parse(&bytes), Ok(made));
        }
    }

    #[test]
    fn fields_no_server_writes_are_refused_even_under_a_valid_crc() {
        for (offset, value) in [
            (STATE, 7),
            (TIMELINE, 0),
            (WAL_LEVEL, 3),
            (FLOAT_FORMAT, 1),
            (BLOCK_SIZE, 8191),
            (BLOCK_SIZE, 65536),
            (SEGMENT_BLOCKS, 0),
            (WAL_BLOCK_SIZE, 512),
            (WAL_SEGMENT_SIZE, 3 << 20),
        ] {
            let mut bytes = fabricate(Version::V18, 1);
            bytes[offset..offset + 4].copy_from_slice(&u32::to_le_bytes(value));
            let crc = crc32c::crc32c(&bytes[..292]);
            bytes[292..296].copy_from_slice(&crc.to_le_bytes());
            let found = ControlFile::parse(&bytes);
            assert!(
                matches!(found, Err(FormatError::OutOfRange { offset: o, .. }) if o == offset),
                "{offset}: {found:?}"
            );
        }
    }

    #[test]
    fn a_checkpoint_can_be_taken_out() {
        for version in Version::ALL {
            let whole = fabricate(version, 7);
            let bytes = ControlFile::without_checkpoint(&whole, version).unwrap();
            let (was, is) = (ControlFile::parse(&whole).unwrap(), ControlFile::parse(&bytes).unwrap());
            assert_eq!(is, ControlFile { checkpoint: CHECKPOINT_INVALID, ..was });
            assert_eq!(bytes.len(), whole.len());
            assert!(ControlFile::without_checkpoint(&bytes[..100], version).is_err());
        }
    }

    #[test]
    fn a_short_file_and_an_unknown_version_say_so() {
        let bytes = fabricate(Version::V15, 1);
        assert!(matches!(ControlFile::parse(&bytes[..291]), Err(FormatError::Truncated { need: 1, .. })));
        assert!(matches!(ControlFile::parse(&[]), Err(FormatError::Truncated { .. })));
        assert!(ControlFile::parse(&bytes[..292]).is_ok());
        let mut other = bytes;
        other[CATALOG_VERSION] ^= 1;
        assert!(matches!(ControlFile::parse(&other), Err(FormatError::BadVersion { what: "system catalog", .. })));
        assert!(matches!(ControlFile::parse_as(&other, Version::V15), Err(FormatError::BadChecksum { .. })));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_found(bit in 0usize..296 * 8, which in 0usize..6) {
            let version = Version::ALL[which];
            let used = version.facts().control.crc + 4;
            prop_assume!(bit < used * 8);
            let mut bytes = fabricate(version, 99);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(ControlFile::parse(&bytes).is_err());
        }
    }
}
