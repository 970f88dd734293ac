//! Relation files of two restored backups, page by page.
//!
//! `first` was taken before `second`, which read everything. A page may differ if it changed after the first backup's
//! start: replay of the first one's WAL brings the change. Without checksums it may also differ in hints, which the
//! server writes without WAL. Bits of a visibility map are cleared without a new position in its page, when a logged
//! change of the heap clears them; so the second may have fewer of them. Free space maps are left out: they are corrected as they are used.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use pgkeep_formats::pg::{
    Lsn,
    page::PageHeader,
    path::{Fork, PathClass, classify},
};

const PAGE: usize = 8192;
/// HEAP_XMIN_COMMITTED, HEAP_XMIN_INVALID, HEAP_XMAX_COMMITTED, HEAP_XMAX_INVALID.
const TUPLE_HINTS: u16 = 0x0f00;
/// Offset of `t_infomask` in a tuple's header.
const INFOMASK_AT: usize = 20;

/// What comparing came to.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// Pages that are equal.
    pub(crate) equal: usize,
    /// Pages that changed after the first backup's start.
    pub(crate) later: usize,
    /// Pages that differ in hints only.
    pub(crate) hints: usize,
}

/// Compares all relation files of two data directories.
///
/// # Panics
/// With the first pages that differ and may not.
pub(crate) fn compare(first: &Path, second: &Path, start: Lsn, hints: bool) -> Compared {
    let (ours, theirs) = (files(first), files(second));
    let (mut found, mut wrong) = (Compared::default(), Vec::new());
    let paths: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    for path in paths {
        let (Some(our), Some(their)) = (ours.get(path), theirs.get(path)) else {
            // Only what was made or dropped between the two may be in one alone.
            wrong.push(format!("{path} is in one backup only"));
            continue;
        };
        let (our, their) = (fs::read(our).unwrap(), fs::read(their).unwrap());
        for block in 0..our.len().max(their.len()).div_ceil(PAGE) {
            let page = |bytes: &[u8]| bytes.get(block * PAGE..(block + 1) * PAGE).unwrap_or_default().to_vec();
            let (a, b) = (page(&our), page(&their));
            let lsn = PageHeader::read(&b).map_or(Lsn::INVALID, |header| header.lsn);
            if a == b {
                found.equal += 1;
            } else if lsn > start || is_new(&a, &b) || (is_vm(path) && has_fewer_bits(&a, &b)) {
                found.later += 1;
            } else if hints && differs_in_hints(&a, &b) {
                found.hints += 1;
            } else {
                wrong.push(format!("{path} block {block}: position {lsn}, the first backup started at {start}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
    found
}

/// True for a page by which a file grew, without WAL.
fn is_new(a: &[u8], b: &[u8]) -> bool {
    a.is_empty() && b.iter().all(|byte| *byte == 0)
}

fn is_vm(path: &str) -> bool {
    matches!(classify(path), PathClass::Relation(file) if file.fork == Fork::Vm)
}

/// True if every bit of `b` behind the page header is one of `a` too.
fn has_fewer_bits(a: &[u8], b: &[u8]) -> bool {
    a.len() == PAGE && b.len() == PAGE && a[24..].iter().zip(&b[24..]).all(|(a, b)| b & !a == 0)
}

/// Main, visibility map and init files below a data directory.
fn files(root: &Path) -> BTreeMap<String, PathBuf> {
    let (mut found, mut todo) = (BTreeMap::new(), vec![String::new()]);
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(root.join(&at)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let path = if at.is_empty() { name } else { format!("{at}/{name}") };
            let full = root.join(&path);
            // Through the links of tablespaces.
            if full.is_dir() && ["base", "global", "pg_tblspc"].iter().any(|top| path.starts_with(top)) {
                todo.push(path);
            } else if matches!(classify(&path), PathClass::Relation(file) if file.fork != Fork::Fsm) {
                found.insert(path, full);
            }
        }
    }
    found
}

/// True if two pages are equal but for what the server changes without WAL: bits of tuples that repeat the transaction
/// log, marks on dead index entries, and what a page's header says to speed up a scan.
fn differs_in_hints(a: &[u8], b: &[u8]) -> bool {
    if a.len() != PAGE || b.len() != PAGE || a[..8] != b[..8] {
        return false;
    }
    let (mut a, mut b) = (a.to_vec(), b.to_vec());
    [&mut a, &mut b].into_iter().for_each(|page| mask(page));
    a == b
}

fn mask(page: &mut [u8]) {
    let word = |page: &[u8], at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
    let (lower, special) = (usize::from(word(page, 12)).min(PAGE), usize::from(word(page, 16)).min(PAGE));
    // Checksum, flags, pd_prune_xid.
    page[8..12].fill(0);
    page[20..24].fill(0);
    let is_heap = special == PAGE;
    for at in (24..lower.saturating_sub(3)).step_by(4) {
        let item = u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        let (tuple, flags) = ((item & 0x7fff) as usize, item >> 15 & 3);
        if is_heap && flags == 1 && tuple + INFOMASK_AT + 2 <= PAGE {
            let infomask = word(page, tuple + INFOMASK_AT) & !TUPLE_HINTS;
            page[tuple + INFOMASK_AT..][..2].copy_from_slice(&infomask.to_le_bytes());
        }
        if !is_heap {
            // LP_NORMAL and LP_DEAD.
            page[at..at + 4].copy_from_slice(&(item & !(3 << 15)).to_le_bytes());
        }
    }
    // Index pages note in their special space that there are dead entries.
    page[special..].fill(0);
}
