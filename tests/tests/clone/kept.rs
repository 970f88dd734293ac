//! What one clone has read of the repository another need not ask for.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use crate::places::{Places, everything, world};

/// Packs are read-only files.
fn overwrite(path: &Path, bytes: &[u8]) {
    let mode = fs::metadata(path).unwrap().permissions();
    fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

#[test]
fn clones_share_what_they_have_read() {
    let (world, _) = world();
    let table = world.cluster.psql("SELECT pg_relation_filepath('pgbench_accounts')");
    let packs = world.sandbox.repo().join("packs");
    let away = world.path("packs.away");
    let read = |name: &str, more: &[&str]| {
        let places = Places::new(&world, name);
        let run = world.run(
            places
                .args("create")
                .into_iter()
                .chain(["--type=immediate".to_owned()])
                .chain(more.iter().map(|arg| (*arg).to_owned())),
        );
        let content = (run.code == Some(0)).then(|| fs::read(places.mountpoint.join(&table)).ok());
        if content.is_some() {
            world.ok(places.args("destroy"));
        }
        content.flatten()
    };
    let kept = "--repo1-clone-cache-size=256MiB";
    // What was damaged in the repository when it was read, and kept, is asked for again when that is good again.
    let good: Vec<_> = everything(&packs).into_iter().filter(|(path, _)| path.is_file()).collect();
    for (path, (_, bytes)) in &good {
        let damaged: Vec<u8> =
            bytes.iter().enumerate().map(|(at, byte)| if at % 5000 == 100 { byte ^ 1 } else { *byte }).collect();
        overwrite(path, &damaged);
    }
    assert!(read("zero", &[kept]).is_none());
    for (path, (_, bytes)) in &good {
        overwrite(path, bytes);
    }
    let first = read("one", &[kept]).unwrap();
    // What goes with a damaged piece is asked for again as well.
    assert!(read("once more", &[kept]).unwrap() == first);
    fs::rename(&packs, &away).unwrap();
    // Nothing is left to ask, so whoever has kept nothing has nothing.
    assert!(read("two", &[kept]).unwrap() == first);
    assert!(read("three", &[]).is_none());
    // A drill proves the repository.
    let dirs =
        [format!("--dir={}", world.sandbox.dir("d").display()), format!("--pg-bin={}", world.pg_bin().display())];
    world.expect(81, ["drill".to_owned(), kept.to_owned()].into_iter().chain(dirs));
    fs::rename(&away, &packs).unwrap();

    // What is damaged there is asked for.
    let cache = world.path("cache/cache");
    let mut damaged = 0;
    for repository in fs::read_dir(&cache).unwrap() {
        for file in fs::read_dir(repository.unwrap().path().join("packs")).unwrap() {
            let path = file.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            bytes.iter_mut().skip(100).step_by(5000).for_each(|byte| *byte ^= 1);
            fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    assert!(read("four", &[kept]).unwrap() == first);
}
