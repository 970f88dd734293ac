//! The read-only tree of all backups, through the kernel.
#![allow(clippy::unwrap_used, reason = "a test that fails here has found something")]

mod support;

use pgkeep_engine::view::Snapshot;
use pgkeep_engine::{Error, Kind, Result};
use pgkeep_fuse::{MountOptions, tree};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use support::{DirectorySnapshot, Place, noise, run};

struct Labels {
    root: PathBuf,
    labels: Arc<Mutex<Vec<String>>>,
}

impl tree::Catalog for Labels {
    fn labels(&self) -> Result<Vec<String>> {
        Ok(self.labels.lock().unwrap().clone())
    }

    fn open(&self, label: &str) -> Result<Arc<dyn Snapshot>> {
        if !self.root.join(label).exists() {
            return Err(Error::refused(Kind::Absent, format!("no backup '{label}'")));
        }
        Ok(Arc::new(DirectorySnapshot::new(&self.root.join(label))))
    }
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn backups_are_listed_read_and_never_written() {
    let place = Place::new();
    let base = place.base();
    fs::create_dir_all(base.join("20260101-000000F/base/5")).unwrap();
    fs::write(base.join("20260101-000000F/base/5/1"), noise(1, 3_000_000)).unwrap();
    fs::write(base.join("20260101-000000F/PG_VERSION"), "15\n").unwrap();
    symlink("PG_VERSION", base.join("20260101-000000F/linked")).unwrap();
    let labels = Arc::new(Mutex::new(vec!["20260101-000000F".to_owned()]));
    let catalog = Labels { root: base.clone(), labels: Arc::clone(&labels) };
    let session = tree::serve(catalog, &place.mountpoint(), &MountOptions::default()).unwrap();
    let mnt = place.mountpoint();

    assert_eq!(names(&mnt), ["20260101-000000F", "latest"]);
    assert_eq!(fs::read_link(mnt.join("latest")).unwrap(), Path::new("20260101-000000F"));
    assert_eq!(names(&mnt.join("latest")), ["PG_VERSION", "base", "linked"]);
    assert!(fs::read(mnt.join("latest/base/5/1")).unwrap() == noise(1, 3_000_000));
    assert_eq!(fs::read(mnt.join("latest/linked")).unwrap(), b"15\n");
    assert!(fs::symlink_metadata(mnt.join("latest/linked")).unwrap().is_file());
    assert_eq!(fs::metadata(mnt.join("latest/nothing")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    run(Command::new("diff").arg("-r").arg(base.join("20260101-000000F")).arg(mnt.join("20260101-000000F")));

    for result in [
        fs::write(mnt.join("new"), ""),
        fs::write(mnt.join("latest/PG_VERSION"), "16"),
        fs::remove_file(mnt.join("latest/PG_VERSION")),
        fs::create_dir(mnt.join("latest/d")),
        fs::rename(mnt.join("latest/PG_VERSION"), mnt.join("latest/x")),
    ] {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS));
    }
    rustix::fs::statvfs(&mnt).unwrap();

    fs::create_dir(base.join("20260102-000000F")).unwrap();
    fs::write(base.join("20260102-000000F/PG_VERSION"), "16\n").unwrap();
    labels.lock().unwrap().push("20260102-000000F".to_owned());
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    assert_eq!(names(&mnt), ["20260101-000000F", "20260102-000000F", "latest"]);
    assert_eq!(fs::read(mnt.join("latest/PG_VERSION")).unwrap(), b"16\n");
    assert_eq!(fs::read(mnt.join("20260101-000000F/PG_VERSION")).unwrap(), b"15\n");
    session.unmount().unwrap();
}
