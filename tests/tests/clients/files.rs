//! `repo-ls` and `repo-get` on a sealed repository of a real server: what is listed is there, and is what the server gave.

use std::{fs, process::Stdio};

use super::{environment, shell_expect};
use serde_json::{Value, json};
use support::{Cluster, Run, Sandbox, World, majors, world::STANZA};

#[test]
fn what_is_listed_can_be_got_and_is_what_the_server_gave() {
    let sealed = [("repo1-cipher-type", "aes-256-cbc"), ("repo1-cipher-pass", "six words for a test")];
    let world = World::within(Sandbox::new(), Cluster::builder(majors()[0]), &sealed);
    let full = world.backup("full");
    let incr = world.backup("incr");
    let segment = world.archive_now();
    let wal = fs::read(world.cluster.data_dir().join("pg_wal").join(&segment)).unwrap();
    let variables = environment(&world.sandbox);
    let expect = |code: i32, line: &str| shell_expect(code, &world.sandbox, &variables, &format!("pgbackrest {line}"));
    let ls = |args: &str| -> Run { expect(0, &format!("repo-ls {args}")) };

    let backup =
        ls(&format!("--stanza={STANZA} backup/{STANZA} --output=json --log-level-console=error --repo=1")).json();
    for label in [&full, &incr] {
        assert_eq!(backup[label], json!({ "type": "path" }), "{backup:#}");
    }
    assert_eq!(backup["."], json!({ "type": "path" }));
    assert_eq!(backup["latest"], json!({ "type": "link", "destination": incr }));
    let info = &backup["backup.info"];
    assert!(info["type"] == "file" && info["size"].is_u64() && info["time"].is_u64(), "{info}");

    let archive = format!("archive/{STANZA}/{}-1", world.cluster.major());
    let listed = ls(&format!("{archive} --recurse --output=json")).json();
    let zeros = "0".repeat(40);
    let name = format!("{}/{segment}-{zeros}.zst", &segment[..16]);
    let entry = &listed[&name];
    assert!(entry["type"] == "file" && entry["time"].as_i64() > Some(1_500_000_000), "{listed:#}");
    let object =
        world.sandbox.repo().join(format!("wal/{STANZA}/{}-1/{}/{segment}", world.cluster.major(), &segment[..16]));
    assert_eq!(entry["size"], json!(fs::metadata(&object).unwrap().len()));
    // The order is that of names, of a directory before what is in it, or the other way round.
    let names = |run: &Run| run.stdout.lines().map(str::to_owned).collect::<Vec<_>>();
    let up = names(&ls(&format!("{archive} --recurse")));
    let mut down = names(&ls(&format!("{archive} --recurse --sort=desc")));
    down.reverse();
    assert_eq!(up, down);
    assert_eq!(
        listed.as_object().unwrap().keys().filter(|key| *key != ".").collect::<Vec<_>>(),
        up.iter().collect::<Vec<_>>()
    );
    let filtered = ls(&format!("{archive} --recurse --filter='\\.zst$' --output=json")).json();
    assert!(filtered.as_object().unwrap().keys().all(|key| key.ends_with(".zst")) && filtered.get(&name).is_some());

    // The files of a backup.
    let manifest = expect(0, &format!("--stanza={STANZA} manifest --output=json --set={full}")).json();
    assert_eq!(manifest["backup"]["label"], json!(full));
    let file = |name: &str| -> Value {
        let files = manifest["file"].as_array().unwrap();
        files.iter().find(|f| f["name"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
    };
    let version = fs::metadata(world.cluster.data_dir().join("PG_VERSION")).unwrap();
    let expected = (json!(version.len()), json!("0600"), json!("file"));
    assert_eq!(
        (&file("PG_VERSION")["size"], &file("PG_VERSION")["mode"], &file("PG_VERSION")["type"]),
        (&expected.0, &expected.1, &expected.2)
    );
    assert_eq!((&file(".")["type"], &file("base")["mode"]), (&json!("path"), &json!("0700")));
    let text = expect(0, &format!("--stanza={STANZA} manifest --filter='^global/'"));
    assert!(text.stdout.lines().count() > 10 && text.stdout.lines().all(|l| l.contains(" global/")), "{text}");
    expect(75, &format!("--stanza={STANZA} manifest --set=20200101-000000F"));
    expect(67, &format!("--stanza={STANZA} repo-put backup/x"));

    // The segment itself, the object as it lies there, and files that were archived as they are.
    let got = |args: &str| {
        let mut command = support::account::command("/bin/sh");
        command.args(["-c", &format!("exec pgbackrest repo-get {args}")]).stdin(Stdio::null());
        let out = command.envs(variables.iter().map(|(name, value)| (name, value))).output().unwrap();
        assert!(out.status.success() && out.stderr.is_empty(), "{args}: {}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    };
    let path = format!("{archive}/{}", name.trim_end_matches(".zst"));
    assert!(got(&path) == wal, "the segment is another one");
    assert!(got(&format!("{path}.zst")).starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), "not compressed by zstd");
    assert!(got(&format!("--raw {path}.zst")) == fs::read(&object).unwrap());
    let history = up.iter().find(|name| name.ends_with(".backup")).expect("a backup history file");
    assert!(String::from_utf8(got(&format!("{archive}/{history}"))).unwrap().contains("START WAL LOCATION: "));
    let absolute = format!("{}/backup/{STANZA}/latest/backup.manifest", world.sandbox.repo().display());
    let manifest = String::from_utf8(got(&absolute)).unwrap();
    assert!(manifest.contains(&format!("backup-label=\"{incr}\"\n")), "{manifest}");
    let text = String::from_utf8(got(&format!("backup/{STANZA}/backup.info"))).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{full}="))).expect("a line of the full");
    let facts: Value = serde_json::from_str(line).unwrap();
    assert_eq!(facts["backup-archive-start"], world.backups()[0]["archive"]["start"]);

    assert_eq!(ls("no/such/path --output=json").stdout, "{\".\":{\"type\":\"path\"}}\n");
    assert_eq!(ls("no/such/path").stdout, "");
    assert!(expect(55, "repo-get no/such/file").says("[055]"));
    let quiet = expect(1, "repo-get --ignore-missing no/such/file");
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    expect(42, &format!("repo-get backup/{STANZA}"));
    expect(96, "repo-ls ../");
    expect(29, "repo-ls --filter='['");
    // Nothing of a sealed repository is shown to whoever has not its passphrase.
    expect(95, "repo-ls --repo1-cipher-type=none");
}
