//! What must stay: every backup that is kept is visible, and reads back as it was.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use pgkeep_engine::repository::ChunkSource;
use pgkeep_engine::store::MemoryStore;
use support::offline::{STANZA, Tree, open, read_back, text};

/// By label, what each holds.
pub(crate) type Kept = BTreeMap<String, Tree>;

/// A reader who comes now.
pub(crate) fn reader(store: &MemoryStore) -> Arc<ChunkSource> {
    let repository = open(store).expect("the repository must open");
    let index = repository.load_index_of_what_is_there().expect("the index must load");
    Arc::new(ChunkSource::new(repository, index, STANZA))
}

/// Reads all that is visible.
pub(crate) fn check(kept: &Kept, source: &Arc<ChunkSource>, when: &str) {
    let visible = source.repository().backups(STANZA).expect("the backups must be listed");
    assert!(visible.iter().map(|c| &c.label).eq(kept.keys()), "{when}");
    let mut seen = HashMap::new();
    for commit in &visible {
        let tree = read_back(source, commit, &mut seen).unwrap_or_else(|e| panic!("{when}: {}", text(&e)));
        assert_eq!(kept[&commit.label].differences(&tree), Vec::<String>::new(), "{when}: {}", commit.label);
    }
}
