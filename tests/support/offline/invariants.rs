//! DESIGN's invariants, checked over everything a store holds.

use super::{STANZA, Tree, object, open, read_back};
use pgkeep_engine::crypto::Scope;
use pgkeep_engine::index::{ChunkAt, ChunkIndex};
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::pack::read_footer;
use pgkeep_engine::repository::{ChunkSource, Repository};
use pgkeep_engine::store::{MemoryStore, Snapshot, Store};
use pgkeep_formats::id::{ChunkId, PackId, SessionId};
use pgkeep_formats::repo::envelope::{Domain, Head, ObjectKind};
use pgkeep_formats::repo::index::IndexView;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::pack::{Footer, PackHeader, PackTrailer};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What must never repeat, over all stores and runs a test has seen: pack names, and counters of a session.
#[derive(Default)]
pub struct Ledger {
    /// Where each pair of session and counter was used: object and offset.
    nonces: HashMap<(SessionId, u64), (String, usize)>,
    packs: HashMap<PackId, blake3::Hash>,
}

impl Ledger {
    fn nonce(&mut self, session: SessionId, counter: u64, key: &str, offset: usize) {
        let here = (key.to_owned(), offset);
        let known = self.nonces.entry((session, counter)).or_insert_with(|| here.clone());
        assert_eq!(*known, here, "Unique: session {session} used counter {counter} twice");
    }

    /// *Unique*, with everything seen before.
    fn note(&mut self, key: &str, bytes: &[u8], footers: &HashMap<PackId, Footer>) {
        let Some(pack) = layout::parse_pack(key) else {
            if let Ok(head) = Head::parse(bytes) {
                self.nonce(head.header.session, head.header.counter, key, 0);
            }
            return;
        };
        let hash = blake3::hash(bytes);
        assert_eq!(*hash.as_bytes(), pack.0, "Unique: '{key}' is not named by its content");
        assert_eq!(*self.packs.entry(pack).or_insert(hash), hash, "Unique: another '{key}' was there before");
        let session = PackHeader::decode(bytes).expect("a pack's header").session;
        let trailer = PackTrailer::decode(bytes, bytes.len() as u64).expect("a pack's trailer");
        let places = footers[&pack].entries.iter().map(|e| e.offset);
        let hashes = (trailer.hashes_offset < trailer.footer_offset).then_some(trailer.hashes_offset);
        for at in places.chain(hashes).chain([trailer.footer_offset]) {
            let at = at as usize;
            let counter = bytes[at..at + 8].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
            self.nonce(session, counter, key, at);
        }
    }
}

/// Checks *Commit*, *Closure*, *Order* and *Unique* of a repository that needs no key, and returns the labels of its
/// visible backups. `expected` has what every backup must hold, by label; a visible backup that it lacks is an error.
///
/// # Panics
/// If one does not hold.
pub fn invariants(store: &MemoryStore, expected: &BTreeMap<String, Tree>, ledger: &mut Ledger) -> BTreeSet<String> {
    let repository = open(store).expect("the repository must open");
    let snapshot = store.snapshot();
    let footers = order(&repository, &snapshot);
    for key in snapshot.keys() {
        ledger.note(key, snapshot.get(key).expect("listed"), &footers);
    }

    // Commit.
    let visible = repository.backups(STANZA).expect("the backups must be listed");
    let commits =
        |key: &&str| key.starts_with(&layout::backups(STANZA)) && is_commit(snapshot.get(key).expect("listed"));
    let committed: BTreeSet<&str> = snapshot.keys().filter(commits).collect();
    let names: Vec<String> = visible.iter().map(|c| layout::backup(STANZA, c.session)).collect();
    assert_eq!(names.iter().map(String::as_str).collect::<BTreeSet<_>>(), committed, "Commit");

    // Closure.
    let index = repository.load_index_to_read().expect("the index must load");
    let source = Arc::new(ChunkSource::new(Arc::clone(&repository), index, STANZA));
    let mut seen = HashMap::new();
    for commit in &visible {
        let label = &commit.label;
        let tree =
            read_back(&source, commit, &mut seen).unwrap_or_else(|e| panic!("Closure: {label}: {}", super::text(&e)));
        let expected = expected.get(label).unwrap_or_else(|| panic!("Commit: nobody made {label}"));
        assert_eq!(expected.differences(&tree), Vec::<String>::new(), "Closure: {label}");
    }
    visible.into_iter().map(|c| c.label).collect()
}

fn is_commit(bytes: &[u8]) -> bool {
    Head::parse(bytes).expect("a record's head").header.kind == ObjectKind::Commit
}

/// *Order*: every index entry is backed by a pack that is there, of the size noted, whose footer has the chunk there.
fn order(repository: &Repository, snapshot: &Snapshot) -> HashMap<PackId, Footer> {
    let mut footers = HashMap::new();
    for (key, pack) in snapshot.keys().filter_map(|key| Some((key, layout::parse_pack(key)?))) {
        let size = snapshot.get(key).expect("listed").len() as u64;
        footers.insert(pack, read_footer(repository, pack, size).expect("a pack's footer").1);
    }
    let payloads: Vec<_> = (snapshot.keys().filter(|key| key.starts_with(layout::INDEX)))
        .map(|key| (key, index_payload(repository, key, snapshot.get(key).expect("listed"))))
        .collect();
    let views = payloads.iter().map(|(key, payload)| (*key, IndexView::parse(payload).expect("an index object")));
    let views: Vec<_> = views.collect();
    // Nobody goes by what another supersedes.
    let superseded: HashSet<&str> = views.iter().flat_map(|(_, view)| view.supersedes().iter().copied()).collect();
    for (_, view) in views.iter().filter(|(key, _)| !superseded.contains(key)) {
        for entry in view.iter() {
            let facts = view.pack_of(&entry).expect("a known pack");
            let found =
                snapshot.get(&layout::pack(facts.pack)).unwrap_or_else(|| panic!("Order: no pack {}", facts.pack));
            assert_eq!(found.len() as u64, facts.size, "Order: size of pack {}", facts.pack);
            let there = &footers[&facts.pack].entries[usize::from(entry.ordinal)];
            let at = (there.id, there.offset, there.stored_len, there.plain_len, there.kind, there.encoding);
            let told = (entry.id, entry.offset, entry.stored_len, entry.plain_len, entry.kind, entry.encoding);
            assert_eq!(at, told, "Order: chunk {} of pack {}", entry.ordinal, facts.pack);
        }
    }
    footers
}

fn index_payload(repository: &Repository, key: &str, bytes: &[u8]) -> Vec<u8> {
    let opened = repository.keyring().open_object(key, bytes, &[ObjectKind::Index], &Scope::Index);
    let opened = opened.expect("an index object");
    assert_eq!(opened.header.domain, Domain::Meta);
    opened.plaintext
}

/// Every chunk that some index object names.
///
/// # Panics
/// If one cannot be read.
#[must_use]
pub fn chunk_ids(store: &MemoryStore) -> HashSet<ChunkId> {
    let repository = open(store).expect("the repository must open");
    let snapshot = store.snapshot();
    let mut out = HashSet::new();
    for key in snapshot.keys().filter(|key| key.starts_with(layout::INDEX)) {
        let payload = index_payload(&repository, key, &object(store, key));
        out.extend(IndexView::parse(&payload).expect("an index object").iter().map(|e| e.id));
    }
    out
}

/// *Rebuild*: without `idx/`, and beside it, an index made from the packs answers as the published one. Returns the store
/// with nothing but the rebuilt index.
///
/// # Panics
/// If it does not.
#[must_use]
pub fn rebuild(store: &MemoryStore) -> MemoryStore {
    let ids = chunk_ids(store);
    let before = lookups(store, &ids);
    let mut out = None;
    for keep_old in [true, false] {
        let made = store.from_snapshot(&store.snapshot());
        let old: Vec<String> =
            made.snapshot().keys().filter(|k| k.starts_with(layout::INDEX)).map(str::to_owned).collect();
        if !keep_old {
            old.iter().for_each(|key| made.delete(key).expect("memory"));
        }
        let repository = open(&made).expect("the repository must open");
        let rebuilt = repository.rebuild_index(&Silent, &Cancel::default()).expect("the index must be made anew");
        assert!(rebuilt.unreadable.is_empty(), "Rebuild: {:?}", rebuilt.unreadable);
        assert_eq!(rebuilt.superseded, if keep_old { old } else { Vec::new() }, "Rebuild");
        let after = lookups(&made, &ids);
        for (id, at) in &before {
            let found = after[id].as_ref().unwrap_or_else(|| panic!("Rebuild: chunk {id} is lost"));
            let at = at.as_ref().expect("indexed");
            // A chunk that lies in several packs may be found in any of them; `order` checks the place.
            let alike = |a: &ChunkAt| (a.plain_len, a.kind);
            assert_eq!(alike(found), alike(at), "Rebuild: chunk {id}");
            assert!(found == at || copies(&made, id) > 1, "Rebuild: chunk {id} moved");
        }
        order(&repository, &made.snapshot());
        out = Some(made);
    }
    out.expect("two rounds")
}

fn lookups(store: &MemoryStore, ids: &HashSet<ChunkId>) -> HashMap<ChunkId, Option<ChunkAt>> {
    let index = open(store).expect("the repository must open").load_index_to_read().expect("the index must load");
    ids.iter().map(|id| (*id, index.lookup(id).expect("a lookup"))).collect()
}

/// In how many packs a chunk lies.
fn copies(store: &MemoryStore, id: &ChunkId) -> usize {
    let repository = open(store).expect("the repository must open");
    let snapshot = store.snapshot();
    let packs = snapshot.keys().filter_map(|key| Some((layout::parse_pack(key)?, snapshot.get(key)?.len() as u64)));
    let footers = packs.map(|(pack, size)| read_footer(&repository, pack, size).expect("a pack's footer").1);
    footers.filter(|f| f.entries.iter().any(|e| e.id == *id)).count()
}
