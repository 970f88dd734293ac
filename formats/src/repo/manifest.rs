//! The manifest of one backup: its files, and for each the extents that make up its content. FORMAT.md, "Manifest".
//!
//! Three things are stored as chunks of the metadata kind: *tree pieces* (records in path order), *table pieces* (the
//! chunk table, which maps ordinals to chunk ids) and the *root*, which lists the pieces. A reader needs the root and
//! then only the pieces it looks at. A child's chunk table begins with its parent's, so that leaves that did not change
//! are the same bytes in both manifests and are stored once.

mod leaf;
mod record;
mod root;

pub use leaf::{Leaf, PatchOp, patch_ops, push_extent};
pub use record::{Content, Entry, Node, PieceReader, PieceWriter, Record};
pub use root::{FREE_BASE, ManifestRoot, TablePiece, TreePiece};

use crate::FormatError;
use std::cmp::Ordering;

/// Pages one leaf covers; the last leaf of a file may cover fewer.
pub const LEAF_PAGES: u32 = 1024;
/// Most extents in a leaf of a file that is not made of pages.
pub const LEAF_EXTENTS_MAX: usize = 1024;
/// Most ids in one piece of the chunk table: 256 KiB.
pub const TABLE_PIECE_IDS_MAX: usize = 8192;
/// Largest file a writer keeps inside its entry.
pub const INLINE_BYTES_MAX: usize = 1024;
/// Largest inline content of a late entry, and the most a reader accepts anywhere.
pub const LATE_BYTES_MAX: usize = 8 << 20;

/// A run of a file. Lengths and offsets are in units: pages for files made of pages, bytes for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in units. The last unit of a file may be cut short by the file's size.
    pub units: u32,
    /// Where the bytes are.
    pub at: ExtentAt,
}

/// Where the bytes of an extent are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentAt {
    /// All bytes are zero.
    Zero,
    /// In a chunk.
    Chunk {
        /// Index into the chunk table.
        ordinal: u32,
        /// First unit in the chunk's plaintext.
        offset: u32,
    },
}

/// Orders paths so that a directory comes directly before what is in it: `/` sorts below every other byte.
#[must_use]
pub fn path_cmp(a: &str, b: &str) -> Ordering {
    let key = |c: u8| if c == b'/' { 0 } else { c };
    a.bytes().map(key).cmp(b.bytes().map(key))
}

/// Checks a path of an entry: relative, without empty, `.` or `..` components and without NUL, so that no manifest can
/// make a restore write outside its target. The root's own path is empty.
///
/// # Errors
/// [`FormatError::BadText`].
pub fn check_path(path: &str) -> Result<(), FormatError> {
    let good = |c: &str| !c.is_empty() && c != "." && c != ".." && !c.contains('\0');
    if path.is_empty() || path.split('/').all(good) {
        return Ok(());
    }
    Err(FormatError::BadText { what: "path in a manifest", detail: path.chars().take(120).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_directly_before_their_content() {
        let mut paths = ["base.x", "base/2", "base", "base-a", "base/1/3", "base/1", ""];
        paths.sort_by(|a, b| path_cmp(a, b));
        assert_eq!(paths, ["", "base", "base/1", "base/1/3", "base/2", "base-a", "base.x"]);
    }

    #[test]
    fn paths_that_could_leave_the_target_are_refused() {
        for bad in ["/etc", "a//b", "../x", "a/..", "a/./b", "a\0", "a/"] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
        check_path("").unwrap();
        check_path("base/1/16384_fsm").unwrap();
    }
}
