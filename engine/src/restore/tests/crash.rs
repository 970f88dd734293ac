//! A restore that is broken off: nothing starts on what it leaves, and the next one completes it.

use super::*;
use crate::Kind;
use crate::restore::MARKER;
use crate::store::{Damage, Fault, FaultStore, RecordingStore, Verb};
use pgkeep_formats::repo::layout;

/// A tree of several packs' worth of windows, so that there is much to break off.
fn rig() -> Rig {
    let rig = Rig::with_tree();
    for n in 1..12u8 {
        rig.file(&format!("base/6/{n}"), &noise(8192 * 5 * usize::from(n), n));
    }
    rig.back_up(&TreeOptions::new("20240101-000000F"));
    rig
}

#[test]
fn wherever_the_store_fails_the_next_restore_completes() {
    let rig = rig();
    let counted = Arc::new(RecordingStore::new(rig.store.clone()));
    restore(&rig.reopened(Arc::clone(&counted) as Arc<dyn Store>), &rig.options()).unwrap();
    let gets = counted.count(Verb::Get) as u64;
    std::fs::remove_dir_all(rig.target()).unwrap();
    let mut broken_off = 0;
    for k in 1..=gets {
        let faults = Arc::new(FaultStore::new(rig.store.clone()));
        let repository = rig.reopened(Arc::clone(&faults) as Arc<dyn Store>);
        faults.fail(Verb::Get, k, Fault::Permanent);
        let Err(_) = restore(&repository, &rig.options()) else { continue };
        let target = rig.target();
        if target.exists() {
            broken_off += 1;
            assert!(target.join(MARKER).exists(), "get {k}");
            assert!(!target.join("global/pg_control").exists(), "get {k}");
            // Neither --delta nor --force is needed: the marker says why the directory is not empty.
            restore(&repository, &rig.options()).unwrap();
            assert_same(&rig.source(), &target);
            std::fs::remove_dir_all(&target).unwrap();
        }
    }
    assert!(broken_off > 0, "{gets} gets");
}

#[test]
fn a_delta_that_is_broken_off_leaves_nothing_to_start_and_can_be_repeated() {
    let rig = rig();
    rig.restore(&rig.options()).unwrap();
    put(&rig.target().join("base/6/9"), b"damaged");
    let name = pack_of(&rig);
    let faults = Arc::new(FaultStore::new(rig.store.clone()));
    let repository = rig.reopened(Arc::clone(&faults) as Arc<dyn Store>);
    faults.damage(&name, Damage::Truncate(100));
    let delta = RestoreOptions { delta: true, ..rig.options() };
    restore(&repository, &delta).unwrap_err();
    assert!(!rig.target().join("global/pg_control").exists());
    faults.heal();
    // Times are not trusted now, though --force asks to.
    restore(&repository, &RestoreOptions { force: true, ..delta }).unwrap();
    assert_same(&rig.source(), &rig.target());
}

#[test]
fn a_request_to_stop_ends_it_before_pg_control() {
    let rig = rig();
    let cancel = Cancel::default();
    cancel.cancel();
    let env = Env { observer: &Silent, cancel: &cancel, clock: &SystemClock };
    let error = run(std::slice::from_ref(&rig.repository), &rig.options(), &env).unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted);
    assert!(!rig.target().join("global/pg_control").exists());
}

#[test]
fn a_finished_clusters_stray_marker_allows_nothing() {
    let rig = rig();
    rig.restore(&rig.options()).unwrap();
    put(&rig.target().join(MARKER), b"20240101-000000F\n");
    assert_eq!(rig.restore(&rig.options()).unwrap_err().kind(), Kind::PathNotEmpty);
    rig.restore(&RestoreOptions { delta: true, ..rig.options() }).unwrap();
    assert_same(&rig.source(), &rig.target());
}

/// The largest pack: that of the data.
fn pack_of(rig: &Rig) -> String {
    let mut packs = Vec::new();
    rig.store.list(layout::PACKS, crate::store::Depth::All, &mut |l| packs.push((l.size, l.key))).unwrap();
    packs.sort();
    packs.pop().unwrap().1
}

#[test]
fn damage_is_named_with_the_file_it_hits() {
    let rig = rig();
    let name = pack_of(&rig);
    for (damage, kinds) in [
        (Damage::Flip(200_000), [Kind::Crypto, Kind::Checksum]),
        (Damage::Truncate(200_000), [Kind::FileRead, Kind::Service]),
    ] {
        let faults = Arc::new(FaultStore::new(rig.store.clone()));
        let repository = rig.reopened(Arc::clone(&faults) as Arc<dyn Store>);
        faults.damage(&name, damage);
        let error = restore(&repository, &rig.options()).unwrap_err();
        assert!(kinds.contains(&error.kind()), "{damage:?}: {:?}", error.kind());
        let text = error.to_string();
        assert!(text.starts_with("cannot restore '") && text.contains("/target/"), "{text}");
        assert!(!rig.target().join("global/pg_control").exists());
    }
    rig.store.delete(&name).unwrap();
    let error = rig.restore(&rig.options()).unwrap_err();
    assert_eq!(error.kind(), Kind::FileMissing);
    assert!(error.to_string().starts_with("cannot restore '"), "{error}");
}
