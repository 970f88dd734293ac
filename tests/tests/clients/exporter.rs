//! pgbackrest_exporter: every key it decodes, with its type, in every state a stanza can be in.
//!
//! It decodes into typed fields, so a key that is missing counts as zero and one of another type ends the scrape. Whatever
//! it runs must exit with 0 and leave standard error empty.

use std::fs::{self, File};

use super::{environment, shell_expect};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use support::{Cluster, Sandbox, World, account, majors, world::STANZA};

/// What a value must be.
enum Shape {
    Int,
    Text,
    Bool,
    /// Null, or this.
    Maybe(&'static Shape),
    List(&'static Shape),
    /// Keys that must be there, keys that may; no others.
    Object(&'static [(&'static str, Shape)], &'static [(&'static str, Shape)]),
    /// Any keys, with texts.
    Notes,
    /// Not of pgBackRest: not looked at.
    Own,
}

use Shape::{Bool, Int, List, Maybe, Notes, Object, Own, Text};

const PROGRESS: &[(&str, Shape)] = &[("size", Int), ("size-cplt", Int)];
const LOCK_REPO: Shape = Object(&[("key", Int), ("size", Int), ("size-cplt", Int)], &[]);
const LOCKS: Shape = Object(
    &[
        ("backup", Object(&[("held", Bool)], &[("size", Int), ("size-cplt", Int), ("repo", List(&LOCK_REPO))])),
        ("restore", Object(&[("held", Bool)], PROGRESS)),
    ],
    &[],
);
const STATUS: Shape = Object(&[("code", Int), ("message", Text), ("lock", LOCKS)], &[]);
const REPO: Shape =
    Object(&[("key", Int), ("cipher", Text), ("status", Object(&[("code", Int), ("message", Text)], &[]))], &[]);
const DB: Shape = Object(&[("id", Int), ("repo-key", Int), ("system-id", Int), ("version", Text)], &[]);
const DATABASE: Shape = Object(&[("id", Int), ("repo-key", Int)], &[]);
const ARCHIVE: Shape =
    Object(&[("id", Text), ("min", Maybe(&Text)), ("max", Maybe(&Text)), ("database", DATABASE)], &[]);
const INFO: Shape =
    Object(&[("size", Int), ("delta", Int), ("repository", Object(&[("size", Int), ("delta", Int)], &[]))], &[]);
const BACKUP: Shape = Object(
    &[
        ("label", Text),
        ("type", Text),
        ("prior", Maybe(&Text)),
        ("reference", Maybe(&List(&Text))),
        ("archive", Object(&[("start", Maybe(&Text)), ("stop", Maybe(&Text))], &[])),
        ("backrest", Object(&[("format", Int), ("version", Text)], &[])),
        ("database", DATABASE),
        ("timestamp", Object(&[("start", Int), ("stop", Int)], &[])),
        ("info", INFO),
    ],
    &[
        ("lsn", Object(&[("start", Text), ("stop", Text)], &[])),
        ("error", Bool),
        ("annotation", Notes),
        ("database-ref", List(&Object(&[("name", Text), ("oid", Int)], &[]))),
        ("link", Maybe(&List(&Object(&[("name", Text), ("destination", Text)], &[])))),
        ("tablespace", Maybe(&List(&Object(&[("name", Text), ("oid", Int), ("destination", Text)], &[])))),
        ("error-list", List(&Text)),
    ],
);
const STANZA_SHAPE: Shape = Object(
    &[
        ("name", Text),
        ("cipher", Text),
        ("status", STATUS),
        ("repo", List(&REPO)),
        ("db", List(&DB)),
        ("archive", List(&ARCHIVE)),
        ("backup", List(&BACKUP)),
    ],
    &[("drill", Own)],
);
const PROGRESS_SHAPE: Shape = Object(&[("name", Text), ("status", STATUS)], &[]);

/// Says at which path a value is not what it must be.
fn compare(value: &Value, shape: &Shape, path: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{path} is not {what}: {value}"));
    match shape {
        // Signed, as they decode it.
        Int if value.as_i64().is_none() => wrong("a whole number"),
        Text if !value.is_string() => wrong("a text"),
        Bool if !value.is_boolean() => wrong("true or false"),
        Maybe(_) if value.is_null() => Ok(()),
        Maybe(inner) => compare(value, inner, path),
        List(inner) => match value.as_array() {
            Some(items) => items.iter().enumerate().try_for_each(|(at, v)| compare(v, inner, &format!("{path}[{at}]"))),
            None => wrong("a list"),
        },
        Object(must, may) => {
            let Some(found) = value.as_object() else { return wrong("an object") };
            if let Some((missing, _)) = must.iter().find(|(key, _)| !found.contains_key(*key)) {
                return wrong(&format!("complete without '{missing}'"));
            }
            if !found.keys().is_sorted() {
                return wrong("sorted by key");
            }
            found.iter().try_for_each(|(key, v)| match must.iter().chain(*may).find(|(known, _)| known == key) {
                Some((_, inner)) => compare(v, inner, &format!("{path}.{key}")),
                None => wrong(&format!("known with '{key}'")),
            })
        }
        Notes => match value.as_object() {
            Some(notes) if notes.values().all(Value::is_string) => Ok(()),
            _ => wrong("notes"),
        },
        Int | Text | Bool | Own => Ok(()),
    }
}

/// What the exporter is told with these arguments; the stanzas, each of this shape.
fn told_as(shape: &Shape, sandbox: &Sandbox, args: &str) -> Vec<Value> {
    let line = format!("pgbackrest info --output json --config {} {args}", sandbox.config().display());
    let run = shell_expect(0, sandbox, &environment(sandbox), &line);
    assert_eq!(run.stderr, "", "{run}");
    let stanzas = run.json().as_array().unwrap_or_else(|| panic!("no list\n{run}")).clone();
    for stanza in &stanzas {
        compare(stanza, shape, "").unwrap_or_else(|wrong| panic!("{wrong}\n{stanza:#}"));
    }
    stanzas
}

fn told(sandbox: &Sandbox, args: &str) -> Vec<Value> {
    told_as(&STANZA_SHAPE, sandbox, args)
}

/// Codes of a stanza and of its repositories.
fn codes(stanza: &Value) -> (i64, Vec<i64>) {
    let code = |value: &Value| value["status"]["code"].as_i64().unwrap();
    (code(stanza), stanza["repo"].as_array().unwrap().iter().map(code).collect())
}

#[test]
fn every_state_has_every_key_with_its_type() {
    let sandbox = Sandbox::new();
    let second = sandbox.dir("repo2");
    let world = World::within(sandbox, Cluster::builder(majors()[0]), &[("repo2-path", second.to_str().unwrap())]);
    let sandbox = &world.sandbox;
    let version = shell_expect(0, sandbox, &environment(sandbox), "pgbackrest version --output num").stdout;
    assert!(version.parse::<f64>().is_ok_and(|version| version >= 2_052_000.0), "{version}");

    let nobody = told(sandbox, "--stanza nobody");
    assert_eq!(codes(&nobody[0]), (1, vec![1, 1]));
    assert_eq!(nobody[0]["cipher"], "none");
    let bare = told(sandbox, "");
    assert_eq!((bare.len(), codes(&bare[0])), (1, (2, vec![2, 2])));
    assert_eq!(bare[0]["backup"], Value::Array(vec![]));

    let tablespace = world.cluster.side_dir("space");
    world.cluster.psql(&format!("CREATE TABLESPACE space LOCATION '{}'", tablespace.display()));
    world.ok(["--repo=1", "--type=full", "--start-fast", "--annotation=source=demo backup", "backup"]);
    assert_eq!(codes(&told(sandbox, "")[0]), (4, vec![0, 2]));
    world.ok(["--repo=2", "--type=full", "--start-fast", "backup"]);
    world.ok(["--repo=1", "--type=incr", "--start-fast", "backup"]);
    let incr = world.labels().into_iter().find(|label| label.ends_with('I')).expect("an incremental");
    let all = told(sandbox, &format!("--stanza {STANZA}"));
    assert_eq!(codes(&all[0]), (0, vec![0, 0]));
    let backups = all[0]["backup"].as_array().unwrap();
    // By the seconds in which they ended, of one second by repository.
    let order = |b: &Value| (b["timestamp"]["stop"].as_i64().unwrap(), b["database"]["repo-key"].as_i64().unwrap());
    assert!(backups.len() == 3 && backups.is_sorted_by_key(order), "{backups:#?}");
    let last = backups.iter().find(|b| b["label"] == incr).expect("the last backup is listed");
    assert_eq!(backups[0]["annotation"]["source"], "demo backup");
    assert_eq!(backups[0]["error"], false);
    assert_eq!(last["prior"], backups[0]["label"]);
    // They take the type of each reference from its last letter.
    assert!(last["reference"].as_array().unwrap().iter().all(|r| r.as_str().unwrap().ends_with(['F', 'D', 'I'])));
    let system = world.cluster.psql("SELECT system_identifier FROM pg_control_system()");
    assert_eq!(all[0]["db"][0]["system-id"].as_u64().unwrap().to_string(), system);
    assert_eq!(all[0]["db"][0]["version"], world.cluster.major().to_string());

    let full = told(sandbox, &format!("--stanza {STANZA} --type full"));
    assert_eq!(full[0]["backup"].as_array().unwrap().len(), 2);
    let set = told(sandbox, &format!("--stanza {STANZA} --set {incr}"));
    let set = &set[0]["backup"][0];
    for key in ["database-ref", "link", "tablespace"] {
        assert!(set.get(key).is_some(), "--set tells no '{key}': {set:#}");
    }
    assert_eq!(set["tablespace"][0]["name"], "space");
    assert!(set["link"].is_null() && set["database-ref"].as_array().unwrap().iter().any(|d| d["name"] == "postgres"));
    let absent = told(sandbox, &format!("--stanza {STANZA} --set 20200101-000000F"));
    assert_eq!(codes(&absent[0]), (6, vec![6, 6]));

    locks(&world);

    // One repository is out of reach.
    fs::rename(&second, world.path("gone")).unwrap();
    let half = told(sandbox, "");
    assert_eq!(codes(&half[0]), (4, vec![0, 99]));
    assert_eq!(half[0]["backup"].as_array().unwrap().len(), 2);
    // Both are; or the first has nothing in it yet.
    fs::rename(sandbox.repo(), world.path("gone too")).unwrap();
    assert_eq!(codes(&told(sandbox, &format!("--stanza {STANZA}"))[0]).0, 99);
    for dir in [&sandbox.repo(), &second] {
        account::private_dir(dir);
    }
    let run = shell_expect(0, sandbox, &environment(sandbox), "pgbackrest info --output json --log-level-console off");
    assert_eq!(run.stdout, "[]", "{run}");
}

/// What is running on this host, with and without saying how far it is.
fn locks(world: &World) {
    let sandbox = &world.sandbox;
    let lock = |name: &str, text: &str| {
        let path = sandbox.locks().join(name);
        fs::write(&path, text).unwrap();
        account::give(&path);
        let file = File::open(path).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        file
    };
    let progress = |sandbox| told_as(&PROGRESS_SHAPE, sandbox, "--detail-level progress")[0]["status"]["lock"].clone();
    let _backup = lock(&format!("{STANZA}-backup-1.lock"), r#"{"execId":"1-a","pid":1,"sz":200,"szCplt":50}"#);
    let found = told(sandbox, "")[0]["status"]["lock"].clone();
    assert_eq!(found["backup"]["held"], true, "{found}");
    assert_eq!((&found["backup"]["size"], &found["backup"]["size-cplt"]), (&200.into(), &50.into()), "{found}");
    assert_eq!(found["backup"]["repo"][0]["key"], 1, "{found}");
    assert_eq!(progress(sandbox), found);
    let _restore = lock(&format!("{STANZA}-restore-1.lock"), r#"{"execId":"1-b","pid":1}"#);
    let found = progress(sandbox);
    assert_eq!(found["restore"]["held"], true, "{found}");
    assert!(found["restore"].get("size").is_none(), "{found}");
}
