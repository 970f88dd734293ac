//! Reading what a backup uses.

use super::Repository;
use crate::crypto::CryptoError;
use crate::store::Range;
use crate::{Error, Kind, Result};
use pgkeep_formats::id::SessionId;
use pgkeep_formats::repo::envelope::{Domain, ObjectKind};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::refs::Refs;

impl Repository {
    /// The reference record of a session; none if the key at hand cannot open it.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said; `Checksum` if it is another session's.
    pub fn read_refs(&self, session: SessionId) -> Result<Option<Refs>> {
        let name = layout::refs(session);
        let bytes = self.store().get(&name, Range::Whole)?;
        let opened = match self.keyring().open_embedded(&name, &bytes, &[ObjectKind::Refs], Domain::Gc, None) {
            // A key that is not for gc, or one rotated since; the new wrap is gc's business.
            Err(CryptoError::RoleLacks { .. } | CryptoError::NoEpoch { .. }) => return Ok(None),
            other => other?,
        };
        let refs = Refs::decode(&opened.plaintext).map_err(Error::damaged(&name))?;
        if refs.session != Some(session) {
            return Err(Error::refused(Kind::Checksum, format!("'{name}' holds the references of another session")));
        }
        Ok(Some(refs))
    }
}
