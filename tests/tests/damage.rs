//! Objects of every kind, damaged in every way: what reads them says what is wrong and with which object, or is not
//! touched by it. Never wrong bytes, never a panic, and no backup is committed on ground that is not there.

use pgkeep_engine::crypto::{Passphrase, Unlock};
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::repository::wal::{WalFile, WalPut};
use pgkeep_engine::repository::{ChunkSource, OpenOptions, Repository};
use pgkeep_engine::store::{MemoryStore, Put, Store};
use pgkeep_engine::{Error, Kind};
use pgkeep_formats::repo::config::RepositoryConfig;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::BackupType;
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use support::offline::{STANZA, Tree, World, make_stanza, object, open, read_back, text};
use support::seed::Seed;

const ARCHIVE: &str = "15-1";
const WAL: [&str; 3] = ["000000010000000000000001", "000000010000000000000002", "00000002.history"];
/// System identifier of the other stanza's cluster.
const OTHER: u64 = 77;

/// A repository with two backups, a second stanza and some WAL, and what all that holds.
struct Ground {
    world: World,
    backups: BTreeMap<String, Tree>,
    wal: BTreeMap<&'static str, Vec<u8>>,
}

impl Ground {
    fn new(seed: u64) -> Self {
        let world = World::new(seed, 1);
        let mut backups = BTreeMap::new();
        for kind in [BackupType::Full, BackupType::Incr] {
            let tree = Tree::of_files(world.cluster.path());
            backups.insert(world.backup(kind).commit.label, tree);
            if kind == BackupType::Full {
                world.cluster.churn();
            }
        }
        make_stanza(&world.store, OpenOptions { key: 1, unlock: Unlock::None, cache: None }, "other", OTHER);
        let repository = open(&world.store).unwrap();
        let mut wal = BTreeMap::new();
        for (n, name) in WAL.into_iter().enumerate() {
            let mut content = vec![0; 70_000];
            Seed::of(seed + n as u64).fill(&mut content[..30_000]);
            let file = WalFile::encode(&content, 1).unwrap();
            assert_eq!(repository.wal_put(STANZA, ARCHIVE, name, &file).unwrap(), WalPut::Created);
            wal.insert(name, content);
        }
        Self { world, backups, wal }
    }

    fn keys(&self) -> Vec<String> {
        self.world.store.snapshot().keys().map(str::to_owned).collect()
    }
}

/// What a look at everything found: failures as a user would see them, and what is no longer there.
#[derive(Debug, Default)]
struct Found {
    failures: Vec<(Kind, String)>,
    absent: Vec<String>,
}

impl Found {
    fn fail(&mut self, error: &Error) {
        self.failures.push((error.kind(), text(error)));
    }
}

/// Opens, lists and reads everything. Bytes that are not those backed up end the test.
fn look(ground: &Ground, store: &MemoryStore) -> Found {
    let mut found = Found::default();
    let repository = match open(store) {
        Ok(repository) => repository,
        Err(e) => {
            found.fail(&e);
            return found;
        }
    };
    for stanza in [STANZA, "other"] {
        match repository.stanza_history(stanza) {
            Ok(history) if history.is_empty() => found.absent.push(stanza.to_owned()),
            Ok(history) => assert_eq!(history[0].archive_id(), ARCHIVE),
            Err(e) => found.fail(&e),
        }
    }
    look_at_backups(ground, &repository, &mut found);
    for (name, content) in &ground.wal {
        match repository.wal_get(STANZA, ARCHIVE, name) {
            Ok(Some(bytes)) => assert!(bytes == *content, "wrong bytes in {name}"),
            Ok(None) => found.absent.push((*name).to_owned()),
            Err(e) => found.fail(&e),
        }
    }
    found
}

fn look_at_backups(ground: &Ground, repository: &Arc<Repository>, found: &mut Found) {
    let visible = match repository.backups_readable(STANZA) {
        Ok((visible, problems)) => {
            // Whoever does not ask for the rest gets an error instead of a shorter list.
            assert_eq!(repository.backups(STANZA).is_err(), !problems.is_empty());
            problems.iter().for_each(|e| found.fail(e));
            visible
        }
        Err(e) => return found.fail(&e),
    };
    let known = |label: &String| visible.iter().any(|c| c.label == *label);
    found.absent.extend(ground.backups.keys().filter(|label| !known(label)).cloned());
    let index = match repository.load_index_to_read() {
        Ok(index) => index,
        Err(e) => return found.fail(&e),
    };
    let source = Arc::new(ChunkSource::new(Arc::clone(repository), index, STANZA));
    for commit in &visible {
        let expected = ground.backups.get(&commit.label).unwrap_or_else(|| panic!("nobody made {}", commit.label));
        match read_back(&source, commit, &mut HashMap::new()) {
            Ok(tree) => assert_eq!(expected.differences(&tree), Vec::<String>::new(), "{}", commit.label),
            Err(e) => found.fail(&e),
        }
    }
}

/// What is done to one object.
#[derive(Debug, Clone)]
enum Damage {
    Delete,
    Truncate(usize),
    Flip(usize),
    /// It gets the bytes of one of another repository.
    Replace(Vec<u8>),
    /// It and another change places.
    Swap(String),
    /// Bytes behind its end.
    Append,
}

fn damage(store: &MemoryStore, key: &str, how: &Damage) {
    let set = |key: &str, bytes: Vec<u8>| assert!(store.tamper(key, |object| *object = bytes));
    match how {
        Damage::Delete => store.delete(key).unwrap(),
        Damage::Truncate(len) => assert!(store.tamper(key, |bytes| bytes.truncate(*len))),
        Damage::Flip(at) => assert!(store.tamper(key, |bytes| bytes[*at] ^= 0x10)),
        Damage::Append => assert!(store.tamper(key, |bytes| bytes.extend_from_slice(b"more"))),
        Damage::Replace(bytes) => set(key, bytes.clone()),
        Damage::Swap(other) => {
            let (ours, theirs) = (object(store, key), object(store, other));
            set(key, theirs);
            set(other, ours);
        }
    }
}

/// The part of a name that says what an object is.
fn family(key: &str) -> &str {
    let two = ["keys/slot", "keys/epoch"].into_iter().find(|prefix| key.starts_with(prefix));
    two.unwrap_or_else(|| key.split('/').next().expect("a part"))
}

/// Every damage that one object gets.
fn damages(ground: &Ground, foreign: &Ground, key: &str) -> Vec<Damage> {
    let len = object(&ground.world.store, key).len();
    let mut all = vec![Damage::Delete, Damage::Append];
    all.extend([0, 1, 7, len / 2, len - 1].into_iter().filter(|to| *to < len).map(Damage::Truncate));
    // Headers are short, so their bytes are flipped one by one; the rest here and there.
    let step = if len < 400 { 9 } else { len / 24 };
    all.extend((0..len.min(64)).step_by(5).chain((0..len).step_by(step)).chain([len - 1]).map(Damage::Flip));
    let alike = |other: &&String| family(other) == family(key) && *other != key;
    all.extend(ground.keys().iter().filter(alike).take(4).cloned().map(Damage::Swap));
    let theirs = foreign.keys().into_iter().filter(|other| family(other) == family(key)).take(2);
    all.extend(theirs.map(|other| Damage::Replace(object(&foreign.world.store, &other))));
    all
}

/// Checks what was found against what damage to that kind of object may do. `other` was swapped with it.
fn judge(key: &str, how: &Damage, found: &Found, backups: usize) {
    let place = format!("{how:.60?} of '{key}': {found:#?}");
    let kinds: &[Kind] = match (family(key), how) {
        // Nothing that reads backups needs them.
        ("refs" | "ses", _) => &[],
        ("format", Damage::Delete) => &[Kind::FileMissing],
        ("format", _) => &[Kind::Format, Kind::Checksum, Kind::FeatureNotSupported, Kind::Crypto],
        ("keys/slot", Damage::Flip(_)) => &[Kind::Crypto, Kind::FeatureNotSupported],
        ("keys/slot", _) => &[Kind::Crypto],
        // Who has a slot has the epochs' keys too.
        ("keys/epoch", _) => &[],
        (_, Damage::Delete) => &[Kind::FileMissing],
        ("packs", _) => &[Kind::Checksum, Kind::Format, Kind::FileRead],
        // The epoch a key is wrapped for is looked up before it can be authenticated.
        ("sk" | "wal", Damage::Flip(_)) => &[Kind::Checksum, Kind::Format, Kind::FeatureNotSupported, Kind::Crypto],
        _ => &[Kind::Checksum, Kind::Format, Kind::FeatureNotSupported],
    };
    for (kind, text) in &found.failures {
        assert!(kinds.contains(kind), "{kind:?} is not the cause: {place}");
        let other = if let Damage::Swap(other) = how { other.as_str() } else { key };
        let named = [key, other].iter().any(|key| key.split('/').any(|part| part.len() > 3 && text.contains(part)));
        let named = match family(key) {
            // Its place is spoken of as the repository, and a chunk is missed by its own name.
            "format" | "keys/slot" => text.contains("repository") || text.contains("format"),
            "idx" if matches!(how, Damage::Delete) => text.contains("is in no pack"),
            "gen" if matches!(how, Damage::Delete) => text.contains("has no generation record"),
            _ => named,
        };
        assert!(named, "the object is not named: {place}");
    }
    let silent = match (family(key), how) {
        ("refs" | "ses" | "keys/epoch", _) => true,
        // What is gone is not listed, and that is all anybody can know.
        ("backups" | "stanzas" | "wal", Damage::Delete) => return assert_eq!(found.absent.len(), 1, "{place}"),
        // Of a pack only what is asked for is read: not its footer, nor what no backup uses.
        ("packs", Damage::Flip(_) | Damage::Append | Damage::Truncate(_)) => return,
        _ => false,
    };
    // A record that cannot be read shows nothing, but says so.
    assert!(found.absent.is_empty() || !found.failures.is_empty(), "{place}");
    assert_eq!(found.failures.is_empty(), silent, "{place}");
    assert!(found.failures.len() <= backups + 2, "{place}");
}

fn each_object(families: &[&str]) {
    let (ground, foreign) = (Ground::new(7), Ground::new(8));
    let untouched = look(&ground, &ground.world.store);
    assert!(untouched.failures.is_empty() && untouched.absent.is_empty(), "{untouched:?}");
    let mut count = BTreeMap::new();
    for key in ground.keys().iter().filter(|key| families.contains(&family(key))) {
        for how in damages(&ground, &foreign, key) {
            let store = ground.world.fork();
            damage(&store, key, &how);
            let found = catch_unwind(AssertUnwindSafe(|| look(&ground, &store)))
                .unwrap_or_else(|_| panic!("{how:.60?} of '{key}' made it panic"));
            judge(key, &how, &found, ground.backups.len());
            *count.entry(family(key).to_owned()).or_insert(0) += 1;
        }
    }
    println!("{count:?}");
    assert_eq!(count.len(), families.len(), "a kind of object is missing");
}

#[test]
fn damaged_packs_are_noticed() {
    each_object(&["packs"]);
}

#[test]
fn damaged_keys_and_parameters_are_noticed() {
    each_object(&["format", "keys/slot", "keys/epoch", "sk"]);
}

#[test]
fn damaged_records_are_noticed() {
    each_object(&["idx", "gen", "backups", "stanzas", "wal", "refs", "ses"]);
}

/// A backup on a damaged repository is whole, or fails and is whole once the index was made anew. What was lost with a
/// pack or its key is stored again where the cluster still has it.
#[test]
fn no_backup_is_committed_on_what_is_not_there() {
    let ground = Ground::new(9);
    let tree = Tree::of_files(ground.world.cluster.path());
    let (mut healed, mut failed) = (0, 0);
    for key in ground.keys().iter().filter(|key| ["packs", "idx", "refs", "ses", "sk"].contains(&family(key))) {
        let half = object(&ground.world.store, key).len() / 2;
        for how in [Damage::Delete, Damage::Truncate(half), Damage::Append] {
            for kind in [BackupType::Full, BackupType::Incr] {
                let store = ground.world.fork();
                damage(&store, key, &how);
                if is_whole(&ground, &store, kind, &tree) {
                    healed += 1;
                    continue;
                }
                failed += 1;
                assert_eq!(family(key), "idx", "{how:?} of '{key}' keeps backups from being made");
                let repository = open(&store).unwrap();
                repository.rebuild_index(&Silent, &Cancel::default()).unwrap_or_else(|e| panic!("{key}: {}", text(&e)));
                assert!(is_whole(&ground, &store, kind, &tree), "{how:?} of '{key}'");
            }
        }
    }
    println!("{failed} backups needed a new index, {healed} did not");
    assert!(failed > 3 && healed > 10, "{failed} failed, {healed} healed");
}

/// Backs up; false if that fails, with a clear error. A backup that is committed holds the files.
fn is_whole(ground: &Ground, store: &MemoryStore, kind: BackupType, tree: &Tree) -> bool {
    match ground.world.backup_to(Arc::new(store.clone()), None, kind) {
        Ok(report) => {
            let repository = open(store).unwrap();
            let index = repository.load_index_to_read().unwrap();
            let source = Arc::new(ChunkSource::new(repository, index, STANZA));
            let read = read_back(&source, &report.commit, &mut HashMap::new());
            let read = read.unwrap_or_else(|e| panic!("Closure: {}", text(&e)));
            assert_eq!(tree.differences(&read), Vec::<String>::new(), "Closure");
            true
        }
        Err(e) => {
            let clear = [Kind::FileMissing, Kind::Checksum, Kind::Format, Kind::FileRead];
            assert!(clear.contains(&e.kind()), "{:?}: {}", e.kind(), text(&e));
            false
        }
    }
}

#[test]
fn a_wrong_passphrase_opens_nothing() {
    let secret = |text: &str| Unlock::Passphrase(Passphrase::new(text.to_owned()));
    let world = World::with_unlock(10, 1, || secret("correct horse"));
    let cache = world.path("cache");
    let open = |unlock| {
        Repository::open(
            Arc::new(world.store.clone()) as Arc<dyn Store>,
            OpenOptions { key: 1, unlock, cache: Some(cache.clone()) },
        )
    };
    let repository = Arc::new(open(secret("correct horse")).unwrap());
    world.backup_with(&repository, BackupType::Full).unwrap();
    for wrong in [secret("correct horses"), secret(""), Unlock::None] {
        let refused = open(wrong).unwrap_err();
        assert_eq!(refused.kind(), Kind::Crypto);
        assert!(text(&refused).contains("no key slot"), "{}", text(&refused));
    }
    // Keys in the local cache are believed no more than anything else there.
    let mut files = vec![cache.join("keys")];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
        } else {
            std::fs::write(path, [0x5a; 40]).unwrap();
        }
    }
    assert_eq!(open(secret("correct horses")).unwrap_err().kind(), Kind::Crypto);
    assert_eq!(open(secret("correct horse")).unwrap().backups(STANZA).unwrap().len(), 1);
}

#[test]
fn objects_of_another_repository_are_strangers() {
    let (ground, foreign) = (Ground::new(11), Ground::new(12));
    // All of them beside our own: more keys, index segments, packs, backups, WAL.
    let store = ground.world.fork();
    let mut added = Vec::new();
    for key in foreign.keys() {
        let bytes = object(&foreign.world.store, &key);
        if store.put_if_absent(&key, &bytes).unwrap() == Put::Created {
            added.push(key);
        }
    }
    let found = look(&ground, &store);
    assert!(!found.failures.is_empty() && found.absent.is_empty(), "{found:?}");
    for (kind, text) in &found.failures {
        assert!([Kind::Checksum, Kind::Format].contains(kind), "{kind:?} {text}");
        assert!(added.iter().any(|key| text.contains(key.as_str())), "{text}");
    }
    // Packs, keys of sessions, slots and references alone are garbage that nobody asks for.
    let store = ground.world.fork();
    for key in added.iter().filter(|key| ["packs", "sk", "refs", "ses", "keys/slot"].contains(&family(key))) {
        store.put_if_absent(key, &object(&foreign.world.store, key)).unwrap();
    }
    let found = look(&ground, &store);
    assert!(found.failures.is_empty() && found.absent.is_empty(), "{found:?}");
    assert!(is_whole(&ground, &store, BackupType::Incr, &Tree::of_files(ground.world.cluster.path())));
    let rebuilt = open(&store).unwrap().rebuild_index(&Silent, &Cancel::default()).unwrap();
    let strangers = foreign.keys().iter().filter(|key| family(key) == "packs").count();
    assert_eq!(rebuilt.unreadable.len(), strangers);
    let found = look_after(&ground, &store);
    assert!(found.failures.is_empty() && found.absent.is_empty(), "{found:?}");
}

/// As [`look`], for a store to which a backup was added that the ground does not know.
fn look_after(ground: &Ground, store: &MemoryStore) -> Found {
    let known = ground.world.store.snapshot();
    let apart = store.from_snapshot(&store.snapshot());
    for key in store.snapshot().keys().filter(|key| key.starts_with("backups/") && known.get(key).is_none()) {
        apart.delete(key).unwrap();
    }
    look(ground, &apart)
}

/// A repository whose parameters were written by another version, properly sealed.
fn with_config(ground: &Ground, change: impl FnOnce(&mut RepositoryConfig)) -> MemoryStore {
    let store = ground.world.fork();
    let repository = open(&store).unwrap();
    let mut config = repository.config().clone();
    change(&mut config);
    let bytes = repository.keyring().seal_config(&config).unwrap();
    assert!(store.tamper(layout::FORMAT, |format| *format = bytes));
    store
}

#[test]
fn other_versions_and_unknown_features_are_refused_by_name() {
    let ground = Ground::new(13);
    let store = ground.world.fork();
    // The version follows the magic number of eight bytes.
    assert!(store.tamper(layout::FORMAT, |format| format[8] += 1));
    let refused = open(&store).unwrap_err();
    assert_eq!(refused.kind(), Kind::FeatureNotSupported);
    assert!(text(&refused).contains("format") && text(&refused).contains('2'), "{}", text(&refused));

    let store = with_config(&ground, |config| config.features.read.push("time-travel".to_owned()));
    let refused = open(&store).unwrap_err();
    assert_eq!(refused.kind(), Kind::FeatureNotSupported);
    assert!(text(&refused).contains("time-travel"), "{}", text(&refused));

    // One that only writers must know lets everybody else read.
    let store = with_config(&ground, |config| config.features.write.push("time-travel".to_owned()));
    let found = look(&ground, &store);
    assert!(found.failures.is_empty() && found.absent.is_empty(), "{found:?}");
    let before = store.snapshot();
    let refused = ground.world.backup_to(Arc::new(store.clone()), None, BackupType::Full).unwrap_err();
    assert_eq!(refused.kind(), Kind::FeatureNotSupported);
    assert!(text(&refused).contains("time-travel"), "{}", text(&refused));
    let rebuild = open(&store).unwrap().rebuild_index(&Silent, &Cancel::default()).unwrap_err();
    assert_eq!(rebuild.kind(), Kind::FeatureNotSupported);
    assert_eq!(store.snapshot(), before);
}
