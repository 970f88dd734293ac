//! Manifests: reading one backup's tree, and building the next one's. Layout: FORMAT.md, "Manifest".
//!
//! A reader holds the root and a few pieces; a builder holds the piece it is writing, the ids not yet in a piece, and a
//! bit an ordinal. Neither grows with the bytes of the cluster but by 32 bytes for some 60 KiB of tree.

mod build;
mod leaves;
mod read;
mod records;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use build::BAD_PAGES_MAX;
pub use build::{BuiltEntry, ManifestBuilder, ManifestSummary};
pub use read::{FileRecord, Manifest};
pub use records::{Entries, ManifestReader};
