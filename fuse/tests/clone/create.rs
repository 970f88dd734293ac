//! Clones are made, refused and destroyed, and what is not one is left alone.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pgkeep_engine::{Error, Kind, Result};
use pgkeep_fuse::clone::{self, Added, CloneInfo, CreateOptions};

use crate::backup::{fill, same_tree};
use crate::support::{DirectorySnapshot, Place, alone, run};

fn create(dir: &Path, snapshot: &DirectorySnapshot, options: &CreateOptions) -> Result<CloneInfo> {
    alone(|| clone::create(dir, snapshot, options))
}

fn destroy(dir: &Path) -> Result<()> {
    alone(|| clone::destroy(dir))
}

/// Serves a clone of a place's backup, which fails.
fn serve_error(place: &Place, dir: &Path, mountpoint: &Path) -> Error {
    let snapshot = Arc::new(DirectorySnapshot::new(&place.base()));
    alone(|| clone::serve(dir, snapshot, mountpoint, &Default::default())).unwrap_err()
}

#[test]
fn creating_copies_only_small_files_and_a_miss_fetches_its_chunk() {
    let place = Place::new();
    fill(&place);
    let snapshot = DirectorySnapshot::new(&place.base());
    let fetched = snapshot.fetched();
    let info = create(&place.clone_dir(), &snapshot, &CreateOptions::default()).unwrap();
    assert_eq!((info.files, info.base_files), (5, 2));
    assert_eq!(fetched.swap(0, Ordering::SeqCst), 65_536 + 3);
    let session = place.serve_snapshot(snapshot);
    let file = File::open(place.mountpoint().join("base/5/large")).unwrap();
    file.read_exact_at(&mut [0; 100], 1_500_000).unwrap();
    assert_eq!(fetched.load(Ordering::SeqCst), 256 << 10, "what a chunk holds");
    drop(file);
    session.unmount().unwrap();
}

#[test]
fn the_caller_adds_replaces_and_leaves_out() {
    let place = Place::new();
    fill(&place);
    let added = |path: &str, text: &str| Added { path: path.into(), bytes: text.into(), mode: 0o600 };
    let options = CreateOptions {
        identity: vec![("label".into(), "x".into())],
        write: vec![added("PG_VERSION", "16\n"), added("recovery.signal", ""), added("base/5/odd", "replaced")],
        remove: vec!["base/5/small".into()],
        ..CreateOptions::default()
    };
    create(&place.clone_dir(), &DirectorySnapshot::new(&place.base()), &options).unwrap();
    assert_eq!(clone::info(&place.clone_dir()).unwrap().identity, options.identity);
    assert_eq!(clone::list(&place.path("")).unwrap().len(), 1);
    let session = place.serve();
    let mnt = place.mountpoint();
    assert_eq!(fs::read(mnt.join("PG_VERSION")).unwrap(), b"16\n");
    assert_eq!(fs::read(mnt.join("base/5/odd")).unwrap(), b"replaced");
    assert!(mnt.join("recovery.signal").exists() && !mnt.join("base/5/small").exists());
    session.unmount().unwrap();
}

#[test]
fn a_creation_that_died_is_made_anew_and_nothing_else_is_touched() {
    let place = Place::new();
    fill(&place);
    let snapshot = DirectorySnapshot::new(&place.base());
    snapshot.broken().store(true, Ordering::SeqCst);
    create(&place.clone_dir(), &snapshot, &CreateOptions::default()).unwrap_err();
    assert!(place.clone_dir().join("data").exists());
    let error = serve_error(&place, &place.clone_dir(), &place.mountpoint());
    assert_eq!(error.kind(), Kind::PathMissing);
    place.create();
    let again = create(&place.clone_dir(), &snapshot, &CreateOptions::default()).unwrap_err();
    assert_eq!(again.kind(), Kind::PathNotEmpty);
    let foreign = place.path("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("precious"), "").unwrap();
    for error in [create(&foreign, &snapshot, &CreateOptions::default()).unwrap_err(), destroy(&foreign).unwrap_err()] {
        assert_eq!(error.kind(), Kind::PathNotEmpty);
    }
    let session = place.serve();
    same_tree(&place.base(), &place.mountpoint());
    let second = serve_error(&place, &place.clone_dir(), &place.base());
    assert_eq!(second.kind(), Kind::LockAcquire);
    assert_eq!(destroy(&place.clone_dir()).unwrap_err().kind(), Kind::LockAcquire);
    session.unmount().unwrap();
    destroy(&place.clone_dir()).unwrap();
    assert!(!place.clone_dir().exists());
}

#[test]
fn a_directory_that_is_not_marked_as_a_clone_is_left_alone() {
    let place = Place::new();
    fill(&place);
    let snapshot = DirectorySnapshot::new(&place.base());
    let dir = place.path("project");
    let refused = |what: &str| {
        let destroyed = destroy(&dir).unwrap_err();
        let created = create(&dir, &snapshot, &CreateOptions::default()).unwrap_err();
        assert_eq!((destroyed.kind(), created.kind()), (Kind::PathNotEmpty, Kind::PathNotEmpty), "{what}");
    };
    fs::create_dir_all(dir.join("meta")).unwrap();
    fs::write(dir.join("meta/report.txt"), "x").unwrap();
    refused("a file of somebody's meta");
    fs::remove_file(dir.join("meta/report.txt")).unwrap();
    fs::write(dir.join("meta/lock"), "somebody's").unwrap();
    refused("somebody's lock");
    fs::write(dir.join("meta/lock"), "").unwrap();
    fs::create_dir(dir.join("data")).unwrap();
    fs::write(dir.join("data/table.csv"), "x").unwrap();
    refused("somebody's data beside an empty lock");
    fs::write(dir.join("meta/files"), "x").unwrap();
    refused("a name of ours without the mark");
    for path in ["meta/files", "data/table.csv", "meta/lock"] {
        assert!(dir.join(path).exists(), "{path} is gone");
    }
    fs::remove_dir_all(&dir).unwrap();

    // A clone with a stranger's file in it is left whole.
    place.create();
    for stranger in ["note", "meta/note"] {
        fs::write(place.clone_dir().join(stranger), "x").unwrap();
        assert_eq!(destroy(&place.clone_dir()).unwrap_err().kind(), Kind::PathNotEmpty);
        clone::info(&place.clone_dir()).unwrap();
        fs::remove_file(place.clone_dir().join(stranger)).unwrap();
    }
    // One made before the mark was.
    fs::write(place.clone_dir().join("meta/lock"), "").unwrap();
    destroy(&place.clone_dir()).unwrap();
    assert!(!place.clone_dir().exists());
}

#[test]
fn a_copied_clone_is_refused() {
    let place = Place::new();
    fill(&place);
    place.create();
    run(Command::new("cp").arg("-r").arg(place.clone_dir()).arg(place.path("copy")));
    let error = serve_error(&place, &place.path("copy"), &place.mountpoint());
    assert_eq!(error.kind(), Kind::FileInvalid);
}
