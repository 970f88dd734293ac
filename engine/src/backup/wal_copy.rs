//! Option `archive-copy`: the WAL that makes a backup consistent, kept inside it as files of `pg_wal`.
//!
//! The segments are read from the archive, where they arrived a moment ago, so what is kept is what was archived. They are
//! stored in chunks of their own, one segment in memory at a time, and are entries that the manifest's root names: when the
//! directories were walked nobody knew them.

use super::cluster::Cluster;
use super::finish::late_file;
use crate::chunk::{Encoder, is_zero};
use crate::observe::{Cancel, Counter, Observer};
use crate::pack::{FinishedPack, PackedChunk};
use crate::repository::manifests::{BuiltEntry, ManifestBuilder};
use crate::repository::{WriterSession, put_new, seal_data};
use crate::{Error, Kind, Result};
use pgkeep_formats::repo::chunk::ChunkKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::manifest::{Extent, ExtentAt, push_extent};
use pgkeep_formats::repo::pack::CHUNK_BYTES_MAX;
use std::sync::Arc;
use std::time::Duration;

/// Stores segments of the archive in the backup.
pub(super) struct WalCopy<'a> {
    pub(super) stanza: &'a str,
    pub(super) archive_id: &'a str,
    pub(super) cluster: &'a Cluster,
    /// zstd level.
    pub(super) level: i32,
    pub(super) now: Duration,
    pub(super) observer: &'a dyn Observer,
    pub(super) cancel: &'a Cancel,
}

impl WalCopy<'_> {
    /// Entries for the segments, in the order of `names`. What they are made of is durable when this returns.
    pub(super) fn run(
        &self,
        session: &mut WriterSession,
        builder: &mut ManifestBuilder,
        names: &[String],
    ) -> Result<Vec<BuiltEntry>> {
        let mut encoder = Encoder::new(self.level)?;
        let mut out = Vec::with_capacity(names.len());
        for name in names {
            self.cancel.check()?;
            let repository = Arc::clone(session.repository());
            let content = repository.wal_get(self.stanza, self.archive_id, name)?.ok_or_else(|| {
                let text = format!("WAL segment {name} is not in the archive any more, so the backup cannot keep it");
                Error::refused(Kind::ArchiveTimeout, text)
            })?;
            let extents = self.store(session, builder, &mut encoder, &content)?;
            let entry = late_file(&self.cluster.pgdata, &format!("pg_wal/{name}"), self.now)?;
            out.push(BuiltEntry { size: content.len() as u64, unit: self.cluster.page_size, extents, ..entry });
        }
        if let Some(pack) = session.finish_data()? {
            self.upload(session, &pack)?;
        }
        tracing::info!("{} WAL segment(s) are kept in the backup", names.len());
        Ok(out)
    }

    fn store(
        &self,
        session: &mut WriterSession,
        builder: &mut ManifestBuilder,
        encoder: &mut Encoder,
        content: &[u8],
    ) -> Result<Vec<Extent>> {
        let mut extents = Vec::new();
        for plain in content.chunks(CHUNK_BYTES_MAX as usize) {
            let units = (plain.len() as u64).div_ceil(self.cluster.page_size.into()) as u32;
            // A segment that was left early ends in zeros.
            if is_zero(plain) {
                push_extent(&mut extents, Extent { units, at: ExtentAt::Zero });
                continue;
            }
            let (kind, plain_len) = (ChunkKind::Other, plain.len() as u32);
            let id = session.repository().keyring().chunk_id(kind.as_u8(), plain)?;
            if !session.knows(&id)? {
                let (encoding, encoded) = encoder.encode(plain)?;
                let sealed = seal_data(session.sealer(), id, kind, encoding, plain_len, encoded)?;
                self.observer.add(Counter::New, plain_len.into());
                let chunk = PackedChunk { id, kind, encoding, plain_len };
                if let Some(pack) = session.add_data(chunk, &sealed, &[], &[])? {
                    self.upload(session, &pack)?;
                }
            }
            let ordinal = builder.ordinal(session, id)?;
            push_extent(&mut extents, Extent { units, at: ExtentAt::Chunk { ordinal, offset: 0 } });
        }
        Ok(extents)
    }

    fn upload(&self, session: &mut WriterSession, pack: &FinishedPack) -> Result<()> {
        self.observer.add(Counter::Stored, pack.facts.size);
        put_new(&**session.repository().store(), &layout::pack(pack.facts.pack), &pack.bytes)?;
        session.note_durable(pack)
    }
}
