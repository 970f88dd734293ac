//! What comes back is what was there.

use super::*;
use std::os::unix::fs::{FileExt, PermissionsExt};

#[test]
fn a_tree_comes_back_into_a_directory_that_does_not_exist() {
    let rig = Rig::with_tree();
    rig.back_up(&TreeOptions::new("20240101-000000F"));
    let report = rig.restore(&rig.options()).unwrap();
    assert_same(&rig.source(), &rig.target());
    assert_eq!((report.label.as_str(), report.plan.files), ("20240101-000000F", 6));
}
