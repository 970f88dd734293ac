//! PostgreSQL's own file formats, for majors 13 to 18.

pub mod control;
pub mod label;
pub mod lsn;
pub mod page;
pub mod path;
pub mod timeline;
pub mod version;
pub mod wal;
