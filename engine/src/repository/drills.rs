//! Records of drills: what came of recovering a backup and checking it.
//!
//! Nothing depends on them. They are small, and there is one a drill; names begin with the time, so that whoever wants the
//! newest reads those alone.

use super::{Repository, put_new};
use crate::crypto::{Scope, SessionSealer};
use crate::store::Depth;
use crate::{Error, Result};
use pgkeep_formats::id::DrillId;
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::Drill;
use std::sync::Arc;
use std::time::Duration;

impl Repository {
    /// Stores the record of a drill that began at this time since the Unix epoch.
    ///
    /// # Errors
    /// `FeatureNotSupported` if this program must not write to the repository; what the store or the cipher said.
    pub fn put_drill(&self, stanza: &str, began: Duration, drill: &Drill) -> Result<()> {
        self.check_writable()?;
        let sealer = SessionSealer::new(Arc::clone(self.keyring()))?;
        let mut id = [0; DrillId::LEN];
        let (time, random) = id.split_at_mut(8);
        time.copy_from_slice(&u64::try_from(began.as_millis()).unwrap_or(u64::MAX).to_be_bytes());
        // Whoever seals draws an id of its own, which is as random as this one has to be.
        for (to, from) in random.iter_mut().zip(sealer.session().0) {
            *to = from;
        }
        let name = layout::drill(stanza, DrillId(id));
        let bytes = sealer.seal_object(ObjectKind::Drill, &Scope::Stanza(stanza), &name, &[], &drill.encode())?;
        put_new(&**self.store(), &name, &bytes)
    }

    /// The newest records of a stanza's drills, at most so many, the newest first; and why others of them cannot be read.
    /// Costs a list, and a small read for each.
    ///
    /// # Errors
    /// What the store said while listing.
    pub fn drills(&self, stanza: &str, most: usize) -> Result<(Vec<Drill>, Vec<Error>)> {
        let mut names = Vec::new();
        self.store().list(&layout::drills_of(stanza), Depth::All, &mut |l| {
            // What others leave there is none of ours.
            if layout::parse_drill(stanza, &l.key).is_some() {
                names.push(l.key);
            }
        })?;
        names.sort_unstable();
        let (mut drills, mut problems) = (Vec::new(), Vec::new());
        for name in names.iter().rev().take(most) {
            match self.read_drill(stanza, name) {
                Ok(drill) => drills.push(drill),
                // Deleted since it was listed.
                Err(e) if e.is_not_found() => {}
                Err(e) => problems.push(e),
            }
        }
        Ok((drills, problems))
    }

    /// Reads the record of a drill.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub(crate) fn read_drill(&self, stanza: &str, name: &str) -> Result<Drill> {
        let opened = self.read_object(name, &[ObjectKind::Drill], &Scope::Stanza(stanza))?;
        Drill::decode(&opened.plaintext).map_err(Error::damaged(name))
    }
}
