//! One backup, chunk by chunk: read and checked under the keys of one repository, named and sealed under those of the other.
//!
//! Of a file that is as it was in an earlier backup that both have, the other repository's extents are taken over, and nothing
//! is read; of one that has changed, the chunks that the earlier backup has. What is new is not compressed again, and a delta
//! stays one where the other repository has the chunks it was encoded against, in full: names are of plaintext, so those have
//! other names there and the same pages. Memory: [`BATCH`] chunks at a time, the names of up to [`NAMES_MAX`] chunks, and a
//! pack.

use super::SyncOptions;
use super::carry::{Carried, Hand};
use super::twins::{Twins, place};
use crate::chunk::Encoder;
use crate::clock::Clock;
use crate::index::ChunkIndex;
use crate::observe::{Cancel, Counter, Observer};
use crate::pack::{FinishedPack, PackedChunk};
use crate::repository::manifests::{BuiltEntry, FileRecord, Manifest, ManifestBuilder, ManifestSummary};
use crate::repository::{BACKUP, Backup, ChunkSource, Repository, WriterSession, put_new};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::pg::wal::{WalSegment, WalSegmentSize};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::manifest::{Content, Extent, ExtentAt, INLINE_BYTES_MAX};
use pgkeep_formats::repo::records::Commit;
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Chunks under way at once; each is 1 MiB at most, plain and sealed.
const BATCH: usize = 64;
/// Names kept of chunks that were copied: 64 bytes each, and what a map takes.
const NAMES_MAX: usize = 1 << 20;

/// How long a copy holds its backup at the most: one that was killed holds it no longer.
const PINNED_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// Copies backups of one stanza.
pub(super) struct Copier<'a> {
    from: &'a Arc<Repository>,
    to: &'a Arc<Repository>,
    options: &'a SyncOptions<'a>,
    observer: &'a dyn Observer,
    cancel: &'a Cancel,
    clock: &'a dyn Clock,
    pool: rayon::ThreadPool,
    source: Arc<ChunkSource>,
    /// Bytes of a page of the backup that is copied.
    page: usize,
    /// By the source's name: the other repository's.
    names: HashMap<ChunkId, ChunkId>,
    /// WAL files that were copied just now.
    copied: &'a HashSet<String>,
    /// Whether what both have of an earlier backup is taken over.
    takes_over: bool,
    /// Whether there was any.
    took_over: bool,
}

impl<'a> Copier<'a> {
    pub(super) fn new(
        from: &'a Arc<Repository>,
        to: &'a Arc<Repository>,
        copied: &'a HashSet<String>,
        options: &'a SyncOptions<'a>,
        observer: &'a dyn Observer,
        cancel: &'a Cancel,
        clock: &'a dyn Clock,
    ) -> Result<Self> {
        let builder = rayon::ThreadPoolBuilder::new().num_threads(options.process_max.max(1));
        let failed = |e| Error::refused(Kind::Kernel, format!("cannot start threads: {e}"));
        let pool = builder.thread_name(|n| format!("sync-{n}")).build().map_err(failed)?;
        let (source, names) = (source(from, options.stanza)?, HashMap::new());
        let (takes_over, took_over) = (true, false);
        Ok(Self {
            from,
            to,
            options,
            observer,
            cancel,
            clock,
            pool,
            source,
            page: 1,
            names,
            copied,
            takes_over,
            took_over,
        })
    }

    /// Copies a backup, whose WAL is in these archives, of the source and of the other repository; how many bytes it added.
    pub(super) fn copy(&mut self, backup: &Backup, archives: (&str, &str)) -> Result<u64> {
        tracing::info!("copy backup {} from repo{} to repo{}", backup.label, self.from.key(), self.to.key());
        self.takes_over = true;
        match self.try_copy(backup, archives) {
            // What both have of an earlier backup may be what is damaged.
            Err(e) if e.is_damage() && self.took_over => {
                tracing::warn!("{}; all of it is read", e.chain());
                self.takes_over = false;
                self.try_copy(backup, archives)
            }
            copied => copied,
        }
    }

    fn try_copy(&mut self, backup: &Backup, archives: (&str, &str)) -> Result<u64> {
        let (_, archive_id) = archives;
        self.took_over = false;
        let (stanza, host) = (self.options.stanza, self.options.host);
        // It may expire meanwhile, and its chunks may have been moved since the last one was copied.
        let _pin = self.from.try_pin(stanza, backup.session, "repo-sync", PINNED_FOR, self.clock)?;
        self.source = source(self.from, stanza)?;
        // They are of what another session stored, which may have failed.
        self.names.clear();
        let mut session = WriterSession::begin(self.to, stanza, BACKUP, host, self.clock)?;
        self.observer.begin("copy backup", backup.size);
        let filled = self.fill(&mut session, backup, archive_id);
        self.observer.end();
        let (commit, summary, written) = match filled {
            Ok(filled) => filled,
            Err(e) => {
                if let Err(fence) = session.abandon("the copy failed", self.clock) {
                    tracing::debug!("cannot fence the failed session: {fence}");
                }
                return Err(e.during(format!("cannot copy backup {}", backup.label)));
            }
        };
        // A segment may be missing in the source too, or have been removed here before this session said that it needs it.
        if let Some((first, last)) = backup.wal.as_ref().filter(|_| !backup.keeps_wal)
            && let Err(e) = self.check_wal(backup, archives, first, last)
        {
            if let Err(fence) = session.abandon("its WAL is not there", self.clock) {
                tracing::debug!("cannot fence the failed session: {fence}");
            }
            return Err(e);
        }
        let committed = session.commit(
            &mut |each| summary.chunks(&written, each),
            |used, stored| Commit { repository_size: used, repository_delta: stored, ..commit },
            self.clock,
        )?;
        Ok(committed.repository_delta)
    }

    /// Whether the other repository has the segments that make a backup consistent.
    fn check_wal(&self, backup: &Backup, archives: (&str, &str), first: &str, last: &str) -> Result<()> {
        let damaged = || Error::refused(Kind::Format, format!("backup {} names no WAL segments", backup.label));
        let size = WalSegmentSize::new(backup.wal_segment_size).ok_or_else(damaged)?;
        let parse = |name: &str| WalSegment::parse(name, size).map_err(|_| damaged());
        let (first, last) = (parse(first)?, parse(last)?);
        let names: Vec<String> = (first.number..=last.number)
            .map(|number| WalSegment { timeline: first.timeline, number }.name(size))
            .collect();
        let stanza = self.options.stanza;
        self.to.wal_wait(stanza, archives.1, &names, Duration::ZERO, self.clock, self.cancel).map_err(|e| {
            let text = format!("backup {} is not copied: repo{} lacks WAL that it needs", backup.label, self.to.key());
            e.during(text)
        })?;
        let same = |name: &String| super::wal::check_same(self.from, self.to, stanza, archives, name);
        names.iter().filter(|name| !self.copied.contains(*name)).try_for_each(same)
    }

    fn fill(
        &mut self,
        session: &mut WriterSession,
        backup: &Backup,
        archive_id: &str,
    ) -> Result<(Commit, ManifestSummary, Arc<ChunkSource>)> {
        match &backup.wal {
            Some((first, _)) => session.needs_wal(archive_id, first)?,
            None => session.needs_no_wal()?,
        }
        let index = Arc::clone(session.index()) as Arc<dyn ChunkIndex>;
        let written = Arc::new(ChunkSource::new(Arc::clone(self.to), index, self.options.stanza));
        let manifest = Arc::new(Manifest::open(&self.source, backup)?);
        // What an earlier backup is made of may not be built on any more.
        let may_take_over = self.takes_over && !session.shuns_any();
        let twins = if may_take_over { self.twins(backup, &written)? } else { None };
        let twins = twins.filter(|t| {
            t.theirs.root().page_size == manifest.root().page_size
                && t.ours.root().page_size == manifest.root().page_size
        });
        self.took_over = twins.is_some();
        self.page = (manifest.root().page_size as usize).max(1);
        let parent = twins.as_ref().map(|t| Arc::clone(&t.ours));
        let mut builder = ManifestBuilder::new(session, manifest.root().page_size, parent)?;
        let mut late = Vec::new();
        for record in manifest.files() {
            let record = record?;
            self.cancel.check()?;
            session.keep_alive()?;
            let built = self.entry(&manifest, &record);
            self.observer.add(Counter::Done, record.entry.size);
            let twin = match &twins {
                Some(twins) if !record.extents.is_empty() => twins.find(&record.entry.path)?,
                _ => None,
            };
            if built.inline.as_ref().is_some_and(|bytes| bytes.len() > INLINE_BYTES_MAX) {
                late.push(built);
            } else if let Some(twin) = &twin
                && twin.is_as_in(&manifest, &record)?
            {
                builder.add_unchanged(session, built)?;
            } else {
                self.make_room(record.extents.len());
                if let Some(twin) = &twin {
                    twin.names(&mut |theirs, ours| {
                        if session.knows(&ours)? {
                            self.names.insert(theirs, ours);
                        }
                        Ok(())
                    })?;
                }
                let extents = self.extents(session, &mut builder, &manifest, &record)?;
                builder.add(session, BuiltEntry { extents, ..built })?;
            }
        }
        if let Some(pack) = session.finish_data()? {
            self.upload(session, &pack)?;
        }
        let summary = builder.finish(session, late)?;
        let history = archive_id.rsplit_once('-').and_then(|(_, id)| id.parse().ok());
        let commit = Commit {
            session: session.id(),
            generation: session.generation(),
            history_id: history.ok_or_else(|| Error::refused(Kind::Assert, format!("no archive is '{archive_id}'")))?,
            manifest: summary.manifest.clone(),
            ..backup.clone()
        };
        Ok((commit, summary, written))
    }

    /// The newest backup before this one that both have. One that cannot be read here only costs time.
    fn twins(&self, backup: &Backup, written: &Arc<ChunkSource>) -> Result<Option<Twins>> {
        let theirs = self.from.backups_readable(self.options.stanza)?.0;
        let ours = self.to.backups_readable(self.options.stanza)?.0;
        let same = |b: &&Backup| b.stop < backup.stop && b.system_identifier == backup.system_identifier;
        for their in theirs.iter().filter(same).rev() {
            let Some(our) = ours.iter().find(|our| our.label == their.label && super::is_same(their, our)) else {
                continue;
            };
            let opened = Manifest::open(&self.source, their).and_then(|t| Ok((t, Manifest::open(written, our)?)));
            match opened {
                Ok((theirs, ours)) => return Ok(Some(Twins { theirs: Arc::new(theirs), ours: Arc::new(ours) })),
                Err(e) => tracing::debug!("nothing is taken over from backup {}: {}", our.label, e.chain()),
            }
        }
        Ok(None)
    }

    /// The entry without its extents.
    fn entry(&self, manifest: &Manifest, record: &FileRecord) -> BuiltEntry {
        let entry = &record.entry;
        let (inline, unit) = match &entry.content {
            Content::None => (None, 1),
            Content::Inline(bytes) => (Some(bytes.clone()), 1),
            Content::Extents { unit, .. } => (None, *unit),
        };
        BuiltEntry {
            path: entry.path.clone(),
            node: entry.node.clone(),
            mode: entry.mode,
            user: manifest.name(entry.user).to_owned(),
            group: manifest.name(entry.group).to_owned(),
            modified: (entry.modified, entry.modified_nanos),
            size: entry.size,
            inline,
            unit,
            extents: Vec::new(),
            bad_pages: entry.bad_pages.clone(),
        }
    }

    /// The extents of a file in the other repository, which has all chunks of it then.
    fn extents(
        &mut self,
        session: &mut WriterSession,
        builder: &mut ManifestBuilder,
        manifest: &Manifest,
        record: &FileRecord,
    ) -> Result<Vec<Extent>> {
        let mut out = Vec::with_capacity(record.extents.len());
        // Each stretch names no more chunks than a batch has.
        for stretch in record.extents.chunks(BATCH) {
            self.make_room(BATCH);
            let mut ids = Vec::with_capacity(stretch.len());
            for extent in stretch {
                ids.push(place(manifest, extent)?);
            }
            let mut unknown: Vec<ChunkId> = ids.iter().flatten().map(|(id, _)| *id).collect();
            unknown.sort_unstable();
            unknown.dedup();
            unknown.retain(|id| !self.names.contains_key(id));
            self.carry(session, &unknown)?;
            for (extent, id) in stretch.iter().zip(ids) {
                let at = match id {
                    None => ExtentAt::Zero,
                    Some((id, offset)) => {
                        let lost = || Error::refused(Kind::Assert, format!("chunk {id} was not copied"));
                        let ours = *self.names.get(&id).ok_or_else(lost)?;
                        ExtentAt::Chunk { ordinal: builder.ordinal(session, ours)?, offset }
                    }
                };
                out.push(Extent { units: extent.units, at });
            }
        }
        Ok(out)
    }

    /// Forgets all names if there would be too many.
    fn make_room(&mut self, more: usize) {
        if self.names.len() + more > NAMES_MAX {
            self.names.clear();
        }
    }

    /// Copies chunks, a batch at most.
    fn carry(&mut self, session: &mut WriterSession, ids: &[ChunkId]) -> Result<()> {
        let hand = Hand {
            source: &self.source,
            to: self.to,
            index: Arc::clone(session.index()),
            sealer: Arc::clone(session.sealer()),
            hasher: self.to.keyring().page_hasher()?,
            page: self.page,
            names: &self.names,
            deltas: self.options.deltas,
            level: self.options.compress_level,
            cancel: self.cancel,
        };
        let carried = self.pool.install(|| {
            let encoder = || Encoder::new(hand.level);
            ids.par_iter().map_init(encoder, |encoder, id| hand.carry(encoder, id)).collect::<Result<Vec<Carried>>>()
        })?;
        for Carried { theirs, ours, kind, plain_len, new, learned } in carried {
            // Two of the source's may be one here.
            if let Some(new) = new
                && !session.knows(&ours)?
            {
                self.observer.add(Counter::New, plain_len.into());
                let chunk = PackedChunk { id: ours, kind, encoding: new.encoding, plain_len };
                if let Some(pack) = session.add_data(chunk, &new.bytes, &new.bases, &new.hashes)? {
                    self.upload(session, &pack)?;
                }
            }
            // Nothing is forgotten here: the stretch that these are of is looked up next.
            self.names.extend(learned);
            self.names.insert(theirs, ours);
        }
        Ok(())
    }

    fn upload(&self, session: &mut WriterSession, pack: &FinishedPack) -> Result<()> {
        self.observer.add(Counter::Stored, pack.facts.size);
        put_new(&**session.repository().store(), &layout::pack(pack.facts.pack), &pack.bytes)?;
        session.note_durable(pack)
    }
}

fn source(repository: &Arc<Repository>, stanza: &str) -> Result<Arc<ChunkSource>> {
    let index = repository.load_index_of_what_is_there()?;
    Ok(Arc::new(ChunkSource::new(Arc::clone(repository), index, stanza)))
}
