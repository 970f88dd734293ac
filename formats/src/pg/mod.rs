//! PostgreSQL's own file formats, for majors 13 to 18.

pub mod control;
pub mod label;
pub mod lsn;
pub mod page;
pub mod path;
pub mod summary;
pub mod timeline;
pub mod version;
pub mod wal;

pub use control::{ControlFile, DbState};
pub use label::BackupLabelFile;
pub use lsn::Lsn;
pub use summary::{RelationLocator, SummaryName, WalSummary};
pub use timeline::{TimelineHistory, TimelineId};
pub use version::Version;
pub use wal::{ArchiveName, WalHeader, WalSegment, WalSegmentSize};
