//! The chunk index made anew from the footers of packs: DESIGN's *Rebuild* invariant.
//!
//! For a repository whose `idx/` objects are lost, damaged, or name packs that are gone. The new segments supersede
//! all those listed before the packs were, and only the last one says so: an interrupted rebuild leaves some segments more,
//! each of them true, and the old ones in force. Writers may run meanwhile. What they publish is not superseded, and what they
//! published before the list lies in packs that are listed after it.
//!
//! One thread; two or three small reads a pack. Memory: one segment being built, and its encoding.

use super::{Repository, Segments};
use crate::observe::{Cancel, Counter, Observer};
use crate::pack::{index_entry, read_footer};
use crate::store::Depth;
use crate::{Error, Result};
use pgkeep_formats::id::PackId;
use pgkeep_formats::repo::index::IndexView;
use pgkeep_formats::repo::layout;
use std::collections::HashMap;

/// What a rebuild came to.
#[derive(Debug, Default)]
pub struct Rebuilt {
    /// Packs whose footers were read.
    pub packs: u64,
    /// Chunks in them.
    pub chunks: u64,
    /// Names of the index objects that were published.
    pub segments: Vec<String>,
    /// Names of the index objects that are superseded.
    pub superseded: Vec<String>,
    /// Packs that no longer tell what they hold. The index has of them what the old one had, if they have not changed in
    /// size since.
    pub unreadable: Vec<(PackId, Error)>,
}

impl Repository {
    /// Publishes a new index of every pack there is, which supersedes the old one. Nothing is deleted.
    ///
    /// A pack whose footer is damaged is reported, and what the old index says of it is kept; one that vanishes meanwhile
    /// is left out. Progress is in bytes of packs. Safe to repeat, and beside running backups.
    ///
    /// # Errors
    /// `FeatureNotSupported` for a repository that can only be read, or a pack made by another version;
    /// [`Error::Interrupted`]; what the store or the cipher said. The old index is then in force as before.
    pub fn rebuild_index(&self, observer: &dyn Observer, cancel: &Cancel) -> Result<Rebuilt> {
        self.check_writable()?;
        // The order matters: what was published before this list is in packs of the next one.
        let superseded = self.index_segments()?.into_iter().map(|l| l.key).collect();
        let mut packs = Vec::new();
        self.store
            .list(layout::PACKS, Depth::All, &mut |l| packs.extend(layout::parse_pack(&l.key).zip(Some(l.size))))?;
        observer.begin("rebuild index", packs.iter().map(|p| p.1).sum());
        let rebuilt = self.rebuild_from(&packs, superseded, observer, cancel);
        observer.end();
        rebuilt
    }

    fn rebuild_from(
        &self,
        packs: &[(PackId, u64)],
        superseded: Vec<String>,
        observer: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<Rebuilt> {
        let mut segments = Segments::new(self)?;
        let mut out = Rebuilt::default();
        for (pack, size) in packs {
            cancel.check()?;
            match read_footer(self, *pack, *size) {
                Ok((facts, footer)) => {
                    let name = layout::pack(*pack);
                    for (ordinal, entry) in footer.entries.iter().enumerate() {
                        segments.add(&name, &facts, index_entry(ordinal, entry))?;
                    }
                    out.packs += 1;
                    out.chunks += footer.entries.len() as u64;
                }
                Err(e) if e.is_not_found() => {}
                Err(e) if e.is_damage() => out.unreadable.push((*pack, e)),
                Err(e) => return Err(e),
            }
            observer.add(Counter::Done, *size);
        }
        let sizes: HashMap<PackId, u64> = packs.iter().copied().collect();
        let unreadable = out.unreadable.iter().filter_map(|(id, _)| Some((*id, *sizes.get(id)?))).collect();
        self.keep_known(&mut segments, &superseded, &unreadable)?;
        out.segments = segments.finish(superseded.iter())?;
        out.superseded = superseded;
        Ok(out)
    }

    /// Adds what the old index knows of packs whose footers are damaged: their chunks may be whole.
    fn keep_known(
        &self,
        segments: &mut Segments<'_>,
        superseded: &[String],
        unreadable: &HashMap<PackId, u64>,
    ) -> Result<()> {
        if unreadable.is_empty() {
            return Ok(());
        }
        for name in superseded {
            let payload = match self.index_payload(name) {
                Ok((payload, _)) => payload,
                Err(e) if e.is_not_found() => continue,
                Err(e) if e.is_damage() => {
                    tracing::warn!("{e}: what it says of damaged packs is lost");
                    continue;
                }
                Err(e) => return Err(e),
            };
            let view = IndexView::parse(&payload).map_err(Error::damaged(name))?;
            for entry in view.iter() {
                // A pack that was cut short since would make every backup fail that wants to use it.
                let facts = view.pack_of(&entry).filter(|f| unreadable.get(&f.pack) == Some(&f.size));
                if let Some(facts) = facts {
                    segments.add(name, facts, entry)?;
                }
            }
        }
        Ok(())
    }
}
