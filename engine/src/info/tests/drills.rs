//! Records of drills: the newest are read, and one that cannot be read harms nobody.

use super::*;
use crate::crypto::{Scope, SessionSealer};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::records::{CheckResult, DrillCheck};
use std::time::Duration;

fn drill(stop: i64, passed: bool) -> Drill {
    let result = if passed { CheckResult::Passed } else { CheckResult::Failed };
    Drill {
        session: pgkeep_formats::id::SessionId([0; 16]),
        label: sample().label,
        start: stop - 10,
        stop,
        passed,
        checks: vec![DrillCheck { name: "recovery".into(), result, millis: 900, detail: String::new() }],
        recovery_type: "default".into(),
        target: String::new(),
        version: 15,
        consistent_millis: 500,
        query_millis: 0,
        recovered_millis: 900,
        lsn: 0x500_0028,
        host: "h:1".into(),
        program: "0.1.0".into(),
    }
}

fn stanza_json(repo: &Repo, set: Option<&str>) -> Value {
    let options = InfoOptions { stanza: Some("demo"), set, now: Some(5_000), ..InfoOptions::default() };
    gather(&[repo.source()], &options).unwrap().to_json()[0].clone()
}

#[test]
fn drills_are_told_with_their_age_and_only_where_there_are_some() {
    let repo = Repo::new(1).stanza("demo", &[PG15]);
    repo.backup("demo", |_| {});
    assert!(stanza_json(&repo, None).get("drill").is_none());
    let put = |began: u64, drill: &Drill| repo.open().put_drill("demo", Duration::from_secs(began), drill).unwrap();
    put(3_990, &drill(4_000, true));
    put(990, &drill(1_000, false));
    let told = stanza_json(&repo, None);
    assert_eq!(
        told["drill"][1],
        json!({
            "age": 1_000, "check": [{"detail": null, "milliseconds": 900, "name": "recovery", "result": "passed"}],
            "consistent-milliseconds": 500, "first-query-milliseconds": null, "label": "20240101-000000F",
            "lsn": "0/5000028", "passed": true, "recovered-milliseconds": 900, "repo-key": 1, "target": null,
            "timestamp": {"start": 3_990, "stop": 4_000}, "type": "default",
        })
    );
    assert_eq!((&told["drill"][0]["age"], &told["drill"][0]["passed"]), (&json!(4_000), &json!(false)));
    assert!(stanza_json(&repo, Some("20240101-000000F"))["drill"].is_array());
    // The newest by their names, without a look at the others.
    let (newest, problems) = repo.open().drills("demo", 1).unwrap();
    assert_eq!((newest, problems.len()), (vec![drill(4_000, true)], 0));
}

#[test]
fn a_record_that_cannot_be_read_harms_nobody() {
    let repo = Repo::new(1).stanza("demo", &[PG15]);
    repo.backup("demo", |_| {});
    let open = repo.open();
    open.put_drill("demo", Duration::from_secs(10), &drill(20, true)).unwrap();
    // A newer program's: a field that must not be overlooked.
    let name = layout::drill("demo", pgkeep_formats::id::DrillId([0xee; 16]));
    let sealer = SessionSealer::new(Arc::clone(open.keyring())).unwrap();
    let mut bytes = drill(30, true).encode();
    bytes.extend_from_slice(&[99, 0]);
    let sealed = sealer.seal_object(ObjectKind::Drill, &Scope::Stanza("demo"), &name, &[], &bytes).unwrap();
    open.store().put_if_absent(&name, &sealed).unwrap();
    // One that was moved from another name, and what is none.
    for stray in ["drills/demo/00", &layout::drill("demo", pgkeep_formats::id::DrillId([0xdd; 16]))] {
        open.store().put_if_absent(stray, &sealed).unwrap();
    }
    let (drills, problems) = open.drills("demo", 32).unwrap();
    assert_eq!((drills.len(), problems.len()), (1, 2));
    let told = stanza_json(&repo, None);
    assert_eq!((&told["status"]["code"], told["drill"].as_array().unwrap().len()), (&json!(0), 1));
}
