//! A repository that has lost its generations gets one under which everything is as it was.

use super::super::survey::{Marks, Survey};
use super::super::{GcOptions, GcReport, plan, publish, refound, run, sweep};
use crate::chunk::Encoder;
use crate::clock::SystemClock;
use crate::observe::{Cancel, Silent};
use crate::repository::Repository;
use crate::repository::testing::{commit, committed, in_memory, record, session};
use crate::store::{Depth, Range, Store};
use crate::{Kind, Result};
use pgkeep_formats::id::PackId;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::Generation;

fn lose_generations(repository: &Repository) {
    let mut names = Vec::new();
    repository.store().list(layout::GENERATIONS, Depth::All, &mut |l| names.push(l.key)).unwrap();
    assert!(!names.is_empty());
    names.iter().for_each(|name| repository.store().delete(name).unwrap());
}

fn labels(repository: &Repository) -> Vec<String> {
    repository.backups("demo").unwrap().into_iter().map(|b| b.label).collect()
}

fn packs(repository: &Repository) -> Vec<PackId> {
    let mut packs = Vec::new();
    repository.store().list(layout::PACKS, Depth::All, &mut |l| packs.extend(layout::parse_pack(&l.key))).unwrap();
    packs
}

/// Leaves a pack that no backup uses.
fn garbage(repository: &std::sync::Arc<Repository>) -> PackId {
    let before = packs(repository);
    let mut session = session(repository, "demo");
    session.add_metadata(&mut Encoder::new(3).unwrap(), b"of no use").unwrap();
    session.abandon("test", &SystemClock).unwrap();
    packs(repository).into_iter().find(|pack| !before.contains(pack)).unwrap()
}

fn make_anew(repository: &Repository) -> Result<Option<super::super::Refounded>> {
    refound(repository, &Cancel::default(), &SystemClock)
}

#[test]
fn one_that_is_damaged_is_replaced_and_stays() {
    let repository = in_memory("demo");
    committed(&repository, "demo", |c| c.label = "20260101-000000F".into());
    let number = repository.newest_generation().unwrap().number;
    let name = layout::generation(number);
    let whole = repository.store().get(&name, Range::Whole).unwrap();
    for damaged in [Vec::new(), [&whole[..30], &[whole[30] ^ 1], &whole[31..]].concat()] {
        repository.store().delete(&name).unwrap();
        repository.store().put_if_absent(&name, &damaged).unwrap();
        assert!(repository.backups("demo").unwrap_err().is_damage());
        let made = make_anew(&repository).unwrap().unwrap();
        assert!(made.generation > number && made.unreadable.len() == 1, "{made:?}");
        assert_eq!(labels(&repository), ["20260101-000000F"]);
        assert_eq!(repository.store().get(&name, Range::Whole).unwrap(), damaged);
        assert!(make_anew(&repository).unwrap().is_none());
        repository.store().delete(&layout::generation(made.generation)).unwrap();
    }
}

#[test]
fn everything_is_as_it_was_and_goes_on() {
    let repository = in_memory("demo");
    assert!(make_anew(&repository).unwrap().is_none());
    committed(&repository, "demo", |c| c.label = "20260101-000000F".into());
    let expired = committed(&repository, "demo", |c| c.label = "20260102-000000F".into());
    repository.mark_expired("demo", expired.session, "test", 0).unwrap();
    let useless = garbage(&repository);
    let running = session(&repository, "demo");
    lose_generations(&repository);
    assert_eq!(repository.backups("demo").unwrap_err().kind(), Kind::FileMissing);

    let made = make_anew(&repository).unwrap().unwrap();
    assert!(made.generation > 1000 && made.unreadable.is_empty(), "{made:?}");
    assert_eq!((made.backups, made.condemned), (2, 1));
    assert_eq!(labels(&repository), ["20260101-000000F"]);
    let newest = repository.newest_generation().unwrap();
    assert_eq!(newest.condemned.iter().map(|c| c.pack).collect::<Vec<_>>(), [useless]);
    // Who began before it is told that its backup does not count.
    let late = record(&running);
    let error = running.commit(&mut |_| Ok(()), |_, _| late, &SystemClock).unwrap_err();
    assert_eq!(error.kind(), Kind::LockAcquire);
    assert_eq!(labels(&repository), ["20260101-000000F"]);
    // Who begins behind it works as ever, and so does collecting.
    let next = session(&repository, "demo");
    assert_eq!(next.generation(), made.generation);
    commit(next, |c| c.label = "20260103-000000F".into());
    let collect = || run(&repository, &GcOptions::default(), &Silent, &Cancel::default(), &SystemClock).unwrap();
    collect();
    assert!(!packs(&repository).contains(&useless));
    assert_eq!(labels(&repository), ["20260101-000000F", "20260103-000000F"]);
    assert!(make_anew(&repository).unwrap().is_none());
}

#[test]
fn what_is_damaged_stays_in_sight_and_is_not_built_on() {
    let repository = in_memory("demo");
    let whole = committed(&repository, "demo", |c| c.label = "20260101-000000F".into());
    committed(&repository, "demo", |c| c.label = "20260102-000000F".into());
    garbage(&repository);
    lose_generations(&repository);
    repository.store().delete(&layout::refs(whole.session)).unwrap();
    let made = make_anew(&repository).unwrap().unwrap();
    assert_eq!((made.unreadable.len(), made.condemned), (1, packs(&repository).len() as u64));
    assert_eq!(labels(&repository), ["20260101-000000F", "20260102-000000F"]);
}

#[test]
fn a_collector_that_knew_another_one_spares_what_the_new_one_does_not_condemn() {
    for knows in [false, true] {
        let repository = in_memory("demo");
        committed(&repository, "demo", |_| ());
        let useless = garbage(&repository);
        let (cancel, mut marks, mut report) = (Cancel::default(), Marks::default(), GcReport::default());
        let survey = Survey::take(&repository, &mut marks, &cancel, &SystemClock).unwrap();
        let decision = plan(&repository, &survey, &marks).unwrap().next.unwrap();
        assert!(publish(&repository, &decision).unwrap());
        lose_generations(&repository);
        let condemned = if knows { decision.condemned.clone() } else { Vec::new() };
        assert!(publish(&repository, &Generation { number: 1 << 20, condemned, ..Generation::default() }).unwrap());
        let options = GcOptions::default();
        sweep(&repository, &options, &decision, &survey, &mut marks, &mut report, &Silent, &cancel, &SystemClock)
            .unwrap();
        assert_eq!(packs(&repository).contains(&useless), !knows);
    }
}
