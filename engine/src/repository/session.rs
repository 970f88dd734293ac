//! A writer's run: steps W0 to W8 of DESIGN's section 5.
//!
//! Order of objects: session record, wrapped key, packs, index segments, references, commit. A crash anywhere leaves a
//! valid repository and some garbage, which a later run of the same backup finds in the index and uses again.
//!
//! Threads: chunks are sealed by any thread through [`WriterSession::sealer`]; packing, publishing and committing are one
//! thread's, the owner of the session.

use super::{Repository, RepositoryIndex, put_new};
use crate::clock::Clock;
use crate::crypto::{Scope, SessionSealer};
use crate::index::{ChunkAt, ChunkIndex, ChunkIndexMut, Head, HeadOptions, IndexError};
use crate::pack::{BasePages, FinishedPack, PackDomain, PackWriter, PackedChunk, add_footer, read_footer};
use crate::store::{Put, Range};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{ChunkId, IndexId, PackId, SessionId};
use pgkeep_formats::repo::chunk::{ChunkKind, Encoding};
use pgkeep_formats::repo::envelope::{ChunkHead, Domain, ObjectKind};
use pgkeep_formats::repo::index::{IndexBuilder, PackFacts};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::moves::Moves;
use pgkeep_formats::repo::pack::FooterEntry;
use pgkeep_formats::repo::records::{Commit, Condemned, Fence, Generation, Heartbeat, SessionOpen};
use pgkeep_formats::repo::refs::Refs;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a session starts over because gc published a generation just then.
const STARTS_MAX: usize = 16;
/// Packs' worth of stored bytes after which an index segment is published, so that an interrupted backup has little to do
/// again: 64 MiB with packs of the usual size.
const PUBLISH_PACKS_MIN: u64 = 2;
/// Later segments hold this share of what is stored already, which keeps their number small.
const PUBLISH_SHARE: u64 = 16;

/// Longest time without a sign of life while the session works.
const BEAT_EVERY: Duration = Duration::from_secs(600);

/// Calls what it is given for every chunk a backup uses, in any order, repetitions allowed.
pub type AllChunks<'a> = dyn FnMut(&mut dyn FnMut(&ChunkId) -> Result<()>) -> Result<()> + 'a;

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It was new: this many bytes were added to the repository.
    New(u32),
    /// The repository had it.
    Known,
}

/// A writer's run.
pub struct WriterSession {
    repository: Arc<Repository>,
    stanza: String,
    generation: u64,
    epoch: u32,
    sealer: Arc<SessionSealer>,
    index: Arc<RepositoryIndex>,
    /// Packs that are treated as if they were gone: condemned, lost, or distrusted since.
    shunned: HashSet<PackId>,
    head: Arc<Head>,
    /// Durable packs whose chunks no published segment holds yet.
    unpublished: Vec<(PackId, u64)>,
    /// Chunks of packs that are not durable yet.
    pending: HashSet<ChunkId>,
    data: Option<PackWriter>,
    meta: Option<PackWriter>,
    sequence: u32,
    beats: u32,
    last_beat: Instant,
    /// What every sign of life says.
    heartbeat: Heartbeat,
    unpublished_bytes: u64,
    stored: u64,
}

impl WriterSession {
    /// Opens a session: W0 to W3.
    ///
    /// # Errors
    /// `FeatureNotSupported` for a repository that can only be read; what the store, the cipher or the index said.
    pub fn begin(
        repository: &Arc<Repository>,
        stanza: &str,
        purpose: &str,
        host: &str,
        clock: &dyn Clock,
    ) -> Result<Self> {
        repository.check_writable()?;
        for _ in 0..STARTS_MAX {
            let before = repository.newest_generation()?;
            let sealer = Arc::new(SessionSealer::new(Arc::clone(repository.keyring()))?);
            let session = sealer.session();
            let open = SessionOpen {
                stanza: stanza.to_owned(),
                generation: before.number,
                purpose: purpose.to_owned(),
                host: host.to_owned(),
                started: clock.now().as_secs() as i64,
                process: crate::process::own(),
            };
            let name = layout::session_open(session);
            let bytes = sealer.seal_object(ObjectKind::Session, &Scope::Repo, &name, &[], &open.encode())?;
            // Nobody is to wait for a session that never began to work; a reply may have been lost.
            let begun = put_new(&**repository.store(), &name, &bytes);
            let now = begun.and_then(|_| repository.newest_generation());
            if now.is_err() {
                end(repository, stanza, session, "it could not begin", clock);
            }
            let now = now?;
            if now.number != before.number {
                fence(repository, stanza, session, session, "a generation was published while it started", clock)?;
                continue;
            }
            let begun = Self::prepare(repository, stanza, Arc::clone(&sealer), &now);
            if begun.is_err() {
                end(repository, stanza, session, "it could not begin", clock);
            }
            return begun;
        }
        Err(Error::refused(Kind::LockAcquire, "garbage collection publishes faster than this session can start"))
    }

    /// W2 and W3, with the generation that is the newest.
    fn prepare(
        repository: &Arc<Repository>,
        stanza: &str,
        sealer: Arc<SessionSealer>,
        now: &Generation,
    ) -> Result<Self> {
        let session = sealer.session();
        let epoch = repository.keyring().current_epoch()?;
        put_new(&**repository.store(), &layout::session_key(session, epoch), &sealer.wrapped_data_key(epoch)?)?;
        let condemned: HashSet<PackId> = now.condemned.iter().map(|c| c.pack).collect();
        let key = repository.keyring().subkey("index head")?;
        let head = repository.cache();
        let head = Arc::new(Head::open(head.as_deref(), session, key.expose(), HeadOptions::default()));
        let index = repository.load_index(&condemned, Arc::clone(&head) as Arc<dyn ChunkIndexMut>)?;
        // Listed after the index was loaded: what that names was durable before.
        let mut named = index.packs();
        named.retain(|pack, _| !condemned.contains(pack));
        let lost = repository.lost_packs(&named)?;
        if let Some((_, example)) = &lost.example {
            tracing::warn!(
                "{} packs cannot be read: {example}; nothing is built on them, see 'verify' for what they held",
                lost.packs.len()
            );
        }
        let shunned: HashSet<PackId> = condemned.union(&lost.packs).copied().collect();
        if !lost.packs.is_empty() {
            index.set_condemned(shunned.clone());
        }
        Ok(Self {
            repository: Arc::clone(repository),
            stanza: stanza.to_owned(),
            generation: now.number,
            epoch,
            sealer,
            index,
            shunned,
            head,
            pending: HashSet::new(),
            data: None,
            meta: None,
            sequence: 0,
            beats: 0,
            last_beat: Instant::now(),
            heartbeat: Heartbeat::default(),
            unpublished: Vec::new(),
            unpublished_bytes: 0,
            stored: 0,
        })
    }

    /// The session's id.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.sealer.session()
    }

    /// Generation it started from.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the index names packs that nothing may be built on: lost, distrusted, or condemned and still there. Earlier
    /// manifests may then name chunks that this session does not know.
    #[must_use]
    pub fn shuns_any(&self) -> bool {
        let packs = self.index.packs();
        self.shunned.iter().any(|pack| packs.contains_key(pack))
    }

    /// Whether nothing may be built on a pack.
    #[must_use]
    pub fn shuns(&self, pack: PackId) -> bool {
        self.shunned.contains(&pack)
    }

    /// Treats more packs as if they were gone: a chunk in one of them was found damaged.
    pub fn distrust(&mut self, packs: impl IntoIterator<Item = PackId>) {
        self.shunned.extend(packs);
        self.index.set_condemned(self.shunned.clone());
    }

    /// The repository.
    #[must_use]
    pub fn repository(&self) -> &Arc<Repository> {
        &self.repository
    }

    /// Seals for this session, from any thread.
    #[must_use]
    pub fn sealer(&self) -> &Arc<SessionSealer> {
        &self.sealer
    }

    /// The index as it was when the session began, and what the session has published.
    #[must_use]
    pub fn index(&self) -> &Arc<RepositoryIndex> {
        &self.index
    }

    /// Bytes this session has added to the repository so far, without small records.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.stored
    }

    /// True if the chunk is stored already, by this session or before it, with all it builds on.
    ///
    /// # Errors
    /// What the index said.
    pub fn knows(&self, id: &ChunkId) -> Result<bool> {
        Ok(self.pending.contains(id) || self.index.knows(&self.repository, id)?)
    }

    /// Adds a sealed data chunk. What it returns is a full pack, which must be made durable and then noted by
    /// [`Self::note_durable`]. `bases` are the old pages it was encoded against, `hashes` those of its own pages; both may
    /// be empty.
    ///
    /// # Errors
    /// What the cipher said.
    pub fn add_data(
        &mut self,
        chunk: PackedChunk,
        sealed: &[u8],
        bases: &[BasePages],
        hashes: &[u64],
    ) -> Result<Option<FinishedPack>> {
        self.pending.insert(chunk.id);
        let target = self.repository.config().pack_bytes as usize;
        let pack =
            self.data.get_or_insert_with(|| PackWriter::new(&self.sealer, &PackDomain::Data, self.epoch, target));
        pack.push(chunk, sealed, bases, hashes);
        if pack.is_full() { self.finish_data() } else { Ok(None) }
    }

    /// Ends the data pack being built.
    ///
    /// # Errors
    /// What the cipher said.
    pub fn finish_data(&mut self) -> Result<Option<FinishedPack>> {
        match self.data.take().filter(|p| !p.is_empty()) {
            Some(pack) => Ok(Some(pack.finish(&self.sealer)?)),
            None => Ok(None),
        }
    }

    /// Stores a metadata chunk and returns its name. Its pack becomes durable with [`Self::publish`] at the latest.
    ///
    /// # Errors
    /// What the store, the cipher or the index said.
    pub fn add_metadata(&mut self, encoder: &mut crate::chunk::Encoder, plain: &[u8]) -> Result<(ChunkId, Stored)> {
        let domain = PackDomain::Meta(self.stanza.clone());
        let kind = ChunkKind::Metadata;
        let id = self.repository.keyring().chunk_id_scoped(&Scope::Stanza(&self.stanza), kind.as_u8(), plain)?;
        if self.knows(&id)? {
            return Ok((id, Stored::Known));
        }
        let (encoding, encoded) = encoder.encode(plain)?;
        let plain_len = plain.len() as u32;
        let head = ChunkHead { kind: kind.as_u8(), encoding: encoding.as_u8(), id, plain_len };
        let mut sealed = Vec::new();
        self.sealer.seal_chunk(&domain.of_chunks(), &head, encoded, &mut sealed)?;
        self.pending.insert(id);
        let target = self.repository.config().pack_bytes as usize;
        let pack = self.meta.get_or_insert_with(|| PackWriter::new(&self.sealer, &domain, self.epoch, target));
        pack.push(PackedChunk { id, kind, encoding, plain_len }, &sealed, &[], &[]);
        if pack.is_full() {
            self.flush_metadata()?;
        }
        Ok((id, Stored::New(sealed.len() as u32)))
    }

    fn flush_metadata(&mut self) -> Result<()> {
        if let Some(pack) = self.meta.take().filter(|p| !p.is_empty()) {
            let pack = pack.finish(&self.sealer)?;
            put_new(&**self.repository.store(), &layout::pack(pack.facts.pack), &pack.bytes)?;
            self.note_durable(&pack)?;
        }
        Ok(())
    }

    /// Notes that a pack is durable: from now on its chunks may be published. (DESIGN's *Order* invariant.)
    ///
    /// # Errors
    /// What the index or the store said.
    pub fn note_durable(&mut self, pack: &FinishedPack) -> Result<()> {
        let facts = Arc::new(pack.facts.clone());
        let place = |(ordinal, e): (usize, &FooterEntry)| {
            let at = ChunkAt {
                pack: Arc::clone(&facts),
                offset: e.offset,
                stored_len: e.stored_len,
                plain_len: e.plain_len,
                kind: e.kind,
                encoding: e.encoding,
                ordinal: ordinal as u16,
            };
            (e.id, at)
        };
        self.unpublished.push((facts.pack, facts.size));
        for (id, at) in pack.entries.iter().enumerate().map(place) {
            match self.head.insert(id, at.clone()) {
                Err(IndexError::Full { .. }) => {
                    self.publish_head()?;
                    self.unpublished.push((facts.pack, facts.size));
                    self.head.insert(id, at)?;
                }
                other => drop(other?),
            }
            self.pending.remove(&id);
        }
        self.stored += facts.size;
        self.unpublished_bytes += facts.size;
        let enough = PUBLISH_PACKS_MIN * u64::from(self.repository.config().pack_bytes);
        if self.unpublished_bytes >= enough.max(self.stored / PUBLISH_SHARE) {
            self.publish_head()?;
            self.beat()?;
        }
        Ok(())
    }

    fn publish_head(&mut self) -> Result<()> {
        let builder = match self.head.drain() {
            // What the head lost, the packs themselves still tell.
            Err(e @ IndexError::Lost { .. }) => {
                tracing::warn!("{e}; reading the footers of {} packs", self.unpublished.len());
                Some(self.index_from_footers()?)
            }
            other => other?,
        };
        let Some(builder) = builder else { return Ok(()) };
        let payload = builder.encode();
        let id = IndexId(self.repository.keyring().content_hash(&payload)?);
        let name = layout::index_segment(self.id(), self.sequence, id);
        let bytes = self.sealer.seal_object(ObjectKind::Index, &Scope::Index, &name, &[], &payload)?;
        put_new(&**self.repository.store(), &name, &bytes)?;
        self.index.install(&name, bytes.len() as u64, &payload)?;
        self.head.release();
        self.sequence += 1;
        self.stored += bytes.len() as u64;
        self.unpublished_bytes = 0;
        self.unpublished.clear();
        Ok(())
    }

    fn index_from_footers(&self) -> Result<IndexBuilder> {
        let mut builder = IndexBuilder::new();
        for (pack, size) in &self.unpublished {
            let (facts, footer) = read_footer(&self.repository, *pack, *size)?;
            add_footer(&mut builder, &facts, &footer).map_err(Error::damaged(layout::pack(*pack)))?;
        }
        Ok(builder)
    }

    fn beat(&mut self) -> Result<()> {
        let name = layout::session_heartbeat(self.id(), self.beats);
        let content = self.heartbeat.encode();
        let bytes = self.sealer.seal_object(ObjectKind::Heartbeat, &Scope::Repo, &name, &[], &content)?;
        put_new(&**self.repository.store(), &name, &bytes)?;
        self.beats += 1;
        self.last_beat = Instant::now();
        Ok(())
    }

    /// Tells everybody which WAL the backup needs from where on, so that nobody removes it. To be called before that WAL
    /// is relied on.
    ///
    /// # Errors
    /// What the store or the cipher said.
    pub fn needs_wal(&mut self, archive_id: &str, first: &str) -> Result<()> {
        self.heartbeat.wal = Some((archive_id.to_owned(), first.to_owned()));
        self.beat()
    }

    /// Tells everybody that the backup needs no WAL.
    ///
    /// # Errors
    /// What the store or the cipher said.
    pub fn needs_no_wal(&mut self) -> Result<()> {
        self.heartbeat.without_wal = true;
        self.beat()
    }

    /// Gives a sign of life if the last one is old. Cheap, to be called often.
    ///
    /// # Errors
    /// What the store or the cipher said.
    pub fn keep_alive(&mut self) -> Result<()> {
        if self.last_beat.elapsed() < BEAT_EVERY { Ok(()) } else { self.beat() }
    }

    /// Makes all metadata durable and publishes the index of everything written: the end of W4.
    ///
    /// # Errors
    /// What the store, the cipher or the index said.
    pub fn publish(&mut self) -> Result<()> {
        self.flush_metadata()?;
        self.publish_head()
    }

    /// Commits: W5 to W8. `chunks` yields every chunk the backup uses, in any order, repetitions allowed.
    /// `finish` completes the record once the bytes stored of those chunks are known.
    ///
    /// # Errors
    /// `LockAcquire` if the session was fenced; `FileMissing` if a chunk or pack it needs is gone; what the store said.
    pub fn commit(
        self,
        chunks: &mut AllChunks<'_>,
        finish: impl FnOnce(u64, u64) -> Commit,
        clock: &dyn Clock,
    ) -> Result<Commit> {
        let (repository, stanza, session) = (Arc::clone(&self.repository), self.stanza.clone(), self.id());
        let committed = self.try_commit(chunks, finish);
        if committed.is_err() {
            // If its record is there after all, this does nothing.
            end(&repository, &stanza, session, "it could not commit", clock);
        }
        committed
    }

    fn try_commit(mut self, chunks: &mut AllChunks<'_>, finish: impl FnOnce(u64, u64) -> Commit) -> Result<Commit> {
        self.publish()?;
        let mut refs = Refs::new(self.id(), self.generation);
        let mut packs: HashMap<PackId, Arc<PackFacts>> = HashMap::new();
        let mut used = 0u64;
        let index = Arc::clone(&self.index);
        let mut note = |id: &ChunkId, is_base: bool| {
            let at = index.lookup(id)?.ok_or_else(|| {
                Error::refused(Kind::FileMissing, format!("chunk {id}, which this backup needs, is in no index"))
            })?;
            // No reader would follow it further. Depth is one.
            if is_base && at.encoding.is_delta() {
                let text = format!("chunk {id}, on which a delta of this backup builds, is there as a delta only");
                return Err(Error::refused(Kind::FileMissing, text));
            }
            let new = !refs.contains(at.pack.pack, at.ordinal);
            if new {
                refs.insert(at.pack.pack, at.ordinal);
                used += u64::from(at.stored_len);
                packs.entry(at.pack.pack).or_insert_with(|| Arc::clone(&at.pack));
            }
            Ok::<_, Error>(new.then_some(at))
        };
        let repository = Arc::clone(&self.repository);
        chunks(&mut |id| match note(id, false)? {
            Some(at) => repository.dependencies(&at, &mut |base| note(base, true).map(drop)),
            None => Ok(()),
        })?;
        let name = layout::refs(self.id());
        let bytes =
            self.repository.keyring().seal_embedded(ObjectKind::Refs, Domain::Gc, &name, &[], &refs.encode())?;
        put_new(&**self.repository.store(), &name, &bytes)?;
        self.check_packs(&packs)?;
        let commit = finish(used, self.stored + bytes.len() as u64);
        self.create_end(ObjectKind::Commit, &commit.encode())?;
        Ok(commit)
    }

    /// W6: every pack the backup uses is there, whole, and can be opened.
    ///
    /// One that was condemned *since this session began* stays as long as the session is open, and as long as its
    /// backup is visible: no pack goes while a session is open that began before it was condemned, and then only if no visible
    /// backup uses it (G5). So a backup that takes hours does not fail because something expired meanwhile. Packs that were
    /// condemned before are none of its own (W3).
    fn check_packs(&self, packs: &HashMap<PackId, Arc<PackFacts>>) -> Result<()> {
        let newest = self.repository.newest_generation()?;
        let early = |c: &&Condemned| c.since <= self.generation && packs.contains_key(&c.pack);
        if let Some(c) = newest.condemned.iter().find(early) {
            return Err(Error::refused(
                Kind::FileMissing,
                format!("pack {} was condemned by garbage collection before the backup began", c.pack),
            ));
        }
        self.repository.lost_packs(packs)?.refuse()
    }

    /// Ends a session that stored chunks of other packs once more: from now on it counts what lies where. The counterpart of
    /// [`Self::commit`] for sessions that are of no stanza.
    ///
    /// # Errors
    /// As there.
    pub fn commit_moves(mut self, moves: &Moves, clock: &dyn Clock) -> Result<()> {
        let committed = self.publish().and_then(|()| self.create_end(ObjectKind::Moves, &moves.encode()));
        if committed.is_err() {
            end(&self.repository, &self.stanza, self.id(), "it could not commit", clock);
        }
        committed
    }

    /// W7 and W8.
    fn create_end(&self, kind: ObjectKind, content: &[u8]) -> Result<()> {
        let name = layout::end(&self.stanza, self.id());
        let bytes = self.sealer.seal_object(kind, &end_scope(&self.stanza), &name, &[], content)?;
        let store = self.repository.store();
        // A lost reply: our own record is found there, and that is success.
        if store.put_if_absent(&name, &bytes)? == Put::Exists && store.get(&name, Range::Whole)? != bytes {
            return Err(Error::refused(
                Kind::LockAcquire,
                format!(
                    "session {} was fenced by garbage collection after a long silence: nothing was committed",
                    self.id()
                ),
            ));
        }
        let newest = self.repository.newest_generation()?;
        if newest.boundary > self.generation && !newest.catalogue.contains(&self.id()) {
            return Err(Error::refused(
                Kind::LockAcquire,
                format!(
                    "generation {} was published without session {}: its backup is not visible",
                    newest.number,
                    self.id()
                ),
            ));
        }
        Ok(())
    }

    /// Ends the session without a commit, so that garbage collection need not wait for it. What is durable is published
    /// first: the next run will use it.
    ///
    /// # Errors
    /// What the store or the cipher said.
    pub fn abandon(mut self, reason: &str, clock: &dyn Clock) -> Result<()> {
        // Whatever became of that, nobody is to wait for this session.
        let published = self.publish();
        fence(&self.repository, &self.stanza, self.id(), self.id(), reason, clock)?;
        published
    }
}

/// As [`fence`], for a session that has failed already, for a reason that matters more.
fn end(repository: &Repository, stanza: &str, session: SessionId, reason: &str, clock: &dyn Clock) {
    if let Err(e) = fence(repository, stanza, session, session, reason, clock) {
        tracing::debug!("cannot fence the failed session: {e}");
    }
}

/// Ends a session by creating its commit key. One that has committed stays committed.
pub(super) fn fence(
    repository: &Repository,
    stanza: &str,
    session: SessionId,
    by: SessionId,
    reason: &str,
    clock: &dyn Clock,
) -> Result<()> {
    let record = Fence { by, reason: reason.to_owned(), created: clock.now().as_secs() as i64 };
    let name = layout::end(stanza, session);
    let sealer = SessionSealer::new(Arc::clone(repository.keyring()))?;
    let bytes = sealer.seal_object(ObjectKind::Fence, &end_scope(stanza), &name, &[], &record.encode())?;
    repository.store().put_if_absent(&name, &bytes)?;
    Ok(())
}

/// Under whose key a session's end is sealed: of a stanza, or of none.
pub(crate) fn end_scope(stanza: &str) -> Scope<'_> {
    if stanza.is_empty() { Scope::Repo } else { Scope::Stanza(stanza) }
}

/// Seals an encoded data chunk with a session's key.
///
/// # Errors
/// What the cipher said.
pub fn seal_data(
    sealer: &SessionSealer,
    id: ChunkId,
    kind: ChunkKind,
    encoding: Encoding,
    plain_len: u32,
    encoded: &[u8],
) -> Result<Vec<u8>> {
    let head = ChunkHead { kind: kind.as_u8(), encoding: encoding.as_u8(), id, plain_len };
    let mut out = Vec::with_capacity(encoded.len() + pgkeep_formats::repo::envelope::CHUNK_OVERHEAD);
    sealer.seal_chunk(&PackDomain::Data.of_chunks(), &head, encoded, &mut out)?;
    Ok(out)
}
