//! What a collection came to.

use pgkeep_formats::id::SessionId;

/// Some packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// How many.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Tally {
    pub(super) fn add(&mut self, bytes: u64) {
        self.packs += 1;
        self.bytes += bytes;
    }
}

impl FromIterator<u64> for Tally {
    fn from_iter<T: IntoIterator<Item = u64>>(sizes: T) -> Self {
        let mut out = Self::default();
        sizes.into_iter().for_each(|bytes| out.add(bytes));
        out
    }
}

/// A session that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenSession {
    /// Its id.
    pub session: SessionId,
    /// Stanza it writes for.
    pub stanza: String,
    /// What it does.
    pub purpose: String,
    /// Who it is.
    pub host: String,
    /// Generation it began from.
    pub generation: u64,
    /// When it began, by its host's clock; seconds since the Unix epoch.
    pub started: i64,
    /// Its last sign of life, by the store's clock; seconds since the Unix epoch.
    pub last_seen: i64,
    /// Its process ran here and has ended.
    pub is_dead: bool,
}

/// A session that was given up, or would be.
pub type Fenced = OpenSession;

/// What a collection came to; of a dry run, what it would come to.
#[derive(Debug, Clone, Default)]
pub struct GcReport {
    /// The decision that was carried out.
    pub generation: u64,
    /// Whether this run published it.
    pub published: bool,
    /// Visible backups.
    pub backups: u64,
    /// Backups that readers hold.
    pub pinned: u64,
    /// All packs there were.
    pub packs: Tally,
    /// Packs that nobody needs since this run.
    pub condemned: Tally,
    /// Packs that are gone.
    pub deleted: Tally,
    /// Packs that nobody needs and that an open session may still use: a later run takes them.
    pub waiting: Tally,
    /// Packs that were partly dead, and of which what is in use was stored once more.
    pub rewritten: Tally,
    /// Bytes that were stored for that.
    pub rewritten_to: u64,
    /// Index segments that were replaced.
    pub segments: u64,
    /// Sessions of which all records are gone.
    pub sessions: u64,
    /// Sessions that were fenced for their silence, or because their process has ended.
    pub fenced: Vec<Fenced>,
    /// Sessions that have not ended.
    pub open: Vec<OpenSession>,
}
