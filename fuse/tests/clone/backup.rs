//! The backup that most tests clone, and whether a clone shows it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::support::{Place, noise};

/// Names, modes, times, owners and contents of two directories are the same.
pub(crate) fn same_tree(a: &Path, b: &Path) {
    let mut names: Vec<_> = fs::read_dir(a).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let mut others: Vec<_> = fs::read_dir(b).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    others.sort();
    assert_eq!(names, others, "in {}", a.display());
    for name in names {
        let (a, b) = (a.join(&name), b.join(&name));
        let (left, right) = (fs::metadata(&a).unwrap(), fs::metadata(&b).unwrap());
        assert_eq!(left.mode(), right.mode(), "mode of {}", a.display());
        assert_eq!(left.mtime(), right.mtime(), "time of {}", a.display());
        assert_eq!((left.uid(), left.gid()), (right.uid(), right.gid()), "owner of {}", a.display());
        if left.is_dir() {
            same_tree(&a, &b);
        } else {
            assert!(fs::read(&a).unwrap() == fs::read(&b).unwrap(), "content of {}", a.display());
        }
    }
}

/// Makes it.
pub(crate) fn fill(place: &Place) {
    let base = place.base();
    fs::create_dir_all(base.join("base/5")).unwrap();
    fs::create_dir(base.join("pg_tblspc")).unwrap();
    fs::write(base.join("PG_VERSION"), "15\n").unwrap();
    fs::write(base.join("empty"), "").unwrap();
    fs::write(base.join("base/5/small"), noise(1, 65_536)).unwrap();
    fs::write(base.join("base/5/large"), noise(2, 3 << 20)).unwrap();
    fs::write(base.join("base/5/odd"), noise(3, 100_001)).unwrap();
    fs::set_permissions(base.join("base/5/odd"), PermissionsExt::from_mode(0o640)).unwrap();
}
