//! Compares two directory trees byte by byte: names, kinds, modes, link targets, sizes, contents.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// All files below a directory, with their sizes.
///
/// # Panics
/// When a directory cannot be read.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    for name in names(dir) {
        let path = dir.join(name);
        match metadata(&path) {
            facts if facts.is_dir() => found.append(&mut files(&path)),
            facts => _ = found.insert(path, facts.len()),
        }
    }
    found
}

/// The differences between two trees, one line each, by path; none means equal.
///
/// `skip` is asked about every path relative to the roots; what it answers `true` for is left out, with all below it.
/// Times and owners are not compared, and holes equal zeros.
///
/// # Panics
/// When a file or directory cannot be read.
pub fn differences(left: &Path, right: &Path, skip: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    compare(left, right, Path::new(""), &skip, &mut found);
    found
}

/// Panics with the differences between two trees, if there are any. Arguments as for [`differences`].
pub fn assert_same(left: &Path, right: &Path, skip: impl Fn(&Path) -> bool) {
    let found = differences(left, right, skip);
    assert!(found.is_empty(), "{} and {} differ:\n  {}", left.display(), right.display(), found.join("\n  "));
}

fn compare(left: &Path, right: &Path, at: &Path, skip: &impl Fn(&Path) -> bool, found: &mut Vec<String>) {
    let (ours, theirs) = (names(&left.join(at)), names(&right.join(at)));
    for name in ours.union(&theirs) {
        let path = at.join(name);
        if skip(&path) {
            continue;
        }
        if !theirs.contains(name) {
            found.push(format!("{}: only left", path.display()));
        } else if !ours.contains(name) {
            found.push(format!("{}: only right", path.display()));
        } else {
            compare_entry(left, right, &path, skip, found);
        }
    }
}

fn compare_entry(left: &Path, right: &Path, path: &Path, skip: &impl Fn(&Path) -> bool, found: &mut Vec<String>) {
    let (ours, theirs) = (left.join(path), right.join(path));
    let (our, their) = (metadata(&ours), metadata(&theirs));
    if our.mode() != their.mode() {
        found.push(format!("{}: mode {:o}, {:o}", path.display(), our.mode(), their.mode()));
    }
    if our.file_type() != their.file_type() {
        return;
    }
    if our.is_dir() {
        compare(left, right, path, skip, found);
    } else if our.is_symlink() {
        let (our, their) = (fs::read_link(&ours), fs::read_link(&theirs));
        let (our, their) = (our.expect("cannot read a link"), their.expect("cannot read a link"));
        if our != their {
            found.push(format!("{}: link to {}, {}", path.display(), our.display(), their.display()));
        }
    } else if our.is_file() {
        if our.len() != their.len() {
            found.push(format!("{}: {} bytes, {}", path.display(), our.len(), their.len()));
        } else if let Some(offset) = first_difference(&ours, &theirs) {
            found.push(format!("{}: content from byte {offset}", path.display()));
        }
    }
}

fn names(dir: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("cannot list {}: {error}", dir.display()));
    entries.map(|entry| entry.expect("cannot list a directory").file_name().into()).collect()
}

fn metadata(path: &Path) -> fs::Metadata {
    fs::symlink_metadata(path).unwrap_or_else(|error| panic!("cannot look at {}: {error}", path.display()))
}

fn first_difference(left: &Path, right: &Path) -> Option<u64> {
    let (mut ours, mut theirs) = (open(left), open(right));
    let (mut our, mut their) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut offset = 0;
    loop {
        let count = fill(&mut ours, &mut our);
        let other = fill(&mut theirs, &mut their);
        if let Some(at) = (0..count.min(other)).find(|at| our[*at] != their[*at]) {
            return Some(offset + at as u64);
        }
        if count != other {
            return Some(offset + count.min(other) as u64);
        }
        if count == 0 {
            return None;
        }
        offset += count as u64;
    }
}

fn open(path: &Path) -> File {
    File::open(path).unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()))
}

/// Reads until the buffer is full or the file ends: two files may give their bytes in different pieces.
fn fill(file: &mut File, buffer: &mut [u8]) -> usize {
    let mut count = 0;
    while count < buffer.len() {
        match file.read(&mut buffer[count..]).expect("cannot read") {
            0 => break,
            more => count += more,
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::differences;

    #[test]
    fn every_kind_of_difference_is_seen_and_skipped_paths_are_not() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [left, right] = [dirs[0].path(), dirs[1].path()];
        for root in [left, right] {
            fs::create_dir_all(root.join("base/1")).unwrap();
            fs::create_dir(root.join("log")).unwrap();
            fs::write(root.join("base/1/1259"), vec![7; 100_000]).unwrap();
            symlink("/elsewhere", root.join("link")).unwrap();
        }
        assert_eq!(differences(left, right, |_| false), Vec::<String>::new());

        fs::write(left.join("log/only"), "").unwrap();
        fs::write(right.join("extra"), "").unwrap();
        fs::write(left.join("short"), "a").unwrap();
        fs::write(right.join("short"), "ab").unwrap();
        fs::remove_file(right.join("link")).unwrap();
        symlink("/other", right.join("link")).unwrap();
        let mut bytes = vec![7; 100_000];
        bytes[70_000] = 8;
        fs::write(right.join("base/1/1259"), bytes).unwrap();
        assert_eq!(
            differences(left, right, |path| path == Path::new("log")),
            [
                "base/1/1259: content from byte 70000",
                "extra: only right",
                "link: link to /elsewhere, /other",
                "short: 1 bytes, 2"
            ]
        );
    }
}
