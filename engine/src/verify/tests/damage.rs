//! Objects taken away, cut off, altered and swapped: each is named, and the backups that need it are.

use super::fixture::{Repo, all, files, kind, noise};
use crate::Kind;
use crate::observe::{Cancel, Silent};
use crate::store::Store;
use crate::verify::{BackupProblem, Flaw, Garbage, VerifyOptions, VerifyReport, run};
use pgkeep_formats::repo::layout;

/// Two backups of one stanza that share nothing, and one of another stanza that shares most with the first.
fn three(repo: &Repo) {
    repo.stanza("other");
    repo.backup("demo", "20240101-000000F", &files(1), |_| ());
    repo.backup("demo", "20240102-000000F", &files(2), |_| ());
    let mut third = files(1);
    third.insert("own", noise(2, 50));
    repo.backup("other", "20240103-000000F", &third, |_| ());
}

fn hit(report: &VerifyReport) -> Vec<&str> {
    report.backups.iter().filter(|b| !b.problems.is_empty()).map(|b| b.label.as_str()).collect()
}

#[test]
fn a_whole_repository_is_clean_with_an_index_on_disk_or_in_memory() {
    for repo in [Repo::new(), Repo::cached()] {
        assert!(repo.verify().is_clean());
        three(&repo);
        let report = repo.verify();
        assert!(report.is_clean(), "{report:#?}");
        assert!(report.damage.is_empty() && report.warnings.is_empty(), "{report:#?}");
        assert_eq!(report.garbage, Some(Garbage::default()));
        assert_eq!(report.backups.len(), 3);
        let counts = report.counts;
        assert_eq!((counts.backups, counts.packs), (3, repo.keys("packs/").len() as u64));
        assert_eq!(counts.index_segments, repo.keys("idx/").len() as u64);
        let records: usize = ["keys/", "sk/", "ses/", "gen/"].iter().map(|p| repo.keys(p).len()).sum();
        assert_eq!(counts.records, records as u64);
        // Pages of the first and the second backup; the third one's are mostly those of the first.
        assert!(counts.plain_bytes > 2 * 27 * 8192, "{counts:?}");
        // Again, now that the local index is warm, and with one thread.
        let again = repo.try_verify(&VerifyOptions { jobs: 1, ..all() }).unwrap();
        assert_eq!(again.counts, counts);
    }
}

#[test]
fn every_flip_truncation_and_removal_is_found_in_every_object() {
    let made = Repo::new();
    three(&made);
    made.wal(1, 1);
    made.wal(1, 2);
    made.archive("00000002.history", b"1\t0/300000\tno reason\n");
    let whole = made.store.snapshot();
    let names: Vec<String> = whole.keys().map(str::to_owned).collect();
    for name in names {
        // Opening a repository needs these; there is no verification without them.
        if name == layout::FORMAT || name.starts_with("keys/") {
            continue;
        }
        let len = whole.get(&name).unwrap().len();
        for (what, at) in [("flip", 0), ("flip", len / 2), ("flip", len - 1), ("cut", len - 1), ("remove", 0)] {
            made.store.restore(&whole);
            match what {
                "flip" => assert!(made.store.tamper(&name, |bytes| bytes[at] ^= 0x10)),
                "cut" => assert!(made.store.tamper(&name, |bytes| bytes.truncate(at))),
                _ => made.store.delete(&name).unwrap(),
            }
            let report = match made.try_verify(&all()) {
                Ok(report) => report,
                Err(e) => {
                    assert!(name.starts_with("gen/"), "{what} {name}: {e}");
                    continue;
                }
            };
            // These can be missing without harm: unfinished sessions, a removed backup, WAL that nobody needs.
            let harmless = ["ses/", "backups/", "wal/", "stanzas/"].iter().any(|p| name.starts_with(p));
            if what == "remove" && harmless {
                continue;
            }
            assert!(!report.is_clean(), "{what} {name} at {at} was not found");
            let about = |object: &str, detail: &str| {
                name.starts_with(object) || object.starts_with(&name) || detail.contains(&name)
            };
            // The removal of an index segment shows in what it pointed to.
            let named = report.damage.iter().any(|d| about(&d.object, &d.detail));
            assert!(named || what == "remove" && name.starts_with("idx/"), "{what} {name}: {:#?}", report.damage);
        }
    }
}

#[test]
fn page_hashes_that_are_not_the_pages_are_found_and_nothing_more_is_built_on_them() {
    let repo = Repo::new();
    repo.lies.set(true);
    repo.backup("demo", "20240101-000000F", &files(1), |_| ());
    let report = repo.verify();
    assert!(!report.is_clean());
    let told = report.damage.iter().filter(|d| d.detail.contains("hashes of its pages")).count();
    // Six chunks of four pages or fewer in one file, one whole one in the other.
    assert_eq!(told, 7, "{report:#?}");
    assert!(hit(&report).is_empty(), "every chunk is whole: {report:#?}");
    assert!(!repo.open().marked_packs().unwrap().is_empty());
}

#[test]
fn swapped_objects_are_found() {
    let made = Repo::new();
    three(&made);
    let whole = made.store.snapshot();
    for prefix in ["packs/", "idx/", "refs/", "backups/demo/", "sk/", "ses/"] {
        made.store.restore(&whole);
        let names = made.keys(prefix);
        let (one, two) = (whole.get(&names[0]).unwrap().to_vec(), whole.get(&names[1]).unwrap().to_vec());
        made.store.tamper(&names[0], |bytes| *bytes = two);
        made.store.tamper(&names[1], |bytes| *bytes = one);
        let report = made.verify();
        assert!(report.damage_total >= 2, "{prefix}: {:#?}", report.damage);
        assert!(!report.is_clean());
    }
}

#[test]
fn a_damaged_chunk_hits_the_files_and_backups_that_use_it_and_no_others() {
    for repo in [Repo::new(), Repo::cached()] {
        three(&repo);
        let second = repo.open().backups("demo").unwrap()[1].clone();
        let refs = repo.open().read_refs(second.session).unwrap().unwrap();
        // The largest pack of the second backup is one of full data packs.
        let pack =
            refs.packs().max_by_key(|p| repo.store.get(&layout::pack(*p), crate::store::Range::Whole).unwrap().len());
        let name = layout::pack(pack.unwrap());
        repo.store.tamper(&name, |bytes| bytes[1000] ^= 1);
        let report = repo.verify();
        assert_eq!(hit(&report), ["20240102-000000F"]);
        let expected = BackupProblem::Files { count: 1, named: vec!["base_1".to_owned()] };
        assert_eq!(report.backups[1].problems, [expected]);
        let of_pack: Vec<_> = report.damage.iter().map(|d| (d.object.as_str(), d.flaw)).collect();
        // The hash of the whole, and the chunk.
        assert_eq!(of_pack, [(name.as_str(), Flaw::Damaged), (name.as_str(), Flaw::Damaged)]);
        assert_eq!(report.garbage, None);
    }
}

#[test]
fn a_damaged_footer_costs_no_backup_while_its_chunks_are_whole() {
    let repo = Repo::new();
    three(&repo);
    let name = repo.keys("packs/").remove(0);
    repo.store.tamper(&name, |bytes| {
        let at = bytes.len() - 40;
        bytes[at] ^= 1;
    });
    let report = repo.verify();
    assert_eq!(report.damage_total, 2, "{:#?}", report.damage);
    assert!(report.damage.iter().all(|d| d.object == name));
    assert_eq!(hit(&report), <[&str; 0]>::default());
    assert!(!report.is_clean());
}

#[test]
fn a_missing_pack_is_one_finding_and_hits_all_who_need_it() {
    let repo = Repo::new();
    three(&repo);
    let first = repo.open().backups("demo").unwrap()[0].clone();
    let refs = repo.open().read_refs(first.session).unwrap().unwrap();
    let shared = repo.open().read_refs(repo.open().backups("other").unwrap()[0].session).unwrap().unwrap();
    let pack = refs.packs().find(|p| shared.packs().any(|s| s == *p)).unwrap();
    repo.store.delete(&layout::pack(pack)).unwrap();
    let report = repo.verify();
    assert_eq!(hit(&report), ["20240101-000000F", "20240103-000000F"]);
    let found: Vec<_> = report.damage.iter().map(|d| (d.object.clone(), d.flaw)).collect();
    assert_eq!(found, [(layout::pack(pack), Flaw::Missing)]);
}

#[test]
fn missing_packs_are_named_also_if_no_manifest_is_left_to_ask_for_them() {
    let repo = Repo::new();
    three(&repo);
    let packs = repo.keys(layout::PACKS);
    packs.iter().for_each(|name| repo.store.delete(name).unwrap());
    let report = repo.verify();
    let found: Vec<_> = report.damage.iter().map(|d| (d.object.as_str(), d.flaw)).collect();
    let expected: Vec<_> = packs.iter().map(|name| (name.as_str(), Flaw::Missing)).collect();
    assert_eq!((found, report.damage_total), (expected, packs.len() as u64));
    assert_eq!(hit(&report).len(), 3);
}

#[test]
fn what_no_backup_uses_is_garbage_and_no_damage() {
    let repo = Repo::new();
    three(&repo);
    let second = repo.open().backups("demo").unwrap()[1].clone();
    repo.store.delete(&layout::backup("demo", second.session)).unwrap();
    let report = repo.verify();
    assert!(report.is_clean(), "{report:#?}");
    let garbage = report.garbage.unwrap();
    assert!(garbage.packs >= 3 && garbage.bytes > 27 * 8192, "{garbage:?}");
    // Perhaps somebody deleted a backup.
    let refs = layout::refs(second.session);
    let told = report.warnings.iter().filter(|w| w.contains(&refs) && w.contains("neither committed nor was fenced"));
    assert_eq!((told.count(), report.warnings_total), (1, 1), "{:?}", report.warnings);
}

#[test]
fn a_backup_whose_manifest_is_in_no_index_is_damage_and_not_missing_wal() {
    let repo = Repo::new();
    three(&repo);
    repo.keys("idx/").iter().for_each(|name| repo.store.delete(name).unwrap());
    let report = repo.verify();
    assert_eq!(hit(&report).len(), 3);
    assert!(report.is_damaged(), "{report:#?}");
    assert!(report.backups.iter().all(|b| b.problems.iter().any(BackupProblem::hinders_restore)));
}

#[test]
fn missing_wal_alone_is_no_damage() {
    let repo = Repo::new();
    repo.backup("demo", "20240101-000000F", &files(1), super::fixture::needs((1, 1), 3));
    [1, 3].iter().for_each(|n| repo.wal(1, *n));
    let report = repo.verify();
    assert!(!report.is_clean() && !report.is_damaged(), "{report:#?}");
}

#[test]
fn a_lost_history_is_damage() {
    let repo = Repo::new();
    three(&repo);
    let name = layout::stanza_history("demo", 1);
    repo.store.delete(&name).unwrap();
    let report = repo.verify();
    let found: Vec<_> = report.damage.iter().map(|d| (d.object.as_str(), d.flaw)).collect();
    assert_eq!(found, [(name.as_str(), Flaw::Missing)]);
    assert!(report.damage[0].detail.contains("repair history"), "{report:#?}");
}

#[test]
fn foreign_objects_are_warnings() {
    let repo = Repo::new();
    three(&repo);
    for key in [
        "lost/and/found",
        "packs/aa/README",
        "idx/x",
        "gen/latest",
        "wal/demo/15-1/README",
        "wal/demo/14-9/x",
        "backups/demo/.nfs01",
        "refs/x",
        "bad/x",
    ] {
        repo.store.put_if_absent(key, b"x").unwrap();
    }
    let report = repo.verify();
    assert!(report.is_clean(), "{report:#?}");
    assert_eq!(report.warnings_total, 10, "{:#?}", report.warnings);
    for text in ["'lost/'", "'packs/aa/README'", "'idx/x'", "'gen/latest'", "README' is not an archived", "'14-9'"] {
        assert!(report.warnings.iter().any(|w| w.contains(text)), "{text}: {:#?}", report.warnings);
    }
}

#[test]
fn references_that_lack_a_chunk_are_found() {
    let repo = Repo::new();
    let first = repo.backup("demo", "20240101-000000F", &files(1), |_| ());
    let second = repo.backup("demo", "20240102-000000F", &files(2), |_| ());
    let (repository, name) = (repo.open(), layout::refs(second.session));
    let refs = repository.read_refs(second.session).unwrap().unwrap();
    let mut fewer = pgkeep_formats::repo::refs::Refs::new(second.session, 0);
    for pack in refs.packs().skip(1) {
        (0..64).filter(|o| refs.contains(pack, *o)).for_each(|o| fewer.insert(pack, o));
    }
    let (kind, domain) = (pgkeep_formats::repo::envelope::ObjectKind::Refs, pgkeep_formats::repo::envelope::Domain::Gc);
    let bytes = repository.keyring().seal_embedded(kind, domain, &name, &[], &fewer.encode()).unwrap();
    repo.store.tamper(&name, |b| *b = bytes);
    repo.store.delete(&layout::refs(first.session)).unwrap();
    let report = repo.verify();
    assert_eq!(
        report.damage.iter().map(|d| d.flaw).collect::<std::collections::BTreeSet<_>>(),
        [Flaw::Missing, Flaw::Inconsistent].into()
    );
    for backup in &report.backups {
        assert!(matches!(&backup.problems[..], [BackupProblem::References { .. }]), "{backup:?}");
        assert!(!backup.problems[0].hinders_restore());
    }
    assert!(report.is_damaged());
}

#[test]
fn one_stanza_or_one_backup_can_be_verified_alone() {
    let repo = Repo::new();
    three(&repo);
    let demo = ["demo".to_owned()];
    let of = |stanzas, set| VerifyOptions { stanzas, set, ..all() };
    let report = repo.try_verify(&of(&demo, None)).unwrap();
    assert!(report.is_clean() && report.garbage.is_none());
    assert_eq!(report.backups.len(), 2);
    assert!(report.counts.packs < repo.keys("packs/").len() as u64);
    let one = repo.try_verify(&of(&demo, Some("20240102-000000F"))).unwrap();
    assert!(one.is_clean());
    assert_eq!((one.backups.len(), one.backups[0].label.as_str()), (1, "20240102-000000F"));
    assert!(one.counts.packs < report.counts.packs);
    assert_eq!(kind(repo.try_verify(&of(&demo, Some("20250101-000000F")))), Kind::BackupSetInvalid);
    let nobody = ["nobody".to_owned()];
    assert_eq!(kind(repo.try_verify(&of(&nobody, None))), Kind::FileMissing);
    // What only the other stanza needs is none of this one's business.
    let other = repo.open().backups("other").unwrap()[0].clone();
    repo.store.tamper(&layout::refs(other.session), |b| b[100] ^= 1);
    assert!(repo.try_verify(&of(&demo, None)).unwrap().is_clean());
    assert!(!repo.verify().is_clean());
}

#[test]
fn a_damaged_local_index_is_repaired_and_no_damage() {
    let repo = Repo::cached();
    three(&repo);
    let repository = repo.open();
    assert!(repo.verify().is_clean());
    let dir = repository.cache().unwrap().join("idx");
    let mut damaged = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        damaged += 1;
    }
    assert!(damaged >= 3);
    let report = repo.verify();
    assert!(report.is_clean(), "{report:#?}");
}

#[test]
fn it_can_be_interrupted() {
    let repo = Repo::new();
    repo.backup("demo", "20240101-000000F", &[("f", noise(3, 1))].into(), |_| ());
    let cancel = Cancel::default();
    cancel.cancel();
    assert_eq!(kind(run(&repo.open(), &all(), &Silent, &cancel)), Kind::Interrupted);
}
