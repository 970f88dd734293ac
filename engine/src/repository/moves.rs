//! Where chunks lie that were stored once more, so that the packs they came from can go (G6).
//!
//! What a backup uses is written down once, by the packs that held it then. Sessions that rewrite packs say what they put
//! where; whoever asks which packs a backup needs follows that, from place to place.

use super::Repository;
use crate::crypto::Scope;
use crate::store::Depth;
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{PackId, SessionId};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::moves::Moves;
use pgkeep_formats::repo::refs::Refs;
use std::collections::{HashMap, HashSet};

/// How often a chunk may have been moved: places are followed no further.
const STEPS_MAX: usize = 1000;

/// What sessions have moved.
#[derive(Debug, Default)]
pub(crate) struct Rewritten {
    all: HashMap<SessionId, Moves>,
    /// Who moved chunks of a pack.
    by_source: HashMap<PackId, Vec<SessionId>>,
}

impl Rewritten {
    /// Adds what a session moved.
    pub(crate) fn add(&mut self, moves: Moves) {
        for pack in moves.sources() {
            self.by_source.entry(pack).or_default().push(moves.session);
        }
        self.all.insert(moves.session, moves);
    }

    /// True if nothing was moved.
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What these sessions moved.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Moves> {
        self.all.values()
    }

    fn of(&self, pack: PackId) -> impl Iterator<Item = &Moves> {
        self.by_source.get(&pack).into_iter().flatten().filter_map(|session| self.all.get(session))
    }

    /// Adds the places of all chunks that were moved.
    pub(crate) fn expand(&self, refs: &mut Refs) {
        let moved = self.by_source.keys().flat_map(|pack| refs.ordinals(*pack).map(|ordinal| (*pack, ordinal)));
        let mut todo: Vec<(PackId, u16)> = moved.collect();
        while let Some((pack, ordinal)) = todo.pop() {
            for (to, at) in self.of(pack).filter_map(|moves| moves.find(pack, ordinal)) {
                if !refs.contains(to, at) {
                    refs.insert(to, at);
                    todo.push((to, at));
                }
            }
        }
    }

    /// Whether a chunk lies in another pack too that `is_safe`, as sessions say of which `is_told`.
    pub(crate) fn is_moved(
        &self,
        place: (PackId, u16),
        is_told: &dyn Fn(&SessionId) -> bool,
        is_safe: &dyn Fn(PackId) -> bool,
    ) -> bool {
        let mut todo = vec![place];
        for _ in 0..STEPS_MAX {
            let Some((pack, ordinal)) = todo.pop() else { return false };
            for moves in self.of(pack).filter(|moves| is_told(&moves.session)) {
                match moves.find(pack, ordinal) {
                    Some((to, _)) if is_safe(to) => return true,
                    Some(further) => todo.push(further),
                    None => {}
                }
            }
        }
        false
    }
}

impl Repository {
    /// What a session has moved; none if it was fenced, or its record is gone.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub(crate) fn read_moves(&self, session: SessionId) -> Result<Option<Moves>> {
        let name = layout::moves(session);
        let opened = match self.read_object(&name, &[ObjectKind::Moves, ObjectKind::Fence], &Scope::Repo) {
            Err(e) if e.is_not_found() => return Ok(None),
            opened => opened?,
        };
        if opened.header.kind == ObjectKind::Fence {
            return Ok(None);
        }
        let moves = Moves::decode(&opened.plaintext).map_err(Error::damaged(&name))?;
        if moves.session != session {
            return Err(Error::refused(Kind::Format, format!("'{name}' holds what session {} moved", moves.session)));
        }
        Ok(Some(moves))
    }

    /// What was moved, as far as the newest generation tells of it and records can be read. Costs a list, and a read for each.
    ///
    /// # Errors
    /// What the store said.
    pub(crate) fn rewritten(&self) -> Result<Rewritten> {
        let mut sessions = Vec::new();
        self.store().list(layout::MOVES, Depth::All, &mut |l| sessions.extend(layout::parse_moves(&l.key)))?;
        let mut out = Rewritten::default();
        if !sessions.is_empty() {
            let told: HashSet<SessionId> = self.newest_generation()?.catalogue.into_iter().collect();
            for session in sessions.into_iter().filter(|session| told.contains(session)) {
                match self.read_moves(session) {
                    Ok(moves) => moves.into_iter().for_each(|moves| out.add(moves)),
                    // It is told where all records are read.
                    Err(e) if e.is_damage() || e.kind() == Kind::Crypto => tracing::debug!("{}", e.chain()),
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(out)
    }
}
